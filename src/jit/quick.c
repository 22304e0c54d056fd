/*
 * quick.c: the dispatcher's short way: to a block that exists, in a page whose bytes are as they were, while nothing
 * else has changed. Translated code calls it with the guest's registers where they are and keeps its host stack, so
 * nothing here may kill a block, touch a vector register (the Makefile sees to that) or raise an exception: whatever is
 * not plain goes the long way (helper.c).
 */
#include "../base/bug.h"
#include "../base/usercopy.h"
#include "jit_impl.h"

/*
 * The code at the linear address `rip`, entered into the jump cache; NULL: go the long way. `tb` is where the last look
 * led to, which it mostly does again: then neither the page nor the block has to be searched.
 */
static const u8 *find(struct vcpu *v, u64 rip, struct tb *tb, struct tb **out)
{
	struct jit *j = v->jit;
	u32 key = jit_key_of(v->jt.key);
	enum tlb_ctx ctx = key & KEY_USER ? TLB_USER : TLB_SUPER;
	struct jpage *page;
	const u8 *p;

	if (unlikely(!jit_undisturbed(v, j) || j->lockstep || j->chaos.on || j->need_flush || !guards_left(j) ||
	             atomic_load_explicit(&j->again, memory_order_relaxed) ||
	             atomic_load_explicit(&j->foreign, memory_order_relaxed)))
		return NULL;
	p = tlb_lookup(&v->mmu.tlb[ctx][TLB_EXEC], rip, 1);
	if (unlikely(!p) && !(p = mem_fill_exec(&v->mmu, rip, ctx)))
		return NULL;
	if (likely(tb && tb->hva == p && tb->rip == rip && tb->key == key && !tb->dead)) {
		page = meta_ptr(j, tb->page);
		if (unlikely(!page->watched))
			return NULL;
	} else {
		page = page_find(j, p - (rip & ~PAGE_MASK));
		if (unlikely(!page || !page->watched))
			return NULL;
		tb = tb_lookup(j, rip, p, key);
		if (unlikely(!tb))
			return NULL;
	}
	/* A fault here would find the guest's registers in the host's: the client may have taken the memory away. */
	if (page->epoch != j->epoch && unlikely(!user_reachable(page->hva, false) || !page_unchanged(j, page)))
		return NULL;
	tb_entered(v, tb, page);
	j->n.quick++;
	*out = tb;
	return tb->code_nopoll;
}

const u8 *jit_quick_lookup(struct vcpu *v, u64 rip)
{
	const struct jit *j = v->jit;
	const struct jc_entry *jc = jc_of(j, rip);
	struct tb *tb;

	return find(v, rip, jc->tag == (rip ^ v->jt.key) && jc->tag ? meta_ptr(j, jc->tb) : NULL, &tb);
}

const u8 *jit_quick_link(struct vcpu *v, u32 site)
{
	struct jit *j = v->jit;
	const struct site *s = &j->sites[site];
	struct tb *tb;
	const u8 *code = find(v, s->rip, s->linked ? meta_ptr(j, s->to) : NULL, &tb);

	if (code)
		tb_link(j, site, tb);
	return code;
}
