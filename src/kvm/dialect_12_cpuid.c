/*
 * dialect_12_cpuid.c: CPUID: what is offered to clients, the table that a client gives a vCPU, and what its guest sees.
 *
 * Invariant: the guest sees what the client set, but for the bits that a processor keeps current itself (OSXSAVE, APIC,
 * MWAIT, XSAVE sizes).
 */
#include "dialect_12.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../base/usercopy.h"
#include "../x86/pte.h"

/* ---- offered ----------------------------------------------------------------------------------------------------- */

#define L1C_MWAIT ((u32)BIT(3))
#define L1C_X2APIC ((u32)BIT(21))
#define L1C_OSXSAVE ((u32)BIT(27))
#define L1D_APIC ((u32)BIT(9))

/* The paravirtual features of leaf 0x40000001. */
#define PV_FEATURES                                                                                                    \
	(BIT(KVM_FEATURE_CLOCKSOURCE) | BIT(KVM_FEATURE_NOP_IO_DELAY) | BIT(KVM_FEATURE_CLOCKSOURCE2) |                \
	 BIT(KVM_FEATURE_STEAL_TIME) | BIT(KVM_FEATURE_PV_UNHALT) | BIT(KVM_FEATURE_POLL_CONTROL) |                    \
	 BIT(KVM_FEATURE_ASYNC_PF) | BIT(KVM_FEATURE_ASYNC_PF_INT) | BIT(KVM_FEATURE_PV_EOI) |                         \
	 BIT(KVM_FEATURE_PV_SEND_IPI) | BIT(KVM_FEATURE_PV_SCHED_YIELD) | BIT(KVM_FEATURE_CLOCKSOURCE_STABLE_BIT))

struct cpuid_list {
	struct kvm_cpuid_entry2 e[CPUID_MAX];
	unsigned n;
};

static void cpuid_one(struct cpuid_list *l, u32 leaf, u32 sub, bool indexed)
{
	struct kvm_cpuid_entry2 *e = &l->e[l->n];
	u32 out[4];

	if (l->n == CPUID_MAX)
		return;
	cpuid_leaf(leaf, sub, out);
	memset(e, 0, sizeof(*e));
	e->function = leaf;
	e->index = sub;
	e->flags = indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0;
	e->eax = out[0];
	e->ebx = out[1];
	e->ecx = out[2];
	e->edx = out[3];
	/* The local APIC is the client's, or ours. */
	if (leaf == 1) {
		e->ecx |= L1C_X2APIC;
		e->edx |= L1D_APIC;
		e->ebx &= 0xff00;
	}
	if (leaf == 0x80000001u && cpuid_is_amd())
		e->edx |= L1D_APIC;
	l->n++;
}

static void cpuid_list(struct cpuid_list *l)
{
	u32 out[4], max;

	cpuid_leaf(0, 0, out);
	max = out[0];
	for (u32 leaf = 0; leaf <= max; leaf++) {
		u32 subs = leaf == 4 && !cpuid_is_amd() ? 4 : leaf == 0xd ? 3 : 1;
		bool indexed = leaf == 4 || leaf == 7 || leaf == 0xb || leaf == 0xd;

		for (u32 sub = 0; sub < subs; sub++)
			cpuid_one(l, leaf, sub, indexed);
	}
	memset(&l->e[l->n], 0, 2 * sizeof(l->e[0]));
	l->e[l->n].function = 0x40000000;
	l->e[l->n].eax = 0x40000001;
	memcpy(&l->e[l->n].ebx, "KVMK", 4);
	memcpy(&l->e[l->n].ecx, "VMKV", 4);
	memcpy(&l->e[l->n].edx, "M\0\0\0", 4);
	l->n++;
	l->e[l->n].function = 0x40000001;
	l->e[l->n].eax = (u32)PV_FEATURES;
	l->n++;
	cpuid_leaf(0x80000000u, 0, out);
	max = out[0];
	for (u32 leaf = 0x80000000u; leaf <= max; leaf++)
		cpuid_one(l, leaf, 0, false);
}

long cpuid_supported(unsigned long arg, bool emulated)
{
	struct kvm_cpuid2 head;
	struct cpuid_list *l;
	long rc = user_read(&head, (void *)arg, sizeof(head));

	if (rc < 0)
		return rc;
	if (head.nent < 1)
		return -E2BIG;
	l = calloc(1, sizeof(*l));
	if (!l)
		return -ENOMEM;
	/* What we emulate at no cost is supported, so the second list says only where leaves end. */
	if (emulated)
		cpuid_one(l, 7, 0, true), l->e[0].eax = l->e[0].ebx = l->e[0].ecx = l->e[0].edx = 0;
	else
		cpuid_list(l);
	rc = -E2BIG;
	if (l->n > head.nent)
		goto out;
	rc = user_write((u8 *)arg + sizeof(head), l->e, l->n * sizeof(l->e[0]));
	if (rc < 0)
		goto out;
	head.nent = l->n;
	rc = user_write((void *)arg, &head, sizeof(head));
out:
	free(l);
	return rc;
}

/* ---- a vCPU's table ---------------------------------------------------------------------------------------------- */

const struct kvm_cpuid_entry2 *cpuid12_find(const struct vcpu12 *x, u32 leaf, u32 sub)
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
	const struct kvm_cpuid_entry2 *basic = cpuid12_find(x, 0, 0), *class;

	if (!basic || basic->ebx == 0x68747541 || basic->ebx == 0x6f677948)
		return NULL;
	if (leaf >= 0x40000000 && leaf <= 0x4fffffff)
		class = cpuid12_find(x, leaf & 0xffffff00, 0);
	else
		class = cpuid12_find(x, leaf & 0x80000000, 0);
	if (class && leaf <= class->eax)
		return NULL;
	return cpuid12_find(x, basic->eax, sub);
}

/* An entry with the bits that the processor keeps. */
static void entry_now(struct vcpu *v, const struct kvm_cpuid_entry2 *e, u32 subleaf, u32 out[4])
{
	u32 now[4];

	out[0] = e->eax;
	out[1] = e->ebx;
	out[2] = e->ecx;
	out[3] = e->edx;
	if (e->function == 1) {
		out[2] &= ~L1C_OSXSAVE;
		if (v->cr4 & CR4_OSXSAVE)
			out[2] |= L1C_OSXSAVE;
		if (!(v->apic_base & APIC_BASE_ENABLE))
			out[3] &= ~L1D_APIC;
		if (v->vm->x12->quirks_off & KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT) {
			out[2] &= ~L1C_MWAIT;
			if (x12_of(v)->misc_enable & MISC_ENABLE_MWAIT)
				out[2] |= L1C_MWAIT;
		}
	} else if (e->function == 0xd && subleaf < 2 && out[1]) {
		cpuid_vcpu(v, 0xd, subleaf, now);
		out[1] = now[1];
	}
}

bool pv_has(const struct vcpu12 *x, unsigned feature)
{
	return !x->pv_enforce || (x->pv_features & BIT(feature));
}

void cpuid12(struct vcpu *v, u32 leaf, u32 subleaf, u32 out[4])
{
	const struct vcpu12 *x = x12_of(v);
	const struct kvm_cpuid_entry2 *e = cpuid12_find(x, leaf, subleaf);

	memset(out, 0, 16);
	if (!e && (leaf == 0xb || leaf == 0x1f)) {
		/* Past the last level: the level number and the x2APIC id, which all levels have in common. */
		e = cpuid12_find(x, leaf, 0);
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
	entry_now(v, e, subleaf, out);
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

/* Is this what the vCPU has, whatever the client says of the bits that the processor keeps? */
static bool same_table(struct vcpu *v, const struct kvm_cpuid_entry2 *e, unsigned n)
{
	const struct vcpu12 *x = x12_of(v);
	u32 a[4], b[4];

	if (n != x->n_cpuid)
		return false;
	for (unsigned k = 0; k < n; k++) {
		if (e[k].function != x->cpuid[k].function || e[k].index != x->cpuid[k].index ||
		    e[k].flags != x->cpuid[k].flags)
			return false;
		entry_now(v, &e[k], e[k].index, a);
		entry_now(v, &x->cpuid[k], e[k].index, b);
		if (memcmp(a, b, sizeof(a)) != 0)
			return false;
	}
	return true;
}

bool cpuid12_x2apic(const struct vcpu12 *x)
{
	const struct kvm_cpuid_entry2 *e = cpuid12_find(x, 1, 0);

	return e && (e->ecx & L1C_X2APIC);
}

/* The width of physical addresses is the client's table's: 36 bits where it says nothing, as Linux. */
static void phys_bits(struct kvm_vcpu *kv)
{
	const struct kvm_cpuid_entry2 *top = cpuid12_find(kv->x12, 0x80000000u, 0);
	const struct kvm_cpuid_entry2 *e =
	        top && top->eax >= 0x80000008u ? cpuid12_find(kv->x12, 0x80000008u, 0) : NULL;
	unsigned bits = e ? e->eax & 0xff : 36;

	kv->cpu.mmu.phys_mask = bits < PHYS_BITS ? BIT(bits) - 1 : PHYS_MASK;
}

/*
 * What Linux' KVM takes from a guest whose CPUID lacks it: bits of CR4 and EFER, and the instructions that hardware
 * lets it forbid. All others stay, as they do there. Which vendor's SYSCALL and SYSENTER there are: the host's, and
 * those of the guest's vendor.
 */
static void limit_guest(struct kvm_vcpu *kv)
{
	static const struct {
		u32 leaf;
		u8 reg, bit; /* reg: 1 to 3, EBX to EDX */
		u64 cr4, efer;
		u8 insn;
	} limits[] = {
	        {1, 2, 17, CR4_PCIDE, 0, 0},
	        {1, 2, 26, CR4_OSXSAVE, 0, 0},
	        {7, 1, 0, CR4_FSGSBASE, 0, 0},
	        {7, 1, 7, CR4_SMEP, 0, 0},
	        {7, 1, 10, 0, 0, DENY_INVPCID},
	        {7, 1, 20, CR4_SMAP, 0, 0},
	        {7, 2, 2, CR4_UMIP, 0, 0},
	        {0x80000001u, 3, 20, 0, EFER_NX, 0},
	        {0x80000001u, 3, 25, 0, EFER_FFXSR, 0},
	        {0x80000001u, 3, 29, 0, EFER_LME | EFER_LMA, 0},
	};
	const struct kvm_cpuid_entry2 *e = cpuid12_find(kv->x12, 0, 0);
	struct vcpu *v = &kv->cpu;
	u32 l7[2] = {0}, ext = 0, amd = 0;

	memset(&v->denied, 0, sizeof(v->denied));
	for (unsigned n = 0; n < ARRAY_SIZE(limits); n++) {
		const struct kvm_cpuid_entry2 *l = cpuid12_find(kv->x12, limits[n].leaf, 0);
		const u32 reg[4] = {l ? l->eax : 0, l ? l->ebx : 0, l ? l->ecx : 0, l ? l->edx : 0};

		if (reg[limits[n].reg] >> limits[n].bit & 1)
			continue;
		v->denied.cr4 |= limits[n].cr4;
		v->denied.efer |= limits[n].efer;
		v->denied.insn |= limits[n].insn;
	}
	v->amd_rules = cpuid_is_amd() || (e && (e->ebx == 0x68747541 || e->ebx == 0x6f677948));
	v->intel_rules = !cpuid_is_amd() || (e && e->ebx == 0x756e6547);
	e = cpuid12_find(kv->x12, 7, 0);
	if (e) {
		l7[0] = e->ecx;
		l7[1] = e->edx;
	}
	e = cpuid12_find(kv->x12, 0x80000001u, 0);
	if (e)
		ext = e->edx;
	e = cpuid12_find(kv->x12, 0x80000008u, 0);
	if (e)
		amd = e->ebx;
	/* RDTSCP or RDPID; Intel's bit or one of AMD's: STIBP, IBRS, SSBD, IBPB. */
	if (!(ext & BIT(27)) && !(l7[0] & BIT(22)))
		v->denied.insn |= DENY_RDTSCP;
	if (!(l7[1] & BIT(26)) && !(amd & (BIT(14) | BIT(15) | BIT(24))))
		v->denied.insn |= DENY_SPEC_CTRL;
	if (!(l7[1] & BIT(26)) && !(amd & BIT(12)))
		v->denied.insn |= DENY_PRED_CMD;
}

/* Before the client says what CPUID shows it shows nothing; Linux' KVM leaves CR4 alone until then. */
void cpuid12_init(struct kvm_vcpu *kv)
{
	phys_bits(kv);
	limit_guest(kv);
	kv->cpu.denied.cr4 = 0;
}

long set_cpuid2(struct kvm_vcpu *kv, unsigned long arg)
{
	struct vcpu12 *x = kv->x12;
	const struct kvm_cpuid_entry2 *xsave, *pv;
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
	if (x->ran && !same_table(&kv->cpu, e, head.nent))
		goto out;
	memcpy(x->cpuid, e, head.nent * sizeof(*e));
	x->n_cpuid = head.nent;
	xsave = cpuid12_find(x, 0xd, 0);
	x->cpuid_xcr0 = xsave ? xsave->eax | (u64)xsave->edx << 32 : 0;
	pv = cpuid12_find(x, KVM_CPUID_FEATURES, 0);
	x->pv_features = pv ? pv->eax : 0;
	hv_cpuid_changed(x);
	phys_bits(kv);
	limit_guest(kv);
	if (lapic_of(&kv->cpu))
		lapic_offer_x2apic(lapic_of(&kv->cpu), cpuid12_x2apic(x));
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
		for (unsigned n = 0; n < x->n_cpuid; n++) {
			struct kvm_cpuid_entry2 e = x->cpuid[n];
			u32 now[4];

			entry_now(&kv->cpu, &e, e.index, now);
			e.eax = now[0];
			e.ebx = now[1];
			e.ecx = now[2];
			e.edx = now[3];
			rc = user_write((u8 *)arg + sizeof(head) + n * sizeof(e), &e, sizeof(e));
			if (rc < 0)
				return rc;
		}
	}
	head.nent = x->n_cpuid;
	if (user_write((void *)arg, &head, sizeof(head)) < 0)
		return -EFAULT;
	return rc;
}
