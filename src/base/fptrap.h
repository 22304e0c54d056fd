/*
 * fptrap.h: running a floating-point instruction of the guest with exceptions unmasked on the host.
 *
 * Only the host CPU itself knows which flags an unmasked exception leaves. So the instruction runs between
 * fp_trap_begin() and fp_trap_end() with the guest's own masks; when it traps, the handler of SIGFPE (fp_trap_signal)
 * notes MXCSR and lets the instruction finish masked, for nobody: the caller discards its results.
 */
#ifndef DEVKVM_BASE_FPTRAP_H
#define DEVKVM_BASE_FPTRAP_H

#include "types.h"

/* From here to fp_trap_end() this thread may raise #XM; SIGFPE is unblocked. False: nobody handles SIGFPE. */
bool fp_trap_begin(void);
/* Whether an exception was raised since; then *mxcsr is what the processor left in MXCSR. */
bool fp_trap_end(u32 *mxcsr);

/* For the handler of SIGFPE, with its third argument: true when the signal was ours and execution may go on. */
bool fp_trap_signal(void *ucontext);
/* A handler that calls fp_trap_signal() is installed in this process. */
void fp_trap_guarded(void);

#endif
