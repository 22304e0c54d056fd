/*
 * shim.h: what the tests of the shim share. The same sources are built dynamic, static with glibc and static with musl.
 */
#ifndef DEVKVM_TEST_SHIM_SHIM_H
#define DEVKVM_TEST_SHIM_SHIM_H

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>

#include "../kvm12/client12.h"
#include "test.h"

/* A guest that runs until somebody ends it. */
static inline int guest_spin(struct guest *g)
{
	if (guest_open(g, 0x10000) < 0 || guest_start16(g, 0x1000) < 0)
		return -1;
	CODE(g, 0x1000, 0xeb, 0xfe);
	return 0;
}

/* One that writes to a port again and again. */
static inline int guest_ports(struct guest *g)
{
	if (guest_open(g, 0x10000) < 0 || guest_start16(g, 0x1000) < 0)
		return -1;
	CODE(g, 0x1000, 0xe6, 0x10, 0xeb, 0xfc);
	return 0;
}

/* SIGALRM in `us` microseconds, and again and again: the first may come too early. 0: no more. */
static inline void alarm_in(unsigned us)
{
	struct itimerval it = {.it_value.tv_usec = us, .it_interval.tv_usec = us};

	setitimer(ITIMER_REAL, &it, NULL);
}

static inline void handle(int sig, void (*fn)(int, siginfo_t *, void *), int flags)
{
	struct sigaction act = {.sa_sigaction = fn, .sa_flags = flags | SA_SIGINFO};

	sigaction(sig, &act, NULL);
}

/* The exit status of a child, or -1 when it did not exit. */
static inline int status_of(pid_t pid)
{
	int status;

	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return -1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

#endif
