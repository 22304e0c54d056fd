/*
 * op_simd_mov.c: the moves that memcpy, strlen and the kernel live on, in plain C, and all MMX stores.
 *
 * Everything here is also what a thunk would do, only without the call. The handlers differ in constants; each is one
 * instance of an inline function so that sizes become single host moves.
 */
#include <string.h>

#include "simd.h"

#define INLINE static inline __attribute__((always_inline))

INLINE u8 *xreg(struct vcpu *v, const struct insn *i, unsigned k)
{
	return v->fpu.ymm[i->op[k].reg & 15];
}

INLINE int gate(struct vcpu *v, bool vex)
{
	return vex ? simd_avx_gate(v) : simd_sse_gate(v);
}

/* op0 = zero-extended memory. */
INLINE int load_zx(struct vcpu *v, const struct insn *i, unsigned size, bool align, bool vex)
{
	u8 tmp[32], *dst = xreg(v, i, 0);
	gva_t gva;
	int rc = gate(v, vex);

	if (unlikely(rc != STEP_OK))
		return rc;
	rc = simd_linear(v, i, size, align ? size : 1, MEM_READ, &gva);
	if (unlikely(rc != STEP_OK))
		return rc;
	rc = lin_read(v, gva, tmp, size);
	if (unlikely(rc != STEP_OK))
		return rc;
	if (size < 16)
		memset(tmp + size, 0, 16 - size);
	if (vex && size < 32)
		memset(tmp + 16, 0, 16);
	memcpy(dst, tmp, vex ? 32 : 16);
	return STEP_OK;
}

/* 8 bytes at `off` of op0 = memory; the rest stays. */
INLINE int load_part(struct vcpu *v, const struct insn *i, unsigned off)
{
	u8 tmp[8];
	gva_t gva;
	int rc = simd_sse_gate(v);

	if (unlikely(rc != STEP_OK))
		return rc;
	rc = simd_linear(v, i, 8, 1, MEM_READ, &gva);
	if (rc == STEP_OK)
		rc = lin_read(v, gva, tmp, 8);
	if (unlikely(rc != STEP_OK))
		return rc;
	memcpy(xreg(v, i, 0) + off, tmp, 8);
	return STEP_OK;
}

/* memory = `size` bytes at `off` of op1. */
INLINE int store(struct vcpu *v, const struct insn *i, unsigned size, unsigned off, bool align, bool vex)
{
	gva_t gva;
	int rc = gate(v, vex);

	if (unlikely(rc != STEP_OK))
		return rc;
	rc = simd_linear(v, i, size, align ? size : 1, MEM_WRITE, &gva);
	if (unlikely(rc != STEP_OK))
		return rc;
	return lin_write(v, gva, xreg(v, i, 1) + off, size);
}

/* op0 = op1, `size` bytes, zero-extended to the register. */
INLINE int copy(struct vcpu *v, const struct insn *i, unsigned size, bool vex)
{
	u8 *dst = xreg(v, i, 0);
	int rc = gate(v, vex);

	if (unlikely(rc != STEP_OK))
		return rc;
	memmove(dst, xreg(v, i, 1), size);
	if (size < 16)
		memset(dst + size, 0, 16 - size);
	if (vex && size < 32)
		memset(dst + 16, 0, 16);
	return STEP_OK;
}

/* The low `size` bytes of op0 = op1; the rest stays. */
INLINE int merge(struct vcpu *v, const struct insn *i, unsigned size)
{
	int rc = simd_sse_gate(v);

	if (unlikely(rc != STEP_OK))
		return rc;
	memmove(xreg(v, i, 0), xreg(v, i, 1), size);
	return STEP_OK;
}

INLINE int from_gpr(struct vcpu *v, const struct insn *i, unsigned size, bool vex)
{
	u8 *dst = xreg(v, i, 0);
	int rc = gate(v, vex);

	if (unlikely(rc != STEP_OK))
		return rc;
	memcpy(dst, &v->r[i->op[1].reg], size);
	memset(dst + size, 0, (vex ? 32 : 16) - size);
	return STEP_OK;
}

INLINE int to_gpr(struct vcpu *v, const struct insn *i, unsigned size, bool vex)
{
	u64 val = 0;
	int rc = gate(v, vex);

	if (unlikely(rc != STEP_OK))
		return rc;
	memcpy(&val, xreg(v, i, 1), size);
	v->r[i->op[0].reg] = val;
	return STEP_OK;
}

INLINE int xor16(struct vcpu *v, const struct insn *i)
{
	u64 a[2], b[2];
	int rc = simd_sse_gate(v);

	if (unlikely(rc != STEP_OK))
		return rc;
	memcpy(a, xreg(v, i, 0), 16);
	memcpy(b, xreg(v, i, 1), 16);
	a[0] ^= b[0];
	a[1] ^= b[1];
	memcpy(xreg(v, i, 0), a, 16);
	return STEP_OK;
}

INLINE int mmx_store(struct vcpu *v, const struct insn *i, unsigned size)
{
	gva_t gva;
	int rc = simd_mmx_gate(v);

	if (unlikely(rc != STEP_OK))
		return rc;
	rc = simd_linear(v, i, size, 1, MEM_WRITE, &gva);
	if (rc == STEP_OK)
		rc = lin_write(v, gva, fpu_mm(&v->fpu, i->op[1].reg & 7), size);
	if (unlikely(rc != STEP_OK))
		return rc;
	fpu_mmx_enter(&v->fpu);
	return STEP_OK;
}

INLINE int mmx_load(struct vcpu *v, const struct insn *i, unsigned size)
{
	u8 tmp[8] = {0}, *mm;
	gva_t gva;
	int rc = simd_mmx_gate(v);

	if (unlikely(rc != STEP_OK))
		return rc;
	rc = simd_linear(v, i, size, 1, MEM_READ, &gva);
	if (rc == STEP_OK)
		rc = lin_read(v, gva, tmp, size);
	if (unlikely(rc != STEP_OK))
		return rc;
	fpu_mmx_enter(&v->fpu);
	mm = fpu_mm(&v->fpu, i->op[0].reg & 7);
	memcpy(mm, tmp, 8);
	memset(mm + 8, 0xff, 2);
	return STEP_OK;
}

#define HANDLER(name, expr)                                                                                            \
	static int name(struct vcpu *v, const struct insn *i)                                                          \
	{                                                                                                              \
		return expr;                                                                                           \
	}

HANDLER(ld16u, load_zx(v, i, 16, false, false))
HANDLER(ld16a, load_zx(v, i, 16, true, false))
HANDLER(ld8z, load_zx(v, i, 8, false, false))
HANDLER(ld4z, load_zx(v, i, 4, false, false))
HANDLER(vld32u, load_zx(v, i, 32, false, true))
HANDLER(vld32a, load_zx(v, i, 32, true, true))
HANDLER(vld16u, load_zx(v, i, 16, false, true))
HANDLER(vld16a, load_zx(v, i, 16, true, true))
HANDLER(vld8z, load_zx(v, i, 8, false, true))
HANDLER(vld4z, load_zx(v, i, 4, false, true))
HANDLER(ld_low, load_part(v, i, 0))
HANDLER(ld_high, load_part(v, i, 8))
HANDLER(st16u, store(v, i, 16, 0, false, false))
HANDLER(st16a, store(v, i, 16, 0, true, false))
HANDLER(st8, store(v, i, 8, 0, false, false))
HANDLER(st4, store(v, i, 4, 0, false, false))
HANDLER(st_high, store(v, i, 8, 8, false, false))
HANDLER(vst32u, store(v, i, 32, 0, false, true))
HANDLER(vst32a, store(v, i, 32, 0, true, true))
HANDLER(vst16u, store(v, i, 16, 0, false, true))
HANDLER(vst16a, store(v, i, 16, 0, true, true))
HANDLER(vst8, store(v, i, 8, 0, false, true))
HANDLER(vst4, store(v, i, 4, 0, false, true))
HANDLER(vst_high, store(v, i, 8, 8, false, true))
HANDLER(rr16, copy(v, i, 16, false))
HANDLER(rr8z, copy(v, i, 8, false))
HANDLER(vrr32, copy(v, i, 32, true))
HANDLER(vrr16, copy(v, i, 16, true))
HANDLER(vrr8z, copy(v, i, 8, true))
HANDLER(merge8, merge(v, i, 8))
HANDLER(merge4, merge(v, i, 4))
HANDLER(gpr4, from_gpr(v, i, 4, false))
HANDLER(gpr8, from_gpr(v, i, 8, false))
HANDLER(vgpr4, from_gpr(v, i, 4, true))
HANDLER(vgpr8, from_gpr(v, i, 8, true))
HANDLER(to_gpr4, to_gpr(v, i, 4, false))
HANDLER(to_gpr8, to_gpr(v, i, 8, false))
HANDLER(vto_gpr4, to_gpr(v, i, 4, true))
HANDLER(vto_gpr8, to_gpr(v, i, 8, true))
HANDLER(xor_rr, xor16(v, i))
HANDLER(mm_st4, mmx_store(v, i, 4))
HANDLER(mm_st8, mmx_store(v, i, 8))
HANDLER(mm_ld4, mmx_load(v, i, 4))
HANDLER(mm_ld8, mmx_load(v, i, 8))

/* Handlers of a whole-register move by shape: load, store, register to register. */
static insn_fn whole(const struct insn *i, bool vex, insn_fn ld, insn_fn st, insn_fn rr)
{
	if (!(i->flags & INSN_VEX) != !vex)
		return NULL;
	if (i->op[0].kind == OPK_MEM)
		return st;
	return i->op[1].kind == OPK_MEM ? ld : rr;
}

/* MOVD and MOVQ: `n` 4 or 8 bytes. */
static insn_fn small(const struct insn *i, unsigned n, bool vex)
{
	u8 dst = i->op[0].kind, src = i->op[1].kind;

	if (dst == OPK_MMX && src == OPK_MEM)
		return n == 4 ? mm_ld4 : mm_ld8;
	if (dst == OPK_MEM && src == OPK_MMX)
		return n == 4 ? mm_st4 : mm_st8;
	if (dst == OPK_MMX || src == OPK_MMX)
		return NULL; /* a thunk */
	if (dst == OPK_MEM)
		return n == 4 ? (vex ? vst4 : st4) : (vex ? vst8 : st8);
	if (src == OPK_MEM)
		return n == 4 ? (vex ? vld4z : ld4z) : (vex ? vld8z : ld8z);
	if (dst == OPK_GPR)
		return n == 4 ? (vex ? vto_gpr4 : to_gpr4) : (vex ? vto_gpr8 : to_gpr8);
	if (src == OPK_GPR)
		return n == 4 ? (vex ? vgpr4 : gpr4) : (vex ? vgpr8 : gpr8);
	return n == 8 ? (vex ? vrr8z : rr8z) : NULL;
}

insn_fn simd_mov_find(const struct insn *i)
{
	bool y = i->vl == 32;

	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_MOVUPS:
	case ZYDIS_MNEMONIC_MOVUPD:
	case ZYDIS_MNEMONIC_MOVDQU:
	case ZYDIS_MNEMONIC_LDDQU:
		return whole(i, false, ld16u, st16u, rr16);
	case ZYDIS_MNEMONIC_MOVAPS:
	case ZYDIS_MNEMONIC_MOVAPD:
	case ZYDIS_MNEMONIC_MOVDQA:
	case ZYDIS_MNEMONIC_MOVNTPS:
	case ZYDIS_MNEMONIC_MOVNTPD:
	case ZYDIS_MNEMONIC_MOVNTDQ:
	case ZYDIS_MNEMONIC_MOVNTDQA:
		return whole(i, false, ld16a, st16a, rr16);
	case ZYDIS_MNEMONIC_VMOVUPS:
	case ZYDIS_MNEMONIC_VMOVUPD:
	case ZYDIS_MNEMONIC_VMOVDQU:
	case ZYDIS_MNEMONIC_VLDDQU:
		return whole(i, true, y ? vld32u : vld16u, y ? vst32u : vst16u, y ? vrr32 : vrr16);
	case ZYDIS_MNEMONIC_VMOVAPS:
	case ZYDIS_MNEMONIC_VMOVAPD:
	case ZYDIS_MNEMONIC_VMOVDQA:
	case ZYDIS_MNEMONIC_VMOVNTPS:
	case ZYDIS_MNEMONIC_VMOVNTPD:
	case ZYDIS_MNEMONIC_VMOVNTDQ:
	case ZYDIS_MNEMONIC_VMOVNTDQA:
		return whole(i, true, y ? vld32a : vld16a, y ? vst32a : vst16a, y ? vrr32 : vrr16);
	case ZYDIS_MNEMONIC_MOVSS:
		return whole(i, false, ld4z, st4, merge4);
	case ZYDIS_MNEMONIC_MOVSD:
		return whole(i, false, ld8z, st8, merge8);
	case ZYDIS_MNEMONIC_VMOVSS:
		return i->nops == 2 ? whole(i, true, vld4z, vst4, NULL) : NULL;
	case ZYDIS_MNEMONIC_VMOVSD:
		return i->nops == 2 ? whole(i, true, vld8z, vst8, NULL) : NULL;
	case ZYDIS_MNEMONIC_MOVD:
		return small(i, 4, false);
	case ZYDIS_MNEMONIC_MOVQ:
		return small(i, 8, false);
	case ZYDIS_MNEMONIC_VMOVD:
		return small(i, 4, true);
	case ZYDIS_MNEMONIC_VMOVQ:
		return small(i, 8, true);
	case ZYDIS_MNEMONIC_MOVNTQ:
		return mm_st8;
	case ZYDIS_MNEMONIC_MOVLPS:
	case ZYDIS_MNEMONIC_MOVLPD:
		return whole(i, false, ld_low, st8, NULL);
	case ZYDIS_MNEMONIC_MOVHPS:
	case ZYDIS_MNEMONIC_MOVHPD:
		return whole(i, false, ld_high, st_high, NULL);
	case ZYDIS_MNEMONIC_VMOVLPS:
	case ZYDIS_MNEMONIC_VMOVLPD:
		return i->op[0].kind == OPK_MEM ? vst8 : NULL;
	case ZYDIS_MNEMONIC_VMOVHPS:
	case ZYDIS_MNEMONIC_VMOVHPD:
		return i->op[0].kind == OPK_MEM ? vst_high : NULL;
	case ZYDIS_MNEMONIC_PXOR:
	case ZYDIS_MNEMONIC_XORPS:
	case ZYDIS_MNEMONIC_XORPD:
		return i->op[0].kind == OPK_XMM && i->op[1].kind == OPK_XMM ? xor_rr : NULL;
	}
	return NULL;
}
