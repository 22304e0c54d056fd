/*
 * branch.c: how a block is left: sites that are linked to other blocks, guarded jumps to other pages, the jump cache,
 * calls and returns, conditional branches.
 */
#include "trans.h"

void exit_at(struct trans *c, u8 *at, u64 rip, u8 live)
{
	struct exit *x = &c->exit[c->n_exit++];

	x->at = at;
	x->rip = rip;
	x->key = c->key;
	x->save = c->host && live;
	x->recipe = 0;
	x->poll = c->after_sti;
	x->lookup = false;
}

/* The site that jumps by `at` (writable view); unlinked it goes on to a stub out of line, which asks for the link. */
static void new_site(struct trans *c, u64 rip, u32 key, u8 *at, bool cross, bool poll)
{
	struct jit *j = c->j;
	struct site *s = &j->sites[j->n_sites];

	memset(s, 0, sizeof(*s));
	s->rip = rip;
	s->key = key;
	s->at = (u32)(at - j->mem.rw);
	s->from = meta_at(j, c->tb);
	s->poll = poll || cross || rip <= c->tb->rip;
	s->cross = cross;
	s->unlinked = (u32)(emit_rx(&j->cold) - j->mem.rx);
	patch_rel(at, j->cold.delta, emit_rx(&j->cold));
	if (cross) {
		patch_rel(at - SITE_CELL, j->cold.delta, (const u8 *)&j->front->cell[0]);
		patch_rel(at - 5, j->cold.delta, emit_rx(&j->cold));
	}
	static_assert(H_R8 >= 8, "SITE_INDEX: REX, opcode");
	emit_const(&j->cold, H_R8, j->n_sites);
	emit_jmp(&j->cold, 0xe9, j->leave_link);
	j->n_sites++;
}

/* What a jump to `rip` does: `at` is the displacement that leads here, or NULL when this code is fallen into. */
void emit_exit(struct trans *c, u8 *at, u64 rip, u32 key, bool poll)
{
	struct emit *e = &c->e;

	if (((rip ^ c->tb->rip) & PAGE_MASK) == 0) {
		new_site(c, rip, key, at ? at : emit_jmp(e, 0xe9, NULL), false, poll);
		return;
	}
	if (at)
		patch_rel(at, e->delta, emit_rx(e));
	static_assert(offsetof(struct vcpu, jt.gen) > 127, "SITE_GEN: a long displacement");
	encode(e, 0, 0, 0x8b, H_R8, rm_mem(H_R15, VOFF(jt.gen)));
	e1(e, 0x44); /* cmp r8d, [rip + cell] */
	e1(e, 0x3b);
	e1(e, 0x05);
	e4(e, 0);
	emit_jcc(e, 5, NULL);
	new_site(c, rip, key, emit_jmp(e, 0xe9, NULL), true, poll);
}

/* A look at the events: branches to `to` on condition `cc`, 5: there are some. Destroys the host's flags. */
u8 *emit_events(struct emit *e, unsigned cc, const u8 *to)
{
	e1(e, 0x41); /* cmp dword [r15 + events], 0 */
	e1(e, 0x83);
	e1(e, 0xbf);
	e4(e, (u32)VOFF(events));
	e1(e, 0);
	return emit_jcc(e, cc, to);
}

/* Jump to the address in R8 through the jump cache. */
void emit_jump_cache(struct jit *j, struct emit *e, bool user)
{
	emit_events(e, 5, j->leave_lookup);
	emit_mov(e, H_R10, H_R8);
	encode(e, ENC_W, 0, 0xc1, 5, rm_reg(H_R10)); /* shr r10, 12 */
	e1(e, PAGE_SHIFT);
	encode(e, ENC_W, 0, 0x31, H_R8, rm_reg(H_R10)); /* xor r10, r8 */
	encode(e, 0, 0, 0x81, 4, rm_reg(H_R10));        /* and r10d, JC_SIZE - 1 */
	e4(e, JC_SIZE - 1);
	encode(e, 0, 0, 0xc1, 4, rm_reg(H_R10)); /* shl r10d, 5 */
	e1(e, 5);
	emit_lea_rip(e, H_R11, j->front->jc);
	encode(e, ENC_W, 0, 0x01, H_R11, rm_reg(H_R10)); /* add r10, r11 */
	emit_load(e, H_R11, H_R15, VOFF(jt.key));
	encode(e, ENC_W, 0, 0x31, H_R8, rm_reg(H_R11));     /* xor r11, r8 */
	encode(e, ENC_W, 0, 0x3b, H_R11, rm_mem(H_R10, 0)); /* cmp r11, [r10] */
	emit_jcc(e, 5, j->leave_lookup);
	emit_load(e, H_R11, H_R10, 16); /* does its page's guard hold? */
	encode(e, 0, 0, 0x8b, H_R11, rm_mem(H_R11, 0));
	encode(e, 0, 0, 0x3b, H_R11, rm_mem(H_R15, VOFF(jt.gen[0]) + 4 * user));
	emit_jcc(e, 5, j->leave_lookup);
	encode(e, 0, 0, 0xff, 4, rm_mem(H_R10, 8)); /* jmp [r10 + 8] */
}

/* R8, the target of an indirect branch, must be canonical; else the handler raises #GP. */
static void emit_canonical(struct trans *c, unsigned k)
{
	struct emit *e = &c->e;

	emit_mov(e, H_R10, H_R8);
	encode(e, ENC_W, 0, 0xc1, 4, rm_reg(H_R10)); /* shl r10, 16 */
	e1(e, 16);
	encode(e, ENC_W, 0, 0xc1, 7, rm_reg(H_R10)); /* sar r10, 16 */
	e1(e, 16);
	encode(e, ENC_W, 0, 0x39, H_R8, rm_reg(H_R10));
	slow_at(c, k, emit_jcc(e, 5, NULL));
}

void emit_target(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	struct rm from = rm_guest();

	if (i->op[0].kind == OPK_MEM) {
		emit_ea(c, k, i->osize, TLB_READ);
		emit_check(c, k, i->osize, TLB_READ);
	} else {
		from = rm_reg(reg_in(c, i->op[0].reg, H_R10, true));
	}
	if (c->key & KEY_64) {
		encode(&c->e, ENC_W, 0, 0x8b, H_R8, from);
		emit_canonical(c, k);
	} else {
		segment_load_target(c, k, from, i->osize);
	}
}

/* Stores the return address. The host stack must have room for one more frame. */
static void emit_call_push(struct trans *c, unsigned k, u64 ret)
{
	struct emit *e = &c->e;
	bool grouped = emit_group(c, k);
	struct rm to = grouped ? rm_sib(H_R14, H_R11, 0, -8) : rm_guest();
	unsigned size = c->insn[k].osize;
	u8 *at;

	if (c->key & KEY_SEG)
		segment_push_check(c, k, size);
	else if (!grouped)
		emit_push_check(c, k);
	if (!(c->key & KEY_64)) {
		segment_store_imm(c, size, (u32)rip_of(c, ret));
	} else if (is_s32((s64)ret)) {
		encode(e, ENC_W, 0, 0xc7, 0, to);
		emit_rip4(e, ret);
	} else {
		emit_rip(e, H_R10, ret);
		encode(e, ENC_W, 0, 0x89, H_R10, to);
	}
	if (c->key & KEY_SEG)
		segment_set_sp(c, H_R14, -(s32)size);
	else
		encode(e, wflag(c), 0, 0x8d, H_R14, rm_mem(H_R14, -(s32)word(c)));
	encode(e, ENC_W, 0, 0x3b, H_RSP, rm_mem(H_R15, VOFF(jt.sp_low)));
	at = emit_jcc(e, 2, NULL);
	c->deep_at = at;
	c->deep_back = emit_rx(e);
}

/* Where the callee's RET comes back: R8 is where the guest goes. */
static void emit_landing(struct trans *c, u64 ret)
{
	struct emit *e = &c->e;

	if (is_s32((s64)ret)) {
		encode(e, ENC_W, 0, 0x81, 7, rm_reg(H_R8));
		emit_rip4(e, ret);
	} else {
		emit_rip(e, H_R10, ret);
		encode(e, ENC_W, 0, 0x39, H_R10, rm_reg(H_R8));
	}
	emit_jcc(e, 5, c->j->ret_miss);
	emit_exit(c, NULL, ret, c->key, false);
}

void emit_call(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	u64 ret = wrap(c, c->rip[k] + i->len), to = target_of(c, i, ret);
	u8 *at;

	flags_give(c, k);
	emit_call_push(c, k, ret);
	exit_recipe(c, k);
	at = emit_jmp(&c->e, 0xe8, NULL);
	emit_landing(c, ret);
	exit_at(c, at, to, 0);
}

void emit_calli(struct trans *c, unsigned k)
{
	u64 ret = wrap(c, c->rip[k] + c->insn[k].len);
	struct emit *e = &c->e;
	u8 *at;

	flags_give(c, k);
	emit_target(c, k);
	emit_store(e, H_R15, VOFF(jt.tmp), H_R8);
	emit_call_push(c, k, ret);
	emit_load(e, H_R8, H_R15, VOFF(jt.tmp));
	at = emit_jmp(e, 0xe8, NULL);
	emit_landing(c, ret);
	patch_rel(at, e->delta, emit_rx(e));
	emit_jump_cache(c->j, e, c->key & KEY_USER);
}

void emit_ret(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	struct emit *e = &c->e;

	flags_give(c, k);
	if (c->key & KEY_SEG) {
		segment_ret(c, k);
		emit_index(e, H_R11, call_of(c, k));
		e1(e, 0xc3);
		return;
	}
	if (emit_group(c, k)) {
		encode(e, ENC_W, 0, 0x8b, H_R8, rm_sib(H_R14, H_R11, 0, 0));
	} else if (c->key & KEY_64) {
		emit_check_reg(c, k, H_R14, 8, TLB_READ);
		encode(e, ENC_W, 0, 0x8b, H_R8, rm_sib(H_R14, H_R11, 0, 0));
	} else {
		encode(e, wflag(c), 0, 0x89, H_R14, rm_reg(H_R8));
		emit_check(c, k, word(c), TLB_READ);
		encode(e, wflag(c), 0, 0x8b, H_R8, rm_guest());
	}
	encode(e, wflag(c), 0, 0x8d, H_R14, rm_mem(H_R14, (s32)(word(c) + (u16)i->imm)));
	emit_index(e, H_R11, call_of(c, k));
	e1(e, 0xc3);
}

/* A branch to the block's own beginning, where its look at the vector registers (vec_begin()) need not be repeated:
 * they are where they were there. Blocks with x87 or MMX have no such way in. */
static bool loops(const struct trans *c, unsigned k, u64 to)
{
	return c->loop && to == c->tb->rip && c->vec && !c->after_sti && !(c->host && c->look_taken[k]);
}

static void emit_loop(struct trans *c, unsigned k, u64 to)
{
	struct emit *e = &c->e;
	u8 *over = emit_jcc(e, (c->insn[k].opcode & 15) ^ 1, NULL);

	if (c->live_out[k] && !c->exact && c->recipe_exit[k])
		put_recipe(c, c->recipe_exit[k], &c->carried[k]);
	emit_events(e, 4, c->loop);
	exit_at(c, emit_jmp(e, 0xe9, NULL), to, 0);
	c->exit[c->n_exit - 1].lookup = true;
	patch_rel(over, e->delta, emit_rx(e));
}

void emit_jcc_insn(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	u64 to = target_of(c, i, wrap(c, c->rip[k] + i->len));

	flags_want(c, k);
	/* Where jt.flags matters behind it, the recipe waits until the branch is taken. */
	if (!c->live_out[k])
		exit_recipe(c, k);
	if (loops(c, k, to)) {
		emit_loop(c, k, to);
		return;
	}
	exit_at(c, emit_jcc(&c->e, i->opcode & 15, NULL), to, c->look_taken[k]);
	if (c->live_out[k] && !c->exact) {
		c->exit[c->n_exit - 1].recipe = c->recipe_exit[k];
		c->exit[c->n_exit - 1].id = (u8)k;
	}
}

/* LOOP, JCXZ: counting destroys the flags. */
void emit_count(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	unsigned f = i->asize == 8 ? ENC_W : i->asize == 2 ? ENC_66 : 0;
	bool loop = i->mnemonic == ZYDIS_MNEMONIC_LOOP;

	flags_give(c, k);
	if (!c->live_out[k])
		exit_recipe(c, k);
	if (loop)
		encode(&c->e, f, 0, 0xff, 1, rm_reg(H_RCX)); /* dec */
	else
		encode(&c->e, f, 0, 0x85, H_RCX, rm_reg(H_RCX)); /* test */
	exit_at(c, emit_jcc(&c->e, loop ? 5 : 4, NULL), target_of(c, i, wrap(c, c->rip[k] + i->len)), 0);
}
