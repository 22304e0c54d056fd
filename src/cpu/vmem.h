/*
 * vmem.h: data accesses of instructions: effective address → segment → linear address → TLB → memory.
 *
 * Every function returns an enum step: STEP_OK, STEP_EXCP (v->excp is set) or STEP_EXIT (MMIO read wanted). Sizes in
 * bytes. v_*: through a segment register with the checks of the current mode. sys_*: implicit system accesses by linear
 * address (descriptor tables, TSS), always supervisor.
 */
#ifndef DEVKVM_CPU_VMEM_H
#define DEVKVM_CPU_VMEM_H

#include <string.h>

#include "cpu.h"

/* Turns an enum mem_rc other than MEM_OK into a step. */
int vmem_fail(struct vcpu *v, int rc);

static inline u64 insn_ea(const struct vcpu *v, const struct insn *i)
{
	u64 ea = v->r[i->base] + (v->r[i->index] << i->scale) + (u64)i->disp;

	if (likely(i->asize == 8))
		return ea;
	return i->asize == 4 ? (u32)ea : (u16)ea;
}

static inline bool is_canonical(u64 a)
{
	return (u64)((s64)(a << 16) >> 16) == a;
}

static inline int v_linear(struct vcpu *v, unsigned seg, u64 ea, unsigned size, unsigned access, gva_t *gva)
{
	if (likely(v->mode == MODE_64)) {
		u64 lin = seg >= SEG_FS && seg <= SEG_GS ? ea + v->seg[seg].base : ea;

		if (likely(is_canonical(lin) && is_canonical(lin + size - 1))) {
			*gva = lin;
			return STEP_OK;
		}
	} else if (likely((v->seg[seg].flat & access) == access && ea + size - 1 <= 0xffffffffu)) {
		*gva = ea;
		return STEP_OK;
	}
	return seg_linear_slow(v, seg, ea, size, access, gva);
}

static inline int lin_read(struct vcpu *v, gva_t gva, void *dst, unsigned size)
{
	const u8 *p = tlb_lookup(&v->mmu.tlb[v->mmu.ctx][TLB_READ], gva, size);
	int rc;

	if (likely(p)) {
		memcpy(dst, p, size);
		return STEP_OK;
	}
	rc = mem_read(&v->mmu, gva, dst, size, v->mmu.ctx);
	return likely(rc == MEM_OK) ? STEP_OK : vmem_fail(v, rc);
}

static inline int lin_write(struct vcpu *v, gva_t gva, const void *src, unsigned size)
{
	u8 *p = tlb_lookup(&v->mmu.tlb[v->mmu.ctx][TLB_WRITE], gva, size);
	int rc;

	if (likely(p)) {
		memcpy(p, src, size);
		return STEP_OK;
	}
	rc = mem_write(&v->mmu, gva, src, size, v->mmu.ctx);
	return likely(rc == MEM_OK) ? STEP_OK : vmem_fail(v, rc);
}

/* v_read() and v_write() for what misses the TLB or needs a look at the segment. */
int v_read_slow(struct vcpu *v, unsigned seg, u64 ea, void *dst, unsigned size);
int v_write_slow(struct vcpu *v, unsigned seg, u64 ea, const void *src, unsigned size);

/*
 * The TLB first: where segmentation adds no check (64-bit mode, flat segments), an entry that matches proves the
 * access. Its tag is canonical and below 4 GiB outside 64-bit mode, and covers the last byte too. NULL: the slow way.
 */
static inline u8 *v_fast(struct vcpu *v, unsigned seg, u64 ea, unsigned size, unsigned access)
{
	gva_t gva = ea;

	if (likely(v->mode == MODE_64)) {
		if (unlikely(seg >= SEG_FS && seg <= SEG_GS))
			gva += v->seg[seg].base;
	} else if (unlikely((v->seg[seg].flat & access) != access)) {
		return NULL;
	}
	return tlb_lookup(&v->mmu.tlb[v->mmu.ctx][access & MEM_WRITE ? TLB_WRITE : TLB_READ], gva, size);
}

/* Call these with a constant size where speed matters: memcpy then becomes one move (and so is atomic when aligned). */
static inline int v_read(struct vcpu *v, unsigned seg, u64 ea, void *dst, unsigned size)
{
	const u8 *p = v_fast(v, seg, ea, size, MEM_READ);

	if (likely(p)) {
		memcpy(dst, p, size);
		return STEP_OK;
	}
	return v_read_slow(v, seg, ea, dst, size);
}

static inline int v_write(struct vcpu *v, unsigned seg, u64 ea, const void *src, unsigned size)
{
	u8 *p = v_fast(v, seg, ea, size, MEM_WRITE);

	if (likely(p)) {
		memcpy(p, src, size);
		return STEP_OK;
	}
	return v_write_slow(v, seg, ea, src, size);
}

static inline int sys_read(struct vcpu *v, gva_t gva, void *dst, unsigned size)
{
	int rc = mem_read(&v->mmu, gva, dst, size, TLB_SUPER);

	return likely(rc == MEM_OK) ? STEP_OK : vmem_fail(v, rc);
}

static inline int sys_write(struct vcpu *v, gva_t gva, const void *src, unsigned size)
{
	int rc = mem_write(&v->mmu, gva, src, size, TLB_SUPER);

	return likely(rc == MEM_OK) ? STEP_OK : vmem_fail(v, rc);
}

#endif
