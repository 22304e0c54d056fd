/*
 * fds.c: descriptors of ours, handed about as others are.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <linux/close_range.h>
#include <spawn.h>
#include <sys/epoll.h>
#include <sys/uio.h>

#include "shim.h"

extern char **environ;
static char **args;

TEST(copies_are_the_same)
{
	struct guest g;
	int copy[3], other = open("/dev/null", O_RDWR);

	CHECK_EQ(guest_ports(&g), 0);
	copy[0] = fcntl(g.vcpu, F_DUPFD_CLOEXEC, 50);
	CHECK(copy[0] >= 50);
	CHECK_EQ(fcntl(copy[0], F_GETFD), FD_CLOEXEC);
	copy[1] = dup3(g.vcpu, 70, O_CLOEXEC);
	CHECK_EQ(copy[1], 70);
	copy[2] = dup2(g.vcpu, other);
	CHECK_EQ(copy[2], other);
	for (unsigned n = 0; n < 3; n++) {
		CHECK_EQ(kioctl(copy[n], KVM_RUN, 0L), 0);
		CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	}
	/* A number that means something else from now on. */
	other = open("/dev/null", O_RDWR);
	CHECK_EQ(dup3(other, 70, 0), 70);
	CHECK_ERR(kioctl(70, KVM_RUN, 0L), ENOTTY);
	CHECK_EQ(dup2(g.vcpu, 70), 70);
	CHECK_EQ(kioctl(70, KVM_RUN, 0L), 0);
	close(70);
	CHECK_ERR(kioctl(70, KVM_RUN, 0L), EBADF);
	close(other);
	close(copy[0]);
	close(copy[2]);
	guest_close(&g);
}

TEST(ranges_close)
{
	struct guest g;
	int low, high;

	CHECK_EQ(guest_ports(&g), 0);
	low = fcntl(g.vcpu, F_DUPFD, 200);
	high = fcntl(g.vm, F_DUPFD, 201);
	CHECK_EQ(syscall(SYS_close_range, 200, 300, CLOSE_RANGE_CLOEXEC), 0);
	CHECK_EQ(fcntl(low, F_GETFD), FD_CLOEXEC);
	CHECK_EQ(kioctl(low, KVM_RUN, 0L), 0);
	CHECK_EQ(syscall(SYS_close_range, 200, 300, 0), 0);
	CHECK_ERR(fcntl(low, F_GETFD), EBADF);
	CHECK_ERR(kioctl(high, KVM_CHECK_EXTENSION, 0L), EBADF);
	CHECK_EQ(guest_run(&g), 0);
	guest_close(&g);
}

TEST(polling)
{
	struct guest g;
	struct pollfd p[2];
	struct epoll_event ev = {.events = EPOLLIN};
	int ep = epoll_create1(EPOLL_CLOEXEC);

	CHECK_EQ(guest_ports(&g), 0);
	p[0] = (struct pollfd){.fd = g.vm, .events = POLLIN | POLLOUT};
	p[1] = (struct pollfd){.fd = g.vcpu, .events = POLLIN | POLLOUT};
	/* Files without a poll of their own are always ready, and no epoll takes them. */
	CHECK_EQ(poll(p, 2, 1000), 2);
	CHECK_EQ(p[0].revents, POLLIN | POLLOUT);
	CHECK_ERR(epoll_ctl(ep, EPOLL_CTL_ADD, g.vcpu, &ev), EPERM);
	close(ep);
	guest_close(&g);
}

/* Sends a descriptor through a socket to ourselves or to a child. */
static int send_fd(int sock, int fd)
{
	char data = 'x', room[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec io = {.iov_base = &data, .iov_len = 1};
	struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	return sendmsg(sock, &m, 0) == 1 ? 0 : -1;
}

static int receive_fd(int sock)
{
	char data, room[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec io = {.iov_base = &data, .iov_len = 1};
	struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room)};
	int fd;

	if (recvmsg(sock, &m, MSG_CMSG_CLOEXEC) != 1 || !CMSG_FIRSTHDR(&m))
		return -1;
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(fd));
	return fd;
}

TEST(through_a_socket)
{
	struct guest g;
	int s[2], got;

	CHECK_EQ(guest_ports(&g), 0);
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, s), 0);
	CHECK_EQ(send_fd(s[0], g.vcpu), 0);
	close(g.vcpu);
	got = receive_fd(s[1]);
	CHECK(got >= 0);
	CHECK_EQ(kioctl(got, KVM_RUN, 0L), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	g.vcpu = got;
	close(s[0]);
	close(s[1]);
	guest_close(&g);
}

/* A child, by fork() or received: another address space, so EIO; /dev/kvm itself makes VMs there. */
TEST(in_a_child)
{
	struct guest g;
	int s[2];
	pid_t pid;

	CHECK_EQ(guest_ports(&g), 0);
	CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, s), 0);
	pid = fork();
	if (pid == 0) {
		int got[3];

		for (unsigned n = 0; n < 3; n++)
			got[n] = receive_fd(s[1]);
		if (ioctl(got[0], KVM_RUN, 0L) != -1 || errno != EIO)
			_exit(1);
		if (ioctl(got[1], KVM_CREATE_VCPU, 5L) != -1 || errno != EIO)
			_exit(2);
		if (ioctl(got[2], KVM_GET_API_VERSION, 0L) != 12)
			_exit(3);
		if (ioctl(g.vcpu, KVM_RUN, 0L) != -1 || errno != EIO)
			_exit(4);
		if (ioctl(got[2], KVM_CREATE_VM, 0L) < 0)
			_exit(5);
		_exit(12);
	}
	CHECK_EQ(send_fd(s[0], g.vcpu), 0);
	CHECK_EQ(send_fd(s[0], g.vm), 0);
	CHECK_EQ(send_fd(s[0], g.kvm), 0);
	CHECK_EQ(status_of(pid), 12);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	close(s[0]);
	close(s[1]);
	guest_close(&g);
}

TEST(they_are_in_proc)
{
	unsigned found = 0;
	struct guest g;
	struct dirent *d;
	DIR *dir;

	CHECK_EQ(guest_ports(&g), 0);
	dir = opendir("/proc/self/fd");
	while ((d = readdir(dir)) != NULL)
		found += atoi(d->d_name) == g.vm || atoi(d->d_name) == g.vcpu;
	closedir(dir);
	CHECK_EQ(found, 2);
	guest_close(&g);
}

/* --inherited VCPU KVM: what a program finds that inherits descriptors. */
static int inherited_main(char **argv)
{
	int vcpu = atoi(argv[2]), kvm = atoi(argv[3]);
	struct guest g;

	if (fcntl(vcpu, F_GETFD) < 0)
		return 1;
	if (ioctl(vcpu, KVM_RUN, 0L) != -1 || errno != EIO)
		return 2;
	/* gVisor's sandbox opens nothing itself. What it takes from its guest must be seen all the same. */
	if (guest_open_on(&g, kvm, 0x10000) < 0 || guest_start16(&g, 0x1000) < 0)
		return 3;
	CODE(&g, 0x1000, 0xa0, 0x00, 0x50, 0xe6, 0x10, 0xeb, 0xf9); /* mov al, [0x5000]; out 0x10, al; jmp */
	for (unsigned n = 0; n < 2; n++)
		if (guest_run(&g) < 0 || g.run->exit_reason != KVM_EXIT_IO)
			return 4;
	munmap(g.ram + 0x5000, 0x1000);
	if (guest_run(&g) != -1 || errno != EFAULT)
		return 5;
	return ioctl(kvm, KVM_GET_API_VERSION, 0L);
}

TEST(inherited_over_exec)
{
	char vcpu[12], kvm[12], *argv[] = {args[0], "--inherited", vcpu, kvm, NULL};
	struct guest g;
	pid_t pid;

	CHECK_EQ(guest_ports(&g), 0);
	snprintf(vcpu, sizeof(vcpu), "%d", dup(g.vcpu));
	snprintf(kvm, sizeof(kvm), "%d", dup(g.kvm));
	CHECK_EQ(posix_spawn(&pid, args[0], NULL, NULL, argv, environ), 0);
	CHECK_EQ(status_of(pid), 12);
	CHECK_EQ(guest_run(&g), 0);
	close(atoi(vcpu));
	close(atoi(kvm));
	guest_close(&g);
}

/* vfork: the child closes and replaces numbers, the parent's mean what they did. */
TEST(a_vforked_child_closes)
{
	struct guest g;
	pid_t pid;

	CHECK_EQ(guest_ports(&g), 0);
	pid = vfork();
	if (pid == 0) {
		close(g.vcpu);
		dup2(0, g.vm);
		_exit(0);
	}
	CHECK_EQ(status_of(pid), 0);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	CHECK(kioctl(g.vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) > 0);
	guest_close(&g);
}

int main(int argc, char **argv)
{
	args = argv;
	if (argc > 1 && strcmp(argv[1], "--inherited") == 0)
		return inherited_main(argv);
	return test_main(argc, argv);
}
