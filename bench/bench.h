/*
 * bench.h: what the programs that measure exits share: the clock, and medians of many rounds.
 */
#ifndef DEVKVM_BENCH_BENCH_H
#define DEVKVM_BENCH_BENCH_H

#include <stdlib.h>
#include <time.h>

#define ROUNDS 31
#define EXITS 20000 /* a round */

/* Nanoseconds. */
static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

/* Of ROUNDS values, which are sorted by this. */
static double median(double *v)
{
	qsort(v, ROUNDS, sizeof(*v), compare);
	return v[ROUNDS / 2];
}

#endif
