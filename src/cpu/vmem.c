/*
 * vmem.c: the uncommon ways of vmem.h: what a failed access becomes, and accesses whose segment must be looked at.
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
