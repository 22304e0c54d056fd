/*
 * vmem.c: the uncommon ways of vmem.h: what a failed access becomes, and host-pointer access through a segment.
 */
#include "vmem.h"

int vmem_fail(struct vcpu *v, int rc)
{
	switch (rc) {
	case MEM_FAULT:
		return excp_page_fault(v);
	case MEM_ALIGN:
		return excp_raise_err(v, EXC_AC, 0);
	case MEM_EXIT:
		v->exit.reason = EXIT_MMIO;
		v->exit.mmio.gpa = v->mmu.mmio_req.gpa;
		v->exit.mmio.len = v->mmu.mmio_req.len;
		v->exit.mmio.is_write = false;
		return STEP_EXIT;
	case MEM_GONE:
		v->exit.reason = EXIT_GONE;
		return STEP_EXIT;
	case MEM_STEP:
		v->exit.reason = EXIT_STEP;
		return STEP_EXIT;
	default:
		return cpu_internal_error(v, "MMIO access that no instruction can make");
	}
}

int v_read_slow(struct vcpu *v, unsigned seg, u64 ea, void *dst, unsigned size)
{
	gva_t gva;
	int rc = v_linear(v, seg, ea, size, MEM_READ, &gva);

	return likely(rc == STEP_OK) ? lin_read(v, gva, dst, size) : rc;
}

int v_write_slow(struct vcpu *v, unsigned seg, u64 ea, const void *src, unsigned size)
{
	gva_t gva;
	int rc = v_linear(v, seg, ea, size, MEM_WRITE, &gva);

	return likely(rc == STEP_OK) ? lin_write(v, gva, src, size) : rc;
}

int v_open(struct vcpu *v, unsigned seg, u64 ea, unsigned size, unsigned access, bool locked, struct memref *ref)
{
	gva_t gva;
	int rc = v_linear(v, seg, ea, size, access, &gva);

	if (unlikely(rc != STEP_OK))
		return rc;
	/* A write entry answers for both kinds of access. */
	ref->p = tlb_lookup(&v->mmu.tlb[v->mmu.ctx][access & MEM_WRITE ? TLB_WRITE : TLB_READ], gva, size);
	if (likely(ref->p)) {
		ref->direct = true;
		return STEP_OK;
	}
	rc = mem_open(&v->mmu, gva, size, access, v->mmu.ctx, locked, ref);
	return likely(rc == MEM_OK) ? STEP_OK : vmem_fail(v, rc);
}
