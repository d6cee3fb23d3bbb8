/* This file owns the rules of task tokens in an answer. */
#include "services/router/task.h"

#include <string.h>

int tpo_task_of_trigger(const struct tpo_config *c, int32_t id)
{
    for (int i = 0; i < c->n_tasks; i++)
        if (c->tasks[i].trigger_id == id) return i;
    return -1;
}

int tpo_routing_init(struct tpo_routing *r, const struct tpo_config *c, const char *task, bool sees, struct tpo_error *err)
{
    bool any = task == NULL || task[0] == '\0' || strcmp(task, "auto") == 0, none = !any && strcmp(task, "none") == 0;
    memset(r, 0, sizeof(*r));
    r->forced = -1;
    for (int i = 0; i < c->n_tasks; i++)
        if (!any && !none && strcmp(c->tasks[i].name, task) == 0) r->forced = i;
    if (!any && !none && r->forced < 0)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "task_unknown", "no task of this model has that name");
    if (r->forced >= 0 && !sees)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "task_without_media", "task %s needs a picture or a video", task);
    r->banned[r->n_banned++] = c->track_box_id;
    for (int i = 0; i < c->n_tasks; i++) {
        r->banned[r->n_banned++] = c->tasks[i].slot_id;
        if (none || !sees || (r->forced >= 0 && r->forced != i)) r->banned[r->n_banned++] = c->tasks[i].trigger_id;
    }
    return TPO_OK;
}
