/*
 * usercopy.h: reading and writing the client's structures without trusting its pointers.
 *
 * The client's memory is our own process' memory, but a bad pointer must be -EFAULT, as in a kernel, and not a crash.
 */
#ifndef DEVKVM_BASE_USERCOPY_H
#define DEVKVM_BASE_USERCOPY_H

#include "types.h"

/* Copies `n` bytes from / to client memory. 0, or -EFAULT (then nothing was written when the whole range is bad). */
int user_read(void *dst, const void *user, size_t n);
int user_write(void *user, const void *src, size_t n);

#endif
