/*
 * group.c: which memory accesses of a block share one TLB check.
 *
 * Accesses through the same base register, whose value only changed by known constants in between, and within a small
 * span, form a group. The first one (the leader) checks the whole span; the others use the same addend in R11. When the
 * check fails, handlers run all instructions from the leader to the last of the group (struct slow). A group whose
 * check was seen to fail often because it lies over two pages gets a second copy of its code, with a check for each.
 *
 * Invariant: between leader and last nothing uses R11 otherwise, calls a handler or has a slow path of its own.
 */
#include "trans.h"

#define SPAN 512

struct access {
	u8 base, size;
	bool write;
	u8 align; /* 0: any */
	s32 disp;
};

/* The one memory access of an instruction, if it can be of a group. */
static bool access_of(const struct trans *c, unsigned k, struct access *a)
{
	const struct insn *i = &c->insn[k];
	const struct nat *n = &c->nat[k];

	*a = (struct access){.base = R_RSP, .size = 8};
	switch (n->cls) {
	case K_PUSH:
		a->disp = -8;
		a->write = true;
		return i->op[0].kind != OPK_MEM;
	case K_CALL:
		a->disp = -8;
		a->write = true;
		return true;
	case K_POP:
		return i->op[0].reg != R_RSP;
	case K_RET:
		return true;
	case K_MODRM:
	case K_SSE:
	case K_VEX:
	case K_X87:
	case K_MMX:
		/* FLDCW has a slow way behind its check. */
		if (i->mnemonic == ZYDIS_MNEMONIC_FLDCW)
			return false;
		if (!(i->flags & INSN_MEM) || i->asize != 8 || i->base >= 16 || i->index != R_ZERO ||
		    (i->seg >= SEG_FS && i->seg <= SEG_GS))
			return false;
		a->base = i->base;
		a->disp = (s32)i->disp;
		if (n->align)
			return false;
		if (n->cls != K_SSE && n->cls != K_VEX) {
			a->size = n->rm_size;
			a->write = n->rm_w;
			return true;
		}
		return vec_access(c, k, &a->size, &a->write, &a->align);
	default:
		return false;
	}
}

/* May lie inside a group without being of it: no handler, no slow path, no use of R11. */
static bool harmless(const struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	const struct nat *n = &c->nat[k];

	switch (n->cls) {
	case K_MODRM:
	case K_SSE:
	case K_VEX:
	case K_X87:
	case K_MMX:
		if (i->flags & INSN_MEM)
			return false;
		for (unsigned o = 0; o < i->nops; o++)
			if (i->op[o].kind == OPK_GPR && (i->op[o].reg == R_R8 || i->op[o].reg == R_R10 ||
			                                 i->op[o].reg == R_R11 || i->op[o].reg >= R_R14))
				return false;
		return !(n->fp && n->cls != K_MODRM && i->map == 0);
	case K_RAW:
	case K_NOP:
	case K_MOVI:
	case K_ACC:
	case K_LEA:
	case K_XCHGA:
	case K_BSWAP:
	case K_JCC:
		return true;
	default:
		return false;
	}
}

/* What instruction k does to register g: false: unknown; else g changes by *delta. */
static bool change_of(const struct trans *c, unsigned k, unsigned g, s32 *delta)
{
	const struct insn *i = &c->insn[k];
	const struct nat *n = &c->nat[k];

	*delta = 0;
	switch (n->cls) {
	case K_PUSH:
	case K_CALL:
		*delta = g == R_RSP ? -8 : 0;
		return true;
	case K_POP:
		*delta = g == R_RSP ? 8 : 0;
		return i->op[0].reg != g;
	case K_RET:
		return true;
	case K_NOP:
	case K_JCC:
		return true;
	case K_MODRM:
		if ((i->mnemonic == ZYDIS_MNEMONIC_ADD || i->mnemonic == ZYDIS_MNEMONIC_SUB) && n->digit &&
		    n->size == 8 && i->op[0].kind == OPK_GPR && i->op[0].reg == g) {
			s64 imm = (s64)i->imm;

			if (imm < -SPAN || imm > SPAN)
				return false;
			*delta = (s32)(i->mnemonic == ZYDIS_MNEMONIC_ADD ? imm : -imm);
			return true;
		}
		if ((i->mnemonic == ZYDIS_MNEMONIC_MUL || i->mnemonic == ZYDIS_MNEMONIC_IMUL ||
		     i->mnemonic == ZYDIS_MNEMONIC_CMPXCHG || i->mnemonic == ZYDIS_MNEMONIC_CMPXCHG8B ||
		     i->mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B || i->mnemonic == ZYDIS_MNEMONIC_DIV ||
		     i->mnemonic == ZYDIS_MNEMONIC_IDIV) &&
		    (g == R_RAX || g == R_RDX))
			return false;
		if (i->mnemonic == ZYDIS_MNEMONIC_CMP || i->mnemonic == ZYDIS_MNEMONIC_TEST)
			return true;
		/* A store's source is only read; everything else that names g counts as writing it. */
		if ((i->flags & INSN_MEM) && !n->reg_w)
			return true;
		break;
	case K_SSE:
	case K_VEX:
		if (g == R_RCX && i->map == 3 && (i->opcode & 0xfc) == 0x60) /* PCMPxSTRI */
			return false;
		break;
	case K_X87:
		if (g == R_RAX && i->mnemonic == ZYDIS_MNEMONIC_FNSTSW)
			return false;
		break;
	case K_RAW:
	case K_ACC:
		if (g == R_RAX || g == R_RDX || g == R_RCX || g == R_RBX)
			return false;
		break;
	case K_XCHGA:
		if (g == R_RAX)
			return false;
		break;
	default:
		break;
	}
	for (unsigned o = 0; o < i->nops; o++)
		if (i->op[o].kind == OPK_GPR && i->op[o].reg == g)
			return false;
	return true;
}

bool straddles(const struct trans *c, unsigned k)
{
	unsigned off = (unsigned)(c->rip[k] & ~PAGE_MASK);

	if (unlikely(c->j->chaos.on))
		return chaos_rnd(c->j, 2);
	return c->page->straddling[off / 1024] >> (off / 16 % 64) & 1;
}

void group_accesses(struct trans *c)
{
	struct group *g = NULL;
	bool branch = false; /* a conditional branch lies between the leader and here */
	s64 off = 0;         /* value of the base now, less its value at the leader */

	memset(c->group_of, 0, sizeof(c->group_of));
	c->n_group = 0;
	if (!(c->key & KEY_64))
		return;
	for (unsigned k = 0; k < c->n; k++) {
		struct access a;
		s32 delta;

		if (access_of(c, k, &a)) {
			s64 lo = off + a.disp, hi = lo + a.size;
			u8 phase = (u8)(lo & (a.align - 1));
			/* Behind a branch nothing may be demanded that the leader alone would not need. */
			bool fits = g && g->base == a.base && !(branch && a.write && !g->write) &&
			            !(a.align && (g->align ? g->align != a.align || g->phase != phase : branch));

			if (fits) {
				lo = lo < g->lo ? lo : g->lo;
				hi = hi > g->hi ? hi : g->hi;
			}
			/* Displacements may be 4 GiB apart. */
			if (fits && hi - lo <= SPAN && is_s32(lo)) {
				if (a.align) {
					g->align = a.align;
					g->phase = phase;
				}
				g->lo = lo;
				g->hi = hi;
				g->write |= a.write;
				g->last = (u8)k;
				c->group_of[k] = (u8)(g - c->group + 1);
			} else {
				g = &c->group[c->n_group++];
				*g = (struct group){.base = a.base,
				                    .leader = (u8)k,
				                    .last = (u8)k,
				                    .write = a.write,
				                    .leader_writes = a.write,
				                    .align = a.align,
				                    .phase = (u8)(a.disp & (a.align - 1)),
				                    .lo = a.disp,
				                    .hi = (s64)a.disp + a.size};
				c->group_of[k] = (u8)c->n_group;
				off = 0;
				branch = false;
			}
		} else if (!harmless(c, k)) {
			g = NULL;
		}
		branch |= c->nat[k].cls == K_JCC;
		if (g && !change_of(c, k, g->base, &delta))
			g = NULL;
		else if (g)
			off += delta;
	}
}
