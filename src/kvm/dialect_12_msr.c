/*
 * dialect_12_msr.c: the CPUID table that a client gives a vCPU, MSRs through ioctls, and the MSRs that this dialect
 * adds to the processor's: machine check banks, the paravirtual clock.
 *
 * Invariants: CPUID answers what the client set, but for the bits that a processor keeps current itself (OSXSAVE, APIC,
 * XSAVE sizes). The TSC runs at the host's rate; every vCPU of a VM that the client did not send elsewhere shows the
 * same count. kvmclock is that TSC, scaled: so a page once written stays right.
 */
#include "dialect_12.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <x86intrin.h>

#include "../base/usercopy.h"

/* Linux' paravirtual MSRs (Documentation/virt/kvm/x86/msr.rst). */
#define PV_WALL_OLD 0x11
#define PV_CLOCK_OLD 0x12
#define PV_WALL 0x4b564d00
#define PV_CLOCK 0x4b564d01
#define PV_POLL_CONTROL 0x4b564d05
#define PV_FIRST 0x4b564d00
#define PV_LAST 0x4b564dff

#define MSR_TSC_DEADLINE 0x6e0
#define MSR_MCG_CTL 0x17b
#define MSR_MC0_CTL 0x400
#define MCG_CTL_P BIT(8)
#define MCG_SER_P BIT(24)
#define MCI_VAL BIT(63)
#define MCI_OVER BIT(62)
#define MCI_UC BIT(61)
#define MCG_STATUS_MCIP BIT(2)

/* ---- CPUID ------------------------------------------------------------------------------------------------------- */

static const struct kvm_cpuid_entry2 *cpuid_find(const struct vcpu12 *x, u32 leaf, u32 sub)
{
	for (unsigned n = 0; n < x->n_cpuid; n++) {
		const struct kvm_cpuid_entry2 *e = &x->cpuid[n];

		if (e->function == leaf && (!(e->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) || e->index == sub))
			return e;
	}
	return NULL;
}

/* A leaf past the end of its range answers as the highest basic leaf does, except on AMD, where it is zero. */
static const struct kvm_cpuid_entry2 *cpuid_past_end(const struct vcpu12 *x, u32 leaf, u32 sub)
{
	const struct kvm_cpuid_entry2 *basic = cpuid_find(x, 0, 0), *class;

	if (!basic || basic->ebx == 0x68747541 || basic->ebx == 0x6f677948)
		return NULL;
	if (leaf >= 0x40000000 && leaf <= 0x4fffffff)
		class = cpuid_find(x, leaf & 0xffffff00, 0);
	else
		class = cpuid_find(x, leaf & 0x80000000, 0);
	if (class && leaf <= class->eax)
		return NULL;
	return cpuid_find(x, basic->eax, sub);
}

void cpuid12(struct vcpu *v, u32 leaf, u32 subleaf, u32 out[4])
{
	const struct vcpu12 *x = x12_of(v);
	const struct kvm_cpuid_entry2 *e = cpuid_find(x, leaf, subleaf);
	u32 now[4];

	memset(out, 0, 16);
	if (!e && (leaf == 0xb || leaf == 0x1f)) {
		/* Past the last level: the level number and the x2APIC id, which all levels have in common. */
		e = cpuid_find(x, leaf, 0);
		if (e) {
			out[2] = subleaf & 0xff;
			out[3] = e->edx;
		}
		return;
	}
	if (!e)
		e = cpuid_past_end(x, leaf, subleaf);
	if (!e)
		return;
	out[0] = e->eax;
	out[1] = e->ebx;
	out[2] = e->ecx;
	out[3] = e->edx;
	if (e->function == 1) {
		out[2] &= ~(u32)BIT(27);
		if (v->cr4 & CR4_OSXSAVE)
			out[2] |= (u32)BIT(27);
		if (!(v->apic_base & APIC_BASE_ENABLE))
			out[3] &= ~(u32)BIT(9);
	} else if (e->function == 0xd && subleaf < 2 && out[1]) {
		cpuid_vcpu(v, 0xd, subleaf, now);
		out[1] = now[1];
	}
}

static bool cpuid_valid(const struct kvm_cpuid_entry2 *e, unsigned n)
{
	for (unsigned k = 0; k < n; k++)
		if (e[k].function == 0x80000008u) {
			u32 bits = e[k].eax >> 8 & 0xff;

			if (bits != 48 && bits != 57 && bits != 0)
				return false;
		}
	return true;
}

long set_cpuid2(struct kvm_vcpu *kv, unsigned long arg)
{
	struct vcpu12 *x = kv->x12;
	const struct kvm_cpuid_entry2 *xsave;
	struct kvm_cpuid_entry2 *e;
	struct kvm_cpuid2 head;
	long rc = user_read(&head, (void *)arg, sizeof(head));

	if (rc < 0)
		return rc;
	if (head.nent > CPUID_MAX)
		return -E2BIG;
	e = calloc(CPUID_MAX, sizeof(*e));
	if (!e)
		return -ENOMEM;
	rc = user_read(e, (u8 *)arg + sizeof(head), head.nent * sizeof(*e));
	if (rc < 0)
		goto out;
	rc = -EINVAL;
	if (!cpuid_valid(e, head.nent))
		goto out;
	/* The guest has seen the old one. */
	if (x->ran && (head.nent != x->n_cpuid || memcmp(e, x->cpuid, head.nent * sizeof(*e)) != 0))
		goto out;
	memcpy(x->cpuid, e, head.nent * sizeof(*e));
	x->n_cpuid = head.nent;
	xsave = cpuid_find(x, 0xd, 0);
	x->cpuid_xcr0 = xsave ? xsave->eax | (u64)xsave->edx << 32 : 0;
	rc = 0;
out:
	free(e);
	return rc;
}

long get_cpuid2(struct kvm_vcpu *kv, unsigned long arg)
{
	struct vcpu12 *x = kv->x12;
	struct kvm_cpuid2 head;
	long rc = user_read(&head, (void *)arg, sizeof(head));

	if (rc < 0)
		return rc;
	if (head.nent < x->n_cpuid) {
		rc = -E2BIG;
	} else {
		rc = user_write((u8 *)arg + sizeof(head), x->cpuid, x->n_cpuid * sizeof(x->cpuid[0]));
		if (rc < 0)
			return rc;
	}
	head.nent = x->n_cpuid;
	if (user_write((void *)arg, &head, sizeof(head)) < 0)
		return -EFAULT;
	return rc;
}

/* ---- time -------------------------------------------------------------------------------------------------------- */

/* Gives a vCPU's TSC a value, as the client asks. Zero, and values that a brother's TSC would have within a second,
 * mean "as the others": clients set one vCPU after the other, and the counts must not drift apart by that. */
static void tsc_set(struct vcpu *v, u64 val)
{
	struct vm12 *x = v->vm->x12;
	u64 host = __rdtsc(), expect;
	bool same;

	pthread_mutex_lock(&x->time_lock);
	expect = x->tsc_write + (host - x->tsc_write_host);
	same = x->tsc_set && (val == 0 || val + (u64)tsc_khz() * 1000 - expect < (u64)tsc_khz() * 2000);
	if (!same) {
		x->tsc_offset = (s64)(val - host);
		x->tsc_write = val;
		x->tsc_write_host = host;
		x->tsc_set = true;
	}
	v->tsc_offset = x->tsc_offset;
	pthread_mutex_unlock(&x->time_lock);
}

void tsc12_init(struct vcpu *v)
{
	tsc_set(v, 0);
}

/* Copies into guest memory at a guest physical address, in one slot. False: there is none. */
static bool gpa_write(struct vm *vm, gpa_t gpa, const void *src, u32 len)
{
	struct memslot *s = memslot_find(&vm->mem, gpa);

	if (!s || s->gpa + s->size - gpa < len || (s->flags & MEMSLOT_READONLY))
		return false;
	memcpy(s->hva + (gpa - s->gpa), src, len);
	memslot_mark_dirty(s, gpa);
	return true;
}

/* Linux' pvclock ABI. */
struct pv_time {
	u32 version, pad0;
	u64 tsc_timestamp, system_time;
	u32 mul;
	s8 shift;
	u8 flags;
	u8 pad[2];
};

struct pv_wall {
	u32 version, sec, nsec;
};

#define PV_TIME_STABLE 1

void clock12_update(struct vcpu *v)
{
	struct vcpu12 *x = x12_of(v);
	struct pv_time t = {.version = 2, .flags = PV_TIME_STABLE};
	u64 hz = (u64)tsc_khz() * 1000, host = __rdtsc();
	gpa_t gpa = x->msr_clock & ~1ull;
	struct memslot *s;

	if (!(x->msr_clock & 1))
		return;
	/* ns = (ticks << shift) * mul >> 32, with mul below 2^32. */
	for (; hz <= 1000000000; hz *= 2)
		t.shift++;
	t.mul = (u32)((1000000000ull << 32) / hz);
	t.tsc_timestamp = host + (u64)v->tsc_offset;
	t.system_time = vm12_clock(v->vm, host);
	s = memslot_find(&v->vm->mem, gpa);
	if (s && s->gpa + s->size - gpa >= sizeof(t)) {
		u32 old;

		/* An odd version tells a reader on another vCPU to wait. */
		memcpy(&old, s->hva + (gpa - s->gpa), 4);
		t.version = (old | 1) + 1;
		old |= 1;
		gpa_write(v->vm, gpa, &old, 4);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		gpa_write(v->vm, gpa + 4, (u8 *)&t + 4, sizeof(t) - 4);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		gpa_write(v->vm, gpa, &t.version, 4);
	}
}

/* Wall time at which kvmclock was 0. */
static void wall_update(struct vcpu *v, gpa_t gpa)
{
	struct pv_wall w = {.version = 2};
	struct timespec now;
	u64 ns;

	clock_gettime(CLOCK_REALTIME, &now);
	ns = (u64)now.tv_sec * 1000000000 + (u64)now.tv_nsec - vm12_clock(v->vm, __rdtsc());
	w.sec = (u32)(ns / 1000000000);
	w.nsec = (u32)(ns % 1000000000);
	gpa_write(v->vm, gpa, &w, sizeof(w));
}

/* From the guest the memslots stand still; from an ioctl they must be held. */
static void pv_clock_write(struct vcpu *v, u32 msr, u64 val, bool host)
{
	struct vcpu12 *x = x12_of(v);

	if (host)
		pthread_mutex_lock(&v->vm->lock);
	if (msr == PV_WALL || msr == PV_WALL_OLD) {
		x->msr_wall = val;
		if (val)
			wall_update(v, val);
	} else {
		x->msr_clock = val;
		clock12_update(v);
	}
	if (host)
		pthread_mutex_unlock(&v->vm->lock);
}

/* ---- MSRs of the dialect ------------------------------------------------------------------------------------------
 */

static u64 *mce_slot(struct vcpu12 *x, u32 msr)
{
	u32 n = msr - MSR_MC0_CTL;

	return n < 4 * (u32)(x->mcg_cap & 0xff) ? &x->mce[n] : NULL;
}

int msr12_read(struct vcpu *v, u32 msr, u64 *val, bool host)
{
	struct vcpu12 *x = x12_of(v);
	u64 *slot;

	if (msr >= 0x800 && msr < 0x900)
		return lapic_of(v) && lapic_msr_read(lapic_of(v), msr, val) ? 0 : -1;
	switch (msr) {
	case MSR_TSC_DEADLINE:
		if (!lapic_of(v))
			return -1;
		*val = lapic_of(v)->tsc_deadline;
		return 0;
	case PV_WALL:
	case PV_WALL_OLD:
		*val = x->msr_wall;
		return 0;
	case PV_CLOCK:
	case PV_CLOCK_OLD:
		*val = x->msr_clock;
		return 0;
	case PV_POLL_CONTROL:
		*val = x->poll_control;
		return 0;
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
	case MSR_PLATFORM_ID:
	case MSR_PLATFORM_INFO:
	case MSR_MISC_FEATURES:
		*val = 0;
		return 0;
	}
	if (msr >= PV_FIRST && msr <= PV_LAST)
		return -1;
	slot = mce_slot(x, msr);
	if (!slot)
		return MSR_PASS;
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

/* SDM vol. 3, 11.12.5: x2APIC needs the APIC on, and is left only through off. */
static int apic_base_write(struct vcpu *v, u64 val)
{
	const u64 on = APIC_BASE_ENABLE, x2 = BIT(10);
	u64 old = v->apic_base;

	if ((val & 0x2ff) || (val >> 48) || (val & (on | x2)) == x2)
		return -1;
	if ((val & x2) && !lapic_of(v))
		return -1;
	if ((old & (on | x2)) == (on | x2) && (val & (on | x2)) == on)
		return -1;
	if (!(old & on) && (val & (on | x2)) == (on | x2))
		return -1;
	v->apic_base = val;
	if (lapic_of(v))
		lapic_set_base(lapic_of(v), val);
	return 0;
}

int msr12_write(struct vcpu *v, u32 msr, u64 val, bool host)
{
	struct vcpu12 *x = x12_of(v);

	if (msr >= 0x800 && msr < 0x900) {
		if (!lapic_of(v) || !lapic_msr_write(lapic_of(v), msr, val))
			return -1;
		v->cr8 = lapic_of(v)->reg[LAPIC_TPR] >> 4 & 15;
		return 0;
	}
	switch (msr) {
	case MSR_TSC_DEADLINE:
		if (!lapic_of(v))
			return -1;
		lapic_set_deadline(lapic_of(v), val);
		return 0;
	case MSR_APIC_BASE:
		return apic_base_write(v, val);
	case MSR_TSC:
		if (!host)
			return MSR_PASS;
		tsc_set(v, val);
		return 0;
	case PV_WALL:
	case PV_WALL_OLD:
	case PV_CLOCK:
	case PV_CLOCK_OLD:
		pv_clock_write(v, msr, val, host);
		return 0;
	case PV_POLL_CONTROL:
		if (val & ~1ull)
			return -1;
		x->poll_control = val;
		return 0;
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
	case MSR_MISC_FEATURES:
		return val ? -1 : 0;
	}
	if (msr >= PV_FIRST && msr <= PV_LAST)
		return -1;
	return mce_write(x, msr, val, host);
}

/* ---- MSRs through ioctls ----------------------------------------------------------------------------------------- */

static const u32 common_list[] = {
        MSR_TSC,     MSR_SYSENTER_CS, MSR_SYSENTER_ESP, MSR_SYSENTER_EIP, MSR_STAR,        MSR_CSTAR,
        MSR_LSTAR,   MSR_SFMASK,      MSR_PAT,          MSR_TSC_AUX,      MSR_TSC_ADJUST,  MSR_KERNEL_GS_BASE,
        PV_WALL_OLD, PV_CLOCK_OLD,    PV_WALL,          PV_CLOCK,         PV_POLL_CONTROL, MSR_MISC_ENABLE,
        MSR_MCG_CAP, MSR_MCG_STATUS,  MSR_MCG_CTL,      MSR_PLATFORM_INFO};
static const u32 intel_list[] = {MSR_SPEC_CTRL, MSR_ARCH_CAPABILITIES};
static const u32 amd_list[] = {MSR_AMD_HWCR};
static const u32 intel_features[] = {MSR_ARCH_CAPABILITIES, MSR_UCODE_REV};
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
		rc = msr_read(&kv->cpu, e->index, &val);
	e->data = val;
	return rc;
}

static int set_one(struct kvm_vcpu *kv, struct kvm_msr_entry *e)
{
	kv->x12->check_state = true;
	return msr_write(&kv->cpu, e->index, e->data, true);
}

static int feature_one(struct kvm_vcpu *kv, struct kvm_msr_entry *e)
{
	const u32 *list = cpuid_is_amd() ? amd_features : intel_features;
	static struct vcpu bare; /* feature MSRs are constants: no vCPU's state matters */
	u64 val;

	for (unsigned n = 0; n < 2; n++)
		if (list[n] == e->index && msr_read(&bare, e->index, &val) == 0) {
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
			/* GAP(mce-shutdown): refused instead. */
			return -EINVAL;
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
