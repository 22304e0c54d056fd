/*
 * regs.h: register numbers and the bits of RFLAGS, CRx, EFER, DRx and exceptions (Intel SDM vol. 3, chapters 2, 6, 17;
 * AMD APM vol. 2, chapters 3 and 8). Constants only.
 */
#ifndef DEVKVM_X86_REGS_H
#define DEVKVM_X86_REGS_H

#include "../base/types.h"

/* Index into vcpu->r[]. R_ZERO always holds 0 (a missing base or index); R_RIP is the address of the current
 * instruction. */
enum {
	R_RAX,
	R_RCX,
	R_RDX,
	R_RBX,
	R_RSP,
	R_RBP,
	R_RSI,
	R_RDI,
	R_R8,
	R_R9,
	R_R10,
	R_R11,
	R_R12,
	R_R13,
	R_R14,
	R_R15,
	R_ZERO,
	R_RIP,
	R_COUNT
};

/* Index into vcpu->seg[]; the first six in the encoding's order. */
enum { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_LDTR, SEG_TR, SEG_COUNT };

#define FLAGS_CF BIT(0)
#define FLAGS_FIXED BIT(1)
#define FLAGS_PF BIT(2)
#define FLAGS_AF BIT(4)
#define FLAGS_ZF BIT(6)
#define FLAGS_SF BIT(7)
#define FLAGS_TF BIT(8)
#define FLAGS_IF BIT(9)
#define FLAGS_DF BIT(10)
#define FLAGS_OF BIT(11)
#define FLAGS_IOPL (3ull << 12)
#define FLAGS_IOPL_SHIFT 12
#define FLAGS_NT BIT(14)
#define FLAGS_RF BIT(16)
#define FLAGS_VM BIT(17)
#define FLAGS_AC BIT(18)
#define FLAGS_VIF BIT(19)
#define FLAGS_VIP BIT(20)
#define FLAGS_ID BIT(21)
#define FLAGS_ARITH (FLAGS_CF | FLAGS_PF | FLAGS_AF | FLAGS_ZF | FLAGS_SF | FLAGS_OF)
/* All bits that can be one; every other bit of RFLAGS reads as zero. */
#define FLAGS_ALL                                                                                                      \
	(FLAGS_ARITH | FLAGS_FIXED | FLAGS_TF | FLAGS_IF | FLAGS_DF | FLAGS_IOPL | FLAGS_NT | FLAGS_RF | FLAGS_VM |    \
	 FLAGS_AC | FLAGS_VIF | FLAGS_VIP | FLAGS_ID)

#define CR0_PE BIT(0)
#define CR0_MP BIT(1)
#define CR0_EM BIT(2)
#define CR0_TS BIT(3)
#define CR0_ET BIT(4)
#define CR0_NE BIT(5)
#define CR0_WP BIT(16)
#define CR0_AM BIT(18)
#define CR0_NW BIT(29)
#define CR0_CD BIT(30)
#define CR0_PG BIT(31)

#define CR4_VME BIT(0)
#define CR4_PVI BIT(1)
#define CR4_TSD BIT(2)
#define CR4_DE BIT(3)
#define CR4_PSE BIT(4)
#define CR4_PAE BIT(5)
#define CR4_MCE BIT(6)
#define CR4_PGE BIT(7)
#define CR4_PCE BIT(8)
#define CR4_OSFXSR BIT(9)
#define CR4_OSXMMEXCPT BIT(10)
#define CR4_UMIP BIT(11)
#define CR4_LA57 BIT(12)
#define CR4_VMXE BIT(13)
#define CR4_FSGSBASE BIT(16)
#define CR4_PCIDE BIT(17)
#define CR4_OSXSAVE BIT(18)
#define CR4_SMEP BIT(20)
#define CR4_SMAP BIT(21)

#define EFER_SCE BIT(0)
#define EFER_LME BIT(8)
#define EFER_LMA BIT(10)
#define EFER_NX BIT(11)
#define EFER_FFXSR BIT(14)
#define EFER_AIBRS BIT(21) /* AMD: automatic IBRS */

#define DR6_FIXED 0xffff0ff0ull
#define DR6_BD BIT(13)
#define DR6_BS BIT(14)
#define DR6_BT BIT(15)
#define DR7_FIXED 0x400ull
#define DR7_GD BIT(13)

/* Exception vectors. */
enum {
	EXC_DE = 0,
	EXC_DB = 1,
	EXC_NMI = 2,
	EXC_BP = 3,
	EXC_OF = 4,
	EXC_BR = 5,
	EXC_UD = 6,
	EXC_NM = 7,
	EXC_DF = 8,
	EXC_TS = 10,
	EXC_NP = 11,
	EXC_SS = 12,
	EXC_GP = 13,
	EXC_PF = 14,
	EXC_MF = 16,
	EXC_AC = 17,
	EXC_MC = 18,
	EXC_XM = 19
};

/* Page-fault error code. */
#define PF_P BIT(0)
#define PF_W BIT(1)
#define PF_U BIT(2)
#define PF_RSVD BIT(3)
#define PF_ID BIT(4)

/* XCR0 components we know. */
#define XCR0_X87 BIT(0)
#define XCR0_SSE BIT(1)
#define XCR0_AVX BIT(2)
/* AVX-512's, which go together; no guest has them. */
#define XCR0_OPMASK BIT(5)
#define XCR0_ZMM_HI256 BIT(6)
#define XCR0_HI16_ZMM BIT(7)

#endif
