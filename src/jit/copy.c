/*
 * copy.c: blocks at another RIP, on another page or of another vCPU, made by copying instead of by translating again.
 *
 * Programs begin at other random addresses each time they are started, and RIP is a constant in a block; and what runs
 * on one vCPU mostly runs on others too, which have code memories of their own. But little of a block hangs on its RIP
 * and on where it lies: while it is emitted, the places are noted that do (struct fixes). With them a copy is made for
 * any page that holds the same bytes at the same offset; it costs a small part of a translation.
 *
 * For another RIP the vCPU copies a block of its own (struct tb_copy), which shares everything but its code, calls and
 * sites with the translated one. Programs end, and nobody says so: from a few copies on, a new one takes the place of
 * the one whose page was not entered for the longest time (take_back()), so that starting programs fills no memory.
 *
 * From another vCPU comes all that a block consists of, and it is as one that was translated here (import()).
 *
 * Only translated and imported blocks are copied (struct origin), not copies. It does not matter whether the origin is
 * alive: its code and all that it refers to (recipes, decoded instructions, the bytes it was made of) stay until a
 * flush, and the bytes are compared before each copy. What changes in the code of a block behind its translation is
 * where its sites lead, and a copy's begin unlinked; so it may even change while another vCPU copies it. A flush waits
 * for that (smc_lock()).
 */
#include "../cpu/vmem.h"
#include "trans.h"

/* A place to change: its offset in one of the two pieces. */
struct place {
	u32 off : 24;
	u32 kind : 7;
	u32 cold : 1;
};

struct tb_copy {
	struct tb tb;
	struct tb_copy *next; /* of the same origin */
	u8 *hot, *cold;       /* writable view */
	u32 first_call, first_site;
};

/* All that belongs to a block lies between its struct tb and the end of this. */
struct origin {
	struct tb *tb;
	struct origin *next;
	struct tb_copy *first, **last; /* its copies, by turns */
	u32 hash;
	u32 cold_len;
	u8 *cold; /* what is out of line, writable view */
	u32 first_call, first_site;
	u16 n_calls, n_sites, n_places, n_copies;
	bool low;   /* some addresses have 32 bits only */
	bool here;  /* right at this RIP only */
	bool never; /* of no use */
	struct place place[];
};

/* By the bytes there blocks are found: as many as tell functions apart that begin alike. */
static u32 origin_hash(const u8 *bytes, u64 rip, u32 key)
{
	u64 off = rip & ~PAGE_MASK, part[4] = {0}, h = off << 20 ^ key;

	memcpy(part, bytes, PAGE_SIZE - off < sizeof(part) ? PAGE_SIZE - off : sizeof(part));
	for (unsigned n = 0; n < ARRAY_SIZE(part); n++)
		h = ((h ^ part[n]) * 0x9e3779b97f4a7c15ull) ^ h >> 29;
	return (u32)(h >> 32);
}

/* Is every address that code there may name canonical? Where not, branches are translated otherwise. */
static bool is_inner(u64 rip)
{
	return is_canonical(rip + BIT(32)) && is_canonical(rip - BIT(32));
}

static bool has_peers(const struct jit *j)
{
	return atomic_load_explicit(&j->others, memory_order_relaxed) || j->chaos.on;
}

void copy_note(struct trans *c, u64 rip)
{
	struct jit *j = c->j;
	/* Keys of other code segments have numbers that are each vCPU's own. */
	bool shared = has_peers(j) && !(c->key >> KEY_CS_SHIFT) && !j->lockstep;

	c->fixes.n = 0;
	c->bound |= !(c->key & KEY_64) || !is_inner(rip);
	/* What lies in the next page is not among the bytes that are compared. */
	c->e.fixes = j->cold.fixes =
	        !c->tb->beyond && (shared || (!c->bound && (c->key & KEY_USER))) ? &c->fixes : NULL;
}

/* Where the displacement at `at` leads to, in the writable view. */
static const u8 *target_at(const u8 *at)
{
	s32 rel;

	memcpy(&rel, at, 4);
	return at + 4 + rel;
}

/* Most origins of a bucket: where code is rewritten all the time there would be one for each version. The oldest are
 * given up. */
#define CHAIN_MOST 16

static void add_origin(struct jit *j, struct origin *o)
{
	struct origin **at = &j->origins[o->hash & (ORIGIN_HASH - 1)];
	unsigned n = 0;

	o->tb->origin = o;
	o->first = NULL;
	o->last = &o->first;
	o->n_copies = 0;
	smc_lock();
	o->next = *at;
	*at = o;
	while (*at && n++ < CHAIN_MOST)
		at = &(*at)->next;
	*at = NULL;
	smc_unlock();
}

void copy_origin(const struct trans *c, u8 *cold, u32 first_call, u32 first_site)
{
	struct jit *j = c->j;
	const struct fixes *f = c->e.fixes;
	const u8 *hot = c->tb->code - j->e.delta;
	u32 cold_len = (u32)(j->cold.p - cold);
	struct origin *o;
	unsigned n = 0;

	j->e.fixes = j->cold.fixes = NULL;
	if (!f || f->n > FIXES_MAX || (c->bound && !has_peers(j)))
		return;
	o = meta_alloc(j, sizeof(*o) + f->n * sizeof(o->place[0]));
	memset(o, 0, sizeof(*o));
	for (unsigned k = 0; k < f->n; k++) {
		const u8 *p = f->place[k].at;
		bool out = (u64)(p - cold) < cold_len;
		const u8 *piece = out ? cold : hot;

		/* What leads from a piece into itself is the same in each copy. */
		if (f->place[k].kind == FIX_REL && (u64)(target_at(p) - piece) < (out ? cold_len : c->tb->code_len))
			continue;
		o->low |= f->place[k].kind == FIX_RIP4 || f->place[k].kind == FIX_RIP4S;
		o->place[n].off = (u32)(p - piece) & 0xffffff;
		o->place[n].kind = f->place[k].kind;
		o->place[n++].cold = out;
	}
	o->tb = c->tb;
	o->hash = origin_hash(c->hva_page + (c->tb->rip & ~PAGE_MASK), c->tb->rip, c->key);
	o->here = c->bound;
	o->cold = cold;
	o->cold_len = cold_len;
	o->first_call = first_call;
	o->first_site = first_site;
	o->n_calls = (u16)(j->n_calls - first_call);
	o->n_sites = (u16)(j->n_sites - first_site);
	o->n_places = (u16)n;
	add_origin(j, o);
}

void copy_never(struct tb *tb)
{
	if (tb->origin)
		tb->origin->never = true;
}

/* ---- finding ---------------------------------------------------------------------------------------------------- */

static u32 get4(const u8 *p)
{
	u32 x;

	memcpy(&x, p, 4);
	return x;
}

static void put4(u8 *p, u32 x)
{
	memcpy(p, &x, 4);
}

/* An address in the form that the code has it in; false: it is none there. */
static bool fits(enum fix_kind kind, u32 is, u64 moved)
{
	if (kind == FIX_RIP4)
		return is + moved <= 0xffffffffu;
	if (kind == FIX_RIP4S)
		return is_s32((s64)((u64)(s64)(s32)is + moved));
	return true;
}

static bool all_fit(const struct jit *j, const struct origin *o, u64 moved)
{
	const u8 *hot = o->tb->code - j->e.delta;

	for (unsigned n = 0; o->low && n < o->n_places; n++) {
		const struct place *p = &o->place[n];

		if (!fits((enum fix_kind)p->kind, get4((p->cold ? o->cold : hot) + p->off), moved))
			return false;
	}
	return true;
}

/* What `rip` can be a copy of, among the blocks of `j`. */
static struct origin *find(const struct jit *j, u64 rip, const u8 *hva, u32 key)
{
	const u8 *page = hva - (rip & ~PAGE_MASK);
	u32 hash = origin_hash(hva, rip, key);
	struct origin *o;

	for (o = j->origins[hash & (ORIGIN_HASH - 1)]; o; o = o->next) {
		u64 moved = rip - o->tb->rip;

		if (o->hash == hash && o->tb->key == key && !(moved & ~PAGE_MASK) && !o->never &&
		    (!moved || (!o->here && is_inner(rip))) && page_has(page, o->tb) && all_fit(j, o, moved))
			break;
	}
	return o;
}

/* ---- making ----------------------------------------------------------------------------------------------------- */

/* A block's code, in the writable view: from where, to where. */
struct piece {
	const u8 *from;
	u8 *to;
	u32 len;
};

struct copy {
	struct jit *j;
	const struct jit *peer; /* whose block it is: j, or another vCPU's */
	const struct origin *o;
	struct tb *tb; /* the copy */
	u32 first_call, first_site;
	u64 moved; /* by how much RIP is another */
	u32 meta;  /* by how much meta_at() of what the block refers to is another */
	struct piece hot, cold;
};

static const u8 *to_copy(const struct copy *c, const u8 *p)
{
	if ((u64)(p - c->hot.from) < c->hot.len)
		return c->hot.to + (p - c->hot.from);
	if ((u64)(p - c->cold.from) < c->cold.len)
		return c->cold.to + (p - c->cold.from);
	/* A stub, or the jump cache: they lie at the same place for each vCPU. */
	return c->j->mem.rw + (p - c->peer->mem.rw);
}

static void copy_places(const struct copy *c)
{
	for (unsigned n = 0; n < c->o->n_places; n++) {
		const struct place *p = &c->o->place[n];
		const struct piece *piece = p->cold ? &c->cold : &c->hot;
		const u8 *from = piece->from + p->off;
		u8 *to = piece->to + p->off;
		u64 rip;

		switch ((enum fix_kind)p->kind) {
		case FIX_REL:
			put4(to, (u32)(to_copy(c, target_at(from)) - (to + 4)));
			break;
		case FIX_RIP4:
		case FIX_RIP4S:
			put4(to, get4(from) + (u32)c->moved);
			break;
		case FIX_RIP8:
			memcpy(&rip, from, 8);
			rip += c->moved;
			memcpy(to, &rip, 8);
			break;
		case FIX_CALL:
			put4(to, get4(from) + c->first_call - c->o->first_call);
			break;
		case FIX_RECIPE:
			put4(to, get4(from) + (c->meta >> 4 << 8));
			break;
		}
	}
}

static void copy_calls(const struct copy *c)
{
	struct jit *j = c->j;

	for (unsigned n = 0; n < c->o->n_calls; n++) {
		struct call *call = &j->calls[c->first_call + n];

		*call = c->peer->calls[c->o->first_call + n];
		call->tb = meta_at(j, c->tb);
		if (call->recipe)
			call->recipe += c->meta;
		if (call->kept)
			call->insn += c->meta;
		else
			call->splits = 0;
	}
}

/* They lead nowhere yet: as new_site() leaves them. */
static void copy_sites(const struct copy *c)
{
	struct jit *j = c->j;

	for (u32 n = 0; n < c->o->n_sites; n++) {
		const struct site *from = &c->peer->sites[c->o->first_site + n];
		struct site *s = &j->sites[c->first_site + n];
		/* Into one of the pieces. */
		u32 at = (u32)(to_copy(c, c->peer->mem.rw + from->at) - j->mem.rw),
		    stub = (u32)(to_copy(c, c->peer->mem.rw + from->unlinked) - j->mem.rw);
		u8 *rel = j->mem.rw + at;

		*s = (struct site){.rip = from->rip + c->moved,
		                   .key = from->key,
		                   .at = at,
		                   .unlinked = stub,
		                   .from = meta_at(j, c->tb),
		                   .poll = from->poll,
		                   .cross = from->cross};
		put4(j->mem.rw + stub + SITE_INDEX, c->first_site + n);
		patch_rel(rel, j->e.delta, j->mem.rx + stub);
		if (s->cross)
			patch_rel(rel - SITE_CELL, j->e.delta, (const u8 *)&j->front->cell[0]);
	}
}

/* Room for the code, the calls and the sites of a copy. */
static void take_room(struct copy *c)
{
	const struct origin *o = c->o;
	struct jit *j = c->j;

	c->first_call = j->n_calls;
	c->first_site = j->n_sites;
	c->hot.to = j->e.p;
	c->cold.to = j->cold.p;
	j->e.p += o->tb->code_len;
	while ((uintptr_t)j->e.p & 15)
		e1(&j->e, 0xcc);
	j->cold.p += o->cold_len;
	j->n_calls += o->n_calls;
	j->n_sites += o->n_sites;
	j->n.code_bytes += o->tb->code_len + o->cold_len;
}

/* The copy, whose struct tb is that of the origin and has room; by the time it is called for, what the block refers to
 * is where `meta` says. */
static void fill(struct copy *c, u64 rip, const u8 *hva)
{
	const struct tb *from = c->o->tb;
	struct tb *tb = c->tb;
	struct jit *j = c->j;

	c->moved = rip - from->rip;
	c->hot.from = from->code - c->peer->e.delta;
	c->hot.len = from->code_len;
	c->cold.from = c->o->cold;
	c->cold.len = c->o->cold_len;
	memcpy(c->hot.to, c->hot.from, c->hot.len);
	memcpy(c->cold.to, c->cold.from, c->cold.len);
	tb->rip = rip;
	tb->hva = hva;
	tb->dead = true; /* until it is of its page: reading that may fail */
	tb->checks = 0;
	tb->links = 0;
	memset(tb->guard, 0, sizeof(tb->guard));
	tb->code = c->hot.to + j->e.delta;
	tb->code_nopoll = tb->code + (from->code_nopoll - from->code);
	copy_places(c);
	copy_calls(c);
	copy_sites(c);
	if (unlikely(j->perf))
		see_copy(tb, c->cold.to + j->e.delta, c->cold.len);
}

/* ---- at another RIP --------------------------------------------------------------------------------------------- */

/* Copies of a block that may be, whoever uses them. */
#define COPIES_FEW 8u
/* Generations after which a copy that is one of many is taken to be of a program that has ended: a fraction of a second
 * of epochs. If it has not, it gets another one. */
#define STALE_GENS 512u

/* The generation in which the copy's page was entered last. */
static u32 last_entered(const struct jit *j, const struct tb *tb)
{
	u32 a = j->front->cell[tb->guard[0]], b = j->front->cell[tb->guard[1]];

	return a > b ? a : b;
}

static bool is_stale(struct jit *j, const struct origin *o, const struct tb *tb)
{
	if (tb->dead || (unlikely(j->chaos.on) && chaos_rnd(j, 2)))
		return true;
	return o->n_copies >= COPIES_FEW && last_entered(j, tb) + STALE_GENS < j->last_gen;
}

/* A copy whose memory can be that of another one: out of all lists, dead; NULL: there is none. */
static struct tb_copy *take_back(struct jit *j, struct origin *o)
{
	struct tb_copy *t = NULL;

	/* Mostly the one whose turn it is. */
	for (unsigned looks = 0; looks < 2 && o->first; looks++) {
		t = o->first;
		*o->last = t;
		o->last = &t->next;
		o->first = t->next;
		t->next = NULL;
		if (is_stale(j, o, &t->tb))
			break;
		t = NULL;
	}
	if (!t)
		return NULL;
	if (!t->tb.dead)
		page_take_back(j, &t->tb);
	for (u32 k = 0; k < o->n_sites; k++)
		tb_unlink_site(j, &j->sites[t->first_site + k]);
	j->n.retaken++;
	return t;
}

static struct tb *copy_own(struct jit *j, struct origin *o, u64 rip, const u8 *hva)
{
	struct copy c = {.j = j, .peer = j, .o = o};
	struct tb_copy *t = take_back(j, o);

	if (t) {
		c.first_call = t->first_call;
		c.first_site = t->first_site;
		c.hot.to = t->hot;
		c.cold.to = t->cold;
	} else {
		code_ahead(j);
		t = meta_alloc(j, sizeof(*t));
		take_room(&c);
		*t = (struct tb_copy){
		        .hot = c.hot.to, .cold = c.cold.to, .first_call = c.first_call, .first_site = c.first_site};
		*o->last = t;
		o->last = &t->next;
		o->n_copies++;
	}
	c.tb = &t->tb;
	t->tb = *o->tb;
	fill(&c, rip, hva);
	j->n.copied++;
	return c.tb;
}

/* ---- from another vCPU ------------------------------------------------------------------------------------------ */

/* With the lock. */
static struct tb *import(struct jit *j, const struct jit *peer, const struct origin *o, u64 rip, const u8 *hva)
{
	const u8 *from = (const u8 *)o->tb, *end = (const u8 *)&o->place[o->n_places];
	struct copy c = {.j = j, .peer = peer, .o = o};
	struct origin *mine;
	u8 *to;

	to = meta_alloc(j, (size_t)(end - from));
	memcpy(to, from, (size_t)(end - from));
	c.tb = (struct tb *)(void *)to;
	c.meta = meta_at(j, to) - meta_at(peer, from);
	c.tb->range = (struct range *)(void *)(to + ((const u8 *)o->tb->range - from));
	c.tb->bytes = to + (o->tb->bytes - from);
	take_room(&c);
	fill(&c, rip, hva);
	mine = (struct origin *)(void *)(to + ((const u8 *)o - from));
	mine->tb = c.tb;
	mine->cold = c.cold.to;
	mine->first_call = c.first_call;
	mine->first_site = c.first_site;
	c.tb->origin = mine;
	j->n.imported++;
	return c.tb;
}

/* Whom to ask at most. */
#define PEERS_MOST 8

/* Has this vCPU seen groups of the block lie over two pages? Then it must have code for that. */
static bool has_straddling(const struct jpage *page, const struct tb *tb)
{
	unsigned first = tb->range[0].off / 16, last = (tb->range[0].off + tb->range[0].len - 1u) / 16;

	for (unsigned n = first; n <= last; n++)
		if (page->straddling[n / 64] >> n % 64 & 1)
			return true;
	return false;
}

static struct tb *import_any(struct jit *j, u64 rip, const u8 *hva, u32 key, const struct jpage *page)
{
	unsigned off = (unsigned)(rip & ~PAGE_MASK), n = 0;
	struct tb *tb = NULL;
	u8 copy[PAGE_SIZE];

	if (!has_peers(j) || (key >> KEY_CS_SHIFT) || j->lockstep)
		return NULL;
	/* The client may take the memory away: that must not happen to us with the lock. */
	memcpy(copy, hva - off, sizeof(copy));
	code_ahead(j);
	smc_lock();
	for (struct jit *p = smc_peer(j, NULL); p && !tb && n < PEERS_MOST; p = smc_peer(j, p), n++) {
		const struct origin *o = p->stubs == j->stubs ? find(p, rip, copy + off, key) : NULL;

		if (o && !has_straddling(page, o->tb))
			tb = import(j, p, o, rip, hva);
	}
	smc_unlock();
	if (tb)
		add_origin(j, tb->origin);
	return tb;
}

struct tb *copy_make(struct jit *j, u64 rip, const u8 *hva, u32 key, struct jpage *page)
{
	struct origin *o = find(j, rip, hva, key);
	struct tb *tb = NULL;

	if (o && unlikely(j->chaos.on) && chaos_rnd(j, 3) == 0) {
		/* As if it were another vCPU's. */
		tb = import(j, j, o, rip, hva);
		add_origin(j, tb->origin);
	} else if (o) {
		tb = copy_own(j, o, rip, hva);
	} else {
		tb = import_any(j, rip, hva, key, page);
	}
	if (tb) {
		page_add(j, page, tb);
		tb->dead = false;
	}
	return tb;
}
