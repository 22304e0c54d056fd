/*
 * more12.c: parts of version 12 that few clients use, or that only show over time: memory that the client does not
 * have, system management mode, split chips, MSRs that the client answers, and a thousand VMs. Runs on Linux' KVM too.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>

#include "client12.h"
#include "test.h"

#define HOLE 0x100000 /* guest physical address of a page that tests take away */

/* mov bx, 0xffff; mov ds, bx; then code that uses ds:0x10 = HOLE. */
#define SET_DS 0xbb, 0xff, 0xff, 0x8e, 0xdb

static uint8_t *hole_open(struct guest *g, int prot)
{
	uint8_t *p = mmap(NULL, 0x1000, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK_EQ(guest_open(g, 0x10000), 0);
	CHECK_EQ(region(g->vm, 1, 0, HOLE, 0x1000, p), 0);
	return p;
}

TEST(read_of_memory_the_client_has_not)
{
	struct guest g;
	uint8_t *p = hole_open(&g, PROT_NONE);

	CODE(&g, 0x1000, SET_DS, 0xa0, 0x10, 0x00, 0xe6, 0x10, 0xf4); /* mov al, [0x10]; out 0x10, al; hlt */
	CHECK_EQ(guest_start16(&g, 0x1000), 0);
	CHECK_ERR(guest_run(&g), EFAULT);
	CHECK_ERR(guest_run(&g), EFAULT);
	mprotect(p, 0x1000, PROT_READ | PROT_WRITE);
	p[0] = 0x5a;
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(guest_io(&g)[0], 0x5a);
	guest_close(&g);
	munmap(p, 0x1000);
}

TEST(write_to_memory_the_client_may_not)
{
	struct guest g;
	uint8_t *p = hole_open(&g, PROT_READ);
	struct kvm_regs r;

	CODE(&g, 0x1000, SET_DS, 0xb0, 0x77, 0xa2, 0x10, 0x00, 0xf4); /* mov al, 0x77; mov [0x10], al; hlt */
	CHECK_EQ(guest_start16(&g, 0x1000), 0);
	CHECK_ERR(guest_run(&g), EFAULT);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_REGS, &r), 0);
	CHECK_EQ(r.rip, 0x1007);
	mprotect(p, 0x1000, PROT_READ | PROT_WRITE);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_HLT);
	CHECK_EQ(p[0], 0x77);
	guest_close(&g);
	munmap(p, 0x1000);
}

TEST(code_in_memory_the_client_has_not)
{
	struct guest g;
	uint8_t *p = hole_open(&g, PROT_NONE);

	CODE(&g, 0x1000, 0xea, 0x10, 0x00, 0xff, 0xff); /* jmp 0xffff:0x10 */
	CHECK_EQ(guest_start16(&g, 0x1000), 0);
	CHECK_ERR(guest_run(&g), EFAULT);
	mprotect(p, 0x1000, PROT_READ | PROT_WRITE);
	p[0] = 0xf4;
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_HLT);
	guest_close(&g);
	munmap(p, 0x1000);
}

/* Protected mode with paging whose directory is nowhere. */
TEST(page_tables_in_memory_the_client_has_not)
{
	struct guest g;
	uint8_t *p = hole_open(&g, PROT_NONE);
	struct kvm_sregs s;

	CODE(&g, 0x1000, 0xf4);
	CHECK_EQ(guest_start16(&g, 0x1000), 0);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_SREGS, &s), 0);
	s.cs = (struct kvm_segment){.limit = ~0u, .selector = 8, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1};
	s.ds = s.es = s.fs = s.gs = s.ss =
	        (struct kvm_segment){.limit = ~0u, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
	s.cr0 |= 0x80000001;
	s.cr4 |= 0x10;
	s.cr3 = HOLE;
	CHECK_EQ(kioctl(g.vcpu, KVM_SET_SREGS, &s), 0);
	CHECK_ERR(guest_run(&g), EFAULT);
	mprotect(p, 0x1000, PROT_READ | PROT_WRITE);
	*(uint32_t *)(void *)p = 0x83; /* 4 MiB at 0 */
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_HLT);
	guest_close(&g);
	munmap(p, 0x1000);
}

/* ---- what CPUID takes away --------------------------------------------------------------------------------------- */

/* Flat 32-bit code, with this CPUID or none: the vector of its first fault, 0 when there is none. */
static unsigned first_fault(const uint8_t *code, size_t n, const void *cpuid)
{
	struct guest g;
	unsigned what;

	CHECK_EQ(guest_open(&g, 0x10000), 0);
	if (cpuid)
		CHECK_EQ(kioctl(g.vcpu, KVM_SET_CPUID2, cpuid), 0);
	CHECK_EQ(guest_start32(&g, 0x1000), 0);
	memcpy(g.ram + 0x1000, code, n);
	g.ram[0x1000 + n] = 0xe6; /* out 0, al: no fault */
	g.ram[0x1000 + n + 1] = 0;
	for (unsigned v = 0; v < 32; v++) {
		const uint8_t say[] = {0xe6, (uint8_t)v};

		memcpy(g.ram + 0x3000 + 16 * v, say, 2);
		guest_gate32(&g, v, 0x3000 + 16 * v);
	}
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	what = g.run->io.port;
	guest_close(&g);
	return what;
}

/*
 * A guest whose CPUID lacks a feature that the processor can take away has it not. ecx, ebx, edx of leaf 1, 7 and
 * 0x80000001 as given, with the vendor in leaf 0.
 */
static unsigned fault_with(const uint8_t *code, size_t n, uint32_t ecx1, uint32_t ebx7, uint32_t edx8, bool amd)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 e[5];
	} c = {.head.nent = 5,
	       .e = {{.function = 0, .eax = 7},
	             {.function = 1, .ecx = ecx1, .edx = 0x61},
	             {.function = 7, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX, .ebx = ebx7},
	             {.function = 0x80000000u, .eax = 0x80000001u},
	             {.function = 0x80000001u, .edx = edx8}}};

	memcpy(&c.e[0].ebx, amd ? "Auth" : "Genu", 4);
	memcpy(&c.e[0].edx, amd ? "enti" : "ineI", 4);
	memcpy(&c.e[0].ecx, amd ? "cAMD" : "ntel", 4);
	return first_fault(code, n, &c);
}

TEST(features_that_cpuid_takes_away)
{
	static const uint8_t osxsave[] = {0xb8, 0, 0, 4, 0, 0x0f, 0x22, 0xe0},
	                     smep[] = {0xb8, 0, 0, 0x10, 0, 0x0f, 0x22, 0xe0};
	static const uint8_t rdtscp[] = {0x0f, 0x01, 0xf9},
	                     invpcid[] = {0x31, 0xc0, 0x66, 0x0f, 0x38, 0x82, 0x05, 0, 0x50, 0, 0};
	static const uint8_t nx[] = {0xb9, 0x80, 0, 0, 0xc0, 0xb8, 0, 8, 0, 0, 0x31, 0xd2, 0x0f, 0x30};
	static const uint8_t aux[] = {0xb9, 3, 1, 0, 0xc0, 0x0f, 0x32}, spec[] = {0xb9, 0x48, 0, 0, 0, 0x0f, 0x32};
	static const uint8_t pred[] = {0xb9, 0x49, 0, 0, 0, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30};
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 e[128];
	} s = {.head.nent = 128};
	uint32_t ecx1 = 0, ebx7 = 0, edx8 = 0;
	int kvm = kopen();

	CHECK_EQ(kioctl(kvm, KVM_GET_SUPPORTED_CPUID, &s), 0);
	kclose(kvm);
	for (unsigned n = 0; n < s.head.nent; n++) {
		ecx1 |= s.e[n].function == 1 ? s.e[n].ecx : 0;
		ebx7 |= s.e[n].function == 7 && s.e[n].index == 0 ? s.e[n].ebx : 0;
		edx8 |= s.e[n].function == 0x80000001u ? s.e[n].edx : 0;
	}
#define FAULT(code, ...) fault_with(code, sizeof(code), __VA_ARGS__, false)
	CHECK_EQ(FAULT(osxsave, ecx1 & ~(1u << 26), ebx7, edx8), 13);
	CHECK_EQ(FAULT(osxsave, ecx1, ebx7, edx8), ecx1 >> 26 & 1 ? 0 : 13);
	CHECK_EQ(FAULT(smep, ecx1, ebx7 & ~(1u << 7), edx8), 13);
	CHECK_EQ(FAULT(smep, ecx1, ebx7, edx8), ebx7 >> 7 & 1 ? 0 : 13);
	CHECK_EQ(FAULT(nx, ecx1, ebx7, edx8 & ~(1u << 20)), 13);
	CHECK_EQ(FAULT(nx, ecx1, ebx7, edx8), 0);
	CHECK_EQ(FAULT(invpcid, ecx1, ebx7 & ~(1u << 10), edx8), 6);
	CHECK_EQ(FAULT(invpcid, ecx1, ebx7, edx8), ebx7 >> 10 & 1 ? 0 : 6);
	CHECK_EQ(FAULT(rdtscp, ecx1, ebx7, edx8 & ~(1u << 27)), 6);
	CHECK_EQ(FAULT(rdtscp, ecx1, ebx7, edx8), edx8 >> 27 & 1 ? 0 : 6);
	CHECK_EQ(FAULT(aux, ecx1, ebx7, edx8 & ~(1u << 27)), 13);
	CHECK_EQ(FAULT(aux, ecx1, ebx7, edx8), edx8 >> 27 & 1 ? 0 : 13);
	CHECK_EQ(FAULT(spec, ecx1, ebx7, edx8), 13);
	CHECK_EQ(FAULT(pred, ecx1, ebx7, edx8), 13);
#undef FAULT
	/* Without KVM_SET_CPUID2 it has none of them, but for the bits of CR4. */
	CHECK_EQ(first_fault(nx, sizeof(nx), NULL), 13);
	CHECK_EQ(first_fault(aux, sizeof(aux), NULL), 13);
	CHECK_EQ(first_fault(invpcid, sizeof(invpcid), NULL), 6);
	if (ebx7 >> 7 & 1)
		CHECK_EQ(first_fault(smep, sizeof(smep), NULL), 0);
}

/* A guest of AMD's sort has SYSCALL outside 64-bit mode, on whatever host: here from flat 32-bit code to itself. */
TEST(syscall_follows_the_guests_vendor)
{
	/* EFER.SCE; STAR: EIP 0x1020, CS 8; syscall; nothing */
	static const uint8_t code[0x20] = {0xb9, 0x80, 0,    0,    0xc0, 0xb8, 1,    0,    0,    0,
	                                   0x31, 0xd2, 0x0f, 0x30, 0xfe, 0xc1, 0xb8, 0x20, 0x10, 0,
	                                   0,    0xb2, 8,    0x0f, 0x30, 0x0f, 0x05, 0x0f, 0x0b};

	CHECK_EQ(fault_with(code, sizeof(code), 0, 0, 1u << 11, true), 0);
}

/* ---- system management mode -------------------------------------------------------------------------------------- */

TEST(smi_and_rsm)
{
	struct guest g;
	struct kvm_vcpu_events e;
	uint8_t *smram = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_regs r;

	CHECK_EQ(guest_open(&g, 0x10000), 0);
	CHECK_EQ(region(g.vm, 1 << 16, 0, 0x30000, 0x10000, smram), 0);
	memcpy(smram + 0x8000, "\xb0\x99\xe6\x20\x0f\xaa", 6); /* mov al, 0x99; out 0x20, al; rsm */
	CODE(&g, 0x1000, 0xb0, 0x11, 0xe6, 0x10, 0xe6, 0x11, 0xf4);
	CHECK_EQ(guest_start16(&g, 0x1000), 0);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->io.port, 0x10);
	CHECK_EQ(g.run->flags & KVM_RUN_X86_SMM, 0);
	CHECK_EQ(kioctl(g.vcpu, KVM_SMI, 0L), 0);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->io.port, 0x20);
	CHECK_EQ(guest_io(&g)[0], 0x99);
	CHECK_EQ(g.run->flags & KVM_RUN_X86_SMM, KVM_RUN_X86_SMM);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_VCPU_EVENTS, &e), 0);
	CHECK_EQ(e.smi.smm, 1);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_REGS, &r), 0);
	CHECK_EQ(r.rip, 0x8002 + (r.rip == 0x8004 ? 2 : 0));
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->io.port, 0x11);
	/* AL came back with everything else. */
	CHECK_EQ(guest_io(&g)[0], 0x11);
	CHECK_EQ(g.run->flags & KVM_RUN_X86_SMM, 0);
	guest_close(&g);
	munmap(smram, 0x10000);
}

/* ---- split chips ------------------------------------------------------------------------------------------------- */

TEST(split_chips_tell_eois)
{
	struct kvm_enable_cap cap = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
	struct {
		struct kvm_irq_routing head;
		struct kvm_irq_routing_entry e[1];
	} routes = {.head.nr = 1};
	/* mov eax/edx; xAPIC on: real mode cannot reach it, so the vector comes through 32-bit code with flat segments.
	 */
	struct kvm_irq_level line = {.irq = 5, .level = 1};
	struct kvm_sregs s;
	struct kvm_regs r = {.rip = 0x1000, .rsp = 0x4000, .rflags = 2};
	struct guest g;
	uint32_t *idt;

	CHECK_EQ(guest_vm(&g, kopen(), 0x10000), 0);
	CHECK_EQ(kioctl(g.vm, KVM_ENABLE_CAP, &cap), 0);
	CHECK_ERR(kioctl(g.vm, KVM_ENABLE_CAP, &cap), EEXIST);
	CHECK_ERR(kioctl(g.vm, KVM_CREATE_IRQCHIP, 0L), EEXIST);
	CHECK_EQ(guest_vcpu(&g, 0), 0);
	/* Level-triggered, vector 0x41. */
	routes.e[0] = (struct kvm_irq_routing_entry){.gsi = 5, .type = KVM_IRQ_ROUTING_MSI};
	routes.e[0].u.msi.address_lo = 0xfee00000;
	routes.e[0].u.msi.data = 0x8041;
	CHECK_EQ(kioctl(g.vm, KVM_SET_GSI_ROUTING, &routes), 0);
	/* mov dword [0xfee000f0], 0x1ff; sti; hlt; out 0x11, al; jmp $ */
	CODE(&g, 0x1000, 0xc7, 0x05, 0xf0, 0, 0xe0, 0xfe, 0xff, 1, 0, 0, 0xfb, 0xf4, 0xe6, 0x11, 0xeb, 0xfe);
	/* mov dword [0xfee000b0], 0; out 0x10, al; iret */
	CODE(&g, 0x2000, 0xc7, 0x05, 0xb0, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0xe6, 0x10, 0xcf);
	/* GDT at 0x5000: code 8, data 16; IDT at 0x6000. */
	memcpy(g.ram + 0x5008, "\xff\xff\0\0\0\x9b\xcf\0\xff\xff\0\0\0\x93\xcf\0", 16);
	idt = (uint32_t *)(void *)(g.ram + 0x6000 + 8 * 0x41);
	idt[0] = 8u << 16 | 0x2000;
	idt[1] = 0x8e00;
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_SREGS, &s), 0);
	s.cs = (struct kvm_segment){.limit = ~0u, .selector = 8, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1};
	s.ds = s.es = s.fs = s.gs = s.ss =
	        (struct kvm_segment){.limit = ~0u, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
	s.gdt = (struct kvm_dtable){.base = 0x5000, .limit = 0x17};
	s.idt = (struct kvm_dtable){.base = 0x6000, .limit = 0x7ff};
	s.cr0 |= 1;
	CHECK_EQ(kioctl(g.vcpu, KVM_SET_SREGS, &s), 0);
	CHECK_EQ(kioctl(g.vcpu, KVM_SET_REGS, &r), 0);
	/* The line is raised once the APIC is on: a first run is cut short after that. */
	g.run->request_interrupt_window = 1;
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IRQ_WINDOW_OPEN);
	g.run->request_interrupt_window = 0;
	CHECK_EQ(kioctl(g.vm, KVM_IRQ_LINE, &line), 0);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IOAPIC_EOI);
	CHECK_EQ(g.run->eoi.vector, 0x41);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	CHECK_EQ(g.run->io.port, 0x10);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->io.port, 0x11);
	guest_close(&g);
}

/* ---- MSRs -------------------------------------------------------------------------------------------------------- */

TEST(client_answers_msrs)
{
	struct kvm_enable_cap cap = {.cap = KVM_CAP_X86_USER_SPACE_MSR,
	                             .args = {KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER}};
	struct kvm_msr_filter f = {.flags = KVM_MSR_FILTER_DEFAULT_ALLOW};
	uint8_t bits[8] = {0};
	struct guest g;
	struct kvm_regs r;

	CHECK_EQ(guest_open(&g, 0x10000), 0);
	CHECK_EQ(kioctl(g.vm, KVM_ENABLE_CAP, &cap), 0);
	f.ranges[0] =
	        (struct kvm_msr_filter_range){.flags = KVM_MSR_FILTER_READ, .nmsrs = 1, .base = 0x174, .bitmap = bits};
	CHECK_EQ(kioctl(g.vm, KVM_X86_SET_MSR_FILTER, &f), 0);
	/* mov ecx, 0x174; rdmsr; mov ecx, 0x12345678; wrmsr; hlt */
	CODE(&g, 0x1000, 0x66, 0xb9, 0x74, 1, 0, 0, 0x0f, 0x32, 0x66, 0xb9, 0x78, 0x56, 0x34, 0x12, 0x0f, 0x30, 0xf4);
	CHECK_EQ(guest_start16(&g, 0x1000), 0);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_X86_RDMSR);
	CHECK_EQ(g.run->msr.index, 0x174);
	CHECK_EQ(g.run->msr.reason, KVM_MSR_EXIT_REASON_FILTER);
	g.run->msr.data = 0x1122334455667788;
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_X86_WRMSR);
	CHECK_EQ(g.run->msr.index, 0x12345678);
	CHECK_EQ(g.run->msr.data, 0x1122334455667788);
	CHECK_EQ(g.run->msr.reason, KVM_MSR_EXIT_REASON_UNKNOWN);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_HLT);
	CHECK_EQ(kioctl(g.vcpu, KVM_GET_REGS, &r), 0);
	CHECK_EQ(r.rdx, 0x11223344);
	guest_close(&g);
}

/* ---- the dirty ring ---------------------------------------------------------------------------------------------- */

/* The guest writes a byte to each of 224 pages from 0x10000 on, again and again. */
TEST(dirty_ring)
{
	struct kvm_enable_cap c = {.cap = KVM_CAP_DIRTY_LOG_RING, .args = {4096}};
	struct kvm_dirty_gfn *ring;
	unsigned seen = 0, next = 0, full = 0;
	bool page[224] = {0};
	struct kvm_dirty_log log = {.slot = 0};
	struct guest g;

	memset(&g, 0, sizeof(g));
	g.size = 0x100000;
	g.kvm = kopen();
	g.vm = kioctl(g.kvm, KVM_CREATE_VM, 0L);
	CHECK_EQ(kioctl(g.vm, KVM_ENABLE_CAP, &c), 0);
	CHECK_ERR(kioctl(g.vm, KVM_ENABLE_CAP, &c), EINVAL);
	g.ram = mmap(NULL, g.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK_EQ(region(g.vm, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, g.size, g.ram), 0);
	CHECK_EQ(guest_vcpu(&g, 0), 0);
	ring = kmmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, g.vcpu, KVM_DIRTY_LOG_PAGE_OFFSET * 4096);
	CHECK(ring != MAP_FAILED);
	CHECK_ERR(kioctl(g.vm, KVM_GET_DIRTY_LOG, &log), ENXIO);
	/* mov bx, 0x1000; l: mov ds, bx; inc byte [0]; add bx, 0x100; cmp bx, 0xf000; jne l; out 0x10, al; jmp start */
	CODE(&g, 0x1000, 0xbb, 0, 0x10, 0x8e, 0xdb, 0xfe, 6, 0, 0, 0x81, 0xc3, 0, 1, 0x81, 0xfb, 0, 0xf0, 0x75, 0xf0,
	     0xe6, 0x10, 0xeb, 0xe9);
	CHECK_EQ(guest_start16(&g, 0x1000), 0);
	for (unsigned n = 0; n < 20 && (seen < 224 || !full); n++) {
		CHECK_EQ(guest_run(&g), 0);
		full += g.run->exit_reason == KVM_EXIT_DIRTY_RING_FULL;
		/* The client leaves the first round alone, so that the ring fills up. */
		for (; full && (ring[next % 256].flags & KVM_DIRTY_GFN_F_DIRTY); next++) {
			struct kvm_dirty_gfn *e = &ring[next % 256];

			CHECK_EQ(e->slot, 0);
			if (e->offset >= 0x10 && e->offset < 0xf0) {
				seen += !page[e->offset - 0x10];
				page[e->offset - 0x10] = true;
			}
			e->flags |= KVM_DIRTY_GFN_F_RESET;
		}
		CHECK(kioctl(g.vm, KVM_RESET_DIRTY_RINGS, 0L) >= 0);
	}
	CHECK_EQ(seen, 224);
	CHECK(full > 0);
	munmap(ring, 4096);
	guest_close(&g);
}

/* ---- vCPUs that wait for each other ------------------------------------------------------------------------------ */

static void *run_vcpu(void *arg)
{
	struct guest *g = arg;

	CHECK_EQ(guest_run(g), 0);
	CHECK_EQ(g->run->exit_reason, KVM_EXIT_HLT);
	return NULL;
}

/* Two vCPUs count to 1024 in turns, with PAUSE while it is the other's, on one processor: whoever spins gives it away
 * before the host's scheduler takes it. A slow or loaded machine gets several tries. */
TEST(spinning_vcpus_share_a_processor)
{
	struct kvm_regs odd = {.rip = 0x1000, .rsp = 0x1000, .rflags = 2, .rdx = 1};
	cpu_set_t all, one;
	double ms = 0;

	CHECK_EQ(sched_getaffinity(0, sizeof(all), &all), 0);
	for (unsigned cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &all))
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
	}
	CHECK_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
	for (unsigned n = 0; n < 5; n++) {
		struct guest g, h;
		struct timespec a, b;
		pthread_t t;

		CHECK_EQ(guest_open(&g, 0x10000), 0);
		h = g;
		h.vcpu = kioctl(g.vm, KVM_CREATE_VCPU, 1L);
		h.run = kmmap(NULL, h.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, h.vcpu, 0);
		/* l: mov ax, [0x500]; mov bx, ax; and bl, 1; cmp bl, dl; je go; pause; jmp l
		 * go: inc word [0x500]; cmp ax, 1022; jb l; hlt */
		CODE(&g, 0x1000, 0xa1, 0, 5, 0x89, 0xc3, 0x80, 0xe3, 1, 0x38, 0xd3, 0x74, 4, 0xf3, 0x90, 0xeb, 0xf0,
		     0xff, 6, 0, 5, 0x3d, 0xfe, 3, 0x72, 0xe7, 0xf4);
		CHECK_EQ(guest_start16(&g, 0x1000), 0);
		CHECK_EQ(guest_start16(&h, 0x1000), 0);
		CHECK_EQ(kioctl(h.vcpu, KVM_SET_REGS, &odd), 0);
		clock_gettime(CLOCK_MONOTONIC, &a);
		CHECK_EQ(pthread_create(&t, NULL, run_vcpu, &h), 0);
		run_vcpu(&g);
		pthread_join(t, NULL);
		clock_gettime(CLOCK_MONOTONIC, &b);
		munmap(h.run, h.run_size);
		kclose(h.vcpu);
		guest_close(&g);
		ms = (double)(b.tv_sec - a.tv_sec) * 1e3 + (double)(b.tv_nsec - a.tv_nsec) / 1e6;
		if (ms < 500)
			break;
	}
	CHECK_EQ(sched_setaffinity(0, sizeof(all), &all), 0);
	CHECK(ms < 500);
}

/* ---- a thousand VMs ---------------------------------------------------------------------------------------------- */

static unsigned entries(const char *path)
{
	DIR *d = opendir(path);
	unsigned n = 0;

	while (d && readdir(d))
		n++;
	closedir(d);
	return n;
}

static unsigned maps(void)
{
	FILE *f = fopen("/proc/self/maps", "r");
	unsigned n = 0;
	int c;

	while ((c = getc(f)) != EOF)
		n += c == '\n';
	fclose(f);
	return n;
}

static void one_vm(int kvm)
{
	struct kvm_pit_config pit = {0};
	struct guest g = {.kvm = kvm};
	struct kvm_irqfd f = {.gsi = 9};

	g.size = 0x10000;
	g.vm = kioctl(g.kvm, KVM_CREATE_VM, 0L);
	CHECK_EQ(kioctl(g.vm, KVM_CREATE_IRQCHIP, 0L), 0);
	CHECK_EQ(kioctl(g.vm, KVM_CREATE_PIT2, &pit), 0);
	f.fd = (unsigned)eventfd(0, EFD_NONBLOCK);
	CHECK_EQ(kioctl(g.vm, KVM_IRQFD, &f), 0);
	g.ram = mmap(NULL, g.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	CHECK_EQ(region(g.vm, 0, KVM_MEM_LOG_DIRTY_PAGES, 0, g.size, g.ram), 0);
	CHECK_EQ(guest_vcpu(&g, 0), 0);
	CODE(&g, 0x1000, 0xe6, 0x10, 0xf4);
	CHECK_EQ(guest_start16(&g, 0x1000), 0);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run->exit_reason, KVM_EXIT_IO);
	close((int)f.fd);
	munmap(g.run, g.run_size);
	kclose(g.vcpu);
	kclose(g.vm);
	munmap(g.ram, g.size);
}

TEST(a_thousand_vms_leave_nothing)
{
	int kvm = kopen();
	unsigned fds, tasks, lines;

	for (unsigned n = 0; n < 10; n++)
		one_vm(kvm);
	fds = entries("/proc/self/fd");
	tasks = entries("/proc/self/task");
	lines = maps();
	for (unsigned n = 0; n < 1000 && !test_bad_checks; n++)
		one_vm(kvm);
	CHECK_EQ(entries("/proc/self/fd"), fds);
	CHECK_EQ(entries("/proc/self/task"), tasks);
	/* What leaks leaks a thousand times; the allocator may keep some (a sanitizer's keeps freed memory for a
	 * while). */
	CHECK(maps() <= lines + 100);
	kclose(kvm);
}

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
