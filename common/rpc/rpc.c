/* This file owns a call's life on the client's side.
 *
 *            the batches of a try are started            the status came, every read is read to its end,
 *                                                        no batch is out
 *   OPENING ---------------------------------> OPEN ---------------------------------------------------> DONE, freed after on_done
 *      ^                                        |
 *      +----------------------------------------+
 *       UNAVAILABLE before any message, another peer is there, first try
 *
 * Two batches are out from the start: the first write (metadata, message and the end) with the first read (metadata and message), and the
 * status; where we stream, write and read are batches of their own. One more write or read is started when the one before came back.
 * Everything runs on the loop owner's thread. */
#include <grpc/byte_buffer.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/rpc/client_private.h"
#include "common/rpc/details.h"
#include "grpc/health/v1/health.pb-c.h"

#define TRIES 2

struct out {
    struct out *next;
    grpc_byte_buffer *bytes;
};

enum rpc_state { RPC_OPENING, RPC_OPEN, RPC_DONE };

struct tpo_rpc {
    enum rpc_state state;
    struct tpo_peers *peers;
    struct tpo_rpc *previous, *next;
    struct peer *peer;
    struct tpo_rpc_start start;
    struct tpo_rpc_events on;
    grpc_slice path;
    char request_id[72], traceparent[72], version[24];
    char *key;
    gpr_timespec deadline;
    uint32_t flags;
    int tries, tags;
    bool cancelled, ended_sending, end_sent, writing, got_message, read_ended, have_status;
    struct tpo_error failed;   /* why we broke it off ourselves */
    grpc_byte_buffer *request; /* kept until a message came, for another try */

    grpc_call *call;
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *received;
    grpc_status_code status;
    grpc_slice status_text;
    struct out *out_first, *out_last;
    struct tpo_tag write_tag, read_tag, status_tag;
};

static void move(struct tpo_rpc *r);

static void start_batch(struct tpo_rpc *r, const grpc_op *ops, size_t n, struct tpo_tag *tag)
{
    tpo_loop_give(r->peers->loop);
    grpc_call_error e = grpc_call_start_batch(r->call, ops, n, tag, NULL);
    TPO_ASSERT(e == GRPC_CALL_OK);
    r->tags++;
}

static int put_metadata(struct tpo_rpc *r, grpc_metadata *m)
{
    const char *pairs[3][2] = {{"tpo-request-id", r->request_id}, {"traceparent", r->traceparent}, {"tpo-version", r->version}};
    int n = 0;
    for (int i = 0; i < 3; i++)
        if (pairs[i][1][0] != '\0')
            m[n++] = (grpc_metadata){.key = grpc_slice_from_static_string(pairs[i][0]),
                                     .value = grpc_slice_from_copied_string(pairs[i][1])};
    return n;
}

/* One try on r->peer. */
static void start_try(struct tpo_rpc *r)
{
    grpc_metadata metadata[3];
    grpc_op ops[5], read[2], status;
    size_t n = 0;
    bool one_batch = !r->start.stream_in;
    r->tries++;
    r->peer->in_flight++;
    r->peer->refs++;
    r->call = grpc_channel_create_call(r->peer->channel, NULL, GRPC_PROPAGATE_DEFAULTS, tpo_loop_queue(r->peers->loop), r->path,
                                       NULL, r->deadline, NULL);
    TPO_ASSERT(r->call != NULL);
    r->state = RPC_OPEN;
    r->have_status = r->read_ended = false;
    ops[n] = (grpc_op){.op = GRPC_OP_SEND_INITIAL_METADATA, .flags = r->flags};
    ops[n].data.send_initial_metadata.count = (size_t)put_metadata(r, metadata);
    ops[n++].data.send_initial_metadata.metadata = metadata;
    ops[n++] = (grpc_op){.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = r->request};
    if (!r->start.stream_in) ops[n++] = (grpc_op){.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT};
    r->end_sent = !r->start.stream_in;
    /* gRPC takes the slices of what it sends: another try needs its own references. */
    grpc_byte_buffer *kept = !r->start.stream_in && r->tries < TRIES ? grpc_byte_buffer_copy(r->request) : NULL;
    read[0] = (grpc_op){.op = GRPC_OP_RECV_INITIAL_METADATA, .data.recv_initial_metadata.recv_initial_metadata = &r->initial};
    read[1] = (grpc_op){.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &r->received};
    if (one_batch) ops[n++] = read[0], ops[n++] = read[1];
    r->writing = !one_batch;
    start_batch(r, ops, n, one_batch ? &r->read_tag : &r->write_tag);
    for (size_t i = 0; i < ops[0].data.send_initial_metadata.count; i++) grpc_slice_unref(metadata[i].value);
    grpc_byte_buffer_destroy(r->request);
    r->request = kept;
    if (!one_batch) start_batch(r, read, 2, &r->read_tag);
    status = (grpc_op){.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
    status.data.recv_status_on_client.trailing_metadata = &r->trailing;
    status.data.recv_status_on_client.status = &r->status;
    status.data.recv_status_on_client.status_details = &r->status_text;
    start_batch(r, &status, 1, &r->status_tag);
    if (r->cancelled) grpc_call_cancel(r->call, NULL);
}

static void end_try(struct tpo_rpc *r)
{
    grpc_call_unref(r->call);
    r->call = NULL;
    r->peer->in_flight--;
    grpc_slice_unref(r->status_text);
    r->status_text = grpc_empty_slice();
    grpc_metadata_array_destroy(&r->initial);
    grpc_metadata_array_destroy(&r->trailing);
    grpc_metadata_array_init(&r->initial);
    grpc_metadata_array_init(&r->trailing);
}

/* --- the end ------------------------------------------------------------------------------------------------------------------------- */

static const char *reason_of(int code)
{
    switch (code) {
    case TPO_CANCELLED:
        return "cancelled";
    case TPO_DEADLINE_EXCEEDED:
        return "deadline";
    case TPO_UNAVAILABLE:
        return "peer_unavailable";
    case TPO_UNIMPLEMENTED:
        return "method";
    case TPO_RESOURCE_EXHAUSTED:
        return "limit";
    default:
        return "peer_failed";
    }
}

/* What the other side told, or what gRPC says of the way there. */
static void read_error(struct tpo_rpc *r, struct tpo_error *err)
{
    char text[200];
    size_t n = GRPC_SLICE_LENGTH(r->status_text) < sizeof(text) ? GRPC_SLICE_LENGTH(r->status_text) : sizeof(text) - 1;
    memcpy(text, GRPC_SLICE_START_PTR(r->status_text), n);
    text[n] = '\0';
    int code = r->status <= GRPC_STATUS_UNAUTHENTICATED ? (int)r->status : TPO_UNKNOWN;
    tpo_fail(err, code, reason_of(code), "%s", text[0] != '\0' ? text : tpo_status_sentence(code));
    for (size_t i = 0; i < r->trailing.count; i++)
        if (grpc_slice_str_cmp(r->trailing.metadata[i].key, TPO_DETAILS_KEY) == 0)
            tpo_details_unpack(err, GRPC_SLICE_START_PTR(r->trailing.metadata[i].value),
                               GRPC_SLICE_LENGTH(r->trailing.metadata[i].value));
    if (err->stage[0] == '\0') snprintf(err->stage, sizeof(err->stage), "%s", r->peers->stage);
}

static bool try_again(struct tpo_rpc *r)
{
    bool may = r->status == GRPC_STATUS_UNAVAILABLE && r->request != NULL && !r->got_message && !r->cancelled &&
               !r->peers->closing && r->start.peer == 0;
    struct peer *other = may ? tpo_peer_pick(r->peers, r->key, r->start.versioned ? r->version : NULL, r->peer) : NULL;
    if (other == NULL) return false;
    end_try(r);
    tpo_peer_release(r->peer);
    r->peer = other;
    r->state = RPC_OPENING;
    start_try(r);
    return true;
}

static void free_rpc(struct tpo_rpc *r)
{
    struct tpo_peers *p = r->peers;
    if (r->previous != NULL)
        r->previous->next = r->next;
    else
        p->rpcs = r->next;
    if (r->next != NULL) r->next->previous = r->previous;
    for (struct out *o = r->out_first, *next; o != NULL; o = next) {
        next = o->next;
        grpc_byte_buffer_destroy(o->bytes);
        free(o);
    }
    if (r->request != NULL) grpc_byte_buffer_destroy(r->request);
    grpc_metadata_array_destroy(&r->initial);
    grpc_metadata_array_destroy(&r->trailing);
    grpc_slice_unref(r->path);
    free(r->key);
    free(r);
    atomic_fetch_sub(&p->n_rpcs, 1);
    tpo_loop_notify(p->loop);
}

static void finish(struct tpo_rpc *r)
{
    struct tpo_error err = {0};
    if (r->failed.code != TPO_OK)
        err = r->failed;
    else if (r->status != GRPC_STATUS_OK)
        read_error(r, &err);
    end_try(r);
    r->state = RPC_DONE;
    r->on.on_done(r->on.owner, r, err.code, &err);
    tpo_peer_release(r->peer);
    free_rpc(r);
}

/* --- writes and reads ------------------------------------------------------------------------------------------------------------------ */

static void start_write(struct tpo_rpc *r)
{
    grpc_op ops[2] = {0};
    size_t n = 0;
    struct out *o = r->out_first;
    if (o != NULL) {
        r->out_first = o->next;
        if (r->out_first == NULL) r->out_last = NULL;
        ops[n++] = (grpc_op){.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = o->bytes};
    }
    if (r->ended_sending && r->out_first == NULL) {
        ops[n++] = (grpc_op){.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT};
        r->end_sent = true;
    }
    r->writing = true;
    start_batch(r, ops, n, &r->write_tag);
    if (o != NULL) grpc_byte_buffer_destroy(o->bytes);
    free(o);
}

/* The one place where a call's state changes. */
static void move(struct tpo_rpc *r)
{
    bool more = r->out_first != NULL || (r->ended_sending && !r->end_sent);
    if (!r->writing && more && !r->have_status) start_write(r);
    if (!r->have_status || !r->read_ended || r->tags > 0) return;
    if (!try_again(r)) finish(r);
}

static void on_write(void *owner, int ok)
{
    struct tpo_rpc *r = owner;
    r->tags--;
    r->writing = false;
    if (ok && r->start.stream_in && !r->ended_sending && !r->have_status && r->out_first == NULL && r->on.on_writable != NULL)
        r->on.on_writable(r->on.owner, r);
    move(r);
}

static void break_off(struct tpo_rpc *r, const struct tpo_error *why)
{
    if (r->failed.code == TPO_OK) r->failed = *why;
    if (r->failed.stage[0] == '\0') snprintf(r->failed.stage, sizeof(r->failed.stage), "%s", r->peers->stage);
    grpc_call_cancel(r->call, NULL);
}

static void on_read(void *owner, int ok)
{
    struct tpo_rpc *r = owner;
    struct tpo_payload payload = {0};
    struct tpo_error err;
    ProtobufCMessage *message = NULL;
    r->tags--;
    if (!ok || r->received == NULL) {
        if (r->received != NULL) grpc_byte_buffer_destroy(r->received);
        r->received = NULL;
        r->read_ended = true;
        move(r);
        return;
    }
    r->got_message = true;
    int rc = tpo_message_unpack(&message, r->start.reply_payload ? &payload : NULL, r->received, r->start.reply, &err);
    grpc_byte_buffer_destroy(r->received);
    r->received = NULL;
    if (rc != TPO_OK) {
        /* The peer's fault, not the caller's: its own codes must not say otherwise. */
        err.code = TPO_INTERNAL;
        break_off(r, &err);
    }
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &r->received};
    start_batch(r, &op, 1, &r->read_tag);
    if (rc == TPO_OK && r->failed.code == TPO_OK) {
        r->on.on_message(r->on.owner, r, message, &payload);
    } else if (rc == TPO_OK) {
        protobuf_c_message_free_unpacked(message, NULL);
        tpo_payload_free(&payload);
    }
    move(r);
}

static void on_status(void *owner, int ok)
{
    struct tpo_rpc *r = owner;
    (void)ok;
    r->tags--;
    r->have_status = true;
    move(r);
}

/* --- what callers do ------------------------------------------------------------------------------------------------------------------- */

static void copy_text(char *out, size_t size, const char *text)
{
    snprintf(out, size, "%s", text != NULL ? text : "");
}

static struct tpo_rpc *open_rpc(struct tpo_peers *p, struct peer *x, const struct tpo_rpc_start *start, grpc_byte_buffer *request,
                                const struct tpo_rpc_events *on, uint32_t flags)
{
    struct tpo_rpc *r = calloc(1, sizeof(*r));
    TPO_ASSERT(r != NULL);
    r->peers = p;
    r->peer = x;
    r->start = *start;
    r->on = *on;
    r->path = grpc_slice_from_copied_string(start->path);
    copy_text(r->request_id, sizeof(r->request_id), start->request_id);
    copy_text(r->traceparent, sizeof(r->traceparent), start->traceparent);
    copy_text(r->version, sizeof(r->version), start->version);
    r->key = start->key != NULL ? strdup(start->key) : NULL;
    r->deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(start->timeout_ms, GPR_TIMESPAN));
    r->flags = flags;
    r->request = request;
    r->status_text = grpc_empty_slice();
    grpc_metadata_array_init(&r->initial);
    grpc_metadata_array_init(&r->trailing);
    r->write_tag = (struct tpo_tag){.on_event = on_write, .owner = r};
    r->read_tag = (struct tpo_tag){.on_event = on_read, .owner = r};
    r->status_tag = (struct tpo_tag){.on_event = on_status, .owner = r};
    r->next = p->rpcs;
    if (r->next != NULL) r->next->previous = r;
    p->rpcs = r;
    atomic_fetch_add(&p->n_rpcs, 1);
    start_try(r);
    return r;
}

struct tpo_rpc *tpo_rpc_open(struct tpo_peers *p, const struct tpo_rpc_start *start, const ProtobufCMessage *message,
                             struct tpo_payload *take_payload, const struct tpo_rpc_events *on, struct tpo_error *err)
{
    struct tpo_rpc_start picked = *start;
    struct peer *x = start->peer != 0 ? tpo_peer_of(p, start->peer) : NULL;
    if (x == NULL) picked.peer = 0, x = tpo_peer_pick(p, start->key, start->versioned ? start->version : NULL, NULL);
    if (x == NULL || p->closing) {
        if (p->n_peers > 0 && start->versioned && !p->closing)
            tpo_fail(err, TPO_FAILED_PRECONDITION, "version", "no %s holds version %s", p->stage, start->version);
        else
            tpo_fail(err, TPO_UNAVAILABLE, "peer_missing", "no %s is known", p->stage);
        if (err != NULL) snprintf(err->stage, sizeof(err->stage), "%s", p->stage);
        tpo_payload_free(take_payload);
        return NULL;
    }
    grpc_byte_buffer *request = tpo_message_pack(message, take_payload);
    if (request == NULL) {
        tpo_fail(err, TPO_ENOMEM, "memory", "out of memory");
        return NULL;
    }
    return open_rpc(p, x, &picked, request, on, 0);
}

struct tpo_rpc *tpo_rpc_open_watch(struct peer *x, bool wait, const struct tpo_rpc_events *on)
{
    Grpc__Health__V1__HealthCheckRequest all = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    struct tpo_rpc_start start = {
        .path = "/grpc.health.v1.Health/Watch",
        .reply = &grpc__health__v1__health_check_response__descriptor,
        .timeout_ms = x->peers->watch_ms,
        .peer = x->id, /* not tried elsewhere */
    };
    return open_rpc(x->peers, x, &start, tpo_message_pack(&all.base, NULL), on,
                    (wait ? GRPC_INITIAL_METADATA_WAIT_FOR_READY : 0) | GRPC_INITIAL_METADATA_WAIT_FOR_READY_EXPLICITLY_SET);
}

void tpo_rpc_send(struct tpo_rpc *r, const ProtobufCMessage *message)
{
    struct out *o = calloc(1, sizeof(*o));
    TPO_ASSERT(o != NULL && !r->ended_sending);
    o->bytes = tpo_message_pack(message, NULL);
    TPO_ASSERT(o->bytes != NULL);
    if (r->out_last != NULL)
        r->out_last->next = o;
    else
        r->out_first = o;
    r->out_last = o;
    if (!r->writing && !r->have_status) start_write(r);
}

void tpo_rpc_send_end(struct tpo_rpc *r)
{
    r->ended_sending = true;
    if (!r->writing && !r->have_status && !r->end_sent) start_write(r);
}

void tpo_rpc_cancel(struct tpo_rpc *r)
{
    r->cancelled = true;
    if (r->call != NULL) grpc_call_cancel(r->call, NULL);
}

void tpo_rpc_cancel_all(struct tpo_peers *p)
{
    for (struct tpo_rpc *r = p->rpcs; r != NULL; r = r->next) tpo_rpc_cancel(r);
}

const char *tpo_rpc_peer(const struct tpo_rpc *r)
{
    return r->peer->address;
}

int tpo_rpc_peer_id(const struct tpo_rpc *r)
{
    return r->peer->id;
}

/* --- a call that waits ------------------------------------------------------------------------------------------------------------------ */

struct waited {
    ProtobufCMessage **reply;
    struct tpo_payload *payload;
    struct tpo_error err;
    bool got;
    _Atomic int open;
};

static void on_waited_message(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    struct waited *w = owner;
    (void)r;
    if (w->got) {
        protobuf_c_message_free_unpacked(message, NULL);
        tpo_payload_free(payload);
        return;
    }
    w->got = true;
    *w->reply = message;
    if (w->payload != NULL)
        *w->payload = *payload;
    else
        tpo_payload_free(payload);
}

static void on_waited_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    struct waited *w = owner;
    (void)r, (void)status;
    w->err = *err;
    w->open = 0;
}

int tpo_rpc_call(struct tpo_peers *p, const struct tpo_rpc_start *start, const ProtobufCMessage *message,
                 struct tpo_payload *take_payload, ProtobufCMessage **reply, struct tpo_payload *reply_payload,
                 struct tpo_error *err)
{
    struct waited w = {.reply = reply, .payload = reply_payload, .open = 1};
    struct tpo_rpc_events on = {.owner = &w, .on_message = on_waited_message, .on_done = on_waited_done};
    *reply = NULL;
    if (tpo_rpc_open(p, start, message, take_payload, &on, err) == NULL) return TPO_UNAVAILABLE;
    tpo_loop_wait_zero(p->loop, &w.open, -1);
    if (w.err.code == TPO_OK && w.got) return TPO_OK;
    if (w.err.code == TPO_OK) tpo_fail(&w.err, TPO_INTERNAL, "message_missing", "%s answered without a message", p->stage);
    if (w.got) {
        protobuf_c_message_free_unpacked(*reply, NULL);
        tpo_payload_free(reply_payload);
        *reply = NULL;
    }
    if (err != NULL) *err = w.err;
    return w.err.code;
}
