/*
 * op_simd_mask.c: instructions that access memory element by element: gathers, VMASKMOV, VPMASKMOV, MASKMOVQ,
 * MASKMOVDQU.
 *
 * Invariants: an element whose mask is off is never accessed and never faults. Stores check every enabled element
 * before the first is written. A gather that faults keeps the elements it has loaded and clears their masks (SDM vol.
 * 2, VGATHERDPS); one that needs an MMIO answer keeps nothing and runs again from the start.
 */
#include <string.h>

#include "simd.h"

/* ---- VMASKMOV, VPMASKMOV ---------------------------------------------------------------------------------------- */

static bool enabled(const u8 *mask, unsigned n, unsigned size)
{
	return mask[n * size + size - 1] >> 7;
}

static bool all_enabled(const u8 *mask, unsigned count, unsigned size)
{
	unsigned n;

	for (n = 0; n < count; n++)
		if (!enabled(mask, n, size))
			return false;
	return true;
}

static unsigned mask_elem_size(const struct insn *i)
{
	return i->mnemonic == ZYDIS_MNEMONIC_VMASKMOVPD || i->mnemonic == ZYDIS_MNEMONIC_VPMASKMOVQ ? 8 : 4;
}

/* Address of an element, wrapped to the address size. */
static u64 elem_ea(const struct insn *i, u64 ea, u64 off)
{
	ea += off;
	return i->asize == 8 ? ea : i->asize == 4 ? (u32)ea : (u16)ea;
}

static int mask_load(struct vcpu *v, const struct insn *i)
{
	unsigned size = mask_elem_size(i), count = i->vl / size, n;
	const u8 *mask = v->fpu.ymm[i->op[1].reg];
	u64 ea = insn_ea(v, i);
	u8 out[32] = {0};
	int rc = simd_avx_gate(v);

	if (rc != STEP_OK)
		return rc;
	if (all_enabled(mask, count, size)) {
		rc = v_read(v, i->seg, ea, out, i->vl);
		if (rc != STEP_OK)
			return rc;
	} else {
		for (n = 0; n < count; n++) {
			if (!enabled(mask, n, size))
				continue;
			rc = v_read(v, i->seg, elem_ea(i, ea, n * size), out + n * size, size);
			if (rc != STEP_OK)
				return rc;
		}
	}
	memcpy(v->fpu.ymm[i->op[0].reg], out, 32);
	return STEP_OK;
}

/* Writes the bytes src[from..to) to seg:ea + from; with `probe` only checks that it could. */
static int store_run(struct vcpu *v, unsigned seg, u64 ea, const u8 *src, unsigned from, unsigned to, bool probe)
{
	gva_t gva;
	int rc = v_linear(v, seg, ea, to - from, MEM_WRITE, &gva);

	if (rc != STEP_OK)
		return rc;
	if (!probe)
		return lin_write(v, gva, src + from, to - from);
	rc = mem_probe(&v->mmu, gva, to - from, MEM_WRITE, v->mmu.ctx);
	return rc == MEM_OK ? STEP_OK : vmem_fail(v, rc);
}

static int mask_store(struct vcpu *v, const struct insn *i)
{
	unsigned size = mask_elem_size(i), count = i->vl / size, n, pass;
	const u8 *mask = v->fpu.ymm[i->op[1].reg], *src = v->fpu.ymm[i->op[2].reg];
	u64 ea = insn_ea(v, i);
	int rc = simd_avx_gate(v);

	if (rc != STEP_OK)
		return rc;
	if (all_enabled(mask, count, size))
		return v_write(v, i->seg, ea, src, i->vl);
	for (pass = 0; pass < 2; pass++) {
		for (n = 0; n < count; n++) {
			if (!enabled(mask, n, size))
				continue;
			rc = store_run(v, i->seg, elem_ea(i, ea, n * size), src, n * size, n * size + size, pass == 0);
			if (rc != STEP_OK)
				return rc;
		}
	}
	return STEP_OK;
}

/* ---- MASKMOVQ, MASKMOVDQU --------------------------------------------------------------------------------------- */

/* The store goes to DS:rDI; only a prefix can change the segment. */
static unsigned implied_seg(const struct vcpu *v, const struct insn *i)
{
	unsigned n, seg = SEG_DS;

	for (n = 0; n < i->raw_prefixes; n++) {
		switch (i->raw[n]) {
		case 0x26:
			seg = SEG_ES;
			break;
		case 0x2e:
			seg = SEG_CS;
			break;
		case 0x36:
			seg = SEG_SS;
			break;
		case 0x3e:
			seg = SEG_DS;
			break;
		case 0x64:
			seg = SEG_FS;
			break;
		case 0x65:
			seg = SEG_GS;
			break;
		}
	}
	if (v->mode == MODE_64 && seg < SEG_FS)
		seg = SEG_DS;
	return seg;
}

static int store_bytes(struct vcpu *v, const struct insn *i, const u8 *src, const u8 *mask, unsigned count)
{
	unsigned seg = implied_seg(v, i), pass, n, m;
	u64 ea = elem_ea(i, v->r[R_RDI], 0);
	int rc;

	for (pass = 0; pass < 2; pass++) {
		for (n = 0; n < count; n = m) {
			m = n + 1;
			if (!enabled(mask, n, 1))
				continue;
			while (m < count && enabled(mask, m, 1))
				m++;
			rc = store_run(v, seg, elem_ea(i, ea, n), src, n, m, pass == 0);
			if (rc != STEP_OK)
				return rc;
		}
	}
	return STEP_OK;
}

static int maskmovdqu(struct vcpu *v, const struct insn *i)
{
	int rc = i->flags & INSN_VEX ? simd_avx_gate(v) : simd_sse_gate(v);
	unsigned k = i->op[0].kind == OPK_MEM ? 1 : 0; /* should the decoder list the implied destination */

	if (rc != STEP_OK)
		return rc;
	return store_bytes(v, i, v->fpu.ymm[i->op[k].reg], v->fpu.ymm[i->op[k + 1].reg], 16);
}

static int maskmovq(struct vcpu *v, const struct insn *i)
{
	unsigned k = i->op[0].kind == OPK_MEM ? 1 : 0;
	int rc = simd_mmx_gate(v);

	if (rc != STEP_OK)
		return rc;
	rc = store_bytes(v, i, fpu_mm(&v->fpu, i->op[k].reg & 7), fpu_mm(&v->fpu, i->op[k + 1].reg & 7), 8);
	if (rc == STEP_OK)
		fpu_mmx_enter(&v->fpu);
	return rc;
}

/* ---- gathers ---------------------------------------------------------------------------------------------------- */

static void gather_sizes(const struct insn *i, unsigned *index, unsigned *data)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_VGATHERDPS:
	case ZYDIS_MNEMONIC_VPGATHERDD:
		*index = *data = 4;
		break;
	case ZYDIS_MNEMONIC_VGATHERDPD:
	case ZYDIS_MNEMONIC_VPGATHERDQ:
		*index = 4;
		*data = 8;
		break;
	case ZYDIS_MNEMONIC_VGATHERQPS:
	case ZYDIS_MNEMONIC_VPGATHERQD:
		*index = 8;
		*data = 4;
		break;
	default:
		*index = *data = 8;
	}
}

static int gather(struct vcpu *v, const struct insn *i)
{
	unsigned isize, dsize, count, n;
	u8 dst[32] = {0}, mask[32] = {0};
	const u8 *index = v->fpu.ymm[i->vindex & 15];
	u32 idx32;
	u64 idx, ea;
	int rc = simd_avx_gate(v);

	if (rc != STEP_OK)
		return rc;
	if (i->op[0].reg == i->op[2].reg || i->op[0].reg == i->vindex || i->op[2].reg == i->vindex)
		return excp_raise(v, EXC_UD);
	gather_sizes(i, &isize, &dsize);
	count = i->vl / (isize > dsize ? isize : dsize);
	memcpy(dst, v->fpu.ymm[i->op[0].reg], count * dsize);
	/* What a fault leaves of masks not yet used: the manual has them sign-extended, AMD's family 19h untouched. */
	memcpy(mask, v->fpu.ymm[i->op[2].reg], count * dsize);
	for (n = 0; n < count && !cpuid_is_amd(); n++)
		memset(mask + n * dsize, enabled(mask, n, dsize) ? 0xff : 0, dsize);
	for (n = 0; n < count; n++) {
		if (!enabled(mask, n, dsize)) {
			memset(mask + n * dsize, 0, dsize);
			continue;
		}
		if (isize == 4) {
			memcpy(&idx32, index + 4 * n, 4);
			idx = (u64)(s64)(s32)idx32;
		} else {
			memcpy(&idx, index + 8 * n, 8);
		}
		ea = elem_ea(i, v->r[i->base] + (idx << i->scale), (u64)i->disp);
		rc = v_read(v, i->seg, ea, dst + n * dsize, dsize);
		if (rc == STEP_EXIT)
			return rc;
		if (rc != STEP_OK)
			break;
		memset(mask + n * dsize, 0, dsize);
	}
	if (rc != STEP_OK) {
		memcpy(v->fpu.ymm[i->op[0].reg], dst, count * dsize);
		memcpy(v->fpu.ymm[i->op[2].reg], mask, count * dsize);
		return rc;
	}
	memcpy(v->fpu.ymm[i->op[0].reg], dst, 32);
	memset(v->fpu.ymm[i->op[2].reg], 0, 32);
	return STEP_OK;
}

insn_fn simd_mask_find(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_VMASKMOVPS:
	case ZYDIS_MNEMONIC_VMASKMOVPD:
	case ZYDIS_MNEMONIC_VPMASKMOVD:
	case ZYDIS_MNEMONIC_VPMASKMOVQ:
		return i->op[0].kind == OPK_MEM ? mask_store : mask_load;
	case ZYDIS_MNEMONIC_MASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVDQU:
		return maskmovdqu;
	case ZYDIS_MNEMONIC_MASKMOVQ:
		return maskmovq;
	case ZYDIS_MNEMONIC_VGATHERDPS:
	case ZYDIS_MNEMONIC_VGATHERDPD:
	case ZYDIS_MNEMONIC_VGATHERQPS:
	case ZYDIS_MNEMONIC_VGATHERQPD:
	case ZYDIS_MNEMONIC_VPGATHERDD:
	case ZYDIS_MNEMONIC_VPGATHERDQ:
	case ZYDIS_MNEMONIC_VPGATHERQD:
	case ZYDIS_MNEMONIC_VPGATHERQQ:
		return gather;
	}
	return NULL;
}
