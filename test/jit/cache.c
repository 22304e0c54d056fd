/*
 * cache.c: what the translator has made: what it keeps when memory slots change, what vCPUs take from each other, what
 * it copies to other addresses; and what it counts and fills, near their ends: generations of page guards, and the
 * memory for what is known about blocks. To come there otherwise takes hours, or hundreds of megabytes of code.
 *
 * A program is a page: it calls the first byte of the next page, or of none, and ends with CPUID, which leaves.
 */
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "../../src/jit/jit_impl.h"
#include "../../src/x86/pte.h"
#include "../insn/machine.h"
#include "../lib/test.h"

#define CODE 0x30000000ul
#define PAGES 1024u
#define STACK (CODE + PAGES * PAGE_SIZE)

static struct machine machines[12], *mach; /* one a case */
static u8 *code;

static bool begin_at(unsigned cpl)
{
	const u64 size = (PAGES + 1) * PAGE_SIZE;
	struct memslot *s;

	mach = mach ? mach + 1 : machines;
	s = &mach->win_slot[0];
	machine_init(mach, cpl);
	code = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	*s = (struct memslot){.gpa = CODE, .size = size, .hva = code};
	if (code == MAP_FAILED || memslot_add(&mach->mem, s))
		return false;
	mach->nwin = 1;
	for (u64 a = CODE; a < CODE + size; a += PAGE_SIZE)
		machine_map(mach, a, PTE_P | PTE_W | PTE_U | PTE_A | PTE_D);
	return mach->v->jit;
}

static bool begin(void)
{
	return begin_at(3);
}

static void end(void)
{
	machine_free(mach);
	munmap(code, (PAGES + 1) * PAGE_SIZE);
}

/* RAX when the program at `rip` leaves. */
static u64 run_on(struct vcpu *v, u64 rip)
{
	v->r[R_RIP] = rip;
	v->r[R_RSP] = STACK + PAGE_SIZE - 64;
	v->r[R_RAX] = 0;
	v->goes_on = false;
	v->exit.reason = EXIT_NONE;
	jit_run(v);
	CHECK_EQ(v->exit.reason, EXIT_CPUID);
	return v->r[R_RAX];
}

static u64 run(u64 rip)
{
	return run_on(mach->v, rip);
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

/* The slot with the code is made anew, at the same place or another one; the program goes on where it was. */
static void change_slots(gpa_t gpa)
{
	struct memslot *s = &mach->win_slot[0];

	memslot_remove(&mach->mem, s);
	free((void *)s->code);
	free((void *)s->dirty);
	free(s->holders);
	*s = (struct memslot){.gpa = gpa, .size = (PAGES + 1) * PAGE_SIZE, .hva = code};
	CHECK_EQ(memslot_add(&mach->mem, s), 0);
	for (u64 n = 0; n <= PAGES; n++)
		machine_map_to(mach, CODE + n * PAGE_SIZE, gpa + n * PAGE_SIZE, PTE_P | PTE_W | PTE_U | PTE_A | PTE_D);
	tlb_flush(&mach->v->mmu);
	interp_flush(mach->v);
	jit_slots_changed(mach->v);
}

TEST(slot_changes_keep_code)
{
	/* call; mov [rip + ...], cl: what the callee returns; call; cpuid */
	static const u8 caller[] = {0xe8, 0xfb, 0x0f, 0,    0,    0x88, 0x0d, 0xf6, 0x0f,
	                            0,    0,    0xe8, 0xf0, 0x0f, 0,    0,    0x0f, 0xa2},
	                callee[] = {0xb8, 0, 0, 0, 0, 0xc3};
	u64 blocks;

	if (!begin())
		return;
	memcpy(code, caller, sizeof(caller));
	memcpy(code + PAGE_SIZE, callee, sizeof(callee));
	for (u8 n = 1; n < 200; n++) {
		mach->v->r[R_RCX] = n;
		CHECK_EQ(run(CODE), n);
		/* Behind the store, which kills a block. */
		run(CODE + 11);
		blocks = mach->v->jit->n.blocks;
		change_slots(n % 4 == 3 ? CODE + 0x1000000ul : CODE);
		CHECK_EQ(run(CODE + 11), n);
		CHECK_EQ(mach->v->jit->n.blocks, blocks);
	}
	end();
}

/* What has run on one vCPU is not translated again for another one; nor, on another page, what the first one has thrown
 * away since. Kernel code is shared as well. */
TEST(vcpus_share_blocks)
{
	static const u8 caller[] = {0xe8, 0xfb, 0x0f, 0, 0, 0x48, 0xff, 0xc0, 0x0f, 0xa2, 0xf4},
	                callee[] = {0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xc3};
	struct vcpu *other;

	for (unsigned cpl = 0; cpl <= 3; cpl += 3) {
		u64 here = CODE + PAGE_SIZE + 7;

		if (!begin_at(cpl))
			return;
		other = machine_vcpu(mach, 1, cpl);
		memcpy(code, caller, sizeof(caller));
		memcpy(code + PAGE_SIZE, callee, sizeof(callee));
		CHECK_EQ(run(CODE), here + 1);
		CHECK_EQ(run_on(other, CODE), here + 1);
		CHECK(other->jit->n.imported);
		CHECK_EQ(other->jit->n.blocks, 0);
		/* The second's are its own: the first may drop all it has, and go on with other code there. */
		jit_flush(mach->v);
		memcpy(code + 8 * PAGE_SIZE, caller + 8, 3);
		run(CODE + 8 * PAGE_SIZE);
		code[64 - 1]++;
		code[PAGE_SIZE + 64 - 1]++;
		CHECK_EQ(run_on(other, CODE), here + 1);
		CHECK_EQ(other->jit->n.blocks, 0);
		/* And it is not taken where the bytes are others. */
		code[PAGE_SIZE + 3] = 1;
		CHECK_EQ(run(CODE), here + 2);
		CHECK_EQ(run_on(other, CODE), here + 2);
		machine_vcpu_free(other);
		end();
	}
}

/* An instruction whose second page changes; the other vCPU need not run. */
TEST(border_changes)
{
	static const u8 program[] = {0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0xf4};
	struct vcpu *other;

	if (!begin())
		return;
	other = machine_vcpu(mach, 1, 3);
	memcpy(code + PAGE_SIZE - 2, program, sizeof(program));
	for (u8 n = 0; n < 20; n++) {
		/* In the page itself and behind it; a run that does not end is the alarm's. */
		code[PAGE_SIZE] = n;
		code[PAGE_SIZE - 1] = (u8)(n / 5);
		alarm(5);
		for (unsigned k = 0; k < 3; k++)
			CHECK_EQ(run(CODE + PAGE_SIZE - 2), (n << 8) + n / 5);
		for (unsigned k = 0; k < 3; k++)
			CHECK_EQ(run_on(other, CODE + PAGE_SIZE - 2), (n << 8) + n / 5);
		alarm(0);
	}
	machine_vcpu_free(other);
	end();
}

/* A block whose accesses share a check where the other vCPU runs it, and lie over two pages here. */
TEST(what_straddles_is_ones_own)
{
	/* mov rax, [rbx]; mov rdx, [rbx + 8]; dec rcx; jnz; cpuid */
	static const u8 program[] = {0x48, 0x8b, 0x03, 0x48, 0x8b, 0x53, 0x08,
	                             0x48, 0xff, 0xc9, 0x75, 0xf4, 0x0f, 0xa2};
	struct vcpu *other;
	u64 helper, imported;

	if (!begin())
		return;
	other = machine_vcpu(mach, 1, 3);
	memcpy(code, program, sizeof(program));
	mach->v->r[R_RBX] = CODE + 4 * PAGE_SIZE;
	mach->v->r[R_RCX] = 1000;
	run(CODE);
	for (unsigned n = 0; n < 2; n++) {
		helper = other->jit->n.helper;
		imported = other->jit->n.imported;
		other->r[R_RBX] = CODE + 5 * PAGE_SIZE - 8;
		other->r[R_RCX] = 10000;
		run_on(other, CODE);
	}
	CHECK(other->jit->n.helper - helper < 100);
	CHECK_EQ(other->jit->n.imported, imported);
	machine_vcpu_free(other);
	end();
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Code that is rewritten behind a beginning that stays does not become slower and slower. */
TEST(rewritten_code_stays_cheap)
{
	/* mov rbx, 0; mov rbx, 0; mov rbx, 0; mov eax, n; cpuid */
	static const u8 zero[10] = {0x48, 0xbb}, program[] = {0xb8, 0, 0, 0, 0, 0x0f, 0xa2, 0xf4};
	double start, first = 0, last = 0;
	u8 *at;

	if (!begin())
		return;
	for (at = code; at < code + 40; at += sizeof(zero))
		memcpy(at, zero, sizeof(zero));
	memcpy(at, program, sizeof(program));
	for (u32 part = 0; part < 9; part++) {
		start = now();
		for (u32 n = part * 4000; n < part * 4000 + 4000; n++) {
			memcpy(at + 1, &n, 4);
			CHECK_EQ(run(CODE), n);
		}
		last = now() - start;
		first = part == 1 ? last : first;
	}
	CHECK(last < first * 5);
	end();
}

/* A page of code that is mapped at ever more addresses, as programs are that start again and again. */
TEST(copies_take_the_places_of_old_ones)
{
	static const u8 program[] = {0x48, 0x8d, 0x05, 0xf9, 0xff, 0xff, 0xff, 0xeb, 0x01, 0x90, 0x0f, 0xa2};
	const u64 first = 0x7f0000000000ul;
	struct jit *j;
	u64 bytes = 0;

	if (!begin())
		return;
	j = mach->v->jit;
	memcpy(code, program, sizeof(program));
	for (u64 n = 0; n < 2000; n++) {
		machine_map_to(mach, first + n * PAGE_SIZE, CODE, PTE_P | PTE_U | PTE_A);
		CHECK_EQ(run(first + n * PAGE_SIZE), first + n * PAGE_SIZE);
		/* Seldom used ones stay right. */
		if (n % 64 == 63)
			CHECK_EQ(run(first + n / 2 * PAGE_SIZE), first + n / 2 * PAGE_SIZE);
		if (n == 1000)
			bytes = j->n.code_bytes;
	}
	CHECK(j->n.blocks <= 4);
	CHECK(j->n.copied >= 2000);
	CHECK_EQ(j->n.code_bytes, bytes);
	end();
}

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
