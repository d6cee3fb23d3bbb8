/* worker.h -- a thread that does one job at a time for whoever holds it: what speaks to one replica, or takes micro-batches through the services.
 *
 * A worker without a thread of its own does its job inside tpo_worker_give, so that one process and a mesh run the same lines. */
#ifndef TPO_TRAINER_STEPS_WORKER_H
#define TPO_TRAINER_STEPS_WORKER_H

#include <stdbool.h>

#include "common/status.h"

struct tpo_worker; /* opaque */

int tpo_worker_open(struct tpo_worker **out, bool threaded, struct tpo_error *err);
void tpo_worker_close(struct tpo_worker *w); /* waits for its job; accepts NULL */

/* Starts a job; the one before has been waited for. `arg` lives until then. */
void tpo_worker_give(struct tpo_worker *w, int (*job)(void *arg, struct tpo_error *err), void *arg);
/* Waits for the job given last and answers what it did. TPO_OK where none was given; *err (may be NULL) is written only on failure. */
int tpo_worker_wait(struct tpo_worker *w, struct tpo_error *err);

#endif
