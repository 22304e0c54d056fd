# s_fpu.S: when x87, MMX and SSE instructions raise #NM, #MF, #UD, #XM: CR0.TS EM MP NE, CR4.OSFXSR OSXMMEXCPT OSXSAVE.
#include "snip.h"
#include "snip.inc"
	.text
.macro CR0_SET bits
	mov %cr0, %rax
	or $\bits, %eax
	mov %rax, %cr0
.endm
.macro CR0_CLEAR bits
	mov %cr0, %rax
	and $~\bits, %eax
	mov %rax, %cr0
.endm
.macro CR4_SET bits
	mov %cr4, %rax
	or $\bits, %eax
	mov %rax, %cr4
.endm

SNIPPET fpu_ts, LONG
	CR4_SET 0x200
	CR0_SET 8
	TRY fnop
	TRY fninit
	TRY emms
	TRY xorps %xmm0, %xmm0
	TRY fxsave PAGE1
	TRY fwait
	TRY ldmxcsr SCRATCH
	TRY prefetcht0 SCRATCH
	TRY sfence
	TRY movnti %eax, SCRATCH
	TRY crc32 %ecx, %ebx
	CR0_SET 2
	TRY fwait
	clts
	TRY fwait
	END

SNIPPET fpu_em, LONG
	CR4_SET 0x200
	CR0_SET 4
	TRY fnop
	TRY fninit
	TRY fwait
	TRY emms
	TRY xorps %xmm0, %xmm0
	TRY fxsave PAGE1
	TRY movnti %eax, SCRATCH
	CR0_SET 8
	TRY emms
	TRY xorps %xmm0, %xmm0
	TRY fnop
	END

SNIPPET fpu_osfxsr, LONG
	TRY xorps %xmm0, %xmm0
	TRY ldmxcsr SCRATCH
	TRY pxor %mm0, %mm0
	TRY emms
	TRY fxsave PAGE1
	TRY movnti %eax, SCRATCH
	TRY movdqa %xmm0, %xmm1
	CR4_SET 0x200
	TRY xorps %xmm0, %xmm0
	END

SNIPPET fpu_mf, LONG
	fninit
	movw $0x37b, SCRATCH
	fldcw SCRATCH
	fld1
	fldz
	TRY fdivrp
	TRY fnop
	TRY fld1
	TRY fwait
	TRY emms
	fnstsw %ax
	movzwl %ax, %ebx
	and $0xff, %ebx
	VAL %ebx
	fnclex
	TRY fwait
	END

SNIPPET fpu_xm, LONG
	CR4_SET 0x200
	movl $0x1d80, SCRATCH
	ldmxcsr SCRATCH
	mov $0x3f800000, %eax
	movd %eax, %xmm0
	xorps %xmm1, %xmm1
	TRY divss %xmm1, %xmm0
	CR4_SET 0x400
	TRY divss %xmm1, %xmm0
	stmxcsr SCRATCH
	VAL SCRATCH
	END

SNIPPET fpu_sse_alignment, LONG
	CR4_SET 0x200
	TRY movaps PAGE1 + 8, %xmm0
	TRY movups PAGE1 + 8, %xmm0
	TRY addps PAGE1 + 4, %xmm0
	TRY movaps %xmm0, PAGE1 + 1
	TRY fxsave PAGE1 + 8
	TRY fxsave PAGE1 + 16
	TRY movntps %xmm0, PAGE1 + 8
	TRY lddqu PAGE1 + 1, %xmm0
	END

SNIPPET fpu_mxcsr_reserved, LONG
	CR4_SET 0x200
	movl $0x80001f80, SCRATCH
	TRY ldmxcsr SCRATCH
	movl $0x1f80, SCRATCH
	TRY ldmxcsr SCRATCH
	fxsave PAGE1
	movl $0x10000, PAGE1 + 24
	TRY fxrstor PAGE1
	END

SNIPPET fpu_avx_gates, LONG
	CR4_SET 0x200
	TRY vxorps %ymm0, %ymm0, %ymm0
	CR4_SET 0x40000
	TRY vxorps %ymm0, %ymm0, %ymm0
	xor %ecx, %ecx
	xor %edx, %edx
	mov $7, %eax
	xsetbv
	TRY vxorps %ymm0, %ymm0, %ymm0
	CR0_SET 8
	TRY vxorps %ymm0, %ymm0, %ymm0
	clts
	mov $3, %eax
	xsetbv
	TRY vxorps %ymm0, %ymm0, %ymm0
	END

SNIPPET fpu_xsave_faults, LONG
	CR4_SET 0x200
	TRY xsave PAGE1
	CR4_SET 0x40000
	mov $3, %eax
	xor %edx, %edx
	TRY xsave PAGE1
	TRY xsave PAGE1 + 32
	movq $4, PAGE1 + 512
	TRY xrstor PAGE1
	movq $0, PAGE1 + 512
	movq $1, PAGE1 + 520
	TRY xrstor PAGE1
	movq $0, PAGE1 + 520
	TRY xrstor PAGE1
	TRY fwait
	END

SNIPPET fpu_v86_real, REAL
	mov %cr0, %eax
	or $4, %al
	mov %eax, %cr0
	movl $(1f - BLOB), RESUME
	mov %sp, RESUME_SP
	fninit
1:	movl $0, RESUME
	END
