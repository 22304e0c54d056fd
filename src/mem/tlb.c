/*
 * tlb.c: filling and emptying the TLB that tlb_fast.h reads.
 *
 * Invariants: an entry that is not empty has its bit in local[ctx][kind] or, that of a global page, in
 * global[ctx][kind]; never in both. The bits' words that are not 0 have theirs in the sums, so that a flush costs what
 * was filled. An entry killed singly is empty and keeps its bit until the next flush.
 *
 * Address spaces (PCIDs, SDM vol. 3, 4.10.1): the entries are those of the current one; what was in use of another when
 * it was left lies in a stash, and comes back with it. A stash holds no entry of a global page. Whatever drops write
 * entries voids those of every stash; a flush of everything empties them.
 */
#include "mem_impl.h"

#include <stddef.h>
#include <string.h>

#include "../x86/pte.h"

void mmu_init(struct mmu *m, struct vm_mem *vm, const struct mmu_ops *ops)
{
	/* Not the large arrays: each page touched here is paid for by every new vCPU. They are zero, and a tag of 0
	 * is only taken for that of an access by the entries of page 0, and of the last page when it wraps. */
	memset(m, 0, offsetof(struct mmu, stash));
	for (unsigned n = 0; n < TLB_STASHES; n++)
		m->stash[n].used = 0;
	m->vm = vm;
	m->phys_mask = PHYS_MASK;
	m->ops = ops;
	for (unsigned c = 0; c < TLB_CTXS; c++)
		for (unsigned k = 0; k < TLB_KINDS; k++)
			for (unsigned n = 0; n < TLB_SIZE; n += TLB_SIZE - 1)
				m->tlb[c][k].e[n].tag = tlb_empty(n);
}

/* The next set bit of `words` (taken out of *sum and the words), or -1. Only *sum's words are looked at. */
static int next_bit(u64 *words, u64 *sum)
{
	while (*sum) {
		unsigned w = (unsigned)__builtin_ctzll(*sum);

		if (words[w]) {
			unsigned b = (unsigned)__builtin_ctzll(words[w]);

			words[w] &= words[w] - 1;
			return (int)(w * 64 + b);
		}
		*sum &= *sum - 1;
	}
	return -1;
}

static void flush_bits(struct tlb_set *set, struct tlb_bits *bits)
{
	int n;

	while ((n = next_bit(bits->word, &bits->sum)) >= 0)
		set->e[n].tag = tlb_empty((unsigned)n);
}

static void flush_array(struct mmu *m, unsigned ctx, unsigned kind)
{
	flush_bits(&m->tlb[ctx][kind], &m->local[ctx][kind]);
	flush_bits(&m->tlb[ctx][kind], &m->global[ctx][kind]);
}

static void set_bit(struct tlb_bits *bits, unsigned n)
{
	bits->word[n / 64] |= BIT(n % 64);
	bits->sum |= BIT(n / 64);
}

/* ---- address spaces that are not in use ------------------------------------------------------------------------- */

static struct tlb_stash *stash_find(struct mmu *m, u16 pcid)
{
	for (unsigned n = 0; n < TLB_STASHES; n++)
		if (m->stash[n].used && m->stash[n].pcid == pcid)
			return &m->stash[n];
	return NULL;
}

static void stash_drop_all(struct mmu *m)
{
	for (unsigned n = 0; n < TLB_STASHES; n++)
		m->stash[n].used = 0;
}

static void stash_void_writes(struct mmu *m)
{
	for (unsigned n = 0; n < TLB_STASHES; n++)
		m->stash[n].no_writes = true;
}

static struct tlb_stash *stash_oldest(struct mmu *m)
{
	struct tlb_stash *s = &m->stash[0];

	for (unsigned n = 1; n < TLB_STASHES; n++)
		if (m->stash[n].used < s->used)
			s = &m->stash[n];
	return s;
}

static void stash_save(struct mmu *m, struct tlb_stash *s, u16 pcid)
{
	s->pcid = pcid;
	s->used = ++m->stash_clock;
	s->serial = m->flushes_local;
	s->no_writes = false;
	s->n = 0;
	for (unsigned c = 0; c < TLB_CTXS; c++)
		for (unsigned k = 0; k < TLB_KINDS; k++) {
			struct tlb_set *set = &m->tlb[c][k];
			struct tlb_bits *bits = &m->local[c][k];
			int n;

			while ((n = next_bit(bits->word, &bits->sum)) >= 0) {
				struct tlb_entry *e = &set->e[n];

				if (e->tag != tlb_empty((unsigned)n) && s->n < TLB_STASHED)
					s->e[s->n++] = (struct tlb_stashed){*e, (u16)n, (u8)c, (u8)k};
				e->tag = tlb_empty((unsigned)n);
			}
		}
}

static void stash_restore(struct mmu *m, const struct tlb_stash *s)
{
	for (unsigned k = 0; k < s->n; k++) {
		const struct tlb_stashed *from = &s->e[k];
		struct tlb_entry *to = &m->tlb[from->ctx][from->kind].e[from->index];

		if (to->tag != tlb_empty(from->index) || (from->kind == TLB_WRITE && s->no_writes))
			continue;
		/* An entry killed singly: its bit may stand with the global ones. */
		m->global[from->ctx][from->kind].word[from->index / 64] &= ~BIT(from->index % 64);
		set_bit(&m->local[from->ctx][from->kind], from->index);
		if (from->kind == TLB_EXEC)
			tlb_note_exec(m, from->e.tag);
		*to = from->e;
	}
}

void tlb_switch(struct mmu *m, u16 from, u16 to, bool keep)
{
	struct tlb_stash *s = stash_find(m, from), *next = stash_find(m, to);

	if (!s)
		s = stash_oldest(m);
	if (s == next)
		next = NULL;
	stash_save(m, s, from);
	if (next && keep) {
		m->flushes_local = next->serial;
		stash_restore(m, next);
	} else {
		m->flushes_local = ++m->local_serial;
	}
	if (next)
		next->used = 0;
}

void tlb_drop_pcid(struct mmu *m, u16 pcid)
{
	struct tlb_stash *s = stash_find(m, pcid);

	if (s)
		s->used = 0;
}

/* ---- flushes ---------------------------------------------------------------------------------------------------- */

void tlb_flush(struct mmu *m)
{
	for (unsigned c = 0; c < TLB_CTXS; c++)
		for (unsigned k = 0; k < TLB_KINDS; k++)
			flush_array(m, c, k);
	stash_drop_all(m);
	m->huge_pages_seen = false;
	memset(m->large_seen, 0, sizeof(m->large_seen));
	memset(m->exec_seen, 0, sizeof(m->exec_seen));
	m->flushes++;
}

void tlb_flush_local(struct mmu *m)
{
	if (!m->pge && !m->pcide) {
		tlb_flush(m);
		return;
	}
	for (unsigned c = 0; c < TLB_CTXS; c++)
		for (unsigned k = 0; k < TLB_KINDS; k++)
			flush_bits(&m->tlb[c][k], &m->local[c][k]);
	m->flushes_local = ++m->local_serial;
}

void tlb_flush_not_global(struct mmu *m)
{
	stash_drop_all(m);
	tlb_flush_local(m);
}

void tlb_flush_writes(struct mmu *m)
{
	for (unsigned c = 0; c < TLB_CTXS; c++)
		flush_array(m, c, TLB_WRITE);
	stash_void_writes(m);
}

void tlb_forget_data(struct mmu *m)
{
	for (unsigned c = 0; c < TLB_CTXS; c++) {
		flush_array(m, c, TLB_READ);
		flush_array(m, c, TLB_WRITE);
	}
	stash_drop_all(m);
}

/* Calls `what` for the entry of each bit. */
static void each_entry(struct mmu *m, unsigned ctx, unsigned kind,
                       void (*what)(struct tlb_entry *e, u64 empty, u64 arg), u64 arg)
{
	const struct tlb_bits *both[] = {&m->local[ctx][kind], &m->global[ctx][kind]};

	for (unsigned k = 0; k < ARRAY_SIZE(both); k++)
		for (u64 sum = both[k]->sum; sum; sum &= sum - 1) {
			unsigned w = (unsigned)__builtin_ctzll(sum);

			for (u64 bits = both[k]->word[w]; bits; bits &= bits - 1) {
				unsigned n = w * 64 + (unsigned)__builtin_ctzll(bits);

				what(&m->tlb[ctx][kind].e[n], tlb_empty(n), arg);
			}
		}
}

/* Pages are at most 1 GiB large. */
static void drop_near(struct tlb_entry *e, u64 empty, u64 gva)
{
	if (!((e->tag ^ gva) >> 30))
		e->tag = empty;
}

static void drop_leading_to(struct tlb_entry *e, u64 empty, u64 hva_page)
{
	if (e->tag != empty && e->tag + e->add == hva_page)
		e->tag = empty;
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

/* A global page may be the other address spaces' too (SDM vol. 3, 4.10.4.1). */
static void new_serials(struct mmu *m)
{
	m->flushes_local = ++m->local_serial;
	for (unsigned n = 0; n < TLB_STASHES; n++)
		m->stash[n].serial = ++m->local_serial;
}

void tlb_note_exec(struct mmu *m, gva_t gva)
{
	note(m->exec_seen, gva >> PAGE_SHIFT);
}

void tlb_flush_page(struct mmu *m, gva_t gva)
{
	u64 page = gva & PAGE_MASK;

	bool large = m->huge_pages_seen || seen(m->large_seen, gva >> 21);

	if (large || seen(m->exec_seen, gva >> PAGE_SHIFT)) {
		/* Without global pages whoever keeps translations takes supervisor code for that of all spaces. */
		if (m->pge ? m->paging == PAGING_64 && !(gva >> 63) : m->pcide)
			new_serials(m);
		else
			m->flushes++;
	}
	for (unsigned c = 0; c < TLB_CTXS; c++)
		for (unsigned k = 0; k < TLB_KINDS; k++) {
			unsigned n = (gva >> PAGE_SHIFT) & (TLB_SIZE - 1);

			if (large)
				each_entry(m, c, k, drop_near, gva);
			else if (m->tlb[c][k].e[n].tag == page)
				m->tlb[c][k].e[n].tag = tlb_empty(n);
		}
}

void tlb_install(struct mmu *m, gva_t gva, u8 *hva, enum tlb_ctx ctx, enum tlb_kind kind, bool global)
{
	unsigned index = (gva >> PAGE_SHIFT) & (TLB_SIZE - 1);
	struct tlb_entry *e = &m->tlb[ctx][kind].e[index];
	struct tlb_bits *in = global ? &m->global[ctx][kind] : &m->local[ctx][kind];
	struct tlb_bits *out = global ? &m->local[ctx][kind] : &m->global[ctx][kind];

	if (kind == TLB_EXEC)
		tlb_note_exec(m, gva);
	if (ctx == TLB_USER_AC)
		return;
	out->word[index / 64] &= ~BIT(index % 64);
	set_bit(in, index);
	e->tag = gva & PAGE_MASK;
	e->add = (u64)(uintptr_t)hva - gva;
}

/* Kills the write entries that lead to the host page. */
static void drop_writes_to(struct mmu *m, const u8 *hva_page)
{
	for (unsigned c = 0; c < TLB_CTXS; c++)
		each_entry(m, c, TLB_WRITE, drop_leading_to, (u64)(uintptr_t)hva_page);
	stash_void_writes(m);
}

void tlb_drop_memory(struct mmu *m, const u8 *hva, u64 size)
{
	u64 from = (u64)(uintptr_t)hva & PAGE_MASK, end = (u64)(uintptr_t)hva + size;
	bool code = false;

	for (unsigned c = 0; c < TLB_CTXS; c++)
		for (unsigned k = 0; k < TLB_KINDS; k++) {
			struct tlb_bits *both[] = {&m->local[c][k], &m->global[c][k]};

			for (unsigned w = 0; w < TLB_SIZE / 64; w++)
				for (u64 bits = both[0]->word[w] | both[1]->word[w]; bits; bits &= bits - 1) {
					unsigned n = w * 64 + (unsigned)__builtin_ctzll(bits);
					struct tlb_entry *e = &m->tlb[c][k].e[n];

					if (e->tag == tlb_empty(n) || e->tag + e->add - from >= end - from)
						continue;
					e->tag = tlb_empty(n);
					code |= k == TLB_EXEC;
				}
		}
	for (unsigned n = 0; n < TLB_STASHES; n++) {
		struct tlb_stash *s = &m->stash[n];

		for (u32 k = 0; s->used && k < s->n;) {
			if (s->e[k].e.tag + s->e[k].e.add - from >= end - from) {
				k++;
				continue;
			}
			code |= s->e[k].kind == TLB_EXEC;
			s->e[k] = s->e[--s->n];
		}
	}
	if (code)
		m->flushes++;
}

void mmu_set_watch(struct mmu *m, unsigned n, gva_t gva, unsigned len, unsigned access)
{
	if (m->watch[n].len == len && (!len || (m->watch[n].gva == gva && m->watch[n].access == access)))
		return;
	m->watch[n].gva = gva;
	m->watch[n].len = (u8)len;
	m->watch[n].access = (u8)access;
	m->watching = 0;
	for (unsigned k = 0; k < WATCH_MAX; k++)
		if (m->watch[k].len)
			m->watching |= m->watch[k].access;
	tlb_flush(m);
}

bool watch_covers_page(const struct mmu *m, gva_t gva, unsigned access)
{
	for (unsigned n = 0; n < WATCH_MAX && (m->watching & access); n++)
		if (m->watch[n].len && (m->watch[n].access & access) && ((m->watch[n].gva ^ gva) & PAGE_MASK) == 0)
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
	drop_writes_to(m, s->hva + (page << PAGE_SHIFT));
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
