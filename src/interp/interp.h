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
/* What the last run left half done, an instruction or a delivery with answered MMIO reads or writes still to go, goes
 * on, and nothing else. True: there is something for the client again, v->exit is filled. */
bool interp_finish(struct vcpu *v);
/* Drops all decoded code (memory layout changed). */
void interp_flush(struct vcpu *v);
/* What the last run left half done, an instruction or a delivery that waits for MMIO answers, is void. */
void interp_abandon(struct vcpu *v);
/* For another engine. The loop of interp_run() around `run`, which runs instructions until there is something to look
 * at: it returns what interp_not_fetched() and its kin return. */
enum interp_next { INTERP_GO_ON, INTERP_LEAVE };
void interp_run_with(struct vcpu *v, int (*run)(struct vcpu *v));
int interp_one_block(struct vcpu *v);                           /* one block, the interpreter's way */
int interp_not_fetched(struct vcpu *v, int rc);                 /* a fetch returned STEP_EXCP or STEP_EXIT */
int interp_after(struct vcpu *v, const struct insn *i, int rc); /* an instruction's handler returned `rc` */
int interp_fetch(struct vcpu *v, gva_t lin, const u8 **p);      /* host pointer to code */
/* decode() with a memory, and the handler chosen: memo.c. */
int interp_decode(struct vcpu *v, enum decode_mode mode, const u8 *bytes, unsigned avail, struct insn *out);
bool interp_knows(const struct insn *i); /* or its handler raises #UD */
/* For a check of another engine: instructions one after the other from RIP, at most `max`, up to the first that jumps,
 * posts MMIO, faults or stops, and before one that `not_this` names. Nothing is delivered and no event looked at.
 * *done: how many are complete. */
int interp_walk(struct vcpu *v, unsigned max, bool (*not_this)(const struct insn *), unsigned *done);
/* Instructions after which nothing in a block can run. */
bool interp_ends_block(const struct insn *i);
/* Counts entries to the loop, interrupts delivered, and changes of memory: code that others wrote is seen then. */
u64 interp_epoch(const struct vcpu *v);
/* mmu_ops.code_written of vCPUs that the interpreter runs. */
void interp_code_written(struct mmu *m, gpa_t gpa, unsigned len);

/* op_*.c */
insn_fn op_int_find(const struct insn *i);
insn_fn op_string_find(const struct insn *i);
insn_fn op_flow_find(const struct insn *i);
insn_fn op_sys_find(const struct insn *i);
insn_fn op_x87_find(const struct insn *i);
insn_fn op_simd_find(const struct insn *i);

/* Does this rotate leave OF as it was, on this host? Undefined by the manual, so the host decides. */
bool op_shift_keeps_of(const struct insn *i);

/* Stack access in the current stack width, shared by op_int and op_flow: `size` 2, 4 or 8. push commits RSP. */
int stack_push(struct vcpu *v, u64 val, unsigned size);
int stack_pop(struct vcpu *v, u64 *val, unsigned size); /* reads and commits RSP */
/* Sets SP, ESP or RSP according to the stack width. */
void stack_set_sp(struct vcpu *v, u64 sp);

#endif
