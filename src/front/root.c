/*
 * root.c: programs that change their root directory, or their user, and then start another one, as sandboxes and
 * libvirt do.
 *
 * Below another root neither our library nor devkvm-load, nor what these need, may have a path, and a program's own
 * file may not either; another user may not pass a directory on the way there. So before a program changes what it sees
 * or who it is, all these are opened, under high numbers that are closed on exec. To start a static program then, the
 * dynamic linker is executed itself, by its descriptor, and told the others; what it started takes the descriptors
 * over, for the next time. A dynamic program keeps its own dynamic linker and C library, and finds ours by
 * LD_PRELOAD=/proc/self/fd/N. There the descriptors stay open over each further exec, since the C library starts
 * programs by ways that we do not see (system()).
 *
 * This wants /proc below the new root, as /proc/self/exe does.
 */
#define _GNU_SOURCE
#include "root.h"

#include <Zydis/Zydis.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <gnu/libc-version.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../base/sys.h"
#include "../base/types.h"

#define OPTION "--files="
#define HIGHEST_FROM 900
#define FD_NAME "/proc/self/fd/"
#define LIBRARY_NAME "libdevkvm-preload.so"
#define PRELOAD "LD_PRELOAD="

/* PROGRAM may be -1: there is none. What a dynamic program needs comes before what it has itself. */
enum { LINKER, LOADER, PROGRAM, LIBRARY, DECODER, C_LIBRARY, FILES };
_Static_assert(FILES <= ROOT_FILES, "");

extern void *__tls_get_addr(void *);

static struct root_files process;
/* protects: filling one */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void fork_prepare(void)
{
	pthread_mutex_lock(&lock);
}

static void fork_after(void)
{
	pthread_mutex_unlock(&lock);
}

static void init_once(void)
{
	pthread_atfork(fork_prepare, fork_after, fork_after);
}

struct root_files *root_files(void)
{
	return &process;
}

/* Where the object is that has this address, as the dynamic linker opened it. */
static const char *object(const void *address)
{
	Dl_info at;

	return dladdr(address, &at) ? at.dli_fname : NULL;
}

#define OBJECT(function) object((const void *)(uintptr_t)(function))

static const char *own_path(void)
{
	return OBJECT(root_files);
}

static bool is_fd_name(const char *path)
{
	return strncmp(path, FD_NAME, strlen(FD_NAME)) == 0;
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

	if (n >= ROOT_FILES)
		return false;
	f->fd[n] = -1;
	if (fd < 0 || sys_fstat(fd, &st) < 0)
		return false;
	f->fd[n] = fd;
	f->dev[n] = st.st_dev;
	f->ino[n] = st.st_ino;
	return true;
}

static bool open_as(struct root_files *f, unsigned n, const char *path)
{
	/* The name of a descriptor, which is gone: what the number means now is somebody else's. */
	int fd = path && !is_fd_name(path) ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;

	return fd >= 0 && note(f, n, move_up(fd));
}

static bool still(const struct root_files *f, unsigned n)
{
	struct stat st;

	return f->fd[n] >= 0 && sys_fstat(f->fd[n], &st) == 0 && st.st_dev == f->dev[n] && st.st_ino == f->ino[n];
}

/* The program may have put something else in their place. */
static bool have(const struct root_files *f)
{
	for (unsigned n = 0; n < f->n; n++)
		if (n != PROGRAM && !still(f, n))
			return false;
	return f->n;
}

static void close_all(const struct root_files *f)
{
	for (unsigned n = 0; n < f->n; n++)
		if (still(f, n))
			sys_close(f->fd[n]);
}

void root_leaving(struct root_files *f, const char *loader, const char *program)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct root_files all = {.n = FILES};
	const char *decoder = OBJECT(ZydisDecoderInit), *own = own_path();
	int err = errno;

	pthread_once(&once, init_once);
	pthread_mutex_lock(&lock);
	if (!have(f)) {
		bool ok;

		memset(all.fd, -1, sizeof(all.fd));
		ok = open_as(&all, LINKER, OBJECT(__tls_get_addr)) && open_as(&all, LOADER, loader) &&
		     open_as(&all, LIBRARY, own) && open_as(&all, C_LIBRARY, OBJECT(gnu_get_libc_version)) &&
		     open_as(&all, DECODER, decoder);
		/* Not /proc/self/exe: there may be no /proc at the moment. */
		if (ok && program)
			open_as(&all, PROGRAM, program);
		if (ok) {
			close_all(f);
			*f = all;
		} else {
			close_all(&all);
		}
	}
	pthread_mutex_unlock(&lock);
	errno = err;
}

bool root_hidden(void)
{
	const char *own = own_path();
	int err = errno;
	bool hidden = !own || is_fd_name(own) || syscall(SYS_access, own, F_OK) < 0;

	errno = err;
	return hidden;
}

static void fd_name(const struct root_files *f, unsigned n, char path[ROOT_PATH])
{
	snprintf(path, ROOT_PATH, FD_NAME "%d", f->fd[n]);
}

bool root_left(const struct root_files *f)
{
	char path[ROOT_PATH];
	int err = errno;
	bool yes = f->n && root_hidden() && have(f);

	if (yes) {
		fd_name(f, LIBRARY, path);
		yes = syscall(SYS_access, path, F_OK) == 0;
	}
	errno = err;
	return yes;
}

bool root_keeps(const struct root_files *f, int fd)
{
	int err = errno;
	bool keeps = false;

	for (unsigned n = 0; n < f->n; n++)
		keeps |= f->fd[n] == fd && still(f, n);
	errno = err;
	return keeps;
}

int root_close_range(const struct root_files *f, unsigned first, unsigned last, int flags)
{
	/* In pieces, from one of them to the next. */
	while (first <= last) {
		unsigned next = last;
		bool found = false;

		for (unsigned n = 0; n < f->n; n++)
			if (f->fd[n] >= 0 && (unsigned)f->fd[n] >= first && (unsigned)f->fd[n] <= next && still(f, n)) {
				next = (unsigned)f->fd[n];
				found = true;
			}
		if (!found)
			break;
		if (next > first && syscall(SYS_close_range, first, next - 1, flags) < 0)
			return -1;
		first = next + 1;
		if (next == last)
			return 0;
	}
	return (int)syscall(SYS_close_range, first, last, flags);
}

const char *root_exe(const struct root_files *f, const char *path, char room[ROOT_PATH])
{
	struct stat st;

	if (!f->n || !still(f, PROGRAM) ||
	    (syscall(SYS_newfstatat, AT_FDCWD, path, &st, 0) == 0 && st.st_dev == f->dev[PROGRAM] &&
	     st.st_ino == f->ino[PROGRAM]))
		return path;
	fd_name(f, PROGRAM, room);
	return room;
}

void root_set_cloexec(const struct root_files *f, bool on)
{
	for (unsigned n = 0; n < f->n; n++)
		if (still(f, n))
			fcntl(f->fd[n], F_SETFD, on ? FD_CLOEXEC : 0);
}

static void list(const struct root_files *f, char *out, size_t size, const char *before)
{
	size_t n = (size_t)snprintf(out, size, "%s", before);

	for (unsigned k = 0; k < f->n; k++)
		n += (size_t)snprintf(out + n, size - n, "%d,", f->fd[k]);
}

/* Their names, between `from` and `to`, with colons. */
static size_t names(const struct root_files *f, unsigned from, unsigned to, char *out, size_t size)
{
	size_t n = 0;

	for (unsigned k = from; k < to && n < size; k++)
		n += (size_t)snprintf(out + n, size - n, "%s" FD_NAME "%d", n ? ":" : "", f->fd[k]);
	return n;
}

const char *root_exec(const struct root_files *f, struct root_exec *x, char **out)
{
	names(f, LIBRARY, FILES, x->libraries, sizeof(x->libraries));
	list(f, x->files, sizeof(x->files), OPTION);
	fd_name(f, LINKER, x->linker);
	fd_name(f, LOADER, x->loader);
	*out++ = (char *)(uintptr_t) "devkvm-load";
	*out++ = (char *)(uintptr_t) "--inhibit-cache";
	*out++ = (char *)(uintptr_t) "--preload";
	*out++ = x->libraries;
	*out++ = x->loader;
	*out = x->files;
	return x->linker;
}

/* Is this component of LD_PRELOAD our library? By the name that it is installed by, or that we put there. */
static bool is_library(const char *name, size_t n)
{
	const char *own = own_path();
	size_t len = strlen(LIBRARY_NAME);

	return (n > len && memcmp(name + n - len, LIBRARY_NAME, len) == 0 && name[n - len - 1] == '/') ||
	       (own && strlen(own) == n && memcmp(own, name, n) == 0);
}

/* Where in LD_PRELOAD our library is, and how long that name is; NULL: nowhere. */
static const char *find_library(const char *variable, size_t *length)
{
	const char *at = variable + strlen(PRELOAD);

	if (strncmp(variable, PRELOAD, strlen(PRELOAD)) != 0)
		return NULL;
	for (;; at += *length) {
		at += strspn(at, ": ");
		*length = strcspn(at, ": ");
		if (!*length)
			return NULL;
		if (is_library(at, *length))
			return at;
	}
}

bool root_names_us(const char *variable)
{
	size_t n;

	return find_library(variable, &n) != NULL;
}

char *root_variable(const struct root_files *f, struct root_exec *x, const char *variable)
{
	size_t length, n;
	const char *at = find_library(variable, &length);
	char ours[ROOT_FILES * ROOT_PATH];

	/* Already so: what we put there in an earlier program. */
	if (!at || is_fd_name(at))
		return NULL;
	names(f, LIBRARY, C_LIBRARY, ours, sizeof(ours));
	n = (size_t)snprintf(x->preload, sizeof(x->preload), "%.*s%s%s", (int)(at - variable), variable, ours,
	                     at + length);
	return n < sizeof(x->preload) ? x->preload : NULL;
}

char *root_files_variable(const struct root_files *f, struct root_exec *x)
{
	list(f, x->variable, sizeof(x->variable), ROOT_VARIABLE "=");
	return x->variable;
}

static bool adopt(const char *numbers, struct root_files *f)
{
	char *end;

	*f = (struct root_files){.n = 0};
	for (; *numbers && f->n < FILES; numbers = end + (*end == ',')) {
		int fd = (int)strtol(numbers, &end, 10);

		if (end == numbers || (!note(f, f->n, fd) && f->n != PROGRAM))
			return false;
		f->n++;
	}
	return f->n == FILES;
}

bool root_adopt_option(const char *arg)
{
	struct root_files f;

	if (strncmp(arg, OPTION, strlen(OPTION)) != 0)
		return false;
	if (adopt(arg + strlen(OPTION), &f)) {
		process = f;
		root_set_cloexec(&process, true);
	}
	return true;
}

void root_adopt_variable(const char *value)
{
	const char *own = own_path();
	char name[ROOT_PATH];
	struct root_files f;

	if (!own || !is_fd_name(own) || !adopt(value, &f))
		return;
	fd_name(&f, LIBRARY, name);
	if (strcmp(name, own) == 0)
		process = f;
}

void root_adopt_program(int fd)
{
	struct root_files *f = &process;
	int copy;

	if (!f->n)
		return;
	if (still(f, PROGRAM))
		sys_close(f->fd[PROGRAM]);
	copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	note(f, PROGRAM, copy < 0 ? -1 : move_up(copy));
}
