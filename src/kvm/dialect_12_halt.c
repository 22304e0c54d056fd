/*
 * dialect_12_halt.c: a vCPU that waits: HLT, INIT and SIPI, and who wakes it.
 *
 * Invariant: a vCPU that waits looks at the word of its events, at first by reading it, then asleep in a futex on it.
 * So whoever sets a bit there and finds it asleep wakes it, and a signal handler needs no more than the bit.
 *
 * Reading it for a while first (halt polling, as Linux' KVM does) makes sense where the wait is short: two vCPUs that
 * talk to each other in turn would else pay the host's scheduler for every word. For how long is learnt from the waits
 * before, so that a guest that idles does not read at all.
 */
#define _GNU_SOURCE
#include "dialect_12.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "../jit/jit.h"

/* In nanoseconds, as in Linux' KVM. */
#define POLL_FIRST 10000u
#define POLL_MOST 200000u /* until the client sets another */
/* A look that comes later than this after the one before it: the host has something else to run here. */
#define POLL_TORN 30000u

void vcpu12_notify(struct kvm_vcpu *kv, u32 bits)
{
	atomic_fetch_or(&kv->cpu.events, bits);
	if (atomic_load(&kv->x12->sleeping))
		syscall(SYS_futex, &kv->cpu.events, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

void vcpu12_wake(struct vcpu *v)
{
	struct kvm_vcpu *kv = v->owner;

	if (kv->x12 && atomic_load(&kv->x12->sleeping))
		syscall(SYS_futex, &v->events, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static u64 now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (u64)t.tv_sec * 1000000000u + (u64)t.tv_nsec;
}

/* The C library opens a file to count processors, and a client's filter may not let a vCPU do that. */
void halt12_init(struct vm12 *x)
{
	long processors = sysconf(_SC_NPROCESSORS_ONLN);

	x->poll_most = POLL_MOST;
	x->poll_vcpus = processors > 1 ? (u32)processors - 1 : 0;
}

/* Is there a processor for everybody while this vCPU keeps one busy? */
static bool may_poll(const struct vm *vm)
{
	return atomic_load_explicit(&vm->x12->polling, memory_order_relaxed) < vm->x12->poll_vcpus;
}

/* Until the events are no longer `ev`: true; or for as long as it seems worth while, from `start` on. */
static bool poll_events(struct kvm_vcpu *kv, u32 ev, u64 start)
{
	struct vm12 *x = kv->cpu.vm->x12;
	u32 limit = kv->x12->poll_ns;
	u64 last = start, now;
	bool came = false;

	/* A guest that looks by itself says so in MSR_KVM_POLL_CONTROL. */
	if (!limit || !(kv->x12->poll_control & 1) || !may_poll(kv->cpu.vm))
		return false;
	stat12(&kv->cpu, DEVKVM_halt_attempted_poll);
	atomic_fetch_add_explicit(&x->polling, 1, memory_order_relaxed);
	do {
		for (unsigned n = 0; n < 16 && !came; n++) {
			_mm_pause();
			came = atomic_load(&kv->cpu.events) != ev;
		}
		now = now_ns();
		if (now - last > POLL_TORN) {
			kv->x12->poll_ns = 0;
			break;
		}
		last = now;
	} while (!came && now - start < limit);
	atomic_fetch_sub_explicit(&x->polling, 1, memory_order_relaxed);
	if (came)
		stat12(&kv->cpu, DEVKVM_halt_successful_poll);
	return came;
}

/* How long to read next time: longer where it was just too short, not at all where the wait was long. */
static void poll_learn(struct kvm_vcpu *kv, u64 waited)
{
	struct vcpu12 *x = kv->x12;
	u32 most = kv->cpu.vm->x12->poll_most;

	if (waited > most)
		x->poll_ns = 0;
	else if (!x->poll_ns)
		x->poll_ns = most < POLL_FIRST ? most : POLL_FIRST;
	else if (waited > x->poll_ns)
		x->poll_ns = x->poll_ns * 2 < most ? x->poll_ns * 2 : most;
}

static void take_init(struct kvm_vcpu *kv)
{
	struct lapic *l = lapic_of(&kv->cpu);

	pthread_mutex_lock(&l->chips->lock);
	lapic_reset_locked(l, true);
	pthread_mutex_unlock(&l->chips->lock);
	vapic_reset(kv->x12);
	apf_reset(kv->x12);
	vcpu12_reset(kv, true);
	kv->x12->mp_state = l->bsp ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_INIT_RECEIVED;
}

static void take_sipi(struct kvm_vcpu *kv)
{
	struct vcpu *v = &kv->cpu;

	v->seg[SEG_CS].sel = (u16)(kv->x12->sipi_vector << 8);
	v->seg[SEG_CS].base = (u64)kv->x12->sipi_vector << 12;
	v->r[R_RIP] = 0;
	cpu_update(v);
	kv->x12->mp_state = KVM_MP_STATE_RUNNABLE;
}

static void take_latch(struct kvm_vcpu *kv)
{
	u32 what = atomic_exchange(&kv->x12->latch, 0);

	if (what & LATCH_STIMER)
		synic_poll(kv);
	if (what & LATCH_SMI)
		kv->x12->smi_pending = true;
	/* System management mode keeps an INIT waiting, and never sees a SIPI. */
	if (kv->x12->smm) {
		atomic_fetch_or(&kv->x12->latch, what & LATCH_INIT);
		return;
	}
	if (what & LATCH_INIT)
		take_init(kv);
	if ((what & LATCH_SIPI) && kv->x12->mp_state == KVM_MP_STATE_INIT_RECEIVED)
		take_sipi(kv);
}

static bool wakes(struct kvm_vcpu *kv)
{
	struct vcpu *v = &kv->cpu;

	if (nmi_collect(v) && !v->nmi_masked)
		return true;
	if (atomic_exchange(&kv->x12->unhalted, false))
		return true;
	if (kv->x12->smi_pending && !kv->x12->smm)
		return true;
	return (v->rflags & FLAGS_IF) && v->ops->irq_pending(v);
}

/* What vcpu12_wait() cleared is an event again. */
static bool wait_ends(struct vcpu *v, bool runnable)
{
	atomic_fetch_or(&v->events, (u32)EV_IRQ);
	if (nmi_collect(v))
		atomic_fetch_or(&v->events, (u32)EV_NMI);
	return runnable;
}

bool vcpu12_wait(struct kvm_vcpu *kv)
{
	struct vcpu12 *x = kv->x12;
	struct vcpu *v = &kv->cpu;
	u64 start = now_ns();
	bool waited = false;

	/* The client's other threads go on meanwhile, and an INIT starts code that may be new. */
	v->goes_on = false;
	for (;;) {
		u32 ev;

		if (run_signalled())
			return wait_ends(v, false);
		/* Cleared first: whoever comes from now on changes the word that we wait on. */
		atomic_fetch_and(&v->events, ~(u32)(EV_IRQ | EV_NMI | EV_SIGNAL));
		ev = atomic_load(&v->events);
		if (atomic_load(&x->latch))
			take_latch(kv);
		jit_asleep(v);
		if (x->mp_state == KVM_MP_STATE_HALTED && wakes(kv)) {
			x->mp_state = KVM_MP_STATE_RUNNABLE;
			stat12(v, DEVKVM_halt_wakeup);
			if (waited)
				poll_learn(kv, now_ns() - start);
		}
		if (x->mp_state == KVM_MP_STATE_RUNNABLE) {
			if (unlikely(x->smi_pending))
				smm_poll(kv);
			return wait_ends(v, !run_signalled());
		}
		if (run_signalled())
			continue;
		waited = true;
		vm_leave(v->vm);
		if (x->mp_state != KVM_MP_STATE_HALTED || !poll_events(kv, ev, start)) {
			atomic_store(&x->sleeping, true);
			syscall(SYS_futex, &v->events, FUTEX_WAIT_PRIVATE, ev, NULL, NULL, 0);
			atomic_store(&x->sleeping, false);
		}
		vm_enter(v->vm);
	}
}
