/*
 * class.c: how each instruction is translated, which flags it reads and writes, which operands.
 *
 * Everything that is not named here goes to the interpreter's handler (K_HANDLER), which is always right.
 */
#include "jit_impl.h"

u8 cc_flags(unsigned cc)
{
	static const u8 f[8] = {F_OF, F_CF, F_ZF, F_CF | F_ZF, F_SF, F_PF, F_SF | F_OF, F_SF | F_OF | F_ZF};

	return f[(cc >> 1) & 7];
}

static bool has_high_byte(const struct insn *i)
{
	for (unsigned n = 0; n < i->nops; n++)
		if (i->op[n].kind == OPK_GPR && i->op[n].size == 1 && (i->op[n].off & 7))
			return true;
	return false;
}

static void rmw(struct nat *n, u8 fr, u8 fw)
{
	n->cls = K_MODRM;
	n->fr = fr;
	n->fw = fw;
	n->fmod = true;
}

/* ADD OR ADC SBB AND SUB XOR CMP TEST in all their encodings. */
static void alu(const struct insn *i, struct nat *n, u8 fr, bool store)
{
	u8 o = i->opcode;

	if (o == 0x82) /* 32-bit code's second 80: not there in 64-bit mode */
		return;
	rmw(n, fr, F_ALL);
	n->size = n->rm_size = i->op[0].size;
	if (o == 0xa8 || o == 0xa9 || (o < 0x40 && (o & 7) >= 4)) {
		n->cls = K_ACC;
		return;
	}
	if (o >= 0x80 && o <= 0x83) {
		n->digit = n->rm_r = true;
		n->rm_w = store;
	} else if (o == 0xf6 || o == 0xf7) {
		n->digit = n->rm_r = true;
	} else {
		n->reg_r = n->rm_r = true;
		if (store) {
			if (o & 2)
				n->reg_w = true;
			else
				n->rm_w = true;
		}
	}
}

static void mov(const struct insn *i, struct nat *n)
{
	u8 o = i->opcode;

	if (i->map != 0)
		return;
	n->size = n->rm_size = i->op[0].size;
	if (o == 0x8c) {
		n->cls = K_SREG;
		n->size = i->osize;
		return;
	}
	if (o == 0x88 || o == 0x89) {
		n->cls = K_MODRM;
		n->reg_r = n->rm_w = true;
	} else if (o == 0x8a || o == 0x8b) {
		n->cls = K_MODRM;
		n->rm_r = n->reg_w = true;
	} else if (o == 0xc6 || o == 0xc7) {
		n->cls = K_MODRM;
		n->digit = n->rm_w = true;
	} else if (o >= 0xb0 && o <= 0xbf) {
		n->cls = K_MOVI;
	} else if (o >= 0xa0 && o <= 0xa3) {
		n->cls = K_MOFFS;
		n->rm_r = o < 0xa2;
		n->rm_w = o >= 0xa2;
	}
}

static void shift(const struct insn *i, struct nat *n, bool rotate, bool carry)
{
	u8 o = i->opcode, by_cl = o == 0xd2 || o == 0xd3;
	unsigned count;

	n->cls = K_MODRM;
	n->digit = n->rm_r = n->rm_w = true;
	n->size = n->rm_size = i->op[0].size;
	n->fmod = true;
	n->fr = carry ? F_CF : 0;
	if (by_cl)
		return; /* a count of zero keeps the flags: fw stays empty */
	count = o == 0xd0 || o == 0xd1 ? 1 : (unsigned)i->imm & (n->size == 8 ? 63 : 31);
	if (!count)
		n->fw = 0;
	else
		n->fw = !rotate ? F_ALL : op_shift_keeps_of(i) ? F_CF : F_CF | F_OF;
}

/* Destination ModRM.reg, source ModRM.rm. */
static void reg_rm(struct nat *n, unsigned size, unsigned rm_size, bool reads_reg)
{
	n->cls = K_MODRM;
	n->rm_r = n->reg_w = true;
	n->reg_r = reads_reg || size < 4;
	n->size = (u8)size;
	n->rm_size = (u8)rm_size;
}

static void bit_test(const struct insn *i, u32 key, struct nat *n, bool store)
{
	bool memreg = i->op[0].kind == OPK_MEM && i->op[1].kind != OPK_IMM;

	/* The bit's number moves the address. */
	if (memreg && (i->op[0].size < 4 || i->asize != (key & KEY_64 ? 8 : 4)))
		return;
	rmw(n, 0, F_CF);
	if (memreg)
		n->cls = K_BITMEM;
	n->size = n->rm_size = i->op[0].size;
	n->rm_r = true;
	n->rm_w = store;
	if (i->op[1].kind == OPK_IMM)
		n->digit = true;
	else
		n->reg_r = true;
}

static void stack_op(const struct insn *i, u32 key, struct nat *n, enum cls cls)
{
	bool sreg = (key & KEY_SEG) && i->osize == 2 && i->op[0].kind == OPK_SREG && cls == K_PUSH;

	/* 16-bit pushes and those of segment registers are rare, but in 16-bit code. */
	if (!key_word(key, i->osize))
		return;
	if (i->op[0].kind != OPK_GPR && i->op[0].kind != OPK_MEM && i->op[0].kind != OPK_IMM && !sreg)
		return;
	/* Part of the stack pointer alone. */
	if (cls == K_POP && i->op[0].kind == OPK_GPR && i->op[0].reg == R_RSP && (key & KEY_SEG) &&
	    i->osize != (key & KEY_SP16 ? 2 : 4))
		return;
	if (i->op[0].kind == OPK_MEM && cls == K_POP)
		return;
	n->cls = (u8)cls;
	n->rm_size = i->osize;
	n->size = i->osize;
	n->rm_r = i->op[0].kind == OPK_MEM;
}

/* MOVS, LODS, STOS, SCAS that are not repeated. */
static void string_once(const struct insn *i, struct nat *n)
{
	if (i->map != 0 || !((i->opcode & 0xfe) == 0xa4 || (i->opcode >= 0xaa && i->opcode <= 0xaf)))
		return;
	n->cls = K_STRING_ONCE;
	n->size = i->opcode & 1 ? i->osize : 1;
	if ((i->opcode & 0xfe) == 0xae) {
		n->fmod = true;
		n->fw = F_ALL;
	}
}

/* JMP and CALL: relative, or near through ModRM.rm, which has `digit` in ModRM.reg. */
static void jump(const struct insn *i, struct nat *n, enum cls relative, enum cls indirect, unsigned digit)
{
	if (i->op[0].kind == OPK_REL)
		n->cls = (u8)relative;
	else if (i->op[0].kind == OPK_GPR || (i->op[0].kind == OPK_MEM && (i->modrm >> 3 & 7) == digit))
		n->cls = (u8)indirect;
	n->rm_r = true;
	n->size = n->rm_size = i->osize;
}

/* Arithmetic. True: it is one of these, as for the next three; *n says how it is translated, and stays K_HANDLER where
 * it is not. */
static bool classify_arith(const struct insn *i, u32 key, struct nat *n)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_ADD:
	case ZYDIS_MNEMONIC_OR:
	case ZYDIS_MNEMONIC_AND:
	case ZYDIS_MNEMONIC_SUB:
	case ZYDIS_MNEMONIC_XOR:
		alu(i, n, 0, true);
		return true;
	case ZYDIS_MNEMONIC_ADC:
	case ZYDIS_MNEMONIC_SBB:
		alu(i, n, F_CF, true);
		return true;
	case ZYDIS_MNEMONIC_CMP:
	case ZYDIS_MNEMONIC_TEST:
		alu(i, n, 0, false);
		return true;
	case ZYDIS_MNEMONIC_INC:
	case ZYDIS_MNEMONIC_DEC:
		rmw(n, 0, F_ALL & ~F_CF);
		n->size = n->rm_size = i->op[0].size;
		if (i->opcode >= 0x40 && i->opcode <= 0x4f) {
			n->cls = K_INCDEC;
			return true;
		}
		n->digit = n->rm_r = n->rm_w = true;
		return true;
	case ZYDIS_MNEMONIC_NEG:
		rmw(n, 0, F_ALL);
		n->size = n->rm_size = i->op[0].size;
		n->digit = n->rm_r = n->rm_w = true;
		return true;
	case ZYDIS_MNEMONIC_NOT:
		n->cls = K_MODRM;
		n->size = n->rm_size = i->op[0].size;
		n->digit = n->rm_r = n->rm_w = true;
		return true;
	case ZYDIS_MNEMONIC_MUL:
		rmw(n, 0, F_CF | F_OF); /* AMD leaves the undefined ones alone */
		n->size = n->rm_size = i->op[0].size;
		n->digit = n->rm_r = true;
		return true;
	case ZYDIS_MNEMONIC_IMUL:
		rmw(n, 0, F_CF | F_OF);
		n->size = n->rm_size = i->op[0].size;
		if (i->map == 0 && (i->opcode == 0xf6 || i->opcode == 0xf7)) {
			n->digit = n->rm_r = true;
			return true;
		}
		n->rm_r = n->reg_w = true;
		n->reg_r = i->map == 1 || n->size < 4;
		return true;
	case ZYDIS_MNEMONIC_DIV:
	case ZYDIS_MNEMONIC_IDIV:
		if (i->op[0].size < 2)
			return true;
		n->cls = K_DIV;
		n->fmod = true; /* undefined flags come out as on the host, from the flags before */
		n->size = n->rm_size = i->op[0].size;
		return true;
	case ZYDIS_MNEMONIC_CRC32:
		reg_rm(n, i->op[0].size, i->op[1].size, true);
		return true;
	case ZYDIS_MNEMONIC_ADCX:
	case ZYDIS_MNEMONIC_ADOX: {
		const u8 flag = i->mnemonic == ZYDIS_MNEMONIC_ADCX ? F_CF : F_OF;

		reg_rm(n, i->op[0].size, i->op[0].size, true);
		n->fmod = true;
		n->fr = n->fw = flag;
		return true;
	}
	default:
		return false;
	}
}

/* Shifts, and single bits. */
static bool classify_bits(const struct insn *i, u32 key, struct nat *n)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_SHL:
	case ZYDIS_MNEMONIC_SHR:
	case ZYDIS_MNEMONIC_SAR:
		shift(i, n, false, false);
		return true;
	case ZYDIS_MNEMONIC_ROL:
	case ZYDIS_MNEMONIC_ROR:
		shift(i, n, true, false);
		return true;
	case ZYDIS_MNEMONIC_RCL:
	case ZYDIS_MNEMONIC_RCR:
		shift(i, n, true, true);
		return true;
	case ZYDIS_MNEMONIC_SHLD:
	case ZYDIS_MNEMONIC_SHRD:
		if (i->op[0].size == 2)
			return true;
		n->cls = K_MODRM;
		n->fmod = true;
		n->reg_r = n->rm_r = n->rm_w = true;
		n->size = n->rm_size = i->op[0].size;
		if ((i->opcode == 0xa4 || i->opcode == 0xac) && ((unsigned)i->imm & (n->size == 8 ? 63 : 31)))
			n->fw = F_ALL;
		return true;
	case ZYDIS_MNEMONIC_BSF:
	case ZYDIS_MNEMONIC_BSR:
		reg_rm(n, i->op[0].size, i->op[1].size, true);
		n->fmod = true;
		return true;
	case ZYDIS_MNEMONIC_TZCNT:
	case ZYDIS_MNEMONIC_LZCNT:
	case ZYDIS_MNEMONIC_POPCNT:
		if (i->op[0].size == 2)
			return true;
		reg_rm(n, i->op[0].size, i->op[1].size, false);
		n->fmod = true;
		n->fw = i->mnemonic == ZYDIS_MNEMONIC_POPCNT ? F_ALL : 0;
		return true;
	case ZYDIS_MNEMONIC_BT:
		bit_test(i, key, n, false);
		return true;
	case ZYDIS_MNEMONIC_BTS:
	case ZYDIS_MNEMONIC_BTR:
	case ZYDIS_MNEMONIC_BTC:
		bit_test(i, key, n, true);
		return true;
	default:
		return false;
	}
}

/* Copies, exchanges, and what does nothing that can be seen. */
static bool classify_data(const struct insn *i, u32 key, struct nat *n)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		mov(i, n);
		if (n->cls == K_HANDLER)
			system_classify(i, key, n);
		return true;
	case ZYDIS_MNEMONIC_MOVZX:
	case ZYDIS_MNEMONIC_MOVSX:
	case ZYDIS_MNEMONIC_MOVSXD:
		if (i->mnemonic == ZYDIS_MNEMONIC_MOVSXD && i->op[0].size != 8)
			return true;
		reg_rm(n, i->op[0].size, i->op[1].size, false);
		return true;
	case ZYDIS_MNEMONIC_MOVBE:
		n->cls = K_MODRM;
		n->size = n->rm_size = i->osize;
		n->rm_w = n->reg_r = i->op[0].kind == OPK_MEM;
		n->rm_r = n->reg_w = !n->rm_w;
		return true;
	case ZYDIS_MNEMONIC_XCHG:
		if (i->map == 0 && i->opcode >= 0x90 && i->opcode <= 0x97) {
			n->cls = K_XCHGA;
			n->size = i->op[0].size;
			return true;
		}
		n->cls = K_MODRM;
		n->reg_r = n->reg_w = n->rm_r = n->rm_w = true;
		n->size = n->rm_size = i->op[0].size;
		return true;
	case ZYDIS_MNEMONIC_XADD:
		rmw(n, 0, F_ALL);
		n->reg_r = n->reg_w = n->rm_r = n->rm_w = true;
		n->size = n->rm_size = i->op[0].size;
		return true;
	case ZYDIS_MNEMONIC_CMPXCHG:
		rmw(n, 0, F_ALL);
		n->reg_r = n->rm_r = n->rm_w = true;
		n->size = n->rm_size = i->op[0].size;
		return true;
	case ZYDIS_MNEMONIC_CMPXCHG8B:
		rmw(n, 0, F_ZF);
		n->digit = n->rm_r = n->rm_w = true;
		n->size = 4;
		n->rm_size = 8;
		return true;
	case ZYDIS_MNEMONIC_CMPXCHG16B:
		rmw(n, 0, F_ZF);
		n->digit = n->rm_r = n->rm_w = true;
		n->size = 8;
		n->rm_size = n->align = 16;
		return true;
	case ZYDIS_MNEMONIC_LEA:
		n->cls = K_LEA;
		n->size = i->op[0].size;
		return true;
	case ZYDIS_MNEMONIC_NOP:
	case ZYDIS_MNEMONIC_ENDBR64:
	case ZYDIS_MNEMONIC_ENDBR32:
		n->cls = K_NOP;
		return true;
	case ZYDIS_MNEMONIC_PREFETCHNTA:
	case ZYDIS_MNEMONIC_PREFETCHT0:
	case ZYDIS_MNEMONIC_PREFETCHT1:
	case ZYDIS_MNEMONIC_PREFETCHT2:
	case ZYDIS_MNEMONIC_PREFETCHW:
		n->cls = K_NOP;
		return true;
	case ZYDIS_MNEMONIC_LFENCE:
	case ZYDIS_MNEMONIC_MFENCE:
	case ZYDIS_MNEMONIC_SFENCE:
		n->cls = K_RAW;
		return true;
	case ZYDIS_MNEMONIC_CBW:
	case ZYDIS_MNEMONIC_CWDE:
	case ZYDIS_MNEMONIC_CDQE:
	case ZYDIS_MNEMONIC_CWD:
	case ZYDIS_MNEMONIC_CDQ:
	case ZYDIS_MNEMONIC_CQO:
		n->cls = K_RAW;
		return true;
	case ZYDIS_MNEMONIC_BSWAP:
		if (i->op[0].size == 2)
			return true;
		n->cls = K_BSWAP;
		n->size = i->op[0].size;
		return true;
	default:
		return false;
	}
}

/* Branches, the stack, single flags, and what belongs to the system. */
static bool classify_flow(const struct insn *i, u32 key, struct nat *n)
{
	bool branch_size = key_word(key, i->osize);

	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_PUSH:
		stack_op(i, key, n, K_PUSH);
		return true;
	case ZYDIS_MNEMONIC_POP:
		stack_op(i, key, n, K_POP);
		return true;
	case ZYDIS_MNEMONIC_LEAVE:
		if (branch_size)
			n->cls = K_LEAVE;
		return true;
	case ZYDIS_MNEMONIC_PUSHFQ:
		if (!(key & KEY_64) || i->osize != 8)
			return true;
		n->cls = K_PUSHF;
		n->fr = F_ALL;
		return true;
	case ZYDIS_MNEMONIC_JMP:
		if (branch_size)
			jump(i, n, K_JMP, K_JMPI, 4);
		return true;
	case ZYDIS_MNEMONIC_CALL:
		if (branch_size)
			jump(i, n, K_CALL, K_CALLI, 2);
		return true;
	case ZYDIS_MNEMONIC_LOOP:
	case ZYDIS_MNEMONIC_JCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
	case ZYDIS_MNEMONIC_JRCXZ:
		if (branch_size)
			n->cls = K_COUNT;
		return true;
	case ZYDIS_MNEMONIC_RET:
		if (branch_size && (i->opcode == 0xc3 || i->opcode == 0xc2))
			n->cls = K_RET;
		return true;
	case ZYDIS_MNEMONIC_RDTSC:
	case ZYDIS_MNEMONIC_RDTSCP:
		n->cls = K_TSC;
		return true;
	case ZYDIS_MNEMONIC_SWAPGS:
		if ((key & KEY_64) && (key & KEY_CPL0))
			n->cls = K_SWAPGS;
		return true;
	case ZYDIS_MNEMONIC_CLD:
	case ZYDIS_MNEMONIC_STD:
		n->cls = K_DF;
		return true;
	case ZYDIS_MNEMONIC_CLI:
		if (key & KEY_CPL0)
			n->cls = K_CLI;
		return true;
	case ZYDIS_MNEMONIC_STI:
		if (key & KEY_CPL0)
			n->cls = K_STI;
		return true;
	case ZYDIS_MNEMONIC_SAHF:
		rmw(n, 0, F_ALL & ~F_OF);
		n->cls = K_RAW;
		return true;
	case ZYDIS_MNEMONIC_LAHF:
		n->cls = K_RAW;
		n->fr = F_ALL & ~F_OF;
		return true;
	case ZYDIS_MNEMONIC_CMC:
		rmw(n, F_CF, F_CF);
		n->cls = K_RAW;
		return true;
	case ZYDIS_MNEMONIC_CLC:
	case ZYDIS_MNEMONIC_STC:
		rmw(n, 0, F_CF);
		n->cls = K_RAW;
		return true;
	default:
		return false;
	}
}

/* Jcc, SETcc, CMOVcc: by their opcodes. */
static void classify_cc(const struct insn *i, u32 key, struct nat *n)
{
	const u8 high = i->opcode & 0xf0;

	if (i->op[0].kind == OPK_REL && ((i->map == 0 && high == 0x70) || (i->map == 1 && high == 0x80))) {
		if (!key_word(key, i->osize))
			return;
		n->cls = K_JCC;
	} else if (i->map == 1 && high == 0x90) {
		n->cls = K_MODRM;
		n->digit = n->rm_w = true;
		n->size = n->rm_size = 1;
	} else if (i->map == 1 && high == 0x40 && i->op[0].kind == OPK_GPR) {
		reg_rm(n, i->op[0].size, i->op[1].size, true);
	} else {
		return;
	}
	n->fr = cc_flags(i->opcode & 15);
}

static void classify_int(const struct insn *i, u32 key, struct nat *n)
{
	if (classify_arith(i, key, n) || classify_bits(i, key, n) || classify_data(i, key, n) ||
	    classify_flow(i, key, n))
		return;
	string_once(i, n);
	system_classify(i, key, n);
	classify_cc(i, key, n);
}

/*
 * No REX may come near AH..BH. Register forms run as they are, unless a register has another home. With a memory
 * operand, which needs a REX, AL..BL stand in, the register being rotated meanwhile; it must not be in the address, nor
 * AL an operand of its own.
 */
static void high_byte(const struct insn *i, struct nat *n)
{
	u8 cls = n->cls;

	n->cls = cls == K_MOVI ? K_RAW : K_HANDLER;
	if (cls != K_MODRM)
		return;
	if (i->flags & INSN_MEM) {
		unsigned reg = i->modrm >> 3 & 3;

		if (i->base == reg || i->index == reg || i->mnemonic == ZYDIS_MNEMONIC_CMPXCHG)
			return;
		n->high = true;
		n->cls = K_MODRM;
		return;
	}
	for (unsigned k = 0; k < i->raw_prefixes; k++)
		if (i->raw[k] >= 0xf0)
			return;
	for (unsigned k = 0; k < i->nops; k++)
		if (i->op[k].kind == OPK_GPR && (i->op[k].reg >= 8 || i->op[k].reg == R_RSP))
			return;
	n->cls = K_RAW;
}

/* REP STOS and REP MOVS, the plain ones. */
static void classify_string(const struct insn *i, u32 key, struct nat *n)
{
	bool stos = i->map == 0 && (i->opcode == 0xaa || i->opcode == 0xab);
	bool movs = i->map == 0 && (i->opcode == 0xa4 || i->opcode == 0xa5);

	if (!(key & KEY_64) || i->asize != 8 || !(i->flags & INSN_REP) || (!stos && !movs))
		return;
	if (movs && i->seg >= SEG_FS && i->seg <= SEG_GS)
		return;
	n->cls = K_STRING;
	n->size = i->osize;
	n->rm_w = true;
	n->rm_r = movs;
}

/* BMI1 and BMI2 in VEX encoding, but for MULX with its two destinations. */
static void classify_bmi(const struct insn *i, u32 key, struct nat *n)
{
	if (!(key & KEY_64) || !cpuid_has_isa(i->isa))
		return;
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_ANDN:
	case ZYDIS_MNEMONIC_BEXTR:
	case ZYDIS_MNEMONIC_BLSI:
	case ZYDIS_MNEMONIC_BLSMSK:
	case ZYDIS_MNEMONIC_BLSR:
	case ZYDIS_MNEMONIC_BZHI:
		rmw(n, 0, F_ALL);
		break;
	case ZYDIS_MNEMONIC_PDEP:
	case ZYDIS_MNEMONIC_PEXT:
	case ZYDIS_MNEMONIC_RORX:
	case ZYDIS_MNEMONIC_SARX:
	case ZYDIS_MNEMONIC_SHLX:
	case ZYDIS_MNEMONIC_SHRX:
		break;
	default:
		return;
	}
	n->cls = K_BMI;
	n->size = n->rm_size = i->op[0].size;
}

void classify(const struct insn *i, u32 key, struct nat *n)
{
	memset(n, 0, sizeof(*n));
	n->reg_kind = n->rm_kind = OPK_GPR;
	if (!(i->flags & INSN_VEX) && !(i->flags & (INSN_REP | INSN_REPNE)) && cpuid_has_isa(i->isa))
		classify_int(i, key, n);
	else if (i->flags & INSN_VEX)
		classify_bmi(i, key, n);
	else
		classify_string(i, key, n);
	if (n->cls != K_HANDLER && has_high_byte(i))
		high_byte(i, n);
	if (n->cls == K_HANDLER) {
		memset(n, 0, sizeof(*n));
		n->fr = F_ALL;
	}
	n->ends =
	        interp_ends_block(i) || n->cls == K_JMP || n->cls == K_JMPI || (n->cls == K_AC && system_ends(i, key));
}
