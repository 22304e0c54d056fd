/*
 * drive_2006.c: runs a snippet on devkvm through the interface of 2006: a client of that time. It does IN and OUT and
 * their string forms itself, as that interface wants it.
 */
#define LINKED
#include <errno.h>
#include <stdio.h>

/* It has more than this client needs. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include "../iface/client.h"
#pragma GCC diagnostic pop
#include "drive.h"

const bool drive_is_oracle = false;

static int load(struct guest *g, const struct start *st)
{
	struct kvm_regs r = start_regs(st);
	struct kvm_sregs s = {0};

	if (kioctl(g->fd, KVM_GET_SREGS, &s) < 0)
		return -1;
	start_sregs(st, &s);
	return kioctl(g->fd, KVM_SET_SREGS, &s) < 0 ? -1 : regs_set(g, &r);
}

/* `size` bytes of guest linear memory, one at a time: they may lie on two pages. */
static bool copy_linear(struct guest *g, uint64_t gva, void *buf, unsigned size, bool to_guest)
{
	uint8_t *p = buf;

	for (unsigned n = 0; n < size; n++) {
		struct kvm_translation t = {.linear_address = gva + n};

		if (kioctl(g->fd, KVM_TRANSLATE, &t) < 0 || !t.valid)
			return false;
		if (t.physical_address >= g->size) {
			/* The string's other end is a device too. */
			if (to_guest)
				return tr_mmio_write(t.physical_address, size, buf);
			tr_mmio_read(t.physical_address, size, buf);
			return true;
		}
		if (to_guest)
			g->ram[t.physical_address] = p[n];
		else
			p[n] = g->ram[t.physical_address];
	}
	return true;
}

static uint64_t step_reg(uint64_t reg, int64_t by, unsigned mode)
{
	if (mode == LONG)
		return reg + (uint64_t)by;
	return mode == REAL ? (reg & ~0xffffull) | ((reg + (uint64_t)by) & 0xffff) : (uint32_t)(reg + (uint64_t)by);
}

/* One element of INS or OUTS. False: the snippet is over. */
static bool string_io(struct guest *g, const struct snippet *s)
{
	unsigned mode = s->mode & MODE_MASK, size = g->run.io.size;
	int64_t by = g->run.io.string_down ? -(int64_t)size : (int64_t)size;
	struct kvm_regs r;
	uint32_t val = 0;

	if (regs_get(g, &r) < 0)
		return false;
	g->run.emulated = 1;
	if (g->run.io.rep && !g->run.io.count)
		return true;
	if (g->run.io.direction == KVM_EXIT_IO_OUT) {
		if (!copy_linear(g, g->run.io.address, &val, size, false) || !tr_out(g->run.io.port, size, val))
			return false;
		r.rsi = step_reg(r.rsi, by, mode);
	} else {
		val = tr_in(g->run.io.port, size);
		if (!copy_linear(g, g->run.io.address, &val, size, true))
			return false;
		r.rdi = step_reg(r.rdi, by, mode);
	}
	if (g->run.io.rep) {
		r.rcx = step_reg(r.rcx, -1, mode);
		g->run.emulated = g->run.io.count == 1;
	}
	return regs_set(g, &r) == 0;
}

static bool port_io(struct guest *g, const struct snippet *s)
{
	unsigned size = g->run.io.size;
	struct kvm_regs r;
	uint64_t mask = size == 4 ? ~0ull : (1ull << size * 8) - 1;

	if (g->run.io.string)
		return string_io(g, s);
	g->run.emulated = 1;
	if (g->run.io.direction == KVM_EXIT_IO_OUT) {
		if (g->run.io.port == P_IRQ) {
			struct kvm_interrupt irq = {.irq = g->run.io.value & 0xff};

			kioctl(g->fd, KVM_INTERRUPT, &irq);
		}
		return tr_out(g->run.io.port, size, g->run.io.value & (uint32_t)mask);
	}
	if (regs_get(g, &r) < 0)
		return false;
	r.rax = (size == 4 ? 0 : r.rax & ~mask) | tr_in(g->run.io.port, size);
	return regs_set(g, &r) == 0;
}

static bool cpuid(struct guest *g)
{
	struct kvm_regs r;
	uint32_t out[4];

	if (regs_get(g, &r) < 0)
		return false;
	devkvm_cpuid((uint32_t)r.rax, (uint32_t)r.rcx, out);
	r.rax = out[0];
	r.rbx = out[1];
	r.rcx = out[2];
	r.rdx = out[3];
	g->run.emulated = 1;
	return regs_set(g, &r) == 0;
}

/* What one exit wants; false ends the snippet. */
static bool handle(struct guest *g, const struct snippet *s)
{
	struct kvm_run *run = &g->run;
	char line[64];

	if (run->exit_type == KVM_EXIT_TYPE_FAIL_ENTRY) {
		tr_end("fail entry");
		return false;
	}
	switch (run->exit_reason) {
	case KVM_EXIT_IO:
		return port_io(g, s);
	case KVM_EXIT_CPUID:
		return cpuid(g);
	case KVM_EXIT_MMIO:
		if (run->mmio.is_write)
			return tr_mmio_write(run->mmio.phys_addr, run->mmio.len, run->mmio.data);
		tr_mmio_read(run->mmio.phys_addr, run->mmio.len, run->mmio.data);
		run->mmio_completed = 1;
		return true;
	case KVM_EXIT_HLT:
		tr_end("hlt");
		return false;
	case KVM_EXIT_UNKNOWN:
		if (run->hw.hardware_exit_reason == 2)
			tr_end("shutdown");
		else
			tr_end("internal");
		return false;
	default:
		snprintf(line, sizeof(line), "exit %u", run->exit_reason);
		tr_end(line);
		return false;
	}
}

void drive(const struct snippet *s)
{
	struct start st;
	struct guest g;

	if (guest_open(&g, RAM_SIZE) < 0) {
		perror("system: guest_open");
		return;
	}
	setup(s, g.ram, &st);
	if (load(&g, &st) < 0) {
		perror("system: registers");
	} else {
		alarm(20);
		do {
			if (guest_run(&g) < 0) {
				perror("system: KVM_RUN");
				break;
			}
		} while (handle(&g, s));
		alarm(0);
	}
	guest_close(&g);
}
