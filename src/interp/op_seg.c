/*
 * op_seg.c: segment registers and descriptor tables: MOV, PUSH, POP, LxS of segment registers, LGDT and its kin, LLDT,
 * LTR, LAR, LSL, VERR, VERW, ARPL, RDFSBASE and its kin, SWAPGS.
 *
 * SDM vol. 2; where Intel and AMD differ the host's vendor decides (PUSH of a segment register, REX.W LxS).
 */
#include "op_sys.h"

#define FN(name) static int name(struct vcpu *v, const struct insn *i)

/* After a load of SS the next instruction runs undisturbed (SDM vol. 3, 6.8.3). */
static int ss_loaded(struct vcpu *v, const struct insn *i)
{
	v->shadow = SHADOW_MOVSS;
	atomic_fetch_or(&v->events, (u32)EV_SHADOW);
	return step_end(v, i);
}

/* Stores a 16-bit system value: zero-extended to a register's operand size, always 16 bits to memory. */
static int store16(struct vcpu *v, const struct insn *i, u64 val)
{
	u16 w = (u16)val;

	if (i->op[0].kind == OPK_MEM)
		return v_write(v, i->seg, insn_ea(v, i), &w, 2);
	set_reg(v, &i->op[0], i->osize, w);
	return STEP_OK;
}

FN(mov_from_sreg)
{
	return store16(v, i, v->seg[i->op[1].reg].sel);
}

FN(mov_to_sreg)
{
	unsigned n = i->op[0].reg;
	u64 sel;
	int rc;

	if (n == SEG_CS)
		return excp_raise(v, EXC_UD);
	rc = read_rm(v, i, 1, 2, &sel);
	if (rc == STEP_OK)
		rc = seg_load(v, n, (u16)sel);
	if (rc != STEP_OK)
		return rc;
	return n == SEG_SS ? ss_loaded(v, i) : STEP_OK;
}

/* With a 32-bit operand, Intel processors move RSP by 4 and write 2 bytes; AMD's write all 4. */
FN(push_sreg)
{
	u64 sel = v->seg[i->op[0].reg].sel, sp, ea;
	int rc;

	if (i->osize != 4 || cpuid_is_amd())
		return stack_push(v, sel, i->osize);
	sp = v->r[R_RSP] - 4;
	ea = v->stack_is_32 ? (u32)sp : (u16)sp;
	rc = v_write(v, SEG_SS, ea, &sel, 2);
	if (rc == STEP_OK)
		stack_set_sp(v, sp);
	return rc;
}

FN(pop_sreg)
{
	unsigned n = i->op[0].reg;
	u64 sel, old = v->r[R_RSP];
	int rc = stack_pop(v, &sel, i->osize);

	if (rc != STEP_OK)
		return rc;
	rc = seg_load(v, n, (u16)sel);
	if (rc != STEP_OK) {
		v->r[R_RSP] = old;
		return rc;
	}
	return n == SEG_SS ? ss_loaded(v, i) : STEP_OK;
}

static int load_far_pointer(struct vcpu *v, const struct insn *i, unsigned n)
{
	/* AMD processors know no m16:64 here (tested: REX.W LGS takes its selector from bytes 4 and 5). */
	unsigned osize = i->osize == 8 && cpuid_is_amd() ? 4 : i->osize;
	u64 off = 0;
	u8 buf[10];
	u16 sel;
	int rc;

	if (i->op[1].kind != OPK_MEM)
		return excp_raise(v, EXC_UD);
	rc = v_read(v, i->seg, insn_ea(v, i), buf, osize + 2);
	if (rc != STEP_OK)
		return rc;
	memcpy(&off, buf, osize);
	memcpy(&sel, buf + osize, 2);
	rc = seg_load(v, n, sel);
	if (rc != STEP_OK)
		return rc;
	set_reg(v, &i->op[0], osize, off);
	/* LSS casts no shadow, but the stack width may have changed. */
	return n == SEG_SS ? step_end(v, i) : STEP_OK;
}

FN(lds)
{
	return load_far_pointer(v, i, SEG_DS);
}
FN(les)
{
	return load_far_pointer(v, i, SEG_ES);
}
FN(lfs)
{
	return load_far_pointer(v, i, SEG_FS);
}
FN(lgs)
{
	return load_far_pointer(v, i, SEG_GS);
}
FN(lss)
{
	return load_far_pointer(v, i, SEG_SS);
}

/* ---- table registers -------------------------------------------------------------------------------------------- */

FN(load_table)
{
	struct dtable *t = i->mnemonic == ZYDIS_MNEMONIC_LGDT ? &v->gdt : &v->idt;
	unsigned size = v->mode == MODE_64 ? 8 : 4;
	u8 buf[10];
	u64 base = 0;
	int rc = need_cpl0(v);

	if (rc == STEP_OK)
		rc = v_read(v, i->seg, insn_ea(v, i), buf, size + 2);
	if (rc != STEP_OK)
		return rc;
	memcpy(&base, buf + 2, size);
	if (size == 4 && i->osize == 2)
		base &= 0xffffff;
	if (size == 8 && !is_canonical(base))
		return excp_raise_err(v, EXC_GP, 0);
	memcpy(&t->limit, buf, 2);
	t->base = base;
	return STEP_OK;
}

/* Processors store the whole base with a 16-bit operand too. */
FN(store_table)
{
	const struct dtable *t = i->mnemonic == ZYDIS_MNEMONIC_SGDT ? &v->gdt : &v->idt;
	unsigned size = v->mode == MODE_64 ? 8 : 4;
	u8 buf[10];
	int rc = umip_ok(v);

	if (rc != STEP_OK)
		return rc;
	memcpy(buf, &t->limit, 2);
	memcpy(buf + 2, &t->base, size);
	return v_write(v, i->seg, insn_ea(v, i), buf, size + 2);
}

/* Not recognised in real and virtual-8086 mode: LLDT LTR SLDT STR LAR LSL VERR VERW ARPL. */
static int need_protected(struct vcpu *v)
{
	return v->mode == MODE_REAL || v->mode == MODE_V86 ? excp_raise(v, EXC_UD) : STEP_OK;
}

static int load_system(struct vcpu *v, const struct insn *i, unsigned n)
{
	u64 sel;
	int rc = need_protected(v);

	if (rc == STEP_OK)
		rc = need_cpl0(v);
	if (rc == STEP_OK)
		rc = read_rm(v, i, 0, 2, &sel);
	return rc == STEP_OK ? seg_load(v, n, (u16)sel) : rc;
}

FN(lldt)
{
	return load_system(v, i, SEG_LDTR);
}

FN(ltr)
{
	return load_system(v, i, SEG_TR);
}

static int store_system(struct vcpu *v, const struct insn *i, unsigned n)
{
	int rc = need_protected(v);

	if (rc == STEP_OK)
		rc = umip_ok(v);
	return rc == STEP_OK ? store16(v, i, v->seg[n].sel) : rc;
}

FN(sldt)
{
	return store_system(v, i, SEG_LDTR);
}

FN(str)
{
	return store_system(v, i, SEG_TR);
}

/* ---- LAR LSL VERR VERW ARPL -------------------------------------------------------------------------------------- */

static void set_zf(struct vcpu *v, bool on)
{
	v->rflags = (v->rflags & ~FLAGS_ZF) | (on ? FLAGS_ZF : 0);
}

/* Looks at a descriptor without faulting on the selector: *found tells. STEP_EXCP only for page faults. */
static int look(struct vcpu *v, u16 sel, u64 *raw, bool *found)
{
	struct dtable t = v->gdt;
	u32 off = sel & 0xfff8, limit = t.limit;
	gva_t gva;

	*found = false;
	if (off == 0 && !(sel & 4))
		return STEP_OK;
	if (sel & 4) {
		if (v->seg[SEG_LDTR].unusable || !v->seg[SEG_LDTR].present)
			return STEP_OK;
		t.base = v->seg[SEG_LDTR].base;
		limit = v->seg[SEG_LDTR].limit;
	}
	if (off + 7 > limit)
		return STEP_OK;
	gva = t.base + off;
	if (!(v->efer & EFER_LMA))
		gva = (u32)gva;
	*found = true;
	return sys_read(v, gva, raw, 8);
}

#define DESC_TYPE(raw) ((raw) >> 40 & 0xf)
#define DESC_S(raw) ((raw) >> 44 & 1)
#define DESC_DPL(raw) ((raw) >> 45 & 3)

/* May CPL and RPL see it? Conforming code always may be. */
static bool visible(const struct vcpu *v, u16 sel, u64 raw)
{
	if (DESC_S(raw) && (DESC_TYPE(raw) & (SEGT_CODE | SEGT_C)) == (SEGT_CODE | SEGT_C))
		return true;
	return DESC_DPL(raw) >= v->cpl && DESC_DPL(raw) >= (sel & 3u);
}

FN(lar_lsl)
{
	/* System types with meaning for each, legacy and long mode (SDM vol. 2, LAR and LSL). */
	static const u16 types[2][2] = {
	        {BIT(1) | BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(9) | BIT(11) | BIT(12),
	         BIT(2) | BIT(9) | BIT(11) | BIT(12)},
	        {BIT(1) | BIT(2) | BIT(3) | BIT(9) | BIT(11), BIT(2) | BIT(9) | BIT(11)},
	};
	bool lsl = i->mnemonic == ZYDIS_MNEMONIC_LSL, found;
	u64 sel, raw = 0, val;
	int rc = need_protected(v);

	if (rc == STEP_OK)
		rc = read_rm(v, i, 1, 2, &sel);
	if (rc == STEP_OK)
		rc = look(v, (u16)sel, &raw, &found);
	if (rc != STEP_OK)
		return rc;
	if (found && !DESC_S(raw))
		found = types[lsl][(v->efer & EFER_LMA) != 0] >> DESC_TYPE(raw) & 1;
	if (!found || !visible(v, (u16)sel, raw)) {
		set_zf(v, false);
		return STEP_OK;
	}
	if (lsl) {
		val = (raw & 0xffff) | (raw >> 48 & 0xf) << 16;
		if (raw >> 55 & 1)
			val = val << 12 | 0xfff;
	} else {
		val = raw >> 32 & 0xffff00; /* bits 19:16 are "undefined": processors show the limit there */
	}
	set_zf(v, true);
	set_reg(v, &i->op[0], i->osize, val);
	return STEP_OK;
}

FN(verr_verw)
{
	bool found, ok = false;
	u64 sel, raw = 0;
	int rc = need_protected(v);

	if (rc == STEP_OK)
		rc = read_rm(v, i, 0, 2, &sel);
	if (rc == STEP_OK)
		rc = look(v, (u16)sel, &raw, &found);
	if (rc != STEP_OK)
		return rc;
	if (found && DESC_S(raw) && visible(v, (u16)sel, raw)) {
		bool code = DESC_TYPE(raw) & SEGT_CODE;

		if (i->mnemonic == ZYDIS_MNEMONIC_VERR)
			ok = !code || (DESC_TYPE(raw) & SEGT_R);
		else
			ok = !code && (DESC_TYPE(raw) & SEGT_W);
	}
	set_zf(v, ok);
	return STEP_OK;
}

FN(arpl)
{
	u64 dst, rpl = v->r[i->op[1].reg] & 3;
	int rc = need_protected(v);

	if (rc == STEP_OK)
		rc = read_rm(v, i, 0, 2, &dst);
	if (rc != STEP_OK)
		return rc;
	if ((dst & 3) >= rpl) {
		set_zf(v, false);
		return STEP_OK;
	}
	dst = (dst & ~3ull) | rpl;
	if (i->op[0].kind == OPK_MEM) {
		rc = v_write(v, i->seg, insn_ea(v, i), &dst, 2);
		if (rc != STEP_OK)
			return rc;
	} else {
		set_reg(v, &i->op[0], 2, dst);
	}
	set_zf(v, true);
	return STEP_OK;
}

/* ---- FS and GS bases -------------------------------------------------------------------------------------------- */

FN(rdbase)
{
	unsigned n = i->mnemonic == ZYDIS_MNEMONIC_RDFSBASE ? SEG_FS : SEG_GS;

	if (v->mode != MODE_64 || !(v->cr4 & CR4_FSGSBASE))
		return excp_raise(v, EXC_UD);
	set_reg(v, &i->op[0], i->op[0].size, v->seg[n].base);
	return STEP_OK;
}

FN(wrbase)
{
	unsigned n = i->mnemonic == ZYDIS_MNEMONIC_WRFSBASE ? SEG_FS : SEG_GS;
	u64 val = get_reg(v, &i->op[0], i->op[0].size);

	if (v->mode != MODE_64 || !(v->cr4 & CR4_FSGSBASE))
		return excp_raise(v, EXC_UD);
	if (!is_canonical(val))
		return excp_raise_err(v, EXC_GP, 0);
	v->seg[n].base = val;
	seg_derive(v, n);
	return STEP_OK;
}

FN(swapgs)
{
	u64 base = v->seg[SEG_GS].base;
	int rc;

	if (v->mode != MODE_64)
		return excp_raise(v, EXC_UD);
	rc = need_cpl0(v);
	if (rc != STEP_OK)
		return rc;
	v->seg[SEG_GS].base = v->kernel_gs_base;
	v->kernel_gs_base = base;
	return STEP_OK;
}

insn_fn op_seg_find(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		if (i->op[0].kind == OPK_SREG)
			return mov_to_sreg;
		return i->op[1].kind == OPK_SREG ? mov_from_sreg : NULL;
	case ZYDIS_MNEMONIC_PUSH:
		return i->op[0].kind == OPK_SREG ? push_sreg : NULL;
	case ZYDIS_MNEMONIC_POP:
		return i->op[0].kind == OPK_SREG ? pop_sreg : NULL;
	case ZYDIS_MNEMONIC_LDS:
		return lds;
	case ZYDIS_MNEMONIC_LES:
		return les;
	case ZYDIS_MNEMONIC_LFS:
		return lfs;
	case ZYDIS_MNEMONIC_LGS:
		return lgs;
	case ZYDIS_MNEMONIC_LSS:
		return lss;
	case ZYDIS_MNEMONIC_LGDT:
	case ZYDIS_MNEMONIC_LIDT:
		return load_table;
	case ZYDIS_MNEMONIC_SGDT:
	case ZYDIS_MNEMONIC_SIDT:
		return store_table;
	case ZYDIS_MNEMONIC_LLDT:
		return lldt;
	case ZYDIS_MNEMONIC_LTR:
		return ltr;
	case ZYDIS_MNEMONIC_SLDT:
		return sldt;
	case ZYDIS_MNEMONIC_STR:
		return str;
	case ZYDIS_MNEMONIC_LAR:
	case ZYDIS_MNEMONIC_LSL:
		return lar_lsl;
	case ZYDIS_MNEMONIC_VERR:
	case ZYDIS_MNEMONIC_VERW:
		return verr_verw;
	case ZYDIS_MNEMONIC_ARPL:
		return arpl;
	case ZYDIS_MNEMONIC_RDFSBASE:
	case ZYDIS_MNEMONIC_RDGSBASE:
		return rdbase;
	case ZYDIS_MNEMONIC_WRFSBASE:
	case ZYDIS_MNEMONIC_WRGSBASE:
		return wrbase;
	case ZYDIS_MNEMONIC_SWAPGS:
		return swapgs;
	default:
		return NULL;
	}
}
