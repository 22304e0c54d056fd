/*
 * vec.c: SSE and AVX instructions inside translated code.
 *
 * The guest's instruction runs as it is, its vector registers are the host's of the same number. They and MXCSR are
 * fetched from v->fpu by the first block that needs them, and stay until C code runs (jt.vec, the stubs of helper.c):
 * as XMM, the upper halves staying in memory, or, when a block has VEX instructions, as YMM.
 *
 * Blocks are only translated this way while every SSE exception is masked (KEY_FP); else the handlers do it.
 */
#include <Zydis/MetaInfo.h>

#include "../interp/simd.h"
#include "trans.h"

struct venc {
	bool vex, w;
	u8 pp;        /* 0, 1 = 66, 2 = F3, 3 = F2 */
	u8 vvvv, rex; /* rex: R X B in REX form */
};

static void read_venc(const struct trans *c, const struct insn *i, struct venc *e)
{
	const u8 *p = i->raw + i->raw_prefixes;

	memset(e, 0, sizeof(*e));
	e->vex = i->flags & INSN_VEX;
	if (e->vex) {
		u8 last = p[0] == 0xc4 ? p[2] : p[1];

		e->pp = last & 3;
		e->vvvv = (last >> 3 & 15) ^ 15;
		e->rex = (p[1] & 0x80) ? 0 : 4;
		if (p[0] == 0xc4) {
			e->w = p[2] >> 7;
			e->rex |= (p[1] & 0x20) ? 0 : 1;
		}
		/* The top bits of rm and vvvv do not count outside 64-bit mode. */
		if (!(c->key & KEY_64)) {
			e->vvvv &= 7;
			e->rex = 0;
		}
		return;
	}
	for (unsigned n = 0; n < i->raw_prefixes; n++) {
		if (i->raw[n] == 0xf3)
			e->pp = 2;
		else if (i->raw[n] == 0xf2)
			e->pp = 3;
		else if (i->raw[n] == 0x66 && !e->pp)
			e->pp = 1;
	}
	if ((c->key & KEY_64) && (p[0] & 0xf0) == 0x40) {
		e->rex = p[0] & 5;
		e->w = p[0] & 8;
	}
}

/* What a form does; all zero: not for us. */
#define V_OK BIT(0)
#define V_FP BIT(1)    /* MXCSR */
#define V_STORE BIT(2) /* destination is ModRM.rm */
#define V_GREG BIT(4)  /* ModRM.reg is a general register */
#define V_GRM BIT(5)   /* ModRM.rm is one when it is not memory */
#define V_DIGIT BIT(6) /* ModRM.reg extends the opcode; rm (VEX: vvvv) is the destination */
#define V_FLAGS BIT(7) /* result in RFLAGS */

static u32 form_map1(u8 o, u8 pp, bool vex, bool mem)
{
	switch (o) {
	case 0x10:
		return V_OK;
	case 0x11:
		/* Between registers F3 and F2 merge: leave that to the handler. */
		return mem || pp < 2 ? V_OK | V_STORE : 0;
	case 0x12:
	case 0x16:
		return V_OK;
	case 0x13:
	case 0x17:
	case 0x29:
	case 0x2b:
	case 0xe7:
		return V_OK | V_STORE;
	case 0x14:
	case 0x15:
	case 0xc6:
		return V_OK;
	case 0x28:
		return V_OK;
	case 0x2a:
		return pp >= 2 ? V_OK | V_FP | V_GRM : 0;
	case 0x2c:
	case 0x2d:
		return pp >= 2 ? V_OK | V_FP | V_GREG : 0;
	case 0x2e:
	case 0x2f:
		return V_OK | V_FP | V_FLAGS;
	case 0x50:
		return V_OK | V_GREG;
	case 0x51:
		return V_OK | V_FP;
	case 0x5a:
	case 0x5b:
		return V_OK | V_FP;
	case 0x54:
	case 0x55:
	case 0x56:
	case 0x57:
		return V_OK;
	case 0x52:
	case 0x53:
	case 0x58:
	case 0x59:
	case 0x5c:
	case 0x5d:
	case 0x5e:
	case 0x5f:
	case 0x7c:
	case 0x7d:
	case 0xc2:
	case 0xd0:
		return V_OK | V_FP;
	case 0xe6:
		return V_OK | V_FP;
	case 0x6e:
		return pp == 1 ? V_OK | V_GRM : 0;
	case 0x7e:
		return pp == 1 ? V_OK | V_GRM | V_STORE : pp == 2 ? V_OK : 0;
	case 0x6f:
		return pp == 1 || pp == 2 ? V_OK : 0;
	case 0x7f:
		return pp == 1 || pp == 2 ? V_OK | V_STORE : 0;
	case 0x70:
		return pp ? V_OK : 0;
	case 0x71:
	case 0x72:
	case 0x73:
		return pp == 1 ? V_OK | V_DIGIT : 0;
	case 0xc4:
		return pp == 1 ? V_OK | V_GRM : 0;
	case 0xc5:
	case 0xd7:
		return pp == 1 ? V_OK | V_GREG : 0;
	case 0xd6:
		return pp == 1 ? V_OK | V_STORE : 0;
	case 0xf0:
		return pp == 3 ? V_OK : 0;
	case 0xf7:
		return 0;
	}
	if (pp == 1 && ((o >= 0x60 && o <= 0x6d) || (o >= 0x74 && o <= 0x76) || (o >= 0xd1 && o <= 0xfe)))
		return V_OK;
	return 0;
}

static u32 form_map2(u8 o, u8 pp, bool vex)
{
	if (pp != 1)
		return 0;
	if (o <= 0x0b || (o >= 0x1c && o <= 0x1e) || o == 0x28 || o == 0x29 || o == 0x2b || (o >= 0x37 && o <= 0x40) ||
	    (o >= 0xdb && o <= 0xdf))
		return V_OK;
	if ((o >= 0x20 && o <= 0x25) || (o >= 0x30 && o <= 0x35) || o == 0x2a || o == 0x41)
		return V_OK;
	if (o == 0x17)
		return V_OK | V_FLAGS;
	if (!vex)
		return o == 0x10 || o == 0x14 || o == 0x15 ? V_OK : 0;
	if ((o >= 0x96 && o <= 0x9f) || (o >= 0xa6 && o <= 0xaf) || (o >= 0xb6 && o <= 0xbf))
		return V_OK | V_FP;
	if ((o >= 0x0c && o <= 0x0d) || o == 0x16 || o == 0x18 || o == 0x19 || o == 0x1a || o == 0x36 ||
	    (o >= 0x45 && o <= 0x47) || (o >= 0x58 && o <= 0x5a) || o == 0x78 || o == 0x79)
		return V_OK;
	return 0;
}

static u32 form_map3(u8 o, u8 pp, bool vex)
{
	if (pp != 1)
		return 0;
	if (o >= 0x08 && o <= 0x0b)
		return V_OK | V_FP;
	if ((o >= 0x0c && o <= 0x0f) || o == 0x42 || o == 0x44)
		return V_OK;
	if (o == 0x40 || o == 0x41)
		return V_OK | V_FP;
	if (o >= 0x14 && o <= 0x17)
		return V_OK | V_STORE | V_GRM;
	if (o == 0x20 || o == 0x22)
		return V_OK | V_GRM;
	if (o == 0x21)
		return V_OK;
	if (o == 0xdf)
		return V_OK;
	if (o >= 0x60 && o <= 0x63) /* PCMPxSTRx: lengths in RAX, RDX; index in RCX, mask in XMM0 */
		return V_OK | V_FLAGS;
	if (!vex)
		return 0;
	if (o <= 0x02 || (o >= 0x04 && o <= 0x06) || o == 0x18 || o == 0x38 || o == 0x46)
		return V_OK;
	if (o == 0x19 || o == 0x39)
		return V_OK | V_STORE;
	return 0;
}

static u32 form(const struct insn *i, const struct venc *e)
{
	bool mem = i->flags & INSN_MEM;

	switch (i->map) {
	case 1:
		return form_map1(i->opcode, e->pp, e->vex, mem);
	case 2:
		return form_map2(i->opcode, e->pp, e->vex);
	case 3:
		return form_map3(i->opcode, e->pp, e->vex);
	}
	return 0;
}

static bool is_vector_isa(u16 isa)
{
	switch (isa) {
	case ZYDIS_ISA_SET_SSE:
	case ZYDIS_ISA_SET_SSE2:
	case ZYDIS_ISA_SET_SSE3:
	case ZYDIS_ISA_SET_SSSE3:
	case ZYDIS_ISA_SET_SSE4:
	case ZYDIS_ISA_SET_SSE42:
	case ZYDIS_ISA_SET_AES:
	case ZYDIS_ISA_SET_PCLMULQDQ:
	case ZYDIS_ISA_SET_AVX:
	case ZYDIS_ISA_SET_AVX2:
	case ZYDIS_ISA_SET_AVXAES:
	case ZYDIS_ISA_SET_FMA:
		return true;
	}
	return false;
}

static unsigned mem_size(const struct insn *i)
{
	for (unsigned k = 0; k < i->nops; k++)
		if (i->op[k].kind == OPK_MEM)
			return i->op[k].size;
	return 0;
}

void vec_classify(struct trans *c, const struct insn *i, struct nat *n)
{
	bool vector = false;
	struct venc e;
	unsigned size;
	u32 f;

	if (!(c->key & KEY_SSE) || !is_vector_isa(i->isa))
		return;
	if ((i->flags & INSN_VEX) && !(c->key & KEY_AVX))
		return;
	/* Outside 64-bit mode the upper eight registers stay as they are. */
	if (i->mnemonic == ZYDIS_MNEMONIC_VZEROUPPER && (c->key & KEY_64)) {
		memset(n, 0, sizeof(*n));
		n->cls = K_VEX;
		return;
	}
	for (unsigned k = 0; k < i->nops; k++) {
		u8 kind = i->op[k].kind;

		vector |= kind == OPK_XMM || kind == OPK_YMM;
		if (kind != OPK_XMM && kind != OPK_YMM && kind != OPK_MEM && kind != OPK_GPR && kind != OPK_IMM)
			return;
	}
	read_venc(c, i, &e);
	f = form(i, &e);
	if (!vector || !f || ((f & V_FP) && !(c->key & KEY_FP)))
		return;
	/* General registers are as wide as W says only in 64-bit mode. */
	if (!(c->key & KEY_64) && e.w)
		return;
	if (i->flags & INSN_MEM) {
		size = mem_size(i);
		if (!size || size > 32 || (size & (size - 1)) || (f & V_DIGIT))
			return;
	}
	memset(n, 0, sizeof(*n));
	n->cls = e.vex ? K_VEX : K_SSE;
	n->fp = f & V_FP;
	if (f & V_FLAGS) {
		n->fmod = true;
		n->fw = F_ALL;
	}
}

bool vec_access(const struct trans *c, unsigned k, u8 *size, bool *write, u8 *align)
{
	const struct insn *i = &c->insn[k];
	struct venc e;

	read_venc(c, i, &e);
	*size = (u8)mem_size(i);
	*write = form(i, &e) & V_STORE;
	*align = (u8)simd_alignment(i, *size);
	if (*align == 1)
		*align = 0;
	return *align == 0 || *align >= 16;
}

/* ---- where the registers are ------------------------------------------------------------------------------------- */

/* Fetches vector registers and MXCSR, unless they are there; destroys flags. */
static void check(struct trans *c)
{
	struct emit *e = &c->e;
	u8 *skip;

	encode(e, 0, 0, 0x83, 7, rm_mem(H_R15, VOFF(jt.vec))); /* cmp dword, wants_vec */
	e1(e, c->wants_vec);
	skip = emit_jcc(e, 3, NULL);
	emit_jmp(e, 0xe8, c->j->vec_stub[c->wants_vec]);
	patch_rel(skip, e->delta, emit_rx(e));
	c->vec = true;
}

void vec_begin(struct trans *c)
{
	for (unsigned k = 0; k < c->n; k++) {
		if (c->nat[k].cls == K_VEX)
			c->wants_vec = VEC_YMM;
		else if (c->nat[k].cls == K_SSE && !c->wants_vec)
			c->wants_vec = VEC_XMM;
	}
	/* Flags are in jt.flags here. */
	if (c->wants_vec)
		check(c);
}

/* ---- one instruction -------------------------------------------------------------------------------------------- */

void vec_emit(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	struct emit *e = &c->e;
	bool mem = i->flags & INSN_MEM;
	unsigned reg, rmreg, flags, size = 0;
	struct venc v;
	struct rm rm;
	u32 f;

	if (i->mnemonic == ZYDIS_MNEMONIC_VZEROUPPER) {
		if (!c->vec) {
			flags_give(c, k);
			check(c);
		}
		e1(e, 0xc5);
		e1(e, 0xf8);
		e1(e, 0x77);
		return;
	}
	read_venc(c, i, &v);
	f = form(i, &v);
	reg = (i->modrm >> 3 & 7) | (v.rex & 4) << 1;
	rmreg = (i->modrm & 7) | (v.rex & 1) << 3;
	if ((mem && !is_follower(c, k)) || !c->vec)
		flags_give(c, k);
	if (!c->vec)
		check(c);
	if (mem) {
		size = mem_size(i);
		rm = emit_operand(c, k, size, simd_alignment(i, size), f & V_STORE ? TLB_WRITE : TLB_READ);
	} else if (f & V_GRM) {
		rm = rm_reg(reg_in(c, rmreg, H_R11, !(f & V_STORE)));
	} else {
		rm = rm_reg(rmreg);
	}
	flags_want(c, k);
	if (f & V_DIGIT)
		reg = i->modrm >> 3 & 7;
	else if (f & V_GREG)
		reg = reg_in(c, reg, H_R10, false);
	if (v.vex) {
		encode_vex(e, v.w, i->vl == 32, v.pp, i->map, i->opcode, reg, v.vvvv, rm);
	} else {
		flags = (v.pp == 1 ? ENC_66 : v.pp == 2 ? ENC_F3 : v.pp == 3 ? ENC_F2 : 0) | (v.w ? ENC_W : 0);
		encode(e, (unsigned)flags, i->map, i->opcode, reg, rm);
	}
	if (i->off_imm)
		e1(e, i->raw[i->len - 1]);
	if (f & V_GREG)
		reg_out(c, (i->modrm >> 3 & 7) | (v.rex & 4) << 1, H_R10);
	else if ((f & V_STORE) && (f & V_GRM) && !mem)
		reg_out(c, rmreg, H_R11);
}
