/*
 * front.h: how programs reach the engine: descriptors, signals, and the calls that both doors (libdevkvm and the
 * preloaded symbols) share.
 */
#ifndef DEVKVM_FRONT_FRONT_H
#define DEVKVM_FRONT_FRONT_H

#include <signal.h>
#include <stdbool.h>
#include <sys/types.h>

#include "../base/types.h"

/* ---- fdtab.c: which descriptors are ours ------------------------------------------------------------------------- */

/* open("/dev/kvm"): a new descriptor, or -errno. */
int front_open(bool cloexec);
/* True when the descriptor is one of ours, by what it refers to and not by its number. */
bool front_is_ours(int fd);
/* The ioctl's result, or -errno; FRONT_NOT_OURS when the descriptor is not ours. */
#define FRONT_NOT_OURS (-4096L)
long front_ioctl(int fd, unsigned long req, unsigned long arg);
/* mmap() of one of ours: address, or MAP_FAILED with errno set. */
void *front_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset);
/* close() of a descriptor: closes it and frees the VM when it was the last. As close(): 0 or -1 with errno. */
int front_close(int fd);
/* These were sent through a socket: their VMs stay even when this process has no descriptor of them for a while. */
void front_sent(const int *fds, size_t n);
/* The caller promises front_forget() for each number before it comes to mean something else: numbers may be trusted. */
void front_trust_numbers(void);
void front_forget(unsigned from, unsigned to);
/* Around a call that takes the client's memory [address, address + size) away, or replaces it: guests that use it are
 * stopped meanwhile. False: nobody does, and there is no end to call. */
bool front_memory_begin(u64 address, u64 size);
/* The same of mremap(), which with MREMAP_FIXED (`fixed`) also replaces what is at [to, to + size). */
bool front_remap_begin(u64 old, u64 length, bool fixed, u64 to, u64 size);
void front_memory_end(void);
/* Frees the VMs that no descriptor of this process refers to any more. */
void front_reap(void);

/* numbers.c: do the process' calls of close() and its kin come here? */
bool numbers_ours(void);

/* ---- devnode.c: /dev/kvm as a file ------------------------------------------------------------------------------- */

#define DEVNODE "/dev/kvm"

struct stat;
struct statx;
/* Does the path, from dirfd as in openat(), name /dev/kvm? */
bool devnode_named(int dirfd, const char *path);
/* What open(), access() and stat() of it give: a descriptor or 0, or -errno. */
int devnode_open(int flags);
int devnode_access(int mode);
/* Where there is no node at all, something is mounted on it: makes an empty file for that. False: there is something.
 */
bool devnode_place(void);
void devnode_unplace(void);
/* chmod() and chown() of the node, which stays as it is: 0 when that is what is asked for, else -EPERM. */
int devnode_chmod(unsigned mode);
int devnode_chown(unsigned uid, unsigned gid);
/* Its attributes: there is none, but an access control list that says what the mode says is taken. */
int devnode_setxattr(const char *name, const void *value, size_t size);
int devnode_removexattr(const char *name);
void devnode_stat(struct stat *st);
void devnode_statx(struct statx *st);

/* ---- signal.c ---------------------------------------------------------------------------------------------------- */

/* Wraps the handlers that were installed before us. Called at the first open. */
void signal_adopt(void);
/* In a fork()ed child. */
void signal_forked(void);
/* Around a call of the engine, which may be KVM_RUN. At its end the signals that were held back during it reach their
 * handlers, which may not come back. */
void signal_inside(bool inside);
/* For a handler, with its own arguments: true when the signal is a fault of ours, and execution may go on. */
bool signal_guard(int sig, siginfo_t *info, void *context);
/* Somebody else handles signals in this process, and calls signal_guard(). */
void signal_elsewhere(void);

#endif
