/*
 * op_muldiv.c: MUL IMUL DIV IDIV, MULX, ADCX, ADOX.
 *
 * The host multiplies and divides, with the guest's flags loaded so that undefined ones match it. A division that the
 * host would refuse is found first and becomes the guest's #DE.
 */
#include "interp_impl.h"

#define FN(name) static int name(struct vcpu *v, const struct insn *i)

/* One-operand forms: accumulator pair lo/hi by operand. For 8 bits `lo` is AX and `hi` unused. */
#define GEN_ONE8(name)                                                                                                 \
	static void name##1(u64 * lo, u64 * hi, u8 x, u64 * fl)                                                        \
	{                                                                                                              \
		u32 ax = fl_pack(*fl);                                                                                 \
		u64 a = *lo;                                                                                           \
		asm(FL_LOAD "movq %[a], %%rax\n\t" #name "b %[x]\n\tmovq %%rax, %[a]" FL_SAVE                          \
		    : [a] "+&r"(a), "+&a"(ax)                                                                          \
		    : [x] "r"(x)                                                                                       \
		    : "cc");                                                                                           \
		*lo = a;                                                                                               \
		*fl = fl_merge(*fl, ax);                                                                               \
	}
#define GEN_ONE(name, T, S, sfx)                                                                                       \
	static void name##S(u64 *lo, u64 *hi, T x, u64 *fl)                                                            \
	{                                                                                                              \
		u32 ax = fl_pack(*fl);                                                                                 \
		u64 a = *lo, d = *hi;                                                                                  \
		asm(FL_LOAD "movq %[a], %%rax\n\t" #name sfx " %[x]\n\tmovq %%rax, %[a]" FL_SAVE                       \
		    : [a] "+&r"(a), "+&d"(d), "+&a"(ax)                                                                \
		    : [x] "r"(x)                                                                                       \
		    : "cc");                                                                                           \
		*lo = a;                                                                                               \
		*hi = d;                                                                                               \
		*fl = fl_merge(*fl, ax);                                                                               \
	}
#define GEN_ONES(name)                                                                                                 \
	GEN_ONE8(name)                                                                                                 \
	GEN_ONE(name, t2, 2, "w")                                                                                      \
	GEN_ONE(name, t4, 4, "l")                                                                                      \
	GEN_ONE(name, t8, 8, "q")

GEN_ONES(mul)
GEN_ONES(imul)
GEN_ONES(div)
GEN_ONES(idiv)

#define GEN_RUN(name)                                                                                                  \
	static void name##_run(struct vcpu *v, unsigned size, u64 x)                                                   \
	{                                                                                                              \
		u64 *lo = &v->r[R_RAX], *hi = &v->r[R_RDX];                                                            \
                                                                                                                       \
		switch (size) {                                                                                        \
		case 1:                                                                                                \
			name##1(lo, hi, (u8)x, &v->rflags);                                                            \
			break;                                                                                         \
		case 2:                                                                                                \
			name##2(lo, hi, (u16)x, &v->rflags);                                                           \
			break;                                                                                         \
		case 4:                                                                                                \
			name##4(lo, hi, (u32)x, &v->rflags);                                                           \
			break;                                                                                         \
		default:                                                                                               \
			name##8(lo, hi, x, &v->rflags);                                                                \
			break;                                                                                         \
		}                                                                                                      \
	}
GEN_RUN(mul)
GEN_RUN(imul)
GEN_RUN(div)
GEN_RUN(idiv)

FN(mul_one)
{
	unsigned size = i->op[0].size;
	u64 x;
	int rc = read_rm(v, i, 0, size, &x);

	if (rc != STEP_OK)
		return rc;
	if (i->mnemonic == ZYDIS_MNEMONIC_MUL)
		mul_run(v, size, x);
	else
		imul_run(v, size, x);
	return STEP_OK;
}

/* Quotient too wide, or division by zero. */
static bool div_fails(const struct vcpu *v, unsigned size, u64 x)
{
	u64 hi = size == 1 ? (u8)(v->r[R_RAX] >> 8) : v->r[R_RDX] & size_mask(size);

	return hi >= x;
}

static bool idiv_fails(const struct vcpu *v, unsigned size, u64 x)
{
	unsigned bits = size * 8;
	u64 lo = v->r[R_RAX], hi = v->r[R_RDX];
	s128 n, d, q;

	switch (size) {
	case 1:
		n = (s16)lo;
		d = (s8)x;
		break;
	case 2:
		n = (s32)((u32)(u16)hi << 16 | (u16)lo);
		d = (s16)x;
		break;
	case 4:
		n = (s64)((u64)(u32)hi << 32 | (u32)lo);
		d = (s32)x;
		break;
	default:
		/* The usual dividend is a sign-extended 64-bit number: no 128-bit division then. */
		if (hi == (u64)((s64)lo >> 63))
			return x == 0 || (x == ~0ull && lo == BIT(63));
		n = (s128)((u128)hi << 64 | lo);
		d = (s64)x;
		/* The one quotient that the check itself could not compute. */
		if (d == -1)
			return true;
		break;
	}
	if (d == 0)
		return true;
	q = n / d;
	return q < -((s128)1 << (bits - 1)) || q > ((s128)1 << (bits - 1)) - 1;
}

FN(div_one)
{
	unsigned size = i->op[0].size;
	bool sign = i->mnemonic == ZYDIS_MNEMONIC_IDIV;
	u64 x;
	int rc = read_rm(v, i, 0, size, &x);

	if (rc != STEP_OK)
		return rc;
	if (sign ? idiv_fails(v, size, x) : div_fails(v, size, x))
		return excp_raise(v, EXC_DE);
	if (sign)
		idiv_run(v, size, x);
	else
		div_run(v, size, x);
	return STEP_OK;
}

/* IMUL with two or three operands. */
#define GEN_IMUL(T, S, sfx)                                                                                            \
	static inline T imul2##S(T a, T b, u64 *fl)                                                                    \
	{                                                                                                              \
		u32 ax = fl_pack(*fl);                                                                                 \
		asm(FL_LOAD "imul" sfx " %[b], %[a]" FL_SAVE : [a] "+r"(a), "+a"(ax) : [b] "r"(b) : "cc");             \
		*fl = fl_merge(*fl, ax);                                                                               \
		return a;                                                                                              \
	}                                                                                                              \
	FN(imul_r##S)                                                                                                  \
	{                                                                                                              \
		T b = get##S(v, &i->op[1]), a = i->nops == 3 ? (T)i->imm : get##S(v, &i->op[0]);                       \
                                                                                                                       \
		set##S(v, &i->op[0], imul2##S(a, b, &v->rflags));                                                      \
		return STEP_OK;                                                                                        \
	}                                                                                                              \
	FN(imul_m##S)                                                                                                  \
	{                                                                                                              \
		T b, a = i->nops == 3 ? (T)i->imm : get##S(v, &i->op[0]);                                              \
		int rc = v_read(v, i->seg, insn_ea(v, i), &b, S);                                                      \
                                                                                                                       \
		if (unlikely(rc != STEP_OK))                                                                           \
			return rc;                                                                                     \
		set##S(v, &i->op[0], imul2##S(a, b, &v->rflags));                                                      \
		return STEP_OK;                                                                                        \
	}
GEN_IMUL(t2, 2, "w")
GEN_IMUL(t4, 4, "l")
GEN_IMUL(t8, 8, "q")

FN(mulx)
{
	unsigned size = i->op[0].size;
	u64 x, lo, hi;
	int rc;

	if (v->mode == MODE_REAL || v->mode == MODE_V86)
		return excp_raise(v, EXC_UD);
	rc = read_rm(v, i, 2, size, &x);
	if (rc != STEP_OK)
		return rc;
	if (size == 8) {
		u128 p = (u128)x * v->r[R_RDX];

		lo = (u64)p;
		hi = (u64)(p >> 64);
	} else {
		u64 p = (u64)(u32)x * (u32)v->r[R_RDX];

		lo = (u32)p;
		hi = p >> 32;
	}
	/* Both the same register: the high half stays. */
	set_reg(v, &i->op[1], size, lo);
	set_reg(v, &i->op[0], size, hi);
	return STEP_OK;
}

/* ADCX adds with CF alone, ADOX with OF alone. */
FN(adx)
{
	unsigned size = i->op[0].size;
	u64 bit = i->mnemonic == ZYDIS_MNEMONIC_ADCX ? FLAGS_CF : FLAGS_OF;
	u64 x, a = get_reg(v, &i->op[0], size);
	u128 sum;
	int rc = read_rm(v, i, 1, size, &x);

	if (rc != STEP_OK)
		return rc;
	sum = (u128)a + x + ((v->rflags & bit) != 0);
	v->rflags &= ~bit;
	if ((sum >> (size * 8)) & 1)
		v->rflags |= bit;
	set_reg(v, &i->op[0], size, (u64)sum);
	return STEP_OK;
}

insn_fn op_muldiv_find(const struct insn *i)
{
	static const insn_fn imuls[2][4] = {{NULL, imul_r2, imul_r4, imul_r8}, {NULL, imul_m2, imul_m4, imul_m8}};

	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_MUL:
		return mul_one;
	case ZYDIS_MNEMONIC_IMUL:
		/* F6 and F7 name one operand; Zydis may show the accumulator as another. */
		if (i->map == 0 && (i->opcode == 0xf6 || i->opcode == 0xf7))
			return mul_one;
		return imuls[i->op[1].kind == OPK_MEM][size_index(i->op[0].size)];
	case ZYDIS_MNEMONIC_DIV:
	case ZYDIS_MNEMONIC_IDIV:
		return div_one;
	case ZYDIS_MNEMONIC_MULX:
		return mulx;
	case ZYDIS_MNEMONIC_ADCX:
	case ZYDIS_MNEMONIC_ADOX:
		return adx;
	default:
		return NULL;
	}
}
