/*
 * vec.c: vector instructions inside translated code.
 */
#include "trans.h"

void vec_classify(struct trans *c, const struct insn *i, struct nat *n)
{
}

void vec_begin(struct trans *c)
{
}

void vec_emit(struct trans *c, unsigned k)
{
}

void vec_flush(struct trans *c)
{
}

void vec_spill(struct trans *c, u32 regs)
{
}

void vec_reload(struct trans *c, u32 regs)
{
}
