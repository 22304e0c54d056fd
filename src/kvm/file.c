/*
 * file.c: what our descriptors are: which dialect an ioctl belongs to, and how they map.
 *
 * In the interface of 2006 every open is a virtual machine of its own; in version 12 an open makes VMs, and those make
 * vCPUs, each with its descriptor. The numbers of the two dialects never collide, so an open of /dev/kvm serves both.
 */
#define _GNU_SOURCE
#include "kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../include/devkvm-stat.h"
#include "../base/sys.h"

struct kvm_file {
	enum file_kind kind;
	struct vm *vm;       /* FILE_SYSTEM: the machine of 2006 */
	struct kvm_vcpu *kv; /* FILE_VCPU */
};

int kvm_file_open(bool cloexec, int *fd, struct kvm_file **out)
{
	struct kvm_file *file = calloc(1, sizeof(*file));
	int err;

	if (!file)
		return -ENOMEM;
	*fd = memfd_create("kvm-vm", cloexec ? MFD_CLOEXEC : 0);
	if (*fd < 0) {
		err = -errno;
		free(file);
		return err;
	}
	err = vm_create(*fd, &file->vm);
	if (err < 0) {
		sys_close(*fd);
		free(file);
		return err;
	}
	file->kind = FILE_SYSTEM;
	*out = file;
	return 0;
}

long kvm_file_ioctl(struct kvm_file *file, unsigned long req, unsigned long arg, bool foreign, struct kvm_file **made,
                    int *made_fd)
{
	struct kvm_file *f;
	struct made m = {0};
	long rc;

	if (foreign && file->kind != FILE_SYSTEM)
		return -EIO;
	switch (file->kind) {
	case FILE_VCPU:
		rc = dialect_12_vcpu(file->kv, req, arg, &m);
		break;
	case FILE_VM:
		rc = dialect_12_vm(file->vm, req, arg, &m);
		break;
	case FILE_DEVICE:
		rc = dialect_12_device(file->vm, req, arg);
		break;
	default:
		rc = dialect_12_system(req, arg, &m);
		if (rc == -ENOTTY)
			rc = foreign ? -EIO : dialect_2006_ioctl(file->vm, req, arg);
		if (rc == -ENOTTY)
			rc = -EINVAL;
	}
	if (likely(m.kind == FILE_NONE))
		return rc;
	*made_fd = m.fd ? m.fd : (int)rc;
	f = calloc(1, sizeof(*f));
	if (!f) {
		sys_close(*made_fd);
		dialect_12_put(m.vm);
		return -ENOMEM;
	}
	f->kind = m.kind;
	f->vm = m.vm;
	f->kv = m.kv;
	*made = f;
	return rc;
}

int kvm_file_mmap_check(const struct kvm_file *file)
{
	return file->kind == FILE_VM || file->kind == FILE_DEVICE ? -ENODEV : 0;
}

int kvm_file_mmap_fix(const struct kvm_file *file, u8 *base, u64 length, int prot, int flags, u64 offset)
{
	u64 at;
	int fd;

	if (file->kind != FILE_VCPU)
		return 0;
	fd = dialect_12_shared_page(file->vm, &at);
	if (at < offset || at >= offset + length)
		return 0;
	if (sys_mmap(base + (at - offset), PAGE_SIZE, prot, (flags & (MAP_SHARED | MAP_PRIVATE)) | MAP_FIXED, fd, 0) ==
	    MAP_FAILED)
		return -errno;
	return 0;
}

u64 kvm_file_mmap_piece(struct kvm_file *file, u64 offset, u64 length, bool *covered)
{
	struct vm *vm = file->vm;
	struct memslot *slot;
	u64 piece = length;

	if (file->kind != FILE_SYSTEM) {
		*covered = true;
		return piece;
	}
	pthread_mutex_lock(&vm->lock);
	slot = memslot_find(&vm->mem, offset);
	/* Past the file's end the kernel itself gives SIGBUS, until a slot comes to be there. */
	*covered = slot != NULL || offset >= vm->memfd_size;
	if (slot) {
		u64 left = slot->gpa + slot->size - offset;

		if (left < piece)
			piece = left;
	} else {
		for (unsigned n = 0; n < vm->mem.nslots; n++) {
			gpa_t start = vm->mem.slot[n]->gpa;

			if (start > offset && start - offset < piece)
				piece = start - offset;
		}
	}
	pthread_mutex_unlock(&vm->lock);
	return piece;
}

struct kvm_file *kvm_file_foreign(const char *link)
{
	static const struct {
		const char *link;
		enum file_kind kind;
	} names[] = {{"/memfd:kvm-vm (deleted)", FILE_SYSTEM},
	             {"/memfd:kvm-vcpu (deleted)", FILE_VCPU},
	             {"/memfd:kvm-vfio (deleted)", FILE_DEVICE},
	             {"/memfd:" DEVKVM_STAT_NAME " (deleted)", FILE_VM}};

	for (unsigned n = 0; n < ARRAY_SIZE(names); n++)
		if (strcmp(link, names[n].link) == 0) {
			struct kvm_file *file = calloc(1, sizeof(*file));

			if (file)
				file->kind = names[n].kind;
			return file;
		}
	return NULL;
}

bool kvm_file_hold(struct kvm_file *file, u64 address, u64 size)
{
	struct vm *vm = file->vm;

	/* In the interface of 2006 memory is the VM's own. */
	if (file->kind == FILE_SYSTEM || vm->held || !vm_lends(vm, address, size))
		return false;
	vm_stop(vm, run_current());
	vm->held = true;
	vm->held_at = address;
	vm->held_size = size;
	return true;
}

void kvm_file_release(struct kvm_file *file)
{
	if (file->kind == FILE_SYSTEM || !file->vm->held)
		return;
	vm_memory_changed(file->vm, file->vm->held_at, file->vm->held_size);
	file->vm->held = false;
	vm_resume(file->vm, run_current());
}

void kvm_file_free(struct kvm_file *file)
{
	if (file->kind == FILE_SYSTEM)
		vm_destroy(file->vm);
	else
		dialect_12_put(file->vm);
	free(file);
}

int kvm_file_own_fd(const struct kvm_file *file)
{
	return file->kind == FILE_SYSTEM ? file->vm->memfd : -1;
}

const void *kvm_file_owner(const struct kvm_file *file)
{
	return file->vm;
}

void kvm_file_forked(struct kvm_file *file)
{
	if (file->kind != FILE_SYSTEM)
		return;
	/* The mappings are MADV_DONTFORK; the descriptor is all that came along. */
	sys_close(file->vm->memfd);
	file->vm->memfd = -1;
}
