/*
 * bmi.c: BMI1 and BMI2 instructions on general registers, in VEX encoding: themselves, with registers renamed.
 */
#include "trans.h"

void emit_bmi(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	const u8 *vex = i->raw + i->raw_prefixes; /* C4: maps 2 and 3 need the long form */
	unsigned reg = (i->modrm >> 3 & 7) | (vex[1] & 0x80 ? 0 : 8), grm = (i->modrm & 7) | (vex[1] & 0x20 ? 0 : 8);
	unsigned vvvv = (vex[2] >> 3 & 15) ^ 15, dest, second = 0;
	bool digit = i->map == 2 && i->opcode == 0xf3, w = vex[2] >> 7; /* BLSR and its kin: the result goes to vvvv */
	bool rorx = i->map == 3;
	struct emit *e = &c->e;
	struct rm rm;

	if (i->flags & INSN_MEM) {
		flags_give(c, k);
		rm = emit_operand(c, k, c->nat[k].rm_size, 1, TLB_READ);
		flags_want(c, k);
	} else {
		flags_want(c, k);
		rm = rm_reg(reg_in(c, grm, H_R11, true));
	}
	/* A source and the result may share R10: the source is read first. */
	if (!digit && !rorx)
		second = reg_in(c, vvvv, H_R10, true);
	dest = reg_in(c, digit ? vvvv : reg, H_R10, false);
	encode_vex(e, w, false, vex[2] & 3, i->map, i->opcode, digit ? i->modrm >> 3 & 7 : dest, digit ? dest : second,
	           rm);
	if (rorx)
		e1(e, i->raw[i->len - 1]);
	reg_out(c, digit ? vvvv : reg, H_R10);
}
