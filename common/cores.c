/* This file owns the count of cores that a process may use. */
#include "common/cores.h"

#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CPUS_MAX       (1 << 16)
#define PATH_MAX_BYTES 4096

/* 0 where the kernel does not tell. The set grows until the kernel's own mask fits: over 1024 cores cpu_set_t is too small. */
static int affinity(void)
{
    for (int cpus = CPU_SETSIZE; cpus <= CPUS_MAX; cpus *= 2) {
        cpu_set_t *set = CPU_ALLOC((size_t)cpus);
        if (set == NULL) return 0;
        const size_t bytes = CPU_ALLOC_SIZE((size_t)cpus);
        const int n = sched_getaffinity(0, bytes, set) == 0 ? CPU_COUNT_S(bytes, set) : 0;
        CPU_FREE(set);
        if (n > 0) return n;
    }
    return 0;
}

int tpo_cores_quota(const char *path)
{
    FILE *in = fopen(path, "r");
    long long quota = 0, period = 0;
    if (in == NULL) return 0;
    const int n = fscanf(in, "%lld %lld", &quota, &period);
    fclose(in);
    if (n != 2 || quota <= 0 || period <= 0) return 0;
    const long long cores = quota / period + (quota % period != 0);
    return cores > INT_MAX ? 0 : (int)cores;
}

/* The smallest quota from our group up to the root. In a container the root is our own group; under systemd a slice above us may hold the quota. */
static int quota(void)
{
    static const char root[] = "/sys/fs/cgroup";
    char line[PATH_MAX_BYTES], path[2 * PATH_MAX_BYTES];
    char *group = NULL;
    int least = 0;
    FILE *in = fopen("/proc/self/cgroup", "r");
    while (in != NULL && group == NULL && fgets(line, sizeof(line), in) != NULL)
        if (strncmp(line, "0::/", 4) == 0) group = line + 3;
    if (in != NULL) fclose(in);
    if (group == NULL) group = strcpy(line, "/");
    group[strcspn(group, "\n")] = '\0';
    for (char *slash = group + strlen(group); slash != NULL; slash = strrchr(group, '/')) {
        *slash = '\0';
        snprintf(path, sizeof(path), "%s%s/cpu.max", root, group);
        const int cores = tpo_cores_quota(path);
        if (cores > 0 && (least == 0 || cores < least)) least = cores;
    }
    return least;
}

int tpo_cores(void)
{
    const int ours = affinity(), granted = quota();
    const long online = ours > 0 ? ours : sysconf(_SC_NPROCESSORS_ONLN);
    const int cores = online < 1 ? 1 : online > INT_MAX ? INT_MAX : (int)online;
    return granted > 0 && granted < cores ? granted : cores;
}
