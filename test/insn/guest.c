/*
 * guest.c: one instruction in the engine, through its real loop. Delivery of exceptions is replaced (the linker's
 * --wrap): the first exception, or the INT3 behind the instruction, ends the run and is the outcome.
 */
#include <string.h>

#include "../../src/x86/pte.h"
#include "../../src/jit/jit.h"
#include "insn_test.h"
#include "machine.h"

static struct machine mach;
static struct outcome *result;
static bool ended;

int __wrap_excp_deliver(struct vcpu *v);
int __wrap_excp_soft_int(struct vcpu *v, enum event_kind kind, u8 vector, u64 next_rip);

int __wrap_excp_deliver(struct vcpu *v)
{
	result->vector = v->excp.vector;
	result->error = v->excp.has_error ? v->excp.error : 0;
	result->cr2 = v->excp.vector == EXC_PF ? v->excp.cr2 : 0;
	v->excp.kind = EVENT_NONE;
	v->exit.reason = EXIT_SHUTDOWN;
	ended = true;
	return STEP_EXIT;
}

int __wrap_excp_soft_int(struct vcpu *v, enum event_kind kind, u8 vector, u64 next_rip)
{
	result->vector = vector;
	result->error = 0;
	result->cr2 = 0;
	v->exit.reason = EXIT_SHUTDOWN;
	ended = true;
	return STEP_EXIT;
}

void guest_init(void)
{
	struct vcpu *v;

	machine_init(&mach, 3);
	v = mach.v;
	machine_window(&mach, (void *)(uintptr_t)CODE, CODE_SIZE);
	machine_window(&mach, (void *)(uintptr_t)DATA, DATA_SIZE);
	for (u64 a = 0; a < CODE_SIZE; a += PAGE_SIZE)
		machine_map(&mach, CODE + a, PTE_P | PTE_U | PTE_A);
	for (u64 a = 0; a < DATA_SIZE; a += PAGE_SIZE)
		machine_map(&mach, DATA + a, PTE_P | PTE_U | PTE_A | PTE_D | PTE_NX | (a < DATA_RW ? (u64)PTE_W : 0));
	v->seg[SEG_FS].base = native_fs_base;
	v->seg[SEG_GS].base = native_gs_base;
	cpu_update(v);
}

void guest_run(const struct tcase *c, struct outcome *out)
{
	struct vcpu *v = mach.v;
	static enum decode_mode mode = DECODE_64;

	memcpy((void *)(uintptr_t)c->rip, c->bytes, c->len);
	memcpy((void *)(uintptr_t)DATA, c->mem, DATA_RW);
	if (c->form->mode != mode) {
		mode = (enum decode_mode)c->form->mode;
		machine_set_mode(&mach, mode);
	}
	memcpy(v->r, c->in.r, sizeof(c->in.r));
	v->r[R_RIP] = c->in.rip;
	v->rflags = c->in.rflags;
	memcpy(v->fpu.fx, c->in.fx, 512);
	v->fpu.x87_used = true;
	memcpy(v->fpu.ymm, c->in.ymm, sizeof(c->in.ymm));
	v->fpu.mxcsr = c->in.mxcsr;
	v->shadow = 0;
	atomic_store(&v->events, 0);
	v->mmu.n_reads = v->mmu.next_read = v->mmu.n_writes = v->mmu.next_write = 0;
	v->exit.reason = EXIT_NONE;
	result = out;
	ended = false;
	out->odd = NULL;
	if (v->jit)
		jit_run(v);
	else
		interp_run(v);
	if (!ended)
		out->odd = v->exit.reason == EXIT_INTERNAL ? v->exit.internal.why : "an exit instead of the end";
	memcpy(out->s.r, v->r, sizeof(out->s.r));
	out->s.rip = v->r[R_RIP];
	out->s.rflags = v->rflags;
	memcpy(out->s.fx, v->fpu.fx, 512);
	memcpy(out->s.ymm, v->fpu.ymm, sizeof(out->s.ymm));
	out->s.mxcsr = v->fpu.mxcsr;
	memcpy(out->mem, (void *)(uintptr_t)DATA, DATA_RW);
	memset((void *)(uintptr_t)c->rip, 0xcc, c->len);
}

bool guest_judge(const struct tcase *c, struct outcome *out)
{
	struct vcpu *v = mach.v;
	struct jit *jit = v->jit;

	if (!jit)
		return false;
	v->jit = NULL;
	guest_run(c, out);
	v->jit = jit;
	return true;
}
