/*
 * op_flag.c: RFLAGS as a whole, the interrupt flag, AC: PUSHF POPF CLI STI CLAC STAC.
 *
 * CR4.VME and CR4.PVI (SDM vol. 3, 21.3 and 21.4): where IOPL refuses IF, VIF stands in for it.
 */
#include "../cpu/segint.h"
#include "op_sys.h"

#define FN(name) static int name(struct vcpu *v, const struct insn *i)

static unsigned iopl(const struct vcpu *v)
{
	return (v->rflags & FLAGS_IOPL) >> FLAGS_IOPL_SHIFT;
}

static bool v86_trapped(const struct vcpu *v)
{
	return v->mode == MODE_V86 && iopl(v) != 3;
}

/* PUSHF and POPF of virtual-8086 code below IOPL 3, with 16-bit operands. */
static int pushf_vme(struct vcpu *v)
{
	u64 val = v->rflags & ~(FLAGS_IF | FLAGS_VM | FLAGS_RF);

	return stack_push(v, val | FLAGS_IOPL | (v->rflags & FLAGS_VIF ? FLAGS_IF : 0), 2);
}

static int popf_vme(struct vcpu *v, const struct insn *i)
{
	u64 val, rsp = v->r[R_RSP];
	int rc = stack_pop(v, &val, 2);

	if (rc != STEP_OK)
		return rc;
	if ((val & FLAGS_TF) || ((val & FLAGS_IF) && (v->rflags & FLAGS_VIP))) {
		v->r[R_RSP] = rsp;
		return excp_raise_err(v, EXC_GP, 0);
	}
	val = (val & ~FLAGS_VIF) | (val & FLAGS_IF ? FLAGS_VIF : 0);
	cpu_set_rflags(v, val, FLAGS_ARITH | FLAGS_TF | FLAGS_DF | FLAGS_NT | FLAGS_VIF);
	return step_end(v, i);
}

FN(pushf)
{
	if (v86_trapped(v))
		return (v->cr4 & CR4_VME) && i->osize == 2 ? pushf_vme(v) : excp_raise_err(v, EXC_GP, 0);
	return stack_push(v, v->rflags & ~(FLAGS_VM | FLAGS_RF), i->osize);
}

FN(popf)
{
	u64 val, old = v->rflags;
	int rc;

	if (v86_trapped(v))
		return (v->cr4 & CR4_VME) && i->osize == 2 ? popf_vme(v, i) : excp_raise_err(v, EXC_GP, 0);
	rc = stack_pop(v, &val, i->osize);
	if (rc != STEP_OK)
		return rc;
	/* VIP and VIF are cleared, whatever the image says. */
	cpu_set_rflags(v, val & ~(FLAGS_VIF | FLAGS_VIP), flags_open(v, i->osize) & ~(u64)FLAGS_RF);
	return (old ^ v->rflags) & (FLAGS_IF | FLAGS_TF | FLAGS_AC) ? step_end(v, i) : STEP_OK;
}

static int if_allowed(struct vcpu *v)
{
	return v->cpl <= iopl(v) ? STEP_OK : excp_raise_err(v, EXC_GP, 0);
}

/* CLI and STI act on VIF. */
static bool virtual_if(const struct vcpu *v)
{
	if (v->cpl <= iopl(v))
		return false;
	return v->mode == MODE_V86 ? v->cr4 & CR4_VME : v->cpl == 3 && (v->cr4 & CR4_PVI);
}

FN(cli)
{
	int rc;

	if (unlikely(virtual_if(v))) {
		v->rflags &= ~FLAGS_VIF;
		return STEP_OK;
	}
	rc = if_allowed(v);
	if (rc == STEP_OK)
		v->rflags &= ~FLAGS_IF;
	return rc;
}

/* Interrupts stay out for one more instruction when IF was 0 (SDM vol. 3, 6.8.3). */
FN(sti)
{
	int rc;

	if (unlikely(virtual_if(v))) {
		if (v->rflags & FLAGS_VIP)
			return excp_raise_err(v, EXC_GP, 0);
		v->rflags |= FLAGS_VIF;
		return STEP_OK;
	}
	rc = if_allowed(v);
	if (rc != STEP_OK)
		return rc;
	if (!(v->rflags & FLAGS_IF)) {
		cpu_set_rflags(v, FLAGS_IF, FLAGS_IF);
		v->shadow = SHADOW_STI;
		atomic_fetch_or(&v->events, (u32)EV_SHADOW);
	}
	return step_end(v, i);
}

FN(set_ac)
{
	if (v->cpl != 0)
		return excp_raise(v, EXC_UD);
	if (i->mnemonic == ZYDIS_MNEMONIC_STAC)
		v->rflags |= FLAGS_AC;
	else
		v->rflags &= ~FLAGS_AC;
	cpu_update_flags(v);
	return STEP_OK;
}

insn_fn op_flag_find(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_PUSHF:
	case ZYDIS_MNEMONIC_PUSHFD:
	case ZYDIS_MNEMONIC_PUSHFQ:
		return pushf;
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ:
		return popf;
	case ZYDIS_MNEMONIC_CLI:
		return cli;
	case ZYDIS_MNEMONIC_STI:
		return sti;
	case ZYDIS_MNEMONIC_CLAC:
	case ZYDIS_MNEMONIC_STAC:
		return set_ac;
	default:
		return NULL;
	}
}
