/* This file owns the identity of a stage. */
#include "trainer/steps/identity.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "trainer/steps/held.h"

void tpo_identity_of(struct tpo_identity *out, const struct tpo_recipe *r, int stage)
{
    const struct tpo_recipe_stage *s = &r->stages[stage];
    *out = (struct tpo_identity){.seed = r->seed, .lanes = s->plan.lanes, .micro_batches = s->plan.micro_batches};
    snprintf(out->run, sizeof(out->run), "%s/%s", r->name, s->name);
    tpo_plan_digest(&out->plan, &s->plan);
}

void tpo_identity_put(json_t *j, const struct tpo_identity *x)
{
    json_object_set_new(j, "run", json_string(x->run));
    json_object_set_new(j, "seed", json_integer((json_int_t)x->seed));
    json_object_set_new(j, "lanes", json_integer(x->lanes));
    json_object_set_new(j, "micro_batches", json_integer(x->micro_batches));
    json_object_set_new(j, "groups", json_string(x->plan.groups));
    json_object_set_new(j, "losses", json_string(x->plan.losses));
    json_object_set_new(j, "start", json_string(x->start));
}

/* --- comparing ----------------------------------------------------------------------------------------------------------------------- */

static int all_told(const json_t *j, const char *where, const char *reason, struct tpo_error *err)
{
    static const char *const keys[] = {"run", "seed", "lanes", "micro_batches", "groups", "losses", "start"};
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        if (json_object_get(j, keys[i]) == NULL)
            return tpo_fail(err, TPO_FAILED_PRECONDITION, reason,
                            "%.80s does not tell its %s: it was made by an older build, go on with that one", where, keys[i]);
    return TPO_OK;
}

static bool says(const json_t *j, const char *key, const char *text)
{
    const char *said = json_string_value(json_object_get(j, key));
    return said != NULL && strcmp(said, text) == 0;
}

static int number_check(const json_t *j, const char *key, uint64_t now, const char *where, const char *reason,
                        struct tpo_error *err)
{
    const uint64_t then = (uint64_t)json_integer_value(json_object_get(j, key));
    if (then == now) return TPO_OK;
    return tpo_fail(err, TPO_FAILED_PRECONDITION, reason, "%.80s was made with %s %llu, not %llu: go on with the same", where, key,
                    (unsigned long long)then, (unsigned long long)now);
}

int tpo_identity_check(const struct tpo_identity *x, const json_t *j, const char *where, const char *reason, struct tpo_error *err)
{
    int rc = all_told(j, where, reason, err);
    if (rc != TPO_OK) return rc;
    if (!says(j, "run", x->run))
        return tpo_fail(err, TPO_FAILED_PRECONDITION, reason, "%.80s is of %.68s, not of %s: take another --out", where,
                        json_string_value(json_object_get(j, "run")), x->run);
    rc = number_check(j, "seed", x->seed, where, reason, err);
    if (rc == TPO_OK) rc = number_check(j, "lanes", (uint64_t)x->lanes, where, reason, err);
    if (rc == TPO_OK) rc = number_check(j, "micro_batches", (uint64_t)x->micro_batches, where, reason, err);
    if (rc != TPO_OK) return rc;
    if (!says(j, "groups", x->plan.groups))
        return tpo_fail(err, TPO_FAILED_PRECONDITION, reason,
                        "%.80s was made with other groups (their tensors, optimisers or constants): go on with those it has",
                        where);
    if (!says(j, "losses", x->plan.losses))
        return tpo_fail(err, TPO_FAILED_PRECONDITION, reason, "%.80s was made with other losses: go on with those it has", where);
    if (x->start[0] != '\0' && !says(j, "start", x->start))
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "model",
                        "%.80s began with other weights: go on with the model (--model, or the recipe's) as it was then", where);
    return TPO_OK;
}

/* --- stage.json ---------------------------------------------------------------------------------------------------------------------- */

int tpo_identity_keep(const char *stage_dir, const struct tpo_identity *x, struct tpo_error *err)
{
    char path[4096];
    snprintf(path, sizeof(path), "%.4000s/stage.json", stage_dir);
    if (access(path, F_OK) == 0) return TPO_OK;
    json_t *j = json_object();
    tpo_identity_put(j, x);
    char *text = json_dumps(j, JSON_INDENT(2));
    int rc = text != NULL ? tpo_small_file(path, text, err) : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for stage.json");
    free(text);
    json_decref(j);
    return rc;
}

int tpo_identity_kept(const char *stage_dir, const struct tpo_identity *x, bool ended, struct tpo_error *err)
{
    char path[4096];
    snprintf(path, sizeof(path), "%.4000s/stage.json", stage_dir);
    if (!ended && access(path, F_OK) != 0) return TPO_OK;
    json_t *j = json_load_file(path, 0, NULL);
    int rc = tpo_identity_check(x, j, stage_dir, "out", err);
    json_decref(j);
    return rc;
}
