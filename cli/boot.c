/*
 * boot.c: `devkvm boot`: its command line; the machine is in vmm/.
 */
#include "cli.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../vmm/vmm.h"

#define MEMORY_DEFAULT (512 * MiB)
#define MEMORY_MIN (2 * MiB)
#define MEMORY_MAX (1024 * GiB)

static const char usage[] =
        "usage: devkvm boot --kernel FILE [--initrd FILE] [--append STRING] [--memory SIZE] [--no-unpack] [--quiet] "
        "[--stats]\n"
        "\n"
        "  --kernel FILE    a Linux bzImage (64-bit or 32-bit)\n"
        "  --initrd FILE    its initial RAM disk\n"
        "  --append STRING  the kernel command line (default: console=ttyS0)\n"
        "  --memory SIZE    guest memory, with K, M or G (default: 512M)\n"
        "  --no-unpack      let the guest unpack its kernel itself (slow)\n"
        "  --quiet          no messages but errors\n"
        "  --stats          what the translator did, at the end\n"
        "\n"
        "The guest's serial port is the terminal; Ctrl-A x quits. The status is 0 when the guest powers off or\n"
        "reboots, 1 when it panics or its processor shuts down, 2 when it could not be started.\n";

/* "512M" → bytes; 0 when it is not a size. */
static uint64_t parse_size(const char *text)
{
	char *rest;
	unsigned long long n;

	errno = 0;
	n = strtoull(text, &rest, 10);
	if (rest == text || errno || *text == '-')
		return 0;
	switch (*rest) {
	case 'k':
	case 'K':
		n = n > MEMORY_MAX / 1024 ? 0 : n * 1024;
		rest++;
		break;
	case 'm':
	case 'M':
		n = n > MEMORY_MAX / MiB ? 0 : n * MiB;
		rest++;
		break;
	case 'g':
	case 'G':
		n = n > MEMORY_MAX / GiB ? 0 : n * GiB;
		rest++;
		break;
	default:
		break;
	}
	return *rest ? 0 : n & ~0xfffull;
}

int cmd_boot(int argc, char **argv)
{
	static const struct option options[] = {
	        {"kernel", required_argument, NULL, 'k'},
	        {"initrd", required_argument, NULL, 'i'},
	        {"append", required_argument, NULL, 'a'},
	        {"memory", required_argument, NULL, 'm'},
	        {"no-unpack", no_argument, NULL, 'n'},
	        {"quiet", no_argument, NULL, 'q'},
	        {"help", no_argument, NULL, 'h'},
	        {"stats", no_argument, NULL, 's'},
	        {0},
	};
	struct boot_options opt = {.memory = MEMORY_DEFAULT};
	int c;

	optind = 1;
	while ((c = getopt_long(argc, argv, "k:i:a:m:nqh", options, NULL)) != -1) {
		switch (c) {
		case 'k':
			opt.kernel = optarg;
			break;
		case 'i':
			opt.initrd = optarg;
			break;
		case 'a':
			opt.append = optarg;
			break;
		case 'm':
			opt.memory = parse_size(optarg);
			if (opt.memory < MEMORY_MIN || opt.memory > MEMORY_MAX) {
				say("--memory %s is not a size between 2M and 1024G", optarg);
				return STATUS_USAGE;
			}
			break;
		case 'n':
			opt.no_unpack = true;
			break;
		case 'q':
			opt.quiet = true;
			break;
		case 's':
			want_stats();
			break;
		case 'h':
			fputs(usage, stdout);
			return 0;
		default:
			fputs("devkvm boot: try `devkvm boot --help`\n", stderr);
			return STATUS_USAGE;
		}
	}
	if (optind < argc) {
		say("what is \"%s\"? Options start with --; try `devkvm boot --help`", argv[optind]);
		return STATUS_USAGE;
	}
	if (!opt.kernel) {
		say("which kernel? Give --kernel FILE; try `devkvm boot --help`");
		return STATUS_USAGE;
	}
	return machine_run(&opt);
}
