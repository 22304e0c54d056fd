/*
 * iface.c: the 2006 interface call by call: what each does, and every errno.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <setjmp.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

#include "client.h"
#include "test.h"

#define BAD ((void *)16)

/* ---- numbers and layouts
 * -------------------------------------------------------------------------------------------------- */

TEST(layout)
{
	CHECK_EQ(sizeof(struct kvm_run), 48);
	CHECK_EQ(sizeof(struct kvm_regs), 152);
	CHECK_EQ(sizeof(struct kvm_sregs), 296);
	CHECK_EQ(sizeof(struct kvm_translation), 32);
	CHECK_EQ(sizeof(struct kvm_debug_guest), 80);
	CHECK_EQ(sizeof(struct kvm_dirty_log), 16);
	CHECK_EQ(sizeof(struct kvm_memory_region), 24);
	CHECK_EQ(KVM_RUN, 0xc030ae02);
	CHECK_EQ(KVM_CREATE_VCPU, 0x4004ae0b);
}

/* ---- the file
 * -------------------------------------------------------------------------------------------------------------- */

TEST(file)
{
	int fd = kopen(), copy;
	struct kvm_regs r = {0};

	CHECK(fd >= 0);
	CHECK_ERR(kioctl(fd, 0xae77, 0L), EINVAL);
	CHECK_ERR(kioctl(fd, 0x5401, 0L), EINVAL);
	CHECK_ERR(kioctl(fd, KVM_GET_REGS, &r), ENOENT);
	CHECK_EQ(kioctl(fd, KVM_CREATE_VCPU, 0L), 0);
	copy = dup(fd);
	CHECK_EQ(kclose(fd), 0);
	CHECK_ERR(kioctl(fd, KVM_GET_REGS, &r), EBADF);
	CHECK_EQ(kioctl(copy, KVM_GET_REGS, &r), 0);
	CHECK_EQ(r.rip, 0xfff0);
	CHECK_EQ(kclose(copy), 0);
	CHECK_ERR(kclose(copy), EBADF);
}

#ifndef LINKED
TEST(file_looks_like_kvm)
{
	struct stat st;
	int dir = open("/dev", O_RDONLY | O_DIRECTORY), fd;

	CHECK_EQ(access("/dev/kvm", R_OK | W_OK), 0);
	CHECK_EQ(stat("/dev/kvm", &st), 0);
	CHECK(S_ISCHR(st.st_mode));
	CHECK_EQ(st.st_rdev, 10 << 8 | 232);
	fd = openat(dir, "kvm", O_RDWR);
	CHECK(fd >= 0);
	CHECK_EQ(kioctl(fd, KVM_CREATE_VCPU, 0L), 0);
	close(fd);
	fd = open("//dev/./kvm", O_RDWR);
	CHECK_EQ(kioctl(fd, KVM_CREATE_VCPU, 0L), 0);
	CHECK_EQ(fstat(fd, &st), 0);
	CHECK(S_ISCHR(st.st_mode));
	close(fd);
	close(dir);
}
#endif

TEST(fork_child_is_refused)
{
	struct guest g;
	int status;
	pid_t pid;

	CHECK_EQ(guest_open(&g, 0x10000), 0);
	pid = fork();
	if (pid == 0) {
		struct kvm_regs r = {0};

		if (kioctl(g.fd, KVM_GET_REGS, &r) != -1 || errno != EIO)
			_exit(1);
		/* What the child opens itself works. */
		if (guest_open(&g, 0x10000) < 0 || kioctl(g.fd, KVM_GET_REGS, &r) < 0)
			_exit(2);
		_exit(0);
	}
	CHECK_EQ(waitpid(pid, &status, 0), pid);
	CHECK_EQ(status, 0);
	guest_close(&g);
}

/* ---- memory regions
 * ---------------------------------------------------------------------------------------------------------- */

TEST(region_errors)
{
	int fd = kopen();

	CHECK_ERR(region(fd, 0, 0, 0x1001, 0), EINVAL);
	CHECK_ERR(region(fd, 0, 0x10, 0x1000, 0), EINVAL);
	CHECK_ERR(region(fd, 1000, 0, 0x1000, 0), EINVAL);
	CHECK_ERR(region(fd, 0, ~0xfffull, 0x2000, 0), EINVAL);
	CHECK_ERR(kioctl(fd, KVM_SET_MEMORY_REGION, BAD), EFAULT);
	CHECK_EQ(region(fd, 0, 0, 0x10000, 0), 0);
	CHECK_ERR(region(fd, 0, 0, 0x20000, 0), EINVAL);
	CHECK_ERR(region(fd, 1, 0xf000, 0x1000, 0), EEXIST);
	CHECK_ERR(region(fd, 1, 0, 0x100000, 0), EEXIST);
	CHECK_EQ(region(fd, 1, 0x10000, 0x1000, 0), 0);
	CHECK_ERR(region(fd, 0, 0x1000, 0x10000, 0), EEXIST);
	CHECK_EQ(region(fd, 31, 0x100000, 0x1000, 0), 0);
	CHECK_EQ(region(fd, 5, 0, 0, 0), 0);
	CHECK_EQ(region(fd, 0, 0, 0, 0), 0);
	CHECK_EQ(region(fd, 2, 0, 0x10000, 0), 0);
	kclose(fd);
}

TEST(region_map_move_remove)
{
	int fd = kopen();
	uint8_t *p, *q;

	CHECK_EQ(region(fd, 0, 0, 0x10000, 0), 0);
	p = kmmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	q = kmmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0x3000);
	CHECK(p != MAP_FAILED && q != MAP_FAILED);
	CHECK_EQ(p[0x3005], 0);
	p[0x3005] = 77;
	CHECK_EQ(q[5], 77);
	munmap(p, 0x10000);
	munmap(q, 0x1000);
	/* Over itself, and away. */
	CHECK_EQ(region(fd, 0, 0x1000, 0x10000, 0), 0);
	p = kmmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0x1000);
	CHECK_EQ(p[0x3005], 77);
	munmap(p, 0x10000);
	CHECK_EQ(region(fd, 0, 0x100000, 0x10000, 0), 0);
	p = kmmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0x100000);
	CHECK_EQ(p[0x3005], 77);
	/* Removed and made again: zero. The old mapping may be touched. */
	CHECK_EQ(region(fd, 0, 0x100000, 0, 0), 0);
	p[0x4000] = 1;
	CHECK_EQ(region(fd, 0, 0x100000, 0x10000, 0), 0);
	q = kmmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0x100000);
	CHECK_EQ(q[0x3005], 0);
	CHECK_EQ(q[0x4000], 0);
	munmap(p, 0x10000);
	munmap(q, 0x10000);
	kclose(fd);
}

static sigjmp_buf bus_jump;

static void on_bus(int sig)
{
	siglongjmp(bus_jump, sig);
}

TEST(hole_is_sigbus)
{
	int fd = kopen();
	struct sigaction act = {.sa_handler = on_bus, .sa_flags = SA_NODEFER}, old;
	volatile uint8_t *p;

	CHECK_EQ(region(fd, 0, 0, 0x1000, 0), 0);
	CHECK_EQ(region(fd, 1, 0x3000, 0x1000, 0), 0);
	p = kmmap(NULL, 0x5000, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(p != MAP_FAILED);
	p[0] = 1;
	p[0x3fff] = 1;
	sigaction(SIGBUS, &act, &old);
	for (unsigned at = 0x1000; at < 0x5000; at += 0x1000) {
		int sig = sigsetjmp(bus_jump, 1);

		if (sig == 0)
			(void)p[at];
		CHECK_EQ(sig, at == 0x3000 ? 0 : SIGBUS);
	}
	sigaction(SIGBUS, &old, NULL);
	munmap((void *)(uintptr_t)p, 0x5000);
	kclose(fd);
}

/* ---- vCPUs
 * --------------------------------------------------------------------------------------------------------------------
 */

TEST(create_vcpu)
{
	int fd = kopen();
	struct kvm_regs r = {0};
	struct kvm_sregs s = {0};

	CHECK_ERR(kioctl(fd, KVM_CREATE_VCPU, 100000L), EINVAL);
	CHECK_EQ(kioctl(fd, KVM_CREATE_VCPU, 0L), 0);
	CHECK_ERR(kioctl(fd, KVM_CREATE_VCPU, 0L), EEXIST);
	CHECK_EQ(kioctl(fd, KVM_CREATE_VCPU, 3L), 0);
	CHECK_EQ(kioctl(fd, KVM_GET_REGS, &r), 0);
	CHECK_EQ(r.rip, 0xfff0);
	CHECK_EQ(r.rflags, 2);
	CHECK_EQ(r.rax | r.rbx | r.rcx | r.rsi | r.rdi | r.rbp | r.rsp | r.r8 | r.r15, 0);
	CHECK(r.rdx != 0);
	CHECK_EQ(kioctl(fd, KVM_GET_SREGS, &s), 0);
	CHECK_EQ(s.cs.selector, 0xf000);
	CHECK_EQ(s.cs.base, 0xf0000);
	CHECK_EQ(s.cs.limit, 0xffff);
	CHECK_EQ(s.ds.selector, 0);
	CHECK_EQ(s.ds.limit, 0xffff);
	CHECK_EQ(s.cr0, 0x60000010);
	CHECK_EQ(s.cr2 | s.cr3 | s.cr4 | s.cr8 | s.efer, 0);
	CHECK_EQ(s.gdt.limit, 0xffff);
	CHECK_EQ(s.idt.limit, 0xffff);
	CHECK_EQ(s.apic_base, 0xfee00900);
	CHECK_EQ(s.pending_int, 0);
	s.vcpu = 3;
	CHECK_EQ(kioctl(fd, KVM_GET_SREGS, &s), 0);
	CHECK_EQ(s.apic_base, 0xfee00800);
	kclose(fd);
}

TEST(vcpu_errors)
{
	int fd = kopen();
	struct kvm_run run = {.vcpu = 1};
	struct kvm_regs r = {.vcpu = 1};
	struct kvm_sregs s = {.vcpu = 1};
	struct kvm_translation t = {.vcpu = 1};
	struct kvm_interrupt i = {.vcpu = 1};
	struct kvm_debug_guest d = {.vcpu = 1};

	CHECK_EQ(kioctl(fd, KVM_CREATE_VCPU, 0L), 0);
#define EACH(err)                                                                                                      \
	CHECK_ERR(kioctl(fd, KVM_RUN, &run), err);                                                                     \
	CHECK_ERR(kioctl(fd, KVM_GET_REGS, &r), err);                                                                  \
	CHECK_ERR(kioctl(fd, KVM_SET_REGS, &r), err);                                                                  \
	CHECK_ERR(kioctl(fd, KVM_GET_SREGS, &s), err);                                                                 \
	CHECK_ERR(kioctl(fd, KVM_SET_SREGS, &s), err);                                                                 \
	CHECK_ERR(kioctl(fd, KVM_TRANSLATE, &t), err);                                                                 \
	CHECK_ERR(kioctl(fd, KVM_INTERRUPT, &i), err);                                                                 \
	CHECK_ERR(kioctl(fd, KVM_DEBUG_GUEST, &d), err)
	EACH(ENOENT);
	run.vcpu = r.vcpu = s.vcpu = t.vcpu = i.vcpu = d.vcpu = 0x7fffffff;
	EACH(EINVAL);
	for (unsigned n = 2; n <= 12; n++)
		if (n != 11) {
			static const unsigned long req[] = {KVM_RUN,         KVM_GET_REGS,     KVM_SET_REGS,
			                                    KVM_GET_SREGS,   KVM_SET_SREGS,    KVM_TRANSLATE,
			                                    KVM_INTERRUPT,   KVM_DEBUG_GUEST,  KVM_SET_MEMORY_REGION,
			                                    KVM_CREATE_VCPU, KVM_GET_DIRTY_LOG};

			CHECK_ERR(kioctl(fd, req[n - 2], BAD), EFAULT);
			CHECK_ERR(kioctl(fd, req[n - 2], NULL), EFAULT);
		}
	kclose(fd);
}

TEST(regs_round_trip)
{
	struct guest g;
	struct kvm_regs r, q;
	struct kvm_sregs s = {0}, u = {0};

	CHECK_EQ(guest_open(&g, 0x100000), 0);
	for (unsigned n = 0; n < 16; n++)
		(&r.rax)[n] = 0x1111111111111111ull * n + 7;
	r.vcpu = 0;
	r.rip = 0x1234;
	r.rflags = 0x8d7 | 0x200;
	CHECK_EQ(regs_set(&g, &r), 0);
	CHECK_EQ(regs_get(&g, &q), 0);
	CHECK_EQ(memcmp(&r.rax, &q.rax, 18 * 8), 0);
	CHECK_EQ(guest_start64(&g, 0x1000), 0);
	CHECK_EQ(kioctl(g.fd, KVM_GET_SREGS, &s), 0);
	CHECK_EQ(s.cs.l, 1);
	CHECK_EQ(s.efer, 0x500);
	CHECK_EQ(s.ldt.unusable, 1);
	s.fs.base = 0x123456789000;
	s.cr2 = 0xdeadbeef;
	s.cr8 = 5;
	s.gdt.base = 0x5000;
	s.gdt.limit = 0x7f;
	CHECK_EQ(kioctl(g.fd, KVM_SET_SREGS, &s), 0);
	CHECK_EQ(kioctl(g.fd, KVM_GET_SREGS, &u), 0);
	CHECK_EQ(memcmp(&s, &u, sizeof(s)), 0);
	guest_close(&g);
}

/* ---- exits
 * ---------------------------------------------------------------------------------------------------------------------
 */

TEST(exit_hlt)
{
	struct guest g;
	struct kvm_regs r;

	CHECK_EQ(guest_open(&g, 0x100000), 0);
	CHECK_EQ(guest_start16(&g, 0x2000), 0);
	CODE(&g, 0x2000, 0xb8, 0x34, 0x12, /* mov ax, 0x1234 */ 0x40, /* inc ax */ 0xf4);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run.exit_type, KVM_EXIT_TYPE_VM_EXIT);
	CHECK_EQ(g.run.exit_reason, KVM_EXIT_HLT);
	CHECK_EQ(regs_get(&g, &r), 0);
	CHECK_EQ(r.rax, 0x1235);
	CHECK_EQ(r.rip, 0x2005);
	guest_close(&g);
}

TEST(exit_io)
{
	struct guest g;
	struct kvm_regs r;

	CHECK_EQ(guest_open(&g, 0x100000), 0);
	CHECK_EQ(guest_start16(&g, 0x2000), 0);
	CODE(&g, 0x2000, 0xb0, 0x41, /* mov al, 'A' */ 0xe6, 0x80, /* out 0x80, al */ 0xba, 0x45,
	     0x03, /* mov dx, 0x345 */
	     0xed, /* in ax, dx */ 0xf4);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run.exit_reason, KVM_EXIT_IO);
	CHECK_EQ(g.run.io.direction, KVM_EXIT_IO_OUT);
	CHECK_EQ(g.run.io.size, 1);
	CHECK_EQ(g.run.io.port, 0x80);
	CHECK_EQ(g.run.io.value & 0xff, 0x41);
	CHECK_EQ(g.run.io.string, 0);
	CHECK_EQ(g.run.io.rep, 0);
	CHECK_EQ(g.run.instruction_length, 2);
	CHECK_EQ(regs_get(&g, &r), 0);
	CHECK_EQ(r.rip, 0x2002);
	/* Not stepped over: the same exit again. */
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run.exit_reason, KVM_EXIT_IO);
	CHECK_EQ(g.run.io.port, 0x80);
	g.run.emulated = 1;
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run.exit_reason, KVM_EXIT_IO);
	CHECK_EQ(g.run.io.direction, KVM_EXIT_IO_IN);
	CHECK_EQ(g.run.io.size, 2);
	CHECK_EQ(g.run.io.port, 0x345);
	CHECK_EQ(g.run.instruction_length, 1);
	regs_get(&g, &r);
	r.rax = 0xbeef;
	regs_set(&g, &r);
	g.run.emulated = 1;
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run.exit_reason, KVM_EXIT_HLT);
	regs_get(&g, &r);
	CHECK_EQ(r.rax, 0xbeef);
	guest_close(&g);
}

TEST(exit_io_string)
{
	struct guest g;
	struct kvm_regs r;

	CHECK_EQ(guest_open(&g, 0x100000), 0);
	CHECK_EQ(guest_start16(&g, 0x2000), 0);
	/* mov si, 0x3000; mov cx, 5; mov dx, 0x3f8; rep outsw; std; mov di, 0x4000; insb; hlt */
	CODE(&g, 0x2000, 0xbe, 0x00, 0x30, 0xb9, 0x05, 0x00, 0xba, 0xf8, 0x03, 0xf3, 0x6f, 0xfd, 0xbf, 0x00, 0x40, 0x6c,
	     0xf4);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run.exit_reason, KVM_EXIT_IO);
	CHECK_EQ(g.run.io.string, 1);
	CHECK_EQ(g.run.io.rep, 1);
	CHECK_EQ(g.run.io.count, 5);
	CHECK_EQ(g.run.io.size, 2);
	CHECK_EQ(g.run.io.address, 0x3000);
	CHECK_EQ(g.run.io.string_down, 0);
	CHECK_EQ(g.run.instruction_length, 2);
	regs_get(&g, &r);
	r.rcx = 0;
	r.rsi += 10;
	regs_set(&g, &r);
	g.run.emulated = 1;
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run.io.direction, KVM_EXIT_IO_IN);
	CHECK_EQ(g.run.io.string, 1);
	CHECK_EQ(g.run.io.rep, 0);
	CHECK_EQ(g.run.io.string_down, 1);
	CHECK_EQ(g.run.io.address, 0x4000);
	g.run.emulated = 1;
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run.exit_reason, KVM_EXIT_HLT);
	guest_close(&g);
}

TEST(exit_cpuid)
{
	struct guest g;
	struct kvm_regs r;

	CHECK_EQ(guest_open(&g, 0x100000), 0);
	CHECK_EQ(guest_start16(&g, 0x2000), 0);
	/* mov eax, 7; cpuid; hlt */
	CODE(&g, 0x2000, 0x66, 0xb8, 7, 0, 0, 0, 0x0f, 0xa2, 0xf4);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run.exit_reason, KVM_EXIT_CPUID);
	CHECK_EQ(g.run.instruction_length, 2);
	regs_get(&g, &r);
	CHECK_EQ(r.rax, 7);
	CHECK_EQ(r.rip, 0x2006);
	r.rax = 0x11;
	r.rbx = 0x22;
	regs_set(&g, &r);
	g.run.emulated = 1;
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run.exit_reason, KVM_EXIT_HLT);
	regs_get(&g, &r);
	CHECK_EQ(r.rax, 0x11);
	CHECK_EQ(r.rbx, 0x22);
	guest_close(&g);
}

/* Expects one MMIO exit. */
static void mmio(struct guest *g, uint64_t gpa, unsigned len, int write, uint64_t data)
{
	uint64_t got = 0;

	CHECK_EQ(guest_run(g), 0);
	CHECK_EQ(g->run.exit_reason, KVM_EXIT_MMIO);
	CHECK_EQ(g->run.mmio.phys_addr, gpa);
	CHECK_EQ(g->run.mmio.len, len);
	CHECK_EQ(g->run.mmio.is_write, write);
	if (write) {
		memcpy(&got, g->run.mmio.data, len);
		CHECK_EQ(got, data);
	} else {
		memcpy(g->run.mmio.data, &data, 8);
		g->run.mmio_completed = 1;
	}
}

static void halts(struct guest *g)
{
	CHECK_EQ(guest_run(g), 0);
	CHECK_EQ(g->run.exit_reason, KVM_EXIT_HLT);
}

TEST(exit_mmio_simple)
{
	struct guest g;
	struct kvm_regs r;

	CHECK_EQ(guest_open(&g, 0x200000), 0);
	CHECK_EQ(guest_start64(&g, 0x2000), 0);
	/* mov rbx, 0x10000000; mov eax, [rbx]; mov [rbx+8], rax; add dword [rbx+4], 3; movzx ecx, byte [rbx+1]; hlt */
	CODE(&g, 0x2000, 0x48, 0xc7, 0xc3, 0, 0, 0, 0x10, 0x8b, 0x03, 0x48, 0x89, 0x43, 0x08, 0x83, 0x43, 0x04, 0x03,
	     0x0f, 0xb6, 0x4b, 0x01, 0xf4);
	mmio(&g, 0x10000000, 4, 0, 0x89abcdef);
	regs_get(&g, &r);
	CHECK_EQ(r.rip, 0x2007);
	mmio(&g, 0x10000008, 8, 1, 0x89abcdef);
	regs_get(&g, &r);
	CHECK_EQ(r.rip, 0x200d);
	mmio(&g, 0x10000004, 4, 0, 40);
	mmio(&g, 0x10000004, 4, 1, 43);
	mmio(&g, 0x10000001, 1, 0, 0x7f);
	halts(&g);
	regs_get(&g, &r);
	CHECK_EQ(r.rcx, 0x7f);
	CHECK_EQ(r.rax, 0x89abcdef);
	guest_close(&g);
}

TEST(exit_mmio_wide_and_strings)
{
	struct guest g;
	struct kvm_regs r;

	CHECK_EQ(guest_open(&g, 0x200000), 0);
	CHECK_EQ(guest_start64(&g, 0x2000), 0);
	/* mov rbx, 0x10000000; movups xmm0, [rbx]; movups [rbx+0x20], xmm0; push qword [rbx];
	 * mov rsi, rbx; mov edi, 0x3000; mov ecx, 3; rep movsd; hlt */
	CODE(&g, 0x2000, 0x48, 0xc7, 0xc3, 0, 0, 0, 0x10, 0x0f, 0x10, 0x03, 0x0f, 0x11, 0x43, 0x20, 0xff, 0x33, 0x48,
	     0x89, 0xde, 0xbf, 0x00, 0x30, 0, 0, 0xb9, 3, 0, 0, 0, 0xf3, 0xa5, 0xf4);
	mmio(&g, 0x10000000, 8, 0, 0x1111111122222222);
	mmio(&g, 0x10000008, 8, 0, 0x3333333344444444);
	mmio(&g, 0x10000020, 8, 1, 0x1111111122222222);
	mmio(&g, 0x10000028, 8, 1, 0x3333333344444444);
	mmio(&g, 0x10000000, 8, 0, 0x5555);
	mmio(&g, 0x10000000, 4, 0, 1);
	mmio(&g, 0x10000004, 4, 0, 2);
	regs_get(&g, &r);
	CHECK_EQ(r.rcx, 2);
	CHECK_EQ(r.rsi, 0x10000004);
	CHECK_EQ(r.rdi, 0x3004);
	mmio(&g, 0x10000008, 4, 0, 3);
	halts(&g);
	CHECK_EQ(*(uint64_t *)(void *)(g.ram + 0x6ff8), 0x5555);
	CHECK_EQ(*(uint32_t *)(void *)(g.ram + 0x3000), 1);
	CHECK_EQ(*(uint32_t *)(void *)(g.ram + 0x3008), 3);
	guest_close(&g);
}

TEST(exit_mmio_over_the_edge_of_ram)
{
	struct guest g;
	struct kvm_regs r;

	CHECK_EQ(guest_open(&g, 0x200000), 0);
	CHECK_EQ(guest_start64(&g, 0x2000), 0);
	/* mov eax, 0x1ffffe; mov ebx, [rax]; mov [rax], ecx; hlt */
	CODE(&g, 0x2000, 0xb8, 0xfe, 0xff, 0x1f, 0, 0x8b, 0x18, 0x89, 0x08, 0xf4);
	regs_get(&g, &r);
	r.rcx = 0xaabbccdd;
	regs_set(&g, &r);
	g.ram[0x1ffffe] = 0x12;
	g.ram[0x1fffff] = 0x34;
	mmio(&g, 0x200000, 2, 0, 0x7856);
	mmio(&g, 0x200000, 2, 1, 0xaabb);
	halts(&g);
	regs_get(&g, &r);
	CHECK_EQ(r.rbx, 0x78563412);
	CHECK_EQ(g.ram[0x1ffffe], 0xdd);
	CHECK_EQ(g.ram[0x1fffff], 0xcc);
	guest_close(&g);
}

TEST(exit_triple_fault)
{
	struct guest g;
	struct kvm_sregs s = {0};

	CHECK_EQ(guest_open(&g, 0x200000), 0);
	CHECK_EQ(guest_start64(&g, 0x2000), 0);
	kioctl(g.fd, KVM_GET_SREGS, &s);
	s.idt.limit = 0;
	kioctl(g.fd, KVM_SET_SREGS, &s);
	CODE(&g, 0x2000, 0x0f, 0x0b);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run.exit_type, KVM_EXIT_TYPE_VM_EXIT);
	CHECK_EQ(g.run.exit_reason, KVM_EXIT_UNKNOWN);
	CHECK_EQ(g.run.hw.hardware_exit_reason, 2);
	guest_close(&g);
}

TEST(fail_entry)
{
	struct guest g;
	struct kvm_sregs s = {0};
	struct kvm_regs r = {0}, q;

	CHECK_EQ(guest_open(&g, 0x200000), 0);
	CHECK_EQ(guest_start64(&g, 0x2000), 0);
	kioctl(g.fd, KVM_GET_SREGS, &s);
	s.cr0 = 0x80000000u; /* paging without protection */
	CHECK_EQ(kioctl(g.fd, KVM_SET_SREGS, &s), 0);
	regs_get(&g, &r);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run.exit_type, KVM_EXIT_TYPE_FAIL_ENTRY);
	CHECK_EQ(g.run.hw.hardware_exit_reason, 33);
	regs_get(&g, &q);
	CHECK_EQ(memcmp(&r, &q, sizeof(r)), 0);
	guest_close(&g);
}

TEST(run_structure_is_not_written_on_error)
{
	struct guest g;
	struct kvm_run before;

	CHECK_EQ(guest_open(&g, 0x10000), 0);
	memset(&g.run, 0x5a, sizeof(g.run));
	g.run.vcpu = 9;
	before = g.run;
	CHECK_ERR(kioctl(g.fd, KVM_RUN, &g.run), ENOENT);
	CHECK_EQ(memcmp(&before, &g.run, sizeof(before)), 0);
	guest_close(&g);
}

/* ---- interrupts
 * ---------------------------------------------------------------------------------------------------------------- */

static int inject(struct guest *g, unsigned irq)
{
	struct kvm_interrupt i = {.irq = irq};

	return kioctl(g->fd, KVM_INTERRUPT, &i);
}

/* Real-mode handlers for vectors 0x20 and 0x30: each stores its number at [0x500 + bx] and counts bx up. */
static void real_mode_handlers(struct guest *g)
{
	CODE(g, 0x20 * 4, 0x00, 0x26, 0x00, 0x00);
	CODE(g, 0x30 * 4, 0x10, 0x26, 0x00, 0x00);
	CODE(g, 0x2600, 0xc6, 0x87, 0x00, 0x05, 0x20, 0x43, 0xcf); /* mov byte [bx+0x500], 0x20; inc bx; iret */
	CODE(g, 0x2610, 0xc6, 0x87, 0x00, 0x05, 0x30, 0x43, 0xcf);
}

TEST(interrupts_real_mode)
{
	struct guest g;
	struct kvm_sregs s = {0};
	struct kvm_regs r;

	CHECK_EQ(guest_open(&g, 0x100000), 0);
	CHECK_EQ(guest_start16(&g, 0x2000), 0);
	real_mode_handlers(&g);
	CHECK_ERR(inject(&g, 256), EINVAL);
	CODE(&g, 0x2000, 0x90, 0xfb, /* sti */ 0x90, 0x90, 0xfa, /* cli */ 0xf4);
	CHECK_EQ(inject(&g, 0x30), 0);
	CHECK_EQ(inject(&g, 0x20), 0);
	kioctl(g.fd, KVM_GET_SREGS, &s);
	CHECK_EQ(s.pending_int, 1);
	halts(&g);
	kioctl(g.fd, KVM_GET_SREGS, &s);
	CHECK_EQ(s.pending_int, 0);
	regs_get(&g, &r);
	CHECK_EQ(r.rbx, 2);
	/* The lowest vector went first. */
	CHECK_EQ(g.ram[0x500], 0x20);
	CHECK_EQ(g.ram[0x501], 0x30);
	CHECK_EQ(r.rsp, 0x1000);
	guest_close(&g);
}

TEST(interrupt_instead_of_hlt_exit)
{
	struct guest g;
	struct kvm_regs r;

	CHECK_EQ(guest_open(&g, 0x100000), 0);
	CHECK_EQ(guest_start16(&g, 0x2000), 0);
	real_mode_handlers(&g);
	/* sti; hlt; mov cx, 7; cli; hlt: the interrupt comes in the shadow's HLT and ends it. */
	CODE(&g, 0x2000, 0xfb, 0xf4, 0xb9, 0x07, 0x00, 0xfa, 0xf4);
	CHECK_EQ(inject(&g, 0x20), 0);
	halts(&g);
	regs_get(&g, &r);
	CHECK_EQ(r.rcx, 7);
	CHECK_EQ(r.rbx, 1);
	CHECK_EQ(r.rip, 0x2007);
	guest_close(&g);
}

/* ---- translate, debug
 * ---------------------------------------------------------------------------------------------------------- */

TEST(translate)
{
	struct guest g;
	struct kvm_translation t = {.linear_address = 0x123456};
	uint64_t *pd;

	CHECK_EQ(guest_open(&g, 0x200000), 0);
	CHECK_EQ(kioctl(g.fd, KVM_TRANSLATE, &t), 0);
	CHECK_EQ(t.valid, 1);
	CHECK_EQ(t.physical_address, 0x123456);
	CHECK_EQ(guest_start64(&g, 0x2000), 0);
	pd = (uint64_t *)(void *)(g.ram + 0xa000);
	pd[1] = 0x400000 | 0x81; /* present, not writable, not user */
	pd[2] = 0;
	t.linear_address = 0x2345678 - 0x2000000 + 0x200000 - 0x145678 + 0x1234;
	t.linear_address = 0x201234;
	CHECK_EQ(kioctl(g.fd, KVM_TRANSLATE, &t), 0);
	CHECK_EQ(t.valid, 1);
	CHECK_EQ(t.physical_address, 0x401234);
	CHECK_EQ(t.writeable, 0);
	CHECK_EQ(t.usermode, 0);
	CHECK_EQ(pd[1], 0x400081); /* no accessed bit */
	t.linear_address = 0x400000;
	CHECK_EQ(kioctl(g.fd, KVM_TRANSLATE, &t), 0);
	CHECK_EQ(t.valid, 0);
	t.linear_address = 0x600010;
	CHECK_EQ(kioctl(g.fd, KVM_TRANSLATE, &t), 0);
	CHECK_EQ(t.valid, 1);
	CHECK_EQ(t.writeable, 1);
	CHECK_EQ(t.usermode, 1);
	guest_close(&g);
}

TEST(debug)
{
	struct guest g;
	struct kvm_regs r;
	struct kvm_debug_guest d = {.enabled = 1, .singlestep = 1};

	CHECK_EQ(guest_open(&g, 0x100000), 0);
	CHECK_EQ(guest_start16(&g, 0x2000), 0);
	/* mov ax, 1; inc ax; inc ax; pushf; pop bx; hlt */
	CODE(&g, 0x2000, 0xb8, 1, 0, 0x40, 0x40, 0x9c, 0x5b, 0xf4);
	CHECK_EQ(kioctl(g.fd, KVM_DEBUG_GUEST, &d), 0);
	for (unsigned n = 0; n < 5; n++) {
		static const unsigned rip[] = {0x2003, 0x2004, 0x2005, 0x2006, 0x2007};

		CHECK_EQ(guest_run(&g), 0);
		CHECK_EQ(g.run.exit_reason, KVM_EXIT_DEBUG);
		regs_get(&g, &r);
		CHECK_EQ(r.rip, rip[n]);
		CHECK_EQ(r.rflags & 0x10100, 0);
	}
	/* The guest does not see the stepping. */
	CHECK_EQ(r.rbx & 0x100, 0);
	d.singlestep = 0;
	d.breakpoints[2].enabled = 1;
	d.breakpoints[2].address = 0x2004;
	CHECK_EQ(kioctl(g.fd, KVM_DEBUG_GUEST, &d), 0);
	r.rip = 0x2000;
	regs_set(&g, &r);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run.exit_reason, KVM_EXIT_DEBUG);
	regs_get(&g, &r);
	CHECK_EQ(r.rip, 0x2004);
	CHECK_EQ(r.rax, 2);
	d.enabled = 0;
	CHECK_EQ(kioctl(g.fd, KVM_DEBUG_GUEST, &d), 0);
	halts(&g);
	regs_get(&g, &r);
	CHECK_EQ(r.rax, 3);
	guest_close(&g);
}

/* ---- dirty log
 * ----------------------------------------------------------------------------------------------------------------- */

static int dirty(struct guest *g, unsigned slot, void *bits)
{
	struct kvm_dirty_log log = {.slot = slot};

	log.dirty_bitmap = bits;
	return kioctl(g->fd, KVM_GET_DIRTY_LOG, &log);
}

TEST(dirty_log)
{
	struct guest g;
	uint8_t bits[32];

	CHECK_EQ(guest_open(&g, 0x100000), 0);
	CHECK_ERR(dirty(&g, 1000, bits), EINVAL);
	CHECK_ERR(dirty(&g, 7, bits), ENOENT);
	CHECK_ERR(dirty(&g, 0, bits), ENOENT);
	CHECK_EQ(region(g.fd, 0, 0, 0x100000, KVM_MEM_LOG_DIRTY_PAGES), 0);
	CHECK_EQ(guest_start16(&g, 0x2000), 0);
	/* inc word [0x3000]; mov [0x8fff], ax; hlt */
	CODE(&g, 0x2000, 0xff, 0x06, 0x00, 0x30, 0xa3, 0xff, 0x8f, 0xf4);
	CHECK_EQ(dirty(&g, 0, bits), 0);
	memset(bits, 0, sizeof(bits));
	halts(&g);
	CHECK_ERR(dirty(&g, 0, BAD), EFAULT);
	CHECK_EQ(dirty(&g, 0, bits), 0);
	CHECK_EQ(bits[0], 1 << 3);
	CHECK_EQ(bits[1], 1 << 0 | 1 << 1);
	CHECK_EQ(dirty(&g, 0, bits), 0);
	CHECK_EQ(bits[0] | bits[1], 0);
	g.ram[0x5000] = 1; /* the client's own writes do not count */
	CHECK_EQ(guest_start16(&g, 0x2000), 0);
	halts(&g);
	CHECK_EQ(dirty(&g, 0, bits), 0);
	CHECK_EQ(bits[0], 1 << 3);
	CHECK_EQ(region(g.fd, 0, 0, 0x100000, 0), 0);
	CHECK_ERR(dirty(&g, 0, bits), ENOENT);
	guest_close(&g);
}

static void *run_until_hlt(void *arg)
{
	struct guest *g = arg;

	while (guest_run(g) < 0 && errno == EINTR)
		;
	return NULL;
}

TEST(dirty_log_against_concurrent_writes)
{
	struct guest g;
	enum { PAGES = 256, BASE = 0x100 };
	static uint8_t all[PAGES + BASE], bits[(PAGES + BASE) / 8];
	unsigned marked = 0;
	pthread_t thread;
	uint32_t *flag;

	CHECK_EQ(guest_open(&g, (PAGES + BASE) << 12), 0);
	CHECK_EQ(region(g.fd, 0, 0, (PAGES + BASE) << 12, KVM_MEM_LOG_DIRTY_PAGES), 0);
	CHECK_EQ(guest_start64(&g, 0x2000), 0);
	/* mov ebp, 300; again: mov ebx, 0x100000; next: inc qword [rbx]; add ebx, 4096; cmp ebx, 0x200000; jb next;
	 * dec ebp; jnz again; hlt: every page counts to 300 */
	CODE(&g, 0x2000, 0xbd, 0x2c, 1, 0, 0, 0xbb, 0, 0, 0x10, 0, 0x48, 0xff, 0x03, 0x81, 0xc3, 0, 0x10, 0, 0, 0x81,
	     0xfb, 0, 0, 0x20, 0, 0x72, 0xef, 0xff, 0xcd, 0x75, 0xe6, 0xf4);
	flag = (uint32_t *)(void *)(g.ram + 0x1ff000);
	pthread_create(&thread, NULL, run_until_hlt, &g);
	/* Whenever the log says "dirty", the page's value as seen afterwards is remembered; in the end a page whose
	 * value is not the remembered one must be dirty. */
	while (__atomic_load_n(flag, __ATOMIC_RELAXED) < 300) {
		CHECK_EQ(dirty(&g, 0, bits), 0);
		for (unsigned n = BASE; n < BASE + PAGES; n++)
			marked += bits[n / 8] >> (n % 8) & 1;
	}
	pthread_join(thread, NULL);
	CHECK(marked > PAGES / 2);
	CHECK_EQ(dirty(&g, 0, bits), 0);
	memset(all, 0, sizeof(all));
	for (unsigned n = BASE; n < BASE + PAGES; n++)
		CHECK_EQ(*(uint64_t *)(void *)(g.ram + (n << 12)), 300);
	guest_close(&g);
}

/* Between two calls that both say "clean", nothing may have been written. */
TEST(dirty_log_loses_nothing)
{
	struct guest g;
	static uint8_t bits[64];
	uint64_t after = 0;
	unsigned seen_dirty = 0;
	pthread_t thread;
	volatile uint64_t *counter;

	CHECK_EQ(guest_open(&g, 0x200000), 0);
	CHECK_EQ(region(g.fd, 0, 0, 0x200000, KVM_MEM_LOG_DIRTY_PAGES), 0);
	CHECK_EQ(guest_start64(&g, 0x2000), 0);
	/* mov ecx, 5000000; next: inc qword [0x100000]; dec ecx; jnz next; hlt */
	CODE(&g, 0x2000, 0xb9, 0x40, 0x4b, 0x4c, 0, 0x48, 0xff, 0x04, 0x25, 0, 0, 0x10, 0, 0xff, 0xc9, 0x75, 0xf4,
	     0xf4);
	counter = (volatile uint64_t *)(void *)(g.ram + 0x100000);
	pthread_create(&thread, NULL, run_until_hlt, &g);
	while (after < 5000000 && !test_bad_checks) {
		uint64_t before = *counter;

		CHECK_EQ(dirty(&g, 0, bits), 0);
		if (bits[0x100 / 8] & 1)
			seen_dirty++;
		else
			CHECK_EQ(before, after);
		after = *counter;
	}
	pthread_join(thread, NULL);
	CHECK(seen_dirty > 0);
	CHECK_EQ(*counter, 5000000);
	guest_close(&g);
}

/* ---- signals
 * -------------------------------------------------------------------------------------------------------------------
 */

static volatile int handler_ran;
static struct guest *handler_guest;
static struct kvm_regs handler_regs;

static void on_alarm(int sig)
{
	handler_ran++;
}

/* jmp $ with a counter: inc rax; jmp */
static void endless(struct guest *g)
{
	CHECK_EQ(guest_open(g, 0x200000), 0);
	CHECK_EQ(guest_start64(g, 0x2000), 0);
	CODE(g, 0x2000, 0x48, 0xff, 0xc0, 0xeb, 0xfb);
}

static void alarm_in(unsigned us, unsigned every)
{
	struct itimerval it = {.it_value.tv_usec = us, .it_interval.tv_usec = every};

	setitimer(ITIMER_REAL, &it, NULL);
}

TEST(signal_ends_run)
{
	struct guest g;
	struct kvm_run before;
	struct sigaction act = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
	struct kvm_regs r;

	endless(&g);
	sigaction(SIGALRM, &act, NULL);
	handler_ran = 0;
	memset(&g.run.io, 0x77, sizeof(g.run.io));
	before = g.run;
	alarm_in(20000, 0);
	CHECK_ERR(guest_run(&g), EINTR);
	CHECK_EQ(handler_ran, 1);
	CHECK_EQ(memcmp(&before, &g.run, sizeof(before)), 0);
	regs_get(&g, &r);
	CHECK(r.rax > 1000);
	CHECK(r.rip == 0x2000 || r.rip == 0x2003);
	/* It goes on where it stopped. */
	before.vcpu = 0;
	alarm_in(20000, 0);
	CHECK_ERR(guest_run(&g), EINTR);
	signal(SIGALRM, on_alarm);
	alarm_in(20000, 0);
	CHECK_ERR(guest_run(&g), EINTR);
	CHECK_EQ(handler_ran, 3);
	CHECK(signal(SIGALRM, SIG_DFL) == on_alarm);
	guest_close(&g);
}

static void on_alarm_look(int sig, siginfo_t *info, void *context)
{
	handler_ran += info->si_signo == sig;
	regs_get(handler_guest, &handler_regs);
}

TEST(handler_may_look_at_the_guest)
{
	struct guest g;
	struct sigaction act = {.sa_sigaction = on_alarm_look, .sa_flags = SA_SIGINFO}, old;

	endless(&g);
	handler_guest = &g;
	handler_ran = 0;
	memset(&handler_regs, 0, sizeof(handler_regs));
	sigaction(SIGALRM, &act, &old);
	alarm_in(10000, 0);
	CHECK_ERR(guest_run(&g), EINTR);
	CHECK_EQ(handler_ran, 1);
	CHECK(handler_regs.rax > 0);
	CHECK(handler_regs.rip == 0x2000 || handler_regs.rip == 0x2003);
	sigaction(SIGALRM, &old, &act);
	CHECK(act.sa_sigaction == on_alarm_look);
	guest_close(&g);
}

static sigjmp_buf run_jump;

static void on_alarm_jump(int sig)
{
	siglongjmp(run_jump, 1);
}

TEST(handler_may_jump_out)
{
	struct guest g;
	struct kvm_regs r;

	endless(&g);
	signal(SIGALRM, on_alarm_jump);
	for (volatile unsigned n = 0; n < 5; n++) {
		if (sigsetjmp(run_jump, 1) == 0) {
			alarm_in(3000, 0);
			guest_run(&g);
			CHECK(!"the handler jumps");
		}
		CHECK_EQ(regs_get(&g, &r), 0);
	}
	signal(SIGALRM, SIG_DFL);
	guest_close(&g);
}

TEST(alternate_stack_and_mask)
{
	struct guest g;
	static uint8_t stack[65536];
	stack_t ss = {.ss_sp = stack, .ss_size = sizeof(stack)}, off = {.ss_flags = SS_DISABLE};
	struct sigaction act = {.sa_handler = on_alarm, .sa_flags = SA_ONSTACK};
	sigset_t blocked, now;

	endless(&g);
	sigaltstack(&ss, NULL);
	sigaddset(&act.sa_mask, SIGUSR2);
	sigaction(SIGALRM, &act, NULL);
	handler_ran = 0;
	alarm_in(5000, 0);
	CHECK_ERR(guest_run(&g), EINTR);
	CHECK_EQ(handler_ran, 1);
	sigprocmask(SIG_BLOCK, NULL, &now);
	CHECK(!sigismember(&now, SIGALRM) && !sigismember(&now, SIGUSR2) && !sigismember(&now, SIGTERM));
	/* A blocked signal does not end the run; another that is not blocked does, and the first stays pending. */
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGUSR1);
	sigprocmask(SIG_BLOCK, &blocked, NULL);
	signal(SIGUSR1, on_alarm);
	raise(SIGUSR1);
	alarm_in(5000, 0);
	CHECK_ERR(guest_run(&g), EINTR);
	CHECK_EQ(handler_ran, 2);
	sigprocmask(SIG_UNBLOCK, &blocked, NULL);
	CHECK_EQ(handler_ran, 3);
	sigaltstack(&off, NULL);
	signal(SIGALRM, SIG_DFL);
	signal(SIGUSR1, SIG_DFL);
	guest_close(&g);
}

static uint64_t ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

static volatile uint64_t handler_time;

static void on_alarm_time(int sig)
{
	handler_time = ns();
}

TEST(run_ends_within_a_millisecond)
{
	struct guest g;
	uint64_t worst = 0, late = 0;

	endless(&g);
	signal(SIGALRM, on_alarm_time);
	for (unsigned n = 0; n < 50; n++) {
		uint64_t took;

		alarm_in(1000 + n * 37, 0);
		CHECK_ERR(guest_run(&g), EINTR);
		took = ns() - handler_time;
		if (took > worst)
			worst = took;
		late += took > 1000000;
	}
	/* One may fall into a pause of the host. */
	CHECK(late <= 1);
	printf("  worst: %.1f us from the handler to the end of KVM_RUN\n", (double)worst / 1000);
	signal(SIGALRM, SIG_DFL);
	guest_close(&g);
}

/* A guest that checks itself, under a storm of signals: sum of 1..n by a loop with memory, push, pop and calls. */
TEST(storm_of_signals)
{
	struct guest g;
	struct kvm_regs r;
	unsigned interrupted = 0;

	CHECK_EQ(guest_open(&g, 0x200000), 0);
	CHECK_EQ(guest_start64(&g, 0x2000), 0);
	/* mov ecx, 3000000; xor eax, eax; next: push rcx; call f; pop rcx; dec ecx; jnz next; hlt; f: add rax, rcx; ret
	 */
	CODE(&g, 0x2000, 0xb9, 0xc0, 0xc6, 0x2d, 0, 0x31, 0xc0, 0x51, 0xe8, 6, 0, 0, 0, 0x59, 0xff, 0xc9, 0x75, 0xf5,
	     0xf4, 0x48, 0x01, 0xc8, 0xc3);
	signal(SIGALRM, on_alarm);
	alarm_in(100, 100);
	for (;;) {
		int rc = guest_run(&g);

		if (rc == 0)
			break;
		CHECK_EQ(errno, EINTR);
		if (errno != EINTR)
			break;
		interrupted++;
	}
	alarm_in(0, 0);
	CHECK_EQ(g.run.exit_reason, KVM_EXIT_HLT);
	regs_get(&g, &r);
	CHECK_EQ(r.rax, 3000000ull * 3000001 / 2);
	CHECK(interrupted > 3);
	signal(SIGALRM, SIG_DFL);
	guest_close(&g);
}

/* ---- concurrency, life cycle
 * ---------------------------------------------------------------------------------------------------- */

TEST(regions_change_while_running)
{
	struct guest g;
	pthread_t thread;
	uint8_t *p;

	CHECK_EQ(guest_open(&g, 0x200000), 0);
	CHECK_EQ(guest_start64(&g, 0x2000), 0);
	/* mov eax, 0x400000; wait: cmp dword [0x100000], 0; je wait; mov ebx, [rax]; mov [0x100008], ebx; hlt */
	CODE(&g, 0x2000, 0xb8, 0, 0, 0x40, 0, 0x83, 0x3c, 0x25, 0, 0, 0x10, 0, 0, 0x74, 0xf6, 0x8b, 0x18, 0x89, 0x1c,
	     0x25, 8, 0, 0x10, 0, 0xf4);
	pthread_create(&thread, NULL, run_until_hlt, &g);
	for (unsigned n = 0; n < 200; n++) {
		CHECK_EQ(region(g.fd, 1, 0x400000, 0x10000, 0), 0);
		CHECK_EQ(region(g.fd, 1, 0x600000, 0x10000, 0), 0);
		CHECK_EQ(region(g.fd, 1, 0x600000, 0, 0), 0);
	}
	CHECK_EQ(region(g.fd, 1, 0x400000, 0x10000, 0), 0);
	p = kmmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_SHARED, g.fd, 0x400000);
	*(uint32_t *)(void *)p = 0xfeed;
	__atomic_store_n((uint32_t *)(void *)(g.ram + 0x100000), 1, __ATOMIC_SEQ_CST);
	pthread_join(thread, NULL);
	CHECK_EQ(g.run.exit_reason, KVM_EXIT_HLT);
	CHECK_EQ(*(uint32_t *)(void *)(g.ram + 0x100008), 0xfeed);
	munmap(p, 0x10000);
	guest_close(&g);
}

struct second {
	struct guest *g;
	unsigned vcpu;
	int rc;
	struct kvm_run run;
};

static void *run_second(void *arg)
{
	struct second *s = arg;

	s->run.vcpu = s->vcpu;
	s->rc = kioctl(s->g->fd, KVM_RUN, &s->run);
	return NULL;
}

TEST(vcpus_in_parallel_and_atomics)
{
	struct guest g;
	enum { N = 4 };
	struct second s[N];
	pthread_t thread[N];

	CHECK_EQ(guest_open(&g, 0x200000), 0);
	/* mov ecx, 200000; next: lock inc qword [0x100000]; mov eax, 1; lock xadd [0x100010], rax; dec ecx; jnz next;
	 * hlt */
	CODE(&g, 0x2000, 0xb9, 0x40, 0x0d, 3, 0, 0xf0, 0x48, 0xff, 0x04, 0x25, 0, 0, 0x10, 0, 0xb8, 1, 0, 0, 0, 0xf0,
	     0x48, 0x0f, 0xc1, 0x04, 0x25, 0x10, 0, 0x10, 0, 0xff, 0xc9, 0x75, 0xe4, 0xf4);
	CHECK_EQ(guest_start64(&g, 0x2000), 0);
	for (unsigned n = 0; n < N; n++) {
		struct kvm_sregs sr = {0};
		struct kvm_regs r;

		if (n)
			CHECK_EQ(kioctl(g.fd, KVM_CREATE_VCPU, (long)n), 0);
		kioctl(g.fd, KVM_GET_SREGS, &sr);
		regs_get(&g, &r);
		sr.vcpu = r.vcpu = n;
		CHECK_EQ(kioctl(g.fd, KVM_SET_SREGS, &sr), 0);
		CHECK_EQ(kioctl(g.fd, KVM_SET_REGS, &r), 0);
		s[n] = (struct second){.g = &g, .vcpu = n};
	}
	for (unsigned n = 0; n < N; n++)
		pthread_create(&thread[n], NULL, run_second, &s[n]);
	for (unsigned n = 0; n < N; n++) {
		pthread_join(thread[n], NULL);
		CHECK_EQ(s[n].rc, 0);
		CHECK_EQ(s[n].run.exit_reason, KVM_EXIT_HLT);
	}
	CHECK_EQ(*(uint64_t *)(void *)(g.ram + 0x100000), N * 200000);
	CHECK_EQ(*(uint64_t *)(void *)(g.ram + 0x100010), N * 200000);
	guest_close(&g);
}

static unsigned count_lines(const char *path)
{
	FILE *f = fopen(path, "r");
	unsigned n = 0;
	int c;

	while (f && (c = fgetc(f)) != EOF)
		n += c == '\n';
	if (f)
		fclose(f);
	return n;
}

static unsigned count_fds(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 256; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

TEST(a_thousand_vms_leave_nothing)
{
	unsigned fds = 0, maps = 0;

	for (unsigned n = 0; n < 1010; n++) {
		struct guest g;

		if (n == 10) {
			fds = count_fds();
			maps = count_lines("/proc/self/maps");
		}
		CHECK_EQ(guest_open(&g, 0x200000), 0);
		CHECK_EQ(guest_start16(&g, 0x2000), 0);
		CODE(&g, 0x2000, 0xf4);
		CHECK_EQ(guest_run(&g), 0);
		guest_close(&g);
		if (test_bad_checks)
			break;
	}
	CHECK_EQ(count_fds(), fds);
	CHECK(count_lines("/proc/self/maps") <= maps + 2);
}

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
