/*
 * emit.c: the byte encoder and the code memory.
 *
 * Invariant: no mapping is writable and executable. Where the system refuses executable memfds there is no translator;
 * the interpreter runs instead.
 */
#define _GNU_SOURCE
#include "emit.h"

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../base/sys.h"

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010u
#endif

static void emit_modrm(struct emit *e, unsigned reg, struct rm rm)
{
	unsigned mod;

	reg &= 7;
	if (rm.reg != H_NONE) {
		e1(e, (u8)(0xc0 | reg << 3 | (rm.reg & 7)));
		return;
	}
	if (rm.base == H_NONE) {
		/* No base: SIB with base 5, mod 0, disp32. */
		e1(e, (u8)(reg << 3 | 4));
		e1(e, (u8)(rm.scale << 6 | (rm.index == H_NONE ? 4 : rm.index & 7) << 3 | 5));
		e4(e, (u32)rm.disp);
		return;
	}
	mod = rm.disp == 0 && (rm.base & 7) != 5 ? 0 : is_s8(rm.disp) ? 1 : 2;
	if (rm.index != H_NONE || (rm.base & 7) == 4) {
		e1(e, (u8)(mod << 6 | reg << 3 | 4));
		e1(e, (u8)(rm.scale << 6 | (rm.index == H_NONE ? 4 : rm.index & 7) << 3 | (rm.base & 7)));
	} else {
		e1(e, (u8)(mod << 6 | reg << 3 | (rm.base & 7)));
	}
	if (mod == 1)
		e1(e, (u8)rm.disp);
	else if (mod == 2)
		e4(e, (u32)rm.disp);
}

static unsigned rex_xb(struct rm rm)
{
	if (rm.reg != H_NONE)
		return rm.reg >> 3;
	return (rm.index != H_NONE && rm.index >= 8 ? 2 : 0) | (rm.base != H_NONE && rm.base >= 8 ? 1 : 0);
}

void encode(struct emit *e, unsigned flags, unsigned map, u8 opcode, unsigned reg, struct rm rm)
{
	unsigned rex = (flags & ENC_W ? 8 : 0) | (reg >= 8 ? 4 : 0) | rex_xb(rm);

	if (flags & ENC_LOCK)
		e1(e, 0xf0);
	if (flags & ENC_66)
		e1(e, 0x66);
	if (flags & ENC_F2)
		e1(e, 0xf2);
	if (flags & ENC_F3)
		e1(e, 0xf3);
	if (rex || (flags & ENC_REX))
		e1(e, (u8)(0x40 | rex));
	if (map)
		e1(e, 0x0f);
	if (map == 2)
		e1(e, 0x38);
	if (map == 3)
		e1(e, 0x3a);
	e1(e, opcode);
	emit_modrm(e, reg, rm);
}

void encode_vex(struct emit *e, bool w, bool l, unsigned pp, unsigned map, u8 opcode, unsigned reg, unsigned vvvv,
                struct rm rm)
{
	unsigned xb = rex_xb(rm);

	e1(e, 0xc4);
	e1(e, (u8)((reg >= 8 ? 0 : 0x80) | (xb & 2 ? 0 : 0x40) | (xb & 1 ? 0 : 0x20) | map));
	e1(e, (u8)(w << 7 | (~vvvv & 15) << 3 | l << 2 | pp));
	e1(e, opcode);
	emit_modrm(e, reg, rm);
}

void emit_const(struct emit *e, unsigned reg, u64 x)
{
	if (x <= 0xffffffffu) {
		if (reg >= 8)
			e1(e, 0x41);
		e1(e, (u8)(0xb8 | (reg & 7)));
		e4(e, (u32)x);
	} else if (is_s32((s64)x)) {
		encode(e, ENC_W, 0, 0xc7, 0, rm_reg(reg));
		e4(e, (u32)x);
	} else {
		e1(e, reg >= 8 ? 0x49 : 0x48);
		e1(e, (u8)(0xb8 | (reg & 7)));
		e8(e, x);
	}
}

static void note(struct emit *e, u8 *at, enum fix_kind kind)
{
	struct fixes *f = e->fixes;

	if (!f)
		return;
	if (f->n < FIXES_MAX) {
		f->place[f->n].at = at;
		f->place[f->n].kind = (u8)kind;
	}
	f->n++;
}

void emit_rip(struct emit *e, unsigned reg, u64 rip)
{
	emit_const(e, reg, rip);
	if (rip <= 0xffffffffu)
		note(e, e->p - 4, FIX_RIP4);
	else if (is_s32((s64)rip))
		note(e, e->p - 4, FIX_RIP4S);
	else
		note(e, e->p - 8, FIX_RIP8);
}

void emit_rip4(struct emit *e, u64 rip)
{
	note(e, e->p, FIX_RIP4S);
	e4(e, (u32)rip);
}

void emit_index(struct emit *e, unsigned reg, u32 call)
{
	emit_const(e, reg, call);
	note(e, e->p - 4, FIX_CALL);
}

void emit_recipe(struct emit *e, u32 flags)
{
	note(e, e->p, FIX_RECIPE);
	e4(e, flags);
}

void emit_lea_rip(struct emit *e, unsigned reg, const void *to)
{
	e1(e, reg >= 8 ? 0x4c : 0x48);
	e1(e, 0x8d);
	e1(e, (u8)((reg & 7) << 3 | 5));
	note(e, e->p, FIX_REL);
	e4(e, (u32)((const u8 *)to - (emit_rx(e) + 4)));
}

void emit_mov(struct emit *e, unsigned dst, unsigned src)
{
	encode(e, ENC_W, 0, 0x89, src, rm_reg(dst));
}

void emit_load(struct emit *e, unsigned dst, unsigned base, s32 disp)
{
	encode(e, ENC_W, 0, 0x8b, dst, rm_mem(base, disp));
}

void emit_store(struct emit *e, unsigned base, s32 disp, unsigned src)
{
	encode(e, ENC_W, 0, 0x89, src, rm_mem(base, disp));
}

/* The displacement of a jump to `to`; NULL: it is not known yet. Where it lies. */
static u8 *rel32(struct emit *e, const u8 *to)
{
	u8 *at = e->p;

	note(e, at, FIX_REL);
	e4(e, 0);
	if (to)
		patch_rel(at, e->delta, to);
	return at;
}

u8 *emit_jmp(struct emit *e, u8 opcode, const u8 *to)
{
	e1(e, opcode);
	return rel32(e, to);
}

u8 *emit_jcc(struct emit *e, unsigned cc, const u8 *to)
{
	e1(e, 0x0f);
	e1(e, (u8)(0x80 | cc));
	return rel32(e, to);
}

/* ---- code memory ------------------------------------------------------------------------------------------------ */

static int open_memfd(size_t size)
{
	int fd = memfd_create("devkvm-code", MFD_CLOEXEC | MFD_EXEC);

	if (fd < 0 && errno == EINVAL) /* Linux before 6.3 does not know MFD_EXEC */
		fd = memfd_create("devkvm-code", MFD_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (ftruncate(fd, (off_t)size) < 0) {
		int err = -errno;

		sys_close(fd);
		return err;
	}
	return fd;
}

int codemem_create(struct codemem *c, size_t size, size_t front)
{
	int fd = open_memfd(size), err;
	u8 *all, *rw;

	if (fd < 0)
		return fd;
	all = sys_mmap(NULL, front + size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (all == MAP_FAILED) {
		err = -errno;
		sys_close(fd);
		return err;
	}
	rw = sys_mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (rw == MAP_FAILED)
		goto fail;
	if (sys_mmap(all + front, size, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
		err = -errno;
		munmap(rw, size);
		goto fail_err;
	}
	sys_close(fd);
	c->rw = rw;
	c->rx = all + front;
	c->data = all;
	c->size = size;
	c->front = front;
	return 0;
fail:
	err = -errno;
fail_err:
	munmap(all, front + size);
	sys_close(fd);
	return err;
}

void codemem_destroy(struct codemem *c)
{
	if (!c->rw)
		return;
	munmap(c->rw, c->size);
	munmap(c->data, c->front + c->size);
	c->rw = NULL;
}
