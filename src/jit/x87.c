/*
 * x87.c: x87 and MMX instructions inside translated code.
 *
 * The guest's instruction runs as it is, on the guest's own x87 state, which is in the host's processor then: fetched
 * by the first block that needs it (jt.x87, the stubs of helper.c), put back when the code is left, and before a
 * handler that looks at it (x87_seen_by()). Other handlers leave it where it is: our C code is built without x87
 * (Makefile), and libc's touches it for a long double only, which no handler has.
 *
 * Invariants:
 *  - blocks are only translated this way while CR0.EM and CR0.TS are clear and every x87 exception is masked (KEY_X87),
 *    so no instruction faults but for its memory operand, and the host sees no #MF. What could unmask one goes to its
 *    handler: FLDCW of such a word, FLDENV, FRSTOR...; FCW in memory may be older than the host's, but masks as well;
 *  - FOP, FIP, FCS, FDP and FDS never come from the host: they are written to v->fpu as the interpreter writes them.
 *    FDP at once, the others, which are known from the last instruction, where somebody may look: before whatever ends
 *    the block, before handlers, and on the slow ways (c->x87.last, c->x87.seg).
 */
#include <Zydis/MetaInfo.h>

#include "../cpu/fpu.h"
#include "trans.h"

#define FX(off) (VOFF(fpu.fx) + (off))

/* ---- which, and what they access --------------------------------------------------------------------------------- */

static unsigned digit_of(const struct insn *i)
{
	return i->modrm >> 3 & 7;
}

static bool is_x87(const struct insn *i)
{
	return i->map == 0 && i->opcode >= 0xd8 && i->opcode <= 0xdf;
}

/* Bytes of the memory operand; 0: a form that is not for us. */
static unsigned x87_mem_size(const struct insn *i)
{
	unsigned d = digit_of(i);

	switch (i->opcode) {
	case 0xd8:
	case 0xda:
		return 4;
	case 0xd9:
		return d == 0 || d == 2 || d == 3 ? 4 : d == 5 || d == 7 ? 2 : 0;
	case 0xdb:
		return d < 4 ? 4 : d == 5 || d == 7 ? 10 : 0;
	case 0xdc:
		return 8;
	case 0xdd:
		return d < 4 ? 8 : d == 7 ? 2 : 0;
	case 0xde:
		return 2;
	case 0xdf:
		return d < 4 ? 2 : d == 4 || d == 6 ? 10 : 8;
	}
	return 0;
}

static bool x87_mem_writes(const struct insn *i)
{
	unsigned d = digit_of(i);

	switch (i->opcode) {
	case 0xd9:
		return d == 2 || d == 3 || d == 7;
	case 0xdb:
		return (d >= 1 && d <= 3) || d == 7;
	case 0xdd:
		return (d >= 1 && d <= 3) || d == 7;
	case 0xdf:
		return (d >= 1 && d <= 3) || d == 6 || d == 7;
	}
	return false;
}

/* FNSTCW, FNSTSW, FLDCW and the like: no pointers. */
static bool is_control(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_FLDCW:
	case ZYDIS_MNEMONIC_FNSTCW:
	case ZYDIS_MNEMONIC_FNSTSW:
	case ZYDIS_MNEMONIC_FNCLEX:
	case ZYDIS_MNEMONIC_FNINIT:
		return true;
	}
	return false;
}

static void classify_x87(const struct insn *i, struct nat *n)
{
	static const u8 cmov[4] = {F_CF, F_ZF, F_CF | F_ZF, F_PF};

	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_FENI8087_NOP:
	case ZYDIS_MNEMONIC_FDISI8087_NOP:
	case ZYDIS_MNEMONIC_FSETPM287_NOP:
		n->cls = K_NOP;
		return;
	}
	if (i->flags & INSN_MEM) {
		if (!x87_mem_size(i))
			return;
		n->cls = K_X87;
		n->rm_size = (u8)x87_mem_size(i);
		n->rm_w = x87_mem_writes(i);
		n->rm_r = !n->rm_w;
		return;
	}
	n->cls = K_X87;
	if ((i->opcode == 0xda || i->opcode == 0xdb) && i->modrm < 0xe0) {
		n->fr = cmov[i->modrm >> 3 & 3];
	} else if ((i->opcode == 0xdb || i->opcode == 0xdf) && i->modrm >= 0xe8 && i->modrm < 0xf8) {
		/* FCOMI and its kin: OF, SF and AF become zero. */
		n->fmod = true;
		n->fw = F_ALL;
	}
}

static bool is_mmx_opcode(const struct insn *i)
{
	u8 o = i->opcode;

	switch (i->map) {
	case 1:
		return (o >= 0x60 && o <= 0x76 && o != 0x6c && o != 0x6d) || o == 0x7e || o == 0x7f || o == 0xc4 ||
		       o == 0xc5 || (o >= 0xd1 && o <= 0xfe && o != 0xd6 && o != 0xe6 && o != 0xf0 && o != 0xf7);
	case 2:
		return o <= 0x0b || (o >= 0x1c && o <= 0x1e);
	case 3:
		return o == 0x0f;
	}
	return false;
}

static bool mmx_is_store(const struct insn *i)
{
	return i->map == 1 && (i->opcode == 0x7e || i->opcode == 0x7f || i->opcode == 0xe7);
}

static unsigned mmx_mem_size(const struct insn *i)
{
	for (unsigned o = 0; o < i->nops; o++)
		if (i->op[o].kind == OPK_MEM)
			return i->op[o].size;
	return 0;
}

static void classify_mmx(const struct insn *i, struct nat *n)
{
	bool mmx = false;

	if (i->mnemonic == ZYDIS_MNEMONIC_EMMS) {
		n->cls = K_MMX;
		return;
	}
	for (unsigned o = 0; o < i->nops; o++) {
		u8 kind = i->op[o].kind;

		mmx |= kind == OPK_MMX;
		if (kind != OPK_MMX && kind != OPK_MEM && kind != OPK_GPR && kind != OPK_IMM)
			return;
	}
	/* Another prefix would make it another instruction, or none. */
	for (unsigned p = 0; p < i->raw_prefixes; p++)
		if (i->raw[p] == 0x66 || i->raw[p] == 0xf2 || i->raw[p] == 0xf3)
			return;
	if (!mmx || !is_mmx_opcode(i) || ((i->flags & INSN_MEM) && !mmx_mem_size(i)))
		return;
	n->cls = K_MMX;
	if (i->flags & INSN_MEM) {
		n->rm_size = (u8)mmx_mem_size(i);
		n->rm_w = mmx_is_store(i);
		n->rm_r = !n->rm_w;
	}
}

void x87_classify(const struct trans *c, const struct insn *i, struct nat *n)
{
	struct nat own;

	if (!(c->key & KEY_X87) || (i->flags & (INSN_LOCK | INSN_VEX)))
		return;
	memset(&own, 0, sizeof(own));
	if (i->mnemonic == ZYDIS_MNEMONIC_FWAIT)
		own.cls = K_NOP;
	else if (is_x87(i))
		classify_x87(i, &own);
	else if (i->map)
		classify_mmx(i, &own);
	if (own.cls != K_HANDLER)
		*n = own;
}

bool x87_seen_by(const struct insn *i)
{
	return op_x87_find(i) || op_simd_find(i);
}

/* ---- where the state is ------------------------------------------------------------------------------------------ */

/* Fetches it, unless it is there; destroys flags. */
static void x87_check(struct trans *c)
{
	struct emit *e = &c->e;
	u8 *skip;

	encode(e, 0, 0, 0x83, 7, rm_mem(H_R15, VOFF(jt.x87))); /* cmp dword, 0 */
	e1(e, 0);
	skip = emit_jcc(e, 5, NULL);
	emit_jmp(e, 0xe8, c->j->x87_load);
	patch_rel(skip, e->delta, emit_rx(e));
	c->x87.here = true;
}

void x87_begin(struct trans *c)
{
	for (unsigned k = 0; k < c->n; k++)
		if (c->nat[k].cls == K_X87 || c->nat[k].cls == K_MMX) {
			/* Flags are in jt.flags here. */
			x87_check(c);
			return;
		}
}

/* The state is in use (XINUSE). */
static void x87_used(struct trans *c)
{
	if (c->x87.used)
		return;
	encode(&c->e, 0, 0, 0xc6, 0, rm_mem(H_R15, VOFF(fpu.x87_used)));
	e1(&c->e, 1);
	c->x87.used = true;
}

/* ---- pointers ---------------------------------------------------------------------------------------------------- */

static void put_selector(struct emit *e, s32 at, unsigned seg)
{
	encode(e, 0, 1, 0xb7, H_R10, rm_mem(H_R15, VOFF(seg[0].sel) + (s32)(seg * sizeof(struct seg))));
	encode(e, ENC_66, 0, 0x89, H_R10, rm_mem(H_R15, at));
}

void x87_put_pointers(struct trans *c, u8 last, u8 seg)
{
	struct emit *e = &c->e;

	if (last) {
		const struct insn *i = &c->insn[last - 1];
		u64 rip = rip_of(c, c->rip[last - 1]);

		/* Others keep FOP for unmasked exceptions alone. */
		if (fpu_ptrs_only_pending()) {
			encode(e, ENC_66, 0, 0xc7, 0, rm_mem(H_R15, FX(FX_FOP)));
			e2(e, (u16)((i->opcode & 7) << 8 | i->modrm));
		}
		if (is_s32((s64)rip)) {
			encode(e, ENC_W, 0, 0xc7, 0, rm_mem(H_R15, FX(FX_FIP)));
			emit_rip4(e, rip);
		} else {
			emit_rip(e, H_R10, rip);
			emit_store(e, H_R15, FX(FX_FIP), H_R10);
		}
		put_selector(e, VOFF(fpu.fcs), SEG_CS);
	}
	if (seg)
		put_selector(e, VOFF(fpu.fds), seg - 1u);
}

void x87_settle(struct trans *c)
{
	x87_put_pointers(c, c->x87.last, c->x87.seg);
	c->x87.last = c->x87.seg = 0;
}

/* FDP: the operand's offset in its segment. Flags may be alive in the host's when the access has no check of its own:
 * then there is no segment base either. */
static void put_fdp(struct trans *c, unsigned k, struct rm rm)
{
	unsigned seg = c->insn[k].seg, reg = rm.base;
	struct emit *e = &c->e;
	bool based = c->key & KEY_64 ? seg >= SEG_FS && seg <= SEG_GS
	                             : (c->key & KEY_SEG) || (seg != SEG_ES && seg != SEG_SS && seg != SEG_DS);

	if (rm.disp) {
		encode(e, ENC_W, 0, 0x8d, H_R10, rm_mem(reg, rm.disp));
		reg = H_R10;
	}
	if (based) {
		if (reg != H_R10)
			emit_mov(e, H_R10, reg);
		reg = H_R10;
		encode(e, wflag(c), 0, 0x2b, H_R10, rm_mem(H_R15, VOFF(seg[0].base) + (s32)(seg * sizeof(struct seg))));
	}
	emit_store(e, H_R15, FX(FX_FDP), reg);
}

static void note_pointers(struct trans *c, unsigned k, const struct rm *mem)
{
	c->x87.last = (u8)(k + 1);
	if (mem && !fpu_fdp_only_excp()) {
		put_fdp(c, k, *mem);
		c->x87.seg = (u8)(c->insn[k].seg + 1);
	}
}

static void clear_pointers(struct trans *c)
{
	struct emit *e = &c->e;

	c->x87.last = c->x87.seg = 0;
	encode(e, ENC_66, 0, 0xc7, 0, rm_mem(H_R15, FX(FX_FOP)));
	e2(e, 0);
	encode(e, ENC_W, 0, 0xc7, 0, rm_mem(H_R15, FX(FX_FIP)));
	e4(e, 0);
	encode(e, ENC_W, 0, 0xc7, 0, rm_mem(H_R15, FX(FX_FDP)));
	e4(e, 0);
	static_assert(offsetof(struct fpu, fds) == offsetof(struct fpu, fcs) + 2, "cleared together");
	encode(e, 0, 0, 0xc7, 0, rm_mem(H_R15, VOFF(fpu.fcs)));
	e4(e, 0);
}

/* ---- one instruction --------------------------------------------------------------------------------------------- */

/* State and memory operand are there. */
static struct rm begin(struct trans *c, unsigned k)
{
	const struct nat *n = &c->nat[k];
	bool mem = c->insn[k].flags & INSN_MEM;

	if ((mem && !is_follower(c, k)) || !c->x87.here)
		flags_give(c, k);
	if (!c->x87.here)
		x87_check(c);
	return mem ? emit_operand(c, k, n->rm_size, 1, n->rm_w ? TLB_WRITE : TLB_READ) : rm_reg(0);
}

/* FLDCW: the word is looked at, and loaded from a copy, which nobody else can change. */
static void emit_fldcw(struct trans *c, unsigned k, struct rm rm)
{
	struct emit *e = &c->e;

	encode(e, 0, 1, 0xb7, H_R10, rm); /* movzx r10d, word */
	encode(e, ENC_66, 0, 0x89, H_R10, rm_mem(H_R15, VOFF(jt.fcw_new)));
	encode(e, 0, 0, 0xf7, 2, rm_reg(H_R10)); /* not r10d */
	encode(e, 0, 0, 0xf7, 0, rm_reg(H_R10)); /* test r10d, 3f */
	e4(e, 0x3f);
	slow_at(c, k, emit_jcc(e, 5, NULL));
	encode(e, 0, 0, 0xd9, 5, rm_mem(H_R15, VOFF(jt.fcw_new)));
}

void x87_emit(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	bool mem = i->flags & INSN_MEM, control = is_control(i);
	struct emit *e = &c->e;
	struct rm rm = begin(c, k);

	if (i->mnemonic == ZYDIS_MNEMONIC_FLDCW) {
		emit_fldcw(c, k, rm);
		x87_used(c);
		return;
	}
	if (i->mnemonic == ZYDIS_MNEMONIC_FNINIT)
		clear_pointers(c);
	if (!control)
		note_pointers(c, k, mem ? &rm : NULL);
	if (!control || !(i->mnemonic == ZYDIS_MNEMONIC_FNSTCW || i->mnemonic == ZYDIS_MNEMONIC_FNSTSW))
		x87_used(c);
	flags_want(c, k);
	if (mem) {
		encode(e, 0, 0, i->opcode, digit_of(i), rm);
	} else {
		e1(e, i->opcode);
		e1(e, i->modrm);
	}
}

/* Is ModRM.reg, or ModRM.rm when it is no memory, a general register? */
static bool mmx_greg(const struct insn *i)
{
	return i->map == 1 && (i->opcode == 0xc5 || i->opcode == 0xd7);
}

static bool mmx_grm(const struct insn *i)
{
	return i->map == 1 && (i->opcode == 0x6e || i->opcode == 0x7e || i->opcode == 0xc4);
}

void mmx_emit(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	u8 rex = (c->key & KEY_64) && (i->raw[i->raw_prefixes] & 0xf0) == 0x40 ? i->raw[i->raw_prefixes] : 0;
	unsigned greg = (i->modrm >> 3 & 7) | (rex & 4) << 1, grm = (i->modrm & 7) | (rex & 1) << 3, reg = greg & 7;
	bool mem = i->flags & INSN_MEM, store = mmx_is_store(i);
	struct emit *e = &c->e;
	struct rm rm = begin(c, k);

	x87_used(c);
	if (i->mnemonic == ZYDIS_MNEMONIC_EMMS) {
		e1(e, 0x0f);
		e1(e, 0x77);
		return;
	}
	if (!mem)
		rm = rm_reg(mmx_grm(i) ? reg_in(c, grm, H_R11, !store) : grm & 7);
	if (mmx_greg(i))
		reg = reg_in(c, greg, H_R10, false);
	encode(e, rex & 8 ? ENC_W : 0, i->map, i->opcode, reg, rm);
	if (i->off_imm)
		e1(e, i->raw[i->len - 1]);
	if (mmx_greg(i))
		reg_out(c, greg, H_R10);
	else if (mmx_grm(i) && store && !mem)
		reg_out(c, grm, H_R11);
}
