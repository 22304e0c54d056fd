/*
 * msr.c: model-specific registers (SDM vol. 4; APM vol. 2, appendix A). An MSR that is not here raises #GP, which is
 * what guests probe for.
 *
 * Registers that steer nothing in a software processor (memory types, microcode, chicken bits) are stored and read
 * back where guests insist on them, with their reserved bits checked where the manual checks them.
 */
#include <x86intrin.h>

#include "../x86/pte.h"
#include "segint.h"

/* msr_spare[] */
enum {
	SPARE_TSC_ADJUST,
	SPARE_SPEC_CTRL,
	SPARE_MCG_STATUS,
	SPARE_SYSCFG,
	SPARE_HWCR,
	SPARE_DE_CFG,
	SPARE_LS_CFG,
	SPARE_IC_CFG,
	SPARE_DC_CFG,
	SPARE_UCODE,
	SPARE_TOP_MEM,
	SPARE_TOP_MEM2,
	SPARE_NB_CFG
};

#define MTRR_VARS 8
#define HWCR_TSC_FREQ_SEL BIT(24)

u64 tsc_read(const struct vcpu *v)
{
	return __rdtsc() + (u64)v->tsc_offset;
}

/* MSRs of the host's vendor alone: where the value lives, NULL when it is none of these. */
static u64 *vendor_slot(struct vcpu *v, u32 msr)
{
	if (cpuid_is_amd()) {
		switch (msr) {
		case MSR_AMD_SYSCFG:
			return &v->msr_spare[SPARE_SYSCFG];
		case MSR_AMD_HWCR:
			return &v->msr_spare[SPARE_HWCR];
		case MSR_AMD_DE_CFG:
			return &v->msr_spare[SPARE_DE_CFG];
		case MSR_AMD_LS_CFG:
			return &v->msr_spare[SPARE_LS_CFG];
		case MSR_AMD_IC_CFG:
			return &v->msr_spare[SPARE_IC_CFG];
		case MSR_AMD_DC_CFG:
			return &v->msr_spare[SPARE_DC_CFG];
		case MSR_AMD_TOP_MEM:
			return &v->msr_spare[SPARE_TOP_MEM];
		case MSR_AMD_TOP_MEM2:
			return &v->msr_spare[SPARE_TOP_MEM2];
		case MSR_AMD_NB_CFG:
			return &v->msr_spare[SPARE_NB_CFG];
		}
	}
	return NULL;
}

static bool has_spec_ctrl(void)
{
	u32 l[4];

	cpuid_leaf(7, 0, l);
	return l[3] & BIT(26);
}

static bool has_arch_caps(void)
{
	u32 l[4];

	cpuid_leaf(7, 0, l);
	return l[3] & BIT(29);
}

static int fixed_mtrr(u32 msr)
{
	if (msr == MSR_MTRR_FIX64K)
		return 0;
	if (msr == MSR_MTRR_FIX16K || msr == MSR_MTRR_FIX16K + 1)
		return 1 + (int)(msr - MSR_MTRR_FIX16K);
	if (msr >= MSR_MTRR_FIX4K && msr < MSR_MTRR_FIX4K + 8)
		return 3 + (int)(msr - MSR_MTRR_FIX4K);
	return -1;
}

int msr_read(struct vcpu *v, u32 msr, u64 *val)
{
	int rc;

	*val = 0;
	if (v->ops && v->ops->msr_read) {
		rc = v->ops->msr_read(v, msr, val, false);
		if (rc != MSR_PASS)
			return rc;
	}
	return msr_read_model(v, msr, val);
}

int msr_read_model(struct vcpu *v, u32 msr, u64 *val)
{
	u64 *slot;

	*val = 0;
	switch (msr) {
	case MSR_TSC:
		*val = tsc_read(v);
		return 0;
	case MSR_APIC_BASE:
		*val = v->apic_base;
		return 0;
	case MSR_TSC_ADJUST:
		*val = v->msr_spare[SPARE_TSC_ADJUST];
		return 0;
	case MSR_SYSENTER_CS:
		*val = v->sysenter_cs;
		return 0;
	case MSR_SYSENTER_ESP:
		*val = v->sysenter_esp;
		return 0;
	case MSR_SYSENTER_EIP:
		*val = v->sysenter_eip;
		return 0;
	case MSR_PAT:
		*val = v->pat;
		return 0;
	case MSR_MTRR_CAP:
		*val = MTRR_VARS | BIT(8) | BIT(10); /* fixed ranges, write combining */
		return 0;
	case MSR_MTRR_DEF:
		*val = v->mtrr_def;
		return 0;
	case MSR_MCG_CAP: /* no banks */
		return 0;
	case MSR_MCG_STATUS:
		*val = v->msr_spare[SPARE_MCG_STATUS];
		return 0;
	case MSR_UCODE_REV:
		/* AMD: the patch level; Intel: revision in the upper half. A high one: nobody tries to update it. */
		*val = cpuid_is_amd() ? 0x0affffff : 0xffffffffull << 32;
		return 0;
	case MSR_DEBUGCTL:
		*val = v->debugctl;
		return 0;
	case MSR_EFER:
		*val = v->efer;
		return 0;
	case MSR_STAR:
		*val = v->star;
		return 0;
	case MSR_LSTAR:
		*val = v->lstar;
		return 0;
	case MSR_CSTAR:
		*val = v->cstar;
		return 0;
	case MSR_SFMASK:
		*val = v->sfmask;
		return 0;
	case MSR_FS_BASE:
		*val = v->seg[SEG_FS].base;
		return 0;
	case MSR_GS_BASE:
		*val = v->seg[SEG_GS].base;
		return 0;
	case MSR_KERNEL_GS_BASE:
		*val = v->kernel_gs_base;
		return 0;
	case MSR_TSC_AUX:
		*val = v->tsc_aux;
		return 0;
	case MSR_SPEC_CTRL:
		if (!has_spec_ctrl())
			return -1;
		*val = v->msr_spare[SPARE_SPEC_CTRL];
		return 0;
	case MSR_ARCH_CAPABILITIES:
		if (!has_arch_caps())
			return -1;
		/* Everything "not affected": nothing here runs ahead of the guest's program. RDCL, IBRS_ALL,
		 * SKIP_L1DFL, SSB, MDS, PSCHANGE, TAA, SBDR, FBSDP, PSDP, BHI, PBRSB, GDS, RFDS, ITS. */
		*val = BIT(0) | BIT(1) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(8) | BIT(13) | BIT(14) | BIT(15) |
		       BIT(20) | BIT(24) | BIT(26) | BIT(27) | BIT(62);
		return 0;
	case MSR_AMD_OSVW_LENGTH:
	case MSR_AMD_OSVW_STATUS:
	case MSR_AMD_INT_PENDING:
		return cpuid_is_amd() ? 0 : -1;
	case MSR_MISC_ENABLE:
		if (cpuid_is_amd())
			return -1;
		*val = v->misc_enable;
		return 0;
	case MSR_PLATFORM_ID:
	case MSR_PLATFORM_INFO:
	case MSR_MISC_FEATURES:
		return cpuid_is_amd() ? -1 : 0;
	}
	if (fixed_mtrr(msr) >= 0) {
		*val = v->mtrr_fixed[fixed_mtrr(msr)];
		return 0;
	}
	if (msr >= MSR_MTRR_VAR && msr < MSR_MTRR_VAR + 2 * MTRR_VARS) {
		*val = v->mtrr_var[msr - MSR_MTRR_VAR];
		return 0;
	}
	slot = vendor_slot(v, msr);
	if (!slot)
		return -1;
	*val = *slot;
	/* The TSC counts at P0 frequency: a fixed one on real parts, and Linux warns without it. */
	if (msr == MSR_AMD_HWCR)
		*val |= HWCR_TSC_FREQ_SEL;
	/* LFENCE is dispatch serialising. */
	if (msr == MSR_AMD_DE_CFG)
		*val |= BIT(1);
	return 0;
}

static bool mem_type_ok(u64 t)
{
	return t == 0 || t == 1 || t == 4 || t == 5 || t == 6;
}

/* PAT (SDM vol. 3, 12.12.2): type 7 is UC-. */
static bool pat_ok(u64 val)
{
	for (unsigned n = 0; n < 8; n++) {
		u64 t = val >> (8 * n) & 0xff;

		if (!mem_type_ok(t) && t != 7)
			return false;
	}
	return true;
}

static int write_efer(struct vcpu *v, u64 val, bool host)
{
	u64 old = v->efer;

	if (val & ~cpuid_efer_mask())
		return -1;
	if (host) {
		cpu_set_crs(v, v->cr0, v->cr3, v->cr4, val);
		return 0;
	}
	if ((val & v->denied.efer) || (((old ^ val) & EFER_LME) && (v->cr0 & CR0_PG)))
		return -1;
	v->efer = (val & ~EFER_LMA) | (old & EFER_LMA);
	if (v->efer != old)
		cpu_update(v);
	return 0;
}

static int write_apic_base(struct vcpu *v, u64 val, bool host)
{
	if ((val & 0xff) || (val & ~v->mmu.phys_mask))
		return -1;
	/* GAP(x2apic): bits 10 and 9 are reserved until there is a local APIC. */
	if (val & (BIT(9) | BIT(10)))
		return -1;
	v->apic_base = val;
	return 0;
}

static int write_mtrr(struct vcpu *v, u32 msr, u64 val)
{
	int fixed = fixed_mtrr(msr);
	u32 n = msr - MSR_MTRR_VAR;

	if (fixed >= 0) {
		for (unsigned k = 0; k < 8; k++) {
			if (!mem_type_ok(val >> (8 * k) & 0xff))
				return -1;
		}
		v->mtrr_fixed[fixed] = val;
		return 0;
	}
	if (n >= 2 * MTRR_VARS)
		return -1;
	if (n & 1) {
		if (val & ~(v->mmu.phys_mask & PAGE_MASK) & ~BIT(11))
			return -1;
	} else if ((val & ~(v->mmu.phys_mask & PAGE_MASK) & ~0xffull) || !mem_type_ok(val & 0xff)) {
		return -1;
	}
	v->mtrr_var[n] = val;
	return 0;
}

static int set_canonical(u64 *where, u64 val)
{
	if (!is_canonical(val))
		return -1;
	*where = val;
	return 0;
}

static void write_tsc(struct vcpu *v, u64 val)
{
	s64 offset = (s64)(val - __rdtsc());

	/* A write to the TSC shows in TSC_ADJUST (SDM vol. 3, 18.17.3). */
	v->msr_spare[SPARE_TSC_ADJUST] += (u64)(offset - v->tsc_offset);
	v->tsc_offset = offset;
}

int msr_write(struct vcpu *v, u32 msr, u64 val, bool host)
{
	u64 *slot;
	int rc;

	if (v->ops && v->ops->msr_write) {
		rc = v->ops->msr_write(v, msr, val, host);
		if (rc != MSR_PASS)
			return rc;
	}
	switch (msr) {
	case MSR_TSC:
		if (host)
			v->tsc_offset = (s64)(val - __rdtsc());
		else
			write_tsc(v, val);
		return 0;
	case MSR_TSC_ADJUST:
		if (!host)
			v->tsc_offset += (s64)(val - v->msr_spare[SPARE_TSC_ADJUST]);
		v->msr_spare[SPARE_TSC_ADJUST] = val;
		return 0;
	case MSR_APIC_BASE:
		return write_apic_base(v, val, host);
	case MSR_SYSENTER_CS:
		v->sysenter_cs = (u32)val;
		return 0;
	case MSR_SYSENTER_ESP:
		return set_canonical(&v->sysenter_esp, val);
	case MSR_SYSENTER_EIP:
		return set_canonical(&v->sysenter_eip, val);
	case MSR_PAT:
		if (!pat_ok(val))
			return -1;
		v->pat = val;
		return 0;
	case MSR_MTRR_DEF:
		if ((val & ~0xcffull) || !mem_type_ok(val & 0xff))
			return -1;
		v->mtrr_def = val;
		return 0;
	case MSR_MCG_STATUS:
		if (val && !host)
			return -1;
		v->msr_spare[SPARE_MCG_STATUS] = val;
		return 0;
	case MSR_UCODE_REV:
	case MSR_UCODE_WRITE:
		return 0; /* written before CPUID asks for the revision; nothing is ever loaded */
	case MSR_DEBUGCTL:
		if (val)
			return -1; /* GAP(debugctl) */
		v->debugctl = val;
		return 0;
	case MSR_EFER:
		return write_efer(v, val, host);
	case MSR_STAR:
		v->star = val;
		return 0;
	case MSR_LSTAR:
		return set_canonical(&v->lstar, val);
	case MSR_CSTAR:
		return set_canonical(&v->cstar, val);
	case MSR_SFMASK:
		if (val >> 32)
			return -1;
		v->sfmask = val;
		return 0;
	case MSR_FS_BASE:
		rc = set_canonical(&v->seg[SEG_FS].base, val);
		seg_derive(v, SEG_FS);
		return rc;
	case MSR_GS_BASE:
		rc = set_canonical(&v->seg[SEG_GS].base, val);
		seg_derive(v, SEG_GS);
		return rc;
	case MSR_KERNEL_GS_BASE:
		return set_canonical(&v->kernel_gs_base, val);
	case MSR_TSC_AUX:
		if (val >> 32)
			return -1;
		v->tsc_aux = val;
		return 0;
	case MSR_SPEC_CTRL:
		if (!has_spec_ctrl() || (val & ~7ull))
			return -1;
		v->msr_spare[SPARE_SPEC_CTRL] = val;
		return 0;
	case MSR_PRED_CMD:
		return has_spec_ctrl() && !(val & ~1ull) ? 0 : -1;
	case MSR_MISC_ENABLE:
		if (cpuid_is_amd())
			return -1;
		/* Only the bits that mean nothing here may change; "limit CPUID" and "XD disable" (22, 34) may not. */
		if ((val ^ v->misc_enable) & (BIT(22) | BIT(34) | BIT(11) | BIT(12)))
			return -1;
		v->misc_enable = val;
		return 0;
	case MSR_AMD_OSVW_LENGTH:
	case MSR_AMD_OSVW_STATUS:
	case MSR_AMD_INT_PENDING:
		return cpuid_is_amd() && (host || !val) ? 0 : -1;
	case MSR_MISC_FEATURES:
		return cpuid_is_amd() || val ? -1 : 0; /* CPUID faulting is not offered */
	}
	if (fixed_mtrr(msr) >= 0 || (msr >= MSR_MTRR_VAR && msr < MSR_MTRR_VAR + 2 * MTRR_VARS))
		return write_mtrr(v, msr, val);
	slot = vendor_slot(v, msr);
	if (!slot)
		return -1;
	*slot = val;
	return 0;
}
