/*
 * file.c: one open of /dev/kvm: which dialect an ioctl belongs to, and how its memory maps.
 *
 * In the interface of 2006 every open is a virtual machine of its own. Another dialect's table is asked first or second
 * here; the numbers of the two never collide.
 */
#define _GNU_SOURCE
#include "kvm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../base/sys.h"

struct kvm_file {
	struct vm *vm;
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
	*out = file;
	return 0;
}

long kvm_file_ioctl(struct kvm_file *file, unsigned long req, unsigned long arg)
{
	long rc = dialect_2006_ioctl(file->vm, req, arg);

	return rc == -ENOTTY ? -EINVAL : rc;
}

u64 kvm_file_mmap_piece(struct kvm_file *file, u64 offset, u64 length, bool *covered)
{
	struct vm *vm = file->vm;
	struct memslot *slot;
	u64 piece = length;

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

void kvm_file_free(struct kvm_file *file)
{
	vm_destroy(file->vm);
	free(file);
}

int kvm_file_own_fd(const struct kvm_file *file)
{
	return file->vm->memfd;
}

void kvm_file_forked(struct kvm_file *file)
{
	/* The mappings are MADV_DONTFORK; the descriptor is all that came along. */
	sys_close(file->vm->memfd);
	file->vm->memfd = -1;
}
