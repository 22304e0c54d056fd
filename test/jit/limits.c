/*
 * limits.c: what the translator counts and what it fills, near their ends: generations of page guards, and the memory
 * for what is known about blocks. To come there otherwise takes hours, or hundreds of megabytes of code.
 *
 * A program is a page: it calls the first byte of the next page, or of none, and ends with CPUID, which leaves.
 */
#include <sys/mman.h>

#include "../../src/jit/jit_impl.h"
#include "../../src/x86/pte.h"
#include "../insn/machine.h"
#include "../lib/test.h"

#define CODE 0x30000000ul
#define PAGES 1024u
#define STACK (CODE + PAGES * PAGE_SIZE)

static struct machine machines[2], *mach; /* one a case */
static u8 *code;

static bool begin(void)
{
	const u64 size = (PAGES + 1) * PAGE_SIZE;
	struct memslot *s;

	mach = mach ? mach + 1 : machines;
	s = &mach->win_slot[0];
	machine_init(mach, 3);
	code = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*s = (struct memslot){.gpa = CODE, .size = size, .hva = code};
	if (code == MAP_FAILED || memslot_add(&mach->mem, s))
		return false;
	mach->nwin = 1;
	for (u64 a = CODE; a < CODE + size; a += PAGE_SIZE)
		machine_map(mach, a, PTE_P | PTE_W | PTE_U | PTE_A | PTE_D);
	return mach->v->jit;
}

static void end(void)
{
	machine_free(mach);
	munmap(code, (PAGES + 1) * PAGE_SIZE);
}

/* RAX when the program at `rip` leaves. */
static u64 run(u64 rip)
{
	struct vcpu *v = mach->v;

	v->r[R_RIP] = rip;
	v->r[R_RSP] = STACK + PAGE_SIZE - 64;
	v->r[R_RAX] = 0;
	v->goes_on = false;
	v->exit.reason = EXIT_NONE;
	jit_run(v);
	CHECK_EQ(v->exit.reason, EXIT_CPUID);
	return v->r[R_RAX];
}

/* The callee is put away, with links to it, and comes back with other bytes, in each generation around the last. Few:
 * a page is only put away so often. */
TEST(generations_begin_anew)
{
	static const u8 caller[] = {0xe8, 0xfb, 0x0f, 0x00, 0x00, 0x0f, 0xa2}, callee[] = {0xb8, 0, 0, 0, 0, 0xc3};

	if (!begin())
		return;
	memcpy(code, caller, sizeof(caller));
	memcpy(code + PAGE_SIZE, callee, sizeof(callee));
	run(CODE);
	run(CODE);
	mach->v->jit->last_gen = 0u - 6;
	for (u8 n = 1; n < 7; n++) {
		struct jpage *p = page_find(mach->v->jit, code + PAGE_SIZE);

		if (p)
			page_leave(mach->v->jit, p);
		code[PAGE_SIZE + 1] = n;
		CHECK_EQ(run(CODE), n);
	}
	end();
}

/* As when the kernel of the guest fills the memory of a whole program with one REP STOS. */
TEST(many_pages_given_up_at_once)
{
	static const u8 leave[] = {0x0f, 0xa2};
	struct jit *j;

	if (!begin())
		return;
	j = mach->v->jit;
	for (unsigned n = 0; n < PAGES; n++) {
		memcpy(code + n * PAGE_SIZE, leave, sizeof(leave));
		run(CODE + n * PAGE_SIZE);
	}
	j->meta_used = (META_SIZE - 65536) & ~15u;
	for (unsigned n = 0; n < PAGES; n++)
		page_leave(j, page_find(j, code + n * PAGE_SIZE));
	CHECK(j->meta_used <= META_SIZE);
	CHECK_EQ(run(CODE), 0);
	end();
}

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
