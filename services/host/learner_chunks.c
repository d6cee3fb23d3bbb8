/* This file owns the pieces in which tensors enter and leave a direct learner: the sums of a share (Gather, Scatter) and the state (Export,
 * Import). */
#include <stdlib.h>
#include <string.h>

#include "kernels/vector.h"
#include "services/host/learner_direct.h"

static struct tpo_chunk chunk_of(const struct tpo_param *p, const char *part, const float *data, int64_t offset, int64_t most)
{
    const int64_t left = offset < p->size ? p->size - offset : 0;
    struct tpo_chunk c = {.name = p->name, .part = part, .n_dims = p->n_dims, .offset = offset, .count = most < left ? most : left};
    memcpy(c.shape, p->shape, sizeof(c.shape));
    c.data = c.count > 0 ? data + offset : NULL;
    return c;
}

/* Whether a piece lies inside the tensor it names. */
static bool chunk_fits(const struct tpo_chunk *c, const struct tpo_param *p)
{
    bool fits =
        c->n_dims == p->n_dims && c->offset >= 0 && c->count >= 0 && c->offset <= p->size && c->count <= p->size - c->offset;
    for (int k = 0; k < p->n_dims && fits; k++) fits = c->shape[k] == p->shape[k];
    return fits;
}

static struct tpo_trainable *trainable_find(struct tpo_direct *d, const char *name)
{
    for (int i = 0; i < d->state.n; i++)
        if (strcmp(d->state.items[i].param->name, name) == 0) return &d->state.items[i];
    return NULL;
}

/* --- the sums of a share ------------------------------------------------------------------------------------------------------------- */

/* One tensor's sum to whoever gathers; who does not take it is forgotten. */
static void sum_tell(struct tpo_direct *d, struct tpo_trainable *x)
{
    int rc = tpo_learner_state_fold(&d->state, x);
    for (int64_t at = 0; at < x->param->size && rc == TPO_OK && d->sum_sink != NULL; at += TPO_CHUNK_ELEMENTS) {
        const struct tpo_chunk c = chunk_of(x->param, "gradient", x->lanes[0], at, TPO_CHUNK_ELEMENTS);
        rc = d->sum_sink(d->sum_arg, &c);
    }
    x->told = true;
    if (rc != TPO_OK) d->sum_sink = NULL;
}

void tpo_direct_on_gradient(void *self, struct tpo_param *p)
{
    struct tpo_direct *d = self;
    for (int i = 0; i < d->state.n && d->sum_sink != NULL; i++)
        if (d->state.items[i].param == p) sum_tell(d, &d->state.items[i]);
}

/* What was not told yet, and the end. */
void tpo_direct_sums_finish(struct tpo_direct *d)
{
    for (int i = 0; i < d->state.n && d->sum_sink != NULL; i++)
        if (!d->state.items[i].told) sum_tell(d, &d->state.items[i]);
    if (d->sum_sink != NULL) d->sum_sink(d->sum_arg, NULL);
    d->sum_sink = NULL;
}

int tpo_direct_gather(void *self, const struct tpo_key *key, uint32_t skipped, int (*sink)(void *arg, const struct tpo_chunk *x),
                      void *arg, struct tpo_error *err)
{
    struct tpo_direct *d = self;
    int rc = tpo_direct_key_check(d, key, err);
    if (rc != TPO_OK) return rc;
    if (skipped > (uint32_t)d->n_own)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "share", "%u micro-batches skipped of a share of %d", skipped, d->n_own);
    if (d->scattered || d->folded)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "gather", "%s: the sums are no longer this replica's alone", d->model->stage);
    d->step = key->step;
    d->sum_sink = sink;
    d->sum_arg = arg;
    d->n_skipped = (int)skipped;
    for (int i = 0; i < d->state.n; i++) d->state.items[i].told = false;
    if (d->n_done + d->n_skipped >= d->n_own || d->state.n == 0) tpo_direct_sums_finish(d);
    return TPO_OK;
}

int tpo_direct_scatter(void *self, const struct tpo_key *key, const struct tpo_chunk *x, struct tpo_error *err)
{
    struct tpo_direct *d = self;
    int rc = tpo_direct_key_check(d, key, err);
    if (rc != TPO_OK) return rc;
    if (d->folded)
        return x == NULL ? TPO_OK
                         : tpo_fail(err, TPO_FAILED_PRECONDITION, "scatter", "%s: the norms are already known", d->model->stage);
    if (d->n_live > 0)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "open_tapes", "%s: micro-batches await their Backward", d->model->stage);
    d->scattered = true;
    if (x == NULL) return TPO_OK;
    struct tpo_trainable *own = trainable_find(d, x->name);
    if (own == NULL || !chunk_fits(x, own->param))
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "scatter", "%.96s: no piece of a trainable tensor of that shape", x->name);
    own->folded = true;
    rc = tpo_copy_in(d->stream, own->lanes[0] + x->offset, x->data, sizeof(float) * (size_t)x->count);
    return rc == TPO_OK ? TPO_OK : tpo_fail(err, rc, "scatter", "%s: the device failed", x->name);
}

/* --- state in and out ---------------------------------------------------------------------------------------------------------------- */

static float *part_of(struct tpo_direct *d, struct tpo_trainable *x, const char *part)
{
    const int now = d->state.now;
    return strcmp(part, "weight") == 0 ? x->weight[now]
           : strcmp(part, "m") == 0    ? x->m[now]
           : strcmp(part, "v") == 0    ? x->v[now]
                                       : NULL;
}

int tpo_direct_export(void *self, int at, int64_t offset, int64_t most, struct tpo_chunk *out, struct tpo_error *err)
{
    static const char *const parts[] = {"weight", "m", "v"};
    struct tpo_direct *d = self;
    *out = (struct tpo_chunk){0};
    if (!d->begun) return tpo_fail(err, TPO_FAILED_PRECONDITION, "wrong_run", "%s: no run is in progress", d->model->stage);
    if (at < 0 || offset < 0 || most < 0 || most > INT32_MAX)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "export", "part %d does not exist", at);
    for (int i = 0; i < d->state.n; i++)
        for (int k = 0; k < 3; k++) {
            const float *data = part_of(d, &d->state.items[i], parts[k]);
            if (data == NULL || at-- > 0) continue;
            *out = chunk_of(d->state.items[i].param, parts[k], data, offset, most);
            if (out->count == 0) return TPO_OK;
            float *host = realloc(d->exported, sizeof(float) * (size_t)out->count);
            if (host == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory to export %s", out->name);
            out->data = d->exported = host;
            if (tpo_copy_out(d->stream, host, data + offset, sizeof(float) * (size_t)out->count) == TPO_OK) return TPO_OK;
            return tpo_fail(err, TPO_INTERNAL, "export", "%s: the device failed", out->name);
        }
    return TPO_OK;
}

/* Memory of the learner's own for a tensor that no group of this run owns: what was loaded stays as it is. */
static float *frozen_own(struct tpo_direct *d, int i)
{
    struct tpo_param *p = d->model->params->items[i];
    struct tpo_kept *k = &d->kept[i];
    if (k->copy == NULL) {
        k->copy = tpo_device_alloc(d->stream, sizeof(float) * (size_t)p->size);
        if (k->copy == NULL || tpo_param_read(p, d->stream, k->copy) != TPO_OK) return NULL;
    }
    p->data = k->copy;
    return p->data;
}

static int frozen_find(struct tpo_direct *d, const char *name)
{
    for (int i = 0; i < d->model->params->n; i++) {
        struct tpo_param *p = d->model->params->items[i];
        if (!p->ignored && strcmp(p->name, name) == 0 && trainable_find(d, name) == NULL) return i;
    }
    return -1;
}

static int moments_clear(struct tpo_direct *d, struct tpo_trainable *x)
{
    int rc = tpo_fill(d->stream, x->m[d->state.now], 0, x->param->size);
    if (rc == TPO_OK && x->v[d->state.now] != NULL) rc = tpo_fill(d->stream, x->v[d->state.now], 0, x->param->size);
    return rc;
}

/* Of a tensor's values as f32, a piece at a time by way of the host. */
static int digest_of(struct tpo_direct *d, const struct tpo_param *p, uint8_t digest[TPO_SHA256_BYTES])
{
    float *host = malloc(sizeof(float) * TPO_CHUNK_ELEMENTS);
    tpo_sha256_t *h = tpo_sha256_open();
    int rc = host != NULL ? TPO_OK : TPO_ENOMEM;
    for (int64_t at = 0, n; at < p->size && rc == TPO_OK; at += n) {
        n = p->size - at < TPO_CHUNK_ELEMENTS ? p->size - at : TPO_CHUNK_ELEMENTS;
        rc = tpo_param_piece(p, d->stream, at, n, host);
        if (rc == TPO_OK) tpo_sha256_add(h, host, sizeof(float) * (size_t)n);
    }
    tpo_sha256_end(h, digest);
    tpo_sha256_close(h);
    free(host);
    return rc;
}

/* The tensor that part "start" of `name` reaches, *own where a group of this run owns it; NULL: none. */
static const struct tpo_param *start_find(struct tpo_direct *d, const char *name, struct tpo_trainable **own)
{
    *own = trainable_find(d, name);
    const int frozen = *own == NULL ? frozen_find(d, name) : -1;
    return *own != NULL ? (*own)->param : frozen >= 0 ? d->model->params->items[frozen] : NULL;
}

int tpo_direct_holds(void *self, const struct tpo_chunk *x, const uint8_t digest[TPO_SHA256_BYTES], bool *held,
                     struct tpo_error *err)
{
    struct tpo_direct *d = self;
    struct tpo_trainable *own;
    uint8_t mine[TPO_SHA256_BYTES];
    *held = false;
    if (!d->begun) return tpo_fail(err, TPO_FAILED_PRECONDITION, "wrong_run", "%s: no run is in progress", d->model->stage);
    const struct tpo_param *p = start_find(d, x->name, &own);
    if (p == NULL) return tpo_fail(err, TPO_NOT_FOUND, "import", "%.96s: %s holds no such tensor", x->name, d->model->stage);
    if (!chunk_fits(x, p))
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "import", "%.96s: the piece is not of that tensor's shape", x->name);
    int rc = digest_of(d, p, mine);
    const bool equal = rc == TPO_OK && memcmp(mine, digest, sizeof(mine)) == 0;
    if (equal && own != NULL) rc = moments_clear(d, own);
    *held = equal && rc == TPO_OK;
    return rc == TPO_OK ? TPO_OK : tpo_fail(err, rc, "import", "%s: the device failed", x->name);
}

void tpo_direct_replaced(const struct tpo_direct *d)
{
    if (d->model->replaced != NULL) d->model->replaced(d->model->self);
}

int tpo_direct_import(void *self, uint64_t version, const struct tpo_chunk *x, struct tpo_error *err)
{
    struct tpo_direct *d = self;
    if (!d->begun) return tpo_fail(err, TPO_FAILED_PRECONDITION, "wrong_run", "%s: no run is in progress", d->model->stage);
    if (x == NULL) {
        tpo_direct_step_close(d);
        d->version = version;
        d->committed = 0;
        return TPO_OK;
    }
    const bool start = strcmp(x->part, "start") == 0;
    struct tpo_trainable *own = trainable_find(d, x->name);
    const int frozen = own == NULL && start ? frozen_find(d, x->name) : -1;
    const struct tpo_param *p = own != NULL ? own->param : frozen >= 0 ? d->model->params->items[frozen] : NULL;
    if (p == NULL)
        return tpo_fail(err, TPO_NOT_FOUND, "import", "%.96s: %s holds no such tensor as \"%.16s\"", x->name, d->model->stage,
                        x->part);
    if (!chunk_fits(x, p))
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "import", "%.96s: the piece is not of that tensor's shape", x->name);
    float *data = own == NULL ? frozen_own(d, frozen) : part_of(d, own, start ? "weight" : x->part);
    if (data == NULL) return tpo_fail(err, TPO_INVALID_ARGUMENT, "import", "%.96s has no part \"%.16s\"", x->name, x->part);
    int rc = tpo_copy_in(d->stream, data + x->offset, x->data, sizeof(float) * (size_t)x->count);
    tpo_direct_replaced(d);
    if (rc == TPO_OK && own != NULL && start) rc = moments_clear(d, own);
    return rc == TPO_OK ? TPO_OK : tpo_fail(err, rc, "import", "%s: the device failed", x->name);
}
