/*
 * root.h: devkvm's files for programs that are started where these have no path: below another root directory.
 */
#ifndef DEVKVM_FRONT_ROOT_H
#define DEVKVM_FRONT_ROOT_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Files that are open because they may soon have no path any more. */
#define ROOT_FILES 8
struct root_files {
	unsigned n; /* 0: none */
	int fd[ROOT_FILES];
	dev_t dev[ROOT_FILES];
	ino_t ino[ROOT_FILES];
};

#define ROOT_PATH 32
/* The strings that root_exec() and root_variable() point to. */
struct root_exec {
	char linker[ROOT_PATH], loader[ROOT_PATH], libraries[ROOT_FILES * ROOT_PATH], files[32 + ROOT_FILES * 12],
	        variable[32 + ROOT_FILES * 12], preload[PATH_MAX];
};
#define ROOT_EXEC_ARGS 6
#define ROOT_VARIABLE "DEVKVM_FILES"

/* The process' own. */
struct root_files *root_files(void);
/* The process is about to change what it can see of the file system: opens them. `program` is what a static program has
 * for /proc/self/exe, NULL for a dynamic one. */
void root_leaving(struct root_files *f, const char *loader, const char *program);
/* Does the path by which this library was loaded lead nowhere now, or did it never have one here? */
bool root_hidden(void);
/* Is it hidden, and what root_leaving() opened still there, and can be named in /proc? */
bool root_left(const struct root_files *f);
/* Is the descriptor one of them? The program is not to close it: it does not know of it. */
bool root_keeps(const struct root_files *f, int fd);
/* As the system call, but for these. */
int root_close_range(const struct root_files *f, unsigned first, unsigned last, int flags);
/* What /proc/self/exe is, `path` or else a descriptor's name, written to `room`. */
const char *root_exe(const struct root_files *f, const char *path, char room[ROOT_PATH]);
/* What to execute, which goes on as devkvm-load, and its first ROOT_EXEC_ARGS arguments. */
const char *root_exec(const struct root_files *f, struct root_exec *x, char **out);
/* A variable of the environment of a program to be started, whose dynamic linker finds the library by it: what it must
 * be instead. NULL: the variable stays as it is. */
char *root_variable(const struct root_files *f, struct root_exec *x, const char *variable);
/* Another one, to be added then. */
char *root_files_variable(const struct root_files *f, struct root_exec *x);
/* Whether the variable tells the dynamic linker of our library. */
bool root_names_us(const char *variable);
/* The files live through exec(), or not. */
void root_set_cloexec(const struct root_files *f, bool on);
/* In a new program: what tells of the files. False: `arg` does not. */
bool root_adopt_option(const char *arg);
void root_adopt_variable(const char *value);
/* The static program that was loaded, from the descriptor, is what PROGRAM is now. */
void root_adopt_program(int fd);

#endif
