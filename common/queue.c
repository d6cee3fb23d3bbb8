/* This file owns the bounded queue: a ring under one lock. */
#include "common/queue.h"

#include <pthread.h>
#include <stdlib.h>

#include "common/clock.h"

struct tpo_queue {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    void **items; /* capacity + 1 places: put_back may need one more than put fills */
    int places, capacity, first, n;
    bool ended;
};

int tpo_queue_open(struct tpo_queue **out, int capacity)
{
    struct tpo_queue *q = calloc(1, sizeof(*q));
    *out = NULL;
    if (q == NULL) return TPO_ENOMEM;
    q->capacity = capacity;
    q->places = capacity + 1;
    q->items = calloc((size_t)q->places, sizeof(*q->items));
    if (q->items == NULL) {
        free(q);
        return TPO_ENOMEM;
    }
    pthread_mutex_init(&q->lock, NULL);
    tpo_cond_init(&q->changed);
    *out = q;
    return TPO_OK;
}

void tpo_queue_close(struct tpo_queue *q)
{
    if (q == NULL) return;
    pthread_cond_destroy(&q->changed);
    pthread_mutex_destroy(&q->lock);
    free(q->items);
    free(q);
}

int tpo_queue_put(struct tpo_queue *q, void *item)
{
    return tpo_queue_put_below(q, item, q->capacity);
}

int tpo_queue_put_below(struct tpo_queue *q, void *item, int most)
{
    pthread_mutex_lock(&q->lock);
    int rc = q->ended ? TPO_UNAVAILABLE : q->n >= most || q->n >= q->capacity ? TPO_RESOURCE_EXHAUSTED : TPO_OK;
    if (rc == TPO_OK) {
        q->items[(q->first + q->n++) % q->places] = item;
        pthread_cond_signal(&q->changed);
    }
    pthread_mutex_unlock(&q->lock);
    return rc;
}

void tpo_queue_put_back(struct tpo_queue *q, void *item)
{
    pthread_mutex_lock(&q->lock);
    /* One taker holds one item, so there is always a place; two takers that both put back could exceed it. */
    TPO_ASSERT(q->n < q->places);
    q->first = (q->first + q->places - 1) % q->places;
    q->items[q->first] = item;
    q->n++;
    pthread_cond_signal(&q->changed);
    pthread_mutex_unlock(&q->lock);
}

void *tpo_queue_take(struct tpo_queue *q, int timeout_ms)
{
    const struct timespec until = tpo_cond_until(tpo_now_us() + (int64_t)timeout_ms * 1000);
    void *item = NULL;
    int late = 0;
    pthread_mutex_lock(&q->lock);
    while (q->n == 0 && !q->ended && timeout_ms != 0 && late == 0)
        late = timeout_ms < 0 ? pthread_cond_wait(&q->changed, &q->lock) : pthread_cond_timedwait(&q->changed, &q->lock, &until);
    if (q->n > 0) {
        item = q->items[q->first];
        q->first = (q->first + 1) % q->places;
        q->n--;
    }
    pthread_mutex_unlock(&q->lock);
    return item;
}

void *tpo_queue_take_kind(struct tpo_queue *q, bool (*is)(const void *item))
{
    void *item = NULL;
    int at = 0;
    pthread_mutex_lock(&q->lock);
    while (at < q->n && !is(q->items[(q->first + at) % q->places])) at++;
    if (at < q->n) {
        item = q->items[(q->first + at) % q->places];
        for (q->n--; at < q->n; at++) q->items[(q->first + at) % q->places] = q->items[(q->first + at + 1) % q->places];
    }
    pthread_mutex_unlock(&q->lock);
    return item;
}

void tpo_queue_end(struct tpo_queue *q)
{
    pthread_mutex_lock(&q->lock);
    q->ended = true;
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
}

int tpo_queue_length(struct tpo_queue *q)
{
    pthread_mutex_lock(&q->lock);
    int n = q->n;
    pthread_mutex_unlock(&q->lock);
    return n;
}
