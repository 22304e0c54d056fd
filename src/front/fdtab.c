/*
 * fdtab.c: descriptors → VMs.
 *
 * A descriptor of ours is a memfd, so dup, fork, mmap and close work on it by themselves. It is recognised by its
 * (device, inode) pair, never by its number: the number may have been closed and reused without our hearing of it.
 *
 * Invariants: an entry lives until no descriptor of this process refers to its inode (found by looking through
 * /proc/self/fd) and no call is inside it; one that was sent through a socket lives on. After fork() the child's
 * entries are foreign: the VM stays with the parent.
 *
 * Number → entry is remembered in by_fd[]. Where the front sees every call that gives a number another meaning
 * (numbers.c), a slot is believed, and an ioctl needs no system call: the slot is cleared before the number is
 * closed or replaced. Elsewhere a slot is a guess, proved by the file position, which we set to a random number that no
 * other file has: asking for it costs less than half of fstat(). Either way a slot is cleared before its entry dies;
 * struct entry is never given back to the allocator, so a reader that comes too late finds an entry that its slot no
 * longer names, and looks again.
 *
 * Looking through all descriptors at each close() of one of ours would make closing a large VM's quadratic. Entries
 * that were closed once are counted, and the look is taken when they are half of their VM's: at the last one, at the
 * latest.
 */
#define _GNU_SOURCE
#include "front.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../base/bug.h"
#include "../base/sys.h"
#include "../kvm/kvm.h"

struct entry {
	ino_t ino;
	off_t mark; /* the position that proves a guess of by_fd[] */
	struct kvm_file *file;
	_Atomic(unsigned) users; /* calls inside */
	bool foreign;            /* made by a parent process */
	bool seen;               /* during front_reap() */
	bool closed;             /* a descriptor of it was, since the last front_reap() */
	bool sent;               /* through a socket: it may be on its way, or with another process */
	struct entry *next, *next_ino;
};

/* protects: entries and every entry's fields */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct entry *entries;
static struct entry *by_ino[1024];
static _Atomic(dev_t) memfds; /* the device of all our descriptors; 0: none yet */
static pid_t owner;           /* the process whose descriptors the entries are about */
static struct entry *spare;   /* dead entries, for reuse */

#define BY_FD 4096
static bool trust_numbers; /* by_fd[] is right, not only a guess */
static _Atomic(struct entry *) by_fd[BY_FD];

void front_trust_numbers(void)
{
	trust_numbers = true;
}

void front_forget(unsigned from, unsigned to)
{
	for (unsigned fd = from; fd <= to && fd < BY_FD; fd++)
		if (atomic_load_explicit(&by_fd[fd], memory_order_relaxed))
			atomic_store(&by_fd[fd], NULL);
}

static void fork_prepare(void)
{
	pthread_mutex_lock(&lock);
}

static void fork_parent(void)
{
	pthread_mutex_unlock(&lock);
}

static void fork_child(void)
{
	signal_forked();
	owner = getpid();
	for (struct entry *e = entries; e; e = e->next)
		if (!e->foreign) {
			e->foreign = true;
			kvm_file_forked(e->file);
		}
	pthread_mutex_unlock(&lock);
}

static void init_once(void)
{
	owner = getpid();
	pthread_atfork(fork_prepare, fork_parent, fork_child);
	signal_adopt();
}

/* Before the first entry. */
static void init(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, init_once);
}

static struct entry **ino_list(ino_t ino)
{
	return &by_ino[ino % ARRAY_SIZE(by_ino)];
}

/* The inode of a descriptor that may be one of ours; 0: it is none. */
static ino_t inode(int fd)
{
	struct stat st;

	if (!atomic_load_explicit(&memfds, memory_order_relaxed) || sys_fstat(fd, &st) < 0)
		return 0;
	return st.st_dev == atomic_load_explicit(&memfds, memory_order_relaxed) ? st.st_ino : 0;
}

/* Locked. */
static struct entry *find_ino(ino_t ino)
{
	struct entry *e = ino ? *ino_list(ino) : NULL;

	while (e && e->ino != ino)
		e = e->next_ino;
	return e;
}

/* The entry a descriptor refers to, NULL when none. Locked. */
static struct entry *find(int fd)
{
	return entries ? find_ino(inode(fd)) : NULL;
}

static bool marked(const struct entry *e, int fd)
{
	int err = errno;
	bool is = sys_lseek(fd, 0, SEEK_CUR) == e->mark;

	errno = err;
	return is;
}

/* A position that nobody else is at. */
static off_t new_mark(void)
{
	u64 x;

	if (getrandom(&x, sizeof(x), GRND_NONBLOCK) != sizeof(x)) {
		struct timespec ts;

		clock_gettime(CLOCK_MONOTONIC, &ts);
		x = ((u64)ts.tv_sec << 30 ^ (u64)ts.tv_nsec) * 0x9e3779b97f4a7c15ull;
	}
	return (off_t)(x >> 2 | BIT(61));
}

static struct entry *get(int fd)
{
	bool cached = (unsigned)fd < BY_FD;
	struct entry *e;

	if (cached) {
		e = atomic_load(&by_fd[fd]);
		if (likely(e)) {
			atomic_fetch_add(&e->users, 1);
			if (likely(atomic_load(&by_fd[fd]) == e && (trust_numbers || marked(e, fd))))
				return e;
			atomic_fetch_sub(&e->users, 1);
		}
	}
	pthread_mutex_lock(&lock);
	e = find(fd);
	if (e) {
		atomic_fetch_add(&e->users, 1);
		if (cached) {
			if (!trust_numbers)
				sys_lseek(fd, e->mark, SEEK_SET);
			atomic_store(&by_fd[fd], e);
		}
	}
	pthread_mutex_unlock(&lock);
	return e;
}

static void put(struct entry *e)
{
	atomic_fetch_sub(&e->users, 1);
}

/* Makes a descriptor known. The file stays the caller's when there is no memory. */
static int add(int fd, struct kvm_file *file, bool foreign)
{
	struct entry *e;
	struct stat st;

	if (sys_fstat(fd, &st) < 0)
		return -errno;
	/* A memfd's inode is of one file system, the kernel's own. */
	if (BUG_ON(atomic_load(&memfds) && atomic_load(&memfds) != st.st_dev))
		return -EINVAL;
	pthread_mutex_lock(&lock);
	e = spare;
	if (e)
		spare = e->next;
	else
		e = calloc(1, sizeof(*e));
	if (e) {
		e->ino = st.st_ino;
		e->next_ino = *ino_list(e->ino);
		*ino_list(e->ino) = e;
		atomic_store(&memfds, st.st_dev);
		e->mark = new_mark();
		e->file = file;
		e->foreign = foreign;
		e->seen = e->sent = e->closed = false;
		e->next = entries;
		entries = e;
	}
	pthread_mutex_unlock(&lock);
	return e ? 0 : -ENOMEM;
}

int front_open(bool cloexec)
{
	struct kvm_file *file;
	int fd, rc;

	init();
	front_reap();
	rc = kvm_file_open(cloexec, &fd, &file);
	if (rc < 0)
		return rc;
	rc = add(fd, file, false);
	if (rc < 0) {
		sys_close(fd);
		kvm_file_free(file);
		return rc;
	}
	return fd;
}

/* A descriptor that another process' engine made, and this program got over exec() or through a socket. */
static struct entry *get_foreign(int fd)
{
	char path[64], link[64];
	struct kvm_file *file;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, link, sizeof(link) - 1);
	if (n <= 0)
		return NULL;
	link[n] = 0;
	file = kvm_file_foreign(link);
	if (!file)
		return NULL;
	init();
	if (add(fd, file, true) < 0) {
		free(file);
		return NULL;
	}
	return get(fd);
}

void front_sent(const int *fds, size_t n)
{
	int err = errno;

	if (!entries)
		return;
	pthread_mutex_lock(&lock);
	for (size_t k = 0; k < n; k++) {
		struct entry *e = find(fds[k]);

		if (e)
			e->sent = true;
	}
	pthread_mutex_unlock(&lock);
	errno = err;
}

bool front_is_ours(int fd)
{
	bool ours;
	ino_t ino;

	if (!entries)
		return false;
	if (trust_numbers && (unsigned)fd < BY_FD && atomic_load(&by_fd[fd]))
		return true;
	ino = inode(fd);
	if (!ino)
		return false;
	pthread_mutex_lock(&lock);
	ours = find_ino(ino) != NULL;
	pthread_mutex_unlock(&lock);
	return ours;
}

long front_ioctl(int fd, unsigned long req, unsigned long arg)
{
	struct kvm_file *made = NULL;
	struct entry *e;
	int made_fd = -1;
	long rc;

	signal_inside(true);
	e = get(fd);
	if (unlikely(!e) && (req >> 8 & 0xff) == 0xae) {
		int err = errno;

		e = get_foreign(fd);
		errno = err;
	}
	if (!e) {
		signal_inside(false);
		return FRONT_NOT_OURS;
	}
	/* The kernel looks at 32 bits; clients that keep requests in an int extend the sign. */
	req = (unsigned)req;
	rc = kvm_file_ioctl(e->file, req, arg, e->foreign, &made, &made_fd);
	put(e);
	if (unlikely(made)) {
		int err = add(made_fd, made, false);

		if (err < 0) {
			sys_close(made_fd);
			kvm_file_free(made);
			rc = err;
		}
	}
	signal_inside(false);
	if (unlikely(rc < 0) && rc != -EINTR)
		debug_log("ioctl", "descriptor %d, request %#lx, %#lx: errno %ld", fd, req, arg, -rc);
	return rc;
}

/* A file without a byte: whoever touches a mapping of it gets SIGBUS, as for guest memory that no slot covers. */
static int nothing_fd(void)
{
	static int fd = -1;

	pthread_mutex_lock(&lock);
	if (fd < 0)
		fd = memfd_create("kvm-hole", MFD_CLOEXEC);
	pthread_mutex_unlock(&lock);
	return fd;
}

void *front_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	struct entry *e = get(fd);
	u8 *base = MAP_FAILED;
	int err = e ? kvm_file_mmap_check(e->file) : 0;

	if (err < 0)
		errno = -err;
	else
		base = sys_mmap(addr, length, prot, flags, fd, offset);
	if (!e)
		return base;
	if (base != MAP_FAILED && !e->foreign) {
		err = kvm_file_mmap_fix(e->file, base, length, prot, flags, (u64)offset);
		if (err < 0) {
			munmap(base, length);
			errno = -err;
			base = MAP_FAILED;
		}
	}
	for (u64 done = 0; base != MAP_FAILED && !e->foreign && done < length;) {
		bool covered;
		u64 piece = kvm_file_mmap_piece(e->file, (u64)offset + done, length - done, &covered);

		if (!covered && sys_mmap(base + done, piece, prot, (flags & (MAP_SHARED | MAP_PRIVATE)) | MAP_FIXED,
		                         nothing_fd(), 0) == MAP_FAILED) {
			err = errno;
			munmap(base, length);
			errno = err;
			base = MAP_FAILED;
		}
		done += piece;
	}
	put(e);
	return base;
}

bool front_memory_begin(u64 address, u64 size)
{
	bool any = false;

	if (!entries || getpid() != owner)
		return false;
	pthread_mutex_lock(&lock);
	for (struct entry *e = entries; e; e = e->next)
		any |= !e->foreign && kvm_file_hold(e->file, address, size);
	if (!any)
		pthread_mutex_unlock(&lock);
	return any;
}

bool front_remap_begin(u64 old, u64 length, bool fixed, u64 to, u64 size)
{
	u64 from = old, end = old + length;

	if (fixed) {
		from = to < from ? to : from;
		end = to + size > end ? to + size : end;
	}
	return front_memory_begin(from, end - from);
}

void front_memory_end(void)
{
	int err = errno;

	for (struct entry *e = entries; e; e = e->next)
		if (!e->foreign)
			kvm_file_release(e->file);
	pthread_mutex_unlock(&lock);
	errno = err;
}

static void mark_seen(int fd)
{
	struct entry *e = find(fd);

	if (e && (e->foreign || fd != kvm_file_own_fd(e->file)))
		e->seen = true;
}

void front_reap(void)
{
	struct entry *dead = NULL, **at;
	/* A child of vfork() shares our memory, but its descriptors are its own. */
	DIR *dir = entries && getpid() == owner ? opendir("/proc/self/fd") : NULL;
	struct dirent *d;

	if (!dir)
		return;
	pthread_mutex_lock(&lock);
	for (struct entry *e = entries; e; e = e->next)
		e->seen = e->users > 0 || e->sent, e->closed = false;
	while ((d = readdir(dir)) != NULL)
		if (d->d_name[0] != '.')
			mark_seen(atoi(d->d_name));
	for (at = &entries; *at;) {
		struct entry *e = *at;

		if (e->seen) {
			at = &e->next;
			continue;
		}
		/* Whoever takes it from by_fd[] from now on looks twice; whoever has it is counted in users. */
		for (unsigned fd = 0; fd < BY_FD; fd++)
			if (atomic_load_explicit(&by_fd[fd], memory_order_relaxed) == e)
				atomic_store(&by_fd[fd], NULL);
		if (atomic_load(&e->users)) {
			at = &e->next;
			continue;
		}
		*at = e->next;
		for (struct entry **in = ino_list(e->ino); *in; in = &(*in)->next_ino)
			if (*in == e) {
				*in = e->next_ino;
				break;
			}
		e->next = dead;
		dead = e;
	}
	pthread_mutex_unlock(&lock);
	closedir(dir);
	while (dead) {
		struct entry *e = dead;

		dead = e->next;
		if (!e->foreign)
			kvm_file_free(e->file);
		pthread_mutex_lock(&lock);
		e->next = spare;
		spare = e;
		pthread_mutex_unlock(&lock);
	}
}

/* The descriptor is about to be closed. True: front_reap() is to look for what is free then. */
static bool closing(int fd)
{
	const void *owner_now = NULL;
	unsigned all = 0, closed = 0;
	struct entry *e;

	pthread_mutex_lock(&lock);
	e = find(fd);
	if (e) {
		e->closed = true;
		owner_now = kvm_file_owner(e->file);
	}
	for (struct entry *o = entries; e && o; o = o->next)
		if (kvm_file_owner(o->file) == owner_now) {
			all++;
			closed += o->closed;
		}
	pthread_mutex_unlock(&lock);
	return e && 2 * closed >= all;
}

int front_close(int fd)
{
	bool ours = closing(fd);
	int rc;

	front_forget((unsigned)fd, (unsigned)fd);
	rc = sys_close(fd);
	/* A call on the dying number, beside this one, may have noted it again. */
	front_forget((unsigned)fd, (unsigned)fd);

	if (ours)
		front_reap();
	return rc;
}
