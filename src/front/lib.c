/*
 * lib.c: the calls of <devkvm.h>: the front's functions with errno.
 */
#include "../../include/devkvm.h"

#include <errno.h>
#include <fcntl.h>

#include "../cpu/cpu.h"
#include "front.h"

#define EXPORT __attribute__((visibility("default")))

static long result(long rc)
{
	if (rc >= 0)
		return rc;
	errno = (int)-rc;
	return -1;
}

EXPORT int devkvm_open(int flags)
{
	if (numbers_ours())
		front_trust_numbers();
	return (int)result(front_open(flags & O_CLOEXEC));
}

EXPORT int devkvm_ioctl(int fd, unsigned long request, void *arg)
{
	long rc = front_ioctl(fd, request, (unsigned long)arg);

	return (int)result(rc == FRONT_NOT_OURS ? -EBADF : rc);
}

EXPORT void *devkvm_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
	return front_mmap(addr, length, prot, flags, fd, offset);
}

EXPORT int devkvm_close(int fd)
{
	return front_close(fd);
}

EXPORT void devkvm_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
	cpuid_leaf(leaf, subleaf, out);
}

EXPORT const char *devkvm_version(void)
{
	return DEVKVM_VERSION;
}
