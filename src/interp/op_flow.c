/*
 * op_flow.c: control transfers. Near ones in full; far ones, interrupts and the SYSCALL family as far as the
 * instruction itself goes (cpu/far.c and cpu/excp.c do the rest).
 *
 * A transfer checks its target before anything changes: CS limit (#GP(0)), or canonical in 64-bit mode. A 64-bit
 * operand size means 64-bit mode; the handlers named ..._64 rely on it. With AMD's rules a 66 prefix truncates RIP in
 * 64-bit mode too; the decoder has settled that in osize. SDM vol. 2; APM vol. 3.
 */
#include "../cpu/segint.h"
#include "interp_impl.h"

#define FN(name) static int name(struct vcpu *v, const struct insn *i)

static inline u64 next_rip(const struct vcpu *v, const struct insn *i)
{
	u64 rip = v->r[R_RIP] + i->len;

	return v->mode == MODE_64 ? rip : (u32)rip;
}

static int gp0(struct vcpu *v)
{
	return excp_raise_err(v, EXC_GP, 0);
}

static inline bool target_ok(const struct vcpu *v, u64 rip)
{
	return v->mode == MODE_64 ? is_canonical(rip) : rip <= v->seg[SEG_CS].limit;
}

static int jump_near(struct vcpu *v, u64 rip)
{
	if (!target_ok(v, rip))
		return gp0(v);
	v->r[R_RIP] = rip;
	return STEP_JUMP;
}

/* Target of a relative branch. */
static inline u64 rel_target(const struct vcpu *v, const struct insn *i)
{
	return (v->r[R_RIP] + i->len + i->imm) & size_mask(i->osize);
}

static inline int jump_64(struct vcpu *v, const struct insn *i)
{
	u64 rip = v->r[R_RIP] + i->len + i->imm;

	if (unlikely(!is_canonical(rip)))
		return gp0(v);
	v->r[R_RIP] = rip;
	return STEP_JUMP;
}

/* ---- Jcc -------------------------------------------------------------------------------------------------------- */

/* Not taken is STEP_OK: the loop falls through. */
#define JCC(name, cond)                                                                                                \
	FN(name##_64)                                                                                                  \
	{                                                                                                              \
		u64 f = v->rflags;                                                                                     \
                                                                                                                       \
		return (cond) ? jump_64(v, i) : STEP_OK;                                                               \
	}                                                                                                              \
	FN(name##_n)                                                                                                   \
	{                                                                                                              \
		u64 f = v->rflags;                                                                                     \
                                                                                                                       \
		return (cond) ? jump_near(v, rel_target(v, i)) : STEP_OK;                                              \
	}

#define SF_NE_OF ((f ^ f >> 4) & FLAGS_SF)

JCC(jo, f &FLAGS_OF)
JCC(jno, !(f & FLAGS_OF))
JCC(jb, f &FLAGS_CF)
JCC(jnb, !(f & FLAGS_CF))
JCC(jz, f &FLAGS_ZF)
JCC(jnz, !(f & FLAGS_ZF))
JCC(jbe, f &(FLAGS_CF | FLAGS_ZF))
JCC(jnbe, !(f & (FLAGS_CF | FLAGS_ZF)))
JCC(js, f &FLAGS_SF)
JCC(jns, !(f & FLAGS_SF))
JCC(jp, f &FLAGS_PF)
JCC(jnp, !(f & FLAGS_PF))
JCC(jl, SF_NE_OF)
JCC(jnl, !SF_NE_OF)
JCC(jle, SF_NE_OF || (f & FLAGS_ZF))
JCC(jnle, !(SF_NE_OF || (f & FLAGS_ZF)))

#define ROW(name)                                                                                                      \
	{                                                                                                              \
		name##_n, name##_64                                                                                    \
	}
static const insn_fn jcc[16][2] = {ROW(jo), ROW(jno), ROW(jb), ROW(jnb), ROW(jz), ROW(jnz), ROW(jbe), ROW(jnbe),
                                   ROW(js), ROW(jns), ROW(jp), ROW(jnp), ROW(jl), ROW(jnl), ROW(jle), ROW(jnle)};

/* LOOPcc and JCXZ count in CX, ECX or RCX by address size. */
FN(loopcc)
{
	u64 count = (v->r[R_RCX] - 1) & size_mask(i->asize), rip = rel_target(v, i);
	bool taken = count != 0;

	if (i->mnemonic == ZYDIS_MNEMONIC_LOOPE)
		taken = taken && (v->rflags & FLAGS_ZF);
	else if (i->mnemonic == ZYDIS_MNEMONIC_LOOPNE)
		taken = taken && !(v->rflags & FLAGS_ZF);
	if (taken && !target_ok(v, rip))
		return gp0(v);
	put_reg(v, R_RCX, i->asize, count);
	if (!taken)
		return STEP_OK;
	v->r[R_RIP] = rip;
	return STEP_JUMP;
}

FN(jcxz)
{
	return v->r[R_RCX] & size_mask(i->asize) ? STEP_OK : jump_near(v, rel_target(v, i));
}

/* ---- near JMP, CALL, RET ---------------------------------------------------------------------------------------- */

FN(jmp_rel)
{
	return jump_near(v, rel_target(v, i));
}

FN(jmp_rm)
{
	u64 rip;
	int rc = read_rm(v, i, 0, i->osize, &rip);

	return rc == STEP_OK ? jump_near(v, rip) : rc;
}

FN(jmp_r64)
{
	return jump_near(v, v->r[i->op[0].reg]);
}

static int call_near(struct vcpu *v, const struct insn *i, u64 rip)
{
	int rc;

	if (!target_ok(v, rip))
		return gp0(v);
	rc = stack_push(v, next_rip(v, i), i->osize);
	if (rc != STEP_OK)
		return rc;
	v->r[R_RIP] = rip;
	return STEP_JUMP;
}

static inline int call_64(struct vcpu *v, const struct insn *i, u64 rip)
{
	u64 next = v->r[R_RIP] + i->len, sp = v->r[R_RSP] - 8;
	int rc;

	if (unlikely(!is_canonical(rip)))
		return gp0(v);
	rc = v_write(v, SEG_SS, sp, &next, 8);
	if (unlikely(rc != STEP_OK))
		return rc;
	v->r[R_RSP] = sp;
	v->r[R_RIP] = rip;
	return STEP_JUMP;
}

FN(call_rel)
{
	return call_near(v, i, rel_target(v, i));
}

FN(call_rel64)
{
	return call_64(v, i, v->r[R_RIP] + i->len + i->imm);
}

FN(call_rm)
{
	u64 rip;
	int rc = read_rm(v, i, 0, i->osize, &rip);

	return rc == STEP_OK ? call_near(v, i, rip) : rc;
}

FN(call_r64)
{
	return call_64(v, i, v->r[i->op[0].reg]);
}

FN(call_m64)
{
	u64 rip;
	int rc = v_read(v, i->seg, insn_ea(v, i), &rip, 8);

	return rc == STEP_OK ? call_64(v, i, rip) : rc;
}

FN(ret_near)
{
	u64 rip, old = v->r[R_RSP];
	int rc = stack_pop(v, &rip, i->osize);

	if (rc != STEP_OK)
		return rc;
	if (!target_ok(v, rip)) {
		v->r[R_RSP] = old;
		return gp0(v);
	}
	stack_set_sp(v, v->r[R_RSP] + (u16)i->imm);
	v->r[R_RIP] = rip;
	return STEP_JUMP;
}

FN(ret_64)
{
	u64 rip, sp = v->r[R_RSP];
	int rc = v_read(v, SEG_SS, sp, &rip, 8);

	if (unlikely(rc != STEP_OK))
		return rc;
	if (unlikely(!is_canonical(rip)))
		return gp0(v);
	v->r[R_RSP] = sp + 8;
	v->r[R_RIP] = rip;
	return STEP_JUMP;
}

/* ---- far JMP, CALL, RET, IRET ----------------------------------------------------------------------------------- */

/* AMD processors know no m16:64; REX.W is ignored (APM vol. 3, JMP far). */
static unsigned far_osize(const struct insn *i)
{
	return i->osize == 8 && cpuid_is_amd() ? 4 : i->osize;
}

/* The far pointer of the instruction, from its bytes or from memory. */
static int far_pointer(struct vcpu *v, const struct insn *i, unsigned osize, u16 *sel, u64 *off)
{
	u8 buf[10];
	int rc;

	*off = 0;
	if (i->op[0].kind == OPK_FAR) {
		*off = i->imm;
		*sel = i->imm2;
		return STEP_OK;
	}
	rc = v_read(v, i->seg, insn_ea(v, i), buf, osize + 2);
	if (rc != STEP_OK)
		return rc;
	memcpy(off, buf, osize);
	memcpy(sel, buf + osize, 2);
	return STEP_OK;
}

FN(jmp_far)
{
	unsigned osize = far_osize(i);
	u64 off;
	u16 sel;
	int rc = far_pointer(v, i, osize, &sel, &off);

	return rc == STEP_OK ? far_jmp(v, sel, off, osize, next_rip(v, i)) : rc;
}

FN(call_far)
{
	unsigned osize = far_osize(i);
	u64 off;
	u16 sel;
	int rc = far_pointer(v, i, osize, &sel, &off);

	return rc == STEP_OK ? far_call(v, sel, off, osize, next_rip(v, i)) : rc;
}

FN(ret_far)
{
	return far_ret(v, i->osize, (u16)i->imm);
}

FN(iret)
{
	return far_iret(v, i->osize, next_rip(v, i));
}

/* ---- interrupts ------------------------------------------------------------------------------------------------- */

FN(int_n)
{
	if (v->mode == MODE_V86 && (v->cr4 & CR4_VME)) {
		bool redirect;
		int rc = excp_redirected(v, (u8)i->imm, &redirect);

		if (rc != STEP_OK)
			return rc;
		if (redirect)
			return excp_redirect(v, (u8)i->imm, next_rip(v, i));
	}
	if (v->mode == MODE_V86 && (v->rflags & FLAGS_IOPL) != FLAGS_IOPL)
		return gp0(v);
	return excp_soft_int(v, EVENT_SOFT_INT, (u8)i->imm, next_rip(v, i));
}

FN(int3)
{
	return excp_soft_int(v, EVENT_INT3, EXC_BP, next_rip(v, i));
}

FN(into)
{
	if (!(v->rflags & FLAGS_OF))
		return STEP_OK;
	return excp_soft_int(v, EVENT_SOFT_INT, EXC_OF, next_rip(v, i));
}

FN(int1)
{
	return excp_soft_int(v, EVENT_ICEBP, EXC_DB, next_rip(v, i));
}

FN(bound)
{
	u64 ea = insn_ea(v, i);
	s32 low = 0, high = 0, at = (s32)v->r[i->op[0].reg];
	/* Two operands: alignment is that of one bound. */
	int rc = v_read(v, i->seg, ea, &low, i->osize);

	if (rc == STEP_OK)
		rc = v_read(v, i->seg, i->asize == 2 ? (u16)(ea + i->osize) : (u32)(ea + i->osize), &high, i->osize);
	if (rc != STEP_OK)
		return rc;
	if (i->osize == 2) {
		low = (s16)low;
		high = (s16)high;
		at = (s16)at;
	}
	return at < low || at > high ? excp_raise(v, EXC_BR) : STEP_OK;
}

FN(ud)
{
	return excp_raise(v, EXC_UD);
}

/* ---- SYSCALL, SYSRET, SYSENTER, SYSEXIT ------------------------------------------------------------------------- */

/* TF is judged by the new flags: a trap follows at once when they have it (SDM vol. 2, SYSCALL and SYSRET). */
static void settle_tf(struct vcpu *v)
{
	v->tf_done = true;
	if (v->rflags & FLAGS_TF)
		excp_pend_db(v, DR6_BS);
}

/* AMD lets compatibility and legacy mode use it; Intel only 64-bit mode. */
FN(syscall)
{
	bool lma = v->efer & EFER_LMA;
	u64 next = next_rip(v, i), flags = v->rflags;

	if (!(v->efer & EFER_SCE) || (v->mode != MODE_64 && (!v->amd_rules || v->mode == MODE_REAL)))
		return excp_raise(v, EXC_UD);
	v->r[R_RCX] = next;
	if (lma) {
		v->r[R_RIP] = v->mode == MODE_64 ? v->lstar : v->cstar;
		v->r[R_R11] = flags & ~FLAGS_RF;
		v->rflags = syscall_flags(v, flags);
	} else {
		v->r[R_RIP] = (u32)v->star;
		v->rflags = flags & ~(FLAGS_IF | FLAGS_RF | FLAGS_VM);
	}
	syscall_segments(v, lma);
	cpu_update_mode(v);
	settle_tf(v);
	return STEP_JUMP;
}

FN(sysret)
{
	bool lma = v->efer & EFER_LMA, wide = i->osize == 8;

	if (!(v->efer & EFER_SCE) || (v->mode != MODE_64 && (!v->amd_rules || v->mode == MODE_REAL)))
		return excp_raise(v, EXC_UD);
	if (v->cpl != 0 || v->mode == MODE_V86)
		return gp0(v);
	/* Intel faults here, in ring 0; AMD on the next fetch, in ring 3. */
	if (wide && !cpuid_is_amd() && !is_canonical(v->r[R_RCX]))
		return gp0(v);
	v->r[R_RIP] = wide ? v->r[R_RCX] : (u32)v->r[R_RCX];
	sysret_segments(v, wide);
	cpu_update_mode(v);
	if (lma)
		cpu_set_rflags(v, v->r[R_R11], SYSRET_FLAGS);
	else
		cpu_set_rflags(v, FLAGS_IF, FLAGS_IF);
	if (v->rflags & FLAGS_RF)
		cpu_set_rflags(v, 0, FLAGS_RF);
	if (lma)
		settle_tf(v);
	return STEP_JUMP;
}

FN(sysenter)
{
	bool lma = v->efer & EFER_LMA;
	u16 sel = (u16)v->sysenter_cs & 0xfffc;

	if (lma && !v->intel_rules)
		return excp_raise(v, EXC_UD);
	if (v->mode == MODE_REAL || !sel)
		return gp0(v);
	v->rflags &= ~(FLAGS_VM | FLAGS_IF | FLAGS_RF);
	v->r[R_RSP] = lma ? v->sysenter_esp : (u32)v->sysenter_esp;
	v->r[R_RIP] = lma ? v->sysenter_eip : (u32)v->sysenter_eip;
	seg_set_flat_cs(v, sel, 0, lma);
	seg_set_flat_ss(v, (u16)(sel + 8), 0);
	cpu_update_mode(v);
	return STEP_JUMP;
}

FN(sysexit)
{
	bool lma = v->efer & EFER_LMA, wide = i->osize == 8;
	u16 sel = (u16)v->sysenter_cs & 0xfffc;

	if (lma && !v->intel_rules)
		return excp_raise(v, EXC_UD);
	if (v->mode == MODE_REAL || v->cpl != 0 || !sel)
		return gp0(v);
	if (wide && (!is_canonical(v->r[R_RCX]) || !is_canonical(v->r[R_RDX])))
		return gp0(v);
	v->r[R_RSP] = wide ? v->r[R_RCX] : (u32)v->r[R_RCX];
	v->r[R_RIP] = wide ? v->r[R_RDX] : (u32)v->r[R_RDX];
	seg_set_flat_cs(v, (u16)((sel + (wide ? 32 : 16)) | 3), 3, wide);
	seg_set_flat_ss(v, (u16)((sel + (wide ? 40 : 24)) | 3), 3);
	cpu_update_mode(v);
	return STEP_JUMP;
}

/* ---- find ------------------------------------------------------------------------------------------------------- */

static insn_fn find_jmp(const struct insn *i)
{
	bool wide = i->osize == 8;

	switch (i->op[0].kind) {
	case OPK_REL:
		return wide ? jump_64 : jmp_rel;
	case OPK_FAR:
		return jmp_far;
	case OPK_GPR:
		return wide ? jmp_r64 : jmp_rm;
	default:
		return (i->modrm >> 3 & 7) == 5 ? jmp_far : jmp_rm;
	}
}

static insn_fn find_call(const struct insn *i)
{
	bool wide = i->osize == 8;

	switch (i->op[0].kind) {
	case OPK_REL:
		return wide ? call_rel64 : call_rel;
	case OPK_FAR:
		return call_far;
	case OPK_GPR:
		return wide ? call_r64 : call_rm;
	default:
		if ((i->modrm >> 3 & 7) == 3)
			return call_far;
		return wide ? call_m64 : call_rm;
	}
}

static insn_fn find_ret(const struct insn *i)
{
	if (i->opcode == 0xca || i->opcode == 0xcb)
		return ret_far;
	return i->osize == 8 && i->opcode == 0xc3 ? ret_64 : ret_near;
}

insn_fn op_flow_find(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_JO:
	case ZYDIS_MNEMONIC_JNO:
	case ZYDIS_MNEMONIC_JB:
	case ZYDIS_MNEMONIC_JNB:
	case ZYDIS_MNEMONIC_JZ:
	case ZYDIS_MNEMONIC_JNZ:
	case ZYDIS_MNEMONIC_JBE:
	case ZYDIS_MNEMONIC_JNBE:
	case ZYDIS_MNEMONIC_JS:
	case ZYDIS_MNEMONIC_JNS:
	case ZYDIS_MNEMONIC_JP:
	case ZYDIS_MNEMONIC_JNP:
	case ZYDIS_MNEMONIC_JL:
	case ZYDIS_MNEMONIC_JNL:
	case ZYDIS_MNEMONIC_JLE:
	case ZYDIS_MNEMONIC_JNLE:
		return jcc[i->opcode & 15][i->osize == 8];
	case ZYDIS_MNEMONIC_LOOP:
	case ZYDIS_MNEMONIC_LOOPE:
	case ZYDIS_MNEMONIC_LOOPNE:
		return loopcc;
	case ZYDIS_MNEMONIC_JCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
	case ZYDIS_MNEMONIC_JRCXZ:
		return jcxz;
	case ZYDIS_MNEMONIC_JMP:
		return find_jmp(i);
	case ZYDIS_MNEMONIC_CALL:
		return find_call(i);
	case ZYDIS_MNEMONIC_RET:
		return find_ret(i);
	case ZYDIS_MNEMONIC_IRET:
	case ZYDIS_MNEMONIC_IRETD:
	case ZYDIS_MNEMONIC_IRETQ:
		return iret;
	case ZYDIS_MNEMONIC_INT:
		return int_n;
	case ZYDIS_MNEMONIC_INT3:
		return int3;
	case ZYDIS_MNEMONIC_INTO:
		return into;
	case ZYDIS_MNEMONIC_INT1:
		return int1;
	case ZYDIS_MNEMONIC_BOUND:
		return bound;
	case ZYDIS_MNEMONIC_UD0:
	case ZYDIS_MNEMONIC_UD1:
	case ZYDIS_MNEMONIC_UD2:
		return ud;
	case ZYDIS_MNEMONIC_SYSCALL:
		return syscall;
	case ZYDIS_MNEMONIC_SYSRET:
		return sysret;
	case ZYDIS_MNEMONIC_SYSENTER:
		return sysenter;
	case ZYDIS_MNEMONIC_SYSEXIT:
		return sysexit;
	default:
		return NULL;
	}
}
