/*
 * i8259.c: the pair of interrupt controllers of a PC (Intel data sheet 231468), with the ELCR ports of the PIIX.
 *
 * Invariant: chips.pic_out says whether the master asks the processor; pic_update_locked() alone sets it.
 */
#include "chip.h"

#include <string.h>

void pic_reset(struct chips *c)
{
	memset(c->pic, 0, sizeof(c->pic));
	c->pic[1].slave = true;
	c->pic[0].elcr_mask = 0xf8;
	c->pic[1].elcr_mask = 0xde;
}

/* Order of a line: 0 is the highest; 8: no line. */
static unsigned rank(const struct pic *p, u8 lines)
{
	unsigned n;

	for (n = 0; n < 8; n++)
		if (lines >> ((n + p->prio) & 7) & 1)
			break;
	return n;
}

/* The line the chip asks for, -1: none. */
static int asks(const struct pic *p)
{
	unsigned n = rank(p, p->irr & (u8)~p->imr), serving;
	u8 isr = p->isr;

	if (n == 8)
		return -1;
	if (p->special_mask)
		isr &= (u8)~p->imr;
	/* Special fully nested: the master lets its slave ask again. */
	if (p->nested && !p->slave)
		isr &= (u8)~4;
	serving = rank(p, isr);
	return n < serving ? (int)((n + p->prio) & 7) : -1;
}

static bool set_line(struct pic *p, unsigned n, bool level)
{
	u8 bit = (u8)(1u << n);
	bool fresh = !(p->irr & bit);

	if (p->elcr & bit) {
		if (level) {
			p->irr |= bit;
			p->last |= bit;
		} else {
			p->irr &= (u8)~bit;
			p->last &= (u8)~bit;
		}
	} else if (level) {
		if (!(p->last & bit))
			p->irr |= bit;
		p->last |= bit;
	} else {
		p->last &= (u8)~bit;
	}
	return fresh;
}

void pic_update_locked(struct chips *c)
{
	bool out;

	/* The slave's output is the master's line 2. */
	if (asks(&c->pic[1]) >= 0) {
		set_line(&c->pic[0], 2, false);
		set_line(&c->pic[0], 2, true);
	} else {
		set_line(&c->pic[0], 2, false);
		c->pic[0].irr &= (u8)~4;
	}
	out = asks(&c->pic[0]) >= 0;
	if (out && !c->pic_out) {
		c->pic_out = true;
		for (unsigned n = 0; n < c->n_lapic; n++)
			if (c->lapic[n] && c->lapic[n]->bsp)
				c->ops->kick(c->owner, n);
	}
	c->pic_out = out;
}

int pic_set_locked(struct chips *c, unsigned line, bool level)
{
	struct pic *p = &c->pic[line / 8];
	bool fresh;

	if (line >= 16)
		return -1;
	fresh = set_line(p, line & 7, level);
	pic_update_locked(c);
	if (p->imr >> (line & 7) & 1)
		return -1;
	return fresh;
}

static void in_service(struct pic *p, int n)
{
	u8 bit = (u8)(1u << n);

	if (p->auto_eoi) {
		if (p->rotate_aeoi)
			p->prio = (u8)((n + 1) & 7);
	} else {
		p->isr |= bit;
	}
	if (!(p->elcr & bit))
		p->irr &= (u8)~bit;
}

static void acked(struct chips *c, int line)
{
	c->ops->acked(c->owner, GSI_PIC, (unsigned)line);
	if (pit_drives(c, GSI_PIC, (unsigned)line))
		pit_acked_locked(c);
}

u8 pic_ack_locked(struct chips *c)
{
	int n = asks(&c->pic[0]), m;
	u8 vec;

	if (n < 0) {
		vec = c->pic[0].base + 7; /* spurious */
	} else {
		in_service(&c->pic[0], n);
		vec = (u8)(c->pic[0].base + n);
		if (n == 2) {
			m = asks(&c->pic[1]);
			if (m >= 0)
				in_service(&c->pic[1], m);
			vec = (u8)(c->pic[1].base + (m < 0 ? 7 : m));
			if (m >= 0 && c->pic[1].auto_eoi)
				acked(c, 8 + m);
		} else if (c->pic[0].auto_eoi) {
			acked(c, n);
		}
	}
	pic_update_locked(c);
	return vec;
}

static void end_of(struct chips *c, struct pic *p, int n)
{
	p->isr &= (u8) ~(1u << n);
	acked(c, n + (p->slave ? 8 : 0));
}

static void write_command(struct chips *c, struct pic *p, u8 val)
{
	unsigned n;

	if (val & 0x10) { /* ICW1 */
		p->imr = p->isr = 0;
		p->irr &= p->elcr;
		p->prio = 0;
		p->special_mask = p->read_isr = p->auto_eoi = p->rotate_aeoi = p->nested = p->poll = false;
		p->need_icw4 = val & 1;
		p->icw_step = 2;
		return;
	}
	if (val & 8) { /* OCW3 */
		if (val & 4)
			p->poll = true;
		if (val & 2)
			p->read_isr = val & 1;
		if (val & 0x40)
			p->special_mask = val >> 5 & 1;
		return;
	}
	switch (val >> 5) { /* OCW2 */
	case 0:
	case 4:
		p->rotate_aeoi = val >> 7;
		break;
	case 1:
	case 5:
		n = rank(p, p->isr);
		if (n < 8) {
			n = (n + p->prio) & 7;
			if (val >> 5 == 5)
				p->prio = (u8)((n + 1) & 7);
			end_of(c, p, (int)n);
		}
		break;
	case 3:
		end_of(c, p, val & 7);
		break;
	case 6:
		p->prio = (u8)((val + 1) & 7);
		break;
	case 7:
		p->prio = (u8)((val + 1) & 7);
		end_of(c, p, val & 7);
		break;
	}
}

static void write_data(struct pic *p, u8 val)
{
	switch (p->icw_step) {
	case 0:
		p->imr = val;
		return;
	case 2:
		p->base = val & 0xf8;
		p->icw_step = 3;
		return;
	case 3:
		p->icw_step = p->need_icw4 ? 4 : 0;
		return;
	default:
		p->nested = val >> 4 & 1;
		p->auto_eoi = val >> 1 & 1;
		p->icw_step = 0;
	}
}

void pic_write_locked(struct chips *c, u16 port, u8 val)
{
	struct pic *p = &c->pic[port >= 0xa0 && port != 0x4d0 ? 1 : 0];
	u8 was = c->pic[0].imr;

	if (port == 0x4d0 || port == 0x4d1)
		c->pic[port & 1].elcr = val & c->pic[port & 1].elcr_mask;
	else if (port & 1)
		write_data(p, val);
	else
		write_command(c, p, val);
	/* A line that is open again, or a pair that starts again, has nothing to be made up for. */
	if ((((was & ~c->pic[0].imr) & 1) || (p == &c->pic[0] && p->icw_step == 2)) && pit_drives(c, GSI_PIC, 0))
		pit_fresh_locked(c);
	pic_update_locked(c);
}

u8 pic_read_locked(struct chips *c, u16 port)
{
	struct pic *p = &c->pic[port >= 0xa0 ? 1 : 0];
	int n;

	if (port == 0x4d0 || port == 0x4d1)
		return c->pic[port & 1].elcr;
	if (p->poll) {
		p->poll = false;
		n = asks(p);
		if (n < 0)
			return 7;
		in_service(p, n);
		pic_update_locked(c);
		return (u8)(0x80 | n);
	}
	if (port & 1)
		return p->imr;
	return p->read_isr ? p->isr : p->irr;
}
