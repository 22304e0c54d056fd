/*
 * machine.h: a vCPU without any KVM around it, for tests: memory windows whose guest linear, guest physical and host
 * addresses are all the same number, so that the host CPU and the interpreter can run the same bytes on the same
 * addresses.
 */
#ifndef DEVKVM_TEST_MACHINE_H
#define DEVKVM_TEST_MACHINE_H

#include "../../src/interp/interp.h"

struct machine {
	struct vm_mem mem;
	struct vcpu *v;
	u8 *tables; /* page tables, at guest physical TABLES_GPA */
	unsigned tables_used;
	struct memslot tables_slot, win_slot[8];
	unsigned nwin;
};

/* A vCPU in 64-bit mode at CPL 3 (or CPL 0: `cpl`), nothing mapped yet. */
void machine_init(struct machine *m, unsigned cpl);
void machine_free(struct machine *m);
/* Another one with the same memory; before machine_free() it must be freed. */
struct vcpu *machine_vcpu(struct machine *m, unsigned id, unsigned cpl);
void machine_vcpu_free(struct vcpu *v);
/* Adds RAM: [hva, hva + size) is guest physical memory at the same number, and nothing linear yet. */
void machine_window(struct machine *m, void *hva, u64 size);
/* Maps one page, linear = physical = `addr`. pte: PTE_x flags; 0 unmaps. */
void machine_map(struct machine *m, u64 addr, u64 pte);
void machine_map_to(struct machine *m, u64 addr, gpa_t gpa, u64 pte); /* the same, to another physical page */
/* 64-bit code, or flat 32-bit code in compatibility mode, or 16-bit. */
void machine_set_mode(struct machine *m, enum decode_mode mode);

#endif
