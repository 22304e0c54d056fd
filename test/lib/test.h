/*
 * test.h: the small frame of our test programs: cases, checks, and the closing line `N passed, N failed`.
 *
 *   TEST(name) { CHECK(cond); CHECK_EQ(got, want); CHECK_ERR(call, EINVAL); }
 *   int main(int argc, char **argv) { return test_main(argc, argv); }
 *
 * Cases run in the order of the file. An argument runs only the cases whose names contain it. A failed check is printed
 * and the case goes on; a case fails when one of its checks did.
 */
#ifndef DEVKVM_TEST_TEST_H
#define DEVKVM_TEST_TEST_H

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

struct test_case {
	const char *name;
	void (*run)(void);
	struct test_case *next;
};

static struct test_case *test_first, **test_last = &test_first;
static unsigned test_bad_checks;

#define TEST(id)                                                                                                       \
	static void test_##id(void);                                                                                   \
	static struct test_case test_case_##id = {#id, test_##id, NULL};                                               \
	__attribute__((constructor)) static void test_add_##id(void)                                                   \
	{                                                                                                              \
		*test_last = &test_case_##id;                                                                          \
		test_last = &test_case_##id.next;                                                                      \
	}                                                                                                              \
	static void test_##id(void)

#define CHECK(cond)                                                                                                    \
	do {                                                                                                           \
		if (!(cond)) {                                                                                         \
			printf("  %s:%d: not true: %s\n", __FILE__, __LINE__, #cond);                                  \
			test_bad_checks++;                                                                             \
		}                                                                                                      \
	} while (0)

#define CHECK_EQ(got, want)                                                                                            \
	do {                                                                                                           \
		unsigned long long got_ = (unsigned long long)(got), want_ = (unsigned long long)(want);               \
		if (got_ != want_) {                                                                                   \
			printf("  %s:%d: %s is %#llx, not %#llx\n", __FILE__, __LINE__, #got, got_, want_);            \
			test_bad_checks++;                                                                             \
		}                                                                                                      \
	} while (0)

/* The call fails with -1 and this errno. */
#define CHECK_ERR(call, err)                                                                                           \
	do {                                                                                                           \
		errno = 0;                                                                                             \
		long rc_ = (long)(call);                                                                               \
		if (rc_ != -1 || errno != (err)) {                                                                     \
			printf("  %s:%d: %s gave %ld, errno %d (%s), not %s\n", __FILE__, __LINE__, #call, rc_, errno, \
			       strerror(errno), #err);                                                                 \
			test_bad_checks++;                                                                             \
		}                                                                                                      \
	} while (0)

static int test_main(int argc, char **argv)
{
	unsigned passed = 0, failed = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (struct test_case *t = test_first; t; t = t->next) {
		if (argc > 1 && !strstr(t->name, argv[1]))
			continue;
		test_bad_checks = 0;
		t->run();
		if (test_bad_checks) {
			printf("FAILED %s\n", t->name);
			failed++;
		} else {
			passed++;
		}
	}
	printf("%u passed, %u failed\n", passed, failed);
	return failed != 0;
}

#endif
