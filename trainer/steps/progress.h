/* progress.h -- what a run tells while it goes: a line per --log-every steps on stdout, a bar on a terminal, OUT/status.json for `tpo train --status`.
 *
 * Losses and times of a line are means since the one before. */
#ifndef TPO_TRAINER_STEPS_PROGRESS_H
#define TPO_TRAINER_STEPS_PROGRESS_H

#include "trainer/steps/step.h"

/* Everything a line tells; other writers read it too. */
struct tpo_progress_line {
    const char *stage;
    int step, steps;
    int samples, boxes;          /* since the stage began */
    struct tpo_step_report mean; /* losses: means; norm, norms, clip, rate, rates: of the last step; timing: sums */
    int n_steps;                 /* that are in it */
    double steps_per_s, samples_per_s, eta_s;
    uint64_t aborted;
};

struct tpo_progress; /* opaque */

/* `out` is OUT. */
int tpo_progress_open(struct tpo_progress **out, const char *dir, int log_every, bool bar, struct tpo_error *err);
void tpo_progress_close(struct tpo_progress *p); /* accepts NULL */

void tpo_progress_stage(struct tpo_progress *p, const struct tpo_recipe *r, int stage, int first_step);
/* Counts a step; the line that it ends, NULL within one. Valid until the next call. */
const struct tpo_progress_line *tpo_progress_step(struct tpo_progress *p, int step, const struct tpo_step_report *report,
                                                  uint64_t aborted);
/* What the run is at besides steps: "waiting", "checkpoint", "done", "failed". Goes into status.json. */
void tpo_progress_state(struct tpo_progress *p, const char *state, const char *detail);

/* `tpo train --status`: prints what OUT/status.json says. NOT_FOUND where no run ever was. */
int tpo_progress_print(const char *dir, struct tpo_error *err);

#endif
