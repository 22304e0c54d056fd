/*
 * t_cpu_smoke.c: the processor's system side on a bare vCPU: privilege changes, gates, IST, tasks, virtual-8086 mode,
 * SYSCALL, debug registers, double and triple faults. Each snippet writes what it sees to port 0x10 (32 bits a time);
 * the list must come out as expected.
 *
 * Guest memory is RAM_SIZE bytes at 0, linear = physical. Snippets are linked here but run at CODE: labels are turned
 * into guest addresses by `label - start + CODE`.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../../src/interp/interp.h"
#include "../../src/x86/pte.h"
#include "../lib/test.h"

#define RAM_SIZE (4u << 20)
#define CODE 0x8000
#define GDT 0x1000
#define IDT 0x2000
#define TSS 0x3000
#define TSS2 0x3200
#define LDT 0x3800
#define PML4 0x10000
#define STACK0 0x7000 /* ring 0 */
#define STACK3 0x6000 /* ring 3 */
#define IST1 0x5000

/* Selectors */
#define CS0 0x08
#define DS0 0x10
#define CS3 0x1b
#define DS3 0x23
#define TR 0x28 /* 16 bytes in long mode */
#define TR2 0x38
#define GATE 0x40 /* call gate, 16 bytes in long mode */
#define CS32 0x53 /* 32-bit code, ring 3, for compatibility mode */
#define TASKGATE 0x58

static u8 *ram;
static struct vm_mem mem;
static struct memslot *slot;
static struct vcpu *v;
static u32 trace[256];
static unsigned ntrace;

static int pio(struct vcpu *c, const struct pio *io)
{
	if (!io->in && io->port == 0x10 && ntrace < ARRAY_SIZE(trace))
		trace[ntrace++] = io->value;
	if (ntrace == ARRAY_SIZE(trace)) {
		c->exit.reason = EXIT_IO; /* a snippet that runs in circles */
		return STEP_EXIT;
	}
	return STEP_OK;
}

static int cpuid(struct vcpu *c, const struct insn *i)
{
	return STEP_OK;
}

static int hlt(struct vcpu *c, const struct insn *i)
{
	c->r[R_RIP] += i->len;
	c->exit.reason = EXIT_HLT;
	return STEP_EXIT;
}

static int irq_take(struct vcpu *c)
{
	return -1;
}

static bool irq_pending(struct vcpu *c)
{
	return false;
}

static void kicked(struct vcpu *c)
{
}

static const struct vcpu_ops ops = {
        .pio = pio, .cpuid = cpuid, .hlt = hlt, .irq_take = irq_take, .irq_pending = irq_pending, .kicked = kicked};
static const struct mmu_ops mmu_ops = {.code_written = interp_code_written};

static void put64(u32 at, u64 val)
{
	memcpy(ram + at, &val, 8);
}
static void put32(u32 at, u32 val)
{
	memcpy(ram + at, &val, 4);
}

static void setup(const u8 *start, const u8 *end)
{
	ntrace = 0;
	ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	vm_mem_init(&mem);
	slot = malloc(sizeof(*slot));
	*slot = (struct memslot){.id = 0, .gpa = 0, .size = RAM_SIZE, .hva = ram};
	if (memslot_add(&mem, slot))
		abort();
	v = aligned_alloc(64, (sizeof(*v) + 63) & ~63ul);
	memset(v, 0, sizeof(*v));
	mmu_init(&v->mmu, &mem, &mmu_ops);
	v->ops = &ops;
	if (interp_create(v))
		abort();
	cpu_reset(v);
	memcpy(ram + CODE, start, (size_t)(end - start));
}

static void teardown(void)
{
	interp_destroy(v);
	memslot_remove(&mem, slot);
	memslot_free(slot);
	vm_mem_free(&mem);
	free(v);
	munmap(ram, RAM_SIZE);
}

static u64 gate(u16 sel, u32 off, unsigned type, unsigned dpl, unsigned low)
{
	return (off & 0xffff) | (u64)sel << 16 | (u64)low << 32 | (u64)(0x80 | dpl << 5 | type) << 40 |
	       (u64)(off >> 16) << 48;
}

static void seg_set(unsigned n, u16 sel, unsigned type, unsigned dpl, bool s, bool db, bool l, u64 base, u32 limit)
{
	v->seg[n] = (struct seg){.sel = sel,
	                         .type = (u8)type,
	                         .dpl = (u8)dpl,
	                         .s = s,
	                         .present = true,
	                         .db = db,
	                         .l = l,
	                         .g = limit > 0xfffff,
	                         .base = base,
	                         .limit = limit};
}

/* 64-bit mode at CPL 0, first 4 MiB mapped for everybody, the last page not present. */
static void long_mode(void)
{
	for (unsigned n = 0; n < RAM_SIZE / 4096 - 1; n++)
		put64(PML4 + 0x3000 + 8 * n, n * 4096ull | PTE_P | PTE_W | PTE_U);
	put64(PML4, (PML4 + 0x1000) | 7);
	put64(PML4 + 0x1000, (PML4 + 0x2000) | 7);
	for (unsigned n = 0; n < RAM_SIZE >> 21; n++)
		put64(PML4 + 0x2000 + 8 * n, (PML4 + 0x3000 + 0x1000 * n) | 7);
	put64(GDT + CS0, 0x00af9b000000ffff);
	put64(GDT + DS0, 0x00cf93000000ffff);
	put64(GDT + 0x18, 0x00affb000000ffff);
	put64(GDT + 0x20, 0x00cff3000000ffff);
	put64(GDT + TR, 0x0000890000000067ull | (u64)TSS << 16);
	put64(GDT + 0x50, 0x00cffb000000ffff);
	put64(GDT + 0x60, 0x00cff3000000ffff); /* what SYSRET loads: SS, CS */
	put64(GDT + 0x68, 0x00affb000000ffff);
	put64(TSS + 4, STACK0);
	put64(TSS + 0x24, IST1);
	v->gdt = (struct dtable){GDT, 0x7f};
	v->idt = (struct dtable){IDT, 0xfff};
	seg_set(SEG_CS, CS0, 11, 0, true, false, true, 0, 0xffffffff);
	seg_set(SEG_SS, DS0, 3, 0, true, true, false, 0, 0xffffffff);
	cpu_set_crs(v, CR0_PE | CR0_PG | CR0_WP | CR0_NE, PML4, CR4_PAE, EFER_LME | EFER_LMA | EFER_NX | EFER_SCE);
	v->r[R_RSP] = STACK0;
	v->r[R_RIP] = CODE;
	cpu_update(v);
}

static void idt64(unsigned vec, u32 off, unsigned type, unsigned dpl, unsigned ist)
{
	put64(IDT + 16 * vec, gate(CS0, off, type, dpl, ist));
	put64(IDT + 16 * vec + 8, 0);
}

/* Flat 32-bit protected mode at CPL 0, no paging. */
static void prot_mode(void)
{
	put64(GDT + CS0, 0x00cf9b000000ffff);
	put64(GDT + DS0, 0x00cf93000000ffff);
	put64(GDT + 0x18, 0x00cffb000000ffff);
	put64(GDT + 0x20, 0x00cff3000000ffff);
	put64(GDT + TR, 0x0000890000002067ull | (u64)TSS << 16);
	put64(GDT + TR2, 0x0000890000000067ull | (u64)TSS2 << 16);
	put32(TSS + 4, STACK0);
	put32(TSS + 8, DS0);
	put32(TSS + 0x64, 0x680000);
	v->gdt = (struct dtable){GDT, 0x7f};
	v->idt = (struct dtable){IDT, 0x7ff};
	seg_set(SEG_CS, CS0, 11, 0, true, true, false, 0, 0xffffffff);
	for (unsigned n = 0; n <= SEG_GS; n++)
		if (n != SEG_CS)
			seg_set(n, DS0, 3, 0, true, true, false, 0, 0xffffffff);
	cpu_set_crs(v, CR0_PE | CR0_NE, 0, 0, 0);
	v->r[R_RSP] = STACK0 - 0x100;
	v->r[R_RIP] = CODE;
	cpu_update(v);
}

static void idt32(unsigned vec, u32 off, unsigned type, unsigned dpl)
{
	put64(IDT + 8 * vec, gate(CS0, off, type, dpl, 0));
}

/* Runs, and compares the trace; ANY stands for a value that does not matter. */
#define ANY 0xdeadbeefu

static void expect(enum exit_reason reason, const u32 *want, unsigned n)
{
	interp_run(v);
	CHECK_EQ(v->exit.reason, reason);
	CHECK_EQ(ntrace, n);
	for (unsigned k = 0; k < n && k < ntrace; k++) {
		if (trace[k] != want[k] && want[k] != ANY) {
			printf("  trace[%u] is %#x, not %#x\n", k, trace[k], want[k]);
			test_bad_checks++;
		}
	}
	if (v->exit.reason != reason || ntrace != n) {
		printf("  rip %#llx mode %u cpl %u:", (unsigned long long)v->r[R_RIP], v->mode, v->cpl);
		for (unsigned k = 0; k < ntrace; k++)
			printf(" %#x", trace[k]);
		printf("%s%s\n", v->exit.reason == EXIT_INTERNAL ? " " : "",
		       v->exit.reason == EXIT_INTERNAL ? v->exit.internal.why : "");
	}
}

#define SNIPPET(name, text)                                                                                            \
	extern const u8 name##_start[], name##_end[];                                                                  \
	asm(".pushsection .rodata\n.balign 16\n" #name "_start:\nstart_" #name ":\n" text "\n" #name                   \
	    "_end:\n.code64\n.popsection")
#define AT(name, label) (CODE + (u32)(label - name##_start))
#define LABEL(label) extern const u8 label[]
/* Trace an immediate, or EAX. */
#define T(x) "mov $" #x ",%eax\nout %eax,$0x10\n"
#define TR_(r) "mov " r ",%eax\nout %eax,$0x10\n"

/* ---- long mode -------------------------------------------------------------------------------------------------- */

SNIPPET(l64,
        ".code64\n"
        "mov $0x28,%ax\nltr %ax\n"
        /* to ring 3 with IOPL 3 */
        "push $0x23\npush $0x6000\npush $0x3002\npush $0x1b\npush $(l64_user-start_l64+0x8000)\niretq\n"
        "l64_user:\n" T(
                1) "mov %cs,%eax\nout %eax,$0x10\n"
                   "int $0x80\n" T(3) "ud2\n" T(5) "mov 0x3ff000,%eax\n" T(
                           7) "int $0x81\n"
                              "mov %cr0,%rax\n"
                              "syscall\n" T(
                                      9) "mov %cs,%eax\nout %eax,$0x10\nmov %ss,%eax\nout %eax,$0x10\n"
                                         /* compatibility mode and back */
                                         "push $0x53\npush $(l64_compat-start_l64+0x8000)\nlretq\n"
                                         ".code32\nl64_compat:\n" T(
                                                 11) "mov %cs,%eax\nout %eax,$0x10\n"
                                                     "int $0x80\n"
                                                     "lcall $0x40,$0\n" T(
                                                             13) "int $0x82\n"
                                                                 ".code64\n"
                                                                 /* DPL 3 interrupt gate by RSP0: the frame */
                                                                 ".globl l64_int80\nl64_int80:\n" T(2) TR_("(%rsp)") TR_(
                                                                         "8(%rsp)") TR_("16(%rsp)") TR_("24(%rsp)") TR_("32(%rsp)")
                                                                         TR_("%esp") "mov %ss,%eax\nout "
                                                                                     "%eax,$0x10\nmov %cs,%eax\nout "
                                                                                     "%eax,$0x10\niretq\n"
                                                                                     /* #UD on IST1 */
                                                                                     ".globl l64_ud\nl64_ud:\n" T(4) TR_(
                                                                                             "%esp") "addq "
                                                                                                     "$2,(%rsp)"
                                                                                                     "\niretq\n"
                                                                                                     ".globl "
                                                                                                     "l64_pf\nl64_pf:"
                                                                                                     "\n" T(6) TR_(
                                                                                                             "(%rsp)") "mov %cr2,%rax\nout %eax,$0x10\nadd $8,%rsp\naddq $7,(%rsp)\niretq\n"
                                                                                                                       /* #GP: error code; skip 2 or 3 bytes by the first opcode byte */
                                                                                                                       ".globl l64_gp\nl64_gp:\n" T(8) TR_(
                                                                                                                               "(%rsp)") "add $8,%rsp\nmov (%rsp),%rbx\ncmpb $0xcd,(%rbx)\n"
                                                                                                                                         "je 1f\nincq (%rsp)\n1: addq $2,(%rsp)\niretq\n"
                                                                                                                                         ".globl l64_sys\nl64_sys:\n" T(
                                                                                                                                                 10)
                                                                                                                                                 TR_("%r11d") "mov %cs,%eax\nout %eax,$0x10\nmov %ss,%eax\nout %eax,$0x10\nsysretq\n"
                                                                                                                                                              /* the call gate's target: old SS, RSP, CS, RIP */
                                                                                                                                                              ".globl l64_gate\nl64_gate:\n" T(
                                                                                                                                                                      12) TR_("8(%rsp)")
                                                                                                                                                                      TR_("24(%rsp)") TR_(
                                                                                                                                                                              "%esp") "lretq\n"
                                                                                                                                                                                      ".globl l64_halt\nl64_halt:\nhlt\n");
LABEL(l64_int80);
LABEL(l64_ud);
LABEL(l64_pf);
LABEL(l64_gp);
LABEL(l64_sys);
LABEL(l64_gate);
LABEL(l64_halt);

TEST(long_mode_gates)
{
	setup(l64_start, l64_end);
	long_mode();
	idt64(6, AT(l64, l64_ud), 14, 0, 1);
	idt64(14, AT(l64, l64_pf), 14, 0, 0);
	idt64(13, AT(l64, l64_gp), 14, 0, 0);
	idt64(0x80, AT(l64, l64_int80), 15, 3, 0);
	idt64(0x81, AT(l64, l64_int80), 14, 0, 0);
	idt64(0x82, AT(l64, l64_halt), 14, 3, 0);
	put64(GDT + GATE, gate(CS0, AT(l64, l64_gate), 12, 3, 0));
	put64(GDT + GATE + 8, 0);
	v->lstar = AT(l64, l64_sys);
	v->sfmask = FLAGS_IF;
	v->star = (u64)0x08 << 32 | (u64)0x5b << 48;
	const u32 want[] = {1, 0x1b,
	                    /* INT 0x80: RIP CS RFLAGS RSP SS, the handler's RSP, SS, CS */
	                    2, ANY, 0x1b, 0x3002, STACK3, DS3, STACK0 - 40, 0, CS0, 3,
	                    /* #UD on IST1; #PF, user read of nothing; #GP for a DPL 0 gate and for MOV CR0 */
	                    4, IST1 - 40, 5, 6, 4, 0x3ff000, 7, 8, 0x81 * 8 + 2, 8, 0,
	                    /* SYSCALL and back */
	                    10, 0x3002, CS0, DS0, 9, 0x6b, 0x63,
	                    /* compatibility mode: INT, a call through the gate */
	                    11, CS32, 2, ANY, CS32, 0x3002, STACK3, 0x63, STACK0 - 40, 0, CS0, 12, CS32, 0x63,
	                    STACK0 - 32, 13};

	expect(EXIT_HLT, want, ARRAY_SIZE(want));
	CHECK_EQ(v->cpl, 0);
	teardown();
}

/* ---- 32-bit: rings, call gate, tasks, virtual-8086 mode ---------------------------------------------------------- */

SNIPPET(p32, ".code32\n"
             "mov $0x28,%ax\nltr %ax\n"
             "push $0x23\npush $0x6000\npush $0x3002\npush $0x1b\npush $(p32_user-start_p32+0x8000)\niret\n"
             "p32_user:\n" T(1) "mov %ds,%eax\nout %eax,$0x10\n" /* DS0 is gone in ring 3 */
                                "mov $0x23,%eax\nmov %eax,%ds\n"
                                "push $0x1111\npush $0x2222\nlcall $0x40,$0\n" T(3)
                                        TR_("%esp") "lcall $0x40,$0\n" /* again, to see the stack pointer steady */
                                                    "mov $0x08,%eax\nmov %eax,%es\n" T(5) /* code, DPL 0: #GP(8) */
        "int $0x30\n"
        /* ring 0: parameters copied */
        ".globl p32_gate\np32_gate:\n" T(2)
                TR_("(%esp)") "mov 4(%esp),%eax\nout %eax,$0x10\nmov 8(%esp),%eax\nout %eax,$0x10\n"
                              "mov 12(%esp),%eax\nout %eax,$0x10\nmov 16(%esp),%eax\nout %eax,$0x10\nmov "
                              "20(%esp),%eax\nout %eax,$0x10\nlret $8\n"
                              ".globl p32_gp\np32_gp:\n" T(
                                      4) "pop %eax\nout %eax,$0x10\ntestl $0x20000,8(%esp)\njnz p32_v86gp\naddl "
                                         "$2,(%esp)\niret\n"
                                         /* int 0x30: ring 0 for good; switch tasks */
                                         ".globl p32_int30\np32_int30:\n" T(
                                                 6) "mov $0x7000-0x100,%esp\n"
                                                    "lcall $0x38,$0\n" T(
                                                            8) "str %ax\nmovzx %ax,%eax\nout %eax,$0x10\npushf\npop "
                                                               "%eax\nout %eax,$0x10\nmov %cr0,%eax\nand $8,%eax\nout "
                                                               "%eax,$0x10\n"
                                                               "int $0x31\n" T(9) /* by task gate */
        "ljmp $0x38,$0\n" T(10)
        /* virtual-8086 mode: cs 0x800 = 0x8000 */
        "push $0x44\npush $0x55\npush $0x66\npush $0x77\npush $0x500\npush $0x0ff0\npush $0x23002\npush $0x800\npush "
        "$(p32_v86-start_p32)\niret\n"
        ".code16\np32_v86:\n"
        "mov $11,%eax\nout %eax,$0x10\n"
        "xor %eax,%eax\nmov %ds,%ax\nout %eax,$0x10\nmov %sp,%ax\nout %eax,$0x10\n"
        "int $0x32\n"
        "mov $13,%eax\nout %eax,$0x10\nmov %cs,%ax\nout %eax,$0x10\n"
        "hlt\n"
        ".code32\n.globl p32_int32\np32_int32:\n" T(
                12) "mov 8(%esp),%eax\nout %eax,$0x10\nmov 12(%esp),%eax\nout %eax,$0x10\nmov 16(%esp),%eax\nout "
                    "%eax,$0x10\n"
                    "mov 20(%esp),%eax\nout %eax,$0x10\nmov 32(%esp),%eax\nout %eax,$0x10\nmov %gs,%eax\nout "
                    "%eax,$0x10\niret\n"
                    "p32_v86gp:\n" T(14) "hlt\n"
                                         /* the other task: entered by CALL, task gate, JMP */
                                         ".globl p32_task\np32_task:\n" T(
                                                 7) "pushf\npop %eax\nand $0x4000,%eax\nout %eax,$0x10\nmovzwl "
                                                    "0x3200,%eax\nout %eax,$0x10\n"
                                                    "str %ax\nmovzx %ax,%eax\nout %eax,$0x10\niret\n" T(20) "iret\n" T(
                                                            21) "ljmp $0x28,$0\n"
                                                                "p32_last: nop\n");
LABEL(p32_gate);
LABEL(p32_gp);
LABEL(p32_int30);
LABEL(p32_int32);
LABEL(p32_task);

TEST(protected_gates_tasks_v86)
{
	setup(p32_start, p32_end);
	prot_mode();
	idt32(13, AT(p32, p32_gp), 14, 0);
	idt32(0x30, AT(p32, p32_int30), 14, 3);
	put64(IDT + 8 * 0x31, gate(TR2, 0, 5, 0, 0));
	idt32(0x32, AT(p32, p32_int32), 15, 3);
	put64(GDT + GATE, gate(CS0, AT(p32, p32_gate), 12, 3, 2));
	put32(TSS2 + 0x20, AT(p32, p32_task));
	put32(TSS2 + 0x24, 0x3002);
	put32(TSS2 + 0x38, 0x4000);
	for (unsigned n = 0; n < 6; n++)
		put32(TSS2 + 0x48 + 4 * n, n == SEG_CS ? CS0 : DS0);
	static const u32 want[] = {1, 0,
	                           /* the gate: EIP CS parameters ESP SS, twice */
	                           2, ANY, CS3, 0x2222, 0x1111, STACK3 - 8, DS3, 3, STACK3, 2, ANY, CS3, ANY, ANY,
	                           STACK3, DS3, 4, 8, 5, 6,
	                           /* CALL to the task: NT, back link, TR; then back: TR, flags, CR0.TS */
	                           7, 0x4000, TR, TR2, 8, TR, 0x3002, 8, 20, 9, 21, 10,
	                           /* virtual-8086 mode, INT and its frame, #GP of HLT */
	                           11, 0x66, 0x0ff0, 12, 0x23046, 0xff0, 0x500, 0x77, 0x44, 0, 13, 0x800, 4, 0, 14};

	expect(EXIT_HLT, want, ARRAY_SIZE(want));
	teardown();
}

/* ---- debug ------------------------------------------------------------------------------------------------------ */

SNIPPET(dbg, ".code64\n"
             "mov $0x28,%ax\nltr %ax\n"
             "pushf\norl $0x100,(%rsp)\npopf\nnop\nnop\n" /* two traps: after the first NOP, after the second */
             "pushf\nandl $~0x100,(%rsp)\npopf\n" T(
                     1) "lea dbg_bp(%rip),%rax\nmov %rax,%dr0\nmov $0x402,%eax\nmov %rax,%dr7\n"
                        "dbg_bp: nop\n" T(2) "mov $0x9000,%eax\nmov %rax,%dr1\nmov $0x00d00408,%eax\nmov %rax,%dr7\n"
                                             "mov %eax,0x9000\n" T(3) "mov 0x9000,%eax\n" T(
                                                     4) "mov $0x2400,%eax\nmov %rax,%dr7\nmov "
                                                        "%dr0,%rbx\n" T(5) "hlt\n"
                                                                           ".globl dbg_db\ndbg_db:\nmov "
                                                                           "%dr6,%rax\nout "
                                                                           "%eax,$0x10\nmov "
                                                                           "(%rsp),%rax\nsub "
                                                                           "$0x8000,%eax\nout "
                                                                           "%eax,$0x10\n"
                                                                           "mov 16(%rsp),%rax\nand "
                                                                           "$0x10000,%eax\nout "
                                                                           "%eax,$0x10\n"
                                                                           "mov $0xffff0ff0,%eax\nmov "
                                                                           "%rax,%dr6\n"
                                                                           /* an instruction breakpoint:
                                                                              set RF */
                                                                           "lea dbg_bp(%rip),%rax\ncmp "
                                                                           "%rax,(%rsp)\njne 1f\norl "
                                                                           "$0x10000,16(%rsp)\n1: "
                                                                           "iretq\n");
LABEL(dbg_db);

/* DR6, return address from CODE, RF of each #DB, and the markers in between. */
TEST(debug_registers)
{
	static const u32 want[] = {0xffff4ff0, 0x11,       0,    0xffff4ff0, 0x12,       0,    0xffff4ff0, 0x13,
	                           0,          0xffff4ff0, 0x1a, 0,          0xffff4ff0, 0x1b, 0,          1,
	                           0xffff0ff1, 0x34,       0,    2,          0xffff0ff2, 0x53, 0,          3,
	                           4,          0xffff2ff0, 0x70, 0,          5};

	setup(dbg_start, dbg_end);
	long_mode();
	idt64(1, AT(dbg, dbg_db), 14, 0, 0);
	expect(EXIT_HLT, want, ARRAY_SIZE(want));
	teardown();
}

/* ---- double and triple faults ----------------------------------------------------------------------------------- */

SNIPPET(df, ".code64\nmov $0x28,%ax\nltr %ax\nmov $0x3ff800,%esp\n" /* bad stack */
            "ud2\n"
            ".globl df_df\ndf_df:\n" T(8) TR_("(%rsp)") "mov %cr2,%rax\nout %eax,$0x10\nhlt\n");
LABEL(df_df);

TEST(double_fault)
{
	static const u32 want[] = {8, 0, 0x3ff7f8};

	setup(df_start, df_end);
	long_mode();
	idt64(6, AT(df, df_df), 14, 0, 0);
	idt64(14, AT(df, df_df), 14, 0, 0);
	idt64(8, AT(df, df_df), 14, 0, 1);
	expect(EXIT_HLT, want, ARRAY_SIZE(want));
	teardown();
}

TEST(triple_fault)
{
	setup(df_start, df_end);
	long_mode();
	v->idt.limit = 0;
	expect(EXIT_SHUTDOWN, NULL, 0);
	teardown();
}

/* ---- real mode -------------------------------------------------------------------------------------------------- */

SNIPPET(real, ".code16\n"
              "xor %eax,%eax\nmov %ax,%ds\nmov %ax,%ss\nmov $0x7000,%sp\n"
              "int $0x40\n"
              "mov $2,%eax\nout %eax,$0x10\n"
              "ud2\n"
              "mov $4,%eax\nout %eax,$0x10\n"
              /* unreal mode */
              "lgdtl real_gdt-start_real+0x8000\nmov %cr0,%eax\nor $1,%al\nmov %eax,%cr0\nmov $0x10,%bx\nmov %bx,%ds\n"
              "and $0xfe,%al\nmov %eax,%cr0\nxor %bx,%bx\nmov %bx,%ds\n"
              "mov $0x100000,%ebx\nmovl $0x1234,(%ebx)\nmov (%ebx),%eax\nout %eax,$0x10\n"
              "mov %es:0xffff,%eax\n" /* crosses the limit of ES: #GP, vector 13 */
              "hlt\n"
              "real_gdt: .word 0x7f\n.long 0x1000\n"
              ".globl real_int\nreal_int:\nmov $1,%eax\nout %eax,$0x10\nmov %esp,%eax\nout %eax,$0x10\niretw\n"
              ".globl real_ud\nreal_ud:\nmov $3,%eax\nout %eax,$0x10\nmov %sp,%bp\naddw $2,(%bp)\niretw\n"
              ".globl real_gp\nreal_gp:\nmov $13,%eax\nout %eax,$0x10\nhlt\n");
LABEL(real_int);
LABEL(real_ud);
LABEL(real_gp);

TEST(real_mode)
{
	static const u32 want[] = {1, 0x6ffa, 2, 3, 4, 0x1234, 13};

	setup(real_start, real_end);
	put64(GDT + DS0, 0x00cf93000000ffff);
	put32(4 * 0x40, AT(real, real_int));
	put32(4 * 6, AT(real, real_ud));
	put32(4 * 13, AT(real, real_gp));
	v->seg[SEG_CS].sel = 0;
	v->seg[SEG_CS].base = 0;
	v->r[R_RIP] = CODE;
	cpu_update(v);
	expect(EXIT_HLT, want, ARRAY_SIZE(want));
	teardown();
}

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
