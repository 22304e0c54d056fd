# s_real.S: real mode: the IVT, 64 KiB limits, stack wrap, unreal mode, the ways to protected and long mode and back.
#include "snip.h"
#include "snip.inc"
	.text
.macro TRY16 insn:vararg
	movl $(9991f - BLOB), RESUME
	mov %sp, RESUME_SP
	\insn
9991:
	movl $0, RESUME
.endm

SNIPPET real_interrupts, REAL
	int $0x40
	int3
	mov $0x7fff, %ax
	add $1, %ax
	into
	sti
	int $0x41
	pushf
	pop %bx
	VAL %ebx
	END

SNIPPET real_faults, REAL
	TRY16 ud2
	xor %cx, %cx
	TRY16 div %cx
	movl $0x00050003, SCRATCH
	mov $2, %bx
	TRY16 bound %bx, SCRATCH
	mov $5, %bx
	TRY16 bound %bx, SCRATCH
	TRY16 .byte 0x0f, 0x00, 0xc0
	TRY16 .byte 0x0f, 0x00, 0xd8
	TRY16 .byte 0x0f, 0x02, 0xc3
	TRY16 .byte 0x63, 0xc3
	TRY16 .byte 0x0f, 0x05
	END

SNIPPET real_limit, REAL
	mov $0xffff, %si
	TRY16 movw (%si), %bx
	TRY16 movb (%si), %bl
	mov $0xfffd, %si
	TRY16 movl (%si), %ebx
	mov $0x10000, %esi
	TRY16 movb (%esi), %bl
	END

SNIPPET real_stack_limit, REAL
	mov $0xffff, %bp
	TRY16 movw (%bp), %bx
	END

SNIPPET real_push_sp_1, REAL
	mov $1, %sp
	push %ax
	END

SNIPPET real_stack_wrap, REAL
	movl $0, RESUME
	xor %sp, %sp
	pushw $0x1234
	movzwl %sp, %ebx
	VAL %ebx
	mov 0xfffe, %bx
	VAL %ebx
	pop %cx
	movzwl %sp, %ebx
	VAL %ebx
	END

SNIPPET real_idt_limit, REAL
	movw $0x1f, SCRATCH
	movl $0, SCRATCH + 2
	lidt SCRATCH
	int $7
	int $8
	END

SNIPPET real_far, REAL
	lcall $0x1000, $(1f - BLOB)
	VAL %ebx
	pushw $0x1001
	pushw $(2f - BLOB - 16)
	lret
1:	mov %cs, %bx
	movzwl %bx, %ebx
	lret
2:	mov %cs, %bx
	VAL %ebx
	pushf
	pushw $0x1000
	pushw $(3f - BLOB)
	iret
3:	mov %cs, %bx
	VAL %ebx
	mov $0x400, %ax
	mov %ax, %sp
	movl $(4f - BLOB + 0x10000000), SCRATCH
	ljmp *SCRATCH
4:	VAL %esp
	END

SNIPPET real_flags, REAL
	pushl $0x00247fd7
	popfl
	pushfl
	popl %ebx
	VAL %ebx
	pushl $2
	popfl
	pushw $0x7002
	popfw
	pushfw
	popw %bx
	VAL %ebx
	END

SNIPPET real_protected_and_back, REAL
	movl $0x0000ffff, GDT + 8
	movl $0x00009b01, GDT + 12
	movl $0x0000ffff, GDT + 16
	movl $0x00cf9300, GDT + 20
	movw $0x1ff, SCRATCH
	movl $GDT, SCRATCH + 2
	lgdtl SCRATCH
	mov %cr0, %eax
	or $1, %al
	mov %eax, %cr0
	mov $0x10, %bx
	mov %bx, %ds
	mov %bx, %es
	and $0xfe, %al
	mov %eax, %cr0
	xor %bx, %bx
	mov %bx, %ds
	# Unreal: limits of 4 GiB stay.
	mov $PAGE1, %esi
	addr32 movl $0x12345678, (%esi)
	addr32 mov (%esi), %ebx
	VAL %ebx
	smsw %bx
	movzwl %bx, %ebx
	VAL %ebx
	END

SNIPPET real_to_long, REAL
	movl $0x0000ffff, GDT + 8
	movl $0x00af9b00, GDT + 12
	movl $0x0000ffff, GDT + 16
	movl $0x00cf9300, GDT + 20
	movw $0x1ff, SCRATCH
	movl $GDT, SCRATCH + 2
	lgdtl SCRATCH
	movl $PDPT + 7, PML4
	movl $0x87, PDPT
	mov $0x20, %eax
	mov %eax, %cr4
	mov $PML4, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx
	rdmsr
	or $0x100, %eax
	wrmsr
	mov %cr0, %eax
	or $0x80000001, %eax
	mov %eax, %cr0
	rdmsr
	out %eax, $P_VAL
	ljmpl $8, $1f
	.code64
1:	mov $0x10, %eax
	mov %eax, %ss
	mov $0x123456789abcdef0, %rbx
	VALQ %rbx
	END

SNIPPET long_to_real, LONG
	# Down as a kernel goes that starts the firmware again, up as the firmware goes: ESP is the lower half of RSP, a
	# write to SP leaves the upper half, and a flat stack segment uses all of it.
	movl $0x0000ffff, GDT + SLOT
	movl $0x00009b01, GDT + SLOT + 4
	movl $0x0000ffff, GDT + SLOT + 8
	movl $0x00009310, GDT + SLOT + 12
	movabs $0x89abcdef12345678, %rsp
	ljmpl *1f
1:	.long 2f, CSX
	.code32
2:	mov %cr0, %eax
	and $0x7fffffff, %eax
	mov %eax, %cr0
	mov $0xc0000080, %ecx
	rdmsr
	and $~0x100, %eax
	wrmsr
	rdmsr
	and $0x500, %eax
	out %eax, $P_VAL
	VAL %esp
	ljmpl $SLOT, $(3f - BLOB)
	.code16
3:	mov $SLOT + 8, %bx
	mov %bx, %ds
	mov %bx, %es
	mov %bx, %ss
	mov %cr0, %eax
	and $0xfe, %al
	mov %eax, %cr0
	ljmp $0xf00, $(4f - BLOB + 0x1000)
4:	VAL %esp
	# DS still has the base of before.
	movl $0x2468ace0, SCRATCH
	mov SCRATCH, %ebx
	VAL %ebx
	xor %bx, %bx
	mov %bx, %ds
	mov %bx, %es
	mov %bx, %ss
	mov SCRATCH, %ebx
	VAL %ebx
	mov $0x7c00, %sp
	VAL %esp
	pushl $0x11223344
	VAL 0x7bfc
	mov %cs, %bx
	movzwl %bx, %ebx
	VAL %ebx
	mov %cr0, %eax
	or $1, %al
	mov %eax, %cr0
	ljmpl $CSX, $5f
	.code32
5:	mov $DS0, %ebx
	mov %ebx, %ds
	mov %ebx, %es
	mov %ebx, %ss
	VAL %esp
	push $0x55667788
	pop %ebx
	VAL %ebx
	VAL %esp
	END

SNIPPET real_rep_io, REAL
	movl $0x44332211, PAGE1 - 0xf8000
	mov $PAGE1 - 0xf8000, %si
	mov $0x40, %dx
	mov $4, %cx
	cld
	rep outsb
	movzwl %si, %ebx
	VAL %ebx
	mov $SCRATCH + 6, %di
	mov $3, %cx
	std
	rep insw
	movzwl %di, %ebx
	VAL %ebx
	VAL SCRATCH + 2
	VAL SCRATCH + 6
	END

# The source of a string instruction, and XLAT's table, by prefix in ES, which is 32 bytes off DS here.
SNIPPET real_string_es, REAL
	mov %ds, %ax
	add $2, %ax
	mov %ax, %es
	cld
	movl $0x44332211, SCRATCH
	movl $0x88776655, SCRATCH + 32
	mov $SCRATCH, %si
	es lodsl
	mov %eax, %ebx
	VAL %ebx
	mov $SCRATCH, %si
	mov $SCRATCH + 16, %di
	es movsl
	VAL SCRATCH + 48
	mov $SCRATCH, %si
	mov $SCRATCH, %di
	xor %ebx, %ebx
	es cmpsl
	setz %bl
	VAL %ebx
	mov $SCRATCH, %bx
	mov $2, %al
	es xlatb
	movzx %al, %ebx
	VAL %ebx
	mov $0x40, %dx
	mov $SCRATCH, %si
	es outsl
	mov $SCRATCH, %si
	mov $4, %cx
	es rep outsb
	END

SNIPPET real_hlt, REAL
	hlt
