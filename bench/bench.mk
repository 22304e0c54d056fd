# bench.mk: `make bench`. Included by the Makefile. Figures are ratios of one run on one machine.

$(BUILD)/bench/work: bench/work.c | $(BUILD)/.deps
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) -O2 -static -pthread -Wall -Wextra -o $@ $< -lz -lm

$(BUILD)/bench/work-pie: bench/work.c | $(BUILD)/.deps
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) -O2 -static-pie -fPIE -pthread -Wall -Wextra -o $@ $< -lz -lm

$(BUILD)/bench/exits: bench/exits.c bench/bench.h $(BUILD)/libdevkvm.a
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(BASE_CFLAGS) $(CFLAGS) -Iinclude -Iinclude/2006 -o $@ $(filter-out %.h,$^) $(ENGINE_LIBS)

$(BUILD)/bench/exits12: bench/exits12.c bench/bench.h | $(BUILD)/.deps
	@mkdir -p $(@D)
	@echo "  LINK $@"
	$(Q)$(CC) $(filter-out -fsanitize% -fno-sanitize%,$(BASE_CFLAGS)) $(CFLAGS) -o $@ $<

bench: all $(BUILD)/bench/work $(BUILD)/bench/work-pie $(BUILD)/bench/exits $(BUILD)/bench/exits12
	@tools/need $(DEPS_BOOT) $(DEPS_BENCH)
	@bench/run $(BUILD)
	@$(BUILD)/bench/exits
	@$(BUILD)/devkvm run -- $(BUILD)/bench/exits12

# The same QEMU twice: -accel tcg, and -accel kvm on devkvm.
bench-qemu: all $(BUILD)/bench/work $(BUILD)/bench/work-pie $(BUILD)/bench/exits12
	@tools/need $(DEPS_BOOT) $(DEPS_BENCH)
	@ENGINES=qemu OUT=$(BUILD)/bench-qemu bench/run $(BUILD) $(ROUNDS)
	@$(BUILD)/devkvm run -- $(BUILD)/bench/exits12

bench-interp: $(T)/speed
	$(T)/speed

.PHONY: bench bench-interp bench-qemu
