/*
 * gen.h: random programs for the engines.
 */
#ifndef DEVKVM_TEST_JIT_GEN_H
#define DEVKVM_TEST_JIT_GEN_H

#include "../../src/base/types.h"
#include "../../src/jit/emit.h"

/* What the program may rely on: RSP and RDI (64-bit code: and R15) point into DATA; nothing is at FAR; port I/O does
 * something; INT INT_VECTOR changes nothing, SYSCALL at CPL 3 only what it must. */
#define INT_VECTOR 0x30

struct gen_env {
	unsigned bits; /* 64, 32, 16 */
	bool segs;     /* segments have bases and limits, and GS shows the code */
	bool vex, io, sse;
	bool smap;           /* CPL 0, data are user pages: RFLAGS.AC is to be set */
	u64 code, code_size; /* linear window that programs lie in */
	u64 data_abs;        /* address of the data for absolute operands */
	u64 mmio;            /* a page without memory; 0: none */
	u64 cs_base, gs_base;
	bool cut_ok; /* RIP fits into 16 bits */
};

struct program {
	u64 at; /* address of the first byte */
	unsigned len, n_insns;
	u8 bytes[16384];
	unsigned n_chunks;
	u16 chunk[260]; /* offsets where a run may go on after a fault */
};

extern bool gen_x87_rich; /* half of each program is x87 or MMX instructions, not only of some */
void gen_seed(u64 seed);
u32 gen_rnd(u32 n);
u64 gen_u64(void);
void gen_place(const struct gen_env *env, struct program *p); /* chooses p->at */
void gen_program(const struct gen_env *env, struct program *p);

/* gen_64.c: what it needs of gen.c: where code goes, any register and memory operand, an instruction. */
struct gen {
	struct emit *e;
	const struct gen_env *env;
	unsigned (*reg)(void);
	struct rm (*mem)(void);
	void (*alu)(void);
};
void gen_system64(const struct gen *g);
void gen_rip64(const struct gen *g);

/* gen_handler.c: IRET at its end; it counts in the 8 or 4 bytes at `count`. */
void gen_handler(struct emit *e, bool is64, u64 count);

/* gen_never.c */
struct insn;
bool gen_never(const struct insn *i);

#endif
