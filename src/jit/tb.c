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

static unsigned hash_of(u64 rip, u32 key)
{
	return (unsigned)((rip ^ rip >> 15 ^ key << 3) & (HASH_SIZE - 1));
}

static struct tb *lookup(const struct jit *j, u64 rip, const u8 *hva, u32 key)
{
	struct tb *tb;

	for (tb = j->hash[hash_of(rip, key)]; tb; tb = tb->next)
		if (tb->rip == rip && tb->hva == hva && tb->key == key)
			break;
	return tb;
}

/*
 * The block at v's RIP, entered into the jump cache and the page guards. STEP_EXCP or STEP_EXIT from the fetch. The
 * jump cache is good while nothing of invariant 3 changes, and that is what the caller checked last.
 */
int tb_find(struct vcpu *v, u32 key, struct tb **out)
{
	struct jit *j = v->jit;
	u64 rip = v->r[R_RIP];
	struct jp_entry *jp;
	struct jc_entry *jc;
	struct jpage *page;
	struct tb *tb;
	const u8 *p;
	int rc;

	if (key & KEY_64) {
		if (unlikely(!is_canonical(rip)))
			return excp_raise_err(v, EXC_GP, 0);
	} else {
		rip = v->r[R_RIP] = (u32)rip;
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
	tb = lookup(j, rip, p, key);
	if (unlikely(!tb)) {
		tb = translate(j, rip, p, key, page);
		if (!tb) {
			*out = NULL;
			return STEP_OK;
		}
		tb->next = j->hash[hash_of(rip, key)];
		j->hash[hash_of(rip, key)] = tb;
	}
	*out = tb;
	/* What a flush of user pages alone would not take back stays out of the caches. */
	if (!(key & KEY_USER) && v->mmu.pge &&
	    (!tlb_exec_global(&v->mmu, rip, v->cpl == 3 ? TLB_USER : TLB_SUPER) ||
	     (v->mmu.paging == PAGING_64 && !(rip >> 63))))
		return STEP_OK;
	jc = &j->front->jc[(rip ^ rip >> PAGE_SHIFT) & (JC_SIZE - 1)];
	jc->tag = rip ^ v->jt.key;
	jc->code = tb->code_nopoll;
	jp = jp_of(j->front, rip, key);
	jp->tag = jp_tag(rip, key);
	jp->hva = (u64)(uintptr_t)page->hva;
	return STEP_OK;
}

void tb_link(struct jit *j, u32 n, struct tb *to)
{
	struct site *s = &j->sites[n];

	if (s->from->dead || s->rip != to->rip || s->from->key != to->key)
		return;
	if (unlikely(j->chaos.on) && chaos_rnd(j, 4) == 0)
		return;
	if (s->add) {
		u64 hva = (u64)(uintptr_t)to->hva - (to->rip & ~PAGE_MASK);

		memcpy(s->add, &hva, 8);
	} else if ((u64)(uintptr_t)to->hva - to->rip != (u64)(uintptr_t)s->from->hva - s->from->rip) {
		return;
	}
	patch_rel(s->at, j->e.delta, s->poll ? to->code : to->code_nopoll);
	/* A guarded site may move to another block of the same address: it then stands in both lists, which is
	 * harmless. */
	if (s->linked)
		return;
	s->linked = true;
	s->next = to->links;
	to->links = n + 1;
	j->n.links++;
}

/* Nothing leads to it any more (invariant 4); the caller takes it off its page. */
void tb_kill(struct jit *j, struct tb *tb)
{
	struct tb **p;

	for (p = &j->hash[hash_of(tb->rip, tb->key)]; *p; p = &(*p)->next)
		if (*p == tb) {
			*p = tb->next;
			break;
		}
	for (u32 n = tb->links; n;) {
		struct site *s = &j->sites[n - 1];

		patch_rel(s->at, j->e.delta, s->unlinked);
		s->linked = false;
		n = s->next;
	}
	tb->links = 0;
	tb->dead = true;
	j->n.invalidated++;
}

void tb_new_gen(struct jit *j)
{
	/* Tags differ in bits 48-62 by key and generation, never in all of bits 48-63: two addresses cannot collide. */
	j->gen[0] = (j->gen[0] + 1) & 0x7f;
	if (j->gen[0] == 0)
		memset(j->front->jc, 0xff, sizeof(j->front->jc));
	memset(j->front->jp[0], 0xff, sizeof(j->front->jp[0]));
	j->n.gens++;
	tb_new_gen_local(j);
}

void tb_new_gen_local(struct jit *j)
{
	j->n.gens_local++;
	j->gen[1] = (j->gen[1] + 1) & 0x7f;
	if (j->gen[1] == 0)
		memset(j->front->jc, 0xff, sizeof(j->front->jc));
	memset(j->front->jp[1], 0xff, sizeof(j->front->jp[1]));
}

void tb_flush(struct jit *j)
{
	/* The pages stay watched: another vCPU may hold code of them. A store to one that nobody knows ends that. */
	memset(j->pages, 0, PAGE_HASH * sizeof(*j->pages));
	memset(j->hash, 0, HASH_SIZE * sizeof(*j->hash));
	j->meta_used = 0;
	j->n_calls = j->n_sites = 0;
	j->e.p = j->code_start;
	memset(j->front->jc, 0xff, sizeof(j->front->jc));
	tb_new_gen(j);
	j->need_flush = false;
	j->n.flushes++;
}
