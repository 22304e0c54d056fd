/*
 * errors12.c: what each request answers to wrong, empty and right arguments: a table of calls, each a line
 * `name result errno`. `--print` writes the lines; with a file of lines recorded on Linux' KVM, they are compared.
 */
#define _GNU_SOURCE
#include <sys/eventfd.h>

#include "client12.h"

static unsigned passed, failed, lines;
static bool print;
static FILE *data;

static void note(const char *name, long rc, int err)
{
	char line[256], want[256] = "";

	snprintf(line, sizeof(line), "%s %ld %s\n", name, rc, rc < 0 ? strerrorname_np(err) : "0");
	lines++;
	if (print) {
		fputs(line, stdout);
		return;
	}
	if (!fgets(want, sizeof(want), data))
		strcpy(want, "(no line)\n");
	if (strcmp(line, want) == 0) {
		passed++;
	} else {
		failed++;
		printf("  got  %s  want %s", line, want);
	}
}

static void call(const char *name, int fd, unsigned long req, unsigned long arg)
{
	long rc;

	errno = 0;
	rc = kioctl(fd, req, arg);
	/* Of descriptors and counts only the sign is the same everywhere. */
	note(name, rc > 0 ? 1 : rc, errno);
}

#define C(fd, req, what, arg) call(#req " " what, fd, req, (unsigned long)(arg))

static void mem(int vm, const char *name, unsigned slot, unsigned flags, uint64_t gpa, uint64_t size, uint64_t at)
{
	struct kvm_userspace_memory_region r = {slot, flags, gpa, size, at};

	call(name, vm, KVM_SET_USER_MEMORY_REGION, (unsigned long)&r);
}

static void system_calls(int kvm)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 e[300];
	} c = {0};
	struct {
		struct kvm_msr_list head;
		uint32_t e[4];
	} l = {0};
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry e[2];
	} m = {0};
	uint64_t cap;

	C(kvm, KVM_GET_API_VERSION, "0", 0);
	C(kvm, KVM_GET_API_VERSION, "1", 1);
	C(kvm, KVM_CREATE_VM, "bad type", 12345);
	C(kvm, KVM_CHECK_EXTENSION, "user memory", KVM_CAP_USER_MEMORY);
	C(kvm, KVM_CHECK_EXTENSION, "nonsense", 100000);
	C(kvm, KVM_CHECK_EXTENSION, "immediate exit", KVM_CAP_IMMEDIATE_EXIT);
	C(kvm, KVM_CHECK_EXTENSION, "s390", KVM_CAP_S390_PSW);
	C(kvm, KVM_GET_VCPU_MMAP_SIZE, "0", 0);
	C(kvm, KVM_GET_VCPU_MMAP_SIZE, "1", 1);
	C(kvm, KVM_GET_SUPPORTED_CPUID, "null", 0);
	C(kvm, KVM_GET_SUPPORTED_CPUID, "no room", &c);
	c.head.nent = 1;
	C(kvm, KVM_GET_SUPPORTED_CPUID, "one", &c);
	c.head.nent = 300;
	C(kvm, KVM_GET_SUPPORTED_CPUID, "300", &c);
	c.head.nent = 0;
	C(kvm, KVM_GET_EMULATED_CPUID, "no room", &c);
	C(kvm, KVM_GET_MSR_INDEX_LIST, "no room", &l);
	C(kvm, KVM_GET_MSR_INDEX_LIST, "null", 0);
	l.head.nmsrs = 0;
	C(kvm, KVM_GET_MSR_FEATURE_INDEX_LIST, "no room", &l);
	C(kvm, KVM_GET_MSRS, "none", &m);
	m.head.nmsrs = 256;
	C(kvm, KVM_GET_MSRS, "256", &m);
	m.head.nmsrs = 1;
	m.e[0].index = 0x12345;
	C(kvm, KVM_GET_MSRS, "unknown", &m);
	C(kvm, KVM_X86_GET_MCE_CAP_SUPPORTED, "ok", &cap);
	C(kvm, KVM_X86_GET_MCE_CAP_SUPPORTED, "null", 0);
	C(kvm, KVM_RUN, "on system", 0);
	C(kvm, KVM_CREATE_VCPU, "on system", 0);
	C(kvm, KVM_GET_REGS, "on system", 0);
	C(kvm, _IO(KVMIO, 0xfe), "unknown", 0);
	C(kvm, FIONREAD, "not kvm", 0);
}

static void memory(int vm, uint64_t ram)
{
	uint64_t bits[4];
	struct kvm_dirty_log log = {.slot = 3, .dirty_bitmap = bits};
	struct kvm_clear_dirty_log clear = {.slot = 3, .num_pages = 16, .dirty_bitmap = bits};

	mem(vm, "mem first", 0, 0, 0, 0x10000, ram);
	mem(vm, "mem same again", 0, 0, 0, 0x10000, ram);
	mem(vm, "mem other size", 0, 0, 0, 0x8000, ram);
	mem(vm, "mem other address", 0, 0, 0, 0x10000, ram + 0x1000);
	mem(vm, "mem size not a page", 1, 0, 0x20000, 0x1800, ram);
	mem(vm, "mem gpa not a page", 1, 0, 0x20800, 0x1000, ram);
	mem(vm, "mem hva not a page", 1, 0, 0x20000, 0x1000, ram + 1);
	mem(vm, "mem overlap", 1, 0, 0xf000, 0x2000, ram);
	mem(vm, "mem gpa wraps", 1, 0, ~0xfffull, 0x2000, ram);
	mem(vm, "mem gpa too high", 1, 0, 1ull << 52, 0x1000, ram);
	mem(vm, "mem bad flag", 1, 4, 0x20000, 0x1000, ram);
	mem(vm, "mem slot 32764", 32764, 0, 0x20000, 0x1000, ram);
	mem(vm, "mem slot 32763", 32763, 0, 0x20000, 0x1000, ram);
	mem(vm, "mem slot 65535", 65535, 0, 0x30000, 0x1000, ram);
	mem(vm, "mem address space 5", 5 << 16, 0, 0x30000, 0x1000, ram);
	mem(vm, "mem delete unknown", 7, 0, 0, 0, ram);
	mem(vm, "mem kernel hva", 1, 0, 0x30000, 0x1000, 0xffff800000000000);
	mem(vm, "mem huge", 1, 0, 1ull << 40, 1ull << 50, ram);
	mem(vm, "mem move", 32763, 0, 0x50000, 0x1000, ram);
	mem(vm, "mem move onto", 32763, 0, 0x1000, 0x1000, ram);
	mem(vm, "mem make readonly", 32763, KVM_MEM_READONLY, 0x50000, 0x1000, ram);
	mem(vm, "mem log on", 32763, KVM_MEM_LOG_DIRTY_PAGES, 0x50000, 0x1000, ram);
	mem(vm, "mem log off", 32763, 0, 0x50000, 0x1000, ram);
	mem(vm, "mem delete", 32763, 0, 0, 0, 0);
	mem(vm, "mem delete twice", 32763, 0, 0, 0, 0);
	mem(vm, "mem readonly", 2, KVM_MEM_READONLY, 0x60000, 0x1000, ram);
	mem(vm, "mem readonly off", 2, 0, 0x60000, 0x1000, ram);
	C(vm, KVM_SET_USER_MEMORY_REGION, "null", 0);
	C(vm, KVM_GET_DIRTY_LOG, "no slot", &log);
	mem(vm, "mem log slot", 3, KVM_MEM_LOG_DIRTY_PAGES, 0x70000, 0x10000, ram);
	C(vm, KVM_GET_DIRTY_LOG, "ok", &log);
	log.dirty_bitmap = NULL;
	C(vm, KVM_GET_DIRTY_LOG, "null map", &log);
	log.slot = 0;
	C(vm, KVM_GET_DIRTY_LOG, "not logging", &log);
	log.slot = 40000;
	C(vm, KVM_GET_DIRTY_LOG, "bad slot", &log);
	C(vm, KVM_CLEAR_DIRTY_LOG, "ok", &clear);
	clear.first_page = 3;
	C(vm, KVM_CLEAR_DIRTY_LOG, "first 3", &clear);
	clear.first_page = 0;
	clear.num_pages = 15;
	C(vm, KVM_CLEAR_DIRTY_LOG, "15 pages", &clear);
	clear.num_pages = 17;
	C(vm, KVM_CLEAR_DIRTY_LOG, "17 pages", &clear);
	clear.slot = 0;
	C(vm, KVM_CLEAR_DIRTY_LOG, "not logging", &clear);
}

static void vm_calls(int vm)
{
	struct kvm_enable_cap ec = {.cap = 100000};
	struct kvm_clock_data clock = {0};
	struct kvm_irq_level irq = {.irq = 4, .level = 1};
	struct kvm_irqchip chip = {0};
	struct kvm_pit_state2 pit2;
	struct kvm_pit_state pit;
	struct kvm_msi msi = {.address_lo = 0xfee00000};
	struct kvm_irq_routing route = {0};
	struct kvm_ioeventfd ioev = {.addr = 0x1000, .len = 4};
	struct kvm_coalesced_mmio_zone zone = {.addr = 0x100000, .size = 0x1000};
	uint64_t addr = 0xfffbc000;

	C(vm, KVM_GET_API_VERSION, "on vm", 0);
	C(vm, KVM_CHECK_EXTENSION, "on vm", KVM_CAP_USER_MEMORY);
	C(vm, KVM_CREATE_VM, "on vm", 0);
	C(vm, KVM_RUN, "on vm", 0);
	C(vm, KVM_GET_REGS, "on vm", 0);
	C(vm, _IO(KVMIO, 0xfe), "unknown on vm", 0);
	C(vm, KVM_SET_TSS_ADDR, "ok", 0xfffbd000);
	C(vm, KVM_SET_TSS_ADDR, "as gVisor, up to 4 GiB", 0xffffd000);
	C(vm, KVM_SET_TSS_ADDR, "too high", 0xffffe000);
	C(vm, KVM_SET_TSS_ADDR, "one too high", 0xffffd001);
	C(vm, KVM_SET_IDENTITY_MAP_ADDR, "ok", &addr);
	C(vm, KVM_SET_IDENTITY_MAP_ADDR, "null", 0);
	C(vm, KVM_SET_NR_MMU_PAGES, "1", 1);
	C(vm, KVM_ENABLE_CAP, "unknown", &ec);
	ec.flags = 1;
	C(vm, KVM_ENABLE_CAP, "flags", &ec);
	ec = (struct kvm_enable_cap){.cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, .args = {2}};
	C(vm, KVM_ENABLE_CAP, "initially set without manual", &ec);
	ec.args[0] = 8;
	C(vm, KVM_ENABLE_CAP, "manual 8", &ec);
	ec.args[0] = 1;
	C(vm, KVM_ENABLE_CAP, "manual 1", &ec);
	ec.args[0] = 0;
	C(vm, KVM_ENABLE_CAP, "manual 0", &ec);
	C(vm, KVM_GET_CLOCK, "ok", &clock);
	C(vm, KVM_GET_CLOCK, "null", 0);
	clock.flags = 0x80;
	C(vm, KVM_SET_CLOCK, "bad flags", &clock);
	clock.flags = 0;
	C(vm, KVM_SET_CLOCK, "ok", &clock);
	C(vm, KVM_IRQ_LINE, "no chip", &irq);
	C(vm, KVM_IRQ_LINE_STATUS, "no chip", &irq);
	C(vm, KVM_GET_IRQCHIP, "no chip", &chip);
	C(vm, KVM_SET_IRQCHIP, "no chip", &chip);
	C(vm, KVM_GET_PIT, "no chip", &pit);
	C(vm, KVM_GET_PIT2, "no chip", &pit2);
	C(vm, KVM_SIGNAL_MSI, "no chip", &msi);
	C(vm, KVM_SET_GSI_ROUTING, "no chip", &route);
	ioev.fd = 0;
	C(vm, KVM_IOEVENTFD, "not an eventfd", &ioev);
	ioev.fd = 999;
	C(vm, KVM_IOEVENTFD, "no descriptor", &ioev);
	ioev.fd = eventfd(0, 0);
	ioev.len = 3;
	C(vm, KVM_IOEVENTFD, "length 3", &ioev);
	ioev.len = 4;
	ioev.flags = 0x80;
	C(vm, KVM_IOEVENTFD, "bad flags", &ioev);
	ioev.flags = KVM_IOEVENTFD_FLAG_DEASSIGN;
	C(vm, KVM_IOEVENTFD, "deassign unknown", &ioev);
	ioev.flags = 0;
	C(vm, KVM_IOEVENTFD, "ok", &ioev);
	C(vm, KVM_IOEVENTFD, "again", &ioev);
	ioev.addr = ~0ull;
	C(vm, KVM_IOEVENTFD, "wraps", &ioev);
	ioev.addr = 0x1000;
	ioev.len = 0;
	C(vm, KVM_IOEVENTFD, "any length over it", &ioev);
	ioev.flags = KVM_IOEVENTFD_FLAG_DATAMATCH;
	C(vm, KVM_IOEVENTFD, "match without length", &ioev);
	C(vm, KVM_REGISTER_COALESCED_MMIO, "ok", &zone);
	zone.pio = 2;
	C(vm, KVM_REGISTER_COALESCED_MMIO, "pio 2", &zone);
	zone.pio = 0;
	C(vm, KVM_UNREGISTER_COALESCED_MMIO, "ok", &zone);
	C(vm, KVM_UNREGISTER_COALESCED_MMIO, "again", &zone);
	C(vm, KVM_CREATE_VCPU, "id too high", 100000);
}

static void vcpu_calls(int vcpu)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 e[300];
	} c = {0};
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry e[4];
	} m = {0};
	struct kvm_interrupt irq = {.irq = 256};
	struct kvm_mp_state mp = {0};
	struct kvm_regs regs;
	struct kvm_sregs s, ok;
	struct kvm_xcrs x;
	struct kvm_debugregs d;
	struct kvm_vcpu_events ev;
	struct kvm_signal_mask mask = {.len = 4};
	struct kvm_translation t = {0};
	static struct kvm_lapic_state lapic_room, *lapic = &lapic_room;
	static _Alignas(64) uint8_t xsave_room[8192];
	struct kvm_xsave *xs = (void *)xsave_room;
	struct kvm_x86_mce mce = {0};
	struct kvm_enable_cap ec = {.cap = 100000};
	uint64_t cap = 0;

	C(vcpu, KVM_GET_API_VERSION, "on vcpu", 0);
	C(vcpu, KVM_CHECK_EXTENSION, "on vcpu", KVM_CAP_USER_MEMORY);
	C(vcpu, _IO(KVMIO, 0xfe), "unknown on vcpu", 0);
	C(vcpu, KVM_RUN, "arg 1", 1);
	C(vcpu, KVM_GET_REGS, "null", 0);
	C(vcpu, KVM_GET_REGS, "ok", &regs);
	C(vcpu, KVM_SET_REGS, "ok", &regs);
	C(vcpu, KVM_SET_REGS, "null", 0);
	C(vcpu, KVM_GET_SREGS, "ok", &ok);
	C(vcpu, KVM_GET_SREGS, "null", 0);
	s = ok;
	C(vcpu, KVM_SET_SREGS, "ok", &s);
	s.cr4 = 1ull << 40;
	C(vcpu, KVM_SET_SREGS, "cr4 bit 40", &s);
	s = ok;
	s.efer = 0x400;
	C(vcpu, KVM_SET_SREGS, "lma without paging", &s);
	s = ok;
	s.efer = 0x100;
	s.cr0 = 0x80000001;
	C(vcpu, KVM_SET_SREGS, "lme, pg, no pae", &s);
	s.cr4 |= 0x20;
	C(vcpu, KVM_SET_SREGS, "lme, pg, pae, no lma", &s);
	s = ok;
	s.cs.l = 1;
	C(vcpu, KVM_SET_SREGS, "cs.l in real mode", &s);
	s = ok;
	s.apic_base = 0xfee00800 | 0x80;
	C(vcpu, KVM_SET_SREGS, "apic base reserved", &s);
	s = ok;
	s.apic_base = 0xfee00400;
	C(vcpu, KVM_SET_SREGS, "x2apic without apic", &s);
	s = ok;
	C(vcpu, KVM_SET_SREGS, "ok again", &s);
	C(vcpu, KVM_INTERRUPT, "256", &irq);
	C(vcpu, KVM_INTERRUPT, "null", 0);
	irq.irq = 32;
	C(vcpu, KVM_INTERRUPT, "32", &irq);
	C(vcpu, KVM_INTERRUPT, "32 again", &irq);
	C(vcpu, KVM_GET_MP_STATE, "ok", &mp);
	mp.mp_state = KVM_MP_STATE_HALTED;
	C(vcpu, KVM_SET_MP_STATE, "halted", &mp);
	mp.mp_state = KVM_MP_STATE_UNINITIALIZED;
	C(vcpu, KVM_SET_MP_STATE, "uninitialized", &mp);
	mp.mp_state = 77;
	C(vcpu, KVM_SET_MP_STATE, "77", &mp);
	mp.mp_state = KVM_MP_STATE_RUNNABLE;
	C(vcpu, KVM_SET_MP_STATE, "runnable", &mp);
	c.head.nent = 257;
	C(vcpu, KVM_SET_CPUID2, "257", &c);
	c.head.nent = 1;
	c.e[0].function = 0x80000008;
	c.e[0].eax = 0x2e2e;
	C(vcpu, KVM_SET_CPUID2, "46 linear bits", &c);
	c.e[0].eax = 0x3030;
	C(vcpu, KVM_SET_CPUID2, "48 linear bits", &c);
	c.head.nent = 0;
	C(vcpu, KVM_GET_CPUID2, "no room", &c);
	c.head.nent = 1;
	C(vcpu, KVM_GET_CPUID2, "ok", &c);
	C(vcpu, KVM_GET_MSRS, "none", &m);
	C(vcpu, KVM_SET_MSRS, "none", &m);
	m.head.nmsrs = 256;
	C(vcpu, KVM_SET_MSRS, "256", &m);
	m.head.nmsrs = 1;
	m.e[0].index = 0x12345678;
	C(vcpu, KVM_GET_MSRS, "unknown", &m);
	C(vcpu, KVM_SET_MSRS, "unknown", &m);
	m.e[0] = (struct kvm_msr_entry){.index = 0xc0000082, .data = 0x8000000000000000};
	C(vcpu, KVM_SET_MSRS, "lstar not canonical", &m);
	m.e[0] = (struct kvm_msr_entry){.index = 0x277, .data = 0x0202020202020202};
	C(vcpu, KVM_SET_MSRS, "bad pat", &m);
	m.e[0] = (struct kvm_msr_entry){.index = 0x1a0, .data = 1};
	C(vcpu, KVM_SET_MSRS, "misc enable", &m);
	m.e[0] = (struct kvm_msr_entry){.index = 0x4b564d01, .data = 0};
	C(vcpu, KVM_SET_MSRS, "kvmclock", &m);
	C(vcpu, KVM_GET_XCRS, "ok", &x);
	x.nr_xcrs = 17;
	C(vcpu, KVM_SET_XCRS, "17", &x);
	memset(&x, 0, sizeof(x));
	x.flags = 1;
	C(vcpu, KVM_SET_XCRS, "flags", &x);
	x.flags = 0;
	x.nr_xcrs = 1;
	C(vcpu, KVM_SET_XCRS, "xcr0 0", &x);
	x.xcrs[0].value = 4;
	C(vcpu, KVM_SET_XCRS, "xcr0 4", &x);
	x.xcrs[0].value = 3;
	C(vcpu, KVM_SET_XCRS, "xcr0 3", &x);
	C(vcpu, KVM_GET_DEBUGREGS, "ok", &d);
	d.dr6 |= 1ull << 32;
	C(vcpu, KVM_SET_DEBUGREGS, "dr6 high", &d);
	C(vcpu, KVM_GET_DEBUGREGS, "ok again", &d);
	d.flags = 1;
	C(vcpu, KVM_SET_DEBUGREGS, "flags", &d);
	C(vcpu, KVM_GET_VCPU_EVENTS, "ok", &ev);
	ev.flags = 0x8000;
	C(vcpu, KVM_SET_VCPU_EVENTS, "flags", &ev);
	ev.flags = 0;
	ev.exception.injected = 1;
	ev.exception.nr = 33;
	C(vcpu, KVM_SET_VCPU_EVENTS, "exception 33", &ev);
	ev.exception.nr = 2;
	C(vcpu, KVM_SET_VCPU_EVENTS, "exception 2", &ev);
	C(vcpu, KVM_SET_SIGNAL_MASK, "length 4", &mask);
	C(vcpu, KVM_SET_SIGNAL_MASK, "null", 0);
	C(vcpu, KVM_TRANSLATE, "ok", &t);
	C(vcpu, KVM_GET_LAPIC, "no chip", lapic);
	C(vcpu, KVM_SET_LAPIC, "no chip", lapic);
	C(vcpu, KVM_GET_TSC_KHZ, "ok", 0);
	C(vcpu, KVM_SET_TSC_KHZ, "0", 0);
	C(vcpu, KVM_KVMCLOCK_CTRL, "no clock", 0);
	C(vcpu, KVM_NMI, "ok", 0);
	C(vcpu, KVM_GET_XSAVE, "ok", xs);
	C(vcpu, KVM_SET_XSAVE, "ok", xs);
	xs->region[128] = 0xffffffff;
	C(vcpu, KVM_SET_XSAVE, "bad xstate_bv", xs);
	C(vcpu, KVM_X86_SETUP_MCE, "no banks", &cap);
	cap = 33;
	C(vcpu, KVM_X86_SETUP_MCE, "33 banks", &cap);
	cap = 10;
	C(vcpu, KVM_X86_SETUP_MCE, "10 banks", &cap);
	cap |= 1ull << 40;
	C(vcpu, KVM_X86_SETUP_MCE, "bad bit", &cap);
	mce.bank = 12;
	C(vcpu, KVM_X86_SET_MCE, "bank 12", &mce);
	mce.bank = 1;
	C(vcpu, KVM_X86_SET_MCE, "not valid", &mce);
	C(vcpu, KVM_ENABLE_CAP, "unknown", &ec);
	C(vcpu, KVM_SET_GUEST_DEBUG, "null", 0);
}

/* KVM_ENABLE_CAP on `fd`. */
static void cap(int fd, const char *name, unsigned which, uint64_t arg)
{
	struct kvm_enable_cap c = {.cap = which, .args = {arg}};

	call(name, fd, KVM_ENABLE_CAP, (unsigned long)&c);
}

static void vm_caps(int kvm)
{
	struct kvm_msr_filter f = {0};
	struct kvm_enable_cap flags = {.cap = KVM_CAP_DISABLE_QUIRKS2, .flags = 1};
	static uint8_t bits[8];
	int vm = kioctl(kvm, KVM_CREATE_VM, 0L);

	cap(vm, "cap quirks2 none", KVM_CAP_DISABLE_QUIRKS2, 0);
	cap(vm, "cap quirks2 hypercall", KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_FIX_HYPERCALL_INSN);
	cap(vm, "cap quirks2 bit 40", KVM_CAP_DISABLE_QUIRKS2, 1ull << 40);
	cap(vm, "cap quirks bit 20", KVM_CAP_DISABLE_QUIRKS, 1u << 20);
	C(vm, KVM_ENABLE_CAP, "quirks2 with flags", &flags);
	C(vm, KVM_ENABLE_CAP, "null", 0);
	cap(vm, "cap user memory", KVM_CAP_USER_MEMORY, 1);
	cap(vm, "cap msr exits 7", KVM_CAP_X86_USER_SPACE_MSR, 7);
	cap(vm, "cap msr exits 8", KVM_CAP_X86_USER_SPACE_MSR, 8);
	cap(vm, "cap msr exits 0", KVM_CAP_X86_USER_SPACE_MSR, 0);
	cap(vm, "cap payload 1", KVM_CAP_EXCEPTION_PAYLOAD, 1);
	cap(vm, "cap payload 0", KVM_CAP_EXCEPTION_PAYLOAD, 0);
	cap(vm, "cap platform info", KVM_CAP_MSR_PLATFORM_INFO, 0);
	cap(vm, "cap triple fault", KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1);
	cap(vm, "cap emulation exit 1", KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1);
	cap(vm, "cap emulation exit 2", KVM_CAP_EXIT_ON_EMULATION_FAILURE, 2);
	cap(vm, "cap x2apic 3", KVM_CAP_X2APIC_API, 3);
	cap(vm, "cap x2apic 4", KVM_CAP_X2APIC_API, 4);
	cap(vm, "cap max id 0", KVM_CAP_MAX_VCPU_ID, 0);
	cap(vm, "cap max id 1000000", KVM_CAP_MAX_VCPU_ID, 1000000);
	cap(vm, "cap max id 8", KVM_CAP_MAX_VCPU_ID, 8);
	cap(vm, "cap max id 8 again", KVM_CAP_MAX_VCPU_ID, 8);
	cap(vm, "cap max id 9", KVM_CAP_MAX_VCPU_ID, 9);
	C(vm, KVM_CREATE_VCPU, "id 8 of 8", 8);
	cap(vm, "cap manual 3", KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 3);
	cap(vm, "cap enforce pv on vm", KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1);
	C(vm, KVM_SET_BOOT_CPU_ID, "1", 1);
	C(vm, KVM_X86_SET_MSR_FILTER, "empty, allow", &f);
	f.flags = KVM_MSR_FILTER_DEFAULT_DENY;
	C(vm, KVM_X86_SET_MSR_FILTER, "empty, deny", &f);
	f.flags = 2;
	C(vm, KVM_X86_SET_MSR_FILTER, "flag 2", &f);
	f.flags = 0;
	f.ranges[0] = (struct kvm_msr_filter_range){.flags = 4, .nmsrs = 1, .bitmap = bits};
	C(vm, KVM_X86_SET_MSR_FILTER, "range flag 4", &f);
	f.ranges[0].flags = 3;
	C(vm, KVM_X86_SET_MSR_FILTER, "one range", &f);
	f.ranges[0].nmsrs = 0x600 * 8 + 1;
	C(vm, KVM_X86_SET_MSR_FILTER, "range too long", &f);
	f.ranges[0].nmsrs = 1;
	f.ranges[0].bitmap = NULL;
	C(vm, KVM_X86_SET_MSR_FILTER, "no bitmap", &f);
	C(vm, KVM_X86_SET_MSR_FILTER, "null", 0);
	C(vm, KVM_SMI, "on vm", 0);
	C(vm, KVM_NMI, "on vm", 0);
	C(vm, KVM_GET_STATS_FD, "vm", 0);
	C(vm, KVM_HAS_DEVICE_ATTR, "vm, null", 0);
	kclose(vm);
}

static void chip_calls(int kvm)
{
	struct {
		struct kvm_irq_routing head;
		struct kvm_irq_routing_entry e[3];
	} r = {0};
	struct kvm_irq_level line = {.irq = 4, .level = 1};
	struct kvm_irqchip chip = {.chip_id = 0};
	struct kvm_pit_config pit = {0};
	struct kvm_pit_state2 pit2;
	struct kvm_pit_state pit1;
	struct kvm_reinject_control re = {0};
	struct kvm_msi msi = {.address_lo = 0xfee00000, .data = 0x41};
	struct kvm_irqfd f = {.gsi = 5, .fd = (unsigned)eventfd(0, EFD_NONBLOCK)};
	struct kvm_mp_state mp = {.mp_state = KVM_MP_STATE_HALTED};
	struct kvm_interrupt irq = {.irq = 32};
	static struct kvm_lapic_state lapic;
	int vm = kioctl(kvm, KVM_CREATE_VM, 0L), vcpu;

	C(vm, KVM_CREATE_PIT2, "no chip", &pit);
	C(vm, KVM_IRQFD, "no chip", &f);
	C(vm, KVM_REINJECT_CONTROL, "no pit", &re);
	C(vm, KVM_CREATE_IRQCHIP, "ok", 0);
	C(vm, KVM_CREATE_IRQCHIP, "again", 0);
	cap(vm, "cap split after chips", KVM_CAP_SPLIT_IRQCHIP, 24);
	C(vm, KVM_GET_PIT2, "no pit", &pit2);
	C(vm, KVM_SET_PIT2, "no pit", &pit2);
	C(vm, KVM_CREATE_PIT2, "null", 0);
	C(vm, KVM_CREATE_PIT2, "ok", &pit);
	C(vm, KVM_CREATE_PIT2, "again", &pit);
	C(vm, KVM_CREATE_PIT, "after", 0);
	C(vm, KVM_GET_PIT2, "ok", &pit2);
	C(vm, KVM_GET_PIT2, "null", 0);
	C(vm, KVM_SET_PIT2, "ok", &pit2);
	C(vm, KVM_SET_PIT2, "null", 0);
	C(vm, KVM_GET_PIT, "ok", &pit1);
	C(vm, KVM_SET_PIT, "ok", &pit1);
	C(vm, KVM_REINJECT_CONTROL, "ok", &re);
	C(vm, KVM_REINJECT_CONTROL, "null", 0);
	C(vm, KVM_IRQ_LINE, "4", &line);
	C(vm, KVM_IRQ_LINE, "null", 0);
	C(vm, KVM_IRQ_LINE_STATUS, "4", &line);
	line.irq = 5000;
	C(vm, KVM_IRQ_LINE, "5000", &line);
	C(vm, KVM_GET_IRQCHIP, "0", &chip);
	C(vm, KVM_SET_IRQCHIP, "0", &chip);
	C(vm, KVM_GET_IRQCHIP, "null", 0);
	chip.chip_id = 2;
	C(vm, KVM_GET_IRQCHIP, "2", &chip);
	C(vm, KVM_SET_IRQCHIP, "2", &chip);
	chip.chip_id = 3;
	C(vm, KVM_GET_IRQCHIP, "3", &chip);
	C(vm, KVM_SET_IRQCHIP, "3", &chip);
	C(vm, KVM_SIGNAL_MSI, "no vcpu", &msi);
	msi.flags = 2;
	C(vm, KVM_SIGNAL_MSI, "flags", &msi);
	msi.flags = 0;
	C(vm, KVM_SIGNAL_MSI, "null", 0);
	C(vm, KVM_SET_GSI_ROUTING, "none", &r);
	r.head.flags = 1;
	C(vm, KVM_SET_GSI_ROUTING, "flags", &r);
	r.head.flags = 0;
	r.head.nr = 4097;
	C(vm, KVM_SET_GSI_ROUTING, "4097", &r);
	r.head.nr = 1;
	r.e[0] = (struct kvm_irq_routing_entry){.gsi = 4096, .type = KVM_IRQ_ROUTING_IRQCHIP};
	C(vm, KVM_SET_GSI_ROUTING, "gsi 4096", &r);
	r.e[0].gsi = 3;
	r.e[0].type = 77;
	C(vm, KVM_SET_GSI_ROUTING, "type 77", &r);
	r.e[0].type = KVM_IRQ_ROUTING_IRQCHIP;
	r.e[0].u.irqchip.irqchip = 5;
	C(vm, KVM_SET_GSI_ROUTING, "chip 5", &r);
	r.e[0].u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
	r.e[0].u.irqchip.pin = 24;
	C(vm, KVM_SET_GSI_ROUTING, "ioapic pin 24", &r);
	r.e[0].u.irqchip.pin = 3;
	C(vm, KVM_SET_GSI_ROUTING, "ioapic pin 3", &r);
	r.head.nr = 2;
	r.e[1] = r.e[0];
	C(vm, KVM_SET_GSI_ROUTING, "one chip twice", &r);
	r.e[1].u.irqchip.irqchip = KVM_IRQCHIP_PIC_MASTER;
	C(vm, KVM_SET_GSI_ROUTING, "two chips", &r);
	r.e[1] = (struct kvm_irq_routing_entry){.gsi = 3, .type = KVM_IRQ_ROUTING_MSI};
	C(vm, KVM_SET_GSI_ROUTING, "chip and message", &r);
	r.e[1].gsi = 9;
	r.e[1].u.msi.address_lo = 0xfee00000;
	C(vm, KVM_SET_GSI_ROUTING, "message elsewhere", &r);
	C(vm, KVM_IRQFD, "ok", &f);
	C(vm, KVM_IRQFD, "again", &f);
	f.flags = 0x40;
	C(vm, KVM_IRQFD, "flags", &f);
	f.flags = KVM_IRQFD_FLAG_RESAMPLE;
	f.resamplefd = 999;
	C(vm, KVM_IRQFD, "resample nowhere", &f);
	f.flags = KVM_IRQFD_FLAG_DEASSIGN;
	C(vm, KVM_IRQFD, "deassign", &f);
	C(vm, KVM_IRQFD, "deassign again", &f);
	f.flags = 0;
	f.fd = 999;
	C(vm, KVM_IRQFD, "no descriptor", &f);
	f.fd = 0;
	C(vm, KVM_IRQFD, "not an eventfd", &f);
	C(vm, KVM_SET_BOOT_CPU_ID, "before", 0);
	vcpu = kioctl(vm, KVM_CREATE_VCPU, 0L);
	note("create vcpu with chips", vcpu < 0 ? -1 : 1, errno);
	C(vm, KVM_SET_BOOT_CPU_ID, "after", 0);
	cap(vm, "cap max id after a vcpu", KVM_CAP_MAX_VCPU_ID, 8);
	C(vcpu, KVM_INTERRUPT, "with chips", &irq);
	C(vcpu, KVM_GET_LAPIC, "ok", &lapic);
	C(vcpu, KVM_SET_LAPIC, "ok", &lapic);
	C(vcpu, KVM_GET_LAPIC, "null", 0);
	C(vcpu, KVM_SET_MP_STATE, "halted, chips", &mp);
	mp.mp_state = KVM_MP_STATE_SIPI_RECEIVED;
	C(vcpu, KVM_SET_MP_STATE, "sipi", &mp);
	mp.mp_state = KVM_MP_STATE_RUNNABLE;
	C(vcpu, KVM_SET_MP_STATE, "runnable, chips", &mp);
	C(vm, KVM_SIGNAL_MSI, "to an apic that is off", &msi);
	kclose(vcpu);
	kclose(vm);
	vm = kioctl(kvm, KVM_CREATE_VM, 0L);
	cap(vm, "cap split 5000", KVM_CAP_SPLIT_IRQCHIP, 5000);
	cap(vm, "cap split 24", KVM_CAP_SPLIT_IRQCHIP, 24);
	cap(vm, "cap split again", KVM_CAP_SPLIT_IRQCHIP, 24);
	C(vm, KVM_CREATE_IRQCHIP, "after split", 0);
	C(vm, KVM_CREATE_PIT2, "split", &pit);
	chip.chip_id = 0;
	C(vm, KVM_GET_IRQCHIP, "split", &chip);
	r.head.nr = 1;
	C(vm, KVM_SET_GSI_ROUTING, "chip, split", &r);
	r.e[0] = r.e[1];
	C(vm, KVM_SET_GSI_ROUTING, "message, split", &r);
	vcpu = kioctl(vm, KVM_CREATE_VCPU, 0L);
	C(vcpu, KVM_INTERRUPT, "split", &irq);
	C(vcpu, KVM_INTERRUPT, "split again", &irq);
	kclose(vcpu);
	kclose(vm);
	vm = kioctl(kvm, KVM_CREATE_VM, 0L);
	vcpu = kioctl(vm, KVM_CREATE_VCPU, 0L);
	C(vm, KVM_CREATE_IRQCHIP, "after a vcpu", 0);
	cap(vm, "cap split after a vcpu", KVM_CAP_SPLIT_IRQCHIP, 24);
	kclose(vcpu);
	kclose(vm);
}

static void run(int vcpu, struct kvm_run *r, const char *name)
{
	long rc;

	errno = 0;
	rc = kioctl(vcpu, KVM_RUN, 0L);
	/* The exit, where there is one. */
	note(name, rc < 0 ? rc : (long)r->exit_reason, errno);
}

/* What KVM_RUN answers to states and settings. */
static void run_calls(int kvm)
{
	static const uint8_t code[] = {0xe6, 0x10, 0xf4, 0x0f, 0x0b};
	uint8_t *ram = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int vm = kioctl(kvm, KVM_CREATE_VM, 0L), vcpu = kioctl(vm, KVM_CREATE_VCPU, 0L);
	struct kvm_run *r = kmmap(NULL, (size_t)kioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0L), PROT_READ | PROT_WRITE,
	                          MAP_SHARED, vcpu, 0);
	struct kvm_regs regs = {.rip = 0x1000, .rflags = 2, .rsp = 0x800};
	struct kvm_device_attr attr = {.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET};
	struct kvm_guest_debug dbg = {0};
	struct kvm_vcpu_events ev;
	struct kvm_sregs2 s2;
	struct kvm_fpu fpu;
	struct kvm_sregs s;
	uint64_t offset = 5;

	memcpy(ram + 0x1000, code, sizeof(code));
	mem(vm, "mem for runs", 0, 0, 0, 0x10000, (uintptr_t)ram);
	mem(vm, "mem smm", 1 << 16, 0, 0, 0x10000, (uintptr_t)ram);
	mem(vm, "mem smm overlaps itself", 1 << 16 | 1, 0, 0x1000, 0x1000, (uintptr_t)ram);
	mem(vm, "mem address space 2", 2 << 16, 0, 0, 0x1000, (uintptr_t)ram);
	kioctl(vcpu, KVM_GET_SREGS, &s);
	s.cs.base = s.cs.selector = 0;
	C(vcpu, KVM_SET_SREGS, "to run", &s);
	C(vcpu, KVM_SET_REGS, "to run", &regs);
	r->kvm_valid_regs = 1ull << 40;
	run(vcpu, r, "run valid regs bit 40");
	r->kvm_valid_regs = 0;
	r->kvm_dirty_regs = 1ull << 40;
	run(vcpu, r, "run dirty regs bit 40");
	r->kvm_dirty_regs = 0;
	r->cr8 = 17;
	run(vcpu, r, "run cr8 17");
	r->cr8 = 0;
	r->immediate_exit = 1;
	run(vcpu, r, "run immediate exit");
	r->immediate_exit = 0;
	run(vcpu, r, "run out");
	r->immediate_exit = 1;
	run(vcpu, r, "run finishes the out");
	r->immediate_exit = 0;
	run(vcpu, r, "run hlt");
	run(vcpu, r, "run ud without a handler");
	regs.rip = 0x1000;
	kioctl(vcpu, KVM_SET_REGS, &regs);
	r->request_interrupt_window = 1;
	run(vcpu, r, "run window, if off");
	r->request_interrupt_window = 0;
	regs.rflags = 0x202;
	kioctl(vcpu, KVM_SET_REGS, &regs);
	r->request_interrupt_window = 1;
	run(vcpu, r, "run window, if on");
	r->request_interrupt_window = 0;
	regs.rip = 0x1002;
	ram[0x1002] = 0x90;
	kioctl(vcpu, KVM_SET_REGS, &regs);
	dbg.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
	C(vcpu, KVM_SET_GUEST_DEBUG, "single-step", &dbg);
	run(vcpu, r, "run a step");
	dbg.control = 0;
	C(vcpu, KVM_SET_GUEST_DEBUG, "off", &dbg);
	C(vcpu, KVM_GET_VCPU_EVENTS, "to change", &ev);
	ev.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
	C(vcpu, KVM_SET_VCPU_EVENTS, "payload without the capability", &ev);
	ev.flags = KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
	C(vcpu, KVM_SET_VCPU_EVENTS, "triple fault without the capability", &ev);
	C(vcpu, KVM_SMI, "ok", 0);
	C(vcpu, KVM_HAS_DEVICE_ATTR, "tsc offset", &attr);
	attr.addr = (uintptr_t)&offset;
	C(vcpu, KVM_SET_DEVICE_ATTR, "tsc offset", &attr);
	C(vcpu, KVM_GET_DEVICE_ATTR, "tsc offset", &attr);
	attr.addr = 0;
	C(vcpu, KVM_GET_DEVICE_ATTR, "tsc offset nowhere", &attr);
	attr.attr = 7;
	C(vcpu, KVM_HAS_DEVICE_ATTR, "attribute 7", &attr);
	attr.group = 7;
	C(vcpu, KVM_SET_DEVICE_ATTR, "group 7", &attr);
	C(vcpu, KVM_HAS_DEVICE_ATTR, "null", 0);
	C(vcpu, KVM_GET_FPU, "ok", &fpu);
	C(vcpu, KVM_SET_FPU, "ok", &fpu);
	C(vcpu, KVM_GET_FPU, "null", 0);
	C(vcpu, KVM_SET_FPU, "null", 0);
	C(vcpu, KVM_GET_SREGS2, "ok", &s2);
	C(vcpu, KVM_SET_SREGS2, "ok", &s2);
	s2.flags = 2;
	C(vcpu, KVM_SET_SREGS2, "flag 2", &s2);
	s2.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID;
	C(vcpu, KVM_SET_SREGS2, "pdptrs without pae", &s2);
	C(vcpu, KVM_SET_SREGS2, "null", 0);
	C(vcpu, KVM_GET_XCRS, "null", 0);
	C(vcpu, KVM_GET_DEBUGREGS, "null", 0);
	C(vcpu, KVM_GET_VCPU_EVENTS, "null", 0);
	C(vcpu, KVM_GET_MP_STATE, "null", 0);
	C(vcpu, KVM_SET_MP_STATE, "null", 0);
	C(vcpu, KVM_GET_STATS_FD, "vcpu", 0);
	cap(vcpu, "cap enforce pv", KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1);
	cap(vcpu, "cap quirks on vcpu", KVM_CAP_DISABLE_QUIRKS, 1);
	C(vcpu, KVM_CREATE_VCPU, "on vcpu", 0);
	C(vcpu, KVM_SET_USER_MEMORY_REGION, "on vcpu", 0);
	C(kvm, KVM_SET_USER_MEMORY_REGION, "on system", 0);
	C(kvm, KVM_ENABLE_CAP, "on system", 0);
	C(kvm, KVM_IRQ_LINE, "on system", 0);
	C(kvm, KVM_CREATE_IRQCHIP, "on system", 0);
	C(vm, KVM_SET_REGS, "on vm", 0);
	C(vm, KVM_GET_MSRS, "on vm", 0);
	kclose(vcpu);
	kclose(vm);
}

static void device_calls(int kvm)
{
	int vm = kioctl(kvm, KVM_CREATE_VM, 0L), fd = dup(kvm);
	struct kvm_create_device d = {.type = KVM_DEV_TYPE_VFIO, .fd = 77, .flags = KVM_CREATE_DEVICE_TEST};
	struct kvm_device_attr a = {.group = KVM_DEV_VFIO_GROUP, .attr = KVM_DEV_VFIO_GROUP_ADD};

	C(kvm, KVM_CHECK_EXTENSION, "devices", KVM_CAP_DEVICE_CTRL);
	C(vm, KVM_CREATE_DEVICE, "null", 0);
	C(vm, KVM_CREATE_DEVICE, "test", &d);
	note("fd after a test", d.fd, 0);
	d.type = KVM_DEV_TYPE_XICS;
	C(vm, KVM_CREATE_DEVICE, "test, another processor's", &d);
	d.type = 1000;
	C(vm, KVM_CREATE_DEVICE, "test, no type", &d);
	d.type = KVM_DEV_TYPE_VFIO;
	d.flags = ~KVM_CREATE_DEVICE_TEST;
	C(vm, KVM_CREATE_DEVICE, "any other flag", &d);
	C(vm, KVM_CREATE_DEVICE, "a second one", &(struct kvm_create_device){.type = KVM_DEV_TYPE_VFIO});
	C(kvm, KVM_CREATE_DEVICE, "on system", &d);
	note("close-on-exec", fcntl((int)d.fd, F_GETFD), errno);
	C(d.fd, KVM_HAS_DEVICE_ATTR, "add", &a);
	a.attr = KVM_DEV_VFIO_GROUP_DEL;
	C(d.fd, KVM_HAS_DEVICE_ATTR, "del", &a);
	a.attr = 100;
	C(d.fd, KVM_HAS_DEVICE_ATTR, "no attribute", &a);
	C(d.fd, KVM_SET_DEVICE_ATTR, "no attribute", &a);
	a.group = 7;
	a.attr = KVM_DEV_VFIO_GROUP_ADD;
	C(d.fd, KVM_HAS_DEVICE_ATTR, "no group", &a);
	C(d.fd, KVM_SET_DEVICE_ATTR, "no group", &a);
	C(d.fd, KVM_HAS_DEVICE_ATTR, "null", 0);
	C(d.fd, KVM_GET_DEVICE_ATTR, "any", &a);
	C(d.fd, KVM_GET_DEVICE_ATTR, "null", 0);
	a.group = KVM_DEV_VFIO_GROUP;
	C(d.fd, KVM_SET_DEVICE_ATTR, "add, null", &a);
	a.addr = (uintptr_t) & (int){-1};
	C(d.fd, KVM_SET_DEVICE_ATTR, "add, no descriptor", &a);
	a.addr = (uintptr_t)&fd;
	C(d.fd, KVM_SET_DEVICE_ATTR, "add, no group", &a);
	a.attr = KVM_DEV_VFIO_GROUP_DEL;
	C(d.fd, KVM_SET_DEVICE_ATTR, "del, none", &a);
	C(d.fd, KVM_GET_API_VERSION, "on a device", 0);
	errno = 0;
	note("mmap of a device", kmmap(NULL, 4096, PROT_READ, MAP_SHARED, (int)d.fd, 0) == MAP_FAILED ? -1 : 0, errno);
	kclose(vm);
	/* It holds the VM. */
	a.attr = KVM_DEV_VFIO_GROUP_ADD;
	C(d.fd, KVM_HAS_DEVICE_ATTR, "without the vm's descriptor", &a);
	kclose((int)d.fd);
	kclose(fd);
}

int main(int argc, char **argv)
{
	uint64_t ram = (uintptr_t)mmap(NULL, 0x20000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int kvm = kopen(), vm, vcpu;

	print = argc > 1 && strcmp(argv[1], "--print") == 0;
	data = !print && argc > 1 ? fopen(argv[1], "r") : NULL;
	if (kvm < 0 || (!print && !data)) {
		perror("errors12");
		return 2;
	}
	system_calls(kvm);
	vm = kioctl(kvm, KVM_CREATE_VM, 0L);
	vm_calls(vm);
	memory(vm, ram);
	vcpu = kioctl(vm, KVM_CREATE_VCPU, 0L);
	note("create vcpu", vcpu < 0 ? -1 : 1, errno);
	C(vm, KVM_CREATE_VCPU, "again", 0);
	C(vm, KVM_SET_IDENTITY_MAP_ADDR, "after a vcpu", &(uint64_t){0xfffbc000});
	errno = 0;
	note("mmap of a vm", kmmap(NULL, 4096, PROT_READ, MAP_SHARED, vm, 0) == MAP_FAILED ? -1 : 0, errno);
	vcpu_calls(vcpu);
	vm_caps(kvm);
	chip_calls(kvm);
	run_calls(kvm);
	device_calls(kvm);
	if (!print)
		printf("%u passed, %u failed\n", passed, failed);
	return failed != 0;
}
