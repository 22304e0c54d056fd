/*
 * lockstep.c: DEVKVM_LOCKSTEP: every block that is translated also runs in the interpreter, from the same state, and
 * what the two make of it is compared: registers, flags, segments, control and debug registers, MSRs, x87, SSE and AVX
 * state, MXCSR, memory, posted MMIO, the fault raised. `1` checks each run of each block; a larger number N the first N
 * runs of each, which are then linked and left alone.
 *
 * A check runs the interpreter first, with the store hook set: the pages it writes are saved, nobody else hears of the
 * stores, and they are taken back. Then the translated block runs, with write TLB entries for these pages alone, so
 * that its stores go the inline way where they should go and come to the hook elsewhere. Now and then both begin with
 * an empty TLB, so that the out-of-line ways are gone too.
 *
 * The translated block may stop earlier than the interpreter did (its own code changed, an event): the interpreter then
 * starts over and must reach that very state after some number of instructions.
 *
 * Not compared: instructions that would not do the same twice or have an effect outside the processor (RDTSC, RDRAND,
 * I/O, MSRs, control registers, far transfers...). Each is a block of its own and gets the state that was compared
 * before it. Loads from MMIO end a comparison with the state before them.
 *
 * Memory that somebody else writes while a block is compared would look like a mistake of the block: VMs with several
 * vCPUs run unchecked, and clients must not write to the guest's memory while the vCPU runs.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../base/bug.h"
#include "../interp/interp_impl.h"
#include "trans.h"

#define PAGES_MAX 65536u
#define STEPS_MAX 20000u

struct lpage {
	u8 *hva;
	gva_t gva;
	gpa_t gpa;
	enum tlb_ctx ctx;
	bool global, data;
	u8 old[PAGE_SIZE], want[PAGE_SIZE], got[PAGE_SIZE]; /* before, as the interpreter, as the translator left it */
};

/* The parts of struct vcpu that a block may change. */
struct state {
	u64 r[R_COUNT], rflags;
	enum tlb_ctx ctx;
	u8 mode[offsetof(struct vcpu, jt) - offsetof(struct vcpu, mode)];
	_Alignas(8) u8 rest[offsetof(struct vcpu, ops) - offsetof(struct vcpu, seg)];
	unsigned n_reads, n_writes, next_write;
	struct mmio_frag write[2];
};

struct lockstep {
	u64 runs; /* of each block; ~0: all */
	struct state start, interp, jit;
	int rc; /* of the interpreter */
	struct vcpu_exit exit;
	unsigned steps;
	unsigned n_pages;
	struct lpage *page, *last;
	bool first, tables, stray, full;
	gva_t stray_gva;
	bool failed;
	u64 n_checked, n_partial, n_unchecked;
	u32 rnd;
};

void lockstep_create(struct jit *j)
{
	const char *s = getenv("DEVKVM_LOCKSTEP");
	unsigned long n = s ? strtoul(s, NULL, 10) : 0;
	struct lockstep *l;

	if (!n)
		return;
	l = calloc(1, sizeof(*l));
	if (!l)
		return;
	l->page = mmap(NULL, PAGES_MAX * sizeof(*l->page), PROT_READ | PROT_WRITE,
	               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (l->page == MAP_FAILED) {
		free(l);
		return;
	}
	l->runs = n == 1 ? ~0ull : n;
	l->rnd = 1;
	j->lockstep = l;
}

void lockstep_destroy(struct jit *j)
{
	struct lockstep *l = j->lockstep;

	if (!l)
		return;
	if (debug_on("lockstep"))
		fprintf(stderr, "lockstep: %llu blocks compared, %llu of them in part, %llu ran unchecked\n",
		        (unsigned long long)l->n_checked, (unsigned long long)l->n_partial,
		        (unsigned long long)l->n_unchecked);
	munmap(l->page, PAGES_MAX * sizeof(*l->page));
	free(l);
	j->lockstep = NULL;
}

/* Instructions that must not run twice. */
static bool has_effects(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_IN:
	case ZYDIS_MNEMONIC_OUT:
	case ZYDIS_MNEMONIC_RDMSR:
	case ZYDIS_MNEMONIC_WRMSR:
	case ZYDIS_MNEMONIC_CPUID:
	case ZYDIS_MNEMONIC_HLT:
	case ZYDIS_MNEMONIC_VMCALL:
	case ZYDIS_MNEMONIC_VMMCALL:
	case ZYDIS_MNEMONIC_RDTSC:
	case ZYDIS_MNEMONIC_RDTSCP:
	case ZYDIS_MNEMONIC_RDRAND:
	case ZYDIS_MNEMONIC_RDSEED:
	case ZYDIS_MNEMONIC_INSB:
	case ZYDIS_MNEMONIC_INSW:
	case ZYDIS_MNEMONIC_INSD:
	case ZYDIS_MNEMONIC_OUTSB:
	case ZYDIS_MNEMONIC_OUTSW:
	case ZYDIS_MNEMONIC_OUTSD:
		return true;
	}
	return false;
}

bool lockstep_alone(const struct jit *j, const struct insn *i, const struct nat *n)
{
	if (has_effects(i))
		return true;
	if (i->flags & (INSN_REP | INSN_REPNE))
		return n->cls == K_HANDLER;
	return n->cls == K_HANDLER && (op_sys_find(i) || op_flow_find(i));
}

bool lockstep_wants(const struct jit *j, const struct tb *tb)
{
	return tb->checks < j->lockstep->runs && atomic_load(&j->others) == 0;
}

/* ---- state ------------------------------------------------------------------------------------------------------ */

static void save(const struct vcpu *v, struct state *s)
{
	memcpy(s->r, v->r, sizeof(s->r));
	s->rflags = v->rflags;
	s->ctx = v->mmu.ctx;
	memcpy(s->mode, &v->mode, sizeof(s->mode));
	memcpy(s->rest, v->seg, sizeof(s->rest));
	s->n_reads = v->mmu.n_reads;
	s->n_writes = v->mmu.n_writes;
	s->next_write = v->mmu.next_write;
	memcpy(s->write, v->mmu.writes, sizeof(s->write));
}

static void load(struct vcpu *v, const struct state *s)
{
	memcpy(v->r, s->r, sizeof(s->r));
	v->rflags = s->rflags;
	v->mmu.ctx = s->ctx;
	memcpy(&v->mode, s->mode, sizeof(s->mode));
	memcpy(v->seg, s->rest, sizeof(s->rest));
	v->mmu.n_reads = s->n_reads;
	v->mmu.n_writes = s->n_writes;
	v->mmu.next_write = s->next_write;
	memcpy(v->mmu.writes, s->write, sizeof(s->write));
}

/* struct state's view of a field behind struct vcpu's seg. */
#define PART(s, field) ((s)->rest + offsetof(struct vcpu, field) - offsetof(struct vcpu, seg))
#define SPAN(a, b) (offsetof(struct vcpu, b) - offsetof(struct vcpu, a))

static bool same_state(const struct state *a, const struct state *b, bool excp)
{
	if (memcmp(a->r, b->r, sizeof(a->r)) || a->rflags != b->rflags || a->ctx != b->ctx ||
	    memcmp(a->mode, b->mode, sizeof(a->mode)))
		return false;
	if (memcmp(PART(a, seg), PART(b, seg), SPAN(seg, excp)) ||
	    memcmp(PART(a, pending_db), PART(b, pending_db), sizeof(u64)) ||
	    memcmp(PART(a, star), PART(b, star), SPAN(star, ops)))
		return false;
	if (excp) {
		const struct event *x = (const struct event *)(const void *)PART(a, excp),
		                   *y = (const struct event *)(const void *)PART(b, excp);

		if (x->kind != y->kind || x->vector != y->vector || x->has_error != y->has_error ||
		    x->error != y->error || x->cr2 != y->cr2)
			return false;
	}
	if (a->n_writes != b->n_writes)
		return false;
	for (unsigned n = 0; n < a->n_writes && n < ARRAY_SIZE(a->write); n++)
		if (a->write[n].gpa != b->write[n].gpa || a->write[n].len != b->write[n].len ||
		    memcmp(a->write[n].data, b->write[n].data, a->write[n].len))
			return false;
	return true;
}

/* ---- stores ----------------------------------------------------------------------------------------------------- */

static struct lpage *page_of(struct lockstep *l, const u8 *hva)
{
	for (unsigned n = 0; n < l->n_pages; n++)
		if (l->page[n].hva == hva)
			return &l->page[n];
	return NULL;
}

static bool on_store(struct mmu *m, gva_t gva, gpa_t gpa, u8 *hva, unsigned len, enum tlb_ctx ctx, bool global)
{
	struct vcpu *v = container_of(m, struct vcpu, mmu);
	struct lockstep *l = v->jit->lockstep;
	u8 *at = hva - (gpa & ~PAGE_MASK);
	struct lpage *p = l->last && l->last->hva == at ? l->last : page_of(l, at);

	if (!l->first) {
		if (!p && !l->stray) {
			l->stray = true;
			l->stray_gva = gva;
		}
		return false;
	}
	if (!p) {
		if (l->n_pages == PAGES_MAX) {
			l->full = true;
			return true;
		}
		p = &l->page[l->n_pages++];
		p->hva = at;
		p->data = false;
		memcpy(p->old, at, PAGE_SIZE);
		memcpy(p->got, at, PAGE_SIZE);
	}
	l->last = p;
	if (gva == ~0ull) {
		l->tables = true;
	} else if (!p->data) {
		p->data = true;
		p->gva = gva & PAGE_MASK;
		p->gpa = gpa & PAGE_MASK;
		p->ctx = ctx;
		p->global = global;
	}
	return true;
}

/* Takes back what was stored, and nothing that stood there before: somebody else may write beside it. */
static void undo(struct lockstep *l)
{
	for (unsigned n = 0; n < l->n_pages; n++) {
		struct lpage *p = &l->page[n];

		for (unsigned k = 0; k < PAGE_SIZE; k += 8)
			if (ld8(p->hva + k) != ld8(p->old + k))
				st8(p->hva + k, ld8(p->old + k));
	}
}

static bool same_memory(const struct lockstep *l, bool prefix)
{
	for (unsigned n = 0; n < l->n_pages; n++)
		if (memcmp(l->page[n].hva, prefix ? l->page[n].got : l->page[n].want, PAGE_SIZE))
			return false;
	return true;
}

/* ---- the two runs ----------------------------------------------------------------------------------------------- */

/* EV_SHADOW and EV_TRAP are this thread's own; the run is taken back. */
static void clear_events(struct vcpu *v)
{
	if (atomic_load_explicit(&v->events, memory_order_relaxed) & (EV_SHADOW | EV_TRAP))
		atomic_fetch_and(&v->events, ~(u32)(EV_SHADOW | EV_TRAP));
}

/* The interpreter's run of up to `most` instructions from l->start; `loop`: again and again while it comes back to its
 * start. */
static void walk(struct vcpu *v, struct lockstep *l, unsigned most)
{

	l->first = true;
	l->rc = interp_walk(v, most, has_effects, &l->steps);
	if (l->rc == STEP_EXIT)
		l->exit = v->exit;
	clear_events(v);
	v->interp->left = false;
}

static void start_over(struct vcpu *v, struct lockstep *l)
{
	undo(l);
	load(v, &l->start);
}

static void run_interp(struct vcpu *v, struct lockstep *l, const struct tb *tb)
{
	bool forget = (l->rnd = l->rnd * 1664525u + 1013904223u) >> 29 == 0;

	l->n_pages = 0;
	l->last = NULL;
	l->tables = l->stray = l->full = false;
	tlb_flush_writes(&v->mmu);
	if (forget)
		tlb_forget_data(&v->mmu);
	walk(v, l, tb->n_insns);
	if (l->tables && !forget) {
		/* A or D bits were set, and will be again by the other run only if it finds the TLB as this one did. */
		forget = true;
		start_over(v, l);
		tlb_forget_data(&v->mmu);
		walk(v, l, tb->n_insns);
	}
	save(v, &l->interp);
	for (unsigned n = 0; n < l->n_pages; n++)
		memcpy(l->page[n].want, l->page[n].hva, PAGE_SIZE);
	undo(l);
	load(v, &l->start);
	if (forget || l->tables) {
		tlb_forget_data(&v->mmu);
		return;
	}
	tlb_flush_writes(&v->mmu);
	for (unsigned n = 0; n < l->n_pages; n++)
		if (l->page[n].data)
			mem_allow_write(&v->mmu, l->page[n].gva, l->page[n].gpa, l->page[n].ctx, l->page[n].global);
}

static u32 run_jit(struct vcpu *v, struct lockstep *l, u32 key, struct tb *tb)
{
	struct jit *j = v->jit;
	u32 left;

	l->first = false;
	j->left = false;
	/* A key that no entry of the jump cache has: the code comes back from indirect jumps. */
	v->jt.key |= (u64)(KEY_CPL0 | KEY_USER) << 48;
	v->jt.flags = fl_pack(v->rflags);
	left = ((enter_fn)(uintptr_t)j->enter)(v, tb->code_nopoll);
	jit_settle(v, key, left);
	save(v, &l->jit);
	return left;
}

/* Did the translated code end as the interpreter did? */
static bool same_end(const struct vcpu *v, const struct lockstep *l, u32 left)
{
	const struct jit *j = v->jit;
	int rc = left == LEFT_AFTER ? j->rc : STEP_OK;

	if (j->bad_ret)
		return l->rc == STEP_EXCP;
	if (rc <= STEP_JUMP)
		return l->rc <= STEP_JUMP;
	if (rc != l->rc)
		return false;
	return rc != STEP_EXIT || (v->exit.reason == l->exit.reason &&
	                           (v->exit.reason != EXIT_MMIO ||
	                            (v->exit.mmio.gpa == l->exit.mmio.gpa && v->exit.mmio.len == l->exit.mmio.len)));
}

/* Looks for the translated code's end among the states that the interpreter goes through. */
static bool find_prefix(struct vcpu *v, struct lockstep *l, const struct tb *tb, u32 left)
{
	struct vcpu_exit exit = v->exit;
	bool found = false;
	unsigned done, total = 0;

	if (left == LEFT_AFTER && v->jit->rc > STEP_JUMP)
		return false;
	for (unsigned n = 0; n < l->n_pages; n++)
		memcpy(l->page[n].got, l->page[n].hva, PAGE_SIZE);
	start_over(v, l);
	tlb_forget_data(&v->mmu);
	l->first = true;
	atomic_fetch_or(&v->events, (u32)EV_CHECK);
	while (!found && total < STEPS_MAX + 2 * TB_INSNS) {
		int rc = interp_walk(v, 1, has_effects, &done);

		clear_events(v);
		total += done;
		if (rc > STEP_JUMP || !done)
			break;
		if (v->r[R_RIP] != l->jit.r[R_RIP] || memcmp(v->r, l->jit.r, sizeof(v->r)))
			continue;
		save(v, &l->interp);
		found = same_state(&l->interp, &l->jit, false) && same_memory(l, true);
	}
	atomic_fetch_and(&v->events, ~(u32)EV_CHECK);
	l->first = false;
	v->interp->left = false;
	v->exit = exit;
	for (unsigned n = 0; n < l->n_pages; n++)
		memcpy(l->page[n].hva, l->page[n].got, PAGE_SIZE);
	load(v, &l->jit);
	tlb_forget_data(&v->mmu);
	return found;
}

/* ---- the report ------------------------------------------------------------------------------------------------- */

static void hex(const char *what, const u8 *p, unsigned n)
{
	fprintf(stderr, "  %s", what);
	for (unsigned k = 0; k < n; k++)
		fprintf(stderr, " %02x", p[k]);
	fprintf(stderr, "\n");
}

static void show_part(const char *what, const u8 *s, const u8 *a, const u8 *b, unsigned n)
{
	if (!memcmp(a, b, n))
		return;
	fprintf(stderr, "  * %s\n", what);
	hex("    before     ", s, n);
	hex("    interpreter", a, n);
	hex("    translator ", b, n);
}

static void report(struct vcpu *v, struct lockstep *l, const struct tb *tb, u32 left)
{
	static const char *const name[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8",
	                                   "r9",  "r10", "r11", "r12", "r13", "r14", "r15", "rip", "?"};
	const struct state *s = &l->start, *a = &l->interp, *b = &l->jit;
	unsigned at;

	fprintf(stderr, "lockstep: interpreter and translator differ over the block at rip %#llx, key %#x, run %u\n",
	        (unsigned long long)tb->rip, tb->key, tb->checks + 1);
	hex("guest code", tb->bytes, tb->range[0].len);
	hex("host code", tb->code, tb->code_len);
	fprintf(stderr, "  interpreter: %u instructions, result %d; translator: left %u, result %d\n", l->steps, l->rc,
	        left, left == LEFT_AFTER ? v->jit->rc : 0);
	for (unsigned n = 0; n <= R_RIP; n++)
		fprintf(stderr, "  %c %-6s before %016llx interpreter %016llx translator %016llx\n",
		        a->r[n] == b->r[n] ? ' ' : '*', name[n], (unsigned long long)s->r[n],
		        (unsigned long long)a->r[n], (unsigned long long)b->r[n]);
	fprintf(stderr, "  %c %-6s before %016llx interpreter %016llx translator %016llx\n",
	        a->rflags == b->rflags ? ' ' : '*', "rflags", (unsigned long long)s->rflags,
	        (unsigned long long)a->rflags, (unsigned long long)b->rflags);
	for (unsigned n = 0; n < SEG_COUNT; n++) {
		char what[16];

		snprintf(what, sizeof(what), "segment %u", n);
		at = n * (unsigned)sizeof(struct seg);
		show_part(what, PART(s, seg) + at, PART(a, seg) + at, PART(b, seg) + at, sizeof(struct seg));
	}
	show_part("gdt to dr7", PART(s, gdt), PART(a, gdt), PART(b, gdt), SPAN(gdt, excp));
	show_part("exception", PART(s, excp), PART(a, excp), PART(b, excp), sizeof(struct event));
	show_part("MSRs", PART(s, star), PART(a, star), PART(b, star), SPAN(star, fpu));
	show_part("x87", PART(s, fpu.fx), PART(a, fpu.fx), PART(b, fpu.fx), 512);
	for (unsigned n = 0; n < 16; n++) {
		char what[8];

		snprintf(what, sizeof(what), "ymm%u", n);
		show_part(what, PART(s, fpu.ymm[n]), PART(a, fpu.ymm[n]), PART(b, fpu.ymm[n]), 32);
	}
	show_part("mxcsr", PART(s, fpu.mxcsr), PART(a, fpu.mxcsr), PART(b, fpu.mxcsr), 4);
	if (a->n_writes != b->n_writes)
		fprintf(stderr, "  posted MMIO writes: interpreter %u, translator %u\n", a->n_writes, b->n_writes);
	if (l->stray)
		fprintf(stderr, "  translator stores to %#llx, a page where the interpreter stores nothing\n",
		        (unsigned long long)l->stray_gva);
	for (unsigned n = 0; n < l->n_pages; n++)
		for (unsigned k = 0; k < PAGE_SIZE; k += 8)
			if (ld8(l->page[n].hva + k) != ld8(l->page[n].want + k))
				fprintf(stderr,
				        "  * memory %#llx before %016llx interpreter %016llx translator %016llx\n",
				        (unsigned long long)(l->page[n].gva + k),
				        (unsigned long long)ld8(l->page[n].old + k),
				        (unsigned long long)ld8(l->page[n].want + k),
				        (unsigned long long)ld8(l->page[n].hva + k));
}

static int fail(struct vcpu *v, struct lockstep *l)
{
	l->failed = true;
	cpu_internal_error(v, "lockstep: interpreter and translator differ");
	return INTERP_LEAVE;
}

/* ---- one block -------------------------------------------------------------------------------------------------- */

int lockstep_block(struct vcpu *v, u32 key, struct tb *tb)
{
	struct jit *j = v->jit;
	struct lockstep *l = j->lockstep;
	bool ok;
	u32 left;
	int rc;

	if (l->failed)
		return fail(v, l);
	/* It must be entered from here alone. */
	j->front->jc[(tb->rip ^ tb->rip >> PAGE_SHIFT) & (JC_SIZE - 1)].tag = 0;
	if (tb->unchecked) {
		l->n_unchecked++;
		left = run_jit(v, l, key, tb);
		rc = jit_left(v, left);
		return rc >= 0 ? rc : INTERP_GO_ON;
	}
	save(v, &l->start);
	v->mmu.store_hook = on_store;
	run_interp(v, l, tb);
	left = run_jit(v, l, key, tb);
	ok = !l->stray && same_end(v, l, left) && same_state(&l->interp, &l->jit, l->rc == STEP_EXCP && !j->bad_ret) &&
	     same_memory(l, false);
	if (!ok && !l->stray) {
		const struct state full = l->interp;
		struct vcpu_exit exit = l->exit;

		ok = find_prefix(v, l, tb, left);
		l->n_partial++;
		if (!ok) {
			l->interp = full;
			l->exit = exit;
		}
	}
	v->mmu.store_hook = NULL;
	l->n_checked++;
	tb->checks++;
	if (l->full)
		fprintf(stderr, "lockstep: more than %u pages stored to, which it cannot compare\n", PAGES_MAX);
	if (!ok) {
		report(v, l, tb, left);
		return fail(v, l);
	}
	rc = jit_left(v, left);
	return rc >= 0 ? rc : INTERP_GO_ON;
}
