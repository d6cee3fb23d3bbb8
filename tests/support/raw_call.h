/* raw_call.h -- one gRPC call as a stranger makes it: over a channel of its own, which sends whatever it is given (common/rpc/client.h refuses what
 * is too long before it leaves, so that nothing is seen of what a service does with it). */
#ifndef TPO_TESTS_RAW_CALL_H
#define TPO_TESTS_RAW_CALL_H

#include <stddef.h>

struct raw_answer {
    int status; /* gRPC's */
    char text[256];
};

/* A unary call whose message is `size` zero bytes, which cost the caller no memory. */
struct raw_answer raw_call_zeros(const char *address, const char *path, size_t size);

/* The most memory that a process has held so far (VmHWM). */
size_t raw_peak_bytes(int pid);

#endif
