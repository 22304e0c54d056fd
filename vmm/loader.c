/*
 * loader.c: a Linux kernel, its initrd and its command line into guest memory, by the boot protocol of the kernel's
 * Documentation/x86/boot.rst: the 64-bit entry, or the 32-bit one for 32-bit kernels.
 *
 * By default the bzImage's payload is unpacked here and the vmlinux (ELF) inside is entered. What the guest finds:
 *   0x00500 GDT    0x07000 boot_params    0x09000 page tables (identity, 4 GiB)    0x20000 command line
 *   0xf0000 ACPI tables    the initrd at the end of low RAM
 */
#define _GNU_SOURCE
#include "vmm.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define GDT_AT 0x500ull
#define BOOT_PARAMS_AT 0x7000ull
#define TABLES_AT 0x9000ull
#define CMDLINE_AT 0x20000ull
#define CMDLINE_MAX 0x10000ull
#define KERNEL_AT 0x100000ull

/* Offsets in boot_params; the setup header keeps its offsets of the file. */
#define BP_ACPI_RSDP 0x70
#define BP_E820_ENTRIES 0x1e8
#define BP_SETUP_SECTS 0x1f1
#define BP_BOOT_FLAG 0x1fe
#define BP_HEADER 0x202
#define BP_VERSION 0x206
#define BP_LOADER 0x210
#define BP_LOADFLAGS 0x211
#define BP_CODE32 0x214
#define BP_RAMDISK 0x218
#define BP_RAMDISK_SIZE 0x21c
#define BP_HEAP_END 0x224
#define BP_CMDLINE 0x228
#define BP_INITRD_MAX 0x22c
#define BP_ALIGNMENT 0x230
#define BP_XLOADFLAGS 0x236
#define BP_CMDLINE_SIZE 0x238
#define BP_PAYLOAD 0x248
#define BP_PAYLOAD_SIZE 0x24c
#define BP_PREF_ADDRESS 0x258
#define BP_INIT_SIZE 0x260
#define BP_E820 0x2d0
#define XLF_KERNEL_64 1

struct file {
	const uint8_t *p;
	size_t size;
};

static uint16_t get16(const uint8_t *p)
{
	uint16_t v;

	memcpy(&v, p, 2);
	return v;
}

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return v;
}

static void put32(uint8_t *p, uint32_t v)
{
	memcpy(p, &v, 4);
}

static int file_map(const char *path, const char *what, struct file *f)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	void *p;

	if (fd < 0 || fstat(fd, &st) < 0) {
		say("cannot read the %s %s: %s", what, path, strerror(errno));
		goto fail;
	}
	if (!S_ISREG(st.st_mode) || st.st_size == 0) {
		say("the %s %s is %s", what, path, S_ISREG(st.st_mode) ? "empty" : "not a file");
		goto fail;
	}
	p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (p == MAP_FAILED) {
		say("cannot read the %s %s: %s", what, path, strerror(errno));
		goto fail;
	}
	close(fd);
	f->p = p;
	f->size = (size_t)st.st_size;
	return 0;
fail:
	if (fd >= 0)
		close(fd);
	return -1;
}

static int too_little(const struct ram *ram, const char *what)
{
	say("%llu MiB of memory are too little for the %s; give more with --memory",
	    (unsigned long long)(ram->size / MiB), what);
	return -1;
}

/* One loadable segment. */
static int load_segment(struct ram *ram, const uint8_t *image, size_t size, uint64_t off, uint64_t filesz,
                        uint64_t memsz, uint64_t paddr, uint64_t *end)
{
	uint8_t *to;

	if (filesz > memsz || off > size || filesz > size - off) {
		say("the kernel inside the image is damaged: a segment lies outside the file");
		return -1;
	}
	to = ram_at(ram, paddr, memsz);
	if (!to)
		return too_little(ram, "kernel");
	memcpy(to, image + off, filesz);
	if (paddr + memsz > *end)
		*end = paddr + memsz;
	return 0;
}

/* Program header `n` of a 64-bit or 32-bit ELF file, in the 64-bit form. False: outside the file. */
static bool program_header(const uint8_t *image, size_t size, bool is64, unsigned n, Elf64_Phdr *out)
{
	const Elf64_Ehdr *e64 = (const void *)image;
	const Elf32_Ehdr *e32 = (const void *)image;
	uint64_t at = is64 ? e64->e_phoff + n * sizeof(Elf64_Phdr) : e32->e_phoff + n * sizeof(Elf32_Phdr);
	Elf32_Phdr ph;

	if (at > size - sizeof(*out))
		return false;
	if (is64) {
		memcpy(out, image + at, sizeof(*out));
		return true;
	}
	memcpy(&ph, image + at, sizeof(ph));
	*out = (Elf64_Phdr){.p_type = ph.p_type,
	                    .p_offset = ph.p_offset,
	                    .p_paddr = ph.p_paddr,
	                    .p_filesz = ph.p_filesz,
	                    .p_memsz = ph.p_memsz};
	return true;
}

/* An ELF vmlinux at its physical addresses. */
static int load_elf(struct ram *ram, const uint8_t *image, size_t size, struct boot_entry *entry, uint64_t *end)
{
	const Elf64_Ehdr *e64 = (const void *)image;
	const Elf32_Ehdr *e32 = (const void *)image;
	unsigned count;
	Elf64_Phdr ph;

	if (size < sizeof(*e64) || memcmp(image, ELFMAG, SELFMAG) != 0 ||
	    (image[EI_CLASS] != ELFCLASS64 && image[EI_CLASS] != ELFCLASS32)) {
		say("the image holds no ELF kernel");
		return -1;
	}
	entry->long_mode = image[EI_CLASS] == ELFCLASS64;
	entry->rip = entry->long_mode ? e64->e_entry : e32->e_entry;
	count = entry->long_mode ? e64->e_phnum : e32->e_phnum;
	for (unsigned n = 0; n < count && program_header(image, size, entry->long_mode, n, &ph); n++)
		if (ph.p_type == PT_LOAD &&
		    load_segment(ram, image, size, ph.p_offset, ph.p_filesz, ph.p_memsz, ph.p_paddr, end) < 0)
			return -1;
	return 0;
}

static int unpack_kernel(const struct boot_options *opt, const struct file *f, size_t setup, struct ram *ram,
                         struct boot_entry *entry, uint64_t *end)
{
	uint64_t off = setup + get32(f->p + BP_PAYLOAD), packed = get32(f->p + BP_PAYLOAD_SIZE);
	const char *why, *format;
	uint8_t *image;
	size_t size;
	int rc;

	if (off > f->size || packed > f->size - off) {
		say("%s is cut short: its payload ends %llu bytes past the file", opt->kernel,
		    (unsigned long long)(off + packed - f->size));
		return -1;
	}
	format = unpack_format(f->p + off, packed);
	if (!opt->quiet)
		say("unpacking the kernel (%s, %.1f MiB) ...", format ? format : "unknown format",
		    (double)packed / MiB);
	image = unpack(f->p + off, packed, &size, &why);
	if (!image) {
		say("%s: %s", opt->kernel, why);
		return -1;
	}
	rc = load_elf(ram, image, size, entry, end);
	free(image);
	return rc;
}

/* The protected-mode part of the bzImage as it is: the guest unpacks itself. */
static int load_packed(const struct file *f, size_t setup, struct ram *ram, struct boot_entry *entry, uint64_t *end)
{
	uint64_t need = f->size - setup, at = KERNEL_AT;
	uint8_t *to;

	if (get32(f->p + BP_INIT_SIZE) > need)
		need = get32(f->p + BP_INIT_SIZE);
	/* Where it unpacks to: from the preferred address on. */
	memcpy(&at, f->p + BP_PREF_ADDRESS, 8);
	if (at < KERNEL_AT)
		at = KERNEL_AT;
	to = ram_at(ram, at, need);
	if (!to)
		return too_little(ram, "kernel to unpack itself");
	memcpy(to, f->p + setup, f->size - setup);
	entry->long_mode = get16(f->p + BP_XLOADFLAGS) & XLF_KERNEL_64;
	entry->rip = at + (entry->long_mode ? 0x200 : 0);
	*end = at + need;
	return 0;
}

static void add_e820(uint8_t *bp, uint64_t start, uint64_t end, uint32_t type)
{
	uint8_t *e = bp + BP_E820 + 20 * bp[BP_E820_ENTRIES]++;
	uint64_t size = end - start;

	memcpy(e, &start, 8);
	memcpy(e + 8, &size, 8);
	memcpy(e + 16, &type, 4);
}

static void write_tables(struct ram *ram, bool long_mode)
{
	/* Flat code and data; selectors 0x10 and 0x18 as the protocol asks. */
	uint64_t gdt[] = {0, 0, long_mode ? 0x00af9a000000ffffull : 0x00cf9a000000ffffull, 0x00cf92000000ffffull};
	uint64_t *t = (void *)ram_at(ram, TABLES_AT, 0x6000);

	memcpy(ram_at(ram, GDT_AT, sizeof(gdt)), gdt, sizeof(gdt));
	t[0] = (TABLES_AT + 0x1000) | 3;
	for (unsigned n = 0; n < 4; n++)
		t[512 + n] = (TABLES_AT + 0x2000 + n * 0x1000) | 3;
	for (unsigned n = 0; n < 2048; n++)
		t[1024 + n] = (uint64_t)n << 21 | 0x83;
}

static int load_initrd(const char *path, struct ram *ram, uint8_t *bp, uint64_t kernel_end, uint64_t initrd_max)
{
	uint64_t top = ram_low_end(ram), at;
	struct file f;

	if (file_map(path, "initrd", &f) < 0)
		return -1;
	if (initrd_max && top > initrd_max + 1)
		top = initrd_max + 1;
	at = top > f.size ? (top - f.size) & ~0xfffull : 0;
	/* Some room, so that the guest does not start out of memory. */
	if (at < kernel_end + 16 * MiB) {
		munmap((void *)(uintptr_t)f.p, f.size);
		return too_little(ram, "kernel and its initrd");
	}
	memcpy(ram_at(ram, at, f.size), f.p, f.size);
	put32(bp + BP_RAMDISK, (uint32_t)at);
	put32(bp + BP_RAMDISK_SIZE, (uint32_t)f.size);
	munmap((void *)(uintptr_t)f.p, f.size);
	return 0;
}

int loader_load(const struct boot_options *opt, struct ram *ram, struct boot_entry *entry)
{
	struct file f;
	size_t setup, header_end;
	uint64_t end = 0, rsdp;
	uint8_t *bp = ram_at(ram, BOOT_PARAMS_AT, 4096);
	const char *append = opt->append ? opt->append : "console=ttyS0";
	int rc = -1;

	if (file_map(opt->kernel, "kernel", &f) < 0)
		return -1;
	if (f.size < 0x268 || get16(f.p + BP_BOOT_FLAG) != 0xaa55 || memcmp(f.p + BP_HEADER, "HdrS", 4) != 0) {
		say("%s is not a bzImage (no Linux setup header)", opt->kernel);
		goto out;
	}
	setup = ((f.p[BP_SETUP_SECTS] ? f.p[BP_SETUP_SECTS] : 4) + 1u) * 512;
	if (get16(f.p + BP_VERSION) < 0x20a || !(f.p[BP_LOADFLAGS] & 1)) {
		say("%s speaks boot protocol %u.%02u; devkvm needs a bzImage of 2.10 or later", opt->kernel,
		    f.p[BP_VERSION + 1], f.p[BP_VERSION]);
		goto out;
	}
	if (f.size <= setup) {
		say("%s is cut short: nothing follows its setup code", opt->kernel);
		goto out;
	}
	if (strlen(append) >= CMDLINE_MAX ||
	    (get32(f.p + BP_CMDLINE_SIZE) && strlen(append) > get32(f.p + BP_CMDLINE_SIZE))) {
		say("the kernel command line (--append) is too long for this kernel");
		goto out;
	}
	rc = opt->no_unpack ? load_packed(&f, setup, ram, entry, &end)
	                    : unpack_kernel(opt, &f, setup, ram, entry, &end);
	if (rc < 0)
		goto out;

	memset(bp, 0, 4096);
	header_end = 0x202u + f.p[0x201];
	memcpy(bp + BP_SETUP_SECTS, f.p + BP_SETUP_SECTS, header_end - BP_SETUP_SECTS);
	bp[BP_LOADER] = 0xff;
	bp[BP_LOADFLAGS] |= 1;
	if (opt->no_unpack)
		put32(bp + BP_CODE32, (uint32_t)(entry->rip & ~0xfffull));
	strcpy((char *)ram_at(ram, CMDLINE_AT, CMDLINE_MAX), append);
	put32(bp + BP_CMDLINE, CMDLINE_AT);
	rsdp = acpi_write_tables(ram);
	memcpy(bp + BP_ACPI_RSDP, &rsdp, 8);
	add_e820(bp, 0, 0x9fc00, 1);
	add_e820(bp, 0x9fc00, LOW_RAM_END, 2);
	add_e820(bp, 0xe0000, MiB, 2);
	add_e820(bp, MiB, ram_low_end(ram), 1);
	if (ram->n > 2)
		add_e820(bp, RAM_HOLE_END, RAM_HOLE_END + ram->range[2].size, 1);
	write_tables(ram, entry->long_mode);
	entry->rsi = BOOT_PARAMS_AT;
	rc = opt->initrd ? load_initrd(opt->initrd, ram, bp, end, get32(f.p + BP_INITRD_MAX)) : 0;
out:
	munmap((void *)(uintptr_t)f.p, f.size);
	return rc;
}
