/*
 * code12.c: code that changes behind the engine's back, through version 12 of the interface: a client thread, the
 * host's kernel, another vCPU write it; and more code than the code memory holds. Also runs on Linux' KVM.
 *
 * The function at FUNC is `mov eax, IMM; ret` with an aligned IMM; a loop calls it and stores what it returned at SEEN.
 */
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include "../kvm12/client12.h"
#include "test.h"

#define RAM (16u << 20)
#define LOOP 0x1000
#define OTHER 0x2000
#define HANDLER 0x3000
#define FUNC 0x5003
#define IMM 0x5004
#define SEEN 0x6000
#define IDT 0x7000
#define PML4 0x8000 /* and what hangs below it, to 0xdfff */
#define GDT 0xe000
#define STACK 0xf000
#define VECTOR 0x40
#define APIC_GPA 0xfee00000ul

static volatile uint32_t *word(const struct guest *g, unsigned at)
{
	return (volatile uint32_t *)(void *)(g->ram + at);
}

static void put64(const struct guest *g, unsigned at, uint64_t x)
{
	memcpy(g->ram + at, &x, 8);
}

/* 64-bit mode, the first 4 GiB mapped one to one in 2 MiB pages, an IDT gate for VECTOR. */
static int start64(const struct guest *g, int vcpu, uint64_t rip, uint64_t rsp, bool interrupts)
{
	struct kvm_regs r = {.rip = rip, .rsp = rsp, .rflags = interrupts ? 0x202 : 2};
	struct kvm_sregs s;

	put64(g, PML4, (PML4 + 0x1000) | 7);
	for (unsigned n = 0; n < 4; n++)
		put64(g, PML4 + 0x1000 + n * 8, (PML4 + 0x2000 + n * 0x1000) | 7);
	for (unsigned n = 0; n < 2048; n++)
		put64(g, PML4 + 0x2000 + n * 8, (uint64_t)n << 21 | 0x83);
	put64(g, GDT + 8, 0x00af9b000000ffffull);
	put64(g, GDT + 16, 0x00cf93000000ffffull);
	put64(g, IDT + VECTOR * 16, (HANDLER & 0xffff) | 8ull << 16 | 0x8e00ull << 32);
	put64(g, IDT + VECTOR * 16 + 8, 0);
	if (kioctl(vcpu, KVM_GET_SREGS, &s) < 0)
		return -1;
	s.cr0 = 0x80000031;
	s.cr3 = PML4;
	s.cr4 = 0x620;
	s.efer = 0x500;
	s.cs = (struct kvm_segment){
	        .selector = 8, .limit = 0xffffffff, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
	s.ss = (struct kvm_segment){
	        .selector = 16, .limit = 0xffffffff, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
	s.ds = s.es = s.fs = s.gs = s.ss;
	s.gdt.base = GDT;
	s.gdt.limit = 0x17;
	s.idt.base = IDT;
	s.idt.limit = 0xfff;
	if (kioctl(vcpu, KVM_SET_SREGS, &s) < 0)
		return -1;
	return kioctl(vcpu, KVM_SET_REGS, &r);
}

static void set_func(const struct guest *g, uint32_t imm)
{
	g->ram[FUNC] = 0xb8;
	*word(g, IMM) = imm;
	g->ram[IMM + 4] = 0xc3;
}

/* call FUNC; mov [SEEN], eax; [cpuid, which serializes;] again */
static void put_loop(const struct guest *g, bool serialize)
{
	CODE(g, LOOP, 0xe8, 0xfe, 0x3f, 0x00, 0x00, 0x89, 0x04, 0x25, 0x00, 0x60, 0x00, 0x00, 0x0f, 0xa2, 0xeb, 0xf0);
	if (!serialize)
		CODE(g, LOOP + 12, 0x90, 0x90);
}

static int open64(struct guest *g, bool chips)
{
	return chips ? guest_open_chips(g, RAM) : guest_open(g, RAM);
}

static int enable_apic(const struct guest *g)
{
	struct kvm_lapic_state a;
	uint32_t svr = 0x1ff;

	if (kioctl(g->vcpu, KVM_GET_LAPIC, &a) < 0)
		return -1;
	memcpy(a.regs + 0xf0, &svr, 4);
	return kioctl(g->vcpu, KVM_SET_LAPIC, &a);
}

static void on_signal(int sig)
{
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- a writer in the client, while the vCPU runs ---------------------------------------------------------------- */

enum how { BY_STORE, BY_READ };

static struct {
	struct guest *g;
	enum how how;
	bool by_msi;
	pthread_t runner;
	unsigned rounds, missed, torn;
	volatile bool done;
} job;

static void write_imm(uint32_t x)
{
	int p[2];

	if (job.how == BY_STORE) {
		*word(job.g, IMM) = x;
		return;
	}
	/* The kernel writes it. */
	if (pipe(p) < 0 || write(p[1], &x, 4) != 4 || read(p[0], job.g->ram + IMM, 4) != 4)
		job.missed++;
	close(p[0]);
	close(p[1]);
}

static void nudge(void)
{
	struct kvm_msi msi = {.address_lo = APIC_GPA, .data = VECTOR};

	if (job.by_msi)
		kioctl(job.g->vm, KVM_SIGNAL_MSI, &msi);
	else
		pthread_kill(job.runner, SIGUSR1);
}

static void *writer(void *arg)
{
	for (uint32_t n = 2; n < job.rounds + 2 && !job.missed; n++) {
		double until = now() + 10;

		write_imm(n);
		nudge();
		for (;;) {
			uint32_t seen = *word(job.g, SEEN);

			if (seen == n)
				break;
			if (seen != n - 1)
				job.torn++;
			if (now() > until) {
				job.missed++;
				break;
			}
		}
	}
	job.done = true;
	while (pthread_kill(job.runner, SIGUSR1) == 0 && job.done)
		usleep(1000);
	return NULL;
}

static void rewrite_while_running(enum how how, bool by_msi, unsigned rounds)
{
	struct sigaction act = {.sa_handler = on_signal};
	struct guest g;
	pthread_t t;

	sigaction(SIGUSR1, &act, NULL);
	CHECK_EQ(open64(&g, by_msi), 0);
	set_func(&g, 1);
	put_loop(&g, false);
	*word(&g, SEEN) = 1;
	/* EOI: mov dword [0xfee000b0], 0 through RBX; iretq */
	CODE(&g, HANDLER, 0x53, 0xbb, 0xb0, 0x00, 0xe0, 0xfe, 0xc7, 0x03, 0, 0, 0, 0, 0x5b, 0x48, 0xcf);
	CHECK_EQ(start64(&g, g.vcpu, LOOP, STACK, true), 0);
	if (by_msi)
		CHECK_EQ(enable_apic(&g), 0);
	memset(&job, 0, sizeof(job));
	job.g = &g;
	job.how = how;
	job.by_msi = by_msi;
	job.runner = pthread_self();
	job.rounds = rounds;
	pthread_create(&t, NULL, writer, NULL);
	while (!job.done) {
		int rc = guest_run(&g);

		if (rc < 0 && errno == EINTR)
			continue;
		printf("  run: %d, exit %u\n", rc, g.run->exit_reason);
		CHECK_EQ(rc, -1);
		break;
	}
	job.done = false;
	pthread_join(t, NULL);
	CHECK_EQ(job.missed, 0);
	CHECK_EQ(job.torn, 0);
	guest_close(&g);
}

TEST(client_thread_rewrites_until_a_signal)
{
	rewrite_while_running(BY_STORE, false, 300);
}

TEST(client_thread_rewrites_until_an_interrupt)
{
	rewrite_while_running(BY_STORE, true, 300);
}

TEST(kernel_writes_until_a_signal)
{
	rewrite_while_running(BY_READ, false, 300);
}

TEST(kernel_writes_until_an_interrupt)
{
	rewrite_while_running(BY_READ, true, 300);
}

/* ---- writes between two runs ------------------------------------------------------------------------------------ */

TEST(writes_between_runs_count_at_once)
{
	struct guest g;
	unsigned wrong = 0;
	int p[2];

	CHECK_EQ(open64(&g, false), 0);
	CHECK_EQ(pipe(p), 0);
	set_func(&g, 1);
	/* mov ecx, 100; 1: call FUNC; mov [SEEN], eax; dec ecx; jnz 1b; out 0x10, al; jmp back to the top */
	CODE(&g, LOOP, 0xb9, 100, 0, 0, 0, 0xe8, 0xf9, 0x3f, 0x00, 0x00, 0x89, 0x04, 0x25, 0x00, 0x60, 0x00, 0x00, 0xff,
	     0xc9, 0x75, 0xf0, 0xe6, 0x10, 0xeb, 0xe7);
	CHECK_EQ(start64(&g, g.vcpu, LOOP, STACK, false), 0);
	for (uint32_t n = 1; n < 400; n++) {
		/* By the kernel, by a store, by a store of another instruction of the same length. */
		if (n % 3 == 0) {
			CHECK_EQ(write(p[1], &n, 4), 4);
			CHECK_EQ(read(p[0], g.ram + IMM, 4), 4);
		} else {
			*word(&g, IMM) = n;
		}
		g.ram[FUNC] = n % 5 ? 0xb8 : 0x2d; /* mov eax, n; or sub eax, n from the n before */
		CHECK_EQ(guest_run(&g), 0);
		CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
		if (n % 5)
			wrong += *word(&g, SEEN) != n;
		else
			wrong += *word(&g, SEEN) != (uint32_t)(n - 1 - 100 * n);
	}
	CHECK_EQ(wrong, 0);
	close(p[0]);
	close(p[1]);
	guest_close(&g);
}

/* ---- another vCPU ----------------------------------------------------------------------------------------------- */

struct runner {
	int vcpu;
	struct kvm_run *run;
	pthread_t thread;
	unsigned reason;
	volatile bool stop;
};

static void *run_vcpu(void *arg)
{
	struct runner *r = arg;

	while (!r->stop) {
		int rc = kioctl(r->vcpu, KVM_RUN, 0L);

		if (rc == 0) {
			r->reason = r->run->exit_reason;
			break;
		}
		if (errno != EINTR)
			break;
	}
	return NULL;
}

static void rewrite_by_vcpu(bool serialize, uint32_t rounds)
{
	struct sigaction act = {.sa_handler = on_signal};
	struct runner one = {0}, two = {0};
	struct guest g;
	double until;

	sigaction(SIGUSR1, &act, NULL);
	CHECK_EQ(guest_open(&g, RAM), 0);
	set_func(&g, 1);
	put_loop(&g, serialize);
	*word(&g, SEEN) = 1;
	/* mov eax, 1; top: inc eax; mov [IMM], eax; wait: pause; cmp eax, [SEEN]; jne wait; cmp eax, edi; jb top; out
	 */
	CODE(&g, OTHER, 0xb8, 1, 0, 0, 0, 0xff, 0xc0, 0x89, 0x04, 0x25, 0x04, 0x50, 0x00, 0x00, 0xf3, 0x90, 0x3b, 0x04,
	     0x25, 0x00, 0x60, 0x00, 0x00, 0x75, 0xf5, 0x39, 0xf8, 0x72, 0xe8, 0xe6, 0x10);
	CHECK_EQ(start64(&g, g.vcpu, LOOP, STACK, false), 0);
	one.vcpu = g.vcpu;
	one.run = g.run;
	two.vcpu = kioctl(g.vm, KVM_CREATE_VCPU, 1L);
	CHECK(two.vcpu >= 0);
	two.run = kmmap(NULL, g.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, two.vcpu, 0);
	CHECK_EQ(start64(&g, two.vcpu, OTHER, STACK - 0x400, false), 0);
	{
		struct kvm_regs r;
		struct kvm_mp_state mp = {KVM_MP_STATE_RUNNABLE};

		CHECK_EQ(kioctl(two.vcpu, KVM_GET_REGS, &r), 0);
		r.rdi = rounds;
		CHECK_EQ(kioctl(two.vcpu, KVM_SET_REGS, &r), 0);
		kioctl(two.vcpu, KVM_SET_MP_STATE, &mp);
	}
	pthread_create(&one.thread, NULL, run_vcpu, &one);
	pthread_create(&two.thread, NULL, run_vcpu, &two);
	for (until = now() + 120; now() < until && two.reason == 0;)
		usleep(1000);
	CHECK_EQ(two.reason, KVM_EXIT_IO);
	CHECK_EQ(*word(&g, SEEN), rounds);
	one.stop = two.stop = true;
	for (unsigned n = 0; n < 50; n++) {
		pthread_kill(one.thread, SIGUSR1);
		pthread_kill(two.thread, SIGUSR1);
		usleep(1000);
	}
	pthread_join(one.thread, NULL);
	pthread_join(two.thread, NULL);
	munmap(two.run, g.run_size);
	kclose(two.vcpu);
	guest_close(&g);
}

#define PROGRAM 0x20000
#define DATA 0x40000

/* Seconds for a million stores to the page at `at`. */
static double stores(struct guest *g, uint64_t rip, uint64_t at)
{
	struct kvm_regs r;
	double from;

	CHECK_EQ(kioctl(g->vcpu, KVM_GET_REGS, &r), 0);
	r.rip = rip;
	r.rdi = at;
	CHECK_EQ(kioctl(g->vcpu, KVM_SET_REGS, &r), 0);
	from = now();
	CHECK_EQ(kioctl(g->vcpu, KVM_RUN, 0L), 0);
	CHECK_EQ(g->run->exit_reason, KVM_EXIT_IO);
	return now() - from;
}

/* Memory that both vCPUs ran code in is as fast as other memory when data is written over it, while the other one
 * halts. */
TEST(code_becomes_data)
{
	struct sigaction act = {.sa_handler = on_signal};
	struct kvm_mp_state mp = {KVM_MP_STATE_RUNNABLE};
	struct runner two = {0};
	double program, data;
	struct guest g;

	sigaction(SIGUSR1, &act, NULL);
	CHECK_EQ(open64(&g, true), 0);
	CODE(&g, PROGRAM, 0xb8, 1, 0, 0, 0, 0xc3);                       /* mov eax, 1; ret */
	CODE(&g, LOOP, 0xe8, 0xfb, 0xef, 0x01, 0x00, 0xe6, 0x10);        /* call PROGRAM; out 0x10, al */
	CODE(&g, OTHER, 0xe8, 0xfb, 0xdf, 0x01, 0x00, 0xf4, 0xeb, 0xfd); /* call PROGRAM; hlt */
	/* mov ecx, 1000000; top: mov [rdi], eax; sub ecx, 1; jnz top; out 0x10, al */
	CODE(&g, HANDLER, 0xb9, 0x40, 0x42, 0x0f, 0x00, 0x89, 0x07, 0x83, 0xe9, 0x01, 0x75, 0xf9, 0xe6, 0x10);
	CHECK_EQ(start64(&g, g.vcpu, LOOP, STACK, false), 0);
	two.vcpu = kioctl(g.vm, KVM_CREATE_VCPU, 1L);
	two.run = kmmap(NULL, g.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, two.vcpu, 0);
	CHECK_EQ(start64(&g, two.vcpu, OTHER, STACK - 0x400, false), 0);
	CHECK_EQ(kioctl(two.vcpu, KVM_SET_MP_STATE, &mp), 0);
	pthread_create(&two.thread, NULL, run_vcpu, &two);
	usleep(100000); /* it halts */
	CHECK_EQ(kioctl(g.vcpu, KVM_RUN, 0L), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	/* The second of each counts: on a busy machine the other thread hears of the first one's stores late. */
	stores(&g, HANDLER, DATA);
	data = stores(&g, HANDLER, DATA);
	stores(&g, HANDLER, PROGRAM);
	usleep(20000);
	program = stores(&g, HANDLER, PROGRAM);
	CHECK(program < 10 * data);
	two.stop = true;
	for (unsigned n = 0; n < 50; n++) {
		pthread_kill(two.thread, SIGUSR1);
		usleep(1000);
	}
	pthread_join(two.thread, NULL);
	munmap(two.run, g.run_size);
	kclose(two.vcpu);
	guest_close(&g);
}

/* A page that one vCPU ran code in and another wrote; then the client takes the memory away. Nobody asks for it. */
TEST(written_code_is_taken_away)
{
	struct kvm_mp_state mp = {KVM_MP_STATE_RUNNABLE};
	struct runner two = {0};
	struct guest g;

	CHECK_EQ(open64(&g, true), 0);
	CODE(&g, PROGRAM, 0xb8, 1, 0, 0, 0, 0xc3);                /* mov eax, 1; ret */
	CODE(&g, LOOP, 0xe8, 0xfb, 0xef, 0x01, 0x00, 0xe6, 0x10); /* call PROGRAM; out 0x10, al */
	CODE(&g, HANDLER, 0x89, 0x07, 0xe6, 0x10);                /* mov [rdi], eax; out 0x10, al */
	CODE(&g, OTHER, 0xe6, 0x11);                              /* out 0x11, al */
	two.vcpu = kioctl(g.vm, KVM_CREATE_VCPU, 1L);
	two.run = kmmap(NULL, g.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, two.vcpu, 0);
	CHECK_EQ(kioctl(two.vcpu, KVM_SET_MP_STATE, &mp), 0);
	CHECK_EQ(start64(&g, g.vcpu, LOOP, STACK, false), 0);
	CHECK_EQ(kioctl(g.vcpu, KVM_RUN, 0L), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(start64(&g, two.vcpu, HANDLER, STACK - 0x400, false), 0);
	{
		struct kvm_regs r;

		CHECK_EQ(kioctl(two.vcpu, KVM_GET_REGS, &r), 0);
		r.rdi = PROGRAM;
		CHECK_EQ(kioctl(two.vcpu, KVM_SET_REGS, &r), 0);
	}
	CHECK_EQ(kioctl(two.vcpu, KVM_RUN, 0L), 0);
	CHECK_EQ(two.run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(munmap(g.ram + PROGRAM, 0x1000), 0);
	CHECK_EQ(start64(&g, g.vcpu, OTHER, STACK, false), 0);
	CHECK_EQ(kioctl(g.vcpu, KVM_RUN, 0L), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	munmap(two.run, g.run_size);
	kclose(two.vcpu);
	guest_close(&g);
}

TEST(second_vcpu_rewrites_serialized)
{
	rewrite_by_vcpu(true, 30000);
}

TEST(second_vcpu_rewrites)
{
	rewrite_by_vcpu(false, 30000);
}

/* ---- address spaces ---------------------------------------------------------------------------------------------- */

#define SPACE_B 0x50000   /* its tables; the other space's are at PML4 */
#define SHARED 0x10000000 /* leads elsewhere in each */
#define ROUNDS 3000

/* Supervisor code that goes to and fro between two address spaces and keeps what is known of each. */
extern const char spaces_code[], spaces_end[];
__asm__(".pushsection .rodata\n"
        "spaces_code:\n"
        "	mov $3000, %ecx\n"
        "	xor %ebx, %ebx\n"
        "	xor %edx, %edx\n"
        "	movabs $0x8000000000008001, %r8\n"
        "	movabs $0x8000000000050002, %r9\n"
        "	mov $0x10000000, %edi\n"
        "1:	mov %r8, %cr3\n"
        "	call *%rdi\n"
        "	add %eax, %ebx\n"
        "	call *%rdi\n"
        "	add %eax, %ebx\n"
        "	mov %r9, %cr3\n"
        "	call *%rdi\n"
        "	add %eax, %edx\n"
        "	dec %ecx\n"
        "	jnz 1b\n"
        "	mov %ebx, %eax\n"
        "	out %eax, $0x10\n"
        "	mov %edx, %eax\n"
        "	out %eax, $0x10\n"
        "	mov %r8, %cr3\n"
        "	call *%rdi\n"
        "	movq $0x800083, 0xa400\n"
        "	invlpg (%rdi)\n"
        "	call *%rdi\n"
        "	out %eax, $0x10\n"
        "	mov %r9, %cr3\n"
        "	call *%rdi\n"
        "	out %eax, $0x10\n"
        "	mov %r8, %cr3\n"
        "	call *%rdi\n"
        "	out %eax, $0x10\n"
        "	movq $0x400083, 0xa400\n"
        "	mov $0x8001, %eax\n" /* not kept */
        "	mov %rax, %cr3\n"
        "	call *%rdi\n"
        "	out %eax, $0x10\n"
        "spaces_end:\n"
        ".popsection\n");

static void two_spaces(uint64_t pge)
{
	static const uint32_t expect[] = {2 * ROUNDS, 0x100 * ROUNDS, 0x10000, 0x100, 0x10000, 1};
	static const uint32_t at[] = {0x400000, 0x600000, 0x800000}, value[] = {1, 0x100, 0x10000};
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 e[100];
	} c = {.head.nent = 100};
	struct kvm_sregs s;
	struct guest g;

	CHECK_EQ(open64(&g, false), 0);
	CHECK_EQ(kioctl(g.kvm, KVM_GET_SUPPORTED_CPUID, &c), 0);
	CHECK_EQ(kioctl(g.vcpu, KVM_SET_CPUID2, &c), 0);
	CHECK_EQ(start64(&g, g.vcpu, LOOP, STACK, false), 0);
	memcpy(g.ram + LOOP, spaces_code, (size_t)(spaces_end - spaces_code));
	for (unsigned n = 0; n < 3; n++) {
		CODE(&g, at[n], 0xb8, 0, 0, 0, 0, 0xc3); /* mov eax, ...; ret */
		memcpy(g.ram + at[n] + 1, &value[n], 4);
	}
	memcpy(g.ram + SPACE_B, g.ram + PML4, 0x3000);
	put64(&g, SPACE_B, (SPACE_B + 0x1000) | 7);
	put64(&g, SPACE_B + 0x1000, (SPACE_B + 0x2000) | 7);
	put64(&g, PML4 + 0x2000 + (SHARED >> 21) * 8, at[0] | 0x83);
	put64(&g, SPACE_B + 0x2000 + (SHARED >> 21) * 8, at[1] | 0x83);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_SREGS, &s), 0);
	s.cr4 |= 1u << 17 | pge;
	CHECK_EQ(kioctl(g.vcpu, KVM_SET_SREGS, &s), 0);
	for (unsigned n = 0; n < sizeof(expect) / sizeof(*expect); n++) {
		CHECK_EQ(kioctl(g.vcpu, KVM_RUN, 0L), 0);
		CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
		CHECK_EQ(*(uint32_t *)(void *)((uint8_t *)g.run + g.run->io.data_offset), expect[n]);
	}
	guest_close(&g);
}

TEST(address_spaces)
{
	two_spaces(1u << 7);
}

TEST(address_spaces_without_global_pages)
{
	two_spaces(0);
}

/* ---- a program that is read anew into other memory --------------------------------------------------------------- */

#define PARTS 16u
#define PIECES 100u
#define PART_AT 0x40000000ul /* linear, by its own page table */
#define PART_TABLE 0x10000
#define PART_RAM 0x200000

/* Page n of the program: 100 times add eax, n + 1; jmp behind it. Then the next page, or back. */
static void put_part(uint8_t *page, unsigned n)
{
	const uint8_t piece[] = {0x83, 0xc0, (uint8_t)(n + 1), 0xeb, 0x00}, ret = 0xc3;
	int32_t next = (int32_t)(4096 - PIECES * sizeof(piece) - 5);

	memset(page, 0xcc, 4096);
	for (unsigned k = 0; k < PIECES; k++)
		memcpy(page + k * sizeof(piece), piece, sizeof(piece));
	page += PIECES * sizeof(piece);
	*page = n + 1 < PARTS ? 0xe9 : ret;
	if (n + 1 < PARTS)
		memcpy(page + 1, &next, 4);
}

/* As when a guest starts a program from virtio-fs again and again: its pages come to memory that held others of it. It
 * does what it is made of, and is not translated again. */
TEST(program_comes_back_elsewhere)
{
	long before = 0, after;
	struct kvm_regs r;
	struct kvm_sregs s;
	struct guest g;

	CHECK_EQ(open64(&g, false), 0);
	CODE(&g, LOOP, 0xbb, 0x00, 0x00, 0x00, 0x40, 0x31, 0xc0, 0xff, 0xd3, 0xe7,
	     0x10); /* call PART_AT; out 0x10, eax */
	CHECK_EQ(start64(&g, g.vcpu, LOOP, STACK, false), 0);
	put64(&g, PML4 + 0x3000, PART_TABLE | 7);
	for (unsigned round = 0; round < 20; round++) {
		for (unsigned n = 0; n < PARTS; n++) {
			unsigned to = PART_RAM + (n * 5 + round * 3) % (PARTS + 2) * 4096;

			put_part(g.ram + to, n);
			put64(&g, PART_TABLE + n * 8, to | 3);
		}
		CHECK_EQ(kioctl(g.vcpu, KVM_GET_REGS, &r), 0);
		r.rip = LOOP;
		r.rsp = STACK;
		CHECK_EQ(kioctl(g.vcpu, KVM_SET_REGS, &r), 0);
		/* With its TLB emptied. */
		CHECK_EQ(kioctl(g.vcpu, KVM_GET_SREGS, &s), 0);
		s.cr3 = 0;
		CHECK_EQ(kioctl(g.vcpu, KVM_SET_SREGS, &s), 0);
		s.cr3 = PML4;
		CHECK_EQ(kioctl(g.vcpu, KVM_SET_SREGS, &s), 0);
		CHECK_EQ(guest_run(&g), 0);
		CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
		CHECK_EQ(*(uint32_t *)(void *)guest_io(&g), PIECES * PARTS * (PARTS + 1) / 2);
		if (round == 3)
			before = guest_counter(&g, "translations");
	}
	after = guest_counter(&g, "translations");
	/* None at all: Linux, the interpreter. */
	CHECK(after - before < 2 * (long)PARTS * (long)PIECES);
	guest_close(&g);
}

/* ---- more code than fits ---------------------------------------------------------------------------------------- */

#define MANY 40000u
#define MANY_AT 0x100000u
#define MANY_SIZE 64u

/* `N flushes of all code` of the translator's statistics, which it prints when the vCPU goes; -1: there are none. */
static long flushes_in(FILE *f)
{
	char line[1024];
	long n = -1;

	rewind(f);
	while (fgets(line, sizeof(line), f))
		if (strstr(line, " flushes of all code"))
			n = strtol(line, NULL, 10);
	return n;
}

/* Linux' KVM has no such memory; and the engine beside a static program has an environment of its own. */
static bool is_devkvm(void)
{
#if defined(LINKED)
	return true;
#elif defined(STATIC)
	return false;
#else
	const char *p = getenv("LD_PRELOAD");

	return p && strstr(p, "devkvm");
#endif
}

/* One call leads to two functions at the same address, one after the other, and then the second one changes: all in one
 * run and without an interrupt, so only the changing store can tell. */
TEST(remapped_function_changes)
{
	const unsigned table = 0x10000, one = 0x200000, two = 0x201000;
	struct guest g;

	CHECK_EQ(open64(&g, false), 0);
	CHECK_EQ(start64(&g, g.vcpu, LOOP, STACK, false), 0);
	put64(&g, PML4 + 0x2000 + 2 * 8, table | 3);
	put64(&g, table, one | 3);
	CODE(&g, one, 0xb0, 0x11, 0xc3); /* mov al, 0x11; ret */
	CODE(&g, two, 0xb0, 0x22, 0xc3);
	CODE(&g, LOOP, 0x31, 0xdb, 0xeb, 0x00,                                       /* xor ebx, ebx; jmp l */
	     0xe8, 0xf7, 0xef, 0x3f, 0x00,                                           /* l: call 0x400000 */
	     0x88, 0x83, 0x00, 0x60, 0x00, 0x00,                                     /* mov [rbx + SEEN], al */
	     0xff, 0xc3,                                                             /* inc ebx */
	     0x83, 0xfb, 0x01, 0x75, 0x16,                                           /* cmp ebx, 1; jne m */
	     0x48, 0xc7, 0x04, 0x25, 0x00, 0x00, 0x01, 0x00, 0x03, 0x10, 0x20, 0x00, /* mov qword [table], two | 3 */
	     0x0f, 0x01, 0x3c, 0x25, 0x00, 0x00, 0x40, 0x00,                         /* invlpg [0x400000] */
	     0xeb, 0xd8,                                                             /* jmp l */
	     0x83, 0xfb, 0x03, 0x74, 0x0a,                                           /* m: cmp ebx, 3; je n */
	     0xc6, 0x04, 0x25, 0x01, 0x10, 0x20, 0x00, 0x33,                         /* mov byte [two + 1], 0x33 */
	     0xeb, 0xc9,                                                             /* jmp l */
	     0xf4);                                                                  /* n: hlt */
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_HLT);
	CHECK_EQ(*word(&g, SEEN) & 0xffffff, 0x332211);
	guest_close(&g);
}

TEST(more_code_than_the_code_memory_holds)
{
	const char *engine = getenv("DEVKVM_ENGINE");
	FILE *log = tmpfile();
	int err = dup(2);
	struct guest g;
	struct kvm_regs r;
	uint32_t sum = 0;

	fflush(stderr);
	dup2(fileno(log), 2);
	setenv("DEVKVM_CODE_MB", "1", 1);
	setenv("DEVKVM_DEBUG", "jitstat", 1);
	CHECK_EQ(guest_open(&g, RAM), 0);
	unsetenv("DEVKVM_CODE_MB");
	unsetenv("DEVKVM_DEBUG");
	for (unsigned n = 0; n < MANY; n++) {
		uint8_t *f = g.ram + MANY_AT + n * MANY_SIZE;
		uint32_t k = n * 2654435761u;

		/* add eax, k; rol eax, 5; push rax; pop rdx; xor eax, edx; add eax, edx; ret */
		f[0] = 0x05;
		memcpy(f + 1, &k, 4);
		memcpy(f + 5, "\xc1\xc0\x05\x50\x5a\x31\xd0\x01\xd0\xc3", 10);
	}
	/* mov ebp, 3; again: mov ebx, MANY_AT; mov ecx, MANY; 1: call rbx; add ebx, 64; dec ecx; jnz 1b; dec ebp; jnz
	 * again; out 0x10, al */
	CODE(&g, LOOP, 0xbd, 3, 0, 0, 0, 0xbb, 0, 0, 0x10, 0, 0xb9, 0x40, 0x9c, 0, 0, 0xff, 0xd3, 0x83, 0xc3, 0x40,
	     0xff, 0xc9, 0x75, 0xf7, 0xff, 0xcd, 0x75, 0xe9, 0xe6, 0x10);
	CHECK_EQ(start64(&g, g.vcpu, LOOP, STACK, false), 0);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_REGS, &r), 0);
	for (unsigned pass = 0; pass < 3; pass++)
		for (unsigned n = 0; n < MANY; n++) {
			uint32_t d;

			sum += n * 2654435761u;
			sum = sum << 5 | sum >> 27;
			d = sum;
			sum ^= d;
			sum += d;
		}
	CHECK_EQ((uint32_t)r.rax, sum);
	guest_close(&g);
	fflush(stderr);
	dup2(err, 2);
	close(err);
	/* It is only a test when the memory was too small. */
	if (is_devkvm() && (!engine || strcmp(engine, "interp")))
		CHECK(flushes_in(log) > 10);
	fclose(log);
}

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
