/*
 * simd.h: what the SIMD handler files share: may the guest use this now, where is its operand.
 */
#ifndef DEVKVM_INTERP_SIMD_H
#define DEVKVM_INTERP_SIMD_H

#include "interp.h"

/* Slow halves: say which exception. */
int simd_sse_refused(struct vcpu *v);
int simd_avx_refused(struct vcpu *v);
/* MMX: #UD, #NM, then a pending x87 exception. STEP_OK when the instruction may go on. */
int simd_mmx_gate(struct vcpu *v);
/* What the `size` bytes of an SSE or AVX memory operand must be aligned to, by the instruction; 1: nothing. */
unsigned simd_alignment(const struct insn *i, unsigned size);
/* A pending unmasked x87 exception meets a waiting instruction: #MF. */
int x87_pending_fault(struct vcpu *v);

static inline int simd_sse_gate(struct vcpu *v)
{
	if (unlikely((v->cr0 & (CR0_EM | CR0_TS)) || !(v->cr4 & CR4_OSFXSR)))
		return simd_sse_refused(v);
	return STEP_OK;
}

static inline int simd_avx_gate(struct vcpu *v)
{
	if (unlikely((v->cr0 & CR0_TS) || !(v->cr4 & CR4_OSXSAVE) || v->mode <= MODE_V86 ||
	             (v->fpu.xcr0 & (XCR0_SSE | XCR0_AVX)) != (XCR0_SSE | XCR0_AVX)))
		return simd_avx_refused(v);
	return STEP_OK;
}

/* Linear address of the memory operand. `align`: a power of two, 1 for none; misaligned is #GP(0). */
static inline int simd_linear(struct vcpu *v, const struct insn *i, unsigned size, unsigned align, unsigned access,
                              gva_t *gva)
{
	int rc = v_linear(v, i->seg, insn_ea(v, i), size, access, gva);

	if (unlikely(rc != STEP_OK))
		return rc;
	if (unlikely(*gva & (align - 1)))
		return excp_raise_err(v, EXC_GP, 0);
	return STEP_OK;
}

/* Operand sizes as constants, so that each is a move and not a call. */
static inline int simd_load(struct vcpu *v, gva_t gva, void *dst, unsigned size)
{
	switch (size) {
	case 16:
		return lin_read(v, gva, dst, 16);
	case 32:
		return lin_read(v, gva, dst, 32);
	case 8:
		return lin_read(v, gva, dst, 8);
	case 4:
		return lin_read(v, gva, dst, 4);
	default:
		return lin_read(v, gva, dst, size);
	}
}

static inline int simd_store(struct vcpu *v, gva_t gva, const void *src, unsigned size)
{
	switch (size) {
	case 16:
		return lin_write(v, gva, src, 16);
	case 32:
		return lin_write(v, gva, src, 32);
	case 8:
		return lin_write(v, gva, src, 8);
	case 4:
		return lin_write(v, gva, src, 4);
	default:
		return lin_write(v, gva, src, size);
	}
}

/* A decoded instruction remembers what it was bound to; struct insn lies in a cache that the engine may write. */
static inline void insn_bind(const struct insn *i, const void *aux, insn_fn fn)
{
	struct insn *w = (struct insn *)(uintptr_t)i;

	w->aux = (void *)(uintptr_t)aux;
	__atomic_store_n(&w->fn, fn, __ATOMIC_RELEASE);
}

/* op_simd_mov.c: a handler in C for simple moves, or NULL. */
insn_fn simd_mov_find(const struct insn *i);
/* op_simd_mask.c: accesses of single elements (gathers, masked moves), or NULL. */
insn_fn simd_mask_find(const struct insn *i);
/* op_fpstate.c: FXSAVE, XSAVE, LDMXCSR, EMMS, VZEROALL and their kin, or NULL. */
insn_fn fpstate_find(const struct insn *i);

#endif
