/* run_log.h -- what a run tells while it goes: a line per --log-every steps on stdout, a bar on a terminal, OUT/status.json for `tpo train --status`.
 *
 * Losses and times of a line are means since the one before. */
#ifndef TPO_TRAINER_STEPS_RUN_LOG_H
#define TPO_TRAINER_STEPS_RUN_LOG_H

#include "trainer/steps/step.h"

/* Everything a line tells; other writers read it too. */
struct tpo_run_log_line {
    const char *stage;
    int step, steps;
    int samples, boxes;          /* since the stage began */
    struct tpo_step_report mean; /* losses: means; norm, norms, clip, rate, rates: of the last step; timing: sums */
    int n_steps;                 /* that are in it */
    double steps_per_s, samples_per_s, eta_s;
    uint64_t aborted;
};

struct tpo_run_log; /* opaque */

/* `dir` is OUT; bar: where stderr is a terminal. */
int tpo_run_log_open(struct tpo_run_log **out, const char *dir, int log_every, bool bar, struct tpo_error *err);
void tpo_run_log_close(struct tpo_run_log *log); /* accepts NULL */

void tpo_run_log_stage(struct tpo_run_log *log, const struct tpo_recipe *r, int stage, int first_step);
/* Counts a step; the line that it ends, NULL within one. Valid until the next call. */
const struct tpo_run_log_line *tpo_run_log_step(struct tpo_run_log *log, int step, const struct tpo_step_report *report,
                                                uint64_t aborted);
/* What the run is at besides steps: "waiting", "checkpoint", "done", "failed". Goes into status.json. */
void tpo_run_log_state(struct tpo_run_log *log, const char *state, const char *detail);

/* `tpo train --status`: prints what OUT/status.json says. NOT_FOUND where no run ever was. */
int tpo_run_log_print(const char *dir, struct tpo_error *err);

#endif
