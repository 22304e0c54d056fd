/*
 * simd_smoke.c: x87, MMX, SSE and AVX handlers against the host's processor, form by form, without an engine.
 *
 * Every opcode of maps 0F, 0F38, 0F3A (legacy and VEX) and D8-DF is tried with random operands and states: once through
 * the handler that interp/ would bind, once natively, and registers, MXCSR, x87 state, flags, memory and faults must
 * agree. Guest memory is the host buffer at the same address; everything the handlers need from other folders is a
 * stub below. Each round is done in 64-bit mode and then in 32-bit compatibility mode.
 * Usage: simd_smoke [SEED [ROUNDS [list]]].
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <Zydis/MetaInfo.h>

#include "../../src/interp/interp.h"
#include "../../src/interp/thunk.h"

#define BUF_PAGES 3
#define CR0_DEFAULT (CR0_PE | CR0_PG | CR0_NE | CR0_MP)

static u8 *buf; /* two pages of RAM, then one without access */
static struct vcpu *V;
static bool compat; /* 32-bit code, for both sides */
static u64 rng;

static u64 rnd(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng * 0x2545f4914f6cdd1dull;
}

/* ---- stubs for other folders ------------------------------------------------------------------------------------ */

int seg_linear_slow(struct vcpu *v, unsigned n, u64 ea, unsigned size, unsigned access, gva_t *gva)
{
	return excp_raise_err(v, EXC_GP, 0);
}

int excp_raise(struct vcpu *v, u8 vector)
{
	v->excp.kind = EVENT_FAULT;
	v->excp.vector = vector;
	return STEP_EXCP;
}

int excp_raise_err(struct vcpu *v, u8 vector, u32 error)
{
	return excp_raise(v, vector);
}

bool cpuid_is_amd(void)
{
	return fpu_ptrs_only_pending();
}

int cpu_internal_error(struct vcpu *v, const char *why)
{
	v->exit.internal.why = why;
	return STEP_EXIT;
}

int vmem_fail(struct vcpu *v, int rc)
{
	v->excp.cr2 = v->mmu.fault.gva;
	return excp_raise(v, EXC_PF);
}

static int check(struct mmu *m, gva_t gva, unsigned size)
{
	u64 end = (u64)(uintptr_t)buf + 2 * PAGE_SIZE;

	if (gva >= (u64)(uintptr_t)buf && gva + size <= end)
		return MEM_OK;
	m->fault.gva = gva >= (u64)(uintptr_t)buf && gva < end ? end : gva;
	return MEM_FAULT;
}

int mem_read(struct mmu *m, gva_t gva, void *dst, unsigned size, enum tlb_ctx ctx)
{
	int rc = check(m, gva, size);

	if (rc == MEM_OK)
		memcpy(dst, (void *)(uintptr_t)gva, size);
	return rc;
}

int mem_write(struct mmu *m, gva_t gva, const void *src, unsigned size, enum tlb_ctx ctx)
{
	int rc = check(m, gva, size);

	if (rc == MEM_OK)
		memcpy((void *)(uintptr_t)gva, src, size);
	return rc;
}

int mem_probe(struct mmu *m, gva_t gva, unsigned size, unsigned access, enum tlb_ctx ctx)
{
	return check(m, gva, size);
}

/* ---- running natively ------------------------------------------------------------------------------------------- */

struct native {
	_Alignas(64) u8 in[1024], out[1024]; /* XSAVE areas */
	u64 r[16], flags;
	u64 host_rsp;
	u8 stack[512];
};

static struct native *N;
static u8 *code; /* a page, writable and executable: only this test does that */
static sigjmp_buf jump;
static volatile int native_sig;
static u64 native_trap, native_cr2;
static bool in_native;

static void on_signal(int sig, siginfo_t *si, void *ucp)
{
	ucontext_t *uc = ucp;
	static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
	                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
	unsigned n;

	native_sig = sig;
	native_trap = uc->uc_mcontext.gregs[REG_TRAPNO];
	native_cr2 = uc->uc_mcontext.gregs[REG_CR2];
	if (in_native) {
		for (n = 0; n < 16; n++)
			N->r[n] = uc->uc_mcontext.gregs[order[n]];
		N->flags = uc->uc_mcontext.gregs[REG_EFL];
		memcpy(N->out, uc->uc_mcontext.fpregs, XSAVE_SIZE);
	}
	siglongjmp(jump, 1);
}

static u8 *emit(u8 *p, const char *bytes, unsigned n)
{
	memcpy(p, bytes, n);
	return p + n;
}

#define EMIT(s) p = emit(p, s, sizeof(s) - 1)

static u8 *emit64(u8 *p, u64 x)
{
	memcpy(p, &x, 8);
	return p + 8;
}

static u8 *emit32(u8 *p, u32 x)
{
	memcpy(p, &x, 4);
	return p + 4;
}

static u8 *native_insn; /* where the instruction under test is put */
static u8 *native_tail;

/* Code before the instruction, once; RSP points into struct native while it runs. */
static void native_build(void)
{
	u8 *p = code, reg;

	EMIT("\x53\x55\x41\x54\x41\x55\x41\x56\x41\x57"); /* push rbx rbp r12-r15 */
	EMIT("\xb8\x2b\x00\x00\x00\x8e\xd8\x8e\xc0");     /* mov eax, 2bh; mov ds, eax; mov es, eax */
	EMIT("\x48\xb8");                                 /* mov rax, &host_rsp */
	p = emit64(p, (u64)(uintptr_t)&N->host_rsp);
	EMIT("\x48\x89\x20\x48\xbc"); /* mov [rax], rsp; mov rsp, N + sizeof stack */
	p = emit64(p, (u64)(uintptr_t)(N->stack + sizeof(N->stack) - 64));
	EMIT("\x48\xbf"); /* mov rdi, N->in */
	p = emit64(p, (u64)(uintptr_t)N->in);
	EMIT("\xb8\x07\x00\x00\x00\x31\xd2\x48\x0f\xae\x2f"); /* mov eax, 7; xor edx, edx; xrstor64 [rdi] */
	EMIT("\x48\xb8");
	p = emit64(p, (u64)(uintptr_t)N->r);
	EMIT("\xff\xb0\x80\x00\x00\x00\x9d"); /* push [rax + 128]; popfq */
	for (reg = 15; reg < 16; reg--) {
		if (reg == R_RSP || reg == R_RAX)
			continue;
		*p++ = 0x48 | (reg >> 3) << 2;
		*p++ = 0x8b;
		*p++ = 0x80 | (reg & 7) << 3;
		p = emit32(p, reg * 8);
	}
	EMIT("\x48\x8b\x00"); /* mov rax, [rax] */
	if (compat) {
		/* jmp far [rip]: Linux' 32-bit code segment, then the address */
		EMIT("\xff\x2d\x00\x00\x00\x00");
		p = emit32(p, (u32)(uintptr_t)(p + 6));
		EMIT("\x23\x00");
	}
	native_insn = p;
	native_tail = code + 512;
	p = native_tail;
	EMIT("\x9c\x50\x48\xb8"); /* pushfq; push rax; mov rax, N->r */
	p = emit64(p, (u64)(uintptr_t)N->r);
	EMIT("\x8f\x00\x8f\x80\x80\x00\x00\x00"); /* pop [rax]; pop [rax + 128] */
	for (reg = 1; reg < 16; reg++) {
		if (reg == R_RSP)
			continue;
		*p++ = 0x48 | (reg >> 3) << 2;
		*p++ = 0x89;
		*p++ = 0x80 | (reg & 7) << 3;
		p = emit32(p, reg * 8);
	}
	EMIT("\x48\xbf");
	p = emit64(p, (u64)(uintptr_t)N->out);
	EMIT("\xb8\x07\x00\x00\x00\x31\xd2\x48\x0f\xae\x27"); /* xsave64 [rdi] */
	EMIT("\x48\xb8");
	p = emit64(p, (u64)(uintptr_t)&N->host_rsp);
	EMIT("\x48\x8b\x20\x41\x5f\x41\x5e\x41\x5d\x41\x5c\x5d\x5b\xdb\xe3\xc5\xf8\x77\xc3");
}

static void native_run(const u8 *insn, unsigned len)
{
	static const u32 mxcsr = MXCSR_DEFAULT;
	u8 *p = native_insn;

	p = emit(p, (const char *)insn, len);
	if (compat) {
		*p++ = 0xea; /* jmp far 33h:tail */
		p = emit32(p, (u32)(uintptr_t)native_tail);
		EMIT("\x33\x00");
	} else {
		*p++ = 0xe9;
		emit32(p, (u32)(native_tail - (p + 4)));
	}
	memset(N->out, 0, sizeof(N->out));
	native_sig = 0;
	in_native = true;
	if (!sigsetjmp(jump, 1))
		((void (*)(void))(uintptr_t)code)();
	in_native = false;
	__asm__ volatile("fninit; ldmxcsr %0; cld" ::"m"(mxcsr));
}

/* ---- states ----------------------------------------------------------------------------------------------------- */

static u32 rnd_f32(void)
{
	switch (rnd() % 12) {
	case 0:
		return (u32)(rnd() & 1) << 31; /* zero */
	case 1:
		return (u32)(rnd() & 1) << 31 | 0x7f800000;
	case 2:
		return (u32)rnd() | 0x7fc00000;
	case 3:
		return ((u32)rnd() & 0x803fffff) | 0x7f800001;
	case 4:
		return (u32)rnd() & 0x807fffff; /* denormal */
	case 5:
		return ((u32)rnd() & 0x80ffffff) | 0x00800000; /* small */
	case 6:
		return ((u32)rnd() & 0x80ffffff) | 0x7e800000; /* large */
	case 7:
		return 0x3f800000 + ((u32)(rnd() % 5) << 23);
	case 8:
		return ((u32)rnd() & 0x80ffffff) | 0x1f000000; /* products are tiny */
	default:
		return ((u32)rnd() & 0x83ffffff) | 0x3c000000;
	}
}

static u64 rnd_f64(void)
{
	u64 sign = (rnd() & 1) << 63, man = rnd() >> 12;

	switch (rnd() % 12) {
	case 0:
		return sign;
	case 1:
		return sign | 0x7ffull << 52;
	case 2:
		return sign | 0x7ff8ull << 48 | man;
	case 3:
		return sign | 0x7ffull << 52 | (man >> 1) | 1;
	case 4:
		return sign | man;
	case 5:
		return sign | 1ull << 52 | man;
	case 6:
		return sign | 0x7feull << 52 | man;
	case 7:
		return 0x3ff0000000000000ull + (rnd() % 5 << 52);
	case 8:
		return sign | (0x381 - rnd() % 40) << 52 | man; /* denormal or tiny as a float */
	case 9:
		return sign | (0x200 + rnd() % 4) << 52 | man;
	default:
		return sign | (0x3f0 + rnd() % 32) << 52 | man;
	}
}

static void rnd_vec(u8 *p, unsigned n)
{
	unsigned k, how = rnd() % 5;
	u64 x;

	for (k = 0; k < n; k += 8) {
		if (how == 0 || how == 1)
			x = rnd();
		else if (how == 2)
			x = rnd_f32() | (u64)rnd_f32() << 32;
		else if (how == 3)
			x = rnd_f64();
		else
			x = rnd() & rnd() & 0x8080808080808080ull ? rnd() : 0;
		memcpy(p + k, &x, 8);
	}
}

static void rnd_f80(u8 *p)
{
	u64 man = rnd() | 1ull << 63;
	u16 exp = 0x3fff + (s16)(rnd() % 64) - 32;

	switch (rnd() % 14) {
	case 0:
		man = exp = 0;
		break;
	case 1:
		exp = 0x7fff;
		man = 1ull << 63;
		break;
	case 2:
		exp = 0x7fff;
		man |= 3ull << 62;
		break;
	case 3:
		exp = 0x7fff;
		man = (man & ~(3ull << 62)) | 1ull << 63 | 1;
		break;
	case 4:
		exp = 0;
		man &= ~(1ull << 63);
		break;
	case 5:
		exp = 1;
		break;
	case 6:
		exp = 0x7ffe;
		break;
	case 7:
		man &= ~(1ull << 63); /* unsupported form */
		break;
	case 8:
	case 9:
		man &= 0xffffull << 48;
		exp = 0x3fff + rnd() % 16;
		break;
	case 10:
		exp = 0x3fff - 1022 - (s16)(rnd() % 60); /* denormal as a double */
		break;
	default:
		break;
	}
	exp |= (rnd() & 1) << 15;
	memset(p, 0, 16);
	memcpy(p, &man, 8);
	memcpy(p + 8, &exp, 2);
}

/* A random state, the same for guest and host. */
static void make_state(bool x87, bool unmask)
{
	struct fpu *f = &V->fpu;
	unsigned n;
	u16 fcw;

	for (n = 0; n < 16; n++)
		if (n != R_RSP)
			V->r[n] = (rnd() % 3 ? rnd() : rnd() % 64) & (compat ? 0xffffffff : ~0ull);
	V->r[R_RSP] = (u64)(uintptr_t)(N->stack + sizeof(N->stack) - 64);
	V->rflags = (rnd() & FLAGS_ARITH) | FLAGS_FIXED | FLAGS_IF;
	for (n = 0; n < 16; n++)
		rnd_vec(f->ymm[n], 32);
	f->mxcsr = MXCSR_DEFAULT;
	if (rnd() & 1)
		f->mxcsr |= rnd() & 0xe03f;
	if (rnd() % 4 == 0)
		f->mxcsr |= rnd() & BIT(6);
	if (unmask)
		f->mxcsr &= ~(rnd() & 0x1f80);
	memset(f->fx, 0, sizeof(f->fx));
	for (n = 0; n < 8; n++)
		rnd_f80(f->fx + FX_ST + 16 * n);
	fcw = FCW_DEFAULT;
	if (rnd() & 1)
		fcw = (fcw & ~0xf00) | (rnd() & 0xf00);
	if (unmask && x87)
		fcw &= ~(rnd() & 0x3f);
	fx_set16(f->fx, FX_FCW, fcw);
	/* No pending exception, most of the time: flags only where masked. */
	fx_set16(f->fx, FX_FSW, (rnd() & 0x7f00) | (rnd() & fcw & 0x3f) | (rnd() & 0x40));
	if (unmask && x87 && rnd() % 16 == 0)
		fx_set16(f->fx, FX_FSW, fx_get16(f->fx, FX_FSW) | (rnd() & 0x3f));
	f->fx[FX_FTW] = rnd() & 1 ? 0xff : rnd();
	fpu_update_es(f);
	f->fcs = f->fds = 0;
	f->x87_used = true;
	for (n = 0; n < 2 * PAGE_SIZE; n += 32)
		rnd_vec(buf + n, 32);
	for (n = 0; n < 64; n++)
		rnd_f80(buf + PAGE_SIZE * 2 - 4096 + 64 * n);
}

static void state_to_native(void)
{
	u64 bv = 7;
	unsigned n;

	memset(N->in, 0, sizeof(N->in));
	memcpy(N->in, V->fpu.fx, FX_XMM);
	memcpy(N->in + FX_MXCSR, &V->fpu.mxcsr, 4);
	memcpy(N->in + XS_BV, &bv, 8);
	for (n = 0; n < 16; n++) {
		memcpy(N->in + FX_XMM + 16 * n, V->fpu.ymm[n], 16);
		memcpy(N->in + XS_AVX + 16 * n, V->fpu.ymm[n] + 16, 16);
		N->r[n] = V->r[n];
	}
	N->flags = V->rflags;
}

/* ---- comparing -------------------------------------------------------------------------------------------------- */

static unsigned long n_cases, n_forms, n_faults, n_bad, n_xm, n_known;
static const struct insn *cur;
static u8 before[2 * PAGE_SIZE], after_native[2 * PAGE_SIZE];
static struct fpu fpu_before;
static u64 r_before[16], flags_before;

static void bad(const char *what)
{
	unsigned n;

	if (++n_bad > 60)
		return;
	printf("FAIL %s: %s [", ZydisMnemonicGetString(cur->mnemonic), what);
	for (n = 0; n < cur->len; n++)
		printf("%02x ", cur->raw[n]);
	printf("] mxcsr %04x fcw %04x fsw %04x\n", fpu_before.mxcsr, fx_get16(fpu_before.fx, 0),
	       fx_get16(fpu_before.fx, 2));
}

static void hex(const char *name, const u8 *p, unsigned n)
{
	printf("    %-8s", name);
	while (n--)
		printf("%02x", *p++);
	printf("\n");
}

static int vector_of_native(void)
{
	return native_sig ? (int)native_trap : -1;
}

static void compare(int step)
{
	int nv = vector_of_native(), ov = step == STEP_EXCP ? V->excp.vector : -1;
	u32 mx;
	unsigned n;
	char msg[96];

	if (nv != ov) {
		snprintf(msg, sizeof(msg), "fault %d, native %d", ov, nv);
		bad(msg);
		return;
	}
	if (nv >= 0)
		n_faults++;
	if (nv == EXC_XM)
		n_xm++;
	/* Which byte of an environment's inaccessible page is touched first is the processor's own affair. */
	if (nv == EXC_PF && V->excp.cr2 != native_cr2 &&
	    ((cur->map != 0 && cur->opcode != 0xae && cur->opcode != 0xc7) || (V->excp.cr2 ^ native_cr2) & PAGE_MASK)) {
		snprintf(msg, sizeof(msg), "cr2 %lx native %lx", (long)V->excp.cr2, (long)native_cr2);
		bad(msg);
	}
	for (n = 0; n < 16; n++)
		if (n != R_RSP && (compat ? n < 8 && (u32)(V->r[n] ^ N->r[n]) : V->r[n] != N->r[n])) {
			snprintf(msg, sizeof(msg), "r%u %lx native %lx", n, (long)V->r[n], (long)N->r[n]);
			bad(msg);
		}
	if ((V->rflags ^ N->flags) & FLAGS_ARITH) {
		snprintf(msg, sizeof(msg), "flags %lx native %lx", (long)(V->rflags & FLAGS_ARITH),
		         (long)(N->flags & FLAGS_ARITH));
		bad(msg);
	}
	for (n = 0; n < 16; n++)
		if (memcmp(V->fpu.ymm[n], N->out + FX_XMM + 16 * n, 16) ||
		    memcmp(V->fpu.ymm[n] + 16, N->out + XS_AVX + 16 * n, 16)) {
			snprintf(msg, sizeof(msg), "ymm%u", n);
			bad(msg);
			if (n_bad < 20) {
				hex("before", fpu_before.ymm[n], 32);
				hex("ours", V->fpu.ymm[n], 32);
				hex("native", N->out + FX_XMM + 16 * n, 16);
				hex(" high", N->out + XS_AVX + 16 * n, 16);
			}
		}
	memcpy(&mx, N->out + FX_MXCSR, 4);
	if (mx != V->fpu.mxcsr) {
		/* GAP(xm-precision) of op_simd.c. */
		if (nv == EXC_XM &&
		    ((mx ^ V->fpu.mxcsr) == BIT(5) || (cur->map == 3 && (cur->opcode & 0xfe) == 0x40))) {
			n_known++;
		} else {
			snprintf(msg, sizeof(msg), "mxcsr %x native %x", V->fpu.mxcsr, mx);
			bad(msg);
		}
	}
	if (memcmp(V->fpu.fx, N->out, 5)) {
		snprintf(msg, sizeof(msg), "fcw %x fsw %x ftw %x, native %x %x %x", fx_get16(V->fpu.fx, 0),
		         fx_get16(V->fpu.fx, 2), V->fpu.fx[4], fx_get16(N->out, 0), fx_get16(N->out, 2), N->out[4]);
		bad(msg);
	}
	for (n = 0; n < 8; n++)
		if (memcmp(V->fpu.fx + FX_ST + 16 * n, N->out + FX_ST + 16 * n, 10)) {
			snprintf(msg, sizeof(msg), "st%u", n);
			bad(msg);
			if (n_bad < 20) {
				hex("before", fpu_before.fx + FX_ST + 16 * n, 10);
				hex("ours", V->fpu.fx + FX_ST + 16 * n, 10);
				hex("native", N->out + FX_ST + 16 * n, 10);
			}
		}
	/* The pointers are defined while an exception is pending that this instruction raised. */
	if (cur->map == 0 && fpu_pending(&V->fpu) && !fpu_pending(&fpu_before) &&
	    (fx_get16(V->fpu.fx, FX_FOP) != fx_get16(N->out, FX_FOP) ||
	     memcmp(V->fpu.fx + FX_FIP, N->out + FX_FIP, 8))) {
		u64 a, b;

		memcpy(&a, V->fpu.fx + FX_FIP, 8);
		memcpy(&b, N->out + FX_FIP, 8);
		snprintf(msg, sizeof(msg), "fop %x fip %lx native %x %lx", fx_get16(V->fpu.fx, FX_FOP), (long)a,
		         fx_get16(N->out, FX_FOP), (long)b);
		bad(msg);
	}
	if (memcmp(buf, after_native, 2 * PAGE_SIZE)) {
		for (n = 0; buf[n] == after_native[n]; n++)
			;
		snprintf(msg, sizeof(msg), "memory at %x", n);
		bad(msg);
		if (n_bad < 20) {
			hex("before", before + (n & ~15u), 32);
			hex("ours", buf + (n & ~15u), 32);
			hex("native", after_native + (n & ~15u), 32);
		}
	}
}

static bool isa_ours(const struct insn *i)
{
	switch (i->isa) {
	case ZYDIS_ISA_SET_PENTIUMMMX:
	case ZYDIS_ISA_SET_SSE:
	case ZYDIS_ISA_SET_SSE2:
	case ZYDIS_ISA_SET_SSE2MMX:
	case ZYDIS_ISA_SET_SSE3:
	case ZYDIS_ISA_SET_SSE3X87:
	case ZYDIS_ISA_SET_SSSE3:
	case ZYDIS_ISA_SET_SSSE3MMX:
	case ZYDIS_ISA_SET_SSE4:
	case ZYDIS_ISA_SET_SSE42:
	case ZYDIS_ISA_SET_AES:
	case ZYDIS_ISA_SET_PCLMULQDQ:
	case ZYDIS_ISA_SET_SHA:
	case ZYDIS_ISA_SET_AVX:
	case ZYDIS_ISA_SET_AVX2:
	case ZYDIS_ISA_SET_AVX2GATHER:
	case ZYDIS_ISA_SET_AVXAES:
	case ZYDIS_ISA_SET_F16C:
	case ZYDIS_ISA_SET_FMA:
	case ZYDIS_ISA_SET_X87:
	case ZYDIS_ISA_SET_FCMOV:
	case ZYDIS_ISA_SET_PPRO: /* FCOMI */
	case ZYDIS_ISA_SET_SSEMXCSR:
	case ZYDIS_ISA_SET_FXSAVE:
	case ZYDIS_ISA_SET_FXSAVE64:
	case ZYDIS_ISA_SET_XSAVE:
	case ZYDIS_ISA_SET_XSAVEOPT:
	case ZYDIS_ISA_SET_XSAVEC:
		return true;
	}
	return false;
}

static u32 form_seen[0x10000];

/* Points the memory operand somewhere useful; false when the registers involved make that impossible. */
static bool place_operand(struct insn *i)
{
	u64 at = (u64)(uintptr_t)buf, off;
	unsigned n;

	for (n = 0; n < i->nops; n++)
		if (i->op[n].kind == OPK_GPR && i->op[n].reg == R_RSP)
			return false;
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_MASKMOVQ:
	case ZYDIS_MNEMONIC_MASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVDQU:
		/* Not over the end: processors may fault, and half-enter MMX state, for bytes that are masked off. */
		V->r[R_RDI] = at + rnd() % 4096;
		return i->asize == (compat ? 4 : 8);
	case ZYDIS_MNEMONIC_XSAVE:
	case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEC:
	case ZYDIS_MNEMONIC_XSAVEC64:
	case ZYDIS_MNEMONIC_XSAVEOPT:
	case ZYDIS_MNEMONIC_XSAVEOPT64:
	case ZYDIS_MNEMONIC_XRSTOR:
	case ZYDIS_MNEMONIC_XRSTOR64:
		V->r[R_RAX] &= 7;
		V->r[R_RDX] = 0;
		if (i->base == R_RAX || i->base == R_RDX || i->index == R_RAX || i->index == R_RDX)
			return false;
		break;
	}
	if (!(i->flags & INSN_MEM))
		return true;
	if (i->base == R_ZERO || i->base == R_RSP || i->base == R_RIP || i->asize != (compat ? 4 : 8) ||
	    (i->seg != SEG_DS && !(compat && i->seg == SEG_SS)))
		return false;
	off = rnd() % 8 ? rnd() % 4096 : 2 * PAGE_SIZE - 1 - rnd() % 40;
	if (rnd() % 4)
		off &= ~(u64)(rnd() & 1 ? 63 : 15);
	V->r[i->base] = 0;
	if (i->op[1].kind == OPK_MEM && i->isa == ZYDIS_ISA_SET_AVX2GATHER) {
		for (n = 0; n < 32; n += 4) {
			u32 x = (u32)(rnd() % 512) - 256;

			if (n & 4 &&
			    strchr(ZydisMnemonicGetString(i->mnemonic), 'q') >
			            strstr(ZydisMnemonicGetString(i->mnemonic), "gather") &&
			    strstr(ZydisMnemonicGetString(i->mnemonic), "gatherq"))
				memset(V->fpu.ymm[i->vindex] + n, V->fpu.ymm[i->vindex][n - 1] & 0x80 ? 0xff : 0, 4);
			else
				memcpy(V->fpu.ymm[i->vindex] + n, &x, 4);
		}
		V->r[i->base] = at + 2100 + (rnd() % 4 ? 0 : 5000) - (u64)i->disp;
		if (compat)
			V->r[i->base] = (u32)V->r[i->base];
		return true;
	}
	if (i->index == i->base)
		return false;
	V->r[i->index] = i->index == R_ZERO ? 0 : rnd() % 256;
	V->r[i->base] = at + off - (u64)i->disp - (V->r[i->index] << i->scale);
	if (compat)
		V->r[i->base] = (u32)V->r[i->base];
	return true;
}

static void try_insn(const u8 *bytes, unsigned avail)
{
	struct insn i;
	bool x87, unmask = rnd() % 3 == 0;
	volatile int step = STEP_OK;
	static const u32 mxcsr = MXCSR_DEFAULT;

	if (decode(compat ? DECODE_32 : DECODE_64, bytes, avail, &i) || !isa_ours(&i))
		return;
	i.fn = op_x87_find(&i);
	if (!i.fn)
		i.fn = op_simd_find(&i);
	if (!i.fn)
		return;
	cur = &i;
	x87 = i.map == 0;
	make_state(x87 || rnd() % 16 == 0, unmask);
	if (!place_operand(&i))
		return;
	switch (i.mnemonic) {
	case ZYDIS_MNEMONIC_XRSTOR:
	case ZYDIS_MNEMONIC_XRSTOR64:
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64: {
		u64 ea = insn_ea(V, &i);

		if (ea >= (u64)(uintptr_t)buf && ea + 1024 < (u64)(uintptr_t)buf + 8192 && rnd() % 8) {
			u64 bv = rnd() & 7, xc = rnd() & 1 ? BIT(63) | bv | (rnd() & 7) : 0;
			u32 mx = rnd() & 0xffff;
			u8 *p = (u8 *)(uintptr_t)ea;
			unsigned n;

			memset(p + XS_BV, 0, 64);
			memcpy(p + XS_BV, &bv, 8);
			memcpy(p + XS_XCOMP, &xc, 8);
			memcpy(p + FX_MXCSR, &mx, 4);
			for (n = 0; n < 8; n++)
				rnd_f80(p + FX_ST + 16 * n);
		}
		break;
	}
	}
	if (!form_seen[i.mnemonic & 0xffff]++)
		n_forms++;
	n_cases++;
	V->r[R_RIP] = (u64)(uintptr_t)native_insn;
	memcpy(before, buf, sizeof(before));
	memcpy(&fpu_before, &V->fpu, sizeof(fpu_before));
	memcpy(r_before, V->r, sizeof(r_before));
	flags_before = V->rflags;
	state_to_native();
	native_run(i.raw, i.len);
	memcpy(after_native, buf, sizeof(after_native));
	memcpy(buf, before, sizeof(before));
	if (native_sig == SIGSEGV && native_trap != EXC_PF && native_trap != EXC_GP) {
		bad("odd native trap");
		return;
	}
	{
		int keep = native_sig;

		if (!sigsetjmp(jump, 1)) {
			step = i.fn(V, &i);
		} else {
			__asm__ volatile("fninit; ldmxcsr %0; cld" ::"m"(mxcsr));
			bad("handler crashed the host");
			return;
		}
		native_sig = keep;
	}
	{
		u16 fcw;
		u32 mx;

		__asm__ volatile("fnstcw %0; stmxcsr %1" : "=m"(fcw), "=m"(mx));
		if (fcw != FCW_DEFAULT || mx != MXCSR_DEFAULT)
			bad("host control words changed");
	}
	switch (i.mnemonic) {
	case ZYDIS_MNEMONIC_FXSAVE:
	case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_XSAVE:
	case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEC:
	case ZYDIS_MNEMONIC_XSAVEC64:
	case ZYDIS_MNEMONIC_XSAVEOPT:
	case ZYDIS_MNEMONIC_XSAVEOPT64: {
		/* MXCSR_MASK differs on hosts with misaligned SSE, and selectors are the test's own. */
		u64 ea = insn_ea(V, &i);

		if (step == STEP_OK && !native_sig) {
			memcpy((u8 *)(uintptr_t)ea + FX_MXCSR_MASK,
			       after_native + (ea - (u64)(uintptr_t)buf) + FX_MXCSR_MASK, 4);
			if (fpu_pending(&V->fpu))
				memcpy((u8 *)(uintptr_t)ea + 6, after_native + (ea - (u64)(uintptr_t)buf) + 6, 18);
		}
		break;
	}
	case ZYDIS_MNEMONIC_FNSTENV:
	case ZYDIS_MNEMONIC_FNSAVE: {
		u64 ea = insn_ea(V, &i);
		unsigned n = i.osize == 2 ? 6 : 12, len = i.osize == 2 ? 8 : 16;

		if (step == STEP_OK && !native_sig)
			memcpy((u8 *)(uintptr_t)ea + n, after_native + (ea - (u64)(uintptr_t)buf) + n, len);
		break;
	}
	}
	compare(step);
}

static unsigned put_operands(u8 *b, unsigned n, bool imm_too)
{
	u8 modrm = (u8)rnd();

	if (rnd() & 1)
		modrm |= 0xc0;
	b[n++] = modrm;
	for (unsigned k = 0; k < 6; k++)
		b[n++] = rnd() & 1 ? (u8)rnd() : (u8)(rnd() % 32);
	return n;
}

static void sweep(unsigned rounds)
{
	unsigned round, op, pp, map, n, enc;
	static const u8 prefix[4] = {0, 0x66, 0xf3, 0xf2};
	u8 b[24];

	for (round = 0; round < rounds; round++)
		for (map = 1; map <= 3; map++)
			for (pp = 0; pp < 4; pp++)
				for (op = 0; op < 256; op++)
					for (enc = 0; enc < 2; enc++) {
						memset(b, 0, sizeof(b));
						n = 0;
						if (enc == 0) {
							if (rnd() % 16 == 0)
								b[n++] = prefix[1 + rnd() % 3];
							if (pp)
								b[n++] = prefix[pp];
							if (rnd() & 1 && !compat)
								b[n++] = 0x40 | (rnd() & 15);
							b[n++] = 0x0f;
							if (map > 1)
								b[n++] = map == 2 ? 0x38 : 0x3a;
						} else {
							b[n++] = 0xc4;
							b[n++] = (rnd() & 0xe0) | map | (compat ? 0xc0 : 0);
							b[n] = (rnd() & 0xfc) | pp;
							if (rnd() & 1)
								b[n] |= 0x78;
							n++;
						}
						b[n++] = op;
						put_operands(b, n, true);
						try_insn(b, 15);
					}
	for (round = 0; round < rounds * 60; round++) { /* state images and moves of MXCSR */
		n = 0;
		if (rnd() & 1 && !compat)
			b[n++] = 0x48;
		b[n++] = 0x0f;
		b[n++] = rnd() & 1 ? 0xae : 0xc7;
		put_operands(b, n, true);
		b[n] &= 0x3f;
		try_insn(b, 15);
		b[0] = 0xc4; /* gathers, with every register different most of the time */
		b[1] = 0xe2;
		b[2] = (rnd() & 0xfc) | 1;
		b[3] = 0x90 + rnd() % 4;
		put_operands(b, 4, true);
		b[4] = (b[4] & 0x38) | 4;
		try_insn(b, 15);
		b[0] = 0x9b; /* FWAIT */
		if (round % 32 == 0)
			try_insn(b, 15);
		memcpy(b, "\xc5\xf8\xae", 3);
		put_operands(b, 3, true);
		if (round % 16 == 0)
			try_insn(b, 15);
	}
	for (round = 0; round < rounds * 8; round++)
		for (op = 0; op < 2048; op++) {
			memset(b, 0, sizeof(b));
			n = 0;
			if (rnd() % 8 == 0)
				b[n++] = prefix[1 + rnd() % 3];
			if (rnd() % 8 == 0 && !compat)
				b[n++] = 0x40 | (rnd() & 15);
			b[n++] = 0xd8 + (op & 7);
			b[n++] = op >> 3;
			for (unsigned k = 0; k < 6; k++)
				b[n++] = rnd() & 1 ? (u8)rnd() : (u8)(rnd() % 32);
			try_insn(b, 15);
		}
}

int main(int argc, char **argv)
{
	u64 seed = argc > 1 ? strtoull(argv[1], NULL, 0) : 0x1234567;
	unsigned rounds = argc > 2 ? (unsigned)atoi(argv[2]) : 20, k, c, n;
	static const int sigs[] = {SIGILL, SIGFPE, SIGSEGV, SIGBUS, SIGTRAP};
	struct sigaction sa = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
	stack_t ss = {.ss_size = 1 << 16};

	printf("seed 0x%llx\n", (unsigned long long)seed);
	rng = seed * 2 + 1;
	ss.ss_sp = malloc(ss.ss_size);
	sigaltstack(&ss, NULL);
	for (k = 0; k < ARRAY_SIZE(sigs); k++)
		sigaction(sigs[k], &sa, NULL);
	buf = mmap(NULL, BUF_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	mprotect(buf + 2 * PAGE_SIZE, PAGE_SIZE, PROT_NONE);
	code = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1,
	            0);
	N = mmap(NULL, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	V = aligned_alloc(64, (sizeof(*V) + 63) & ~63ul);
	if (buf == MAP_FAILED || code == MAP_FAILED || N == MAP_FAILED || !V || thunk_init() < 0) {
		perror("setup");
		return 2;
	}
	memset(V, 0, sizeof(*V));
	for (c = 0; c < TLB_CTXS; c++)
		for (k = 0; k < TLB_KINDS; k++)
			for (n = 0; n < TLB_SIZE; n++)
				V->mmu.tlb[c][k].e[n].tag = TLB_EMPTY;
	fpu_reset(&V->fpu);
	V->mode = MODE_64;
	V->dmode = DECODE_64;
	V->cr0 = CR0_DEFAULT;
	V->cr4 = CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_PAE;
	V->fpu.xcr0 = 7;
	V->seg[SEG_CS].sel = 0x33;
	for (n = 0; n < 6; n++) {
		V->seg[n].flat = MEM_READ | MEM_WRITE;
		if (n != SEG_CS)
			V->seg[n].sel = 0x2b;
	}
	native_build();
	sweep((rounds + 1) / 2);
	compat = true;
	V->mode = MODE_COMPAT;
	V->dmode = DECODE_32;
	V->seg[SEG_CS].sel = 0x23;
	native_build();
	sweep((rounds + 1) / 2);
	printf("%lu cases, %lu mnemonics, %lu faults (%lu #XM, %lu of them differ in flags as GAP(xm-precision) says), "
	       "%lu failed\n",
	       n_cases, n_forms, n_faults, n_xm, n_known, n_bad);
	for (n = 0; argc > 3 && n < ARRAY_SIZE(form_seen); n++)
		if (form_seen[n])
			printf("%-16s %u\n", ZydisMnemonicGetString(n), form_seen[n]);
	return n_bad ? 1 : 0;
}
