/*
 * cr.c: control registers and XCR0: every check of MOV CRn, and what a change sets off.
 *
 * Invariant: a write either faults and changes nothing, or is complete: EFER.LMA, the PAE pointers, the TLB and the
 * derived state follow at once. SDM vol. 3, 2.5, 4.10.4 and 10.8.5; vol. 2, MOV to/from control registers.
 */
#include "../x86/pte.h"
#include "segint.h"

static int gp0(struct vcpu *v)
{
	return excp_raise_err(v, EXC_GP, 0);
}

int cr_read(struct vcpu *v, unsigned n, u64 *val)
{
	switch (n) {
	case 0:
		*val = v->cr0;
		return STEP_OK;
	case 2:
		*val = v->cr2;
		return STEP_OK;
	case 3:
		*val = v->cr3;
		return STEP_OK;
	case 4:
		*val = v->cr4;
		return STEP_OK;
	case 8:
		*val = v->cr8;
		return STEP_OK;
	default:
		return excp_raise(v, EXC_UD);
	}
}

/* PAE paging keeps the four top entries inside the processor (4.4.1). */
static bool pdptes_bad(struct vcpu *v, u64 cr0, u64 cr4, u64 cr3)
{
	if (!(cr0 & CR0_PG) || !(cr4 & CR4_PAE) || (v->efer & EFER_LMA))
		return false;
	return !mmu_load_pdptes(&v->mmu, cr3);
}

static int write_cr0(struct vcpu *v, u64 val)
{
	const u64 known =
	        CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | CR0_PG;
	u64 old = v->cr0, efer = v->efer, changed;

	if (val >> 32)
		return gp0(v);
	val = (val & known) | CR0_ET;
	if (((val & CR0_PG) && !(val & CR0_PE)) || ((val & CR0_NW) && !(val & CR0_CD)))
		return gp0(v);
	changed = old ^ val;
	if (!changed)
		return STEP_OK;
	if (changed & CR0_PG) {
		if (val & CR0_PG) {
			if (efer & EFER_LME) {
				const struct seg *tr = &v->seg[SEG_TR];

				if (!(v->cr4 & CR4_PAE) || v->seg[SEG_CS].l)
					return gp0(v);
				if (!tr->unusable && !(tr->type & 8))
					return gp0(v);
				efer |= EFER_LMA;
			}
		} else {
			if (v->mode == MODE_64 || (v->cr4 & CR4_PCIDE))
				return gp0(v);
			efer &= ~EFER_LMA;
		}
	}
	if ((changed & (CR0_PG | CR0_CD | CR0_NW)) && !(efer & EFER_LMA) && pdptes_bad(v, val, v->cr4, v->cr3))
		return gp0(v);
	v->cr0 = val;
	v->efer = efer;
	if (!(changed & ~(CR0_TS | CR0_MP | CR0_EM | CR0_NE)))
		return STEP_JUMP;
	if ((changed & CR0_PE) && (val & CR0_PE))
		v->seg[SEG_SS].dpl = 0;
	cpu_update(v);
	if (changed & (CR0_PG | CR0_WP | CR0_CD | CR0_NW))
		tlb_flush(&v->mmu);
	return STEP_JUMP;
}

static int write_cr3(struct vcpu *v, u64 val)
{
	bool keep = false;

	if (v->cr4 & CR4_PCIDE) {
		keep = val >> 63;
		val &= ~BIT(63);
	}
	if (v->mode == MODE_64) {
		if (val & ~v->mmu.phys_mask)
			return gp0(v);
	} else {
		val = (u32)val;
	}
	if (pdptes_bad(v, v->cr0, v->cr4, val))
		return gp0(v);
	if ((v->cr4 & CR4_PCIDE) && ((val ^ v->cr3) & 0xfff))
		tlb_switch(&v->mmu, (u16)(v->cr3 & 0xfff), (u16)(val & 0xfff), keep);
	else if (!(keep && val == v->cr3))
		tlb_flush_local(&v->mmu);
	v->cr3 = val;
	v->mmu.cr3 = val;
	return STEP_JUMP;
}

static int write_cr4(struct vcpu *v, u64 val)
{
	u64 changed = v->cr4 ^ val;

	if (val & (~cpuid_cr4_mask() | v->denied.cr4))
		return gp0(v);
	if (cpu_lma(v) && !(val & CR4_PAE))
		return gp0(v);
	if ((changed & val & CR4_PCIDE) && (!cpu_lma(v) || (v->cr3 & 0xfff)))
		return gp0(v);
	if ((changed & (CR4_PAE | CR4_PSE | CR4_PGE | CR4_SMEP)) && pdptes_bad(v, v->cr0, val, v->cr3))
		return gp0(v);
	v->cr4 = val;
	cpu_update(v);
	if (changed & (CR4_PAE | CR4_PSE | CR4_PGE | CR4_SMEP | CR4_SMAP | CR4_PCIDE))
		tlb_flush(&v->mmu);
	return STEP_JUMP;
}

int cr_write(struct vcpu *v, unsigned n, u64 val)
{
	switch (n) {
	case 0:
		return write_cr0(v, val);
	case 2:
		v->cr2 = val;
		return STEP_OK;
	case 3:
		return write_cr3(v, val);
	case 4:
		return write_cr4(v, val);
	case 8:
		if (val > 15)
			return gp0(v);
		v->cr8 = val;
		if (v->ops->cr8_written)
			v->ops->cr8_written(v);
		return STEP_JUMP;
	default:
		return excp_raise(v, EXC_UD);
	}
}

/* SDM vol. 1, 13.3. */
int xcr_write(struct vcpu *v, u32 n, u64 val)
{
	val = cpuid_xcr0_wanted(val);
	if (n != 0 || (val & ~cpuid_xcr0_mask()) || !(val & XCR0_X87) || ((val & XCR0_AVX) && !(val & XCR0_SSE)))
		return gp0(v);
	v->fpu.xcr0 = val;
	return STEP_OK;
}
