/*
 * chip.h: the interrupt chips of a VM: a local APIC for each vCPU, an IOAPIC, a pair of i8259, an i8254, and the lines
 * between them. One internal header for src/chip.
 *
 * chips.lock protects everything here; functions named _locked are called with it held. It is taken last: nothing else
 * is locked under it. Who changes what a vCPU may take calls chips.ops->kick() for it.
 *
 * Time is CLOCK_MONOTONIC in nanoseconds. A chip that waits for a moment says so with chips_timer_changed(); one helper
 * thread a VM waits for the earliest (chips_run_timers()).
 */
#ifndef DEVKVM_CHIP_CHIP_H
#define DEVKVM_CHIP_CHIP_H

#include <pthread.h>

#include "../base/types.h"

#define CHIP_VCPUS 1024
#define IOAPIC_PINS 24
#define GSI_MAX 4096
#define NEVER (~0ull)

struct chips;

struct chip_ops {
	/* The vCPU looks at its interrupts (and wakes when it sleeps in HLT). Any thread, chips.lock held. */
	void (*kick)(void *owner, unsigned vcpu);
	/* An NMI, an INIT, a SIPI with `vector`, an SMI arrived for it. */
	void (*nmi)(void *owner, unsigned vcpu);
	void (*init)(void *owner, unsigned vcpu);
	void (*sipi)(void *owner, unsigned vcpu, u8 vector);
	void (*smi)(void *owner, unsigned vcpu);
	/* The guest's TSC of a vCPU now, and the host time at which it reaches `tsc`. */
	u64 (*tsc)(void *owner, unsigned vcpu);
	u64 (*tsc_time)(void *owner, unsigned vcpu, u64 tsc); /* 0: it has passed */
	/* lapic.stimer_at has come. */
	void (*stimer)(void *owner, unsigned vcpu);
	/* chips.next_timer changed. */
	void (*timer)(void *owner);
	/* A level-triggered GSI was acknowledged (IOAPIC EOI or i8259). */
	void (*acked)(void *owner, unsigned gsi_chip, unsigned pin);
	/* Split chips: the vector's EOI goes to the client's IOAPIC. */
	void (*eoi)(void *owner, unsigned vcpu, u8 vector);
	/* Would it? */
	bool (*hears_eoi)(void *owner, unsigned vcpu, u8 vector);
	/* A line to a synthetic interrupt of Hyper-V's (gsi_entry.pin: vCPU << 4 | number) goes up. As gsi_set(). */
	int (*sint)(void *owner, u32 pin);
	/* With has_sints: a vector was ended, which may be one's. */
	void (*sint_eoi)(void *owner, unsigned vcpu, u8 vector);
};

/* Integrated APIC, version 0x14, six LVT entries (SDM vol. 3, 11.4.8); and that it can keep an EOI to itself. */
#define LAPIC_IS (0x14 | 5u << 16)
#define LAPIC_DIRECTED_EOI BIT(24)

/* Registers of the local APIC, index = offset / 16 of the page (SDM vol. 3, table 11-1). */
enum {
	LAPIC_ID = 0x02,
	LAPIC_VERSION = 0x03, /* lapic_version_locked(): no client can change it */
	LAPIC_TPR = 0x08,
	LAPIC_PPR = 0x0a,
	LAPIC_EOI = 0x0b,
	LAPIC_LDR = 0x0d,
	LAPIC_DFR = 0x0e,
	LAPIC_SVR = 0x0f,
	LAPIC_ISR = 0x10,
	LAPIC_TMR = 0x18,
	LAPIC_IRR = 0x20,
	LAPIC_ESR = 0x28,
	LAPIC_CMCI = 0x2f,
	LAPIC_ICR = 0x30,
	LAPIC_ICR2 = 0x31,
	LAPIC_LVT_TIMER = 0x32,
	LAPIC_LVT_THERMAL = 0x33,
	LAPIC_LVT_PMC = 0x34,
	LAPIC_LINT0 = 0x35,
	LAPIC_LINT1 = 0x36,
	LAPIC_LVT_ERROR = 0x37,
	LAPIC_TIMER_INIT = 0x38,
	LAPIC_TIMER_NOW = 0x39,
	LAPIC_TIMER_DIV = 0x3e,
	LAPIC_SELF_IPI = 0x3f,
	LAPIC_REGS = 0x40
};

struct lapic {
	struct chips *chips;
	unsigned vcpu;
	bool enabled, x2apic, bsp; /* of APIC_BASE */
	bool x2_offered;           /* CPUID has x2APIC */
	u32 reg[LAPIC_REGS];
	u32 x2id;
	u64 tsc_deadline;
	u64 timer_start; /* when the count began; timer counts while timer_at is not NEVER */
	u64 timer_at;    /* when it fires next */
	u32 esr_next;
	u32 auto_eoi[8]; /* vectors that need no EOI */
	u64 stimer_at;   /* ops->stimer() is called then; NEVER */
};

struct ioapic {
	u64 base;
	u32 id, select;
	u64 redir[IOAPIC_PINS];
	u32 irr;   /* pins that ask */
	u32 level; /* state of the lines */
};

/* One i8259 (Intel's data sheet 231468). */
struct pic {
	u8 irr, imr, isr, last; /* last: state of the lines */
	u8 base, prio;          /* prio: number of the highest priority line */
	u8 elcr, elcr_mask;
	u8 icw_step; /* 0: ready, else which ICW comes next (2, 3, 4) */
	bool read_isr, poll, special_mask, auto_eoi, rotate_aeoi, nested, need_icw4;
	bool slave;
};

/* One counter of the i8254 (Intel's data sheet 231164). */
struct pit_counter {
	u32 count; /* reload value, 1 to 65536 */
	u64 start; /* time it was loaded */
	u8 mode, rw, rw_read, rw_write, latched, status;
	bool bcd, gate, status_latched, null;
	u16 latch;
	u8 write_low;
};

struct pit {
	struct pit_counter c[3];
	bool present, speaker; /* port 0x61 is ours */
	bool out2;             /* speaker data bit */
	u64 next;              /* next edge of counter 0, NEVER: none */
	/* Made up for (KVM_REINJECT_CONTROL): an edge waits until the guest has acknowledged the one before. */
	bool drop;   /* ... not: edges come when they come */
	bool acked;  /* the last edge was, or there was none */
	u32 pending; /* edges that came and are not acknowledged, the one on its way among them */
	bool again;  /* one of them is due */
};

enum gsi_kind { GSI_NONE, GSI_PIC, GSI_IOAPIC, GSI_MSI, GSI_SINT };
struct gsi_entry {
	enum gsi_kind kind;
	u32 pin;
	u64 addr;
	u32 data;
};
struct gsi {
	struct gsi_entry e[3];
	unsigned n;
};

struct chips {
	pthread_mutex_t lock;
	const struct chip_ops *ops;
	void *owner;
	bool split;                      /* local APICs only */
	struct lapic *lapic[CHIP_VCPUS]; /* NULL: no such vCPU */
	unsigned n_lapic;                /* one past the highest that is there */
	bool x2_format;                  /* KVM_CAP_X2APIC_API: destinations in messages have 32 bits */
	bool lint0_masked;               /* the boot processor's LINT0 after RESET, else as firmware leaves it */
	bool x2_no_quirk;                /* ... and 0xff is not everybody to an x2APIC */
	struct ioapic ioapic;
	struct pic pic[2]; /* master, slave */
	bool pic_out;
	struct pit pit;
	struct gsi *gsi;       /* GSI_MAX of them */
	bool has_sints;        /* one of them leads to GSI_SINT */
	u8 gsi_level[GSI_MAX]; /* lines as their source set them, a bit a source */
	unsigned n_gsi;
	u64 next_timer;
};

/* ---- route.c ----------------------------------------------------------------------------------------------------- */

/* All chips, reset, but for the local APICs and, until it is asked for, the i8254. `split`: the local APICs alone
 * answer the guest. `owner` goes to the upcalls. NULL: no memory. */
struct chips *chips_create(const struct chip_ops *ops, void *owner, bool split);
/* The local APICs too. Nobody uses any of them any more. */
void chips_free(struct chips *c);
/* The local APIC of a new vCPU, reset but for what APIC_BASE says. NULL: no memory. */
struct lapic *chips_add_lapic(struct chips *c, unsigned vcpu);
/* The default routes: GSI n to pin n of the IOAPIC, and below 16 to the i8259 pair. */
void routes_default(struct chips *c);
/* A source (0 to 7) drives a GSI. Result: 1 delivered, 0 coalesced, -1 masked or nobody there. */
int gsi_set(struct chips *c, unsigned gsi, unsigned source, bool level);
int gsi_set_locked(struct chips *c, unsigned gsi, unsigned source, bool level);
/* A message-signalled interrupt (SDM vol. 3, 11.11). Result: as gsi_set(). */
int msi_send_locked(struct chips *c, u64 addr, u32 data);
u64 chip_now(void); /* CLOCK_MONOTONIC in ns */
/* A timer of a chip may be earlier or later now. */
void chips_timer_changed_locked(struct chips *c);
/* Fires what is due; the next moment, NEVER: none. */
u64 chips_run_timers_locked(struct chips *c);
/* Guest accesses to ports and memory (not the local APIC's): true when a chip answers. */
bool chips_pio(struct chips *c, bool in, u16 port, u32 size, u32 *val);
bool chips_mmio(struct chips *c, bool read, u64 gpa, u32 len, u8 *data);

/* ---- lapic.c ----------------------------------------------------------------------------------------------------- */

/* As RESET, or INIT leaves it, which keeps the id. */
void lapic_reset_locked(struct lapic *l, bool init);
/* Registers through memory (offset in the page) or MSRs (0x800 + index). False: #GP (MSRs), ignored (memory). */
bool lapic_read_locked(struct lapic *l, u32 index, u32 *val);
bool lapic_write_locked(struct lapic *l, u32 index, u32 val);
bool lapic_msr_read(struct lapic *l, u32 msr, u64 *val);
bool lapic_msr_write(struct lapic *l, u32 msr, u64 val);
/* IA32_APIC_BASE changed: on or off, xAPIC or x2APIC, whose registers begin anew. */
void lapic_set_base(struct lapic *l, u64 base);
/* What CPUID says: whether there is an x2APIC. */
void lapic_offer_x2apic(struct lapic *l, bool offered);
/* The version register follows the chips and CPUID, whatever was loaded into it. */
void lapic_version_locked(struct lapic *l);
/* chips.ops->stimer() is called at this moment; NEVER: it is not. */
void lapic_set_stimer(struct lapic *l, u64 when);
void lapic_set_tpr(struct lapic *l, u32 tpr);
/* As a write to the EOI register. */
void lapic_eoi(struct lapic *l);
/* There is an interrupt in service, and nobody but the processor has to hear of its end, nor waits for it. */
bool lapic_eoi_is_private(struct lapic *l);
/* Four bytes: TPR, class of the interrupt in service, 0, the highest vector that waits. */
void lapic_summary(struct lapic *l, u8 *out);
/* The id that messages with a physical destination name. */
u32 lapic_id(const struct lapic *l);
/* A message whose mode, vector, level and trigger mode are those of an ICR; false: it is not for an APIC in that state.
 */
bool lapic_accept_locked(struct lapic *l, u32 icr);
/* A vector that may be delivered now, or -1: look only / take it. The i8259's come through LINT0. */
int lapic_pending(struct lapic *l, bool take);
/* MSR_TSC_DEADLINE: nothing happens unless the timer is in that mode. */
void lapic_set_deadline(struct lapic *l, u64 tsc);
/* The timer is due. */
void lapic_timer_fire_locked(struct lapic *l, u64 now);
void lapic_changed_locked(struct lapic *l); /* after a restore */
/* Does the i8259 pair, or who stands for it, reach this processor? */
bool lapic_takes_pic(struct lapic *l);
/* Would a level-triggered message with this vector and destination have come to this APIC? */
bool msi_is_for(const struct lapic *l, u64 addr, u32 data, u8 vector);
/* A message between processors, or of a device. */
struct ipi {
	u32 dest;
	u8 vector, mode; /* delivery mode, SDM vol. 3, 11.6.1 */
	bool logical, level, assert;
	u8 shorthand; /* 0 none, 1 self, 2 all, 3 all but self */
	struct lapic *from;
};
/* Delivers to every matching APIC; -1: none took it, else whether some IRR bit was new. */
int ipi_send_locked(struct chips *c, const struct ipi *m);
/* Does its destination name this APIC? */
bool ipi_matches(const struct lapic *l, const struct ipi *m);
/* Was the vector's last interrupt a level? */
bool lapic_level(const struct lapic *l, u8 vector);

/* ---- ioapic.c, i8259.c, i8254.c -------------------------------------------------------------------------------- */

/* ..._reset(): as after power-on. ..._set_locked(): a pin or line rises or falls; the result as gsi_set().
 * ..._read(), ..._write(): the guest's accesses, by the offset in the IOAPIC's page, or the port. */

void ioapic_reset(struct ioapic *io);
int ioapic_set_locked(struct chips *c, unsigned pin, bool level);
u32 ioapic_read(struct chips *c, u32 offset);
void ioapic_write(struct chips *c, u32 offset, u32 val);
/* The EOI of a level-triggered vector: pins whose level is still there ask again. */
void ioapic_eoi_locked(struct chips *c, u8 vector);
/* The EOI of an edge-triggered vector, which an IOAPIC does not see: for the timer that waits for it. */
void ioapic_edge_eoi_locked(struct chips *c, u8 vector);
/* After a restore: what asks and is not masked is delivered. */
void ioapic_changed_locked(struct chips *c);

void pic_reset(struct chips *c);
int pic_set_locked(struct chips *c, unsigned line, bool level);
u8 pic_read_locked(struct chips *c, u16 port);
void pic_write_locked(struct chips *c, u16 port, u8 val);
/* Acknowledge cycle: the vector. */
u8 pic_ack_locked(struct chips *c);
/* Settles chips.pic_out, and kicks whom it concerns. */
void pic_update_locked(struct chips *c);

void pit_reset(struct pit *p);
u8 pit_read_locked(struct chips *c, u16 port);
void pit_write_locked(struct chips *c, u16 port, u8 val);
/* Counter 0 is due. */
void pit_fire_locked(struct chips *c, u64 now);
/* Is this pin at the end of the line that counter 0 drives? */
bool pit_drives(const struct chips *c, enum gsi_kind kind, unsigned pin);
/* The guest acknowledged an interrupt of it; its line starts afresh. */
void pit_acked_locked(struct chips *c);
void pit_fresh_locked(struct chips *c);
/* Are ticks that the guest is too slow for made up for? */
void pit_reinject_locked(struct chips *c, bool on);
/* Counter n was given this reload value at `when`. */
void pit_load_locked(struct chips *c, unsigned n, u32 count, u64 when);

#endif
