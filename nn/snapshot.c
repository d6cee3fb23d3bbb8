/* This file owns the versions of a model's weights: taking one, naming it, turning a model to it. */
#include "nn/snapshot.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/sha256.h"

static struct tpo_snapshot *make(int n)
{
    struct tpo_snapshot *x = calloc(1, sizeof(*x));
    if (x == NULL) return NULL;
    x->n = n;
    x->data = calloc((size_t)n + 1, sizeof(*x->data));
    x->owned = calloc((size_t)n + 1, sizeof(*x->owned));
    if (x->data != NULL && x->owned != NULL) return x;
    tpo_snapshot_close(x, NULL);
    return NULL;
}

int tpo_snapshot_open(struct tpo_snapshot **out, const struct tpo_params *p, const char *digest, struct tpo_error *err)
{
    struct tpo_snapshot *x = *out = make(p->n);
    if (x == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a version");
    for (int i = 0; i < p->n; i++) x->data[i] = p->items[i]->data;
    snprintf(x->digest, sizeof(x->digest), "%s", digest);
    return TPO_OK;
}

void tpo_snapshot_close(struct tpo_snapshot *x, struct tpo_stream *s)
{
    if (x == NULL) return;
    for (int i = 0; i < x->n_owned; i++) tpo_device_free(s, x->owned[i]);
    free(x->owned);
    free(x->data);
    free(x);
}

void tpo_snapshot_use(const struct tpo_snapshot *x, struct tpo_params *p)
{
    TPO_ASSERT(x->n == p->n);
    for (int i = 0; i < p->n; i++) p->items[i]->data = x->data[i];
}

/* Where training keeps this tensor now; NULL where it never changed. */
static const float *changed(const struct tpo_param *item, const struct tpo_params *trainee, const struct tpo_snapshot *untrained)
{
    for (int i = 0; i < trainee->n; i++)
        if (strcmp(trainee->items[i]->name, item->name) == 0)
            return trainee->items[i]->data != untrained->data[i] ? trainee->items[i]->data : NULL;
    return NULL;
}

static void digest_add(tpo_sha256_t *h, const struct tpo_param *item, const float *host)
{
    uint8_t digest[TPO_SHA256_BYTES];
    char text[TPO_SHA256_HEX];
    tpo_sha256_add(h, item->name, strlen(item->name) + 1);
    for (int i = 0; i < item->n_dims; i++) {
        int n = snprintf(text, sizeof(text), " %lld", (long long)item->shape[i]);
        tpo_sha256_add(h, text, (size_t)n);
    }
    tpo_sha256_add(h, "", 1);
    tpo_sha256(digest, host, (size_t)item->size * sizeof(*host));
    tpo_sha256_add(h, tpo_sha256_hex(text, digest), 64);
}

/* A tensor on the host, where digests are made, the caller's to free. */
static int read_out(float **out, struct tpo_stream *s, const struct tpo_param *item, const float *data)
{
    const size_t bytes = (size_t)item->size * sizeof(float);
    *out = malloc(bytes);
    int rc = *out != NULL ? tpo_copy_out(s, *out, data, bytes) : TPO_ENOMEM;
    return rc == TPO_OK ? tpo_stream_wait(s) : rc;
}

static int copy(struct tpo_snapshot *x, int i, struct tpo_stream *s, const struct tpo_param *item, const float *data,
                tpo_sha256_t *h)
{
    const size_t bytes = (size_t)item->size * sizeof(float);
    float *host = NULL, *own = tpo_device_alloc(s, bytes);
    if (own != NULL) x->data[i] = x->owned[x->n_owned++] = own;
    int rc = own != NULL ? read_out(&host, s, item, data) : TPO_ENOMEM;
    if (rc == TPO_OK) rc = tpo_copy_in(s, own, host, bytes);
    if (rc == TPO_OK) rc = tpo_stream_wait(s);
    if (rc == TPO_OK) digest_add(h, item, host);
    free(host);
    return rc;
}

int tpo_snapshot_digest_trained(char out[72], struct tpo_stream *s, const char *loaded, const struct tpo_params *trainee,
                                const struct tpo_snapshot *untrained, struct tpo_error *err)
{
    uint8_t digest[TPO_SHA256_BYTES];
    int rc = TPO_OK, n_changed = 0;
    tpo_sha256_t *h = tpo_sha256_open();
    TPO_ASSERT(trainee->n == untrained->n);
    tpo_sha256_add(h, loaded, strlen(loaded) + 1);
    for (int i = 0; i < trainee->n && rc == TPO_OK; i++) {
        const struct tpo_param *item = trainee->items[i];
        float *host = NULL;
        if (item->ignored || tpo_param_is_aid(item) || item->data == untrained->data[i]) continue;
        rc = read_out(&host, s, item, item->data);
        if (rc == TPO_OK) digest_add(h, item, host);
        n_changed++;
        free(host);
    }
    tpo_sha256_end(h, digest);
    tpo_sha256_close(h);
    if (rc != TPO_OK) return tpo_fail(err, rc, "memory", "no memory for a digest of the weights");
    if (n_changed > 0)
        tpo_sha256_hex(out, digest);
    else
        snprintf(out, 72, "%s", loaded);
    return TPO_OK;
}

int tpo_snapshot_of_trained(struct tpo_snapshot **out, struct tpo_stream *s, const struct tpo_params *p,
                            const struct tpo_snapshot *loaded, const struct tpo_params *trainee,
                            const struct tpo_snapshot *untrained, struct tpo_error *err)
{
    uint8_t digest[TPO_SHA256_BYTES];
    struct tpo_snapshot *x = *out = make(p->n);
    int rc = x != NULL ? TPO_OK : TPO_ENOMEM;
    tpo_sha256_t *h = tpo_sha256_open();
    TPO_ASSERT(trainee->n == untrained->n && p->n == loaded->n);
    tpo_sha256_add(h, loaded->digest, strlen(loaded->digest) + 1);
    for (int i = 0; i < p->n && rc == TPO_OK; i++) {
        const float *data = p->items[i]->ignored ? NULL : changed(p->items[i], trainee, untrained);
        x->data[i] = loaded->data[i];
        if (data != NULL) rc = copy(x, i, s, p->items[i], data, h);
    }
    tpo_sha256_end(h, digest);
    tpo_sha256_close(h);
    if (rc == TPO_OK) {
        if (x->n_owned > 0)
            tpo_sha256_hex(x->digest, digest);
        else
            memcpy(x->digest, loaded->digest, sizeof(x->digest));
        return TPO_OK;
    }
    tpo_snapshot_close(x, s);
    *out = NULL;
    return tpo_fail(err, rc, "memory", "no memory for a version of the weights");
}
