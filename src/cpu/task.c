/*
 * task.c: hardware task switches through 16 and 32-bit TSSs (SDM vol. 3, chapter 8; not in long mode).
 *
 * Order, as 8.3 gives it: check the new TSS, probe both TSSs so that no page fault can come later, save the old task,
 * commit the new one. What fails after that (bad selectors in the new TSS) faults in the new task's context, with
 * #TS, #NP, #SS or #GP naming the selector.
 */
#include "segint.h"

/* The state a TSS holds, in the width of the larger one. */
struct task_image {
	u32 cr3, eip, eflags, gpr[8];
	u16 sel[6]; /* SEG_x order: ES CS SS DS FS GS */
	u16 ldt;
	bool trap;
};

#define TSS32_LIMIT 0x67
#define TSS16_LIMIT 0x2b

/* EAX.. in the order of the TSS: the encoding's order. Offsets of the dynamic fields. */
enum {
	T32_CR3 = 0x1c,
	T32_EIP = 0x20,
	T32_EFLAGS = 0x24,
	T32_GPR = 0x28,
	T32_SEG = 0x48,
	T32_LDT = 0x60,
	T32_T = 0x64
};
enum { T16_IP = 0x0e, T16_FLAGS = 0x10, T16_GPR = 0x12, T16_SEG = 0x22, T16_LDT = 0x2a };

static void image_load(struct task_image *t, const u8 *p, bool is32)
{
	u16 w;

	memset(t, 0, sizeof(*t));
	if (is32) {
		memcpy(&t->cr3, p + T32_CR3, 4);
		memcpy(&t->eip, p + T32_EIP, 4);
		memcpy(&t->eflags, p + T32_EFLAGS, 4);
		memcpy(t->gpr, p + T32_GPR, 32);
		for (unsigned n = 0; n < 6; n++)
			memcpy(&t->sel[n], p + T32_SEG + 4 * n, 2);
		memcpy(&t->ldt, p + T32_LDT, 2);
		t->trap = p[T32_T] & 1;
		return;
	}
	memcpy(&w, p + T16_IP, 2);
	t->eip = w;
	memcpy(&w, p + T16_FLAGS, 2);
	t->eflags = w;
	for (unsigned n = 0; n < 8; n++) {
		memcpy(&w, p + T16_GPR + 2 * n, 2);
		t->gpr[n] = 0xffff0000u | w; /* SDM: upper halves undefined; processors set them */
	}
	for (unsigned n = 0; n < 4; n++)
		memcpy(&t->sel[n], p + T16_SEG + 2 * n, 2);
	memcpy(&t->ldt, p + T16_LDT, 2);
}

/* Writes the dynamic fields of the outgoing task. */
static int image_save(struct vcpu *v, u64 base, bool is32, u32 eip, u32 eflags)
{
	u8 buf[0x60 - T32_EIP];
	unsigned at = 0;
	u16 w;

	if (is32) {
		memset(buf, 0, sizeof(buf));
		memcpy(buf, &eip, 4);
		memcpy(buf + 4, &eflags, 4);
		for (unsigned n = 0; n < 8; n++)
			memcpy(buf + T32_GPR - T32_EIP + 4 * n, &v->r[n], 4);
		for (unsigned n = 0; n < 6; n++)
			memcpy(buf + T32_SEG - T32_EIP + 4 * n, &v->seg[n].sel, 2);
		return sys_write(v, base + T32_EIP, buf, sizeof(buf));
	}
	w = (u16)eip;
	memcpy(buf, &w, 2);
	w = (u16)eflags;
	memcpy(buf + 2, &w, 2);
	at = 4;
	for (unsigned n = 0; n < 8; n++, at += 2)
		memcpy(buf + at, &v->r[n], 2);
	for (unsigned n = 0; n < 4; n++, at += 2)
		memcpy(buf + at, &v->seg[n].sel, 2);
	return sys_write(v, base + T16_IP, buf, at);
}

static int ts_err(struct vcpu *v, u16 sel)
{
	return excp_raise_err(v, EXC_TS, sel & 0xfffcu);
}

static int load_ldt(struct vcpu *v, u16 sel)
{
	struct seg s;
	int rc;

	seg_make_null(&v->seg[SEG_LDTR], sel, 0);
	if (sel_is_null(sel))
		return STEP_OK;
	if (sel & 4)
		return ts_err(v, sel);
	rc = desc_fetch(v, sel, EXC_TS, &s);
	if (rc != STEP_OK)
		return rc;
	if (s.s || s.type != SYST_LDT || !s.present)
		return ts_err(v, sel);
	v->seg[SEG_LDTR] = s;
	return STEP_OK;
}

static int load_cs(struct vcpu *v, u16 sel)
{
	unsigned rpl = sel & 3;
	struct seg s;
	int rc = desc_fetch(v, sel, EXC_TS, &s);

	if (rc != STEP_OK)
		return rc;
	if (!seg_is_code(&s) || (s.type & SEGT_C ? s.dpl > rpl : s.dpl != rpl))
		return ts_err(v, sel);
	if (!s.present)
		return excp_raise_err(v, EXC_NP, sel & 0xfffcu);
	rc = desc_mark_accessed(v, sel, &s);
	if (rc == STEP_OK)
		v->seg[SEG_CS] = s;
	return rc;
}

static int load_data(struct vcpu *v, unsigned n, u16 sel, unsigned cpl)
{
	struct seg s;
	int rc;

	if (sel_is_null(sel))
		return STEP_OK; /* already null */
	rc = seg_fetch_data(v, sel, cpl, EXC_TS, &s);
	if (rc == STEP_OK)
		v->seg[n] = s;
	return rc;
}

/* Segment registers of the new task; its other registers are committed. Faults belong to the new task. */
static int load_segments(struct vcpu *v, const struct task_image *t)
{
	static const u8 data[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};
	unsigned cpl = t->sel[SEG_CS] & 3;
	struct seg ss;
	int rc;

	if (t->eflags & FLAGS_VM) {
		for (unsigned n = 0; n <= SEG_GS; n++)
			seg_make_v86(&v->seg[n], t->sel[n]);
		return load_ldt(v, t->ldt);
	}
	/* Until each is loaded it is null: what a handler of the faults below finds. */
	for (unsigned n = 0; n <= SEG_GS; n++) {
		if (n == SEG_CS)
			v->seg[n].sel = t->sel[n];
		else
			seg_make_null(&v->seg[n], t->sel[n], n == SEG_SS ? cpl : 0);
	}
	v->seg[SEG_CS].dpl = (u8)cpl;
	rc = load_ldt(v, t->ldt);
	if (rc == STEP_OK)
		rc = load_cs(v, t->sel[SEG_CS]);
	if (rc == STEP_OK)
		rc = seg_fetch_ss(v, t->sel[SEG_SS], cpl, EXC_TS, &ss);
	if (rc != STEP_OK)
		return rc;
	v->seg[SEG_SS] = ss;
	for (unsigned n = 0; rc == STEP_OK && n < ARRAY_SIZE(data); n++)
		rc = load_data(v, data[n], t->sel[data[n]], cpl);
	return rc;
}

/* The checks of the new TSS's descriptor. `vec`: #GP for JMP and CALL, #TS for gates and IRET. */
static int open_tss(struct vcpu *v, u16 sel, enum task_why why, struct seg *tss)
{
	u8 vec = why == TASK_IRET ? EXC_TS : EXC_GP;
	int rc;

	if (sel & 4)
		return excp_raise_err(v, vec, sel & 0xfffcu);
	rc = desc_fetch(v, sel, vec, tss);
	if (rc != STEP_OK)
		return rc;
	if (why == TASK_IRET) {
		if (tss->s || (tss->type != SYST_TSS32_BUSY && tss->type != SYST_TSS16_BUSY))
			return excp_raise_err(v, vec, sel & 0xfffcu);
	} else if (tss->s || (tss->type != SYST_TSS32 && tss->type != SYST_TSS16)) {
		return excp_raise_err(v, vec, sel & 0xfffcu);
	}
	if (!tss->present)
		return excp_raise_err(v, EXC_NP, sel & 0xfffcu);
	if (tss->limit < (tss->type & 8 ? TSS32_LIMIT : TSS16_LIMIT))
		return ts_err(v, sel);
	return STEP_OK;
}

static void commit_regs(struct vcpu *v, const struct task_image *t, const struct seg *tss, bool is32, bool nested)
{
	for (unsigned n = 0; n < 8; n++)
		v->r[n] = t->gpr[n];
	v->r[R_RIP] = t->eip;
	v->seg[SEG_TR] = *tss;
	v->seg[SEG_TR].type |= 2;
	v->cr0 |= CR0_TS;
	if (is32 && (v->cr0 & CR0_PG)) {
		v->cr3 = t->cr3;
		v->mmu.cr3 = t->cr3;
		tlb_flush(&v->mmu);
		if (v->cr4 & CR4_PAE)
			mmu_load_pdptes(&v->mmu, t->cr3); /* a bad one shows as a page fault of the new task */
	}
	v->dr7 &= ~0x155ull; /* L0-L3, LE */
	v->tf_done = true;
	cpu_set_rflags(v, t->eflags | (nested ? FLAGS_NT : 0), FLAGS_ALL);
}

int task_switch(struct vcpu *v, u16 sel, enum task_why why, bool has_error, u32 error, u64 next_rip)
{
	struct seg old = v->seg[SEG_TR], tss;
	bool old32 = old.type & 8, is32, nested = why == TASK_CALL || why == TASK_GATE;
	u8 buf[TSS32_LIMIT + 1];
	struct task_image t;
	struct stack st;
	u64 flags = v->rflags;
	int rc;

	/* A breakpoint somewhere in the task's state would be found too late to start over. */
	if (unlikely(v->mmu.watching) && v->mmu.watch_stops)
		return vmem_fail(v, MEM_STEP);
	rc = open_tss(v, sel, why, &tss);
	if (rc != STEP_OK)
		return rc;
	is32 = tss.type & 8;
	if (old.unusable || old.limit < (old32 ? 0x5fu : 0x29u))
		return ts_err(v, old.sel);
	rc = mem_probe(&v->mmu, old.base, old32 ? 0x60 : 0x2a, MEM_WRITE, TLB_SUPER);
	if (rc != MEM_OK)
		return vmem_fail(v, rc);
	if (nested) {
		rc = mem_probe(&v->mmu, tss.base, 2, MEM_WRITE, TLB_SUPER);
		if (rc != MEM_OK)
			return vmem_fail(v, rc);
	}
	rc = sys_read(v, tss.base, buf, is32 ? TSS32_LIMIT + 1 : TSS16_LIMIT + 1);
	if (rc != STEP_OK)
		return rc;
	image_load(&t, buf, is32);
	/* Busy bits and the outgoing image. */
	if (why == TASK_JMP || why == TASK_IRET) {
		rc = desc_set_access(v, old.sel, 0, 2);
		if (rc != STEP_OK)
			return rc;
	}
	if (why == TASK_IRET)
		flags &= ~(u64)FLAGS_NT;
	rc = image_save(v, old.base, old32, (u32)next_rip, (u32)flags);
	if (rc == STEP_OK && nested)
		rc = sys_write(v, tss.base, &old.sel, 2);
	if (rc == STEP_OK && why != TASK_IRET)
		rc = desc_set_access(v, sel, 2, 0);
	if (rc != STEP_OK)
		return rc;
	/* From here on the new task runs: faults below are its own. */
	commit_regs(v, &t, &tss, is32, nested);
	rc = load_segments(v, &t);
	cpu_update(v);
	if (rc == STEP_OK && has_error) {
		stack_begin(v, &st);
		rc = st_push(v, &st, error, is32 ? 4 : 2);
		if (rc == STEP_OK)
			st_commit_sp(v, &st);
	}
	if (rc == STEP_OK && t.eip > v->seg[SEG_CS].limit)
		rc = excp_raise_err(v, EXC_GP, 0);
	if (rc != STEP_OK)
		return rc;
	if (t.trap)
		excp_pend_db(v, DR6_BT);
	return STEP_JUMP;
}
