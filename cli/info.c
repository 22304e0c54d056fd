/*
 * info.c: `devkvm info`: whether this machine's own /dev/kvm would do, which engine serves otherwise, what the
 * interface and the guest's processor offer, and what of the machine's settings stands in the way.
 */
#define _GNU_SOURCE
#include "cli.h"

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../include/devkvm.h"

/* Of today's <linux/kvm.h>; this folder is built with the header of 2006. */
#define GET_API_VERSION 0xae00
#define CREATE_VM 0xae01
#define CHECK_EXTENSION 0xae03

static const char usage[] = "usage: devkvm info\n";

/* Numbers and names of capabilities (Documentation/virt/kvm/api.rst). */
static const struct {
	unsigned number;
	const char *name;
} caps[] = {
        {0, "IRQCHIP"},
        {3, "USER_MEMORY"},
        {4, "SET_TSS_ADDR"},
        {7, "EXT_CPUID"},
        {9, "NR_VCPUS"},
        {10, "NR_MEMSLOTS"},
        {14, "MP_STATE"},
        {15, "COALESCED_MMIO"},
        {23, "SET_GUEST_DEBUG"},
        {25, "IRQ_ROUTING"},
        {26, "IRQ_INJECT_STATUS"},
        {31, "MCE"},
        {32, "IRQFD"},
        {33, "PIT2"},
        {36, "IOEVENTFD"},
        {39, "ADJUST_CLOCK"},
        {41, "VCPU_EVENTS"},
        {50, "DEBUGREGS"},
        {55, "XSAVE"},
        {56, "XCRS"},
        {60, "TSC_CONTROL"},
        {61, "GET_TSC_KHZ"},
        {66, "MAX_VCPUS"},
        {72, "TSC_DEADLINE_TIMER"},
        {74, "SYNC_REGS"},
        {77, "SIGNAL_MSI"},
        {81, "READONLY_MEM"},
        {82, "IRQFD_RESAMPLE"},
        {117, "X86_SMM"},
        {118, "MULTI_ADDRESS_SPACE"},
        {121, "SPLIT_IRQCHIP"},
        {123, "HYPERV_SYNIC"},
        {129, "X2APIC_API"},
        {136, "IMMEDIATE_EXIT"},
        {157, "NESTED_STATE"},
        {162, "COALESCED_PIO"},
        {165, "EXCEPTION_PAYLOAD"},
        {168, "MANUAL_DIRTY_LOG_PROTECT2"},
        {188, "X86_USER_SPACE_MSR"},
        {189, "X86_MSR_FILTER"},
        {192, "DIRTY_LOG_RING"},
        {200, "SREGS2"},
        {203, "BINARY_STATS_FD"},
        {208, "XSAVE2"},
};

/* Features that guests may find, by CPUID word: 0 1.ECX, 1 1.EDX, 2 7.EBX, 3 7.ECX, 4 0x80000001.ECX, 5 ....EDX. */
static const struct {
	uint8_t word, bit;
	const char *name;
} features[] = {
        {1, 0, "fpu"},     {1, 4, "tsc"},     {1, 15, "cmov"},     {1, 23, "mmx"},      {1, 24, "fxsr"},
        {1, 25, "sse"},    {1, 26, "sse2"},   {0, 0, "sse3"},      {0, 9, "ssse3"},     {0, 19, "sse4.1"},
        {0, 20, "sse4.2"}, {0, 23, "popcnt"}, {0, 25, "aes"},      {0, 1, "pclmulqdq"}, {0, 12, "fma"},
        {0, 13, "cx16"},   {0, 22, "movbe"},  {0, 26, "xsave"},    {0, 28, "avx"},      {0, 29, "f16c"},
        {0, 30, "rdrand"}, {0, 17, "pcid"},   {2, 5, "avx2"},      {2, 3, "bmi1"},      {2, 8, "bmi2"},
        {2, 19, "adx"},    {2, 29, "sha"},    {2, 18, "rdseed"},   {2, 0, "fsgsbase"},  {2, 7, "smep"},
        {2, 20, "smap"},   {2, 9, "erms"},    {2, 10, "invpcid"},  {2, 16, "avx512f"},  {3, 2, "umip"},
        {3, 16, "la57"},   {5, 20, "nx"},     {5, 26, "1g-pages"}, {5, 27, "rdtscp"},   {5, 29, "long-mode"},
        {4, 2, "svm"},     {0, 5, "vmx"},
};

static long number_in(const char *path, long otherwise)
{
	FILE *f = fopen(path, "r");
	long n = otherwise;

	if (f) {
		if (fscanf(f, "%ld", &n) != 1)
			n = otherwise;
		fclose(f);
	}
	return n;
}

static void hardware(void)
{
	unsigned a, b, c = 0, d, x = 0;
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC), err = errno, vm = -1;
	long version = fd < 0 ? -1 : ioctl(fd, GET_API_VERSION, 0);

	printf("hardware KVM: ");
	__get_cpuid(1, &a, &b, &c, &d);
	__get_cpuid(0x80000001u, &a, &b, &x, &d);
	if (fd < 0) {
		printf("no: /dev/kvm: %s", strerror(err));
	} else if (version != 12) {
		printf("no: /dev/kvm is something else (version %ld)", version);
	} else {
		vm = ioctl(fd, CREATE_VM, 0);
		if (vm < 0)
			printf("no: making a VM: %s", strerror(errno));
		else
			printf("yes: /dev/kvm makes VMs");
	}
	printf("\n  this processor %s%s\n",
	       c & 1u << 5   ? "has VT-x"
	       : x & 1u << 2 ? "has AMD-V"
	                     : "shows neither VT-x nor AMD-V",
	       c & 1u << 31 ? ", and is a virtual machine's" : "");
	if (vm >= 0)
		close(vm);
	if (fd >= 0)
		close(fd);
}

/* Executable memory as the translator makes it. */
static bool can_execute(void)
{
	int fd = memfd_create("devkvm-info", MFD_CLOEXEC);
	void *p = MAP_FAILED;

	if (fd >= 0 && ftruncate(fd, 4096) == 0)
		p = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	if (p != MAP_FAILED)
		munmap(p, 4096);
	if (fd >= 0)
		close(fd);
	return p != MAP_FAILED;
}

static void engine(void)
{
	const char *s = getenv("DEVKVM_ENGINE");
	bool exec = can_execute(), interp = s && strcmp(s, "interp") == 0;

	printf("engine: %s", interp || !exec ? "the interpreter" : "the translator");
	if (interp)
		printf(" (DEVKVM_ENGINE)");
	else if (!exec)
		printf(": executable memory cannot be had (memfd, PROT_EXEC)");
	printf("\n");
	printf("  vm.max_map_count %ld, vm.memfd_noexec %ld, kernel.perf_event_paranoid %ld\n",
	       number_in("/proc/sys/vm/max_map_count", -1), number_in("/proc/sys/vm/memfd_noexec", 0),
	       number_in("/proc/sys/kernel/perf_event_paranoid", -1));
}

static void interface(void)
{
	int fd = devkvm_open(0), column = 2;

	if (fd < 0) {
		printf("interface: cannot be had: %s\n", strerror(errno));
		return;
	}
	printf("interface: version %d, and that of October 2006; capabilities:\n ",
	       devkvm_ioctl(fd, GET_API_VERSION, NULL));
	for (unsigned n = 0; n < sizeof(caps) / sizeof(caps[0]); n++) {
		int val = devkvm_ioctl(fd, CHECK_EXTENSION, (void *)(uintptr_t)caps[n].number);
		char word[64];

		if (val <= 0)
			continue;
		snprintf(word, sizeof(word), val > 1 ? " %s=%d" : " %s", caps[n].name, val);
		column += (int)strlen(word);
		if (column > 110) {
			printf("\n ");
			column = 2 + (int)strlen(word);
		}
		fputs(word, stdout);
	}
	printf("\n");
	devkvm_close(fd);
}

static void processor(void)
{
	uint32_t leaf[4], words[6], brand[13] = {0};
	int column = 2;

	for (uint32_t n = 0; n < 3; n++)
		devkvm_cpuid(0x80000002u + n, 0, brand + 4 * n);
	printf("guest processor: %s\n ", (const char *)brand);
	devkvm_cpuid(1, 0, leaf);
	words[0] = leaf[2];
	words[1] = leaf[3];
	devkvm_cpuid(7, 0, leaf);
	words[2] = leaf[1];
	words[3] = leaf[2];
	devkvm_cpuid(0x80000001u, 0, leaf);
	words[4] = leaf[2];
	words[5] = leaf[3];
	for (unsigned n = 0; n < sizeof(features) / sizeof(features[0]); n++) {
		if (!(words[features[n].word] >> features[n].bit & 1))
			continue;
		column += 1 + (int)strlen(features[n].name);
		if (column > 110) {
			printf("\n ");
			column = 3 + (int)strlen(features[n].name);
		}
		printf(" %s", features[n].name);
	}
	printf("\n");
}

int cmd_info(int argc, char **argv)
{
	if (argc > 1) {
		bool help = strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0;

		fputs(usage, help ? stdout : stderr);
		return help ? 0 : STATUS_USAGE;
	}
	hardware();
	engine();
	interface();
	processor();
	return 0;
}
