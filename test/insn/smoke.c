/*
 * smoke.c: runs a few loops in a bare vCPU and prints how fast; `make bench-interp`. Not a test of meaning.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "../../src/x86/pte.h"
#include "../../src/jit/jit.h"
#include "machine.h"

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec * 1e-9;
}

/* Machine code between the labels, ending in HLT at CPL 0. */
#define CODE(name, text)                                                                                               \
	extern const u8 name##_begin[], name##_end[];                                                                  \
	asm(".pushsection .rodata\n.globl " #name "_begin, " #name "_end\n" #name "_begin:\n" text "\nhlt\n" #name     \
	    "_end:\n.popsection");

CODE(regs, "movl $100000000, %ecx\n1: addq %rcx, %rax\nxorq %rax, %rdx\nleaq 3(%rdx,%rax,2), %rbx\n"
           "subl $1, %ecx\njnz 1b")
CODE(tight, "movl $100000000, %ecx\n1: decl %ecx\njnz 1b")
CODE(mem, "movl $50000000, %ecx\nmovq %rdi, %rsi\n1: movq (%rsi), %rax\naddq %rcx, %rax\nmovq %rax, 8(%rsi)\n"
          "addl $1, 16(%rsi)\ndecl %ecx\njnz 1b")
CODE(calls, "movl $30000000, %ecx\njmp 2f\n1: pushq %rbx\nmovq %rax, %rbx\npopq %rbx\nret\n2: call 1b\ndecl %ecx\n"
            "jnz 2b")
CODE(branchy, "movl $30000000, %ecx\nmovl $12345, %eax\n1: imull $1103515245, %eax\naddl $12345, %eax\n"
              "testl $0x10000, %eax\njz 2f\nincl %edx\njmp 3f\n2: decl %edx\n3: decl %ecx\njnz 1b")
CODE(repmovs, "movl $300000, %ebx\nmovq %rdi, %r8\n1: movq %r8, %rsi\nleaq 8192(%r8), %rdi\nmovl $512, %ecx\n"
              "rep movsq\ndecl %ebx\njnz 1b")
CODE(sse, "movl $20000000, %ecx\n1: addps %xmm0, %xmm1\nmovaps %xmm1, (%rdi)\npaddd (%rdi), %xmm2\ndecl %ecx\njnz 1b")

/* Real mode: DI points to data, SP above them. */
#define CODE16(name, text) CODE(name, ".code16\n" text "\nhlt\n.code64")

CODE16(regs16, "movl $100000000, %ecx\n1: addw %cx, %ax\nxorw %ax, %dx\nleaw 3(%bx,%si), %bx\nsubl $1, %ecx\njnz 1b")
CODE16(mem16, "movl $50000000, %ecx\n1: movw (%di), %ax\naddw %cx, %ax\nmovw %ax, 8(%di)\naddw $1, %es:16(%di)\n"
              "decl %ecx\njnz 1b")
CODE16(calls16, "movl $30000000, %ecx\njmp 2f\n1: pushw %bx\nmovw %ax, %bx\npopw %bx\nret\n2: call 1b\ndecl %ecx\n"
                "jnz 2b")
CODE16(loop16, "movw $1000, %bx\n1: movw $60000, %cx\n2: addw %bx, %ax\nloop 2b\ndecw %bx\njnz 1b")

static void real_mode(struct vcpu *v, u64 code, u64 data)
{
	for (unsigned n = SEG_ES; n <= SEG_GS; n++)
		v->seg[n] = (struct seg){.sel = 0x100,
		                         .type = SEGT_W | SEGT_A,
		                         .s = true,
		                         .present = true,
		                         .limit = 0xffff,
		                         .base = n == SEG_CS ? code : data};
	v->seg[SEG_CS].type |= SEGT_CODE;
	cpu_set_crs(v, CR0_ET, 0, 0, 0);
}

static void run(struct machine *m, const char *name, const u8 *begin, const u8 *end, u8 *code, u8 *data)
{
	struct vcpu *v = m->v;
	double t;
	u64 n;

	memcpy(code, begin, (size_t)(end - begin));
	memset(&v->r, 0, sizeof(v->r));
	v->r[R_RIP] = (u64)(uintptr_t)code;
	v->r[R_RDI] = (u64)(uintptr_t)data;
	v->r[R_RSP] = (u64)(uintptr_t)data + 0x3000;
	if (v->mode == MODE_REAL) {
		v->r[R_RIP] = 0;
		v->r[R_RDI] = 0;
		v->r[R_RSP] = 0x3000;
	}
	n = v->n_insns;
	t = now();
	if (v->jit)
		jit_run(v);
	else
		interp_run(v);
	t = now() - t;
	n = v->n_insns - n;
	printf("%-8s %5.0f million instructions/s (%llu in %.2f s, %.2f ns each)%s\n", name, (double)n / t * 1e-6,
	       (unsigned long long)n, t, t / (double)n * 1e9, v->exit.reason == EXIT_HLT ? "" : " STOPPED EARLY");
	if (v->exit.reason != EXIT_HLT)
		printf("  exit %d rip %#llx exc %d cr2 %#llx\n", v->exit.reason, (unsigned long long)v->r[R_RIP],
		       v->excp.vector, (unsigned long long)v->cr2);
}

int main(int argc, char **argv)
{
	struct machine m;
	u8 *w = mmap((void *)0x10000000, 0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
	             0);

	if (w == MAP_FAILED)
		return 2;
	/* The translator counts instructions only under DEVKVM_DEBUG=jitstat. */
	setenv("DEVKVM_ENGINE", "interp", 0);
	machine_init(&m, 0);
	machine_window(&m, w, 0x10000);
	for (u64 a = 0; a < 0x10000; a += PAGE_SIZE)
		machine_map(&m, (u64)(uintptr_t)w + a, PTE_P | PTE_W | PTE_A | PTE_D);
#define RUN(name)                                                                                                      \
	if (argc < 2 || !strcmp(argv[1], #name))                                                                       \
	run(&m, #name, name##_begin, name##_end, w, w + 0x8000)
	RUN(tight);
	RUN(regs);
	RUN(mem);
	RUN(calls);
	RUN(branchy);
	RUN(repmovs);
	RUN(sse);
#define RUN16(name)                                                                                                    \
	if (argc < 2 || !strcmp(argv[1], #name)) {                                                                     \
		real_mode(m.v, (u64)(uintptr_t)w, (u64)(uintptr_t)w + 0x8000);                                         \
		run(&m, #name, name##_begin, name##_end, w, w + 0x8000);                                               \
	}
	RUN16(regs16);
	RUN16(mem16);
	RUN16(calls16);
	RUN16(loop16);
	machine_free(&m);
	return 0;
}
