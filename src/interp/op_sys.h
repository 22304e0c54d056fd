/*
 * op_sys.h: the find functions of the files that op_sys.c is split into.
 */
#ifndef DEVKVM_INTERP_OP_SYS_H
#define DEVKVM_INTERP_OP_SYS_H

#include "interp_impl.h"

insn_fn op_seg_find(const struct insn *i);  /* segment registers, descriptor tables, LAR and the like */
insn_fn op_flag_find(const struct insn *i); /* PUSHF, POPF, CLI, STI, CLAC, STAC */

/* Done, and the block must end here: what comes next may run in another mode, or with interrupts open. */
static inline int step_end(struct vcpu *v, const struct insn *i)
{
	v->r[R_RIP] += i->len;
	return STEP_JUMP;
}

/* #GP(0) unless at CPL 0. */
static inline int need_cpl0(struct vcpu *v)
{
	return likely(v->cpl == 0) ? STEP_OK : excp_raise_err(v, EXC_GP, 0);
}

/* CR4.UMIP: SGDT, SIDT, SLDT, SMSW and STR only at CPL 0. */
static inline int umip_ok(struct vcpu *v)
{
	return v->cpl && (v->cr4 & CR4_UMIP) ? excp_raise_err(v, EXC_GP, 0) : STEP_OK;
}

#endif
