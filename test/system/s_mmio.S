# s_mmio.S: MMIO of every shape. Reads answer byte by byte with the low byte of the address plus 0x30.
#include "snip.h"
#include "snip.inc"
	.text

SNIPPET mmio_moves, LONG
	mov MMIO, %bl
	mov MMIO + 2, %bx
	mov MMIO + 4, %ebx
	mov MMIO + 8, %rbx
	VALQ %rbx
	movzbl MMIO + 1, %ebx
	movsbl MMIO + 0x60, %ebx
	VAL %ebx
	movslq MMIO + 0x5d, %rbx
	VALQ %rbx
	mov $0x1122334455667788, %rbx
	mov %bl, MMIO
	mov %bx, MMIO + 2
	mov %ebx, MMIO + 4
	mov %rbx, MMIO + 8
	movq $-2, MMIO + 8
	movb $7, MMIO
	mov %bh, MMIO
	END

SNIPPET mmio_unaligned, LONG
	mov MMIO + 1, %ebx
	VAL %ebx
	mov MMIO + 7, %rbx
	VALQ %rbx
	mov %rbx, MMIO + 3
	END

SNIPPET mmio_alu, LONG
	mov $1, %ebx
	add MMIO, %ebx
	VAL %ebx
	cmpl $0x30, MMIO
	cmpb $0x30, MMIO
	setz %bl
	movzbl %bl, %ebx
	VAL %ebx
	testl $0xf0, MMIO
	imul $3, MMIO, %ebx
	VAL %ebx
	mov MMIO, %eax
	xor %edx, %edx
	mov $0x100, %eax
	divl MMIO
	out %eax, $P_VAL
	cmovz MMIO, %ecx
	btl $3, MMIO
	setc %bl
	movzbl %bl, %ebx
	VAL %ebx
	END

SNIPPET mmio_rmw, LONG
	mov $1, %ebx
	add %ebx, MMIO
	incb MMIO + 1
	notw MMIO + 2
	negl MMIO
	orl $0x80, MMIO
	shll $4, MMIO
	btsl $0, MMIO
	xchg %ebx, MMIO
	VAL %ebx
	lock incl MMIO
	mov $0x33323130, %eax
	mov $0x55, %ecx
	cmpxchg %ecx, MMIO
	setz %bl
	movzbl %bl, %ebx
	VAL %ebx
	lock xadd %ecx, MMIO + 4
	VAL %ecx
	sete MMIO
	END

SNIPPET mmio_cmpxchg_fails, LONG
	mov $1, %eax
	mov $0x55, %ecx
	cmpxchg %ecx, MMIO
	out %eax, $P_VAL
	END

SNIPPET mmio_cmpxchg8b, LONG
	mov $0x33323130, %eax
	mov $0x37363534, %edx
	mov $0x11, %ebx
	mov $0x22, %ecx
	lock cmpxchg8b MMIO
	setz %bl
	movzbl %bl, %ebx
	VAL %ebx
	END

SNIPPET mmio_push_pop, LONG
	pushq MMIO
	pop %rbx
	VALQ %rbx
	push $0x1234
	popq MMIO + 8
	mov %rsp, %rbp
	mov $MMIO + 0x20, %esp
	push %rbp
	pop %rbx
	mov %rbp, %rsp
	VALQ %rbx
	END

SNIPPET mmio_call_ret, PROT
	# the stack lies in MMIO: the return address is what the client says
	mov %esp, %ebp
	mov $MMIO + 0x20, %esp
	mov $PAGE1, %ecx
	# PAGE1: call .+5; mov %ebp, %esp; jmp *%ebx
	mov $1f, %ebx
	movl $0xe8, PAGE1
	movl $0xffec8900, PAGE1 + 4
	movb $0xe3, PAGE1 + 8
	jmp *%ecx
1:	mov %ebp, %esp
	push $2f
	ret
2:	call *3f
	END
3:	.long 4f
4:	ret

SNIPPET mmio_stos_movs, LONG
	cld
	mov $0xaabbccdd, %eax
	mov $MMIO, %edi
	mov $3, %ecx
	rep stosl
	VAL %edi
	mov $MMIO + 0x10, %esi
	mov $PAGE1, %edi
	mov $2, %ecx
	rep movsl
	VALQ PAGE1
	mov $PAGE1, %esi
	mov $MMIO + 0x20, %edi
	movsb
	movsw
	mov $MMIO, %esi
	lodsl
	out %eax, $P_VAL
	std
	mov $MMIO + 8, %edi
	mov $2, %ecx
	rep stosw
	VAL %edi
	END

SNIPPET mmio_two_operands, LONG
	cld
	mov $MMIO, %esi
	mov $MMIO + 0x100, %edi
	mov $2, %ecx
	rep movsl
	VAL %ecx
	mov $MMIO, %esi
	mov $MMIO, %edi
	cmpsl
	setz %bl
	movzbl %bl, %ebx
	VAL %ebx
	mov $MMIO + 0x21, %edi
	mov $0x53, %al
	mov $5, %ecx
	repne scasb
	VAL %ecx
	END

SNIPPET mmio_push_mem, LONG
	# reads MMIO, pushes to MMIO
	mov %rsp, %rbp
	mov $MMIO + 0x40, %esp
	pushq MMIO
	popq MMIO + 0x60
	mov %rbp, %rsp
	END

SNIPPET mmio_io_string, PROT
	cld
	mov $0x40, %edx
	mov $MMIO, %esi
	outsl
	mov $MMIO, %edi
	insb
	END

SNIPPET mmio_simd, LONG
	mov %cr4, %rax
	or $0x200, %eax
	mov %rax, %cr4
	movups MMIO, %xmm0
	movups %xmm0, PAGE1
	VALQ PAGE1
	VALQ PAGE1 + 8
	movaps %xmm0, MMIO + 0x40
	movq MMIO + 8, %xmm1
	movd %xmm1, MMIO
	movdqu %xmm0, MMIO + 1
	movq MMIO, %mm0
	movq %mm0, MMIO + 0x10
	emms
	paddd MMIO + 0x20, %xmm0
	movups %xmm0, PAGE1
	VALQ PAGE1
	END

SNIPPET mmio_x87, LONG
	fninit
	fildl MMIO
	fistpl MMIO + 8
	flds MMIO
	fstpl MMIO + 8
	fldt MMIO
	fstpt MMIO + 0x10
	fldcw MMIO + 0x20
	fnstcw MMIO + 2
	fnstsw MMIO + 4
	fninit
	fiaddl MMIO
	END

SNIPPET mmio_far_pointer, PROT
	movw $0x5430, %bx
	les MMIO, %ebx
	END

SNIPPET mmio_descriptors, PROT
	sgdt MMIO
	sidt MMIO + 8
	sldt MMIO
	smsw MMIO + 2
	str MMIO + 4
	END

SNIPPET mmio_bound_arpl, PROT
	mov $0x33323131, %ebx
	TRY bound %ebx, MMIO
	mov $2, %ecx
	arpl %cx, MMIO
	xlatb
	mov $MMIO, %ebx
	mov $4, %eax
	xlat
	movzbl %al, %eax
	out %eax, $P_VAL
	enter $8, $0
	leave
	END

SNIPPET mmio_page_crossing, LONG
	# RAM ends here: an access over the end is RAM and MMIO
	movl $0x44332211, RAM_END - 4
	mov RAM_END - 2, %ebx
	VAL %ebx
	mov RAM_END - 6, %rbx
	VALQ %rbx
	mov $0x8877665544332211, %rbx
	mov %rbx, RAM_END - 3
	VAL RAM_END - 4
	addl $1, RAM_END - 1
	VAL RAM_END - 4
	mov MMIO + 0xffe, %ebx
	VAL %ebx
	mov %rbx, MMIO + 0xffc
	END

SNIPPET mmio_crossing_fault, LONG
	# the second half faults: the first is not touched
	movq $MMIO + 7, PT + 8 * 0x100
	movq $0, PT + 8 * 0x101
	invlpg PAGE1
	invlpg PAGE2
	TRY mov %ebx, PAGE1 + 0xffe
	TRY mov PAGE1 + 0xffe, %ebx
	END

SNIPPET mmio_in_user_mode, LONG
	USER mov MMIO, %ebx
	VAL %ebx
	USER mov %ebx, MMIO
	END

SNIPPET mmio_real, REAL
	# through unreal limits: real mode code, MMIO above 1 MiB
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
	and $0xfe, %al
	mov %eax, %cr0
	mov $MMIO, %esi
	addr32 mov (%esi), %ebx
	VAL %ebx
	addr32 movw $0x55, (%esi)
	END

SNIPPET mmio_cr3_maps, LONG
	# RAM and MMIO swapped by the page tables
	movq $MMIO + 7, PT + 8 * 0x100
	invlpg PAGE1
	mov PAGE1, %ebx
	movq $PAGE1 + 7, PT + 8 * 0x100
	invlpg PAGE1
	mov PAGE1, %ebx
	VAL %ebx
	END

SNIPPET mmio_movbe_crc, LONG
	movbe MMIO, %ebx
	VAL %ebx
	movbe %ebx, MMIO + 8
	movnti %rbx, MMIO
	END

SNIPPET mmio_masked, LONG
	mov %cr4, %rax
	or $0x200, %eax
	mov %rax, %cr4
	pxor %xmm0, %xmm0
	mov $MMIO, %edi
	movl $0x00800080, SCRATCH
	movl $0, SCRATCH + 4
	movq SCRATCH, %xmm1
	maskmovdqu %xmm1, %xmm0
	END
