/*
 * dialect_12_ring.c: the dirty ring: each vCPU lists the pages that it is first to write, in memory that the client
 * maps from the vCPU's descriptor (Documentation/virt/kvm/api.rst, 8.29).
 *
 * Invariants: a page's bit in memslot.dirty is set exactly while some ring holds an entry for it that the client has
 * not given back; `next` - `first` entries are in use. The last entries are in reserve: KVM_RUN ends before they are
 * needed.
 */
#include "dialect_12.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "../base/bug.h"
#include "../base/sys.h"
#include "../base/usercopy.h"

#define RING_RESERVED 128u
#define RING_MOST 65536u
#define RING_OFFSET ((u64)KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE)

long ring_cap(void)
{
	return RING_MOST * sizeof(struct kvm_dirty_gfn);
}

int ring_enable(struct vm *vm, u64 size)
{
	if (!size || (size & (size - 1)) || size < PAGE_SIZE || size < RING_RESERVED * sizeof(struct kvm_dirty_gfn))
		return -EINVAL;
	if (size > (u64)ring_cap())
		return -E2BIG;
	if (vm->x12->ring_size || vm->x12->has_vcpu)
		return -EINVAL;
	vm->x12->ring_size = (u32)size;
	return 0;
}

u64 ring_file_size(const struct vm *vm, u64 otherwise)
{
	return vm->x12->ring_size ? RING_OFFSET + vm->x12->ring_size : otherwise;
}

int ring_map(struct vcpu12 *x, const struct vm *vm, int fd)
{
	void *p;

	pthread_mutex_init(&x->dirty_lock, NULL);
	if (!vm->x12->ring_size)
		return 0;
	p = sys_mmap(NULL, vm->x12->ring_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)RING_OFFSET);
	if (p == MAP_FAILED)
		return -ENOMEM;
	x->dirty_ring = p;
	x->dirty_n = vm->x12->ring_size / (u32)sizeof(struct kvm_dirty_gfn);
	return 0;
}

void ring_unmap(struct vcpu12 *x)
{
	if (x->dirty_ring)
		munmap(x->dirty_ring, x->dirty_n * sizeof(*x->dirty_ring));
	pthread_mutex_destroy(&x->dirty_lock);
}

bool ring_full(const struct vcpu12 *x)
{
	return x->dirty_ring && x->dirty_next - x->dirty_first >= x->dirty_n - RING_RESERVED;
}

static void push(struct kvm_vcpu *kv, u32 slot, u64 page)
{
	struct vcpu12 *x = kv->x12;
	struct kvm_dirty_gfn *e;

	pthread_mutex_lock(&x->dirty_lock);
	e = &x->dirty_ring[x->dirty_next & (x->dirty_n - 1)];
	if (!BUG_ON(x->dirty_next - x->dirty_first >= x->dirty_n)) {
		e->slot = slot;
		e->offset = page;
		__atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_DIRTY, __ATOMIC_RELEASE);
		x->dirty_next++;
	}
	pthread_mutex_unlock(&x->dirty_lock);
	if (ring_full(x)) {
		atomic_fetch_or(&x->latch, LATCH_EOI);
		atomic_fetch_or(&kv->cpu.events, (u32)EV_SIGNAL);
	}
}

/* memslot.dirtied */
void ring_note(struct memslot *s, u64 page)
{
	struct vm *vm = s->owner;
	struct vcpu *v = run_current();
	struct kvm_vcpu *kv = v && v->vm == vm ? kvm_vcpu_of(v) : vm->vcpu[0];

	for (unsigned n = 0; !kv && n < vm->n_vcpu; n++)
		kv = vm->vcpu[n];
	if (kv)
		push(kv, s->id, page);
}

static unsigned reset_one(struct kvm_vcpu *kv)
{
	struct vcpu12 *x = kv->x12;
	unsigned n = 0;

	pthread_mutex_lock(&x->dirty_lock);
	while (x->dirty_first != x->dirty_next) {
		struct kvm_dirty_gfn *e = &x->dirty_ring[x->dirty_first & (x->dirty_n - 1)];
		struct memslot *s;
		u64 page = e->offset;

		if (!(__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_RESET))
			break;
		/* What the client may have written there is checked. */
		s = slot12_get(kv->cpu.vm, e->slot);
		if (s && s->dirty && page < memslot_pages(s))
			atomic_fetch_and(&s->dirty[page / 64], ~BIT(page % 64));
		__atomic_store_n(&e->flags, 0, __ATOMIC_RELEASE);
		x->dirty_first++;
		n++;
	}
	pthread_mutex_unlock(&x->dirty_lock);
	return n;
}

long ring_reset(struct vm *vm, unsigned long arg)
{
	unsigned n = 0;

	if (!vm->x12->ring_size)
		return -EINVAL;
	vm_begin_change(vm);
	for (unsigned k = 0; k < vm->n_vcpu; k++)
		if (vm->vcpu[k])
			n += reset_one(vm->vcpu[k]);
	if (n)
		vm_flush_writes(vm);
	vm_end_change(vm);
	return n;
}
