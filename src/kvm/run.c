/*
 * run.c: entering and leaving the engine on the calling thread, and what signals do to it.
 *
 * Invariant: in_engine names the vCPU that the calling thread executes, exactly while a client's signal handler must
 * not run. The front's wrapper then holds the signal back, and it is delivered when the run has ended and the guest's
 * state is whole: as on a kernel, where handlers run on the way out of the ioctl.
 */
#include "kvm.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Thread_local struct vcpu *volatile in_engine __attribute__((tls_model("initial-exec")));

static _Thread_local volatile bool signalled __attribute__((tls_model("initial-exec")));
static _Thread_local volatile bool early __attribute__((tls_model("initial-exec")));

struct vcpu *run_current(void)
{
	return in_engine;
}

bool run_signalled(void)
{
	return signalled;
}

bool run_interrupted_by_signal(void)
{
	struct vcpu *v = in_engine;

	if (!v)
		return false;
	signalled = true;
	atomic_fetch_or(&v->events, (u32)EV_SIGNAL);
	return true;
}

/* ---- KVM_SET_SIGNAL_MASK ----------------------------------------------------------------------------------------- */

/* Faults of ours. */
#define NEVER_BLOCKED                                                                                                  \
	(BIT(SIGSEGV - 1) | BIT(SIGBUS - 1) | BIT(SIGFPE - 1) | BIT(SIGILL - 1) | BIT(SIGTRAP - 1) | BIT(SIGSYS - 1))

static _Thread_local struct {
	volatile bool swapped;
	u64 was;
} mask __attribute__((tls_model("initial-exec")));

static void (*watcher)(u64 signals);

void run_set_watcher(void (*watch)(u64 signals))
{
	watcher = watch;
}

static void (*thread_begins)(void);

void run_set_thread_hook(void (*begins)(void))
{
	thread_begins = begins;
}

void run_thread_begin(void)
{
	if (thread_begins)
		thread_begins();
}

bool run_mask_swapped(u64 *was)
{
	if (!mask.swapped)
		return false;
	*was = mask.was;
	return true;
}

void run_mask_swap(u64 to)
{
	to &= ~NEVER_BLOCKED;
	syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask.was, 8);
	/* What is open only now has to end the run even if the client has no handler for it. */
	if (watcher && (mask.was & ~to))
		watcher(mask.was & ~to);
	mask.swapped = true;
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &to, NULL, 8);
}

void run_mask_back(void)
{
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask.was, NULL, 8);
	mask.swapped = false;
}

bool run_interrupted_early(bool yes)
{
	early = yes;
	return yes;
}

void run_begin(struct kvm_vcpu *kv)
{
	signalled = false;
	in_engine = &kv->cpu;
	if (unlikely(early)) {
		early = false;
		run_interrupted_by_signal();
	}
	vm_enter(kv->cpu.vm);
}

void run_engine(struct kvm_vcpu *kv)
{
	hole_run(kv);
}

void run_end(struct kvm_vcpu *kv)
{
	vm_leave(kv->cpu.vm);
	in_engine = NULL;
	/* A signal that came after the exit was decided: its handler runs now, and the exit stands. */
	if (atomic_load_explicit(&kv->cpu.events, memory_order_relaxed) & EV_SIGNAL)
		atomic_fetch_and(&kv->cpu.events, ~(u32)EV_SIGNAL);
}

void vcpu_run(struct kvm_vcpu *kv)
{
	run_begin(kv);
	run_engine(kv);
	run_end(kv);
}
