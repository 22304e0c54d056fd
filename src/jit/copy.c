/*
 * copy.c: blocks at another RIP, or on another page, made by copying instead of by translating again.
 *
 * Programs begin at other random addresses each time they are started, and RIP is a constant in a block. But little of
 * a block hangs on it: while a block of user code is emitted, the places are noted that do (struct fixes), and those
 * that hang on where its code lies. With them a copy is made for any other RIP with the same offset in its page, from
 * any page that holds the same bytes; a copy costs a small part of a translation.
 *
 * Programs end, and nobody says so: from a few copies on, a new one takes the place of the one whose page was not
 * entered for the longest time (take_back()), so that starting programs fills no memory.
 *
 * Only translated blocks are copied (struct origin), not copies. It does not matter whether the origin is alive: its
 * code and all that it refers to (recipes, decoded instructions, the bytes it was made of) stay until a flush, and the
 * bytes are compared before each copy. What changes in the code of a block behind its translation is where its sites
 * lead, and a copy's begin unlinked.
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

struct origin {
	const struct tb *tb;
	struct origin *next;
	struct tb_copy *first, **last; /* its copies, by turns */
	u32 hash;
	const u8 *cold; /* what is out of line, writable view */
	u32 cold_len;
	u32 first_call, first_site;
	u16 n_calls, n_sites, n_places, n_copies;
	bool low;   /* some addresses have 32 bits only */
	bool never; /* of no use */
	struct place place[];
};

/* What blocks are found by: the first bytes must be there. */
#define FIRST 8u

static bool has_first(u64 rip)
{
	return (rip & ~PAGE_MASK) <= PAGE_SIZE - FIRST;
}

static u32 origin_hash(const u8 *bytes, u64 rip, u32 key)
{
	u64 first;

	memcpy(&first, bytes, FIRST);
	first = (first ^ (rip & ~PAGE_MASK) << 20 ^ key) * 0x9e3779b97f4a7c15ull;
	return (u32)(first >> 32);
}

/* Is every address that code there may name canonical? Where not, branches are translated otherwise. */
static bool is_inner(u64 rip)
{
	return is_canonical(rip + BIT(32)) && is_canonical(rip - BIT(32));
}

void copy_note(struct trans *c, u64 rip)
{
	struct jit *j = c->j;
	bool user = (c->key & KEY_64) && (c->key & KEY_USER || j->chaos.on);

	c->fixes.n = 0;
	c->e.fixes = j->cold.fixes = user && !c->tb->beyond && has_first(rip) && is_inner(rip) ? &c->fixes : NULL;
}

/* Where the displacement at `at` leads to, in the writable view. */
static const u8 *target_at(const u8 *at)
{
	s32 rel;

	memcpy(&rel, at, 4);
	return at + 4 + rel;
}

void copy_origin(const struct trans *c, const u8 *cold, u32 first_call, u32 first_site)
{
	struct jit *j = c->j;
	const struct fixes *f = c->e.fixes;
	const u8 *hot = c->tb->code - j->e.delta;
	u32 cold_len = (u32)(j->cold.p - cold);
	struct origin *o, **at;
	unsigned n = 0;

	j->e.fixes = j->cold.fixes = NULL;
	if (!f || f->n > FIXES_MAX || c->bound)
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
	o->last = &o->first;
	o->cold = cold;
	o->cold_len = cold_len;
	o->first_call = first_call;
	o->first_site = first_site;
	o->n_calls = (u16)(j->n_calls - first_call);
	o->n_sites = (u16)(j->n_sites - first_site);
	o->n_places = (u16)n;
	c->tb->origin = o;
	o->hash = origin_hash(c->hva_page + (c->tb->rip & ~PAGE_MASK), c->tb->rip, c->key);
	at = &j->origins[o->hash & (ORIGIN_HASH - 1)];
	o->next = *at;
	*at = o;
}

void copy_never(struct tb *tb)
{
	if (tb->origin)
		tb->origin->never = true;
}

/* A block's code, in the writable view: from where, to where. */
struct piece {
	const u8 *from;
	u8 *to;
	u32 len;
};

struct copy {
	struct jit *j;
	const struct origin *o;
	struct tb_copy *t;
	u64 moved; /* by how much RIP is another */
	struct piece hot, cold;
};

static u8 *to_copy(const struct copy *c, const u8 *p)
{
	if ((u64)(p - c->hot.from) < c->hot.len)
		return c->hot.to + (p - c->hot.from);
	if ((u64)(p - c->cold.from) < c->cold.len)
		return c->cold.to + (p - c->cold.from);
	return (u8 *)(uintptr_t)p; /* a stub */
}

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

static bool all_fit(const struct origin *o, s64 delta, u64 moved)
{
	const u8 *hot = o->tb->code - delta;

	for (unsigned n = 0; o->low && n < o->n_places; n++) {
		const struct place *p = &o->place[n];

		if (!fits((enum fix_kind)p->kind, get4((p->cold ? o->cold : hot) + p->off), moved))
			return false;
	}
	return true;
}

static struct origin *find(const struct jit *j, u64 rip, const u8 *hva, u32 key)
{
	const u8 *page = hva - (rip & ~PAGE_MASK);
	u32 hash = origin_hash(hva, rip, key);
	struct origin *o;

	for (o = j->origins[hash & (ORIGIN_HASH - 1)]; o; o = o->next)
		if (o->hash == hash && o->tb->key == key && ((o->tb->rip ^ rip) & ~PAGE_MASK) == 0 && !o->never &&
		    page_has(page, o->tb) && all_fit(o, j->e.delta, rip - o->tb->rip))
			break;
	return o;
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
			put4(to, get4(from) + c->t->first_call - c->o->first_call);
			break;
		}
	}
}

static void copy_calls(const struct copy *c)
{
	struct jit *j = c->j;

	for (unsigned n = 0; n < c->o->n_calls; n++) {
		struct call *call = &j->calls[c->t->first_call + n];

		*call = j->calls[c->o->first_call + n];
		call->tb = meta_at(j, &c->t->tb);
		if (!call->kept)
			call->splits = 0;
	}
}

/* They lead nowhere yet: as new_site() leaves them. */
static void copy_sites(const struct copy *c)
{
	struct jit *j = c->j;

	for (u32 n = 0; n < c->o->n_sites; n++) {
		const struct site *from = &j->sites[c->o->first_site + n];
		struct site *s = &j->sites[c->t->first_site + n];
		u8 *at = to_copy(c, j->mem.rw + from->at), *stub = to_copy(c, j->mem.rw + from->unlinked);

		*s = *from;
		s->rip += c->moved;
		s->at = (u32)(at - j->mem.rw);
		s->unlinked = (u32)(stub - j->mem.rw);
		s->from = meta_at(j, &c->t->tb);
		s->to = s->prev = s->next = 0;
		s->linked = false;
		put4(stub + SITE_INDEX, c->t->first_site + n);
		patch_rel(at, j->e.delta, stub + j->e.delta);
		if (s->cross)
			patch_rel(at - SITE_CELL, j->e.delta, (const u8 *)&j->front->cell[0]);
	}
}

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

/* Memory for a copy: of calls, sites and both kinds of code. */
static struct tb_copy *new_copy(struct jit *j, struct origin *o)
{
	struct tb_copy *t;

	code_ahead(j);
	t = meta_alloc(j, sizeof(*t));
	t->hot = j->e.p;
	t->cold = j->cold.p;
	t->first_call = j->n_calls;
	t->first_site = j->n_sites;
	t->next = NULL;
	*o->last = t;
	o->last = &t->next;
	o->n_copies++;
	j->e.p += o->tb->code_len;
	while ((uintptr_t)j->e.p & 15)
		e1(&j->e, 0xcc);
	j->cold.p += o->cold_len;
	j->n_calls += o->n_calls;
	j->n_sites += o->n_sites;
	j->n.code_bytes += o->tb->code_len + o->cold_len;
	return t;
}

struct tb *copy_make(struct jit *j, u64 rip, const u8 *hva, u32 key, struct jpage *page)
{
	struct copy c = {.j = j};
	const struct tb *from;
	struct origin *o;
	struct tb *tb;

	if (!(key & KEY_64) || !has_first(rip) || !is_inner(rip) || !(o = find(j, rip, hva, key)))
		return NULL;
	from = o->tb;
	c.o = o;
	c.t = take_back(j, o);
	if (!c.t)
		c.t = new_copy(j, o);
	tb = &c.t->tb;
	c.moved = rip - from->rip;
	c.hot = (struct piece){from->code - j->e.delta, c.t->hot, from->code_len};
	c.cold = (struct piece){o->cold, c.t->cold, o->cold_len};
	memcpy(c.hot.to, c.hot.from, c.hot.len);
	memcpy(c.cold.to, c.cold.from, c.cold.len);
	*tb = *from;
	tb->rip = rip;
	tb->hva = hva;
	tb->dead = false;
	tb->checks = 0;
	tb->links = 0;
	memset(tb->guard, 0, sizeof(tb->guard));
	tb->code = c.hot.to + j->e.delta;
	tb->code_nopoll = tb->code + (from->code_nopoll - from->code);
	copy_places(&c);
	copy_calls(&c);
	copy_sites(&c);
	j->n.copied++;
	if (unlikely(j->perf))
		see_copy(tb, c.cold.to + j->e.delta, c.cold.len);
	page_add(j, page, tb);
	return tb;
}
