/*
 * memory.c: memory of the client that goes away while a guest has it in use. Linux gives EFAULT and leaves the guest at
 * the instruction, and so do we where we see the call. Where we do not (a system call behind our back; a linked
 * client) the run ends all the same: with EFAULT, or as an internal error; and the client goes on.
 */
#define _GNU_SOURCE
#include "shim.h"

#define RAM 0x100000
#define PAGE_AT 0x5000

/* 32-bit flat protected mode, so that the translator has it, paging off. */
static int start32(struct guest *g, uint64_t ip)
{
	struct kvm_regs r = {.rip = ip, .rsp = 0x4000, .rflags = 2, .rbx = PAGE_AT, .rcx = 7};
	struct kvm_segment code = {
	        .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1};
	struct kvm_segment data = code;
	struct kvm_sregs s;

	data.type = 3;
	data.selector = 16;
	if (kioctl(g->vcpu, KVM_GET_SREGS, &s) < 0)
		return -1;
	s.cr0 |= 1;
	s.cs = code;
	s.ds = s.es = s.ss = s.fs = s.gs = data;
	if (kioctl(g->vcpu, KVM_SET_SREGS, &s) < 0)
		return -1;
	return kioctl(g->vcpu, KVM_SET_REGS, &r);
}

/* again: inc ecx; mov eax, [ebx]; mov [ebx + 4], ecx; out 0x10, al; jmp again */
static int guest_touching(struct guest *g)
{
	if (guest_open(g, RAM) < 0 || start32(g, 0x1000) < 0)
		return -1;
	CODE(g, 0x1000, 0x41, 0x8b, 0x03, 0x89, 0x4b, 0x04, 0xe6, 0x10, 0xeb, 0xf6);
	for (unsigned n = 0; n < 3; n++)
		if (guest_run(g) < 0 || g->run->exit_reason != KVM_EXIT_IO)
			return -1;
	return 0;
}

static inline uint64_t rip_of(struct guest *g)
{
	struct kvm_regs r = {0};

	kioctl(g->vcpu, KVM_GET_REGS, &r);
	return r.rip;
}

static int map_again(struct guest *g)
{
	return mmap(g->ram + PAGE_AT, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
	                       MAP_FAILED
	               ? -1
	               : 0;
}

#ifndef LINKED
TEST(unmapped_between_runs)
{
	struct guest g;
	struct kvm_regs r;

	CHECK_EQ(guest_touching(&g), 0);
	CHECK_EQ(munmap(g.ram + PAGE_AT, 4096), 0);
	CHECK_ERR(guest_run(&g), EFAULT);
	CHECK_EQ(rip_of(&g), 0x1001);
	CHECK_ERR(guest_run(&g), EFAULT);
	CHECK_EQ(map_again(&g), 0);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_REGS, &r), 0);
	CHECK_EQ(r.rax, 0);
	CHECK_EQ(r.rcx, 11);
	CHECK_EQ(*(uint32_t *)(void *)(g.ram + PAGE_AT + 4), 11);
	guest_close(&g);
}

TEST(protected_between_runs)
{
	struct guest g;

	CHECK_EQ(guest_touching(&g), 0);
	CHECK_EQ(mprotect(g.ram + PAGE_AT, 4096, PROT_READ), 0);
	CHECK_ERR(guest_run(&g), EFAULT);
	CHECK_EQ(rip_of(&g), 0x1003);
	CHECK_EQ(mprotect(g.ram + PAGE_AT, 4096, PROT_NONE), 0);
	CHECK_ERR(guest_run(&g), EFAULT);
	CHECK_EQ(mprotect(g.ram + PAGE_AT, 4096, PROT_READ | PROT_WRITE), 0);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	guest_close(&g);
}

TEST(moved_away)
{
	struct guest g;
	void *to;

	CHECK_EQ(guest_touching(&g), 0);
	to = mremap(g.ram + PAGE_AT, 4096, 8192, MREMAP_MAYMOVE);
	CHECK(to != MAP_FAILED);
	CHECK_ERR(guest_run(&g), EFAULT);
	CHECK_EQ(rip_of(&g), 0x1001);
	munmap(to, 8192);
	CHECK_EQ(map_again(&g), 0);
	CHECK_EQ(guest_run(&g), 0);
	guest_close(&g);
}

static void *run_thread(void *arg)
{
	long rc = guest_run(arg);

	return (void *)(rc < 0 ? -(long)errno : rc);
}

/* The guest counts in memory, without exits. */
static int guest_counting(struct guest *g)
{
	if (guest_open(g, RAM) < 0 || start32(g, 0x1000) < 0)
		return -1;
	/* again: inc ecx; mov [ebx + 4], ecx; mov eax, [ebx]; jmp again */
	CODE(g, 0x1000, 0x41, 0x89, 0x4b, 0x04, 0x8b, 0x03, 0xeb, 0xf8);
	return 0;
}

static void wait_for_it(struct guest *g)
{
	volatile uint32_t *count = (uint32_t *)(void *)(g->ram + PAGE_AT + 4);

	for (unsigned n = 0; n < 5000 && *count < 1000; n++)
		usleep(1000);
	CHECK(*count >= 1000);
}

TEST(unmapped_while_it_runs)
{
	struct guest g;
	struct kvm_regs r;
	pthread_t t;
	void *rc;

	CHECK_EQ(guest_counting(&g), 0);
	pthread_create(&t, NULL, run_thread, &g);
	wait_for_it(&g);
	CHECK_EQ(munmap(g.ram + PAGE_AT, 4096), 0);
	pthread_join(t, &rc);
	CHECK_EQ((long)rc, -EFAULT);
	CHECK(rip_of(&g) == 0x1001 || rip_of(&g) == 0x1004);
	kioctl(g.vcpu, KVM_GET_REGS, &r);
	CHECK(r.rcx >= 1000);
	guest_close(&g);
}
#endif

#if !defined(STATIC)
/* Behind our back: the client and its own handlers live on. */
TEST(unmapped_behind_our_back)
{
	for (unsigned k = 0; k < 3; k++) {
		struct guest g;
		long rc;

		CHECK_EQ(guest_touching(&g), 0);
		if (k == 0)
			syscall(SYS_munmap, g.ram + PAGE_AT, 4096);
		else if (k == 1)
			syscall(SYS_mprotect, g.ram + PAGE_AT, 4096, PROT_READ);
		else
			syscall(SYS_mprotect, g.ram + PAGE_AT, 4096, PROT_NONE);
		rc = guest_run(&g);
		CHECK((rc == -1 && errno == EFAULT) || (rc == 0 && g.run->exit_reason == KVM_EXIT_INTERNAL_ERROR));
		CHECK_EQ(map_again(&g), 0);
		/* Still a vCPU: with fresh registers it runs. */
		CHECK_EQ(start32(&g, 0x1000), 0);
		CHECK_EQ(guest_run(&g), 0);
		CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
		guest_close(&g);
	}
}

static void *run_raw(void *arg)
{
	struct guest *g = arg;
	long rc = guest_run(g);

	return (void *)(long)((rc == -1 && errno == EFAULT) ||
	                      (rc == 0 && g->run->exit_reason == KVM_EXIT_INTERNAL_ERROR));
}

TEST(unmapped_behind_our_back_while_it_runs)
{
	for (unsigned n = 0; n < 20; n++) {
		volatile uint32_t *count;
		struct guest g;
		pthread_t t;
		void *rc;

		CHECK_EQ(guest_open(&g, RAM), 0);
		CHECK_EQ(start32(&g, 0x1000), 0);
		if (n % 2) /* again: inc ecx; mov [ebx + 4], ecx; mov edi, ebx; xor eax, eax; push ecx; mov ecx, 0x1000;
		              rep stosb; pop ecx; jmp */
			CODE(&g, 0x1000, 0x41, 0x89, 0x4b, 0x04, 0x89, 0xdf, 0x31, 0xc0, 0x51, 0xb9, 0, 4, 0, 0, 0x83,
			     0xc7, 8, 0xf3, 0xaa, 0x59, 0xeb, 0xea);
		else
			CODE(&g, 0x1000, 0x41, 0x89, 0x4b, 0x04, 0x8b, 0x03, 0xeb, 0xf8);
		count = (uint32_t *)(void *)(g.ram + PAGE_AT + 4);
		pthread_create(&t, NULL, run_raw, &g);
		while (*count < 1000)
			usleep(100);
		syscall(SYS_munmap, g.ram + PAGE_AT, 4096);
		pthread_join(t, &rc);
		CHECK_EQ((long)rc, 1);
		guest_close(&g);
	}
}

/* The handler of REP STOS meets the hole; x87 state is as it was then. */
TEST(x87_state_outlives_a_hole)
{
	for (unsigned n = 0; n < 10; n++) {
		volatile uint32_t *word;
		struct guest g;
		pthread_t t;
		void *rc;

		CHECK_EQ(guest_open(&g, RAM), 0);
		CHECK_EQ(start32(&g, 0x1000), 0);
		/* fninit; fldz; again: fld1; faddp; inc dword [6000]; mov edi, ebx; mov ecx, 16; rep stosb; cmp dword
		 * [6010], 0; je again; fistp dword [6008]; hlt */
		CODE(&g, 0x1000, 0xdb, 0xe3, 0xd9, 0xee, 0xd9, 0xe8, 0xde, 0xc1, 0xff, 0x05, 0x00, 0x60, 0, 0, 0x89,
		     0xdf, 0xb9, 16, 0, 0, 0, 0xf3, 0xaa, 0x83, 0x3d, 0x10, 0x60, 0, 0, 0, 0x74, 0xe4, 0xdb, 0x1d, 0x08,
		     0x60, 0, 0, 0xf4);
		word = (uint32_t *)(void *)(g.ram + 0x6000);
		pthread_create(&t, NULL, run_raw, &g);
		while (word[0] < 1000)
			usleep(100);
		syscall(SYS_munmap, g.ram + PAGE_AT, 4096);
		pthread_join(t, &rc);
		CHECK_EQ((long)rc, 1);
		CHECK(g.run->exit_reason != KVM_EXIT_INTERNAL_ERROR);
		CHECK_EQ(map_again(&g), 0);
		word[4] = 1;
		CHECK_EQ(guest_run(&g), 0);
		CHECK_EQ(g.run->exit_reason, KVM_EXIT_HLT);
		CHECK_EQ(word[2], word[0]);
		guest_close(&g);
	}
}
#endif

/* A file that shrinks under its mapping: SIGBUS. */
TEST(file_cut_short)
{
	char name[] = "/tmp/devkvm-shim-XXXXXX";
	int fd = mkstemp(name);
	struct guest g;
	long rc;

	unlink(name);
	CHECK_EQ(ftruncate(fd, 4096), 0);
	CHECK_EQ(guest_open(&g, RAM), 0);
	CHECK(mmap(g.ram + PAGE_AT, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) != MAP_FAILED);
	CHECK_EQ(start32(&g, 0x1000), 0);
	CODE(&g, 0x1000, 0x41, 0x8b, 0x03, 0x89, 0x4b, 0x04, 0xe6, 0x10, 0xeb, 0xf6);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(ftruncate(fd, 0), 0);
	rc = guest_run(&g);
	CHECK((rc == -1 && errno == EFAULT) || (rc == 0 && g.run->exit_reason == KVM_EXIT_INTERNAL_ERROR));
	close(fd);
	guest_close(&g);
}

static volatile int faults;
static struct guest *volatile in_handler;
static volatile long handler_rc;

static void on_fault(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	faults++;
	if (in_handler) {
		handler_rc = guest_run(in_handler);
		if (handler_rc < 0)
			handler_rc = -errno;
	}
	uc->uc_mcontext.gregs[REG_RIP] += 2;
}

/* The client's own faults stay its own, also with guests about; and KVM_RUN in their handler meets holes too. */
TEST(the_clients_own_faults)
{
	struct guest g;

	CHECK_EQ(guest_touching(&g), 0);
	handle(SIGSEGV, on_fault, 0);
	faults = 0;
	__asm__ volatile("movb (%0), %%al" ::"r"(8l) : "rax", "memory");
	CHECK_EQ(faults, 1);
	CHECK_EQ(guest_run(&g), 0);
	munmap(g.ram + PAGE_AT, 4096);
	in_handler = &g;
	__asm__ volatile("movb (%0), %%al" ::"r"(8l) : "rax", "memory");
	CHECK_EQ(faults, 2);
#ifdef LINKED
	CHECK(handler_rc == -EFAULT || (handler_rc == 0 && g.run->exit_reason == KVM_EXIT_INTERNAL_ERROR));
#else
	CHECK_EQ(handler_rc, -EFAULT);
#endif
	in_handler = NULL;
	signal(SIGSEGV, SIG_DFL);
	guest_close(&g);
}

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
