/*
 * op_alu.c: two-operand arithmetic and logic (ADD OR ADC SBB AND SUB XOR CMP TEST), INC DEC NEG NOT, XADD, CMPXCHG and
 * CMPXCHG8B/16B.
 *
 * One handler for each (operation, size, operand kinds): the plain integer loop spends its time here. A LOCKed form
 * runs the same operation inside a host compare-and-swap loop on the guest's RAM, so it is atomic towards every thread.
 * Nothing is committed (flags included) before the last access that can fault.
 */
#include "interp_impl.h"

/* T op(T a, T b, u64 *fl): result; *fl updated. */
#define GEN_OP(name, T, S, insn, sfx)                                                                                  \
	static inline T name##S(T a, T b, u64 *fl)                                                                     \
	{                                                                                                              \
		u32 ax;                                                                                                \
		asm(insn sfx " %[b], %[a]" FL_SAVE : [a] "+q"(a), "=&a"(ax) : [b] "q"(b) : "cc");                      \
		*fl = fl_merge(*fl, ax);                                                                               \
		return a;                                                                                              \
	}
#define GEN_OPC(name, T, S, insn, sfx)                                                                                 \
	static inline T name##S(T a, T b, u64 *fl)                                                                     \
	{                                                                                                              \
		u32 ax;                                                                                                \
		asm("btl $0, %k[f]\n\t" insn sfx " %[b], %[a]" FL_SAVE                                                 \
		    : [a] "+q"(a), "=&a"(ax)                                                                           \
		    : [b] "q"(b), [f] "r"((u32)*fl)                                                                    \
		    : "cc");                                                                                           \
		*fl = fl_merge(*fl, ax);                                                                               \
		return a;                                                                                              \
	}
/* Unary; `keep` are flags the instruction leaves alone. */
#define GEN_UN(name, T, S, insn, sfx, keep)                                                                            \
	static inline T name##S(T a, T b, u64 *fl)                                                                     \
	{                                                                                                              \
		u32 ax;                                                                                                \
		asm(insn sfx " %[a]" FL_SAVE : [a] "+q"(a), "=&a"(ax) : : "cc");                                       \
		*fl = (fl_merge(*fl, ax) & ~(u64)(keep)) | (*fl & (u64)(keep));                                        \
		return a;                                                                                              \
	}
#define GEN_NOT(T, S)                                                                                                  \
	static inline T not ##S(T a, T b, u64 * fl)                                                                    \
	{                                                                                                              \
		return (T)~a;                                                                                          \
	}

#define GEN_SIZES(G, name, insn)                                                                                       \
	G(name, t1, 1, insn, "b")                                                                                      \
	G(name, t2, 2, insn, "w")                                                                                      \
	G(name, t4, 4, insn, "l")                                                                                      \
	G(name, t8, 8, insn, "q")
#define GEN_UNS(name, keep)                                                                                            \
	GEN_UN(name, t1, 1, #name, "b", keep)                                                                          \
	GEN_UN(name, t2, 2, #name, "w", keep)                                                                          \
	GEN_UN(name, t4, 4, #name, "l", keep)                                                                          \
	GEN_UN(name, t8, 8, #name, "q", keep)

GEN_SIZES(GEN_OP, add, "add")
GEN_SIZES(GEN_OP, or, "or")
GEN_SIZES(GEN_OPC, adc, "adc")
GEN_SIZES(GEN_OPC, sbb, "sbb")
GEN_SIZES(GEN_OP, and, "and")
GEN_SIZES(GEN_OP, sub, "sub")
GEN_SIZES(GEN_OP, xor, "xor")
GEN_SIZES(GEN_OP, cmp, "cmp")
GEN_SIZES(GEN_OP, test, "test")
GEN_UNS(inc, FLAGS_CF)
GEN_UNS(dec, FLAGS_CF)
GEN_UNS(neg, 0)
GEN_NOT(t1, 1)
GEN_NOT(t2, 2)
GEN_NOT(t4, 4)
GEN_NOT(t8, 8)

/* Reads, computes and stores a memory operand, atomically when LOCKed. `src` is an expression without side effects. */
#define RMW_BODY(name, T, S, src)                                                                                      \
	u8 *p;                                                                                                         \
	bool slow;                                                                                                     \
	u64 fl = v->rflags;                                                                                            \
	int rc = rmw_open(v, i, S, i->flags & INSN_LOCK, &p, &slow);                                                   \
                                                                                                                       \
	if (unlikely(rc != STEP_OK))                                                                                   \
		return rc;                                                                                             \
	if (likely(!(i->flags & INSN_LOCK))) {                                                                         \
		st##S(p, name##S(ld##S(p), (T)(src), &fl));                                                            \
	} else {                                                                                                       \
		T old = ld##S(p), new;                                                                                 \
                                                                                                                       \
		do {                                                                                                   \
			fl = v->rflags;                                                                                \
			new = name##S(old, (T)(src), &fl);                                                             \
		} while (!cas##S(p, &old, new));                                                                       \
	}                                                                                                              \
	v->rflags = fl;                                                                                                \
	rmw_close(v, slow);                                                                                            \
	return STEP_OK;

#define FN(name) static int name(struct vcpu *v, const struct insn *i)

/* Forms that store a result. */
#define GEN_ALU(name, T, S)                                                                                            \
	FN(name##_rr##S)                                                                                               \
	{                                                                                                              \
		set##S(v, &i->op[0], name##S(get##S(v, &i->op[0]), get##S(v, &i->op[1]), &v->rflags));                 \
		return STEP_OK;                                                                                        \
	}                                                                                                              \
	FN(name##_ri##S)                                                                                               \
	{                                                                                                              \
		set##S(v, &i->op[0], name##S(get##S(v, &i->op[0]), (T)i->imm, &v->rflags));                            \
		return STEP_OK;                                                                                        \
	}                                                                                                              \
	FN(name##_rm##S)                                                                                               \
	{                                                                                                              \
		T b;                                                                                                   \
		int rc = v_read(v, i->seg, insn_ea(v, i), &b, S);                                                      \
                                                                                                                       \
		if (unlikely(rc != STEP_OK))                                                                           \
			return rc;                                                                                     \
		set##S(v, &i->op[0], name##S(get##S(v, &i->op[0]), b, &v->rflags));                                    \
		return STEP_OK;                                                                                        \
	}                                                                                                              \
	FN(name##_mr##S){RMW_BODY(name, T, S, get##S(v, &i->op[1]))} FN(name##_mi##S)                                  \
	{                                                                                                              \
		RMW_BODY(name, T, S, i->imm)                                                                           \
	}

/* CMP and TEST only set flags. */
#define GEN_CMP(name, T, S)                                                                                            \
	FN(name##_rr##S)                                                                                               \
	{                                                                                                              \
		name##S(get##S(v, &i->op[0]), get##S(v, &i->op[1]), &v->rflags);                                       \
		return STEP_OK;                                                                                        \
	}                                                                                                              \
	FN(name##_ri##S)                                                                                               \
	{                                                                                                              \
		name##S(get##S(v, &i->op[0]), (T)i->imm, &v->rflags);                                                  \
		return STEP_OK;                                                                                        \
	}                                                                                                              \
	FN(name##_rm##S)                                                                                               \
	{                                                                                                              \
		T b;                                                                                                   \
		int rc = v_read(v, i->seg, insn_ea(v, i), &b, S);                                                      \
                                                                                                                       \
		if (unlikely(rc != STEP_OK))                                                                           \
			return rc;                                                                                     \
		name##S(get##S(v, &i->op[0]), b, &v->rflags);                                                          \
		return STEP_OK;                                                                                        \
	}                                                                                                              \
	FN(name##_mr##S)                                                                                               \
	{                                                                                                              \
		T a;                                                                                                   \
		int rc = v_read(v, i->seg, insn_ea(v, i), &a, S);                                                      \
                                                                                                                       \
		if (unlikely(rc != STEP_OK))                                                                           \
			return rc;                                                                                     \
		name##S(a, get##S(v, &i->op[1]), &v->rflags);                                                          \
		return STEP_OK;                                                                                        \
	}                                                                                                              \
	FN(name##_mi##S)                                                                                               \
	{                                                                                                              \
		T a;                                                                                                   \
		int rc = v_read(v, i->seg, insn_ea(v, i), &a, S);                                                      \
                                                                                                                       \
		if (unlikely(rc != STEP_OK))                                                                           \
			return rc;                                                                                     \
		name##S(a, (T)i->imm, &v->rflags);                                                                     \
		return STEP_OK;                                                                                        \
	}

#define GEN_UNARY(name, T, S)                                                                                          \
	FN(name##_r##S)                                                                                                \
	{                                                                                                              \
		set##S(v, &i->op[0], name##S(get##S(v, &i->op[0]), 0, &v->rflags));                                    \
		return STEP_OK;                                                                                        \
	}                                                                                                              \
	FN(name##_m##S)                                                                                                \
	{                                                                                                              \
		RMW_BODY(name, T, S, 0)                                                                                \
	}

#define ALL_SIZES(G, name) G(name, t1, 1) G(name, t2, 2) G(name, t4, 4) G(name, t8, 8)

ALL_SIZES(GEN_ALU, add)
ALL_SIZES(GEN_ALU, or)
ALL_SIZES(GEN_ALU, adc)
ALL_SIZES(GEN_ALU, sbb)
ALL_SIZES(GEN_ALU, and)
ALL_SIZES(GEN_ALU, sub)
ALL_SIZES(GEN_ALU, xor)
ALL_SIZES(GEN_CMP, cmp)
ALL_SIZES(GEN_CMP, test)
ALL_SIZES(GEN_UNARY, inc)
ALL_SIZES(GEN_UNARY, dec)
ALL_SIZES(GEN_UNARY, neg)
ALL_SIZES(GEN_UNARY, not )

/* ---- XADD, CMPXCHG ---------------------------------------------------------------------------------------------- */

#define GEN_XADD(name, T, S)                                                                                           \
	FN(name##_r##S)                                                                                                \
	{                                                                                                              \
		T a = get##S(v, &i->op[0]), b = get##S(v, &i->op[1]);                                                  \
		T sum = add##S(a, b, &v->rflags);                                                                      \
                                                                                                                       \
		set##S(v, &i->op[1], a);                                                                               \
		set##S(v, &i->op[0], sum);                                                                             \
		return STEP_OK;                                                                                        \
	}                                                                                                              \
	FN(name##_m##S)                                                                                                \
	{                                                                                                              \
		u8 *p;                                                                                                 \
		bool slow;                                                                                             \
		T old, sum, b = get##S(v, &i->op[1]);                                                                  \
		u64 fl = v->rflags;                                                                                    \
		int rc = rmw_open(v, i, S, i->flags & INSN_LOCK, &p, &slow);                                           \
                                                                                                                       \
		if (unlikely(rc != STEP_OK))                                                                           \
			return rc;                                                                                     \
		old = ld##S(p);                                                                                        \
		sum = add##S(old, b, &fl);                                                                             \
		if (i->flags & INSN_LOCK) {                                                                            \
			while (!cas##S(p, &old, sum))                                                                  \
				sum = add##S(old, b, &fl);                                                             \
		} else {                                                                                               \
			st##S(p, sum);                                                                                 \
		}                                                                                                      \
		rmw_close(v, slow);                                                                                    \
		set##S(v, &i->op[1], old);                                                                             \
		v->rflags = fl;                                                                                        \
		return STEP_OK;                                                                                        \
	}

#define GEN_CMPXCHG(name, T, S)                                                                                        \
	FN(name##_r##S)                                                                                                \
	{                                                                                                              \
		T acc = (T)v->r[R_RAX], dst = get##S(v, &i->op[0]);                                                    \
                                                                                                                       \
		cmp##S(acc, dst, &v->rflags);                                                                          \
		if (v->rflags & FLAGS_ZF) {                                                                            \
			set##S(v, &i->op[0], get##S(v, &i->op[1]));                                                    \
		} else {                                                                                               \
			put_reg(v, R_RAX, S, dst);                                                                     \
		}                                                                                                      \
		return STEP_OK;                                                                                        \
	}                                                                                                              \
	FN(name##_m##S)                                                                                                \
	{                                                                                                              \
		u8 *p;                                                                                                 \
		bool slow;                                                                                             \
		T acc = (T)v->r[R_RAX], old;                                                                           \
		int rc = rmw_open(v, i, S, i->flags & INSN_LOCK, &p, &slow);                                           \
                                                                                                                       \
		if (unlikely(rc != STEP_OK))                                                                           \
			return rc;                                                                                     \
		if (i->flags & INSN_LOCK) {                                                                            \
			old = acc;                                                                                     \
			cas##S(p, &old, get##S(v, &i->op[1]));                                                         \
		} else {                                                                                               \
			old = ld##S(p);                                                                                \
			st##S(p, old == acc ? get##S(v, &i->op[1]) : old);                                             \
		}                                                                                                      \
		rmw_close(v, slow);                                                                                    \
		cmp##S(acc, old, &v->rflags);                                                                          \
		if (old != acc)                                                                                        \
			put_reg(v, R_RAX, S, old);                                                                     \
		return STEP_OK;                                                                                        \
	}

ALL_SIZES(GEN_XADD, xadd)
ALL_SIZES(GEN_CMPXCHG, cmpxchg)

/* Always atomic: cheaper than telling the two forms apart. */
FN(cmpxchg8b)
{
	u8 *p;
	bool slow;
	u64 want = (v->r[R_RDX] << 32) | (u32)v->r[R_RAX];
	u64 new = (v->r[R_RCX] << 32) | (u32)v->r[R_RBX];
	t8 old = want;
	int rc = rmw_open(v, i, 8, i->flags & INSN_LOCK, &p, &slow);

	if (rc != STEP_OK)
		return rc;
	cas8(p, &old, new);
	rmw_close(v, slow);
	v->rflags &= ~FLAGS_ZF;
	if (old == want) {
		v->rflags |= FLAGS_ZF;
	} else {
		v->r[R_RAX] = (u32)old;
		v->r[R_RDX] = old >> 32;
	}
	return STEP_OK;
}

FN(cmpxchg16b)
{
	u8 *p;
	bool slow, ok;
	gva_t gva;
	u64 ea = insn_ea(v, i);
	int rc = v_linear(v, i->seg, ea, 16, MEM_READ | MEM_WRITE, &gva);

	if (rc != STEP_OK)
		return rc;
	if (gva & 15)
		return excp_raise_err(v, EXC_GP, 0);
	rc = rmw_open_at(v, i, ea, 16, i->flags & INSN_LOCK, &p, &slow);
	if (rc != STEP_OK)
		return rc;
	asm volatile("lock; cmpxchg16b %[m]\n\tsete %[ok]"
	             : [ok] "=q"(ok), [m] "+m"(*(u8(*)[16])p), "+a"(v->r[R_RAX]), "+d"(v->r[R_RDX])
	             : "b"(v->r[R_RBX]), "c"(v->r[R_RCX])
	             : "cc", "memory");
	rmw_close(v, slow);
	v->rflags = (v->rflags & ~FLAGS_ZF) | (ok ? FLAGS_ZF : 0);
	return STEP_OK;
}

/* ---- finding ---------------------------------------------------------------------------------------------------- */

enum { F_RR, F_RI, F_RM, F_MR, F_MI, F_COUNT };

#define ROW(name, f)                                                                                                   \
	{                                                                                                              \
		name##_##f##1, name##_##f##2, name##_##f##4, name##_##f##8                                             \
	}
#define TABLE(name)                                                                                                    \
	{                                                                                                              \
		ROW(name, rr), ROW(name, ri), ROW(name, rm), ROW(name, mr), ROW(name, mi)                              \
	}

enum { A_ADD, A_OR, A_ADC, A_SBB, A_AND, A_SUB, A_XOR, A_CMP, A_TEST, A_COUNT };

static const insn_fn alu[A_COUNT][F_COUNT][4] = {
        [A_ADD] = TABLE(add), [A_OR] = TABLE(or),   [A_ADC] = TABLE(adc), [A_SBB] = TABLE(sbb),   [A_AND] = TABLE(and),
        [A_SUB] = TABLE(sub), [A_XOR] = TABLE(xor), [A_CMP] = TABLE(cmp), [A_TEST] = TABLE(test),
};

enum { U_INC, U_DEC, U_NEG, U_NOT, U_XADD, U_CMPXCHG, U_COUNT };

#define UTABLE(name)                                                                                                   \
	{                                                                                                              \
		ROW(name, r), ROW(name, m)                                                                             \
	}
static const insn_fn unary[U_COUNT][2][4] = {
        [U_INC] = UTABLE(inc),  [U_DEC] = UTABLE(dec),   [U_NEG] = UTABLE(neg),
        [U_NOT] = UTABLE(not ), [U_XADD] = UTABLE(xadd), [U_CMPXCHG] = UTABLE(cmpxchg),
};

static int form_of(const struct insn *i)
{
	if (i->op[0].kind == OPK_MEM)
		return i->op[1].kind == OPK_IMM ? F_MI : F_MR;
	return i->op[1].kind == OPK_MEM ? F_RM : i->op[1].kind == OPK_IMM ? F_RI : F_RR;
}

insn_fn op_alu_find(const struct insn *i)
{
	int a = -1, u = -1, s = size_index(i->op[0].size);

	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_ADD:
		a = A_ADD;
		break;
	case ZYDIS_MNEMONIC_OR:
		a = A_OR;
		break;
	case ZYDIS_MNEMONIC_ADC:
		a = A_ADC;
		break;
	case ZYDIS_MNEMONIC_SBB:
		a = A_SBB;
		break;
	case ZYDIS_MNEMONIC_AND:
		a = A_AND;
		break;
	case ZYDIS_MNEMONIC_SUB:
		a = A_SUB;
		break;
	case ZYDIS_MNEMONIC_XOR:
		a = A_XOR;
		break;
	case ZYDIS_MNEMONIC_CMP:
		a = A_CMP;
		break;
	case ZYDIS_MNEMONIC_TEST:
		a = A_TEST;
		break;
	case ZYDIS_MNEMONIC_INC:
		u = U_INC;
		break;
	case ZYDIS_MNEMONIC_DEC:
		u = U_DEC;
		break;
	case ZYDIS_MNEMONIC_NEG:
		u = U_NEG;
		break;
	case ZYDIS_MNEMONIC_NOT:
		u = U_NOT;
		break;
	case ZYDIS_MNEMONIC_XADD:
		u = U_XADD;
		break;
	case ZYDIS_MNEMONIC_CMPXCHG:
		u = U_CMPXCHG;
		break;
	case ZYDIS_MNEMONIC_CMPXCHG8B:
		return cmpxchg8b;
	case ZYDIS_MNEMONIC_CMPXCHG16B:
		return cmpxchg16b;
	default:
		return NULL;
	}
	if (a >= 0)
		return alu[a][form_of(i)][s];
	return unary[u][i->op[0].kind == OPK_MEM][s];
}
