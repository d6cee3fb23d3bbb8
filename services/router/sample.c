/* This file owns choosing the next token. */
#include "services/router/sample.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "kernels/vector.h"

static bool is_banned(int32_t id, const int32_t *banned, int n_banned)
{
    for (int i = 0; i < n_banned; i++)
        if (banned[i] == id) return true;
    return false;
}

static int32_t best(const float *logits, int V, const int32_t *banned, int n_banned)
{
    int32_t top = -1;
    for (int32_t i = 0; i < V; i++)
        if (!isnan(logits[i]) && (top < 0 || logits[i] > logits[top]) && !is_banned(i, banned, n_banned)) top = i;
    return top;
}

static int likelier_first(const void *a, const void *b)
{
    const struct tpo_candidate *x = a, *y = b;
    if (x->p != y->p) return x->p > y->p ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

int32_t tpo_sample(const struct tpo_sampler *s, uint64_t step, const float *logits, int V, const int32_t *banned, int n_banned,
                   struct tpo_candidate *work)
{
    int32_t top = best(logits, V, banned, n_banned);
    if (top < 0 || !(s->temperature > 0)) return top;
    double total = 0, kept = 0;
    int n = 0;
    for (int32_t i = 0; i < V; i++) {
        if (isnan(logits[i]) || is_banned(i, banned, n_banned)) continue;
        work[n] = (struct tpo_candidate){logits[i] == logits[top] ? 1 : exp(((double)logits[i] - logits[top]) / s->temperature), i};
        total += work[n++].p;
    }
    qsort(work, (size_t)n, sizeof(*work), likelier_first);
    int nucleus = 0;
    while (nucleus < n && (nucleus == 0 || kept < s->top_p * total)) kept += work[nucleus++].p;
    double draw = (double)tpo_random(s->seed, step) * kept;
    for (int i = 0; i < nucleus; i++) {
        draw -= work[i].p;
        if (draw < 0) return work[i].id;
    }
    return work[nucleus - 1].id;
}
