/*
 * seg.c: segment registers: descriptors in memory, loads, the checks of data accesses, stacks, I/O permission.
 *
 * Invariants: a load writes the accessed bit before the register changes, and changes nothing when it faults; in real
 * mode a load sets selector and base alone, so limits and attributes of an earlier protected mode stay ("unreal" mode).
 * SDM vol. 3, chapters 3 and 5; APM vol. 2, chapter 4.
 */
#include "segint.h"

#include "../base/bug.h"

void seg_derive(struct vcpu *v, unsigned n)
{
	struct seg *s = &v->seg[n];
	bool real = v->mode == MODE_REAL;
	u8 may = 0;

	if (real) {
		if (!(s->s && (s->type & (SEGT_CODE | SEGT_E)) == SEGT_E))
			may = MEM_READ | MEM_WRITE;
	} else if (!s->unusable && s->s && s->present) {
		if (s->type & SEGT_CODE)
			may = s->type & SEGT_R ? MEM_READ : 0;
		else if (!(s->type & SEGT_E))
			may = s->type & SEGT_W ? MEM_READ | MEM_WRITE : MEM_READ;
	}
	s->flat = s->base || s->limit != LIMIT_4G ? 0 : may;
	s->read_end = may & MEM_READ ? (u64)s->limit + 1 : 0;
	s->write_end = may & MEM_WRITE ? (u64)s->limit + 1 : 0;
}

/* Limit check alone, expand-down included. */
static bool limit_ok(const struct seg *s, u64 ea, unsigned size)
{
	u64 last = ea + size - 1;

	if (last < ea)
		return false;
	if (s->s && (s->type & (SEGT_CODE | SEGT_E)) == SEGT_E)
		return ea > s->limit && last <= (s->db ? LIMIT_4G : 0xffffu);
	return last <= s->limit;
}

/* SDM vol. 3, 5.3 (limits) and 5.4 (types); #SS(0) for the stack segment, #GP(0) for the others. */
int seg_linear_slow(struct vcpu *v, unsigned n, u64 ea, unsigned size, unsigned access, gva_t *gva)
{
	const struct seg *s = &v->seg[n];
	u8 vec = n == SEG_SS ? EXC_SS : EXC_GP;
	gva_t lin;

	if (v->mode == MODE_64) {
		lin = n >= SEG_FS && n <= SEG_GS ? ea + s->base : ea;
		if (!is_canonical(lin) || !is_canonical(lin + size - 1))
			return excp_raise_err(v, vec, 0);
		*gva = lin;
		return STEP_OK;
	}
	if (v->mode != MODE_REAL && v->mode != MODE_V86) {
		if (s->unusable)
			return excp_raise_err(v, vec, 0);
		if (s->type & SEGT_CODE) {
			if ((access & MEM_WRITE) || ((access & MEM_READ) && !(s->type & SEGT_R)))
				return excp_raise_err(v, vec, 0);
		} else if ((access & MEM_WRITE) && !(s->type & SEGT_W)) {
			return excp_raise_err(v, vec, 0);
		}
	}
	if (!limit_ok(s, ea, size))
		return excp_raise_err(v, vec, 0);
	lin = (u32)(s->base + ea);
	/* Linear addresses wrap at 4 GiB, within an operand too; access.c does that, but cannot tell compatibility mode
	 * from 64-bit mode. GAP(wrap-4g): there such an operand faults. */
	if (lin + size - 1 > LIMIT_4G && cpu_lma(v))
		return excp_raise_err(v, vec, 0);
	*gva = lin;
	return STEP_OK;
}

/* ---- descriptors in memory -------------------------------------------------------------------------------------- */

/* Linear address of a selector's descriptor of `size` bytes; false when outside the table. */
static bool desc_gva(struct vcpu *v, u16 sel, unsigned size, gva_t *gva)
{
	u64 base = v->gdt.base;
	u32 limit = v->gdt.limit, off = sel & 0xfff8u;

	if (sel & 4) {
		const struct seg *ldt = &v->seg[SEG_LDTR];

		if (ldt->unusable || !ldt->present)
			return false;
		base = ldt->base;
		limit = ldt->limit;
	}
	if (off + size - 1 > limit)
		return false;
	*gva = base + off;
	if (!cpu_lma(v))
		*gva = (u32)*gva;
	return true;
}

int desc_read(struct vcpu *v, u16 sel, u8 vec, u64 *raw)
{
	gva_t gva;

	if (!desc_gva(v, sel, 8, &gva))
		return excp_raise_err(v, vec, sel & 0xfffcu);
	return sys_read(v, gva, raw, 8);
}

int desc_fetch(struct vcpu *v, u16 sel, u8 vec, struct seg *s)
{
	u64 raw;
	int rc;

	if (sel_is_null(sel))
		return excp_raise_err(v, vec, 0);
	rc = desc_read(v, sel, vec, &raw);
	if (rc == STEP_OK)
		desc_unpack(raw, sel, s);
	return rc;
}

int desc_read_high(struct vcpu *v, u16 sel, u8 vec, u64 *high)
{
	gva_t gva;
	int rc;

	if (!desc_gva(v, sel, 16, &gva))
		return excp_raise_err(v, vec, sel & 0xfffcu);
	rc = sys_read(v, gva + 8, high, 8);
	if (rc == STEP_OK && (*high >> 40 & 0x1f))
		return excp_raise_err(v, vec, sel & 0xfffcu);
	return rc;
}

int desc_set_access(struct vcpu *v, u16 sel, u8 set, u8 clear)
{
	struct memref ref;
	gva_t gva = 0;
	int rc;

	if (BUG_ON(!desc_gva(v, sel, 8, &gva)))
		return cpu_internal_error(v, "descriptor vanished");
	rc = mem_open(&v->mmu, gva + 5, 1, MEM_READ | MEM_WRITE, TLB_SUPER, true, &ref);
	if (rc != MEM_OK)
		return vmem_fail(v, rc);
	if (set)
		__atomic_fetch_or(ref.p, set, __ATOMIC_SEQ_CST);
	if (clear)
		__atomic_fetch_and(ref.p, (u8)~clear, __ATOMIC_SEQ_CST);
	mem_close(&v->mmu, &ref);
	return STEP_OK;
}

int desc_mark_accessed(struct vcpu *v, u16 sel, struct seg *s)
{
	int rc;

	if (s->type & SEGT_A)
		return STEP_OK;
	rc = desc_set_access(v, sel, SEGT_A, 0);
	if (rc == STEP_OK)
		s->type |= SEGT_A;
	return rc;
}

/* SDM vol. 3, figure 3-8. */
void desc_unpack(u64 raw, u16 sel, struct seg *s)
{
	/* No memset(): the C library's uses vector registers (light.c). */
	*s = (struct seg){.sel = sel,
	                  .base = (raw >> 16 & 0xffffff) | (raw >> 56 & 0xff) << 24,
	                  .limit = (u32)((raw & 0xffff) | (raw >> 48 & 0xf) << 16),
	                  .type = raw >> 40 & 0xf,
	                  .s = raw >> 44 & 1,
	                  .dpl = raw >> 45 & 3,
	                  .present = raw >> 47 & 1,
	                  .avl = raw >> 52 & 1,
	                  .l = raw >> 53 & 1,
	                  .db = raw >> 54 & 1,
	                  .g = raw >> 55 & 1};
	if (s->g)
		s->limit = s->limit << 12 | 0xfff;
}

void seg_make_null(struct seg *s, u16 sel, unsigned dpl)
{
	*s = (struct seg){.sel = sel, .unusable = true, .dpl = (u8)dpl};
}

void seg_make_v86(struct seg *s, u16 sel)
{
	*s = (struct seg){.sel = sel,
	                  .type = SEGT_W | SEGT_A,
	                  .dpl = 3,
	                  .s = true,
	                  .present = true,
	                  .limit = 0xffff,
	                  .base = (u64)sel << 4};
}

/*
 * What the ring `cpl` may not use becomes null, with the selector 0 (SDM vol. 2, IRET); so do null selectors with an
 * RPL, whose hidden DPL is 0. Bases stay, as 64-bit code may use those of FS and GS.
 */
void seg_drop_inner(struct vcpu *v, unsigned cpl)
{
	static const u8 data[] = {SEG_ES, SEG_DS, SEG_FS, SEG_GS};

	for (unsigned n = 0; n < ARRAY_SIZE(data); n++) {
		struct seg *s = &v->seg[data[n]];

		if (s->unusable) {
			if (sel_is_null(s->sel))
				s->sel = 0;
		} else if (s->dpl < cpl && !seg_is_conforming(s)) {
			u64 base = data[n] >= SEG_FS ? s->base : 0;

			seg_make_null(s, 0, 0);
			s->base = base;
		}
	}
}

/* ---- loads ------------------------------------------------------------------------------------------------------ */

int seg_fetch_ss(struct vcpu *v, u16 sel, unsigned cpl, u8 vec, struct seg *out)
{
	int rc = desc_fetch(v, sel, vec, out);

	if (rc != STEP_OK)
		return rc;
	if ((sel & 3) != cpl || out->dpl != cpl || !seg_is_writable_data(out))
		return excp_raise_err(v, vec, sel & 0xfffcu);
	if (!out->present)
		return excp_raise_err(v, EXC_SS, sel & 0xfffcu);
	return desc_mark_accessed(v, sel, out);
}

int seg_fetch_data(struct vcpu *v, u16 sel, unsigned cpl, u8 vec, struct seg *out)
{
	int rc = desc_fetch(v, sel, vec, out);

	if (rc != STEP_OK)
		return rc;
	if (!out->s || (out->type & (SEGT_CODE | SEGT_R)) == SEGT_CODE)
		return excp_raise_err(v, vec, sel & 0xfffcu);
	if (!seg_is_conforming(out) && ((sel & 3) > out->dpl || cpl > out->dpl))
		return excp_raise_err(v, vec, sel & 0xfffcu);
	if (!out->present)
		return excp_raise_err(v, EXC_NP, sel & 0xfffcu);
	return desc_mark_accessed(v, sel, out);
}

int seg_fetch_gate_cs(struct vcpu *v, u16 sel, struct seg *cs)
{
	int rc = desc_fetch(v, sel, EXC_GP, cs);

	if (rc != STEP_OK)
		return rc;
	if (!seg_is_code(cs) || cs->dpl > v->cpl)
		return gp_sel(v, sel);
	if (cpu_lma(v) && (!cs->l || cs->db))
		return gp_sel(v, sel);
	return STEP_OK;
}

static int load_data(struct vcpu *v, unsigned n, u16 sel)
{
	struct seg s;
	int rc;

	if (sel_is_null(sel)) {
		/* FS and GS: the base goes to 0 here too, and CPUID says so (NullSelectorClearsBase on AMD). */
		seg_make_null(&v->seg[n], sel, 0);
		return STEP_OK;
	}
	rc = seg_fetch_data(v, sel, v->cpl, EXC_GP, &s);
	if (rc == STEP_OK)
		v->seg[n] = s;
	return rc;
}

static int load_ss(struct vcpu *v, u16 sel)
{
	struct seg s;
	int rc;

	if (sel_is_null(sel)) {
		if (v->mode != MODE_64 || v->cpl == 3 || (sel & 3) != v->cpl)
			return excp_raise_err(v, EXC_GP, 0);
		seg_make_null(&v->seg[SEG_SS], sel, v->cpl);
	} else {
		rc = seg_fetch_ss(v, sel, v->cpl, EXC_GP, &s);
		if (rc != STEP_OK)
			return rc;
		v->seg[SEG_SS] = s;
	}
	cpu_update_mode(v);
	return STEP_OK;
}

/* LLDT and LTR: SDM vol. 2; in long mode the descriptors are 16 bytes (vol. 3, 8.2.3). */
static int load_system(struct vcpu *v, unsigned n, u16 sel)
{
	struct seg s;
	u64 high = 0;
	int rc;

	if (sel_is_null(sel)) {
		if (n == SEG_TR)
			return excp_raise_err(v, EXC_GP, 0);
		seg_make_null(&v->seg[n], sel, 0);
		return STEP_OK;
	}
	if (sel & 4)
		return gp_sel(v, sel);
	rc = desc_fetch(v, sel, EXC_GP, &s);
	if (rc != STEP_OK)
		return rc;
	if (s.s)
		return gp_sel(v, sel);
	if (n == SEG_LDTR ? s.type != SYST_LDT : s.type != SYST_TSS32 && (cpu_lma(v) || s.type != SYST_TSS16))
		return gp_sel(v, sel);
	if (!s.present)
		return excp_raise_err(v, EXC_NP, sel & 0xfffcu);
	if (cpu_lma(v)) {
		rc = desc_read_high(v, sel, EXC_GP, &high);
		if (rc != STEP_OK)
			return rc;
		s.base |= high << 32;
		if (!is_canonical(s.base))
			return gp_sel(v, sel);
	}
	if (n == SEG_TR) {
		rc = desc_set_access(v, sel, 2, 0);
		if (rc != STEP_OK)
			return rc;
		s.type |= 2;
	}
	v->seg[n] = s;
	return STEP_OK;
}

int seg_load(struct vcpu *v, unsigned n, u16 sel)
{
	int rc = STEP_OK;

	if (n >= SEG_LDTR)
		return load_system(v, n, sel);
	if (v->mode == MODE_REAL) {
		v->seg[n].sel = sel;
		v->seg[n].base = (u64)sel << 4;
		v->seg[n].unusable = false;
	} else if (v->mode == MODE_V86) {
		seg_make_v86(&v->seg[n], sel);
	} else if (n == SEG_SS) {
		rc = load_ss(v, sel);
	} else {
		rc = load_data(v, n, sel);
	}
	if (rc == STEP_OK)
		seg_derive(v, n);
	return rc;
}

/* Field by field: a system call is four of these. Derived as by seg_derive(). */
static void set_flat(struct vcpu *v, unsigned n, u16 sel, unsigned type, unsigned dpl, bool l)
{
	struct seg *s = &v->seg[n];
	bool code = type & SEGT_CODE;

	s->sel = sel;
	s->type = (u8)type;
	s->dpl = (u8)dpl;
	s->s = s->present = s->g = true;
	s->db = !l;
	s->l = l;
	s->avl = s->unusable = false;
	s->limit = LIMIT_4G;
	s->base = 0;
	s->flat = code ? MEM_READ : MEM_READ | MEM_WRITE;
	s->read_end = (u64)LIMIT_4G + 1;
	s->write_end = code ? 0 : (u64)LIMIT_4G + 1;
}

void seg_set_flat_cs(struct vcpu *v, u16 sel, unsigned dpl, bool long_mode)
{
	set_flat(v, SEG_CS, sel, SEGT_CODE | SEGT_R | SEGT_A, dpl, long_mode);
}

void seg_set_flat_ss(struct vcpu *v, u16 sel, unsigned dpl)
{
	set_flat(v, SEG_SS, sel, SEGT_W | SEGT_A, dpl, false);
}

int seg_check_rip(struct vcpu *v, const struct seg *cs, u64 rip)
{
	if (cpu_lma(v) && cs->l) {
		if (!is_canonical(rip))
			return excp_raise_err(v, EXC_GP, 0);
	} else if (rip > cs->limit) {
		return excp_raise_err(v, EXC_GP, 0);
	}
	return STEP_OK;
}

void seg_commit_cs(struct vcpu *v, const struct seg *cs, unsigned cpl, u64 rip)
{
	v->seg[SEG_CS] = *cs;
	v->seg[SEG_CS].sel = (u16)((cs->sel & ~3u) | cpl);
	seg_derive(v, SEG_CS);
	v->r[R_RIP] = rip;
}

/* ---- stacks ----------------------------------------------------------------------------------------------------- */

void stack_begin(const struct vcpu *v, struct stack *st)
{
	st->ss = v->seg[SEG_SS];
	st->sp = v->r[R_RSP];
	st->is64 = v->mode == MODE_64;
	st->mask = st->is64 ? ~0ull : v->stack_is_32 ? LIMIT_4G : 0xffff;
	st->ctx = (u8)ctx_of_cpl(v, v->cpl);
	st->err = 0;
}

void stack_begin_new(const struct vcpu *v, struct stack *st, const struct seg *ss, u64 sp, unsigned cpl)
{
	st->ss = *ss;
	st->sp = sp;
	st->is64 = false;
	st->mask = ss->db ? LIMIT_4G : 0xffff;
	st->ctx = (u8)ctx_of_cpl(v, cpl);
	st->err = ss->sel & 0xfffcu;
}

static int st_linear(struct vcpu *v, const struct stack *st, u64 ea, unsigned size, gva_t *gva)
{
	if (st->is64) {
		*gva = ea;
		if (is_canonical(ea) && is_canonical(ea + size - 1))
			return STEP_OK;
	} else {
		*gva = (u32)(st->ss.base + ea);
		if ((!st->ss.unusable || v->mode == MODE_REAL) && limit_ok(&st->ss, ea, size) &&
		    (*gva + size - 1 <= LIMIT_4G || !cpu_lma(v)))
			return STEP_OK;
	}
	return excp_raise_err(v, EXC_SS, st->err);
}

int st_push(struct vcpu *v, struct stack *st, u64 val, unsigned size)
{
	u64 ea = (st->sp - size) & st->mask;
	gva_t gva;
	int rc = st_linear(v, st, ea, size, &gva);

	if (rc != STEP_OK)
		return rc;
	rc = mem_write(&v->mmu, gva, &val, size, st->ctx);
	if (rc != MEM_OK)
		return vmem_fail(v, rc);
	st->sp = (st->sp & ~st->mask) | ea;
	return STEP_OK;
}

int st_peek(struct vcpu *v, const struct stack *st, unsigned off, u64 *val, unsigned size)
{
	gva_t gva;
	int rc = st_linear(v, st, (st->sp + off) & st->mask, size, &gva);

	*val = 0;
	if (rc != STEP_OK)
		return rc;
	rc = mem_read(&v->mmu, gva, val, size, st->ctx);
	return rc == MEM_OK ? STEP_OK : vmem_fail(v, rc);
}

void st_drop(struct stack *st, u64 bytes)
{
	st->sp = (st->sp & ~st->mask) | ((st->sp + bytes) & st->mask);
}

void st_commit_sp(struct vcpu *v, const struct stack *st)
{
	if (st->mask == 0xffff)
		v->r[R_RSP] = (v->r[R_RSP] & ~0xffffull) | (st->sp & 0xffff);
	else
		v->r[R_RSP] = st->sp & st->mask;
}

/* ---- the TSS ---------------------------------------------------------------------------------------------------- */

/* SDM vol. 3, 6.8.5 and figure 8-2: #TS(TSS) when the TSS is too short. */
int tss_stack(struct vcpu *v, unsigned cpl, u16 *ss, u32 *esp)
{
	const struct seg *tr = &v->seg[SEG_TR];
	bool is32 = tr->type & 8;
	u32 off = is32 ? 4 + 8 * cpl : 2 + 4 * cpl, len = is32 ? 6 : 4;
	u8 buf[6];
	u16 word;
	int rc;

	if (tr->unusable || off + len - 1 > tr->limit)
		return excp_raise_err(v, EXC_TS, tr->sel & 0xfffcu);
	rc = sys_read(v, tr->base + off, buf, len);
	if (rc != STEP_OK)
		return rc;
	if (is32) {
		memcpy(esp, buf, 4);
		memcpy(ss, buf + 4, 2);
	} else {
		memcpy(&word, buf, 2);
		*esp = word;
		memcpy(ss, buf + 2, 2);
	}
	return STEP_OK;
}

/* SDM vol. 3, figure 8-11. */
int tss_rsp(struct vcpu *v, unsigned which, u64 *rsp)
{
	const struct seg *tr = &v->seg[SEG_TR];
	u32 off = which < 3 ? 4 + 8 * which : 0x24 + 8 * (which - 4);
	int rc;

	if (tr->unusable || off + 7 > tr->limit)
		return excp_raise_err(v, EXC_TS, tr->sel & 0xfffcu);
	rc = sys_read(v, tr->base + off, rsp, 8);
	if (rc == STEP_OK && !is_canonical(*rsp))
		return excp_raise_err(v, EXC_SS, 0);
	return rc;
}

/* SDM vol. 1, 19.5.2; the same bitmap in long mode. */
int io_permitted(struct vcpu *v, u16 port, unsigned size)
{
	const struct seg *tr = &v->seg[SEG_TR];
	u16 base, bits;
	u32 at;
	int rc;

	if (v->mode == MODE_REAL)
		return STEP_OK;
	if (v->mode != MODE_V86 && v->cpl <= (v->rflags & FLAGS_IOPL) >> FLAGS_IOPL_SHIFT)
		return STEP_OK;
	if (tr->unusable || !tr->present || !(tr->type & 8) || tr->limit < 0x67)
		return excp_raise_err(v, EXC_GP, 0);
	rc = sys_read(v, tr->base + 0x66, &base, 2);
	if (rc != STEP_OK)
		return rc;
	at = base + port / 8u;
	if (at + 1 > tr->limit)
		return excp_raise_err(v, EXC_GP, 0);
	rc = sys_read(v, tr->base + at, &bits, 2);
	if (rc != STEP_OK)
		return rc;
	if (bits >> (port & 7) & ((1u << size) - 1))
		return excp_raise_err(v, EXC_GP, 0);
	return STEP_OK;
}
