/*
 * memslot.c: the memslots of a VM: GPA → HVA, overlap rules, the dirty log.
 *
 * Invariants: slot[] is sorted by gpa and no two slots overlap. The array changes only while no vCPU of the VM executes
 * guest instructions; dirty and code bits change at any time (atomically).
 */
#include "mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../base/ahead.h"
#include "../base/bug.h"

void vm_mem_init(struct vm_mem *vm)
{
	memset(vm, 0, sizeof(*vm));
}

void vm_mem_free(struct vm_mem *vm)
{
	free(vm->slot);
	vm->slot = NULL;
	vm->nslots = 0;
}

/* Number of slots whose gpa is at or below `gpa`. */
static unsigned slots_upto(const struct vm_mem *vm, gpa_t gpa)
{
	unsigned lo = 0, hi = vm->nslots;

	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;

		if (vm->slot[mid]->gpa <= gpa)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

struct memslot *memslot_find(const struct vm_mem *vm, gpa_t gpa)
{
	unsigned n = slots_upto(vm, gpa);
	struct memslot *s;

	if (n == 0)
		return NULL;
	s = vm->slot[n - 1];
	return gpa - s->gpa < s->size ? s : NULL;
}

bool memslot_overlaps(const struct vm_mem *vm, gpa_t gpa, u64 size, const struct memslot *except)
{
	/* Slots do not overlap each other: of those that begin at or below, only the last can reach `gpa`. `except` may
	 * hide the one before it. */
	unsigned n = slots_upto(vm, gpa);

	n = n > 2 ? n - 2 : 0;
	for (; n < vm->nslots && vm->slot[n]->gpa < gpa + size; n++) {
		const struct memslot *s = vm->slot[n];

		if (s != except && gpa < s->gpa + s->size && s->gpa < gpa + size)
			return true;
	}
	return false;
}

u64 memslot_pages(const struct memslot *slot)
{
	return slot->size >> PAGE_SHIFT;
}

static size_t bitmap_words(const struct memslot *slot)
{
	return (memslot_pages(slot) + 63) / 64;
}

int memslot_add(struct vm_mem *vm, struct memslot *slot)
{
	/* Room for a power of two of them. */
	bool full = !(vm->nslots & (vm->nslots - 1));
	struct memslot **bigger =
	        full ? realloc(vm->slot, (vm->nslots ? 2 * vm->nslots : 1) * sizeof(*bigger)) : vm->slot;
	unsigned at;

	if (!bigger)
		return -ENOMEM;
	vm->slot = bigger;
	if (!slot->code) {
		slot->code = calloc(bitmap_words(slot), sizeof(*slot->code));
		if (!slot->code)
			return -ENOMEM;
	}
	if (!slot->holders) {
		slot->holders = calloc(slot->size >> PAGE_SHIFT, sizeof(*slot->holders));
		if (!slot->holders)
			return -ENOMEM;
	}
	at = slots_upto(vm, slot->gpa);
	memmove(&vm->slot[at + 1], &vm->slot[at], (vm->nslots - at) * sizeof(*vm->slot));
	vm->slot[at] = slot;
	vm->nslots++;
	vm->version++;
	return 0;
}

void memslot_remove(struct vm_mem *vm, struct memslot *slot)
{
	unsigned n = slots_upto(vm, slot->gpa);

	if (BUG_ON(n == 0 || vm->slot[n - 1] != slot))
		return;
	memmove(&vm->slot[n - 1], &vm->slot[n], (vm->nslots - n) * sizeof(*vm->slot));
	vm->nslots--;
	vm->version++;
}

void memslot_free(struct memslot *slot)
{
	if (!slot)
		return;
	free((void *)slot->dirty);
	free((void *)slot->code);
	free(slot->holders);
	free((void *)slot->backed);
	free(slot);
}

int memslot_set_dirty_log(struct memslot *slot, bool on)
{
	if (on && !slot->dirty) {
		slot->dirty = calloc(bitmap_words(slot), sizeof(*slot->dirty));
		if (!slot->dirty)
			return -ENOMEM;
	} else if (!on) {
		free((void *)slot->dirty);
		slot->dirty = NULL;
	}
	slot->flags = on ? slot->flags | MEMSLOT_DIRTY_LOG : slot->flags & ~(u32)MEMSLOT_DIRTY_LOG;
	return 0;
}

void memslot_take_dirty(struct memslot *slot, u64 *out)
{
	for (size_t n = 0; n < bitmap_words(slot); n++)
		out[n] = atomic_exchange(&slot->dirty[n], 0);
}

void memslot_set_backed(struct memslot *slot)
{
	slot->backed = calloc(slot->size / MEMSLOT_PIECE / 64 + 1, sizeof(*slot->backed));
}

void memslot_back_piece(struct memslot *slot, u64 piece)
{
	u64 at = piece * MEMSLOT_PIECE, left = slot->size - at;

	atomic_fetch_or(&slot->backed[piece / 64], BIT(piece % 64));
	ahead_populate(slot->hva + at, left < MEMSLOT_PIECE ? left : MEMSLOT_PIECE, true);
}

u8 *gpa_to_hva(const struct vm_mem *vm, gpa_t gpa)
{
	const struct memslot *s = memslot_find(vm, gpa);

	return s ? s->hva + (gpa - s->gpa) : NULL;
}

void memslot_mark_dirty(struct memslot *slot, gpa_t gpa)
{
	u64 page = (gpa - slot->gpa) >> PAGE_SHIFT;

	if (!slot->dirty)
		return;
	if (!(atomic_fetch_or(&slot->dirty[page / 64], BIT(page % 64)) & BIT(page % 64)) &&
	    unlikely(slot->dirtied != NULL))
		slot->dirtied(slot, page);
}
