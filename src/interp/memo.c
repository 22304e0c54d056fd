/*
 * memo.c: instructions decoded lately.
 *
 * The same bytes are decoded again and again: when a block is looked at from behind another one's exit, translated
 * under another key, translated again after a flush, for a handler. An instruction is found by the eight bytes from its
 * start, and taken when its own bytes and the mode are the same: nothing else decides what it is.
 */
#include "interp_impl.h"

/* Where these bytes are kept; NULL: nowhere. */
static struct remembered *place(struct interp *it, const u8 *bytes, unsigned avail)
{
	return avail < 8 ? NULL : &it->memo[ld8(bytes) * 0x9e3779b97f4a7c15ull >> (64 - MEMO_BITS)];
}

int interp_decode(struct vcpu *v, enum decode_mode mode, const u8 *bytes, unsigned avail, struct insn *out)
{
	struct remembered *m = place(v->interp, bytes, avail);
	int rc;

	if (m && m->valid && m->mode == mode && m->insn.len <= avail && !memcmp(m->insn.raw, bytes, m->insn.len)) {
		*out = m->insn;
		return 0;
	}
	rc = decode(mode, bytes, avail, out);
	if (rc)
		return rc;
	interp_bind(out);
	if (m) {
		m->valid = true;
		m->mode = (u8)mode;
		m->insn = *out;
	}
	return 0;
}
