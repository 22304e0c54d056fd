/*
 * filter.c: clients that put a seccomp filter on their threads: the engine then has no more system calls than the
 * filter lets through. vcpu_calls[] is a list like Firecracker's for a vCPU thread.
 */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <stddef.h>

#include "shim.h"

static const int vcpu_calls[] = {
        SYS_exit,         SYS_exit_group,    SYS_write,       SYS_open,    SYS_close,
        SYS_eventfd2,     SYS_epoll_ctl,     SYS_fstat,       SYS_brk,     SYS_gettid,
        SYS_mremap,       SYS_clock_gettime, SYS_munmap,      SYS_sendmsg, SYS_rt_sigprocmask,
        SYS_rt_sigreturn, SYS_sigaltstack,   SYS_sched_yield, SYS_ioctl,   SYS_restart_syscall,
        SYS_futex,        SYS_madvise,       SYS_mmap,
};

/* Those of vcpu_calls[] and `more` go through, all others raise SIGSYS. */
static int filter_install(const int *more, unsigned n_more)
{
	struct sock_filter f[128];
	unsigned n = 0, count = sizeof(vcpu_calls) / sizeof(vcpu_calls[0]);
	struct sock_fprog prog = {.filter = f};

	f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
	for (unsigned k = 0; k < count + n_more; k++) {
		unsigned nr = (unsigned)(k < count ? vcpu_calls[k] : more[k - count]);

		f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1);
		f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	}
	f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
	prog.len = (unsigned short)n;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -1;
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog, 0, 0);
}

/* For a thread of vCPUs. */
static int filter_vcpu(void)
{
#ifdef STATIC
	return filter_install(NULL, 0);
#else
	/* The C library's malloc() is the engine's too. */
	static const int more[] = {SYS_mprotect};

	return filter_install(more, 1);
#endif
}

static volatile int trapped, trapped_nr;
static void *volatile trapped_at;
static volatile long trapped_rax;

static void on_trap(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	trapped++;
	trapped_nr = info->si_syscall;
	trapped_at = info->si_call_addr;
	trapped_rax = (long)uc->uc_mcontext.gregs[REG_RAX];
	if (info->si_code != 1 /* SYS_SECCOMP */)
		trapped_nr = -1;
	uc->uc_mcontext.gregs[REG_RAX] = -ENOANO;
}

static void nothing(int sig, siginfo_t *info, void *context)
{
}

struct job {
	struct guest g;
	unsigned ports, reads, writes, interrupted, bad;
};

/* A guest that does what guests do: ports, MMIO, fresh code, CPUID, floating point, memory all over. */
static void *filtered_vcpu(void *arg)
{
	struct job *j = arg;
	struct guest *g = &j->g;
	sigset_t alarm;

	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	pthread_sigmask(SIG_UNBLOCK, &alarm, NULL);
	if (filter_vcpu() < 0) {
		j->bad = 1000;
		return NULL;
	}
	while (j->ports < 300) {
		if (guest_run(g) < 0) {
			if (errno != EINTR) {
				j->bad++;
				break;
			}
			j->interrupted++;
			continue;
		}
		switch (g->run->exit_reason) {
		case KVM_EXIT_IO:
			j->ports++;
			break;
		case KVM_EXIT_MMIO:
			if (g->run->mmio.is_write)
				j->writes++;
			else
				j->reads++;
			break;
		default:
			j->bad++;
			j->ports = 300;
		}
	}
	return NULL;
}

TEST(a_vcpu_under_a_filter)
{
	struct job j = {.ports = 0};
	struct guest *g = &j.g;
	pthread_t t;
	sigset_t alarm;

	CHECK_EQ(guest_open(g, 0x100000), 0);
	CHECK_EQ(guest_start16(g, 0x1000), 0);
	CODE(g, 0x1000, 0x31, 0xc0, 0x8e, 0xd8,              /* xor ax, ax; mov ds, ax */
	     0xfe, 0x06, 0x01, 0x11,                         /* inc byte [0x1101]: the operand of mov al, imm8 */
	     0xe8, 0xf5, 0x00,                               /* call 0x1100 */
	     0xb9, 0x00, 0x40, 0xb8, 0x00, 0x50, 0x8e, 0xc0, /* mov cx, 0x4000; mov ax, 0x5000; mov es, ax */
	     0x31, 0xff, 0xf3, 0xab,                         /* xor di, di; rep stosw */
	     0xe6, 0x10,                                     /* out 0x10, al */
	     0xb8, 0xff, 0xff, 0x8e, 0xd8,                   /* mov ax, 0xffff; mov ds, ax */
	     0xa1, 0x10, 0x00, 0xa3, 0x20, 0x00,             /* mov ax, [0x100000]; mov [0x100010], ax: MMIO */
	     0x66, 0x31, 0xc0, 0x0f, 0xa2,                   /* xor eax, eax; cpuid */
	     0xdb, 0xe3, 0xd9, 0xe8, 0xd9, 0xc0, 0xde, 0xc1, 0xdd, 0xd8, /* fninit; fld1; fld st0; faddp; fstp */
	     0x0f, 0x31, 0xeb, 0xc9);                                    /* rdtsc; jmp 0x1000 */
	CODE(g, 0x1100, 0xb0, 0x00, 0xc3);                               /* mov al, imm8; ret */
	handle(SIGSYS, on_trap, 0);
	handle(SIGALRM, nothing, SA_RESTART);
	trapped = 0;
	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &alarm, NULL);
	alarm_in(1000);
	CHECK_EQ(pthread_create(&t, NULL, filtered_vcpu, &j), 0);
	pthread_join(t, NULL);
	alarm_in(0);
	pthread_sigmask(SIG_UNBLOCK, &alarm, NULL);
	if (trapped)
		printf("  call %d was refused\n", trapped_nr);
	CHECK_EQ(trapped, 0);
	CHECK_EQ(j.bad, 0);
	CHECK_EQ(j.ports, 300);
	CHECK(j.reads >= 299 && j.writes >= 299);
	printf("  %u runs interrupted\n", j.interrupted);
	guest_close(g);
}

static void *filtered_sleeper(void *arg)
{
	struct job *j = arg;

	if (filter_vcpu() < 0) {
		j->bad = 1000;
		return NULL;
	}
	while (j->ports < 300 && !j->bad) {
		if (guest_run(&j->g) < 0 || j->g.run->exit_reason != KVM_EXIT_IO)
			j->bad++;
		else
			__atomic_add_fetch(&j->ports, 1, __ATOMIC_RELEASE);
	}
	return NULL;
}

/* A guest that sleeps for moments, and spins. */
TEST(a_vcpu_that_halts_under_a_filter)
{
	struct job j = {.ports = 0};
	struct guest *g = &j.g;
	struct kvm_msi nmi = {.address_lo = 0xfee00000, .data = 0x400};
	pthread_t t;

	CHECK_EQ(guest_open_chips(g, 0x10000), 0);
	CHECK_EQ(guest_start16(g, 0x1000), 0);
	CODE(g, 0x1000, 0xf4, 0xb9, 0x00, 0x02, 0xf3, 0x90, 0xe2, 0xfc, /* hlt; mov cx, 0x200; pause; loop */
	     0xe6, 0x10, 0xeb, 0xf4);                                   /* out 0x10, al; jmp 0x1000 */
	CODE(g, 0x1100, 0xcf);
	CODE(g, 2 * 4, 0x00, 0x11, 0, 0);
	handle(SIGSYS, on_trap, 0);
	trapped = 0;
	CHECK_EQ(pthread_create(&t, NULL, filtered_sleeper, &j), 0);
	while (__atomic_load_n(&j.ports, __ATOMIC_ACQUIRE) < 300 && !j.bad) {
		struct timespec moment = {.tv_nsec = 20000};

		kioctl(g->vm, KVM_SIGNAL_MSI, &nmi);
		nanosleep(&moment, NULL);
	}
	pthread_join(t, NULL);
	if (trapped)
		printf("  call %d was refused\n", trapped_nr);
	CHECK_EQ(trapped, 0);
	CHECK_EQ(j.bad, 0);
	guest_close(g);
}

static void *filtered_caller(void *arg)
{
	long rc;
	void *after = NULL;

	if (filter_install(NULL, 0) < 0)
		return (void *)1;
	/* getppid is on no list. */
	__asm__ volatile("syscall\n1: lea 1b(%%rip), %1"
	                 : "=a"(rc), "=r"(after)
	                 : "a"(SYS_getppid)
	                 : "rcx", "r11", "memory");
	if (rc != -ENOANO)
		return (void *)2;
	if (trapped_nr != SYS_getppid || trapped_rax != SYS_getppid)
		return (void *)3;
	return trapped_at == after ? NULL : (void *)4;
}

/* The client's own SIGSYS handler sees its own call. */
TEST(a_refused_call_is_the_clients)
{
	pthread_t t;
	void *rc;

	handle(SIGSYS, on_trap, 0);
	trapped = 0;
	CHECK_EQ(pthread_create(&t, NULL, filtered_caller, NULL), 0);
	pthread_join(t, &rc);
	CHECK_EQ((long)rc, 0);
	CHECK_EQ(trapped, 1);
}

/* The whole process, and what it starts from then on. */
TEST(a_filter_for_a_process)
{
	static const int more[] = {SYS_openat,          SYS_clone, SYS_clone3,     SYS_rt_sigaction, SYS_mprotect,
	                           SYS_set_robust_list, SYS_rseq,  SYS_newfstatat, SYS_dup,          SYS_lseek,
	                           SYS_set_tid_address, SYS_prctl};
	pid_t pid = fork();

	if (pid == 0) {
		struct job j = {.ports = 0};
		pthread_t t;

		if (guest_ports(&j.g) < 0)
			_exit(1);
		if (filter_install(more, sizeof(more) / sizeof(more[0])) < 0)
			_exit(2);
		if (guest_run(&j.g) < 0)
			_exit(3);
		if (pthread_create(&t, NULL, filtered_vcpu, &j) != 0)
			_exit(4);
#ifdef STATIC
		pthread_join(t, NULL);
		_exit(j.bad ? 5 : 0);
#else
		_exit(0);
#endif
	}
	CHECK_EQ(status_of(pid), 0);
}

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
