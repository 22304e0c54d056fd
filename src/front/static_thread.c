/*
 * static_thread.c: threads and processes that a program makes with clone() (static.h).
 *
 * - A thread is one of our C library's, which runs the program from the state that clone() would give it, so that it
 *   has a thread area the engine can use. It ends by going back to where it came from.
 * - A fork is our C library's fork(), which puts locks in order; its clone() system call is dispatched to us like one
 * of the program's, and we make the one that the program asked for.
 * - A child that shares memory until it execs (vfork) borrows the parent's thread area, as any vfork()ed child does,
 * but has a struct sthread and a stack of its own.
 */
#define _GNU_SOURCE
#include "static.h"

#include <errno.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../base/usercopy.h"
#include "static_thread.h"

#define STACK_SIZE (256 << 10)
#define FRAME_ROOM (16 << 10)
#define THREAD_SIZE (512 << 10)
#define THREAD_FLAGS (CLONE_VM | CLONE_SIGHAND | CLONE_THREAD)

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif

/* protects: dead */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct sthread *dead; /* threads that have ended, or are about to */

struct sthread *sthread_main(void)
{
	struct sthread *t = calloc(1, sizeof(*t));
	u8 *stack = mmap(NULL, STACK_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (!t || stack == MAP_FAILED)
		return NULL;
	t->stack = stack;
	t->stack_size = STACK_SIZE;
	t->files = root_files();
	return t;
}

void sthread_free_rseq(void)
{
	/* The C library's registration would be in the way of the program's own. */
	if (__rseq_size)
		syscall(SYS_rseq, (u8 *)__builtin_thread_pointer() + __rseq_offset, 32, 1, RSEQ_SIG);
}

static void bury(void)
{
	pthread_mutex_lock(&lock);
	for (struct sthread **at = &dead; *at;) {
		struct sthread *t = *at;

		if (syscall(SYS_tgkill, getpid(), t->tid, 0) == 0 || errno != ESRCH) {
			at = &t->next;
			continue;
		}
		*at = t->next;
		munmap(t->memory, t->memory_size);
		free(t);
	}
	pthread_mutex_unlock(&lock);
}

/* ---- threads ----------------------------------------------------------------------------------------------------- */

struct start {
	const struct sthread *parent;
	const struct kframe *frame;
	const struct clone_args *args;
	struct sthread *t;
	long rc; /* tid or -errno */
	sem_t ready;
};

static void put_tid(u64 to, int tid)
{
	user_write((void *)(uintptr_t)to, &tid, sizeof(tid));
}

/* The state in which clone() leaves a child. NULL: the frame does not fit. */
static struct kframe *child_frame(struct sthread *t, const struct sthread *parent, const struct kframe *f,
                                  const struct clone_args *args, u8 *room)
{
	struct kframe *copy;

	if (kframe_size(f) + 64 > FRAME_ROOM)
		return NULL;
	copy = kframe_copy(f, (u64)(uintptr_t)room + FRAME_ROOM);
	if (!copy)
		return NULL;
	copy->alt = (struct kstack){.sp = (u64)(uintptr_t)t->stack, .size = t->stack_size};
	copy->regs.ax = 0;
	if (args->stack)
		copy->regs.sp = args->stack + args->stack_size;
	t->fs = args->flags & CLONE_SETTLS ? args->tls : parent->fs;
	t->virt = parent->virt;
	return copy;
}

/* The program, until the thread exits. */
static __attribute__((noinline)) void until_exit(struct sthread *t, struct kframe *f)
{
	if (setjmp(t->end) == 0)
		static_return(t, f);
}

/* What we do for the child ourselves: its thread pointer, its stack, and its handlers, of which ours must stay. */
static void child_args(struct clone_args *args)
{
	args->flags &= ~(u64)(CLONE_SETTLS | CLONE_CLEAR_SIGHAND);
	args->tls = args->stack = args->stack_size = 0;
}

static void *thread_main(void *arg)
{
	struct start *s = arg;
	struct sthread *t = s->t;
	u8 stack[STACK_SIZE] __attribute__((aligned(64)));
	u8 room[FRAME_ROOM] __attribute__((aligned(64)));
	const struct clone_args *args = s->args;
	struct kframe *f;
	int tid = (int)syscall(SYS_gettid), unshared = 0;
	stack_t none = {.ss_flags = SS_DISABLE};

	t->stack = stack;
	t->stack_size = sizeof(stack);
	t->actions = s->parent->actions;
	t->files = s->parent->files;
	t->ours = true;
	sthread_free_rseq();
	f = child_frame(t, s->parent, s->frame, args, room);
	s->rc = f ? static_trap_arm(t) : -ENOMEM;
	if (!(args->flags & CLONE_FS))
		unshared |= CLONE_FS;
	if (!(args->flags & CLONE_FILES))
		unshared |= CLONE_FILES;
	if (s->rc == 0 && unshared && unshare(unshared) < 0)
		s->rc = -errno;
	if (s->rc < 0) {
		sem_post(&s->ready);
		goto end;
	}
	if (args->flags & CLONE_PARENT_SETTID)
		put_tid(args->parent_tid, tid);
	if (args->flags & CLONE_CHILD_SETTID)
		put_tid(args->child_tid, tid);
	syscall(SYS_set_tid_address, args->flags & CLONE_CHILD_CLEARTID ? args->child_tid : 0);
	s->rc = tid;
	sem_post(&s->ready);
	until_exit(t, f);
end:
	prctl(PR_SET_SYSCALL_USER_DISPATCH, 0, 0, 0, 0);
	sigaltstack(&none, NULL);
	t->tid = (int)syscall(SYS_gettid);
	pthread_mutex_lock(&lock);
	t->next = dead;
	dead = t;
	pthread_mutex_unlock(&lock);
	return NULL;
}

noreturn void static_exit_thread(struct sthread *t, int status)
{
	longjmp(t->end, 1);
}

static long new_thread(struct sthread *parent, struct kframe *f, const struct clone_args *args)
{
	struct start s = {.parent = parent, .frame = f, .args = args};
	pthread_attr_t attr;
	pthread_t thread;
	u8 *memory;
	int err;

	bury();
	s.t = calloc(1, sizeof(*s.t));
	if (!s.t)
		return -ENOMEM;
	memory = mmap(NULL, THREAD_SIZE, PROT_READ | PROT_WRITE,
	              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
	if (memory == MAP_FAILED) {
		free(s.t);
		return -ENOMEM;
	}
	mprotect(memory, PAGE_SIZE, PROT_NONE);
	s.t->memory = memory;
	s.t->memory_size = THREAD_SIZE;
	sem_init(&s.ready, 0, 0);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstack(&attr, memory, THREAD_SIZE);
	err = pthread_create(&thread, &attr, thread_main, &s);
	pthread_attr_destroy(&attr);
	if (err) {
		munmap(memory, THREAD_SIZE);
		free(s.t);
		sem_destroy(&s.ready);
		return -err;
	}
	while (sem_wait(&s.ready) < 0)
		;
	sem_destroy(&s.ready);
	return s.rc;
}

/* ---- vfork ------------------------------------------------------------------------------------------------------- */

struct borrowed {
	struct sthread t;
	struct kframe *frame;
	struct kactions actions;
	struct root_files files;
	bool clear_handlers;
	u8 room[FRAME_ROOM] __attribute__((aligned(64)));
	u8 stack[STACK_SIZE] __attribute__((aligned(64)));
};

static noreturn void vfork_child(struct borrowed *b)
{
	if (static_trap_arm(&b->t) < 0) {
		dprintf(2, "devkvm: a child cannot be served: %s\n", strerror(errno));
		_exit(127);
	}
	if (b->clear_handlers)
		static_clear_handlers(&b->t);
	static_return(&b->t, b->frame);
}

/* clone3() whose child runs vfork_child() on a stack of its own and never comes back here. */
static long clone_borrowed(const struct clone_args *args, u64 size, struct borrowed *b)
{
	register long rc __asm__("rax") = SYS_clone3;
	register u64 a0 __asm__("rdi") = (u64)(uintptr_t)args;
	register u64 a1 __asm__("rsi") = size;
	register u64 child __asm__("rbx") = (u64)(uintptr_t)b;
	register u64 sp __asm__("r12") = (u64)(uintptr_t)(b->stack + sizeof(b->stack));
	register u64 go __asm__("r13") = (u64)(uintptr_t)vfork_child;

	__asm__ volatile("	syscall\n"
	                 "	test %%rax, %%rax\n"
	                 "	jnz 1f\n"
	                 "	mov %%r12, %%rsp\n"
	                 "	mov %%rbx, %%rdi\n"
	                 "	xor %%ebp, %%ebp\n"
	                 "	call *%%r13\n"
	                 "	ud2\n"
	                 "1:\n"
	                 : "+r"(rc)
	                 : "r"(a0), "r"(a1), "r"(child), "r"(sp), "r"(go)
	                 : "rcx", "r11", "memory", "cc");
	return rc;
}

static long new_vfork(struct sthread *parent, struct kframe *f, const struct clone_args *args, u64 size)
{
	struct clone_args ours = *args;
	struct borrowed *b =
	        mmap(NULL, sizeof(*b), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	long rc = -ENOMEM;

	if (b == MAP_FAILED)
		return -ENOMEM;
	b->t.stack = b->stack;
	b->t.stack_size = sizeof(b->stack);
	b->t.vforked = true;
	b->t.alt = parent->alt;
	b->actions = *parent->actions;
	b->t.actions = &b->actions;
	b->files = *parent->files;
	b->t.files = &b->files;
	b->frame = child_frame(&b->t, parent, f, args, b->room);
	b->clear_handlers = args->flags & CLONE_CLEAR_SIGHAND;
	child_args(&ours);
	if (b->frame)
		rc = clone_borrowed(&ours, size, b);
	munmap(b, sizeof(*b));
	return rc;
}

/* ---- fork -------------------------------------------------------------------------------------------------------- */

/* What the C library's fork() calls while `forking` is set comes here. */
void static_fork_call(struct sthread *t, struct kframe *f)
{
	const struct clone_args *args = t->forking;
	struct kregs *r = &f->regs;
	long rc;

	if (r->ax == SYS_rt_sigprocmask) {
		r->ax = (u64)static_sigprocmask(t, f, (int)r->di, r->si, r->dx, r->r10);
	} else if (r->ax == SYS_clone || r->ax == SYS_clone3) {
		struct clone_args ours = *args;

		child_args(&ours);
		rc = syscall(SYS_clone3, &ours, t->forking_size);
		if (rc < 0)
			rc = -errno;
		/* The C library's own note of the thread's id, which it asked clone() to write. */
		if (rc == 0 && r->ax == SYS_clone)
			put_tid(r->r10, (int)syscall(SYS_gettid));
		r->ax = (u64)rc;
	} else {
		const u64 call[7] = {r->ax, r->di, r->si, r->dx, r->r10, r->r8, r->r9};

		r->ax = (u64)static_pass(call);
	}
	/* In the child nothing is dispatched until it is armed again. */
	static_return(t, f);
}

static long new_process(struct sthread *t, struct kframe *f, const struct clone_args *args, u64 size)
{
	u64 fs = t->fs, virt = t->virt;
	long rc;

	t->forking = args;
	t->forking_size = size;
	t->fs = t->own_fs;
	t->selector = SELECTOR_DISPATCH;
	rc = fork();
	t->selector = SELECTOR_ALLOW;
	t->forking = NULL;
	t->fs = fs;
	t->virt = virt;
	if (rc < 0)
		return -errno;
	if (rc == 0) {
		if (args->flags & CLONE_SETTLS)
			t->fs = args->tls;
		if (args->stack)
			f->regs.sp = args->stack + args->stack_size;
		t->ours = false;
		if (args->flags & CLONE_CLEAR_SIGHAND)
			static_clear_handlers(t);
		if (static_trap_arm(t) < 0) {
			dprintf(2, "devkvm: a child cannot be served: %s\n", strerror(errno));
			_exit(127);
		}
	}
	return rc;
}

/* ---- the calls --------------------------------------------------------------------------------------------------- */

static long make(struct sthread *t, struct kframe *f, const struct clone_args *args, u64 size)
{
	if (args->flags & CLONE_THREAD) {
		if ((args->flags & THREAD_FLAGS) != THREAD_FLAGS)
			return -EINVAL;
		if (args->set_tid_size || (args->flags & (CLONE_PIDFD | CLONE_VFORK | CLONE_CLEAR_SIGHAND)))
			return -EINVAL;
		return new_thread(t, f, args);
	}
	if (!(args->flags & CLONE_VM))
		return new_process(t, f, args, size);
	if (args->flags & CLONE_VFORK)
		return new_vfork(t, f, args, size);
	dprintf(2, "devkvm: a process that shares memory with its parent and runs beside it cannot be served\n");
	return -EINVAL;
}

long static_clone(struct sthread *t, struct kframe *f, u64 flags, u64 stack, u64 ptid, u64 ctid, u64 tls)
{
	struct clone_args args = {
	        .flags = (u32)flags & ~(u64)CSIGNAL,
	        .exit_signal = flags & CSIGNAL,
	        .stack = stack,
	        .parent_tid = ptid,
	        .child_tid = ctid,
	        .tls = tls,
	};

	/* clone() has one argument for two. */
	if (flags & CLONE_PIDFD)
		args.pidfd = ptid;
	if ((flags & CLONE_PIDFD) && (flags & CLONE_PARENT_SETTID))
		return -EINVAL;
	args.flags &= ~(u64)CLONE_DETACHED;
	return make(t, f, &args, CLONE_ARGS_SIZE_VER0);
}

long static_clone3(struct sthread *t, struct kframe *f, u64 from, u64 size)
{
	struct clone_args args = {0};

	if (size < CLONE_ARGS_SIZE_VER0)
		return -EINVAL;
	if (size > sizeof(args))
		return -E2BIG;
	if (user_read(&args, (void *)(uintptr_t)from, size) < 0)
		return -EFAULT;
	if (args.stack ? !args.stack_size : args.stack_size)
		return -EINVAL;
	return make(t, f, &args, size);
}
