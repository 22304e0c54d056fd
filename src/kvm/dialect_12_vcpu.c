/*
 * dialect_12_vcpu.c: a vCPU's descriptor: creation, KVM_RUN, and the table of its requests. What an exit says, and what
 * the client answers: dialect_12_exit.c.
 *
 * Invariants:
 *  - KVM_RUN makes no system call of its own: struct kvm_run and the port data page are our own mapping of the
 *    descriptor's memory;
 *  - every way KVM_RUN can end leaves exit_reason and the fields after it (if_flag, cr8, ...) as they are now.
 */
#define _GNU_SOURCE
#include "dialect_12.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <x86intrin.h>

#include "../base/bug.h"
#include "../base/sys.h"
#include "../base/usercopy.h"
#include "../cpu/vmem.h"
#include "../interp/interp.h"

/* ---- what the processor does at exits: vcpu_ops ------------------------------------------------------------------ */

static int op_pio(struct vcpu *v, const struct pio *io)
{
	struct vcpu12 *x = x12_of(v);
	u32 val = io->value;

	if (!io->string) {
		if (io->in) {
			if (io_read_taken(v, true, io->port, io->size, (u8 *)&val)) {
				memcpy(&v->r[R_RAX], &val, io->size);
				if (io->size == 4)
					v->r[R_RAX] = val;
				return STEP_OK;
			}
		} else if (io_write_taken(v, true, io->port, io->size, (const u8 *)&val)) {
			return STEP_OK;
		}
	}
	v->exit.reason = EXIT_IO;
	v->exit.io = *io;
	if (io->string && !io->in) {
		/* Read the elements now; one that faults waits until its turn comes first. */
		unsigned n, chunk = io->chunk;
		gva_t gva = io->gva;

		for (n = 0; n < chunk; n++) {
			int rc = lin_read(v, gva, pio_data(x) + n * io->size, io->size);

			if (rc != STEP_OK) {
				if (!n)
					return rc;
				break;
			}
			gva += io->down ? -(u64)io->size : io->size;
		}
		v->exit.io.chunk = (u16)n;
	} else if (io->string && !tlb_lookup(&v->mmu.tlb[v->mmu.ctx][TLB_READ], io->gva, io->size)) {
		/* Not plain memory: element by element. */
		v->exit.io.chunk = 1;
	}
	return STEP_EXIT;
}

static int op_cpuid(struct vcpu *v, const struct insn *i)
{
	u32 out[4];

	cpuid12(v, (u32)v->r[R_RAX], (u32)v->r[R_RCX], out);
	v->r[R_RAX] = out[0];
	v->r[R_RBX] = out[1];
	v->r[R_RCX] = out[2];
	v->r[R_RDX] = out[3];
	return STEP_OK;
}

static int op_hlt(struct vcpu *v, const struct insn *i)
{
	v->r[R_RIP] += i->len;
	if ((v->rflags & FLAGS_IF) && v->ops->irq_pending(v)) {
		atomic_fetch_or(&v->events, (u32)EV_IRQ);
		return STEP_JUMP;
	}
	v->exit.reason = EXIT_HLT;
	return STEP_EXIT;
}

/* MONITOR and MWAIT do nothing: whoever waits looks again. Linux' KVM lets guests use them that CPUID does not allow
 * to, unless the client asks it not to. */
static int op_monitor(struct vcpu *v, const struct insn *i)
{
	u32 leaf[4];

	if (v->vm->x12->quirks_off & KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS) {
		cpuid12(v, 1, 0, leaf);
		if (!(leaf[2] & BIT(3)))
			return excp_raise(v, EXC_UD);
	}
	return STEP_OK;
}

/* What the client queued is as from an i8259: under a local APIC of ours it passes through LINT0. */
static bool extint_open(struct vcpu *v)
{
	return !lapic_of(v) || (x12_of(v)->irq >= 0 && lapic_takes_pic(lapic_of(v)));
}

static int op_irq_take(struct vcpu *v)
{
	struct vcpu12 *x = x12_of(v);
	int irq;

	vapic_in(v);
	irq = extint_open(v) ? x->irq : -1;

	if (irq >= 0)
		x->irq = -1;
	else if (lapic_of(v))
		irq = lapic_pending(lapic_of(v), true);
	vapic_out(v);
	if (irq >= 0) {
		stat12(v, DEVKVM_irq_injections);
		stat12_publish(kvm_vcpu_of(v));
	}
	return irq;
}

static bool op_irq_pending(struct vcpu *v)
{
	/* False between runs: the client's ioctls ask too. */
	const bool running = x12_of(v)->vapic_out;
	bool is;

	vapic_in(v);
	is = (x12_of(v)->irq >= 0 && extint_open(v)) || (lapic_of(v) && lapic_pending(lapic_of(v), false) >= 0);
	if (running)
		vapic_out(v);
	return is;
}

static void op_cr8_written(struct vcpu *v)
{
	u64 cr8 = v->cr8;

	if (!lapic_of(v))
		return;
	vapic_in(v);
	v->cr8 = cr8;
	lapic_set_tpr(lapic_of(v), (u32)cr8 << 4);
	vapic_out(v);
}

static void op_kicked(struct vcpu *v)
{
	vm_leave(v->vm);
	vm_enter(v->vm);
}

static const struct vcpu_ops ops_12 = {
        .pio = op_pio,
        .cpuid = op_cpuid,
        .hlt = op_hlt,
        .irq_take = op_irq_take,
        .irq_pending = op_irq_pending,
        .wake = vcpu12_wake,
        .kicked = op_kicked,
        .cr8_written = op_cr8_written,
        .hypercall = pv_hypercall,
        .monitor = op_monitor,
        .rsm = op_rsm,
        .msr_ask = msr12_ask,
        .msr_read = msr12_read,
        .msr_write = msr12_write,
};

/* ---- creation ---------------------------------------------------------------------------------------------------- */

void vcpu12_free(struct kvm_vcpu *kv)
{
	struct vcpu12 *x = kv->x12;

	if (x->run)
		munmap(x->run, RUN_PAGES * PAGE_SIZE);
	stat12_vcpu_free(x);
	ring_unmap(x);
	synic_free(x);
	vcpu_destroy(kv);
	free(x);
}

void vcpu12_reset(struct kvm_vcpu *kv, bool init)
{
	struct vcpu *v = &kv->cpu;

	if (init) {
		static const u8 offs[] = {SEG_ES, SEG_SS, SEG_DS, SEG_FS, SEG_GS};
		u32 sig[4];

		cpuid12(v, 1, 0, sig);
		memset(v->r, 0, sizeof(v->r));
		v->r[R_RDX] = sig[0] ? sig[0] : 0x600;
		v->r[R_RIP] = 0xfff0;
		v->rflags = FLAGS_FIXED;
		for (unsigned n = 0; n < ARRAY_SIZE(offs); n++)
			v->seg[offs[n]] = (struct seg){.limit = 0xffff, .present = true, .s = true, .type = 3};
		v->seg[SEG_CS] = (struct seg){.sel = 0xf000, .limit = 0xffff, .present = true, .s = true, .type = 0xb};
		v->seg[SEG_LDTR] = (struct seg){.limit = 0xffff, .present = true, .type = 2};
		v->seg[SEG_TR] = (struct seg){.limit = 0xffff, .present = true, .type = 0xb};
		v->gdt = v->idt = (struct dtable){.limit = 0xffff};
		v->cr2 = v->cr8 = 0;
		memset(v->dr, 0, sizeof(v->dr));
		v->dr6 = DR6_FIXED;
		v->dr7 = DR7_FIXED;
		v->shadow = 0;
		v->pending_db = 0;
		v->nmi_masked = false;
		v->nmi_pending = 0;
		atomic_store(&v->nmi_queued, 0);
		kv->x12->irq = -1;
		kv->x12->inject = kv->x12->nmi = false;
		vcpu12_abandon(kv);
		cpu_set_crs(v, (v->cr0 & (CR0_CD | CR0_NW)) | CR0_ET, 0, 0, 0);
	} else {
		v->cr0 = CR0_CD | CR0_NW | CR0_ET;
		v->misc_enable = BIT(0);
	}
	/* As a processor comes out of RESET (SDM vol. 3, table 10-1). */
	v->seg[SEG_CS].base = 0xffff0000;
	cpu_update(v);
}

long vcpu12_create(struct vm *vm, unsigned long id, struct made *made)
{
	struct vcpu12 *x;
	struct kvm_vcpu *kv;
	int fd, rc;

	if (id >= (vm->x12->max_vcpu_id ? vm->x12->max_vcpu_id : VM_MAX_VCPUS))
		return -EINVAL;
	x = calloc(1, sizeof(*x));
	if (!x)
		return -ENOMEM;
	fd = sealed_memfd("kvm-vcpu", ring_file_size(vm, RUN_PAGES * PAGE_SIZE));
	if (fd < 0) {
		free(x);
		return fd;
	}
	x->run = sys_mmap(NULL, RUN_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	rc = -ENOMEM;
	if (x->run == MAP_FAILED)
		goto fail;
	rc = ring_map(x, vm, fd);
	if (rc < 0)
		goto fail_map;
	x->irq = -1;
	x->mp_state = KVM_MP_STATE_RUNNABLE;
	x->check_state = true;
	x->mcg_cap = MCE_BANKS;
	x->misc_enable = 0;
	x->poll_control = 1;
	x->smbase = 0x30000;
	rc = vcpu_create(vm, (u32)id, &ops_12, &kv);
	if (rc < 0)
		goto fail_map;
	kv->x12 = x;
	msr12_init(x);
	cpuid12_init(kv);
	if (id != vm->x12->boot_id) {
		kv->cpu.is_bsp = false;
		kv->cpu.apic_base &= ~(u64)APIC_BASE_BSP;
	} else {
		kv->cpu.is_bsp = true;
		kv->cpu.apic_base |= APIC_BASE_BSP;
	}
	vcpu12_reset(kv, false);
	tsc12_init(&kv->cpu);
	stat12_vcpu(kv);
	pthread_mutex_lock(&vm->lock);
	rc = vm->vcpu[id] ? -EEXIST : chips12_add_vcpu(kv);
	if (rc == 0) {
		atomic_fetch_add(&vm->x12->refs, 1);
		if (vm->x12->chips && id != vm->x12->boot_id)
			x->mp_state = KVM_MP_STATE_UNINITIALIZED;
		vm->x12->has_vcpu = true;
		vm_add_vcpu(vm, (unsigned)id, kv);
	}
	pthread_mutex_unlock(&vm->lock);
	if (rc < 0) {
		sys_close(fd);
		vcpu12_free(kv);
		return rc;
	}
	*made = (struct made){.kind = FILE_VCPU, .vm = vm, .kv = kv};
	return fd;
fail_map:
	ring_unmap(x);
	munmap(x->run, RUN_PAGES * PAGE_SIZE);
fail:
	sys_close(fd);
	free(x);
	return rc;
}

/* ---- KVM_RUN ----------------------------------------------------------------------------------------------------- */

static bool irq_open(const struct kvm_vcpu *kv)
{
	const struct vcpu *v = &kv->cpu;

	return (v->rflags & FLAGS_IF) && !v->shadow && kv->x12->irq < 0 && !kv->x12->inject &&
	       (!lapic_of(v) || lapic_takes_pic(lapic_of(v)));
}

static bool mmio_taken(struct vcpu *v)
{
	u8 data[8];

	if (v->exit.mmio.is_write)
		return io_write_taken(v, false, v->exit.mmio.gpa, v->exit.mmio.len, v->exit.mmio.data);
	if (!io_read_taken(v, false, v->exit.mmio.gpa, v->exit.mmio.len, data))
		return false;
	mmio_answer(&v->mmu, data);
	return true;
}

/* The client waits for the moment when it may inject an interrupt; a local APIC that is closed to it keeps it waiting.
 */
void vcpu12_window(struct vcpu *v)
{
	if (x12_of(v)->run->request_interrupt_window && !pic_of(v->vm) &&
	    (!lapic_of(v) || lapic_takes_pic(lapic_of(v))))
		atomic_fetch_or(&v->events, (u32)EV_WINDOW);
}

/*
 * The instruction whose MMIO the client has served is done before anything else is looked at, as on Linux: a client
 * that asks for immediate_exit then finds a state that it may save, and no device is read twice. True: it has more to
 * ask.
 */
static bool finish_mmio(struct kvm_vcpu *kv)
{
	while (interp_finish(&kv->cpu))
		if (kv->cpu.exit.reason != EXIT_MMIO || !mmio_taken(&kv->cpu))
			return true;
	return false;
}

/* The engine until there is something for the client. */
static void run_guest(struct kvm_vcpu *kv)
{
	struct vcpu *v = &kv->cpu;

	v->goes_on = false;
	for (;;) {
		/* Before HLT is looked at, which it ends. */
		if (unlikely(kv->x12->apf_wake))
			apf_poll(v);
		if (unlikely(kv->x12->mp_state != KVM_MP_STATE_RUNNABLE || atomic_load(&kv->x12->latch) ||
		             kv->x12->smi_pending) &&
		    !vcpu12_wait(kv)) {
			v->exit.reason = EXIT_INTR;
			return;
		}
		if (unlikely(ring_full(kv->x12))) {
			kv->x12->run->exit_reason = KVM_EXIT_DIRTY_RING_FULL;
			v->exit.reason = EXIT_OWNER;
			return;
		}
		if (unlikely(kv->x12->tpr_access) && (v->mmu.n_reads | v->mmu.n_writes) && finish_mmio(kv))
			return;
		if (unlikely(tpr_exit(kv) || eoi12_exit(kv) || hv_exit(kv) || synic_exit(kv))) {
			v->exit.reason = EXIT_OWNER;
			return;
		}
		if (unlikely(kv->x12->run->request_interrupt_window))
			vcpu12_window(v);
		vapic_out(v);
		run_engine(kv);
		v->goes_on = true;
		switch (v->exit.reason) {
		case EXIT_IRQ_WINDOW:
			if (!lapic_of(v) || irq_open(kv))
				return;
			break;
		case EXIT_MMIO:
			if (!mmio_taken(v))
				return;
			break;
		case EXIT_HLT:
			if (!lapic_of(v))
				return;
			kv->x12->mp_state = KVM_MP_STATE_HALTED;
			stat12(v, DEVKVM_halt_exits);
			if (unlikely(kv->x12->run->request_interrupt_window && !pic_of(v->vm) && irq_open(kv))) {
				v->exit.reason = EXIT_IRQ_WINDOW;
				return;
			}
			break;
		case EXIT_INTR:
			/* INIT and SIPI make the engine leave in the same way. */
			if (run_signalled() || !atomic_load(&kv->x12->latch))
				return;
			if (!vcpu12_wait(kv))
				return;
			break;
		case EXIT_RSM:
			if (smm_leave(kv))
				break;
			v->exit.reason = EXIT_SHUTDOWN;
			return;
		default:
			return;
		}
	}
}

/*
 * The exception that the client injected, or that waited for this run. #BP and #OF are what INT3 and INTO raise: the
 * frame holds the address after the instruction at RIP, which Linux' KVM steps over (svm_update_soft_interrupt_rip(),
 * event_exit_inst_len). A debugger's client gives so back to the guest the INT3 that is none of its breakpoints.
 */
static int deliver_injected(struct vcpu *v)
{
	struct event *e = &v->excp;

	if (e->vector == EXC_BP || e->vector == EXC_OF) {
		struct insn insn;
		u8 bytes[15];
		unsigned n = code_at_rip(v, bytes);

		e->kind = EVENT_TRAP;
		e->next_rip = v->r[R_RIP];
		if (decode((enum decode_mode)v->dmode, bytes, n, &insn) == 0)
			e->next_rip += insn.len;
	}
	v->exit.reason = EXIT_NONE;
	return excp_deliver(v);
}

/* Input fields, completion, guest code: everything between run_begin() and run_end(). */
static long run_inside(struct kvm_vcpu *kv)
{
	struct vcpu12 *x = kv->x12;
	struct vcpu *v = &kv->cpu;
	struct kvm_run *run = x->run;

	if (x->pend != PEND_NONE && exit12_complete(kv))
		return exit12_fill(kv);
	if (unlikely(v->mmu.n_reads | v->mmu.n_writes) && finish_mmio(kv))
		return exit12_fill(kv);
	/* As Linux' KVM: what the last exit was stays readable. */
	if (__atomic_load_n(&run->immediate_exit, __ATOMIC_ACQUIRE))
		return -EINTR;
	if (unlikely(x->has_mask) && run_signalled()) {
		run->exit_reason = KVM_EXIT_INTR;
		return -EINTR;
	}
	if (unlikely(x->check_state)) {
		const char *why = cpu_check_state(v);

		if (why) {
			exit12_fail_entry(kv, why);
			return 0;
		}
		x->check_state = false;
	}
	if (unlikely(x->triple)) {
		x->triple = false;
		run->exit_reason = KVM_EXIT_SHUTDOWN;
		return 0;
	}
	x->ran = true;
	if (unlikely(x->inject)) {
		x->inject = x->fresh_excp = false;
		if (deliver_injected(v) == STEP_EXIT && v->exit.reason != EXIT_MMIO)
			return exit12_fill(kv);
	} else if (unlikely(x->nmi)) {
		v->nmi_pending++;
		v->exit.reason = EXIT_NONE;
		if (excp_nmi(v) == STEP_EXIT && v->exit.reason != EXIT_MMIO) {
			x->nmi = false;
			return exit12_fill(kv);
		}
	}
	x->nmi = false;
	if (run->request_interrupt_window && !pic_of(v->vm)) {
		if (irq_open(kv)) {
			run->exit_reason = KVM_EXIT_IRQ_WINDOW_OPEN;
			return 0;
		}
	}
	run_guest(kv);
	return exit12_fill(kv);
}

static int sync_in(struct kvm_vcpu *kv, struct kvm_run *run)
{
	u64 dirty = run->kvm_dirty_regs;
	int rc;

	if ((run->kvm_valid_regs | dirty) & ~(u64)KVM_SYNC_X86_VALID_FIELDS)
		return -EINVAL;
	if (dirty & KVM_SYNC_X86_REGS) {
		struct kvm_regs r = run->s.regs.regs;

		regs_in(kv, &r);
		run->kvm_dirty_regs &= ~(u64)KVM_SYNC_X86_REGS;
	}
	if (dirty & KVM_SYNC_X86_SREGS) {
		struct kvm_sregs s = run->s.regs.sregs;

		rc = sregs_in(kv, &s);
		if (rc < 0)
			return rc;
		run->kvm_dirty_regs &= ~(u64)KVM_SYNC_X86_SREGS;
	}
	if (dirty & KVM_SYNC_X86_EVENTS) {
		struct kvm_vcpu_events e = run->s.regs.events;

		rc = events_in(kv, &e);
		if (rc < 0)
			return rc;
		run->kvm_dirty_regs &= ~(u64)KVM_SYNC_X86_EVENTS;
	}
	return 0;
}

static void sync_out(struct kvm_vcpu *kv, struct kvm_run *run)
{
	if (run->kvm_valid_regs & KVM_SYNC_X86_REGS)
		regs_out(&kv->cpu, &run->s.regs.regs);
	if (run->kvm_valid_regs & KVM_SYNC_X86_SREGS)
		sregs_out(&kv->cpu, &run->s.regs.sregs);
	if (run->kvm_valid_regs & KVM_SYNC_X86_EVENTS)
		events_out(kv, &run->s.regs.events);
}

static long run_locked(struct kvm_vcpu *kv)
{
	struct vcpu12 *x = kv->x12;
	struct vcpu *v = &kv->cpu;
	struct kvm_run *run = x->run;
	u64 began = __rdtsc();
	long rc = 0;

	run->flags = 0;
	if (unlikely(run->kvm_valid_regs | run->kvm_dirty_regs))
		rc = sync_in(kv, run);
	if (rc == 0 && !lapic_of(v)) {
		if (run->cr8 > 15)
			rc = -EINVAL;
		else
			v->cr8 = run->cr8;
	}
	if (rc == 0) {
		run_begin(kv);
		if (unlikely(x->has_mask))
			run_mask_swap(*(u64 *)(void *)&x->mask);
		if (x->msr_steal || x->clock_stopped)
			pv_run(v, true);
		rc = run_inside(kv);
		vapic_in(v);
		if (x->msr_steal)
			pv_run(v, false);
		if (atomic_load_explicit(&v->events, memory_order_relaxed) & EV_WINDOW)
			atomic_fetch_and(&v->events, ~(u32)EV_WINDOW);
		if (unlikely(x->has_mask))
			run_mask_back();
		run_end(kv);
	}
	x->stat[DEVKVM_guest_cycles] += __rdtsc() - began;
	stat12_exit(kv, rc);
	if (unlikely(run->kvm_valid_regs) && rc != -EINVAL)
		sync_out(kv, run);
	run->if_flag = !!(v->rflags & FLAGS_IF);
	run->flags = x->smm ? KVM_RUN_X86_SMM : 0;
	run->cr8 = v->cr8;
	run->apic_base = v->apic_base;
	run->ready_for_interrupt_injection = pic_of(v->vm) || irq_open(kv);
	return rc;
}

/* ---- other requests ---------------------------------------------------------------------------------------------- */

static long interrupt(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_interrupt irq;
	long rc = user_read(&irq, (void *)arg, sizeof(irq));

	if (rc < 0)
		return rc;
	if (irq.irq > 255)
		return -EINVAL;
	if (pic_of(kv->cpu.vm))
		return -ENXIO;
	if (lapic_of(&kv->cpu) && kv->x12->irq >= 0)
		return -EEXIST;
	kv->x12->irq = (int)irq.irq;
	atomic_fetch_or(&kv->cpu.events, (u32)EV_IRQ);
	return 0;
}

static long nmi(struct kvm_vcpu *kv, unsigned long arg)
{
	atomic_fetch_add(&kv->cpu.nmi_queued, 1);
	stat12(&kv->cpu, DEVKVM_nmi_injections);
	atomic_fetch_or(&kv->cpu.events, (u32)EV_NMI);
	return 0;
}

static long smi(struct kvm_vcpu *kv, unsigned long arg)
{
	kv->x12->smi_pending = true;
	return 0;
}

static long vcpu_hv_cpuid(struct kvm_vcpu *kv, unsigned long arg)
{
	return hv_supported_cpuid(arg);
}

static long set_signal_mask(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_signal_mask m;
	u64 bits;
	long rc;

	if (!arg) {
		kv->x12->has_mask = false;
		return 0;
	}
	rc = user_read(&m, (void *)arg, sizeof(m));
	if (rc < 0)
		return rc;
	if (m.len != sizeof(bits))
		return -EINVAL;
	rc = user_read(&bits, (u8 *)arg + sizeof(m), sizeof(bits));
	if (rc < 0)
		return rc;
	sigemptyset(&kv->x12->mask);
	memcpy(&kv->x12->mask, &bits, sizeof(bits));
	kv->x12->has_mask = true;
	return 0;
}

static long get_mp_state(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_mp_state s = {.mp_state = kv->x12->mp_state};

	return user_write((void *)arg, &s, sizeof(s));
}

static long set_mp_state(struct kvm_vcpu *kv, unsigned long arg)
{
	struct kvm_mp_state s;
	long rc = user_read(&s, (void *)arg, sizeof(s));

	if (rc < 0)
		return rc;
	if (s.mp_state > KVM_MP_STATE_SIPI_RECEIVED)
		return -EINVAL;
	if (s.mp_state != KVM_MP_STATE_RUNNABLE && !lapic_of(&kv->cpu))
		return -EINVAL;
	if (s.mp_state == KVM_MP_STATE_SIPI_RECEIVED) {
		kv->x12->mp_state = KVM_MP_STATE_INIT_RECEIVED;
		atomic_fetch_or(&kv->x12->latch, LATCH_SIPI);
	} else {
		kv->x12->mp_state = s.mp_state;
	}
	return 0;
}

static long translate(struct kvm_vcpu *kv, unsigned long arg)
{
	struct vm *vm = kv->cpu.vm;
	struct kvm_translation t;
	gpa_t gpa = 0;
	bool writable = false, user = false;
	long rc = user_read(&t, (void *)arg, sizeof(t));

	if (rc < 0)
		return rc;
	pthread_mutex_lock(&vm->lock);
	t.valid = gva_peek(&kv->cpu.mmu, t.linear_address, &gpa, &writable, &user);
	pthread_mutex_unlock(&vm->lock);
	t.physical_address = t.valid ? gpa : ~0ull;
	/* Linux' KVM says so of every page. */
	t.writeable = 1;
	t.usermode = 0;
	return user_write((void *)arg, &t, sizeof(t));
}

static long get_tsc_khz(struct kvm_vcpu *kv, unsigned long arg)
{
	return tsc_khz();
}

/* The guest's TSC is the host's: only its own rate can be set. */
static long set_tsc_khz(struct kvm_vcpu *kv, unsigned long arg)
{
	u32 have = tsc_khz(), want = (u32)arg;
	u32 slack = have / 4000; /* 250 ppm */

	if (!want || (want >= have - slack && want <= have + slack))
		return 0;
	return -EINVAL;
}

static const struct {
	unsigned long req;
	vcpu_fn serve;
} table[] = {
        {KVM_GET_REGS, get_regs},
        {KVM_SET_REGS, set_regs},
        {KVM_GET_SREGS, get_sregs},
        {KVM_SET_SREGS, set_sregs},
        {KVM_GET_SREGS2, get_sregs2},
        {KVM_SET_SREGS2, set_sregs2},
        {KVM_GET_FPU, get_fpu},
        {KVM_SET_FPU, set_fpu},
        {KVM_GET_XSAVE, get_xsave},
        {KVM_GET_XSAVE2, get_xsave},
        {KVM_SET_XSAVE, set_xsave},
        {KVM_GET_XCRS, get_xcrs},
        {KVM_SET_XCRS, set_xcrs},
        {KVM_GET_MSRS, get_msrs},
        {KVM_SET_MSRS, set_msrs},
        {KVM_GET_CPUID2, get_cpuid2},
        {KVM_SET_CPUID2, set_cpuid2},
        {KVM_GET_DEBUGREGS, get_debugregs},
        {KVM_SET_DEBUGREGS, set_debugregs},
        {KVM_GET_VCPU_EVENTS, get_vcpu_events},
        {KVM_SET_VCPU_EVENTS, set_vcpu_events},
        {KVM_SET_GUEST_DEBUG, set_guest_debug},
        {KVM_INTERRUPT, interrupt},
        {KVM_NMI, nmi},
        {KVM_SMI, smi},
        {KVM_SET_SIGNAL_MASK, set_signal_mask},
        {KVM_GET_MP_STATE, get_mp_state},
        {KVM_SET_MP_STATE, set_mp_state},
        {KVM_TRANSLATE, translate},
        {KVM_GET_TSC_KHZ, get_tsc_khz},
        {KVM_SET_TSC_KHZ, set_tsc_khz},
        {KVM_KVMCLOCK_CTRL, kvmclock_ctrl},
        {KVM_X86_SETUP_MCE, mce_setup},
        {KVM_X86_SET_MCE, mce_inject},
        {KVM_GET_LAPIC, get_lapic},
        {KVM_SET_LAPIC, set_lapic},
        {KVM_SET_VAPIC_ADDR, set_vapic_addr},
        {KVM_TPR_ACCESS_REPORTING, tpr_reporting},
        {KVM_ENABLE_CAP, vcpu_enable_cap},
        {KVM_GET_STATS_FD, vcpu_stats_fd},
        {KVM_GET_SUPPORTED_HV_CPUID, vcpu_hv_cpuid},
        {KVM_SET_DEVICE_ATTR, vcpu_set_attr},
        {KVM_GET_DEVICE_ATTR, vcpu_get_attr},
        {KVM_HAS_DEVICE_ATTR, vcpu_has_attr},
};

long dialect_12_vcpu(struct kvm_vcpu *kv, unsigned long req, unsigned long arg, struct made *made)
{
	long rc = -EINVAL;

	if (likely(req == KVM_RUN)) {
		if (arg)
			return -EINVAL;
		pthread_mutex_lock(&kv->lock);
		rc = run_locked(kv);
		pthread_mutex_unlock(&kv->lock);
		return rc;
	}
	for (unsigned n = 0; n < ARRAY_SIZE(table); n++) {
		if (table[n].req != req)
			continue;
		pthread_mutex_lock(&kv->lock);
		rc = table[n].serve(kv, arg);
		pthread_mutex_unlock(&kv->lock);
		break;
	}
	return rc;
}
