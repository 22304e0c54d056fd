/*
 * trans.c: guest instructions → host instructions, one block at a time.
 *
 * A block is decoded first (decode_block), then the liveness of the arithmetic flags is computed backwards, looking a
 * few instructions beyond its exits (look), then every instruction is emitted in order (emit_insn), and last what lies
 * out of line: slow paths of memory accesses, exits that save flags, guards of jumps to other pages.
 *
 * Flags: c->host says that the host's flags are the guest's; otherwise jt.flags holds them (or nobody will read them).
 * A TLB check destroys the host's, so they are saved before it when they are live. For those that are not there is a
 * recipe, wherever somebody may look (recipe.c).
 */
#include "../base/bug.h"
#include "trans.h"

const u8 host_of[16] = {H_RAX,  H_RCX, H_RDX,  H_RBX,  H_R14, H_RBP, H_RSI,  H_RDI,
                        H_NONE, H_R9,  H_NONE, H_NONE, H_R12, H_R13, H_NONE, H_NONE};

/* ---- registers and flags ---------------------------------------------------------------------------------------- */

/* Host register of guest register g; one that lives in memory goes through `scratch`, loaded when `load`. */
unsigned reg_in(struct trans *c, unsigned g, unsigned scratch, bool load)
{
	if (host_of[g] != H_NONE)
		return host_of[g];
	if (load)
		emit_load(&c->e, scratch, H_R15, (s32)(g * 8));
	return scratch;
}

void reg_out(struct trans *c, unsigned g, unsigned scratch)
{
	if (host_of[g] == H_NONE)
		emit_store(&c->e, H_R15, (s32)(g * 8), scratch);
}

/* Guest flags: host → jt.flags. Touches R10 and no flag. */
void flags_save(struct emit *e)
{
	emit_mov(e, H_R10, H_RAX);
	e1(e, 0x9f);                             /* lahf */
	encode(e, 0, 1, 0x90, 0, rm_reg(H_RAX)); /* seto al */
	encode(e, ENC_66, 0, 0x89, H_RAX, rm_mem(H_R15, VOFF(jt.flags)));
	emit_mov(e, H_RAX, H_R10);
}

/* jt.flags → host. Touches R10. */
void flags_restore(struct emit *e)
{
	emit_mov(e, H_R10, H_RAX);
	encode(e, 0, 1, 0xb7, H_RAX, rm_mem(H_R15, VOFF(jt.flags))); /* movzx eax, word */
	e1(e, 0x04);                                                 /* add al, 0x7f */
	e1(e, 0x7f);
	e1(e, 0x9e); /* sahf */
	emit_mov(e, H_RAX, H_R10);
}

/* The guest's flags, which are the host's, are also in jt.flags from now on. */
static void flags_keep(struct trans *c)
{
	flags_save(&c->e);
	c->exact = c->real = true;
}

/* A recipe in jt.flags becomes flags: out of line. */
static void flags_realize(struct trans *c)
{
	struct fixup *f = &c->fixup[c->n_fixup++];
	struct emit *e = &c->e;

	encode(e, 0, 0, 0xf6, 0, rm_mem(H_R15, VOFF(jt.flags))); /* test byte, FLAGS_RECIPE */
	e1(e, FLAGS_RECIPE);
	f->at = emit_jcc(e, 5, NULL);
	f->back = emit_rx(e);
	f->vec = c->vec;
}

/* Flags are about to be destroyed by us. */
void flags_give(struct trans *c, unsigned k)
{
	if (c->host && c->live_in[k])
		flags_keep(c);
	c->host = false;
}

/* Instruction k needs, or must keep parts of, the guest's flags in the host's. */
void flags_want(struct trans *c, unsigned k)
{
	const struct nat *n = &c->nat[k];

	if (!c->host && (n->fr || (n->fmod && (c->live_out[k] & ~n->fw)))) {
		if (!c->real)
			flags_realize(c);
		flags_restore(&c->e);
		c->host = c->exact = c->real = true;
	}
	if (n->fmod) {
		c->host = true;
		c->exact = false;
		c->stored = 0;
	}
}

/* At exit `id`, for which there is a recipe: into jt.flags, when it is not good as it is. */
void exit_recipe(struct trans *c, unsigned id)
{
	u32 recipe = c->recipe_exit[id];

	if (!recipe || c->exact || c->stored == recipe)
		return;
	put_recipe(c, recipe, &c->carried[id]);
	c->stored = c->carried[id].n ? 0 : recipe;
	c->real = false;
}

/* The same for the conditional branch behind instruction k, which is about to write the flags: a store between the two
 * would keep the host from fusing them. */
static void exit_recipe_early(struct trans *c, unsigned k)
{
	if (k + 1 < c->n && c->nat[k].fmod && c->nat[k + 1].cls == K_JCC && !c->live_out[k + 1] && !c->carried[k + 1].n)
		exit_recipe(c, k + 1);
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

u32 call_of(struct trans *c, unsigned k)
{
	struct jit *j = c->j;
	struct call *call;

	if (c->call[k])
		return c->call[k] - 1;
	call = &j->calls[j->n_calls];
	call->tb = meta_at(j, c->tb);
	call->off = (u16)(c->rip[k] - c->tb->rip);
	call->sys = c->sys[k];
	call->group = is_grouped(c, k) && !is_follower(c, k) && !straddles(c, k);
	call->recipe = c->recipe_in[k];
	call->insn = 0;
	call->kept = false;
	call->light = c->nat[k].cls == K_LIGHT ? light_of(&c->insn[k]) : LIGHT_NONE;
	if (nat_is_called(&c->nat[k])) {
		struct insn *i = meta_alloc(j, sizeof(*i));

		*i = c->insn[k];
		call->insn = meta_at(j, i);
		call->kept = true;
	}
	c->call[k] = ++j->n_calls;
	return c->call[k] - 1;
}

static void emit_imm(struct trans *c, const struct insn *i)
{
	if (!i->off_imm)
		return;
	for (unsigned n = i->off_imm; n < i->len; n++)
		e1(&c->e, i->raw[n]);
}

/* ---- ModRM instructions ----------------------------------------------------------------------------------------- */

static unsigned rex_of(const struct insn *i, u32 key)
{
	u8 b = i->raw[i->raw_prefixes];

	return (key & KEY_64) && (b & 0xf0) == 0x40 ? b : 0;
}

static unsigned enc_flags(const struct insn *i, const struct nat *n)
{
	unsigned f = 0;

	if (n->size == 2)
		f |= ENC_66;
	if (n->size == 8)
		f |= ENC_W;
	if (i->flags & INSN_LOCK)
		f |= ENC_LOCK;
	if (i->mnemonic == ZYDIS_MNEMONIC_POPCNT || i->mnemonic == ZYDIS_MNEMONIC_TZCNT ||
	    i->mnemonic == ZYDIS_MNEMONIC_LZCNT || i->mnemonic == ZYDIS_MNEMONIC_ADOX)
		f |= ENC_F3;
	if (i->mnemonic == ZYDIS_MNEMONIC_ADCX)
		f |= ENC_66;
	if (i->mnemonic == ZYDIS_MNEMONIC_CRC32)
		f |= n->rm_size == 2 ? ENC_F2 | ENC_66 : ENC_F2;
	return f;
}

/* RORX: no flag changes. */
static void emit_rotate(struct emit *e, unsigned reg, u8 by)
{
	encode_vex(e, true, false, 3, 3, 0xf0, reg, 0, rm_reg(reg));
	e1(e, by);
}

static void emit_modrm_insn(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	const struct nat *n = &c->nat[k];
	struct emit *e = &c->e;
	unsigned rex = rex_of(i, c->key), f = enc_flags(i, n);
	unsigned greg = (i->modrm >> 3 & 7) | (rex & 4) << 1, grm = (i->modrm & 7) | (rex & 1) << 3;
	unsigned reg = greg;
	struct rm rm;

	if (n->digit)
		reg = i->modrm >> 3 & 7;
	if (i->flags & INSN_MEM) {
		if (!is_follower(c, k))
			flags_give(c, k);
		rm = emit_operand(c, k, n->rm_size, n->align, n->rm_w ? TLB_WRITE : TLB_READ);
		flags_want(c, k);
	} else {
		flags_want(c, k);
		rm = rm_reg(reg_in(c, grm, H_R11, n->rm_r || n->size < 4));
		if (n->rm_size == 1 && rm.reg >= 4 && rm.reg < 8)
			f |= ENC_REX;
	}
	if (n->high) {
		/* AH is where AL belongs: rotations without flags. */
		reg = greg & 3;
		emit_rotate(e, reg, 8);
	} else if (!n->digit) {
		reg = reg_in(c, greg, H_R10, n->reg_r || n->size < 4);
		if (n->size == 1 && reg >= 4 && reg < 8)
			f |= ENC_REX;
	}
	if (c->put[k].loaded) {
		encode(e, n->rm_size == 8 ? ENC_W : 0, n->rm_size < 4,
		       n->rm_size == 1   ? 0xb6
		       : n->rm_size == 2 ? 0xb7
		                         : 0x8b,
		       H_R8, rm);
		put_loaded(c, k);
		rm = rm_reg(H_R8);
	}
	exit_recipe_early(c, k);
	encode(e, f, i->map, i->opcode, reg, rm);
	emit_imm(c, i);
	if (n->high)
		emit_rotate(e, reg, 56);
	else if (n->reg_w && !n->digit)
		reg_out(c, greg, H_R10);
	if (n->rm_w && !(i->flags & INSN_MEM))
		reg_out(c, grm, H_R11);
}

static void emit_lea(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	struct emit *e = &c->e;
	unsigned dst = i->op[0].reg, hd = host_of[dst];
	bool base_ok = i->base == R_ZERO || (i->base < 16 && host_of[i->base] != H_NONE);
	bool index_ok = i->index == R_ZERO || host_of[i->index] != H_NONE;

	if (i->op[0].size >= 4 && hd != H_NONE && base_ok && index_ok && (i->base != R_ZERO || i->index != R_ZERO) &&
	    (i->asize == 8 || (i->asize == 4 && i->op[0].size == 4))) {
		encode(e, i->op[0].size == 8 ? ENC_W : 0, 0, 0x8d, hd,
		       rm_sib(i->base == R_ZERO ? H_NONE : host_of[i->base],
		              i->index == R_ZERO ? H_NONE : host_of[i->index], i->scale, (s32)i->disp));
		return;
	}
	emit_offset(c, k);
	hd = reg_in(c, dst, H_R10, i->op[0].size < 4);
	encode(e, i->op[0].size == 8 ? ENC_W : i->op[0].size == 2 ? ENC_66 : 0, 0, 0x89, H_R8, rm_reg(hd));
	reg_out(c, dst, H_R10);
}

static void emit_sreg(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	bool mem = i->flags & INSN_MEM;
	unsigned size = mem ? 2 : c->nat[k].size;
	struct emit *e = &c->e;
	struct rm rm;

	if (mem) {
		flags_give(c, k);
		rm = emit_operand(c, k, 2, 1, TLB_WRITE);
	} else {
		rm = rm_reg(reg_in(c, i->op[0].reg, H_R11, size < 4));
	}
	encode(e, 0, 1, 0xb7, H_R10, rm_mem(H_R15, VOFF(seg[0].sel) + (s32)(i->op[1].reg * sizeof(struct seg))));
	encode(e, size == 8 ? ENC_W : size == 2 ? ENC_66 : 0, 0, 0x89, H_R10, rm);
	if (!mem)
		reg_out(c, i->op[0].reg, H_R11);
}

/* ---- stack ------------------------------------------------------------------------------------------------------ */

/* R8 = the new stack pointer, checked for a store. */
void emit_push_check(struct trans *c, unsigned k)
{
	encode(&c->e, wflag(c), 0, 0x8d, H_R8, rm_mem(H_R14, -(s32)word(c)));
	emit_check(c, k, word(c), TLB_WRITE);
}

static void emit_push(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	struct emit *e = &c->e;

	if (c->key & KEY_SEG) {
		segment_push(c, k);
		return;
	}
	if (!is_follower(c, k))
		flags_give(c, k);
	if (emit_group(c, k)) {
		struct rm to = rm_sib(H_R14, H_R11, 0, -8);

		if (i->op[0].kind == OPK_IMM) {
			encode(e, ENC_W, 0, 0xc7, 0, to);
			e4(e, (u32)i->imm);
		} else {
			encode(e, ENC_W, 0, 0x89, reg_in(c, i->op[0].reg, H_R10, true), to);
		}
		encode(e, ENC_W, 0, 0x8d, H_R14, rm_mem(H_R14, -8));
		return;
	}
	if (i->op[0].kind == OPK_MEM) {
		emit_ea(c, k, word(c), TLB_READ);
		emit_check(c, k, word(c), TLB_READ);
		encode(e, wflag(c), 0, 0x8b, H_R10, rm_guest());
		emit_store(e, H_R15, VOFF(jt.tmp), H_R10);
	}
	emit_push_check(c, k);
	if (i->op[0].kind == OPK_IMM) {
		encode(e, wflag(c), 0, 0xc7, 0, rm_guest());
		e4(e, (u32)i->imm);
	} else if (i->op[0].kind == OPK_MEM) {
		emit_load(e, H_R10, H_R15, VOFF(jt.tmp));
		encode(e, wflag(c), 0, 0x89, H_R10, rm_guest());
	} else {
		encode(e, wflag(c), 0, 0x89, reg_in(c, i->op[0].reg, H_R10, true), rm_guest());
	}
	emit_mov(e, H_R14, H_R8);
}

static void emit_pop(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	struct emit *e = &c->e;
	unsigned hr, sp = H_R14;

	if (c->key & KEY_SEG) {
		segment_pop(c, k);
		return;
	}
	if (!is_follower(c, k))
		flags_give(c, k);
	if (emit_group(c, k)) {
		hr = reg_in(c, i->op[0].reg, H_R10, false);
		encode(e, ENC_W, 0, 0x8b, hr, rm_sib(H_R14, H_R11, 0, 0));
		reg_out(c, i->op[0].reg, H_R10);
		encode(e, ENC_W, 0, 0x8d, H_R14, rm_mem(H_R14, 8));
		return;
	}
	if (!(c->key & KEY_64)) {
		sp = H_R8;
		encode(e, 0, 0, 0x89, H_R14, rm_reg(H_R8));
	}
	emit_check_reg(c, k, sp, word(c), TLB_READ);
	hr = reg_in(c, i->op[0].reg, H_R10, false);
	encode(e, wflag(c), 0, 0x8b, hr, rm_sib(sp, H_R11, 0, 0));
	if (i->op[0].reg != R_RSP)
		encode(e, wflag(c), 0, 0x8d, H_R14, rm_mem(H_R14, (s32)word(c)));
	reg_out(c, i->op[0].reg, H_R10);
}

static void emit_leave(struct trans *c, unsigned k)
{
	struct emit *e = &c->e;

	if (c->key & KEY_SEG) {
		segment_leave(c, k);
		return;
	}
	flags_give(c, k);
	encode(e, wflag(c), 0, 0x89, H_RBP, rm_reg(H_R8));
	emit_check(c, k, word(c), TLB_READ);
	encode(e, wflag(c), 0, 0x8d, H_R14, rm_mem(H_R8, (s32)word(c)));
	encode(e, wflag(c), 0, 0x8b, H_RBP, rm_guest());
}

/* ---- bytes as they are ------------------------------------------------------------------------------------------- */

/* Bytes that mean the same in 64-bit code; but for those of 16-bit code whose operand size counts. */
static void emit_raw(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	struct emit *e = &c->e;
	unsigned b = 0;

	flags_want(c, k);
	if (c->key & KEY_16) {
		bool sized = i->map ? (i->opcode & 0xf6) == 0xb6 : i->opcode == 0x98 || i->opcode == 0x99;

		if (sized && i->osize == 2)
			e1(e, 0x66);
		for (; b < i->raw_prefixes; b++)
			if (i->raw[b] >= 0xf0)
				e1(e, i->raw[b]);
	}
	for (; b < i->len; b++)
		e1(e, i->raw[b]);
}

/* ---- one instruction -------------------------------------------------------------------------------------------- */

static void emit_called(struct trans *c, unsigned k, const u8 *stub)
{
	bool x87 = x87_seen_by(&c->insn[k]);
	struct emit *e = &c->e;

	if (c->host)
		flags_save(e);
	c->host = c->vec = false;
	c->x87.here &= !x87;
	c->x87.used = false;
	c->exact = c->real = true;
	c->stored = 0;
	emit_index(e, H_R8, call_of(c, k));
	emit_jmp(e, 0xe8, stub);
}

/* STAC, CLAC: where they change what data accesses see, the block ends and another key's goes on. */
static void emit_smap(struct trans *c, unsigned k)
{
	bool stac = c->insn[k].mnemonic == ZYDIS_MNEMONIC_STAC;
	struct emit *e = &c->e;

	flags_give(c, k);
	encode(e, 0, 0, 0x81, stac ? 1 : 4, rm_mem(H_R15, VOFF(rflags)));
	e4(e, stac ? (u32)FLAGS_AC : ~(u32)FLAGS_AC);
	if (!c->nat[k].ends)
		return;
	exit_recipe(c, k);
	if (stac) {
		encode(e, 0, 0, 0x80, 7, rm_mem(H_R15, VOFF(mmu.smap))); /* cmp byte, 0 */
		e1(e, 0);
		exit_at(c, emit_jcc(e, 4, NULL), c->end_rip, 0);
	}
	emit_ctx(c, stac ? TLB_SUPER_AC : TLB_SUPER);
	exit_at(c, emit_jmp(e, 0xe9, NULL), c->end_rip, 0);
	c->exit[c->n_exit - 1].key ^= 1u << KEY_CTX_SHIFT;
}

/* Behind the instruction that an STI shadows: an interrupt may come now. */
static void emit_poll(struct trans *c, unsigned k)
{
	struct emit *e = &c->e;

	x87_settle(c);
	if (c->host && c->live_out[k])
		flags_keep(c);
	c->host = false;
	exit_at(c, emit_events(e, 5, NULL), wrap(c, c->rip[k] + c->insn[k].len), 0);
	c->exit[c->n_exit - 1].lookup = true;
	if (!c->exact) {
		c->exit[c->n_exit - 1].recipe = c->recipe_exit[EXIT_POLL(k)];
		c->exit[c->n_exit - 1].id = EXIT_POLL(k);
	}
}

static void emit_rflags(struct trans *c, unsigned k, u8 digit, u32 imm)
{
	flags_give(c, k);
	encode(&c->e, 0, 0, 0x81, digit, rm_mem(H_R15, VOFF(rflags)));
	e4(&c->e, imm);
}

static void emit_insn(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	const struct nat *n = &c->nat[k];
	struct emit *e = &c->e;
	unsigned hr;

	put_before(c, k);
	if (n->ends || nat_is_called(n) || nat_is_relative(n) || n->cls == K_CALLI || n->cls == K_RET)
		x87_settle(c);
	switch (n->cls) {
	case K_MODRM:
		emit_modrm_insn(c, k);
		break;
	case K_RAW:
		emit_raw(c, k);
		break;
	case K_NOP:
		break;
	case K_MOVI:
		hr = reg_in(c, i->op[0].reg, H_R10, n->size < 4);
		if (n->size == 1) {
			encode(e, ENC_REX, 0, 0xc6, 0, rm_reg(hr));
			e1(e, (u8)i->imm);
		} else if (n->size == 2) {
			encode(e, ENC_66, 0, 0xc7, 0, rm_reg(hr));
			e2(e, (u16)i->imm);
		} else {
			emit_const(e, hr, n->size == 4 ? (u32)i->imm : i->imm);
		}
		reg_out(c, i->op[0].reg, H_R10);
		break;
	case K_ACC:
		flags_want(c, k);
		exit_recipe_early(c, k);
		if (n->size == 2)
			e1(e, 0x66);
		if (n->size == 8)
			e1(e, 0x48);
		e1(e, i->opcode);
		emit_imm(c, i);
		break;
	case K_MOFFS:
		flags_give(c, k);
		emit_ea(c, k, n->size, n->rm_w ? TLB_WRITE : TLB_READ);
		emit_check(c, k, n->size, n->rm_w ? TLB_WRITE : TLB_READ);
		encode(e,
		       n->size == 2   ? ENC_66
		       : n->size == 8 ? ENC_W
		                      : 0,
		       0, (u8)((n->rm_w ? 0x88 : 0x8a) | (i->opcode & 1)), H_RAX, rm_guest());
		break;
	case K_DIV:
		div_emit(c, k);
		break;
	case K_LEA:
		emit_lea(c, k);
		break;
	case K_SREG:
		emit_sreg(c, k);
		break;
	case K_PUSH:
		emit_push(c, k);
		break;
	case K_POP:
		emit_pop(c, k);
		break;
	case K_LEAVE:
		emit_leave(c, k);
		break;
	case K_XCHGA:
		hr = (unsigned)((i->opcode & 7) | (rex_of(i, c->key) & 1) << 3);
		encode(e,
		       n->size == 2   ? ENC_66
		       : n->size == 8 ? ENC_W
		                      : 0,
		       0, 0x87, H_RAX, rm_reg(reg_in(c, hr, H_R10, true)));
		reg_out(c, hr, H_R10);
		break;
	case K_BSWAP:
		hr = reg_in(c, i->op[0].reg, H_R10, true);
		e1(e, (u8)(0x40 | (n->size == 8 ? 8 : 0) | hr >> 3));
		e1(e, 0x0f);
		e1(e, (u8)(0xc8 | (hr & 7)));
		reg_out(c, i->op[0].reg, H_R10);
		break;
	case K_INCDEC:
		flags_want(c, k);
		exit_recipe_early(c, k);
		encode(e, n->size == 2 ? ENC_66 : 0, 0, 0xff, i->opcode >> 3 & 1, rm_reg(host_of[i->opcode & 7]));
		break;
	case K_JCC:
		emit_jcc_insn(c, k);
		break;
	case K_COUNT:
		emit_count(c, k);
		break;
	case K_JMP:
		exit_recipe(c, k);
		exit_at(c, emit_jmp(e, 0xe9, NULL), target_of(c, i, wrap(c, c->rip[k] + i->len)), c->live_out[k]);
		break;
	case K_JMPI:
		flags_give(c, k);
		emit_target(c, k);
		emit_jump_cache(c->j, e, c->key & KEY_USER);
		break;
	case K_CALL:
		emit_call(c, k);
		break;
	case K_CALLI:
		emit_calli(c, k);
		break;
	case K_RET:
		emit_ret(c, k);
		break;
	case K_CLI:
		emit_rflags(c, k, 4, ~(u32)FLAGS_IF);
		break;
	case K_STI:
		/* Events are looked at between blocks, and another instruction of this block follows: the shadow. */
		emit_rflags(c, k, 1, (u32)FLAGS_IF);
		emit_release(e);
		break;
	case K_DF:
		if (i->mnemonic == ZYDIS_MNEMONIC_STD)
			emit_rflags(c, k, 1, (u32)FLAGS_DF);
		else
			emit_rflags(c, k, 4, ~(u32)FLAGS_DF);
		break;
	case K_PUSHF:
		emit_pushf(c, k);
		break;
	case K_SWAPGS:
		emit_swapgs(c);
		break;
	case K_TSC:
		emit_tsc(c, k);
		break;
	case K_BITMEM:
		emit_bitmem(c, k);
		break;
	case K_STRING_ONCE:
		emit_string_once(c, k);
		break;
	case K_STRING:
		emit_string(c, k);
		break;
	case K_BMI:
		emit_bmi(c, k);
		break;
	case K_SSE:
	case K_VEX:
		vec_emit(c, k);
		break;
	case K_AC:
		emit_smap(c, k);
		break;
	case K_TABLE:
		emit_table(c, k);
		break;
	case K_FROM_CR:
		emit_from_cr(c, k);
		break;
	case K_RDBASE:
		emit_rdbase(c, k);
		break;
	case K_LIGHT:
		/* The operand is not among what the stub stores. */
		if (i->op[0].kind == OPK_GPR && host_of[i->op[0].reg] != H_NONE)
			emit_store(e, H_R15, i->op[0].reg * 8, host_of[i->op[0].reg]);
		emit_called(c, k, c->j->light_stub);
		break;
	case K_X87:
		x87_emit(c, k);
		break;
	case K_MMX:
		mmx_emit(c, k);
		break;
	default:
		emit_called(c, k, x87_seen_by(i) ? c->j->call_stub_x87 : c->j->call_stub);
		c->j->n.handler_insns++;
	}
	put_after(c, k);
}

/* ---- the block -------------------------------------------------------------------------------------------------- */

/* The accesses of a group again, each with its own check; a CALL or RET is left to its handler. */
static unsigned emit_split(struct trans *c, const struct slow *s)
{
	unsigned k = s->k, first;

	c->split = true;
	c->host = c->exact = c->real = false;
	c->stored = 0;
	c->vec = s->vec;
	c->x87 = s->x87;
	for (; k <= s->last && !c->nat[k].ends; k++) {
		first = c->n_slow;
		emit_insn(c, k);
		for (unsigned n = first; n < c->n_slow; n++) {
			c->slow[n].resume = emit_rx(&c->e);
			c->slow[n].host_after = c->host && c->live_out[k];
			c->slow[n].vec_after = c->vec;
			c->slow[n].x87_after = c->x87.here;
		}
	}
	x87_settle(c);
	c->split = false;
	return k;
}

static void emit_slow(struct trans *c, struct slow s)
{
	bool host = s.resume ? s.host_after : c->host_after[s.last];
	bool vec = s.resume ? s.vec_after : c->vec_after[s.last], is_host = false;
	bool x87 = s.resume ? s.x87_after : c->x87_after[s.last];
	struct emit *e = &c->e;
	unsigned k = s.k;

	patch_rel(s.at, e->delta, emit_rx(e));
	if (s.retry) {
		emit_mov(e, H_R11, s.reg);
		encode(e, 0, 0, 0xc7, 0, rm_reg(H_R10));
		e4(e, s.size | (u32)s.kind << 16);
		emit_jmp(e, 0xe8, c->j->fill_stub);
		emit_jcc(e, 4, s.retry);
		if (s.go)
			emit_jcc(e, 7, s.go);
	}
	if (s.last > k && straddles(c, k)) {
		k = emit_split(c, &s);
		is_host = c->host && c->live_out[k - 1];
		vec &= !c->vec;
		x87 &= !c->x87.here;
		if (is_host && (k <= s.last || !host)) {
			flags_save(e);
			is_host = false;
		}
	} else
		x87_put_pointers(c, s.x87.last, s.x87.seg);
	for (; k <= s.last; k++) {
		put_before(c, k);
		emit_index(e, H_R8, call_of(c, k));
		emit_jmp(e, 0xe8, x87_seen_by(&c->insn[k]) ? c->j->call_stub_x87 : c->j->call_stub);
		put_after(c, k);
		put_spoilt(c, k);
	}
	if (c->nat[s.last].ends) /* a branch never comes back here */
		return;
	if (vec)
		emit_jmp(e, 0xe8, c->j->vec_stub[c->wants_vec]);
	if (x87)
		emit_jmp(e, 0xe8, c->j->x87_load);
	if (host && !is_host)
		emit_jmp(e, 0xe8, c->j->flags_stub);
	emit_jmp(e, 0xe9, s.resume ? s.resume : c->resume[s.last]);
}

static void emit_out_of_line(struct trans *c)
{
	struct emit *e = &c->e, hot = *e;

	*e = c->j->cold;
	for (unsigned n = 0; n < c->n_slow; n++)
		emit_slow(c, c->slow[n]);
	for (unsigned n = 0; n < c->n_fixup; n++) {
		struct fixup *f = &c->fixup[n];

		patch_rel(f->at, e->delta, emit_rx(e));
		emit_jmp(e, 0xe8, c->j->recipe_stub);
		if (f->vec)
			emit_jmp(e, 0xe8, c->j->vec_stub[c->wants_vec]);
		emit_jmp(e, 0xe9, f->back);
	}
	if (c->deep_at) {
		patch_rel(c->deep_at, e->delta, emit_rx(e));
		emit_ret_base(c->j, e);
		emit_jmp(e, 0xe9, c->deep_back);
	}
	c->j->cold = *e;
	*e = hot;
	for (unsigned n = 0; n < c->n_exit; n++) {
		struct exit *x = &c->exit[n];

		if (x->lookup || x->save || x->recipe) {
			patch_rel(x->at, e->delta, emit_rx(e));
			if (x->save)
				flags_save(e);
			else if (x->recipe)
				put_recipe(c, x->recipe, &c->carried[x->id]);
			x->at = NULL;
		}
		if (x->lookup) {
			emit_rip(e, H_R8, x->rip);
			emit_jmp(e, 0xe9, c->j->leave_lookup);
			continue;
		}
		emit_exit(c, x->at, x->rip, x->key, x->poll);
	}
}

/* The bottom frame of the host stack: RETs that find no other come to ret_miss. */
void emit_ret_base(struct jit *j, struct emit *e)
{
	emit_load(e, H_RSP, H_R15, VOFF(jt.sp));
	emit_lea_rip(e, H_R10, j->ret_miss);
	e1(e, 0x41); /* push r10 */
	e1(e, 0x52);
}

/* The memory that a block takes is there when it is touched. */
void code_ahead(struct jit *j)
{
	ahead_of(&j->hot_rw, j->e.p, EMIT_ROOM / 4);
	ahead_of(&j->hot_rx, j->e.p + j->e.delta, EMIT_ROOM / 4);
	ahead_of(&j->cold_rw, j->cold.p, EMIT_ROOM / 4);
	ahead_of(&j->cold_rx, j->cold.p + j->e.delta, EMIT_ROOM / 4);
	ahead_of(&j->meta_ahead, j->meta + j->meta_used, 4096);
	ahead_of(&j->calls_ahead, (u8 *)&j->calls[j->n_calls], 4096);
	ahead_of(&j->sites_ahead, (u8 *)&j->sites[j->n_sites], 4096);
}

struct tb *translate(struct jit *j, u64 rip, const u8 *hva, u32 key, struct jpage *page)
{
	struct trans *c = j->trans;
	struct tb *tb = meta_alloc(j, sizeof(*tb));
	struct emit *e = &c->e;
	u32 first_call = j->n_calls, first_site = j->n_sites;
	unsigned total = 0;
	u8 *bytes, *begin, *cold, *poll;

	code_ahead(j);
	memset(c, 0, offsetof(struct trans, insn));
	memset(tb, 0, sizeof(*tb));
	c->j = j;
	c->tb = tb;
	c->key = key;
	c->cs = j->cs[key >> KEY_CS_SHIFT];
	c->page = page;
	c->hva_page = hva - (rip & ~PAGE_MASK);
	c->e = j->e;
	tb->rip = rip;
	tb->hva = hva;
	tb->key = key;
	decode_block(c);
	if (!c->n)
		return NULL;
	liveness(c);
	for (unsigned n = 0; n < c->n_range; n++)
		total += c->range[n].len;
	tb->n_ranges = (u8)c->n_range;
	tb->range = meta_alloc(j, c->n_range * sizeof(*tb->range) + total + tb->beyond);
	memcpy(tb->range, c->range, c->n_range * sizeof(*tb->range));
	bytes = (u8 *)(tb->range + c->n_range);
	tb->bytes = bytes;
	memcpy(bytes, c->bytes, c->range[0].len + tb->beyond);
	bytes += c->range[0].len + tb->beyond;
	for (unsigned n = 1; n < c->n_range; n++) {
		memcpy(bytes, c->seen + c->range[n].off, c->range[n].len);
		bytes += c->range[n].len;
	}

	copy_note(c, rip);
	begin = e->p;
	cold = j->cold.p;
	tb->code = emit_rx(e);
	poll = emit_events(e, 5, NULL);
	tb->code_nopoll = emit_rx(e);
	c->exact = true;
	if (j->count) {
		encode(e, ENC_W, 0, 0x81, 0, rm_mem(H_R15, VOFF(n_insns)));
		e4(e, c->n);
	}
	if (tb->beyond && !nat_is_called(&c->nat[0]))
		emit_border_check(c);
	vec_begin(c);
	x87_begin(c);
	/* Blocks are counted and compared from their beginning. */
	if (c->vec && !c->x87.here && !tb->beyond && !j->count && !j->lockstep)
		c->loop = emit_rx(e);
	group_accesses(c);
	for (unsigned k = 0; k < c->n; k++) {
		c->after_sti = k && c->nat[k - 1].cls == K_STI;
		emit_insn(c, k);
		if (c->after_sti && !c->nat[k].ends)
			emit_poll(c, k);
		c->resume[k] = emit_rx(e);
		c->host_after[k] = c->host && c->live_out[k];
		c->vec_after[k] = c->vec;
		c->x87_after[k] = c->x87.here;
	}
	if (!c->nat[c->n - 1].ends) {
		x87_settle(c);
		if (c->host && c->live_out[c->n - 1])
			flags_save(e);
		else
			exit_recipe(c, EXIT_END);
		emit_exit(c, NULL, c->end_rip, c->key, false);
	}
	emit_out_of_line(c);
	patch_rel(poll, e->delta, emit_rx(&j->cold));
	emit_rip(&j->cold, H_R8, rip);
	emit_jmp(&j->cold, 0xe9, j->leave_lookup);
	tb->code_len = (u32)(e->p - begin);
	j->n.code_bytes += (u64)(j->cold.p - cold);
	tb->n_insns = (u16)c->n;
	j->n.code_bytes += tb->code_len;
	j->n.blocks++;
	j->n.insns += c->n;
	if (unlikely(j->dump || j->perf))
		see_block(c, cold + j->cold.delta, (u64)(j->cold.p - cold));
	while ((uintptr_t)e->p & 15)
		e1(e, 0xcc);
	j->e = *e;
	copy_origin(c, cold, first_call, first_site);
	page_add(j, page, tb);
	return tb;
}
