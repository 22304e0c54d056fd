/*
 * static.h: serving programs that make their system calls themselves.
 *
 * devkvm-load maps such a program beside the engine. Every system call the program makes becomes a SIGSYS (syscall user
 * dispatch); the handler, on a stack of ours and with our thread pointer, does what the call asks for, and returns into
 * the program with rt_sigreturn.
 *
 * Invariants, for each thread of the program:
 *  1. GS base points to its struct sthread, from before it enters the program until it ends.
 *  2. `selector` is DISPATCH while the program runs and ALLOW while we do. FS base is the program's while it is
 *     DISPATCH and ours while it is ALLOW, but for a few instructions of static_trap.c with signals blocked.
 *  3. The kernel's alternate stack is ours, always. The program's own (`alt`) is kept here; frames for its handlers are
 *     moved to where they belong.
 *  4. While ALLOW, every signal that a client may block is blocked, except inside static_pass() and KVM_RUN, where the
 *     program's mask holds. One that comes there is put aside (`held`), ends the call, and its handler is entered on
 * the way back, on top of the state after the call.
 *  5. The kernel never blocks GUARDS for a program's thread; what the program wants of them is `virt`.
 */
#ifndef DEVKVM_FRONT_STATIC_H
#define DEVKVM_FRONT_STATIC_H

#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdnoreturn.h>

#include "../base/types.h"
#include "root.h"

struct clone_args;

/* The kernel's signal frame (arch/x86 struct rt_sigframe, sys/ucontext.h), from its lowest address. */
struct kstack {
	u64 sp;
	s32 flags;
	u64 size;
};

struct kregs {
	u64 r8, r9, r10, r11, r12, r13, r14, r15, di, si, bp, bx, dx, ax, cx, sp, ip, flags, segs, err, trapno, oldmask,
	        cr2;
	u8 *fpstate;
	u64 reserved[8];
};

struct kframe {
	u64 restorer;
	u64 uc_flags, uc_link;
	struct kstack alt;
	struct kregs regs;
	u64 mask;
	siginfo_t info;
};

_Static_assert(sizeof(struct kregs) == 256, "struct sigcontext");
_Static_assert(offsetof(struct kframe, regs) == 8 + 40, "struct ucontext");
_Static_assert(offsetof(struct kframe, info) == 8 + 304, "struct rt_sigframe");

enum { SELECTOR_ALLOW, SELECTOR_DISPATCH };

struct kactions;

struct sthread {
	struct sthread *self; /* %gs:0 */
	volatile u8 selector; /* %gs:8, read by the kernel */
	volatile u8 is_held;  /* %gs:9 */
	u64 own_fs;           /* %gs:16 */
	u64 fs;               /* %gs:24: the program's, while we run */
	u64 call_mask;        /* for static_call_handler() */

	u64 virt;          /* which of GUARDS the program has blocked */
	struct kstack alt; /* the program's alternate stack; size 0: none */
	siginfo_t held;
	u64 held_mask;  /* what was blocked when it came, beside the handler's own */
	bool in_ioctl;  /* of a descriptor of ours: on the way to KVM_RUN, or back */
	bool keep_held; /* it was open to KVM_RUN only, and stays pending */
	bool has_temp;  /* a call like ppoll() has put `temp` in place of the program's mask */
	u64 temp;
	const struct clone_args *forking; /* the C library's fork() is running for this */
	u64 forking_size;

	/* The process'; a vfork()ed child has its own. */
	struct kactions *actions;
	struct root_files *files;

	u8 *stack; /* our stack, the kernel's alternate one */
	u64 stack_size;
	u8 *memory; /* of a thread of the program: everything, with `stack` */
	u64 memory_size;
	int tid;      /* set when the thread ends: when the kernel does not know it any more, memory may go */
	jmp_buf end;  /* a thread that we made: its way out */
	bool ours;    /* `end` is set */
	bool vforked; /* a child that shares its parent's memory */
	struct sthread *next;
};

_Static_assert(offsetof(struct sthread, is_held) == 9 && offsetof(struct sthread, own_fs) == 16 &&
                       offsetof(struct sthread, fs) == 24,
               "static_trap.c knows them by number");

/* The kernel's struct sigaction. */
struct kaction {
	u64 handler, flags, restorer, mask;
};

/* What a process does about its signals. */
struct kactions {
	struct kaction sig[NSIG];
};

#define SIGBIT(sig) (1ull << ((sig)-1))
#define GUARDS (SIGBIT(SIGSEGV) | SIGBIT(SIGBUS) | SIGBIT(SIGFPE) | SIGBIT(SIGSYS))
/* What is blocked while we run. */
#define ALL_BLOCKED (~(GUARDS | SIGBIT(SIGILL) | SIGBIT(SIGTRAP) | SIGBIT(SIGKILL) | SIGBIT(SIGSTOP)))

/* ---- static_trap.c: the way in and out */

static inline struct sthread *sthread_self(void)
{
	struct sthread *t;

	__asm__("mov %%gs:0, %0" : "=r"(t));
	return t;
}

/* Finds out how to switch FS base. Once, before anything else here. */
void static_trap_init(void);
/* The calling thread is `t`'s from now on: GS base, alternate stack, syscall user dispatch. 0 or -errno. */
int static_trap_arm(struct sthread *t);
/* The calling thread is one of the engine's: it never runs the program, but its faults come to static_entry too. */
void static_trap_adopt(void);
/* The address that the kernel calls for a signal, and that of rt_sigreturn. */
extern const char static_entry[], static_restorer[] __attribute__((visibility("hidden")));
/* Into the program: as the frame says; to its entry point; to a handler with the frame on its stack. */
noreturn void static_return(struct sthread *t, struct kframe *f) __attribute__((visibility("hidden")));
noreturn void static_start(struct sthread *t, u64 entry, u64 sp) __attribute__((visibility("hidden")));
noreturn void static_call_handler(struct sthread *t, struct kframe *f, u64 handler, int sig, const u64 *mask)
        __attribute__((visibility("hidden")));
/* A system call of the program: call[0] is its number, then the arguments. Its result, or one of these. */
long static_pass(const u64 call[7]) __attribute__((visibility("hidden")));
#define PASS_AGAIN (-0x7000L)   /* a signal came first: do it again after the handler */
#define PASS_TRAPPED (-0x7001L) /* a seccomp filter raised SIGSYS */
extern const char static_pass_from[], static_pass_insn[], static_pass_done[], static_pass_again[],
        static_pass_trapped[] __attribute__((visibility("hidden")));

/* ---- static_signal.c */

/* At the start: the actions that the process has are the program's. */
void static_signal_init(struct sthread *t);
/* As CLONE_CLEAR_SIGHAND, in the child. */
void static_clear_handlers(struct sthread *t);
/* From static_entry. */
noreturn void static_from_program(int sig, siginfo_t *info, void *uc, struct kframe *f, struct sthread *t)
        __attribute__((visibility("hidden")));
void static_in_engine(int sig, siginfo_t *info, void *uc, struct kframe *f, struct sthread *t)
        __attribute__((visibility("hidden")));
/* rt_sigaction, rt_sigprocmask, sigaltstack, rt_sigreturn. */
long static_sigaction(struct sthread *t, int sig, u64 act, u64 old, u64 size);
long static_sigprocmask(struct sthread *t, struct kframe *f, int how, u64 set, u64 old, u64 size);
long static_sigaltstack(struct sthread *t, struct kframe *f, u64 new, u64 old);
noreturn void static_sigreturn(struct sthread *t, struct kframe *f);
/* The program's mask, as it sees it. */
u64 static_mask(const struct sthread *t, const struct kframe *f);
/* Between the two the program's mask holds (or another of its own). */
void static_unblock(u64 mask);
void static_block(void);

/* ---- static_call.c */

/* Carries the system call out that raised SIGSYS. Sets f->regs.ax. */
void static_system_call(struct sthread *t, struct kframe *f, int nr);
/* At the start: the program's file, and where its heap begins. */
void static_call_init(const char *exe, u64 brk);

/* ---- static_thread.c */

/* The program's first thread, which is the calling one. NULL: no memory. */
struct sthread *sthread_main(void);
/* clone() and clone3() of the program, with the arguments of the calls; what they return to the caller. */
long static_clone(struct sthread *t, struct kframe *f, u64 flags, u64 stack, u64 ptid, u64 ctid, u64 tls);
long static_clone3(struct sthread *t, struct kframe *f, u64 args, u64 size);
/* The end of a thread that static_clone() made. */
noreturn void static_exit_thread(struct sthread *t, int status);
/* The number of bytes from the frame's start to the end of its FPU state. */
u64 kframe_size(const struct kframe *f);
/* Copies it to end below `top`, aligned as it was. NULL: the program has no memory there. */
struct kframe *kframe_copy(const struct kframe *f, u64 top);

#endif
