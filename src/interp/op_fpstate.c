/*
 * op_fpstate.c: instructions that move or reset whole FPU state: FXSAVE, FXRSTOR, XSAVE, XSAVEOPT, XSAVEC, XRSTOR,
 * LDMXCSR, STMXCSR, EMMS, VZEROUPPER, VZEROALL.
 *
 * Invariants: an image is built in a buffer and checked whole before the first byte is stored, or the first register
 * loaded. Bytes that the manuals say are not written are not written (what a component leaves out was looked at on a
 * family 19h processor). Outside 64-bit mode registers 8-15 are neither stored nor loaded.
 */
#include <string.h>

#include "simd.h"

static bool is_wide(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_FXRSTOR64:
	case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEOPT64:
	case ZYDIS_MNEMONIC_XSAVEC64:
	case ZYDIS_MNEMONIC_XRSTOR64:
		return true;
	}
	return false;
}

static unsigned nregs(const struct vcpu *v)
{
	return v->mode == MODE_64 ? 16 : 8;
}

/* ---- FXSAVE, FXRSTOR -------------------------------------------------------------------------------------------- */

static int fxsave(struct vcpu *v, const struct insn *i)
{
	u32 mask = MXCSR_MASK;
	u8 img[512];
	unsigned n;
	gva_t gva;
	int rc;

	if (i->flags & INSN_LOCK)
		return excp_raise(v, EXC_UD);
	if (v->cr0 & (CR0_EM | CR0_TS))
		return excp_raise(v, EXC_NM);
	rc = simd_linear(v, i, 512, 16, MEM_WRITE, &gva);
	if (rc != STEP_OK)
		return rc;
	memset(img, 0, sizeof(img));
	fpu_put_x87(&v->fpu, img, is_wide(i));
	memcpy(img + FX_MXCSR, &v->fpu.mxcsr, 4);
	memcpy(img + FX_MXCSR_MASK, &mask, 4);
	for (n = 0; n < nregs(v); n++)
		memcpy(img + FX_XMM + 16 * n, v->fpu.ymm[n], 16);
	return lin_write(v, gva, img, FX_XMM + 16 * nregs(v));
}

static int fxrstor(struct vcpu *v, const struct insn *i)
{
	u8 img[512];
	unsigned n;
	gva_t gva;
	u32 mxcsr;
	int rc;

	if (i->flags & INSN_LOCK)
		return excp_raise(v, EXC_UD);
	if (v->cr0 & (CR0_EM | CR0_TS))
		return excp_raise(v, EXC_NM);
	rc = simd_linear(v, i, 512, 16, MEM_READ, &gva);
	if (rc == STEP_OK)
		rc = lin_read(v, gva, img, 512);
	if (rc != STEP_OK)
		return rc;
	memcpy(&mxcsr, img + FX_MXCSR, 4);
	if (mxcsr & ~MXCSR_MASK)
		return excp_raise_err(v, EXC_GP, 0);
	fpu_get_x87(&v->fpu, img, is_wide(i));
	v->fpu.mxcsr = mxcsr;
	for (n = 0; n < nregs(v); n++)
		memcpy(v->fpu.ymm[n], img + FX_XMM + 16 * n, 16);
	return STEP_OK;
}

/* ---- XSAVE family ----------------------------------------------------------------------------------------------- */

static int xsave_gate(struct vcpu *v, const struct insn *i)
{
	if (!(v->cr4 & CR4_OSXSAVE) || i->flags & INSN_LOCK)
		return excp_raise(v, EXC_UD);
	if (v->cr0 & CR0_TS)
		return excp_raise(v, EXC_NM);
	return STEP_OK;
}

static u64 rfbm(const struct vcpu *v)
{
	return v->fpu.xcr0 & ((v->r[R_RDX] << 32) | (u32)v->r[R_RAX]);
}

/* Runs of bytes that a save writes. */
struct pieces {
	u16 from[8], to[8];
	unsigned n;
};

static void piece(struct pieces *p, unsigned from, unsigned to)
{
	if (p->n && p->to[p->n - 1] == from) {
		p->to[p->n - 1] = to;
		return;
	}
	p->from[p->n] = from;
	p->to[p->n++] = to;
}

enum save_kind { SAVE_PLAIN, SAVE_OPT, SAVE_COMPACT };

static int xsave(struct vcpu *v, const struct insn *i, enum save_kind kind)
{
	u64 want = rfbm(v), inuse = fpu_xinuse(&v->fpu), put, bv, xcomp = 0, zero = 0;
	u8 img[XSAVE_SIZE];
	struct pieces p = {.n = 0};
	u32 mask = MXCSR_MASK;
	unsigned n, nr = nregs(v);
	bool mxcsr;
	gva_t gva;
	int rc = xsave_gate(v, i);

	if (rc != STEP_OK)
		return rc;
	rc = simd_linear(v, i, want & XCR0_AVX ? XSAVE_SIZE : XS_AVX, 64, MEM_READ | MEM_WRITE, &gva);
	if (rc != STEP_OK)
		return rc;
	/* XINUSE[1] is about XMM alone, but XSAVEC treats a changed MXCSR as use (SDM vol. 1, 13.10). */
	if (kind == SAVE_COMPACT && v->fpu.mxcsr != MXCSR_DEFAULT)
		inuse |= XCR0_SSE;
	put = kind == SAVE_PLAIN ? want : want & inuse;
	mxcsr = kind == SAVE_COMPACT ? put & XCR0_SSE : want & (XCR0_SSE | XCR0_AVX);
	if (kind == SAVE_COMPACT) {
		bv = put;
		xcomp = BIT(63) | want;
	} else {
		rc = lin_read(v, gva + XS_BV, &bv, 8);
		if (rc != STEP_OK)
			return rc;
		bv = (bv & ~want) | (want & inuse);
	}

	memset(img, 0, sizeof(img));
	if (put & XCR0_X87) {
		fpu_put_x87(&v->fpu, img, is_wide(i));
		piece(&p, 0, 24);
	}
	if (mxcsr) {
		memcpy(img + FX_MXCSR, &v->fpu.mxcsr, 4);
		memcpy(img + FX_MXCSR_MASK, &mask, 4);
		piece(&p, FX_MXCSR, FX_ST);
	}
	if (put & XCR0_X87)
		piece(&p, FX_ST, FX_XMM);
	if (put & XCR0_SSE) {
		for (n = 0; n < nr; n++)
			memcpy(img + FX_XMM + 16 * n, v->fpu.ymm[n], 16);
		piece(&p, FX_XMM, FX_XMM + 16 * nr);
	}
	memcpy(img + XS_BV, &bv, 8);
	memcpy(img + XS_XCOMP, kind == SAVE_COMPACT ? &xcomp : &zero, 8);
	/* XSAVE and XSAVEOPT write XSTATE_BV alone; XSAVEC the whole first half of the header it defines. */
	piece(&p, XS_BV, kind == SAVE_COMPACT ? XS_XCOMP + 8 : XS_XCOMP);
	if (put & XCR0_AVX) {
		for (n = 0; n < nr; n++)
			memcpy(img + XS_AVX + 16 * n, v->fpu.ymm[n] + 16, 16);
		piece(&p, XS_AVX, XS_AVX + 16 * nr);
	}

	for (n = 0; n < p.n; n++) {
		rc = mem_probe(&v->mmu, gva + p.from[n], p.to[n] - p.from[n], MEM_WRITE, v->mmu.ctx);
		if (rc != MEM_OK)
			return vmem_fail(v, rc);
	}
	for (n = 0; n < p.n; n++) {
		rc = lin_write(v, gva + p.from[n], img + p.from[n], p.to[n] - p.from[n]);
		if (rc != STEP_OK)
			return rc;
	}
	return STEP_OK;
}

static int xsave_plain(struct vcpu *v, const struct insn *i)
{
	return xsave(v, i, SAVE_PLAIN);
}

static int xsave_opt(struct vcpu *v, const struct insn *i)
{
	return xsave(v, i, SAVE_OPT);
}

static int xsave_compact(struct vcpu *v, const struct insn *i)
{
	return xsave(v, i, SAVE_COMPACT);
}

static bool any_set(const u8 *p, unsigned n)
{
	while (n--)
		if (*p++)
			return true;
	return false;
}

/* The header's rules (SDM vol. 1, 13.8). */
static bool header_bad(const struct vcpu *v, const u8 *img, u64 bv, u64 xcomp)
{
	if (xcomp & BIT(63))
		return xcomp & ~(v->fpu.xcr0 | BIT(63)) || bv & ~xcomp || any_set(img + XS_BV + 16, 48);
	return bv & ~v->fpu.xcr0 || any_set(img + XS_BV + 8, 16);
}

static void x87_init(struct fpu *f)
{
	memset(f->fx, 0, sizeof(f->fx));
	fx_set16(f->fx, FX_FCW, FCW_DEFAULT);
	f->fcs = f->fds = 0;
	f->x87_used = false;
}

static int xrstor(struct vcpu *v, const struct insn *i)
{
	u64 want = rfbm(v), bv, xcomp;
	unsigned n, nr = nregs(v);
	bool compact, load_mxcsr;
	u8 img[XSAVE_SIZE];
	u32 mxcsr;
	gva_t gva;
	int rc = xsave_gate(v, i);

	if (rc != STEP_OK)
		return rc;
	rc = simd_linear(v, i, XS_AVX, 64, MEM_READ, &gva);
	if (rc == STEP_OK)
		rc = lin_read(v, gva, img, XS_AVX);
	if (rc != STEP_OK)
		return rc;
	memcpy(&bv, img + XS_BV, 8);
	memcpy(&xcomp, img + XS_XCOMP, 8);
	if (header_bad(v, img, bv, xcomp))
		return excp_raise_err(v, EXC_GP, 0);
	compact = xcomp & BIT(63);
	/* The compacted form puts AVX at the same place, being the only component after the header. */
	if (compact)
		bv &= xcomp;
	if (want & bv & XCR0_AVX) {
		rc = simd_linear(v, i, XSAVE_SIZE, 64, MEM_READ, &gva);
		if (rc == STEP_OK)
			rc = lin_read(v, gva + XS_AVX, img + XS_AVX, XSAVE_SIZE - XS_AVX);
		if (rc != STEP_OK)
			return rc;
	}
	load_mxcsr = compact ? want & bv & XCR0_SSE : want & (XCR0_SSE | XCR0_AVX);
	memcpy(&mxcsr, img + FX_MXCSR, 4);
	if (load_mxcsr && mxcsr & ~MXCSR_MASK)
		return excp_raise_err(v, EXC_GP, 0);

	if (want & XCR0_X87) {
		if (bv & XCR0_X87)
			fpu_get_x87(&v->fpu, img, is_wide(i));
		else
			x87_init(&v->fpu);
	}
	if (load_mxcsr)
		v->fpu.mxcsr = mxcsr;
	else if (want & XCR0_SSE)
		v->fpu.mxcsr = MXCSR_DEFAULT;
	for (n = 0; n < nr; n++) {
		if (want & bv & XCR0_SSE)
			memcpy(v->fpu.ymm[n], img + FX_XMM + 16 * n, 16);
		else if (want & XCR0_SSE)
			memset(v->fpu.ymm[n], 0, 16);
		if (want & bv & XCR0_AVX)
			memcpy(v->fpu.ymm[n] + 16, img + XS_AVX + 16 * n, 16);
		else if (want & XCR0_AVX)
			memset(v->fpu.ymm[n] + 16, 0, 16);
	}
	return STEP_OK;
}

/* ---- small ones ------------------------------------------------------------------------------------------------- */

static int mxcsr_gate(struct vcpu *v, const struct insn *i)
{
	if (i->flags & INSN_LOCK)
		return excp_raise(v, EXC_UD);
	return i->flags & INSN_VEX ? simd_avx_gate(v) : simd_sse_gate(v);
}

static int ldmxcsr(struct vcpu *v, const struct insn *i)
{
	int rc = mxcsr_gate(v, i);
	u32 val;

	if (rc == STEP_OK)
		rc = v_read(v, i->seg, insn_ea(v, i), &val, 4);
	if (rc != STEP_OK)
		return rc;
	if (val & ~MXCSR_MASK)
		return excp_raise_err(v, EXC_GP, 0);
	v->fpu.mxcsr = val;
	return STEP_OK;
}

static int stmxcsr(struct vcpu *v, const struct insn *i)
{
	int rc = mxcsr_gate(v, i);

	return rc == STEP_OK ? v_write(v, i->seg, insn_ea(v, i), &v->fpu.mxcsr, 4) : rc;
}

static int emms(struct vcpu *v, const struct insn *i)
{
	int rc = i->flags & INSN_LOCK ? excp_raise(v, EXC_UD) : simd_mmx_gate(v);

	if (rc != STEP_OK)
		return rc;
	fpu_mmx_enter(&v->fpu);
	v->fpu.fx[FX_FTW] = 0;
	return STEP_OK;
}

static int vzeroupper(struct vcpu *v, const struct insn *i)
{
	int rc = simd_avx_gate(v);
	unsigned n;

	if (rc != STEP_OK)
		return rc;
	for (n = 0; n < nregs(v); n++)
		memset(v->fpu.ymm[n] + 16, 0, 16);
	return STEP_OK;
}

static int vzeroall(struct vcpu *v, const struct insn *i)
{
	int rc = simd_avx_gate(v);

	if (rc != STEP_OK)
		return rc;
	memset(v->fpu.ymm, 0, 32 * nregs(v));
	return STEP_OK;
}

insn_fn fpstate_find(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_FXSAVE:
	case ZYDIS_MNEMONIC_FXSAVE64:
		return fxsave;
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64:
		return fxrstor;
	case ZYDIS_MNEMONIC_XSAVE:
	case ZYDIS_MNEMONIC_XSAVE64:
		return xsave_plain;
	case ZYDIS_MNEMONIC_XSAVEOPT:
	case ZYDIS_MNEMONIC_XSAVEOPT64:
		return xsave_opt;
	case ZYDIS_MNEMONIC_XSAVEC:
	case ZYDIS_MNEMONIC_XSAVEC64:
		return xsave_compact;
	case ZYDIS_MNEMONIC_XRSTOR:
	case ZYDIS_MNEMONIC_XRSTOR64:
		return xrstor;
	case ZYDIS_MNEMONIC_LDMXCSR:
	case ZYDIS_MNEMONIC_VLDMXCSR:
		return ldmxcsr;
	case ZYDIS_MNEMONIC_STMXCSR:
	case ZYDIS_MNEMONIC_VSTMXCSR:
		return stmxcsr;
	case ZYDIS_MNEMONIC_EMMS:
		return emms;
	case ZYDIS_MNEMONIC_VZEROUPPER:
		return vzeroupper;
	case ZYDIS_MNEMONIC_VZEROALL:
		return vzeroall;
	}
	return NULL;
}
