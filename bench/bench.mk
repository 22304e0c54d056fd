# bench.mk: `make bench`. Included by the Makefile. Figures are ratios of one run on one machine.

$(BUILD)/bench/work: bench/work.c | $(BUILD)/.deps
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) -O2 -static -pthread -Wall -Wextra -o $@ $< -lz -lm

$(BUILD)/bench/exits: bench/exits.c $(BUILD)/libdevkvm.a
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(BASE_CFLAGS) $(CFLAGS) -Iinclude -Iinclude/2006 -o $@ $^ $(ENGINE_LIBS)

bench: all $(BUILD)/bench/work $(BUILD)/bench/exits
	@tools/need $(DEPS_BOOT) $(DEPS_BENCH)
	@bench/run $(BUILD)
	@$(BUILD)/bench/exits

bench-interp: $(T)/speed
	$(T)/speed

.PHONY: bench bench-interp
