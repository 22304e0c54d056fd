/*
 * dialect_2006.c: the eleven ioctls of the interface of October 2006 (doc/interface-2006.md), over the VM and vCPU
 * model.
 *
 * Shape of every request: copy the argument in, check it, act, copy out; the table at the end says which function
 * serves which number. A request that fails has changed nothing.
 */
#define _GNU_SOURCE
#include "kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../include/2006/linux/kvm.h"
#include "../base/usercopy.h"
#include "../cpu/fpu.h"
#include "../cpu/vmem.h"
#include "../interp/interp.h"
#include "../x86/pte.h"

/* Intel's basic exit reasons, which hw.hardware_exit_reason speaks. */
#define HW_TRIPLE_FAULT 2
#define HW_INVALID_GUEST_STATE 33

/* ---- what the processor does at exits: vcpu_ops ------------------------------------------------------------------ */

static int exit_pio(struct vcpu *v, const struct pio *io)
{
	v->exit.reason = EXIT_IO;
	v->exit.insn_len = io->len;
	v->exit.io = *io;
	return STEP_EXIT;
}

static int exit_cpuid(struct vcpu *v, const struct insn *i)
{
	v->exit.reason = EXIT_CPUID;
	v->exit.insn_len = i->len;
	return STEP_EXIT;
}

static int exit_hlt(struct vcpu *v, const struct insn *i)
{
	v->r[R_RIP] += i->len;
	if (vcpu_irq_pending(v) && (v->rflags & FLAGS_IF))
		return STEP_JUMP;
	v->exit.reason = EXIT_HLT;
	v->exit.insn_len = i->len;
	return STEP_EXIT;
}

static void parked(struct vcpu *v)
{
	/* Clear the bit first: a stopper that comes after the wait sets it again. */
	atomic_fetch_and(&v->events, ~(u32)EV_KICK);
	vm_leave(v->vm);
	vm_enter(v->vm);
}

static const struct vcpu_ops ops_2006 = {
        .pio = exit_pio,
        .cpuid = exit_cpuid,
        .hlt = exit_hlt,
        .irq_take = vcpu_irq_take_lowest,
        .irq_pending = vcpu_irq_pending,
        .kicked = parked,
};

/* ---- helpers ----------------------------------------------------------------------------------------------------- */

/* Finds and locks a vCPU. -EINVAL out of range, -ENOENT never created. */
static int vcpu_get(struct vm *vm, u32 id, struct kvm_vcpu **out)
{
	struct kvm_vcpu *kv;

	if (id >= VM_MAX_VCPUS_2006)
		return -EINVAL;
	kv = __atomic_load_n(&vm->vcpu[id], __ATOMIC_ACQUIRE);
	if (!kv)
		return -ENOENT;
	pthread_mutex_lock(&kv->lock);
	*out = kv;
	return 0;
}

/* Copies a request's structure in and locks the vCPU that it names at `vcpu_at`. */
static long arg_get(struct vm *vm, unsigned long arg, void *buf, size_t size, size_t vcpu_at, struct kvm_vcpu **kv)
{
	u32 id;
	long rc = user_read(buf, (void *)arg, size);

	if (rc < 0)
		return rc;
	memcpy(&id, (u8 *)buf + vcpu_at, sizeof(id));
	return vcpu_get(vm, id, kv);
}

#define ARG_GET(vm, arg, ptr, kv) arg_get(vm, arg, ptr, sizeof(*(ptr)), offsetof(__typeof__(*(ptr)), vcpu), kv)

static void vcpu_put(struct kvm_vcpu *kv)
{
	pthread_mutex_unlock(&kv->lock);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* Gives the pages of [gpa, gpa + size) back. */
static void punch(struct vm *vm, gpa_t gpa, u64 size)
{
	if (size)
		fallocate(vm->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)gpa, (off_t)size);
}

/* Copies [from, from + size), mapped at `src`, to the zeroes at `dst`; pages that nobody touched stay unallocated. */
static void copy_data(struct vm *vm, u8 *dst, const u8 *src, gpa_t from, u64 size)
{
	off_t at = (off_t)from, end = (off_t)(from + size);

	while (at < end) {
		off_t data = lseek(vm->memfd, at, SEEK_DATA), hole;

		if (data < 0 || data >= end)
			return;
		hole = lseek(vm->memfd, data, SEEK_HOLE);
		at = hole < 0 || hole > end ? end : hole;
		memcpy(dst + (data - (off_t)from), src + (data - (off_t)from), (size_t)(at - data));
	}
}

/* Moves a slot's contents to another address; the two ranges may overlap. */
static int slot_move(struct vm *vm, struct memslot *slot, gpa_t to)
{
	gpa_t from = slot->gpa;
	gpa_t low = from < to ? from : to, high = from < to ? to : from;
	u8 *hva = vm_map(vm, to, slot->size);
	u8 *both;

	if (!hva)
		return -ENOMEM;
	if (high - low < slot->size) {
		/* One mapping over both, so that memmove sees the overlap. */
		both = vm_map(vm, low, high - low + slot->size);
		if (!both) {
			munmap(hva, slot->size);
			return -ENOMEM;
		}
		memmove(both + (to - low), both + (from - low), slot->size);
		munmap(both, high - low + slot->size);
		if (to > from)
			punch(vm, from, to - from);
		else
			punch(vm, to + slot->size, from - to);
	} else {
		punch(vm, to, slot->size);
		copy_data(vm, hva, slot->hva, from, slot->size);
		punch(vm, from, slot->size);
	}
	munmap(slot->hva, slot->size);
	memslot_remove(&vm->mem, slot);
	slot->hva = hva;
	slot->gpa = to;
	/* The array had room for it a moment ago. */
	return memslot_add(&vm->mem, slot);
}

static int slot_new(struct vm *vm, const struct kvm_memory_region *r)
{
	struct memslot *slot = calloc(1, sizeof(*slot));

	if (!slot)
		return -ENOMEM;
	slot->id = r->slot;
	slot->gpa = r->guest_phys_addr;
	slot->size = r->memory_size;
	/* The client may have written through a mapping of a hole: a new slot is zero all the same. */
	punch(vm, slot->gpa, slot->size);
	slot->hva = vm_map(vm, slot->gpa, slot->size);
	if (!slot->hva)
		goto fail;
	memslot_set_backed(slot);
	if ((r->flags & KVM_MEM_LOG_DIRTY_PAGES) && memslot_set_dirty_log(slot, true) < 0)
		goto fail;
	if (memslot_add(&vm->mem, slot) < 0)
		goto fail;
	vm->slot[r->slot] = slot;
	return 0;
fail:
	if (slot->hva)
		munmap(slot->hva, slot->size);
	memslot_free(slot);
	return -ENOMEM;
}

static void slot_delete(struct vm *vm, struct memslot *slot)
{
	memslot_remove(&vm->mem, slot);
	munmap(slot->hva, slot->size);
	punch(vm, slot->gpa, slot->size);
	vm->slot[slot->id] = NULL;
	memslot_free(slot);
}

static int set_memory_region_locked(struct vm *vm, const struct kvm_memory_region *r)
{
	struct memslot *slot = vm->slot[r->slot];
	bool log = r->flags & KVM_MEM_LOG_DIRTY_PAGES;
	int rc;

	if (slot && r->memory_size && r->memory_size != slot->size)
		return -EINVAL;
	if (r->memory_size && memslot_overlaps(&vm->mem, r->guest_phys_addr, r->memory_size, slot))
		return -EEXIST;
	if (!slot)
		return r->memory_size ? slot_new(vm, r) : 0;
	if (!r->memory_size) {
		slot_delete(vm, slot);
		return 0;
	}
	if (log != !!slot->dirty) {
		rc = memslot_set_dirty_log(slot, log);
		if (rc < 0)
			return rc;
	}
	return slot->gpa == r->guest_phys_addr ? 0 : slot_move(vm, slot, r->guest_phys_addr);
}

static long set_memory_region(struct vm *vm, unsigned long arg)
{
	struct kvm_memory_region r;
	int rc = user_read(&r, (void *)arg, sizeof(r));

	if (rc < 0)
		return rc;
	if ((r.memory_size | r.guest_phys_addr) & (PAGE_SIZE - 1))
		return -EINVAL;
	if (r.slot >= VM_MAX_SLOTS_2006)
		return -EINVAL;
	if (r.guest_phys_addr + r.memory_size < r.guest_phys_addr || r.guest_phys_addr + r.memory_size > PHYS_MASK + 1)
		return -EINVAL;
	vm_begin_change(vm);
	rc = set_memory_region_locked(vm, &r);
	vm_flush_all(vm);
	vm_end_change(vm);
	return rc;
}

static long get_dirty_log(struct vm *vm, unsigned long arg)
{
	struct kvm_dirty_log log;
	struct memslot *slot;
	u64 *bits = NULL;
	size_t bytes;
	long rc = user_read(&log, (void *)arg, sizeof(log));

	if (rc < 0)
		return rc;
	if (log.slot >= VM_MAX_SLOTS_2006)
		return -EINVAL;
	vm_begin_change(vm);
	slot = vm->slot[log.slot];
	rc = -ENOENT;
	if (!slot || !slot->dirty)
		goto out;
	rc = -ENOMEM;
	bits = calloc((memslot_pages(slot) + 63) / 64, sizeof(*bits));
	if (!bits)
		goto out;
	/* Copy first, clear when the client has them: all vCPUs are stopped, so nothing is lost in between. */
	for (size_t n = 0; n < (memslot_pages(slot) + 63) / 64; n++)
		bits[n] = atomic_load(&slot->dirty[n]);
	bytes = (memslot_pages(slot) + 7) / 8;
	rc = user_write(log.dirty_bitmap, bits, bytes);
	if (rc < 0)
		goto out;
	memslot_take_dirty(slot, bits);
	vm_flush_writes(vm);
out:
	vm_end_change(vm);
	free(bits);
	return rc;
}

/* ---- vCPU creation, registers ------------------------------------------------------------------------------------ */

static long create_vcpu(struct vm *vm, unsigned long arg)
{
	struct kvm_vcpu *kv;
	int id = (int)arg; /* the argument is an int: the upper half of its register may hold anything */
	int rc;

	if (id < 0 || id >= VM_MAX_VCPUS_2006)
		return -EINVAL;
	pthread_mutex_lock(&vm->lock);
	rc = -EEXIST;
	if (!vm->vcpu[id]) {
		rc = vcpu_create(vm, (u32)id, &ops_2006, &kv);
		if (rc == 0)
			vm_add_vcpu(vm, (unsigned)id, kv);
	}
	pthread_mutex_unlock(&vm->lock);
	return rc;
}

/* kvm_regs' order of registers from rax on, as the processor numbers them. */
static const u8 regs_order[16] = {R_RAX, R_RBX, R_RCX, R_RDX, R_RSI, R_RDI, R_RSP, R_RBP,
                                  R_R8,  R_R9,  R_R10, R_R11, R_R12, R_R13, R_R14, R_R15};

static long get_regs(struct vm *vm, unsigned long arg)
{
	struct kvm_regs regs;
	struct kvm_vcpu *kv;
	long rc = ARG_GET(vm, arg, &regs, &kv);

	if (rc < 0)
		return rc;
	for (unsigned n = 0; n < 16; n++)
		(&regs.rax)[n] = kv->cpu.r[regs_order[n]];
	regs.rip = kv->cpu.r[R_RIP];
	regs.rflags = kv->cpu.rflags;
	vcpu_put(kv);
	return user_write((void *)arg, &regs, sizeof(regs));
}

static long set_regs(struct vm *vm, unsigned long arg)
{
	struct kvm_regs regs;
	struct kvm_vcpu *kv;
	long rc = ARG_GET(vm, arg, &regs, &kv);

	if (rc < 0)
		return rc;
	for (unsigned n = 0; n < 16; n++)
		kv->cpu.r[regs_order[n]] = (&regs.rax)[n];
	if (kv->cpu.r[R_RIP] != regs.rip) {
		/* The client sends the guest elsewhere: what the last instruction had half done is void. */
		interp_abandon(&kv->cpu);
		kv->mmio_read_out = false;
	}
	kv->cpu.r[R_RIP] = regs.rip;
	kv->cpu.rflags = (regs.rflags & FLAGS_ALL) | FLAGS_FIXED;
	cpu_update(&kv->cpu);
	vcpu_put(kv);
	return 0;
}

static void seg_out(const struct seg *s, struct kvm_segment *out)
{
	memset(out, 0, sizeof(*out));
	out->base = s->base;
	out->limit = s->limit;
	out->selector = s->sel;
	if (s->unusable) {
		out->unusable = 1;
		return;
	}
	out->type = s->type;
	out->present = s->present;
	out->dpl = s->dpl;
	out->db = s->db;
	out->s = s->s;
	out->l = s->l;
	out->g = s->g;
	out->avl = s->avl;
}

static void seg_in(struct vcpu *v, unsigned n, const struct kvm_segment *in)
{
	struct seg *s = &v->seg[n];

	s->base = in->base;
	s->limit = in->limit;
	s->sel = in->selector;
	s->type = in->type & 15;
	s->present = in->present & 1;
	s->dpl = in->dpl & 3;
	s->db = in->db & 1;
	s->s = in->s & 1;
	s->l = in->l & 1;
	s->g = in->g & 1;
	s->avl = in->avl & 1;
	s->unusable = in->unusable & 1;
	seg_derive(v, n);
}

static const struct {
	u8 seg;
	u16 off;
} sreg_map[] = {
        {SEG_CS, offsetof(struct kvm_sregs, cs)}, {SEG_DS, offsetof(struct kvm_sregs, ds)},
        {SEG_ES, offsetof(struct kvm_sregs, es)}, {SEG_FS, offsetof(struct kvm_sregs, fs)},
        {SEG_GS, offsetof(struct kvm_sregs, gs)}, {SEG_SS, offsetof(struct kvm_sregs, ss)},
        {SEG_TR, offsetof(struct kvm_sregs, tr)}, {SEG_LDTR, offsetof(struct kvm_sregs, ldt)},
};

static long get_sregs(struct vm *vm, unsigned long arg)
{
	struct kvm_sregs s;
	struct kvm_vcpu *kv;
	struct vcpu *v;
	long rc = ARG_GET(vm, arg, &s, &kv);

	if (rc < 0)
		return rc;
	v = &kv->cpu;
	for (unsigned n = 0; n < ARRAY_SIZE(sreg_map); n++)
		seg_out(&v->seg[sreg_map[n].seg], (struct kvm_segment *)((u8 *)&s + sreg_map[n].off));
	s.gdt = (struct kvm_dtable){.base = v->gdt.base, .limit = v->gdt.limit};
	s.idt = (struct kvm_dtable){.base = v->idt.base, .limit = v->idt.limit};
	s.cr0 = v->cr0;
	s.cr2 = v->cr2;
	s.cr3 = v->cr3;
	s.cr4 = v->cr4;
	s.cr8 = v->cr8;
	s.efer = v->efer;
	s.apic_base = v->apic_base;
	s.pending_int = vcpu_irq_pending(v);
	vcpu_put(kv);
	return user_write((void *)arg, &s, sizeof(s));
}

static long set_sregs(struct vm *vm, unsigned long arg)
{
	struct kvm_sregs s;
	struct kvm_vcpu *kv;
	struct vcpu *v;
	long rc = ARG_GET(vm, arg, &s, &kv);

	if (rc < 0)
		return rc;
	v = &kv->cpu;
	for (unsigned n = 0; n < ARRAY_SIZE(sreg_map); n++)
		seg_in(v, sreg_map[n].seg, (struct kvm_segment *)((u8 *)&s + sreg_map[n].off));
	v->gdt = (struct dtable){.base = s.gdt.base, .limit = s.gdt.limit};
	v->idt = (struct dtable){.base = s.idt.base, .limit = s.idt.limit};
	v->cr2 = s.cr2;
	v->cr8 = s.cr8 & 15;
	v->apic_base = s.apic_base;
	pthread_mutex_lock(&vm->lock); /* the PAE pointers are read from memslots */
	cpu_set_crs(v, s.cr0, s.cr3, s.cr4, s.efer);
	pthread_mutex_unlock(&vm->lock);
	cpu_update(v);
	vcpu_put(kv);
	return 0;
}

static long translate(struct vm *vm, unsigned long arg)
{
	struct kvm_translation t;
	struct kvm_vcpu *kv;
	gpa_t gpa = 0;
	bool writable = false, user = false;
	long rc = ARG_GET(vm, arg, &t, &kv);

	if (rc < 0)
		return rc;
	pthread_mutex_lock(&vm->lock);
	t.valid = (kv->cpu.mmu.paging != PAGING_64 || is_canonical(t.linear_address)) &&
	          gva_peek(&kv->cpu.mmu, t.linear_address, &gpa, &writable, &user);
	pthread_mutex_unlock(&vm->lock);
	vcpu_put(kv);
	t.physical_address = t.valid ? gpa : ~0ull;
	t.writeable = t.valid && writable;
	t.usermode = t.valid && user;
	return user_write((void *)arg, &t, sizeof(t));
}

static long interrupt(struct vm *vm, unsigned long arg)
{
	struct kvm_interrupt irq;
	struct kvm_vcpu *kv;
	long rc = user_read(&irq, (void *)arg, sizeof(irq));

	if (rc < 0)
		return rc;
	if (irq.vcpu >= VM_MAX_VCPUS_2006 || irq.irq > 255)
		return -EINVAL;
	/* No lock: queueing is safe beside a running vCPU, which then takes the interrupt at once. */
	kv = __atomic_load_n(&vm->vcpu[irq.vcpu], __ATOMIC_ACQUIRE);
	if (!kv)
		return -ENOENT;
	vcpu_queue_irq(kv, (u8)irq.irq);
	return 0;
}

static long debug_guest(struct vm *vm, unsigned long arg)
{
	struct kvm_debug_guest d;
	struct kvm_vcpu *kv;
	struct guest_debug *g;
	long rc = ARG_GET(vm, arg, &d, &kv);

	if (rc < 0)
		return rc;
	g = &kv->cpu.gdbg;
	memset(g, 0, sizeof(*g));
	if (d.enabled) {
		g->enabled = true;
		g->singlestep = d.singlestep != 0;
		g->db = true;
		g->dr7 = kv->cpu.dr7;
		for (unsigned n = 0; n < 4; n++) {
			g->bp[n].enabled = d.breakpoints[n].enabled != 0;
			g->own_bps |= g->bp[n].enabled;
			g->bp[n].addr = d.breakpoints[n].address;
		}
	}
	cpu_update(&kv->cpu);
	dbg_update(&kv->cpu);
	vcpu_put(kv);
	return 0;
}

/* ---- KVM_RUN ----------------------------------------------------------------------------------------------------- */

/* The client did the last exit's instruction: step over it, with what its end brings. True: that is an exit itself. */
static bool step_over(struct kvm_vcpu *kv)
{
	struct vcpu *v = &kv->cpu;
	bool tf = v->rflags & FLAGS_TF;
	u64 rip = v->r[R_RIP] + kv->last_len;

	/* Done already, by a run that a signal ended: the client calls again with the same structure. */
	if (!kv->last_len)
		return false;
	kv->last_len = 0;
	v->r[R_RIP] = v->mode == MODE_64 ? rip : (u32)rip;
	v->rflags &= ~FLAGS_RF;
	v->shadow = 0;
	atomic_fetch_and(&v->events, ~(u32)EV_SHADOW);
	interp_abandon(v);
	kv->mmio_read_out = false;
	if (!dbg_wants_after(v))
		return false;
	v->exit.reason = EXIT_NONE;
	return dbg_after(v, tf) == STEP_EXIT;
}

static void fill_exit(struct kvm_vcpu *kv, struct kvm_run *run)
{
	const struct vcpu_exit *e = &kv->cpu.exit;

	run->exit_type = KVM_EXIT_TYPE_VM_EXIT;
	run->instruction_length = e->insn_len;
	switch (e->reason) {
	case EXIT_IO:
		run->exit_reason = KVM_EXIT_IO;
		memset(&run->io, 0, sizeof(run->io));
		run->io.direction = e->io.in ? KVM_EXIT_IO_IN : KVM_EXIT_IO_OUT;
		run->io.size = e->io.size;
		run->io.string = e->io.string;
		run->io.string_down = e->io.down;
		run->io.rep = e->io.rep;
		run->io.port = e->io.port;
		run->io.count = e->io.count;
		if (e->io.string)
			run->io.address = e->io.gva;
		else
			run->io.value = (u32)kv->cpu.r[R_RAX];
		break;
	case EXIT_CPUID:
		run->exit_reason = KVM_EXIT_CPUID;
		break;
	case EXIT_HLT:
		run->exit_reason = KVM_EXIT_HLT;
		break;
	case EXIT_DEBUG:
		run->exit_reason = KVM_EXIT_DEBUG;
		break;
	case EXIT_MMIO:
		run->exit_reason = KVM_EXIT_MMIO;
		memset(&run->mmio, 0, sizeof(run->mmio));
		run->mmio.phys_addr = e->mmio.gpa;
		run->mmio.len = e->mmio.len;
		run->mmio.is_write = e->mmio.is_write;
		if (e->mmio.is_write)
			memcpy(run->mmio.data, e->mmio.data, e->mmio.len);
		break;
	case EXIT_SHUTDOWN:
		run->exit_reason = KVM_EXIT_UNKNOWN;
		run->hw.hardware_exit_reason = HW_TRIPLE_FAULT;
		break;
	default:
		run->exit_reason = KVM_EXIT_UNKNOWN;
		run->hw.hardware_exit_reason = ~0u;
	}
}

static long run_locked(struct kvm_vcpu *kv, struct kvm_run *run)
{
	struct vcpu *v = &kv->cpu;

	v->exit.reason = EXIT_NONE;
	v->exit.insn_len = 0;
	if (run->emulated) {
		if (step_over(kv)) {
			fill_exit(kv, run);
			return 0;
		}
	} else if (kv->mmio_read_out && run->mmio_completed) {
		mmio_answer(&v->mmu, run->mmio.data);
		kv->mmio_read_out = false;
	}
	if (cpu_check_state(v)) {
		run->exit_type = KVM_EXIT_TYPE_FAIL_ENTRY;
		run->exit_reason = KVM_EXIT_UNKNOWN;
		run->instruction_length = 0;
		run->hw.hardware_exit_reason = HW_INVALID_GUEST_STATE;
		return 0;
	}
	vcpu_run(kv);
	if (v->exit.reason == EXIT_INTR)
		return -EINTR;
	kv->mmio_read_out = v->exit.reason == EXIT_MMIO && !v->exit.mmio.is_write;
	kv->last_len = v->exit.insn_len;
	fill_exit(kv, run);
	return 0;
}

static long do_run(struct vm *vm, unsigned long arg)
{
	struct kvm_run run;
	struct kvm_vcpu *kv;
	long rc = ARG_GET(vm, arg, &run, &kv);

	if (rc < 0)
		return rc;
	rc = run_locked(kv, &run);
	vcpu_put(kv);
	return rc < 0 ? rc : user_write((void *)arg, &run, sizeof(run));
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

static const struct {
	unsigned long req;
	long (*serve)(struct vm *vm, unsigned long arg);
} table[] = {
        {KVM_RUN, do_run},
        {KVM_GET_REGS, get_regs},
        {KVM_SET_REGS, set_regs},
        {KVM_GET_SREGS, get_sregs},
        {KVM_SET_SREGS, set_sregs},
        {KVM_TRANSLATE, translate},
        {KVM_INTERRUPT, interrupt},
        {KVM_DEBUG_GUEST, debug_guest},
        {KVM_SET_MEMORY_REGION, set_memory_region},
        {KVM_CREATE_VCPU, create_vcpu},
        {KVM_GET_DIRTY_LOG, get_dirty_log},
};

long dialect_2006_ioctl(struct vm *vm, unsigned long req, unsigned long arg)
{
	for (unsigned n = 0; n < ARRAY_SIZE(table); n++)
		if (table[n].req == req)
			return table[n].serve(vm, arg);
	return -ENOTTY;
}
