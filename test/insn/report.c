/*
 * report.c: compares the two outcomes of a case, and prints one that differs.
 */
#include <stdio.h>
#include <string.h>

#include <Zydis/Zydis.h>

#include "../../src/cpu/cpu.h"
#include "insn_test.h"

/* Flags that the manual calls undefined and that need not match: instructions which the interpreter computes itself. */
static u64 flags_compared(const struct tcase *c)
{
	switch (c->insn.mnemonic) {
	case ZYDIS_MNEMONIC_DAA:
	case ZYDIS_MNEMONIC_DAS:
		return FLAGS_SEEN & ~FLAGS_OF;
	case ZYDIS_MNEMONIC_AAA:
	case ZYDIS_MNEMONIC_AAS:
		return FLAGS_AF | FLAGS_CF | FLAGS_DF;
	case ZYDIS_MNEMONIC_AAM:
	case ZYDIS_MNEMONIC_AAD:
		return FLAGS_SF | FLAGS_ZF | FLAGS_PF | FLAGS_DF;
	default:
		return FLAGS_SEEN;
	}
}

/* Instructions of several accesses, whose order the manual leaves open: on a fault the address may be any of them, and
 * earlier parts may be stored already. */
static bool many_accesses(const struct tcase *c)
{
	switch (c->insn.mnemonic) {
	case ZYDIS_MNEMONIC_CMPSB:
	case ZYDIS_MNEMONIC_CMPSW:
	case ZYDIS_MNEMONIC_CMPSD:
	case ZYDIS_MNEMONIC_CMPSQ:
	case ZYDIS_MNEMONIC_FLDENV:
	case ZYDIS_MNEMONIC_FNSTENV:
	case ZYDIS_MNEMONIC_FRSTOR:
	case ZYDIS_MNEMONIC_FNSAVE:
	case ZYDIS_MNEMONIC_FXSAVE:
	case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64:
	case ZYDIS_MNEMONIC_XSAVE:
	case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEC:
	case ZYDIS_MNEMONIC_XSAVEC64:
	case ZYDIS_MNEMONIC_XSAVEOPT:
	case ZYDIS_MNEMONIC_XSAVEOPT64:
	case ZYDIS_MNEMONIC_XRSTOR:
	case ZYDIS_MNEMONIC_XRSTOR64:
	case ZYDIS_MNEMONIC_MASKMOVQ:
	case ZYDIS_MNEMONIC_MASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVDQU:
		return true;
	default:
		return false;
	}
}

/* A misaligned operand at an address that is not canonical, through SS: #GP or #SS, the manual does not say which. */
static bool either_fault(const struct tcase *c)
{
	return c->target >= BIT(47) && (c->target & 63);
}

/* A gather may or may not show the elements before the one that faulted (SDM vol. 2, VPGATHER). */
static bool is_gather(const struct tcase *c)
{
	return c->insn.map == 2 && c->insn.opcode >= 0x90 && c->insn.opcode <= 0x93 && (c->insn.flags & INSN_VEX);
}

/* The x87 instruction pointers, which AMD hosts keep to themselves unless an exception is pending, and MXCSR_MASK,
 * which follows CPUID. Offsets of the bytes not compared in a stored image. */
static void hole(const struct tcase *c, unsigned *from, unsigned *to, unsigned *from2, unsigned *to2)
{
	*from = *to = *from2 = *to2 = 0;
	switch (c->insn.mnemonic) {
	case ZYDIS_MNEMONIC_FNSTENV:
	case ZYDIS_MNEMONIC_FNSAVE:
		*from = c->insn.osize == 2 ? 6 : 12;
		*to = c->insn.osize == 2 ? 14 : 28;
		break;
	case ZYDIS_MNEMONIC_FXSAVE:
	case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_XSAVE:
	case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEC:
	case ZYDIS_MNEMONIC_XSAVEC64:
	case ZYDIS_MNEMONIC_XSAVEOPT:
	case ZYDIS_MNEMONIC_XSAVEOPT64:
		*from = 6;
		*to = 24;
		*from2 = 28;
		*to2 = 32;
		break;
	default:
		break;
	}
}

static bool memory_agrees(const struct tcase *c, const struct outcome *want, const struct outcome *got)
{
	unsigned f1, t1, f2, t2;

	if (!memcmp(want->mem, got->mem, DATA_RW))
		return true;
	if (want->vector == EXC_PF && many_accesses(c))
		return true;
	hole(c, &f1, &t1, &f2, &t2);
	for (unsigned n = 0; n < DATA_RW; n++) {
		unsigned off = (unsigned)(DATA + n - c->target);

		if (want->mem[n] != got->mem[n] && !(off >= f1 && off < t1) && !(off >= f2 && off < t2))
			return false;
	}
	return true;
}

bool outcomes_agree(const struct tcase *c, const struct outcome *want, const struct outcome *ours, const char **why)
{
	static struct outcome copy;
	const struct outcome *got = &copy;
	unsigned nregs = c->form->mode == DECODE_64 ? 16 : 8;

	*why = ours->odd;
	if (ours->odd)
		return false;
	copy = *ours;
	vendor_adopt(c, want, &copy);
	*why = "vector";
	if (vendor_takes_other_way(c, want, got))
		return true;
	if (want->vector == EXC_BP && got->vector == EXC_GP && (want->s.mxcsr & BIT(17)))
		return true; /* the host has MXCSR.MM (misaligned SSE), the model processor does not offer it */
	if (want->vector != got->vector && c->insn.mnemonic == ZYDIS_MNEMONIC_CALL && got->vector == EXC_GP &&
	    want->vector == EXC_PF)
		return true; /* a target that is not canonical, and a stack that faults: vendors differ in the order */
	if (want->vector != got->vector && !(either_fault(c) && want->vector + got->vector == EXC_SS + EXC_GP))
		return false;
	*why = "error code";
	/* A fetch from somewhere else in this process: whether a page is there is not the guest's business. */
	if (want->vector == EXC_PF && (want->error & got->error & PF_ID) && !((want->error ^ got->error) & ~PF_P))
		return true;
	if (want->vector != EXC_BP && want->vector != EXC_MF && want->vector != EXC_XM && want->error != got->error &&
	    !(want->vector == EXC_PF && many_accesses(c)))
		return false;
	*why = "CR2";
	if (want->cr2 != got->cr2 && !many_accesses(c))
		return false;
	*why = "general registers";
	for (unsigned n = 0; n < nregs; n++) {
		u64 m = c->form->mode == DECODE_64 ? ~0ull : 0xffffffffu;

		if ((want->s.r[n] ^ got->s.r[n]) & m)
			return false;
	}
	*why = "RIP";
	if (want->s.rip != got->s.rip)
		return false;
	*why = "flags";
	if ((want->s.rflags ^ got->s.rflags) & flags_compared(c))
		return false;
	*why = "MXCSR";
	if (want->s.mxcsr != got->s.mxcsr)
		return false;
	*why = "vector registers";
	for (unsigned n = 0; n < nregs && !(is_gather(c) && want->vector != EXC_BP); n++)
		if (memcmp(want->s.ymm[n], got->s.ymm[n], 32))
			return false;
	*why = "x87 control, status or tags";
	if (memcmp(want->s.fx, got->s.fx, 5))
		return false;
	*why = "x87 registers";
	for (unsigned n = 0; n < 8; n++)
		if (memcmp(want->s.fx + 32 + 16 * n, got->s.fx + 32 + 16 * n, 10))
			return false;
	*why = "memory";
	return memory_agrees(c, want, got);
}

static void print_bytes(const char *name, const u8 *p, unsigned n)
{
	printf("  %-8s", name);
	for (unsigned k = 0; k < n; k++)
		printf("%s%02x", k && k % 8 == 0 ? " " : "", p[k]);
	printf("\n");
}

static void print_row(const char *name, u64 in, u64 want, u64 got)
{
	printf("  %-6s in %016llx  host %016llx  ours %016llx%s\n", name, (unsigned long long)in,
	       (unsigned long long)want, (unsigned long long)got, want != got ? "  <--" : "");
}

void report(const struct tcase *c, const struct outcome *want, const struct outcome *got, const char *why)
{
	static const char *const names[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
	                                    "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT];
	ZydisFormatter fmt;
	ZydisDecoder dec;
	char text[128] = "?";
	bool w64 = c->form->mode == DECODE_64;
	unsigned shown = 0;

	ZydisDecoderInit(&dec, w64 ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LEGACY_32,
	                 w64 ? ZYDIS_STACK_WIDTH_64 : ZYDIS_STACK_WIDTH_32);
	ZydisFormatterInit(&fmt, ZYDIS_FORMATTER_STYLE_INTEL);
	if (ZYAN_SUCCESS(ZydisDecoderDecodeFull(&dec, c->bytes, c->len, &zi, zo)))
		ZydisFormatterFormatInstruction(&fmt, &zi, zo, zi.operand_count_visible, text, sizeof(text), c->rip,
		                                NULL);
	printf("FAILED %s: %u-bit `%s` at %#llx\n", why, w64 ? 64 : 32, text, (unsigned long long)c->rip);
	print_bytes("bytes", c->bytes, c->len);
	printf("  vector host %u error %#x cr2 %#llx   ours %u error %#x cr2 %#llx\n", want->vector, want->error,
	       (unsigned long long)want->cr2, got->vector, got->error, (unsigned long long)got->cr2);
	for (unsigned n = 0; n < (w64 ? 16u : 8u); n++)
		print_row(names[n], c->in.r[n], want->s.r[n], got->s.r[n]);
	print_row("rip", c->in.rip, want->s.rip, got->s.rip);
	print_row("flags", c->in.rflags & FLAGS_SEEN, want->s.rflags & FLAGS_SEEN, got->s.rflags & FLAGS_SEEN);
	print_row("mxcsr", c->in.mxcsr, want->s.mxcsr, got->s.mxcsr);
	for (unsigned n = 0; n < 16; n++) {
		bool differs = memcmp(want->s.ymm[n], got->s.ymm[n], 32);
		bool named = false;

		for (unsigned k = 0; k < c->insn.nops; k++)
			named |= (c->insn.op[k].kind == OPK_XMM || c->insn.op[k].kind == OPK_YMM) &&
			         c->insn.op[k].reg == n;
		if (!differs && !named)
			continue;
		printf("  ymm%u%s\n", n, differs ? " <--" : "");
		print_bytes("in", c->in.ymm[n], 32);
		print_bytes("host", want->s.ymm[n], 32);
		print_bytes("ours", got->s.ymm[n], 32);
	}
	if (memcmp(want->s.fx, got->s.fx, 160) || (c->insn.map == 0 && (c->insn.opcode & 0xf8) == 0xd8)) {
		print_bytes("fx in", c->in.fx, 24);
		print_bytes("host", want->s.fx, 24);
		print_bytes("ours", got->s.fx, 24);
		for (unsigned n = 0; n < 8; n++) {
			printf("  st%u%s\n", n,
			       memcmp(want->s.fx + 32 + 16 * n, got->s.fx + 32 + 16 * n, 10) ? " <--" : "");
			print_bytes("in", c->in.fx + 32 + 16 * n, 10);
			print_bytes("host", want->s.fx + 32 + 16 * n, 10);
			print_bytes("ours", got->s.fx + 32 + 16 * n, 10);
		}
	}
	if (c->target >= DATA && c->target + 32 <= DATA + DATA_RW) {
		printf("  operand at %#llx\n", (unsigned long long)c->target);
		print_bytes("in", c->mem + (c->target - DATA), 32);
		print_bytes("host", want->mem + (c->target - DATA), 32);
		print_bytes("ours", got->mem + (c->target - DATA), 32);
	}
	for (unsigned n = 0; n < DATA_RW && shown < 8; n++)
		if (want->mem[n] != got->mem[n]) {
			printf("  memory %#llx: in %02x host %02x ours %02x\n", (unsigned long long)(DATA + n),
			       c->mem[n], want->mem[n], got->mem[n]);
			shown++;
		}
}
