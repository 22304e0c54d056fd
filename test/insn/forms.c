/*
 * forms.c: the list of instruction forms, found by brute force: every opcode of every map with every prefix that can
 * matter, both kinds of ModRM operand and every ModRM.reg, through the decoder; kept when the model processor offers it
 * and a user program can run it without disturbing the test.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <Zydis/Zydis.h>

#include "../../src/cpu/cpu.h"
#include "insn_test.h"

struct form *forms;
unsigned nforms;
static unsigned cap;
static u32 *table;
#define TABLE_BITS 17

const char *mnemonic_name(u16 mnemonic)
{
	return ZydisMnemonicGetString((ZydisMnemonic)mnemonic);
}

static u64 mix(u64 h, u64 x)
{
	h = (h ^ x) * 0x9e3779b97f4a7c15ull;
	return h ^ (h >> 29);
}

u64 form_hash(enum decode_mode mode, const struct insn *i)
{
	u64 h = mix(mode + 1, i->mnemonic);

	h = mix(h, i->map | (u64)i->opcode << 8 | (u64)i->osize << 16 | (u64)i->asize << 24 | (u64)i->vl << 32);
	h = mix(h, i->flags & (INSN_LOCK | INSN_REP | INSN_REPNE | INSN_VEX | INSN_MEM | INSN_ALIGN));
	for (unsigned n = 0; n < i->nops; n++)
		h = mix(h, (u64)i->op[n].kind << 8 | i->op[n].size);
	return h;
}

/* What a user program cannot run twice with the same result, or not without harm to the test itself. */
bool form_excluded(const struct insn *i, enum decode_mode mode)
{
	switch (i->mnemonic) {
	/* Time, identity, randomness. */
	case ZYDIS_MNEMONIC_RDTSC:
	case ZYDIS_MNEMONIC_RDTSCP:
	case ZYDIS_MNEMONIC_RDPMC:
	case ZYDIS_MNEMONIC_RDPID:
	case ZYDIS_MNEMONIC_CPUID:
	case ZYDIS_MNEMONIC_RDRAND:
	case ZYDIS_MNEMONIC_RDSEED:
	case ZYDIS_MNEMONIC_XGETBV:
	/* Descriptor tables and segments: the system suite's. */
	case ZYDIS_MNEMONIC_SGDT:
	case ZYDIS_MNEMONIC_SIDT:
	case ZYDIS_MNEMONIC_SLDT:
	case ZYDIS_MNEMONIC_STR:
	case ZYDIS_MNEMONIC_SMSW:
	case ZYDIS_MNEMONIC_LAR:
	case ZYDIS_MNEMONIC_LSL:
	case ZYDIS_MNEMONIC_VERR:
	case ZYDIS_MNEMONIC_VERW:
	case ZYDIS_MNEMONIC_LDS:
	case ZYDIS_MNEMONIC_LES:
	case ZYDIS_MNEMONIC_LFS:
	case ZYDIS_MNEMONIC_LGS:
	case ZYDIS_MNEMONIC_LSS:
	case ZYDIS_MNEMONIC_WRFSBASE:
	case ZYDIS_MNEMONIC_WRGSBASE:
	/* The kernel's doors. */
	case ZYDIS_MNEMONIC_SYSCALL:
	case ZYDIS_MNEMONIC_SYSENTER:
	case ZYDIS_MNEMONIC_SYSRET:
	case ZYDIS_MNEMONIC_SYSEXIT:
	case ZYDIS_MNEMONIC_INT:
	case ZYDIS_MNEMONIC_INT1:
	case ZYDIS_MNEMONIC_INT3:
	case ZYDIS_MNEMONIC_INTO:
	case ZYDIS_MNEMONIC_IRET:
	case ZYDIS_MNEMONIC_IRETD:
	case ZYDIS_MNEMONIC_IRETQ:
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ:
	case ZYDIS_MNEMONIC_MONITOR:
	case ZYDIS_MNEMONIC_MWAIT:
	case ZYDIS_MNEMONIC_VMMCALL:
	case ZYDIS_MNEMONIC_VMCALL:
	/* With the kernel in between (CR4.DE, port permissions) faults differ. */
	case ZYDIS_MNEMONIC_IN:
	case ZYDIS_MNEMONIC_OUT:
		return true;
	case ZYDIS_MNEMONIC_RET:
		return i->opcode == 0xca || i->opcode == 0xcb;
	case ZYDIS_MNEMONIC_CALL:
	case ZYDIS_MNEMONIC_JMP:
		return i->op[0].kind == OPK_FAR || (i->opcode == 0xff && i->op[0].kind == OPK_MEM &&
		                                    (((i->modrm >> 3) & 7) == 3 || ((i->modrm >> 3) & 7) == 5));
	default:
		break;
	}
	if (i->map == 0 && i->opcode >= 0x6c && i->opcode <= 0x6f)
		return true;
	for (unsigned n = 0; n < i->nops; n++)
		if (i->op[n].kind == OPK_SREG || i->op[n].kind == OPK_CR || i->op[n].kind == OPK_DR)
			return true;
	return false;
}

static void add(const struct form *t, const struct insn *i, const char *filter)
{
	u64 h = form_hash((enum decode_mode)t->mode, i);
	u32 slot = (u32)(h >> 20) & ((1u << TABLE_BITS) - 1);

	if (!cpuid_has_isa(i->isa) || form_excluded(i, (enum decode_mode)t->mode))
		return;
	if (filter && !strstr(mnemonic_name(i->mnemonic), filter))
		return;
	while (table[slot]) {
		if (forms[table[slot] - 1].hash == h)
			return;
		slot = (slot + 1) & ((1u << TABLE_BITS) - 1);
	}
	if (nforms == cap) {
		cap = cap ? cap * 2 : 4096;
		forms = realloc(forms, cap * sizeof(*forms));
		if (!forms)
			exit(2);
	}
	forms[nforms] = *t;
	forms[nforms].hash = h;
	forms[nforms].mnemonic = i->mnemonic;
	table[slot] = ++nforms;
}

/* Tries opcode `t` with every ModRM that can matter. */
static void try_modrm(struct form *t, const char *filter)
{
	for (unsigned m = 0; m < 256; m++) {
		struct insn i;
		u8 b[32];
		unsigned n = 0;

		/* Memory: one addressing form stands for all; registers: all, since some opcodes go by rm. */
		if (m < 0xc0 && (m & 0xc7) != 0x01)
			continue;
		for (unsigned k = 0; k < t->nprefix; k++)
			b[n++] = t->prefix[k];
		if (t->vex) {
			b[n++] = 0xc4;
			b[n++] = (u8)(0xe0 | t->map);
			b[n++] = (u8)(t->vex_w << 7 | 0x78 | t->vex_l << 2 | t->vex_pp);
		} else {
			if (t->rex)
				b[n++] = t->rex;
			if (t->map)
				b[n++] = 0x0f;
			if (t->map == 2)
				b[n++] = 0x38;
			if (t->map == 3)
				b[n++] = 0x3a;
		}
		b[n++] = t->opcode;
		b[n++] = (u8)m;
		for (unsigned k = 0; k < 12; k++)
			b[n++] = 0;
		if (decode((enum decode_mode)t->mode, b, 15, &i) < 0) {
			/* VSIB needs a SIB byte; vvvv may not be 1111 for gathers' mask, but decoding does not care. */
			if (t->vex && m < 0xc0) {
				b[n - 13] = (u8)((m & 0x38) | 4);
				b[n - 12] = 0x21;
				if (decode((enum decode_mode)t->mode, b, 15, &i) < 0)
					continue;
			} else {
				continue;
			}
		}
		t->has_modrm = i.off_modrm != 0;
		t->mem = i.flags & INSN_MEM;
		t->modrm = (u8)m;
		add(t, &i, filter);
		if (!t->has_modrm)
			break;
	}
}

static void try_legacy(enum decode_mode mode, const char *filter)
{
	static const char *const prefixes[] = {"",         "\x66",     "\xf2", "\xf3",     "\xf0",     "\x66\xf2",
	                                       "\x66\xf3", "\x66\xf0", "\x67", "\x67\x66", "\x67\xf3", "\x67\xf2"};

	for (unsigned p = 0; p < ARRAY_SIZE(prefixes); p++)
		for (unsigned w = 0; w < (mode == DECODE_64 ? 2u : 1u); w++)
			for (unsigned map = 0; map < 4; map++)
				for (unsigned op = 0; op < 256; op++) {
					struct form t = {.mode = (u8)mode, .map = (u8)map, .opcode = (u8)op};

					/* 16-bit addresses reach no window: the plain ones will do. */
					if (mode == DECODE_32 && p >= 8 && map != 0)
						continue;
					t.nprefix = (u8)strlen(prefixes[p]);
					memcpy(t.prefix, prefixes[p], t.nprefix);
					t.rex = w ? 0x48 : 0;
					/* Not an opcode here: a prefix or an escape. */
					if (map == 0 &&
					    (op == 0x0f || op == 0x26 || op == 0x2e || op == 0x36 || op == 0x3e ||
					     (op >= 0x64 && op <= 0x67) || op == 0xf0 || op == 0xf2 || op == 0xf3 ||
					     op == 0xc4 || op == 0xc5 || op == 0x62))
						continue;
					if (map == 0 && mode == DECODE_64 && (op & 0xf0) == 0x40)
						continue;
					if (map == 1 && (op == 0x38 || op == 0x3a))
						continue;
					try_modrm(&t, filter);
				}
}

static void try_vex(enum decode_mode mode, const char *filter)
{
	for (unsigned map = 1; map < 4; map++)
		for (unsigned wlp = 0; wlp < 16; wlp++)
			for (unsigned op = 0; op < 256; op++) {
				struct form t = {.mode = (u8)mode, .map = (u8)map, .opcode = (u8)op, .vex = true};

				t.vex_w = wlp >> 3;
				t.vex_l = wlp >> 2 & 1;
				t.vex_pp = wlp & 3;
				try_modrm(&t, filter);
			}
}

void forms_enumerate(const char *filter)
{
	table = calloc(1u << TABLE_BITS, sizeof(*table));
	if (!table)
		exit(2);
	try_legacy(DECODE_64, filter);
	try_vex(DECODE_64, filter);
	try_legacy(DECODE_32, filter);
	try_vex(DECODE_32, filter);
}
