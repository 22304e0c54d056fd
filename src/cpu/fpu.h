/*
 * fpu.h: x87, MMX, SSE and AVX state of a vCPU, and its images in memory (FXSAVE, XSAVE, FNSAVE forms).
 *
 * Invariants: fx[] is a valid 64-bit FXSAVE image whose x87 part (bytes 0-159) is the guest's x87 state, FIP, FDP and
 * FOP included; its XMM part is unused. ymm[n] bytes 0-15 are XMMn, 16-31 the upper half. mxcsr is authoritative, not
 * fx[24..27].
 */
#ifndef DEVKVM_CPU_FPU_H
#define DEVKVM_CPU_FPU_H

#include "../base/types.h"

struct fpu {
	_Alignas(64) u8 fx[512];
	_Alignas(64) u8 ymm[16][32];
	u32 mxcsr;
	u64 xcr0;
	/* XINUSE tracking for XSAVEOPT/XSAVEC/XGETBV(1) may be added here by fpu.c. */
	u64 xinuse_spare;
};

#endif
