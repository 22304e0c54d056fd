/*
 * op_stack.c: the stack in its three widths: stack_push() and friends (op_flow.c uses them too), PUSH POP PUSHA POPA
 * ENTER LEAVE.
 *
 * The stack pointer is 64 bits wide in 64-bit mode, else 32 or 16 as SS.B says, and wraps at its width. RSP changes
 * only after the last access that can fault.
 */
#include "interp_impl.h"

#define FN(name) static int name(struct vcpu *v, const struct insn *i)

static inline u64 sp_mask(const struct vcpu *v)
{
	return v->mode == MODE_64 ? ~0ull : v->stack_is_32 ? 0xffffffffu : 0xffff;
}

void stack_set_sp(struct vcpu *v, u64 sp)
{
	if (likely(v->mode == MODE_64))
		v->r[R_RSP] = sp;
	else if (v->stack_is_32)
		v->r[R_RSP] = (u32)sp;
	else
		put_reg(v, R_RSP, 2, sp);
}

int stack_push(struct vcpu *v, u64 val, unsigned size)
{
	u64 sp = (v->r[R_RSP] - size) & sp_mask(v);
	int rc = write_sized(v, SEG_SS, sp, size, val);

	if (likely(rc == STEP_OK))
		stack_set_sp(v, sp);
	return rc;
}

int stack_pop(struct vcpu *v, u64 *val, unsigned size)
{
	int rc = read_sized(v, SEG_SS, v->r[R_RSP] & sp_mask(v), size, val);

	if (likely(rc == STEP_OK))
		stack_set_sp(v, v->r[R_RSP] + size);
	return rc;
}

/* ---- PUSH, POP -------------------------------------------------------------------------------------------------- */

FN(push_r)
{
	return stack_push(v, v->r[i->op[0].reg], i->osize);
}

FN(push_i)
{
	return stack_push(v, i->imm, i->osize);
}

/* 64-bit operand: the only size of 64-bit code that matters for speed. */
FN(push_r8)
{
	u64 x = v->r[i->op[0].reg], sp = v->r[R_RSP] - 8;
	int rc = v_write(v, SEG_SS, sp, &x, 8);

	if (likely(rc == STEP_OK))
		v->r[R_RSP] = sp;
	return rc;
}

FN(pop_r8)
{
	u64 x, sp = v->r[R_RSP];
	int rc = v_read(v, SEG_SS, sp, &x, 8);

	if (likely(rc == STEP_OK)) {
		v->r[R_RSP] = sp + 8;
		v->r[i->op[0].reg] = x; /* POP RSP: the value wins */
	}
	return rc;
}

FN(push_m)
{
	u64 x;
	int rc = read_sized(v, i->seg, insn_ea(v, i), i->osize, &x);

	return rc == STEP_OK ? stack_push(v, x, i->osize) : rc;
}

FN(pop_r)
{
	u64 x;
	int rc = stack_pop(v, &x, i->osize);

	if (rc == STEP_OK)
		put_reg(v, i->op[0].reg, i->osize, x);
	return rc;
}

/* The address of POP mem is computed with the incremented stack pointer. */
FN(pop_m)
{
	u64 x, old = v->r[R_RSP];
	int rc = stack_pop(v, &x, i->osize);

	if (rc != STEP_OK)
		return rc;
	rc = write_sized(v, i->seg, insn_ea(v, i), i->osize, x);
	if (rc != STEP_OK)
		v->r[R_RSP] = old;
	return rc;
}

FN(pusha)
{
	u64 mask = sp_mask(v), sp = v->r[R_RSP];
	unsigned size = i->osize;

	for (unsigned n = 0; n < 8; n++) {
		int rc;

		sp = (sp - size) & mask;
		rc = write_sized(v, SEG_SS, sp, size, v->r[n]);
		if (rc != STEP_OK)
			return rc;
	}
	stack_set_sp(v, sp);
	return STEP_OK;
}

FN(popa)
{
	u64 mask = sp_mask(v), sp = v->r[R_RSP] & mask, val[8];
	unsigned size = i->osize;

	for (unsigned n = 0; n < 8; n++) {
		int rc = read_sized(v, SEG_SS, sp, size, &val[n]);

		if (rc != STEP_OK)
			return rc;
		sp = (sp + size) & mask;
	}
	for (unsigned n = 0; n < 8; n++)
		if (7 - n != R_RSP)
			put_reg(v, 7 - n, size, val[n]);
	stack_set_sp(v, sp);
	return STEP_OK;
}

/* ---- ENTER, LEAVE ----------------------------------------------------------------------------------------------- */

FN(enter)
{
	u64 mask = sp_mask(v), sp = (v->r[R_RSP] - i->osize) & mask, bp = v->r[R_RBP], frame, x;
	unsigned size = i->osize, level = i->imm2 & 31;
	gva_t gva;
	int rc = write_sized(v, SEG_SS, sp, size, bp);

	if (rc != STEP_OK)
		return rc;
	frame = sp;
	if (level) {
		for (unsigned n = 1; n < level; n++) {
			bp = (bp - size) & mask;
			rc = read_sized(v, SEG_SS, bp, size, &x);
			if (rc != STEP_OK)
				return rc;
			sp = (sp - size) & mask;
			rc = write_sized(v, SEG_SS, sp, size, x);
			if (rc != STEP_OK)
				return rc;
		}
		sp = (sp - size) & mask;
		rc = write_sized(v, SEG_SS, sp, size, frame);
		if (rc != STEP_OK)
			return rc;
	}
	sp = (sp - (u16)i->imm) & mask;
	/* The new top of the stack must be writable, though nothing is written. */
	rc = v_linear(v, SEG_SS, sp, size, MEM_WRITE, &gva);
	if (rc != STEP_OK)
		return rc;
	rc = mem_probe(&v->mmu, gva, size, MEM_WRITE, v->mmu.ctx);
	if (rc != MEM_OK)
		return vmem_fail(v, rc);
	put_reg(v, R_RBP, size, frame);
	stack_set_sp(v, sp);
	return STEP_OK;
}

FN(leave)
{
	u64 mask = sp_mask(v), sp = v->r[R_RBP] & mask, x;
	int rc = read_sized(v, SEG_SS, sp, i->osize, &x);

	if (rc != STEP_OK)
		return rc;
	stack_set_sp(v, (sp + i->osize) & mask);
	put_reg(v, R_RBP, i->osize, x);
	return STEP_OK;
}

insn_fn op_stack_find(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_PUSH:
		if (i->op[0].kind == OPK_MEM)
			return push_m;
		if (i->op[0].kind == OPK_IMM)
			return push_i;
		if (i->op[0].kind == OPK_GPR)
			return i->osize == 8 ? push_r8 : push_r;
		return NULL;
	case ZYDIS_MNEMONIC_POP:
		if (i->op[0].kind == OPK_MEM)
			return pop_m;
		if (i->op[0].kind == OPK_GPR)
			return i->osize == 8 ? pop_r8 : pop_r;
		return NULL;
	case ZYDIS_MNEMONIC_PUSHA:
	case ZYDIS_MNEMONIC_PUSHAD:
		return pusha;
	case ZYDIS_MNEMONIC_POPA:
	case ZYDIS_MNEMONIC_POPAD:
		return popa;
	case ZYDIS_MNEMONIC_ENTER:
		return enter;
	case ZYDIS_MNEMONIC_LEAVE:
		return leave;
	default:
		return NULL;
	}
}
