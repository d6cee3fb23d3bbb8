/* This file owns the accounts of a step's time. */
#include "trainer/steps/timing.h"

#include <stdlib.h>

const char *const tpo_phase_names[TPO_PHASES] = {"data", "forward", "backward", "gather", "prepare", "commit", "checkpoint"};

static int by_begin(const void *a, const void *b)
{
    const double x = ((const struct tpo_span *)a)->from_s, y = ((const struct tpo_span *)b)->from_s;
    return (x > y) - (x < y);
}

void tpo_timing_add(struct tpo_timing *t, const struct tpo_crew *crew, struct tpo_span *spans, int n, double begun_s,
                    double ended_s)
{
    double covered = 0, until = begun_s;
    qsort(spans, (size_t)n, sizeof(*spans), by_begin);
    for (int i = 0; i < n; i++) {
        const double from = spans[i].from_s > until ? spans[i].from_s : until;
        t->busy_s[spans[i].part] += (spans[i].to_s - spans[i].from_s) / crew->options.n_replicas[spans[i].part];
        if (spans[i].to_s <= from) continue;
        covered += spans[i].to_s - from;
        until = spans[i].to_s;
    }
    t->wall_s += ended_s - begun_s;
    t->bubble_s += ended_s - begun_s > covered ? ended_s - begun_s - covered : 0;
}

void tpo_timing_sum(struct tpo_timing *t, const struct tpo_timing *more)
{
    for (int i = 0; i < TPO_PHASES; i++) t->seconds[i] += more->seconds[i];
    for (int p = 0; p < TPO_PARTS; p++) t->busy_s[p] += more->busy_s[p];
    t->wall_s += more->wall_s;
    t->bubble_s += more->bubble_s;
}
