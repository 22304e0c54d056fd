/*
 * machine.c: the machine: one vCPU, its run loop, the port map, and how a guest's end becomes an exit status.
 *
 * The main path: machine_run() makes the VM and loads the kernel; run_loop() enters the guest and switches on the exit
 * reason; port_in()/port_out() say which chip answers. Time: poll_devices() raises what is due and arms one POSIX timer
 * for the next deadline, whose signal ends KVM_RUN; the timer repeats every millisecond, so that a signal that came
 * just before KVM_RUN costs no more than that.
 */
#define _GNU_SOURCE
#include "vmm.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <devkvm.h>
#include <linux/kvm.h>

#define STATUS_PANIC 1
#define STATUS_USAGE 2
#define CR4_OSXSAVE (1u << 18)
#define CPUID_OSXSAVE (1u << 27) /* leaf 1, ECX */
#define HW_TRIPLE_FAULT 2

enum verdict { RUNNING, ENDED_WELL, ENDED_BADLY, ENDED_BY_USER };

static struct machine {
	int fd;
	struct ram ram;
	struct i8259 pic;
	struct i8254 pit;
	struct mc146818 rtc;
	struct uart16550 uart;
	struct acpi_pm pm;
	timer_t timer;
	uint64_t armed; /* deadline the timer is set to, 0: off */
	enum verdict verdict;
	const char *why;
	bool panicked;
	bool typed; /* stdin is a terminal */
	uint64_t panic_seen;
	/* console output not yet written, and the tail of its last line */
	char out[4096], line[96];
	size_t out_n, line_n;
} m;

uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

void say(const char *fmt, ...)
{
	va_list ap;

	fputs("devkvm boot: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputs(isatty(STDERR_FILENO) ? "\r\n" : "\n", stderr);
}

/* ---- console ----------------------------------------------------------------------------------------------------- */

static void console_flush(void)
{
	size_t done = 0;

	while (done < m.out_n) {
		ssize_t n = write(STDOUT_FILENO, m.out + done, m.out_n - done);

		if (n < 0 && errno != EINTR && errno != EAGAIN)
			break;
		if (n > 0)
			done += (size_t)n;
	}
	m.out_n = 0;
}

/* The 2006 interface and the 8250 have no word for "panic": the kernel's own line on its console says it. */
static void watch_line(uint8_t c)
{
	if (c == '\n') {
		m.line[m.line_n] = 0;
		if (strstr(m.line, "Kernel panic - not syncing")) {
			m.panicked = true;
			m.panic_seen = now_ns();
		}
		m.line_n = 0;
	} else if (m.line_n < sizeof(m.line) - 1) {
		m.line[m.line_n++] = (char)c;
	}
}

static void console_put(uint8_t c)
{
	m.out[m.out_n++] = (char)c;
	watch_line(c);
	if (m.out_n == sizeof(m.out) || c == '\n')
		console_flush();
}

/* ---- ports ------------------------------------------------------------------------------------------------------- */

static void end(enum verdict verdict, const char *why)
{
	if (m.verdict == RUNNING) {
		m.verdict = verdict;
		m.why = why;
	}
}

/* The ports that do as they are written, whatever the size, one byte at a time. */
static uint8_t port_in8(uint16_t port)
{
	switch (port) {
	case 0x20:
	case 0x21:
	case 0xa0:
	case 0xa1:
	case 0x4d0:
	case 0x4d1:
		return i8259_in(&m.pic, port);
	case 0x40 ... 0x43:
	case 0x61:
		return i8254_in(&m.pit, port, now_ns());
	case 0x70 ... 0x71:
		return mc146818_in(&m.rtc, port, &m.pic);
	case 0x3f8 ... 0x3ff:
		return uart16550_in(&m.uart, port, &m.pic);
	default:
		return 0xff; /* nobody home */
	}
}

static uint32_t port_in(uint16_t port, unsigned size)
{
	uint32_t val = 0;

	if (port >= ACPI_PM1_EVT && port < ACPI_PM_TMR + 4)
		return acpi_in(&m.pm, port, size, now_ns());
	for (unsigned n = 0; n < size; n++)
		val |= (uint32_t)port_in8((uint16_t)(port + n)) << (8 * n);
	return val;
}

static void port_out8(uint16_t port, uint8_t val)
{
	switch (port) {
	case 0x20:
	case 0x21:
	case 0xa0:
	case 0xa1:
	case 0x4d0:
	case 0x4d1:
		i8259_out(&m.pic, port, val);
		break;
	case 0x40 ... 0x43:
	case 0x61:
		i8254_out(&m.pit, port, val, now_ns());
		break;
	case 0x70 ... 0x71:
		mc146818_out(&m.rtc, port, val);
		break;
	case 0x3f8 ... 0x3ff:
		uart16550_out(&m.uart, port, val, &m.pic);
		break;
	case 0x64: /* the keyboard controller's reset pulse */
		if (val == 0xfe)
			end(ENDED_WELL, "the guest reset the machine");
		break;
	case 0xcf9:
		if (val & 4)
			end(ENDED_WELL, "the guest reset the machine");
		break;
	case 0x92:
		if (val & 1)
			end(ENDED_WELL, "the guest reset the machine");
		break;
	default:
		break;
	}
}

static void port_out(uint16_t port, unsigned size, uint32_t val)
{
	if (port >= ACPI_PM1_EVT && port < ACPI_PM_TMR + 4) {
		acpi_out(&m.pm, port, size, val);
		if (m.pm.power_off)
			end(ENDED_WELL, "the guest powered off");
		return;
	}
	/* A dword to 0xcf8 is a PCI configuration address, of which this machine has none, and not the reset register.
	 */
	if (port == 0xcf8)
		return;
	for (unsigned n = 0; n < size; n++)
		port_out8((uint16_t)(port + n), (uint8_t)(val >> (8 * n)));
}

/* ---- exits ------------------------------------------------------------------------------------------------------- */

static void dump(void)
{
	struct kvm_regs r = {.vcpu = 0};
	struct kvm_sregs s = {.vcpu = 0};
	const struct kvm_segment *seg[] = {&s.cs, &s.ds, &s.es, &s.ss, &s.fs, &s.gs, &s.tr, &s.ldt};
	static const char *const name[] = {"cs", "ds", "es", "ss", "fs", "gs", "tr", "ldt"};

	if (devkvm_ioctl(m.fd, KVM_GET_REGS, &r) < 0 || devkvm_ioctl(m.fd, KVM_GET_SREGS, &s) < 0)
		return;
	say("rip %016llx rflags %08llx", r.rip, r.rflags);
	say("rax %016llx rbx %016llx rcx %016llx rdx %016llx", r.rax, r.rbx, r.rcx, r.rdx);
	say("rsi %016llx rdi %016llx rsp %016llx rbp %016llx", r.rsi, r.rdi, r.rsp, r.rbp);
	say("r8  %016llx r9  %016llx r10 %016llx r11 %016llx", r.r8, r.r9, r.r10, r.r11);
	say("r12 %016llx r13 %016llx r14 %016llx r15 %016llx", r.r12, r.r13, r.r14, r.r15);
	say("cr0 %08llx cr2 %016llx cr3 %016llx cr4 %08llx efer %08llx", s.cr0, s.cr2, s.cr3, s.cr4, s.efer);
	for (unsigned n = 0; n < 8; n++)
		say("%-3s %04x base %016llx limit %08x type %x dpl %u%s%s%s", name[n], seg[n]->selector, seg[n]->base,
		    seg[n]->limit, seg[n]->type, seg[n]->dpl, seg[n]->l ? " 64-bit" : "", seg[n]->db ? " 32-bit" : "",
		    seg[n]->unusable ? " unusable" : "");
}

static int get_regs(struct kvm_regs *r)
{
	memset(r, 0, sizeof(*r));
	return devkvm_ioctl(m.fd, KVM_GET_REGS, r);
}

/* Guest memory at a linear address, for one element of a string instruction. */
static bool linear_copy(uint64_t linear, void *buf, unsigned size, bool to_guest)
{
	for (unsigned n = 0; n < size; n++) {
		struct kvm_translation t = {.linear_address = linear + n};
		uint8_t *p;

		if (devkvm_ioctl(m.fd, KVM_TRANSLATE, &t) < 0 || !t.valid)
			return false;
		p = ram_at(&m.ram, t.physical_address, 1);
		if (!p)
			return false;
		if (to_guest)
			*p = ((uint8_t *)buf)[n];
		else
			((uint8_t *)buf)[n] = *p;
	}
	return true;
}

/* INS and OUTS: the client moves the data and the registers. Address registers are used at 64 bits, which is what every
 * guest that gets here does. */
static void string_io(struct kvm_run *run)
{
	struct kvm_regs r;
	uint64_t count = run->io.rep ? run->io.count : 1, address = run->io.address;
	int64_t step = run->io.string_down ? -(int64_t)run->io.size : run->io.size;
	__u64 *index;

	if (get_regs(&r) < 0)
		return;
	index = run->io.direction == KVM_EXIT_IO_IN ? &r.rdi : &r.rsi;
	while (count) {
		uint32_t val = 0;

		if (run->io.direction == KVM_EXIT_IO_IN) {
			val = port_in(run->io.port, run->io.size);
			if (!linear_copy(address, &val, run->io.size, true))
				break;
		} else {
			if (!linear_copy(address, &val, run->io.size, false))
				break;
			port_out(run->io.port, run->io.size, val);
		}
		address += (uint64_t)step;
		*index += (uint64_t)step;
		count--;
	}
	if (run->io.rep)
		r.rcx = count;
	/* A page that is not there: let the guest run the rest of the instruction, which faults as it should. */
	run->emulated = count == 0;
	devkvm_ioctl(m.fd, KVM_SET_REGS, &r);
}

static void handle_io(struct kvm_run *run)
{
	struct kvm_regs r;

	if (run->io.string) {
		string_io(run);
		return;
	}
	run->emulated = 1;
	if (run->io.direction == KVM_EXIT_IO_OUT) {
		port_out(run->io.port, run->io.size, run->io.value);
		return;
	}
	if (get_regs(&r) < 0)
		return;
	switch (run->io.size) {
	case 1:
		r.rax = (r.rax & ~0xffull) | port_in(run->io.port, 1);
		break;
	case 2:
		r.rax = (r.rax & ~0xffffull) | port_in(run->io.port, 2);
		break;
	default:
		r.rax = port_in(run->io.port, 4);
	}
	devkvm_ioctl(m.fd, KVM_SET_REGS, &r);
}

static void handle_cpuid(struct kvm_run *run)
{
	struct kvm_sregs s;
	struct kvm_regs r;
	uint32_t out[4];

	if (get_regs(&r) < 0)
		return;
	devkvm_cpuid((uint32_t)r.rax, (uint32_t)r.rcx, out);
	/* CR4.OSXSAVE shows in CPUID: programs look there before they use AVX. */
	if ((uint32_t)r.rax == 1 && devkvm_ioctl(m.fd, KVM_GET_SREGS, &s) == 0 && (s.cr4 & CR4_OSXSAVE))
		out[2] |= CPUID_OSXSAVE;
	r.rax = out[0];
	r.rbx = out[1];
	r.rcx = out[2];
	r.rdx = out[3];
	devkvm_ioctl(m.fd, KVM_SET_REGS, &r);
	run->emulated = 1;
}

static void handle_mmio(struct kvm_run *run)
{
	/* No device lives in memory: reads float high, writes go nowhere. */
	if (!run->mmio.is_write) {
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
		run->mmio_completed = 1;
	}
}

/* ---- time and interrupts ----------------------------------------------------------------------------------------- */

static uint64_t earlier(uint64_t a, uint64_t b)
{
	return !a ? b : !b ? a : a < b ? a : b;
}

static void arm(uint64_t deadline)
{
	struct itimerspec its = {0};

	if (deadline == m.armed)
		return;
	m.armed = deadline;
	if (deadline) {
		its.it_value.tv_sec = (time_t)(deadline / 1000000000ull);
		its.it_value.tv_nsec = (long)(deadline % 1000000000ull);
		its.it_interval.tv_nsec = 1000000;
	}
	timer_settime(m.timer, TIMER_ABSTIME, &its, NULL);
}

/* Brings every device up to now. */
static void poll_devices(void)
{
	uint64_t now = now_ns(), next;
	int c;

	next = i8254_poll(&m.pit, &m.pic, now);
	next = earlier(next, mc146818_poll(&m.rtc, &m.pic, now));
	/* From a pipe everything comes at once: the guest gets it when it listens, instead of losing it as it starts.
	 */
	while (uart16550_room(&m.uart) && (m.typed || uart16550_listening(&m.uart)) && (c = input_get()) >= 0)
		uart16550_receive(&m.uart, (uint8_t)c, &m.pic);
	if (m.panicked) {
		/* Some lines follow the panic's; then it is over. */
		if (now - m.panic_seen > 1000000000ull)
			end(ENDED_BADLY, "the guest's kernel panicked");
		next = earlier(next, now + 100000000ull);
	}
	arm(next);
}

/* Hands the controller's interrupt over, one at a time: the next only when the guest has taken the last. */
static void push_interrupt(void)
{
	struct kvm_sregs s = {.vcpu = 0};
	struct kvm_interrupt irq = {.vcpu = 0};

	if (!i8259_pending(&m.pic))
		return;
	if (devkvm_ioctl(m.fd, KVM_GET_SREGS, &s) < 0 || s.pending_int)
		return;
	irq.irq = i8259_ack(&m.pic);
	devkvm_ioctl(m.fd, KVM_INTERRUPT, &irq);
}

/* HLT: sleeps until a device has something. */
static void idle(void)
{
	struct kvm_regs r;
	sigset_t kicks, old;

	console_flush();
	if (get_regs(&r) == 0 && !(r.rflags & 0x200)) {
		end(m.panicked ? ENDED_BADLY : ENDED_WELL, "the guest halted for good");
		return;
	}
	sigemptyset(&kicks);
	sigaddset(&kicks, KICK_SIGNAL);
	sigaddset(&kicks, SIGALRM);
	/* Blocked between the look and the sleep, so that no kick falls in between. */
	pthread_sigmask(SIG_BLOCK, &kicks, &old);
	poll_devices();
	while (!i8259_pending(&m.pic) && m.verdict == RUNNING && !input_quit()) {
		ppoll(NULL, 0, NULL, &old);
		poll_devices();
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static void run_loop(void)
{
	struct kvm_run run = {.vcpu = 0};

	while (m.verdict == RUNNING) {
		int rc;

		poll_devices();
		push_interrupt();
		if (input_quit()) {
			end(ENDED_BY_USER, "ended by Ctrl-A x");
			break;
		}
		rc = devkvm_ioctl(m.fd, KVM_RUN, &run);
		run.emulated = run.mmio_completed = 0;
		if (rc < 0) {
			if (errno != EINTR) {
				say("KVM_RUN failed: %s", strerror(errno));
				end(ENDED_BADLY, "the virtual machine cannot run");
			} else if (m.out_n) {
				console_flush();
			}
			continue;
		}
		if (run.exit_type == KVM_EXIT_TYPE_FAIL_ENTRY) {
			end(ENDED_BADLY, "the processor cannot run from the guest's state");
			break;
		}
		switch (run.exit_reason) {
		case KVM_EXIT_IO:
			handle_io(&run);
			break;
		case KVM_EXIT_CPUID:
			handle_cpuid(&run);
			break;
		case KVM_EXIT_MMIO:
			handle_mmio(&run);
			break;
		case KVM_EXIT_HLT:
			idle();
			break;
		case KVM_EXIT_UNKNOWN:
			end(ENDED_BADLY, run.hw.hardware_exit_reason == HW_TRIPLE_FAULT
			                         ? "the guest's processor shut down (triple fault)"
			                         : "devkvm itself could not go on (internal error)");
			break;
		default:
			end(ENDED_BADLY, "the guest stopped in a way this machine does not know");
		}
	}
}

/* ---- start ------------------------------------------------------------------------------------------------------- */

static int set_registers(const struct boot_entry *entry)
{
	struct kvm_segment code = {.limit = 0xffffffff, .selector = 0x10, .type = 11, .present = 1, .s = 1, .g = 1};
	struct kvm_segment data = {
	        .limit = 0xffffffff, .selector = 0x18, .type = 3, .present = 1, .s = 1, .g = 1, .db = 1};
	struct kvm_regs r = {.rip = entry->rip, .rsi = entry->rsi, .rsp = 0x8ff0, .rflags = 2};
	struct kvm_sregs s = {.vcpu = 0};

	if (devkvm_ioctl(m.fd, KVM_GET_SREGS, &s) < 0)
		return -1;
	code.l = entry->long_mode;
	code.db = !entry->long_mode;
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.tr = (struct kvm_segment){.limit = 0x67, .selector = 0, .type = 11, .present = 1};
	s.ldt = (struct kvm_segment){.unusable = 1};
	s.gdt = (struct kvm_dtable){.base = 0x500, .limit = 31};
	s.idt = (struct kvm_dtable){.base = 0, .limit = 0};
	s.cr0 = 0x11; /* protection, 387 */
	if (entry->long_mode) {
		s.cr0 |= 0x80000000u;
		s.cr3 = 0x9000;
		s.cr4 = 0x20;
		s.efer = 0x500;
	}
	if (devkvm_ioctl(m.fd, KVM_SET_SREGS, &s) < 0)
		return -1;
	return devkvm_ioctl(m.fd, KVM_SET_REGS, &r);
}

static int timer_start(void)
{
	struct sigevent ev = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGALRM};

	ev._sigev_un._tid = (pid_t)syscall(SYS_gettid);
	return timer_create(CLOCK_MONOTONIC, &ev, &m.timer);
}

static int machine_create(const struct boot_options *opt, struct boot_entry *entry)
{
	m.fd = devkvm_open(0);
	if (m.fd < 0 || ram_create(&m.ram, m.fd, opt->memory) < 0) {
		say("cannot make a virtual machine with %llu MiB of memory: %s",
		    (unsigned long long)(opt->memory / MiB), strerror(errno));
		return -1;
	}
	if (loader_load(opt, &m.ram, entry) < 0)
		return -1;
	i8259_reset(&m.pic);
	i8254_reset(&m.pit);
	mc146818_reset(&m.rtc, opt->memory);
	uart16550_reset(&m.uart, console_put);
	if (devkvm_ioctl(m.fd, KVM_CREATE_VCPU, (void *)0) < 0 || set_registers(entry) < 0 || timer_start() < 0) {
		say("cannot make the processor: %s", strerror(errno));
		return -1;
	}
	return 0;
}

int machine_run(const struct boot_options *opt)
{
	struct boot_entry entry;

	m.typed = isatty(STDIN_FILENO);
	if (machine_create(opt, &entry) < 0)
		return STATUS_USAGE;
	if (input_start() != 0) {
		say("cannot start a thread");
		return STATUS_USAGE;
	}
	if (!opt->quiet)
		say("starting the guest%s", isatty(STDIN_FILENO) ? " (Ctrl-A x quits)" : "");
	run_loop();
	console_flush();
	input_stop();
	if (m.panicked && m.verdict != ENDED_BY_USER)
		m.verdict = ENDED_BADLY;
	if (m.verdict == ENDED_BADLY) {
		say("%s", m.panicked ? "the guest's kernel panicked" : m.why);
		dump();
	} else if (!opt->quiet) {
		say("%s", m.why);
	}
	timer_delete(m.timer);
	devkvm_close(m.fd);
	return m.verdict == ENDED_BADLY ? STATUS_PANIC : 0;
}
