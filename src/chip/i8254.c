/*
 * i8254.c: the interval timer of a PC (Intel data sheet 231164), and port 0x61 where it was asked for.
 *
 * Invariant: a counter's value follows from the time it was loaded; only counter 0's output leads anywhere (GSI 0, as
 * pulses), so only it has a moment to wait for. Counts are binary in here; with BCD the guest's side is converted.
 *
 * Edges that the guest is too slow for are made up for, as Linux' KVM does unless KVM_REINJECT_CONTROL says otherwise:
 * each waits for the acknowledgement (EOI) of the one before. A counter that is loaded and a line that is unmasked
 * start afresh. What was acknowledged inside of another chip's work is sent by the helper thread (pit.again).
 */
#include "chip.h"

#include <string.h>

#define HZ 1193182ull

void pit_reset(struct pit *p)
{
	bool present = p->present, speaker = p->speaker, drop = p->drop;

	memset(p, 0, sizeof(*p));
	p->present = present;
	p->speaker = speaker;
	p->drop = drop;
	p->next = NEVER;
	p->acked = true;
	for (unsigned n = 0; n < 3; n++) {
		p->c[n].mode = 0xff;
		p->c[n].gate = n != 2;
		p->c[n].count = 0x10000;
		p->c[n].start = chip_now();
	}
}

static u64 ticks_to_ns(u64 ticks)
{
	return (u64)((u128)ticks * 1000000000 / HZ);
}

static u64 passed(const struct pit_counter *k)
{
	return (u64)((u128)(chip_now() - k->start) * HZ / 1000000000);
}

static u16 to_bcd(u32 n)
{
	return (u16)(n / 1000 % 10 << 12 | n / 100 % 10 << 8 | n / 10 % 10 << 4 | n % 10);
}

static u32 from_bcd(u32 n)
{
	return (n >> 12) * 1000 + (n >> 8 & 15) * 100 + (n >> 4 & 15) * 10 + (n & 15);
}

static u32 count_binary(const struct pit_counter *k)
{
	u64 d = passed(k);

	switch (k->mode) {
	case 0:
	case 1:
	case 4:
	case 5:
		return (u32)(k->count - d);
	case 3:
		return (u32)(k->count - (2 * d) % k->count);
	default:
		return (u32)(k->count - d % k->count);
	}
}

/* As the guest reads it. One-shot counters go on below zero, from 9999 or 65535. */
static u16 count_now(const struct pit_counter *k)
{
	u32 n = count_binary(k);

	if (!k->bcd)
		return (u16)n;
	return to_bcd((u32)(((s64)(s32)n % 10000 + 10000) % 10000));
}

/* The guest's reload value; 0 is the largest. */
static void load(struct chips *c, unsigned n, u16 val)
{
	if (c->pit.c[n].bcd)
		pit_load_locked(c, n, val ? from_bcd(val) : 10000, chip_now());
	else
		pit_load_locked(c, n, val, chip_now());
}

static bool out_now(const struct pit_counter *k)
{
	u64 d = passed(k);

	switch (k->mode) {
	case 0:
		return d >= k->count;
	case 1:
		return d >= k->count;
	case 2:
		return d % k->count != k->count - 1;
	case 3:
		return d % k->count < (k->count + 1) / 2;
	default:
		return d != k->count;
	}
}

static void arm(struct chips *c)
{
	const struct pit_counter *k = &c->pit.c[0];
	u64 period = ticks_to_ns(k->count);

	c->pit.next = NEVER;
	if (k->mode == 0 || k->mode == 1 || k->mode == 4)
		c->pit.next = k->start + period;
	else if (k->mode == 2 || k->mode == 3)
		c->pit.next = k->start + (period < 20000 ? 20000 : period);
	chips_timer_changed_locked(c);
}

void pit_load_locked(struct chips *c, unsigned n, u32 count, u64 when)
{
	c->pit.c[n].count = count ? count : 0x10000;
	c->pit.c[n].start = when;
	if (n == 0) {
		pit_fresh_locked(c);
		arm(c);
	}
}

static void edge(struct chips *c)
{
	if (!c->pit.drop && !c->pit.acked)
		return;
	c->pit.acked = false;
	gsi_set_locked(c, 0, 2, true);
	gsi_set_locked(c, 0, 2, false);
}

void pit_fire_locked(struct chips *c, u64 now)
{
	struct pit *p = &c->pit;
	const struct pit_counter *k = &p->c[0];
	u64 period = ticks_to_ns(k->count), edges = 1;

	if (p->again) {
		p->again = false;
		edge(c);
	}
	if (p->next > now)
		return;
	if (k->mode == 2 || k->mode == 3) {
		if (period < 20000)
			period = 20000;
		edges += (now - p->next) / period;
		p->next += edges * period;
	} else {
		p->next = NEVER;
	}
	if (!p->drop)
		p->pending = edges > ~p->pending ? ~0u : p->pending + (u32)edges;
	edge(c);
}

bool pit_drives(const struct chips *c, enum gsi_kind kind, unsigned pin)
{
	const struct gsi *g = &c->gsi[0];

	for (unsigned n = 0; c->pit.present && n < g->n; n++)
		if (g->e[n].kind == kind && g->e[n].pin == pin)
			return true;
	return false;
}

void pit_fresh_locked(struct chips *c)
{
	c->pit.pending = 0;
	c->pit.acked = true;
	c->pit.again = false;
}

void pit_acked_locked(struct chips *c)
{
	struct pit *p = &c->pit;

	p->acked = true;
	if (!p->pending || p->drop)
		return;
	p->pending--;
	if (p->pending) {
		p->again = true;
		chips_timer_changed_locked(c);
	}
}

void pit_reinject_locked(struct chips *c, bool on)
{
	if (on == !c->pit.drop)
		return;
	if (on)
		pit_fresh_locked(c);
	c->pit.drop = !on;
}

static void latch_count(struct pit_counter *k)
{
	if (!k->latched) {
		k->latch = count_now(k);
		k->latched = k->rw;
	}
}

static void write_control(struct chips *c, u8 val)
{
	struct pit *p = &c->pit;

	if (val >> 6 == 3) { /* read-back */
		for (unsigned n = 0; n < 3; n++) {
			struct pit_counter *k = &p->c[n];

			if (!(val >> (n + 1) & 1))
				continue;
			if (!(val & 0x20))
				latch_count(k);
			if (!(val & 0x10) && !k->status_latched) {
				k->status = (u8)(out_now(k) << 7 | k->rw << 4 | (k->mode & 7) << 1 | k->bcd);
				k->status_latched = true;
			}
		}
		return;
	}
	if (!(val >> 4 & 3)) {
		latch_count(&p->c[val >> 6]);
		return;
	}
	{
		struct pit_counter *k = &p->c[val >> 6];

		k->rw = k->rw_read = k->rw_write = val >> 4 & 3;
		k->mode = val >> 1 & 7;
		if (k->mode > 5)
			k->mode &= 3;
		k->bcd = val & 1;
		k->latched = 0;
		if (val >> 6 == 0) {
			p->next = NEVER;
			chips_timer_changed_locked(c);
		}
	}
}

void pit_write_locked(struct chips *c, u16 port, u8 val)
{
	struct pit_counter *k;

	if (port == 0x61) {
		bool gate = val & 1;

		if (gate && !c->pit.c[2].gate)
			c->pit.c[2].start = chip_now();
		c->pit.c[2].gate = gate;
		c->pit.out2 = val & 2;
		return;
	}
	if (port == 0x43) {
		write_control(c, val);
		return;
	}
	k = &c->pit.c[port & 3];
	switch (k->rw_write) {
	case 1:
		load(c, port & 3, val);
		break;
	case 2:
		load(c, port & 3, (u16)(val << 8));
		break;
	case 3:
		k->write_low = val;
		k->rw_write = 4;
		break;
	case 4:
		k->rw_write = 3;
		load(c, port & 3, (u16)(k->write_low | val << 8));
		break;
	}
}

u8 pit_read_locked(struct chips *c, u16 port)
{
	struct pit_counter *k;
	u16 now;

	if (port == 0x61) /* bit 4: memory refresh, toggles every 15 us */
		return (u8)((out_now(&c->pit.c[2]) << 5) | ((chip_now() / 15000 & 1) << 4) | (c->pit.out2 << 1) |
		            c->pit.c[2].gate);
	if (port == 0x43)
		return 0;
	k = &c->pit.c[port & 3];
	if (k->status_latched) {
		k->status_latched = false;
		return k->status;
	}
	if (k->latched) {
		switch (k->latched) {
		case 1:
			k->latched = 0;
			return (u8)k->latch;
		case 2:
			k->latched = 0;
			return (u8)(k->latch >> 8);
		case 3:
			k->latched = 4;
			return (u8)k->latch;
		default:
			k->latched = 0;
			return (u8)(k->latch >> 8);
		}
	}
	now = count_now(k);
	switch (k->rw_read) {
	case 2:
		return (u8)(now >> 8);
	case 3:
		k->rw_read = 4;
		return (u8)now;
	case 4:
		k->rw_read = 3;
		return (u8)(now >> 8);
	default:
		return (u8)now;
	}
}
