/*
 * client12.h: a client of version 12 of the interface, with the system's header.
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

#include "door.h"

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

/* The VM and its memory alone: what must be there before the first vCPU comes between this and guest_vcpu(). */
static inline int guest_vm(struct guest *g, int kvm, size_t size)
{
	memset(g, 0, sizeof(*g));
	g->size = size;
	g->kvm = kvm;
	if (g->kvm < 0)
		return -1;
	g->vm = kioctl(g->kvm, KVM_CREATE_VM, 0L);
	g->ram = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return g->vm < 0 || g->ram == MAP_FAILED ? -1 : region(g->vm, 0, 0, 0, size, g->ram);
}

static inline int guest_vcpu(struct guest *g, long id)
{
	g->vcpu = kioctl(g->vm, KVM_CREATE_VCPU, id);
	g->run_size = (size_t)kioctl(g->kvm, KVM_GET_VCPU_MMAP_SIZE, 0L);
	g->run = kmmap(NULL, g->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu, 0);
	return g->vcpu < 0 || g->run == MAP_FAILED ? -1 : 0;
}

static inline int guest_open_on(struct guest *g, int kvm, size_t size)
{
	return guest_vm(g, kvm, size) < 0 ? -1 : guest_vcpu(g, 0);
}

static inline int guest_open(struct guest *g, size_t size)
{
	return guest_open_on(g, kopen(), size);
}

/* With the interrupt chips of KVM_CREATE_IRQCHIP. */
static inline int guest_open_chips(struct guest *g, size_t size)
{
	if (guest_vm(g, kopen(), size) < 0 || kioctl(g->vm, KVM_CREATE_IRQCHIP, 0L) < 0)
		return -1;
	return guest_vcpu(g, 0);
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

/* Flat 32-bit code at `ip`, CPL 0, no paging, with the IDT at 0x7000 and the flat segments (8, 16) in a GDT at 0x6800.
 */
static inline int guest_start32(struct guest *g, uint64_t ip)
{
	struct kvm_segment data = {.limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
	struct kvm_regs r = {.rip = ip, .rsp = 0x8000, .rflags = 2};
	const uint64_t gdt[3] = {0, 0x00cf9b000000ffff, 0x00cf93000000ffff};
	struct kvm_sregs s;

	if (kioctl(g->vcpu, KVM_GET_SREGS, &s) < 0)
		return -1;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.cs = data;
	s.cs.selector = 8;
	s.cs.type = 11;
	s.cr0 |= 1;
	s.gdt.base = 0x6800;
	s.gdt.limit = sizeof(gdt) - 1;
	memcpy(g->ram + s.gdt.base, gdt, sizeof(gdt));
	s.idt.base = 0x7000;
	s.idt.limit = 0x7ff;
	if (kioctl(g->vcpu, KVM_SET_SREGS, &s) < 0)
		return -1;
	return kioctl(g->vcpu, KVM_SET_REGS, &r);
}

/* An interrupt gate of guest_start32()'s IDT. */
static inline void guest_gate32(struct guest *g, unsigned vector, uint32_t to)
{
	const uint64_t gate = (to & 0xffff) | 8u << 16 | 0x8e0000000000ull | (uint64_t)(to >> 16) << 48;

	memcpy(g->ram + 0x7000 + 8 * vector, &gate, sizeof(gate));
}

static inline int guest_run(struct guest *g)
{
	return kioctl(g->vcpu, KVM_RUN, 0L);
}

static inline uint8_t *guest_io(struct guest *g)
{
	return (uint8_t *)g->run + g->run->io.data_offset;
}

/* KVM_SET_MSRS and KVM_GET_MSRS for one: 1, when the MSR takes the value or has one. */
static inline int set_msr(struct guest *g, uint32_t msr, uint64_t val)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry e;
	} m = {.head.nmsrs = 1, .e = {.index = msr, .data = val}};

	return kioctl(g->vcpu, KVM_SET_MSRS, &m);
}

static inline int get_msr(struct guest *g, uint32_t msr, uint64_t *val)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry e;
	} m = {.head.nmsrs = 1, .e = {.index = msr, .data = 0x5a5a5a5a5a5a5a5a}}; /* is to be overwritten */
	int rc = kioctl(g->vcpu, KVM_GET_MSRS, &m);

	*val = m.e.data;
	return rc;
}

/* A counter of the vCPU by its name; -1: there is none. */
static inline long guest_counter(struct guest *g, const char *name)
{
	int fd = (int)kioctl(g->vcpu, KVM_GET_STATS_FD, 0L);
	struct kvm_stats_header head;
	struct kvm_stats_desc *d;
	char buf[256];
	long val = -1;

	if (fd < 0 || pread(fd, &head, sizeof(head), 0) != sizeof(head) || head.name_size > 128)
		return -1;
	d = (struct kvm_stats_desc *)(void *)buf;
	for (unsigned n = 0; n < head.num_desc && val < 0; n++) {
		size_t size = sizeof(*d) + head.name_size;

		if (pread(fd, buf, size, (off_t)(head.desc_offset + n * size)) != (ssize_t)size)
			break;
		if (!strcmp(buf + sizeof(*d), name) &&
		    pread(fd, &val, sizeof(val), (off_t)(head.data_offset + d->offset)) != sizeof(val))
			val = -1;
	}
	close(fd);
	return val;
}

#endif
