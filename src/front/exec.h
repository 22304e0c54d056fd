/*
 * exec.h: programs that need devkvm-load, for the doors through which programs are started.
 */
#ifndef DEVKVM_FRONT_EXEC_H
#define DEVKVM_FRONT_EXEC_H

#include <stdbool.h>
#include <stddef.h>

struct root_files;

/* Is the program at `path` (from dirfd, as in execveat) statically linked, or a script of one, and can devkvm-load
 * start it, by its path or as root.h says? Says so on stderr when only the loader is missing. errno is kept. Allocates
 * nothing: it may be called in a vfork()ed child. */
bool exec_is_static(const struct root_files *f, int dirfd, const char *path);
/* The first half of the question. */
bool exec_file_is_static(int dirfd, const char *path);
/* Says on stderr that a program will not find our library. */
void exec_lost(const char *path);
/* Where devkvm-load lies; NULL: nobody knows. */
const char *exec_loader(void);
/* Its arguments for the program `path` with `argv`: `out` has room for exec_argc(argv) + EXEC_MORE pointers. */
#define EXEC_MORE 4
void exec_loader_argv(char **out, const char *path, char *const argv[]);
size_t exec_argc(char *const argv[]);
/* The first line of a script, taken apart in `line`; 0: the file is no script. */
size_t script_line(int fd, char *line, size_t size, char **interpreter, char **arg);

/* devkvm-load's main(): starts the program argv[1] with the arguments argv[2...]; does not return when it could. */
int devkvm_load(int argc, char **argv, char **envp) __attribute__((visibility("default")));

#endif
