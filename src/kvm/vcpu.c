/*
 * vcpu.c: making and freeing a vCPU, and the queue of external interrupts.
 */
#include "kvm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "../base/ahead.h"
#include "../interp/interp.h"
#include "../interp/thunk.h"
#include "../jit/jit.h"

static void bus_lock(struct mmu *m)
{
	struct vcpu *v = container_of(m, struct vcpu, mmu);

	vm_stop(v->vm, v);
	kvm_vcpu_of(v)->bus_locked = true;
}

static void bus_unlock(struct mmu *m)
{
	struct vcpu *v = container_of(m, struct vcpu, mmu);

	kvm_vcpu_of(v)->bus_locked = false;
	vm_resume(v->vm, v);
}

static const struct mmu_ops mmu_ops = {
        .code_written = jit_code_written,
        .bus_lock = bus_lock,
        .bus_unlock = bus_unlock,
};

int vcpu_create(struct vm *vm, u32 id, const struct vcpu_ops *ops, struct kvm_vcpu **out)
{
	struct kvm_vcpu *kv = pages_alloc(sizeof(*kv));
	int rc;

	if (!kv)
		return -ENOMEM;
	pthread_mutex_init(&kv->lock, NULL);
	mmu_init(&kv->cpu.mmu, &vm->mem, &mmu_ops);
	kv->cpu.vm = vm;
	kv->cpu.id = id;
	kv->cpu.is_bsp = id == 0;
	kv->cpu.ops = ops;
	kv->cpu.owner = kv;
	/* Now, while no filter of the client refuses the calls that executable memory takes. */
	(void)thunk_init();
	rc = interp_create(&kv->cpu);
	if (rc < 0) {
		pthread_mutex_destroy(&kv->lock);
		pages_free(kv, sizeof(*kv));
		return rc;
	}
	jit_create(&kv->cpu);
	cpu_reset(&kv->cpu);
	*out = kv;
	return 0;
}

void vcpu_destroy(struct kvm_vcpu *kv)
{
	jit_destroy(&kv->cpu);
	interp_destroy(&kv->cpu);
	pthread_mutex_destroy(&kv->lock);
	pages_free(kv, sizeof(*kv));
}

void vcpu_queue_irq(struct kvm_vcpu *kv, u8 vector)
{
	atomic_fetch_or(&kv->irqs[vector / 64], BIT(vector % 64));
	atomic_fetch_or(&kv->cpu.events, (u32)EV_IRQ);
}

bool vcpu_irq_pending(struct vcpu *v)
{
	struct kvm_vcpu *kv = kvm_vcpu_of(v);

	return atomic_load(&kv->irqs[0]) | atomic_load(&kv->irqs[1]) | atomic_load(&kv->irqs[2]) |
	       atomic_load(&kv->irqs[3]);
}

int vcpu_irq_take_lowest(struct vcpu *v)
{
	struct kvm_vcpu *kv = kvm_vcpu_of(v);

	for (unsigned n = 0; n < 4; n++) {
		u64 bits = atomic_load(&kv->irqs[n]);

		if (bits) {
			unsigned bit = (unsigned)__builtin_ctzll(bits);

			atomic_fetch_and(&kv->irqs[n], ~BIT(bit));
			return (int)(n * 64 + bit);
		}
	}
	return -1;
}
