/*
 * insn_test.c: the instruction suite. Every form that the model processor offers and a user program can run, with
 * random operands and states, on the host CPU and in the engine; registers, flags, memory and faults must agree. Where
 * the host runs no 32-bit code (some virtual machines do not), the interpreter judges the translator in that.
 *
 * insn_test [--seed S] [--cases N] [--each N] [--form SUBSTRING] [--max-reports N] [-v]
 * The last line is `N passed, N failed`. The status is 0 when none failed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "insn_test.h"

static struct tcase c;
static struct outcome want, got, again;

/* FNV-1a, so that a form's cases depend on the seed and the form alone: --form repeats what a whole run did. */
static u64 seed_of(u64 seed, const struct form *f, unsigned n)
{
	u64 h = 0xcbf29ce484222325ull ^ seed;

	h = (h ^ f->hash) * 0x100000001b3ull;
	h = (h ^ (h >> 31) ^ n) * 0x100000001b3ull;
	return h ^ (h >> 29);
}

static struct {
	u64 seed;
	unsigned cases, each, max_reports;
	const char *filter;
	bool verbose;
} opt = {.cases = 200000, .each = 20, .max_reports = 20};

/* What came of all cases. */
static struct {
	u64 passed, failed;
	u64 unjudged; /* neither the host nor the interpreter runs them */
	u64 unsteady; /* the host gave another vector the second time */
	unsigned reports, ungenerated, failed_forms;
} sum;

static bool host_32;

static bool parse(int argc, char **argv)
{
	opt.seed = (u64)time(NULL);
	for (int n = 1; n < argc; n++) {
		const char *arg = n + 1 < argc ? argv[n + 1] : "";

		if (!strcmp(argv[n], "-v")) {
			opt.verbose = true;
			continue;
		}
		if (!strcmp(argv[n], "--seed"))
			opt.seed = strtoull(arg, NULL, 0);
		else if (!strcmp(argv[n], "--cases"))
			opt.cases = (unsigned)strtoul(arg, NULL, 0);
		else if (!strcmp(argv[n], "--each"))
			opt.each = (unsigned)strtoul(arg, NULL, 0);
		else if (!strcmp(argv[n], "--max-reports"))
			opt.max_reports = (unsigned)strtoul(arg, NULL, 0);
		else if (!strcmp(argv[n], "--form"))
			opt.filter = arg;
		else
			return false;
		n++;
	}
	return true;
}

/* The case that was generated, on both. `known`: its form has failed before, so nothing is reported again. */
static void run_case(bool known)
{
	bool by_host = host_32 || c.form->mode == DECODE_64;
	const char *why;

	if (by_host) {
		native_run(&c, &want);
	} else if (!guest_judge(&c, &want)) {
		sum.unjudged++;
		return;
	}
	guest_run(&c, &got);
	/* Once in some 100,000 cases that leave a wild RSP, some virtual machines report #UD for the INT3 behind it.
	 * What the host does not say twice does not count; what it does say twice, does. */
	if (!outcomes_agree(&c, &want, &got, &why) && by_host) {
		native_run(&c, &again);
		if (again.vector != want.vector) {
			sum.unsteady++;
			want = again;
		}
	}
	if (outcomes_agree(&c, &want, &got, &why)) {
		sum.passed++;
		return;
	}
	sum.failed++;
	if (sum.reports < opt.max_reports && !known) {
		sum.reports++;
		report(&c, &want, &got, why);
	}
}

static void run_form(struct form *f)
{
	u64 before = sum.failed, failed;

	for (unsigned n = 0; n < opt.each; n++) {
		rng_state = seed_of(opt.seed, f, n);
		if (!gen_case(f, &c)) {
			sum.ungenerated++;
			break;
		}
		f->cases++;
		run_case(sum.failed > before);
	}
	failed = sum.failed - before;
	if (failed)
		sum.failed_forms++;
	if (opt.verbose || failed)
		printf("%s %u-bit %s map %u opcode %02x: %u cases, %llu failed\n", failed ? "BAD" : "ok ",
		       f->mode == DECODE_64 ? 64 : 32, mnemonic_name(f->mnemonic), f->map, f->opcode, f->cases,
		       (unsigned long long)failed);
}

int main(int argc, char **argv)
{
	if (!parse(argc, argv)) {
		fprintf(stderr, "usage: insn_test [--seed S] [--cases N] [--each N] [--form SUBSTRING] "
		                "[--max-reports N] [-v]\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	rng_state = opt.seed;
	native_init();
	guest_init();
	forms_enumerate(opt.filter);
	if (!nforms) {
		printf("no form matches\n");
		return 2;
	}
	if ((u64)opt.each * nforms < opt.cases)
		opt.each = (opt.cases + nforms - 1) / nforms;
	host_32 = native_runs_32();
	printf("seed %llu, %u forms, %u cases each\n", (unsigned long long)opt.seed, nforms, opt.each);
	gen_init();
	for (unsigned f = 0; f < nforms; f++)
		run_form(&forms[f]);
	if (sum.unsteady)
		printf("the host gave %llu cases another vector the second time\n", (unsigned long long)sum.unsteady);
	if (!host_32)
		printf("the host runs no 32-bit code: %llu of its cases not run, the others judged by the "
		       "interpreter\n",
		       (unsigned long long)sum.unjudged);
	if (sum.ungenerated)
		printf("%u forms have fewer than %u cases\n", sum.ungenerated, opt.each);
	if (sum.failed_forms)
		printf("%u forms failed; repeat with --seed %llu\n", sum.failed_forms, (unsigned long long)opt.seed);
	printf("%llu passed, %llu failed\n", (unsigned long long)sum.passed, (unsigned long long)sum.failed);
	return sum.failed != 0;
}
