/* This file owns a request's states.
 *
 *   WAITING --turn--> STORING --stored--> ENCODING --visual tokens--> GENERATING --router done--> HEADS --last head done--> FINISHED
 *      |    (inline data only)  |    ^  \                 |  \                                       |
 *      |                        |    |   media_missing    |   task call: its head starts at once,    |
 *      |                        |    |        |           |   beside GENERATING, and may run into    |
 *      |                        |    +-- PUTTING          |   HEADS; a head may ask for media too    |
 *      +--- deadline, cancel, error of a stage the answer can't do without: FINISHED from anywhere --+
 *
 * FINISHED tells the owner once, cancels what is still under way, and frees when the last callback has come back: `holds` counts
 * them. Without media ENCODING is skipped. An error of a head goes into its own call and the rest stands. */
#include "gateway/request.h"

#include <math.h>
#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>

#include "common/log.h"
#include "common/sha256.h"
#include "encoder.pb-c.h"
#include "gateway/compose.h"
#include "gateway/media_put.h"
#include "gateway/plan.h"
#include "head.pb-c.h"
#include "router.pb-c.h"

#define CALLS_MAX 32
#define PUTS_MAX  2

enum state { WAITING, STORING, ENCODING, PUTTING, GENERATING, HEADS, FINISHED };

/* A task call and the head that works on it. */
struct head_call {
    struct tpo_request *r;
    uint32_t index;
    char task[24]; /* as long as an error's stage */
    struct tpo_peers *peers;
    struct tpo_rpc *rpc;
    struct tpo_media_put *put;
    struct tpo_payload e; /* kept until the head has answered, for asking again after a put */
    int puts, peer;
    bool done;
    struct tpo_error err; /* why it failed */
    Tpo__V1__HeadDone *end;
    char instance[128];
};

struct tpo_request {
    struct tpo_gateway *g;
    struct tpo_request *next, *prev;
    enum state state;
    Tpo__V1__PerceiveRequest *q;
    struct tpo_request_events on;
    bool detached; /* the owner is gone */
    char id[65], traceparent[56], media_id[65];
    struct tpo_ticket ticket;
    uv_timer_t timer;
    int holds; /* callbacks to come; at 0 and FINISHED the request is freed */
    double started_ms, deadline_ms, begun_ms, put_ms, put_started_ms;
    struct tpo_error early; /* refused before it was accepted */
    bool accepted, first_text_seen;
    uint32_t seq;

    struct tpo_upload *upload;
    struct tpo_media_put *put;
    struct tpo_rpc *rpc; /* encoder's, then router's */
    int puts, peer;
    struct tpo_payload visual;
    Tpo__V1__MediaInfo *media; /* within `encoded` */
    Tpo__V1__EncodeReply *encoded;
    Tpo__V1__GenerateDone *generated;
    Tpo__V1__Rect *rects;
    char encoder_instance[128], router_instance[128];
    struct head_call *calls[CALLS_MAX];
    uint32_t n_calls;
    struct tpo_answer answer;
};

static void encode(struct tpo_request *r);
static void generate(struct tpo_request *r);
static void start_head(struct head_call *c);
static void finish(struct tpo_request *r, const struct tpo_error *err);

static double now_ms(void)
{
    return (double)uv_hrtime() * 1e-6;
}

/* --- the end ----------------------------------------------------------------------------------------------------------------------- */

static void call_free(struct head_call *c)
{
    if (c->end != NULL) protobuf_c_message_free_unpacked(&c->end->base, NULL);
    tpo_payload_free(&c->e);
    free(c);
}

static void release(struct tpo_request *r)
{
    if (--r->holds > 0) return;
    TPO_ASSERT(r->state == FINISHED);
    *(r->prev != NULL ? &r->prev->next : &r->g->requests) = r->next;
    if (r->next != NULL) r->next->prev = r->prev;
    for (uint32_t i = 0; i < r->n_calls; i++) call_free(r->calls[i]);
    if (r->q != NULL) protobuf_c_message_free_unpacked(&r->q->base, NULL);
    if (r->encoded != NULL) protobuf_c_message_free_unpacked(&r->encoded->base, NULL);
    if (r->generated != NULL) protobuf_c_message_free_unpacked(&r->generated->base, NULL);
    tpo_payload_free(&r->visual);
    free(r->rects);
    tpo_answer_free(&r->answer);
    tpo_gateway_release(r->g);
    free(r);
}

static void on_timer_closed(uv_handle_t *handle)
{
    release(handle->data);
}

/* Cancels whatever runs; its callbacks still come and let go. */
static void stop_all(struct tpo_request *r)
{
    if (r->upload != NULL) {
        tpo_upload_cancel(r->upload);
        r->upload = NULL;
        r->holds--;
    }
    if (r->put != NULL) {
        tpo_media_put_cancel(r->put);
        r->put = NULL;
        r->holds--;
    }
    if (r->rpc != NULL) tpo_rpc_cancel(r->rpc);
    for (uint32_t i = 0; i < r->n_calls; i++) {
        struct head_call *c = r->calls[i];
        if (c->put != NULL) {
            tpo_media_put_cancel(c->put);
            c->put = NULL;
            r->holds--;
        }
        if (c->rpc != NULL) tpo_rpc_cancel(c->rpc);
    }
}

/* What each stage did, or why it didn't; once, at the end, so that the order never depends on who was faster. */
static void add_stages(struct tpo_request *r, const struct tpo_error *err)
{
    const char *failed = err != NULL ? err->stage : "";
    double begun_ms = r->begun_ms > 0 ? r->begun_ms : now_ms();
    tpo_answer_stage(&r->answer,
                     &(struct tpo_stage_result){.name = "gateway", .queue_ms = begun_ms - r->started_ms, .run_ms = r->put_ms});
    const Tpo__V1__EncodeReply *e = r->encoded;
    if (e != NULL)
        tpo_answer_stage(&r->answer, &(struct tpo_stage_result){"encoder", r->encoder_instance, e->cache, e->digest, e->queue_ms,
                                                                e->run_ms, e->version, NULL});
    else if (strcmp(failed, "encoder") == 0)
        tpo_answer_stage(&r->answer, &(struct tpo_stage_result){.name = "encoder", .instance = r->encoder_instance, .err = err});
    const Tpo__V1__GenerateDone *d = r->generated;
    if (d != NULL)
        tpo_answer_stage(&r->answer, &(struct tpo_stage_result){"router", r->router_instance, "", d->digest, d->queue_ms, d->run_ms,
                                                                d->version, NULL});
    else if (strcmp(failed, "router") == 0)
        tpo_answer_stage(&r->answer, &(struct tpo_stage_result){.name = "router", .instance = r->router_instance, .err = err});
    for (uint32_t i = 0; i < r->n_calls; i++) {
        const struct head_call *c = r->calls[i];
        const Tpo__V1__HeadDone *h = c->end;
        struct tpo_stage_result s = {.name = c->task, .instance = c->instance, .err = c->err.code != TPO_OK ? &c->err : NULL};
        if (h != NULL)
            s = (struct tpo_stage_result){c->task, c->instance, h->cache, h->digest, h->queue_ms, h->run_ms, h->version, s.err};
        if (h != NULL || s.err != NULL) tpo_answer_stage(&r->answer, &s);
    }
}

static void count_end(struct tpo_request *r, int code)
{
    char labels[64];
    double total_ms = now_ms() - r->started_ms;
    if (!r->accepted) {
        tpo_metrics_labels(labels, sizeof(labels), "reason", r->early.reason[0] != '\0' ? r->early.reason : "cancelled", NULL);
        tpo_metrics_add(r->g->metrics, "tpo_admission_rejected_total", labels, 1);
    } else {
        tpo_metrics_labels(labels, sizeof(labels), "stage", "gateway", "code", tpo_status_name(code), NULL);
        tpo_metrics_add(r->g->metrics, "tpo_requests_total", labels, 1);
        tpo_metrics_observe(r->g->metrics, "tpo_request_duration_seconds", "stage=\"gateway\"", total_ms * 1e-3);
    }
    tpo_log(TPO_LOG_INFO, "request", "req=%s code=%s ms=%.1f media=%.12s calls=%u", r->id, tpo_status_name(code), total_ms,
            r->media_id, r->n_calls);
}

static void tell_done(struct tpo_request *r, const struct tpo_error *err)
{
    if (r->detached) return;
    double total_ms = now_ms() - r->started_ms;
    if (r->accepted) add_stages(r, err);
    tpo_answer_usage(&r->answer, r->generated != NULL ? r->generated->prompt_tokens : 0,
                     r->generated != NULL ? r->generated->completion_tokens : 0, total_ms);
    if (r->generated != NULL) tpo_answer_finish_reason(&r->answer, r->generated->finish_reason);
    if (err != NULL) tpo_answer_error(&r->answer, err);
    Tpo__V1__PerceiveEvent event = TPO__V1__PERCEIVE_EVENT__INIT;
    event.seq = r->seq;
    event.kind_case = TPO__V1__PERCEIVE_EVENT__KIND_DONE;
    event.done = (Tpo__V1__PerceiveResponse *)tpo_answer_response(&r->answer);
    r->on.on_done(r->on.owner, &event, err);
}

static void finish(struct tpo_request *r, const struct tpo_error *err)
{
    if (r->state == FINISHED) return;
    struct tpo_error kept, memory;
    if (err == NULL && r->answer.failed) {
        tpo_fail(&memory, TPO_RESOURCE_EXHAUSTED, "memory", "out of memory");
        err = &memory;
    }
    if (err != NULL) {
        kept = *err;
        err = &kept;
    }
    tell_done(r, err);
    r->state = FINISHED;
    r->detached = true;
    count_end(r, err != NULL ? err->code : TPO_OK);
    stop_all(r);
    tpo_admission_leave(r->g->admission, &r->ticket);
    uv_close((uv_handle_t *)&r->timer, on_timer_closed);
}

void tpo_request_cancel(struct tpo_request *r)
{
    struct tpo_error err;
    r->detached = true;
    tpo_fail(&err, TPO_CANCELLED, "cancelled", "the caller went away");
    finish(r, &err);
}

struct tpo_request *tpo_request_next(struct tpo_request *r)
{
    return r->next;
}

static void fail_stage(struct tpo_request *r, const struct tpo_error *err, const char *stage)
{
    struct tpo_error e = *err;
    if (e.stage[0] == '\0') snprintf(e.stage, sizeof(e.stage), "%s", stage);
    finish(r, &e);
}

/* --- events ------------------------------------------------------------------------------------------------------------------------ */

static void emit(struct tpo_request *r, Tpo__V1__PerceiveEvent__KindCase kind, void *part)
{
    if (part == NULL || r->on.on_event == NULL || r->detached) return;
    Tpo__V1__PerceiveEvent event = TPO__V1__PERCEIVE_EVENT__INIT;
    event.seq = r->seq++;
    event.kind_case = kind;
    event.text = part; /* all members of the oneof are pointers */
    r->on.on_event(r->on.owner, &event);
}

/* What every hop carries. */
static struct tpo_rpc_start hop(const struct tpo_request *r, const char *path, const ProtobufCMessageDescriptor *reply)
{
    double left = r->deadline_ms - now_ms();
    return (struct tpo_rpc_start){.path = path,
                                  .reply = reply,
                                  .timeout_ms = left < 1 ? 1 : (int)ceil(left),
                                  .key = r->media_id[0] != '\0' ? r->media_id : NULL,
                                  .request_id = r->id,
                                  .traceparent = r->traceparent,
                                  .version = "0"};
}

/* --- heads ------------------------------------------------------------------------------------------------------------------------- */

static void finish_if_done(struct tpo_request *r)
{
    if (r->state != HEADS) return;
    for (uint32_t i = 0; i < r->n_calls; i++)
        if (!r->calls[i]->done) return;
    finish(r, NULL);
}

static void fail_call(struct head_call *c, const struct tpo_error *err)
{
    struct tpo_request *r = c->r;
    if (c->done || r->state == FINISHED) return;
    c->done = true;
    c->err = *err;
    if (c->err.stage[0] == '\0') snprintf(c->err.stage, sizeof(c->err.stage), "%s", c->task);
    Tpo__V1__Call *call = r->answer.response.calls[c->index];
    call->error = tpo_error_message(&c->err, r->id);
    emit(r, TPO__V1__PERCEIVE_EVENT__KIND_ERROR, call->error);
    finish_if_done(r);
}

static void on_head_message(void *owner, struct tpo_rpc *rpc, ProtobufCMessage *message, struct tpo_payload *payload)
{
    (void)rpc;
    struct head_call *c = owner;
    struct tpo_request *r = c->r;
    Tpo__V1__TaskResult *result = (Tpo__V1__TaskResult *)message;
    if (payload != NULL) tpo_payload_free(payload);
    if (r->state != FINISHED) switch (result->kind_case) {
        case TPO__V1__TASK_RESULT__KIND_BOX:
            emit(r, TPO__V1__PERCEIVE_EVENT__KIND_BOX, tpo_answer_box(&r->answer, c->index, result->box));
            break;
        case TPO__V1__TASK_RESULT__KIND_MOMENT:
            emit(r, TPO__V1__PERCEIVE_EVENT__KIND_MOMENT, tpo_answer_take_moment(&r->answer, c->index, &result->moment));
            break;
        case TPO__V1__TASK_RESULT__KIND_SALIENCY:
            emit(r, TPO__V1__PERCEIVE_EVENT__KIND_SALIENCY, tpo_answer_take_saliency(&r->answer, c->index, &result->saliency));
            break;
        case TPO__V1__TASK_RESULT__KIND_TRACK:
            emit(r, TPO__V1__PERCEIVE_EVENT__KIND_TRACK, tpo_answer_take_track(&r->answer, c->index, &result->track));
            break;
        case TPO__V1__TASK_RESULT__KIND_DONE:
            if (c->end == NULL) {
                c->end = result->done;
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
        fail_call(c, err);
    release(c->r);
}

static bool put_for_head(struct head_call *c, const struct tpo_error *err)
{
    struct tpo_request *r = c->r;
    if (strcmp(err->reason, "media_missing") != 0 || c->puts >= PUTS_MAX || r->media_id[0] == '\0' || r->state == FINISHED)
        return false;
    struct tpo_rpc_start start = hop(r, NULL, NULL);
    start.peer = c->peer;
    c->put = tpo_media_put_open(r->g, c->peers, &start, r->media_id, on_head_put, c);
    if (c->put == NULL) return false;
    c->puts++;
    r->holds++;
    return true;
}

static void on_head_done(void *owner, struct tpo_rpc *rpc, int status, const struct tpo_error *err)
{
    struct head_call *c = owner;
    struct tpo_request *r = c->r;
    snprintf(c->instance, sizeof(c->instance), "%s", tpo_rpc_peer(rpc));
    c->peer = 1 + tpo_rpc_peer_index(rpc);
    c->rpc = NULL;
    if (status == TPO_OK && c->end != NULL) {
        c->done = true;
        tpo_payload_free(&c->e);
        finish_if_done(r);
    } else if (status == TPO_OK) {
        struct tpo_error silent;
        tpo_fail(&silent, TPO_INTERNAL, "head_silent", "the head ended without saying it was done");
        fail_call(c, &silent);
    } else if (!put_for_head(c, err)) {
        fail_call(c, err);
    }
    release(r);
}

static void start_head(struct head_call *c)
{
    struct tpo_request *r = c->r;
    if (r->state == FINISHED) return;
    Tpo__V1__Rect *boxes[64];
    Tpo__V1__TaskCall call = TPO__V1__TASK_CALL__INIT;
    call.task = c->task;
    call.index = c->index;
    call.media = r->media;
    call.query = r->q->turns[r->q->n_turns - 1]->text;
    for (size_t i = 0; i < r->q->n_boxes; i++) boxes[i] = &r->rects[i];
    call.n_boxes = r->q->n_boxes;
    call.boxes = boxes;
    struct tpo_error err = {0};
    struct tpo_payload e = {0};
    int rc = c->e.data != NULL ? tpo_payload_alloc(&e, c->e.dtype, c->e.n_dims, c->e.shape) : TPO_OK;
    if (rc != TPO_OK) {
        tpo_fail(&err, rc, "memory", "out of memory");
        fail_call(c, &err);
        return;
    }
    if (e.data != NULL) memcpy(e.data, c->e.data, e.size_bytes);
    struct tpo_rpc_start start = hop(r, "/tpo.v1.Head/Run", &tpo__v1__task_result__descriptor);
    start.peer = c->peer;
    const struct tpo_rpc_events events = {.owner = c, .on_message = on_head_message, .on_done = on_head_done};
    c->rpc = tpo_rpc_open(c->peers, &start, &call.base, &e, &events, &err);
    if (c->rpc == NULL)
        fail_call(c, &err);
    else
        r->holds++;
}

/* A task call of the router's: it goes to its head at once. */
static void task_call(struct tpo_request *r, const Tpo__V1__TaskEmbedding *t)
{
    struct tpo_error err = {0};
    struct head_call *c = r->n_calls < CALLS_MAX ? calloc(1, sizeof(*c)) : NULL;
    Tpo__V1__Call *call = c != NULL ? tpo_answer_call(&r->answer, t->task, t->text_offset) : NULL;
    if (call == NULL) {
        free(c);
        tpo_fail(&err, TPO_RESOURCE_EXHAUSTED, "calls", "over %d task calls in one answer", CALLS_MAX);
        fail_stage(r, &err, "gateway");
        return;
    }
    c->r = r;
    c->index = r->n_calls;
    snprintf(c->task, sizeof(c->task), "%s", t->task);
    /* It lies inside the event, so it came as an ordinary field; one that does not fit is left out and the head refuses the call. */
    const Tpo__V1__Tensor *e = t->e;
    if (e != NULL && e->n_shape <= TPO_PAYLOAD_DIMS_MAX && tpo_payload_alloc(&c->e, (int)e->dtype, (int)e->n_shape, e->shape) == TPO_OK) {
        if (c->e.size_bytes == e->data.len) memcpy(c->e.data, e->data.data, e->data.len);
        else tpo_payload_free(&c->e);
    }
    r->calls[r->n_calls++] = c;
    emit(r, TPO__V1__PERCEIVE_EVENT__KIND_TASK, call);
    const struct tpo_head *head = tpo_gateway_head(r->g, t->task);
    if (head != NULL) {
        c->peers = head->peers;
        start_head(c);
        return;
    }
    tpo_fail(&err, TPO_UNIMPLEMENTED, "task_unserved", "no head serves the task %.31s here", t->task);
    fail_call(c, &err);
}

/* --- router ------------------------------------------------------------------------------------------------------------------------ */

static void text_delta(struct tpo_request *r, Tpo__V1__TextDelta *text)
{
    if (text->text[0] == '\0') return;
    if (!r->first_text_seen)
        tpo_metrics_observe(r->g->metrics, "tpo_time_to_first_token_seconds", "stage=\"gateway\"",
                            (now_ms() - r->started_ms) * 1e-3);
    r->first_text_seen = true;
    tpo_answer_text(&r->answer, text->text);
    emit(r, TPO__V1__PERCEIVE_EVENT__KIND_TEXT, text);
}

static void on_router_message(void *owner, struct tpo_rpc *rpc, ProtobufCMessage *message, struct tpo_payload *payload)
{
    (void)rpc;
    struct tpo_request *r = owner;
    Tpo__V1__GenerateEvent *event = (Tpo__V1__GenerateEvent *)message;
    if (r->state == GENERATING) switch (event->kind_case) {
        case TPO__V1__GENERATE_EVENT__KIND_TEXT:
            text_delta(r, event->text);
            break;
        case TPO__V1__GENERATE_EVENT__KIND_TASK:
            task_call(r, event->task);
            break;
        case TPO__V1__GENERATE_EVENT__KIND_DONE:
            if (r->generated == NULL) {
                r->generated = event->done;
                event->done = NULL;
            }
            break;
        default:
            break;
        }
    if (payload != NULL) tpo_payload_free(payload);
    protobuf_c_message_free_unpacked(message, NULL);
}

static void on_router_done(void *owner, struct tpo_rpc *rpc, int status, const struct tpo_error *err)
{
    struct tpo_request *r = owner;
    snprintf(r->router_instance, sizeof(r->router_instance), "%s", tpo_rpc_peer(rpc));
    r->rpc = NULL;
    if (r->state == GENERATING && status != TPO_OK) {
        fail_stage(r, err, "router");
    } else if (r->state == GENERATING && r->generated == NULL) {
        struct tpo_error silent;
        tpo_fail(&silent, TPO_INTERNAL, "router_silent", "the router ended without saying it was done");
        fail_stage(r, &silent, "router");
    } else if (r->state == GENERATING) {
        r->state = HEADS;
        finish_if_done(r);
    }
    release(r);
}

static void generate(struct tpo_request *r)
{
    const Tpo__V1__PerceiveRequest *q = r->q;
    struct tpo_error err = {0};
    Tpo__V1__Rect *boxes[64];
    r->state = GENERATING;
    Tpo__V1__GenerateRequest ask = TPO__V1__GENERATE_REQUEST__INIT;
    ask.n_turns = q->n_turns;
    ask.turns = q->turns;
    ask.n_boxes = q->n_boxes;
    for (size_t i = 0; i < q->n_boxes; i++) boxes[i] = &r->rects[i];
    ask.boxes = boxes;
    ask.task = q->task[0] != '\0' ? q->task : (char *)"auto";
    ask.max_new_tokens = q->max_new_tokens != 0 ? q->max_new_tokens : 200;
    ask.seed = q->seed != 0 ? q->seed : 1;
    ask.temperature = q->temperature;
    ask.top_p = q->top_p > 0 ? q->top_p : 1;
    ask.media_kind = (char *)tpo_plan_media_kind(r->media);
    if (r->media != NULL && strcmp(ask.media_kind, "video") == 0) {
        ask.n_frames = r->media->n_frames;
        ask.frames = r->media->frames;
    }
    struct tpo_rpc_start start = hop(r, "/tpo.v1.Router/Generate", &tpo__v1__generate_event__descriptor);
    start.reply_payload = true;
    const struct tpo_rpc_events events = {.owner = r, .on_message = on_router_message, .on_done = on_router_done};
    r->rpc = tpo_rpc_open(r->g->router, &start, &ask.base, r->visual.data != NULL ? &r->visual : NULL, &events, &err);
    if (r->rpc == NULL)
        fail_stage(r, &err, "router");
    else
        r->holds++;
}

/* --- encoder ----------------------------------------------------------------------------------------------------------------------- */

static void on_encoder_message(void *owner, struct tpo_rpc *rpc, ProtobufCMessage *message, struct tpo_payload *payload)
{
    (void)rpc;
    struct tpo_request *r = owner;
    if (r->encoded != NULL) {
        protobuf_c_message_free_unpacked(message, NULL);
        if (payload != NULL) tpo_payload_free(payload);
        return;
    }
    r->encoded = (Tpo__V1__EncodeReply *)message;
    if (payload != NULL) {
        r->visual = *payload;
        *payload = (struct tpo_payload){0};
    }
}

static void on_put(void *owner, const struct tpo_error *err)
{
    struct tpo_request *r = owner;
    r->put = NULL;
    r->put_ms += now_ms() - r->put_started_ms;
    if (err->code == TPO_OK)
        encode(r);
    else if (err->code == TPO_NOT_FOUND)
        finish(r, err);
    else
        fail_stage(r, err, "encoder");
    release(r);
}

static bool put_for_encoder(struct tpo_request *r, const struct tpo_error *err)
{
    if (strcmp(err->reason, "media_missing") != 0 || r->puts >= PUTS_MAX) return false;
    struct tpo_rpc_start start = hop(r, NULL, NULL);
    start.peer = r->peer;
    r->put = tpo_media_put_open(r->g, r->g->encoder, &start, r->media_id, on_put, r);
    if (r->put == NULL) return false;
    r->put_started_ms = now_ms();
    r->puts++;
    r->holds++;
    r->state = PUTTING;
    return true;
}

/* The answer's media and the user's boxes, now that the picture's size is known. */
static int take_media(struct tpo_request *r, struct tpo_error *err)
{
    r->media = r->encoded->media;
    if (r->media == NULL || r->visual.data == NULL)
        return tpo_fail(err, TPO_INTERNAL, "encoder_silent", "the encoder told nothing of the media");
    tpo_answer_media(&r->answer, r->media);
    if (r->q->n_boxes == 0) return TPO_OK;
    r->rects = calloc(r->q->n_boxes, sizeof(*r->rects));
    if (r->rects == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "out of memory");
    return tpo_plan_boxes(r->q, r->media, r->rects, err);
}

static void on_encoder_done(void *owner, struct tpo_rpc *rpc, int status, const struct tpo_error *err)
{
    struct tpo_request *r = owner;
    struct tpo_error own;
    snprintf(r->encoder_instance, sizeof(r->encoder_instance), "%s", tpo_rpc_peer(rpc));
    r->peer = 1 + tpo_rpc_peer_index(rpc);
    r->rpc = NULL;
    if (r->state == ENCODING && status == TPO_OK && r->encoded == NULL) {
        tpo_fail(&own, TPO_INTERNAL, "encoder_silent", "the encoder ended without a reply");
        fail_stage(r, &own, "encoder");
    } else if (r->state == ENCODING && status == TPO_OK) {
        if (take_media(r, &own) == TPO_OK)
            generate(r);
        else
            fail_stage(r, &own, "gateway");
    } else if (r->state == ENCODING && !put_for_encoder(r, err)) {
        fail_stage(r, err, "encoder");
    }
    release(r);
}

static void encode(struct tpo_request *r)
{
    if (r->media_id[0] == '\0') {
        generate(r);
        return;
    }
    struct tpo_error err = {0};
    r->state = ENCODING;
    Tpo__V1__EncodeRequest ask = TPO__V1__ENCODE_REQUEST__INIT;
    ask.media_id = r->media_id;
    struct tpo_rpc_start start = hop(r, "/tpo.v1.Encoder/Encode", &tpo__v1__encode_reply__descriptor);
    start.reply_payload = true;
    start.peer = r->peer; /* the one that was given the bytes, where one was */
    const struct tpo_rpc_events events = {.owner = r, .on_message = on_encoder_message, .on_done = on_encoder_done};
    r->rpc = tpo_rpc_open(r->g->encoder, &start, &ask.base, NULL, &events, &err);
    if (r->rpc == NULL)
        fail_stage(r, &err, "encoder");
    else
        r->holds++;
}

/* --- the start --------------------------------------------------------------------------------------------------------------------- */

static void on_stored(void *owner, const char *id, uint64_t size, const struct tpo_error *err)
{
    (void)size;
    struct tpo_request *r = owner;
    r->upload = NULL;
    if (err->code == TPO_OK) {
        snprintf(r->media_id, sizeof(r->media_id), "%s", id);
        encode(r);
    } else {
        finish(r, err);
    }
    release(r);
}

static void store(struct tpo_request *r)
{
    struct tpo_error err;
    Tpo__V1__MediaSource *m = r->q->n_media > 0 ? r->q->media[0] : NULL;
    if (m == NULL || m->id[0] != '\0') {
        if (m != NULL) snprintf(r->media_id, sizeof(r->media_id), "%s", m->id);
        if (m != NULL) tpo_media_touch(r->g->media, m->id);
        encode(r);
        return;
    }
    r->state = STORING;
    r->upload = tpo_upload_open(r->g->media, NULL, NULL, on_stored, r);
    if (r->upload == NULL) {
        tpo_fail(&err, TPO_RESOURCE_EXHAUSTED, "memory", "out of memory");
        finish(r, &err);
        return;
    }
    r->holds++;
    tpo_upload_add(r->upload, m->data.data, m->data.len);
    tpo_upload_end(r->upload);
    free(m->data.data);
    m->data = (ProtobufCBinaryData){0, NULL};
}

static void on_turn(void *owner)
{
    struct tpo_request *r = owner;
    r->begun_ms = now_ms();
    tpo_metrics_observe(r->g->metrics, "tpo_queue_duration_seconds", "stage=\"gateway\"", (r->begun_ms - r->started_ms) * 1e-3);
    store(r);
}

static void on_deadline(uv_timer_t *timer)
{
    static const char *const stages[] = {
        [WAITING] = "gateway",   [STORING] = "gateway", [ENCODING] = "encoder", [PUTTING] = "encoder",
        [GENERATING] = "router", [HEADS] = "",          [FINISHED] = ""};
    struct tpo_request *r = timer->data;
    struct tpo_error err;
    tpo_fail(&err, TPO_DEADLINE_EXCEEDED, "deadline", "%.0f ms were not enough", r->deadline_ms - r->started_ms);
    if (r->state == HEADS) {
        /* The text stands; the heads that are late don't. */
        stop_all(r);
        for (uint32_t i = 0; i < r->n_calls && r->state == HEADS; i++)
            if (!r->calls[i]->done) fail_call(r->calls[i], &err);
        return;
    }
    fail_stage(r, &err, stages[r->state]);
}

/* The first look, from the loop rather than from tpo_request_open, so that no owner is called back from within. */
static void on_start(uv_timer_t *timer)
{
    struct tpo_request *r = timer->data;
    if (r->early.code == TPO_OK && r->deadline_ms <= now_ms())
        tpo_fail(&r->early, TPO_DEADLINE_EXCEEDED, "deadline", "the deadline had passed before the request came");
    int turn = r->early.code == TPO_OK ? tpo_admission_enter(r->g->admission, &r->ticket, &r->early) : -1;
    if (turn < 0) {
        finish(r, &r->early);
        return;
    }
    r->accepted = true;
    tpo_metrics_add(r->g->metrics, "tpo_requests_accepted_total", "stage=\"gateway\"", 1);
    double left = r->deadline_ms - now_ms();
    uv_timer_start(&r->timer, on_deadline, left < 1 ? 1 : (uint64_t)left, 0);
    if (turn > 0) on_turn(r);
}

static void hex(char *out, size_t bytes)
{
    unsigned char random[16];
    RAND_bytes(random, (int)bytes);
    for (size_t i = 0; i < bytes; i++) snprintf(out + 2 * i, 3, "%02x", random[i]);
}

/* W3C trace context: the caller's trace with a span of ours, or a trace of our own. */
static void choose_trace(struct tpo_request *r, const char *given)
{
    char trace[33], span[17], flags[3] = "00";
    static const char digits[] = "0123456789abcdef";
    bool valid = given != NULL && strlen(given) >= 55 && strncmp(given, "ff", 2) != 0 && strspn(given, digits) == 2 &&
                 given[2] == '-' && strspn(given + 3, digits) == 32 && given[35] == '-' && strspn(given + 36, digits) == 16 &&
                 given[52] == '-' && strspn(given + 53, digits) == 2 && strspn(given + 3, "0") < 32 && strspn(given + 36, "0") < 16;
    if (valid)
        snprintf(trace, sizeof(trace), "%.32s", given + 3);
    else
        hex(trace, 16);
    if (valid) snprintf(flags, sizeof(flags), "%.2s", given + 53);
    hex(span, 8);
    snprintf(r->traceparent, sizeof(r->traceparent), "00-%s-%s-%s", trace, span, flags);
}

struct tpo_request *tpo_request_open(struct tpo_gateway *g, Tpo__V1__PerceiveRequest *q, double left_ms, const char *request_id,
                                     const char *traceparent, const struct tpo_request_events *on)
{
    struct tpo_request *r = calloc(1, sizeof(*r));
    if (r == NULL) {
        protobuf_c_message_free_unpacked(&q->base, NULL);
        return NULL;
    }
    r->g = g;
    r->q = q;
    r->on = *on;
    tpo_plan_check(q, &g->s, &r->early);
    snprintf(r->id, sizeof(r->id), "%s",
             q->request_id[0] != '\0' && strcmp(r->early.reason, "request_id") != 0 ? q->request_id : request_id);
    if (r->id[0] == '\0' || strcmp(r->id, "-") == 0) hex(r->id, 8);
    choose_trace(r, traceparent);
    r->started_ms = now_ms();
    double timeout = q->timeout_ms != 0 ? (double)q->timeout_ms : (double)g->s.timeout_ms;
    r->deadline_ms = r->started_ms + (left_ms != 0 && left_ms < timeout ? left_ms : timeout);
    tpo_answer_init(&r->answer, r->id);
    r->ticket = (struct tpo_ticket){.on_turn = on_turn, .owner = r};
    r->next = g->requests;
    if (r->next != NULL) r->next->prev = r;
    g->requests = r;
    uv_timer_init(g->loop, &r->timer);
    r->timer.data = r;
    r->holds = 1; /* the timer's close */
    tpo_gateway_hold(g);
    uv_timer_start(&r->timer, on_start, 0, 0);
    return r;
}
