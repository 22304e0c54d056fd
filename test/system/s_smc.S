# s_smc.S: self-modifying code: the next instruction, the same page, over a page border, through an alias.
#include "snip.h"
#include "snip.inc"
	.text

SNIPPET smc_next_ends, PROT
	movb $0x43, 1f
1:	nop
	VAL %ebx
	END

SNIPPET smc_loop, PROT
	# a loop that changes its own immediate
	mov $4, %ecx
	xor %edx, %edx
1:	mov $1, %ebx
	add %ebx, %edx
	incl 1b + 1
	dec %ecx
	jnz 1b
	VAL %edx
	END

SNIPPET smc_own_instruction, PROT
	# a store over itself completes; the next turn runs the new one
	mov $0x90909090, %eax
	mov %eax, %ebx
	jmp 1f
1:	movl %ebx, 1b
	nop
	nop
	movl 1b, %ecx
	VAL %ecx
	END

SNIPPET smc_call, LONG
	# mov $imm, %eax; ret
	movb $0xb8, PAGE1
	movl $0x11, PAGE1 + 1
	movb $0xc3, PAGE1 + 5
	call PAGE1
	out %eax, $P_VAL
	movl $0x22, PAGE1 + 1
	call PAGE1
	out %eax, $P_VAL
	movb $0x33, PAGE1 + 1
	call PAGE1
	out %eax, $P_VAL
	END

SNIPPET smc_alias, LONG
	# written through another mapping of the page
	movb $0xb8, PAGE1
	movl $0x11, PAGE1 + 1
	movb $0xc3, PAGE1 + 5
	movq $PAGE1 + 7, PT + 8 * 0x101
	invlpg PAGE2
	call PAGE1
	out %eax, $P_VAL
	movl $0x44, PAGE2 + 1
	call PAGE1
	out %eax, $P_VAL
	call PAGE2
	out %eax, $P_VAL
	END

SNIPPET smc_remap, LONG
	# the same linear address, another page
	movb $0xb8, PAGE1
	movl $0x11, PAGE1 + 1
	movb $0xc3, PAGE1 + 5
	movb $0xb8, PAGE2
	movl $0x22, PAGE2 + 1
	movb $0xc3, PAGE2 + 5
	call PAGE1
	out %eax, $P_VAL
	movq $PAGE2 + 7, PT + 8 * 0x100
	invlpg PAGE1
	call PAGE1
	out %eax, $P_VAL
	END

SNIPPET smc_page_crossing, LONG
	movb $0xb8, PAGE1 + 0xffd
	movl $0x11223344, PAGE1 + 0xffe
	movb $0xc3, PAGE2 + 2
	call PAGE1 + 0xffd
	out %eax, $P_VAL
	movb $0x99, PAGE2 + 1
	call PAGE1 + 0xffd
	out %eax, $P_VAL
	movb $0x77, PAGE1 + 0xfff
	call PAGE1 + 0xffd
	out %eax, $P_VAL
	# the second page changes under it
	movb $0x55, PAGE3
	movb $0x66, PAGE3 + 1
	movb $0xc3, PAGE3 + 2
	movq $PAGE3 + 7, PT + 8 * 0x101
	invlpg PAGE2
	call PAGE1 + 0xffd
	out %eax, $P_VAL
	END

SNIPPET smc_rep_movs, LONG
	# REP MOVS over the code it stands in: it goes on to its end, then the new code runs
	mov $2f, %esi
	mov $1f, %edi
	mov $(3f - 2f), %ecx
	cld
	jmp 1f
	.balign 16
1:	rep movsb
	mov $0x11, %ebx
	VAL %ebx
	END
2:	rep movsb
	mov $0x22, %ebx
3:

SNIPPET smc_real, REAL
	movb $0x43, %cs:(1f - BLOB)
1:	nop
	movzwl %bx, %ebx
	VAL %ebx
	END

SNIPPET smc_push, PROT
	# PUSH writes the next instruction
	mov %esp, %ebp
	mov $1f + 4, %esp
	mov $0x90904343, %ecx
	push %ecx
1:	nop
	nop
	nop
	nop
	mov %ebp, %esp
	VAL %ebx
	END

SNIPPET smc_mode, LONG
	# the same bytes as 64 and as 32-bit code: 48 ff c0 is inc %rax, or dec %eax; inc %eax
	movl $0x40c0ff48, PAGE1
	movb $0xc3, PAGE1 + 3
	mov $0x5, %eax
	call PAGE1
	out %eax, $P_VAL
	ljmpl *1f
1:	.long 2f, CSX
	.code32
2:	mov $DS0, %eax
	mov %eax, %ss
	mov $0x5, %eax
	call PAGE1
	out %eax, $P_VAL
	END

SNIPPET smc_cmpxchg, LONG
	mov 1f, %eax
	mov %eax, %edx
	and $~0xff, %edx
	or $0xf5, %edx
	clc
	lock cmpxchg %edx, 1f
	jmp 1f
	.balign 4
1:	nop
	nop
	nop
	nop
	sbb %ebx, %ebx
	VAL %ebx
	END

SNIPPET smc_dma_like, LONG
	# MOVUPS, XMM and x87 stores over code
	mov %cr4, %rax
	or $0x200, %eax
	mov %rax, %cr4
	movq $0, SCRATCH + 8
	movl $0x000055b8, SCRATCH
	movl $0xc300, SCRATCH + 4
	movb $0xc3, PAGE1
	call PAGE1
	movups SCRATCH, %xmm0
	movups %xmm0, PAGE1
	call PAGE1
	out %eax, $P_VAL
	fninit
	movb $0x66, SCRATCH + 1
	fildll SCRATCH
	fistpll PAGE1
	call PAGE1
	out %eax, $P_VAL
	END
