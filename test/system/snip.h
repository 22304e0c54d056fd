/*
 * snip.h: what the system suite's snippets (assembler) and its programs (C) agree on: start modes, the guest's memory
 * map, selectors, ports. Only #defines: included by both.
 */
#ifndef DEVKVM_TEST_SYSTEM_SNIP_H
#define DEVKVM_TEST_SYSTEM_SNIP_H

/* Start modes. All start at CPL 0, interrupts off, linear = physical. */
#define REAL 1 /* CS = 0x1000 (the blob's base), the other segments 0 */
#define PROT 2 /* 32-bit, flat, no paging */
#define PG32 3 /* 32-bit paging with PSE: 4 KiB pages below 4 MiB, 4 MiB pages below 1 GiB */
#define PAE 4  /* PAE, NX: 4 KiB pages below 2 MiB, 2 MiB pages below 1 GiB */
#define LONG 5 /* 64-bit mode, tables as with PAE */
#define MODE_MASK 0xff

/* Guest physical memory */
#define RAM_SIZE 0x400000
#define GDT 0x1000
#define GDT_LIMIT 0x1ff
#define IDT 0x2000
#define TSS 0x3000
#define TSS_MAP 0x68 /* I/O bitmap */
#define TSS_LIMIT 0xaf
#define TSS2 0x5200
#define TSS16B 0x5300
#define LDTB 0x5400
#define LDTL 0x3f
#define RESUME 0x6000 /* where the handlers go next; 0: report and return, or end */
#define RESUME_SP 0x6008
#define JUMPTO 0x6010
#define SCRATCH 0x6100
#define IST1 0x7000
#define STACK0 0x8000
#define STACK3 0x9000
#define PML4 0xa000
#define PDPT 0xb000
#define PD 0xc000
#define PT 0xd000
#define PD32 0xa000
#define PT32 0xb000
#define BLOB 0x10000
#define PAGE1 0x100000 /* free pages up to 2 MiB */
#define PAGE2 0x101000
#define PAGE3 0x102000
#define PAGE4 0x103000
#define MMIO 0x10000000
#define RAM_END RAM_SIZE /* MMIO from here on as well */

/* Selectors */
#define CS0 0x08
#define DS0 0x10
#define CS3 0x1b
#define DS3 0x23
#define TR0 0x28
#define CSX 0x38  /* 16-bit code, ring 0 (LONG: 32-bit code) */
#define CSX3 0x43 /* 16-bit code, ring 3 (LONG: 32-bit code) */
#define LDT0 0x48
#define TR2 0x58
#define TR16 0x60
#define TGATE 0x68
#define SYSRET_CS 0x83
#define SYSENTER0 0xa0
#define SLOT 0xd0 /* free up to the limit */

/* Ports */
#define P_VAL 0x10 /* a value for the transcript */
#define P_IRQ 0x1e /* queue interrupt AL */
#define P_END 0x1f
#define P_VEC 0x20 /* an exception, from the handlers: vector first, flags last */
#define P_ERR 0x21
#define P_CR2 0x22
#define P_RIP 0x23
#define P_CS 0x24
#define P_FLAGS 0x25
#define P_DR6 0x26
#define P_CR2H 0x27
#define VEC_BACK 0x30 /* INT 0x30: back to ring 0, says nothing */

#define FL_TF 0x100
#define FL_IF 0x200
#define FL_DF 0x400
#define FL_NT 0x4000
#define FL_RF 0x10000
#define FL_VM 0x20000
#define FL_AC 0x40000
/* What a transcript shows of RFLAGS: all but the arithmetic flags and RF, which QEMU does not push. */
#define FL_SHOWN 0x3e7700

#endif
