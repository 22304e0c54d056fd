/*
 * state.c: reset, the derived state, and the check that a processor can run from what a client set.
 *
 * Invariants:
 *  - CPL lives in SS.DPL (as in a VMCS): whoever changes privilege changes seg[SEG_SS].dpl, null SS included;
 *  - the paging inputs of struct mmu are set here alone, and a change of any of them flushes the TLB.
 */
#include <string.h>
#include <x86intrin.h>

#include "../x86/pte.h"
#include "segint.h"

/* Interface-2006, KVM_CREATE_VCPU; SDM vol. 3, table 10-1 for the rest. */
void cpu_reset(struct vcpu *v)
{
	u32 sig[4];

	memset(v->r, 0, sizeof(v->r));
	v->rflags = FLAGS_FIXED;
	cpuid_leaf(1, 0, sig);
	v->r[R_RDX] = sig[0];
	v->r[R_RIP] = 0xfff0;
	for (unsigned n = 0; n < SEG_COUNT; n++) {
		struct seg *s = &v->seg[n];

		memset(s, 0, sizeof(*s));
		s->limit = 0xffff;
		s->present = true;
		s->s = n < SEG_LDTR;
		s->type = SEGT_W | SEGT_A;
	}
	v->seg[SEG_CS].sel = 0xf000;
	v->seg[SEG_CS].base = 0xf0000;
	v->seg[SEG_CS].type = SEGT_CODE | SEGT_R | SEGT_A;
	v->seg[SEG_LDTR].type = SYST_LDT;
	v->seg[SEG_TR].type = SYST_TSS32_BUSY;
	v->gdt.base = v->idt.base = 0;
	v->gdt.limit = v->idt.limit = 0xffff;
	v->cr0 = CR0_CD | CR0_NW | CR0_ET;
	v->cr2 = v->cr3 = v->cr4 = v->cr8 = v->efer = 0;
	v->apic_base = 0xfee00000 | APIC_BASE_ENABLE | (v->is_bsp ? APIC_BASE_BSP : 0);
	memset(v->dr, 0, sizeof(v->dr));
	v->dr6 = DR6_FIXED;
	v->dr7 = DR7_FIXED;
	v->excp.kind = EVENT_NONE;
	v->pending_db = 0;
	v->nmi_masked = false;
	v->nmi_pending = 0;
	atomic_store(&v->nmi_queued, 0);
	v->shadow = 0;
	v->excp_ext = 0;
	v->rf_fresh = v->tf_done = false;
	v->star = v->lstar = v->cstar = v->sfmask = v->kernel_gs_base = 0;
	v->sysenter_cs = v->sysenter_esp = v->sysenter_eip = 0;
	v->tsc_aux = 0;
	v->pat = 0x0007040600070406ull;
	v->misc_enable = BIT(0) | BIT(11) | BIT(12); /* fast strings; no BTS, no PEBS */
	v->mtrr_def = 0;
	v->debugctl = 0;
	memset(v->mtrr_fixed, 0, sizeof(v->mtrr_fixed));
	memset(v->mtrr_var, 0, sizeof(v->mtrr_var));
	memset(v->msr_spare, 0, sizeof(v->msr_spare));
	v->tsc_offset = -(s64)__rdtsc();
	/* A later reset leaves what the client's CPUID has made of it. */
	if (!v->amd_rules && !v->intel_rules) {
		v->amd_rules = cpuid_is_amd();
		v->intel_rules = !cpuid_is_amd();
	}
	memset(v->mmu.pdpte, 0, sizeof(v->mmu.pdpte));
	fpu_reset(&v->fpu);
	cpu_update(v);
	tlb_flush(&v->mmu);
}

static void update_mmu(struct vcpu *v)
{
	struct mmu *m = &v->mmu;
	enum paging paging = PAGING_OFF;
	bool wp = v->cr0 & CR0_WP, nx = v->efer & EFER_NX;
	bool smep = v->cr4 & CR4_SMEP, smap = v->cr4 & CR4_SMAP, pge = v->cr4 & CR4_PGE;
	bool pse = v->cr4 & CR4_PSE, pcide = v->cr4 & CR4_PCIDE;
	u32 leaf[4];

	if (v->cr0 & CR0_PG) {
		if (cpu_lma(v))
			paging = PAGING_64;
		else
			paging = v->cr4 & CR4_PAE ? PAGING_PAE : PAGING_32;
	}
	if (m->paging == paging && m->wp == wp && m->nx == nx && m->smep == smep && m->smap == smap && m->pge == pge &&
	    m->pse == pse && m->pcide == pcide && m->cr3 == v->cr3)
		return;
	m->paging = paging;
	m->wp = wp;
	m->nx = nx;
	m->smep = smep;
	m->smap = smap;
	m->pge = pge;
	m->pse = pse;
	m->pcide = pcide;
	m->cr3 = v->cr3;
	cpuid_leaf(0x80000001u, 0, leaf);
	m->gbpages = leaf[3] & BIT(26);
	tlb_flush(m);
}

void cpu_update_flags(struct vcpu *v)
{
	bool v86 = (v->rflags & FLAGS_VM) && (v->cr0 & CR0_PE);

	if (unlikely(v86 != (v->mode == MODE_V86))) {
		cpu_update_mode(v);
		return;
	}
	v->mmu.ctx = ctx_of_cpl(v, v->cpl);
	/* RF counts as stepping: somebody has to clear it after the next instruction. */
	v->stepping = v->dbg_step || (v->rflags & (FLAGS_TF | FLAGS_RF));
}

void cpu_update_mode(struct vcpu *v)
{
	const struct seg *cs = &v->seg[SEG_CS];
	unsigned old = v->mode, cpl;

	if (!(v->cr0 & CR0_PE)) {
		v->mode = MODE_REAL;
		cpl = 0;
	} else if (v->rflags & FLAGS_VM) {
		v->mode = MODE_V86;
		cpl = 3;
	} else {
		cpl = v->seg[SEG_SS].dpl;
		if (!cpu_lma(v))
			v->mode = MODE_PROT;
		else
			v->mode = cs->l ? MODE_64 : MODE_COMPAT;
	}
	v->cpl = (u8)cpl;
	if (v->mode == MODE_64)
		v->dmode = DECODE_64;
	else
		v->dmode = cs->db ? DECODE_32 : DECODE_16;
	v->stack_is_32 = v->seg[SEG_SS].db;
	v->code_key = cpu_code_key(v->mode, v->dmode, cpl, v->stack_is_32);
	if (v->mode != old) {
		for (unsigned n = 0; n <= SEG_GS; n++)
			seg_derive(v, n);
	}
	cpu_update_flags(v);
}

void cpu_update(struct vcpu *v)
{
	v->r[R_ZERO] = 0;
	v->rflags |= FLAGS_FIXED;
	v->cr0 |= CR0_ET;
	update_mmu(v);
	dbg_update(v);
	cpu_update_mode(v);
	for (unsigned n = 0; n < SEG_COUNT; n++)
		seg_derive(v, n);
	if ((v->rflags & FLAGS_IF) && v->ops && v->ops->irq_pending && v->ops->irq_pending(v))
		atomic_fetch_or(&v->events, (u32)EV_IRQ);
}

void cpu_set_rflags(struct vcpu *v, u64 val, u64 mask)
{
	u64 old = v->rflags;

	mask &= FLAGS_ALL;
	v->rflags = (old & ~mask) | (val & mask) | FLAGS_FIXED;
	if (v->rflags & mask & FLAGS_RF)
		v->rf_fresh = true;
	if ((old ^ v->rflags) & (FLAGS_TF | FLAGS_RF | FLAGS_VM | FLAGS_AC))
		cpu_update_flags(v);
	if (!(v->rflags & ~old & FLAGS_IF))
		return;
	cpu_release_events(v);
	if (v->ops->irq_pending && v->ops->irq_pending(v))
		atomic_fetch_or(&v->events, (u32)EV_IRQ);
}

void cpu_set_crs(struct vcpu *v, u64 cr0, u64 cr3, u64 cr4, u64 efer)
{
	v->cr0 = cr0 | CR0_ET;
	v->cr3 = cr3;
	v->cr4 = cr4;
	v->efer = efer;
	if (!(cr0 & CR0_PE))
		v->seg[SEG_SS].dpl = 0;
	if ((cr0 & CR0_PG) && (cr4 & CR4_PAE) && !(efer & EFER_LMA))
		mmu_load_pdptes(&v->mmu, cr3); /* a bad pointer shows as #PF or in cpu_check_state() */
	cpu_update(v);
	tlb_flush(&v->mmu);
}

static const char *check_code_and_stack(const struct vcpu *v)
{
	const struct seg *cs = &v->seg[SEG_CS], *ss = &v->seg[SEG_SS];

	if (v->rflags & FLAGS_VM) {
		for (unsigned n = 0; n <= SEG_GS; n++) {
			const struct seg *s = &v->seg[n];

			if (s->base != (u64)s->sel << 4 || s->limit != 0xffff)
				return "segment of virtual-8086 mode is not selector * 16, 64 KiB";
		}
		return NULL;
	}
	if (cs->unusable || !cs->present || !cs->s || !(cs->type & SEGT_CODE)) {
		/* Unrestricted guests may run with CS of type 3 (SDM vol. 3, 27.3.1.2). */
		if (cs->unusable || !cs->present || !cs->s || (cs->type & 0xb) != (SEGT_W | SEGT_A))
			return "CS is not code";
		if (cs->dpl != 0)
			return "CS is data with a DPL other than 0";
	} else if (cs->type & SEGT_C) {
		if (cs->dpl > ss->dpl)
			return "conforming CS with a DPL above SS.DPL";
	} else if (cs->dpl != ss->dpl) {
		return "CS.DPL is not SS.DPL";
	}
	if ((v->efer & EFER_LMA) && cs->l && cs->db)
		return "CS.L and CS.D both set";
	if (!ss->unusable && (!ss->present || !ss->s || (ss->type & SEGT_CODE) || !(ss->type & SEGT_W)))
		return "SS is not writable data";
	return NULL;
}

/* SDM vol. 3, 27.3.1: checks on the guest state area, as far as they apply without VMX. */
const char *cpu_check_state(const struct vcpu *v)
{
	bool lma = v->efer & EFER_LMA, lme = v->efer & EFER_LME, pg = v->cr0 & CR0_PG;

	if (v->cr0 >> 32)
		return "CR0 has high bits set";
	if (pg && !(v->cr0 & CR0_PE))
		return "CR0.PG without CR0.PE";
	if ((v->cr0 & CR0_NW) && !(v->cr0 & CR0_CD))
		return "CR0.NW without CR0.CD";
	if (v->cr4 & ~cpuid_cr4_mask())
		return "reserved bit in CR4";
	if (v->efer & ~cpuid_efer_mask())
		return "reserved bit in EFER";
	if (lma != (lme && pg))
		return "EFER.LMA is not EFER.LME and CR0.PG";
	if (lma && !(v->cr4 & CR4_PAE))
		return "long mode without CR4.PAE";
	if ((v->cr4 & CR4_PCIDE) && !lma)
		return "CR4.PCIDE outside long mode";
	if (lma && (v->cr3 & ~v->mmu.phys_mask))
		return "reserved bit in CR3";
	if (!(v->rflags & FLAGS_FIXED) || (v->rflags & ~FLAGS_ALL))
		return "reserved bit in RFLAGS";
	if ((v->rflags & FLAGS_VM) && (lma || !(v->cr0 & CR0_PE)))
		return "RFLAGS.VM outside protected mode";
	if (!(lma && v->seg[SEG_CS].l) && (v->r[R_RIP] >> 32))
		return "RIP has high bits set outside 64-bit mode";
	if (lma && v->seg[SEG_CS].l && !is_canonical(v->r[R_RIP]))
		return "RIP is not canonical";
	if (!(v->cr0 & CR0_PE))
		return NULL;
	return check_code_and_stack(v);
}
