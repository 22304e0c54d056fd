/*
 * mc146818.c: the real-time clock and its CMOS memory (Motorola MC146818A data sheet). The date is the host's, in UTC.
 */
#include "vmm.h"

#include <string.h>
#include <time.h>

enum {
	SECONDS,
	SECONDS_ALARM,
	MINUTES,
	MINUTES_ALARM,
	HOURS,
	HOURS_ALARM,
	WEEKDAY,
	DAY,
	MONTH,
	YEAR,
	REG_A,
	REG_B,
	REG_C,
	REG_D
};
#define CENTURY 0x32

#define B_24H 2
#define B_BINARY 4
#define B_UPDATE_IRQ 0x10
#define B_ALARM_IRQ 0x20
#define B_PERIODIC_IRQ 0x40
#define B_SET 0x80

static uint64_t wall_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

void mc146818_reset(struct mc146818 *rtc, uint64_t ram_size)
{
	uint64_t ext = ram_size < 16 * MiB ? (ram_size - MiB) / 1024 : 15 * 1024;

	memset(rtc, 0, sizeof(*rtc));
	rtc->ram[REG_A] = 0x26;
	rtc->ram[REG_B] = B_24H;
	/* Sizes of base and extended memory in KiB, where a BIOS keeps them. */
	rtc->ram[0x15] = 0x80;
	rtc->ram[0x16] = 0x02;
	rtc->ram[0x17] = rtc->ram[0x30] = (uint8_t)ext;
	rtc->ram[0x18] = rtc->ram[0x31] = (uint8_t)(ext >> 8);
}

static uint8_t encode(const struct mc146818 *rtc, int val)
{
	return rtc->ram[REG_B] & B_BINARY ? (uint8_t)val : (uint8_t)(val / 10 << 4 | val % 10);
}

static int decode(const struct mc146818 *rtc, uint8_t val)
{
	return rtc->ram[REG_B] & B_BINARY ? val : (val >> 4) * 10 + (val & 15);
}

static struct tm guest_time(const struct mc146818 *rtc)
{
	time_t t = (time_t)((int64_t)(wall_ns() / 1000000000ull) + rtc->offset);
	struct tm tm;

	gmtime_r(&t, &tm);
	return tm;
}

/* The host's time in the registers, unless the guest has stopped them. */
static void refresh(struct mc146818 *rtc)
{
	struct tm tm;
	int hour;

	if (rtc->ram[REG_B] & B_SET)
		return;
	tm = guest_time(rtc);
	hour = tm.tm_hour;
	rtc->ram[SECONDS] = encode(rtc, tm.tm_sec);
	rtc->ram[MINUTES] = encode(rtc, tm.tm_min);
	if (rtc->ram[REG_B] & B_24H)
		rtc->ram[HOURS] = encode(rtc, hour);
	else
		rtc->ram[HOURS] = (uint8_t)(encode(rtc, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? 0x80 : 0));
	rtc->ram[WEEKDAY] = encode(rtc, tm.tm_wday + 1);
	rtc->ram[DAY] = encode(rtc, tm.tm_mday);
	rtc->ram[MONTH] = encode(rtc, tm.tm_mon + 1);
	rtc->ram[YEAR] = encode(rtc, tm.tm_year % 100);
	rtc->ram[CENTURY] = encode(rtc, (tm.tm_year + 1900) / 100);
}

/* The registers are what the guest wants the time to be. */
static void adopt(struct mc146818 *rtc)
{
	uint8_t hours = rtc->ram[HOURS];
	struct tm tm = {
	        .tm_sec = decode(rtc, rtc->ram[SECONDS]),
	        .tm_min = decode(rtc, rtc->ram[MINUTES]),
	        .tm_mday = decode(rtc, rtc->ram[DAY]),
	        .tm_mon = decode(rtc, rtc->ram[MONTH]) - 1,
	        .tm_year = decode(rtc, rtc->ram[YEAR]) + decode(rtc, rtc->ram[CENTURY]) * 100 - 1900,
	};

	if (rtc->ram[REG_B] & B_24H)
		tm.tm_hour = decode(rtc, hours);
	else
		tm.tm_hour = decode(rtc, hours & 0x7f) % 12 + (hours & 0x80 ? 12 : 0);
	rtc->offset = (int64_t)timegm(&tm) - (int64_t)(wall_ns() / 1000000000ull);
}

uint8_t mc146818_in(struct mc146818 *rtc, uint16_t port, struct i8259 *pic)
{
	uint8_t val;

	if (!(port & 1))
		return 0xff;
	switch (rtc->index) {
	case REG_A:
		/* Update in progress: the last 244 µs of a second. */
		return (uint8_t)((rtc->ram[REG_A] & 0x7f) |
		                 (wall_ns() % 1000000000ull > 1000000000ull - 244000 ? 0x80 : 0));
	case REG_C:
		val = rtc->ram[REG_C];
		rtc->ram[REG_C] = 0;
		i8259_set_irq(pic, IRQ_RTC, false);
		return val;
	case REG_D:
		return 0x80;
	default:
		if (rtc->index < REG_A || rtc->index == CENTURY)
			refresh(rtc);
		return rtc->ram[rtc->index];
	}
}

void mc146818_out(struct mc146818 *rtc, uint16_t port, uint8_t val)
{
	bool was_set = rtc->ram[REG_B] & B_SET;

	if (!(port & 1)) {
		rtc->index = val & 0x7f;
		return;
	}
	if (rtc->index == REG_C || rtc->index == REG_D)
		return;
	if (rtc->index < REG_A || rtc->index == CENTURY)
		refresh(rtc);
	if (rtc->index == REG_B && (val & B_SET) && !was_set)
		refresh(rtc);
	rtc->ram[rtc->index] = val;
	if (rtc->index == REG_B && was_set && !(val & B_SET))
		adopt(rtc);
	else if ((rtc->index < REG_A || rtc->index == CENTURY) && !was_set && !(rtc->index & 1 && rtc->index < WEEKDAY))
		adopt(rtc);
}

static bool alarm_matches(const struct mc146818 *rtc)
{
	for (unsigned n = 0; n < 3; n++) {
		uint8_t alarm = rtc->ram[2 * n + 1];

		/* 0xc0 and above: any value. */
		if (alarm < 0xc0 && alarm != rtc->ram[2 * n])
			return false;
	}
	return true;
}

uint64_t mc146818_poll(struct mc146818 *rtc, struct i8259 *pic, uint64_t now)
{
	uint8_t enabled = rtc->ram[REG_B] & (B_UPDATE_IRQ | B_ALARM_IRQ | B_PERIODIC_IRQ), raised = 0;
	uint64_t wall, next = 0;
	unsigned rate = rtc->ram[REG_A] & 15;

	if (!enabled)
		return 0;
	wall = wall_ns();
	if ((enabled & (B_UPDATE_IRQ | B_ALARM_IRQ)) && !(rtc->ram[REG_B] & B_SET)) {
		if (wall / 1000000000ull != rtc->last_second) {
			rtc->last_second = wall / 1000000000ull;
			refresh(rtc);
			raised |= B_UPDATE_IRQ;
			if (alarm_matches(rtc))
				raised |= B_ALARM_IRQ;
		}
		next = now + 1000000000ull - wall % 1000000000ull;
	}
	if ((enabled & B_PERIODIC_IRQ) && rate) {
		uint64_t period = 1000000000ull / (32768u >> ((rate < 3 ? rate + 7 : rate) - 1));

		if (now >= rtc->next_periodic) {
			if (rtc->next_periodic)
				raised |= B_PERIODIC_IRQ;
			rtc->next_periodic = now + period;
		}
		if (!next || rtc->next_periodic < next)
			next = rtc->next_periodic;
	} else {
		rtc->next_periodic = 0;
	}
	rtc->ram[REG_C] |= raised;
	if (raised & enabled) {
		rtc->ram[REG_C] |= 0x80;
		i8259_set_irq(pic, IRQ_RTC, true);
	}
	return next;
}
