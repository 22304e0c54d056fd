/*
 * op_sys.c: control and debug registers, MSRs, ports, time stamps, CPUID, TLB and cache control, HLT.
 *
 * Privilege comes before everything else but #UD (SDM vol. 2, each page's list). Handlers that may change the mode, a
 * mapping, or what events mean end the block (STEP_JUMP with RIP advanced).
 *
 * Hypercalls, MONITOR and MWAIT, and RSM belong to the vCPU's owner; without one that knows them they raise #UD.
 * GAP(pmu): no performance counters; RDPMC raises #GP for every index.
 */
#include "op_sys.h"

#define FN(name) static int name(struct vcpu *v, const struct insn *i)

static int gp0(struct vcpu *v)
{
	return excp_raise_err(v, EXC_GP, 0);
}

/* Width of MOV to and from CRn and DRn: the mode's, whatever the prefixes. */
static unsigned wide(const struct vcpu *v)
{
	return v->mode == MODE_64 ? 8 : 4;
}

static int ended(struct vcpu *v, const struct insn *i, int rc)
{
	return rc == STEP_JUMP ? step_end(v, i) : rc;
}

/* ---- control registers ------------------------------------------------------------------------------------------ */

FN(mov_from_cr)
{
	u64 val;
	int rc = need_cpl0(v);

	if (rc == STEP_OK)
		rc = cr_read(v, i->op[1].reg, &val);
	if (rc == STEP_OK)
		set_reg(v, &i->op[0], wide(v), val);
	return rc;
}

FN(mov_to_cr)
{
	int rc = need_cpl0(v);

	if (rc == STEP_OK)
		rc = cr_write(v, i->op[0].reg, get_reg(v, &i->op[1], wide(v)));
	return ended(v, i, rc);
}

FN(lmsw)
{
	u64 val;
	int rc = need_cpl0(v);

	if (rc == STEP_OK)
		rc = read_rm(v, i, 0, 2, &val);
	if (rc != STEP_OK)
		return rc;
	/* PE, MP, EM, TS; PE cannot be cleared. */
	val = (v->cr0 & ~0xfull) | (val & 0xf) | (v->cr0 & CR0_PE);
	return ended(v, i, cr_write(v, 0, val));
}

FN(smsw)
{
	u16 w = (u16)v->cr0;
	int rc = umip_ok(v);

	if (rc != STEP_OK)
		return rc;
	if (i->op[0].kind == OPK_MEM)
		return v_write(v, i->seg, insn_ea(v, i), &w, 2);
	set_reg(v, &i->op[0], i->osize, v->cr0);
	return STEP_OK;
}

FN(clts)
{
	int rc = need_cpl0(v);

	if (rc == STEP_OK)
		rc = cr_write(v, 0, v->cr0 & ~CR0_TS);
	return ended(v, i, rc);
}

FN(xsetbv)
{
	int rc;

	if (!(v->cr4 & CR4_OSXSAVE))
		return excp_raise(v, EXC_UD);
	rc = need_cpl0(v);
	if (rc == STEP_OK)
		rc = xcr_write(v, (u32)v->r[R_RCX], (u64)(u32)v->r[R_RDX] << 32 | (u32)v->r[R_RAX]);
	return rc == STEP_OK ? step_end(v, i) : rc;
}

FN(xgetbv)
{
	u32 leaf[4];
	u64 val;

	if (!(v->cr4 & CR4_OSXSAVE))
		return excp_raise(v, EXC_UD);
	cpuid_leaf(0xd, 1, leaf);
	if ((u32)v->r[R_RCX] == 0)
		val = v->fpu.xcr0;
	else if ((u32)v->r[R_RCX] == 1 && (leaf[0] & BIT(2)))
		val = fpu_xinuse(&v->fpu) & v->fpu.xcr0;
	else
		return gp0(v);
	v->r[R_RAX] = (u32)val;
	v->r[R_RDX] = val >> 32;
	return STEP_OK;
}

/* ---- debug registers -------------------------------------------------------------------------------------------- */

/* SDM vol. 3, 17.2: DR4 and DR5 are DR6 and DR7 unless CR4.DE; DR7.GD traps every access. */
static int dr_open(struct vcpu *v, unsigned *n)
{
	if ((*n == 4 || *n == 5) && (v->cr4 & CR4_DE))
		return excp_raise(v, EXC_UD);
	if (v->cpl != 0)
		return gp0(v);
	if ((v->gdbg.own_bps ? v->gdbg.dr7 : v->dr7) & DR7_GD) {
		v->excp = (struct event){.kind = EVENT_FAULT, .vector = EXC_DB, .dr6 = DR6_BD};
		return STEP_EXCP;
	}
	if (*n == 4 || *n == 5)
		*n += 2;
	return STEP_OK;
}

FN(mov_from_dr)
{
	unsigned n = i->op[1].reg;
	int rc = dr_open(v, &n);

	if (rc == STEP_OK)
		set_reg(v, &i->op[0], wide(v), n < 4 ? v->dr[n] : n == 6 ? v->dr6 : v->dr7);
	return rc;
}

FN(mov_to_dr)
{
	u64 val = get_reg(v, &i->op[1], wide(v));
	unsigned n = i->op[0].reg;
	int rc = dr_open(v, &n);

	if (rc != STEP_OK)
		return rc;
	if (n >= 6 && val >> 32)
		return gp0(v);
	if (n < 4)
		v->dr[n] = val;
	else if (n == 6)
		v->dr6 = (val & 0xe00f) | DR6_FIXED;
	else
		v->dr7 = (val & 0xffff23ff) | DR7_FIXED;
	dbg_update(v);
	return step_end(v, i);
}

/* ---- MSRs, time, CPUID ------------------------------------------------------------------------------------------ */

static bool client_asked(struct vcpu *v, u64 val, bool write, bool failed)
{
	if (likely(!v->ops->msr_ask) || !v->ops->msr_ask(v, (u32)v->r[R_RCX], val, write, failed))
		return false;
	v->exit.reason = EXIT_MSR;
	return true;
}

FN(rdmsr)
{
	u64 val;

	if (v->cpl != 0)
		return gp0(v);
	if (client_asked(v, 0, false, false))
		return STEP_EXIT;
	if (msr_read(v, (u32)v->r[R_RCX], &val) < 0)
		return client_asked(v, 0, false, true) ? STEP_EXIT : gp0(v);
	v->r[R_RAX] = (u32)val;
	v->r[R_RDX] = val >> 32;
	return STEP_OK;
}

FN(wrmsr)
{
	u64 val = (u64)(u32)v->r[R_RDX] << 32 | (u32)v->r[R_RAX];

	if (v->cpl != 0)
		return gp0(v);
	if (client_asked(v, val, true, false))
		return STEP_EXIT;
	if (msr_write(v, (u32)v->r[R_RCX], val, false) < 0)
		return client_asked(v, val, true, true) ? STEP_EXIT : gp0(v);
	return step_end(v, i);
}

FN(rdtsc)
{
	u64 tsc;

	if (i->mnemonic == ZYDIS_MNEMONIC_RDTSCP && (v->denied.insn & DENY_RDTSCP))
		return excp_raise(v, EXC_UD);
	if (v->cpl != 0 && (v->cr4 & CR4_TSD))
		return gp0(v);
	tsc = tsc_read(v);
	v->r[R_RAX] = (u32)tsc;
	v->r[R_RDX] = tsc >> 32;
	if (i->mnemonic == ZYDIS_MNEMONIC_RDTSCP)
		v->r[R_RCX] = (u32)v->tsc_aux;
	return STEP_OK;
}

FN(rdpid)
{
	if (v->denied.insn & DENY_RDTSCP)
		return excp_raise(v, EXC_UD);
	set_reg(v, &i->op[0], wide(v), v->tsc_aux);
	return STEP_OK;
}

FN(rdpmc)
{
	return gp0(v);
}

FN(cpuid)
{
	return v->ops->cpuid(v, i);
}

FN(hlt)
{
	int rc = need_cpl0(v);

	return rc == STEP_OK ? v->ops->hlt(v, i) : rc;
}

FN(hypercall)
{
	int rc;

	if (!v->ops->hypercall)
		return excp_raise(v, EXC_UD);
	rc = v->ops->hypercall(v, i, i->mnemonic == ZYDIS_MNEMONIC_VMMCALL);
	/* An interrupt that it asked for comes at once. */
	return rc == STEP_OK ? step_end(v, i) : rc;
}

/* No extensions of MONITOR and MWAIT are offered: hints in EAX and EDX alone. */
FN(monitor)
{
	bool wait = i->mnemonic == ZYDIS_MNEMONIC_MWAIT;
	u8 byte;
	int rc;

	if (!v->ops->monitor || v->cpl != 0)
		return excp_raise(v, EXC_UD);
	rc = v->ops->monitor(v, i);
	if (rc != STEP_OK)
		return rc;
	if (wait)
		return v->r[R_RCX] & ~1ull ? gp0(v) : STEP_OK;
	if (v->r[R_RCX])
		return gp0(v);
	return v_read(v, i->seg, v->r[R_RAX] & size_mask(i->asize), &byte, 1);
}

FN(rsm)
{
	return v->ops->rsm ? v->ops->rsm(v, i) : excp_raise(v, EXC_UD);
}

/* ---- ports ------------------------------------------------------------------------------------------------------ */

FN(in_out)
{
	bool in = i->mnemonic == ZYDIS_MNEMONIC_IN;
	const struct operand *data = &i->op[in ? 0 : 1], *port = &i->op[in ? 1 : 0];
	struct pio io = {.in = in, .size = data->size, .len = i->len, .count = 1};
	int rc;

	io.port = port->kind == OPK_IMM ? (u8)i->imm : (u16)v->r[R_RDX];
	if (!in)
		io.value = (u32)(v->r[R_RAX] & size_mask(data->size));
	rc = io_permitted(v, io.port, io.size);
	if (rc != STEP_OK)
		return rc;
	dbg_io(v, io.port, io.size);
	return v->ops->pio(v, &io);
}

/* ---- TLB and caches --------------------------------------------------------------------------------------------- */

FN(invlpg)
{
	u64 gva = insn_ea(v, i);
	int rc = need_cpl0(v);

	if (rc != STEP_OK)
		return rc;
	if (v->mode != MODE_64)
		gva = (u32)(gva + v->seg[i->seg].base);
	else if (i->seg >= SEG_FS)
		gva += v->seg[i->seg].base;
	tlb_flush_page(&v->mmu, gva);
	return step_end(v, i);
}

FN(invpcid)
{
	u64 type = get_reg(v, &i->op[0], wide(v)), desc[2];
	int rc;

	if (v->denied.insn & DENY_INVPCID)
		return excp_raise(v, EXC_UD);
	if (v->mode == MODE_V86)
		return gp0(v);
	rc = need_cpl0(v);
	if (rc == STEP_OK)
		rc = v_read(v, i->seg, insn_ea(v, i), desc, 16);
	if (rc != STEP_OK)
		return rc;
	if (type > 3 || desc[0] >> 12)
		return gp0(v);
	if (type < 2 && desc[0] && !(v->cr4 & CR4_PCIDE))
		return gp0(v);
	if (type == 0 && !is_canonical(desc[1]))
		return gp0(v);
	if (type < 2 && (v->cr4 & CR4_PCIDE) && desc[0] != (v->cr3 & 0xfff))
		tlb_drop_pcid(&v->mmu, (u16)desc[0]);
	else if (type == 0)
		tlb_flush_page(&v->mmu, desc[1]);
	else if (type == 1)
		tlb_flush_local(&v->mmu);
	else if (type == 2)
		tlb_flush(&v->mmu);
	else
		tlb_flush_not_global(&v->mmu);
	return step_end(v, i);
}

/* WBINVD and INVD: the client's memory is coherent whatever we do. */
FN(cache_flush)
{
	return need_cpl0(v);
}

static insn_fn find_mov(const struct insn *i)
{
	if (i->op[0].kind == OPK_CR)
		return mov_to_cr;
	if (i->op[1].kind == OPK_CR)
		return mov_from_cr;
	if (i->op[0].kind == OPK_DR)
		return mov_to_dr;
	if (i->op[1].kind == OPK_DR)
		return mov_from_dr;
	return op_seg_find(i);
}

insn_fn op_sys_find(const struct insn *i)
{
	insn_fn fn;

	switch (i->mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		return find_mov(i);
	case ZYDIS_MNEMONIC_LMSW:
		return lmsw;
	case ZYDIS_MNEMONIC_SMSW:
		return smsw;
	case ZYDIS_MNEMONIC_CLTS:
		return clts;
	case ZYDIS_MNEMONIC_XSETBV:
		return xsetbv;
	case ZYDIS_MNEMONIC_XGETBV:
		return xgetbv;
	case ZYDIS_MNEMONIC_RDMSR:
		return rdmsr;
	case ZYDIS_MNEMONIC_WRMSR:
		return wrmsr;
	case ZYDIS_MNEMONIC_RDTSC:
	case ZYDIS_MNEMONIC_RDTSCP:
		return rdtsc;
	case ZYDIS_MNEMONIC_RDPID:
		return rdpid;
	case ZYDIS_MNEMONIC_RDPMC:
		return rdpmc;
	case ZYDIS_MNEMONIC_CPUID:
		return cpuid;
	case ZYDIS_MNEMONIC_HLT:
		return hlt;
	case ZYDIS_MNEMONIC_IN:
	case ZYDIS_MNEMONIC_OUT:
		return in_out;
	case ZYDIS_MNEMONIC_INVLPG:
		return invlpg;
	case ZYDIS_MNEMONIC_INVPCID:
		return invpcid;
	case ZYDIS_MNEMONIC_INVD:
	case ZYDIS_MNEMONIC_WBINVD:
		return cache_flush;
	case ZYDIS_MNEMONIC_RSM:
		return rsm;
	case ZYDIS_MNEMONIC_VMCALL:
	case ZYDIS_MNEMONIC_VMMCALL:
		return hypercall;
	case ZYDIS_MNEMONIC_MONITOR:
	case ZYDIS_MNEMONIC_MWAIT:
		return monitor;
	default:
		fn = op_flag_find(i);
		return fn ? fn : op_seg_find(i);
	}
}
