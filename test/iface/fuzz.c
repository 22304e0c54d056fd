/*
 * fuzz.c: random memory as code, random registers, every mode, random exits answered at random: whatever a guest does,
 * the process lives, every KVM_RUN ends, and the state can be read. Usage: fuzz [SEED [ROUNDS]].
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/time.h>
#include <time.h>

#include "client.h"

#define RAM 0x200000u

static uint64_t state;

static uint64_t rnd(void)
{
	uint64_t z = state += 0x9e3779b97f4a7c15ull;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static void on_alarm(int sig)
{
}

/* Plain random bytes are mostly #UD; these prefixes and openings make more of them instructions. */
static const uint8_t spice[] = {0x0f, 0x66, 0xf3, 0xf2, 0x48, 0x4c, 0xc5, 0xc4, 0xf0, 0x8e, 0xcf,
                                0xcd, 0xff, 0xd9, 0xdd, 0xdf, 0x9c, 0x9d, 0xa4, 0xa5, 0xab, 0x6c,
                                0x6e, 0xe8, 0xea, 0xc8, 0xcb, 0x01, 0xae, 0xc7, 0x22, 0x20, 0x30};

static void fill(uint8_t *p, size_t n)
{
	for (size_t k = 0; k < n; k++) {
		uint64_t r = rnd();

		p[k] = r % 3 ? (uint8_t)(r >> 8) : spice[(r >> 8) % sizeof(spice)];
	}
}

static void mode32(struct guest *g)
{
	struct kvm_segment code = {.limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .db = 1, .g = 1};
	struct kvm_segment data = {.limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
	struct kvm_sregs s = {0};

	kioctl(g->fd, KVM_GET_SREGS, &s);
	if (rnd() & 1)
		code.db = data.db = 0;
	if (rnd() & 1)
		code.dpl = data.dpl = 3, code.selector |= 3, data.selector |= 3;
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.tr = (struct kvm_segment){.base = rnd() % RAM, .limit = 0x67, .type = 11, .present = 1};
	s.ldt = (struct kvm_segment){.unusable = 1};
	s.gdt.base = rnd() % RAM;
	s.idt.base = rnd() % RAM;
	s.gdt.limit = s.idt.limit = 0xffff;
	s.cr0 = 0x11;
	if (rnd() & 1) {
		s.cr0 |= 0x80000000u;
		s.cr3 = 0x8000;
		s.cr4 = rnd() & 0x30;
	}
	kioctl(g->fd, KVM_SET_SREGS, &s);
}

static int one(unsigned round)
{
	struct itimerval it = {.it_value.tv_usec = 3000, .it_interval.tv_usec = 1000}, off = {0};
	struct kvm_regs r = {0};
	struct guest g;
	int bad = 0;

	if (guest_open(&g, RAM) < 0)
		return 1;
	fill(g.ram, 0x8000);
	fill(g.ram + 0x10000, RAM - 0x10000);
	switch (round % 3) {
	case 0:
		guest_start16(&g, rnd() % 0x8000);
		break;
	case 1:
		mode32(&g);
		break;
	default:
		guest_start64(&g, rnd() % 0x8000);
		break;
	}
	for (unsigned n = 0; n < 16; n++)
		(&r.rax)[n] = rnd() & 1 ? rnd() % RAM : rnd();
	r.rip = rnd() % RAM;
	r.rflags = 2 | (rnd() & 0x3ed5);
	regs_set(&g, &r);
	if (rnd() % 4 == 0) {
		struct kvm_debug_guest d = {.enabled = 1, .singlestep = rnd() & 1};

		d.breakpoints[0] = (struct kvm_breakpoint){.enabled = 1, .address = rnd() % RAM};
		kioctl(g.fd, KVM_DEBUG_GUEST, &d);
	}
	setitimer(ITIMER_REAL, &it, NULL);
	for (unsigned n = 0; n < 300; n++) {
		struct kvm_interrupt irq = {.irq = (unsigned)rnd() & 255};

		if (rnd() % 8 == 0)
			kioctl(g.fd, KVM_INTERRUPT, &irq);
		if (guest_run(&g) < 0) {
			bad |= errno != EINTR;
			break;
		}
		if (g.run.exit_type != KVM_EXIT_TYPE_VM_EXIT || g.run.exit_reason == KVM_EXIT_UNKNOWN)
			break;
		for (unsigned k = 0; k < 8; k++)
			g.run.mmio.data[k] = (uint8_t)rnd();
		g.run.mmio_completed = g.run.exit_reason == KVM_EXIT_MMIO;
		g.run.emulated =
		        g.run.exit_reason == KVM_EXIT_IO || g.run.exit_reason == KVM_EXIT_CPUID || rnd() % 16 == 0;
	}
	setitimer(ITIMER_REAL, &off, NULL);
	bad |= regs_get(&g, &r) < 0;
	guest_close(&g);
	return bad;
}

int main(int argc, char **argv)
{
	uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 0) : (uint64_t)time(NULL);
	unsigned rounds = argc > 2 ? (unsigned)atoi(argv[2]) : 1500, failed = 0;

	printf("seed %llu\n", (unsigned long long)seed);
	fflush(stdout);
	signal(SIGALRM, on_alarm);
	for (unsigned n = 0; n < rounds; n++) {
		state = seed + n;
		if (one(n)) {
			printf("round %u of seed %llu failed\n", n, (unsigned long long)seed);
			failed++;
		}
	}
	printf("%u passed, %u failed\n", rounds - failed, failed);
	return failed != 0;
}
