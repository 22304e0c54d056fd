/*
 * usercopy.h: reading and writing the client's structures without trusting its pointers.
 *
 * The client's memory is our own process' memory, but a bad pointer must be -EFAULT, as in a kernel, and not a crash.
 * Where the front handles SIGSEGV and SIGBUS (user_guarded), the copy is plain instructions and a fault in them is
 * turned into -EFAULT by user_fault(); else the kernel does the copy for us, at the price of a system call.
 */
#ifndef DEVKVM_BASE_USERCOPY_H
#define DEVKVM_BASE_USERCOPY_H

#include "types.h"

/* Copies `n` bytes from / to client memory. 0, or -EFAULT (then nothing was written when the whole range is bad). */
int user_read(void *dst, const void *user, size_t n);
int user_write(void *user, const void *src, size_t n);

/* For the handler of SIGSEGV and SIGBUS: when `rip` lies in a guarded copy, where to go on instead; else 0. */
u64 user_fault(u64 rip);
/* Such a handler is installed in this process (or no longer). */
void user_guarded(bool on);

extern bool user_guard_on __attribute__((visibility("hidden"))); /* user_guarded() */

/*
 * Can the byte at `p`, in memory that the client lent us, be read (written) now? True also while faults are not ours to
 * see. The instruction that touches it and where to go on after a fault are noted in the section user_faults.
 */
static inline bool user_reachable(const void *p, bool write)
{
	if (!user_guard_on)
		return true;
	if (write)
		__asm__ goto("1:	lock; orb $0, (%0)\n"
		             "	.pushsection user_faults, \"a\"\n"
		             "	.long 1b - ., %l[fault] - .\n"
		             "	.popsection\n" ::"r"(p)
		             : "cc", "memory"
		             : fault);
	else
		__asm__ goto("1:	testb $0, (%0)\n"
		             "	.pushsection user_faults, \"a\"\n"
		             "	.long 1b - ., %l[fault] - .\n"
		             "	.popsection\n" ::"r"(p)
		             : "cc", "memory"
		             : fault);
	return true;
fault:
	return false;
}

#endif
