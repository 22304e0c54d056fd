/*
 * i8259.c: the PC's pair of 8259A interrupt controllers (Intel 8259A data sheet), the second on line 2 of the first,
 * with the edge/level registers at 0x4d0.
 *
 * Invariants: irr holds latched edges and live levels; a line of the second chip is seen by the first as its line 2.
 */
#include "vmm.h"

#include <string.h>

#define CASCADE 2

void i8259_reset(struct i8259 *pic)
{
	memset(pic, 0, sizeof(*pic));
	pic->chip[0].vector_base = 8;
	pic->chip[1].vector_base = 0x70;
}

/* Place of the highest-priority bit set in `bits`, 8 when none: 0 is the highest. */
static unsigned highest(const struct i8259_chip *c, uint8_t bits)
{
	unsigned place = 0;

	if (!bits)
		return 8;
	while (!(bits & (1u << ((place + c->priority) & 7))))
		place++;
	return place;
}

/* The line to be serviced, or -1. */
static int request(const struct i8259_chip *c)
{
	unsigned want = highest(c, (uint8_t)(c->irr & ~c->imr));
	uint8_t served = c->isr;
	unsigned in_service;

	if (want == 8)
		return -1;
	if (c->special_mask)
		served &= (uint8_t)~c->imr;
	in_service = highest(c, served);
	return want < in_service ? (int)((want + c->priority) & 7) : -1;
}

static void chip_set(struct i8259_chip *c, unsigned line, bool level)
{
	uint8_t bit = (uint8_t)(1u << line);

	if (c->elcr & bit) {
		if (level)
			c->irr |= bit;
		else
			c->irr &= (uint8_t)~bit;
	} else if (level && !(c->lines & bit)) {
		c->irr |= bit;
	} else if (!level) {
		/* An edge that goes away before it is acknowledged is gone. */
		c->irr &= (uint8_t)~bit;
	}
	c->lines = level ? c->lines | bit : c->lines & (uint8_t)~bit;
}

static void cascade(struct i8259 *pic)
{
	chip_set(&pic->chip[0], CASCADE, false);
	if (request(&pic->chip[1]) >= 0)
		chip_set(&pic->chip[0], CASCADE, true);
}

void i8259_set_irq(struct i8259 *pic, unsigned irq, bool level)
{
	chip_set(&pic->chip[irq >> 3], irq & 7, level);
	cascade(pic);
}

bool i8259_pending(const struct i8259 *pic)
{
	return request(&pic->chip[0]) >= 0;
}

static void chip_ack(struct i8259_chip *c, unsigned line)
{
	uint8_t bit = (uint8_t)(1u << line);

	if (c->auto_eoi) {
		if (c->rotate_on_auto_eoi)
			c->priority = (uint8_t)((line + 1) & 7);
	} else {
		c->isr |= bit;
	}
	if (!(c->elcr & bit))
		c->irr &= (uint8_t)~bit;
}

uint8_t i8259_ack(struct i8259 *pic)
{
	int line = request(&pic->chip[0]);
	uint8_t vector;

	/* A request that vanished is answered with the spurious line 7. */
	if (line < 0)
		return pic->chip[0].vector_base + 7;
	chip_ack(&pic->chip[0], (unsigned)line);
	vector = (uint8_t)(pic->chip[0].vector_base + line);
	if (line == CASCADE) {
		int second = request(&pic->chip[1]);

		if (second >= 0)
			chip_ack(&pic->chip[1], (unsigned)second);
		else
			second = 7;
		vector = (uint8_t)(pic->chip[1].vector_base + second);
	}
	cascade(pic);
	return vector;
}

static void icw1(struct i8259_chip *c, uint8_t val)
{
	uint8_t elcr = c->elcr, lines = c->lines, base = c->vector_base;

	memset(c, 0, sizeof(*c));
	c->elcr = elcr;
	c->lines = lines;
	c->vector_base = base;
	c->irr = lines & elcr;
	c->init_step = 1;
	c->need_icw4 = val & 1;
}

static void ocw2(struct i8259_chip *c, uint8_t val)
{
	unsigned line = val & 7, place;

	switch (val >> 5) {
	case 0: /* rotate on automatic EOI: off, on */
	case 4:
		c->rotate_on_auto_eoi = val >> 7;
		break;
	case 1: /* EOI of the highest in service, without and with rotation */
	case 5:
		place = highest(c, c->isr);
		if (place == 8)
			break;
		line = (place + c->priority) & 7;
		c->isr &= (uint8_t) ~(1u << line);
		if (val >> 5 == 5)
			c->priority = (uint8_t)((line + 1) & 7);
		break;
	case 3: /* EOI of a given line */
	case 7:
		c->isr &= (uint8_t) ~(1u << line);
		if (val >> 5 == 7)
			c->priority = (uint8_t)((line + 1) & 7);
		break;
	case 6: /* set priority */
		c->priority = (uint8_t)((line + 1) & 7);
		break;
	default:
		break;
	}
}

static void command(struct i8259_chip *c, uint8_t val)
{
	if (val & 0x10) {
		icw1(c, val);
	} else if (val & 8) {
		if (val & 4)
			c->poll = true;
		if (val & 2)
			c->read_isr = val & 1;
		if (val & 0x40)
			c->special_mask = val & 0x20;
	} else {
		ocw2(c, val);
	}
}

static void data(struct i8259_chip *c, uint8_t val)
{
	switch (c->init_step) {
	case 1:
		c->vector_base = val & 0xf8;
		c->init_step = 2;
		break;
	case 2:
		c->init_step = c->need_icw4 ? 3 : 0;
		break;
	case 3:
		c->auto_eoi = val & 2;
		c->init_step = 0;
		break;
	default:
		c->imr = val;
	}
}

void i8259_out(struct i8259 *pic, uint16_t port, uint8_t val)
{
	if (port >= 0x4d0) {
		/* Timer, keyboard, cascade, clock and coprocessor lines cannot be level-triggered. */
		pic->chip[port & 1].elcr = val & (port & 1 ? 0xde : 0xf8);
	} else {
		struct i8259_chip *c = &pic->chip[port >= 0xa0];

		if (port & 1)
			data(c, val);
		else
			command(c, val);
	}
	cascade(pic);
}

uint8_t i8259_in(struct i8259 *pic, uint16_t port)
{
	struct i8259_chip *c = &pic->chip[port >= 0xa0];

	if (port >= 0x4d0)
		return pic->chip[port & 1].elcr;
	if (c->poll) {
		int line = request(c);

		c->poll = false;
		if (line < 0)
			return 7;
		chip_ack(c, (unsigned)line);
		cascade(pic);
		return (uint8_t)(0x80 | line);
	}
	if (port & 1)
		return c->imr;
	return c->read_isr ? c->isr : c->irr;
}
