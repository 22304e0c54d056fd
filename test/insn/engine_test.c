/*
 * engine_test.c: the engine's loop on a bare vCPU, without a KVM around it: code that changes under it, fetches
 * over page borders, MMIO of every shape, string instructions stopped in the middle, shadows, the code segment's end.
 *
 * Each test sets registers, runs until an exit and looks. The last line is `N passed, N failed`.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "../../src/jit/jit.h"
#include "../../src/x86/pte.h"
#include "machine.h"

#define RAM 0x10000000ull
#define RAM_SIZE 0x20000ull
#define MMIO 0x30000000ull /* two pages mapped, no slot behind them */
#define HOLE (RAM + RAM_SIZE)

static struct machine m;
static unsigned passed, failed;
static const char *current;

static void check(bool ok, const char *what, int line)
{
	if (ok) {
		passed++;
		return;
	}
	failed++;
	printf("FAILED %s: %s (line %d); exit %d rip %#llx rcx %#llx excp %u cr2 %#llx\n", current, what, line,
	       m.v->exit.reason, (unsigned long long)m.v->r[R_RIP], (unsigned long long)m.v->r[R_RCX], m.v->excp.vector,
	       (unsigned long long)m.v->cr2);
}
#define CHECK(c) check(c, #c, __LINE__)

static u8 *ram(u64 at)
{
	return (u8 *)(uintptr_t)at;
}

static void start(const char *name, u64 at, const char *code, unsigned len)
{
	struct vcpu *v = m.v;

	current = name;
	memset(ram(RAM), 0xf4, RAM_SIZE / 2);
	memset(ram(RAM + RAM_SIZE / 2), 0, RAM_SIZE / 2);
	memcpy(ram(at), code, len);
	memset(v->r, 0, sizeof(v->r));
	v->r[R_RIP] = at;
	v->r[R_RSP] = RAM + RAM_SIZE - 64;
	v->rflags = FLAGS_FIXED;
	v->cr2 = 0;
	v->shadow = 0;
	v->pending_db = 0;
	atomic_store(&v->events, 0);
	cpu_update(v);
}
#define START(name, at, code) start(name, at, code, sizeof(code) - 1)

static enum exit_reason run(void)
{
	if (m.v->jit)
		jit_run(m.v);
	else
		interp_run(m.v);
	return m.v->exit.reason;
}

static void test_smc(void)
{
	/* movb $0x42, 1(next); next: mov $0, %al; hlt */
	START("store into the next instruction", RAM, "\xc6\x05\x01\x00\x00\x00\x42\xb0\x00\xf4");
	CHECK(run() == EXIT_HLT && (u8)m.v->r[R_RAX] == 0x42);

	/* The same through REP STOSB: rdi points at the immediate. */
	START("rep stos into the next instruction", RAM, "\xb0\x42\xf3\xaa\xb3\x00\xf4");
	m.v->r[R_RDI] = RAM + 5;
	m.v->r[R_RCX] = 1;
	CHECK(run() == EXIT_HLT && (u8)m.v->r[R_RBX] == 0x42);

	/* push over the next instruction: 8 bytes of nop and hlt */
	START("push over the next instruction", RAM, "\x50\xff\xc3\xff\xc3\xff\xc3\xff\xc3\xf4");
	m.v->r[R_RAX] = 0xf490909090909090ull;
	m.v->r[R_RSP] = RAM + 1 + 8;
	CHECK(run() == EXIT_HLT && m.v->r[R_RBX] == 0);

	/* A loop that counts its own immediate up: add $0, eax; incb imm; dec ecx; jnz */
	START("a loop that changes itself", RAM, "\x83\xc0\x00\xfe\x05\xf9\xff\xff\xff\xff\xc9\x75\xf3\xf4");
	m.v->r[R_RCX] = 100;
	CHECK(run() == EXIT_HLT && m.v->r[R_RAX] == 99 * 100 / 2);

	/* LOCKed and exchanged stores take another way through the code. */
	START("lock or into the next instruction", RAM, "\xf0\x80\x0d\x01\x00\x00\x00\x42\xb0\x00\xf4");
	CHECK(run() == EXIT_HLT && (u8)m.v->r[R_RAX] == 0x42);
	START("cmpxchg into the next instruction", RAM, "\x0f\xb0\x1d\x01\x00\x00\x00\xb1\x00\xf4");
	m.v->r[R_RBX] = 0x42;
	CHECK(run() == EXIT_HLT && (u8)m.v->r[R_RCX] == 0x42);

	/* The client writes between two runs. */
	START("code changed between two runs", RAM, "\xb0\x01\xf4\xeb\xfb");
	CHECK(run() == EXIT_HLT && (u8)m.v->r[R_RAX] == 1);
	ram(RAM)[1] = 7;
	CHECK(run() == EXIT_HLT && (u8)m.v->r[R_RAX] == 7);
}

static void *patcher(void *arg)
{
	struct timespec ts = {.tv_nsec = 20000000};

	nanosleep(&ts, NULL);
	/* jmp . becomes hlt; nop, as one store */
	__atomic_store_n((u16 *)(void *)ram(RAM), (u16)0x90f4, __ATOMIC_SEQ_CST);
	return NULL;
}

static void *kicker(void *arg)
{
	struct timespec ts = {.tv_nsec = 20000000};

	nanosleep(&ts, NULL);
	atomic_fetch_or(&m.v->events, (u32)EV_SIGNAL);
	return NULL;
}

static void test_threads(void)
{
	pthread_t t, k;

	START("another thread changes the running loop", RAM, "\xeb\xfe");
	pthread_create(&t, NULL, patcher, NULL);
	if (m.v->jit) {
		int rc;

		/* The translator need not see it before the next entry; on a busy machine that is still to come. */
		pthread_create(&k, NULL, kicker, NULL);
		rc = run();
		CHECK((rc == EXIT_INTR && m.v->r[R_RIP] == RAM) || (rc == EXIT_HLT && m.v->r[R_RIP] == RAM + 1));
		pthread_join(k, NULL);
		pthread_join(t, NULL);
		atomic_fetch_and(&m.v->events, ~(u32)EV_SIGNAL);
		m.v->r[R_RIP] = RAM;
	}
	CHECK(run() == EXIT_HLT && m.v->r[R_RIP] == RAM + 1);
	if (!m.v->jit)
		pthread_join(t, NULL);

	START("a signal ends an endless loop", RAM, "\xeb\xfe");
	pthread_create(&t, NULL, kicker, NULL);
	CHECK(run() == EXIT_INTR && m.v->r[R_RIP] == RAM);
	pthread_join(t, NULL);

	/* rep stosb over one page again and again would take minutes: RCX is huge, RDI wraps nowhere near. */
	START("a signal ends a long repetition", RAM, "\xf3\xac\xf4");
	m.v->r[R_RSI] = RAM;
	m.v->r[R_RCX] = RAM_SIZE;
	atomic_store(&m.v->events, (u32)EV_SIGNAL);
	CHECK(run() == EXIT_INTR && m.v->r[R_RCX] == RAM_SIZE);
	CHECK(run() == EXIT_HLT && m.v->r[R_RCX] == 0 && m.v->r[R_RSI] == RAM + RAM_SIZE);
}

static void test_pages(void)
{
	u64 end = HOLE;

	START("an instruction over a page border", RAM + 0xffe, "\xb8\x78\x56\x34\x12\xf4");
	CHECK(run() == EXIT_HLT && m.v->r[R_RAX] == 0x12345678);
	m.v->r[R_RIP] = RAM + 0xffe;
	ram(RAM + 0x1000)[0] = 0x99;
	CHECK(run() == EXIT_HLT && m.v->r[R_RAX] == 0x12349978);

	/* No IDT: the page fault ends in a triple fault, and CR2 stays. */
	START("a fetch into the hole", end - 2, "\xb8\x78");
	m.v->idt.limit = 0;
	CHECK(run() == EXIT_SHUTDOWN && m.v->cr2 == end);
	START("a jump into the hole", RAM, "\xe9\x00\x00\x00\x00");
	{
		u32 rel = (u32)(end + 5 - (RAM + 5));

		memcpy(ram(RAM + 1), &rel, 4);
	}
	m.v->idt.limit = 0;
	CHECK(run() == EXIT_SHUTDOWN && m.v->cr2 == end + 5 && m.v->r[R_RIP] == end + 5);

	/* mov cl, [rax]; mov dl, [rax +- 2 GiB]; the same behind an ADD of nearly 2 GiB to RAX */
	START("accesses 2 GiB apart, below", RAM, "\x8a\x08\x8a\x90\x00\x00\x00\x80");
	m.v->idt.limit = 0;
	m.v->r[R_RAX] = RAM + 64;
	CHECK(run() == EXIT_SHUTDOWN && m.v->cr2 == RAM + 64 - 0x80000000ull && m.v->r[R_RIP] == RAM + 2);
	START("accesses 2 GiB apart, above", RAM, "\x8a\x08\x8a\x90\xff\xff\xff\x7f");
	m.v->idt.limit = 0;
	m.v->r[R_RAX] = RAM + 64;
	CHECK(run() == EXIT_SHUTDOWN && m.v->cr2 == RAM + 64 + 0x7fffffff && m.v->r[R_RIP] == RAM + 2);
	START("accesses 4 GiB apart", RAM,
	      "\x8a\x88\x00\x00\x00\x80\x48\x8d\x80\xff\xff\xff\x7f\x8a\x90\x01\x00\x00\x00");
	m.v->idt.limit = 0;
	m.v->r[R_RAX] = RAM + 64 + 0x80000000ull;
	CHECK(run() == EXIT_SHUTDOWN && m.v->cr2 == RAM + 64 + 0x100000000ull && m.v->r[R_RIP] == RAM + 13);

	START("prefixes without end", RAM, "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90");
	m.v->idt.limit = 0;
	CHECK(run() == EXIT_SHUTDOWN && m.v->r[R_RIP] == RAM);
}

static bool mmio(bool write, u64 at, unsigned len, const void *data)
{
	const struct vcpu_exit *e = &m.v->exit;

	return e->reason == EXIT_MMIO && e->mmio.is_write == write && e->mmio.gpa == at && e->mmio.len == len &&
	       (!write || !memcmp(e->mmio.data, data, len));
}

static void answer(u64 val)
{
	mmio_answer(&m.v->mmu, (const u8 *)&val);
}

static void test_mmio(void)
{
	struct vcpu *v = m.v;
	u64 x;

	START("mmio store", RAM, "\x89\x07\xf4");
	v->r[R_RDI] = MMIO + 4;
	v->r[R_RAX] = 0x11223344;
	run();
	CHECK(mmio(true, MMIO + 4, 4, &v->r[R_RAX]) && v->r[R_RIP] == RAM + 2);
	CHECK(run() == EXIT_HLT);

	START("mmio load", RAM, "\x48\x8b\x07\xf4");
	v->r[R_RDI] = MMIO + 8;
	run();
	CHECK(mmio(false, MMIO + 8, 8, NULL) && v->r[R_RIP] == RAM);
	answer(0x1122334455667788ull);
	CHECK(run() == EXIT_HLT && v->r[R_RAX] == 0x1122334455667788ull);

	START("mmio read-modify-write", RAM, "\x83\x07\x05\xf4");
	v->r[R_RDI] = MMIO;
	run();
	CHECK(mmio(false, MMIO, 4, NULL));
	answer(10);
	run();
	x = 15;
	CHECK(mmio(true, MMIO, 4, &x) && v->r[R_RIP] == RAM + 3);
	CHECK(run() == EXIT_HLT);

	/* Half RAM, half MMIO is a page border that this machine lacks; MMIO over two pages is not. */
	START("mmio over a page border", RAM, "\x48\x89\x07\x48\x8b\x1f\xf4");
	v->r[R_RDI] = MMIO + 0xffd;
	v->r[R_RAX] = 0x0807060504030201ull;
	run();
	CHECK(mmio(true, MMIO + 0xffd, 3, "\x01\x02\x03") && v->r[R_RIP] == RAM + 3);
	run();
	CHECK(mmio(true, MMIO + 0x1000, 5, "\x04\x05\x06\x07\x08"));
	run();
	CHECK(mmio(false, MMIO + 0xffd, 3, NULL) && v->r[R_RIP] == RAM + 3);
	answer(0x030201);
	run();
	CHECK(mmio(false, MMIO + 0x1000, 5, NULL));
	answer(0x0807060504ull);
	CHECK(run() == EXIT_HLT && v->r[R_RBX] == 0x0807060504030201ull);

	START("rep movsb from mmio to mmio", RAM, "\xf3\xa4\xf4");
	v->r[R_RSI] = MMIO;
	v->r[R_RDI] = MMIO + 0x100;
	v->r[R_RCX] = 3;
	for (unsigned n = 0; n < 3; n++) {
		u8 b = (u8)(0x50 + n);

		run();
		CHECK(mmio(false, MMIO + n, 1, NULL) && v->r[R_RCX] == 3 - n && v->r[R_RIP] == RAM);
		answer(b);
		run();
		CHECK(mmio(true, MMIO + 0x100 + n, 1, &b) && v->r[R_RCX] == 2 - n);
	}
	CHECK(run() == EXIT_HLT && v->r[R_RCX] == 0 && v->r[R_RSI] == MMIO + 3 && v->r[R_RDI] == MMIO + 0x103);

	START("cmpsb of two mmio operands", RAM, "\xa6\xf4");
	v->r[R_RSI] = MMIO;
	v->r[R_RDI] = MMIO + 1;
	run();
	CHECK(mmio(false, MMIO, 1, NULL));
	answer(5);
	run();
	CHECK(mmio(false, MMIO + 1, 1, NULL) && v->r[R_RSI] == MMIO);
	answer(5);
	CHECK(run() == EXIT_HLT && (v->rflags & FLAGS_ZF) && v->r[R_RSI] == MMIO + 1);

	START("movups to mmio", RAM, "\x0f\x11\x07\xf4");
	v->r[R_RDI] = MMIO + 0x20;
	for (unsigned n = 0; n < 16; n++)
		v->fpu.ymm[0][n] = (u8)n;
	run();
	CHECK(mmio(true, MMIO + 0x20, 8, v->fpu.ymm[0]));
	run();
	CHECK(mmio(true, MMIO + 0x28, 8, v->fpu.ymm[0] + 8));
	CHECK(run() == EXIT_HLT);

	START("push and pop through mmio", RAM, "\xff\x37\x8f\x06\xf4");
	v->r[R_RDI] = MMIO + 0x40;
	v->r[R_RSI] = MMIO + 0x48;
	x = 0xabcdef;
	run();
	CHECK(mmio(false, MMIO + 0x40, 8, NULL));
	answer(x);
	run();
	CHECK(mmio(true, MMIO + 0x48, 8, &x) && v->r[R_RSP] == RAM + RAM_SIZE - 64);
	CHECK(run() == EXIT_HLT);

	START("a signal does not tear an mmio load", RAM, "\x8a\x07\xf4");
	v->r[R_RDI] = MMIO;
	run();
	CHECK(mmio(false, MMIO, 1, NULL));
	answer(0x77);
	atomic_store(&v->events, (u32)EV_SIGNAL);
	CHECK(run() == EXIT_INTR && v->r[R_RIP] == RAM);
	CHECK(run() == EXIT_HLT && (u8)v->r[R_RAX] == 0x77);

	START("fetch from mmio", MMIO, "");
	CHECK(run() == EXIT_INTERNAL);
}

static void test_strings(void)
{
	struct vcpu *v = m.v;

	/* Elements up to the hole are done, registers say so. */
	START("rep stosq into the hole", RAM, "\xf3\x48\xab\xf4");
	v->idt.limit = 0;
	v->r[R_RDI] = HOLE - 64;
	v->r[R_RCX] = 100;
	v->r[R_RAX] = 0x5555555555555555ull;
	CHECK(run() == EXIT_SHUTDOWN && v->cr2 == HOLE && v->r[R_RCX] == 92 && v->r[R_RDI] == HOLE);
	CHECK(ram(HOLE - 1)[0] == 0x55 && ram(HOLE - 64)[0] == 0x55);

	START("an element over the hole's border", RAM, "\xf3\x48\xab\xf4");
	v->idt.limit = 0;
	v->r[R_RDI] = HOLE - 12;
	v->r[R_RCX] = 100;
	v->r[R_RAX] = ~0ull;
	CHECK(run() == EXIT_SHUTDOWN && v->cr2 == HOLE && v->r[R_RCX] == 99 && ram(HOLE - 1)[0] == 0);

	START("an overlapping copy repeats its pattern", RAM, "\xf3\xa4\xf4");
	memcpy(ram(RAM + 0x18000), "abc", 3);
	v->r[R_RSI] = RAM + 0x18000;
	v->r[R_RDI] = RAM + 0x18003;
	v->r[R_RCX] = 9000;
	CHECK(run() == EXIT_HLT && v->r[R_RCX] == 0);
	CHECK(!memcmp(ram(RAM + 0x18000 + 9000), "abc", 3) && ram(RAM + 0x18000 + 9003)[0] == 0);

	START("copy down with DF", RAM, "\xfd\xf3\x48\xa5\xfc\xf4");
	for (unsigned n = 0; n < 4096; n++)
		ram(RAM + 0x14000)[n] = (u8)(n * 7);
	v->r[R_RSI] = RAM + 0x14000 + 4088;
	v->r[R_RDI] = RAM + 0x16000 + 4088;
	v->r[R_RCX] = 512;
	CHECK(run() == EXIT_HLT && !memcmp(ram(RAM + 0x14000), ram(RAM + 0x16000), 4096));

	START("scasb finds", RAM, "\xf2\xae\xf4");
	ram(RAM + 0x12345)[0] = 'x';
	v->r[R_RDI] = RAM + 0x10000;
	v->r[R_RCX] = ~0ull;
	v->r[R_RAX] = 'x';
	CHECK(run() == EXIT_HLT && v->r[R_RDI] == RAM + 0x12346 && v->r[R_RCX] == ~0ull - 0x2346);
}

static int irq_vector = -1, irq_taken;

static int take(struct vcpu *v)
{
	int vec = irq_vector;

	irq_vector = -1;
	if (vec >= 0)
		irq_taken++;
	return vec;
}

static bool pending(struct vcpu *v)
{
	return irq_vector >= 0;
}

static void test_shadow(void)
{
	struct vcpu *v = m.v;
	struct vcpu_ops ops = *v->ops;
	const struct vcpu_ops *old = v->ops;

	ops.irq_take = take;
	ops.irq_pending = pending;
	v->ops = &ops;
	/* sti; inc eax; hlt: the window opens only after the inc */
	START("sti shadow", RAM, "\xfb\xff\xc0\xff\xc3\xf4");
	atomic_store(&v->events, (u32)EV_WINDOW);
	CHECK(run() == EXIT_IRQ_WINDOW && v->r[R_RAX] == 1 && v->r[R_RBX] == 0);
	CHECK(run() == EXIT_HLT && v->r[R_RBX] == 1);

	START("no interrupt while IF is clear", RAM, "\xff\xc0\xf4");
	irq_vector = 0x40;
	atomic_store(&v->events, (u32)EV_IRQ);
	irq_taken = 0;
	CHECK(run() == EXIT_HLT && irq_taken == 0 && v->r[R_RAX] == 1);
	/* No IDT: taking one is a triple fault. */
	START("an interrupt is taken", RAM, "\xfb\xff\xc0\xff\xc3\xf4");
	v->idt.limit = 0;
	irq_vector = 0x40;
	atomic_store(&v->events, (u32)EV_IRQ);
	CHECK(run() == EXIT_SHUTDOWN && irq_taken == 1 && v->r[R_RAX] == 1 && v->r[R_RBX] == 0);
	irq_vector = -1;
	v->ops = old;
}

/* To RAM + vector * 0x1000, 64-bit code of selector 8. */
static void put_gate(unsigned vector)
{
	u64 to = RAM + vector * 0x1000, gate[2] = {0};

	gate[0] = (to & 0xffff) | 8ull << 16 | 0x8eull << 40 | (to >> 16 & 0xffff) << 48;
	gate[1] = to >> 32;
	memcpy(ram(RAM + 0x8000 + vector * 16), gate, 16);
}

/* 32-bit code whose segment ends inside a block. */
static void test_limit(void)
{
	struct vcpu *v = m.v;

	START("the code segment's end", RAM, "\xff\xc0\xff\xc0\xff\xc0\xb8\x01\x02\x03\x04\xf4");
	machine_set_mode(&m, DECODE_32);
	v->seg[SEG_CS].limit = RAM + 7;
	v->idt.limit = 0;
	cpu_update(v);
	CHECK(run() == EXIT_SHUTDOWN && v->r[R_RAX] == 3 && v->r[R_RIP] == RAM + 6);
	v->seg[SEG_CS].limit = RAM + 3;
	v->r[R_RIP] = RAM;
	v->r[R_RAX] = 0;
	cpu_update(v);
	CHECK(run() == EXIT_SHUTDOWN && v->r[R_RAX] == 2 && v->r[R_RIP] == RAM + 4);
	v->seg[SEG_CS].limit = 0xffffffffu;
	v->r[R_RIP] = RAM;
	cpu_update(v);
	CHECK(run() == EXIT_HLT && v->r[R_RAX] == 0x04030201);

	/* An opcode that is none is #UD up to the segment's end too, whatever was decoded before; one byte less is #GP.
	 * Handlers: HLT at 0x6000 and 0xd000. */
	START("an undefined opcode at the code segment's end", RAM, "\xf0\x01\xc0\x90\x90\x90\x90\x90");
	machine_set_mode(&m, DECODE_32);
	put_gate(6);
	put_gate(13);
	v->idt = (struct dtable){RAM + 0x8000, 0xff};
	v->gdt = (struct dtable){RAM + 0x9000, 0xf};
	memcpy(ram(RAM + 0x9008), "\0\0\0\0\0\x9b\x20\0", 8);
	for (unsigned n = 0; n < 3; n++) {
		v->seg[SEG_CS].limit = n == 0 ? 0xffffffffu : (u32)RAM + (n == 1 ? 2 : 0);
		v->r[R_RIP] = RAM;
		cpu_update(v);
		CHECK(run() == EXIT_HLT && v->r[R_RIP] == RAM + (n == 2 ? 0xd001 : 0x6001));
		machine_set_mode(&m, DECODE_32);
	}
	v->seg[SEG_CS].limit = 0xffffffffu;
	machine_set_mode(&m, DECODE_64);
}

/* More code than the cache holds, twice. */
/* TSC_OFFSET counts, RDTSC and RDTSCP clear the upper halves, TSC_AUX is 32 bits wide. */
static void test_tsc(void)
{
	struct vcpu *v = m.v;

	for (unsigned p = 0; p < 2; p++) {
		/* rdtsc(p); hlt, twice, so that the second time runs what the first has made */
		for (unsigned n = 0; n < 2; n++) {
			u64 before, after, tsc;

			if (p)
				START("rdtscp", RAM, "\x0f\x01\xf9\xf4");
			else
				START("rdtsc", RAM, "\x0f\x31\xf4");
			v->r[R_RAX] = v->r[R_RDX] = v->r[R_RCX] = ~0ull;
			v->tsc_aux = 0x12345678;
			v->tsc_offset = -(s64)0x123456789ab;
			v->rflags |= FLAGS_CF | FLAGS_OF;
			before = __builtin_ia32_rdtsc();
			CHECK(run() == EXIT_HLT);
			after = __builtin_ia32_rdtsc();
			tsc = (v->r[R_RDX] << 32 | v->r[R_RAX]) + 0x123456789abull;
			CHECK(!(v->r[R_RAX] >> 32) && !(v->r[R_RDX] >> 32) && tsc >= before && tsc <= after);
			CHECK(v->r[R_RCX] == (p ? 0x12345678 : ~0ull));
			CHECK((v->rflags & (FLAGS_ARITH)) == (FLAGS_CF | FLAGS_OF));
		}
	}
	v->tsc_offset = 0;
	v->tsc_aux = 0;
}

static void test_flush(void)
{
	struct vcpu *v = m.v;
	unsigned bad = 0;

	START("many versions of one place", RAM, "\xb8\x00\x00\x00\x00\xf4");
	for (u32 n = 0; n < 300000; n++) {
		memcpy(ram(RAM + 1), &n, 4);
		v->r[R_RIP] = RAM;
		if (run() != EXIT_HLT || v->r[R_RAX] != n)
			bad++;
	}
	CHECK(bad == 0);
}

int main(void)
{
	u8 *w = mmap((void *)(uintptr_t)RAM, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
	             -1, 0);

	if (w == MAP_FAILED)
		return 2;
	machine_init(&m, 0);
	machine_window(&m, w, RAM_SIZE);
	for (u64 a = 0; a < RAM_SIZE; a += PAGE_SIZE)
		machine_map(&m, RAM + a, PTE_P | PTE_W | PTE_A | PTE_D);
	machine_map(&m, MMIO, PTE_P | PTE_W | PTE_A | PTE_D);
	machine_map(&m, MMIO + PAGE_SIZE, PTE_P | PTE_W | PTE_A | PTE_D);
	test_smc();
	test_threads();
	test_pages();
	test_mmio();
	test_strings();
	test_shadow();
	test_limit();
	test_tsc();
	test_flush();
	machine_free(&m);
	printf("%u passed, %u failed\n", passed, failed);
	return failed != 0;
}
