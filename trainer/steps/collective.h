/* collective.h -- how the replicas of a service come to hold one sum of their gradients.
 *
 * Each folds its own lanes (docs/mesh.md, The same bits); their sums are added as the same binary tree, so that any number of
 * replicas gives the bits of one. There is one implementation, through the trainer: gather from each replica while Backward still
 * runs, add, scatter. Where replicas have links of their own another may let them add among themselves; nothing else would change. */
#ifndef TPO_TRAINER_STEPS_COLLECTIVE_H
#define TPO_TRAINER_STEPS_COLLECTIVE_H

#include "services/host/learner.h"

struct tpo_crew;

struct tpo_collective {
    /* Once a step and replica, when its last Backward is on its way; skipped: how many of its micro-batches have none. Any thread; returns at once. */
    void (*start)(struct tpo_collective *self, struct tpo_crew *t, int part, int replica, const struct tpo_key *key,
                  uint32_t skipped);
    /* After start for each replica of the service: TPO_OK when all of them hold the total. Waits. */
    int (*finish)(struct tpo_collective *self, struct tpo_crew *t, int part, const struct tpo_key *key, struct tpo_error *err);
    /* The step is given up: waits for what was started (t->stop is set) and forgets it. */
    void (*drop)(struct tpo_collective *self, struct tpo_crew *t, int part);
    void (*close)(struct tpo_collective *self);
};

int tpo_collective_open_trainer(struct tpo_collective **out, struct tpo_error *err);

/* sums[0] becomes the total of n (a power of two), added as a binary tree; the others are changed. */
void tpo_sums_fold(float *const *sums, int n, int64_t count);

#endif
