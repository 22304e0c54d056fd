/*
 * fpu.c: the FPU state's reset and its images in memory. Instructions are in interp/; nothing here faults.
 *
 * The rules for FOP, FIP and FDP follow the host's vendor, because the guest sees the host's family in CPUID: an AMD
 * processor stores zeros for them in FXSAVE and XSAVE images, and loads zeros, unless an unmasked exception is pending
 * (seen on family 19h; APM vol. 2, 11.4.4). FNSTENV and FNSAVE always store them.
 */
#include <cpuid.h>
#include <string.h>

#include "fpu.h"
#include "../x86/regs.h"

static struct {
	bool known, amd, fdp_excp, no_sel;
} host;

static void host_rules(void)
{
	unsigned a, b, c, d;

	if (__atomic_load_n(&host.known, __ATOMIC_ACQUIRE))
		return;
	if (__get_cpuid(0, &a, &b, &c, &d)) /* "AuthenticAMD", "HygonGenuine" */
		host.amd = c == 0x444d4163 || c == 0x656e6975;
	if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
		host.fdp_excp = b & BIT(6);
		host.no_sel = b & BIT(13);
	}
	__atomic_store_n(&host.known, true, __ATOMIC_RELEASE);
}

bool fpu_ptrs_only_pending(void)
{
	host_rules();
	return host.amd;
}

bool fpu_fdp_only_excp(void)
{
	host_rules();
	return host.fdp_excp;
}

bool fpu_no_selectors(void)
{
	host_rules();
	return host.no_sel;
}

static void clear_pointers(struct fpu *f)
{
	fx_set16(f->fx, FX_FOP, 0);
	memset(f->fx + FX_FIP, 0, 16);
	f->fcs = f->fds = 0;
}

void fpu_reset(struct fpu *f)
{
	memset(f, 0, sizeof(*f));
	fx_set16(f->fx, FX_FCW, 0x40); /* SDM vol. 3, table 9-1: power-up values differ from FNINIT's */
	f->xs_header[0] = 1;
	f->fx[FX_FTW] = 0xff; /* power-up tags are "zero" (5555h): not empty */
	f->mxcsr = MXCSR_DEFAULT;
	f->xcr0 = XCR0_X87;
	f->x87_used = true;
}

/* Registers lie in the image in stack order: a new TOP moves them so that each physical register keeps its value. */
static void set_top(struct fpu *f, unsigned top)
{
	unsigned old = fpu_top(f), n;
	u8 st[8][16];

	if (old == top)
		return;
	memcpy(st, f->fx + FX_ST, sizeof(st));
	for (n = 0; n < 8; n++)
		memcpy(f->fx + FX_ST + 16 * ((n - top) & 7), st[(n - old) & 7], 16);
	fx_set16(f->fx, FX_FSW, (fx_get16(f->fx, FX_FSW) & ~FSW_TOP) | top << 11);
}

void fpu_fninit(struct fpu *f)
{
	set_top(f, 0);
	fx_set16(f->fx, FX_FCW, FCW_DEFAULT);
	fx_set16(f->fx, FX_FSW, 0);
	f->fx[FX_FTW] = 0;
	clear_pointers(f);
	f->x87_used = true;
}

void fpu_update_es(struct fpu *f)
{
	u16 fsw = fx_get16(f->fx, FX_FSW);

	fsw &= ~(FSW_ES | FSW_B);
	if (fsw & ~fx_get16(f->fx, FX_FCW) & 0x3f)
		fsw |= FSW_ES | FSW_B;
	fx_set16(f->fx, FX_FSW, fsw);
}

void fpu_mmx_enter(struct fpu *f)
{
	set_top(f, 0);
	f->fx[FX_FTW] = 0xff;
	f->x87_used = true;
}

u16 fpu_full_tags(const struct fpu *f)
{
	unsigned top = fpu_top(f), n, tag;
	u16 tags = 0, sexp;
	const u8 *st;
	u64 man;

	for (n = 0; n < 8; n++) {
		st = f->fx + FX_ST + 16 * ((n - top) & 7);
		memcpy(&man, st, 8);
		memcpy(&sexp, st + 8, 2);
		sexp &= 0x7fff;
		if (!(f->fx[FX_FTW] & BIT(n)))
			tag = 3;
		else if (!sexp && !man)
			tag = 1;
		else if (sexp && sexp != 0x7fff && man >> 63)
			tag = 0;
		else
			tag = 2;
		tags |= tag << (2 * n);
	}
	return tags;
}

void fpu_set_full_tags(struct fpu *f, u16 tags)
{
	unsigned n;

	f->fx[FX_FTW] = 0;
	for (n = 0; n < 8; n++)
		if ((tags >> (2 * n) & 3) != 3)
			f->fx[FX_FTW] |= BIT(n);
}

static bool all_zero(const void *p, size_t n)
{
	const u8 *b = p;

	return !n || (!b[0] && !memcmp(b, b + 1, n - 1));
}

u64 fpu_xinuse(const struct fpu *f)
{
	u64 use = f->x87_used ? XCR0_X87 : 0;
	unsigned n;

	for (n = 0; n < 16; n++) {
		if (!all_zero(f->ymm[n], 16))
			use |= XCR0_SSE;
		if (!all_zero(f->ymm[n] + 16, 16))
			use |= XCR0_AVX;
	}
	return use;
}

void fpu_put_x87(const struct fpu *f, u8 *img, bool wide)
{
	memcpy(img, f->fx, 24);
	memcpy(img + FX_ST, f->fx + FX_ST, 128);
	img[FX_FTW + 1] = 0;
	if (fpu_ptrs_only_pending() && !fpu_pending(f)) {
		fx_set16(img, FX_FOP, 0);
		memset(img + FX_FIP, 0, 16);
	} else if (!wide) {
		fx_set16(img, FX_FCS, fpu_no_selectors() ? 0 : f->fcs);
		fx_set16(img, FX_FCS + 2, 0);
		fx_set16(img, FX_FDS, fpu_no_selectors() ? 0 : f->fds);
		fx_set16(img, FX_FDS + 2, 0);
	}
}

void fpu_get_x87(struct fpu *f, const u8 *img, bool wide)
{
	unsigned n;

	memcpy(f->fx, img, 24);
	fx_set16(f->fx, FX_FCW, (fx_get16(img, FX_FCW) & 0x1f3f) | 0x40);
	f->fx[FX_FTW + 1] = 0;
	fx_set16(f->fx, FX_FOP, fx_get16(img, FX_FOP) & 0x7ff);
	for (n = 0; n < 8; n++)
		memcpy(f->fx + FX_ST + 16 * n, img + FX_ST + 16 * n, 10);
	fpu_update_es(f);
	f->x87_used = true;
	if (fpu_ptrs_only_pending() && !fpu_pending(f)) {
		clear_pointers(f);
	} else if (wide) {
		f->fcs = f->fds = 0;
	} else {
		f->fcs = fx_get16(img, FX_FCS);
		f->fds = fx_get16(img, FX_FDS);
		memset(f->fx + FX_FCS, 0, 4);
		memset(f->fx + FX_FDS, 0, 4);
	}
}

void fpu_to_fxsave(const struct fpu *f, u8 img[512])
{
	u32 mask = MXCSR_MASK;
	unsigned n;

	memset(img, 0, 512);
	memcpy(img, f->fx, 24);
	memcpy(img + FX_ST, f->fx + FX_ST, 128);
	memcpy(img + FX_MXCSR, &f->mxcsr, 4);
	memcpy(img + FX_MXCSR_MASK, &mask, 4);
	for (n = 0; n < 16; n++)
		memcpy(img + FX_XMM + 16 * n, f->ymm[n], 16);
}

/* As fpu_get_x87(), but keeps the pointers whatever the vendor. */
static void x87_from_image(struct fpu *f, const u8 *img)
{
	u8 ptrs[18];

	memcpy(ptrs, img + FX_FOP, sizeof(ptrs));
	fpu_get_x87(f, img, true);
	memcpy(f->fx + FX_FOP, ptrs, sizeof(ptrs));
	fx_set16(f->fx, FX_FOP, fx_get16(f->fx, FX_FOP) & 0x7ff);
}

void fpu_from_fxsave(struct fpu *f, const u8 img[512])
{
	unsigned n;

	x87_from_image(f, img);
	memcpy(&f->mxcsr, img + FX_MXCSR, 4);
	f->mxcsr &= MXCSR_MASK;
	for (n = 0; n < 16; n++)
		memcpy(f->ymm[n], img + FX_XMM + 16 * n, 16);
}

void fpu_to_xsave(const struct fpu *f, u8 img[XSAVE_SIZE])
{
	u64 bv = fpu_xinuse(f);
	unsigned n;

	fpu_to_fxsave(f, img);
	memset(img + 512, 0, XSAVE_SIZE - 512);
	if (f->mxcsr != MXCSR_DEFAULT)
		bv |= XCR0_SSE;
	memcpy(img + XS_BV, &bv, 8);
	for (n = 0; n < 16; n++)
		memcpy(img + XS_AVX + 16 * n, f->ymm[n] + 16, 16);
}

bool fpu_from_xsave(struct fpu *f, const u8 img[XSAVE_SIZE])
{
	u64 bv;
	u32 mxcsr;
	unsigned n;

	memcpy(&bv, img + XS_BV, 8);
	memcpy(&mxcsr, img + FX_MXCSR, 4);
	if (bv & ~(XCR0_X87 | XCR0_SSE | XCR0_AVX) || !all_zero(img + XS_XCOMP, 16))
		return false;
	if (bv & (XCR0_SSE | XCR0_AVX) && mxcsr & ~MXCSR_MASK)
		return false;
	if (bv & XCR0_X87) {
		x87_from_image(f, img);
	} else {
		f->fcs = f->fds = 0;
		memset(f->fx, 0, sizeof(f->fx));
		fx_set16(f->fx, FX_FCW, FCW_DEFAULT);
		f->x87_used = false;
	}
	f->mxcsr = bv & (XCR0_SSE | XCR0_AVX) ? mxcsr : MXCSR_DEFAULT;
	for (n = 0; n < 16; n++) {
		if (bv & XCR0_SSE)
			memcpy(f->ymm[n], img + FX_XMM + 16 * n, 16);
		else
			memset(f->ymm[n], 0, 16);
		if (bv & XCR0_AVX)
			memcpy(f->ymm[n] + 16, img + XS_AVX + 16 * n, 16);
		else
			memset(f->ymm[n] + 16, 0, 16);
	}
	return true;
}
