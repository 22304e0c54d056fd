/*
 * static_load.c: devkvm-load: maps a statically linked program into this process and starts it, as execve() would.
 *
 * The program gets the process' own stack, with arguments, environment and auxiliary vector as the kernel lays them
 * out; only what describes the executable is the program's instead of devkvm-load's.
 */
#define _GNU_SOURCE
#include "static.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../base/sys.h"
#include "exec.h"
#include "static_thread.h"

#define STATUS_CANNOT_RUN 126
#define STATUS_NOT_FOUND 127
#define SCRIPTS_DEEP 5

struct image {
	u64 entry, phdr, phnum, end;
	bool exec_stack;
};

static int fail(const char *path, const char *what)
{
	fprintf(stderr, "devkvm: cannot run %s: %s\n", path, what);
	return STATUS_CANNOT_RUN;
}

static u64 page_up(u64 x)
{
	return (x + PAGE_SIZE - 1) & PAGE_MASK;
}

static int protection(u32 flags)
{
	return (flags & PF_R ? PROT_READ : 0) | (flags & PF_W ? PROT_WRITE : 0) | (flags & PF_X ? PROT_EXEC : 0);
}

static int map_segment(int fd, const Elf64_Phdr *ph, u64 base)
{
	u64 start = (base + ph->p_vaddr) & PAGE_MASK, skew = ph->p_vaddr & (PAGE_SIZE - 1);
	u64 file_end = base + ph->p_vaddr + ph->p_filesz, end = base + ph->p_vaddr + ph->p_memsz;
	int prot = protection(ph->p_flags);

	if (ph->p_filesz && sys_mmap((void *)(uintptr_t)start, ph->p_filesz + skew, prot, MAP_PRIVATE | MAP_FIXED, fd,
	                             (off_t)(ph->p_offset - skew)) == MAP_FAILED)
		return -errno;
	if (end <= file_end)
		return 0;
	/* The rest of the last page of the file, then pages of its own. */
	if (ph->p_filesz && (prot & PROT_WRITE)) {
		u64 pad = page_up(file_end);

		memset((void *)(uintptr_t)file_end, 0, (pad < end ? pad : end) - file_end);
	}
	start = ph->p_filesz ? page_up(file_end) : start;
	if (page_up(end) > start && sys_mmap((void *)(uintptr_t)start, page_up(end) - start, prot,
	                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		return -errno;
	return 0;
}

/* Maps the program. NULL, or what is wrong. */
static const char *map_program(int fd, struct image *im)
{
	Elf64_Ehdr eh;
	Elf64_Phdr ph[64];
	u64 low = ~0ull, high = 0, align = PAGE_SIZE, base = 0;
	u8 *at;

	if (pread(fd, &eh, sizeof(eh), 0) != sizeof(eh) || memcmp(eh.e_ident, ELFMAG, SELFMAG) != 0 ||
	    eh.e_ident[EI_CLASS] != ELFCLASS64 || eh.e_machine != EM_X86_64)
		return "it is not a 64-bit x86 program";
	if (eh.e_phentsize != sizeof(*ph) || !eh.e_phnum || eh.e_phnum > ARRAY_SIZE(ph) ||
	    pread(fd, ph, eh.e_phnum * sizeof(*ph), (off_t)eh.e_phoff) != (ssize_t)(eh.e_phnum * sizeof(*ph)))
		return "its program headers are damaged";
	im->exec_stack = true;
	for (unsigned n = 0; n < eh.e_phnum; n++) {
		if (ph[n].p_type == PT_INTERP)
			return "it is dynamically linked";
		if (ph[n].p_type == PT_GNU_STACK)
			im->exec_stack = ph[n].p_flags & PF_X;
		if (ph[n].p_type != PT_LOAD || !ph[n].p_memsz)
			continue;
		if (ph[n].p_memsz < ph[n].p_filesz || ph[n].p_vaddr + ph[n].p_memsz < ph[n].p_vaddr ||
		    ph[n].p_vaddr + ph[n].p_memsz >= 0x7ffffffff000 ||
		    (ph[n].p_vaddr - ph[n].p_offset) % PAGE_SIZE != 0)
			return "its program headers are damaged";
		if ((ph[n].p_vaddr & PAGE_MASK) < low)
			low = ph[n].p_vaddr & PAGE_MASK;
		if (page_up(ph[n].p_vaddr + ph[n].p_memsz) > high)
			high = page_up(ph[n].p_vaddr + ph[n].p_memsz);
		if (ph[n].p_align > align && !(ph[n].p_align & (ph[n].p_align - 1)))
			align = ph[n].p_align;
	}
	if (high <= low)
		return "it has nothing to load";
	if (eh.e_type == ET_EXEC) {
		at = sys_mmap((void *)(uintptr_t)low, high - low, PROT_NONE,
		              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
		if (at == MAP_FAILED || (u64)(uintptr_t)at != low)
			return "its addresses are not free here";
	} else {
		/* Room behind it for its heap. */
		at = sys_mmap(NULL, high - low + align + (1ull << 30), PROT_NONE,
		              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (at == MAP_FAILED)
			return "no room in the address space";
		base = (((u64)(uintptr_t)at + align - 1) & ~(align - 1)) - low;
		munmap((void *)(uintptr_t)(base + high), (u64)(uintptr_t)at + align + (1ull << 30) - base - low);
	}
	for (unsigned n = 0; n < eh.e_phnum; n++) {
		if (ph[n].p_type != PT_LOAD || !ph[n].p_memsz)
			continue;
		if (map_segment(fd, &ph[n], base) < 0)
			return "its segments cannot be mapped";
		if (eh.e_phoff >= ph[n].p_offset && eh.e_phoff < ph[n].p_offset + ph[n].p_filesz)
			im->phdr = base + ph[n].p_vaddr + eh.e_phoff - ph[n].p_offset;
	}
	im->entry = base + eh.e_entry;
	im->phnum = eh.e_phnum;
	im->end = base + high;
	return NULL;
}

/* Scripts: the interpreter runs, with the script as its argument. Returns a descriptor of the program to map. */
static int open_program(char **argv[], char *path)
{
	for (unsigned depth = 0; depth <= SCRIPTS_DEEP; depth++) {
		char line[256], *interpreter, *arg, **longer, **now = *argv;
		int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
		size_t n;

		if (fd < 0 || !script_line(fd, line, sizeof(line), &interpreter, &arg))
			return fd;
		sys_close(fd);
		n = exec_argc(now);
		longer = calloc(n + 4, sizeof(*longer));
		if (!longer)
			return -1;
		longer[0] = strdup(interpreter);
		if (arg)
			longer[1] = strdup(arg);
		longer[arg ? 2 : 1] = strdup(path);
		for (size_t k = 1; k <= n; k++)
			longer[k + (arg ? 2 : 1)] = now[k];
		*argv = longer;
		snprintf(path, PATH_MAX, "%s", interpreter);
	}
	errno = ELOOP;
	return -1;
}

/* The vector that starts a program: argc, argv, NULL, environment, NULL, auxiliary vector. Below `top`. */
static u64 build_stack(u64 top, char **argv, char **envp, const Elf64_auxv_t *aux, const struct image *im,
                       const char *name)
{
	size_t nargs = exec_argc(argv), nenv = exec_argc(envp), naux = 1, words;
	u64 *at, *w;

	while (aux[naux - 1].a_type != AT_NULL)
		naux++;
	words = 1 + nargs + 1 + nenv + 1 + 2 * naux;
	at = w = (u64 *)(uintptr_t)((top - words * 8) & ~63ull);
	*w++ = nargs;
	for (size_t n = 0; n <= nargs; n++)
		*w++ = (u64)(uintptr_t)argv[n];
	for (size_t n = 0; n <= nenv; n++)
		*w++ = (u64)(uintptr_t)envp[n];
	for (size_t n = 0; n < naux; n++) {
		u64 value = aux[n].a_un.a_val;

		switch (aux[n].a_type) {
		case AT_PHDR:
			value = im->phdr;
			break;
		case AT_PHNUM:
			value = im->phnum;
			break;
		case AT_ENTRY:
			value = im->entry;
			break;
		case AT_BASE:
			value = 0;
			break;
		case AT_EXECFN:
			value = (u64)(uintptr_t)name;
			break;
		}
		*w++ = aux[n].a_type;
		*w++ = value;
	}
	return (u64)(uintptr_t)at;
}

/* A stack that the program wants executable (or does not say). */
static void make_stack_executable(u64 sp)
{
	mprotect((void *)(uintptr_t)(sp & PAGE_MASK), PAGE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC | PROT_GROWSDOWN);
}

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

int devkvm_load(int argc, char **argv, char **envp)
{
	char path[PATH_MAX], real[PATH_MAX], **args = argv + 2, *name;
	const Elf64_auxv_t *aux;
	struct image im = {0};
	struct sthread *t;
	const char *wrong;
	char **end = envp;
	u64 sp;
	int fd, rc;

	if (argc > 1 && root_adopt_option(argv[1]))
		argc--, argv++, args++;
	if (argc < 3) {
		fputs("usage: devkvm-load PROGRAM ARGV0 [ARG...]: `devkvm run` starts statically linked programs with "
		      "it\n",
		      stderr);
		return 2;
	}
	while (*end)
		end++;
	aux = (const Elf64_auxv_t *)(const void *)(end + 1);
	name = argv[1];
	snprintf(path, sizeof(path), "%s", name);
	fd = open_program(&args, path);
	if (fd < 0) {
		fprintf(stderr, "devkvm: cannot run %s: %s\n", path, strerror(errno));
		return errno == ENOENT ? STATUS_NOT_FOUND : STATUS_CANNOT_RUN;
	}
	wrong = map_program(fd, &im);
	if (wrong)
		return fail(path, wrong);
	{
		char link[64];
		ssize_t n;

		snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
		n = readlink(link, real, sizeof(real) - 1);
		real[n > 0 ? n : 0] = 0;
	}
	root_adopt_program(fd);
	sys_close(fd);
	t = sthread_main();
	if (!t)
		return fail(path, "out of memory");
	prctl(PR_SET_NAME, base_name(strncmp(path, "/proc/self/fd/", 14) == 0 ? real : path));
	static_trap_init();
	static_call_init(real, im.end);
	static_signal_init(t);
	sthread_free_rseq();
	rc = static_trap_arm(t);
	if (rc < 0)
		return fail(path, rc == -EINVAL ? "statically linked programs need Linux 5.11 (syscall user dispatch) "
		                                  "here; use a dynamic build"
		                                : strerror(-rc));
	/* From here on the stack below is the program's; what we use of it now is not needed again. */
	sp = build_stack((u64)(uintptr_t)__builtin_frame_address(0) - 65536, args, envp, aux, &im, name);
	if (im.exec_stack)
		make_stack_executable(sp);
	t->fs = 0;
	static_start(t, im.entry, sp);
}
