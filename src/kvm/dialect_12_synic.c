/*
 * dialect_12_synic.c: Hyper-V's synthetic interrupt controller, its timers, event connections, and the registers of its
 * debugger (Hypervisor Top Level Functional Specification, chapters 11, 12).
 *
 * Invariants: only the vCPU's own thread writes messages and moves timers; whoever wants something done sets
 * LATCH_STIMER. The controller's pages and the debugger's buffers are the client's business: writes to their MSRs exit.
 */
#include "dialect_12.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../base/sys.h"
#include "../base/usercopy.h"

enum {
	HV_SCONTROL = 0x40000080,
	HV_SVERSION,
	HV_SIEFP,
	HV_SIMP,
	HV_EOM,
	HV_SINT0 = 0x40000090,
	HV_SINT15 = 0x4000009f,
	HV_STIMER0_CONFIG = 0x400000b0,
	HV_STIMER3_COUNT = 0x400000b7,
	HV_DBG_CONTROL = 0x400000f1,
	HV_DBG_STATUS,
	HV_DBG_SEND,
	HV_DBG_RECV,
	HV_DBG_PENDING,
	HV_DBG_OPTIONS = 0x400000ff
};

#define SINT_MASKED BIT(16)
#define SINT_AUTO_EOI BIT(17)
#define TIMER_ENABLE BIT(0)
#define TIMER_PERIODIC BIT(1)
#define TIMER_AUTO BIT(3)
#define TIMER_DIRECT BIT(12)
#define MESSAGE_SIZE 256u
#define MESSAGE_TIMER 0x80000010u
#define CONN_MASK 0xffffffull

/* A message slot's head, and what a timer says. */
struct hv_message {
	u32 type;
	u8 size, flags, pad[2];
	u64 port;
	u32 timer, pad2;
	u64 due, delivered;
};

struct stimer {
	u64 config, count, due; /* due: 0: not running */
	bool undelivered;
};

struct synic {
	bool active, keep_pages;
	u64 control, events, messages, sint[16];
	struct stimer timer[4];
	u64 dbg[6], dbg_options; /* by register from HV_DBG_CONTROL on */
	u32 exit_msr;            /* the client is to hear of this register */
};

struct hv_conn {
	u32 id;
	int fd;
	struct hv_conn *next;
};

static struct synic *synic_of(struct vcpu *v)
{
	struct vcpu12 *x = x12_of(v);

	if (!x->synic)
		x->synic = calloc(1, sizeof(*x->synic));
	return x->synic;
}

void synic_free(struct vcpu12 *x)
{
	free(x->synic);
}

bool synic_active(const struct vcpu12 *x)
{
	return x->synic && x->synic->active;
}

long synic_activate(struct kvm_vcpu *kv, bool keep_pages)
{
	struct synic *s;

	if (!lapic_of(&kv->cpu))
		return -EINVAL;
	s = synic_of(&kv->cpu);
	if (!s)
		return -ENOMEM;
	s->active = true;
	s->keep_pages = keep_pages;
	for (unsigned n = 0; n < 16; n++)
		s->sint[n] = SINT_MASKED;
	return 0;
}

static void look_again(struct vcpu *v)
{
	atomic_fetch_or(&x12_of(v)->latch, LATCH_STIMER);
	atomic_fetch_or(&v->events, (u32)EV_SIGNAL);
}

/* ---- interrupts and messages ------------------------------------------------------------------------------------- */

static void interrupt_self(struct vcpu *v, u8 vector)
{
	struct chips *c = chips_of(v->vm);
	struct ipi m = {.vector = vector, .assert = true, .shorthand = 1, .from = lapic_of(v)};

	pthread_mutex_lock(&c->lock);
	ipi_send_locked(c, &m);
	pthread_mutex_unlock(&c->lock);
}

static bool sint_open(const struct synic *s, unsigned n)
{
	return !(s->sint[n] & SINT_MASKED) && (u8)s->sint[n] >= 16;
}

static int raise_sint(struct vcpu *v, const struct synic *s, unsigned n)
{
	if (!sint_open(s, n))
		return -ENOENT;
	interrupt_self(v, (u8)s->sint[n]);
	return 0;
}

int synic_raise_locked(struct vcpu *v, unsigned n)
{
	const struct synic *s = x12_of(v)->synic;
	struct ipi m = {.assert = true, .shorthand = 1, .from = lapic_of(v)};

	if (!s || !s->active || !sint_open(s, n))
		return -1;
	m.vector = (u8)s->sint[n];
	return ipi_send_locked(chips_of(v->vm), &m);
}

u32 synic_sints_of(const struct vcpu12 *x, u8 vector)
{
	u32 which = 0;

	for (unsigned n = 0; n < 16 && synic_active(x); n++)
		if (sint_open(x->synic, n) && (u8)x->synic->sint[n] == vector)
			which |= 1u << n;
	return which;
}

/* The guest has made room for messages: timers that wait, and clients, hear of it. */
static void end_of_message(struct vcpu *v)
{
	struct chips *c = chips_of(v->vm);

	look_again(v);
	pthread_mutex_lock(&c->lock);
	if (c->has_sints)
		sints_acked_locked(v->owner, 0xffff);
	pthread_mutex_unlock(&c->lock);
}

/* -EAGAIN: the guest has not read the last message yet. */
static int timer_message(struct vcpu *v, struct synic *s, unsigned n, u64 now)
{
	struct stimer *t = &s->timer[n];
	unsigned sint = t->config >> 16 & 15;
	struct hv_message *m;

	if (!(s->messages & 1))
		return -ENOENT;
	m = (struct hv_message *)(void *)pv_memory(v, (s->messages & PAGE_MASK) + sint * MESSAGE_SIZE, sizeof(*m));
	if (!m)
		return -ENOENT;
	if (__atomic_load_n(&m->type, __ATOMIC_ACQUIRE)) {
		m->flags |= 1;
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (__atomic_load_n(&m->type, __ATOMIC_ACQUIRE))
			return -EAGAIN;
	}
	m->size = 24;
	m->flags = 0;
	m->port = 0;
	m->timer = n;
	m->pad2 = 0;
	m->due = t->due;
	m->delivered = now;
	__atomic_store_n(&m->type, MESSAGE_TIMER, __ATOMIC_RELEASE);
	return raise_sint(v, s, sint);
}

/* ---- timers ------------------------------------------------------------------------------------------------------ */

static void timer_expire(struct vcpu *v, struct synic *s, unsigned n, u64 now)
{
	struct stimer *t = &s->timer[n];

	if (t->config & TIMER_DIRECT)
		interrupt_self(v, (u8)(t->config >> 4));
	else if (timer_message(v, s, n, now) == -EAGAIN) {
		t->undelivered = true;
		return;
	}
	t->undelivered = false;
	if (!(t->config & TIMER_PERIODIC))
		t->config &= ~TIMER_ENABLE;
}

static void timer_start(struct stimer *t, u64 now)
{
	if (!(t->config & TIMER_PERIODIC))
		t->due = t->count;
	else if (!t->due)
		t->due = now + t->count;
	else if (now >= t->due)
		t->due = now + t->count - (now - t->due) % t->count;
}

void synic_poll(struct kvm_vcpu *kv)
{
	struct vcpu *v = &kv->cpu;
	struct synic *s = kv->x12->synic;
	u64 now, next = NEVER;

	if (!s || !s->active)
		return;
	now = hv_ref_time(v);
	for (unsigned n = 0; n < 4; n++) {
		struct stimer *t = &s->timer[n];

		if ((t->config & TIMER_ENABLE) && ((t->due && now >= t->due) || t->undelivered))
			timer_expire(v, s, n, now);
		if (!(t->config & TIMER_ENABLE) || !t->count) {
			t->due = 0;
			continue;
		}
		if (t->undelivered)
			continue;
		timer_start(t, now);
		/* One shot that is due already goes at once, by way of the chips' thread. */
		if (t->due < next)
			next = t->due;
	}
	lapic_set_stimer(lapic_of(v), next == NEVER ? NEVER : chip_now() + (next > now ? (next - now) * 100 : 0));
}

/* ---- MSRs -------------------------------------------------------------------------------------------------------- */

static bool dbg_enabled(const struct vcpu12 *x)
{
	return x->hv_dbg & 2;
}

static int page_write(struct vcpu *v, struct synic *s, u64 *to, u64 val, bool host)
{
	if ((val & 1) && !host && !s->keep_pages) {
		u8 *page = pv_memory(v, val & PAGE_MASK, PAGE_SIZE);

		if (!page)
			return -1;
		memset(page, 0, PAGE_SIZE);
	}
	*to = val;
	return 0;
}

static void exit_for(struct vcpu *v, struct synic *s, u32 msr, bool host)
{
	if (host)
		return;
	s->exit_msr = msr;
	atomic_fetch_or(&x12_of(v)->latch, LATCH_EOI);
	atomic_fetch_or(&v->events, (u32)EV_SIGNAL);
}

static int sint_write(struct vcpu *v, struct synic *s, unsigned n, u64 val, bool host)
{
	struct lapic *l = lapic_of(v);

	if ((u8)val < 16 && !host && !(val & SINT_MASKED))
		return -1;
	s->sint[n] = val;
	pthread_mutex_lock(&l->chips->lock);
	memset(l->auto_eoi, 0, sizeof(l->auto_eoi));
	for (unsigned k = 0; k < 16; k++)
		if (s->sint[k] & SINT_AUTO_EOI)
			l->auto_eoi[(u8)s->sint[k] / 32] |= 1u << (s->sint[k] & 31);
	pthread_mutex_unlock(&l->chips->lock);
	return 0;
}

static int timer_write(struct vcpu *v, struct synic *s, u32 msr, u64 val, bool host)
{
	struct stimer *t = &s->timer[(msr - HV_STIMER0_CONFIG) / 2];
	const struct vcpu12 *x = x12_of(v);

	if (!s->active)
		return host && !val ? 0 : -1;
	t->due = 0;
	t->undelivered = false;
	if (msr & 1) {
		t->count = val;
		if (!host && !val)
			t->config &= ~TIMER_ENABLE;
		else if (!host && (t->config & TIMER_AUTO))
			t->config |= TIMER_ENABLE;
	} else {
		if (x->hv_enforce && (val & TIMER_DIRECT) && !(x->hv_edx & BIT(19)))
			return -1;
		if ((t->config & TIMER_ENABLE) && !(val & TIMER_DIRECT) && !(val >> 16 & 15))
			val &= ~TIMER_ENABLE;
		t->config = val;
	}
	look_again(v);
	return 0;
}

int synic_msr_read(struct vcpu *v, u32 msr, u64 *val, bool host)
{
	struct synic *s;

	if (msr < HV_SCONTROL || msr > HV_DBG_OPTIONS)
		return MSR_PASS;
	s = synic_of(v);
	if (!s)
		return -1;
	if (msr >= HV_DBG_CONTROL) {
		if (!host && !dbg_enabled(x12_of(v)))
			return -1;
		if (msr > HV_DBG_PENDING && msr != HV_DBG_OPTIONS)
			return -1;
		*val = msr == HV_DBG_OPTIONS ? s->dbg_options : s->dbg[msr - HV_DBG_CONTROL];
		return 0;
	}
	if (msr >= HV_STIMER0_CONFIG && msr <= HV_STIMER3_COUNT) {
		const struct stimer *t = &s->timer[(msr - HV_STIMER0_CONFIG) / 2];

		*val = msr & 1 ? t->count : t->config;
		return 0;
	}
	if (!s->active && !host)
		return -1;
	switch (msr) {
	case HV_SCONTROL:
		*val = s->control;
		return 0;
	case HV_SVERSION:
		*val = 1;
		return 0;
	case HV_SIEFP:
		*val = s->events;
		return 0;
	case HV_SIMP:
		*val = s->messages;
		return 0;
	case HV_EOM:
		*val = 0;
		return 0;
	}
	if (msr < HV_SINT0 || msr > HV_SINT15)
		return -1;
	*val = s->sint[msr - HV_SINT0];
	return 0;
}

int synic_msr_write(struct vcpu *v, u32 msr, u64 val, bool host)
{
	struct synic *s;
	int rc = 0;

	if (msr < HV_SCONTROL || msr > HV_DBG_OPTIONS)
		return MSR_PASS;
	s = synic_of(v);
	if (!s)
		return -1;
	if (msr >= HV_DBG_CONTROL) {
		if (!host && !dbg_enabled(x12_of(v)))
			return -1;
		if (msr == HV_DBG_OPTIONS)
			s->dbg_options = val;
		else if (msr <= HV_DBG_PENDING)
			s->dbg[msr - HV_DBG_CONTROL] = val;
		else
			return -1;
		if (msr == HV_DBG_CONTROL || msr == HV_DBG_PENDING)
			exit_for(v, s, msr, host);
		return 0;
	}
	if (msr >= HV_STIMER0_CONFIG && msr <= HV_STIMER3_COUNT)
		return timer_write(v, s, msr, val, host);
	if (!s->active)
		return host && !val ? 0 : -1;
	switch (msr) {
	case HV_SCONTROL:
		s->control = val;
		exit_for(v, s, msr, host);
		return 0;
	case HV_SVERSION:
		return host ? 0 : -1;
	case HV_SIEFP:
	case HV_SIMP:
		rc = page_write(v, s, msr == HV_SIEFP ? &s->events : &s->messages, val, host);
		if (rc == 0)
			exit_for(v, s, msr, host);
		return rc;
	case HV_EOM:
		end_of_message(v);
		return 0;
	}
	return msr >= HV_SINT0 && msr <= HV_SINT15 ? sint_write(v, s, msr - HV_SINT0, val, host) : -1;
}

bool synic_exit(struct kvm_vcpu *kv)
{
	struct kvm_run *run = kv->x12->run;
	struct synic *s = kv->x12->synic;
	u32 msr = s ? s->exit_msr : 0;

	if (!msr)
		return false;
	s->exit_msr = 0;
	run->exit_reason = KVM_EXIT_HYPERV;
	memset(&run->hyperv, 0, sizeof(run->hyperv));
	if (msr >= HV_DBG_CONTROL) {
		run->hyperv.type = KVM_EXIT_HYPERV_SYNDBG;
		run->hyperv.u.syndbg.msr = msr;
		run->hyperv.u.syndbg.control = s->dbg[HV_DBG_CONTROL - HV_DBG_CONTROL];
		run->hyperv.u.syndbg.status = s->dbg[HV_DBG_STATUS - HV_DBG_CONTROL];
		run->hyperv.u.syndbg.send_page = s->dbg[HV_DBG_SEND - HV_DBG_CONTROL];
		run->hyperv.u.syndbg.recv_page = s->dbg[HV_DBG_RECV - HV_DBG_CONTROL];
		run->hyperv.u.syndbg.pending_page = s->dbg[HV_DBG_PENDING - HV_DBG_CONTROL];
		if (msr == HV_DBG_CONTROL)
			kv->x12->pend = PEND_SYNDBG;
		return true;
	}
	run->hyperv.type = KVM_EXIT_HYPERV_SYNIC;
	run->hyperv.u.synic.msr = msr;
	run->hyperv.u.synic.control = s->control;
	run->hyperv.u.synic.evt_page = s->events;
	run->hyperv.u.synic.msg_page = s->messages;
	return true;
}

void syndbg_answered(struct kvm_vcpu *kv)
{
	kv->x12->synic->dbg[HV_DBG_STATUS - HV_DBG_CONTROL] = kv->x12->run->hyperv.u.syndbg.status;
}

bool syndbg_takes_calls(struct vcpu *v)
{
	const struct synic *s = x12_of(v)->synic;

	return s && (s->dbg_options & BIT(2));
}

/* ---- event connections ------------------------------------------------------------------------------------------- */

static struct hv_conn **conn_find(struct vm12 *x, u32 id)
{
	struct hv_conn **at = &x->hv_conn;

	while (*at && (*at)->id != id)
		at = &(*at)->next;
	return at;
}

void hv_conn_free(struct vm12 *x)
{
	while (x->hv_conn) {
		struct hv_conn *c = x->hv_conn;

		x->hv_conn = c->next;
		sys_close(c->fd);
		free(c);
	}
}

static int conn_assign(struct vm12 *x, u32 id, int fd)
{
	struct hv_conn *c;

	if (fcntl(fd, F_GETFD) < 0)
		return -EBADF;
	if (!is_eventfd(fd))
		return -EINVAL;
	if (*conn_find(x, id))
		return -EEXIST;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	*c = (struct hv_conn){.id = id, .fd = fcntl(fd, F_DUPFD_CLOEXEC, 3), .next = x->hv_conn};
	if (c->fd < 0) {
		free(c);
		return -EMFILE;
	}
	x->hv_conn = c;
	return 0;
}

static int conn_deassign(struct vm12 *x, u32 id)
{
	struct hv_conn **at = conn_find(x, id), *c = *at;

	if (!c)
		return -ENOENT;
	*at = c->next;
	sys_close(c->fd);
	free(c);
	return 0;
}

long hyperv_eventfd(struct vm *vm, unsigned long arg)
{
	struct kvm_hyperv_eventfd e;
	long rc = user_read(&e, (void *)arg, sizeof(e));

	if (rc < 0)
		return rc;
	if ((e.flags & ~(u32)KVM_HYPERV_EVENTFD_DEASSIGN) || (e.conn_id & ~CONN_MASK))
		return -EINVAL;
	pthread_mutex_lock(&vm->x12->hv_lock);
	rc = e.flags ? conn_deassign(vm->x12, e.conn_id) : conn_assign(vm->x12, e.conn_id, e.fd);
	pthread_mutex_unlock(&vm->x12->hv_lock);
	return rc;
}

bool hv_conn_signal(struct vm *vm, u32 id)
{
	struct hv_conn *c;

	pthread_mutex_lock(&vm->x12->hv_lock);
	c = *conn_find(vm->x12, id);
	if (c)
		eventfd_signal(c->fd);
	pthread_mutex_unlock(&vm->x12->hv_lock);
	return c;
}
