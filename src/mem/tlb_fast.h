/*
 * tlb_fast.h: the inline TLB lookup, nothing else.
 *
 * Invariants:
 *  - an entry matches only if the whole access may be done straight through the host pointer: translation present and
 *    permitted for this access kind and context, RAM, A set (and D for writes), not watched by a debug register; for
 *    writes also: page holds no cached code, is not waiting to be marked dirty, is not read-only;
 *  - tag is the GVA's page address; an empty entry has that of a page which never comes here, half an array away
 *    (translated code subtracts tags from addresses and looks at the difference), or, before its first use, 0 where
 *    that is as good;
 *  - comparing the page of the access' last byte with the tag refuses page-crossing accesses for free.
 */
#ifndef DEVKVM_MEM_TLB_FAST_H
#define DEVKVM_MEM_TLB_FAST_H

#include "../base/types.h"

#define TLB_BITS 12
#define TLB_SIZE (1u << TLB_BITS)

/* Who asks: a set of TLB arrays each. */
enum tlb_ctx {
	TLB_SUPER,    /* CPL < 3, or an implicit system access: SMAP enforced */
	TLB_SUPER_AC, /* CPL < 3 with EFLAGS.AC: SMAP lifted */
	TLB_USER,     /* CPL 3 */
	TLB_USER_AC,  /* CPL 3 with alignment checks: its arrays stay empty, the slow path checks */
	TLB_CTXS
};

static inline bool tlb_ctx_is_user(enum tlb_ctx ctx)
{
	return ctx >= TLB_USER;
}

enum tlb_kind { TLB_READ, TLB_WRITE, TLB_EXEC, TLB_KINDS };

struct tlb_entry {
	u64 tag;
	u64 add; /* HVA - GVA */
};

struct tlb_set {
	struct tlb_entry e[TLB_SIZE];
};

/* The tag of an empty entry. */
static inline u64 tlb_empty(unsigned index)
{
	return (u64)(index ^ TLB_SIZE / 2) << PAGE_SHIFT;
}

static inline u8 *tlb_lookup(const struct tlb_set *set, gva_t gva, unsigned size)
{
	const struct tlb_entry *e = &set->e[(gva >> PAGE_SHIFT) & (TLB_SIZE - 1)];

	if (likely(((gva + size - 1) & PAGE_MASK) == e->tag))
		return (u8 *)(uintptr_t)(gva + e->add);
	return NULL;
}

#endif
