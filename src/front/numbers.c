/*
 * numbers.c: the calls that give a descriptor's number another meaning, wrapped so that fdtab.c hears of it first and
 * need not ask the kernel, at each ioctl, what a number means: a system call costs from 0.1 to more than 1 microsecond,
 * and KVM_RUN needs no other.
 *
 * Part of both doors. A linked client that does not get these wrappers, because somebody else's come first or the
 * library was loaded late, is noticed at the start (numbers_ours()), and then numbers are proved each time. What no
 * wrapper sees (raw system calls, fclose() of an fdopen()ed descriptor of ours) must not be used on our descriptors:
 * devkvm.h says so.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <linux/close_range.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "front.h"
#include "root.h"

#define EXPORT __attribute__((visibility("default")))

/* The C library's own, a cancellation point as close() is. */
extern int __close(int fd);

EXPORT int close(int fd)
{
	if (front_is_ours(fd))
		return front_close(fd);
	return root_keeps(root_files(), fd) ? 0 : __close(fd);
}

/* The same function by a name that nobody else can take. */
extern __typeof(close) close_ours __attribute__((alias("close"), visibility("hidden")));

/* SYS_dup2 or SYS_dup3, whose flags it alone looks at. */
static int replace(long call, int old, int new, int flags)
{
	bool ours;
	int rc;

	if (old == new)
		return (int)syscall(call, old, new, flags);
	ours = front_is_ours(new);
	front_forget((unsigned)new, (unsigned)new);
	rc = (int)syscall(call, old, new, flags);
	/* A call on the dying number, beside this one, may have noted it again. */
	front_forget((unsigned)new, (unsigned)new);
	if (ours && rc >= 0)
		front_reap();
	return rc;
}

EXPORT int dup2(int old, int new)
{
	return replace(SYS_dup2, old, new, 0);
}

EXPORT int dup3(int old, int new, int flags)
{
	return replace(SYS_dup3, old, new, flags);
}

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
	int rc;

	front_forget(first, last);
	rc = root_close_range(root_files(), first, last, flags);
	front_forget(first, last);
	if (rc == 0 && !(flags & CLOSE_RANGE_CLOEXEC))
		front_reap();
	return rc;
}

/* Linux before 5.9 closes them one by one. */
static void close_each_from(int first)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *d;

	while (dir && (d = readdir(dir)) != NULL) {
		int fd = atoi(d->d_name);

		if (d->d_name[0] != '.' && fd >= first && fd != dirfd(dir) && !root_keeps(root_files(), fd))
			__close(fd);
	}
	if (dir)
		closedir(dir);
}

EXPORT void closefrom(int first)
{
	if (first < 0)
		first = 0;
	front_forget((unsigned)first, ~0u);
	if (root_close_range(root_files(), (unsigned)first, ~0u, 0) < 0)
		close_each_from(first);
	front_reap();
}

bool numbers_ours(void)
{
	/* By the dynamic linker's choice, not by this file's knowledge. */
	int (*volatile chosen)(int fd) = close;

	return chosen == close_ours;
}
