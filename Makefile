# devkvm's build. `make help` says what there is.
#
# CC=clang builds with clang; SAN=1 builds with ASan and UBSan into build-san; BUILD names the build folder.
CC := $(if $(filter default,$(origin CC)),gcc,$(CC))
SAN ?=
BUILD ?= build$(if $(SAN),-san)
PREFIX ?= /usr/local
DESTDIR ?=
VERSION := 0.1.0
SHELL := /bin/bash
# V=1 shows the commands.
V ?=
Q := $(if $(V),,@)

CFLAGS ?= -O2 -g
WARN := -Wall -Wextra -Werror -Wstrict-prototypes -Wmissing-prototypes -Wno-unused-parameter -Wno-missing-field-initializers
BASE_CFLAGS := -std=gnu17 $(WARN) -fPIC -fvisibility=hidden -mno-red-zone -fno-strict-aliasing -pthread \
	-DDEVKVM_VERSION='"$(VERSION)"'
ifneq ($(SAN),)
BASE_CFLAGS += -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -DDEVKVM_DEBUG_BUILD
LDFLAGS += -fsanitize=address,undefined
endif

# The engine: everything below the doors. Front: the doors themselves. What serves programs that were not built for us
# only goes into the preloaded library: replaced symbols, and the calls of static programs, which devkvm-load starts.
CORE_SRC := $(wildcard src/base/*.c src/x86/*.c src/mem/*.c src/cpu/*.c src/interp/*.c src/jit/*.c src/chip/*.c src/kvm/*.c)
PRELOAD_SRC := $(addprefix src/front/,preload.c paths.c spawn.c exec.c) $(wildcard src/front/static_*.c)
FRONT_SRC := $(filter-out $(PRELOAD_SRC) src/front/load_main.c,$(wildcard src/front/*.c))
CLI_SRC := $(wildcard cli/*.c vmm/*.c)
CORE_OBJ := $(CORE_SRC:%.c=$(BUILD)/%.o)
FRONT_OBJ := $(FRONT_SRC:%.c=$(BUILD)/%.o)
CLI_OBJ := $(CLI_SRC:%.c=$(BUILD)/%.o)
PRELOAD_OBJ := $(PRELOAD_SRC:%.c=$(BUILD)/%.o)
LOAD_OBJ := $(BUILD)/src/front/load_main.o
ALL_OBJ := $(CORE_OBJ) $(FRONT_OBJ) $(CLI_OBJ) $(PRELOAD_OBJ) $(LOAD_OBJ)
ENGINE_LIBS := -lZydis -lpthread
VMM_LIBS := -llzma -lzstd -lz -llz4

# Debian packages, by what needs them. tools/need installs what is missing, or names it.
DEPS_BUILD := gcc libc6-dev libzydis-dev libzycore-dev liblzma-dev libzstd-dev zlib1g-dev liblz4-dev
DEPS_BOOT := ca-certificates cpio
DEPS_CHECK := clang clang-format
DEPS_MACHINES := python3 qemu-system-x86 qemu-utils debootstrap e2fsprogs fdisk mtools dosfstools grub-common grub-pc-bin \
	grub-efi-amd64-bin xorriso ovmf memtest86+ gdb
DEPS_LIBVIRT := libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 procps
DEPS_BENCH := qemu-system-x86 hyperfine gnuplot-nox gawk

PRODUCTS := $(BUILD)/devkvm $(BUILD)/libdevkvm.a $(BUILD)/libdevkvm.so $(BUILD)/libdevkvm-preload.so $(BUILD)/devkvm-load

all: $(PRODUCTS)

help:
	@echo 'make              builds $(BUILD)/devkvm and the libraries beside it'
	@echo "make boot         boots Debian's cloud kernel: to a shell on a terminal, else through a self-check"
	@echo 'make check        runs all tests'
	@echo 'make check-quick  runs the tests that take seconds'
	@echo 'make check-nightly runs 1 billion random instructions (SEED= replays) and boots with every block compared'
	@echo 'make check-machines boots a Debian disk under QEMU on every machine type; snapshots, migration, firmware, devices'
	@echo '                  (half an hour; ARGS="--only REGEX", "--engine interp", "--soak MINUTES", "--list")'
	@echo 'make check-libvirt runs libvirtd as root, in a mount namespace of its own, and a guest of it'
	@echo 'make check-oracle runs the system snippets on real Linux KVM again (inside QEMU)'
	@echo "make check-selftests builds the KVM selftests of Linux 6.1 and runs them"
	@echo "make bench        runs the workloads natively, under QEMU's TCG and under devkvm, side by side"
	@echo "make bench-qemu   runs them under the same QEMU with -accel tcg, and with -accel kvm on devkvm"
	@echo 'make install      installs under PREFIX ($(PREFIX)), below DESTDIR'
	@echo 'make format       lays the sources out with clang-format'
	@echo 'make clean        removes the build folders'
	@echo 'SAN=1: ASan and UBSan, in build-san. CC=clang: clang.'

$(BUILD)/.deps: tools/need Makefile
	@tools/need $(DEPS_BUILD)
	@mkdir -p $(@D)
	@touch $@

$(BUILD)/libdevkvm.a: $(CORE_OBJ) $(FRONT_OBJ)
	@rm -f $@
	@echo "  AR   $@"
	$(Q)ar rcs $@ $^

$(BUILD)/libdevkvm.so.0: $(CORE_OBJ) $(FRONT_OBJ)
	@echo "  LINK $@"
	$(Q)$(CC) -shared -Wl,-soname,libdevkvm.so.0 $(if $(SAN),,-Wl,-z,defs) $(LDFLAGS) -o $@ $^ $(ENGINE_LIBS)

$(BUILD)/libdevkvm.so: $(BUILD)/libdevkvm.so.0
	$(Q)ln -sf $(<F) $@

$(BUILD)/libdevkvm-preload.so: $(CORE_OBJ) $(FRONT_OBJ) $(PRELOAD_OBJ)
	@echo "  LINK $@"
	$(Q)$(CC) -shared -Wl,-soname,$(@F) $(LDFLAGS) -o $@ $^ $(ENGINE_LIBS) -ldl

$(BUILD)/devkvm-load: $(LOAD_OBJ) $(BUILD)/libdevkvm-preload.so
	@echo "  LINK $@"
	$(Q)$(CC) $(LDFLAGS) -pie -Wl,-z,now -Wl,-rpath,'$$ORIGIN' -o $@ $^

$(BUILD)/devkvm: $(CLI_OBJ) $(BUILD)/libdevkvm.a
	@echo "  LINK $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(ENGINE_LIBS) $(VMM_LIBS)

$(CLI_OBJ): BASE_CFLAGS += -Iinclude -Iinclude/2006

# Translated code calls mem_fill(), src/jit/quick.c and light.c with the guest's vector registers in the host's.
$(BUILD)/src/mem/%.o $(BUILD)/src/kvm/dialect_12_ring.o $(BUILD)/src/base/ahead.o $(BUILD)/src/cpu/seg.o $(BUILD)/src/jit/quick.o $(BUILD)/src/jit/light.o $(BUILD)/src/jit/tb.o $(BUILD)/src/jit/smc.o: BASE_CFLAGS += -mgeneral-regs-only

# Handlers run with the guest's x87 state in the host's registers.
$(BUILD)/src/%.o: BASE_CFLAGS += -mno-80387

$(BUILD)/%.o: %.c | $(BUILD)/.deps
	@mkdir -p $(@D)
	@echo "  CC   $<"
	$(Q)$(CC) $(BASE_CFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

-include $(ALL_OBJ:.o=.d)

boot: all
	@tools/need $(DEPS_BOOT)
	@tools/boot $(BUILD)

include test/test.mk
include bench/bench.mk

format:
	@tools/need clang-format
	clang-format -i $$(git ls-files '*.c' '*.h')

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/devkvm $(DESTDIR)$(PREFIX)/lib/pkgconfig \
		$(DESTDIR)$(PREFIX)/include/devkvm/2006/linux $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 755 $(BUILD)/devkvm $(DESTDIR)$(PREFIX)/bin/
	install -m 755 $(BUILD)/libdevkvm-preload.so $(BUILD)/devkvm-load $(DESTDIR)$(PREFIX)/lib/devkvm/
	install -m 755 $(BUILD)/libdevkvm.so.0 $(DESTDIR)$(PREFIX)/lib/
	ln -sf libdevkvm.so.0 $(DESTDIR)$(PREFIX)/lib/libdevkvm.so
	install -m 644 $(BUILD)/libdevkvm.a $(DESTDIR)$(PREFIX)/lib/
	install -m 644 include/devkvm.h include/devkvm-stat.h $(DESTDIR)$(PREFIX)/include/
	install -m 644 include/2006/linux/kvm.h $(DESTDIR)$(PREFIX)/include/devkvm/2006/linux/
	install -m 644 doc/devkvm.1 $(DESTDIR)$(PREFIX)/share/man/man1/
	sed 's|@PREFIX@|$(PREFIX)|; s|@VERSION@|$(VERSION)|' doc/devkvm.pc.in >$(DESTDIR)$(PREFIX)/lib/pkgconfig/devkvm.pc
	chmod 644 $(DESTDIR)$(PREFIX)/lib/pkgconfig/devkvm.pc

clean:
	rm -rf build build-san build-clang

.PHONY: all help boot format install clean
.DELETE_ON_ERROR:
