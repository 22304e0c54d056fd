/*
 * fpu.h: x87, MMX, SSE and AVX state of a vCPU, and its images in memory (FXSAVE, XSAVE, FNSAVE forms).
 *
 * Invariants:
 *  - fx[] is a valid 64-bit FXSAVE image whose x87 part (bytes 0-23 and 32-159) is the guest's x87 state, FIP, FDP and
 *    FOP included, ST0 first; its XMM part is unused;
 *  - xs_header is that of an XSAVE area with component 0 alone, so that the host's XRSTOR takes fx as it is;
 *  - bits ES and B of FSW always agree with "an exception flag of FSW is unmasked in FCW";
 *  - ymm[n] bytes 0-15 are XMMn, 16-31 the upper half. mxcsr is authoritative, not fx[24..31].
 */
#ifndef DEVKVM_CPU_FPU_H
#define DEVKVM_CPU_FPU_H

#include <string.h>

#include "../base/types.h"

struct fpu {
	_Alignas(64) u8 fx[512];
	u64 xs_header[8]; /* makes fx an XSAVE area of x87 alone: 1, 0... always */
	_Alignas(64) u8 ymm[16][32];
	u32 mxcsr;
	u16 fcs, fds;  /* selectors of the last non-control x87 instruction and its operand */
	bool x87_used; /* XINUSE[0]: false only after reset or an XRSTOR that initialised x87 */
	u64 xcr0;
};

#define MXCSR_DEFAULT 0x1f80u
/* Bits that may be one. AMD's misaligned-SSE bit (17) is not offered. */
#define MXCSR_MASK 0xffffu

/* Offsets inside an FXSAVE or XSAVE image. */
#define FX_FCW 0
#define FX_FSW 2
#define FX_FTW 4 /* one bit a physical register: 1 = not empty */
#define FX_FOP 6
#define FX_FIP 8
#define FX_FCS 12
#define FX_FDP 16
#define FX_FDS 20
#define FX_MXCSR 24
#define FX_MXCSR_MASK 28
#define FX_ST 32
#define FX_XMM 160
#define XS_BV 512
#define XS_XCOMP 520
#define XS_AVX 576
#define XSAVE_SIZE 832

#define FCW_DEFAULT 0x37f
#define FSW_ES 0x80
#define FSW_B 0x8000
#define FSW_TOP 0x3800

static inline u16 fx_get16(const u8 *img, unsigned off)
{
	u16 x;

	memcpy(&x, img + off, 2);
	return x;
}

static inline void fx_set16(u8 *img, unsigned off, u16 x)
{
	memcpy(img + off, &x, 2);
}

static inline unsigned fpu_top(const struct fpu *f)
{
	return f->fx[FX_FSW + 1] >> 3 & 7;
}

/* An unmasked x87 exception waits for the next waiting instruction. */
static inline bool fpu_pending(const struct fpu *f)
{
	return f->fx[FX_FSW] & FSW_ES;
}

/* Where MMn (physical x87 register n) lies in the image now. */
static inline u8 *fpu_mm(struct fpu *f, unsigned n)
{
	return f->fx + FX_ST + 16 * ((n - fpu_top(f)) & 7);
}

/* As after RESET. */
void fpu_reset(struct fpu *f);
/* FNINIT: control, status, tags and pointers; the registers keep their contents. */
void fpu_fninit(struct fpu *f);
/* Makes ES and B follow from the exception flags and masks. */
void fpu_update_es(struct fpu *f);
/* What every MMX instruction does: TOP = 0, all registers valid. */
void fpu_mmx_enter(struct fpu *f);
/* The 16-bit tag word of FNSTENV and FNSAVE. */
u16 fpu_full_tags(const struct fpu *f);
void fpu_set_full_tags(struct fpu *f, u16 tags);

/* Components that are not in their initial state (XCR0_x bits). */
u64 fpu_xinuse(const struct fpu *f);

/* Images for the ioctls: everything is stored, pointers included, in the 64-bit form. */
void fpu_to_fxsave(const struct fpu *f, u8 img[512]);
/* Ignores reserved bits, as KVM_SET_FPU and FXRSTOR of a masked MXCSR would. */
void fpu_from_fxsave(struct fpu *f, const u8 img[512]);
/* Standard (not compacted) form. */
void fpu_to_xsave(const struct fpu *f, u8 img[XSAVE_SIZE]);
/* False, and nothing changed, when the header or MXCSR has bits that XRSTOR refuses. */
bool fpu_from_xsave(struct fpu *f, const u8 img[XSAVE_SIZE]);

/* Parts of the above, for FXSAVE and XSAVE of the guest. `wide`: 64-bit FIP and FDP; otherwise 32 bits and selectors.
 */
void fpu_put_x87(const struct fpu *f, u8 *img, bool wide);
void fpu_get_x87(struct fpu *f, const u8 *img, bool wide);
/* The host's processor saves and restores FOP, FIP and FDP only while an exception is pending (AMD), FDP only for
 * unmasked exceptions, no selectors (later Intel). */
bool fpu_ptrs_only_pending(void);
bool fpu_fdp_only_excp(void);
bool fpu_no_selectors(void);

#endif
