/*
 * client.h: a client of the 2006 interface, as such programs were written.
 */
#ifndef DEVKVM_TEST_IFACE_CLIENT_H
#define DEVKVM_TEST_IFACE_CLIENT_H

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/kvm.h>

#include "door.h"

/* A VM with one vCPU and `size` bytes of RAM at 0, mapped. */
struct guest {
	int fd;
	uint8_t *ram;
	size_t size;
	struct kvm_run run;
};

static int region(int fd, unsigned slot, uint64_t gpa, uint64_t size, unsigned flags)
{
	struct kvm_memory_region r = {.slot = slot, .flags = flags, .guest_phys_addr = gpa, .memory_size = size};

	return kioctl(fd, KVM_SET_MEMORY_REGION, &r);
}

static int guest_open(struct guest *g, size_t size)
{
	memset(g, 0, sizeof(*g));
	g->size = size;
	g->fd = kopen();
	if (g->fd < 0 || region(g->fd, 0, 0, size, 0) < 0)
		return -1;
	g->ram = kmmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, g->fd, 0);
	if (g->ram == MAP_FAILED)
		return -1;
	return kioctl(g->fd, KVM_CREATE_VCPU, 0L);
}

static void guest_close(struct guest *g)
{
	munmap(g->ram, g->size);
	kclose(g->fd);
}

static int regs_get(struct guest *g, struct kvm_regs *r)
{
	memset(r, 0, sizeof(*r));
	return kioctl(g->fd, KVM_GET_REGS, r);
}

static int regs_set(struct guest *g, struct kvm_regs *r)
{
	return kioctl(g->fd, KVM_SET_REGS, r);
}

/* Real mode, CS 0, code at `ip`, stack below 0x1000. */
static int guest_start16(struct guest *g, uint64_t ip)
{
	struct kvm_regs r = {.rip = ip, .rsp = 0x1000, .rflags = 2};
	struct kvm_sregs s = {0};

	if (kioctl(g->fd, KVM_GET_SREGS, &s) < 0)
		return -1;
	s.cs.base = 0;
	s.cs.selector = 0;
	if (kioctl(g->fd, KVM_SET_SREGS, &s) < 0)
		return -1;
	return regs_set(g, &r);
}

/* Long mode over identity page tables at 0x8000..: PML4, PDPT, PD of 2 MiB pages for the first GiB. Code at `rip`. */
static int guest_start64(struct guest *g, uint64_t rip)
{
	struct kvm_regs r = {.rip = rip, .rsp = 0x7000, .rflags = 2};
	struct kvm_segment code = {.limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
	struct kvm_segment data = {.limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
	struct kvm_sregs s = {0};
	uint64_t *t = (uint64_t *)(void *)(g->ram + 0x8000);

	t[0] = 0x9000 | 7;
	t[512] = 0xa000 | 7;
	for (unsigned n = 0; n < 512; n++)
		t[1024 + n] = (uint64_t)n << 21 | 0x87;
	if (kioctl(g->fd, KVM_GET_SREGS, &s) < 0)
		return -1;
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.tr = (struct kvm_segment){.limit = 0x67, .type = 11, .present = 1};
	s.ldt = (struct kvm_segment){.unusable = 1};
	s.cr0 = 0x80000011u;
	s.cr3 = 0x8000;
	s.cr4 = 0x620;
	s.efer = 0x500;
	if (kioctl(g->fd, KVM_SET_SREGS, &s) < 0)
		return -1;
	return regs_set(g, &r);
}

/* KVM_RUN; the inputs are used up by it. */
static int guest_run(struct guest *g)
{
	int rc = kioctl(g->fd, KVM_RUN, &g->run);

	g->run.emulated = g->run.mmio_completed = 0;
	return rc;
}

#endif
