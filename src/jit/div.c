/*
 * div.c: DIV and IDIV of 16, 32 and 64 bits. The host divides, once it is certain that it will not fault: the quotient
 * fits (DIV: high half below the divisor; IDIV: the dividend is a sign-extended low half, the divisor neither 0 nor
 * -1). Every other case is the handler's.
 */
#include "trans.h"

void div_emit(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	unsigned size = c->nat[k].size, w = size == 8 ? ENC_W : size == 2 ? ENC_66 : 0;
	struct emit *e = &c->e;
	unsigned digit = i->modrm >> 3 & 7;

	flags_give(c, k);
	if (i->flags & INSN_MEM) {
		emit_ea(c, k, size, TLB_READ);
		emit_check(c, k, size, TLB_READ);
		encode(e, w, 0, 0x8b, H_R11, rm_sib(H_R8, H_R11, 0, 0));
	} else {
		encode(e, w, 0, 0x89, reg_in(c, i->op[0].reg, H_R11, true), rm_reg(H_R11));
	}
	if (digit == 6) {
		encode(e, w, 0, 0x39, H_R11, rm_reg(H_RDX)); /* cmp rdx, r11 */
		slow_at(c, k, emit_jcc(e, 3, NULL));
	} else {
		encode(e, w, 0, 0x89, H_RAX, rm_reg(H_R10));
		encode(e, w, 0, 0xc1, 7, rm_reg(H_R10)); /* sar r10, 63 or 31 */
		e1(e, (u8)(size * 8 - 1));
		encode(e, w, 0, 0x39, H_R10, rm_reg(H_RDX));
		slow_at(c, k, emit_jcc(e, 5, NULL));
		encode(e, w, 0, 0x8d, H_R10, rm_mem(H_R11, 1));
		encode(e, w, 0, 0x83, 7, rm_reg(H_R10)); /* cmp r10, 1 */
		e1(e, 1);
		slow_at(c, k, emit_jcc(e, 6, NULL));
	}
	flags_want(c, k);
	encode(e, w, 0, 0xf7, digit, rm_reg(H_R11));
}
