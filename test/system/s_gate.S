# s_gate.S: call, interrupt and trap gates of every width, privilege changes, IST, IRET and its faults.
#include "snip.h"
#include "snip.inc"
	.text

# A call gate in SLOT: \access, parameters, to \label in \sel.
.macro CALLGATE slot, label, access, params=0, sel=CS0
	movl $\label, GDT + \slot
	movw $\sel, GDT + \slot + 2
	movl $\label, GDT + \slot + 4
	movw $(\access << 8 | \params), GDT + \slot + 4
.endm
.macro CALLGATE64 slot, label, access, sel=CS0
	CALLGATE \slot, \label, \access, 0, \sel
	movq $0, GDT + \slot + 8
.endm

SNIPPET callgate_same, PROT
	CALLGATE SLOT, 1f, 0x8c
	mov %esp, %ebp
	lcall $SLOT, $0
	sub %esp, %ebp
	VAL %ebp
	ljmp $SLOT, $0x1234
1:	cmpl $0, SCRATCH
	jne 2f
	incl SCRATCH
	mov 4(%esp), %ebx
	VAL %ebx
	lret
2:	END

SNIPPET callgate_inner, PROT
	CALLGATE SLOT, 2f, 0xec, 2
	TO_USER 1f
	END
1:	push $0x1111
	push $0x2222
	mov %esp, %ebx
	VAL %ebx
	lcall $SLOT + 3, $0
	VAL %esp
	mov %cs, %ebx
	VAL %ebx
	int $VEC_BACK
2:	VAL %esp
	.irp off, 4, 8, 12, 16, 20
	VAL \off(%esp)
	.endr
	mov %cs, %ebx
	VAL %ebx
	mov %ss, %ebx
	VAL %ebx
	lret $8

SNIPPET callgate_inner16, PROT
	CALLGATE SLOT, 2f-BLOB, 0xe4, 1, SLOT + 8
	DESC SLOT + 8, 0x00009b01, 0x0000ffff
	TO_USER 1f
	END
1:	pushw $0x1111
	lcall $SLOT, $0
	VAL %esp
	int $VEC_BACK
	.code16
2:	VAL %esp
	mov %esp, %ebp
	VAL 2(%bp)
	VAL 4(%bp)
	VAL 8(%bp)
	int $VEC_BACK
	.code32

SNIPPET callgate_faults, PROT
	# DPL, presence, null CS, data as CS, not present CS, beyond the GDT
	CALLGATE SLOT, 1f, 0x8c
	USER lcall $SLOT, $0
	TRY lcall $SLOT + 3, $0
	CALLGATE SLOT, 1f, 0x0c
	TRY lcall $SLOT, $0
	CALLGATE SLOT, 1f, 0x8c, 0, 0
	TRY lcall $SLOT, $0
	CALLGATE SLOT, 1f, 0x8c, 0, DS0
	TRY lcall $SLOT, $0
	DESC SLOT + 8, 0x00cf1b00, 0xffff
	CALLGATE SLOT, 1f, 0x8c, 0, SLOT + 8
	TRY lcall $SLOT, $0
	CALLGATE SLOT, 1f, 0x8c, 0, 0x208
	TRY lcall $SLOT, $0
	# to an outer ring
	CALLGATE SLOT, 1f, 0x8c, 0, CS3
	TRY lcall $SLOT, $0
	# JMP does not change the privilege
	CALLGATE SLOT, 1f, 0xec
	USER ljmp $SLOT, $0
1:	END

SNIPPET callgate_bad_stack, PROT
	CALLGATE SLOT, 1f, 0xec
	movl $0, TSS + 8
	DESC 0xd8, 0x00cf1300, 0xffff
	# handlers of ring 0 would use the same stack: task gate is the way; so only through a 16-bit alias
	IGATE 10, 2f, 0x8e
	movl $3f, RESUME
	mov %esp, RESUME_SP
	movl $DS0, TSS + 8
	TO_USER 4f
	END
4:	lcall $SLOT, $0
	int $VEC_BACK
1:	VAL $0x600d
	lret
2:	VAL $0xbad
3:	END

SNIPPET callgate_conforming, PROT
	DESC SLOT + 8, 0x00cf9f00, 0xffff
	CALLGATE SLOT, 2f, 0xec, 0, SLOT + 8
	TO_USER 1f
	END
1:	lcall $SLOT, $0
	mov %cs, %ebx
	VAL %ebx
	int $VEC_BACK
2:	mov %cs, %ebx
	VAL %ebx
	lret

SNIPPET callgate_long, LONG
	CALLGATE64 SLOT, 2f, 0xec
	movl $SLOT, SCRATCH + 4
	movl $0, SCRATCH
	lcall *SCRATCH
	VALQ %rsp
	TO_USER 1f
	END
1:	lcall *SCRATCH
	VALQ %rsp
	int $VEC_BACK
2:	VALQ %rsp
	mov %cs, %ebx
	VAL %ebx
	mov %ss, %ebx
	VAL %ebx
	VALQ 8(%rsp)
	lretq

SNIPPET callgate_long_faults, LONG
	movl $SLOT, SCRATCH + 4
	# 16-bit gates and TSS types are no targets here; type bits above must be 0
	CALLGATE64 SLOT, 1f, 0x84
	TRY lcall *SCRATCH
	CALLGATE64 SLOT, 1f, 0x85
	TRY lcall *SCRATCH
	CALLGATE64 SLOT, 1f, 0x8c
	movl $0x900, GDT + SLOT + 12
	TRY lcall *SCRATCH
	CALLGATE64 SLOT, 1f, 0x8c, CSX
	TRY lcall *SCRATCH
	movl $TR0, SCRATCH + 4
	TRY lcall *SCRATCH
	TRY ljmp *SCRATCH
	movl $CS3, SCRATCH + 4
	TRY lcall *SCRATCH
1:	END

SNIPPET intgate_faults, PROT
	# DPL of a software interrupt's gate, presence, types, CS
	USER int $0x40
	USER int $0x0d
	USER int3
	movb $0x0e, IDT + 8 * 0x40 + 5
	TRY int $0x40
	movb $0x8c, IDT + 8 * 0x40 + 5
	TRY int $0x40
	movb $0x80, IDT + 8 * 0x40 + 5
	TRY int $0x40
	movb $0x8e, IDT + 8 * 0x40 + 5
	movw $0, IDT + 8 * 0x40 + 2
	TRY int $0x40
	movw $DS0, IDT + 8 * 0x40 + 2
	TRY int $0x40
	movw $0x208, IDT + 8 * 0x40 + 2
	TRY int $0x40
	DESC SLOT, 0x00cf1b00, 0xffff
	movw $SLOT, IDT + 8 * 0x40 + 2
	TRY int $0x40
	movw $CS3, IDT + 8 * 0x40 + 2
	TRY int $0x40
	# beyond the IDT
	movw $0x7f7, SCRATCH
	movl $IDT, SCRATCH + 2
	lidt SCRATCH
	TRY int $0xff
	END

SNIPPET intgate_fault_in_fault, PROT
	# #UD whose gate is not present: #NP with EXT
	movb $0x0e, IDT + 8 * 6 + 5
	TRY ud2
	movb $0x8e, IDT + 8 * 6 + 5
	movw $0x208, IDT + 8 * 6 + 2
	TRY ud2
	# the same by INT: no EXT
	TRY int $6
	END

SNIPPET intgate_flags, PROT
	# interrupt gate clears IF, trap gate does not; both clear TF and NT
	IGATE 0x40, 1f, 0x8e
	IGATE 0x41, 1f, 0x8f
	pushl $0x4202
	popf
	int $0x40
	pushf
	pop %ebx
	and $0x7700, %ebx
	VAL %ebx
	int $0x41
	END
1:	pushf
	pop %ebx
	and $0x7700, %ebx
	VAL %ebx
	andl $~0x4000, 8(%esp)
	pushl $2
	popf
	VAL 8(%esp)
	iret

SNIPPET intgate_16, PROT
	DESC SLOT, 0x00009b01, 0x0000ffff
	movl $1f - BLOB, IDT + 8 * 0x40
	movw $SLOT, IDT + 8 * 0x40 + 2
	movl $0x8600, IDT + 8 * 0x40 + 4
	mov %esp, %ebx
	VAL %ebx
	int $0x40
2:	nop
	END
	.code16
1:	VAL %esp
	movl $CS0, SCRATCH + 4
	movl $2b, SCRATCH
	add $6, %esp
	ljmpl *SCRATCH
	.code32

SNIPPET intgate_inner, PROT
	IGATE 0x40, 2f, 0xee
	TO_USER 1f, 0x246
	END
1:	int $0x40
	VAL %esp
	int $VEC_BACK
2:	VAL %esp
	.irp off, 4, 8, 12, 16
	VAL \off(%esp)
	.endr
	mov %ss, %ebx
	VAL %ebx
	mov %ds, %ebx
	VAL %ebx
	iret

SNIPPET intgate_conforming, PROT
	DESC SLOT, 0x00cf9f00, 0xffff
	IGATE 0x40, 2f, 0xee
	movw $SLOT, IDT + 8 * 0x40 + 2
	TO_USER 1f
	END
1:	int $0x40
	int $VEC_BACK
2:	mov %cs, %ebx
	VAL %ebx
	mov %esp, %ebx
	VAL %ebx
	iret

SNIPPET intgate_tss_limit, PROT
	# The inner stack lies behind the TSS's limit: #TS(TR). Its handler is a conforming segment's: no stack needed.
	DESC SLOT, 0x00cf9f00, 0xffff
	IGATE 10, 2f
	movw $SLOT, IDT + 8 * 10 + 2
	movw $5, GDT + TR0
	andb $~2, GDT + TR0 + 5
	mov $TR0, %ecx
	ltr %cx
	TO_USER 1f, 0x3002
	END
1:	int $VEC_BACK
2:	pop %ebx
	VAL %ebx
	END

SNIPPET intgate_bad_ss, PROT
	DESC SLOT, 0x00cf9f00, 0xffff
	IGATE 10, 2f
	movw $SLOT, IDT + 8 * 10 + 2
	IGATE 12, 2f
	movw $SLOT, IDT + 8 * 12 + 2
	.irp sel, 0, 3, DS3, 0x200, CS0, SLOT+8
	DESC SLOT + 8, 0x00cf1300, 0xffff
	movl $\sel, TSS + 8
	push $DS3
	push $STACK3
	push $0x3002
	push $CS3
	push $1f
	iret
1:	int $VEC_BACK
	.endr
	END
2:	pop %ebx
	VAL %ebx
	addl $2, (%esp)
	# Back to ring 0 needs a good stack
	cmpl $6, SCRATCH
	END

SNIPPET intgate_ist, LONG
	QGATE 0x40, 1f, 0x8e, 1
	VALQ %rsp
	int $0x40
	VALQ %rsp
	END
1:	VALQ %rsp
	VALQ 24(%rsp)
	iretq

SNIPPET intgate_align, LONG
	# the frame is aligned to 16 bytes
	QGATE 0x40, 1f
	mov %rsp, %rbp
	sub $1, %rsp
	int $0x40
	sub $6, %rsp
	int $0x40
	mov %rbp, %rsp
	END
1:	VALQ %rsp
	VALQ 24(%rsp)
	iretq

SNIPPET intgate_inner_long, LONG
	QGATE 0x40, 2f, 0xee
	TO_USER 1f, 0x202
	END
1:	int $0x40
	VALQ %rsp
	int $VEC_BACK
2:	VALQ %rsp
	.irp off, 8, 16, 24, 32
	VALQ \off(%rsp)
	.endr
	mov %ss, %ebx
	VAL %ebx
	iretq

SNIPPET intgate_faults_long, LONG
	USER int $0x40
	movb $0x0e, IDT + 16 * 0x40 + 5
	TRY int $0x40
	movb $0x86, IDT + 16 * 0x40 + 5
	TRY int $0x40
	movb $0x85, IDT + 16 * 0x40 + 5
	TRY int $0x40
	movb $0x8e, IDT + 16 * 0x40 + 5
	movw $CSX, IDT + 16 * 0x40 + 2
	TRY int $0x40
	movw $0, IDT + 16 * 0x40 + 2
	TRY int $0x40
	movw $CS0, IDT + 16 * 0x40 + 2
	movl $0x00008000, IDT + 16 * 0x40 + 8
	TRY int $0x40
	TRY .byte 0xce
	END

SNIPPET iret_faults, PROT
	.irp sel, 0, DS0, 0x200, SLOT, CS3-3
	DESC SLOT, 0x00cf1b00, 0xffff
	push $2
	push $\sel
	push $1f
	TRY iret
	add $12, %esp
	.endr
1:	# outer with bad stacks
	.irp sel, 0, DS0, 0x203, CS3
	push $\sel
	push $STACK3
	push $2
	push $CS3
	push $2f
	TRY iret
	add $20, %esp
	.endr
	END
2:	int $VEC_BACK

SNIPPET iret_same, PROT
	pushl $0x2406d5
	push $CS0
	push $1f
	iret
1:	pushf
	pop %ebx
	VAL %ebx
	push $2
	popf
	END

SNIPPET iret_flags_user, PROT
	# ring 3 changes neither IOPL nor, below it, IF
	TO_USER 1f
	END
1:	pushl $0x3202
	push $CS3
	push $2f
	iret
2:	pushf
	pop %ebx
	VAL %ebx
	pushl $0x3246
	popf
	pushf
	pop %ebx
	VAL %ebx
	int $VEC_BACK

SNIPPET iret_long, LONG
	# null SS is fine for rings below 3 in 64-bit mode; RSP is popped always
	push $0
	push $STACK0 - 0x100
	push $2
	push $CS0
	push $1f
	iretq
1:	VALQ %rsp
	mov %ss, %ebx
	VAL %ebx
	mov $DS0, %ecx
	mov %ecx, %ss
	push $0
	push $STACK3
	push $2
	push $CS3
	push $1b
	TRY iretq
	# NT
	push $0x4002
	popf
	TRY iretq
	push $2
	popf
	# to compatibility mode, ring 3
	movl $3f, RESUME
	mov %rsp, RESUME_SP
	push $DS3
	push $STACK3
	push $2
	push $CSX3
	push $2f
	iretq
	.code32
2:	mov %cs, %ebx
	VAL %ebx
	VAL %esp
	int $VEC_BACK
	.code64
3:	END

SNIPPET iret_noncanonical, LONG
	mov $0x800000000000, %rcx
	push $DS0
	push $STACK0
	push $2
	push $CS0
	push %rcx
	TRY iretq
	END

SNIPPET iret_esp16, PROT
	# a 16-bit stack takes SP alone (the upper half of ESP is not defined to be kept or not)
	DESC SLOT, 0x0000f300, 0x0000ffff
	movl $2f, RESUME
	mov %esp, RESUME_SP
	push $SLOT + 3
	push $0x9000
	push $2
	push $CS3
	push $1f
	iret
1:	movzwl %sp, %ebx
	VAL %ebx
	push %ecx
	movzwl %sp, %ebx
	VAL %ebx
	int $VEC_BACK
2:	END

SNIPPET syscall_long, LONG
	mov $0xc0000081, %ecx
	xor %eax, %eax
	mov $(SYSRET_CS & ~3) << 16 | CS0, %edx
	wrmsr
	inc %ecx
	mov $2f, %eax
	xor %edx, %edx
	wrmsr
	mov $0xc0000084, %ecx
	mov $0x700, %eax
	wrmsr
	movl $4f, RESUME
	mov %rsp, RESUME_SP
	mov $1f, %ecx
	mov $0x3246, %r11d
	sysretq
1:	pushf
	pop %rbx
	and $0x37700, %ebx
	VAL %ebx
	mov %cs, %ebx
	VAL %ebx
	mov %ss, %ebx
	VAL %ebx
	syscall
3:	int $VEC_BACK
2:	mov %ecx, %ebx
	sub $3b, %ebx
	VAL %ebx
	and $0x37700, %r11d
	VAL %r11d
	mov %cs, %ebx
	VAL %ebx
	mov %ss, %ebx
	VAL %ebx
	pushf
	pop %rbx
	and $0x37700, %ebx
	VAL %ebx
	mov $3b, %ecx
	mov $2, %r11d
	sysretl
	# 32-bit code at 3b: the same bytes
4:	END

SNIPPET syscall_faults, LONG
	USER sysretq
	mov $0x800000000000, %rcx
	mov $2, %r11d
	TRY sysretq
	mov $0xc0000080, %ecx
	rdmsr
	and $~1, %eax
	wrmsr
	TRY syscall
	TRY sysretq
	USER syscall
	END

SNIPPET sysenter_prot, PROT
	mov $1, %ebx
	TRY sysenter
	mov $0x174, %ecx
	mov $SYSENTER0, %eax
	xor %edx, %edx
	wrmsr
	inc %ecx
	mov $STACK0 - 0x200, %eax
	wrmsr
	inc %ecx
	mov $2f, %eax
	wrmsr
	USER sysexit
	movl $3f, RESUME
	mov %esp, RESUME_SP
	mov $1f, %edx
	mov $STACK3, %ecx
	sysexit
1:	mov %cs, %ebx
	VAL %ebx
	mov %ss, %ebx
	VAL %ebx
	VAL %esp
	sysenter
2:	mov %cs, %ebx
	VAL %ebx
	mov %ss, %ebx
	VAL %ebx
	VAL %esp
	int $VEC_BACK
3:	END
