/*
 * segint.h: what the files of src/cpu share of segments, and light.c with op_flow.c and op_flag.c: descriptors in
 * memory, segment checks, stacks in the making, what SYSCALL and IRET make of RFLAGS. Inline functions here use no
 * vector registers, and call nothing that does: light.c.
 *
 * A struct stack is a stack that is not committed yet: pushes go to memory, RSP and SS change only in the caller's
 * commit, so that a fault half-way leaves the registers alone.
 */
#ifndef DEVKVM_CPU_SEGINT_H
#define DEVKVM_CPU_SEGINT_H

#include "cpu.h"
#include "vmem.h"

#define LIMIT_4G 0xffffffffu

static inline bool sel_is_null(u16 sel)
{
	return (sel & ~3u) == 0;
}

static inline bool cpu_lma(const struct vcpu *v)
{
	return v->efer & EFER_LMA;
}

/* Context of explicit data accesses at privilege `cpl` under `rflags`. */
static inline enum tlb_ctx ctx_with(const struct vcpu *v, unsigned cpl, u64 rflags)
{
	if (cpl == 3)
		return unlikely((v->cr0 & CR0_AM) && (rflags & FLAGS_AC)) ? TLB_USER_AC : TLB_USER;
	return v->mmu.smap && (rflags & FLAGS_AC) ? TLB_SUPER_AC : TLB_SUPER;
}

/* Context of stack accesses at privilege `cpl` with the current RFLAGS.AC. */
static inline enum tlb_ctx ctx_of_cpl(const struct vcpu *v, unsigned cpl)
{
	return ctx_with(v, cpl, v->rflags);
}

/* RFLAGS bits that an IRET at this CPL and IOPL may change; POPF the same but for RF. */
static inline u64 flags_open(const struct vcpu *v, unsigned osize)
{
	u64 mask = FLAGS_ARITH | FLAGS_TF | FLAGS_DF | FLAGS_NT;
	unsigned iopl = (v->rflags & FLAGS_IOPL) >> FLAGS_IOPL_SHIFT;

	if (osize > 2)
		mask |= FLAGS_RF | FLAGS_AC | FLAGS_ID;
	if (v->cpl <= iopl)
		mask |= FLAGS_IF;
	if (v->cpl == 0)
		mask |= FLAGS_IOPL | (osize > 2 ? FLAGS_VIF | FLAGS_VIP : 0);
	return mask;
}

/* What SYSCALL makes of RFLAGS in long mode; the bits of R11 that SYSRET takes. */
static inline u64 syscall_flags(const struct vcpu *v, u64 flags)
{
	return (flags & ~(v->sfmask | FLAGS_RF | FLAGS_VM)) | FLAGS_FIXED;
}
#define SYSRET_FLAGS (FLAGS_ALL & ~(FLAGS_RF | FLAGS_VM))

/* CS and SS by IA32_STAR, as seg_set_flat_cs(): of SYSCALL's handler, and of the program that SYSRET goes back to. */
static inline void syscall_segments(struct vcpu *v, bool long_mode)
{
	u16 sel = (u16)(v->star >> 32) & 0xfffc;

	seg_set_flat_cs(v, sel, 0, long_mode);
	seg_set_flat_ss(v, (u16)(sel + 8), 0);
}

static inline void sysret_segments(struct vcpu *v, bool long_mode)
{
	u16 sel = (u16)(v->star >> 48);

	seg_set_flat_cs(v, (u16)((long_mode ? sel + 16 : sel) | 3), 3, long_mode);
	seg_set_flat_ss(v, (u16)((sel + 8) | 3), 3);
}

static inline int gp_sel(struct vcpu *v, u16 sel)
{
	return excp_raise_err(v, EXC_GP, sel & 0xfffcu);
}

/* The descriptor of `sel`; #vec(sel) when it lies outside its table or there is no LDT. */
int desc_read(struct vcpu *v, u16 sel, u8 vec, u64 *raw);
/* The same, unpacked; a null selector is #vec(0). */
int desc_fetch(struct vcpu *v, u16 sel, u8 vec, struct seg *s);
/* Upper half of a 16-byte system descriptor; its type field must be 0, else #vec(sel). */
int desc_read_high(struct vcpu *v, u16 sel, u8 vec, u64 *high);
/* Atomically sets or clears bits of the access byte in memory: accessed, busy. */
int desc_set_access(struct vcpu *v, u16 sel, u8 set, u8 clear);
/* The accessed bit of a code or data descriptor, in memory and in `s`. */
int desc_mark_accessed(struct vcpu *v, u16 sel, struct seg *s);
void desc_unpack(u64 raw, u16 sel, struct seg *s);

static inline bool seg_is_code(const struct seg *s)
{
	return s->s && (s->type & SEGT_CODE);
}
static inline bool seg_is_conforming(const struct seg *s)
{
	return seg_is_code(s) && (s->type & SEGT_C);
}
static inline bool seg_is_writable_data(const struct seg *s)
{
	return s->s && !(s->type & SEGT_CODE) && (s->type & SEGT_W);
}

/* The segment as a null selector leaves it. */
void seg_make_null(struct seg *s, u16 sel, unsigned dpl);
/* As virtual-8086 mode has it. */
void seg_make_v86(struct seg *s, u16 sel);
/* After a return to an outer ring: data segments the new CPL may not use become null. */
void seg_drop_inner(struct vcpu *v, unsigned cpl);
/* Reads and checks a stack segment for privilege `cpl`: #vec(sel) for a bad one, #SS(sel) for one not present. The
 * accessed bit is set. */
int seg_fetch_ss(struct vcpu *v, u16 sel, unsigned cpl, u8 vec, struct seg *out);
/* The same for a data segment that code at privilege `cpl` loads; #NP(sel) for one not present. */
int seg_fetch_data(struct vcpu *v, u16 sel, unsigned cpl, u8 vec, struct seg *out);
/* The code segment that a gate names: #GP(sel) when the gate cannot lead there. Whether it is present is the caller's
 * to check. */
int seg_fetch_gate_cs(struct vcpu *v, u16 sel, struct seg *cs);
/* The new RIP must lie in `cs` (limit, or canonical when it is a 64-bit segment); else #GP(0). */
int seg_check_rip(struct vcpu *v, const struct seg *cs, u64 rip);
/* Makes `cs` the code segment, its RPL the new CPL, and sets RIP. cpu_update_mode() is the caller's. */
void seg_commit_cs(struct vcpu *v, const struct seg *cs, unsigned cpl, u64 rip);

struct stack {
	struct seg ss;
	u64 sp;
	u64 mask; /* of the stack pointer: 16 bits, 32 bits, all */
	u8 ctx;   /* enum tlb_ctx */
	bool is64;
	u16 err; /* selector for the #SS of a limit violation */
};

/* The current stack. */
void stack_begin(const struct vcpu *v, struct stack *st);
/* A new one outside 64-bit mode. */
void stack_begin_new(const struct vcpu *v, struct stack *st, const struct seg *ss, u64 sp, unsigned cpl);
int st_push(struct vcpu *v, struct stack *st, u64 val, unsigned size);
/* Reads at offset `off` from the stack pointer. */
int st_peek(struct vcpu *v, const struct stack *st, unsigned off, u64 *val, unsigned size);
/* Moves the uncommitted pointer up. */
void st_drop(struct stack *st, u64 bytes);
/* RSP from the uncommitted pointer: the bits the stack width covers. */
void st_commit_sp(struct vcpu *v, const struct stack *st);

/* Inner stack from the current TSS: SS:ESP of ring `cpl` (16 and 32-bit TSS), or RSP number `which` of a 64-bit TSS
 * (0..2: RSPn; 3 + n, n from 1: ISTn). */
int tss_stack(struct vcpu *v, unsigned cpl, u16 *ss, u32 *esp);
int tss_rsp(struct vcpu *v, unsigned which, u64 *rsp);

#endif
