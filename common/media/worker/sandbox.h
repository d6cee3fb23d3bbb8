/* sandbox.h -- what the worker gives up before it sees the first byte of a stranger's file. */
#ifndef TPO_COMMON_MEDIA_WORKER_SANDBOX_H
#define TPO_COMMON_MEDIA_WORKER_SANDBOX_H

#include <stddef.h>

/* Sets resource limits and loads the system-call filter: from here on only memory, reading from descriptors it is handed, the socket and
 * ending are left; anything else kills the process. 0, or -1 when the kernel refuses (then nothing may be opened). */
int tpo_sandbox_enter(size_t ring_bytes);

#endif
