/*
 * smc.c: pages that hold translated code, and what happens when somebody writes them.
 *
 * Stores of guests are seen exactly: such a page has no write TLB entry, so every store comes through
 * jit_code_written(). Writes of the client and the host's kernel are found by comparing bytes when the page is first
 * entered in a new epoch (interp_epoch(): KVM_RUN entered, interrupt delivered, memory slots changed).
 *
 * Another vCPU's store is announced before it is done, and may be under way, or go through a write TLB entry that is
 * still there, while this one translates the page. So whoever stored, or was told of a new page of code, makes the
 * others look a second time when it comes to its dispatcher and nothing is under way any more (smc_again()).
 *
 * Who holds code of a page is written down (memslot.holders, a bit a vCPU): a page that nobody holds any more is plain
 * data again. Memory that programs were in is used again for other things all the time; so a vCPU whose page others
 * write gives it up when nothing of it is left, or after a few stores, and also hears of them asleep.
 *
 * Programs come back in other memory: a guest whose files lie on virtio-fs reads them anew each time one is started. So
 * the blocks of a page that is given up as a whole are put away, at an address that no page has, and the blocks that a
 * page seems to lack are looked for there, and on pages whose bytes are others by now (page_adopt()).
 */
#include <pthread.h>
#include <stdlib.h>

#include "../base/usercopy.h"
#include "jit_impl.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* protects: the list, foreign_list[] of every translator */
static struct jit *all;

void smc_register(struct jit *j)
{
	struct jit **o;

	pthread_mutex_lock(&lock);
	for (o = &all; *o; o = &(*o)->next_jit)
		if ((*o)->v->mmu.vm == j->v->mmu.vm) {
			atomic_fetch_add(&(*o)->others, 1u);
			atomic_fetch_add(&j->others, 1u);
		}
	/* At the end: the boot processor, which knows most, is asked first (copy.c). */
	j->next_jit = NULL;
	*o = j;
	pthread_mutex_unlock(&lock);
}

void smc_unregister(struct jit *j)
{
	struct jit **p;

	pthread_mutex_lock(&lock);
	for (p = &all; *p; p = &(*p)->next_jit)
		if (*p == j) {
			*p = j->next_jit;
			break;
		}
	for (struct jit *o = all; o; o = o->next_jit)
		if (o->v->mmu.vm == j->v->mmu.vm && j->others)
			atomic_fetch_sub(&o->others, 1u);
	pthread_mutex_unlock(&lock);
}

void smc_lock(void)
{
	pthread_mutex_lock(&lock);
}

void smc_unlock(void)
{
	pthread_mutex_unlock(&lock);
}

struct jit *smc_peer(const struct jit *j, struct jit *after)
{
	struct jit *o;

	for (o = after ? after->next_jit : all; o; o = o->next_jit)
		if (o != j && o->v->mmu.vm == j->v->mmu.vm)
			break;
	return o;
}

static unsigned hash_page(const u8 *hva)
{
	return (unsigned)((uintptr_t)hva >> PAGE_SHIFT) & (PAGE_HASH - 1);
}

struct jpage *page_find(const struct jit *j, const u8 *hva)
{
	struct jpage *p;

	for (p = j->pages[hash_page(hva)]; p; p = p->next)
		if (p->hva == hva)
			break;
	return p;
}

static bool hva_to_gpa(const struct vm_mem *m, const u8 *hva, gpa_t *gpa)
{
	for (unsigned n = 0; n < m->nslots; n++) {
		const struct memslot *s = m->slot[n];

		if (hva >= s->hva && hva < s->hva + s->size) {
			*gpa = s->gpa + (u64)(hva - s->hva);
			return true;
		}
	}
	return false;
}

/* Bit 63 is everybody's from the 64th vCPU on, and stays. */
static u64 holder_bit(const struct jit *j)
{
	return BIT(j->v->id < 63 ? j->v->id : 63);
}

static u64 *holders_of(const struct jit *j, gpa_t gpa)
{
	struct memslot *s = memslot_find(j->v->mmu.vm, gpa);

	return s ? &s->holders[(gpa - s->gpa) >> PAGE_SHIFT] : NULL;
}

/* With the lock: we hold nothing there. */
static void let_go(struct jit *j, gpa_t gpa)
{
	u64 *h = holders_of(j, gpa);

	if (!h)
		return;
	*h &= ~(holder_bit(j) & ~BIT(63));
	if (!*h)
		mem_unwatch_code(&j->v->mmu, gpa);
}

/* Before code of the page is looked at. */
static void hold(struct jit *j, struct jpage *p)
{
	u64 *h;

	pthread_mutex_lock(&lock);
	h = holders_of(j, p->gpa);
	if (h)
		*h |= holder_bit(j);
	p->watched = true;
	mem_watch_code(&j->v->mmu, p->gpa);
	pthread_mutex_unlock(&lock);
}

/* With the lock. */
static void add_again(struct jit *j, gpa_t gpa)
{
	if (j->n_again < ARRAY_SIZE(j->again_list))
		j->again_list[j->n_again] = gpa;
	j->n_again++;
	atomic_store_explicit(&j->again, true, memory_order_release);
}

/* There is something in j's foreign_list: it looks soon, also when it sleeps. */
static void foreign_waits(struct jit *j)
{
	atomic_store_explicit(&j->foreign, true, memory_order_release);
	atomic_fetch_or(&j->v->events, (u32)EV_TLB);
	if (j->v->ops->wake)
		j->v->ops->wake(j->v);
}

static void add_foreign(struct jit *j, gpa_t gpa)
{
	bool known = false;

	/* Once a page: who fills one with data stores there hundreds of times before a sleeper has heard of the first,
	 * and a list that is full does not say which pages to give up. */
	for (unsigned n = 0; n < j->n_foreign && n < ARRAY_SIZE(j->foreign_list); n++)
		known |= j->foreign_list[n] == gpa;
	if (!known) {
		if (j->n_foreign < ARRAY_SIZE(j->foreign_list))
			j->foreign_list[j->n_foreign] = gpa;
		j->n_foreign++;
	}
	foreign_waits(j);
}

/* The other processors of the VM must not write the page past us. */
static void tell_others(struct jit *j, gpa_t gpa)
{
	pthread_mutex_lock(&lock);
	for (struct jit *o = all; o; o = o->next_jit)
		if (o != j && o->v->mmu.vm == j->v->mmu.vm) {
			add_again(o, gpa);
			atomic_fetch_or(&o->v->events, (u32)EV_TLB);
		}
	pthread_mutex_unlock(&lock);
}

/* No store of ours is under way: what the others read from now on is what we wrote. */
void smc_again(struct jit *j)
{
	gpa_t list[ARRAY_SIZE(j->again_list)];
	unsigned n;

	pthread_mutex_lock(&lock);
	n = j->n_again;
	memcpy(list, j->again_list, sizeof(list));
	j->n_again = 0;
	atomic_store(&j->again, false);
	if (n > ARRAY_SIZE(list))
		tlb_flush_writes(&j->v->mmu);
	for (unsigned k = 0; k < n && k < ARRAY_SIZE(list); k++) {
		u64 *h = holders_of(j, list[k]);

		if (!h || *h)
			mem_watch_code(&j->v->mmu, list[k]);
	}
	for (struct jit *o = all; o; o = o->next_jit) {
		if (o == j || o->v->mmu.vm != j->v->mmu.vm)
			continue;
		if (n > ARRAY_SIZE(list)) {
			o->n_foreign = ARRAY_SIZE(o->foreign_list) + 1;
			foreign_waits(o);
		}
		for (unsigned k = 0; k < n && k < ARRAY_SIZE(list); k++) {
			u64 *h = holders_of(j, list[k]);

			if (!h || (*h & holder_bit(o)))
				add_foreign(o, list[k]);
		}
	}
	pthread_mutex_unlock(&lock);
}

struct jpage *page_get(struct jit *j, const u8 *hva)
{
	struct jpage *p = page_find(j, hva);
	gpa_t gpa;

	if (likely(p)) {
		if (unlikely(!p->watched)) {
			hold(j, p);
			tell_others(j, p->gpa);
		}
		return p;
	}
	if (!hva_to_gpa(j->v->mmu.vm, hva, &gpa))
		return NULL;
	p = meta_alloc(j, sizeof(*p));
	memset(p, 0, sizeof(*p));
	p->hva = hva;
	p->gpa = gpa;
	p->epoch = j->epoch;
	p->next = j->pages[hash_page(hva)];
	j->pages[hash_page(hva)] = p;
	hold(j, p);
	tell_others(j, gpa);
	return p;
}

static void list_add(struct jpage *p, struct tb *tb)
{
	tb->page_next = p->tbs;
	tb->page_at = &p->tbs;
	if (p->tbs)
		p->tbs->page_at = &tb->page_next;
	p->tbs = tb;
}

static void list_remove(struct tb *tb)
{
	*tb->page_at = tb->page_next;
	if (tb->page_next)
		tb->page_next->page_at = tb->page_at;
}

static u64 granules_of(unsigned off, unsigned len)
{
	unsigned first = off >> 6, last = (off + len - 1) >> 6;

	return (~0ull << first) & (~0ull >> (63 - last));
}

static void recount(struct jpage *p)
{
	p->granules = 0;
	for (const struct tb *tb = p->tbs; tb; tb = tb->page_next)
		for (unsigned n = 0; n < tb->n_ranges; n++)
			p->granules |= granules_of(tb->range[n].off, tb->range[n].len);
}

/* Behind the bytes of range n; those of the next page follow the first range's. */
static const u8 *after_range(const struct tb *tb, unsigned n, const u8 *b)
{
	return b + tb->range[n].len + (n ? 0 : tb->beyond);
}

bool page_has(const u8 *page, const struct tb *tb)
{
	const u8 *b = tb->bytes;

	for (unsigned n = 0; n < tb->n_ranges; n++) {
		if (memcmp(b, page + tb->range[n].off, tb->range[n].len))
			return false;
		b = after_range(tb, n, b);
	}
	return true;
}

static inline u64 word_differs(const u8 *a, const u8 *b)
{
	u64 x, y;

	memcpy(&x, a, 8);
	memcpy(&y, b, 8);
	return x ^ y;
}

/* Word by word: of arrays the compiler makes copies. */
static inline bool same_granule(const u8 *a, const u8 *b)
{
	return !(word_differs(a, b) | word_differs(a + 8, b + 8) | word_differs(a + 16, b + 16) |
	         word_differs(a + 24, b + 24) | word_differs(a + 32, b + 32) | word_differs(a + 40, b + 40) |
	         word_differs(a + 48, b + 48) | word_differs(a + 56, b + 56));
}

/* Some granule changed: which blocks did? */
static void validate_blocks(struct jit *j, struct jpage *p)
{
	bool killed = false;
	u8 copy[PAGE_SIZE];

	/* One copy decides. */
	memcpy(copy, p->hva, PAGE_SIZE);
	for (unsigned n = 0; n < ARRAY_SIZE(p->snap); n++)
		if (p->snap[n])
			memcpy(p->snap[n], copy + n * SNAP, SNAP);
	for (struct tb *tb = p->tbs; tb; tb = tb->page_next) {
		if (page_has(copy, tb))
			continue;
		list_remove(tb);
		tb_kill(j, tb);
		killed = true;
	}
	if (killed)
		recount(p);
}

static bool same_granules(const struct jpage *p, u64 granules)
{
	/* Mostly none of this is in the host's caches: the code is not what runs. All lines are asked for at once. */
	for (u64 g = granules; g; g &= g - 1) {
		unsigned off = (unsigned)__builtin_ctzll(g) * 64;

		__builtin_prefetch(p->hva + off);
		__builtin_prefetch(p->snap[off / SNAP] + off % SNAP);
	}
	for (; granules; granules &= granules - 1) {
		unsigned off = (unsigned)__builtin_ctzll(granules) * 64;

		if (!same_granule(p->snap[off / SNAP] + off % SNAP, p->hva + off))
			return false;
	}
	return true;
}

bool page_unchanged(struct jit *j, struct jpage *p)
{
	if (!same_granules(p, p->granules))
		return false;
	p->epoch = j->epoch;
	return true;
}

/*
 * The blocks of `from` are blocks of `to` from now on; the caller compares their bytes with those of the page. Nothing
 * leads from outside into them (invariant 3): the dispatcher must enter their page's guards anew. Links between them
 * stay: they move together.
 */
static void take(struct jit *j, struct jpage *to, struct jpage *from)
{
	for (struct tb *tb = from->tbs, *next; tb; tb = next) {
		const u8 *hva = to->hva + (tb->hva - from->hva);

		next = tb->page_next;
		if (tb_lookup(j, tb->rip, hva, tb->key)) {
			tb_kill(j, tb);
			continue;
		}
		for (unsigned n = 0; n < ARRAY_SIZE(tb->guard); n++)
			if (tb->guard[n]) {
				j->front->cell[tb->guard[n]] = 0;
				j->guards[tb->guard[n]].hva = to->hva;
			}
		tb->hva = hva;
		tb->page = meta_at(j, to);
		list_add(to, tb);
	}
	for (unsigned n = 0; n < ARRAY_SIZE(to->snap); n++)
		if (!to->snap[n]) {
			to->snap[n] = from->snap[n];
			from->snap[n] = NULL;
		}
	for (unsigned n = 0; n < ARRAY_SIZE(to->straddling); n++)
		to->straddling[n] |= from->straddling[n];
	from->tbs = NULL;
	recount(from);
	recount(to);
}

/* Addresses of pages that are put away: no page has them. */
#define AWAY BIT(62)
/* Blocks of one RIP and key that are put away: where code is rewritten again and again, each would be another. */
#define AWAY_MOST 4u
/* A page that is left again and again, and nothing comes to it: its code is rewritten, which makes blocks for nothing.
 */
#define IN_VAIN_MOST 8u
/* What must be left of the memory for blocks and the like: many pages may be put away before the dispatcher looks how
 * full it is (a REP STOS over a whole program, a vCPU that sleeps), and a translation may be what comes next. */
#define AWAY_LEAVES 32768u

static bool is_away(const u8 *hva)
{
	return (uintptr_t)hva & AWAY;
}

static void kill_all(struct jit *j, struct jpage *p)
{
	for (; p->tbs; p->tbs = p->tbs->page_next)
		tb_kill(j, p->tbs);
	recount(p);
}

static void forget_page(struct jit *j, struct jpage *away)
{
	struct jpage **at;

	kill_all(j, away);
	for (at = &j->pages[hash_page(away->hva)]; *at != away; at = &(*at)->next)
		;
	*at = away->next;
	away->next = j->spare;
	j->spare = away;
}

static void forget_oldest(struct jit *j, u64 rip, u32 key)
{
	const struct tb *oldest = NULL;
	unsigned n = 0;

	for (const struct tb *tb = j->hash[tb_hash(rip, key)]; tb; tb = tb->next)
		if (tb->rip == rip && tb->key == key && is_away(tb->hva)) {
			oldest = tb;
			n++;
		}
	if (n >= AWAY_MOST)
		forget_page(j, page_find(j, oldest->hva - (oldest->rip & ~PAGE_MASK)));
}

/* The page has other bytes now, or is about to: it keeps no block. Nobody is left in one. */
static void put_away(struct jit *j, struct jpage *p)
{
	u8 *snap[ARRAY_SIZE(p->snap)] = {0};
	struct jpage *away;

	if (p->in_vain >= IN_VAIN_MOST || (!j->spare && j->meta_used + AWAY_LEAVES > META_SIZE)) {
		kill_all(j, p);
		return;
	}
	p->in_vain++;
	for (const struct tb *tb = p->tbs; tb; tb = tb->page_next)
		forget_oldest(j, tb->rip, tb->key);
	away = j->spare;
	if (away) {
		j->spare = away->next;
		memcpy(snap, away->snap, sizeof(snap));
	} else {
		away = meta_alloc(j, sizeof(*away));
	}
	memset(away, 0, sizeof(*away));
	memcpy(away->snap, snap, sizeof(snap));
	away->hva = (const u8 *)(uintptr_t)(AWAY | ++j->n_away << PAGE_SHIFT);
	away->next = j->pages[hash_page(away->hva)];
	j->pages[hash_page(away->hva)] = away;
	take(j, away, p);
}

/* Some granule changed. Single blocks of other bytes are dead; a page that is another one by now may come back. */
static void validate_page(struct jit *j, struct jpage *p)
{
	unsigned same = 0, changed = 0;

	for (const struct tb *tb = p->tbs; tb; tb = tb->page_next)
		if (page_has(p->hva, tb))
			same++;
		else
			changed++;
	if (changed > same)
		put_away(j, p);
	else
		validate_blocks(j, p);
}

/* The page of a block is put away, or has other bytes there by now. */
static bool is_stale(const struct jit *j, const struct jpage *p)
{
	return is_away(p->hva) || (gpa_to_hva(j->v->mmu.vm, p->gpa) == p->hva && user_reachable(p->hva, false) &&
	                           !same_granules(p, p->granules));
}

struct tb *page_adopt(struct jit *j, struct jpage *p, const struct tb *block)
{
	struct jpage *from = page_find(j, block->hva - (block->rip & ~PAGE_MASK));
	const u8 *hva = p->hva + (block->rip & ~PAGE_MASK);
	u64 rip = block->rip;
	u32 key = block->key;

	if (!from || from == p || block->dead || !page_has(p->hva, block) || !is_stale(j, from))
		return NULL;
	take(j, p, from);
	p->in_vain = 0;
	j->n.adopted++;
	if (is_away(from->hva)) {
		forget_page(j, from);
	} else {
		from->watched = false;
		from->foreign = 0;
		pthread_mutex_lock(&lock);
		let_go(j, from->gpa);
		pthread_mutex_unlock(&lock);
	}
	validate_blocks(j, p);
	return tb_lookup(j, rip, hva, key);
}

void page_leave(struct jit *j, struct jpage *p)
{
	if (p->tbs)
		put_away(j, p);
}

void page_validate(struct jit *j, struct jpage *p)
{
	if (!same_granules(p, p->granules))
		validate_page(j, p);
	p->epoch = j->epoch;
}

/* The copy of [off, off + len) becomes `from`. */
static void snap_put(struct jpage *p, unsigned off, const u8 *from, unsigned len)
{
	while (len) {
		unsigned part = (unsigned)SNAP - off % SNAP;

		part = part < len ? part : len;
		memcpy(p->snap[off / SNAP] + off % SNAP, from, part);
		off += part;
		from += part;
		len -= part;
	}
}

void page_add(struct jit *j, struct jpage *p, struct tb *tb)
{
	const u8 *b = tb->bytes;
	u64 g = 0, fresh;

	for (unsigned n = 0; n < tb->n_ranges; n++)
		g |= granules_of(tb->range[n].off, tb->range[n].len);
	/* The bytes of older blocks there may have changed since the last validation; the copy must not hide that. */
	if (!same_granules(p, p->granules & g))
		validate_blocks(j, p);
	for (fresh = g & ~p->granules; fresh; fresh &= fresh - 1) {
		unsigned off = (unsigned)__builtin_ctzll(fresh) * 64;

		if (!p->snap[off / SNAP])
			p->snap[off / SNAP] = meta_alloc(j, SNAP);
		memcpy(p->snap[off / SNAP] + off % SNAP, p->hva + off, 64);
	}
	for (unsigned n = 0; n < tb->n_ranges; n++) {
		snap_put(p, tb->range[n].off, b, tb->range[n].len);
		b = after_range(tb, n, b);
	}
	p->granules |= g;
	tb->page = meta_at(j, p);
	list_add(p, tb);
}

void page_take_back(struct jit *j, struct tb *tb)
{
	struct jpage *p = meta_ptr(j, tb->page);

	/* The granules of its page may be too many now. */
	list_remove(tb);
	tb_kill(j, tb);
	if (!p->tbs && is_away(p->hva))
		forget_page(j, p);
}

void page_drop(struct jit *j, struct tb *tb)
{
	if (tb->dead)
		return;
	page_take_back(j, tb);
	recount(meta_ptr(j, tb->page));
	j->left = true;
}

void page_straddles(struct jit *j, struct tb *tb, unsigned off)
{
	struct jpage *p = page_find(j, tb->hva - (tb->rip & ~PAGE_MASK));

	if (!p || tb->dead)
		return;
	off += (unsigned)(tb->rip & ~PAGE_MASK);
	p->straddling[off / 1024] |= BIT(off / 16 % 64);
	copy_never(tb);
	page_drop(j, tb);
}

/* The kernel of a guest writes to a page of programs: mostly all of it, for another use. */
static bool is_reused(const struct jit *j, const struct jpage *p)
{
	for (const struct tb *tb = p->tbs; tb; tb = tb->page_next)
		if (!(tb->key & KEY_USER))
			return false;
	return j->v->cpl < 3;
}

/* Kills the blocks of a page that depend on [off, off + len). */
static void written(struct jit *j, struct jpage *p, unsigned off, unsigned len)
{
	bool killed = false;

	if (!p->tbs || !(p->granules & granules_of(off, len)))
		return;
	if (is_reused(j, p)) {
		put_away(j, p);
		j->left = true;
		return;
	}
	for (struct tb *tb = p->tbs; tb; tb = tb->page_next) {
		bool hit = false;

		for (unsigned n = 0; n < tb->n_ranges; n++)
			hit |= off < (unsigned)tb->range[n].off + tb->range[n].len && tb->range[n].off < off + len;
		if (!hit)
			continue;
		list_remove(tb);
		tb_kill(j, tb);
		killed = true;
	}
	if (killed) {
		recount(p);
		j->left = true;
	}
}

void jit_code_written(struct mmu *m, gpa_t gpa, unsigned len)
{
	struct vcpu *v = container_of(m, struct vcpu, mmu);
	const u8 *hva = gpa_to_hva(m->vm, gpa & PAGE_MASK);
	unsigned off = (unsigned)(gpa & ~PAGE_MASK);
	struct jit *j = v->jit;
	struct jpage *p = NULL;
	bool alone = true;

	interp_code_written(m, gpa, len);
	if (len > PAGE_SIZE - off)
		len = (unsigned)PAGE_SIZE - off;
	if (j && hva) {
		p = page_find(j, hva);
		if (p)
			written(j, p, off, len);
	}
	pthread_mutex_lock(&lock);
	for (struct jit *o = all; o; o = o->next_jit) {
		u64 *h;

		if (o == j || o->v->mmu.vm != m->vm)
			continue;
		h = holders_of(o, gpa);
		if (h && !(*h & holder_bit(o)))
			continue;
		alone = false;
		add_foreign(o, gpa & PAGE_MASK);
	}
	if (j && !alone) {
		add_again(j, gpa & PAGE_MASK);
		j->left = true;
	}
	/* Plain data from now on, unless others hold it. */
	if (j && (!p || !p->tbs)) {
		u64 *h = alone ? holders_of(j, gpa) : NULL;

		if (p)
			p->watched = false;
		/* Bits of vCPUs that are gone may be left. */
		if (h)
			*h = 0;
		let_go(j, gpa & PAGE_MASK);
	}
	pthread_mutex_unlock(&lock);
}

/* Stores of others after which a page is given up though they left some of its blocks alone. */
#define FOREIGN_MOST 4

/* Another vCPU wrote to the page, or is about to. */
static void foreign_page(struct jit *j, gpa_t gpa)
{
	const u8 *hva = gpa_to_hva(j->v->mmu.vm, gpa);
	struct jpage *p = hva ? page_find(j, hva) : NULL;

	/* Nobody wants to run there now, and the client may have taken the memory away. */
	if (p && p->tbs && !user_reachable(hva, false))
		kill_all(j, p);
	else if (p && p->tbs && !same_granules(p, p->granules))
		validate_page(j, p);
	if (p && p->tbs && ++p->foreign >= FOREIGN_MOST)
		put_away(j, p);
	if (p) {
		p->epoch = ~0ull;
		if (p->tbs)
			return;
		p->watched = false;
		p->foreign = 0;
	}
	pthread_mutex_lock(&lock);
	let_go(j, gpa);
	pthread_mutex_unlock(&lock);
}

void jit_memory_changed(struct vcpu *v, const u8 *hva, u64 size)
{
	u64 from = (u64)(uintptr_t)hva & PAGE_MASK,
	    pages = ((u64)(uintptr_t)hva + size - from + PAGE_SIZE - 1) >> PAGE_SHIFT;
	struct jit *j = v->jit;
	bool any = false;

	if (!j)
		return;
	/* Each page, or each that we know. */
	for (unsigned h = 0; h < PAGE_HASH && h < pages; h++) {
		unsigned at = pages < PAGE_HASH ? hash_page((const u8 *)(uintptr_t)from + ((u64)h << PAGE_SHIFT)) : h;

		for (struct jpage *p = j->pages[at]; p; p = p->next)
			if ((u64)(uintptr_t)p->hva - from < pages << PAGE_SHIFT) {
				p->epoch = ~0ull;
				any = true;
			}
	}
	if (any)
		v->mmu.flushes++;
}

void smc_slots_changed(struct jit *j)
{
	const struct vm_mem *m = j->v->mmu.vm;

	for (unsigned h = 0; h < PAGE_HASH; h++)
		for (struct jpage *p = j->pages[h], *next; p; p = next) {
			next = p->next;
			if (is_away(p->hva))
				continue;
			p->epoch = ~0ull;
			/* What the others will be asked then comes back as if they had stored there. */
			p->foreign = 0;
			/* A slot that is new knows of nobody who holds code; of one that stays we are told once more.
			 */
			p->watched = false;
			if (gpa_to_hva(m, p->gpa) != p->hva && !hva_to_gpa(m, p->hva, &p->gpa) && p->tbs) {
				put_away(j, p);
				next = j->pages[h]; /* the list may be another now */
			}
		}
	tb_new_gen(j);
}

/* Other vCPUs wrote to pages of code: compare. */
void smc_foreign(struct jit *j)
{
	gpa_t list[ARRAY_SIZE(j->foreign_list)];
	unsigned n;

	pthread_mutex_lock(&lock);
	n = j->n_foreign;
	memcpy(list, j->foreign_list, sizeof(list));
	j->n_foreign = 0;
	atomic_store(&j->foreign, false);
	pthread_mutex_unlock(&lock);
	if (n > ARRAY_SIZE(list)) {
		for (unsigned h = 0; h < PAGE_HASH; h++)
			for (struct jpage *p = j->pages[h]; p; p = p->next)
				p->epoch = ~0ull;
		tb_new_gen(j);
		return;
	}
	for (unsigned k = 0; k < n; k++)
		foreign_page(j, list[k]);
	tb_new_gen(j);
}
