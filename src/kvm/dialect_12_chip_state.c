/*
 * dialect_12_chip_state.c: the state of the interrupt chips (src/chip) in the interface's structures, both ways.
 *
 * A client that asks for what interrupts change may be about to save the VM, so what irqfds have signalled is taken in
 * before (irqfds12_settle_locked()).
 */
#define _GNU_SOURCE
#include "dialect_12.h"

#include <errno.h>
#include <string.h>

#include "../base/usercopy.h"

static void pic_out(const struct pic *p, struct kvm_pic_state *s)
{
	*s = (struct kvm_pic_state){.last_irr = p->last,
	                            .irr = p->irr,
	                            .imr = p->imr,
	                            .isr = p->isr,
	                            .priority_add = p->prio,
	                            .irq_base = p->base,
	                            .read_reg_select = p->read_isr,
	                            .poll = p->poll,
	                            .special_mask = p->special_mask,
	                            .init_state = p->icw_step ? (u8)(p->icw_step - 1) : 0,
	                            .auto_eoi = p->auto_eoi,
	                            .rotate_on_auto_eoi = p->rotate_aeoi,
	                            .special_fully_nested_mode = p->nested,
	                            .init4 = p->need_icw4,
	                            .elcr = p->elcr,
	                            .elcr_mask = p->elcr_mask};
}

static void pic_in(struct pic *p, const struct kvm_pic_state *s)
{
	p->last = s->last_irr;
	p->irr = s->irr;
	p->imr = s->imr;
	p->isr = s->isr;
	p->prio = s->priority_add & 7;
	p->base = s->irq_base;
	p->read_isr = s->read_reg_select;
	p->poll = s->poll;
	p->special_mask = s->special_mask;
	p->icw_step = s->init_state & 3 ? (u8)((s->init_state & 3) + 1) : 0;
	p->auto_eoi = s->auto_eoi;
	p->rotate_aeoi = s->rotate_on_auto_eoi;
	p->nested = s->special_fully_nested_mode;
	p->need_icw4 = s->init4;
	p->elcr = s->elcr;
	p->elcr_mask = s->elcr_mask;
}

static void ioapic_out(const struct ioapic *i, struct kvm_ioapic_state *s)
{
	s->base_address = i->base;
	s->ioregsel = i->select;
	s->id = i->id;
	s->irr = i->irr;
	s->pad = 0;
	for (unsigned n = 0; n < IOAPIC_PINS; n++)
		s->redirtbl[n].bits = i->redir[n];
}

static void ioapic_in(struct ioapic *i, const struct kvm_ioapic_state *s)
{
	i->base = s->base_address;
	i->select = s->ioregsel & 0xff;
	i->id = s->id;
	i->irr = s->irr & (BIT(IOAPIC_PINS) - 1);
	i->level = 0;
	for (unsigned n = 0; n < IOAPIC_PINS; n++)
		i->redir[n] = s->redirtbl[n].bits;
}

/* Copies the argument of both in; 0, or why there is no such chip. */
static long irqchip_arg(struct vm *vm, unsigned long arg, struct kvm_irqchip *k)
{
	long rc = user_read(k, (void *)arg, sizeof(*k));

	if (rc < 0)
		return rc;
	if (!pic_of(vm))
		return -ENXIO;
	return k->chip_id > KVM_IRQCHIP_IOAPIC ? -EINVAL : 0;
}

long get_irqchip(struct vm *vm, unsigned long arg)
{
	struct chips *c = chips_of(vm);
	struct kvm_irqchip k;
	long rc = irqchip_arg(vm, arg, &k);

	if (rc < 0)
		return rc;
	pthread_mutex_lock(&c->lock);
	irqfds12_settle_locked(c);
	if (k.chip_id == KVM_IRQCHIP_IOAPIC)
		ioapic_out(&c->ioapic, &k.chip.ioapic);
	else
		pic_out(&c->pic[k.chip_id], &k.chip.pic);
	pthread_mutex_unlock(&c->lock);
	return user_write((void *)arg, &k, sizeof(k));
}

long set_irqchip(struct vm *vm, unsigned long arg)
{
	struct chips *c = chips_of(vm);
	struct kvm_irqchip k;
	long rc = irqchip_arg(vm, arg, &k);

	if (rc < 0)
		return rc;
	pthread_mutex_lock(&c->lock);
	if (k.chip_id == KVM_IRQCHIP_IOAPIC) {
		ioapic_in(&c->ioapic, &k.chip.ioapic);
		ioapic_changed_locked(c);
	} else {
		pic_in(&c->pic[k.chip_id], &k.chip.pic);
		pic_update_locked(c);
	}
	pthread_mutex_unlock(&c->lock);
	return 0;
}

static struct chips *pit_of(struct vm *vm)
{
	struct chips *c = chips12_all(vm);

	return c && c->pit.present ? c : NULL;
}

/* Copies the argument of a request about the i8254 in; 0, or why there is none. */
static long pit_arg(struct vm *vm, unsigned long arg, void *s, size_t size)
{
	long rc = user_read(s, (void *)arg, size);

	return rc == 0 && !pit_of(vm) ? -ENXIO : rc;
}

static void pit_out(struct chips *c, struct kvm_pit_channel_state *out)
{
	pthread_mutex_lock(&c->lock);
	for (unsigned n = 0; n < 3; n++) {
		const struct pit_counter *k = &c->pit.c[n];

		out[n] = (struct kvm_pit_channel_state){.count = k->count,
		                                        .latched_count = k->latch,
		                                        .count_latched = k->latched,
		                                        .status_latched = k->status_latched,
		                                        .status = k->status,
		                                        .read_state = k->rw_read,
		                                        .write_state = k->rw_write,
		                                        .write_latch = k->write_low,
		                                        .rw_mode = k->rw,
		                                        .mode = k->mode,
		                                        .bcd = k->bcd,
		                                        .gate = k->gate,
		                                        .count_load_time = (s64)k->start};
	}
	pthread_mutex_unlock(&c->lock);
}

static void pit_in(struct chips *c, const struct kvm_pit_channel_state *s)
{
	pthread_mutex_lock(&c->lock);
	for (unsigned n = 0; n < 3; n++) {
		const struct kvm_pit_channel_state *in = &s[n];
		struct pit_counter *k = &c->pit.c[n];

		k->latch = in->latched_count;
		k->latched = in->count_latched;
		k->status_latched = in->status_latched;
		k->status = in->status;
		k->rw_read = in->read_state;
		k->rw_write = in->write_state;
		k->write_low = in->write_latch;
		k->rw = in->rw_mode;
		k->mode = in->mode;
		k->bcd = in->bcd;
		k->gate = in->gate;
		pit_load_locked(c, n, in->count, chip_now());
	}
	pthread_mutex_unlock(&c->lock);
}

long get_pit1(struct vm *vm, unsigned long arg)
{
	struct kvm_pit_state s = {0};
	long rc = pit_arg(vm, arg, &s, sizeof(s));

	if (rc < 0)
		return rc;
	pit_out(pit_of(vm), s.channels);
	return user_write((void *)arg, &s, sizeof(s));
}

long set_pit1(struct vm *vm, unsigned long arg)
{
	struct kvm_pit_state s;
	long rc = pit_arg(vm, arg, &s, sizeof(s));

	if (rc == 0)
		pit_in(pit_of(vm), s.channels);
	return rc;
}

long get_pit2(struct vm *vm, unsigned long arg)
{
	struct chips *c = pit_of(vm);
	struct kvm_pit_state2 s = {0};

	if (!c)
		return -ENXIO;
	pit_out(c, s.channels);
	s.flags = c->pit.speaker && c->pit.out2 ? KVM_PIT_FLAGS_SPEAKER_DATA_ON : 0;
	return user_write((void *)arg, &s, sizeof(s));
}

long set_pit2(struct vm *vm, unsigned long arg)
{
	struct chips *c = pit_of(vm);
	struct kvm_pit_state2 s;
	long rc = pit_arg(vm, arg, &s, sizeof(s));

	if (rc < 0)
		return rc;
	pit_in(c, s.channels);
	c->pit.out2 = s.flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON;
	return 0;
}

long reinject_control(struct vm *vm, unsigned long arg)
{
	struct chips *c = pit_of(vm);
	struct kvm_reinject_control r;
	long rc = pit_arg(vm, arg, &r, sizeof(r));

	if (rc < 0)
		return rc;
	pthread_mutex_lock(&c->lock);
	pit_reinject_locked(c, r.pit_reinject);
	pthread_mutex_unlock(&c->lock);
	return 0;
}

/* How the interface shows registers of an x2APIC: the id as an xAPIC's unless KVM_CAP_X2APIC_API said otherwise. */
long get_lapic(struct kvm_vcpu *kv, unsigned long arg)
{
	struct lapic *l = lapic_of(&kv->cpu);
	struct kvm_lapic_state s = {0};

	if (!l)
		return -EINVAL;
	pthread_mutex_lock(&l->chips->lock);
	irqfds12_settle_locked(l->chips);
	for (u32 n = 0; n < LAPIC_REGS; n++) {
		u32 val = l->reg[n];

		if (n == LAPIC_PPR || n == LAPIC_TIMER_NOW)
			lapic_read_locked(l, n, &val);
		if (n == LAPIC_ID && l->x2apic && !l->chips->x2_format)
			val <<= 24;
		memcpy(s.regs + n * 16, &val, 4);
	}
	pthread_mutex_unlock(&l->chips->lock);
	return user_write((void *)arg, &s, sizeof(s));
}

long set_lapic(struct kvm_vcpu *kv, unsigned long arg)
{
	struct lapic *l = lapic_of(&kv->cpu);
	struct kvm_lapic_state s;
	u32 id;
	long rc = user_read(&s, (void *)arg, sizeof(s));

	if (rc < 0)
		return rc;
	if (!l)
		return -EINVAL;
	pthread_mutex_lock(&l->chips->lock);
	memcpy(&id, s.regs + LAPIC_ID * 16, 4);
	if (l->x2apic && l->chips->x2_format && id != l->x2id) {
		rc = -EINVAL;
		goto out;
	}
	for (u32 n = 0; n < LAPIC_REGS; n++)
		memcpy(&l->reg[n], s.regs + n * 16, 4);
	lapic_version_locked(l);
	lapic_changed_locked(l);
	kv->cpu.cr8 = l->reg[LAPIC_TPR] >> 4 & 15;
out:
	pthread_mutex_unlock(&l->chips->lock);
	return rc;
}
