/*
 * op_mov.c: moves: MOV (general registers, memory, immediates, moffs), MOVZX, MOVSX, MOVSXD, XCHG, CMOVcc, SETcc, LEA,
 * BSWAP, MOVBE, MOVNTI, XLAT and the sign extensions of the accumulator. Segment registers are op_seg.c's, control and
 * debug registers op_sys.c's.
 */
#include "interp_impl.h"

#define FN(name) static int name(struct vcpu *v, const struct insn *i)
#define ALL_SIZES(G, name) G(name, t1, 1) G(name, t2, 2) G(name, t4, 4) G(name, t8, 8)

#define GEN_MOV(name, T, S)                                                                                            \
	FN(name##_rr##S)                                                                                               \
	{                                                                                                              \
		set##S(v, &i->op[0], get##S(v, &i->op[1]));                                                            \
		return STEP_OK;                                                                                        \
	}                                                                                                              \
	FN(name##_ri##S)                                                                                               \
	{                                                                                                              \
		set##S(v, &i->op[0], (T)i->imm);                                                                       \
		return STEP_OK;                                                                                        \
	}                                                                                                              \
	FN(name##_rm##S)                                                                                               \
	{                                                                                                              \
		T x;                                                                                                   \
		int rc = v_read(v, i->seg, insn_ea(v, i), &x, S);                                                      \
                                                                                                                       \
		if (unlikely(rc != STEP_OK))                                                                           \
			return rc;                                                                                     \
		set##S(v, &i->op[0], x);                                                                               \
		return STEP_OK;                                                                                        \
	}                                                                                                              \
	FN(name##_mr##S)                                                                                               \
	{                                                                                                              \
		T x = get##S(v, &i->op[1]);                                                                            \
                                                                                                                       \
		return v_write(v, i->seg, insn_ea(v, i), &x, S);                                                       \
	}                                                                                                              \
	FN(name##_mi##S)                                                                                               \
	{                                                                                                              \
		T x = (T)i->imm;                                                                                       \
                                                                                                                       \
		return v_write(v, i->seg, insn_ea(v, i), &x, S);                                                       \
	}                                                                                                              \
	FN(xchg_r##S)                                                                                                  \
	{                                                                                                              \
		T a = get##S(v, &i->op[0]), b = get##S(v, &i->op[1]);                                                  \
                                                                                                                       \
		set##S(v, &i->op[0], b);                                                                               \
		set##S(v, &i->op[1], a);                                                                               \
		return STEP_OK;                                                                                        \
	}

ALL_SIZES(GEN_MOV, mov)

/* XCHG with memory locks whether it says so or not; the memory operand may be named first or second. */
#define GEN_XCHG(T, S, sfx)                                                                                            \
	FN(xchg_m##S)                                                                                                  \
	{                                                                                                              \
		const struct operand *o = &i->op[i->op[0].kind == OPK_MEM];                                            \
		T x = get##S(v, o);                                                                                    \
		u8 *p;                                                                                                 \
		bool slow;                                                                                             \
		int rc = rmw_open(v, i, S, true, &p, &slow);                                                           \
                                                                                                                       \
		if (unlikely(rc != STEP_OK))                                                                           \
			return rc;                                                                                     \
		asm volatile("xchg" sfx " %[x], %[m]" : [x] "+q"(x), [m] "+m"(*(T(*)[1])(void *)p) : : "memory");      \
		rmw_close(v, slow);                                                                                    \
		set##S(v, o, x);                                                                                       \
		return STEP_OK;                                                                                        \
	}

GEN_XCHG(t1, 1, "b")
GEN_XCHG(t2, 2, "w")
GEN_XCHG(t4, 4, "l")
GEN_XCHG(t8, 8, "q")

/* MOVZX, MOVSX, MOVSXD: destination size D, source size S and signedness. */
#define GEN_EXT(D, S, name, SRC, DST)                                                                                  \
	FN(name##_r##D##S)                                                                                             \
	{                                                                                                              \
		set##D(v, &i->op[0], (DST)(SRC)get##S(v, &i->op[1]));                                                  \
		return STEP_OK;                                                                                        \
	}                                                                                                              \
	FN(name##_m##D##S)                                                                                             \
	{                                                                                                              \
		SRC x;                                                                                                 \
		int rc = v_read(v, i->seg, insn_ea(v, i), &x, S);                                                      \
                                                                                                                       \
		if (unlikely(rc != STEP_OK))                                                                           \
			return rc;                                                                                     \
		set##D(v, &i->op[0], (DST)x);                                                                          \
		return STEP_OK;                                                                                        \
	}

GEN_EXT(2, 1, movzx, u8, u16)
GEN_EXT(4, 1, movzx, u8, u32)
GEN_EXT(8, 1, movzx, u8, u64)
GEN_EXT(2, 2, movzx, u16, u16)
GEN_EXT(4, 2, movzx, u16, u32)
GEN_EXT(8, 2, movzx, u16, u64)
GEN_EXT(2, 1, movsx, s8, u16)
GEN_EXT(4, 1, movsx, s8, u32)
GEN_EXT(8, 1, movsx, s8, u64)
GEN_EXT(2, 2, movsx, s16, u16)
GEN_EXT(4, 2, movsx, s16, u32)
GEN_EXT(8, 2, movsx, s16, u64)
GEN_EXT(2, 4, movsx, s32, u16)
GEN_EXT(4, 4, movsx, s32, u32)
GEN_EXT(8, 4, movsx, s32, u64)

static insn_fn ext_find(const struct insn *i, bool sign)
{
	unsigned d = i->op[0].size, s = i->op[1].size;
	bool m = i->op[1].kind == OPK_MEM;

#define PICK(D, S, name)                                                                                               \
	if (d == D && s == S)                                                                                          \
	return m ? name##_m##D##S : name##_r##D##S
	if (sign) {
		PICK(2, 1, movsx);
		PICK(4, 1, movsx);
		PICK(8, 1, movsx);
		PICK(2, 2, movsx);
		PICK(4, 2, movsx);
		PICK(8, 2, movsx);
		PICK(4, 4, movsx);
		PICK(8, 4, movsx);
		/* MOVSXD with a 16-bit destination keeps the low half; AMD reads all 32 bits, Intel only those. */
		if (d == 2 && s == 4)
			return m ? (cpuid_is_amd() ? movsx_m24 : movsx_m22) : movsx_r24;
		return NULL;
	}
	PICK(2, 1, movzx);
	PICK(4, 1, movzx);
	PICK(8, 1, movzx);
	PICK(2, 2, movzx);
	PICK(4, 2, movzx);
	PICK(8, 2, movzx);
#undef PICK
	return NULL;
}

#define GEN_LEA(S, T)                                                                                                  \
	FN(lea##S)                                                                                                     \
	{                                                                                                              \
		set##S(v, &i->op[0], (T)insn_ea(v, i));                                                                \
		return STEP_OK;                                                                                        \
	}

GEN_LEA(2, u16)
GEN_LEA(4, u32)
GEN_LEA(8, u64)

/* The load of CMOVcc happens, and may fault, whatever the condition says. A 32-bit destination is always zero-extended.
 */
#define GEN_CMOV(S, T)                                                                                                 \
	FN(cmov_r##S)                                                                                                  \
	{                                                                                                              \
		T a = get##S(v, &i->op[0]), b = get##S(v, &i->op[1]);                                                  \
                                                                                                                       \
		set##S(v, &i->op[0], fl_cond(v->rflags, i->opcode) ? b : a);                                           \
		return STEP_OK;                                                                                        \
	}                                                                                                              \
	FN(cmov_m##S)                                                                                                  \
	{                                                                                                              \
		T a = get##S(v, &i->op[0]), b;                                                                         \
		int rc = v_read(v, i->seg, insn_ea(v, i), &b, S);                                                      \
                                                                                                                       \
		if (unlikely(rc != STEP_OK))                                                                           \
			return rc;                                                                                     \
		set##S(v, &i->op[0], fl_cond(v->rflags, i->opcode) ? b : a);                                           \
		return STEP_OK;                                                                                        \
	}

GEN_CMOV(2, u16)
GEN_CMOV(4, u32)
GEN_CMOV(8, u64)

FN(setcc_r)
{
	set1(v, &i->op[0], fl_cond(v->rflags, i->opcode));
	return STEP_OK;
}

FN(setcc_m)
{
	u8 x = fl_cond(v->rflags, i->opcode);

	return v_write(v, i->seg, insn_ea(v, i), &x, 1);
}

/* BSWAP of a 16-bit register is undefined; hosts clear it or swap something: let this one decide. */
FN(bswap)
{
	u64 x = v->r[i->op[0].reg];

	if (i->osize == 8)
		x = __builtin_bswap64(x);
	else if (i->osize == 4)
		x = __builtin_bswap32((u32)x);
	else
		asm(".byte 0x66\n\tbswapl %%eax" : "+a"(x));
	v->r[i->op[0].reg] = x;
	return STEP_OK;
}

static u64 swap_bytes(u64 x, unsigned size)
{
	return size == 2 ? __builtin_bswap16((u16)x) : size == 4 ? __builtin_bswap32((u32)x) : __builtin_bswap64(x);
}

FN(movbe)
{
	unsigned size = i->osize;
	u64 x;
	int rc;

	if (i->op[0].kind == OPK_MEM)
		return write_sized(v, i->seg, insn_ea(v, i), size, swap_bytes(get_reg(v, &i->op[1], size), size));
	rc = read_sized(v, i->seg, insn_ea(v, i), size, &x);
	if (rc != STEP_OK)
		return rc;
	set_reg(v, &i->op[0], size, swap_bytes(x, size));
	return STEP_OK;
}

FN(movnti)
{
	unsigned size = i->op[0].size;

	return write_sized(v, i->seg, insn_ea(v, i), size, get_reg(v, &i->op[1], size));
}

FN(xlat)
{
	u64 ea = v->r[R_RBX] + (u8)v->r[R_RAX];
	u8 x;
	int rc = v_read(v, i->seg, ea & size_mask(i->asize), &x, 1);

	if (rc != STEP_OK)
		return rc;
	put_reg(v, R_RAX, 1, x);
	return STEP_OK;
}

FN(cbw)
{
	put_reg(v, R_RAX, 2, (u16)(s8)v->r[R_RAX]);
	return STEP_OK;
}
FN(cwde)
{
	v->r[R_RAX] = (u32)(s16)v->r[R_RAX];
	return STEP_OK;
}
FN(cdqe)
{
	v->r[R_RAX] = (u64)(s32)v->r[R_RAX];
	return STEP_OK;
}
FN(cwd)
{
	put_reg(v, R_RDX, 2, (s16)v->r[R_RAX] < 0 ? 0xffff : 0);
	return STEP_OK;
}
FN(cdq)
{
	v->r[R_RDX] = (s32)v->r[R_RAX] < 0 ? 0xffffffffu : 0;
	return STEP_OK;
}
FN(cqo)
{
	v->r[R_RDX] = (s64)v->r[R_RAX] < 0 ? ~0ull : 0;
	return STEP_OK;
}

#define ROW(name, f)                                                                                                   \
	{                                                                                                              \
		name##_##f##1, name##_##f##2, name##_##f##4, name##_##f##8                                             \
	}
static const insn_fn movs[5][4] = {ROW(mov, rr), ROW(mov, ri), ROW(mov, rm), ROW(mov, mr), ROW(mov, mi)};
static const insn_fn xchgs[2][4] = {{xchg_r1, xchg_r2, xchg_r4, xchg_r8}, {xchg_m1, xchg_m2, xchg_m4, xchg_m8}};
static const insn_fn cmovs[2][4] = {{NULL, cmov_r2, cmov_r4, cmov_r8}, {NULL, cmov_m2, cmov_m4, cmov_m8}};
static const insn_fn leas[4] = {NULL, lea2, lea4, lea8};

static insn_fn mov_find(const struct insn *i)
{
	unsigned a = i->op[0].kind, b = i->op[1].kind, s = (unsigned)size_index(i->op[0].size);

	if (a == OPK_GPR && b == OPK_GPR)
		return movs[0][s];
	if (a == OPK_GPR && b == OPK_IMM)
		return movs[1][s];
	if (a == OPK_GPR && b == OPK_MEM)
		return movs[2][s];
	if (a == OPK_MEM && b == OPK_GPR)
		return movs[3][s];
	if (a == OPK_MEM && b == OPK_IMM)
		return movs[4][s];
	return NULL;
}

insn_fn op_mov_find(const struct insn *i)
{
	unsigned s = (unsigned)size_index(i->op[0].size);
	bool m0 = i->op[0].kind == OPK_MEM, m1 = i->op[1].kind == OPK_MEM;

	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		return mov_find(i);
	case ZYDIS_MNEMONIC_MOVZX:
		return ext_find(i, false);
	case ZYDIS_MNEMONIC_MOVSX:
	case ZYDIS_MNEMONIC_MOVSXD:
		return ext_find(i, true);
	case ZYDIS_MNEMONIC_XCHG:
		return xchgs[m0 || m1][s];
	case ZYDIS_MNEMONIC_LEA:
		return leas[s];
	case ZYDIS_MNEMONIC_CMOVB:
	case ZYDIS_MNEMONIC_CMOVBE:
	case ZYDIS_MNEMONIC_CMOVL:
	case ZYDIS_MNEMONIC_CMOVLE:
	case ZYDIS_MNEMONIC_CMOVNB:
	case ZYDIS_MNEMONIC_CMOVNBE:
	case ZYDIS_MNEMONIC_CMOVNL:
	case ZYDIS_MNEMONIC_CMOVNLE:
	case ZYDIS_MNEMONIC_CMOVNO:
	case ZYDIS_MNEMONIC_CMOVNP:
	case ZYDIS_MNEMONIC_CMOVNS:
	case ZYDIS_MNEMONIC_CMOVNZ:
	case ZYDIS_MNEMONIC_CMOVO:
	case ZYDIS_MNEMONIC_CMOVP:
	case ZYDIS_MNEMONIC_CMOVS:
	case ZYDIS_MNEMONIC_CMOVZ:
		return cmovs[m1][s];
	case ZYDIS_MNEMONIC_SETB:
	case ZYDIS_MNEMONIC_SETBE:
	case ZYDIS_MNEMONIC_SETL:
	case ZYDIS_MNEMONIC_SETLE:
	case ZYDIS_MNEMONIC_SETNB:
	case ZYDIS_MNEMONIC_SETNBE:
	case ZYDIS_MNEMONIC_SETNL:
	case ZYDIS_MNEMONIC_SETNLE:
	case ZYDIS_MNEMONIC_SETNO:
	case ZYDIS_MNEMONIC_SETNP:
	case ZYDIS_MNEMONIC_SETNS:
	case ZYDIS_MNEMONIC_SETNZ:
	case ZYDIS_MNEMONIC_SETO:
	case ZYDIS_MNEMONIC_SETP:
	case ZYDIS_MNEMONIC_SETS:
	case ZYDIS_MNEMONIC_SETZ:
		return m0 ? setcc_m : setcc_r;
	case ZYDIS_MNEMONIC_BSWAP:
		return bswap;
	case ZYDIS_MNEMONIC_MOVBE:
		return movbe;
	case ZYDIS_MNEMONIC_MOVNTI:
		return movnti;
	case ZYDIS_MNEMONIC_XLAT:
		return xlat;
	case ZYDIS_MNEMONIC_CBW:
		return cbw;
	case ZYDIS_MNEMONIC_CWDE:
		return cwde;
	case ZYDIS_MNEMONIC_CDQE:
		return cdqe;
	case ZYDIS_MNEMONIC_CWD:
		return cwd;
	case ZYDIS_MNEMONIC_CDQ:
		return cdq;
	case ZYDIS_MNEMONIC_CQO:
		return cqo;
	default:
		return NULL;
	}
}
