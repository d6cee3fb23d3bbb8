/* This file owns the size of the memory that a process may use. */
#include "common/memory.h"

#include <stdio.h>
#include <unistd.h>

#include "common/cgroup.h"

/* "max" is no number. */
int64_t tpo_memory_limit(const char *path)
{
    long long bytes = 0;
    FILE *in = fopen(path, "r");
    if (in == NULL) return 0;
    const int n = fscanf(in, "%lld", &bytes);
    fclose(in);
    return n == 1 && bytes > 0 ? bytes : 0;
}

static void least_keep(void *arg, const char *path)
{
    int64_t *least = arg;
    const int64_t bytes = tpo_memory_limit(path);
    if (bytes > 0 && bytes < *least) *least = bytes;
}

int64_t tpo_memory_bytes(void)
{
    int64_t least = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    tpo_cgroup_each("memory.max", least_keep, &least);
    return least;
}
