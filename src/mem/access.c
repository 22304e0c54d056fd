/*
 * access.c: the slow path of guest memory accesses, shared by every engine: page-crossing, MMIO, dirty log, code pages,
 * data breakpoints, TLB fill.
 *
 * Invariants: all pages of an access are translated before a byte moves, so that a fault on the second half writes
 * nothing; an instruction's MMIO reads are asked for in order and replay from mmu->reads when it runs again; its MMIO
 * writes are posted in mmu->writes and leave once it is complete.
 */
#include "mem_impl.h"

#include <string.h>

#include "../base/bug.h"
#include "../base/usercopy.h"

/* One page's part of an access: RAM (hva) or MMIO (hva NULL). */
struct part {
	gva_t gva;
	gpa_t gpa;
	unsigned len;
	struct memslot *slot;
	u8 *hva;
	bool global;
};

/* The breakpoints that an access hits. */
static u8 watch_hits(const struct mmu *m, gva_t gva, unsigned size, unsigned access)
{
	u8 hits = 0;

	for (unsigned n = 0; n < WATCH_MAX && (m->watching & access); n++)
		/* Differences, for the end of the address space. */
		if (m->watch[n].len && (m->watch[n].access & access) &&
		    (gva - m->watch[n].gva < m->watch[n].len || m->watch[n].gva - gva < size))
			hits |= (u8)(1u << n);
	return hits;
}

/* An access of the instruction is to be made: not now, when its hit would not be seen. */
static inline bool watch_refuses(const struct mmu *m, gva_t gva, unsigned size, unsigned access)
{
	return unlikely(m->watching) && m->watch_stops && watch_hits(m, gva, size, access);
}

static inline void watch_note(struct mmu *m, gva_t gva, unsigned size, unsigned access)
{
	if (unlikely(m->watching))
		m->watch_hit |= watch_hits(m, gva, size, access);
}

/*
 * SDM vol. 3, table 6-7 (vector 17). What is larger than 8 bytes consists of quadwords (x87 extended, SSE, AVX), but
 * for far pointers (6) and the x87 environments and images (14, 94 with 16-bit operands; 28, 108).
 */
static bool misaligned(gva_t gva, unsigned size)
{
	switch (size) {
	case 1:
		return false;
	case 2:
	case 14:
	case 94:
		return gva & 1;
	case 8:
	case 10:
	case 16:
	case 32:
		return gva & 7;
	default:
		return gva & 3;
	}
}

/* Translates one page's part and fills the TLB where the fast path may take over from now on. */
static int translate(struct mmu *m, gva_t gva, unsigned len, unsigned access, enum tlb_ctx ctx, struct part *p)
{
	int rc = gva_to_gpa(m, gva, access, ctx, &p->gpa, NULL);

	if (rc != MEM_OK)
		return rc;
	m->tlb_misses++;
	p->gva = gva;
	p->len = len;
	p->global = m->walk_global;
	p->slot = memslot_find(m->vm, p->gpa);
	p->hva = p->slot ? p->slot->hva + (p->gpa - p->slot->gpa) : NULL;
	if (p->hva && (access & MEM_WRITE) && (p->slot->flags & MEMSLOT_READONLY))
		p->hva = NULL;
	if (!p->hva)
		return MEM_OK;
	memslot_back(p->slot, p->gpa);
	if (unlikely(!user_reachable(p->hva, access & MEM_WRITE)))
		return MEM_GONE;
	if (unlikely(m->watching) && watch_covers_page(m, gva, access & MEM_EXEC ? MEM_EXEC : MEM_READ))
		return MEM_OK;
	if (access & MEM_EXEC) {
		tlb_install(m, gva, p->hva, ctx, TLB_EXEC, p->global);
		return MEM_OK;
	}
	/* Permission to write implies permission to read, but not the other way round (and D is not set by reads). */
	tlb_install(m, gva, p->hva, ctx, TLB_READ, p->global);
	return MEM_OK;
}

/* A store to RAM is about to happen: everyone who must know hears of it; later stores go fast where they may. */
static void ram_store_begins(struct mmu *m, const struct part *p, enum tlb_ctx ctx)
{
	if (unlikely(m->store_hook) && m->store_hook(m, p->gva, p->gpa, p->hva, p->len, ctx, p->global))
		return;
	memslot_mark_dirty(p->slot, p->gpa);
	if (memslot_has_code(p->slot, p->gpa)) {
		m->ops->code_written(m, p->gpa, p->len);
		/* The engine may have given the page up: then it is plain data from now on. */
		if (memslot_has_code(p->slot, p->gpa))
			return;
	}
	if (unlikely(m->watching) && watch_covers_page(m, p->gva, MEM_WRITE))
		return;
	tlb_install(m, p->gva, p->hva, ctx, TLB_WRITE, p->global);
}

void mem_allow_write(struct mmu *m, gva_t gva, gpa_t gpa, enum tlb_ctx ctx, bool global)
{
	struct memslot *s = memslot_find(m->vm, gpa);

	if (!s || memslot_has_code(s, gpa) || (m->watching && watch_covers_page(m, gva, MEM_WRITE)))
		return;
	memslot_mark_dirty(s, gpa);
	tlb_install(m, gva, s->hva + (gpa - s->gpa), ctx, TLB_WRITE, global);
}

/* The walk does not look at the bits above. */
static bool canonical(gva_t gva)
{
	return (u64)((s64)(gva << 16) >> 16) == gva;
}

const u8 *mem_fill_exec(struct mmu *m, gva_t gva, enum tlb_ctx ctx)
{
	struct part p;

	if (!canonical(gva) || (unlikely(m->watching) && watch_covers_page(m, gva, MEM_EXEC)) ||
	    translate(m, gva, 1, MEM_EXEC, ctx, &p) != MEM_OK)
		return NULL;
	return p.hva;
}

/* Where the second page's part of a page-crossing access begins: linear addresses have 32 bits outside 64-bit mode. */
static gva_t next_page(const struct mmu *m, gva_t gva)
{
	gva_t next = (gva & PAGE_MASK) + PAGE_SIZE;

	return m->paging != PAGING_64 && gva <= 0xffffffffu ? (u32)next : next;
}

/* RAM to be read within a page; NULL: it is not to be had just so. */
static const u8 *ram_at(struct mmu *m, gva_t gva, unsigned len)
{
	const u8 *hit = tlb_lookup(&m->tlb[m->ctx][TLB_READ], gva, len);
	struct part p;

	if (hit)
		return hit;
	return canonical(gva) && translate(m, gva, len, MEM_READ, m->ctx, &p) == MEM_OK ? p.hva : NULL;
}

/* Without the C library's memcpy(), which uses vector registers. */
static void copy_general(u8 *to, const u8 *from, u64 len)
{
	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(len) : : "memory");
}

static enum mem_filled fill_crossing(struct mmu *m, gva_t gva, unsigned size)
{
	unsigned first = (unsigned)(PAGE_SIZE - (gva & ~PAGE_MASK));
	u8 *to = m->crossing + gva % CROSSING_MAX;
	const u8 *a, *b;

	if (size > CROSSING_MAX || !(a = ram_at(m, gva, first)) || !(b = ram_at(m, next_page(m, gva), size - first)))
		return FILL_NONE;
	copy_general(to, a, first);
	copy_general(to + first, b, size - first);
	m->crossing_add = (u64)(uintptr_t)to - gva;
	return FILL_CROSSING;
}

enum mem_filled mem_fill(struct mmu *m, gva_t gva, unsigned size, enum tlb_kind kind)
{
	const struct tlb_set *set = &m->tlb[m->ctx][kind];
	struct part p;

	if (unlikely(m->store_hook) || !canonical(gva) || m->ctx == TLB_USER_AC)
		return FILL_NONE;
	if ((gva ^ (gva + size - 1)) & PAGE_MASK)
		return kind == TLB_READ && !watch_hits(m, gva, size, MEM_READ) ? fill_crossing(m, gva, size)
		                                                               : FILL_NONE;
	if (tlb_lookup(set, gva, size) ||
	    translate(m, gva, size, kind == TLB_WRITE ? MEM_WRITE : MEM_READ, m->ctx, &p) != MEM_OK || !p.hva)
		return FILL_NONE;
	if (kind == TLB_WRITE) {
		if (memslot_has_code(p.slot, p.gpa))
			return FILL_NONE;
		ram_store_begins(m, &p, m->ctx);
	}
	return tlb_lookup(set, gva, size) ? FILL_TLB : FILL_NONE;
}

/* Translates an access as one or two parts; *n says how many. */
static int translate_all(struct mmu *m, gva_t gva, unsigned size, unsigned access, enum tlb_ctx ctx, struct part p[2],
                         unsigned *n)
{
	unsigned first = (unsigned)(PAGE_SIZE - (gva & ~PAGE_MASK));
	int rc;

	*n = 1;
	if (size <= first)
		return translate(m, gva, size, access, ctx, &p[0]);
	if (BUG_ON(size - first > PAGE_SIZE))
		return MEM_BUG;
	rc = translate(m, gva, first, access, ctx, &p[0]);
	if (rc != MEM_OK)
		return rc;
	*n = 2;
	return translate(m, next_page(m, gva), size - first, access, ctx, &p[1]);
}

static int mmio_read(struct mmu *m, gpa_t gpa, u8 *dst, unsigned len)
{
	while (len) {
		unsigned n = len < 8 ? len : 8;

		if (m->next_read < m->n_reads) {
			const struct mmio_frag *f = &m->reads[m->next_read];

			if (f->gpa == gpa && f->len == n) {
				memcpy(dst, f->data, n);
				m->next_read++;
				goto next;
			}
			/* The client changed what the instruction does: the old answers are void. */
			m->n_reads = m->next_read;
		}
		m->mmio_req.gpa = gpa;
		m->mmio_req.len = (u8)n;
		return MEM_EXIT;
	next:
		gpa += n;
		dst += n;
		len -= n;
	}
	return MEM_OK;
}

static int mmio_write(struct mmu *m, gpa_t gpa, const u8 *src, unsigned len)
{
	while (len) {
		unsigned n = len < 8 ? len : 8;
		struct mmio_frag *f;

		if (m->n_writes == MMIO_WRITES_MAX)
			return MEM_BUG;
		f = &m->writes[m->n_writes++];
		f->gpa = gpa;
		f->len = (u8)n;
		memcpy(f->data, src, n);
		gpa += n;
		src += n;
		len -= n;
	}
	return MEM_OK;
}

void mmio_answer(struct mmu *m, const u8 *data)
{
	struct mmio_frag *f;

	if (m->n_reads == MMIO_READS_MAX)
		return;
	f = &m->reads[m->n_reads++];
	*f = m->mmio_req;
	memcpy(f->data, data, f->len);
}

const struct mmio_frag *mmio_write_pending(const struct mmu *m)
{
	return m->next_write < m->n_writes ? &m->writes[m->next_write] : NULL;
}

void mmio_write_taken(struct mmu *m)
{
	if (++m->next_write >= m->n_writes)
		m->next_write = m->n_writes = 0;
}

/* A move of 1, 2, 4 or 8 bytes is one host access, so that aligned ones are atomic for other threads. */
static void copy_once(void *dst, const void *src, unsigned len)
{
	switch (len) {
	case 1:
		memcpy(dst, src, 1);
		break;
	case 2:
		memcpy(dst, src, 2);
		break;
	case 4:
		memcpy(dst, src, 4);
		break;
	case 8:
		memcpy(dst, src, 8);
		break;
	default:
		memcpy(dst, src, len);
	}
}

/* Both parts of an access that crosses a page, when the TLB knows both: at[0], *first bytes; at[1], the rest. */
static bool crossing_hit(const struct mmu *m, const struct tlb_set *set, gva_t gva, unsigned size, u8 *at[2],
                         unsigned *first)
{
	*first = (unsigned)(PAGE_SIZE - (gva & ~PAGE_MASK));
	if (size <= *first || size - *first > PAGE_SIZE)
		return false;
	at[0] = tlb_lookup(set, gva, *first);
	at[1] = at[0] ? tlb_lookup(set, next_page(m, gva), size - *first) : NULL;
	return at[1] != NULL;
}

int mem_read(struct mmu *m, gva_t gva, void *dst, unsigned size, enum tlb_ctx ctx)
{
	const u8 *hit = tlb_lookup(&m->tlb[ctx][TLB_READ], gva, size);
	struct part p[2];
	unsigned n, first;
	int rc = MEM_ALIGN;
	u8 *to = dst, *at[2];

	/* Descriptor tables and stacks of exceptions are read from here, without a look at the TLB before. */
	if (likely(hit != NULL)) {
		copy_once(dst, hit, size);
		return MEM_OK;
	}
	if (crossing_hit(m, &m->tlb[ctx][TLB_READ], gva, size, at, &first)) {
		copy_once(to, at[0], first);
		copy_once(to + first, at[1], size - first);
		return MEM_OK;
	}
	if (watch_refuses(m, gva, size, MEM_READ))
		return MEM_STEP;
	if (likely(ctx != TLB_USER_AC) || !misaligned(gva, size))
		rc = translate_all(m, gva, size, MEM_READ, ctx, p, &n);
	if (rc != MEM_OK)
		return rc;
	for (unsigned k = 0; k < n; k++) {
		if (p[k].hva) {
			copy_once(to, p[k].hva, p[k].len);
		} else {
			rc = mmio_read(m, p[k].gpa, to, p[k].len);
			if (rc != MEM_OK)
				return rc;
		}
		to += p[k].len;
	}
	watch_note(m, gva, size, MEM_READ);
	return MEM_OK;
}

/* Stores to the translated parts. */
static int store_parts(struct mmu *m, struct part *p, unsigned n, const u8 *src, enum tlb_ctx ctx)
{
	int rc = MEM_OK;

	for (unsigned k = 0; k < n; k++) {
		if (p[k].hva) {
			ram_store_begins(m, &p[k], ctx);
			copy_once(p[k].hva, src, p[k].len);
		} else {
			rc = mmio_write(m, p[k].gpa, src, p[k].len);
			if (rc != MEM_OK)
				break;
		}
		src += p[k].len;
	}
	return rc;
}

int mem_write(struct mmu *m, gva_t gva, const void *src, unsigned size, enum tlb_ctx ctx)
{
	u8 *hit = tlb_lookup(&m->tlb[ctx][TLB_WRITE], gva, size), *at[2];
	struct part p[2];
	unsigned n, first;
	int rc = MEM_ALIGN;

	if (likely(hit != NULL)) {
		copy_once(hit, src, size);
		return MEM_OK;
	}
	if (crossing_hit(m, &m->tlb[ctx][TLB_WRITE], gva, size, at, &first)) {
		copy_once(at[0], src, first);
		copy_once(at[1], (const u8 *)src + first, size - first);
		return MEM_OK;
	}
	if (watch_refuses(m, gva, size, MEM_WRITE))
		return MEM_STEP;
	if (likely(ctx != TLB_USER_AC) || !misaligned(gva, size))
		rc = translate_all(m, gva, size, MEM_WRITE, ctx, p, &n);
	if (rc != MEM_OK)
		return rc;
	watch_note(m, gva, size, MEM_WRITE);
	return store_parts(m, p, n, src, ctx);
}

int mem_probe(struct mmu *m, gva_t gva, unsigned size, unsigned access, enum tlb_ctx ctx)
{
	struct part p[2];
	unsigned n;

	/* Operands that are one element; a range that is probed is checked when it is accessed. */
	if (ctx == TLB_USER_AC && (size == 2 || size == 4) && misaligned(gva, size))
		return MEM_ALIGN;
	return translate_all(m, gva, size, access, ctx, p, &n);
}

int mem_fetch(struct mmu *m, gva_t gva, enum tlb_ctx ctx, const u8 **hva, gpa_t *gpa)
{
	struct part p;
	int rc;

	if (unlikely(m->watching) && m->watch_stops && watch_covers_page(m, gva, MEM_EXEC))
		return MEM_STEP;
	rc = translate(m, gva, 1, MEM_EXEC, ctx, &p);
	if (rc != MEM_OK)
		return rc;
	if (!p.hva)
		return MEM_BUG;
	*hva = p.hva;
	*gpa = p.gpa;
	return MEM_OK;
}

int mem_open(struct mmu *m, gva_t gva, unsigned size, unsigned access, enum tlb_ctx ctx, bool locked,
             struct memref *ref)
{
	struct part p[2];
	unsigned n;
	u8 *to = ref->buf;
	int rc = MEM_ALIGN;

	if (watch_refuses(m, gva, size, access))
		return MEM_STEP;
	if (likely(ctx != TLB_USER_AC) || !misaligned(gva, size))
		rc = translate_all(m, gva, size, access, ctx, p, &n);
	if (rc != MEM_OK)
		return rc;
	ref->gva = gva;
	ref->size = (u16)size;
	ref->ctx = (u8)ctx;
	ref->locked = false;
	ref->direct = p[0].hva && (n == 1 || p[1].hva == p[0].hva + p[0].len);
	watch_note(m, gva, size, access);
	if (ref->direct) {
		for (unsigned k = 0; k < n && (access & MEM_WRITE); k++)
			ram_store_begins(m, &p[k], ctx);
		ref->p = p[0].hva;
		return MEM_OK;
	}
	if (locked && m->ops->bus_lock) {
		m->ops->bus_lock(m);
		ref->locked = true;
		/* Waiting for it counts as stopped: the slots may have changed under the host addresses found above. */
		rc = translate_all(m, gva, size, access, ctx, p, &n);
		if (rc != MEM_OK) {
			m->ops->bus_unlock(m);
			return rc;
		}
	}
	for (unsigned k = 0; k < 2; k++) {
		ref->part[k].len = 0;
		if (k >= n)
			continue;
		ref->part[k].hva = p[k].hva;
		ref->part[k].gpa = p[k].gpa;
		ref->part[k].len = (u16)p[k].len;
		if (p[k].hva) {
			if (access & MEM_WRITE)
				ram_store_begins(m, &p[k], ctx);
			copy_once(to, p[k].hva, p[k].len);
		} else if (access & MEM_READ) {
			rc = mmio_read(m, p[k].gpa, to, p[k].len);
			if (rc != MEM_OK) {
				if (ref->locked)
					m->ops->bus_unlock(m);
				return rc;
			}
		}
		to += p[k].len;
	}
	ref->p = ref->buf;
	return MEM_OK;
}

void mem_close(struct mmu *m, struct memref *ref)
{
	const u8 *from = ref->buf;

	if (ref->direct)
		return;
	for (unsigned k = 0; k < 2 && ref->part[k].len; k++) {
		if (ref->part[k].hva)
			copy_once(ref->part[k].hva, from, ref->part[k].len);
		else if (BUG_ON(mmio_write(m, ref->part[k].gpa, from, ref->part[k].len) != MEM_OK))
			break;
		from += ref->part[k].len;
	}
	if (ref->locked)
		m->ops->bus_unlock(m);
}
