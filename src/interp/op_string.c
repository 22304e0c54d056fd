/*
 * op_string.c: MOVS CMPS SCAS LODS STOS INS OUTS with REP, REPE, REPNE.
 *
 * Invariants:
 *  - RCX, RSI, RDI (and flags of CMPS, SCAS) are exact for the elements done whenever a handler returns, so that a
 *    fault, an interrupt or an exit in the middle restarts at the element reached;
 *  - an unfinished repetition returns STEP_JUMP with RIP still at the instruction: the loop looks at events, posted
 *    MMIO and single-step between two calls;
 *  - the bulk path below does the same loads and stores in the same order as the element path as far as the guest can
 *    tell: overlapping MOVS goes element by element.
 */
#include "interp_impl.h"

#define FN(name) static int name(struct vcpu *v, const struct insn *i)

/* Most bytes between two looks at v->events. */
#define CHUNK 4096u

static inline u64 addr_reg(const struct vcpu *v, const struct insn *i, unsigned reg)
{
	return i->asize == 8 ? v->r[reg] : i->asize == 4 ? (u32)v->r[reg] : (u16)v->r[reg];
}

static inline void addr_add(struct vcpu *v, const struct insn *i, unsigned reg, u64 delta)
{
	put_reg(v, reg, i->asize, v->r[reg] + delta);
}

static inline bool repeats(const struct insn *i)
{
	return i->flags & (INSN_REP | INSN_REPNE);
}

/* Each element is a step of its own: somebody looks between them. RF alone, as after a page fault, does not ask for it.
 */
static inline bool by_element(const struct vcpu *v)
{
	return v->stepping && (v->dbg_step || (v->rflags & FLAGS_TF));
}

/* Stop here and let the loop look? After an element that the client must see, when stepping, or when events wait. */
static inline bool must_pause(const struct vcpu *v)
{
	return by_element(v) || v->mmu.watch_hit || v->mmu.n_writes || v->mmu.n_reads ||
	       atomic_load_explicit(&((struct vcpu *)v)->events, memory_order_relaxed);
}

/* Bytes from `ea` upwards that segmentation lets through without a look at each element; 0: check each. */
static u64 seg_room(const struct vcpu *v, unsigned seg, u64 ea, unsigned access)
{
	const struct seg *s = &v->seg[seg];

	if (v->mode == MODE_64 || (s->flat & access) == access)
		return PAGE_SIZE;
	if (s->unusable || (s->type & SEGT_CODE) || (s->type & SEGT_E) || ((access & MEM_WRITE) && !(s->type & SEGT_W)))
		return 0;
	return ea <= s->limit ? (u64)s->limit - ea + 1 : 0;
}

/*
 * Host pointer for up to `want` bytes at seg:ea going up, through the TLB only; *got says how many (whole elements,
 * within the page, the segment and the address size). NULL: do one element the slow way, which also fills the TLB.
 */
static u8 *bulk(struct vcpu *v, const struct insn *i, unsigned seg, u64 ea, unsigned size, unsigned access, u64 want,
                u64 *got)
{
	u64 n = want, room = seg_room(v, seg, ea, access);
	gva_t gva;
	u64 to_page_end;

	if (n > room)
		n = room;
	if (i->asize != 8) {
		u64 to_wrap = size_mask(i->asize) - ea + 1;

		if (n > to_wrap)
			n = to_wrap;
	}
	if (n < size)
		return NULL;
	if (v->mode == MODE_64) {
		gva = seg >= SEG_FS && seg <= SEG_GS ? ea + v->seg[seg].base : ea;
		if (!is_canonical(gva))
			return NULL;
	} else {
		gva = (u32)(ea + v->seg[seg].base);
	}
	to_page_end = PAGE_SIZE - (gva & ~PAGE_MASK);
	if (n > to_page_end)
		n = to_page_end;
	n -= n % size;
	if (!n)
		return NULL;
	*got = n;
	return tlb_lookup(&v->mmu.tlb[v->mmu.ctx][access == MEM_WRITE ? TLB_WRITE : TLB_READ], gva, 1);
}

/* Stores bytes / size elements of `val`. */
static void fill(u8 *d, u64 val, unsigned size, u64 bytes)
{
	switch (size) {
	case 1:
		memset(d, (u8)val, bytes);
		break;
	case 2:
		for (u64 k = 0; k < bytes; k += 2)
			st2(d + k, (u16)val);
		break;
	case 4:
		for (u64 k = 0; k < bytes; k += 4)
			st4(d + k, (u32)val);
		break;
	default:
		for (u64 k = 0; k < bytes; k += 8)
			st8(d + k, val);
		break;
	}
}

static void copy_elements(u8 *d, const u8 *s, unsigned size, u64 bytes)
{
	switch (size) {
	case 1:
		for (u64 k = 0; k < bytes; k++)
			*(volatile u8 *)(d + k) = s[k];
		break;
	case 2:
		for (u64 k = 0; k < bytes; k += 2)
			st2(d + k, ld2(s + k));
		break;
	case 4:
		for (u64 k = 0; k < bytes; k += 4)
			st4(d + k, ld4(s + k));
		break;
	default:
		for (u64 k = 0; k < bytes; k += 8)
			st8(d + k, ld8(s + k));
		break;
	}
}

static void copy(u8 *d, const u8 *s, unsigned size, u64 bytes)
{
	if (d > s && d < s + bytes)
		copy_elements(d, s, size, bytes); /* the source is overwritten on the way: a pattern repeats */
	else
		memmove(d, s, bytes);
}

/* The repetition goes on at the same RIP, after whatever the loop finds to do. */
static int pause_here(struct vcpu *v)
{
	v->mid_rep = true;
	v->mid_rep_rip = v->r[R_RIP];
	return STEP_JUMP;
}

/*
 * The frame of every handler: `left` elements to do (1 without REP), one or more a turn. A turn that is not the last
 * pauses when it must.
 */
#define BEGIN                                                                                                          \
	const unsigned size = i->osize;                                                                                \
	const bool rep = repeats(i), down = v->rflags & FLAGS_DF;                                                      \
	const u64 step = down ? -(u64)size : size;                                                                     \
	u64 left = rep ? addr_reg(v, i, R_RCX) : 1;                                                                    \
	u64 budget = CHUNK;                                                                                            \
	int rc;                                                                                                        \
                                                                                                                       \
	(void)budget;                                                                                                  \
	v->mid_rep = false;                                                                                            \
	if (!left)                                                                                                     \
		return STEP_OK;

/* `n` elements are done, registers but RCX updated. Leaves the handler's loop when all are, or to pause. */
#define TURN(n)                                                                                                        \
	if (!rep)                                                                                                      \
		return STEP_OK;                                                                                        \
	addr_add(v, i, R_RCX, -(u64)(n));                                                                              \
	left -= (n);                                                                                                   \
	if (!left)                                                                                                     \
		return STEP_OK;                                                                                        \
	if (must_pause(v))                                                                                             \
		return pause_here(v);

#define CAN_BULK (rep && !down && left > 1 && !by_element(v))

FN(movs)
{
	BEGIN
	for (;;) {
		u64 si = addr_reg(v, i, R_RSI), di = addr_reg(v, i, R_RDI), val, sn, dn;
		u8 *s, *d;

		if (CAN_BULK) {
			u64 want = left < CHUNK / size ? left * size : CHUNK;

			s = bulk(v, i, i->seg, si, size, MEM_READ, want, &sn);
			d = s ? bulk(v, i, SEG_ES, di, size, MEM_WRITE, sn, &dn) : NULL;
			if (d) {
				copy(d, s, size, dn);
				addr_add(v, i, R_RSI, dn);
				addr_add(v, i, R_RDI, dn);
				TURN(dn / size)
				continue;
			}
		}
		rc = read_sized(v, i->seg, si, size, &val);
		if (rc != STEP_OK)
			return rc;
		rc = write_sized(v, SEG_ES, di, size, val);
		if (rc != STEP_OK)
			return rc;
		addr_add(v, i, R_RSI, step);
		addr_add(v, i, R_RDI, step);
		TURN(1)
	}
}

FN(stos)
{
	BEGIN
	for (;;) {
		u64 di = addr_reg(v, i, R_RDI), dn;
		u8 *d;

		if (CAN_BULK) {
			d = bulk(v, i, SEG_ES, di, size, MEM_WRITE, left < CHUNK / size ? left * size : CHUNK, &dn);
			if (d) {
				fill(d, v->r[R_RAX], size, dn);
				addr_add(v, i, R_RDI, dn);
				TURN(dn / size)
				continue;
			}
		}
		rc = write_sized(v, SEG_ES, di, size, v->r[R_RAX]);
		if (rc != STEP_OK)
			return rc;
		addr_add(v, i, R_RDI, step);
		TURN(1)
	}
}

FN(lods)
{
	BEGIN
	for (;;) {
		u64 si = addr_reg(v, i, R_RSI), val;

		rc = read_sized(v, i->seg, si, size, &val);
		if (rc != STEP_OK)
			return rc;
		put_reg(v, R_RAX, size, val);
		addr_add(v, i, R_RSI, step);
		TURN(1)
	}
}

/* Flags of a - b. */
static void compare(struct vcpu *v, unsigned size, u64 a, u64 b)
{
	u32 ax;

	/* Shifted to the top, operands of every size give the flags of a 64-bit compare, AF and PF apart. */
	switch (size) {
	case 1:
		asm("cmpb %b[b], %b[a]" FL_SAVE : "=&a"(ax) : [a] "q"(a), [b] "q"(b) : "cc");
		break;
	case 2:
		asm("cmpw %w[b], %w[a]" FL_SAVE : "=&a"(ax) : [a] "r"(a), [b] "r"(b) : "cc");
		break;
	case 4:
		asm("cmpl %k[b], %k[a]" FL_SAVE : "=&a"(ax) : [a] "r"(a), [b] "r"(b) : "cc");
		break;
	default:
		asm("cmpq %[b], %[a]" FL_SAVE : "=&a"(ax) : [a] "r"(a), [b] "r"(b) : "cc");
		break;
	}
	v->rflags = fl_merge(v->rflags, ax);
}

/* REPE goes on while equal, REPNE while not. */
static inline bool goes_on(const struct vcpu *v, const struct insn *i)
{
	return !(v->rflags & FLAGS_ZF) == !(i->flags & INSN_REP);
}

static u64 element(const u8 *p, unsigned size)
{
	return size == 1 ? *p : size == 2 ? ld2(p) : size == 4 ? ld4(p) : ld8(p);
}

/* Elements up to and including the one that ends the repetition, at most n. */
static u64 scan(const u8 *a, const u8 *b, u64 val, unsigned size, u64 n, bool while_equal)
{
	for (u64 k = 0; k < n; k++) {
		u64 x = a ? element(a + k * size, size) : val;

		if ((x == element(b + k * size, size)) != while_equal)
			return k + 1;
	}
	return n;
}

FN(cmps)
{
	BEGIN
	for (;;) {
		u64 si = addr_reg(v, i, R_RSI), di = addr_reg(v, i, R_RDI), a, b, sn, dn, n = 1;
		u8 *s, *d;

		if (CAN_BULK) {
			u64 want = left < CHUNK / size ? left * size : CHUNK;

			s = bulk(v, i, i->seg, si, size, MEM_READ, want, &sn);
			d = s ? bulk(v, i, SEG_ES, di, size, MEM_READ, sn, &dn) : NULL;
			if (d) {
				n = scan(s, d, 0, size, dn / size, i->flags & INSN_REP);
				a = element(s + (n - 1) * size, size);
				b = element(d + (n - 1) * size, size);
				goto done;
			}
		}
		rc = read_sized(v, i->seg, si, size, &a);
		if (rc != STEP_OK)
			return rc;
		rc = read_sized(v, SEG_ES, di, size, &b);
		if (rc != STEP_OK)
			return rc;
	done:
		compare(v, size, a, b);
		addr_add(v, i, R_RSI, step * n);
		addr_add(v, i, R_RDI, step * n);
		if (rep && !goes_on(v, i)) {
			addr_add(v, i, R_RCX, -n);
			return STEP_OK;
		}
		TURN(n)
	}
}

FN(scas)
{
	u64 acc = v->r[R_RAX] & size_mask(i->osize);

	BEGIN
	for (;;) {
		u64 di = addr_reg(v, i, R_RDI), b, dn, n = 1;
		u8 *d;

		if (CAN_BULK) {
			d = bulk(v, i, SEG_ES, di, size, MEM_READ, left < CHUNK / size ? left * size : CHUNK, &dn);
			if (d) {
				n = scan(NULL, d, acc, size, dn / size, i->flags & INSN_REP);
				b = element(d + (n - 1) * size, size);
				goto done;
			}
		}
		rc = read_sized(v, SEG_ES, di, size, &b);
		if (rc != STEP_OK)
			return rc;
	done:
		compare(v, size, acc, b);
		addr_add(v, i, R_RDI, step * n);
		if (rep && !goes_on(v, i)) {
			addr_add(v, i, R_RCX, -n);
			return STEP_OK;
		}
		TURN(n)
	}
}

/* How many elements after a probed first one go the same way: in its page, in its segment. */
static u16 pio_chunk(struct vcpu *v, const struct insn *i, const struct pio *io)
{
	u64 in_page = io->gva & ~PAGE_MASK, n, si = addr_reg(v, i, io->in ? R_RDI : R_RSI), last;
	gva_t gva;

	n = (io->down ? in_page : PAGE_SIZE - io->size - in_page) / io->size + 1;
	if (in_page + io->size > PAGE_SIZE || io->count == 1)
		return 1;
	if (n > io->count)
		n = io->count;
	last = si + (io->down ? -(n - 1) : n - 1) * io->size;
	/* An index register that wraps on the way, or a segment that ends: one by one, each with its own checks. */
	if (i->asize < 8 && last >> (8 * i->asize))
		return 1;
	if (v_linear(v, io->in ? SEG_ES : i->seg, last, io->size, io->in ? MEM_WRITE : MEM_READ, &gva) != STEP_OK)
		return 1;
	return (u16)n;
}

/* INS and OUTS: checked here for the first element; who answers the port moves the data and updates the registers. */
FN(ins_outs)
{
	bool in = i->opcode == 0x6c || i->opcode == 0x6d;
	struct pio io = {
	        .port = (u16)v->r[R_RDX],
	        .size = i->osize > 4 ? 4 : i->osize,
	        .in = in,
	        .string = true,
	        .down = v->rflags & FLAGS_DF,
	        .rep = repeats(i),
	        .count = repeats(i) ? addr_reg(v, i, R_RCX) : 1,
	        .len = i->len,
	        .asize = i->asize,
	};
	unsigned access = in ? MEM_WRITE : MEM_READ;
	int rc;

	rc = io_permitted(v, io.port, io.size);
	if (rc != STEP_OK)
		return rc;
	if (!io.count)
		return STEP_OK;
	rc = v_linear(v, in ? SEG_ES : i->seg, addr_reg(v, i, in ? R_RDI : R_RSI), io.size, access, &io.gva);
	if (rc != STEP_OK)
		return rc;
	rc = mem_probe(&v->mmu, io.gva, io.size, access, v->mmu.ctx);
	if (rc != MEM_OK)
		return vmem_fail(v, rc);
	io.chunk = pio_chunk(v, i, &io);
	return v->ops->pio(v, &io);
}

insn_fn op_string_find(const struct insn *i)
{
	/* MOVSD and CMPSD are also SSE2 instructions: the opcode map tells. */
	if (i->map != 0)
		return NULL;
	switch (i->opcode) {
	case 0xa4:
	case 0xa5:
		return movs;
	case 0xa6:
	case 0xa7:
		return cmps;
	case 0xaa:
	case 0xab:
		return stos;
	case 0xac:
	case 0xad:
		return lods;
	case 0xae:
	case 0xaf:
		return scas;
	case 0x6c:
	case 0x6d:
	case 0x6e:
	case 0x6f:
		return ins_outs;
	default:
		return NULL;
	}
}
