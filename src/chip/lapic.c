/*
 * lapic.c: the local APIC of a vCPU: registers, priorities, the timer, interprocessor interrupts; xAPIC and x2APIC.
 * Intel SDM vol. 3, chapter 11.
 *
 * Invariants: IRR, ISR and TMR live in the register page as the interface shows them; PPR is computed when asked. An
 * interrupt is deliverable when the highest IRR's class is above PPR's.
 */
#include "chip.h"

#include <string.h>

#include "../x86/msr.h"

#define SVR_ENABLED BIT(8)
#define SVR_NO_BROADCAST_EOI BIT(12)
#define LVT_MASKED BIT(16)
#define LVT_LEVEL BIT(15)
#define LVT_REMOTE_IRR BIT(14)
#define LVT_PENDING BIT(12)
#define TIMER_PERIODIC 1
#define TIMER_DEADLINE 2
#define BUS_NS 1 /* the timer counts one a nanosecond, as Linux' KVM's */

enum { MODE_FIXED, MODE_LOWEST, MODE_SMI, MODE_RSVD, MODE_NMI, MODE_INIT, MODE_SIPI, MODE_EXTINT };

static bool vec_test(const u32 *reg, u8 vec)
{
	return reg[vec / 32] >> (vec % 32) & 1;
}

static void vec_set(u32 *reg, u8 vec)
{
	reg[vec / 32] |= 1u << (vec % 32);
}

static void vec_clear(u32 *reg, u8 vec)
{
	reg[vec / 32] &= ~(1u << (vec % 32));
}

static int vec_highest(const u32 *reg)
{
	for (int n = 7; n >= 0; n--)
		if (reg[n])
			return n * 32 + 31 - __builtin_clz(reg[n]);
	return -1;
}

static bool sw_enabled(const struct lapic *l)
{
	return l->reg[LAPIC_SVR] & SVR_ENABLED;
}

static u32 ppr(const struct lapic *l)
{
	int isr = vec_highest(&l->reg[LAPIC_ISR]);
	u32 tpr = l->reg[LAPIC_TPR], high = isr < 0 ? 0 : (u32)isr & 0xf0;

	return (tpr & 0xf0) >= high ? tpr & 0xff : high;
}

u32 lapic_id(const struct lapic *l)
{
	return l->x2apic ? l->x2id : l->reg[LAPIC_ID] >> 24;
}

static void kick(struct lapic *l)
{
	l->chips->ops->kick(l->chips->owner, l->vcpu);
}

/* Whether an EOI can be kept from the IOAPIC: as Linux' KVM, which offers it where the IOAPIC is the client's. */
void lapic_version_locked(struct lapic *l)
{
	l->reg[LAPIC_VERSION] = LAPIC_IS | (l->chips->split && l->x2_offered ? LAPIC_DIRECTED_EOI : 0);
}

void lapic_offer_x2apic(struct lapic *l, bool offered)
{
	pthread_mutex_lock(&l->chips->lock);
	l->x2_offered = offered;
	lapic_version_locked(l);
	pthread_mutex_unlock(&l->chips->lock);
}

void lapic_reset_locked(struct lapic *l, bool init)
{
	u32 id = l->reg[LAPIC_ID];

	memset(l->reg, 0, sizeof(l->reg));
	l->reg[LAPIC_ID] = init ? id : l->x2apic ? l->x2id : l->x2id << 24;
	lapic_version_locked(l);
	l->reg[LAPIC_DFR] = ~0u;
	l->reg[LAPIC_SVR] = 0xff;
	for (unsigned n = LAPIC_LVT_TIMER; n <= LAPIC_LVT_ERROR; n++)
		l->reg[n] = LVT_MASKED;
	/* The boot processor's LINT0 passes the i8259 on, as firmware finds it under Linux' KVM. */
	if (l->bsp && !l->chips->lint0_masked)
		l->reg[LAPIC_LINT0] = 7u << 8;
	if (l->x2apic)
		l->reg[LAPIC_LDR] = (l->x2id >> 4) << 16 | 1u << (l->x2id & 15);
	l->tsc_deadline = 0;
	l->timer_at = NEVER;
	l->esr_next = 0;
}

/* ---- accepting --------------------------------------------------------------------------------------------------- */

/* -1: not taken; 0: was pending already; 1: new. */
static int accept(struct lapic *l, u8 mode, u8 vector, bool level, bool assert)
{
	void *owner = l->chips->owner;
	int fresh;

	switch (mode) {
	case MODE_FIXED:
	case MODE_LOWEST:
		if (!l->enabled || vector < 16)
			return -1;
		if (!sw_enabled(l)) /* it is the destination all the same */
			return 0;
		fresh = !vec_test(&l->reg[LAPIC_IRR], vector);
		vec_set(&l->reg[LAPIC_IRR], vector);
		if (level)
			vec_set(&l->reg[LAPIC_TMR], vector);
		else
			vec_clear(&l->reg[LAPIC_TMR], vector);
		kick(l);
		return fresh;
	case MODE_SMI:
		l->chips->ops->smi(owner, l->vcpu);
		return 1;
	case MODE_NMI:
		l->chips->ops->nmi(owner, l->vcpu);
		return 1;
	case MODE_INIT:
		if (!level || assert)
			l->chips->ops->init(owner, l->vcpu);
		return 1;
	case MODE_SIPI:
		l->chips->ops->sipi(owner, l->vcpu, vector);
		return 1;
	case MODE_EXTINT:
		kick(l);
		return 1;
	default:
		return -1;
	}
}

bool lapic_accept_locked(struct lapic *l, u32 icr)
{
	u8 mode = icr >> 8 & 7;
	bool level = icr & BIT(15), assert = icr & BIT(14);

	if (mode <= MODE_LOWEST && (!l->enabled || !sw_enabled(l) || (level && !assert)))
		return false;
	return accept(l, mode, (u8)icr, level, assert) >= 0;
}

bool lapic_level(const struct lapic *l, u8 vector)
{
	return vec_test(&l->reg[LAPIC_TMR], vector);
}

bool ipi_matches(const struct lapic *l, const struct ipi *m)
{
	u32 ldr = l->reg[LAPIC_LDR], dest = m->dest;
	bool x2_sender = m->from && m->from->x2apic;

	switch (m->shorthand) {
	case 1:
		return l == m->from;
	case 2:
		return true;
	case 3:
		return l != m->from;
	}
	if (dest == 0xffffffffu || (dest == 0xff && !x2_sender && !(l->chips->x2_no_quirk && l->x2apic)))
		return true;
	if (!m->logical)
		return lapic_id(l) == dest;
	if (l->x2apic)
		return ldr >> 16 == dest >> 16 && (ldr & dest & 0xffff);
	dest &= 0xff;
	ldr >>= 24;
	if (l->reg[LAPIC_DFR] >> 28 == 0xf)
		return ldr & dest;
	return ldr >> 4 == dest >> 4 && (ldr & dest & 15);
}

int ipi_send_locked(struct chips *c, const struct ipi *m)
{
	struct lapic *low = NULL;
	int best = -1;

	for (unsigned n = 0; n < c->n_lapic; n++) {
		struct lapic *l = c->lapic[n];
		int rc;

		if (!l || !ipi_matches(l, m))
			continue;
		if (m->mode == MODE_LOWEST) {
			if (l->enabled && sw_enabled(l) && (!low || ppr(l) < ppr(low)))
				low = l;
			continue;
		}
		rc = accept(l, m->mode, m->vector, m->level, m->assert);
		if (rc > best)
			best = rc;
	}
	if (low)
		best = accept(low, m->mode, m->vector, m->level, m->assert);
	return best;
}

/* ---- what the processor takes ------------------------------------------------------------------------------------ */

/* Does the i8259 reach this processor? */
static bool extint_open(const struct lapic *l)
{
	if (!l->enabled)
		return l->bsp;
	return !(l->reg[LAPIC_LINT0] & LVT_MASKED) && (l->reg[LAPIC_LINT0] >> 8 & 7) == MODE_EXTINT;
}

bool lapic_takes_pic(struct lapic *l)
{
	bool takes;

	pthread_mutex_lock(&l->chips->lock);
	takes = extint_open(l);
	pthread_mutex_unlock(&l->chips->lock);
	return takes;
}

int lapic_pending(struct lapic *l, bool take)
{
	struct chips *c = l->chips;
	int vec = -1;

	pthread_mutex_lock(&c->lock);
	if (c->pic_out && extint_open(l)) {
		vec = take ? pic_ack_locked(c) : 0;
		goto out;
	}
	if (!l->enabled || !sw_enabled(l))
		goto out;
	vec = vec_highest(&l->reg[LAPIC_IRR]);
	if (vec >= 0 && ((u32)vec & 0xf0) <= (ppr(l) & 0xf0))
		vec = -1;
	if (vec >= 0 && take) {
		vec_clear(&l->reg[LAPIC_IRR], (u8)vec);
		if (!vec_test(l->auto_eoi, (u8)vec))
			vec_set(&l->reg[LAPIC_ISR], (u8)vec);
	}
out:
	pthread_mutex_unlock(&c->lock);
	return vec;
}

static void eoi(struct lapic *l)
{
	int vec = vec_highest(&l->reg[LAPIC_ISR]);

	if (vec < 0)
		return;
	vec_clear(&l->reg[LAPIC_ISR], (u8)vec);
	if (l->chips->has_sints)
		l->chips->ops->sint_eoi(l->chips->owner, l->vcpu, (u8)vec);
	if (l->chips->split)
		l->chips->ops->eoi(l->chips->owner, l->vcpu, (u8)vec);
	else if (vec_test(&l->reg[LAPIC_TMR], (u8)vec) && !(l->reg[LAPIC_SVR] & SVR_NO_BROADCAST_EOI))
		ioapic_eoi_locked(l->chips, (u8)vec);
	else if (!vec_test(&l->reg[LAPIC_TMR], (u8)vec) && l->chips->pit.pending)
		ioapic_edge_eoi_locked(l->chips, (u8)vec);
	kick(l);
}

void lapic_eoi(struct lapic *l)
{
	pthread_mutex_lock(&l->chips->lock);
	eoi(l);
	pthread_mutex_unlock(&l->chips->lock);
}

bool lapic_eoi_is_private(struct lapic *l)
{
	struct chips *c = l->chips;
	bool is = false;
	int vec;

	pthread_mutex_lock(&c->lock);
	vec = vec_highest(&l->reg[LAPIC_ISR]);
	if (vec >= 0 && vec_highest(&l->reg[LAPIC_IRR]) < 0 && !vec_test(&l->reg[LAPIC_TMR], (u8)vec))
		is = c->split ? !c->ops->hears_eoi(c->owner, l->vcpu, (u8)vec) : !c->pit.pending;
	pthread_mutex_unlock(&c->lock);
	return is;
}

void lapic_summary(struct lapic *l, u8 *out)
{
	int irr, isr;

	pthread_mutex_lock(&l->chips->lock);
	irr = vec_highest(&l->reg[LAPIC_IRR]);
	isr = vec_highest(&l->reg[LAPIC_ISR]);
	out[0] = (u8)l->reg[LAPIC_TPR];
	out[1] = isr < 0 ? 0 : (u8)isr & 0xf0;
	out[2] = 0;
	out[3] = irr < 0 ? 0 : (u8)irr;
	pthread_mutex_unlock(&l->chips->lock);
}

/* ---- the timer --------------------------------------------------------------------------------------------------- */

static unsigned timer_mode(const struct lapic *l)
{
	return l->reg[LAPIC_LVT_TIMER] >> 17 & 3;
}

static u64 timer_tick(const struct lapic *l)
{
	unsigned d = (l->reg[LAPIC_TIMER_DIV] & 3) | (l->reg[LAPIC_TIMER_DIV] >> 1 & 4);

	return (u64)BUS_NS << ((d + 1) & 7);
}

void lapic_timer_fire_locked(struct lapic *l, u64 now)
{
	u32 lvt = l->reg[LAPIC_LVT_TIMER];

	if (timer_mode(l) == TIMER_PERIODIC) {
		u64 period = l->reg[LAPIC_TIMER_INIT] * timer_tick(l);

		/* Periods that nobody could see are not made up for. */
		if (period < 20000)
			period = 20000;
		l->timer_at += period;
		if (l->timer_at <= now)
			l->timer_at = now + period;
	} else {
		l->timer_at = NEVER;
		l->tsc_deadline = 0;
	}
	if (!(lvt & LVT_MASKED))
		accept(l, MODE_FIXED, (u8)lvt, false, true);
}

/* Time that has come counts as come, even if the helper is late. */
static void timer_settle(struct lapic *l)
{
	u64 now = chip_now();

	if (l->timer_at <= now)
		lapic_timer_fire_locked(l, now);
}

static void timer_start(struct lapic *l)
{
	u64 now = chip_now();

	l->timer_start = now;
	l->timer_at = NEVER;
	if (timer_mode(l) == TIMER_DEADLINE) {
		if (l->tsc_deadline)
			l->timer_at = l->chips->ops->tsc_time(l->chips->owner, l->vcpu, l->tsc_deadline);
		/* One that has passed already is not left to the helper: the guest sees its interrupt at once. */
		if (l->timer_at <= now)
			lapic_timer_fire_locked(l, now);
	} else if (l->reg[LAPIC_TIMER_INIT]) {
		l->timer_at = now + l->reg[LAPIC_TIMER_INIT] * timer_tick(l);
	}
	chips_timer_changed_locked(l->chips);
}

/* From the restored registers: a deadline was set apart from them, a count goes on from where it was. */
static void timer_restart(struct lapic *l)
{
	u32 left = l->reg[LAPIC_TIMER_NOW];

	timer_start(l);
	if (timer_mode(l) == TIMER_DEADLINE || l->timer_at == NEVER)
		return;
	if (left == 0 && timer_mode(l) != TIMER_PERIODIC)
		l->timer_at = l->timer_start;
	else if (left && left < l->reg[LAPIC_TIMER_INIT])
		l->timer_at = l->timer_start + left * timer_tick(l);
	chips_timer_changed_locked(l->chips);
}

void lapic_changed_locked(struct lapic *l)
{
	if (l->x2apic) {
		l->reg[LAPIC_ID] = l->x2id;
		l->reg[LAPIC_LDR] = (l->x2id >> 4) << 16 | 1u << (l->x2id & 15);
	}
	timer_restart(l);
	kick(l);
}

static u32 timer_now(const struct lapic *l)
{
	u64 now = chip_now();

	if (timer_mode(l) == TIMER_DEADLINE || l->timer_at == NEVER || now >= l->timer_at)
		return 0;
	return (u32)((l->timer_at - now) / timer_tick(l));
}

void lapic_set_deadline(struct lapic *l, u64 tsc)
{
	pthread_mutex_lock(&l->chips->lock);
	if (timer_mode(l) == TIMER_DEADLINE) {
		l->tsc_deadline = tsc;
		timer_start(l);
	}
	pthread_mutex_unlock(&l->chips->lock);
}

/* ---- registers --------------------------------------------------------------------------------------------------- */

static void send_icr(struct lapic *l, u32 low, u32 dest)
{
	struct ipi m = {.dest = dest,
	                .vector = (u8)low,
	                .mode = low >> 8 & 7,
	                .logical = low & BIT(11),
	                .assert = low & BIT(14),
	                .level = low & BIT(15),
	                .shorthand = low >> 18 & 3,
	                .from = l};

	/* INIT level de-assert: nothing since the Pentium. */
	if (m.mode == MODE_INIT && m.level && !m.assert)
		return;
	if (m.mode != MODE_INIT)
		m.level = false;
	ipi_send_locked(l->chips, &m);
}

bool lapic_read_locked(struct lapic *l, u32 index, u32 *val)
{
	*val = 0;
	if (index >= LAPIC_REGS)
		return false;
	switch (index) {
	case LAPIC_PPR:
		*val = ppr(l);
		return true;
	case LAPIC_TIMER_NOW:
		timer_settle(l);
		*val = timer_now(l);
		return true;
	case LAPIC_TIMER_INIT:
		*val = timer_mode(l) == TIMER_DEADLINE ? 0 : l->reg[index];
		return true;
	case LAPIC_EOI:
	case LAPIC_SELF_IPI:
		return false;
	}
	*val = l->reg[index];
	return true;
}

bool lapic_write_locked(struct lapic *l, u32 index, u32 val)
{
	u32 old;

	switch (index) {
	case LAPIC_ID:
		if (l->x2apic)
			return false;
		l->reg[index] = val & 0xff000000;
		return true;
	case LAPIC_TPR:
		l->reg[index] = val & 0xff;
		kick(l);
		return true;
	case LAPIC_EOI:
		eoi(l);
		return true;
	case LAPIC_LDR:
		if (l->x2apic)
			return false;
		l->reg[index] = val & 0xff000000;
		return true;
	case LAPIC_DFR:
		if (l->x2apic)
			return false;
		l->reg[index] = val | 0x0fffffff;
		return true;
	case LAPIC_SVR:
		l->reg[index] = val & (0x3ff | (l->reg[LAPIC_VERSION] & LAPIC_DIRECTED_EOI ? SVR_NO_BROADCAST_EOI : 0));
		if (!(val & SVR_ENABLED))
			for (unsigned n = LAPIC_LVT_TIMER; n <= LAPIC_LVT_ERROR; n++)
				l->reg[n] |= LVT_MASKED;
		kick(l);
		return true;
	case LAPIC_ESR:
		l->reg[index] = l->esr_next;
		l->esr_next = 0;
		return true;
	case LAPIC_ICR:
		l->reg[index] = val & ~(u32)LVT_PENDING;
		send_icr(l, val, l->reg[LAPIC_ICR2] >> 24);
		return true;
	case LAPIC_ICR2:
		l->reg[index] = val & 0xff000000;
		return true;
	case LAPIC_LVT_TIMER:
		timer_settle(l);
		old = timer_mode(l);
		if (!sw_enabled(l))
			val |= LVT_MASKED;
		l->reg[index] = val & (LVT_MASKED | 3u << 17 | 0xff);
		if (timer_mode(l) != old) {
			/* Between deadline and counting modes the timer stops. */
			if (old == TIMER_DEADLINE || timer_mode(l) == TIMER_DEADLINE) {
				l->reg[LAPIC_TIMER_INIT] = 0;
				l->tsc_deadline = 0;
				l->timer_at = NEVER;
			}
			chips_timer_changed_locked(l->chips);
		}
		return true;
	case LAPIC_LVT_THERMAL:
	case LAPIC_LVT_PMC:
	case LAPIC_LVT_ERROR:
	case LAPIC_LINT0:
	case LAPIC_LINT1:
	case LAPIC_CMCI:
		if (!sw_enabled(l))
			val |= LVT_MASKED;
		l->reg[index] = val & (LVT_MASKED | LVT_LEVEL | BIT(13) | 0x7ff);
		kick(l);
		return true;
	case LAPIC_TIMER_INIT:
		if (timer_mode(l) == TIMER_DEADLINE)
			return true;
		l->reg[index] = val;
		timer_start(l);
		return true;
	case LAPIC_TIMER_DIV:
		l->reg[index] = val & 11;
		if (timer_mode(l) != TIMER_DEADLINE && l->timer_at != NEVER)
			timer_start(l);
		return true;
	case LAPIC_SELF_IPI:
		if (!l->x2apic)
			return false;
		accept(l, MODE_FIXED, (u8)val, false, true);
		return true;
	}
	return false;
}

/* SDM vol. 3, table 11-6: the others raise #GP. CMCI is not offered. */
static bool x2apic_has(u32 index)
{
	const u64 regs = BIT(LAPIC_ID) | BIT(LAPIC_VERSION) | BIT(LAPIC_TPR) | BIT(LAPIC_PPR) | BIT(LAPIC_LDR) |
	                 BIT(LAPIC_SVR) | 0xffffffull << LAPIC_ISR | BIT(LAPIC_ESR) | BIT(LAPIC_ICR) |
	                 0xffull << LAPIC_LVT_TIMER | BIT(LAPIC_TIMER_DIV);

	return index < LAPIC_REGS && (regs >> index & 1);
}

bool lapic_msr_read(struct lapic *l, u32 msr, u64 *val)
{
	u32 index = msr - 0x800, low = 0;
	bool ok = false;

	pthread_mutex_lock(&l->chips->lock);
	if (l->x2apic && x2apic_has(index)) {
		ok = lapic_read_locked(l, index, &low);
		*val = low;
		if (index == LAPIC_ICR)
			*val |= (u64)l->reg[LAPIC_ICR2] << 32;
	}
	pthread_mutex_unlock(&l->chips->lock);
	return ok;
}

bool lapic_msr_write(struct lapic *l, u32 msr, u64 val)
{
	u32 index = msr - 0x800;
	bool ok = false;

	pthread_mutex_lock(&l->chips->lock);
	if (!l->x2apic)
		goto out;
	if (index == LAPIC_ICR) {
		l->reg[LAPIC_ICR] = (u32)val & ~(u32)LVT_PENDING;
		l->reg[LAPIC_ICR2] = (u32)(val >> 32);
		send_icr(l, (u32)val, (u32)(val >> 32));
		ok = true;
	} else if (index != LAPIC_ICR2 && index != LAPIC_CMCI && !(val >> 32)) {
		ok = lapic_write_locked(l, index, (u32)val);
	}
out:
	pthread_mutex_unlock(&l->chips->lock);
	return ok;
}

void lapic_set_base(struct lapic *l, u64 base)
{
	bool was = l->x2apic;

	pthread_mutex_lock(&l->chips->lock);
	l->enabled = base & APIC_BASE_ENABLE;
	l->x2apic = (base & (APIC_BASE_ENABLE | BIT(10))) == (APIC_BASE_ENABLE | BIT(10));
	l->bsp = base & APIC_BASE_BSP;
	if (was != l->x2apic) {
		l->reg[LAPIC_ID] = l->x2apic ? l->x2id : l->x2id << 24;
		if (l->x2apic)
			l->reg[LAPIC_LDR] = (l->x2id >> 4) << 16 | 1u << (l->x2id & 15);
	}
	kick(l);
	pthread_mutex_unlock(&l->chips->lock);
}

void lapic_set_stimer(struct lapic *l, u64 when)
{
	pthread_mutex_lock(&l->chips->lock);
	l->stimer_at = when;
	chips_timer_changed_locked(l->chips);
	pthread_mutex_unlock(&l->chips->lock);
}

void lapic_set_tpr(struct lapic *l, u32 tpr)
{
	pthread_mutex_lock(&l->chips->lock);
	l->reg[LAPIC_TPR] = tpr & 0xff;
	kick(l);
	pthread_mutex_unlock(&l->chips->lock);
}
