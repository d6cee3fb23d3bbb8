/* timing.h -- where the time of a step went: what each service computed when, and how long the trainer was in each phase.
 *
 * Forward and Backward overlap where services run side by side, so their seconds may add up to more than the step's. */
#ifndef TPO_TRAINER_STEPS_TIMING_H
#define TPO_TRAINER_STEPS_TIMING_H

#include "trainer/steps/crew.h"

enum tpo_phase {
    TPO_PHASE_DATA, /* waiting for samples */
    TPO_PHASE_FORWARD,
    TPO_PHASE_BACKWARD,
    TPO_PHASE_GATHER,  /* what is left of it after the last Backward, and Scatter */
    TPO_PHASE_PREPARE, /* with Norms */
    TPO_PHASE_COMMIT,
    TPO_PHASE_CHECKPOINT,
    TPO_PHASES
};

extern const char *const tpo_phase_names[TPO_PHASES];

struct tpo_timing {
    double seconds[TPO_PHASES];
    double wall_s;            /* of the steps that are in it, data wait and checkpoints included */
    double busy_s[TPO_PARTS]; /* Forward and Backward, mean of the service's replicas */
    double bubble_s;          /* no service computed */
};

/* One Forward or Backward, as its service computed it. */
struct tpo_span {
    int part;
    double from_s, to_s;
};

/* Adds the spans of the time from begun_s to ended_s; orders them. */
void tpo_timing_add(struct tpo_timing *t, const struct tpo_crew *crew, struct tpo_span *spans, int n, double begun_s,
                    double ended_s);
void tpo_timing_sum(struct tpo_timing *t, const struct tpo_timing *more);

#endif
