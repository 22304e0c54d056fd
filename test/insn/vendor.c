/*
 * vendor.c: what Intel's processors do in another way than AMD's where the manuals leave it open. devkvm does as AMD's
 * do, on every host; on an Intel host (seen on Sapphire Rapids) the judge's own way is taken for right in these places,
 * and in no other.
 */
#include <cpuid.h>
#include <string.h>

#include "../../src/cpu/cpu.h"
#include "insn_test.h"

static bool host_is_intel(void)
{
	unsigned a, b, c, d;

	return __get_cpuid(0, &a, &b, &c, &d) && b == signature_INTEL_ebx && c == signature_INTEL_ecx;
}

static bool is_string(const struct tcase *c)
{
	return c->insn.map == 0 && ((c->insn.opcode >= 0xa4 && c->insn.opcode <= 0xa7) ||
	                            (c->insn.opcode >= 0xaa && c->insn.opcode <= 0xaf));
}

static bool has_mem(const struct tcase *c)
{
	return c->insn.flags & INSN_MEM;
}

/* MOVD, MOVQ and MOVNTQ from an MMX register to memory. */
static bool is_mmx_store(const struct tcase *c)
{
	const struct insn *i = &c->insn;

	return i->map == 1 && has_mem(c) && (i->opcode == 0x7e || i->opcode == 0x7f || i->opcode == 0xe7) &&
	       i->nops > 1 && i->op[1].kind == OPK_MMX;
}

static bool is_x87_store(const struct tcase *c)
{
	const struct insn *i = &c->insn;

	return i->map == 0 && i->opcode >= 0xd8 && i->opcode <= 0xdf && has_mem(c);
}

bool vendor_takes_other_way(const struct tcase *c, const struct outcome *want, const struct outcome *got)
{
	bool memory = got->vector == EXC_PF || got->vector == EXC_GP || got->vector == EXC_SS;

	if (!host_is_intel())
		return false;
	/* CVTPI2PS from memory does not look at the x87 unit at all. */
	if (c->insn.mnemonic == ZYDIS_MNEMONIC_CVTPI2PS && has_mem(c) && got->vector == EXC_MF)
		return true;
	if (!memory)
		return false;
	/* A store with an unmasked exception is not done: no fault of its address is looked for first. */
	return (is_x87_store(c) && want->vector == EXC_BP && (want->s.fx[2] & 0x80)) ||
	       (c->insn.mnemonic == ZYDIS_MNEMONIC_VCVTPS2PH && want->vector == EXC_XM);
}

void vendor_adopt(const struct tcase *c, const struct outcome *want, struct outcome *got)
{
	u16 m = c->insn.mnemonic;
	bool pf = want->vector == EXC_PF && got->vector == EXC_PF;

	if (!host_is_intel() || want->vector != got->vector)
		return;
	/* A REP string with 32-bit addresses extends RCX, RSI and RDI by zeros though it did not step. */
	if (is_string(c) && c->insn.asize == 4 && c->form->mode == DECODE_64)
		for (unsigned n = R_RCX; n <= R_RDI; n++)
			if ((n == R_RCX || n == R_RSI || n == R_RDI) && want->s.r[n] == (u32)c->in.r[n] &&
			    got->s.r[n] == c->in.r[n])
				got->s.r[n] = want->s.r[n];
	/* SCAS and CMPS that stop in the middle have the flags of the comparison before or none. */
	if (pf && is_string(c) && (c->insn.opcode & 6) == 6)
		got->s.rflags = (got->s.rflags & ~FLAGS_ARITH) | (want->s.rflags & FLAGS_ARITH);
	/* The step from x87 to MMX comes before the fault of the store; CVTPI2PS from memory does not make it. */
	if ((want->vector != EXC_BP && is_mmx_store(c)) || (m == ZYDIS_MNEMONIC_CVTPI2PS && has_mem(c))) {
		memcpy(got->s.fx + 2, want->s.fx + 2, 3);
		for (unsigned n = 0; n < 8; n++)
			memcpy(got->s.fx + 32 + 16 * n, want->s.fx + 32 + 16 * n, 10);
	}
	/* MXCSR has the exceptions of a conversion whose store faults. */
	if (want->vector != EXC_BP && m == ZYDIS_MNEMONIC_VCVTPS2PH)
		got->s.mxcsr |= want->s.mxcsr & 0x3f;
	/* The address of a masked store's fault is that of its first byte, or of its page. */
	if (pf && c->insn.map == 2 && has_mem(c) && (c->insn.flags & INSN_VEX) &&
	    (c->insn.opcode == 0x2e || c->insn.opcode == 0x2f || c->insn.opcode == 0x8e) &&
	    want->cr2 - c->target < 32 && got->cr2 - c->target < 32)
		got->cr2 = want->cr2;
	/* A store of ten bytes that faults in its second page has been done in the first. */
	if (pf && is_x87_store(c) && (m == ZYDIS_MNEMONIC_FSTP || m == ZYDIS_MNEMONIC_FBSTP) && want->cr2 > c->target)
		for (u64 a = c->target; a < want->cr2 && a - DATA < DATA_RW; a++)
			got->mem[a - DATA] = want->mem[a - DATA];
	/* A near CALL to an address that is not canonical has pushed. */
	if (want->vector == EXC_GP && m == ZYDIS_MNEMONIC_CALL)
		for (u64 a = c->in.r[R_RSP] - 8; a < c->in.r[R_RSP] && a - DATA < DATA_RW; a++)
			got->mem[a - DATA] = want->mem[a - DATA];
}
