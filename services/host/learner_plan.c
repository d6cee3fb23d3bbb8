/* This file owns the plan of a run: what is refused, a copy that lasts. */
#include <string.h>

#include "services/host/learner_direct.h"

int tpo_plan_check(const struct tpo_plan *p, struct tpo_error *err)
{
    if (p->lanes < 1 || p->lanes > TPO_LANES_MAX || (p->lanes & (p->lanes - 1)) != 0)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "lanes", "%d lanes: a power of two up to %d is needed", p->lanes, TPO_LANES_MAX);
    if (p->micro_batches < 1 || p->micro_batches > 4096)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "micro_batches", "%d micro-batches: 1..4096", p->micro_batches);
    const int own = p->own_lanes > 0 ? p->own_lanes : p->lanes;
    if (own > p->lanes || (own & (own - 1)) != 0 || p->first_lane < 0 || p->first_lane % own != 0 || p->first_lane + own > p->lanes)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "share", "lanes %d..%d are no aligned subtree of %d", p->first_lane,
                        p->first_lane + own - 1, p->lanes);
    return TPO_OK;
}

int tpo_plan_copy(struct tpo_plan *out, struct tpo_arena *a, const struct tpo_plan *from)
{
    tpo_arena_reset(a);
    struct tpo_group *groups = tpo_arena_calloc(a, sizeof(*groups) * (size_t)(from->n_groups + 1));
    struct tpo_loss_weight *losses = tpo_arena_calloc(a, sizeof(*losses) * (size_t)(from->n_losses + 1));
    if (groups == NULL || losses == NULL) return TPO_ENOMEM;
    for (int g = 0; g < from->n_groups; g++) {
        groups[g] = from->groups[g];
        const char **patterns = tpo_arena_calloc(a, sizeof(*patterns) * (size_t)(groups[g].n_patterns + 1));
        if (patterns == NULL) return TPO_ENOMEM;
        for (int i = 0; i < groups[g].n_patterns; i++) {
            const char *pattern = from->groups[g].patterns[i];
            if ((patterns[i] = tpo_arena_copy(a, pattern, strlen(pattern))) == NULL) return TPO_ENOMEM;
        }
        groups[g].patterns = patterns;
    }
    for (int i = 0; i < from->n_losses; i++) {
        losses[i].weight = from->losses[i].weight;
        if ((losses[i].name = tpo_arena_copy(a, from->losses[i].name, strlen(from->losses[i].name))) == NULL) return TPO_ENOMEM;
    }
    *out = *from;
    if (out->own_lanes <= 0) out->own_lanes = out->lanes;
    out->groups = groups;
    out->losses = losses;
    return TPO_OK;
}

float tpo_plan_loss_weight(const struct tpo_plan *plan, const char *name)
{
    for (int i = 0; i < plan->n_losses; i++)
        if (strcmp(plan->losses[i].name, name) == 0) return plan->losses[i].weight;
    return 0;
}
