/*
 * gen.c: random cases of a form: operand registers, addressing, immediates, register and memory contents, with the
 * constraints that keep both runs inside the windows (or faulting alike).
 */
#include <string.h>

#include <Zydis/Zydis.h>

#include "../../src/cpu/cpu.h"
#include "insn_test.h"

u64 rng_state;
static u8 master[DATA_RW];

/* splitmix64 */
u64 rnd(void)
{
	u64 z = rng_state += 0x9e3779b97f4a7c15ull;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

void gen_init(void)
{
	for (unsigned n = 0; n < sizeof(master); n += 8) {
		u64 x = rnd();

		memcpy(master + n, &x, 8);
	}
}

static u64 rnd_int(void)
{
	switch (below(8)) {
	case 0:
		return below(256);
	case 1:
		return -below(256);
	case 2:
		return BIT(below(64));
	case 3:
		return BIT(below(64)) - 1;
	case 4:
		return rnd() >> below(64);
	default:
		return rnd();
	}
}

static u32 rnd_float(void)
{
	static const u32 special[] = {0,          0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000,
	                              0x7fc00000, 0x7f800001, 1,          0x807fffff, 0x00800000, 0x7f7fffff,
	                              0x4f000000, 0xcf000000, 0x5f000000, 0x3f000000, 0xffc00000};

	switch (below(4)) {
	case 0:
		return special[below(ARRAY_SIZE(special))];
	case 1:
		return (u32)rnd();
	default:
		return (u32)((rnd() & 0x807fffff) | (100 + below(60)) << 23);
	}
}

static u64 rnd_double(void)
{
	static const u64 special[] = {0,
	                              BIT(63),
	                              0x3ff0000000000000,
	                              0xbff0000000000000,
	                              0x7ff0000000000000,
	                              0xfff0000000000000,
	                              0x7ff8000000000000,
	                              0x7ff0000000000001,
	                              1,
	                              0x800fffffffffffff,
	                              0x0010000000000000,
	                              0x7fefffffffffffff,
	                              0x41e0000000000000,
	                              0xc1e0000000000000,
	                              0x43e0000000000000,
	                              0x3fe0000000000000};

	switch (below(4)) {
	case 0:
		return special[below(ARRAY_SIZE(special))];
	case 1:
		return rnd();
	default:
		return (rnd() & 0x800fffffffffffff) | (u64)(1000 + below(60)) << 52;
	}
}

/* Fills `size` bytes with one sort of values. */
static void rnd_bytes(u8 *p, unsigned size)
{
	unsigned kind = (unsigned)below(4);

	for (unsigned n = 0; n < size; n += 8) {
		u64 x = kind == 0   ? rnd()
		        : kind == 1 ? rnd_double()
		        : kind == 2 ? ((u64)rnd_float() << 32 | rnd_float())
		                    : rnd_int();

		memcpy(p + n, &x, size - n < 8 ? size - n : 8);
	}
}

static void rnd_x87(u8 *p)
{
	u64 mant = rnd();
	u16 exp;

	switch (below(8)) {
	case 0:
		mant = 0;
		exp = (u16)(below(2) << 15);
		break;
	case 1:
		mant = BIT(63);
		exp = (u16)(below(2) << 15 | 0x7fff);
		break;
	case 2:
		mant |= BIT(63);
		exp = (u16)(below(2) << 15 | 0x7fff);
		break;
	case 3:
		mant = (u64)below(1000) << 52 | BIT(63);
		exp = (u16)(below(2) << 15 | (0x3fff + below(10)));
		break;
	case 4:
		exp = (u16)rnd();
		break;
	default:
		mant |= BIT(63);
		exp = (u16)(below(2) << 15 | (0x3fff - 20 + below(60)));
		break;
	}
	memcpy(p, &mant, 8);
	memcpy(p + 8, &exp, 2);
	memset(p + 10, 0, 6);
}

static void rnd_fpu(struct state *s)
{
	u16 fcw = 0x37f, fsw, cw;

	memset(s->fx, 0, sizeof(s->fx));
	if (below(2))
		fcw = (u16)(0x7f | below(4) << 8 | below(4) << 10);
	if (below(16) == 0)
		fcw = (u16)((fcw & ~0x3fu) | below(64));
	fsw = (u16)(below(8) << 11 | (rnd() & 0x4700));
	/* Sticky flags only where they are masked: a pending exception would spoil every case. */
	if (below(4) == 0)
		fsw |= (u16)(below(64) & fcw & 0x3f);
	if (below(64) == 0)
		fsw |= (u16)(below(64) & 0x3f);
	if (fsw & ~fcw & 0x3f)
		fsw |= 0x8080;
	cw = fcw | 0x40;
	memcpy(s->fx, &cw, 2);
	memcpy(s->fx + 2, &fsw, 2);
	s->fx[4] = below(3) ? 0xff : (u8)rnd();
	if (below(6) == 0)
		s->fx[4] = 0;
	for (unsigned n = 0; n < 8; n++)
		rnd_x87(s->fx + 32 + 16 * n);
	s->mxcsr = 0x1f80;
	if (below(2))
		s->mxcsr |= (u32)(below(4) << 13 | below(64));
	if (below(8) == 0)
		s->mxcsr |= 0x8000;
	if (below(8) == 0)
		s->mxcsr |= 0x40;
	if (below(16) == 0)
		s->mxcsr &= ~(u32)(below(64) << 7);
	for (unsigned n = 0; n < 16; n++)
		rnd_bytes(s->ymm[n], 32);
}

/* ---- bytes ------------------------------------------------------------------------------------------------------ */

/* Where the displacement lies, for patching. */
struct layout {
	unsigned disp_at, disp_size;
};

static void emit(const struct form *f, struct tcase *c, struct layout *l)
{
	u8 *b = c->bytes, modrm = f->modrm, rex = f->rex;
	unsigned n = 0, mod;
	bool w64 = f->mode == DECODE_64, addr16 = false, sib = false;

	memset(l, 0, sizeof(*l));
	/* A segment override now and then; FS and GS have bases in 64-bit mode. */
	if (below(8) == 0 && w64) {
		static const u8 seg[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x64, 0x65};

		b[n++] = seg[below(8)];
	}
	for (unsigned k = 0; k < f->nprefix; k++) {
		addr16 |= f->prefix[k] == 0x67 && !w64;
		b[n++] = f->prefix[k];
	}
	if (w64 && !f->vex && (rex || below(2)))
		rex = (u8)((rex ? rex : 0x40) | (below(2) ? below(8) : 0));
	if (f->has_modrm) {
		if (below(4))
			modrm = (u8)((modrm & 0xc7) | below(8) << 3);
		if (!f->mem && below(4))
			modrm = (u8)((modrm & 0xf8) | below(8));
		if (f->mem)
			modrm = (u8)((modrm & 0x38) | below(3) << 6 | below(8));
	}
	if (f->vex) {
		u8 rxb = w64 ? (u8)below(8) : 7;

		if (below(2))
			rxb = 7;
		if (f->map == 1 && !f->vex_w && (rxb & 3) == 3 && below(2)) {
			b[n++] = 0xc5;
			b[n++] = (u8)((rxb >> 2) << 7 | (below(2) ? below(w64 ? 16 : 8) | (w64 ? 0 : 8) : 15) << 3 |
			              f->vex_l << 2 | f->vex_pp);
		} else {
			b[n++] = 0xc4;
			b[n++] = (u8)(rxb << 5 | f->map);
			b[n++] = (u8)(f->vex_w << 7 | (below(2) ? below(w64 ? 16 : 8) | (w64 ? 0 : 8) : 15) << 3 |
			              f->vex_l << 2 | f->vex_pp);
		}
	} else {
		if (rex)
			b[n++] = rex;
		if (f->map)
			b[n++] = 0x0f;
		if (f->map == 2)
			b[n++] = 0x38;
		if (f->map == 3)
			b[n++] = 0x3a;
	}
	/* Opcodes with a register in their low bits: others of the same form are tried too. */
	b[n++] = f->opcode;
	if (f->has_modrm) {
		b[n++] = modrm;
		mod = modrm >> 6;
		if (mod != 3) {
			unsigned rm = modrm & 7;

			if (!addr16 && rm == 4) {
				b[n++] = (u8)rnd();
				sib = true;
			}
			l->disp_at = n;
			if (addr16)
				l->disp_size = mod == 1 ? 1 : mod == 2 || rm == 6 ? 2 : 0;
			else if (mod == 1)
				l->disp_size = 1;
			else if (mod == 2 || rm == 5 || (sib && (b[n - 1] & 7) == 5))
				l->disp_size = 4;
		}
	} else if (f->map == 0 && f->opcode >= 0xa0 && f->opcode <= 0xa3) {
		bool a67 = memchr(f->prefix, 0x67, f->nprefix);

		l->disp_at = n;
		l->disp_size = w64 ? (a67 ? 4 : 8) : (a67 ? 2 : 4);
	}
	while (n < 15)
		b[n++] = below(3) ? (u8)rnd() : (u8)below(16);
}

/* ---- constraints ------------------------------------------------------------------------------------------------ */

static u64 pick_target(const struct tcase *c, unsigned size)
{
	unsigned align = size >= 32 ? 32 : size >= 16 ? 16 : size ? size : 1;
	u64 t;

	if (align & (align - 1))
		align = 1;
	if (!size)
		size = 64;
	switch (below(32)) {
	case 0:
	case 1:
	case 2:
		return DATA + 0x1000 - below(size + 1);
	case 3:
	case 4:
		return DATA + 0x2000 - below(size + 1);
	case 5:
		return DATA + 0x2000 + below(0x1000 - size);
	case 6:
		return DATA + 0x3000 - below(size + 1);
	default:
		t = DATA + 0x400 + below(0x1800);
		if (below(3))
			t &= ~(u64)(align > 16 ? 63 : align - 1);
		if (c->insn.flags & INSN_ALIGN && below(4))
			t &= ~(u64)(align - 1);
		return t;
	}
}

static u64 amask(const struct insn *i)
{
	return i->asize == 8 ? ~0ull : i->asize == 4 ? 0xffffffffu : 0xffff;
}

static u64 seg_base(const struct tcase *c)
{
	if (c->form->mode != DECODE_64)
		return 0;
	return c->insn.seg == SEG_FS ? native_fs_base : c->insn.seg == SEG_GS ? native_gs_base : 0;
}

static bool is_vsib(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_VGATHERDPD:
	case ZYDIS_MNEMONIC_VGATHERDPS:
	case ZYDIS_MNEMONIC_VGATHERQPD:
	case ZYDIS_MNEMONIC_VGATHERQPS:
	case ZYDIS_MNEMONIC_VPGATHERDD:
	case ZYDIS_MNEMONIC_VPGATHERDQ:
	case ZYDIS_MNEMONIC_VPGATHERQD:
	case ZYDIS_MNEMONIC_VPGATHERQQ:
		return true;
	default:
		return false;
	}
}

static void patch(struct tcase *c, const struct layout *l, u64 val)
{
	memcpy(c->bytes + l->disp_at, &val, l->disp_size);
	c->insn.disp = l->disp_size == 8 ? (s64)val : (s64)(s32)val;
}

/* Makes the memory operand's address `target` by choosing base, index or displacement. `pinned`: registers taken. */
static bool aim(struct tcase *c, const struct layout *l, u64 target, u32 pinned)
{
	struct insn *i = &c->insn;
	u64 want = target - seg_base(c), *r = c->in.r, index;

	if (i->asize == 2)
		return true; /* faults, or hits nothing: 64 KiB hold no window */
	if (i->base == R_RIP) {
		want -= c->rip + i->len;
		if (i->asize == 8 && (s64)want != (s32)want)
			return false;
		patch(c, l, want);
		i->disp += i->len;
		return true;
	}
	if (i->base == R_ZERO && i->index == R_ZERO) {
		want &= amask(i);
		if (l->disp_size == 4 && i->asize == 8 && (s64)want != (s32)want)
			return false;
		patch(c, l, want);
		return true;
	}
	if (i->index != R_ZERO && !(pinned & BIT(i->index)) && below(2))
		r[i->index] = (r[i->index] & ~0xffffffffull) | below(4096);
	index = i->index == R_ZERO ? 0 : r[i->index] << i->scale;
	if (i->base == R_ZERO) {
		if (l->disp_size != 4 || (pinned & BIT(i->index)))
			return false;
		r[i->index] = below(65536);
		want -= r[i->index] << i->scale;
		if (i->asize == 8 && (s64)want != (s32)want)
			return false;
		patch(c, l, want);
		return true;
	}
	if (pinned & BIT(i->base)) {
		/* Only the displacement is free. */
		if (l->disp_size != 4)
			return false;
		want -= r[i->base] + index;
		if (i->asize == 8 && (s64)want != (s32)want)
			return false;
		patch(c, l, want);
		return true;
	}
	if (i->base == i->index) {
		want -= (u64)i->disp;
		want &= amask(i);
		if (want % ((1u << i->scale) + 1))
			return false;
		r[i->base] = want / ((1u << i->scale) + 1);
		return true;
	}
	want -= index + (u64)i->disp;
	if (i->asize == 4)
		want = (u32)want | (c->form->mode == DECODE_64 && below(2) ? rnd() << 32 : 0);
	r[i->base] = want;
	return true;
}

static u64 code_target(const struct tcase *c)
{
	u64 t;

	do {
		t = CODE + 16 + below(CODE_SIZE - 64);
	} while (t >= c->rip && t < c->rip + 16);
	return t;
}

static void poke(struct tcase *c, u64 at, u64 val, unsigned size)
{
	if (at >= DATA && at + size <= DATA + DATA_RW)
		memcpy(c->mem + (at - DATA), &val, size);
}

static u64 keep_high(const struct tcase *c, u64 val)
{
	return c->insn.asize == 4 && c->form->mode == DECODE_64 && below(2) ? (u32)val | rnd() << 32 : val;
}

/* A frame that fits the window. */
static void patch_enter(struct tcase *c)
{
	u16 frame = (u16)below(0x400);

	memcpy(c->bytes + c->insn.len - 3, &frame, 2);
	c->insn.imm = frame;
}

/* Implicit operands: stack, string registers, counts. Sets *pinned. */
static bool constrain(struct tcase *c, u32 *pinned)
{
	struct insn *i = &c->insn;
	u64 *r = c->in.r;
	bool rep = i->flags & (INSN_REP | INSN_REPNE);

	/* FS lies far above what a 32-bit offset can bring back into the windows. */
	if (i->asize == 4 && seg_base(c) > 0xffffffffu && (i->acc || (i->flags & INSN_MEM)))
		return false;
	r[R_RSP] = DATA + 0x100 + below(0x1e00);
	if (below(3))
		r[R_RSP] &= ~7ull;
	if (below(24) == 0)
		r[R_RSP] = DATA + below(64);
	if (below(24) == 0)
		r[R_RSP] = DATA + 0x2000 - below(64);
	*pinned = 1u << R_RSP;
	if (i->map == 0 && i->opcode >= 0xa4 && i->opcode <= 0xaf && i->opcode != 0xa8 && i->opcode != 0xa9) {
		u64 fs = seg_base(c);

		r[R_RSI] = keep_high(c, pick_target(c, i->osize) - fs);
		r[R_RDI] = keep_high(c, below(4) ? pick_target(c, i->osize) : r[R_RSI] + fs + below(40) - 20);
		if (rep)
			r[R_RCX] = keep_high(c, below(6) ? below(40) : below(1500));
		if (below(3) == 0 && (i->opcode & 0xfe) == 0xa6 && !fs) {
			/* Equal for a while. */
			u64 a = (u32)r[R_RSI] - DATA, b = (u32)r[R_RDI] - DATA;

			if (a < 0x1f00 && b < 0x1f00)
				memmove(c->mem + a, c->mem + b, 64);
		}
		if (below(3) == 0 && (i->opcode & 0xfe) == 0xae) {
			u64 b = (u32)r[R_RDI] - DATA;

			for (unsigned n = 0; b < 0x1e00 && n < 128; n += i->osize)
				memcpy(c->mem + b + n, &r[R_RAX], i->osize);
		}
		return true;
	}
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_XLAT:
		r[R_RBX] = keep_high(c, pick_target(c, 1) - (u8)r[R_RAX] - seg_base(c));
		*pinned |= 1u << R_RBX;
		break;
	case ZYDIS_MNEMONIC_MASKMOVQ:
	case ZYDIS_MNEMONIC_MASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVDQU:
		/* Whether bytes that the mask leaves out can fault is the processor's choice. */
		r[R_RDI] = keep_high(c, DATA + below(DATA_RW - 16) - seg_base(c));
		break;
	case ZYDIS_MNEMONIC_LEAVE:
	case ZYDIS_MNEMONIC_ENTER:
		r[R_RBP] = DATA + 0x400 + below(0x1400);
		if (i->mnemonic == ZYDIS_MNEMONIC_ENTER && below(2))
			r[R_RSP] = DATA + 0x1000 + below(0x1000);
		if (i->mnemonic == ZYDIS_MNEMONIC_ENTER && below(4))
			patch_enter(c);
		/* The new stack top must not lie in the code, which only the host may write. */
		if (i->mnemonic == ZYDIS_MNEMONIC_ENTER) {
			u64 sp = r[R_RSP] - (u16)i->imm - (i->imm2 & 31u) * i->osize;

			if (sp + 4096 >= CODE && sp < CODE + CODE_SIZE + 4096)
				return false;
		}
		break;
	case ZYDIS_MNEMONIC_RET:
		poke(c, r[R_RSP], code_target(c), i->osize);
		break;
	case ZYDIS_MNEMONIC_DIV:
	case ZYDIS_MNEMONIC_IDIV:
		/* Quotients that fit, mostly. */
		if (below(4)) {
			if (i->op[0].size == 1)
				r[R_RAX] = (r[R_RAX] & ~0xffffull) | below(0x400);
			else
				r[R_RDX] = below(2) ? below(4) : (u64)((s64)r[R_RAX] >> 63);
			if (below(3) == 0 && i->op[0].size == 4)
				r[R_RDX] = (u64)((s64)(s32)r[R_RAX] >> 63);
		}
		break;
	case ZYDIS_MNEMONIC_CMPXCHG:
	case ZYDIS_MNEMONIC_CMPXCHG8B:
	case ZYDIS_MNEMONIC_CMPXCHG16B:
		break;
	case ZYDIS_MNEMONIC_LOOP:
	case ZYDIS_MNEMONIC_LOOPE:
	case ZYDIS_MNEMONIC_LOOPNE:
	case ZYDIS_MNEMONIC_JCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
	case ZYDIS_MNEMONIC_JRCXZ:
		r[R_RCX] = keep_high(c, below(4));
		break;
	case ZYDIS_MNEMONIC_XSAVE:
	case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEC:
	case ZYDIS_MNEMONIC_XSAVEC64:
	case ZYDIS_MNEMONIC_XSAVEOPT:
	case ZYDIS_MNEMONIC_XSAVEOPT64:
	case ZYDIS_MNEMONIC_XRSTOR:
	case ZYDIS_MNEMONIC_XRSTOR64:
		/* XCR0 of the host has more components than the guest's. */
		r[R_RAX] = below(8);
		r[R_RDX] = 0;
		*pinned |= 1u << R_RAX | 1u << R_RDX;
		break;
	default:
		break;
	}
	return true;
}

/* Constraints on the memory operand's contents and on branch displacements. */
static bool constrain_late(struct tcase *c, const struct layout *l)
{
	struct insn *i = &c->insn;
	u64 *r = c->in.r;

	for (unsigned n = 0; n < i->nops; n++)
		if (i->op[n].kind == OPK_REL) {
			unsigned size = i->op[n].size;
			u64 to = code_target(c), rel;

			/* A displacement inside the code window; 8-bit ones are always. */
			if (size == 1) {
				to = c->rip + i->len + (u64)(s64)(s8)c->bytes[i->len - 1];
				return to < CODE || to > CODE + CODE_SIZE - 16 || (to >= c->rip + i->len) ||
				       to + 1 < c->rip;
			}
			rel = to - (c->rip + i->len);
			memcpy(c->bytes + i->len - size, &rel, size);
			i->imm = size == 2 ? (u64)(s64)(s16)rel : (u64)(s64)(s32)rel;
			return true;
		}
	if (i->mnemonic == ZYDIS_MNEMONIC_CALL || i->mnemonic == ZYDIS_MNEMONIC_JMP) {
		if (i->op[0].kind == OPK_GPR && i->op[0].reg == R_RSP)
			return false;
		if (i->op[0].kind == OPK_GPR)
			r[i->op[0].reg] = i->op[0].size > 2 ? code_target(c) : rnd();
		else if (c->target)
			poke(c, c->target, code_target(c), i->op[0].size);
	}
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		if (c->target && i->op[1].kind == OPK_GPR) {
			u64 off = below(4096) - 2048;

			/* The offset register may be part of the address. */
			if (i->op[1].reg == i->base || i->op[1].reg == i->index)
				return false;
			r[i->op[1].reg] = i->op[1].size == 2   ? (r[i->op[1].reg] & ~0xffffull) | (u16)off
			                  : i->op[1].size == 4 ? (u32)off
			                                       : off;
		}
		break;
	case ZYDIS_MNEMONIC_CMPXCHG:
		if (below(2)) {
			u64 x = rnd_int();

			if (c->target)
				poke(c, c->target, r[R_RAX], i->op[0].size);
			else if (i->op[0].size > 1)
				r[R_RAX] = i->op[0].size == 4 && below(2) ? (u32)r[i->op[0].reg] | x << 32
				                                          : r[i->op[0].reg];
		}
		break;
	case ZYDIS_MNEMONIC_CMPXCHG8B:
	case ZYDIS_MNEMONIC_CMPXCHG16B:
		if (c->target && below(2)) {
			unsigned half = i->mnemonic == ZYDIS_MNEMONIC_CMPXCHG8B ? 4 : 8;

			poke(c, c->target, r[R_RAX], half);
			poke(c, c->target + half, r[R_RDX], half);
		}
		break;
	case ZYDIS_MNEMONIC_LDMXCSR:
	case ZYDIS_MNEMONIC_VLDMXCSR:
		if (c->target && below(4))
			poke(c, c->target, rnd() & 0xffff & ~(u64)(below(4) ? 0 : 0x1f80), 4);
		break;
	case ZYDIS_MNEMONIC_XRSTOR:
	case ZYDIS_MNEMONIC_XRSTOR64:
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64:
		if (c->target >= DATA && c->target + 1024 < DATA + DATA_RW) {
			u8 *p = c->mem + (c->target - DATA);

			poke(c, c->target + 24, 0x1f80 | below(64), 4);
			poke(c, c->target + 28, 0xffff, 4);
			if (below(4) && i->mnemonic != ZYDIS_MNEMONIC_FXRSTOR &&
			    i->mnemonic != ZYDIS_MNEMONIC_FXRSTOR64) {
				memset(p + 512, 0, 64);
				p[512] = (u8)below(8);
				if (below(3) == 0) {
					p[520] = (u8)(p[512] | below(8));
					p[527] = 0x80;
				}
			}
			/* No pending exceptions from the image. */
			poke(c, c->target, 0x37f, 2);
			if (below(2))
				poke(c, c->target + 2, rnd() & 0x7f00 & ~0xffull, 2);
			else
				poke(c, c->target + 2, 0, 2);
		}
		break;
	case ZYDIS_MNEMONIC_FLDENV:
	case ZYDIS_MNEMONIC_FRSTOR:
	case ZYDIS_MNEMONIC_FLDCW:
		if (c->target && below(8)) {
			poke(c, c->target, 0x37f | below(16) << 8, 2);
			if (i->mnemonic != ZYDIS_MNEMONIC_FLDCW)
				poke(c, c->target + (i->osize == 2 ? 2 : 4), rnd() & 0x7f3f, 2);
		}
		break;
	default:
		break;
	}
	return true;
}

/* Would the memory operand touch anything but the windows or the void? */
static bool safe(const struct tcase *c)
{
	const struct insn *i = &c->insn;
	u64 ea, lin;

	if (!(i->flags & INSN_MEM) || i->mnemonic == ZYDIS_MNEMONIC_LEA || i->mnemonic == ZYDIS_MNEMONIC_NOP)
		return true;
	ea = (i->base == R_ZERO  ? 0
	      : i->base == R_RIP ? c->rip
	                         : c->in.r[i->base]) +
	     (i->index == R_ZERO ? 0 : c->in.r[i->index] << i->scale) + (u64)i->disp;
	ea &= amask(i);
	lin = ea + seg_base(c);
	if (c->form->mode != DECODE_64)
		lin = (u32)lin;
	if (lin + 4096 >= CODE && lin < CODE + CODE_SIZE + 4096)
		return false;
	/* From 0x7fff8000 an ASan build has its shadow. */
	if (lin < 0x70000000u)
		return true;
	return c->form->mode == DECODE_64 && (u64)((s64)(lin << 8) >> 8) != lin; /* not canonical, LA57 or not */
}

static bool attempt(struct form *f, struct tcase *c)
{
	struct layout l;
	u32 pinned;
	unsigned memsize = 0;

	c->form = f;
	c->target = 0;
	emit(f, c, &l);
	if (decode((enum decode_mode)f->mode, c->bytes, 15, &c->insn) < 0 ||
	    form_hash((enum decode_mode)f->mode, &c->insn) != f->hash ||
	    form_excluded(&c->insn, (enum decode_mode)f->mode))
		return false;
	c->len = c->insn.len;
	memset(c->bytes + c->len, 0xcc, sizeof(c->bytes) - c->len);
	/* Anywhere in the first page, or over its end. */
	c->rip = CODE + (below(8) == 0 ? 0x1000 - below(16) : 0x100 + below(0xe00));
	memcpy(c->mem, master, sizeof(c->mem));
	for (unsigned n = 0; n < 16; n++)
		c->in.r[n] = rnd_int();
	rnd_fpu(&c->in);
	c->in.rip = c->rip;
	c->in.rflags = (rnd() & FLAGS_ARITH) | (below(4) ? 0 : FLAGS_DF) | FLAGS_FIXED | FLAGS_IF;
	if (!constrain(c, &pinned))
		return false;
	for (unsigned n = 0; n < c->insn.nops; n++)
		if (c->insn.op[n].kind == OPK_MEM)
			memsize = c->insn.op[n].size;
	if (c->insn.flags & INSN_MEM) {
		u64 t = pick_target(c, memsize);

		if (memsize == 255 || memsize == 0)
			t = below(4) ? (DATA + below(0x1c00)) & ~63ull : t;
		if (below(48) == 0 && c->insn.asize == 8 && c->insn.base != R_ZERO && c->insn.base != R_RIP)
			t = rnd() | 0x0100000000000000ull; /* not canonical, most likely */
		if (!aim(c, &l, t, pinned))
			return false;
		c->target = t;
		if (t >= DATA && t + 64 <= DATA + DATA_RW)
			rnd_bytes(c->mem + (t - DATA), 64);
		if (is_vsib(&c->insn)) {
			unsigned dword = c->insn.opcode == 0x90 || c->insn.opcode == 0x92;
			u8 *y = c->in.ymm[c->insn.vindex];

			for (unsigned n = 0; n < 32; n += dword ? 4 : 8) {
				s64 x = (s64)below(64) - 16;

				memcpy(y + n, &x, dword ? 4 : 8);
			}
		}
	}
	if (!constrain_late(c, &l) || !safe(c))
		return false;
	if (f->mode == DECODE_32)
		for (unsigned n = 0; n < 16; n++)
			c->in.r[n] = (u32)c->in.r[n];
	/* What was patched must still be the same form. */
	if (decode((enum decode_mode)f->mode, c->bytes, 15, &c->insn) < 0 ||
	    form_hash((enum decode_mode)f->mode, &c->insn) != f->hash || c->insn.len != c->len)
		return false;
	return true;
}

bool gen_case(struct form *f, struct tcase *c)
{
	for (unsigned n = 0; n < 400; n++)
		if (attempt(f, c))
			return true;
	return false;
}
