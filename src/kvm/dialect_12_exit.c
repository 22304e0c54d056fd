/*
 * dialect_12_exit.c: the exits of KVM_RUN in struct kvm_run, and their completion in the next KVM_RUN.
 *
 * Invariant: at an I/O exit RIP is at the instruction; the next KVM_RUN completes it (moves data, steps RIP), unless
 * the client sent the guest elsewhere. An MMIO read runs again with its answer, an MMIO write is complete at its exit.
 */
#include "dialect_12.h"

#include <errno.h>
#include <string.h>

#include "../base/bug.h"
#include "../cpu/vmem.h"
#include "../interp/interp.h"

/* ---- completing an exit ------------------------------------------------------------------------------------------ */

void vcpu12_abandon(struct kvm_vcpu *kv)
{
	interp_abandon(&kv->cpu);
	kv->x12->pend = PEND_NONE;
}

static void set_sized(struct vcpu *v, unsigned reg, unsigned size, u64 val)
{
	if (size == 8)
		v->r[reg] = val;
	else if (size == 4)
		v->r[reg] = (u32)val;
	else
		memcpy(&v->r[reg], &val, size);
}

/* Data and index registers of INS or OUTS. True: the instruction is complete. */
static bool finish_string(struct vcpu *v, const struct pio *io)
{
	u64 mask = io->asize == 8 ? ~0ull : io->asize == 4 ? 0xffffffffu : 0xffff;
	unsigned reg = io->in ? R_RDI : R_RSI, n, done = io->chunk;
	u64 step = io->down ? -(u64)io->size : io->size;

	/* The client may have changed the count. */
	if (io->rep && (v->r[R_RCX] & mask) < done)
		done = (unsigned)(v->r[R_RCX] & mask);
	for (n = 0; io->in && n < done; n++) {
		/* The first element was probed; what the client unmapped since faults when its turn comes again. */
		if (lin_write(v, io->gva + n * step, pio_data(x12_of(v)) + n * io->size, io->size) != STEP_OK) {
			done = n;
			break;
		}
	}
	set_sized(v, reg, io->asize, v->r[reg] + done * step);
	if (io->rep)
		set_sized(v, R_RCX, io->asize, v->r[R_RCX] - done);
	return !io->rep || !(v->r[R_RCX] & mask);
}

/* Steps over the instruction whose work is done. True: that ends in a debug exit. */
static bool step_over(struct vcpu *v, unsigned len)
{
	bool tf = v->rflags & FLAGS_TF;
	u64 rip = v->r[R_RIP] + len;

	v->r[R_RIP] = v->mode == MODE_64 ? rip : (u32)rip;
	if (unlikely(v->shadow)) {
		v->shadow = 0;
		atomic_fetch_and(&v->events, ~(u32)EV_SHADOW);
	}
	if (likely(!dbg_wants_after(v))) {
		v->rflags &= ~FLAGS_RF;
		return false;
	}
	v->exit.reason = EXIT_NONE;
	return dbg_after(v, tf) == STEP_EXIT;
}

/* KVM_EXIT_X86_RDMSR and _WRMSR. */
static bool complete_msr(struct kvm_vcpu *kv)
{
	struct vcpu12 *x = kv->x12;
	struct vcpu *v = &kv->cpu;

	if (x->run->msr.error) {
		excp_raise_err(v, EXC_GP, 0);
		x->inject = true;
		return false;
	}
	if (!x->pend_io.in)
		return step_over(v, x->pend_io.len);
	v->r[R_RAX] = (u32)x->run->msr.data;
	v->r[R_RDX] = x->run->msr.data >> 32;
	return step_over(v, x->pend_io.len);
}

bool exit12_complete(struct kvm_vcpu *kv)
{
	struct vcpu12 *x = kv->x12;
	struct vcpu *v = &kv->cpu;
	const struct pio *io = &x->pend_io;
	enum pending pend = x->pend;

	x->pend = PEND_NONE;
	if (pend == PEND_MMIO_READ) {
		u8 data[8];

		memcpy(data, x->run->mmio.data, sizeof(data));
		mmio_answer(&v->mmu, data);
		return false;
	}
	if (pend == PEND_SYNDBG) {
		syndbg_answered(kv);
		return false;
	}
	if (v->r[R_RIP] != x->pend_rip)
		return false;
	if (pend == PEND_HCALL) {
		hv_answered(kv);
		return step_over(v, io->len);
	}
	if (pend == PEND_MSR)
		return complete_msr(kv);
	if (io->string) {
		if (!finish_string(v, io))
			return false;
	} else if (io->in) {
		u32 val;

		memcpy(&val, pio_data(x), sizeof(val));
		set_sized(v, R_RAX, io->size, val);
	}
	return step_over(v, io->len);
}

/* ---- exits ------------------------------------------------------------------------------------------------------- */

static void exit_io(struct vcpu12 *x, struct vcpu *v)
{
	const struct pio *io = &v->exit.io;
	struct kvm_run *run = x->run;

	run->exit_reason = KVM_EXIT_IO;
	run->io.direction = io->in ? KVM_EXIT_IO_IN : KVM_EXIT_IO_OUT;
	run->io.size = io->size;
	run->io.port = io->port;
	run->io.count = io->string ? io->chunk : 1;
	run->io.data_offset = PIO_PAGE * PAGE_SIZE;
	if (!io->in && !io->string)
		memcpy(pio_data(x), &io->value, 4);
	/* Linux' KVM is past OUT to port 0x7e already: firmware resets the machine there, and older clients relied on
	 * it. */
	if (io->port == 0x7e && !io->in && !io->string && !(v->vm->x12->quirks_off & KVM_X86_QUIRK_OUT_7E_INC_RIP)) {
		step_over(v, io->len);
		return;
	}
	x->pend = PEND_PIO;
	x->pend_rip = v->r[R_RIP];
	x->pend_io = *io;
}

static void exit_msr(struct vcpu12 *x, struct vcpu *v)
{
	struct kvm_run *run = x->run;

	run->exit_reason = v->exit.msr.write ? KVM_EXIT_X86_WRMSR : KVM_EXIT_X86_RDMSR;
	memset(&run->msr, 0, sizeof(run->msr));
	run->msr.reason = v->exit.msr.reason;
	run->msr.index = v->exit.msr.index;
	run->msr.data = v->exit.msr.write ? v->exit.msr.data : 0;
	x->pend = PEND_MSR;
	x->pend_rip = v->r[R_RIP];
	x->pend_io = (struct pio){.in = !v->exit.msr.write, .len = v->exit.insn_len};
}

unsigned code_at_rip(struct vcpu *v, u8 bytes[15])
{
	gva_t lin = v->r[R_RIP] + (v->mode == MODE_64 ? 0 : v->seg[SEG_CS].base);
	unsigned n = 0;

	while (n < 15 && gva_peek(&v->mmu, lin + n, &(gpa_t){0}, &(bool){0}, &(bool){0}) &&
	       mem_read(&v->mmu, lin + n, &bytes[n], 1, TLB_SUPER_AC) == MEM_OK)
		n++;
	mmio_done(&v->mmu);
	return n;
}

/* With the instruction's bytes. */
static void exit_internal(struct vcpu *v, struct kvm_run *run)
{
	unsigned n;

	run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
	memset(&run->emulation_failure, 0, sizeof(run->emulation_failure));
	run->emulation_failure.suberror = KVM_INTERNAL_ERROR_EMULATION;
	n = code_at_rip(v, run->emulation_failure.insn_bytes);
	if (n) {
		run->emulation_failure.ndata = 3;
		run->emulation_failure.flags = KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;
		run->emulation_failure.insn_size = (u8)n;
	}
}

/* Exits after which most clients give up. */
static void log_end(const struct vcpu *v, const char *what)
{
	gva_t lin = v->r[R_RIP] + (v->mode == MODE_64 ? 0 : v->seg[SEG_CS].base);
	const u8 *code = tlb_lookup(&v->mmu.tlb[v->cpl == 3 ? TLB_USER : TLB_SUPER][TLB_EXEC], lin, 8);

	if (!debug_on("exit"))
		return;
	debug_log("exit", "vcpu %u: %s at %#llx, cs %#x:%#llx, cr0 %#llx, cr3 %#llx, efer %#llx", v->id, what,
	          (unsigned long long)v->r[R_RIP], v->seg[SEG_CS].sel, (unsigned long long)v->seg[SEG_CS].base,
	          (unsigned long long)v->cr0, (unsigned long long)v->cr3, (unsigned long long)v->efer);
	if (code)
		debug_log("exit", "code %02x %02x %02x %02x %02x %02x %02x %02x, rax %#llx, rcx %#llx, rdx %#llx",
		          code[0], code[1], code[2], code[3], code[4], code[5], code[6], code[7],
		          (unsigned long long)v->r[R_RAX], (unsigned long long)v->r[R_RCX],
		          (unsigned long long)v->r[R_RDX]);
}

void exit12_fail_entry(struct kvm_vcpu *kv, const char *why)
{
	struct kvm_run *run = kv->x12->run;

	log_end(&kv->cpu, why);
	run->exit_reason = KVM_EXIT_FAIL_ENTRY;
	/* How the two vendors' processors say "invalid guest state". */
	run->fail_entry.hardware_entry_failure_reason = cpuid_is_amd() ? ~0ull : 0x80000021u;
	run->fail_entry.cpu = 0;
}

long exit12_fill(struct kvm_vcpu *kv)
{
	struct vcpu12 *x = kv->x12;
	struct vcpu *v = &kv->cpu;
	const struct vcpu_exit *e = &v->exit;
	struct kvm_run *run = x->run;

	switch (e->reason) {
	case EXIT_INTR:
		run->exit_reason = KVM_EXIT_INTR;
		return -EINTR;
	case EXIT_IO:
		exit_io(x, v);
		return 0;
	case EXIT_MMIO:
		run->exit_reason = KVM_EXIT_MMIO;
		run->mmio.phys_addr = e->mmio.gpa;
		run->mmio.len = e->mmio.len;
		run->mmio.is_write = e->mmio.is_write;
		if (e->mmio.is_write)
			memcpy(run->mmio.data, e->mmio.data, sizeof(run->mmio.data));
		else
			x->pend = PEND_MMIO_READ;
		return 0;
	case EXIT_HLT:
		run->exit_reason = KVM_EXIT_HLT;
		return 0;
	case EXIT_MSR:
		exit_msr(x, v);
		return 0;
	case EXIT_DEBUG:
		run->exit_reason = KVM_EXIT_DEBUG;
		run->debug.arch.exception = e->debug.vector;
		run->debug.arch.pad = 0;
		run->debug.arch.pc = e->debug.rip;
		run->debug.arch.dr6 = e->debug.dr6;
		run->debug.arch.dr7 = e->debug.dr7;
		return 0;
	case EXIT_SHUTDOWN:
		log_end(v, "triple fault");
		run->exit_reason = KVM_EXIT_SHUTDOWN;
		return 0;
	case EXIT_IRQ_WINDOW:
		run->exit_reason = KVM_EXIT_IRQ_WINDOW_OPEN;
		return 0;
	case EXIT_OWNER:
		return 0;
	case EXIT_GONE:
		run->exit_reason = KVM_EXIT_UNKNOWN;
		run->hw.hardware_exit_reason = 0;
		return -EFAULT;
	default:
		log_end(v, e->internal.why);
		exit_internal(v, run);
		return 0;
	}
}
