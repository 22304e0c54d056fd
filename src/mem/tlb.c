/*
 * tlb.c: filling and emptying the TLB that tlb_fast.h reads.
 *
 * Invariants: filled[ctx][kind] lists the index of every entry that is not TLB_EMPTY, each once, so that a flush costs
 * what was filled. An entry killed singly becomes TLB_DEAD (matches nothing, still listed).
 */
#include "mem_impl.h"

#include <string.h>

#include "../x86/pte.h"

#define TLB_DEAD 0x803ull

void mmu_init(struct mmu *m, struct vm_mem *vm, const struct mmu_ops *ops)
{
	memset(m, 0, sizeof(*m));
	m->vm = vm;
	m->phys_mask = PHYS_MASK;
	m->ops = ops;
	for (unsigned c = 0; c < TLB_CTXS; c++)
		for (unsigned k = 0; k < TLB_KINDS; k++)
			for (unsigned n = 0; n < TLB_SIZE; n++)
				m->tlb[c][k].e[n].tag = TLB_EMPTY;
}

static void flush_array(struct mmu *m, unsigned ctx, unsigned kind)
{
	for (unsigned n = 0; n < m->filled_n[ctx][kind]; n++)
		m->tlb[ctx][kind].e[m->filled[ctx][kind][n]].tag = TLB_EMPTY;
	m->filled_n[ctx][kind] = 0;
}

void tlb_flush(struct mmu *m)
{
	for (unsigned c = 0; c < TLB_CTXS; c++)
		for (unsigned k = 0; k < TLB_KINDS; k++)
			flush_array(m, c, k);
	m->huge_pages_seen = false;
	memset(m->large_seen, 0, sizeof(m->large_seen));
	memset(m->exec_seen, 0, sizeof(m->exec_seen));
	m->flushes++;
}

/* Drops the entries of one array that `keep` refuses. */
static void sift_array(struct mmu *m, unsigned ctx, unsigned kind,
                       bool (*keep)(const struct mmu *, gva_t tag, bool global, gva_t arg), gva_t arg)
{
	unsigned kept = 0;

	for (unsigned k = 0; k < m->filled_n[ctx][kind]; k++) {
		u16 n = m->filled[ctx][kind][k];
		struct tlb_entry *e = &m->tlb[ctx][kind].e[n];

		if (!(e->tag & 1) && keep(m, e->tag, m->global[ctx][kind][n / 64] >> (n % 64) & 1, arg))
			m->filled[ctx][kind][kept++] = n;
		else
			e->tag = TLB_EMPTY;
	}
	m->filled_n[ctx][kind] = (u16)kept;
}

static void sift(struct mmu *m, bool (*keep)(const struct mmu *, gva_t, bool, gva_t), gva_t arg)
{
	for (unsigned c = 0; c < TLB_CTXS; c++)
		for (unsigned k = 0; k < TLB_KINDS; k++)
			sift_array(m, c, k, keep, arg);
}

static bool is_global(const struct mmu *m, gva_t tag, bool global, gva_t arg)
{
	return global;
}

/* Pages are at most 1 GiB large. */
static bool is_elsewhere(const struct mmu *m, gva_t tag, bool global, gva_t gva)
{
	return (tag ^ gva) >> 30;
}

void tlb_flush_local(struct mmu *m)
{
	if (!m->pge) {
		tlb_flush(m);
		return;
	}
	sift(m, is_global, 0);
	m->flushes_local++;
}

void tlb_flush_writes(struct mmu *m)
{
	for (unsigned c = 0; c < TLB_CTXS; c++)
		flush_array(m, c, TLB_WRITE);
}

void tlb_forget_data(struct mmu *m)
{
	for (unsigned c = 0; c < TLB_CTXS; c++) {
		flush_array(m, c, TLB_READ);
		flush_array(m, c, TLB_WRITE);
	}
}

static bool seen(const u64 *set, u64 page)
{
	return set[page / 64 % 64] >> (page % 64) & 1;
}

static void note(u64 *set, u64 page)
{
	set[page / 64 % 64] |= BIT(page % 64);
}

void tlb_note_large(struct mmu *m, gva_t gva, unsigned bits)
{
	if (bits > 22)
		m->huge_pages_seen = true;
	note(m->large_seen, gva >> 21);
	if (bits == 22)
		note(m->large_seen, gva >> 21 ^ 1);
}

void tlb_flush_page(struct mmu *m, gva_t gva)
{
	u64 page = gva & PAGE_MASK;

	bool large = m->huge_pages_seen || seen(m->large_seen, gva >> 21);

	if (large || seen(m->exec_seen, gva >> PAGE_SHIFT)) {
		if (m->paging == PAGING_64 && !(gva >> 63))
			m->flushes_local++;
		else
			m->flushes++;
	}
	if (large) {
		sift(m, is_elsewhere, gva);
		return;
	}
	for (unsigned c = 0; c < TLB_CTXS; c++)
		for (unsigned k = 0; k < TLB_KINDS; k++) {
			struct tlb_entry *e = &m->tlb[c][k].e[(gva >> PAGE_SHIFT) & (TLB_SIZE - 1)];

			if (e->tag == page)
				e->tag = TLB_DEAD;
		}
}

void tlb_install(struct mmu *m, gva_t gva, u8 *hva, enum tlb_ctx ctx, enum tlb_kind kind, bool global)
{
	unsigned index = (gva >> PAGE_SHIFT) & (TLB_SIZE - 1);
	struct tlb_entry *e = &m->tlb[ctx][kind].e[index];

	if (kind == TLB_EXEC)
		note(m->exec_seen, gva >> PAGE_SHIFT);
	if (ctx == TLB_USER_AC)
		return;
	if (e->tag == TLB_EMPTY)
		m->filled[ctx][kind][m->filled_n[ctx][kind]++] = (u16)index;
	if (global)
		m->global[ctx][kind][index / 64] |= BIT(index % 64);
	else
		m->global[ctx][kind][index / 64] &= ~BIT(index % 64);
	e->tag = gva & PAGE_MASK;
	e->add = (u64)(uintptr_t)hva - gva;
}

void tlb_drop_writes_to(struct mmu *m, const u8 *hva_page)
{
	for (unsigned c = 0; c < TLB_CTXS; c++)
		for (unsigned n = 0; n < m->filled_n[c][TLB_WRITE]; n++) {
			struct tlb_entry *e = &m->tlb[c][TLB_WRITE].e[m->filled[c][TLB_WRITE][n]];

			if (!(e->tag & 1) && e->tag + e->add == (u64)(uintptr_t)hva_page)
				e->tag = TLB_DEAD;
		}
}

void mmu_set_watch(struct mmu *m, unsigned n, gva_t gva, unsigned len, unsigned access)
{
	m->watch[n].gva = gva;
	m->watch[n].len = (u8)len;
	m->watch[n].access = (u8)access;
	m->watching = false;
	for (unsigned k = 0; k < WATCH_MAX; k++)
		m->watching |= m->watch[k].len != 0;
	tlb_flush(m);
}

bool watch_covers_page(const struct mmu *m, gva_t gva)
{
	for (unsigned n = 0; n < WATCH_MAX; n++)
		if (m->watch[n].len && ((m->watch[n].gva ^ gva) & PAGE_MASK) == 0)
			return true;
	return false;
}

void mem_watch_code(struct mmu *m, gpa_t gpa)
{
	struct memslot *s = memslot_find(m->vm, gpa);
	u64 page;

	if (!s)
		return;
	page = (gpa - s->gpa) >> PAGE_SHIFT;
	atomic_fetch_or(&s->code[page / 64], BIT(page % 64));
	/* Even when the bit was set already: another vCPU may have set it after our entry was filled. */
	tlb_drop_writes_to(m, s->hva + (page << PAGE_SHIFT));
}

void mem_unwatch_code(struct mmu *m, gpa_t gpa)
{
	struct memslot *s = memslot_find(m->vm, gpa);
	u64 page;

	if (!s)
		return;
	page = (gpa - s->gpa) >> PAGE_SHIFT;
	atomic_fetch_and(&s->code[page / 64], ~BIT(page % 64));
}
