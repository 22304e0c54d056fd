# s_v86.S: virtual-8086 mode: entry, segments, IOPL-sensitive instructions, INT n, faults, back to ring 0.
#include "snip.h"
#include "snip.inc"
	.text

# To \label in virtual-8086 mode: CS 0x1000, SS 0x800:0x100, DS 0x600. Goes on here after INT 0x30 or a fault.
.macro TO_V86 label, flags=0x23002
	movl $9992f, RESUME
	mov %esp, RESUME_SP
	push $0x444
	push $0x333
	push $0x600
	push $0x555
	push $0x800
	push $0x100
	push $\flags
	push $0x1000
	push $(\label - BLOB)
	iret
9992:
	movl $0, RESUME
.endm
# One instruction there, \flags first.
.macro V86 flags, insn:vararg
	TO_V86 9993f, \flags
	jmp 9994f
	.code16
9993:
	\insn
	int $VEC_BACK
	.code32
9994:
.endm

SNIPPET v86_entry, PROT
	TO_V86 1f
	END
	.code16
1:	.irp r, cs, ss, ds, es, fs, gs
	mov %\r, %bx
	movzwl %bx, %ebx
	VAL %ebx
	.endr
	movzwl %sp, %ebx
	VAL %ebx
	pushf
	pop %bx
	VAL %ebx
	pushfl
	pop %ebx
	VAL %ebx
	# DS 0x600: RESUME at offset 0
	mov 0, %ebx
	test %ebx, %ebx
	setnz %bl
	movzbl %bl, %ebx
	VAL %ebx
	smsw %bx
	movzwl %bx, %ebx
	VAL %ebx
	int $VEC_BACK
	.code32

SNIPPET v86_iopl, PROT
	# below IOPL 3 these five fault
	V86 0x20002, cli
	V86 0x20002, sti
	V86 0x20002, pushf
	V86 0x20002, popf
	V86 0x20002, iret
	V86 0x20002, int $0x40
	V86 0x20002, int3
	V86 0x23002, cli
	V86 0x23002, sti
	V86 0x23002, pushf
	END

SNIPPET v86_privileged, PROT
	V86 0x23002, hlt
	V86 0x23002, mov %eax, %cr0
	V86 0x23002, mov %cr0, %eax
	V86 0x23002, clts
	V86 0x23002, .byte 0x0f, 0x01, 0x16, 0x00, 0x00
	V86 0x23002, .byte 0x0f, 0x00, 0xd0
	V86 0x23002, .byte 0x0f, 0x00, 0xc8
	V86 0x23002, .byte 0x0f, 0x02, 0xc3
	V86 0x23002, .byte 0x63, 0xc3
	V86 0x23002, rdmsr
	V86 0x23002, invd
	V86 0x23002, mov %eax, %dr7
	V86 0x23002, lmsw %ax
	V86 0x23002, .byte 0x0f, 0x34
	V86 0x23002, ud2
	END

SNIPPET v86_io, PROT
	# the I/O bitmap decides, whatever IOPL
	V86 0x23002, in $0x40, %al
	V86 0x20002, in $0x40, %al
	V86 0x20002, out %al, $0x28
	V86 0x23002, out %ax, $0x2f
	END

SNIPPET v86_int, PROT
	# INT at IOPL 3 through a gate: the frame has the segments
	IGATE 0x40, 2f, 0xee
	TO_V86 1f
	END
	.code16
1:	int $0x40
	movzwl %sp, %ebx
	VAL %ebx
	mov %ds, %bx
	VAL %ebx
	int $VEC_BACK
	.code32
2:	mov %ds, %ecx
	mov %gs, %edx
	mov $DS3, %eax
	mov %eax, %ds
	VAL %ecx
	VAL %edx
	VAL %esp
	.irp off, 4, 8, 12, 16, 20, 24, 28, 32
	VAL \off(%esp)
	.endr
	iret

SNIPPET v86_int_dpl, PROT
	V86 0x23002, int $0x41
	# the handler must be ring 0
	movw $CS3, IDT + 8 * 0x41 + 2
	movb $0xee, IDT + 8 * 0x41 + 5
	V86 0x23002, int $0x41
	DESC SLOT, 0x00cf9f00, 0xffff
	movw $SLOT, IDT + 8 * 0x41 + 2
	V86 0x23002, int $0x41
	END

SNIPPET v86_limit, PROT
	TO_V86 1f
	END
	.code16
1:	mov $0xffff, %si
	mov (%si), %ax
	int $VEC_BACK
	.code32

SNIPPET v86_far, PROT
	TO_V86 1f
	END
	.code16
1:	lcall $0x1001, $(2f - BLOB - 16)
	mov %cs, %bx
	movzwl %bx, %ebx
	VAL %ebx
	push $0x2222
	pop %es
	mov %es, %bx
	VAL %ebx
	int $VEC_BACK
2:	mov %cs, %bx
	movzwl %bx, %ebx
	VAL %ebx
	lret
	.code32

SNIPPET v86_iret, PROT
	TO_V86 1f
	END
	.code16
1:	pushw $0x0202
	pushw $0x1001
	pushw $(2f - BLOB - 16)
	iretw
2:	pushfl
	pop %ebx
	VAL %ebx
	mov %cs, %bx
	movzwl %bx, %ebx
	VAL %ebx
	# 32-bit IRET cannot leave v86 mode nor change IOPL
	pushl $0x3046
	pushl $0x1000
	pushl $(3f - BLOB)
	iretl
3:	pushfl
	pop %ebx
	VAL %ebx
	int $VEC_BACK
	.code32

SNIPPET v86_paging, PG32
	movl $PAGE1 + 3, PT32 + 4 * 8
	invlpg 0x8000
	TO_V86 1f
	END
	.code16
1:	push %ax
	int $VEC_BACK
	.code32

SNIPPET v86_single_step, PROT
	TO_V86 1f, 0x23102
	END
	.code16
1:	nop
	nop
	int $VEC_BACK
	.code32
