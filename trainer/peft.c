/* This file owns the adapter folder of PEFT. */
#include "trainer/peft.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/safetensors.h"
#include "kernels/vector.h"
#include "nn/config.h"
#include "nn/params.h"
#include "services/router/router.h"
#include "trainer/model_folder.h"
#include "trainer/peft_config.h"

#define OURS   "lm."
#define MIDDLE ".default.weight"

/* "lm.X.lora_A.default.weight" -> "X.lora_A.weight"; false for a tensor that is no LoRA. */
static bool peft_name(char out[TPO_NAME_MAX], const char *ours)
{
    const size_t n = strlen(ours), tail = strlen(MIDDLE);
    const bool lora = strncmp(ours, OURS, strlen(OURS)) == 0 && strstr(ours, ".lora_") != NULL;
    if (!lora || n <= tail || strcmp(ours + n - tail, MIDDLE) != 0) return false;
    snprintf(out, TPO_NAME_MAX, "%.*s.weight", (int)(n - tail - strlen(OURS)), ours + strlen(OURS));
    return true;
}

static int folder_make(const char *dir, struct tpo_error *err)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/adapter_model.safetensors", dir);
    if (access(path, F_OK) == 0) return tpo_fail(err, TPO_ALREADY_EXISTS, "adapter", "%.200s is there already", path);
    if (mkdir(dir, 0755) != 0 && errno != EEXIST)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "adapter", "%.200s: %s", dir, strerror(errno));
    return TPO_OK;
}

/* The model's files, its config and the router's schema, which says what tensors an adapter of this model has; the three agree. */
static int model_open(struct tpo_config *c, struct tpo_params *p, struct tpo_safetensors **files, const char *model,
                      struct tpo_error *err)
{
    int rc = tpo_config_load(c, model, err);
    if (rc != TPO_OK) return rc;
    if (!c->llm.use_lora)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "lora", "%.200s/config.json: llm.use_lora is false, so it has no adapter",
                        model);
    tpo_router_schema(p, c, 1); /* training's own heads may be there or not */
    rc = tpo_safetensors_open(files, model, err);
    return rc == TPO_OK ? tpo_params_match(p, *files, "router", tpo_params_fail_at_first, err) : rc;
}

/* One tensor of the adapter, in f32; a widened copy goes to *copy. */
static int entry_take(struct tpo_entry *e, float **copy, struct tpo_stream *s, const struct tpo_param *item,
                      const struct tpo_entry *from, struct tpo_error *err)
{
    if (from->dtype != TPO_F32 && from->dtype != TPO_BF16)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "weights", "%s: dtype %s, F32 or BF16 is read here", item->name,
                        tpo_dtype_name(from->dtype));
    *e = *from;
    if (from->dtype == TPO_F32) return TPO_OK;
    *copy = malloc((size_t)from->size * sizeof(float));
    if (*copy == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for %s", item->name);
    e->dtype = TPO_F32;
    e->data = *copy;
    e->size_bytes = (size_t)from->size * sizeof(float);
    return tpo_bf16_to_f32(s, *copy, from->data, from->size);
}

static int tensors_write(const char *dir, struct tpo_stream *s, const struct tpo_params *p, const struct tpo_safetensors *files,
                         struct tpo_error *err)
{
    char path[4096];
    struct tpo_entry *entries = calloc((size_t)p->n, sizeof(*entries));
    char(*names)[TPO_NAME_MAX] = calloc((size_t)p->n, sizeof(*names));
    float **copies = calloc((size_t)p->n, sizeof(*copies));
    int n = 0, rc = entries != NULL && names != NULL && copies != NULL
                        ? TPO_OK
                        : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the adapter");
    for (int i = 0; i < p->n && rc == TPO_OK; i++) {
        if (!peft_name(names[n], p->items[i]->name)) continue;
        rc = entry_take(&entries[n], &copies[n], s, p->items[i], tpo_safetensors_find(files, p->items[i]->name), err);
        entries[n].name = names[n];
        n++;
    }
    snprintf(path, sizeof(path), "%s/adapter_model.safetensors", dir);
    if (rc == TPO_OK) rc = tpo_safetensors_write(path, entries, n, err);
    for (int i = 0; copies != NULL && i < p->n; i++) free(copies[i]);
    free(copies);
    free(names);
    free(entries);
    return rc;
}

int tpo_peft_export(const char *dir, const char *model, struct tpo_error *err)
{
    struct tpo_config c;
    struct tpo_params p = {0};
    struct tpo_stream *s = NULL;
    struct tpo_safetensors *files = NULL;
    int rc = model_open(&c, &p, &files, model, err);
    if (rc == TPO_OK) rc = tpo_stream_open(&s, "cpu", 1, err);
    if (rc == TPO_OK) rc = folder_make(dir, err);
    if (rc == TPO_OK) rc = tpo_peft_config_write(dir, &c, err);
    if (rc == TPO_OK) rc = tensors_write(dir, s, &p, files, err); /* last: a folder that holds them is whole */
    tpo_safetensors_close(files);
    tpo_params_free(&p, s);
    tpo_stream_close(s);
    return rc;
}

/* --- in ------------------------------------------------------------------------------------------------------------------------------ */

static int entry_check(const struct tpo_param *item, const char *name, const struct tpo_entry *e, struct tpo_error *err)
{
    if (e == NULL) return tpo_fail(err, TPO_INVALID_ARGUMENT, "adapter", "%s is missing", name);
    if (e->dtype != TPO_F32)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "adapter", "%s: dtype %s, F32 is needed", name, tpo_dtype_name(e->dtype));
    if (e->n_dims != 2 || e->shape[0] != item->shape[0] || e->shape[1] != item->shape[1])
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "adapter", "%s: the shape is not (%lld, %lld)", name, (long long)item->shape[0],
                        (long long)item->shape[1]);
    return TPO_OK;
}

/* Every tensor that the model's LoRA needs is in the adapter, and nothing else is. */
static int adapter_check(const struct tpo_params *p, const struct tpo_safetensors *adapter, struct tpo_error *err)
{
    char name[TPO_NAME_MAX];
    int n = 0, rc = TPO_OK;
    for (int i = 0; i < p->n && rc == TPO_OK; i++) {
        if (!peft_name(name, p->items[i]->name)) continue;
        rc = entry_check(p->items[i], name, tpo_safetensors_find(adapter, name), err);
        n++;
    }
    for (int k = 0; k < adapter->n && rc == TPO_OK && adapter->n != n; k++) {
        bool known = false;
        for (int i = 0; i < p->n && !known; i++)
            known = peft_name(name, p->items[i]->name) && strcmp(name, adapter->items[k].name) == 0;
        if (!known)
            rc = tpo_fail(err, TPO_INVALID_ARGUMENT, "adapter", "%.100s is extra: the model has no such LoRA",
                          adapter->items[k].name);
    }
    return rc;
}

static int merged_write(const char *dir, const struct tpo_safetensors *files, const struct tpo_safetensors *adapter,
                        struct tpo_error *err)
{
    char path[4096], name[TPO_NAME_MAX];
    struct tpo_entry *entries = calloc((size_t)files->n, sizeof(*entries));
    if (entries == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the list of tensors");
    for (int i = 0; i < files->n; i++) {
        const struct tpo_entry *new = peft_name(name, files->items[i].name) ? tpo_safetensors_find(adapter, name) : NULL;
        entries[i] = new != NULL ? *new : files->items[i];
        entries[i].name = files->items[i].name;
    }
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    const int rc = tpo_safetensors_write(path, entries, files->n, err);
    free(entries);
    return rc;
}

struct merging {
    const char *model;
    const struct tpo_safetensors *files, *lora;
};

static int merged_put(void *owner, const char *part, struct tpo_error *err)
{
    const struct merging *m = owner;
    int rc = tpo_model_folder_companions(part, m->model, err);
    if (rc == TPO_OK) rc = merged_write(part, m->files, m->lora, err);
    return rc == TPO_OK ? tpo_model_folder_manifest(part, err) : rc;
}

int tpo_peft_import(const char *dir, const char *model, const char *adapter, struct tpo_error *err)
{
    char path[4096];
    struct tpo_config c;
    struct tpo_params p = {0};
    struct tpo_safetensors *files = NULL, *lora = NULL;
    snprintf(path, sizeof(path), "%s/adapter_model.safetensors", adapter);
    int rc = model_open(&c, &p, &files, model, err);
    if (rc == TPO_OK) rc = tpo_peft_config_check(adapter, &c, &p, err);
    if (rc == TPO_OK) rc = tpo_safetensors_open(&lora, path, err);
    if (rc == TPO_OK) rc = adapter_check(&p, lora, err);
    if (rc == TPO_OK) rc = tpo_model_folder_vacant(dir, err);
    struct merging m = {model, files, lora};
    if (rc == TPO_OK) rc = tpo_model_folder_fill(dir, merged_put, &m, err);
    tpo_safetensors_close(lora);
    tpo_safetensors_close(files);
    tpo_params_free(&p, NULL);
    return rc;
}
