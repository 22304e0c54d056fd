/*
 * op_misc.c: flag instructions (LAHF SAHF CLC STC CMC CLD STD SALC), no-ops and hints, cache-line instructions, fences,
 * PAUSE, RDRAND and RDSEED; and op_int_find(), which asks every file of integer instructions.
 */
#include "interp_impl.h"

#include <sched.h>

#define FN(name) static int name(struct vcpu *v, const struct insn *i)

FN(lahf)
{
	((u8 *)&v->r[R_RAX])[1] = (u8)v->rflags;
	return STEP_OK;
}

FN(sahf)
{
	u64 m = FLAGS_SF | FLAGS_ZF | FLAGS_AF | FLAGS_PF | FLAGS_CF;

	v->rflags = (v->rflags & ~m) | ((v->r[R_RAX] >> 8) & m);
	return STEP_OK;
}

FN(clc)
{
	v->rflags &= ~FLAGS_CF;
	return STEP_OK;
}

FN(stc)
{
	v->rflags |= FLAGS_CF;
	return STEP_OK;
}

FN(cmc)
{
	v->rflags ^= FLAGS_CF;
	return STEP_OK;
}

FN(cld)
{
	v->rflags &= ~FLAGS_DF;
	return STEP_OK;
}

FN(std)
{
	v->rflags |= FLAGS_DF;
	return STEP_OK;
}

FN(salc)
{
	put_reg(v, R_RAX, 1, v->rflags & FLAGS_CF ? 0xff : 0);
	return STEP_OK;
}

FN(nop)
{
	return STEP_OK;
}

/*
 * A guest that spins mostly waits for another vCPU, and that one's thread may have no processor to run on. So after
 * some microseconds ours is offered, as KVM does when pause-loop exiting tells it of a spinning guest.
 */
FN(pause_hint)
{
	asm volatile("pause");
	if (++v->interp->pauses % 64 == 0)
		sched_yield();
	return STEP_OK;
}

FN(lfence)
{
	asm volatile("lfence" ::: "memory");
	return STEP_OK;
}

FN(sfence)
{
	asm volatile("sfence" ::: "memory");
	return STEP_OK;
}

FN(mfence)
{
	asm volatile("mfence" ::: "memory");
	return STEP_OK;
}

/* CLFLUSH and kin are checked like a one-byte load. */
FN(cache_line)
{
	gva_t gva;
	int rc = v_linear(v, i->seg, insn_ea(v, i), 1, MEM_READ, &gva);

	if (rc != STEP_OK)
		return rc;
	rc = mem_probe(&v->mmu, gva, 1, MEM_READ, v->mmu.ctx);
	return rc == MEM_OK ? STEP_OK : vmem_fail(v, rc);
}

/* The host's random numbers. CF says whether there was one; without, the destination is 0. */
FN(rdrand)
{
	u64 x;
	bool ok;

	if (i->mnemonic == ZYDIS_MNEMONIC_RDRAND)
		asm volatile("rdrand %0\n\tsetc %1" : "=r"(x), "=q"(ok) : : "cc");
	else
		asm volatile("rdseed %0\n\tsetc %1" : "=r"(x), "=q"(ok) : : "cc");
	set_reg(v, &i->op[0], i->op[0].size, ok ? x : 0);
	v->rflags = (v->rflags & ~FLAGS_ARITH) | (ok ? FLAGS_CF : 0);
	return STEP_OK;
}

/* GAP(movdiri): MOVDIRI, MOVDIR64B, CLZERO, SERIALIZE and WBNOINVD are not offered by CPUID and raise #UD. */
insn_fn op_misc_find(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_LAHF:
		return lahf;
	case ZYDIS_MNEMONIC_SAHF:
		return sahf;
	case ZYDIS_MNEMONIC_CLC:
		return clc;
	case ZYDIS_MNEMONIC_STC:
		return stc;
	case ZYDIS_MNEMONIC_CMC:
		return cmc;
	case ZYDIS_MNEMONIC_CLD:
		return cld;
	case ZYDIS_MNEMONIC_STD:
		return std;
	case ZYDIS_MNEMONIC_SALC:
		return salc;
	case ZYDIS_MNEMONIC_NOP:
		/* PREFETCHW with a register: nothing on Intel, undefined on AMD. */
		if (i->map == 1 && i->opcode == 0x0d && cpuid_is_amd())
			return NULL;
		return nop;
	case ZYDIS_MNEMONIC_PREFETCH:
	case ZYDIS_MNEMONIC_PREFETCHNTA:
	case ZYDIS_MNEMONIC_PREFETCHT0:
	case ZYDIS_MNEMONIC_PREFETCHT1:
	case ZYDIS_MNEMONIC_PREFETCHT2:
	case ZYDIS_MNEMONIC_PREFETCHW:
	case ZYDIS_MNEMONIC_PREFETCHWT1:
		return nop;
	case ZYDIS_MNEMONIC_PAUSE:
		return pause_hint;
	case ZYDIS_MNEMONIC_LFENCE:
		return lfence;
	case ZYDIS_MNEMONIC_SFENCE:
		return sfence;
	case ZYDIS_MNEMONIC_MFENCE:
		return mfence;
	case ZYDIS_MNEMONIC_CLFLUSH:
	case ZYDIS_MNEMONIC_CLFLUSHOPT:
	case ZYDIS_MNEMONIC_CLWB:
		return cache_line;
	case ZYDIS_MNEMONIC_RDRAND:
	case ZYDIS_MNEMONIC_RDSEED:
		return rdrand;
	default:
		return NULL;
	}
}

insn_fn op_int_find(const struct insn *i)
{
	static insn_fn (*const find[])(const struct insn *) = {
	        op_alu_find,  op_mov_find,   op_shift_find, op_muldiv_find,
	        op_bits_find, op_stack_find, op_misc_find,  op_bcd_find,
	};

	for (unsigned n = 0; n < ARRAY_SIZE(find); n++) {
		insn_fn fn = find[n](i);

		if (fn)
			return fn;
	}
	return NULL;
}
