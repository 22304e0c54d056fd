/*
 * drive_12.c: runs a snippet through today's API (version 12) on the /dev/kvm of the system, with the system's own
 * header: the oracle's side of the suite.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "drive.h"

const bool drive_is_oracle = true;

struct machine {
	int kvm, vm, vcpu;
	uint8_t *ram;
	struct kvm_run *run;
	int irq; /* queued by the snippet, not injected yet; -1: none */
};

static int load(struct machine *m, const struct start *st)
{
	struct kvm_regs r = start_regs(st);
	struct kvm_sregs s;

	if (ioctl(m->vcpu, KVM_GET_SREGS, &s) < 0)
		return -1;
	start_sregs(st, &s);
	/* The oracle's QEMU takes a busy TSS for a broken one: LTR leaves the hidden part "available" there. */
	s.tr.type = 9;
	if (ioctl(m->vcpu, KVM_SET_SREGS, &s) < 0)
		return -1;
	return ioctl(m->vcpu, KVM_SET_REGS, &r);
}

static int set_cpuid(struct machine *m)
{
	struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 256 * sizeof(c->entries[0]));
	int rc = -1;

	if (c) {
		c->nent = 256;
		rc = ioctl(m->kvm, KVM_GET_SUPPORTED_CPUID, c);
		if (rc == 0)
			rc = ioctl(m->vcpu, KVM_SET_CPUID2, c);
	}
	free(c);
	return rc;
}

static bool port_io(struct machine *m)
{
	struct kvm_run *run = m->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;

	for (unsigned n = 0; n < run->io.count; n++, data += run->io.size) {
		uint32_t val = 0;

		if (run->io.direction == KVM_EXIT_IO_OUT) {
			memcpy(&val, data, run->io.size);
			if (run->io.port == P_IRQ)
				m->irq = val & 0xff;
			if (!tr_out(run->io.port, run->io.size, val))
				return false;
		} else {
			val = tr_in(run->io.port, run->io.size);
			memcpy(data, &val, run->io.size);
		}
	}
	return true;
}

static bool handle(struct machine *m)
{
	struct kvm_run *run = m->run;
	char line[64];

	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		return port_io(m);
	case KVM_EXIT_MMIO:
		if (run->mmio.is_write)
			return tr_mmio_write(run->mmio.phys_addr, run->mmio.len, run->mmio.data);
		tr_mmio_read(run->mmio.phys_addr, run->mmio.len, run->mmio.data);
		return true;
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		return true;
	case KVM_EXIT_HLT:
		/* What is queued comes in now. */
		if (m->irq >= 0 && run->if_flag)
			return true;
		tr_end("hlt");
		return false;
	case KVM_EXIT_SHUTDOWN:
		tr_end("shutdown");
		return false;
	case KVM_EXIT_INTERNAL_ERROR:
		tr_end("internal");
		return false;
	case KVM_EXIT_FAIL_ENTRY:
		tr_end("fail entry");
		return false;
	default:
		snprintf(line, sizeof(line), "exit %u", run->exit_reason);
		tr_end(line);
		return false;
	}
}

static void run(struct machine *m)
{
	alarm(60);
	m->irq = -1;
	for (;;) {
		if (m->irq >= 0 && m->run->ready_for_interrupt_injection) {
			struct kvm_interrupt irq = {.irq = (unsigned)m->irq};

			if (ioctl(m->vcpu, KVM_INTERRUPT, &irq) == 0)
				m->irq = -1;
		}
		m->run->request_interrupt_window = m->irq >= 0;
		if (ioctl(m->vcpu, KVM_RUN, 0) < 0) {
			if (errno == EINTR || errno == EAGAIN)
				continue;
			perror("system: KVM_RUN");
			return;
		}
		if (!handle(m))
			break;
	}
	alarm(0);
}

void drive(const struct snippet *s)
{
	struct machine m = {.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC)};
	struct kvm_userspace_memory_region mem = {.memory_size = RAM_SIZE};
	struct start st;
	int size;

	if (m.kvm < 0 || (m.vm = ioctl(m.kvm, KVM_CREATE_VM, 0)) < 0) {
		perror("system: /dev/kvm");
		exit(2);
	}
	m.ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mem.userspace_addr = (uintptr_t)m.ram;
	setup(s, m.ram, &st);
	size = ioctl(m.kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (ioctl(m.vm, KVM_SET_USER_MEMORY_REGION, &mem) < 0 || (m.vcpu = ioctl(m.vm, KVM_CREATE_VCPU, 0)) < 0) {
		perror("system: machine");
		exit(2);
	}
	m.run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, m.vcpu, 0);
	if (set_cpuid(&m) < 0 || load(&m, &st) < 0)
		perror("system: registers");
	else
		run(&m);
	munmap(m.run, (size_t)size);
	close(m.vcpu);
	close(m.vm);
	close(m.kvm);
	munmap(m.ram, RAM_SIZE);
}
