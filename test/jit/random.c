/*
 * random.c: random programs, interpreter against translator.
 *
 * A program is 5 to 200 instructions of integer, stack, branch and SSE/AVX code with loops and calls, laid across page
 * borders now and then. Both engines run it from the same state, several times over (so that links, jump cache and
 * return prediction take part), and registers, flags, vector registers, MXCSR and memory are compared at its end. The
 * end is HLT or the first exception; at an exception arithmetic flags are not compared (GAP(dead-flags), trans.c).
 *
 *   random [--seed N] [--programs N] [--only N] [--show]
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <unistd.h>

#include "../../src/jit/emit.h"
#include "../../src/jit/jit.h"
#include "../../src/x86/pte.h"
#include "../insn/machine.h"

#define CODE 0x30000000ul
#define CODE_SIZE 0x8000ul
#define DATA 0x40000000ul
#define DATA_SIZE 0x4000ul

int __wrap_excp_deliver(struct vcpu *v);

static u64 rng;
static struct machine mach[2]; /* 0: interpreter, 1: translator */
static bool faulted;
static u8 program[8192];
static unsigned program_len, n_insns;
static u64 program_at;

int __wrap_excp_deliver(struct vcpu *v)
{
	v->exit.reason = EXIT_SHUTDOWN;
	faulted = true;
	return STEP_EXIT;
}

static u32 rnd(u32 n)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (u32)((rng >> 16) % n);
}

/* ---- the generator ---------------------------------------------------------------------------------------------- */

static struct emit e;

/* RSP, RDI and R15 keep pointing into the data; R12 counts loops. */
static unsigned any_reg(void)
{
	static const u8 r[] = {0, 1, 2, 3, 5, 6, 8, 9, 10, 11, 13, 14};

	return r[rnd(sizeof(r))];
}

static struct rm any_mem(void)
{
	static const u8 base[] = {H_RDI, H_RDI, H_RSP, H_R15};
	unsigned b = base[rnd(4)];
	s32 disp = (s32)rnd(rnd(8) ? 200 : 2200) - 64;

	if (rnd(60) == 0) /* anywhere: faults */
		return rm_sib(any_reg(), rnd(2) ? any_reg() : H_NONE, rnd(4), disp);
	return rm_mem(b, disp);
}

static struct rm any_rm(void)
{
	return rnd(3) ? rm_reg(any_reg()) : any_mem();
}

static unsigned size_flags(u8 *op)
{
	switch (rnd(5)) {
	case 0:
		return ENC_REX;
	case 1:
		*op |= 1;
		return ENC_66;
	case 2:
		*op |= 1;
		return 0;
	default:
		*op |= 1;
		return ENC_W;
	}
}

static void imm_for(unsigned f, u8 op)
{
	if (!(op & 1))
		e1(&e, (u8)rnd(256));
	else if (f & ENC_66)
		e2(&e, (u16)rnd(65536));
	else
		e4(&e, rnd(3) ? rnd(1000) : (u32)rng);
}

static void gen_alu(void)
{
	u8 op = (u8)(rnd(8) << 3 | rnd(2) << 1);
	unsigned f = size_flags(&op);

	encode(&e, f, 0, op, any_reg(), any_rm());
}

static void gen_alu_imm(void)
{
	u8 op = 0x80;
	unsigned f = size_flags(&op);

	if (rnd(2) && (op & 1)) {
		encode(&e, f, 0, 0x83, rnd(8), any_rm());
		e1(&e, (u8)rnd(256));
		return;
	}
	encode(&e, f, 0, op, rnd(8), any_rm());
	imm_for(f, op);
}

static void gen_mov(void)
{
	u8 op = rnd(2) ? 0x88 : 0x8a;
	unsigned f = size_flags(&op);

	encode(&e, f, 0, op, any_reg(), any_rm());
}

static void gen_unary(void)
{
	u8 op;
	unsigned f;

	switch (rnd(7)) {
	case 0:
		op = 0xfe;
		f = size_flags(&op);
		encode(&e, f, 0, op, rnd(2), any_rm());
		break;
	case 1:
		op = 0xf6;
		f = size_flags(&op);
		encode(&e, f, 0, op, 2 + rnd(4), any_rm()); /* not neg mul imul */
		break;
	case 2:
		op = 0xc0;
		f = size_flags(&op);
		encode(&e, f, 0, op, rnd(8), any_rm());
		e1(&e, (u8)rnd(70));
		break;
	case 3:
		op = rnd(2) ? 0xd0 : 0xd2;
		f = size_flags(&op);
		encode(&e, f, 0, op, rnd(8), any_rm());
		break;
	case 4:
		encode(&e, rnd(2) ? ENC_W : 0, 1, (u8)(rnd(2) ? 0xa4 : 0xac), any_reg(), any_rm());
		e1(&e, (u8)rnd(70));
		break;
	case 5:
		op = 0xf6;
		f = size_flags(&op);
		encode(&e, f, 0, op, 6 + rnd(2), any_rm()); /* div idiv */
		break;
	default:
		encode(&e, ENC_W, 0, 0x69, any_reg(), any_rm());
		e4(&e, (u32)rng);
	}
}

static void gen_misc(void)
{
	u8 op;
	unsigned f;

	switch (rnd(14)) {
	case 0:
		encode(&e, rnd(2) ? ENC_W : 0, 0, 0x8d, any_reg(), rm_sib(any_reg(), any_reg(), rnd(4), (s32)rng));
		break;
	case 1:
		encode(&e, rnd(2) ? ENC_W : 0, 1, (u8)(0x40 | rnd(16)), any_reg(), any_rm());
		break;
	case 2:
		encode(&e, ENC_REX, 1, (u8)(0x90 | rnd(16)), 0, any_rm());
		break;
	case 3:
		encode(&e, (rnd(2) ? ENC_W : 0) | ENC_REX, 1, (u8)(0xb6 | rnd(2) | rnd(2) << 3), any_reg(), any_rm());
		break;
	case 4:
		encode(&e, ENC_W, 0, 0x63, any_reg(), any_rm());
		break;
	case 5:
		encode(&e, rnd(2) ? ENC_W : 0, 1, (u8)(0xa3 | rnd(4) << 3), any_reg(), rm_reg(any_reg()));
		break;
	case 6:
		encode(&e, rnd(2) ? ENC_W : 0, 1, 0xba, 4 + rnd(4), any_rm());
		e1(&e, (u8)rnd(256));
		break;
	case 7:
		encode(&e, rnd(2) ? ENC_F3 : 0, 1, (u8)(0xbc | rnd(2)), any_reg(), any_rm());
		break;
	case 8:
		op = 0x86;
		f = size_flags(&op);
		encode(&e, f, 0, op, any_reg(), any_rm());
		break;
	case 9:
		op = 0xc0;
		f = size_flags(&op);
		encode(&e, f | ENC_LOCK, 1, op, any_reg(), any_mem());
		break;
	case 10:
		op = 0xb0;
		f = size_flags(&op);
		encode(&e, f | (rnd(2) ? ENC_LOCK : 0), 1, op, any_reg(), any_mem());
		break;
	case 11: {
		static const u8 one[] = {0x98, 0x99, 0xf5, 0xf8, 0xf9, 0x9e, 0x9f, 0xfc};

		if (rnd(2))
			e1(&e, 0x48);
		e1(&e, one[rnd(sizeof(one))]);
		break;
	}
	case 12: /* high byte registers */
		e1(&e, (u8)(0x00 | rnd(8) << 3));
		e1(&e, (u8)(0xc0 | rnd(64)));
		break;
	default:
		op = (u8)any_reg();
		e1(&e, (u8)(0x48 | op >> 3));
		e1(&e, 0x0f);
		e1(&e, (u8)(0xc8 | (op & 7)));
	}
}

static void gen_stack(void)
{
	unsigned r = any_reg(), s = any_reg();

	if (r >= 8)
		e1(&e, 0x41);
	e1(&e, (u8)(0x50 | (r & 7)));
	if (rnd(4) == 0) {
		e1(&e, 0x9c); /* pushf, pop: the flags as a value */
		r = any_reg();
		if (r >= 8)
			e1(&e, 0x41);
		e1(&e, (u8)(0x58 | (r & 7)));
	}
	if (s >= 8)
		e1(&e, 0x41);
	e1(&e, (u8)(0x58 | (s & 7)));
}

static void gen_sse(void)
{
	static const u8 plain[] = {0x14, 0x15, 0x28, 0x51, 0x54, 0x57, 0x58, 0x59, 0x5c, 0x5d, 0x5e, 0x5f, 0x10, 0x11};
	static const u8 int66[] = {0x60, 0x62, 0x6c, 0x6f, 0x74, 0x76, 0xd4, 0xdb, 0xef, 0xeb,
	                           0xfe, 0xfa, 0xf4, 0xe4, 0x7f, 0xd6, 0x6e, 0x7e, 0xd7, 0x2e};
	unsigned x = rnd(16);
	struct rm rm = rnd(3) ? rm_reg(rnd(16)) : any_mem();
	u8 op;

	switch (rnd(6)) {
	case 0:
		encode(&e, rnd(2) ? ENC_66 : 0, 1, plain[rnd(sizeof(plain))], x, rm);
		break;
	case 1: {
		static const u8 sc[] = {0x10, 0x11, 0x51, 0x58, 0x59, 0x5c, 0x5e, 0x5a};

		encode(&e, rnd(2) ? ENC_F2 : ENC_F3, 1, sc[rnd(sizeof(sc))], x, rm);
		break;
	}
	case 2:
		op = int66[rnd(sizeof(int66))];
		if ((op == 0x6e || op == 0x7e) && rm.reg != H_NONE)
			rm.reg = (u8)any_reg();
		encode(&e, ENC_66 | (rnd(2) ? ENC_W : 0), 1, op, op == 0xd7 ? any_reg() : x,
		       op == 0xd7 ? rm_reg(rnd(16)) : rm);
		break;
	case 3:
		if (rm.reg != H_NONE)
			rm.reg = (u8)any_reg();
		encode(&e, (rnd(2) ? ENC_F2 : ENC_F3) | (rnd(2) ? ENC_W : 0), 1, 0x2a, x, rm);
		break;
	case 4:
		encode(&e, (rnd(2) ? ENC_F2 : ENC_F3) | (rnd(2) ? ENC_W : 0), 1, (u8)(0x2c | rnd(2)), any_reg(), rm);
		break;
	default: {
		static const u8 vop[] = {0x58, 0x59, 0xfe, 0xef, 0x6f, 0x7f, 0x54, 0x10, 0xd4};

		op = vop[rnd(sizeof(vop))];
		encode_vex(&e, false, rnd(2), 1, 1, op, x, op == 0x6f || op == 0x7f || op == 0x10 ? 0 : rnd(16), rm);
	}
	}
}

static void gen_one(unsigned depth);

static void gen_branch(unsigned depth)
{
	u8 *at, *top;
	unsigned n = 1 + rnd(6);

	switch (rnd(3)) {
	case 0: /* forward */
		e1(&e, (u8)(0x70 | rnd(16)));
		at = e.p++;
		while (n--)
			gen_one(depth + 3);
		if (e.p - at - 1 > 127)
			e.p = at + 1;
		*at = (u8)(e.p - at - 1);
		break;
	case 1: /* loop */
		if (depth)
			return;
		emit_const(&e, H_R12, 1 + rnd(rnd(10) ? 5 : 60));
		top = e.p;
		while (n--)
			gen_one(depth + 1);
		encode(&e, 0, 0, 0xff, 1, rm_reg(H_R12)); /* dec r12d */
		emit_jcc(&e, 5, top + e.delta);
		break;
	default: /* call over a function */
		if (depth > 1)
			return;
		at = emit_jmp(&e, 0xe9, NULL);
		top = e.p;
		while (n--)
			gen_one(depth + 2);
		e1(&e, 0xc3);
		patch_rel(at, e.delta, emit_rx(&e));
		emit_jmp(&e, 0xe8, top + e.delta);
	}
}

static void gen_one(unsigned depth)
{
	n_insns++;
	if (e.p > program + sizeof(program) - 512)
		return;
	switch (rnd(16)) {
	case 0:
	case 1:
	case 2:
		gen_alu();
		break;
	case 3:
	case 4:
		gen_alu_imm();
		break;
	case 5:
	case 6:
		gen_mov();
		break;
	case 7:
	case 8:
		gen_unary();
		break;
	case 9:
	case 10:
		gen_misc();
		break;
	case 11:
		gen_stack();
		break;
	case 12:
	case 13:
		gen_sse();
		break;
	default:
		if (depth < 3)
			gen_branch(depth);
		else
			gen_alu();
	}
}

static void generate(void)
{
	unsigned n = 5 + rnd(rnd(4) ? 40 : 196);

	/* Anywhere in the code window, near a page's end rather often. */
	program_at = CODE + rnd(3) * PAGE_SIZE + (rnd(3) ? rnd(4096) : 4096 - rnd(200));
	e.p = program;
	e.delta = (s64)(program_at - (u64)(uintptr_t)program);
	n_insns = 0;
	while (n--)
		gen_one(0);
	e1(&e, 0xf4);
	program_len = (unsigned)(e.p - program);
}

/* ---- running ---------------------------------------------------------------------------------------------------- */

struct start {
	u64 r[16], rflags;
	u8 ymm[16][32];
	u32 mxcsr;
};

static u64 value(void)
{
	static const u64 v[] = {
	        0, 1, ~0ull, 0x7fffffff, 0x80000000, 0x8000000000000000ull, 0xff, 0x3ff0000000000000ull};

	rnd(2);
	return rnd(3) ? rng : v[rnd(8)];
}

static void make_start(struct start *s)
{
	for (unsigned n = 0; n < 16; n++)
		s->r[n] = value();
	s->r[R_RSP] = DATA + 0x2800;
	s->r[R_RDI] = DATA + 0xf00 + rnd(16) * 8;
	s->r[R_R15] = DATA + 0x1800 + rnd(64);
	s->rflags = FLAGS_FIXED | (rng >> 20 & FLAGS_ARITH);
	for (unsigned n = 0; n < 64; n++)
		((u64 *)(void *)s->ymm)[n] = value();
	s->mxcsr = 0x1f80 | (rnd(4) ? 0 : rnd(4) << 13) | (rnd(6) ? 0 : 0x8000);
}

static u8 *window[2][2];

static void run(unsigned m, const struct start *s, u64 seed)
{
	struct vcpu *v = mach[m].v;
	u64 keep = rng;

	rng = seed;
	for (unsigned n = 0; n < DATA_SIZE / 8; n++)
		((u64 *)(void *)window[m][1])[n] = value();
	rng = keep;
	memcpy(v->r, s->r, sizeof(s->r));
	v->r[R_RIP] = program_at;
	v->rflags = s->rflags;
	memcpy(v->fpu.ymm, s->ymm, sizeof(s->ymm));
	v->fpu.mxcsr = s->mxcsr;
	faulted = false;
	atomic_fetch_and(&v->events, ~(u32)EV_SIGNAL);
	if (v->jit)
		jit_run(v);
	else
		interp_run(v);
}

static bool differ(void)
{
	struct vcpu *a = mach[0].v, *b = mach[1].v;
	u64 mask = faulted ? ~(u64)FLAGS_ARITH : ~0ull;
	bool bad = false;

	for (unsigned n = 0; n < R_COUNT; n++)
		if (a->r[n] != b->r[n]) {
			printf("  r%u %#llx, translator %#llx\n", n, (unsigned long long)a->r[n],
			       (unsigned long long)b->r[n]);
			bad = true;
		}
	if ((a->rflags ^ b->rflags) & mask) {
		printf("  rflags %#llx, translator %#llx\n", (unsigned long long)a->rflags,
		       (unsigned long long)b->rflags);
		bad = true;
	}
	if (a->fpu.mxcsr != b->fpu.mxcsr) {
		printf("  mxcsr %#x, translator %#x\n", a->fpu.mxcsr, b->fpu.mxcsr);
		bad = true;
	}
	for (unsigned n = 0; n < 16; n++)
		if (memcmp(a->fpu.ymm[n], b->fpu.ymm[n], 32)) {
			printf("  ymm%u\n", n);
			bad = true;
		}
	if (memcmp(window[0][1], window[1][1], DATA_SIZE)) {
		printf("  memory\n");
		bad = true;
	}
	if (a->exit.reason != b->exit.reason || (faulted && a->excp.vector != b->excp.vector)) {
		printf("  exit %d, translator %d\n", a->exit.reason, b->exit.reason);
		bad = true;
	}
	return bad;
}

static void show(void)
{
	printf("  at %#llx:", (unsigned long long)program_at);
	for (unsigned n = 0; n < program_len; n++)
		printf(" %02x", program[n]);
	printf("\n");
}

/* A program that overwrites a return address may run forever: the second tick within one run ends it. */
static volatile u64 n_runs, seen_runs;

static void tick(int sig)
{
	if (n_runs == seen_runs)
		for (unsigned m = 0; m < 2; m++)
			atomic_fetch_or(&mach[m].v->events, (u32)EV_SIGNAL);
	seen_runs = n_runs;
}

static bool one(u64 seed, bool verbose)
{
	struct start s;
	bool bad = false;

	rng = seed * 0x9e3779b97f4a7c15ull | 1;
	for (unsigned n = 0; n < 8; n++)
		rnd(2);
	generate();
	if (verbose)
		show();
	for (unsigned m = 0; m < 2; m++)
		memcpy(window[m][0] + (program_at - CODE), program, program_len);
	for (unsigned round = 0; round < 3 && !bad; round++) {
		u64 data = rng | 1;

		make_start(&s);
		n_runs++;
		run(0, &s, data);
		n_runs++;
		run(1, &s, data);
		if (mach[0].v->exit.reason == EXIT_INTR || mach[1].v->exit.reason == EXIT_INTR)
			return false;
		bad = differ();
		if (bad)
			printf("FAILED program %llu, round %u: engines differ\n", (unsigned long long)seed, round);
	}
	if (bad && !verbose)
		show();
	return bad;
}

static u8 *add_window(struct machine *k, gpa_t gpa, u64 size)
{
	u8 *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct memslot *s = &k->win_slot[k->nwin];

	*s = (struct memslot){.id = k->nwin++, .gpa = gpa, .size = size, .hva = p};
	if (p == MAP_FAILED || memslot_add(&k->mem, s)) {
		fprintf(stderr, "random: no memory\n");
		exit(2);
	}
	return p;
}

static void make_machine(unsigned m)
{
	struct machine *k = &mach[m];

	setenv("DEVKVM_ENGINE", m ? "jit" : "interp", 1);
	machine_init(k, 0);
	/* Both machines see the same addresses; each has memory of its own behind them. */
	window[m][0] = add_window(k, CODE, CODE_SIZE);
	window[m][1] = add_window(k, DATA, DATA_SIZE);
	for (u64 a = 0; a < CODE_SIZE; a += PAGE_SIZE)
		machine_map(k, CODE + a, PTE_P | PTE_W | PTE_A | PTE_D);
	for (u64 a = 0; a < DATA_SIZE; a += PAGE_SIZE)
		machine_map(k, DATA + a, PTE_P | PTE_W | PTE_A | PTE_D);
}

int main(int argc, char **argv)
{
	u64 seed = (u64)getpid() * 1000003u, programs = 3000, passed = 0, failed = 0, total = 0;
	bool verbose = false;

	for (int n = 1; n < argc; n++) {
		if (!strcmp(argv[n], "--show"))
			verbose = true;
		else if (n + 1 < argc && !strcmp(argv[n], "--seed"))
			seed = strtoull(argv[++n], NULL, 0);
		else if (n + 1 < argc && !strcmp(argv[n], "--programs"))
			programs = strtoull(argv[++n], NULL, 0);
		else
			return 2;
	}
	signal(SIGALRM, tick);
	setitimer(ITIMER_REAL, &(struct itimerval){{0, 100000}, {0, 100000}}, NULL);
	make_machine(0);
	make_machine(1);
	if (!mach[1].v->jit) {
		printf("no translator here\n0 passed, 0 failed\n");
		return 0;
	}
	printf("seed %llu\n", (unsigned long long)seed);
	for (u64 n = 0; n < programs; n++) {
		if (one(seed + n, verbose))
			failed++;
		else
			passed++;
		total += n_insns;
		if (failed > 10)
			break;
	}
	printf("%llu instructions in the programs\n", (unsigned long long)total);
	printf("%llu passed, %llu failed\n", (unsigned long long)passed, (unsigned long long)failed);
	machine_free(&mach[0]);
	machine_free(&mach[1]);
	return failed != 0;
}
