/*
 * exits.c: what leaving the guest costs, through the linked library: the round trip of a PIO write that the client
 * handles, and the time from opening /dev/kvm to the guest's first instruction. Medians of many rounds, in nanoseconds.
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <devkvm.h>
#include <linux/kvm.h>

#include "bench.h"

/* A VM whose vCPU writes port 0x80 for ever; after its first exit. */
static int start(uint8_t **ram)
{
	struct kvm_memory_region region = {.memory_size = 0x100000};
	struct kvm_run run = {0};
	int fd = devkvm_open(0);

	devkvm_ioctl(fd, KVM_SET_MEMORY_REGION, &region);
	*ram = devkvm_mmap(NULL, 0x100000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	memcpy(*ram + 0xffff0, "\xe6\x80\xeb\xfc", 4); /* out 0x80, al; jmp back */
	devkvm_ioctl(fd, KVM_CREATE_VCPU, (void *)0);
	if (devkvm_ioctl(fd, KVM_RUN, &run) < 0 || run.exit_reason != KVM_EXIT_IO) {
		puts("exits: the guest did not come to its first exit");
		exit(1);
	}
	return fd;
}

int main(void)
{
	double create[ROUNDS], trip[ROUNDS];
	uint8_t *ram;

	for (int n = 0; n < ROUNDS; n++) {
		struct kvm_run run = {0};
		double t = now();
		int fd = start(&ram);

		create[n] = now() - t;
		t = now();
		for (int k = 0; k < EXITS; k++) {
			run.emulated = 1;
			devkvm_ioctl(fd, KVM_RUN, &run);
		}
		trip[n] = (now() - t) / EXITS;
		munmap(ram, 0x100000);
		devkvm_close(fd);
	}
	printf("PIO write, round trip: %.0f ns\n", median(trip));
	printf("open to the first exit: %.0f us\n", median(create) / 1000);
	return 0;
}
