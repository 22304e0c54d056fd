/*
 * cpuid.c: the model processor. It offers what is implemented and what the host has, and nothing else.
 *
 * Invariants: leaves never change while the process lives (the host's are read once); vendor, family, model and the
 * vendor's rules follow the host, so that instructions run natively mean the same. SDM vol. 2, CPUID; APM vol. 3,
 * appendix E.
 */
#include <cpuid.h>
#include <pthread.h>
#include <string.h>
#include <Zydis/MetaInfo.h>

#include "../x86/pte.h"
#include "cpu.h"

enum { A, B, C, D };

/* Leaf 1 */
#define L1C_OFFERED                                                                                                    \
	(BIT(0) | BIT(1) | BIT(9) | BIT(12) | BIT(13) | BIT(17) | BIT(19) | BIT(20) | BIT(22) | BIT(23) | BIT(25) |    \
	 BIT(26) | BIT(28) | BIT(29) | BIT(30))
#define L1C_XSAVE BIT(26)
#define L1C_OSXSAVE BIT(27)
/* FPU VME DE PSE TSC MSR PAE MCE CX8 SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2; no APIC */
#define L1D_OFFERED                                                                                                    \
	(BIT(0) | BIT(1) | BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(11) | BIT(12) |          \
	 BIT(13) | BIT(14) | BIT(15) | BIT(16) | BIT(17) | BIT(19) | BIT(23) | BIT(24) | BIT(25) | BIT(26))
/* Leaf 7. EBX: FSGSBASE TSC_ADJUST BMI1 AVX2 SMEP BMI2 ERMS INVPCID RDSEED ADX SMAP CLFLUSHOPT CLWB SHA */
#define L7B_OFFERED                                                                                                    \
	(BIT(0) | BIT(1) | BIT(3) | BIT(5) | BIT(7) | BIT(8) | BIT(9) | BIT(10) | BIT(18) | BIT(19) | BIT(20) |        \
	 BIT(23) | BIT(24) | BIT(29))
#define L7B_X87 (BIT(6) | BIT(13))     /* how the host keeps FDP, FCS and FDS: the guest's x87 is the host's */
#define L7C_OFFERED (BIT(2) | BIT(22)) /* UMIP RDPID */
#define L7D_OFFERED (BIT(4))           /* FSRM */
/* Whatever the host has: PCID; FSGSBASE TSC_ADJUST SMEP INVPCID SMAP; UMIP RDPID; GBPAGES RDTSCP. These are ours alone.
 */
#define L1C_OURS BIT(17)
#define L7B_OURS (BIT(0) | BIT(1) | BIT(7) | BIT(10) | BIT(20))
#define L7C_OURS (BIT(2) | BIT(22))
#define X1D_OURS (BIT(26) | BIT(27))
/* Leaf 0x80000001. ECX: LAHF LZCNT PREFETCHW OSVW. EDX: SYSCALL NX MMXEXT GBPAGES RDTSCP LM */
#define X1C_OFFERED (BIT(0) | BIT(5) | BIT(8) | BIT(9))
#define X1D_OFFERED (BIT(11) | BIT(20) | BIT(22) | BIT(26) | BIT(27) | BIT(29))
#define X1D_COMMON                                                                                                     \
	(BIT(0) | BIT(1) | BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(12) | BIT(13) |          \
	 BIT(14) | BIT(15) | BIT(16) | BIT(17) | BIT(23) | BIT(24))

static struct {
	u32 vendor[4], l1[4], l7[4], x1[4], xsave1[4], x8b;
	u32 brand[3][4];
	u32 cache[3][4]; /* 0x80000005, 0x80000006, Intel's leaf 2 */
	u32 leaf4[5][4];
	u64 cr4, efer, xcr0;
	bool amd;
} model;

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void host_leaf(u32 leaf, u32 sub, u32 out[4])
{
	u32 max = __get_cpuid_max(leaf & 0x80000000u, NULL);

	memset(out, 0, 16);
	if (leaf <= max)
		__cpuid_count(leaf, sub, out[A], out[B], out[C], out[D]);
}

static void model_masks(void)
{
	u64 cr4 = CR4_VME | CR4_PVI | CR4_TSD | CR4_DE | CR4_PSE | CR4_PAE | CR4_MCE | CR4_PGE | CR4_PCE | CR4_OSFXSR |
	          CR4_OSXMMEXCPT;

	if (model.l7[C] & BIT(2))
		cr4 |= CR4_UMIP;
	if (model.l7[B] & BIT(0))
		cr4 |= CR4_FSGSBASE;
	if (model.l7[B] & BIT(7))
		cr4 |= CR4_SMEP;
	if (model.l7[B] & BIT(20))
		cr4 |= CR4_SMAP;
	if (model.l1[C] & BIT(17))
		cr4 |= CR4_PCIDE;
	if (model.l1[C] & L1C_XSAVE)
		cr4 |= CR4_OSXSAVE;
	model.cr4 = cr4;
	model.efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NX;
	if (model.amd)
		model.efer |= EFER_AIBRS;
	/* GAP(ffxsr): EFER.FFXSR is not offered; FXSAVE always saves the XMM registers. */
	model.xcr0 = XCR0_X87 | XCR0_SSE;
	if (model.l1[C] & BIT(28))
		model.xcr0 |= XCR0_AVX;
}

static void model_init(void)
{
	u32 host[4];

	host_leaf(0, 0, model.vendor);
	model.amd = model.vendor[B] == 0x68747541 || model.vendor[B] == 0x6f677948; /* Authentic..., HygonGenuine */

	host_leaf(1, 0, host);
	model.l1[A] = host[A];
	model.l1[B] = (host[B] & 0xff00) | 1u << 16; /* CLFLUSH size; one logical processor, APIC id 0 */
	model.l1[C] = (host[C] & L1C_OFFERED) | L1C_OURS;
	model.l1[D] = host[D] & L1D_OFFERED;

	host_leaf(7, 0, host);
	model.l7[B] = (host[B] & (L7B_OFFERED | L7B_X87)) | L7B_OURS;
	model.l7[C] = (host[C] & L7C_OFFERED) | L7C_OURS;
	model.l7[D] = host[D] & L7D_OFFERED;
	/* Intel's architectural way to say "not affected": SPEC_CTRL with IBRS_ALL, ARCH_CAPABILITIES. */
	if (!model.amd)
		model.l7[D] |= BIT(26) | BIT(29);
	/* Without XSAVE nothing that needs YMM state can be used. */
	if (!(model.l1[C] & L1C_XSAVE)) {
		model.l1[C] &= ~(u32)(BIT(28) | BIT(29) | BIT(12));
		model.l7[B] &= ~(u32)BIT(5);
	}

	host_leaf(0x80000001u, 0, host);
	model.x1[A] = host[A];
	model.x1[C] = host[C] & X1C_OFFERED;
	if (!model.amd)
		model.x1[C] &= ~(u32)BIT(9);
	model.x1[D] = (host[D] & X1D_OFFERED) | X1D_OURS;
	if (model.amd)
		model.x1[D] |= model.l1[D] & X1D_COMMON;
	else
		model.x1[D] &= ~(u32)BIT(22);

	/* FP error pointers always saved and restored, if the x87 model does so; SSB and BTC: not affected. */
	if (model.amd)
		model.x8b = (fpu_ptrs_only_pending() ? 0 : BIT(2)) | BIT(26) | BIT(29);

	host_leaf(0xd, 1, host);
	model.xsave1[A] = model.l1[C] & L1C_XSAVE ? host[A] & 7u : 0; /* XSAVEOPT, XSAVEC, XGETBV(1) */

	for (unsigned n = 0; n < 3; n++)
		host_leaf(0x80000002u + n, 0, model.brand[n]);
	host_leaf(0x80000005u, 0, model.cache[0]);
	host_leaf(0x80000006u, 0, model.cache[1]);
	if (!model.amd) {
		host_leaf(2, 0, model.cache[2]);
		for (unsigned n = 0; n < 5; n++) {
			host_leaf(4, n, model.leaf4[n]);
			model.leaf4[n][A] &= 0x3fff; /* no sharing: one thread, one core */
		}
	}
	model_masks();
}

static void model_need(void)
{
	pthread_once(&once, model_init);
}

static u32 xsave_size(u64 xcr0)
{
	return xcr0 & XCR0_AVX ? 512 + 64 + 256 : 512 + 64;
}

void cpuid_leaf(u32 leaf, u32 subleaf, u32 out[4])
{
	model_need();
	memset(out, 0, 16);
	switch (leaf) {
	case 0:
		memcpy(out, model.vendor, 16);
		out[A] = 0xd;
		break;
	case 1:
		memcpy(out, model.l1, 16);
		break;
	case 2:
		memcpy(out, model.cache[2], 16);
		break;
	case 4:
		if (subleaf < ARRAY_SIZE(model.leaf4))
			memcpy(out, model.leaf4[subleaf], 16);
		break;
	case 6:
		out[A] = BIT(2); /* the APIC timer, where there is one, never stops */
		break;
	case 7:
		if (subleaf == 0)
			memcpy(out, model.l7, 16);
		break;
	case 0xd:
		if (!(model.l1[C] & L1C_XSAVE))
			break;
		if (subleaf == 0) {
			out[A] = (u32)model.xcr0;
			out[B] = out[C] = xsave_size(model.xcr0);
		} else if (subleaf == 1) {
			out[A] = model.xsave1[A];
			out[B] = model.xsave1[A] & 2 ? xsave_size(model.xcr0) : 0;
		} else if (subleaf == 2 && (model.xcr0 & XCR0_AVX)) {
			out[A] = 256;
			out[B] = 512 + 64;
		}
		break;
	case 0x80000000u:
		memcpy(out, model.vendor, 16);
		out[A] = model.amd ? 0x80000021u : 0x80000008u;
		if (!model.amd)
			out[B] = out[C] = out[D] = 0;
		break;
	case 0x80000001u:
		memcpy(out, model.x1, 16);
		break;
	case 0x80000002u:
	case 0x80000003u:
	case 0x80000004u:
		memcpy(out, model.brand[leaf - 0x80000002u], 16);
		break;
	case 0x80000005u:
		memcpy(out, model.cache[0], 16);
		break;
	case 0x80000006u:
		memcpy(out, model.cache[1], 16);
		break;
	case 0x80000007u:
		out[D] = BIT(8); /* invariant TSC */
		break;
	case 0x80000008u:
		out[A] = 48u << 8 | PHYS_BITS_OFFERED;
		out[B] = model.x8b;
		break;
	case 0x80000021u:
		/* No nested data breakpoints, LFENCE serialises, null selectors clear bases, automatic IBRS, SRSO: not
		 * affected; TSA (ECX): not affected. */
		if (model.amd) {
			out[A] = BIT(0) | BIT(2) | BIT(6) | BIT(8) | BIT(29);
			out[C] = BIT(1) | BIT(2);
		}
		break;
	}
}

void cpuid_vcpu(const struct vcpu *v, u32 leaf, u32 subleaf, u32 out[4])
{
	cpuid_leaf(leaf, subleaf, out);
	if (leaf == 1) {
		if (v->cr4 & CR4_OSXSAVE)
			out[C] |= L1C_OSXSAVE;
		out[B] |= v->id << 24;
	} else if (leaf == 0xd && out[B] && subleaf < 2) {
		out[B] = xsave_size(v->fpu.xcr0);
	}
}

bool cpuid_is_amd(void)
{
	model_need();
	return model.amd;
}

u64 cpuid_cr4_mask(void)
{
	model_need();
	return model.cr4;
}

u64 cpuid_efer_mask(void)
{
	model_need();
	return model.efer;
}

u64 cpuid_xcr0_mask(void)
{
	model_need();
	return model.xcr0;
}

u64 cpuid_xcr0_wanted(u64 val)
{
	const u64 avx512 = XCR0_OPMASK | XCR0_ZMM_HI256 | XCR0_HI16_ZMM;

	if ((val & avx512) == avx512 && (val & XCR0_AVX) && !(cpuid_xcr0_mask() & avx512) &&
	    __builtin_cpu_supports("avx512f"))
		return val & ~avx512;
	return val;
}

/* ISA sets behind a feature bit. Word: 0 1.ECX, 1 1.EDX, 2 7.EBX, 3 7.ECX, 4 0x80000001.ECX, 5 0x80000001.EDX,
 * 6 0xd(1).EAX. */
static const struct {
	u16 isa;
	u8 word, bit;
} gated[] = {
        {ZYDIS_ISA_SET_ADOX_ADCX, 2, 19},    {ZYDIS_ISA_SET_AES, 0, 25},        {ZYDIS_ISA_SET_AVX, 0, 28},
        {ZYDIS_ISA_SET_AVX2, 2, 5},          {ZYDIS_ISA_SET_AVX2GATHER, 2, 5},  {ZYDIS_ISA_SET_BMI1, 2, 3},
        {ZYDIS_ISA_SET_BMI2, 2, 8},          {ZYDIS_ISA_SET_CLFLUSHOPT, 2, 23}, {ZYDIS_ISA_SET_CLFSH, 1, 19},
        {ZYDIS_ISA_SET_CLWB, 2, 24},         {ZYDIS_ISA_SET_CMOV, 1, 15},       {ZYDIS_ISA_SET_CMPXCHG16B, 0, 13},
        {ZYDIS_ISA_SET_F16C, 0, 29},         {ZYDIS_ISA_SET_FCMOV, 1, 15},      {ZYDIS_ISA_SET_FMA, 0, 12},
        {ZYDIS_ISA_SET_FXSAVE, 1, 24},       {ZYDIS_ISA_SET_FXSAVE64, 1, 24},   {ZYDIS_ISA_SET_INVPCID, 2, 10},
        {ZYDIS_ISA_SET_LAHF, 4, 0},          {ZYDIS_ISA_SET_LZCNT, 4, 5},       {ZYDIS_ISA_SET_MOVBE, 0, 22},
        {ZYDIS_ISA_SET_PCLMULQDQ, 0, 1},     {ZYDIS_ISA_SET_PENTIUMMMX, 1, 23}, {ZYDIS_ISA_SET_POPCNT, 0, 23},
        {ZYDIS_ISA_SET_RDPID, 3, 22},        {ZYDIS_ISA_SET_RDRAND, 0, 30},     {ZYDIS_ISA_SET_RDSEED, 2, 18},
        {ZYDIS_ISA_SET_RDTSCP, 5, 27},       {ZYDIS_ISA_SET_RDWRFSGS, 2, 0},    {ZYDIS_ISA_SET_SHA, 2, 29},
        {ZYDIS_ISA_SET_SMAP, 2, 20},         {ZYDIS_ISA_SET_SSE, 1, 25},        {ZYDIS_ISA_SET_SSE2, 1, 26},
        {ZYDIS_ISA_SET_SSE2MMX, 1, 26},      {ZYDIS_ISA_SET_SSE3, 0, 0},        {ZYDIS_ISA_SET_SSE3X87, 0, 0},
        {ZYDIS_ISA_SET_SSE4, 0, 19},         {ZYDIS_ISA_SET_SSE42, 0, 20},      {ZYDIS_ISA_SET_SSEMXCSR, 1, 25},
        {ZYDIS_ISA_SET_SSE_PREFETCH, 1, 25}, {ZYDIS_ISA_SET_SSSE3, 0, 9},       {ZYDIS_ISA_SET_SSSE3MMX, 0, 9},
        {ZYDIS_ISA_SET_XSAVE, 0, 26},        {ZYDIS_ISA_SET_XSAVEC, 6, 1},      {ZYDIS_ISA_SET_XSAVEOPT, 6, 0},
};

/* Always there. AVXAES is AVX and AES both: see below. */
static const u16 base_sets[] = {
        ZYDIS_ISA_SET_FAT_NOP,      ZYDIS_ISA_SET_I186,        ZYDIS_ISA_SET_I286PROTECTED, ZYDIS_ISA_SET_I286REAL,
        ZYDIS_ISA_SET_I386,         ZYDIS_ISA_SET_I486,        ZYDIS_ISA_SET_I486REAL,      ZYDIS_ISA_SET_I86,
        ZYDIS_ISA_SET_LONGMODE,     ZYDIS_ISA_SET_PAUSE,       ZYDIS_ISA_SET_PENTIUMREAL,   ZYDIS_ISA_SET_PPRO,
        ZYDIS_ISA_SET_PREFETCH_NOP, ZYDIS_ISA_SET_PREFETCHWT1, ZYDIS_ISA_SET_RDPMC,         ZYDIS_ISA_SET_AMD,
        ZYDIS_ISA_SET_X87,          ZYDIS_ISA_SET_MONITOR,
};

static bool isa_there[ZYDIS_ISA_SET_MAX_VALUE + 1];

static bool isa_offered(u16 isa)
{
	const u32 *words[] = {&model.l1[C], &model.l1[D], &model.l7[B],    &model.l7[C],
	                      &model.x1[C], &model.x1[D], &model.xsave1[A]};

	if (isa == ZYDIS_ISA_SET_AVXAES)
		return (model.l1[C] & BIT(28)) && (model.l1[C] & BIT(25));
	for (unsigned n = 0; n < ARRAY_SIZE(gated); n++) {
		if (gated[n].isa == isa)
			return *words[gated[n].word] >> gated[n].bit & 1;
	}
	for (unsigned n = 0; n < ARRAY_SIZE(base_sets); n++) {
		if (base_sets[n] == isa)
			return true;
	}
	return false;
}

static void isa_init(void)
{
	model_need();
	for (unsigned n = 0; n < ARRAY_SIZE(isa_there); n++)
		isa_there[n] = isa_offered((u16)n);
}

/* Asked for each instruction that is decoded. */
bool cpuid_has_isa(u16 isa)
{
	static pthread_once_t isa_once = PTHREAD_ONCE_INIT;

	pthread_once(&isa_once, isa_init);
	return isa < ARRAY_SIZE(isa_there) && isa_there[isa];
}
