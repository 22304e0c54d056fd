/*
 * habits12.c: small clients, each in the habit of a VMM that real users run: which capabilities it cannot do without
 * and how it compares them, the order of its ioctls until the first instruction, and the ways it has of ending KVM_RUN.
 * What they are known to do is from their sources (Firecracker, Cloud Hypervisor, crosvm, libkrun, tinykvm, gVisor,
 * QEMU); no line of them is here. The same program runs on Linux' KVM.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include "client12.h"
#include "test.h"

/* ---- the table --------------------------------------------------------------------------------------------------- */

#define CAP_ONE 0x10000 /* the client compares the answer with 1 */
#define MAX_CAPS 32

enum chip { CHIP_NONE, CHIP_FULL, CHIP_SPLIT };
enum start { START_RESET, START_LONG };

static const struct vmm {
	const char *name;
	bool vm_caps; /* asks the VM's descriptor */
	bool identity, tss, lapic, get_sregs, fpu, msr_list, routes, sync;
	enum chip chip;
	int pit; /* flags of KVM_CREATE_PIT2, -1: none */
	enum start start;
	unsigned caps[MAX_CAPS];
} vmms[] = {
        {"Firecracker", .vm_caps = true, .tss = true, .lapic = true, .get_sregs = true, .fpu = true, .msr_list = true,
         .chip = CHIP_FULL, .pit = KVM_PIT_SPEAKER_DUMMY, .start = START_LONG,
         .caps = {KVM_CAP_IRQCHIP, KVM_CAP_IOEVENTFD, KVM_CAP_IRQFD, KVM_CAP_USER_MEMORY, KVM_CAP_SET_TSS_ADDR,
                  KVM_CAP_PIT2, KVM_CAP_PIT_STATE2, KVM_CAP_ADJUST_CLOCK, KVM_CAP_DEBUGREGS, KVM_CAP_MP_STATE,
                  KVM_CAP_VCPU_EVENTS, KVM_CAP_XCRS, KVM_CAP_XSAVE, KVM_CAP_EXT_CPUID}},
        {"Cloud Hypervisor", .identity = true, .tss = true, .lapic = true, .get_sregs = true, .fpu = true,
         .msr_list = true, .routes = true, .chip = CHIP_SPLIT, .pit = -1, .start = START_LONG,
         .caps = {KVM_CAP_ADJUST_CLOCK, KVM_CAP_EXT_CPUID, KVM_CAP_GET_TSC_KHZ, KVM_CAP_IMMEDIATE_EXIT,
                  KVM_CAP_IOEVENTFD, KVM_CAP_IRQCHIP, KVM_CAP_IRQFD, KVM_CAP_IRQ_ROUTING, KVM_CAP_MP_STATE,
                  KVM_CAP_SET_IDENTITY_MAP_ADDR, KVM_CAP_SET_TSS_ADDR, KVM_CAP_SPLIT_IRQCHIP,
                  KVM_CAP_TSC_DEADLINE_TIMER, KVM_CAP_USER_MEMORY, KVM_CAP_USER_NMI, KVM_CAP_VCPU_EVENTS,
                  KVM_CAP_XSAVE}},
        {"crosvm", .identity = true, .tss = true, .lapic = true, .get_sregs = true, .fpu = true, .routes = true,
         .chip = CHIP_FULL, .pit = 0, .start = START_LONG,
         .caps = {KVM_CAP_IMMEDIATE_EXIT | CAP_ONE, KVM_CAP_TSC_DEADLINE_TIMER | CAP_ONE}},
        {"libkrun", .tss = true, .lapic = true, .get_sregs = true, .fpu = true, .msr_list = true, .chip = CHIP_FULL,
         .pit = KVM_PIT_SPEAKER_DUMMY, .start = START_LONG,
         .caps = {KVM_CAP_IRQCHIP, KVM_CAP_IOEVENTFD, KVM_CAP_IRQFD, KVM_CAP_USER_MEMORY, KVM_CAP_SET_TSS_ADDR}},
        {"tinykvm", .fpu = true, .sync = true, .pit = -1, .start = START_LONG},
        {"gVisor", .vm_caps = true, .tss = true, .pit = -1, .start = START_LONG,
         .caps = {KVM_CAP_NR_MEMSLOTS, KVM_CAP_MAX_VCPUS}},
        {"QEMU 7.2, chips of its own", .tss = true, .identity = true, .get_sregs = true, .msr_list = true, .pit = -1,
         .start = START_RESET,
         .caps = {KVM_CAP_USER_MEMORY, KVM_CAP_DESTROY_MEMORY_REGION_WORKS, KVM_CAP_JOIN_MEMORY_REGIONS_WORKS,
                  KVM_CAP_SET_TSS_ADDR, KVM_CAP_EXT_CPUID, KVM_CAP_MP_STATE, KVM_CAP_IRQ_ROUTING,
                  KVM_CAP_READONLY_MEM}},
        {"QEMU 8.2", .tss = true, .identity = true, .lapic = true, .get_sregs = true, .msr_list = true, .routes = true,
         .chip = CHIP_FULL, .pit = 0, .start = START_RESET,
         .caps = {KVM_CAP_INTERNAL_ERROR_DATA, KVM_CAP_IOEVENTFD, KVM_CAP_IOEVENTFD_ANY_LENGTH, KVM_CAP_SIGNAL_MSI,
                  KVM_CAP_DEBUGREGS, KVM_CAP_XSAVE, KVM_CAP_VCPU_EVENTS, KVM_CAP_X86_ROBUST_SINGLESTEP, KVM_CAP_MCE,
                  KVM_CAP_ADJUST_CLOCK, KVM_CAP_SET_IDENTITY_MAP_ADDR, KVM_CAP_IRQFD, KVM_CAP_PIT2,
                  KVM_CAP_PIT_STATE2}},
};

/* ---- the steps they share ---------------------------------------------------------------------------------------- */

static struct kvm_cpuid2 *supported(int kvm, unsigned room)
{
	struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + room * sizeof(c->entries[0]));

	c->nent = room;
	if (kioctl(kvm, KVM_GET_SUPPORTED_CPUID, c) == 0)
		return c;
	free(c);
	return NULL;
}

static const struct kvm_cpuid_entry2 *leaf(const struct kvm_cpuid2 *c, uint32_t function, uint32_t index)
{
	for (unsigned n = 0; n < c->nent; n++)
		if (c->entries[n].function == function && c->entries[n].index == index)
			return &c->entries[n];
	return NULL;
}

/* Page tables at 0x9000: the first GiB, and GDT entries as the loaders of 64-bit kernels have them. */
static void long_sregs(struct guest *g, struct kvm_sregs *s)
{
	uint64_t *t = (uint64_t *)(g->ram + 0x9000);

	t[0] = 0xa003;
	t[512] = 0xb003;
	for (uint64_t n = 0; n < 512; n++)
		t[1024 + n] = n << 21 | 0x83;
	s->cs = (struct kvm_segment){
	        .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
	s->ds = (struct kvm_segment){
	        .limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1};
	s->es = s->fs = s->gs = s->ss = s->ds;
	s->tr = (struct kvm_segment){.limit = 0xffffffff, .selector = 24, .type = 11, .present = 1, .g = 1};
	s->ldt = (struct kvm_segment){.unusable = 1};
	s->gdt = (struct kvm_dtable){.base = 0x500, .limit = 31};
	s->idt = (struct kvm_dtable){.base = 0x520, .limit = 7};
	s->cr3 = 0x9000;
	s->cr4 = 0x20;
	s->cr0 = 0x80000011;
	s->efer = 0x500;
}

/* Every one of these must be taken: all of them give up at a short count (trap 9). */
static const struct kvm_msr_entry boot_msrs[] = {{.index = 0x174},
                                                 {.index = 0x175},
                                                 {.index = 0x176},
                                                 {.index = 0xc0000081},
                                                 {.index = 0xc0000083},
                                                 {.index = 0xc0000102},
                                                 {.index = 0xc0000084},
                                                 {.index = 0xc0000082},
                                                 {.index = 0x10},
                                                 {.index = 0x1a0, .data = 1},
                                                 {.index = 0x2ff, .data = 0x806},
                                                 {.index = 0x277, .data = 0x0007040600070406},
                                                 {.index = 0x4b564d00},
                                                 {.index = 0x4b564d01},
                                                 {.index = 0x11},
                                                 {.index = 0x12},
                                                 {.index = 0x200},
                                                 {.index = 0x201},
                                                 {.index = 0x20e},
                                                 {.index = 0x20f},
                                                 {.index = 0x250},
                                                 {.index = 0x258},
                                                 {.index = 0x259},
                                                 {.index = 0x268},
                                                 {.index = 0x26f}};
#define BOOT_MSRS (sizeof(boot_msrs) / sizeof(boot_msrs[0]))

static void set_boot_msrs(int vcpu)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry e[BOOT_MSRS];
	} m = {.head.nmsrs = BOOT_MSRS};

	memcpy(m.e, boot_msrs, sizeof(boot_msrs));
	CHECK_EQ(kioctl(vcpu, KVM_SET_MSRS, &m), BOOT_MSRS);
}

/* LINT0 takes the i8259's interrupts, LINT1 is the NMI. */
static void set_lints(int vcpu)
{
	struct kvm_lapic_state l;

	CHECK_EQ(kioctl(vcpu, KVM_GET_LAPIC, &l), 0);
	l.regs[0x350] = 0;
	l.regs[0x351] = 7;
	l.regs[0x360] = 0;
	l.regs[0x361] = 4;
	CHECK_EQ(kioctl(vcpu, KVM_SET_LAPIC, &l), 0);
}

static void make_chips(const struct vmm *m, int vm)
{
	struct kvm_pit_config pit = {.flags = (unsigned)m->pit};
	struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};

	if (m->chip == CHIP_FULL)
		CHECK_EQ(kioctl(vm, KVM_CREATE_IRQCHIP, 0L), 0);
	if (m->chip == CHIP_SPLIT)
		CHECK_EQ(kioctl(vm, KVM_ENABLE_CAP, &split), 0);
	if (m->pit >= 0)
		CHECK_EQ(kioctl(vm, KVM_CREATE_PIT2, &pit), 0);
}

static void set_routes(int vm)
{
	struct kvm_irq_routing *r = calloc(1, sizeof(*r) + 24 * sizeof(r->entries[0]));

	r->nr = 24;
	for (unsigned n = 0; n < 24; n++)
		r->entries[n] = (struct kvm_irq_routing_entry){
		        .gsi = n, .type = KVM_IRQ_ROUTING_MSI, .u.msi = {.address_lo = 0xfee00000, .data = 0x30 + n}};
	CHECK_EQ(kioctl(vm, KVM_SET_GSI_ROUTING, r), 0);
	free(r);
}

/* A VMM's way up to where KVM_RUN comes next. The guest: out 0xe9, al; hlt. */
static void bring_up(const struct vmm *m, struct guest *g)
{
	struct kvm_msr_list none = {0};
	struct kvm_cpuid2 *cpuid;
	struct kvm_sregs s;
	struct kvm_regs r = {.rip = 0x1000, .rsp = 0x8ff0, .rbp = 0x8ff0, .rsi = 0x7000, .rax = 0x77, .rflags = 2};
	struct kvm_fpu f = {.fcw = 0x37f, .mxcsr = 0x1f80};
	struct kvm_mp_state mp = {.mp_state = KVM_MP_STATE_RUNNABLE};
	uint64_t identity = 0xfeffc000;

	memset(g, 0, sizeof(*g));
	g->size = 0x200000;
	g->kvm = kopen();
	CHECK_EQ(kioctl(g->kvm, KVM_GET_API_VERSION, 0L), 12);
	g->vm = kioctl(g->kvm, KVM_CREATE_VM, 0L);
	for (unsigned n = 0; n < MAX_CAPS && m->caps[n]; n++) {
		int has = kioctl(m->vm_caps ? g->vm : g->kvm, KVM_CHECK_EXTENSION, (long)(m->caps[n] & 0xffff));

		if (m->caps[n] & CAP_ONE ? has != 1 : has <= 0) {
			printf("  %s: capability %u is %d\n", m->name, m->caps[n] & 0xffff, has);
			test_bad_checks++;
		}
	}
	g->run_size = (size_t)kioctl(g->kvm, KVM_GET_VCPU_MMAP_SIZE, 0L);
	cpuid = supported(g->kvm, 100);
	CHECK(cpuid);
	if (m->msr_list) {
		CHECK_ERR(kioctl(g->kvm, KVM_GET_MSR_INDEX_LIST, &none), E2BIG);
		CHECK(none.nmsrs > 20);
	}
	if (m->identity)
		CHECK_EQ(kioctl(g->vm, KVM_SET_IDENTITY_MAP_ADDR, &identity), 0);
	if (m->tss)
		CHECK_EQ(kioctl(g->vm, KVM_SET_TSS_ADDR, 0xfeffd000L), 0);
	g->ram = mmap(NULL, g->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	CHECK_EQ(region(g->vm, 0, 0, 0, g->size, g->ram), 0);
	make_chips(m, g->vm);
	if (m->routes && m->chip == CHIP_SPLIT)
		set_routes(g->vm);
	g->vcpu = kioctl(g->vm, KVM_CREATE_VCPU, 0L);
	g->run = kmmap(NULL, g->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu, 0);
	CHECK_EQ(kioctl(g->vcpu, KVM_SET_CPUID2, cpuid), 0);
	free(cpuid);
	set_boot_msrs(g->vcpu);
	CODE(g, 0x1000, 0xe6, 0xe9, 0xf4);
	memset(&s, 0, sizeof(s));
	if (m->start == START_LONG) {
		if (m->get_sregs)
			CHECK_EQ(kioctl(g->vcpu, KVM_GET_SREGS, &s), 0);
		else
			s.apic_base = 0xfee00900;
		long_sregs(g, &s);
		if (m->sync) {
			/* No KVM_SET_REGS: the structure of KVM_RUN carries them. */
			g->run->kvm_valid_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
			g->run->kvm_dirty_regs = g->run->kvm_valid_regs;
			g->run->s.regs.regs = r;
			g->run->s.regs.sregs = s;
			CHECK_EQ(kioctl(g->vcpu, KVM_SET_MP_STATE, &mp), 0);
		} else {
			CHECK_EQ(kioctl(g->vcpu, KVM_SET_SREGS, &s), 0);
			CHECK_EQ(kioctl(g->vcpu, KVM_SET_REGS, &r), 0);
		}
	} else {
		CHECK_EQ(guest_start16(g, 0x1000), 0);
	}
	if (m->fpu)
		CHECK_EQ(kioctl(g->vcpu, KVM_SET_FPU, &f), 0);
	if (m->lapic)
		set_lints(g->vcpu);
}

TEST(start_up)
{
	for (unsigned n = 0; n < sizeof(vmms) / sizeof(vmms[0]); n++) {
		const struct vmm *m = &vmms[n];
		unsigned before = test_bad_checks;
		struct guest g;

		bring_up(m, &g);
		CHECK_EQ(guest_run(&g), 0);
		CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
		CHECK_EQ(g.run->io.port, 0xe9);
		if (m->sync)
			CHECK_EQ(g.run->s.regs.regs.rax, 0x77);
		if (m->chip == CHIP_NONE) {
			CHECK_EQ(guest_run(&g), 0);
			CHECK_EQ(g.run->exit_reason, KVM_EXIT_HLT);
		}
		guest_close(&g);
		if (test_bad_checks != before)
			printf("  ... of %s\n", m->name);
	}
}

/* ---- answers that must be what they are -------------------------------------------------------------------------- */

/* Trap 10: what would make one of them enable something, and then rely on it. */
TEST(capabilities)
{
	int kvm = kopen(), vm = kioctl(kvm, KVM_CREATE_VM, 0L);

	CHECK_EQ(kioctl(kvm, KVM_CHECK_EXTENSION, (long)KVM_CAP_MSI_DEVID), 0);
	CHECK_EQ(kioctl(vm, KVM_CHECK_EXTENSION, (long)KVM_CAP_MSI_DEVID), 0);
	for (long cap = 500; cap < 600; cap++)
		CHECK_EQ(kioctl(vm, KVM_CHECK_EXTENSION, cap), 0);
	/* Negative is fatal to Firecracker, below the size of struct kvm_xsave means "none". */
	CHECK(kioctl(vm, KVM_CHECK_EXTENSION, (long)KVM_CAP_XSAVE2) >= 0);
	CHECK(kioctl(kvm, KVM_CHECK_EXTENSION, (long)KVM_CAP_IRQ_ROUTING) >= 1024);
	CHECK(kioctl(kvm, KVM_CHECK_EXTENSION, (long)KVM_CAP_NR_MEMSLOTS) >= 509);
	CHECK(kioctl(kvm, KVM_CHECK_EXTENSION, (long)KVM_CAP_MAX_VCPUS) >= 255);
	kclose(vm);
	kclose(kvm);
}

/* Traps 7 and 8. */
TEST(cpuid)
{
	int kvm = kopen();
	unsigned room = 1;
	struct kvm_cpuid2 *c;
	static const uint32_t always[] = {0,          1,          7,          0xd,        0x80000000,
	                                  0x80000001, 0x80000002, 0x80000003, 0x80000004, 0x80000008};
	const struct kvm_cpuid_entry2 *e;
	uint32_t sig[3], a, b, cx, d;

	/* QEMU: from 1, doubled. */
	while (!(c = supported(kvm, room))) {
		CHECK_EQ(errno, E2BIG);
		room *= 2;
		if (room > 4096)
			return;
	}
	CHECK(c->nent <= 100);
	for (unsigned n = 0; n < sizeof(always) / sizeof(always[0]); n++)
		if (!leaf(c, always[n], 0)) {
			printf("  leaf %#x is missing\n", always[n]);
			test_bad_checks++;
		}
	e = leaf(c, 0, 0);
	sig[0] = e->ebx, sig[1] = e->edx, sig[2] = e->ecx;
	CHECK(memcmp(sig, "GenuineIntel", 12) == 0 || memcmp(sig, "AuthenticAMD", 12) == 0);
	__cpuid(0, a, b, cx, d);
	CHECK_EQ(e->ebx, b);
	/* QEMU asserts this. */
	e = leaf(c, 0xd, 0);
	CHECK(e->ecx <= 4096 || e->ecx <= (uint32_t)kioctl(kvm, KVM_CHECK_EXTENSION, (long)KVM_CAP_XSAVE2));
	free(c);
	kclose(kvm);
}

/* tinykvm takes XCR0 from the CPUID instruction of the host, which no ioctl answers. Where that has AVX-512, 0xe7 must
 * not be refused; the guest has what its own CPUID says. */
TEST(xcr0_of_the_host)
{
	struct kvm_xcrs x = {.nr_xcrs = 1};
	uint32_t a, b, c, d;
	struct guest g;

	__cpuid_count(7, 0, a, b, c, d);
	bring_up(&vmms[4], &g);
	x.xcrs[0].value = b & (1u << 16) ? 0xe7 : 7;
	CHECK_EQ(kioctl(g.vcpu, KVM_SET_XCRS, &x), 0);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_XCRS, &x), 0);
	CHECK_EQ(x.xcrs[0].value & 7, 7);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	guest_close(&g);
}

/* gVisor's kernel part asks XGETBV outside the guest and writes the answer to XCR0 inside, before anything else. */
TEST(xcr0_of_the_host_written_by_the_guest)
{
	struct kvm_sregs s;
	uint32_t a, b, c, d;
	struct guest g;

	__cpuid(1, a, b, c, d);
	if (!(c & (1u << 27)))
		return;
	__asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
	bring_up(&vmms[5], &g);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_SREGS, &s), 0);
	s.cr4 |= 1u << 18;
	CHECK_EQ(kioctl(g.vcpu, KVM_SET_SREGS, &s), 0);
	/* mov eax, imm32; xor ecx, ecx; xor edx, edx; xsetbv; xgetbv; out 0x10, eax */
	CODE(&g, 0x1000, 0xb8, 0, 0, 0, 0, 0x31, 0xc9, 0x31, 0xd2, 0x0f, 0x01, 0xd1, 0x0f, 0x01, 0xd0, 0xe7, 0x10);
	g.ram[0x1001] = a & 0xe7;
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(*(uint32_t *)guest_io(&g) & 7, a & 7);
	guest_close(&g);
}

/* Firecracker forces TSC-deadline mode into CPUID, so the local APIC must have it. */
TEST(tsc_deadline_forced)
{
	struct kvm_lapic_state l;
	struct kvm_cpuid2 *c;
	struct guest g;
	uint64_t deadline;

	bring_up(&vmms[0], &g);
	c = supported(g.kvm, 100);
	for (unsigned n = 0; n < c->nent; n++)
		if (c->entries[n].function == 1)
			c->entries[n].ecx |= 1u << 24;
	CHECK_EQ(kioctl(g.vcpu, KVM_SET_CPUID2, c), 0);
	free(c);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_LAPIC, &l), 0);
	l.regs[0x322] |= 4; /* LVT timer: TSC-deadline */
	CHECK_EQ(kioctl(g.vcpu, KVM_SET_LAPIC, &l), 0);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_LAPIC, &l), 0);
	CHECK_EQ(l.regs[0x322] & 6, 4);
	CHECK_EQ(get_msr(&g, 0x6e0, &deadline), 1);
	guest_close(&g);
}

#ifndef LINKED
/* Trap 5: how they look for the device. */
TEST(device_node)
{
	struct stat s;
	struct statx x;
	int fd;

	CHECK_EQ(stat("/dev/kvm", &s), 0);
	CHECK(S_ISCHR(s.st_mode));
	CHECK_EQ(statx(AT_FDCWD, "/dev/kvm", 0, STATX_BASIC_STATS, &x), 0);
	CHECK_EQ(access("/dev/kvm", R_OK | W_OK), 0);
	fd = openat(AT_FDCWD, "/dev/kvm", O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0);
	CHECK_EQ(ioctl(fd, KVM_GET_API_VERSION, 0L), 12);
	close(fd);
}

/* Trap 4: Firecracker dups the vCPU's descriptor and maps it again; crosvm clones those of the system and the VM. */
TEST(clones_of_descriptors)
{
	struct guest g;
	struct kvm_run *again;
	int fd, kvm, vm;

	bring_up(&vmms[0], &g);
	fd = dup(g.vcpu);
	kvm = fcntl(g.kvm, F_DUPFD_CLOEXEC, 0);
	vm = fcntl(g.vm, F_DUPFD_CLOEXEC, 100);
	CHECK(fd >= 0 && kvm >= 0 && vm >= 100);
	again = mmap(NULL, g.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(again != MAP_FAILED);
	CHECK_EQ(ioctl(fd, KVM_RUN, 0L), 0);
	CHECK_EQ(again->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(ioctl(kvm, KVM_CHECK_EXTENSION, (long)KVM_CAP_USER_MEMORY), 1);
	close(g.vm);
	close(g.kvm);
	CHECK(ioctl(vm, KVM_CHECK_EXTENSION, (long)KVM_CAP_USER_MEMORY) == 1);
	again->immediate_exit = 1;
	CHECK_ERR(ioctl(g.vcpu, KVM_RUN, 0L), EINTR);
	munmap(again, g.run_size);
	close(fd);
	close(kvm);
	g.vm = vm;
	g.kvm = kopen();
	guest_close(&g);
}
#endif

/* ---- eventfds ---------------------------------------------------------------------------------------------------- */

/* Trap 11: the forms of KVM_IOEVENTFD. */
TEST(ioeventfds)
{
	static const struct {
		const char *who;
		uint64_t addr, match;
		uint32_t len, flags;
	} forms[] = {
	        {"Firecracker, libkrun", 0x30000050, 0, 4, KVM_IOEVENTFD_FLAG_DATAMATCH},
	        {"... its second queue", 0x30000050, 1, 4, KVM_IOEVENTFD_FLAG_DATAMATCH},
	        {"Cloud Hypervisor, crosvm", 0x30001000, 0, 0, 0},
	        {"crosvm, PCI", 0x30002002, 0, 2, KVM_IOEVENTFD_FLAG_DATAMATCH},
	        {"QEMU, legacy port", 0xc050, 1, 2, KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_PIO},
	        {"gVisor", 0x30003000, 0, 8, 0},
	};
	/* mov edx, imm32; mov eax, imm32; mov [rdx], eax|ax|rax; out: as the forms need. */
	static const uint8_t code[] = {
	        0xba, 0x50, 0x00, 0x00, 0x30, 0x31, 0xc0, 0x89, 0x02,                   /* [30000050] = 0 (4) */
	        0xff, 0xc0, 0x89, 0x02,                                                 /* ... = 1 */
	        0xba, 0x00, 0x10, 0x00, 0x30, 0x88, 0x02, 0x66, 0x89, 0x02,             /* [30001000]: a byte, a word */
	        0xba, 0x02, 0x20, 0x00, 0x30, 0x31, 0xc0, 0x66, 0x89, 0x02,             /* [30002002] = 0 (2) */
	        0xba, 0x50, 0xc0, 0x00, 0x00, 0xb8, 0x01, 0x00, 0x00, 0x00, 0x66, 0xef, /* port c050 = 1 (2) */
	        0xba, 0x00, 0x30, 0x00, 0x30, 0x48, 0x89, 0x02,                         /* [30003000] (8) */
	        0xba, 0x50, 0x00, 0x00, 0x30, 0xb8, 0x02, 0x00, 0x00, 0x00, 0x89, 0x02, /* ... = 2: nobody's */
	};
	static const uint64_t counts[] = {1, 1, 2, 1, 1, 1};
	int fd[6];
	struct guest g;

	bring_up(&vmms[1], &g);
	memcpy(g.ram + 0x1000, code, sizeof(code));
	for (unsigned n = 0; n < 6; n++) {
		struct kvm_ioeventfd io = {.addr = forms[n].addr,
		                           .datamatch = forms[n].match,
		                           .len = forms[n].len,
		                           .flags = forms[n].flags,
		                           .fd = fd[n] = eventfd(0, EFD_NONBLOCK)};

		CHECK_EQ(kioctl(g.vm, KVM_IOEVENTFD, &io), 0);
	}
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_MMIO);
	CHECK_EQ(g.run->mmio.phys_addr, 0x30000050);
	CHECK_EQ(g.run->mmio.data[0], 2);
	for (unsigned n = 0; n < 6; n++) {
		uint64_t got = 0;

		if (read(fd[n], &got, 8) != 8 || got != counts[n]) {
			printf("  %s: %llu signals, not %llu\n", forms[n].who, (unsigned long long)got,
			       (unsigned long long)counts[n]);
			test_bad_checks++;
		}
		close(fd[n]);
	}
	guest_close(&g);
}

/* Trap 12: Firecracker and libkrun never set routes, and bind more than one eventfd to a serial port's line. */
TEST(default_routes)
{
	struct kvm_irqfd a = {.gsi = 4}, b = {.gsi = 4};
	struct kvm_irqchip chip = {.chip_id = KVM_IRQCHIP_PIC_MASTER};
	uint64_t one = 1;
	struct guest g;

	bring_up(&vmms[0], &g);
	a.fd = (uint32_t)eventfd(0, EFD_NONBLOCK);
	b.fd = (uint32_t)eventfd(0, EFD_NONBLOCK);
	CHECK_EQ(kioctl(g.vm, KVM_IRQFD, &a), 0);
	CHECK_EQ(kioctl(g.vm, KVM_IRQFD, &b), 0);
	CHECK_ERR(kioctl(g.vm, KVM_IRQFD, &b), EBUSY);
	CHECK_EQ(write((int)b.fd, &one, 8), 8);
	for (unsigned n = 0; n < 1000 && !(chip.chip.pic.irr & 0x10); n++) {
		CHECK_EQ(kioctl(g.vm, KVM_GET_IRQCHIP, &chip), 0);
		usleep(1000);
	}
	CHECK_EQ(chip.chip.pic.irr & 0x10, 0x10);
	close((int)a.fd);
	close((int)b.fd);
	guest_close(&g);
}

/* crosvm registers its level-triggered lines with a second eventfd at start, before anything runs. */
TEST(resample_at_start)
{
	struct kvm_irqfd f = {.gsi = 5, .flags = KVM_IRQFD_FLAG_RESAMPLE};
	struct guest g;

	bring_up(&vmms[2], &g);
	f.fd = (uint32_t)eventfd(0, EFD_NONBLOCK);
	f.resamplefd = (uint32_t)eventfd(0, EFD_NONBLOCK);
	CHECK_EQ(kioctl(g.vm, KVM_IRQFD, &f), 0);
	f.flags = KVM_IRQFD_FLAG_DEASSIGN;
	CHECK_EQ(kioctl(g.vm, KVM_IRQFD, &f), 0);
	close((int)f.fd);
	close((int)f.resamplefd);
	guest_close(&g);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* Trap 6: libkrun and crosvm put file mappings over parts of live guest memory. */
TEST(mapping_over_a_live_slot)
{
	int fd = memfd_create("shared", MFD_CLOEXEC);
	struct guest g;

	bring_up(&vmms[3], &g);
	/* mov al, [0x100000]; out 0xe9, al; jmp back */
	CODE(&g, 0x1000, 0x8a, 0x04, 0x25, 0x00, 0x00, 0x10, 0x00, 0xe6, 0xe9, 0xeb, 0xf5);
	g.ram[0x100000] = 1;
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(*guest_io(&g), 1);
	CHECK_EQ(ftruncate(fd, 0x1000), 0);
	CHECK_EQ(pwrite(fd, "\2", 1, 0), 1);
	CHECK(mmap(g.ram + 0x100000, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) != MAP_FAILED);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(*guest_io(&g), 2);
	CHECK_EQ(pwrite(fd, "\3", 1, 0), 1);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(*guest_io(&g), 3);
	close(fd);
	guest_close(&g);
}

/* gVisor maps its address space in large slots, most of it nothing yet; the same once more is EEXIST to it. */
TEST(sparse_slots)
{
	size_t size = 8ull << 30;
	uint8_t *at = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct guest g;

	bring_up(&vmms[5], &g);
	CHECK(at != MAP_FAILED);
	CHECK_EQ(region(g.vm, 1, 0, 0x100000000, size, at), 0);
	CHECK_ERR(region(g.vm, 2, 0, 0x100000000, size, at), EEXIST);
	CHECK_EQ(region(g.vm, 3, KVM_MEM_READONLY, 0x400000000, 0x1000000, at), 0);
	munmap(at + 0x1000000, 0x1000000);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(kioctl(g.vcpu, KVM_NMI, 0L), 0);
	guest_close(&g);
	munmap(at, size);
}

/* ---- ways to end a run ------------------------------------------------------------------------------------------- */

static struct kvm_run *kicked;

static void kick_nothing(int sig)
{
}

static void kick_info(int sig, siginfo_t *info, void *context)
{
}

static void kick_sets(int sig)
{
	kicked->immediate_exit = 1;
}

struct kicker {
	pthread_t who;
	pid_t tid;
	struct kvm_run *run;
	bool sets;
};

static void *kicker(void *arg)
{
	struct kicker *k = arg;

	usleep(30000);
	if (k->sets)
		__atomic_store_n(&k->run->immediate_exit, 1, __ATOMIC_RELEASE);
	/* Sent again until it is heard, as Cloud Hypervisor does. */
	for (unsigned n = 0; n < 500 && !__atomic_load_n(&k->tid, __ATOMIC_ACQUIRE); n++) {
		pthread_kill(k->who, SIGRTMIN);
		usleep(10000);
	}
	return NULL;
}

/* Traps 1 to 3: a loop in the guest, and each VMM's handler and flags. */
TEST(kicks)
{
	static const struct {
		const char *who;
		int flags;
		bool info, handler_sets, kicker_sets;
	} habits[] = {
	        {"Firecracker", SA_SIGINFO, true, false, true},
	        {"Cloud Hypervisor", SA_SIGINFO, true, false, false},
	        {"crosvm", SA_RESTART, false, true, false},
	        {"libkrun", SA_SIGINFO, true, false, false},
	        {"tinykvm: signal(), so SA_RESTART", SA_RESTART, false, false, false},
	        {"QEMU", 0, false, true, false},
	};

	for (unsigned n = 0; n < sizeof(habits) / sizeof(habits[0]); n++) {
		struct sigaction sa = {.sa_flags = habits[n].flags};
		struct kicker k = {.who = pthread_self(), .sets = habits[n].kicker_sets};
		unsigned before = test_bad_checks;
		pthread_t t;
		struct guest g;
		long rc;
		int err;

		bring_up(&vmms[0], &g);
		CODE(&g, 0x1000, 0xe6, 0xe9, 0xeb, 0xfe); /* out 0xe9, al; jmp self */
		CHECK_EQ(guest_run(&g), 0);
		CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
		k.run = kicked = g.run;
		if (habits[n].info)
			sa.sa_sigaction = kick_info;
		else
			sa.sa_handler = habits[n].handler_sets ? kick_sets : kick_nothing;
		sigaction(SIGRTMIN, &sa, NULL);
		pthread_create(&t, NULL, kicker, &k);
		rc = guest_run(&g);
		err = errno;
		__atomic_store_n(&k.tid, 1, __ATOMIC_RELEASE);
		pthread_join(t, NULL);
		CHECK_EQ(rc, -1);
		CHECK_EQ(err, EINTR);
		/* Clients exist that look at exit_reason all the same: not the OUT again. */
		CHECK_EQ(g.run->exit_reason, KVM_EXIT_INTR);
		g.run->immediate_exit = 1;
		CHECK_ERR(guest_run(&g), EINTR);
		guest_close(&g);
		if (test_bad_checks != before)
			printf("  ... of %s\n", habits[n].who);
	}
}

/* The drain before a snapshot: immediate_exit completes the port access first. */
TEST(immediate_exit_drains)
{
	struct kvm_regs r;
	struct guest g;

	bring_up(&vmms[1], &g);
	CODE(&g, 0x1000, 0xe5, 0xe9, 0xf4); /* in eax, 0xe9 */
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	memcpy(guest_io(&g), "\x78\x56\x34\x12", 4);
	g.run->immediate_exit = 1;
	CHECK_ERR(guest_run(&g), EINTR);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_REGS, &r), 0);
	CHECK_EQ(r.rax, 0x12345678);
	CHECK_EQ(r.rip, 0x1002);
	guest_close(&g);
}

/* gVisor: SIGCHLD stays blocked, KVM_RUN opens it, and rt_sigtimedwait() fetches it afterwards. */
TEST(signal_mask_of_the_run)
{
	struct {
		struct kvm_signal_mask m;
		uint64_t set;
	} mask = {.m.len = 8, .set = 0};
	struct timespec soon = {.tv_sec = 1};
	sigset_t chld;
	struct guest g;

	bring_up(&vmms[5], &g);
	CODE(&g, 0x1000, 0xeb, 0xfe);
	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	sigprocmask(SIG_BLOCK, &chld, NULL);
	CHECK_EQ(kioctl(g.vcpu, KVM_SET_SIGNAL_MASK, &mask), 0);
	syscall(SYS_tgkill, getpid(), gettid(), SIGCHLD);
	CHECK_ERR(guest_run(&g), EINTR);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_INTR);
	CHECK_EQ(sigtimedwait(&chld, NULL, &soon), SIGCHLD);
	sigprocmask(SIG_UNBLOCK, &chld, NULL);
	guest_close(&g);
}

/* QEMU: what GET_MSRS gives for each MSR of the list goes back with SET_MSRS, at each stop, reset and migration. */
TEST(every_msr_of_the_list_goes_back)
{
	struct {
		struct kvm_msr_list head;
		uint32_t index[1000];
	} list = {.head.nmsrs = 1000};
	struct guest g;
	uint64_t val;

	CHECK_EQ(guest_open(&g, 0x10000), 0);
	CHECK_EQ(kioctl(g.kvm, KVM_GET_MSR_INDEX_LIST, &list), 0);
	for (unsigned n = 0; n < list.head.nmsrs; n++) {
		if (list.index[n] == 0x4b564d06)
			continue; /* MSR_KVM_ASYNC_PF_INT: Linux wants a local APIC for it */
		if (get_msr(&g, list.index[n], &val) != 1 || set_msr(&g, list.index[n], val) != 1)
			CHECK_EQ(list.index[n], 0);
	}
	guest_close(&g);
}

/* What the client says of the processor's weaknesses is what is read; a processor model of old says nothing. */
TEST(arch_capabilities_are_the_clients)
{
	struct guest g;
	uint64_t val;

	CHECK_EQ(guest_open(&g, 0x10000), 0);
	for (uint64_t n = 0; n < 2; n++) {
		CHECK_EQ(set_msr(&g, 0x10a, n), 1);
		CHECK_EQ(get_msr(&g, 0x10a, &val), 1);
		CHECK_EQ(val, n);
	}
	/* The guest may not write it. mov ecx, 0x10a; wrmsr: #GP, and there is no IDT in its memory. */
	CODE(&g, 0x1000, 0x66, 0xb9, 0x0a, 0x01, 0x00, 0x00, 0x0f, 0x30, 0xe6, 0x10);
	CHECK_EQ(guest_start16(&g, 0x1000), 0);
	CODE(&g, 0x2000, 0xf4);
	*(uint32_t *)(g.ram + 13 * 4) = 0x2000;
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_HLT);
	guest_close(&g);
}

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
