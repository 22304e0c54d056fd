/*
 * excp.c: raising exceptions, and delivering them and interrupts through IVT or IDT.
 *
 * Invariants:
 *  - delivery pushes its whole frame before a register changes; when an MMIO read stops it (STEP_EXIT) v->excp still
 *    holds the event, and delivering again starts over;
 *  - excp_deliver() never returns STEP_EXCP: a fault during delivery becomes a second event, a double fault, or the
 * end.
 *
 * SDM vol. 3, chapters 6 (protected and long mode) and 20 (real and virtual-8086 mode); APM vol. 2, chapter 8.
 */
#include "../base/bug.h"
#include "segint.h"

int excp_raise(struct vcpu *v, u8 vector)
{
	v->excp = (struct event){.kind = EVENT_FAULT, .vector = vector};
	return STEP_EXCP;
}

int excp_raise_err(struct vcpu *v, u8 vector, u32 error)
{
	if (vector >= EXC_TS && vector <= EXC_GP)
		error |= v->excp_ext;
	v->excp = (struct event){.kind = EVENT_FAULT, .vector = vector, .has_error = true, .error = error};
	return STEP_EXCP;
}

int excp_page_fault(struct vcpu *v)
{
	v->excp = (struct event){.kind = EVENT_FAULT,
	                         .vector = EXC_PF,
	                         .has_error = true,
	                         .error = v->mmu.fault.error,
	                         .cr2 = v->mmu.fault.gva};
	return STEP_EXCP;
}

void excp_pend_db(struct vcpu *v, u64 dr6_bits)
{
	v->pending_db |= dr6_bits;
	atomic_fetch_or(&v->events, (u32)EV_TRAP);
}

int cpu_internal_error(struct vcpu *v, const char *why)
{
	debug_log("internal", "vcpu %u at %#llx: %s", v->id, (unsigned long long)v->r[R_RIP], why);
	v->exit.reason = EXIT_INTERNAL;
	v->exit.internal.why = why;
	return STEP_EXIT;
}

/* ---- delivery --------------------------------------------------------------------------------------------------- */

static bool is_soft(const struct event *e)
{
	return e->kind == EVENT_SOFT_INT || e->kind == EVENT_INT3;
}

static u64 return_rip(const struct vcpu *v, const struct event *e)
{
	switch (e->kind) {
	case EVENT_TRAP:
	case EVENT_SOFT_INT:
	case EVENT_INT3:
	case EVENT_ICEBP:
		return e->next_rip;
	default:
		return v->r[R_RIP];
	}
}

/* The RFLAGS image to push. SDM vol. 3, 17.3.1.1: faults push RF = 1, so that a breakpoint on the instruction does not
 * hit again; an instruction breakpoint's own #DB does not; interrupts within a repetition do. */
static u64 pushed_flags(const struct vcpu *v, const struct event *e)
{
	if (e->kind == EVENT_FAULT && e->vector != EXC_DB && e->vector != EXC_DF)
		return v->rflags | FLAGS_RF;
	if ((e->kind == EVENT_INTR || e->kind == EVENT_NMI) && v->mid_rep && v->mid_rep_rip == v->r[R_RIP])
		return v->rflags | FLAGS_RF;
	if (e->kind == EVENT_INTR || e->kind == EVENT_NMI || e->kind == EVENT_FAULT)
		return v->rflags;
	return v->rflags & ~FLAGS_RF;
}

static int idt_err(struct vcpu *v, u8 vec, const struct event *e)
{
	return excp_raise_err(v, vec, e->vector * 8u + 2);
}

/* SDM vol. 3, 20.1.4. No error codes. */
static int deliver_real(struct vcpu *v, const struct event *e)
{
	struct stack st;
	u16 vec[2];
	int rc;

	if (e->vector * 4u + 3 > v->idt.limit)
		return excp_raise_err(v, EXC_GP, 0);
	rc = sys_read(v, v->idt.base + e->vector * 4u, vec, 4);
	if (rc != STEP_OK)
		return rc;
	stack_begin(v, &st);
	rc = st_push(v, &st, pushed_flags(v, e), 2);
	if (rc == STEP_OK)
		rc = st_push(v, &st, v->seg[SEG_CS].sel, 2);
	if (rc == STEP_OK)
		rc = st_push(v, &st, return_rip(v, e), 2);
	if (rc != STEP_OK)
		return rc;
	if (vec[0] > v->seg[SEG_CS].limit)
		return excp_raise_err(v, EXC_GP, 0);
	st_commit_sp(v, &st);
	v->seg[SEG_CS].sel = vec[1];
	v->seg[SEG_CS].base = (u64)vec[1] << 4;
	seg_derive(v, SEG_CS);
	v->r[R_RIP] = vec[0];
	v->rflags &= ~(FLAGS_IF | FLAGS_TF | FLAGS_AC | FLAGS_RF);
	cpu_update_flags(v);
	return STEP_JUMP;
}

/* SDM vol. 3, 21.3.2: 32 bytes of bits below the I/O permission map; 0 redirects. */
int excp_redirected(struct vcpu *v, u8 vector, bool *redirect)
{
	const struct seg *tr = &v->seg[SEG_TR];
	u16 base;
	u32 at;
	u8 bits;
	int rc;

	if (tr->unusable || !tr->present || !(tr->type & 8) || tr->limit < 0x67)
		return excp_raise_err(v, EXC_GP, 0);
	rc = sys_read(v, tr->base + 0x66, &base, 2);
	if (rc != STEP_OK)
		return rc;
	at = base - 32u + vector / 8u;
	if (base < 32 || at > tr->limit)
		return excp_raise_err(v, EXC_GP, 0);
	rc = sys_read(v, tr->base + at, &bits, 1);
	*redirect = !(bits >> (vector & 7) & 1);
	return rc;
}

int excp_redirect(struct vcpu *v, u8 vector, u64 next_rip)
{
	bool trapped = (v->rflags & FLAGS_IOPL) != FLAGS_IOPL;
	u64 flags = v->rflags;
	struct stack st;
	u16 vec[2];
	int rc = sys_read(v, vector * 4u, vec, 4);

	if (rc != STEP_OK)
		return rc;
	if (trapped)
		flags = (flags & ~FLAGS_IF) | FLAGS_IOPL | (flags & FLAGS_VIF ? FLAGS_IF : 0);
	stack_begin(v, &st);
	rc = st_push(v, &st, flags, 2);
	if (rc == STEP_OK)
		rc = st_push(v, &st, v->seg[SEG_CS].sel, 2);
	if (rc == STEP_OK)
		rc = st_push(v, &st, next_rip, 2);
	if (rc != STEP_OK)
		return rc;
	st_commit_sp(v, &st);
	v->seg[SEG_CS].sel = vec[1];
	v->seg[SEG_CS].base = (u64)vec[1] << 4;
	seg_derive(v, SEG_CS);
	v->r[R_RIP] = vec[0];
	v->rflags &= ~(FLAGS_TF | FLAGS_NT | (trapped ? FLAGS_VIF : FLAGS_IF));
	cpu_update_flags(v);
	return STEP_JUMP;
}

/* The code segment a gate names, common to all protected modes. *cpl: privilege of the handler. */
static int handler_cs(struct vcpu *v, u16 sel, struct seg *cs, unsigned *cpl)
{
	int rc = seg_fetch_gate_cs(v, sel, cs);

	if (rc != STEP_OK)
		return rc;
	if (!cs->present)
		return excp_raise_err(v, EXC_NP, sel & 0xfffcu);
	*cpl = cs->type & SEGT_C ? v->cpl : cs->dpl;
	if (v->mode == MODE_V86 && *cpl != 0)
		return gp_sel(v, sel);
	return desc_mark_accessed(v, sel, cs);
}

static void enter_handler(struct vcpu *v, const struct seg *cs, unsigned cpl, u64 rip, bool interrupt_gate)
{
	seg_commit_cs(v, cs, cpl, rip);
	v->rflags &= ~(FLAGS_TF | FLAGS_NT | FLAGS_RF | FLAGS_VM);
	if (interrupt_gate)
		v->rflags &= ~FLAGS_IF;
	cpu_update_mode(v);
}

/* Pushes `n` values of `size` bytes. */
static int push_all(struct vcpu *v, struct stack *st, const u64 *val, unsigned n, unsigned size)
{
	int rc = STEP_OK;

	for (unsigned k = 0; rc == STEP_OK && k < n; k++)
		rc = st_push(v, st, val[k], size);
	return rc;
}

/* SDM vol. 3, 6.14; APM vol. 2, 8.9. */
static int deliver_long(struct vcpu *v, const struct event *e)
{
	u64 gate[2], rsp = v->r[R_RSP], rip, frame[6];
	unsigned type, cpl, ist, n = 0;
	struct stack st;
	struct seg cs;
	int rc;

	if (e->vector * 16u + 15 > v->idt.limit)
		return idt_err(v, EXC_GP, e);
	rc = sys_read(v, v->idt.base + e->vector * 16u, gate, 16);
	if (rc != STEP_OK)
		return rc;
	type = gate[0] >> 40 & 0x1f;
	if (type != SYST_INT32 && type != SYST_TRAP32)
		return idt_err(v, EXC_GP, e);
	if (is_soft(e) && (gate[0] >> 45 & 3) < v->cpl)
		return idt_err(v, EXC_GP, e);
	if (!(gate[0] >> 47 & 1))
		return idt_err(v, EXC_NP, e);
	rip = (gate[0] & 0xffff) | (gate[0] >> 48) << 16 | (gate[1] & LIMIT_4G) << 32;
	rc = handler_cs(v, (u16)(gate[0] >> 16), &cs, &cpl);
	if (rc != STEP_OK)
		return rc;
	ist = gate[0] >> 32 & 7;
	if (ist)
		rc = tss_rsp(v, 3 + ist, &rsp);
	else if (cpl != v->cpl)
		rc = tss_rsp(v, cpl, &rsp);
	if (rc != STEP_OK)
		return rc;
	st = (struct stack){.sp = rsp & ~15ull, .mask = ~0ull, .is64 = true, .ctx = (u8)ctx_of_cpl(v, cpl)};
	frame[n++] = v->seg[SEG_SS].sel;
	frame[n++] = v->r[R_RSP];
	frame[n++] = pushed_flags(v, e);
	frame[n++] = v->seg[SEG_CS].sel;
	frame[n++] = return_rip(v, e);
	if (e->has_error)
		frame[n++] = e->error;
	rc = push_all(v, &st, frame, n, 8);
	if (rc == STEP_OK)
		rc = seg_check_rip(v, &cs, rip);
	if (rc != STEP_OK)
		return rc;
	if (cpl != v->cpl)
		seg_make_null(&v->seg[SEG_SS], (u16)cpl, cpl);
	v->r[R_RSP] = st.sp;
	enter_handler(v, &cs, cpl, rip, type == SYST_INT32);
	return STEP_JUMP;
}

/* SDM vol. 3, 6.12 and 20.3.1.1 (from virtual-8086 mode). */
static int deliver_protected(struct vcpu *v, const struct event *e)
{
	unsigned type, cpl, size, n = 0;
	bool v86 = v->mode == MODE_V86, inner;
	struct seg cs, ss = {0};
	u64 gate, rip, frame[10];
	struct stack st;
	u32 esp;
	u16 sel;
	int rc;

	if (e->vector * 8u + 7 > v->idt.limit)
		return idt_err(v, EXC_GP, e);
	rc = sys_read(v, v->idt.base + e->vector * 8u, &gate, 8);
	if (rc != STEP_OK)
		return rc;
	type = gate >> 40 & 0x1f;
	if (type != SYST_TASK && type != SYST_INT16 && type != SYST_TRAP16 && type != SYST_INT32 && type != SYST_TRAP32)
		return idt_err(v, EXC_GP, e);
	if (is_soft(e) && (gate >> 45 & 3) < v->cpl)
		return idt_err(v, EXC_GP, e);
	if (!(gate >> 47 & 1))
		return idt_err(v, EXC_NP, e);
	sel = (u16)(gate >> 16);
	if (type == SYST_TASK)
		return task_switch(v, sel, TASK_GATE, e->has_error, e->error, return_rip(v, e));
	size = type & 8 ? 4 : 2;
	rip = (gate & 0xffff) | (size == 4 ? (gate >> 48) << 16 : 0);
	rc = handler_cs(v, sel, &cs, &cpl);
	if (rc != STEP_OK)
		return rc;
	inner = cpl != v->cpl;
	if (inner) {
		rc = tss_stack(v, cpl, &sel, &esp);
		if (rc == STEP_OK)
			rc = seg_fetch_ss(v, sel, cpl, EXC_TS, &ss);
		if (rc != STEP_OK)
			return rc;
		stack_begin_new(v, &st, &ss, esp, cpl);
		if (v86) {
			frame[n++] = v->seg[SEG_GS].sel;
			frame[n++] = v->seg[SEG_FS].sel;
			frame[n++] = v->seg[SEG_DS].sel;
			frame[n++] = v->seg[SEG_ES].sel;
		}
		frame[n++] = v->seg[SEG_SS].sel;
		frame[n++] = v->r[R_RSP];
	} else {
		stack_begin(v, &st);
	}
	frame[n++] = pushed_flags(v, e);
	frame[n++] = v->seg[SEG_CS].sel;
	frame[n++] = return_rip(v, e);
	if (e->has_error)
		frame[n++] = e->error;
	rc = push_all(v, &st, frame, n, size);
	if (rc == STEP_OK)
		rc = seg_check_rip(v, &cs, rip);
	if (rc != STEP_OK)
		return rc;
	if (inner) {
		v->seg[SEG_SS] = ss;
		seg_derive(v, SEG_SS);
	}
	if (v86) {
		static const u8 data[] = {SEG_GS, SEG_FS, SEG_DS, SEG_ES};

		for (unsigned k = 0; k < ARRAY_SIZE(data); k++)
			seg_make_null(&v->seg[data[k]], 0, 0);
	}
	st_commit_sp(v, &st);
	enter_handler(v, &cs, cpl, rip, type == SYST_INT16 || type == SYST_INT32);
	return STEP_JUMP;
}

static int deliver(struct vcpu *v, const struct event *e)
{
	int rc;

	/* These three are there even when the delivery itself faults. */
	if (e->vector == EXC_PF && e->kind == EVENT_FAULT)
		v->cr2 = e->cr2;
	if (e->vector == EXC_DB &&
	    (e->kind == EVENT_FAULT || e->kind == EVENT_TRAP || (e->kind == EVENT_ICEBP && e->dr6))) {
		v->dr6 = (v->dr6 & ~0xfull) | e->dr6;
		if (v->dr7 & DR7_GD) {
			v->dr7 &= ~DR7_GD;
			dbg_update(v);
		}
	}
	v->excp_ext = !is_soft(e);
	if (v->mode == MODE_REAL)
		rc = deliver_real(v, e);
	else if (cpu_lma(v))
		rc = deliver_long(v, e);
	else
		rc = deliver_protected(v, e);
	v->excp_ext = 0;
	if (rc == STEP_JUMP) {
		v->shadow = 0;
		v->tf_done = true; /* TF was pushed with the frame; the handler starts without a trap */
	}
	return rc;
}

int excp_soft_int(struct vcpu *v, enum event_kind kind, u8 vector, u64 next_rip)
{
	struct event e = {.kind = (u8)kind, .vector = vector, .next_rip = next_rip};

	/* Traps that a MOV SS before it held back come with ICEBP's own #DB (SDM vol. 3, 6.9: as one exception). */
	if (kind == EVENT_ICEBP && v->pending_db) {
		e.dr6 = v->pending_db;
		v->pending_db = 0;
		atomic_fetch_and(&v->events, ~(u32)EV_TRAP);
	}
	if (dbg_intercept(v, &e))
		return STEP_EXIT;
	return deliver(v, &e);
}

enum excp_class { BENIGN, CONTRIBUTORY, PAGE_FAULT, DOUBLE_FAULT };

/* SDM vol. 3, table 6-4. */
static enum excp_class classify(const struct event *e)
{
	if (e->kind != EVENT_FAULT)
		return BENIGN;
	switch (e->vector) {
	case EXC_DE:
	case EXC_TS:
	case EXC_NP:
	case EXC_SS:
	case EXC_GP:
		return CONTRIBUTORY;
	case EXC_PF:
		return PAGE_FAULT;
	case EXC_DF:
		return DOUBLE_FAULT;
	default:
		return BENIGN;
	}
}

int excp_deliver(struct vcpu *v)
{
	/* SDM vol. 3, table 6-5. */
	for (;;) {
		struct event e = v->excp;
		enum excp_class first = classify(&e), second;
		int rc;

		if (dbg_intercept(v, &e)) {
			v->excp.kind = EVENT_NONE;
			return STEP_EXIT;
		}
		rc = deliver(v, &e);
		if (rc == STEP_JUMP) {
			v->excp.kind = EVENT_NONE;
			return STEP_JUMP;
		}
		if (rc == STEP_EXIT) {
			v->excp = e;
			return STEP_EXIT;
		}
		second = classify(&v->excp);
		/* What a task gate's new task raises is a fault of that task, but the tables do not tell them apart. */
		if (first == DOUBLE_FAULT && second != BENIGN) {
			v->excp.kind = EVENT_NONE;
			v->exit.reason = EXIT_SHUTDOWN;
			v->exit.insn_len = 0;
			return STEP_EXIT;
		}
		if ((first == CONTRIBUTORY && second == CONTRIBUTORY) ||
		    (first == PAGE_FAULT && (second == CONTRIBUTORY || second == PAGE_FAULT))) {
			/* The page fault that came second has set CR2 already on hardware. */
			if (second == PAGE_FAULT)
				v->cr2 = v->excp.cr2;
			v->excp = (struct event){.kind = EVENT_FAULT, .vector = EXC_DF, .has_error = true, .error = 0};
		}
	}
}

int excp_take_db(struct vcpu *v)
{
	u64 bits = v->pending_db;

	atomic_fetch_and(&v->events, ~(u32)EV_TRAP);
	v->pending_db = 0;
	if (!bits)
		return STEP_JUMP;
	v->excp = (struct event){.kind = EVENT_TRAP, .vector = EXC_DB, .dr6 = bits, .next_rip = v->r[R_RIP]};
	return excp_deliver(v);
}

int excp_interrupt(struct vcpu *v, u8 vector)
{
	v->excp = (struct event){.kind = EVENT_INTR, .vector = vector};
	return excp_deliver(v);
}

bool nmi_collect(struct vcpu *v)
{
	unsigned n = v->nmi_pending, room = v->nmi_masked ? 1 : 2;

	if (atomic_load(&v->nmi_queued))
		n += atomic_exchange(&v->nmi_queued, 0);
	v->nmi_pending = (u8)(n < room ? n : room);
	return v->nmi_pending;
}

int excp_nmi(struct vcpu *v)
{
	v->nmi_pending--;
	v->nmi_masked = true;
	v->excp = (struct event){.kind = EVENT_NMI, .vector = EXC_NMI};
	return excp_deliver(v);
}
