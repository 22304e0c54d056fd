# s_debug.S: single-step, debug registers, interrupt shadows, RF.
#include "snip.h"
#include "snip.inc"
	.text
.macro TF_ON
	pushf
	orl $FL_TF, (%esp)
	popf
.endm
.macro TF_OFF
	pushf
	andl $~FL_TF, (%esp)
	popf
.endm
.macro TF_ON64
	pushf
	orl $FL_TF, (%rsp)
	popf
.endm
.macro TF_OFF64
	pushf
	andl $~FL_TF, (%rsp)
	popf
.endm

SNIPPET step_plain, PROT
	TF_ON
	nop
	mov $1, %ebx
	jmp 1f
	nop
1:	TF_OFF
	nop
	END

SNIPPET step_long, LONG
	TF_ON64
	nop
	call 1f
	TF_OFF64
	nop
	END
1:	ret

SNIPPET step_rep, PROT
	# a trap after every element
	mov $3, %ecx
	mov $PAGE1, %edi
	cld
	TF_ON
	rep stosb
	TF_OFF
	VAL %ecx
	VAL %edi
	END

SNIPPET step_rep_zero, PROT
	xor %ecx, %ecx
	TF_ON
	rep stosb
	TF_OFF
	END

SNIPPET step_mov_ss, PROT
	# MOV SS holds the trap back over the next instruction
	mov $DS0, %ecx
	TF_ON
	mov %ecx, %ss
	nop
	nop
	TF_OFF
	END

SNIPPET step_pop_ss, PROT
	push $DS0
	TF_ON
	pop %ss
	nop
	nop
	TF_OFF
	END

SNIPPET step_int, PROT
	# the handler runs without TF; the trap comes after what follows its IRET
	IGATE 0x40, 1f
	TF_ON
	int $0x40
	nop
	TF_OFF
	END
1:	pushf
	pop %ebx
	and $FL_TF, %ebx
	VAL %ebx
	iret

SNIPPET step_fault, PROT
	# a fault comes without a trap of the instruction
	IGATE 6, 1f
	TF_ON
	ud2
	nop
	TF_OFF
	END
1:	addl $2, (%esp)
	iret

SNIPPET step_iret, PROT
	# IRET sets TF: the first trap comes after the next instruction
	pushl $0x102
	push $CS0
	push $1f
	iret
1:	nop
	nop
	TF_OFF
	END

SNIPPET step_popf_clear, PROT
	# the POPF that clears TF still traps
	TF_ON
	pushl $2
	popf
	nop
	END

SNIPPET step_syscall, LONG
	# SYSCALL with TF in SFMASK: no trap
	mov $0xc0000081, %ecx
	xor %eax, %eax
	mov $CS0, %edx
	wrmsr
	inc %ecx
	mov $1f, %eax
	xor %edx, %edx
	wrmsr
	mov $0xc0000084, %ecx
	mov $0x100, %eax
	wrmsr
	TF_ON64
	syscall
1:	nop
	pushf
	pop %rbx
	and $FL_TF, %ebx
	VAL %ebx
	END

SNIPPET step_out, PROT
	# an exit to the client in between
	TF_ON
	out %al, $0x28
	in $0x28, %al
	TF_OFF
	END

SNIPPET step_mmio, PROT
	TF_ON
	mov MMIO, %ebx
	mov %ebx, MMIO
	incl MMIO
	TF_OFF
	END

SNIPPET step_cpuid_hlt, PROT
	xor %eax, %eax
	TF_ON
	cpuid
	nop
	TF_OFF
	END

SNIPPET dr_registers, PROT
	mov $0x12345678, %eax
	mov %eax, %dr0
	mov %eax, %dr3
	mov %dr0, %ebx
	VAL %ebx
	mov %dr3, %ebx
	VAL %ebx
	mov %dr6, %ebx
	VAL %ebx
	mov %dr7, %ebx
	VAL %ebx
	# DR4 and DR5 are DR6 and DR7
	.byte 0x0f, 0x21, 0xe3
	VAL %ebx
	.byte 0x0f, 0x21, 0xeb
	VAL %ebx
	mov $8, %eax
	mov %eax, %cr4
	TRY .byte 0x0f, 0x21, 0xe3
	TRY .byte 0x0f, 0x23, 0xeb
	mov $0xffff0000, %eax
	mov %eax, %dr7
	mov %dr7, %ebx
	VAL %ebx
	mov $0x400, %eax
	mov %eax, %dr7
	END

SNIPPET dr_long_gp, LONG
	mov $1, %eax
	shl $32, %rax
	TRY mov %rax, %dr6
	TRY mov %rax, %dr7
	TRY mov %rax, %dr0
	mov %dr0, %rbx
	VALQ %rbx
	USER mov %dr7, %rbx
	END

SNIPPET dr_execute, PROT
	mov $1f, %eax
	mov %eax, %dr0
	mov $0x402, %eax
	mov %eax, %dr7
	movl $2f, RESUME
	mov %esp, RESUME_SP
	nop
1:	nop
	VAL $0xbad
2:	# with RF it does not hit
	xor %eax, %eax
	mov %eax, %dr7
	mov $0x402, %eax
	mov $3f, %ebx
	mov %ebx, %dr0
	mov %eax, %dr7
	pushl $FL_RF + 2
	push $CS0
	push $3f
	iret
3:	nop
	VAL $0x600d
	# the handler sets RF itself
	IGATE 1, 4f
	mov $5f, %ebx
	mov %ebx, %dr0
	nop
5:	nop
	VAL $0x600e
	END
4:	mov (%esp), %ebx
	sub $5b, %ebx
	VAL %ebx
	orl $FL_RF, 8(%esp)
	iret

SNIPPET dr_write, PROT
	mov $PAGE1, %eax
	mov %eax, %dr1
	# 4 bytes, write
	mov $0x00d00408, %eax
	mov %eax, %dr7
	mov PAGE1, %ebx
	movb $1, PAGE1 + 3
	movb $1, PAGE1 + 4
	movl $1, PAGE1 - 2
	nop
	movl $1, PAGE1 + 2
	END

SNIPPET dr_readwrite, PROT
	mov $PAGE1, %eax
	mov %eax, %dr2
	# 2 bytes, read or write
	mov $0x07000420, %eax
	mov %eax, %dr7
	mov PAGE1, %bl
	mov PAGE1 + 1, %bl
	mov PAGE1 + 2, %bl
	incb PAGE1
	mov $PAGE1, %esi
	lodsb
	push PAGE1
	END

SNIPPET dr_rep, PROT
	mov $PAGE1 + 2, %eax
	mov %eax, %dr0
	mov $0x00010401, %eax
	mov %eax, %dr7
	cld
	mov $PAGE1, %edi
	mov $5, %ecx
	rep stosb
	VAL %ecx
	END

SNIPPET dr_gd, PROT
	mov $0x2400, %eax
	mov %eax, %dr7
	TRY mov %dr0, %ebx
	mov %dr7, %ebx
	VAL %ebx
	END

SNIPPET dr_io, PROT
	mov $8, %eax
	mov %eax, %cr4
	mov $0x2c, %eax
	mov %eax, %dr0
	mov $0x00020402, %eax
	mov %eax, %dr7
	out %al, $0x2c
	nop
	END

SNIPPET dr_and_step, PROT
	# both reasons in one trap
	mov $PAGE1, %eax
	mov %eax, %dr0
	mov $0x000d0402, %eax
	mov %eax, %dr7
	TF_ON
	movl $1, PAGE1
	TF_OFF
	END

SNIPPET dr_mov_ss, PROT
	# a data watch hit by MOV SS comes after the next instruction
	movl $DS0, PAGE1
	mov $PAGE1, %eax
	mov %eax, %dr0
	mov $0x000f0402, %eax
	mov %eax, %dr7
	mov PAGE1, %ss
	nop
	nop
	END

SNIPPET dr_mov_ss_int1, PROT
	# one #DB for the watch and the instruction
	movl $DS0, PAGE1
	mov $PAGE1, %eax
	mov %eax, %dr0
	mov $0x000f0402, %eax
	mov %eax, %dr7
	mov PAGE1, %ss
	.byte 0xf1
	nop
	nop
	END

SNIPPET irq_basic, PROT
	mov $0x40, %al
	out %al, $P_IRQ
	nop
	sti
	nop
	nop
	cli
	END

SNIPPET irq_sti_shadow, PROT
	mov $0x40, %al
	out %al, $P_IRQ
	sti
	cli
	sti
	nop
	nop
	END

SNIPPET irq_mov_ss_shadow, PROT
	mov $DS0, %ecx
	sti
	mov $0x40, %al
	out %al, $P_IRQ
	nop
	cli
	mov $0x41, %al
	out %al, $P_IRQ
	pushl $0x202
	popf
	nop
	nop
	cli
	mov $0x42, %al
	out %al, $P_IRQ
	pushl $0x202
	mov %ecx, %ss
	popf
	nop
	nop
	END

SNIPPET irq_hlt, LONG
	mov $0x40, %al
	out %al, $P_IRQ
	sti
	hlt
	nop
	VAL $1
	END

SNIPPET irq_user, PROT
	mov $0x40, %al
	out %al, $P_IRQ
	TO_USER 1f, 0x202
	END
1:	nop
	int $VEC_BACK

SNIPPET irq_real, REAL
	mov $0x40, %al
	out %al, $P_IRQ
	sti
	nop
	nop
	END

SNIPPET irq_v86, PROT
	mov $0x40, %al
	out %al, $P_IRQ
	movl $2f, RESUME
	mov %esp, RESUME_SP
	push $0
	push $0
	push $0
	push $0
	push $0x800
	push $0x100
	push $0x23202
	push $0x1000
	push $(1f - BLOB)
	iret
	.code16
1:	nop
	.code32
2:	END

SNIPPET step_long_iret_user, LONG
	# IRET to ring 3 with TF: one instruction runs there
	movl $2f, RESUME
	mov %rsp, RESUME_SP
	push $DS3
	push $STACK3
	push $0x102
	push $CS3
	push $1f
	iretq
1:	nop
	nop
2:	END

SNIPPET step_user_pf, LONG
	# a fault of a stepped instruction pushes TF
	movl $0, PT + 8 * 0x100
	invlpg PAGE1
	USERF 0x102, mov PAGE1, %ebx
	END

SNIPPET step_rf, PROT
	# RF is gone after one instruction, TF or not
	pushl $FL_RF + 2
	push $CS0
	push $1f
	iret
1:	pushf
	pop %ebx
	VAL %ebx
	END

SNIPPET dr_write_long, LONG
	# 8 bytes
	mov $PAGE1, %eax
	mov %rax, %dr0
	mov $0x00090402, %eax
	mov %rax, %dr7
	movb $1, PAGE1 + 7
	movb $1, PAGE1 + 8
	movq $1, PAGE1 - 4
	movl $1, PAGE1 - 4
	xor %eax, %eax
	mov %rax, %dr7
	END

SNIPPET dr_disabled, PROT
	mov $PAGE1, %eax
	mov %eax, %dr0
	mov $0x000d0400, %eax
	mov %eax, %dr7
	movl $1, PAGE1
	mov %dr6, %ebx
	VAL %ebx
	END

SNIPPET dr_in_fault, PROT
	# the store faults: no trap
	mov $PAGE1, %eax
	mov %eax, %dr0
	mov $0x000d0402, %eax
	mov %eax, %dr7
	DESC SLOT, 0x00cf9100, 0xffff
	mov $SLOT, %ecx
	mov %ecx, %es
	TRY movl $1, %es:PAGE1
	xor %eax, %eax
	mov %eax, %dr7
	END

SNIPPET irq_after_step, PROT
	# two traps and an interrupt: the trap first
	mov $0x40, %al
	out %al, $P_IRQ
	pushl $0x302
	popf
	nop
	nop
	pushl $2
	popf
	END
