/*
 * dialect_12_smm.c: system management mode: SMI, RSM, the state save area (AMD APM vol. 2, chapter 10), and the address
 * space that a processor sees in it.
 *
 * As Linux' KVM, the save area is AMD's on every host. Invariant: a vCPU is in this mode exactly when its mmu looks at
 * vm12.smm_mem; nothing that was translated on one side is used on the other.
 */
#include "dialect_12.h"

#include <string.h>

#include "../base/usercopy.h"
#include "../interp/interp.h"
#include "../jit/jit.h"

#define MSR_SMI_COUNT 0x34
#define MSR_SMBASE 0x9e
#define AREA_SIZE 512
#define AREA_FIRST 0x7e00u /* offsets below count from SMBASE + 0x8000; the area ends at 0x8000 */
#define REV_64 0x00020064u
#define REV_32 0x00020000u

/* ---- the save area ----------------------------------------------------------------------------------------------- */

static void put(u8 *area, unsigned at, u64 val, unsigned size)
{
	memcpy(area + (at - AREA_FIRST), &val, size);
}

static u64 get(const u8 *area, unsigned at, unsigned size)
{
	u64 val = 0;

	memcpy(&val, area + (at - AREA_FIRST), size);
	return val;
}

/* The second word of a descriptor, without limit and base. */
static u32 seg_attr(const struct seg *s)
{
	return (u32)(s->g << 23 | s->db << 22 | s->l << 21 | s->avl << 20 | s->present << 15 | s->dpl << 13 |
	             s->s << 12 | s->type << 8);
}

static void seg_set(struct vcpu *v, unsigned n, u64 sel, u32 attr, u64 base, u64 limit)
{
	v->seg[n] = (struct seg){.sel = (u16)sel,
	                         .base = base,
	                         .limit = (u32)limit,
	                         .g = attr >> 23 & 1,
	                         .db = attr >> 22 & 1,
	                         .l = attr >> 21 & 1,
	                         .avl = attr >> 20 & 1,
	                         .present = attr >> 15 & 1,
	                         .dpl = attr >> 13 & 3,
	                         .s = attr >> 12 & 1,
	                         .type = attr >> 8 & 15};
	v->seg[n].unusable = !v->seg[n].present;
	seg_derive(v, n);
}

static void seg_save_64(u8 *area, unsigned at, const struct seg *s)
{
	put(area, at, s->sel, 2);
	put(area, at + 2, seg_attr(s) >> 8, 2);
	put(area, at + 4, s->limit, 4);
	put(area, at + 8, s->base, 8);
}

static void seg_load_64(const u8 *area, unsigned at, struct vcpu *v, unsigned n)
{
	seg_set(v, n, get(area, at, 2), (u32)get(area, at + 2, 2) << 8, get(area, at + 8, 8), get(area, at + 4, 4));
}

static void save_64(const struct vcpu *v, u8 *area)
{
	for (unsigned n = 0; n < 16; n++)
		put(area, 0x7ff8 - 8 * n, v->r[n], 8);
	put(area, 0x7f78, v->r[R_RIP], 8);
	put(area, 0x7f70, v->rflags, 4);
	put(area, 0x7f68, v->dr6, 8);
	put(area, 0x7f60, v->dr7, 8);
	put(area, 0x7f58, v->cr0, 8);
	put(area, 0x7f50, v->cr3, 8);
	put(area, 0x7f48, v->cr4, 8);
	put(area, 0x7f00, x12_of((struct vcpu *)v)->smbase, 4);
	put(area, 0x7efc, REV_64, 4);
	put(area, 0x7ed0, v->efer, 8);
	seg_save_64(area, 0x7e90, &v->seg[SEG_TR]);
	put(area, 0x7e84, v->idt.limit, 4);
	put(area, 0x7e88, v->idt.base, 8);
	seg_save_64(area, 0x7e70, &v->seg[SEG_LDTR]);
	put(area, 0x7e64, v->gdt.limit, 4);
	put(area, 0x7e68, v->gdt.base, 8);
	for (unsigned n = SEG_ES; n <= SEG_GS; n++)
		seg_save_64(area, 0x7e00 + 16 * n, &v->seg[n]);
}

static void load_64(struct vcpu *v, const u8 *area, struct kvm_sregs *c)
{
	for (unsigned n = 0; n < 16; n++)
		v->r[n] = get(area, 0x7ff8 - 8 * n, 8);
	v->r[R_RIP] = get(area, 0x7f78, 8);
	v->rflags = get(area, 0x7f70, 4);
	v->dr6 = get(area, 0x7f68, 8);
	v->dr7 = get(area, 0x7f60, 8);
	c->cr0 = get(area, 0x7f58, 8);
	c->cr3 = get(area, 0x7f50, 8);
	c->cr4 = get(area, 0x7f48, 8);
	x12_of(v)->smbase = get(area, 0x7f00, 4);
	c->efer = get(area, 0x7ed0, 8);
	seg_load_64(area, 0x7e90, v, SEG_TR);
	v->idt = (struct dtable){.limit = (u16)get(area, 0x7e84, 4), .base = get(area, 0x7e88, 8)};
	seg_load_64(area, 0x7e70, v, SEG_LDTR);
	v->gdt = (struct dtable){.limit = (u16)get(area, 0x7e64, 4), .base = get(area, 0x7e68, 8)};
	for (unsigned n = SEG_ES; n <= SEG_GS; n++)
		seg_load_64(area, 0x7e00 + 16 * n, v, n);
}

/* Of a processor without long mode. Segments: where the selector is, and where attributes, limit and base are. */
static const u16 legacy[8][2] = {
        [SEG_ES] = {0x7fa8, 0x7f84},   [SEG_CS] = {0x7fac, 0x7f90}, [SEG_SS] = {0x7fb0, 0x7f9c},
        [SEG_DS] = {0x7fb4, 0x7f2c},   [SEG_FS] = {0x7fb8, 0x7f38}, [SEG_GS] = {0x7fbc, 0x7f44},
        [SEG_LDTR] = {0x7fc0, 0x7f78}, [SEG_TR] = {0x7fc4, 0x7f5c},
};

static void save_32(const struct vcpu *v, u8 *area)
{
	put(area, 0x7ffc, v->cr0, 4);
	put(area, 0x7ff8, v->cr3, 4);
	put(area, 0x7ff4, v->rflags, 4);
	put(area, 0x7ff0, v->r[R_RIP], 4);
	for (unsigned n = 0; n < 8; n++)
		put(area, 0x7fd0 + 4 * n, v->r[n], 4);
	put(area, 0x7fcc, v->dr6, 4);
	put(area, 0x7fc8, v->dr7, 4);
	for (unsigned n = 0; n < 8; n++) {
		put(area, legacy[n][0], v->seg[n].sel, 4);
		put(area, legacy[n][1], seg_attr(&v->seg[n]), 4);
		put(area, legacy[n][1] + 4u, v->seg[n].limit, 4);
		put(area, legacy[n][1] + 8u, v->seg[n].base, 4);
	}
	put(area, 0x7f74, v->gdt.base, 4);
	put(area, 0x7f70, v->gdt.limit, 4);
	put(area, 0x7f58, v->idt.base, 4);
	put(area, 0x7f54, v->idt.limit, 4);
	put(area, 0x7f14, v->cr4, 4);
	put(area, 0x7efc, REV_32, 4);
	put(area, 0x7ef8, x12_of((struct vcpu *)v)->smbase, 4);
}

static void load_32(struct vcpu *v, const u8 *area, struct kvm_sregs *c)
{
	c->cr0 = get(area, 0x7ffc, 4);
	c->cr3 = get(area, 0x7ff8, 4);
	c->cr4 = get(area, 0x7f14, 4);
	c->efer = 0;
	v->rflags = get(area, 0x7ff4, 4);
	v->r[R_RIP] = get(area, 0x7ff0, 4);
	for (unsigned n = 0; n < 8; n++)
		v->r[n] = get(area, 0x7fd0 + 4 * n, 4);
	v->dr6 = get(area, 0x7fcc, 4);
	v->dr7 = get(area, 0x7fc8, 4);
	for (unsigned n = 0; n < 8; n++)
		seg_set(v, n, get(area, legacy[n][0], 4), (u32)get(area, legacy[n][1], 4),
		        get(area, legacy[n][1] + 8u, 4), get(area, legacy[n][1] + 4u, 4));
	v->gdt = (struct dtable){.base = get(area, 0x7f74, 4), .limit = (u16)get(area, 0x7f70, 4)};
	v->idt = (struct dtable){.base = get(area, 0x7f58, 4), .limit = (u16)get(area, 0x7f54, 4)};
	x12_of(v)->smbase = get(area, 0x7ef8, 4);
}

static bool has_long_mode(struct vcpu *v)
{
	u32 leaf[4];

	cpuid12(v, 0x80000001u, 0, leaf);
	return leaf[3] & BIT(29);
}

/* ---- entering and leaving ---------------------------------------------------------------------------------------- */

void smm_set(struct kvm_vcpu *kv, bool on)
{
	struct vcpu *v = &kv->cpu;
	struct vm *vm = v->vm;

	if (on == kv->x12->smm)
		return;
	kv->x12->smm = on;
	v->mmu.vm = on ? &vm->x12->smm_mem : &vm->mem;
	tlb_flush(&v->mmu);
	interp_flush(v);
	jit_slots_changed(v);
}

/* Copies the save area from or to guest memory; where there is no memory, it reads as ones. */
static void area_copy(struct vcpu *v, u8 *area, bool write)
{
	gpa_t gpa = x12_of(v)->smbase + 0x8000 + AREA_FIRST;

	for (unsigned n = 0; n < AREA_SIZE;) {
		struct memslot *s = memslot_find(v->mmu.vm, gpa + n);
		unsigned left = (unsigned)(PAGE_SIZE - ((gpa + n) & ~PAGE_MASK));

		if (left > AREA_SIZE - n)
			left = AREA_SIZE - n;
		if (s && !user_reachable(s->hva + (gpa + n - s->gpa), write))
			s = NULL;
		if (s && write && !(s->flags & MEMSLOT_READONLY)) {
			memslot_mark_dirty(s, gpa + n);
			memcpy(s->hva + (gpa + n - s->gpa), area + n, left);
		} else if (!write) {
			if (s)
				memcpy(area + n, s->hva + (gpa + n - s->gpa), left);
			else
				memset(area + n, 0xff, left);
		}
		n += left;
	}
}

static void smm_enter(struct kvm_vcpu *kv)
{
	struct vcpu12 *x = kv->x12;
	struct vcpu *v = &kv->cpu;
	u8 area[AREA_SIZE] = {0};

	x->smi_pending = false;
	x->smi_count++;
	stat12(v, DEVKVM_smis);
	if (has_long_mode(v))
		save_64(v, area);
	else
		save_32(v, area);
	smm_set(kv, true);
	area_copy(v, area, true);
	x->smm_in_nmi = v->nmi_masked;
	v->nmi_masked = true;
	v->rflags = FLAGS_FIXED;
	v->r[R_RIP] = 0x8000;
	v->shadow = 0;
	v->pending_db = 0;
	v->idt = (struct dtable){0};
	v->dr7 = DR7_FIXED;
	cpu_set_crs(v, v->cr0 & ~(CR0_PE | CR0_EM | CR0_TS | CR0_PG), v->cr3, 0, 0);
	for (unsigned n = SEG_ES; n <= SEG_GS; n++)
		seg_set(v, n, 0, 1u << 23 | 1u << 15 | 1u << 12 | 3u << 8, 0, 0xffffffff);
	v->seg[SEG_CS].sel = (u16)(x->smbase >> 4);
	v->seg[SEG_CS].base = (u32)x->smbase;
	seg_derive(v, SEG_CS);
	cpu_update(v);
	dbg_update(v);
}

void smm_poll(struct kvm_vcpu *kv)
{
	if (kv->x12->smi_pending && !kv->x12->smm && !kv->cpu.gdbg.no_irq && kv->x12->pend == PEND_NONE &&
	    !kv->cpu.mmu.n_reads)
		smm_enter(kv);
}

bool smm_leave(struct kvm_vcpu *kv)
{
	struct vcpu12 *x = kv->x12;
	struct vcpu *v = &kv->cpu;
	struct kvm_sregs c = {0};
	u8 area[AREA_SIZE];

	area_copy(v, area, false);
	if (!x->smm_in_nmi)
		v->nmi_masked = false;
	x->smm_in_nmi = false;
	smm_set(kv, false);
	if (has_long_mode(v))
		load_64(v, area, &c);
	else
		load_32(v, area, &c);
	v->rflags = (v->rflags & FLAGS_ALL) | FLAGS_FIXED;
	v->dr6 = (v->dr6 & 0xe00f) | DR6_FIXED;
	v->dr7 = (v->dr7 & 0xffff23ff) | DR7_FIXED;
	v->shadow = 0;
	/* Long mode is active when both of these say so, whatever was saved. */
	c.efer &= ~EFER_LMA;
	if ((c.efer & EFER_LME) && (c.cr0 & CR0_PG))
		c.efer |= EFER_LMA;
	c.cs.l = v->seg[SEG_CS].l;
	c.apic_base = v->apic_base;
	if (!sregs_valid(v, &c))
		return false;
	cpu_set_crs(v, c.cr0, c.cr3, c.cr4, c.efer);
	cpu_update(v);
	dbg_update(v);
	if (nmi_collect(v))
		atomic_fetch_or(&v->events, (u32)EV_NMI);
	return true;
}

int op_rsm(struct vcpu *v, const struct insn *i)
{
	if (!x12_of(v)->smm)
		return excp_raise(v, EXC_UD);
	/* Memory and mode change under the engine: it leaves first. */
	v->exit.reason = EXIT_RSM;
	return STEP_EXIT;
}

/* ---- MSRs -------------------------------------------------------------------------------------------------------- */

int smm_msr_read(struct vcpu *v, u32 msr, u64 *val, bool host)
{
	struct vcpu12 *x = x12_of(v);

	if (msr == MSR_SMI_COUNT)
		*val = x->smi_count;
	else if (msr != MSR_SMBASE)
		return MSR_PASS;
	else if (!host && !x->smm)
		return -1;
	else
		*val = x->smbase;
	return 0;
}

int smm_msr_write(struct vcpu *v, u32 msr, u64 val, bool host)
{
	struct vcpu12 *x = x12_of(v);

	if (msr != MSR_SMI_COUNT && msr != MSR_SMBASE)
		return MSR_PASS;
	if (!host)
		return -1;
	if (msr == MSR_SMI_COUNT)
		x->smi_count = val;
	else
		x->smbase = val;
	return 0;
}
