/*
 * interp.c: the interpreter's loop and its cache of decoded instructions.
 *
 * Invariants:
 *  - a block (struct block) is a run of decoded instructions that lay inside one page when they were decoded. The bytes
 *    of every run of instructions up to a conditional branch are compared with the guest's each time the run is
 * entered, and what is left of the run after every instruction in it that may store: whoever writes code (this vCPU,
 * another, a client thread, the host's kernel), nobody runs stale instructions, and no page needs to be watched. A
 * guest's own store is seen by the very next instruction;
 *  - blocks are found by host address and code_key, through the exec TLB: translation and permission are the TLB's.
 *    The pointer to a block lives until the next flush; a flush happens between blocks only;
 *  - an instruction over a page border is a block of its own, whose second page is translated at every entry;
 *  - events are looked at between blocks. A block has at most BLOCK_INSNS instructions; string instructions look for
 *    themselves;
 *  - v->r[R_RIP] is the current instruction's address whenever a handler runs.
 */
#include <emmintrin.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "../base/ahead.h"
#include "../base/bug.h"
#include "interp_impl.h"

/* insn.acc, beside INSN_ACC_x: after this conditional branch the next run of instructions begins. */
#define ACC_BRANCH 4

/* What a part of the loop wants next. */
enum { GO_ON = INTERP_GO_ON, LEAVE = INTERP_LEAVE, RUN, RUN_ONE };

int interp_create(struct vcpu *v)
{
	struct interp *it = pages_alloc(sizeof(*it));

	if (!it)
		return -ENOMEM;
	it->vm_version = v->mmu.vm ? v->mmu.vm->version : 0;
	v->interp = it;
	return 0;
}

void interp_destroy(struct vcpu *v)
{
	if (!v->interp)
		return;
	if (v->interp->arena)
		munmap(v->interp->arena, ARENA_SIZE);
	pages_free(v->interp, sizeof(*v->interp));
	v->interp = NULL;
}

void interp_flush(struct vcpu *v)
{
	struct interp *it = v->interp;

	/* Not when nothing was ever in it: the pages are not even there. */
	if (it->used)
		memset(it->hash, 0, sizeof(it->hash));
	it->used = 0;
	it->n_flushes++;
	if (v->mmu.vm)
		it->vm_version = v->mmu.vm->version;
}

void interp_abandon(struct vcpu *v)
{
	v->interp->redeliver = false;
	mmio_done(&v->mmu);
}

/* Memory slots changed: translations and host addresses may be void. */
static void check_version(struct vcpu *v)
{
	if (!v->goes_on)
		v->interp->epoch++;
	if (v->mmu.vm->version == v->interp->vm_version)
		return;
	v->interp->epoch++;
	tlb_flush(&v->mmu);
	interp_flush(v);
}

/* We watch no pages ourselves; should another engine's watch fire, leaving the block is always right. */
void interp_code_written(struct mmu *m, gpa_t gpa, unsigned len)
{
	struct vcpu *v = container_of(m, struct vcpu, mmu);

	if (v->interp)
		v->interp->left = true;
}

/* ---- decoding into blocks --------------------------------------------------------------------------------------- */

static int op_undefined(struct vcpu *v, const struct insn *i)
{
	return excp_raise(v, EXC_UD);
}

static int op_too_long(struct vcpu *v, const struct insn *i)
{
	return excp_raise_err(v, EXC_GP, 0);
}

/* Chooses the handler, and how much the loop must look around after it. */
void interp_bind(struct insn *i)
{
	bool simple = true;

	i->fn = NULL;
	/* The hypercalls are all that there is of nested virtualization. */
	if (cpuid_has_isa(i->isa) || i->mnemonic == ZYDIS_MNEMONIC_VMCALL || i->mnemonic == ZYDIS_MNEMONIC_VMMCALL) {
		i->fn = op_int_find(i);
		if (!i->fn)
			i->fn = op_x87_find(i);
		if (!i->fn)
			i->fn = op_simd_find(i);
		if (!i->fn) {
			simple = i->cond;
			i->fn = op_string_find(i);
		}
		if (!i->fn)
			i->fn = op_flow_find(i);
		if (!i->fn)
			i->fn = op_sys_find(i);
	}
	if (!i->fn)
		i->fn = op_undefined;
	/* System instructions read and write tables that Zydis does not list. */
	if (!simple)
		i->acc = INSN_ACC_READ | INSN_ACC_WRITE;
}

bool interp_ends_block(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_JMP:
	case ZYDIS_MNEMONIC_CALL:
	case ZYDIS_MNEMONIC_RET:
	case ZYDIS_MNEMONIC_IRET:
	case ZYDIS_MNEMONIC_IRETD:
	case ZYDIS_MNEMONIC_IRETQ:
	case ZYDIS_MNEMONIC_SYSCALL:
	case ZYDIS_MNEMONIC_SYSRET:
	case ZYDIS_MNEMONIC_SYSENTER:
	case ZYDIS_MNEMONIC_SYSEXIT:
	case ZYDIS_MNEMONIC_INT:
	case ZYDIS_MNEMONIC_INT1:
	case ZYDIS_MNEMONIC_INT3:
	case ZYDIS_MNEMONIC_HLT:
	case ZYDIS_MNEMONIC_UD0:
	case ZYDIS_MNEMONIC_UD1:
	case ZYDIS_MNEMONIC_UD2:
		return true;
	default:
		return false;
	}
}

static inline unsigned hash_of(const u8 *hva, u32 key)
{
	u64 x = (u64)(uintptr_t)hva;

	return (unsigned)((x ^ (x >> HASH_BITS) ^ key) & ((1u << HASH_BITS) - 1));
}

static inline __m128i load16(const u8 *p)
{
	return _mm_loadu_si128((const __m128i *)(const void *)p);
}

static inline bool same16(const u8 *a, const u8 *b)
{
	return _mm_movemask_epi8(_mm_cmpeq_epi8(load16(a), load16(b))) == 0xffff;
}

/* memcmp() inline, for a few dozen bytes. Reads nothing beyond them. */
static inline bool same_bytes(const u8 *a, const u8 *b, unsigned n)
{
	if (n >= 16) {
		while (n > 16) {
			if (!same16(a, b))
				return false;
			n -= 16;
			a += 16;
			b += 16;
		}
		return same16(a + n - 16, b + n - 16);
	}
	if (n >= 8)
		return !((ld8(a) ^ ld8(b)) | (ld8(a + n - 8) ^ ld8(b + n - 8)));
	if (n >= 4)
		return !((ld4(a) ^ ld4(b)) | (ld4(a + n - 4) ^ ld4(b + n - 4)));
	for (unsigned k = 0; k < n; k++)
		if (a[k] != b[k])
			return false;
	return true;
}

/* In a block's key: it has one instruction. Who goes step by step would else decode a block at each. */
#define KEY_ONE BIT(31)

#define ROUND8(x) (((x) + 7) & ~(size_t)7)

/* Space for the largest block; NULL when there is no memory. Flushes when full. */
static struct block *arena_reserve(struct vcpu *v)
{
	struct interp *it = v->interp;
	size_t most = ROUND8(sizeof(struct block) + BLOCK_BYTES + 8) + BLOCK_INSNS * sizeof(struct insn);

	if (!it->arena) {
		u8 *p = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		             0);

		if (p == MAP_FAILED)
			return NULL;
		it->arena = p;
	}
	if (it->used + most > ARENA_SIZE)
		interp_flush(v);
	return (struct block *)(void *)(it->arena + it->used);
}

/* Makes the block known and gives back the space it does not need. */
static struct block *arena_commit(struct vcpu *v, struct block *b, const u8 *hva, u32 key, const struct insn *tmp,
                                  unsigned n, const u8 *bytes, unsigned len)
{
	struct interp *it = v->interp;
	struct block **slot = &it->hash[hash_of(hva, key)], **p;
	size_t head = ROUND8(sizeof(*b) + len);

	b->hva = hva;
	b->key = key;
	b->len = (u16)len;
	b->n = (u16)n;
	b->check = (u16)len;
	b->cross = false;
	b->first_len = (u16)len;
	memset(b->succ, 0, sizeof(b->succ));
	b->insn = (struct insn *)(void *)((u8 *)b + head);
	memcpy(b->bytes, bytes, len);
	memcpy(b->insn, tmp, n * sizeof(*tmp));
	it->used += head + n * sizeof(*tmp);
	it->n_builds++;
	/* A block of the same place whose bytes changed is of no more use. */
	for (p = slot; *p; p = &(*p)->next)
		if ((*p)->hva == hva && (*p)->key == b->key) {
			*p = (*p)->next;
			break;
		}
	b->next = *slot;
	*slot = b;
	return b;
}

static enum tlb_ctx fetch_ctx(const struct vcpu *v)
{
	return v->cpl == 3 ? TLB_USER : TLB_SUPER;
}

/* Host pointer to code at a linear address. */
static int fetch(struct vcpu *v, gva_t lin, const u8 **p)
{
	enum tlb_ctx ctx = fetch_ctx(v);
	gpa_t gpa;
	int rc;

	*p = tlb_lookup(&v->mmu.tlb[ctx][TLB_EXEC], lin, 1);
	if (likely(*p))
		return STEP_OK;
	rc = mem_fetch(&v->mmu, lin, ctx, p, &gpa);
	if (likely(rc == MEM_OK))
		return STEP_OK;
	if (rc == MEM_BUG)
		return cpu_internal_error(v, "instruction fetch from MMIO");
	return vmem_fail(v, rc);
}

/*
 * Decodes at `lin` (host pointer p). STEP_OK and *out, or a fault of the fetch: second page, or CS limit. `limit_left`:
 * bytes up to the code segment's end.
 */
static int build(struct vcpu *v, gva_t lin, const u8 *p, u32 key, u64 limit_left, struct block **out)
{
	const unsigned most = key & KEY_ONE ? 1 : BLOCK_INSNS;
	struct insn tmp[BLOCK_INSNS];
	u8 bytes[BLOCK_BYTES + 16];
	unsigned page_left = (unsigned)(PAGE_SIZE - (lin & ~PAGE_MASK)), len = 0, n = 0;
	unsigned room = page_left < limit_left ? page_left : (unsigned)limit_left;
	struct block *b = arena_reserve(v);
	int rc, d = 0;

	if (!b)
		return cpu_internal_error(v, "no memory for decoded code");
	while (n < most && len < room) {
		unsigned avail = room - len < 15 ? room - len : 15;

		/* One copy decides: what is decoded is what later entries compare with. */
		memcpy(bytes + len, p + len, avail);
		d = interp_decode(v, (enum decode_mode)v->dmode, bytes + len, avail, &tmp[n]);
		if (d < 0)
			break;
		if (len + tmp[n].len > BLOCK_BYTES)
			break;
		len += tmp[n].len;
		tmp[n].boff = (u8)len;
		if (interp_ends_block(&tmp[n++]))
			break;
	}
	if (n) {
		unsigned run_end = len;

		for (unsigned k = n; k-- > 0;) {
			tmp[k].bend = (u8)run_end;
			if (!tmp[k].cond)
				continue;
			tmp[k].acc |= ACC_BRANCH;
			run_end = tmp[k].boff;
		}
		*out = arena_commit(v, b, p, key, tmp, n, bytes, len);
		(*out)->check = (u16)run_end;
		return STEP_OK;
	}

	/* The first one is special: over the page's or the segment's end, or not an instruction. */
	len = room < 15 ? room : 15;
	memset(tmp, 0, sizeof(tmp[0]));
	if (d == -2) {
		unsigned first = len, more = 15 - first;
		const u8 *p2;
		gva_t next = lin + first;

		if (limit_left <= page_left)
			return excp_raise_err(v, EXC_GP, 0);
		if (v->mode != MODE_64)
			next = (u32)next;
		rc = fetch(v, next, &p2);
		if (rc != STEP_OK)
			return rc;
		if (more > limit_left - first)
			more = (unsigned)(limit_left - first);
		memcpy(bytes + first, p2, more);
		len = first + more;
		d = interp_decode(v, (enum decode_mode)v->dmode, bytes, len, &tmp[0]);
		if (d == -2)
			return excp_raise_err(v, EXC_GP, 0);
		if (d == 0)
			len = tmp[0].len;
		tmp[0].boff = tmp[0].bend = (u8)len;
		if (d < 0)
			tmp[0].fn = d == -3 ? op_too_long : op_undefined;
		b = arena_commit(v, b, p, key, tmp, 1, bytes, len);
		b->cross = len > first;
		b->first_len = (u16)(b->cross ? first : len);
		*out = b;
		return STEP_OK;
	}
	tmp[0].fn = d == -3 ? op_too_long : op_undefined;
	tmp[0].boff = tmp[0].bend = (u8)len;
	*out = arena_commit(v, b, p, key, tmp, 1, bytes, len);
	return STEP_OK;
}

/* The block of `p` under `key`, as it was decoded; NULL when there is none. */
static inline struct block *lookup(const struct vcpu *v, const u8 *p, u32 key)
{
	struct block *b;

	for (b = v->interp->hash[hash_of(p, key)]; b; b = b->next)
		if (b->hva == p && b->key == key)
			break;
	return b;
}

/* Notes that `b`, at `rip`, came after `prev`. */
static inline void follow(struct block *prev, u64 rip, struct block *b)
{
	prev->succ[1] = prev->succ[0];
	prev->succ[0].rip = rip;
	prev->succ[0].b = b;
}

/*
 * find() for what its fast path does not know: segment ends, missing or changed blocks, page-crossing instructions.
 * `one`: KEY_ONE, or 0.
 */
static __attribute__((noinline)) int find_slow(struct vcpu *v, u32 one, struct block *prev, struct block **out,
                                               const u8 **hva, const struct insn **end)
{
	const u32 key = v->code_key | one;
	struct interp *it = v->interp;
	u64 rip = v->r[R_RIP], limit_left = ~0ull, flushes = it->n_flushes;
	const u8 *p;
	struct block *b;
	gva_t lin;
	int rc;

	if (v->mode == MODE_64) {
		lin = rip;
		if (!is_canonical(lin))
			return excp_raise_err(v, EXC_GP, 0);
	} else {
		rip = v->r[R_RIP] = (u32)rip;
		if (rip > v->seg[SEG_CS].limit)
			return excp_raise_err(v, EXC_GP, 0);
		limit_left = v->seg[SEG_CS].limit - rip + 1;
		lin = (u32)(v->seg[SEG_CS].base + rip);
	}
	rc = fetch(v, lin, &p);
	if (rc != STEP_OK)
		return rc;
	b = lookup(v, p, key);
	if (!b || !same_bytes(b->bytes, p, b->cross ? b->first_len : b->check)) {
	again:
		rc = build(v, lin, p, key, limit_left, &b);
		if (rc != STEP_OK)
			return rc;
	}
	if (b->cross) {
		gva_t next = lin + b->first_len;
		const u8 *p2;

		if (v->mode != MODE_64)
			next = (u32)next;
		rc = fetch(v, next, &p2);
		if (rc != STEP_OK)
			return rc;
		if (!same_bytes(b->bytes + b->first_len, p2, b->len - b->first_len))
			goto again;
	}
	/* A flush took `prev` with it. */
	if (prev && it->n_flushes == flushes)
		follow(prev, rip, b);
	*out = b;
	*hva = p;
	*end = b->insn + b->n;
	if (b->len > limit_left) {
		const struct insn *e = b->insn;

		while (e < *end && e->boff <= limit_left)
			e++;
		/* Not an instruction, decoded when there were more bytes: these may be enough to tell (#UD). */
		if (e == b->insn)
			goto again;
		*end = e;
	}
	return STEP_OK;
}

/*
 * The block at RIP, valid now. *end: where to stop (the code segment may end inside). `prev`: the block that was left
 * for it, or NULL. STEP_EXCP or STEP_EXIT from the fetch.
 */
static inline int find(struct vcpu *v, struct block *prev, struct block **out, const u8 **hva, const struct insn **end)
{
	u64 rip = v->r[R_RIP], room = ~0ull;
	const u8 *p;
	struct block *b;
	gva_t lin = rip;

	if (unlikely(v->mode != MODE_64)) {
		rip = (u32)rip;
		if (rip > v->seg[SEG_CS].limit)
			goto slow;
		room = v->seg[SEG_CS].limit - rip + 1;
		lin = (u32)(v->seg[SEG_CS].base + rip);
	}
	/* An address that is not canonical has no TLB entry. */
	p = tlb_lookup(&v->mmu.tlb[fetch_ctx(v)][TLB_EXEC], lin, 1);
	if (unlikely(!p))
		goto slow;
	if (likely(prev && prev->succ[0].rip == rip)) {
		b = prev->succ[0].b;
	} else if (prev && prev->succ[1].rip == rip) {
		b = prev->succ[1].b;
	} else {
		b = lookup(v, p, v->code_key);
		if (b && prev)
			follow(prev, rip, b);
	}
	if (unlikely(!b || b->hva != p || b->key != v->code_key || b->cross || b->len > room ||
	             !same_bytes(b->bytes, p, b->check)))
		goto slow;
	v->r[R_RIP] = rip;
	*out = b;
	*hva = p;
	*end = b->insn + b->n;
	return STEP_OK;
slow:
	return find_slow(v, 0, prev, out, hva, end);
}

/* ---- between instructions --------------------------------------------------------------------------------------- */

/* The next posted MMIO write becomes the exit. */
static bool leave_for_write(struct vcpu *v, u8 insn_len)
{
	const struct mmio_frag *f = mmio_write_pending(&v->mmu);

	if (!f)
		return false;
	v->exit.reason = EXIT_MMIO;
	v->exit.insn_len = insn_len;
	v->exit.mmio.gpa = f->gpa;
	v->exit.mmio.len = f->len;
	v->exit.mmio.is_write = true;
	memcpy(v->exit.mmio.data, f->data, 8);
	mmio_write_taken(&v->mmu);
	return true;
}

static void clear_event(struct vcpu *v, u32 bit)
{
	atomic_fetch_and_explicit(&v->events, ~bit, memory_order_acq_rel);
}

/* What a delivery (excp_deliver() and its kin) returned. It may stop for an MMIO read, when a table or stack lies
 * there, and then starts over with the next run. */
static int delivered(struct vcpu *v, int rc)
{
	/* Whom a delivery's own accesses hit is nobody's business. */
	v->mmu.watch_hit = 0;
	if (rc == STEP_EXIT) {
		v->interp->redeliver =
		        v->exit.reason == EXIT_GONE || (v->exit.reason == EXIT_MMIO && !v->exit.mmio.is_write);
		if (!v->interp->redeliver)
			mmio_done(&v->mmu);
		return LEAVE;
	}
	v->interp->redeliver = false;
	mmio_done(&v->mmu);
	return leave_for_write(v, 0) ? LEAVE : GO_ON;
}

/* Delivers v->excp, which a handler or the fetch raised. */
static int deliver(struct vcpu *v)
{
	mmio_done(&v->mmu);
	v->mmu.watch_stops = false;
	return delivered(v, excp_deliver(v));
}

/* A fetch gave `rc`. */
static int not_fetched(struct vcpu *v, int rc)
{
	if (rc == STEP_EXCP)
		return deliver(v);
	if (v->exit.reason != EXIT_STEP)
		return LEAVE;
	v->interp->step_next = true;
	return GO_ON;
}

/* Between two instructions, in the manual's order of priorities (SDM vol. 3, 6.9). GO_ON: something was done, look
 * again; RUN: nothing (more) to do. */
static int handle_events(struct vcpu *v, u32 ev)
{
	bool open = v->rflags & FLAGS_IF;

	if (ev & EV_KICK) {
		clear_event(v, EV_KICK);
		v->ops->kicked(v);
		check_version(v);
		return GO_ON;
	}
	if (ev & EV_TLB) {
		clear_event(v, EV_TLB);
		tlb_flush(&v->mmu);
	}
	if (ev & EV_SIGNAL) {
		clear_event(v, EV_SIGNAL);
		v->exit.reason = EXIT_INTR;
		return LEAVE;
	}
	/* An instruction that waits for its MMIO answer is not to be interrupted: it would read twice. */
	if (v->mmu.n_reads)
		return RUN_ONE;
	/* A MOV SS shadow holds traps back too. */
	if ((ev & EV_TRAP) && v->shadow != SHADOW_MOVSS)
		return delivered(v, excp_take_db(v));
	if (v->shadow)
		return RUN_ONE;
	if (ev & EV_SHADOW)
		clear_event(v, EV_SHADOW);
	if (unlikely(v->gdbg.no_irq))
		return RUN;
	if ((ev & EV_NMI) && !v->nmi_masked) {
		clear_event(v, EV_NMI);
		if (nmi_collect(v)) {
			v->interp->epoch++;
			return delivered(v, excp_nmi(v));
		}
	}
	if ((ev & EV_IRQ) && open) {
		int vec;

		/* Cleared first: whoever queues an interrupt from now on sets it again. */
		clear_event(v, EV_IRQ);
		v->interp->epoch++;
		vec = v->ops->irq_take(v);
		if (vec >= 0) {
			if (v->ops->irq_pending(v))
				atomic_fetch_or(&v->events, EV_IRQ);
			return delivered(v, excp_interrupt(v, (u8)vec));
		}
	}
	if ((ev & EV_WINDOW) && open) {
		clear_event(v, EV_WINDOW);
		v->exit.reason = EXIT_IRQ_WINDOW;
		return LEAVE;
	}
	return RUN;
}

/*
 * An instruction returned `rc` (not STEP_OK), or looked around after memory accesses. Does what follows; RIP is already
 * right for STEP_OK and STEP_JUMP.
 */
static int after(struct vcpu *v, const struct insn *i, int rc)
{
	switch (rc) {
	case STEP_EXCP:
		return deliver(v);
	case STEP_EXIT:
		if (unlikely(v->exit.reason == EXIT_STEP)) {
			mmio_done(&v->mmu);
			v->mmu.n_writes = v->mmu.next_write = 0;
			v->interp->step_next = true;
			return GO_ON;
		}
		v->exit.insn_len = i->len;
		/* Only an MMIO read leaves the instruction unfinished with answers worth keeping. */
		if (v->exit.reason != EXIT_MMIO || v->exit.mmio.is_write)
			mmio_done(&v->mmu);
		return LEAVE;
	default:
		if (v->mmu.n_reads)
			mmio_done(&v->mmu);
		if (v->mmu.n_writes && leave_for_write(v, i->len))
			return LEAVE;
		return GO_ON;
	}
}

/* ---- running ---------------------------------------------------------------------------------------------------- */

/* One instruction, with everything that single-step, breakpoints and shadows need. */
static int step_one(struct vcpu *v)
{
	struct interp *it = v->interp;
	bool tf = v->rflags & FLAGS_TF, stepping = v->stepping || v->dbg_active;
	u64 rip = v->r[R_RIP];
	const struct insn *i, *end;
	u8 shadow = v->shadow;
	struct block *b;
	const u8 *hva;
	int rc;

	it->step_next = false;
	if (stepping) {
		rc = dbg_before(v);
		if (rc == STEP_EXCP)
			return deliver(v);
		if (rc == STEP_EXIT)
			return LEAVE;
	}
	rc = find_slow(v, KEY_ONE, NULL, &b, &hva, &end);
	if (rc == STEP_EXIT)
		return LEAVE;
	/* The shadow ends with this instruction, which may start another. */
	v->shadow = 0;
	if (shadow)
		clear_event(v, EV_SHADOW);
	if (rc == STEP_EXCP)
		return deliver(v);
	it->left = false;
	i = b->insn;
	mmio_restart(&v->mmu);
	rc = i->fn(v, i);
	if (rc == STEP_EXIT && v->exit.reason == EXIT_MMIO && !v->exit.mmio.is_write) {
		/* Not done yet: it runs again, under the same shadow. */
		v->shadow = shadow;
		if (shadow)
			atomic_fetch_or(&v->events, EV_SHADOW);
		return after(v, i, rc);
	}
	v->n_insns++;
	if (rc == STEP_OK) {
		v->r[R_RIP] += i->len;
	} else if (rc == STEP_JUMP && stepping && v->r[R_RIP] == rip && (i->flags & (INSN_REP | INSN_REPNE))) {
		/* An unfinished repetition does not hit its own breakpoint again. */
		v->rflags |= FLAGS_RF;
		v->rf_fresh = true;
		cpu_update_flags(v);
	}
	if (stepping && (rc == STEP_OK || rc == STEP_JUMP) &&
	    dbg_after(v, tf && !(v->shadow & SHADOW_MOVSS)) == STEP_EXIT) {
		/* The client's breakpoint goes first; posted writes leave with the next run. */
		mmio_done(&v->mmu);
		return LEAVE;
	}
	return after(v, i, rc);
}

/* Blocks until there is something to look at, or `once`. */
static inline int run_some(struct vcpu *v, bool once)
{
	struct interp *it = v->interp;
	struct block *prev = NULL;

	for (;;) {
		const struct insn *i, *end;
		struct block *b;
		const u8 *hva;
		int rc = find(v, prev, &b, &hva, &end);

		if (unlikely(rc != STEP_OK))
			return not_fetched(v, rc);
		prev = b;
		i = b->insn;
		for (;;) {
			rc = i->fn(v, i);
			if (unlikely(rc != STEP_OK))
				break;
			v->r[R_RIP] += i->len;
			if (i->acc) {
				if (unlikely(v->mmu.n_writes | v->mmu.n_reads | it->left))
					break;
				if ((i->acc & (INSN_ACC_WRITE | ACC_BRANCH)) &&
				    unlikely(!same_bytes(b->bytes + i->boff, hva + i->boff,
				                         (unsigned)(i->bend - i->boff))))
					break;
			}
			if (++i == end) {
				i--;
				break;
			}
		}
		v->n_insns += (u64)(i - b->insn) + 1;
		if (rc > STEP_JUMP || unlikely(v->mmu.n_writes | v->mmu.n_reads | it->left)) {
			it->left = false;
			rc = after(v, i, rc);
			return rc;
		}
		if (unlikely(atomic_load_explicit(&v->events, memory_order_relaxed) || v->stepping) || once)
			return GO_ON;
	}
}

int interp_walk(struct vcpu *v, unsigned max, bool (*not_this)(const struct insn *), unsigned *done)
{
	const struct insn *i, *end;
	struct block *b;
	const u8 *hva;
	int rc;

	*done = 0;
	while (*done < max) {
		rc = max == 1 ? find_slow(v, KEY_ONE, NULL, &b, &hva, &end) : find(v, NULL, &b, &hva, &end);
		if (rc != STEP_OK)
			return rc;
		for (i = b->insn; i != end && *done < max; i++) {
			u64 next = v->r[R_RIP] + i->len;
			u8 shadow = v->shadow;

			if (not_this(i))
				return STEP_JUMP;
			rc = i->fn(v, i);
			if (rc > STEP_JUMP) {
				/* It ends with this instruction too. */
				if (v->shadow == shadow)
					v->shadow = 0;
				return rc;
			}
			if (rc == STEP_JUMP && v->r[R_RIP] == next - i->len && (i->flags & (INSN_REP | INSN_REPNE))) {
				if (atomic_load_explicit(&v->events, memory_order_relaxed) & EV_CHECK) {
					++*done;
					return STEP_JUMP;
				}
				break;
			}
			++*done;
			if (rc == STEP_OK)
				v->r[R_RIP] = next;
			/* An STI's shadow covers one instruction and is no jump. */
			if (v->shadow == shadow)
				v->shadow = 0;
			if (i->mnemonic == ZYDIS_MNEMONIC_STI)
				rc = STEP_OK;
			if (rc == STEP_JUMP || v->mmu.n_writes)
				return rc;
			if (i->acc && !same_bytes(b->bytes + i->boff, hva + i->boff, (unsigned)(i->bend - i->boff)))
				break;
		}
	}
	return STEP_OK;
}

static int run_blocks(struct vcpu *v)
{
	return run_some(v, false);
}

int interp_one_block(struct vcpu *v)
{
	return run_some(v, true);
}

int interp_not_fetched(struct vcpu *v, int rc)
{
	return not_fetched(v, rc);
}

int interp_after(struct vcpu *v, const struct insn *i, int rc)
{
	v->interp->left = false;
	return after(v, i, rc);
}

int interp_fetch(struct vcpu *v, gva_t lin, const u8 **p)
{
	return fetch(v, lin, p);
}

bool interp_knows(const struct insn *i)
{
	return i->fn != op_undefined;
}

u64 interp_epoch(const struct vcpu *v)
{
	return v->interp->epoch;
}

void interp_run(struct vcpu *v)
{
	interp_run_with(v, run_blocks);
}

bool interp_finish(struct vcpu *v)
{
	v->exit.reason = EXIT_NONE;
	v->exit.insn_len = 0;
	if (leave_for_write(v, 0))
		return true;
	if (!v->mmu.n_reads)
		return false;
	check_version(v);
	if (v->interp->redeliver) {
		mmio_restart(&v->mmu);
		return delivered(v, excp_deliver(v)) == LEAVE;
	}
	return step_one(v) == LEAVE;
}

void interp_run_with(struct vcpu *v, int (*run)(struct vcpu *v))
{
	int next = GO_ON;

	v->exit.reason = EXIT_NONE;
	v->exit.insn_len = 0;
	if (leave_for_write(v, 0))
		return;
	check_version(v);
	if (v->interp->redeliver) {
		mmio_restart(&v->mmu);
		next = delivered(v, excp_deliver(v));
	}
	while (next != LEAVE) {
		u32 ev;

		if (v->rflags & FLAGS_IF)
			cpu_release_events(v);
		ev = atomic_load_explicit(&v->events, memory_order_acquire);
		if (ev && ((ev & ~(EV_IRQ | EV_WINDOW)) || (v->rflags & FLAGS_IF))) {
			next = handle_events(v, ev);
			if (next == GO_ON || next == LEAVE)
				continue;
		} else {
			next = RUN;
		}
		if (next == RUN_ONE || v->stepping || v->mmu.n_reads || v->interp->step_next) {
			next = step_one(v);
			continue;
		}
		cpu_hold_events(v, ev);
		v->mmu.watch_stops = true;
		v->mmu.watch_hit = 0;
		next = run(v);
		v->mmu.watch_stops = false;
	}
	cpu_release_events(v);
}
