/*
 * ahead.h: memory that is filled from its start upwards gets its pages ahead of use, many with one call: a page fault a
 * page costs several times as much, most of all on virtual machines.
 */
#ifndef DEVKVM_BASE_AHEAD_H
#define DEVKVM_BASE_AHEAD_H

#include <stdbool.h>

#include "types.h"

struct ahead {
	u8 *ready, *end; /* pages up to here are there, or need no care; the mapping's end */
	size_t step;     /* bytes to be made ready next; grows */
	bool write;
};

/* Zeroed memory of whole pages, none of which is there yet; NULL when there is none. */
void *pages_alloc(size_t size);
void pages_free(void *p, size_t size);

/* Makes pages ready. Where the system cannot, -1: they come one by one. errno stays. */
int ahead_populate(u8 *start, size_t size, bool write);
void ahead_init(struct ahead *a, u8 *start, size_t size, bool write);
void ahead_step(struct ahead *a);

/* What lies below `used` + `room` will be touched soon. */
static inline void ahead_of(struct ahead *a, const u8 *used, size_t room)
{
	while (unlikely(used + room > a->ready && a->ready < a->end))
		ahead_step(a);
}

#endif
