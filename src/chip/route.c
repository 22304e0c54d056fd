/*
 * route.c: the chips of a VM together: interrupt lines (GSIs) to pins and messages, timers, and who answers which
 * address.
 */
#include "chip.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

u64 chip_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (u64)t.tv_sec * 1000000000 + (u64)t.tv_nsec;
}

struct chips *chips_create(const struct chip_ops *ops, void *owner, bool split)
{
	struct chips *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->gsi = calloc(GSI_MAX, sizeof(*c->gsi));
	if (!c->gsi) {
		free(c);
		return NULL;
	}
	pthread_mutex_init(&c->lock, NULL);
	c->ops = ops;
	c->owner = owner;
	c->split = split;
	c->next_timer = NEVER;
	ioapic_reset(&c->ioapic);
	pic_reset(c);
	c->pit.next = NEVER;
	return c;
}

void chips_free(struct chips *c)
{
	for (unsigned n = 0; n < c->n_lapic; n++)
		free(c->lapic[n]);
	pthread_mutex_destroy(&c->lock);
	free(c->gsi);
	free(c);
}

struct lapic *chips_add_lapic(struct chips *c, unsigned vcpu)
{
	struct lapic *l = calloc(1, sizeof(*l));

	if (!l)
		return NULL;
	l->chips = c;
	l->vcpu = vcpu;
	l->x2id = vcpu;
	l->timer_at = l->stimer_at = NEVER;
	pthread_mutex_lock(&c->lock);
	c->lapic[vcpu] = l;
	if (vcpu >= c->n_lapic)
		c->n_lapic = vcpu + 1;
	pthread_mutex_unlock(&c->lock);
	return l;
}

void routes_default(struct chips *c)
{
	memset(c->gsi, 0, GSI_MAX * sizeof(*c->gsi));
	for (unsigned n = 0; n < IOAPIC_PINS; n++) {
		c->gsi[n].e[c->gsi[n].n++] = (struct gsi_entry){.kind = GSI_IOAPIC, .pin = n};
		if (n < 16)
			c->gsi[n].e[c->gsi[n].n++] = (struct gsi_entry){.kind = GSI_PIC, .pin = n};
	}
	c->n_gsi = IOAPIC_PINS;
}

static struct ipi msi_ipi(const struct chips *c, u64 addr, u32 data)
{
	struct ipi m = {.dest = addr >> 12 & 0xff,
	                .vector = (u8)data,
	                .mode = data >> 8 & 7,
	                .logical = addr >> 2 & 1,
	                .level = data >> 15 & 1,
	                .assert = true};

	/* x2APIC format of Linux' KVM: the high half of the address extends the destination. */
	if (c->x2_format)
		m.dest |= (u32)(addr >> 32) & 0xffffff00;
	return m;
}

int msi_send_locked(struct chips *c, u64 addr, u32 data)
{
	struct ipi m = msi_ipi(c, addr, data);

	return ipi_send_locked(c, &m);
}

bool msi_is_for(const struct lapic *l, u64 addr, u32 data, u8 vector)
{
	struct ipi m = msi_ipi(l->chips, addr, data);

	return m.level && m.vector == vector && (ipi_matches(l, &m) || lapic_level(l, vector));
}

int gsi_set_locked(struct chips *c, unsigned gsi, unsigned source, bool level)
{
	int best = -1, rc;
	bool was, now;

	if (gsi >= GSI_MAX)
		return -1;
	was = c->gsi_level[gsi];
	if (level)
		c->gsi_level[gsi] |= (u8)(1u << source);
	else
		c->gsi_level[gsi] &= (u8) ~(1u << source);
	now = c->gsi_level[gsi];
	(void)was;
	for (unsigned n = 0; n < c->gsi[gsi].n; n++) {
		const struct gsi_entry *e = &c->gsi[gsi].e[n];

		if (e->kind == GSI_PIC)
			rc = pic_set_locked(c, e->pin, now);
		else if (e->kind == GSI_IOAPIC)
			rc = ioapic_set_locked(c, e->pin, now);
		else if (e->kind == GSI_SINT)
			rc = level ? c->ops->sint(c->owner, e->pin) : -1;
		else
			rc = level ? msi_send_locked(c, e->addr, e->data) : -1;
		if (rc > best)
			best = rc;
	}
	return best;
}

int gsi_set(struct chips *c, unsigned gsi, unsigned source, bool level)
{
	int rc;

	pthread_mutex_lock(&c->lock);
	rc = gsi_set_locked(c, gsi, source, level);
	pthread_mutex_unlock(&c->lock);
	return rc;
}

/* ---- timers ------------------------------------------------------------------------------------------------------ */

static u64 earliest(const struct chips *c)
{
	u64 t = c->pit.again ? 0 : c->pit.next;

	for (unsigned n = 0; n < c->n_lapic; n++) {
		if (!c->lapic[n])
			continue;
		if (c->lapic[n]->timer_at < t)
			t = c->lapic[n]->timer_at;
		if (c->lapic[n]->stimer_at < t)
			t = c->lapic[n]->stimer_at;
	}
	return t;
}

void chips_timer_changed_locked(struct chips *c)
{
	u64 t = earliest(c);

	/* A later moment costs one wake-up too many, and no call now; nor when it goes back to what was asked for
	 * before: a guest that idles and wakes all the time stops and starts its tick each time. */
	if (t >= c->next_timer)
		return;
	c->next_timer = t;
	c->ops->timer(c->owner);
}

u64 chips_run_timers_locked(struct chips *c)
{
	u64 now = chip_now();

	/* The caller looks at what is returned: nobody needs to be told of changes in here. */
	c->next_timer = 0;
	if (c->pit.next <= now || c->pit.again)
		pit_fire_locked(c, now);
	for (unsigned n = 0; n < c->n_lapic; n++) {
		struct lapic *l = c->lapic[n];

		if (l && l->timer_at <= now)
			lapic_timer_fire_locked(l, now);
		if (l && l->stimer_at <= now) {
			l->stimer_at = NEVER;
			c->ops->stimer(c->owner, n);
		}
	}
	c->next_timer = earliest(c);
	return c->next_timer;
}

/* ---- guest accesses ---------------------------------------------------------------------------------------------- */

static bool is_pic(u16 port)
{
	return port == 0x20 || port == 0x21 || port == 0xa0 || port == 0xa1 || port == 0x4d0 || port == 0x4d1;
}

static bool is_pit(const struct pit *p, u16 port)
{
	return p->present && ((port >= 0x40 && port <= 0x43) || (port == 0x61 && p->speaker));
}

bool chips_pio(struct chips *c, bool in, u16 port, u32 size, u32 *val)
{
	bool pic = is_pic(port);

	if (pic ? c->split : !is_pit(&c->pit, port))
		return false;
	pthread_mutex_lock(&c->lock);
	if (size == 1) {
		if (in)
			*val = pic ? pic_read_locked(c, port) : pit_read_locked(c, port);
		else if (pic)
			pic_write_locked(c, port, (u8)*val);
		else
			pit_write_locked(c, port, (u8)*val);
	}
	pthread_mutex_unlock(&c->lock);
	return true;
}

bool chips_mmio(struct chips *c, bool read, u64 gpa, u32 len, u8 *data)
{
	u64 off = gpa - c->ioapic.base;
	u32 val = 0;

	if (c->split || off >= 0x100)
		return false;
	if (read) {
		memset(data, 0, len);
		val = ioapic_read(c, (u32)off & 0xf0);
		memcpy(data, &val, len < 4 ? len : 4);
	} else {
		memcpy(&val, data, len < 4 ? len : 4);
		ioapic_write(c, (u32)off & 0xf0, val);
	}
	return true;
}
