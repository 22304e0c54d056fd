/*
 * dialect_12_stats.c: what vCPUs count, in the VM's descriptor for `devkvm stat` (include/devkvm-stat.h), and as
 * KVM_GET_STATS_FD shows it.
 *
 * Invariant: counters are written by the vCPU's own thread, or under its lock. What the engine counts by itself is
 * copied when KVM_RUN returns and when an interrupt is delivered; a descriptor of KVM_GET_STATS_FD is as fresh.
 */
#define _GNU_SOURCE
#include "dialect_12.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../base/sys.h"
#include "../jit/jit.h"

#define NAME_SIZE 48
#define STAT_FILE DEVKVM_STAT_VCPU(VM_MAX_VCPUS)

/* struct kvm_stats_desc with its name, which there has no size. */
struct stat_desc {
	u32 flags;
	s16 exponent;
	u16 size;
	u32 offset, bucket_size;
	char name[NAME_SIZE];
};
_Static_assert(offsetof(struct stat_desc, name) == offsetof(struct kvm_stats_desc, name), "kvm_stats_desc");

/* What a KVM_GET_STATS_FD file holds. */
struct stat_file {
	struct kvm_stats_header head;
	char id[NAME_SIZE];
	struct stat_desc desc[DEVKVM_N_COUNTERS];
	u64 data[DEVKVM_N_COUNTERS];
};

#define NAME_OF(name, what) #name,
static const char *const names[] = {DEVKVM_COUNTERS(NAME_OF)};
/* A VM's own. */
static const char *const vm_names[] = {"vcpus", "memslots"};

int stat12_vm(struct vm12 *x)
{
	int fd = sealed_memfd(DEVKVM_STAT_NAME, STAT_FILE);
	void *p;

	if (fd < 0)
		return fd;
	p = sys_mmap(NULL, STAT_FILE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
	if (p == MAP_FAILED) {
		sys_close(fd);
		return -ENOMEM;
	}
	madvise(p, STAT_FILE, MADV_DONTFORK);
	x->stat = p;
	x->stat->version = 1;
	x->stat->counters = DEVKVM_N_COUNTERS;
	x->stat->max_vcpus = VM_MAX_VCPUS;
	x->stat->pid = (u32)getpid();
	x->stat->translator = jit_wanted();
	x->stat->magic = DEVKVM_STAT_MAGIC;
	return fd;
}

void stat12_vm_free(struct vm12 *x)
{
	if (x->stat)
		munmap(x->stat, STAT_FILE);
	if (x->stat_file)
		munmap(x->stat_file, sizeof(struct stat_file));
	if (x->stat_fd > 0)
		sys_close(x->stat_fd);
}

void stat12_vcpu(struct kvm_vcpu *kv)
{
	struct vm12 *x = kv->cpu.vm->x12;

	x->stat->tsc_khz = tsc_khz();
	kv->x12->stat = (u64 *)(void *)((u8 *)x->stat + DEVKVM_STAT_VCPU(kv->cpu.id));
	if (kv->cpu.id >= x->stat->n_vcpus)
		x->stat->n_vcpus = kv->cpu.id + 1;
}

void stat12_vcpu_free(struct vcpu12 *x)
{
	if (x->stat_file)
		munmap(x->stat_file, sizeof(struct stat_file));
	if (x->stat_fd > 0)
		sys_close(x->stat_fd);
}

void stat12_publish(struct kvm_vcpu *kv)
{
	struct vcpu12 *x = kv->x12;
	u64 *s = x->stat;

	s[DEVKVM_instructions] = kv->cpu.n_insns;
	s[DEVKVM_tlb_misses] = kv->cpu.mmu.tlb_misses;
	jit_count(&kv->cpu, &s[DEVKVM_translations], &s[DEVKVM_code_bytes]);
	if (unlikely(x->stat_file != NULL))
		memcpy(x->stat_file->data, s, sizeof(x->stat_file->data));
}

void stat12_exit(struct kvm_vcpu *kv, long rc)
{
	static const u8 counter[] = {
	        [KVM_EXIT_IO] = DEVKVM_io_exits,
	        [KVM_EXIT_MMIO] = DEVKVM_mmio_exits,
	        [KVM_EXIT_HLT] = DEVKVM_halt_exits,
	        [KVM_EXIT_DEBUG] = DEVKVM_debug_exits,
	        [KVM_EXIT_IRQ_WINDOW_OPEN] = DEVKVM_irq_window_exits,
	        [KVM_EXIT_X86_RDMSR] = DEVKVM_msr_exits,
	        [KVM_EXIT_X86_WRMSR] = DEVKVM_msr_exits,
	};
	u32 reason = kv->x12->run->exit_reason;
	u64 *s = kv->x12->stat;

	s[DEVKVM_exits]++;
	if (rc == -EINTR)
		s[DEVKVM_signal_exits]++;
	else
		s[reason < ARRAY_SIZE(counter) && counter[reason] ? counter[reason] : DEVKVM_other_exits]++;
	stat12_publish(kv);
}

/* A new file of `n` counters; *out: our mapping. The file's descriptor, or -errno. */
static int stat_new(const char *id, const char *const *name, unsigned n, bool grow, struct stat_file **out)
{
	int fd = sealed_memfd("kvm-stats", sizeof(struct stat_file));
	struct stat_file *f;

	if (fd < 0)
		return fd;
	f = sys_mmap(NULL, sizeof(*f), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (f == MAP_FAILED) {
		sys_close(fd);
		return -ENOMEM;
	}
	f->head = (struct kvm_stats_header){.name_size = NAME_SIZE,
	                                    .num_desc = n,
	                                    .id_offset = offsetof(struct stat_file, id),
	                                    .desc_offset = offsetof(struct stat_file, desc),
	                                    .data_offset = offsetof(struct stat_file, data)};
	snprintf(f->id, sizeof(f->id), "%s", id);
	for (unsigned k = 0; k < n; k++) {
		f->desc[k].flags = (grow ? KVM_STATS_TYPE_CUMULATIVE : KVM_STATS_TYPE_INSTANT) | KVM_STATS_UNIT_NONE |
		                   KVM_STATS_BASE_POW10;
		f->desc[k].size = 1;
		f->desc[k].offset = k * 8;
		snprintf(f->desc[k].name, NAME_SIZE, "%s", name[k]);
	}
	*out = f;
	return fd;
}

/* Each descriptor reads from its own position. */
static long stat_open(int fd)
{
	char path[32];
	int again;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDONLY | O_CLOEXEC);
	return again < 0 ? -errno : again;
}

long vm_stats_fd(struct vm *vm, unsigned long arg)
{
	struct vm12 *x = vm->x12;
	char id[NAME_SIZE];
	long rc = 0;

	pthread_mutex_lock(&vm->lock);
	if (!x->stat_file) {
		snprintf(id, sizeof(id), "kvm-%d", getpid());
		rc = stat_new(id, vm_names, ARRAY_SIZE(vm_names), false, &x->stat_file);
		x->stat_fd = rc < 0 ? -1 : (int)rc;
	}
	if (rc >= 0)
		rc = stat_open(x->stat_fd);
	stat12_vm_publish(vm);
	pthread_mutex_unlock(&vm->lock);
	return rc;
}

void stat12_vm_publish(struct vm *vm)
{
	struct vm12 *x = vm->x12;

	if (!x->stat_file)
		return;
	x->stat_file->data[0] = vm->n_vcpu;
	x->stat_file->data[1] = vm->mem.nslots;
}

long vcpu_stats_fd(struct kvm_vcpu *kv, unsigned long arg)
{
	struct vcpu12 *x = kv->x12;
	char id[NAME_SIZE];
	long rc = 0;

	if (!x->stat_file) {
		snprintf(id, sizeof(id), "kvm-%d/vcpu-%u", getpid(), kv->cpu.id);
		rc = stat_new(id, names, ARRAY_SIZE(names), true, &x->stat_file);
		x->stat_fd = rc < 0 ? -1 : (int)rc;
	}
	if (rc < 0)
		return rc;
	stat12_publish(kv);
	return stat_open(x->stat_fd);
}
