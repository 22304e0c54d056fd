/*
 * dialect_12_chip.c: the interrupt chips of a VM (src/chip) in the interface's terms: creating them, lines, messages,
 * routes, irqfds, and the helper thread that waits for timers and irqfds. Their state: dialect_12_chip_state.c.
 *
 * Invariants: chips are made before the first vCPU and live as long as the VM. The helper thread takes chips.lock only,
 * never a VM's or vCPU's; it is joined before anything it uses goes.
 *
 * With split chips only the local APICs are ours: the client keeps the IOAPIC, sends messages, and hears of the EOIs of
 * vectors that routes of its IOAPIC's pins use.
 */
#define _GNU_SOURCE
#include "dialect_12.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "../base/sys.h"
#include "../base/usercopy.h"

/* Who drives a line: the client's KVM_IRQ_LINE, irqfds, the timer (SOURCE 2 in i8254.c). */
#define SOURCE_CLIENT 0
#define SOURCE_IRQFD 1

struct irqfd {
	int fd, resample; /* dups of the client's; resample -1: edges */
	unsigned gsi;
	struct irqfd *next;
};

struct chips12 {
	struct chips *chips;
	struct vm *vm;
	pthread_t thread;
	bool has_thread, stop; /* chips.lock */
	int wake;              /* eventfd: the thread looks again */
	struct irqfd *irqfd;   /* chips.lock */
	unsigned n_irqfd, version;
	unsigned pins; /* split: GSIs of the client's IOAPIC */
	bool pit_only; /* KVM_CREATE_PIT2 came, and no chips to wire it to */
};

struct chips *chips12_all(const struct vm *vm)
{
	return vm->x12->chips ? vm->x12->chips->chips : NULL;
}

struct chips *chips_of(const struct vm *vm)
{
	return vm->x12->chips && !vm->x12->chips->pit_only ? vm->x12->chips->chips : NULL;
}

struct kvm_vcpu *chips12_by_apic_id(struct vm *vm, u32 id)
{
	struct chips *c = chips_of(vm);
	struct kvm_vcpu *kv = NULL;

	if (!c)
		return NULL;
	pthread_mutex_lock(&c->lock);
	for (unsigned n = 0; n < c->n_lapic && !kv; n++) {
		const struct lapic *l = c->lapic[n];

		if (l && (l->x2apic ? l->x2id : l->reg[LAPIC_ID] >> 24) == id)
			kv = __atomic_load_n(&vm->vcpu[n], __ATOMIC_ACQUIRE);
	}
	pthread_mutex_unlock(&c->lock);
	return kv;
}

struct lapic *lapic_of(const struct vcpu *v)
{
	struct chips *c = chips_of(v->vm);

	return c ? c->lapic[v->id] : NULL;
}

/* ---- upcalls of the chips ---------------------------------------------------------------------------------------- */

static struct kvm_vcpu *vcpu_at(void *owner, unsigned id)
{
	struct chips12 *x = owner;

	return __atomic_load_n(&x->vm->vcpu[id], __ATOMIC_ACQUIRE);
}

static void up_kick(void *owner, unsigned id)
{
	struct kvm_vcpu *kv = vcpu_at(owner, id);

	if (kv)
		vcpu12_notify(kv, EV_IRQ);
}

static void up_nmi(void *owner, unsigned id)
{
	struct kvm_vcpu *kv = vcpu_at(owner, id);

	if (!kv)
		return;
	atomic_fetch_add(&kv->cpu.nmi_queued, 1);
	vcpu12_notify(kv, EV_NMI);
}

/* The vCPU leaves the engine and finds the latch. */
void vcpu12_latch(struct kvm_vcpu *kv, u32 what)
{
	if (!kv)
		return;
	atomic_fetch_or(&kv->x12->latch, what);
	vcpu12_notify(kv, EV_SIGNAL);
}

static void up_init(void *owner, unsigned id)
{
	struct kvm_vcpu *kv = vcpu_at(owner, id);

	if (kv)
		atomic_fetch_and(&kv->x12->latch, ~(u32)LATCH_SIPI);
	vcpu12_latch(kv, LATCH_INIT);
}

static void up_sipi(void *owner, unsigned id, u8 vector)
{
	struct kvm_vcpu *kv = vcpu_at(owner, id);

	if (kv)
		kv->x12->sipi_vector = vector;
	vcpu12_latch(kv, LATCH_SIPI);
}

static void up_smi(void *owner, unsigned id)
{
	vcpu12_latch(vcpu_at(owner, id), LATCH_SMI);
}

static void up_stimer(void *owner, unsigned id)
{
	vcpu12_latch(vcpu_at(owner, id), LATCH_STIMER);
}

static u64 up_tsc(void *owner, unsigned id)
{
	struct kvm_vcpu *kv = vcpu_at(owner, id);

	return __rdtsc() + (kv ? (u64)kv->cpu.tsc_offset : 0);
}

static u64 up_tsc_time(void *owner, unsigned id, u64 tsc)
{
	s64 ahead = (s64)(tsc - up_tsc(owner, id));

	if (ahead <= 0)
		return 0;
	return chip_now() + (u64)((u128)ahead * 1000000 / tsc_khz());
}

static void up_timer(void *owner)
{
	struct chips12 *x = owner;

	eventfd_signal(x->wake);
}

static void up_acked(void *owner, unsigned chip, unsigned pin)
{
	struct chips12 *x = owner;

	for (struct irqfd *f = x->irqfd; f; f = f->next) {
		const struct gsi *g = &x->chips->gsi[f->gsi];

		if (f->resample < 0)
			continue;
		for (unsigned n = 0; n < g->n; n++)
			if (g->e[n].kind == (enum gsi_kind)chip && g->e[n].pin == pin) {
				gsi_set_locked(x->chips, f->gsi, SOURCE_IRQFD, false);
				eventfd_signal(f->resample);
			}
	}
}

/* Split chips: some pin of the client's IOAPIC waits for this vector's end. */
static bool up_hears_eoi(void *owner, unsigned id, u8 vector)
{
	struct chips12 *x = owner;
	const struct lapic *l = x->chips->lapic[id];

	for (unsigned pin = 0; pin < x->pins; pin++) {
		const struct gsi *g = &x->chips->gsi[pin];

		for (unsigned n = 0; n < g->n; n++)
			if (g->e[n].kind == GSI_MSI && msi_is_for(l, g->e[n].addr, g->e[n].data, vector))
				return true;
	}
	return false;
}

static void up_eoi(void *owner, unsigned id, u8 vector)
{
	struct kvm_vcpu *kv = vcpu_at(owner, id);

	if (!kv || !up_hears_eoi(owner, id, vector))
		return;
	kv->x12->eoi[vector / 64] |= BIT(vector % 64);
	vcpu12_latch(kv, LATCH_EOI);
}

static int up_sint(void *owner, u32 pin)
{
	struct kvm_vcpu *kv = pin >> 4 < CHIP_VCPUS ? vcpu_at(owner, pin >> 4) : NULL;

	return kv ? synic_raise_locked(&kv->cpu, pin & 15) : -1;
}

static void up_sint_eoi(void *owner, unsigned id, u8 vector)
{
	struct kvm_vcpu *kv = vcpu_at(owner, id);

	if (kv)
		sints_acked_locked(kv, synic_sints_of(kv->x12, vector));
}

void sints_acked_locked(struct kvm_vcpu *kv, u32 which)
{
	struct lapic *l = lapic_of(&kv->cpu);

	for (; which; which &= which - 1)
		up_acked(l->chips->owner, GSI_SINT, l->vcpu << 4 | (unsigned)__builtin_ctz(which));
}

bool eoi12_exit(struct kvm_vcpu *kv)
{
	struct vcpu12 *x = kv->x12;

	for (unsigned n = 0; n < 4; n++) {
		unsigned bit;

		if (!x->eoi[n])
			continue;
		bit = (unsigned)__builtin_ctzll(x->eoi[n]);
		x->eoi[n] &= ~BIT(bit);
		x->run->exit_reason = KVM_EXIT_IOAPIC_EOI;
		x->run->eoi.vector = (u8)(64 * n + bit);
		return true;
	}
	return false;
}

static const struct chip_ops up = {
        .kick = up_kick,
        .nmi = up_nmi,
        .init = up_init,
        .sipi = up_sipi,
        .smi = up_smi,
        .stimer = up_stimer,
        .hears_eoi = up_hears_eoi,
        .tsc = up_tsc,
        .tsc_time = up_tsc_time,
        .timer = up_timer,
        .acked = up_acked,
        .eoi = up_eoi,
        .sint = up_sint,
        .sint_eoi = up_sint_eoi,
};

/* ---- the helper thread ------------------------------------------------------------------------------------------- */

static void irqfd_fire(struct chips12 *x, struct irqfd *f)
{
	u64 count;

	if (read(f->fd, &count, sizeof(count)) != sizeof(count))
		return;
	gsi_set_locked(x->chips, f->gsi, SOURCE_IRQFD, true);
	if (f->resample < 0)
		gsi_set_locked(x->chips, f->gsi, SOURCE_IRQFD, false);
}

/*
 * On a kernel an irqfd's interrupt is there as soon as its event is signalled; here the helper thread may not have seen
 * it yet. So whoever saves state, or changes where interrupts go, has the events looked at before: all, or of one
 * irqfd.
 */
static void irqfds_settle_locked(struct chips12 *x, struct irqfd *one)
{
	for (struct irqfd *f = x->irqfd; f; f = f->next) {
		struct pollfd p = {.fd = f->fd, .events = POLLIN};

		if ((!one || f == one) && poll(&p, 1, 0) == 1 && (p.revents & POLLIN))
			irqfd_fire(x, f);
	}
}

void irqfds12_settle_locked(struct chips *c)
{
	irqfds_settle_locked(c->owner, NULL);
}

static void irqfd_free(struct irqfd *f)
{
	if (f->fd >= 0)
		sys_close(f->fd);
	if (f->resample >= 0)
		sys_close(f->resample);
	free(f);
}

/* Fills `p` with what to wait for: our wake-up, then the irqfds in list order. */
static struct pollfd *poll_list(struct chips12 *x, struct pollfd *p, unsigned *n)
{
	struct pollfd *more = realloc(p, (x->n_irqfd + 1) * sizeof(*p));

	if (!more)
		return p;
	*n = 0;
	more[(*n)++] = (struct pollfd){.fd = x->wake, .events = POLLIN};
	for (struct irqfd *f = x->irqfd; f; f = f->next)
		more[(*n)++] = (struct pollfd){.fd = f->fd, .events = POLLIN};
	return more;
}

static void *helper(void *arg)
{
	struct chips12 *x = arg;
	struct chips *c = x->chips;
	struct pollfd *p = NULL;
	unsigned n = 0, version = ~0u;

	run_thread_begin();
	pthread_mutex_lock(&c->lock);
	while (!x->stop) {
		u64 next = chips_run_timers_locked(c), now = chip_now(), count;
		struct timespec t, *wait = NULL;

		if (next != NEVER) {
			u64 left = next > now ? next - now : 0;

			t = (struct timespec){.tv_sec = (time_t)(left / 1000000000),
			                      .tv_nsec = (long)(left % 1000000000)};
			wait = &t;
		}
		if (version != x->version) {
			p = poll_list(x, p, &n);
			version = x->version;
		}
		pthread_mutex_unlock(&c->lock);
		ppoll(p, n, wait, NULL);
		pthread_mutex_lock(&c->lock);
		if (n && (p[0].revents & POLLIN) && read(x->wake, &count, sizeof(count)) < 0)
			continue;
		/* A list that changed meanwhile is polled again: nothing is read for a number that may mean something
		 * else. */
		if (version == x->version) {
			struct irqfd *f = x->irqfd;

			for (unsigned k = 1; k < n && f; k++, f = f->next)
				if (p[k].revents & POLLIN)
					irqfds_settle_locked(x, f); /* unless somebody has read it by now */
		}
	}
	pthread_mutex_unlock(&c->lock);
	free(p);
	return NULL;
}

static int start_helper(struct chips12 *x)
{
	sigset_t all, was;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &was);
	rc = pthread_create(&x->thread, NULL, helper, x);
	pthread_sigmask(SIG_SETMASK, &was, NULL);
	x->has_thread = rc == 0;
	return -rc;
}

/* ---- creation ---------------------------------------------------------------------------------------------------- */

void chips12_free(struct vm12 *v)
{
	struct chips12 *x = v->chips;

	if (!x)
		return;
	if (x->has_thread) {
		pthread_mutex_lock(&x->chips->lock);
		x->stop = true;
		pthread_mutex_unlock(&x->chips->lock);
		up_timer(x);
		pthread_join(x->thread, NULL);
	}
	while (x->irqfd) {
		struct irqfd *f = x->irqfd;

		x->irqfd = f->next;
		irqfd_free(f);
	}
	if (x->wake >= 0)
		sys_close(x->wake);
	if (x->chips)
		chips_free(x->chips);
	free(x);
	v->chips = NULL;
}

bool pic_of(const struct vm *vm)
{
	return chips_of(vm) && !chips_of(vm)->split;
}

/* The object behind all chips; chips that a request makes later find it. */
static int chips_need(struct vm *vm)
{
	struct chips12 *x = vm->x12->chips;
	int rc;

	if (x)
		return 0;
	x = calloc(1, sizeof(*x));
	if (!x)
		return -ENOMEM;
	x->vm = vm;
	x->pit_only = true;
	x->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	x->chips = x->wake < 0 ? NULL : chips_create(&up, x, true);
	rc = x->chips ? start_helper(x) : -ENOMEM;
	vm->x12->chips = x;
	if (rc < 0)
		chips12_free(vm->x12);
	return rc;
}

static int create_locked(struct vm *vm, bool split, unsigned pins)
{
	struct chips12 *x;
	int rc;

	if (chips_of(vm))
		return -EEXIST;
	if (vm->x12->has_vcpu)
		return split ? -EEXIST : -EINVAL;
	rc = chips_need(vm);
	if (rc < 0)
		return rc;
	x = vm->x12->chips;
	pthread_mutex_lock(&x->chips->lock);
	x->pit_only = false;
	x->pins = pins;
	x->chips->split = split;
	x->chips->x2_format = vm->x12->x2_format;
	x->chips->x2_no_quirk = vm->x12->x2_no_quirk;
	chips12_quirks(vm);
	if (!split)
		routes_default(x->chips);
	pthread_mutex_unlock(&x->chips->lock);
	return 0;
}

long create_irqchip(struct vm *vm, unsigned long arg)
{
	long rc;

	pthread_mutex_lock(&vm->lock);
	rc = create_locked(vm, false, 0);
	pthread_mutex_unlock(&vm->lock);
	return rc;
}

int split_irqchip(struct vm *vm, u64 pins)
{
	return pins > GSI_MAX ? -EINVAL : create_locked(vm, true, (unsigned)pins);
}

int x2apic_api(struct vm *vm, u64 flags)
{
	struct chips *c = chips_of(vm);

	if (flags & ~(u64)(KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK))
		return -EINVAL;
	if (flags & KVM_X2APIC_API_USE_32BIT_IDS)
		vm->x12->x2_format = true;
	if (flags & KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK)
		vm->x12->x2_no_quirk = true;
	if (c) {
		c->x2_format = vm->x12->x2_format;
		c->x2_no_quirk = vm->x12->x2_no_quirk;
	}
	return 0;
}

void chips12_quirks(struct vm *vm)
{
	if (chips_of(vm))
		chips_of(vm)->lint0_masked = vm->x12->quirks_off & KVM_X86_QUIRK_LINT0_REENABLED;
}

/* Without interrupt chips its ticks go nowhere. */
static long create_pit(struct vm *vm, bool speaker)
{
	struct chips *c;
	long rc;

	vm_begin_change(vm);
	rc = chips_need(vm);
	if (rc < 0)
		goto out;
	c = chips12_all(vm);
	pthread_mutex_lock(&c->lock);
	rc = c->pit.present ? -EEXIST : 0;
	if (rc == 0) {
		c->pit.present = true;
		c->pit.speaker = speaker;
		pit_reset(&c->pit);
	}
	pthread_mutex_unlock(&c->lock);
out:
	vm_end_change(vm);
	return rc;
}

long create_pit1(struct vm *vm, unsigned long arg)
{
	return create_pit(vm, true);
}

long create_pit2(struct vm *vm, unsigned long arg)
{
	struct kvm_pit_config cfg;
	long rc = user_read(&cfg, (void *)arg, sizeof(cfg));

	return rc < 0 ? rc : create_pit(vm, cfg.flags & KVM_PIT_SPEAKER_DUMMY);
}

int chips12_add_vcpu(struct kvm_vcpu *kv)
{
	struct chips *c = chips_of(kv->cpu.vm);
	struct lapic *l;

	if (!c)
		return 0;
	l = chips_add_lapic(c, kv->cpu.id);
	if (!l)
		return -ENOMEM;
	pthread_mutex_lock(&c->lock);
	l->enabled = kv->cpu.apic_base & APIC_BASE_ENABLE;
	l->bsp = kv->cpu.apic_base & APIC_BASE_BSP;
	lapic_reset_locked(l, false);
	pthread_mutex_unlock(&c->lock);
	return 0;
}

/* ---- lines, messages, routes ------------------------------------------------------------------------------------- */

static long irq_line_common(struct vm *vm, unsigned long arg, bool status)
{
	struct chips *c = chips_of(vm);
	struct kvm_irq_level irq;
	long rc = user_read(&irq, (void *)arg, sizeof(irq));

	if (rc < 0)
		return rc;
	if (!c)
		return -ENXIO;
	irq.status = gsi_set(c, irq.irq, SOURCE_CLIENT, irq.level != 0);
	return status ? user_write((void *)arg, &irq, sizeof(irq)) : 0;
}

long irq_line(struct vm *vm, unsigned long arg)
{
	return irq_line_common(vm, arg, false);
}

long irq_line_status(struct vm *vm, unsigned long arg)
{
	return irq_line_common(vm, arg, true);
}

long signal_msi(struct vm *vm, unsigned long arg)
{
	struct chips *c = chips_of(vm);
	struct kvm_msi m;
	int sent;
	long rc = user_read(&m, (void *)arg, sizeof(m));

	if (rc < 0)
		return rc;
	if (!c || m.flags)
		return -EINVAL;
	pthread_mutex_lock(&c->lock);
	sent = msi_send_locked(c, m.address_lo | (u64)m.address_hi << 32, m.data);
	pthread_mutex_unlock(&c->lock);
	return sent;
}

static int route_one(struct gsi *table, const struct kvm_irq_routing_entry *r, bool split)
{
	struct gsi_entry e = {0};
	struct gsi *g;

	if (r->gsi >= GSI_MAX)
		return -EINVAL;
	g = &table[r->gsi];
	switch (r->type) {
	case KVM_IRQ_ROUTING_IRQCHIP:
		if (r->flags || split)
			return -EINVAL;
		e.pin = r->u.irqchip.pin;
		e.kind = r->u.irqchip.irqchip == KVM_IRQCHIP_IOAPIC ? GSI_IOAPIC : GSI_PIC;
		if (r->u.irqchip.irqchip == KVM_IRQCHIP_PIC_SLAVE)
			e.pin += 8;
		if (r->u.irqchip.irqchip > KVM_IRQCHIP_IOAPIC || e.pin >= (e.kind == GSI_PIC ? 16 : IOAPIC_PINS))
			return -EINVAL;
		break;
	case KVM_IRQ_ROUTING_MSI:
		if (r->flags & ~(u32)KVM_MSI_VALID_DEVID)
			return -EINVAL;
		e.kind = GSI_MSI;
		e.addr = r->u.msi.address_lo | (u64)r->u.msi.address_hi << 32;
		e.data = r->u.msi.data;
		break;
	case KVM_IRQ_ROUTING_HV_SINT: /* of a number that is not there: nobody hears it */
		if (r->flags)
			return -EINVAL;
		e.kind = GSI_SINT;
		e.pin = r->u.hv_sint.vcpu < CHIP_VCPUS && r->u.hv_sint.sint < 16
		                ? r->u.hv_sint.vcpu << 4 | r->u.hv_sint.sint
		                : ~0u;
		break;
	default:
		return -EINVAL;
	}
	/* One entry a chip, and nothing beside what is none. */
	for (unsigned n = 0; n < g->n; n++)
		if (e.kind >= GSI_MSI || g->e[n].kind >= GSI_MSI || g->e[n].kind == e.kind)
			return -EINVAL;
	if (g->n == ARRAY_SIZE(g->e))
		return -EINVAL;
	g->e[g->n++] = e;
	return 0;
}

long set_gsi_routing(struct vm *vm, unsigned long arg)
{
	struct chips *c = chips_of(vm);
	struct kvm_irq_routing_entry *e = NULL;
	struct gsi *table = NULL, *old;
	struct kvm_irq_routing head;
	long rc = user_read(&head, (void *)arg, sizeof(head));

	if (rc < 0)
		return rc;
	if (!c || head.nr > GSI_MAX || head.flags)
		return -EINVAL;
	e = calloc(head.nr + 1, sizeof(*e));
	table = calloc(GSI_MAX, sizeof(*table));
	rc = -ENOMEM;
	if (!e || !table)
		goto out;
	rc = user_read(e, (u8 *)arg + sizeof(head), head.nr * sizeof(*e));
	for (unsigned n = 0; rc == 0 && n < head.nr; n++)
		rc = route_one(table, &e[n], c->split);
	if (rc < 0)
		goto out;
	pthread_mutex_lock(&c->lock);
	irqfds12_settle_locked(c);
	old = c->gsi;
	c->gsi = table;
	c->has_sints = false;
	for (unsigned n = 0; n < head.nr; n++)
		c->has_sints |= e[n].type == KVM_IRQ_ROUTING_HV_SINT;
	table = old;
	pthread_mutex_unlock(&c->lock);
out:
	free(table);
	free(e);
	return rc;
}

static int irqfd_remove(struct chips12 *x, const struct kvm_irqfd *a)
{
	for (struct irqfd **at = &x->irqfd; *at;) {
		struct irqfd *f = *at;

		if (f->gsi != a->gsi || !same_file(f->fd, (int)a->fd)) {
			at = &f->next;
			continue;
		}
		irqfds_settle_locked(x, f);
		*at = f->next;
		irqfd_free(f);
		x->n_irqfd--;
		x->version++;
	}
	return 0;
}

static int irqfd_add(struct chips12 *x, const struct kvm_irqfd *a)
{
	struct irqfd *f;

	if ((a->flags & KVM_IRQFD_FLAG_RESAMPLE) && fcntl((int)a->resamplefd, F_GETFD) < 0)
		return -EBADF;
	for (f = x->irqfd; f; f = f->next)
		if (same_file(f->fd, (int)a->fd))
			return -EBUSY;
	f = calloc(1, sizeof(*f));
	if (!f)
		return -ENOMEM;
	f->gsi = a->gsi;
	f->resample = -1;
	f->fd = fcntl(a->fd, F_DUPFD_CLOEXEC, 3);
	if (a->flags & KVM_IRQFD_FLAG_RESAMPLE)
		f->resample = fcntl((int)a->resamplefd, F_DUPFD_CLOEXEC, 3);
	if (f->fd < 0 || ((a->flags & KVM_IRQFD_FLAG_RESAMPLE) && f->resample < 0)) {
		irqfd_free(f);
		return -EBADF;
	}
	f->next = x->irqfd;
	x->irqfd = f;
	x->n_irqfd++;
	x->version++;
	return 0;
}

long irqfd(struct vm *vm, unsigned long arg)
{
	struct chips12 *x = chips_of(vm) ? vm->x12->chips : NULL;
	struct kvm_irqfd a;
	long rc = user_read(&a, (void *)arg, sizeof(a));

	if (rc < 0)
		return rc;
	if (a.flags & ~(u32)(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE))
		return -EINVAL;
	if (!x)
		return a.flags & KVM_IRQFD_FLAG_DEASSIGN ? 0 : -EINVAL;
	if (a.gsi >= GSI_MAX)
		return -EINVAL;
	if (fcntl((int)a.fd, F_GETFD) < 0)
		return -EBADF;
	if (!is_eventfd((int)a.fd))
		return -EINVAL;
	pthread_mutex_lock(&x->chips->lock);
	rc = a.flags & KVM_IRQFD_FLAG_DEASSIGN ? irqfd_remove(x, &a) : irqfd_add(x, &a);
	pthread_mutex_unlock(&x->chips->lock);
	up_timer(x);
	return rc;
}

/* ---- the guest's accesses ---------------------------------------------------------------------------------------- */

bool chips12_mmio(struct vcpu *v, bool read, u64 gpa, u32 len, u8 *data)
{
	struct lapic *l = lapic_of(v);
	u64 off = gpa - (v->apic_base & ~0xfffull & ((1ull << 52) - 1));
	u32 val = 0;

	if (!l)
		return false;
	if (off < 0x1000 && (!l->enabled || l->x2apic) && !(v->vm->x12->quirks_off & KVM_X86_QUIRK_LAPIC_MMIO_HOLE)) {
		/* The page of an APIC that does not answer there stays nobody's, as under Linux' KVM. */
		if (read)
			memset(data, 0xff, len);
		return true;
	}
	if (!(off < 0x1000 && l->enabled && !l->x2apic))
		return chips_mmio(l->chips, read, gpa, len, data);
	vapic_in(v);
	if (off >> 4 == LAPIC_TPR)
		tpr_accessed(v, !read, v->r[R_RIP] - (read ? 0 : v->exit.insn_len));
	pthread_mutex_lock(&l->chips->lock);
	if (read) {
		memset(data, 0, len);
		if ((off & 15) + len <= 4) {
			lapic_read_locked(l, (u32)off >> 4, &val);
			memcpy(data, (u8 *)&val + (off & 15), len);
		}
	} else if (!(off & 15) && len == 4) {
		memcpy(&val, data, 4);
		lapic_write_locked(l, (u32)off >> 4, val);
	}
	v->cr8 = l->reg[LAPIC_TPR] >> 4 & 15;
	pthread_mutex_unlock(&l->chips->lock);
	return true;
}
