/*
 * dialect_12_pv.c: what guests of Linux' KVM share with their hypervisor: its MSRs, the clock and steal time pages,
 * hypercalls (Documentation/virt/kvm/x86/{msr,hypercalls,cpuid}.rst); and the TSC beneath the clock.
 *
 * Invariants: the TSC runs at the host's rate; every vCPU of a VM that the client did not send elsewhere shows the same
 * count. kvmclock is that TSC, scaled: so a page once written stays right.
 */
#include "dialect_12.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "../base/sys.h"
#include "../base/usercopy.h"
#include "../cpu/vmem.h"

/* ---- time -------------------------------------------------------------------------------------------------------- */

/* Gives a vCPU's TSC a value, as the client asks. Zero, and values that a brother's TSC would have within a second,
 * mean "as the others": clients set one vCPU after the other, and the counts must not drift apart by that. */
void tsc12_set(struct vcpu *v, u64 val)
{
	struct vm12 *x = v->vm->x12;
	u64 host = __rdtsc(), expect;
	bool same;

	pthread_mutex_lock(&x->time_lock);
	expect = x->tsc_write + (host - x->tsc_write_host);
	same = x->tsc_set && (val == 0 || val + (u64)tsc_khz() * 1000 - expect < (u64)tsc_khz() * 2000);
	if (!same) {
		x->tsc_offset = (s64)(val - host);
		x->tsc_write = val;
		x->tsc_write_host = host;
		x->tsc_set = true;
	}
	v->tsc_offset = x->tsc_offset;
	pthread_mutex_unlock(&x->time_lock);
}

void tsc12_init(struct vcpu *v)
{
	tsc12_set(v, 0);
}

u8 *pv_memory(struct vcpu *v, gpa_t gpa, u32 len)
{
	struct memslot *s = memslot_find(&v->vm->mem, gpa);

	if (!s || s->gpa + s->size - gpa < len || (s->flags & MEMSLOT_READONLY))
		return NULL;
	if (!user_reachable(s->hva + (gpa - s->gpa), true) || !user_reachable(s->hva + (gpa - s->gpa) + len - 1, true))
		return NULL;
	memslot_mark_dirty(s, gpa);
	return s->hva + (gpa - s->gpa);
}

/* Linux' pvclock ABI. */
struct pv_time {
	u32 version, pad0;
	u64 tsc_timestamp, system_time;
	u32 mul;
	s8 shift;
	u8 flags;
	u8 pad[2];
};

struct pv_wall {
	u32 version, sec, nsec;
};

#define PV_TIME_STABLE 1
#define PV_TIME_STOPPED 2

void clock12_update(struct vcpu *v)
{
	struct vcpu12 *x = x12_of(v);
	struct pv_time t = {.flags = PV_TIME_STABLE}, *page;
	u64 hz = (u64)tsc_khz() * 1000, host = __rdtsc();

	if (!(x->msr_clock & 1))
		return;
	page = (struct pv_time *)(void *)pv_memory(v, x->msr_clock & ~1ull, sizeof(t));
	if (!page)
		return;
	/* ns = (ticks << shift) * mul >> 32, with mul below 2^32. */
	for (; hz <= 1000000000; hz *= 2)
		t.shift++;
	t.mul = (u32)((1000000000ull << 32) / hz);
	t.tsc_timestamp = host + (u64)v->tsc_offset;
	t.system_time = vm12_clock(v->vm, host);
	if (x->clock_stopped)
		t.flags |= PV_TIME_STOPPED;
	x->clock_stopped = false;
	/* An odd version tells a reader on another vCPU to wait. */
	t.version = page->version | 1;
	__atomic_store_n(&page->version, t.version, __ATOMIC_SEQ_CST);
	memcpy((u8 *)page + 4, (u8 *)&t + 4, sizeof(t) - 4);
	__atomic_store_n(&page->version, t.version + 1, __ATOMIC_SEQ_CST);
}

/* Wall time at which kvmclock was 0. */
static void wall_update(struct vcpu *v, gpa_t gpa)
{
	struct pv_wall w = {.version = 2};
	struct timespec now;
	u64 ns;
	u8 *page;

	clock_gettime(CLOCK_REALTIME, &now);
	ns = (u64)now.tv_sec * 1000000000 + (u64)now.tv_nsec - vm12_clock(v->vm, __rdtsc());
	w.sec = (u32)(ns / 1000000000);
	w.nsec = (u32)(ns % 1000000000);
	page = pv_memory(v, gpa, sizeof(w));
	if (page)
		memcpy(page, &w, sizeof(w));
}

/* ---- steal time -------------------------------------------------------------------------------------------------- */

/* Nanoseconds that this thread could have run and did not. */
static u64 thread_waited(void)
{
	unsigned long long ran, waited = 0;
	char text[64];
	int fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (fd >= 0)
		sys_close(fd);
	if (n <= 0)
		return 0;
	text[n] = 0;
	return sscanf(text, "%llu %llu", &ran, &waited) == 2 ? waited : 0;
}

static void steal_update(struct vcpu *v, bool begins)
{
	struct vcpu12 *x = x12_of(v);
	struct kvm_steal_time *st =
	        (struct kvm_steal_time *)(void *)pv_memory(v, x->msr_steal & KVM_STEAL_VALID_BITS, sizeof(*st));
	u64 now = __rdtsc(), waited;

	if (!st)
		return;
	st->preempted = !begins;
	/* Reading the time costs a microsecond or two: ten times a second is enough. */
	if (!begins || now - x->steal_read < (u64)tsc_khz() * 100)
		return;
	x->steal_read = now;
	waited = thread_waited();
	if (x->steal_seen && waited > x->steal_seen) {
		__atomic_store_n(&st->version, st->version | 1, __ATOMIC_SEQ_CST);
		st->steal += waited - x->steal_seen;
		__atomic_store_n(&st->version, st->version + 1, __ATOMIC_SEQ_CST);
	}
	x->steal_seen = waited;
}

void pv_run(struct vcpu *v, bool begins)
{
	struct vcpu12 *x = x12_of(v);

	if (x->msr_steal & KVM_MSR_ENABLED)
		steal_update(v, begins);
	if (begins && x->clock_stopped)
		clock12_update(v);
}

/* ---- MSRs -------------------------------------------------------------------------------------------------------- */

/* From the guest the memslots stand still; from an ioctl they must be held. */
static void clock_write(struct vcpu *v, bool wall, u64 val, bool host)
{
	struct vcpu12 *x = x12_of(v);

	if (host)
		pthread_mutex_lock(&v->vm->lock);
	if (wall) {
		x->msr_wall = val;
		if (val)
			wall_update(v, val);
	} else {
		x->msr_clock = val;
		clock12_update(v);
	}
	if (host)
		pthread_mutex_unlock(&v->vm->lock);
}

/* The feature of leaf 0x40000001 that an MSR belongs to; -1: not one of these. */
static int pv_feature(u32 msr)
{
	switch (msr) {
	case MSR_KVM_WALL_CLOCK:
	case MSR_KVM_SYSTEM_TIME:
		return KVM_FEATURE_CLOCKSOURCE;
	case MSR_KVM_WALL_CLOCK_NEW:
	case MSR_KVM_SYSTEM_TIME_NEW:
		return KVM_FEATURE_CLOCKSOURCE2;
	case MSR_KVM_STEAL_TIME:
		return KVM_FEATURE_STEAL_TIME;
	case MSR_KVM_POLL_CONTROL:
		return KVM_FEATURE_POLL_CONTROL;
	case MSR_KVM_PV_EOI_EN:
		return KVM_FEATURE_PV_EOI;
	case MSR_KVM_ASYNC_PF_EN:
		return KVM_FEATURE_ASYNC_PF;
	case MSR_KVM_ASYNC_PF_INT:
	case MSR_KVM_ASYNC_PF_ACK:
		return KVM_FEATURE_ASYNC_PF_INT;
	default:
		return -1;
	}
}

int pv_msr_read(struct vcpu *v, u32 msr, u64 *val)
{
	struct vcpu12 *x = x12_of(v);
	int feature = pv_feature(msr);

	if (feature < 0)
		return (msr & ~0xffu) == MSR_KVM_WALL_CLOCK_NEW ? -1 : MSR_PASS;
	if (!pv_has(x, (unsigned)feature))
		return -1;
	switch (msr) {
	case MSR_KVM_WALL_CLOCK:
	case MSR_KVM_WALL_CLOCK_NEW:
		*val = x->msr_wall;
		break;
	case MSR_KVM_STEAL_TIME:
		*val = x->msr_steal;
		break;
	case MSR_KVM_POLL_CONTROL:
		*val = x->poll_control;
		break;
	case MSR_KVM_PV_EOI_EN:
		*val = x->msr_eoi;
		break;
	case MSR_KVM_ASYNC_PF_EN:
		*val = x->msr_apf;
		break;
	case MSR_KVM_ASYNC_PF_INT:
		*val = x->msr_apf_int;
		break;
	case MSR_KVM_ASYNC_PF_ACK:
		*val = 0;
		break;
	default:
		*val = x->msr_clock;
	}
	return 0;
}

int pv_msr_write(struct vcpu *v, u32 msr, u64 val, bool host)
{
	struct vcpu12 *x = x12_of(v);
	int feature = pv_feature(msr), rc;

	if (feature < 0)
		return (msr & ~0xffu) == MSR_KVM_WALL_CLOCK_NEW ? -1 : MSR_PASS;
	if (!pv_has(x, (unsigned)feature))
		return -1;
	switch (msr) {
	case MSR_KVM_STEAL_TIME:
		if (val & KVM_STEAL_RESERVED_MASK)
			return -1;
		x->msr_steal = val;
		x->steal_seen = x->steal_read = 0;
		return 0;
	case MSR_KVM_POLL_CONTROL:
		if (val & ~1ull)
			return -1;
		x->poll_control = val;
		return 0;
	case MSR_KVM_ASYNC_PF_EN:
	case MSR_KVM_ASYNC_PF_INT:
	case MSR_KVM_ASYNC_PF_ACK:
		return apf_msr_write(v, msr, val, host);
	case MSR_KVM_PV_EOI_EN:
		if (host)
			pthread_mutex_lock(&v->vm->lock);
		rc = vapic_eoi_write(v, val);
		if (host)
			pthread_mutex_unlock(&v->vm->lock);
		else
			vapic_out(v);
		return rc;
	}
	clock_write(v, msr == MSR_KVM_WALL_CLOCK || msr == MSR_KVM_WALL_CLOCK_NEW, val, host);
	return 0;
}

/* ---- hypercalls -------------------------------------------------------------------------------------------------- */

/* The other vendor's instruction: Linux' KVM writes its own over it, and so do we. */
static int patch_hypercall(struct vcpu *v)
{
	const u8 code[3] = {0x0f, 0x01, cpuid_is_amd() ? 0xd9 : 0xc1};
	gva_t lin = v->r[R_RIP] + (v->mode == MODE_64 ? 0 : v->seg[SEG_CS].base);
	int rc;

	if (v->vm->x12->quirks_off & KVM_X86_QUIRK_FIX_HYPERCALL_INSN)
		return excp_raise(v, EXC_UD);
	if (v->mode != MODE_64)
		lin = (u32)lin;
	rc = lin_write(v, lin, code, sizeof(code));
	return rc == STEP_OK ? STEP_JUMP : rc;
}

int pv_hypercall(struct vcpu *v, const struct insn *i, bool amd)
{
	struct vcpu12 *x = x12_of(v);
	u64 mask = v->mode == MODE_64 ? ~0ull : 0xffffffffu, nr = v->r[R_RAX] & mask, ret = 0, map[2];
	struct kvm_vcpu *to;

	stat12(v, DEVKVM_hypercalls);
	if (amd != cpuid_is_amd())
		return patch_hypercall(v);
	if (unlikely(hv_calls(v)))
		return hv_hypercall(v, i);
	if (v->cpl != 0) {
		ret = (u64)-KVM_EPERM;
		goto out;
	}
	switch (nr) {
	case KVM_HC_VAPIC_POLL_IRQ:
		/* The guest lowered its priority in memory. */
		if (x->vapic_used)
			atomic_fetch_or(&v->events, (u32)EV_IRQ);
		break;
	case KVM_HC_SEND_IPI:
		if (!pv_has(x, KVM_FEATURE_PV_SEND_IPI))
			goto unknown;
		map[0] = v->r[R_RBX] & mask;
		map[1] = v->r[R_RCX] & mask;
		ret = vapic_send_ipi(v, map, (u32)v->r[R_RDX], v->r[R_RSI] & mask, v->mode == MODE_64 ? 64 : 32);
		break;
	case KVM_HC_KICK_CPU:
		if (!pv_has(x, KVM_FEATURE_PV_UNHALT))
			goto unknown;
		to = chips12_by_apic_id(v->vm, (u32)(v->r[R_RCX] & mask));
		if (to) {
			atomic_store(&to->x12->unhalted, true);
			vcpu12_notify(to, EV_IRQ);
		}
		break;
	case KVM_HC_SCHED_YIELD:
		if (!pv_has(x, KVM_FEATURE_PV_SCHED_YIELD))
			goto unknown;
		/* Whoever it is for may run on this processor. */
		sched_yield();
		break;
	default:
	unknown:
		ret = (u64)-KVM_ENOSYS;
	}
out:
	v->r[R_RAX] = ret & mask;
	return STEP_OK;
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

/* The guest was stopped for long: its watchdogs hear of it through the clock's flags. */
long kvmclock_ctrl(struct kvm_vcpu *kv, unsigned long arg)
{
	if (!(kv->x12->msr_clock & 1))
		return -EINVAL;
	kv->x12->clock_stopped = true;
	return 0;
}

static int attr_is_offset(const struct kvm_device_attr *a)
{
	return a->group == KVM_VCPU_TSC_CTRL && a->attr == KVM_VCPU_TSC_OFFSET ? 0 : -ENXIO;
}

static long attr_read(struct kvm_device_attr *a, unsigned long arg)
{
	long rc = user_read(a, (void *)arg, sizeof(*a));

	return rc < 0 ? rc : attr_is_offset(a);
}

long vcpu_has_attr(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_device_attr a;

	return attr_read(&a, arg);
}

long vcpu_get_attr(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_device_attr a;
	u64 offset = (u64)kv->cpu.tsc_offset;
	long rc = attr_read(&a, arg);

	return rc < 0 ? rc : user_write((void *)(uintptr_t)a.addr, &offset, sizeof(offset));
}

long vcpu_set_attr(struct kvm_vcpu *kv, unsigned long arg)
{
	struct vm12 *x = kv->cpu.vm->x12;
	struct kvm_device_attr a;
	u64 offset;
	long rc = attr_read(&a, arg);

	if (rc == 0)
		rc = user_read(&offset, (void *)(uintptr_t)a.addr, sizeof(offset));
	if (rc < 0)
		return rc;
	pthread_mutex_lock(&x->time_lock);
	x->tsc_offset = kv->cpu.tsc_offset = (s64)offset;
	x->tsc_write_host = __rdtsc();
	x->tsc_write = x->tsc_write_host + offset;
	x->tsc_set = true;
	pthread_mutex_unlock(&x->time_lock);
	return 0;
}
