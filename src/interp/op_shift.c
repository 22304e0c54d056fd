/*
 * op_shift.c: shifts and rotates: ROL ROR RCL RCR SHL SHR SAR, SHLD SHRD, and the flagless SARX SHLX SHRX RORX.
 *
 * The host's own instruction runs on the value with the guest's flags loaded, so a count of zero keeps the flags and
 * undefined flags come out as on the host. It counts in CL also for a constant count; where that makes a difference to
 * the host (rotates, see rotate_keeps_of()), the constant's way is taken.
 */
#include "interp_impl.h"

#define FN(name) static int name(struct vcpu *v, const struct insn *i)

#define GEN_SH(name, T, S, sfx)                                                                                        \
	static inline T name##S(T a, u8 count, u64 *fl)                                                                \
	{                                                                                                              \
		u32 ax = fl_pack(*fl);                                                                                 \
		asm(FL_LOAD #name sfx " %%cl, %[a]" FL_SAVE : [a] "+q"(a), "+a"(ax) : "c"(count) : "cc");              \
		*fl = fl_merge(*fl, ax);                                                                               \
		return a;                                                                                              \
	}                                                                                                              \
	FN(name##_ri##S)                                                                                               \
	{                                                                                                              \
		set##S(v, &i->op[0], name##S(get##S(v, &i->op[0]), (u8)i->imm, &v->rflags));                           \
		return STEP_OK;                                                                                        \
	}                                                                                                              \
	FN(name##_rc##S)                                                                                               \
	{                                                                                                              \
		set##S(v, &i->op[0], name##S(get##S(v, &i->op[0]), (u8)v->r[R_RCX], &v->rflags));                      \
		return STEP_OK;                                                                                        \
	}                                                                                                              \
	FN(name##_m##S)                                                                                                \
	{                                                                                                              \
		u8 count = i->op[1].kind == OPK_IMM ? (u8)i->imm : (u8)v->r[R_RCX];                                    \
		u8 *p;                                                                                                 \
		bool slow;                                                                                             \
		int rc = rmw_open(v, i, S, false, &p, &slow);                                                          \
                                                                                                                       \
		if (unlikely(rc != STEP_OK))                                                                           \
			return rc;                                                                                     \
		st##S(p, name##S(ld##S(p), count, &v->rflags));                                                        \
		rmw_close(v, slow);                                                                                    \
		return STEP_OK;                                                                                        \
	}

#define GEN_SIZES(name)                                                                                                \
	GEN_SH(name, t1, 1, "b")                                                                                       \
	GEN_SH(name, t2, 2, "w")                                                                                       \
	GEN_SH(name, t4, 4, "l")                                                                                       \
	GEN_SH(name, t8, 8, "q")

GEN_SIZES(rol)
GEN_SIZES(ror)
GEN_SIZES(rcl)
GEN_SIZES(rcr)
GEN_SIZES(shl)
GEN_SIZES(shr)
GEN_SIZES(sar)

static bool host_keeps_of(void)
{
	u32 set = fl_pack(FLAGS_OF), clear = fl_pack(0);
	u8 a = 0x0f;

	asm(FL_LOAD "rolb $2, %[a]" FL_SAVE : [a] "+q"(a), "+a"(set) : : "cc");
	a = 0x0f;
	asm(FL_LOAD "rolb $2, %[a]" FL_SAVE : [a] "+q"(a), "+a"(clear) : : "cc");
	return (fl_merge(0, set) ^ fl_merge(0, clear)) & FLAGS_OF;
}

/*
 * OF after a rotate by more than one is undefined (SDM vol. 2, RCL/RCR/ROL/ROR). Intel's processors compute it from the
 * result for a count in CL and for memory, but leave it alone where a register turns by a constant.
 */
bool op_shift_keeps_of(const struct insn *i)
{
	return (i->mnemonic == ZYDIS_MNEMONIC_ROL || i->mnemonic == ZYDIS_MNEMONIC_ROR) && i->opcode < 0xd0 &&
	       i->op[0].kind == OPK_GPR && ((u8)i->imm & (i->op[0].size == 8 ? 63 : 31)) != 1 && host_keeps_of();
}

#define GEN_KEEP(name, S)                                                                                              \
	FN(name##_keep##S)                                                                                             \
	{                                                                                                              \
		u64 old = v->rflags;                                                                                   \
                                                                                                                       \
		name##_ri##S(v, i);                                                                                    \
		v->rflags = (v->rflags & ~(u64)FLAGS_OF) | (old & FLAGS_OF);                                           \
		return STEP_OK;                                                                                        \
	}

GEN_KEEP(rol, 1)
GEN_KEEP(rol, 2)
GEN_KEEP(rol, 4)
GEN_KEEP(rol, 8)
GEN_KEEP(ror, 1)
GEN_KEEP(ror, 2)
GEN_KEEP(ror, 4)
GEN_KEEP(ror, 8)

/* ---- double shifts ---------------------------------------------------------------------------------------------- */

#define GEN_SHD(name, T, S, sfx)                                                                                       \
	static T name##S(T a, T b, u8 count, u64 *fl)                                                                  \
	{                                                                                                              \
		u32 ax = fl_pack(*fl);                                                                                 \
		asm(FL_LOAD #name sfx " %%cl, %[b], %[a]" FL_SAVE                                                      \
		    : [a] "+r"(a), "+a"(ax)                                                                            \
		    : [b] "r"(b), "c"(count)                                                                           \
		    : "cc");                                                                                           \
		*fl = fl_merge(*fl, ax);                                                                               \
		return a;                                                                                              \
	}                                                                                                              \
	FN(name##_##S)                                                                                                 \
	{                                                                                                              \
		u8 count = i->op[2].kind == OPK_IMM ? (u8)i->imm : (u8)v->r[R_RCX];                                    \
		T b = get##S(v, &i->op[1]);                                                                            \
		u8 *p;                                                                                                 \
		bool slow;                                                                                             \
		int rc;                                                                                                \
                                                                                                                       \
		if (i->op[0].kind != OPK_MEM) {                                                                        \
			set##S(v, &i->op[0], name##S(get##S(v, &i->op[0]), b, count, &v->rflags));                     \
			return STEP_OK;                                                                                \
		}                                                                                                      \
		rc = rmw_open(v, i, S, false, &p, &slow);                                                              \
		if (unlikely(rc != STEP_OK))                                                                           \
			return rc;                                                                                     \
		st##S(p, name##S(ld##S(p), b, count, &v->rflags));                                                     \
		rmw_close(v, slow);                                                                                    \
		return STEP_OK;                                                                                        \
	}

GEN_SHD(shld, t2, 2, "w")
GEN_SHD(shld, t4, 4, "l")
GEN_SHD(shld, t8, 8, "q")
GEN_SHD(shrd, t2, 2, "w")
GEN_SHD(shrd, t4, 4, "l")
GEN_SHD(shrd, t8, 8, "q")

/* ---- BMI2: op[0] = op[1] shifted by op[2]; no flags -------------------------------------------------------------- */

static bool vex_ok(const struct vcpu *v)
{
	return v->mode != MODE_REAL && v->mode != MODE_V86;
}

FN(shiftx)
{
	unsigned size = i->op[0].size, bits = size * 8, n;
	u64 x, r;
	int rc;

	if (!vex_ok(v))
		return excp_raise(v, EXC_UD);
	rc = read_rm(v, i, 1, size, &x);
	if (rc != STEP_OK)
		return rc;
	n = (i->mnemonic == ZYDIS_MNEMONIC_RORX ? (unsigned)i->imm : (unsigned)get_reg(v, &i->op[2], size)) &
	    (bits - 1);
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_SHLX:
		r = x << n;
		break;
	case ZYDIS_MNEMONIC_SHRX:
		r = x >> n;
		break;
	case ZYDIS_MNEMONIC_SARX:
		r = size == 4 ? (u64)((s32)x >> n) : (u64)((s64)x >> n);
		break;
	default:
		r = n ? (x >> n) | (x << (bits - n)) : x;
		break;
	}
	set_reg(v, &i->op[0], size, r);
	return STEP_OK;
}

/* ---- finding ---------------------------------------------------------------------------------------------------- */

#define ROW(name, f)                                                                                                   \
	{                                                                                                              \
		name##_##f##1, name##_##f##2, name##_##f##4, name##_##f##8                                             \
	}
#define TABLE(name)                                                                                                    \
	{                                                                                                              \
		ROW(name, ri), ROW(name, rc), ROW(name, m)                                                             \
	}

static const insn_fn shifts[7][3][4] = {TABLE(rol), TABLE(ror), TABLE(rcl), TABLE(rcr),
                                        TABLE(shl), TABLE(shr), TABLE(sar)};
static const insn_fn keeping[2][4] = {ROW(rol, keep), ROW(ror, keep)};
static const insn_fn doubles[2][4] = {{NULL, shld_2, shld_4, shld_8}, {NULL, shrd_2, shrd_4, shrd_8}};

insn_fn op_shift_find(const struct insn *i)
{
	int s = size_index(i->op[0].size), n;

	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_ROL:
		n = 0;
		break;
	case ZYDIS_MNEMONIC_ROR:
		n = 1;
		break;
	case ZYDIS_MNEMONIC_RCL:
		n = 2;
		break;
	case ZYDIS_MNEMONIC_RCR:
		n = 3;
		break;
	case ZYDIS_MNEMONIC_SHL:
		n = 4;
		break;
	case ZYDIS_MNEMONIC_SHR:
		n = 5;
		break;
	case ZYDIS_MNEMONIC_SAR:
		n = 6;
		break;
	case ZYDIS_MNEMONIC_SHLD:
		return doubles[0][s];
	case ZYDIS_MNEMONIC_SHRD:
		return doubles[1][s];
	case ZYDIS_MNEMONIC_SHLX:
	case ZYDIS_MNEMONIC_SHRX:
	case ZYDIS_MNEMONIC_SARX:
	case ZYDIS_MNEMONIC_RORX:
		return shiftx;
	default:
		return NULL;
	}
	if (i->op[0].kind == OPK_MEM)
		return shifts[n][2][s];
	if (op_shift_keeps_of(i))
		return keeping[n][s];
	return shifts[n][i->op[1].kind == OPK_IMM ? 0 : 1][s];
}
