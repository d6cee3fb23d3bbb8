/* This file owns the passage of a learner's state through a file, piece by piece. */
#include "trainer/steps/shard.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/arena.h"
#include "common/log.h"
#include "common/safetensors.h"

/* --- writing ------------------------------------------------------------------------------------------------------------------------- */

struct contents {
    struct tpo_entry *entries;
    int n, capacity;
    struct tpo_arena names;
};

static void contents_free(struct contents *c)
{
    free(c->entries);
    tpo_arena_free(&c->names);
}

static int contents_add(struct contents *c, const struct tpo_chunk *x)
{
    if (c->n == c->capacity) {
        const int capacity = c->capacity * 2 + 64;
        struct tpo_entry *grown = realloc(c->entries, sizeof(*grown) * (size_t)capacity);
        if (grown == NULL) return TPO_ENOMEM;
        c->entries = grown;
        c->capacity = capacity;
    }
    const size_t length = strlen(x->part) + strlen(x->name) + 2;
    char *name = tpo_arena_alloc(&c->names, length);
    if (name == NULL) return TPO_ENOMEM;
    snprintf(name, length, "%s/%s", x->part, x->name);
    struct tpo_entry *e = &c->entries[c->n++];
    *e = (struct tpo_entry){.name = name, .dtype = TPO_F32, .n_dims = x->n_dims, .size = 1};
    for (int i = 0; i < x->n_dims; i++) e->size *= e->shape[i] = x->shape[i];
    e->size_bytes = (size_t)e->size * sizeof(float);
    return TPO_OK;
}

/* The names and shapes alone, which a safetensors header needs before any data. */
static int contents_ask(struct contents *c, struct tpo_learner *l, struct tpo_error *err)
{
    for (int at = 0;; at++) {
        struct tpo_chunk x;
        int rc = l->export_state(l->self, at, 0, 0, &x, err);
        if (rc != TPO_OK || x.name == NULL) return rc;
        if (contents_add(c, &x) != TPO_OK)
            return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the list of %s's tensors", l->service);
    }
}

static int data_write(struct tpo_safetensors_writer *w, struct tpo_learner *l, const struct contents *c, struct tpo_error *err)
{
    int rc = TPO_OK;
    for (int at = 0; at < c->n; at++)
        for (int64_t offset = 0; offset < c->entries[at].size && rc == TPO_OK;) {
            struct tpo_chunk x;
            rc = l->export_state(l->self, at, offset, TPO_CHUNK_ELEMENTS, &x, err);
            if (rc == TPO_OK && (x.name == NULL || x.count <= 0))
                rc = tpo_fail(err, TPO_INTERNAL, "checkpoint", "%s ended before %s was whole", l->service, c->entries[at].name);
            if (rc == TPO_OK) rc = tpo_safetensors_put(w, x.data, sizeof(float) * (size_t)x.count, err);
            if (rc == TPO_OK) offset += x.count;
        }
    return rc;
}

int tpo_shard_write(const char *path, struct tpo_learner *l, struct tpo_error *err)
{
    struct contents c = {0};
    struct tpo_safetensors_writer *w = NULL;
    tpo_arena_init(&c.names, 16384, 0);
    int rc = contents_ask(&c, l, err);
    if (rc == TPO_OK) rc = tpo_safetensors_create(&w, path, c.entries, c.n, err);
    if (rc == TPO_OK) {
        rc = data_write(w, l, &c, err);
        if (rc == TPO_OK)
            rc = tpo_safetensors_finish(w, err);
        else
            tpo_safetensors_abandon(w);
    }
    contents_free(&c);
    return rc;
}

/* --- reading ------------------------------------------------------------------------------------------------------------------------- */

static int entry_send(const char *path, const struct tpo_entry *e, struct tpo_learner *l, uint64_t version, struct tpo_error *err)
{
    const char *slash = strchr(e->name, '/');
    char part[16];
    if (slash == NULL || slash - e->name >= (long)sizeof(part) || e->dtype != TPO_F32 || e->n_dims > TPO_DIMS_MAX)
        return tpo_fail(err, TPO_DATA_LOSS, "checkpoint", "%.120s: \"%.60s\" is no part of a checkpoint", path, e->name);
    snprintf(part, sizeof(part), "%.*s", (int)(slash - e->name), e->name);
    struct tpo_chunk x = {.name = slash + 1, .part = part, .n_dims = e->n_dims};
    for (int k = 0; k < e->n_dims; k++) x.shape[k] = e->shape[k];
    int rc = TPO_OK;
    for (; x.offset < e->size && rc == TPO_OK; x.offset += x.count) {
        x.count = e->size - x.offset < TPO_CHUNK_ELEMENTS ? e->size - x.offset : TPO_CHUNK_ELEMENTS;
        x.data = (const float *)e->data + x.offset;
        rc = l->import_state(l->self, version, &x, err);
    }
    return rc;
}

int tpo_shard_read(const char *path, struct tpo_learner *l, uint64_t version, struct tpo_error *err)
{
    struct tpo_safetensors *files = NULL;
    int rc = tpo_safetensors_open(&files, path, err);
    for (int i = 0; rc == TPO_OK && i < files->n; i++) rc = entry_send(path, &files->items[i], l, version, err);
    tpo_safetensors_close(files);
    return rc;
}

/* --- the start and the end of a stage -------------------------------------------------------------------------------------------------- */

/* What a start is read by: a piece of a tensor at a time, as f32, also where it stays BF16. */
struct start {
    struct tpo_stream *stream;
    float *piece; /* TPO_CHUNK_ELEMENTS */
};

static int start_open(struct start *s, struct tpo_stream *stream)
{
    *s = (struct start){stream, malloc(sizeof(*s->piece) * TPO_CHUNK_ELEMENTS)};
    return s->piece != NULL ? TPO_OK : TPO_ENOMEM;
}

static bool start_has(const struct tpo_param *p)
{
    return !p->ignored && tpo_param_held(p);
}

/* The piece that begins at `at`; returns its length, negative where it cannot be read. */
static int64_t start_read(const struct start *s, const struct tpo_param *p, int64_t at)
{
    const int64_t n = p->size - at < TPO_CHUNK_ELEMENTS ? p->size - at : TPO_CHUNK_ELEMENTS;
    return tpo_param_piece(p, s->stream, at, n, s->piece) == TPO_OK ? n : -1;
}

static int start_hash(const struct start *s, const struct tpo_param *p, tpo_sha256_t *h)
{
    for (int64_t at = 0, n; at < p->size; at += n) {
        n = start_read(s, p, at);
        if (n < 0) return TPO_ENOMEM;
        tpo_sha256_add(h, s->piece, sizeof(*s->piece) * (size_t)n);
    }
    return TPO_OK;
}

static int unreadable(struct tpo_error *err)
{
    return tpo_fail(err, TPO_ENOMEM, "memory", "the start of the stage cannot be read");
}

static int start_held(const struct start *s, const struct tpo_param *p, const struct tpo_chunk *x, struct tpo_learner *l,
                      bool *held, struct tpo_error *err)
{
    uint8_t digest[TPO_SHA256_BYTES];
    *held = false;
    if (l->holds == NULL) return TPO_OK;
    tpo_sha256_t *h = tpo_sha256_open();
    const int rc = start_hash(s, p, h);
    tpo_sha256_end(h, digest);
    tpo_sha256_close(h);
    return rc == TPO_OK ? l->holds(l->self, x, digest, held, err) : unreadable(err);
}

static int tensor_send(const struct start *s, const struct tpo_param *p, struct tpo_chunk *x, struct tpo_learner *l,
                       struct tpo_error *err)
{
    int rc = TPO_OK;
    for (; x->offset < p->size && rc == TPO_OK; x->offset += x->count) {
        x->count = start_read(s, p, x->offset);
        if (x->count < 0) return unreadable(err);
        x->data = s->piece;
        rc = l->import_state(l->self, 0, x, err);
    }
    return rc;
}

int tpo_start_send(struct tpo_stream *stream, const struct tpo_params *params, struct tpo_learner *l, struct tpo_error *err)
{
    struct start s;
    int rc = start_open(&s, stream) == TPO_OK ? TPO_OK : unreadable(err), n = 0, n_sent = 0;
    for (int i = 0; i < params->n && rc == TPO_OK; i++) {
        const struct tpo_param *p = params->items[i];
        struct tpo_chunk x = {.name = p->name, .part = "start", .n_dims = p->n_dims};
        bool held;
        if (!start_has(p)) continue;
        memcpy(x.shape, p->shape, sizeof(x.shape));
        rc = start_held(&s, p, &x, l, &held, err);
        n++;
        n_sent += !held;
        if (rc == TPO_OK && !held) rc = tensor_send(&s, p, &x, l, err);
    }
    free(s.piece);
    if (rc == TPO_OK) tpo_log(TPO_LOG_INFO, "start", "of=%s tensors=%d sent=%d", l->service, n, n_sent);
    return rc == TPO_OK ? l->import_state(l->self, 0, NULL, err) : rc;
}

int tpo_start_digest(char out[TPO_SHA256_HEX], struct tpo_stream *stream, struct tpo_model *const *models, int n_models,
                     struct tpo_error *err)
{
    uint8_t digest[TPO_SHA256_BYTES];
    struct start s;
    tpo_sha256_t *h = tpo_sha256_open();
    int rc = start_open(&s, stream);
    for (int k = 0; k < n_models; k++)
        for (int i = 0; i < models[k]->params->n && rc == TPO_OK; i++) {
            const struct tpo_param *p = models[k]->params->items[i];
            if (!start_has(p)) continue;
            tpo_sha256_add(h, p->name, strlen(p->name) + 1);
            tpo_sha256_add(h, p->shape, sizeof(p->shape[0]) * (size_t)p->n_dims);
            rc = start_hash(&s, p, h);
        }
    tpo_sha256_end(h, digest);
    tpo_sha256_hex(out, digest);
    tpo_sha256_close(h);
    free(s.piece);
    return rc == TPO_OK ? TPO_OK : unreadable(err);
}
