/*
 * signals.c: signals and system calls, as a program sees them that does not know of us, and KVM_RUN among them.
 */
#define _GNU_SOURCE
#include <sys/select.h>

#include "shim.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static volatile int seen, seen_sig, on_stack;
static volatile uintptr_t alt_low, alt_high;
static sigset_t inside;

static void note(int sig, siginfo_t *info, void *context)
{
	char here;

	seen++;
	seen_sig = sig;
	on_stack = (uintptr_t)&here > alt_low && (uintptr_t)&here < alt_high;
	pthread_sigmask(SIG_BLOCK, NULL, &inside);
}

TEST(reads_restart_or_do_not)
{
	int p[2];
	char c;

	CHECK_EQ(pipe(p), 0);
	seen = 0;
	handle(SIGALRM, note, 0);
	alarm_in(20000);
	CHECK_ERR(read(p[0], &c, 1), EINTR);
	alarm_in(0);
	CHECK(seen >= 1);
	seen = 0;
	handle(SIGALRM, note, SA_RESTART);
	if (fork() == 0) {
		usleep(100000);
		_exit(write(p[1], "x", 1) != 1);
	}
	alarm_in(20000);
	CHECK_EQ(read(p[0], &c, 1), 1);
	alarm_in(0);
	CHECK(seen >= 1);
	wait(NULL);
	close(p[0]);
	close(p[1]);
}

TEST(sleeps_are_interrupted)
{
	struct timespec ts = {.tv_sec = 5}, left;

	handle(SIGALRM, note, SA_RESTART);
	alarm_in(20000);
	CHECK_ERR(nanosleep(&ts, &left), EINTR);
	alarm_in(0);
	CHECK(left.tv_sec == 4);
}

/* The handler runs under the mask that the call brought, and it is gone afterwards. */
TEST(waiting_under_another_mask)
{
	struct timespec ts = {.tv_sec = 5};
	sigset_t block, open, now;
	struct pollfd none = {.fd = -1};

	handle(SIGALRM, note, 0);
	sigemptyset(&block);
	sigaddset(&block, SIGALRM);
	sigprocmask(SIG_BLOCK, &block, NULL);
	sigemptyset(&open);
	sigaddset(&open, SIGUSR2);
	for (int k = 0; k < 3; k++) {
		seen = 0;
		alarm_in(20000);
		if (k == 0)
			CHECK_ERR(sigsuspend(&open), EINTR);
		else if (k == 1)
			CHECK_ERR(ppoll(&none, 1, &ts, &open), EINTR);
		else
			CHECK_ERR(pselect(0, NULL, NULL, NULL, &ts, &open), EINTR);
		alarm_in(0);
		CHECK_EQ(seen, 1);
		CHECK(sigismember(&inside, SIGUSR2) == 1);
		CHECK(sigismember(&inside, SIGALRM) == 1);
		sigprocmask(SIG_BLOCK, NULL, &now);
		CHECK(sigismember(&now, SIGUSR2) == 0);
		CHECK(sigismember(&now, SIGALRM) == 1);
	}
	sigprocmask(SIG_UNBLOCK, &block, NULL);
}

TEST(masks_are_seen_as_set)
{
	sigset_t all, was, now;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &was);
	sigprocmask(SIG_SETMASK, NULL, &now);
	for (int sig = 1; sig < 32; sig++)
		CHECK_EQ(sigismember(&now, sig), sig != SIGKILL && sig != SIGSTOP);
	sigprocmask(SIG_SETMASK, &was, NULL);
	sigprocmask(SIG_SETMASK, NULL, &now);
	CHECK(sigismember(&now, SIGSYS) == 0 && sigismember(&now, SIGSEGV) == 0);
}

TEST(alternate_stack)
{
	static char area[16384];
	stack_t ss = {.ss_sp = area, .ss_size = sizeof(area)}, was, off = {.ss_flags = SS_DISABLE};

	CHECK_EQ(sigaltstack(NULL, &was), 0);
	CHECK_EQ(was.ss_flags, SS_DISABLE);
	CHECK_EQ(sigaltstack(&ss, NULL), 0);
	CHECK_EQ(sigaltstack(NULL, &was), 0);
	CHECK(was.ss_sp == area && was.ss_flags == 0 && was.ss_size == sizeof(area));
	alt_low = (uintptr_t)area;
	alt_high = alt_low + sizeof(area);
	handle(SIGUSR1, note, SA_ONSTACK);
	raise(SIGUSR1);
	CHECK(on_stack);
	handle(SIGUSR1, note, 0);
	raise(SIGUSR1);
	CHECK(!on_stack);
	CHECK_EQ(sigaltstack(&off, NULL), 0);
	handle(SIGUSR1, note, SA_ONSTACK);
	raise(SIGUSR1);
	CHECK(!on_stack);
}

static siginfo_t last;

static void keep(int sig, siginfo_t *info, void *context)
{
	last = *info;
	seen++;
}

TEST(values_and_actions)
{
	union sigval value = {.sival_int = 77};
	struct sigaction act;

	seen = 0;
	handle(SIGUSR1, keep, (int)SA_RESETHAND);
	CHECK_EQ(sigaction(SIGUSR1, NULL, &act), 0);
	CHECK(act.sa_sigaction == keep);
	CHECK(act.sa_flags & (int)SA_RESETHAND);
	CHECK_EQ(sigqueue(getpid(), SIGUSR1, value), 0);
	CHECK_EQ(seen, 1);
	CHECK_EQ(last.si_value.sival_int, 77);
	CHECK_EQ(last.si_code, SI_QUEUE);
	CHECK_EQ(last.si_pid, getpid());
	CHECK_EQ(sigaction(SIGUSR1, NULL, &act), 0);
	CHECK(act.sa_handler == SIG_DFL);
	handle(SIGSYS, keep, 0);
	raise(SIGSYS);
	CHECK_EQ(seen, 2);
	CHECK_EQ(last.si_signo, SIGSYS);
	signal(SIGSYS, SIG_DFL);
	CHECK_ERR(syscall(SYS_rt_sigaction, SIGUSR1, 8, NULL, 8), EFAULT);
	CHECK_ERR(syscall(SYS_rt_sigaction, SIGKILL, &act, NULL, 8), EINVAL);
	CHECK_ERR(syscall(SYS_rt_sigprocmask, 7, &inside, NULL, 8), EINVAL);
}

TEST(registers_survive_a_handler)
{
	struct timespec ts = {.tv_nsec = 1000};
	uint64_t x = 1;
	double d = 1;

	seen = 0;
	handle(SIGALRM, note, SA_RESTART);
	struct itimerval it = {.it_value.tv_usec = 500, .it_interval.tv_usec = 500}, off = {0};
	setitimer(ITIMER_REAL, &it, NULL);
	while (seen < 100) {
		for (unsigned n = 0; n < 1000; n++)
			x = x * 6364136223846793005ull + 1, d = d * 1.0000001;
		if (seen % 3 == 0)
			nanosleep(&ts, NULL);
	}
	setitimer(ITIMER_REAL, &off, NULL);
	CHECK(d > 1 && x != 0);
}

/* ---- KVM_RUN ----------------------------------------------------------------------------------------------------- */

TEST(a_handler_ends_the_run)
{
	struct guest g;

	CHECK_EQ(guest_spin(&g), 0);
	seen = 0;
	handle(SIGALRM, note, SA_RESTART);
	alarm_in(2000);
	for (int n = 1; n <= 20; n++) {
		CHECK_ERR(guest_run(&g), EINTR);
		CHECK(seen >= n);
		CHECK_EQ(g.run->exit_reason, KVM_EXIT_INTR);
	}
	alarm_in(0);
	guest_close(&g);
}

static struct guest *inner;
static volatile int inner_rc;

static void run_in_handler(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	inner_rc = guest_run(inner);
	uc->uc_mcontext.gregs[REG_RIP] += 2;
}

/* As gVisor's Sentry does it: KVM_RUN on the signal stack of a fault. */
TEST(run_in_a_handler_of_a_fault)
{
	static char area[32768];
	stack_t ss = {.ss_sp = area, .ss_size = sizeof(area)}, off = {.ss_flags = SS_DISABLE};
	struct guest g;

	CHECK_EQ(guest_ports(&g), 0);
	inner = &g;
	CHECK_EQ(sigaltstack(&ss, NULL), 0);
	handle(SIGSEGV, run_in_handler, SA_ONSTACK);
	for (unsigned n = 0; n < 3; n++) {
		inner_rc = -1;
		g.run->exit_reason = 0;
		__asm__ volatile("movb (%0), %%al" ::"r"(8l) : "rax", "memory");
		CHECK_EQ(inner_rc, 0);
		CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	}
	signal(SIGSEGV, SIG_DFL);
	sigaltstack(&off, NULL);
	guest_close(&g);
}

static void *kicked(void *arg)
{
	struct guest *g = arg;
	long n = 0;

	while (n < 50)
		if (guest_run(g) == -1 && errno == EINTR)
			n++;
		else
			break;
	return (void *)n;
}

TEST(threads_are_kicked)
{
	struct guest g[2];
	pthread_t t[2];
	void *rc;

	handle(SIGUSR1, note, SA_RESTART);
	for (unsigned n = 0; n < 2; n++) {
		CHECK_EQ(guest_spin(&g[n]), 0);
		pthread_create(&t[n], NULL, kicked, &g[n]);
	}
	for (unsigned n = 0; n < 2; n++) {
		while (pthread_kill(t[n], 0) == 0 && pthread_kill(t[n], SIGUSR1) == 0) {
			struct timespec ts;

			clock_gettime(CLOCK_REALTIME, &ts);
			ts.tv_nsec += 500000;
			if (ts.tv_nsec >= 1000000000)
				ts.tv_nsec -= 1000000000, ts.tv_sec++;
			if (pthread_timedjoin_np(t[n], &rc, &ts) == 0)
				break;
		}
		CHECK_EQ((long)rc, 50);
		guest_close(&g[n]);
	}
}

/* As gVisor waits: a signal that only KVM_RUN lets in ends it at once and is there for sigtimedwait(). */
static void run_open_to(int sig, struct guest *g)
{
	struct {
		struct kvm_signal_mask head;
		uint64_t bits;
	} __attribute__((packed)) m = {.head.len = 8, .bits = ~(1ull << (sig - 1))};
	struct timespec second = {.tv_sec = 1};
	struct itimerspec its = {.it_value.tv_nsec = 20000000};
	struct sigevent ev = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = sig};
	sigset_t block, was, pending;
	siginfo_t info;
	timer_t timer;

	sigemptyset(&block);
	sigaddset(&block, sig);
	sigprocmask(SIG_BLOCK, &block, &was);
	CHECK_EQ(kioctl(g->vcpu, KVM_SET_SIGNAL_MASK, &m), 0);
	ev.sigev_notify_thread_id = (int)syscall(SYS_gettid);
	CHECK_EQ(timer_create(CLOCK_MONOTONIC, &ev, &timer), 0);
	for (unsigned n = 0; n < 3; n++) {
		seen = 0;
		timer_settime(timer, 0, &its, NULL);
		CHECK_ERR(guest_run(g), EINTR);
		CHECK_EQ(g->run->exit_reason, KVM_EXIT_INTR);
		CHECK_EQ(seen, 0);
		sigpending(&pending);
		CHECK(sigismember(&pending, sig));
		/* And again while it is pending. */
		CHECK_ERR(guest_run(g), EINTR);
		CHECK_EQ(sigtimedwait(&block, &info, &second), sig);
		CHECK_EQ(info.si_code, SI_TIMER);
	}
	timer_delete(timer);
	sigprocmask(SIG_SETMASK, &was, NULL);
	CHECK_EQ(kioctl(g->vcpu, KVM_SET_SIGNAL_MASK, NULL), 0);
}

TEST(signals_that_only_the_run_lets_in)
{
	struct guest g;
	int status;
	pid_t pid;

	CHECK_EQ(guest_spin(&g), 0);
	run_open_to(SIGCHLD, &g); /* ignored by default */
	run_open_to(SIGUSR2, &g); /* deadly by default */
	handle(SIGUSR1, note, 0);
	run_open_to(SIGUSR1, &g);
	signal(SIGUSR1, SIG_IGN);
	run_open_to(SIGUSR1, &g);
	guest_close(&g);
	/* Outside of runs they do what they did. */
	raise(SIGCHLD);
	raise(SIGUSR1);
	pid = fork();
	if (pid == 0) {
		raise(SIGUSR2);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR2);
}

static void *cancelled(void *arg)
{
	pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
	seen = 1;
	guest_run(arg);
	return NULL;
}

/* Linux leaves the vCPU usable. */
TEST(a_thread_cancelled_in_the_run)
{
	struct guest g;
	struct kvm_regs r;
	pthread_t t;
	void *rc;

	CHECK_EQ(guest_spin(&g), 0);
	for (unsigned n = 0; n < 10; n++) {
		seen = 0;
		CHECK_EQ(pthread_create(&t, NULL, cancelled, &g), 0);
		while (!seen)
			usleep(100);
		usleep(n * 1000);
		CHECK_EQ(pthread_cancel(t), 0);
		CHECK_EQ(pthread_join(t, &rc), 0);
		CHECK(rc == PTHREAD_CANCELED);
		CHECK_EQ(kioctl(g.vcpu, KVM_GET_REGS, &r), 0);
		CHECK_EQ(r.rip, 0x1000);
	}
	handle(SIGALRM, note, 0);
	alarm_in(2000);
	CHECK_ERR(guest_run(&g), EINTR);
	alarm_in(0);
	guest_close(&g);
}

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
