/*
 * acpi.c: the few ACPI tables a guest needs to power the machine off and to reset it (ACPI 6.4, chapters 4 and 5), and
 * the PM1 and timer registers behind them. No MADT: there is no local APIC, so guests use the 8259 pair.
 */
#include "vmm.h"

#include <string.h>

#define PM_TIMER_HZ 3579545ull
#define SLP_EN 0x2000
#define SCI_EN 1
#define S5 5

struct header {
	char signature[4];
	uint32_t length;
	uint8_t revision, checksum;
	char oem[6], oem_table[8];
	uint32_t oem_revision;
	char creator[4];
	uint32_t creator_revision;
} __attribute__((packed));

struct gas {
	uint8_t space, width, offset, access;
	uint64_t address;
} __attribute__((packed));

struct fadt {
	struct header h;
	uint32_t facs, dsdt;
	uint8_t reserved0, profile;
	uint16_t sci;
	uint32_t smi_cmd;
	uint8_t acpi_enable, acpi_disable, s4bios, pstate;
	uint32_t pm1a_evt, pm1b_evt, pm1a_cnt, pm1b_cnt, pm2_cnt, pm_tmr, gpe0, gpe1;
	uint8_t pm1_evt_len, pm1_cnt_len, pm2_cnt_len, pm_tmr_len, gpe0_len, gpe1_len, gpe1_base, cst;
	uint16_t c2_latency, c3_latency, flush_size, flush_stride;
	uint8_t duty_offset, duty_width, day_alarm, month_alarm, century;
	uint16_t boot_flags;
	uint8_t reserved1;
	uint32_t flags;
	struct gas reset;
	uint8_t reset_value;
	uint16_t arm_flags;
	uint8_t minor;
	uint64_t x_facs, x_dsdt;
	struct gas x_pm1a_evt, x_pm1b_evt, x_pm1a_cnt, x_pm1b_cnt, x_pm2_cnt, x_pm_tmr, x_gpe0, x_gpe1, sleep_control,
	        sleep_status;
	uint64_t hypervisor;
} __attribute__((packed));

struct rsdp {
	char signature[8];
	uint8_t checksum;
	char oem[6];
	uint8_t revision;
	uint32_t rsdt, length;
	uint64_t xsdt;
	uint8_t checksum2, reserved[3];
} __attribute__((packed));

#define FADT_WBINVD 1u
#define FADT_POWER_BUTTON (1u << 4) /* no fixed power button */
#define FADT_SLEEP_BUTTON (1u << 5)
#define FADT_TIMER_32 (1u << 8)
#define FADT_RESET (1u << 10)
#define BOOT_LEGACY_DEVICES 1u
#define BOOT_NO_VGA (1u << 2)

static uint8_t checksum(const void *data, size_t size)
{
	const uint8_t *p = data;
	uint8_t sum = 0;

	while (size--)
		sum = (uint8_t)(sum + *p++);
	return (uint8_t)-sum;
}

static void finish(struct header *h, const char *signature, uint32_t length, uint8_t revision)
{
	memcpy(h->signature, signature, 4);
	h->length = length;
	h->revision = revision;
	memcpy(h->oem, "DEVKVM", 6);
	memcpy(h->oem_table, "MONITOR ", 8);
	h->oem_revision = 1;
	memcpy(h->creator, "DKVM", 4);
	h->creator_revision = 1;
	h->checksum = 0;
	h->checksum = checksum(h, length);
}

static struct gas io_register(uint16_t port, uint8_t bytes)
{
	return (struct gas){
	        .space = 1, .width = (uint8_t)(bytes * 8), .access = bytes == 4 ? 3 : bytes, .address = port};
}

uint64_t acpi_write_tables(struct ram *ram)
{
	/* Name (_S5_, Package (4) {5, 5, 0, 0}) */
	static const uint8_t aml[] = {0x08, '_', 'S', '5', '_', 0x12, 0x08, 0x04, 0x0a, S5, 0x0a, S5, 0x00, 0x00};
	uint64_t dsdt_at = ACPI_TABLES + 0x100, fadt_at = ACPI_TABLES + 0x200, xsdt_at = ACPI_TABLES + 0x400;
	uint64_t facs_at = ACPI_TABLES + 0x500;
	uint8_t *base = ram_at(ram, ACPI_TABLES, 0x1000);
	struct header *dsdt = (void *)(base + 0x100), *xsdt = (void *)(base + 0x400);
	struct fadt *fadt = (void *)(base + 0x200);
	struct rsdp *rsdp = (void *)base;
	uint32_t facs_length = 64;

	_Static_assert(sizeof(struct fadt) == 276, "FADT of ACPI 6");
	memset(base, 0, 0x1000);

	memcpy(dsdt + 1, aml, sizeof(aml));
	finish(dsdt, "DSDT", sizeof(*dsdt) + sizeof(aml), 2);

	memcpy(base + 0x500, "FACS", 4);
	memcpy(base + 0x504, &facs_length, 4);
	base[0x520] = 2;

	fadt->facs = (uint32_t)facs_at;
	fadt->dsdt = (uint32_t)dsdt_at;
	fadt->x_dsdt = dsdt_at;
	fadt->sci = IRQ_ACPI;
	fadt->pm1a_evt = ACPI_PM1_EVT;
	fadt->pm1_evt_len = 4;
	fadt->pm1a_cnt = ACPI_PM1_CNT;
	fadt->pm1_cnt_len = 2;
	fadt->pm_tmr = ACPI_PM_TMR;
	fadt->pm_tmr_len = 4;
	fadt->x_pm1a_evt = io_register(ACPI_PM1_EVT, 4);
	fadt->x_pm1a_cnt = io_register(ACPI_PM1_CNT, 2);
	fadt->x_pm_tmr = io_register(ACPI_PM_TMR, 4);
	fadt->c2_latency = 0xffff;
	fadt->c3_latency = 0xffff;
	fadt->century = 0x32;
	fadt->boot_flags = BOOT_LEGACY_DEVICES | BOOT_NO_VGA;
	fadt->flags = FADT_WBINVD | FADT_POWER_BUTTON | FADT_SLEEP_BUTTON | FADT_TIMER_32 | FADT_RESET;
	fadt->reset = io_register(0xcf9, 1);
	fadt->reset_value = 6;
	finish(&fadt->h, "FACP", sizeof(*fadt), 6);

	memcpy(xsdt + 1, &fadt_at, 8);
	finish(xsdt, "XSDT", sizeof(*xsdt) + 8, 1);

	memcpy(rsdp->signature, "RSD PTR ", 8);
	memcpy(rsdp->oem, "DEVKVM", 6);
	rsdp->revision = 2;
	rsdp->length = sizeof(*rsdp);
	rsdp->xsdt = xsdt_at;
	rsdp->checksum = checksum(rsdp, 20);
	rsdp->checksum2 = checksum(rsdp, sizeof(*rsdp));
	return ACPI_TABLES;
}

uint32_t acpi_in(struct acpi_pm *pm, uint16_t port, unsigned size, uint64_t now)
{
	uint32_t timer = (uint32_t)((unsigned __int128)now * PM_TIMER_HZ / 1000000000ull);

	switch (port) {
	case ACPI_PM1_EVT:
		return size == 4 ? pm->status | (uint32_t)pm->enable << 16 : pm->status;
	case ACPI_PM1_EVT + 2:
		return pm->enable;
	case ACPI_PM1_CNT:
		/* Always in ACPI mode: SCI_EN. */
		return (uint32_t)(pm->control | SCI_EN);
	default:
		return timer >> (8 * (port & 3));
	}
}

void acpi_out(struct acpi_pm *pm, uint16_t port, unsigned size, uint32_t val)
{
	switch (port) {
	case ACPI_PM1_EVT:
		pm->status &= (uint16_t)~val;
		if (size == 4)
			pm->enable = (uint16_t)(val >> 16);
		break;
	case ACPI_PM1_EVT + 2:
		pm->enable = (uint16_t)val;
		break;
	case ACPI_PM1_CNT:
		pm->control = (uint16_t)(val & ~(uint32_t)SLP_EN);
		if ((val & SLP_EN) && ((val >> 10) & 7) == S5)
			pm->power_off = true;
		break;
	default:
		break;
	}
}
