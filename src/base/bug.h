/*
 * bug.h: how the engine says that it itself is wrong, and its debug log.
 *
 * BUG_ON is for states that only a mistake of ours can reach: a debug build (DEVKVM_DEBUG_BUILD) aborts, a release
 * build says so on stderr and the caller ends the run with an internal error. Nothing a client or a guest does may get
 * here.
 */
#ifndef DEVKVM_BASE_BUG_H
#define DEVKVM_BASE_BUG_H

#include "types.h"

/* Reports the first impossible state of the process; aborts in debug builds. True. */
bool bug_report(const char *file, int line, const char *what);

#define BUG_ON(cond) (unlikely(cond) ? bug_report(__FILE__, __LINE__, #cond) : false)

/* Writes a line to stderr when the comma-separated DEVKVM_DEBUG environment variable names `topic`. */
void debug_log(const char *topic, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool debug_on(const char *topic);

#endif
