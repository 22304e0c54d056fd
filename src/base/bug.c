/*
 * bug.c: impossible states and the debug log (see bug.h).
 */
#include "bug.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool bug_report(const char *file, int line, const char *what)
{
	static atomic_flag reported = ATOMIC_FLAG_INIT;

	if (!atomic_flag_test_and_set(&reported))
		fprintf(stderr, "devkvm: BUG at %s:%d: %s\n", file, line, what);
#ifdef DEVKVM_DEBUG_BUILD
	abort();
#endif
	return true;
}

bool debug_on(const char *topic)
{
	const char *list = getenv("DEVKVM_DEBUG");
	size_t n = strlen(topic);

	while (list && *list) {
		size_t word = strcspn(list, ",");

		if (word == n && memcmp(list, topic, n) == 0)
			return true;
		list += word + (list[word] == ',');
	}
	return false;
}

void debug_log(const char *topic, const char *fmt, ...)
{
	va_list ap;

	if (!debug_on(topic))
		return;
	fprintf(stderr, "devkvm[%s]: ", topic);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}
