/*
 * system.c: system instructions that need no C: STAC and CLAC, SGDT and SIDT, reads of control registers and of segment
 * bases. What is not plain goes to the handler; what only needs no vector registers to light.c.
 */
#include "trans.h"

/* Bytes that SGDT and SIDT store. */
static u8 table_size(u32 key)
{
	return key & KEY_64 ? 10 : 6;
}

void system_classify(const struct insn *i, u32 key, struct nat *n)
{
	bool mem = i->flags & INSN_MEM;

	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_STAC:
	case ZYDIS_MNEMONIC_CLAC:
		if (key & KEY_CPL0)
			n->cls = K_AC;
		break;
	case ZYDIS_MNEMONIC_SGDT:
	case ZYDIS_MNEMONIC_SIDT:
		if (!(key & KEY_CPL0) || !mem)
			return;
		n->cls = K_TABLE;
		n->rm_w = true;
		n->rm_size = table_size(key);
		break;
	case ZYDIS_MNEMONIC_MOV:
		/* With LOCK it may be CR8's name (AMD). */
		if (!(key & KEY_CPL0) || i->op[1].kind != OPK_CR || (i->flags & INSN_LOCK))
			return;
		if (i->op[1].reg == 1 || (i->op[1].reg > 4 && i->op[1].reg != 8))
			return;
		n->cls = K_FROM_CR;
		break;
	case ZYDIS_MNEMONIC_RDFSBASE:
	case ZYDIS_MNEMONIC_RDGSBASE:
		if (!(key & KEY_64))
			return;
		n->cls = K_RDBASE;
		n->size = i->op[0].size;
		break;
	default:
		if (!(key & KEY_64) || !light_of(i))
			return;
		n->cls = K_LIGHT;
		n->fr = F_ALL;
	}
}

/* The context becomes `ctx`, of this key: the words that translated code and C look at. */
void emit_ctx(struct trans *c, enum tlb_ctx ctx)
{
	struct emit *e = &c->e;

	encode(e, 0, 0, 0xc7, 0, rm_mem(H_R15, VOFF(mmu.ctx)));
	e4(e, ctx);
	static_assert(TLB_SUPER == 0 && TLB_SUPER_AC == 1, "one bit tells them apart");
	encode(e, 0, 0, 0x80, 6, rm_mem(H_R15, VOFF(jt.key) + 6)); /* xor byte, the key's bit */
	e1(e, 1u << KEY_CTX_SHIFT);
}

/* SGDT, SIDT at CPL 0, where UMIP refuses nothing. */
void emit_table(struct trans *c, unsigned k)
{
	s32 at = c->insn[k].mnemonic == ZYDIS_MNEMONIC_SGDT ? VOFF(gdt) : VOFF(idt);
	struct emit *e = &c->e;

	flags_give(c, k);
	emit_ea(c, k, table_size(c->key), TLB_WRITE);
	emit_check(c, k, table_size(c->key), TLB_WRITE);
	encode(e, 0, 1, 0xb7, H_R10, rm_mem(H_R15, at + (s32)offsetof(struct dtable, limit)));
	encode(e, ENC_66, 0, 0x89, H_R10, rm_guest());
	emit_load(e, H_R10, H_R15, at + (s32)offsetof(struct dtable, base));
	encode(e, wflag(c), 0, 0x89, H_R10, rm_sib(H_R8, H_R11, 0, 2));
}

void emit_from_cr(struct trans *c, unsigned k)
{
	static const s32 at[9] = {[0] = VOFF(cr0), [2] = VOFF(cr2), [3] = VOFF(cr3), [4] = VOFF(cr4), [8] = VOFF(cr8)};
	const struct insn *i = &c->insn[k];
	unsigned hr = reg_in(c, i->op[0].reg, H_R10, false);

	encode(&c->e, wflag(c), 0, 0x8b, hr, rm_mem(H_R15, at[i->op[1].reg]));
	reg_out(c, i->op[0].reg, H_R10);
}

void emit_rdbase(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	unsigned seg = i->mnemonic == ZYDIS_MNEMONIC_RDFSBASE ? SEG_FS : SEG_GS;
	unsigned hr = reg_in(c, i->op[0].reg, H_R10, false);
	struct emit *e = &c->e;

	flags_give(c, k);
	encode(e, 0, 0, 0xf7, 0, rm_mem(H_R15, VOFF(cr4))); /* test dword, CR4.FSGSBASE */
	e4(e, (u32)CR4_FSGSBASE);
	slow_at(c, k, emit_jcc(e, 4, NULL));
	encode(e, c->nat[k].size == 8 ? ENC_W : 0, 0, 0x8b, hr,
	       rm_mem(H_R15, VOFF(seg[0].base) + (s32)(seg * sizeof(struct seg))));
	reg_out(c, i->op[0].reg, H_R10);
}
