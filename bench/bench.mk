# bench.mk: `make bench`. Included by the Makefile. Figures are ratios of one run on one machine.

$(BUILD)/bench/work: bench/work.c | $(BUILD)/.deps
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) -O2 -static -pthread -Wall -Wextra -o $@ $< -lz -lm

bench: all $(BUILD)/bench/work
	@tools/need $(DEPS_BOOT) $(DEPS_BENCH)
	@bench/run $(BUILD)

bench-interp: $(T)/speed
	$(T)/speed

.PHONY: bench bench-interp
