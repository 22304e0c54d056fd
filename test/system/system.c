/*
 * system.c: the system suite: runs snippets (s_*.S) through a driver and compares what each one showed with the
 * transcripts in the data files.
 *
 *   system [--data DIR] [--print] [FILTER]
 *
 * expected.txt holds what real Linux KVM showed on an AMD processor; intel.txt what the guest of an Intel host sees
 * otherwise; manual.txt what the manuals say where that judge is known to be wrong: each of its sections carries the
 * reason. A section is `[name]` and the transcript's lines. --print writes sections
 * instead of comparing. The oracle's program leaves out what the manual judges.
 */
#include <cpuid.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "system.h"

#define TR_MAX 65536
#define EVENTS_MAX 120

static struct {
	char text[TR_MAX];
	size_t len;
	unsigned events;
	bool closed;
	uint32_t entry;
	uint32_t excp[8]; /* by port from P_VEC on, until P_FLAGS completes the line */
} tr;

static void tr_line(const char *line)
{
	size_t n = strlen(line);

	if (tr.closed)
		return;
	if (tr.events++ >= EVENTS_MAX || tr.len + n + 20 > TR_MAX) {
		memcpy(tr.text + tr.len, "too much\n", 10);
		tr.closed = true;
		return;
	}
	memcpy(tr.text + tr.len, line, n + 1);
	tr.len += n;
}

void tr_end(const char *how)
{
	char line[80];

	snprintf(line, sizeof(line), "%s\n", how);
	tr_line(line);
	tr.closed = true;
}

static void exception_line(void)
{
	uint32_t *x = tr.excp;
	bool v86 = x[P_FLAGS - P_VEC] & FL_VM;
	uint32_t off = x[P_RIP - P_VEC] + (v86 ? x[P_CS - P_VEC] * 16 : 0) - tr.entry;
	char line[160], *p = line, *end = line + sizeof(line);

	p += snprintf(p, (size_t)(end - p), "! %02x err %04x", x[0], x[P_ERR - P_VEC]);
	if (x[0] == 14)
		p += snprintf(p, (size_t)(end - p), " cr2 %" PRIx64,
		              (uint64_t)x[P_CR2H - P_VEC] << 32 | x[P_CR2 - P_VEC]);
	if (x[0] == 1)
		p += snprintf(p, (size_t)(end - p), " dr6 %08x", x[P_DR6 - P_VEC]);
	/* Offsets from the snippet's start, so that the data live through a change elsewhere. */
	if (off < 0x1000)
		p += snprintf(p, (size_t)(end - p), " at +%x", off);
	else
		p += snprintf(p, (size_t)(end - p), " at %x", x[P_RIP - P_VEC]);
	snprintf(p, (size_t)(end - p), " cs %04x fl %06x\n", x[P_CS - P_VEC] & 0xffff, x[P_FLAGS - P_VEC] & FL_SHOWN);
	tr_line(line);
	memset(tr.excp, 0, sizeof(tr.excp));
}

bool tr_out(unsigned port, unsigned size, uint32_t val)
{
	char line[80];

	switch (port) {
	case P_END:
		tr_end("end");
		break;
	case P_VAL:
		snprintf(line, sizeof(line), "> %0*x\n", (int)size * 2, val);
		tr_line(line);
		break;
	case P_VEC ... P_VEC + 7:
		tr.excp[port - P_VEC] = val;
		if (port == P_FLAGS)
			exception_line();
		break;
	case P_IRQ:
		break;
	default:
		snprintf(line, sizeof(line), "out %x %0*x\n", port, (int)size * 2, val);
		tr_line(line);
	}
	return !tr.closed;
}

uint32_t tr_in(unsigned port, unsigned size)
{
	uint32_t val = 0x01010101 * (port & 0xff) + 0x03020100;
	char line[80];

	snprintf(line, sizeof(line), "in %x %u\n", port, size);
	tr_line(line);
	return size == 4 ? val : val & ((1u << size * 8) - 1);
}

void tr_mmio_read(uint64_t gpa, unsigned len, uint8_t *data)
{
	char line[80];

	for (unsigned n = 0; n < len; n++)
		data[n] = (uint8_t)(gpa + n + 0x30);
	snprintf(line, sizeof(line), "r %" PRIx64 " %u\n", gpa, len);
	tr_line(line);
}

bool tr_mmio_write(uint64_t gpa, unsigned len, const uint8_t *data)
{
	char line[120];
	int n = snprintf(line, sizeof(line), "w %" PRIx64 " %u", gpa, len);

	for (unsigned k = 0; k < len; k++)
		n += snprintf(line + n, sizeof(line) - (size_t)n, " %02x", data[k]);
	snprintf(line + n, sizeof(line) - (size_t)n, "\n");
	tr_line(line);
	return !tr.closed;
}

/* ---- the data --------------------------------------------------------------------------------------------------- */

static char *slurp(const char *dir, const char *name)
{
	char path[512];
	FILE *f;
	char *p;
	size_t n;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "r");
	if (!f)
		return NULL;
	p = calloc(1, 4u << 20);
	n = p ? fread(p, 1, (4u << 20) - 1, f) : 0;
	(void)n;
	fclose(f);
	return p;
}

/* The section of `name`: its lines without comments, in a buffer of its own; NULL when there is none. */
static char *section(const char *data, const char *name)
{
	char head[128], *out, *to;
	const char *p;

	if (!data)
		return NULL;
	snprintf(head, sizeof(head), "\n[%s]\n", name);
	p = strstr(data, head);
	if (!p)
		return NULL;
	p += strlen(head);
	out = to = malloc(TR_MAX);
	while (out && *p && *p != '[') {
		const char *eol = strchr(p, '\n');
		size_t n = eol ? (size_t)(eol - p) + 1 : strlen(p);

		if (*p != '#' && *p != '\n') {
			memcpy(to, p, n);
			to += n;
		}
		p += n;
	}
	if (out)
		*to = 0;
	return out;
}

/* Both texts side by side from the first difference on, with the line before it. */
static void show_difference(const char *got, const char *want)
{
	const char *line = got, *g = got, *w = want;

	while (*g && *g == *w) {
		if (*g == '\n')
			line = g + 1;
		g++;
		w++;
	}
	w = want + (line - got);
	printf("  after %d bytes alike:\n  got:\n%.*s  expected:\n%.*s", (int)(line - got), 400, line, 400, w);
	printf("\n");
}

static void run(const struct snippet *s)
{
	memset(&tr, 0, sizeof(tr));
	tr.entry = s->entry;
	drive(s);
	if (!tr.closed)
		tr_end("stopped");
}

static bool host_is_intel(void)
{
	unsigned a, b, c, d;

	return __get_cpuid(0, &a, &b, &c, &d) && b == signature_INTEL_ebx;
}

int main(int argc, char **argv)
{
	const char *dir = "test/system", *filter = NULL;
	unsigned passed = 0, failed = 0;
	bool print = false;
	char *expected, *manual, *intel;

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int n = 1; n < argc; n++) {
		if (!strcmp(argv[n], "--data") && n + 1 < argc)
			dir = argv[++n];
		else if (!strcmp(argv[n], "--print"))
			print = true;
		else
			filter = argv[n];
	}
	expected = slurp(dir, "expected.txt");
	manual = slurp(dir, "manual.txt");
	intel = drive_is_oracle || !host_is_intel() ? NULL : slurp(dir, "intel.txt");
	if (!expected && !print) {
		fprintf(stderr, "system: no %s/expected.txt\n", dir);
		return 2;
	}
	for (unsigned n = 0; n < snippet_count(); n++) {
		struct snippet s = snippet_get(n);
		char *want, *by_manual;

		if (filter && !strstr(s.name, filter))
			continue;
		by_manual = section(manual, s.name);
		/* Some even crash the oracle: by their full name they can still be run there. */
		if (by_manual && drive_is_oracle && (!filter || strcmp(s.name, filter) != 0)) {
			free(by_manual);
			continue;
		}
		if (print) {
			run(&s);
			printf("[%s]\n%s\n", s.name, tr.text);
			free(by_manual);
			continue;
		}
		want = by_manual ? by_manual : section(intel, s.name);
		if (!want)
			want = section(expected, s.name);
		run(&s);
		if (want && !strcmp(want, tr.text)) {
			passed++;
		} else {
			failed++;
			printf("FAILED %s\n", s.name);
			if (want)
				show_difference(tr.text, want);
			else
				printf("  no transcript in the data\n");
		}
		free(want);
	}
	free(expected);
	free(manual);
	free(intel);
	if (!print)
		printf("%u passed, %u failed\n", passed, failed);
	return failed != 0;
}
