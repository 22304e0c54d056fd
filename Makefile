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

# The engine: everything below the doors.
CORE_SRC := $(wildcard src/base/*.c src/x86/*.c src/mem/*.c src/cpu/*.c src/interp/*.c src/kvm/*.c)
CORE_OBJ := $(CORE_SRC:%.c=$(BUILD)/%.o)

all: $(BUILD)/libcore.a

$(BUILD)/libcore.a: $(CORE_OBJ)
	@rm -f $@
	ar rcs $@ $^

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(BASE_CFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

-include $(CORE_OBJ:.o=.d)

clean:
	rm -rf build build-san build-clang

.PHONY: all clean
