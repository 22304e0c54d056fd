/*
 * insn_test.h: the instruction suite's shared types. insn_test.c drives, forms.c lists the forms, gen.c makes random
 * cases, native.c runs one on the host CPU, guest.c in the interpreter, report.c compares and prints, vendor.c knows
 * where processors differ by right.
 *
 * Both runs see the same addresses: code at CODE, a data window at DATA whose first two pages are writable and third is
 * read-only; around it nothing is mapped. Nothing else of the process lies below 4 GiB, so an access anywhere there
 * faults alike on both sides.
 */
#ifndef DEVKVM_TEST_INSN_H
#define DEVKVM_TEST_INSN_H

#include "../../src/x86/decode.h"

#define CODE 0x20000000ull
#define CODE_SIZE 0x3000ull
#define DATA 0x20010000ull
#define DATA_RW 0x2000ull
#define DATA_SIZE 0x3000ull /* with the read-only page */
#define FLAGS_SEEN (FLAGS_ARITH | FLAGS_DF)

struct state {
	u64 r[16];
	u64 rip, rflags;
	_Alignas(16) u8 fx[512];
	u8 ymm[16][32];
	u32 mxcsr;
};

struct outcome {
	struct state s;
	u8 vector; /* EXC_BP: ran to the end */
	u32 error; /* of #PF, #GP, ... */
	u64 cr2;
	const char *odd; /* the run ended in a way no case may end */
	u8 mem[DATA_RW];
};

/* One form: everything the choice of a handler depends on. */
struct form {
	u64 hash;
	u8 mode; /* enum decode_mode: 32 or 64 bits */
	u8 prefix[4], nprefix;
	u8 rex; /* 0x40 with W maybe; 0: none */
	bool vex;
	u8 vex_w, vex_l, vex_pp;
	u8 map, opcode, modrm;
	bool has_modrm, mem;
	u16 mnemonic;
	unsigned cases;
};

struct tcase {
	struct form *form;
	struct insn insn;
	u8 bytes[16];
	unsigned len;
	u64 rip;    /* where the bytes lie */
	u64 target; /* memory operand, 0 when there is none */
	struct state in;
	u8 mem[DATA_RW];
};

/* forms.c */
extern struct form *forms;
extern unsigned nforms;
void forms_enumerate(const char *filter);
/* The identity of a decoded instruction; equal for equal forms. */
u64 form_hash(enum decode_mode mode, const struct insn *i);
const char *mnemonic_name(u16 mnemonic);
bool form_excluded(const struct insn *i, enum decode_mode mode);

/* gen.c */
extern u64 rng_state;
u64 rnd(void);
static inline u64 below(u64 n)
{
	return rnd() % n;
}
void gen_init(void);
/* False when no case came out of many tries. */
bool gen_case(struct form *f, struct tcase *c);

/* native.c */
void native_init(void);
void native_run(const struct tcase *c, struct outcome *out);
bool native_runs_32(void); /* some hosts run no 32-bit code at all */
extern u64 native_fs_base, native_gs_base;

/* guest.c */
void guest_init(void);
void guest_run(const struct tcase *c, struct outcome *out);
/* By the interpreter, whatever guest_run() runs on. False: that is the interpreter too. */
bool guest_judge(const struct tcase *c, struct outcome *out);

/* report.c */
/* True when the outcomes agree as far as they are defined; else *why says where not. */
bool outcomes_agree(const struct tcase *c, const struct outcome *want, const struct outcome *ours, const char **why);
void report(const struct tcase *c, const struct outcome *want, const struct outcome *got, const char *why);

/* vendor.c */
/* Puts the judge's values into ours where both are right. */
void vendor_adopt(const struct tcase *c, const struct outcome *want, struct outcome *got);
/* The judge ended elsewhere, and both are right. */
bool vendor_takes_other_way(const struct tcase *c, const struct outcome *want, const struct outcome *got);

#endif
