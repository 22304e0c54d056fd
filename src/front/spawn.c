/*
 * spawn.c: the C library's functions that start programs, replaced like those of preload.c: a statically linked program
 * starts through devkvm-load (exec.c), every other one as it would.
 *
 * They may be called in a child of vfork(): nothing is allocated but on the stack.
 */
#define _GNU_SOURCE
#include "exec.h"
#include "real.h"
#include "root.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdint.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../base/usercopy.h"

#define EXPORT __attribute__((visibility("default")))

/* The program that execvp() would start. False: there is none. */
static bool find(const char *name, char *path)
{
	const char *dirs = getenv("PATH");

	if (!name || !*name)
		return false;
	if (strchr(name, '/')) {
		if (strlen(name) >= PATH_MAX)
			return false;
		strcpy(path, name);
		return true;
	}
	for (dirs = dirs ? dirs : "/bin:/usr/bin"; *dirs;) {
		size_t n = strcspn(dirs, ":");
		struct stat st;

		if (n + strlen(name) + 3 < PATH_MAX) {
			sprintf(path, "%.*s/%s", n ? (int)n : 1, n ? dirs : ".", name);
			if (syscall(SYS_access, path, X_OK) == 0 &&
			    syscall(SYS_newfstatat, AT_FDCWD, path, &st, 0) == 0 && S_ISREG(st.st_mode))
				return true;
		}
		dirs += n + (dirs[n] == ':');
	}
	return false;
}

/* A start on its way: what the door calls at the end, with what the program is to get. */
struct start {
	const char *path; /* of the program; NULL: only the kernel knows */
	char *const *argv, *const *envp;
	/* `file` NULL: the program, as the client named it. */
	int (*go)(const struct start *s, const char *file, char *const argv[], char *const envp[]);
	/* For go(). */
	const char *name;
	int fd, flags;
	pid_t *pid;
	const posix_spawn_file_actions_t *actions;
	const posix_spawnattr_t *attr;
};

static int start_static(const struct start *s, bool left, struct root_exec *x, char *const envp[])
{
	char *args[ROOT_EXEC_ARGS + exec_argc(s->argv) + EXEC_MORE];

	if (!left) {
		exec_loader_argv(args, s->path, s->argv);
		return s->go(s, exec_loader(), args, envp);
	}
	exec_loader_argv(args + ROOT_EXEC_ARGS - 1, s->path, s->argv);
	return s->go(s, root_exec(root_files(), x, args), args, envp);
}

/* Where our library has no path, what leads to it in the environment is changed. */
static int start_hidden(const struct start *s, bool is_static)
{
	size_t n = exec_argc(s->envp), k = 0;
	bool left = root_left(root_files()), ours = false;
	char *env[n + 2];
	struct root_exec x;

	for (size_t e = 0; e < n; e++) {
		char *changed;

		env[k++] = s->envp[e];
		if (strncmp(s->envp[e], ROOT_VARIABLE "=", strlen(ROOT_VARIABLE "=")) == 0) {
			k--;
		} else if (root_names_us(s->envp[e])) {
			ours = true;
			changed = left ? root_variable(root_files(), &x, s->envp[e]) : NULL;
			if (changed)
				env[k - 1] = changed;
		}
	}
	if (ours && left)
		env[k++] = root_files_variable(root_files(), &x);
	env[k] = NULL;
	if (left)
		root_set_cloexec(root_files(), false);
	else if (ours && s->path && syscall(SYS_access, s->path, X_OK) == 0 && !exec_file_is_static(AT_FDCWD, s->path))
		exec_lost(s->path);
	return is_static ? start_static(s, left, &x, env) : s->go(s, NULL, s->argv, env);
}

static int start(const struct start *s)
{
	bool is_static = s->path && exec_is_static(root_files(), AT_FDCWD, s->path);

	if (root_hidden())
		return start_hidden(s, is_static);
	/* Nothing but what the kernel looks at is looked at: pointers may be bad. */
	return is_static ? start_static(s, false, NULL, s->envp) : s->go(s, NULL, s->argv, s->envp);
}

static int go_execve(const struct start *s, const char *file, char *const argv[], char *const envp[])
{
	return REAL(execve)(file ? file : s->name, argv, envp);
}

EXPORT int execve(const char *path, char *const argv[], char *const envp[])
{
	return start(&(struct start){.path = path, .name = path, .argv = argv, .envp = envp, .go = go_execve});
}

EXPORT int execv(const char *path, char *const argv[])
{
	return execve(path, argv, environ);
}

static int go_execvpe(const struct start *s, const char *file, char *const argv[], char *const envp[])
{
	return file ? REAL(execve)(file, argv, envp) : REAL(execvpe)(s->name, argv, envp);
}

EXPORT int execvpe(const char *name, char *const argv[], char *const envp[])
{
	char path[PATH_MAX];

	return start(&(struct start){
	        .path = find(name, path) ? path : NULL, .name = name, .argv = argv, .envp = envp, .go = go_execvpe});
}

EXPORT int execvp(const char *name, char *const argv[])
{
	return execvpe(name, argv, environ);
}

static int go_fexecve(const struct start *s, const char *file, char *const argv[], char *const envp[])
{
	return file ? REAL(execve)(file, argv, envp) : REAL(fexecve)(s->fd, argv, envp);
}

static int go_execveat(const struct start *s, const char *file, char *const argv[], char *const envp[])
{
	return file ? REAL(execve)(file, argv, envp) : REAL(execveat)(s->fd, s->name, argv, envp, s->flags);
}

/* The file is opened by devkvm-load, so its descriptor must live through the start. */
static int start_fd(struct start *s)
{
	char path[64];
	int copy = (int)syscall(SYS_fcntl, s->fd, F_DUPFD, 3), rc, err;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", copy);
	s->path = copy < 0 ? NULL : path;
	rc = start(s);
	err = errno;
	if (copy >= 0)
		syscall(SYS_close, copy);
	errno = err;
	return rc;
}

static int start_by_fd(struct start *s)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", s->fd);
	s->path = path;
	return exec_file_is_static(AT_FDCWD, path) ? start_fd(s) : start(s);
}

EXPORT int fexecve(int fd, char *const argv[], char *const envp[])
{
	return start_by_fd(&(struct start){.fd = fd, .argv = argv, .envp = envp, .go = go_fexecve});
}

EXPORT int execveat(int dirfd, const char *path, char *const argv[], char *const envp[], int flags)
{
	struct start s = {.fd = dirfd, .name = path, .flags = flags, .argv = argv, .envp = envp, .go = go_execveat};
	char at[PATH_MAX + 64], first = 0;

	if (user_read(&first, path, 1) < 0)
		return REAL(execveat)(dirfd, path, argv, envp, flags);
	if (!first && (flags & AT_EMPTY_PATH))
		return start_by_fd(&s);
	if (first && !flags) {
		s.path = path;
		if (first != '/' && dirfd != AT_FDCWD) {
			snprintf(at, sizeof(at), "/proc/self/fd/%d/%s", dirfd, path);
			s.path = at;
		}
	}
	return start(&s);
}

/* The arguments of execl() and its like, from `arg` on, which some callers leave NULL. */
#define COLLECT(argv, arg, ap)                                                                                         \
	const char *first_ = arg;                                                                                      \
	size_t n_ = 1;                                                                                                 \
	__asm__("" : "+r"(first_));                                                                                    \
	va_start(ap, arg);                                                                                             \
	while (first_ && va_arg(ap, char *))                                                                           \
		n_++;                                                                                                  \
	va_end(ap);                                                                                                    \
	char *argv[n_ + 1];                                                                                            \
	argv[0] = (char *)(uintptr_t)first_;                                                                           \
	va_start(ap, arg);                                                                                             \
	for (size_t k_ = 1; first_ && k_ <= n_; k_++)                                                                  \
	argv[k_] = va_arg(ap, char *)

EXPORT int execl(const char *path, const char *arg, ...)
{
	va_list ap;

	COLLECT(argv, arg, ap);
	va_end(ap);
	return execve(path, argv, environ);
}

EXPORT int execlp(const char *name, const char *arg, ...)
{
	va_list ap;

	COLLECT(argv, arg, ap);
	va_end(ap);
	return execvp(name, argv);
}

EXPORT int execle(const char *path, const char *arg, ...)
{
	char *const *envp;
	va_list ap;

	COLLECT(argv, arg, ap);
	envp = va_arg(ap, char *const *);
	va_end(ap);
	return execve(path, argv, envp);
}

static int go_spawn(const struct start *s, const char *file, char *const argv[], char *const envp[])
{
	return REAL(posix_spawn)(s->pid, file ? file : s->name, s->actions, s->attr, argv, envp);
}

EXPORT int posix_spawn(pid_t *restrict pid, const char *restrict path,
                       const posix_spawn_file_actions_t *restrict actions, const posix_spawnattr_t *restrict attr,
                       char *const argv[restrict], char *const envp[restrict])
{
	return start(&(struct start){.path = path,
	                             .name = path,
	                             .argv = argv,
	                             .envp = envp,
	                             .pid = pid,
	                             .actions = actions,
	                             .attr = attr,
	                             .go = go_spawn});
}

static int go_spawnp(const struct start *s, const char *file, char *const argv[], char *const envp[])
{
	if (file)
		return REAL(posix_spawn)(s->pid, file, s->actions, s->attr, argv, envp);
	return REAL(posix_spawnp)(s->pid, s->name, s->actions, s->attr, argv, envp);
}

EXPORT int posix_spawnp(pid_t *restrict pid, const char *restrict name,
                        const posix_spawn_file_actions_t *restrict actions, const posix_spawnattr_t *restrict attr,
                        char *const argv[restrict], char *const envp[restrict])
{
	char path[PATH_MAX];

	return start(&(struct start){.path = find(name, path) ? path : NULL,
	                             .name = name,
	                             .argv = argv,
	                             .envp = envp,
	                             .pid = pid,
	                             .actions = actions,
	                             .attr = attr,
	                             .go = go_spawnp});
}
