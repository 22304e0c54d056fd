/*
 * static_call.c: the system calls of a program that makes them itself (static.h): those that are about /dev/kvm, and
 * those that would show or hurt the engine below. All others go to the kernel as they came (static_pass()).
 */
#define _GNU_SOURCE
#include "static.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <linux/close_range.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../base/bug.h"
#include "../base/sys.h"
#include "../base/usercopy.h"
#include "../kvm/kvm.h"
#include "exec.h"
#include "front.h"
#include "static_filter.h"

#define KVM_IOCTL_TYPE 0xAE
#define ARCH_SET_GS 0x1001
#define ARCH_SET_FS 0x1002
#define ARCH_GET_FS 0x1003
#define ARCH_GET_GS 0x1004
#define USER_TOP 0x7ffffffff000ull
#define AUDIT_X86_64 0xc000003e
#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif

static char exe[PATH_MAX];
static u64 brk_start, brk_now; /* the program's heap, which the kernel's brk cannot be: that is ours */

void static_call_init(const char *program, u64 brk)
{
	snprintf(exe, sizeof(exe), "%s", program);
	brk_start = brk_now = brk;
}

/* ---- passing on -------------------------------------------------------------------------------------------------- */

static long pass_call(struct sthread *t, const u64 call[7], u64 mask)
{
	long rc;

	static_unblock(mask);
	rc = static_pass(call);
	static_block();
	return rc;
}

/* Calls that neither wait nor change with the signal mask: they need not pay for it. */
static bool is_quick(u64 nr)
{
	switch (nr) {
	case SYS_mmap:
	case SYS_munmap:
	case SYS_mprotect:
	case SYS_mremap:
	case SYS_madvise:
	case SYS_mincore:
	case SYS_getpid:
	case SYS_gettid:
	case SYS_getppid:
	case SYS_getuid:
	case SYS_geteuid:
	case SYS_getgid:
	case SYS_getegid:
	case SYS_uname:
	case SYS_sched_yield:
	case SYS_sched_getaffinity:
	case SYS_clock_gettime:
	case SYS_gettimeofday:
	case SYS_lseek:
	case SYS_fstat:
	case SYS_dup:
	case SYS_eventfd2:
	case SYS_epoll_create1:
	case SYS_epoll_ctl:
	case SYS_set_tid_address:
	case SYS_set_robust_list:
	case SYS_prlimit64:
	case SYS_getrandom:
	case SYS_membarrier:
	case SYS_rseq:
		return true;
	}
	return false;
}

static long pass_as(struct sthread *t, struct kframe *f, const u64 call[7])
{
	u64 program_call = f->regs.ax;
	long rc;

	rc = is_quick(call[0]) ? static_pass(call) : pass_call(t, call, static_mask(t, f));
	if (unlikely(rc == PASS_AGAIN)) {
		f->regs.ip -= 2;
		return (long)program_call;
	}
	if (unlikely(rc == PASS_TRAPPED)) {
		t->held.si_call_addr = (void *)(uintptr_t)f->regs.ip;
		return (long)program_call;
	}
	return rc;
}

static long pass(struct sthread *t, struct kframe *f)
{
	const u64 call[7] = {f->regs.ax, f->regs.di, f->regs.si, f->regs.dx, f->regs.r10, f->regs.r8, f->regs.r9};

	return pass_as(t, f, call);
}

/* The call with one argument replaced. */
static long pass_with(struct sthread *t, struct kframe *f, unsigned n, u64 value)
{
	u64 call[7] = {f->regs.ax, f->regs.di, f->regs.si, f->regs.dx, f->regs.r10, f->regs.r8, f->regs.r9};

	call[n] = value;
	return pass_as(t, f, call);
}

/* Calls that put another mask in place while they wait: argument n points to it. */
static long pass_masked(struct sthread *t, struct kframe *f, unsigned n, u64 at)
{
	u64 mask;
	long rc;

	if (!at || user_read(&mask, (void *)(uintptr_t)at, 8) < 0)
		return pass(t, f);
	t->temp = mask & ~GUARDS;
	t->has_temp = true;
	rc = pass_with(t, f, n, (u64)(uintptr_t)&t->temp);
	t->has_temp = false;
	return rc;
}

static long pass_pselect(struct sthread *t, struct kframe *f)
{
	u64 pair[2], mask;
	long rc;

	if (!f->regs.r9 || user_read(pair, (void *)(uintptr_t)f->regs.r9, sizeof(pair)) < 0 || !pair[0] ||
	    user_read(&mask, (void *)(uintptr_t)pair[0], 8) < 0)
		return pass(t, f);
	t->temp = mask & ~GUARDS;
	t->has_temp = true;
	pair[0] = (u64)(uintptr_t)&t->temp;
	rc = pass_with(t, f, 6, (u64)(uintptr_t)pair);
	t->has_temp = false;
	return rc;
}

/* ---- paths ------------------------------------------------------------------------------------------------------- */

/* A path of the program's into PATH_MAX bytes: its length, or -EFAULT, -ENAMETOOLONG. */
static long copy_path(char *out, u64 user)
{
	size_t n = 0;

	while (n < PATH_MAX) {
		size_t piece = PAGE_SIZE - ((user + n) & (PAGE_SIZE - 1));
		char *end;

		if (piece > PATH_MAX - n)
			piece = PATH_MAX - n;
		if (user_read(out + n, (void *)(uintptr_t)(user + n), piece) < 0)
			return -EFAULT;
		end = memchr(out + n, 0, piece);
		if (end)
			return end - out;
		n += piece;
	}
	return -ENAMETOOLONG;
}

/* Is it the link to the process' own program, of which the kernel thinks that it is devkvm-load? */
static bool names_exe(const char *path)
{
	char *end;
	long pid;

	if (strncmp(path, "/proc/", 6) != 0)
		return false;
	if (strcmp(path + 6, "self/exe") == 0 || strcmp(path + 6, "thread-self/exe") == 0)
		return true;
	pid = strtol(path + 6, &end, 10);
	return end > path + 6 && strcmp(end, "/exe") == 0 && pid == getpid();
}

enum special { PATH_PLAIN, PATH_KVM, PATH_EXE };

static enum special special_path(int dirfd, u64 user)
{
	char path[PATH_MAX];

	if (copy_path(path, user) < 3)
		return PATH_PLAIN;
	if (devnode_named(dirfd, path))
		return PATH_KVM;
	return names_exe(path) ? PATH_EXE : PATH_PLAIN;
}

/* The call, whose argument n is a path from dirfd: about /dev/kvm (true), or passed on with the right path. */
static bool is_kvm_path(struct sthread *t, struct kframe *f, int dirfd, unsigned n, u64 path, long *rc)
{
	char room[ROOT_PATH];

	switch (special_path(dirfd, path)) {
	case PATH_KVM:
		return true;
	case PATH_EXE:
		*rc = pass_with(t, f, n, (u64)(uintptr_t)root_exe(t->files, exe, room));
		return false;
	default:
		*rc = pass(t, f);
		return false;
	}
}

static long call_open(struct sthread *t, struct kframe *f, int dirfd, unsigned n, u64 path, u64 flags)
{
	long rc;

	return is_kvm_path(t, f, dirfd, n, path, &rc) ? devnode_open((int)flags) : rc;
}

static long call_openat2(struct sthread *t, struct kframe *f)
{
	struct open_how how;

	if (f->regs.r10 < sizeof(how) || user_read(&how, (void *)(uintptr_t)f->regs.dx, sizeof(how)) < 0)
		return pass(t, f);
	return call_open(t, f, (int)f->regs.di, 2, f->regs.si, how.flags);
}

static long call_access(struct sthread *t, struct kframe *f, int dirfd, unsigned n, u64 path, u64 mode)
{
	long rc;

	return is_kvm_path(t, f, dirfd, n, path, &rc) ? devnode_access((int)mode) : rc;
}

static long put_stat(u64 to)
{
	struct stat st;

	devnode_stat(&st);
	return user_write((void *)(uintptr_t)to, &st, sizeof(st));
}

static bool is_empty_path_of_ours(int dirfd, u64 path, u64 flags)
{
	char first;

	return (flags & AT_EMPTY_PATH) && user_read(&first, (void *)(uintptr_t)path, 1) == 0 && !first &&
	       front_is_ours(dirfd);
}

static long call_stat(struct sthread *t, struct kframe *f, int dirfd, unsigned n, u64 path, u64 to, u64 flags)
{
	long rc;

	if (is_empty_path_of_ours(dirfd, path, flags))
		return put_stat(to);
	return is_kvm_path(t, f, dirfd, n, path, &rc) ? put_stat(to) : rc;
}

static long call_statx(struct sthread *t, struct kframe *f)
{
	struct statx st;
	long rc;

	if (!is_empty_path_of_ours((int)f->regs.di, f->regs.si, f->regs.dx) &&
	    !is_kvm_path(t, f, (int)f->regs.di, 2, f->regs.si, &rc))
		return rc;
	devnode_statx(&st);
	return user_write((void *)(uintptr_t)f->regs.r8, &st, sizeof(st));
}

static long call_readlink(struct sthread *t, struct kframe *f, int dirfd, u64 path, u64 to, u64 size)
{
	size_t n = strlen(exe);

	switch (special_path(dirfd, path)) {
	case PATH_KVM:
		return -EINVAL; /* it is no link */
	case PATH_EXE:
		break;
	default:
		return pass(t, f);
	}
	if ((s32)size <= 0)
		return -EINVAL;
	if (n > size)
		n = size;
	return user_write((void *)(uintptr_t)to, exe, n) < 0 ? -EFAULT : (long)n;
}

/* A call whose argument n is a path, and which says `about` of /dev/kvm. */
static long call_about(struct sthread *t, struct kframe *f, int dirfd, unsigned n, u64 path, long about)
{
	long rc;

	return is_kvm_path(t, f, dirfd, n, path, &rc) ? about : rc;
}

static long call_setxattr(struct sthread *t, struct kframe *f)
{
	const struct kregs *r = &f->regs;
	long rc;

	if (!is_kvm_path(t, f, AT_FDCWD, 1, r->di, &rc))
		return rc;
	return devnode_setxattr((const char *)(uintptr_t)r->si, (const void *)(uintptr_t)r->dx, r->r10);
}

static long call_mount(struct sthread *t, struct kframe *f)
{
	long rc;

	root_leaving(t->files, exec_loader(), exe);
	rc = pass(t, f);
	if (rc != -ENOENT || special_path(AT_FDCWD, f->regs.si) != PATH_KVM || !devnode_place())
		return rc;
	rc = pass(t, f);
	if (rc < 0)
		devnode_unplace();
	return rc;
}

/* ---- starting programs ------------------------------------------------------------------------------------------- */

/* A pointer vector of the program: how many before the NULL, or -EFAULT. */
static long count_pointers(u64 vector)
{
	long n = 0;

	for (u64 at = 1; vector; n++) {
		if (user_read(&at, (void *)(uintptr_t)(vector + (u64)n * 8), 8) < 0)
			return -EFAULT;
		if (!at)
			break;
	}
	return n;
}

/* Where our library has no path: the environment that the program gives to another, with what leads there. `out` has
 * room for two more pointers. False: nothing leads there. */
static bool change_env(struct sthread *t, const u64 *from, size_t n, struct root_exec *x, u64 *out)
{
	bool ours = false;
	size_t k = 0;

	for (size_t e = 0; e < n; e++) {
		char variable[PATH_MAX], *changed;

		out[k++] = from[e];
		if (copy_path(variable, from[e]) < 0)
			continue;
		if (strncmp(variable, ROOT_VARIABLE "=", strlen(ROOT_VARIABLE "=")) == 0) {
			k--;
		} else if (root_names_us(variable)) {
			ours = true;
			changed = root_variable(t->files, x, variable);
			if (changed)
				out[k - 1] = (u64)(uintptr_t)changed;
		}
	}
	if (ours)
		out[k++] = (u64)(uintptr_t)root_files_variable(t->files, x);
	out[k] = 0;
	return ours;
}

static long call_execve(struct sthread *t, struct kframe *f, int dirfd, u64 path, u64 argv, u64 envp, u64 flags,
                        unsigned path_n)
{
	u64 call[7] = {f->regs.ax, f->regs.di, f->regs.si, f->regs.dx, f->regs.r10, f->regs.r8, f->regs.r9};
	char name[PATH_MAX], at[PATH_MAX + 64], room[ROOT_PATH];
	bool hidden = root_hidden(), left = hidden && root_left(t->files), is_static;
	const char *program = name;
	long n_args, n_env, rc;
	struct root_exec x;
	u64 *env, *args;
	int copy = -1;
	size_t size;

	if (copy_path(name, path) < 0)
		return pass(t, f);
	if (names_exe(name)) {
		program = root_exe(t->files, exe, room);
		call[path_n] = (u64)(uintptr_t)program;
	} else if (!*name && (flags & AT_EMPTY_PATH)) {
		program = at, snprintf(at, sizeof(at), "/proc/self/fd/%d", dirfd);
	} else if (dirfd != AT_FDCWD && *name != '/') {
		program = at, snprintf(at, sizeof(at), "/proc/self/fd/%d/%s", dirfd, name);
	}
	is_static = exec_is_static(t->files, AT_FDCWD, program);
	n_args = count_pointers(argv);
	n_env = count_pointers(envp);
	/* The kernel says what is wrong with them. */
	if ((!is_static && !hidden) || n_args < 0 || n_env < 0)
		return pass_as(t, f, call);
	size = (size_t)(2 * n_args + 2 * n_env + EXEC_MORE + ROOT_EXEC_ARGS + 8) * 8;
	env = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (env == MAP_FAILED)
		return -ENOMEM;
	args = env + 2 * n_env + 4;
	if ((n_env && user_read(env, (void *)(uintptr_t)envp, (size_t)n_env * 8) < 0) ||
	    (n_args && user_read(args, (void *)(uintptr_t)argv, (size_t)n_args * 8) < 0)) {
		rc = -EFAULT;
		goto out;
	}
	if (hidden && change_env(t, env, (size_t)n_env, &x, env + n_env + 1)) {
		if (left)
			call[path_n + 2] = (u64)(uintptr_t)(env + n_env + 1);
		else if (syscall(SYS_access, program, X_OK) == 0 && !exec_file_is_static(AT_FDCWD, program))
			exec_lost(program);
	}
	if (is_static) {
		char **first = (char **)(void *)(args + n_args + 1 + ROOT_EXEC_ARGS - 1);

		/* The file is opened by devkvm-load: a descriptor that closes before is passed on under another number.
		 */
		if (!*name) {
			copy = fcntl(dirfd, F_DUPFD, 3);
			rc = -errno;
			if (copy < 0)
				goto out;
			snprintf(at, sizeof(at), "/proc/self/fd/%d", copy);
		}
		exec_loader_argv(first, program, (char **)(void *)args);
		call[0] = SYS_execve;
		call[3] = call[path_n + 2];
		call[1] = (u64)(uintptr_t)exec_loader();
		if (left) {
			first -= ROOT_EXEC_ARGS - 1;
			call[1] = (u64)(uintptr_t)root_exec(t->files, &x, first);
		}
		call[2] = (u64)(uintptr_t)first;
	}
	if (left)
		root_set_cloexec(t->files, false);
	rc = pass_as(t, f, call);
	if (left)
		root_set_cloexec(t->files, true);
	if (copy >= 0)
		sys_close(copy);
out:
	munmap(env, size);
	return rc;
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static long call_brk(u64 to)
{
	static volatile int busy;
	u64 was, have, want;

	while (__atomic_exchange_n(&busy, 1, __ATOMIC_ACQUIRE))
		sched_yield();
	was = brk_now;
	have = (was + PAGE_SIZE - 1) & PAGE_MASK;
	want = (to + PAGE_SIZE - 1) & PAGE_MASK;
	if (to >= brk_start && to < USER_TOP) {
		if (want > have) {
			void *p = mmap((void *)(uintptr_t)have, want - have, PROT_READ | PROT_WRITE,
			               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

			if (p == (void *)(uintptr_t)have)
				brk_now = to;
			else if (p != MAP_FAILED)
				munmap(p, want - have);
		} else {
			if (want < have)
				munmap((void *)(uintptr_t)want, have - want);
			brk_now = to;
		}
	}
	was = brk_now;
	__atomic_store_n(&busy, 0, __ATOMIC_RELEASE);
	return (long)was;
}

/* A call that changes the mapping of memory, which a guest may use. */
static long pass_change(struct sthread *t, struct kframe *f, u64 address, u64 size)
{
	bool used = front_memory_begin(address, size);
	long rc = pass(t, f);

	if (used)
		front_memory_end();
	return rc;
}

static long call_mremap(struct sthread *t, struct kframe *f)
{
	bool used = front_remap_begin(f->regs.di, f->regs.si, f->regs.r10 & MREMAP_FIXED, f->regs.r8, f->regs.dx);
	long rc = pass(t, f);

	if (used)
		front_memory_end();
	return rc;
}

static long call_mmap(struct sthread *t, struct kframe *f)
{
	void *p;

	if ((f->regs.r10 & MAP_ANONYMOUS) || !front_is_ours((int)f->regs.r8))
		return f->regs.r10 & MAP_FIXED ? pass_change(t, f, f->regs.di, f->regs.si) : pass(t, f);
	p = front_mmap((void *)(uintptr_t)f->regs.di, f->regs.si, (int)f->regs.dx, (int)f->regs.r10, (int)f->regs.r8,
	               (off_t)f->regs.r9);
	return p == MAP_FAILED ? -errno : (long)(uintptr_t)p;
}

/* ---- descriptors ------------------------------------------------------------------------------------------------- */

static long call_ioctl(struct sthread *t, struct kframe *f)
{
	int fd = (int)f->regs.di;
	unsigned long req = (u32)f->regs.si;
	long rc;

	if (_IOC_TYPE(req) != KVM_IOCTL_TYPE && !front_is_ours(fd))
		return pass(t, f);
	t->in_ioctl = true;
	static_unblock(static_mask(t, f));
	rc = front_ioctl(fd, req, f->regs.dx);
	static_block();
	t->in_ioctl = false;
	run_interrupted_early(false);
	return rc == FRONT_NOT_OURS ? pass(t, f) : rc;
}

static long call_close(struct sthread *t, struct kframe *f)
{
	unsigned fd = (unsigned)f->regs.di;

	if (front_is_ours((int)fd))
		return front_close((int)fd) < 0 ? -errno : 0;
	if (root_keeps(t->files, (int)fd))
		return 0;
	front_forget(fd, fd);
	return pass(t, f);
}

/* dup2, dup3. */
static long call_dup_to(struct sthread *t, struct kframe *f)
{
	unsigned old = (unsigned)f->regs.di, new = (unsigned)f->regs.si;
	bool ours = old != new &&front_is_ours((int)new);
	long rc;

	if (old != new)
		front_forget(new, new);
	rc = pass(t, f);
	if (ours && rc >= 0)
		front_reap();
	return rc;
}

/* The program's message with descriptors: no pointer of it is trusted. */
static void note_sent(u64 at)
{
	union {
		struct cmsghdr head;
		u8 bytes[1024];
	} c;
	struct msghdr m;
	size_t n;

	if (user_read(&m, (void *)(uintptr_t)at, sizeof(m)) < 0 || !m.msg_control || m.msg_controllen < CMSG_LEN(0))
		return;
	n = m.msg_controllen < sizeof(c) ? m.msg_controllen : sizeof(c);
	if (user_read(&c, m.msg_control, n) < 0)
		return;
	for (size_t k = 0; k + CMSG_LEN(0) <= n;) {
		struct cmsghdr head;

		memcpy(&head, c.bytes + k, sizeof(head));
		if (head.cmsg_len < CMSG_LEN(0) || head.cmsg_len > n - k)
			break;
		if (head.cmsg_level == SOL_SOCKET && head.cmsg_type == SCM_RIGHTS)
			front_sent((const int *)(const void *)(c.bytes + k + CMSG_LEN(0)),
			           (head.cmsg_len - CMSG_LEN(0)) / sizeof(int));
		k += CMSG_ALIGN(head.cmsg_len);
	}
}

static long call_close_range(struct sthread *t, struct kframe *f)
{
	long rc;

	front_forget((unsigned)f->regs.di, (unsigned)f->regs.si);
	rc = root_close_range(t->files, (unsigned)f->regs.di, (unsigned)f->regs.si, (int)f->regs.dx) < 0 ? -errno : 0;
	if (rc == 0 && !(f->regs.dx & CLOSE_RANGE_CLOEXEC))
		front_reap();
	return rc;
}

/* ---- the thread -------------------------------------------------------------------------------------------------- */

static long call_arch_prctl(struct sthread *t, struct kframe *f)
{
	u64 addr = f->regs.si;

	switch (f->regs.di) {
	case ARCH_SET_FS:
		if (addr >= USER_TOP)
			return -EPERM;
		t->fs = addr;
		return 0;
	case ARCH_GET_FS:
		return user_write((void *)(uintptr_t)addr, &t->fs, 8);
	case ARCH_SET_GS:
		dprintf(2, "devkvm: the program wants GS base for itself; devkvm-load needs it\n");
		return -EPERM;
	case ARCH_GET_GS: {
		u64 none = 0;

		return user_write((void *)(uintptr_t)addr, &none, 8);
	}
	}
	return pass(t, f);
}

/* A seccomp filter: ours come before it (static_filter.c). */
static long pass_filter(struct sthread *t, struct kframe *f, unsigned n, u64 at)
{
	struct sock_fprog longer;
	long rc = static_filter_make(at, &longer);

	if (rc < 0)
		return rc;
	rc = pass_with(t, f, n, (u64)(uintptr_t)&longer);
	static_filter_free(&longer);
	return rc;
}

static long call_prctl(struct sthread *t, struct kframe *f)
{
	switch ((int)f->regs.di) {
	case PR_SET_SYSCALL_USER_DISPATCH:
		return -EINVAL;
	case PR_SET_SECCOMP:
		if (f->regs.si == SECCOMP_MODE_FILTER)
			return pass_filter(t, f, 3, f->regs.dx);
		dprintf(2, "devkvm: strict seccomp mode would end the engine too; refused\n");
		return -EINVAL;
	}
	return pass(t, f);
}

static long call_seccomp(struct sthread *t, struct kframe *f)
{
	if (f->regs.di == SECCOMP_SET_MODE_FILTER)
		return pass_filter(t, f, 3, f->regs.dx);
	if (f->regs.di == SECCOMP_SET_MODE_STRICT) {
		dprintf(2, "devkvm: strict seccomp mode would end the engine too; refused\n");
		return -EINVAL;
	}
	return pass(t, f);
}

static long call_exit_group(struct sthread *t, struct kframe *f)
{
	/* The engine prints its statistics when the process ends. */
	if (!t->vforked && debug_on("jitstat"))
		exit((int)f->regs.di);
	return pass(t, f);
}

static long do_call(struct sthread *t, struct kframe *f)
{
	struct kregs *r = &f->regs;

	switch (r->ax) {
	case SYS_ioctl:
		return call_ioctl(t, f);
	case SYS_mmap:
		return call_mmap(t, f);
	case SYS_munmap:
	case SYS_mprotect:
		return pass_change(t, f, r->di, r->si);
	case SYS_mremap:
		return call_mremap(t, f);
	case SYS_brk:
		return call_brk(r->di);
	case SYS_rt_sigprocmask:
		return static_sigprocmask(t, f, (int)r->di, r->si, r->dx, r->r10);
	case SYS_rt_sigaction:
		return static_sigaction(t, (int)r->di, r->si, r->dx, r->r10);
	case SYS_sigaltstack:
		return static_sigaltstack(t, f, r->di, r->si);
	case SYS_rt_sigsuspend:
		return pass_masked(t, f, 1, r->di);
	case SYS_ppoll:
		return pass_masked(t, f, 4, r->r10);
	case SYS_epoll_pwait:
	case SYS_epoll_pwait2:
		return pass_masked(t, f, 5, r->r8);
	case SYS_pselect6:
		return pass_pselect(t, f);

	case SYS_open:
		return call_open(t, f, AT_FDCWD, 1, r->di, r->si);
	case SYS_creat:
		return call_open(t, f, AT_FDCWD, 1, r->di, O_CREAT | O_WRONLY | O_TRUNC);
	case SYS_openat:
		return call_open(t, f, (int)r->di, 2, r->si, r->dx);
	case SYS_openat2:
		return call_openat2(t, f);
	case SYS_access:
		return call_access(t, f, AT_FDCWD, 1, r->di, r->si);
	case SYS_faccessat:
	case SYS_faccessat2:
		return call_access(t, f, (int)r->di, 2, r->si, r->dx);
	case SYS_stat:
	case SYS_lstat:
		return call_stat(t, f, AT_FDCWD, 1, r->di, r->si, 0);
	case SYS_newfstatat:
		return call_stat(t, f, (int)r->di, 2, r->si, r->dx, r->r10);
	case SYS_statx:
		return call_statx(t, f);
	case SYS_fstat:
		return front_is_ours((int)r->di) ? put_stat(r->si) : pass(t, f);
	case SYS_getxattr:
	case SYS_lgetxattr:
		return call_about(t, f, AT_FDCWD, 1, r->di, -ENODATA);
	case SYS_listxattr:
	case SYS_llistxattr:
		return call_about(t, f, AT_FDCWD, 1, r->di, 0);
	case SYS_setxattr:
	case SYS_lsetxattr:
		return call_setxattr(t, f);
	case SYS_removexattr:
	case SYS_lremovexattr:
		return call_about(t, f, AT_FDCWD, 1, r->di, devnode_removexattr((const char *)(uintptr_t)r->si));
	case SYS_mknod:
		return call_about(t, f, AT_FDCWD, 1, r->di, -EEXIST);
	case SYS_mknodat:
		return call_about(t, f, (int)r->di, 2, r->si, -EEXIST);
	case SYS_chmod:
		return call_about(t, f, AT_FDCWD, 1, r->di, devnode_chmod((unsigned)r->si));
	case SYS_fchmodat:
		return call_about(t, f, (int)r->di, 2, r->si, devnode_chmod((unsigned)r->dx));
	case SYS_chown:
	case SYS_lchown:
		return call_about(t, f, AT_FDCWD, 1, r->di, devnode_chown((unsigned)r->si, (unsigned)r->dx));
	case SYS_fchownat:
		return call_about(t, f, (int)r->di, 2, r->si, devnode_chown((unsigned)r->dx, (unsigned)r->r10));
	case SYS_readlink:
		return call_readlink(t, f, AT_FDCWD, r->di, r->si, r->dx);
	case SYS_readlinkat:
		return call_readlink(t, f, (int)r->di, r->si, r->dx, r->r10);

	case SYS_sendmsg:
		note_sent(r->si);
		return pass(t, f);
	case SYS_sendmmsg:
		for (u64 n = 0; n < r->dx && n < 1024; n++)
			note_sent(r->si + n * sizeof(struct mmsghdr));
		return pass(t, f);
	case SYS_close:
		return call_close(t, f);
	case SYS_dup2:
	case SYS_dup3:
		return call_dup_to(t, f);
	case SYS_close_range:
		return call_close_range(t, f);

	case SYS_execve:
		return call_execve(t, f, AT_FDCWD, r->di, r->si, r->dx, 0, 1);
	case SYS_execveat:
		return call_execve(t, f, (int)r->di, r->si, r->dx, r->r10, r->r8, 2);
	case SYS_fork:
		return static_clone(t, f, SIGCHLD, 0, 0, 0, 0);
	case SYS_vfork:
		return static_clone(t, f, CLONE_VM | CLONE_VFORK | SIGCHLD, 0, 0, 0, 0);
	case SYS_clone:
		return static_clone(t, f, r->di, r->si, r->dx, r->r10, r->r8);
	case SYS_clone3:
		return static_clone3(t, f, r->di, r->si);
	case SYS_chroot:
	case SYS_pivot_root:
	case SYS_move_mount:
	case SYS_setns:
		root_leaving(t->files, exec_loader(), exe);
		return pass(t, f);
	case SYS_mount:
		return call_mount(t, f);
	case SYS_setuid:
	case SYS_setreuid:
	case SYS_setresuid:
		if (geteuid() == 0)
			root_leaving(t->files, exec_loader(), exe);
		return pass(t, f);
	case SYS_exit:
		if (t->ours)
			static_exit_thread(t, (int)r->di);
		return pass(t, f);
	case SYS_exit_group:
		return call_exit_group(t, f);
	case SYS_arch_prctl:
		return call_arch_prctl(t, f);
	case SYS_prctl:
		return call_prctl(t, f);
	case SYS_seccomp:
		return call_seccomp(t, f);
	}
	return pass(t, f);
}

void static_system_call(struct sthread *t, struct kframe *f, int nr)
{
	/* int $0x80 and the calls of x32 are other tables. */
	if (unlikely(f->info.si_arch != AUDIT_X86_64)) {
		f->regs.ax = (u64)-ENOSYS;
		return;
	}
	if (unlikely(nr == SYS_rt_sigreturn))
		static_sigreturn(t, f);
	f->regs.ax = (u64)do_call(t, f);
}
