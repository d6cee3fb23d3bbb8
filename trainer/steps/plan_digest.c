/* This file owns the digests of a plan. */
#include "trainer/steps/plan_digest.h"

#include <string.h>

static void group_add(tpo_sha256_t *h, const struct tpo_group *g)
{
    const float constants[] = {g->beta1, g->beta2, g->eps, g->weight_decay};
    const int32_t kinds[] = {g->n_patterns, g->optimiser, g->clipped, g->split > 1 ? g->split : 1};
    tpo_sha256_add(h, kinds, sizeof(kinds));
    tpo_sha256_add(h, constants, sizeof(constants));
    for (int i = 0; i < g->n_patterns; i++) tpo_sha256_add(h, g->patterns[i], strlen(g->patterns[i]) + 1);
}

/* The next by name, whatever their order in the recipe; NULL behind the last. */
static const struct tpo_loss_weight *loss_after(const struct tpo_plan *plan, const char *name)
{
    const struct tpo_loss_weight *next = NULL;
    for (const struct tpo_loss_weight *x = plan->losses; x < plan->losses + plan->n_losses; x++)
        if (strcmp(x->name, name) > 0 && (next == NULL || strcmp(x->name, next->name) < 0)) next = x;
    return next;
}

void tpo_plan_digest(struct tpo_plan_digest *out, const struct tpo_plan *plan)
{
    tpo_sha256_t *h = tpo_sha256_open();
    for (int g = 0; g < plan->n_groups; g++) group_add(h, &plan->groups[g]);
    tpo_sha256_end_hex(h, out->groups);
    for (const struct tpo_loss_weight *x = loss_after(plan, ""); x != NULL; x = loss_after(plan, x->name)) {
        tpo_sha256_add(h, x->name, strlen(x->name) + 1);
        tpo_sha256_add(h, &x->weight, sizeof(x->weight));
    }
    tpo_sha256_end_hex(h, out->losses);
    tpo_sha256_close(h);
}
