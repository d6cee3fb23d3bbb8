/* apart.h -- a device whose memory the host cannot touch, computing on the CPU: what a GPU demands of its callers, on a machine without one.
 *
 * Its addresses are reserved and unreadable; behind each lies memory elsewhere, which its operations alone find. A host that looks through such a
 * pointer dies of SIGSEGV; an operation that is given memory of the host ends the process with its name and the argument. Its results have the CPU's
 * bits. */
#ifndef TPO_TESTS_APART_H
#define TPO_TESTS_APART_H

#include "kernels/stream.h"

int tpo_apart_open(struct tpo_stream **out, int n_threads, struct tpo_error *err); /* tpo_stream_close ends it */

#endif
