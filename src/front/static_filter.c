/*
 * static_filter.c: see static_filter.h.
 *
 * A filter of the program is about the program's calls. Those are made at one instruction, static_pass_insn; whatever
 * the engine and the libraries below it call for themselves comes from elsewhere in their code. So a filter gets a head
 * that lets these addresses through, and judges the program as it always did.
 */
#define _GNU_SOURCE
#include "static_filter.h"

#include <errno.h>
#include <link.h>
#include <linux/seccomp.h>
#include <stdlib.h>
#include <string.h>

#include "../base/usercopy.h"
#include "static.h"

#define IP_LOW offsetof(struct seccomp_data, instruction_pointer)
#define IP_HIGH (IP_LOW + 4)

struct head {
	struct sock_filter code[256];
	unsigned n;
};

static void emit(struct head *h, u16 code, u8 jt, u8 jf, u32 k)
{
	if (h->n < ARRAY_SIZE(h->code))
		h->code[h->n++] = (struct sock_filter){.code = code, .jt = jt, .jf = jf, .k = k};
}

/* Lets [from, to), within one 4 GiB, through. */
static void allow(struct head *h, u64 from, u64 to)
{
	emit(h, BPF_LD | BPF_W | BPF_ABS, 0, 0, IP_HIGH);
	emit(h, BPF_JMP | BPF_JEQ | BPF_K, 0, 4, (u32)(from >> 32));
	emit(h, BPF_LD | BPF_W | BPF_ABS, 0, 0, IP_LOW);
	emit(h, BPF_JMP | BPF_JGE | BPF_K, 0, 2, (u32)from);
	emit(h, BPF_JMP | BPF_JGT | BPF_K, 1, 0, (u32)(to - 1));
	emit(h, BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW);
}

static int allow_object(struct dl_phdr_info *info, size_t size, void *arg)
{
	for (unsigned n = 0; n < info->dlpi_phnum; n++) {
		const ElfW(Phdr) *ph = &info->dlpi_phdr[n];
		u64 from = info->dlpi_addr + ph->p_vaddr, to = from + ph->p_memsz;

		if (ph->p_type != PT_LOAD || !(ph->p_flags & PF_X))
			continue;
		while (from < to) {
			u64 end = (from | 0xffffffff) + 1;

			allow(arg, from, end < to ? end : to);
			from = end < to ? end : to;
		}
	}
	return 0;
}

long static_filter_make(u64 user, struct sock_fprog *out)
{
	struct sock_fprog theirs;
	struct head h = {.n = 0};
	u64 pass = (u64)(uintptr_t)static_pass_done;

	if (user_read(&theirs, (void *)(uintptr_t)user, sizeof(theirs)) < 0)
		return -EFAULT;
	if (theirs.len == 0 || theirs.len > BPF_MAXINSNS)
		return -EINVAL;
	emit(&h, BPF_LD | BPF_W | BPF_ABS, 0, 0, IP_HIGH);
	emit(&h, BPF_JMP | BPF_JEQ | BPF_K, 0, 3, (u32)(pass >> 32));
	emit(&h, BPF_LD | BPF_W | BPF_ABS, 0, 0, IP_LOW);
	emit(&h, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, (u32)pass);
	emit(&h, BPF_JMP | BPF_JA, 0, 0, 0); /* to the end of the head, below */
	dl_iterate_phdr(allow_object, &h);
	h.code[4].k = h.n - 5;
	emit(&h, BPF_LD | BPF_IMM, 0, 0, 0);
	if (h.n == ARRAY_SIZE(h.code) || h.n + theirs.len > BPF_MAXINSNS)
		return -EINVAL;
	out->filter = malloc((h.n + theirs.len) * sizeof(*out->filter));
	if (!out->filter)
		return -ENOMEM;
	out->len = (u16)(h.n + theirs.len);
	memcpy(out->filter, h.code, h.n * sizeof(*out->filter));
	if (user_read(out->filter + h.n, theirs.filter, theirs.len * sizeof(*out->filter)) < 0) {
		free(out->filter);
		return -EFAULT;
	}
	return 0;
}

void static_filter_free(struct sock_fprog *f)
{
	free(f->filter);
}
