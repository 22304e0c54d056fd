/*
 * op_bits.c: BT BTS BTR BTC, BSF BSR LZCNT TZCNT POPCNT, BMI1, BMI2's PDEP PEXT BZHI, CRC32.
 *
 * Host instructions do the work, with the guest's flags and the whole destination register loaded: what a BSF of zero
 * leaves in its destination is then the host's answer.
 */
#include "interp_impl.h"

#define FN(name) static int name(struct vcpu *v, const struct insn *i)

/* ---- bit tests -------------------------------------------------------------------------------------------------- */

#define GEN_BT1(name, T, S, sfx)                                                                                       \
	static inline T name##S(T a, T bit, u64 *fl)                                                                   \
	{                                                                                                              \
		u32 ax = fl_pack(*fl);                                                                                 \
		asm(FL_LOAD #name sfx " %[b], %[a]" FL_SAVE : [a] "+r"(a), "+a"(ax) : [b] "r"(bit) : "cc");            \
		*fl = fl_merge(*fl, ax);                                                                               \
		return a;                                                                                              \
	}
#define GEN_BT(name) GEN_BT1(name, t2, 2, "w") GEN_BT1(name, t4, 4, "l") GEN_BT1(name, t8, 8, "q")
GEN_BT(bt)
GEN_BT(bts)
GEN_BT(btr)
GEN_BT(btc)

static u64 bit_op(unsigned mnemonic, unsigned size, u64 a, u64 bit, u64 *fl)
{
#define SIZES(name)                                                                                                    \
	return size == 2   ? name##2((u16)a, (u16)bit, fl)                                                             \
	       : size == 4 ? name##4((u32)a, (u32)bit, fl)                                                             \
	                   : name##8(a, bit, fl)
	switch (mnemonic) {
	case ZYDIS_MNEMONIC_BTS:
		SIZES(bts);
	case ZYDIS_MNEMONIC_BTR:
		SIZES(btr);
	case ZYDIS_MNEMONIC_BTC:
		SIZES(btc);
	default:
		SIZES(bt);
	}
#undef SIZES
}

FN(bt_reg)
{
	unsigned size = i->op[0].size;
	u64 bit = i->op[1].kind == OPK_IMM ? i->imm : get_reg(v, &i->op[1], size);
	u64 r = bit_op(i->mnemonic, size, get_reg(v, &i->op[0], size), bit & (size * 8 - 1), &v->rflags);

	if (i->mnemonic != ZYDIS_MNEMONIC_BT)
		set_reg(v, &i->op[0], size, r);
	return STEP_OK;
}

/* A register bit offset is signed and reaches beyond the operand: it moves the address by whole operands. */
FN(bt_mem)
{
	unsigned size = i->op[0].size, bits = size * 8;
	u64 ea = insn_ea(v, i), bit, x, fl;
	bool slow;
	u8 *p;
	int rc;

	if (i->op[1].kind == OPK_IMM) {
		bit = i->imm & (bits - 1);
	} else {
		s64 off = size == 2   ? (s16)get2(v, &i->op[1])
		          : size == 4 ? (s32)get4(v, &i->op[1])
		                      : (s64)get8(v, &i->op[1]);

		bit = (u64)off & (bits - 1);
		ea = (ea + (u64)((off >> (size == 2 ? 4 : size == 4 ? 5 : 6)) * (s64)size)) & size_mask(i->asize);
	}
	if (i->mnemonic == ZYDIS_MNEMONIC_BT) {
		rc = read_sized(v, i->seg, ea, size, &x);
		if (rc == STEP_OK)
			bit_op(i->mnemonic, size, x, bit, &v->rflags);
		return rc;
	}
	rc = rmw_open_at(v, i, ea, size, i->flags & INSN_LOCK, &p, &slow);
	if (rc != STEP_OK)
		return rc;
#define DO(S, T)                                                                                                       \
	do {                                                                                                           \
		T old = ld##S(p), new;                                                                                 \
		do {                                                                                                   \
			fl = v->rflags;                                                                                \
			new = (T)bit_op(i->mnemonic, S, old, bit, &fl);                                                \
			if (!(i->flags & INSN_LOCK)) {                                                                 \
				st##S(p, new);                                                                         \
				break;                                                                                 \
			}                                                                                              \
		} while (!cas##S(p, &old, new));                                                                       \
	} while (0)
	if (size == 2)
		DO(2, t2);
	else if (size == 4)
		DO(4, t4);
	else
		DO(8, t8);
#undef DO
	v->rflags = fl;
	rmw_close(v, slow);
	return STEP_OK;
}

/* ---- scans and counts ------------------------------------------------------------------------------------------- */

/* dst is the whole 64-bit register, before and after. */
#define GEN_SCAN1(name, S, sfx, mod)                                                                                   \
	static inline u64 name##S(u64 dst, u64 src, u64 *fl)                                                           \
	{                                                                                                              \
		u32 ax = fl_pack(*fl);                                                                                 \
		asm(FL_LOAD #name sfx " %" mod "[s], %" mod "[d]" FL_SAVE                                              \
		    : [d] "+r"(dst), "+a"(ax)                                                                          \
		    : [s] "r"(src)                                                                                     \
		    : "cc");                                                                                           \
		*fl = fl_merge(*fl, ax);                                                                               \
		return dst;                                                                                            \
	}
#define GEN_SCAN(name)                                                                                                 \
	GEN_SCAN1(name, 2, "w", "w")                                                                                   \
	GEN_SCAN1(name, 4, "l", "k")                                                                                   \
	GEN_SCAN1(name, 8, "q", "q")                                                                                   \
	FN(name##_any)                                                                                                 \
	{                                                                                                              \
		unsigned size = i->op[0].size;                                                                         \
		u64 x, *d = &v->r[i->op[0].reg];                                                                       \
		int rc = read_rm(v, i, 1, size, &x);                                                                   \
                                                                                                                       \
		if (rc != STEP_OK)                                                                                     \
			return rc;                                                                                     \
		*d = size == 2   ? name##2(*d, x, &v->rflags)                                                          \
		     : size == 4 ? name##4(*d, x, &v->rflags)                                                          \
		                 : name##8(*d, x, &v->rflags);                                                         \
		return STEP_OK;                                                                                        \
	}
GEN_SCAN(bsf)
GEN_SCAN(bsr)
GEN_SCAN(lzcnt)
GEN_SCAN(tzcnt)
GEN_SCAN(popcnt)

/* ---- BMI -------------------------------------------------------------------------------------------------------- */

/* VEX-encoded general-register instructions do not exist in real and virtual-8086 mode. */
static bool vex_ok(const struct vcpu *v)
{
	return v->mode != MODE_REAL && v->mode != MODE_V86;
}

/* Two sources a, b in host operand order "op b, a, dst" (AT&T: second source last in Intel order comes first). */
#define GEN_VEX3_1(name, S, sfx, mod)                                                                                  \
	static u64 name##S(u64 a, u64 b, u64 *fl)                                                                      \
	{                                                                                                              \
		u32 ax = fl_pack(*fl);                                                                                 \
		u64 d;                                                                                                 \
		asm(FL_LOAD #name sfx " %" mod "[b], %" mod "[a], %" mod "[d]" FL_SAVE                                 \
		    : [d] "=&r"(d), "+a"(ax)                                                                           \
		    : [a] "r"(a), [b] "r"(b)                                                                           \
		    : "cc");                                                                                           \
		*fl = fl_merge(*fl, ax);                                                                               \
		return d;                                                                                              \
	}
/* `rm` is the operand that may be memory (1 or 2), `vv` the other one. Host order: first Intel source last. */
#define GEN_VEX3(name, rm, vv)                                                                                         \
	GEN_VEX3_1(name, 4, "l", "k")                                                                                  \
	GEN_VEX3_1(name, 8, "q", "q")                                                                                  \
	FN(name##_any)                                                                                                 \
	{                                                                                                              \
		unsigned size = i->op[0].size;                                                                         \
		u64 src[3];                                                                                            \
		int rc;                                                                                                \
                                                                                                                       \
		if (!vex_ok(v))                                                                                        \
			return excp_raise(v, EXC_UD);                                                                  \
		rc = read_rm(v, i, rm, size, &src[rm]);                                                                \
		if (rc != STEP_OK)                                                                                     \
			return rc;                                                                                     \
		src[vv] = get_reg(v, &i->op[vv], size);                                                                \
		set_reg(v, &i->op[0], size,                                                                            \
		        size == 4 ? name##4(src[1], src[2], &v->rflags) : name##8(src[1], src[2], &v->rflags));        \
		return STEP_OK;                                                                                        \
	}
GEN_VEX3(andn, 2, 1)
GEN_VEX3(pdep, 2, 1)
GEN_VEX3(pext, 2, 1)
GEN_VEX3(bextr, 1, 2)
GEN_VEX3(bzhi, 1, 2)

#define GEN_VEX2_1(name, S, sfx, mod)                                                                                  \
	static u64 name##S(u64 a, u64 *fl)                                                                             \
	{                                                                                                              \
		u32 ax = fl_pack(*fl);                                                                                 \
		u64 d;                                                                                                 \
		asm(FL_LOAD #name sfx " %" mod "[a], %" mod "[d]" FL_SAVE                                              \
		    : [d] "=&r"(d), "+a"(ax)                                                                           \
		    : [a] "r"(a)                                                                                       \
		    : "cc");                                                                                           \
		*fl = fl_merge(*fl, ax);                                                                               \
		return d;                                                                                              \
	}
#define GEN_VEX2(name)                                                                                                 \
	GEN_VEX2_1(name, 4, "l", "k")                                                                                  \
	GEN_VEX2_1(name, 8, "q", "q")                                                                                  \
	FN(name##_any)                                                                                                 \
	{                                                                                                              \
		unsigned size = i->op[0].size;                                                                         \
		u64 x;                                                                                                 \
		int rc;                                                                                                \
                                                                                                                       \
		if (!vex_ok(v))                                                                                        \
			return excp_raise(v, EXC_UD);                                                                  \
		rc = read_rm(v, i, 1, size, &x);                                                                       \
		if (rc != STEP_OK)                                                                                     \
			return rc;                                                                                     \
		set_reg(v, &i->op[0], size, size == 4 ? name##4(x, &v->rflags) : name##8(x, &v->rflags));              \
		return STEP_OK;                                                                                        \
	}
GEN_VEX2(blsi)
GEN_VEX2(blsr)
GEN_VEX2(blsmsk)

/* ---- CRC32: destination 32 or 64 bits, source 1, 2, 4 or 8 bytes ------------------------------------------------- */

FN(crc32)
{
	unsigned size = i->op[1].size;
	u64 x, crc = v->r[i->op[0].reg];
	u32 c = (u32)crc;
	int rc = read_rm(v, i, 1, size, &x);

	if (rc != STEP_OK)
		return rc;
	switch (size) {
	case 1:
		asm("crc32b %b[x], %[c]" : [c] "+r"(c) : [x] "r"(x));
		break;
	case 2:
		asm("crc32w %w[x], %[c]" : [c] "+r"(c) : [x] "r"(x));
		break;
	case 4:
		asm("crc32l %k[x], %[c]" : [c] "+r"(c) : [x] "r"(x));
		break;
	default:
		asm("crc32q %[x], %[c]" : [c] "+r"(crc) : [x] "r"(x));
		c = (u32)crc;
		break;
	}
	v->r[i->op[0].reg] = c;
	return STEP_OK;
}

insn_fn op_bits_find(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_BT:
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		return i->op[0].kind == OPK_MEM ? bt_mem : bt_reg;
	case ZYDIS_MNEMONIC_BSF:
		return bsf_any;
	case ZYDIS_MNEMONIC_BSR:
		return bsr_any;
	case ZYDIS_MNEMONIC_LZCNT:
		return lzcnt_any;
	case ZYDIS_MNEMONIC_TZCNT:
		return tzcnt_any;
	case ZYDIS_MNEMONIC_POPCNT:
		return popcnt_any;
	case ZYDIS_MNEMONIC_ANDN:
		return andn_any;
	case ZYDIS_MNEMONIC_PDEP:
		return pdep_any;
	case ZYDIS_MNEMONIC_PEXT:
		return pext_any;
	case ZYDIS_MNEMONIC_BEXTR:
		return i->map == 2 ? bextr_any : NULL; /* TBM has a namesake */
	case ZYDIS_MNEMONIC_BZHI:
		return bzhi_any;
	case ZYDIS_MNEMONIC_BLSI:
		return blsi_any;
	case ZYDIS_MNEMONIC_BLSR:
		return blsr_any;
	case ZYDIS_MNEMONIC_BLSMSK:
		return blsmsk_any;
	case ZYDIS_MNEMONIC_CRC32:
		return crc32;
	default:
		return NULL;
	}
}
