/*
 * spaces12.c: translations and address spaces: code whose page changes, with and without global pages and PCIDs; the D
 * bit of stores that are not made; more pages of code than the translator keeps guards for; repetitions to the end of a
 * page; returns to CPL 3 that must fail; watchpoints at the end of the address space.
 *
 * Two sets of page tables (CR3 0x8000 and 0xc000) map the first GiB to itself, but for 0x400000: there the first has
 * the page at 0x20000, where code puts 1 into AL and returns, and the second the one at 0x21000, where it puts 2.
 */
#include "client12.h"
#include "test.h"

#define RAM (16ull << 20)
#define TABLES 0x8000ull
#define OTHER_TABLES 0xc000ull
#define PTE(tables) ((tables) + 0x3000)
#define CODE_AT 0x10000ull
#define CR4_BASE 0x620u /* PAE, OSFXSR, OSXMMEXCPT */
#define CR4_PGE 0x80u
#define CR4_PCIDE 0x20000u

/* CPL 0, 64-bit code at CODE_AT. */
static void start(struct guest *g, uint32_t cr4)
{
	struct kvm_segment code = {.limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
	struct kvm_segment data = {.limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
	struct kvm_regs r = {.rip = CODE_AT, .rsp = 0x7000, .rflags = 2};
	struct kvm_sregs s;

	CHECK_EQ(guest_open(g, RAM), 0);
	CODE(g, 0x20000, 0xb0, 1, 0xc3); /* mov al, 1; ret */
	CODE(g, 0x21000, 0xb0, 2, 0xc3);
	for (int k = 0; k < 2; k++) {
		uint64_t at = k ? OTHER_TABLES : TABLES, *t = (uint64_t *)(void *)(g->ram + at);

		t[0] = (at + 0x1000) | 7;
		t[512] = (at + 0x2000) | 7;
		for (unsigned n = 0; n < 512; n++)
			t[1024 + n] = (uint64_t)n << 21 | 0x87;
		t[1024 + 2] = PTE(at) | 7;
		t[1536] = (k ? 0x21000 : 0x20000) | 7;
	}
	CHECK_EQ(kioctl(g->vcpu, KVM_GET_SREGS, &s), 0);
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.tr = (struct kvm_segment){.limit = 0x67, .type = 11, .present = 1};
	s.ldt = (struct kvm_segment){.unusable = 1};
	s.cr0 = 0x80000011u;
	s.cr3 = TABLES;
	s.cr4 = cr4;
	s.efer = 0x500;
	CHECK_EQ(kioctl(g->vcpu, KVM_SET_SREGS, &s), 0);
	CHECK_EQ(kioctl(g->vcpu, KVM_SET_REGS, &r), 0);
}

/* What the guest writes to a port: AL. */
static int written(struct guest *g)
{
	return guest_run(g) == 0 && g->run->exit_reason == KVM_EXIT_IO ? *guest_io(g) : -1;
}

/* mov ebx, 0x400000; call rbx, twice: it is translated and linked */
#define CALL_TWICE 0xbb, 0, 0, 0x40, 0, 0xff, 0xd3, 0xff, 0xd3

static void invlpg(uint32_t cr4)
{
	struct guest g;

	start(&g, cr4);
	/* mov qword [0xb000], 0x21007; invlpg [rbx]; call rbx; out 0x10, al */
	CODE(&g, CODE_AT, CALL_TWICE, 0x48, 0xc7, 0x04, 0x25, 0, 0xb0, 0, 0, 0x07, 0x10, 0x02, 0, 0x0f, 0x01, 0x3b,
	     0xff, 0xd3, 0xe6, 0x10);
	CHECK_EQ(written(&g), 2);
	guest_close(&g);
}

TEST(invlpg_of_code)
{
	invlpg(CR4_BASE);
	invlpg(CR4_BASE | CR4_PGE);
}

static void other_space(uint32_t cr4, uint8_t pcid)
{
	struct guest g;

	start(&g, cr4);
	/* mov eax, 0xc000 | pcid; mov cr3, rax; call rbx; out 0x10, al; mov eax, 0x8000; bts rax, 63 if PCIDs; the same
	 */
	CODE(&g, CODE_AT, CALL_TWICE, 0xb8, 0, 0xc0, 0, 0, 0x0f, 0x22, 0xd8, 0xff, 0xd3, 0xe6, 0x10, 0xb8, 0, 0x80, 0,
	     0, 0x48, 0x0f, 0xba, 0xe8, 63, 0x0f, 0x22, 0xd8, 0xff, 0xd3, 0xe6, 0x10);
	g.ram[CODE_AT + 10] = pcid;
	if (!pcid) /* bit 63 is reserved then: bts becomes nops */
		memset(g.ram + CODE_AT + 26, 0x90, 5);
	CHECK_EQ(written(&g), 2);
	CHECK_EQ(written(&g), 1);
	guest_close(&g);
}

TEST(another_address_space)
{
	other_space(CR4_BASE, 0);
	other_space(CR4_BASE | CR4_PGE, 0);
	other_space(CR4_BASE | CR4_PCIDE, 1);
	other_space(CR4_BASE | CR4_PCIDE | CR4_PGE, 1);
}

/* INVLPG drops a global page whatever the PCID (SDM vol. 3, 4.10.4.1). */
TEST(global_page_dropped_under_another_pcid)
{
	struct guest g;

	start(&g, CR4_BASE | CR4_PCIDE | CR4_PGE);
	*(uint64_t *)(void *)(g.ram + PTE(TABLES)) |= 0x100;
	*(uint64_t *)(void *)(g.ram + PTE(OTHER_TABLES)) = 0x20107;
	/* call 0x10080, three times; mov eax, 0xc001; mov cr3, rax; both PTEs = 0x21107; invlpg [0x400000] */
	CODE(&g, CODE_AT, 0xe8, 0x7b, 0, 0, 0, 0xe8, 0x76, 0, 0, 0, 0xe8, 0x71, 0, 0, 0, 0xb8, 1, 0xc0, 0, 0, 0x0f,
	     0x22, 0xd8, 0x48, 0xc7, 0x04, 0x25, 0, 0xb0, 0, 0, 0x07, 0x11, 0x02, 0, 0x48, 0xc7, 0x04, 0x25, 0, 0xf0, 0,
	     0, 0x07, 0x11, 0x02, 0, 0xbb, 0, 0, 0x40, 0, 0x0f, 0x01, 0x3b);
	/* mov rax, 0x8000 | BIT(63); mov cr3, rax; call 0x10080; out 0x10, al */
	CODE(&g, CODE_AT + 55, 0x48, 0xb8, 0, 0x80, 0, 0, 0, 0, 0, 0x80, 0x0f, 0x22, 0xd8, 0xe8, 0x37, 0, 0, 0, 0xe6,
	     0x10);
	CODE(&g, CODE_AT + 0x80, 0xe8, 0x7b, 0xff, 0x3e, 0, 0xc3); /* call 0x400000; ret */
	CHECK_EQ(written(&g), 2);
	guest_close(&g);
}

/* A store that faults leaves the page clean. There is no IDT: the fault ends in a shutdown. */
TEST(no_dirty_bit_without_a_store)
{
	struct kvm_sregs s;
	struct kvm_regs r;
	struct guest g;

	start(&g, CR4_BASE | CR4_PGE);
	CODE(&g, CODE_AT, 0xbb, 8, 0, 0x40, 0, 0x0f, 0x29, 0x03); /* mov ebx, 0x400008; movaps [rbx], xmm0 */
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_SHUTDOWN);
	CHECK_EQ(*(uint64_t *)(void *)(g.ram + PTE(TABLES)) & 0x40, 0);
	guest_close(&g);

	/* #AC at CPL 3 */
	start(&g, CR4_BASE | CR4_PGE);
	CODE(&g, CODE_AT, 0xbb, 1, 0, 0x40, 0, 0x89, 0x03); /* mov ebx, 0x400001; mov [rbx], eax */
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_SREGS, &s), 0);
	s.cs.dpl = s.ss.dpl = s.ds.dpl = s.es.dpl = 3;
	s.cs.selector = 0xb;
	s.ss.selector = 0x13;
	s.cr0 |= 1u << 18;
	CHECK_EQ(kioctl(g.vcpu, KVM_SET_SREGS, &s), 0);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_REGS, &r), 0);
	r.rflags |= 1u << 18;
	CHECK_EQ(kioctl(g.vcpu, KVM_SET_REGS, &r), 0);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_SHUTDOWN);
	CHECK_EQ(*(uint64_t *)(void *)(g.ram + PTE(TABLES)) & 0x40, 0);
	guest_close(&g);
}

#define IDT 0x4000u
#define TSS 0x5000u
#define GDT 0x5100u
#define FRAME(g, r) ((const uint64_t *)(const void *)((g)->ram + (r).rsp))

static void gate64(struct guest *g, unsigned vector, unsigned dpl, uint32_t to)
{
	uint64_t *at = (uint64_t *)(void *)(g->ram + IDT + 16 * vector);

	at[0] = (to & 0xffff) | 8u << 16 | (0x8e00ull | dpl << 13) << 32 | (uint64_t)(to >> 16) << 48;
	at[1] = 0;
}

/* Selectors 8 and 16 as at the start, 0x1b and 0x23 for CPL 3; interrupts from there come to 0x7000. */
static void tables64(struct guest *g)
{
	static const uint64_t gdt[] = {0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cff3000000ffff,
	                               0x00affb000000ffff};
	const uint64_t rsp0 = 0x7000;
	struct kvm_sregs s;

	memcpy(g->ram + GDT, gdt, sizeof(gdt));
	memcpy(g->ram + TSS + 4, &rsp0, sizeof(rsp0));
	CHECK_EQ(kioctl(g->vcpu, KVM_GET_SREGS, &s), 0);
	s.gdt.base = GDT;
	s.gdt.limit = sizeof(gdt) - 1;
	s.idt.base = IDT;
	s.idt.limit = 0xfff;
	s.tr.base = TSS;
	CHECK_EQ(kioctl(g->vcpu, KVM_SET_SREGS, &s), 0);
}

/* IRETQ to CPL 3, often, and then with a null SS: #GP, and nothing has changed. */
TEST(no_null_ss_at_cpl_3)
{
	for (unsigned rpl = 0; rpl < 4; rpl++) {
		struct kvm_regs r;
		struct guest g;

		start(&g, CR4_BASE);
		tables64(&g);
		gate64(&g, 13, 0, 0x11000);
		gate64(&g, 0x30, 3, 0x13000);
		/* mov ecx, 200; l: mov edi, 0x1b; cmp ecx, 1; jne n; mov edi, rpl; n: push rdi; push 0x6800; push 2;
		 * push 0x23; push 0x12000; iretq; dec ecx; jnz l; out 0x10, al */
		CODE(&g, CODE_AT, 0xb9, 0xc8, 0, 0, 0, 0xbf, 0x1b, 0, 0, 0, 0x83, 0xf9, 0x01, 0x75, 0x05, 0xbf, 0x03, 0,
		     0, 0, 0x57, 0x68, 0, 0x68, 0, 0, 0x6a, 0x02, 0x6a, 0x23, 0x68, 0, 0x20, 0x01, 0, 0x48, 0xcf, 0xff,
		     0xc9, 0x75, 0xdc, 0xe6, 0x10);
		g.ram[CODE_AT + 16] = (uint8_t)rpl;
		CODE(&g, 0x11000, 0xf4);
		CODE(&g, 0x12000, 0xcd, 0x30);                                        /* int 0x30 */
		CODE(&g, 0x13000, 0xbc, 0, 0x70, 0, 0, 0xe9, 0x1b, 0xd0, 0xff, 0xff); /* mov esp, 0x7000; jmp dec */
		CHECK_EQ(guest_run(&g), 0);
		CHECK_EQ(g.run->exit_reason, KVM_EXIT_HLT);
		CHECK_EQ(kioctl(g.vcpu, KVM_GET_REGS, &r), 0);
		CHECK_EQ(r.rip, 0x11001);
		CHECK_EQ(r.rcx, 1);
		CHECK_EQ(r.rsp, 0x7000 - 48 - 48);
		CHECK_EQ(FRAME(&g, r)[0], 0);
		CHECK_EQ(FRAME(&g, r)[1], CODE_AT + 0x23);
		CHECK_EQ(FRAME(&g, r)[2], 8);
		CHECK_EQ(FRAME(&g, r)[4], 0x7000 - 40);
		guest_close(&g);
	}
}

/*
 * REP STOS and REP MOVS, often, and then `n` elements that end `over` bytes behind the end of the page at 0x400000,
 * which no page follows; `source`: those to be read.
 */
static void rep_at_end(struct guest *g, unsigned size, bool movs, bool source, uint64_t n, int over)
{
	const uint64_t at = 0x401000 - n * size + (uint64_t)(int64_t)over, done = over > 0 ? n - 1 : n;
	struct kvm_regs r = {.rip = CODE_AT, .rsp = 0x7000, .rflags = 2, .rax = 0x1817161514131211};
	uint8_t *page = g->ram + 0x20000, *other = g->ram + 0x30000, *to, *from, was[0x2000], src[0x1000];
	unsigned k = 0;

	for (unsigned b = 0; b < sizeof(was); b++)
		page[b] = was[b] = (uint8_t)(b * 7 + b / 251);
	for (unsigned b = 0; b < sizeof(src); b++)
		other[b] = (uint8_t)(b * 5 + b / 241 + 1);
	r.r12 = source ? 0x30800 : at;
	r.r13 = source ? at : 0x30800;
	r.rbx = source ? 0x30000 : 0x400000;
	r.rbp = source ? 0x400000 : 0x30000;
	r.r9 = n;
	to = source ? other + 0x800 : page + (at - 0x400000);
	from = source ? page + (at - 0x400000) : other + 0x800;
	/* mov edx, 100; l: mov rdi, rbx; mov rsi, rbp; mov ecx, 5; cmp edx, 1; jne n; mov rdi, r12; mov rsi, r13; mov
	 * rcx, r9; n: rep ...; dec edx; jnz l; out 0x10, al */
	CODE(g, CODE_AT, 0xba, 0x64, 0, 0, 0, 0x48, 0x89, 0xdf, 0x48, 0x89, 0xee, 0xb9, 0x05, 0, 0, 0, 0x83, 0xfa, 0x01,
	     0x75, 0x09, 0x4c, 0x89, 0xe7, 0x4c, 0x89, 0xee, 0x4c, 0x89, 0xc9, 0x90, 0x90, 0x90, 0xff, 0xca, 0x75, 0xe0,
	     0xe6, 0x10);
	if (size == 2)
		g->ram[CODE_AT + 0x1e + k++] = 0x66;
	g->ram[CODE_AT + 0x1e + k++] = 0xf3;
	if (size == 8)
		g->ram[CODE_AT + 0x1e + k++] = 0x48;
	g->ram[CODE_AT + 0x1e + k++] = (uint8_t)((movs ? 0xa4 : 0xaa) + (size > 1));
	CODE(g, 0x11000, 0xf4);
	CHECK_EQ(kioctl(g->vcpu, KVM_SET_REGS, &r), 0);
	memcpy(src, from, n * size);
	CHECK_EQ(guest_run(g), 0);
	CHECK_EQ(g->run->exit_reason, over > 0 ? KVM_EXIT_HLT : KVM_EXIT_IO);
	CHECK_EQ(kioctl(g->vcpu, KVM_GET_REGS, &r), 0);
	CHECK_EQ(r.rcx, n - done);
	CHECK_EQ(r.rdi, r.r12 + done * size);
	if (movs)
		CHECK_EQ(r.rsi, r.r13 + done * size);
	for (unsigned b = 0; b < done * size; b++)
		CHECK_EQ(to[b], movs ? src[b] : (uint8_t)(0x11 + b % size));
	/* Nothing behind them, in this page or in the one that lies behind it in RAM. */
	if (!source)
		CHECK_EQ(memcmp(to + done * size, was + (to - page) + done * size, 0x1000), 0);
	if (over > 0) {
		struct kvm_sregs s;

		CHECK_EQ(kioctl(g->vcpu, KVM_GET_SREGS, &s), 0);
		CHECK_EQ(s.cr2, 0x401000);
		CHECK_EQ(FRAME(g, r)[0], source ? 0 : 2);
		CHECK_EQ(FRAME(g, r)[1], CODE_AT + 0x1e);
	}
}

TEST(repetition_to_the_end_of_a_page)
{
	static const uint64_t numbers[] = {1, 2, 5, 64, 255};
	struct guest g;

	start(&g, CR4_BASE);
	tables64(&g);
	gate64(&g, 14, 0, 0x11000);
	for (unsigned size = 1; size <= 8; size *= 2)
		for (unsigned n = 0; n < 5; n++)
			for (int over = -1; over <= 1; over++)
				for (unsigned what = 0; what < 3; what++)
					rep_at_end(&g, size, what > 0, what == 2, numbers[n], over);
	guest_close(&g);
}

/* A watchpoint on the last bytes of the address space. */
TEST(watched_to_the_very_end)
{
	struct kvm_guest_debug d = {.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP};
	struct guest g;
	uint64_t *t;

	start(&g, CR4_BASE);
	t = (uint64_t *)(void *)(g.ram + TABLES);
	t[511] = t[0];
	t[512 + 511] = t[512];
	t[1024 + 511] = 0x87;
	CODE(&g, CODE_AT, 0x48, 0x89, 0x04, 0x25, 0xf8, 0xff, 0xff, 0xff, 0xf4); /* mov [-8], rax; hlt */
	d.arch.debugreg[0] = ~7ull;
	d.arch.debugreg[7] = 0x90402;
	CHECK_EQ(kioctl(g.vcpu, KVM_SET_GUEST_DEBUG, &d), 0);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_DEBUG);
	CHECK_EQ(g.run->debug.arch.pc, CODE_AT + 8);
	guest_close(&g);
}

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
