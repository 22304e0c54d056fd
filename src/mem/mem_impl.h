/*
 * mem_impl.h: what the files of src/mem share among themselves.
 */
#ifndef DEVKVM_MEM_MEM_IMPL_H
#define DEVKVM_MEM_MEM_IMPL_H

#include "mem.h"

/* ---- tlb.c ------------------------------------------------------------------------------------------------------- */

/* A translation of 2^bits bytes (more than a page) is about to be used. */
void tlb_note_large(struct mmu *m, gva_t gva, unsigned bits);
/* Code is fetched from the page of `gva`. */
void tlb_note_exec(struct mmu *m, gva_t gva);
/* Makes [page of gva] reachable at `hva` (the host address of `gva` itself). */
void tlb_install(struct mmu *m, gva_t gva, u8 *hva, enum tlb_ctx ctx, enum tlb_kind kind, bool global);

/* Is there a breakpoint for such an access in the page? */
bool watch_covers_page(const struct mmu *m, gva_t gva, unsigned access);

static inline bool memslot_has_code(const struct memslot *s, gpa_t gpa)
{
	u64 page = (gpa - s->gpa) >> PAGE_SHIFT;

	return atomic_load_explicit(&s->code[page / 64], memory_order_relaxed) & BIT(page % 64);
}

#endif
