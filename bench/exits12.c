/*
 * exits12.c: what leaving the guest costs a client of today's interface (API 12) under `devkvm run`, or on the /dev/kvm
 * of the machine: the round trip of a PIO write, of a PIO read and of an MMIO write that the client handles. Medians of
 * many rounds, in nanoseconds.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "bench.h"

#define RAM 0x10000

static const struct {
	const char *name;
	unsigned exit;
	uint8_t code[8];
} loops[] = {
        {"PIO write, round trip, API 12", KVM_EXIT_IO, {0xe6, 0x80, 0xeb, 0xfc}},          /* out 0x80, al */
        {"PIO read, round trip, API 12", KVM_EXIT_IO, {0xe4, 0x80, 0xeb, 0xfc}},           /* in al, 0x80 */
        {"MMIO write, round trip, API 12", KVM_EXIT_MMIO, {0xa2, 0x00, 0xf0, 0xeb, 0xfb}}, /* mov [0x1f000], al */
};

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm, vcpu;
	struct kvm_userspace_memory_region slot = {.memory_size = RAM};
	struct kvm_sregs sregs;
	struct kvm_run *run;
	uint8_t *ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	double took[ROUNDS], typical;

	if (kvm < 0)
		fail("exits12: /dev/kvm");
	vm = ioctl(kvm, KVM_CREATE_VM, 0L);
	slot.userspace_addr = (uintptr_t)ram;
	if (vm < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) < 0)
		fail("exits12: memory");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0L);
	run = mmap(NULL, (size_t)ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0L), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (vcpu < 0 || run == MAP_FAILED || ioctl(vcpu, KVM_GET_SREGS, &sregs) < 0)
		fail("exits12: vCPU");
	sregs.cs.base = sregs.cs.selector = 0;
	sregs.ds.base = 0x10000; /* no memory there */
	for (unsigned n = 0; n < sizeof(loops) / sizeof(loops[0]); n++) {
		struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};

		memcpy(ram + 0x1000, loops[n].code, sizeof(loops[n].code));
		if (ioctl(vcpu, KVM_SET_SREGS, &sregs) < 0 || ioctl(vcpu, KVM_SET_REGS, &regs) < 0)
			fail("exits12: registers");
		for (int r = 0; r < ROUNDS; r++) {
			double t = now();

			for (int k = 0; k < EXITS; k++)
				if (ioctl(vcpu, KVM_RUN, 0L) < 0 || run->exit_reason != loops[n].exit)
					fail("exits12: an exit that was not expected");
			took[r] = (now() - t) / EXITS;
		}
		typical = median(took);
		printf("%s: %.0f ns (least %.0f)\n", loops[n].name, typical, took[0]);
	}
	return 0;
}
