/* This file owns the identity of a stage. */
#include "trainer/steps/identity.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/files.h"
#include "trainer/steps/held.h"

int tpo_identity_of(struct tpo_identity *out, const struct tpo_recipe *r, int stage, struct tpo_error *err)
{
    const struct tpo_recipe_stage *s = &r->stages[stage];
    int rc = TPO_OK;
    *out =
        (struct tpo_identity){.seed = r->seed, .lanes = s->plan.lanes, .micro_batches = s->plan.micro_batches, .n_data = s->n_data};
    snprintf(out->run, sizeof(out->run), "%s/%s", r->name, s->name);
    tpo_plan_digest(&out->plan, &s->plan);
    for (int i = 0; i < s->n_data && rc == TPO_OK; i++) rc = tpo_data_digest(&out->data[i], &s->data[i], err);
    return rc;
}

int tpo_identity_rows(const struct tpo_identity *x, const struct tpo_recipe *r, int stage, struct tpo_error *err)
{
    struct tpo_identity now;
    const int rc = tpo_identity_of(&now, r, stage, err);
    for (int i = 0; i < x->n_data && rc == TPO_OK; i++)
        if (strcmp(now.data[i].rows, x->data[i].rows) != 0)
            return tpo_fail(err, TPO_DATA_LOSS, "annotations", "%.200s changed during the run",
                            r->stages[stage].data[i].annotations);
    return rc;
}

void tpo_identity_put(json_t *j, const struct tpo_identity *x)
{
    json_object_set_new(j, "run", json_string(x->run));
    json_object_set_new(j, "seed", json_integer((json_int_t)x->seed));
    json_object_set_new(j, "lanes", json_integer(x->lanes));
    json_object_set_new(j, "micro_batches", json_integer(x->micro_batches));
    json_object_set_new(j, "groups", json_string(x->plan.groups));
    json_object_set_new(j, "losses", json_string(x->plan.losses));
    json_t *data = json_array();
    for (int i = 0; i < x->n_data; i++)
        json_array_append_new(data, json_pack("{s:s s:s}", "draw", x->data[i].draw, "rows", x->data[i].rows));
    json_object_set_new(j, "data", data);
    json_object_set_new(j, "config", json_string(x->config));
    json_object_set_new(j, "tokenizer", json_string(x->tokenizer));
    json_object_set_new(j, "start", json_string(x->start));
}

/* --- comparing ----------------------------------------------------------------------------------------------------------------------- */

static int told(const json_t *j, const char *key, const char *where, const char *reason, struct tpo_error *err)
{
    if (json_object_get(j, key) != NULL) return TPO_OK;
    return tpo_fail(err, TPO_FAILED_PRECONDITION, reason,
                    "%.80s does not tell its %s: it was made by an older build, go on with that one", where, key);
}

static int all_told(const json_t *j, const char *where, const char *reason, struct tpo_error *err)
{
    static const char *const keys[] = {"run",    "seed", "lanes",  "micro_batches", "groups",
                                       "losses", "data", "config", "tokenizer",     "start"};
    int rc = TPO_OK;
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]) && rc == TPO_OK; i++) rc = told(j, keys[i], where, reason, err);
    return rc;
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

static int numbers_check(const struct tpo_identity *x, const json_t *j, const char *where, const char *reason,
                         struct tpo_error *err)
{
    int rc = number_check(j, "seed", x->seed, where, reason, err);
    if (rc == TPO_OK) rc = number_check(j, "lanes", (uint64_t)x->lanes, where, reason, err);
    return rc == TPO_OK ? number_check(j, "micro_batches", (uint64_t)x->micro_batches, where, reason, err) : rc;
}

static int plan_check(const struct tpo_identity *x, const json_t *j, const char *where, const char *reason, struct tpo_error *err)
{
    if (!says(j, "groups", x->plan.groups))
        return tpo_fail(err, TPO_FAILED_PRECONDITION, reason,
                        "%.80s was made with other groups (their tensors, optimisers or constants): go on with those it has",
                        where);
    if (!says(j, "losses", x->plan.losses))
        return tpo_fail(err, TPO_FAILED_PRECONDITION, reason, "%.80s was made with other losses: go on with those it has", where);
    return TPO_OK;
}

static int data_check(const struct tpo_identity *x, const json_t *j, const char *where, const char *reason, struct tpo_error *err)
{
    const json_t *data = json_object_get(j, "data");
    if ((int)json_array_size(data) != x->n_data)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, reason, "%.80s was made with %d entries of data, not %d: go on with those",
                        where, (int)json_array_size(data), x->n_data);
    for (int i = 0; i < x->n_data; i++) {
        const json_t *then = json_array_get(data, (size_t)i);
        if (!says(then, "rows", x->data[i].rows))
            return tpo_fail(err, TPO_FAILED_PRECONDITION, reason,
                            "%.80s was made with other rows in entry %d of data (its source, its split or what its annotation "
                            "files hold): go on with those",
                            where, i + 1);
        if (!says(then, "draw", x->data[i].draw))
            return tpo_fail(err, TPO_FAILED_PRECONDITION, reason,
                            "%.80s was made with entry %d of data drawn otherwise (its share, samples, frames, mix or the like): "
                            "go on as it was",
                            where, i + 1);
    }
    return TPO_OK;
}

static int model_check(const struct tpo_identity *x, const json_t *j, const char *where, struct tpo_error *err)
{
    const bool config = x->config[0] == '\0' || says(j, "config", x->config);
    const bool tokenizer = x->config[0] == '\0' || says(j, "tokenizer", x->tokenizer);
    if (!config || !tokenizer)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "model",
                        "%.80s was made with another %s: go on with the model as it was then", where,
                        config ? "tokenizer" : "config.json");
    if (x->start[0] != '\0' && !says(j, "start", x->start))
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "model",
                        "%.80s began with other weights: go on with the model (--model, or the recipe's) as it was then", where);
    return TPO_OK;
}

int tpo_identity_check(const struct tpo_identity *x, const json_t *j, const char *where, const char *reason, struct tpo_error *err)
{
    int rc = all_told(j, where, reason, err);
    if (rc != TPO_OK) return rc;
    if (!says(j, "run", x->run))
        return tpo_fail(err, TPO_FAILED_PRECONDITION, reason, "%.80s is of %.68s, not of %s: take another --out", where,
                        json_string_value(json_object_get(j, "run")), x->run);
    rc = numbers_check(x, j, where, reason, err);
    if (rc == TPO_OK) rc = plan_check(x, j, where, reason, err);
    if (rc == TPO_OK) rc = data_check(x, j, where, reason, err);
    return rc == TPO_OK ? model_check(x, j, where, err) : rc;
}

/* --- stage.json ---------------------------------------------------------------------------------------------------------------------- */

static int stage_write(const char *path, const struct tpo_identity *x, const char *model, struct tpo_error *err)
{
    json_t *j = json_object();
    tpo_identity_put(j, x);
    if (model != NULL) json_object_set_new(j, "model", json_string(model));
    char *text = json_dumps(j, JSON_INDENT(2));
    int rc = text != NULL ? tpo_small_file(path, text, err) : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for stage.json");
    free(text);
    json_decref(j);
    return rc;
}

int tpo_identity_keep(const char *stage_dir, const struct tpo_identity *x, struct tpo_error *err)
{
    char path[4096];
    snprintf(path, sizeof(path), "%.4000s/stage.json", stage_dir);
    return access(path, F_OK) == 0 ? TPO_OK : stage_write(path, x, NULL, err);
}

int tpo_identity_end(const char *stage_dir, const struct tpo_identity *x, const char model[TPO_SHA256_HEX], struct tpo_error *err)
{
    char path[4096];
    snprintf(path, sizeof(path), "%.4000s/stage.json", stage_dir);
    return stage_write(path, x, model, err);
}

int tpo_identity_kept(const char *stage_dir, const struct tpo_identity *x, bool ended, struct tpo_error *err)
{
    char path[4096];
    snprintf(path, sizeof(path), "%.4000s/stage.json", stage_dir);
    if (!ended && access(path, F_OK) != 0) return TPO_OK;
    json_t *j = json_load_file(path, 0, NULL);
    int rc = ended ? told(j, "model", stage_dir, "out", err) : TPO_OK;
    if (rc == TPO_OK) rc = tpo_identity_check(x, j, stage_dir, "out", err);
    json_decref(j);
    return rc;
}

/* By any path, a link too. A folder that merely lies beside is another. */
static bool is_a_stages(const char *folder)
{
    char path[4200];
    struct stat given, left;
    snprintf(path, sizeof(path), "%.4000s/../model", folder);
    return stat(folder, &given) == 0 && stat(path, &left) == 0 && given.st_dev == left.st_dev && given.st_ino == left.st_ino;
}

int tpo_identity_model(const char *folder, struct tpo_error *err)
{
    char path[4200], hex[TPO_SHA256_HEX];
    uint8_t digest[TPO_SHA256_BYTES];
    snprintf(path, sizeof(path), "%.4000s/../stage.json", folder);
    json_t *j = is_a_stages(folder) ? json_load_file(path, 0, NULL) : NULL;
    snprintf(path, sizeof(path), "%.4000s/model.safetensors", folder);
    const bool known = json_object_get(j, "model") != NULL;
    const bool same = known && tpo_file_sha256(digest, path) && says(j, "model", tpo_sha256_hex(hex, digest));
    json_decref(j);
    return !known || same ? TPO_OK
                          : tpo_fail(err, TPO_DATA_LOSS, "model", "%.200s is not what its stage ended with (SHA-256)", path);
}
