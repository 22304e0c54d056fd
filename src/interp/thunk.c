/*
 * thunk.c: the process-wide cache of thunks and the executable memory they live in.
 *
 * Invariants:
 *  1. no mapping is ever writable and executable at the same time; a chunk is one memfd mapped twice. Where the system
 *     refuses executable memfds, every thunk gets pages of its own that are written first and made executable after;
 *  2. a thunk, once published, never changes or goes away: users keep pointers without a lock;
 *  3. after fork() parent and child share the memfd's pages, so the child starts a new chunk before it writes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "thunk.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010u
#endif

#define CHUNK_SIZE (64u << 10)
#define BUCKETS 2048u

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* protects: everything below */
static struct thunk *bucket[BUCKETS];
static struct {
	u8 *rw;       /* NULL: no chunk */
	const u8 *rx; /* the same bytes, executable */
	unsigned used;
} chunk;
static bool no_memfd; /* executable memfds are refused */
static bool fork_hooked;

static void before_fork(void)
{
	pthread_mutex_lock(&lock);
}

static void after_fork(void)
{
	pthread_mutex_unlock(&lock);
}

static void after_fork_in_child(void)
{
	chunk.used = CHUNK_SIZE;
	pthread_mutex_unlock(&lock);
}

/* Maps a fresh chunk. 0 or -errno. */
static int chunk_new(void)
{
	void *rw, *rx;
	int fd, err;

	if (no_memfd)
		return -EACCES;
	fd = memfd_create("devkvm-thunks", MFD_CLOEXEC | MFD_EXEC);
	if (fd < 0 && errno == EINVAL) /* Linux before 6.3 does not know MFD_EXEC */
		fd = memfd_create("devkvm-thunks", MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, CHUNK_SIZE) < 0) {
		err = -errno;
		close(fd);
		return err;
	}
	rw = mmap(NULL, CHUNK_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (rw == MAP_FAILED) {
		err = -errno;
		close(fd);
		return err;
	}
	rx = mmap(NULL, CHUNK_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	err = rx == MAP_FAILED ? -errno : 0;
	close(fd);
	if (err) {
		munmap(rw, CHUNK_SIZE);
		return err;
	}
	/* The old chunk stays mapped for its users; its writable view is not needed any more. */
	if (chunk.rw)
		munmap(chunk.rw, CHUNK_SIZE);
	chunk.rw = rw;
	chunk.rx = rx;
	chunk.used = 0;
	return 0;
}

static int chunk_want(unsigned len)
{
	if (chunk.rw && chunk.used + len <= CHUNK_SIZE)
		return 0;
	return chunk_new();
}

/* Invariant 1's second half. */
static const u8 *code_in_own_pages(const u8 *code, unsigned len)
{
	void *p = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	memcpy(p, code, len);
	if (mprotect(p, PAGE_SIZE, PROT_READ | PROT_EXEC) < 0) {
		munmap(p, PAGE_SIZE);
		return NULL;
	}
	return p;
}

static const u8 *code_store(const u8 *code, unsigned len)
{
	const u8 *at;

	if (chunk_want(len) < 0)
		return code_in_own_pages(code, len);
	memcpy(chunk.rw + chunk.used, code, len);
	at = chunk.rx + chunk.used;
	chunk.used += (len + 15) & ~15u;
	return at;
}

int thunk_init(void)
{
	static const u8 ret = 0xc3;
	const u8 *p;
	int rc;

	pthread_mutex_lock(&lock);
	if (!fork_hooked) {
		fork_hooked = true;
		pthread_atfork(before_fork, after_fork, after_fork_in_child);
	}
	rc = chunk_want(1);
	if (rc == -EACCES || rc == -EPERM) {
		no_memfd = true;
		p = code_in_own_pages(&ret, 1);
		rc = p ? 0 : -EACCES;
		if (p)
			munmap((void *)p, PAGE_SIZE);
	}
	pthread_mutex_unlock(&lock);
	return rc;
}

static u32 hash_bytes(const u8 *p, unsigned n, u32 h)
{
	while (n--)
		h = (h ^ *p++) * 16777619u;
	return h;
}

static bool same_form(const struct thunk *a, const struct thunk *b)
{
	return a->props == b->props && a->k_reg == b->k_reg && a->k_vvvv == b->k_vvvv && a->k_rm == b->k_rm &&
	       a->k_is4 == b->k_is4 && a->k_gpr == b->k_gpr && a->msize == b->msize;
}

const struct thunk *thunk_get(const u8 *code, unsigned len, const struct thunk *like)
{
	u32 h = hash_bytes(code, len, 2166136261u ^ like->props);
	struct thunk *t;
	const u8 *at;

	if (len > THUNK_CODE_MAX)
		return NULL;
	pthread_mutex_lock(&lock);
	for (t = bucket[h % BUCKETS]; t; t = t->next)
		if (t->hash == h && t->len == len && same_form(t, like) &&
		    !memcmp((const void *)(uintptr_t)t->fn, code, len))
			goto out;
	t = malloc(sizeof(*t));
	if (!t)
		goto out;
	*t = *like;
	at = code_store(code, len);
	if (!at) {
		free(t);
		t = NULL;
		goto out;
	}
	t->fn = (thunk_fn)(uintptr_t)at;
	t->hash = h;
	t->len = len;
	t->next = bucket[h % BUCKETS];
	bucket[h % BUCKETS] = t;
out:
	pthread_mutex_unlock(&lock);
	return t;
}
