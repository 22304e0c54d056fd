/*
 * vm.c: the VM object: its memory file, its vCPUs, and stopping them all.
 *
 * Stopping: a thread that must change what vCPUs look at (memslots, dirty bits) sets vm->stop, kicks every vCPU and
 * waits until none executes guest instructions. vCPUs notice at the next instruction block, so this takes microseconds;
 * no signal is sent. One stopper at a time; a vCPU that becomes a stopper (a split LOCKed access) counts as stopped
 * itself.
 */
#define _GNU_SOURCE
#include "kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../base/sys.h"
#include "../interp/interp.h"
#include "../jit/jit.h"

int vm_create(int memfd, struct vm **out)
{
	struct vm *vm = calloc(1, sizeof(*vm));
	int err;

	if (!vm)
		return -ENOMEM;
	vm->memfd = memfd < 0 ? -1 : fcntl(memfd, F_DUPFD_CLOEXEC, 3);
	if (memfd >= 0 && vm->memfd < 0) {
		err = -errno;
		free(vm);
		return err;
	}
	pthread_mutex_init(&vm->lock, NULL);
	pthread_mutex_init(&vm->run_lock, NULL);
	pthread_cond_init(&vm->run_cond, NULL);
	vm_mem_init(&vm->mem);
	*out = vm;
	return 0;
}

void vm_destroy(struct vm *vm)
{
	for (unsigned n = 0; n < vm->n_vcpu; n++)
		if (vm->vcpu[n])
			vcpu_destroy(vm->vcpu[n]);
	for (unsigned n = 0; n < VM_MAX_SLOTS_2006; n++)
		if (vm->slot[n]) {
			munmap(vm->slot[n]->hva, vm->slot[n]->size);
			memslot_free(vm->slot[n]);
		}
	vm_mem_free(&vm->mem);
	if (vm->memfd >= 0)
		sys_close(vm->memfd);
	pthread_cond_destroy(&vm->run_cond);
	pthread_mutex_destroy(&vm->run_lock);
	pthread_mutex_destroy(&vm->lock);
	free(vm);
}

void vm_add_vcpu(struct vm *vm, unsigned id, struct kvm_vcpu *kv)
{
	__atomic_store_n(&vm->vcpu[id], kv, __ATOMIC_RELEASE);
	if (id >= vm->n_vcpu)
		vm->n_vcpu = id + 1;
}

void vm_stop(struct vm *vm, struct vcpu *self)
{
	pthread_mutex_lock(&vm->run_lock);
	if (self) {
		atomic_fetch_sub(&vm->running, 1u);
		pthread_cond_broadcast(&vm->run_cond);
	}
	while (atomic_load(&vm->stop))
		pthread_cond_wait(&vm->run_cond, &vm->run_lock);
	atomic_store(&vm->stop, true);
	for (unsigned n = 0; n < vm->n_vcpu; n++) {
		struct kvm_vcpu *kv = __atomic_load_n(&vm->vcpu[n], __ATOMIC_ACQUIRE);

		if (kv && &kv->cpu != self)
			atomic_fetch_or(&kv->cpu.events, (u32)EV_KICK);
	}
	while (atomic_load(&vm->running) > 0)
		pthread_cond_wait(&vm->run_cond, &vm->run_lock);
	pthread_mutex_unlock(&vm->run_lock);
}

void vm_resume(struct vm *vm, struct vcpu *self)
{
	pthread_mutex_lock(&vm->run_lock);
	atomic_store(&vm->stop, false);
	if (self)
		atomic_fetch_add(&vm->running, 1u);
	pthread_cond_broadcast(&vm->run_cond);
	pthread_mutex_unlock(&vm->run_lock);
}

void vm_begin_change(struct vm *vm)
{
	pthread_mutex_lock(&vm->lock);
	vm_stop(vm, NULL);
}

void vm_end_change(struct vm *vm)
{
	vm_resume(vm, NULL);
	pthread_mutex_unlock(&vm->lock);
}

/*
 * Entering and leaving take no lock while nobody stops the VM: each exit does both. Who enters counts itself first and
 * then looks at `stop`; who stops sets `stop` first and then looks at the count. So one of them sees the other.
 */
void vm_enter(struct vm *vm)
{
	atomic_fetch_add(&vm->running, 1u);
	if (likely(!atomic_load(&vm->stop)))
		return;
	vm_leave(vm);
	pthread_mutex_lock(&vm->run_lock);
	while (atomic_load(&vm->stop))
		pthread_cond_wait(&vm->run_cond, &vm->run_lock);
	atomic_fetch_add(&vm->running, 1u);
	pthread_mutex_unlock(&vm->run_lock);
}

void vm_leave(struct vm *vm)
{
	atomic_fetch_sub(&vm->running, 1u);
	if (likely(!atomic_load(&vm->stop)))
		return;
	/* Whoever waits for the count has looked at it, or waits by now. */
	pthread_mutex_lock(&vm->run_lock);
	pthread_cond_broadcast(&vm->run_cond);
	pthread_mutex_unlock(&vm->run_lock);
}

void vm_flush_all(struct vm *vm)
{
	for (unsigned n = 0; n < vm->n_vcpu; n++)
		if (vm->vcpu[n]) {
			tlb_flush(&vm->vcpu[n]->cpu.mmu);
			interp_flush(&vm->vcpu[n]->cpu);
			jit_slots_changed(&vm->vcpu[n]->cpu);
		}
}

void vm_memory_changed(struct vm *vm, u64 address, u64 size)
{
	const u8 *hva = (const u8 *)(uintptr_t)address;

	for (unsigned n = 0; n < vm->n_vcpu; n++)
		if (vm->vcpu[n]) {
			tlb_drop_memory(&vm->vcpu[n]->cpu.mmu, hva, size);
			jit_memory_changed(&vm->vcpu[n]->cpu, hva, size);
		}
}

void vm_flush_writes(struct vm *vm)
{
	for (unsigned n = 0; n < vm->n_vcpu; n++)
		if (vm->vcpu[n])
			tlb_flush_writes(&vm->vcpu[n]->cpu.mmu);
}

u8 *vm_map(struct vm *vm, gpa_t gpa, u64 size)
{
	void *p;

	if (gpa + size > vm->memfd_size) {
		if (ftruncate(vm->memfd, (off_t)(gpa + size)) < 0)
			return NULL;
		vm->memfd_size = gpa + size;
	}
	p = sys_mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, vm->memfd, (off_t)gpa);
	if (p == MAP_FAILED)
		return NULL;
	/* A fork()ed child cannot run this VM; it must not keep the memory alive either. */
	madvise(p, size, MADV_DONTFORK);
	return p;
}
