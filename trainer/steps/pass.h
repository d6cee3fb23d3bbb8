/* pass.h -- one micro-batch through the services that a stage needs, and back. */
#ifndef TPO_TRAINER_STEPS_PASS_H
#define TPO_TRAINER_STEPS_PASS_H

#include "trainer/steps/lanes.h"

/* The order among micro-batches in flight. */
struct tpo_pass_order {
    void *arg;
    /* Before a Backward of micro-batch m, or where it is left out (skip); then backward_end. Anything but TPO_OK: the step is given up. */
    int (*backward_wait)(void *arg, int part, int m, bool skip);
    void (*backward_end)(void *arg, int part, int m);
    void (*forward_end)(void *arg); /* the last Forward of this micro-batch has replied */
};

/* learners: one handle of each service, for the caller's thread alone. */
int tpo_pass_run(const struct tpo_crew *t, struct tpo_learner *learners, const struct tpo_key *key, const struct tpo_world_batch *b,
                 const struct tpo_pass_order *order, struct tpo_pass *out, struct tpo_error *err);

#endif
