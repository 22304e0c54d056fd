/*
 * bug.h: how the engine says that it itself is wrong, and its debug log.
 *
 * BUG_ON is for states that only a mistake of ours can reach: a debug build (DEVKVM_DEBUG_BUILD) aborts, a release
 * build keeps the first reason and the caller ends the run with an internal error. Nothing a client or a guest does may
 * get here.
 */
#ifndef DEVKVM_BASE_BUG_H
#define DEVKVM_BASE_BUG_H

#include "types.h"

/* Reports an impossible state once; aborts in debug builds. Returns true so that callers can write `return BUG(...)`.
 */
bool bug_report(const char *file, int line, const char *what);

#define BUG_ON(cond) (unlikely(cond) ? bug_report(__FILE__, __LINE__, #cond) : false)

/* First reason reported by bug_report() in this process, or NULL. */
const char *bug_first(void);

/* Writes a line to stderr when the comma-separated DEVKVM_DEBUG environment variable names `topic`. */
void debug_log(const char *topic, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool debug_on(const char *topic);

#endif
