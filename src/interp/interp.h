/*
 * interp.h: the interpreter, the reference meaning of every instruction.
 *
 * interp_run() is the loop; op_*.c hold the handlers, each file a group, each with a find function that maps a decoded
 * instruction to its handler (NULL: not one of ours). An instruction that nobody finds, or whose CPUID bit is not
 * offered, raises #UD.
 */
#ifndef DEVKVM_INTERP_INTERP_H
#define DEVKVM_INTERP_INTERP_H

#include "../cpu/cpu.h"
#include "../cpu/vmem.h"

/* interp.c */
int interp_create(struct vcpu *v); /* -ENOMEM or 0 */
void interp_destroy(struct vcpu *v);
/* Runs until there is something for the client: v->exit is filled. */
void interp_run(struct vcpu *v);
/* Drops all decoded code (memory layout changed). */
void interp_flush(struct vcpu *v);
/* mmu_ops.code_written of vCPUs that the interpreter runs. */
void interp_code_written(struct mmu *m, gpa_t gpa, unsigned len);

/* op_*.c */
insn_fn op_int_find(const struct insn *i);
insn_fn op_string_find(const struct insn *i);
insn_fn op_flow_find(const struct insn *i);
insn_fn op_sys_find(const struct insn *i);
insn_fn op_x87_find(const struct insn *i);
insn_fn op_simd_find(const struct insn *i);

/* Stack access in the current stack width, shared by op_int and op_flow: `size` 2, 4 or 8. push commits RSP. */
int stack_push(struct vcpu *v, u64 val, unsigned size);
int stack_pop(struct vcpu *v, u64 *val, unsigned size); /* reads and commits RSP */
/* Sets SP, ESP or RSP according to the stack width. */
void stack_set_sp(struct vcpu *v, u64 sp);

#endif
