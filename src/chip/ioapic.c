/*
 * ioapic.c: the I/O APIC (Intel 82093AA data sheet 290566; version 0x11, 24 pins, no EOI register).
 *
 * Invariants: irr has the pins that ask: edges until they are delivered, levels while the line is high. A level pin is
 * delivered once and waits for its EOI (remote IRR) before it is delivered again.
 */
#include "chip.h"

#include <string.h>

#define RED_MASK BIT(16)
#define RED_LEVEL BIT(15)
#define RED_REMOTE_IRR BIT(14)
#define RED_STATUS BIT(12)
#define RED_LOGICAL BIT(11)

void ioapic_reset(struct ioapic *io)
{
	memset(io, 0, sizeof(*io));
	io->base = 0xfec00000;
	for (unsigned n = 0; n < IOAPIC_PINS; n++)
		io->redir[n] = RED_MASK;
}

/* Sends a pin's interrupt if it may go now. -1: masked or nobody takes it; 0: was pending; 1: new. */
static int service(struct chips *c, unsigned pin)
{
	struct ioapic *io = &c->ioapic;
	u64 e = io->redir[pin];
	struct ipi m = {.dest = (u32)(e >> 56),
	                .vector = (u8)e,
	                .mode = e >> 8 & 7,
	                .logical = e & RED_LOGICAL,
	                .level = e & RED_LEVEL,
	                .assert = true};
	int rc;

	if (!(io->irr >> pin & 1) || (e & RED_MASK))
		return -1;
	if ((e & RED_LEVEL) && (e & RED_REMOTE_IRR))
		return 0;
	rc = ipi_send_locked(c, &m);
	if (e & RED_LEVEL) {
		if (rc >= 0)
			io->redir[pin] |= RED_REMOTE_IRR;
	} else {
		io->irr &= ~(1u << pin);
	}
	return rc;
}

int ioapic_set_locked(struct chips *c, unsigned pin, bool level)
{
	struct ioapic *io = &c->ioapic;
	u32 bit = 1u << pin, was = io->level & bit;

	if (pin >= IOAPIC_PINS)
		return -1;
	if (!level) {
		io->level &= ~bit;
		if (io->redir[pin] & RED_LEVEL)
			io->irr &= ~bit;
		return 1;
	}
	io->level |= bit;
	if (!(io->redir[pin] & RED_LEVEL)) {
		if (was)
			return 0;
		/* An edge at a masked pin is lost (data sheet, 3.2.4). */
		if (io->redir[pin] & RED_MASK)
			return -1;
		if (io->irr & bit)
			return 0;
	}
	io->irr |= bit;
	return service(c, pin);
}

void ioapic_eoi_locked(struct chips *c, u8 vector)
{
	struct ioapic *io = &c->ioapic;

	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
		u64 e = io->redir[pin];

		if ((u8)e != vector || !(e & RED_LEVEL) || !(e & RED_REMOTE_IRR))
			continue;
		io->redir[pin] &= ~(u64)RED_REMOTE_IRR;
		c->ops->acked(c->owner, GSI_IOAPIC, pin);
		service(c, pin);
	}
}

void ioapic_edge_eoi_locked(struct chips *c, u8 vector)
{
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
		if ((u8)c->ioapic.redir[pin] == vector && pit_drives(c, GSI_IOAPIC, pin))
			pit_acked_locked(c);
}

void ioapic_changed_locked(struct chips *c)
{
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
		service(c, pin);
}

u32 ioapic_read(struct chips *c, u32 offset)
{
	struct ioapic *io = &c->ioapic;
	u32 val = 0, n;

	pthread_mutex_lock(&c->lock);
	if (offset == 0) {
		val = io->select;
	} else if (offset == 0x10) {
		n = (io->select - 0x10) / 2;
		if (io->select == 0 || io->select == 2)
			val = (io->id & 15) << 24;
		else if (io->select == 1)
			val = 0x11 | (IOAPIC_PINS - 1) << 16;
		else if (io->select >= 0x10 && n < IOAPIC_PINS)
			val = (u32)(io->redir[n] >> (io->select & 1 ? 32 : 0));
	}
	pthread_mutex_unlock(&c->lock);
	return val;
}

void ioapic_write(struct chips *c, u32 offset, u32 val)
{
	struct ioapic *io = &c->ioapic;
	u32 n;

	pthread_mutex_lock(&c->lock);
	if (offset == 0) {
		io->select = val & 0xff;
	} else if (offset == 0x10) {
		n = (io->select - 0x10) / 2;
		if (io->select == 0) {
			io->id = val >> 24 & 15;
		} else if (io->select >= 0x10 && n < IOAPIC_PINS) {
			u64 *e = &io->redir[n], keep = *e & (RED_REMOTE_IRR | RED_STATUS), was = *e;

			if (io->select & 1)
				*e = (*e & 0xffffffff) | (u64)val << 32;
			else
				*e = (*e & ~0xffffffffull) | (val & ~(RED_REMOTE_IRR | RED_STATUS)) | keep;
			/* An edge-triggered pin has no remote IRR; a level pin asks while its line is high. */
			if (!(*e & RED_LEVEL))
				*e &= ~(u64)RED_REMOTE_IRR;
			else if (io->level >> n & 1)
				io->irr |= 1u << n;
			if ((was & RED_MASK) && !(*e & RED_MASK) && pit_drives(c, GSI_IOAPIC, n))
				pit_fresh_locked(c);
			service(c, n);
		}
	}
	pthread_mutex_unlock(&c->lock);
}
