/*
 * mem.c: memory operands: effective address → segment → TLB check → host address.
 *
 * In 64-bit code only FS and GS have a base; in flat code (no KEY_SEG) ES, SS and DS add nothing. Every other segment
 * is looked at in struct seg each time: an offset up to its read_end or write_end passes, everything else is the
 * handler's, which knows expand-down, null and all the faults. So loads of segment registers void no code.
 *
 * A check leaves the operand's linear address in R8 (or in its base register) and the addend in R11. It destroys R10
 * and the flags; what was alive of them the caller has given (flags_give()) before.
 */
#include "trans.h"

/* Out of line: gives the instruction to its handler, then goes on behind it. */
void slow_at(struct trans *c, unsigned k, u8 *at)
{
	struct slow *s = &c->slow[c->n_slow++];

	s->at = at;
	s->k = (u8)k;
	s->last = (u8)k;
	s->vec = c->vec;
	s->x87 = c->x87;
	s->resume = NULL;
	s->retry = NULL;
	s->go = NULL;
}

/* The check that slow_at() was called for last may be done again, from `retry`, when the TLB has been filled. */
static void slow_retry(struct trans *c, const u8 *retry, unsigned reg, unsigned size, enum tlb_kind kind)
{
	struct slow *s = &c->slow[c->n_slow - 1];

	s->retry = retry;
	s->reg = (u8)reg;
	s->kind = (u8)kind;
	s->size = (u16)size;
}

/* Effective address of the memory operand, without its segment, into R8. Uses R10, changes no flags. */
void emit_offset(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	struct emit *e = &c->e;
	unsigned base = H_NONE, index = H_NONE;
	bool narrow = i->asize < 8;

	if (i->base == R_RIP || (i->base == R_ZERO && i->index == R_ZERO)) {
		u64 a = (i->base == R_RIP ? c->rip[k] : 0) + (u64)i->disp;

		if (i->base == R_RIP && i->asize == 8) {
			emit_rip(e, H_R8, a);
			return;
		}
		c->bound |= i->base == R_RIP;
		emit_const(e, H_R8, i->asize == 8 ? a : i->asize == 4 ? (u32)a : (u16)a);
		return;
	}
	if (i->base != R_ZERO)
		base = reg_in(c, i->base, H_R8, true);
	if (i->index != R_ZERO)
		index = reg_in(c, i->index, H_R10, true);
	if (index == H_NONE && i->disp == 0) {
		if (i->asize == 2)
			encode(e, 0, 1, 0xb7, H_R8, rm_reg(base)); /* movzx r8d, base */
		else if (narrow)
			encode(e, 0, 0, 0x89, base, rm_reg(H_R8));
		else if (base != H_R8)
			emit_mov(e, H_R8, base);
		return;
	}
	encode(e, narrow ? 0 : ENC_W, 0, 0x8d, H_R8, rm_sib(base, index, i->scale, (s32)i->disp));
	if (i->asize == 2)
		encode(e, 0, 1, 0xb7, H_R8, rm_reg(H_R8));
}

/* The offset in R8 becomes the linear address of an access of `size` bytes through `seg`. */
void emit_segment(struct trans *c, unsigned k, unsigned seg, unsigned size, enum tlb_kind kind)
{
	s32 at = VOFF(seg[0]) + (s32)(seg * sizeof(struct seg));
	struct emit *e = &c->e;

	if (c->key & KEY_64) {
		if (seg >= SEG_FS && seg <= SEG_GS)
			encode(e, ENC_W, 0, 0x03, H_R8, rm_mem(H_R15, at + (s32)offsetof(struct seg, base)));
		return;
	}
	if (!(c->key & KEY_SEG) && (seg == SEG_ES || seg == SEG_SS || seg == SEG_DS))
		return;
	at += kind == TLB_WRITE ? (s32)offsetof(struct seg, write_end) : (s32)offsetof(struct seg, read_end);
	encode(e, ENC_W, 0, 0x8d, H_R10, rm_mem(H_R8, (s32)size));
	encode(e, ENC_W, 0, 0x3b, H_R10, rm_mem(H_R15, at)); /* cmp r10, the end */
	slow_at(c, k, emit_jcc(e, 7, NULL));
	at = VOFF(seg[0].base) + (s32)(seg * sizeof(struct seg));
	encode(e, 0, 0, 0x03, H_R8, rm_mem(H_R15, at)); /* add r8d, base */
}

/* Linear address of the memory operand into R8. */
void emit_ea(struct trans *c, unsigned k, unsigned size, enum tlb_kind kind)
{
	emit_offset(c, k);
	emit_segment(c, k, c->insn[k].seg, size, kind);
}

/* The address in R8 → R11, so that [R8 + R11] is the operand's host address. Flags are given already. */
static void emit_tag(struct trans *c, unsigned k, unsigned reg, u32 mask, enum tlb_kind kind);
static void emit_span(struct trans *c, unsigned k, unsigned reg, unsigned size, enum tlb_kind kind);

void emit_check(struct trans *c, unsigned k, unsigned size, enum tlb_kind kind)
{
	emit_check_reg(c, k, H_R8, size, kind);
}

/* The same for an address in another register. */
void emit_check_reg(struct trans *c, unsigned k, unsigned reg, unsigned size, enum tlb_kind kind)
{
	const u8 *retry = emit_rx(&c->e);

	emit_span(c, k, reg, size, kind);
	slow_retry(c, retry, reg, size, kind);
	if (kind == TLB_READ && size <= CROSSING_MAX)
		c->slow[c->n_slow - 1].go = emit_rx(&c->e);
}

/* The same for RCX elements, at least one: [R8, R8 + (RCX << scale)) must lie in one page. */
void emit_check_run(struct trans *c, unsigned k, unsigned scale, enum tlb_kind kind)
{
	const u8 *retry = emit_rx(&c->e);

	encode(&c->e, ENC_W, 0, 0x8d, H_R10, rm_sib(H_R8, H_RCX, scale, -1));
	emit_tag(c, k, H_R8, (u32)-4096, kind);
	/* The first element's access is certain. */
	slow_retry(c, retry, H_R8, 1u << scale, kind);
}

/* R11 = where the TLB entry of the address in `reg` lies, relative to the array's start. */
static void emit_entry(struct trans *c, unsigned reg)
{
	struct emit *e = &c->e;

	if (c->j->bmi2) { /* rorx r11, reg, 8: what comes in from below is masked out */
		encode_vex(e, true, false, 3, 3, 0xf0, H_R11, 0, rm_reg(reg));
		e1(e, PAGE_SHIFT - 4);
	} else {
		emit_mov(e, H_R11, reg);
		encode(e, ENC_W, 0, 0xc1, 5, rm_reg(H_R11)); /* shr r11, 8 */
		e1(e, PAGE_SHIFT - 4);
	}
	encode(e, 0, 0, 0x81, 4, rm_reg(H_R11)); /* and r11d, ... */
	e4(e, (TLB_SIZE - 1) << 4);
}

static s32 tlb_at(const struct trans *c, enum tlb_kind kind)
{
	unsigned ctx = c->key >> KEY_CTX_SHIFT & 3;

	return VOFF(mmu.tlb[0][0].e[0].tag) + (s32)((ctx * TLB_KINDS + (unsigned)kind) * sizeof(struct tlb_set));
}

/* Of R10, the bits in `mask` must equal the tag that the address in `reg` has in the TLB; its addend → R11. */
static void emit_tag(struct trans *c, unsigned k, unsigned reg, u32 mask, enum tlb_kind kind)
{
	s32 tlb = tlb_at(c, kind);
	struct emit *e = &c->e;

	emit_entry(c, reg);
	encode(e, ENC_W, 0, 0x81, 4, rm_reg(H_R10)); /* and r10, mask */
	e4(e, mask);
	encode(e, ENC_W, 0, 0x3b, H_R10, rm_sib(H_R15, H_R11, 0, tlb));
	slow_at(c, k, emit_jcc(e, 5, NULL));
	encode(e, ENC_W, 0, 0x8b, H_R11, rm_sib(H_R15, H_R11, 0, tlb + 8));
}

/* The address in `reg` must lie in the page that the TLB has, `size` bytes or more before its end; the addend → R11. */
static void emit_span(struct trans *c, unsigned k, unsigned reg, unsigned size, enum tlb_kind kind)
{
	s32 tlb = tlb_at(c, kind);
	struct emit *e = &c->e;

	emit_entry(c, reg);
	emit_mov(e, H_R10, reg);
	encode(e, ENC_W, 0, 0x2b, H_R10, rm_sib(H_R15, H_R11, 0, tlb)); /* sub r10, tag */
	encode(e, ENC_W, 0, 0x81, 7, rm_reg(H_R10));
	e4(e, (u32)PAGE_SIZE - (size ? size : 1));
	slow_at(c, k, emit_jcc(e, 7, NULL));
	encode(e, ENC_W, 0, 0x8b, H_R11, rm_sib(H_R15, H_R11, 0, tlb + 8));
}

/* The check of a group's leader; nothing for the others. False: instruction k is alone, and checks for itself. */
bool emit_group(struct trans *c, unsigned k)
{
	const struct group *g = c->group_of[k] ? &c->group[c->group_of[k] - 1] : NULL;

	if (c->split || !g || g->leader == g->last)
		return false;
	if (g->leader == k) {
		unsigned reg = reg_in(c, g->base, H_R8, true);

		if (g->lo) {
			encode(&c->e, ENC_W, 0, 0x8d, H_R8, rm_mem(reg, (s32)g->lo));
			reg = H_R8;
		}
		if (g->align) {
			unsigned over = (unsigned)(g->phase - g->lo) & (g->align - 1u), low = reg;

			if (over) {
				encode(&c->e, ENC_W, 0, 0x8d, H_R10, rm_mem(reg, (s32)over));
				low = H_R10;
			}
			encode(&c->e, ENC_REX, 0, 0xf6, 0, rm_reg(low)); /* test its low byte */
			e1(&c->e, (u8)(g->align - 1));
			slow_at(c, k, emit_jcc(&c->e, 5, NULL));
			c->slow[c->n_slow - 1].last = g->last;
		}
		emit_check_reg(c, k, reg, (unsigned)(g->hi - g->lo), g->write ? TLB_WRITE : TLB_READ);
		c->slow[c->n_slow - 1].last = g->last;
		/* Together, the copies could be older than what another vCPU has stored by then. */
		c->slow[c->n_slow - 1].go = NULL;
		/* A page is dirty when a store is certain, not before. */
		if (g->write && !g->leader_writes)
			c->slow[c->n_slow - 1].retry = NULL;
	}
	return true;
}

/* The memory operand, checked. Flags are given, unless the instruction is a follower. */
struct rm emit_operand(struct trans *c, unsigned k, unsigned size, unsigned align, enum tlb_kind kind)
{
	const struct insn *i = &c->insn[k];
	unsigned reg = H_R8;

	if (emit_group(c, k))
		return rm_sib(reg_in(c, i->base, H_R8, true), H_R11, 0, (s32)i->disp);
	if (i->asize == 8 && i->base < 16 && i->index == R_ZERO && !i->disp && i->seg != SEG_FS && i->seg != SEG_GS)
		reg = reg_in(c, i->base, H_R8, true);
	else
		emit_ea(c, k, size, kind);
	if (align > 1) {
		const u8 *retry = emit_rx(&c->e);

		/* What is aligned cannot cross a page; low bits make the tag differ. */
		emit_mov(&c->e, H_R10, reg);
		emit_tag(c, k, reg, (u32)-4096 | (align - 1), kind);
		/* A page is dirty when a store is certain: not before the address is known to be aligned. */
		if (kind != TLB_WRITE)
			slow_retry(c, retry, reg, size, kind);
	} else {
		emit_check_reg(c, k, reg, size, kind);
	}
	return rm_sib(reg, H_R11, 0, 0);
}
