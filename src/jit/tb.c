/*
 * tb.c: finding, linking and forgetting blocks.
 */
#include "jit_impl.h"

void *meta_alloc(struct jit *j, size_t size)
{
	void *p = j->meta + j->meta_used;

	j->meta_used += (size + 15) & ~(size_t)15;
	return p;
}

struct tb *tb_lookup(const struct jit *j, u64 rip, const u8 *hva, u32 key)
{
	struct tb *tb;

	for (tb = j->hash[tb_hash(rip, key)]; tb; tb = tb->next)
		if (tb->rip == rip && tb->hva == hva && tb->key == key)
			break;
	return tb;
}

/* A block of the same address and key on another page that may come here: NULL if there is none. */
static struct tb *adopt(struct jit *j, u64 rip, u32 key, struct jpage *page)
{
	struct tb *tb, *next;

	for (tb = j->hash[tb_hash(rip, key)]; tb; tb = next) {
		next = tb->next;
		if (tb->rip == rip && tb->key == key) {
			tb = page_adopt(j, page, tb);
			if (tb)
				return tb;
		}
	}
	return NULL;
}

static struct guard **guard_bucket(const struct jit *j, u64 page, u32 key, bool local)
{
	return &j->guard_hash[(page >> PAGE_SHIFT ^ key << 4 ^ (u32)local) & (GUARD_HASH - 1)];
}

static u32 guard_get(struct jit *j, u64 rip, const u8 *hva, u32 key, bool local)
{
	struct guard **at = guard_bucket(j, rip, key, local), *g;

	for (g = *at; g; g = g->next)
		if (g->page == rip && g->hva == hva && g->key == key && g->local == local) {
			g->users++;
			return (u32)(g - j->guards);
		}
	g = j->guard_spare;
	if (g)
		j->guard_spare = g->next;
	else
		g = &j->guards[j->n_guards++];
	*g = (struct guard){.page = rip, .hva = hva, .key = key, .local = local, .users = 1, .next = *at};
	*at = g;
	return (u32)(g - j->guards);
}

/* What compares with the cell of a guard that nobody has any more led to blocks that are dead: nowhere. */
static void guard_put(struct jit *j, u32 n)
{
	struct guard *g = &j->guards[n], **at = guard_bucket(j, g->page, g->key, g->local);

	if (!n || --g->users)
		return;
	while (*at != g)
		at = &(*at)->next;
	*at = g->next;
	j->front->cell[n] = 0;
	g->next = j->guard_spare;
	j->guard_spare = g;
}

void tb_entered(struct vcpu *v, struct tb *tb, const struct jpage *page)
{
	/* Without global pages every flush is one of all, or gen[0] goes with the address space. */
	bool local = (tb->key & KEY_USER) ||
	             (v->mmu.pge && (!tlb_exec_global(&v->mmu, tb->rip, v->cpl == 3 ? TLB_USER : TLB_SUPER) ||
	                             (v->mmu.paging == PAGING_64 && !(tb->rip >> 63))));
	struct jit *j = v->jit;
	struct jc_entry *jc;
	u32 *cell;

	if (unlikely(!tb->guard[local]))
		tb->guard[local] = guard_get(j, tb->rip & PAGE_MASK, page->hva, tb->key, local);
	cell = &j->front->cell[tb->guard[local]];
	*cell = v->jt.gen[local];
	j->local = local;
	/* The jump cache of supervisor code compares with the generation of global pages. */
	if (local != !!(tb->key & KEY_USER))
		return;
	jc = jc_of(j, tb->rip);
	jc->tag = tb->rip ^ v->jt.key;
	jc->code = tb->code_nopoll;
	jc->cell = cell;
	jc->tb = meta_at(j, tb);
}

/*
 * The block at v's RIP, entered into the jump cache; its page's guard holds. STEP_EXCP or STEP_EXIT from the fetch. The
 * jump cache is good while nothing of invariant 3 changes, and that is what the caller checked last.
 */
int tb_find(struct vcpu *v, u32 key, struct tb **out)
{
	struct jit *j = v->jit;
	u64 rip = v->r[R_RIP];
	struct jpage *page;
	struct tb *tb;
	const u8 *p;
	int rc;

	if (key & KEY_64) {
		if (unlikely(!is_canonical(rip)))
			return excp_raise_err(v, EXC_GP, 0);
	} else {
		rip = v->r[R_RIP] = (u32)rip;
		if (unlikely(rip > v->seg[SEG_CS].limit)) {
			*out = NULL;
			return STEP_OK;
		}
		rip = (u32)(v->seg[SEG_CS].base + rip);
	}
	rc = interp_fetch(v, rip, &p);
	if (unlikely(rc != STEP_OK))
		return rc;
	page = page_get(j, p - (rip & ~PAGE_MASK));
	if (unlikely(!page)) {
		*out = NULL;
		return STEP_OK;
	}
	if (unlikely(page->epoch != j->epoch))
		page_validate(j, page);
	if (unlikely(j->chaos.on) && chaos_rnd(j, 32) == 0)
		page_leave(j, page);
	tb = tb_lookup(j, rip, p, key);
	if (unlikely(!tb))
		tb = adopt(j, rip, key, page);
	if (unlikely(!tb)) {
		tb = copy_make(j, rip, p, key, page);
		if (!tb)
			tb = translate(j, rip, p, key, page);
		if (!tb) {
			*out = NULL;
			return STEP_OK;
		}
		tb->next = j->hash[tb_hash(rip, key)];
		j->hash[tb_hash(rip, key)] = tb;
	}
	tb_entered(v, tb, page);
	*out = tb;
	return STEP_OK;
}

/* Takes a linked site out of its target's list. */
void tb_unlink_site(struct jit *j, struct site *s)
{
	if (!s->linked)
		return;
	s->linked = false;
	if (s->prev)
		j->sites[s->prev - 1].next = s->next;
	else
		((struct tb *)meta_ptr(j, s->to))->links = s->next;
	if (s->next)
		j->sites[s->next - 1].prev = s->prev;
}

void tb_link(struct jit *j, u32 n, struct tb *to)
{
	struct site *s = &j->sites[n];
	const struct tb *from = meta_ptr(j, s->from);
	u8 *at = j->mem.rw + s->at;

	if (from->dead || s->rip != to->rip || s->key != to->key)
		return;
	if (unlikely(j->chaos.on) && chaos_rnd(j, 4) == 0)
		return;
	if (s->cross) {
		u32 gen = (u32)offsetof(struct vcpu, jt.gen[0]) + 4 * j->local, is;

		memcpy(&is, at - SITE_GEN, 4);
		if (is != gen)
			memcpy(at - SITE_GEN, &gen, 4);
		patch_rel(at - SITE_CELL, j->e.delta, (const u8 *)&j->front->cell[to->guard[j->local]]);
	} else if ((u64)(uintptr_t)to->hva - to->rip != (u64)(uintptr_t)from->hva - from->rip) {
		return;
	}
	patch_rel(at, j->e.delta, s->poll ? to->code : to->code_nopoll);
	/* A guarded site may move to another block of the same address. */
	if (s->linked && s->to == meta_at(j, to))
		return;
	tb_unlink_site(j, s);
	s->linked = true;
	s->to = meta_at(j, to);
	s->prev = 0;
	s->next = to->links;
	if (s->next)
		j->sites[s->next - 1].prev = n + 1;
	to->links = n + 1;
	j->n.links++;
}

/* Nothing leads to it any more (invariant 4); the caller takes it off its page. */
void tb_kill(struct jit *j, struct tb *tb)
{
	struct jc_entry *jc = jc_of(j, tb->rip);
	struct tb **p;

	for (p = &j->hash[tb_hash(tb->rip, tb->key)]; *p; p = &(*p)->next)
		if (*p == tb) {
			*p = tb->next;
			break;
		}
	for (u32 n = tb->links; n;) {
		struct site *s = &j->sites[n - 1];

		patch_rel(j->mem.rw + s->at, j->e.delta, j->mem.rx + s->unlinked);
		s->linked = false;
		n = s->next;
	}
	tb->links = 0;
	if (jc->code == tb->code_nopoll)
		jc->tag = 0;
	for (unsigned n = 0; n < ARRAY_SIZE(tb->guard); n++) {
		guard_put(j, tb->guard[n]);
		tb->guard[n] = 0;
	}
	tb->dead = true;
	j->n.invalidated++;
}

/* Cells hold generations of the past, or 0. */
void tb_new_gen(struct jit *j)
{
	j->all_gen = ++j->last_gen;
	j->n.gens++;
	tb_new_gen_local(j);
}

/* A generation that comes back with its address space, unless there was a new one of all pages meanwhile. */
static u32 gen_of_space(struct jit *j)
{
	u64 serial = j->v->mmu.flushes_local;
	u32 n;

	for (n = 0; n < ARRAY_SIZE(j->gens); n++)
		if (j->gens[n].serial == serial && j->gens[n].all == j->all_gen)
			return j->gens[n].gen;
	n = j->gens_next++ % ARRAY_SIZE(j->gens);
	j->gens[n].serial = serial;
	j->gens[n].all = j->all_gen;
	j->gens[n].gen = ++j->last_gen;
	j->n.gens_local++;
	return j->last_gen;
}

void tb_new_gen_local(struct jit *j)
{
	u32 *gen = j->v->jt.gen;

	gen[1] = gen_of_space(j);
	/* Without global pages supervisor code is of an address space too; in the jump cache it has gen[0] all the
	 * same. */
	gen[0] = mem_spaces_apart(&j->v->mmu) ? gen[1] : j->all_gen;
}

void tb_flush(struct jit *j)
{
	/* The pages stay watched: another vCPU may hold code of them. A store to one that nobody knows ends that. */
	if (j->n.flushes) {
		memset(j->pages, 0, PAGE_HASH * sizeof(*j->pages));
		memset(j->front->jc, 0, sizeof(j->front->jc));
		memset(j->hash, 0, HASH_SIZE * sizeof(*j->hash));
		smc_lock();
		memset(j->origins, 0, ORIGIN_HASH * sizeof(*j->origins));
		smc_unlock();
		memset(j->guard_hash, 0, GUARD_HASH * sizeof(*j->guard_hash));
		memset(j->cs_hash, 0, 2 * CS_MAX * sizeof(*j->cs_hash));
		for (unsigned n = 0; n < DECODED; n++)
			j->decoded[n].call = 0;
	}
	memset(j->front->cell, 0, j->n_guards * sizeof(*j->front->cell));
	j->meta_used = 16; /* 0 is no address */
	j->spare = NULL;
	j->guard_spare = NULL;
	j->n_calls = j->n_sites = j->link = 0;
	j->cs[0] = (struct code_seg){0, 0xffffffffu};
	j->n_cs = 1;
	j->n_guards = 1; /* guard 0 never holds */
	j->e.p = j->code_start;
	j->cold.p = j->cold_start;
	memset(j->gens, 0, sizeof(j->gens));
	j->all_gen = j->last_gen = 0;
	tb_new_gen(j);
	j->need_flush = false;
	j->n.flushes++;
}
