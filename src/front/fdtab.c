/*
 * fdtab.c: descriptors → VMs.
 *
 * A descriptor of ours is a memfd, so dup, fork, mmap and close work on it by themselves. It is recognised by its
 * (device, inode) pair, never by its number: the number may have been closed and reused without our hearing of it.
 *
 * Invariants: an entry lives until no descriptor of this process refers to its inode (found by looking through
 * /proc/self/fd) and no call is inside it. After fork() the child's entries are foreign: the VM stays with the parent.
 */
#define _GNU_SOURCE
#include "front.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../base/sys.h"
#include "../kvm/kvm.h"

struct entry {
	dev_t dev;
	ino_t ino;
	struct kvm_file *file;
	unsigned users; /* calls inside */
	bool foreign;   /* made by a parent process */
	bool seen;      /* during front_reap() */
	struct entry *next;
};

/* protects: entries and every entry's fields */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct entry *entries;

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
	for (struct entry *e = entries; e; e = e->next)
		if (!e->foreign) {
			e->foreign = true;
			kvm_file_forked(e->file);
		}
	pthread_mutex_unlock(&lock);
}

static void init_once(void)
{
	pthread_atfork(fork_prepare, fork_parent, fork_child);
	signal_adopt();
}

/* The entry a descriptor refers to, NULL when none. Locked. */
static struct entry *find(int fd)
{
	struct stat st;

	if (!entries || sys_fstat(fd, &st) < 0)
		return NULL;
	for (struct entry *e = entries; e; e = e->next)
		if (e->ino == st.st_ino && e->dev == st.st_dev)
			return e;
	return NULL;
}

static struct entry *get(int fd)
{
	struct entry *e;

	pthread_mutex_lock(&lock);
	e = find(fd);
	if (e)
		e->users++;
	pthread_mutex_unlock(&lock);
	return e;
}

static void put(struct entry *e)
{
	pthread_mutex_lock(&lock);
	e->users--;
	pthread_mutex_unlock(&lock);
}

int front_open(bool cloexec)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct entry *e = calloc(1, sizeof(*e));
	struct stat st;
	int fd, rc;

	if (!e)
		return -ENOMEM;
	pthread_once(&once, init_once);
	front_reap();
	rc = kvm_file_open(cloexec, &fd, &e->file);
	if (rc < 0) {
		free(e);
		return rc;
	}
	sys_fstat(fd, &st);
	e->dev = st.st_dev;
	e->ino = st.st_ino;
	pthread_mutex_lock(&lock);
	e->next = entries;
	entries = e;
	pthread_mutex_unlock(&lock);
	return fd;
}

bool front_is_ours(int fd)
{
	bool ours;

	if (!entries)
		return false;
	pthread_mutex_lock(&lock);
	ours = find(fd) != NULL;
	pthread_mutex_unlock(&lock);
	return ours;
}

long front_ioctl(int fd, unsigned long req, unsigned long arg)
{
	struct entry *e = get(fd);
	long rc;

	if (!e)
		return -EBADF;
	rc = e->foreign ? -EIO : kvm_file_ioctl(e->file, req, arg);
	put(e);
	signal_release();
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
	u8 *base = sys_mmap(addr, length, prot, flags, fd, offset);

	if (!e)
		return base;
	for (u64 done = 0; base != MAP_FAILED && !e->foreign && done < length;) {
		bool covered;
		u64 piece = kvm_file_mmap_piece(e->file, (u64)offset + done, length - done, &covered);

		if (!covered && sys_mmap(base + done, piece, prot, (flags & (MAP_SHARED | MAP_PRIVATE)) | MAP_FIXED,
		                         nothing_fd(), 0) == MAP_FAILED) {
			int err = errno;

			munmap(base, length);
			errno = err;
			base = MAP_FAILED;
		}
		done += piece;
	}
	put(e);
	return base;
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
	DIR *dir = entries ? opendir("/proc/self/fd") : NULL;
	struct dirent *d;

	if (!dir)
		return;
	pthread_mutex_lock(&lock);
	for (struct entry *e = entries; e; e = e->next)
		e->seen = e->users > 0;
	while ((d = readdir(dir)) != NULL)
		if (d->d_name[0] != '.')
			mark_seen(atoi(d->d_name));
	for (at = &entries; *at;) {
		struct entry *e = *at;

		if (e->seen) {
			at = &e->next;
			continue;
		}
		*at = e->next;
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
		free(e);
	}
}

int front_close(int fd)
{
	bool ours = front_is_ours(fd);
	int rc = sys_close(fd);

	if (ours)
		front_reap();
	return rc;
}
