/*
 * vmm.h: the monitor of `devkvm boot`: a PC with one processor, memory, interrupt controllers, timer, clock, serial
 * port, built on the interface of 2006 through <devkvm.h> and <linux/kvm.h> alone.
 *
 * Threads: the main thread runs the vCPU and owns every device; the input thread only fills the input queue (input.c).
 */
#ifndef DEVKVM_VMM_VMM_H
#define DEVKVM_VMM_VMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MiB (1ull << 20)
#define GiB (1ull << 30)

/* Guest-physical layout. RAM leaves the VGA window out, and the last gigabyte below 4 GiB. */
#define LOW_RAM_END 0xa0000ull
#define HIGH_RAM_START 0xc0000ull
#define RAM_HOLE_START (3 * GiB)
#define RAM_HOLE_END (4 * GiB)

#define IRQ_TIMER 0
#define IRQ_COM1 4
#define IRQ_RTC 8
#define IRQ_ACPI 9

/* ---- memory.c: guest RAM ----------------------------------------------------------------------------------------- */

struct ram_range {
	uint64_t gpa, size;
	uint8_t *host;
};

struct ram {
	uint64_t size; /* as the user asked */
	unsigned n;
	struct ram_range range[3];
};

/* Makes the memory slots and maps them. 0, or -1 with errno. */
int ram_create(struct ram *ram, int fd, uint64_t size);
/* Host address of [gpa, gpa + size), NULL when that is not all RAM. */
uint8_t *ram_at(const struct ram *ram, uint64_t gpa, uint64_t size);
/* End of the RAM below 4 GiB. */
uint64_t ram_low_end(const struct ram *ram);

/* ---- i8259.c: the interrupt controller pair ---------------------------------------------------------------------- */

struct i8259 {
	struct i8259_chip {
		uint8_t irr, isr, imr, elcr, lines;
		uint8_t vector_base, init_step, priority;
		bool need_icw4, read_isr, auto_eoi, rotate_on_auto_eoi, special_mask, poll;
	} chip[2];
};

/* Of each chip: ..._reset() as after power-on, ..._in() and ..._out() the guest's accesses to its ports. */

void i8259_reset(struct i8259 *pic);
void i8259_set_irq(struct i8259 *pic, unsigned irq, bool level);
/* Does the pair ask the processor? */
bool i8259_pending(const struct i8259 *pic);
/* Interrupt acknowledge: the vector. */
uint8_t i8259_ack(struct i8259 *pic);
uint8_t i8259_in(struct i8259 *pic, uint16_t port);
void i8259_out(struct i8259 *pic, uint16_t port, uint8_t val);

/* ---- i8254.c: the timer, and port 0x61 --------------------------------------------------------------------------- */

struct i8254 {
	struct i8254_channel {
		uint8_t mode, access, read_step, write_step, write_low;
		bool bcd, gate, latched, status_latched, loaded;
		uint8_t status;
		uint16_t latch;
		uint32_t count; /* 1..65536 */
		uint64_t start; /* ns when counting began */
	} ch[3];
	uint64_t next_irq; /* ns, 0: none */
	bool speaker, refresh;
};

void i8254_reset(struct i8254 *pit);
uint8_t i8254_in(struct i8254 *pit, uint16_t port, uint64_t now);
void i8254_out(struct i8254 *pit, uint16_t port, uint8_t val, uint64_t now);
/* Raises IRQ 0 when it is due. Returns when to come back (ns), or 0. */
uint64_t i8254_poll(struct i8254 *pit, struct i8259 *pic, uint64_t now);

/* ---- mc146818.c: real-time clock and CMOS ------------------------------------------------------------------------ */

struct mc146818 {
	uint8_t index, ram[128];
	int64_t offset; /* seconds between the guest's clock and the host's */
	uint64_t last_second, next_periodic;
};

void mc146818_reset(struct mc146818 *rtc, uint64_t ram_size);
uint8_t mc146818_in(struct mc146818 *rtc, uint16_t port, struct i8259 *pic);
void mc146818_out(struct mc146818 *rtc, uint16_t port, uint8_t val);
/* Raises IRQ 8 when it is due. Returns when to come back (ns), or 0. */
uint64_t mc146818_poll(struct mc146818 *rtc, struct i8259 *pic, uint64_t now);

/* ---- uart16550.c: the serial port -------------------------------------------------------------------------------- */

struct uart16550 {
	uint8_t ier, fcr, lcr, mcr, scr, dll, dlm;
	bool thr_irq;
	uint8_t rx[256];
	unsigned rx_head, rx_count;
	void (*put)(uint8_t c); /* where characters go */
};

void uart16550_reset(struct uart16550 *u, void (*put)(uint8_t c));
uint8_t uart16550_in(struct uart16550 *u, uint16_t port, struct i8259 *pic);
void uart16550_out(struct uart16550 *u, uint16_t port, uint8_t val, struct i8259 *pic);
/* Room for received characters, and one received character. */
unsigned uart16550_room(const struct uart16550 *u);
/* The guest wants to be told of received characters: somebody has opened the port. */
bool uart16550_listening(const struct uart16550 *u);
void uart16550_receive(struct uart16550 *u, uint8_t c, struct i8259 *pic);

/* ---- acpi.c: tables, and the power-management registers ---------------------------------------------------------- */

#define ACPI_PM1_EVT 0x600
#define ACPI_PM1_CNT 0x604
#define ACPI_PM_TMR 0x608
#define ACPI_TABLES 0xf0000ull

struct acpi_pm {
	uint16_t status, enable, control;
	bool power_off;
};

/* Writes RSDP, XSDT, FADT, FACS and DSDT to ACPI_TABLES; returns the RSDP's address. */
uint64_t acpi_write_tables(struct ram *ram);
uint32_t acpi_in(struct acpi_pm *pm, uint16_t port, unsigned size, uint64_t now);
void acpi_out(struct acpi_pm *pm, uint16_t port, unsigned size, uint32_t val);

/* ---- unpack.c: a bzImage's compressed payload -------------------------------------------------------------------- */

/* Name of the format by its first bytes, NULL when unknown. */
const char *unpack_format(const uint8_t *data, size_t size);
/* Unpacks all of it into a malloc'ed block. NULL: `*why` says what is wrong. */
uint8_t *unpack(const uint8_t *data, size_t size, size_t *out_size, const char **why);

/* ---- loader.c: kernel, initrd and command line into guest memory ------------------------------------------------- */

struct boot_options {
	const char *kernel, *initrd, *append;
	uint64_t memory;
	bool no_unpack;
	bool quiet;
};

struct boot_entry {
	bool long_mode;
	uint64_t rip, rsi;
};

/* 0; or -1 after one line on stderr. */
int loader_load(const struct boot_options *opt, struct ram *ram, struct boot_entry *entry);

/* ---- input.c: the terminal --------------------------------------------------------------------------------------- */

/* Starts reading stdin. A thread kicks the calling thread with KICK_SIGNAL when there is something. */
#define KICK_SIGNAL SIGUSR1
int input_start(void);
void input_stop(void);
/* Next character, -1 when none now. */
int input_get(void);
/* The user typed Ctrl-A x. */
bool input_quit(void);
/* Puts the terminal back; safe in a signal handler, may be called twice. */
void terminal_restore(void);

/* ---- machine.c --------------------------------------------------------------------------------------------------- */

/* Runs a guest until it ends; the exit status of `devkvm boot`. */
int machine_run(const struct boot_options *opt);

/* CLOCK_MONOTONIC. */
uint64_t now_ns(void);

/* A line "devkvm boot: …" on stderr. */
void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
