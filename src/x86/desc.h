/*
 * desc.h: segment descriptors as they lie in memory (Intel SDM vol. 3, 3.4.5 and 3.5). Constants only.
 */
#ifndef DEVKVM_X86_DESC_H
#define DEVKVM_X86_DESC_H

#include "../base/types.h"

/* Type field of code and data descriptors (s = 1). */
#define SEGT_A 1 /* accessed */
#define SEGT_W 2 /* data: writable */
#define SEGT_R 2 /* code: readable */
#define SEGT_E 4 /* data: expand down */
#define SEGT_C 4 /* code: conforming */
#define SEGT_CODE 8

/* Type field of system descriptors (s = 0). In long mode the 32-bit names stand for the 64-bit forms. */
enum {
	SYST_TSS16 = 1,
	SYST_LDT = 2,
	SYST_TSS16_BUSY = 3,
	SYST_CALL16 = 4,
	SYST_TASK = 5,
	SYST_INT16 = 6,
	SYST_TRAP16 = 7,
	SYST_TSS32 = 9,
	SYST_TSS32_BUSY = 11,
	SYST_CALL32 = 12,
	SYST_INT32 = 14,
	SYST_TRAP32 = 15
};

#endif
