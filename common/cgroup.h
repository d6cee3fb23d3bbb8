/* cgroup.h -- the control groups (version 2) that this process is in.
 *
 * In a container the root is our own group; under systemd a slice above us may hold the limit. */
#ifndef TPO_COMMON_CGROUP_H
#define TPO_COMMON_CGROUP_H

/* `see` is told the path of that file (cpu.max, memory.max) in each group, from ours up to the root, whether it exists or not. */
void tpo_cgroup_each(const char *file, void (*see)(void *arg, const char *path), void *arg);

#endif
