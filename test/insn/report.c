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

bool outcomes_agree(const struct tcase *c, const struct outcome *want, const struct outcome *got, const char **why)
{
	unsigned nregs = c->form->mode == DECODE_64 ? 16 : 8;

	*why = got->odd;
	if (got->odd)
		return false;
	*why = "vector";
	if (want->vector != got->vector)
		return false;
	*why = "error code";
	if (want->vector != EXC_BP && want->vector != EXC_MF && want->vector != EXC_XM && want->error != got->error)
		return false;
	*why = "CR2";
	if (want->cr2 != got->cr2)
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
	for (unsigned n = 0; n < nregs; n++)
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
	return !memcmp(want->mem, got->mem, DATA_RW);
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
		ZydisFormatterFormatInstruction(&fmt, &zi, zo, zi.operand_count_visible, text, sizeof(text), c->rip, NULL);
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
