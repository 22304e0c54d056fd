/*
 * abandon.c: leaving translated code in the middle of an instruction, when the client's memory is gone under it.
 *
 * Guest registers are where translated code keeps them, so a stub can store them; which instruction faulted is not
 * known, only its block. So the vCPU's state is not exact afterwards, and the run must end with an internal error.
 */
#include "trans.h"

bool jit_abandon(struct vcpu *v, u64 host, u64 *rip, u64 *go_on)
{
	struct jit *j = v->jit;

	if (!j || host - (u64)(uintptr_t)j->mem.rx >= j->mem.size)
		return false;
	*rip = v->r[R_RIP];
	for (unsigned n = 0; n < HASH_SIZE; n++)
		for (const struct tb *tb = j->hash[n]; tb; tb = tb->next)
			if (host - (u64)(uintptr_t)tb->code < tb->code_len)
				*rip = tb->rip;
	*go_on = (u64)(uintptr_t)j->long_lookup;
	return true;
}

/* The signal has given the host's x87 registers back as they were: the guest's, while a handler ran. */
static void store_x87(struct vcpu *v)
{
	const u8 *stub = v->jit->x87_store;

	__asm__ volatile("push %%rbx\n\tpush %%rbp\n\tpush %%r15\n\tmov %[v], %%r15\n\tcall *%[stub]\n\t"
	                 "pop %%r15\n\tpop %%rbp\n\tpop %%rbx"
	                 :
	                 : [v] "D"(v), [stub] "S"(stub)
	                 : "rax", "rcx", "rdx", "memory", "cc");
}

bool jit_landed(struct vcpu *v)
{
	bool lost = v->jt.in_stub;

	v->jt.in_stub = 0;
	if (v->jt.vec != VEC_MEMORY) {
		__builtin_ia32_ldmxcsr(v->jt.mxcsr_host);
		v->jt.vec = VEC_MEMORY;
	}
	if (v->jt.x87)
		store_x87(v);
	return lost;
}
