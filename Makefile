# Builds devkvm. `make help` lists the targets.
#
# BUILD is the build folder; SAN=1 builds with ASan and UBSan into build-san; CC may be gcc or clang.
CC ?= gcc
SAN ?=
BUILD ?= build$(if $(SAN),-san)
PREFIX ?= /usr/local
VERSION := 0.1.0

CFLAGS ?= -O2 -g
WARN := -Wall -Wextra -Werror -Wstrict-prototypes -Wmissing-prototypes -Wno-unused-parameter -Wno-missing-field-initializers
BASE_CFLAGS := -std=gnu17 $(WARN) -fPIC -fvisibility=hidden -mno-red-zone -fno-strict-aliasing -pthread \
	-DDEVKVM_VERSION='"$(VERSION)"'
ifneq ($(SAN),)
BASE_CFLAGS += -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -DDEVKVM_DEBUG_BUILD
LDFLAGS += -fsanitize=address,undefined
endif

# The engine: everything below the doors. Front: the doors themselves; preload.c only goes into the preloaded library.
CORE_SRC := $(wildcard src/base/*.c src/x86/*.c src/mem/*.c src/cpu/*.c src/interp/*.c src/kvm/*.c)
FRONT_SRC := $(filter-out src/front/preload.c,$(wildcard src/front/*.c))
CLI_SRC := $(wildcard cli/*.c vmm/*.c)
CORE_OBJ := $(CORE_SRC:%.c=$(BUILD)/%.o)
FRONT_OBJ := $(FRONT_SRC:%.c=$(BUILD)/%.o)
CLI_OBJ := $(CLI_SRC:%.c=$(BUILD)/%.o)
PRELOAD_OBJ := $(BUILD)/src/front/preload.o
ENGINE_LIBS := -lZydis -lpthread
VMM_LIBS := -llzma -lzstd -lz -llz4

all: $(BUILD)/devkvm $(BUILD)/libdevkvm.a $(BUILD)/libdevkvm.so $(BUILD)/libdevkvm-preload.so

$(BUILD)/libdevkvm.a: $(CORE_OBJ) $(FRONT_OBJ)
	@rm -f $@
	ar rcs $@ $^

$(BUILD)/libdevkvm.so.0: $(CORE_OBJ) $(FRONT_OBJ)
	$(CC) -shared -Wl,-soname,libdevkvm.so.0 -Wl,-z,defs $(LDFLAGS) -o $@ $^ $(ENGINE_LIBS)

$(BUILD)/libdevkvm.so: $(BUILD)/libdevkvm.so.0
	ln -sf $(<F) $@

$(BUILD)/libdevkvm-preload.so: $(CORE_OBJ) $(FRONT_OBJ) $(PRELOAD_OBJ)
	$(CC) -shared $(LDFLAGS) -o $@ $^ $(ENGINE_LIBS) -ldl

$(BUILD)/devkvm: $(CLI_OBJ) $(BUILD)/libdevkvm.a
	$(CC) $(LDFLAGS) -o $@ $^ $(ENGINE_LIBS) $(VMM_LIBS)

$(CLI_OBJ): BASE_CFLAGS += -Iinclude -Iinclude/2006

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(BASE_CFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

-include $(CORE_OBJ:.o=.d) $(FRONT_OBJ:.o=.d) $(CLI_OBJ:.o=.d) $(PRELOAD_OBJ:.o=.d)

clean:
	rm -rf build build-san build-clang

.PHONY: all clean
