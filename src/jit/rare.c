/*
 * rare.c: PUSHF, SWAPGS, RDTSC, bit strings in memory, REP STOS and REP MOVS: rare in programs, not in kernels; and
 * instructions over a page border.
 */
#include "trans.h"

/* What the CPU pushes: the arithmetic flags are the host's, the others in v->rflags; RF and VM read as 0. */
void emit_pushf(struct trans *c, unsigned k)
{
	struct emit *e = &c->e;

	flags_want(c, k);
	e1(e, 0x9c); /* pushfq; pop r10 */
	e1(e, 0x41);
	e1(e, 0x5a);
	emit_store(e, H_R15, VOFF(jt.tmp), H_R10);
	flags_give(c, k);
	emit_load(e, H_R10, H_R15, VOFF(jt.tmp));
	encode(e, 0, 0, 0x8b, H_R8, rm_mem(H_R15, VOFF(rflags)));
	encode(e, 0, 0, 0x81, 4, rm_reg(H_R10)); /* and r10d, arithmetic flags */
	e4(e, (u32)FLAGS_ARITH);
	encode(e, 0, 0, 0x81, 4, rm_reg(H_R8)); /* and r8d, the others */
	e4(e, ~(u32)(FLAGS_ARITH | FLAGS_VM | FLAGS_RF));
	encode(e, 0, 0, 0x09, H_R8, rm_reg(H_R10)); /* or r10d, r8d */
	emit_store(e, H_R15, VOFF(jt.tmp), H_R10);
	emit_push_check(c, k);
	emit_load(e, H_R10, H_R15, VOFF(jt.tmp));
	encode(e, ENC_W, 0, 0x89, H_R10, rm_sib(H_R8, H_R11, 0, 0));
	emit_mov(e, H_R14, H_R8);
}

void emit_swapgs(struct trans *c)
{
	s32 base = VOFF(seg[0].base) + SEG_GS * (s32)sizeof(struct seg);
	struct emit *e = &c->e;

	emit_load(e, H_R8, H_R15, base);
	emit_load(e, H_R10, H_R15, VOFF(kernel_gs_base));
	emit_store(e, H_R15, VOFF(kernel_gs_base), H_R8);
	emit_store(e, H_R15, base, H_R10);
}

/* As tsc_read(): the host's counter and an offset. CR4.TSD, and a guest that has no RDTSCP, are the handler's matter.
 */
void emit_tsc(struct trans *c, unsigned k)
{
	struct emit *e = &c->e;

	flags_give(c, k);
	if (c->insn[k].mnemonic == ZYDIS_MNEMONIC_RDTSCP) {
		encode(e, 0, 0, 0xf6, 0, rm_mem(H_R15, VOFF(denied.insn))); /* test byte, DENY_RDTSCP */
		e1(e, DENY_RDTSCP);
		slow_at(c, k, emit_jcc(e, 5, NULL));
	}
	if (!(c->key & KEY_CPL0)) {
		encode(e, 0, 0, 0xf7, 0, rm_mem(H_R15, VOFF(cr4))); /* test dword, CR4.TSD */
		e4(e, (u32)CR4_TSD);
		slow_at(c, k, emit_jcc(e, 5, NULL));
	}
	e1(e, 0x0f); /* rdtsc */
	e1(e, 0x31);
	encode(e, ENC_W, 0, 0xc1, 4, rm_reg(H_RDX)); /* shl rdx, 32 */
	e1(e, 32);
	encode(e, ENC_W, 0, 0x09, H_RDX, rm_reg(H_RAX)); /* or rax, rdx */
	encode(e, ENC_W, 0, 0x03, H_RAX, rm_mem(H_R15, VOFF(tsc_offset)));
	emit_mov(e, H_RDX, H_RAX);
	encode(e, ENC_W, 0, 0xc1, 5, rm_reg(H_RDX)); /* shr rdx, 32 */
	e1(e, 32);
	encode(e, 0, 0, 0x89, H_RAX, rm_reg(H_RAX));
	if (c->insn[k].mnemonic == ZYDIS_MNEMONIC_RDTSCP)
		encode(e, 0, 0, 0x8b, H_RCX, rm_mem(H_R15, VOFF(tsc_aux)));
}

/* BT, BTS, BTR, BTC with a bit string in memory: the operand is the word that holds the bit. */
void emit_bitmem(struct trans *c, unsigned k)
{
	const struct insn *i = &c->insn[k];
	const struct nat *n = &c->nat[k];
	unsigned w = n->size == 8 ? ENC_W : 0, reg;
	struct emit *e = &c->e;

	flags_give(c, k);
	emit_offset(c, k);
	reg = reg_in(c, i->op[1].reg, H_R10, true);
	if (n->size == 8)
		emit_mov(e, H_R11, reg);
	else
		encode(e, ENC_W, 0, 0x63, H_R11, rm_reg(reg)); /* movsxd */
	encode(e, w, 0, 0x89, reg, rm_reg(H_R10));
	encode(e, 0, 0, 0x83, 4, rm_reg(H_R10)); /* and r10d, 31 or 63 */
	e1(e, (u8)(n->size * 8 - 1));
	emit_store(e, H_R15, VOFF(jt.tmp), H_R10);
	encode(e, ENC_W, 0, 0xc1, 7, rm_reg(H_R11)); /* sar r11, 5 or 6 */
	e1(e, n->size == 8 ? 6 : 5);
	encode(e, wflag(c), 0, 0x8d, H_R8, rm_sib(H_R8, H_R11, n->size == 8 ? 3 : 2, 0));
	emit_segment(c, k, i->seg, n->size, n->rm_w ? TLB_WRITE : TLB_READ);
	emit_check(c, k, n->size, n->rm_w ? TLB_WRITE : TLB_READ);
	flags_want(c, k);
	emit_load(e, H_R10, H_R15, VOFF(jt.tmp));
	encode(e, w | (i->flags & INSN_LOCK ? ENC_LOCK : 0), 1, i->opcode, H_R10, rm_sib(H_R8, H_R11, 0, 0));
}

/* STI: what was put aside is an event again. */
void emit_release(struct emit *e)
{
	u8 *none;

	encode(e, 0, 0, 0x8b, H_R10, rm_mem(H_R15, VOFF(held)));
	encode(e, 0, 0, 0x85, H_R10, rm_reg(H_R10));
	none = emit_jcc(e, 4, NULL);
	encode(e, ENC_LOCK, 0, 0x09, H_R10, rm_mem(H_R15, VOFF(events)));
	encode(e, 0, 0, 0xc7, 0, rm_mem(H_R15, VOFF(held)));
	e4(e, 0);
	patch_rel(none, e->delta, emit_rx(e));
}

/* REP STOS, REP MOVS: by the host's, when all of it lies in one page (each). Forwards only. */
void emit_string(struct trans *c, unsigned k)
{
	unsigned size = c->nat[k].size, scale = size == 8 ? 3 : size == 4 ? 2 : size == 2 ? 1 : 0;
	bool movs = c->nat[k].rm_r;
	struct emit *e = &c->e;
	u8 *none;

	flags_give(c, k);
	encode(e, ENC_W, 0, 0x85, H_RCX, rm_reg(H_RCX));
	none = emit_jcc(e, 4, NULL);
	encode(e, 0, 0, 0xf7, 0, rm_mem(H_R15, VOFF(rflags))); /* test dword, DF */
	e4(e, (u32)FLAGS_DF);
	slow_at(c, k, emit_jcc(e, 5, NULL));
	encode(e, ENC_W, 0, 0x81, 7, rm_reg(H_RCX)); /* cmp rcx, elements of a page */
	e4(e, (u32)PAGE_SIZE / size);
	slow_at(c, k, emit_jcc(e, 7, NULL));
	if (movs) {
		emit_mov(e, H_R8, H_RSI);
		emit_check_run(c, k, scale, TLB_READ);
		emit_store(e, H_R15, VOFF(jt.tmp), H_R11);
	}
	emit_mov(e, H_R8, H_RDI);
	emit_check_run(c, k, scale, TLB_WRITE);
	if (movs) {
		emit_load(e, H_R10, H_R15, VOFF(jt.tmp));
		encode(e, ENC_W, 0, 0x01, H_R10, rm_reg(H_RSI));
	}
	encode(e, ENC_W, 0, 0x01, H_R11, rm_reg(H_RDI)); /* add rdi, r11 */
	e1(e, 0xf3);
	if (size == 2)
		e1(e, 0x66);
	if (size == 8)
		e1(e, 0x48);
	e1(e, c->insn[k].opcode);
	encode(e, ENC_W, 0, 0x29, H_R11, rm_reg(H_RDI));
	if (movs)
		encode(e, ENC_W, 0, 0x29, H_R10, rm_reg(H_RSI));
	patch_rel(none, e->delta, emit_rx(e));
}

/*
 * The block's only instruction goes on in the next page, which is looked up and compared each time; where that fails,
 * the handler's way does it all (check_border() in helper.c).
 */
void emit_border_check(struct trans *c)
{
	const struct tb *tb = c->tb;
	u64 next = wrap(c, (tb->rip | ~PAGE_MASK) + 1);
	const u8 *want = c->bytes + c->range[0].len;
	s32 at = VOFF(mmu.tlb[0][0].e[0]) +
	         (s32)(((c->key & KEY_USER ? TLB_USER : TLB_SUPER) * TLB_KINDS + TLB_EXEC) * sizeof(struct tlb_set)) +
	         (s32)((next >> PAGE_SHIFT & (TLB_SIZE - 1)) * sizeof(struct tlb_entry));
	struct emit *e = &c->e;

	emit_const(e, H_R8, next);
	encode(e, ENC_W, 0, 0x39, H_R8, rm_mem(H_R15, at));
	slow_at(c, 0, emit_jcc(e, 5, NULL));
	encode(e, ENC_W, 0, 0x03, H_R8, rm_mem(H_R15, at + 8));
	for (unsigned done = 0, n; done < tb->beyond; done += n) {
		n = tb->beyond - done >= 4 ? 4 : tb->beyond - done >= 2 ? 2 : 1;
		encode(e, n == 2 ? ENC_66 : 0, 0, n == 1 ? 0x80 : 0x81, 7, rm_mem(H_R8, (s32)done));
		for (unsigned b = 0; b < n; b++)
			e1(e, want[done + b]);
		slow_at(c, 0, emit_jcc(e, 5, NULL));
	}
}
