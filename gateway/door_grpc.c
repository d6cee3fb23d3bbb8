/* This file owns the calls that come by gRPC.
 *
 *   completion-queue thread: on_open, on_message, on_cancel --list, uv_async--> loop: struct grpc_call, found by its tpo_call
 *
 * A call is in the loop's list from its OPEN until the loop has finished it. What comes for a call that isn't in the list any more
 * (a cancel that crossed our answer) is dropped. Addresses may be used again, but the list keeps the order, so a late event of an
 * old call is always seen before the OPEN of a new one at the same address. */
#include "gateway/door_grpc.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/rpc/server.h"
#include "gateway/request.h"
#include "media.pb-c.h"

#define UNSENT_MAX   10000       /* messages a slow reader may leave in its outbox */
#define CHUNK_MAX    (4u << 20)  /* bytes of an upload in one message */
#define MEMORY_SPARE (64u << 20) /* of gRPC, beyond what requests may have: answers and uploads on their way */
#define READY_MS     250

enum method { PERCEIVE, PERCEIVE_STREAM, PUT, METHODS };
enum kind { OPEN, MESSAGE, CANCEL };

struct event {
    struct event *next;
    enum kind kind;
    enum method method;
    struct tpo_call *call;
    ProtobufCMessage *message; /* MESSAGE: NULL after the last */
};

struct grpc_call {
    struct grpc_call *next, *prev;
    struct tpo_grpc_door *door;
    enum method method;
    struct tpo_call *call;
    struct tpo_request *request;
    struct tpo_upload *upload;
};

struct hook {
    struct tpo_grpc_door *door;
    enum method method;
};

struct tpo_grpc_door {
    struct tpo_gateway *g;
    struct tpo_server *server;
    struct tpo_method methods[METHODS];
    struct hook hooks[METHODS];
    uv_async_t wake;
    uv_timer_t ready;
    uv_work_t drain;
    int drain_ms, handles;
    void (*on_drained)(void *owner);
    void *owner;
    bool draining;
    struct grpc_call *calls;
    pthread_mutex_t lock;
    struct event *first, **last;
};

/* --- the completion-queue thread ------------------------------------------------------------------------------------------------------ */

static void post(struct hook *h, enum kind kind, struct tpo_call *call, ProtobufCMessage *message)
{
    struct tpo_grpc_door *d = h->door;
    struct event *e = malloc(sizeof(*e));
    TPO_ASSERT(e != NULL); /* a call that is never finished would hold the server for ever */
    *e = (struct event){.kind = kind, .method = h->method, .call = call, .message = message};
    pthread_mutex_lock(&d->lock);
    *d->last = e;
    d->last = &e->next;
    pthread_mutex_unlock(&d->lock);
    uv_async_send(&d->wake);
}

static int on_open(void *owner, struct tpo_call *call, struct tpo_error *err)
{
    (void)err;
    post(owner, OPEN, call, NULL);
    return TPO_OK;
}

static void on_message(void *owner, struct tpo_call *call, ProtobufCMessage *message, struct tpo_payload *payload)
{
    if (payload != NULL) tpo_payload_free(payload);
    post(owner, MESSAGE, call, message);
}

static void on_cancel(void *owner, struct tpo_call *call)
{
    post(owner, CANCEL, call, NULL);
}

/* --- the loop ------------------------------------------------------------------------------------------------------------------------- */

/* The call's last use. */
static void finish(struct grpc_call *c, int status, const struct tpo_error *err)
{
    *(c->prev != NULL ? &c->prev->next : &c->door->calls) = c->next;
    if (c->next != NULL) c->next->prev = c->prev;
    tpo_call_finish(c->call, status, err);
    free(c);
}

static void on_event(void *owner, const Tpo__V1__PerceiveEvent *event)
{
    struct grpc_call *c = owner;
    tpo_call_send(c->call, &event->base, NULL);
}

static void on_done(void *owner, const Tpo__V1__PerceiveEvent *event, const struct tpo_error *err)
{
    struct grpc_call *c = owner;
    if (c->method == PERCEIVE_STREAM)
        tpo_call_send(c->call, &event->base, NULL);
    else if (err == NULL)
        tpo_call_send(c->call, &event->done->base, NULL);
    finish(c, err != NULL ? err->code : TPO_OK, err);
}

static void on_room(void *owner)
{
    tpo_call_more(((struct grpc_call *)owner)->call);
}

static void on_stored(void *owner, const char *id, uint64_t size, const struct tpo_error *err)
{
    struct grpc_call *c = owner;
    if (err->code != TPO_OK) {
        finish(c, err->code, err);
        return;
    }
    Tpo__V1__MediaPutReply reply = TPO__V1__MEDIA_PUT_REPLY__INIT;
    reply.id = (char *)id;
    reply.size_bytes = size;
    tpo_call_send(c->call, &reply.base, NULL);
    finish(c, TPO_OK, NULL);
}

static void take_chunk(struct grpc_call *c, Tpo__V1__MediaChunk *chunk)
{
    struct tpo_error err;
    if (c->upload == NULL) c->upload = tpo_upload_open(c->door->g->media, chunk != NULL ? chunk->id : NULL, on_room, on_stored, c);
    if (c->upload == NULL) {
        tpo_fail(&err, TPO_RESOURCE_EXHAUSTED, "memory", "out of memory");
        finish(c, err.code, &err);
    } else if (chunk == NULL) {
        tpo_upload_end(c->upload);
    } else if (chunk->data.len > CHUNK_MAX) {
        tpo_fail(&err, TPO_INVALID_ARGUMENT, "chunk_too_large", "a chunk of %zu bytes, at most 4 MiB", chunk->data.len);
        tpo_upload_cancel(c->upload);
        finish(c, err.code, &err);
    } else if (tpo_upload_add(c->upload, chunk->data.data, chunk->data.len)) {
        tpo_call_more(c->call);
    }
    if (chunk != NULL) protobuf_c_message_free_unpacked(&chunk->base, NULL);
}

static void take_message(struct grpc_call *c, ProtobufCMessage *message)
{
    if (c->method == PUT) {
        take_chunk(c, (Tpo__V1__MediaChunk *)message);
        return;
    }
    if (message == NULL || c->request != NULL) {
        if (message != NULL) protobuf_c_message_free_unpacked(message, NULL);
        return;
    }
    const struct tpo_request_events on = {
        .owner = c, .on_event = c->method == PERCEIVE_STREAM ? on_event : NULL, .on_done = on_done};
    double left_ms = tpo_call_left_ms(c->call);
    c->request = tpo_request_open(c->door->g, (Tpo__V1__PerceiveRequest *)message, left_ms != 0 ? left_ms : -1,
                                  tpo_call_request_id(c->call), tpo_call_metadata(c->call, "traceparent"), &on);
    if (c->request != NULL) return;
    struct tpo_error err;
    tpo_fail(&err, TPO_RESOURCE_EXHAUSTED, "memory", "out of memory");
    finish(c, err.code, &err);
}

static void cancel(struct grpc_call *c)
{
    if (c->request != NULL) tpo_request_cancel(c->request);
    if (c->upload != NULL) tpo_upload_cancel(c->upload);
    finish(c, TPO_CANCELLED, NULL);
}

static void open_call(struct tpo_grpc_door *d, const struct event *e)
{
    struct grpc_call *c = calloc(1, sizeof(*c));
    if (c == NULL) {
        tpo_call_finish(e->call, TPO_RESOURCE_EXHAUSTED, NULL);
        return;
    }
    c->door = d;
    c->method = e->method;
    c->call = e->call;
    c->next = d->calls;
    if (c->next != NULL) c->next->prev = c;
    d->calls = c;
}

static void handle(struct tpo_grpc_door *d, struct event *e)
{
    struct grpc_call *c = d->calls;
    while (c != NULL && c->call != e->call) c = c->next;
    if (e->kind == OPEN)
        open_call(d, e);
    else if (c != NULL && e->kind == CANCEL)
        cancel(c);
    else if (c != NULL)
        take_message(c, e->message);
    else if (e->message != NULL)
        protobuf_c_message_free_unpacked(e->message, NULL);
    free(e);
}

static void on_wake(uv_async_t *async)
{
    struct tpo_grpc_door *d = async->data;
    pthread_mutex_lock(&d->lock);
    struct event *e = d->first;
    d->first = NULL;
    d->last = &d->first;
    pthread_mutex_unlock(&d->lock);
    for (struct event *next; e != NULL; e = next) {
        next = e->next;
        handle(d, e);
    }
}

static void on_ready(uv_timer_t *timer)
{
    struct tpo_grpc_door *d = timer->data;
    if (!d->draining) tpo_server_serving(d->server, tpo_gateway_ready(d->g));
    /* A reader that doesn't read may not fill our memory. */
    for (struct grpc_call *c = d->calls, *next; c != NULL; c = next) {
        next = c->next;
        if (c->method == PERCEIVE_STREAM && tpo_call_unsent(c->call) > UNSENT_MAX) cancel(c);
    }
}

/* --- open, drain, close ----------------------------------------------------------------------------------------------------------------- */

int tpo_grpc_door_open(struct tpo_grpc_door **out, struct tpo_gateway *g, const char *listen, struct tpo_error *err)
{
    struct tpo_grpc_door *d = calloc(1, sizeof(*d));
    if (d == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "out of memory");
    d->g = g;
    d->last = &d->first;
    pthread_mutex_init(&d->lock, NULL);
    uv_async_init(g->loop, &d->wake, on_wake);
    uv_timer_init(g->loop, &d->ready);
    d->handles = 2;
    d->wake.data = d->ready.data = d->drain.data = d;
    static const struct tpo_method methods[METHODS] = {
        [PERCEIVE] = {.path = "/tpo.v1.Gateway/Perceive", .request = &tpo__v1__perceive_request__descriptor},
        [PERCEIVE_STREAM] = {.path = "/tpo.v1.Gateway/PerceiveStream", .request = &tpo__v1__perceive_request__descriptor},
        [PUT] = {.path = "/tpo.v1.Media/Put", .request = &tpo__v1__media_chunk__descriptor, .stream_in = true, .paced = true},
    };
    for (enum method m = 0; m < METHODS; m++) {
        d->hooks[m] = (struct hook){d, m};
        d->methods[m] = methods[m];
        d->methods[m].on_open = on_open;
        d->methods[m].on_message = on_message;
        d->methods[m].on_cancel = on_cancel;
        d->methods[m].owner = &d->hooks[m];
        if (m != PUT) d->methods[m].message_bytes_max = g->s.body_max_bytes;
    }
    /* What gRPC gathers before it asks us: the largest message that any of the methods takes. */
    uint64_t most = g->s.body_max_bytes > CHUNK_MAX ? g->s.body_max_bytes : CHUNK_MAX;
    struct tpo_server_options options = {.listen = listen,
                                         .message_bytes_max = most + 65536,
                                         .memory_bytes_max = g->s.bodies_max_bytes + MEMORY_SPARE,
                                         .methods = d->methods,
                                         .n_methods = METHODS};
    int rc = tpo_server_open(&d->server, &options, err);
    if (rc != TPO_OK) {
        tpo_grpc_door_close(d);
        return rc;
    }
    uv_timer_start(&d->ready, on_ready, 0, READY_MS);
    *out = d;
    return TPO_OK;
}

int tpo_grpc_door_port(const struct tpo_grpc_door *d)
{
    return tpo_server_port(d->server);
}

static void drain(uv_work_t *work)
{
    struct tpo_grpc_door *d = work->data;
    tpo_server_drain(d->server, d->drain_ms);
}

static void on_drain_done(uv_work_t *work, int status)
{
    (void)status;
    struct tpo_grpc_door *d = work->data;
    d->on_drained(d->owner);
}

void tpo_grpc_door_drain(struct tpo_grpc_door *d, int drain_ms, void (*on_drained)(void *owner), void *owner)
{
    d->draining = true;
    d->drain_ms = drain_ms;
    d->on_drained = on_drained;
    d->owner = owner;
    uv_queue_work(d->g->loop, &d->drain, drain, on_drain_done);
}

static void on_closed(uv_handle_t *handle)
{
    struct tpo_grpc_door *d = handle->data;
    if (--d->handles > 0) return;
    pthread_mutex_destroy(&d->lock);
    free(d);
}

void tpo_grpc_door_close(struct tpo_grpc_door *d)
{
    if (d == NULL) return;
    tpo_server_close(d->server);
    uv_close((uv_handle_t *)&d->wake, on_closed);
    uv_close((uv_handle_t *)&d->ready, on_closed);
}
