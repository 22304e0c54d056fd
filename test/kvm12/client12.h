/*
 * client12.h: a client of version 12 of the interface: plain open, ioctl and mmap on /dev/kvm with the system's header.
 * With LINKED defined the same source uses the calls of <devkvm.h> instead.
 */
#ifndef DEVKVM_TEST_KVM12_CLIENT12_H
#define DEVKVM_TEST_KVM12_CLIENT12_H

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
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

/* A VM with one vCPU and `size` bytes of the client's anonymous memory at 0. */
struct guest {
	int kvm, vm, vcpu;
	uint8_t *ram;
	size_t size, run_size;
	struct kvm_run *run;
};

static inline int region(int vm, unsigned slot, unsigned flags, uint64_t gpa, uint64_t size, const void *at)
{
	struct kvm_userspace_memory_region r = {.slot = slot,
	                                        .flags = flags,
	                                        .guest_phys_addr = gpa,
	                                        .memory_size = size,
	                                        .userspace_addr = (uintptr_t)at};

	return kioctl(vm, KVM_SET_USER_MEMORY_REGION, &r);
}

static inline int guest_open(struct guest *g, size_t size)
{
	memset(g, 0, sizeof(*g));
	g->size = size;
	g->kvm = kopen();
	if (g->kvm < 0)
		return -1;
	g->vm = kioctl(g->kvm, KVM_CREATE_VM, 0L);
	g->ram = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (g->vm < 0 || g->ram == MAP_FAILED || region(g->vm, 0, 0, 0, size, g->ram) < 0)
		return -1;
	g->vcpu = kioctl(g->vm, KVM_CREATE_VCPU, 0L);
	g->run_size = (size_t)kioctl(g->kvm, KVM_GET_VCPU_MMAP_SIZE, 0L);
	g->run = kmmap(NULL, g->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu, 0);
	return g->vcpu < 0 || g->run == MAP_FAILED ? -1 : 0;
}

static inline void guest_close(struct guest *g)
{
	munmap(g->run, g->run_size);
	kclose(g->vcpu);
	kclose(g->vm);
	kclose(g->kvm);
	munmap(g->ram, g->size);
}

/* Real mode, CS 0, code at `ip`. */
static inline int guest_start16(struct guest *g, uint64_t ip)
{
	struct kvm_regs r = {.rip = ip, .rsp = 0x1000, .rflags = 2};
	struct kvm_sregs s;

	if (kioctl(g->vcpu, KVM_GET_SREGS, &s) < 0)
		return -1;
	s.cs.base = 0;
	s.cs.selector = 0;
	if (kioctl(g->vcpu, KVM_SET_SREGS, &s) < 0)
		return -1;
	return kioctl(g->vcpu, KVM_SET_REGS, &r);
}

static inline int guest_run(struct guest *g)
{
	return kioctl(g->vcpu, KVM_RUN, 0L);
}

static inline uint8_t *guest_io(struct guest *g)
{
	return (uint8_t *)g->run + g->run->io.data_offset;
}

/* Copies code into guest memory. */
#define CODE(g, at, ...)                                                                                               \
	do {                                                                                                           \
		static const uint8_t code_[] = {__VA_ARGS__};                                                          \
		memcpy((g)->ram + (at), code_, sizeof(code_));                                                         \
	} while (0)

#endif
