/*
 * fptrap.c: see fptrap.h.
 *
 * Invariant: `trap.armed` is only set while nothing but the instruction under test runs, so a SIGFPE then is its #XM.
 */
#define _GNU_SOURCE
#include "fptrap.h"

#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define MXCSR_MASKS 0x1f80u

static bool guarded;

static _Thread_local struct {
	volatile bool armed, hit;
	volatile u32 mxcsr;
	u64 mask; /* the thread's signals before */
} trap __attribute__((tls_model("initial-exec")));

void fp_trap_guarded(void)
{
	guarded = true;
}

bool fp_trap_begin(void)
{
	u64 fpe = 1ull << (SIGFPE - 1);

	if (!guarded)
		return false;
	/* A kernel kills the process for a trap whose signal is blocked. */
	syscall(SYS_rt_sigprocmask, SIG_UNBLOCK, &fpe, &trap.mask, sizeof(fpe));
	trap.hit = false;
	trap.armed = true;
	return true;
}

bool fp_trap_end(u32 *mxcsr)
{
	trap.armed = false;
	syscall(SYS_rt_sigprocmask, SIG_SETMASK, &trap.mask, NULL, sizeof(trap.mask));
	*mxcsr = trap.mxcsr;
	return trap.hit;
}

bool fp_trap_signal(void *ucontext)
{
	ucontext_t *uc = ucontext;

	if (!trap.armed || !uc->uc_mcontext.fpregs)
		return false;
	trap.hit = true;
	trap.mxcsr = uc->uc_mcontext.fpregs->mxcsr;
	uc->uc_mcontext.fpregs->mxcsr |= MXCSR_MASKS;
	return true;
}
