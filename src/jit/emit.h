/*
 * emit.h: writing host instructions, and the memory that they run in.
 *
 * struct emit is a cursor over the writable view of the code memory; the same bytes run at `+ delta`. Room is the
 * caller's business: before a block is translated, EMIT_ROOM bytes must be free.
 */
#ifndef DEVKVM_JIT_EMIT_H
#define DEVKVM_JIT_EMIT_H

#include <string.h>

#include "../base/types.h"

struct emit {
	u8 *p;               /* next byte, in the writable view */
	s64 delta;           /* executable view - writable view */
	struct fixes *fixes; /* where places are noted that a copy of the code must change; NULL: nowhere */
};

enum fix_kind {
	FIX_REL,   /* a displacement */
	FIX_RIP4,  /* an address of the guest's code or relative to it: 32 bits, extended by zeros */
	FIX_RIP4S, /* by its sign */
	FIX_RIP8,
	FIX_CALL,   /* index of a call */
	FIX_RECIPE, /* a recipe, as it stands in jt.flags */
};

#define FIXES_MAX 1024u

struct fixes {
	unsigned n; /* more than FIXES_MAX: some are not there */
	struct {
		u8 *at; /* writable view */
		u8 kind;
	} place[FIXES_MAX];
};

/* Host registers by number. */
enum { H_RAX, H_RCX, H_RDX, H_RBX, H_RSP, H_RBP, H_RSI, H_RDI, H_R8, H_R9, H_R10, H_R11, H_R12, H_R13, H_R14, H_R15 };

#define H_NONE 0xff

/* The ModRM.rm side of an instruction. */
struct rm {
	u8 reg; /* the register; H_NONE: memory */
	u8 base, index, scale;
	s32 disp;
};

/* encode()'s flags. */
#define ENC_66 BIT(0)
#define ENC_F2 BIT(1)
#define ENC_F3 BIT(2)
#define ENC_LOCK BIT(3)
#define ENC_W BIT(4)
#define ENC_REX BIT(5) /* a REX even when it says nothing: SPL, BPL, SIL, DIL */

static inline void e1(struct emit *e, u8 b)
{
	*e->p++ = b;
}

static inline void e2(struct emit *e, u16 x)
{
	memcpy(e->p, &x, 2);
	e->p += 2;
}

static inline void e4(struct emit *e, u32 x)
{
	memcpy(e->p, &x, 4);
	e->p += 4;
}

static inline void e8(struct emit *e, u64 x)
{
	memcpy(e->p, &x, 8);
	e->p += 8;
}

static inline u8 *emit_rx(const struct emit *e)
{
	return e->p + e->delta;
}

static inline struct rm rm_reg(unsigned r)
{
	return (struct rm){.reg = (u8)r};
}

static inline struct rm rm_mem(unsigned base, s32 disp)
{
	return (struct rm){.reg = H_NONE, .base = (u8)base, .index = H_NONE, .disp = disp};
}

static inline struct rm rm_sib(unsigned base, unsigned index, unsigned scale, s32 disp)
{
	return (struct rm){.reg = H_NONE, .base = (u8)base, .index = (u8)index, .scale = (u8)scale, .disp = disp};
}

static inline bool is_s8(s64 x)
{
	return x == (s8)x;
}

static inline bool is_s32(s64 x)
{
	return x == (s32)x;
}

/* Legacy-encoded instruction: prefixes, REX, opcode of `map` (0: one byte, 1: 0F, 2: 0F38, 3: 0F3A), ModRM. The caller
 * appends immediates. */
void encode(struct emit *e, unsigned flags, unsigned map, u8 opcode, unsigned reg, struct rm rm);
/* The same with a VEX prefix; pp 0, 1 (66), 2 (F3), 3 (F2). */
void encode_vex(struct emit *e, bool w, bool l, unsigned pp, unsigned map, u8 opcode, unsigned reg, unsigned vvvv,
                struct rm rm);
/* reg = x, by the shortest form that leaves flags alone. */
void emit_const(struct emit *e, unsigned reg, u64 x);
/* The same for an address that is so far from this block's RIP at any other RIP. */
void emit_rip(struct emit *e, unsigned reg, u64 rip);
void emit_rip4(struct emit *e, u64 rip);                 /* as an immediate, of which is_s32() holds */
void emit_index(struct emit *e, unsigned reg, u32 call); /* of a call */
void emit_recipe(struct emit *e, u32 flags);             /* as an immediate */
void emit_lea_rip(struct emit *e, unsigned reg, const void *to);
void emit_mov(struct emit *e, unsigned dst, unsigned src);              /* 64 bits */
void emit_load(struct emit *e, unsigned dst, unsigned base, s32 disp);  /* 64 bits */
void emit_store(struct emit *e, unsigned base, s32 disp, unsigned src); /* 64 bits */
/* JMP, CALL (E9, E8) or Jcc (cc | 0x80) with a 32-bit displacement to the executable address `to`; returns the place of
 * the displacement in the writable view. */
u8 *emit_jmp(struct emit *e, u8 opcode, const u8 *to);
u8 *emit_jcc(struct emit *e, unsigned cc, const u8 *to);
/* Points the displacement at `at` (writable view) to the executable address `to`: one aligned or unaligned store; only
 * the thread that runs the code patches it. */
static inline void patch_rel(u8 *at, s64 delta, const u8 *to)
{
	s32 rel = (s32)(to - (at + 4 + delta)), is;

	/* A write to code costs the host its pipeline, also if nothing changes: sites are linked again and again. */
	memcpy(&is, at, 4);
	if (is != rel)
		memcpy(at, &rel, 4);
}

/* Code memory: one memfd mapped twice, so that no mapping is writable and executable. `front` bytes of plain data lie
 * right before the executable view, in reach of RIP-relative operands. */
struct codemem {
	u8 *rw, *rx, *data;
	size_t size, front;
};

int codemem_create(struct codemem *c, size_t size, size_t front); /* -errno or 0 */
void codemem_destroy(struct codemem *c);

#endif
