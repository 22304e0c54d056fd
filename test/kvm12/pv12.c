/*
 * pv12.c: what guests and clients may tell a local APIC besides its registers: the end of an interrupt in memory
 * (MSR_KVM_PV_EOI_EN), interprocessor interrupts by hypercall, the page of KVM_SET_VAPIC_ADDR, and the exits that
 * KVM_TPR_ACCESS_REPORTING asks for. The same program runs on Linux' KVM, and passes there but for one MSR that 6.1
 * refuses.
 */
#include <linux/kvm_para.h>
#include <signal.h>

#include "client12.h"
#include "test.h"

#define CODE_AT 0x1000u
#define VAPIC 0x5000u
#define EOI_WORD 0x6000u

/* A guest with chips, at 32-bit code; interrupts of vectors 0x41 and 0x51 come to 0x2000 and 0x3000. */
static void open32(struct guest *g)
{
	CHECK_EQ(guest_open_chips(g, 0x10000), 0);
	CHECK_EQ(guest_start32(g, CODE_AT), 0);
	guest_gate32(g, 0x41, 0x2000);
	guest_gate32(g, 0x51, 0x3000);
}

static void offered(struct guest *g, struct kvm_cpuid2 *c, unsigned size)
{
	memset(c, 0, size);
	c->nent = 100;
	CHECK_EQ(kioctl(g->kvm, KVM_GET_SUPPORTED_CPUID, c), 0);
	CHECK_EQ(kioctl(g->vcpu, KVM_SET_CPUID2, c), 0);
}

static uint32_t features(struct guest *g)
{
	static union {
		struct kvm_cpuid2 c;
		char room[sizeof(struct kvm_cpuid2) + 100 * sizeof(struct kvm_cpuid_entry2)];
	} u;

	offered(g, &u.c, sizeof(u));
	for (unsigned n = 0; n < u.c.nent; n++)
		if (u.c.entries[n].function == KVM_CPUID_FEATURES)
			return u.c.entries[n].eax;
	return 0;
}

static int message(struct guest *g, uint8_t vector)
{
	struct kvm_msi m = {.address_lo = 0xfee00000, .data = vector};

	return kioctl(g->vm, KVM_SIGNAL_MSI, &m);
}

/* The port that the guest writes next; its AL. */
static int port(struct guest *g, uint8_t *al)
{
	if (guest_run(g) != 0 || g->run->exit_reason != KVM_EXIT_IO)
		return -(int)g->run->exit_reason;
	*al = *guest_io(g);
	return g->run->io.port;
}

static bool in_service(struct guest *g, unsigned vector)
{
	struct kvm_lapic_state l;

	CHECK_EQ(kioctl(g->vcpu, KVM_GET_LAPIC, &l), 0);
	return l.regs[0x100 + vector / 32 * 16 + vector % 32 / 8] >> (vector % 8) & 1;
}

static uint64_t msr_of(struct guest *g, uint32_t msr)
{
	uint64_t val;

	CHECK_EQ(get_msr(g, msr, &val), 1);
	return val;
}

/* ---- the task priority ------------------------------------------------------------------------------------------- */

static void tpr_exit(struct guest *g, bool write, uint64_t at, uint64_t next)
{
	struct kvm_regs r;

	CHECK_EQ(guest_run(g), 0);
	CHECK_EQ(g->run->exit_reason, KVM_EXIT_TPR_ACCESS);
	CHECK_EQ(g->run->tpr_access.is_write, write);
	CHECK_EQ(g->run->tpr_access.rip, at);
	CHECK_EQ(kioctl(g->vcpu, KVM_GET_REGS, &r), 0);
	CHECK_EQ(r.rip, next);
}

TEST(tpr_accesses_are_reported)
{
	struct kvm_tpr_access_ctl ctl = {.enabled = 1, .flags = 1};
	struct kvm_regs r;
	struct guest g;
	uint8_t al;

	open32(&g);
	if (kioctl(g.vm, KVM_CHECK_EXTENSION, KVM_CAP_VAPIC) <= 0) {
		puts("tpr_accesses_are_reported: the processor has its own way here");
		guest_close(&g);
		return;
	}
	/* mov dword [0xfee00080], 0x20; mov eax, [0xfee00080]; out 0x10, al */
	CODE(&g, CODE_AT, 0xc7, 0x05, 0x80, 0x00, 0xe0, 0xfe, 0x20, 0x00, 0x00, 0x00, 0xa1, 0x80, 0x00, 0xe0, 0xfe,
	     0xe6, 0x10);
	CHECK_ERR(kioctl(g.vcpu, KVM_TPR_ACCESS_REPORTING, &ctl), EINVAL);
	CHECK_ERR(kioctl(g.vcpu, KVM_TPR_ACCESS_REPORTING, NULL), EFAULT);
	ctl.flags = 0;
	CHECK_EQ(kioctl(g.vcpu, KVM_TPR_ACCESS_REPORTING, &ctl), 0);
	tpr_exit(&g, true, CODE_AT, CODE_AT + 10);
	tpr_exit(&g, false, CODE_AT + 10, CODE_AT + 15);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_REGS, &r), 0);
	CHECK_EQ(r.rax, 0x20);
	CHECK_EQ(port(&g, &al), 0x10);
	/* Off again. */
	ctl.enabled = 0;
	CHECK_EQ(kioctl(g.vcpu, KVM_TPR_ACCESS_REPORTING, &ctl), 0);
	CHECK_EQ(guest_start32(&g, CODE_AT), 0);
	CHECK_EQ(port(&g, &al), 0x10);
	guest_close(&g);
}

/* A guest that was patched keeps its priority in the page, and asks with a hypercall when it has lowered it. */
TEST(priority_in_the_vapic_page)
{
	struct kvm_vapic_addr at = {.vapic_addr = VAPIC};
	struct guest g;
	uint8_t al;

	open32(&g);
	/* mov dword [0xfee000f0], 0x1ff; mov byte [0x5000], 0x50; sti; out 0x10, al; out 0x12, al; mov byte [0x5000],
	 * 0; mov eax, KVM_HC_VAPIC_POLL_IRQ; vmcall; out 0x11, al */
	CODE(&g, CODE_AT, 0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0x00, 0x00, 0xc6, 0x05, 0x00, 0x50, 0x00,
	     0x00, 0x50, 0xfb, 0xe6, 0x10, 0xe6, 0x12, 0xc6, 0x05, 0x00, 0x50, 0x00, 0x00, 0x00, 0xb8, 0x01, 0x00, 0x00,
	     0x00, 0x0f, 0x01, 0xc1, 0xe6, 0x11);
	/* out 0x90, al; mov dword [0xfee000b0], 0; iretd */
	CODE(&g, 0x2000, 0xe6, 0x90, 0xc7, 0x05, 0xb0, 0x00, 0xe0, 0xfe, 0x00, 0x00, 0x00, 0x00, 0xcf);
	CHECK_EQ(kioctl(g.vcpu, KVM_SET_VAPIC_ADDR, &at), 0);
	CHECK_EQ(port(&g, &al), 0x10);
	CHECK_EQ(message(&g, 0x41), 1);
	CHECK_EQ(port(&g, &al), 0x12);
	CHECK_EQ(g.ram[VAPIC], 0x50);
	CHECK_EQ(g.ram[VAPIC + 3], 0x41); /* waits */
	CHECK_EQ(port(&g, &al), 0x90);
	CHECK_EQ(g.ram[VAPIC + 1], 0x40); /* in service */
	CHECK_EQ(g.ram[VAPIC + 3], 0);
	CHECK_EQ(port(&g, &al), 0x11);
	CHECK_EQ(g.ram[VAPIC + 1], 0);
	at.vapic_addr = 0x7ffff000;
	CHECK_ERR(kioctl(g.vcpu, KVM_SET_VAPIC_ADDR, &at), EINVAL);
	at.vapic_addr = 0;
	CHECK_EQ(kioctl(g.vcpu, KVM_SET_VAPIC_ADDR, &at), 0);
	guest_close(&g);
}

/* What the client sets between two runs counts, whatever the page says; also after it set registers with IF = 1. */
TEST(priority_set_by_the_client)
{
	for (unsigned with_regs = 0; with_regs < 2; with_regs++) {
		struct kvm_vapic_addr at = {.vapic_addr = VAPIC};
		struct kvm_lapic_state l;
		struct kvm_regs r;
		struct guest g;
		uint8_t al;

		open32(&g);
		/* mov dword [0xfee000f0], 0x1ff; mov byte [0x5000], 0x50; sti; out 0x10, al; mov eax, [0xfee00080]; out
		 * 0x11, al */
		CODE(&g, CODE_AT, 0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0x00, 0x00, 0xc6, 0x05, 0x00, 0x50,
		     0x00, 0x00, 0x50, 0xfb, 0xe6, 0x10, 0xa1, 0x80, 0x00, 0xe0, 0xfe, 0xe6, 0x11);
		CHECK_EQ(kioctl(g.vcpu, KVM_SET_VAPIC_ADDR, &at), 0);
		CHECK_EQ(port(&g, &al), 0x10);
		if (with_regs) {
			CHECK_EQ(kioctl(g.vcpu, KVM_GET_REGS, &r), 0);
			CHECK(r.rflags & 0x200);
			CHECK_EQ(kioctl(g.vcpu, KVM_SET_REGS, &r), 0);
		}
		CHECK_EQ(kioctl(g.vcpu, KVM_GET_LAPIC, &l), 0);
		CHECK_EQ(l.regs[0x80], 0x50);
		l.regs[0x80] = 0x20;
		CHECK_EQ(kioctl(g.vcpu, KVM_SET_LAPIC, &l), 0);
		CHECK_EQ(port(&g, &al), 0x11);
		CHECK_EQ(al, 0x20);
		CHECK_EQ(g.ram[VAPIC], 0x20);
		guest_close(&g);
	}
}

/* The page counts also behind a write to MSR_KVM_PV_EOI_EN. */
TEST(priority_behind_a_switch)
{
	struct kvm_vapic_addr at = {.vapic_addr = VAPIC};
	struct kvm_lapic_state l;
	struct guest g;
	uint8_t al;

	open32(&g);
	CHECK(features(&g) >> KVM_FEATURE_PV_EOI & 1);
	/* mov ecx, MSR_KVM_PV_EOI_EN; mov eax, 0x6001; xor edx, edx; wrmsr; mov byte [0x5000], 0x50; out 0x10, al */
	CODE(&g, CODE_AT, 0xb9, 0x04, 0x4d, 0x56, 0x4b, 0xb8, 0x01, 0x60, 0x00, 0x00, 0x31, 0xd2, 0x0f, 0x30, 0xc6,
	     0x05, 0x00, 0x50, 0x00, 0x00, 0x50, 0xe6, 0x10);
	CHECK_EQ(kioctl(g.vcpu, KVM_SET_VAPIC_ADDR, &at), 0);
	CHECK_EQ(port(&g, &al), 0x10);
	CHECK_EQ(msr_of(&g, MSR_KVM_PV_EOI_EN), 0x6001);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_LAPIC, &l), 0);
	CHECK_EQ(l.regs[0x80], 0x50);
	guest_close(&g);
}

/* ---- the end of an interrupt, in memory -------------------------------------------------------------------------- */

/* At `at`: btr dword [0x6000], 0; setc al; test al, al; jnz e; mov dword [0xfee000b0], 0; e: out PORT, al; iretd */
static void handler(struct guest *g, unsigned at, uint8_t port)
{
	const uint8_t code[] = {0x0f, 0xba, 0x35, 0x00, 0x60, 0x00, 0x00, 0x00, 0x0f, 0x92, 0xc0, 0x84, 0xc0, 0x75,
	                        0x0a, 0xc7, 0x05, 0xb0, 0x00, 0xe0, 0xfe, 0x00, 0x00, 0x00, 0x00, 0xe6, port, 0xcf};

	memcpy(g->ram + at, code, sizeof(code));
}

TEST(end_of_interrupt_in_memory)
{
	struct guest g;
	int taken = 0;
	uint8_t al;

	open32(&g);
	CHECK(features(&g) >> KVM_FEATURE_PV_EOI & 1);
	/* mov dword [0xfee000f0], 0x1ff; l: cli; out 0x10, al; sti; nop; jmp l */
	CODE(&g, CODE_AT, 0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0x00, 0x00, 0xfa, 0xe6, 0x10, 0xfb, 0x90,
	     0xeb, 0xf9);
	handler(&g, 0x2000, 0x90);
	handler(&g, 0x3000, 0x98);
	CHECK_EQ(set_msr(&g, MSR_KVM_PV_EOI_EN, EOI_WORD | 3), 0); /* not aligned */
	CHECK_EQ(set_msr(&g, MSR_KVM_PV_EOI_EN, EOI_WORD | 1), 1);
	CHECK_EQ(msr_of(&g, MSR_KVM_PV_EOI_EN), EOI_WORD | 1);
	CHECK_EQ(port(&g, &al), 0x10);
	/* Linux takes the offer back when the vCPU leaves the guest, as on a host that has other things to do. */
	for (int n = 0; n < 8; n++) {
		CHECK_EQ(message(&g, 0x41), 1);
		CHECK_EQ(port(&g, &al), 0x90);
		taken += al;
		CHECK(!in_service(&g, 0x41));
		CHECK_EQ(port(&g, &al), 0x10);
		CHECK_EQ(g.ram[EOI_WORD], 0);
	}
	CHECK(taken > 0);
	/* Two at once: the first one's end is the APIC's business, for the second is to come then. */
	CHECK_EQ(message(&g, 0x41), 1);
	CHECK_EQ(message(&g, 0x51), 1);
	CHECK_EQ(port(&g, &al), 0x98);
	CHECK_EQ(al, 0);
	CHECK_EQ(port(&g, &al), 0x90);
	CHECK_EQ(port(&g, &al), 0x10);
	CHECK(!in_service(&g, 0x41));
	CHECK(!in_service(&g, 0x51));
	/* Outside the guest the word says nothing, and what was not ended is in service. */
	CODE(&g, 0x2000, 0xe6, 0x92, 0xeb, 0x7c); /* out 0x92, al; jmp 0x2080 */
	handler(&g, 0x2080, 0x90);
	CHECK_EQ(message(&g, 0x41), 1);
	CHECK_EQ(port(&g, &al), 0x92);
	CHECK_EQ(g.ram[EOI_WORD], 0);
	CHECK(in_service(&g, 0x41));
	CHECK_EQ(port(&g, &al), 0x90);
	CHECK_EQ(port(&g, &al), 0x10);
	CHECK(!in_service(&g, 0x41));
	handler(&g, 0x2000, 0x90);
	CHECK_EQ(set_msr(&g, MSR_KVM_PV_EOI_EN, 0), 1);
	CHECK_EQ(message(&g, 0x41), 1);
	CHECK_EQ(port(&g, &al), 0x90);
	CHECK_EQ(al, 0);
	CHECK_EQ(port(&g, &al), 0x10);
	CHECK(!in_service(&g, 0x41));
	guest_close(&g);
}

/* An IOAPIC waits for the end of a level: it has to be told. */
TEST(a_level_ends_in_the_chip)
{
	struct kvm_irqchip chip = {.chip_id = KVM_IRQCHIP_IOAPIC};
	struct kvm_irq_level line = {.irq = 20, .level = 1};
	struct guest g;
	uint8_t al;

	open32(&g);
	features(&g);
	CODE(&g, CODE_AT, 0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0x00, 0x00, 0xfa, 0xe6, 0x10, 0xfb, 0x90,
	     0xeb, 0xf9);
	handler(&g, 0x2000, 0x90);
	CHECK_EQ(set_msr(&g, MSR_KVM_PV_EOI_EN, EOI_WORD | 1), 1);
	CHECK_EQ(port(&g, &al), 0x10);
	CHECK_EQ(kioctl(g.vm, KVM_GET_IRQCHIP, &chip), 0);
	chip.chip.ioapic.redirtbl[20].bits = 0x8041; /* level, vector 0x41, to APIC 0 */
	CHECK_EQ(kioctl(g.vm, KVM_SET_IRQCHIP, &chip), 0);
	CHECK_EQ(kioctl(g.vm, KVM_IRQ_LINE, &line), 0);
	for (int n = 0; n < 2; n++) { /* and again, for the line is still up */
		CHECK_EQ(port(&g, &al), 0x90);
		CHECK_EQ(al, 0);
	}
	line.level = 0;
	CHECK_EQ(kioctl(g.vm, KVM_IRQ_LINE, &line), 0);
	while (port(&g, &al) == 0x90)
		;
	CHECK_EQ(port(&g, &al), 0x10);
	CHECK(!in_service(&g, 0x41));
	guest_close(&g);
}

/* ---- asynchronous page faults ------------------------------------------------------------------------------------ */

/* Who switches them on hears that all pages are there, when its APIC is on; and again when it read that. */
TEST(all_pages_are_there)
{
	struct guest g;
	uint32_t token;
	uint8_t al;

	open32(&g);
	CHECK((features(&g) & (1u << KVM_FEATURE_ASYNC_PF | 1u << KVM_FEATURE_ASYNC_PF_INT)) ==
	      (1u << KVM_FEATURE_ASYNC_PF | 1u << KVM_FEATURE_ASYNC_PF_INT));
	/* out 0x94, al; mov dword [0xfee000f0], 0x1ff; sti; nop; l: out 0x10, al; jmp l */
	CODE(&g, CODE_AT, 0xe6, 0x94, 0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0x00, 0x00, 0xfb, 0x90, 0xe6,
	     0x10, 0xeb, 0xfc);
	/* out 0x90, al; mov dword [0xfee000b0], 0; iretd */
	CODE(&g, 0x2000, 0xe6, 0x90, 0xc7, 0x05, 0xb0, 0x00, 0xe0, 0xfe, 0x00, 0x00, 0x00, 0x00, 0xcf);
	CHECK_EQ(set_msr(&g, MSR_KVM_ASYNC_PF_EN, EOI_WORD << 4 | 0x10), 0);
	CHECK_EQ(set_msr(&g, MSR_KVM_ASYNC_PF_INT, 0x141), 0);
	CHECK_EQ(set_msr(&g, MSR_KVM_ASYNC_PF_INT, 0x41), 1);
	CHECK_EQ(set_msr(&g, MSR_KVM_ASYNC_PF_EN, VAPIC | KVM_ASYNC_PF_ENABLED | KVM_ASYNC_PF_DELIVERY_AS_INT), 1);
	CHECK_EQ(msr_of(&g, MSR_KVM_ASYNC_PF_EN), VAPIC | 9);
	CHECK_EQ(msr_of(&g, MSR_KVM_ASYNC_PF_INT), 0x41);
	CHECK_EQ(port(&g, &al), 0x94);
	CHECK_EQ(port(&g, &al), 0x90);
	memcpy(&token, g.ram + VAPIC + 4, 4);
	CHECK_EQ(token, ~0u);
	CHECK_EQ(port(&g, &al), 0x10);
	/* Not before the last one was read, and acknowledged. */
	CHECK_EQ(set_msr(&g, MSR_KVM_ASYNC_PF_EN, VAPIC | 9), 1);
	CHECK_EQ(port(&g, &al), 0x10);
	memset(g.ram + VAPIC + 4, 0, 4);
	CHECK_EQ(port(&g, &al), 0x10);
	CHECK_EQ(set_msr(&g, MSR_KVM_ASYNC_PF_ACK, 1), 1);
	CHECK_EQ(port(&g, &al), 0x90);
	memcpy(&token, g.ram + VAPIC + 4, 4);
	CHECK_EQ(token, ~0u);
	CHECK_EQ(port(&g, &al), 0x10);
	guest_close(&g);
}

static void nothing(int sig)
{
	(void)sig;
}

/* A vCPU that was restored in HLT wakes for it. */
TEST(all_pages_are_there_for_one_that_halts)
{
	const struct sigaction sa = {.sa_handler = nothing};
	struct kvm_mp_state halted = {.mp_state = KVM_MP_STATE_HALTED};
	struct guest g;
	uint8_t al;

	open32(&g);
	features(&g);
	/* mov dword [0xfee000f0], 0x1ff; out 0x94, al; sti; nop; out 0x94, al; l: hlt; out 0x10, al; jmp l */
	CODE(&g, CODE_AT, 0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0x00, 0x00, 0xe6, 0x94, 0xfb, 0x90, 0xe6,
	     0x94, 0xf4, 0xe6, 0x10, 0xeb, 0xfb);
	/* out 0x90, al; mov dword [0xfee000b0], 0; iretd */
	CODE(&g, 0x2000, 0xe6, 0x90, 0xc7, 0x05, 0xb0, 0x00, 0xe0, 0xfe, 0x00, 0x00, 0x00, 0x00, 0xcf);
	CHECK_EQ(port(&g, &al), 0x94);
	CHECK_EQ(port(&g, &al), 0x94);
	CHECK_EQ(set_msr(&g, MSR_KVM_ASYNC_PF_INT, 0x41), 1);
	CHECK_EQ(set_msr(&g, MSR_KVM_ASYNC_PF_EN, VAPIC | KVM_ASYNC_PF_ENABLED | KVM_ASYNC_PF_DELIVERY_AS_INT), 1);
	CHECK_EQ(kioctl(g.vcpu, KVM_SET_MP_STATE, &halted), 0);
	sigaction(SIGALRM, &sa, NULL);
	alarm(2);
	CHECK_EQ(port(&g, &al), 0x90);
	alarm(0);
	guest_close(&g);
}

/* A client without chips of ours writes what a reset leaves in the MSRs of all that CPUID offers. */
TEST(reset_values_need_no_apic)
{
	struct guest g;

	CHECK_EQ(guest_open(&g, 0x10000), 0);
	features(&g);
	CHECK_EQ(set_msr(&g, MSR_KVM_PV_EOI_EN, 0), 1);
	CHECK_EQ(set_msr(&g, MSR_KVM_ASYNC_PF_EN, 0), 1);
	CHECK_EQ(set_msr(&g, MSR_KVM_ASYNC_PF_INT, 0), 1); /* refused by Linux 6.1, whose QEMU dies of it */
	CHECK_EQ(set_msr(&g, MSR_KVM_ASYNC_PF_EN, VAPIC | 9), 0);
	CHECK_EQ(set_msr(&g, MSR_KVM_ASYNC_PF_INT, 0x41), 0);
	guest_close(&g);
}

/* ---- hypercalls -------------------------------------------------------------------------------------------------- */

TEST(interrupts_by_hypercall)
{
	struct kvm_regs r;
	struct guest g;
	uint8_t al;

	open32(&g);
	CHECK(features(&g) >> KVM_FEATURE_PV_SEND_IPI & 1);
	/* mov dword [0xfee000f0], 0x1ff; sti; mov eax, KVM_HC_SEND_IPI; mov ebx, 1; xor ecx, ecx; xor edx, edx;
	 * mov esi, 0x41; vmcall; mov edi, eax; mov eax, KVM_HC_SEND_IPI; mov esi, 0x40041; vmcall; out 0x11, al */
	CODE(&g, CODE_AT, 0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0x00, 0x00, 0xfb, 0xb8, 0x0a, 0x00, 0x00,
	     0x00, 0xbb, 0x01, 0x00, 0x00, 0x00, 0x31, 0xc9, 0x31, 0xd2, 0xbe, 0x41, 0x00, 0x00, 0x00, 0x0f, 0x01, 0xc1,
	     0x89, 0xc7, 0xb8, 0x0a, 0x00, 0x00, 0x00, 0xbe, 0x41, 0x00, 0x04, 0x00, 0x0f, 0x01, 0xc1, 0xe6, 0x11);
	CODE(&g, 0x2000, 0xe6, 0x90, 0xc7, 0x05, 0xb0, 0x00, 0xe0, 0xfe, 0x00, 0x00, 0x00, 0x00, 0xcf);
	CHECK_EQ(port(&g, &al), 0x90);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_REGS, &r), 0);
	CHECK_EQ(r.rax, 1); /* so many took it */
	CHECK_EQ(port(&g, &al), 0x11);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_REGS, &r), 0);
	CHECK_EQ(r.rdi, 1);
	CHECK_EQ((int32_t)r.rax, -22); /* KVM_EINVAL: a shorthand */
	guest_close(&g);
}

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
