/*
 * jit_impl.h: what the files of src/jit share.
 *
 * Registers while translated code runs: guest RAX RCX RDX RBX RBP RSI RDI R9 R12 R13 in themselves, guest RSP in R14,
 * guest R8 R10 R11 R14 R15 in vcpu->r[]; R15 = struct vcpu *; R8 R10 R11 are scratch. Host RSP is a host stack, which
 * mirrors guest calls so that the host predicts returns.
 *
 * Invariants:
 *  1. a block's code is right for (linear RIP, host address of its bytes, key) and nothing else: key is jit_key();
 *  2. at a block's border the guest's arithmetic flags are in jt.flags (LAHF; SETO AL form), or, when nobody will read
 *     them, a recipe for them (FLAGS_RECIPE; recipe.c). Guest vector registers and MXCSR are where jt.vec says; while C
 * runs they are in v->fpu. Its x87 state is where jt.x87 says: in v->fpu outside translated code and in handlers that
 *     look at it (x87.c);
 *  3. whatever enters a page of code from outside the page (dispatcher, jump cache, guarded links) has seen the page's
 *     guard hold: the dispatcher translated its address and validated its bytes after the last change of TLB and epoch
 *     (j->flushes, j->epoch). So inside a page, links are free;
 *  4. a block whose bytes changed is dead: no link, no hash entry and no jump cache entry leads to it. Its code stays
 *     where it is until a flush, which happens in the dispatcher only;
 *  5. no block is left running after code_written(): j->left makes the helper leave to the dispatcher, which also
 *     resets the host stack, so a return never lands in code from before.
 */
#ifndef DEVKVM_JIT_IMPL_H
#define DEVKVM_JIT_IMPL_H

#include <stddef.h>

#include "../base/ahead.h"
#include "../interp/interp.h"
#include "emit.h"
#include "jit.h"

#define TB_INSNS 32     /* most guest instructions of a block */
#define TB_RANGES 10    /* byte ranges that a block depends on: itself and what was looked at behind its exits */
#define EMIT_ROOM 32768 /* most host bytes of a block */

#define HASH_SIZE (1u << 17)
#define PAGE_HASH (1u << 13)
#define GUARD_HASH (1u << 14)
#define ORIGIN_HASH (1u << 16)
#define JC_SIZE 16384u     /* jump cache entries */
#define GUARDS_MAX 131072u /* page guards */

#define CALLS_MAX (1u << 22)
#define SITES_MAX (1u << 22)
#define META_SIZE (256u << 20)
/* Generations that a flush lets begin anew: none may come twice, nor 0, while a guard remembers one. Half of what 32
 * bits hold, as those of address spaces are also made between two looks of the dispatcher. */
#define GEN_MAX 0x80000000u

/* jit_key() bits. */
#define KEY_64 BIT(0)
#define KEY_CTX_SHIFT 1 /* enum tlb_ctx of data */
#define KEY_SSE BIT(3)  /* SSE instructions run */
#define KEY_AVX BIT(4)
#define KEY_CPL0 BIT(5)
#define KEY_USER BIT(6)  /* fetches are CPL 3's */
#define KEY_FP BIT(7)    /* all SSE exceptions are masked */
#define KEY_SEG BIT(8)   /* not 64-bit code, and CS, SS, DS and ES are not all flat, or it is 16-bit code or stack */
#define KEY_16 BIT(9)    /* 16-bit code */
#define KEY_SP16 BIT(10) /* the stack pointer is SP */
#define KEY_X87 BIT(11)  /* x87 and MMX instructions run, all x87 exceptions are masked */
#define KEY_ANY BIT(15)  /* in every key: no tag of the jump cache is 0 (jit_tag()) */
#define KEY_CS_SHIFT 16  /* from here: number of CS's base and limit in jit.cs; 0: flat, or 64-bit code */
#define KEY_NONE BIT(31) /* not for the translator now */

/* jt.flags is a recipe: meta_at() / 16 of it in the upper three bytes. */
#define FLAGS_RECIPE 0x80u

/* jt.vec: vector registers and MXCSR are in v->fpu; in the host's XMM; in the host's YMM. */
enum { VEC_MEMORY, VEC_XMM, VEC_YMM };

/* Why translated code returned (eax). */
enum { LEFT_LOOKUP, LEFT_LINK, LEFT_AFTER };

/* What follows a call of a handler: the next instruction; v's RIP, by the jump cache; the dispatcher (j->rc, j->insn).
 */
enum jit_called { CALLED_ON, CALLED_JUMP, CALLED_LEAVE };

/* What of CS decides how a block is translated. */
struct code_seg {
	u32 base, limit;
};

#define CS_MAX 4096u

struct jc_entry {
	u64 tag; /* RIP ^ jt.key; 0: empty */
	const u8 *code;
	const u32 *cell; /* of the page's guard */
	u32 tb;          /* the block: meta_at() */
	u32 pad;
};

/* Plain data in reach of the code's RIP-relative operands. */
struct front {
	struct jc_entry jc[JC_SIZE];
	u32 cell[GUARDS_MAX]; /* of guard n: the generation in which the dispatcher found it to hold, else another */
};

/*
 * A page guard says: linear page `page` under `key` is the host page `hva`, and the blocks of it are valid. Links from
 * other pages and the jump cache compare its cell with the generation of its kind: `local`, a flush of translations
 * that are not global takes it back; else only a flush of all does.
 */
struct guard {
	u64 page;
	const u8 *hva;
	u32 key;
	bool local;
	u32 users; /* living blocks that have it; without any it goes to j->guard_spare */
	struct guard *next;
};

struct range {
	u16 off, len; /* inside the page */
};

struct tb {
	u64 rip;
	const u8 *hva;
	u32 key;
	bool dead;
	bool unchecked; /* lockstep.c: nothing to compare */
	u8 beyond;      /* bytes of its only instruction that lie in the next page */
	u8 n_ranges;
	u16 n_insns;
	u32 checks;   /* lockstep.c */
	u32 guard[2]; /* of its page: not local, local; 0: none yet */
	struct range *range;
	const u8 *bytes;        /* of the ranges, one after the other */
	u8 *code, *code_nopoll; /* executable addresses */
	u32 code_len;
	u32 links;             /* first site that jumps here, + 1 */
	u32 page;              /* its struct jpage: meta_at() */
	struct origin *origin; /* of which it is a copy, or copies can be made; or NULL */
	struct tb *next, *page_next;
	struct tb **page_at; /* what points to it in its page's list */
};

/* A direct jump that can be linked to the block at `rip`. */
struct site {
	u64 rip;
	u32 key;        /* of the target: the block's own, but for STAC and CLAC */
	u32 at;         /* displacement: offset in the code memory */
	u32 unlinked;   /* where it jumps before: the same */
	u32 from;       /* the block it is of: meta_at() */
	u32 to;         /* while linked: the target, meta_at() */
	u32 prev, next; /* of the target's links, + 1 */
	bool poll, linked;
	bool cross; /* goes to another page: behind a guard */
};

/* A guarded jump, from its displacement backwards: CMP with the generation, with the guard's cell, JNE. */
#define SITE_CELL 11
#define SITE_GEN 18
/* Unlinked it jumps to a MOV of its index, which lies so far behind the stub's beginning. */
#define SITE_INDEX 2

/* An instruction that translated code gives to its handler. */
struct call {
	u32 tb;     /* meta_at() */
	u32 recipe; /* for the flags before it, on top of jt.flags; 0: they are there. meta_at() */
	union {
		u32 insn;   /* kept: decoded, meta_at() */
		u32 splits; /* of a group's leader: its check failed without a TLB miss */
	};
	u16 off;        /* from the block's start */
	bool sys;       /* may change mode, flags outside the arithmetic ones, translation */
	u8 light;       /* enum light: what light.c does first */
	bool group : 1; /* of a group's leader */
	bool kept : 1;  /* always goes to its handler; others are decoded when needed (decoded[]) */
};

/* Instructions decoded again for their handlers, by index of the call. */
#define DECODED 2048u
struct decoded {
	u32 call; /* + 1 */
	struct insn insn;
};

#define SNAP 512u

struct jpage {
	const u8 *hva;
	gpa_t gpa;
	u64 epoch;
	u64 granules;      /* 64-byte pieces that ranges touch */
	u64 straddling[4]; /* by 16-byte pieces: groups led by instructions there often lie over two pages */
	struct tb *tbs;
	u8 *snap[PAGE_SIZE / SNAP]; /* what the granules held when they were validated last; NULL where none is */
	bool watched;               /* we hold it: smc.c */
	u8 foreign;                 /* stores of others since it was emptied last */
	u8 in_vain;                 /* times that its blocks were put away since some came here */
	struct jpage *next;
};

struct jit {
	struct vcpu *v;
	struct jit *next_jit; /* list of all translators */
	struct codemem mem;
	struct front *front;
	struct emit e, cold;         /* what runs often, and what lies out of line */
	u8 *code_start, *cold_start; /* after the stubs, writable view */
	const u8 *enter, *leave_lookup, *leave_link, *long_lookup, *long_link, *call_stub, *light_stub, *ret_miss,
	        *jump[2], *vec_stub[3], *flags_stub, *fill_stub, *recipe_stub, *x87_load, *x87_store, *call_stub_x87;
	u64 flushes, flushes_local, epoch; /* what the generation stands for */
	struct {
		u64 serial;   /* v->mmu.flushes_local */
		u32 all, gen; /* all_gen, of then */
	} gens[8];            /* generations of address spaces: tb_new_gen_local() */
	u32 all_gen, last_gen, gens_next;
	u32 link;   /* site to link to the next block, + 1 */
	bool local; /* kind of the guard that the last tb_find() validated */
	bool left;
	bool bad_ret; /* the code was left by a RET that must fault */
	bool need_flush, slots_changed;
	_Atomic(unsigned) others; /* translators of the same VM */
	_Atomic(bool) foreign;    /* another vCPU wrote to our pages: foreign_list */
	gpa_t foreign_list[16];
	unsigned n_foreign;
	_Atomic(bool) again; /* the others must look at again_list once more, when our stores are done: smc.c */
	gpa_t again_list[16];
	unsigned n_again;
	int rc;         /* LEFT_AFTER */
	bool delivered; /* what the handler raised is on its way: `next` is the loop's part */
	int next;       /* enum interp_next */
	const struct insn *insn;
	u32 vm_version;

	struct tb **hash;
	struct origin **origins; /* copy.c; other vCPUs read them, under smc_lock() */
	u64 stubs;               /* a sum of what lies before code_start */
	struct jpage **pages;
	struct jpage *spare; /* of pages that were put away: smc.c */
	u64 n_away;
	struct call *calls;
	struct site *sites;
	struct guard *guards, **guard_hash, *guard_spare;
	struct decoded *decoded;
	struct code_seg *cs; /* CS_MAX */
	u16 *cs_hash;        /* 2 * CS_MAX: number in cs, open addressing */
	u32 n_cs;
	u8 *meta;
	size_t meta_used;
	struct ahead hot_rw, hot_rx, cold_rw, cold_rx, meta_ahead, calls_ahead, sites_ahead;
	u32 n_calls, n_sites, n_guards;

	struct {
		u64 blocks, insns, handler_insns, code_bytes, flushes, lookups, links, relinks, invalidated, helper,
		        quick, light, after, interp, epochs, gens, gens_local, slow, adopted, copied, retaken, imported;
	} n;
	u64 *helper_by_mnemonic; /* DEVKVM_DEBUG=jitstat */
	struct jit *next_counted;
	bool dump, count, perf;
	bool bmi2, xsave;    /* the host has it */
	struct trans *trans; /* trans.h: the block being translated */
	struct lockstep *lockstep;
	struct {
		bool on;
		bool exact_flags; /* all arithmetic flags are taken for alive at all times */
		u8 spoil;         /* SPOIL_x: translate something wrong */
		u32 spoil_every, n_spoilt, n_eligible;
		u64 rng;
	} chaos;
};

typedef u32 (*enter_fn)(struct vcpu *v, const u8 *code);

struct nat;

/* helper.c */
u32 jit_key(const struct vcpu *v);
/* The key in the form of vcpu->jt.key: RIP exclusive-or this tells (RIP, key) apart, for linear RIPs. */
static inline u64 jit_tag(u32 key)
{
	return (u64)(key & 0xffff) << 48 | (u64)(key >> KEY_CS_SHIFT) << 32;
}
/* The key of such a tag. */
static inline u32 jit_key_of(u64 tag)
{
	return (u32)(tag >> 48) | (u32)(tag >> 32 & 0xffff) << KEY_CS_SHIFT;
}
static inline enum decode_mode key_decode(u32 key)
{
	return key & KEY_64 ? DECODE_64 : key & KEY_16 ? DECODE_16 : DECODE_32;
}
/* Is it a size of pushes and branches that is translated? */
static inline bool key_word(u32 key, unsigned osize)
{
	return key & KEY_64 ? osize == 8 : osize == 4 || (osize == 2 && (key & KEY_SEG));
}
u32 jit_call(struct vcpu *v, u32 idx);
void jit_flags(struct vcpu *v); /* jt.flags is no recipe any more */
void jit_emit_stubs(struct jit *j);

/* tb.c */
int tb_find(struct vcpu *v, u32 key, struct tb **out); /* STEP_x; *out NULL: let the interpreter run a block */
struct tb *tb_lookup(const struct jit *j, u64 rip, const u8 *hva, u32 key);
static inline unsigned tb_hash(u64 rip, u32 key)
{
	return (unsigned)((rip ^ rip >> 15 ^ key << 3) & (HASH_SIZE - 1));
}
/* The block is about to be entered from outside its page: its page's guard holds, the jump cache knows it. */
void tb_entered(struct vcpu *v, struct tb *tb, const struct jpage *page);
void tb_link(struct jit *j, u32 site, struct tb *to);
void tb_kill(struct jit *j, struct tb *tb);
void tb_unlink_site(struct jit *j, struct site *s); /* it is in nobody's list any more; its code stays as it is */
void tb_flush(struct jit *j);
void tb_new_gen(struct jit *j);       /* no guard holds any more */
void tb_new_gen_local(struct jit *j); /* no local guard does */
void *meta_alloc(struct jit *j, size_t size);
/* Where the jump cache has a linear address. */
static inline struct jc_entry *jc_of(const struct jit *j, u64 rip)
{
	return &j->front->jc[(rip ^ rip >> PAGE_SHIFT) & (JC_SIZE - 1)];
}
/* Is there another guard to be had? */
static inline bool guards_left(const struct jit *j)
{
	return j->guard_spare || j->n_guards + 1 < GUARDS_MAX;
}
static inline u32 meta_at(const struct jit *j, const void *p)
{
	return (u32)((const u8 *)p - j->meta);
}
static inline void *meta_ptr(const struct jit *j, u32 at)
{
	return j->meta + at;
}

/* smc.c */
struct jpage *page_get(struct jit *j, const u8 *hva_page);
struct jpage *page_find(const struct jit *j, const u8 *hva_page);
void page_drop(struct jit *j, struct tb *tb);      /* kills the block; nobody is left in it */
void page_take_back(struct jit *j, struct tb *tb); /* the same, where its memory is used again at once */
/* Kills the block; its successors know that the group led by the instruction at its byte `off` straddles pages. */
void page_straddles(struct jit *j, struct tb *tb, unsigned off);
void page_add(struct jit *j, struct jpage *p, struct tb *tb);
void page_validate(struct jit *j, struct jpage *p);  /* kills blocks whose bytes changed */
bool page_unchanged(struct jit *j, struct jpage *p); /* or says that some may have */
/* `block`, of the same RIP and key, is on another page. If that one is not what it was and the block is right for `p`,
 * all of the page's blocks that are right for `p` become its. Returns the block then, else NULL. */
struct tb *page_adopt(struct jit *j, struct jpage *p, const struct tb *block);
bool page_has(const u8 *hva_page, const struct tb *tb); /* the bytes that the block was made of */
void page_leave(struct jit *j, struct jpage *p); /* as if the page had other bytes now; nobody is left in a block */
/* Translators of the same VM, whose lock is held meanwhile: what they have made stays until smc_unlock(). */
void smc_lock(void);
void smc_unlock(void);
struct jit *smc_peer(const struct jit *j,
                     struct jit *after); /* the next one behind `after`, NULL: the first; or NULL */
void smc_foreign(struct jit *j);
void smc_again(struct jit *j);
void smc_slots_changed(struct jit *j); /* pages are where the slots have them now, and not watched yet */
void smc_register(struct jit *j);
void smc_unregister(struct jit *j);

/* quick.c: code to go on at, NULL: the dispatcher has to find it. */
const u8 *jit_quick_lookup(struct vcpu *v, u64 rip);
const u8 *jit_quick_link(struct vcpu *v, u32 site);

/* light.c */
enum light { LIGHT_NONE, LIGHT_SYSCALL, LIGHT_SYSRET, LIGHT_IRET, LIGHT_WRBASE, LIGHT_POPF };
u8 light_of(const struct insn *i);
/* The instruction of a call. NULL: nothing is done, its handler must; LIGHT_ON: go on behind it; else code to go on at,
 * with jt.to in R8. */
#define LIGHT_ON ((const u8 *)1)
const u8 *jit_light(struct vcpu *v, u32 idx);

/* The world is as translated code expects it: nothing to look at, and all guards as good as they were. */
static inline bool jit_undisturbed(const struct vcpu *v, const struct jit *j)
{
	return !atomic_load_explicit(&((struct vcpu *)v)->events, memory_order_relaxed) && !v->stepping &&
	       v->mmu.flushes == j->flushes && v->mmu.flushes_local == j->flushes_local;
}

/* trans.c: the block at `rip`, whose bytes are at `hva`; NULL when its first instruction is not for us. */
struct tb *translate(struct jit *j, u64 rip, const u8 *hva, u32 key, struct jpage *page);

/* copy.c: the same from a block of the same bytes and key at another RIP, on another page or of another vCPU of the VM;
 * NULL: there is none. */
struct tb *copy_make(struct jit *j, u64 rip, const u8 *hva, u32 key, struct jpage *page);
void copy_never(struct tb *tb); /* it is not to come again */

/* helper.c, for lockstep.c: translated code returned `left`. jit_settle() makes the state in v whole; jit_left() does
 * what follows, and returns an interp_next or -1 for "look at events and go on". */
void jit_settle(struct vcpu *v, u32 key, u32 left);
int jit_left(struct vcpu *v, u32 left);

/* recipe.c: the flags now, in LAHF; SETO AL form, by jt.flags and the recipe on top of it (0: none) */
u32 recipe_flags(const struct vcpu *v, u32 recipe);

/* see.c */
void see_create(struct jit *j);
void see_destroy(struct jit *j);

/* lockstep.c */
void lockstep_create(struct jit *j); /* DEVKVM_LOCKSTEP */
void lockstep_destroy(struct jit *j);
bool lockstep_alone(const struct jit *j, const struct insn *i, const struct nat *n); /* must be a block of its own */
bool lockstep_wants(const struct jit *j, const struct tb *tb);
int lockstep_block(struct vcpu *v, u32 key, struct tb *tb); /* runs and checks it; an interp_next */

/* chaos.c: choices that are legal at any time, made at random, and wrong translations for tests of the tests */
enum { SPOIL_NONE, SPOIL_ALU, SPOIL_ADDRESS, SPOIL_FLAGS, SPOIL_X87 };
void chaos_create(struct jit *j, size_t *code_size); /* DEVKVM_CHAOS */
u32 chaos_rnd(struct jit *j, u32 n);
void chaos_world(struct vcpu *v, struct jit *j);                /* before each entry to translated code */
bool chaos_spoil(struct jit *j, struct insn *i, struct nat *n); /* true: its flags are to be taken for dead */

/* class.c: what the translator knows about an instruction */
#define F_CF 1u
#define F_PF 2u
#define F_AF 4u
#define F_ZF 8u
#define F_SF 16u
#define F_OF 32u
#define F_ALL 63u

enum cls {
	K_HANDLER, /* the interpreter's handler does it */
	K_MODRM,   /* re-encoded: registers renamed, memory operand through the TLB */
	K_RAW,     /* runs as it is */
	K_NOP,
	K_MOVI,  /* register, immediate */
	K_ACC,   /* accumulator, immediate */
	K_MOFFS, /* MOV AL/EAX/RAX, moffs and back */
	K_LEA,
	K_SREG, /* MOV r, sreg */
	K_DIV,
	K_PUSH, /* op[0] */
	K_POP,
	K_LEAVE,
	K_XCHGA, /* XCHG rAX, r */
	K_BSWAP,
	K_INCDEC, /* one-byte INC, DEC of 32-bit code */
	K_JCC,
	K_COUNT, /* LOOP, JCXZ */
	K_JMP,
	K_JMPI,
	K_CALL,
	K_CALLI,
	K_RET,
	K_CLI,
	K_STI,
	K_DF, /* CLD, STD */
	K_PUSHF,
	K_SWAPGS,
	K_AC,          /* STAC, CLAC */
	K_TABLE,       /* SGDT, SIDT */
	K_FROM_CR,     /* MOV r, CRn */
	K_RDBASE,      /* RDFSBASE, RDGSBASE */
	K_LIGHT,       /* a handler's work by a function that leaves the registers where they are, if it is plain */
	K_TSC,         /* RDTSC, RDTSCP */
	K_BITMEM,      /* BT and its kin, memory, the bit's number in a register */
	K_STRING_ONCE, /* MOVS LODS STOS SCAS, not repeated */
	K_STRING,      /* REP STOS, REP MOVS */
	K_BMI,         /* general registers, VEX encoding */
	K_SSE,         /* vector registers, legacy encoding */
	K_VEX,
	K_X87,
	K_MMX
};

struct nat {
	u8 cls;
	u8 fr, fw;                     /* arithmetic flags read, and certainly written (undefined counts) */
	bool fmod;                     /* writes some flag, maybe */
	bool reg_r, reg_w, rm_r, rm_w; /* ModRM operands: general registers read, written */
	bool digit;                    /* ModRM.reg is part of the opcode */
	bool high;                     /* ModRM.reg is AH, CH, DH or BH, the other operand memory */
	bool ends;                     /* nothing of the block runs after it */
	u8 reg_kind, rm_kind;          /* OPK_GPR, OPK_XMM ... */
	u8 size;                       /* of the general register operands */
	u8 rm_size;                    /* of the rm operand */
	bool fp;                       /* reads and writes MXCSR */
	u8 align;                      /* of the memory operand; 0: any */
};
void classify(const struct insn *i, u32 key, struct nat *n);
/* Does C get to see the vector registers? */
static inline bool nat_is_called(const struct nat *n)
{
	return n->cls == K_HANDLER || n->cls == K_LIGHT;
}
/* system.c: system instructions that need no handler; leaves the others alone. */
void system_classify(const struct insn *i, u32 key, struct nat *n);
/* STAC, CLAC: it may change what data accesses see. */
static inline bool system_ends(const struct insn *i, u32 key)
{
	return (key >> KEY_CTX_SHIFT & 3) == (i->mnemonic == ZYDIS_MNEMONIC_STAC ? TLB_SUPER : TLB_SUPER_AC);
}
static inline bool nat_is_conditional(const struct nat *n)
{
	return n->cls == K_JCC || n->cls == K_COUNT;
}
static inline bool nat_is_relative(const struct nat *n)
{
	return nat_is_conditional(n) || n->cls == K_JMP || n->cls == K_CALL;
}
u8 cc_flags(unsigned cc);

#endif
