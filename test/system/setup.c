/*
 * setup.c: the guest's memory and registers before a snippet runs: tables of snip.h's memory map, and the blob of all
 * snippets with its handlers, whose head names the tables inside.
 */
#include <string.h>

#include "system.h"

extern const uint8_t blob[], blob_end[];

struct head {
	uint32_t table, table_end, stubs16, stubs32, stubs64;
};

struct entry {
	uint32_t name, entry, mode, spare;
};

static struct head head(void)
{
	struct head h;

	memcpy(&h, blob, sizeof(h));
	return h;
}

unsigned snippet_count(void)
{
	return (head().table_end - head().table) / sizeof(struct entry);
}

struct snippet snippet_get(unsigned n)
{
	struct entry e;

	memcpy(&e, blob + head().table - BLOB + n * sizeof(e), sizeof(e));
	return (struct snippet){(const char *)blob + e.name - BLOB, e.entry, e.mode};
}

static void put64(uint8_t *ram, uint32_t at, uint64_t val)
{
	memcpy(ram + at, &val, 8);
}

static void put32(uint8_t *ram, uint32_t at, uint32_t val)
{
	memcpy(ram + at, &val, 4);
}

static uint64_t gate(unsigned sel, uint32_t off, unsigned access)
{
	return (off & 0xffff) | (uint64_t)sel << 16 | (uint64_t)access << 40 | (uint64_t)(off >> 16) << 48;
}

/* Descriptor of a system segment or of memory, byte-granular. */
static uint64_t desc(uint32_t base, uint32_t limit, unsigned access)
{
	return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)access << 40 |
	       (uint64_t)(limit >> 16 & 0xf) << 48 | (uint64_t)(base >> 24) << 56;
}

static void fill_gdt(uint8_t *ram, bool is64)
{
	const uint64_t code0 = is64 ? 0x00af9b000000ffff : 0x00cf9b000000ffff;
	const uint64_t code3 = is64 ? 0x00affb000000ffff : 0x00cffb000000ffff;
	const uint64_t c32r0 = 0x00cf9b000000ffff, c32r3 = 0x00cffb000000ffff;
	const uint64_t data0 = 0x00cf93000000ffff, data3 = 0x00cff3000000ffff;

	put64(ram, GDT + CS0, code0);
	put64(ram, GDT + DS0, data0);
	put64(ram, GDT + (CS3 & ~7), code3);
	put64(ram, GDT + (DS3 & ~7), data3);
	put64(ram, GDT + TR0, desc(TSS, TSS_LIMIT, 0x8b));
	put64(ram, GDT + CSX, is64 ? c32r0 : desc(0, 0xfffff, 0x9b));
	put64(ram, GDT + (CSX3 & ~7), is64 ? c32r3 : desc(0, 0xfffff, 0xfb));
	put64(ram, GDT + LDT0, desc(LDTB, LDTL, 0x82));
	if (!is64) {
		put64(ram, GDT + TR2, desc(TSS2, 0x67, 0x89));
		put64(ram, GDT + TR16, desc(TSS16B, 0x2b, 0x81));
		put64(ram, GDT + TGATE, gate(TR2, 0, 0x85));
	}
	put64(ram, GDT + (SYSRET_CS & ~7), c32r3);
	put64(ram, GDT + (SYSRET_CS & ~7) + 8, data3);
	put64(ram, GDT + (SYSRET_CS & ~7) + 16, 0x00affb000000ffff);
	put64(ram, GDT + SYSENTER0, code0);
	put64(ram, GDT + SYSENTER0 + 8, data0);
	put64(ram, GDT + SYSENTER0 + 16, c32r3);
	put64(ram, GDT + SYSENTER0 + 24, data3);
}

static void fill_paging(uint8_t *ram, unsigned mode)
{
	if (mode == PG32) {
		for (unsigned n = 0; n < 1024; n++)
			put32(ram, PT32 + 4 * n, n << 12 | 7);
		put32(ram, PD32, PT32 | 7);
		for (unsigned n = 1; n < 256; n++)
			put32(ram, PD32 + 4 * n, n << 22 | 0x87);
		return;
	}
	for (unsigned n = 0; n < 512; n++)
		put64(ram, PT + 8 * n, (uint64_t)n << 12 | 7);
	put64(ram, PD, PT | 7);
	for (unsigned n = 1; n < 512; n++)
		put64(ram, PD + 8 * n, (uint64_t)n << 21 | 0x87);
	put64(ram, PDPT, PD | (mode == LONG ? 7 : 1));
	put64(ram, PML4, PDPT | 7);
}

static void fill_tables(uint8_t *ram, unsigned mode)
{
	struct head h = head();

	if (mode == REAL) {
		for (unsigned n = 0; n < 256; n++)
			put32(ram, 4 * n, (h.stubs16 - BLOB + 16 * n) | (uint32_t)(BLOB >> 4) << 16);
		return;
	}
	fill_gdt(ram, mode == LONG);
	for (unsigned n = 0; n < 256; n++) {
		unsigned access = n == VEC_BACK || n == 3 || n == 4 ? 0xee : 0x8e;

		if (mode == LONG)
			put64(ram, IDT + 16 * n, gate(CS0, h.stubs64 + 16 * n, access));
		else
			put64(ram, IDT + 8 * n, gate(CS0, h.stubs32 + 16 * n, access));
	}
	/* Ports up to 0x2f are free for ring 3; the map ends with the limit, behind port 0x217. */
	memset(ram + TSS + TSS_MAP, 0xff, TSS_LIMIT + 1 - TSS_MAP);
	memset(ram + TSS + TSS_MAP, 0, 6);
	put32(ram, TSS + 0x64, (uint32_t)TSS_MAP << 16);
	put32(ram, TSS + 4, STACK0 - 0x400);
	if (mode == LONG) {
		put32(ram, TSS + 0x24, IST1);
	} else {
		put32(ram, TSS + 8, DS0);
		put32(ram, TSS2 + 0x64, 0x680000);
	}
	if (mode >= PG32)
		fill_paging(ram, mode);
}

static struct start_seg seg(unsigned sel, unsigned type, unsigned dpl, bool db, bool l, uint64_t base, uint32_t limit)
{
	return (struct start_seg){.base = base,
	                          .limit = limit,
	                          .sel = (uint16_t)sel,
	                          .type = (uint8_t)type,
	                          .dpl = (uint8_t)dpl,
	                          .db = db,
	                          .l = l,
	                          .s = 1,
	                          .g = limit > 0xfffff};
}

void setup(const struct snippet *s, uint8_t *ram, struct start *st)
{
	unsigned mode = s->mode & MODE_MASK;

	memset(ram, 0, RAM_SIZE);
	memcpy(ram + BLOB, blob, (size_t)(blob_end - blob));
	fill_tables(ram, mode);
	memset(st, 0, sizeof(*st));
	st->rflags = 2;
	st->rsp = STACK0;
	st->rip = s->entry;
	if (mode == REAL) {
		st->rip -= BLOB;
		st->rsp = STACK0;
		st->cr0 = 0x10;
		st->idt_limit = 0x3ff;
		st->gdt_base = GDT;
		st->gdt_limit = GDT_LIMIT;
		for (unsigned n = S_DS; n <= S_SS; n++)
			st->seg[n] = seg(0, 3, 0, false, false, 0, 0xffff);
		st->seg[S_CS] = seg(BLOB >> 4, 11, 0, false, false, BLOB, 0xffff);
	} else {
		st->gdt_base = GDT;
		st->gdt_limit = GDT_LIMIT;
		st->idt_base = IDT;
		st->idt_limit = mode == LONG ? 0xfff : 0x7ff;
		for (unsigned n = S_DS; n <= S_GS; n++)
			st->seg[n] = seg(DS3, 3, 3, true, false, 0, 0xffffffff);
		st->seg[S_SS] = seg(DS0, 3, 0, true, false, 0, 0xffffffff);
		st->seg[S_CS] = seg(CS0, 11, 0, mode != LONG, mode == LONG, 0, 0xffffffff);
		st->cr0 = 0x31; /* PE, ET, NE */
	}
	st->seg[S_TR] = (struct start_seg){.base = TSS, .limit = TSS_LIMIT, .sel = TR0, .type = 11};
	st->seg[S_LDT] = (struct start_seg){.unusable = 1};
	if (mode == REAL) {
		st->seg[S_TR].limit = 0xffff;
		st->seg[S_TR].base = 0;
		st->seg[S_TR].sel = 0;
	}
	if (mode < PG32)
		return;
	st->cr0 |= 0x80010000u; /* PG, WP */
	st->cr3 = mode == PG32 ? PD32 : mode == PAE ? PDPT : PML4;
	st->cr4 = mode == PG32 ? 0x10 : 0x20;
	st->efer = mode == PG32 ? 0 : mode == PAE ? 0x800 : 0xd01; /* NX; LME, LMA, SCE */
}
