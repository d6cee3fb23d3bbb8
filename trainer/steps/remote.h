/* remote.h -- struct tpo_learner over learner.proto: one handle of one service, for one thread at a time.
 *
 * Every call has a deadline. Since all may be repeated, one that found no way to the service is made once more; a service whose queue is full is
 * asked again when it says, for as long as a call may take. Errors are the service's, with its reason and stage. What forward, backward, norms
 * and export_state answer lives until the next call of that kind on this handle, not until Commit. */
#ifndef TPO_TRAINER_STEPS_REMOTE_H
#define TPO_TRAINER_STEPS_REMOTE_H

#include <stdatomic.h>

#include "common/arena.h"
#include "services/host/learner.h"

#define TPO_CALL_LATE "call_timeout" /* the reason of a DEADLINE_EXCEEDED that is a call's own */

struct tpo_remote_options {
    const char *service; /* a constant */
    const char *address; /* "host:port" */
    const char *holder;  /* of the lease; outlives the handle */
    int lease_ms, timeout_ms;
    _Atomic uint64_t *lease;  /* shared by all handles of this replica: begin of one writes it, end makes it 0 */
    const _Atomic bool *stop; /* while true, calls in flight end with CANCELLED, Abort and Begin apart */
    /* The frames of a sample that names its medium, in the arena, in place of the name. Any thread. */
    int (*pixels)(void *owner, struct tpo_arena *a, struct tpo_sample *s, struct tpo_error *err);
    void *owner;
};

int tpo_learner_open_remote(struct tpo_learner *out, const struct tpo_remote_options *o, struct tpo_error *err);

#endif
