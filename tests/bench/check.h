/* check.h -- the end of a bench whose kernel or copy failed. */
#ifndef TPO_TESTS_BENCH_CHECK_H
#define TPO_TESTS_BENCH_CHECK_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/status.h"

static inline void check(int code, const char *what)
{
    if (code == TPO_OK) return;
    fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, tpo_status_sentence(code));
    exit(1);
}

#endif
