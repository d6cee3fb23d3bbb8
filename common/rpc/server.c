/* This file owns a server: where it listens, which methods it has, and how it goes away. */
#include <grpc/grpc_security.h>
#include <grpc/support/time.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/rpc/server_private.h"

#define MESSAGE_BYTES (64 << 20)
#define ACCEPTING     32 /* callers that may come before the thread has looked again */

static grpc_server *create_server(int message_bytes_max, size_t memory_bytes_max)
{
    /* gRPC's own memory: a new quota has no end; past one streams are reset with ENHANCE_YOUR_CALM, to their callers RESOURCE_EXHAUSTED. */
    grpc_resource_quota *quota = grpc_resource_quota_create("server");
    if (memory_bytes_max > 0) grpc_resource_quota_resize(quota, memory_bytes_max);
    grpc_arg args[] = {
        {.type = GRPC_ARG_POINTER,
         .key = GRPC_ARG_RESOURCE_QUOTA,
         .value.pointer = {.p = quota, .vtable = grpc_resource_quota_arg_vtable()}},
        tpo_grpc_number(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, message_bytes_max),
        tpo_grpc_number(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, message_bytes_max),
        /* Two servers on one port would each get a part of the calls: taken is an error. */
        tpo_grpc_number(GRPC_ARG_ALLOW_REUSEPORT, 0),
        /* A kilobyte of gzip may hold a gigabyte: only identity is accepted. */
        tpo_grpc_number(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1 << GRPC_COMPRESS_NONE),
        tpo_grpc_number(GRPC_ARG_MAX_CONCURRENT_STREAMS, 1024),
        tpo_grpc_number(GRPC_ARG_KEEPALIVE_TIME_MS, 30000),
        tpo_grpc_number(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000),
        tpo_grpc_number(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
        /* Our clients ping every 20 s; stricter servers would answer GOAWAY too_many_pings. */
        tpo_grpc_number(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000),
    };
    grpc_channel_args all = {.num_args = sizeof(args) / sizeof(args[0]), .args = args};
    grpc_server *server = grpc_server_create(&all, NULL);
    grpc_resource_quota_unref(quota);
    return server;
}

static void on_tick(void *owner, int ok)
{
    struct tpo_server *s = owner;
    int64_t now = tpo_now_us();
    (void)ok;
    for (struct tpo_call *c = s->calls, *next; c != NULL; c = next) {
        next = c->next;
        tpo_call_check_stall(c, now);
    }
}

static void on_shutdown(void *owner, int ok)
{
    struct tpo_server *s = owner;
    (void)ok;
    atomic_store(&s->open, 0);
    tpo_loop_notify(s->loop);
}

const struct tpo_method *tpo_server_method(struct tpo_server *s, grpc_slice path)
{
    for (int i = 0; i < s->n_methods; i++)
        if (grpc_slice_str_cmp(path, s->methods[i].path) == 0) return &s->methods[i];
    for (int i = 0; i < 2; i++)
        if (grpc_slice_str_cmp(path, s->health_methods[i].path) == 0) return &s->health_methods[i];
    return NULL;
}

int tpo_server_open(struct tpo_server **out, const struct tpo_server_options *o, struct tpo_error *err)
{
    struct tpo_server *s = calloc(1, sizeof(*s));
    int rc = TPO_OK;
    if (s == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "out of memory");
    pthread_mutex_init(&s->lock, NULL);
    s->message_bytes_max = o->message_bytes_max > 0 ? (int)o->message_bytes_max : MESSAGE_BYTES;
    s->calls_max = o->calls_max > 0 ? o->calls_max : 1024;
    s->stall_ms = o->stall_ms > 0 ? o->stall_ms : 30000;
    s->stage = o->stage;
    s->methods = o->methods;
    s->n_methods = o->n_methods;
    s->tick_tag = (struct tpo_tag){.on_event = on_tick, .owner = s};
    s->shutdown_tag = (struct tpo_tag){.on_event = on_shutdown, .owner = s};
    tpo_health_init(s);
    s->own_loop = o->loop == NULL;
    s->loop = o->loop;
    if (s->own_loop) rc = tpo_loop_open_alone(&s->loop, err);
    if (rc != TPO_OK) goto fail;
    s->server = create_server(s->message_bytes_max, o->memory_bytes_max);
    grpc_server_register_completion_queue(s->server, tpo_loop_queue(s->loop), NULL);
    grpc_server_credentials *plain = grpc_insecure_server_credentials_create();
    s->port = grpc_server_add_http2_port(s->server, o->listen, plain);
    grpc_server_credentials_release(plain);
    if (s->port <= 0) {
        rc = tpo_fail(err, TPO_UNAVAILABLE, "listen", "cannot listen on %s: taken, or no address of this machine", o->listen);
        goto fail;
    }
    grpc_server_start(s->server);
    s->started = true;
    atomic_store(&s->open, 1);
    *out = s;
    tpo_loop_tick_add(s->loop, &s->tick_tag);
    for (int i = 0; i < ACCEPTING; i++) tpo_call_accept(s);
    return TPO_OK;
fail:
    tpo_server_close(s);
    return rc;
}

int tpo_server_port(const struct tpo_server *s)
{
    return s->port;
}

int tpo_server_calls(const struct tpo_server *s)
{
    return atomic_load(&((struct tpo_server *)s)->n_calls);
}

void tpo_server_serving(struct tpo_server *s, bool serving)
{
    pthread_mutex_lock(&s->lock);
    bool changed = atomic_exchange(&s->serving, serving) != serving;
    if (changed && !s->serving_posted) {
        s->serving_posted = true;
        tpo_loop_post(s->loop, &s->serving_tag);
    }
    pthread_mutex_unlock(&s->lock);
}

void tpo_server_drain(struct tpo_server *s, int drain_ms)
{
    if (!s->started || atomic_exchange(&s->draining, true)) return;
    tpo_server_serving(s, false);
    tpo_loop_wait_zero(s->loop, &s->n_calls, drain_ms);
    /* From here on nobody is waited for: what is left hears its cancel now. */
    tpo_loop_give(s->loop);
    grpc_server_shutdown_and_notify(s->server, tpo_loop_queue(s->loop), &s->shutdown_tag);
    grpc_server_cancel_all_calls(s->server);
    tpo_loop_wait_zero(s->loop, &s->open, -1);
    tpo_loop_wait_zero(s->loop, &s->n_objects, -1);
}

void tpo_server_close(struct tpo_server *s)
{
    if (s == NULL) return;
    tpo_server_drain(s, 0);
    if (s->server != NULL) {
        if (!s->started) {
            /* gRPC insists on a shutdown, even of what never listened. */
            atomic_store(&s->open, 1);
            tpo_loop_give(s->loop);
            grpc_server_shutdown_and_notify(s->server, tpo_loop_queue(s->loop), &s->shutdown_tag);
            tpo_loop_wait_zero(s->loop, &s->open, -1);
        }
        grpc_server_destroy(s->server);
    }
    if (s->loop != NULL) tpo_loop_tick_remove(s->loop, &s->tick_tag);
    if (s->own_loop) tpo_loop_close(s->loop);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
