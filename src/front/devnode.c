/*
 * devnode.c: /dev/kvm as a file: which paths name it, and what open(), access(), stat(), chmod() and the like say about
 * it.
 *
 * It need not exist on the machine; a client sees a character device 10:232 that everybody may use.
 */
#define _GNU_SOURCE
#include "front.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "../base/usercopy.h"

#define ACL "system.posix_acl_access"

/* Copies `path` without empty and "." components, and without ".." and what that leaves: /dev is no symbolic link. */
static void tidy(char *out, size_t size, const char *path)
{
	size_t n = 0;

	while (*path && n + 2 < size) {
		size_t len;

		while (*path == '/')
			path++;
		len = strcspn(path, "/");
		if (len == 2 && path[0] == '.' && path[1] == '.') {
			while (n && out[--n] != '/')
				;
		} else if (!(len == 1 && *path == '.') && len) {
			out[n++] = '/';
			for (size_t k = 0; k < len && n + 1 < size; k++)
				out[n++] = path[k];
		}
		path += len;
	}
	out[n] = 0;
}

bool devnode_named(int dirfd, const char *path)
{
	char dir[PATH_MAX], link[64], full[2 * PATH_MAX], clean[2 * PATH_MAX];
	size_t len;
	ssize_t n;

	if (!path)
		return false;
	len = strlen(path);
	/* Nearly every path ends otherwise: decide that first. */
	if (len < 3 || memcmp(path + len - 3, "kvm", 3) != 0 || len >= PATH_MAX)
		return false;
	if (path[0] == '/') {
		tidy(clean, sizeof(clean), path);
		return strcmp(clean, DEVNODE) == 0;
	}
	if (dirfd == AT_FDCWD)
		strcpy(link, "/proc/self/cwd");
	else
		snprintf(link, sizeof(link), "/proc/self/fd/%d", dirfd);
	n = readlink(link, dir, sizeof(dir) - 1);
	if (n <= 0)
		return false;
	dir[n] = 0;
	snprintf(full, sizeof(full), "%s/%s", dir, path);
	tidy(clean, sizeof(clean), full);
	return strcmp(clean, DEVNODE) == 0;
}

int devnode_open(int flags)
{
	if ((flags & O_CREAT) && (flags & O_EXCL))
		return -EEXIST;
	if (flags & O_DIRECTORY)
		return -ENOTDIR;
	return front_open(flags & O_CLOEXEC);
}

int devnode_access(int mode)
{
	return mode & X_OK ? -EACCES : 0;
}

bool devnode_place(void)
{
	return syscall(SYS_mknod, DEVNODE, S_IFREG | 0600, 0) == 0;
}

void devnode_unplace(void)
{
	syscall(SYS_unlink, DEVNODE);
}

int devnode_chmod(unsigned mode)
{
	return (mode & 07777) == 0666 ? 0 : -EPERM;
}

int devnode_chown(unsigned uid, unsigned gid)
{
	return (uid == 0 || uid == ~0u) && (gid == 0 || gid == ~0u) ? 0 : -EPERM;
}

/* 0: it is the node's access control list; 1: another attribute. */
static int attribute(const char *name)
{
	char is[sizeof(ACL)];

	if (user_read(is, name, 1) < 0)
		return -EFAULT;
	return user_read(is, name, sizeof(is)) < 0 || memcmp(is, ACL, sizeof(ACL)) != 0;
}

int devnode_setxattr(const char *name, const void *value, size_t size)
{
	/* As the kernel encodes mode 0666: version 2, then the entries of user, group and others. */
	static const u16 mode[] = {2, 0, 1, 6, 0xffff, 0xffff, 4, 6, 0xffff, 0xffff, 32, 6, 0xffff, 0xffff};
	u16 is[ARRAY_SIZE(mode)];
	int rc = attribute(name);

	if (rc < 0)
		return rc;
	if (rc > 0 || size != sizeof(is))
		return -EPERM;
	if (user_read(is, value, sizeof(is)) < 0)
		return -EFAULT;
	return memcmp(is, mode, sizeof(is)) == 0 ? 0 : -EPERM;
}

int devnode_removexattr(const char *name)
{
	int rc = attribute(name);

	return rc > 0 ? -ENODATA : rc;
}

void devnode_stat(struct stat *st)
{
	memset(st, 0, sizeof(*st));
	st->st_mode = S_IFCHR | 0666;
	st->st_rdev = makedev(10, 232);
	st->st_nlink = 1;
	st->st_ino = 232;
	st->st_dev = 6;
	st->st_blksize = 4096;
}

void devnode_statx(struct statx *st)
{
	memset(st, 0, sizeof(*st));
	st->stx_mask = STATX_BASIC_STATS;
	st->stx_mode = S_IFCHR | 0666;
	st->stx_nlink = 1;
	st->stx_ino = 232;
	st->stx_rdev_major = 10;
	st->stx_rdev_minor = 232;
	st->stx_dev_minor = 6;
	st->stx_blksize = 4096;
}
