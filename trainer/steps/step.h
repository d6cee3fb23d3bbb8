/* step.h -- one training step over the learners: encoder -> router -> region forward, region -> router -> encoder backward, per
 * micro-batch; then norms, clip, Prepare everywhere, Commit everywhere, or Abort everywhere.
 *
 * It sees learners only (services/host/learner.h), so a mesh and one process run the same lines. */
#ifndef TPO_TRAINER_STEPS_STEP_H
#define TPO_TRAINER_STEPS_STEP_H

#include "nn/config.h"
#include "trainer/steps/recipe.h"
#include "trainer/steps/timing.h"

enum tpo_part { TPO_PART_ENCODER, TPO_PART_ROUTER, TPO_PART_REGION, TPO_PARTS };

struct tpo_team_of_learners {
    const struct tpo_config *config;
    struct tpo_learner learners[TPO_PARTS];
    bool runs[TPO_PARTS];     /* whether the stage's losses need this part */
    int trainable[TPO_PARTS]; /* tensors, from Begin */
    char run[64];
    uint64_t version;
    uint64_t aborted; /* steps given up because something was not finite */
};

struct tpo_step_report {
    struct {
        const char *name;
        double value; /* mean over the micro-batches that had it, unweighted */
        int n;
    } losses[TPO_LOSSES_MAX];
    int n_losses;
    double norm;                 /* of the clipped groups */
    double norms[TPO_PARTS];     /* of each service's clipped groups */
    float clip;                  /* factor that was used */
    float rate;                  /* share of every group's rate */
    float rates[TPO_GROUPS_MAX]; /* of each group, as the stage lists them */
    int samples, boxes;
    bool aborted;
    struct tpo_timing timing;
};

/* Begins a stage everywhere: who runs, who trains. */
int tpo_step_begin(struct tpo_team_of_learners *t, const struct tpo_recipe *r, int stage, struct tpo_error *err);

/* Step `step` (from 1) on samples[M]. A step that meets something not finite is aborted everywhere, counted, and is no error. */
int tpo_step_run(struct tpo_team_of_learners *t, const struct tpo_recipe_stage *s, int step, const struct tpo_world_batch *batches,
                 struct tpo_step_report *out, struct tpo_error *err);

#endif
