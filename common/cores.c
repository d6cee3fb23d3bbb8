/* This file owns the count of cores that a process may use. */
#include "common/cores.h"

#include <limits.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "common/cgroup.h"

#define CPUS_MAX (1 << 16)

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

static void least_keep(void *arg, const char *path)
{
    int *least = arg;
    const int cores = tpo_cores_quota(path);
    if (cores > 0 && (*least == 0 || cores < *least)) *least = cores;
}

/* The smallest from our group up to the root. */
static int quota(void)
{
    int least = 0;
    tpo_cgroup_each("cpu.max", least_keep, &least);
    return least;
}

int tpo_cores(void)
{
    const int ours = affinity(), granted = quota();
    const long online = ours > 0 ? ours : sysconf(_SC_NPROCESSORS_ONLN);
    const int cores = online < 1 ? 1 : online > INT_MAX ? INT_MAX : (int)online;
    return granted > 0 && granted < cores ? granted : cores;
}
