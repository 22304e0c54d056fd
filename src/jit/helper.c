/*
 * helper.c: what translated code calls and where it returns to: the dispatcher, the stubs, the handler call.
 */
#include <cpuid.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "../base/bug.h"
#include "../interp/interp_impl.h"
#include "trans.h"

/* ---- key -------------------------------------------------------------------------------------------------------- */

/* The number of CS's base and limit in the table; KEY_NONE: it is full, and will be empty after a flush. */
static u32 cs_number(struct jit *j, const struct seg *cs)
{
	u32 base = (u32)cs->base, limit = cs->limit, h = (base >> 4 ^ base >> 16 ^ limit) * 0x9e3779b1u >> 19;

	static_assert(1u << (32 - 19) == 2 * CS_MAX, "bits of the hash");
	if (!base && limit == 0xffffffffu)
		return 0;
	for (;; h = (h + 1) & (2 * CS_MAX - 1)) {
		u32 n = j->cs_hash[h];

		if (!n)
			break;
		if (likely(j->cs[n].base == base && j->cs[n].limit == limit))
			return n << KEY_CS_SHIFT;
	}
	if (j->n_cs == CS_MAX) {
		j->need_flush = true;
		return KEY_NONE;
	}
	j->cs[j->n_cs] = (struct code_seg){base, limit};
	j->cs_hash[h] = (u16)j->n_cs;
	return j->n_cs++ << KEY_CS_SHIFT;
}

/* What code outside 64-bit mode depends on more: CS, widths, and whether segments count. */
static u32 segment_key(const struct vcpu *v)
{
	const struct seg *s = v->seg;
	u8 flat = s[SEG_DS].flat & s[SEG_ES].flat & s[SEG_SS].flat;
	u32 key = cs_number(v->jit, &s[SEG_CS]);

	if (v->dmode == DECODE_16)
		key |= KEY_16 | KEY_SEG;
	if (!v->stack_is_32)
		key |= KEY_SP16 | KEY_SEG;
	if ((key >> KEY_CS_SHIFT) || flat != (MEM_READ | MEM_WRITE))
		key |= KEY_SEG;
	return key;
}

/* What a block depends on besides RIP and its bytes. KEY_NONE: code that the interpreter runs. */
u32 jit_key(const struct vcpu *v)
{
	u32 key = KEY_ANY | (u32)v->mmu.ctx << KEY_CTX_SHIFT;

	if (v->mode != MODE_64) {
		key |= segment_key(v);
		if (unlikely(key & KEY_NONE))
			return KEY_NONE;
	} else {
		key |= KEY_64;
	}
	if (v->cpl == 0)
		key |= KEY_CPL0;
	if (v->cpl == 3)
		key |= KEY_USER;
	if (!(v->cr0 & (CR0_EM | CR0_TS)) && (v->cr4 & CR4_OSFXSR)) {
		key |= KEY_SSE;
		if ((v->fpu.mxcsr & 0x1f80) == 0x1f80)
			key |= KEY_FP;
		/* In real and virtual-8086 mode a VEX prefix is #UD. */
		if (v->mode >= MODE_PROT && (v->cr4 & CR4_OSXSAVE) &&
		    (v->fpu.xcr0 & (XCR0_SSE | XCR0_AVX)) == (XCR0_SSE | XCR0_AVX))
			key |= KEY_AVX;
	}
	if (!(v->cr0 & (CR0_EM | CR0_TS)) && (v->fpu.fx[FX_FCW] & 0x3f) == 0x3f && likely(v->jit->xsave))
		key |= KEY_X87;
	return key;
}

/* ---- called by translated code ---------------------------------------------------------------------------------- */

/* The instruction of a call, decoded: kept for those that always go to their handler, else decoded when needed. */
static const struct insn *insn_of(struct jit *j, u32 idx)
{
	const struct call *call = &j->calls[idx];
	const struct tb *tb = meta_ptr(j, call->tb);
	struct decoded *d = &j->decoded[(idx ^ idx >> 11) & (DECODED - 1)];

	if (call->kept)
		return meta_ptr(j, call->insn);
	if (d->call != idx + 1) {
		/* It was decoded before, from these bytes. */
		interp_decode(j->v, key_decode(tb->key), tb->bytes + call->off,
		              tb->range[0].len + tb->beyond - call->off, &d->insn);
		d->call = idx + 1;
	}
	return &d->insn;
}

/* May the code go on at v's RIP by the jump cache, under `key`? */
static bool go_by_cache(struct vcpu *v, const struct jit *j, u32 key)
{
	u64 to = v->r[R_RIP];

	if (key == KEY_NONE || j->lockstep || j->chaos.on || j->need_flush)
		return false;
	if (key & KEY_64) {
		if (!is_canonical(to))
			return false;
	} else {
		if ((u32)to > v->seg[SEG_CS].limit)
			return false;
		to = (u32)(v->seg[SEG_CS].base + to);
	}
	v->jt.to = to;
	v->jt.key = jit_tag(key);
	return true;
}

/* Nothing to look at, but perhaps another address space: its generation counts from now on. */
static bool calm(struct vcpu *v, struct jit *j)
{
	if (j->flushes_local != v->mmu.flushes_local) {
		j->flushes_local = v->mmu.flushes_local;
		tb_new_gen_local(j);
	}
	return jit_undisturbed(v, j);
}

/* RIP of a linear address in translated code. */
static inline u64 rip_now(const struct vcpu *v, u64 lin)
{
	return likely(v->mode == MODE_64) ? lin : (u32)(lin - v->seg[SEG_CS].base);
}

/* The second part of an instruction over a page border is still there, and still the same. */
static int check_border(struct vcpu *v, struct tb *tb)
{
	unsigned first = tb->range[0].len;
	u64 next = tb->rip + first;
	const u8 *p;
	int rc = interp_fetch(v, tb->key & KEY_64 ? next : (u32)next, &p);

	if (rc != STEP_OK)
		return rc;
	if (!memcmp(p, tb->bytes + first, tb->beyond))
		return STEP_OK;
	page_drop(v->jit, tb);
	return STEP_JUMP;
}

/* So often may a group lie over two pages before it gets code for that. */
#define SPLITS_MAX 32

/* Runs an instruction's handler on the state in memory: enum jit_called. */
u32 jit_call(struct vcpu *v, u32 idx)
{
	struct jit *j = v->jit;
	struct call *call = &j->calls[idx];
	const struct insn *i = insn_of(j, idx);
	struct tb *tb = meta_ptr(j, call->tb);
	u64 misses = v->mmu.tlb_misses;
	int rc;

	j->n.helper++;
	if (unlikely(j->helper_by_mnemonic))
		j->helper_by_mnemonic[i->mnemonic]++;
	v->rflags = fl_merge(v->rflags, recipe_flags(v, call->recipe));
	v->r[R_RIP] = rip_now(v, tb->rip + call->off);
	rc = likely(!tb->beyond) ? STEP_OK : check_border(v, tb);
	if (likely(rc == STEP_OK))
		rc = i->fn(v, i);
	if (likely(rc == STEP_OK)) {
		v->jt.flags = fl_pack(v->rflags);
		v->r[R_RIP] += i->len;
		if (call->group && v->mmu.tlb_misses == misses && ++call->splits == SPLITS_MAX)
			page_straddles(j, tb, call->off);
		if (likely(!(v->mmu.n_writes | v->mmu.n_reads | j->left))) {
			u32 key;

			if (!call->sys)
				return CALLED_ON;
			if (jit_undisturbed(v, j)) {
				key = jit_key(v);
				if (likely(key == tb->key))
					return CALLED_ON;
				if (go_by_cache(v, j, key))
					return CALLED_JUMP;
			}
		}
	} else if (rc == STEP_JUMP && !(v->mmu.n_writes | v->mmu.n_reads | j->left) && calm(v, j) &&
	           go_by_cache(v, j, jit_key(v))) {
		v->jt.flags = fl_pack(v->rflags);
		return CALLED_JUMP;
	} else if (rc == STEP_EXCP && !j->lockstep) {
		/* Page faults above all: the handler's code is known, most often. */
		j->next = interp_after(v, i, rc);
		if (j->next == INTERP_GO_ON && !(v->mmu.n_writes | v->mmu.n_reads | j->left) && calm(v, j) &&
		    go_by_cache(v, j, jit_key(v))) {
			v->jt.flags = fl_pack(v->rflags);
			/* The delivery looked at no breakpoints; what follows it does. */
			v->mmu.watch_stops = true;
			return CALLED_JUMP;
		}
		j->delivered = true;
	}
	j->rc = rc;
	j->insn = i;
	return CALLED_LEAVE;
}

void jit_flags(struct vcpu *v)
{
	v->jt.flags = recipe_flags(v, 0);
}

/* ---- stubs ------------------------------------------------------------------------------------------------------ */

static const struct {
	u8 guest, host;
} homes[] = {{R_RAX, H_RAX}, {R_RCX, H_RCX}, {R_RDX, H_RDX}, {R_RBX, H_RBX}, {R_RSP, H_R14}, {R_RBP, H_RBP},
             {R_RSI, H_RSI}, {R_RDI, H_RDI}, {R_R9, H_R9},   {R_R12, H_R12}, {R_R13, H_R13}};

/* Those of homes[] that a C function may change: RAX RCX RDX RSI RDI R9. */
static const u8 caller_saved[] = {0, 1, 2, 6, 7, 8};

/* x87 state to v->fpu, when it is not there. Destroys RAX RCX RDX RBX RBP and flags. */
static void settle_x87(struct jit *j, struct emit *e)
{
	u8 *at;

	encode(e, 0, 0, 0x83, 7, rm_mem(H_R15, VOFF(jt.x87))); /* cmp dword, 0 */
	e1(e, 0);
	at = emit_jcc(e, 4, NULL);
	emit_jmp(e, 0xe8, j->x87_store);
	patch_rel(at, e->delta, emit_rx(e));
}

/* x87 state stays where it is. */
static void spill_all(struct jit *j, struct emit *e)
{
	emit_jmp(e, 0xe8, j->vec_stub[VEC_MEMORY]);
	for (unsigned n = 0; n < ARRAY_SIZE(homes); n++)
		emit_store(e, H_R15, homes[n].guest * 8, homes[n].host);
}

/* Calls a C function with RDI and RSI as they are, on an aligned stack. RBX is spilled. */
static void emit_c_call(struct emit *e, u64 function)
{
	emit_mov(e, H_RBX, H_RSP);
	encode(e, ENC_W, 0, 0x83, 4, rm_reg(H_RSP)); /* and rsp, -16 */
	e1(e, 0xf0);
	emit_const(e, H_RAX, function);
	encode(e, 0, 0, 0xff, 2, rm_reg(H_RAX));
	emit_mov(e, H_RSP, H_RBX);
}

static void reload_all(struct emit *e)
{
	for (unsigned n = 0; n < ARRAY_SIZE(homes); n++)
		emit_load(e, homes[n].host, H_R15, homes[n].guest * 8);
}

/* Around a call of a C function that leaves vector registers alone: what it may change is stored; R8 too. */
static void emit_c_begin(struct emit *e)
{
	for (unsigned n = 0; n < ARRAY_SIZE(caller_saved); n++)
		emit_store(e, H_R15, homes[caller_saved[n]].guest * 8, homes[caller_saved[n]].host);
	emit_store(e, H_R15, VOFF(jt.c_r8), H_R8);
	emit_store(e, H_R15, VOFF(jt.c_sp), H_RSP);
	encode(e, 0, 0, 0xc7, 0, rm_mem(H_R15, VOFF(jt.in_stub)));
	e4(e, 1);
	encode(e, ENC_W, 0, 0x83, 4, rm_reg(H_RSP)); /* and rsp, -16 */
	e1(e, 0xf0);
}

/* All back but R8. No flag changes. */
static void emit_c_end(struct emit *e)
{
	emit_load(e, H_RSP, H_R15, VOFF(jt.c_sp));
	encode(e, 0, 0, 0xc7, 0, rm_mem(H_R15, VOFF(jt.in_stub)));
	e4(e, 0);
	for (unsigned n = 0; n < ARRAY_SIZE(caller_saved); n++)
		emit_load(e, homes[caller_saved[n]].host, H_R15, homes[caller_saved[n]].guest * 8);
}

/* find(v, R8): to the code it returns, or on to `otherwise` with R8 as it was. */
static const u8 *emit_quick(struct emit *e, u64 find, const u8 *otherwise)
{
	const u8 *start = emit_rx(e);

	emit_c_begin(e);
	emit_mov(e, H_RDI, H_R15);
	emit_mov(e, H_RSI, H_R8);
	emit_const(e, H_RAX, find);
	encode(e, 0, 0, 0xff, 2, rm_reg(H_RAX));
	emit_mov(e, H_R8, H_RAX);
	emit_c_end(e);
	encode(e, ENC_W, 0, 0x85, H_R8, rm_reg(H_R8));
	emit_load(e, H_R10, H_R15, VOFF(jt.c_r8));
	encode(e, ENC_W, 1, 0x44, H_R8, rm_reg(H_R10)); /* cmovz r8, r10 */
	emit_jcc(e, 4, otherwise);
	encode(e, 0, 0, 0xff, 4, rm_reg(H_R8));
	return start;
}

static void move_vectors(struct emit *e, bool ymm, bool store)
{
	for (unsigned x = 0; x < 16; x++) {
		struct rm rm = rm_mem(H_R15, VOFF(fpu.ymm) + (s32)x * 32);

		if (ymm)
			encode_vex(e, false, true, 0, 1, store ? 0x11 : 0x10, x, 0, rm);
		else
			encode(e, 0, 1, store ? 0x11 : 0x10, x, rm);
	}
}

static void cmp_vec(struct emit *e, u8 with)
{
	encode(e, 0, 0, 0x83, 7, rm_mem(H_R15, VOFF(jt.vec)));
	e1(e, with);
}

static void set_vec(struct emit *e, u32 to)
{
	encode(e, 0, 0, 0xc7, 0, rm_mem(H_R15, VOFF(jt.vec)));
	e4(e, to);
	e1(e, 0xc3);
}

/* Vector registers and MXCSR to where the stub's number says. They touch flags, and no general register. */
static void emit_vec_stubs(struct jit *j)
{
	struct emit *e = &j->e;
	u8 *at, *done;

	j->vec_stub[VEC_MEMORY] = emit_rx(e);
	cmp_vec(e, VEC_XMM);
	at = emit_jcc(e, 3, NULL);
	e1(e, 0xc3);
	patch_rel(at, e->delta, emit_rx(e));
	at = emit_jcc(e, 4, NULL);
	move_vectors(e, true, true);
	e1(e, 0xc5); /* vzeroupper */
	e1(e, 0xf8);
	e1(e, 0x77);
	done = emit_jmp(e, 0xe9, NULL);
	patch_rel(at, e->delta, emit_rx(e));
	move_vectors(e, false, true);
	patch_rel(done, e->delta, emit_rx(e));
	encode(e, 0, 1, 0xae, 3, rm_mem(H_R15, VOFF(fpu.mxcsr)));
	encode(e, 0, 1, 0xae, 2, rm_mem(H_R15, VOFF(jt.mxcsr_host)));
	set_vec(e, VEC_MEMORY);

	/* From memory. */
	j->vec_stub[VEC_XMM] = emit_rx(e);
	encode(e, 0, 1, 0xae, 3, rm_mem(H_R15, VOFF(jt.mxcsr_host)));
	encode(e, 0, 1, 0xae, 2, rm_mem(H_R15, VOFF(fpu.mxcsr)));
	move_vectors(e, false, false);
	set_vec(e, VEC_XMM);

	/* From memory, or the lower halves from the host's. */
	j->vec_stub[VEC_YMM] = emit_rx(e);
	cmp_vec(e, VEC_XMM);
	at = emit_jcc(e, 4, NULL);
	encode(e, 0, 1, 0xae, 3, rm_mem(H_R15, VOFF(jt.mxcsr_host)));
	encode(e, 0, 1, 0xae, 2, rm_mem(H_R15, VOFF(fpu.mxcsr)));
	done = emit_jmp(e, 0xe9, NULL);
	patch_rel(at, e->delta, emit_rx(e));
	move_vectors(e, false, true);
	patch_rel(done, e->delta, emit_rx(e));
	move_vectors(e, true, false);
	set_vec(e, VEC_YMM);
}

static void emit_return(struct jit *j, struct emit *e, u32 why)
{
	static const u8 pops[] = {0x48, 0x83, 0xc4, 0x08, 0x41, 0x5f, 0x41, 0x5e,
	                          0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3};

	settle_x87(j, e);
	emit_const(e, H_RAX, why);
	emit_load(e, H_RSP, H_R15, VOFF(jt.sp));
	memcpy(e->p, pops, sizeof(pops));
	e->p += sizeof(pops);
}

/*
 * x87_load: x87 state from v->fpu, unless it is in the host's registers. Destroys flags. x87_store: back, from there;
 * destroys RAX RCX RDX RBX RBP. The host's environment is then as it was: empty registers, as the ABI wants them, the
 * control word and the flags of whoever runs us. XSAVE writes what the host has for FOP, FIP and FDP, which are not the
 * guest's.
 */
static void emit_x87_stubs(struct jit *j)
{
	struct emit *e = &j->e;
	u8 *at;

	j->x87_load = emit_rx(e);
	encode(e, 0, 0, 0x83, 7, rm_mem(H_R15, VOFF(jt.x87))); /* cmp dword, 0 */
	e1(e, 0);
	at = emit_jcc(e, 4, NULL);
	e1(e, 0xc3);
	patch_rel(at, e->delta, emit_rx(e));
	e1(e, 0x50); /* push rax; push rdx */
	e1(e, 0x52);
	emit_const(e, H_RAX, XCR0_X87);
	emit_const(e, H_RDX, 0);
	encode(e, 0, 0, 0xd9, 6, rm_mem(H_R15, VOFF(jt.env_host))); /* fnstenv */
	encode(e, ENC_W, 1, 0xae, 5, rm_mem(H_R15, VOFF(fpu.fx)));  /* xrstor64 */
	encode(e, 0, 0, 0xc7, 0, rm_mem(H_R15, VOFF(jt.x87)));
	e4(e, 1);
	e1(e, 0x5a);
	e1(e, 0x58);
	e1(e, 0xc3);

	j->x87_store = emit_rx(e);
	emit_const(e, H_RAX, XCR0_X87);
	emit_const(e, H_RDX, 0);
	encode(e, 0, 1, 0xb7, H_RCX, rm_mem(H_R15, VOFF(fpu.fx) + FX_FOP));
	emit_load(e, H_RBX, H_R15, VOFF(fpu.fx) + FX_FIP);
	emit_load(e, H_RBP, H_R15, VOFF(fpu.fx) + FX_FDP);
	encode(e, ENC_W, 1, 0xae, 4, rm_mem(H_R15, VOFF(fpu.fx))); /* xsave64 */
	encode(e, ENC_66, 0, 0x89, H_RCX, rm_mem(H_R15, VOFF(fpu.fx) + FX_FOP));
	emit_store(e, H_R15, VOFF(fpu.fx) + FX_FIP, H_RBX);
	emit_store(e, H_R15, VOFF(fpu.fx) + FX_FDP, H_RBP);
	/* XSAVE says here whether the state is the initial one. */
	encode(e, ENC_W, 0, 0xc7, 0, rm_mem(H_R15, VOFF(fpu.xs_header)));
	e4(e, 1);
	encode(e, 0, 0, 0xd9, 4, rm_mem(H_R15, VOFF(jt.env_host))); /* fldenv */
	encode(e, 0, 0, 0xc7, 0, rm_mem(H_R15, VOFF(jt.x87)));
	e4(e, 0);
	e1(e, 0xc3);
}

/* To R8 by the jump cache. */
static void emit_jump_by_key(struct jit *j, struct emit *e)
{
	encode(e, 0, 0, 0xf6, 0, rm_mem(H_R15, VOFF(jt.key) + 6)); /* test byte, KEY_USER */
	e1(e, KEY_USER);
	emit_jcc(e, 5, j->jump[1]);
	emit_jmp(e, 0xe9, j->jump[0]);
}

void jit_emit_stubs(struct jit *j)
{
	static const u8 pushes[] = {0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57, 0x48, 0x83, 0xec, 0x08};
	struct emit *e = &j->e;
	u8 *at;

	emit_vec_stubs(j);
	emit_x87_stubs(j);
	/* long_lookup: R8 = linear address to go on at. */
	j->long_lookup = emit_rx(e);
	emit_store(e, H_R15, R_RIP * 8, H_R8);
	spill_all(j, e);
	emit_return(j, e, LEFT_LOOKUP);
	/* long_link: R8 = site. */
	j->long_link = emit_rx(e);
	encode(e, 0, 0, 0x89, H_R8, rm_mem(H_R15, VOFF(jt.arg)));
	spill_all(j, e);
	emit_return(j, e, LEFT_LINK);
	/* The same, by the short way when there is one. */
	j->leave_lookup = emit_quick(e, (u64)(uintptr_t)jit_quick_lookup, j->long_lookup);
	j->leave_link = emit_quick(e, (u64)(uintptr_t)jit_quick_link, j->long_link);
	/* jump: R8 = target. */
	for (unsigned user = 0; user < 2; user++) {
		j->jump[user] = emit_rx(e);
		emit_jump_cache(j, e, user);
	}
	/* ret_miss: a RET to R8 that the host stack did not foresee; R11 = index of the RET. */
	j->ret_miss = emit_rx(e);
	encode(e, 0, 0, 0x89, H_R11, rm_mem(H_R15, VOFF(jt.from)));
	emit_ret_base(j, e);
	/* Jump cache tags tell canonical addresses apart, and only those. */
	emit_mov(e, H_R10, H_R8);
	encode(e, ENC_W, 0, 0xc1, 4, rm_reg(H_R10)); /* shl r10, 16 */
	e1(e, 16);
	encode(e, ENC_W, 0, 0xc1, 7, rm_reg(H_R10)); /* sar r10, 16 */
	e1(e, 16);
	encode(e, ENC_W, 0, 0x39, H_R8, rm_reg(H_R10));
	emit_jcc(e, 5, j->leave_lookup);
	emit_jump_by_key(j, e);
	/* call_stub: R8 = index of the call. call_stub_x87: its handler looks at x87 state. */
	j->call_stub_x87 = emit_rx(e);
	spill_all(j, e);
	settle_x87(j, e);
	at = emit_jmp(e, 0xe9, NULL);
	j->call_stub = emit_rx(e);
	spill_all(j, e);
	patch_rel(at, e->delta, emit_rx(e));
	encode(e, 0, 0, 0x89, H_R8, rm_reg(H_RSI));
	emit_mov(e, H_RDI, H_R15);
	emit_c_call(e, (u64)(uintptr_t)jit_call);
	encode(e, 0, 0, 0x85, H_RAX, rm_reg(H_RAX));
	at = emit_jcc(e, 5, NULL);
	reload_all(e);
	e1(e, 0xc3);
	patch_rel(at, e->delta, emit_rx(e));
	encode(e, 0, 0, 0x83, 7, rm_reg(H_RAX)); /* cmp eax, CALLED_JUMP */
	e1(e, CALLED_JUMP);
	at = emit_jcc(e, 5, NULL);
	emit_ret_base(j, e);
	reload_all(e);
	emit_load(e, H_R8, H_R15, VOFF(jt.to));
	emit_jump_by_key(j, e);
	patch_rel(at, e->delta, emit_rx(e));
	emit_return(j, e, LEFT_AFTER);
	/* light_stub: R8 = index of the call: light.c does it, or its handler. */
	j->light_stub = emit_rx(e);
	emit_c_begin(e);
	emit_store(e, H_R15, R_RSP * 8, H_R14);
	emit_mov(e, H_RDI, H_R15);
	encode(e, 0, 0, 0x89, H_R8, rm_reg(H_RSI));
	emit_const(e, H_RAX, (u64)(uintptr_t)jit_light);
	encode(e, 0, 0, 0xff, 2, rm_reg(H_RAX));
	emit_mov(e, H_R11, H_RAX);
	emit_c_end(e);
	emit_load(e, H_R14, H_R15, R_RSP * 8);
	emit_load(e, H_R8, H_R15, VOFF(jt.c_r8));
	encode(e, ENC_W, 0, 0x83, 7, rm_reg(H_R11)); /* cmp r11, LIGHT_ON */
	e1(e, 1);
	emit_jcc(e, 2, j->call_stub);
	at = emit_jcc(e, 5, NULL);
	e1(e, 0xc3);
	patch_rel(at, e->delta, emit_rx(e));
	emit_ret_base(j, e);
	emit_load(e, H_R8, H_R15, VOFF(jt.to));
	encode(e, 0, 0, 0xff, 4, rm_reg(H_R11)); /* jmp r11 */
	/* fill_stub: R11 = address, R10 = size and kind of an access that missed; Z: the TLB has it now; A (neither
	 * carry nor zero): its bytes are at the address + R11; C: its handler. */
	j->fill_stub = emit_rx(e);
	emit_c_begin(e);
	encode(e, ENC_W, 0, 0x8d, H_RDI, rm_mem(H_R15, VOFF(mmu)));
	emit_mov(e, H_RSI, H_R11);
	encode(e, 0, 1, 0xb7, H_RDX, rm_reg(H_R10)); /* movzx edx, r10w */
	encode(e, 0, 0, 0x89, H_R10, rm_reg(H_RCX));
	encode(e, 0, 0, 0xc1, 5, rm_reg(H_RCX)); /* shr ecx, 16 */
	e1(e, 16);
	emit_const(e, H_RAX, (u64)(uintptr_t)mem_fill);
	encode(e, 0, 0, 0xff, 2, rm_reg(H_RAX));
	static_assert(FILL_NONE < FILL_TLB && FILL_TLB < FILL_CROSSING, "told apart by one compare");
	encode(e, 0, 0, 0x83, 7, rm_reg(H_RAX)); /* cmp eax, FILL_TLB */
	e1(e, FILL_TLB);
	emit_load(e, H_R11, H_R15, VOFF(mmu.crossing_add));
	emit_c_end(e);
	emit_load(e, H_R8, H_R15, VOFF(jt.c_r8));
	e1(e, 0xc3);
	/* flags_stub: jt.flags become the host's. */
	j->flags_stub = emit_rx(e);
	flags_restore(e);
	e1(e, 0xc3);
	/* recipe_stub: a recipe in jt.flags becomes flags. R8 and R11 stay; vector registers are in memory afterwards.
	 */
	j->recipe_stub = emit_rx(e);
	emit_store(e, H_R15, VOFF(jt.keep[0]), H_R8);
	emit_store(e, H_R15, VOFF(jt.keep[1]), H_R11);
	spill_all(j, e);
	emit_mov(e, H_RDI, H_R15);
	emit_c_call(e, (u64)(uintptr_t)jit_flags);
	reload_all(e);
	emit_load(e, H_R8, H_R15, VOFF(jt.keep[0]));
	emit_load(e, H_R11, H_R15, VOFF(jt.keep[1]));
	e1(e, 0xc3);
	/* enter(v, code) */
	j->enter = emit_rx(e);
	memcpy(e->p, pushes, sizeof(pushes));
	e->p += sizeof(pushes);
	emit_mov(e, H_R15, H_RDI);
	emit_mov(e, H_R8, H_RSI);
	emit_store(e, H_R15, VOFF(jt.sp), H_RSP);
	encode(e, ENC_W, 0, 0x8d, H_R10, rm_mem(H_RSP, -4096));
	emit_store(e, H_R15, VOFF(jt.sp_low), H_R10);
	emit_ret_base(j, e);
	reload_all(e);
	encode(e, 0, 0, 0xff, 4, rm_reg(H_R8));
	while ((uintptr_t)e->p & 63)
		e1(e, 0xcc);
}

/* ---- the dispatcher --------------------------------------------------------------------------------------------- */

#define CODE_LEAST ((size_t)8 << 20)

/* Where what is out of line begins: compiled code has two bytes in line to one of these. */
static size_t cold_offset(const struct jit *j)
{
	return (j->mem.size / 3 * 2) & PAGE_MASK;
}

/* Is there room for another block? The VM's vCPUs share what is set, but have 8 MiB each: what a busy kernel runs must
 * fit, or each translation is for a single use. */
static bool code_full(const struct jit *j)
{
	size_t hot = (size_t)(j->e.p - j->mem.rw) + EMIT_ROOM, cold = (size_t)(j->cold.p - j->cold_start) + EMIT_ROOM;
	size_t share = j->mem.size / (atomic_load_explicit(&j->others, memory_order_relaxed) + 1);
	size_t least = j->mem.size < CODE_LEAST ? j->mem.size : CODE_LEAST;

	return hot > cold_offset(j) || cold > j->mem.size - cold_offset(j) ||
	       hot + cold > (share > least ? share : least);
}

/* The caches that skip the dispatcher are only good under the state they were filled under (invariant 3). */
static void check_world(struct vcpu *v, struct jit *j)
{
	if (unlikely(j->vm_version != v->mmu.vm->version || j->slots_changed)) {
		j->vm_version = v->mmu.vm->version;
		j->slots_changed = false;
		smc_slots_changed(j);
	}
	if (unlikely(atomic_load_explicit(&j->again, memory_order_acquire)))
		smc_again(j);
	if (unlikely(atomic_load_explicit(&j->foreign, memory_order_acquire)))
		smc_foreign(j);
	if (unlikely(j->flushes_local != v->mmu.flushes_local)) {
		j->flushes_local = v->mmu.flushes_local;
		tb_new_gen_local(j);
	}
	if (unlikely(j->epoch != interp_epoch(v) || j->flushes != v->mmu.flushes)) {
		if (j->epoch != interp_epoch(v))
			j->n.epochs++;
		j->epoch = interp_epoch(v);
		j->flushes = v->mmu.flushes;
		tb_new_gen(j);
	}
	if (unlikely(j->need_flush || code_full(j) || j->n_calls + TB_INSNS > CALLS_MAX ||
	             j->n_sites + TB_INSNS * 4 > SITES_MAX || !guards_left(j) || j->meta_used + 65536 > META_SIZE ||
	             j->last_gen > GEN_MAX))
		tb_flush(j);
}

void jit_settle(struct vcpu *v, u32 key, u32 left)
{
	struct jit *j = v->jit;

	j->bad_ret = false;
	if (left == LEFT_AFTER)
		return;
	v->rflags = fl_merge(v->rflags, recipe_flags(v, 0));
	v->r[R_RIP] = rip_now(v, left == LEFT_LINK ? j->sites[v->jt.arg].rip : v->r[R_RIP]);
	if (left == LEFT_LOOKUP && unlikely(v->mode == MODE_64 && !is_canonical(v->r[R_RIP]))) {
		/* A RET to such an address faults before RSP changes: undo, and let the handler do it. */
		const struct call *call = &j->calls[v->jt.from];

		const struct tb *tb = meta_ptr(j, call->tb);

		v->r[R_RSP] -= 8 + (u16)insn_of(j, v->jt.from)->imm;
		v->r[R_RIP] = tb->rip + call->off;
		j->bad_ret = true;
	}
}

int jit_left(struct vcpu *v, u32 left)
{
	struct jit *j = v->jit;

	if (left == LEFT_AFTER) {
		j->n.after++;
		if (j->delivered) {
			j->delivered = false;
			return j->next;
		}
		if (j->rc > STEP_JUMP || (v->mmu.n_writes | v->mmu.n_reads))
			return interp_after(v, j->insn, j->rc);
		v->interp->left = false;
	} else if (unlikely(j->bad_ret)) {
		return interp_one_block(v);
	}
	return -1;
}

/* Translated blocks until there is something to look at. */
static int run_blocks(struct vcpu *v)
{
	struct jit *j = v->jit;

	for (;;) {
		struct tb *tb;
		u32 key, left;
		int rc;

		if (unlikely(j->chaos.on))
			chaos_world(v, j);
		check_world(v, j);
		/* A flush also empties the table that keys refer to. */
		key = jit_key(v);
		if (unlikely(key == KEY_NONE)) {
			j->n.interp++;
			return interp_one_block(v);
		}
		v->jt.key = jit_tag(key);
		rc = tb_find(v, key, &tb);
		if (unlikely(rc != STEP_OK))
			return interp_not_fetched(v, rc);
		if (unlikely(!tb)) {
			j->n.interp++;
			return interp_one_block(v);
		}
		if (unlikely(j->lockstep) && lockstep_wants(j, tb))
			return lockstep_block(v, key, tb);
		if (j->link && !tb->dead)
			tb_link(j, j->link - 1, tb);
		j->link = 0;
		j->left = false;
		v->jt.flags = fl_pack(v->rflags);
		j->n.lookups++;
		left = ((enter_fn)(uintptr_t)j->enter)(v, tb->code_nopoll);
		jit_settle(v, key, left);
		j->link = left == LEFT_LINK ? v->jt.arg + 1 : 0;
		rc = jit_left(v, left);
		if (rc >= 0)
			return rc;
		if (unlikely(atomic_load_explicit(&v->events, memory_order_relaxed) || v->stepping))
			return INTERP_GO_ON;
	}
}

void jit_run(struct vcpu *v)
{
	interp_run_with(v, v->jit ? run_blocks : interp_one_block);
	if (v->jit && unlikely(atomic_load(&v->jit->again)))
		smc_again(v->jit);
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

/* XSAVE and XRSTOR may be used. */
static bool host_has_xsave(void)
{
	unsigned a, b, c, d;

	return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_OSXSAVE);
}

bool jit_wanted(void)
{
	const char *s = getenv("DEVKVM_ENGINE");

	return !s || strcmp(s, "interp");
}

static size_t code_size(void)
{
	const char *s = getenv("DEVKVM_CODE_MB");
	unsigned long mb = s ? strtoul(s, NULL, 10) : 0;

	return (size_t)(mb >= 1 && mb <= 1024 ? mb : 256) << 20;
}

void jit_create(struct vcpu *v)
{
	size_t size = code_size();
	struct jit *j;

	if (!jit_wanted())
		return;
	j = calloc(1, sizeof(*j));
	if (!j)
		return;
	j->v = v;
	chaos_create(j, &size);
	lockstep_create(j);
	j->hash = pages_alloc(HASH_SIZE * sizeof(*j->hash));
	j->pages = pages_alloc(PAGE_HASH * sizeof(*j->pages));
	j->calls = pages_alloc(CALLS_MAX * sizeof(*j->calls));
	j->sites = pages_alloc(SITES_MAX * sizeof(*j->sites));
	j->meta = pages_alloc(META_SIZE);
	j->trans = pages_alloc(sizeof(*j->trans));
	j->guards = pages_alloc(GUARDS_MAX * sizeof(*j->guards));
	j->guard_hash = pages_alloc(GUARD_HASH * sizeof(*j->guard_hash));
	j->origins = pages_alloc(ORIGIN_HASH * sizeof(*j->origins));
	j->decoded = pages_alloc(DECODED * sizeof(*j->decoded));
	j->cs = pages_alloc(CS_MAX * sizeof(*j->cs));
	j->cs_hash = pages_alloc(2 * CS_MAX * sizeof(*j->cs_hash));
	v->jit = j;
	if (!j->hash || !j->pages || !j->calls || !j->sites || !j->meta || !j->trans || !j->guards || !j->guard_hash ||
	    !j->origins || !j->decoded || !j->cs || !j->cs_hash ||
	    codemem_create(&j->mem, size, (sizeof(struct front) + PAGE_SIZE - 1) & PAGE_MASK) < 0) {
		debug_log("jit", "no translator: executable memory is refused");
		jit_destroy(v);
		return;
	}
	j->front = (struct front *)(void *)(j->mem.rx - ((sizeof(struct front) + PAGE_SIZE - 1) & PAGE_MASK));
	j->e.p = j->mem.rw;
	j->e.delta = j->mem.rx - j->mem.rw;
	j->bmi2 = __builtin_cpu_supports("bmi2");
	j->xsave = host_has_xsave();
	see_create(j);
	jit_emit_stubs(j);
	j->code_start = j->e.p;
	for (const u8 *p = j->mem.rw; p < j->code_start; p++)
		j->stubs = (j->stubs ^ *p) * 0x100000001b3ull;
	j->cold = j->e;
	j->cold_start = j->mem.rw + cold_offset(j);
	j->need_flush = true;
	ahead_init(&j->hot_rw, j->mem.rw, cold_offset(j), true);
	ahead_init(&j->hot_rx, j->mem.rx, cold_offset(j), false);
	ahead_init(&j->cold_rw, j->cold_start, j->mem.size - cold_offset(j), true);
	ahead_init(&j->cold_rx, j->cold_start + j->e.delta, j->mem.size - cold_offset(j), false);
	ahead_init(&j->meta_ahead, j->meta, META_SIZE, true);
	ahead_init(&j->calls_ahead, (u8 *)j->calls, CALLS_MAX * sizeof(*j->calls), true);
	ahead_init(&j->sites_ahead, (u8 *)j->sites, SITES_MAX * sizeof(*j->sites), true);
	smc_register(j);
}

void jit_destroy(struct vcpu *v)
{
	struct jit *j = v->jit;

	if (!j)
		return;
	see_destroy(j);
	smc_unregister(j);
	lockstep_destroy(j);
	codemem_destroy(&j->mem);
	pages_free(j->hash, HASH_SIZE * sizeof(*j->hash));
	pages_free(j->pages, PAGE_HASH * sizeof(*j->pages));
	pages_free(j->calls, CALLS_MAX * sizeof(*j->calls));
	pages_free(j->sites, SITES_MAX * sizeof(*j->sites));
	pages_free(j->meta, META_SIZE);
	pages_free(j->trans, sizeof(*j->trans));
	pages_free(j->guards, GUARDS_MAX * sizeof(*j->guards));
	pages_free(j->guard_hash, GUARD_HASH * sizeof(*j->guard_hash));
	pages_free(j->cs, CS_MAX * sizeof(*j->cs));
	pages_free(j->cs_hash, 2 * CS_MAX * sizeof(*j->cs_hash));
	pages_free(j->origins, ORIGIN_HASH * sizeof(*j->origins));
	pages_free(j->decoded, DECODED * sizeof(*j->decoded));
	free(j);
	v->jit = NULL;
}

void jit_flush(struct vcpu *v)
{
	if (v->jit)
		v->jit->need_flush = true;
}

void jit_slots_changed(struct vcpu *v)
{
	if (v->jit)
		v->jit->slots_changed = true;
}

void jit_asleep(struct vcpu *v)
{
	if (v->jit && atomic_load_explicit(&v->jit->foreign, memory_order_acquire))
		smc_foreign(v->jit);
}

void jit_count(const struct vcpu *v, u64 *blocks, u64 *bytes)
{
	if (!v->jit)
		return;
	*blocks = v->jit->n.blocks;
	*bytes = v->jit->n.code_bytes;
}
