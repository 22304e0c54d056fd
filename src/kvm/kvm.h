/*
 * kvm.h: VMs and vCPUs as the ioctls see them, and the doors of the engine to src/front. One internal header for
 * src/kvm.
 *
 * Locks, in the order they are taken:
 *   kvm_vcpu.lock   protects: one vCPU's state; held through KVM_RUN, so other ioctls on that vCPU wait as on Linux
 *   vm.lock         protects: vm.vcpu[], memslots (with all vCPUs stopped), debug state
 *   vm.run_lock     protects: vm.stop; held for moments only
 */
#ifndef DEVKVM_KVM_KVM_H
#define DEVKVM_KVM_KVM_H

#include <pthread.h>
#include <sys/types.h>

#include "../cpu/cpu.h"

#define VM_MAX_VCPUS 1024
#define VM_MAX_VCPUS_2006 64
#define VM_MAX_SLOTS_2006 32

struct kvm_vcpu {
	struct vcpu cpu; /* first: struct vcpu * and struct kvm_vcpu * convert */
	pthread_mutex_t lock;
	_Atomic(u64) irqs[4]; /* queued external interrupts, a bit each */
	bool mmio_read_out;   /* the last exit was an MMIO read that waits for its answer */
	bool bus_locked;      /* it has stopped all others for a split lock */
	u8 last_len;          /* length of the last exit's instruction */
	u64 mmio_rip;
	struct vcpu12 *x12; /* dialect_12.h; NULL: a vCPU of 2006 */
};

struct vm {
	pthread_mutex_t lock;
	struct vm_mem mem;
	int memfd; /* 2006: guest memory, offset = GPA; also the client's descriptor. Ours is a dup of it. Else -1. */
	u64 memfd_size;
	struct memslot *slot[VM_MAX_SLOTS_2006];
	struct kvm_vcpu *vcpu[VM_MAX_VCPUS];
	_Atomic(unsigned) n_vcpu; /* one past the highest that is there */

	pthread_mutex_t run_lock;
	pthread_cond_t run_cond;
	_Atomic(unsigned) running; /* vCPUs that execute guest instructions */
	_Atomic(bool) stop;        /* a thread has, or waits for, all vCPUs stopped; changes with run_lock */
	bool held;                 /* kvm_file_hold() has; protected by its caller */
	u64 held_at, held_size;

	struct vm12 *x12; /* dialect_12.h; NULL: a VM of 2006 */
};

/* ---- vm.c -------------------------------------------------------------------------------------------------------- */

/* A new VM around a memfd descriptor (which the VM dups; -1: memory is the client's). -errno or 0. */
int vm_create(int memfd, struct vm **out);
void vm_destroy(struct vm *vm);
/* The vCPU is complete and can be found. With vm.lock. */
void vm_add_vcpu(struct vm *vm, unsigned id, struct kvm_vcpu *kv);
/* Stops all vCPUs at an instruction boundary; they stay stopped until vm_resume(). The caller may itself be a vCPU. */
void vm_stop(struct vm *vm, struct vcpu *self);
void vm_resume(struct vm *vm, struct vcpu *self);
/* For a request that changes what running vCPUs read: takes vm.lock and stops them; and the other way round. */
void vm_begin_change(struct vm *vm);
void vm_end_change(struct vm *vm);
/* The calling thread's vCPU starts / ends executing guest instructions. */
void vm_enter(struct vm *vm);
void vm_leave(struct vm *vm);
/* All vCPUs must forget translations and decoded code. With the vCPUs stopped. */
void vm_flush_all(struct vm *vm);
/* They must look again at what of [address, address + size) is there, and what it holds. With the vCPUs stopped. */
void vm_memory_changed(struct vm *vm, u64 address, u64 size);
void vm_flush_writes(struct vm *vm);
/* Guest memory out of the memfd: maps [gpa, gpa + size), growing the file. NULL: no memory. */
u8 *vm_map(struct vm *vm, gpa_t gpa, u64 size);

/* ---- vcpu.c ------------------------------------------------------------------------------------------------------ */

/* A vCPU after RESET, with an engine: 0, or -errno. It is nobody's yet: vm_add_vcpu(). */
int vcpu_create(struct vm *vm, u32 id, const struct vcpu_ops *ops, struct kvm_vcpu **out);
void vcpu_destroy(struct kvm_vcpu *kv);
static inline struct kvm_vcpu *kvm_vcpu_of(struct vcpu *v)
{
	return (struct kvm_vcpu *)v;
}
/* Queue of external interrupts; may be called from any thread. */
void vcpu_queue_irq(struct kvm_vcpu *kv, u8 vector);
bool vcpu_irq_pending(struct vcpu *v);
/* -1: none waits. */
int vcpu_irq_take_lowest(struct vcpu *v);

/* ---- run.c ------------------------------------------------------------------------------------------------------- */

/* Runs the vCPU until it exits: v->exit says why. The vCPU's lock is held. */
void vcpu_run(struct kvm_vcpu *kv);
/* The same in three parts: between run_begin() and run_end() the thread counts as running, signals are held back, and
 * run_engine() may be called again and again. Everything that changes under vm_stop() may be read without a lock. */
void run_begin(struct kvm_vcpu *kv);
void run_engine(struct kvm_vcpu *kv);
void run_end(struct kvm_vcpu *kv);
/* For the front's signal wrapper, async-signal-safe: is the calling thread executing in the engine, where a client's
 * handler must not run? If so the run is told to end with EXIT_INTR. */
bool run_interrupted_by_signal(void);
/* The same for a signal that was put aside on the way to a run: the thread's next run ends at once (or not). `yes`. */
bool run_interrupted_early(bool yes);
/* The vCPU that the calling thread executes, between run_begin() and run_end(); else NULL. */
struct vcpu *run_current(void);
/* KVM_SET_SIGNAL_MASK: `to` is the thread's mask from run_mask_swap() to run_mask_back(), inside run_begin() and
 * run_end(). A signal that it lets through and the client's own mask does not ends the run and stays pending. */
void run_mask_swap(u64 to);
void run_mask_back(void);
/* For the front: is it swapped, and for what? And what sees to it that signals without handlers are noticed. */
bool run_mask_swapped(u64 *was);
void run_set_watcher(void (*watch)(u64 signals));
/* First thing in each thread of the engine's own, and what the front does there. */
void run_thread_begin(void);
void run_set_thread_hook(void (*begins)(void));
/* Did a signal come to this thread since run_begin()? */
bool run_signalled(void);

/* ---- hole.c: memory of the client that goes away ----------------------------------------------------------------- */

/* The engine, until it exits; a fault in the client's memory ends it with EXIT_GONE or EXIT_INTERNAL. */
void hole_run(struct kvm_vcpu *kv);
/* For the front's handler of SIGSEGV and SIGBUS: was it such a fault? Then execution may go on with the context. */
bool hole_fault(u64 address, void *ucontext);
/* Does a slot of the VM lie in [address, address + size) of the client's memory? */
bool vm_lends(struct vm *vm, u64 address, u64 size);

/* ---- the ioctl doors: file.c ------------------------------------------------------------------------------------- */

/* What one of our descriptors is: an open of /dev/kvm, or something an ioctl made. */
struct kvm_file;

/* Opens: `*fd` is a new descriptor (a memfd). -errno or 0. `cloexec` as O_CLOEXEC. */
int kvm_file_open(bool cloexec, int *fd, struct kvm_file **out);
/* An ioctl: its result, or -errno. When the request made a descriptor, *made_fd is its number and *made what it is.
 * `foreign`: the file was made by a parent of this process, which may not use it for more than a new VM. */
long kvm_file_ioctl(struct kvm_file *file, unsigned long req, unsigned long arg, bool foreign, struct kvm_file **made,
                    int *made_fd);
/* Pieces of [offset, offset + length) that no memslot covers read as SIGBUS: returns the length of the piece at
 * `offset` and whether it is covered. */
u64 kvm_file_mmap_piece(struct kvm_file *file, u64 offset, u64 length, bool *covered);
/* Before and after the mmap() of a descriptor: -errno when it cannot be mapped; puts the VM's shared pages in place. */
int kvm_file_mmap_check(const struct kvm_file *file);
int kvm_file_mmap_fix(const struct kvm_file *file, u8 *base, u64 length, int prot, int flags, u64 offset);
void kvm_file_free(struct kvm_file *file);
/* The engine's own descriptor of the file's memory, which is not one of the client's; -1: there is none. */
int kvm_file_own_fd(const struct kvm_file *file);
/* What the descriptor of another process' file is, by the name it has in /proc/self/fd: a file whose calls give EIO,
 * but for a system descriptor's. NULL: none of ours, or no memory. */
struct kvm_file *kvm_file_foreign(const char *link);
/* The client is about to change the mapping of its memory [address, address + size). If the file's VM uses it, its
 * vCPUs are stopped until kvm_file_release(), and forget it. True: they are. The caller lets nobody else in. */
bool kvm_file_hold(struct kvm_file *file, u64 address, u64 size);
void kvm_file_release(struct kvm_file *file);
/* What the file belongs to, a VM or nothing: the same for files that keep each other alive. */
const void *kvm_file_owner(const struct kvm_file *file);
/* In a fork()ed child: lets go of what must not outlive the parent's VM. */
void kvm_file_forked(struct kvm_file *file);

/* dialect_2006.c. -ENOTTY: not one of its requests. */
long dialect_2006_ioctl(struct vm *vm, unsigned long req, unsigned long arg);

/* dialect_12*.c: version 12 of the interface, by the descriptor the request is for. A request that makes a descriptor
 * returns its number and says in *made what it stands for (FILE_NONE: nothing was made). -ENOTTY: no such request. */
enum file_kind { FILE_NONE, FILE_SYSTEM, FILE_VM, FILE_VCPU, FILE_DEVICE };
struct made {
	enum file_kind kind;
	struct vm *vm;
	struct kvm_vcpu *kv;
	int fd; /* the descriptor, where the request returns 0 instead */
};
long dialect_12_system(unsigned long req, unsigned long arg, struct made *made);
long dialect_12_vm(struct vm *vm, unsigned long req, unsigned long arg, struct made *made);
long dialect_12_vcpu(struct kvm_vcpu *kv, unsigned long req, unsigned long arg, struct made *made);
long dialect_12_device(struct vm *vm, unsigned long req, unsigned long arg);
/* A descriptor of the VM, or of one of its vCPUs, is gone: the VM ends with the last. */
void dialect_12_put(struct vm *vm);
/* The page that all vCPU descriptors of a VM share, as a descriptor, and its offset in each. */
int dialect_12_shared_page(const struct vm *vm, u64 *offset);

#endif
