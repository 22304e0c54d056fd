/*
 * i8254.c: the interval timer of a PC (Intel data sheet 231164), and port 0x61 where it was asked for.
 *
 * Invariant: a counter's value follows from the time it was loaded; only counter 0's output leads anywhere (GSI 0, as
 * pulses), so only it has a moment to wait for.
 */
#include "chip.h"

#include <string.h>

#define HZ 1193182ull

void pit_reset(struct pit *p)
{
	bool present = p->present, speaker = p->speaker;

	memset(p, 0, sizeof(*p));
	p->present = present;
	p->speaker = speaker;
	p->next = NEVER;
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

static u16 count_now(const struct pit_counter *k)
{
	u64 d = passed(k);

	switch (k->mode) {
	case 0:
	case 1:
	case 4:
	case 5:
		return (u16)(k->count - d);
	case 3:
		return (u16)(k->count - (2 * d) % k->count);
	default:
		return (u16)(k->count - d % k->count);
	}
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
	if (n == 0)
		arm(c);
}

void pit_fire_locked(struct chips *c, u64 now)
{
	struct pit_counter *k = &c->pit.c[0];
	u64 period = ticks_to_ns(k->count);

	if (k->mode == 2 || k->mode == 3) {
		if (period < 20000)
			period = 20000;
		c->pit.next += period;
		/* Ticks that came late by more than one period are lost, as on a machine whose interrupts were off. */
		if (c->pit.next <= now)
			c->pit.next = now + period;
	} else {
		c->pit.next = NEVER;
	}
	gsi_set_locked(c, 0, 2, true);
	gsi_set_locked(c, 0, 2, false);
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
		k->bcd = val & 1; /* GAP(pit-bcd): counts in binary all the same */
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
		pit_load_locked(c, port & 3, val, chip_now());
		break;
	case 2:
		pit_load_locked(c, port & 3, (u32)val << 8, chip_now());
		break;
	case 3:
		k->write_low = val;
		k->rw_write = 4;
		break;
	case 4:
		k->rw_write = 3;
		pit_load_locked(c, port & 3, k->write_low | (u32)val << 8, chip_now());
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
