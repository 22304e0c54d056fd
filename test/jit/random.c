/*
 * random.c: random programs, interpreter against translator.
 *
 * A program (gen.c) runs on an interpreting vCPU and on a translating one, from the same state, several times over (so
 * that links, jump cache and return prediction take part). At each fault, exit and at the end everything is compared:
 * registers, flags, segments, x87, SSE and AVX state, MXCSR, data, the program itself. After a fault both go on behind
 * it. Interrupts come at any time; their handler changes every register and gives them back, so that a wrong state at
 * any instruction shows later; and what the translator had at an interrupt, flags above all, must be a state that the
 * interpreter goes through.
 *
 * Modes: 64-bit code at CPL 3 and 0, compatibility mode, 32-bit protected mode at CPL 3 and 0; and with segments that
 * change from round to round (bases, limits that fault, expand-down, read-only, null, stacks of the other width):
 * 16-bit protected mode at CPL 0 and 3, real mode, virtual-8086 mode, 32-bit protected and compatibility mode. There GS
 * shows the code, so that stores come by another segment, and CS may end inside the program or wrap. 64-bit programs
 * and their data are at several addresses at once, and each round begins at any of them; and most translators have two
 * vCPUs, which run the rounds by turns: so blocks are copied to other addresses and vCPUs (copy.c). Translators: plain;
 * with DEVKVM_CHAOS; with DEVKVM_LOCKSTEP (compared after every block); with both.
 *
 *   random [--seed N] [--programs N | --insns N] [--progress] [--no-timer] [--mode NAME]
 *          [--variant NAME] [--show] [--x87]
 *
 * --x87: half of every program is x87 or MMX instructions; else of every fourth.
 *
 * Programs come in batches, whose number of programs is fixed; each batch starts with empty caches from a seed of its
 * own, which is printed when it fails: `--seed S --programs 256 --no-timer` replays it. What came by the timer alone
 * does not come again.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "../../src/jit/emit.h"
#include "../../src/jit/jit_impl.h"
#include "../../src/x86/pte.h"
#include "../insn/machine.h"
#include "gen.h"

#define BATCH 256u
#define ROUNDS 3u
#define FAULTS_MAX 4u
#define VECTOR 0x20

#define CODE_SIZE 0x8000ul
#define DATA_SIZE 0x8000ul
#define DATA_SIZE_16 0x10000ul /* of 16-bit code, where any offset must be memory */
#define DATA_OFF 0x1000ul      /* of 32-bit code with segments: where the data begin in them */
#define HLT_SIZE 0x9000ul      /* there, 64 KiB below the code: where IP goes on that wraps */
#define SYS_SIZE 0x4000ul
#define POOL_SIZE (1ul << 20)

/* Inside the SYS window. */
#define SYS_IDT 0x0
#define SYS_GDT 0x1000
#define SYS_TSS 0x1100
#define SYS_CODE 0x2000
#define SYS_SYSCALL 0x2f00
#define SYS_COUNT 0x3000 /* what lies below does not change */
#define SYS_STACK 0x4000

/* The handler's stack in long mode, where no sum of addresses that a program knows leads: only one side has interrupts.
 */
#define STACK_64 0xfedcba90000ul

/* Where else in linear memory the code and the data of 64-bit programs are: addresses of one form and of another. */
static const u64 away[] = {0, 0x8000000, 0x7e1234560000, 0x7d00a5a5f000, 0xffffffff60000000};

enum mode { LONG3, LONG0, COMPAT3, PROT3, PROT0, PROT16, REAL, V86, SEG16, SEG32, SEGC, MODES };
enum { PLAIN, CHAOS, LOCKSTEP, BOTH, VARIANTS };

static const char *const mode_name[] = {"long3", "long0", "compat", "prot3", "prot0", "prot16",
                                        "real",  "v86",   "seg16",  "seg32", "segc"};
static const char *const variant_name[] = {"plain", "chaos", "lockstep", "chaos+lockstep"};

#define SPAN(a, b) (offsetof(struct vcpu, b) - offsetof(struct vcpu, a))

struct side {
	struct machine m;
	struct vcpu
	        *vcpu[2]; /* the rounds are theirs by turns, and the second takes blocks from the first; or one, NULL */
	const struct gen_env *env;
	u8 *code, *data, *sys, *hlt;
	u8 sys_clean[SYS_COUNT & PAGE_MASK];
	struct seg seg[SEG_COUNT], plain[SEG_COUNT]; /* a program's, and before they were changed for it */
	u8 clean[offsetof(struct vcpu, fpu) - offsetof(struct vcpu, seg)]; /* what a wild jump at CPL 0 may change */
	bool faulted, irqs;
	volatile bool irq;
	u64 io; /* what the ports make of what they were told */
	u64 n_irqs;
	/* The state at each interrupt, while `watch`. */
	bool watch;
	unsigned n_seen;
	struct seen {
		u64 r[R_COUNT], rflags, cs_base;
	} seen[64];
};

static struct setup {
	struct gen_env env;
	u64 data, sys, data_size;
	enum mode mode;
	unsigned dpl;
	bool irqs, lma;
	u64 away; /* of this round */
	struct side interp, replay, jit[VARIANTS];
} setups[MODES];

static struct side *running;
static struct program program;
static u8 *pool;
static struct {
	u64 programs, failed, abandoned, insns, faults, exits, irqs, seen, copied, retaken, imported, by_mode[MODES];
} n;

int __wrap_excp_deliver(struct vcpu *v);

static struct side *side_of(struct vcpu *v)
{
	return v->owner;
}

int __wrap_excp_deliver(struct vcpu *v)
{
	/* What the guest would see: every fault but these pushes RF = 1, whether it was set or already dropped. */
	if (v->excp.kind == EVENT_FAULT && v->excp.vector != EXC_DB && v->excp.vector != EXC_DF)
		v->rflags |= FLAGS_RF;
	v->exit.reason = EXIT_SHUTDOWN;
	side_of(v)->faulted = true;
	return STEP_EXIT;
}

/* ---- what the machines answer ----------------------------------------------------------------------------------- */

static int port(struct vcpu *v, const struct pio *io)
{
	struct side *s = side_of(v);
	u64 mask = io->size == 4 ? 0xffffffffu : BIT(io->size * 8) - 1;

	s->io = (s->io ^ io->port ^ (io->in ? 0 : io->value)) * 0x9e3779b97f4a7c15ull;
	if (io->in) {
		u64 val = s->io >> 20 & mask;

		v->r[R_RAX] = io->size == 4 ? val : (v->r[R_RAX] & ~mask) | val;
	}
	return STEP_OK;
}

u64 __wrap_tsc_read(const struct vcpu *v);

/* No program has RDTSC, but one that jumps astray may find it in the middle of something, and translated code reads the
 * host's counter. */
static bool saw_tsc;

u64 __wrap_tsc_read(const struct vcpu *v)
{
	saw_tsc = true;
	return 0x123456789abcull;
}

/* A linear address as if the program were at its first place. */
static u64 home(const struct gen_env *env, u64 a)
{
	for (unsigned k = 0; env->bits == 64 && k < ARRAY_SIZE(away); k++)
		if (a - away[k] - env->code < CODE_SIZE)
			return a - away[k];
	return a;
}

/* Is the instruction at RIP a repeated one? */
static bool in_repetition(const struct gen_env *env, const struct side *s)
{
	const struct vcpu *v = s->m.v;
	u64 off = home(env, v->r[R_RIP] + v->seg[SEG_CS].base) - env->code;

	for (unsigned k = 0; k < 14 && off + k < CODE_SIZE; k++) {
		u8 b = s->code[off + k];

		if (b == 0xf2 || b == 0xf3)
			return true;
		/* One that another prefix follows is idle. */
		if (v->mode == MODE_64 && (b & 0xf0) == 0x40)
			continue;
		if (b != 0x66 && b != 0x67 && b != 0x2e && b != 0x36 && b != 0x3e && b != 0x26 && b != 0x64 &&
		    b != 0x65)
			break;
	}
	return false;
}

/*
 * Has an interrupt been seen, as a processor lets it be seen? Both sides have interrupts, at other moments. IRET to an
 * outer ring takes a null selector's RPL away; and a repetition that has overwritten itself goes on, but is not there
 * any more after an interrupt, nor when a look at the events came between.
 */
static bool saw_interrupt;

static void see_look(const struct vcpu *v, const struct side *s)
{
	saw_interrupt |= v->mid_rep && v->mid_rep_rip == v->r[R_RIP] && !in_repetition(s->env, s);
}

static void see_interrupt(const struct vcpu *v)
{
	for (unsigned k = SEG_ES; k <= SEG_GS; k++)
		saw_interrupt |= v->cpl && v->seg[k].unusable && v->seg[k].sel && v->seg[k].sel < 4;
}

static int irq_take(struct vcpu *v)
{
	struct side *s = side_of(v);

	see_look(v, s);
	if (!s->irq || !s->irqs)
		return -1;
	/* The handler's IRET could not return beyond the end of CS, where the next fetch faults. */
	if (v->mode != MODE_64 && (u32)v->r[R_RIP] > v->seg[SEG_CS].limit)
		return -1;
	/* To a 16-bit stack IRET brings back SP alone. */
	if (v->mode != MODE_64 && !v->stack_is_32 && v->r[R_RSP] >> 16)
		return -1;
	s->irq = false;
	s->n_irqs++;
	see_interrupt(v);
	if (s->watch && s->n_seen < ARRAY_SIZE(s->seen)) {
		memcpy(s->seen[s->n_seen].r, v->r, sizeof(v->r));
		s->seen[s->n_seen].cs_base = v->seg[SEG_CS].base;
		s->seen[s->n_seen++].rflags = v->rflags;
	}
	return VECTOR;
}

static bool irq_pending(struct vcpu *v)
{
	return side_of(v)->irq;
}

static void kicked(struct vcpu *v)
{
	see_look(v, side_of(v));
}

static int no_cpuid(struct vcpu *v, const struct insn *i)
{
	return STEP_OK;
}

static int halt(struct vcpu *v, const struct insn *i)
{
	v->exit.reason = EXIT_HLT;
	v->r[R_RIP] += i->len;
	return STEP_EXIT;
}

static const struct vcpu_ops ops = {.pio = port,
                                    .cpuid = no_cpuid,
                                    .hlt = halt,
                                    .irq_take = irq_take,
                                    .irq_pending = irq_pending,
                                    .kicked = kicked};

/* ---- the machines ----------------------------------------------------------------------------------------------- */

static u8 *add_window(struct machine *k, gpa_t gpa, u64 size, bool user)
{
	u8 *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct memslot *s = &k->win_slot[k->nwin];

	*s = (struct memslot){.id = k->nwin++, .gpa = gpa, .size = size, .hva = p};
	if (p == MAP_FAILED || memslot_add(&k->mem, s)) {
		fprintf(stderr, "random: no memory\n");
		exit(2);
	}
	for (u64 a = gpa; a < gpa + size; a += PAGE_SIZE)
		machine_map(k, a, PTE_P | PTE_W | (user ? PTE_U : 0) | PTE_A | PTE_D);
	return p;
}

static void show_away(struct machine *k, gpa_t gpa, u64 size)
{
	for (unsigned n = 1; n < ARRAY_SIZE(away); n++)
		for (u64 a = gpa; a < gpa + size; a += PAGE_SIZE)
			machine_map_to(k, a + away[n], a, PTE_P | PTE_W | PTE_U | PTE_A | PTE_D);
}

static void put_desc(u8 *gdt, unsigned index, u64 x)
{
	memcpy(gdt + index * 8, &x, 8);
}

#define DESC(access, flags, base)                                                                                      \
	(0xffffull | (u64)((base)&0xffffff) << 16 | (u64)(access) << 40 | 0xfull << 48 | (u64)(flags) << 52 |          \
	 (u64)((base) >> 24) << 56)

static void seg_flat(struct vcpu *v, unsigned at, u16 sel, u8 type, unsigned dpl, unsigned bits, u64 base)
{
	v->seg[at] = (struct seg){.sel = sel,
	                          .type = type | SEGT_A,
	                          .dpl = (u8)dpl,
	                          .s = true,
	                          .present = true,
	                          .db = bits == 32,
	                          .l = bits == 64,
	                          .g = bits != 16,
	                          .limit = bits == 16 ? 0xffff : 0xffffffffu,
	                          .base = base};
}

static void make_tables(struct side *s, const struct setup *u, bool lma)
{
	u64 handler = u->sys + SYS_CODE;
	u8 *gdt = s->sys + SYS_GDT;
	u8 *tss = s->sys + SYS_TSS;
	struct emit e = {.p = s->sys + SYS_CODE};
	u64 tss_at = u->sys + SYS_TSS, stack = lma && !u->env.segs ? STACK_64 + PAGE_SIZE : u->sys + SYS_STACK;
	struct vcpu *v = s->m.v;

	gen_handler(&e, lma, u->sys + SYS_COUNT);
	put_desc(gdt, 1, DESC(0x9b, lma ? 0xa : 0xc, 0)); /* 08: code, CPL 0 */
	put_desc(gdt, 2, DESC(0x93, 0xc, 0));             /* 10: data */
	put_desc(gdt, 4, DESC(0xfb, 0xc, 0));             /* 23: 32-bit code, CPL 3 */
	put_desc(gdt, 5, DESC(0xf3, 0xc, 0));             /* 2b: data */
	put_desc(gdt, 6, DESC(0xfb, 0xa, 0));             /* 33: 64-bit code, CPL 3 */
	put_desc(gdt, 8, 0x67ull | (tss_at & 0xffffff) << 16 | 0x8bull << 40 | (tss_at >> 24 & 0xff) << 56);
	for (unsigned k = 0; k < 256; k++) {
		bool soft = k == INT_VECTOR;
		u64 gate = (handler & 0xffff) | 0x08ull << 16 | (soft ? 0xeeull : 0x8eull) << 40 |
		           (handler >> 16 & 0xffff) << 48;

		if (lma)
			gate |= 1ull << 32;
		memcpy(s->sys + SYS_IDT + k * (lma ? 16 : 8), &gate, 8);
	}
	if (lma) {
		memcpy(tss + 4, &stack, 8);
		memcpy(tss + 36, &stack, 8); /* IST1 */
	} else {
		u32 esp = (u32)stack, ss = 0x10;

		memcpy(tss + 4, &esp, 4);
		memcpy(tss + 8, &ss, 4);
	}
	/* SYSCALL: SYSRETQ. */
	memcpy(s->sys + SYS_SYSCALL, "\x48\x0f\x07", 3);
	v->star = 0x23ull << 48 | 0x08ull << 32;
	v->lstar = u->sys + SYS_SYSCALL;
	v->sfmask = FLAGS_IF | FLAGS_DF | FLAGS_AC;
	v->gdt = (struct dtable){u->sys + SYS_GDT, 0x4f};
	v->idt = (struct dtable){u->sys + SYS_IDT, (u16)(lma ? 0xfff : 0x7ff)};
	v->seg[SEG_LDTR] = (struct seg){.unusable = true};
	v->seg[SEG_TR] =
	        (struct seg){.sel = 0x40, .type = SYST_TSS32_BUSY, .present = true, .limit = 0x67, .base = tss_at};
}

/* Mode, segments and tables of a vCPU. */
static void make_vcpu(struct side *s, const struct setup *u, struct vcpu *v)
{
	unsigned dpl = u->dpl, bits = u->env.bits;
	enum mode mode = u->mode;

	v->ops = &ops;
	v->owner = s;
	v->tsc_offset = 0;
	s->m.v = v;
	if (mode == REAL) {
		for (unsigned k = SEG_ES; k <= SEG_GS; k++)
			seg_flat(v, k, (u16)(u->data >> 4), SEGT_W, 0, 16, u->data);
		seg_flat(v, SEG_CS, (u16)(u->env.code >> 4), SEGT_CODE | SEGT_R, 0, 16, u->env.code);
		cpu_set_crs(v, CR0_ET | CR0_NE, 0, CR4_OSFXSR | CR4_OSXMMEXCPT, 0);
		v->idt = (struct dtable){u->sys + SYS_IDT, 0x3ff};
		/* iret at SYS_CODE, for INT n */
		s->sys[SYS_CODE] = 0xcf;
		for (unsigned k = 0; k < 256; k++) {
			u32 vec = (u32)((u->sys + SYS_CODE) >> 4) << 16;

			memcpy(s->sys + SYS_IDT + k * 4, &vec, 4);
		}
	} else {
		for (unsigned k = SEG_ES; k <= SEG_GS; k++)
			seg_flat(v, k, dpl ? 0x2b : 0x10, SEGT_W, dpl, bits == 16 ? 16 : 32, bits == 16 ? u->data : 0);
		seg_flat(v, SEG_CS,
		         mode == LONG3 ? 0x33
		         : dpl         ? 0x23
		                       : 0x08,
		         SEGT_CODE | SEGT_R, dpl, bits, bits == 16 ? u->env.code : 0);
		v->seg[SEG_FS].base = u->data + 0x400;
		v->seg[SEG_GS].base = u->data + 0x100;
		if (u->lma)
			cpu_set_crs(v, v->cr0, v->cr3, v->cr4 | (u->env.smap ? CR4_SMAP : 0), v->efer | EFER_SCE);
		else
			cpu_set_crs(v, CR0_PE | CR0_MP | CR0_NE | CR0_ET, 0,
			            CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE, 0);
		make_tables(s, u, u->lma);
	}
	cpu_update(v);
	memcpy(s->seg, v->seg, sizeof(s->seg));
	memcpy(s->plain, v->seg, sizeof(s->plain));
	memcpy(s->clean, v->seg, sizeof(s->clean));
}

static void make_side(struct side *s, const struct setup *u, int variant)
{
	unsigned bits = u->env.bits;
	bool lma = u->lma, low = bits == 16;

	setenv("DEVKVM_ENGINE", variant < 0 ? "interp" : "jit", 1);
	unsetenv("DEVKVM_LOCKSTEP");
	if (variant == LOCKSTEP || variant == BOTH)
		setenv("DEVKVM_LOCKSTEP", "1", 1);
	if (variant == CHAOS || variant == BOTH)
		setenv("DEVKVM_CHAOS", "1", 0);
	else if (!getenv("DEVKVM_SPOIL"))
		unsetenv("DEVKVM_CHAOS");
	machine_init(&s->m, 0);
	s->vcpu[0] = s->m.v;
	if (variant == PLAIN || variant == CHAOS)
		s->vcpu[1] = machine_vcpu(&s->m, 1, 0);
	s->env = &u->env;
	s->code = add_window(&s->m, u->env.code, CODE_SIZE, true);
	s->data = add_window(&s->m, u->data, u->data_size, true);
	if (bits == 64) {
		show_away(&s->m, u->env.code, CODE_SIZE);
		show_away(&s->m, u->data, u->data_size);
	}
	if (low)
		s->hlt = add_window(&s->m, u->env.code - 0x10000, HLT_SIZE, true);
	s->sys = add_window(&s->m, u->sys, SYS_SIZE, !u->env.smap);
	if (lma)
		add_window(&s->m, STACK_64, PAGE_SIZE, !u->env.smap);
	if (u->env.mmio)
		machine_map(&s->m, u->env.mmio, PTE_P | PTE_W | PTE_U | PTE_A | PTE_D);
	s->irqs = u->irqs;
	if (s->vcpu[1])
		make_vcpu(s, u, s->vcpu[1]);
	make_vcpu(s, u, s->vcpu[0]);
	memcpy(s->sys_clean, s->sys, SYS_COUNT & PAGE_MASK);
}

static void make_setup(enum mode mode)
{
	struct setup *u = &setups[mode];
	bool low = mode == REAL || mode == PROT16 || mode == V86 || mode == SEG16;

	u->mode = mode;
	u->lma = mode == LONG3 || mode == LONG0 || mode == COMPAT3 || mode == SEGC;
	u->dpl = mode == LONG0 || mode == PROT0 || mode == PROT16 || mode == REAL ? 0 : 3;
	u->env.bits = mode <= LONG0 ? 64 : low ? 16 : 32;
	u->env.segs = mode >= PROT16;
	u->env.vex = true; /* in real and virtual-8086 mode #UD */
	u->env.sse = true;
	u->env.smap = mode == LONG0;
	u->env.io = mode == LONG0 || mode == PROT0 || mode == PROT16 || mode == REAL;
	u->env.code = low ? 0x20000 : 0x30000000;
	u->env.code_size = CODE_SIZE;
	u->data = low ? 0x30000 : 0x40000000;
	u->data_size = low ? DATA_SIZE_16 : DATA_SIZE;
	u->env.data_abs = low ? 0 : mode >= SEG32 ? DATA_OFF : u->data;
	/* Below 64 KiB: IRET to a 16-bit stack leaves the upper half of the handler's ESP behind. */
	u->sys = mode >= PROT16 ? 0x8000 : u->lma ? 0x50000000 : 0xa7b50000;
	u->env.mmio = mode >= PROT16 ? 0 : 0x60000000;
	u->irqs = mode != PROT0 && mode != PROT16 && mode != REAL; /* they would use the program's stack */
	make_side(&u->interp, u, -1);
	make_side(&u->replay, u, -1);
	for (int k = 0; k < VARIANTS; k++)
		make_side(&u->jit[k], u, k);
}

/* ---- segments --------------------------------------------------------------------------------------------------- */

static u64 desc_of(const struct seg *s)
{
	u32 limit = s->limit > 0xfffff ? s->limit >> 12 : s->limit;
	u64 access = s->type | 0x90u | (u64)s->dpl << 5, flags = (s->limit > 0xfffff ? 8u : 0) | (s->db ? 4u : 0);

	return (limit & 0xffff) | (s->base & 0xffffff) << 16 | access << 40 | (u64)(limit >> 16) << 48 | flags << 52 |
	       (s->base >> 24 & 0xff) << 56;
}

static void vary_data(const struct setup *u, struct seg *s, unsigned n)
{
	u32 most = u->env.bits == 16 ? 0xffff : 0xffffffffu;
	bool protected = u->mode != REAL && u->mode != V86;
	u32 off = u->env.bits == 32 ? DATA_OFF : 0;

	s->base = u->data;
	if (u->env.bits == 32)
		s->base -= DATA_OFF;
	else if (n != SEG_SS)
		s->base += gen_rnd(16) * 16;
	s->sel = protected ? s->sel : (u16)(s->base >> 4);
	s->limit = most;
	if (u->mode == V86)
		return;
	/* Often where the program's pointers are. */
	if (gen_rnd(3) == 0)
		s->limit = n == SEG_SS ? 0x3000 + gen_rnd(0x1000) : 0x800 + gen_rnd(0x3000);
	else if (gen_rnd(6) == 0)
		s->limit = (n == SEG_SS ? off + 0x27f0 : off + 0xf00) + gen_rnd(200);
	else if (gen_rnd(4) == 0)
		s->limit = 0xffffffffu;
	if (gen_rnd(12) == 0) {
		s->type |= SEGT_E;
		s->limit = gen_rnd(4) ? gen_rnd(0x1200) : (n == SEG_SS ? off + 0x27f0 : off + 0xf00) + gen_rnd(200);
		s->db = gen_rnd(2);
	}
	if (n == SEG_SS) {
		s->db = gen_rnd(4) ? u->env.bits == 32 : u->env.bits != 32;
	} else if (protected && gen_rnd(4) == 0) {
		static const u8 type[] = {SEGT_A, SEGT_A, SEGT_A | SEGT_E, SEGT_A | SEGT_CODE | SEGT_R,
		                          SEGT_A | SEGT_CODE};

		s->type = type[gen_rnd(5)];
		if (gen_rnd(4) == 0)
			*s = (struct seg){.unusable = true};
	}
}

/* The segments of the next round; of a new program, whose place is chosen, also where CS begins. */
static void vary_segments(struct setup *u, struct side *j, bool new_program)
{
	struct seg seg[SEG_COUNT], *cs = &seg[SEG_CS];
	bool protected = u->mode != REAL && u->mode != V86;
	struct side *side[3] = {&u->interp, j, &u->replay};

	memcpy(seg, u->interp.plain, sizeof(seg));
	for (unsigned n = SEG_ES; n <= SEG_FS; n++)
		if (n != SEG_CS)
			vary_data(u, &seg[n], n);
	if (!new_program)
		cs->base = u->env.cs_base;
	else if (u->env.bits == 32)
		cs->base = u->env.code - gen_rnd(gen_rnd(2) ? 0x10000000 : 0x6000);
	else if (gen_rnd(4) == 0) /* offset 0xffff lies inside the program */
		cs->base = (program.at + gen_rnd(500) - 0x10000) & (protected ? ~0ull : ~15ull);
	else
		cs->base = u->env.code - gen_rnd(0x700) * 16;
	if (!protected)
		cs->sel = (u16)(cs->base >> 4);
	cs->limit = u->env.bits == 32 ? 0xffffffffu : 0xffff;
	if (u->mode != V86 && gen_rnd(4) == 0)
		cs->limit = (u32)(program.at - cs->base) + gen_rnd(500);
	else if (u->mode != V86 && gen_rnd(8) == 0)
		cs->limit = 0xffffffffu;
	if (cs->limit > 0xfffff) /* what a descriptor can say */
		cs->limit |= 0xfff;
	u->env.cs_base = cs->base;
	u->env.cut_ok = u->env.bits == 16 || program.at - cs->base < 0xc000;
	seg[SEG_GS].base = u->env.gs_base = u->env.code;
	if (!protected)
		seg[SEG_GS].sel = (u16)(u->env.code >> 4);
	if (u->mode == V86)
		for (unsigned n = SEG_ES; n <= SEG_GS; n++)
			seg[n] = (struct seg){.sel = (u16)(seg[n].base >> 4),
			                      .type = SEGT_W | SEGT_A,
			                      .dpl = 3,
			                      .s = true,
			                      .present = true,
			                      .limit = 0xffff,
			                      .base = seg[n].base};
	for (unsigned k = 0; k < 3; k++) {
		u64 desc[2] = {desc_of(&seg[SEG_CS]), desc_of(&seg[SEG_SS])};

		memcpy(side[k]->seg, seg, sizeof(seg));
		if (u->dpl == 0 || !protected)
			continue;
		/* IRET of an interrupt's handler loads them again. */
		memcpy(side[k]->sys + SYS_GDT + 0x20, desc, 16);
		memcpy(side[k]->sys_clean + SYS_GDT + 0x20, desc, 16);
	}
}

/* ---- running ---------------------------------------------------------------------------------------------------- */

struct start {
	u64 r[16], rflags;
	u8 ymm[16][32];
	u32 mxcsr;
	u16 fcw, fsw;
	u8 tags, st[8][16];
	bool x87_used;
	u64 pool;
};

static void pointers(const struct setup *u, u64 *r)
{
	u64 base = u->env.bits == 16 ? 0 : u->mode >= SEG32 ? DATA_OFF : u->data;

	r[R_RSP] = base + 0x2800;
	r[R_RDI] = base + 0xf00;
	if (u->env.bits == 64)
		r[R_R15] = base + 0x1800;
	else
		r[R_RBP] = 3;
	if (u->env.bits != 64)
		for (unsigned k = 0; k < 16; k++)
			r[k] = k < 8 ? (u32)r[k] : 0;
}

/* Any state: numbers near one, other numbers, empty registers; now and then with an exception unmasked or pending. */
static void make_x87(struct start *s)
{
	memset(s->st, 0, sizeof(s->st));
	s->fcw = 0x37f;
	s->fsw = 0;
	s->tags = 0;
	s->x87_used = gen_rnd(4);
	if (gen_rnd(2))
		return;
	s->fcw = (u16)(0x7f | gen_rnd(16) << 8 | (gen_rnd(8) ? 0x300 : 0));
	if (gen_rnd(24) == 0)
		s->fcw ^= (u16)gen_rnd(64);
	s->fsw = (u16)(gen_rnd(8) << 11 | (gen_rnd(2) ? gen_rnd(0x80) | gen_rnd(8) << 8 : 0));
	s->tags = (u8)(gen_rnd(2) ? 0xffu << gen_rnd(9) : gen_rnd(256));
	for (unsigned k = 0; k < 8; k++) {
		u64 x = gen_u64();
		u16 exp = (u16)(gen_rnd(4) ? 0x3ffau + gen_rnd(10) : gen_rnd(65536));

		if (gen_rnd(8))
			x |= 1ull << 63;
		memcpy(s->st[k], &x, 8);
		memcpy(s->st[k] + 8, &exp, 2);
	}
}

static void make_start(const struct setup *u, struct start *s)
{
	for (unsigned k = 0; k < 16; k++)
		s->r[k] = gen_u64();
	pointers(u, s->r);
	s->r[R_RDI] += gen_rnd(16) * 8;
	if (u->env.segs && gen_rnd(6) == 0)
		s->r[R_RSP] = gen_rnd(2) || u->irqs ? gen_rnd(12) : s->r[R_RSP] | (u64)gen_rnd(65536) << 16;
	s->rflags = (u->mode == V86 ? FLAGS_VM | FLAGS_IOPL : 0) | FLAGS_FIXED | (gen_u64() & FLAGS_ARITH) |
	            (u->irqs ? FLAGS_IF : 0);
	for (unsigned k = 0; k < 64; k++)
		((u64 *)(void *)s->ymm)[k] = gen_u64();
	s->mxcsr = 0x1f80 | (gen_rnd(4) ? 0 : gen_rnd(4) << 13) | (gen_rnd(6) ? 0 : 0x8000);
	make_x87(s);
	s->pool = gen_rnd((u32)(POOL_SIZE - u->data_size)) & ~7u;
}

static void set_side(const struct setup *u, struct side *s, const struct start *st)
{
	struct vcpu *v = s->m.v;

	memset(s->code, 0, CODE_SIZE);
	memcpy(s->code + (program.at - u->env.code), program.bytes, program.len);
	memcpy(s->data, pool + st->pool, u->data_size);
	if (memcmp(s->sys, s->sys_clean, sizeof(s->sys_clean)))
		memcpy(s->sys, s->sys_clean, sizeof(s->sys_clean));
	/* A wild jump may run what lies there. */
	if (s->hlt)
		memset(s->hlt, 0xf4, HLT_SIZE);
	memset(s->sys + SYS_COUNT, 0, SYS_SIZE - SYS_COUNT);
	if (memcmp(&v->gdt, s->clean + SPAN(seg, gdt), SPAN(gdt, excp)) ||
	    memcmp(&v->star, s->clean + SPAN(seg, star), SPAN(star, fpu))) {
		memcpy(v->seg, s->clean, sizeof(s->clean));
		cpu_set_crs(v, v->cr0, v->cr3, v->cr4, v->efer);
		dbg_update(v);
	}
	v->pending_db = 0;
	v->nmi_masked = false;
	memcpy(v->r, st->r, sizeof(st->r));
	v->rflags = st->rflags;
	memcpy(v->fpu.ymm, st->ymm, sizeof(st->ymm));
	fpu_fninit(&v->fpu);
	fx_set16(v->fpu.fx, FX_FCW, st->fcw);
	fx_set16(v->fpu.fx, FX_FSW, st->fsw);
	v->fpu.fx[FX_FTW] = st->tags;
	memcpy(v->fpu.fx + FX_ST, st->st, 128);
	fpu_update_es(&v->fpu);
	memset(v->fpu.fx + FX_FOP, 0, 2 + 8 + 8);
	v->fpu.fcs = v->fpu.fds = 0;
	v->fpu.x87_used = st->x87_used;
	v->fpu.mxcsr = st->mxcsr;
	v->shadow = 0;
	v->mid_rep = false;
	s->irq = false;
	s->io = 1;
	atomic_store(&v->events, 0u);
	interp_abandon(v);
	v->mmu.n_writes = v->mmu.next_write = 0;
}

/* The next run starts at `off` of the program, with the program's segments. */
static void enter_at(const struct setup *u, struct side *s, unsigned off)
{
	struct vcpu *v = s->m.v;

	memcpy(v->seg, s->seg, sizeof(s->seg));
	v->r[R_RIP] = program.at + u->away + off - v->seg[SEG_CS].base;
	if (!(v->rflags & FLAGS_VM) && u->mode == V86)
		v->rflags |= FLAGS_VM;
	v->rflags &= ~(u64)(FLAGS_TF | FLAGS_AC | FLAGS_RF);
	if (u->env.smap)
		v->rflags |= FLAGS_AC;
	cpu_update(v);
}

static bool timer = true;
static volatile u64 n_runs, seen_runs;
static volatile unsigned seen_ticks;

static void run(struct side *s)
{
	struct vcpu *v = s->m.v;

	s->faulted = false;
	n_runs++;
	running = s;
	if (v->jit)
		jit_run(v);
	else
		interp_run(v);
	running = NULL;
}

/* An interrupt now, wherever it is; a run that does not end (a program may overwrite a return address) is given up. */
static void tick(int sig)
{
	struct side *s = running;

	if (!s)
		return;
	if (n_runs != seen_runs) {
		seen_runs = n_runs;
		seen_ticks = 0;
	} else if (++seen_ticks > 100) {
		atomic_fetch_or(&s->m.v->events, (u32)EV_SIGNAL);
		return;
	}
	if (!timer)
		return;
	s->irq = true;
	atomic_fetch_or(&s->m.v->events, (u32)(seen_ticks & 1 ? EV_IRQ | EV_KICK : EV_IRQ));
}

/* ---- comparing -------------------------------------------------------------------------------------------------- */

static bool bad;

static void word(const char *what, unsigned k, u64 a, u64 b)
{
	if (a == b)
		return;
	bad = true;
	printf("  %s%u %#llx, translator %#llx\n", what, k, (unsigned long long)a, (unsigned long long)b);
}

static void bytes(const char *what, const void *a, const void *b, size_t len)
{
	const u8 *x = a, *y = b;

	if (!memcmp(a, b, len))
		return;
	bad = true;
	for (size_t k = 0, shown = 0; k < len && shown < 8; k++)
		if (x[k] != y[k]) {
			printf("  %s +%#zx %02x, translator %02x\n", what, k, x[k], y[k]);
			shown++;
		}
}

static u16 visible(const struct seg *s)
{
	return s->unusable && s->sel < 4 ? 0 : s->sel;
}

static bool same(const struct setup *u, struct side *si, struct side *sj)
{
	struct vcpu *a = si->m.v, *b = sj->m.v;

	/* An interrupt in the middle of one comes back with RF set, until it is done; and only one side had it. */
	u64 mask = in_repetition(&u->env, si) ? FLAGS_RF : 0;

	bad = false;
	for (unsigned k = 0; k < R_COUNT; k++)
		word("r", k, a->r[k], b->r[k]);
	word("rflags", 0, a->rflags & ~mask, b->rflags & ~mask);
	word("mxcsr", 0, a->fpu.mxcsr, b->fpu.mxcsr);
	word("cr2 ", 0, a->cr2, b->cr2);
	bytes("ymm", a->fpu.ymm, b->fpu.ymm, sizeof(a->fpu.ymm));
	bytes("x87", a->fpu.fx, b->fpu.fx, 160);
	word("FCS ", 0, a->fpu.fcs, b->fpu.fcs);
	word("FDS ", 0, a->fpu.fds, b->fpu.fds);
	word("x87 used ", 0, a->fpu.x87_used, b->fpu.x87_used);
	for (unsigned k = 0; k <= SEG_GS; k++) {
		/* An interrupt's IRET to an outer ring takes a null selector's RPL away; and each side has its own. */
		word("selector ", k, visible(&a->seg[k]), visible(&b->seg[k]));
		word("base ", k, a->seg[k].base, b->seg[k].base);
		word("limit ", k, a->seg[k].limit, b->seg[k].limit);
		word("type ", k, a->seg[k].type, b->seg[k].type);
	}
	bytes("control and debug registers", &a->gdt, &b->gdt, SPAN(gdt, excp));
	bytes("MSRs", &a->star, &b->star, SPAN(star, fpu));
	bytes("data", si->data, sj->data, u->data_size);
	bytes("code", si->code, sj->code, CODE_SIZE);
	if (si->hlt)
		bytes("below the code", si->hlt, sj->hlt, HLT_SIZE);
	word("exit ", 0, a->exit.reason, b->exit.reason);
	word("ports ", 0, si->io, sj->io);
	if (si->faulted != sj->faulted) {
		bad = true;
		printf("  one of them faults\n");
	} else if (si->faulted) {
		word("vector ", 0, a->excp.vector, b->excp.vector);
		word("error ", 0, a->excp.has_error ? a->excp.error : 0, b->excp.has_error ? b->excp.error : 0);
		if (a->excp.vector == EXC_PF)
			word("fault address ", 0, a->excp.cr2, b->excp.cr2);
	} else if (a->exit.reason == EXIT_MMIO) {
		word("mmio gpa ", 0, a->exit.mmio.gpa, b->exit.mmio.gpa);
		word("mmio len ", 0, a->exit.mmio.len, b->exit.mmio.len);
		word("mmio write ", 0, a->exit.mmio.is_write, b->exit.mmio.is_write);
		if (a->exit.mmio.is_write)
			bytes("mmio data", a->exit.mmio.data, b->exit.mmio.data, a->exit.mmio.len);
	}
	if (bad)
		printf("  at rip %#llx, exit %u%s\n", (unsigned long long)a->r[R_RIP], a->exit.reason,
		       si->faulted ? ", a fault" : "");
	return !bad;
}

static void answer(struct vcpu *v)
{
	u64 x = v->exit.mmio.gpa * 0x9e3779b97f4a7c15ull;

	if (!v->exit.mmio.is_write)
		mmio_answer(&v->mmu, (const u8 *)&x);
}

/* Offset of the chunk behind a fault; 0: none. */
static unsigned chunk_behind(const struct setup *u, const struct vcpu *v)
{
	u64 off = home(&u->env, v->r[R_RIP] + v->seg[SEG_CS].base) - program.at;

	if (off >= program.len)
		return 0;
	for (unsigned k = 0; k < program.n_chunks; k++)
		if (program.chunk[k] > off)
			return program.chunk[k];
	return 0;
}

static bool any_insn(const struct insn *i)
{
	return false;
}

/* The interpreter goes the way from the start again, instruction by instruction: it must come by what j was at each
 * interrupt. False: registers agree somewhere, and flags never. */
static bool came_by(struct setup *u, const struct side *j, const struct start *st)
{
	struct side *s = &u->replay;
	struct vcpu *v = s->m.v;
	unsigned k = 0, done = 1;
	u64 near = 0;
	int rc = STEP_OK;

	set_side(u, s, st);
	enter_at(u, s, 0);
	/* Repetitions stop after each element. */
	atomic_fetch_or(&v->events, (u32)EV_CHECK);
	for (unsigned left = 200000; left-- && k < j->n_seen && rc <= STEP_JUMP && done;) {
		while (k < j->n_seen && v->seg[SEG_CS].base == j->seen[k].cs_base &&
		       !memcmp(v->r, j->seen[k].r, sizeof(v->r))) {
			near = v->rflags | 1ull << 63;
			if ((v->rflags ^ j->seen[k].rflags) & ~(u64)(FLAGS_RF | FLAGS_IF))
				break;
			near = 0;
			n.seen++;
			k++;
		}
		rc = interp_walk(v, 1, any_insn, &done);
	}
	if (!near)
		return true;
	printf("  interrupt at rip %#llx: rflags %#llx, translator %#llx\n", (unsigned long long)j->seen[k].r[R_RIP],
	       (unsigned long long)(near << 1 >> 1), (unsigned long long)j->seen[k].rflags);
	return false;
}

enum { SAME, DIFFER, ABANDONED };

static int one_round(struct setup *u, struct side *j, unsigned round)
{
	struct side *i = &u->interp;
	struct vcpu *a = i->m.v, *b = j->vcpu[1] && (round & 1) ? j->vcpu[1] : j->vcpu[0];
	u64 before = a->n_insns;
	unsigned faults = 0, off;
	struct start st;

	j->m.v = b;
	if (u->env.segs && round)
		vary_segments(u, j, false);
	u->away = u->env.bits == 64 ? away[gen_rnd(ARRAY_SIZE(away))] : 0;
	make_start(u, &st);
	set_side(u, i, &st);
	set_side(u, j, &st);
	enter_at(u, i, 0);
	enter_at(u, j, 0);
	for (unsigned stops = 0; stops < 300; stops++) {
		if (u->irqs && gen_rnd(4) == 0) {
			j->irq = true;
			atomic_fetch_or(&b->events, (u32)EV_IRQ);
		}
		run(i);
		j->watch = stops == 0;
		j->n_seen = 0;
		run(j);
		j->watch = false;
		/* Given up: the other side, the faster one, may have come to its end. */
		if (a->exit.reason == EXIT_INTR || b->exit.reason == EXIT_INTR)
			return ABANDONED;
		if (b->exit.reason == EXIT_INTERNAL && a->exit.reason != EXIT_INTERNAL)
			return DIFFER;
		if (!same(u, i, j))
			return DIFFER;
		if (j->n_seen && !came_by(u, j, &st))
			return DIFFER;
		if (i->faulted) {
			n.faults++;
			off = chunk_behind(u, a);
			if (!off || ++faults > FAULTS_MAX)
				break;
			for (unsigned k = 0; k < 2; k++) {
				struct vcpu *v = k ? b : a;

				pointers(u, v->r);
				v->mmu.n_writes = v->mmu.next_write = 0;
				interp_abandon(v);
				enter_at(u, k ? j : i, off);
			}
		} else if (a->exit.reason == EXIT_MMIO) {
			n.exits++;
			answer(a);
			answer(b);
		} else {
			break;
		}
	}
	n.insns += a->n_insns - before;
	return SAME;
}

static void show(void)
{
	printf("  %u bytes at %#llx:", program.len, (unsigned long long)program.at);
	for (unsigned k = 0; k < program.len; k++)
		printf(" %02x", program.bytes[k]);
	printf("\n");
}

static int only_mode = -1, only_variant = -1;
static bool verbose;

/* One that has found something refuses to go on. */
static void renew_lockstep(struct jit *j)
{
	lockstep_destroy(j);
	setenv("DEVKVM_LOCKSTEP", "1", 1);
	lockstep_create(j);
}

/* Has the program loaded a segment that shows the interrupts' stack and count, which are one side's alone? */
static bool sees_sys(const struct setup *u)
{
	const struct vcpu *v = u->interp.m.v;

	if (u->mode != V86 && u->mode != REAL)
		return false;
	for (unsigned k = SEG_ES; k <= SEG_GS; k++)
		if (v->seg[k].base < u->sys + SYS_SIZE && v->seg[k].base + v->seg[k].limit >= u->sys)
			return true;
	return false;
}

/* Program `k` of the batch of `seed`. */
static bool one(u64 seed, unsigned k)
{
	static const u8 mix[] = {LONG3, LONG3, LONG3, LONG0,  LONG0, LONG0, COMPAT3, COMPAT3,
	                         PROT3, PROT0, SEGC,  PROT16, REAL,  V86,   SEG16,   SEG32};
	enum mode mode;
	struct setup *u;
	unsigned variant;
	int rc = SAME;

	saw_tsc = saw_interrupt = false;
	gen_seed(seed * BATCH + k);
	mode = (enum mode)mix[gen_rnd(16)];
	if (only_mode >= 0)
		mode = (enum mode)only_mode;
	u = &setups[mode];
	variant = gen_rnd(8) < 4 ? PLAIN : gen_rnd(16) < 10 ? CHAOS : LOCKSTEP + gen_rnd(2);
	if (only_variant >= 0)
		variant = (unsigned)only_variant;
	gen_place(&u->env, &program);
	if (u->env.segs)
		vary_segments(u, &u->jit[variant], true);
	gen_program(&u->env, &program);
	if (verbose) {
		printf("program %u, %s, %s\n", k, mode_name[mode], variant_name[variant]);
		show();
	}
	for (unsigned n = 0; n < 2; n++) {
		const struct vcpu *v = u->jit[variant].vcpu[n];

		if (v && v->jit->chaos.on)
			v->jit->chaos.rng = ((seed * BATCH + k) * 2 + n) * 0x9e3779b97f4a7c15ull | 1;
	}
	/* (A program that overwrites the interrupts' tables or handler differs, as only one side has interrupts.) */
	for (unsigned round = 0; round < ROUNDS && rc == SAME; round++)
		rc = one_round(u, &u->jit[variant], round);
	n.programs++;
	n.by_mode[mode]++;
	if (rc == ABANDONED)
		n.abandoned++;
	if (rc != DIFFER)
		return true;
	if (memcmp(u->interp.sys, u->interp.sys_clean, sizeof(u->interp.sys_clean)) || sees_sys(u) || saw_tsc ||
	    saw_interrupt) {
		n.abandoned++;
		return true;
	}
	if (variant >= LOCKSTEP)
		renew_lockstep(u->jit[variant].m.v->jit);
	n.failed++;
	printf("FAILED program %u of seed %llu (%s, %s): engines differ\n"
	       "  replay: jit-random --seed %llu --programs %u --no-timer\n",
	       k, (unsigned long long)seed, mode_name[mode], variant_name[variant], (unsigned long long)seed, BATCH);
	if (!verbose)
		show();
	return false;
}

static void flush_all(void)
{
	for (unsigned m = 0; m < MODES; m++)
		for (unsigned k = 0; k < VARIANTS; k++)
			for (unsigned n = 0; n < 2; n++)
				if (setups[m].jit[k].vcpu[n])
					jit_flush(setups[m].jit[k].vcpu[n]);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void line(u64 seed, double since)
{
	printf("%9.0f s: seed %llu, %llu programs, %llu instructions, %llu faults, %llu MMIO exits, %llu interrupts "
	       "(%llu checked), "
	       "%llu blocks copied, %llu in the place of others, %llu from another vCPU, %llu given up, %llu failed\n",
	       now() - since, (unsigned long long)seed, (unsigned long long)n.programs, (unsigned long long)n.insns,
	       (unsigned long long)n.faults, (unsigned long long)n.exits, (unsigned long long)n.irqs,
	       (unsigned long long)n.seen, (unsigned long long)n.copied, (unsigned long long)n.retaken,
	       (unsigned long long)n.imported, (unsigned long long)n.abandoned, (unsigned long long)n.failed);
	fflush(stdout);
}

static void count_sides(void)
{
	n.irqs = n.copied = n.retaken = n.imported = 0;
	for (unsigned m = 0; m < MODES; m++)
		for (unsigned k = 0; k < VARIANTS; k++) {
			n.irqs += setups[m].jit[k].n_irqs;
			for (unsigned c = 0; c < 2 && setups[m].jit[k].vcpu[c]; c++) {
				const struct jit *j = setups[m].jit[k].vcpu[c]->jit;

				n.copied += j->n.copied;
				n.retaken += j->n.retaken;
				n.imported += j->n.imported;
			}
		}
}

int main(int argc, char **argv)
{
	u64 seed = (u64)time(NULL) * 1000 + (u64)getpid() % 1000, programs = ~0ull, insns = ~0ull;
	bool progress = false;
	double since, last;

	for (int k = 1; k < argc; k++) {
		if (!strcmp(argv[k], "--show"))
			verbose = true;
		else if (!strcmp(argv[k], "--progress"))
			progress = true;
		else if (!strcmp(argv[k], "--no-timer"))
			timer = false;
		else if (!strcmp(argv[k], "--x87"))
			gen_x87_rich = true;
		else if (k + 1 < argc && !strcmp(argv[k], "--seed"))
			seed = strtoull(argv[++k], NULL, 0);
		else if (k + 1 < argc && !strcmp(argv[k], "--programs"))
			programs = strtoull(argv[++k], NULL, 0);
		else if (k + 1 < argc && !strcmp(argv[k], "--insns"))
			insns = strtoull(argv[++k], NULL, 0);
		else if (k + 1 < argc && !strcmp(argv[k], "--mode"))
			for (k++, only_mode = MODES - 1; only_mode > 0 && strcmp(argv[k], mode_name[only_mode]);)
				only_mode--;
		else if (k + 1 < argc && !strcmp(argv[k], "--variant"))
			for (k++, only_variant = VARIANTS - 1;
			     only_variant > 0 && strcmp(argv[k], variant_name[only_variant]);)
				only_variant--;
		else
			return 2;
	}
	if (programs == ~0ull && insns == ~0ull)
		insns = 1000000;
	for (unsigned m = 0; m < MODES; m++)
		make_setup((enum mode)m);
	if (!setups[0].jit[0].m.v->jit) {
		printf("no translator here\n0 passed, 0 failed\n");
		return 0;
	}
	gen_seed(1);
	pool = malloc(POOL_SIZE);
	for (size_t k = 0; k < POOL_SIZE / 8; k++)
		((u64 *)(void *)pool)[k] = gen_u64();
	printf("seed %llu\n", (unsigned long long)seed);
	fflush(stdout);
	since = last = now();
	signal(SIGALRM, tick);
	setitimer(ITIMER_REAL, &(struct itimerval){{0, timer ? 170 : 2000}, {0, timer ? 170 : 2000}}, NULL);
	for (; n.programs < programs && n.insns < insns && n.failed <= 10; seed++) {
		flush_all();
		for (unsigned k = 0; k < BATCH && n.programs < programs && n.insns < insns && n.failed <= 10; k++)
			one(seed, k);
		count_sides();
		if (progress && now() - last > 10) {
			last = now();
			line(seed, since);
		}
	}
	line(seed - 1, since);
	for (unsigned m = 0; m < MODES; m++)
		printf("%s %llu ", mode_name[m], (unsigned long long)n.by_mode[m]);
	printf("programs\n");
	if (n.abandoned * 50 > n.programs) {
		printf("FAILED: too many programs were given up\n");
		n.failed++;
	}
	if (n.programs > 1000 && only_mode < 0 && only_variant < 0 &&
	    (n.copied * 10 < n.programs || n.retaken * 100 < n.programs || n.imported < n.programs)) {
		printf("FAILED: too few blocks were copied\n");
		n.failed++;
	}
	if (n.irqs > 1000 && n.seen * 10 < n.irqs) {
		printf("FAILED: too few interrupts were checked\n");
		n.failed++;
	}
	printf("%llu passed, %llu failed\n", (unsigned long long)(n.programs - n.failed), (unsigned long long)n.failed);
	return n.failed != 0;
}
