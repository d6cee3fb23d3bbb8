/* This file owns the clock of a step's accounts. */
#include "trainer/steps/timing.h"

#include <time.h>

const char *const tpo_phase_names[TPO_PHASES] = {"data", "forward", "backward", "prepare", "commit"};

double tpo_now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
