/*
 * run.c: `devkvm run [--] PROGRAM [ARG...]`: starts PROGRAM with the library in LD_PRELOAD that serves /dev/kvm.
 *
 * A statically linked program has no dynamic linker that would load it, and is started through devkvm-load, which lies
 * beside the library. One that gains privileges would find no /dev/kvm and never say why, so it is refused here.
 */
#define _GNU_SOURCE
#include "cli.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define STATUS_CANNOT_RUN 126
#define STATUS_NOT_FOUND 127
#define PRELOAD "libdevkvm-preload.so"
#define LOADER "devkvm-load"

static const char usage[] = "usage: devkvm run [--stats] [--] PROGRAM [ARG...]\n"
                            "\n"
                            "Runs PROGRAM with a working /dev/kvm; its children inherit it. The status is PROGRAM's.\n"
                            "PROGRAM must be a 64-bit program and must not be set-user-ID.\n"
                            "--stats prints what the translator did when a vCPU or its process ends.\n";

static int __attribute__((format(printf, 2, 3))) fail(int status, const char *fmt, ...)
{
	va_list ap;

	fputs("devkvm run: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	return status;
}

/* The program as execvp would find it. False: not found. */
static bool find_program(const char *name, char *path)
{
	const char *dirs = getenv("PATH");

	if (strchr(name, '/')) {
		snprintf(path, PATH_MAX, "%s", name);
		return access(path, F_OK) == 0;
	}
	if (!dirs)
		dirs = "/bin:/usr/bin";
	while (*dirs) {
		size_t n = strcspn(dirs, ":");
		struct stat st;

		snprintf(path, PATH_MAX, "%.*s/%s", n ? (int)n : 1, n ? dirs : ".", name);
		if (access(path, X_OK) == 0 && stat(path, &st) == 0 && S_ISREG(st.st_mode))
			return true;
		dirs += n + (dirs[n] == ':');
	}
	return false;
}

/* A library has a name, and so has the dynamic linker; a static PIE has none. */
static bool has_name(int fd, const Elf64_Phdr *dynamic)
{
	Elf64_Dyn d;

	for (Elf64_Xword at = 0; at + sizeof(d) <= dynamic->p_filesz; at += sizeof(d)) {
		if (pread(fd, &d, sizeof(d), (off_t)(dynamic->p_offset + at)) != sizeof(d) || d.d_tag == DT_NULL)
			break;
		if (d.d_tag == DT_SONAME)
			return true;
	}
	return false;
}

/* Whether LD_PRELOAD reaches the ELF file at fd: it asks for a dynamic linker, or is one. */
static bool is_dynamic(int fd, const Elf64_Ehdr *eh)
{
	for (unsigned n = 0; n < eh->e_phnum; n++) {
		Elf64_Phdr ph;

		if (pread(fd, &ph, sizeof(ph), (off_t)(eh->e_phoff + n * sizeof(ph))) != sizeof(ph))
			break;
		if (ph.p_type == PT_INTERP || (ph.p_type == PT_DYNAMIC && has_name(fd, &ph)))
			return true;
	}
	return false;
}

static int check_program(const char *path, unsigned depth, bool *is_static);

/* "#!": the interpreter is what runs. */
static int check_script(const char *line, unsigned depth, bool *is_static)
{
	char interpreter[256];
	size_t n;

	line += strspn(line, " \t");
	n = strcspn(line, " \t\n");
	if (n == 0 || n >= sizeof(interpreter) || depth > 4)
		return 0;
	memcpy(interpreter, line, n);
	interpreter[n] = 0;
	return check_program(interpreter, depth + 1, is_static);
}

/* 0 when PROGRAM can be served, else an exit status after a message. */
static int check_program(const char *path, unsigned depth, bool *is_static)
{
	union {
		Elf64_Ehdr eh;
		char text[256];
	} head = {0};
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC), rc = 0;
	ssize_t n;

	if (fd < 0 || fstat(fd, &st) < 0) {
		/* Executable but not readable: nothing can be said about it before the kernel tries. */
		rc = errno == EACCES ? 0 : fail(STATUS_NOT_FOUND, "cannot open %s: %s", path, strerror(errno));
		goto out;
	}
	if (S_ISDIR(st.st_mode)) {
		rc = fail(STATUS_CANNOT_RUN, "%s is a directory", path);
		goto out;
	}
	if (((st.st_mode & S_ISUID) && st.st_uid != geteuid()) || ((st.st_mode & S_ISGID) && st.st_gid != getegid()) ||
	    (geteuid() != 0 && fgetxattr(fd, "security.capability", NULL, 0) > 0)) {
		rc = fail(
		        STATUS_CANNOT_RUN,
		        "%s gains privileges when it starts (set-user-ID, set-group-ID or file capabilities), and the "
		        "dynamic linker then ignores devkvm. Run a copy without them.",
		        path);
		goto out;
	}
	n = pread(fd, &head, sizeof(head) - 1, 0);
	if (n > 2 && head.text[0] == '#' && head.text[1] == '!') {
		rc = check_script(head.text + 2, depth, is_static);
	} else if (n >= (ssize_t)sizeof(head.eh) && memcmp(head.eh.e_ident, ELFMAG, SELFMAG) == 0) {
		if (head.eh.e_ident[EI_CLASS] != ELFCLASS64 || head.eh.e_machine != EM_X86_64)
			rc = fail(STATUS_CANNOT_RUN, "%s is not a 64-bit x86 program; devkvm serves only those", path);
		else
			*is_static = !is_dynamic(fd, &head.eh);
	}
out:
	if (fd >= 0)
		close(fd);
	return rc;
}

/* The library beside the program (build folder), or where `make install` puts it. */
static bool find_preload(char *path)
{
	static const char *const places[] = {"%s/" PRELOAD, "%s/../lib/devkvm/" PRELOAD};
	char exe[PATH_MAX], *dir;
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);

	if (n <= 0)
		return false;
	exe[n] = 0;
	dir = dirname(exe);
	for (unsigned k = 0; k < sizeof(places) / sizeof(places[0]); k++) {
		char at[PATH_MAX + 64];

		snprintf(at, sizeof(at), k ? places[1] : places[0], dir);
		if (realpath(at, path))
			return true;
	}
	return false;
}

/* The loader beside the library, with the program before its arguments. */
static int exec_static(char *preload, const char *program, int argc, char **argv)
{
	char **args = calloc((size_t)argc + 3, sizeof(*args)), *loader;

	if (!args || asprintf(&loader, "%s/" LOADER, dirname(preload)) < 0)
		return fail(STATUS_CANNOT_RUN, "out of memory");
	args[0] = (char *)LOADER;
	args[1] = (char *)program;
	memcpy(args + 2, argv, (size_t)argc * sizeof(*args));
	execv(loader, args);
	return fail(STATUS_CANNOT_RUN, "cannot run %s, which starts statically linked programs: %s", loader,
	            strerror(errno));
}

int cmd_run(int argc, char **argv)
{
	char program[PATH_MAX], preload[PATH_MAX], *env;
	const char *before = getenv("LD_PRELOAD");
	bool is_static = false;
	int first = 1, rc;

	if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
		fputs(usage, stdout);
		return 0;
	}
	if (argc > first && strcmp(argv[first], "--stats") == 0) {
		want_stats();
		first++;
	}
	if (argc > first && strcmp(argv[first], "--") == 0)
		first++;
	else if (argc > first && argv[first][0] == '-')
		return fail(STATUS_USAGE, "there is no option %s; try `devkvm run --help`", argv[first]);
	if (argc <= first) {
		fputs(usage, stderr);
		return STATUS_USAGE;
	}
	if (!find_program(argv[first], program))
		return fail(STATUS_NOT_FOUND, "%s: not found", argv[first]);
	rc = check_program(program, 0, &is_static);
	if (rc)
		return rc;
	if (!find_preload(preload))
		return fail(STATUS_CANNOT_RUN,
		            PRELOAD " is neither beside devkvm nor in ../lib/devkvm; is it installed?");
	if (strpbrk(preload, " :"))
		return fail(STATUS_CANNOT_RUN,
		            "LD_PRELOAD cannot name %s: its path has a space or a colon; move devkvm", preload);
	if (before && *before && asprintf(&env, "%s:%s", preload, before) < 0)
		return fail(STATUS_CANNOT_RUN, "out of memory");
	setenv("LD_PRELOAD", before && *before ? env : preload, 1);
	if (is_static)
		return exec_static(preload, program, argc - first, argv + first);
	execv(program, argv + first);
	rc = errno;
	return fail(rc == ENOENT ? STATUS_NOT_FOUND : STATUS_CANNOT_RUN, "cannot run %s: %s", program, strerror(rc));
}
