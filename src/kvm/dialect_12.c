/*
 * dialect_12.c: requests on an open of /dev/kvm: what there is (capabilities, CPUID, MSR lists), and making VMs.
 *
 * Invariant: the answer to KVM_CHECK_EXTENSION is never negative, and positive only for what works.
 */
#define _GNU_SOURCE
#include "dialect_12.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../base/sys.h"
#include "../base/usercopy.h"

int sealed_memfd(const char *name, u64 size)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int err;

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)size) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
		return fd;
	err = -errno;
	sys_close(fd);
	return err;
}

/* ---- capabilities ------------------------------------------------------------------------------------------------ */

/* GAP(dirty-ring), GAP(stats-fd), GAP(msr-filter): DIRTY_LOG_RING, BINARY_STATS_FD, X86_USER_SPACE_MSR. */
static const struct {
	unsigned cap;
	int val;
} caps[] = {
        {KVM_CAP_HLT, 1},
        {KVM_CAP_USER_MEMORY, 1},
        {KVM_CAP_SET_TSS_ADDR, 1},
        {KVM_CAP_EXT_CPUID, 1},
        {KVM_CAP_EXT_EMUL_CPUID, 1},
        {KVM_CAP_CLOCKSOURCE, 1},
        {KVM_CAP_NR_VCPUS, VM_MAX_VCPUS},
        {KVM_CAP_MAX_VCPUS, VM_MAX_VCPUS},
        {KVM_CAP_MAX_VCPU_ID, VM_MAX_VCPUS},
        {KVM_CAP_NR_MEMSLOTS, SLOTS_12},
        {KVM_CAP_NOP_IO_DELAY, 1},
        {KVM_CAP_MP_STATE, 1},
        {KVM_CAP_COALESCED_MMIO, RING_PAGE},
        {KVM_CAP_COALESCED_PIO, 1},
        {KVM_CAP_SYNC_MMU, 1},
        {KVM_CAP_USER_NMI, 1},
        {KVM_CAP_SET_GUEST_DEBUG, 1},
        {KVM_CAP_GUEST_DEBUG_HW_BPS, 4},
        {KVM_CAP_SET_GUEST_DEBUG2, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_SW_BP |
                                           KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP},
        {KVM_CAP_IRQCHIP, 1},
        {KVM_CAP_PIT2, 1},
        {KVM_CAP_PIT_STATE2, 1},
        {KVM_CAP_REINJECT_CONTROL, 1},
        {KVM_CAP_IRQ_INJECT_STATUS, 1},
        {KVM_CAP_IRQFD, 1},
        {KVM_CAP_IRQFD_RESAMPLE, 1},
        {KVM_CAP_SIGNAL_MSI, 1},
        {KVM_CAP_TSC_DEADLINE_TIMER, 1},
        {KVM_CAP_IRQ_ROUTING, GSI_MAX},
        {KVM_CAP_MCE, MCE_BANKS},
        {KVM_CAP_DESTROY_MEMORY_REGION_WORKS, 1},
        {KVM_CAP_JOIN_MEMORY_REGIONS_WORKS, 1},
        {KVM_CAP_IOEVENTFD, 1},
        {KVM_CAP_IOEVENTFD_ANY_LENGTH, 1},
        {KVM_CAP_IOEVENTFD_NO_LENGTH, 1},
        {KVM_CAP_SET_IDENTITY_MAP_ADDR, 1},
        {KVM_CAP_ADJUST_CLOCK, KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC},
        {KVM_CAP_INTERNAL_ERROR_DATA, 1},
        {KVM_CAP_VCPU_EVENTS, 1},
        {KVM_CAP_DEBUGREGS, 1},
        {KVM_CAP_X86_ROBUST_SINGLESTEP, 1},
        {KVM_CAP_XSAVE, 1},
        {KVM_CAP_XSAVE2, sizeof(struct kvm_xsave)},
        {KVM_CAP_XCRS, 1},
        {KVM_CAP_GET_TSC_KHZ, 1},
        {KVM_CAP_KVMCLOCK_CTRL, 1},
        {KVM_CAP_READONLY_MEM, 1},
        {KVM_CAP_CHECK_EXTENSION_VM, 1},
        {KVM_CAP_IMMEDIATE_EXIT, 1},
        {KVM_CAP_SYNC_REGS, KVM_SYNC_X86_VALID_FIELDS},
        {KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET},
        {KVM_CAP_GET_MSR_FEATURES, 1},
        {KVM_CAP_ENABLE_CAP_VM, 1},
        {KVM_CAP_SREGS2, 1},
        {KVM_CAP_VCPU_ATTRIBUTES, 0},
};

long cap_check(unsigned long cap)
{
	for (unsigned n = 0; n < ARRAY_SIZE(caps); n++)
		if (caps[n].cap == cap)
			return caps[n].val;
	return 0;
}

/* ---- CPUID ------------------------------------------------------------------------------------------------------- */

#define L1C_X2APIC BIT(21)
#define L1D_APIC BIT(9)

/* The paravirtual features of leaf 0x40000001: both clock generations, no I/O delay, a stable clock. */
#define PV_FEATURES                                                                                                    \
	(BIT(0) /* CLOCKSOURCE */ | BIT(1) /* NOP_IO_DELAY */ | BIT(3) /* CLOCKSOURCE2 */ | BIT(24) /* STABLE_BIT */)

struct cpuid_list {
	struct kvm_cpuid_entry2 e[CPUID_MAX];
	unsigned n;
};

static void cpuid_one(struct cpuid_list *l, u32 leaf, u32 sub, bool indexed)
{
	struct kvm_cpuid_entry2 *e = &l->e[l->n];
	u32 out[4];

	if (l->n == CPUID_MAX)
		return;
	cpuid_leaf(leaf, sub, out);
	memset(e, 0, sizeof(*e));
	e->function = leaf;
	e->index = sub;
	e->flags = indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0;
	e->eax = out[0];
	e->ebx = out[1];
	e->ecx = out[2];
	e->edx = out[3];
	/* The local APIC is the client's, or ours. */
	if (leaf == 1) {
		e->ecx |= L1C_X2APIC;
		e->edx |= L1D_APIC;
		e->ebx &= 0xff00;
	}
	if (leaf == 0x80000001u && cpuid_is_amd())
		e->edx |= L1D_APIC;
	l->n++;
}

static void cpuid_list(struct cpuid_list *l)
{
	u32 out[4], max;

	cpuid_leaf(0, 0, out);
	max = out[0];
	for (u32 leaf = 0; leaf <= max; leaf++) {
		u32 subs = leaf == 4 && !cpuid_is_amd() ? 4 : leaf == 0xd ? 3 : 1;
		bool indexed = leaf == 4 || leaf == 7 || leaf == 0xb || leaf == 0xd;

		for (u32 sub = 0; sub < subs; sub++)
			cpuid_one(l, leaf, sub, indexed);
	}
	memset(&l->e[l->n], 0, 2 * sizeof(l->e[0]));
	l->e[l->n].function = 0x40000000;
	l->e[l->n].eax = 0x40000001;
	memcpy(&l->e[l->n].ebx, "KVMK", 4);
	memcpy(&l->e[l->n].ecx, "VMKV", 4);
	memcpy(&l->e[l->n].edx, "M\0\0\0", 4);
	l->n++;
	l->e[l->n].function = 0x40000001;
	l->e[l->n].eax = (u32)PV_FEATURES;
	l->n++;
	cpuid_leaf(0x80000000u, 0, out);
	max = out[0];
	for (u32 leaf = 0x80000000u; leaf <= max; leaf++)
		cpuid_one(l, leaf, 0, false);
}

long cpuid_supported(unsigned long arg, bool emulated)
{
	struct kvm_cpuid2 head;
	struct cpuid_list *l;
	long rc = user_read(&head, (void *)arg, sizeof(head));

	if (rc < 0)
		return rc;
	if (head.nent < 1)
		return -E2BIG;
	l = calloc(1, sizeof(*l));
	if (!l)
		return -ENOMEM;
	/* What we emulate at no cost is supported, so the second list says only where leaves end. */
	if (emulated)
		cpuid_one(l, 7, 0, true), l->e[0].eax = l->e[0].ebx = l->e[0].ecx = l->e[0].edx = 0;
	else
		cpuid_list(l);
	rc = -E2BIG;
	if (l->n > head.nent)
		goto out;
	rc = user_write((u8 *)arg + sizeof(head), l->e, l->n * sizeof(l->e[0]));
	if (rc < 0)
		goto out;
	head.nent = l->n;
	rc = user_write((void *)arg, &head, sizeof(head));
out:
	free(l);
	return rc;
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

long dialect_12_system(unsigned long req, unsigned long arg, struct made *made)
{
	switch (req) {
	case KVM_GET_API_VERSION:
		return arg ? -EINVAL : KVM_API_VERSION;
	case KVM_CREATE_VM:
		return vm12_create(arg, made);
	case KVM_CHECK_EXTENSION:
		return cap_check(arg);
	case KVM_GET_VCPU_MMAP_SIZE:
		return arg ? -EINVAL : RUN_PAGES * (long)PAGE_SIZE;
	case KVM_GET_SUPPORTED_CPUID:
		return cpuid_supported(arg, false);
	case KVM_GET_EMULATED_CPUID:
		return cpuid_supported(arg, true);
	case KVM_GET_MSR_INDEX_LIST:
		return msr_list(arg, false);
	case KVM_GET_MSR_FEATURE_INDEX_LIST:
		return msr_list(arg, true);
	case KVM_GET_MSRS:
		return feature_msrs(arg);
	case KVM_X86_GET_MCE_CAP_SUPPORTED:
		return mce_supported(arg);
	default:
		return -ENOTTY;
	}
}
