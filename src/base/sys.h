/*
 * sys.h: the few system calls that the preloaded front replaces for the client, as the engine itself makes them: past
 * the replacements, which would otherwise take the engine for a client.
 */
#ifndef DEVKVM_BASE_SYS_H
#define DEVKVM_BASE_SYS_H

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* As mmap(), close(), fstat() and lseek(): errno and -1 (MAP_FAILED). */
static inline void *sys_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, addr, length, prot, flags, fd, offset);
}

static inline int sys_close(int fd)
{
	return (int)syscall(SYS_close, fd);
}

static inline int sys_fstat(int fd, struct stat *st)
{
	return (int)syscall(SYS_fstat, fd, st);
}

static inline off_t sys_lseek(int fd, off_t offset, int whence)
{
	return (off_t)syscall(SYS_lseek, fd, offset, whence);
}

#endif
