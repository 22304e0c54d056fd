/*
 * static_root.c: programs that change their root directory and then start another one, themselves mostly.
 *
 * Below another root neither devkvm-load nor the libraries it needs have a path, and the program's own file has not
 * either: sandboxes do it so, and start /proc/self/exe. So before the root changes all these files are opened, under
 * high numbers that are closed on exec. To start a program then, the dynamic linker is executed itself, by its
 * descriptor, and told the others; what it started takes the descriptors over, for the next time.
 *
 * This wants /proc below the new root, as /proc/self/exe does.
 */
#define _GNU_SOURCE
#include "static.h"

#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../base/sys.h"
#include "exec.h"

#define OPTION "--files="
#define HIGHEST_FROM 900

enum { LINKER, LOADER, PROGRAM, LIBRARIES };

static struct root_files process;
/* protects: filling one */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

struct root_files *static_root_files(void)
{
	return &process;
}

/* Out of the way of the numbers that programs count on. */
static int move_up(int fd)
{
	struct rlimit most = {.rlim_cur = 256};
	int up;

	getrlimit(RLIMIT_NOFILE, &most);
	up = fcntl(fd, F_DUPFD_CLOEXEC, most.rlim_cur / 2 < HIGHEST_FROM ? (int)(most.rlim_cur / 2) : HIGHEST_FROM);
	sys_close(fd);
	return up;
}

static bool note(struct root_files *f, unsigned n, int fd)
{
	struct stat st;

	if (fd < 0 || n >= ROOT_FILES || sys_fstat(fd, &st) < 0)
		return false;
	f->fd[n] = fd;
	f->ino[n] = st.st_ino;
	return true;
}

static bool open_as(struct root_files *f, unsigned n, const char *path)
{
	int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);

	return fd >= 0 && note(f, n, move_up(fd));
}

struct list {
	struct root_files files;
	unsigned n;
	bool bad;
};

static int open_object(struct dl_phdr_info *info, size_t size, void *arg)
{
	struct list *l = arg;

	/* The program itself has no name, the kernel's page no path. */
	if (!strchr(info->dlpi_name, '/'))
		return 0;
	if (info->dlpi_addr == getauxval(AT_BASE))
		l->bad |= !open_as(&l->files, LINKER, info->dlpi_name);
	else
		l->bad |= !open_as(&l->files, l->n++, info->dlpi_name);
	return 0;
}

void static_root_leaving(struct sthread *t)
{
	struct list l = {.n = LIBRARIES};

	pthread_mutex_lock(&lock);
	if (!static_root_left(t)) {
		for (unsigned n = 0; n < ROOT_FILES; n++)
			l.files.fd[n] = -1;
		dl_iterate_phdr(open_object, &l);
		/* Not /proc/self/exe: there may be no /proc at the moment. */
		l.bad |= !exec_loader() || !open_as(&l.files, LOADER, exec_loader());
		l.bad |= !open_as(&l.files, PROGRAM, static_exe());
		if (!l.bad && l.files.fd[LINKER] >= 0) {
			l.files.n = l.n;
			*t->files = l.files;
		} else {
			for (unsigned n = 0; n < ROOT_FILES; n++)
				if (l.files.fd[n] >= 0)
					sys_close(l.files.fd[n]);
		}
	}
	pthread_mutex_unlock(&lock);
}

bool static_root_left(const struct sthread *t)
{
	struct stat st;

	/* The program may have closed what it did not know. */
	for (unsigned n = 0; n < t->files->n; n++)
		if (sys_fstat(t->files->fd[n], &st) < 0 || st.st_ino != t->files->ino[n])
			return false;
	return t->files->n;
}

void static_root_exe(const struct sthread *t, char path[ROOT_PATH])
{
	snprintf(path, ROOT_PATH, "/proc/self/fd/%d", t->files->fd[PROGRAM]);
}

/* For the start, or after it. */
static void set_cloexec(const struct root_files *f, bool on)
{
	for (unsigned n = 0; n < f->n; n++)
		fcntl(f->fd[n], F_SETFD, on ? FD_CLOEXEC : 0);
}

const char *static_root_exec(const struct sthread *t, struct root_exec *x, char **out)
{
	const struct root_files *f = t->files;
	size_t n = 0;

	for (unsigned k = LIBRARIES; k < f->n; k++)
		n += (size_t)snprintf(x->libraries + n, sizeof(x->libraries) - n, "%s/proc/self/fd/%d", n ? ":" : "",
		                      f->fd[k]);
	n = (size_t)snprintf(x->files, sizeof(x->files), OPTION);
	for (unsigned k = 0; k < f->n; k++)
		n += (size_t)snprintf(x->files + n, sizeof(x->files) - n, "%d,", f->fd[k]);
	snprintf(x->linker, sizeof(x->linker), "/proc/self/fd/%d", f->fd[LINKER]);
	snprintf(x->loader, sizeof(x->loader), "/proc/self/fd/%d", f->fd[LOADER]);
	*out++ = (char *)(uintptr_t) "devkvm-load";
	*out++ = (char *)(uintptr_t) "--inhibit-cache";
	*out++ = (char *)(uintptr_t) "--preload";
	*out++ = x->libraries;
	*out++ = x->loader;
	*out = x->files;
	set_cloexec(f, false);
	return x->linker;
}

void static_root_exec_failed(const struct sthread *t)
{
	set_cloexec(t->files, true);
}

bool static_root_adopt(const char *arg)
{
	struct root_files f = {.n = 0};
	char *end;

	if (strncmp(arg, OPTION, strlen(OPTION)) != 0)
		return false;
	for (arg += strlen(OPTION); *arg; arg = end + (*end == ',')) {
		int fd = (int)strtol(arg, &end, 10);

		if (end == arg || !note(&f, f.n, fd))
			return true;
		f.n++;
	}
	process = f;
	set_cloexec(&process, true);
	return true;
}
