/*
 * paths.c: calls that name /dev/kvm and do not open it, or open it by stdio, in programs that are linked dynamically:
 * the C library makes its own system calls for these, which no wrapper of open() or stat() sees.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "../base/sys.h"
#include "front.h"
#include "real.h"

#define EXPORT __attribute__((visibility("default")))

static bool named(const char *path)
{
	return devnode_named(AT_FDCWD, path);
}

/* 0 or -errno, as a system call. */
static int result(int rc)
{
	if (rc >= 0)
		return rc;
	errno = -rc;
	return -1;
}

/* ---- stdio ------------------------------------------------------------------------------------------------------- */

static FILE *fopen_kvm(const char *mode)
{
	int flags = strchr(mode, '+') ? O_RDWR : mode[0] == 'r' ? O_RDONLY : O_WRONLY, fd;
	FILE *f;

	if (strchr(mode, 'e'))
		flags |= O_CLOEXEC;
	if (mode[0] != 'r' && strchr(mode, 'x'))
		flags |= O_CREAT | O_EXCL;
	fd = result(devnode_open(flags));
	if (fd < 0)
		return NULL;
	f = fdopen(fd, mode);
	if (!f) {
		int err = errno;

		close(fd);
		errno = err;
	}
	return f;
}

#define FOPEN(name)                                                                                                    \
	EXPORT FILE *name(const char *restrict path, const char *restrict mode)                                        \
	{                                                                                                              \
		return named(path) ? fopen_kvm(mode) : REAL(name)(path, mode);                                         \
	}

FOPEN(fopen)
FOPEN(fopen64)

/* It closes the descriptor by a call of its own: as close() in numbers.c. */
EXPORT int fclose(FILE *f)
{
	int fd = fileno(f), rc;
	bool ours = fd >= 0 && front_is_ours(fd);

	if (!ours)
		return REAL(fclose)(f);
	front_forget((unsigned)fd, (unsigned)fd);
	rc = REAL(fclose)(f);
	front_forget((unsigned)fd, (unsigned)fd);
	front_reap();
	return rc;
}

/* ---- names ------------------------------------------------------------------------------------------------------- */

char *__realpath_chk(const char *path, char *out, size_t size);

static char *realpath_kvm(char *out)
{
	return out ? strcpy(out, DEVNODE) : strdup(DEVNODE);
}

EXPORT char *realpath(const char *restrict path, char *restrict out)
{
	return named(path) ? realpath_kvm(out) : REAL(realpath)(path, out);
}

EXPORT char *__realpath_chk(const char *path, char *out, size_t size)
{
	return named(path) && size > strlen(DEVNODE) ? realpath_kvm(out) : REAL(__realpath_chk)(path, out, size);
}

EXPORT char *canonicalize_file_name(const char *path)
{
	return named(path) ? realpath_kvm(NULL) : REAL(canonicalize_file_name)(path);
}

/* It is no link. */
EXPORT ssize_t readlink(const char *restrict path, char *restrict out, size_t size)
{
	return named(path) ? result(-EINVAL) : REAL(readlink)(path, out, size);
}

EXPORT ssize_t readlinkat(int dirfd, const char *restrict path, char *restrict out, size_t size)
{
	return devnode_named(dirfd, path) ? result(-EINVAL) : REAL(readlinkat)(dirfd, path, out, size);
}

/* ---- attributes -------------------------------------------------------------------------------------------------- */

EXPORT ssize_t getxattr(const char *path, const char *name, void *out, size_t size)
{
	return named(path) ? result(-ENODATA) : REAL(getxattr)(path, name, out, size);
}

EXPORT ssize_t lgetxattr(const char *path, const char *name, void *out, size_t size)
{
	return named(path) ? result(-ENODATA) : REAL(lgetxattr)(path, name, out, size);
}

EXPORT ssize_t listxattr(const char *path, char *out, size_t size)
{
	return named(path) ? 0 : REAL(listxattr)(path, out, size);
}

EXPORT ssize_t llistxattr(const char *path, char *out, size_t size)
{
	return named(path) ? 0 : REAL(llistxattr)(path, out, size);
}

EXPORT int setxattr(const char *path, const char *name, const void *value, size_t size, int flags)
{
	return named(path) ? result(devnode_setxattr(name, value, size))
	                   : REAL(setxattr)(path, name, value, size, flags);
}

EXPORT int lsetxattr(const char *path, const char *name, const void *value, size_t size, int flags)
{
	return named(path) ? result(devnode_setxattr(name, value, size))
	                   : REAL(lsetxattr)(path, name, value, size, flags);
}

EXPORT int removexattr(const char *path, const char *name)
{
	return named(path) ? result(devnode_removexattr(name)) : REAL(removexattr)(path, name);
}

EXPORT int lremovexattr(const char *path, const char *name)
{
	return named(path) ? result(devnode_removexattr(name)) : REAL(lremovexattr)(path, name);
}

EXPORT int mknod(const char *path, mode_t mode, dev_t device)
{
	return named(path) ? result(-EEXIST) : REAL(mknod)(path, mode, device);
}

EXPORT int mknodat(int dirfd, const char *path, mode_t mode, dev_t device)
{
	return devnode_named(dirfd, path) ? result(-EEXIST) : REAL(mknodat)(dirfd, path, mode, device);
}

EXPORT int chmod(const char *path, mode_t mode)
{
	return named(path) ? result(devnode_chmod(mode)) : REAL(chmod)(path, mode);
}

EXPORT int fchmodat(int dirfd, const char *path, mode_t mode, int flags)
{
	return devnode_named(dirfd, path) ? result(devnode_chmod(mode)) : REAL(fchmodat)(dirfd, path, mode, flags);
}

EXPORT int chown(const char *path, uid_t uid, gid_t gid)
{
	return named(path) ? result(devnode_chown(uid, gid)) : REAL(chown)(path, uid, gid);
}

EXPORT int lchown(const char *path, uid_t uid, gid_t gid)
{
	return named(path) ? result(devnode_chown(uid, gid)) : REAL(lchown)(path, uid, gid);
}

EXPORT int fchownat(int dirfd, const char *path, uid_t uid, gid_t gid, int flags)
{
	return devnode_named(dirfd, path) ? result(devnode_chown(uid, gid))
	                                  : REAL(fchownat)(dirfd, path, uid, gid, flags);
}
