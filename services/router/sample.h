/* sample.h -- the next token out of a row of logits: greedy, or drawn at a temperature from the nucleus (Holtzman et al. 2020,
 * arXiv:1904.09751). A draw depends on (seed, step) and the logits alone. */
#ifndef TPO_SERVICES_ROUTER_SAMPLE_H
#define TPO_SERVICES_ROUTER_SAMPLE_H

#include <stdint.h>

struct tpo_sampler {
    float temperature; /* 0: greedy, the lowest id on a tie */
    float top_p;       /* (0, 1] */
    uint64_t seed;
};

/* logits (V); banned: ids that are never taken. work: room for V candidates, used when temperature > 0. NaN logits lose; -1 when nothing
 * is left. */
struct tpo_candidate {
    double p;
    int32_t id;
};
int32_t tpo_sample(const struct tpo_sampler *s, uint64_t step, const float *logits, int V, const int32_t *banned, int n_banned,
                   struct tpo_candidate *work);

#endif
