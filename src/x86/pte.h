/*
 * pte.h: page-table entry bits of all paging modes (Intel SDM vol. 3, chapter 4). Constants only.
 */
#ifndef DEVKVM_X86_PTE_H
#define DEVKVM_X86_PTE_H

#include "../base/types.h"

#define PTE_P BIT(0)
#define PTE_W BIT(1)
#define PTE_U BIT(2)
#define PTE_PWT BIT(3)
#define PTE_PCD BIT(4)
#define PTE_A BIT(5)
#define PTE_D BIT(6)
#define PTE_PS BIT(7)
#define PTE_G BIT(8)
#define PTE_NX BIT(63)

/* Widest physical address there is room for in memory slots. */
#define PHYS_BITS 48
/* What CPUID 0x80000008 offers: a terabyte is plenty, and firmware maps all that it is offered (doc/decisions.md). */
#define PHYS_BITS_OFFERED 40
#define PHYS_MASK (BIT(PHYS_BITS) - 1)

#endif
