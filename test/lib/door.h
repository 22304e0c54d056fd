/*
 * door.h: how test clients of either interface reach it: plain open, ioctl and mmap on /dev/kvm; with LINKED defined
 * the calls of <devkvm.h> instead. After the <linux/kvm.h> of the interface that is meant.
 */
#ifndef DEVKVM_TEST_DOOR_H
#define DEVKVM_TEST_DOOR_H

#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef LINKED
#include <devkvm.h>
#define kopen() devkvm_open(O_CLOEXEC)
#define kioctl(fd, req, arg) devkvm_ioctl(fd, req, (void *)(arg))
#define kmmap devkvm_mmap
#define kclose devkvm_close
#else
#define kopen() open("/dev/kvm", O_RDWR | O_CLOEXEC)
#define kioctl(fd, req, arg) ioctl(fd, req, arg)
#define kmmap mmap
#define kclose close
#endif

/* Copies code into the memory of a struct guest. */
#define CODE(g, at, ...)                                                                                               \
	do {                                                                                                           \
		static const uint8_t code_[] = {__VA_ARGS__};                                                          \
		memcpy((g)->ram + (at), code_, sizeof(code_));                                                         \
	} while (0)

#endif
