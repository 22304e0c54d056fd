/*
 * mem.h: guest memory. GPA space made of memslots (struct vm_mem, one a VM), and each vCPU's view of it through paging
 * and a TLB (struct mmu, one a vCPU).
 *
 * Threads: a struct mmu belongs to the thread that runs its vCPU, or to whoever holds the vCPU's lock. The memslots of
 * a vm_mem change only while no vCPU of the VM executes guest instructions (kvm/ parks them first), so readers need no
 * lock.
 */
#ifndef DEVKVM_MEM_MEM_H
#define DEVKVM_MEM_MEM_H

#include "../base/types.h"
#include <stdatomic.h>

#include "tlb_fast.h"

/* ---- memslots: memslot.c ---------------------------------------------------------------------------------------- */

#define MEMSLOT_DIRTY_LOG BIT(0)
#define MEMSLOT_READONLY BIT(1)

/* Memory that we lend ourselves gets its pages by pieces of so many bytes when the guest first comes there. */
#define MEMSLOT_PIECE (64u << 10)

struct memslot {
	u32 id;
	u32 flags; /* MEMSLOT_x */
	gpa_t gpa;
	u64 size; /* bytes, a multiple of PAGE_SIZE */
	u8 *hva;
	_Atomic(u64) *dirty;  /* bit a page; NULL when not logging */
	_Atomic(u64) *code;   /* bit a page: an engine holds decoded code of it, so guest stores take the slow path */
	u64 *holders;         /* word a page: which vCPUs' translators hold code of it (jit/smc.c, with its lock) */
	_Atomic(u64) *backed; /* bit a piece (MEMSLOT_PIECE): its pages were asked for; NULL: not for us to ask */
	void *owner;          /* for the layer that made the slot */
	/* A page's dirty bit was set: NULL: nobody needs to hear. */
	void (*dirtied)(struct memslot *s, u64 page);
};

struct vm_mem {
	struct memslot **slot; /* sorted by gpa */
	unsigned nslots;
	u32 version; /* counts changes; TLBs filled under another version are flushed */
};

/* Without slots; the slots themselves are their maker's to free. */
void vm_mem_init(struct vm_mem *vm);
void vm_mem_free(struct vm_mem *vm);

/* The slot that covers `gpa`, or NULL (MMIO). */
struct memslot *memslot_find(const struct vm_mem *vm, gpa_t gpa);
/* True when [gpa, gpa + size) touches a slot other than `except`. */
bool memslot_overlaps(const struct vm_mem *vm, gpa_t gpa, u64 size, const struct memslot *except);
/* Adds a slot; the caller fills id, flags, gpa, size, hva first and keeps ownership of hva. -ENOMEM or 0. */
int memslot_add(struct vm_mem *vm, struct memslot *slot);
/* Takes the slot out (without freeing it). */
void memslot_remove(struct vm_mem *vm, struct memslot *slot);
void memslot_free(struct memslot *slot);
/* Starts or stops dirty logging. -ENOMEM or 0. */
int memslot_set_dirty_log(struct memslot *slot, bool on);
/* Copies the dirty bits to `out` (size/PAGE_SIZE bits, whole u64s) and clears them. Write TLB entries must be flushed
 * by the caller before guests run again. */
void memslot_take_dirty(struct memslot *slot, u64 *out);
u64 memslot_pages(const struct memslot *slot);
/* From now on pages come by pieces. Without memory for the bits they do not. */
void memslot_set_backed(struct memslot *slot);
void memslot_back_piece(struct memslot *slot, u64 piece);
/* The page at `gpa` is about to be touched. */
static inline void memslot_back(struct memslot *slot, gpa_t gpa)
{
	u64 piece = (gpa - slot->gpa) / MEMSLOT_PIECE;

	if (slot->backed && !(atomic_load_explicit(&slot->backed[piece / 64], memory_order_relaxed) & BIT(piece % 64)))
		memslot_back_piece(slot, piece);
}

/* Host address of a GPA, NULL when no slot covers it. */
u8 *gpa_to_hva(const struct vm_mem *vm, gpa_t gpa);
/* Notes a processor or device write to guest RAM: dirty bit (and nothing else). */
void memslot_mark_dirty(struct memslot *slot, gpa_t gpa);

/* ---- the vCPU's view: walk.c, tlb.c, access.c ------------------------------------------------------------------- */

enum mem_access { MEM_READ = 1, MEM_WRITE = 2, MEM_EXEC = 4 };

/* Results of every access function below. */
enum mem_rc {
	MEM_OK = 0,
	MEM_FAULT, /* #PF: mmu->fault says which; nothing was written */
	MEM_EXIT,  /* an MMIO read needs the client: mmu->mmio_req is filled; run the instruction again afterwards */
	MEM_ALIGN, /* #AC: misaligned in TLB_USER_AC; nothing was written */
	MEM_GONE,  /* the client has no memory there, or not to write to: nothing was accessed */
	MEM_STEP,  /* a breakpoint may be hit, and mmu->watch_stops: nothing was accessed */
	MEM_BUG    /* more MMIO in one instruction than any has */
};

enum paging { PAGING_OFF, PAGING_32, PAGING_PAE, PAGING_64 };

/* One piece of an MMIO access: never more than 8 bytes, never over a page border. */
struct mmio_frag {
	gpa_t gpa;
	u8 len;
	u8 data[8];
};

#define MMIO_READS_MAX 160
/* Most bytes of an access over a page border whose bytes mem_fill() gathers. */
#define CROSSING_MAX 64
#define MMIO_WRITES_MAX 160
#define WATCH_MAX 4

/* Which entries of an array are in use. */
struct tlb_bits {
	u64 word[TLB_SIZE / 64];
	u64 sum; /* words that are not 0 */
};

/* Entries of an address space that is not the current one: tlb.c. */
#define TLB_STASHES 8u
#define TLB_STASHED 384u

struct tlb_stashed {
	struct tlb_entry e;
	u16 index;
	u8 ctx, kind;
};

struct tlb_stash {
	u64 used;   /* when it was made; 0: nothing in it */
	u64 serial; /* flushes_local, of then */
	u16 pcid;
	bool no_writes; /* its write entries are void */
	u32 n;
	struct tlb_stashed e[TLB_STASHED];
};

struct mmu;

struct mmu_ops {
	/* A guest store reached a page that holds cached code; called before the store is done. */
	void (*code_written)(struct mmu *m, gpa_t gpa, unsigned len);
	/* All other vCPUs of the VM are stopped between the two calls (split LOCKed accesses). */
	void (*bus_lock)(struct mmu *m);
	void (*bus_unlock)(struct mmu *m);
};

struct mmu {
	struct vm_mem *vm;
	const struct mmu_ops *ops;

	/* What paging does, kept by cpu/ through mmu_configure(). */
	enum paging paging;
	bool wp, nx, smep, smap, pse, pge, pcide, gbpages;
	u64 phys_mask; /* the bits of a physical address; the others are reserved in tables */
	u64 cr3;
	u64 pdpte[4];     /* PAE: loaded at MOV CR3 */
	enum tlb_ctx ctx; /* context of explicit data accesses now */
	/* What INVLPG need not look for: pages of 1 GiB filled since the last flush; those of 2 and 4 MiB, and pages
	 * that code was fetched from, by the low bits of their numbers. */
	bool huge_pages_seen;
	u64 large_seen[64], exec_seen[64];

	/* Set by a MEM_FAULT. */
	struct {
		gva_t gva;
		u32 error; /* PF_x */
	} fault;

	/* MMIO of the instruction in progress. Reads already answered by the client replay from the log when the
	 * instruction runs again; writes are posted and leave one exit each once the instruction is complete. */
	struct mmio_frag mmio_req; /* the read that MEM_EXIT asks for */
	unsigned n_reads, next_read;
	struct mmio_frag reads[MMIO_READS_MAX];
	unsigned n_writes, next_write;
	struct mmio_frag writes[MMIO_WRITES_MAX];

	/* Breakpoints (DR0-3 and the client's). Pages with one have no TLB entry of its kind, so that the slow path
	 * sees each access; those that hit set the bit in watch_hit. Code is only kept out of the TLB: who fetches it
	 * must compare addresses itself. */
	struct {
		gva_t gva;
		u8 len;    /* 0: unused */
		u8 access; /* MEM_READ | MEM_WRITE, or MEM_EXEC */
	} watch[WATCH_MAX];
	u8 watch_hit;
	u8 watching; /* all that watch[] has in `access` */
	/* For engines that do not look at watch_hit after each instruction: an access that would hit, or a fetch from a
	 * page with a breakpoint, is refused with MEM_STEP. Set while such an engine runs, and only then. */
	bool watch_stops;

	/* Who checks the translator (jit/lockstep.c) hears here of each piece of guest RAM, inside one page, that the
	 * processor is about to change; `gva` is ~0 for the tables' A and D bits. True: nobody else is to hear of it.
	 * NULL otherwise. */
	bool (*store_hook)(struct mmu *m, gva_t gva, gpa_t gpa, u8 *hva, unsigned len, enum tlb_ctx ctx, bool global);

	/* FILL_CROSSING: a copy of the bytes, as far behind a multiple of 64 as the bytes are; its address less theirs.
	 */
	u8 crossing[2 * CROSSING_MAX] __attribute__((aligned(64)));
	u64 crossing_add;

	u64 tlb_misses;
	/* Who keeps translations elsewhere compares these: flushes of everything (or of pages in the upper half), and
	 * a number for what is not global or lies in the lower half: another after each flush, and that of before when
	 * an address space comes back. Without global pages, and without PCIDs, the first is all there is; with PCIDs
	 * (mem_spaces_apart) the second is for everything. */
	u64 flushes, flushes_local;
	u64 local_serial; /* the last such number given */
	bool walk_global; /* the last translation was a global page */
	struct tlb_bits local[TLB_CTXS][TLB_KINDS], global[TLB_CTXS][TLB_KINDS];
	u64 stash_clock;
	struct tlb_stash stash[TLB_STASHES];
	struct tlb_set tlb[TLB_CTXS][TLB_KINDS];
};

/* *m is zeroed memory. */
void mmu_init(struct mmu *m, struct vm_mem *vm, const struct mmu_ops *ops);

/* tlb.c */
void tlb_flush(struct mmu *m);            /* all entries */
void tlb_flush_local(struct mmu *m);      /* MOV CR3: all but global pages */
void tlb_flush_not_global(struct mmu *m); /* the same in all address spaces */
/* MOV CR3 with PCIDs, from one to another; `keep` says that what is known of `to` still holds. */
void tlb_switch(struct mmu *m, u16 from, u16 to, bool keep);
void tlb_drop_pcid(struct mmu *m, u16 pcid);   /* an address space that is not the current one: all but global pages */
void tlb_flush_page(struct mmu *m, gva_t gva); /* INVLPG */
/* No page is another address space's too, and those have numbers. */
static inline bool mem_spaces_apart(const struct mmu *m)
{
	return m->pcide && !m->pge;
}

/* The exec entry that covers `gva`, which is there, is of a global page. */
static inline bool tlb_exec_global(const struct mmu *m, gva_t gva, enum tlb_ctx ctx)
{
	unsigned n = (gva >> PAGE_SHIFT) & (TLB_SIZE - 1);

	return m->global[ctx][TLB_EXEC].word[n / 64] >> (n % 64) & 1;
}
/* Entries that lead to memory of the client, of which it changes the mapping; in all address spaces. */
void tlb_drop_memory(struct mmu *m, const u8 *hva, u64 size);
void tlb_flush_writes(struct mmu *m); /* write entries only: dirty log, code pages */
/* Sets mmu->watch and flushes what must not match any more. `len` 0: none; else `access` is MEM_EXEC, or others. */
void mmu_set_watch(struct mmu *m, unsigned n, gva_t gva, unsigned len, unsigned access);

/* walk.c: GVA → GPA. Sets A (and D for writes) bits; on failure fills mmu->fault and returns MEM_FAULT. `*page_bits`
 * (may be NULL) gets the page size of the translation as a power of two. */
int gva_to_gpa(struct mmu *m, gva_t gva, unsigned access, enum tlb_ctx ctx, gpa_t *gpa, unsigned *page_bits);
/* The same for KVM_TRANSLATE: no A/D updates, no fault; true when mapped. */
bool gva_peek(const struct mmu *m, gva_t gva, gpa_t *gpa, bool *writable, bool *user);
/* Loads the four PAE pointers that CR3 names; false when a reserved bit is set (#GP) or no RAM is there. */
bool mmu_load_pdptes(struct mmu *m, u64 cr3);

/* access.c: any size, page-crossing, MMIO. Nothing is written unless the whole access is permitted. */
int mem_read(struct mmu *m, gva_t gva, void *dst, unsigned size, enum tlb_ctx ctx);
int mem_write(struct mmu *m, gva_t gva, const void *src, unsigned size, enum tlb_ctx ctx);
/* Checks that all bytes may be accessed, without accessing them (sets A/D bits as an access would). */
int mem_probe(struct mmu *m, gva_t gva, unsigned size, unsigned access, enum tlb_ctx ctx);
/* Host pointer and GPA of the instruction byte at `gva`, good up to the page's end; fills the TLB for TLB_EXEC.
 * Instructions cannot be fetched from MMIO: MEM_BUG. */
int mem_fetch(struct mmu *m, gva_t gva, enum tlb_ctx ctx, const u8 **hva, gpa_t *gpa);

/*
 * For translated code whose TLB lookup missed: the entry for such an access, which is certain to be made, in m->ctx.
 * FILL_TLB: it is there now. FILL_CROSSING: a read of up to CROSSING_MAX bytes in two pages, to be made in m->crossing.
 * FILL_NONE: it was there, or the access needs more than an entry (fault, MMIO, a store to two pages, code page,
 * watchpoint); mmu->fault may have changed then. Changes no vector register and no x87 register of the host.
 */
enum mem_filled { FILL_NONE, FILL_TLB, FILL_CROSSING };
enum mem_filled mem_fill(struct mmu *m, gva_t gva, unsigned size, enum tlb_kind kind);
/* The same for a fetch: the host address of the code at `gva`, NULL: mem_fetch() says why. */
const u8 *mem_fill_exec(struct mmu *m, gva_t gva, enum tlb_ctx ctx);

/*
 * Read-modify-write and host-pointer access. After MEM_OK `ref->p` points at `size` bytes that hold the operand: guest
 * RAM itself when that is possible (host LOCK instructions on it are atomic for everybody), else a copy which
 * mem_close() stores back. Between mem_open() and mem_close() nothing else may be accessed. `access` MEM_READ alone:
 * no close needed. `locked` asks for atomicity even where the operand is split over pages.
 * For MMIO: the read part may return MEM_EXIT, the write part is posted by mem_close().
 */
struct memref {
	u8 *p;
	gva_t gva;
	u16 size;
	u8 ctx;
	bool direct;
	bool locked; /* the bus lock is held until mem_close() */
	/* Not direct: where the (at most two) parts go back to; hva NULL means MMIO at gpa. */
	struct {
		u8 *hva;
		gpa_t gpa;
		u16 len;
	} part[2];
	_Alignas(64) u8 buf[64];
};
int mem_open(struct mmu *m, gva_t gva, unsigned size, unsigned access, enum tlb_ctx ctx, bool locked,
             struct memref *ref);
void mem_close(struct mmu *m, struct memref *ref);

/* MMIO bookkeeping for kvm/: */
/* The instruction in progress is complete (or was given up): forget its answered reads. Posted writes stay. */
static inline void mmio_done(struct mmu *m)
{
	m->n_reads = m->next_read = 0;
}
/* The instruction starts over: answered reads replay from the first one. */
static inline void mmio_restart(struct mmu *m)
{
	m->next_read = 0;
}
/* The client answered mmu->mmio_req. */
void mmio_answer(struct mmu *m, const u8 *data);
/* Next posted write that has not left yet, NULL when none; the caller takes it by calling mmio_write_taken(). */
const struct mmio_frag *mmio_write_pending(const struct mmu *m);
void mmio_write_taken(struct mmu *m);

/* For store_hook's owner: a write entry for [page of gva], as a store would have made it, where one may be. */
void mem_allow_write(struct mmu *m, gva_t gva, gpa_t gpa, enum tlb_ctx ctx, bool global);
/* Empties the TLB but for code: translations are looked up again, nobody who compares `flushes` hears of it. */
void tlb_forget_data(struct mmu *m);

/* Marks the page as holding cached code: later guest stores to it take the slow path and call ops->code_written. */
void mem_watch_code(struct mmu *m, gpa_t gpa);
/* No engine of the VM holds code of this page any more. */
void mem_unwatch_code(struct mmu *m, gpa_t gpa);

#endif
