/*
 * static_filter.h: the seccomp filters that a program puts on itself, when the engine's system calls are made by the
 * same threads.
 */
#ifndef DEVKVM_FRONT_STATIC_FILTER_H
#define DEVKVM_FRONT_STATIC_FILTER_H

#include <linux/filter.h>

#include "../base/types.h"

/* The filter at `user` (a struct sock_fprog of the program) behind one that lets the engine's own calls through.
 * 0, or -EFAULT, -EINVAL, -ENOMEM. */
long static_filter_make(u64 user, struct sock_fprog *out);
void static_filter_free(struct sock_fprog *f);

#endif
