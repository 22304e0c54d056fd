/*
 * hole.c: memory of the client that goes away, or is replaced, while guests have it in use.
 *
 * What the front sees (munmap() and the like) happens with the vCPUs stopped, and their TLBs are emptied: the next
 * access probes the memory again, and ends KVM_RUN with EFAULT, the guest before the instruction, as on Linux.
 * What nobody sees is noticed by the fault, in hole_fault():
 *  - in a handler of an instruction (C code), the run is left from there: EFAULT, and registers are those before the
 *    instruction, of which a part may have been done (a string instruction goes on where it stopped);
 *  - in translated code the registers are saved, but which instruction it was is not known: an internal error.
 */
#define _GNU_SOURCE
#include "kvm.h"

#include <stdnoreturn.h>
#include <ucontext.h>

#include "../interp/interp.h"
#include "../jit/jit.h"

static _Thread_local struct {
	void *at[5]; /* __builtin_setjmp() of hole_run() */
	struct vcpu *volatile v;
	volatile bool in_code;
} landing __attribute__((tls_model("initial-exec")));

static noreturn void land(void)
{
	__builtin_longjmp(landing.at, 1);
}

/* Is the address in memory that a slot of the VM lends it? While a vCPU runs, slots do not change. */
static bool in_slot(const struct vm_mem *mem, u64 address)
{
	for (unsigned n = 0; n < mem->nslots; n++)
		if (address - (u64)(uintptr_t)mem->slot[n]->hva < mem->slot[n]->size)
			return true;
	return false;
}

bool hole_fault(u64 address, void *context)
{
	ucontext_t *uc = context;
	greg_t *reg = uc->uc_mcontext.gregs;
	struct vcpu *v = landing.v;
	u64 rip, go_on;

	if (!v || landing.in_code || !in_slot(v->mmu.vm, address))
		return false;
	if (jit_abandon(v, (u64)reg[REG_RIP], &rip, &go_on)) {
		landing.in_code = true;
		atomic_fetch_or(&v->events, (u32)EV_SIGNAL);
		reg[REG_R8] = (greg_t)rip;
		reg[REG_RIP] = (greg_t)go_on;
		return true;
	}
	landing.v = NULL;
	reg[REG_RBP] = (greg_t)(uintptr_t)landing.at[0];
	reg[REG_RSP] = (greg_t)(((u64)(uintptr_t)landing.at[2] - 256) & ~15ull) - 8;
	reg[REG_RIP] = (greg_t)(uintptr_t)land;
	reg[REG_EFL] &= ~0x400ll; /* DF: as C code expects it */
	return true;
}

static __attribute__((noinline)) void run(struct vcpu *v)
{
	if (v->jit)
		jit_run(v);
	else
		interp_run(v);
}

__attribute__((noinline)) void hole_run(struct kvm_vcpu *kv)
{
	if (__builtin_setjmp(landing.at) == 0) {
		landing.in_code = false;
		landing.v = &kv->cpu;
		run(&kv->cpu);
		kv = kvm_vcpu_of(landing.v);
		landing.v = NULL;
		if (likely(!landing.in_code))
			return;
		kv->cpu.exit.reason = EXIT_INTERNAL;
		kv->cpu.exit.internal.why = "memory of the client is gone under translated code";
	} else {
		kv = kvm_vcpu_of(run_current());
		mmio_done(&kv->cpu.mmu);
		kv->cpu.mmu.watch_stops = false;
		cpu_release_events(&kv->cpu);
		if (kv->bus_locked) {
			kv->bus_locked = false;
			vm_resume(kv->cpu.vm, &kv->cpu);
		}
		kv->cpu.exit.reason = EXIT_GONE;
		if (jit_landed(&kv->cpu)) {
			kv->cpu.exit.reason = EXIT_INTERNAL;
			kv->cpu.exit.internal.why = "memory of the client is gone under translated code";
		}
	}
	tlb_flush(&kv->cpu.mmu);
}

bool vm_lends(struct vm *vm, u64 address, u64 size)
{
	bool yes = false;

	pthread_mutex_lock(&vm->lock);
	for (unsigned n = 0; n < vm->mem.nslots && !yes; n++) {
		u64 hva = (u64)(uintptr_t)vm->mem.slot[n]->hva;

		yes = hva < address + size && address < hva + vm->mem.slot[n]->size;
	}
	pthread_mutex_unlock(&vm->lock);
	return yes;
}
