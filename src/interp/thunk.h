/*
 * thunk.h: pieces of host code that run one guest instruction's own opcode on values in memory, made once per
 * instruction form and shared by all vCPUs of the process.
 *
 * A thunk loads its inputs from the pointers it is given, runs the instruction, stores the results, and leaves the host
 * as the C ABI wants it: MXCSR, FCW and callee-saved registers as before, x87 stack empty, upper halves of YMM zero.
 * Register numbers are normalised (guest XMM13 may run as host XMM1), so the number of thunks is bounded by forms times
 * immediates, not by what guests use.
 */
#ifndef DEVKVM_INTERP_THUNK_H
#define DEVKVM_INTERP_THUNK_H

#include "../base/types.h"

struct insn;

/* Where a thunk finds and leaves control registers. */
struct thunk_ctx {
	u32 mxcsr_in;  /* floating point forms: control bits to run with */
	u32 mxcsr_out; /* what the instruction left */
	u32 mxcsr_host;
	u32 env_host[7]; /* x87: FNSTENV */
};

/*
 * SIMD: `rm` the ModRM.rm operand (register or memory image), `reg` ModRM.reg, `vvvv` VEX.vvvv (an implicit XMM0 for
 * legacy forms), `is4` the fourth register (implicit XMM0 output of PCMPxSTRM), `gpr` the general register (for
 * PCMPxSTRx the whole file). Returns RFLAGS for forms with THUNK_FLAGS.
 * x87: `rm` the memory operand, `reg` a 64-byte-aligned FXSAVE image, `vvvv` unused, `is4` (as an integer) RFLAGS for
 * FCMOVcc.
 */
typedef u64 (*thunk_fn)(void *rm, void *reg, void *vvvv, void *is4, u64 *gpr, struct thunk_ctx *ctx);

/* thunk.props */
#define THUNK_FP BIT(0)      /* reads and writes MXCSR */
#define THUNK_FLAGS BIT(1)   /* result in RFLAGS */
#define THUNK_VEX BIT(2)     /* needs AVX state; registers are 32 bytes */
#define THUNK_MMX BIT(3)     /* has an MMX operand */
#define THUNK_XMM BIT(4)     /* has an XMM operand */
#define THUNK_LOAD BIT(5)    /* memory source of msize bytes */
#define THUNK_STORE BIT(6)   /* memory destination of msize bytes */
#define THUNK_ALIGN BIT(7)   /* memory operand must be aligned to msize */
#define THUNK_GPR_IN BIT(8)  /* general register source */
#define THUNK_GPR_OUT BIT(9) /* general register destination */
#define THUNK_STR BIT(10)    /* PCMPxSTRx: EAX, EDX, ECX, XMM0 */
#define THUNK_RM_MM BIT(11)
#define THUNK_REG_MM BIT(12)
#define THUNK_X87_STORE BIT(13) /* x87: memory destination */
#define THUNK_DST_RM BIT(14)
#define THUNK_DST_REG BIT(15)
#define THUNK_DST_VVVV BIT(16)

struct thunk {
	thunk_fn fn;
	u32 props;
	/* operand numbers (insn->op[]) by encoding slot; THUNK_NO_OP when the slot is not a register */
	u8 k_reg, k_vvvv, k_rm, k_is4, k_gpr;
	u8 msize;
	struct thunk *next;
	u32 hash, len;
};

#define THUNK_NO_OP 4 /* op[4] of a SIMD instruction is never used: reads as register 0 */

/* Makes sure that the process can have executable memory: 0, or -errno. Call at creation of a vCPU. */
int thunk_init(void);

/*
 * A thunk of `code` with the fields props..msize of `like`; shared with an equal earlier one. NULL when memory is
 * short. Any thread.
 */
const struct thunk *thunk_get(const u8 *code, unsigned len, const struct thunk *like);

/* Longest code thunk_get() takes. */
#define THUNK_CODE_MAX 128

#endif
