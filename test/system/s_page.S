# s_page.S: paging: #PF error codes, A/D bits, WP, NX, SMEP, SMAP, reserved bits, large pages, PCID, INVLPG.
#include "snip.h"
#include "snip.inc"
	.text
# Page table entry of \page, and INVLPG.
.macro PTE64 page, val
	movl $\val, PT + 8 * (\page / 4096)
	invlpg \page
.endm
.macro PTE64H page, val
	movl $\val, PT + 8 * (\page / 4096) + 4
	invlpg \page
.endm
.macro PTEL page, val
	movl $\val, PT32 + 4 * (\page / 4096)
	invlpg \page
.endm

# The pages below PAGE1 become supervisor pages.
	.code64
super64:
	xor %ecx, %ecx
1:	andb $~4, PT(, %rcx, 8)
	inc %ecx
	cmp $0x100, %ecx
	jb 1b
	mov %cr3, %rax
	mov %rax, %cr3
	ret

.macro PF_CODES pte
	\pte PAGE1, 0
	TRY mov PAGE1, %ebx
	TRY mov %ebx, PAGE1
	TRY call PAGE1
	USER mov PAGE1, %ebx
	USER mov %ebx, PAGE1
	TO_USER PAGE1
	# read-only user page
	\pte PAGE1, PAGE1 + 5
	TRY mov %ebx, PAGE1
	TRY xchg %ebx, PAGE1
	USER mov PAGE1, %ebx
	USER mov %ebx, PAGE1
	USER addl $1, PAGE1
	# supervisor page
	\pte PAGE1, PAGE1 + 3
	TRY mov PAGE1, %ebx
	USER mov PAGE1, %ebx
	USER mov %ebx, PAGE1
	TO_USER PAGE1
	END
.endm
SNIPPET pf_codes_long, LONG
	PF_CODES PTE64
SNIPPET pf_codes_pae, PAE
	PF_CODES PTE64
SNIPPET pf_codes_32, PG32
	PF_CODES PTEL

SNIPPET pf_rmw, LONG
	PTE64 PAGE1, 0
	TRY addl $1, PAGE1
	USER addl $1, PAGE1
	USER bts %ebx, PAGE1
	USER xchg %ebx, PAGE1
	USER lock cmpxchg %ebx, PAGE1
	USER cmpxchg8b PAGE1
	END

SNIPPET pf_nx_long, LONG
	movb $0xc3, PAGE1
	call PAGE1
	PTE64H PAGE1, 0x80000000
	TRY call PAGE1
	TO_USER PAGE1
	mov PAGE1, %ebx
	VAL %ebx
	# without EFER.NXE the bit is reserved
	mov $0xc0000080, %ecx
	rdmsr
	and $~0x800, %eax
	wrmsr
	TRY mov PAGE1, %ebx
	TRY mov %ebx, PAGE1
	USER mov %ebx, PAGE1
	TRY call PAGE1
	END

SNIPPET pf_nx_pae, PAE
	movb $0xc3, PAGE1
	PTE64H PAGE1, 0x80000000
	TRY call PAGE1
	TO_USER PAGE1
	PTE64H PAGE1, 0x40000000
	TRY mov PAGE1, %ebx
	END

SNIPPET pf_nx_directory, LONG
	movl $0x80000000, PD + 8 + 4
	mov %cr3, %rax
	mov %rax, %cr3
	movb $0xc3, 0x200000
	TRY call 0x200000
	movl $0, PD + 8 + 4
	mov %cr3, %rax
	mov %rax, %cr3
	TRY call 0x200000
	END

SNIPPET pf_reserved, LONG
	PTE64H PAGE1, 0x00080000
	TRY mov PAGE1, %ebx
	TRY mov %ebx, PAGE1
	USER mov PAGE1, %ebx
	USER mov %ebx, PAGE1
	# bit 13 of a 2 MiB page's entry
	orl $0x2000, PD + 8
	mov %cr3, %rax
	mov %rax, %cr3
	TRY mov 0x200000, %ebx
	# PS in the PML4 entry
	orl $0x80, PML4 + 8 * 511
	movl $PDPT + 0x87, PML4 + 8
	mov $1 << 39, %rsi
	TRY mov (%rsi), %ebx
	END

SNIPPET pf_reserved_pse, PG32
	orl $1 << 21, PD32 + 4
	invlpg 0x400000
	TRY mov 0x400000, %ebx
	TRY mov %ebx, 0x400000
	USER mov 0x400000, %ebx
	END

SNIPPET page_32_no_pse, PG32
	# without CR4.PSE, PS is ignored and the entry names a table
	movl $PAGE1 + 0x87, PD32 + 4
	movl $PAGE2 + 7, PAGE1
	movl $0x55aa55aa, PAGE2
	xor %eax, %eax
	mov %eax, %cr4
	VAL 0x400000
	VAL PAGE1
	END

SNIPPET page_wp, LONG
	PTE64 PAGE1, PAGE1 + 5
	mov %cr0, %rax
	and $~0x10000, %eax
	mov %rax, %cr0
	movl $0x11223344, PAGE1
	VAL PAGE1
	mov PT + 8 * 0x100, %ebx
	VAL %ebx
	USER movl $1, PAGE1
	# and of a supervisor's read-only page
	PTE64 PAGE1, PAGE1 + 1
	TRY incl PAGE1
	mov %cr0, %rax
	or $0x10000, %eax
	mov %rax, %cr0
	TRY incl PAGE1
	VAL PAGE1
	END

SNIPPET page_ad_bits, LONG
	VAL PT + 8 * 0x100
	VAL PD + 8
	mov PAGE1, %ebx
	VAL PT + 8 * 0x100
	mov %ebx, PAGE1
	VAL PT + 8 * 0x100
	mov 0x200000, %ebx
	VAL PD + 8
	mov %ebx, 0x200000
	VAL PD + 8
	mov PML4, %ebx
	and $0x20, %ebx
	VAL %ebx
	mov PDPT, %ebx
	and $0x20, %ebx
	VAL %ebx
	# a write that faults sets nothing
	PTE64 PAGE2, PAGE2 + 1
	USER movl $0, PAGE2
	VAL PT + 8 * 0x101
	TRY movl $0, PAGE2
	VAL PT + 8 * 0x101
	# a read-modify-write sets both; so does a CMPXCHG that does not exchange
	PTE64 PAGE3, PAGE3 + 7
	mov $1, %eax
	lock cmpxchg %ebx, PAGE3
	VAL PT + 8 * 0x102
	# fetch
	PTE64 PAGE4, PAGE4 + 7
	movb $0xc3, PAGE4
	PTE64 PAGE4, PAGE4 + 7
	call PAGE4
	VAL PT + 8 * 0x103
	END

SNIPPET page_ad_bits_32, PG32
	mov PAGE1, %ebx
	VAL PT32 + 4 * 0x100
	mov %ebx, PAGE1
	VAL PT32 + 4 * 0x100
	mov PD32, %ebx
	and $0x60, %ebx
	VAL %ebx
	mov 0x400000 - 4, %ebx
	VAL PD32 + 4
	mov %ebx, PAGE1
	END

SNIPPET page_ad_large_32, PG32
	# A 4 MiB page over RAM
	movl $0x87, PD32 + 4
	invlpg 0x400000
	mov 0x400000 + PAGE1, %ebx
	VAL PD32 + 4
	incl 0x400000 + PAGE1
	VAL PD32 + 4
	VAL PAGE1
	END

SNIPPET page_crossing, LONG
	movl $0x44332211, PAGE1 + 0xffc
	movl $0x88776655, PAGE2
	mov PAGE1 + 0xffe, %ebx
	VAL %ebx
	# the second half faults: CR2 names it, nothing is written
	PTE64 PAGE2, 0
	TRY movl $0, PAGE1 + 0xffe
	TRY mov PAGE1 + 0xffd, %rbx
	PTE64 PAGE2, PAGE2 + 1
	TRY movl $0, PAGE1 + 0xffe
	USER movl $0, PAGE1 + 0xffe
	PTE64 PAGE2, PAGE2 + 5
	TRY movl $0, PAGE1 + 0xffe
	TRY movups %xmm0, PAGE1 + 0xff8
	VAL PAGE1 + 0xffc
	VAL PAGE2
	END

SNIPPET page_crossing_fetch, LONG
	# mov $imm32, %eax over the border
	movl $0x2211b800, PAGE1 + 0xffc
	movl $0xc34433, PAGE2
	call PAGE1 + 0xffd
	out %eax, $P_VAL
	PTE64 PAGE2, 0
	TRY call PAGE1 + 0xffd
	# the opcode alone is on the first page
	movb $0xc3, PAGE1 + 0xfff
	TRY call PAGE1 + 0xfff
	END

SNIPPET page_invlpg_remap, LONG
	movl $0x11111111, PAGE1
	movl $0x22222222, PAGE2
	VAL PAGE1
	PTE64 PAGE1, PAGE2 + 7
	VAL PAGE1
	movl $0x33333333, PAGE1
	PTE64 PAGE1, PAGE1 + 7
	VAL PAGE1
	VAL PAGE2
	END

SNIPPET page_split_large, LONG
	movl $0x11111111, 0x200000
	movl $0x22222222, 0x201000
	VAL 0x200000
	movq $0x200007, PAGE1
	movq $0x200007, PAGE1 + 8
	movq $PAGE1 + 7, PD + 8
	invlpg 0x200000
	VAL 0x200000
	VAL 0x201000
	# and back
	movq $0x200087, PD + 8
	invlpg 0x201000
	VAL 0x201000
	END

SNIPPET page_1gib, LONG
	movl $0x12345678, PAGE1
	movq $0x87, PDPT + 8
	mov $0x40000000 + PAGE1, %esi
	VAL (%rsi)
	incl (%rsi)
	VAL PAGE1
	VAL PDPT + 8
	# reserved address bits
	movq $0x2087, PDPT + 8
	invlpg (%rsi)
	TRY mov (%rsi), %ebx
	END

SNIPPET page_global, LONG
	mov %cr4, %rax
	or $0x80, %eax
	mov %rax, %cr4
	PTE64 PAGE1, PAGE1 + 0x107
	movl $0x11111111, PAGE1
	movl $0x22222222, PAGE2
	VAL PAGE1
	# INVLPG drops global ones too
	PTE64 PAGE1, PAGE2 + 0x107
	VAL PAGE1
	# so does a change of CR4.PGE
	movl $PAGE1 + 0x107, PT + 8 * 0x100
	mov %cr4, %rax
	xor $0x80, %eax
	mov %rax, %cr4
	VAL PAGE1
	END

SNIPPET smep, LONG
	movb $0xc3, PAGE1
	call super64
	mov %cr4, %rax
	or $1 << 20, %eax
	mov %rax, %cr4
	TRY call PAGE1
	mov PAGE1, %bl
	PTE64 PAGE1, PAGE1 + 3
	TRY call PAGE1
	# a user fetch is not SMEP's
	movw $0x30cd, PAGE2
	TO_USER PAGE2
	VAL $1
	END

SNIPPET smap, LONG
	call super64
	mov %cr4, %rax
	or $1 << 21, %eax
	mov %rax, %cr4
	TRY mov PAGE1, %ebx
	TRY mov %ebx, PAGE1
	TRY push PAGE1
	stac
	TRY mov PAGE1, %ebx
	TRY incl PAGE1
	pushf
	pop %rbx
	VAL %ebx
	clac
	TRY mov PAGE1, %ebx
	# AC by POPF does the same
	pushf
	orl $FL_AC, (%rsp)
	popf
	TRY incl PAGE1
	mov PAGE1, %ebx
	VAL %ebx
	clac
	# fetches are not SMAP's
	movb $0xc3, PAGE2
	movl $0xc3, %ebx
	stac
	movb %bl, PAGE2
	clac
	TRY call PAGE2
	END

SNIPPET smap_user, LONG
	# CPL 3 has nothing to do with SMAP; AC set by the user lifts it for nobody's implicit accesses
	call super64
	mov %cr4, %rax
	or $1 << 21, %eax
	mov %rax, %cr4
	stac
	# PAGE2: incl PAGE1; int $0x30
	movw $0x04ff, PAGE2
	movb $0x25, PAGE2 + 2
	movl $PAGE1, PAGE2 + 3
	movw $0x30cd, PAGE2 + 7
	movl $0x41, PAGE1
	# the user's stack is not touched
	clac
	TO_USER PAGE2
	stac
	VAL PAGE1
	# The GDT on a user page: the descriptor read is an implicit supervisor access, AC does not help
	movq $GDT + 7, PT + 8
	invlpg GDT
	stac
	mov $DS0, %ecx
	TRY mov %ecx, %es
	END

SNIPPET stac_faults, LONG
	USER clac
	USER stac
	END

SNIPPET noncanonical, LONG
	mov $0x800000000000, %rsi
	TRY mov (%rsi), %ebx
	TRY mov %ebx, (%rsi)
	mov $0x7fffffffffff, %rdi
	TRY mov (%rdi), %bx
	mov %rsi, %rbp
	TRY mov (%rbp), %ebx
	TRY mov %gs:(%rsi), %ebx
	TRY prefetcht0 (%rsi)
	TRY invlpg (%rsi)
	TRY lea (%rsi), %rbx
	# a stack for #SS
	movb $1, IDT + 16 * 12 + 4
	mov %rsp, %rcx
	movl $1f, RESUME
	mov %rsp, RESUME_SP
	lea 0x20(%rsi), %rsp
	push %rax
1:	mov %rcx, %rsp
	movl $2f, RESUME
	lea 0x20(%rsi), %rsp
	pop %rax
2:	mov %rcx, %rsp
	movl $3f, RESUME
	lea 0x20(%rsi), %rsp
	call 3f
3:	mov %rcx, %rsp
	movl $0, RESUME
	END

SNIPPET noncanonical_branch, LONG
	mov $0x800000000000, %rsi
	TRY jmp *%rsi
	TRY call *%rsi
	mov %rsi, SCRATCH
	TRY jmp *SCRATCH
	TRY call *SCRATCH
	push %rsi
	TRY ret
	pop %rax
	END

SNIPPET noncanonical_msr, LONG
	mov $0x00008000, %edx
	xor %eax, %eax
	.irp msr, 0xc0000082, 0xc0000083, 0xc0000100, 0xc0000101, 0xc0000102
	mov $\msr, %ecx
	TRY wrmsr
	.endr
	END

SNIPPET pcid, LONG
	mov %cr4, %rax
	or $1 << 17, %eax
	TRY mov %rax, %cr4
	mov %cr4, %rbx
	VAL %ebx
	mov %cr3, %rbx
	or $5, %rbx
	mov %rbx, %cr3
	mov %cr3, %rbx
	VAL %ebx
	# not to be set while CR3 has a PCID, nor PG cleared
	bts $63, %rbx
	TRY mov %rbx, %cr3
	mov %cr3, %rbx
	VALQ %rbx
	mov %cr4, %rax
	and $~(1 << 17), %eax
	TRY mov %rax, %cr4
	or $1 << 17, %eax
	TRY mov %rax, %cr4
	END

SNIPPET invpcid_faults, LONG
	movq $0, SCRATCH
	movq $0, SCRATCH + 8
	mov $4, %ebx
	TRY invpcid SCRATCH, %rbx
	mov $2, %ebx
	TRY invpcid SCRATCH, %rbx
	xor %ebx, %ebx
	TRY invpcid SCRATCH, %rbx
	USER invpcid SCRATCH, %rbx
	movq $0x1000, SCRATCH
	TRY invpcid SCRATCH, %rbx
	movq $0, SCRATCH
	movl $0x8000, SCRATCH + 12
	TRY invpcid SCRATCH, %rbx
	END

SNIPPET pae_pdpte, PAE
	# PDPTEs are loaded at MOV CR3
	movl $0, PDPT
	mov $PAGE1, %esi
	movl $0x77, (%esi)
	VAL (%esi)
	movl $PD + 1, PDPT
	# reserved bits make MOV CR3 fault
	movl $PD + 3, PDPT + 8
	mov %cr3, %ebx
	TRY mov %ebx, %cr3
	movl $PD + 1, PDPT + 8
	TRY mov %ebx, %cr3
	mov $0x40000000 + PAGE1, %esi
	VAL (%esi)
	movl $0, PDPT + 8
	mov %ebx, %cr3
	TRY mov (%esi), %ebx
	USER mov %ebx, (%esi)
	END

SNIPPET page_high_half, LONG
	movq $PDPT + 7, PML4 + 8 * 511
	movl $0x13572468, PAGE1
	mov $0xffffff8000000000 + PAGE1, %rsi
	VAL (%rsi)
	movq $0, PML4 + 8 * 511
	invlpg (%rsi)
	TRY mov (%rsi), %ebx
	END

SNIPPET cr2_of_user_string, LONG
	PTE64 PAGE2, PAGE2 + 3
	cld
	mov $PAGE1 + 0xff8, %edi
	mov $8, %ecx
	mov $0x5a5a5a5a, %eax
	USER rep stosl
	VAL %ecx
	VAL %edi
	VAL PAGE1 + 0xffc
	END
