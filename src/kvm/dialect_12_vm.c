/*
 * dialect_12_vm.c: requests on a VM's descriptor: memory, dirty log, clock, vCPUs.
 *
 * Invariants: guest memory is the client's own mapping and stays there: a slot holds its address, nothing is copied.
 * vm.mem's slots and vm12.slot[] (by id) hold the same objects.
 */
#define _GNU_SOURCE
#include "dialect_12.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "../base/sys.h"
#include "../base/usercopy.h"
#include "../x86/pte.h"

/* ---- creation and end -------------------------------------------------------------------------------------------- */

static s64 now_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (s64)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void vm12_free(struct vm *vm)
{
	struct vm12 *x = vm->x12;

	chips12_free(x);
	for (unsigned n = 0; n < vm->n_vcpu; n++)
		if (vm->vcpu[n]) {
			vcpu12_free(vm->vcpu[n]);
			vm->vcpu[n] = NULL;
		}
	for (unsigned as = 0; as < SPACES_12; as++) {
		for (unsigned n = 0; n < x->n_slot[as]; n++)
			memslot_free(x->slot[as][n]);
		free(x->slot[as]);
	}
	vm_mem_free(&x->smm_mem);
	stat12_vm_free(x);
	io_free(x);
	msr_filter_free(x);
	if (x->ring)
		munmap(x->ring, PAGE_SIZE);
	if (x->ring_fd >= 0)
		sys_close(x->ring_fd);
	pthread_mutex_destroy(&x->ring_lock);
	pthread_mutex_destroy(&x->time_lock);
	pthread_mutex_destroy(&x->hv_lock);
	hv_free(x);
	hv_conn_free(x);
	vm->x12 = NULL;
	vm_destroy(vm);
	free(x);
}

void dialect_12_put(struct vm *vm)
{
	if (atomic_fetch_sub(&vm->x12->refs, 1) == 1)
		vm12_free(vm);
}

int dialect_12_shared_page(const struct vm *vm, u64 *offset)
{
	*offset = RING_PAGE * PAGE_SIZE;
	return vm->x12->ring_fd;
}

long vm12_create(unsigned long type, struct made *made)
{
	struct vm12 *x;
	struct vm *vm;
	int fd, rc;

	if (type)
		return -EINVAL;
	x = calloc(1, sizeof(*x));
	if (!x)
		return -ENOMEM;
	rc = vm_create(-1, &vm);
	if (rc < 0) {
		free(x);
		return rc;
	}
	vm->x12 = x;
	atomic_store(&x->refs, 1);
	vm_mem_init(&x->smm_mem);
	pthread_mutex_init(&x->ring_lock, NULL);
	pthread_mutex_init(&x->time_lock, NULL);
	pthread_mutex_init(&x->hv_lock, NULL);
	halt12_init(x);
	x->clock_ref_tsc = __rdtsc();
	x->ring_fd = sealed_memfd("kvm-ring", PAGE_SIZE);
	rc = x->ring_fd;
	if (rc < 0)
		goto fail;
	x->ring = sys_mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, x->ring_fd, 0);
	if (x->ring == MAP_FAILED) {
		x->ring = NULL;
		rc = -ENOMEM;
		goto fail;
	}
	fd = stat12_vm(x);
	rc = fd;
	if (rc < 0)
		goto fail;
	made->kind = FILE_VM;
	made->vm = vm;
	return fd;
fail:
	vm12_free(vm);
	return rc;
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* Address space and number of a slot as the interface has them; false: there is no such. */
static bool slot_number(u32 slot, u32 *as, u32 *id)
{
	*as = slot >> 16;
	*id = slot & 0xffff;
	return *as < SPACES_12 && *id < SLOTS_12;
}

struct memslot *slot12_get(struct vm *vm, u32 slot)
{
	u32 as, id;

	if (!slot_number(slot, &as, &id))
		return NULL;
	return id < vm->x12->n_slot[as] ? vm->x12->slot[as][id] : NULL;
}

static struct vm_mem *slot_space(struct vm *vm, u32 slot)
{
	return slot >> 16 ? &vm->x12->smm_mem : &vm->mem;
}

static int slot_room(struct vm12 *x, u32 slot)
{
	u32 as = slot >> 16, id = slot & 0xffff;
	unsigned n = id + 1 > 2 * x->n_slot[as] ? id + 1 : 2 * x->n_slot[as];
	struct memslot **more;

	if (id < x->n_slot[as])
		return 0;
	more = realloc(x->slot[as], n * sizeof(*more));
	if (!more)
		return -ENOMEM;
	memset(more + x->n_slot[as], 0, (n - x->n_slot[as]) * sizeof(*more));
	x->slot[as] = more;
	x->n_slot[as] = n;
	return 0;
}

static void slot_put(struct vm *vm, u32 slot, struct memslot *s)
{
	vm->x12->slot[slot >> 16][slot & 0xffff] = s;
}

static int slot_log(struct vm12 *x, struct memslot *s, bool on)
{
	int rc;

	if (on == !!s->dirty)
		return 0;
	rc = memslot_set_dirty_log(s, on);
	if (rc == 0 && on && (x->manual_protect & KVM_DIRTY_LOG_INITIALLY_SET) && !x->ring_size)
		for (u64 page = 0; page < memslot_pages(s); page++)
			memslot_mark_dirty(s, s->gpa + (page << PAGE_SHIFT));
	return rc;
}

static int slot_new(struct vm *vm, const struct kvm_userspace_memory_region *r)
{
	struct memslot *s;
	int rc = slot_room(vm->x12, r->slot);

	if (rc < 0)
		return rc;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	s->id = r->slot;
	s->gpa = r->guest_phys_addr;
	s->size = r->memory_size;
	s->hva = (u8 *)(uintptr_t)r->userspace_addr;
	s->flags = r->flags & KVM_MEM_READONLY ? MEMSLOT_READONLY : 0;
	s->owner = vm;
	s->dirtied = vm->x12->ring_size ? ring_note : NULL;
	rc = slot_log(vm->x12, s, r->flags & KVM_MEM_LOG_DIRTY_PAGES);
	if (rc == 0)
		rc = memslot_add(slot_space(vm, r->slot), s);
	if (rc < 0) {
		memslot_free(s);
		return rc;
	}
	slot_put(vm, r->slot, s);
	return 0;
}

static int region_locked(struct vm *vm, const struct kvm_userspace_memory_region *r)
{
	struct vm_mem *mem = slot_space(vm, r->slot);
	struct memslot *s = slot12_get(vm, r->slot);
	int rc;

	if (!r->memory_size) {
		if (!s)
			return -EINVAL;
		memslot_remove(mem, s);
		slot_put(vm, r->slot, NULL);
		memslot_free(s);
		return 0;
	}
	if (s) {
		if (r->userspace_addr != (uintptr_t)s->hva || r->memory_size != s->size ||
		    !(r->flags & KVM_MEM_READONLY) != !(s->flags & MEMSLOT_READONLY))
			return -EINVAL;
	}
	if (!s || s->gpa != r->guest_phys_addr) {
		if (memslot_overlaps(mem, r->guest_phys_addr, r->memory_size, s))
			return -EEXIST;
		if (r->guest_phys_addr + r->memory_size - 1 > PHYS_MASK)
			return -EINVAL;
	}
	if (!s)
		return slot_new(vm, r);
	rc = slot_log(vm->x12, s, r->flags & KVM_MEM_LOG_DIRTY_PAGES);
	if (rc < 0 || s->gpa == r->guest_phys_addr)
		return rc;
	memslot_remove(mem, s);
	s->gpa = r->guest_phys_addr;
	/* The array had room for it a moment ago. */
	return memslot_add(mem, s);
}

static long set_user_memory_region(struct vm *vm, unsigned long arg)
{
	struct kvm_userspace_memory_region r;
	u32 as, id;
	long rc = user_read(&r, (void *)arg, sizeof(r));

	if (rc < 0)
		return rc;
	if (!slot_number(r.slot, &as, &id))
		return -EINVAL;
	if (r.flags & ~(u32)(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY))
		return -EINVAL;
	if ((r.memory_size | r.guest_phys_addr | r.userspace_addr) & (PAGE_SIZE - 1))
		return -EINVAL;
	/* User addresses end at 2^47 - 4096. */
	if (r.userspace_addr + r.memory_size < r.userspace_addr ||
	    r.userspace_addr + r.memory_size > BIT(47) - PAGE_SIZE)
		return -EINVAL;
	if (r.guest_phys_addr + r.memory_size < r.guest_phys_addr || r.memory_size >> PAGE_SHIFT > 0x7fffffff)
		return -EINVAL;
	vm_begin_change(vm);
	rc = region_locked(vm, &r);
	stat12_vm_publish(vm);
	if (rc == 0)
		vm_flush_all(vm);
	vm_end_change(vm);
	return rc;
}

static size_t log_words(const struct memslot *s)
{
	return (memslot_pages(s) + 63) / 64;
}

static long get_dirty_log(struct vm *vm, unsigned long arg)
{
	struct kvm_dirty_log log;
	struct memslot *s;
	u64 *bits = NULL;
	u32 as, id;
	long rc = user_read(&log, (void *)arg, sizeof(log));

	if (rc < 0)
		return rc;
	if (vm->x12->ring_size)
		return -ENXIO;
	if (!slot_number(log.slot, &as, &id))
		return -EINVAL;
	vm_begin_change(vm);
	s = slot12_get(vm, log.slot);
	rc = -ENOENT;
	if (!s || !s->dirty)
		goto out;
	rc = -ENOMEM;
	bits = calloc(log_words(s), sizeof(*bits));
	if (!bits)
		goto out;
	for (size_t n = 0; n < log_words(s); n++)
		bits[n] = atomic_load(&s->dirty[n]);
	rc = user_write(log.dirty_bitmap, bits, log_words(s) * 8);
	if (rc < 0 || vm->x12->manual_protect)
		goto out;
	memslot_take_dirty(s, bits);
	vm_flush_writes(vm);
out:
	vm_end_change(vm);
	free(bits);
	return rc;
}

static long clear_dirty_log(struct vm *vm, unsigned long arg)
{
	struct kvm_clear_dirty_log log;
	struct memslot *s;
	u64 *bits = NULL, pages;
	u32 as, id;
	long rc = user_read(&log, (void *)arg, sizeof(log));

	if (rc < 0)
		return rc;
	if (vm->x12->ring_size)
		return -ENXIO;
	if (!slot_number(log.slot, &as, &id) || (log.first_page & 63))
		return -EINVAL;
	vm_begin_change(vm);
	s = slot12_get(vm, log.slot);
	rc = -ENOENT;
	if (!s || !s->dirty)
		goto out;
	pages = memslot_pages(s);
	rc = -EINVAL;
	if (log.first_page > pages || log.num_pages > pages - log.first_page ||
	    (log.num_pages < pages - log.first_page && (log.num_pages & 63)))
		goto out;
	rc = -ENOMEM;
	bits = calloc(log.num_pages / 64 + 1, sizeof(*bits));
	if (!bits)
		goto out;
	rc = user_read(bits, log.dirty_bitmap, (log.num_pages + 63) / 64 * 8);
	if (rc < 0)
		goto out;
	for (u64 n = 0; n < (log.num_pages + 63) / 64; n++)
		atomic_fetch_and(&s->dirty[log.first_page / 64 + n], ~bits[n]);
	vm_flush_writes(vm);
out:
	vm_end_change(vm);
	free(bits);
	return rc;
}

/* Where Linux' KVM on Intel keeps pages of its own. We need none: the addresses are checked and no more. */
static long set_tss_addr(struct vm *vm, unsigned long arg)
{
	return arg > 0x100000000ull - 3 * PAGE_SIZE ? -EINVAL : 0;
}

static long set_identity_map_addr(struct vm *vm, unsigned long arg)
{
	u64 addr;
	long rc = user_read(&addr, (void *)arg, sizeof(addr));

	if (rc == 0 && vm->x12->has_vcpu)
		rc = -EINVAL;
	return rc;
}

static long nr_mmu_pages(struct vm *vm, unsigned long arg)
{
	return (u32)arg < 64 ? -EINVAL : 0;
}

static long set_boot_cpu_id(struct vm *vm, unsigned long arg)
{
	long rc = -EBUSY;

	pthread_mutex_lock(&vm->lock);
	if (!vm->x12->has_vcpu) {
		vm->x12->boot_id = (u32)arg;
		rc = 0;
	}
	pthread_mutex_unlock(&vm->lock);
	return rc;
}

/* ---- time -------------------------------------------------------------------------------------------------------- */

static u32 khz;

static void measure_khz(void)
{
	s64 t0, t1, t2, t3;
	u64 c0, c1;

	/* Two close pairs 20 ms apart; a pair that was interrupted in between is taken again. */
	do {
		t0 = now_ns(CLOCK_MONOTONIC_RAW);
		c0 = __rdtsc();
		t1 = now_ns(CLOCK_MONOTONIC_RAW);
	} while (t1 - t0 > 5000);
	do {
		t2 = now_ns(CLOCK_MONOTONIC_RAW);
		c1 = __rdtsc();
		t3 = now_ns(CLOCK_MONOTONIC_RAW);
	} while (t3 - t0 < 20000000 || t3 - t2 > 5000);
	khz = (u32)((u128)(c1 - c0) * 1000000 / (u64)((t2 + t3) / 2 - (t0 + t1) / 2));
}

u32 tsc_khz(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, measure_khz);
	return khz;
}

u64 vm12_clock(const struct vm *vm, u64 host_tsc)
{
	s64 ticks = (s64)(host_tsc - vm->x12->clock_ref_tsc);

	return vm->x12->clock_ref + (u64)(s64)((s128)ticks * 1000000 / tsc_khz());
}

static long get_clock(struct vm *vm, unsigned long arg)
{
	struct kvm_clock_data c = {.flags = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC};

	pthread_mutex_lock(&vm->x12->time_lock);
	c.realtime = (u64)now_ns(CLOCK_REALTIME);
	c.host_tsc = __rdtsc();
	c.clock = vm12_clock(vm, c.host_tsc);
	pthread_mutex_unlock(&vm->x12->time_lock);
	return user_write((void *)arg, &c, sizeof(c));
}

static long set_clock(struct vm *vm, unsigned long arg)
{
	struct kvm_clock_data c;
	s64 passed;
	long rc = user_read(&c, (void *)arg, sizeof(c));

	if (rc < 0)
		return rc;
	if (c.flags & ~(u32)(KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC))
		return -EINVAL;
	vm_begin_change(vm);
	pthread_mutex_lock(&vm->x12->time_lock);
	if (c.flags & KVM_CLOCK_REALTIME) {
		/* The time since the snapshot passed for the guest too; never backwards. */
		passed = now_ns(CLOCK_REALTIME) - (s64)c.realtime;
		c.clock += passed > 0 ? (u64)passed : 0;
	}
	vm->x12->clock_ref = c.clock;
	vm->x12->clock_ref_tsc = __rdtsc();
	pthread_mutex_unlock(&vm->x12->time_lock);
	for (unsigned n = 0; n < vm->n_vcpu; n++)
		if (vm->vcpu[n])
			clock12_update(&vm->vcpu[n]->cpu);
	if (vm->n_vcpu && vm->vcpu[0])
		hv_clock_changed(&vm->vcpu[0]->cpu);
	vm_end_change(vm);
	return 0;
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

static long check_extension(struct vm *vm, unsigned long arg)
{
	return cap_check(arg);
}

static const struct {
	unsigned long req;
	vm_fn serve;
} table[] = {
        {KVM_CHECK_EXTENSION, check_extension},
        {KVM_SET_USER_MEMORY_REGION, set_user_memory_region},
        {KVM_GET_DIRTY_LOG, get_dirty_log},
        {KVM_CLEAR_DIRTY_LOG, clear_dirty_log},
        {KVM_SET_TSS_ADDR, set_tss_addr},
        {KVM_SET_IDENTITY_MAP_ADDR, set_identity_map_addr},
        {KVM_SET_NR_MMU_PAGES, nr_mmu_pages},
        {KVM_ENABLE_CAP, vm_enable_cap},
        {KVM_GET_STATS_FD, vm_stats_fd},
        {KVM_RESET_DIRTY_RINGS, ring_reset},
        {KVM_HYPERV_EVENTFD, hyperv_eventfd},
        {KVM_SET_BOOT_CPU_ID, set_boot_cpu_id},
        {KVM_X86_SET_MSR_FILTER, set_msr_filter},
        {KVM_GET_CLOCK, get_clock},
        {KVM_SET_CLOCK, set_clock},
        {KVM_IOEVENTFD, ioeventfd},
        {KVM_REGISTER_COALESCED_MMIO, coalesced_add},
        {KVM_UNREGISTER_COALESCED_MMIO, coalesced_remove},
        {KVM_CREATE_IRQCHIP, create_irqchip},
        {KVM_CREATE_PIT, create_pit1},
        {KVM_CREATE_PIT2, create_pit2},
        {KVM_IRQ_LINE, irq_line},
        {KVM_IRQ_LINE_STATUS, irq_line_status},
        {KVM_GET_IRQCHIP, get_irqchip},
        {KVM_SET_IRQCHIP, set_irqchip},
        {KVM_GET_PIT2, get_pit2},
        {KVM_SET_PIT2, set_pit2},
        {KVM_REINJECT_CONTROL, reinject_control},
        {KVM_SET_GSI_ROUTING, set_gsi_routing},
        {KVM_SIGNAL_MSI, signal_msi},
        {KVM_IRQFD, irqfd},
        {KVM_GET_PIT, get_pit1},
        {KVM_SET_PIT, set_pit1},
};

long dialect_12_vm(struct vm *vm, unsigned long req, unsigned long arg, struct made *made)
{
	if (req == KVM_CREATE_VCPU)
		return vcpu12_create(vm, arg, made);
	if (req == KVM_CREATE_DEVICE)
		return device12_create(vm, arg, made);
	for (unsigned n = 0; n < ARRAY_SIZE(table); n++)
		if (table[n].req == req)
			return table[n].serve(vm, arg);
	return -ENOTTY;
}
