/*
 * trans.h: what the files that translate share: the block being translated. Prototypes by file.
 */
#ifndef DEVKVM_JIT_TRANS_H
#define DEVKVM_JIT_TRANS_H

#include <stdio.h>

#include "jit_impl.h"

#define VOFF(field) ((s32)offsetof(struct vcpu, field))

/* x87 state at a place of the block. */
struct x87 {
	bool here;    /* it is in the host's registers */
	bool used;    /* v->fpu.x87_used is set */
	u8 last, seg; /* instruction + 1, segment + 1, that FIP, FOP, FCS, and FDS must still be written for; or 0 */
};

/* A memory access that missed, or another reason to let the handler do instruction k. */
struct slow {
	u8 *at; /* displacement that leads here */
	u8 k, last;
	bool vec;         /* c->vec there */
	const u8 *resume; /* of an access in split code: where to go on; NULL: c->resume[last] */
	const u8 *retry;  /* the check itself: an entry in the TLB may help; NULL: no */
	const u8 *go;     /* behind it, for one access that reads: its bytes may be elsewhere; NULL: no */
	u8 reg, kind;     /* of such a check: host register with the address, TLB_READ or TLB_WRITE */
	u16 size;
	bool host_after, vec_after, x87_after;
	struct x87 x87; /* c->x87 there */
};

struct exit {
	u8 *at;
	u64 rip;
	bool save;  /* flags to jt.flags first */
	u32 recipe; /* or this one of them, with carried[id]; 0: neither */
	u32 key;    /* of the code there */
	u8 id;
	bool poll;   /* look at events whatever the direction */
	bool lookup; /* to the dispatcher, unlinked */
};

/* Accesses that share a check: group.c. */
struct group {
	u8 base, leader, last;
	bool write, leader_writes;
	u8 align; /* some must be aligned to so much: those whose offset is `phase` modulo it; 0: none */
	u8 phase;
	s64 lo, hi; /* span, relative to the base register's value at the leader; lo fits a displacement */
};

#define SLOTS ARRAY_SIZE(((struct vcpu *)0)->jt.slot)
#define CARRIED ARRAY_SIZE(((struct vcpu *)0)->jt.carried)

/* Operands that an instruction puts aside for recipes: slot + 1, or 0. */
struct put {
	u8 a_before, b_before, a_after, b_after, loaded;
};

/* What an exit's recipe takes along. */
struct carried {
	u16 clobbered; /* registers that change behind the exit while the flags may be asked for */
	bool partial;  /* instructions there overwrite a part of the flags first */
	u8 n;
	u8 reg[4]; /* guest registers in jt.carried */
};

/* Exits by number: the branch k; the block's end; the look at events behind instruction k. */
#define EXIT_END TB_INSNS
#define EXIT_POLL(k) (TB_INSNS + 1 + (k))
#define EXITS (2 * TB_INSNS + 1)

/* A restore of flags that finds a recipe in jt.flags. */
struct fixup {
	u8 *at;
	const u8 *back;
	bool vec;
};

struct trans {
	struct jit *j;
	struct tb *tb;
	struct emit e;
	u32 key;
	struct code_seg cs;
	const u8 *hva_page;
	unsigned n, n_slow, n_exit, n_range;
	u64 end_rip;
	bool host;  /* the guest's flags are in the host's */
	bool exact; /* jt.flags stands for the flags now; if it is a recipe, it was made for this place or before entry
	             */
	bool real;  /* jt.flags is no recipe */
	u32 stored; /* the recipe that this block left in jt.flags for the flags now, without carried registers */
	u8 *deep_at;
	const u8 *deep_back;
	const u8 *loop; /* where a branch to the block's beginning may go behind its own look at the events, or NULL */
	bool vec;       /* vector registers and MXCSR are in the host's, as this block wants them */
	struct x87 x87;
	bool split;     /* emitting the code of a group that straddles pages: each access has its own check */
	bool after_sti; /* the previous instruction was an STI: its shadow ends behind this one */
	bool bound;     /* the code is right at this RIP alone, and copies cannot be made */
	const struct jpage *page;
	u8 wants_vec;       /* VEC_x */
	u32 call[TB_INSNS]; /* index + 1 */
	u32 last_recipe;
	unsigned n_slots, n_fixup;
	struct put put[TB_INSNS];
	u64 seen_at[PAGE_SIZE / 64]; /* which */
	u32 recipe_in[TB_INSNS];     /* of the flags before it, when they are not alive and it may ask for them */
	u32 recipe_exit[EXITS];
	struct carried carried[EXITS];
	/* from here on not cleared */
	struct insn insn[TB_INSNS];
	struct nat nat[TB_INSNS];
	u64 rip[TB_INSNS];
	u8 live_in[TB_INSNS], live_out[TB_INSNS], look_taken[TB_INSNS];
	bool sys[TB_INSNS], host_after[TB_INSNS], vec_after[TB_INSNS], x87_after[TB_INSNS];
	const u8 *resume[TB_INSNS];
	struct group group[TB_INSNS];
	u8 group_of[TB_INSNS]; /* index + 1 */
	struct fixup fixup[TB_INSNS * 2];
	unsigned n_group;
	struct slow slow[TB_INSNS * 8];
	struct exit exit[TB_INSNS * 3 + 1];
	struct range range[TB_RANGES];
	u8 bytes[TB_INSNS * 15 + 16];
	u8 seen[PAGE_SIZE]; /* what was decoded there, by offset in the page */
	struct fixes fixes; /* copy.c */
};

static inline bool is_grouped(const struct trans *c, unsigned k)
{
	return !c->split && c->group_of[k] && c->group[c->group_of[k] - 1].leader != c->group[c->group_of[k] - 1].last;
}

static inline bool is_follower(const struct trans *c, unsigned k)
{
	return !c->split && c->group_of[k] && c->group[c->group_of[k] - 1].leader != k;
}

static inline unsigned wflag(const struct trans *c)
{
	return c->key & KEY_64 ? ENC_W : 0;
}

/* Bytes of a push that is not sized otherwise; KEY_SEG is segment.c's. */
static inline unsigned word(const struct trans *c)
{
	return c->key & KEY_64 ? 8 : 4;
}

/* Linear addresses wrap outside 64-bit mode. */
static inline u64 wrap(const struct trans *c, u64 rip)
{
	return c->key & KEY_64 ? rip : (u32)rip;
}

/* scan.c */
void decode_block(struct trans *c);
void liveness(struct trans *c);

/* recipe.c */
#define RECIPE_NONE (~0u)
u16 regs_written(const struct insn *i, const struct nat *n);
u32 recipe_make(struct trans *c, unsigned k, struct carried *exit);
void put_before(struct trans *c, unsigned k);
void put_after(struct trans *c, unsigned k);
void put_loaded(struct trans *c, unsigned k);
void put_spoilt(struct trans *c, unsigned k);
void put_recipe(struct trans *c, u32 recipe, const struct carried *with);

/* trans.c */
extern const u8 host_of[16];
void flags_save(struct emit *e);
void flags_restore(struct emit *e);
void emit_ret_base(struct jit *j, struct emit *e);
unsigned reg_in(struct trans *c, unsigned g, unsigned scratch, bool load);
void reg_out(struct trans *c, unsigned g, unsigned scratch);
void flags_give(struct trans *c, unsigned k);
void flags_want(struct trans *c, unsigned k);
void emit_push_check(struct trans *c, unsigned k);
void exit_recipe(struct trans *c, unsigned id);
u32 call_of(struct trans *c, unsigned k);
void code_ahead(struct jit *j);

/* branch.c */
void exit_at(struct trans *c, u8 *at, u64 rip, u8 live);
void emit_exit(struct trans *c, u8 *at, u64 rip, u32 key, bool poll);
u8 *emit_events(struct emit *e, unsigned cc, const u8 *to);
void emit_jump_cache(struct jit *j, struct emit *e, bool user);
void emit_target(struct trans *c, unsigned k);
void emit_call(struct trans *c, unsigned k);
void emit_calli(struct trans *c, unsigned k);
void emit_ret(struct trans *c, unsigned k);
void emit_jcc_insn(struct trans *c, unsigned k);
void emit_count(struct trans *c, unsigned k);

/* copy.c: before a block is emitted, and behind it, when its part out of line, its calls and its sites begin so */
void copy_note(struct trans *c, u64 rip);
void copy_origin(const struct trans *c, u8 *cold, u32 first_call, u32 first_site);

/* mem.c */
void slow_at(struct trans *c, unsigned k, u8 *at);
void emit_offset(struct trans *c, unsigned k);
void emit_segment(struct trans *c, unsigned k, unsigned seg, unsigned size, enum tlb_kind kind);
void emit_ea(struct trans *c, unsigned k, unsigned size, enum tlb_kind kind);
bool emit_group(struct trans *c, unsigned k);
struct rm emit_operand(struct trans *c, unsigned k, unsigned size, unsigned align, enum tlb_kind kind);
void emit_check(struct trans *c, unsigned k, unsigned size, enum tlb_kind kind);
void emit_check_reg(struct trans *c, unsigned k, unsigned reg, unsigned size, enum tlb_kind kind);
void emit_check_run(struct trans *c, unsigned k, unsigned scale, enum tlb_kind kind);
/* A checked operand whose address is in R8. */
static inline struct rm rm_guest(void)
{
	return rm_sib(H_R8, H_R11, 0, 0);
}

/* segment.c */
u64 rip_of(const struct trans *c, u64 lin);
u64 limit_left(const struct trans *c, u64 lin);
u64 target_of(const struct trans *c, const struct insn *i, u64 next);
bool goes_astray(const struct trans *c, const struct insn *i, const struct nat *n, u64 next);
void segment_push_check(struct trans *c, unsigned k, unsigned size);
void segment_store_imm(struct trans *c, unsigned size, u32 imm);
void segment_set_sp(struct trans *c, unsigned reg, s32 delta);
void segment_push(struct trans *c, unsigned k);
void segment_pop(struct trans *c, unsigned k);
void segment_leave(struct trans *c, unsigned k);
void segment_load_target(struct trans *c, unsigned k, struct rm from, unsigned size);
void segment_ret(struct trans *c, unsigned k);

/* see.c: the block is translated; its part out of line (executable address) */
void see_block(const struct trans *c, const u8 *cold, u64 cold_len);
void see_copy(const struct tb *tb, const u8 *cold, u64 cold_len); /* with DEVKVM_DEBUG=perf */

/* bmi.c */
void emit_bmi(struct trans *c, unsigned k);

/* div.c */
void div_emit(struct trans *c, unsigned k);

/* rare.c */
void emit_border_check(struct trans *c);
void emit_pushf(struct trans *c, unsigned k);
void emit_release(struct emit *e);
void emit_swapgs(struct trans *c);
void emit_tsc(struct trans *c, unsigned k);
void emit_bitmem(struct trans *c, unsigned k);
void emit_string(struct trans *c, unsigned k);

/* system.c */
void emit_ctx(struct trans *c, enum tlb_ctx ctx);
void emit_table(struct trans *c, unsigned k);
void emit_from_cr(struct trans *c, unsigned k);
void emit_rdbase(struct trans *c, unsigned k);

/* string.c */
void emit_string_once(struct trans *c, unsigned k);

/* group.c */
void group_accesses(struct trans *c);
bool straddles(const struct trans *c, unsigned k); /* a group led by k often lies over two pages */

/* vec.c */
bool vec_access(const struct trans *c, unsigned k, u8 *size, bool *write, u8 *align); /* false: cannot be grouped */
void vec_classify(struct trans *c, const struct insn *i, struct nat *n);
void vec_begin(struct trans *c);
void vec_emit(struct trans *c, unsigned k);

/* x87.c */
void x87_classify(const struct trans *c, const struct insn *i, struct nat *n);
bool x87_seen_by(const struct insn *i); /* its handler reads or writes x87 state */
void x87_begin(struct trans *c);
void x87_emit(struct trans *c, unsigned k);
void mmx_emit(struct trans *c, unsigned k);
/* FOP, FIP, FCS of instruction last - 1 and FDS of segment seg - 1 → v->fpu. Uses R10, changes no flags. */
void x87_put_pointers(struct trans *c, u8 last, u8 seg);
void x87_settle(struct trans *c); /* the pointers that wait */

#endif
