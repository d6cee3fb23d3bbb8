/* trace.h -- the ids that a request is followed by. */
#ifndef TPO_GATEWAY_TRACE_H
#define TPO_GATEWAY_TRACE_H

#include <stddef.h>

#define TPO_TRACE_BYTES 56

void tpo_random_hex(char *out, size_t bytes); /* 2 * bytes digits and a NUL */
/* W3C trace context: the caller's trace with a span of ours, or a trace of our own where `given` is NULL or nonsense. */
void tpo_trace_choose(char out[TPO_TRACE_BYTES], const char *given);

#endif
