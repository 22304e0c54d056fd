/*
 * dialect_12.c: requests on an open of /dev/kvm: what there is (capabilities, CPUID, MSR lists), and making VMs; and
 * KVM_ENABLE_CAP of VMs and vCPUs.
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

/* KVM_X86_QUIRK_CD_NW_CLEARED is about the host's caches: nothing changes for the guest. */
#define QUIRKS                                                                                                         \
	(KVM_X86_QUIRK_LINT0_REENABLED | KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT | KVM_X86_QUIRK_FIX_HYPERCALL_INSN |       \
	 KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS | KVM_X86_QUIRK_CD_NW_CLEARED | KVM_X86_QUIRK_LAPIC_MMIO_HOLE |           \
	 KVM_X86_QUIRK_OUT_7E_INC_RIP)
#define MSR_EXITS (KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER)

static const struct {
	unsigned cap;
	int val;
} caps[] = {
        {KVM_CAP_HLT, 1},
        {KVM_CAP_VAPIC, 1},
        {KVM_CAP_ASYNC_PF, 1},
        {KVM_CAP_ASYNC_PF_INT, 1},
        {KVM_CAP_USER_MEMORY, 1},
        {KVM_CAP_SET_TSS_ADDR, 1},
        {KVM_CAP_EXT_CPUID, 1},
        {KVM_CAP_EXT_EMUL_CPUID, 1},
        {KVM_CAP_CLOCKSOURCE, 1},
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
                                           KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP |
                                           KVM_GUESTDBG_BLOCKIRQ},
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
        {KVM_CAP_VCPU_ATTRIBUTES, 1},
        {KVM_CAP_SET_BOOT_CPU_ID, 1},
        {KVM_CAP_ENABLE_CAP, 1},
        {KVM_CAP_DISABLE_QUIRKS, 1},
        {KVM_CAP_DISABLE_QUIRKS2, QUIRKS},
        {KVM_CAP_MSR_PLATFORM_INFO, 1},
        {KVM_CAP_X86_USER_SPACE_MSR, MSR_EXITS},
        {KVM_CAP_X86_MSR_FILTER, 1},
        {KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1},
        {KVM_CAP_EXCEPTION_PAYLOAD, 1},
        {KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1},
        {KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1},
        {KVM_CAP_STEAL_TIME, 1},
        {KVM_CAP_X86_SMM, 1},
        {KVM_CAP_HYPERV, 1},
        {KVM_CAP_HYPERV_TIME, 1},
        {KVM_CAP_HYPERV_SYNIC, 1},
        {KVM_CAP_HYPERV_SYNIC2, 1},
        {KVM_CAP_HYPERV_EVENTFD, 1},
        {KVM_CAP_HYPERV_VP_INDEX, 1},
        {KVM_CAP_HYPERV_TLBFLUSH, 1},
        {KVM_CAP_HYPERV_SEND_IPI, 1},
        {KVM_CAP_HYPERV_CPUID, 1},
        {KVM_CAP_SYS_HYPERV_CPUID, 1},
        {KVM_CAP_HYPERV_ENFORCE_CPUID, 1},
        {KVM_CAP_BINARY_STATS_FD, 1},
        {KVM_CAP_SPLIT_IRQCHIP, 1},
        {KVM_CAP_HALT_POLL, 1},
        {KVM_CAP_X2APIC_API, KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK},
        {KVM_CAP_MULTI_ADDRESS_SPACE, SPACES_12},
};

long cap_check(unsigned long cap)
{
	if (cap == KVM_CAP_DIRTY_LOG_RING || cap == KVM_CAP_DIRTY_LOG_RING_ACQ_REL)
		return ring_cap();
	if (cap == KVM_CAP_NR_VCPUS)
		return sysconf(_SC_NPROCESSORS_ONLN);
	for (unsigned n = 0; n < ARRAY_SIZE(caps); n++)
		if (caps[n].cap == cap)
			return caps[n].val;
	return 0;
}

static int cap_on(struct vm *vm, const struct kvm_enable_cap *c)
{
	struct vm12 *x = vm->x12;
	u64 known;

	switch (c->cap) {
	case KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
		known = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
		if (!(c->args[0] & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE))
			known = 0;
		if (c->args[0] & ~known)
			return -EINVAL;
		x->manual_protect = (u32)c->args[0];
		return 0;
	case KVM_CAP_DISABLE_QUIRKS2:
		if (c->args[0] & ~(u64)QUIRKS)
			return -EINVAL;
		x->quirks_off = c->args[0];
		chips12_quirks(vm);
		return 0;
	case KVM_CAP_DISABLE_QUIRKS:
		x->quirks_off = c->args[0];
		chips12_quirks(vm);
		return 0;
	case KVM_CAP_MSR_PLATFORM_INFO:
		x->platform_info_off = !c->args[0];
		return 0;
	case KVM_CAP_X86_USER_SPACE_MSR:
		if (c->args[0] & ~(u64)MSR_EXITS)
			return -EINVAL;
		x->msr_exits = (u32)c->args[0];
		return 0;
	case KVM_CAP_EXCEPTION_PAYLOAD:
		x->payload = c->args[0];
		return 0;
	case KVM_CAP_X86_TRIPLE_FAULT_EVENT:
		x->triple_fault = c->args[0];
		return 0;
	case KVM_CAP_EXIT_ON_EMULATION_FAILURE:
		if (c->args[0] & ~1ull)
			return -EINVAL;
		/* Without it Linux' KVM raises #UD in a user program whose instruction it cannot emulate. There is no
		 * such instruction here: what we cannot do always ends the run, as the capability asks. */
		return 0;
	case KVM_CAP_DIRTY_LOG_RING:
	case KVM_CAP_DIRTY_LOG_RING_ACQ_REL:
		return ring_enable(vm, c->args[0]);
	case KVM_CAP_HALT_POLL:
		if (c->args[0] != (u32)c->args[0])
			return -EINVAL;
		x->poll_most = (u32)c->args[0];
		return 0;
	case KVM_CAP_SPLIT_IRQCHIP:
		return split_irqchip(vm, c->args[0]);
	case KVM_CAP_X2APIC_API:
		return x2apic_api(vm, c->args[0]);
	case KVM_CAP_MAX_VCPU_ID:
		if (c->args[0] > VM_MAX_VCPUS || (x->max_vcpu_id && x->max_vcpu_id != c->args[0]) || x->has_vcpu)
			return -EINVAL;
		x->max_vcpu_id = (u32)c->args[0];
		return 0;
	default:
		return -EINVAL;
	}
}

long vm_enable_cap(struct vm *vm, unsigned long arg)
{
	struct kvm_enable_cap c;
	long rc = user_read(&c, (void *)arg, sizeof(c));

	if (rc < 0)
		return rc;
	if (c.flags)
		return -EINVAL;
	vm_begin_change(vm);
	rc = cap_on(vm, &c);
	vm_end_change(vm);
	return rc;
}

long vcpu_enable_cap(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_enable_cap c;
	long rc = user_read(&c, (void *)arg, sizeof(c));

	if (rc < 0)
		return rc;
	if (c.flags)
		return -EINVAL;
	switch (c.cap) {
	case KVM_CAP_HYPERV_SYNIC:
	case KVM_CAP_HYPERV_SYNIC2:
		return synic_activate(kv, c.cap == KVM_CAP_HYPERV_SYNIC2);
	case KVM_CAP_HYPERV_ENFORCE_CPUID:
		kv->x12->hv_enforce = c.args[0];
		return 0;
	case KVM_CAP_ENFORCE_PV_FEATURE_CPUID:
		kv->x12->pv_enforce = c.args[0];
		return 0;
	default:
		return -EINVAL;
	}
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
	case KVM_GET_SUPPORTED_HV_CPUID:
		return hv_supported_cpuid(arg);
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
