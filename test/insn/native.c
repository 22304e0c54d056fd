/*
 * native.c: one instruction on the host CPU, between two signals: the first (our INT3) hands the kernel the case's
 * registers to return with, the second (the INT3 behind the instruction, or its fault) brings the results. The kernel's
 * signal frame loads and stores everything: general registers, flags, x87, SSE, AVX; CS 0x23 in it is 32-bit mode.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "../../src/base/fptrap.h"
#include "../../src/cpu/cpu.h"
#include "insn_test.h"

#define YMM_AT 576 /* of the upper halves in the standard XSAVE layout */
#define XBV_AT 512

u64 native_fs_base, native_gs_base;

static volatile int stage;
static const struct tcase *cur;
static struct outcome *result;
static greg_t saved_gregs[NGREG];
static u8 saved_fp[16384];
static u32 fp_size;

static const int reg_of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                               REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static void load(ucontext_t *uc)
{
	u8 *fp = (u8 *)uc->uc_mcontext.fpregs;
	const struct state *s = &cur->in;
	greg_t *g = uc->uc_mcontext.gregs;
	u64 bv;

	memcpy(saved_gregs, g, sizeof(saved_gregs));
	memcpy(&fp_size, fp + 464 + 16, 4); /* sw_reserved.xstate_size */
	if (fp_size > sizeof(saved_fp) || fp_size < YMM_AT + 256)
		abort();
	memcpy(saved_fp, fp, fp_size);
	for (unsigned n = 0; n < 16; n++)
		g[reg_of[n]] = (greg_t)s->r[n];
	g[REG_RIP] = (greg_t)s->rip;
	g[REG_EFL] = (greg_t)s->rflags;
	if (cur->form->mode == DECODE_32)
		g[REG_CSGSFS] = (greg_t)(((u64)g[REG_CSGSFS] & ~0xffffull) | 0x23);
	memcpy(fp, s->fx, 24);
	memcpy(fp + 24, &s->mxcsr, 4);
	memcpy(fp + 32, s->fx + 32, 128);
	for (unsigned n = 0; n < 16; n++) {
		memcpy(fp + 160 + 16 * n, s->ymm[n], 16);
		memcpy(fp + YMM_AT + 16 * n, s->ymm[n] + 16, 16);
	}
	memcpy(&bv, fp + XBV_AT, 8);
	bv = (bv & ~7ull) | 7;
	memcpy(fp + XBV_AT, &bv, 8);
}

static void capture(ucontext_t *uc)
{
	u8 *fp = (u8 *)uc->uc_mcontext.fpregs;
	greg_t *g = uc->uc_mcontext.gregs;
	struct outcome *o = result;
	u64 bv;

	for (unsigned n = 0; n < 16; n++)
		o->s.r[n] = (u64)g[reg_of[n]];
	o->s.rip = (u64)g[REG_RIP];
	o->s.rflags = (u64)g[REG_EFL];
	o->vector = (u8)g[REG_TRAPNO];
	o->error = (u32)g[REG_ERR];
	o->cr2 = o->vector == EXC_PF ? (u64)g[REG_CR2] : 0;
	memcpy(&bv, fp + XBV_AT, 8);
	memset(o->s.fx, 0, sizeof(o->s.fx));
	memcpy(o->s.fx, fp, 24);
	memcpy(o->s.fx + 32, fp + 32, 128);
	memcpy(&o->s.mxcsr, fp + 24, 4);
	if (!(bv & 1)) {
		/* Initial x87 state, whatever the frame's bytes are. */
		memset(o->s.fx, 0, sizeof(o->s.fx));
		o->s.fx[0] = 0x7f;
		o->s.fx[1] = 3;
	}
	for (unsigned n = 0; n < 16; n++) {
		memcpy(o->s.ymm[n], fp + 160 + 16 * n, 16);
		memcpy(o->s.ymm[n] + 16, fp + YMM_AT + 16 * n, 16);
		if (!(bv & 2))
			memset(o->s.ymm[n], 0, 16);
		if (!(bv & 4))
			memset(o->s.ymm[n] + 16, 0, 16);
	}
	memcpy(o->mem, (void *)(uintptr_t)DATA, DATA_RW);
	memcpy(g, saved_gregs, sizeof(saved_gregs));
	memcpy(fp, saved_fp, fp_size);
}

static void handler(int sig, siginfo_t *si, void *ctx)
{
	ucontext_t *uc = ctx;

	if (sig == SIGFPE && fp_trap_signal(ctx))
		return;
	if (stage == 1) {
		stage = 2;
		load(uc);
	} else if (stage == 2) {
		stage = 0;
		capture(uc);
	} else {
		/* The test itself is broken. */
		signal(sig, SIG_DFL);
		raise(sig);
	}
}

void native_run(const struct tcase *c, struct outcome *out)
{
	u8 *code = (u8 *)(uintptr_t)c->rip;

	cur = c;
	result = out;
	memcpy(code, c->bytes, c->len);
	memcpy((void *)(uintptr_t)DATA, c->mem, DATA_RW);
	stage = 1;
	asm volatile("int3" ::: "memory");
	/* A breakpoint traps behind its byte. */
	if (out->vector == EXC_BP)
		out->s.rip--;
	memset(code, 0xcc, c->len);
}

bool native_runs_32(void)
{
	static struct form nop = {.mode = DECODE_32};
	static struct tcase c = {.form = &nop, .bytes = {0x90}, .len = 1, .rip = CODE};
	static struct outcome out;

	c.in.rip = CODE;
	c.in.rflags = 2;
	c.in.mxcsr = 0x1f80;
	c.in.fx[0] = 0x7f;
	c.in.fx[1] = 3;
	native_run(&c, &out);
	return out.vector == EXC_BP;
}

static void *map_at(u64 addr, u64 size, int prot)
{
	void *p = mmap((void *)(uintptr_t)addr, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	if (p == MAP_FAILED || p != (void *)(uintptr_t)addr) {
		perror("insn_test: mmap of a low address");
		exit(2);
	}
	return p;
}

void native_init(void)
{
	static const int sigs[] = {SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE};
	struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	stack_t ss = {.ss_size = 1 << 18};
	u16 sel = 0x2b;

	memset(map_at(CODE, CODE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC), 0xcc, CODE_SIZE);
	map_at(DATA, DATA_SIZE, PROT_READ | PROT_WRITE);
	for (u64 n = DATA_RW; n < DATA_SIZE; n++)
		*(u8 *)(uintptr_t)(DATA + n) = (u8)rnd();
	mprotect((void *)(uintptr_t)(DATA + DATA_RW), DATA_SIZE - DATA_RW, PROT_READ);
	ss.ss_sp = mmap(NULL, ss.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (ss.ss_sp == MAP_FAILED || sigaltstack(&ss, NULL))
		exit(2);
	sigfillset(&sa.sa_mask);
	for (unsigned n = 0; n < ARRAY_SIZE(sigs); n++)
		sigaction(sigs[n], &sa, NULL);
	fp_trap_guarded();
	/* 32-bit code needs data segments; 64-bit code does not look at them. */
	asm volatile("mov %0, %%ds\n\tmov %0, %%es" : : "r"(sel));
	syscall(SYS_arch_prctl, ARCH_GET_FS, &native_fs_base);
	native_gs_base = 0x1234567;
	syscall(SYS_arch_prctl, ARCH_SET_GS, native_gs_base);
}
