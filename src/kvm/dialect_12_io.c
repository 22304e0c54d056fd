/*
 * dialect_12_io.c: writes that need no exit: KVM_IOEVENTFD, and the coalesced ring.
 *
 * Invariant: both lists change with all vCPUs stopped, so a running vCPU reads them without a lock. Descriptors of
 * eventfds are duplicates: the client may close its own.
 */
#define _GNU_SOURCE
#include "dialect_12.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>
#include <unistd.h>

#include "../base/sys.h"
#include "../base/usercopy.h"

/* ---- KVM_IOEVENTFD ----------------------------------------------------------------------------------------------- */

/* True for eventfds: reads and writes of anything else mean something else. */
bool is_eventfd(int fd)
{
	char path[32], to[32];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	n = readlink(path, to, sizeof(to) - 1);
	if (n <= 0)
		return false;
	to[n] = 0;
	return strcmp(to, "anon_inode:[eventfd]") == 0;
}

void eventfd_signal(int fd)
{
	const u64 one = 1;
	/* EAGAIN: the counter is full, so whoever waits for it knows. */
	ssize_t ignored = write(fd, &one, sizeof(one));

	(void)ignored;
}

/* Do two descriptors, one of them `fd`, mean one eventfd? */
bool same_file(int a, int b)
{
	/* KCMP_FILE */
	return syscall(SYS_kcmp, getpid(), getpid(), 0, a, b) == 0;
}

/* Where an eventfd that answers this write is in the list; n_ioev: nowhere. */
static unsigned ioev_find(const struct vm12 *x, bool pio, u64 addr, u32 len, u64 val)
{
	unsigned n;

	for (n = 0; n < x->n_ioev; n++) {
		const struct ioev *e = &x->ioev[n];

		if (e->pio == pio && e->addr == addr && (!e->len || e->len == len) &&
		    (!e->has_match || e->match == val))
			break;
	}
	return n;
}

static bool collides(const struct vm12 *x, const struct ioev *new)
{
	for (unsigned n = 0; n < x->n_ioev; n++) {
		const struct ioev *e = &x->ioev[n];

		if (e->pio == new->pio && e->addr == new->addr &&
		    (!e->len || !new->len ||
		     (e->len == new->len && (!e->has_match || !new->has_match || e->match == new->match))))
			return true;
	}
	return false;
}

static int ioev_assign(struct vm12 *x, const struct ioev *new)
{
	struct ioev *more;

	if (collides(x, new))
		return -EEXIST;
	more = realloc(x->ioev, (x->n_ioev + 1) * sizeof(*more));
	if (!more)
		return -ENOMEM;
	x->ioev = more;
	x->ioev[x->n_ioev++] = *new;
	return 0;
}

static int ioev_deassign(struct vm12 *x, const struct ioev *old)
{
	for (unsigned n = 0; n < x->n_ioev; n++) {
		struct ioev *e = &x->ioev[n];

		if (e->pio != old->pio || e->addr != old->addr || e->len != old->len ||
		    e->has_match != old->has_match || (e->has_match && e->match != old->match) ||
		    !same_file(e->fd, old->fd))
			continue;
		sys_close(e->fd);
		*e = x->ioev[--x->n_ioev];
		return 0;
	}
	return -ENOENT;
}

long ioeventfd(struct vm *vm, unsigned long arg)
{
	struct kvm_ioeventfd a;
	struct ioev e;
	bool off;
	long rc = user_read(&a, (void *)arg, sizeof(a));

	if (rc < 0)
		return rc;
	if (a.len != 0 && a.len != 1 && a.len != 2 && a.len != 4 && a.len != 8)
		return -EINVAL;
	if (a.addr + a.len < a.addr || (a.flags & ~KVM_IOEVENTFD_VALID_FLAG_MASK))
		return -EINVAL;
	if (a.flags & KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY)
		return -EINVAL;
	off = a.flags & KVM_IOEVENTFD_FLAG_DEASSIGN;
	e = (struct ioev){.addr = a.addr,
	                  .len = a.len,
	                  .pio = a.flags & KVM_IOEVENTFD_FLAG_PIO,
	                  .has_match = a.flags & KVM_IOEVENTFD_FLAG_DATAMATCH,
	                  .match = a.datamatch,
	                  .fd = a.fd};
	if (!e.len && e.has_match)
		return -EINVAL;
	if (fcntl(a.fd, F_GETFD) < 0)
		return -EBADF;
	if (!is_eventfd(a.fd))
		return -EINVAL;
	if (!off) {
		e.fd = fcntl(a.fd, F_DUPFD_CLOEXEC, 3);
		if (e.fd < 0)
			return -errno;
	}
	vm_begin_change(vm);
	rc = off ? ioev_deassign(vm->x12, &e) : ioev_assign(vm->x12, &e);
	vm_end_change(vm);
	if (!off && rc < 0)
		sys_close(e.fd);
	return rc;
}

/* ---- coalesced zones --------------------------------------------------------------------------------------------- */

long coalesced_add(struct vm *vm, unsigned long arg)
{
	struct kvm_coalesced_mmio_zone z;
	struct zone *more;
	long rc = user_read(&z, (void *)arg, sizeof(z));

	if (rc < 0)
		return rc;
	if (z.pio > 1)
		return -EINVAL;
	vm_begin_change(vm);
	more = realloc(vm->x12->zone, (vm->x12->n_zone + 1) * sizeof(*more));
	if (more) {
		vm->x12->zone = more;
		more[vm->x12->n_zone++] = (struct zone){.addr = z.addr, .size = z.size, .pio = z.pio};
	}
	vm_end_change(vm);
	return more ? 0 : -ENOMEM;
}

long coalesced_remove(struct vm *vm, unsigned long arg)
{
	struct kvm_coalesced_mmio_zone z;
	struct vm12 *x = vm->x12;
	long rc = user_read(&z, (void *)arg, sizeof(z));

	if (rc < 0)
		return rc;
	if (z.pio > 1)
		return -EINVAL;
	vm_begin_change(vm);
	/* Every zone that contains the one that is named. */
	for (unsigned n = 0; n < x->n_zone;) {
		const struct zone *o = &x->zone[n];

		if (o->pio == (z.pio != 0) && o->addr <= z.addr && z.addr + z.size <= o->addr + o->size)
			x->zone[n] = x->zone[--x->n_zone];
		else
			n++;
	}
	vm_end_change(vm);
	return 0;
}

static bool ring_put(struct vm12 *x, bool pio, u64 addr, u32 len, const u8 *data)
{
	struct kvm_coalesced_mmio_ring *r = x->ring;
	bool done = false;
	u32 last, first;

	pthread_mutex_lock(&x->ring_lock);
	last = __atomic_load_n(&r->last, __ATOMIC_RELAXED);
	first = __atomic_load_n(&r->first, __ATOMIC_ACQUIRE);
	/* The client may write anything there. */
	if (last < KVM_COALESCED_MMIO_MAX && (last + 1) % KVM_COALESCED_MMIO_MAX != first) {
		struct kvm_coalesced_mmio *m = &r->coalesced_mmio[last];

		m->phys_addr = addr;
		m->len = len;
		memcpy(m->data, data, len);
		m->pio = pio;
		__atomic_store_n(&r->last, (last + 1) % KVM_COALESCED_MMIO_MAX, __ATOMIC_RELEASE);
		done = true;
	}
	pthread_mutex_unlock(&x->ring_lock);
	return done;
}

/* ---- both -------------------------------------------------------------------------------------------------------- */

bool io_write_taken(struct vcpu *v, bool pio, u64 addr, u32 len, const u8 *data)
{
	struct vm12 *x = v->vm->x12;
	u64 val = 0;
	unsigned n;

	if (x->chips) {
		u32 word = 0;
		u8 copy[8];

		memcpy(&word, data, len < 4 ? len : 4);
		memcpy(copy, data, len);
		if (pio ? chips_pio(chips12_all(v->vm), false, (u16)addr, len, &word)
		        : chips12_mmio(v, false, addr, len, copy))
			return true;
	}

	if (x->n_ioev) {
		memcpy(&val, data, len);
		n = ioev_find(x, pio, addr, len, val);
		if (n < x->n_ioev) {
			eventfd_signal(x->ioev[n].fd);
			return true;
		}
	}
	for (n = 0; n < x->n_zone; n++) {
		const struct zone *z = &x->zone[n];

		if (z->pio == pio && addr >= z->addr && addr - z->addr < z->size && addr + len <= z->addr + z->size)
			return ring_put(x, pio, addr, len, data);
	}
	return false;
}

bool io_read_taken(struct vcpu *v, bool pio, u64 addr, u32 len, u8 *data)
{
	u32 val = ~0u;

	if (!v->vm->x12->chips)
		return false;
	if (!pio)
		return chips12_mmio(v, true, addr, len, data);
	if (!chips_pio(chips12_all(v->vm), true, (u16)addr, len, &val))
		return false;
	memcpy(data, &val, len);
	return true;
}

void io_free(struct vm12 *x)
{
	for (unsigned n = 0; n < x->n_ioev; n++)
		sys_close(x->ioev[n].fd);
	free(x->ioev);
	free(x->zone);
}
