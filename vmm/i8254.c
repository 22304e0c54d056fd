/*
 * i8254.c: the 8254 interval timer and the speaker port 0x61 that gates its channel 2 (Intel 8254 data sheet).
 *
 * Counting is by the clock: a channel remembers when it was loaded, and what it shows is computed from the time since.
 */
#include "vmm.h"

#include <string.h>

#define PIT_HZ 1193182ull
#define NS 1000000000ull

static uint64_t to_ticks(uint64_t ns)
{
	return (uint64_t)((unsigned __int128)ns * PIT_HZ / NS);
}

static uint64_t to_ns(uint64_t ticks)
{
	return (uint64_t)(((unsigned __int128)ticks * NS + PIT_HZ - 1) / PIT_HZ);
}

void i8254_reset(struct i8254 *pit)
{
	memset(pit, 0, sizeof(*pit));
	for (unsigned n = 0; n < 3; n++) {
		pit->ch[n].mode = 3;
		pit->ch[n].access = 3;
		pit->ch[n].count = 65536;
		pit->ch[n].gate = n != 2;
	}
}

static uint64_t elapsed(const struct i8254_channel *c, uint64_t now)
{
	return c->gate && c->loaded ? to_ticks(now - c->start) : 0;
}

static uint16_t counter(const struct i8254_channel *c, uint64_t now)
{
	uint64_t t = elapsed(c, now);

	switch (c->mode) {
	case 2:
		return (uint16_t)(c->count - t % c->count);
	case 3: /* counts down by two, twice a period */
		return (uint16_t)((c->count - (2 * t) % c->count) & ~1ull);
	default:
		return (uint16_t)(c->count - t);
	}
}

static bool output(const struct i8254_channel *c, uint64_t now)
{
	uint64_t t = elapsed(c, now);

	switch (c->mode) {
	case 0:
	case 1:
		return c->loaded && t >= c->count;
	case 2:
		return t % c->count != c->count - 1;
	case 3:
		return t % c->count < (c->count + 1) / 2;
	default:
		return t != c->count;
	}
}

/* Channel 0 was (re)loaded: when does its output rise next? */
static void schedule(struct i8254 *pit)
{
	struct i8254_channel *c = &pit->ch[0];

	pit->next_irq = c->loaded && c->mode != 1 && c->mode != 5 ? c->start + to_ns(c->count) : 0;
}

static void load(struct i8254 *pit, unsigned n, uint16_t val, uint64_t now)
{
	struct i8254_channel *c = &pit->ch[n];

	c->count = val ? val : 65536;
	if (c->mode == 2 || c->mode == 3)
		c->count = c->count < 2 ? 2 : c->count;
	c->start = now;
	c->loaded = true;
	if (n == 0)
		schedule(pit);
}

static void control(struct i8254 *pit, uint8_t val, uint64_t now)
{
	unsigned n = val >> 6;
	struct i8254_channel *c;

	if (n == 3) {
		/* Read-back: bit 5 clear latches counts, bit 4 clear latches status. */
		for (unsigned k = 0; k < 3; k++) {
			c = &pit->ch[k];
			if (!(val & (2u << k)))
				continue;
			if (!(val & 0x20) && !c->latched) {
				c->latch = counter(c, now);
				c->latched = true;
			}
			if (!(val & 0x10) && !c->status_latched) {
				c->status = (uint8_t)(output(c, now) << 7 | !c->loaded << 6 | c->access << 4 |
				                      c->mode << 1);
				c->status_latched = true;
			}
		}
		return;
	}
	c = &pit->ch[n];
	if (!(val & 0x30)) {
		if (!c->latched) {
			c->latch = counter(c, now);
			c->latched = true;
		}
		return;
	}
	c->access = (val >> 4) & 3;
	c->mode = (val >> 1) & 7;
	if (c->mode > 5)
		c->mode &= 3;
	c->bcd = val & 1;
	c->read_step = c->write_step = 0;
	c->latched = c->status_latched = c->loaded = false;
	if (n == 0)
		pit->next_irq = 0;
}

void i8254_out(struct i8254 *pit, uint16_t port, uint8_t val, uint64_t now)
{
	struct i8254_channel *c;

	if (port == 0x61) {
		bool gate = val & 1;

		c = &pit->ch[2];
		if (gate && !c->gate)
			c->start = now;
		c->gate = gate;
		pit->speaker = val & 2;
		return;
	}
	if (port == 0x43) {
		control(pit, val, now);
		return;
	}
	c = &pit->ch[port & 3];
	switch (c->access) {
	case 1:
		load(pit, port & 3, val, now);
		break;
	case 2:
		load(pit, port & 3, (uint16_t)(val << 8), now);
		break;
	default:
		if (!c->write_step) {
			c->write_low = val;
			c->write_step = 1;
		} else {
			c->write_step = 0;
			load(pit, port & 3, (uint16_t)(val << 8 | c->write_low), now);
		}
	}
}

uint8_t i8254_in(struct i8254 *pit, uint16_t port, uint64_t now)
{
	struct i8254_channel *c;
	uint16_t val;

	if (port == 0x61) {
		c = &pit->ch[2];
		pit->refresh = !pit->refresh;
		return (uint8_t)(c->gate | pit->speaker << 1 | pit->refresh << 4 | output(c, now) << 5);
	}
	if (port == 0x43)
		return 0xff;
	c = &pit->ch[port & 3];
	if (c->status_latched) {
		c->status_latched = false;
		return c->status;
	}
	val = c->latched ? c->latch : counter(c, now);
	switch (c->access) {
	case 1:
		c->latched = false;
		return (uint8_t)val;
	case 2:
		c->latched = false;
		return (uint8_t)(val >> 8);
	default:
		c->read_step ^= 1;
		if (c->read_step)
			return (uint8_t)val;
		c->latched = false;
		return (uint8_t)(val >> 8);
	}
}

uint64_t i8254_poll(struct i8254 *pit, struct i8259 *pic, uint64_t now)
{
	struct i8254_channel *c = &pit->ch[0];
	uint64_t period = to_ns(c->count);

	if (pit->next_irq && now >= pit->next_irq) {
		i8259_set_irq(pic, IRQ_TIMER, false);
		i8259_set_irq(pic, IRQ_TIMER, true);
		if (c->mode == 2 || c->mode == 3) {
			pit->next_irq += period;
			/* Far behind (the host was busy): ticks that nobody could take are lost, as on hardware. */
			if (now > pit->next_irq + 16 * period)
				pit->next_irq = now + period;
		} else {
			pit->next_irq = 0;
		}
	}
	return pit->next_irq;
}
