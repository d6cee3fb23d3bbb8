/* This file owns the writing of model folders. */
#include "trainer/model_folder.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/safetensors.h"
#include "common/sha256.h"
#include "kernels/vector.h"
#include "nn/config.h"
#include "nn/params.h"
#include "services/encoder/encoder.h"
#include "services/region/region.h"
#include "services/router/router.h"

#define N_STAGES 3
static const char *const stages[N_STAGES] = {"encoder", "router", "region"};
static const char *const companions[] = {"config.json", "added_tokens.json", "tokenizer.model"};

static int copy_file(const char *to_dir, const char *from_dir, const char *name, struct tpo_error *err)
{
    char from[4096], to[4096], block[65536];
    size_t n;
    snprintf(from, sizeof(from), "%s/%s", from_dir, name);
    snprintf(to, sizeof(to), "%s/%s", to_dir, name);
    FILE *in = fopen(from, "rb");
    if (in == NULL) return tpo_fail(err, TPO_NOT_FOUND, "model_folder", "%s: %s", from, strerror(errno));
    FILE *out = fopen(to, "wb");
    int rc = out != NULL ? TPO_OK : TPO_FAILED_PRECONDITION;
    while (rc == TPO_OK && (n = fread(block, 1, sizeof(block), in)) > 0)
        if (fwrite(block, 1, n, out) != n) rc = TPO_RESOURCE_EXHAUSTED;
    fclose(in);
    if (out != NULL && fclose(out) != 0 && rc == TPO_OK) rc = TPO_RESOURCE_EXHAUSTED;
    return rc == TPO_OK ? TPO_OK : tpo_fail(err, rc, "model_folder", "%s: %s", to, strerror(errno));
}

int tpo_model_folder_companions(const char *dir, const char *from, struct tpo_error *err)
{
    int rc = TPO_OK;
    for (size_t i = 0; i < sizeof(companions) / sizeof(companions[0]) && rc == TPO_OK; i++)
        rc = copy_file(dir, from, companions[i], err);
    return rc;
}

static void declare(struct tpo_params *p, int stage, const struct tpo_config *c)
{
    if (stage == 0) tpo_encoder_schema(p, c, 0);
    if (stage == 1) tpo_router_schema(p, c, 0);
    if (stage == 2) tpo_region_schema(p, c);
    /* A folder holds what no service reads, too (the connector's text path): only position_ids are made up here. */
    for (int i = 0; i < p->n; i++) p->items[i]->ignored = tpo_param_is_integer(p->items[i]);
}

/* Points entry e at the values of `item` in `dtype`; a converted copy goes to *copy, which the caller frees. */
static int entry_fill(struct tpo_entry *e, void **copy, struct tpo_stream *s, const struct tpo_param *item, enum tpo_dtype dtype)
{
    memset(e, 0, sizeof(*e));
    e->name = item->name;
    e->dtype = item->ignored ? TPO_I64 : (int)dtype;
    e->n_dims = item->n_dims;
    e->size = item->size;
    for (int i = 0; i < item->n_dims; i++) e->shape[i] = item->shape[i];
    e->size_bytes = (size_t)item->size * tpo_dtype_size(e->dtype);
    *copy = NULL;
    if (item->ignored) {
        /* position_ids: 0, 1, 2, ... as BERT stores them. */
        int64_t *ids = *copy = malloc(e->size_bytes);
        for (int64_t i = 0; ids != NULL && i < item->size; i++) ids[i] = i;
    } else if (dtype == TPO_BF16) {
        *copy = malloc(e->size_bytes);
        if (*copy != NULL) tpo_f32_to_bf16(s, *copy, item->data, item->size);
    } else {
        e->data = item->data;
        return TPO_OK;
    }
    e->data = *copy;
    return *copy != NULL ? TPO_OK : TPO_ENOMEM;
}

static int write_tensors(const char *dir, struct tpo_stream *s, const struct tpo_params *p, enum tpo_dtype dtype,
                         struct tpo_error *err)
{
    char path[4096];
    int n = 0, total = 0;
    for (int k = 0; k < N_STAGES; k++) total += p[k].n;
    struct tpo_entry *entries = calloc((size_t)total, sizeof(*entries));
    void **copies = calloc((size_t)total, sizeof(*copies));
    int rc = entries != NULL && copies != NULL ? TPO_OK : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the list of tensors");
    for (int k = 0; k < N_STAGES && rc == TPO_OK; k++)
        for (int i = 0; i < p[k].n && rc == TPO_OK; i++, n++) {
            rc = entry_fill(&entries[n], &copies[n], s, p[k].items[i], dtype);
            if (rc != TPO_OK) tpo_fail(err, rc, "memory", "no memory for %s", p[k].items[i]->name);
        }
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    if (rc == TPO_OK) rc = tpo_safetensors_write(path, entries, n, err);
    for (int i = 0; copies != NULL && i < total; i++) free(copies[i]);
    free(copies);
    free(entries);
    return rc;
}

int tpo_model_folder_manifest(const char *dir, struct tpo_error *err)
{
    char path[4096], text[TPO_SHA256_HEX];
    uint8_t digest[TPO_SHA256_BYTES];
    struct tpo_safetensors *files = NULL;
    json_t *manifest = json_object(), *hashes = json_object();
    int rc = tpo_safetensors_open(&files, dir, err);
    for (int i = 0; rc == TPO_OK && i < files->n; i++) {
        tpo_sha256(digest, files->items[i].data, files->items[i].size_bytes);
        json_object_set_new(hashes, files->items[i].name, json_string(tpo_sha256_hex(text, digest)));
    }
    json_object_set_new(manifest, "tensors", hashes);
    snprintf(path, sizeof(path), "%s/manifest.json", dir);
    if (rc == TPO_OK && json_dump_file(manifest, path, JSON_INDENT(1)) != 0)
        rc = tpo_fail(err, TPO_FAILED_PRECONDITION, "model_folder", "%s: %s", path, strerror(errno));
    json_decref(manifest);
    tpo_safetensors_close(files);
    return rc;
}

/* A checkpoint also holds tensors of training's aids, which the serving schema calls extra: keep what the schema asks for. */
static int load(struct tpo_params *p, struct tpo_stream *s, const char *folder, struct tpo_error *err)
{
    struct tpo_safetensors *files = NULL;
    int rc = tpo_params_random(p, s, 0, err);
    if (rc == TPO_OK) rc = tpo_safetensors_open(&files, folder, err);
    for (int i = 0; i < p->n && rc == TPO_OK; i++) {
        struct tpo_param *item = p->items[i];
        const struct tpo_entry *e = tpo_safetensors_find(files, item->name);
        if (item->ignored) continue;
        if (e == NULL || e->size != item->size)
            rc = tpo_fail(err, TPO_FAILED_PRECONDITION, "weights", "%s: %s", item->name, e == NULL ? "missing" : "the wrong size");
        else if (e->dtype == TPO_F32)
            memcpy(item->data, e->data, e->size_bytes);
        else if (e->dtype == TPO_BF16)
            rc = tpo_bf16_to_f32(s, item->data, e->data, e->size);
        else
            rc = tpo_fail(err, TPO_FAILED_PRECONDITION, "weights", "%s: dtype %s, F32 or BF16 is read here", item->name,
                          tpo_dtype_name(e->dtype));
    }
    tpo_safetensors_close(files);
    return rc;
}

int tpo_model_folder_write(const char *dir, const char *from, int random, uint64_t seed, enum tpo_dtype dtype,
                           struct tpo_error *err)
{
    char path[4096];
    struct tpo_config config;
    struct tpo_params p[N_STAGES];
    struct tpo_stream *s = NULL;
    memset(p, 0, sizeof(p));
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    if (access(path, F_OK) == 0) return tpo_fail(err, TPO_ALREADY_EXISTS, "model_folder", "%s is there already", path);
    int rc = tpo_config_load(&config, from, err);
    if (rc == TPO_OK) rc = tpo_stream_open(&s, "cpu", 1, err);
    for (int k = 0; k < N_STAGES && rc == TPO_OK; k++) {
        declare(&p[k], k, &config);
        rc = random ? tpo_params_random(&p[k], s, seed, err) : load(&p[k], s, from, err);
        if (rc != TPO_OK && err != NULL) snprintf(err->stage, sizeof(err->stage), "%s", stages[k]);
    }
    if (rc == TPO_OK && mkdir(dir, 0755) != 0 && errno != EEXIST)
        rc = tpo_fail(err, TPO_FAILED_PRECONDITION, "model_folder", "%s: %s", dir, strerror(errno));
    if (rc == TPO_OK) rc = tpo_model_folder_companions(dir, from, err);
    if (rc == TPO_OK) rc = write_tensors(dir, s, p, dtype, err);
    if (rc == TPO_OK) rc = tpo_model_folder_manifest(dir, err);
    for (int k = 0; k < N_STAGES; k++) tpo_params_free(&p[k], s);
    tpo_stream_close(s);
    return rc;
}
