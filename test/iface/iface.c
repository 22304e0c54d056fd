/*
 * iface.c: the 2006 interface call by call: what each does, and every errno.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <setjmp.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "client.h"
#include "test.h"

#define BAD ((void *)16)

/* ---- numbers and layouts ----------------------------------------------------------------------------------------- */

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

/* ---- the file ---------------------------------------------------------------------------------------------------- */

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

/* ---- memory regions ---------------------------------------------------------------------------------------------- */

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

/* ---- vCPUs ------------------------------------------------------------------------------------------------------- */

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

/* ---- exits ------------------------------------------------------------------------------------------------------- */

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

/* A client that sends the guest elsewhere does not find the old exception there. */
TEST(new_rip_voids_a_delivery)
{
	struct guest g;
	struct kvm_sregs s = {0};
	struct kvm_regs r;

	CHECK_EQ(guest_open(&g, 0x200000), 0);
	CHECK_EQ(guest_start64(&g, 0x2000), 0);
	CODE(&g, 0x2000, 0x0f, 0x0b, 0xf4); /* ud2; hlt */
	CHECK_EQ(kioctl(g.fd, KVM_GET_SREGS, &s), 0);
	s.idt.base = 0x400000; /* no slot: reading the gate is MMIO */
	s.idt.limit = 0xfff;
	CHECK_EQ(kioctl(g.fd, KVM_SET_SREGS, &s), 0);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run.exit_reason, KVM_EXIT_MMIO);
	regs_get(&g, &r);
	r.rip = 0x2002;
	regs_set(&g, &r);
	CHECK_EQ(guest_run(&g), 0);
	CHECK_EQ(g.run.exit_reason, KVM_EXIT_HLT);
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

/* ---- interrupts -------------------------------------------------------------------------------------------------- */

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

/* An interrupt that comes in the middle of a repetition pushes RF = 1, one that comes after it does not. */
TEST(interrupt_within_a_repetition)
{
	struct guest g;
	struct kvm_regs r;
	struct kvm_sregs s = {0};
	uint64_t *gdt, *idt;

	CHECK_EQ(guest_open(&g, 0x200000), 0);
	CHECK_EQ(guest_start64(&g, 0x2000), 0);
	gdt = (uint64_t *)(void *)(g.ram + 0x5000);
	gdt[1] = 0x00af9b000000ffffull;
	gdt[2] = 0x00cf93000000ffffull;
	idt = (uint64_t *)(void *)(g.ram + 0x6000);
	idt[2 * 0x20] = 0x2600 | 8ull << 16 | 0x8e00ull << 32;
	kioctl(g.fd, KVM_GET_SREGS, &s);
	s.gdt.base = 0x5000;
	s.gdt.limit = 23;
	s.idt.base = 0x6000;
	s.idt.limit = 0xfff;
	kioctl(g.fd, KVM_SET_SREGS, &s);
	/* mov esi, 0x100000; mov ecx, 0x80000; sti; rep lodsb (in the shadow); hlt */
	CODE(&g, 0x2000, 0xbe, 0, 0, 0x10, 0, 0xb9, 0, 0, 8, 0, 0xfb, 0xf3, 0xac, 0xf4);
	CODE(&g, 0x2600, 0x48, 0x8b, 0x5c, 0x24, 0x10, 0xf4); /* mov rbx, [rsp+16]; hlt */
	CHECK_EQ(inject(&g, 0x20), 0);
	halts(&g);
	regs_get(&g, &r);
	CHECK_EQ(r.rip, 0x2606);
	CHECK(r.rcx > 0 && r.rcx < 0x80000);
	CHECK_EQ(r.rbx >> 16 & 1, 1);
	/* mov ecx, 1; sti; rep lodsb: complete when the interrupt comes */
	CODE(&g, 0x2000, 0xb9, 1, 0, 0, 0, 0xfb, 0xf3, 0xac, 0xf4);
	CHECK_EQ(guest_start64(&g, 0x2000), 0);
	kioctl(g.fd, KVM_SET_SREGS, &s);
	regs_get(&g, &r);
	r.rsi = 0x100000;
	regs_set(&g, &r);
	CHECK_EQ(inject(&g, 0x20), 0);
	halts(&g);
	regs_get(&g, &r);
	CHECK_EQ(r.rip, 0x2606);
	CHECK_EQ(r.rbx >> 16 & 1, 0);
	guest_close(&g);
}

/* ---- translate, debug -------------------------------------------------------------------------------------------- */

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
	t.linear_address = 1ull << 63; /* not canonical: the tables alone would translate it */
	CHECK_EQ(kioctl(g.fd, KVM_TRANSLATE, &t), 0);
	CHECK_EQ(t.valid, 0);
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

/* ---- guest exceptions that the host CPU raises ------------------------------------------------------------------- */

static volatile int fpe_seen;

static void on_fpe(int sig)
{
	fpe_seen++;
}

static void divide_unmasked(struct guest *g)
{
	uint32_t mxcsr = 0x1d80; /* ZM clear */
	float one[4] = {1, 1, 1, 1};

	CHECK_EQ(guest_start16(g, 0x2000), 0);
	/* mov eax, 0x600; mov cr4, eax; ldmxcsr [0x4000]; movaps xmm0, [0x4010]; divps xmm0, [0x4020]; hlt */
	CODE(g, 0x2000, 0x66, 0xb8, 0x00, 0x06, 0, 0, 0x0f, 0x22, 0xe0, 0x0f, 0xae, 0x16, 0x00, 0x40, 0x0f, 0x28, 0x06,
	     0x10, 0x40, 0x0f, 0x5e, 0x06, 0x20, 0x40, 0xf4);
	/* #XM: stmxcsr [0x4030]; out 0x13, al */
	CODE(g, 0x3000, 0x0f, 0xae, 0x1e, 0x30, 0x40, 0xe6, 0x13);
	CODE(g, 0x13 * 4, 0x00, 0x30, 0x00, 0x00);
	memcpy(g->ram + 0x4000, &mxcsr, 4);
	memcpy(g->ram + 0x4010, one, 16);
	memset(g->ram + 0x4020, 0, 32);
	CHECK_EQ(guest_run(g), 0);
	CHECK_EQ(g->run.exit_reason, KVM_EXIT_IO);
	CHECK_EQ(g->run.io.port, 0x13);
	memcpy(&mxcsr, g->ram + 0x4030, 4);
	CHECK_EQ(mxcsr, 0x1d84);
}

/* The client never hears of them, whatever it does with SIGFPE, and keeps what it did. */
TEST(guest_simd_exception_is_not_the_clients)
{
	struct sigaction ignore = {.sa_handler = SIG_IGN}, handle = {.sa_handler = on_fpe}, was, now;
	sigset_t fpe, before, after;
	struct guest g;

	CHECK_EQ(guest_open(&g, 0x100000), 0);
	divide_unmasked(&g);
	CHECK_EQ(sigaction(SIGFPE, &ignore, &was), 0);
	sigemptyset(&fpe);
	sigaddset(&fpe, SIGFPE);
	CHECK_EQ(sigprocmask(SIG_BLOCK, &fpe, &before), 0);
	divide_unmasked(&g);
	CHECK_EQ(sigprocmask(SIG_SETMASK, &before, &after), 0);
	CHECK(sigismember(&after, SIGFPE));
	raise(SIGFPE);
	CHECK_EQ(sigaction(SIGFPE, &handle, &now), 0);
	CHECK(now.sa_handler == SIG_IGN);
	divide_unmasked(&g);
	CHECK_EQ(fpe_seen, 0);
	raise(SIGFPE);
	CHECK_EQ(fpe_seen, 1);
	CHECK_EQ(sigaction(SIGFPE, &was, NULL), 0);
	guest_close(&g);
}

/* ---- dirty log --------------------------------------------------------------------------------------------------- */

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

int main(int argc, char **argv)
{
	return test_main(argc, argv);
}
