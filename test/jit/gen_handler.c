/*
 * gen_handler.c: the handler of the interrupts that come while a random program runs.
 */
#include "gen.h"

/* The interrupt handler: every register is saved, changed and restored, and SYS_COUNT counted. Its IRET may fault; the
 * flags there must not be those of the count, which is one side's alone. */
void gen_handler(struct emit *e, bool is64, u64 count)
{
	if (is64) {
		for (unsigned r = 0; r < 16; r++)
			if (r != H_RSP) {
				if (r >= 8)
					e1(e, 0x41);
				e1(e, (u8)(0x50 | (r & 7)));
			}
		encode(e, ENC_W, 0, 0x8d, H_RSP, rm_mem(H_RSP, -32));
		encode(e, ENC_F3, 1, 0x7f, 0, rm_mem(H_RSP, 0));
		encode(e, ENC_F3, 1, 0x7f, 5, rm_mem(H_RSP, 16));
		for (unsigned r = 0; r < 16; r++)
			if (r != H_RSP)
				emit_const(e, r, 0x1234567890abcdefull * (r + 1));
		encode(e, ENC_66, 1, 0x76, 0, rm_reg(0));
		encode(e, ENC_66, 1, 0x76, 5, rm_reg(5));
		encode(e, ENC_W, 0, 0xff, 0, rm_sib(H_NONE, H_NONE, 0, (s32)count));
		encode(e, ENC_W, 0, 0x01, H_RAX, rm_reg(H_RBX));
		encode(e, ENC_F3, 1, 0x6f, 0, rm_mem(H_RSP, 0));
		encode(e, ENC_F3, 1, 0x6f, 5, rm_mem(H_RSP, 16));
		encode(e, ENC_W, 0, 0x8d, H_RSP, rm_mem(H_RSP, 32));
		for (unsigned r = 16; r-- > 0;)
			if (r != H_RSP) {
				if (r >= 8)
					e1(e, 0x41);
				e1(e, (u8)(0x58 | (r & 7)));
			}
		e1(e, 0x48);
	} else {
		e1(e, 0x60);
		for (unsigned r = 0; r < 8; r++)
			if (r != H_RSP)
				emit_const(e, r, 0x90abcdefu * (r + 1));
		e1(e, 0x36); /* SS is the handler's own */
		encode(e, 0, 0, 0xff, 0, rm_sib(H_NONE, H_NONE, 0, (s32)count));
		encode(e, 0, 0, 0x01, H_RAX, rm_reg(H_RBX));
		e1(e, 0x61);
	}
	e1(e, 0xcf);
}
