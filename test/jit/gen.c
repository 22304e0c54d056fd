/*
 * gen.c: random programs of 5 to 200 instructions: integer, stack, string, bit, x87, SSE and AVX instructions,
 * branches, loops, calls, port and memory-mapped I/O, software interrupts, and stores into the program's own code: to
 * the bytes right behind the store, further on, and to code that ran already.
 *
 * The encoder is the translator's own; what it would get wrong, both engines read. One instruction in some is any that
 * the decoder knows (gen_any), so that no form of any mode is left out.
 */
#include <string.h>

#include "../../src/jit/emit.h"
#include "../../src/x86/decode.h"
#include "gen.h"

static u64 rng;
static const struct gen_env *env;
static struct program *prog;
static struct emit e;

/* Bytes of the program that stores may change, and to what; stores that wait for one behind them. */
enum { SITE_IMM, SITE_ALU, SITE_NOP4 };
static struct {
	u16 off;
	u8 kind;
} site[64];
static unsigned n_sites;
static struct {
	u8 *disp, *val, *next; /* next: end of the storing instruction */
	u8 kind;
} wait[64];
static unsigned n_wait;
bool gen_x87_rich;
static bool x87_rich, mmx_rich; /* half of the program is x87 and MMX, and most of that MMX */

void gen_seed(u64 seed)
{
	rng = seed * 0x9e3779b97f4a7c15ull | 1;
	for (unsigned n = 0; n < 8; n++)
		gen_rnd(2);
}

u32 gen_rnd(u32 n)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (u32)((rng >> 16) % n);
}

u64 gen_u64(void)
{
	static const u64 v[] = {
	        0, 1, ~0ull, 0x7fffffff, 0x80000000, 0x8000000000000000ull, 0xff, 0x3ff0000000000000ull};

	gen_rnd(2);
	return gen_rnd(3) ? rng : v[gen_rnd(8)];
}

#define rnd gen_rnd

/* ---- operands --------------------------------------------------------------------------------------------------- */

static bool is64(void)
{
	return env->bits == 64;
}

/* 64-bit code: RSP, RDI and R15 keep pointing into the data, R12 counts loops. Else RSP, RDI, and RBP counts. */
static unsigned any_reg(void)
{
	static const u8 r[] = {0, 1, 2, 3, 6, 5, 8, 9, 10, 11, 13, 14};

	return r[rnd(is64() ? 12 : 5)];
}

static unsigned any_xmm(void)
{
	return rnd(is64() ? 16 : 8);
}

static unsigned wide(void)
{
	return is64() && rnd(2) ? ENC_W : 0;
}

static unsigned byte_rex(void)
{
	return is64() ? ENC_REX : 0;
}

static struct rm any_mem(void)
{
	static const u8 base[] = {H_RDI, H_RDI, H_RSP, H_R15};
	unsigned b = base[rnd(is64() ? 4 : 3)];
	s32 disp = (s32)rnd(rnd(8) ? 200 : 2200) - (b == H_RSP ? 0 : 64);

	if (rnd(60) == 0) /* anywhere: faults */
		return rm_sib(any_reg(), rnd(2) ? any_reg() : H_NONE, rnd(4), disp);
	if (rnd(300) == 0) /* as far away as can be */
		return rm_mem(b, (s32)(rnd(2) ? 0x7fffffffu - rnd(16) : 0x80000000u + rnd(16)));
	if (rnd(400) == 0) /* the null page */
		return rm_sib(H_NONE, H_NONE, 0, rnd(2) ? 1 : (s32)rnd(64));
	if (rnd(24) == 0)
		return rm_sib(H_NONE, H_NONE, 0, (s32)(env->data_abs + rnd(4000)));
	return rm_mem(b, disp);
}

static struct rm any_rm(void)
{
	return rnd(3) ? rm_reg(any_reg()) : any_mem();
}

/* A memory operand with a 16-bit address: anywhere, or near DI (or BP, a small number). */
static void enc16(unsigned flags, unsigned map, u8 op, unsigned reg)
{
	static const u8 near[] = {5, 5, 5, 6};
	unsigned mod = rnd(3), rm = rnd(8) ? near[rnd(4)] : rnd(8);

	if (flags & ENC_LOCK)
		e1(&e, 0xf0);
	if (flags & ENC_66)
		e1(&e, 0x66);
	if (flags & ENC_F2)
		e1(&e, 0xf2);
	if (flags & ENC_F3)
		e1(&e, 0xf3);
	if (map)
		e1(&e, 0x0f);
	if (map > 1)
		e1(&e, map == 2 ? 0x38 : 0x3a);
	e1(&e, op);
	e1(&e, (u8)(mod << 6 | (reg & 7) << 3 | rm));
	if (mod == 2 || (mod == 0 && rm == 6))
		e2(&e, (u16)(rnd(40) ? env->data_abs + rnd(3000) : rnd(65536)));
	else if (mod == 1)
		e1(&e, (u8)rnd(256));
}

/* encode(), which writes 32-bit addresses, for the current mode; now and then through another segment. */
static void enc(unsigned flags, unsigned map, u8 op, unsigned reg, struct rm rm)
{
	static const u8 seg[] = {0x64, 0x65, 0x26, 0x2e, 0x36, 0x3e};
	bool mem = rm.reg == H_NONE;

	if (mem && rnd(env->segs ? 10 : 40) == 0)
		e1(&e, seg[rnd(is64() ? 2 : 6)]);
	if (mem && !is64() && rnd(env->bits == 16 ? 2 : 60) == 0) {
		if (env->bits == 32)
			e1(&e, 0x67);
		enc16(flags, map, op, reg);
		return;
	}
	if (mem && env->bits == 16)
		e1(&e, 0x67);
	encode(&e, flags, map, op, reg, rm);
}

static unsigned size_flags(u8 *op)
{
	switch (rnd(5)) {
	case 0:
		return byte_rex();
	case 1:
		*op |= 1;
		return ENC_66;
	case 2:
		*op |= 1;
		return 0;
	default:
		*op |= 1;
		return is64() ? ENC_W : 0;
	}
}

static void imm_for(unsigned f, u8 op)
{
	if (!(op & 1))
		e1(&e, (u8)rnd(256));
	else if (!(f & ENC_66) == (env->bits == 16))
		e2(&e, (u16)rnd(65536));
	else
		e4(&e, rnd(3) ? rnd(1000) : (u32)rng);
}

/* ---- integer instructions --------------------------------------------------------------------------------------- */

static void gen_alu(void)
{
	u8 op = (u8)(rnd(8) << 3 | rnd(2) << 1);
	unsigned f = size_flags(&op);

	enc(f, 0, op, any_reg(), any_rm());
}

static void gen_alu_imm(void)
{
	u8 op = 0x80;
	unsigned f = size_flags(&op);

	if (rnd(2) && (op & 1)) {
		enc(f, 0, 0x83, rnd(8), any_rm());
		e1(&e, (u8)rnd(256));
		return;
	}
	enc(f, 0, op, rnd(8), any_rm());
	imm_for(f, op);
}

static void gen_mov(void)
{
	u8 op = rnd(2) ? 0x88 : 0x8a;
	unsigned f = size_flags(&op);

	enc(f, 0, op, any_reg(), any_rm());
}

static void gen_unary(void)
{
	u8 op;
	unsigned f;

	switch (rnd(7)) {
	case 0:
		op = 0xfe;
		f = size_flags(&op);
		enc(f, 0, op, rnd(2), any_rm());
		break;
	case 1:
		op = 0xf6;
		f = size_flags(&op);
		enc(f, 0, op, 2 + rnd(4), any_rm()); /* not neg mul imul */
		break;
	case 2:
		op = 0xc0;
		f = size_flags(&op);
		enc(f, 0, op, rnd(8), any_rm());
		e1(&e, (u8)rnd(70));
		break;
	case 3:
		op = rnd(2) ? 0xd0 : 0xd2;
		f = size_flags(&op);
		enc(f, 0, op, rnd(8), any_rm());
		break;
	case 4:
		enc(wide(), 1, (u8)(rnd(2) ? 0xa4 : 0xac), any_reg(), any_rm());
		e1(&e, (u8)rnd(70));
		break;
	case 5:
		op = 0xf6;
		f = size_flags(&op);
		enc(f, 0, op, 6 + rnd(2), any_rm()); /* div idiv */
		break;
	default:
		enc(is64() ? ENC_W : 0, 0, 0x69, any_reg(), any_rm());
		imm_for(0, 1);
	}
}

static void gen_misc(void)
{
	u8 op;
	unsigned f;

	switch (rnd(15)) {
	case 0:
		enc(wide(), 0, 0x8d, any_reg(), rm_sib(any_reg(), any_reg(), rnd(4), (s32)rng));
		break;
	case 1:
		enc(wide(), 1, (u8)(0x40 | rnd(16)), any_reg(), any_rm());
		break;
	case 2:
		enc(byte_rex(), 1, (u8)(0x90 | rnd(16)), 0, any_rm());
		break;
	case 3:
		enc(wide() | byte_rex(), 1, (u8)(0xb6 | rnd(2) | rnd(2) << 3), any_reg(), any_rm());
		break;
	case 4:
		if (is64())
			enc(ENC_W, 0, 0x63, any_reg(), any_rm());
		break;
	case 5: /* bt bts btr btc: a register's offset moves the address */
		enc(wide(), 1, (u8)(0xa3 | rnd(4) << 3), any_reg(), rnd(20) ? rm_reg(any_reg()) : any_mem());
		break;
	case 6:
		enc(wide(), 1, 0xba, 4 + rnd(4), any_rm());
		e1(&e, (u8)rnd(256));
		break;
	case 7:
		if (rnd(2))
			enc(rnd(2) ? ENC_F3 : 0, 1, (u8)(0xbc | rnd(2)), any_reg(), any_rm());
		else if (rnd(2)) /* adcx adox */
			enc((rnd(2) ? ENC_66 : ENC_F3) | (wide() & ENC_W), 2, 0xf6, any_reg(), any_rm());
		else /* movbe; crc32 */
			enc(wide() | (rnd(2) ? ENC_F2 : 0), 2, (u8)(0xf0 | rnd(2)), any_reg(), any_rm());
		break;
	case 8:
		op = 0x86;
		f = size_flags(&op);
		enc(f, 0, op, any_reg(), any_rm());
		break;
	case 9:
		op = 0xc0;
		f = size_flags(&op);
		enc(f | ENC_LOCK, 1, op, any_reg(), any_mem());
		break;
	case 10:
		op = 0xb0;
		f = size_flags(&op);
		enc(f | (rnd(2) ? ENC_LOCK : 0), 1, op, any_reg(), any_mem());
		break;
	case 11: {
		static const u8 one[] = {0x98, 0x99, 0xf5, 0xf8, 0xf9, 0x9e, 0x9f, 0xfc};

		if (is64() && rnd(2))
			e1(&e, 0x48);
		e1(&e, one[rnd(sizeof(one))]);
		break;
	}
	case 12: /* high byte registers; as destination AH to BH only, or RDI's neighbours would go */
		if (rnd(2)) {
			static const u8 hop[] = {0x00, 0x02, 0x10, 0x3a, 0x84, 0x86, 0x88, 0x8a, 0x8a};

			/* R15 would bring a REX. */
			enc(0, 0, hop[rnd(9)], 4 + rnd(4), is64() ? rm_mem(H_RDI, (s32)rnd(200)) : any_mem());
			break;
		}
		e1(&e, (u8)(0x00 | rnd(8) << 3));
		e1(&e, (u8)(0xc0 | rnd(64)));
		break;
	case 13:
		if (is64())
			break;
		/* one-byte INC and DEC, BCD, all of them 32- and 16-bit code's */
		if (rnd(3) == 0) {
			static const u8 bcd[] = {0x27, 0x2f, 0x37, 0x3f};

			e1(&e, bcd[rnd(4)]);
		} else {
			e1(&e, (u8)(0x40 | rnd(2) << 3 | any_reg()));
		}
		break;
	default:
		op = (u8)any_reg();
		if (is64())
			e1(&e, (u8)(0x48 | op >> 3));
		else if (env->bits == 16)
			e1(&e, 0x66);
		e1(&e, 0x0f);
		e1(&e, (u8)(0xc8 | (op & 7)));
	}
}

static void push_pop(u8 op, unsigned r)
{
	if (r >= 8)
		e1(&e, 0x41);
	e1(&e, (u8)(op | (r & 7)));
}

static void gen_one(unsigned depth);

static void gen_stack(void)
{
	unsigned s = any_reg();

	switch (rnd(8)) {
	case 0:
		push_pop(0x50, s);
		e1(&e, 0x9c); /* pushf, pop: the flags as a value */
		push_pop(0x58, any_reg());
		push_pop(0x58, s);
		break;
	case 1: /* popf: arithmetic flags, and ID now and then */
		e1(&e, 0x68);
		imm_for(0, 1);
		{
			u32 fl = 2 | (rnd(0x1000) & 0x8d5) | (is64() && rnd(2) ? 0x200 : 0) |
			         (env->bits != 16 && rnd(4) == 0 ? 0x200000 : 0) | (env->smap && rnd(12) ? 0x40000 : 0);

			memcpy(e.p - (env->bits == 16 ? 2 : 4), &fl, env->bits == 16 ? 2 : 4);
		}
		e1(&e, 0x9d);
		break;
	case 2:
		if (!is64()) {
			e1(&e, 0x55); /* push ebp; mov ebp, esp ... leave */
			e2(&e, 0xe589);
			gen_alu();
			e1(&e, 0xc9);
			break;
		}
		push_pop(0x50, 5);
		encode(&e, ENC_W, 0, 0x89, H_RSP, rm_reg(H_RBP));
		gen_alu();
		e1(&e, 0xc9); /* leave: faults if RBP was changed */
		push_pop(0x58, 5);
		encode(&e, ENC_W, 0, 0x8d, H_RSP, rm_mem(H_RSP, -8));
		break;
	case 3:
		enc(0, 0, 0xff, 6, any_mem());
		push_pop(0x58, s);
		break;
	case 4:
		/* the other operand size */
		if (is64())
			break;
		e1(&e, 0x66);
		push_pop(0x50, rnd(8));
		e1(&e, 0x66);
		push_pop(0x58, any_reg());
		break;
	case 5: {
		static const u8 push[] = {0x06, 0x0e, 0x16, 0x1e}, pop[] = {0x07, 0x1f};

		if (!env->segs)
			break;
		if (rnd(2)) { /* mov r, sreg */
			e1(&e, 0x8c);
			e1(&e, (u8)(0xc0 | rnd(6) << 3 | any_reg()));
			break;
		}
		e1(&e, push[rnd(4)]);
		if (rnd(4))
			push_pop(0x58, s);
		else
			e1(&e, pop[rnd(2)]);
		break;
	}
	default:
		push_pop(0x50, any_reg());
		push_pop(0x58, s);
	}
}

static void gen_string(void)
{
	static const u8 op[] = {0xa4, 0xa6, 0xaa, 0xac, 0xae};
	unsigned count = rnd(rnd(8) ? 20 : 700), f;
	u8 o = op[rnd(5)];

	f = size_flags(&o);
	push_pop(0x50, H_RDI);
	if (rnd(2))
		enc(is64() ? ENC_W : 0, 0, 0x8d, H_RSI, rm_mem(H_RDI, (s32)rnd(1000) - 100));
	if (env->bits == 16)
		e1(&e, 0x66);
	emit_const(&e, H_RCX, count);
	e1(&e, rnd(6) ? 0xfc : 0xfd);
	if (rnd(3))
		e1(&e, (u8)(0xf2 + rnd(2)));
	if (f & ENC_66)
		e1(&e, 0x66);
	if (f & ENC_W)
		e1(&e, 0x48);
	e1(&e, o);
	e1(&e, 0xfc);
	push_pop(0x58, H_RDI);
}

/* ---- x87, SSE, AVX ---------------------------------------------------------------------------------------------- */

/* A word at RDI's data, and an instruction that reads it: FLDCW with all exceptions masked. */
static void gen_fldcw(void)
{
	static const u16 word[] = {0x37f, 0x27f, 0x07f, 0xf7f, 0xb7f, 0x77f, 0x33f, 0x1f7f};
	struct rm rm = rm_mem(H_RDI, (s32)rnd(100));

	if (env->bits == 16)
		e1(&e, 0x67);
	encode(&e, env->bits == 16 ? 0 : ENC_66, 0, 0xc7, 0, rm);
	e2(&e, word[rnd(8)]);
	if (env->bits == 16)
		e1(&e, 0x67);
	encode(&e, 0, 0, 0xd9, 5, rm);
}

static void gen_x87_control(void)
{
	static const u16 two[] = {0xe0df, 0xe0df, 0xe2db, 0xe0db, 0xe4db};
	bool state = rnd(2);

	switch (rnd(12)) {
	case 0 ... 2:
		gen_fldcw();
		break;
	case 3: /* of anything: some exception is likely unmasked */
		if (rnd(8) == 0)
			enc(0, 0, 0xd9, 5, any_mem());
		break;
	case 4:
		enc(0, 0, 0xd9, 7, any_mem()); /* fnstcw */
		break;
	case 5:
		enc(0, 0, 0xdd, 7, any_mem()); /* fnstsw */
		break;
	case 6:
	case 7:
		e2(&e, two[rnd(5)]); /* fnstsw ax, fnclex, feni, fsetpm */
		break;
	case 8:
		e1(&e, 0x9b);
		break;
	case 9:
		if (rnd(3) == 0)
			e2(&e, 0xe3db); /* fninit */
		break;
	case 10: { /* fnstenv and fldenv, fnsave and frstor */
		struct rm rm = rm_mem(H_RDI, (s32)rnd(400));

		if (env->bits == 16)
			e1(&e, 0x67);
		encode(&e, 0, 0, state ? 0xdd : 0xd9, 6, rm);
		if (rnd(2))
			gen_alu();
		if (env->bits == 16)
			e1(&e, 0x67);
		encode(&e, 0, 0, state ? 0xdd : 0xd9, 4, rm);
		break;
	}
	default: /* the environment alone, of either size */
		enc(rnd(3) ? 0 : ENC_66, 0, state ? 0xdd : 0xd9, 6, any_mem());
	}
}

static void gen_x87(void)
{
	u8 op = (u8)(0xd8 + rnd(8)), digit = (u8)rnd(8);
	static const u8 load[][2] = {{0xd9, 0}, {0xdd, 0}, {0xdb, 5}, {0xdb, 0}, {0xdf, 0}, {0xdf, 5}, {0xdf, 4}};
	static const u8 store[][2] = {{0xd9, 3}, {0xdd, 3}, {0xdb, 7}, {0xdb, 3}, {0xdf, 3}, {0xdf, 7},
	                              {0xdf, 6}, {0xdb, 1}, {0xdd, 1}, {0xdf, 1}, {0xd9, 2}, {0xdd, 2}};

	switch (rnd(8)) {
	case 0:
		if (rnd(2)) {
			const u8 *l = load[rnd(7)];

			enc(0, 0, l[0], l[1], any_mem());
		} else {
			e1(&e, 0xd9);
			e1(&e, (u8)(rnd(2) ? 0xe8 + rnd(7) : 0xc0 + rnd(8))); /* fld1, fldpi...; fld st */
		}
		break;
	case 1: {
		const u8 *s = store[rnd(12)];

		enc(0, 0, s[0], s[1], any_mem());
		break;
	}
	case 2:
		gen_x87_control();
		break;
	case 3: /* fcomi, fucomi, fcmov */
		e1(&e, rnd(2) ? 0xdb : rnd(2) ? 0xdf : 0xda);
		e1(&e, (u8)(e.p[-1] == 0xda             ? 0xc0 + rnd(32)
		            : e.p[-1] == 0xdf || rnd(2) ? 0xe8 + rnd(16)
		                                        : 0xc0 + rnd(32)));
		break;
	case 4:
	case 5:
		/* Not the environment, the control word, the whole state. */
		if ((op == 0xd9 || op == 0xdd) && digit >= 4)
			digit = 2;
		enc(0, 0, op, digit, any_mem());
		break;
	default:
		e1(&e, op);
		e1(&e, (u8)(0xc0 | rnd(64)));
	}
}

static void gen_mmx(void)
{
	static const u8 imm[] = {0x70, 0x71, 0x72, 0x73, 0xc4, 0xc5};
	struct rm rm = rnd(3) ? rm_reg(rnd(8)) : any_mem();
	unsigned mm = rnd(8);
	u8 op;

	switch (rnd(10)) {
	case 0:
		e2(&e, 0x770f);
		break;
	case 1:
		if (rm.reg != H_NONE)
			rm.reg = (u8)any_reg();
		enc(wide(), 1, rnd(2) ? 0x6e : 0x7e, mm, rm);
		break;
	case 2:
		op = imm[rnd(6)];
		if (op >= 0x71 && op <= 0x73) {
			static const u8 digit[] = {2, 4, 6};

			rm = rm_reg(rnd(8));
			mm = op == 0x73 ? digit[rnd(2) * 2] : digit[rnd(3)];
		} else if (op == 0xc5) {
			rm = rm_reg(rnd(8));
			mm = any_reg();
		} else if (op == 0xc4 && rm.reg != H_NONE) {
			rm.reg = (u8)any_reg();
		}
		enc(0, 1, op, mm, rm);
		e1(&e, (u8)rnd(256));
		break;
	case 3:
		op = (u8)rnd(15);
		if (op < 12)
			enc(0, 2, op, mm, rm); /* pshufb to pmulhrsw */
		else
			enc(0, 2, (u8)(op + 0x10), mm, rm); /* pabs */
		break;
	case 4:
		enc(0, 3, 0x0f, mm, rm);
		e1(&e, (u8)rnd(20));
		break;
	case 5:
		enc(0, 1, 0xd7, any_reg(), rm_reg(rnd(8)));
		break;
	case 6:
		enc(0, 1, rnd(3) ? 0x7f : 0x6f, mm, rm);
		break;
	case 7:
		enc(0, 1, 0xe7, mm, any_mem());
		break;
	default:
		op = (u8)(rnd(3) ? 0xd1 + rnd(0x2e) : rnd(2) ? 0x60 + rnd(12) : 0x74 + rnd(3));
		if (op == 0xd6 || op == 0xd7 || op == 0xe6 || op == 0xe7 || op == 0xf0 || op == 0xf7)
			op = 0xfc;
		enc(0, 1, op, mm, rm);
	}
}

static void gen_sse(void)
{
	static const u8 plain[] = {0x14, 0x15, 0x28, 0x51, 0x54, 0x57, 0x58, 0x59, 0x5c, 0x5d, 0x5e, 0x5f, 0x10, 0x11};
	static const u8 int66[] = {0x60, 0x62, 0x6c, 0x6f, 0x74, 0x76, 0xd4, 0xdb, 0xef, 0xeb,
	                           0xfe, 0xfa, 0xf4, 0xe4, 0x7f, 0xd6, 0x6e, 0x7e, 0xd7, 0x2e};
	unsigned x = any_xmm();
	struct rm rm = rnd(3) ? rm_reg(any_xmm()) : any_mem();
	u8 op;

	switch (rnd(env->vex ? 7 : 6)) {
	case 0:
		enc(rnd(2) ? ENC_66 : 0, 1, plain[rnd(sizeof(plain))], x, rm);
		break;
	case 1: {
		static const u8 sc[] = {0x10, 0x11, 0x51, 0x58, 0x59, 0x5c, 0x5e, 0x5a};

		enc(rnd(2) ? ENC_F2 : ENC_F3, 1, sc[rnd(sizeof(sc))], x, rm);
		break;
	}
	case 2:
		op = int66[rnd(sizeof(int66))];
		if ((op == 0x6e || op == 0x7e) && rm.reg != H_NONE)
			rm.reg = (u8)any_reg();
		enc(ENC_66 | wide(), 1, op, op == 0xd7 ? any_reg() : x, op == 0xd7 ? rm_reg(any_xmm()) : rm);
		break;
	case 3:
		if (rm.reg != H_NONE)
			rm.reg = (u8)any_reg();
		enc((rnd(2) ? ENC_F2 : ENC_F3) | wide(), 1, 0x2a, x, rm);
		break;
	case 4:
		enc((rnd(2) ? ENC_F2 : ENC_F3) | wide(), 1, (u8)(0x2c | rnd(2)), any_reg(), rm);
		break;
	case 5:
		gen_mmx();
		break;
	default: {
		static const u8 vop[] = {0x58, 0x59, 0xfe, 0xef, 0x6f, 0x7f, 0x54, 0x10, 0xd4};

		op = vop[rnd(sizeof(vop))];
		if (rm.reg == H_NONE && env->bits == 16)
			e1(&e, 0x67);
		{
			u8 *vex = e.p;
			bool one = op == 0x6f || op == 0x7f || op == 0x10; /* operand: vvvv must be all ones */

			encode_vex(&e, false, rnd(2), 1, 1, op, x, one ? 0 : any_xmm(), rm);
			/* Outside 64-bit mode the top bits of rm and vvvv do not count. */
			if (!is64() && rnd(4) == 0)
				vex[1] &= (u8)~0x20;
			if (!is64() && !one && rnd(4) == 0)
				vex[2] &= (u8)~0x40;
		}
	}
	}
}

/* ---- code that changes ------------------------------------------------------------------------------------------ */

/* Whatever stands there now writes all flags, some, none, or reads them; the last two are 64-bit code. */
static const u8 four[][4] = {{0x39, 0xc0, 0x90, 0x90}, {0x83, 0xc0, 0x07, 0x90}, {0x31, 0xc9, 0x01, 0xd8},
                             {0x85, 0xdb, 0xf9, 0xf5}, {0x3c, 0x07, 0x66, 0x90}, {0x83, 0xe8, 0x7f, 0xf8},
                             {0x8d, 0x40, 0x07, 0x90}, {0xff, 0xc1, 0x90, 0x90}, {0x11, 0xc8, 0x89, 0xc1},
                             {0xc1, 0xc0, 0x03, 0x90}, {0x0f, 0x92, 0xc1, 0x90}, {0x9f, 0xd1, 0xe0, 0x90},
                             {0x48, 0x01, 0xc0, 0x90}, {0x49, 0x83, 0xc0, 0x11}};
#define FOUR_32 12

static u8 alu_op(void)
{
	static const u8 op[] = {0x01, 0x09, 0x21, 0x29, 0x31, 0x39, 0x11, 0x19, 0x89, 0x8b};

	return op[rnd(sizeof(op))];
}

static u8 alu_digit(void)
{
	return (u8)rnd(8);
}

static void gen_site(unsigned kind)
{
	u8 *at;

	switch (kind) {
	case SITE_IMM:
		encode(&e, is64() && rnd(2) ? ENC_W : 0, 0, 0x83, alu_digit(), rm_reg(any_reg()));
		at = e.p;
		e1(&e, (u8)rnd(256));
		break;
	case SITE_ALU:
		at = e.p;
		e1(&e, alu_op());
		e1(&e, (u8)(0xc0 | any_reg() % 4 << 3 | any_reg() % 4));
		break;
	default:
		at = e.p;
		for (unsigned n = 0; n < 4; n++)
			e1(&e, four[0][n]);
	}
	/* Stores that waited for it. */
	for (unsigned n = 0; n < n_wait; n++) {
		u64 to = (u64)(uintptr_t)at + (u64)e.delta - env->gs_base;
		u32 disp = (u32)to;

		if (wait[n].kind != kind)
			continue;
		if (is64())
			disp = (u32)(to - ((u64)(uintptr_t)wait[n].next + (u64)e.delta));
		memcpy(wait[n].disp, &disp, 4);
		wait[n--] = wait[--n_wait];
	}
	if (n_sites < sizeof(site) / sizeof(site[0])) {
		site[n_sites].off = (u16)(at - prog->bytes);
		site[n_sites++].kind = (u8)kind;
	}
}

/* A store to a site: one that is there, or the next one of its kind. */
static void gen_patch(void)
{
	unsigned kind = rnd(3), back = n_sites && rnd(2) ? rnd(n_sites) + 1 : 0;
	u8 *disp, *val;

	if ((env->bits == 16 && !env->segs) || n_wait == sizeof(wait) / sizeof(wait[0]))
		return;
	if (back)
		kind = site[back - 1].kind;
	/* mov byte or dword [rip + disp or disp], imm */
	if (env->segs)
		e1(&e, 0x65);
	if (env->bits == 16) {
		e1(&e, 0x67);
		if (kind == SITE_NOP4)
			e1(&e, 0x66);
	}
	e1(&e, kind == SITE_NOP4 ? 0xc7 : 0xc6);
	e1(&e, 0x05);
	disp = e.p;
	e4(&e, 0);
	val = e.p;
	if (kind == SITE_NOP4) {
		u32 x;

		memcpy(&x, four[rnd(is64() ? FOUR_32 + 2 : FOUR_32)], 4);
		e4(&e, x);
	} else {
		e1(&e, kind == SITE_ALU ? alu_op() : (u8)rnd(256));
	}
	if (back) {
		u64 to = prog->at + site[back - 1].off - env->gs_base;
		u32 d = (u32)(is64() ? to - (u64)(uintptr_t)emit_rx(&e) : to);

		memcpy(disp, &d, 4);
		return;
	}
	wait[n_wait].disp = disp;
	wait[n_wait].val = val;
	wait[n_wait].next = e.p;
	wait[n_wait++].kind = (u8)kind;
	/* The very next instruction, or a few later. */
	if (rnd(2)) {
		for (unsigned n = rnd(5); n; n--)
			gen_alu();
	}
	gen_site(kind);
}

/* ---- control flow ----------------------------------------------------------------------------------------------- */

/* A displacement of 2 or 4 bytes. */
struct fix {
	u8 *at, size;
};

static void fix_to(struct fix f, const u8 *to)
{
	s64 rel = to - (f.at + f.size);

	memcpy(f.at, &rel, f.size);
}

/* Operand size of a branch: in 16-bit code often 4, in 32-bit code with segments sometimes 2, which cuts RIP. */
static u8 branch_size(void)
{
	u8 size = is64() ? 4 : env->bits == 16 ? (rnd(2) ? 2 : 4) : env->cut_ok && rnd(8) == 0 ? 2 : 4;

	if (!is64() && size * 8 != env->bits)
		e1(&e, 0x66);
	return size;
}

static struct fix disp_of(u8 size)
{
	struct fix f = {e.p, size};

	e4(&e, 0);
	e.p -= 4 - size;
	return f;
}

static struct fix jcc_forward(void)
{
	u8 size = branch_size();

	e1(&e, 0x0f);
	e1(&e, (u8)(0x80 | rnd(16)));
	return disp_of(size);
}

static struct fix jump(u8 op)
{
	u8 size = branch_size();

	e1(&e, op);
	return disp_of(size);
}
/* MOV r, imm32 with the RIP of the linear address `to`. */
static void mov_target(unsigned r, u64 to)
{
	u32 rip = (u32)(to - env->cs_base);

	if (env->bits == 16)
		e1(&e, 0x66);
	if (r >= 8)
		e1(&e, 0x41);
	e1(&e, (u8)(0xb8 | (r & 7)));
	e4(&e, rip);
}

static void gen_branch(unsigned depth)
{
	unsigned n = 1 + rnd(6), r = any_reg(), counter = is64() ? H_R12 : H_RBP;
	u8 *at, *top;
	struct fix f;

	switch (rnd(5)) {
	case 0:
		if (rnd(4) == 0) { /* LOOP, LOOPE, LOOPNE, JCXZ */
			if (rnd(6) == 0)
				e1(&e, 0x67);
			e1(&e, (u8)(0xe0 + rnd(4)));
			at = e.p;
			e1(&e, 0);
			gen_alu();
			*at = (u8)(e.p - (at + 1));
			break;
		}
		/* fall through */
	case 1:
		f = jcc_forward();
		while (n--)
			gen_one(depth + 3);
		fix_to(f, e.p);
		break;
	case 2: /* loop */
		if (depth)
			return;
		if (env->bits == 16)
			e1(&e, 0x66);
		emit_const(&e, counter, 1 + rnd(rnd(10) ? 5 : 60));
		top = e.p;
		while (n--)
			gen_one(depth + 1);
		if (rnd(3) == 0) {
			f = jcc_forward(); /* around the next instruction, inside the loop */
			gen_one(depth + 3);
			fix_to(f, e.p);
		}
		if (rnd(2)) {
			encode(&e, 0, 0, 0xff, 1, rm_reg(counter)); /* dec */
		} else {
			encode(&e, 0, 0, 0x83, 5, rm_reg(counter)); /* sub, 1 */
			e1(&e, 1);
		}
		{
			u8 size = branch_size();

			e1(&e, 0x0f);
			e1(&e, 0x85);
			fix_to(disp_of(size), top);
		}
		break;
	case 3: /* call of a function that is jumped over */
		if (depth > 1)
			return;
		f = jump(0xe9);
		top = e.p;
		while (n--)
			gen_one(depth + 2);
		{
			u8 size = branch_size();
			bool frame = env->bits != 16 && rnd(2);

			if (rnd(4)) {
				e1(&e, 0xc3);
			} else {
				e1(&e, 0xc2);
				e2(&e, (u16)(rnd(3) * 2));
			}
			fix_to(f, e.p);
			if (rnd(3) == 0) {
				mov_target(r, (u64)(uintptr_t)(top + e.delta));
				if (!is64() && size * 8 != env->bits)
					e1(&e, 0x66);
				encode(&e, 0, 0, 0xff, 2, rm_reg(r));
			} else {
				/* The call's size is mostly the return's. */
				if (!is64() && rnd(30) == 0)
					size = size == 2 || !env->cut_ok ? 4 : 2;
				/* As compilers do: flags come from RSP, which the CALL changes. */
				if (frame) {
					encode(&e, is64() ? ENC_W : 0, 0, 0x83, 5, rm_reg(H_RSP));
					e1(&e, 24);
					if (rnd(2))
						gen_mov();
				}
				if (!is64() && size * 8 != env->bits)
					e1(&e, 0x66);
				e1(&e, 0xe8);
				fix_to(disp_of(size), top);
				if (frame) {
					encode(&e, is64() ? ENC_W : 0, 0, 0x83, 0, rm_reg(H_RSP));
					e1(&e, 24);
				}
			}
		}
		break;
	default: /* indirect jump over something */
		at = e.p;
		for (unsigned pass = 0; pass < 2; pass++) {
			static u8 *to;

			/* The target is known once it was written. */
			e.p = at;
			mov_target(r, (u64)(uintptr_t)((pass ? to : at) + e.delta));
			if (env->bits == 16)
				e1(&e, 0x66);
			encode(&e, 0, 0, 0xff, 4, rm_reg(r));
			for (unsigned k = 0; k < n; k++)
				e1(&e, 0xcc);
			to = e.p;
		}
	}
}

static struct gen hooks(void)
{
	return (struct gen){&e, env, any_reg, any_mem, gen_alu};
}

static void gen_system(void)
{
	struct gen g = hooks();

	if (is64() && rnd(2)) {
		gen_system64(&g);
		return;
	}
	switch (rnd(7)) {
	case 5:
		enc(0, 1, 0x01, rnd(2), any_mem()); /* SGDT, SIDT */
		break;
	case 6:
		if (rnd(3)) /* at CPL 3 it faults */
			break;
		e2(&e, 0x200f); /* mov r, CR0 or CR2 to CR4 */
		e1(&e, (u8)(0xc0 | "\0\2\3\4"[rnd(4)] << 3 | (any_reg() & 7)));
		break;
	case 0:
		e1(&e, 0xcd);
		e1(&e, INT_VECTOR);
		break;
	case 1:
		if (!env->io)
			break;
		e1(&e, (u8)(0xe4 | rnd(2) | rnd(2) << 1)); /* IN, OUT imm8 */
		e1(&e, (u8)rnd(256));
		break;
	case 2: {
		/* MOV, CMP, TEST, ADD, AND: an exit before each that reads shows all flags. */
		static const u8 ops[] = {0x88, 0x8a, 0x88, 0x8a, 0x38, 0x3a, 0x84, 0x02, 0x22, 0x00};
		u8 op = ops[rnd(sizeof(ops))];
		unsigned f = size_flags(&op);

		if (env->mmio)
			encode(&e, f, 0, op, any_reg(),
			       rm_sib(H_NONE, H_NONE, 0, (s32)(env->mmio + rnd(rnd(6) ? 4000 : 4096))));
		break;
	}
	case 3:
		/* CLC and STC at both sides of NOPs: plain bytes */
		e1(&e, 0xf8);
		e1(&e, 0x90);
		e1(&e, 0xf9);
		break;
	default:
		gen_site(rnd(3));
	}
}

/* Any instruction at all, its memory operand mostly at RDI. */
static void gen_any(void)
{
	static const u8 prefix[] = {0x66, 0x66, 0x66, 0x67, 0xf2, 0xf3, 0xf3, 0xf0, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65};
	enum decode_mode mode = env->bits == 16 ? DECODE_16 : is64() ? DECODE_64 : DECODE_32;
	struct insn i;

	for (unsigned tries = 0; tries < 30; tries++) {
		unsigned n = 0, map;
		u8 b[24];

		while (rnd(2) == 0 && n < 3)
			b[n++] = prefix[rnd(sizeof(prefix))];
		if (rnd(8) == 0) {
			b[n++] = 0xc4;
			b[n++] = (u8)((is64() ? rnd(8) << 5 : 0xe0) | (1 + rnd(3)));
			b[n++] = (u8)(rnd(4) ? rnd(128) | 0x78 : rnd(256));
		} else {
			if (is64() && rnd(2))
				b[n++] = (u8)(0x40 | rnd(16));
			map = rnd(10);
			if (map > 5)
				b[n++] = 0x0f;
			if (map > 8)
				b[n++] = rnd(2) ? 0x38 : 0x3a;
		}
		b[n++] = (u8)rnd(256);
		b[n++] = (u8)rnd(256);
		if (b[n - 1] < 0xc0 && rnd(6)) /* [di], [edi], [rdi] with a displacement of a byte at most */
			b[n - 1] = (u8)((b[n - 1] & 0x78) | (env->bits == 16 ? 5 : 7));
		while (n < sizeof(b))
			b[n++] = (u8)rnd(256);
		if (decode(mode, b, 15, &i) < 0 || gen_never(&i))
			continue;
		memcpy(e.p, b, i.len);
		e.p += i.len;
		return;
	}
}

static void gen_one(unsigned depth)
{
	prog->n_insns++;
	if (e.p > prog->bytes + sizeof(prog->bytes) - 512)
		return;
	if (x87_rich && rnd(2)) {
		if (mmx_rich && rnd(4))
			gen_mmx();
		else
			gen_x87();
		return;
	}
	switch (rnd(40)) {
	case 0 ... 6:
		gen_alu();
		break;
	case 7 ... 11:
		gen_alu_imm();
		break;
	case 12 ... 16:
		if (is64() && rnd(6) == 0) {
			struct gen g = hooks();

			gen_rip64(&g);
		} else {
			gen_mov();
		}
		break;
	case 17 ... 20:
		gen_unary();
		break;
	case 21 ... 25:
		gen_misc();
		break;
	case 26 ... 28:
		gen_stack();
		break;
	case 29 ... 31:
		if (env->sse)
			gen_sse();
		break;
	case 32:
		gen_x87();
		break;
	case 33:
		gen_string();
		break;
	case 34:
		gen_patch();
		break;
	case 35:
		if (rnd(2) == 0)
			gen_system();
		else if (depth == 0)
			gen_any();
		break;
	default:
		if (depth < 3)
			gen_branch(depth);
		else
			gen_alu();
	}
}

/* Anywhere in the code window, near a page's end rather often. */
void gen_place(const struct gen_env *env_, struct program *p)
{
	u64 pages = env_->code_size / 4096;

	p->at = env_->code + rnd((u32)pages - 4) * 4096 + (rnd(3) ? rnd(4096) : 4096 - rnd(200));
}

void gen_program(const struct gen_env *env_, struct program *p)
{
	unsigned n = 5 + rnd(rnd(4) ? 40 : 196);

	env = env_;
	prog = p;
	e.p = p->bytes;
	e.delta = (s64)(p->at - (u64)(uintptr_t)p->bytes);
	p->n_insns = p->n_chunks = 0;
	n_sites = n_wait = 0;
	x87_rich = rnd(4) == 0 || gen_x87_rich;
	mmx_rich = rnd(4) == 0;
	while (n--) {
		p->chunk[p->n_chunks++] = (u16)(e.p - p->bytes);
		gen_one(0);
	}
	/* Stores that found no site get one. */
	for (unsigned k = 0; k < 3; k++)
		gen_site(k);
	p->chunk[p->n_chunks++] = (u16)(e.p - p->bytes);
	e1(&e, 0xf4);
	p->len = (unsigned)(e.p - p->bytes);
}
