/*
 * chaos.c: DEVKVM_CHAOS=SEED[,exact-flags][,spoil=KIND[/N]]: choices that the translator may make at any time, made at
 * random, so that a run goes through states which are rare otherwise. What the guest sees must not change.
 *
 * At random are: the length of each block, whether two blocks are linked, which copy of a block takes the place of
 * another, the size of the code memory (small), and
 * before each entry to translated code a flush of the TLB or a part of it, of all translations, a new epoch, a kick, an
 * interrupt request that nobody made.
 *
 * `exact-flags` takes no arithmetic flag for dead: what goes wrong without and right with it is a matter of liveness.
 *
 * `spoil` translates every Nth instruction of a kind wrong, for tests that a check finds it: `alu` does another
 * operation, `x87` too, `address` is off by one byte, `flags` takes living flags for dead.
 */
#include <stdlib.h>
#include <string.h>

#include "../interp/interp_impl.h"
#include "trans.h"

u32 chaos_rnd(struct jit *j, u32 n)
{
	u64 x = j->chaos.rng;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	j->chaos.rng = x;
	return (u32)(x >> 20) % n;
}

void chaos_create(struct jit *j, size_t *code_size)
{
	static const char *const kind[] = {"none", "alu", "address", "flags", "x87"};
	const char *s = getenv("DEVKVM_CHAOS"), *spoil;
	char *end;

	if (!s)
		return;
	j->chaos.on = true;
	j->chaos.rng = (strtoull(s, &end, 0) + 1) * 0x9e3779b97f4a7c15ull | 1;
	*code_size = (1u << 20) + (size_t)chaos_rnd(j, 256) * PAGE_SIZE;
	j->chaos.exact_flags = strstr(end, "exact-flags");
	spoil = strstr(end, "spoil=");
	if (!spoil)
		return;
	spoil += 6;
	j->chaos.spoil_every = 1;
	for (u8 n = SPOIL_ALU; n < ARRAY_SIZE(kind); n++) {
		size_t len = strlen(kind[n]);

		if (strncmp(spoil, kind[n], len))
			continue;
		j->chaos.spoil = n;
		if (spoil[len] == '/')
			j->chaos.spoil_every = (u32)strtoul(spoil + len + 1, NULL, 10);
		if (!j->chaos.spoil_every)
			j->chaos.spoil_every = 1;
	}
}

void chaos_world(struct vcpu *v, struct jit *j)
{
	switch (chaos_rnd(j, 512)) {
	case 0:
		tlb_flush(&v->mmu);
		break;
	case 1:
		tlb_flush_local(&v->mmu);
		break;
	case 2:
		tlb_flush_writes(&v->mmu);
		break;
	case 3:
		tlb_forget_data(&v->mmu);
		break;
	case 4:
		v->interp->epoch++;
		break;
	case 5:
		j->need_flush |= chaos_rnd(j, 4) == 0;
		break;
	case 6:
	case 7:
		atomic_fetch_or(&v->events, (u32)EV_KICK);
		break;
	default:
		if (chaos_rnd(j, 16) == 0)
			atomic_fetch_or(&v->events, (u32)EV_IRQ);
	}
}

bool chaos_spoil(struct jit *j, struct insn *i, struct nat *n)
{
	bool alu = n->cls == K_MODRM && i->map == 0 && i->opcode < 0x40 && (i->opcode & 7) < 4;
	bool address = n->cls == K_MODRM && (i->flags & INSN_MEM) && i->base < 16;
	bool x87 = n->cls == K_X87 && (i->opcode == 0xd8 || i->opcode == 0xdc);
	bool hit = (j->chaos.spoil == SPOIL_ALU && alu) || (j->chaos.spoil == SPOIL_ADDRESS && address) ||
	           (j->chaos.spoil == SPOIL_FLAGS && n->fw) || (j->chaos.spoil == SPOIL_X87 && x87);

	if (!hit || ++j->chaos.n_eligible % j->chaos.spoil_every)
		return false;
	j->chaos.n_spoilt++;
	if (j->chaos.spoil == SPOIL_ALU)
		i->opcode ^= 0x28; /* ADD is SUB, OR is AND, XOR is SBB */
	else if (j->chaos.spoil == SPOIL_X87)
		i->modrm ^= 0x20; /* FADD is FSUB, FMUL is FSUBR, FCOM is FDIV */
	else if (j->chaos.spoil == SPOIL_ADDRESS)
		i->disp++;
	return j->chaos.spoil == SPOIL_FLAGS;
}
