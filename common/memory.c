/* This file owns the size of the memory that a process may use. */
#include "common/memory.h"

#include <stdio.h>
#include <unistd.h>

#include "common/cgroup.h"

/* "max" is no number. */
static void least_keep(void *arg, const char *path)
{
    int64_t *least = arg;
    long long bytes = 0;
    FILE *in = fopen(path, "r");
    if (in == NULL) return;
    if (fscanf(in, "%lld", &bytes) == 1 && bytes > 0 && bytes < *least) *least = bytes;
    fclose(in);
}

int64_t tpo_memory_bytes(void)
{
    int64_t least = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    tpo_cgroup_each("memory.max", least_keep, &least);
    return least;
}
