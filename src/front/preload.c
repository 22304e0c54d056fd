/*
 * preload.c: the C library's symbols that `devkvm run` replaces in a client: symbols only, the work is elsewhere.
 *
 * Each does the real call unless its path is /dev/kvm or its descriptor is ours. /dev/kvm need not exist on the
 * machine; a client sees a character device 10:232 that everybody may use.
 */
#define _GNU_SOURCE
#include "front.h"
#include "exec.h"
#include "real.h"
#include "root.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <linux/close_range.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
#define KVM_IOCTL_TYPE 0xAE

/* ---- open -------------------------------------------------------------------------------------------------------- */

static int with_errno(int rc)
{
	if (rc >= 0)
		return rc;
	errno = -rc;
	return -1;
}

static int open_kvm(int flags)
{
	return with_errno(devnode_open(flags));
}

static mode_t mode_of(int flags, va_list ap)
{
	return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(ap, mode_t) : 0;
}

#define OPEN(name)                                                                                                     \
	EXPORT int name(const char *path, int flags, ...)                                                              \
	{                                                                                                              \
		va_list ap;                                                                                            \
		mode_t mode;                                                                                           \
                                                                                                                       \
		va_start(ap, flags);                                                                                   \
		mode = mode_of(flags, ap);                                                                             \
		va_end(ap);                                                                                            \
		return devnode_named(AT_FDCWD, path) ? open_kvm(flags) : REAL(name)(path, flags, mode);                \
	}

#define OPENAT(name)                                                                                                   \
	EXPORT int name(int dirfd, const char *path, int flags, ...)                                                   \
	{                                                                                                              \
		va_list ap;                                                                                            \
		mode_t mode;                                                                                           \
                                                                                                                       \
		va_start(ap, flags);                                                                                   \
		mode = mode_of(flags, ap);                                                                             \
		va_end(ap);                                                                                            \
		return devnode_named(dirfd, path) ? open_kvm(flags) : REAL(name)(dirfd, path, flags, mode);            \
	}

int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int dirfd, const char *path, int flags);
int __openat64_2(int dirfd, const char *path, int flags);

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

EXPORT int __open_2(const char *path, int flags)
{
	return devnode_named(AT_FDCWD, path) ? open_kvm(flags) : REAL(__open_2)(path, flags);
}

EXPORT int __open64_2(const char *path, int flags)
{
	return devnode_named(AT_FDCWD, path) ? open_kvm(flags) : REAL(__open64_2)(path, flags);
}

EXPORT int __openat_2(int dirfd, const char *path, int flags)
{
	return devnode_named(dirfd, path) ? open_kvm(flags) : REAL(__openat_2)(dirfd, path, flags);
}

EXPORT int __openat64_2(int dirfd, const char *path, int flags)
{
	return devnode_named(dirfd, path) ? open_kvm(flags) : REAL(__openat64_2)(dirfd, path, flags);
}

/* ---- access, stat ------------------------------------------------------------------------------------------------ */

static int access_kvm(int mode)
{
	return with_errno(devnode_access(mode));
}

EXPORT int access(const char *path, int mode)
{
	return devnode_named(AT_FDCWD, path) ? access_kvm(mode) : REAL(access)(path, mode);
}

EXPORT int faccessat(int dirfd, const char *path, int mode, int flags)
{
	return devnode_named(dirfd, path) ? access_kvm(mode) : REAL(faccessat)(dirfd, path, mode, flags);
}

EXPORT int euidaccess(const char *path, int mode)
{
	return devnode_named(AT_FDCWD, path) ? access_kvm(mode) : REAL(euidaccess)(path, mode);
}

EXPORT int eaccess(const char *path, int mode)
{
	return devnode_named(AT_FDCWD, path) ? access_kvm(mode) : REAL(eaccess)(path, mode);
}

/* struct stat and struct stat64 are one layout on x86-64. */
static int stat_kvm(void *buf)
{
	devnode_stat(buf);
	return 0;
}

/* fstatat(fd, "", AT_EMPTY_PATH) on one of ours. */
static bool is_ours_at(int dirfd, const char *path, int flags)
{
	return (flags & AT_EMPTY_PATH) && path && !*path && front_is_ours(dirfd);
}

#define STAT(name, type)                                                                                               \
	EXPORT int name(const char *path, struct type *buf)                                                            \
	{                                                                                                              \
		return devnode_named(AT_FDCWD, path) ? stat_kvm(buf) : REAL(name)(path, buf);                          \
	}

#define XSTAT(name, type)                                                                                              \
	int name(int ver, const char *path, struct type *buf);                                                         \
	EXPORT int name(int ver, const char *path, struct type *buf)                                                   \
	{                                                                                                              \
		return devnode_named(AT_FDCWD, path) ? stat_kvm(buf) : REAL(name)(ver, path, buf);                     \
	}

#define FSTATAT(name, type)                                                                                            \
	EXPORT int name(int dirfd, const char *path, struct type *buf, int flags)                                      \
	{                                                                                                              \
		if (devnode_named(dirfd, path) || is_ours_at(dirfd, path, flags))                                      \
			return stat_kvm(buf);                                                                          \
		return REAL(name)(dirfd, path, buf, flags);                                                            \
	}

#define FSTAT(name, type)                                                                                              \
	EXPORT int name(int fd, struct type *buf)                                                                      \
	{                                                                                                              \
		return front_is_ours(fd) ? stat_kvm(buf) : REAL(name)(fd, buf);                                        \
	}

#define FXSTAT(name, type)                                                                                             \
	int name(int ver, int fd, struct type *buf);                                                                   \
	EXPORT int name(int ver, int fd, struct type *buf)                                                             \
	{                                                                                                              \
		return front_is_ours(fd) ? stat_kvm(buf) : REAL(name)(ver, fd, buf);                                   \
	}

STAT(stat, stat)
STAT(stat64, stat64)
STAT(lstat, stat)
STAT(lstat64, stat64)
XSTAT(__xstat, stat)
XSTAT(__xstat64, stat64)
XSTAT(__lxstat, stat)
XSTAT(__lxstat64, stat64)
FSTATAT(fstatat, stat)
FSTATAT(fstatat64, stat64)
FSTAT(fstat, stat)
FSTAT(fstat64, stat64)
FXSTAT(__fxstat, stat)
FXSTAT(__fxstat64, stat64)

EXPORT int statx(int dirfd, const char *restrict path, int flags, unsigned int mask, struct statx *restrict buf)
{
	if (!devnode_named(dirfd, path) && !is_ours_at(dirfd, path, flags))
		return REAL(statx)(dirfd, path, flags, mask, buf);
	devnode_statx(buf);
	return 0;
}

/* ---- descriptors ------------------------------------------------------------------------------------------------- */

EXPORT int ioctl(int fd, unsigned long req, ...)
{
	unsigned long arg;
	va_list ap;

	va_start(ap, req);
	arg = va_arg(ap, unsigned long);
	va_end(ap);
	/* Other requests on our descriptors (FIONBIO, TCGETS, ...) are unknown to a /dev/kvm too. */
	if (_IOC_TYPE(req) == KVM_IOCTL_TYPE || front_is_ours(fd)) {
		long rc = front_ioctl(fd, req, arg);

		if (rc >= 0)
			return (int)rc;
		if (rc != FRONT_NOT_OURS) {
			errno = (int)-rc;
			return -1;
		}
	}
	return REAL(ioctl)(fd, req, arg);
}

/* The engine's own calls come here as well. */
extern const char __ehdr_start[], etext[] __attribute__((visibility("hidden")));
#define CALLED_BY_US                                                                                                   \
	((u64)(uintptr_t)__builtin_return_address(0) - (u64)(uintptr_t)__ehdr_start <                                  \
	 (u64)(uintptr_t)etext - (u64)(uintptr_t)__ehdr_start)

static void *do_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset, bool by_us)
{
	bool used;
	void *rc;

	if (!(flags & MAP_ANONYMOUS) && front_is_ours(fd))
		return front_mmap(addr, length, prot, flags, fd, offset);
	used = (flags & MAP_FIXED) && !by_us && front_memory_begin((u64)(uintptr_t)addr, length);
	rc = (void *)syscall(SYS_mmap, addr, length, prot, flags, fd, offset);
	if (used)
		front_memory_end();
	return rc;
}

EXPORT void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	return do_mmap(addr, length, prot, flags, fd, offset, CALLED_BY_US);
}

EXPORT void *mmap64(void *addr, size_t length, int prot, int flags, int fd, off64_t offset)
{
	return do_mmap(addr, length, prot, flags, fd, offset, CALLED_BY_US);
}

EXPORT int munmap(void *addr, size_t length)
{
	bool used = !CALLED_BY_US && front_memory_begin((u64)(uintptr_t)addr, length);
	int rc = (int)syscall(SYS_munmap, addr, length);

	if (used)
		front_memory_end();
	return rc;
}

EXPORT int mprotect(void *addr, size_t length, int prot)
{
	bool used = !CALLED_BY_US && front_memory_begin((u64)(uintptr_t)addr, length);
	int rc = (int)syscall(SYS_mprotect, addr, length, prot);

	if (used)
		front_memory_end();
	return rc;
}

EXPORT void *mremap(void *old, size_t length, size_t size, int flags, ...)
{
	void *to = NULL, *rc;
	va_list ap;
	bool used;

	if (flags & MREMAP_FIXED) {
		va_start(ap, flags);
		to = va_arg(ap, void *);
		va_end(ap);
	}
	used = !CALLED_BY_US &&
	       front_remap_begin((u64)(uintptr_t)old, length, flags & MREMAP_FIXED, (u64)(uintptr_t)to, size);
	rc = (void *)syscall(SYS_mremap, old, length, size, flags, to);
	if (used)
		front_memory_end();
	return rc;
}

/* Before a message with descriptors leaves. */
static void note_sent(const struct msghdr *m)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR((struct msghdr *)(uintptr_t)m, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len > CMSG_LEN(0))
			front_sent((const int *)(void *)CMSG_DATA(c), (c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
}

EXPORT ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
	if (m && m->msg_control && m->msg_controllen)
		note_sent(m);
	return REAL(sendmsg)(fd, m, flags);
}

EXPORT int sendmmsg(int fd, struct mmsghdr *m, unsigned n, int flags)
{
	for (unsigned k = 0; k < n; k++)
		if (m[k].msg_hdr.msg_control && m[k].msg_hdr.msg_controllen)
			note_sent(&m[k].msg_hdr);
	return REAL(sendmmsg)(fd, m, n, flags);
}

/* ---- before what the process sees of the file system changes, or what it may open there -------------------------- */

static void leaving(void)
{
	root_leaving(root_files(), exec_loader(), NULL);
}

EXPORT int chroot(const char *path)
{
	leaving();
	return REAL(chroot)(path);
}

EXPORT int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data)
{
	int rc, err;

	leaving();
	rc = REAL(mount)(source, target, type, flags, data);
	err = errno;
	if (rc < 0 && err == ENOENT && devnode_named(AT_FDCWD, target) && devnode_place()) {
		rc = REAL(mount)(source, target, type, flags, data);
		err = errno;
		if (rc < 0)
			devnode_unplace();
	}
	errno = err;
	return rc;
}

EXPORT int unshare(int flags)
{
	if (flags & CLONE_NEWNS)
		leaving();
	return REAL(unshare)(flags);
}

EXPORT int setns(int fd, int type)
{
	leaving();
	return REAL(setns)(fd, type);
}

/* Nobody but root can become somebody who may open less. */
static void leaving_root(void)
{
	if (geteuid() == 0)
		leaving();
}

EXPORT int setuid(uid_t uid)
{
	leaving_root();
	return REAL(setuid)(uid);
}

EXPORT int setreuid(uid_t real, uid_t effective)
{
	leaving_root();
	return REAL(setreuid)(real, effective);
}

EXPORT int setresuid(uid_t real, uid_t effective, uid_t saved)
{
	leaving_root();
	return REAL(setresuid)(real, effective, saved);
}

__attribute__((constructor)) static void preload_init(void)
{
	const char *files = getenv(ROOT_VARIABLE);

	front_trust_numbers();
	if (files)
		root_adopt_variable(files);
}
