/* This file owns the writing of model folders. */
#include "trainer/model_folder.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/files.h"
#include "common/safetensors.h"
#include "common/sha256.h"
#include "kernels/vector.h"
#include "nn/config.h"
#include "nn/params.h"
#include "nn/params_init.h"
#include "services/encoder/encoder.h"
#include "services/region/region.h"
#include "services/router/router.h"
#include "trainer/shards.h"
#include "trainer/tensor_list.h"

#define N_STAGES 3 /* encoder, router, region */
#define OTHERS   N_STAGES
static const char *const companions[] = {"config.json", "added_tokens.json", "tokenizer.model"};

static int copy_file(const char *to_dir, const char *from_dir, const char *name, struct tpo_error *err)
{
    char from[4096], to[4096], block[65536];
    size_t n;
    snprintf(from, sizeof(from), "%s/%s", from_dir, name);
    snprintf(to, sizeof(to), "%s/%s", to_dir, name);
    FILE *in = tpo_open_file(from);
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

/* --- the list of tensors ------------------------------------------------------------------------------------------------------------------- */

/* What a folder is made of: the schemas of the services and, with random weights, what tensors.txt lists beside them; and where the values come
 * from. */
struct folder {
    struct tpo_params schemas[N_STAGES + 1];
    struct tpo_entry *entries;      /* (n) */
    const struct tpo_param **items; /* (n) */
    int n;
    const char *dir;              /* its companions are taken */
    struct tpo_safetensors *from; /* NULL: random, from seed */
    uint64_t seed;
    float *whole; /* of the tensor `whole_of`, whose values cannot be drawn one by one */
    int whole_of;
};

static int schemas_declare(struct folder *f, const struct tpo_config *c, const char *from, struct tpo_error *err)
{
    tpo_encoder_schema(&f->schemas[0], c, 0);
    tpo_router_schema(&f->schemas[1], c, 0);
    tpo_region_schema(&f->schemas[2], c);
    /* A folder holds what no service reads, too (the connector's text path): only position_ids are made up here. */
    for (int k = 0; k < N_STAGES; k++)
        for (int i = 0; i < f->schemas[k].n; i++) f->schemas[k].items[i]->ignored = tpo_param_is_integer(f->schemas[k].items[i]);
    return f->from == NULL ? tpo_tensor_list_read(&f->schemas[OTHERS], f->schemas, N_STAGES, from, err) : TPO_OK;
}

static struct tpo_entry entry_of(const struct tpo_param *item, enum tpo_dtype dtype)
{
    struct tpo_entry e = {
        .name = item->name, .dtype = item->ignored ? TPO_I64 : (int)dtype, .n_dims = item->n_dims, .size = item->size};
    for (int i = 0; i < item->n_dims; i++) e.shape[i] = item->shape[i];
    e.size_bytes = (size_t)item->size * tpo_dtype_size(e.dtype);
    return e;
}

/* A checkpoint also holds tensors of training's aids, which the serving schema calls extra: what the schema asks for is kept. */
static int check_source(const struct folder *f, const struct tpo_param *item, struct tpo_error *err)
{
    const struct tpo_entry *e = tpo_safetensors_find(f->from, item->name);
    if (item->ignored) return TPO_OK;
    if (e == NULL || e->size != item->size)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "weights", "%s: %s", item->name, e == NULL ? "missing" : "the wrong size");
    if (e->dtype == TPO_F32 || e->dtype == TPO_BF16) return TPO_OK;
    return tpo_fail(err, TPO_FAILED_PRECONDITION, "weights", "%s: dtype %s, F32 or BF16 is read here", item->name,
                    tpo_dtype_name(e->dtype));
}

static int folder_open(struct folder *f, const char *from, int random, uint64_t seed, enum tpo_dtype dtype, struct tpo_error *err)
{
    struct tpo_config config;
    int total = 0, rc = tpo_config_load(&config, from, err);
    *f = (struct folder){.dir = from, .seed = seed, .whole_of = -1};
    if (rc == TPO_OK && !random) rc = tpo_safetensors_open(&f->from, from, err);
    if (rc == TPO_OK) rc = schemas_declare(f, &config, from, err);
    for (int k = 0; k <= OTHERS; k++) total += f->schemas[k].n;
    f->entries = calloc((size_t)total + 1, sizeof(*f->entries));
    f->items = calloc((size_t)total + 1, sizeof(*f->items));
    if (f->entries == NULL || f->items == NULL) rc = tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the list of tensors");
    for (int k = 0; k <= OTHERS && rc == TPO_OK; k++)
        for (int i = 0; i < f->schemas[k].n && rc == TPO_OK; i++) {
            f->items[f->n] = f->schemas[k].items[i];
            f->entries[f->n++] = entry_of(f->schemas[k].items[i], dtype);
            if (!random) rc = check_source(f, f->schemas[k].items[i], err);
        }
    return rc;
}

static void folder_close(struct folder *f)
{
    for (int k = 0; k <= OTHERS; k++) tpo_params_free(&f->schemas[k], NULL);
    tpo_safetensors_close(f->from);
    free(f->entries);
    free(f->items);
    free(f->whole);
}

/* --- values ---------------------------------------------------------------------------------------------------------------------------------- */

/* Values first to first + n - 1 of a tensor of the source folder, in the dtype asked for. */
static int convert(struct tpo_stream *s, void *out, int dtype, const struct tpo_entry *e, int64_t first, int64_t n)
{
    float values[TPO_SHARDS_GRAIN]; /* a file aligns its tensors to nothing */
    memcpy(e->dtype == dtype ? out : values, (const uint8_t *)e->data + (size_t)first * tpo_dtype_size(e->dtype),
           (size_t)n * tpo_dtype_size(e->dtype));
    if (e->dtype == dtype) return TPO_OK;
    return dtype == TPO_BF16 ? tpo_f32_to_bf16(s, out, values, n) : tpo_bf16_to_f32(s, out, (const uint16_t *)values, n);
}

static int draw(struct folder *f, struct tpo_stream *s, void *out, int i, int64_t first, int64_t n)
{
    float values[TPO_SHARDS_GRAIN];
    const bool f32 = f->entries[i].dtype == TPO_F32;
    const float *from = f->whole_of == i ? f->whole + first : values;
    if (f->whole_of != i)
        tpo_param_init_piece(f32 ? out : values, f->items[i], f->seed, first, n);
    else if (f32)
        memcpy(out, from, (size_t)n * sizeof(*from));
    return f32 ? TPO_OK : tpo_f32_to_bf16(s, out, from, n);
}

static int make(void *owner, struct tpo_stream *s, void *out, int i, int64_t first, int64_t n)
{
    struct folder *f = owner;
    if (f->items[i]->ignored) {
        /* position_ids: 0, 1, 2, ... as BERT stores them. */
        for (int64_t k = 0; k < n; k++) ((int64_t *)out)[k] = first + k;
        return TPO_OK;
    }
    if (f->from != NULL) return convert(s, out, f->entries[i].dtype, tpo_safetensors_find(f->from, f->entries[i].name), first, n);
    return draw(f, s, out, i, first, n);
}

/* An orthogonal matrix is drawn whole, before its first piece. */
static int begin(void *owner, int i)
{
    struct folder *f = owner;
    if (f->from != NULL || f->items[i]->ignored || !tpo_param_init_whole(f->items[i])) return TPO_OK;
    free(f->whole);
    f->whole_of = i;
    f->whole = malloc((size_t)f->items[i]->size * sizeof(*f->whole));
    return f->whole != NULL ? tpo_param_init(f->whole, f->items[i], f->seed) : TPO_ENOMEM;
}

/* --- the folder ------------------------------------------------------------------------------------------------------------------------------ */

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

/* Moves every file of `part` to `dir`, or removes them; then `part` itself. */
static int settle(const char *part, const char *dir, struct tpo_error *err)
{
    char from[4200], to[4200];
    int rc = TPO_OK;
    DIR *d = opendir(part);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        snprintf(from, sizeof(from), "%.3900s/%.255s", part, e->d_name);
        snprintf(to, sizeof(to), "%.3900s/%.255s", dir != NULL ? dir : "", e->d_name);
        if (dir == NULL)
            unlink(from);
        else if (rename(from, to) != 0)
            rc = tpo_fail(err, TPO_FAILED_PRECONDITION, "model_folder", "%s: %s", to, strerror(errno));
    }
    if (d != NULL) closedir(d);
    rmdir(part);
    return rc;
}

int tpo_model_folder_vacant(const char *dir, struct tpo_error *err)
{
    static const char *const weights[] = {"model.safetensors", "model.safetensors.index.json"};
    char path[4200];
    for (size_t i = 0; i < sizeof(weights) / sizeof(weights[0]); i++) {
        snprintf(path, sizeof(path), "%.4000s/%s", dir, weights[i]);
        if (access(path, F_OK) == 0) return tpo_fail(err, TPO_ALREADY_EXISTS, "model_folder", "%s is there already", path);
    }
    return TPO_OK;
}

int tpo_model_folder_fill(const char *dir, int (*write)(void *owner, const char *part, struct tpo_error *err), void *owner,
                          struct tpo_error *err)
{
    char part[4100];
    const bool made = mkdir(dir, 0755) == 0;
    if (!made && errno != EEXIST) return tpo_fail(err, TPO_FAILED_PRECONDITION, "model_folder", "%s: %s", dir, strerror(errno));
    snprintf(part, sizeof(part), "%.4000s/.part", dir);
    settle(part, NULL, NULL); /* of a run that was killed */
    int rc =
        mkdir(part, 0755) == 0 ? TPO_OK : tpo_fail(err, TPO_FAILED_PRECONDITION, "model_folder", "%s: %s", part, strerror(errno));
    if (rc == TPO_OK) rc = write(owner, part, err);
    if (rc == TPO_OK) rc = settle(part, dir, err);
    if (rc == TPO_OK) return TPO_OK;
    settle(part, NULL, NULL);
    if (made) rmdir(dir);
    return rc;
}

static int folder_put(void *owner, const char *part, struct tpo_error *err)
{
    struct folder *f = owner;
    const struct tpo_shards shards = {
        .tensors = f->entries, .n = f->n, .shard_bytes = TPO_SHARD_BYTES, .begin = begin, .make = make, .owner = f};
    const int rc = tpo_model_folder_companions(part, f->dir, err);
    return rc == TPO_OK ? tpo_shards_write(part, &shards, err) : rc;
}

int tpo_model_folder_write(const char *dir, const char *from, int random, uint64_t seed, enum tpo_dtype dtype,
                           struct tpo_error *err)
{
    struct folder f;
    int rc = tpo_model_folder_vacant(dir, err);
    if (rc != TPO_OK) return rc;
    rc = folder_open(&f, from, random, seed, dtype, err);
    if (rc == TPO_OK) rc = tpo_model_folder_fill(dir, folder_put, &f, err);
    folder_close(&f);
    return rc;
}
