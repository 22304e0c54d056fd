/*
 * dialect_12.h: what the files of the API-12 dialect share. The one place that knows today's <linux/kvm.h>; it must not
 * be included together with the header of 2006.
 *
 *   dialect_12.c             the system descriptor, capabilities and switching them on
 *   dialect_12_vm.c          VM requests: memory, dirty log, clock, making vCPUs
 *   dialect_12_io.c          eventfds and rings that take I/O writes without an exit
 *   dialect_12_chip.c        interrupt chips: creation, lines, routes, irqfds, timers
 *   dialect_12_chip_state.c  ... their state in the interface's structures
 *   dialect_12_halt.c        a vCPU that waits: HLT, INIT and SIPI
 *   dialect_12_vcpu.c        vCPUs: creation, KVM_RUN
 *   dialect_12_exit.c        exits in struct kvm_run, and their completion
 *   dialect_12_regs.c        a vCPU's registers in the interface's structures
 *   dialect_12_cpuid.c       what CPUID is offered, and the tables that clients set
 *   dialect_12_msr.c         MSRs: lists, filter, machine checks
 *   dialect_12_ring.c        the dirty ring
 *   dialect_12_device.c      devices of KVM_CREATE_DEVICE
 *   dialect_12_stats.c       counters
 *   dialect_12_smm.c         system management mode
 *   dialect_12_hyperv.c      what guests made for Hyper-V expect
 *   dialect_12_synic.c       its interrupt controller and timers
 *   dialect_12_pv.c          what KVM's guests share with it: clock, steal time, hypercalls
 *   dialect_12_vapic.c       ... the local APIC in memory
 *   dialect_12_apf.c         ... asynchronous page faults
 *
 * Invariants: a request that fails has changed nothing. What a running vCPU reads of struct vm12 changes only while all
 * vCPUs are stopped (vm_stop()), or is atomic.
 */
#ifndef DEVKVM_KVM_DIALECT_12_H
#define DEVKVM_KVM_DIALECT_12_H

#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <signal.h>

#include "../../include/devkvm-stat.h"
#include "../chip/chip.h"
#include "kvm.h"

#define SLOTS_12 32764u /* user slots, ids 0 to SLOTS_12 - 1 */
#define SPACES_12 2u    /* address spaces */
#define RUN_PAGES 3     /* struct kvm_run, the port data page, the coalesced ring */
#define PIO_PAGE 1
#define RING_PAGE 2
#define CPUID_MAX 256
#define MSRS_MAX 256
#define MCE_BANKS 32

/* One KVM_IOEVENTFD. */
struct ioev {
	u64 addr, match;
	u32 len; /* 0: any */
	bool pio, has_match;
	int fd; /* a dup of the client's */
};

/* One coalesced zone. */
struct zone {
	u64 addr;
	u32 size;
	bool pio;
};

struct vm12 {
	_Atomic(unsigned) refs; /* descriptors of the VM and its vCPUs */
	/* Address space 0 is vm.mem; 1 is what processors in system management mode see. */
	struct vm_mem smm_mem;
	struct memslot **slot[SPACES_12]; /* by id, n_slot of them; protected by vm.lock */
	unsigned n_slot[SPACES_12];
	bool has_vcpu;
	bool has_vfio;      /* dialect_12_device.c */
	u32 manual_protect; /* KVM_DIRTY_LOG_x */
	int ring_fd;        /* memfd of the coalesced ring's page */
	struct kvm_coalesced_mmio_ring *ring;
	pthread_mutex_t ring_lock; /* protects: what vCPUs write into the ring */

	struct chips12 *chips;       /* dialect_12_chip.c; NULL: none */
	struct devkvm_stat *stat;    /* dialect_12_stats.c */
	struct stat_file *stat_file; /* ... of KVM_GET_STATS_FD; NULL: nobody asked */
	int stat_fd;

	/* What KVM_ENABLE_CAP changed. */
	u64 quirks_off;
	u32 ring_size;               /* bytes of each vCPU's dirty ring; 0: bitmaps */
	u32 max_vcpu_id;             /* 0: not set */
	u32 boot_id;                 /* KVM_SET_BOOT_CPU_ID */
	u32 msr_exits;               /* KVM_MSR_EXIT_REASON_x */
	bool x2_format, x2_no_quirk; /* KVM_CAP_X2APIC_API */
	bool platform_info_off, payload, triple_fault;
	u32 poll_most;             /* KVM_CAP_HALT_POLL: ns that a HLT looks at most before it sleeps */
	u32 poll_vcpus;            /* how many vCPUs may do so at once */
	_Atomic(u32) polling;      /* vCPUs that do */
	struct msr_filter *filter; /* dialect_12_msr.c; NULL: none */
	struct hv_vm *hv;          /* dialect_12_hyperv.c; NULL: not used yet */
	struct hv_conn *hv_conn;   /* KVM_HYPERV_EVENTFD */
	pthread_mutex_t hv_lock;   /* protects: *hv, hv_conn */

	struct ioev *ioev;
	unsigned n_ioev;
	struct zone *zone;
	unsigned n_zone;

	/* Time: protected by time_lock. */
	pthread_mutex_t time_lock;
	s64 tsc_offset;               /* guest TSC - host TSC, of the last vCPU that started one */
	u64 clock_ref, clock_ref_tsc; /* kvmclock was clock_ref ns at this host TSC */
	bool tsc_set;
	u64 tsc_write, tsc_write_host; /* the last write that started an offset, and when it was (host TSC) */
};

/* vcpu12.latch */
#define LATCH_INIT 1u
#define LATCH_SIPI 2u
#define LATCH_SMI 4u
#define LATCH_EOI 8u
#define LATCH_STIMER 16u
#define LATCH_TPR 32u

/* Port I/O, or nothing, that the client answers before the next run. */
enum pending { PEND_NONE, PEND_PIO, PEND_MMIO_READ, PEND_MSR, PEND_SYNDBG, PEND_HCALL };

struct vcpu12 {
	struct kvm_run *run;    /* our mapping of the descriptor's first pages */
	int irq;                /* queued by KVM_INTERRUPT, -1: none */
	u32 mp_state;           /* KVM_MP_STATE_x */
	_Atomic(u32) latch;     /* LATCH_x that arrived */
	_Atomic(bool) sleeping; /* waits on the word of cpu.events */
	_Atomic(bool) unhalted; /* KVM_HC_KICK_CPU */
	u32 poll_ns;            /* how long a HLT looks before it sleeps */
	u8 sipi_vector;
	u64 eoi[4];       /* vectors whose EOI the client has not heard of, a bit each */
	bool ran;         /* KVM_RUN has run guest code: CPUID is fixed from now on */
	bool check_state; /* registers were set since cpu_check_state() */
	bool inject;      /* cpu.excp waits for the next run */
	bool fresh_excp;  /* the same, as the client calls it: pending, with its payload, and not yet injected */
	bool nmi;         /* an NMI whose delivery the client begins anew: it comes first in the next run */
	bool triple;      /* a triple fault waits to be told */
	/* dialect_12_ring.c */
	struct kvm_dirty_gfn *dirty_ring;
	u32 dirty_n, dirty_first, dirty_next;
	pthread_mutex_t dirty_lock; /* protects: the ring and its indices */
	u64 *stat;                  /* by enum devkvm_counter */
	struct stat_file *stat_file;
	int stat_fd;
	/* dialect_12_smm.c */
	bool smm, smi_pending, smm_in_nmi;
	u64 smbase, smi_count;

	enum pending pend; /* dialect_12_exit.c */
	u64 pend_rip;
	struct pio pend_io;

	bool has_mask;
	sigset_t mask; /* of KVM_SET_SIGNAL_MASK */

	struct kvm_cpuid_entry2 cpuid[CPUID_MAX];
	unsigned n_cpuid;
	u64 cpuid_xcr0; /* of leaf 0xd: what XCR0 may hold */

	bool msr_denied; /* the RDMSR or WRMSR under way fails: the filter says so */
	/* dialect_12_hyperv.c: the vCPU is Hyper-V's to its guest, with the words of its CPUID leaves. */
	bool hv, hv_enforce;
	u32 hv_eax, hv_ebx, hv_edx, hv_says, hv_spin, hv_dbg;
	struct synic *synic; /* dialect_12_synic.c; NULL: not used yet */
	u32 system_event;    /* KVM_SYSTEM_EVENT_x to tell, 0: none */
	u64 hv_assist;
	bool pv_enforce;
	u32 pv_features; /* of leaf 0x40000001 as it was set */

	u64 mcg_cap, mcg_ctl;
	u64 mce[4 * MCE_BANKS];
	u64 msr_clock, msr_wall, misc_enable, arch_caps, poll_control, platform_info, power_ctl;
	u64 msr_steal, steal_seen, steal_read; /* the thread's waiting time when it was last read, and when that was */
	bool clock_stopped;                    /* KVM_KVMCLOCK_CTRL */
	/* dialect_12_vapic.c */
	u64 msr_eoi, vapic_addr;
	bool vapic_used; /* one of them is on */
	bool vapic_out;  /* guest memory is ahead of the local APIC */
	bool eoi_lent;   /* the guest may end the interrupt in service there */
	bool tpr_reports, tpr_access;
	/* dialect_12_apf.c */
	u64 msr_apf, msr_apf_int;
	bool apf_wake;   /* "all pages are there" is to be told */
	bool apf_ready;  /* ... was, and is not acknowledged */
	u32 guest_debug; /* KVM_GUESTDBG_x */
};

static inline struct vcpu12 *x12_of(struct vcpu *v)
{
	return kvm_vcpu_of(v)->x12;
}

/*
 * A request on a vCPU (whose lock is held) or a VM, named as its ioctl: `arg` as it came, a number or a pointer of the
 * client's; the result is the ioctl's, an error -errno. The functions below that have these parameters are such ones.
 */
typedef long (*vcpu_fn)(struct kvm_vcpu *kv, unsigned long arg);
typedef long (*vm_fn)(struct vm *vm, unsigned long arg);

/* ---- dialect_12.c ------------------------------------------------------------------------------------------------ */

/* KVM_CHECK_EXTENSION. */
long cap_check(unsigned long cap);
/* KVM_ENABLE_CAP. */
long vm_enable_cap(struct vm *vm, unsigned long arg);
long vcpu_enable_cap(struct kvm_vcpu *kv, unsigned long arg);
/* A new memfd of `size` bytes that can neither shrink nor grow: a descriptor, or -errno. */
int sealed_memfd(const char *name, u64 size);

/* ---- dialect_12_vm.c --------------------------------------------------------------------------------------------- */

/* KVM_CREATE_VM: a descriptor, or -errno. */
long vm12_create(unsigned long type, struct made *made);
/* Nanoseconds of the VM's kvmclock at a host TSC. */
u64 vm12_clock(const struct vm *vm, u64 host_tsc);
/* The slot of an address space and number as the interface has them; NULL: none. */
struct memslot *slot12_get(struct vm *vm, u32 slot);
/* Guest TSC ticks a millisecond, the host's. */
u32 tsc_khz(void);

/* ---- dialect_12_io.c --------------------------------------------------------------------------------------------- */

long ioeventfd(struct vm *vm, unsigned long arg);
long coalesced_add(struct vm *vm, unsigned long arg);
long coalesced_remove(struct vm *vm, unsigned long arg);
/* A write to a port or MMIO address, `len` bytes at `data`: true when nobody needs to exit for it. On a running vCPU.
 */
bool io_write_taken(struct vcpu *v, bool pio, u64 addr, u32 len, const u8 *data);
/* The same for reads. */
bool io_read_taken(struct vcpu *v, bool pio, u64 addr, u32 len, u8 *data);
void io_free(struct vm12 *x);
bool is_eventfd(int fd);
/* Adds 1 to an eventfd; one that is full stays so. */
void eventfd_signal(int fd);
/* Do two descriptors mean one open file? */
bool same_file(int a, int b);

/* ---- dialect_12_chip.c ------------------------------------------------------------------------------------------- */

struct chips *chips_of(const struct vm *vm); /* NULL: none */
/* The same, but not NULL when there is an i8254 alone. */
struct chips *chips12_all(const struct vm *vm);
struct lapic *lapic_of(const struct vcpu *v);
/* Ends the helper thread; irqfds, routes and chips are gone then. */
void chips12_free(struct vm12 *x);
/* A new vCPU's local APIC, where there are chips: 0, or -ENOMEM. */
int chips12_add_vcpu(struct kvm_vcpu *kv);
/* Is there an i8259 pair of ours? */
bool pic_of(const struct vm *vm);
/* An EOI waits to be told to the client's IOAPIC: fills the exit. */
bool eoi12_exit(struct kvm_vcpu *kv);
/* Synthetic interrupts (a bit each) are over: who waits for that with an irqfd hears of it. chips.lock held. */
void sints_acked_locked(struct kvm_vcpu *kv, u32 which);
/* The vCPU leaves the engine, or HLT, and looks at LATCH_x. */
void vcpu12_latch(struct kvm_vcpu *kv, u32 what);
/* KVM_CAP_SPLIT_IRQCHIP with the number of the client's IOAPIC pins, KVM_CAP_X2APIC_API: 0, or -errno. With vm.lock. */
int split_irqchip(struct vm *vm, u64 pins);
int x2apic_api(struct vm *vm, u64 flags);
/* KVM_CAP_DISABLE_QUIRKS changed vm12.quirks_off. */
void chips12_quirks(struct vm *vm);
/* An access to memory that no slot covers, on the vCPU: true when the local APIC or IOAPIC answers. */
bool chips12_mmio(struct vcpu *v, bool read, u64 gpa, u32 len, u8 *data);
/* The vCPU of a local APIC id, NULL: none. */
struct kvm_vcpu *chips12_by_apic_id(struct vm *vm, u32 id);
/* What irqfds have signalled and the helper thread has not seen yet counts from now on. chips.lock held. */
void irqfds12_settle_locked(struct chips *c);
long create_irqchip(struct vm *vm, unsigned long arg);
long create_pit1(struct vm *vm, unsigned long arg);
long create_pit2(struct vm *vm, unsigned long arg);
long irq_line(struct vm *vm, unsigned long arg);
long irq_line_status(struct vm *vm, unsigned long arg);
long signal_msi(struct vm *vm, unsigned long arg);
long set_gsi_routing(struct vm *vm, unsigned long arg);
long irqfd(struct vm *vm, unsigned long arg);

/* ---- dialect_12_chip_state.c ------------------------------------------------------------------------------------- */

long get_irqchip(struct vm *vm, unsigned long arg);
long set_irqchip(struct vm *vm, unsigned long arg);
long get_pit1(struct vm *vm, unsigned long arg);
long set_pit1(struct vm *vm, unsigned long arg);
long get_pit2(struct vm *vm, unsigned long arg);
long set_pit2(struct vm *vm, unsigned long arg);
long reinject_control(struct vm *vm, unsigned long arg);
long get_lapic(struct kvm_vcpu *kv, unsigned long arg);
long set_lapic(struct kvm_vcpu *kv, unsigned long arg);

/* ---- dialect_12_halt.c ------------------------------------------------------------------------------------------- */

/* Sets bits in the vCPU's events and wakes it. Any thread. */
void vcpu12_notify(struct kvm_vcpu *kv, u32 bits);
/* vcpu_ops.wake */
void vcpu12_wake(struct vcpu *v);
/* A new VM: how long its vCPUs may look before they sleep. */
void halt12_init(struct vm12 *x);
/* Sleeps until mp_state is "runnable": true; false: a signal came. Between run_begin() and run_end(). */
bool vcpu12_wait(struct kvm_vcpu *kv);

/* ---- dialect_12_device.c ----------------------------------------------------------------------------------------- */

/* KVM_CREATE_DEVICE: 0, or -errno. */
long device12_create(struct vm *vm, unsigned long arg, struct made *made);

/* ---- dialect_12_vcpu.c ------------------------------------------------------------------------------------------- */

/* KVM_CREATE_VCPU: a descriptor, or -errno. */
long vcpu12_create(struct vm *vm, unsigned long id, struct made *made);
void vcpu12_free(struct kvm_vcpu *kv);
/* The processor comes out of RESET, or INIT (which keeps caches, x87 and MSRs: SDM vol. 3, table 10-1). */
void vcpu12_reset(struct kvm_vcpu *kv, bool init);
/* KVM_RUN's request_interrupt_window is looked at (again). On the vCPU. */
void vcpu12_window(struct vcpu *v);

/* ---- dialect_12_exit.c ------------------------------------------------------------------------------------------- */

/* v->exit in struct kvm_run: KVM_RUN's result. */
long exit12_fill(struct kvm_vcpu *kv);
/* The client set a state that no processor can run from. */
void exit12_fail_entry(struct kvm_vcpu *kv, const char *why);
/* What the client answered to the last exit. True: this is an exit by itself, v->exit says which. */
bool exit12_complete(struct kvm_vcpu *kv);
/* The client sends the guest elsewhere: what the last exit had half done is void. */
void vcpu12_abandon(struct kvm_vcpu *kv);
/* The bytes at RIP, as far as they can be read: their number. Accesses nothing but RAM, faults never. */
unsigned code_at_rip(struct vcpu *v, u8 bytes[15]);
/* The page of port data, behind struct kvm_run. */
static inline u8 *pio_data(struct vcpu12 *x)
{
	return (u8 *)x->run + PIO_PAGE * PAGE_SIZE;
}

/* ---- dialect_12_regs.c ------------------------------------------------------------------------------------------- */

void regs_out(struct vcpu *v, struct kvm_regs *regs);
void regs_in(struct kvm_vcpu *kv, const struct kvm_regs *regs);
void sregs_out(struct vcpu *v, struct kvm_sregs *s);
/* Could a processor have these control registers? */
bool sregs_valid(struct vcpu *v, const struct kvm_sregs *s);
/* -EINVAL when no processor has such a state. */
int sregs_in(struct kvm_vcpu *kv, const struct kvm_sregs *s);
/* 0, or -EINVAL: both as the ioctls. */
void events_out(struct kvm_vcpu *kv, struct kvm_vcpu_events *e);
int events_in(struct kvm_vcpu *kv, const struct kvm_vcpu_events *e);

long get_regs(struct kvm_vcpu *kv, unsigned long arg);
long set_regs(struct kvm_vcpu *kv, unsigned long arg);
long get_sregs(struct kvm_vcpu *kv, unsigned long arg);
long set_sregs(struct kvm_vcpu *kv, unsigned long arg);
long get_sregs2(struct kvm_vcpu *kv, unsigned long arg);
long set_sregs2(struct kvm_vcpu *kv, unsigned long arg);
long get_fpu(struct kvm_vcpu *kv, unsigned long arg);
long set_fpu(struct kvm_vcpu *kv, unsigned long arg);
long get_xsave(struct kvm_vcpu *kv, unsigned long arg);
long set_xsave(struct kvm_vcpu *kv, unsigned long arg);
long get_xcrs(struct kvm_vcpu *kv, unsigned long arg);
long set_xcrs(struct kvm_vcpu *kv, unsigned long arg);
long get_debugregs(struct kvm_vcpu *kv, unsigned long arg);
long set_debugregs(struct kvm_vcpu *kv, unsigned long arg);
long get_vcpu_events(struct kvm_vcpu *kv, unsigned long arg);
long set_vcpu_events(struct kvm_vcpu *kv, unsigned long arg);
long set_guest_debug(struct kvm_vcpu *kv, unsigned long arg);

/* ---- dialect_12_cpuid.c ------------------------------------------------------------------------------------------ */

/* KVM_GET_SUPPORTED_CPUID and KVM_GET_EMULATED_CPUID. */
long cpuid_supported(unsigned long arg, bool emulated);
long set_cpuid2(struct kvm_vcpu *kv, unsigned long arg);
long get_cpuid2(struct kvm_vcpu *kv, unsigned long arg);
/* What the guest's CPUID answers now. */
void cpuid12(struct vcpu *v, u32 leaf, u32 subleaf, u32 out[4]);
/* A new vCPU, before its first KVM_SET_CPUID2. */
void cpuid12_init(struct kvm_vcpu *kv);
/* The entry that the client set, NULL: none. */
const struct kvm_cpuid_entry2 *cpuid12_find(const struct vcpu12 *x, u32 leaf, u32 sub);
/* Whether the guest's CPUID has x2APIC. */
bool cpuid12_x2apic(const struct vcpu12 *x);
/* May the guest use a feature of leaf 0x40000001? Only a vCPU under KVM_CAP_ENFORCE_PV_FEATURE_CPUID has limits. */
bool pv_has(const struct vcpu12 *x, unsigned feature);

/* ---- dialect_12_ring.c ------------------------------------------------------------------------------------------- */

/* KVM_CAP_DIRTY_LOG_RING: what the capability answers; switching it on, with `size` bytes a vCPU: 0, or -errno. */
long ring_cap(void);
int ring_enable(struct vm *vm, u64 size);
/* Size of a vCPU's descriptor (`otherwise`, without rings), and our mapping of the ring in it: 0, or -errno. */
u64 ring_file_size(const struct vm *vm, u64 otherwise);
int ring_map(struct vcpu12 *x, const struct vm *vm, int fd);
void ring_unmap(struct vcpu12 *x);
/* Only the reserve is left: KVM_RUN ends. */
bool ring_full(const struct vcpu12 *x);
/* A page of the slot is written for the first time since its bit was clear: an entry, in the ring of the vCPU that the
 * calling thread runs, or else of some vCPU. */
void ring_note(struct memslot *s, u64 page);
long ring_reset(struct vm *vm, unsigned long arg);

/* ---- dialect_12_stats.c ------------------------------------------------------------------------------------------ */

/* Makes the descriptor of a VM, which holds its counters: its number, or -errno. */
int stat12_vm(struct vm12 *x);
void stat12_vm_free(struct vm12 *x);
void stat12_vcpu(struct kvm_vcpu *kv);
void stat12_vcpu_free(struct vcpu12 *x);
/* What the engine counts goes where others look. On the vCPU. */
void stat12_publish(struct kvm_vcpu *kv);
void stat12_vm_publish(struct vm *vm);
/* KVM_RUN returns. */
void stat12_exit(struct kvm_vcpu *kv, long rc);
static inline void stat12(struct vcpu *v, enum devkvm_counter n)
{
	x12_of(v)->stat[n]++;
}
long vm_stats_fd(struct vm *vm, unsigned long arg);
long vcpu_stats_fd(struct kvm_vcpu *kv, unsigned long arg);

/* ---- dialect_12_smm.c -------------------------------------------------------------------------------------------- */

/* An SMI waits and may be taken: takes it. On the vCPU, between instructions. */
void smm_poll(struct kvm_vcpu *kv);
/* RSM: false: what was saved is not a state that a processor can have. */
bool smm_leave(struct kvm_vcpu *kv);
/* The client says whether the processor is in system management mode. */
void smm_set(struct kvm_vcpu *kv, bool on);
/* vcpu_ops.rsm, and MSRs as vcpu_ops has them. */
int op_rsm(struct vcpu *v, const struct insn *i);
int smm_msr_read(struct vcpu *v, u32 msr, u64 *val, bool host);
int smm_msr_write(struct vcpu *v, u32 msr, u64 val, bool host);

/* ---- dialect_12_hyperv.c ----------------------------------------------------------------------------------------- */

long hv_supported_cpuid(unsigned long arg);
void hv_cpuid_changed(struct vcpu12 *x);
void hv_clock_changed(struct vcpu *v);
void hv_free(struct vm12 *x);
/* Reference time, in units of 100 ns. */
u64 hv_ref_time(struct vcpu *v);
/* The client answered a hypercall. */
void hv_answered(struct kvm_vcpu *kv);
/* As vcpu_ops has them. */
int hv_msr_read(struct vcpu *v, u32 msr, u64 *val, bool host);
int hv_msr_write(struct vcpu *v, u32 msr, u64 val, bool host);
/* Are hypercalls Hyper-V's on this vCPU now? Such a call. */
bool hv_calls(const struct vcpu *v);
/* May the guest (always: the client) use this MSR? */
bool hv_msr_allowed(const struct vcpu *v, u32 msr, bool host);
int hv_hypercall(struct vcpu *v, const struct insn *i); /* enum step */
/* Reset or crash reported by the guest: fills the exit. */
bool hv_exit(struct kvm_vcpu *kv);

/* ---- dialect_12_synic.c ------------------------------------------------------------------------------------------ */

/* KVM_CAP_HYPERV_SYNIC and _SYNIC2 (keep_pages: what a page held stays when it is put to use). */
long synic_activate(struct kvm_vcpu *kv, bool keep_pages);
bool synic_active(const struct vcpu12 *x);
void synic_free(struct vcpu12 *x);
/* Timers are looked at, messages that waited are sent. On the vCPU. */
void synic_poll(struct kvm_vcpu *kv);
/* One of its sixteen interrupts, if the guest takes it; those that have this vector (a bit each). */
int synic_raise_locked(struct vcpu *v, unsigned n);
u32 synic_sints_of(const struct vcpu12 *x, u8 vector);
int synic_msr_read(struct vcpu *v, u32 msr, u64 *val, bool host);
int synic_msr_write(struct vcpu *v, u32 msr, u64 val, bool host);
/* The client is to hear of a register: fills the exit; its answer to the debugger's. */
bool synic_exit(struct kvm_vcpu *kv);
void syndbg_answered(struct kvm_vcpu *kv);
bool syndbg_takes_calls(struct vcpu *v);
long hyperv_eventfd(struct vm *vm, unsigned long arg);
/* Signals the eventfd of a connection; false: there is none. */
bool hv_conn_signal(struct vm *vm, u32 id);
void hv_conn_free(struct vm12 *x);

/* ---- dialect_12_pv.c --------------------------------------------------------------------------------------------- */

/* Guest memory at a guest physical address, `len` bytes in one slot: NULL: there is none, or it is read-only. */
u8 *pv_memory(struct vcpu *v, gpa_t gpa, u32 len);
/* A new vCPU's TSC counts as its brothers' does. */
void tsc12_init(struct vcpu *v);
/* MSR_TSC from the client. */
void tsc12_set(struct vcpu *v, u64 val);
/* Writes the guest's clock page again: time was set. With the vCPUs stopped, or on the vCPU. */
void clock12_update(struct vcpu *v);
/* The paravirtual MSRs: as msr12_read() and msr12_write(). */
int pv_msr_read(struct vcpu *v, u32 msr, u64 *val);
int pv_msr_write(struct vcpu *v, u32 msr, u64 val, bool host);
/* At the begin and end of KVM_RUN. */
void pv_run(struct vcpu *v, bool begins);
/* vcpu_ops.hypercall */
int pv_hypercall(struct vcpu *v, const struct insn *i, bool amd);
long kvmclock_ctrl(struct kvm_vcpu *kv, unsigned long arg);
/* KVM_{SET,GET,HAS}_DEVICE_ATTR of a vCPU. */
long vcpu_set_attr(struct kvm_vcpu *kv, unsigned long arg);
long vcpu_get_attr(struct kvm_vcpu *kv, unsigned long arg);
long vcpu_has_attr(struct kvm_vcpu *kv, unsigned long arg);

/* ---- dialect_12_vapic.c ------------------------------------------------------------------------------------------ */

void vapic_take(struct vcpu *v);
void vapic_give(struct vcpu *v);
/* What the guest told its local APIC in memory counts from now on. */
static inline void vapic_in(struct vcpu *v)
{
	if (unlikely(x12_of(v)->vapic_used) && x12_of(v)->vapic_out)
		vapic_take(v);
}
/* The guest runs on. */
static inline void vapic_out(struct vcpu *v)
{
	if (unlikely(x12_of(v)->vapic_used) && !x12_of(v)->vapic_out)
		vapic_give(v);
}
/* The local APIC was reset. */
void vapic_reset(struct vcpu12 *x);
/* MSR_KVM_PV_EOI_EN: 0, or -1 for #GP. With the memslots held. */
int vapic_eoi_write(struct vcpu *v, u64 val);
long set_vapic_addr(struct kvm_vcpu *kv, unsigned long arg);
long tpr_reporting(struct kvm_vcpu *kv, unsigned long arg);
/* The guest accessed the TPR, by the instruction at `rip`. */
void tpr_accessed(struct vcpu *v, bool write, u64 rip);
/* Does the client want to hear of it? The exit is filled. With the instruction complete. */
bool tpr_exit(struct kvm_vcpu *kv);
/* KVM_HC_SEND_IPI to the ids from `first` on that the two words of `bits` bits name: how many took it, or an error of
 * hypercalls. */
u64 vapic_send_ipi(struct vcpu *v, const u64 map[2], u32 first, u64 icr, unsigned bits);

/* ---- dialect_12_apf.c -------------------------------------------------------------------------------------------- */

/* Tells the guest what it is to be told, if it can hear it now. On the vCPU, within KVM_RUN. */
void apf_poll(struct vcpu *v);
/* The vCPU was reset. */
void apf_reset(struct vcpu12 *x);
/* MSR_KVM_ASYNC_PF_EN, _INT and _ACK: 0, or -1 for #GP. */
int apf_msr_write(struct vcpu *v, u32 msr, u64 val, bool host);

/* ---- dialect_12_msr.c -------------------------------------------------------------------------------------------- */

long msr_list(unsigned long arg, bool features);
long feature_msrs(unsigned long arg);
long get_msrs(struct kvm_vcpu *kv, unsigned long arg);
long set_msrs(struct kvm_vcpu *kv, unsigned long arg);
long set_msr_filter(struct vm *vm, unsigned long arg);
void msr_filter_free(struct vm12 *x);
long mce_supported(unsigned long arg);
long mce_setup(struct kvm_vcpu *kv, unsigned long arg);
long mce_inject(struct kvm_vcpu *kv, unsigned long arg);
/* struct vcpu_ops */
bool msr12_ask(struct vcpu *v, u32 msr, u64 val, bool write, bool failed);
int msr12_read(struct vcpu *v, u32 msr, u64 *val, bool host);
int msr12_write(struct vcpu *v, u32 msr, u64 val, bool host);
void msr12_init(struct vcpu12 *x);

#endif
