/*
 * latency.c: how soon an engine notices an event (interrupt, kick, signal), in guest instructions.
 *
 * The guest counts in memory what it does. A signal handler on the same thread, so at an exact point of the guest's
 * code, reads the counter and sets the event; the run must end before the counter has gone on by more than what 20 µs
 * of guest time are worth. Counting instructions and not time, the test does not mind a busy machine.
 *
 * And how long it takes to drop all code when its memory is full, against the translation of a MiB: processor time, in
 * ratio.
 *
 * At 1.5 ns for a counting instruction (a read-modify-write of memory with its TLB check) 20 µs are some 13,000 of
 * them; at 32 bytes/ns, 640 KiB of a string instruction. The limits are stricter.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

#include "../../src/jit/emit.h"
#include "../../src/jit/jit.h"
#include "../../src/x86/pte.h"
#include "../insn/machine.h"

#include <stdio.h>

#define CODE 0x30000000ul
#define CODE_SIZE (1ul << 20)
#define DATA 0x40000000ul
#define DATA_SIZE (16ul << 20)
#define STACK (DATA + (8ul << 20))
#define LIMIT 10000u        /* instructions */
#define LIMIT_BYTES 262144u /* of a string instruction */
#define TRIALS 25u

static struct machine mach;
static u8 *code, *data;
static struct emit e;
static unsigned passed, failed;

static struct vcpu *volatile target;
static volatile u64 at_signal;
static volatile bool came;

static void on_alarm(int sig)
{
	if (!target)
		return;
	at_signal = *(volatile u64 *)(void *)data;
	came = true;
	atomic_fetch_or(&target->events, (u32)EV_SIGNAL);
}

static u8 *add_window(gpa_t gpa, u64 size)
{
	u8 *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct memslot *s = &mach.win_slot[mach.nwin];

	*s = (struct memslot){.id = mach.nwin++, .gpa = gpa, .size = size, .hva = p};
	if (p == MAP_FAILED || memslot_add(&mach.mem, s))
		exit(2);
	for (u64 a = gpa; a < gpa + size; a += PAGE_SIZE)
		machine_map(&mach, a, PTE_P | PTE_W | PTE_U | PTE_A | PTE_D);
	return p;
}

/* ---- programs: each counts at [RDI] and goes on for ever -------------------------------------------------------- */

static void count(void)
{
	encode(&e, 0, 0, 0xff, 0, rm_mem(H_RDI, 0)); /* inc dword [rdi]; the same bytes in 32-bit code */
}

static void back(u8 *top)
{
	emit_jmp(&e, 0xe9, top + e.delta);
}

static void tight_loop(void)
{
	u8 *top = e.p;

	count();
	back(top);
}

static void straight(void)
{
	u8 *top = e.p;

	while (e.p < code + CODE_SIZE - 64)
		count();
	back(top);
}

/* Fast instructions between the counting ones: the limit then is one of few counts. */
static void straight_nops(void)
{
	u8 *top = e.p;

	while (e.p < code + CODE_SIZE - 64) {
		count();
		for (unsigned n = 0; n < 20; n++)
			encode(&e, 0, 0, 0x01, H_RAX, rm_reg(H_RBX));
	}
	back(top);
}

static void jump_chain(void)
{
	u8 *top = e.p, *at;

	for (unsigned n = 0; e.p < code + CODE_SIZE - 200; n++) {
		count();
		at = emit_jmp(&e, 0xe9, NULL);
		e.p += n % 3 * 20;
		patch_rel(at, e.delta, emit_rx(&e));
	}
	back(top);
}

static void jcc_chain(void)
{
	u8 *top = e.p, *at;

	for (unsigned n = 0; e.p < code + CODE_SIZE - 200; n++) {
		count();
		encode(&e, 0, 0, 0x39, H_RAX, rm_reg(H_RAX));
		at = emit_jcc(&e, n & 1 ? 4 : 5, NULL);
		e.p[0] = 0x90;
		e.p += 1;
		patch_rel(at, e.delta, emit_rx(&e));
	}
	back(top);
}

/* Every jump goes to the next page. */
static void page_chain(void)
{
	u8 *top = e.p, *at;

	while (e.p < code + CODE_SIZE - 2 * PAGE_SIZE) {
		count();
		at = emit_jmp(&e, 0xe9, NULL);
		e.p = code + (((size_t)(e.p - code) + PAGE_SIZE) & PAGE_MASK);
		patch_rel(at, e.delta, emit_rx(&e));
	}
	count();
	back(top);
}

static void indirect_chain(void)
{
	u8 *top = e.p;

	while (e.p < code + CODE_SIZE - 64) {
		count();
		emit_const(&e, H_RAX, (u64)(uintptr_t)emit_rx(&e) + 7);
		encode(&e, 0, 0, 0xff, 4, rm_reg(H_RAX));
	}
	back(top);
}

/* Down 50,000 calls, and up again. */
static void calls_and_returns(void)
{
	u8 *top, *at, *f;

	at = emit_jmp(&e, 0xe9, NULL);
	f = e.p;
	count();
	encode(&e, 0, 0, 0xff, 1, rm_reg(H_RCX));
	{
		u8 *skip = emit_jcc(&e, 4, NULL);

		emit_jmp(&e, 0xe8, f + e.delta);
		count();
		patch_rel(skip, e.delta, emit_rx(&e));
	}
	e1(&e, 0xc3);
	patch_rel(at, e.delta, emit_rx(&e));
	top = e.p;
	emit_const(&e, H_RCX, 50000);
	emit_jmp(&e, 0xe8, f + e.delta);
	back(top);
}

/* Instructions over page borders, which are no translator's. */
static void crossing_pages(void)
{
	u8 *top, *at;

	e.p = code + PAGE_SIZE - 1;
	at = emit_jmp(&e, 0xe9, NULL);
	(void)at;
	e.p = code + PAGE_SIZE - 1;
	top = e.p;
	while (e.p < code + CODE_SIZE - 2 * PAGE_SIZE) {
		count();
		at = emit_jmp(&e, 0xe9, NULL);
		e.p = code + (((size_t)(e.p - code) + PAGE_SIZE) & PAGE_MASK) + PAGE_SIZE - 1;
		patch_rel(at, e.delta, emit_rx(&e));
	}
	count();
	back(top);
}

static void vector_loop(void)
{
	u8 *top = e.p;

	encode(&e, ENC_F2, 1, 0x58, 0, rm_reg(1));
	encode(&e, ENC_66, 1, 0xfe, 2, rm_reg(3));
	count();
	back(top);
}

static void x87_loop(void)
{
	u8 *top = e.p;

	e2(&e, 0xe3db); /* fninit: reset leaves exceptions unmasked */
	e2(&e, 0xe8d9); /* fld1 */
	e2(&e, 0xfed9); /* fsin */
	e2(&e, 0xd8dd); /* fstp st0 */
	count();
	back(top);
}

/* ---- running ---------------------------------------------------------------------------------------------------- */

static void verdict(const char *name, bool ok, u64 worst, u64 limit)
{
	if (ok)
		passed++;
	else
		failed++;
	printf("%s %s: %llu at most, limit %llu\n", ok ? "ok" : "FAILED", name, (unsigned long long)worst,
	       (unsigned long long)limit);
}

/* Runs what was just written until the signal, TRIALS times. */
static void measure(const char *name, u64 limit, unsigned entry)
{
	struct vcpu *v = mach.v;
	u64 worst = 0;
	bool ok = true;

	v->r[R_RIP] = CODE + entry;
	v->r[R_RDI] = DATA;
	v->r[R_RSP] = STACK;
	v->rflags = FLAGS_FIXED;
	for (unsigned n = 0; n < TRIALS; n++) {
		u64 now, delta;

		came = false;
		target = v;
		setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {0, 2000 + (n * 137) % 1000}}, NULL);
		if (v->jit)
			jit_run(v);
		else
			interp_run(v);
		target = NULL;
		if (v->exit.reason != EXIT_INTR || !came) {
			printf("  exit %d at %#llx, vector %u\n", v->exit.reason, (unsigned long long)v->r[R_RIP],
			       v->excp.vector);
			ok = false;
			break;
		}
		now = *(u64 *)(void *)data;
		delta = now - at_signal;
		if (n && delta > worst) /* the first run translates */
			worst = delta;
	}
	verdict(name, ok && worst <= limit, worst, limit);
}

static void all(enum decode_mode mode, const char *suffix)
{
	static const struct {
		const char *name;
		void (*gen)(void);
		unsigned limit, entry;
		bool only64;
	} prog[] = {
	        {"tight loop", tight_loop, LIMIT, 0, false},
	        {"straight-line code", straight, LIMIT, 0, false},
	        {"straight-line code, a count in 21", straight_nops, LIMIT / 4, 0, false},
	        {"chain of jumps", jump_chain, LIMIT, 0, false},
	        {"chain of conditional jumps", jcc_chain, LIMIT, 0, false},
	        {"chain of pages", page_chain, LIMIT, 0, false},
	        {"chain of indirect jumps", indirect_chain, LIMIT, 0, false},
	        {"calls and returns", calls_and_returns, LIMIT, 0, false},
	        {"instructions over page borders", crossing_pages, LIMIT, PAGE_SIZE - 1, false},
	        {"loop of vector instructions", vector_loop, LIMIT, 0, false},
	        {"loop of x87 instructions", x87_loop, LIMIT, 0, false},
	};

	machine_set_mode(&mach, mode);
	for (unsigned n = 0; n < ARRAY_SIZE(prog); n++) {
		char name[80];

		memset(code, 0x90, CODE_SIZE);
		e.p = code;
		e.delta = (s64)(CODE - (u64)(uintptr_t)code);
		prog[n].gen();
		snprintf(name, sizeof(name), "%s%s", prog[n].name, suffix);
		measure(name, prog[n].limit, prog[n].entry);
	}
}

/* ---- eviction --------------------------------------------------------------------------------------------------- */

#define ROUNDS 9

/* Processor time in ns of a run from `entry` to the shutdown at the code's end, which begins with dropping all code. */
static u64 dropped_run(u64 entry)
{
	struct vcpu *v = mach.v;
	struct timespec a, b;

	machine_set_mode(&mach, DECODE_64);
	v->r[R_RIP] = CODE + entry;
	v->r[R_RDI] = DATA;
	v->rflags = FLAGS_FIXED;
	jit_flush(v);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &a);
	jit_run(v);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &b);
	return (u64)(b.tv_sec - a.tv_sec) * 1000000000 + (u64)b.tv_nsec - (u64)a.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
	return *(const u64 *)a < *(const u64 *)b ? -1 : 1;
}

static void eviction(void)
{
	u64 all[ROUNDS], last[ROUNDS], at;

	if (!mach.v->jit)
		return;
	e.p = code;
	e.delta = (s64)(CODE - (u64)(uintptr_t)code);
	while (e.p < code + CODE_SIZE - 64)
		count();
	at = (u64)(e.p - code);
	e2(&e, 0x0b0f); /* ud2, and there is no IDT */
	for (unsigned n = 0; n < ROUNDS; n++) {
		*(u32 *)(void *)data = 0;
		all[n] = dropped_run(0);
		if (mach.v->exit.reason != EXIT_SHUTDOWN || *(u32 *)(void *)data != at / 2)
			failed++;
		last[n] = dropped_run(at);
	}
	qsort(all, ROUNDS, sizeof(*all), by_size);
	qsort(last, ROUNDS, sizeof(*last), by_size);
	printf("dropping all code: %llu us, a MiB of code: %llu us\n", (unsigned long long)last[ROUNDS / 2] / 1000,
	       (unsigned long long)all[ROUNDS / 2] / 1000);
	verdict("dropping all code, thousandths of translating a MiB", last[ROUNDS / 2] * 50 < all[ROUNDS / 2],
	        last[ROUNDS / 2] * 1000 / all[ROUNDS / 2], 20);
}

int main(void)
{
	signal(SIGALRM, on_alarm);
	machine_init(&mach, 3);
	code = add_window(CODE, CODE_SIZE);
	data = add_window(DATA, DATA_SIZE);
	all(DECODE_64, "");
	all(DECODE_32, ", 32-bit");
	eviction();
	printf("%u passed, %u failed\n", passed, failed);
	return failed != 0;
}
