/* cores.h -- how many cores this process may use: what 0 threads stands for, everywhere.
 *
 * The machine's cores are not ours where a scheduler or a container gave us fewer: threads beyond them wait for each other at every barrier. */
#ifndef TPO_COMMON_CORES_H
#define TPO_COMMON_CORES_H

/* The cores of this process's affinity, and no more than the quota of its control group (version 2), rounded up. At least 1. */
int tpo_cores(void);

/* The cores that a cpu.max file grants ("150000 100000": 2), rounded up; 0 when it grants no number of them ("max", unreadable, malformed). */
int tpo_cores_quota(const char *path);

#endif
