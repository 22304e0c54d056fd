/*
 * see.c: looking at the translator from outside: counters when a vCPU or the process ends (DEVKVM_DEBUG=jitstat, which
 * `--stats` sets), the table of blocks that `perf` reads (perf), guest and host code of each block (jit).
 *
 * The perf table names a block after its guest address. It only grows: after a flush of the code memory the names of
 * blocks from before are still there.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../base/bug.h"
#include "trans.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* protects: counted, perf */
static struct jit *counted;
static FILE *perf;

static void print(const struct jit *j)
{
	const struct {
		const char *what;
		u64 n;
	} line[] = {{"blocks translated", j->n.blocks},
	            {"guest instructions in them", j->n.insns},
	            {"blocks copied from own ones", j->n.copied},
	            {"of these in the place of another copy", j->n.retaken},
	            {"blocks copied from another vCPU", j->n.imported},
	            {"of these left to handlers", j->n.handler_insns},
	            {"host bytes", j->n.code_bytes},
	            {"links", j->n.links},
	            {"blocks killed", j->n.invalidated},
	            {"pages of blocks moved", j->n.adopted},
	            {"flushes of all code", j->n.flushes},
	            {"guest instructions run", j->v->n_insns},
	            {"entries from the dispatcher", j->n.lookups},
	            {"jumps found without leaving", j->n.quick},
	            {"system instructions without their handlers", j->n.light},
	            {"handler calls", j->n.helper},
	            {"of these that ended in the dispatcher", j->n.after},
	            {"blocks interpreted", j->n.interp},
	            {"TLB misses", j->v->mmu.tlb_misses},
	            {"page guards renewed, all", j->n.gens},
	            {"page guards renewed, user", j->n.gens_local},
	            {"epochs (KVM_RUN, interrupts)", j->n.epochs}};
	u64 other = 0;

	fprintf(stderr, "devkvm: vCPU %u, translator\n", j->v->id);
	for (unsigned n = 0; n < ARRAY_SIZE(line); n++)
		fprintf(stderr, "%14llu %s\n", (unsigned long long)line[n].n, line[n].what);
	for (unsigned n = 0; n <= ZYDIS_MNEMONIC_MAX_VALUE; n++)
		if (j->helper_by_mnemonic[n] >= 1 + j->n.helper / 100)
			fprintf(stderr, "%14llu handler calls: %s\n", (unsigned long long)j->helper_by_mnemonic[n],
			        ZydisMnemonicGetString((ZydisMnemonic)n));
		else
			other += j->helper_by_mnemonic[n];
	fprintf(stderr, "%14llu handler calls: others\n", (unsigned long long)other);
}

/* Clients may end without closing anything. Their vCPUs may still run: the figures are then those of the moment. */
static void print_all(void)
{
	pthread_mutex_lock(&lock);
	for (const struct jit *j = counted; j; j = j->next_counted)
		print(j);
	counted = NULL;
	pthread_mutex_unlock(&lock);
}

void see_create(struct jit *j)
{
	static bool registered;

	j->dump = debug_on("jit");
	pthread_mutex_lock(&lock);
	if (debug_on("jitstat"))
		j->helper_by_mnemonic = calloc(ZYDIS_MNEMONIC_MAX_VALUE + 1, sizeof(u64));
	j->count = j->helper_by_mnemonic;
	if (j->count) {
		if (!registered)
			registered = !atexit(print_all);
		j->next_counted = counted;
		counted = j;
	}
	if (debug_on("perf") && !perf) {
		char name[64];

		snprintf(name, sizeof(name), "/tmp/perf-%d.map", getpid());
		perf = fopen(name, "we");
	}
	j->perf = perf;
	pthread_mutex_unlock(&lock);
}

void see_destroy(struct jit *j)
{
	struct jit **p;

	pthread_mutex_lock(&lock);
	for (p = &counted; *p; p = &(*p)->next_counted)
		if (*p == j) {
			*p = j->next_counted;
			print(j);
			break;
		}
	pthread_mutex_unlock(&lock);
	free(j->helper_by_mnemonic);
}

static void to_perf(const u8 *code, u64 len, u64 rip, const char *what)
{
	pthread_mutex_lock(&lock);
	fprintf(perf, "%lx %lx guest_%llx%s\n", (unsigned long)(uintptr_t)code, (unsigned long)len,
	        (unsigned long long)rip, what);
	fflush(perf);
	pthread_mutex_unlock(&lock);
}

/* In one piece: stderr is not buffered, and a boot has tens of thousands of blocks. */
static void dump(const struct trans *c)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return;
	fprintf(f, "block rip %#llx key %#x guest", (unsigned long long)c->tb->rip, c->key);
	for (unsigned k = 0; k < c->n; k++) {
		fprintf(f, " [%u:", c->nat[k].cls);
		for (unsigned b = 0; b < c->insn[k].len; b++)
			fprintf(f, "%02x", c->insn[k].raw[b]);
		fprintf(f, "]");
	}
	fprintf(f, "\n  host %#lx", (unsigned long)(c->tb->code - c->j->mem.rx));
	for (u32 n = 0; n < c->tb->code_len; n++)
		fprintf(f, " %02x", c->tb->code[n]);
	fprintf(f, "\n");
	if (!fclose(f))
		fputs(text, stderr);
	free(text);
}

void see_copy(const struct tb *tb, const u8 *cold, u64 cold_len)
{
	to_perf(tb->code, tb->code_len, tb->rip, "");
	to_perf(cold, cold_len, tb->rip, "_cold");
}

void see_block(const struct trans *c, const u8 *cold, u64 cold_len)
{
	if (c->j->dump)
		dump(c);
	if (c->j->perf)
		see_copy(c->tb, cold, cold_len);
}
