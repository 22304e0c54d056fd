/*
 * main.c: devkvm(1): picks the subcommand.
 */
#define _GNU_SOURCE
#include "cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] = "usage: devkvm COMMAND [ARG...]\n"
                            "\n"
                            "  run [--] PROGRAM [ARG...]  run PROGRAM with a working /dev/kvm\n"
                            "  boot --kernel FILE ...     boot a Linux kernel on the terminal\n"
                            "  info                       what this machine and devkvm offer\n"
                            "  stat [PID]                 what running virtual machines do\n"
                            "\n"
                            "devkvm COMMAND --help says more; so does the manual page, devkvm(1).\n";

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
} commands[] = {
        {"run", cmd_run},
        {"boot", cmd_boot},
        {"info", cmd_info},
        {"stat", cmd_stat},
};

void want_stats(void)
{
	const char *topics = getenv("DEVKVM_DEBUG");
	char *all;

	if (!topics || asprintf(&all, "%s,jitstat", topics) < 0)
		all = NULL;
	setenv("DEVKVM_DEBUG", all ? all : "jitstat", 1);
	free(all);
}

int main(int argc, char **argv)
{
	if (argc < 2) {
		fputs(usage, stderr);
		return STATUS_USAGE;
	}
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
		fputs(usage, stdout);
		return 0;
	}
	if (strcmp(argv[1], "--version") == 0) {
		puts("devkvm " DEVKVM_VERSION);
		return 0;
	}
	for (unsigned n = 0; n < sizeof(commands) / sizeof(commands[0]); n++)
		if (strcmp(argv[1], commands[n].name) == 0)
			return commands[n].run(argc - 1, argv + 1);
	fprintf(stderr, "devkvm: there is no command \"%s\"; try `devkvm --help`\n", argv[1]);
	return STATUS_USAGE;
}
