/*
 * light.c: SYSCALL, SYSRET, IRETQ, WRFSBASE, WRGSBASE and POPFQ without their handlers, in the shapes that programs
 * meet all the time: 64-bit code to 64-bit code, flat segments, nothing to trap. Translated code calls jit_light() with
 * the vector registers and RBX RBP R12 R13 where they are; the other registers of the guest are in memory.
 *
 * So nothing here may touch a vector register (the Makefile sees to that, also for the functions of cpu/seg.c), kill a
 * block or raise an exception. Each function first finds out whether the instruction is plain, and changes nothing when
 * it is not: NULL sends it to the handler, which is right for all.
 */
#include "../base/usercopy.h"
#include "../cpu/segint.h"
#include "../interp/interp_impl.h"
#include "jit_impl.h"

u8 light_of(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_SYSCALL:
		return LIGHT_SYSCALL;
	case ZYDIS_MNEMONIC_SYSRET:
		return i->osize == 8 ? LIGHT_SYSRET : LIGHT_NONE;
	case ZYDIS_MNEMONIC_IRETQ:
		return LIGHT_IRET;
	case ZYDIS_MNEMONIC_WRFSBASE:
	case ZYDIS_MNEMONIC_WRGSBASE:
		return LIGHT_WRBASE;
	case ZYDIS_MNEMONIC_POPFQ:
		return LIGHT_POPF;
	}
	return LIGHT_NONE;
}

/* Guest memory that the TLB has and that is there; NULL otherwise. */
static const u8 *plain_read(const struct vcpu *v, u64 gva, unsigned size, enum tlb_ctx ctx)
{
	const u8 *p = tlb_lookup(&v->mmu.tlb[ctx][TLB_READ], gva, size);

	return likely(p) && likely(user_reachable(p, false)) ? p : NULL;
}

/* The key of code like that of `tb` at privilege `cpl`, with its RFLAGS. */
static u32 key_at(u32 key, enum tlb_ctx ctx, unsigned cpl)
{
	key &= ~(3u << KEY_CTX_SHIFT | KEY_CPL0 | KEY_USER);
	return key | (u32)ctx << KEY_CTX_SHIFT | (cpl == 0 ? KEY_CPL0 : 0) | (cpl == 3 ? KEY_USER : 0);
}

/* What the jump cache has for `rip` under `key`, when nothing is to be looked at before; NULL otherwise. */
static const u8 *cached(const struct vcpu *v, const struct jit *j, u64 rip, u32 key)
{
	const struct jc_entry *jc = jc_of(j, rip);

	if (unlikely(j->lockstep || j->chaos.on) ||
	    atomic_load_explicit(&((struct vcpu *)v)->events, memory_order_relaxed))
		return NULL;
	if (jc->tag != (rip ^ jit_tag(key)) || *jc->cell != v->jt.gen[!!(key & KEY_USER)])
		return NULL;
	return jc->code;
}

/* RIP, CPL and RFLAGS are new: the derived state, and where the code goes on. CS and SS are what they shall be. */
static const u8 *go_on(struct vcpu *v, struct jit *j, u64 rip, u64 rflags, u32 key, const u8 *code)
{
	v->r[R_RIP] = rip;
	v->rflags = rflags;
	v->cpl = v->seg[SEG_SS].dpl;
	v->stack_is_32 = v->seg[SEG_SS].db;
	v->code_key = cpu_code_key(v->mode, v->dmode, v->cpl, v->stack_is_32);
	v->mmu.ctx = key >> KEY_CTX_SHIFT & 3;
	v->jt.flags = fl_pack(rflags);
	v->jt.to = rip;
	/* In lockstep no entry of the jump cache may fit. */
	v->jt.key = jit_tag(unlikely(j->lockstep) ? key | KEY_CPL0 | KEY_USER : key);
	return code ? code : j->leave_lookup;
}

static const u8 *light_syscall(struct vcpu *v, struct jit *j, u32 key, u64 next)
{
	u64 flags = fl_merge(v->rflags, v->jt.flags), after = syscall_flags(v, flags);

	if (!(v->efer & EFER_SCE) || !is_canonical(v->lstar))
		return NULL;
	key = key_at(key, ctx_with(v, 0, after), 0);
	v->r[R_RCX] = next;
	v->r[R_R11] = flags & ~FLAGS_RF;
	syscall_segments(v, true);
	return go_on(v, j, v->lstar, after, key, cached(v, j, v->lstar, key));
}

static const u8 *light_sysret(struct vcpu *v, struct jit *j, u32 key)
{
	u64 rip = v->r[R_RCX], after = (v->r[R_R11] & SYSRET_FLAGS) | FLAGS_FIXED;

	if (!(v->efer & EFER_SCE) || v->cpl != 0 || !is_canonical(rip) || (after & FLAGS_TF))
		return NULL;
	key = key_at(key, ctx_with(v, 3, after), 3);
	sysret_segments(v, true);
	return go_on(v, j, rip, after, key, cached(v, j, rip, key));
}

/* A descriptor of the GDT that was used before, unpacked. */
static bool plain_desc(struct vcpu *v, u16 sel, struct seg *s)
{
	u32 off = sel & 0xfff8u;
	const u8 *p;

	if ((sel & 4) || sel_is_null(sel) || off + 7 > v->gdt.limit ||
	    !(p = plain_read(v, v->gdt.base + off, 8, TLB_SUPER)))
		return false;
	desc_unpack(ld8(p), sel, s);
	return s->s && s->present && (s->type & SEGT_A);
}

/*
 * A frame with RF, as page faults leave it: RF is for the next instruction alone, and without breakpoints nobody sees
 * it but an event before that instruction. So it is dropped here, when the instruction is certain to come next.
 */
static const u8 *light_iret(struct vcpu *v, struct jit *j, u32 key)
{
	const u8 *p = plain_read(v, v->r[R_RSP], 40, v->mmu.ctx), *code;
	u64 rip, flags, rsp, mask = flags_open(v, 8) & ~(u64)FLAGS_RF;
	struct seg cs, ss;
	unsigned cpl;
	u16 sel;

	if (!p || (v->rflags & FLAGS_NT) || nmi_collect(v))
		return NULL;
	rip = ld8(p);
	flags = ld8(p + 16);
	rsp = ld8(p + 24);
	sel = (u16)ld8(p + 32);
	if ((flags & FLAGS_TF) || !is_canonical(rip) || !plain_desc(v, (u16)ld8(p + 8), &cs))
		return NULL;
	cpl = cs.sel & 3;
	if ((cs.type & (SEGT_CODE | SEGT_C)) != SEGT_CODE || cpl < v->cpl || cs.dpl != cpl || !cs.l || cs.db)
		return NULL;
	if (sel_is_null(sel)) {
		if (cpl == 3 || (sel & 3) != cpl)
			return NULL;
		seg_make_null(&ss, sel, cpl);
	} else if (!plain_desc(v, sel, &ss) || (sel & 3) != cpl || ss.dpl != cpl || !seg_is_writable_data(&ss)) {
		return NULL;
	}
	mask = (v->rflags & ~mask) | FLAGS_FIXED | (flags & mask);
	key = key_at(key, ctx_with(v, cpl, mask), cpl);
	code = cached(v, j, rip, key);
	if ((flags & FLAGS_RF) && !code)
		return NULL;
	v->seg[SEG_SS] = ss;
	seg_derive(v, SEG_SS);
	seg_commit_cs(v, &cs, cpl, rip);
	if (cpl != v->cpl)
		seg_drop_inner(v, cpl);
	v->r[R_RSP] = rsp;
	v->nmi_masked = false;
	return go_on(v, j, rip, mask, key, code);
}

static const u8 *light_wrbase(struct vcpu *v, const struct insn *i)
{
	unsigned n = i->mnemonic == ZYDIS_MNEMONIC_WRFSBASE ? SEG_FS : SEG_GS;
	u64 val = v->r[i->op[0].reg];

	if (i->op[0].size == 4)
		val = (u32)val;
	if (!(v->cr4 & CR4_FSGSBASE) || !is_canonical(val))
		return NULL;
	v->seg[n].base = val;
	seg_derive(v, n);
	return LIGHT_ON;
}

static const u8 *light_popf(struct vcpu *v, struct jit *j, u32 key, u64 next)
{
	const u8 *p = plain_read(v, v->r[R_RSP], 8, v->mmu.ctx);
	u64 mask = flags_open(v, 8) & ~(u64)FLAGS_RF, old = v->rflags, now;

	if (!p || !is_canonical(next))
		return NULL;
	now = (old & ~mask) | FLAGS_FIXED | (ld8(p) & mask & ~(FLAGS_VIF | FLAGS_VIP));
	if (now & FLAGS_TF)
		return NULL;
	v->r[R_RSP] += 8;
	/* An interrupt may come at once, data accesses may be others. */
	if ((old ^ now) & (FLAGS_IF | FLAGS_AC)) {
		key = key_at(key, ctx_with(v, v->cpl, now), v->cpl);
		return go_on(v, j, next, now, key, cached(v, j, next, key));
	}
	v->rflags = now;
	v->jt.flags = fl_pack(now);
	return LIGHT_ON;
}

const u8 *jit_light(struct vcpu *v, u32 idx)
{
	struct jit *j = v->jit;
	const struct call *call = &j->calls[idx];
	const struct tb *tb = meta_ptr(j, call->tb);
	const struct insn *i = meta_ptr(j, call->insn);
	u64 next = tb->rip + call->off + i->len;
	const u8 *code = NULL;

	/* With something put aside, the handler knows what IF = 1 means. */
	if (unlikely(tb->beyond || call->recipe || (v->jt.flags & FLAGS_RECIPE) || v->stepping || v->held))
		return NULL;
	switch (call->light) {
	case LIGHT_SYSCALL:
		code = light_syscall(v, j, tb->key, next);
		break;
	case LIGHT_SYSRET:
		code = light_sysret(v, j, tb->key);
		break;
	case LIGHT_IRET:
		code = light_iret(v, j, tb->key);
		break;
	case LIGHT_WRBASE:
		code = light_wrbase(v, i);
		break;
	case LIGHT_POPF:
		code = light_popf(v, j, tb->key, next);
		break;
	}
	j->n.light += code != NULL;
	return code;
}
