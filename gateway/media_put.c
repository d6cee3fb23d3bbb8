/* This file owns the sending of a file to a service. */
#include "gateway/media_put.h"

#include <stdlib.h>
#include <string.h>

#include "media.pb-c.h"

struct tpo_media_put {
    struct tpo_gateway *g;
    struct tpo_peers *peers;
    struct tpo_rpc_start start;
    char id[65], request_id[65], traceparent[56];
    struct tpo_media_reader *reader; /* until the end of the file or of the call */
    struct tpo_rpc *rpc;
    bool reading, ended, cancelled;
    void (*on_done)(void *owner, const struct tpo_error *err);
    void *owner;
};

static void finish(struct tpo_media_put *p, const struct tpo_error *err)
{
    /* The error may live in the reader that is about to go. */
    struct tpo_error kept = err != NULL ? *err : (struct tpo_error){0};
    tpo_media_reader_close(p->reader);
    if (!p->cancelled) p->on_done(p->owner, &kept);
    free(p);
}

static void on_reply(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    (void)owner, (void)r;
    protobuf_c_message_free_unpacked(message, NULL);
    if (payload != NULL) tpo_payload_free(payload);
}

static void on_writable(void *owner, struct tpo_rpc *r)
{
    (void)r;
    struct tpo_media_put *p = owner;
    if (p->ended || p->reading || p->cancelled) return;
    p->reading = true;
    tpo_media_reader_next(p->reader);
}

static void on_rpc_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    (void)r;
    struct tpo_media_put *p = owner;
    struct tpo_error ok = {0};
    p->rpc = NULL;
    finish(p, status == TPO_OK ? &ok : err);
}

static void begin(struct tpo_media_put *p, const Tpo__V1__MediaChunk *first)
{
    const struct tpo_rpc_events events = {.owner = p, .on_message = on_reply, .on_writable = on_writable, .on_done = on_rpc_done};
    struct tpo_error err = {0};
    p->rpc = tpo_rpc_open(p->peers, &p->start, &first->base, NULL, &events, &err);
    if (p->rpc == NULL)
        finish(p, &err);
    else
        tpo_metrics_add(p->g->metrics, "tpo_media_put_total", "", 1);
}

static void on_data(void *owner, const void *data, size_t size, const struct tpo_error *err)
{
    struct tpo_media_put *p = owner;
    p->reading = false;
    if (err->code != TPO_OK && p->rpc == NULL) {
        finish(p, err);
        return;
    }
    if (err->code != TPO_OK) {
        tpo_rpc_cancel(p->rpc);
        return;
    }
    Tpo__V1__MediaChunk chunk = TPO__V1__MEDIA_CHUNK__INIT;
    chunk.data = (ProtobufCBinaryData){size, (uint8_t *)data};
    if (p->rpc == NULL) {
        chunk.id = p->id;
        begin(p, &chunk);
    } else if (size > 0) {
        tpo_rpc_send(p->rpc, &chunk.base);
    } else {
        p->ended = true;
        tpo_rpc_send_end(p->rpc);
    }
}

struct tpo_media_put *tpo_media_put_open(struct tpo_gateway *g, struct tpo_peers *peers, const struct tpo_rpc_start *hop,
                                         const char *id, void (*on_done)(void *owner, const struct tpo_error *err), void *owner)
{
    struct tpo_media_put *p = calloc(1, sizeof(*p));
    if (p == NULL) return NULL;
    p->g = g;
    p->peers = peers;
    p->on_done = on_done;
    p->owner = owner;
    snprintf(p->id, sizeof(p->id), "%s", id);
    snprintf(p->request_id, sizeof(p->request_id), "%s", hop->request_id);
    snprintf(p->traceparent, sizeof(p->traceparent), "%s", hop->traceparent);
    p->start = *hop;
    p->start.path = "/tpo.v1.Media/Put";
    p->start.reply = &tpo__v1__media_put_reply__descriptor;
    p->start.reply_payload = false;
    p->start.stream_in = true;
    p->start.request_id = p->request_id;
    p->start.traceparent = p->traceparent;
    p->start.key = p->id;
    p->reader = tpo_media_reader_open(g->media, p->id, on_data, p);
    if (p->reader == NULL) {
        free(p);
        return NULL;
    }
    p->reading = true;
    tpo_media_reader_next(p->reader);
    return p;
}

void tpo_media_put_cancel(struct tpo_media_put *p)
{
    p->cancelled = true;
    if (p->rpc != NULL)
        tpo_rpc_cancel(p->rpc);
    else
        finish(p, NULL);
}
