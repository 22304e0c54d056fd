/*
 * dialect_12_vapic.c: what a guest tells its local APIC in memory instead of registers: the end of an interrupt
 * (MSR_KVM_PV_EOI_EN, Documentation/virt/kvm/x86/msr.rst), and its priority in the page of KVM_SET_VAPIC_ADDR, for
 * which a client patches guests whose accesses to the TPR it hears of (KVM_TPR_ACCESS_REPORTING). And interprocessor
 * interrupts by hypercall (Documentation/virt/kvm/x86/hypercalls.rst).
 *
 * Invariants: memory is the guest's while vcpu12.vapic_out, and says nothing otherwise. Whoever looks at the vCPU's
 * local APIC calls vapic_in() first, on the vCPU's thread, within KVM_RUN; before the guest runs on vapic_out() gives
 * memory back to it. Between two runs it is taken in.
 */
#include "dialect_12.h"

#include <errno.h>

#include "../base/usercopy.h"

/* The bit by which the guest may end the interrupt in service; it clears it. */
#define EOI_BIT 1u

/* The page's bytes: priority, class in service, -, highest vector that waits. */
#define PAGE_BYTES 4u

static void update_use(struct vcpu12 *x)
{
	x->vapic_used = x->vapic_addr || (x->msr_eoi & KVM_MSR_ENABLED);
}

void vapic_take(struct vcpu *v)
{
	struct vcpu12 *x = x12_of(v);
	struct lapic *l = lapic_of(v);
	u8 *p;

	x->vapic_out = false;
	if (!l)
		return;
	if (x->eoi_lent) {
		x->eoi_lent = false;
		p = pv_memory(v, x->msr_eoi & ~(u64)KVM_MSR_ENABLED, 1);
		if (p && (*p & EOI_BIT))
			*p &= (u8)~EOI_BIT;
		else /* and where the client took the memory away, as Linux' KVM does */
			lapic_eoi(l);
	}
	p = x->vapic_addr ? pv_memory(v, x->vapic_addr, PAGE_BYTES) : NULL;
	if (p && p[0] != l->reg[LAPIC_TPR]) {
		lapic_set_tpr(l, p[0]);
		v->cr8 = p[0] >> 4;
	}
}

void vapic_give(struct vcpu *v)
{
	struct vcpu12 *x = x12_of(v);
	struct lapic *l = lapic_of(v);
	u8 *p;

	x->vapic_out = true;
	if (!l)
		return;
	if ((x->msr_eoi & KVM_MSR_ENABLED) && lapic_eoi_is_private(l)) {
		p = pv_memory(v, x->msr_eoi & ~(u64)KVM_MSR_ENABLED, 1);
		if (p) {
			*p |= EOI_BIT;
			x->eoi_lent = true;
		}
	}
	p = x->vapic_addr ? pv_memory(v, x->vapic_addr, PAGE_BYTES) : NULL;
	if (p)
		lapic_summary(l, p);
}

void vapic_reset(struct vcpu12 *x)
{
	x->msr_eoi = x->vapic_addr = 0;
	x->eoi_lent = false;
	update_use(x);
}

/* ---- MSR_KVM_PV_EOI_EN, KVM_SET_VAPIC_ADDR ----------------------------------------------------------------------- */

int vapic_eoi_write(struct vcpu *v, u64 val)
{
	struct vcpu12 *x = x12_of(v);
	u64 gpa = val & ~(u64)KVM_MSR_ENABLED;

	if ((gpa & 3) || ((val & KVM_MSR_ENABLED) && !memslot_find(&v->vm->mem, gpa)))
		return -1;
	vapic_in(v);
	x->msr_eoi = val;
	update_use(x);
	return 0;
}

long set_vapic_addr(struct kvm_vcpu *kv, unsigned long arg)
{
	struct vm *vm = kv->cpu.vm;
	struct kvm_vapic_addr a;
	struct memslot *s;
	long rc;

	if (!lapic_of(&kv->cpu))
		return -EINVAL;
	rc = user_read(&a, (void *)arg, sizeof(a));
	if (rc < 0)
		return rc;
	pthread_mutex_lock(&vm->lock);
	s = a.vapic_addr ? memslot_find(&vm->mem, a.vapic_addr) : NULL;
	if (a.vapic_addr && (!s || s->gpa + s->size - a.vapic_addr < PAGE_BYTES))
		rc = -EINVAL;
	pthread_mutex_unlock(&vm->lock);
	if (rc < 0)
		return rc;
	kv->x12->vapic_addr = a.vapic_addr;
	update_use(kv->x12);
	return 0;
}

/* ---- reports of TPR accesses ------------------------------------------------------------------------------------- */

long tpr_reporting(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_tpr_access_ctl ctl;
	long rc = user_read(&ctl, (void *)arg, sizeof(ctl));

	if (rc < 0)
		return rc;
	if (ctl.flags)
		return -EINVAL;
	kv->x12->tpr_reports = ctl.enabled;
	return user_write((void *)arg, &ctl, sizeof(ctl));
}

void tpr_accessed(struct vcpu *v, bool write, u64 rip)
{
	struct vcpu12 *x = x12_of(v);

	if (likely(!x->tpr_reports))
		return;
	x->tpr_access = true;
	x->run->tpr_access.rip = v->mode == MODE_64 ? rip : (u32)rip;
	x->run->tpr_access.is_write = write;
	vcpu12_latch(kvm_vcpu_of(v), LATCH_TPR);
}

bool tpr_exit(struct kvm_vcpu *kv)
{
	if (likely(!kv->x12->tpr_access))
		return false;
	kv->x12->tpr_access = false;
	kv->x12->run->exit_reason = KVM_EXIT_TPR_ACCESS;
	return true;
}

/* ---- KVM_HC_SEND_IPI --------------------------------------------------------------------------------------------- */

u64 vapic_send_ipi(struct vcpu *v, const u64 map[2], u32 first, u64 icr, unsigned bits)
{
	struct chips *c = chips_of(v->vm);
	u64 taken = 0;

	/* No destinations but the map's. */
	if (icr & (0x800 | 0xc0000))
		return (u64)-KVM_EINVAL;
	if (!c)
		return (u64)-EOPNOTSUPP;
	pthread_mutex_lock(&c->lock);
	for (unsigned n = 0; n < c->n_lapic; n++) {
		u64 id = c->lapic[n] ? lapic_id(c->lapic[n]) : 0, bit = id - first;

		if (!c->lapic[n] || id < first || bit >= 2 * bits || !(map[bit / bits] >> (bit % bits) & 1))
			continue;
		if (lapic_accept_locked(c->lapic[n], (u32)icr))
			taken++;
	}
	pthread_mutex_unlock(&c->lock);
	return taken;
}
