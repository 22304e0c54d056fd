/*
 * exec.c: which programs the dynamic linker cannot serve, and how they are started instead.
 *
 * LD_PRELOAD reaches dynamically linked programs only. One without an interpreter (or a script of one) is started
 * through devkvm-load, which lies beside the preloaded library: the same library there maps the program and catches its
 * system calls (static_load.c).
 */
#define _GNU_SOURCE
#include "exec.h"

#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../base/sys.h"
#include "../base/types.h"
#include "root.h"

#define LOADER "devkvm-load"
#define SCRIPTS_DEEP 5 /* as the kernel follows them */

/* A library (the dynamic linker itself is one) has a name of its own; a static PIE has not. */
static bool has_soname(int fd, const Elf64_Phdr *dynamic)
{
	Elf64_Dyn d;

	for (u64 at = 0; at + sizeof(d) <= dynamic->p_filesz; at += sizeof(d)) {
		if (pread(fd, &d, sizeof(d), (off_t)(dynamic->p_offset + at)) != sizeof(d) || d.d_tag == DT_NULL)
			return false;
		if (d.d_tag == DT_SONAME)
			return true;
	}
	return false;
}

static bool elf_is_static(int fd, const Elf64_Ehdr *eh)
{
	bool loads = false;

	if (eh->e_ident[EI_CLASS] != ELFCLASS64 || eh->e_machine != EM_X86_64 ||
	    (eh->e_type != ET_EXEC && eh->e_type != ET_DYN) || eh->e_phentsize != sizeof(Elf64_Phdr))
		return false;
	for (unsigned n = 0; n < eh->e_phnum; n++) {
		Elf64_Phdr ph;

		if (pread(fd, &ph, sizeof(ph), (off_t)(eh->e_phoff + n * sizeof(ph))) != sizeof(ph))
			return false;
		if (ph.p_type == PT_INTERP || (ph.p_type == PT_DYNAMIC && has_soname(fd, &ph)))
			return false;
		loads |= ph.p_type == PT_LOAD;
	}
	return loads;
}

size_t script_line(int fd, char *line, size_t size, char **interpreter, char **arg)
{
	ssize_t n = pread(fd, line, size - 1, 0);
	char *at;

	if (n < 3 || line[0] != '#' || line[1] != '!')
		return 0;
	line[n] = 0;
	line[strcspn(line, "\n")] = 0;
	at = line + 2;
	at += strspn(at, " \t");
	*interpreter = at;
	at += strcspn(at, " \t");
	if (*at)
		*at++ = 0;
	at += strspn(at, " \t");
	for (size_t end = strlen(at); end && (at[end - 1] == ' ' || at[end - 1] == '\t');)
		at[--end] = 0;
	*arg = *at ? at : NULL;
	return **interpreter ? (size_t)n : 0;
}

static bool is_static(int dirfd, const char *path, unsigned depth)
{
	union {
		Elf64_Ehdr eh;
		char line[256];
	} head = {0};
	char *interpreter, *arg;
	struct stat st;
	bool yes = false;
	int err = errno, fd = (int)syscall(SYS_openat, dirfd, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0);

	if (fd < 0)
		goto out;
	/* Where privileges are gained nobody looks in. */
	if (sys_fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || ((st.st_mode & S_ISUID) && st.st_uid != geteuid()) ||
	    ((st.st_mode & S_ISGID) && st.st_gid != getegid()))
		goto close;
	if (script_line(fd, head.line, sizeof(head.line), &interpreter, &arg))
		yes = depth < SCRIPTS_DEEP && is_static(AT_FDCWD, interpreter, depth + 1);
	else if (pread(fd, &head.eh, sizeof(head.eh), 0) == sizeof(head.eh) &&
	         memcmp(head.eh.e_ident, ELFMAG, SELFMAG) == 0)
		yes = elf_is_static(fd, &head.eh);
close:
	sys_close(fd);
out:
	errno = err;
	return yes;
}

const char *exec_loader(void)
{
	static char path[4096];
	Dl_info at;

	if (!path[0] && dladdr((void *)(uintptr_t)exec_loader, &at) && at.dli_fname) {
		char full[4096], *slash;

		if (!realpath(at.dli_fname, full))
			return NULL;
		slash = strrchr(full, '/');
		if (slash && (size_t)(slash - full) + sizeof("/" LOADER) <= sizeof(full)) {
			strcpy(slash + 1, LOADER);
			strcpy(path, full);
		}
	}
	return path[0] ? path : NULL;
}

bool exec_file_is_static(int dirfd, const char *path)
{
	/* Not a byte of the path is read here: it may be a bad pointer. */
	return path && is_static(dirfd, path, 0);
}

void exec_lost(const char *path)
{
	dprintf(2,
	        "devkvm: %s starts without devkvm's /dev/kvm: devkvm's files are not visible to it; install devkvm "
	        "below a "
	        "directory that the sandbox shows, such as /usr\n",
	        path);
}

bool exec_is_static(const struct root_files *f, int dirfd, const char *path)
{
	const char *loader;

	if (!exec_file_is_static(dirfd, path))
		return false;
	loader = exec_loader();
	if ((loader && syscall(SYS_access, loader, X_OK) == 0) || root_left(f))
		return true;
	exec_lost(path);
	return false;
}

size_t exec_argc(char *const argv[])
{
	size_t n = 0;

	while (argv && argv[n])
		n++;
	return n;
}

void exec_loader_argv(char **out, const char *path, char *const argv[])
{
	size_t n = exec_argc(argv);

	out[0] = (char *)(uintptr_t)LOADER;
	out[1] = (char *)(uintptr_t)path;
	for (size_t k = 0; k < n; k++)
		out[2 + k] = argv[k];
	/* As the kernel does: there is an argv[0]. */
	if (!n)
		out[2 + n++] = (char *)(uintptr_t) "";
	out[2 + n] = NULL;
}
