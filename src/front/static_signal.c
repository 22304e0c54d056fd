/*
 * static_signal.c: the signals of a program whose system calls we make (static.h has the invariants).
 *
 * The kernel knows one handler, static_entry. The program's actions are kept in struct kactions. A signal that comes
 * while the program runs is handed on at once: its frame, which the kernel made on our stack, moves to where the
 * program would have had it. One that comes while we run is put aside, or is a fault of ours (front.h, signal_guard()).
 */
#define _GNU_SOURCE
#include "static.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/ucontext.h>
#include <unistd.h>

#include "../base/fptrap.h"
#include "../base/usercopy.h"
#include "../kvm/kvm.h"
#include "front.h"
#include "static_thread.h"

#define SA_RESTORER_FLAG 0x04000000ull
#define SS_DISARM ((s32)(1u << 31)) /* SS_AUTODISARM */
#define RED_ZONE 128

/* protects: every struct kactions, and what the kernel knows of it */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int kernel_action(int sig, const struct kaction *act, struct kaction *old)
{
	return syscall(SYS_rt_sigaction, sig, act, old, 8) < 0 ? -errno : 0;
}

static bool is_handler(const struct kaction *act)
{
	return act->handler != (u64)(uintptr_t)SIG_DFL && act->handler != (u64)(uintptr_t)SIG_IGN;
}

static bool is_guard(int sig)
{
	return GUARDS >> (sig - 1) & 1;
}

/* Signals that KVM_SET_SIGNAL_MASK lets end a run although the program has no handler. */
static _Atomic(u64) watched;

static bool is_watched(int sig)
{
	return atomic_load(&watched) >> (sig - 1) & 1;
}

static int install(int sig, const struct kaction *act)
{
	struct kaction k = *act;

	if (is_handler(act) || is_guard(sig) || is_watched(sig)) {
		k.handler = (u64)(uintptr_t)static_entry;
		k.restorer = (u64)(uintptr_t)static_restorer;
		k.flags = (act->flags & (SA_RESTART | SA_NOCLDSTOP | SA_NOCLDWAIT)) | SA_SIGINFO | SA_ONSTACK |
		          SA_RESTORER_FLAG;
		if (is_guard(sig) || sig == SIGILL || sig == SIGTRAP)
			k.flags |= SA_NODEFER;
		if (!is_handler(act))
			k.flags |= SA_RESTART | (sig == SIGCHLD && act->handler ? SA_NOCLDWAIT : 0);
		k.mask = ALL_BLOCKED;
	}
	return kernel_action(sig, &k, NULL);
}

static void watch(u64 signals)
{
	struct sthread *t = sthread_self();

	signals &= ~atomic_load(&watched) & ~(SIGBIT(SIGKILL) | SIGBIT(SIGSTOP) | SIGBIT(SIGTSTP) | SIGBIT(SIGTTIN) |
	                                      SIGBIT(SIGTTOU) | SIGBIT(SIGCONT) | GUARDS);
	if (!signals)
		return;
	pthread_mutex_lock(&lock);
	atomic_fetch_or(&watched, signals);
	for (int sig = 1; sig < NSIG; sig++)
		if (signals & SIGBIT(sig))
			install(sig, &t->actions->sig[sig]);
	pthread_mutex_unlock(&lock);
}

void static_signal_init(struct sthread *t)
{
	static struct kactions process;

	t->actions = &process;
	for (int sig = 1; sig < NSIG; sig++) {
		if (kernel_action(sig, NULL, &process.sig[sig]) < 0)
			continue;
		if (is_guard(sig))
			install(sig, &process.sig[sig]);
	}
	user_guarded(true);
	fp_trap_guarded();
	signal_elsewhere();
	run_set_watcher(watch);
	run_set_thread_hook(static_trap_adopt);
}

void static_clear_handlers(struct sthread *t)
{
	for (int sig = 1; sig < NSIG; sig++)
		if (is_handler(&t->actions->sig[sig])) {
			t->actions->sig[sig] = (struct kaction){0};
			install(sig, &t->actions->sig[sig]);
		}
}

/* ---- masks ------------------------------------------------------------------------------------------------------- */

void static_unblock(u64 mask)
{
	mask &= ~GUARDS;
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, 8);
}

void static_block(void)
{
	u64 mask = ALL_BLOCKED;

	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, NULL, 8);
}

u64 static_mask(const struct sthread *t, const struct kframe *f)
{
	return (f->mask & ~GUARDS) | t->virt;
}

static void set_mask(struct sthread *t, struct kframe *f, u64 mask)
{
	mask &= ~(SIGBIT(SIGKILL) | SIGBIT(SIGSTOP));
	t->virt = mask & GUARDS;
	f->mask = mask & ~GUARDS;
}

/* ---- frames ------------------------------------------------------------------------------------------------------ */

u64 kframe_size(const struct kframe *f)
{
	u32 magic, size;

	if (!f->regs.fpstate)
		return sizeof(*f);
	/* The FXSAVE image's software bytes say how long the whole is (sigcontext.h, struct _fpx_sw_bytes). */
	memcpy(&magic, f->regs.fpstate + 464, 4);
	memcpy(&size, f->regs.fpstate + 468, 4);
	if (magic != 0x46505853)
		size = 512;
	return (u64)(f->regs.fpstate - (const u8 *)f) + size;
}

struct kframe *kframe_copy(const struct kframe *f, u64 top)
{
	u64 size = kframe_size(f), at = top - size;
	struct kframe *copy;

	at -= (at - (u64)(uintptr_t)f) & 63;
	copy = (struct kframe *)(uintptr_t)at;
	if (user_write(copy, f, size) < 0)
		return NULL;
	if (f->regs.fpstate)
		copy->regs.fpstate = (u8 *)copy + (f->regs.fpstate - (const u8 *)f);
	return copy;
}

static bool on_alt(const struct sthread *t, u64 sp)
{
	return t->alt.size && !(t->alt.flags & SS_DISARM) && sp > t->alt.sp && sp - t->alt.sp <= t->alt.size;
}

static struct kstack alt_seen(const struct sthread *t, u64 sp)
{
	struct kstack s = t->alt;

	if (!s.size)
		return (struct kstack){.flags = SS_DISABLE};
	s.flags = (s.flags & SS_DISARM) | (on_alt(t, sp) ? SS_ONSTACK : 0);
	return s;
}

/* ---- handing on -------------------------------------------------------------------------------------------------- */

/* As the kernel ends a process that cannot take a signal. */
static noreturn void die(int sig)
{
	struct kaction dfl = {0};
	u64 only = ~SIGBIT(sig);

	kernel_action(sig, &dfl, NULL);
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &only, NULL, 8);
	for (;;)
		syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), sig);
}

static bool is_synchronous(int sig, const siginfo_t *info)
{
	return info->si_code > 0 &&
	       (sig == SIGSEGV || sig == SIGBUS || sig == SIGFPE || sig == SIGILL || sig == SIGTRAP || sig == SIGSYS);
}

/* Enters the program's handler of `info`, with the frame `f` as what it interrupts and `mask` blocked besides its own.
 */
static noreturn void deliver(struct sthread *t, struct kframe *f, int sig, const siginfo_t *info, u64 mask)
{
	struct kaction act;
	struct kframe *at;
	u64 top;

	pthread_mutex_lock(&lock);
	act = t->actions->sig[sig];
	if (is_handler(&act) && (act.flags & SA_RESETHAND)) {
		t->actions->sig[sig] = (struct kaction){0};
		install(sig, &t->actions->sig[sig]);
	}
	pthread_mutex_unlock(&lock);
	if (is_synchronous(sig, info) && (t->virt & SIGBIT(sig)))
		act.handler = (u64)(uintptr_t)SIG_DFL;
	if (!is_handler(&act)) {
		/* Only guards get here, and signals whose action changed after they came. */
		if (act.handler == (u64)(uintptr_t)SIG_IGN && !is_synchronous(sig, info))
			static_return(t, f);
		if (act.handler == (u64)(uintptr_t)SIG_DFL && (sig == SIGCHLD || sig == SIGURG || sig == SIGWINCH))
			static_return(t, f);
		if (is_guard(sig) || is_synchronous(sig, info) || is_watched(sig))
			die(sig);
		syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), sig, info);
		static_return(t, f);
	}
	top = f->regs.sp - RED_ZONE;
	if ((act.flags & SA_ONSTACK) && t->alt.size && !on_alt(t, f->regs.sp))
		top = t->alt.sp + t->alt.size;
	at = kframe_copy(f, top);
	if (!at || (on_alt(t, top) && (u64)(uintptr_t)at <= t->alt.sp))
		die(SIGSEGV);
	at->restorer = act.restorer;
	at->alt = alt_seen(t, f->regs.sp);
	at->mask = static_mask(t, f);
	at->info = *info;
	if (t->alt.size && (t->alt.flags & SS_DISARM) && top == t->alt.sp + t->alt.size)
		t->alt = (struct kstack){0};
	mask |= act.mask | t->virt;
	if (!(act.flags & SA_NODEFER))
		mask |= SIGBIT(sig);
	mask &= ~(SIGBIT(SIGKILL) | SIGBIT(SIGSTOP));
	t->virt = mask & GUARDS;
	t->call_mask = mask & ~GUARDS;
	static_call_handler(t, at, act.handler, sig, &t->call_mask);
}

static noreturn void leave(struct sthread *t, struct kframe *f)
{
	if (unlikely(t->is_held)) {
		siginfo_t info = t->held;

		t->is_held = 0;
		if (t->keep_held) {
			t->keep_held = false;
			syscall(SYS_rt_tgsigqueueinfo, getpid(), syscall(SYS_gettid), info.si_signo, &info);
			static_return(t, f);
		}
		deliver(t, f, info.si_signo, &info, t->held_mask);
	}
	static_return(t, f);
}

noreturn void static_from_program(int sig, siginfo_t *info, void *uc, struct kframe *f, struct sthread *t)
{
	/* SYS_USER_DISPATCH: a system call. */
	if (likely(sig == SIGSYS && info->si_code == 2)) {
		if (unlikely(t->forking))
			static_fork_call(t, f);
		static_system_call(t, f, info->si_syscall);
		leave(t, f);
	}
	deliver(t, f, sig, info, f->mask);
}

void static_in_engine(int sig, siginfo_t *info, void *context, struct kframe *f, struct sthread *t)
{
	u64 rip = f->regs.ip, was;
	int err = errno;

	if (is_synchronous(sig, info)) {
		if (sig == SIGSYS) {
			if (rip != (u64)(uintptr_t)static_pass_done)
				die(SIGSYS);
			f->regs.ip = (u64)(uintptr_t)static_pass_trapped;
		} else if (signal_guard(sig, info, context)) {
			return;
		} else {
			die(sig);
		}
	} else {
		if (!run_interrupted_by_signal() && t->in_ioctl)
			run_interrupted_early(true);
		t->keep_held = run_mask_swapped(&was) && (was & SIGBIT(sig));
		if (rip >= (u64)(uintptr_t)static_pass_from && rip <= (u64)(uintptr_t)static_pass_insn)
			f->regs.ip = (u64)(uintptr_t)static_pass_again;
	}
	t->held = *info;
	t->held.si_signo = sig;
	t->held_mask = t->has_temp ? t->temp : f->mask;
	t->is_held = 1;
	f->mask |= ALL_BLOCKED;
	errno = err;
}

/* ---- the calls --------------------------------------------------------------------------------------------------- */

long static_sigaction(struct sthread *t, int sig, u64 act, u64 old, u64 size)
{
	struct kaction now, was;
	int rc;

	if (size != 8)
		return -EINVAL;
	if (act && user_read(&now, (void *)(uintptr_t)act, sizeof(now)) < 0)
		return -EFAULT;
	if (sig <= 0 || sig >= NSIG || (act && (sig == SIGKILL || sig == SIGSTOP)))
		return -EINVAL;
	pthread_mutex_lock(&lock);
	was = t->actions->sig[sig];
	rc = 0;
	if (act) {
		now.mask &= ~(SIGBIT(SIGKILL) | SIGBIT(SIGSTOP));
		t->actions->sig[sig] = now;
		rc = install(sig, &now);
		if (rc < 0)
			t->actions->sig[sig] = was;
	}
	pthread_mutex_unlock(&lock);
	if (rc == 0 && old && user_write((void *)(uintptr_t)old, &was, sizeof(was)) < 0)
		rc = -EFAULT;
	return rc;
}

long static_sigprocmask(struct sthread *t, struct kframe *f, int how, u64 set, u64 old, u64 size)
{
	u64 was = static_mask(t, f), bits;

	if (size != 8)
		return -EINVAL;
	if (set) {
		if (user_read(&bits, (void *)(uintptr_t)set, 8) < 0)
			return -EFAULT;
		switch (how) {
		case SIG_BLOCK:
			set_mask(t, f, was | bits);
			break;
		case SIG_UNBLOCK:
			set_mask(t, f, was & ~bits);
			break;
		case SIG_SETMASK:
			set_mask(t, f, bits);
			break;
		default:
			return -EINVAL;
		}
	}
	if (old && user_write((void *)(uintptr_t)old, &was, 8) < 0)
		return -EFAULT;
	return 0;
}

long static_sigaltstack(struct sthread *t, struct kframe *f, u64 new, u64 old)
{
	struct kstack s, was = alt_seen(t, f->regs.sp);

	if (new) {
		s32 mode;

		if (user_read(&s, (void *)(uintptr_t) new, sizeof(s)) < 0)
			return -EFAULT;
		if (on_alt(t, f->regs.sp))
			return -EPERM;
		mode = s.flags & ~SS_DISARM;
		if (mode != SS_DISABLE && mode != SS_ONSTACK && mode != 0)
			return -EINVAL;
		if (mode == SS_DISABLE)
			s = (struct kstack){0};
		else if (s.size < 2048)
			return -ENOMEM;
		t->alt = s;
	}
	if (old && user_write((void *)(uintptr_t)old, &was, sizeof(was)) < 0)
		return -EFAULT;
	return 0;
}

noreturn void static_sigreturn(struct sthread *t, struct kframe *f)
{
	struct kframe *back = (struct kframe *)(uintptr_t)(f->regs.sp - 8);
	struct kframe probe;

	/* As the kernel: a bad frame is the end. */
	if (user_read(&probe, back, sizeof(probe)) < 0)
		die(SIGSEGV);
	if (!on_alt(t, f->regs.sp))
		t->alt = probe.alt.flags & SS_DISABLE ? (struct kstack){0} : probe.alt;
	t->alt.flags &= SS_DISARM;
	set_mask(t, back, probe.mask);
	/* The kernel's own of the frame that brought us here: our stack. */
	back->alt = f->alt;
	static_return(t, back);
}
