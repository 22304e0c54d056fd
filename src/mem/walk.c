/*
 * walk.c: GVA → GPA through the page tables of every paging mode (Intel SDM vol. 3, 4.3 to 4.8), with accessed and
 * dirty bits and #PF error codes.
 *
 * Invariants: A and D bits are set only when the whole translation is permitted, with a compare-and-exchange on guest
 * memory, so that another vCPU's change of the entry is never lost; a page-table entry outside all memslots counts as
 * not present.
 */
#include "mem_impl.h"

#include "../base/usercopy.h"
#include "../x86/pte.h"
#include "../x86/regs.h"

#define WALK_MAX 4

struct walk {
	gpa_t gpa;
	unsigned bits; /* log2 of the page size */
	bool writable, user, nx;
	bool gone; /* a table is in memory that the client does not have */
	/* entries used, top first, for the A/D updates */
	unsigned n;
	struct {
		gpa_t at;
		u64 val;
	} entry[WALK_MAX];
};

/* What went wrong with a walk: PF_P and PF_RSVD bits, or WALK_OK. */
#define WALK_OK 0xffffffffu

static bool read_entry(const struct mmu *m, struct walk *w, gpa_t at, unsigned size, u64 *val)
{
	const u8 *p = gpa_to_hva(m->vm, at);

	if (!p)
		return false;
	if (unlikely(!user_reachable(p, false))) {
		w->gone = true;
		return false;
	}
	if (size == 4)
		*val = __atomic_load_n((const u32 *)(const void *)p, __ATOMIC_RELAXED);
	else
		*val = __atomic_load_n((const u64 *)(const void *)p, __ATOMIC_RELAXED);
	return true;
}

static void note_entry(struct walk *w, gpa_t at, u64 val)
{
	w->entry[w->n].at = at;
	w->entry[w->n].val = val;
	w->n++;
}

static u32 walk_32(const struct mmu *m, gva_t gva, struct walk *w)
{
	gpa_t at = (m->cr3 & 0xfffff000u) + ((gva >> 22) & 0x3ff) * 4;
	u64 pde, pte;

	if (!read_entry(m, w, at, 4, &pde) || !(pde & PTE_P))
		return 0;
	note_entry(w, at, pde);
	w->writable = pde & PTE_W;
	w->user = pde & PTE_U;
	if ((pde & PTE_PS) && m->pse) {
		/* PSE-36: bits 20:13 are address bits 39:32; bit 21 is reserved. */
		if (pde & BIT(21))
			return PF_P | PF_RSVD;
		w->bits = 22;
		w->gpa = (pde & 0xffc00000u) | ((pde >> 13 & 0xff) << 32) | (gva & 0x3fffff);
		return WALK_OK;
	}
	at = (pde & 0xfffff000u) + ((gva >> 12) & 0x3ff) * 4;
	if (!read_entry(m, w, at, 4, &pte) || !(pte & PTE_P))
		return 0;
	note_entry(w, at, pte);
	w->writable &= !!(pte & PTE_W);
	w->user &= !!(pte & PTE_U);
	w->bits = 12;
	w->gpa = (pte & 0xfffff000u) | (gva & 0xfff);
	return WALK_OK;
}

/* PAE (levels 2, 1) and 4-level (levels 4 to 1) tables, from the table at `table`. */
static u32 walk_64(const struct mmu *m, gva_t gva, gpa_t table, unsigned level, struct walk *w)
{
	u64 rsvd = (0x000fffffffffffffull & ~m->phys_mask) | (m->nx ? 0 : PTE_NX);

	if (m->paging == PAGING_PAE)
		rsvd |= 0x7ff0000000000000ull;
	for (;; level--) {
		unsigned shift = 3 + 9 * level;
		gpa_t at = table + ((gva >> shift) & 0x1ff) * 8;
		u64 e;

		if (!read_entry(m, w, at, 8, &e) || !(e & PTE_P))
			return 0;
		if (e & rsvd)
			return PF_P | PF_RSVD;
		note_entry(w, at, e);
		w->writable &= !!(e & PTE_W);
		w->user &= !!(e & PTE_U);
		w->nx |= !!(e & PTE_NX);
		table = e & m->phys_mask & PAGE_MASK;
		if (level > 1 && (e & PTE_PS)) {
			u64 low = BIT(shift) - 1;

			/* Only 2 MiB, and 1 GiB where offered; the address bits below the page (but PAT's bit 12) are
			 * 0. */
			if (level == 4 || (level == 3 && !m->gbpages) || (e & low & ~0x1fffull))
				return PF_P | PF_RSVD;
			w->bits = shift;
			w->gpa = (e & m->phys_mask & ~low) | (gva & low);
			return WALK_OK;
		}
		if (level == 1) {
			w->bits = 12;
			w->gpa = table | (gva & 0xfff);
			return WALK_OK;
		}
	}
}

static u32 walk(const struct mmu *m, gva_t gva, struct walk *w)
{
	w->n = 0;
	w->gone = false;
	w->writable = w->user = true;
	w->nx = false;
	switch (m->paging) {
	case PAGING_OFF:
		w->gpa = gva;
		w->bits = 32;
		return WALK_OK;
	case PAGING_32:
		return walk_32(m, gva, w);
	case PAGING_PAE: {
		u64 pdpte = m->pdpte[(gva >> 30) & 3];

		if (!(pdpte & PTE_P))
			return 0;
		return walk_64(m, gva, pdpte & m->phys_mask & PAGE_MASK, 2, w);
	}
	default:
		return walk_64(m, gva, m->cr3 & m->phys_mask & PAGE_MASK, 4, w);
	}
}

static bool permitted(const struct mmu *m, const struct walk *w, unsigned access, enum tlb_ctx ctx)
{
	if (tlb_ctx_is_user(ctx)) {
		if (!w->user || ((access & MEM_WRITE) && !w->writable))
			return false;
	} else {
		if ((access & MEM_WRITE) && !w->writable && m->wp)
			return false;
		if ((access & MEM_EXEC) && w->user && m->smep)
			return false;
		if ((access & (MEM_READ | MEM_WRITE)) && w->user && m->smap && ctx == TLB_SUPER)
			return false;
	}
	return !((access & MEM_EXEC) && w->nx && m->nx);
}

/* Sets A in every entry used and D in the last for a write. False: an entry changed meanwhile, walk again. */
static bool set_accessed_dirty(struct mmu *m, struct walk *w, bool write)
{
	for (unsigned n = 0; n < w->n; n++) {
		u64 old = w->entry[n].val;
		u64 want = old | PTE_A | (write && n == w->n - 1 ? PTE_D : 0);
		gpa_t at = w->entry[n].at;
		struct memslot *slot;
		u8 *p;
		bool ok;

		if (want == old)
			continue;
		slot = memslot_find(m->vm, at);
		if (!slot || (slot->flags & MEMSLOT_READONLY))
			continue;
		p = slot->hva + (at - slot->gpa);
		if (unlikely(!user_reachable(p, true))) {
			w->gone = true;
			return true;
		}
		if (likely(!m->store_hook) || !m->store_hook(m, ~0ull, at, p, 8, TLB_SUPER, false))
			if (memslot_has_code(slot, at))
				m->ops->code_written(m, at, 8);
		if (m->paging == PAGING_32) {
			u32 expect = (u32)old;

			ok = __atomic_compare_exchange_n((u32 *)(void *)p, &expect, (u32)want, false, __ATOMIC_SEQ_CST,
			                                 __ATOMIC_SEQ_CST);
		} else {
			ok = __atomic_compare_exchange_n((u64 *)(void *)p, &old, want, false, __ATOMIC_SEQ_CST,
			                                 __ATOMIC_SEQ_CST);
		}
		if (!ok)
			return false;
		memslot_mark_dirty(slot, at);
	}
	return true;
}

int gva_to_gpa(struct mmu *m, gva_t gva, unsigned access, enum tlb_ctx ctx, gpa_t *gpa, unsigned *page_bits)
{
	struct walk w;
	u32 rc;

	if (m->paging == PAGING_OFF) {
		m->walk_global = false;
		*gpa = gva;
		if (page_bits)
			*page_bits = 12;
		return MEM_OK;
	}
	do {
		rc = walk(m, gva, &w);
		if (rc == WALK_OK && !permitted(m, &w, access, ctx))
			rc = PF_P;
		if (unlikely(w.gone))
			return MEM_GONE;
		if (rc != WALK_OK) {
			m->fault.gva = gva;
			m->fault.error = rc | (access & MEM_WRITE ? PF_W : 0) | (tlb_ctx_is_user(ctx) ? PF_U : 0);
			/* The I bit tells a fetch apart only where fetches can be refused. */
			if ((access & MEM_EXEC) && (m->smep || (m->nx && m->paging != PAGING_32)))
				m->fault.error |= PF_ID;
			return MEM_FAULT;
		}
	} while (!set_accessed_dirty(m, &w, access & MEM_WRITE));
	if (unlikely(w.gone))
		return MEM_GONE;
	if (w.bits > 12)
		tlb_note_large(m, gva, w.bits);
	m->walk_global = m->pge && (w.entry[w.n - 1].val & PTE_G);
	*gpa = w.gpa;
	if (page_bits)
		*page_bits = w.bits;
	return MEM_OK;
}

bool gva_peek(const struct mmu *m, gva_t gva, gpa_t *gpa, bool *writable, bool *user)
{
	struct walk w;

	if (walk(m, gva, &w) != WALK_OK)
		return false;
	*gpa = w.gpa;
	*writable = w.writable;
	*user = w.user;
	return true;
}

bool mmu_load_pdptes(struct mmu *m, u64 cr3)
{
	struct walk w;
	u64 val[4];

	for (unsigned n = 0; n < 4; n++) {
		if (!read_entry(m, &w, (cr3 & 0xffffffe0u) + 8 * n, 8, &val[n]))
			return false;
		/* Reserved: 2:1, 8:5 and all above the physical width (SDM vol. 3, 4.4.1). */
		if ((val[n] & PTE_P) && (val[n] & (0x1e6 | ~m->phys_mask)))
			return false;
	}
	for (unsigned n = 0; n < 4; n++)
		m->pdpte[n] = val[n];
	return true;
}
