# s_sys.S: control registers, MSRs, XSETBV, SMSW/LMSW, UMIP, I/O permission, time stamps, alignment of CMPXCHG16B.
#include "snip.h"
#include "snip.inc"
	.text

SNIPPET cr0_faults, PROT
	mov %cr0, %ebx
	# PG without PE, NW without CD
	mov $0x80000010, %eax
	TRY mov %eax, %cr0
	mov $0x20000011, %eax
	TRY mov %eax, %cr0
	# ET stays 1; reserved bits do too, or are ignored
	mov %ebx, %eax
	and $~0x10, %eax
	mov %eax, %cr0
	mov %cr0, %eax
	out %eax, $P_VAL
	END

SNIPPET cr0_long_faults, LONG
	# PG cannot go while in 64-bit mode; PAE neither; upper halves are reserved
	mov %cr0, %rax
	btr $31, %rax
	TRY mov %rax, %cr0
	mov %cr0, %rax
	bts $32, %rax
	TRY mov %rax, %cr0
	mov %cr4, %rax
	and $~0x20, %rax
	TRY mov %rax, %cr4
	mov %cr4, %rax
	bts $31, %rax
	TRY mov %rax, %cr4
	bts $40, %rax
	TRY mov %rax, %cr4
	mov %cr3, %rax
	bts $60, %rax
	TRY mov %rax, %cr3
	TRY .byte 0x0f, 0x20, 0xc8
	TRY .byte 0x0f, 0x22, 0xe8
	TRY mov %rax, %cr8
	mov $0xf, %eax
	mov %rax, %cr8
	mov %cr8, %rbx
	VAL %ebx
	END

SNIPPET cr4_pae_lme, PROT
	# paging with LME needs PAE
	mov $0xc0000080, %ecx
	rdmsr
	or $0x100, %eax
	wrmsr
	mov %cr0, %eax
	or $0x80000000, %eax
	TRY mov %eax, %cr0
	rdmsr
	out %eax, $P_VAL
	END

SNIPPET efer_faults, LONG
	mov $0xc0000080, %ecx
	rdmsr
	out %eax, $P_VAL
	# LME cannot change while paging; reserved bits
	xor $0x100, %eax
	TRY wrmsr
	rdmsr
	or $0x2, %eax
	TRY wrmsr
	rdmsr
	mov $1, %edx
	TRY wrmsr
	# LMA is read-only, writing it back differently is ignored
	rdmsr
	out %eax, $P_VAL
	END

SNIPPET msr_faults, LONG
	mov $0x00001234, %ecx
	TRY rdmsr
	TRY wrmsr
	# PAT: reserved types
	mov $0x277, %ecx
	mov $0x00070402, %eax
	mov $0, %edx
	TRY wrmsr
	mov $0x00070406, %eax
	TRY wrmsr
	rdmsr
	out %eax, $P_VAL
	mov $0xc0000084, %ecx
	mov $0x47700, %eax
	wrmsr
	rdmsr
	out %eax, $P_VAL
	USER rdmsr
	END

SNIPPET msr_sysenter, LONG
	mov $0x176, %ecx
	mov $0x12345678, %eax
	mov $0xffffffff, %edx
	wrmsr
	rdmsr
	out %eax, $P_VAL
	VAL %edx
	END

SNIPPET lmsw_smsw, PROT
	mov $0xf, %eax
	lmsw %ax
	smsw %ebx
	VAL %ebx
	# PE cannot be cleared, TS EM MP can
	xor %eax, %eax
	lmsw %ax
	mov $-1, %ebx
	smsw %bx
	VAL %ebx
	movl $-1, SCRATCH
	smsw SCRATCH
	VAL SCRATCH
	mov $8, %ebx
	lmsw %bx
	clts
	smsw %ebx
	VAL %ebx
	END

SNIPPET smsw_long, LONG
	mov $-1, %rbx
	smsw %rbx
	VALQ %rbx
	mov $-1, %rbx
	smsw %ebx
	VALQ %rbx
	USER smsw %ebx
	VAL %ebx
	END

SNIPPET umip, LONG
	USER sgdt SCRATCH
	mov %cr4, %rax
	or $1 << 11, %eax
	mov %rax, %cr4
	USER sgdt SCRATCH
	USER sidt SCRATCH
	USER sldt SCRATCH
	USER str %ebx
	USER smsw %ebx
	TRY smsw %ebx
	VAL %ebx
	END

SNIPPET sgdt_long, LONG
	sgdt SCRATCH
	VALQ SCRATCH
	movzwl SCRATCH + 8, %ebx
	VAL %ebx
	sidt SCRATCH
	VALQ SCRATCH
	movw $0x1ff, SCRATCH
	movq $0, SCRATCH + 2
	movl $0x8000, SCRATCH + 6
	TRY lgdt SCRATCH
	movw $GDT_LIMIT, SCRATCH
	movq $GDT, SCRATCH + 2
	TRY lgdt SCRATCH
	sldt %rbx
	VALQ %rbx
	str %ebx
	VAL %ebx
	END

SNIPPET xsetbv_rules, LONG
	xor %ecx, %ecx
	TRY xgetbv
	TRY xsetbv
	mov %cr4, %rax
	or $1 << 18, %eax
	mov %rax, %cr4
	TRY xgetbv
	out %eax, $P_VAL
	xor %edx, %edx
	mov $2, %eax
	TRY xsetbv
	mov $5, %eax
	TRY xsetbv
	mov $3, %eax
	TRY xsetbv
	mov $7, %eax
	TRY xsetbv
	TRY xgetbv
	out %eax, $P_VAL
	mov $3, %eax
	mov $0x40000000, %edx
	TRY xsetbv
	xor %edx, %edx
	mov $5, %ecx
	TRY xsetbv
	TRY xgetbv
	xor %ecx, %ecx
	USER xsetbv
	USER xgetbv
	END

SNIPPET rdtsc_tsd, LONG
	USER rdtsc
	mov %cr4, %rax
	or $4, %eax
	mov %rax, %cr4
	USER rdtsc
	TRY rdtsc
	USER rdtscp
	END

SNIPPET rdpmc_pce, LONG
	xor %ecx, %ecx
	USER rdpmc
	END

SNIPPET cmpxchg16b, LONG
	movq $0x11, SCRATCH
	movq $0x22, SCRATCH + 8
	mov $0x11, %eax
	mov $0x22, %edx
	mov $0x33, %ebx
	mov $0x44, %ecx
	TRY lock cmpxchg16b SCRATCH
	VALQ SCRATCH
	VALQ SCRATCH + 8
	mov $0x33, %eax
	TRY cmpxchg16b SCRATCH + 8
	TRY cmpxchg16b SCRATCH + 1
	TRY cmpxchg16b SCRATCH
	VALQ %rdx
	END

SNIPPET iobitmap, PROT
	USER in $0x10, %al
	USER in $0x30, %al
	USER in $0x2f, %al
	USER in $0x2f, %ax
	USER in $0x2e, %ax
	USER in $0x2d, %eax
	USERF 0x3002, in $0x40, %al
	# the map's last byte must lie inside the limit
	mov $0x217, %edx
	movb $0, TSS + TSS_MAP + 0x42
	movb $0, TSS + TSS_MAP + 0x43
	movb $0, TSS + TSS_MAP + 0x44
	movb $0, TSS + TSS_MAP + 0x46
	movb $0, TSS + TSS_MAP + 0x47
	USER in %dx, %al
	mov $0x230, %edx
	USER in %dx, %al
	mov $0x238, %edx
	USER in %dx, %al
	mov $0x10, %edx
	mov $SCRATCH, %edi
	USER insb
	mov $0x40, %edx
	USER insb
	USER outsb
	END

SNIPPET iobitmap_long, LONG
	USER in $0x10, %al
	USER in $0x30, %al
	USERF 0x3002, in $0x40, %al
	USER cli
	USERF 0x3002, cli
	END

SNIPPET iobitmap_no_map, PROT
	# the map's base lies behind the limit
	movw $TSS_LIMIT, TSS + 0x66
	USER in $0x10, %al
	END

SNIPPET popf_rules, PROT
	TO_USER 1f
	# ring 0 sets all
	pushl $0x3e4fd7
	andl $~0x104100, (%esp)
	popf
	pushf
	pop %ebx
	VAL %ebx
	# 16-bit: the upper half stays
	pushw $2
	popfw
	pushf
	pop %ebx
	VAL %ebx
	pushl $2
	popf
	END
1:	pushl $0x247fd7 & ~0x4100
	popf
	pushf
	pop %ebx
	VAL %ebx
	int $VEC_BACK

SNIPPET popf_long, LONG
	pushq $0x244fd7 & ~0x4100
	popfq
	pushfq
	pop %rbx
	VAL %ebx
	pushq $2
	popfq
	END

SNIPPET hlt_ends, PROT
	hlt

SNIPPET in_out_sizes, PROT
	mov $-1, %eax
	in $0x40, %al
	out %eax, $P_VAL
	mov $-1, %eax
	in $0x40, %ax
	out %eax, $P_VAL
	mov $0x1234, %edx
	in %dx, %eax
	out %eax, $P_VAL
	out %al, %dx
	out %ax, %dx
	out %eax, %dx
	END

SNIPPET io_strings, LONG
	cld
	mov $0x40, %edx
	mov $PAGE1, %edi
	mov $3, %ecx
	rep insl
	VAL %ecx
	VAL %edi
	VAL PAGE1 + 8
	movl $0x44332211, PAGE1
	mov $PAGE1 + 3, %esi
	mov $4, %ecx
	std
	rep outsb
	VAL %esi
	xor %ecx, %ecx
	rep outsb
	cld
	mov $PAGE1, %esi
	outsl
	END

SNIPPET io_string_fault, LONG
	movq $0, PT + 8 * 0x101
	invlpg PAGE2
	cld
	mov $0x40, %edx
	mov $PAGE1 + 0xffe, %edi
	mov $4, %ecx
	TRY rep insb
	VAL %ecx
	VAL %edi
	mov $PAGE1 + 0xffe, %esi
	mov $4, %ecx
	TRY rep outsb
	VAL %ecx
	END

