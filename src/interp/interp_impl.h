/*
 * interp_impl.h: what the files of src/interp share and nobody else sees: the decoded-code cache and the helpers that
 * handlers are made of (operands, host-computed flags, read-modify-write of memory).
 *
 * Flags are computed by the host's own instruction: undefined flags then come out as on the host, and the handlers need
 * no flag formulas. An "ax" image is what LAHF; SETO AL leaves: AH = SF ZF 0 AF 0 PF 1 CF, AL = OF. LAHF/SETO cost a
 * fraction of PUSHF/POPF.
 */
#ifndef DEVKVM_INTERP_IMPL_H
#define DEVKVM_INTERP_IMPL_H

#include <Zydis/Mnemonic.h>

#include "interp.h"

/* A run of decoded instructions inside one page (cross: one instruction over a page border). */
struct block {
	struct block *next; /* hash chain */
	/* The last two blocks that followed, by RIP: a guess that saves the hash lookup, checked like a hash hit. */
	struct {
		u64 rip;
		struct block *b;
	} succ[2];
	const u8 *hva; /* host address of the first byte */
	u32 key;       /* vcpu->code_key it was decoded under */
	u16 len;       /* bytes */
	u16 check;     /* bytes compared with the guest's at entry: up to the first conditional branch */
	u16 n;         /* instructions */
	u16 first_len; /* cross: bytes in the first page */
	bool cross;
	struct insn *insn;
	u8 bytes[];
};

#define BLOCK_INSNS 64
#define BLOCK_BYTES 255
#define ARENA_SIZE (24u << 20)
#define HASH_BITS 15

#define MEMO_BITS 10

/* An instruction decoded lately: memo.c. */
struct remembered {
	bool valid;
	u8 mode;
	struct insn insn;
};

struct interp {
	struct memref ref; /* of the one read-modify-write that can be in progress */
	bool left;         /* code_written: leave the block after this instruction */
	bool step_next;    /* an instruction may hit a breakpoint: it runs with a look at them */
	bool redeliver;    /* delivering v->excp stopped for an MMIO read */
	u32 vm_version;    /* memory layout the cache was filled under */
	size_t used;       /* bytes of arena */
	u8 *arena;
	struct block *hash[1u << HASH_BITS];
	u64 n_flushes, n_builds;
	u64 epoch; /* interp_epoch() */
	u32 pauses;
	struct remembered memo[1u << MEMO_BITS];
};

/* Chooses the instruction's handler, and how much the loop must look around after it. */
void interp_bind(struct insn *i);

/* ---- operands --------------------------------------------------------------------------------------------------- */

#define PACK(v, o) ((u8 *)(v)->r + (o)->off)

static inline u8 get1(const struct vcpu *v, const struct operand *o)
{
	return *((const u8 *)v->r + o->off);
}
static inline u16 get2(const struct vcpu *v, const struct operand *o)
{
	return (u16)v->r[o->reg];
}
static inline u32 get4(const struct vcpu *v, const struct operand *o)
{
	return (u32)v->r[o->reg];
}
static inline u64 get8(const struct vcpu *v, const struct operand *o)
{
	return v->r[o->reg];
}
static inline void set1(struct vcpu *v, const struct operand *o, u8 val)
{
	*((u8 *)v->r + o->off) = val;
}
static inline void set2(struct vcpu *v, const struct operand *o, u16 val)
{
	memcpy(&v->r[o->reg], &val, 2);
}
static inline void set4(struct vcpu *v, const struct operand *o, u32 val)
{
	v->r[o->reg] = val;
}
static inline void set8(struct vcpu *v, const struct operand *o, u64 val)
{
	v->r[o->reg] = val;
}

/* By size known at run time only: for the uncommon instructions. */
static inline u64 get_reg(const struct vcpu *v, const struct operand *o, unsigned size)
{
	switch (size) {
	case 1:
		return get1(v, o);
	case 2:
		return get2(v, o);
	case 4:
		return get4(v, o);
	default:
		return get8(v, o);
	}
}

static inline void set_reg(struct vcpu *v, const struct operand *o, unsigned size, u64 val)
{
	switch (size) {
	case 1:
		set1(v, o, (u8)val);
		break;
	case 2:
		set2(v, o, (u16)val);
		break;
	case 4:
		set4(v, o, (u32)val);
		break;
	default:
		set8(v, o, val);
		break;
	}
}

/* A numbered register with the rules of its size (2 keeps the rest, 4 zero-extends). */
static inline void put_reg(struct vcpu *v, unsigned reg, unsigned size, u64 val)
{
	if (size == 8)
		v->r[reg] = val;
	else if (size == 4)
		v->r[reg] = (u32)val;
	else
		memcpy(&v->r[reg], &val, size);
}

static inline u64 size_mask(unsigned size)
{
	return size == 8 ? ~0ull : BIT(size * 8) - 1;
}

static inline int read_sized(struct vcpu *v, unsigned seg, u64 ea, unsigned size, u64 *val)
{
	*val = 0;
	switch (size) {
	case 1:
		return v_read(v, seg, ea, val, 1);
	case 2:
		return v_read(v, seg, ea, val, 2);
	case 4:
		return v_read(v, seg, ea, val, 4);
	default:
		return v_read(v, seg, ea, val, 8);
	}
}

static inline int write_sized(struct vcpu *v, unsigned seg, u64 ea, unsigned size, u64 val)
{
	switch (size) {
	case 1:
		return v_write(v, seg, ea, &val, 1);
	case 2:
		return v_write(v, seg, ea, &val, 2);
	case 4:
		return v_write(v, seg, ea, &val, 4);
	default:
		return v_write(v, seg, ea, &val, 8);
	}
}

/* Register or memory source operand `n`. */
static inline int read_rm(struct vcpu *v, const struct insn *i, unsigned n, unsigned size, u64 *val)
{
	if (i->op[n].kind == OPK_MEM)
		return read_sized(v, i->seg, insn_ea(v, i), size, val);
	*val = i->op[n].kind == OPK_IMM ? i->imm & size_mask(size) : get_reg(v, &i->op[n], size);
	return STEP_OK;
}

static inline int size_index(unsigned size)
{
	return size == 1 ? 0 : size == 2 ? 1 : size == 4 ? 2 : 3;
}

/* ---- flags ------------------------------------------------------------------------------------------------------ */

#define FL_LOAD "addb $0x7f, %%al\n\tsahf\n\t"
#define FL_SAVE "\n\tlahf\n\tseto %%al"

static inline u32 fl_pack(u64 fl)
{
	return (u32)((fl & 0xff) << 8 | ((fl >> 11) & 1));
}

static inline u64 fl_merge(u64 fl, u32 ax)
{
	return (fl & ~FLAGS_ARITH) | ((ax >> 8) & 0xff) | (u64)(ax & 1) << 11;
}

/* The condition of the low four opcode bits of Jcc, SETcc, CMOVcc. */
static inline bool fl_cond(u64 fl, unsigned cc)
{
	static const u16 mask[8] = {FLAGS_OF, FLAGS_CF, FLAGS_ZF, FLAGS_CF | FLAGS_ZF,
	                            FLAGS_SF, FLAGS_PF, 2,        2 | FLAGS_ZF};
	/* Bit 1 of the copy: SF != OF. */
	u64 f = (fl & ~2ull) | (((fl >> 6) ^ (fl >> 10)) & 2);

	return ((f & mask[(cc >> 1) & 7]) != 0) ^ (cc & 1);
}

/* ---- read-modify-write of the memory operand -------------------------------------------------------------------- */

/* Opens the memory operand; *p then points at it, in guest RAM when possible. Close with rmw_close(v, slow). */
static inline int rmw_open_at(struct vcpu *v, const struct insn *i, u64 ea, unsigned size, bool locked, u8 **p,
                              bool *slow)
{
	gva_t gva;
	struct memref *ref;
	int rc;

	*slow = false;
	*p = v_fast(v, i->seg, ea, size, MEM_READ | MEM_WRITE);
	if (likely(*p))
		return STEP_OK;
	rc = v_linear(v, i->seg, ea, size, MEM_READ | MEM_WRITE, &gva);
	if (unlikely(rc != STEP_OK))
		return rc;
	*p = tlb_lookup(&v->mmu.tlb[v->mmu.ctx][TLB_WRITE], gva, size);
	if (*p)
		return STEP_OK;
	ref = &v->interp->ref;
	rc = mem_open(&v->mmu, gva, size, MEM_READ | MEM_WRITE, v->mmu.ctx, locked, ref);
	if (rc != MEM_OK)
		return vmem_fail(v, rc);
	*p = ref->p;
	*slow = true;
	return STEP_OK;
}

static inline int rmw_open(struct vcpu *v, const struct insn *i, unsigned size, bool locked, u8 **p, bool *slow)
{
	return rmw_open_at(v, i, insn_ea(v, i), size, locked, p, slow);
}

static inline void rmw_close(struct vcpu *v, bool slow)
{
	if (unlikely(slow))
		mem_close(&v->mmu, &v->interp->ref);
}

/* Host compare-and-swap; p may be unaligned (the host then locks the bus). True when *p was `old`. */
#define GEN_CAS(T, S, sfx)                                                                                             \
	static inline bool cas##S(u8 *p, T *old, T new)                                                                \
	{                                                                                                              \
		bool ok;                                                                                               \
		asm volatile("lock; cmpxchg" sfx " %[new], %[mem]\n\tsete %[ok]"                                       \
		             : [ok] "=q"(ok), "+a"(*old), [mem] "+m"(*(T(*)[1])(void *)p)                              \
		             : [new] "q"(new)                                                                          \
		             : "cc", "memory");                                                                        \
		return ok;                                                                                             \
	}                                                                                                              \
	static inline T ld##S(const u8 *p)                                                                             \
	{                                                                                                              \
		T x;                                                                                                   \
		memcpy(&x, p, sizeof(x));                                                                              \
		return x;                                                                                              \
	}                                                                                                              \
	static inline void st##S(u8 *p, T x)                                                                           \
	{                                                                                                              \
		memcpy(p, &x, sizeof(x));                                                                              \
	}

typedef u8 t1;
typedef u16 t2 __attribute__((aligned(1)));
typedef u32 t4 __attribute__((aligned(1)));
typedef u64 t8 __attribute__((aligned(1)));

GEN_CAS(t1, 1, "b")
GEN_CAS(t2, 2, "w")
GEN_CAS(t4, 4, "l")
GEN_CAS(t8, 8, "q")

#undef PACK

/* ---- the find functions of op_int's files ----------------------------------------------------------------------- */
insn_fn op_alu_find(const struct insn *i);
insn_fn op_mov_find(const struct insn *i);
insn_fn op_shift_find(const struct insn *i);
insn_fn op_muldiv_find(const struct insn *i);
insn_fn op_bits_find(const struct insn *i);
insn_fn op_stack_find(const struct insn *i);
insn_fn op_misc_find(const struct insn *i);
insn_fn op_bcd_find(const struct insn *i);

#endif
