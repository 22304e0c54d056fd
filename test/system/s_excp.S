# s_excp.S: exceptions: each vector, priorities, double and triple faults, INT1 INT3 INTO BOUND, #AC, RF.
#include "snip.h"
#include "snip.inc"
	.text

SNIPPET excp_divide, LONG
	xor %ecx, %ecx
	mov $1, %eax
	cltd
	TRY div %ecx
	TRY idiv %ecx
	mov $0x80000000, %eax
	cltd
	mov $-1, %ecx
	TRY idiv %ecx
	mov $0x100, %eax
	mov $1, %cl
	TRY div %cl
	mov $2, %edx
	mov $2, %ecx
	TRY div %ecx
	END

SNIPPET excp_aam_bound, PROT
	TRY .byte 0xd4, 0x00
	movl $-5, SCRATCH
	movl $5, SCRATCH + 4
	mov $5, %ebx
	TRY bound %ebx, SCRATCH
	mov $6, %ebx
	TRY bound %ebx, SCRATCH
	mov $-6, %ebx
	TRY bound %ebx, SCRATCH
	TRY .byte 0x62, 0xc0
	END

SNIPPET excp_traps, PROT
	TRY int3
	TRY int $3
	mov $0x7fffffff, %ecx
	inc %ecx
	into
	xor %ecx, %ecx
	into
	USER int3
	movb $0x8e, IDT + 8 * 3 + 5
	USER int3
	END

SNIPPET excp_int1, PROT
	TRY .byte 0xf1
	USER .byte 0xf1
	END

SNIPPET excp_undefined, PROT
	TRY ud2
	TRY .byte 0x0f, 0xb9, 0xc0
	TRY .byte 0x0f, 0xff, 0xc0
	TRY .byte 0xf0, 0x90
	TRY .byte 0xf0, 0x01, 0xc0
	TRY .byte 0xf0, 0x3b, 0x05, 0, 0, 0, 0
	TRY .byte 0x0f, 0x0a
	TRY .byte 0x8d, 0xc0
	TRY .byte 0x0f, 0x01, 0xf8
	TRY .byte 0x0f, 0x05
	TRY .byte 0x8c, 0xf0
	TRY .byte 0x0f, 0xc7, 0xc8
	TRY .byte 0x0f, 0x20, 0xc8
	TRY .byte 0x0f, 0xae, 0xc0
	TRY .byte 0x0f, 0xba, 0xc0, 0
	END

SNIPPET excp_undefined_group11, PROT
	TRY .byte 0xc6, 0xc8, 0
	END

SNIPPET excp_undefined_long, LONG
	TRY .byte 0x06
	TRY .byte 0x27
	TRY .byte 0x37
	TRY .byte 0x60
	TRY .byte 0x62, 0xc0
	TRY .byte 0x9a, 0, 0, 0, 0, 0, 0
	TRY .byte 0xc4, 0xc0
	TRY .byte 0xce
	TRY .byte 0xd4, 0x0a
	TRY .byte 0xd6
	TRY .byte 0xea, 0, 0, 0, 0, 0, 0
	TRY .byte 0x82, 0xc0, 0
	END

SNIPPET excp_too_long, LONG
	TRY .byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90
	TRY .byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90
	END

SNIPPET excp_privileged, LONG
	.irp insn, cli, sti, hlt, clts, invd, wbinvd, rdmsr, wrmsr, swapgs
	USER \insn
	.endr
	USER mov %cr0, %rax
	USER mov %rax, %cr3
	USER mov %dr0, %rax
	USER lgdt SCRATCH
	USER lidt SCRATCH
	USER lmsw %ax
	USER invlpg SCRATCH
	USER lldt %ax
	USER ltr %ax
	USER in $0x40, %al
	USER out %al, $0x40
	END

SNIPPET excp_priority, LONG
	# privilege before the operand, #UD before privilege, #NM after #UD
	mov $0x800000000000, %rsi
	USER lgdt (%rsi)
	USER lmsw (%rsi)
	USER .byte 0x0f, 0x20, 0xc8
	USER .byte 0xf0, 0xf4
	USER .byte 0x0f, 0x22, 0xc8
	mov %cr0, %rax
	or $8, %eax
	mov %rax, %cr0
	TRY fld1
	TRY flds (%rsi)
	END

SNIPPET double_fault_gp_np, PROT
	# #GP whose handler's gate is not present
	movb $0x0e, IDT + 8 * 13 + 5
	mov $0x203, %ecx
	TRY mov %ecx, %es
	END

SNIPPET double_fault_pf_pf, LONG
	movl $0, PT + 8 * 0x100
	movl $0, PT + 8 * 0x101
	invlpg PAGE1
	invlpg PAGE2
	# the #PF handler's stack is not there
	movb $1, IDT + 16 * 14 + 4
	movl $PAGE2 + 0x100, TSS + 0x24
	TRY mov PAGE1, %ebx
	mov %cr2, %rbx
	VALQ %rbx
	END

SNIPPET double_fault_pf_gp, PROT
	mov %cr0, %eax
	movb $0x0e, IDT + 8 * 14 + 5
	movl $PT32 + 7, PD32
	xor %ecx, %ecx
1:	mov %ecx, %edx
	shl $12, %edx
	or $7, %edx
	mov %edx, PT32(, %ecx, 4)
	inc %ecx
	cmp $1023, %ecx
	jb 1b
	mov $PD32, %ecx
	mov %ecx, %cr3
	or $0x80000000, %eax
	mov %eax, %cr0
	TRY mov 0x3ff000, %ebx
	END

SNIPPET benign_then_contributory, PROT
	# #UD, then #NP: handled one after the other; #NP's handler sees the instruction
	movb $0x0e, IDT + 8 * 6 + 5
	TRY ud2
	# #DE then #NP: both contributory
	movb $0x0e, IDT + 8 * 0 + 5
	xor %ecx, %ecx
	TRY div %ecx
	END

SNIPPET gp_then_pf, LONG
	# #GP whose stack faults: #PF is handled serially
	movl $0, PT + 8 * 0x101
	invlpg PAGE2
	movb $1, IDT + 16 * 13 + 4
	movl $PAGE2 + 0x100, TSS + 0x24
	mov $0x200, %ecx
	TRY mov %ecx, %ds
	END

SNIPPET triple_fault, PROT
	movb $0x0e, IDT + 8 * 13 + 5
	movb $0x0e, IDT + 8 * 8 + 5
	mov $0x203, %ecx
	TRY mov %ecx, %es
	END

SNIPPET triple_fault_no_idt, LONG
	movw $0, SCRATCH
	movq $0, SCRATCH + 2
	lidt SCRATCH
	ud2

SNIPPET triple_fault_stack, PROT
	xor %esp, %esp
	mov $DS0, %ecx
	DESC SLOT, 0x00009300, 0x00000000
	mov $SLOT, %ecx
	mov %ecx, %ss
	push %eax

SNIPPET rf_pushed, LONG
	# What faults and traps push for RF (SDM vol. 3, 17.3.1.1)
	QGATE 6, 1f
	QGATE 13, 1f
	QGATE 3, 2f
	QGATE 0x40, 2f
	ud2
	mov $0x200, %ecx
	mov %ecx, %ds
	int3
	int $0x40
	END
1:	mov 16(%rsp), %ebx
	cmpl $0, 4(%rsp)
	mov (%rsp), %rcx
	cmp $0x1000, %rcx
	ja 3f
	# with an error code
	mov 24-8+8(%rsp), %ebx
	VAL %ecx
	add $8, %rsp
3:	mov 16(%rsp), %ebx
	and $FL_RF, %ebx
	VAL %ebx
	addq $2, (%rsp)
	iretq
2:	mov 16(%rsp), %ebx
	and $FL_RF, %ebx
	VAL %ebx
	iretq

# CPL 3, CR0.AM, EFLAGS.AC
.macro AC_ON
	mov %cr0, %rax
	or $0x40000, %eax
	mov %rax, %cr0
.endm

SNIPPET ac_basic, LONG
	AC_ON
	mov $PAGE1 + 1, %esi
	# ring 0: never
	pushf
	orl $FL_AC, (%rsp)
	popf
	mov (%rsi), %ebx
	push $2
	popf
	USERF 0x40002, mov (%rsi), %bl
	USERF 0x40002, mov (%rsi), %bx
	USERF 0x40002, mov (%rsi), %ebx
	USERF 0x40002, mov (%rsi), %rbx
	USERF 0x40002, mov %bx, (%rsi)
	USERF 0x40002, addl $1, (%rsi)
	USERF 0x40002, lock incl (%rsi)
	USERF 0x40002, xchg %ebx, (%rsi)
	USERF 0x40002, mov 3(%rsi), %rbx
	USERF 0x40002, mov 7(%rsi), %rbx
	USERF 2, mov (%rsi), %rbx
	END

SNIPPET ac_off, LONG
	# without CR0.AM nothing happens
	mov $PAGE1 + 1, %esi
	USERF 0x40002, mov (%rsi), %rbx
	USERF 0x40002, incl (%rsi)
	VAL PAGE1
	END

SNIPPET ac_kinds, LONG
	AC_ON
	fninit
	mov %cr4, %rax
	or $0x200, %eax
	mov %rax, %cr4
	mov $PAGE1 + 1, %esi
	mov $PAGE1 + 0x101, %edi
	cld
	mov $2, %ecx
	USERF 0x40002, movsw
	USERF 0x40002, lodsb
	USERF 0x40002, rep stosl
	mov $PAGE1 + 1, %esi
	USERF 0x40002, movq (%rsi), %mm0
	USERF 0x40002, flds (%rsi)
	USERF 0x40002, fldl 3(%rsi)
	USERF 0x40002, fldt (%rsi)
	USERF 0x40002, fldt 7(%rsi)
	USERF 0x40002, fildl (%rsi)
	USERF 0x40002, bt %ebx, (%rsi)
	USERF 0x40002, sgdt (%rsi)
	USERF 0x40002, cmpxchg8b (%rsi)
	END

SNIPPET ac_stack, LONG
	AC_ON
	TO_USER 1f, 0x40002
	TO_USER 2f, 0x40002
	TO_USER 3f, 0x40002
	END
1:	mov $STACK3 - 1, %esp
	push %rax
	int $VEC_BACK
2:	mov $STACK3 - 17, %esp
	pop %rax
	int $VEC_BACK
3:	mov $STACK3 - 17, %esp
	call 4f
4:	int $VEC_BACK

SNIPPET ac_popf, LONG
	# POPF in ring 3 sets AC: the next instruction is checked
	AC_ON
	mov $PAGE1 + 2, %esi
	TO_USER 1f
	END
1:	mov (%rsi), %ebx
	pushf
	orl $FL_AC, (%rsp)
	popf
	mov (%rsi), %bx
	mov (%rsi), %ebx
	int $VEC_BACK

SNIPPET ac_v86_and_prot, PROT
	fninit
	mov %cr0, %eax
	or $0x40000, %eax
	mov %eax, %cr0
	mov $PAGE1 + 1, %esi
	USERF 0x40002, mov (%esi), %ebx
	USERF 0x40002, les (%esi), %ebx
	USERF 0x40002, fnsave (%esi)
	USERF 0x40002, bound %ebx, (%esi)
	movl $-1, PAGE1 + 4
	movl $1, PAGE1 + 8
	xor %ebx, %ebx
	USERF 0x40002, bound %ebx, 3(%esi)
	USERF 0x40002, sgdt 3(%esi)
	USERF 0x40002, sgdt 1(%esi)
	USERF 0x40002, fnstenv 3(%esi)
	USERF 0x40002, fnstenv 1(%esi)
	END

SNIPPET excp_gp_error_codes, PROT
	# #GP(selector) keeps TI and the index, not the RPL
	mov $0x207, %ecx
	TRY mov %ecx, %es
	TRY ljmp $0x20f, $0
	# #GP(IDT)
	movw $0xff, SCRATCH
	movl $IDT, SCRATCH + 2
	lidt SCRATCH
	TRY int $0x20
	TRY int $0x80
	END

SNIPPET excp_stack_pushes, LONG
	# the order of what a fault pushes, error code last
	QGATE 13, 1f
	mov $0x200, %ecx
	mov %rsp, %rbp
	mov %ecx, %ds
	END
1:	sub %rsp, %rbp
	VALQ %rbp
	VALQ (%rsp)
	VALQ 16(%rsp)
	VALQ 40(%rsp)
	add $8, %rsp
	addq $2, (%rsp)
	iretq

SNIPPET double_fault_ist, LONG
	# #DF on its own stack
	movb $1, IDT + 16 * 8 + 4
	QGATE 8, 1f, 0x8e, 1
	movl $1, %ebx
	xor %esp, %esp
	movq $0, PT
	movl $0, PD + 8 * 511
	ud2
	END
1:	VALQ (%rsp)
	VALQ %rsp
	mov $STACK0, %esp
	END

SNIPPET double_fault_task, PROT
	# a double fault through a task gate
	movb $0x89, GDT + TR0 + 5
	mov $TR0, %eax
	ltr %ax
	movl $1f, TSS2 + 0x20
	movl $2, TSS2 + 0x24
	movl $STACK0 - 0x800, TSS2 + 0x38
	movl $DS0, TSS2 + 0x48
	movl $CS0, TSS2 + 0x4c
	movl $DS0, TSS2 + 0x50
	movl $DS0, TSS2 + 0x54
	movl $TR2 << 16, IDT + 8 * 8
	movl $0x8500, IDT + 8 * 8 + 4
	movb $0x0e, IDT + 8 * 13 + 5
	mov $0x203, %ecx
	mov %ecx, %es
	END
1:	pop %ebx
	VAL %ebx
	movzwl TSS2, %ebx
	VAL %ebx
	VAL TSS + 0x2c
	END
