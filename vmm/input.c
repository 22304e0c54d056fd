/*
 * input.c: the user's terminal: raw mode, Ctrl-A, and a thread that reads stdin.
 *
 * The interface of 2006 has no way to wake a vCPU but a signal, and a signal that lands just before KVM_RUN is lost; so
 * the thread keeps kicking, a millisecond apart, until what it read was taken.
 *
 * Invariant: the terminal is restored on every way out: atexit, fatal signals, suspension.
 */
#define _GNU_SOURCE
#include "vmm.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

#define CTRL_A 1

static struct {
	pthread_mutex_t lock; /* protects: buf, head, count */
	uint8_t buf[4096];
	unsigned head, count;
	volatile bool quit, stop;
	pthread_t thread, owner;
	bool started;
} in = {.lock = PTHREAD_MUTEX_INITIALIZER};

static struct termios saved;
static volatile bool raw;

void terminal_restore(void)
{
	if (raw) {
		raw = false;
		tcsetattr(STDIN_FILENO, TCSANOW, &saved);
	}
}

static void terminal_raw(void)
{
	struct termios t = saved;

	cfmakeraw(&t);
	t.c_oflag |= OPOST; /* the guest's console sends its own \r, a plain line of ours does not */
	tcsetattr(STDIN_FILENO, TCSANOW, &t);
	raw = true;
}

static void on_fatal(int sig)
{
	terminal_restore();
	signal(sig, SIG_DFL);
	raise(sig);
}

static void put(uint8_t c)
{
	pthread_mutex_lock(&in.lock);
	if (in.count < sizeof(in.buf))
		in.buf[(in.head + in.count++) % sizeof(in.buf)] = c;
	pthread_mutex_unlock(&in.lock);
}

/* Terminal input: Ctrl-A is ours, then one letter. */
static void filter(uint8_t c)
{
	static bool escaped;

	if (!escaped && c == CTRL_A && raw) {
		escaped = true;
		return;
	}
	if (escaped) {
		escaped = false;
		if (c == 'x') {
			in.quit = true;
			return;
		}
		if (c == 'h' || c == '?') {
			say("Ctrl-A x quits, Ctrl-A Ctrl-A sends Ctrl-A");
			return;
		}
	}
	put(c);
}

static unsigned waiting(void)
{
	unsigned n;

	pthread_mutex_lock(&in.lock);
	n = in.count;
	pthread_mutex_unlock(&in.lock);
	return n;
}

static void *reader(void *arg)
{
	uint8_t buf[256];
	ssize_t n;

	(void)arg;
	while (!in.stop && (n = read(STDIN_FILENO, buf, sizeof(buf))) > 0) {
		for (ssize_t k = 0; k < n; k++)
			filter(buf[k]);
		while (!in.stop && (waiting() || in.quit)) {
			pthread_kill(in.owner, KICK_SIGNAL);
			usleep(1000);
		}
	}
	return NULL;
}

static void on_kick(int sig)
{
	(void)sig;
}

int input_start(void)
{
	static const int fatal[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
	struct sigaction act = {.sa_handler = on_kick};
	sigset_t all, old;
	int rc;

	sigaction(KICK_SIGNAL, &act, NULL);
	sigaction(SIGALRM, &act, NULL);
	if (isatty(STDIN_FILENO) && tcgetattr(STDIN_FILENO, &saved) == 0) {
		for (unsigned n = 0; n < sizeof(fatal) / sizeof(fatal[0]); n++)
			signal(fatal[n], on_fatal);
		atexit(terminal_restore);
		terminal_raw();
	}
	in.owner = pthread_self();
	/* Signals are for the thread that runs the vCPU. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&in.thread, NULL, reader, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	in.started = rc == 0;
	return rc;
}

void input_stop(void)
{
	if (!in.started)
		return;
	in.stop = true;
	pthread_cancel(in.thread);
	pthread_join(in.thread, NULL);
	in.started = false;
	terminal_restore();
}

int input_get(void)
{
	int c = -1;

	pthread_mutex_lock(&in.lock);
	if (in.count) {
		c = in.buf[in.head];
		in.head = (in.head + 1) % sizeof(in.buf);
		in.count--;
	}
	pthread_mutex_unlock(&in.lock);
	return c;
}

bool input_quit(void)
{
	return in.quit;
}
