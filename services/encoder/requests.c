/* This file owns the encoder's requests: from their place in the queue to their answer, alone or aboard a flight. */
#include "services/encoder/requests.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/log.h"
#include "encoder.pb-c.h"
#include "services/host/versions.h"

#define RETRY_MS 200

int tpo_requests_open(struct tpo_requests *q, struct tpo_host *h, struct tpo_error *err)
{
    q->host = h;
    pthread_mutex_init(&q->lock, NULL);
    for (int i = 0; i < 2; i++) {
        q->lines[i].last = &q->lines[i].first;
        pthread_cond_init(&q->lines[i].arrived, NULL);
    }
    q->flights = tpo_flights_open();
    return q->flights != NULL ? TPO_OK : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the encoder");
}

void tpo_requests_close(struct tpo_requests *q)
{
    tpo_flights_close(q->flights);
    pthread_mutex_destroy(&q->lock);
    for (int i = 0; i < 2; i++) pthread_cond_destroy(&q->lines[i].arrived);
}

/* --- coming -------------------------------------------------------------------------------------------------------------------------- */
static bool take_place(struct tpo_requests *q)
{
    pthread_mutex_lock(&q->lock);
    bool room = q->n_open < tpo_host_settings(q->host)->queue;
    q->n_open += room;
    pthread_mutex_unlock(&q->lock);
    return room;
}

static void give_place(struct tpo_requests *q)
{
    pthread_mutex_lock(&q->lock);
    q->n_open--;
    pthread_mutex_unlock(&q->lock);
}

struct tpo_encode *tpo_requests_new(struct tpo_requests *q, struct tpo_call *call, struct tpo_error *err)
{
    if (!take_place(q)) {
        tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "queue_full", "the encoder's queue is full");
        err->retry_ms = RETRY_MS;
        return NULL;
    }
    struct tpo_encode *r = calloc(1, sizeof(*r));
    if (r == NULL) {
        give_place(q);
        tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a request");
        return NULL;
    }
    r->call = call;
    r->came_ms = tpo_now_ms();
    return r;
}

void tpo_requests_drop(struct tpo_requests *q, struct tpo_encode *r)
{
    give_place(q);
    free(r);
}

bool tpo_requests_queue(struct tpo_requests *q, struct tpo_encode *r, enum tpo_request_line line)
{
    struct tpo_request_list *l = &q->lines[line];
    r->next = NULL;
    pthread_mutex_lock(&q->lock);
    const bool open = !l->closed;
    if (open) {
        *l->last = r;
        l->last = &r->next;
        pthread_cond_signal(&l->arrived);
    }
    pthread_mutex_unlock(&q->lock);
    return open;
}

struct tpo_encode *tpo_requests_next(struct tpo_requests *q, enum tpo_request_line line)
{
    struct tpo_request_list *l = &q->lines[line];
    pthread_mutex_lock(&q->lock);
    while (l->first == NULL && !l->closed) pthread_cond_wait(&l->arrived, &q->lock);
    struct tpo_encode *r = l->first;
    if (r != NULL && (l->first = r->next) == NULL) l->last = &l->first;
    pthread_mutex_unlock(&q->lock);
    return r;
}

void tpo_requests_stop(struct tpo_requests *q, enum tpo_request_line line)
{
    pthread_mutex_lock(&q->lock);
    q->lines[line].closed = true;
    pthread_cond_broadcast(&q->lines[line].arrived);
    pthread_mutex_unlock(&q->lock);
}

/* --- answering --------------------------------------------------------------------------------------------------------------------- */
static void measure(struct tpo_requests *q, const struct tpo_encode *r, const struct tpo_error *err)
{
    struct tpo_metrics *m = tpo_host_metrics(q->host);
    int code = err != NULL ? err->code : TPO_OK;
    double ms = tpo_now_ms() - r->came_ms;
    char labels[64];
    tpo_metrics_add(m, "tpo_requests_total", tpo_metrics_labels(labels, sizeof(labels), "code", tpo_status_name(code), NULL), 1);
    tpo_metrics_observe(m, "tpo_request_duration_seconds", "", ms * 1e-3);
    tpo_log(code == TPO_OK ? TPO_LOG_INFO : TPO_LOG_WARN, "request", "req=%s media=%.12s code=%s%s%s ms=%.3f",
            tpo_call_request_id(r->call), r->id, tpo_status_name(code), code != TPO_OK ? " reason=" : "",
            code != TPO_OK ? err->reason : "", ms);
}

static void finish(struct tpo_requests *q, struct tpo_encode *r, const struct tpo_error *err)
{
    measure(q, r, err);
    tpo_call_finish(r->call, err != NULL ? err->code : TPO_OK, err);
    tpo_versions_give(tpo_host_versions(q->host), r->version);
    tpo_requests_drop(q, r);
}

static void answer(struct tpo_requests *q, struct tpo_encode *r, const struct tpo_cached *v, const char *cache, double began_ms)
{
    Tpo__V1__EncodeReply reply = TPO__V1__ENCODE_REPLY__INIT;
    Tpo__V1__MediaInfo media = TPO__V1__MEDIA_INFO__INIT;
    struct tpo_payload visual = {0};
    struct tpo_error err = {0};
    size_t n = (size_t)v->n_frames;
    Tpo__V1__Frame *frames = calloc(n, sizeof(*frames)), **list = calloc(n, sizeof(*list));
    if (frames == NULL || list == NULL || tpo_payload_alloc(&visual, v->dtype, v->n_dims, v->shape) != TPO_OK) {
        tpo_fail(&err, TPO_ENOMEM, "memory", "no memory for a reply");
    } else {
        for (size_t i = 0; i < n; i++) {
            tpo__v1__frame__init(&frames[i]);
            frames[i].index = v->indices[i];
            frames[i].time_s = v->times[i];
            list[i] = &frames[i];
        }
        memcpy(visual.data, v->data, v->data_bytes);
        media.id = r->id;
        media.width = v->width;
        media.height = v->height;
        media.duration_s = v->duration_s;
        media.n_frames = n;
        media.frames = list;
        reply.media = &media;
        reply.cache = (char *)cache;
        reply.queue_ms = began_ms > r->came_ms ? began_ms - r->came_ms : 0;
        reply.run_ms = tpo_now_ms() - (began_ms > r->came_ms ? began_ms : r->came_ms);
        reply.digest = (char *)r->version->digest;
        reply.version = r->version->number;
        tpo_call_send_last(r->call, &reply.base, &visual);
    }
    free(frames), free(list);
    finish(q, r, err.code == TPO_OK ? NULL : &err);
}

void tpo_requests_land(struct tpo_requests *q, struct tpo_encode *leader, const struct tpo_cached *v, const char *own,
                       const char *aboard, double began_ms, const struct tpo_error *err)
{
    struct tpo_passenger *p = tpo_flight_land(q->flights, &leader->key);
    if (v != NULL)
        answer(q, leader, v, own, began_ms);
    else
        finish(q, leader, err);
    while (p != NULL) {
        struct tpo_encode *r = (struct tpo_encode *)p;
        p = p->next;
        if (v != NULL)
            answer(q, r, v, aboard, began_ms);
        else
            finish(q, r, err);
    }
}

/* --- who waits ----------------------------------------------------------------------------------------------------------------------- */
static double left_ms(const struct tpo_encode *r)
{
    return tpo_call_cancelled(r->call) ? 0 : tpo_call_left_ms(r->call);
}

static void see_left(void *owner, const struct tpo_passenger *p)
{
    double *longest = owner, left = left_ms((const struct tpo_encode *)p);
    if (left > *longest) *longest = left;
}

double tpo_requests_left_ms(struct tpo_requests *q, const struct tpo_encode *leader)
{
    double longest = left_ms(leader);
    tpo_flight_look(q->flights, &leader->key, see_left, &longest);
    return longest;
}

void tpo_requests_disband(struct tpo_requests *q, struct tpo_encode *leader)
{
    struct tpo_passenger *p = tpo_flight_land(q->flights, &leader->key);
    for (struct tpo_encode *r = leader; r != NULL;) {
        struct tpo_error err = {0};
        struct tpo_encode *next = (struct tpo_encode *)p;
        if (p != NULL) p = p->next;
        if (tpo_call_cancelled(r->call))
            tpo_fail(&err, TPO_CANCELLED, "cancelled", "the caller went away");
        else if (tpo_call_left_ms(r->call) <= 0)
            tpo_fail(&err, TPO_DEADLINE_EXCEEDED, "deadline", "the time for the tokens ran out");
        else if (!tpo_requests_queue(q, r, TPO_TO_LOOK))
            tpo_fail(&err, TPO_UNAVAILABLE, "draining", "this process is shutting down");
        if (err.code != TPO_OK) finish(q, r, &err);
        r = next;
    }
}

bool tpo_requests_abandoned(struct tpo_requests *q, struct tpo_encode *leader)
{
    if (tpo_requests_left_ms(q, leader) > 0) return false;
    tpo_requests_disband(q, leader);
    return true;
}
