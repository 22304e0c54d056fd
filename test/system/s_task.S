# s_task.S: hardware task switches: JMP, CALL, IRET, gates; 16 and 32-bit; what fails before and after the commit.
#include "snip.h"
#include "snip.inc"
	.text

# A 32-bit TSS at TSS2 that starts at \label in ring 0, flat.
.macro TASK32 label, eflags=2, cs=CS0, ss=DS0
	movl $\label, TSS2 + 0x20
	movl $\eflags, TSS2 + 0x24
	movl $0x11110000, TSS2 + 0x28
	movl $0x11110001, TSS2 + 0x2c
	movl $0x11110002, TSS2 + 0x30
	movl $0x11110003, TSS2 + 0x34
	movl $STACK0 - 0x800, TSS2 + 0x38
	movl $0x11110005, TSS2 + 0x3c
	movl $0x11110006, TSS2 + 0x40
	movl $0x11110007, TSS2 + 0x44
	movl $DS0, TSS2 + 0x48
	movl $\cs, TSS2 + 0x4c
	movl $\ss, TSS2 + 0x50
	movl $DS3, TSS2 + 0x54
	movl $DS0, TSS2 + 0x58
	movl $0, TSS2 + 0x5c
	movl $0, TSS2 + 0x60
.endm
# The busy bit as LTR sets it: the start state has it in the register only.
.macro HOME
	movb $0x89, GDT + TR0 + 5
	mov $TR0, %eax
	ltr %ax
.endm

SNIPPET task_jmp, PROT
	HOME
	TASK32 1f
	mov $0x2222, %esi
	ljmp $TR2, $0
1:	mov %eax, %edi
	str %ebx
	VAL %ebx
	VAL %edi
	VAL %ecx
	VAL %ebp
	VAL %esp
	mov %fs, %ebx
	VAL %ebx
	mov %gs, %ebx
	VAL %ebx
	pushf
	pop %ebx
	VAL %ebx
	movzwl TSS2, %ebx
	VAL %ebx
	movb GDT + TR0 + 5, %bl
	VAL %ebx
	movb GDT + TR2 + 5, %bl
	VAL %ebx
	# the old task's image
	VAL TSS + 0x40
	VAL TSS + 0x38
	VAL TSS + 0x4c
	smsw %bx
	and $8, %ebx
	VAL %ebx
	END

SNIPPET task_call_iret, PROT
	HOME
	TASK32 1f
	mov $0x77, %edx
	lcall $TR2, $0
	VAL %edx
	str %ebx
	VAL %ebx
	movb GDT + TR0 + 5, %bl
	movb GDT + TR2 + 5, %bh
	VAL %ebx
	VAL TSS2 + 0x24
	# again: the task goes on behind its IRET
	lcall $TGATE, $0
	VAL %edx
	END
1:	pushf
	pop %ebx
	VAL %ebx
	movzwl TSS2, %ebx
	VAL %ebx
	movb GDT + TR0 + 5, %bl
	movb GDT + TR2 + 5, %bh
	VAL %ebx
	VAL TSS + 0x30
	iret
	VAL $0x5ec0
	iret

SNIPPET task_gate_interrupt, PROT
	HOME
	TASK32 1f
	movl $TR2 << 16, IDT + 8 * 0x40
	movl $0xe500, IDT + 8 * 0x40 + 4
	int $0x40
	VAL $0x1
	END
1:	mov TSS + 0x20, %ebx
	sub $task_gate_interrupt, %ebx
	VAL %ebx
	VAL TSS + 0x24
	iret

SNIPPET task_gate_error_code, PROT
	HOME
	TASK32 1f
	movl $TR2 << 16, IDT + 8 * 13
	movl $0x8500, IDT + 8 * 13 + 4
	mov $0x203, %ecx
2:	mov %ecx, %es
	VAL $0x2
	END
1:	pop %ebx
	VAL %ebx
	VAL %esp
	mov TSS + 0x20, %ebx
	sub $2b, %ebx
	VAL %ebx
	addl $2, TSS + 0x20
	iret

SNIPPET task_16, PROT
	HOME
	DESC SLOT, 0x00009b01, 0x0000ffff
	movw $1f - BLOB, TSS16B + 0xe
	movw $2, TSS16B + 0x10
	movw $0x1234, TSS16B + 0x12
	movw $STACK0 - 0x800, TSS16B + 0x1a
	movw $DS0, TSS16B + 0x22
	movw $SLOT, TSS16B + 0x24
	movw $DS0, TSS16B + 0x26
	movw $DS0, TSS16B + 0x28
	mov $0xabcd, %edx
	lcall $TR16, $0
	VAL %edx
	movzwl TSS16B + 0x12, %ebx
	VAL %ebx
	END
	.code16
1:	movzwl %ax, %ebx
	VAL %ebx
	movzwl %sp, %ebx
	VAL %ebx
	str %ebx
	VAL %ebx
	mov $0x4321, %ax
	iret
	.code32

SNIPPET task_faults, PROT
	HOME
	TASK32 1f
	# busy, itself, not present, short, privilege, null in a gate, an LDT's selector
	TRY ljmp $TR0, $0
	movb $0x09, GDT + TR2 + 5
	TRY ljmp $TR2, $0
	movb $0x89, GDT + TR2 + 5
	movw $0x66, GDT + TR2
	TRY ljmp $TR2, $0
	movw $0x67, GDT + TR2
	USER ljmp $TR2, $0
	USER lcall $TGATE, $0
	movw $0, GDT + TGATE + 2
	TRY ljmp $TGATE, $0
	movw $DS0, GDT + TGATE + 2
	TRY ljmp $TGATE, $0
	movw $0x20c, GDT + TGATE + 2
	TRY ljmp $TGATE, $0
	movb $0x05, GDT + TGATE + 5
	TRY ljmp $TGATE, $0
	# IRET with a link that is not busy
	push $0x4002
	popf
	movw $TR2, TSS
	TRY iret
	str %ebx
	VAL %ebx
1:	END

# What a new task's own state raises comes through a task gate: its stack may be as bad. SLOT names the TSS at 0x5380.
.macro TS_TASK vec
	DESC SLOT, 0x00008900, 0x53800067
	movl $8f, 0x5380 + 0x20
	movl $2, 0x5380 + 0x24
	movl $STACK0 - 0xa00, 0x5380 + 0x38
	movl $DS0, 0x5380 + 0x48
	movl $CS0, 0x5380 + 0x4c
	movl $DS0, 0x5380 + 0x50
	movl $DS0, 0x5380 + 0x54
	movl $SLOT << 16, IDT + 8 * \vec
	movl $0x8500, IDT + 8 * \vec + 4
.endm
.macro TS_REPORT
8:	pop %ebx
	VAL %ebx
	movzwl 0x5380, %ebx
	VAL %ebx
	mov TSS2 + 0x20, %ebx
	sub $1b, %ebx
	VAL %ebx
	mov TSS2 + 0x4c, %ebx
	VAL %ebx
	END
.endm
.macro TASK_BAD name, vec, off, sel
SNIPPET \name, PROT
	HOME
	TASK32 1f
	TS_TASK \vec
	movl $\sel, TSS2 + \off
	ljmp $TR2, $0
1:	VAL $0xbad
	END
	TS_REPORT
.endm
	TASK_BAD task_bad_cs, 10, 0x4c, DS0
	TASK_BAD task_bad_cs_null, 10, 0x4c, 0
	TASK_BAD task_bad_ldt, 10, 0x60, DS0
	TASK_BAD task_bad_ss, 10, 0x50, DS3
	TASK_BAD task_bad_ss_null, 10, 0x50, 0
	TASK_BAD task_bad_ds, 10, 0x54, 0x200

SNIPPET task_bad_eip, PROT
	# beyond the limit of its CS
	HOME
	TASK32 1f, 2, CSX
	TS_TASK 13
	movl $0x100000, TSS2 + 0x20
	ljmp $TR2, $0
1:	VAL $0xbad
	END
8:	pop %ebx
	VAL %ebx
	VAL TSS2 + 0x20
	VAL TSS2 + 0x4c
	END

SNIPPET task_user, PROT
	# the new task runs in ring 3
	HOME
	TASK32 1f, 0x3202, CS3, DS3
	movl $STACK3, TSS2 + 0x38
	movl $DS3, TSS2 + 0x48
	movl $DS3, TSS2 + 0x58
	movl $STACK0 - 0x100, TSS2 + 4
	movl $DS0, TSS2 + 8
	movl $2f, RESUME
	movl $STACK0 - 0xa00, RESUME_SP
	ljmp $TR2, $0
1:	mov %cs, %ebx
	VAL %ebx
	int $VEC_BACK
2:	END

SNIPPET task_v86, PROT
	HOME
	TASK32 1f-BLOB, 0x23202, 0x1000, 0x800
	# virtual-8086 mode asks the I/O bitmap
	movb $0x70, GDT + TR2
	movl $0x800, TSS2 + 0x54
	movl $0x80, TSS2 + 0x38
	movl $STACK0 - 0x100, TSS2 + 4
	movl $DS0, TSS2 + 8
	movl $2f, RESUME
	movl $STACK0 - 0xa00, RESUME_SP
	ljmp $TR2, $0
	.code16
1:	mov %ds, %bx
	movzwl %bx, %ebx
	VAL %ebx
	pushw $0x1234
	movzwl %sp, %ebx
	VAL %ebx
	int $VEC_BACK
	.code32
2:	END

SNIPPET task_t_bit, PROT
	HOME
	TASK32 1f
	movw $1, TSS2 + 0x64
	ljmp $TR2, $0
1:	nop
	END

SNIPPET task_cr3, PG32
	# the new task's own page directory: one page differs
	HOME
	TASK32 1f
	cld
	mov $PD32, %esi
	mov $PAGE1, %edi
	mov $0x400, %ecx
	rep movsl
	movl $PAGE1, TSS2 + 0x1c
	movl $0x87, PAGE1 + 4
	movl $0x5678, PAGE3
	movl $0, 0x400000
	ljmp $TR2, $0
1:	mov %cr3, %ebx
	VAL %ebx
	VAL 0x400000 + PAGE3
	END
