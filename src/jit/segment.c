/*
 * segment.c: stacks and branches of code whose segments are not all flat (KEY_SEG): real and virtual-8086 mode, 16-bit
 * code, 32-bit code with bases and limits.
 *
 * Inside the translator such code has linear addresses: tb->rip, the targets of links and of the jump cache. The base
 * and the limit of CS are part of the block's key and so constants; RIP, which counts from the base, appears where the
 * guest can see it (return addresses, indirect targets), and where C code runs. An address beyond the limit leads to
 * the dispatcher or a handler, which raise #GP.
 */
#include "trans.h"

/* RIP of the linear address `lin`. */
u64 rip_of(const struct trans *c, u64 lin)
{
	return c->key & KEY_64 ? lin : (u32)(lin - c->cs.base);
}

/* May an instruction begin there? */
static bool in_limit(const struct trans *c, u64 lin)
{
	return c->key & KEY_64 ? is_canonical(lin) : rip_of(c, lin) <= c->cs.limit;
}

/* How many code bytes there are from `lin` on, before CS ends. */
u64 limit_left(const struct trans *c, u64 lin)
{
	u64 rip = rip_of(c, lin);

	if (c->key & KEY_64)
		return ~0ull;
	return rip <= c->cs.limit ? c->cs.limit - rip + 1 : 0;
}

/* Linear target of the relative branch `i` that ends at `next`: RIP wraps at the operand's size. */
u64 target_of(const struct trans *c, const struct insn *i, u64 next)
{
	u64 to;

	if (c->key & KEY_64)
		return next + i->imm;
	to = rip_of(c, next) + i->imm;
	return (u32)(c->cs.base + (i->osize == 2 ? (u16)to : (u32)to));
}

/* A branch whose target its handler must refuse. */
bool goes_astray(const struct trans *c, const struct insn *i, const struct nat *n, u64 next)
{
	return nat_is_relative(n) && !in_limit(c, target_of(c, i, next));
}

/* ---- the stack -------------------------------------------------------------------------------------------------- */

static unsigned size_flag(unsigned size)
{
	return size == 2 ? ENC_66 : 0;
}

/* R8 = reg + delta, as the stack pointer's width wraps it. */
static void emit_sp(struct trans *c, unsigned reg, s32 delta)
{
	struct emit *e = &c->e;

	if (delta) {
		encode(e, 0, 0, 0x8d, H_R8, rm_mem(reg, delta));
		reg = H_R8;
	}
	if (c->key & KEY_SP16)
		encode(e, 0, 1, 0xb7, H_R8, rm_reg(reg)); /* movzx r8d, reg */
	else if (reg != H_R8)
		encode(e, 0, 0, 0x89, reg, rm_reg(H_R8));
}

/* The stack pointer becomes reg + delta; a 16-bit one leaves the upper half alone. */
void segment_set_sp(struct trans *c, unsigned reg, s32 delta)
{
	encode(&c->e, c->key & KEY_SP16 ? ENC_66 : 0, 0, 0x8d, H_R14, rm_mem(reg, delta));
}

/* R8 + R11 = where `size` bytes are pushed. */
void segment_push_check(struct trans *c, unsigned k, unsigned size)
{
	emit_sp(c, H_R14, -(s32)size);
	emit_segment(c, k, SEG_SS, size, TLB_WRITE);
	emit_check(c, k, size, TLB_WRITE);
}

/* R8 + R11 = what `reg`, a stack pointer, points to. */
static void emit_pop_check(struct trans *c, unsigned k, unsigned reg, unsigned size)
{
	emit_sp(c, reg, 0);
	emit_segment(c, k, SEG_SS, size, TLB_READ);
	emit_check(c, k, size, TLB_READ);
}

void segment_store_imm(struct trans *c, unsigned size, u32 imm)
{
	encode(&c->e, size_flag(size), 0, 0xc7, 0, rm_guest());
	if (size == 2)
		e2(&c->e, (u16)imm);
	else
		e4(&c->e, imm);
}

void segment_push(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	const struct operand *o = &i->op[0];
	unsigned size = i->osize;
	struct emit *e = &c->e;

	flags_give(c, k);
	if (o->kind == OPK_MEM) {
		emit_ea(c, k, size, TLB_READ);
		emit_check(c, k, size, TLB_READ);
		encode(e, size_flag(size), 0, 0x8b, H_R10, rm_guest());
		emit_store(e, H_R15, VOFF(jt.tmp), H_R10);
	}
	segment_push_check(c, k, size);
	if (o->kind == OPK_IMM) {
		segment_store_imm(c, size, (u32)i->imm);
	} else {
		unsigned reg = H_R10;

		if (o->kind == OPK_MEM)
			emit_load(e, H_R10, H_R15, VOFF(jt.tmp));
		else if (o->kind == OPK_SREG)
			encode(e, 0, 1, 0xb7, H_R10,
			       rm_mem(H_R15, VOFF(seg[0].sel) + (s32)(o->reg * sizeof(struct seg))));
		else
			reg = reg_in(c, o->reg, H_R10, true);
		encode(e, size_flag(size), 0, 0x89, reg, rm_guest());
	}
	segment_set_sp(c, H_R14, -(s32)size);
}

void segment_pop(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	unsigned size = i->osize, reg = reg_in(c, i->op[0].reg, H_R10, false);

	flags_give(c, k);
	emit_pop_check(c, k, H_R14, size);
	encode(&c->e, size_flag(size), 0, 0x8b, reg, rm_guest());
	if (reg != H_R14)
		segment_set_sp(c, H_R14, (s32)size);
}

void segment_leave(struct trans *c, unsigned k)
{
	unsigned size = c->insn[k].osize;

	flags_give(c, k);
	emit_pop_check(c, k, H_RBP, size);
	segment_set_sp(c, H_RBP, (s32)size);
	encode(&c->e, size_flag(size), 0, 0x8b, H_RBP, rm_guest());
}

/* ---- branches --------------------------------------------------------------------------------------------------- */

/* R8, a RIP of `size` bytes that an indirect branch goes to, becomes linear; beyond the limit the handler raises #GP.
 */
static void emit_target_lin(struct trans *c, unsigned k, unsigned size)
{
	struct emit *e = &c->e;

	if (c->cs.limit < (size == 2 ? 0xffff : 0xffffffffu)) {
		encode(e, 0, 0, 0x81, 7, rm_reg(H_R8)); /* cmp r8d, limit */
		e4(e, c->cs.limit);
		slow_at(c, k, emit_jcc(e, 7, NULL));
	}
	if (c->cs.base)
		encode(e, 0, 0, 0x8d, H_R8, rm_mem(H_R8, (s32)c->cs.base)); /* lea r8d, [r8 + base] */
}

/* R8 = the register, or the word at R8 + R11, as a RIP. */
void segment_load_target(struct trans *c, unsigned k, struct rm from, unsigned size)
{
	if (size == 2)
		encode(&c->e, 0, 1, 0xb7, H_R8, from);
	else
		encode(&c->e, 0, 0, 0x8b, H_R8, from);
	emit_target_lin(c, k, size);
}

void segment_ret(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];

	emit_pop_check(c, k, H_R14, i->osize);
	segment_load_target(c, k, rm_guest(), i->osize);
	segment_set_sp(c, H_R14, (s32)i->osize + (u16)i->imm);
}
