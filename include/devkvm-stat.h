/*
 * devkvm-stat.h: where a running VM keeps its counters, for whoever wants to watch (`devkvm stat`).
 *
 * The descriptor of a VM is a memfd of this name; any process that may open /proc/PID/fd/N maps it read-only. The page
 * at 0 holds struct devkvm_stat; the counters of vCPU n follow at DEVKVM_STAT_VCPU(n), in the order of enum
 * devkvm_counter. Each counter has one writer and only grows.
 */
#ifndef DEVKVM_STAT_H
#define DEVKVM_STAT_H

#include <stdint.h>

#define DEVKVM_STAT_NAME "devkvm-vm"
#define DEVKVM_STAT_MAGIC 0x54415453564b4445ull
#define DEVKVM_STAT_VCPU(n) (4096 + (uint64_t)(n)*512)

struct devkvm_stat {
	uint64_t magic;
	uint32_t version;   /* 1 */
	uint32_t counters;  /* how many each vCPU has */
	uint32_t max_vcpus; /* what the file has room for */
	uint32_t n_vcpus;   /* one past the highest that was made */
	uint32_t pid;
	uint32_t translator; /* 1: the translator runs guests, 0: the interpreter */
	uint64_t tsc_khz;
};

/* name, what it counts */
#define DEVKVM_COUNTERS(X)                                                                                             \
	X(exits, "returns of KVM_RUN")                                                                                 \
	X(io_exits, "port accesses that the client answers")                                                           \
	X(mmio_exits, "memory accesses that the client answers")                                                       \
	X(halt_exits, "HLT")                                                                                           \
	X(halt_wakeup, "ends of HLT")                                                                                  \
	X(halt_attempted_poll, "HLTs that looked for their end before they slept")                                     \
	X(halt_successful_poll, "those that found it")                                                                 \
	X(signal_exits, "returns for a signal or an immediate exit")                                                   \
	X(irq_window_exits, "returns because an interrupt may come")                                                   \
	X(msr_exits, "MSR accesses that the client answers")                                                           \
	X(debug_exits, "breakpoints and steps of the client")                                                          \
	X(other_exits, "other returns")                                                                                \
	X(hypercalls, "VMCALL and VMMCALL")                                                                            \
	X(irq_injections, "interrupts delivered")                                                                      \
	X(nmi_injections, "NMIs requested")                                                                            \
	X(smis, "entries to system management mode")                                                                   \
	X(instructions, "instructions that the interpreter ran")                                                       \
	X(tlb_misses, "address translations that walked page tables")                                                  \
	X(translations, "blocks translated to host code")                                                              \
	X(code_bytes, "bytes of host code made")                                                                       \
	X(guest_cycles, "host TSC ticks inside KVM_RUN")

#define DEVKVM_COUNTER_ENUM(name, what) DEVKVM_##name,
enum devkvm_counter { DEVKVM_COUNTERS(DEVKVM_COUNTER_ENUM) DEVKVM_N_COUNTERS };

#endif
