/*
 * programs.c: what a program sees of itself, and the programs and threads that it starts. SHIM_TWINS names the other
 * builds of this program, separated by colons: each starts each.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <spawn.h>
#include <stddef.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include "shim.h"

extern char **environ;
static char **args;

/* What a child of ours does: 12 when it has a /dev/kvm, and its arguments are right. */
static int child_main(int argc, char **argv)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return 1;
	if (strcmp(argv[0], "a name") != 0 || argc != 3 || strcmp(argv[2], "b c") != 0)
		return 2;
	return ioctl(fd, KVM_GET_API_VERSION, 0L);
}

TEST(the_program_is_itself)
{
	char exe[PATH_MAX] = "", self[PATH_MAX], link[64], name[17] = "";
	struct stat a, b;
	int fd;

	CHECK(realpath(args[0], self) != NULL);
	CHECK(readlink("/proc/self/exe", exe, sizeof(exe) - 1) > 0);
	CHECK_EQ(strcmp(exe, self), 0);
	snprintf(link, sizeof(link), "/proc/%d/exe", getpid());
	memset(exe, 0, sizeof(exe));
	CHECK(readlink(link, exe, sizeof(exe) - 1) > 0);
	CHECK_EQ(strcmp(exe, self), 0);
	CHECK_EQ(stat("/proc/self/exe", &a), 0);
	CHECK_EQ(stat(self, &b), 0);
	CHECK_EQ(a.st_ino, b.st_ino);
	fd = open("/proc/self/exe", O_RDONLY);
	CHECK_EQ(fstat(fd, &a), 0);
	CHECK_EQ(a.st_ino, b.st_ino);
	close(fd);
	prctl(PR_GET_NAME, name);
	CHECK_EQ(strncmp(name, strrchr(self, '/') + 1, 15), 0);
	CHECK(getauxval(AT_PHDR) != 0);
	CHECK(strcmp((char *)getauxval(AT_EXECFN), args[0]) == 0);
}

static char *brk_to(const char *to)
{
	return (char *)syscall(SYS_brk, to);
}

/* What programs and scripts ask of the node besides opening it: by stdio, by its real name, what `ls -l` asks, and the
 * `chmod 666` of many a build script. */
TEST(the_node_is_like_a_file)
{
	/* "user::rw-,group::rw-,other::rw-": version, then tag and permissions, and nobody's number, of each. */
	unsigned short acl[] = {2, 0, 1, 6, 0xffff, 0xffff, 4, 6, 0xffff, 0xffff, 32, 6, 0xffff, 0xffff};
	char real[PATH_MAX] = "", link[16];
	struct stat st;
	FILE *f;
	int fd;

	CHECK(!fopen("/dev/kvm", "wx") && errno == EEXIST);
	f = fopen("/dev/kvm", "r+");
	CHECK(f);
	if (f) {
		CHECK_EQ(ioctl(fileno(f), KVM_GET_API_VERSION, 0L), 12);
		CHECK_EQ(fclose(f), 0);
	}
	/* The number means something else now. */
	fd = open("/dev/null", O_RDWR);
	CHECK_ERR(ioctl(fd, KVM_GET_API_VERSION, 0L), ENOTTY);
	close(fd);
	CHECK(realpath("/dev//./kvm", real) && !strcmp(real, "/dev/kvm"));
	CHECK(realpath("/../dev/../dev/kvm", real) && !strcmp(real, "/dev/kvm"));
	CHECK_ERR(readlink("/dev/kvm", link, sizeof(link)), EINVAL);
	CHECK_ERR(getxattr("/dev/kvm", "security.selinux", real, sizeof(real)), ENODATA);
	CHECK_ERR(lgetxattr("/dev/kvm", "system.posix_acl_access", real, sizeof(real)), ENODATA);
	CHECK_EQ(listxattr("/dev/kvm", real, sizeof(real)), 0);
	CHECK_EQ(llistxattr("/dev/kvm", NULL, 0), 0);
	/* libvirt copies the access control list, which is that of the mode, to where it thinks the node is missing. */
	CHECK_EQ(setxattr("/dev/kvm", "system.posix_acl_access", acl, sizeof(acl), 0), 0);
	CHECK_EQ(lsetxattr("/dev/kvm", "system.posix_acl_access", acl, sizeof(acl), 0), 0);
	CHECK_ERR(setxattr("/dev/kvm", "system.posix_acl_access", acl, sizeof(acl) - 8, 0), EPERM);
	acl[7] = 4; /* "group::r--" */
	CHECK_ERR(setxattr("/dev/kvm", "system.posix_acl_access", acl, sizeof(acl), 0), EPERM);
	CHECK_ERR(setxattr("/dev/kvm", "user.x", "x", 1, 0), EPERM);
	CHECK_EQ(removexattr("/dev/kvm", "system.posix_acl_access"), 0);
	CHECK_ERR(lremovexattr("/dev/kvm", "user.x"), ENODATA);
	CHECK_ERR(mknod("/dev/kvm", S_IFCHR | 0666, makedev(10, 232)), EEXIST);
	CHECK_ERR(mknodat(AT_FDCWD, "/dev/./kvm", S_IFREG | 0666, 0), EEXIST);
	/* It is everybody's already; nothing else can be had. */
	CHECK_EQ(chmod("/dev/kvm", 0666), 0);
	CHECK_ERR(chmod("/dev/kvm", 0600), EPERM);
	CHECK_EQ(fchmodat(AT_FDCWD, "/dev/kvm", 0666, 0), 0);
	CHECK_EQ(chown("/dev/kvm", 0, (gid_t)-1), 0);
	CHECK_ERR(lchown("/dev/kvm", 1000, 0), EPERM);
	CHECK_EQ(fchownat(AT_FDCWD, "/dev/kvm", 0, 0, 0), 0);
	CHECK_EQ(stat("/dev/kvm", &st), 0);
	CHECK_EQ(st.st_mode, S_IFCHR | 0666);
}

TEST(the_heap_grows_and_shrinks)
{
	char *start = brk_to(NULL), *end = start + (3 << 20);

	CHECK(brk_to(end) == end);
	if (brk_to(NULL) == end) {
		memset(start, 1, 3 << 20);
		CHECK_EQ(end[-1], 1);
		CHECK(brk_to(start) == start);
		CHECK(brk_to(end) == end);
		CHECK_EQ(end[-5000], 0);
		CHECK(brk_to(start) == start);
	}
	CHECK(brk_to((char *)8) == start);
}

enum way { FORK, VFORK, SPAWN, SPAWNP, EXECV, EXECL, FEXECVE, WAYS };
static const char *const ways[] = {"fork", "vfork", "posix_spawn", "posix_spawnp", "execv", "execl", "fexecve"};

static pid_t start(enum way way, const char *path)
{
	char *argv[] = {"a name", "--child", "b c", NULL};
	pid_t pid = -1;
	int fd;

	switch (way) {
	case SPAWN:
		return posix_spawn(&pid, path, NULL, NULL, argv, environ) ? -1 : pid;
	case SPAWNP:
		return posix_spawnp(&pid, path, NULL, NULL, argv, environ) ? -1 : pid;
	case VFORK:
		pid = vfork();
		if (pid == 0) {
			execve(path, argv, environ);
			_exit(99);
		}
		return pid;
	default:
		break;
	}
	pid = fork();
	if (pid == 0) {
		switch (way) {
		case EXECV:
			execv(path, argv);
			break;
		case EXECL:
			execl(path, "a name", "--child", "b c", NULL);
			break;
		case FEXECVE:
			fd = open(path, O_RDONLY | O_CLOEXEC);
			fexecve(fd, argv, environ);
			break;
		default:
			execve(path, argv, environ);
		}
		_exit(99);
	}
	return pid;
}

TEST(children_of_every_kind)
{
	const char *twins = getenv("SHIM_TWINS");
	char list[1024], *path, *rest = list;

	snprintf(list, sizeof(list), "%s%s%s", args[0], twins ? ":" : "", twins ? twins : "");
	while ((path = strsep(&rest, ":")) != NULL)
		for (int way = 0; way < WAYS; way++) {
			int got = status_of(start((enum way)way, path));

			if (got != 12)
				printf("  %s of %s: %d\n", ways[way], path, got);
			CHECK_EQ(got, 12);
		}
	CHECK_EQ(system("test -c /dev/kvm && test -w /dev/kvm"), 0);
}

#ifndef STATIC
/* As a kernel before 5.11 answers, which has no syscall user dispatch. */
static void refuse_dispatch(void)
{
	struct sock_filter f[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	                          BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 3),
	                          BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
	                          BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 59, 0, 1),
	                          BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
	                          BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
	struct sock_fprog all = {sizeof(f) / sizeof(f[0]), f};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &all) < 0)
		_exit(98);
}

/* Then static programs cannot be served, and are told so instead of being run without a /dev/kvm. */
TEST(a_kernel_that_cannot_serve_static_programs)
{
	const char *twins = getenv("SHIM_TWINS");
	char list[1024], said[512] = "", *path, *rest = list;
	int pipes[2];

	snprintf(list, sizeof(list), "%s", twins ? twins : "");
	while ((path = strsep(&rest, ":")) != NULL) {
		ssize_t n;
		pid_t pid;

		if (!strstr(path, "-static") && !strstr(path, "-musl"))
			continue;
		CHECK_EQ(pipe(pipes), 0);
		pid = fork();
		if (pid == 0) {
			dup2(pipes[1], 2);
			refuse_dispatch();
			execl(path, "a name", "--child", "b c", NULL);
			_exit(99);
		}
		close(pipes[1]);
		n = read(pipes[0], said, sizeof(said) - 1);
		said[n > 0 ? n : 0] = 0;
		CHECK(strstr(said, "Linux 5.11"));
		CHECK_EQ(status_of(pid), 126);
		close(pipes[0]);
	}
}
#endif

TEST(a_failed_exec_leaves_all_as_it_was)
{
	char *argv[] = {"none", NULL}, *volatile bad = (char *)8;
	struct guest g;
	pid_t pid;
	int fd;

	CHECK_EQ(guest_ports(&g), 0);
	CHECK_ERR(execv("/nonexistent/program", argv), ENOENT);
	CHECK_ERR(execve(bad, argv, environ), EFAULT);
	pid = vfork();
	if (pid == 0) {
		execv("/nonexistent/program", argv);
		_exit(errno);
	}
	CHECK_EQ(status_of(pid), ENOENT);
	/* A file by its descriptor, but with bad arguments. */
	fd = open("/proc/self/exe", O_RDONLY);
	CHECK(fd >= 0);
	for (unsigned n = 0; n < 3; n++)
		CHECK(syscall(SYS_execveat, fd, "", bad, environ, AT_EMPTY_PATH) == -1 && errno == EFAULT);
	CHECK_EQ(dup(fd), fd + 1);
	close(fd + 1);
	close(fd);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	guest_close(&g);
}

static volatile int handled;

static void handler(int sig)
{
	handled++;
}

/* A child that shares our memory has actions of its own. */
TEST(actions_of_a_vforked_child)
{
	pid_t pid;

	signal(SIGUSR1, handler);
	pid = vfork();
	if (pid == 0) {
		struct sigaction dfl = {.sa_handler = SIG_DFL};

		syscall(SYS_rt_sigaction, SIGUSR1, &dfl, NULL, 8);
		_exit(0);
	}
	CHECK_EQ(status_of(pid), 0);
	handled = 0;
	raise(SIGUSR1);
	CHECK_EQ(handled, 1);
	signal(SIGUSR1, SIG_DFL);
}

/* ---- threads ----------------------------------------------------------------------------------------------------- */

static _Thread_local int own = 5;

static void *count(void *arg)
{
	char name[16];

	own += (int)(long)arg;
	snprintf(name, sizeof(name), "t%ld", (long)arg);
	prctl(PR_SET_NAME, name);
	free(malloc(1000));
	sched_yield();
	return (void *)(long)own;
}

TEST(threads_come_and_go)
{
	pthread_t t[8];
	void *rc;

	for (unsigned round = 0; round < 50; round++) {
		for (long n = 0; n < 8; n++)
			CHECK_EQ(pthread_create(&t[n], NULL, count, (void *)n), 0);
		for (long n = 0; n < 8; n++) {
			CHECK_EQ(pthread_join(t[n], &rc), 0);
			CHECK_EQ((long)rc, 5 + n);
		}
	}
	CHECK_EQ(own, 5);
}

static int done;

static void *note(void *arg)
{
	__atomic_fetch_add(&done, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

/* musl's detached threads end without a stack. */
TEST(detached_threads)
{
	pthread_attr_t attr;
	pthread_t t;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	for (unsigned n = 0; n < 200; n++)
		CHECK_EQ(pthread_create(&t, &attr, note, NULL), 0);
	for (unsigned n = 0; n < 5000 && __atomic_load_n(&done, __ATOMIC_SEQ_CST) != 200; n++)
		usleep(1000);
	CHECK_EQ(done, 200);
}

static void *run_ports(void *arg)
{
	struct guest *g = arg;

	for (unsigned n = 0; n < 200; n++)
		if (guest_run(g) < 0 || g->run->exit_reason != KVM_EXIT_IO)
			return (void *)1;
	return NULL;
}

TEST(vcpus_in_threads)
{
	struct guest g[4];
	pthread_t t[4];
	void *rc;

	for (unsigned n = 0; n < 4; n++) {
		CHECK_EQ(guest_ports(&g[n]), 0);
		CHECK_EQ(pthread_create(&t[n], NULL, run_ports, &g[n]), 0);
	}
	for (unsigned n = 0; n < 4; n++) {
		CHECK_EQ(pthread_join(t[n], &rc), 0);
		CHECK_EQ((long)rc, 0);
		guest_close(&g[n]);
	}
}

/* fork() while other threads run, and the child goes on with its own VM. */
TEST(fork_beside_threads)
{
	struct guest g, h;
	pthread_t t;
	void *rc;

	CHECK_EQ(guest_ports(&g), 0);
	CHECK_EQ(pthread_create(&t, NULL, run_ports, &g), 0);
	for (unsigned n = 0; n < 10; n++) {
		pid_t pid = fork();

		if (pid == 0) {
			if (kioctl(g.vcpu, KVM_RUN, 0L) != -1 || errno != EIO)
				_exit(1);
			if (guest_ports(&h) < 0)
				_exit(2);
			_exit(run_ports(&h) ? 3 : 0);
		}
		CHECK_EQ(status_of(pid), 0);
	}
	pthread_join(t, &rc);
	CHECK_EQ((long)rc, 0);
	guest_close(&g);
}

int main(int argc, char **argv)
{
	args = argv;
	if (argc > 1 && strcmp(argv[1], "--child") == 0)
		return child_main(argc, argv);
	return test_main(argc, argv);
}
