/* step.h -- one training step over the learners: every micro-batch through the services and back (lanes.h), replicas' sums added (collective.h), then
 * norms, clip, Prepare everywhere, Commit everywhere, or Abort everywhere.
 *
 * It sees learners only (services/host/learner.h), so a mesh and one process run the same lines. */
#ifndef TPO_TRAINER_STEPS_STEP_H
#define TPO_TRAINER_STEPS_STEP_H

#include "trainer/steps/lanes.h"

struct tpo_step_report {
    struct {
        const char *name;
        double value; /* mean over the micro-batches that had it, unweighted, added in their order */
        int n;
    } losses[TPO_LOSSES_MAX];
    int n_losses;
    double norm;                 /* of the clipped groups */
    double norms[TPO_PARTS];     /* of all groups of each service */
    float clip;                  /* factor that was used */
    float rate;                  /* share of every group's rate */
    float rates[TPO_GROUPS_MAX]; /* of each group, as the stage lists them */
    int samples, boxes;
    bool reads;      /* whether the stage's samples come from files; this and the next are the run's to fill in */
    int64_t skipped; /* rows of those files that were passed over up to this step */
    bool aborted;
    struct tpo_timing timing;
};

/* Step `step` (from 1) on batches[M], a micro-batch each. A step that meets something not finite is aborted everywhere, counted, and is no error.
 * On an error nothing is on its way any more, but services may be left with an open step: tpo_step_give_up, or recovery, which alone may follow
 * where t->torn is set. INTERNAL "replicas" when replicas' norms differ. */
int tpo_step_run(struct tpo_crew *t, const struct tpo_recipe_stage *s, int step, const struct tpo_world_batch *batches,
                 struct tpo_step_report *out, struct tpo_error *err);

/* Aborts everywhere what is open or prepared and committed nowhere; the first error. */
int tpo_step_give_up(struct tpo_crew *t, struct tpo_error *err);

#endif
