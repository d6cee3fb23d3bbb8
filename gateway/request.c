/* This file owns a request's states.
 *
 *   WAITING --turn--> ENCODING --visual tokens--> GENERATING --router done--> HEADS --last head done--> FINISHED
 *      |               |    ^                         |
 *      |    media_     |    |                         +-- task call: its head starts at once, beside GENERATING, and may run
 *      |    missing    v    |                             into HEADS; a head may ask for media too
 *      |               PUTTING
 *      +--turn, inline data, or an id to look for--> STORING --stored, found--> ENCODING
 *
 * With its turn a request is stamped with a version of the weights for all its hops (versions.h draws the rules). Where the peers have
 * none in common, or a stage refuses it before anything was streamed:
 *
 *   any state --> VERSION_WAIT --the peers have told what they hold, what ran for the version before has come back--> as from the turn on
 *
 * at most ANEW_MAX times. Deadline, cancel and an error of a stage that the answer can't do without lead from anywhere to FINISHED.
 *
 * FINISHED tells the owner once, cancels what is still under way, and frees when the last callback has come back: `refs` counts
 * them. Without media ENCODING is skipped. An error of a head goes into its own call and the rest stands. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "common/message.h"
#include "gateway/request_check.h"
#include "gateway/request_private.h"
#include "gateway/trace.h"

#define ANEW_MAX 4

static void begin(struct tpo_request *r);

/* --- the end ----------------------------------------------------------------------------------------------------------------------- */

/* Drops what the stages have answered, so that the request may begin anew. */
static void forget(struct tpo_request *r)
{
    for (uint32_t i = 0; i < r->n_calls; i++) tpo_head_call_free(r->calls[i]);
    if (r->encoded != NULL) protobuf_c_message_free_unpacked(&r->encoded->base, NULL);
    if (r->generated != NULL) protobuf_c_message_free_unpacked(&r->generated->base, NULL);
    tpo_payload_free(&r->visual);
    free(r->rects);
    r->n_calls = 0;
    r->encoded = NULL;
    r->generated = NULL;
    r->visual = (struct tpo_payload){0};
    r->rects = NULL;
    r->media = NULL;
}

static void request_free(struct tpo_request *r)
{
    TPO_ASSERT(r->state == FINISHED);
    *(r->prev != NULL ? &r->prev->next : &r->g->requests) = r->next;
    if (r->next != NULL) r->next->prev = r->prev;
    forget(r);
    if (r->q != NULL) protobuf_c_message_free_unpacked(&r->q->base, NULL);
    r->g->body_bytes -= r->held;
    tpo_answer_free(&r->answer);
    tpo_gateway_release(r->g);
    free(r);
}

void tpo_request_callback_done(struct tpo_request *r)
{
    r->refs--;
    /* All that ran for the version before has come back: only the timer is left. */
    if (r->refs == 1 && r->state == VERSION_WAIT) begin(r);
    if (r->refs == 0) request_free(r);
}

static void on_timer_closed(uv_handle_t *handle)
{
    tpo_request_callback_done(handle->data);
}

/* Cancels whatever runs; its callbacks still come and let go. */
static void stop_all(struct tpo_request *r)
{
    if (r->upload != NULL) {
        tpo_upload_cancel(r->upload);
        r->upload = NULL;
        r->refs--;
    }
    if (r->put != NULL) {
        tpo_media_put_cancel(r->put);
        r->put = NULL;
        r->refs--;
    }
    if (r->rpc != NULL) tpo_rpc_cancel(r->rpc);
    for (uint32_t i = 0; i < r->n_calls; i++) {
        struct head_call *c = r->calls[i];
        if (c->put != NULL) {
            tpo_media_put_cancel(c->put);
            c->put = NULL;
            r->refs--;
        }
        if (c->rpc != NULL) tpo_rpc_cancel(c->rpc);
    }
}

static void tell_done(struct tpo_request *r, const struct tpo_error *err)
{
    if (r->detached) return;
    double total_ms = tpo_now_ms() - r->started_ms;
    if (r->accepted) tpo_request_stages(r, err);
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

void tpo_request_finish(struct tpo_request *r, const struct tpo_error *err)
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
    tpo_request_count(r, err != NULL ? err->code : TPO_OK);
    stop_all(r);
    tpo_admission_leave(r->g->admission, &r->ticket);
    uv_close((uv_handle_t *)&r->timer, on_timer_closed);
}

void tpo_request_cancel(struct tpo_request *r)
{
    struct tpo_error err;
    r->detached = true;
    tpo_fail(&err, TPO_CANCELLED, "cancelled", "the caller went away");
    tpo_request_finish(r, &err);
}

struct tpo_request *tpo_request_next(struct tpo_request *r)
{
    return r->next;
}

void tpo_request_fail(struct tpo_request *r, const struct tpo_error *err, const char *stage)
{
    struct tpo_error e = *err;
    if (e.stage[0] == '\0') snprintf(e.stage, sizeof(e.stage), "%s", stage);
    tpo_request_finish(r, &e);
}

/* --- events ------------------------------------------------------------------------------------------------------------------------ */

void tpo_request_emit(struct tpo_request *r, Tpo__V1__PerceiveEvent__KindCase kind, void *part)
{
    if (part == NULL || r->on.on_event == NULL || r->detached) return;
    Tpo__V1__PerceiveEvent event = TPO__V1__PERCEIVE_EVENT__INIT;
    event.seq = r->seq++;
    event.kind_case = kind;
    event.text = part; /* all members of the oneof are pointers */
    r->on.on_event(r->on.owner, &event);
}

struct tpo_rpc_start tpo_request_hop(const struct tpo_request *r, const char *path, const ProtobufCMessageDescriptor *reply)
{
    double left = r->deadline_ms - tpo_now_ms();
    return (struct tpo_rpc_start){.path = path,
                                  .reply = reply,
                                  .timeout_ms = left < 1 ? 1 : (int)ceil(left),
                                  .key = r->media_id[0] != '\0' ? r->media_id : NULL,
                                  .request_id = r->id,
                                  .traceparent = r->traceparent,
                                  .version = r->version_text,
                                  .versioned = true};
}

/* --- versions ---------------------------------------------------------------------------------------------------------------------- */

bool tpo_request_over(const struct tpo_request *r)
{
    return r->state == FINISHED || r->state == VERSION_WAIT;
}

bool tpo_request_of_version(const struct tpo_error *err)
{
    return err->code == TPO_FAILED_PRECONDITION && strcmp(err->reason, "version") == 0;
}

void tpo_request_version_gone(struct tpo_error *err)
{
    if (!tpo_request_of_version(err)) return;
    err->code = TPO_UNAVAILABLE;
    err->retry_ms = 1000;
}

static void on_known(void *owner)
{
    tpo_request_callback_done(owner);
}

bool tpo_request_start_anew(struct tpo_request *r)
{
    if (r->state == VERSION_WAIT) return true;
    if (r->seq > 0 || r->anew >= ANEW_MAX || r->state == FINISHED) return false;
    r->anew++;
    r->state = VERSION_WAIT;
    stop_all(r);
    r->refs++;
    r->wait = (struct tpo_version_wait){.on_known = on_known, .owner = r};
    tpo_version_ask(r->g->versions, &r->wait);
    return true;
}

void tpo_request_refused(struct tpo_request *r, const struct tpo_error *err, const char *stage)
{
    struct tpo_error told = *err;
    if (tpo_request_of_version(err) && tpo_request_start_anew(r)) return;
    tpo_request_version_gone(&told);
    tpo_request_fail(r, &told, stage);
}

/* --- is it whole? ------------------------------------------------------------------------------------------------------------------ */

void tpo_request_finish_if_done(struct tpo_request *r)
{
    if (r->state != HEADS) return;
    for (uint32_t i = 0; i < r->n_calls; i++)
        if (!r->calls[i]->done) return;
    tpo_request_finish(r, NULL);
}

/* --- the start --------------------------------------------------------------------------------------------------------------------- */

/* The medium's bytes counted until they were on the disk. */
static void let_go_of_data(struct tpo_request *r)
{
    uint64_t rest = tpo_message_bytes(&r->q->base);
    r->g->body_bytes -= r->held - rest;
    r->held = rest;
}

static void on_stored(void *owner, const char *id, uint64_t size, const struct tpo_error *err)
{
    (void)size;
    struct tpo_request *r = owner;
    r->upload = NULL;
    let_go_of_data(r);
    if (err->code == TPO_OK) {
        snprintf(r->media_id, sizeof(r->media_id), "%s", id);
        tpo_encoder_call_open(r);
    } else {
        tpo_request_finish(r, err);
    }
    tpo_request_callback_done(r);
}

static void on_looked(void *owner, bool known)
{
    struct tpo_request *r = owner;
    struct tpo_error err;
    if (!tpo_request_over(r) && known) {
        tpo_encoder_call_open(r);
    } else if (!tpo_request_over(r)) {
        tpo_fail(&err, TPO_NOT_FOUND, "media_unknown", "no media of this id is here; send it again");
        tpo_request_finish(r, &err);
    }
    tpo_request_callback_done(r);
}

/* An id that this gateway was not sent counts only where the file lies in a directory that it shares: what caches of services hold is no right to
 * it. */
static void look_for(struct tpo_request *r)
{
    struct tpo_error err;
    r->refs++;
    if (tpo_media_look(r->g->media, r->media_id, on_looked, r)) return;
    r->refs--;
    tpo_fail(&err, TPO_RESOURCE_EXHAUSTED, "memory", "out of memory");
    tpo_request_finish(r, &err);
}

static void store(struct tpo_request *r)
{
    struct tpo_error err;
    Tpo__V1__MediaSource *m = r->q->n_media > 0 ? r->q->media[0] : NULL;
    if (m != NULL) snprintf(r->media_id, sizeof(r->media_id), "%s", m->id);
    if (m == NULL || (m->id[0] != '\0' && tpo_media_touch(r->g->media, m->id))) {
        tpo_encoder_call_open(r);
        return;
    }
    r->state = STORING;
    if (m->id[0] != '\0') {
        look_for(r);
        return;
    }
    r->upload = tpo_upload_open(r->g->media, NULL, NULL, on_stored, r);
    if (r->upload == NULL) {
        tpo_fail(&err, TPO_RESOURCE_EXHAUSTED, "memory", "out of memory");
        tpo_request_finish(r, &err);
        return;
    }
    r->refs++;
    tpo_upload_add(r->upload, m->data.data, m->data.len);
    tpo_upload_end(r->upload);
    free(m->data.data);
    m->data = (ProtobufCBinaryData){0, NULL};
}

/* With a version, from the start: for the first time, or again on what the peers hold by now. */
static void begin(struct tpo_request *r)
{
    struct tpo_error err = {0};
    if (r->anew > 0) {
        forget(r);
        tpo_answer_free(&r->answer);
        tpo_answer_init(&r->answer, r->id);
        r->puts = r->peer = 0;
        r->state = WAITING;
    }
    if (!tpo_version_choose(r->g->versions, r->q, &r->version, &err)) {
        if (r->anew > 0 || !tpo_request_start_anew(r)) tpo_request_finish(r, &err);
        return;
    }
    snprintf(r->version_text, sizeof(r->version_text), "%llu", (unsigned long long)r->version.number);
    if (r->media_id[0] != '\0')
        tpo_encoder_call_open(r);
    else
        store(r);
}

static void on_turn(void *owner)
{
    struct tpo_request *r = owner;
    r->begun_ms = tpo_now_ms();
    tpo_metrics_observe(r->g->metrics, "tpo_queue_duration_seconds", "stage=\"gateway\"", (r->begun_ms - r->started_ms) * 1e-3);
    begin(r);
}

static void on_deadline(uv_timer_t *timer)
{
    static const char *const stages[] = {
        [WAITING] = "gateway", [VERSION_WAIT] = "gateway", [STORING] = "gateway", [ENCODING] = "encoder",
        [PUTTING] = "encoder", [GENERATING] = "router",    [HEADS] = "",          [FINISHED] = ""};
    struct tpo_request *r = timer->data;
    struct tpo_error err;
    tpo_fail(&err, TPO_DEADLINE_EXCEEDED, "deadline", "%.0f ms were not enough", r->deadline_ms - r->started_ms);
    if (r->state == HEADS) {
        /* The text stands; the heads that are late don't. */
        stop_all(r);
        for (uint32_t i = 0; i < r->n_calls && r->state == HEADS; i++)
            if (!r->calls[i]->done) tpo_head_call_fail(r->calls[i], &err);
        return;
    }
    tpo_request_fail(r, &err, stages[r->state]);
}

/* The first look, from the loop rather than from tpo_request_open, so that no owner is called back from within. */
static void on_start(uv_timer_t *timer)
{
    struct tpo_request *r = timer->data;
    if (r->early.code == TPO_OK && r->deadline_ms <= tpo_now_ms())
        tpo_fail(&r->early, TPO_DEADLINE_EXCEEDED, "deadline", "the deadline had passed before the request came");
    int turn = r->early.code == TPO_OK ? tpo_admission_enter(r->g->admission, &r->ticket, &r->early) : -1;
    if (turn < 0) {
        tpo_request_finish(r, &r->early);
        return;
    }
    r->accepted = true;
    tpo_metrics_add(r->g->metrics, "tpo_requests_accepted_total", "stage=\"gateway\"", 1);
    double left = r->deadline_ms - tpo_now_ms();
    uv_timer_start(&r->timer, on_deadline, left < 1 ? 1 : (uint64_t)left, 0);
    if (turn > 0) on_turn(r);
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
    tpo_request_check(q, &g->s, &r->early);
    snprintf(r->id, sizeof(r->id), "%s", tpo_id_valid(q->request_id, TPO_REQUEST_ID_MAX) ? q->request_id : request_id);
    if (r->id[0] == '\0' || strcmp(r->id, "-") == 0) tpo_random_hex(r->id, 8);
    tpo_trace_choose(r->traceparent, traceparent);
    uint64_t bytes = tpo_message_bytes(&q->base);
    if (r->early.code == TPO_OK && tpo_gateway_take_body(g, bytes, &r->early) == TPO_OK) r->held = bytes;
    r->started_ms = tpo_now_ms();
    double timeout = q->timeout_ms != 0 ? (double)q->timeout_ms : (double)g->s.timeout_ms;
    r->deadline_ms = r->started_ms + (left_ms != 0 && left_ms < timeout ? left_ms : timeout);
    tpo_answer_init(&r->answer, r->id);
    r->ticket = (struct tpo_ticket){.on_turn = on_turn, .owner = r};
    r->next = g->requests;
    if (r->next != NULL) r->next->prev = r;
    g->requests = r;
    uv_timer_init(g->loop, &r->timer);
    r->timer.data = r;
    r->refs = 1; /* the timer's close */
    tpo_gateway_hold(g);
    uv_timer_start(&r->timer, on_start, 0, 0);
    return r;
}
