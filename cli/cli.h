/*
 * cli.h: the subcommands of devkvm(1).
 */
#ifndef DEVKVM_CLI_CLI_H
#define DEVKVM_CLI_CLI_H

#define STATUS_USAGE 2

/* Each takes its own argv (argv[0] is the subcommand) and returns the exit status. */
int cmd_run(int argc, char **argv);
int cmd_boot(int argc, char **argv);
int cmd_stat(int argc, char **argv);
int cmd_info(int argc, char **argv);

/* --stats: the engine prints what its translators did when vCPUs or the process end. */
void want_stats(void);

#endif
