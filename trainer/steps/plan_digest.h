/* plan_digest.h -- what of a stage's plan decides which state it has and how that moves, as two digests: a trainer that comes back compares them.
 *
 * `groups`: in their order the patterns of tensors, the optimiser and its constants, clipped, split. `losses`: names and weights, by name. Names of
 * groups, rates, steps, warm-up and clip are not in it: a run may go on with others. */
#ifndef TPO_TRAINER_STEPS_PLAN_DIGEST_H
#define TPO_TRAINER_STEPS_PLAN_DIGEST_H

#include "services/host/learner.h"

struct tpo_plan_digest {
    char groups[TPO_SHA256_HEX], losses[TPO_SHA256_HEX];
};

void tpo_plan_digest(struct tpo_plan_digest *out, const struct tpo_plan *plan);

#endif
