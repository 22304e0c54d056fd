/*
 * static_trap.c: from the program into us and back (static.h has the invariants).
 *
 * static_entry is the handler of every signal. It tells by `selector` who was running, and takes the program's FS base
 * away before any C code runs. What leads back gives it back last. The system calls between static_text_from and
 * static_text_to are never dispatched, so those made there with the program's FS base or selector get through.
 */
#define _GNU_SOURCE
#include "static.h"

#include <errno.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ARCH_SET_GS 0x1001

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#define PR_SYS_DISPATCH_ON 1
#endif

/* The kernel lets user code write FS base. */
u8 static_fsgsbase __attribute__((visibility("hidden")));
extern const char static_text_from[], static_text_to[] __attribute__((visibility("hidden")));

/* Numbers: 158 arch_prctl, 0x1002 ARCH_SET_FS, 15 rt_sigreturn, 14 rt_sigprocmask, 2 SIG_SETMASK; 8 selector, 16
 * own_fs, 24 fs, in struct sthread. */
__asm__(".text\n"
        ".balign 16\n"
        ".hidden static_text_from, static_text_to, static_entry, static_restorer, static_return, static_start\n"
        ".hidden static_call_handler, static_fsgsbase\n"
        ".globl static_text_from, static_text_to, static_entry, static_restorer, static_return, static_start\n"
        ".globl static_call_handler\n"
        ".macro SET_FS offset\n" /* FS base = the field of %r12 */
        "	cmpb $0, static_fsgsbase(%rip)\n"
        "	je 8f\n"
        "	mov \\offset(%r12), %rax\n"
        "	wrfsbase %rax\n"
        "	jmp 9f\n"
        "8:	mov \\offset(%r12), %rsi\n"
        "	mov $0x1002, %edi\n"
        "	mov $158, %eax\n"
        "	syscall\n"
        "9:\n"
        ".endm\n"
        "static_text_from:\n"

        /* A signal: rdi its number, rsi siginfo_t, rdx ucontext, rsp the frame. */
        "static_entry:\n"
        "	mov %gs:0, %r12\n"
        "	mov %rsp, %rbx\n"
        "	mov %edi, %ebp\n"
        "	mov %rsi, %r14\n"
        "	mov %rdx, %r15\n"
        "	cmpb $0, 8(%r12)\n"
        "	je 1f\n"
        "	movb $0, 8(%r12)\n"
        "	cmpb $0, static_fsgsbase(%rip)\n"
        "	je 2f\n"
        "	rdfsbase %rax\n"
        "	mov %rax, 24(%r12)\n"
        "2:\n"
        "	SET_FS 16\n"
        "	mov %ebp, %edi\n"
        "	mov %r14, %rsi\n"
        "	mov %r15, %rdx\n"
        "	mov %rbx, %rcx\n"
        "	mov %r12, %r8\n"
        "	and $-16, %rsp\n"
        "	xor %ebp, %ebp\n"
        "	call static_from_program\n"
        "	ud2\n"
        "1:	mov %rbx, %rcx\n"
        "	mov %r12, %r8\n"
        "	and $-16, %rsp\n"
        "	call static_in_engine\n"
        "	mov %rbx, %rsp\n"
        "	ret\n"

        "static_restorer:\n"
        "	mov $15, %eax\n"
        "	syscall\n"
        "	ud2\n"

        /* (t, frame) */
        "static_return:\n"
        "	mov %rdi, %r12\n"
        "	mov %rsi, %rbx\n"
        "	SET_FS 24\n"
        "	lea 8(%rbx), %rsp\n"
        "	movb $1, 8(%r12)\n"
        "	mov $15, %eax\n"
        "	syscall\n"
        "	ud2\n"

        /* (t, entry, sp) */
        "static_start:\n"
        "	mov %rdi, %r12\n"
        "	mov %rsi, %rbx\n"
        "	mov %rdx, %rbp\n"
        "	SET_FS 24\n"
        "	mov %rbp, %rsp\n"
        "	push %rbx\n"
        "	movb $1, 8(%r12)\n"
        "	xor %eax, %eax\n"
        "	xor %ebx, %ebx\n"
        "	xor %ecx, %ecx\n"
        "	xor %edx, %edx\n"
        "	xor %esi, %esi\n"
        "	xor %edi, %edi\n"
        "	xor %ebp, %ebp\n"
        "	xor %r8d, %r8d\n"
        "	xor %r9d, %r9d\n"
        "	xor %r10d, %r10d\n"
        "	xor %r11d, %r11d\n"
        "	xor %r12d, %r12d\n"
        "	xor %r13d, %r13d\n"
        "	xor %r14d, %r14d\n"
        "	xor %r15d, %r15d\n"
        "	ret\n"

        /* (t, frame, handler, signal, mask): from rt_sigprocmask on, this is the program's own code to everybody. */
        "static_call_handler:\n"
        "	mov %rdi, %r12\n"
        "	mov %rsi, %rbx\n"
        "	mov %rdx, %r13\n"
        "	mov %ecx, %ebp\n"
        "	mov %r8, %r14\n"
        "	SET_FS 24\n"
        "	mov %rbx, %rsp\n"
        "	movb $1, 8(%r12)\n"
        "	mov $2, %edi\n"
        "	mov %r14, %rsi\n"
        "	xor %edx, %edx\n"
        "	mov $8, %r10d\n"
        "	mov $14, %eax\n"
        "	syscall\n"
        "	mov %ebp, %edi\n"
        "	lea 312(%rbx), %rsi\n"
        "	lea 8(%rbx), %rdx\n"
        "	xor %eax, %eax\n"
        "	jmp *%r13\n"
        "static_text_to:\n"
        "	.byte 0x0f, 0x0b\n"

        ".hidden static_pass, static_pass_from, static_pass_insn, static_pass_done, static_pass_again\n"
        ".hidden static_pass_trapped\n"
        ".globl static_pass, static_pass_from, static_pass_insn, static_pass_done, static_pass_again\n"
        ".globl static_pass_trapped\n"
        ".type static_pass, @function\n"
        "static_pass:\n"
        "	mov %rdi, %r11\n"
        "	mov (%r11), %rax\n"
        "	mov 8(%r11), %rdi\n"
        "	mov 16(%r11), %rsi\n"
        "	mov 24(%r11), %rdx\n"
        "	mov 32(%r11), %r10\n"
        "	mov 40(%r11), %r8\n"
        "	mov 48(%r11), %r9\n"
        "static_pass_from:\n"
        "	cmpb $0, %gs:9\n"
        "	jne static_pass_again\n"
        "static_pass_insn:\n"
        "	syscall\n"
        "static_pass_done:\n"
        "	ret\n"
        "static_pass_again:\n"
        "	mov $-0x7000, %rax\n"
        "	ret\n"
        "static_pass_trapped:\n"
        "	mov $-0x7001, %rax\n"
        "	ret\n");

void static_trap_init(void)
{
	/* The instructions may work without the kernel knowing, which then loses what they wrote: only its word counts.
	 */
	static_fsgsbase = getauxval(AT_HWCAP2) >> 1 & 1;
}

int static_trap_arm(struct sthread *t)
{
	stack_t alt = {.ss_sp = t->stack, .ss_size = t->stack_size};

	t->self = t;
	t->selector = SELECTOR_ALLOW;
	__asm__("mov %%fs:0, %0" : "=r"(t->own_fs));
	/* EPERM: a fork()ed child, which is on it. */
	if (syscall(SYS_arch_prctl, ARCH_SET_GS, t) < 0 || (sigaltstack(&alt, NULL) < 0 && errno != EPERM) ||
	    prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, static_text_from, static_text_to - static_text_from,
	          &t->selector) < 0)
		return -errno;
	return 0;
}

void static_trap_adopt(void)
{
	static _Thread_local struct sthread mine __attribute__((tls_model("initial-exec")));

	mine.self = &mine;
	mine.selector = SELECTOR_ALLOW;
	syscall(SYS_arch_prctl, ARCH_SET_GS, &mine);
}
