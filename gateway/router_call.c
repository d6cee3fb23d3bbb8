/* This file owns a request's call of the router: GENERATING, whose task calls go to their heads at once. */
#include <string.h>

#include "common/clock.h"
#include "common/limits.h"
#include "gateway/request_check.h"
#include "gateway/request_private.h"

static void text_delta(struct tpo_request *r, Tpo__V1__TextDelta *text)
{
    if (text->text[0] == '\0') return;
    if (!r->first_text_seen)
        tpo_metrics_observe(r->g->metrics, "tpo_time_to_first_token_seconds", "stage=\"gateway\"",
                            (tpo_now_ms() - r->started_ms) * 1e-3);
    r->first_text_seen = true;
    tpo_answer_text(&r->answer, text->text);
    tpo_request_emit(r, TPO__V1__PERCEIVE_EVENT__KIND_TEXT, text);
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
            tpo_head_call_open(r, event->task);
            break;
        case TPO__V1__GENERATE_EVENT__KIND_DONE:
            if (r->generated == NULL) {
                r->generated = event->done;
                r->generate_told_ms = tpo_now_ms();
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
        /* The visual tokens went with the call: another router gets them from the encoder's cache, so all starts anew. */
        if (tpo_request_of_version(err)) tpo_version_refused(r->g->router, tpo_rpc_peer_id(rpc), r->version.number);
        tpo_request_refused(r, err, "router");
    } else if (r->state == GENERATING && r->generated == NULL) {
        struct tpo_error silent;
        tpo_fail(&silent, TPO_INTERNAL, "router_silent", "the router ended without saying it was done");
        tpo_request_fail(r, &silent, "router");
    } else if (r->state == GENERATING) {
        r->state = HEADS;
        tpo_request_finish_if_done(r);
    }
    tpo_request_callback_done(r);
}

void tpo_router_call_open(struct tpo_request *r)
{
    const Tpo__V1__PerceiveRequest *q = r->q;
    struct tpo_error err = {0};
    Tpo__V1__Rect *boxes[TPO_BOXES_MAX];
    r->state = GENERATING;
    Tpo__V1__GenerateRequest ask = TPO__V1__GENERATE_REQUEST__INIT;
    ask.n_turns = q->n_turns;
    ask.turns = q->turns;
    ask.n_boxes = q->n_boxes;
    for (size_t i = 0; i < q->n_boxes; i++) boxes[i] = &r->rects[i];
    ask.boxes = boxes;
    ask.task = q->task[0] != '\0' ? q->task : (char *)"auto";
    ask.max_new_tokens = q->max_new_tokens;
    ask.seed = q->seed != 0 ? q->seed : 1;
    ask.temperature = q->temperature;
    ask.top_p = q->top_p;
    ask.version = r->version.number;
    ask.media_kind = (char *)tpo_request_media_kind(r->media);
    if (r->media != NULL && strcmp(ask.media_kind, "video") == 0) {
        ask.n_frames = r->media->n_frames;
        ask.frames = r->media->frames;
    }
    struct tpo_rpc_start start = tpo_request_hop(r, "/tpo.v1.Router/Generate", &tpo__v1__generate_event__descriptor);
    start.reply_payload = true;
    const struct tpo_rpc_events events = {.owner = r, .on_message = on_router_message, .on_done = on_router_done};
    r->generate_sent_ms = tpo_now_ms();
    r->rpc = tpo_rpc_open(r->g->router, &start, &ask.base, r->visual.data != NULL ? &r->visual : NULL, &events, &err);
    if (r->rpc == NULL)
        tpo_request_refused(r, &err, "router");
    else
        r->refs++;
}
