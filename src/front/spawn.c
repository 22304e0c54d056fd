/*
 * spawn.c: the C library's functions that start programs, replaced like those of preload.c: a statically linked program
 * starts through devkvm-load (exec.c), every other one as it would.
 *
 * They may be called in a child of vfork(): nothing is allocated but on the stack.
 */
#define _GNU_SOURCE
#include "exec.h"
#include "real.h"

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

/* The program that execvp() would start, when it is static. */
static bool find_static(const char *name, char *path)
{
	const char *dirs = getenv("PATH");

	if (!name || !*name)
		return false;
	if (strchr(name, '/')) {
		if (strlen(name) >= PATH_MAX || !exec_is_static(AT_FDCWD, name))
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
				return exec_is_static(AT_FDCWD, path);
		}
		dirs += n + (dirs[n] == ':');
	}
	return false;
}

EXPORT int execve(const char *path, char *const argv[], char *const envp[])
{
	if (!exec_is_static(AT_FDCWD, path))
		return REAL(execve)(path, argv, envp);
	{
		char *args[exec_argc(argv) + EXEC_MORE];

		exec_loader_argv(args, path, argv);
		return REAL(execve)(exec_loader(), args, envp);
	}
}

EXPORT int execv(const char *path, char *const argv[])
{
	return execve(path, argv, environ);
}

EXPORT int execvpe(const char *name, char *const argv[], char *const envp[])
{
	char path[PATH_MAX];

	return find_static(name, path) ? execve(path, argv, envp) : REAL(execvpe)(name, argv, envp);
}

EXPORT int execvp(const char *name, char *const argv[])
{
	char path[PATH_MAX];

	return find_static(name, path) ? execve(path, argv, environ) : REAL(execvp)(name, argv);
}

/* The file is opened by devkvm-load, so its descriptor must live through the start. */
static int exec_fd(int fd, char *const argv[], char *const envp[])
{
	char path[64];
	int copy = (int)syscall(SYS_fcntl, fd, F_DUPFD, 3);

	if (copy < 0)
		return -1;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", copy);
	execve(path, argv, envp);
	syscall(SYS_close, copy);
	return -1;
}

static bool fd_is_static(int fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return exec_is_static(AT_FDCWD, path);
}

EXPORT int fexecve(int fd, char *const argv[], char *const envp[])
{
	return fd_is_static(fd) ? exec_fd(fd, argv, envp) : REAL(fexecve)(fd, argv, envp);
}

EXPORT int execveat(int dirfd, const char *path, char *const argv[], char *const envp[], int flags)
{
	char at[PATH_MAX + 64], first = 0;

	if (user_read(&first, path, 1) < 0)
		return REAL(execveat)(dirfd, path, argv, envp, flags);
	if (!first && (flags & AT_EMPTY_PATH) && fd_is_static(dirfd))
		return exec_fd(dirfd, argv, envp);
	if (first && !flags && exec_is_static(dirfd, path)) {
		if (first == '/' || dirfd == AT_FDCWD)
			return execve(path, argv, envp);
		snprintf(at, sizeof(at), "/proc/self/fd/%d/%s", dirfd, path);
		return execve(at, argv, envp);
	}
	return REAL(execveat)(dirfd, path, argv, envp, flags);
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

static int spawn_static(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                        const posix_spawnattr_t *attr, char *const argv[], char *const envp[])
{
	char *args[exec_argc(argv) + EXEC_MORE];

	exec_loader_argv(args, path, argv);
	return REAL(posix_spawn)(pid, exec_loader(), actions, attr, args, envp);
}

EXPORT int posix_spawn(pid_t *restrict pid, const char *restrict path,
                       const posix_spawn_file_actions_t *restrict actions, const posix_spawnattr_t *restrict attr,
                       char *const argv[restrict], char *const envp[restrict])
{
	if (exec_is_static(AT_FDCWD, path))
		return spawn_static(pid, path, actions, attr, argv, envp);
	return REAL(posix_spawn)(pid, path, actions, attr, argv, envp);
}

EXPORT int posix_spawnp(pid_t *restrict pid, const char *restrict name,
                        const posix_spawn_file_actions_t *restrict actions, const posix_spawnattr_t *restrict attr,
                        char *const argv[restrict], char *const envp[restrict])
{
	char path[PATH_MAX];

	if (find_static(name, path))
		return spawn_static(pid, path, actions, attr, argv, envp);
	return REAL(posix_spawnp)(pid, name, actions, attr, argv, envp);
}
