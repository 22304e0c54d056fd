/*
 * stat.c: `devkvm stat`: the counters of running VMs, as a list that renews itself or once (include/devkvm-stat.h).
 *
 * A VM is found by its descriptor in /proc/PID/fd; nothing in the client changes for being watched.
 */
#include "cli.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../include/devkvm-stat.h"

#define VMS_MAX 64

static const char usage[] = "usage: devkvm stat [--once] [--interval SECONDS] [PID]\n"
                            "\n"
                            "Shows what the virtual machines of this user's processes (or of process PID) do: exits,\n"
                            "interrupts, translations, with rates. --once prints one list and ends.\n";

#define NAME_OF(name, what) #name,
#define WHAT_OF(name, what) what,
static const char *const names[] = {DEVKVM_COUNTERS(NAME_OF)};
static const char *const whats[] = {DEVKVM_COUNTERS(WHAT_OF)};

struct watched {
	const struct devkvm_stat *stat;
	uint64_t inode;
	int pid;
	char command[64];
	uint64_t last[DEVKVM_N_COUNTERS];
	bool seen, had; /* had: last[] is of an earlier look */
};

static struct watched vm[VMS_MAX];
static unsigned n_vm;

static void command_of(int pid, char *to, size_t size)
{
	char path[64];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	f = fopen(path, "r");
	if (!f || !fgets(to, (int)size, f))
		snprintf(to, size, "?");
	to[strcspn(to, "\n")] = 0;
	if (f)
		fclose(f);
}

static void look_at(int pid, const char *path, uint64_t inode)
{
	const struct devkvm_stat *s;
	int fd;

	for (unsigned n = 0; n < n_vm; n++)
		if (vm[n].inode == inode) {
			vm[n].seen = true;
			return;
		}
	fd = n_vm < VMS_MAX ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return;
	s = mmap(NULL, DEVKVM_STAT_VCPU(1024), PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (s == MAP_FAILED)
		return;
	if (s->magic != DEVKVM_STAT_MAGIC || s->version != 1 || s->counters != DEVKVM_N_COUNTERS ||
	    s->max_vcpus > 1024) {
		munmap((void *)(uintptr_t)s, DEVKVM_STAT_VCPU(1024));
		return;
	}
	vm[n_vm] = (struct watched){.stat = s, .inode = inode, .pid = pid, .seen = true};
	command_of(pid, vm[n_vm].command, sizeof(vm[n_vm].command));
	n_vm++;
}

static uint64_t inode_of(const char *path)
{
	struct stat st;

	return stat(path, &st) < 0 ? 0 : st.st_ino;
}

static void scan_process(int pid)
{
	char dir[64], path[128], to[64];
	struct dirent *e;
	DIR *d;

	snprintf(dir, sizeof(dir), "/proc/%d/fd", pid);
	d = opendir(dir);
	while (d && (e = readdir(d)) != NULL) {
		ssize_t n;

		snprintf(path, sizeof(path), "%.32s/%.32s", dir, e->d_name);
		n = readlink(path, to, sizeof(to) - 1);
		if (n <= 0)
			continue;
		to[n] = 0;
		if (strncmp(to, "/memfd:" DEVKVM_STAT_NAME, sizeof("/memfd:" DEVKVM_STAT_NAME) - 1) == 0)
			look_at(pid, path, inode_of(path));
	}
	if (d)
		closedir(d);
}

static void scan(int only)
{
	struct dirent *e;
	unsigned kept = 0;
	DIR *d;

	for (unsigned n = 0; n < n_vm; n++)
		vm[n].seen = false;
	if (only) {
		scan_process(only);
	} else {
		d = opendir("/proc");
		while (d && (e = readdir(d)) != NULL)
			if (atoi(e->d_name) > 0)
				scan_process(atoi(e->d_name));
		if (d)
			closedir(d);
	}
	for (unsigned n = 0; n < n_vm; n++) {
		if (vm[n].seen)
			vm[kept++] = vm[n];
		else
			munmap((void *)(uintptr_t)vm[n].stat, DEVKVM_STAT_VCPU(1024));
	}
	n_vm = kept;
}

static void show(struct watched *w, double seconds)
{
	const struct devkvm_stat *s = w->stat;
	unsigned vcpus = s->n_vcpus < s->max_vcpus ? s->n_vcpus : s->max_vcpus;

	printf("%s (process %d): %u vCPU%s, %s\n", w->command, w->pid, vcpus, vcpus == 1 ? "" : "s",
	       s->translator ? "translator" : "interpreter");
	for (unsigned k = 0; k < DEVKVM_N_COUNTERS; k++) {
		uint64_t sum = 0;

		for (unsigned n = 0; n < vcpus; n++)
			sum += ((const volatile uint64_t *)((const char *)s + DEVKVM_STAT_VCPU(n)))[k];
		if (sum && w->had)
			printf("  %-18s %18llu %14.0f/s  %s\n", names[k], (unsigned long long)sum,
			       (double)(sum - w->last[k]) / seconds, whats[k]);
		else if (sum)
			printf("  %-18s %18llu %16s  %s\n", names[k], (unsigned long long)sum, "", whats[k]);
		if (k == DEVKVM_guest_cycles && w->had && s->tsc_khz)
			printf("  %-18s %17.1f%%\n", "in the guest",
			       (double)(sum - w->last[k]) / seconds / (double)s->tsc_khz / 10);
		w->last[k] = sum;
	}
	w->had = true;
}

int cmd_stat(int argc, char **argv)
{
	bool once = false, terminal = isatty(1);
	double interval = 1;
	int only = 0;

	for (int n = 1; n < argc; n++) {
		if (strcmp(argv[n], "--help") == 0 || strcmp(argv[n], "-h") == 0) {
			fputs(usage, stdout);
			return 0;
		}
		if (strcmp(argv[n], "--once") == 0)
			once = true;
		else if (strcmp(argv[n], "--interval") == 0 && n + 1 < argc)
			interval = atof(argv[++n]);
		else if (atoi(argv[n]) > 0)
			only = atoi(argv[n]);
		else
			interval = 0;
		if (interval < 0.05) {
			fputs(usage, stderr);
			return STATUS_USAGE;
		}
	}
	for (;;) {
		struct timespec t = {.tv_sec = (time_t)interval,
		                     .tv_nsec = (long)((interval - (double)(time_t)interval) * 1e9)};

		scan(only);
		if (terminal && !once)
			fputs("\033[H\033[2J", stdout);
		for (unsigned n = 0; n < n_vm; n++)
			show(&vm[n], interval);
		if (!n_vm)
			puts("no virtual machine of devkvm is running");
		fflush(stdout);
		if (once)
			return n_vm ? 0 : 1;
		nanosleep(&t, NULL);
	}
}
