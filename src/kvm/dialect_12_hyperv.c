/*
 * dialect_12_hyperv.c: what guests made for Hyper-V expect of a hypervisor (Hypervisor Top Level Functional
 * Specification): identification, hypercalls, the reference time and its TSC page, processor indices, end of interrupt
 * and friends by MSR, reset and crash reports.
 *
 * A vCPU has these when its CPUID says "Hv#1" at 0x40000001. Invariant: state of the VM changes under hv_lock.
 * Its interrupt controller and timers are in dialect_12_synic.c.
 */
#define _GNU_SOURCE
#include "dialect_12.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "../base/sys.h"
#include "../base/usercopy.h"

enum {
	HV_GUEST_OS_ID = 0x40000000,
	HV_HYPERCALL,
	HV_VP_INDEX,
	HV_RESET,
	HV_VP_RUNTIME = 0x40000010,
	HV_TIME_REF_COUNT = 0x40000020,
	HV_REFERENCE_TSC,
	HV_TSC_FREQUENCY,
	HV_APIC_FREQUENCY,
	HV_EOI = 0x40000070,
	HV_ICR,
	HV_TPR,
	HV_VP_ASSIST_PAGE,
	HV_CRASH_P0 = 0x40000100,
	HV_CRASH_P4 = 0x40000104,
	HV_CRASH_CTL,
	HV_REENLIGHTENMENT,
	HV_TSC_EMULATION_CONTROL,
	HV_TSC_EMULATION_STATUS,
	HV_LAST = 0x4000011f
};

#define HV_ENABLE 1ull
#define HV_CRASH_NOTIFY BIT(63)
#define HV_SIGNATURE 0x31237648u

/* Leaf 0x40000003. EAX */
#define HV_HAS_RUNTIME BIT(0)
#define HV_HAS_TIME BIT(1)
#define HV_HAS_SYNIC BIT(2)
#define HV_HAS_STIMER BIT(3)
#define HV_HAS_APIC BIT(4)
#define HV_HAS_HYPERCALL BIT(5)
#define HV_HAS_INDEX BIT(6)
#define HV_HAS_RESET BIT(7)
#define HV_HAS_TSC_PAGE BIT(9)
#define HV_HAS_FREQUENCY BIT(11)
#define HV_HAS_REENLIGHTENMENT BIT(13)
/* EDX */
#define HV_HAS_XMM_INPUT BIT(4)
#define HV_HAS_FREQUENCY_EDX BIT(8)
#define HV_HAS_CRASH BIT(10)
#define HV_HAS_DEBUG BIT(11)
#define HV_HAS_STIMER_DIRECT BIT(19)
/* EBX */
#define HV_MAY_POST BIT(4)
#define HV_MAY_SIGNAL BIT(5)
#define HV_MAY_DEBUG BIT(11)
/* Leaf 0x40000004, EAX */
#define HV_SAYS_TLB_FLUSH BIT(2)
#define HV_SAYS_APIC BIT(3)
#define HV_SAYS_RELAXED BIT(5)
#define HV_SAYS_CLUSTER_IPI BIT(10)
#define HV_SAYS_EX_MASKS BIT(11)
#define HV_SAYS_NO_CORE_SHARING BIT(18)

enum {
	HV_CALL_FLUSH = 2,
	HV_CALL_FLUSH_LIST = 3,
	HV_CALL_SPIN = 8,
	HV_CALL_IPI = 0xb,
	HV_CALL_FLUSH_EX = 0x13,
	HV_CALL_FLUSH_LIST_EX = 0x14,
	HV_CALL_IPI_EX = 0x15,
	HV_CALL_POST_MESSAGE = 0x5c,
	HV_CALL_SIGNAL_EVENT = 0x5d,
	HV_CALL_DEBUG_FIRST = 0x69,
	HV_CALL_DEBUG_LAST = 0x6b
};
enum { HV_SUCCESS = 0, HV_BAD_CODE = 2, HV_BAD_INPUT = 3, HV_BAD_ALIGNMENT = 4, HV_DENIED = 6, HV_REFUSED = 8 };

/* The TSC page. */
struct hv_tsc {
	u32 sequence, pad;
	u64 scale;
	s64 offset;
};

struct hv_vm {
	u64 os_id, hypercall, tsc_page, crash[5], crash_ctl, reenlightenment, emulation_control, emulation_status;
	struct hv_tsc tsc;
	bool tsc_set; /* the page holds `tsc` */
};

/* ---- CPUID ------------------------------------------------------------------------------------------------------- */

static bool smt_possible(void)
{
	char text[32] = "";
	int fd = open("/sys/devices/system/cpu/smt/control", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (fd >= 0)
		sys_close(fd);
	return n <= 0 || (strncmp(text, "forceoff", 8) != 0 && strncmp(text, "notsupported", 12) != 0);
}

long hv_supported_cpuid(unsigned long arg)
{
	struct kvm_cpuid_entry2 e[] = {
	        {.function = 0x40000000, .eax = 0x40000082, .ebx = 0x7263694d, .ecx = 0x666f736f, .edx = 0x76482074},
	        {.function = 0x40000001, .eax = HV_SIGNATURE},
	        {.function = 0x40000002, .eax = 0x3839, .ebx = 0xa0000},
	        {.function = 0x40000003,
	         .eax = HV_HAS_RUNTIME | HV_HAS_TIME | HV_HAS_SYNIC | HV_HAS_STIMER | HV_HAS_APIC | HV_HAS_HYPERCALL |
	                HV_HAS_INDEX | HV_HAS_RESET | HV_HAS_TSC_PAGE | HV_HAS_FREQUENCY | HV_HAS_REENLIGHTENMENT,
	         .ebx = HV_MAY_POST | HV_MAY_SIGNAL | HV_MAY_DEBUG,
	         .edx = HV_HAS_XMM_INPUT | HV_HAS_FREQUENCY_EDX | HV_HAS_CRASH | HV_HAS_DEBUG | HV_HAS_STIMER_DIRECT},
	        {.function = 0x40000004,
	         .eax = HV_SAYS_TLB_FLUSH | HV_SAYS_APIC | HV_SAYS_RELAXED | HV_SAYS_CLUSTER_IPI | HV_SAYS_EX_MASKS,
	         .ebx = ~0u},
	        {.function = 0x40000005, .eax = VM_MAX_VCPUS, .ebx = 64},
	        /* "Enlightened MSR bitmap", as Linux' KVM always says; it means something to nested hypervisors only.
	         */
	        {.function = 0x4000000a, .eax = BIT(19)},
	        {.function = 0x40000080, .eax = 0x40000082, .ebx = 0x7263694d, .ecx = 0x666f736f, .edx = 0x76482074},
	        {.function = 0x40000081, .eax = 0x31235356},
	        {.function = 0x40000082, .eax = 2},
	};
	struct kvm_cpuid2 head;
	long rc = user_read(&head, (void *)arg, sizeof(head));

	if (rc < 0)
		return rc;
	if (head.nent < ARRAY_SIZE(e))
		return -E2BIG;
	if (!smt_possible())
		e[4].eax |= HV_SAYS_NO_CORE_SHARING;
	head.nent = ARRAY_SIZE(e);
	rc = user_write((u8 *)arg + sizeof(head), e, sizeof(e));
	return rc < 0 ? rc : user_write((void *)arg, &head, sizeof(head));
}

void hv_cpuid_changed(struct vcpu12 *x)
{
	const struct kvm_cpuid_entry2 *id = cpuid12_find(x, 0x40000001, 0), *f = cpuid12_find(x, 0x40000003, 0),
	                              *says = cpuid12_find(x, 0x40000004, 0), *dbg = cpuid12_find(x, 0x40000082, 0);

	x->hv = id && id->eax == HV_SIGNATURE;
	x->hv_eax = f ? f->eax : 0;
	x->hv_ebx = f ? f->ebx : 0;
	x->hv_edx = f ? f->edx : 0;
	x->hv_dbg = dbg ? dbg->eax : 0;
	x->hv_says = says ? says->eax : 0;
	x->hv_spin = says ? says->ebx : 0;
}

static struct hv_vm *hv_of(struct vm *vm)
{
	struct vm12 *x = vm->x12;

	pthread_mutex_lock(&x->time_lock);
	if (!x->hv)
		x->hv = calloc(1, sizeof(*x->hv));
	pthread_mutex_unlock(&x->time_lock);
	return x->hv;
}

void hv_free(struct vm12 *x)
{
	free(x->hv);
}

/* ---- time -------------------------------------------------------------------------------------------------------- */

/* Units of 100 ns. */
static u64 ref_time(struct vcpu *v, const struct hv_vm *h)
{
	u64 host = __rdtsc();

	if (h->tsc_set)
		return (u64)((u128)(host + (u64)v->tsc_offset) * h->tsc.scale >> 64) + (u64)h->tsc.offset;
	return vm12_clock(v->vm, host) / 100;
}

u64 hv_ref_time(struct vcpu *v)
{
	struct hv_vm *h = hv_of(v->vm);

	return h ? ref_time(v, h) : 0;
}

/* Writes the page anew; sequence 0 tells readers to use the MSR meanwhile. */
static void tsc_page_write(struct vcpu *v, struct hv_vm *h)
{
	struct hv_tsc *page = (struct hv_tsc *)(void *)pv_memory(v, h->tsc_page & PAGE_MASK, sizeof(*page));
	u64 host = __rdtsc();
	u32 sequence;

	h->tsc_set = false;
	if (!page || !(h->tsc_page & HV_ENABLE))
		return;
	h->tsc.scale = (u64)(((u128)10000 << 64) / tsc_khz());
	h->tsc.offset =
	        (s64)(vm12_clock(v->vm, host) / 100 - (u64)((u128)(host + (u64)v->tsc_offset) * h->tsc.scale >> 64));
	sequence = page->sequence + 1;
	if (sequence == 0 || sequence == ~0u)
		sequence = 1;
	__atomic_store_n(&page->sequence, 0, __ATOMIC_SEQ_CST);
	page->scale = h->tsc.scale;
	page->offset = h->tsc.offset;
	__atomic_store_n(&page->sequence, sequence, __ATOMIC_SEQ_CST);
	h->tsc_set = true;
}

void hv_clock_changed(struct vcpu *v)
{
	struct hv_vm *h = v->vm->x12->hv;

	/* A guest that handles changes of the rate by itself must not see any. */
	if (h && (h->tsc_page & HV_ENABLE) && !h->emulation_control)
		tsc_page_write(v, h);
}

/* ---- MSRs -------------------------------------------------------------------------------------------------------- */

static bool allowed(const struct vcpu12 *x, u32 msr)
{
	u32 eax = x->hv_eax;

	if (!x->hv)
		return false;
	if (!x->hv_enforce)
		return true;
	switch (msr) {
	case HV_GUEST_OS_ID:
	case HV_HYPERCALL:
		return eax & HV_HAS_HYPERCALL;
	case HV_VP_RUNTIME:
		return eax & HV_HAS_RUNTIME;
	case HV_TIME_REF_COUNT:
		return eax & HV_HAS_TIME;
	case HV_VP_INDEX:
		return eax & HV_HAS_INDEX;
	case HV_RESET:
		return eax & HV_HAS_RESET;
	case HV_REFERENCE_TSC:
		return eax & HV_HAS_TSC_PAGE;
	case HV_EOI:
	case HV_ICR:
	case HV_TPR:
	case HV_VP_ASSIST_PAGE:
		return eax & HV_HAS_APIC;
	case HV_TSC_FREQUENCY:
	case HV_APIC_FREQUENCY:
		return eax & HV_HAS_FREQUENCY;
	case HV_REENLIGHTENMENT:
	case HV_TSC_EMULATION_CONTROL:
	case HV_TSC_EMULATION_STATUS:
		return eax & HV_HAS_REENLIGHTENMENT;
	default:
		if (msr >= 0x40000080 && msr <= 0x4000009f)
			return eax & HV_HAS_SYNIC;
		if (msr >= 0x400000b0 && msr <= 0x400000b7)
			return eax & HV_HAS_STIMER;
		if (msr >= 0x400000f1 && msr <= 0x400000ff)
			return x->hv_edx & HV_HAS_DEBUG;
		return msr >= HV_CRASH_P0 && msr <= HV_CRASH_CTL && (x->hv_edx & HV_HAS_CRASH);
	}
}

bool hv_msr_allowed(const struct vcpu *v, u32 msr, bool host)
{
	return host || allowed(x12_of((struct vcpu *)v), msr);
}

static u64 *stored(struct hv_vm *h, u32 msr)
{
	switch (msr) {
	case HV_GUEST_OS_ID:
		return &h->os_id;
	case HV_HYPERCALL:
		return &h->hypercall;
	case HV_REFERENCE_TSC:
		return &h->tsc_page;
	case HV_CRASH_CTL:
		return &h->crash_ctl;
	case HV_REENLIGHTENMENT:
		return &h->reenlightenment;
	case HV_TSC_EMULATION_CONTROL:
		return &h->emulation_control;
	case HV_TSC_EMULATION_STATUS:
		return &h->emulation_status;
	default:
		return msr >= HV_CRASH_P0 && msr <= HV_CRASH_P4 ? &h->crash[msr - HV_CRASH_P0] : NULL;
	}
}

static int apic_msr(struct vcpu *v, u32 msr, u64 *val, bool write)
{
	/* The same registers among the x2APIC's. */
	u32 index = msr == HV_EOI ? LAPIC_EOI : msr == HV_ICR ? LAPIC_ICR : LAPIC_TPR, low;
	/* False for the client's own accesses, between runs. */
	const bool running = x12_of(v)->vapic_out;
	struct lapic *l = lapic_of(v);
	int rc = 0;

	if (!l || (msr == HV_EOI && !write))
		return -1;
	vapic_in(v);
	pthread_mutex_lock(&l->chips->lock);
	if (!write) {
		lapic_read_locked(l, index, &low);
		*val = low;
		if (msr == HV_ICR) {
			lapic_read_locked(l, LAPIC_ICR2, &low);
			*val |= (u64)low << 32;
		}
	} else {
		if (msr == HV_ICR && !l->x2apic)
			lapic_write_locked(l, LAPIC_ICR2, (u32)(*val >> 32));
		if (!(msr == HV_ICR && l->x2apic))
			lapic_write_locked(l, index, (u32)*val);
		v->cr8 = l->reg[LAPIC_TPR] >> 4 & 15;
	}
	pthread_mutex_unlock(&l->chips->lock);
	if (write && msr == HV_ICR && l->x2apic)
		rc = lapic_msr_write(l, 0x800 + LAPIC_ICR, *val) ? 0 : -1;
	if (running)
		vapic_out(v);
	return rc;
}

int hv_msr_read(struct vcpu *v, u32 msr, u64 *val, bool host)
{
	struct vcpu12 *x = x12_of(v);
	struct hv_vm *h;
	struct timespec t;
	u64 *slot;

	if (msr < HV_GUEST_OS_ID || msr > HV_LAST)
		return MSR_PASS;
	h = hv_of(v->vm);
	if (!h || (!host && !allowed(x, msr)))
		return -1;
	switch (msr) {
	case HV_VP_INDEX:
		*val = v->id;
		return 0;
	case HV_RESET:
		*val = 0;
		return 0;
	case HV_VP_RUNTIME:
		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
		*val = (u64)t.tv_sec * 10000000 + (u64)t.tv_nsec / 100;
		return 0;
	case HV_TIME_REF_COUNT:
		*val = ref_time(v, h);
		return 0;
	case HV_TSC_FREQUENCY:
		*val = (u64)tsc_khz() * 1000;
		return 0;
	case HV_APIC_FREQUENCY:
		*val = 1000000000;
		return 0;
	case HV_VP_ASSIST_PAGE:
		*val = x->hv_assist;
		return 0;
	case HV_EOI:
	case HV_ICR:
	case HV_TPR:
		return apic_msr(v, msr, val, false);
	}
	slot = stored(h, msr);
	if (!slot)
		return -1;
	*val = *slot;
	return 0;
}

static int hypercall_page(struct vcpu *v, struct hv_vm *h, u64 val)
{
	const u8 code[] = {0x0f, 0x01, cpuid_is_amd() ? 0xd9 : 0xc1, 0xc3};
	u8 *page;

	/* Nobody who has not said who he is gets a page. */
	if (!h->os_id)
		return 0;
	if (val & HV_ENABLE) {
		page = pv_memory(v, val & PAGE_MASK, sizeof(code));
		if (!page)
			return -1;
		memcpy(page, code, sizeof(code));
	}
	h->hypercall = val;
	return 0;
}

/* KVM_RUN returns with this once the instruction is done. */
static void exit_later(struct vcpu *v, u32 event)
{
	x12_of(v)->system_event = event;
	atomic_fetch_or(&x12_of(v)->latch, LATCH_EOI);
	atomic_fetch_or(&v->events, (u32)EV_SIGNAL);
}

static int write_locked(struct vcpu *v, struct hv_vm *h, u32 msr, u64 val, bool host)
{
	struct vcpu12 *x = x12_of(v);
	u64 *slot;

	switch (msr) {
	case HV_GUEST_OS_ID:
		h->os_id = val;
		if (!val)
			h->hypercall &= ~HV_ENABLE;
		return 0;
	case HV_HYPERCALL:
		return hypercall_page(v, h, val);
	case HV_REFERENCE_TSC:
		h->tsc_page = val;
		tsc_page_write(v, h);
		return 0;
	case HV_RESET:
		if (val == 1 && !host)
			exit_later(v, KVM_SYSTEM_EVENT_RESET);
		return 0;
	case HV_CRASH_CTL:
		if (host)
			h->crash_ctl = val & HV_CRASH_NOTIFY;
		else if (val & HV_CRASH_NOTIFY)
			exit_later(v, KVM_SYSTEM_EVENT_CRASH);
		return 0;
	case HV_TSC_EMULATION_STATUS:
		if (val && !host)
			return -1;
		h->emulation_status = val;
		return 0;
	case HV_VP_ASSIST_PAGE:
		if (val & HV_ENABLE) {
			u8 *page = pv_memory(v, val & PAGE_MASK, PAGE_SIZE);

			if (!page)
				return -1;
			memset(page, 0, 4);
		}
		x->hv_assist = val;
		return 0;
	case HV_VP_INDEX:
		return host && val == v->id ? 0 : -1;
	case HV_VP_RUNTIME:
	case HV_TIME_REF_COUNT:
	case HV_TSC_FREQUENCY:
	case HV_APIC_FREQUENCY:
		return host ? 0 : -1;
	}
	slot = stored(h, msr);
	if (!slot)
		return -1;
	*slot = val;
	return 0;
}

int hv_msr_write(struct vcpu *v, u32 msr, u64 val, bool host)
{
	struct hv_vm *h;
	int rc;

	if (msr < HV_GUEST_OS_ID || msr > HV_LAST)
		return MSR_PASS;
	h = hv_of(v->vm);
	if (!h || (!host && !allowed(x12_of(v), msr)))
		return -1;
	if (msr == HV_EOI || msr == HV_ICR || msr == HV_TPR)
		return apic_msr(v, msr, &val, true);
	/* From the guest the memslots stand still; from an ioctl they must be held. */
	if (host)
		pthread_mutex_lock(&v->vm->lock);
	pthread_mutex_lock(&v->vm->x12->hv_lock);
	rc = write_locked(v, h, msr, val, host);
	pthread_mutex_unlock(&v->vm->x12->hv_lock);
	if (host)
		pthread_mutex_unlock(&v->vm->lock);
	return rc;
}

bool hv_exit(struct kvm_vcpu *kv)
{
	struct vcpu12 *x = kv->x12;
	struct hv_vm *h = kv->cpu.vm->x12->hv;

	if (!x->system_event)
		return false;
	x->run->exit_reason = KVM_EXIT_SYSTEM_EVENT;
	memset(&x->run->system_event, 0, sizeof(x->run->system_event));
	x->run->system_event.type = x->system_event;
	if (x->system_event == KVM_SYSTEM_EVENT_CRASH) {
		x->run->system_event.ndata = 5;
		memcpy(x->run->system_event.data, h->crash, sizeof(h->crash));
	}
	x->system_event = 0;
	return true;
}

/* ---- hypercalls -------------------------------------------------------------------------------------------------- */

bool hv_calls(const struct vcpu *v)
{
	const struct hv_vm *h = v->vm->x12->hv;

	return h && h->os_id && x12_of((struct vcpu *)v)->hv;
}

struct hv_call {
	u16 code, var, reps, first;
	bool fast;
	u64 in, out;
};

/* The input block, `n` 8-byte words of it: from memory, or from registers. False: it is not in memory. */
static bool input(struct vcpu *v, const struct hv_call *c, u64 *to, unsigned n)
{
	const u8 *p;

	if (!c->fast) {
		p = (c->in & 7) ? NULL : pv_memory(v, c->in, n * 8);
		if (p)
			memcpy(to, p, n * 8);
		return p;
	}
	for (unsigned k = 0; k < n; k++) {
		if (k < 2)
			to[k] = k ? c->out : c->in;
		else if (k < 2 + 12)
			memcpy(&to[k], (const u8 *)v->fpu.ymm[(k - 2) / 2] + (k & 1) * 8, 8);
		else
			return false;
	}
	return true;
}

/* Every vCPU forgets its translations before the next instruction: more than was asked for is allowed. */
static u32 call_flush(struct vcpu *v, const struct hv_call *c)
{
	struct vm *vm = v->vm;

	if ((c->code == HV_CALL_FLUSH || c->code == HV_CALL_FLUSH_EX) ? c->reps : !c->reps)
		return HV_BAD_INPUT;
	for (unsigned n = 0; n < vm->n_vcpu; n++) {
		struct kvm_vcpu *kv = __atomic_load_n(&vm->vcpu[n], __ATOMIC_ACQUIRE);

		if (kv)
			atomic_fetch_or(&kv->cpu.events, (u32)EV_TLB);
	}
	vm_stop(vm, v);
	vm_resume(vm, v);
	return HV_SUCCESS;
}

static void send_to(struct vcpu *v, u64 mask, unsigned first, u8 vector)
{
	struct chips *c = chips_of(v->vm);

	pthread_mutex_lock(&c->lock);
	for (unsigned n = 0; n < 64; n++) {
		unsigned id = first + n;

		if ((mask >> n & 1) && id < c->n_lapic && c->lapic[id]) {
			struct ipi m = {.vector = vector, .assert = true, .shorthand = 1, .from = c->lapic[id]};

			ipi_send_locked(c, &m);
		}
	}
	pthread_mutex_unlock(&c->lock);
}

static u32 call_ipi(struct vcpu *v, const struct hv_call *c)
{
	u64 in[3 + 16], vector;
	unsigned banks = 0;

	if (c->reps || !chips_of(v->vm))
		return HV_BAD_INPUT;
	if (c->code == HV_CALL_IPI) {
		if (!input(v, c, in, 2))
			return HV_BAD_INPUT;
		vector = (u32)in[0];
		if (vector < 16 || vector > 255)
			return HV_BAD_INPUT;
		send_to(v, in[1], 0, (u8)vector);
		return HV_SUCCESS;
	}
	/* vector, target; format; which banks of 64 there are; the banks. */
	if (c->var > 16 || !input(v, c, in, 3u + c->var))
		return HV_BAD_INPUT;
	vector = (u32)in[0];
	if ((unsigned)__builtin_popcountll(in[2]) != c->var)
		return HV_BAD_INPUT;
	if (in[1] != 1 && !c->var)
		return HV_SUCCESS;
	if (vector < 16 || vector > 255)
		return HV_BAD_INPUT;
	for (unsigned n = 0; n < 16; n++) {
		if (in[1] == 1)
			send_to(v, ~0ull, 64 * n, (u8)vector);
		else if (in[2] >> n & 1)
			send_to(v, in[3 + banks++], 64 * n, (u8)vector);
	}
	return HV_SUCCESS;
}

static bool call_allowed(const struct vcpu12 *x, u16 code)
{
	if (!x->hv_enforce)
		return true;
	switch (code) {
	case HV_CALL_SPIN:
		return x->hv_spin && x->hv_spin != ~0u;
	case HV_CALL_POST_MESSAGE:
		return x->hv_ebx & HV_MAY_POST;
	case HV_CALL_SIGNAL_EVENT:
		return x->hv_ebx & HV_MAY_SIGNAL;
	case HV_CALL_DEBUG_FIRST ... HV_CALL_DEBUG_LAST:
		return !(x->hv_dbg & 2) || (x->hv_ebx & HV_MAY_DEBUG);
	case HV_CALL_FLUSH_EX:
	case HV_CALL_FLUSH_LIST_EX:
	case HV_CALL_IPI_EX:
		if (!(x->hv_says & HV_SAYS_EX_MASKS))
			return false;
		return x->hv_says & (code == HV_CALL_IPI_EX ? HV_SAYS_CLUSTER_IPI : HV_SAYS_TLB_FLUSH);
	case HV_CALL_FLUSH:
	case HV_CALL_FLUSH_LIST:
		return x->hv_says & HV_SAYS_TLB_FLUSH;
	case HV_CALL_IPI:
		return x->hv_says & HV_SAYS_CLUSTER_IPI;
	default:
		return true;
	}
}

static bool takes_xmm(u16 code)
{
	return code == HV_CALL_FLUSH || code == HV_CALL_FLUSH_LIST || code == HV_CALL_FLUSH_EX ||
	       code == HV_CALL_FLUSH_LIST_EX || code == HV_CALL_IPI_EX;
}

/* The client does it: KVM_EXIT_HYPERV. */
#define HV_ASK 0xffffu

/* A message, or an event for a connection that only the client can know. */
static u32 call_client(struct vcpu *v, const struct hv_call *c)
{
	return c->reps || !synic_active(x12_of(v)) ? HV_BAD_INPUT : HV_ASK;
}

/* A connection's number, and nothing else that anybody uses. */
static u32 call_signal(struct vcpu *v, const struct hv_call *c)
{
	u64 in = c->in;

	if (c->reps)
		return HV_BAD_INPUT;
	if (!c->fast && !input(v, c, &in, 1))
		return HV_BAD_ALIGNMENT;
	if (in & 0xffff00000000ull)
		return call_client(v, c);
	if (in & ~0xffffffull)
		return HV_BAD_INPUT;
	return hv_conn_signal(v->vm, (u32)in) ? HV_SUCCESS : call_client(v, c);
}

static u32 dispatch(struct vcpu *v, const struct hv_call *c)
{
	if (!call_allowed(x12_of(v), c->code))
		return HV_DENIED;
	switch (c->code) {
	case HV_CALL_SPIN:
		if (c->reps)
			return HV_BAD_INPUT;
		sched_yield();
		return HV_SUCCESS;
	case HV_CALL_FLUSH:
	case HV_CALL_FLUSH_LIST:
	case HV_CALL_FLUSH_EX:
	case HV_CALL_FLUSH_LIST_EX:
		return call_flush(v, c);
	case HV_CALL_IPI:
	case HV_CALL_IPI_EX:
		return call_ipi(v, c);
	case HV_CALL_SIGNAL_EVENT:
		return call_signal(v, c);
	case HV_CALL_POST_MESSAGE:
		return call_client(v, c);
	case HV_CALL_DEBUG_FIRST ... HV_CALL_DEBUG_LAST:
		if (!(x12_of(v)->hv_dbg & 2))
			return HV_BAD_CODE;
		return c->fast ? HV_BAD_INPUT : syndbg_takes_calls(v) ? HV_ASK : HV_REFUSED;
	default:
		return HV_BAD_CODE;
	}
}

static void result_to(struct vcpu *v, u64 result)
{
	if (v->mode == MODE_64) {
		v->r[R_RAX] = result;
	} else {
		v->r[R_RDX] = result >> 32;
		v->r[R_RAX] = (u32)result;
	}
}

void hv_answered(struct kvm_vcpu *kv)
{
	result_to(&kv->cpu, kv->x12->run->hyperv.u.hcall.result);
}

int hv_hypercall(struct vcpu *v, const struct insn *i)
{
	const struct vcpu12 *x = x12_of(v);
	struct hv_call c;
	u64 control, result;

	if (v->cpl != 0 || !(v->cr0 & CR0_PE))
		return excp_raise(v, EXC_UD);
	if (v->mode == MODE_64) {
		control = v->r[R_RCX];
		c.in = v->r[R_RDX];
		c.out = v->r[R_R8];
	} else {
		control = v->r[R_RDX] << 32 | (u32)v->r[R_RAX];
		c.in = v->r[R_RBX] << 32 | (u32)v->r[R_RCX];
		c.out = v->r[R_RDI] << 32 | (u32)v->r[R_RSI];
	}
	c.code = (u16)control;
	c.fast = control >> 16 & 1;
	c.var = control >> 17 & 0x3ff;
	c.reps = control >> 32 & 0xfff;
	c.first = control >> 48 & 0xfff;
	if (c.fast && takes_xmm(c.code) && x->hv_enforce && !(x->hv_edx & HV_HAS_XMM_INPUT))
		return excp_raise(v, EXC_UD);
	result = dispatch(v, &c);
	if (result == HV_ASK) {
		struct vcpu12 *x2 = x12_of(v);

		x2->run->exit_reason = KVM_EXIT_HYPERV;
		memset(&x2->run->hyperv, 0, sizeof(x2->run->hyperv));
		x2->run->hyperv.type = KVM_EXIT_HYPERV_HCALL;
		x2->run->hyperv.u.hcall.input = control;
		x2->run->hyperv.u.hcall.params[0] = c.in;
		x2->run->hyperv.u.hcall.params[1] = c.out;
		x2->pend = PEND_HCALL;
		x2->pend_rip = v->r[R_RIP];
		x2->pend_io = (struct pio){.len = i->len};
		v->exit.reason = EXIT_OWNER;
		return STEP_EXIT;
	}
	if (result == HV_SUCCESS)
		result |= (u64)c.reps << 32;
	result_to(v, result);
	return STEP_OK;
}
