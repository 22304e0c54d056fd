/*
 * op_bcd.c: the decimal instructions of 16- and 32-bit code: DAA DAS AAA AAS AAM AAD.
 *
 * The host cannot run them in 64-bit mode, so they follow the manual (SDM vol. 2); flags that it calls undefined are
 * what processors of today do: DAA and DAS clear OF, AAA and AAS take SF ZF PF from AL, AAM and AAD clear CF AF OF.
 */
#include "interp_impl.h"

#define FN(name) static int name(struct vcpu *v, const struct insn *i)

static u64 szp(u8 x)
{
	u64 f = x & 0x80 ? FLAGS_SF : 0;

	if (!x)
		f |= FLAGS_ZF;
	if (!(__builtin_popcount(x) & 1))
		f |= FLAGS_PF;
	return f;
}

static void set_arith(struct vcpu *v, u64 f)
{
	v->rflags = (v->rflags & ~FLAGS_ARITH) | f;
}

FN(daa)
{
	u8 old = (u8)v->r[R_RAX], al = old;
	bool sub = i->mnemonic == ZYDIS_MNEMONIC_DAS;
	bool old_cf = v->rflags & FLAGS_CF;
	u64 f = 0;

	if ((old & 15) > 9 || (v->rflags & FLAGS_AF)) {
		if (old_cf || (sub ? old < 6 : old > 0xf9))
			f |= FLAGS_CF;
		al = (u8)(sub ? al - 6 : al + 6);
		f |= FLAGS_AF;
	}
	if (old > 0x99 || old_cf) {
		al = (u8)(sub ? al - 0x60 : al + 0x60);
		f |= FLAGS_CF;
	} else if (!sub) {
		f &= ~FLAGS_CF;
	}
	put_reg(v, R_RAX, 1, al);
	set_arith(v, f | szp(al));
	return STEP_OK;
}

FN(aaa)
{
	u16 ax = (u16)v->r[R_RAX];
	u64 f = 0;

	if ((ax & 15) > 9 || (v->rflags & FLAGS_AF)) {
		ax = (u16)(i->mnemonic == ZYDIS_MNEMONIC_AAA ? ax + 0x106 : ax - 6);
		if (i->mnemonic == ZYDIS_MNEMONIC_AAS)
			ax = (u16)(ax - 0x100);
		f = FLAGS_AF | FLAGS_CF;
	}
	ax &= 0xff0f;
	put_reg(v, R_RAX, 2, ax);
	set_arith(v, f | szp((u8)ax));
	return STEP_OK;
}

FN(aam)
{
	u8 al = (u8)v->r[R_RAX], base = (u8)i->imm;

	if (!base)
		return excp_raise(v, EXC_DE);
	put_reg(v, R_RAX, 2, (u64)((al / base) << 8 | al % base));
	set_arith(v, szp(al % base));
	return STEP_OK;
}

FN(aad)
{
	u8 al = (u8)((v->r[R_RAX] >> 8) * (u8)i->imm + v->r[R_RAX]);

	put_reg(v, R_RAX, 2, al);
	set_arith(v, szp(al));
	return STEP_OK;
}

insn_fn op_bcd_find(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_DAA:
	case ZYDIS_MNEMONIC_DAS:
		return daa;
	case ZYDIS_MNEMONIC_AAA:
	case ZYDIS_MNEMONIC_AAS:
		return aaa;
	case ZYDIS_MNEMONIC_AAM:
		return aam;
	case ZYDIS_MNEMONIC_AAD:
		return aad;
	default:
		return NULL;
	}
}
