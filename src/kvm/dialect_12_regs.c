/*
 * dialect_12_regs.c: a vCPU's registers in the structures of the interface, both ways. With the vCPU's lock held.
 *
 * Invariant: a structure that no processor could have is refused before anything of it is taken.
 */
#include "dialect_12.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../base/usercopy.h"
#include "../cpu/fpu.h"
#include "../cpu/vmem.h"
#include "../x86/pte.h"

/* ---- general registers ------------------------------------------------------------------------------------------- */

/* kvm_regs' order of registers from rax on, as the processor numbers them. */
static const u8 regs_order[16] = {R_RAX, R_RBX, R_RCX, R_RDX, R_RSI, R_RDI, R_RSP, R_RBP,
                                  R_R8,  R_R9,  R_R10, R_R11, R_R12, R_R13, R_R14, R_R15};

void regs_out(struct vcpu *v, struct kvm_regs *regs)
{
	for (unsigned n = 0; n < 16; n++)
		(&regs->rax)[n] = v->r[regs_order[n]];
	regs->rip = v->r[R_RIP];
	/* The client's single-step is not the guest's. */
	regs->rflags = v->rflags;
}

void regs_in(struct kvm_vcpu *kv, const struct kvm_regs *regs)
{
	struct vcpu *v = &kv->cpu;

	for (unsigned n = 0; n < 16; n++)
		v->r[regs_order[n]] = (&regs->rax)[n];
	if (v->r[R_RIP] != regs->rip)
		vcpu12_abandon(kv);
	v->r[R_RIP] = regs->rip;
	v->rflags = (regs->rflags & FLAGS_ALL) | FLAGS_FIXED;
	kv->x12->inject = false;
	kv->x12->check_state = true;
	cpu_update(v);
}

long get_regs(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_regs regs;

	regs_out(&kv->cpu, &regs);
	return user_write((void *)arg, &regs, sizeof(regs));
}

long set_regs(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_regs regs;
	long rc = user_read(&regs, (void *)arg, sizeof(regs));

	if (rc == 0)
		regs_in(kv, &regs);
	return rc;
}

/* ---- segments and control registers ------------------------------------------------------------------------------ */

static void seg_out(const struct seg *s, struct kvm_segment *out)
{
	memset(out, 0, sizeof(*out));
	out->base = s->base;
	out->limit = s->limit;
	out->selector = s->sel;
	out->type = s->type;
	out->present = s->present;
	out->dpl = s->dpl;
	out->db = s->db;
	out->s = s->s;
	out->l = s->l;
	out->g = s->g;
	out->avl = s->avl;
	out->unusable = s->unusable || !s->present;
}

static void seg_in(struct vcpu *v, unsigned n, const struct kvm_segment *in)
{
	struct seg *s = &v->seg[n];

	s->base = in->base;
	s->limit = in->limit;
	s->sel = in->selector;
	s->type = in->type & 15;
	s->present = (in->present & 1) && !in->unusable;
	s->dpl = in->dpl & 3;
	s->db = in->db & 1;
	s->s = in->s & 1;
	s->l = in->l & 1;
	s->g = in->g & 1;
	s->avl = in->avl & 1;
	s->unusable = !s->present;
	seg_derive(v, n);
}

static const struct {
	u8 seg;
	u16 off;
} sreg_map[] = {
        {SEG_CS, offsetof(struct kvm_sregs, cs)}, {SEG_DS, offsetof(struct kvm_sregs, ds)},
        {SEG_ES, offsetof(struct kvm_sregs, es)}, {SEG_FS, offsetof(struct kvm_sregs, fs)},
        {SEG_GS, offsetof(struct kvm_sregs, gs)}, {SEG_SS, offsetof(struct kvm_sregs, ss)},
        {SEG_TR, offsetof(struct kvm_sregs, tr)}, {SEG_LDTR, offsetof(struct kvm_sregs, ldt)},
};

/* struct kvm_sregs2 begins like struct kvm_sregs, up to apic_base. */
_Static_assert(offsetof(struct kvm_sregs, apic_base) == offsetof(struct kvm_sregs2, apic_base), "sregs and sregs2");
_Static_assert(offsetof(struct kvm_sregs, ldt) == offsetof(struct kvm_sregs2, ldt), "sregs and sregs2");

static void sregs_common_out(struct vcpu *v, struct kvm_sregs *s)
{
	for (unsigned n = 0; n < ARRAY_SIZE(sreg_map); n++)
		seg_out(&v->seg[sreg_map[n].seg], (struct kvm_segment *)((u8 *)s + sreg_map[n].off));
	memset(&s->gdt, 0, sizeof(s->gdt));
	memset(&s->idt, 0, sizeof(s->idt));
	s->gdt.base = v->gdt.base;
	s->gdt.limit = v->gdt.limit;
	s->idt.base = v->idt.base;
	s->idt.limit = v->idt.limit;
	s->cr0 = v->cr0;
	s->cr2 = v->cr2;
	s->cr3 = v->cr3;
	s->cr4 = v->cr4;
	s->cr8 = v->cr8;
	s->efer = v->efer;
	s->apic_base = v->apic_base;
}

void sregs_out(struct vcpu *v, struct kvm_sregs *s)
{
	int irq = x12_of(v)->irq;

	sregs_common_out(v, s);
	memset(s->interrupt_bitmap, 0, sizeof(s->interrupt_bitmap));
	if (irq >= 0)
		s->interrupt_bitmap[irq / 64] |= BIT(irq % 64);
}

bool sregs_valid(struct vcpu *v, const struct kvm_sregs *s)
{
	if ((s->efer & EFER_LME) && (s->cr0 & CR0_PG)) {
		if (!(s->cr4 & CR4_PAE) || !(s->efer & EFER_LMA))
			return false;
		if (s->cr3 & ~v->mmu.phys_mask)
			return false;
	} else if ((s->efer & EFER_LMA) || s->cs.l) {
		return false;
	}
	if (s->cr4 & (~cpuid_cr4_mask() | v->denied.cr4))
		return false;
	if (s->efer & ~cpuid_efer_mask())
		return false;
	if (s->cr0 >> 32 || ((s->cr0 & CR0_PG) && !(s->cr0 & CR0_PE)) || ((s->cr0 & CR0_NW) && !(s->cr0 & CR0_CD)))
		return false;
	if (s->cr8 > 15)
		return false;
	/* The local APIC: its address inside what the processor can address, x2APIC only when it is on. */
	if ((s->apic_base & 0x2ff) || (s->apic_base & ~v->mmu.phys_mask) ||
	    (s->apic_base & (APIC_BASE_ENABLE | BIT(10))) == BIT(10) ||
	    ((s->apic_base & BIT(10)) && !cpuid12_x2apic(x12_of(v))))
		return false;
	return true;
}

static void sregs_common_in(struct kvm_vcpu *kv, const struct kvm_sregs *s)
{
	struct vcpu *v = &kv->cpu;
	struct vm *vm = v->vm;

	for (unsigned n = 0; n < ARRAY_SIZE(sreg_map); n++)
		seg_in(v, sreg_map[n].seg, (const struct kvm_segment *)((const u8 *)s + sreg_map[n].off));
	v->gdt = (struct dtable){.base = s->gdt.base, .limit = s->gdt.limit};
	v->idt = (struct dtable){.base = s->idt.base, .limit = s->idt.limit};
	v->cr2 = s->cr2;
	v->cr8 = s->cr8;
	kv->x12->run->cr8 = s->cr8;
	v->apic_base = s->apic_base;
	if (lapic_of(v)) {
		lapic_set_base(lapic_of(v), s->apic_base);
		lapic_set_tpr(lapic_of(v), (u32)s->cr8 << 4);
	}
	kv->x12->check_state = true;
	pthread_mutex_lock(&vm->lock); /* the PAE pointers are read from memslots */
	cpu_set_crs(v, s->cr0, s->cr3, s->cr4, s->efer);
	pthread_mutex_unlock(&vm->lock);
	cpu_update(v);
}

int sregs_in(struct kvm_vcpu *kv, const struct kvm_sregs *s)
{
	if (!sregs_valid(&kv->cpu, s))
		return -EINVAL;
	sregs_common_in(kv, s);
	for (unsigned n = 0; n < 4; n++)
		if (s->interrupt_bitmap[n]) {
			kv->x12->irq = (int)(64 * n) + __builtin_ctzll(s->interrupt_bitmap[n]);
			atomic_fetch_or(&kv->cpu.events, (u32)EV_IRQ);
			break;
		}
	return 0;
}

long get_sregs(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_sregs s;

	sregs_out(&kv->cpu, &s);
	return user_write((void *)arg, &s, sizeof(s));
}

long set_sregs(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_sregs s;
	long rc = user_read(&s, (void *)arg, sizeof(s));

	return rc < 0 ? rc : sregs_in(kv, &s);
}

static bool pae_paging(const struct vcpu *v)
{
	return (v->cr0 & CR0_PG) && (v->cr4 & CR4_PAE) && !(v->efer & EFER_LMA);
}

long get_sregs2(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_sregs s;
	struct kvm_sregs2 s2 = {0};

	sregs_common_out(&kv->cpu, &s);
	memcpy(&s2, &s, offsetof(struct kvm_sregs, interrupt_bitmap));
	if (pae_paging(&kv->cpu)) {
		memcpy(s2.pdptrs, kv->cpu.mmu.pdpte, sizeof(s2.pdptrs));
		s2.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
	}
	return user_write((void *)arg, &s2, sizeof(s2));
}

long set_sregs2(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_sregs s = {0};
	struct kvm_sregs2 s2;
	bool pdptrs;
	long rc = user_read(&s2, (void *)arg, sizeof(s2));

	if (rc < 0)
		return rc;
	if (s2.flags & ~(u64)KVM_SREGS2_FLAGS_PDPTRS_VALID)
		return -EINVAL;
	memcpy(&s, &s2, offsetof(struct kvm_sregs, interrupt_bitmap));
	pdptrs = s2.flags & KVM_SREGS2_FLAGS_PDPTRS_VALID;
	if (pdptrs && !((s.cr0 & CR0_PG) && (s.cr4 & CR4_PAE) && !(s.efer & EFER_LMA)))
		return -EINVAL;
	if (!sregs_valid(&kv->cpu, &s))
		return -EINVAL;
	sregs_common_in(kv, &s);
	if (pdptrs) {
		memcpy(kv->cpu.mmu.pdpte, s2.pdptrs, sizeof(s2.pdptrs));
		tlb_flush(&kv->cpu.mmu);
	}
	return 0;
}

/* ---- x87, SSE, AVX ----------------------------------------------------------------------------------------------- */

long get_fpu(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_fpu f = {0};
	u8 img[512];

	fpu_to_fxsave(&kv->cpu.fpu, img);
	memcpy(f.fpr, img + FX_ST, sizeof(f.fpr));
	f.fcw = fx_get16(img, FX_FCW);
	f.fsw = fx_get16(img, FX_FSW);
	f.ftwx = img[FX_FTW];
	f.last_opcode = fx_get16(img, FX_FOP);
	memcpy(&f.last_ip, img + FX_FIP, 8);
	memcpy(&f.last_dp, img + FX_FDP, 8);
	memcpy(f.xmm, img + FX_XMM, sizeof(f.xmm));
	f.mxcsr = kv->cpu.fpu.mxcsr;
	return user_write((void *)arg, &f, sizeof(f));
}

long set_fpu(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_fpu f;
	u8 img[512] = {0};
	long rc = user_read(&f, (void *)arg, sizeof(f));

	if (rc < 0)
		return rc;
	memcpy(img + FX_ST, f.fpr, sizeof(f.fpr));
	fx_set16(img, FX_FCW, f.fcw);
	fx_set16(img, FX_FSW, f.fsw);
	img[FX_FTW] = f.ftwx;
	fx_set16(img, FX_FOP, f.last_opcode);
	memcpy(img + FX_FIP, &f.last_ip, 8);
	memcpy(img + FX_FDP, &f.last_dp, 8);
	memcpy(img + FX_XMM, f.xmm, sizeof(f.xmm));
	/* Linux' KVM leaves MXCSR alone here: struct kvm_fpu's own is not part of what is set. */
	memcpy(img + FX_MXCSR, &kv->cpu.fpu.mxcsr, 4);
	fpu_from_fxsave(&kv->cpu.fpu, img);
	return 0;
}

long get_xsave(struct kvm_vcpu *kv, unsigned long arg)
{
	u8 img[sizeof(struct kvm_xsave)] = {0};

	fpu_to_xsave(&kv->cpu.fpu, img);
	return user_write((void *)arg, img, sizeof(img));
}

long set_xsave(struct kvm_vcpu *kv, unsigned long arg)
{
	u8 img[sizeof(struct kvm_xsave)];
	long rc = user_read(img, (void *)arg, sizeof(img));

	if (rc < 0)
		return rc;
	return fpu_from_xsave(&kv->cpu.fpu, img) ? 0 : -EINVAL;
}

long get_xcrs(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_xcrs x = {.nr_xcrs = 1};

	x.xcrs[0].value = kv->cpu.fpu.xcr0;
	return user_write((void *)arg, &x, sizeof(x));
}

long set_xcrs(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_xcrs x;
	long rc = user_read(&x, (void *)arg, sizeof(x));

	if (rc < 0)
		return rc;
	if (x.nr_xcrs > KVM_MAX_XCRS || x.flags)
		return -EINVAL;
	for (unsigned n = 0; n < x.nr_xcrs; n++) {
		u64 val = cpuid_xcr0_wanted(x.xcrs[n].value);

		if (x.xcrs[n].xcr != 0)
			continue;
		/* What CPUID does not offer the guest cannot be on. */
		if ((val & ~((cpuid_xcr0_mask() & kv->x12->cpuid_xcr0) | XCR0_X87)) || !(val & XCR0_X87) ||
		    ((val & XCR0_AVX) && !(val & XCR0_SSE)))
			return -EINVAL;
		kv->cpu.fpu.xcr0 = val;
		break;
	}
	return 0;
}

/* ---- debugging --------------------------------------------------------------------------------------------------- */

long get_debugregs(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_debugregs d = {0};

	memcpy(d.db, kv->cpu.dr, sizeof(d.db));
	d.dr6 = kv->cpu.dr6;
	d.dr7 = kv->cpu.dr7;
	return user_write((void *)arg, &d, sizeof(d));
}

long set_debugregs(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_debugregs d;
	long rc = user_read(&d, (void *)arg, sizeof(d));

	if (rc < 0)
		return rc;
	if (d.flags || d.dr6 >> 32 || d.dr7 >> 32)
		return -EINVAL;
	memcpy(kv->cpu.dr, d.db, sizeof(d.db));
	kv->cpu.dr6 = (d.dr6 & 0xe00f) | DR6_FIXED;
	kv->cpu.dr7 = (d.dr7 & 0xffff23ff) | DR7_FIXED;
	dbg_update(&kv->cpu);
	return 0;
}

static void inject_event(struct kvm_vcpu *kv, struct event e)
{
	kv->cpu.excp = e;
	kv->x12->inject = true;
}

long set_guest_debug(struct kvm_vcpu *kv, unsigned long arg)
{
	static const u8 lens[] = {1, 2, 8, 4};
	struct guest_debug *g = &kv->cpu.gdbg;
	struct vcpu *v = &kv->cpu;
	struct kvm_guest_debug d;
	long rc = user_read(&d, (void *)arg, sizeof(d));

	if (rc < 0)
		return rc;
	if (d.control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP)) {
		if (kv->x12->inject)
			return -EBUSY;
		if (d.control & KVM_GUESTDBG_INJECT_DB)
			inject_event(kv, (struct event){.kind = EVENT_FAULT, .vector = EXC_DB});
		else
			inject_event(kv, (struct event){.kind = EVENT_TRAP, .vector = EXC_BP});
	}
	memset(g, 0, sizeof(*g));
	kv->x12->guest_debug = d.control & KVM_GUESTDBG_ENABLE ? d.control : 0;
	if (d.control & KVM_GUESTDBG_ENABLE) {
		g->enabled = true;
		g->singlestep = d.control & KVM_GUESTDBG_SINGLESTEP;
		g->sw_bp = d.control & KVM_GUESTDBG_USE_SW_BP;
		g->no_irq = d.control & KVM_GUESTDBG_BLOCKIRQ;
		g->own_bps = d.control & KVM_GUESTDBG_USE_HW_BP;
		g->db = g->own_bps || g->singlestep;
		g->dr7 = d.arch.debugreg[7];
		for (unsigned n = 0; n < 4 && g->own_bps; n++) {
			u64 dr7 = d.arch.debugreg[7];
			unsigned rw = dr7 >> (16 + 4 * n) & 3;

			g->bp[n].enabled = (dr7 >> (2 * n) & 3) && rw != 2;
			g->bp[n].addr = d.arch.debugreg[n];
			g->bp[n].len = lens[dr7 >> (18 + 4 * n) & 3];
			g->bp[n].access = rw == 3 ? MEM_READ | MEM_WRITE : rw == 1 ? MEM_WRITE : 0;
		}
	}
	cpu_update(v);
	dbg_update(v);
	return 0;
}

/* ---- events ------------------------------------------------------------------------------------------------------ */

void events_out(struct kvm_vcpu *kv, struct kvm_vcpu_events *e)
{
	struct vcpu12 *x = kv->x12;
	struct vcpu *v = &kv->cpu;

	memset(e, 0, sizeof(*e));
	if (x->inject) {
		e->exception.injected = !x->fresh_excp;
		e->exception.pending = x->fresh_excp;
		e->exception.nr = v->excp.vector;
		e->exception.has_error_code = v->excp.has_error;
		e->exception.error_code = v->excp.error;
	}
	if (x->irq >= 0) {
		e->interrupt.injected = 1;
		e->interrupt.nr = (u8)x->irq;
	}
	if (v->shadow)
		e->interrupt.shadow = v->shadow == SHADOW_MOVSS ? KVM_X86_SHADOW_INT_MOV_SS : KVM_X86_SHADOW_INT_STI;
	e->nmi.injected = x->nmi;
	e->nmi.pending = nmi_collect(v);
	e->nmi.masked = v->nmi_masked;
	e->smi.smm = x->smm;
	e->smi.pending = x->smi_pending || (atomic_load(&x->latch) & LATCH_SMI);
	e->smi.smm_inside_nmi = x->smm_in_nmi;
	e->smi.latched_init = lapic_of(v) && (atomic_load(&x->latch) & LATCH_INIT);
	e->flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM;
	if (v->vm->x12->payload) {
		e->flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
		if (x->fresh_excp && (v->excp.vector == EXC_DB || v->excp.vector == EXC_PF)) {
			e->exception_has_payload = 1;
			e->exception_payload = v->excp.vector == EXC_DB ? v->excp.dr6 : v->excp.cr2;
		}
	} else {
		/* Without the capability what is pending shows as injected. */
		e->exception.injected |= e->exception.pending;
		e->exception.pending = 0;
	}
	if (v->vm->x12->triple_fault) {
		e->flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
		e->triple_fault.pending = x->triple;
	}
}

int events_in(struct kvm_vcpu *kv, const struct kvm_vcpu_events *e)
{
	const u32 known = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR |
	                  KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM | KVM_VCPUEVENT_VALID_PAYLOAD |
	                  KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
	const struct vm12 *m = kv->cpu.vm->x12;
	bool fresh = false;
	struct vcpu12 *x = kv->x12;
	struct vcpu *v = &kv->cpu;

	if (e->flags & ~known)
		return -EINVAL;
	if (e->flags & KVM_VCPUEVENT_VALID_PAYLOAD) {
		if (!m->payload)
			return -EINVAL;
		fresh = e->exception.pending && !e->exception.injected;
	}
	if ((e->flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) && !m->triple_fault)
		return -EINVAL;
	if ((fresh || e->exception.injected) && (e->exception.nr > 31 || e->exception.nr == EXC_NMI))
		return -EINVAL;
	if (fresh || e->exception.injected) {
		struct event ev = {.kind = EVENT_FAULT,
		                   .vector = e->exception.nr,
		                   .has_error = e->exception.has_error_code,
		                   .error = e->exception.error_code,
		                   .cr2 = v->cr2};

		if (fresh && e->exception_has_payload && ev.vector == EXC_DB)
			ev.dr6 = e->exception_payload;
		if (fresh && e->exception_has_payload && ev.vector == EXC_PF)
			ev.cr2 = e->exception_payload;
		inject_event(kv, ev);
	} else {
		x->inject = false;
	}
	x->fresh_excp = fresh;
	if (e->flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT)
		x->triple = e->triple_fault.pending;
	x->irq = e->interrupt.injected ? e->interrupt.nr : -1;
	if (x->irq >= 0)
		atomic_fetch_or(&v->events, (u32)EV_IRQ);
	if (e->flags & KVM_VCPUEVENT_VALID_SHADOW) {
		v->shadow = e->interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS ? SHADOW_MOVSS
		            : e->interrupt.shadow & KVM_X86_SHADOW_INT_STI  ? SHADOW_STI
		                                                            : 0;
		if (v->shadow)
			atomic_fetch_or(&v->events, (u32)EV_SHADOW);
	}
	x->nmi = e->nmi.injected;
	/* Those that were sent until now are among what the client replaces. */
	nmi_collect(v);
	if (e->flags & KVM_VCPUEVENT_VALID_NMI_PENDING)
		v->nmi_pending = e->nmi.pending;
	v->nmi_masked = e->nmi.masked;
	if (e->flags & KVM_VCPUEVENT_VALID_SMM) {
		smm_set(kv, e->smi.smm);
		x->smi_pending = e->smi.pending;
		x->smm_in_nmi = e->smi.smm && e->smi.smm_inside_nmi;
		if (lapic_of(v)) {
			if (e->smi.latched_init)
				atomic_fetch_or(&x->latch, LATCH_INIT);
			else
				atomic_fetch_and(&x->latch, ~LATCH_INIT);
		}
	}
	if (nmi_collect(v))
		atomic_fetch_or(&v->events, (u32)EV_NMI);
	return 0;
}

long get_vcpu_events(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_vcpu_events e;

	events_out(kv, &e);
	return user_write((void *)arg, &e, sizeof(e));
}

long set_vcpu_events(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_vcpu_events e;
	long rc = user_read(&e, (void *)arg, sizeof(e));

	return rc < 0 ? rc : events_in(kv, &e);
}
