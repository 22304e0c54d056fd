/*
 * system.h: the system suite's parts in C: the start state a snippet runs from (setup.c), the transcript it leaves
 * (system.c), and a driver that runs it on some /dev/kvm (drive_2006.c, drive_12.c).
 */
#ifndef DEVKVM_TEST_SYSTEM_SYSTEM_H
#define DEVKVM_TEST_SYSTEM_SYSTEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "snip.h"

struct snippet {
	const char *name;
	uint32_t entry;
	unsigned mode;
};

/* Order of start.seg */
enum { S_CS, S_DS, S_ES, S_FS, S_GS, S_SS, S_TR, S_LDT, S_COUNT };

struct start_seg {
	uint64_t base;
	uint32_t limit;
	uint16_t sel;
	uint8_t type, dpl, db, s, l, g, unusable;
};

struct start {
	uint64_t rip, rsp, rflags;
	uint64_t cr0, cr3, cr4, efer;
	uint64_t gdt_base, idt_base;
	uint16_t gdt_limit, idt_limit;
	struct start_seg seg[S_COUNT];
};

/* setup.c */
unsigned snippet_count(void);
struct snippet snippet_get(unsigned n);
/* Fills RAM_SIZE bytes and the registers. */
void setup(const struct snippet *s, uint8_t *ram, struct start *st);

/* system.c: the transcript in the making. false: it is full or closed, stop. */
bool tr_out(unsigned port, unsigned size, uint32_t val);
uint32_t tr_in(unsigned port, unsigned size);
void tr_mmio_read(uint64_t gpa, unsigned len, uint8_t *data);
bool tr_mmio_write(uint64_t gpa, unsigned len, const uint8_t *data);
/* "hlt", "shutdown", ... */
void tr_end(const char *how);

/* The driver. `irq` of an OUT to P_IRQ is the driver's to queue before the guest goes on. */
extern const bool drive_is_oracle;
void drive(const struct snippet *s);

#endif
