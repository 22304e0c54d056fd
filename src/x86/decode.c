/*
 * decode.c: the edge to Zydis. Turns instruction bytes into struct insn and nothing else.
 *
 * Invariants:
 *  - the result depends on the mode and the bytes alone (and on the host's vendor, which never changes);
 *  - no Zydis type leaves this file, except the mnemonic and ISA-set numbers;
 *  - the decoders are built once and only read afterwards, so decode() is safe from any thread.
 *
 * Zydis' LEGACY modes are used for 16-bit code in real mode too: REAL_16 refuses instructions that processors accept.
 * What real and virtual-8086 mode refuse (VEX, LLDT, ...) is for the handlers to check.
 */
#include <cpuid.h>
#include <pthread.h>
#include <string.h>

#include <Zydis/Zydis.h>

#include "decode.h"

static ZydisDecoder decoders[3];
static pthread_once_t decoders_once = PTHREAD_ONCE_INIT;

static bool host_is_amd(void)
{
	unsigned a, b, c, d;

	if (!__get_cpuid(0, &a, &b, &c, &d))
		return false;
	return b == 0x68747541 /* Auth */ || b == 0x6f677948 /* Hygo */;
}

static void decoders_init(void)
{
	static const struct {
		ZydisMachineMode mode;
		ZydisStackWidth stack;
	} modes[3] = {
	        [DECODE_16] = {ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16},
	        [DECODE_32] = {ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32},
	        [DECODE_64] = {ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64},
	};

	for (unsigned m = 0; m < 3; m++) {
		ZydisDecoder *d = &decoders[m];

		ZydisDecoderInit(d, modes[m].mode, modes[m].stack);
		ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_MINIMAL, ZYAN_FALSE);
		ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_AMD_BRANCHES, host_is_amd());
		ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_KNC, ZYAN_FALSE);
		ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
		ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
		ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_LZCNT, ZYAN_TRUE);
		ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_TZCNT, ZYAN_TRUE);
		ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_WBNOINVD, ZYAN_FALSE);
		ZydisDecoderEnableMode(d, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
	}
}

static bool is_legacy_prefix(u8 b)
{
	switch (b) {
	case 0x26:
	case 0x2e:
	case 0x36:
	case 0x3e:
	case 0x64:
	case 0x65:
	case 0x66:
	case 0x67:
	case 0xf0:
	case 0xf2:
	case 0xf3:
		return true;
	}
	return false;
}

/* Index into vcpu->r[] of an address register. */
static u8 addr_reg(ZydisRegister r)
{
	switch (r) {
	case ZYDIS_REGISTER_NONE:
		return R_ZERO;
	case ZYDIS_REGISTER_RIP:
	case ZYDIS_REGISTER_EIP:
		return R_RIP;
	default:
		return (u8)ZydisRegisterGetId(r);
	}
}

static u8 seg_reg(ZydisRegister r)
{
	switch (r) {
	case ZYDIS_REGISTER_ES:
		return SEG_ES;
	case ZYDIS_REGISTER_CS:
		return SEG_CS;
	case ZYDIS_REGISTER_SS:
		return SEG_SS;
	case ZYDIS_REGISTER_FS:
		return SEG_FS;
	case ZYDIS_REGISTER_GS:
		return SEG_GS;
	default:
		return SEG_DS;
	}
}

static void fill_reg(struct operand *o, ZydisRegister r)
{
	o->reg = (u8)ZydisRegisterGetId(r);
	switch (ZydisRegisterGetClass(r)) {
	case ZYDIS_REGCLASS_GPR8:
		o->kind = OPK_GPR;
		/* Zydis numbers AL..BL 0-3, AH..BH 4-7, SPL..DIL 4-7 or 8-11 by version: go by name. */
		if (r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH) {
			o->reg = (u8)(r - ZYDIS_REGISTER_AH);
			o->off = (u8)(o->reg * 8 + 1);
			return;
		}
		if (r >= ZYDIS_REGISTER_AL && r <= ZYDIS_REGISTER_BL)
			o->reg = (u8)(r - ZYDIS_REGISTER_AL);
		else if (r >= ZYDIS_REGISTER_SPL && r <= ZYDIS_REGISTER_DIL)
			o->reg = (u8)(r - ZYDIS_REGISTER_SPL + R_RSP);
		else
			o->reg = (u8)(r - ZYDIS_REGISTER_R8B + R_R8);
		break;
	case ZYDIS_REGCLASS_GPR16:
	case ZYDIS_REGCLASS_GPR32:
	case ZYDIS_REGCLASS_GPR64:
		o->kind = OPK_GPR;
		break;
	case ZYDIS_REGCLASS_SEGMENT:
		o->kind = OPK_SREG;
		o->reg = seg_reg(r);
		return;
	case ZYDIS_REGCLASS_CONTROL:
		o->kind = OPK_CR;
		return;
	case ZYDIS_REGCLASS_DEBUG:
		o->kind = OPK_DR;
		return;
	case ZYDIS_REGCLASS_X87:
		o->kind = OPK_ST;
		return;
	case ZYDIS_REGCLASS_MMX:
		o->kind = OPK_MMX;
		return;
	case ZYDIS_REGCLASS_XMM:
		o->kind = OPK_XMM;
		return;
	case ZYDIS_REGCLASS_YMM:
		o->kind = OPK_YMM;
		return;
	default:
		o->kind = OPK_OTHER;
		return;
	}
	o->off = (u8)(o->reg * 8);
}

static void fill_mem(struct insn *out, const ZydisDecodedInstruction *zi, const ZydisDecodedOperand *z)
{
	out->flags |= INSN_MEM;
	out->seg = seg_reg(z->mem.segment);
	out->base = addr_reg(z->mem.base);
	/* Zydis 4.0 names R13D as the base where a 32-bit address in 64-bit code has none (SIB base 5, mod 0). */
	if (zi->address_width == 32 && (zi->attributes & ZYDIS_ATTRIB_HAS_SIB) && zi->raw.modrm.mod == 0 &&
	    zi->raw.sib.base == 5 && z->encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM) {
		out->base = R_ZERO;
		out->disp = zi->raw.disp.value;
		if (out->seg == SEG_SS && !(zi->attributes & ZYDIS_ATTRIB_HAS_SEGMENT_SS))
			out->seg = SEG_DS;
	} else {
		out->disp = z->mem.disp.value;
	}
	if (z->mem.type == ZYDIS_MEMOP_TYPE_VSIB) {
		out->vindex = (u8)ZydisRegisterGetId(z->mem.index);
		out->index = R_ZERO;
	} else {
		out->index = addr_reg(z->mem.index);
	}
	out->scale = z->mem.scale == 8 ? 3 : z->mem.scale == 4 ? 2 : z->mem.scale == 2 ? 1 : 0;
	if (out->base == R_RIP)
		out->disp += out->len;
}

/* Memory operands of these exception classes must be aligned when they are whole vectors (SDM vol. 2, 2.4). */
static bool must_align(const ZydisDecodedInstruction *zi, unsigned size)
{
	if (size < 16)
		return false;
	switch (zi->mnemonic) {
	case ZYDIS_MNEMONIC_MOVUPS:
	case ZYDIS_MNEMONIC_MOVUPD:
	case ZYDIS_MNEMONIC_MOVDQU:
	case ZYDIS_MNEMONIC_LDDQU:
	case ZYDIS_MNEMONIC_PCMPESTRI:
	case ZYDIS_MNEMONIC_PCMPESTRM:
	case ZYDIS_MNEMONIC_PCMPISTRI:
	case ZYDIS_MNEMONIC_PCMPISTRM:
	case ZYDIS_MNEMONIC_MASKMOVDQU:
		return false;
	default:
		break;
	}
	switch (zi->meta.exception_class) {
	case ZYDIS_EXCEPTION_CLASS_SSE1:
	case ZYDIS_EXCEPTION_CLASS_SSE2:
	case ZYDIS_EXCEPTION_CLASS_SSE4:
	case ZYDIS_EXCEPTION_CLASS_AVX1:
		return true;
	default:
		return false;
	}
}

static bool is_string(ZydisMnemonic m)
{
	switch (m) {
	case ZYDIS_MNEMONIC_MOVSB:
	case ZYDIS_MNEMONIC_MOVSW:
	case ZYDIS_MNEMONIC_MOVSQ:
	case ZYDIS_MNEMONIC_CMPSB:
	case ZYDIS_MNEMONIC_CMPSW:
	case ZYDIS_MNEMONIC_CMPSQ:
	case ZYDIS_MNEMONIC_STOSB:
	case ZYDIS_MNEMONIC_STOSW:
	case ZYDIS_MNEMONIC_STOSD:
	case ZYDIS_MNEMONIC_STOSQ:
	case ZYDIS_MNEMONIC_LODSB:
	case ZYDIS_MNEMONIC_LODSW:
	case ZYDIS_MNEMONIC_LODSD:
	case ZYDIS_MNEMONIC_LODSQ:
	case ZYDIS_MNEMONIC_SCASB:
	case ZYDIS_MNEMONIC_SCASW:
	case ZYDIS_MNEMONIC_SCASD:
	case ZYDIS_MNEMONIC_SCASQ:
	case ZYDIS_MNEMONIC_INSB:
	case ZYDIS_MNEMONIC_INSW:
	case ZYDIS_MNEMONIC_INSD:
	case ZYDIS_MNEMONIC_OUTSB:
	case ZYDIS_MNEMONIC_OUTSW:
	case ZYDIS_MNEMONIC_OUTSD:
		return true;
	default:
		return false;
	}
}

/* Counts prefixes and notes what Zydis does not report the way processors act: the last F2/F3 before a string
 * instruction repeats it, whichever of the two it is. */
static void fill_prefixes(struct insn *out, enum decode_mode mode, const ZydisDecodedInstruction *zi)
{
	unsigned n = 0;
	u8 rep = 0;

	while (n < out->len) {
		u8 b = out->raw[n];

		if (is_legacy_prefix(b)) {
			if (b == 0x66)
				out->flags |= INSN_66;
			if (b == 0xf2 || b == 0xf3)
				rep = b;
		} else if (mode != DECODE_64 || (b & 0xf0) != 0x40) {
			break;
		}
		n++;
	}
	/* A REX counts only directly before the opcode; it is not a legacy prefix then. */
	if (n && mode == DECODE_64 && (out->raw[n - 1] & 0xf0) == 0x40) {
		if (out->raw[n - 1] & 8)
			out->flags |= INSN_REX_W;
		n--;
	}
	out->raw_prefixes = (u8)n;
	if (is_string(zi->mnemonic) ||
	    (zi->mnemonic == ZYDIS_MNEMONIC_MOVSD && zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT) ||
	    (zi->mnemonic == ZYDIS_MNEMONIC_CMPSD && zi->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT)) {
		if (rep)
			out->flags |= rep == 0xf3 ? INSN_REP : INSN_REPNE;
	}
}

static u8 map_number(ZydisOpcodeMap m)
{
	switch (m) {
	case ZYDIS_OPCODE_MAP_DEFAULT:
		return 0;
	case ZYDIS_OPCODE_MAP_0F:
		return 1;
	case ZYDIS_OPCODE_MAP_0F38:
		return 2;
	case ZYDIS_OPCODE_MAP_0F3A:
		return 3;
	default:
		return 0xff; /* XOP, 3DNow!: nothing we offer */
	}
}

static void fill(struct insn *out, enum decode_mode mode, const u8 *bytes, const ZydisDecodedInstruction *zi,
                 const ZydisDecodedOperand *zo)
{
	unsigned imms = 0;

	memset(out, 0, sizeof(*out));
	out->mnemonic = (u16)zi->mnemonic;
	out->isa = (u16)zi->meta.isa_set;
	out->len = zi->length;
	memcpy(out->raw, bytes, zi->length);
	out->osize = (u8)(zi->operand_width / 8);
	out->asize = (u8)(zi->address_width / 8);
	out->base = out->index = R_ZERO;
	out->seg = SEG_DS;
	out->map = map_number(zi->opcode_map);
	out->opcode = zi->opcode;
	if (zi->attributes & ZYDIS_ATTRIB_HAS_MODRM) {
		out->off_modrm = zi->raw.modrm.offset;
		out->modrm = bytes[zi->raw.modrm.offset];
	}
	if (zi->raw.imm[0].size)
		out->off_imm = zi->raw.imm[0].offset;
	if (zi->attributes & ZYDIS_ATTRIB_HAS_LOCK)
		out->flags |= INSN_LOCK;
	fill_prefixes(out, mode, zi);
	if (zi->encoding == ZYDIS_INSTRUCTION_ENCODING_VEX) {
		out->flags |= INSN_VEX;
		out->vl = zi->raw.vex.L ? 32 : 16;
		if (zi->raw.vex.W)
			out->flags |= INSN_REX_W;
	}
	out->cond = zi->meta.category == ZYDIS_CATEGORY_COND_BR;

	for (unsigned n = 0; n < zi->operand_count; n++) {
		const ZydisDecodedOperand *z = &zo[n];
		struct operand *o;

		if (z->type == ZYDIS_OPERAND_TYPE_MEMORY && z->mem.type != ZYDIS_MEMOP_TYPE_AGEN) {
			if (z->actions & ZYDIS_OPERAND_ACTION_MASK_READ)
				out->acc |= INSN_ACC_READ;
			if (z->actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)
				out->acc |= INSN_ACC_WRITE;
		}
		if (n >= zi->operand_count_visible) {
			/* Implicit addresses: only the overridable segment is of interest. ES without a prefix is that
			 * of a destination, which no prefix changes. */
			if (z->type == ZYDIS_OPERAND_TYPE_MEMORY && !(out->flags & INSN_MEM) &&
			    z->mem.base != ZYDIS_REGISTER_RSP && z->mem.base != ZYDIS_REGISTER_ESP &&
			    z->mem.base != ZYDIS_REGISTER_SP &&
			    (z->mem.segment != ZYDIS_REGISTER_ES || (zi->attributes & ZYDIS_ATTRIB_HAS_SEGMENT_ES)))
				out->seg = seg_reg(z->mem.segment);
			continue;
		}
		if (out->nops >= ARRAY_SIZE(out->op))
			break;
		o = &out->op[out->nops++];
		o->size = (u8)(z->size / 8 > 255 ? 255 : z->size / 8);
		switch (z->type) {
		case ZYDIS_OPERAND_TYPE_REGISTER:
			fill_reg(o, z->reg.value);
			break;
		case ZYDIS_OPERAND_TYPE_MEMORY:
			o->kind = OPK_MEM;
			if (z->mem.type == ZYDIS_MEMOP_TYPE_AGEN)
				o->size = 0;
			else if (must_align(zi, o->size))
				out->flags |= INSN_ALIGN;
			fill_mem(out, zi, z);
			break;
		case ZYDIS_OPERAND_TYPE_POINTER:
			o->kind = OPK_FAR;
			out->imm = z->ptr.offset;
			out->imm2 = z->ptr.segment;
			break;
		case ZYDIS_OPERAND_TYPE_IMMEDIATE:
			o->kind = z->imm.is_relative ? OPK_REL : OPK_IMM;
			if (imms++ == 0)
				out->imm = z->imm.value.u;
			else
				out->imm2 = (u16)z->imm.value.u;
			break;
		default:
			o->kind = OPK_OTHER;
			break;
		}
	}
}

/* F3 90 is PAUSE, but with REX.B processors exchange R8 as if F3 were not there; Zydis says PAUSE. */
static int decode_xchg_r8(const u8 *bytes, struct insn *out)
{
	u8 plain[15];
	u8 len = out->len;
	int rc;

	memset(plain, 0x90, sizeof(plain));
	for (unsigned n = 0; n < len; n++)
		plain[n] = bytes[n] == 0xf3 ? 0x3e : bytes[n]; /* a prefix without effect here */
	rc = decode(DECODE_64, plain, len, out);
	if (rc == 0)
		memcpy(out->raw, bytes, len);
	return rc;
}

int decode(enum decode_mode mode, const u8 *bytes, unsigned avail, struct insn *out)
{
	ZydisDecodedInstruction zi;
	ZydisDecodedOperand zo[ZYDIS_MAX_OPERAND_COUNT];
	ZyanStatus st;

	pthread_once(&decoders_once, decoders_init);
	st = ZydisDecoderDecodeFull(&decoders[mode], bytes, avail, &zi, zo);
	if (ZYAN_SUCCESS(st)) {
		fill(out, mode, bytes, &zi, zo);
		if (unlikely(zi.mnemonic == ZYDIS_MNEMONIC_PAUSE && (zi.attributes & ZYDIS_ATTRIB_HAS_REX) &&
		             zi.raw.rex.B))
			return decode_xchg_r8(bytes, out);
		return 0;
	}
	if (st == ZYDIS_STATUS_NO_MORE_DATA)
		return avail >= 15 ? -3 : -2;
	return st == ZYDIS_STATUS_INSTRUCTION_TOO_LONG ? -3 : -1;
}
