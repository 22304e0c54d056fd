/*
 * devkvm.h: /dev/kvm as plain calls, for programs that link libdevkvm.
 *
 * The four calls behave as open, ioctl, mmap and close do on a /dev/kvm: they return what those return and set errno. A
 * descriptor is a real one: it can be dup'ed, closed with close(), dup2() and their kin (which the library wraps; not
 * by a raw system call, nor by fclose()) and inherited. Include the interface's own header
 * (<linux/kvm.h>; that of 2006 is in the folder include/devkvm/2006) for requests and structures.
 *
 * Signals: a handler installed with sigaction() or signal() that runs in a thread inside KVM_RUN ends that KVM_RUN with
 * EINTR, whatever its SA_RESTART. The library wraps those two functions for that.
 */
#ifndef DEVKVM_H
#define DEVKVM_H

#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/**
 * Opens a /dev/kvm of our own.
 * @flags: O_CLOEXEC or 0; O_RDWR is understood.
 * Returns a descriptor, or -1 with errno EMFILE, ENFILE, ENOMEM.
 */
int devkvm_open(int flags);

/**
 * ioctl() on a descriptor that devkvm_open() gave (or a dup of it, or one it made).
 * @request: a KVM_ request of <linux/kvm.h>.
 * @arg: its argument: a pointer, or an integer cast to one.
 * Returns what the request returns, or -1 with errno; EBADF when the descriptor is not ours.
 */
int devkvm_ioctl(int fd, unsigned long request, void *arg);

/** mmap() of such a descriptor; @offset is a guest physical address in the interface of 2006. */
void *devkvm_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset);

/** close() of such a descriptor. The last one frees the virtual machine. */
int devkvm_close(int fd);

/**
 * What CPUID says on the processor that guests see: implemented by devkvm and present on this host.
 * @out: EAX, EBX, ECX, EDX.
 * The interface of 2006 leaves CPUID to the client: answer its exits with this, or with less.
 */
void devkvm_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4]);

/** The version as "major.minor.patch". */
const char *devkvm_version(void);

#ifdef __cplusplus
}
#endif
#endif
