/* run_log.h -- what a run tells while it goes: a line per --log-every steps on stdout, a bar on a terminal, OUT/status.json for `tpo train --status`.
 *
 * Losses and times of a line are means since the one before; losses of steps that were given up are in none. status.json tells the same of the line
 * that is on its way, once a second at most within a stage. */
#ifndef TPO_TRAINER_STEPS_RUN_LOG_H
#define TPO_TRAINER_STEPS_RUN_LOG_H

#include "trainer/steps/step.h"

struct tpo_run_log; /* opaque */

/* `dir` is OUT; bar: where stderr is a terminal. */
int tpo_run_log_open(struct tpo_run_log **out, const char *dir, int log_every, bool bar, struct tpo_error *err);
void tpo_run_log_close(struct tpo_run_log *log); /* accepts NULL */

void tpo_run_log_stage(struct tpo_run_log *log, const struct tpo_recipe *r, int stage, int first_step);
void tpo_run_log_step(struct tpo_run_log *log, int step, const struct tpo_step_report *report, uint64_t aborted);
/* What the run is at besides steps, "waiting", "done", "failed", into status.json at once. Bytes of the detail that are no UTF-8 become "?". */
void tpo_run_log_state(struct tpo_run_log *log, const char *state, const char *detail);
/* A sentence that status.json tells beside the steps of this stage until another one takes its place; "" takes it away. */
void tpo_run_log_note(struct tpo_run_log *log, const char *note);

/* `tpo train --status`: prints what OUT/status.json says. NOT_FOUND where no run ever was. */
int tpo_run_log_print(const char *dir, struct tpo_error *err);

#endif
