/*
 * recipe.c: arithmetic flags that nobody will read, and that must still be right in an exception frame, at an exit and
 * when the client looks.
 *
 * Such flags are not computed where they arise. A recipe says how to get them back: the instructions that wrote them
 * since jt.flags was right, oldest first, each with where its operands are found. Where the operands are gone (ADD
 * overwrites one), they follow from the result; where that is not enough, or it is overwritten too, the block puts a
 * value aside in a slot: a plain store, which touches no flag. What cannot be had so is taken for alive instead.
 *
 * Two kinds: the recipe of a call (struct call) gives the flags before that instruction, on top of jt.flags; that of a
 * block's exit stands in jt.flags itself (FLAGS_RECIPE), so that the next block, or the dispatcher, finds it.
 *
 * Invariants:
 *  1. no step reads a flag, so a recipe may run on top of flags that are newer than those it was made for, as they are
 *     when a handler ran in between: what its steps write comes out the same, the rest stays;
 *  2. the operands of an exit's recipe stay where they are until the code behind the exit has overwritten all flags:
 *     look() saw it; registers that do not are put aside in jt.carried, which nothing but another exit's recipe
 *     overwrites, after that;
 *  3. the slot of a memory operand holds the flags instead, and is marked, when the instruction's handler ran; only
 *     instructions that write all flags have such a slot.
 */
#include "../base/bug.h"
#include "../interp/interp_impl.h"
#include "trans.h"

enum {
	R_ADD,     /* result, second operand */
	R_SUB,     /* the same */
	R_ADD_OLD, /* result, first operand */
	R_SUB_OLD,
	R_INC, /* result */
	R_DEC,
	R_NEG,
	R_LOGIC,
	R_PLUS, /* from here on: the operands */
	R_CMP,
	R_TEST,
	R_SHL,
	R_SHR,
	R_SAR,
	R_ROL,
	R_ROR,
	R_ROL_KEEP, /* OF stays: op_shift_keeps_of() */
	R_ROR_KEEP,
	R_IMUL,
	R_MUL1,
	R_IMUL1,
	R_BT,
	R_BTS,
	R_BTR,
	R_BTC,
	R_POPCNT,
	R_TZCNT,
	R_LZCNT,
	R_BSF,
	R_BSR,
	R_CLC,
	R_STC
};

/* Where an operand is: a byte offset into vcpu->r[], or one of these and a number. */
#define SRC_SLOT 0xa0    /* jt.slot */
#define SRC_LOADED 0xb0  /* the same, a memory operand: invariant 3 */
#define SRC_CARRIED 0xc0 /* jt.carried */
#define SRC_IMM 0xff

#define STEPS_MAX 4

struct redo {
	u8 op, size, a, b;
	s32 imm;
};

struct recipe {
	u32 n;
	u32 pad;
	struct redo step[STEPS_MAX];
};

/* ---- getting the flags back ------------------------------------------------------------------------------------- */

/* Each: flags in and out as LAHF; SETO AL leave them. */
#define ASM_TWO(insn, T, t) asm(FL_LOAD insn t " %[b], %[x]" FL_SAVE : "+a"(ax), [x] "+q"(x) : [b] "q"((T)b) : "cc")
#define ASM_ONE(insn, t) asm(FL_LOAD insn t " %[x]" FL_SAVE : "+a"(ax), [x] "+q"(x) : : "cc")
#define ASM_CL(insn, t) asm(FL_LOAD insn t " %%cl, %[x]" FL_SAVE : "+a"(ax), [x] "+q"(x) : "c"((u8)b) : "cc")
#define ASM_MUL(insn, t, lo)                                                                                           \
	asm("addb $0x7f, %%al\n\tsahf\n\tmov %[x], %%rax\n\t" insn t " %" lo "[b]\n\tlahf\n\tseto %%al"                \
	    : "+a"(ax)                                                                                                 \
	    : [x] "r"((u64)x), [b] "r"((u64)b)                                                                         \
	    : "cc", "rdx")

#define STEP_ANY(T, t, lo)                                                                                             \
	{                                                                                                              \
		T x = (T)a;                                                                                            \
                                                                                                                       \
		switch (s->op) {                                                                                       \
		case R_ADD:                                                                                            \
			x = (T)(x - (T)b);                                                                             \
			ASM_TWO("add", T, t);                                                                          \
			break;                                                                                         \
		case R_SUB:                                                                                            \
			x = (T)(x + (T)b);                                                                             \
			ASM_TWO("sub", T, t);                                                                          \
			break;                                                                                         \
		case R_ADD_OLD:                                                                                        \
			x = (T)b;                                                                                      \
			b = a - b;                                                                                     \
			ASM_TWO("add", T, t);                                                                          \
			break;                                                                                         \
		case R_SUB_OLD:                                                                                        \
			x = (T)b;                                                                                      \
			b = b - a;                                                                                     \
			ASM_TWO("sub", T, t);                                                                          \
			break;                                                                                         \
		case R_INC:                                                                                            \
			x--;                                                                                           \
			ASM_ONE("inc", t);                                                                             \
			break;                                                                                         \
		case R_DEC:                                                                                            \
			x++;                                                                                           \
			ASM_ONE("dec", t);                                                                             \
			break;                                                                                         \
		case R_NEG:                                                                                            \
			x = (T)-x;                                                                                     \
			ASM_ONE("neg", t);                                                                             \
			break;                                                                                         \
		case R_LOGIC:                                                                                          \
			b = a;                                                                                         \
			ASM_TWO("test", T, t);                                                                         \
			break;                                                                                         \
		case R_PLUS:                                                                                           \
			ASM_TWO("add", T, t);                                                                          \
			break;                                                                                         \
		case R_CMP:                                                                                            \
			ASM_TWO("cmp", T, t);                                                                          \
			break;                                                                                         \
		case R_TEST:                                                                                           \
			ASM_TWO("test", T, t);                                                                         \
			break;                                                                                         \
		case R_SHL:                                                                                            \
			ASM_CL("shl", t);                                                                              \
			break;                                                                                         \
		case R_SHR:                                                                                            \
			ASM_CL("shr", t);                                                                              \
			break;                                                                                         \
		case R_SAR:                                                                                            \
			ASM_CL("sar", t);                                                                              \
			break;                                                                                         \
		case R_ROL:                                                                                            \
			ASM_CL("rol", t);                                                                              \
			break;                                                                                         \
		case R_ROR:                                                                                            \
			ASM_CL("ror", t);                                                                              \
			break;                                                                                         \
		case R_ROL_KEEP:                                                                                       \
			of = ax & 1;                                                                                   \
			ASM_CL("rol", t);                                                                              \
			ax = (ax & ~1u) | of;                                                                          \
			break;                                                                                         \
		case R_ROR_KEEP:                                                                                       \
			of = ax & 1;                                                                                   \
			ASM_CL("ror", t);                                                                              \
			ax = (ax & ~1u) | of;                                                                          \
			break;                                                                                         \
		case R_MUL1:                                                                                           \
			ASM_MUL("mul", t, lo);                                                                         \
			break;                                                                                         \
		case R_IMUL1:                                                                                          \
			ASM_MUL("imul", t, lo);                                                                        \
			break;                                                                                         \
		default:                                                                                               \
			break;                                                                                         \
		}                                                                                                      \
	}

#define STEP_WIDE(T, t)                                                                                                \
	{                                                                                                              \
		T x = (T)a;                                                                                            \
                                                                                                                       \
		switch (s->op) {                                                                                       \
		case R_IMUL:                                                                                           \
			ASM_TWO("imul", T, t);                                                                         \
			break;                                                                                         \
		case R_BT:                                                                                             \
			ASM_TWO("bt", T, t);                                                                           \
			break;                                                                                         \
		case R_BTS:                                                                                            \
			ASM_TWO("bts", T, t);                                                                          \
			break;                                                                                         \
		case R_BTR:                                                                                            \
			ASM_TWO("btr", T, t);                                                                          \
			break;                                                                                         \
		case R_BTC:                                                                                            \
			ASM_TWO("btc", T, t);                                                                          \
			break;                                                                                         \
		case R_POPCNT:                                                                                         \
			ASM_TWO("popcnt", T, t);                                                                       \
			break;                                                                                         \
		case R_TZCNT:                                                                                          \
			ASM_TWO("tzcnt", T, t);                                                                        \
			break;                                                                                         \
		case R_LZCNT:                                                                                          \
			ASM_TWO("lzcnt", T, t);                                                                        \
			break;                                                                                         \
		case R_BSF:                                                                                            \
			ASM_TWO("bsf", T, t);                                                                          \
			break;                                                                                         \
		case R_BSR:                                                                                            \
			ASM_TWO("bsr", T, t);                                                                          \
			break;                                                                                         \
		default:                                                                                               \
			break;                                                                                         \
		}                                                                                                      \
	}

static u64 value_of(const struct vcpu *v, const struct redo *s, u8 src)
{
	u64 x = 0;

	if (src == SRC_IMM)
		x = (u64)(s64)s->imm;
	else if (src >= SRC_CARRIED)
		x = v->jt.carried[src - SRC_CARRIED];
	else if (src >= SRC_LOADED)
		x = v->jt.slot[src - SRC_LOADED];
	else if (src >= SRC_SLOT)
		x = v->jt.slot[src - SRC_SLOT];
	else
		memcpy(&x, (const u8 *)v->r + src, s->size);
	return x;
}

static bool is_valid(const struct vcpu *v, const struct redo *s, u8 src)
{
	if (src < SRC_LOADED || src >= SRC_CARRIED)
		return true;
	return s->size == 8 ? !v->jt.slot_bad[src - SRC_LOADED] : !(v->jt.slot[src - SRC_LOADED] >> 32);
}

static u32 step_run(const struct vcpu *v, const struct redo *s, u32 ax)
{
	u64 a = value_of(v, s, s->a), b = value_of(v, s, s->b);
	u32 of;

	if (s->op == R_CLC)
		return ax & ~0x100u;
	if (s->op == R_STC)
		return ax | 0x100u;
	if (!is_valid(v, s, s->a))
		return (u32)v->jt.slot[s->a - SRC_LOADED];
	if (!is_valid(v, s, s->b))
		return (u32)v->jt.slot[s->b - SRC_LOADED];
	if (s->op >= R_IMUL && s->op != R_MUL1 && s->op != R_IMUL1) {
		if (s->size == 2)
			STEP_WIDE(u16, "w")
		else if (s->size == 4)
			STEP_WIDE(u32, "l")
		else
			STEP_WIDE(u64, "q")
	} else if (s->size == 1) {
		STEP_ANY(u8, "b", "b")
	} else if (s->size == 2) {
		STEP_ANY(u16, "w", "w")
	} else if (s->size == 4) {
		STEP_ANY(u32, "l", "k")
	} else {
		STEP_ANY(u64, "q", "q")
	}
	return ax;
}

static u32 recipe_run(const struct vcpu *v, u32 at, u32 ax)
{
	const struct recipe *r = meta_ptr(v->jit, at);

	for (u32 n = 0; n < r->n; n++)
		ax = step_run(v, &r->step[n], ax);
	return ax & 0xffff;
}

/* All guest registers must be in v->r[]. */
u32 recipe_flags(const struct vcpu *v, u32 at)
{
	u32 ax = v->jt.flags;

	if (ax & FLAGS_RECIPE)
		ax = recipe_run(v, ax >> 8 << 4, 0);
	return at ? recipe_run(v, at, ax) : ax;
}

/* ---- making recipes --------------------------------------------------------------------------------------------- */

/* Guest registers that the instruction may write, as a mask. */
u16 regs_written(const struct insn *i, const struct nat *n)
{
	u16 w = 0;

	switch (n->cls) {
	case K_NOP:
	case K_JCC:
	case K_JMP:
	case K_JMPI:
	case K_CLI:
	case K_STI:
	case K_DF:
	case K_SWAPGS:
	case K_AC:
	case K_TABLE:
	case K_BITMEM:
		return 0;
	case K_MOFFS:
		return n->rm_r ? BIT(R_RAX) : 0;
	case K_COUNT:
		return BIT(R_RCX);
	case K_DIV:
		return BIT(R_RAX) | BIT(R_RDX);
	case K_PUSH:
	case K_CALL:
	case K_CALLI:
	case K_RET:
	case K_PUSHF:
		return BIT(R_RSP);
	case K_POP:
		return (u16)(BIT(R_RSP) | BIT(i->op[0].reg & 15));
	case K_LEAVE:
		return BIT(R_RSP) | BIT(R_RBP);
	case K_STRING:
		return BIT(R_RCX) | BIT(R_RSI) | BIT(R_RDI);
	case K_MODRM:
	case K_RAW:
	case K_ACC:
		if (i->mnemonic == ZYDIS_MNEMONIC_CMP || i->mnemonic == ZYDIS_MNEMONIC_TEST ||
		    i->mnemonic == ZYDIS_MNEMONIC_BT)
			return 0;
		if (i->mnemonic == ZYDIS_MNEMONIC_MUL || i->mnemonic == ZYDIS_MNEMONIC_CMPXCHG ||
		    i->mnemonic == ZYDIS_MNEMONIC_CMPXCHG8B || i->mnemonic == ZYDIS_MNEMONIC_CMPXCHG16B ||
		    (i->mnemonic == ZYDIS_MNEMONIC_IMUL && i->map == 0) || n->cls == K_RAW)
			w = BIT(R_RAX) | BIT(R_RDX);
		break;
	case K_MOVI:
	case K_LEA:
	case K_XCHGA:
	case K_BSWAP:
	case K_INCDEC:
		break;
	case K_SSE:
	case K_VEX:
		/* PCMPESTRI and PCMPISTRI leave the index there. */
		if (i->map == 3 && (i->opcode == 0x61 || i->opcode == 0x63))
			w = BIT(R_RCX);
		break;
	case K_X87:
		return i->mnemonic == ZYDIS_MNEMONIC_FNSTSW && !(i->flags & INSN_MEM) ? BIT(R_RAX) : 0;
	case K_MMX:
		break;
	default:
		return 0xffff;
	}
	if (n->cls == K_XCHGA)
		w |= BIT(R_RAX);
	for (unsigned o = 0; o < i->nops; o++) {
		if (i->op[o].kind != OPK_GPR)
			continue;
		/* Of two operands the first is written, unless it exchanges. */
		if (o && n->cls == K_MODRM && i->mnemonic != ZYDIS_MNEMONIC_XCHG && i->mnemonic != ZYDIS_MNEMONIC_XADD)
			continue;
		w |= (u16)BIT(i->op[o].reg & 15);
	}
	return w;
}

static bool slot_get(struct trans *c, u8 *slot)
{
	if (!*slot && c->n_slots < SLOTS)
		*slot = (u8)++c->n_slots;
	return *slot;
}

/* The register stays as it is, except as `written` says: then it is put aside. */
static bool src_reg(struct trans *c, const struct operand *op, u16 written, u8 *slot, u8 *src)
{
	if (!(written & BIT(op->reg))) {
		*src = op->off;
		return true;
	}
	if ((op->off & 7) || !slot_get(c, slot))
		return false;
	*src = (u8)(SRC_SLOT + *slot - 1);
	return true;
}

/* An operand as it is before instruction p. */
static bool src_before(struct trans *c, unsigned p, const struct operand *op, u16 written, u8 *slot, u8 *src)
{
	if (op->kind == OPK_IMM) {
		*src = SRC_IMM;
		return true;
	}
	if (op->kind == OPK_MEM) {
		/* Only K_MODRM knows how. */
		if (c->nat[p].cls != K_MODRM || c->nat[p].rm_w || c->nat[p].fw != F_ALL ||
		    !slot_get(c, &c->put[p].loaded))
			return false;
		*src = (u8)(SRC_LOADED + c->put[p].loaded - 1);
		return true;
	}
	return op->kind == OPK_GPR && src_reg(c, op, written | regs_written(&c->insn[p], &c->nat[p]), slot, src);
}

static u8 op_of(u16 mnemonic)
{
	switch (mnemonic) {
	case ZYDIS_MNEMONIC_SHL:
		return R_SHL;
	case ZYDIS_MNEMONIC_SHR:
		return R_SHR;
	case ZYDIS_MNEMONIC_SAR:
		return R_SAR;
	case ZYDIS_MNEMONIC_ROL:
		return R_ROL;
	case ZYDIS_MNEMONIC_ROR:
		return R_ROR;
	case ZYDIS_MNEMONIC_BT:
		return R_BT;
	case ZYDIS_MNEMONIC_BTS:
		return R_BTS;
	case ZYDIS_MNEMONIC_BTR:
		return R_BTR;
	case ZYDIS_MNEMONIC_BTC:
		return R_BTC;
	case ZYDIS_MNEMONIC_POPCNT:
		return R_POPCNT;
	case ZYDIS_MNEMONIC_TZCNT:
		return R_TZCNT;
	case ZYDIS_MNEMONIC_LZCNT:
		return R_LZCNT;
	case ZYDIS_MNEMONIC_BSF:
		return R_BSF;
	case ZYDIS_MNEMONIC_BSR:
		return R_BSR;
	case ZYDIS_MNEMONIC_INC:
		return R_INC;
	case ZYDIS_MNEMONIC_DEC:
		return R_DEC;
	case ZYDIS_MNEMONIC_NEG:
		return R_NEG;
	}
	return R_LOGIC;
}

/* How to run p's part again; `written`: registers that change behind it. False: cannot. */
static bool step_of(struct trans *c, unsigned p, u16 written, struct redo *s)
{
	static const struct operand rax = {.kind = OPK_GPR, .reg = R_RAX, .off = R_RAX * 8},
	                            rcx = {.kind = OPK_GPR, .reg = R_RCX, .off = R_RCX * 8};
	const struct insn *i = &c->insn[p];
	const struct nat *n = &c->nat[p];
	const struct operand *a = &i->op[0], *b = &i->op[1];
	struct put *put = &c->put[p];
	bool same = a->kind == OPK_GPR && b->kind == OPK_GPR && a->off == b->off;

	*s = (struct redo){.op = op_of(i->mnemonic), .size = i->op[0].size, .a = SRC_IMM, .b = SRC_IMM};
	s->imm = (s32)i->imm;
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_CLC:
		s->op = R_CLC;
		return true;
	case ZYDIS_MNEMONIC_STC:
		s->op = R_STC;
		return true;
	default:
		break;
	}
	if ((n->cls != K_MODRM && n->cls != K_ACC && n->cls != K_INCDEC && n->cls != K_RAW) || !i->nops)
		return false;
	if ((i->flags & INSN_MEM) && (n->rm_w || n->cls != K_MODRM))
		return false;
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_CMP:
	case ZYDIS_MNEMONIC_TEST:
		s->op = i->mnemonic == ZYDIS_MNEMONIC_CMP ? R_CMP : R_TEST;
		if (same && s->op == R_CMP)
			return true;
		if (!(i->flags & INSN_MEM))
			return src_before(c, p, a, written, &put->a_before, &s->a) &&
			       src_before(c, p, b, written, &put->b_before, &s->b);
		/* Put aside when it is done: until then, the slots may belong to the recipe before. */
		return src_before(c, p, a, written, &put->a_after, &s->a) &&
		       src_before(c, p, b, written, &put->b_after, &s->b);
	case ZYDIS_MNEMONIC_ADD:
	case ZYDIS_MNEMONIC_SUB:
		if (same) {
			s->op = i->mnemonic == ZYDIS_MNEMONIC_ADD ? R_PLUS : R_CMP;
			if (s->op == R_CMP)
				return true;
			if (!src_before(c, p, a, written, &put->a_before, &s->a))
				return false;
			s->b = s->a;
			return true;
		}
		if (b->kind == OPK_MEM) {
			s->op = i->mnemonic == ZYDIS_MNEMONIC_ADD ? R_ADD_OLD : R_SUB_OLD;
			return src_reg(c, a, written, &put->a_after, &s->a) &&
			       src_before(c, p, a, written, &put->a_before, &s->b);
		}
		s->op = i->mnemonic == ZYDIS_MNEMONIC_ADD ? R_ADD : R_SUB;
		if (b->kind == OPK_GPR && b->reg == a->reg) /* AL, AH */
			return false;
		return src_reg(c, a, written, &put->a_after, &s->a) &&
		       (b->kind == OPK_IMM || src_reg(c, b, written, &put->b_before, &s->b));
	case ZYDIS_MNEMONIC_XOR:
		if (same) {
			s->op = R_LOGIC;
			s->imm = 0;
			return true;
		}
		return src_reg(c, a, written, &put->a_after, &s->a);
	case ZYDIS_MNEMONIC_AND:
	case ZYDIS_MNEMONIC_OR:
	case ZYDIS_MNEMONIC_INC:
	case ZYDIS_MNEMONIC_DEC:
	case ZYDIS_MNEMONIC_NEG:
		return src_reg(c, a, written, &put->a_after, &s->a);
	case ZYDIS_MNEMONIC_SHL:
	case ZYDIS_MNEMONIC_SHR:
	case ZYDIS_MNEMONIC_SAR:
	case ZYDIS_MNEMONIC_ROL:
	case ZYDIS_MNEMONIC_ROR:
		if (op_shift_keeps_of(i))
			s->op = s->op == R_ROL ? R_ROL_KEEP : R_ROR_KEEP;
		if (i->opcode == 0xd0 || i->opcode == 0xd1)
			s->imm = 1;
		else if ((i->opcode == 0xd2 || i->opcode == 0xd3) &&
		         !src_before(c, p, &rcx, written, &put->b_before, &s->b))
			return false;
		return src_before(c, p, a, written, &put->a_before, &s->a);
	case ZYDIS_MNEMONIC_IMUL:
		if (i->map == 0 && (i->opcode == 0xf6 || i->opcode == 0xf7)) {
			s->op = R_IMUL1;
			return src_before(c, p, &rax, written, &put->b_before, &s->a) &&
			       src_before(c, p, a, written, &put->a_before, &s->b);
		}
		s->op = R_IMUL;
		if (i->map == 0) /* three operands */
			return src_before(c, p, b, written, &put->b_before, &s->a);
		return src_before(c, p, a, written, &put->a_before, &s->a) &&
		       src_before(c, p, b, written, &put->b_before, &s->b);
	case ZYDIS_MNEMONIC_MUL:
		s->op = R_MUL1;
		return src_before(c, p, &rax, written, &put->b_before, &s->a) &&
		       src_before(c, p, a, written, &put->a_before, &s->b);
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		return a->kind == OPK_GPR && src_before(c, p, a, written, &put->a_before, &s->a) &&
		       src_before(c, p, b, written, &put->b_before, &s->b);
	case ZYDIS_MNEMONIC_POPCNT:
	case ZYDIS_MNEMONIC_TZCNT:
	case ZYDIS_MNEMONIC_LZCNT:
	case ZYDIS_MNEMONIC_BSF:
	case ZYDIS_MNEMONIC_BSR:
		s->a = SRC_IMM;
		return b->size == s->size && src_before(c, p, b, written, &put->b_before, &s->b);
	default:
		return false;
	}
}

/* Carries the step's registers that the code behind the exit overwrites. */
static bool carry(struct redo *s, u8 *src, u16 clobbered, struct carried *to)
{
	unsigned n;
	u8 g;

	if (*src >= SRC_SLOT || !(clobbered & BIT(*src / 8)))
		return true;
	g = *src / 8;
	if (*src & 7)
		return false;
	for (n = 0; n < to->n && to->reg[n] != g; n++)
		;
	if (n == CARRIED)
		return false;
	if (n == to->n)
		to->reg[to->n++] = g;
	*src = (u8)(SRC_CARRIED + n);
	return true;
}

/*
 * The recipe of the flags before instruction k. 0: jt.flags has them, as it is; RECIPE_NONE: there is none. `exit`
 * (or NULL): it is to stand in jt.flags, and the code behind overwrites the registers of exit->clobbered before all
 * flags are overwritten.
 */
u32 recipe_make(struct trans *c, unsigned k, struct carried *exit)
{
	struct redo step[STEPS_MAX];
	struct recipe *r;
	unsigned n = 0;
	/* A CALL has moved RSP when it leaves, and a LOOP has counted. */
	u16 written = exit && k < c->n && (c->nat[k].cls == K_CALL || c->nat[k].cls == K_COUNT)
	                      ? regs_written(&c->insn[k], &c->nat[k])
	                      : 0;
	bool full = false;

	for (unsigned p = k; p-- > 0 && !nat_is_called(&c->nat[p]);) {
		const struct nat *nat = &c->nat[p];

		if (nat->fmod) {
			if (n == STEPS_MAX || nat->fr || !step_of(c, p, written, &step[n]))
				return RECIPE_NONE;
			n++;
			if (nat->fw == F_ALL) {
				full = true;
				break;
			}
		}
		written |= regs_written(&c->insn[p], nat);
	}
	if (!n)
		return 0;
	if (exit) {
		exit->n = 0;
		if (!full)
			return RECIPE_NONE;
		for (unsigned s = 0; s < n; s++) {
			bool slot = (step[s].a >= SRC_SLOT && step[s].a != SRC_IMM) ||
			            (step[s].b >= SRC_SLOT && step[s].b != SRC_IMM);

			if ((slot && exit->partial) || !carry(&step[s], &step[s].a, exit->clobbered, exit) ||
			    !carry(&step[s], &step[s].b, exit->clobbered, exit))
				return RECIPE_NONE;
		}
	}
	/* Oldest first. */
	for (unsigned s = 0; s < n / 2; s++) {
		struct redo t = step[s];

		step[s] = step[n - 1 - s];
		step[n - 1 - s] = t;
	}
	r = c->last_recipe ? meta_ptr(c->j, c->last_recipe) : NULL;
	if (r && r->n == n && !memcmp(r->step, step, n * sizeof(*step)))
		return c->last_recipe;
	r = meta_alloc(c->j, offsetof(struct recipe, step) + n * sizeof(*step));
	r->n = n;
	r->pad = 0;
	memcpy(r->step, step, n * sizeof(*step));
	c->last_recipe = meta_at(c->j, r);
	return c->last_recipe;
}

/* ---- putting values aside --------------------------------------------------------------------------------------- */

static void put_aside(struct trans *c, s32 at, unsigned g)
{
	emit_store(&c->e, H_R15, at, reg_in(c, g, H_R10, true));
}

static void put_operand(struct trans *c, unsigned k, u8 slot, unsigned o)
{
	const struct insn *i = &c->insn[k];
	unsigned g;

	if (!slot)
		return;
	if (i->mnemonic == ZYDIS_MNEMONIC_MUL || (i->mnemonic == ZYDIS_MNEMONIC_IMUL && i->nops == 1))
		g = o ? R_RAX : i->op[0].reg;
	else if (o && c->nat[k].digit && (i->opcode == 0xd2 || i->opcode == 0xd3))
		g = R_RCX;
	else
		g = i->op[o].reg;
	put_aside(c, VOFF(jt.slot[0]) + (slot - 1) * 8, g);
}

void put_before(struct trans *c, unsigned k)
{
	put_operand(c, k, c->put[k].a_before, 0);
	put_operand(c, k, c->put[k].b_before, 1);
}

void put_after(struct trans *c, unsigned k)
{
	put_operand(c, k, c->put[k].a_after, 0);
	put_operand(c, k, c->put[k].b_after, 1);
}

/* The memory operand's value is in R8. */
void put_loaded(struct trans *c, unsigned k)
{
	u8 slot = (u8)(c->put[k].loaded - 1);

	emit_store(&c->e, H_R15, VOFF(jt.slot[0]) + slot * 8, H_R8);
	if (c->nat[k].rm_size == 8) {
		encode(&c->e, 0, 0, 0xc7, 0, rm_mem(H_R15, VOFF(jt.slot_bad[0]) + slot * 4));
		e4(&c->e, 0);
	}
}

/* Its handler ran instead. */
void put_spoilt(struct trans *c, unsigned k)
{
	u8 slot = (u8)(c->put[k].loaded - 1);

	if (!c->put[k].loaded)
		return;
	encode(&c->e, 0, 1, 0xb7, H_R8, rm_mem(H_R15, VOFF(jt.flags))); /* movzx r8d, word */
	emit_store(&c->e, H_R15, VOFF(jt.slot[0]) + slot * 8, H_R8);
	encode(&c->e, 0, 0, 0xc7, 0, rm_mem(H_R15, VOFF(jt.slot[0]) + slot * 8 + 4));
	e4(&c->e, ~0u);
	encode(&c->e, 0, 0, 0xc7, 0, rm_mem(H_R15, VOFF(jt.slot_bad[0]) + slot * 4));
	e4(&c->e, 1);
}

/* The exit's recipe → jt.flags. Touches R10 and no flag. */
void put_recipe(struct trans *c, u32 recipe, const struct carried *with)
{
	for (unsigned n = 0; n < with->n; n++)
		put_aside(c, VOFF(jt.carried[0]) + (s32)n * 8, with->reg[n]);
	encode(&c->e, 0, 0, 0xc7, 0, rm_mem(H_R15, VOFF(jt.flags)));
	emit_recipe(&c->e, recipe >> 4 << 8 | FLAGS_RECIPE);
}
