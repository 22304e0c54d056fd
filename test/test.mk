# test.mk: builds and runs the tests. Included by the Makefile.
#
# `make check` runs every suite on the plain build, the quick ones on the ASan+UBSan build, and builds all with clang.
# A suite is one NAME=COMMAND of test/run; COMMAND ends with the line `N passed, N failed`.

TEST_INC := -Iinclude -Iinclude/2006 -Itest/lib
T := $(BUILD)/tests

# Clients of the interface, the same source twice: through `devkvm run`, and linked.
$(T)/iface $(T)/threads: $(T)/%: test/iface/%.c | $(BUILD)/.deps
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(filter-out -fsanitize% -fno-sanitize%,$(BASE_CFLAGS)) $(CFLAGS) $(TEST_INC) -MMD -MP -o $@ $< -lpthread

$(T)/iface-linked $(T)/threads-linked $(T)/fuzz-linked: $(T)/%-linked: test/iface/%.c $(BUILD)/libdevkvm.a
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(BASE_CFLAGS) $(CFLAGS) $(TEST_INC) $(LDFLAGS) -DLINKED -MMD -MP -o $@ $< $(BUILD)/libdevkvm.a $(ENGINE_LIBS)

# Clients of version 12, with the system's <linux/kvm.h>. errors12 compares with what Linux' KVM answered (errors.txt).
KVM12_ERRORS := test/kvm12/errors.txt
$(T)/api12 $(T)/errors12 $(T)/chips12 $(T)/more12 $(T)/habits12 $(T)/spaces12 $(T)/debug12 $(T)/pv12: $(T)/%: test/kvm12/%.c | $(BUILD)/.deps
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(filter-out -fsanitize% -fno-sanitize%,$(BASE_CFLAGS)) $(CFLAGS) -Itest/lib -MMD -MP -o $@ $< -lpthread

$(T)/api12-linked $(T)/errors12-linked $(T)/chips12-linked $(T)/more12-linked $(T)/habits12-linked $(T)/spaces12-linked $(T)/debug12-linked $(T)/pv12-linked: $(T)/%-linked: test/kvm12/%.c $(BUILD)/libdevkvm.a
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(BASE_CFLAGS) $(CFLAGS) -Iinclude -Itest/lib $(LDFLAGS) -DLINKED -MMD -MP -o $@ $< $(BUILD)/libdevkvm.a \
		$(ENGINE_LIBS)

# The shim: programs, signals, descriptors around /dev/kvm.
SHIM_TESTS := programs roots signals filter memory fds
$(addprefix $(T)/,$(SHIM_TESTS)): $(T)/%: test/shim/%.c | $(BUILD)/.deps
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(filter-out -fsanitize% -fno-sanitize%,$(BASE_CFLAGS)) $(CFLAGS) -Itest/lib -MMD -MP -o $@ $< -lpthread

$(T)/memory-linked: test/shim/memory.c $(BUILD)/libdevkvm.a
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(BASE_CFLAGS) $(CFLAGS) -Iinclude -Itest/lib $(LDFLAGS) -DLINKED -MMD -MP -o $@ $< $(BUILD)/libdevkvm.a \
		$(ENGINE_LIBS)

# The same clients linked statically, with glibc and with musl, as Firecracker and many Go and Rust programs are.
STATIC_CFLAGS = $(filter-out -fPIC -fsanitize% -fno-sanitize%,$(BASE_CFLAGS)) $(CFLAGS) -DSTATIC -static -MMD -MP
# musl brings no headers of the kernel: the distribution's come last.
MUSL_INC := -idirafter /usr/include -idirafter /usr/include/$(shell gcc -print-multiarch 2>/dev/null)
# static CLIENTS, FOLDER, FLAGS
define static
$(addprefix $(T)/,$(addsuffix -static,$1)): $(T)/%-static: $2/%.c | $(BUILD)/.deps
	@mkdir -p $$(@D)
	@echo "  LINK $$@"
	$$(Q)$$(CC) $$(STATIC_CFLAGS) $3 -o $$@ $$< -lpthread
$(addprefix $(T)/,$(addsuffix -musl,$1)): $(T)/%-musl: $2/%.c | $(BUILD)/.deps
	@tools/need musl-tools
	@mkdir -p $$(@D)
	@echo "  LINK $$@"
	$$(Q)musl-gcc $$(STATIC_CFLAGS) $3 $$(MUSL_INC) -o $$@ $$< -lpthread
endef
$(eval $(call static,api12 errors12 chips12 more12,test/kvm12,-Itest/lib))
$(eval $(call static,code12,test/jit,-Itest/lib))
$(eval $(call static,iface threads,test/iface,$$(TEST_INC)))
$(eval $(call static,$(SHIM_TESTS),test/shim,-Itest/lib))
STATIC_CLIENTS := api12 chips12 more12 code12 iface threads $(SHIM_TESTS)
STATIC_PROGRAMS := $(if $(SAN),,$(addprefix $(T)/,errors12-static $(foreach c,$(STATIC_CLIENTS),$c-static $c-musl)))
SHIM_ENV := SHIM_TWINS=$(T)/programs:$(T)/programs-static:$(T)/programs-musl
STATIC_SUITES := $(foreach c,$(STATIC_CLIENTS),'static with glibc: $c=$(SHIM_ENV) timeout -k 5 200 $(BUILD)/devkvm run -- $(T)/$c-static' \
	'static with musl: $c=$(SHIM_ENV) timeout -k 5 200 $(BUILD)/devkvm run -- $(T)/$c-musl') \
	'static with glibc: errors12=$(BUILD)/devkvm run -- $(T)/errors12-static $(KVM12_ERRORS)' \
	'static, in Go=test/shim/go-test $(BUILD)' \
	'other users=test/shim/users-test $(BUILD)' \
	$(foreach c,$(SHIM_TESTS),'through devkvm run: $c=$(SHIM_ENV) timeout -k 5 200 $(BUILD)/devkvm run -- $(T)/$c')

# Code that changes behind the engine's back.
$(T)/code12: test/jit/code12.c | $(BUILD)/.deps
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(filter-out -fsanitize% -fno-sanitize%,$(BASE_CFLAGS)) $(CFLAGS) -Itest/lib -MMD -MP -o $@ $< -lpthread

$(T)/code12-linked: test/jit/code12.c $(BUILD)/libdevkvm.a
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(BASE_CFLAGS) $(CFLAGS) -Iinclude -Itest/lib $(LDFLAGS) -DLINKED -MMD -MP -o $@ $< $(BUILD)/libdevkvm.a \
		$(ENGINE_LIBS)

# The instruction suite replaces the delivery of exceptions, see test/insn/guest.c.
INSN_SRC := $(addprefix test/insn/,insn_test.c forms.c gen.c guest.c native.c report.c vendor.c machine.c)
INSN_OBJ := $(INSN_SRC:%.c=$(BUILD)/%.o)
$(T)/insn: $(INSN_OBJ) $(BUILD)/libdevkvm.a
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(LDFLAGS) -Wl,--wrap=excp_deliver,--wrap=excp_soft_int -o $@ $^ $(ENGINE_LIBS)

# The interpreter's loop: code that changes, fetches, MMIO, strings, shadows.
ENGINE_TEST := $(T)/engine
$(ENGINE_TEST): $(BUILD)/test/insn/engine_test.o $(BUILD)/test/insn/machine.o $(BUILD)/libdevkvm.a
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(ENGINE_LIBS)

# Random programs, interpreter against translator.
JIT_RANDOM := $(T)/jit-random
$(JIT_RANDOM): $(BUILD)/test/jit/random.o $(BUILD)/test/jit/gen.o $(BUILD)/test/jit/gen_64.o $(BUILD)/test/jit/gen_never.o $(BUILD)/test/jit/gen_handler.o $(BUILD)/test/insn/machine.o $(BUILD)/libdevkvm.a
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(LDFLAGS) -Wl,--wrap=excp_deliver,--wrap=tsc_read -o $@ $^ $(ENGINE_LIBS)

# How soon events are noticed.
$(T)/jit-latency: $(BUILD)/test/jit/latency.o $(BUILD)/test/insn/machine.o $(BUILD)/libdevkvm.a
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(ENGINE_LIBS)

# What the translator keeps, shares and gives up.
$(T)/jit-cache: $(BUILD)/test/jit/cache.o $(BUILD)/test/insn/machine.o $(BUILD)/libdevkvm.a
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(ENGINE_LIBS)

# The interpreter's speed on plain loops.
$(T)/speed: $(BUILD)/test/insn/smoke.o $(BUILD)/test/insn/machine.o $(BUILD)/libdevkvm.a
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(ENGINE_LIBS)

# System snippets on a bare vCPU.
SYSTEM_CPU := $(T)/system-cpu
$(SYSTEM_CPU): test/system/t_cpu_smoke.c $(BUILD)/libdevkvm.a
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(BASE_CFLAGS) $(CFLAGS) $(LDFLAGS) -MMD -MP -o $@ $< $(BUILD)/libdevkvm.a $(ENGINE_LIBS)

# The system suite: snippets in assembler, linked to one blob that runs in the guest (test/system/snip.inc). Two
# programs: on our library through the interface of 2006, and through API 12 on the /dev/kvm of the system (oracle).
SNIP := $(wildcard test/system/s_*.S)
SNIP_OBJ := $(patsubst %.S,$(BUILD)/%.o,test/system/common.S $(SNIP))
SYSTEM_OBJ := $(patsubst %.c,$(BUILD)/%.o,test/system/system.c test/system/setup.c)
SYSTEM_DATA := test/system/expected.txt test/system/manual.txt test/system/intel.txt
KVM_ORACLE ?= ../shared/oracle/kvm-oracle
$(BUILD)/test/system/%.o: test/system/%.S test/system/snip.h test/system/snip.inc | $(BUILD)/.deps
	@mkdir -p $(@D)
	gcc -c -o $@ $<

$(BUILD)/test/system/snippets.bin: test/system/snippets.ld $(SNIP_OBJ)
	ld -m elf_x86_64 --oformat binary -T $< -o $@ $(SNIP_OBJ)

$(BUILD)/test/system/blob.o: test/system/blob.S $(BUILD)/test/system/snippets.bin
	gcc -c -DBLOB_FILE='"$(BUILD)/test/system/snippets.bin"' -o $@ $<

$(BUILD)/test/system/drive_2006.o: BASE_CFLAGS += $(TEST_INC)

$(T)/system: $(SYSTEM_OBJ) $(BUILD)/test/system/drive_2006.o $(BUILD)/test/system/blob.o $(BUILD)/libdevkvm.a
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(ENGINE_LIBS)

$(T)/system-oracle: $(SYSTEM_OBJ) $(BUILD)/test/system/drive_12.o $(BUILD)/test/system/blob.o
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(LDFLAGS) -o $@ $^

# The snippets on real Linux KVM again; ORACLE_ARGS=--print prints new data.
check-oracle: $(T)/system-oracle
	@tools/need qemu-system-x86 busybox-static cpio kmod
	@test -x $(KVM_ORACLE) || { echo "check-oracle: no $(KVM_ORACLE); set KVM_ORACLE"; exit 1; }
	$(KVM_ORACLE) $(foreach f,$(SYSTEM_DATA),-f $(f)) $< --data . $(ORACLE_ARGS)

# The monitor's unpacking.
$(T)/unpack: test/boot/unpack_test.c $(BUILD)/vmm/unpack.o
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(BASE_CFLAGS) $(CFLAGS) $(TEST_INC) $(LDFLAGS) -o $@ $^ $(VMM_LIBS)

-include $(wildcard $(T)/*.d) $(INSN_OBJ:.o=.d) $(BUILD)/test/insn/engine_test.d $(BUILD)/test/insn/smoke.d \
	$(wildcard $(BUILD)/test/jit/*.d) \
	$(wildcard $(BUILD)/test/system/*.d)

QUICK_PROGRAMS := $(T)/iface $(T)/iface-linked $(T)/threads $(T)/threads-linked $(T)/fuzz-linked $(T)/unpack $(T)/insn $(ENGINE_TEST) $(SYSTEM_CPU) $(T)/system $(JIT_RANDOM) $(T)/jit-latency $(T)/jit-cache
QUICK_PROGRAMS += $(addprefix $(T)/,api12 api12-linked errors12 errors12-linked chips12 chips12-linked more12 more12-linked habits12 habits12-linked spaces12 spaces12-linked debug12 debug12-linked pv12 pv12-linked code12 code12-linked)
QUICK_PROGRAMS += $(T)/memory-linked $(if $(SAN),,$(addprefix $(T)/,$(SHIM_TESTS))) $(STATIC_PROGRAMS)
test-programs: all $(QUICK_PROGRAMS)

# A sanitized library cannot be preloaded into a plain client without its runtime, so there the linked clients serve.
PRELOADED_SUITES := 'interface through devkvm run=$(BUILD)/devkvm run -- $(T)/iface' \
	'API 12 through devkvm run=$(BUILD)/devkvm run -- $(T)/api12' \
	'API 12, the rest, through devkvm run=$(BUILD)/devkvm run -- $(T)/more12' \
	'API 12, habits of VMMs, through devkvm run=$(BUILD)/devkvm run -- $(T)/habits12' \
	'interrupt chips through devkvm run=$(BUILD)/devkvm run -- $(T)/chips12' \
	'API 12, calls and errors through devkvm run=$(BUILD)/devkvm run -- $(T)/errors12 $(KVM12_ERRORS)' \
	'changing code through devkvm run=$(BUILD)/devkvm run -- $(T)/code12' \
	'threads and signals through devkvm run=$(BUILD)/devkvm run -- $(T)/threads'
NOTE := $(if $(SAN), (ASan+UBSan))
QUICK_SUITES := $(if $(SAN),,$(PRELOADED_SUITES) $(STATIC_SUITES)) \
	'interface, linked$(NOTE)=$(T)/iface-linked' \
	'API 12, linked$(NOTE)=$(T)/api12-linked' \
	'API 12, the rest, linked$(NOTE)=$(T)/more12-linked' \
	'API 12, the rest, interpreter$(NOTE)=DEVKVM_ENGINE=interp $(T)/more12-linked' \
	'API 12, habits of VMMs, linked$(NOTE)=$(T)/habits12-linked' \
	'address spaces, linked$(NOTE)=$(T)/spaces12-linked' \
	'address spaces, interpreter$(NOTE)=DEVKVM_ENGINE=interp $(T)/spaces12-linked' \
	'APIC through memory, linked$(NOTE)=$(T)/pv12-linked' \
	'breakpoints, linked$(NOTE)=$(T)/debug12-linked' \
	'breakpoints, interpreter$(NOTE)=DEVKVM_ENGINE=interp $(T)/debug12-linked' \
	'interrupt chips, linked$(NOTE)=$(T)/chips12-linked' \
	'API 12, calls and errors, linked$(NOTE)=$(T)/errors12-linked $(KVM12_ERRORS)' \
	'memory that goes away, linked$(NOTE)=$(T)/memory-linked' \
	'memory that goes away, interpreter$(NOTE)=DEVKVM_ENGINE=interp $(T)/memory-linked' \
	'threads and signals, linked$(NOTE)=$(T)/threads-linked' \
	'engine: loop, MMIO, changing code$(NOTE)=$(ENGINE_TEST)' \
	'kernel formats$(NOTE)=$(T)/unpack' \
	'random guests$(NOTE)=$(T)/fuzz-linked $$(date +%s) $(if $(SAN),400,1500)' \
	'processor, system side$(NOTE)=$(SYSTEM_CPU)' \
	'system snippets$(NOTE)=$(T)/system' \
	'instructions against the host CPU, translator$(NOTE)=$(T)/insn --cases $(if $(SAN),60000,300000)' \
	'instructions, interpreter$(NOTE)=DEVKVM_ENGINE=interp $(T)/insn --cases $(if $(SAN),30000,300000)' \
	'engine: loop, MMIO, changing code, interpreter$(NOTE)=DEVKVM_ENGINE=interp $(ENGINE_TEST)' \
	'system snippets, interpreter$(NOTE)=DEVKVM_ENGINE=interp $(T)/system' \
	'random programs, engine against engine$(NOTE)=$(JIT_RANDOM) --insns $(if $(SAN),400000,20000000)' \
	'changing code, linked$(NOTE)=$(T)/code12-linked' \
	'changing code, interpreter$(NOTE)=DEVKVM_ENGINE=interp $(T)/code12-linked' \
	'what translated code calls$(NOTE)=test/jit/vector-test $(BUILD)/libdevkvm.so' \
	'cache of the translator$(NOTE)=$(T)/jit-cache' \
	'latency of events$(NOTE)=$(T)/jit-latency' \
	'latency of events, interpreter$(NOTE)=DEVKVM_ENGINE=interp $(T)/jit-latency' \
	'checks of the translator find a wrong one$(NOTE)=test/jit/spoil-test $(BUILD)'

BOOT_SUITES := 'boot (ASan+UBSan)=test/boot/boot-test build-san --check-only cloud-amd64' \
	'boot=test/boot/boot-test $(BUILD)' 'boot in lockstep=test/boot/lockstep-test $(BUILD)' 'QEMU=test/boot/qemu-test $(BUILD)' 'command line=test/boot/cli-test $(BUILD)' 'installation=test/boot/install-test $(BUILD)'

# The kernel's own tests of KVM, built unmodified outside the tree.
SELFTESTS := 'KVM selftests of Linux 6.1=test/selftests/run $(BUILD)' \
	'KVM selftests of Linux 6.1, interpreter=DEVKVM_ENGINE=interp test/selftests/run $(BUILD)'
check-selftests: all
	@test/selftests/run $(BUILD)

# Only what concerns the doors: descriptors, signals, programs of every kind of linking.
check-shim: test-programs
	@test/run $(PRELOADED_SUITES) $(STATIC_SUITES)

check-quick: test-programs
	@test/run $(QUICK_SUITES)

# Everything, in one sum. The builds come first, so that a build that fails is not a test that fails.
check: test-programs
	@tools/need $(DEPS_CHECK) $(DEPS_BOOT) qemu-system-x86 qemu-utils
	$(MAKE) --no-print-directory CC=clang BUILD=build-clang all
	$(MAKE) --no-print-directory SAN=1 test-programs
	@mkdir -p $(BUILD)/guest && ln -sfn ../$(BUILD)/guest build-san/guest
	@$(MAKE) --no-print-directory -s SAN=1 print-quick >$(BUILD)/quick-san
	@mapfile -t san <$(BUILD)/quick-san; \
	test/run 'structure and layout=test/lint/lint' 'what translated code calls (clang)=test/jit/vector-test build-clang/libdevkvm.so' \
		$(QUICK_SUITES) "$${san[@]}" $(SELFTESTS) $(BOOT_SUITES)

# Hours: random programs, 1 billion instructions (INSNS=), from a seed of the day or SEED=; the boots with every run of
# every block compared.
INSNS ?= 1000000000
check-nightly: all $(JIT_RANDOM)
	@tools/need $(DEPS_BOOT)
	$(JIT_RANDOM) --insns $(INSNS) --progress $(if $(SEED),--seed $(SEED))
	test/boot/lockstep-test $(BUILD) --full

# Half an hour: whole machines under QEMU. ARGS= goes to the script: --only REGEX, --engine interp, --soak MINUTES.
check-machines: all
	@tools/need $(DEPS_BOOT) $(DEPS_MACHINES)
	test/boot/machines/check-machines $(BUILD) $(ARGS)

# A daemon of root's, which takes its packages: not part of the others.
check-libvirt: all
	@tools/need $(DEPS_BOOT) $(DEPS_LIBVIRT)
	test/boot/libvirt-test $(BUILD)

print-quick:
	@printf '%s\n' $(QUICK_SUITES)

.PHONY: check check-shim check-quick check-nightly check-libvirt check-machines check-oracle check-selftests \
	test-programs print-quick
