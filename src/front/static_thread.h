/*
 * static_thread.h: what static_load.c and static_signal.c need of static_thread.c.
 */
#ifndef DEVKVM_FRONT_STATIC_THREAD_H
#define DEVKVM_FRONT_STATIC_THREAD_H

#include <stdnoreturn.h>

#include "static.h"

/* The calling thread's rseq area is the program's to register. */
void sthread_free_rseq(void);
/* A system call of the C library's fork(). */
noreturn void static_fork_call(struct sthread *t, struct kframe *f);

#endif
