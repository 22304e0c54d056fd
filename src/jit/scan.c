/*
 * scan.c: which instructions make a block, and which arithmetic flags are alive before and behind each: a backward
 * pass, with a look at a few instructions behind each exit.
 */
#include "../base/bug.h"
#include "trans.h"

/* The bytes [off, off + len) of the page decide how this block is translated. False: no room to note it. */
static bool depend(struct trans *c, unsigned off, unsigned len)
{
	for (unsigned n = 0; n < c->n_range; n++) {
		struct range *r = &c->range[n];

		if (off >= r->off && off + len <= (unsigned)r->off + r->len)
			return true;
		if (n && off == (unsigned)r->off + r->len) {
			r->len = (u16)(r->len + len);
			return true;
		}
	}
	if (c->n_range == TB_RANGES)
		return false;
	c->range[c->n_range++] = (struct range){(u16)off, (u16)len};
	return true;
}

/* What was decoded is what the block is compared with later. False: it is other than at an earlier look. */
static bool keep_seen(struct trans *c, unsigned off, const u8 *bytes, unsigned len)
{
	for (unsigned n = 0; n < len; n++, off++) {
		u64 bit = BIT(off % 64);

		if (c->seen_at[off / 64] & bit && c->seen[off] != bytes[n])
			return false;
		c->seen_at[off / 64] |= bit;
		c->seen[off] = bytes[n];
	}
	return true;
}

static void classify_any(struct trans *c, const struct insn *i, struct nat *n)
{
	classify(i, c->key, n);
	if (n->cls == K_HANDLER)
		vec_classify(c, i, n);
	if (n->cls == K_HANDLER)
		x87_classify(c, i, n);
}

/* Flags that code at `rip` may read before it writes them. 0: it overwrites all of them, on every way, and *x says what
 * happens until then. */
static u8 look(struct trans *c, u64 rip, unsigned depth, struct carried *x)
{
	u8 need = 0, killed = 0;

	if (unlikely(c->j->chaos.exact_flags))
		return F_ALL;
	for (unsigned n = 0; n < 8; n++) {
		unsigned off = (unsigned)(rip & ~PAGE_MASK), room = (unsigned)PAGE_SIZE - off;
		struct insn i;
		struct nat nat;
		u8 bytes[16];

		if (((rip ^ c->tb->rip) & PAGE_MASK) || room < 16)
			break;
		memcpy(bytes, c->hva_page + off, 15);
		if (interp_decode(c->j->v, key_decode(c->key), bytes, 15, &i) < 0 || i.len > limit_left(c, rip))
			break;
		if (!keep_seen(c, off, bytes, i.len) || !depend(c, off, i.len))
			break;
		classify_any(c, &i, &nat);
		if (goes_astray(c, &i, &nat, wrap(c, rip + i.len)))
			break;
		need |= nat.fr & ~killed;
		killed |= nat.fw;
		/* Such an instruction fills a slot before its access may fail. */
		x->partial |= nat.fw == F_ALL && (i.flags & INSN_MEM) && nat.reg_w;
		if ((killed | need) == F_ALL)
			return need;
		x->partial |= nat.fmod;
		x->clobbered |= regs_written(&i, &nat);
		rip = wrap(c, rip + i.len);
		/* The recipe of an exit behind such an instruction would need flags from here. */
		if (x->partial && nat_is_relative(&nat))
			break;
		if (nat_is_conditional(&nat)) {
			if (depth == 0)
				break;
			need |= look(c, target_of(c, &i, rip), depth - 1, x) & ~killed;
		} else if (nat.cls == K_JMP || nat.cls == K_CALL) {
			rip = target_of(c, &i, rip);
		} else if ((nat.ends && nat.cls != K_AC) || nat_is_called(&nat)) {
			break;
		}
	}
	return need | (F_ALL & ~killed);
}

static bool is_sys(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_LDMXCSR:
	case ZYDIS_MNEMONIC_VLDMXCSR:
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64:
	case ZYDIS_MNEMONIC_XRSTOR:
	case ZYDIS_MNEMONIC_XRSTOR64:
	case ZYDIS_MNEMONIC_XRSTORS:
	case ZYDIS_MNEMONIC_XRSTORS64:
		return true; /* KEY_FP, KEY_X87 */
	case ZYDIS_MNEMONIC_FLDCW:
	case ZYDIS_MNEMONIC_FNINIT:
	case ZYDIS_MNEMONIC_FNSTENV:
	case ZYDIS_MNEMONIC_FLDENV:
	case ZYDIS_MNEMONIC_FNSAVE:
	case ZYDIS_MNEMONIC_FRSTOR:
		return true; /* KEY_X87 */
	}
	return op_sys_find(i) || op_flow_find(i);
}

/* Does the handler of it, which it goes to always or (FLDCW) by its slow way, change what the key depends on? */
static bool may_change_key(const struct insn *i, const struct nat *n)
{
	return (nat_is_called(n) || n->cls == K_X87) && is_sys(i);
}

static void to_handler(struct trans *c, unsigned k)
{
	memset(&c->nat[k], 0, sizeof(c->nat[k]));
	c->nat[k].fr = F_ALL;
	c->nat[k].ends = interp_ends_block(&c->insn[k]);
}

/* Who does instruction k, which is decoded: translated code, or its handler. */
static void settle(struct trans *c, unsigned k, u64 rip)
{
	const struct insn *i = &c->insn[k];
	struct nat *n = &c->nat[k];

	c->rip[k] = rip;
	if (interp_knows(i)) {
		classify_any(c, i, n);
		if (goes_astray(c, i, n, wrap(c, rip + i->len)) || (n->high && !c->j->bmi2))
			to_handler(c, k);
	} else {
		to_handler(c, k);
		n->ends = true;
	}
	c->sys[k] = may_change_key(i, n);
}

/* STI needs a successor in its block: the last one goes to its handler. */
static void settle_last(struct trans *c)
{
	unsigned k = c->n - 1;

	if (c->nat[k].cls == K_STI) {
		to_handler(c, k);
		c->sys[k] = true;
	}
}

/* The instruction at the block's start goes on in the next page: it runs after a look at that page. */
static void decode_border(struct trans *c)
{
	u64 rip = c->tb->rip;
	unsigned off = (unsigned)(rip & ~PAGE_MASK), first = (unsigned)PAGE_SIZE - off;
	struct vcpu *v = c->j->v;
	struct insn *i = &c->insn[0];
	u64 next = wrap(c, rip + first);
	const u8 *p;

	/* Such a block may also do nothing, should the next page have changed: the interpreter cannot follow. */
	if (c->j->lockstep)
		return;
	if (((c->key & KEY_64) && !is_canonical(next)) ||
	    !(p = tlb_lookup(&v->mmu.tlb[v->cpl == 3 ? TLB_USER : TLB_SUPER][TLB_EXEC], next, 1)))
		return;
	memcpy(c->bytes, c->hva_page + off, first);
	memcpy(c->bytes + first, p, 15 - first);
	if (interp_decode(v, key_decode(c->key), c->bytes, 15, i) < 0 || i->len <= first ||
	    i->len > limit_left(c, rip) || !interp_knows(i))
		return;
	settle(c, 0, rip);
	c->n = 1;
	settle_last(c);
	c->tb->beyond = (u8)(i->len - first);
	c->end_rip = wrap(c, rip + i->len);
	c->range[0] = (struct range){(u16)off, (u16)first};
	c->n_range = 1;
	keep_seen(c, off, c->bytes, first);
}

void decode_block(struct trans *c)
{
	u64 rip = c->tb->rip;
	unsigned off = (unsigned)(rip & ~PAGE_MASK), start = off;
	unsigned most = unlikely(c->j->chaos.on) ? 1 + chaos_rnd(c->j, TB_INSNS) : TB_INSNS;
	u64 left = limit_left(c, rip);
	unsigned end = left < PAGE_SIZE - off ? off + (unsigned)left : (unsigned)PAGE_SIZE;

	while (c->n < most && off < end) {
		unsigned room = end - off, k = c->n;
		struct insn *i = &c->insn[k];

		/* What is decoded is what the block is compared with later. */
		memcpy(c->bytes + (off - start), c->hva_page + off, room < 15 ? room : 15);
		if (interp_decode(c->j->v, key_decode(c->key), c->bytes + (off - start), room < 15 ? room : 15, i) < 0)
			break;
		settle(c, k, rip);
		if (unlikely(c->j->lockstep) && lockstep_alone(c->j, i, &c->nat[k])) {
			if (k)
				break;
			c->tb->unchecked = true;
			most = 1;
		}
		c->n++;
		off += i->len;
		rip = wrap(c, rip + i->len);
		if (c->nat[k].ends)
			break;
	}
	if (!c->n) {
		if (off + 15 > PAGE_SIZE)
			decode_border(c);
		return;
	}
	settle_last(c);
	c->end_rip = rip;
	c->range[0] = (struct range){(u16)start, (u16)(off - start)};
	c->n_range = 1;
	keep_seen(c, start, c->bytes, off - start);
}

/* Are the flags before instruction k asked for, when its access fails, or lost, when it is checked? */
static bool gives_flags(const struct trans *c, unsigned k)
{
	switch (c->nat[k].cls) {
	case K_RAW:
	case K_NOP:
	case K_MOVI:
	case K_ACC:
	case K_LEA:
	case K_XCHGA:
	case K_BSWAP:
	case K_INCDEC:
	case K_JCC:
	case K_JMP:
		return false;
	case K_MODRM:
		return c->insn[k].flags & INSN_MEM;
	case K_SSE:
	case K_VEX:
	case K_X87:
	case K_MMX:
		if (c->insn[k].flags & INSN_MEM)
			return true;
		/* A handler put the vector registers away. */
		while (k-- > 0)
			if (nat_is_called(&c->nat[k]))
				return true;
		return false;
	}
	return true;
}

/* Flags to be kept alive at exit `id`, which lies before instruction k and leads to code that reads `live`: none, when
 * a recipe does. */
static u8 live_at_exit(struct trans *c, unsigned id, unsigned k, u8 live)
{
	u32 recipe;

	if (live)
		return F_ALL;
	recipe = recipe_make(c, k, &c->carried[id]);
	if (recipe == RECIPE_NONE)
		return F_ALL;
	c->recipe_exit[id] = recipe;
	return 0;
}

/* What is alive where; and recipes for what is not. Where any flag must be kept, all are. */
void liveness(struct trans *c)
{
	unsigned last = c->n - 1;
	const struct nat *n = &c->nat[last];
	struct carried *x = c->carried;
	u8 live = F_ALL;

	if (n->cls == K_AC && n->ends)
		live = live_at_exit(c, last, last, look(c, c->end_rip, 1, &x[last]));
	else if (n->cls == K_JMP || n->cls == K_CALL)
		live = live_at_exit(c, last, last, look(c, target_of(c, &c->insn[last], c->end_rip), 1, &x[last]));
	else if (!n->ends)
		live = live_at_exit(c, EXIT_END, c->n, look(c, c->end_rip, 1, &x[EXIT_END]));
	for (unsigned k = c->n; k-- > 0;) {
		n = &c->nat[k];
		if (unlikely(c->j->chaos.spoil) && chaos_spoil(c->j, &c->insn[k], &c->nat[k]))
			live = 0;
		/* An interrupt may come behind it. */
		if (k && c->nat[k - 1].cls == K_STI && !n->ends)
			live = live_at_exit(c, EXIT_POLL(k), k + 1, live);
		c->live_out[k] = live;
		if (nat_is_conditional(n)) {
			u64 to = target_of(c, &c->insn[k], wrap(c, c->rip[k] + c->insn[k].len));

			c->look_taken[k] = live_at_exit(c, k, k, look(c, to, 1, &x[k]));
			live |= c->look_taken[k];
		}
		live = unlikely(c->j->chaos.exact_flags) ? F_ALL : (u8)((live & ~n->fw) | n->fr);
		if (gives_flags(c, k)) {
			u32 recipe = live ? RECIPE_NONE : recipe_make(c, k, NULL);

			if (recipe == RECIPE_NONE)
				live = F_ALL;
			else
				c->recipe_in[k] = recipe;
		}
		c->live_in[k] = live;
	}
}
