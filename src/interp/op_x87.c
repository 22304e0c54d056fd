/*
 * op_x87.c: x87. Control instructions and state images in C; all others run as host thunks on the guest's FXSAVE image.
 *
 * Invariants:
 *  - the image is committed only after a store's memory access succeeded, so a fault restarts cleanly;
 *  - exceptions never trap in here: an unmasked one leaves ES set (non-waiting FXSAVE reads it out), and the next
 *    waiting instruction raises #MF;
 *  - FOP, FIP, FCS, FDP, FDS are kept by us, as FXRSTOR and FXSAVE move them only now and then on AMD.
 *
 * GAP(ferr): with CR0.NE = 0 a processor reports the error through FERR# and IRQ 13. There is no such wire here, so the
 * run ends with an internal error, loudly.
 */
#include <string.h>

#include "simd.h"
#include "thunk.h"

int x87_pending_fault(struct vcpu *v)
{
	if (v->cr0 & CR0_NE)
		return excp_raise(v, EXC_MF);
	return cpu_internal_error(v, "unmasked x87 exception with CR0.NE = 0 (FERR# is not wired)");
}

/* #NM alone: control instructions that do not wait. */
static inline int gate_nowait(struct vcpu *v)
{
	if (unlikely(v->cr0 & (CR0_EM | CR0_TS)))
		return excp_raise(v, EXC_NM);
	return STEP_OK;
}

static inline int gate_wait(struct vcpu *v)
{
	if (unlikely(v->cr0 & (CR0_EM | CR0_TS)))
		return excp_raise(v, EXC_NM);
	if (unlikely(fpu_pending(&v->fpu)))
		return x87_pending_fault(v);
	return STEP_OK;
}

/* ---- instructions that the host runs ---------------------------------------------------------------------------- */

/* Bytes a memory operand has, 0 when the opcode has none of ours. */
static unsigned mem_size(u8 opcode, unsigned ext)
{
	switch (opcode) {
	case 0xd8:
	case 0xda:
		return 4;
	case 0xd9:
		return ext == 0 || ext == 2 || ext == 3 ? 4 : 0;
	case 0xdb:
		return ext < 4 ? 4 : ext == 5 || ext == 7 ? 10 : 0;
	case 0xdc:
		return 8;
	case 0xdd:
		return ext < 4 ? 8 : 0;
	case 0xde:
		return 2;
	case 0xdf:
		return ext < 4 ? 2 : ext == 4 || ext == 6 ? 10 : 8;
	}
	return 0;
}

static bool mem_is_store(u8 opcode, unsigned ext)
{
	switch (opcode) {
	case 0xd9:
		return ext == 2 || ext == 3;
	case 0xdb:
		return (ext >= 1 && ext <= 3) || ext == 7;
	case 0xdd:
		return ext >= 1 && ext <= 3;
	case 0xdf:
		return (ext >= 1 && ext <= 3) || ext == 6 || ext == 7;
	}
	return false;
}

/* FCMOVcc reads RFLAGS. */
static bool reads_flags(u8 opcode, u8 modrm)
{
	return (opcode == 0xda || opcode == 0xdb) && modrm >= 0xc0 && modrm < 0xe0;
}

/* FCOMI, FUCOMI and their popping forms. */
static bool writes_flags(u8 opcode, u8 modrm)
{
	return (opcode == 0xdb || opcode == 0xdf) && modrm >= 0xe8 && modrm < 0xf8;
}

/* FOP, FIP and FDP of the instruction, as the host's vendor keeps them. */
static void note_pointers(struct vcpu *v, const struct insn *i, u8 *img)
{
	u16 fop = (i->opcode & 7) << 8 | i->modrm;
	bool excp = img[FX_FSW] & FSW_ES;
	u64 ea;

	if (fpu_ptrs_only_pending() || excp)
		fx_set16(img, FX_FOP, fop);
	memcpy(img + FX_FIP, &v->r[R_RIP], 8);
	v->fpu.fcs = v->seg[SEG_CS].sel;
	if (i->flags & INSN_MEM && (excp || !fpu_fdp_only_excp())) {
		ea = insn_ea(v, i);
		memcpy(img + FX_FDP, &ea, 8);
		v->fpu.fds = v->seg[i->seg].sel;
	}
}

/* A store whose operation raised an unmasked exception other than "inexact" writes nothing. */
static bool store_suppressed(const u8 *img)
{
	return fx_get16(img, FX_FSW) & ~fx_get16(img, FX_FCW) & 0x1f;
}

static int run_x87(struct vcpu *v, const struct insn *i)
{
	const struct thunk *t = i->aux;
	_Alignas(64) u8 img[512];
	struct thunk_ctx ctx;
	u8 ptrs[18], mem[32];
	gva_t gva = 0;
	u64 flags;
	int rc = gate_wait(v);

	if (unlikely(rc != STEP_OK))
		return rc;
	if (t->msize) {
		rc = simd_linear(v, i, t->msize, 1, t->props & THUNK_X87_STORE ? MEM_WRITE : MEM_READ, &gva);
		if (rc == STEP_OK && !(t->props & THUNK_X87_STORE))
			rc = simd_load(v, gva, mem, t->msize);
		if (unlikely(rc != STEP_OK))
			return rc;
	}
	/* The XMM part is loaded into registers that no one owns; only its address must be readable. */
	memcpy(img, v->fpu.fx, FX_XMM);
	memcpy(ptrs, v->fpu.fx + FX_FOP, sizeof(ptrs));
	flags = t->fn(mem, img, NULL, (void *)(uintptr_t)(v->rflags & FLAGS_ARITH), NULL, &ctx);
	memcpy(img + FX_FOP, ptrs, sizeof(ptrs));
	if (t->props & THUNK_X87_STORE) {
		if (unlikely(store_suppressed(img))) {
			/* The operand's faults come first all the same. */
			rc = mem_probe(&v->mmu, gva, t->msize, MEM_WRITE, v->mmu.ctx);
			rc = rc == MEM_OK ? STEP_OK : vmem_fail(v, rc);
		} else {
			rc = simd_store(v, gva, mem, t->msize);
		}
		if (unlikely(rc != STEP_OK))
			return rc;
	}
	note_pointers(v, i, img);
	memcpy(v->fpu.fx, img, FX_MXCSR);
	memcpy(v->fpu.fx + FX_ST, img + FX_ST, FX_XMM - FX_ST);
	v->fpu.x87_used = true;
	if (t->props & THUNK_FLAGS)
		v->rflags = (v->rflags & ~FLAGS_ARITH) | (flags & FLAGS_ARITH);
	return STEP_OK;
}

static void put(u8 *code, unsigned *n, const char *bytes, unsigned len)
{
	memcpy(code + *n, bytes, len);
	*n += len;
}

#define PUT(str) put(code, &n, str, sizeof(str) - 1)

static int bind_and_run(struct vcpu *v, const struct insn *i)
{
	struct thunk like = {.k_reg = THUNK_NO_OP};
	bool mem = i->flags & INSN_MEM;
	unsigned ext = i->modrm >> 3 & 7, n = 0;
	const struct thunk *t;
	u8 code[THUNK_CODE_MAX];

	if (i->flags & INSN_LOCK)
		return excp_raise(v, EXC_UD);
	if (mem) {
		like.msize = mem_size(i->opcode, ext);
		if (!like.msize)
			return excp_raise(v, EXC_UD);
		if (mem_is_store(i->opcode, ext))
			like.props |= THUNK_X87_STORE;
	} else if (writes_flags(i->opcode, i->modrm)) {
		like.props |= THUNK_FLAGS;
	}
	PUT("\x41\xd9\x71\x0c"); /* fnstenv [r9 + env_host] */
	PUT("\x0f\xae\x5e\x18"); /* stmxcsr [rsi + FX_MXCSR]: FXRSTOR loads it back */
	PUT("\x48\x0f\xae\x0e"); /* fxrstor64 [rsi] */
	if (!mem && (reads_flags(i->opcode, i->modrm) || writes_flags(i->opcode, i->modrm)))
		PUT("\x51\x9d"); /* push rcx; popfq */
	code[n++] = i->opcode;
	code[n++] = mem ? ext << 3 | 7 /* [rdi] */ : i->modrm;
	if (like.props & THUNK_FLAGS)
		PUT("\x9c\x58"); /* pushfq; pop rax */
	PUT("\x48\x0f\xae\x06"); /* fxsave64 [rsi] */
	PUT("\xdb\xe3");         /* fninit: FLDENV would wait for what is pending */
	PUT("\x41\xd9\x61\x0c"); /* fldenv [r9 + env_host]: the flags of whoever runs us too */
	PUT("\xc3");
	t = thunk_get(code, n, &like);
	if (!t)
		return cpu_internal_error(v, "no executable memory for an x87 instruction");
	insn_bind(i, t, run_x87);
	return run_x87(v, i);
}

_Static_assert(offsetof(struct thunk_ctx, env_host) == 12, "x87 thunks");
_Static_assert(offsetof(struct thunk_ctx, mxcsr_out) == 4 && offsetof(struct thunk_ctx, mxcsr_host) == 8,
               "SIMD thunks");

/* ---- control instructions --------------------------------------------------------------------------------------- */

static int fwait(struct vcpu *v, const struct insn *i)
{
	if ((v->cr0 & (CR0_MP | CR0_TS)) == (CR0_MP | CR0_TS))
		return excp_raise(v, EXC_NM);
	return fpu_pending(&v->fpu) ? x87_pending_fault(v) : STEP_OK;
}

/* FENI, FDISI, FSETPM: left over from the 8087 and 287, do nothing. */
static int fold_nop(struct vcpu *v, const struct insn *i)
{
	return gate_nowait(v);
}

static int fnclex(struct vcpu *v, const struct insn *i)
{
	int rc = gate_nowait(v);

	if (rc != STEP_OK)
		return rc;
	fx_set16(v->fpu.fx, FX_FSW, fx_get16(v->fpu.fx, FX_FSW) & ~(FSW_B | FSW_ES | 0x7f));
	v->fpu.x87_used = true;
	return STEP_OK;
}

static int fninit(struct vcpu *v, const struct insn *i)
{
	int rc = gate_nowait(v);

	if (rc == STEP_OK)
		fpu_fninit(&v->fpu);
	return rc;
}

static int fldcw(struct vcpu *v, const struct insn *i)
{
	int rc = gate_wait(v);
	u16 fcw;

	if (rc == STEP_OK)
		rc = v_read(v, i->seg, insn_ea(v, i), &fcw, 2);
	if (rc != STEP_OK)
		return rc;
	fx_set16(v->fpu.fx, FX_FCW, (fcw & 0x1f3f) | 0x40);
	fpu_update_es(&v->fpu);
	v->fpu.x87_used = true;
	return STEP_OK;
}

static int fnstcw(struct vcpu *v, const struct insn *i)
{
	int rc = gate_nowait(v);

	return rc == STEP_OK ? v_write(v, i->seg, insn_ea(v, i), v->fpu.fx + FX_FCW, 2) : rc;
}

static int fnstsw(struct vcpu *v, const struct insn *i)
{
	int rc = gate_nowait(v);

	if (rc != STEP_OK)
		return rc;
	if (i->flags & INSN_MEM)
		return v_write(v, i->seg, insn_ea(v, i), v->fpu.fx + FX_FSW, 2);
	memcpy(&v->r[R_RAX], v->fpu.fx + FX_FSW, 2);
	return STEP_OK;
}

/* ---- FNSTENV, FLDENV, FNSAVE, FRSTOR ---------------------------------------------------------------------------- */

static unsigned env_size(const struct insn *i)
{
	return i->osize == 2 ? 14 : 28;
}

static bool real_format(const struct vcpu *v)
{
	return v->mode == MODE_REAL || v->mode == MODE_V86;
}

/* The four layouts of SDM vol. 1, figures 8-9 to 8-12, as seven words or doublewords. */
static void env_put(const struct vcpu *v, const struct insn *i, u8 *out)
{
	const struct fpu *f = &v->fpu;
	u32 w[7], fip, fdp, fop = fx_get16(f->fx, FX_FOP), fcs = f->fcs, fds = f->fds;
	unsigned n;

	memcpy(&fip, f->fx + FX_FIP, 4);
	memcpy(&fdp, f->fx + FX_FDP, 4);
	if (fpu_no_selectors())
		fcs = fds = 0;
	w[0] = 0xffff0000 | fx_get16(f->fx, FX_FCW);
	w[1] = 0xffff0000 | fx_get16(f->fx, FX_FSW);
	w[2] = 0xffff0000 | fpu_full_tags(f);
	if (!real_format(v)) {
		w[3] = fip;
		w[4] = fcs | (i->osize == 2 ? 0 : fop << 16);
		w[5] = fdp;
		w[6] = 0xffff0000 | fds;
	} else {
		fip += fcs << 4;
		fdp += fds << 4;
		w[3] = 0xffff0000 | (fip & 0xffff);
		w[5] = 0xffff0000 | (fdp & 0xffff);
		if (i->osize == 2) {
			w[4] = (fip >> 4 & 0xf000) | fop;
			w[6] = fdp >> 4 & 0xf000;
		} else {
			w[4] = (fip >> 16) << 12 | fop;
			w[6] = (fdp >> 16) << 12;
		}
	}
	for (n = 0; n < 7; n++)
		memcpy(out + n * (i->osize == 2 ? 2 : 4), &w[n], i->osize == 2 ? 2 : 4);
}

static void env_get(struct vcpu *v, const struct insn *i, const u8 *in)
{
	struct fpu *f = &v->fpu;
	u32 w[7] = {0};
	u64 fip, fdp;
	u16 fop, fcs = 0, fds = 0;
	unsigned n;

	for (n = 0; n < 7; n++)
		memcpy(&w[n], in + n * (i->osize == 2 ? 2 : 4), i->osize == 2 ? 2 : 4);
	if (!real_format(v)) {
		fip = w[3];
		fdp = w[5];
		fcs = w[4];
		fds = w[6];
		/* The 16-bit protected form has no opcode. */
		fop = i->osize == 2 ? 0 : w[4] >> 16;
	} else if (i->osize == 2) {
		fip = w[3] | (w[4] & 0xf000) << 4;
		fdp = w[5] | (w[6] & 0xf000) << 4;
		fop = w[4];
	} else {
		fip = (w[3] & 0xffff) | (w[4] >> 12) << 16;
		fdp = (w[5] & 0xffff) | (w[6] >> 12) << 16;
		fop = w[4];
	}
	fx_set16(f->fx, FX_FCW, (w[0] & 0x1f3f) | 0x40);
	/* Tags are of physical registers; the image's order follows the new TOP in FRSTOR, and for FLDENV the registers
	 * stay where they are, so the image turns. */
	fx_set16(f->fx, FX_FSW, w[1]);
	fpu_set_full_tags(f, w[2]);
	fx_set16(f->fx, FX_FOP, fop & 0x7ff);
	memcpy(f->fx + FX_FIP, &fip, 8);
	memcpy(f->fx + FX_FDP, &fdp, 8);
	f->fcs = fcs;
	f->fds = fds;
	fpu_update_es(f);
	f->x87_used = true;
}

static int fnstenv(struct vcpu *v, const struct insn *i)
{
	int rc = gate_nowait(v);
	u8 env[28];

	if (rc != STEP_OK)
		return rc;
	env_put(v, i, env);
	rc = v_write(v, i->seg, insn_ea(v, i), env, env_size(i));
	if (rc != STEP_OK)
		return rc;
	v->fpu.fx[FX_FCW] |= 0x3f;
	fpu_update_es(&v->fpu);
	v->fpu.x87_used = true;
	return STEP_OK;
}

static int fldenv(struct vcpu *v, const struct insn *i)
{
	u8 env[28], st[8][16];
	unsigned old, top, n;
	int rc = gate_wait(v);

	if (rc == STEP_OK)
		rc = v_read(v, i->seg, insn_ea(v, i), env, env_size(i));
	if (rc != STEP_OK)
		return rc;
	old = fpu_top(&v->fpu);
	memcpy(st, v->fpu.fx + FX_ST, sizeof(st));
	env_get(v, i, env);
	top = fpu_top(&v->fpu);
	for (n = 0; n < 8; n++)
		memcpy(v->fpu.fx + FX_ST + 16 * ((n - top) & 7), st[(n - old) & 7], 16);
	return STEP_OK;
}

static int fnsave(struct vcpu *v, const struct insn *i)
{
	unsigned size = env_size(i), n;
	int rc = gate_nowait(v);
	u8 img[108];

	if (rc != STEP_OK)
		return rc;
	env_put(v, i, img);
	for (n = 0; n < 8; n++)
		memcpy(img + size + 10 * n, v->fpu.fx + FX_ST + 16 * n, 10);
	rc = v_write(v, i->seg, insn_ea(v, i), img, size + 80);
	if (rc == STEP_OK)
		fpu_fninit(&v->fpu);
	return rc;
}

static int frstor(struct vcpu *v, const struct insn *i)
{
	unsigned size = env_size(i), n;
	int rc = gate_wait(v);
	u8 img[108];

	if (rc == STEP_OK)
		rc = v_read(v, i->seg, insn_ea(v, i), img, size + 80);
	if (rc != STEP_OK)
		return rc;
	env_get(v, i, img);
	for (n = 0; n < 8; n++)
		memcpy(v->fpu.fx + FX_ST + 16 * n, img + size + 10 * n, 10);
	return STEP_OK;
}

/* ---- find ------------------------------------------------------------------------------------------------------- */

insn_fn op_x87_find(const struct insn *i)
{
	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_FWAIT:
		return fwait;
	case ZYDIS_MNEMONIC_FNCLEX:
		return fnclex;
	case ZYDIS_MNEMONIC_FNINIT:
		return fninit;
	case ZYDIS_MNEMONIC_FLDCW:
		return fldcw;
	case ZYDIS_MNEMONIC_FNSTCW:
		return fnstcw;
	case ZYDIS_MNEMONIC_FNSTSW:
		return fnstsw;
	case ZYDIS_MNEMONIC_FNSTENV:
		return fnstenv;
	case ZYDIS_MNEMONIC_FLDENV:
		return fldenv;
	case ZYDIS_MNEMONIC_FNSAVE:
		return fnsave;
	case ZYDIS_MNEMONIC_FRSTOR:
		return frstor;
	case ZYDIS_MNEMONIC_FENI8087_NOP:
	case ZYDIS_MNEMONIC_FDISI8087_NOP:
	case ZYDIS_MNEMONIC_FSETPM287_NOP:
		return fold_nop;
	}
	return i->map == 0 && i->opcode >= 0xd8 && i->opcode <= 0xdf && i->off_modrm ? bind_and_run : NULL;
}
