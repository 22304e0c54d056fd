/*
 * dialect_12_device.c: KVM_CREATE_DEVICE. On x86 there is one type, the device that is told of VFIO groups
 * (api.rst 4.79; devices/vfio.rst). What it is for, coherent memory and interrupts that need no exit, has no place
 * here, and nothing that can be opened is a VFIO group to us: adding one fails as any other descriptor does.
 *
 * As in Linux up to 6.4, a VM has one such device, which stays until the VM ends.
 */
#include <errno.h>
#include <fcntl.h>

#include "../base/sys.h"
#include "../base/usercopy.h"
#include "dialect_12.h"

long device12_create(struct vm *vm, unsigned long arg, struct made *made)
{
	void *user = (void *)arg;
	struct kvm_create_device d;
	bool busy;
	int fd;

	if (user_read(&d, user, sizeof(d)))
		return -EFAULT;
	if (d.type != KVM_DEV_TYPE_VFIO)
		return -ENODEV;
	if (d.flags & KVM_CREATE_DEVICE_TEST)
		return user_write(user, &d, sizeof(d));
	fd = sealed_memfd("kvm-vfio", 0);
	if (fd < 0)
		return fd;
	d.fd = (u32)fd;
	pthread_mutex_lock(&vm->lock);
	busy = vm->x12->has_vfio;
	if (!busy && !user_write(user, &d, sizeof(d))) {
		vm->x12->has_vfio = true;
		atomic_fetch_add(&vm->x12->refs, 1);
		*made = (struct made){.kind = FILE_DEVICE, .vm = vm, .fd = fd};
	}
	pthread_mutex_unlock(&vm->lock);
	if (made->kind == FILE_DEVICE)
		return 0;
	sys_close(fd);
	return busy ? -EBUSY : -EFAULT;
}

static bool has_attr(const struct kvm_device_attr *a)
{
	return a->group == KVM_DEV_VFIO_GROUP &&
	       (a->attr == KVM_DEV_VFIO_GROUP_ADD || a->attr == KVM_DEV_VFIO_GROUP_DEL);
}

static long set_attr(const struct kvm_device_attr *a)
{
	int fd;

	if (!has_attr(a))
		return -ENXIO;
	if (user_read(&fd, (void *)(uintptr_t)a->addr, sizeof(fd)))
		return -EFAULT;
	if (fcntl(fd, F_GETFD) < 0)
		return -EBADF;
	return a->attr == KVM_DEV_VFIO_GROUP_ADD ? -EINVAL : -ENOENT;
}

long dialect_12_device(struct vm *vm, unsigned long req, unsigned long arg)
{
	struct kvm_device_attr a;

	switch (req) {
	case KVM_GET_DEVICE_ATTR:
		return -EPERM;
	case KVM_SET_DEVICE_ATTR:
	case KVM_HAS_DEVICE_ATTR:
		break;
	default:
		return -ENOTTY;
	}
	if (user_read(&a, (void *)arg, sizeof(a)))
		return -EFAULT;
	if (req == KVM_SET_DEVICE_ATTR)
		return set_attr(&a);
	return has_attr(&a) ? 0 : -ENXIO;
}
