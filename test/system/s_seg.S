# s_seg.S: segments of 32-bit protected mode: loads and their error codes, limits, types, conforming code, LAR and kin.
#include "snip.h"
#include "snip.inc"
	.text

SNIPPET seg_load_faults, PROT
	# beyond the GDT
	mov $0x203, %ecx
	TRY mov %ecx, %es
	# not present
	DESC SLOT, 0x00cf1300, 0xffff
	mov $SLOT, %ecx
	TRY mov %ecx, %es
	# a system descriptor, execute-only code
	mov $TR0, %ecx
	TRY mov %ecx, %es
	DESC SLOT, 0x00cf9900, 0xffff
	mov $SLOT, %ecx
	TRY mov %ecx, %es
	# readable code
	DESC SLOT, 0x00cf9b00, 0xffff
	TRY mov %ecx, %es
	mov %es, %ebx
	VAL %ebx
	# privilege: DPL 0 with RPL 3
	mov $DS0 + 3, %ecx
	TRY mov %ecx, %es
	mov $DS0, %ecx
	USER mov %ecx, %es
	# null is fine
	mov $3, %ecx
	TRY mov %ecx, %fs
	mov %fs, %ebx
	VAL %ebx
	TRY mov %fs:0, %ebx
	# LDT without an LDT
	mov $4, %ecx
	TRY mov %ecx, %es
	END

SNIPPET seg_load_conforming, PROT
	# Conforming code may be read from any ring
	DESC SLOT, 0x00cf9f00, 0xffff
	mov $SLOT + 3, %ecx
	USER mov %ecx, %es
	mov $SLOT, %ecx
	USER mov %ecx, %es
	END

SNIPPET seg_load_ss_faults, PROT
	xor %ecx, %ecx
	TRY mov %ecx, %ss
	mov $DS0 + 3, %ecx
	TRY mov %ecx, %ss
	mov $DS3, %ecx
	TRY mov %ecx, %ss
	DESC SLOT, 0x00cf1300, 0xffff
	mov $SLOT, %ecx
	TRY mov %ecx, %ss
	DESC SLOT, 0x00cf9100, 0xffff
	TRY mov %ecx, %ss
	DESC SLOT, 0x00cf9b00, 0xffff
	TRY mov %ecx, %ss
	mov $0x200, %ecx
	TRY mov %ecx, %ss
	mov $0, %ecx
	USER mov %ecx, %ss
	mov $DS0, %ecx
	USER mov %ecx, %ss
	mov $DS3, %ecx
	USER mov %ecx, %ss
	TRY .byte 0x8e, 0xc9
	END

SNIPPET seg_load_ss_long, LONG
	xor %ecx, %ecx
	TRY mov %ecx, %ss
	mov $3, %ecx
	TRY mov %ecx, %ss
	mov $DS0, %ecx
	TRY mov %ecx, %ss
	mov $0, %ecx
	USER mov %ecx, %ss
	mov $3, %ecx
	USER mov %ecx, %ss
	mov $0x200, %ecx
	TRY mov %ecx, %ds
	mov $TR0, %ecx
	TRY mov %ecx, %ds
	END

SNIPPET seg_accessed, PROT
	DESC SLOT, 0x00cf9200, 0xffff
	mov $SLOT, %ecx
	mov %ecx, %es
	VAL GDT + SLOT + 4
	DESC SLOT, 0x00cf9200, 0xffff
	lar %cx, %ebx
	VAL GDT + SLOT + 4
	verr %cx
	VAL GDT + SLOT + 4
	END

SNIPPET seg_limits, PROT
	# base PAGE1, limit 0xf
	DESC SLOT, 0x00409310, 0x0000000f
	movl $0x44332211, PAGE1 + 0xc
	mov $SLOT, %ecx
	mov %ecx, %es
	TRY mov %es:0xc, %ebx
	VAL %ebx
	TRY mov %es:0xd, %ebx
	TRY mov %es:0xf, %bl
	TRY mov %bl, %es:0x10
	TRY mov %es:0xffffffff, %bx
	fninit
	TRY fldt %es:6
	TRY fldt %es:7
	fninit
	mov $0xf, %edi
	TRY stosw
	TRY cmpxchg8b %es:8
	TRY cmpxchg8b %es:9
	# granular: limit 0 means 4095
	DESC SLOT, 0x00c09310, 0
	mov %ecx, %es
	TRY mov %es:0xffc, %ebx
	TRY mov %es:0xffd, %ebx
	END

SNIPPET seg_expand_down, PROT
	# offsets above 0xfff, up to 4 GiB (B) or 64 KiB
	DESC SLOT, 0x00409700, 0x00000fff
	mov $SLOT, %ecx
	mov %ecx, %es
	TRY mov %es:0xfff, %bl
	TRY mov %es:0x1000, %bl
	TRY mov %es:0xfff, %ebx
	TRY mov %es:0x10000, %ebx
	TRY mov %es:0xfffffffd, %ebx
	DESC SLOT, 0x00009700, 0x00000fff
	mov %ecx, %es
	TRY mov %es:0x1000, %ebx
	TRY mov %es:0xfffc, %ebx
	TRY mov %es:0xfffd, %ebx
	TRY mov %es:0x10000, %ebx
	END

SNIPPET seg_types, PROT
	# read-only data, code, execute-only through CS
	DESC SLOT, 0x00cf9100, 0xffff
	mov $SLOT, %ecx
	mov %ecx, %es
	TRY mov %es:PAGE1, %ebx
	TRY mov %ebx, %es:PAGE1
	TRY incl %es:PAGE1
	TRY xchg %ebx, %es:PAGE1
	TRY mov %cs:PAGE1, %ebx
	TRY mov %ebx, %cs:PAGE1
	END

SNIPPET seg_execute_only, PROT
	DESC SLOT, 0x00cf9900, 0xffff
	ljmp $SLOT, $1f
1:	TRY mov %cs:PAGE1, %ebx
	END

SNIPPET seg_ss_limit, PROT
	DESC SLOT, 0x00409300, 0x00008fff
	# handlers need room: the stack lies at the limit
	mov $SLOT, %ecx
	mov %ecx, %ss
	mov %esp, %ebp
	TRY mov %ss:0x8ffd, %ebx
	mov $0x8ffe, %ebp
	TRY mov (%ebp), %ebx
	TRY mov %ds:(%ebp), %ebx
	mov $0xffffffff, %ebp
	TRY pushl (%ebp)
	END

SNIPPET seg_cs_limit, PROT
	# Code runs over the end of its segment
	DESC SLOT, 0x00409b10, 0x00000fff
	movl $0x90909090, PAGE1 + 0xffc
	movl $1f, RESUME
	mov %esp, RESUME_SP
	ljmp $SLOT, $0xffd
1:	movb $0xb8, PAGE1 + 0xffe
	movl $2f, RESUME
	ljmp $SLOT, $0xffd
2:	movl $0, RESUME
	TRY ljmp $SLOT, $0x1000
	# jump out of the segment
	movw $0x7feb, PAGE1 + 0xff0
	movl $3f, RESUME
	ljmp $SLOT, $0xff0
3:	movl $0, RESUME
	END

SNIPPET seg_far_pointers, PROT
	movl $0x12345678, SCRATCH
	movw $DS0, SCRATCH + 4
	les SCRATCH, %ebx
	VAL %ebx
	mov %es, %ebx
	VAL %ebx
	movw $0x200, SCRATCH + 4
	mov $7, %ebx
	TRY lfs SCRATCH, %ebx
	VAL %ebx
	movw $DS3, SCRATCH + 4
	TRY lss SCRATCH, %ebx
	TRY .byte 0xc4, 0xc0
	END

SNIPPET seg_pop, PROT
	push $DS0
	pop %es
	mov %es, %ebx
	VAL %ebx
	push $0x200
	TRY pop %es
	VAL %esp
	pop %ebx
	mov $0x11112222, %ebx
	push %ebx
	mov $DS0, %ecx
	mov %ecx, %es
	push %es
	pop %ebx
	and $0xffff, %ebx
	VAL %ebx
	END

SNIPPET seg_far_jmp, PROT
	TRY ljmp $0, $1f
1:	TRY ljmp $0x200, $1f
	TRY ljmp $DS0, $1f
	DESC SLOT, 0x00cf1b00, 0xffff
	TRY ljmp $SLOT, $1f
	TRY ljmp $CS3, $1f
	TRY ljmp $CS0 + 3, $1f
	TRY ljmp $LDT0, $1f
	# conforming
	DESC SLOT, 0x00cf9f00, 0xffff
	ljmp $SLOT + 3, $2f
2:	mov %cs, %ebx
	VAL %ebx
	DESC SLOT + 8, 0x00cfff00, 0xffff
	TRY ljmp $SLOT + 8, $2b
	END

SNIPPET seg_far_jmp16, PROT
	DESC SLOT, 0x00009b01, 0x0000ffff
	ljmp $SLOT, $1f - BLOB
	.code16
1:	mov %cs, %bx
	movzwl %bx, %ebx
	VAL %ebx
	pushw $0x5678
	pop %bx
	VAL %ebx
	ljmpl $CS0, $2f
	.code32
2:	VAL %esp
	END

SNIPPET seg_far_ret, PROT
	push $0
	push $1f
	TRY lret
	add $8, %esp
	push $DS0
	push $1f
	TRY lret
	add $8, %esp
	push $0x200
	push $1f
	TRY lret
	add $8, %esp
	# outer: SS null, SS of the wrong ring
	push $0
	push $STACK3
	push $CS3
	push $1f
	TRY lret
	add $16, %esp
	push $DS0
	push $STACK3
	push $CS3
	push $1f
	TRY lret
	add $16, %esp
	# DS of ring 0 becomes null on the way out
	mov $DS0, %ecx
	mov %ecx, %ds
	mov %ecx, %es
	movl $2f, %ss:RESUME
	mov %esp, %ss:RESUME_SP
	push $DS3
	push $STACK3
	push $CS3
	push $1f
	lret
1:	mov %ds, %ebx
	VAL %ebx
	mov %es, %ebx
	VAL %ebx
	mov %esp, %ebx
	VAL %ebx
	int $VEC_BACK
2:	END

SNIPPET seg_far_ret_pop, PROT
	movl $2f, RESUME
	mov %esp, RESUME_SP
	push $DS3
	push $STACK3 - 0x20
	push $0x1111
	push $0x2222
	push $CS3
	push $1f
	lret $8
1:	VAL %esp
	# from ring 3 to ring 0: not with RET
	push $CS0
	push $1b
	lret
2:	END

# The limit's bits in what LAR gives are undefined.
.macro CLIP
	and $0xfff0ffff, %ebx
.endm

SNIPPET seg_lar_lsl, PROT
	mov $CS0, %ecx
	lar %ecx, %ebx
	setz %al
	CLIP
	movzbl %al, %eax
	out %eax, $P_VAL
	VAL %ebx
	.irp sel, DS0, CS3, DS3, TR0, LDT0, TR2, TR16, TGATE, 0x1f8, 0x200, 0, 4
	mov $\sel, %ecx
	mov $0x55, %ebx
	lar %ecx, %ebx
	setz %al
	CLIP
	movzbl %al, %eax
	out %eax, $P_VAL
	VAL %ebx
	mov $0x66, %ebx
	lsl %ecx, %ebx
	setz %al
	movzbl %al, %eax
	out %eax, $P_VAL
	VAL %ebx
	.endr
	# gates and privilege
	DESC SLOT, 0x00008c00, 0x00080000
	mov $SLOT, %ecx
	lar %ecx, %ebx
	CLIP
	VAL %ebx
	mov $DS0 + 3, %ecx
	mov $0x77, %ebx
	lar %ecx, %ebx
	CLIP
	VAL %ebx
	mov $DS0, %ecx
	USER lsl %ecx, %ebx
	VAL %ebx
	mov $DS3, %ecx
	USER lsl %ecx, %ebx
	VAL %ebx
	END

SNIPPET seg_lar_long, LONG
	.irp sel, CS0, DS0, TR0, LDT0, 0x30
	mov $\sel, %ecx
	mov $0x55, %ebx
	lar %ecx, %ebx
	CLIP
	VAL %ebx
	mov $0x66, %ebx
	lsl %ecx, %ebx
	VAL %ebx
	.endr
	# 16-bit TSS and task gate are no system types here
	DESC SLOT, 0x00008100, 0x0000ffff
	mov $SLOT, %ecx
	lar %ecx, %ebx
	CLIP
	VAL %ebx
	DESC SLOT, 0x00008500, 0x0000ffff
	lar %ecx, %ebx
	CLIP
	VAL %ebx
	END

SNIPPET seg_verr_verw, PROT
	DESC SLOT, 0x00cf9100, 0xffff
	DESC SLOT + 8, 0x00cf9900, 0xffff
	DESC SLOT + 16, 0x00cf1300, 0xffff
	DESC SLOT + 24, 0x00cf9f00, 0xffff
	.irp sel, CS0, DS0, CS3, DS3, TR0, SLOT, SLOT+8, SLOT+16, SLOT+24, DS0+3, SLOT+27, 0, 0x200
	mov $\sel, %ecx
	xor %ebx, %ebx
	verr %cx
	setz %bl
	verw %cx
	setz %bh
	VAL %ebx
	.endr
	END

SNIPPET seg_arpl, PROT
	mov $0x10, %ebx
	mov $3, %ecx
	arpl %cx, %bx
	setz %al
	movzbl %al, %eax
	out %eax, $P_VAL
	VAL %ebx
	mov $0x13, %ebx
	mov $1, %ecx
	arpl %cx, %bx
	setz %al
	movzbl %al, %eax
	out %eax, $P_VAL
	VAL %ebx
	movw $0x20, PAGE1
	mov $2, %ecx
	USER arpl %cx, PAGE1
	VAL PAGE1
	END

SNIPPET seg_lldt_ltr, PROT
	mov $LDT0, %ecx
	lldt %cx
	sldt %ebx
	VAL %ebx
	DESC SLOT, 0x00008200, 0x0000ffff
	mov $TR2, %ecx
	TRY lldt %cx
	mov $0x200, %ecx
	TRY lldt %cx
	mov $0xc, %ecx
	TRY lldt %cx
	DESC SLOT, 0x00000200, 0x0000ffff
	mov $SLOT, %ecx
	TRY lldt %cx
	xor %ecx, %ecx
	lldt %cx
	mov $4, %ecx
	TRY mov %ecx, %es
	xor %ecx, %ecx
	TRY ltr %cx
	mov $TR0, %ecx
	TRY ltr %cx
	mov $DS0, %ecx
	TRY ltr %cx
	mov $TR2, %ecx
	TRY ltr %cx
	str %ebx
	VAL %ebx
	VAL GDT + TR2 + 4
	DESC SLOT, 0x00000900, 0x00000067
	mov $SLOT, %ecx
	TRY ltr %cx
	mov $LDT0, %ecx
	USER lldt %cx
	USER ltr %cx
	USER str %ebx
	VAL %ebx
	USER sldt %ebx
	VAL %ebx
	END

SNIPPET seg_ldt, PROT
	movl $0x0000ffff, LDTB + 8
	movl $0x00cf9310, LDTB + 12
	movl $0x99, PAGE1 + 0x40
	mov $LDT0, %ecx
	lldt %cx
	mov $0xc, %ecx
	mov %ecx, %es
	mov %es:0x40, %ebx
	VAL %ebx
	# beyond its limit
	mov $0x44, %ecx
	TRY mov %ecx, %es
	VAL LDTB + 12
	END

SNIPPET seg_unaligned_gdt, PROT
	sgdt SCRATCH
	mov SCRATCH, %ebx
	VAL %ebx
	VAL SCRATCH + 4
	# the limit ends within a descriptor
	movw $DS0 + 6, SCRATCH
	lgdt SCRATCH
	mov $DS0, %ecx
	movl $GDT_LIMIT, %edx
	movl $1f, RESUME
	mov %esp, RESUME_SP
	movw $TR0 + 7, SCRATCH
	lgdt SCRATCH
	mov $CSX, %ecx
	mov %ecx, %es
1:	END

SNIPPET seg_lgdt_16bit, PROT
	# a 16-bit operand loads 24 bits of base
	movl $0x000001ff, SCRATCH
	movl $0xff00, SCRATCH + 4
	movw $GDT, SCRATCH + 2
	movw $0xff00, SCRATCH + 4
	data16 lgdt SCRATCH
	sgdt SCRATCH + 16
	VAL SCRATCH + 16
	VAL SCRATCH + 18
	mov $DS0, %ecx
	mov %ecx, %es
	data16 sidt SCRATCH + 16
	VAL SCRATCH + 18
	END

SNIPPET seg_base, PROT
	# FS with a base: linear addresses wrap at 4 GiB
	DESC SLOT, 0xffcf93ff, 0xf000ffff
	mov $SLOT, %ecx
	mov %ecx, %fs
	movl $0x31415926, PAGE1
	mov %fs:PAGE1 + 0x1000, %ebx
	VAL %ebx
	END

SNIPPET seg_wrap_4g, PG32
	# an operand from linear 4 GiB - 2 on to 1
	movl $PAGE2 + 7, PD32 + 4 * 1023
	movl $PAGE1 + 7, PAGE2 + 4 * 1023
	movl $0x44332211, PAGE1 + 0xffc
	movl $0x88776655, 0
	DESC SLOT, 0xffcf93ff, 0xf000ffff
	mov $SLOT, %ecx
	mov %ecx, %fs
	TRY mov %fs:0xffe, %ebx
	VAL %ebx
	TRY movl $-1, %fs:0xffe
	VAL PAGE1 + 0xffc
	VAL 0
	# not mapped at the other end
	movl $0, PT32
	invlpg 0
	TRY mov %fs:0xffe, %ebx
	END

SNIPPET seg_fs_gs_long, LONG
	mov $0xc0000100, %ecx
	mov $PAGE1, %eax
	xor %edx, %edx
	wrmsr
	movl $0x1234, PAGE1 + 8
	mov %fs:8, %ebx
	VAL %ebx
	# a selector load takes the 32-bit base; null keeps or clears by vendor, so not shown
	mov $DS3, %ecx
	mov %ecx, %fs
	mov $0xc0000100, %ecx
	rdmsr
	out %eax, $P_VAL
	mov $0xc0000101, %ecx
	mov $PAGE2, %eax
	wrmsr
	inc %ecx
	mov $PAGE1, %eax
	wrmsr
	swapgs
	mov %gs:8, %ebx
	VAL %ebx
	rdmsr
	out %eax, $P_VAL
	USER swapgs
	END

SNIPPET seg_iret_fs_gs_base, LONG
	# FS and GS of ring 0 become null on the way out, and keep their bases
	mov $DS0, %ecx
	mov %ecx, %fs
	mov %ecx, %gs
	mov $0xc0000100, %ecx
	mov $PAGE1, %eax
	xor %edx, %edx
	wrmsr
	inc %ecx
	mov $PAGE2, %eax
	wrmsr
	movl $0x1234, PAGE1 + 8
	movl $0x5678, PAGE2 + 8
	TO_USER 1f
	END
1:	mov %fs:8, %ebx
	VAL %ebx
	mov %gs:8, %ebx
	VAL %ebx
	mov %fs, %ebx
	VAL %ebx
	mov %gs, %ebx
	VAL %ebx
	int $VEC_BACK

SNIPPET seg_iret_null_rpl, LONG
	# a null selector loses its RPL on the way out
	mov $3, %ecx
	mov %ecx, %ds
	mov $2, %ecx
	mov %ecx, %es
	mov $1, %ecx
	mov %ecx, %fs
	mov %ecx, %gs
	TO_USER 1f
	END
1:	mov %ds, %ebx
	VAL %ebx
	mov %es, %ebx
	VAL %ebx
	mov %fs, %ebx
	VAL %ebx
	mov %gs, %ebx
	VAL %ebx
	int $VEC_BACK

SNIPPET seg_fsgsbase, LONG
	TRY rdfsbase %rbx
	mov %cr4, %rax
	or $0x10000, %eax
	mov %rax, %cr4
	mov $0x123456789a, %rbx
	wrfsbase %rbx
	rdfsbase %rcx
	VALQ %rcx
	wrgsbase %ebx
	rdgsbase %rcx
	VALQ %rcx
	mov $0x800000000000, %rbx
	TRY wrfsbase %rbx
	USER rdgsbase %rcx
	VALQ %rcx
	END

SNIPPET seg_compat, LONG
	# 32-bit code in long mode: limits and addresses of 32 bits
	ljmpl *1f
1:	.long 2f, CSX
	.code32
2:	mov $0xffffffff, %ebx
	inc %ebx
	VAL %ebx
	mov %cs, %ebx
	VAL %ebx
	movl $3f, SCRATCH
	ljmp $CS0, $3f
	.code64
3:	mov %cs, %ebx
	VAL %ebx
	END
