/*
 * memory.c: guest RAM as memory slots, mapped into the monitor.
 */
#include "vmm.h"

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <devkvm.h>
#include <linux/kvm.h>

static int add_range(struct ram *ram, int fd, uint64_t gpa, uint64_t end)
{
	struct kvm_memory_region region = {.slot = ram->n, .guest_phys_addr = gpa, .memory_size = end - gpa};
	struct ram_range *r = &ram->range[ram->n];

	if (devkvm_ioctl(fd, KVM_SET_MEMORY_REGION, &region) < 0)
		return -1;
	r->gpa = gpa;
	r->size = end - gpa;
	r->host = devkvm_mmap(NULL, r->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)gpa);
	if (r->host == MAP_FAILED)
		return -1;
	ram->n++;
	return 0;
}

int ram_create(struct ram *ram, int fd, uint64_t size)
{
	uint64_t low = size < RAM_HOLE_START ? size : RAM_HOLE_START;

	ram->size = size;
	ram->n = 0;
	if (add_range(ram, fd, 0, LOW_RAM_END) < 0 || add_range(ram, fd, HIGH_RAM_START, low) < 0)
		return -1;
	return size > low ? add_range(ram, fd, RAM_HOLE_END, RAM_HOLE_END + size - low) : 0;
}

uint8_t *ram_at(const struct ram *ram, uint64_t gpa, uint64_t size)
{
	for (unsigned n = 0; n < ram->n; n++) {
		const struct ram_range *r = &ram->range[n];

		if (gpa >= r->gpa && gpa - r->gpa < r->size && size <= r->size - (gpa - r->gpa))
			return r->host + (gpa - r->gpa);
	}
	return NULL;
}

uint64_t ram_low_end(const struct ram *ram)
{
	return ram->range[1].gpa + ram->range[1].size;
}
