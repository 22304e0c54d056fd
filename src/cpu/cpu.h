/*
 * cpu.h: the processor's state (struct vcpu) and what changes it. One internal header for src/cpu; prototypes by file.
 *
 * Invariants:
 *  - everything below "derived" follows from the architectural state and is refreshed by cpu_update() alone;
 *  - an instruction commits registers last: when a handler returns STEP_EXCP or STEP_EXIT (with nothing completed) the
 *    architectural state is as before the instruction, so that it can run again;
 *  - r[R_ZERO] is 0; r[R_RIP] is the current instruction's address while its handler runs.
 */
#ifndef DEVKVM_CPU_CPU_H
#define DEVKVM_CPU_CPU_H

#include <stdatomic.h>

#include "../mem/mem.h"
#include "../x86/decode.h"
#include "../x86/desc.h"
#include "../x86/msr.h"
#include "../x86/regs.h"
#include "fpu.h"

/* What an instruction's handler, or a function it calls, returns. */
enum step {
	STEP_OK = 0, /* done; the loop advances RIP by insn->len */
	STEP_JUMP,   /* done; RIP is already set (also: mode changed, or the block must end here) */
	STEP_EXCP,   /* v->excp holds an exception to deliver; state as before the instruction */
	STEP_EXIT /* v->exit is filled: leave the engine. RIP is what the exit's rules say; the loop does not touch it
	           */
};

enum cpu_mode { MODE_REAL, MODE_V86, MODE_PROT, MODE_COMPAT, MODE_64 };

/* Segment register with its hidden part. */
struct seg {
	u16 sel;
	u8 type; /* SEGT_x / SYST_x */
	u8 dpl;
	bool s, present, db, l, g, avl;
	bool unusable;
	u32 limit; /* in bytes, granularity applied */
	u64 base;
	/* derived by seg_derive(): MEM_READ/MEM_WRITE set when every access below 4 GiB of that kind passes without a
	 * check (base 0, limit 4 GiB - 1, expand-up, right type) */
	u8 flat;
	/* derived too: outside 64-bit mode a read or write of [ea, ea + size) passes when ea + size, without wrapping,
	 * is at most this; 0: seg_linear_slow() decides. */
	u64 read_end, write_end;
};

struct dtable {
	u64 base;
	u16 limit;
};

/* An exception or interrupt on its way through the IDT. */
enum event_kind { EVENT_NONE, EVENT_FAULT, EVENT_TRAP, EVENT_SOFT_INT, EVENT_INT3, EVENT_ICEBP, EVENT_INTR, EVENT_NMI };

struct event {
	u8 kind;
	u8 vector;
	bool has_error;
	u32 error;
	u64 cr2;      /* #PF: committed to CR2 when delivered */
	u64 dr6;      /* #DB: bits to OR into DR6 */
	u64 next_rip; /* traps and software interrupts: the RIP to push; faults: unused */
};

enum exit_reason {
	EXIT_NONE,
	EXIT_INTR,     /* a signal, a kick with immediate exit */
	EXIT_IO,       /* exit.io */
	EXIT_MMIO,     /* exit.mmio */
	EXIT_CPUID,    /* 2006 only */
	EXIT_HLT,      /* RIP past the HLT */
	EXIT_DEBUG,    /* exit.debug */
	EXIT_SHUTDOWN, /* triple fault */
	EXIT_INTERNAL, /* exit.internal: we cannot go on */
	EXIT_IRQ_WINDOW,
	EXIT_MSR,  /* exit.msr: the client is asked */
	EXIT_RSM,  /* the owner leaves system management mode */
	EXIT_STEP, /* never seen outside: the instruction runs again, with a look at breakpoints before and after it */
	EXIT_GONE, /* an access to memory that the client has not, state as before the instruction */
	EXIT_OWNER /* the owner knows why */
};

/* One IN, OUT, INS or OUTS after its permission and operand checks. */
struct pio {
	u16 port;
	u8 size; /* 1, 2, 4 */
	bool in, string, down, rep;
	u64 count; /* string: repetitions left (1 without REP) */
	gva_t gva; /* string: linear address of the memory operand */
	u32 value; /* OUT: the value */
	u8 len;    /* instruction length */
	u8 asize;  /* string: width of the address and count registers in bytes */
	u16 chunk; /* string: elements from gva on, in the direction of `down`, that lie in one page and one segment */
};

struct vcpu_exit {
	enum exit_reason reason;
	u8 insn_len;
	union {
		struct pio io;
		struct {
			gpa_t gpa;
			u8 len;
			bool is_write;
			u8 data[8];
		} mmio;
		struct {
			u8 vector;
			u64 rip, dr6, dr7;
		} debug;
		struct {
			u32 index, reason; /* reason: the owner's */
			bool write;
			u64 data;
		} msr;
		struct {
			const char *why;
		} internal;
	};
};

/* vcpu->events: why the engine must leave its fast loop. Any thread or signal handler may set bits; the vCPU's thread
 * clears. */
#define EV_KICK BIT(0)   /* another thread wants the vCPU parked, or something looked at */
#define EV_SIGNAL BIT(1) /* a signal came: leave with EXIT_INTR */
#define EV_IRQ BIT(2)    /* ops->irq_pending may have a vector */
#define EV_NMI BIT(3)
#define EV_TRAP BIT(4)   /* v->pending_db holds #DB bits of the last instruction */
#define EV_TLB BIT(5)    /* another thread asks for a full TLB flush */
#define EV_SHADOW BIT(6) /* STI or MOV SS shadow covers the next instruction */
#define EV_WINDOW BIT(7) /* exit with EXIT_IRQ_WINDOW once an interrupt could be taken */

#define EV_CHECK BIT(8) /* nothing but a wish that loops and repetitions pause (jit/lockstep.c) */

/* vcpu->shadow */
#define SHADOW_STI 1
#define SHADOW_MOVSS 2

#define MSR_PASS 1

struct vcpu_ops {
	/* IN/OUT/INS/OUTS: does it or fills v->exit and returns STEP_EXIT. */
	int (*pio)(struct vcpu *v, const struct pio *io);
	int (*cpuid)(struct vcpu *v, const struct insn *i);
	int (*hlt)(struct vcpu *v, const struct insn *i);
	/* A vector that may be delivered now (the engine checked IF and shadows), or -1. Taking it acknowledges it. */
	int (*irq_take)(struct vcpu *v);
	bool (*irq_pending)(struct vcpu *v);
	/* Bits were set in events that a vCPU asleep must hear of. Any thread, takes no lock. May be NULL. */
	void (*wake)(struct vcpu *v);
	/* EV_KICK: parks until the other thread is done. Called between instructions. */
	void (*kicked)(struct vcpu *v);
	/* MOV to/from CR8 hooks, APIC base writes: may be NULL. */
	void (*cr8_written)(struct vcpu *v);
	/* VMCALL and VMMCALL (`amd`), MONITOR and MWAIT after their checks, RSM: NULL is #UD. */
	int (*hypercall)(struct vcpu *v, const struct insn *i, bool amd);
	int (*monitor)(struct vcpu *v, const struct insn *i);
	int (*rsm)(struct vcpu *v, const struct insn *i);
	/* MSRs that the owner adds or replaces, asked first; may be NULL. 0: done; -1: #GP; MSR_PASS: not the owner's.
	 * `host`: from an ioctl. */
	int (*msr_read)(struct vcpu *v, u32 msr, u64 *val, bool host);
	int (*msr_write)(struct vcpu *v, u32 msr, u64 val, bool host);
	/* RDMSR or WRMSR of the guest, before (`failed` false) and after it raised #GP: true when the client is asked,
	 * v->exit says what. May be NULL. */
	bool (*msr_ask)(struct vcpu *v, u32 msr, u64 val, bool write, bool failed);
};

/* The client's debugging (KVM_DEBUG_GUEST, KVM_SET_GUEST_DEBUG): invisible to the guest. */
struct guest_debug {
	bool enabled, singlestep;
	bool sw_bp;   /* INT3 exits */
	bool db;      /* every #DB exits, also the guest's own */
	bool no_irq;  /* interrupts, NMIs and SMIs wait */
	bool own_bps; /* bp[] is in force in place of the guest's DR0-3 */
	u64 dr7;      /* what is in force then, for the exit */
	struct {
		bool enabled;
		gva_t addr;
		u8 len, access; /* 0 = execution; else MEM_READ | MEM_WRITE over len bytes */
	} bp[4];
};

struct interp; /* interp/interp.h: the vCPU's decoded-code cache */
struct jit;    /* jit/jit.h: the vCPU's translated code */

#define DENY_RDTSCP 1u /* RDPID and TSC_AUX too */
#define DENY_INVPCID 2u
#define DENY_SPEC_CTRL 4u /* the MSRs SPEC_CTRL and PRED_CMD */
#define DENY_PRED_CMD 8u

struct vcpu {
	/* ---- hot ---- */
	u64 r[R_COUNT];
	u64 rflags;
	_Atomic(u32) events;
	u32 held; /* EV_IRQ and EV_WINDOW, put aside while IF is 0: what looks at `events` all the time sees none */

	/* derived by cpu_update(); keep first so that handlers reach them with short displacements */
	u8 mode;          /* enum cpu_mode */
	u8 cpl;           /* 0 in real mode, 3 in v86 */
	u8 dmode;         /* enum decode_mode of the code segment */
	bool stack_is_32; /* SS.B (false: 16-bit SP); unused in 64-bit mode */
	bool stepping; /* the loop must call dbg_before()/dbg_after() around each instruction: TF, RF, I/O breakpoints,
	                  the client's single-step. For others mmu.watch_stops names the instructions. */
	u8 shadow;     /* SHADOW_x covering the next instruction */
	bool goes_on;  /* the loop is entered again without the client having run: it changed no memory */
	u32 code_key;  /* what decoding depends on besides the bytes: dmode, ... */

	/* Words that translated code reads and writes; jit/ alone gives them meaning. */
	struct {
		u64 sp, sp_low; /* host stack while translated code runs: its base, and where return prediction stops */
		u64 key;        /* mixed into jump cache tags */
		u64 to;         /* where a handler jumped, linear */
		u32 gen[2];     /* what page guards hold that are good: for supervisor code, for the rest */
		u64 tmp;
		u32 flags; /* arithmetic flags as LAHF; SETO AL leave them in AX, or a recipe for them */
		u32 arg;   /* why the code was left */
		u32 from;  /* the last RET that ran */
		u32 vec;   /* VEC_x: where the guest's vector registers and MXCSR are */
		u32 mxcsr_host;
		u32 x87; /* the guest's x87 state is in the host's registers; v->fpu keeps the pointers */
		u16 fcw_new;
		u64 c_r8, c_sp; /* of stubs that call C */
		u32 in_stub;    /* such a stub\'s C runs: guest registers are in the host\'s, or on its stack */
		u64 slot[8], carried[4]; /* operands of recipes */
		u64 keep[2];
		u32 slot_bad[8];
		u32 env_host[7]; /* the x87 environment before (FNSTENV) */
	} jt;

	struct seg seg[SEG_COUNT];
	struct dtable gdt, idt;
	u64 cr0, cr2, cr3, cr4, cr8, efer, apic_base;
	u64 dr[4], dr6, dr7;

	struct event excp; /* set by excp_raise() and friends, consumed by excp_deliver() */
	u64 pending_db;    /* DR6 bits of traps to be taken before the next instruction (EV_TRAP) */
	bool nmi_masked;   /* between NMI delivery and IRET */
	/* At most one NMI waits behind the one that is handled; two when none is, of which one is about to be
	 * delivered. Whoever sends one counts nmi_queued up and sets EV_NMI; the vCPU itself collects them. */
	u8 nmi_pending;
	atomic_uint nmi_queued;
	u8 excp_ext;     /* EXT bit for error codes: 1 while an event that no instruction asked for is delivered */
	bool dbg_active; /* derived by dbg_update(): some breakpoint, or the client single-steps */
	bool dbg_step;   /* that too: one of I/O, or the client single-steps */
	bool mid_rep;    /* the repetition at mid_rep_rip has paused: an interrupt there pushes RF = 1 */
	u64 mid_rep_rip;
	bool rf_fresh; /* the current instruction has just set RF: it covers the next one */
	bool tf_done;  /* the current instruction settled its own single-step trap (INT n, SYSCALL, task switch) */

	/* MSRs */
	u64 star, lstar, cstar, sfmask, kernel_gs_base;
	u64 sysenter_cs, sysenter_esp, sysenter_eip;
	u64 tsc_aux, pat, misc_enable, mtrr_def, debugctl;
	u64 mtrr_fixed[11], mtrr_var[16];
	s64 tsc_offset; /* guest TSC = host TSC + offset */
	u64 msr_spare[32];

	struct fpu fpu;

	/* What the model processor has and this one's CPUID, as the client set it, has not (as far as Linux' KVM
	 * looks). */
	struct {
		u64 cr4, efer;
		u8 insn; /* DENY_x */
	} denied;
	bool amd_rules, intel_rules; /* SYSCALL and SYSENTER as one vendor has them; both where the client mixes them */

	const struct vcpu_ops *ops;
	void *owner; /* kvm/'s object */
	struct vm *vm;
	u32 id;
	bool is_bsp;
	struct guest_debug gdbg;
	struct vcpu_exit exit;
	struct interp *interp;
	struct jit *jit; /* NULL: the interpreter runs this vCPU */
	u64 n_insns;     /* instructions retired, roughly: for statistics */

	struct mmu mmu;
};

/* ---- state.c: reset, mode, consistency -------------------------------------------------------------------------- */

/* Reset state of the 2006 interface (interface-2006.md, KVM_CREATE_VCPU). mmu, ops, id, is_bsp must be set. */
void cpu_reset(struct vcpu *v);
/* Recomputes everything derived (mode, cpl, decode mode, paging setup, mmu.ctx, stepping, segment flats). Call after
 * any change to CRx, EFER, RFLAGS.VM/AC/TF, CS, SS, debug registers from outside an instruction handler. */
void cpu_update(struct vcpu *v);
/* Cheaper: only what RFLAGS (AC, TF, VM) and CPL decide. */
void cpu_update_flags(struct vcpu *v);
/* NULL when a processor can run from this state, else why not (KVM FAIL_ENTRY, Intel SDM vol. 3, 26.3). */
const char *cpu_check_state(const struct vcpu *v);
/* Mode, CPL, decode mode, stack width and what follows, after CS, SS, RFLAGS.VM or CR0.PE changed; not the paging
 * setup. */
void cpu_update_mode(struct vcpu *v);
/* POPF, IRET, SYSRET...: sets the RFLAGS bits of `mask` from `val`, raising what follows (EV_IRQ check, stepping, AC).
 */
void cpu_set_rflags(struct vcpu *v, u64 val, u64 mask);
/* What waits for IF is put aside while IF is 0, inside a run; and is an event again. cpu_set_rflags() does the latter
 * when IF becomes 1, and whoever sets IF without it must. */
static inline void cpu_hold_events(struct vcpu *v, u32 ev)
{
	ev &= EV_IRQ | EV_WINDOW;
	if (ev && !(v->rflags & FLAGS_IF)) {
		atomic_fetch_and(&v->events, ~ev);
		v->held |= ev;
	}
}
static inline void cpu_release_events(struct vcpu *v)
{
	if (v->held) {
		atomic_fetch_or(&v->events, v->held);
		v->held = 0;
	}
}
/* Stores to CR0/CR3/CR4/EFER without checks, with all the consequences (TLB flush, mode switch). For ioctls. */
void cpu_set_crs(struct vcpu *v, u64 cr0, u64 cr3, u64 cr4, u64 efer);

/* vcpu->code_key of such a state. */
static inline u32 cpu_code_key(unsigned mode, unsigned dmode, unsigned cpl, bool stack_is_32)
{
	return mode | dmode << 3 | (u32)(cpl == 3) << 5 | (u32)stack_is_32 << 6;
}

/* ---- seg.c: segment loads, far control transfers, call gates, task switches -------------------------------------- */

/* The bounds of plain accesses (struct seg) follow from the segment's descriptor and the mode. After every change. */
void seg_derive(struct vcpu *v, unsigned n);
/* Linear address of a data access, with limit, type and canonical checks. Slow path of vmem.h. STEP_OK or STEP_EXCP. */
int seg_linear_slow(struct vcpu *v, unsigned n, u64 ea, unsigned size, unsigned access, gva_t *gva);
/* MOV/POP/LxS to a segment register, LLDT, LTR. */
int seg_load(struct vcpu *v, unsigned n, u16 sel);
/* JMP FAR, CALL FAR, RETF, IRET: do everything (RIP included) and return STEP_JUMP, or STEP_EXCP. `osize` in bytes. */
int far_jmp(struct vcpu *v, u16 sel, u64 off, unsigned osize, u64 next_rip);
int far_call(struct vcpu *v, u16 sel, u64 off, unsigned osize, u64 next_rip);
int far_ret(struct vcpu *v, unsigned osize, unsigned pop);
int far_iret(struct vcpu *v, unsigned osize, u64 next_rip);
/* SYSCALL and the like: CS becomes flat code of privilege `dpl`, SS flat data; the selectors are given. The caller
 * calls cpu_update_mode() afterwards. */
void seg_set_flat_cs(struct vcpu *v, u16 sel, unsigned dpl, bool long_mode);
void seg_set_flat_ss(struct vcpu *v, u16 sel, unsigned dpl);
/* The I/O permission check of IN/OUT (IOPL, TSS bitmap). STEP_OK or STEP_EXCP (#GP). */
int io_permitted(struct vcpu *v, u16 port, unsigned size);

/* ---- task.c ------------------------------------------------------------------------------------------------------ */
enum task_why { TASK_JMP, TASK_CALL, TASK_IRET, TASK_GATE };
int task_switch(struct vcpu *v, u16 sel, enum task_why why, bool has_error, u32 error, u64 next_rip);

/* ---- excp.c: raising and delivering ------------------------------------------------------------------------------ */

int excp_raise(struct vcpu *v, u8 vector);                /* fault without an error code; returns STEP_EXCP */
int excp_raise_err(struct vcpu *v, u8 vector, u32 error); /* with one */
int excp_page_fault(struct vcpu *v);                      /* from mmu.fault */
/* #DB trap after the current instruction: bits for DR6. */
void excp_pend_db(struct vcpu *v, u64 dr6_bits);
/* EV_TRAP: delivers the pending #DB traps between instructions. As excp_deliver(). */
int excp_take_db(struct vcpu *v);
/* INT n, INT3, INTO, ICEBP: delivers; STEP_JUMP, STEP_EXCP or STEP_EXIT. */
int excp_soft_int(struct vcpu *v, enum event_kind kind, u8 vector, u64 next_rip);
/* INT n in virtual-8086 mode with CR4.VME: does the TSS send it to the 8086 program's own handler? And that way. */
int excp_redirected(struct vcpu *v, u8 vector, bool *redirect);
int excp_redirect(struct vcpu *v, u8 vector, u64 next_rip);
/* Delivers v->excp: contributory and double faults, triple fault (STEP_EXIT, EXIT_SHUTDOWN). STEP_JUMP when delivered.
 */
int excp_deliver(struct vcpu *v);
/* Delivers an external interrupt or NMI between instructions. As excp_deliver(). */
int excp_interrupt(struct vcpu *v, u8 vector);
int excp_nmi(struct vcpu *v);
bool nmi_collect(struct vcpu *v); /* whether one is pending */
/* We cannot go on: fills v->exit with EXIT_INTERNAL; returns STEP_EXIT. */
int cpu_internal_error(struct vcpu *v, const char *why);

/* ---- cr.c -------------------------------------------------------------------------------------------------------- */
int cr_read(struct vcpu *v, unsigned n, u64 *val); /* #UD for CRs that are not there */
int cr_write(struct vcpu *v, unsigned n,
             u64 val); /* all checks; STEP_OK, STEP_JUMP (mode or mapping changed) or STEP_EXCP */
int xcr_write(struct vcpu *v, u32 n, u64 val);

/* ---- msr.c ------------------------------------------------------------------------------------------------------- */
/* Architectural access; returns 0, or -1 for #GP. `host`: from an ioctl, skips guest-only checks. */
int msr_read(struct vcpu *v, u32 msr, u64 *val);
int msr_read_model(struct vcpu *v, u32 msr, u64 *val); /* what ops->msr_read() passed on */
int msr_write(struct vcpu *v, u32 msr, u64 val, bool host);
u64 tsc_read(const struct vcpu *v);

/* ---- cpuid.c: what the model processor offers -------------------------------------------------------------------- */
/* The leaf as this processor offers it: implemented and present on the host. */
void cpuid_leaf(u32 leaf, u32 subleaf, u32 out[4]);
/* The same as this vCPU sees it now: OSXSAVE and the XSAVE sizes follow CR4 and XCR0. */
void cpuid_vcpu(const struct vcpu *v, u32 leaf, u32 subleaf, u32 out[4]);
/* True when the instruction set of Zydis' ISA set number may be used by the guest. */
bool cpuid_has_isa(u16 zydis_isa_set);
bool cpuid_is_amd(void); /* vendor rules (SYSENTER in long mode, ...) follow the host's vendor */
/* CR4 and EFER bits that may be one. */
u64 cpuid_cr4_mask(void);
u64 cpuid_efer_mask(void);
u64 cpuid_xcr0_mask(void);
/* XCR0 as somebody wants it who asked an instruction of the host (XGETBV, CPUID), where no ioctl of ours answers: the
 * bits of AVX-512 are left off where the host has them. No guest has, so nobody can use that state. */
u64 cpuid_xcr0_wanted(u64 val);

/* ---- fpu.c ------------------------------------------------------------------------------------------------------- */
void fpu_reset(struct fpu *f);

/* ---- dbg.c: debug registers, single-step, the client's breakpoints ----------------------------------------------- */
/* Before an instruction: execution breakpoints. STEP_OK, STEP_EXCP (#DB fault) or STEP_EXIT (client's). */
int dbg_before(struct vcpu *v);
/* After one: TF trap, data watches. `tf`: TF was set before the instruction. STEP_OK, STEP_EXIT; pends #DB. */
int dbg_after(struct vcpu *v, bool tf);
/* After an instruction that was completed outside the loop: is dbg_after() to be called? */
static inline bool dbg_wants_after(const struct vcpu *v)
{
	return v->stepping || v->mmu.watch_hit;
}
/* I/O breakpoints (CR4.DE): pends #DB when [port, port + size) is watched. */
void dbg_io(struct vcpu *v, u16 port, unsigned size);
/* Reprograms mmu watches and v->stepping from DR7 and gdbg. */
void dbg_update(struct vcpu *v);
/* A #DB or #BP about to be delivered: true when the client's debugging takes it (v->exit filled). */
bool dbg_intercept(struct vcpu *v, const struct event *e);

#endif
