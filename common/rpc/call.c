/* This file owns a call's life on the server's side.
 *
 *                 a caller came                      finish was called,             the status batch
 *                                                    the outbox is empty            came back
 *   ACCEPTING ----------------------------> OPEN ------------------------> ENDING -----------------> ENDED
 *       |                                                                                              |
 *       | the server shuts down                              freed when no tag is out, none is posted, |
 *       +---------------------------------------------------------------------------------------------+
 *                                                            and the method has let go
 *
 * While OPEN at most one read and one write are out, besides the notice of the close, which is out from OPEN until the end. A cancelled call
 * takes the same road: its method hears on_cancel, finishes, and gRPC answers the last batches at once. Whatever happens sets a flag and calls
 * move(), the one place where batches are started and the state changes. Another thread only fills the outbox, under the lock, and posts the call
 * to its owner; a posted call is not freed. */
#include <grpc/byte_buffer.h>
#include <grpc/slice.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/rpc/details.h"
#include "common/rpc/server_private.h"

#define WATCHES_MAX 256   /* of Health: they are not calls, and end when their caller likes */
#define READ_LEAST  16384 /* bytes of a stream that buy its caller more time */

static void move(struct tpo_call *c);

/* --- batches ----------------------------------------------------------------------------------------------------------------------- */

static void start(struct tpo_call *c, const grpc_op *ops, size_t n, struct tpo_tag *tag)
{
    tpo_loop_give(c->server->loop);
    grpc_call_error e = grpc_call_start_batch(c->call, ops, n, tag, NULL);
    TPO_ASSERT(e == GRPC_CALL_OK);
    c->tags++;
}

static void start_read(struct tpo_call *c)
{
    grpc_op op = {.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &c->received};
    c->reading = true;
    c->reading_since_us = tpo_now_us();
    start(c, &op, 1, &c->read_tag);
}

static int put_greeting(struct tpo_call *c, grpc_op *ops)
{
    if (c->greeted) return 0;
    c->greeted = true;
    ops[0] = (grpc_op){.op = GRPC_OP_SEND_INITIAL_METADATA};
    return 1;
}

/* `last`: the status goes in the same batch, which saves a unary reply a round through the queue. */
static void start_write(struct tpo_call *c, struct call_out *out, bool last, const struct tpo_error *end)
{
    grpc_op ops[3];
    grpc_metadata details;
    grpc_slice message = grpc_empty_slice(), bytes = grpc_empty_slice();
    int n = put_greeting(c, ops);
    if (out != NULL) ops[n++] = (grpc_op){.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = out->bytes};
    if (last) {
        bool ok = end->code == TPO_OK;
        ops[n] = (grpc_op){.op = GRPC_OP_SEND_STATUS_FROM_SERVER};
        ops[n].data.send_status_from_server.status = (grpc_status_code)end->code;
        ops[n].data.send_status_from_server.status_details = &message;
        if (!ok) {
            struct tpo_error told = *end;
            if (told.stage[0] == '\0' && c->server->stage != NULL) snprintf(told.stage, sizeof(told.stage), "%s", c->server->stage);
            bytes = tpo_details_pack(&told);
            message = grpc_slice_from_copied_string(told.message[0] != '\0' ? told.message : tpo_status_sentence(told.code));
            details = (grpc_metadata){.key = grpc_slice_from_static_string(TPO_DETAILS_KEY), .value = bytes};
            ops[n].data.send_status_from_server.trailing_metadata_count = 1;
            ops[n].data.send_status_from_server.trailing_metadata = &details;
        }
        n++;
    }
    c->writing = true;
    start(c, ops, (size_t)n, &c->write_tag);
    grpc_slice_unref(message);
    grpc_slice_unref(bytes);
    if (out != NULL) {
        grpc_byte_buffer_destroy(out->bytes);
        free(out);
    }
}

static void unlink_call(struct tpo_call *c)
{
    struct tpo_server *s = c->server;
    if (c->previous != NULL)
        c->previous->next = c->next;
    else if (s->calls == c)
        s->calls = c->next;
    if (c->next != NULL) c->next->previous = c->previous;
    if (!c->quiet) atomic_fetch_sub(&s->n_calls, 1);
    if (c->watching) s->n_watches--;
}

static void free_call(struct tpo_call *c)
{
    struct tpo_server *s = c->server;
    if (c->call != NULL) grpc_call_unref(c->call);
    grpc_call_details_destroy(&c->details);
    grpc_metadata_array_destroy(&c->metadata);
    if (c->received != NULL) grpc_byte_buffer_destroy(c->received);
    pthread_mutex_destroy(&c->lock);
    free(c);
    atomic_fetch_sub(&s->n_objects, 1);
    tpo_loop_notify(s->loop);
}

/* Under the lock. */
static void drop_unsent(struct tpo_call *c)
{
    for (struct call_out *out; (out = c->out_first) != NULL;) {
        c->out_first = out->next;
        grpc_byte_buffer_destroy(out->bytes);
        free(out);
    }
    c->out_last = NULL;
    c->n_out = 0;
}

/* What is left to write, under the lock. */
static struct call_out *take_out(struct tpo_call *c, bool *last, struct tpo_error *end)
{
    pthread_mutex_lock(&c->lock);
    if (c->told_lost) drop_unsent(c); /* nobody reads what a lost call had queued */
    struct call_out *out = c->out_first;
    if (out != NULL) {
        c->out_first = out->next;
        c->n_out--;
    }
    if (c->out_first == NULL) c->out_last = NULL;
    *last = c->finished && c->out_first == NULL;
    *end = c->doomed.code != TPO_OK ? c->doomed : c->end;
    pthread_mutex_unlock(&c->lock);
    return out;
}

static bool released(struct tpo_call *c)
{
    pthread_mutex_lock(&c->lock);
    bool yes = c->tags == 0 && !c->posted;
    pthread_mutex_unlock(&c->lock);
    return yes;
}

static bool held(struct tpo_call *c)
{
    pthread_mutex_lock(&c->lock);
    bool yes = c->held;
    pthread_mutex_unlock(&c->lock);
    return yes;
}

/* The one place where a call's state changes. */
static void move(struct tpo_call *c)
{
    if (c->state == CALL_OPEN && !c->writing) {
        bool last;
        struct tpo_error end;
        struct call_out *out = take_out(c, &last, &end);
        if (last) c->state = CALL_ENDING;
        if (out != NULL || last) start_write(c, out, last, &end);
    }
    bool wants = c->method != NULL && !c->read_ended && c->doomed.code == TPO_OK;
    if (c->state == CALL_OPEN && wants && !c->reading && !held(c)) start_read(c);
    if (c->state == CALL_ENDING && !c->writing) {
        c->state = CALL_ENDED;
        unlink_call(c);
    }
    if (c->state == CALL_ENDED && released(c)) free_call(c);
}

/* --- what happens to a call ---------------------------------------------------------------------------------------------------------- */

static void finish_here(struct tpo_call *c, const struct tpo_error *end)
{
    pthread_mutex_lock(&c->lock);
    if (!c->finished) {
        c->finished = true;
        c->end = *end;
    }
    pthread_mutex_unlock(&c->lock);
}

/* The call is lost for a reason of ours or the caller's: its method is told, if it knows of the call at all; else we end it ourselves. */
static void lose(struct tpo_call *c, const struct tpo_error *why)
{
    if (c->doomed.code == TPO_OK) c->doomed = *why;
    atomic_store(&c->cancelled, true);
    if (c->told_lost) return;
    c->told_lost = true;
    if (!c->handed) {
        finish_here(c, why);
        return;
    }
    pthread_mutex_lock(&c->lock);
    bool finished = c->finished;
    pthread_mutex_unlock(&c->lock);
    if (!finished && c->method->on_cancel != NULL) c->method->on_cancel(c->method->owner, c);
}

static void on_posted(void *owner, int ok)
{
    struct tpo_call *c = owner;
    (void)ok;
    pthread_mutex_lock(&c->lock);
    c->posted = false;
    pthread_mutex_unlock(&c->lock);
    move(c);
}

static void lose_cancelled(struct tpo_call *c)
{
    struct tpo_error gone;
    tpo_fail(&gone, TPO_CANCELLED, "cancelled", "the caller went away or its deadline passed");
    lose(c, &gone);
}

static void on_close(void *owner, int ok)
{
    struct tpo_call *c = owner;
    (void)ok;
    c->tags--;
    if (c->close_cancelled) lose_cancelled(c);
    move(c);
}

static void on_write(void *owner, int ok)
{
    struct tpo_call *c = owner;
    (void)ok; /* a write fails only because the call is lost, and the close notice tells that */
    c->tags--;
    c->writing = false;
    move(c);
}

static void deliver(struct tpo_call *c)
{
    struct tpo_error err;
    struct tpo_payload payload = {0};
    ProtobufCMessage *message;
    size_t bytes = grpc_byte_buffer_length(c->received), most = c->method->message_bytes_max;
    int rc = most != 0 && bytes > most
                 ? tpo_fail(&err, TPO_RESOURCE_EXHAUSTED, "message_too_large", "a message of %zu bytes, at most %zu", bytes, most)
                 : tpo_message_unpack(&message, c->method->payload ? &payload : NULL, c->received, c->method->request, &err);
    grpc_byte_buffer_destroy(c->received);
    c->received = NULL;
    if (rc != TPO_OK) {
        lose(c, &err);
        return;
    }
    c->handed = true;
    if (!c->method->stream_in) c->read_ended = true;
    pthread_mutex_lock(&c->lock);
    c->held = c->method->paced;
    pthread_mutex_unlock(&c->lock);
    c->method->on_message(c->method->owner, c, message, &payload);
}

/* Only whole pieces buy time: a caller that sends a byte now and then holds its call no longer than a silent one. */
static void count_read(struct tpo_call *c)
{
    c->owed_us += tpo_now_us() - c->reading_since_us;
    if (c->received != NULL) c->read_bytes += grpc_byte_buffer_length(c->received);
    if (c->read_bytes >= READ_LEAST) c->owed_us = 0, c->read_bytes = 0;
}

static void on_read(void *owner, int ok)
{
    struct tpo_call *c = owner;
    struct tpo_error err;
    c->tags--;
    c->reading = false;
    count_read(c);
    pthread_mutex_lock(&c->lock);
    bool wanted = !c->finished && !c->told_lost;
    pthread_mutex_unlock(&c->lock);
    if (ok && c->received != NULL && wanted) {
        deliver(c);
    } else {
        if (c->received != NULL) grpc_byte_buffer_destroy(c->received);
        c->received = NULL;
        c->read_ended = true;
        /* A connection that broke ends the messages just as a caller does who has sent its last; its notice may come later than the end of the
         * messages, so only gRPC can tell which of the two this was. Without the look, half an upload would pass for a whole one. */
        bool broke = grpc_call_failed_before_recv_message(c->call) != 0;
        if (wanted && broke) {
            lose_cancelled(c);
        } else if (wanted && c->method->stream_in) {
            c->handed = true;
            c->method->on_message(c->method->owner, c, NULL, NULL);
        } else if (wanted) {
            tpo_fail(&err, TPO_INVALID_ARGUMENT, "message_missing", "the call came without its message");
            lose(c, &err);
        }
    }
    move(c);
}

/* Whether the call may go on to its method. */
static int admit(struct tpo_call *c, struct tpo_error *err)
{
    struct tpo_server *s = c->server;
    c->method = tpo_server_method(s, c->details.method);
    if (c->method == NULL) return tpo_fail(err, TPO_UNIMPLEMENTED, "method", "there is no such method here");
    c->quiet = c->method->owner == s; /* Health's: neither counted nor waited for */
    if (!c->quiet && atomic_load(&s->draining)) {
        tpo_fail(err, TPO_UNAVAILABLE, "draining", "this instance is going away");
        err->retry_ms = 100;
        return err->code;
    }
    if (!c->quiet && atomic_load(&s->n_calls) >= s->calls_max) {
        tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "too_many_calls", "%d calls are in flight", s->calls_max);
        err->retry_ms = 100;
        return err->code;
    }
    if (c->method == &s->health_methods[1] && s->n_watches >= WATCHES_MAX) {
        tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "too_many_watches", "%d watch already", WATCHES_MAX);
        err->retry_ms = 1000;
        return err->code;
    }
    if (c->method->on_open == NULL) return TPO_OK;
    int rc = c->method->on_open(c->method->owner, c, err);
    c->handed = rc == TPO_OK;
    return rc;
}

static void on_accept(void *owner, int ok)
{
    struct tpo_call *c = owner;
    struct tpo_server *s = c->server;
    struct tpo_error err = {0};
    c->tags--;
    if (!ok) {
        free_call(c);
        return;
    }
    tpo_call_accept(s);
    grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER, .data.recv_close_on_server.cancelled = &c->close_cancelled};
    start(c, &op, 1, &c->close_tag);
    tpo_call_read_request_id(c);
    int rc = admit(c, &err);
    c->state = CALL_OPEN;
    if (!c->quiet) atomic_fetch_add(&s->n_calls, 1);
    c->watching = rc == TPO_OK && c->method == &s->health_methods[1];
    if (c->watching) s->n_watches++;
    c->next = s->calls;
    if (c->next != NULL) c->next->previous = c;
    s->calls = c;
    if (rc != TPO_OK) {
        c->method = NULL;
        lose(c, &err);
    }
    move(c);
}

void tpo_call_accept(struct tpo_server *s)
{
    struct tpo_call *c = calloc(1, sizeof(*c));
    TPO_ASSERT(c != NULL);
    c->server = s;
    c->accept_tag = (struct tpo_tag){.on_event = on_accept, .owner = c};
    c->read_tag = (struct tpo_tag){.on_event = on_read, .owner = c};
    c->write_tag = (struct tpo_tag){.on_event = on_write, .owner = c};
    c->close_tag = (struct tpo_tag){.on_event = on_close, .owner = c};
    c->post_tag = (struct tpo_tag){.on_event = on_posted, .owner = c};
    pthread_mutex_init(&c->lock, NULL);
    grpc_call_details_init(&c->details);
    grpc_metadata_array_init(&c->metadata);
    atomic_fetch_add(&s->n_objects, 1);
    grpc_completion_queue *q = tpo_loop_queue(s->loop);
    c->tags = 1;
    tpo_loop_give(s->loop);
    if (grpc_server_request_call(s->server, &c->call, &c->details, &c->metadata, q, q, &c->accept_tag) != GRPC_CALL_OK)
        free_call(c);
}

void tpo_call_check_stall(struct tpo_call *c, int64_t now_us)
{
    struct tpo_error err;
    if (c->state != CALL_OPEN || !c->reading || c->owed_us + now_us - c->reading_since_us < (int64_t)c->server->stall_ms * 1000)
        return;
    tpo_fail(&err, TPO_DEADLINE_EXCEEDED, "stalled", "no message, or too little of a stream, came in %d ms", c->server->stall_ms);
    lose(c, &err);
    move(c);
}

/* --- what a method may do, from any thread -------------------------------------------------------------------------------------------- */

/* Under the lock: a posted call cannot be freed before its owner has seen it. */
static void post(struct tpo_call *c)
{
    if (c->posted) return;
    c->posted = true;
    tpo_loop_post(c->server->loop, &c->post_tag);
}

static void send(struct tpo_call *c, const ProtobufCMessage *message, struct tpo_payload *take_payload, bool now)
{
    struct call_out *out = calloc(1, sizeof(*out));
    if (out != NULL)
        out->bytes = tpo_message_pack(message, take_payload);
    else
        tpo_payload_free(take_payload);
    TPO_ASSERT(out != NULL && out->bytes != NULL);
    pthread_mutex_lock(&c->lock);
    if (c->out_last != NULL)
        c->out_last->next = out;
    else
        c->out_first = out;
    c->out_last = out;
    c->n_out++;
    if (now) post(c);
    pthread_mutex_unlock(&c->lock);
}

void tpo_call_send(struct tpo_call *c, const ProtobufCMessage *message, struct tpo_payload *take_payload)
{
    send(c, message, take_payload, true);
}

void tpo_call_send_newest(struct tpo_call *c, const ProtobufCMessage *message)
{
    pthread_mutex_lock(&c->lock);
    drop_unsent(c);
    pthread_mutex_unlock(&c->lock);
    send(c, message, NULL, true);
}

void tpo_call_send_last(struct tpo_call *c, const ProtobufCMessage *message, struct tpo_payload *take_payload)
{
    send(c, message, take_payload, false);
}

void tpo_call_more(struct tpo_call *c)
{
    pthread_mutex_lock(&c->lock);
    c->held = false;
    post(c);
    pthread_mutex_unlock(&c->lock);
}

int tpo_call_unsent(struct tpo_call *c)
{
    pthread_mutex_lock(&c->lock);
    int n = c->n_out;
    pthread_mutex_unlock(&c->lock);
    return n;
}

void tpo_call_finish(struct tpo_call *c, int status, const struct tpo_error *err)
{
    pthread_mutex_lock(&c->lock);
    TPO_ASSERT(!c->finished);
    c->finished = true;
    if (status != TPO_OK && err != NULL) c->end = *err;
    c->end.code = status;
    post(c);
    pthread_mutex_unlock(&c->lock);
}

void tpo_call_set_owner(struct tpo_call *c, void *owner)
{
    c->owner = owner;
}

void *tpo_call_owner(const struct tpo_call *c)
{
    return c->owner;
}

bool tpo_call_cancelled(const struct tpo_call *c)
{
    return atomic_load(&((struct tpo_call *)c)->cancelled);
}

double tpo_call_left_ms(const struct tpo_call *c)
{
    gpr_timespec left = gpr_time_sub(c->details.deadline, gpr_now(c->details.deadline.clock_type));
    return (double)left.tv_sec * 1e3 + left.tv_nsec * 1e-6;
}
