/* This file owns the versions that a service holds. */
#include "services/host/versions.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "common/clock.h"
#include "common/log.h"

#define AHEAD_MS_MOST ((uint64_t)366 * 86400 * 1000)

struct tpo_versions {
    pthread_mutex_t lock;
    struct tpo_version *held[TPO_VERSIONS_HELD]; /* newest first */
    int n;
    int64_t hold_us;
    struct tpo_metrics *metrics;
};

int tpo_versions_open(struct tpo_versions **out, int64_t hold_ms, struct tpo_metrics *metrics, struct tpo_error *err)
{
    struct tpo_versions *v = *out = calloc(1, sizeof(*v));
    if (v == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for versions");
    pthread_mutex_init(&v->lock, NULL);
    v->hold_us = hold_ms * 1000;
    v->metrics = metrics;
    return TPO_OK;
}

static void version_free(struct tpo_version *x, struct tpo_stream *s)
{
    tpo_snapshot_close(x->weights, s);
    free(x);
}

void tpo_versions_clear(struct tpo_versions *v, struct tpo_stream *s)
{
    pthread_mutex_lock(&v->lock);
    for (int i = 0; i < v->n; i++) version_free(v->held[i], s);
    v->n = 0;
    pthread_mutex_unlock(&v->lock);
}

void tpo_versions_close(struct tpo_versions *v)
{
    if (v == NULL) return;
    TPO_ASSERT(v->n == 0);
    pthread_mutex_destroy(&v->lock);
    free(v);
}

int tpo_versions_add(struct tpo_versions *v, uint64_t number, struct tpo_snapshot *take_weights, struct tpo_error *err)
{
    struct tpo_version *x = calloc(1, sizeof(*x));
    if (x == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a version");
    x->number = number;
    x->weights = take_weights;
    memcpy(x->digest, take_weights->digest, sizeof(x->digest));
    pthread_mutex_lock(&v->lock);
    TPO_ASSERT(v->n < TPO_VERSIONS_HELD);
    if (v->n > 0) v->held[0]->wanted_us = tpo_now_us();
    memmove(v->held + 1, v->held, (size_t)v->n * sizeof(*v->held));
    v->held[0] = x;
    v->n++;
    pthread_mutex_unlock(&v->lock);
    if (v->metrics != NULL) tpo_metrics_set(v->metrics, "tpo_version", "", (double)number);
    tpo_log(TPO_LOG_INFO, "version", "version=%llu digest=%.19s copied=%d", (unsigned long long)number, x->digest,
            take_weights->n_owned);
    return TPO_OK;
}

int tpo_versions_start(struct tpo_versions *v, struct tpo_snapshot *take_weights, struct tpo_error *err)
{
    return tpo_versions_add(v, 0, take_weights, err);
}

/* Under the lock: the oldest leaves the list, or how long it must be kept. */
static struct tpo_version *let_go(struct tpo_versions *v, struct tpo_error *err)
{
    struct tpo_version *x = v->held[v->n - 1];
    const int64_t left_us = x->wanted_us + v->hold_us - tpo_now_us();
    if (x->in_flight == 0 && left_us <= 0) {
        v->n--;
        return x;
    }
    tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "versions", "version %llu must be kept: %d requests run on it, others may still come",
             (unsigned long long)x->number, x->in_flight);
    if (err != NULL) err->retry_ms = left_us > 0 ? (int)(left_us / 1000) + 1 : 100;
    return NULL;
}

/* Numbers are the clock's milliseconds. One far above it, let alone the last there is, would leave none for those that are to come. */
static int far_ahead_check(uint64_t number, struct tpo_error *err)
{
    struct timespec clock;
    clock_gettime(CLOCK_REALTIME, &clock);
    const uint64_t now = (uint64_t)clock.tv_sec * 1000 + (uint64_t)clock.tv_nsec / 1000000;
    if (number <= now + AHEAD_MS_MOST) return TPO_OK;
    return tpo_fail(err, TPO_INVALID_ARGUMENT, "version", "version %llu is more than a year above the clock, which has %llu ms",
                    (unsigned long long)number, (unsigned long long)now);
}

int tpo_versions_room(struct tpo_versions *v, uint64_t number, bool *held, struct tpo_stream *s, struct tpo_error *err)
{
    int rc = far_ahead_check(number, err);
    struct tpo_version *gone = NULL;
    if (rc != TPO_OK) return rc;
    pthread_mutex_lock(&v->lock);
    *held = v->n > 0 && v->held[0]->number == number;
    if (v->n > 0 && number < v->held[0]->number)
        rc = tpo_fail(err, TPO_FAILED_PRECONDITION, "version", "version %llu is older than %llu, which is served",
                      (unsigned long long)number, (unsigned long long)v->held[0]->number);
    else if (!*held && v->n == TPO_VERSIONS_HELD && (gone = let_go(v, err)) == NULL)
        rc = TPO_RESOURCE_EXHAUSTED;
    pthread_mutex_unlock(&v->lock);
    if (gone != NULL) version_free(gone, s);
    return rc;
}

/* A decimal number and nothing else. */
static bool parse(const char *text, uint64_t *out)
{
    char *end;
    if (text[0] < '0' || text[0] > '9') return false;
    *out = strtoull(text, &end, 10);
    return *end == '\0';
}

int tpo_versions_take(struct tpo_versions *v, const char *metadata, uint64_t field, struct tpo_version **out, struct tpo_error *err)
{
    uint64_t wanted = field;
    const bool newest = metadata == NULL && field == 0;
    *out = NULL;
    if (metadata != NULL && !parse(metadata, &wanted))
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "version", "tpo-version \"%.20s\" is no number", metadata);
    pthread_mutex_lock(&v->lock);
    for (int i = 0; i < v->n && *out == NULL; i++)
        if (newest || v->held[i]->number == wanted) *out = v->held[i];
    if (*out != NULL) {
        (*out)->in_flight++;
        (*out)->wanted_us = tpo_now_us();
    }
    pthread_mutex_unlock(&v->lock);
    if (*out != NULL) return TPO_OK;
    return tpo_fail(err, TPO_FAILED_PRECONDITION, "version", "version %llu is not here", (unsigned long long)wanted);
}

void tpo_versions_give(struct tpo_versions *v, struct tpo_version *x)
{
    if (x == NULL) return;
    pthread_mutex_lock(&v->lock);
    TPO_ASSERT(x->in_flight > 0);
    x->in_flight--;
    pthread_mutex_unlock(&v->lock);
}

int tpo_versions_list(struct tpo_versions *v, uint64_t out[TPO_VERSIONS_HELD])
{
    pthread_mutex_lock(&v->lock);
    for (int i = 0; i < v->n; i++) out[i] = v->held[i]->number;
    int n = v->n;
    pthread_mutex_unlock(&v->lock);
    return n;
}
