/*
 * jit.h: the translator: guest code → host code, same meaning as the interpreter, much faster. doc/translator.md.
 *
 * A vCPU has a translator when v->jit is set. What it does not translate (single-step and the like) it gives to the
 * interpreter, block by block.
 */
#ifndef DEVKVM_JIT_JIT_H
#define DEVKVM_JIT_JIT_H

#include "../cpu/cpu.h"

/* Gives the vCPU a translator when DEVKVM_ENGINE asks for one (`jit`, `interp`) and executable memory can be had;
 * v->jit stays NULL otherwise. After interp_create(). */
void jit_create(struct vcpu *v);
void jit_destroy(struct vcpu *v);
/* As interp_run(). */
void jit_run(struct vcpu *v);
/* Drops all translations. With the vCPU stopped. */
void jit_flush(struct vcpu *v);
/* Memory slots changed, or others count: code is looked at before it runs again. With the vCPU stopped. */
void jit_slots_changed(struct vcpu *v);
/* The client changes the mapping of memory: code from there is compared before it runs again. With the vCPU stopped. */
void jit_memory_changed(struct vcpu *v, const u8 *hva, u64 size);
/* The vCPU sleeps, in its own thread: what other vCPUs wrote is looked at, so that they need not wait for it. */
void jit_asleep(struct vcpu *v);
/* mmu_ops.code_written, for vCPUs of both engines. */
void jit_code_written(struct mmu *m, gpa_t gpa, unsigned len);
/* How many blocks were translated, to how many bytes of code; untouched without a translator. */
void jit_count(const struct vcpu *v, u64 *blocks, u64 *bytes);
/* For a handler of SIGSEGV: is `host` in the vCPU's translated code? Then execution goes on at *go_on, with *rip in R8:
 * it returns to the dispatcher with registers stored, flags and RIP not exact. */
bool jit_abandon(struct vcpu *v, u64 host, u64 *rip, u64 *go_on);
/* The engine was left by a jump out of C code. True: translated code had called that on a short way, which leaves the
 * guest's registers where only it could find them; they are lost. */
bool jit_landed(struct vcpu *v);
/* DEVKVM_ENGINE: `jit` (also when unset) or `interp`. */
bool jit_wanted(void);

#endif
