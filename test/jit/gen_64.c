/*
 * gen_64.c: what only 64-bit code has, system instructions and operands relative to RIP, for gen.c's random programs.
 */
#include <string.h>

#include "gen.h"

static void push_pop(struct emit *e, u8 op, unsigned r)
{
	if (r >= 8)
		e1(e, 0x41);
	e1(e, (u8)(op | (r & 7)));
}

/* IRETQ to the next instruction, with RF now and then. */
static void gen_iret(const struct gen *g)
{
	unsigned r = g->reg();
	struct emit *e = g->e;
	u8 *rip;

	if (r == H_RSP)
		return;
	encode(e, ENC_W, 0, 0x89, H_RSP, rm_reg(r));
	e1(e, 0x6a); /* push imm8 */
	e1(e, g->env->smap ? 0x10 : 0x2b);
	push_pop(e, 0x50, r);
	e1(e, 0x9c);
	if (gen_rnd(2)) {
		encode(e, ENC_W, 0, 0x81, 1, rm_mem(H_RSP, 0));
		e4(e, 1u << 16);
	}
	e1(e, 0x6a);
	e1(e, g->env->smap ? 0x08 : 0x33);
	encode(e, ENC_W, 0, 0x8d, r, rm_mem(H_RSP, 0x12345678)); /* lea r, [rip + ...] */
	e->p[-6] = (u8)((e->p[-6] & 0x38) | 5);
	memmove(e->p - 5, e->p - 4, 4); /* no SIB byte */
	rip = --e->p;
	push_pop(e, 0x50, r);
	e1(e, 0x48);
	e1(e, 0xcf);
	{
		s32 rel = (s32)(e->p - rip);

		memcpy(rip - 4, &rel, 4);
	}
}

/* RDFSBASE RDGSBASE WRFSBASE WRGSBASE */
static void base_access(struct emit *e, unsigned which, unsigned r)
{
	e1(e, 0xf3);
	e1(e, (u8)(0x40 | gen_rnd(2) << 3 | r >> 3));
	e1(e, 0x0f);
	e1(e, 0xae);
	e1(e, (u8)(0xc0 | which << 3 | (r & 7)));
}

/* An operand in the data, or what would be there of another RIP. */
void gen_rip64(const struct gen *g)
{
	static const u8 op[] = {0x8b, 0x8b, 0x89, 0x8d, 0x8d, 0x03, 0x01, 0x39, 0x81, 0x10, 0x11};
	u64 to = g->env->data_abs + gen_rnd(0x4000);
	unsigned n = gen_rnd(sizeof(op)), r = g->reg();
	struct emit *e = g->e;

	if (gen_rnd(20) == 0)
		e1(e, 0x67);
	e1(e, (u8)(0x40 | (op[n] < 0x20 && op[n] >= 0x10 ? 0 : gen_rnd(2) << 3) | (r & 8) >> 1));
	if (op[n] == 0x10 || op[n] == 0x11)
		e1(e, 0x0f); /* MOVUPS */
	e1(e, op[n]);
	e1(e, (u8)((op[n] == 0x81 ? gen_rnd(8) : r & 7) << 3 | 5));
	e4(e, (u32)(to - (u64)(uintptr_t)(emit_rx(e) + (op[n] == 0x81 ? 8 : 4))));
	if (op[n] == 0x81)
		e4(e, (u32)gen_u64());
}

/* System instructions of 64-bit code. */
void gen_system64(const struct gen *g)
{
	static const u8 cr[] = {0, 2, 3, 4, 8};
	unsigned r = g->reg(), which;
	struct emit *e = g->e;

	switch (gen_rnd(8)) {
	case 0: /* CLAC, something, STAC */
		if (!g->env->smap && gen_rnd(8))
			break;
		e1(e, 0x0f);
		e2(e, 0xca01);
		if (gen_rnd(2))
			g->alu();
		e1(e, 0x0f);
		e2(e, 0xcb01);
		if (gen_rnd(2))
			g->alu();
		break;
	case 1:
	case 2: /* SGDT, SIDT */
		encode(e, 0, 1, 0x01, gen_rnd(2), g->mem());
		break;
	case 3: /* MOV r, CRn */
		if (!g->env->smap && gen_rnd(8))
			break;
		which = cr[gen_rnd(5)];
		e1(e, (u8)(0x40 | (which & 8) >> 1 | r >> 3));
		e1(e, 0x0f);
		e1(e, 0x20);
		e1(e, (u8)(0xc0 | (which & 7) << 3 | (r & 7)));
		break;
	case 4:
	case 5: /* RDFSBASE and its kin */
		which = gen_rnd(4);
		if (which >= 2 && gen_rnd(4) && r != H_RSP)
			emit_const(e, r, (g->env->data_abs + gen_rnd(1000)) | (gen_rnd(3) ? 0 : 0xffff800000000000ull));
		base_access(e, which, r);
		if (gen_rnd(2))
			base_access(e, which & 1, g->reg());
		break;
	case 6:
		gen_iret(g);
		break;
	default:
		if (g->env->smap)
			break;
		e1(e, 0x0f); /* syscall */
		e1(e, 0x05);
	}
}
