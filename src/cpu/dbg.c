/*
 * dbg.c: debug registers, single-step, and the client's own debugging (KVM_DEBUG_GUEST).
 *
 * Invariants: while the client has a breakpoint of its own, its four replace the guest's (as hardware KVM lends it the
 * debug registers); the guest's DR0-7 and RFLAGS never show anything of the client's. SDM vol. 3, chapter 17.
 * An instruction that may hit a breakpoint on data or code is run with dbg_before() and dbg_after() around it; the
 * engine learns from the memory accesses which those are (mmu.watch_stops), and runs all others as fast as ever.
 *
 * GAP(debugctl): LBR, BTF (branch single-step) and the other DEBUGCTL features do nothing and are not settable.
 */
#include "segint.h"

/* One breakpoint in force. */
struct bp {
	bool enabled;
	gva_t addr;
	u8 len;
	u8 rw; /* DR7.R/W: 0 execution, 1 write, 2 I/O, 3 read or write */
};

static bool client_bps(const struct vcpu *v)
{
	return v->gdbg.enabled && v->gdbg.own_bps;
}

static struct bp bp_get(const struct vcpu *v, unsigned n, bool client)
{
	static const u8 lens[] = {1, 2, 8, 4};
	struct bp b = {0};

	if (client) {
		b.enabled = v->gdbg.bp[n].enabled;
		b.addr = v->gdbg.bp[n].addr;
		b.len = v->gdbg.bp[n].len;
		if (v->gdbg.bp[n].access)
			b.rw = v->gdbg.bp[n].access & MEM_READ ? 3 : 1;
		if (!b.len)
			b.len = 1;
	} else {
		b.enabled = v->dr7 >> (2 * n) & 3;
		b.addr = v->dr[n];
		b.rw = v->dr7 >> (16 + 4 * n) & 3;
		b.len = lens[v->dr7 >> (18 + 4 * n) & 3];
		if (b.rw == 2 && !(v->cr4 & CR4_DE))
			b.enabled = false; /* undefined without CR4.DE */
	}
	if (b.rw)
		b.addr &= ~(u64)(b.len - 1);
	return b;
}

void dbg_update(struct vcpu *v)
{
	bool client = client_bps(v), step = v->gdbg.enabled && v->gdbg.singlestep, active = step;

	for (unsigned n = 0; n < 4; n++) {
		struct bp b = bp_get(v, n, client);

		active |= b.enabled;
		step |= b.enabled && b.rw == 2;
		if (!b.enabled || b.rw == 2)
			mmu_set_watch(&v->mmu, n, 0, 0, 0);
		else if (b.rw == 0)
			mmu_set_watch(&v->mmu, n, b.addr, 1, MEM_EXEC);
		else
			mmu_set_watch(&v->mmu, n, b.addr, b.len, b.rw == 3 ? MEM_READ | MEM_WRITE : MEM_WRITE);
	}
	v->dbg_active = active;
	v->dbg_step = step;
	v->mmu.watch_hit = 0;
	cpu_update_flags(v);
}

static int client_exit(struct vcpu *v, u8 vector, u64 dr6)
{
	v->exit.reason = EXIT_DEBUG;
	v->exit.insn_len = 0;
	v->exit.debug.vector = vector;
	v->exit.debug.rip = v->r[R_RIP] + (v->mode == MODE_64 ? 0 : v->seg[SEG_CS].base);
	v->exit.debug.dr6 = dr6 | DR6_FIXED;
	v->exit.debug.dr7 = client_bps(v) ? v->gdbg.dr7 : v->dr7;
	return STEP_EXIT;
}

int dbg_before(struct vcpu *v)
{
	bool client = client_bps(v);
	gva_t lin = v->r[R_RIP];
	u64 hits = 0;

	v->mmu.watch_hit = 0;
	v->rf_fresh = false;
	v->tf_done = false;
	/* MOV SS holds instruction breakpoints back (17.3.1.1). The client's single-step sets RF before each
	 * instruction. */
	if (!v->dbg_active || (v->rflags & FLAGS_RF) || (v->shadow & SHADOW_MOVSS) || (client && v->gdbg.singlestep))
		return STEP_OK;
	if (v->mode != MODE_64)
		lin = (u32)(lin + v->seg[SEG_CS].base);
	for (unsigned n = 0; n < 4; n++) {
		struct bp b = bp_get(v, n, client);

		if (b.rw == 0 && b.addr == lin && (b.enabled || !client))
			hits |= b.enabled ? BIT(n) | BIT(63) : BIT(n);
	}
	/* Bits of disabled breakpoints show in DR6 too, but only together with an enabled one. */
	if (!(hits & BIT(63)))
		return STEP_OK;
	hits &= 0xf;
	if (client)
		return client_exit(v, EXC_DB, hits);
	v->excp = (struct event){.kind = EVENT_FAULT, .vector = EXC_DB, .dr6 = hits};
	return STEP_EXCP;
}

int dbg_after(struct vcpu *v, bool tf)
{
	bool client = client_bps(v);
	u64 hits = v->mmu.watch_hit;

	v->mmu.watch_hit = 0;
	if (!v->rf_fresh && (v->rflags & FLAGS_RF)) {
		v->rflags &= ~FLAGS_RF;
		cpu_update_flags(v);
	}
	v->rf_fresh = false;
	if (tf && !v->tf_done)
		excp_pend_db(v, DR6_BS);
	v->tf_done = false;
	if (hits && !client)
		excp_pend_db(v, hits);
	if (v->gdbg.enabled && v->gdbg.singlestep)
		return client_exit(v, EXC_DB, DR6_BS | (client ? hits : 0));
	if (hits && client)
		return client_exit(v, EXC_DB, hits);
	return STEP_OK;
}

void dbg_io(struct vcpu *v, u16 port, unsigned size)
{
	u64 hits = 0;

	if (likely(!v->dbg_active) || !(v->cr4 & CR4_DE) || client_bps(v))
		return;
	for (unsigned n = 0; n < 4; n++) {
		struct bp b = bp_get(v, n, false);

		if (b.enabled && b.rw == 2 && port < b.addr + b.len && b.addr < (u64)port + size)
			hits |= BIT(n);
	}
	if (hits)
		excp_pend_db(v, hits);
}

bool dbg_intercept(struct vcpu *v, const struct event *e)
{
	if (!v->gdbg.enabled)
		return false;
	if (v->gdbg.db && e->vector == EXC_DB && (e->kind == EVENT_FAULT || e->kind == EVENT_TRAP)) {
		client_exit(v, EXC_DB, e->dr6);
		return true;
	}
	if (e->kind == EVENT_INT3 && v->gdbg.sw_bp) {
		client_exit(v, EXC_BP, 0);
		v->exit.insn_len = 1;
		return true;
	}
	return false;
}
