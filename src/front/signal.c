/*
 * signal.c: signals and KVM_RUN.
 *
 * On a kernel, a signal for the thread in KVM_RUN ends the call with EINTR and the handler runs on the way out.
 * In-process nobody tells us that a handler is about to run, so the functions that install handlers are wrapped here:
 * the kernel gets on_signal(), the client's own action is kept in client[].
 *
 * on_signal() outside the engine simply calls the client's handler. Inside, the handler must not see a half-done
 * instruction (and may look at the guest, or jump out): the signal is put aside, everything is blocked for the thread,
 * the engine is told to leave, and release() enters the handler once KVM_RUN is over. So handlers, masks,
 * alternate stacks and siglongjmp work as on a kernel.
 *
 * SIGSEGV, SIGBUS and SIGFPE are always ours once the library is in use: a fault in a copy from or to the client
 * (base/usercopy.h) becomes EFAULT, a #XM of a guest's instruction is the guest's (base/fptrap.h); every other one is
 * the client's, with the default action too.
 *
 * Invariant: SA_RESETHAND is never given to the kernel for a wrapped handler; it is done here, when the handler runs.
 */
#define _GNU_SOURCE
#include "front.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "../base/fptrap.h"
#include "../base/usercopy.h"
#include "../kvm/kvm.h"

/* glibc's own name for its sigaction, which ours hides. */
int __sigaction(int sig, const struct sigaction *act, struct sigaction *old);

#define EXPORT __attribute__((visibility("default")))

/* The C library's own, of pthread_cancel(). */
#define SIGCANCEL 32

static struct sigaction client[NSIG];

/* Signals put aside during this thread's KVM_RUN. */
static _Thread_local struct {
	volatile int n;
	siginfo_t info[8];
	sigset_t mask; /* the thread's mask before */
	volatile bool inside;
} held __attribute__((tls_model("initial-exec")));

static bool is_handler(const struct sigaction *act)
{
	return (act->sa_flags & SA_SIGINFO) || (act->sa_handler != SIG_DFL && act->sa_handler != SIG_IGN);
}

/* The signals that stay wrapped whatever the client wants. */
static bool is_guarded(int sig)
{
	return sig == SIGSEGV || sig == SIGBUS || sig == SIGFPE;
}

/* Signals that are wrapped although the client has no handler: KVM_SET_SIGNAL_MASK lets them end a run. */
static _Atomic(u64) watched;

static bool is_watched(int sig)
{
	return atomic_load(&watched) >> (sig - 1) & 1;
}

static bool guard_installed;
static bool elsewhere; /* static_signal.c has the program's signals */
/* The process whose actions client[] describes. A vfork()ed child has actions of its own in memory that is its
 * parent's: what it installs goes straight to the kernel. */
static pid_t owner;

/* Lets the kernel do what it does by default: a fault happens again on return, a signal that was sent is sent again. */
static void default_action(int sig, siginfo_t *info)
{
	struct sigaction dfl = {.sa_handler = SIG_DFL};

	atomic_fetch_and(&watched, ~BIT(sig - 1));
	__sigaction(sig, &dfl, NULL);
	if (info->si_code <= 0)
		syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), sig, info);
}

static void call_client(int sig, siginfo_t *info, void *context)
{
	struct sigaction act = client[sig];

	if (is_watched(sig) && !(act.sa_flags & SA_SIGINFO) &&
	    (act.sa_handler == SIG_IGN ||
	     (act.sa_handler == SIG_DFL && (sig == SIGCHLD || sig == SIGURG || sig == SIGWINCH))))
		return;
	if ((is_guarded(sig) || is_watched(sig)) && !(act.sa_flags & SA_SIGINFO) &&
	    (act.sa_handler == SIG_DFL || act.sa_handler == SIG_IGN)) {
		if (act.sa_handler == SIG_DFL || info->si_code > 0)
			default_action(sig, info);
		return;
	}
	if (act.sa_flags & SA_RESETHAND) {
		client[sig] = (struct sigaction){.sa_handler = SIG_DFL};
		if (!is_guarded(sig))
			__sigaction(sig, &client[sig], NULL);
	}
	if (act.sa_flags & SA_SIGINFO)
		act.sa_sigaction(sig, info, context);
	else if (act.sa_handler != SIG_DFL && act.sa_handler != SIG_IGN)
		act.sa_handler(sig);
}

/* A fault of the code that runs right now; it cannot wait. */
static bool is_synchronous(int sig, const siginfo_t *info)
{
	return info->si_code > 0 &&
	       (sig == SIGSEGV || sig == SIGBUS || sig == SIGFPE || sig == SIGILL || sig == SIGTRAP);
}

bool signal_guard(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	u64 go_on;

	if (!is_guarded(sig) || info->si_code <= 0)
		return false;
	if (sig == SIGFPE && fp_trap_signal(uc))
		return true;
	go_on = user_fault((u64)uc->uc_mcontext.gregs[REG_RIP]);
	if (!go_on)
		return (sig == SIGSEGV || sig == SIGBUS) && hole_fault((u64)(uintptr_t)info->si_addr, uc);
	uc->uc_mcontext.gregs[REG_RIP] = (greg_t)go_on;
	return true;
}

static void on_signal(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;
	int err = errno;

	if (signal_guard(sig, info, uc))
		return;
	/* A thread that is cancelled must not end with our locks. */
	if (is_synchronous(sig, info) ||
	    (!run_interrupted_by_signal() && !(sig == SIGCANCEL && held.inside && run_interrupted_early(true)))) {
		call_client(sig, info, context);
		return;
	}
	if (held.n < (int)(sizeof(held.info) / sizeof(held.info[0]))) {
		held.info[held.n] = *info;
		held.info[held.n].si_signo = sig;
		held.n++;
	}
	/* When wrappers nest, the outermost returns last and so leaves the right mask. */
	memcpy(&held.mask, &uc->uc_sigmask, sizeof(held.mask));
	run_mask_swapped((u64 *)(void *)&held.mask);
	sigfillset(&uc->uc_sigmask);
	sigdelset(&uc->uc_sigmask, SIGSEGV);
	sigdelset(&uc->uc_sigmask, SIGBUS);
	sigdelset(&uc->uc_sigmask, SIGFPE);
	sigdelset(&uc->uc_sigmask, SIGILL);
	sigdelset(&uc->uc_sigmask, SIGTRAP);
	errno = err;
}

/* call(info, context) on the stack that ends at `top`, which may be left by a jump. */
void call_on_stack(void (*call)(siginfo_t *, void *), siginfo_t *info, void *context, u64 top)
        __attribute__((visibility("hidden")));
__asm__(".text\n"
        ".hidden call_on_stack\n"
        ".globl call_on_stack\n"
        ".type call_on_stack, @function\n"
        "call_on_stack:\n"
        "	push %rbp\n"
        "	mov %rsp, %rbp\n"
        "	mov %rdi, %rax\n"
        "	mov %rsi, %rdi\n"
        "	mov %rdx, %rsi\n"
        "	and $-16, %rcx\n"
        "	mov %rcx, %rsp\n"
        "	call *%rax\n"
        "	mov %rbp, %rsp\n"
        "	pop %rbp\n"
        "	ret\n");

static void call_held(siginfo_t *info, void *context)
{
	call_client(info->si_signo, info, context);
}

/* The handler of a signal that was put aside, as the kernel would enter it on the way out of the ioctl. */
static void deliver(const siginfo_t *held_info, const sigset_t *before)
{
	siginfo_t info = *held_info;
	const struct sigaction *act = &client[info.si_signo];
	sigset_t mask = *before;
	u64 *bits = (u64 *)(void *)&mask;
	bool on_stack = act->sa_flags & SA_ONSTACK;
	ucontext_t context;
	stack_t alt;

	/* It was open to the run only. */
	if (*bits >> (info.si_signo - 1) & 1) {
		syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), info.si_signo, &info);
		syscall(SYS_rt_sigprocmask, SIG_SETMASK, bits, NULL, 8);
		return;
	}
	getcontext(&context);
	context.uc_sigmask = *before;
	*bits |= *(const u64 *)(const void *)&act->sa_mask;
	if (!(act->sa_flags & SA_NODEFER))
		*bits |= BIT(info.si_signo - 1);
	if (on_stack)
		on_stack = sigaltstack(NULL, &alt) == 0 && !(alt.ss_flags & (SS_DISABLE | SS_ONSTACK));
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, bits, NULL, 8);
	if (on_stack)
		call_on_stack(call_held, &info, &context, (u64)(uintptr_t)alt.ss_sp + alt.ss_size);
	else
		call_held(&info, &context);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &context.uc_sigmask, NULL, 8);
}

static void release(void)
{
	siginfo_t info[sizeof(held.info) / sizeof(held.info[0])];
	int n = held.n;
	sigset_t mask;

	memcpy(info, held.info, (size_t)n * sizeof(*info));
	mask = held.mask;
	held.n = 0;
	/* The handlers may not come back. */
	for (int k = 0; k < n; k++)
		deliver(&info[k], &mask);
}

void signal_inside(bool inside)
{
	held.inside = inside;
	if (unlikely(!inside && held.n))
		release();
}

static bool is_wrapper(const struct sigaction *act)
{
	return (act->sa_flags & SA_SIGINFO) && act->sa_sigaction == on_signal;
}

static struct sigaction wrapped(int of, const struct sigaction *act)
{
	struct sigaction w = *act;

	w.sa_sigaction = on_signal;
	w.sa_flags = (w.sa_flags | SA_SIGINFO) & ~(int)SA_RESETHAND;
	/* A client may call KVM_RUN in a handler, where faults must still reach us. */
	for (int sig = 1; sig < NSIG; sig++)
		if (is_guarded(sig))
			sigdelset(&w.sa_mask, sig);
	if (is_guarded(of))
		w.sa_flags |= SA_NODEFER;
	if (!is_handler(act))
		w.sa_flags |= SA_RESTART | (of == SIGCHLD && act->sa_handler == SIG_IGN ? SA_NOCLDWAIT : 0);
	return w;
}

EXPORT int sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
	struct sigaction kernel, was, now;

	if (sig <= 0 || sig >= NSIG) {
		errno = EINVAL;
		return -1;
	}
	if (guard_installed && getpid() != owner)
		return __sigaction(sig, act, old);
	if (__sigaction(sig, NULL, &kernel) < 0)
		return -1;
	was = is_wrapper(&kernel) ? client[sig] : kernel;
	if (act) {
		now = *act;
		if (is_handler(&now) || (is_guarded(sig) && guard_installed) || is_watched(sig)) {
			struct sigaction w = wrapped(sig, &now);

			client[sig] = now;
			if (__sigaction(sig, &w, NULL) < 0) {
				client[sig] = was;
				return -1;
			}
			if (sig == SIGFPE)
				fp_trap_guarded();
		} else if (__sigaction(sig, &now, NULL) < 0) {
			return -1;
		}
	}
	if (old)
		*old = was;
	return 0;
}

/* ---- pthread_cancel ---------------------------------------------------------------------------------------------- */

/* The kernel's struct sigaction. */
struct kernel_action {
	u64 handler, flags, restorer, mask;
};

static void *wait_for_cancel(void *arg)
{
	for (;;)
		pause();
	return arg;
}

/*
 * A thread with asynchronous cancellation may be ended inside KVM_RUN by a signal that the C library keeps for itself.
 * Its handler must wait as the client's do. The library installs it at the first use: it gets one that does no harm.
 */
static void wrap_cancel(void)
{
	int (*real)(pthread_t) = (__typeof__(real))dlsym(RTLD_NEXT, "pthread_cancel");
	struct kernel_action act;
	sigset_t all, was;
	pthread_t t;
	bool made;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &was);
	made = pthread_create(&t, NULL, wait_for_cancel, NULL) == 0;
	pthread_sigmask(SIG_SETMASK, &was, NULL);
	if (made) {
		real(t);
		pthread_join(t, NULL);
	}
	if (syscall(SYS_rt_sigaction, SIGCANCEL, NULL, &act, 8) < 0 || !(act.flags & SA_SIGINFO) ||
	    act.handler == (u64)(uintptr_t)on_signal)
		return;
	client[SIGCANCEL] = (struct sigaction){.sa_flags = (int)(act.flags & ~0x04000000ull)};
	client[SIGCANCEL].sa_sigaction = (void (*)(int, siginfo_t *, void *))(uintptr_t)act.handler;
	memcpy(&client[SIGCANCEL].sa_mask, &act.mask, sizeof(act.mask));
	act.handler = (u64)(uintptr_t)on_signal;
	syscall(SYS_rt_sigaction, SIGCANCEL, &act, NULL, 8);
}

EXPORT int pthread_cancel(pthread_t thread)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	int (*real)(pthread_t) = (__typeof__(real))dlsym(RTLD_NEXT, "pthread_cancel");

	/* Where nothing is adopted no KVM_RUN can be under way. */
	if (guard_installed && getpid() == owner)
		pthread_once(&once, wrap_cancel);
	return real(thread);
}

static sighandler_t install(int sig, sighandler_t handler, int flags)
{
	struct sigaction act = {.sa_handler = handler, .sa_flags = flags}, old;

	if (handler == SIG_ERR) {
		errno = EINVAL;
		return SIG_ERR;
	}
	if (!(flags & SA_NODEFER))
		sigaddset(&act.sa_mask, sig);
	return sigaction(sig, &act, &old) < 0 ? SIG_ERR : old.sa_handler;
}

EXPORT sighandler_t signal(int sig, sighandler_t handler)
{
	return install(sig, handler, SA_RESTART);
}

sighandler_t bsd_signal(int sig, sighandler_t handler);
EXPORT sighandler_t bsd_signal(int sig, sighandler_t handler)
{
	return install(sig, handler, SA_RESTART);
}

EXPORT sighandler_t ssignal(int sig, sighandler_t handler)
{
	return install(sig, handler, SA_RESTART);
}

EXPORT sighandler_t sysv_signal(int sig, sighandler_t handler)
{
	return install(sig, handler, (int)(SA_RESETHAND | SA_NODEFER));
}

sighandler_t __sysv_signal(int sig, sighandler_t handler);
EXPORT sighandler_t __sysv_signal(int sig, sighandler_t handler)
{
	return install(sig, handler, (int)(SA_RESETHAND | SA_NODEFER));
}

static void watch(u64 signals)
{
	signals &= ~atomic_load(&watched) & ~(BIT(SIGKILL - 1) | BIT(SIGSTOP - 1) | BIT(SIGTSTP - 1) |
	                                      BIT(SIGTTIN - 1) | BIT(SIGTTOU - 1) | BIT(SIGCONT - 1));
	for (int sig = 1; signals && sig < NSIG; sig++) {
		struct sigaction act;

		/* The C library keeps two for itself. */
		if (!(signals >> (sig - 1) & 1) || is_guarded(sig) || sig == 32 || sig == 33)
			continue;
		atomic_fetch_or(&watched, BIT(sig - 1));
		if (sigaction(sig, NULL, &act) == 0)
			sigaction(sig, &act, NULL);
	}
}

void signal_forked(void)
{
	owner = getpid();
}

void signal_elsewhere(void)
{
	elsewhere = true;
}

void signal_adopt(void)
{
	owner = getpid();
	if (elsewhere)
		return;
	run_set_watcher(watch);
	for (int sig = 1; sig < NSIG; sig++) {
		struct sigaction act;

		if (__sigaction(sig, NULL, &act) < 0 || is_wrapper(&act))
			continue;
		guard_installed |= is_guarded(sig);
		if (is_handler(&act) || is_guarded(sig))
			sigaction(sig, &act, NULL);
	}
	user_guarded(true);
}
