/* memory.h -- how much memory this process may ever have: past it nothing fails, the kernel ends a process. */
#ifndef TPO_COMMON_MEMORY_H
#define TPO_COMMON_MEMORY_H

#include <stdint.h>

int64_t tpo_memory_limit(const char *path); /* bytes of a control group's memory.max; 0 where there is none */

/* The machine's, and no more than the limit of our control groups (version 2). */
int64_t tpo_memory_bytes(void);

#endif
