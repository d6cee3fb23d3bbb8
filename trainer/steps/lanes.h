/* lanes.h -- the micro-batches of a step on their way through the services: encoder -> router -> region, and back.
 *
 * Micro-batch m of M goes to lane floor(m * lanes / M); the lane picks the replica in every service. The threads of a route (crew.h) take micro-batches in
 * order, so that replicas run side by side and one service computes while another does, with at most as many in flight through a replica as it keeps
 * tapes, whatever the numbers of replicas. Backwards of a lane go to a service in order of m, whichever thread calls them. */
#ifndef TPO_TRAINER_STEPS_LANES_H
#define TPO_TRAINER_STEPS_LANES_H

#include "trainer/steps/timing.h"

/* What one micro-batch told. */
struct tpo_pass {
    struct {
        const char *name; /* a constant */
        double value;
    } losses[TPO_LOSSES_MAX];
    int n_losses;
    int samples, boxes;
    bool finite;
    double forward_s, backward_s;
    struct tpo_span spans[2 * TPO_PARTS];
    int n_spans;
};

/* Forward and Backward of all micro-batches, passes[M]; where a service has replicas, their sums are on their way (t->collective) when it returns
 * TPO_OK. On failure nothing is on its way any more. The first error that happened. */
int tpo_lanes_run(struct tpo_crew *t, const struct tpo_recipe_stage *s, const struct tpo_key *key,
                  const struct tpo_world_batch *batches, struct tpo_pass *passes, struct tpo_error *err);

/* Whether a service's sums are added over its replicas. */
bool tpo_lanes_gathers(const struct tpo_crew *t, int part);

#endif
