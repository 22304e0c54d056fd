/*
 * string.c: MOVS, LODS, STOS and SCAS without repetition, forwards. (Repeated ones: rare.c, and their handlers.)
 */
#include "trans.h"

/* R8 + R11 = the element at `reg` (RSI or RDI) in `seg`. */
static void emit_element(struct trans *c, unsigned k, unsigned reg, unsigned seg, unsigned size, enum tlb_kind kind)
{
	const struct insn *i = &c->insn[k];

	if (i->asize == 2)
		encode(&c->e, 0, 1, 0xb7, H_R8, rm_reg(reg));
	else
		encode(&c->e, i->asize == 8 ? ENC_W : 0, 0, 0x8b, H_R8, rm_reg(reg));
	emit_segment(c, k, seg, size, kind);
	emit_check(c, k, size, kind);
}

void emit_string_once(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	unsigned size = c->nat[k].size, f = size == 8 ? ENC_W : size == 2 ? ENC_66 : 0;
	unsigned advance = i->asize == 8 ? ENC_W : i->asize == 2 ? ENC_66 : 0;
	u8 wide = size > 1, op = i->opcode & 0xfe;
	struct emit *e = &c->e;

	flags_give(c, k);
	encode(e, 0, 0, 0xf7, 0, rm_mem(H_R15, VOFF(rflags))); /* test dword, DF */
	e4(e, (u32)FLAGS_DF);
	slow_at(c, k, emit_jcc(e, 5, NULL));
	if (op == 0xa4) { /* MOVS */
		emit_element(c, k, H_RSI, i->seg, size, TLB_READ);
		encode(e, f, 0, 0x8a | wide, H_R10, rm_guest());
		emit_store(e, H_R15, VOFF(jt.tmp), H_R10);
		emit_element(c, k, H_RDI, SEG_ES, size, TLB_WRITE);
		emit_load(e, H_R10, H_R15, VOFF(jt.tmp));
		encode(e, f, 0, 0x88 | wide, H_R10, rm_guest());
	} else if (op == 0xac) { /* LODS */
		emit_element(c, k, H_RSI, i->seg, size, TLB_READ);
		encode(e, f, 0, 0x8a | wide, H_RAX, rm_guest());
	} else if (op == 0xaa) { /* STOS */
		emit_element(c, k, H_RDI, SEG_ES, size, TLB_WRITE);
		encode(e, f, 0, 0x88 | wide, H_RAX, rm_guest());
	} else { /* SCAS */
		emit_element(c, k, H_RDI, SEG_ES, size, TLB_READ);
		flags_want(c, k);
		encode(e, f, 0, 0x3a | wide, H_RAX, rm_guest()); /* cmp rax, element */
	}
	/* LEA leaves the flags alone. */
	if (op == 0xa4 || op == 0xac)
		encode(e, advance, 0, 0x8d, H_RSI, rm_mem(H_RSI, (s32)size));
	if (op != 0xac)
		encode(e, advance, 0, 0x8d, H_RDI, rm_mem(H_RDI, (s32)size));
}
