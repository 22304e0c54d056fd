/*
 * op_simd.c: MMX, SSE and AVX instructions whose arithmetic the host does: classification, thunk code, running.
 *
 * op_simd_find() only says "ours". The first run of a decoded instruction picks its handler: C for moves and
 * element-wise accesses (op_simd_mov.c, op_simd_mask.c), else a thunk whose code build_thunk() writes.
 *
 * Invariants:
 *  - a thunk never touches guest memory: sources are read into a buffer before, results are written after it, so every
 *    fault, MMIO exit and page-crossing happens in mem/;
 *  - registers are assigned by encoding slot: ModRM.reg 1, VEX.vvvv 0, ModRM.rm 3, is4 4; implicit XMM0 is vvvv's slot
 *    (legacy encodings count as vvvv = 0); general registers always RAX;
 *  - an instruction that may raise an unmasked SIMD exception runs on copies of its operands.
 */
#include <string.h>

#include <Zydis/MetaInfo.h>

#include "../base/bug.h"
#include "../base/fptrap.h"
#include "simd.h"
#include "thunk.h"

/* ---- may it run? ------------------------------------------------------------------------------------------------ */

int simd_sse_refused(struct vcpu *v)
{
	if (v->cr0 & CR0_EM || !(v->cr4 & CR4_OSFXSR))
		return excp_raise(v, EXC_UD);
	return excp_raise(v, EXC_NM);
}

int simd_avx_refused(struct vcpu *v)
{
	if (!(v->cr4 & CR4_OSXSAVE) || v->mode <= MODE_V86 ||
	    (v->fpu.xcr0 & (XCR0_SSE | XCR0_AVX)) != (XCR0_SSE | XCR0_AVX))
		return excp_raise(v, EXC_UD);
	return excp_raise(v, EXC_NM);
}

int simd_mmx_gate(struct vcpu *v)
{
	if (likely(!(v->cr0 & (CR0_EM | CR0_TS)) && !fpu_pending(&v->fpu)))
		return STEP_OK;
	if (v->cr0 & CR0_EM)
		return excp_raise(v, EXC_UD);
	if (v->cr0 & CR0_TS)
		return excp_raise(v, EXC_NM);
	return x87_pending_fault(v);
}

/* ---- running ---------------------------------------------------------------------------------------------------- */

static int simd_exception(struct vcpu *v)
{
	return excp_raise(v, v->cr4 & CR4_OSXMMEXCPT ? EXC_XM : EXC_UD);
}

#define MX_FLAGS 0x3fu
#define MX_UE BIT(4)
#define MX_MASKS 0x1f80u

struct slots {
	void *rm, *reg, *vvvv, *is4;
	u64 *gpr;
};

/*
 * Some exceptions are unmasked: run on copies, and commit only when none of those was raised. A masked run says that in
 * most cases. Where it cannot, for an unmasked underflow (raised for every tiny result, masked only for inexact ones),
 * or found one, the host CPU takes the exception: which other flags are set then, it alone knows (PE when an exponent
 * was out of bounds, the steps of DPPS).
 */
static int run_fp_unmasked(struct vcpu *v, const struct thunk *t, const struct slots *s, struct thunk_ctx *ctx,
                           u64 *ret)
{
	_Alignas(32) u8 rm[32], reg[32], vvvv[32], is4[32];
	u32 control = v->fpu.mxcsr & ~MX_FLAGS, unmasked = ~control >> 7 & MX_FLAGS, mxcsr;
	unsigned size = t->props & THUNK_VEX ? 32 : 16;
	bool trap = unmasked & MX_UE, raised = false;
	u64 gpr = 0;

	for (;;) {
		memcpy(rm, s->rm, t->props & (THUNK_LOAD | THUNK_STORE) ? 32 : t->props & THUNK_RM_MM ? 8 : size);
		memcpy(reg, s->reg, t->props & THUNK_REG_MM ? 8 : size);
		memcpy(vvvv, s->vvvv, size);
		memcpy(is4, s->is4, size);
		if (s->gpr)
			gpr = *s->gpr;
		ctx->mxcsr_in = trap ? control : control | MX_MASKS;
		if (trap && !fp_trap_begin())
			return cpu_internal_error(v, "unmasked SIMD exception, and nobody handles SIGFPE");
		*ret = t->fn(rm, reg, vvvv, is4, &gpr, ctx);
		if (trap)
			raised = fp_trap_end(&mxcsr);
		if (trap || !(ctx->mxcsr_out & unmasked))
			break;
		trap = true;
	}
	if (raised) {
		v->fpu.mxcsr |= mxcsr & MX_FLAGS;
		return simd_exception(v);
	}
	v->fpu.mxcsr |= ctx->mxcsr_out & MX_FLAGS;
	if (t->props & THUNK_DST_REG)
		memcpy(s->reg, reg, t->props & THUNK_REG_MM ? 8 : size);
	if (t->props & THUNK_DST_RM || t->props & THUNK_STORE)
		memcpy(s->rm, rm, size);
	if (t->props & THUNK_GPR_OUT)
		*s->gpr = gpr;
	return STEP_OK;
}

static int run_fp(struct vcpu *v, const struct thunk *t, const struct slots *s, u64 *ret)
{
	struct thunk_ctx ctx;

	if (unlikely((v->fpu.mxcsr & MX_MASKS) != MX_MASKS))
		return run_fp_unmasked(v, t, s, &ctx, ret);
	ctx.mxcsr_in = v->fpu.mxcsr & ~MX_FLAGS;
	*ret = t->fn(s->rm, s->reg, s->vvvv, s->is4, s->gpr, &ctx);
	v->fpu.mxcsr |= ctx.mxcsr_out & MX_FLAGS;
	return STEP_OK;
}

static void set_flags(struct vcpu *v, u64 flags)
{
	v->rflags = (v->rflags & ~FLAGS_ARITH) | (flags & FLAGS_ARITH);
}

/* Registers only, no MMX, no MXCSR, no general register: the common case. */
static int run_regs_sse(struct vcpu *v, const struct insn *i)
{
	const struct thunk *t = i->aux;
	int rc = simd_sse_gate(v);

	if (unlikely(rc != STEP_OK))
		return rc;
	t->fn(v->fpu.ymm[i->op[t->k_rm].reg], v->fpu.ymm[i->op[t->k_reg].reg], v->fpu.ymm[0], NULL, NULL, NULL);
	return STEP_OK;
}

static int run_regs_avx(struct vcpu *v, const struct insn *i)
{
	const struct thunk *t = i->aux;
	int rc = simd_avx_gate(v);

	if (unlikely(rc != STEP_OK))
		return rc;
	t->fn(v->fpu.ymm[i->op[t->k_rm].reg], v->fpu.ymm[i->op[t->k_reg].reg], v->fpu.ymm[i->op[t->k_vvvv].reg],
	      v->fpu.ymm[i->op[t->k_is4].reg], NULL, NULL);
	return STEP_OK;
}

/* Everything without an MMX operand. */
static int run_xmm(struct vcpu *v, const struct insn *i)
{
	const struct thunk *t = i->aux;
	_Alignas(32) u8 buf[32];
	struct slots s;
	gva_t gva = 0;
	u64 ret;
	int rc;

	rc = t->props & THUNK_VEX ? simd_avx_gate(v) : simd_sse_gate(v);
	if (unlikely(rc != STEP_OK))
		return rc;
	s.reg = v->fpu.ymm[i->op[t->k_reg].reg];
	s.vvvv = v->fpu.ymm[i->op[t->k_vvvv].reg];
	s.is4 = v->fpu.ymm[i->op[t->k_is4].reg];
	s.gpr = t->props & THUNK_STR ? &v->r[0] : &v->r[i->op[t->k_gpr].reg];
	if (t->props & (THUNK_LOAD | THUNK_STORE)) {
		s.rm = buf;
		rc = simd_linear(v, i, t->msize, t->props & THUNK_ALIGN ? t->msize : 1,
		                 t->props & THUNK_LOAD ? MEM_READ : MEM_WRITE, &gva);
		if (unlikely(rc != STEP_OK))
			return rc;
		if (t->props & THUNK_LOAD) {
			rc = simd_load(v, gva, buf, t->msize);
			if (unlikely(rc != STEP_OK))
				return rc;
		}
	} else {
		s.rm = v->fpu.ymm[i->op[t->k_rm].reg];
	}
	if (t->props & THUNK_FP) {
		u32 mxcsr = v->fpu.mxcsr;

		rc = run_fp(v, t, &s, &ret);
		if (rc == STEP_OK && t->props & THUNK_STORE) {
			rc = simd_store(v, gva, buf, t->msize);
			if (rc != STEP_OK) /* the store's fault comes first: nothing happened */
				v->fpu.mxcsr = mxcsr;
		} else if (rc == STEP_EXCP && t->props & THUNK_STORE) {
			int fault = mem_probe(&v->mmu, gva, t->msize, MEM_WRITE, v->mmu.ctx);

			if (fault != MEM_OK) { /* also before a #XM */
				v->fpu.mxcsr = mxcsr;
				return vmem_fail(v, fault);
			}
		}
		if (unlikely(rc != STEP_OK))
			return rc;
	} else {
		ret = t->fn(s.rm, s.reg, s.vvvv, s.is4, s.gpr, NULL);
		if (t->props & THUNK_STORE) {
			rc = simd_store(v, gva, buf, t->msize);
			if (unlikely(rc != STEP_OK))
				return rc;
		}
	}
	if (t->props & THUNK_FLAGS)
		set_flags(v, ret);
	return STEP_OK;
}

/*
 * At least one MMX operand. They are copied, because x87 state may only change once nothing can fault any more. A
 * memory source instead of an MMX register leaves x87 state alone (CVTPI2PD; CVTPI2PS on AMD).
 */
static int run_mmx(struct vcpu *v, const struct insn *i)
{
	const struct thunk *t = i->aux;
	_Alignas(32) u8 rm[32], reg[32], *mm;
	struct slots s;
	gva_t gva;
	u64 ret;
	int rc;

	if (t->props & THUNK_XMM) {
		/* CR4.OSFXSR and the like come before a pending x87 exception. */
		rc = simd_sse_gate(v);
		if (unlikely(rc != STEP_OK))
			return rc;
	}
	if (t->props & THUNK_MMX) {
		rc = simd_mmx_gate(v);
		if (unlikely(rc != STEP_OK))
			return rc;
	}
	s.vvvv = s.is4 = v->fpu.ymm[0];
	s.gpr = &v->r[i->op[t->k_gpr].reg];
	if (t->props & THUNK_LOAD) {
		rc = simd_linear(v, i, t->msize, t->props & THUNK_ALIGN ? t->msize : 1, MEM_READ, &gva);
		if (rc == STEP_OK)
			rc = simd_load(v, gva, rm, t->msize);
		if (unlikely(rc != STEP_OK))
			return rc;
		s.rm = rm;
	} else if (t->props & THUNK_RM_MM) {
		memcpy(rm, fpu_mm(&v->fpu, i->op[t->k_rm].reg & 7), 8);
		s.rm = rm;
	} else {
		s.rm = v->fpu.ymm[i->op[t->k_rm].reg];
	}
	if (t->props & THUNK_REG_MM) {
		memcpy(reg, fpu_mm(&v->fpu, i->op[t->k_reg].reg & 7), 8);
		s.reg = reg;
	} else {
		s.reg = v->fpu.ymm[i->op[t->k_reg].reg];
	}
	if (t->props & THUNK_FP) {
		rc = run_fp(v, t, &s, &ret);
		if (unlikely(rc != STEP_OK)) {
			if (t->props & THUNK_MMX) /* seen on family 19h: the fault does not undo this */
				fpu_mmx_enter(&v->fpu);
			return rc;
		}
	} else {
		t->fn(s.rm, s.reg, s.vvvv, s.is4, s.gpr, NULL);
	}
	if (!(t->props & THUNK_MMX))
		return STEP_OK;
	fpu_mmx_enter(&v->fpu);
	mm = NULL;
	if (t->props & THUNK_DST_REG && t->props & THUNK_REG_MM) {
		mm = fpu_mm(&v->fpu, i->op[t->k_reg].reg & 7);
		memcpy(mm, reg, 8);
	} else if (t->props & THUNK_DST_RM && t->props & THUNK_RM_MM) {
		mm = fpu_mm(&v->fpu, i->op[t->k_rm].reg & 7);
		memcpy(mm, rm, 8);
	}
	if (mm)
		memset(mm + 8, 0xff, 2);
	return STEP_OK;
}

/* ---- classification --------------------------------------------------------------------------------------------- */

/* What the prefixes say, in canonical form. */
struct enc {
	bool vex, w, imm;
	u8 pp; /* 0, 1 = 66, 2 = F3, 3 = F2 */
	u8 map, opcode;
};

static void read_enc(const struct vcpu *v, const struct insn *i, struct enc *e)
{
	const u8 *p = i->raw + i->raw_prefixes;
	unsigned n;

	memset(e, 0, sizeof(*e));
	e->map = i->map;
	e->opcode = i->opcode;
	e->vex = i->flags & INSN_VEX;
	if (e->vex) {
		e->w = p[0] == 0xc4 && p[2] >> 7;
		e->pp = (p[0] == 0xc4 ? p[2] : p[1]) & 3;
	} else {
		for (n = 0; n < i->raw_prefixes; n++) {
			if (i->raw[n] == 0xf3)
				e->pp = 2;
			else if (i->raw[n] == 0xf2)
				e->pp = 3;
			else if (i->raw[n] == 0x66 && !e->pp)
				e->pp = 1;
		}
		e->w = v->mode == MODE_64 && (p[0] & 0xf8) == 0x48;
	}
	e->imm = e->map == 3 || (e->map == 1 && ((e->opcode >= 0x70 && e->opcode <= 0x73) || e->opcode == 0xc2 ||
	                                         (e->opcode >= 0xc4 && e->opcode <= 0xc6)));
}

/* The destination is ModRM.rm: stores, and extracts. */
static bool dest_is_rm(const struct enc *e)
{
	if (e->map == 1) {
		switch (e->opcode) {
		case 0x11:
		case 0x13:
		case 0x17:
		case 0x29:
		case 0x2b:
		case 0x7f:
		case 0xe7:
			return true;
		case 0x7e:
			return e->pp != 2;
		case 0xd6:
			return e->pp == 1;
		case 0x71:
		case 0x72:
		case 0x73:
			return !e->vex;
		}
	}
	if (e->map == 3) {
		switch (e->opcode) {
		case 0x14:
		case 0x15:
		case 0x16:
		case 0x17:
		case 0x19:
		case 0x1d:
		case 0x39:
			return true;
		}
	}
	return false;
}

/* Reads or writes MXCSR. RCP and RSQRT are in, should any processor let DAZ or FTZ change them. */
static bool touches_mxcsr(const struct enc *e)
{
	u8 o = e->opcode;

	switch (e->map) {
	case 1:
		return o == 0x2a || (o >= 0x2c && o <= 0x2f) || (o >= 0x51 && o <= 0x53) || (o >= 0x58 && o <= 0x5f) ||
		       o == 0x7c || o == 0x7d || o == 0xc2 || o == 0xd0 || o == 0xe6;
	case 2:
		return e->vex &&
		       (o == 0x13 || (o >= 0x96 && o <= 0x9f) || (o >= 0xa6 && o <= 0xaf) || (o >= 0xb6 && o <= 0xbf));
	case 3:
		return (o >= 0x08 && o <= 0x0b) || o == 0x1d || o == 0x40 || o == 0x41;
	}
	return false;
}

static bool writes_flags(const struct enc *e)
{
	switch (e->map) {
	case 1:
		return e->opcode == 0x2e || e->opcode == 0x2f;
	case 2:
		return e->opcode == 0x17 || (e->vex && (e->opcode == 0x0e || e->opcode == 0x0f));
	case 3:
		return e->opcode >= 0x60 && e->opcode <= 0x63;
	}
	return false;
}

/* Legacy forms that read XMM0 without naming it: BLENDV, SHA256RNDS2. */
static bool implicit_xmm0(const struct enc *e)
{
	return e->map == 2 && !e->vex &&
	       (e->opcode == 0x10 || e->opcode == 0x14 || e->opcode == 0x15 || e->opcode == 0xcb);
}

/* SHA memory operands are the exception to the rule on AMD (seen on family 19h): classify(). */
unsigned simd_alignment(const struct insn *i, unsigned size)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_MOVUPS:
	case ZYDIS_MNEMONIC_MOVUPD:
	case ZYDIS_MNEMONIC_MOVDQU:
	case ZYDIS_MNEMONIC_LDDQU:
	case ZYDIS_MNEMONIC_PCMPESTRI:
	case ZYDIS_MNEMONIC_PCMPESTRM:
	case ZYDIS_MNEMONIC_PCMPISTRI:
	case ZYDIS_MNEMONIC_PCMPISTRM:
		return 1;
	case ZYDIS_MNEMONIC_VMOVAPS:
	case ZYDIS_MNEMONIC_VMOVAPD:
	case ZYDIS_MNEMONIC_VMOVDQA:
	case ZYDIS_MNEMONIC_VMOVNTPS:
	case ZYDIS_MNEMONIC_VMOVNTPD:
	case ZYDIS_MNEMONIC_VMOVNTDQ:
	case ZYDIS_MNEMONIC_VMOVNTDQA:
		return size;
	}
	return !(i->flags & INSN_VEX) && size == 16 ? 16 : 1;
}

/* Assigns the explicit operands to encoding slots. False for a shape we do not know. */
static bool assign_slots(const struct insn *i, const struct enc *e, struct thunk *t)
{
	u8 k[5], n = 0, j;
	bool vvvv_dest = e->vex && e->map == 1 && e->opcode >= 0x71 && e->opcode <= 0x73;

	for (j = 0; j < i->nops && j < 5; j++)
		if (i->op[j].kind != OPK_IMM)
			k[n++] = j;
	t->k_reg = t->k_vvvv = t->k_rm = t->k_is4 = t->k_gpr = THUNK_NO_OP;
	if (!e->vex && n > 2)
		n = 2; /* a visible implicit XMM0 */
	if (n < 1 || n > 4)
		return false;
	if (vvvv_dest) {
		if (n != 2)
			return false;
		t->k_vvvv = k[0];
		t->k_rm = k[1];
		t->props |= THUNK_DST_VVVV;
	} else if (dest_is_rm(e)) {
		t->k_rm = k[0];
		if (n > 1)
			t->k_reg = k[n - 1];
		if (n == 3)
			t->k_vvvv = k[1];
		t->props |= THUNK_DST_RM;
	} else {
		if (n < 2)
			return false;
		t->k_reg = k[0];
		t->k_rm = k[n == 2 ? 1 : 2];
		if (n > 2)
			t->k_vvvv = k[1];
		if (n == 4)
			t->k_is4 = k[3];
		t->props |= THUNK_DST_REG;
	}
	return true;
}

/* ---- thunk code ------------------------------------------------------------------------------------------------- */

struct code {
	u8 b[THUNK_CODE_MAX];
	unsigned n;
};

static void put(struct code *c, u8 byte)
{
	if (c->n < sizeof(c->b))
		c->b[c->n] = byte;
	c->n++;
}

static void put_bytes(struct code *c, const char *bytes, unsigned n)
{
	while (n--)
		put(c, (u8)*bytes++);
}

#define PUT(c, str) put_bytes(c, str, sizeof(str) - 1)

enum { H_RCX = 1, H_RDX = 2, H_RSI = 6, H_RDI = 7 };
enum { X_VVVV = 0, X_REG = 1, X_RM = 3, X_IS4 = 4 };

/* (V)MOVUPS between register n and [base]; MOVQ for MMX. */
static void put_move(struct code *c, const struct thunk *t, const struct insn *i, unsigned n, unsigned base, bool mmx,
                     bool store)
{
	if (mmx) {
		put(c, 0x0f);
		put(c, store ? 0x7f : 0x6f);
	} else if (t->props & THUNK_VEX) {
		/* Loads take what the instruction reads; stores all 32 bytes, as VEX zeroes the rest. */
		put(c, 0xc5);
		put(c, store || i->vl == 32 ? 0xfc : 0xf8);
		put(c, store ? 0x11 : 0x10);
	} else {
		put(c, 0x0f);
		put(c, store ? 0x11 : 0x10);
	}
	put(c, n << 3 | base);
}

static void put_insn(struct code *c, const struct insn *i, const struct enc *e, const struct thunk *t)
{
	static const u8 prefix[4] = {0, 0x66, 0xf3, 0xf2};
	u8 kind_reg = i->op[t->k_reg].kind, kind_rm = i->op[t->k_rm].kind, modrm;

	/* VEX.R, X, B are stored inverted; vvvv = 0 is 1111b, also what an unused vvvv must be. */
	if (e->vex) {
		put(c, 0xc4);
		put(c, 0xe0 | e->map);
		put(c, e->w << 7 | 0x78 | (i->vl == 32) << 2 | e->pp);
	} else {
		if (e->pp)
			put(c, prefix[e->pp]);
		if (e->w)
			put(c, 0x48);
		put(c, 0x0f);
		if (e->map == 2)
			put(c, 0x38);
		if (e->map == 3)
			put(c, 0x3a);
	}
	put(c, e->opcode);
	if (t->k_reg == THUNK_NO_OP)
		modrm = i->modrm & 0x38; /* opcode extension */
	else
		modrm = kind_reg == OPK_GPR ? 0 : X_REG << 3;
	if (t->props & (THUNK_LOAD | THUNK_STORE))
		modrm |= H_RDI;
	else
		modrm |= 0xc0 | (kind_rm == OPK_GPR ? 0 : X_RM);
	put(c, modrm);
	if (e->imm)
		put(c, t->k_is4 != THUNK_NO_OP ? (i->raw[i->len - 1] & 0xf) | X_IS4 << 4 : i->raw[i->len - 1]);
}

static const struct thunk *build_thunk(struct vcpu *v, const struct insn *i, struct enc *e, struct thunk *t)
{
	struct code c = {.n = 0};
	bool fp = t->props & THUNK_FP, str = t->props & THUNK_STR, strm = str && (e->opcode & 1) == 0;
	bool estr = str && e->opcode <= 0x61;
	u8 kind_reg = i->op[t->k_reg].kind, kind_rm = i->op[t->k_rm].kind;
	bool mem = t->props & (THUNK_LOAD | THUNK_STORE);

	/* Outside 64-bit mode W does not widen general registers (SDM vol. 2, 2.3.6.1); elsewhere it selects forms. */
	if (v->mode != MODE_64 && e->vex &&
	    ((e->map == 1 && (e->opcode == 0x6e || (e->opcode == 0x7e && e->pp == 1) || e->opcode == 0x2a ||
	                      e->opcode == 0x2c || e->opcode == 0x2d)) ||
	     (e->map == 3 &&
	      ((e->opcode >= 0x14 && e->opcode <= 0x17) || (e->opcode >= 0x20 && e->opcode <= 0x22) || str))))
		e->w = false;

	if (fp)
		PUT(&c, "\x41\x0f\xae\x59\x08"); /* stmxcsr [r9 + mxcsr_host] */
	if (t->k_reg != THUNK_NO_OP && kind_reg != OPK_GPR)
		put_move(&c, t, i, X_REG, H_RSI, kind_reg == OPK_MMX, false);
	if (t->k_vvvv != THUNK_NO_OP || implicit_xmm0(e))
		put_move(&c, t, i, X_VVVV, H_RDX, false, false);
	if (t->k_is4 != THUNK_NO_OP)
		put_move(&c, t, i, X_IS4, H_RCX, false, false);
	if (t->k_rm != THUNK_NO_OP && !mem && kind_rm != OPK_GPR)
		put_move(&c, t, i, X_RM, H_RDI, kind_rm == OPK_MMX, false);
	if (t->props & THUNK_GPR_IN)
		PUT(&c, "\x49\x8b\x00"); /* mov rax, [r8] */
	if (estr)
		PUT(&c, "\x49\x8b\x00\x49\x8b\x50\x10"); /* and mov rdx, [r8 + 16] */
	if (fp)
		PUT(&c, "\x41\x0f\xae\x11"); /* ldmxcsr [r9 + mxcsr_in] */
	put_insn(&c, i, e, t);
	if (t->props & THUNK_FLAGS)
		PUT(&c, "\x9c"); /* pushfq */
	if (fp)
		PUT(&c, "\x41\x0f\xae\x59\x04\x41\x0f\xae\x51\x08"); /* stmxcsr [mxcsr_out]; ldmxcsr [mxcsr_host] */
	if (str && !strm)
		PUT(&c, "\x49\x89\x48\x08"); /* mov [r8 + 8], rcx */
	if (strm)
		put_move(&c, t, i, 0, H_RCX, false, true);
	if (t->props & THUNK_GPR_OUT)
		PUT(&c, "\x49\x89\x00"); /* mov [r8], rax */
	if (t->props & THUNK_DST_REG && kind_reg != OPK_GPR)
		put_move(&c, t, i, X_REG, H_RSI, kind_reg == OPK_MMX, true);
	if (t->props & THUNK_DST_VVVV)
		put_move(&c, t, i, X_VVVV, H_RDX, false, true);
	if (t->props & THUNK_DST_RM && !mem && kind_rm != OPK_GPR)
		put_move(&c, t, i, X_RM, H_RDI, kind_rm == OPK_MMX, true);
	if (t->props & THUNK_FLAGS)
		PUT(&c, "\x58"); /* pop rax */
	if (kind_reg == OPK_MMX || (kind_rm == OPK_MMX && !mem))
		PUT(&c, "\x0f\x77"); /* emms */
	if (t->props & THUNK_VEX)
		PUT(&c, "\xc5\xf8\x77"); /* vzeroupper */
	put(&c, 0xc3);
	if (BUG_ON(c.n > sizeof(c.b)))
		return NULL;
	return thunk_get(c.b, c.n, t);
}

/* ---- binding ---------------------------------------------------------------------------------------------------- */

/* Works out everything about the form but its code. False: no form of ours. */
static bool classify(const struct insn *i, const struct enc *e, struct thunk *t)
{
	const struct operand *reg, *rm;

	memset(t, 0, sizeof(*t));
	if (e->map < 1 || e->map > 3 || !i->off_modrm || !assign_slots(i, e, t))
		return false;
	reg = &i->op[t->k_reg];
	rm = &i->op[t->k_rm];
	if (e->vex)
		t->props |= THUNK_VEX;
	if (touches_mxcsr(e))
		t->props |= THUNK_FP;
	if (writes_flags(e)) {
		t->props |= THUNK_FLAGS;
		t->props &= ~THUNK_DST_REG;
	}
	if (e->map == 3 && e->opcode >= 0x60 && e->opcode <= 0x63)
		t->props |= THUNK_STR;
	if (rm->kind == OPK_MEM) {
		t->props |= t->props & THUNK_DST_RM ? THUNK_STORE : THUNK_LOAD;
		t->props &= ~THUNK_DST_RM;
		t->msize = rm->size;
		if (!t->msize || t->msize > 32)
			return false;
		if (simd_alignment(i, t->msize) > 1 && !(i->isa == ZYDIS_ISA_SET_SHA && cpuid_is_amd()))
			t->props |= THUNK_ALIGN;
	}
	if (reg->kind == OPK_MMX)
		t->props |= THUNK_REG_MM | THUNK_MMX;
	if (rm->kind == OPK_MMX)
		t->props |= THUNK_RM_MM | THUNK_MMX;
	if (reg->kind == OPK_XMM || rm->kind == OPK_XMM || (reg->kind == OPK_GPR && rm->kind == OPK_MEM))
		t->props |= THUNK_XMM;
	if (reg->kind == OPK_GPR) {
		t->k_gpr = t->k_reg;
		t->props |= t->props & THUNK_DST_REG ? THUNK_GPR_OUT : THUNK_GPR_IN;
	} else if (rm->kind == OPK_GPR) {
		t->k_gpr = t->k_rm;
		t->props |= t->props & THUNK_DST_RM ? THUNK_GPR_OUT : THUNK_GPR_IN;
	}
	/* CVTPI2PS and CVTPI2PD of memory: CVTPI2PS still enters MMX state on Intel. */
	if (!e->vex && e->map == 1 && e->opcode == 0x2a && e->pp == 0 && rm->kind == OPK_MEM &&
	    !fpu_ptrs_only_pending())
		t->props |= THUNK_MMX;
	return true;
}

static bool has_vector_operand(const struct insn *i)
{
	unsigned n;

	for (n = 0; n < i->nops && n < 5; n++)
		if (i->op[n].kind == OPK_MMX || i->op[n].kind == OPK_XMM || i->op[n].kind == OPK_YMM)
			return true;
	/* CVTSS2SI and kin of memory: SSE names only the general register. */
	return i->map == 1 && (i->opcode == 0x2c || i->opcode == 0x2d);
}

/* First run of a decoded instruction: finds its handler for good. */
static int bind_and_run(struct vcpu *v, const struct insn *i)
{
	const struct thunk *t;
	struct thunk like;
	struct enc e;
	insn_fn fn;

	if (i->flags & INSN_LOCK)
		return excp_raise(v, EXC_UD);
	fn = simd_mov_find(i);
	if (!fn)
		fn = simd_mask_find(i);
	if (fn) {
		insn_bind(i, NULL, fn);
		return fn(v, i);
	}
	read_enc(v, i, &e);
	/* VPINSRQ and VPEXTRQ exist in 64-bit mode alone, and are not the D forms elsewhere, unlike VMOVQ (SDM vol. 2).
	 */
	if (v->mode != MODE_64 && e.vex && e.w && e.map == 3 && (e.opcode == 0x22 || e.opcode == 0x16))
		return excp_raise(v, EXC_UD);
	if (!classify(i, &e, &like))
		return excp_raise(v, EXC_UD); /* GAP(simd): a form no rule here fits */
	t = build_thunk(v, i, &e, &like);
	if (!t)
		return cpu_internal_error(v, "no executable memory for a SIMD instruction");
	if (t->props & THUNK_MMX || (!e.vex && e.map == 1 && e.opcode == 0x2a && e.pp < 2))
		fn = run_mmx;
	else if (t->props &
	         (THUNK_FP | THUNK_FLAGS | THUNK_STR | THUNK_LOAD | THUNK_STORE | THUNK_GPR_IN | THUNK_GPR_OUT))
		fn = run_xmm;
	else
		fn = e.vex ? run_regs_avx : run_regs_sse;
	insn_bind(i, t, fn);
	return fn(v, i);
}

insn_fn op_simd_find(const struct insn *i)
{
	insn_fn fn = fpstate_find(i);

	if (fn)
		return fn;
	switch (i->isa) {
	case ZYDIS_ISA_SET_PENTIUMMMX:
	case ZYDIS_ISA_SET_SSE:
	case ZYDIS_ISA_SET_SSE2:
	case ZYDIS_ISA_SET_SSE2MMX:
	case ZYDIS_ISA_SET_SSE3:
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
		/* The rest of these sets (CRC32, MOVNTI, fences, ...) is integer work. */
		return has_vector_operand(i) ? bind_and_run : NULL;
	}
	return NULL;
}
