/*
 * dialect_12_msr.c: MSRs through ioctls, those that this dialect adds to the processor's (machine check banks, local
 * APIC, microcode and power registers), the filter that a client sets, and the exits that ask the client.
 *
 * Invariant: the filter changes with all vCPUs stopped.
 */
#include "dialect_12.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../base/usercopy.h"

#define MSR_TSC_DEADLINE 0x6e0
#define MSR_POWER_CTL 0x1fc
#define MSR_MCG_CTL 0x17b
#define MSR_MC0_CTL 0x400
#define MCG_CTL_P BIT(8)
#define MCG_SER_P BIT(24)
#define MCI_VAL BIT(63)
#define MCI_OVER BIT(62)
#define MCI_UC BIT(61)
#define MCG_STATUS_MCIP BIT(2)

/* ---- MSRs of the dialect ----------------------------------------------------------------------------------------- */

static u64 *mce_slot(struct vcpu12 *x, u32 msr)
{
	u32 n = msr - MSR_MC0_CTL;

	return n < 4 * (u32)(x->mcg_cap & 0xff) ? &x->mce[n] : NULL;
}

#define MSR_X2APIC_TPR (0x800 + LAPIC_TPR)

/* The registers of an x2APIC, 0x800 to 0x8ff: 0, or -1 for #GP. */
static int x2apic_read(struct vcpu *v, u32 msr, u64 *val, bool host)
{
	bool ok = lapic_of(v);

	if (!host)
		vapic_in(v);
	ok = ok && lapic_msr_read(lapic_of(v), msr, val);
	if (!host) {
		if (ok && msr == MSR_X2APIC_TPR)
			tpr_accessed(v, false, v->r[R_RIP]);
		vapic_out(v);
	}
	return ok ? 0 : -1;
}

static int x2apic_write(struct vcpu *v, u32 msr, u64 val, bool host)
{
	bool ok = lapic_of(v);

	if (!host)
		vapic_in(v);
	ok = ok && lapic_msr_write(lapic_of(v), msr, val);
	if (ok) {
		v->cr8 = lapic_of(v)->reg[LAPIC_TPR] >> 4 & 15;
		vcpu12_window(v);
	}
	if (!host) {
		if (ok && msr == MSR_X2APIC_TPR)
			tpr_accessed(v, true, v->r[R_RIP]);
		vapic_out(v);
	}
	return ok ? 0 : -1;
}

/* Is the bit of leaf 7's or 1's register set in what the guest sees? */
static bool guest_has(const struct vcpu12 *x, u32 leaf, u32 bit)
{
	const struct kvm_cpuid_entry2 *e = cpuid12_find(x, leaf, 0);

	return e && ((leaf == 7 ? e->edx : e->ecx) & bit);
}

/* MSRs of Intel's that describe the processor: the client may set them, a guest sees them by CPUID. */
static int describing_read(const struct vcpu12 *x, u32 msr, u64 *val, bool host)
{
	if (msr == MSR_ARCH_CAPABILITIES) { /* on AMD too, as on Linux */
		*val = x->arch_caps;
		return host || guest_has(x, 7, BIT(29)) ? 0 : -1;
	}
	if (cpuid_is_amd())
		return MSR_PASS;
	*val = 0; /* no performance monitoring */
	return host || guest_has(x, 1, BIT(15)) ? 0 : -1;
}

static int describing_write(struct vcpu12 *x, u32 msr, u64 val, bool host)
{
	if (cpuid_is_amd() && msr != MSR_ARCH_CAPABILITIES)
		return MSR_PASS;
	if (!host || (msr == MSR_PERF_CAPABILITIES && val))
		return -1;
	if (msr == MSR_ARCH_CAPABILITIES)
		x->arch_caps = val;
	return 0;
}

/* By what a guest's CPUID may take the register away. */
static unsigned denies(u32 msr)
{
	return msr == MSR_TSC_AUX ? DENY_RDTSCP : msr == MSR_SPEC_CTRL ? DENY_SPEC_CTRL : DENY_PRED_CMD;
}

int msr12_read(struct vcpu *v, u32 msr, u64 *val, bool host)
{
	struct vcpu12 *x = x12_of(v);
	u64 *slot;

	if (unlikely(x->msr_denied) && !host)
		return -1;
	if (msr >= 0x800 && msr < 0x900)
		return x2apic_read(v, msr, val, host);
	switch (msr) {
	case MSR_TSC_AUX:
	case MSR_SPEC_CTRL:
	case MSR_PRED_CMD:
		return !host && (v->denied.insn & denies(msr)) ? -1 : MSR_PASS;
	case MSR_TSC_DEADLINE:
		*val = lapic_of(v) ? lapic_of(v)->tsc_deadline : 0;
		return 0;
	case MSR_ARCH_CAPABILITIES:
	case MSR_PERF_CAPABILITIES:
		return describing_read(x, msr, val, host);
	case MSR_MISC_ENABLE:
		*val = x->misc_enable;
		return 0;
	case MSR_MCG_CAP:
		*val = x->mcg_cap;
		return 0;
	case MSR_MCG_CTL:
		if (!(x->mcg_cap & MCG_CTL_P) && !host)
			return -1;
		*val = x->mcg_ctl;
		return 0;
	case MSR_PLATFORM_INFO:
		if (!host && v->vm->x12->platform_info_off)
			return -1;
		*val = x->platform_info;
		return 0;
	case MSR_POWER_CTL:
		*val = x->power_ctl;
		return 0;
	case MSR_PLATFORM_ID:
	case MSR_MISC_FEATURES:
		*val = 0;
		return 0;
	}
	slot = mce_slot(x, msr);
	if (!slot) {
		int rc = smm_msr_read(v, msr, val, host);

		if (rc == MSR_PASS && hv_msr_allowed(v, msr, host))
			rc = synic_msr_read(v, msr, val, host);
		if (rc == MSR_PASS)
			rc = hv_msr_read(v, msr, val, host);
		return rc != MSR_PASS ? rc : pv_msr_read(v, msr, val);
	}
	*val = *slot;
	return 0;
}

static int mce_write(struct vcpu12 *x, u32 msr, u64 val, bool host)
{
	u64 *slot = mce_slot(x, msr);

	if (!slot)
		return MSR_PASS;
	/* CTL: all ones or all zeros, though Linux of old clears bit 10 of bank 4's, and bit 0; STATUS: cleared only.
	 */
	if ((msr & 3) == 0 && val && (val | BIT(10) | 1) != ~0ull)
		return -1;
	if ((msr & 3) == 1 && val && !host)
		return -1;
	*slot = val;
	return 0;
}

/* SDM vol. 3, 11.12.5: x2APIC needs the APIC on, and is left only through off. The client may change between all modes.
 */
static int apic_base_write(struct vcpu *v, u64 val, bool host)
{
	const u64 on = APIC_BASE_ENABLE, x2 = BIT(10);
	u64 old = v->apic_base;

	if ((val & 0x2ff) || (val & ~v->mmu.phys_mask) || (val & (on | x2)) == x2)
		return -1;
	if ((val & x2) && !cpuid12_x2apic(x12_of(v)))
		return -1;
	if (!host && (old & (on | x2)) == (on | x2) && (val & (on | x2)) == on)
		return -1;
	if (!host && !(old & on) && (val & (on | x2)) == (on | x2))
		return -1;
	v->apic_base = val;
	if (lapic_of(v))
		lapic_set_base(lapic_of(v), val);
	return 0;
}

int msr12_write(struct vcpu *v, u32 msr, u64 val, bool host)
{
	struct vcpu12 *x = x12_of(v);
	int rc;

	if (unlikely(x->msr_denied) && !host)
		return -1;
	if (msr >= 0x800 && msr < 0x900) {
		return x2apic_write(v, msr, val, host);
	}
	switch (msr) {
	case MSR_TSC_AUX:
	case MSR_SPEC_CTRL:
	case MSR_PRED_CMD:
		return !host && (v->denied.insn & denies(msr)) ? -1 : MSR_PASS;
	case MSR_TSC_DEADLINE:
		if (lapic_of(v))
			lapic_set_deadline(lapic_of(v), val);
		return 0;
	case MSR_APIC_BASE:
		return apic_base_write(v, val, host);
	case MSR_TSC:
		if (!host)
			return MSR_PASS;
		tsc12_set(v, val);
		return 0;
	case MSR_ARCH_CAPABILITIES:
	case MSR_PERF_CAPABILITIES:
		return describing_write(x, msr, val, host);
	case MSR_MISC_ENABLE:
		x->misc_enable = val;
		return 0;
	case MSR_MCG_CTL:
		if (!(x->mcg_cap & MCG_CTL_P) && (val || !host))
			return -1;
		if (val && val != ~0ull)
			return -1;
		x->mcg_ctl = val;
		return 0;
	case MSR_MCG_CAP:
		return -1;
	case MSR_PLATFORM_INFO:
		/* CPUID faulting (bit 31) is not offered. */
		if (!host || (val & BIT(31)))
			return -1;
		x->platform_info = val;
		return 0;
	case MSR_POWER_CTL:
		x->power_ctl = val;
		return 0;
	case MSR_MISC_FEATURES:
		return val ? -1 : 0;
	}
	if (mce_slot(x, msr))
		return mce_write(x, msr, val, host);
	rc = smm_msr_write(v, msr, val, host);
	if (rc == MSR_PASS && hv_msr_allowed(v, msr, host))
		rc = synic_msr_write(v, msr, val, host);
	if (rc == MSR_PASS)
		rc = hv_msr_write(v, msr, val, host);
	return rc != MSR_PASS ? rc : pv_msr_write(v, msr, val, host);
}

/* ---- MSRs through ioctls ----------------------------------------------------------------------------------------- */

static const u32 common_list[] = {MSR_TSC,
                                  MSR_SYSENTER_CS,
                                  MSR_SYSENTER_ESP,
                                  MSR_SYSENTER_EIP,
                                  MSR_STAR,
                                  MSR_CSTAR,
                                  MSR_LSTAR,
                                  MSR_SFMASK,
                                  MSR_PAT,
                                  MSR_TSC_AUX,
                                  MSR_TSC_ADJUST,
                                  MSR_TSC_DEADLINE,
                                  MSR_KERNEL_GS_BASE,
                                  MSR_KVM_WALL_CLOCK,
                                  MSR_KVM_SYSTEM_TIME,
                                  MSR_KVM_WALL_CLOCK_NEW,
                                  MSR_KVM_SYSTEM_TIME_NEW,
                                  MSR_KVM_STEAL_TIME,
                                  MSR_KVM_PV_EOI_EN,
                                  MSR_KVM_ASYNC_PF_EN,
                                  MSR_KVM_ASYNC_PF_INT,
                                  MSR_KVM_ASYNC_PF_ACK,
                                  MSR_KVM_POLL_CONTROL,
                                  MSR_MISC_ENABLE,
                                  MSR_MISC_FEATURES,
                                  MSR_MCG_STATUS,
                                  MSR_MCG_CTL,
                                  MSR_POWER_CTL,
                                  0x34, /* SMI_COUNT */
                                  0x9e, /* SMBASE */
                                  MSR_PLATFORM_INFO};
static const u32 intel_list[] = {MSR_SPEC_CTRL, MSR_ARCH_CAPABILITIES, MSR_PERF_CAPABILITIES};
static const u32 amd_list[] = {MSR_AMD_HWCR};
static const u32 intel_features[] = {MSR_ARCH_CAPABILITIES, MSR_UCODE_REV, MSR_PERF_CAPABILITIES};
static const u32 amd_features[] = {MSR_UCODE_REV, MSR_AMD_DE_CFG};

static unsigned list_add(u32 *to, unsigned n, const u32 *from, unsigned count)
{
	memcpy(to + n, from, count * sizeof(*to));
	return n + count;
}

long msr_list(unsigned long arg, bool features)
{
	struct kvm_msr_list head;
	u32 list[64];
	unsigned n = 0, room;
	long rc = user_read(&head, (void *)arg, sizeof(head));

	if (rc < 0)
		return rc;
	if (features) {
		n = cpuid_is_amd() ? list_add(list, n, amd_features, ARRAY_SIZE(amd_features))
		                   : list_add(list, n, intel_features, ARRAY_SIZE(intel_features));
	} else {
		n = list_add(list, n, common_list, ARRAY_SIZE(common_list));
		n = cpuid_is_amd() ? list_add(list, n, amd_list, ARRAY_SIZE(amd_list))
		                   : list_add(list, n, intel_list, ARRAY_SIZE(intel_list));
	}
	room = head.nmsrs;
	head.nmsrs = n;
	rc = user_write((void *)arg, &head, sizeof(head));
	if (rc < 0)
		return rc;
	if (room < n)
		return -E2BIG;
	return user_write((u8 *)arg + sizeof(head), list, n * sizeof(list[0]));
}

/* MSRs of an ioctl, one after the other until one fails: how many went well. */
typedef int (*msr_fn)(struct kvm_vcpu *kv, struct kvm_msr_entry *e);

static long each_msr(struct kvm_vcpu *kv, unsigned long arg, msr_fn fn, bool write_back)
{
	struct kvm_msr_entry *e;
	struct kvm_msrs head;
	unsigned done;
	long rc = user_read(&head, (void *)arg, sizeof(head));

	if (rc < 0)
		return rc;
	if (head.nmsrs >= MSRS_MAX)
		return -E2BIG;
	e = calloc(MSRS_MAX, sizeof(*e));
	if (!e)
		return -ENOMEM;
	rc = user_read(e, (u8 *)arg + sizeof(head), head.nmsrs * sizeof(*e));
	if (rc < 0)
		goto out;
	for (done = 0; done < head.nmsrs; done++)
		if (fn(kv, &e[done]) < 0)
			break;
	rc = done;
	if (write_back && user_write((u8 *)arg + sizeof(head), e, head.nmsrs * sizeof(*e)) < 0)
		rc = -EFAULT;
out:
	free(e);
	return rc;
}

static int get_one(struct kvm_vcpu *kv, struct kvm_msr_entry *e)
{
	u64 val = 0;
	int rc = msr12_read(&kv->cpu, e->index, &val, true);

	if (rc == MSR_PASS)
		rc = msr_read_model(&kv->cpu, e->index, &val);
	e->data = val;
	return rc;
}

static int set_one(struct kvm_vcpu *kv, struct kvm_msr_entry *e)
{
	kv->x12->check_state = true;
	return msr_write(&kv->cpu, e->index, e->data, true);
}

/* What the processor says of itself: constants, no vCPU's state matters. */
static bool constant_msr(u32 msr, u64 *val)
{
	static struct vcpu bare;

	*val = 0;
	return msr == MSR_PERF_CAPABILITIES || msr_read(&bare, msr, val) == 0;
}

void msr12_init(struct vcpu12 *x)
{
	constant_msr(MSR_ARCH_CAPABILITIES, &x->arch_caps);
}

static int feature_one(struct kvm_vcpu *kv, struct kvm_msr_entry *e)
{
	const u32 *list = cpuid_is_amd() ? amd_features : intel_features;
	unsigned count = cpuid_is_amd() ? ARRAY_SIZE(amd_features) : ARRAY_SIZE(intel_features);
	u64 val;

	for (unsigned n = 0; n < count; n++)
		if (list[n] == e->index && constant_msr(e->index, &val)) {
			e->data = val;
			return 0;
		}
	return -1;
}

long feature_msrs(unsigned long arg)
{
	return each_msr(NULL, arg, feature_one, true);
}

long get_msrs(struct kvm_vcpu *kv, unsigned long arg)
{
	return each_msr(kv, arg, get_one, true);
}

long set_msrs(struct kvm_vcpu *kv, unsigned long arg)
{
	return each_msr(kv, arg, set_one, false);
}

/* ---- the client is asked ----------------------------------------------------------------------------------------- */

struct msr_range {
	u32 flags, base, n;
	u8 *bits; /* 1: allowed */
};

struct msr_filter {
	bool deny; /* what no range covers */
	unsigned n;
	struct msr_range range[KVM_MSR_FILTER_MAX_RANGES];
};

static void filter_destroy(struct msr_filter *f)
{
	if (!f)
		return;
	for (unsigned n = 0; n < f->n; n++)
		free(f->range[n].bits);
	free(f);
}

void msr_filter_free(struct vm12 *x)
{
	filter_destroy(x->filter);
	x->filter = NULL;
}

static long filter_range(struct msr_filter *f, const struct kvm_msr_filter_range *r)
{
	struct msr_range *to = &f->range[f->n];
	size_t bytes = (((size_t)r->nmsrs + 63) / 64) * 8;
	long rc;

	if (!r->nmsrs)
		return 0;
	if (r->flags & ~(u32)(KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE))
		return -EINVAL;
	if (!bytes || bytes > KVM_MSR_FILTER_MAX_BITMAP_SIZE)
		return -EINVAL;
	*to = (struct msr_range){.flags = r->flags, .base = r->base, .n = r->nmsrs, .bits = malloc(bytes)};
	if (!to->bits)
		return -ENOMEM;
	rc = user_read(to->bits, r->bitmap, bytes);
	f->n++;
	return rc;
}

long set_msr_filter(struct vm *vm, unsigned long arg)
{
	struct kvm_msr_filter in;
	struct msr_filter *f, *old;
	bool empty = true;
	long rc = user_read(&in, (void *)arg, sizeof(in));

	if (rc < 0)
		return rc;
	if (in.flags & ~(u32)KVM_MSR_FILTER_DEFAULT_DENY)
		return -EINVAL;
	for (unsigned n = 0; n < KVM_MSR_FILTER_MAX_RANGES; n++)
		empty &= !in.ranges[n].nmsrs;
	/* Nothing allowed at all would be a guest that cannot run. */
	if (empty && (in.flags & KVM_MSR_FILTER_DEFAULT_DENY))
		return -EINVAL;
	f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	f->deny = in.flags & KVM_MSR_FILTER_DEFAULT_DENY;
	for (unsigned n = 0; rc == 0 && n < KVM_MSR_FILTER_MAX_RANGES; n++)
		rc = filter_range(f, &in.ranges[n]);
	if (rc < 0) {
		filter_destroy(f);
		return rc;
	}
	vm_begin_change(vm);
	old = vm->x12->filter;
	vm->x12->filter = f;
	vm_end_change(vm);
	filter_destroy(old);
	return 0;
}

static bool filter_allows(const struct msr_filter *f, u32 msr, bool write)
{
	/* x2APIC registers are never filtered. */
	if (!f || (msr >= 0x800 && msr <= 0x8ff))
		return true;
	for (unsigned n = 0; n < f->n; n++) {
		const struct msr_range *r = &f->range[n];
		u32 bit = msr - r->base;

		if (msr >= r->base && bit < r->n && (r->flags & (write ? KVM_MSR_FILTER_WRITE : KVM_MSR_FILTER_READ)))
			return r->bits[bit / 8] >> (bit % 8) & 1;
	}
	return !f->deny;
}

/* Linux' KVM tells MSRs that it does not know from values that they do not take. */
static bool msr_known(struct vcpu *v, u32 msr)
{
	u64 val;

	return msr_read(v, msr, &val) == 0;
}

bool msr12_ask(struct vcpu *v, u32 msr, u64 val, bool write, bool failed)
{
	struct vm12 *x = v->vm->x12;
	u32 reason = KVM_MSR_EXIT_REASON_FILTER;

	if (likely(!x->filter && !x->msr_exits))
		return false;
	if (!failed) {
		if (filter_allows(x->filter, msr, write))
			return false;
		/* Not allowed, and the client does not want to know: the #GP is ours. */
		if (!(x->msr_exits & reason)) {
			x12_of(v)->msr_denied = true;
			return false;
		}
	} else {
		if (x12_of(v)->msr_denied) {
			x12_of(v)->msr_denied = false;
			return false;
		}
		reason = write && msr_known(v, msr) ? KVM_MSR_EXIT_REASON_INVAL : KVM_MSR_EXIT_REASON_UNKNOWN;
		if (!(x->msr_exits & reason))
			return false;
	}
	v->exit.msr.index = msr;
	v->exit.msr.reason = reason;
	v->exit.msr.write = write;
	v->exit.msr.data = val;
	return true;
}

/* ---- machine checks ---------------------------------------------------------------------------------------------- */

#define MCE_SUPPORTED (MCG_CTL_P | MCG_SER_P)

long mce_supported(unsigned long arg)
{
	u64 cap = MCE_SUPPORTED;

	return user_write((void *)arg, &cap, sizeof(cap));
}

long mce_setup(struct kvm_vcpu *kv, unsigned long arg)
{
	struct vcpu12 *x = kv->x12;
	u64 cap;
	long rc = user_read(&cap, (void *)arg, sizeof(cap));

	if (rc < 0)
		return rc;
	if (!(cap & 0xff) || (cap & 0xff) > MCE_BANKS || (cap & ~(MCE_SUPPORTED | 0xff | 0xff0000)))
		return -EINVAL;
	x->mcg_cap = cap;
	if (cap & MCG_CTL_P)
		x->mcg_ctl = ~0ull;
	memset(x->mce, 0, sizeof(x->mce));
	for (unsigned n = 0; n < (cap & 0xff); n++)
		x->mce[4 * n] = ~0ull;
	return 0;
}

long mce_inject(struct kvm_vcpu *kv, unsigned long arg)
{
	struct vcpu12 *x = kv->x12;
	struct vcpu *v = &kv->cpu;
	struct kvm_x86_mce m;
	u64 *bank, status = 0;
	long rc = user_read(&m, (void *)arg, sizeof(m));

	if (rc < 0)
		return rc;
	if (m.bank >= (x->mcg_cap & 0xff) || !(m.status & MCI_VAL))
		return -EINVAL;
	bank = &x->mce[4 * m.bank];
	if ((m.status & MCI_UC) && (((x->mcg_cap & MCG_CTL_P) && x->mcg_ctl != ~0ull) || bank[0] != ~0ull))
		return 0;
	if (m.status & MCI_UC) {
		msr_read(v, MSR_MCG_STATUS, &status);
		if ((status & MCG_STATUS_MCIP) || !(v->cr4 & CR4_MCE)) {
			/* A second one, or nobody listens: the processor shuts down. */
			x->triple = true;
			return 0;
		}
		if (bank[1] & MCI_VAL)
			m.status |= MCI_OVER;
		bank[2] = m.addr;
		bank[3] = m.misc;
		bank[1] = m.status;
		msr_write(v, MSR_MCG_STATUS, m.mcg_status, true);
		v->excp = (struct event){.kind = EVENT_FAULT, .vector = EXC_MC};
		x->inject = true;
	} else if (!(bank[1] & MCI_VAL) || !(bank[1] & MCI_UC)) {
		if (bank[1] & MCI_VAL)
			m.status |= MCI_OVER;
		bank[2] = m.addr;
		bank[3] = m.misc;
		bank[1] = m.status;
	} else {
		bank[1] |= MCI_OVER;
	}
	return 0;
}
