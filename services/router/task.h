/* task.h -- which task tokens an answer may hold, and what they call (docs/model.md, Task token).
 *
 *   "auto"  nothing is banned           "none"  every trigger is banned
 *   NAME    the other triggers are banned, and NAME's is the answer's first token
 * Without a medium "auto" is as "none", and NAME is refused: what a head says means nothing without a picture it says it of.
 * Slot tokens and <track_box> are never sampled: a slot's row is v_i, put there by the engine. */
#ifndef TPO_SERVICES_ROUTER_TASK_H
#define TPO_SERVICES_ROUTER_TASK_H

#include "nn/config.h"

struct tpo_routing {
    int32_t banned[2 * TPO_TASKS_MAX + 1];
    int n_banned;
    int forced; /* index of the task whose trigger opens the answer, or -1 */
};

/* INVALID_ARGUMENT "task_unknown", "task_without_media". NULL and "" mean "auto"; sees: the prompt holds visual rows. */
int tpo_routing_init(struct tpo_routing *r, const struct tpo_config *c, const char *task, bool sees, struct tpo_error *err);
/* The task that this token triggers, or -1. */
int tpo_task_of_trigger(const struct tpo_config *c, int32_t id);

#endif
