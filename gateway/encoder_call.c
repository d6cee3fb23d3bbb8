/* This file owns a request's call of the encoder: ENCODING, and PUTTING where the encoder lacks the medium. */
#include <stdlib.h>
#include <string.h>

#include "common/clock.h"
#include "gateway/request_check.h"
#include "gateway/request_private.h"

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
    r->encode_told_ms = tpo_now_ms();
    if (payload != NULL) {
        r->visual = *payload;
        *payload = (struct tpo_payload){0};
    }
}

static void on_put(void *owner, const struct tpo_error *err)
{
    struct tpo_request *r = owner;
    r->put = NULL;
    r->put_ms += tpo_now_ms() - r->put_started_ms;
    if (err->code == TPO_OK)
        tpo_encoder_call_open(r);
    else if (err->code == TPO_NOT_FOUND)
        tpo_request_finish(r, err);
    else
        tpo_request_fail(r, err, "encoder");
    tpo_request_callback_done(r);
}

static bool put_for_encoder(struct tpo_request *r, const struct tpo_error *err)
{
    if (strcmp(err->reason, "media_missing") != 0 || r->puts >= PUTS_MAX) return false;
    struct tpo_rpc_start start = tpo_request_hop(r, NULL, NULL);
    start.peer = r->peer;
    r->put = tpo_media_put_open(r->g, r->g->encoder, &start, r->media_id, on_put, r);
    if (r->put == NULL) return false;
    r->put_started_ms = tpo_now_ms();
    r->puts++;
    r->refs++;
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
    return tpo_request_boxes(r->q, r->media, r->rects, err);
}

static void on_encoder_done(void *owner, struct tpo_rpc *rpc, int status, const struct tpo_error *err)
{
    struct tpo_request *r = owner;
    struct tpo_error own;
    snprintf(r->encoder_instance, sizeof(r->encoder_instance), "%s", tpo_rpc_peer(rpc));
    r->peer = tpo_rpc_peer_id(rpc);
    r->rpc = NULL;
    if (r->state == ENCODING && status == TPO_OK && r->encoded == NULL) {
        tpo_fail(&own, TPO_INTERNAL, "encoder_silent", "the encoder ended without a reply");
        tpo_request_fail(r, &own, "encoder");
    } else if (r->state == ENCODING && status == TPO_OK) {
        if (take_media(r, &own) == TPO_OK)
            tpo_router_call_open(r);
        else
            tpo_request_fail(r, &own, "gateway");
    } else if (r->state == ENCODING && tpo_request_of_version(err)) {
        const int peer = r->peer;
        r->peer = 0;
        if (tpo_version_refused(r->g->encoder, peer, r->version.number))
            tpo_encoder_call_open(r);
        else
            tpo_request_refused(r, err, "encoder");
    } else if (r->state == ENCODING && !put_for_encoder(r, err)) {
        tpo_request_fail(r, err, "encoder");
    }
    tpo_request_callback_done(r);
}

void tpo_encoder_call_open(struct tpo_request *r)
{
    if (r->media_id[0] == '\0') {
        tpo_router_call_open(r);
        return;
    }
    struct tpo_error err = {0};
    r->state = ENCODING;
    Tpo__V1__EncodeRequest ask = TPO__V1__ENCODE_REQUEST__INIT;
    ask.media_id = r->media_id;
    ask.version = r->version.number;
    struct tpo_rpc_start start = tpo_request_hop(r, "/tpo.v1.Encoder/Encode", &tpo__v1__encode_reply__descriptor);
    start.reply_payload = true;
    start.peer = r->peer; /* the one that was given the bytes, where one was */
    const struct tpo_rpc_events events = {.owner = r, .on_message = on_encoder_message, .on_done = on_encoder_done};
    r->encode_sent_ms = tpo_now_ms();
    r->rpc = tpo_rpc_open(r->g->encoder, &start, &ask.base, NULL, &events, &err);
    if (r->rpc == NULL)
        tpo_request_refused(r, &err, "encoder");
    else
        r->refs++;
}
