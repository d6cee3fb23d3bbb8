/* This file owns the ids that a request is followed by. */
#include "gateway/trace.h"

#include <openssl/rand.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

void tpo_random_hex(char *out, size_t bytes)
{
    unsigned char random[16];
    RAND_bytes(random, (int)bytes);
    for (size_t i = 0; i < bytes; i++) snprintf(out + 2 * i, 3, "%02x", random[i]);
}

void tpo_trace_choose(char out[TPO_TRACE_BYTES], const char *given)
{
    char trace[33], span[17], flags[3] = "00";
    static const char digits[] = "0123456789abcdef";
    bool valid = given != NULL && strlen(given) >= 55 && strncmp(given, "ff", 2) != 0 && strspn(given, digits) == 2 &&
                 given[2] == '-' && strspn(given + 3, digits) == 32 && given[35] == '-' && strspn(given + 36, digits) == 16 &&
                 given[52] == '-' && strspn(given + 53, digits) == 2 && strspn(given + 3, "0") < 32 && strspn(given + 36, "0") < 16;
    if (valid)
        snprintf(trace, sizeof(trace), "%.32s", given + 3);
    else
        tpo_random_hex(trace, 16);
    if (valid) snprintf(flags, sizeof(flags), "%.2s", given + 53);
    tpo_random_hex(span, 8);
    snprintf(out, TPO_TRACE_BYTES, "00-%s-%s-%s", trace, span, flags);
}
