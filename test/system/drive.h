/*
 * drive.h: the start of a snippet in the interface's terms, for either client: in the header of 2006 and in today's, of
 * which drive_*.c includes one before, the structures have the same names and fields.
 */
#ifndef DEVKVM_TEST_SYSTEM_DRIVE_H
#define DEVKVM_TEST_SYSTEM_DRIVE_H

#include "system.h"

static struct kvm_segment kseg(const struct start_seg *s)
{
	return (struct kvm_segment){.base = s->base,
	                            .limit = s->limit,
	                            .selector = s->sel,
	                            .type = s->type,
	                            .present = !s->unusable,
	                            .dpl = s->dpl,
	                            .db = s->db,
	                            .s = s->s,
	                            .l = s->l,
	                            .g = s->g,
	                            .unusable = s->unusable};
}

/* The rest of `s` is the processor's, as it was read. */
static void start_sregs(const struct start *st, struct kvm_sregs *s)
{
	s->cs = kseg(&st->seg[S_CS]);
	s->ds = kseg(&st->seg[S_DS]);
	s->es = kseg(&st->seg[S_ES]);
	s->fs = kseg(&st->seg[S_FS]);
	s->gs = kseg(&st->seg[S_GS]);
	s->ss = kseg(&st->seg[S_SS]);
	s->tr = kseg(&st->seg[S_TR]);
	s->ldt = kseg(&st->seg[S_LDT]);
	s->gdt.base = st->gdt_base;
	s->gdt.limit = st->gdt_limit;
	s->idt.base = st->idt_base;
	s->idt.limit = st->idt_limit;
	s->cr0 = st->cr0;
	s->cr3 = st->cr3;
	s->cr4 = st->cr4;
	s->efer = st->efer;
}

static struct kvm_regs start_regs(const struct start *st)
{
	return (struct kvm_regs){.rip = st->rip, .rsp = st->rsp, .rflags = st->rflags};
}

#endif
