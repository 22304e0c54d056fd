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

int main(int argc, char **argv)
{
	u64 seed = (u64)time(NULL), passed = 0, failed = 0;
	unsigned cases = 200000, each = 20, max_reports = 20, reports = 0, ungenerated = 0, failed_forms = 0;
	const char *filter = NULL;
	bool verbose = false, host_32;
	u64 unjudged = 0, unsteady = 0;

	for (int n = 1; n < argc; n++) {
		const char *arg = n + 1 < argc ? argv[n + 1] : "";

		if (!strcmp(argv[n], "-v")) {
			verbose = true;
			continue;
		}
		if (!strcmp(argv[n], "--seed"))
			seed = strtoull(arg, NULL, 0);
		else if (!strcmp(argv[n], "--cases"))
			cases = (unsigned)strtoul(arg, NULL, 0);
		else if (!strcmp(argv[n], "--each"))
			each = (unsigned)strtoul(arg, NULL, 0);
		else if (!strcmp(argv[n], "--max-reports"))
			max_reports = (unsigned)strtoul(arg, NULL, 0);
		else if (!strcmp(argv[n], "--form"))
			filter = arg;
		else {
			fprintf(stderr, "usage: insn_test [--seed S] [--cases N] [--each N] [--form SUBSTRING] "
			                "[--max-reports N] [-v]\n");
			return 2;
		}
		n++;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	rng_state = seed;
	native_init();
	guest_init();
	forms_enumerate(filter);
	if (!nforms) {
		printf("no form matches\n");
		return 2;
	}
	if ((u64)each * nforms < cases)
		each = (cases + nforms - 1) / nforms;
	host_32 = native_runs_32();
	printf("seed %llu, %u forms, %u cases each\n", (unsigned long long)seed, nforms, each);
	gen_init();
	for (unsigned f = 0; f < nforms; f++) {
		u64 before = failed;

		for (unsigned n = 0; n < each; n++) {
			const char *why;

			rng_state = seed_of(seed, &forms[f], n);
			if (!gen_case(&forms[f], &c)) {
				ungenerated++;
				break;
			}
			forms[f].cases++;
			if (host_32 || c.form->mode == DECODE_64) {
				native_run(&c, &want);
			} else if (!guest_judge(&c, &want)) {
				unjudged++;
				continue;
			}
			guest_run(&c, &got);
			/* Once in some 100,000 cases that leave a wild RSP, some virtual machines report #UD for the
			 * INT3 behind it. What the host does not say twice does not count; what it does say twice,
			 * does. */
			if (!outcomes_agree(&c, &want, &got, &why) && (host_32 || c.form->mode == DECODE_64)) {
				native_run(&c, &again);
				if (again.vector != want.vector) {
					unsteady++;
					want = again;
				}
			}
			if (outcomes_agree(&c, &want, &got, &why)) {
				passed++;
				continue;
			}
			failed++;
			if (reports < max_reports && failed == before + 1) {
				reports++;
				report(&c, &want, &got, why);
			}
		}
		if (failed > before)
			failed_forms++;
		if (verbose || failed > before)
			printf("%s %u-bit %s map %u opcode %02x: %u cases, %llu failed\n",
			       failed > before ? "BAD" : "ok ", forms[f].mode == DECODE_64 ? 64 : 32,
			       mnemonic_name(forms[f].mnemonic), forms[f].map, forms[f].opcode, forms[f].cases,
			       (unsigned long long)(failed - before));
	}
	if (unsteady)
		printf("the host gave %llu cases another vector the second time\n", (unsigned long long)unsteady);
	if (!host_32)
		printf("the host runs no 32-bit code: %llu of its cases not run, the others judged by the "
		       "interpreter\n",
		       (unsigned long long)unjudged);
	if (ungenerated)
		printf("%u forms have fewer than %u cases\n", ungenerated, each);
	if (failed_forms)
		printf("%u forms failed; repeat with --seed %llu\n", failed_forms, (unsigned long long)seed);
	printf("%llu passed, %llu failed\n", (unsigned long long)passed, (unsigned long long)failed);
	return failed != 0;
}
