/*
 * decode.h: guest bytes → struct insn, the one decoded form that every engine reads.
 *
 * Only decode.c includes Zydis' decoder; everyone else sees struct insn and the ZYDIS_MNEMONIC_ numbers.
 */
#ifndef DEVKVM_X86_DECODE_H
#define DEVKVM_X86_DECODE_H

#include <Zydis/Mnemonic.h>

#include "regs.h"

struct vcpu;
struct insn;

/* Runs one instruction; returns an enum step of cpu/cpu.h. Chosen by interp/ when the instruction enters its cache. */
typedef int (*insn_fn)(struct vcpu *v, const struct insn *i);

enum opkind {
	OPK_NONE,
	OPK_GPR,  /* reg = number 0..15, off = byte offset of the value inside vcpu->r[] (AH is RAX's offset + 1) */
	OPK_MEM,  /* the instruction's one ModRM or moffs memory operand: seg, base, index, scale, disp */
	OPK_IMM,  /* insn.imm (a second immediate: insn.imm2) */
	OPK_REL,  /* insn.imm = displacement from the next instruction, sign-extended */
	OPK_FAR,  /* insn.imm = offset, insn.imm2 = selector */
	OPK_SREG, /* reg = SEG_x */
	OPK_CR,
	OPK_DR,
	OPK_ST, /* x87 stack register */
	OPK_MMX,
	OPK_XMM, /* reg = 0..15 */
	OPK_YMM,
	OPK_OTHER
};

struct operand {
	u8 kind; /* enum opkind */
	u8 size; /* bytes, 0 for AGEN and the like; up to 64 */
	u8 reg;
	u8 off; /* OPK_GPR: byte offset into vcpu->r[] */
};

/* insn.flags */
#define INSN_LOCK BIT(0)
#define INSN_REP BIT(1)   /* F3 before an instruction that repeats */
#define INSN_REPNE BIT(2) /* F2 before one */
#define INSN_MEM BIT(3)   /* has a memory operand (seg, base, index, scale, disp are valid) */
#define INSN_VEX BIT(4)
#define INSN_REX_W BIT(5)
#define INSN_66 BIT(6)
#define INSN_ALIGN                                                                                                     \
	BIT(7) /* memory operand must be aligned to its size or #GP (Zydis exception class SSE1, AVX1, ...) */

/* insn.acc */
#define INSN_ACC_READ 1
#define INSN_ACC_WRITE 2

struct insn {
	insn_fn fn;
	u64 imm;   /* sign-extended to 64 bits where the instruction does, zero-extended otherwise */
	s64 disp;  /* sign-extended; RIP-relative forms have base = R_RIP and the instruction's length added in */
	void *aux; /* what the handler bound to this instruction at its first run (thunk.h); NULL before */
	u16 mnemonic;
	u16 imm2;
	u16 isa; /* ZydisISASet: which CPUID bit must be there */
	u8 len;
	u8 osize; /* effective operand size in bytes: 1, 2, 4 or 8 */
	u8 asize; /* effective address size in bytes: 2, 4 or 8 */
	u8 flags;
	u8 seg;   /* effective segment of the memory operand (or of the source of a string instruction) */
	u8 base;  /* R_x, R_ZERO when absent, R_RIP */
	u8 index; /* R_x or R_ZERO */
	u8 scale; /* shift: 0..3 */
	u8 nops;
	u8 map;    /* opcode map: 0 one-byte, 1 0F, 2 0F38, 3 0F3A */
	u8 opcode; /* last opcode byte */
	u8 modrm;
	u8 vl;           /* VEX.L: 16 or 32 (bytes), 0 when not VEX */
	u8 raw_prefixes; /* number of legacy prefix bytes before REX/VEX/opcode */
	u8 off_modrm;    /* offsets inside raw[]; 0 when absent */
	u8 off_imm;
	u8 acc;               /* INSN_ACC_x: what the instruction may do to memory, implicit stack accesses included */
	u8 vindex;            /* VSIB: number of the vector index register (index is R_ZERO then) */
	u8 boff;              /* for interp/: bytes from its block's start to the end of this instruction */
	u8 bend;              /* for interp/: the same to the end of the run of instructions that comes after it */
	u8 cond;              /* a conditional near branch: falls through or jumps, touches nothing else */
	struct operand op[5]; /* the explicit operands, in Intel order (destination first); a VEX is4 register counts */
	u8 raw[15];
};

/* Machine mode for decode(). */
enum decode_mode { DECODE_16, DECODE_32, DECODE_64 };

/*
 * Decodes one instruction. `bytes`/`avail`: what is there (avail may be less than 15 at a page's end).
 * Returns 0; -1 when the bytes are not an instruction (#UD); -2 when more bytes are needed; -3 when it is longer than
 * 15 bytes (#GP). Never reads past `avail`. Thread-safe.
 */
int decode(enum decode_mode mode, const u8 *bytes, unsigned avail, struct insn *out);

#endif
