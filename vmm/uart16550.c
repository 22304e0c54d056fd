/*
 * uart16550.c: a 16550A serial port (National Semiconductor PC16550D data sheet). Transmission takes no time.
 */
#include "vmm.h"

#include <string.h>

#define LCR_DLAB 0x80
#define IER_RX 1
#define IER_TX 2
#define IER_LINE 4
#define IER_MODEM 8
#define MCR_OUT2 8
#define MCR_LOOP 0x10
#define LSR_DATA 1
#define LSR_THR_EMPTY 0x20
#define LSR_IDLE 0x40
#define MSR_CTS 0x10
#define MSR_DSR 0x20
#define MSR_DCD 0x80

void uart16550_reset(struct uart16550 *u, void (*put)(uint8_t c))
{
	memset(u, 0, sizeof(*u));
	u->dll = 12;
	u->put = put;
}

/* Interrupt identification: the highest-priority cause, 1 when none. */
static uint8_t cause(const struct uart16550 *u)
{
	if ((u->ier & IER_RX) && u->rx_count)
		return 4;
	if ((u->ier & IER_TX) && u->thr_irq)
		return 2;
	return 1;
}

static void update(struct uart16550 *u, struct i8259 *pic)
{
	i8259_set_irq(pic, IRQ_COM1, cause(u) != 1 && (u->mcr & MCR_OUT2) && !(u->mcr & MCR_LOOP));
}

unsigned uart16550_room(const struct uart16550 *u)
{
	/* Without FIFOs one character at a time, so that none is lost. */
	unsigned size = u->fcr & 1 ? 16 : 1;

	return u->rx_count < size ? size - u->rx_count : 0;
}

bool uart16550_listening(const struct uart16550 *u)
{
	return (u->ier & IER_RX) && (u->mcr & MCR_OUT2);
}

void uart16550_receive(struct uart16550 *u, uint8_t c, struct i8259 *pic)
{
	if (u->rx_count == sizeof(u->rx))
		return;
	u->rx[(u->rx_head + u->rx_count++) % sizeof(u->rx)] = c;
	update(u, pic);
}

static uint8_t modem_status(const struct uart16550 *u)
{
	if (!(u->mcr & MCR_LOOP))
		return MSR_CTS | MSR_DSR | MSR_DCD;
	/* Loopback: RTS→CTS, DTR→DSR, OUT1→RI, OUT2→DCD. */
	return (uint8_t)((u->mcr & 2) << 3 | (u->mcr & 1) << 5 | (u->mcr & 4) << 4 | (u->mcr & 8) << 4);
}

uint8_t uart16550_in(struct uart16550 *u, uint16_t port, struct i8259 *pic)
{
	uint8_t val;

	switch (port & 7) {
	case 0:
		if (u->lcr & LCR_DLAB)
			return u->dll;
		if (!u->rx_count)
			return 0;
		val = u->rx[u->rx_head];
		u->rx_head = (u->rx_head + 1) % sizeof(u->rx);
		u->rx_count--;
		break;
	case 1:
		return u->lcr & LCR_DLAB ? u->dlm : u->ier;
	case 2:
		val = cause(u);
		if (val == 2)
			u->thr_irq = false;
		val |= u->fcr & 1 ? 0xc0 : 0;
		break;
	case 3:
		return u->lcr;
	case 4:
		return u->mcr;
	case 5:
		return (uint8_t)(LSR_THR_EMPTY | LSR_IDLE | (u->rx_count ? LSR_DATA : 0));
	case 6:
		return modem_status(u);
	default:
		return u->scr;
	}
	update(u, pic);
	return val;
}

void uart16550_out(struct uart16550 *u, uint16_t port, uint8_t val, struct i8259 *pic)
{
	switch (port & 7) {
	case 0:
		if (u->lcr & LCR_DLAB) {
			u->dll = val;
			break;
		}
		u->thr_irq = false;
		update(u, pic); /* the line must fall so that the next edge is seen */
		if (u->mcr & MCR_LOOP)
			uart16550_receive(u, val, pic);
		else
			u->put(val);
		u->thr_irq = true;
		break;
	case 1:
		if (u->lcr & LCR_DLAB) {
			u->dlm = val;
			break;
		}
		if ((val & IER_TX) && !(u->ier & IER_TX))
			u->thr_irq = true;
		u->ier = val & 15;
		break;
	case 2:
		u->fcr = val;
		if (val & 2)
			u->rx_count = 0;
		break;
	case 3:
		u->lcr = val;
		break;
	case 4:
		u->mcr = val & 0x1f;
		break;
	case 7:
		u->scr = val;
		break;
	default:
		break;
	}
	update(u, pic);
}
