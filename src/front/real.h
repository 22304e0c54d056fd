/*
 * real.h: what a symbol that the preloaded library replaces would have been. For code that uses _GNU_SOURCE.
 */
#ifndef DEVKVM_FRONT_REAL_H
#define DEVKVM_FRONT_REAL_H

#include <dlfcn.h>

/* The next definition of a symbol: the C library's, or that of another preloaded library. */
#define REAL(name)                                                                                                     \
	({                                                                                                             \
		static __typeof__(&name) real_##name;                                                                  \
		if (!real_##name)                                                                                      \
			real_##name = (__typeof__(&name))dlsym(RTLD_NEXT, #name);                                      \
		real_##name;                                                                                           \
	})

#endif
