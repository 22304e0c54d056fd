/*
 * machine.c: see machine.h.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../../src/x86/pte.h"
#include "../../src/jit/jit.h"
#include "machine.h"

#define TABLES_GPA 0x100000000000ull /* far from every user address of the host's low half that tests use */
#define TABLES_SIZE (1u << 20)

static int no_pio(struct vcpu *v, const struct pio *io)
{
	v->exit.reason = EXIT_IO;
	v->exit.io = *io;
	return STEP_EXIT;
}

static int no_cpuid(struct vcpu *v, const struct insn *i)
{
	v->exit.reason = EXIT_CPUID;
	return STEP_EXIT;
}

static int halt(struct vcpu *v, const struct insn *i)
{
	v->exit.reason = EXIT_HLT;
	v->r[R_RIP] += i->len;
	return STEP_EXIT;
}

static int irq_none(struct vcpu *v)
{
	return -1;
}

static bool irq_not(struct vcpu *v)
{
	return false;
}

static void not_kicked(struct vcpu *v)
{
}

static const struct vcpu_ops ops = {
        .pio = no_pio,
        .cpuid = no_cpuid,
        .hlt = halt,
        .irq_take = irq_none,
        .irq_pending = irq_not,
        .kicked = not_kicked,
};

static const struct mmu_ops mmu_ops = {.code_written = jit_code_written};

static void die(const char *what)
{
	fprintf(stderr, "machine: %s\n", what);
	exit(2);
}

static void *pages(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		die("no memory");
	return p;
}

static void set_seg(struct vcpu *v, unsigned n, u16 sel, u8 type, unsigned dpl)
{
	v->seg[n] = (struct seg){.sel = sel,
	                         .type = type,
	                         .dpl = (u8)dpl,
	                         .s = true,
	                         .present = true,
	                         .db = true,
	                         .g = true,
	                         .limit = 0xffffffffu};
}

struct vcpu *machine_vcpu(struct machine *m, unsigned id, unsigned cpl)
{
	struct vcpu *v = aligned_alloc(4096, (sizeof(*v) + 4095) & ~4095ul);

	if (!v)
		die("no memory");
	memset(v, 0, sizeof(*v));
	mmu_init(&v->mmu, &m->mem, &mmu_ops);
	v->ops = &ops;
	v->id = id;
	v->is_bsp = id == 0;
	if (interp_create(v))
		die("interp_create");
	jit_create(v);
	cpu_reset(v);
	set_seg(v, SEG_CS, 0x33, SEGT_CODE | SEGT_R | SEGT_A, cpl);
	v->seg[SEG_CS].l = true;
	v->seg[SEG_CS].db = false;
	set_seg(v, SEG_SS, 0x2b, SEGT_W | SEGT_A, cpl);
	for (unsigned n = SEG_ES; n <= SEG_GS; n++)
		if (n != SEG_CS && n != SEG_SS)
			set_seg(v, n, 0x2b, SEGT_W | SEGT_A, cpl);
	v->fpu.xcr0 = XCR0_X87 | XCR0_SSE | XCR0_AVX;
	cpu_set_crs(v, CR0_PE | CR0_MP | CR0_NE | CR0_WP | CR0_PG | CR0_ET, TABLES_GPA,
	            CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_PGE | CR4_FSGSBASE,
	            EFER_LME | EFER_LMA | EFER_NX | EFER_SCE);
	return v;
}

void machine_vcpu_free(struct vcpu *v)
{
	jit_destroy(v);
	interp_destroy(v);
	free(v);
}

void machine_init(struct machine *m, unsigned cpl)
{
	memset(m, 0, sizeof(*m));
	vm_mem_init(&m->mem);
	m->tables = pages(TABLES_SIZE);
	m->tables_used = 1;
	m->tables_slot = (struct memslot){.id = 100, .gpa = TABLES_GPA, .size = TABLES_SIZE, .hva = m->tables};
	if (memslot_add(&m->mem, &m->tables_slot))
		die("memslot_add");
	m->v = machine_vcpu(m, 0, cpl);
}

void machine_free(struct machine *m)
{
	machine_vcpu_free(m->v);
	for (unsigned n = 0; n < m->nwin; n++) {
		memslot_remove(&m->mem, &m->win_slot[n]);
	}
	memslot_remove(&m->mem, &m->tables_slot);
	vm_mem_free(&m->mem);
	munmap(m->tables, TABLES_SIZE);
}

void machine_window(struct machine *m, void *hva, u64 size)
{
	struct memslot *s = &m->win_slot[m->nwin];

	*s = (struct memslot){.id = m->nwin++, .gpa = (gpa_t)(uintptr_t)hva, .size = size, .hva = hva};
	if (memslot_add(&m->mem, s))
		die("memslot_add");
}

void machine_map(struct machine *m, u64 addr, u64 pte)
{
	machine_map_to(m, addr, addr, pte);
}

void machine_map_to(struct machine *m, u64 addr, gpa_t gpa, u64 pte)
{
	u64 *t = (u64 *)(void *)m->tables;

	for (int level = 3; level > 0; level--) {
		u64 *e = &t[(addr >> (12 + 9 * level)) & 511];

		if (!(*e & PTE_P)) {
			if ((m->tables_used + 1) * PAGE_SIZE > TABLES_SIZE)
				die("page tables full");
			*e = (TABLES_GPA + m->tables_used++ * PAGE_SIZE) | PTE_P | PTE_W | PTE_U | PTE_A;
		}
		t = (u64 *)(void *)(m->tables + ((*e & PHYS_MASK & PAGE_MASK) - TABLES_GPA));
	}
	t[(addr >> 12) & 511] = pte ? (gpa & PAGE_MASK) | pte : 0;
	tlb_flush(&m->v->mmu);
}

void machine_set_mode(struct machine *m, enum decode_mode mode)
{
	struct seg *cs = &m->v->seg[SEG_CS];

	cs->l = mode == DECODE_64;
	cs->db = mode == DECODE_32;
	cs->sel = mode == DECODE_64 ? 0x33 : 0x23;
	cpu_update(m->v);
}
