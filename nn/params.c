/* This file owns a service's list of tensors: declaring, finding, loading from a folder, freeing. */
#include "nn/params.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/prefixes.h"
#include "common/safetensors.h"
#include "kernels/vector.h"
#include "nn/params_init.h"

#define ALIGNMENT 64

struct tpo_params_memory {
    struct tpo_safetensors *files;
    float **blocks; /* of the device, one per tensor that could not stay in its file */
    int n_blocks;
    bool failed; /* a declare ran out of memory */
};

static struct tpo_params_memory *memory_of(struct tpo_params *p)
{
    if (p->memory == NULL) p->memory = calloc(1, sizeof(*p->memory));
    return p->memory;
}

static int append(struct tpo_params *p, struct tpo_param *item)
{
    struct tpo_param **grown = realloc(p->items, (size_t)(p->n + 1) * sizeof(*grown));
    if (grown == NULL) return TPO_ENOMEM;
    p->items = grown;
    p->items[p->n++] = item;
    return TPO_OK;
}

struct tpo_param *tpo_params_declare(struct tpo_params *p, enum tpo_init init, float scale, const int64_t *shape,
                                     const char *name_format, ...)
{
    struct tpo_params_memory *m = memory_of(p);
    struct tpo_param *item = m != NULL ? calloc(1, sizeof(*item)) : NULL;
    if (item == NULL || append(p, item) != TPO_OK) {
        if (m != NULL) m->failed = true;
        free(item);
        return NULL;
    }
    va_list args;
    va_start(args, name_format);
    int length = vsnprintf(item->name, sizeof(item->name), name_format, args);
    va_end(args);
    TPO_ASSERT(length > 0 && (size_t)length < sizeof(item->name));
    item->size = 1;
    for (; shape[item->n_dims] != 0; item->n_dims++) {
        TPO_ASSERT(item->n_dims < TPO_DIMS_MAX && shape[item->n_dims] > 0);
        item->shape[item->n_dims] = shape[item->n_dims];
        item->size *= shape[item->n_dims];
    }
    item->init = init;
    item->scale = scale;
    return item;
}

struct tpo_param *tpo_param_of_product(struct tpo_param *p)
{
    if (p != NULL) p->product = true;
    return p;
}

int tpo_params_n_half(const struct tpo_params *p)
{
    int n = 0;
    for (int i = 0; i < p->n; i++) n += p->items[i]->half != NULL;
    return n;
}

bool tpo_param_held(const struct tpo_param *p)
{
    return p->data != NULL || p->half != NULL;
}

int tpo_param_read(const struct tpo_param *p, struct tpo_stream *s, float *to)
{
    return p->data != NULL ? tpo_scale(s, to, 1.0f, p->data, p->size) : tpo_bf16_to_f32(s, to, p->half, p->size);
}

int tpo_param_piece(const struct tpo_param *p, struct tpo_stream *s, int64_t at, int64_t n, float *host)
{
    const size_t bytes = sizeof(*host) * (size_t)n;
    float *wide = p->data == NULL ? tpo_device_alloc(s, bytes) : NULL;
    int rc = p->data != NULL || wide != NULL ? TPO_OK : TPO_ENOMEM;
    if (rc == TPO_OK && wide != NULL) rc = tpo_bf16_to_f32(s, wide, p->half + at, n);
    if (rc == TPO_OK) rc = tpo_copy_out(s, host, wide != NULL ? wide : p->data + at, bytes);
    if (rc == TPO_OK) rc = tpo_stream_wait(s);
    tpo_device_free(s, wide);
    return rc;
}

struct tpo_weight tpo_param_weight(const struct tpo_param *p)
{
    return p->data == NULL ? tpo_bf16(p->half) : tpo_f32(p->data);
}

bool tpo_param_is_aid(const struct tpo_param *p)
{
    static const char *const prefixes[] = {"ext.encoder.dense.", "ext.router.slot."};
    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++)
        if (strncmp(p->name, prefixes[i], strlen(prefixes[i])) == 0) return true;
    return false;
}

struct tpo_param *tpo_params_find(const struct tpo_params *p, const char *name)
{
    for (int i = 0; i < p->n; i++)
        if (strcmp(p->items[i]->name, name) == 0) return p->items[i];
    return NULL;
}

bool tpo_param_is_integer(const struct tpo_param *p)
{
    static const char suffix[] = ".position_ids";
    size_t n = strlen(p->name);
    return n >= sizeof(suffix) && strcmp(p->name + n - (sizeof(suffix) - 1), suffix) == 0;
}

static float *block_add(struct tpo_params *p, struct tpo_stream *s, int64_t n)
{
    struct tpo_params_memory *m = memory_of(p);
    float **grown = m != NULL ? realloc(m->blocks, (size_t)(m->n_blocks + 1) * sizeof(*grown)) : NULL;
    if (grown == NULL) return NULL;
    m->blocks = grown;
    float *block = tpo_device_alloc(s, (size_t)n * sizeof(float));
    if (block != NULL) m->blocks[m->n_blocks++] = block;
    return block;
}

/* Converts the n elements at `raw`, memory of the device, into y. */
static int convert(struct tpo_stream *s, float *y, const void *raw, int dtype, int64_t n)
{
    if (dtype == TPO_BF16) return tpo_bf16_to_f32(s, y, raw, n);
    return tpo_f16_to_f32(s, y, raw, n);
}

/* Half-width data on another device: raw bytes go there first. */
static int convert_staged(struct tpo_stream *s, float *y, const struct tpo_entry *e)
{
    void *raw = tpo_device_alloc(s, e->size_bytes);
    int rc = raw != NULL ? tpo_copy_in(s, raw, e->data, e->size_bytes) : TPO_ENOMEM;
    if (rc == TPO_OK) rc = convert(s, y, raw, e->dtype, e->size);
    if (rc == TPO_OK) rc = tpo_stream_wait(s);
    tpo_device_free(s, raw);
    return rc;
}

static int fill(struct tpo_params *p, struct tpo_stream *s, struct tpo_param *item, const struct tpo_entry *e)
{
    bool cpu = strcmp(tpo_stream_device_name(s), "cpu") == 0;
    if (item->ignored) return TPO_OK;
    if (p->keep_half && item->product && e->dtype == TPO_BF16 && (uintptr_t)e->data % sizeof(uint16_t) == 0) {
        float *half = cpu ? NULL : block_add(p, s, (item->size + 1) / 2);
        item->half = cpu ? e->data : (const uint16_t *)half;
        if (cpu) return TPO_OK;
        return half != NULL ? tpo_copy_in(s, half, e->data, e->size_bytes) : TPO_ENOMEM;
    }
    if (cpu && e->dtype == TPO_F32 && (uintptr_t)e->data % ALIGNMENT == 0) {
        item->data = (float *)e->data; /* read only: what trains copies its weights first */
        return TPO_OK;
    }
    item->data = block_add(p, s, item->size);
    if (item->data == NULL) return TPO_ENOMEM;
    if (e->dtype == TPO_F32) return tpo_copy_in(s, item->data, e->data, e->size_bytes);
    if (cpu && (uintptr_t)e->data % tpo_dtype_size(e->dtype) == 0) return convert(s, item->data, e->data, e->dtype, e->size);
    return convert_staged(s, item->data, e);
}

/* NULL, or what separates the file's tensor from the schema's. */
static const char *mismatch(const struct tpo_param *item, const struct tpo_entry *e)
{
    if (e->n_dims != item->n_dims) return "has the wrong shape";
    for (int i = 0; i < e->n_dims; i++)
        if (e->shape[i] != item->shape[i]) return "has the wrong shape";
    bool fits =
        tpo_param_is_integer(item) ? e->dtype == TPO_I64 : e->dtype == TPO_F32 || e->dtype == TPO_BF16 || e->dtype == TPO_F16;
    return fits ? NULL : "has the wrong dtype";
}

static void shape_text(char *out, size_t size, const int64_t *shape, int n_dims)
{
    size_t used = (size_t)snprintf(out, size, "[");
    for (int i = 0; i < n_dims && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%lld", i > 0 ? "," : "", (long long)shape[i]);
    if (used < size) snprintf(out + used, size - used, "]");
}

int tpo_params_match(const struct tpo_params *p, const struct tpo_safetensors *files, const char *stage,
                     int (*on_fault)(void *owner, const char *text), void *owner)
{
    char text[512], have[96], want[96];
    int rc = TPO_OK;
    for (int i = 0; i < p->n && rc == TPO_OK; i++) {
        const struct tpo_entry *e = tpo_safetensors_find(files, p->items[i]->name);
        const char *wrong = e != NULL ? mismatch(p->items[i], e) : tpo_param_is_aid(p->items[i]) ? NULL : "is missing";
        if (wrong == NULL) continue;
        shape_text(want, sizeof(want), p->items[i]->shape, p->items[i]->n_dims);
        if (e != NULL) shape_text(have, sizeof(have), e->shape, e->n_dims);
        snprintf(text, sizeof(text), "%s %s: %s %s, the config asks for %s", p->items[i]->name, wrong,
                 e != NULL ? tpo_dtype_name(e->dtype) : "nothing", e != NULL ? have : "there", want);
        rc = on_fault(owner, text);
    }
    for (int i = 0; i < files->n && rc == TPO_OK; i++) {
        const char *owns = tpo_prefix_owner(files->items[i].name);
        bool mine = owns != NULL && strcmp(owns, stage) == 0;
        if (owns != NULL && (!mine || tpo_params_find(p, files->items[i].name) != NULL)) continue;
        snprintf(text, sizeof(text), "%s is extra: %s", files->items[i].name,
                 mine ? "the config builds no such tensor" : "no service owns this name");
        rc = on_fault(owner, text);
    }
    return rc;
}

/* Its first values, in memory of its own. */
static int draw(struct tpo_params *p, struct tpo_stream *s, struct tpo_param *item, uint64_t seed)
{
    float *host = malloc((size_t)item->size * sizeof(float));
    item->data = host != NULL ? block_add(p, s, item->size) : NULL;
    int rc = item->data != NULL ? tpo_param_init(host, item, seed) : TPO_ENOMEM;
    if (rc == TPO_OK) rc = tpo_copy_in(s, item->data, host, (size_t)item->size * sizeof(float));
    if (rc == TPO_OK) rc = tpo_stream_wait(s);
    free(host);
    return rc;
}

int tpo_params_fail_at_first(void *err, const char *text)
{
    return tpo_fail(err, TPO_FAILED_PRECONDITION, "weights", "%s", text);
}

int tpo_params_load(struct tpo_params *p, struct tpo_stream *s, const char *folder, const char *stage, struct tpo_error *err)
{
    struct tpo_error local;
    struct tpo_params_memory *m = memory_of(p);
    if (err == NULL) err = &local;
    if (m == NULL || m->failed) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the list of tensors");
    int rc = tpo_safetensors_open_stage(&m->files, folder, stage, err);
    if (rc == TPO_OK) rc = tpo_params_match(p, m->files, stage, tpo_params_fail_at_first, err);
    for (int i = 0; i < p->n && rc == TPO_OK; i++) {
        const struct tpo_entry *e = tpo_safetensors_find(m->files, p->items[i]->name);
        rc = e != NULL ? fill(p, s, p->items[i], e) : draw(p, s, p->items[i], 1);
        if (rc != TPO_OK) tpo_fail(err, rc, "memory", "no memory for %s", p->items[i]->name);
    }
    return rc;
}

int tpo_params_random(struct tpo_params *p, struct tpo_stream *s, uint64_t seed, struct tpo_error *err)
{
    struct tpo_params_memory *m = memory_of(p);
    int rc = m != NULL && !m->failed ? TPO_OK : TPO_ENOMEM;
    for (int i = 0; i < p->n && rc == TPO_OK; i++)
        if (!p->items[i]->ignored) rc = draw(p, s, p->items[i], seed);
    return rc == TPO_OK ? TPO_OK : tpo_fail(err, rc, "memory", "no memory for random weights");
}

void tpo_params_free(struct tpo_params *p, struct tpo_stream *s)
{
    if (p == NULL) return;
    for (int i = 0; i < p->n; i++) free(p->items[i]);
    free(p->items);
    if (p->memory != NULL) {
        for (int i = 0; i < p->memory->n_blocks; i++) tpo_device_free(s, p->memory->blocks[i]);
        tpo_safetensors_close(p->memory->files);
        free(p->memory->blocks);
        free(p->memory);
    }
    memset(p, 0, sizeof(*p));
}
