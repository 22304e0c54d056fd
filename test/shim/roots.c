/*
 * roots.c: programs below another root directory, as sandboxes make one, where devkvm's own files cannot be seen. The
 * other builds of this program lie beside it: each starts each.
 */
#define _GNU_SOURCE
#include <limits.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/mount.h>

#include "shim.h"

#define CANNOT 77
#define TWINS 3

extern char **environ;
static const char *const kinds[TWINS] = {"", "-static", "-musl"};
static char self[PATH_MAX];

/* 12: there is a /dev/kvm, and the program is the one it should be. */
static int child_main(int argc, char **argv)
{
	struct stat exe, file;
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return 1;
	if (argc != 3 || strcmp(argv[0], "a name") != 0)
		return 2;
	if (stat("/proc/self/exe", &exe) < 0 || stat(argv[2], &file) < 0 || exe.st_ino != file.st_ino)
		return 3;
	return ioctl(fd, KVM_GET_API_VERSION, 0L);
}

static void put(const char *from, const char *dir, const char *name, bool folder)
{
	char to[PATH_MAX + 64];

	snprintf(to, sizeof(to), "%s/%s", dir, name);
	if (folder)
		mkdir(to, 0755);
	else
		close(open(to, O_CREAT | O_WRONLY, 0755));
	if (mount(from, to, NULL, MS_BIND | MS_REC, NULL) < 0)
		_exit(CANNOT + 1);
}

static bool put_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	close(fd);
	return ok;
}

/* Mounts of one's own; who is not root stays who he is, and may make files. */
static bool own_mounts(void)
{
	char user[64], group[64];

	if (unshare(CLONE_NEWNS) == 0)
		return true;
	snprintf(user, sizeof(user), "%u %u 1", getuid(), getuid());
	snprintf(group, sizeof(group), "%u %u 1", getgid(), getgid());
	return unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0 && put_text("/proc/self/uid_map", user) &&
	       put_text("/proc/self/setgroups", "deny") && put_text("/proc/self/gid_map", group);
}

/* A root with what programs of the distribution need, and those of ours by the names /0, /1 and /2. */
static void other_root(const char *dir, bool proc)
{
	char *end = strrchr(self, '/') + strlen("/roots");

	if (!own_mounts() || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("none", dir, "tmpfs", 0, NULL) < 0)
		_exit(CANNOT);
	put("/usr", dir, "usr", true);
	put("/lib", dir, "lib", true);
	put("/lib64", dir, "lib64", true);
	if (proc)
		put("/proc", dir, "proc", true);
	for (unsigned n = 0; n < TWINS; n++) {
		char name[2] = {(char)('0' + n), 0};

		strcpy(end, kinds[n]);
		if (access(self, X_OK) == 0)
			put(self, dir, name, false);
	}
	if (chdir(dir) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		_exit(CANNOT + 2);
}

static void close_all(void)
{
#ifdef STATIC
	syscall(SYS_close_range, 3, ~0u, 0);
#else
	close_range(3, ~0u, 0);
#endif
}

enum way { EXEC, SPAWN, VFORK, EXECVP, CLOSED, FEXEC, UNSEEN, WAYS };

static pid_t start(enum way way, const char *path, const char *what)
{
	char *argv[] = {"a name", (char *)(uintptr_t)what, (char *)(uintptr_t)path, NULL};
	pid_t pid = -1;
	int fd;

	if (way == SPAWN)
		return posix_spawn(&pid, path, NULL, NULL, argv, environ) ? -1 : pid;
	if (way == VFORK) {
		pid = vfork();
		if (pid == 0) {
			execve(path, argv, environ);
			_exit(99);
		}
		return pid;
	}
	pid = fork();
	if (pid == 0) {
		switch (way) {
		case EXECVP:
			execvp(path, argv);
			break;
		case CLOSED:
			/* As many do for their children. */
			close_all();
			for (fd = 3; fd < 2000; fd++)
				close(fd);
			execve(path, argv, environ);
			break;
		case FEXEC:
			fd = open(path, O_RDONLY | O_CLOEXEC);
			fexecve(fd, argv, environ);
			break;
		case UNSEEN:
			/* As the C library's system() does. */
			syscall(SYS_execve, path, argv, environ);
			break;
		default:
			execve(path, argv, environ);
		}
		_exit(99);
	}
	return pid;
}

/* Each kind of program by each way, with what is then to do. */
static int all_of(const char *what, bool unseen)
{
	for (unsigned n = 0; n < TWINS; n++)
		for (int way = 0; way < WAYS; way++) {
			char path[3] = {'/', (char)('0' + n), 0};
			int got;

			/* A call that a library cannot see starts dynamic programs only. */
			if (access(path, X_OK) < 0 || (way == UNSEEN && (!unseen || n)))
				continue;
			got = status_of(start((enum way)way, path, what));
			if (got != 12) {
				printf("  %s of %s, way %d: %d\n", what, path, way, got);
				fflush(stdout);
				return got;
			}
		}
	return 12;
}

/* Without an environment only static programs can be reached, from static ones. */
static int bare_main(void)
{
	char *argv[] = {"a name", "--child", "/proc/self/exe", NULL}, *none[] = {NULL};
	pid_t pid = vfork();
	int status;

	if (pid == 0) {
		execve("/proc/self/exe", argv, none);
		_exit(99);
	}
	status = status_of(pid);
	if (status != 12)
		return status;
	execve("/proc/self/exe", argv, none);
	return 98;
}

static bool below_usr(void)
{
	return strncmp(self, "/usr/", 5) == 0;
}

/* Runs in a child below another root. */
static void below(int (*fn)(void), bool proc)
{
	char dir[] = "/tmp/shim-root-XXXXXX";
	int status;
	pid_t pid;

	CHECK(mkdtemp(dir) != NULL);
	pid = fork();
	if (pid == 0) {
		other_root(dir, proc);
		_exit(fn());
	}
	status = status_of(pid);
	rmdir(dir);
	if (status == CANNOT)
		printf("  (mount namespaces are not for us here: not tested)\n");
	else
		CHECK_EQ(status, 12);
}

static int start_all(void)
{
	return all_of("--child", false);
}

static int start_starters(void)
{
	return all_of("--again", false);
}

TEST(programs_below_another_root)
{
	below(start_all, true);
}

TEST(their_programs)
{
	below(start_starters, true);
}

#ifdef STATIC
static int bare(void)
{
	char *argv[] = {"a name", "--bare", NULL}, *none[] = {NULL};
	struct stat exe;

	if (stat("/proc/self/exe", &exe) < 0)
		return 97;
	execve("/proc/self/exe", argv, none);
	return 96;
}

TEST(static_programs_without_an_environment)
{
	below(bare, true);
}
#endif

/* A node that was a mount of its own (a container's) is moved from one /dev to another, which is empty. */
static int mount_node(void)
{
	struct stat st;

	if (mkdir("/dev", 0755) < 0 || stat("/dev/kvm", &st) < 0 || !S_ISCHR(st.st_mode))
		return 80;
	if (mount("/0", "/dev/kvm", NULL, MS_BIND, NULL) < 0)
		return 81;
	if (ioctl(open("/dev/kvm", O_RDWR | O_CLOEXEC), KVM_GET_API_VERSION, 0L) != 12)
		return 82;
	if (umount2("/dev/kvm", MNT_DETACH) < 0)
		return 83;
	if (mount("/nonexistent", "/dev/kvm", NULL, MS_BIND, NULL) == 0 || errno != ENOENT)
		return 84;
	unlink("/dev/kvm");
	if (mount("/nonexistent", "/dev/kvm", NULL, MS_BIND, NULL) == 0 || errno != ENOENT ||
	    syscall(SYS_unlink, "/dev/kvm") == 0)
		return 85;
	return 12;
}

TEST(a_mount_at_the_node)
{
	below(mount_node, true);
}

/* No way leads there: this is said, and the programs start without. */
static int start_lost(void)
{
	for (unsigned n = 0; n < TWINS; n++) {
		char path[3] = {'/', (char)('0' + n), 0}, said[1024] = "";
		int pipes[2], got;
		ssize_t size;
		pid_t pid;

		if (access(path, X_OK) < 0)
			continue;
		if (pipe(pipes) < 0)
			return 90;
		pid = fork();
		if (pid == 0) {
			char *argv[] = {"a name", "--child", path, NULL};

			dup2(pipes[1], 2);
			execve(path, argv, environ);
			_exit(99);
		}
		got = status_of(pid);
		close(pipes[1]);
		size = read(pipes[0], said, sizeof(said) - 1);
		close(pipes[0]);
		if (got != 1 || size <= 0 || !strstr(said, path) || !strstr(said, "install devkvm"))
			return 91 + (int)n;
	}
	return 12;
}

TEST(programs_that_cannot_be_reached)
{
	if (!below_usr())
		below(start_lost, false);
}

/* A change of the root that fails changes nothing, and shows no descriptors that a program could count on. */
TEST(a_root_that_is_not_changed)
{
	int fd = open("/dev/null", O_RDONLY), next;

	CHECK_ERR(chroot("/nonexistent"), ENOENT);
	next = open("/dev/null", O_RDONLY);
	CHECK_EQ(next, fd + 1);
	close(next);
	close(fd);
	CHECK_EQ(status_of(start(EXEC, self, "--child")), 12);
}

int main(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "--child") == 0)
		return child_main(argc, argv);
	if (argc > 1 && strcmp(argv[1], "--again") == 0)
		return all_of("--child", true);
	if (argc > 1 && strcmp(argv[1], "--bare") == 0)
		return bare_main();
	if (!realpath(argv[0], self))
		return 2;
	return test_main(argc, argv);
}
