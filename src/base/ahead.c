/*
 * ahead.c: see ahead.h. Only Linux 5.14 and later know the two requests; elsewhere pages come one by one, as ever.
 */
#define _GNU_SOURCE
#include "ahead.h"

#include <errno.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

#define STEP_FIRST ((size_t)8 << 10)
#define STEP_MOST ((size_t)512 << 10)

/* The leak checker looks for pointers in the heap only, unless it is told. What is larger holds none to the heap. */
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/lsan_interface.h>
#define HOLDS_POINTERS(size) ((size) <= (1u << 20))
#else
#define HOLDS_POINTERS(size) false
#define __lsan_register_root_region(p, size) ((void)0)
#define __lsan_unregister_root_region(p, size) ((void)0)
#endif

void *pages_alloc(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	if (HOLDS_POINTERS(size))
		__lsan_register_root_region(p, size);
	return p;
}

void pages_free(void *p, size_t size)
{
	if (!p)
		return;
	if (HOLDS_POINTERS(size))
		__lsan_unregister_root_region(p, size);
	munmap(p, size);
}

int ahead_populate(u8 *start, size_t size, bool write)
{
	int err = errno, rc = madvise(start, size, write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);

	errno = err;
	return rc;
}

void ahead_init(struct ahead *a, u8 *start, size_t size, bool write)
{
	/* Who uses little, a VM that makes one exit, only pays for the pages that it touches. */
	*a = (struct ahead){.ready = start + STEP_FIRST, .end = start + size, .step = STEP_FIRST, .write = write};
}

void ahead_step(struct ahead *a)
{
	size_t left = (size_t)(a->end - a->ready), n = a->step < left ? a->step : left;

	if (ahead_populate(a->ready, n, a->write) < 0)
		n = left; /* not here, or no memory: the pages will say so themselves */
	a->ready += n;
	if (a->step < STEP_MOST)
		a->step *= 2;
}
