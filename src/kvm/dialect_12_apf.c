/*
 * dialect_12_apf.c: asynchronous page faults (Documentation/virt/kvm/x86/msr.rst, MSR_KVM_ASYNC_PF_EN): a host that has
 * to fetch a page of the guest's may tell it, and tells it when the page is there.
 *
 * We never have to: guest memory is touched by plain loads of the vCPU's thread, and that one of them took long is
 * known when it is over. What remains is what every host does when a guest, or the client that restores one, switches
 * them on: "all pages are there" (token ~0), for the tasks that wait for pages that another host was fetching.
 */
#include "dialect_12.h"

#include <string.h>

#define APF_RESERVED 0x30u
#define APF_ADDRESS (~0x3full)
#define APF_INT_MODE (KVM_ASYNC_PF_ENABLED | KVM_ASYNC_PF_DELIVERY_AS_INT)
#define APF_TOKEN offsetof(struct kvm_vcpu_pv_apf_data, token)

static bool in_use(const struct vcpu12 *x)
{
	return (x->msr_apf & APF_INT_MODE) == APF_INT_MODE;
}

void apf_poll(struct vcpu *v)
{
	struct vcpu12 *x = x12_of(v);
	struct lapic *l = lapic_of(v);
	u32 token;
	u8 *p;

	if (!in_use(x) || !l) {
		x->apf_wake = false;
		return;
	}
	p = pv_memory(v, (x->msr_apf & APF_ADDRESS) + APF_TOKEN, sizeof(token));
	/* The guest has not read the last one. */
	if (!p || x->apf_ready || (memcpy(&token, p, sizeof(token)), token))
		return;
	pthread_mutex_lock(&l->chips->lock);
	if (lapic_accept_locked(l, (u32)x->msr_apf_int & 0xff)) {
		memset(p, 0xff, sizeof(token));
		x->apf_ready = true;
		x->apf_wake = false;
	}
	pthread_mutex_unlock(&l->chips->lock);
}

void apf_reset(struct vcpu12 *x)
{
	x->msr_apf = x->msr_apf_int = 0;
	x->apf_wake = x->apf_ready = false;
}

static int enable(struct vcpu *v, u64 val)
{
	struct vcpu12 *x = x12_of(v);

	if (val & APF_RESERVED)
		return -1;
	/* Deliveries by #PF to a nested hypervisor are of a feature that is not offered. */
	if (x->pv_enforce && (val & KVM_ASYNC_PF_DELIVERY_AS_PF_VMEXIT))
		return -1;
	if (!pv_has(x, KVM_FEATURE_ASYNC_PF_INT) && (val & KVM_ASYNC_PF_DELIVERY_AS_INT))
		return -1;
	if (!lapic_of(v))
		return val ? -1 : 0;
	x->msr_apf = val;
	if (!in_use(x))
		return 0;
	if (!memslot_find(&v->vm->mem, val & APF_ADDRESS))
		return -1;
	x->apf_wake = true;
	return 0;
}

int apf_msr_write(struct vcpu *v, u32 msr, u64 val, bool host)
{
	struct vcpu12 *x = x12_of(v);
	int rc;

	switch (msr) {
	case MSR_KVM_ASYNC_PF_EN:
		if (host)
			pthread_mutex_lock(&v->vm->lock);
		rc = enable(v, val);
		if (host)
			pthread_mutex_unlock(&v->vm->lock);
		if (rc < 0)
			return rc;
		break;
	case MSR_KVM_ASYNC_PF_INT:
		/* Linux 6.1 refuses 0 too without an APIC of its own, and clients that write all MSRs at a start die of
		 * it. */
		if (val >> 8 || (val && !lapic_of(v)))
			return -1;
		x->msr_apf_int = val;
		break;
	default: /* ACK */
		if (val & 1)
			x->apf_ready = false;
	}
	/* From an ioctl it waits for the next run. */
	if (x->apf_wake && !host)
		apf_poll(v);
	return 0;
}
