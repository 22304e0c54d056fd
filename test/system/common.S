# common.S: head of the blob and the exception handlers that every snippet starts with (see snip.inc).
#include "snip.h"
#include "snip.inc"
	.section .head, "ax"
	.long table_start, table_end, stubs16, stubs32, stubs64
	# Stubs: 256 of 16 bytes each and mode, entered from IVT and IDT.
	.code32
	.balign 16
stubs32:
	.set n, 0
	.rept 256
	.balign 16
	.if n != 8 && (n < 10 || n > 14) && n != 17
	pushl $0
	.endif
	pushl $n
	jmp common32
	.set n, n + 1
	.endr
	.code64
	.balign 16
stubs64:
	.set n, 0
	.rept 256
	.balign 16
	.if n != 8 && (n < 10 || n > 14) && n != 17
	push $0
	.endif
	push $n
	jmp common64
	.set n, n + 1
	.endr
	.code16
	.balign 16
stubs16:
	.set n, 0
	.rept 256
	.balign 16
	pushw $n
	jmp common16
	.set n, n + 1
	.endr

	.code32
common32:
	pusha
	push %ds
	push %es
	mov $DS3, %eax
	mov %eax, %ds
	mov 40(%esp), %eax
	cmp $VEC_BACK, %eax
	je resume32
	out %eax, $P_VEC
	mov %eax, %ebx
	mov 44(%esp), %eax
	out %eax, $P_ERR
	cmp $14, %ebx
	jne 1f
	mov %cr2, %eax
	out %eax, $P_CR2
1:	cmp $1, %ebx
	jne 2f
	mov %dr6, %eax
	out %eax, $P_DR6
	mov $0xffff0ff0, %eax
	mov %eax, %dr6
2:	mov 48(%esp), %eax
	out %eax, $P_RIP
	mov 52(%esp), %eax
	out %eax, $P_CS
	mov 56(%esp), %eax
	out %eax, $P_FLAGS
	cmpl $0, RESUME
	jne resume32
	call back
	jc end_here
	pop %es
	pop %ds
	popa
	add $8, %esp
	iret
resume32:
	mov RESUME, %eax
	movl $0, RESUME
	mov %eax, JUMPTO
	test %eax, %eax
	jz end_here
	add $8, %esp
	popa
	mov RESUME_SP, %esp
	pushl $2
	popf
	jmp *JUMPTO
end_here:
	out %al, $P_END
	hlt

	# CF: vector EBX does not return.
back:
	cmp $1, %ebx
	je 1f
	cmp $3, %ebx
	je 1f
	cmp $4, %ebx
	je 1f
	cmp $32, %ebx
	ret
1:	clc
	ret

	.code64
common64:
	push %rax
	push %rbx
	mov 16(%rsp), %rax
	cmp $VEC_BACK, %eax
	je resume64
	out %eax, $P_VEC
	mov %eax, %ebx
	mov 24(%rsp), %rax
	out %eax, $P_ERR
	cmp $14, %ebx
	jne 1f
	mov %cr2, %rax
	out %eax, $P_CR2
	shr $32, %rax
	out %eax, $P_CR2H
1:	cmp $1, %ebx
	jne 2f
	mov %dr6, %rax
	out %eax, $P_DR6
	mov $0xffff0ff0, %eax
	mov %rax, %dr6
2:	mov 32(%rsp), %rax
	out %eax, $P_RIP
	mov 40(%rsp), %rax
	out %eax, $P_CS
	mov 48(%rsp), %rax
	out %eax, $P_FLAGS
	cmpl $0, RESUME
	jne resume64
	cmp $1, %ebx
	je 3f
	cmp $3, %ebx
	je 3f
	cmp $4, %ebx
	je 3f
	cmp $32, %ebx
	jb end64
3:	pop %rbx
	pop %rax
	add $16, %rsp
	iretq
resume64:
	mov RESUME, %eax
	movl $0, RESUME
	mov %rax, JUMPTO
	test %eax, %eax
	jz end64
	# SS may be null after a change of privilege.
	mov $DS0, %eax
	mov %eax, %ss
	pop %rbx
	pop %rax
	mov RESUME_SP, %rsp
	push $2
	popf
	jmp *JUMPTO
end64:
	out %al, $P_END
	hlt

	# Real mode: reports; returns for traps, else ends.
	.code16
common16:
	pushal
	mov %sp, %bp
	movzwl 32(%bp), %eax
	out %eax, $P_VEC
	mov %eax, %ebx
	xor %eax, %eax
	out %eax, $P_ERR
	cmp $1, %bl
	jne 1f
	mov %dr6, %eax
	out %eax, $P_DR6
	mov $0xffff0ff0, %eax
	mov %eax, %dr6
1:	movzwl 34(%bp), %eax
	add $BLOB, %eax
	out %eax, $P_RIP
	movzwl 36(%bp), %eax
	out %eax, $P_CS
	movzwl 38(%bp), %eax
	out %eax, $P_FLAGS
	xor %ax, %ax
	mov %ax, %ds
	movl RESUME, %eax
	test %eax, %eax
	jz 2f
	movl $0, RESUME
	movw %ax, JUMPTO
	popal
	mov RESUME_SP, %sp
	pushw $2
	popfw
	jmpw *JUMPTO
2:	cmp $1, %bl
	je 3f
	cmp $3, %bl
	je 3f
	cmp $4, %bl
	je 3f
	cmp $32, %bl
	jb 4f
3:	popal
	add $2, %sp
	iretw
4:	out %al, $P_END
	hlt
