/*
 * far.c: far JMP, CALL, RET and IRET in every mode; call gates and task gates.
 *
 * Every function checks everything and touches memory first, then commits CS, SS, RSP, RFLAGS and RIP together. SDM
 * vol. 2 (the instructions' pages), vol. 3, 6.8; APM vol. 2, 4.7 and 4.8.
 */
#include "segint.h"

static u64 size_mask(unsigned osize)
{
	return osize == 8 ? ~0ull : osize == 4 ? LIMIT_4G : 0xffff;
}

static int finish(struct vcpu *v)
{
	cpu_update_mode(v);
	return STEP_JUMP;
}

/* Real and virtual-8086 mode: CS is a paragraph number; the limit and attributes stay. */
static struct seg real_cs(const struct vcpu *v, u16 sel)
{
	struct seg cs = v->seg[SEG_CS];

	if (v->mode == MODE_V86) {
		seg_make_v86(&cs, sel);
		return cs;
	}
	cs.sel = sel;
	cs.base = (u64)sel << 4;
	return cs;
}

static bool is_realish(const struct vcpu *v)
{
	return v->mode == MODE_REAL || v->mode == MODE_V86;
}

static void commit_real_cs(struct vcpu *v, const struct seg *cs, u64 rip)
{
	v->seg[SEG_CS] = *cs;
	seg_derive(v, SEG_CS);
	v->r[R_RIP] = rip;
}

/* The last that can fail before `cs` is committed with this RIP. */
static int check_entry(struct vcpu *v, struct seg *cs, u64 rip)
{
	int rc = seg_check_rip(v, cs, rip);

	return rc == STEP_OK ? desc_mark_accessed(v, cs->sel, cs) : rc;
}

/* Reads two words that follow each other: a return address and its CS, an old stack pointer and its SS. */
static int peek_pair(struct vcpu *v, const struct stack *st, unsigned off, unsigned size, u64 *first, u64 *second)
{
	int rc = st_peek(v, st, off, first, size);

	return rc == STEP_OK ? st_peek(v, st, off + size, second, size) : rc;
}

/* Reads the descriptor that a far JMP or CALL names. */
static int read_target(struct vcpu *v, u16 sel, u64 *raw, struct seg *s)
{
	int rc;

	if (sel_is_null(sel))
		return excp_raise_err(v, EXC_GP, 0);
	rc = desc_read(v, sel, EXC_GP, raw);
	if (rc == STEP_OK)
		desc_unpack(*raw, sel, s);
	return rc;
}

/* Privilege checks of a direct far JMP or CALL to code; the CPL does not change. */
static int check_direct(struct vcpu *v, struct seg *cs)
{
	u16 sel = cs->sel;

	if (cs->type & SEGT_C) {
		if (cs->dpl > v->cpl)
			return gp_sel(v, sel);
	} else if ((sel & 3) > v->cpl || cs->dpl != v->cpl) {
		return gp_sel(v, sel);
	}
	if (!cs->present)
		return excp_raise_err(v, EXC_NP, sel & 0xfffcu);
	if (cpu_lma(v) && cs->l && cs->db)
		return gp_sel(v, sel);
	return STEP_OK;
}

struct gate {
	u16 sel;
	u64 off;
	unsigned size; /* bytes of its pushes: 2, 4, 8 */
	unsigned params;
	struct seg cs;
};

/* A call gate's own checks and its code segment, without the privilege rules of JMP and CALL. `gs`: the unpacked gate.
 */
static int gate_open(struct vcpu *v, const struct seg *gs, u64 raw, struct gate *g)
{
	u16 sel = gs->sel;
	u64 high = 0;
	int rc;

	if (gs->dpl < v->cpl || (sel & 3) > gs->dpl)
		return gp_sel(v, sel);
	if (cpu_lma(v)) {
		rc = desc_read_high(v, sel, EXC_GP, &high);
		if (rc != STEP_OK)
			return rc;
	}
	if (!gs->present)
		return excp_raise_err(v, EXC_NP, sel & 0xfffcu);
	g->sel = (u16)(raw >> 16);
	g->off = raw & 0xffff;
	g->params = raw >> 32 & 0x1f;
	g->size = 2;
	if (gs->type == SYST_CALL32) {
		g->off |= (raw >> 48) << 16;
		g->size = 4;
	}
	if (cpu_lma(v)) {
		g->off |= (high & LIMIT_4G) << 32;
		g->size = 8;
		g->params = 0;
	}
	return seg_fetch_gate_cs(v, g->sel, &g->cs);
}

static bool is_call_gate(const struct vcpu *v, const struct seg *s)
{
	return !s->s && (s->type == SYST_CALL32 || (s->type == SYST_CALL16 && !cpu_lma(v)));
}

/* JMP or CALL to a TSS or a task gate; #GP for every other system descriptor. Long mode has neither. */
static int far_task(struct vcpu *v, const struct seg *s, u64 raw, enum task_why why, u64 next_rip)
{
	u16 sel = s->sel;

	if (cpu_lma(v))
		return gp_sel(v, sel);
	switch (s->type) {
	case SYST_TASK:
		if (s->dpl < v->cpl || (sel & 3) > s->dpl)
			return gp_sel(v, sel);
		if (!s->present)
			return excp_raise_err(v, EXC_NP, sel & 0xfffcu);
		return task_switch(v, (u16)(raw >> 16), why, false, 0, next_rip);
	case SYST_TSS16:
	case SYST_TSS32:
		if (s->dpl < v->cpl || (sel & 3) > s->dpl)
			return gp_sel(v, sel);
		return task_switch(v, sel, why, false, 0, next_rip);
	default:
		return gp_sel(v, sel);
	}
}

int far_jmp(struct vcpu *v, u16 sel, u64 off, unsigned osize, u64 next_rip)
{
	struct seg s;
	struct gate g;
	u64 raw;
	int rc;

	off &= size_mask(osize);
	if (is_realish(v)) {
		s = real_cs(v, sel);
		if (off > s.limit)
			return excp_raise_err(v, EXC_GP, 0);
		commit_real_cs(v, &s, off);
		return finish(v);
	}
	rc = read_target(v, sel, &raw, &s);
	if (rc != STEP_OK)
		return rc;
	if (seg_is_code(&s)) {
		rc = check_direct(v, &s);
	} else if (is_call_gate(v, &s)) {
		rc = gate_open(v, &s, raw, &g);
		if (rc != STEP_OK)
			return rc;
		s = g.cs;
		off = g.off;
		if (!(s.type & SEGT_C) && s.dpl != v->cpl)
			return gp_sel(v, g.sel);
		if (!s.present)
			return excp_raise_err(v, EXC_NP, g.sel & 0xfffcu);
	} else {
		return s.s ? gp_sel(v, sel) : far_task(v, &s, raw, TASK_JMP, next_rip);
	}
	if (rc != STEP_OK)
		return rc;
	rc = check_entry(v, &s, off);
	if (rc != STEP_OK)
		return rc;
	seg_commit_cs(v, &s, v->cpl, off);
	return finish(v);
}

/* Pushes CS and the return address. */
static int push_return(struct vcpu *v, struct stack *st, unsigned size, u64 next_rip)
{
	int rc = st_push(v, st, v->seg[SEG_CS].sel, size);

	return rc == STEP_OK ? st_push(v, st, next_rip, size) : rc;
}

/* CALL through a gate to a more privileged ring: the stack of the TSS, old SS:RSP and the parameters on it. */
static int call_inner(struct vcpu *v, struct gate *g, u64 next_rip)
{
	unsigned cpl = g->cs.dpl;
	struct stack st, old;
	struct seg ss;
	u64 rsp, val;
	u32 esp;
	u16 sel;
	int rc;

	stack_begin(v, &old);
	if (cpu_lma(v)) {
		rc = tss_rsp(v, cpl, &rsp);
		if (rc != STEP_OK)
			return rc;
		seg_make_null(&ss, (u16)cpl, cpl);
		st = (struct stack){.ss = ss, .sp = rsp, .mask = ~0ull, .is64 = true};
		st.ctx = (u8)ctx_of_cpl(v, cpl);
	} else {
		rc = tss_stack(v, cpl, &sel, &esp);
		if (rc == STEP_OK)
			rc = seg_fetch_ss(v, sel, cpl, EXC_TS, &ss);
		if (rc != STEP_OK)
			return rc;
		stack_begin_new(v, &st, &ss, esp, cpl);
	}
	rc = seg_check_rip(v, &g->cs, g->off);
	if (rc == STEP_OK)
		rc = st_push(v, &st, v->seg[SEG_SS].sel, g->size);
	if (rc == STEP_OK)
		rc = st_push(v, &st, v->r[R_RSP], g->size);
	for (unsigned n = g->params; rc == STEP_OK && n > 0; n--) {
		rc = st_peek(v, &old, (n - 1) * g->size, &val, g->size);
		if (rc == STEP_OK)
			rc = st_push(v, &st, val, g->size);
	}
	if (rc == STEP_OK)
		rc = push_return(v, &st, g->size, next_rip);
	if (rc == STEP_OK)
		rc = desc_mark_accessed(v, g->sel, &g->cs);
	if (rc != STEP_OK)
		return rc;
	v->seg[SEG_SS] = ss;
	seg_derive(v, SEG_SS);
	if (st.is64)
		v->r[R_RSP] = st.sp;
	else
		v->r[R_RSP] = ss.db ? st.sp & LIMIT_4G : (v->r[R_RSP] & 0xffff0000u) | (st.sp & 0xffff);
	seg_commit_cs(v, &g->cs, cpl, g->off);
	return finish(v);
}

static int far_call_same(struct vcpu *v, struct seg *cs, u64 off, unsigned size, u64 next_rip)
{
	struct stack st;
	int rc;

	stack_begin(v, &st);
	/* A 64-bit gate entered from compatibility mode at the same ring pushes 8 bytes each on the old stack. */
	rc = push_return(v, &st, size, next_rip);
	if (rc == STEP_OK)
		rc = check_entry(v, cs, off);
	if (rc != STEP_OK)
		return rc;
	st_commit_sp(v, &st);
	seg_commit_cs(v, cs, v->cpl, off);
	return finish(v);
}

int far_call(struct vcpu *v, u16 sel, u64 off, unsigned osize, u64 next_rip)
{
	struct seg s;
	struct gate g;
	struct stack st;
	u64 raw;
	int rc;

	off &= size_mask(osize);
	if (is_realish(v)) {
		s = real_cs(v, sel);
		stack_begin(v, &st);
		rc = push_return(v, &st, osize, next_rip);
		if (rc != STEP_OK)
			return rc;
		if (off > s.limit)
			return excp_raise_err(v, EXC_GP, 0);
		st_commit_sp(v, &st);
		commit_real_cs(v, &s, off);
		return finish(v);
	}
	rc = read_target(v, sel, &raw, &s);
	if (rc != STEP_OK)
		return rc;
	if (seg_is_code(&s)) {
		rc = check_direct(v, &s);
		return rc == STEP_OK ? far_call_same(v, &s, off, osize, next_rip) : rc;
	}
	if (!is_call_gate(v, &s))
		return s.s ? gp_sel(v, sel) : far_task(v, &s, raw, TASK_CALL, next_rip);
	rc = gate_open(v, &s, raw, &g);
	if (rc != STEP_OK)
		return rc;
	if (!g.cs.present)
		return excp_raise_err(v, EXC_NP, g.sel & 0xfffcu);
	if (!(g.cs.type & SEGT_C) && g.cs.dpl < v->cpl)
		return call_inner(v, &g, next_rip);
	return far_call_same(v, &g.cs, g.off, g.size, next_rip);
}

/* The code segment that RETF or IRET goes to; its RPL is the new CPL. */
static int return_cs(struct vcpu *v, u16 sel, struct seg *cs)
{
	unsigned rpl = sel & 3;
	int rc = desc_fetch(v, sel, EXC_GP, cs);

	if (rc != STEP_OK)
		return rc;
	if (!seg_is_code(cs) || rpl < v->cpl)
		return gp_sel(v, sel);
	if (cs->type & SEGT_C ? cs->dpl > rpl : cs->dpl != rpl)
		return gp_sel(v, sel);
	if (cpu_lma(v) && cs->l && cs->db)
		return gp_sel(v, sel);
	if (!cs->present)
		return excp_raise_err(v, EXC_NP, sel & 0xfffcu);
	return STEP_OK;
}

/* The stack segment that comes with it. */
static int return_ss(struct vcpu *v, u16 sel, const struct seg *cs, struct seg *ss)
{
	unsigned rpl = cs->sel & 3;

	if (sel_is_null(sel)) {
		if (!cpu_lma(v) || !cs->l || rpl == 3 || (sel & 3) != rpl)
			return excp_raise_err(v, EXC_GP, 0);
		seg_make_null(ss, sel, rpl);
		return STEP_OK;
	}
	return seg_fetch_ss(v, sel, rpl, EXC_GP, ss);
}

/* Commits the SS:RSP of an outer return, `rsp` as popped. */
static void commit_return_stack(struct vcpu *v, const struct seg *cs, const struct seg *ss, u64 rsp)
{
	v->seg[SEG_SS] = *ss;
	seg_derive(v, SEG_SS);
	if ((cpu_lma(v) && cs->l) || ss->db)
		v->r[R_RSP] = rsp;
	else
		v->r[R_RSP] = (v->r[R_RSP] & ~0xffffull) | (rsp & 0xffff);
}

int far_ret(struct vcpu *v, unsigned osize, unsigned pop)
{
	struct stack st;
	struct seg cs, ss;
	u64 rip, sel, rsp, ss_sel;
	int rc;

	stack_begin(v, &st);
	rc = peek_pair(v, &st, 0, osize, &rip, &sel);
	if (rc != STEP_OK)
		return rc;
	if (is_realish(v)) {
		cs = real_cs(v, (u16)sel);
		if (rip > cs.limit)
			return excp_raise_err(v, EXC_GP, 0);
		st_drop(&st, 2 * osize + pop);
		st_commit_sp(v, &st);
		commit_real_cs(v, &cs, rip);
		return finish(v);
	}
	rc = return_cs(v, (u16)sel, &cs);
	if (rc != STEP_OK)
		return rc;
	if ((sel & 3) == v->cpl) {
		rc = check_entry(v, &cs, rip);
		if (rc != STEP_OK)
			return rc;
		st_drop(&st, 2 * osize + pop);
		st_commit_sp(v, &st);
		seg_commit_cs(v, &cs, v->cpl, rip);
		return finish(v);
	}
	rc = peek_pair(v, &st, 2 * osize + pop, osize, &rsp, &ss_sel);
	if (rc == STEP_OK)
		rc = return_ss(v, (u16)ss_sel, &cs, &ss);
	if (rc == STEP_OK)
		rc = check_entry(v, &cs, rip);
	if (rc != STEP_OK)
		return rc;
	commit_return_stack(v, &cs, &ss, rsp);
	/* The parameters lie on the outer stack as well. */
	if (cpu_lma(v) && cs.l)
		v->r[R_RSP] += pop;
	else if (ss.db)
		v->r[R_RSP] = (u32)(v->r[R_RSP] + pop);
	else
		v->r[R_RSP] = (v->r[R_RSP] & ~0xffffull) | ((v->r[R_RSP] + pop) & 0xffff);
	seg_commit_cs(v, &cs, sel & 3, rip);
	seg_drop_inner(v, sel & 3);
	return finish(v);
}

static void nmi_ends(struct vcpu *v)
{
	/* Collected first: what came while this one was handled is one. */
	if (nmi_collect(v))
		atomic_fetch_or(&v->events, (u32)EV_NMI);
	v->nmi_masked = false;
}

static int iret_end(struct vcpu *v)
{
	nmi_ends(v);
	return finish(v);
}

static int iret_real(struct vcpu *v, unsigned osize)
{
	u64 rip, sel, flags, mask;
	struct stack st;
	struct seg cs;
	bool vme = v->mode == MODE_V86 && (v->rflags & FLAGS_IOPL) != FLAGS_IOPL;
	int rc;

	if (vme && (!(v->cr4 & CR4_VME) || osize != 2))
		return excp_raise_err(v, EXC_GP, 0);
	stack_begin(v, &st);
	rc = peek_pair(v, &st, 0, osize, &rip, &sel);
	if (rc == STEP_OK)
		rc = st_peek(v, &st, 2 * osize, &flags, osize);
	if (rc != STEP_OK)
		return rc;
	cs = real_cs(v, (u16)sel);
	if (rip > cs.limit)
		return excp_raise_err(v, EXC_GP, 0);
	mask = FLAGS_ARITH | FLAGS_TF | FLAGS_IF | FLAGS_DF | FLAGS_NT;
	if (vme) {
		if ((flags & FLAGS_TF) || ((flags & FLAGS_IF) && (v->rflags & FLAGS_VIP)))
			return excp_raise_err(v, EXC_GP, 0);
		flags = (flags & ~FLAGS_VIF) | (flags & FLAGS_IF ? FLAGS_VIF : 0);
		mask = (mask & ~FLAGS_IF) | FLAGS_VIF;
	}
	if (v->mode == MODE_REAL)
		mask |= FLAGS_IOPL;
	if (osize > 2)
		mask |= FLAGS_RF | FLAGS_AC | FLAGS_ID;
	st_drop(&st, 3 * osize);
	st_commit_sp(v, &st);
	commit_real_cs(v, &cs, rip);
	cpu_set_rflags(v, flags, mask);
	return iret_end(v);
}

/* IRET from ring 0 to virtual-8086 mode. */
static int iret_to_v86(struct vcpu *v, const struct stack *st, u64 rip, u64 cs, u64 flags)
{
	static const u8 order[] = {SEG_SS, SEG_ES, SEG_DS, SEG_FS, SEG_GS};
	u64 esp, sel[ARRAY_SIZE(order)];
	int rc = st_peek(v, st, 12, &esp, 4);

	for (unsigned n = 0; rc == STEP_OK && n < ARRAY_SIZE(order); n++)
		rc = st_peek(v, st, 16 + 4 * n, &sel[n], 4);
	if (rc != STEP_OK)
		return rc;
	if (rip > 0xffff)
		return excp_raise_err(v, EXC_GP, 0);
	seg_make_v86(&v->seg[SEG_CS], (u16)cs);
	for (unsigned n = 0; n < ARRAY_SIZE(order); n++)
		seg_make_v86(&v->seg[order[n]], (u16)sel[n]);
	v->r[R_RSP] = (u32)esp;
	v->r[R_RIP] = rip;
	cpu_set_rflags(v, flags, FLAGS_ALL);
	return iret_end(v);
}

static int iret_task(struct vcpu *v, u64 next_rip)
{
	const struct seg *tr = &v->seg[SEG_TR];
	u16 link;
	int rc = sys_read(v, tr->base, &link, 2);

	if (rc != STEP_OK)
		return rc;
	rc = task_switch(v, link, TASK_IRET, false, 0, next_rip);
	if (rc == STEP_JUMP)
		nmi_ends(v);
	return rc;
}

int far_iret(struct vcpu *v, unsigned osize, u64 next_rip)
{
	u64 rip, sel, flags, rsp = 0, ss_sel = 0, mask;
	struct stack st;
	struct seg cs, ss;
	bool outer;
	int rc;

	if (is_realish(v))
		return iret_real(v, osize);
	if (v->rflags & FLAGS_NT)
		return cpu_lma(v) ? excp_raise_err(v, EXC_GP, 0) : iret_task(v, next_rip);
	stack_begin(v, &st);
	rc = peek_pair(v, &st, 0, osize, &rip, &sel);
	if (rc == STEP_OK)
		rc = st_peek(v, &st, 2 * osize, &flags, osize);
	if (rc != STEP_OK)
		return rc;
	if (osize == 4 && (flags & FLAGS_VM) && v->cpl == 0 && !cpu_lma(v))
		return iret_to_v86(v, &st, rip, sel, flags);
	rc = return_cs(v, (u16)sel, &cs);
	if (rc != STEP_OK)
		return rc;
	outer = (sel & 3) != v->cpl;
	/* 64-bit mode pops SS:RSP in any case. */
	if (outer || v->mode == MODE_64) {
		rc = peek_pair(v, &st, 3 * osize, osize, &rsp, &ss_sel);
		if (rc == STEP_OK)
			rc = return_ss(v, (u16)ss_sel, &cs, &ss);
		if (rc != STEP_OK)
			return rc;
	}
	rc = check_entry(v, &cs, rip);
	if (rc != STEP_OK)
		return rc;
	mask = flags_open(v, osize);
	if (outer || v->mode == MODE_64) {
		commit_return_stack(v, &cs, &ss, rsp);
	} else {
		st_drop(&st, 3 * osize);
		st_commit_sp(v, &st);
	}
	seg_commit_cs(v, &cs, sel & 3, rip);
	if (outer)
		seg_drop_inner(v, sel & 3);
	cpu_update_mode(v);
	cpu_set_rflags(v, flags, mask);
	return iret_end(v);
}
