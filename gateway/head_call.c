/* This file owns a task call and the head that works on it: an error of a head goes into its own call and the rest of the answer stands. */
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/limits.h"
#include "gateway/request_private.h"

static void start_head(struct head_call *c);

void tpo_head_call_free(struct head_call *c)
{
    if (c->end != NULL) protobuf_c_message_free_unpacked(&c->end->base, NULL);
    tpo_payload_free(&c->e);
    free(c);
}

void tpo_head_call_fail(struct head_call *c, const struct tpo_error *err)
{
    struct tpo_request *r = c->r;
    if (c->done || tpo_request_over(r)) return;
    c->done = true;
    c->err = *err;
    if (c->err.stage[0] == '\0') snprintf(c->err.stage, sizeof(c->err.stage), "%s", c->task);
    Tpo__V1__Call *call = r->answer.response.calls[c->index];
    call->error = tpo_error_message(&c->err, r->id);
    tpo_request_emit(r, TPO__V1__PERCEIVE_EVENT__KIND_ERROR, call->error);
    tpo_request_finish_if_done(r);
}

static void on_head_message(void *owner, struct tpo_rpc *rpc, ProtobufCMessage *message, struct tpo_payload *payload)
{
    (void)rpc;
    struct head_call *c = owner;
    struct tpo_request *r = c->r;
    Tpo__V1__TaskResult *result = (Tpo__V1__TaskResult *)message;
    if (payload != NULL) tpo_payload_free(payload);
    if (!tpo_request_over(r)) switch (result->kind_case) {
        case TPO__V1__TASK_RESULT__KIND_BOX:
            tpo_request_emit(r, TPO__V1__PERCEIVE_EVENT__KIND_BOX, tpo_answer_box(&r->answer, c->index, result->box));
            break;
        case TPO__V1__TASK_RESULT__KIND_MOMENT:
            tpo_request_emit(r, TPO__V1__PERCEIVE_EVENT__KIND_MOMENT,
                             tpo_answer_take_moment(&r->answer, c->index, &result->moment));
            break;
        case TPO__V1__TASK_RESULT__KIND_SALIENCY:
            tpo_request_emit(r, TPO__V1__PERCEIVE_EVENT__KIND_SALIENCY,
                             tpo_answer_take_saliency(&r->answer, c->index, &result->saliency));
            break;
        case TPO__V1__TASK_RESULT__KIND_TRACK:
            tpo_request_emit(r, TPO__V1__PERCEIVE_EVENT__KIND_TRACK, tpo_answer_take_track(&r->answer, c->index, &result->track));
            break;
        case TPO__V1__TASK_RESULT__KIND_DONE:
            if (c->end == NULL) {
                c->end = result->done;
                c->told_ms = tpo_now_ms();
                result->done = NULL;
            }
            break;
        default:
            break;
        }
    protobuf_c_message_free_unpacked(message, NULL);
}

static void on_head_put(void *owner, const struct tpo_error *err)
{
    struct head_call *c = owner;
    c->put = NULL;
    if (err->code == TPO_OK)
        start_head(c);
    else
        tpo_head_call_fail(c, err);
    tpo_request_callback_done(c->r);
}

static bool put_for_head(struct head_call *c, const struct tpo_error *err)
{
    struct tpo_request *r = c->r;
    if (strcmp(err->reason, "media_missing") != 0 || c->puts >= PUTS_MAX || r->media_id[0] == '\0' || tpo_request_over(r))
        return false;
    struct tpo_rpc_start start = tpo_request_hop(r, NULL, NULL);
    start.peer = c->peer;
    c->put = tpo_media_put_open(r->g, c->peers, &start, r->media_id, on_head_put, c);
    if (c->put == NULL) return false;
    c->puts++;
    r->refs++;
    return true;
}

/* The head failed, or none has this version: then the whole request may begin anew, while nothing was streamed; if that was known when the
 * version was chosen, beginning anew would choose the same. */
static void refused(struct head_call *c, const struct tpo_error *err)
{
    struct tpo_error told = *err;
    if (tpo_request_of_version(err) && c->r->version.heads && tpo_request_start_anew(c->r)) return;
    tpo_request_version_gone(&told);
    tpo_head_call_fail(c, &told);
}

static void on_head_done(void *owner, struct tpo_rpc *rpc, int status, const struct tpo_error *err)
{
    struct head_call *c = owner;
    struct tpo_request *r = c->r;
    const int peer = tpo_rpc_peer_id(rpc);
    snprintf(c->instance, sizeof(c->instance), "%s", tpo_rpc_peer(rpc));
    c->peer = peer;
    c->rpc = NULL;
    if (status == TPO_OK && c->end != NULL) {
        c->done = true;
        tpo_payload_free(&c->e);
        tpo_request_finish_if_done(r);
    } else if (status == TPO_OK) {
        struct tpo_error silent;
        tpo_fail(&silent, TPO_INTERNAL, "head_silent", "the head ended without saying it was done");
        tpo_head_call_fail(c, &silent);
    } else if (tpo_request_of_version(err)) {
        c->peer = 0;
        if (tpo_version_refused(c->peers, peer, r->version.number))
            start_head(c);
        else
            refused(c, err);
    } else if (!put_for_head(c, err)) {
        tpo_head_call_fail(c, err);
    }
    tpo_request_callback_done(r);
}

static void start_head(struct head_call *c)
{
    struct tpo_request *r = c->r;
    if (tpo_request_over(r)) return;
    Tpo__V1__Rect *boxes[TPO_BOXES_MAX];
    Tpo__V1__TaskCall call = TPO__V1__TASK_CALL__INIT;
    call.task = c->task;
    call.index = c->index;
    call.media = r->media;
    call.query = r->q->turns[r->q->n_turns - 1]->text;
    for (size_t i = 0; i < r->q->n_boxes; i++) boxes[i] = &r->rects[i];
    call.n_boxes = r->q->n_boxes;
    call.version = r->version.number;
    call.boxes = boxes;
    struct tpo_error err = {0};
    struct tpo_payload e = {0};
    int rc = c->e.data != NULL ? tpo_payload_alloc(&e, c->e.dtype, c->e.n_dims, c->e.shape) : TPO_OK;
    if (rc != TPO_OK) {
        tpo_fail(&err, rc, "memory", "out of memory");
        tpo_head_call_fail(c, &err);
        return;
    }
    if (e.data != NULL) memcpy(e.data, c->e.data, e.size_bytes);
    struct tpo_rpc_start start = tpo_request_hop(r, "/tpo.v1.Head/Run", &tpo__v1__task_result__descriptor);
    start.peer = c->peer;
    const struct tpo_rpc_events events = {.owner = c, .on_message = on_head_message, .on_done = on_head_done};
    c->sent_ms = tpo_now_ms();
    c->rpc = tpo_rpc_open(c->peers, &start, &call.base, &e, &events, &err);
    if (c->rpc == NULL)
        refused(c, &err);
    else
        r->refs++;
}

void tpo_head_call_open(struct tpo_request *r, const Tpo__V1__TaskEmbedding *t)
{
    struct tpo_error err = {0};
    if (r->n_calls == CALLS_MAX) {
        tpo_fail(&err, TPO_RESOURCE_EXHAUSTED, "calls", "over %d task calls in one answer", CALLS_MAX);
        tpo_request_fail(r, &err, "gateway");
        return;
    }
    struct head_call *c = calloc(1, sizeof(*c));
    Tpo__V1__Call *call = c != NULL ? tpo_answer_call(&r->answer, t->task, t->text_offset) : NULL;
    if (call == NULL) {
        free(c);
        tpo_fail(&err, TPO_RESOURCE_EXHAUSTED, "memory", "out of memory");
        tpo_request_fail(r, &err, "gateway");
        return;
    }
    c->r = r;
    c->index = r->n_calls;
    snprintf(c->task, sizeof(c->task), "%s", t->task);
    /* It lies inside the event, so it came as an ordinary field; one that does not fit is left out and the head refuses the call. */
    const Tpo__V1__Tensor *e = t->e;
    if (e != NULL && e->n_shape <= TPO_PAYLOAD_DIMS_MAX &&
        tpo_payload_alloc(&c->e, (int)e->dtype, (int)e->n_shape, e->shape) == TPO_OK) {
        if (c->e.size_bytes == e->data.len)
            memcpy(c->e.data, e->data.data, e->data.len);
        else
            tpo_payload_free(&c->e);
    }
    r->calls[r->n_calls++] = c;
    tpo_request_emit(r, TPO__V1__PERCEIVE_EVENT__KIND_TASK, call);
    const struct tpo_head *head = tpo_gateway_head(r->g, t->task);
    if (head != NULL) {
        c->peers = head->peers;
        start_head(c);
        return;
    }
    tpo_fail(&err, TPO_UNIMPLEMENTED, "task_unserved", "no head serves the task %.31s here", t->task);
    tpo_head_call_fail(c, &err);
}
