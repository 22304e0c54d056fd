/*
 * debug12.c: breakpoints and watchpoints of the client's: exact wherever they are hit, and cheap where they are not.
 * Flat 32-bit code at CPL 0 without paging. Runs on Linux' KVM too, but for the timing of what software does.
 */
#include <time.h>

#include "client12.h"
#include "test.h"

#define RAM (1u << 20)
#define CODE_AT 0x1000u
#define WATCHED 0x30000u

static void start32(struct guest *g)
{
	CHECK_EQ(guest_open(g, RAM), 0);
	CHECK_EQ(guest_start32(g, CODE_AT), 0);
}

/* One breakpoint, number 0; rw and len as in DR7. */
static void watch(struct guest *g, uint64_t at, unsigned rw, unsigned len)
{
	struct kvm_guest_debug d = {.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP};

	d.arch.debugreg[0] = at;
	d.arch.debugreg[7] = 0x402 | (uint64_t)(rw | len << 2) << 16;
	CHECK_EQ(kioctl(g->vcpu, KVM_SET_GUEST_DEBUG, &d), 0);
}

static void watch_off(struct guest *g)
{
	struct kvm_guest_debug d = {0};

	CHECK_EQ(kioctl(g->vcpu, KVM_SET_GUEST_DEBUG, &d), 0);
}

/* The guest goes on, to the breakpoint; *r is its state there. */
static void hit(struct guest *g, uint64_t pc, struct kvm_regs *r)
{
	CHECK_EQ(guest_run(g), 0);
	CHECK_EQ(g->run->exit_reason, KVM_EXIT_DEBUG);
	CHECK_EQ(g->run->debug.arch.pc, pc);
	CHECK_EQ(g->run->debug.arch.dr6 & 0xf, 1);
	CHECK_EQ(kioctl(g->vcpu, KVM_GET_REGS, r), 0);
	CHECK_EQ(r->rip, pc);
}

static void halts(struct guest *g)
{
	CHECK_EQ(guest_run(g), 0);
	CHECK_EQ(g->run->exit_reason, KVM_EXIT_HLT);
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The least of three runs of the loop from the start. */
static double loop_time(struct guest *g)
{
	double least = 1e9;

	for (int n = 0; n < 3; n++) {
		struct kvm_regs r = {.rip = CODE_AT, .rsp = 0x8000, .rflags = 2};
		double from = seconds(), took;

		CHECK_EQ(kioctl(g->vcpu, KVM_SET_REGS, &r), 0);
		halts(g);
		took = seconds() - from;
		if (took < least)
			least = took;
	}
	return least;
}

/* A loop that reads, writes, calls, and touches neither the watched page nor the one with the breakpoint. */
TEST(breakpoints_elsewhere_cost_little)
{
	struct guest g;
	double plain, data, code;

	start32(&g);
	/* mov ecx, 200000; l: mov eax, [0x20000]; inc eax; mov [0x20000], eax; call f; dec ecx; jnz l; hlt; f: ret */
	CODE(&g, CODE_AT, 0xb9, 0x40, 0x0d, 0x03, 0x00, 0xa1, 0x00, 0x00, 0x02, 0x00, 0x40, 0xa3, 0x00, 0x00, 0x02,
	     0x00, 0xe8, 0x04, 0x00, 0x00, 0x00, 0x49, 0x75, 0xed, 0xf4, 0xc3);
	plain = loop_time(&g);
	watch(&g, WATCHED, 3, 3);
	data = loop_time(&g);
	watch(&g, 0x5000, 0, 0);
	code = loop_time(&g);
	if (data > 6 * plain || code > 6 * plain)
		printf("  without %.4f s, data watched %.4f s, breakpoint %.4f s\n", plain, data, code);
	CHECK(data <= 6 * plain);
	CHECK(code <= 6 * plain);
	CHECK_EQ(*(uint32_t *)(void *)(g.ram + 0x20000), 9 * 200000);
	guest_close(&g);
}

/* What waits for IF is in nobody's way until then; then it comes behind the instruction after STI. Firmware runs so for
 * seconds: interrupts shut, and the timer's waiting. */
TEST(what_waits_for_if_costs_little)
{
	struct guest g;
	double plain = 1e9, waiting = 1e9;
	struct kvm_regs r;

	start32(&g);
	/* mov ecx, 200000; l: call f; dec ecx; jnz l; sti; nop; nop; hlt; f: ret */
	CODE(&g, CODE_AT, 0xb9, 0x40, 0x0d, 0x03, 0x00, 0xe8, 0x07, 0x00, 0x00, 0x00, 0x49, 0x75, 0xf8, 0xfb, 0x90,
	     0x90, 0xf4, 0xc3);
	for (int n = 0; n < 6; n++) {
		double from, *least = n % 2 ? &waiting : &plain;

		r = (struct kvm_regs){.rip = CODE_AT, .rsp = 0x8000, .rflags = 2};
		CHECK_EQ(kioctl(g.vcpu, KVM_SET_REGS, &r), 0);
		g.run->request_interrupt_window = n % 2;
		from = seconds();
		CHECK_EQ(guest_run(&g), 0);
		from = seconds() - from;
		CHECK_EQ(g.run->exit_reason, n % 2 ? KVM_EXIT_IRQ_WINDOW_OPEN : KVM_EXIT_HLT);
		CHECK_EQ(kioctl(g.vcpu, KVM_GET_REGS, &r), 0);
		CHECK_EQ(r.rip, n % 2 ? CODE_AT + 15 : CODE_AT + 17);
		if (from < *least)
			*least = from;
	}
	if (waiting > 3 * plain)
		printf("  nothing waits: %.4f s, something does: %.4f s\n", plain, waiting);
	CHECK(waiting <= 3 * plain);
	guest_close(&g);
}

/* Reads and writes beside the watched bytes, then the one that counts, from code that ran often. */
TEST(write_watch_is_exact)
{
	struct kvm_regs r;
	struct guest g;

	start32(&g);
	/* mov ecx, 5000; l: mov [0x30004], ecx; mov eax, [0x30000]; cmp ecx, 77; jne n; mov [0x30002], cx; n: dec ecx;
	 * jnz l; hlt */
	CODE(&g, CODE_AT, 0xb9, 0x88, 0x13, 0x00, 0x00, 0x89, 0x0d, 0x04, 0x00, 0x03, 0x00, 0xa1, 0x00, 0x00, 0x03,
	     0x00, 0x83, 0xf9, 0x4d, 0x75, 0x07, 0x66, 0x89, 0x0d, 0x02, 0x00, 0x03, 0x00, 0x49, 0x75, 0xe6, 0xf4);
	watch(&g, WATCHED, 1, 3);
	hit(&g, 0x101c, &r);
	CHECK_EQ(r.rcx, 77);
	CHECK_EQ(r.rax, 0);
	CHECK_EQ(*(uint32_t *)(void *)(g.ram + WATCHED), 77u << 16);
	halts(&g);
	CHECK_EQ(*(uint32_t *)(void *)(g.ram + WATCHED + 4), 1);
	guest_close(&g);
}

TEST(reads_stack_and_locked_accesses_hit)
{
	struct kvm_regs r;
	struct guest g;

	start32(&g);
	/* mov esp, 0x30004; push 5; pop eax; lock inc dword [0x30000]; cmp byte [0x30003], 1; call f; nop; hlt; f: ret
	 * 4 */
	CODE(&g, CODE_AT, 0xbc, 0x04, 0x00, 0x03, 0x00, 0x6a, 0x05, 0x58, 0xf0, 0xff, 0x05, 0x00, 0x00, 0x03, 0x00,
	     0x80, 0x3d, 0x03, 0x00, 0x03, 0x00, 0x01, 0xe8, 0x02, 0x00, 0x00, 0x00, 0x90, 0xf4, 0xc2, 0x04, 0x00);
	watch(&g, WATCHED, 3, 3);
	hit(&g, 0x1007, &r); /* push */
	CHECK_EQ(r.rsp, WATCHED);
	hit(&g, 0x1008, &r); /* pop */
	CHECK_EQ(r.rax, 5);
	hit(&g, 0x100f, &r); /* lock inc */
	CHECK_EQ(*(uint32_t *)(void *)(g.ram + WATCHED), 6);
	hit(&g, 0x1016, &r); /* cmp */
	CHECK_EQ(r.rflags & 1, 1);
	hit(&g, 0x101d, &r); /* call */
	hit(&g, 0x101b, &r); /* ret */
	CHECK_EQ(r.rsp, WATCHED + 8);
	halts(&g);
	guest_close(&g);
}

/* A repetition stops behind the element that hit, and goes on from there. */
TEST(repetition_stops_at_the_element)
{
	struct kvm_regs r;
	struct guest g;

	start32(&g);
	/* mov edi, 0x2ff00; mov ecx, 0x100; mov eax, 0x11223344; rep stosd; mov esi, 0x2ff00; mov edi, 0x40000; mov
	 * ecx, 0x400; rep movsb; hlt */
	CODE(&g, CODE_AT, 0xbf, 0x00, 0xff, 0x02, 0x00, 0xb9, 0x00, 0x01, 0x00, 0x00, 0xb8, 0x44, 0x33, 0x22, 0x11,
	     0xf3, 0xab, 0xbe, 0x00, 0xff, 0x02, 0x00, 0xbf, 0x00, 0x00, 0x04, 0x00, 0xb9, 0x00, 0x04, 0x00, 0x00, 0xf3,
	     0xa4, 0xf4);
	watch(&g, WATCHED + 8, 3, 0);
	hit(&g, 0x100f, &r);
	CHECK_EQ(r.rcx, 0x100 - 0x43);
	CHECK_EQ(r.rdi, WATCHED + 12);
	CHECK_EQ(*(uint32_t *)(void *)(g.ram + WATCHED + 12), 0);
	hit(&g, 0x1020, &r);
	CHECK_EQ(r.rcx, 0x400 - 0x109);
	CHECK_EQ(r.rsi, WATCHED + 9);
	halts(&g);
	CHECK_EQ(*(uint32_t *)(void *)(g.ram + 0x403fc), 0x11223344);
	CHECK_EQ(*(uint32_t *)(void *)(g.ram + WATCHED + 0x2fc), 0x11223344);
	guest_close(&g);
}

/* In code that was running before the breakpoint was set, in the loop's own page and in another that it calls. */
TEST(code_breakpoint_in_busy_code)
{
	struct kvm_regs r, at;
	struct guest g;

	start32(&g);
	/* mov ecx, 3000; l: call 0x2100; inc ebx; dec ecx; jnz l; hlt */
	CODE(&g, CODE_AT, 0xb9, 0xb8, 0x0b, 0x00, 0x00, 0xe8, 0xf6, 0x10, 0x00, 0x00, 0x43, 0x49, 0x75, 0xf7, 0xf4);
	CODE(&g, 0x2100, 0x42, 0xc3); /* inc edx; ret */
	halts(&g);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_REGS, &r), 0);
	CHECK_EQ(r.rdx, 3000);
	r.rip = CODE_AT;
	r.rdx = r.rbx = 0;
	for (int page = 0; page < 2; page++) {
		uint64_t pc = page ? 0x2101 : 0x100b;

		CHECK_EQ(kioctl(g.vcpu, KVM_SET_REGS, &r), 0);
		watch(&g, pc, 0, 0);
		hit(&g, pc, &at);
		CHECK_EQ(at.rdx, 1);
		CHECK_EQ(at.rbx, !page);
		/* Over it, and once more. */
		at.rflags |= 0x10000;
		CHECK_EQ(kioctl(g.vcpu, KVM_SET_REGS, &at), 0);
		hit(&g, pc, &at);
		CHECK_EQ(at.rdx, 2);
		watch_off(&g);
		halts(&g);
		CHECK_EQ(kioctl(g.vcpu, KVM_GET_REGS, &at), 0);
		CHECK_EQ(at.rdx, 3000);
		CHECK_EQ(at.rbx, 3000);
	}
	guest_close(&g);
}

/* The guest's own, which it sets and takes itself: #DB behind the store, DR6 says so. */
TEST(guest_sets_its_own)
{
	struct kvm_regs r;
	struct guest g;

	start32(&g);
	guest_gate32(&g, 1, 0x2000);
	/* mov eax, 0x30000; mov dr0, eax; mov eax, 0xd0402; mov dr7, eax; mov ecx, 1000; l: inc ebx; mov [0x30010],
	 * ebx; test bl, 127; jnz n; mov [0x30000], ebx; n: dec ecx; jnz l; hlt */
	CODE(&g, CODE_AT, 0xb8, 0x00, 0x00, 0x03, 0x00, 0x0f, 0x23, 0xc0, 0xb8, 0x02, 0x04, 0x0d, 0x00, 0x0f, 0x23,
	     0xf8, 0xb9, 0xe8, 0x03, 0x00, 0x00, 0x43, 0x89, 0x1d, 0x10, 0x00, 0x03, 0x00, 0xf6, 0xc3, 0x7f, 0x75, 0x06,
	     0x89, 0x1d, 0x00, 0x00, 0x03, 0x00, 0x49, 0x75, 0xeb, 0xf4);
	/* mov eax, dr6; inc edx; cmp dword [esp], 0x1027; je ok; hlt; ok: iretd */
	CODE(&g, 0x2000, 0x0f, 0x21, 0xf0, 0x42, 0x81, 0x3c, 0x24, 0x27, 0x10, 0x00, 0x00, 0x74, 0x01, 0xf4, 0xcf);
	halts(&g);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_REGS, &r), 0);
	CHECK_EQ(r.rip, 0x102b);
	CHECK_EQ(r.rdx, 7);
	CHECK_EQ(r.rbx, 1000);
	CHECK_EQ(r.rax & 0xf, 1);
	guest_close(&g);
}

/* Watched data and code right behind exceptions that translated code delivers itself: ud2 in a loop, whose handler
 * stores to the watched word, and calls watched code, at each 128th. */
TEST(exact_behind_exceptions)
{
	struct kvm_regs r = {.rip = CODE_AT, .rsp = 0x8000, .rflags = 2}, at;
	struct guest g;

	start32(&g);
	guest_gate32(&g, 6, 0x2000);
	/* mov ecx, 1000; l: ud2; dec ecx; jnz l; hlt */
	CODE(&g, CODE_AT, 0xb9, 0xe8, 0x03, 0x00, 0x00, 0x0f, 0x0b, 0x49, 0x75, 0xfb, 0xf4);
	/* inc ebx; test bl, 127; jnz n; mov [0x30000], ebx; call 0x4000; n: add dword [esp], 2; iretd */
	CODE(&g, 0x2000, 0x43, 0xf6, 0xc3, 0x7f, 0x75, 0x0b, 0x89, 0x1d, 0x00, 0x00, 0x03, 0x00, 0xe8, 0xef, 0x1f, 0x00,
	     0x00, 0x83, 0x04, 0x24, 0x02, 0xcf);
	CODE(&g, 0x4000, 0xc3);
	for (unsigned code = 0; code < 2; code++) {
		r.rbx = 0;
		CHECK_EQ(kioctl(g.vcpu, KVM_SET_REGS, &r), 0);
		if (code)
			watch(&g, 0x4000, 0, 0);
		else
			watch(&g, WATCHED, 1, 3);
		for (unsigned n = 1; n <= 7; n++) {
			hit(&g, code ? 0x4000 : 0x200c, &at);
			CHECK_EQ(at.rbx, 128 * n);
			if (code) {
				/* Past the breakpoint. */
				watch_off(&g);
				at.rip = 0x2011, at.rsp += 4;
				CHECK_EQ(kioctl(g.vcpu, KVM_SET_REGS, &at), 0);
				watch(&g, 0x4000, 0, 0);
			}
		}
		halts(&g);
		watch_off(&g);
	}
	guest_close(&g);
}

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
