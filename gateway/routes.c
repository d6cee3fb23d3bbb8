/* This file owns what the HTTP door offers. */
#include "gateway/routes.h"

#include <stdlib.h>
#include <string.h>

#include "common/protojson.h"
#include "gateway/request.h"
#include "gateway/sse.h"
#include "media.pb-c.h"

#define PARSE_INLINE 65536 /* a larger body is parsed by a work thread */

static void reply_message(struct tpo_http *x, const ProtobufCMessage *message)
{
    struct tpo_text body = {0};
    struct tpo_error err = {0};
    if (tpo_protojson_encode(&body, message, &err) == TPO_OK)
        tpo_http_reply(x, 200, "application/json", body.data, body.size, NULL);
    else
        tpo_http_reply_error(x, &err, NULL);
    tpo_text_free(&body);
}

static void reply_no_memory(struct tpo_http *x)
{
    struct tpo_error err;
    tpo_fail(&err, TPO_RESOURCE_EXHAUSTED, "memory", "out of memory");
    tpo_http_reply_error(x, &err, NULL);
}

/* --- POST /v1/perceive ------------------------------------------------------------------------------------------------------------- */

struct perceive {
    struct tpo_gateway *g;
    struct tpo_http *x; /* NULL once the client is gone */
    struct tpo_text body, out;
    struct tpo_request *request;
    bool stream, streaming, parsing;
    uv_work_t parse;
    ProtobufCMessage *message;
    struct tpo_error err;
};

static void perceive_free(struct perceive *p)
{
    p->g->body_bytes -= p->body.size;
    tpo_gateway_release(p->g);
    tpo_text_free(&p->body);
    tpo_text_free(&p->out);
    free(p);
}

static void body_drop(struct perceive *p)
{
    p->g->body_bytes -= p->body.size;
    tpo_text_free(&p->body);
}

static void write_event(struct perceive *p, const Tpo__V1__PerceiveEvent *event)
{
    if (!p->streaming) tpo_http_stream_begin(p->x, "text/event-stream");
    p->streaming = true;
    tpo_text_reset(&p->out);
    struct tpo_error err;
    if (tpo_sse_event(&p->out, event, &err) == TPO_OK) tpo_http_stream_write(p->x, p->out.data, p->out.size);
}

static void on_event(void *owner, const Tpo__V1__PerceiveEvent *event)
{
    struct perceive *p = owner;
    if (p->x != NULL) write_event(p, event);
}

static void on_done(void *owner, const Tpo__V1__PerceiveEvent *event, const struct tpo_error *err)
{
    struct perceive *p = owner;
    struct tpo_http *x = p->x;
    p->request = NULL;
    if (x != NULL && (p->streaming || (p->stream && err == NULL))) {
        write_event(p, event);
        tpo_http_stream_end(x);
    } else if (x != NULL && err != NULL) {
        tpo_http_reply_error(x, err, event->done->request_id);
    } else if (x != NULL) {
        reply_message(x, &event->done->base);
    }
    p->x = NULL;
    perceive_free(p);
}

static void open_request(struct perceive *p)
{
    if (p->message == NULL) {
        tpo_http_reply_error(p->x, &p->err, NULL);
        perceive_free(p);
        return;
    }
    Tpo__V1__PerceiveRequest *q = (Tpo__V1__PerceiveRequest *)p->message;
    const struct tpo_request_events on = {.owner = p, .on_event = q->stream ? on_event : NULL, .on_done = on_done};
    p->stream = q->stream;
    body_drop(p);
    if (tpo_id_valid(q->request_id, TPO_REQUEST_ID_MAX)) tpo_http_name(p->x, q->request_id);
    p->request = tpo_request_open(p->g, q, 0, tpo_http_request_id(p->x), tpo_http_header(p->x, "traceparent"), &on);
    if (p->request != NULL) return;
    reply_no_memory(p->x);
    perceive_free(p);
}

static void parse(uv_work_t *work)
{
    struct perceive *p = work->data;
    tpo_protojson_decode(&p->message, &tpo__v1__perceive_request__descriptor, p->body.data != NULL ? p->body.data : "",
                         p->body.size, &p->err);
}

static void on_parsed(uv_work_t *work, int status)
{
    (void)status;
    struct perceive *p = work->data;
    p->parsing = false;
    if (p->x != NULL) {
        open_request(p);
        return;
    }
    if (p->message != NULL) protobuf_c_message_free_unpacked(p->message, NULL);
    perceive_free(p);
}

static void perceive_begin(struct tpo_http *x, void *owner)
{
    struct tpo_gateway *g = owner;
    struct perceive *p = calloc(1, sizeof(*p));
    if (p == NULL) {
        reply_no_memory(x);
        return;
    }
    p->g = g;
    p->x = x;
    p->parse.data = p;
    tpo_gateway_hold(g);
    tpo_http_set_state(x, p);
}

static void perceive_body(struct tpo_http *x, const char *data, size_t size)
{
    struct perceive *p = tpo_http_state(x);
    struct tpo_error err;
    if (tpo_gateway_take_body(p->g, size, &err) == TPO_OK) {
        size_t before = p->body.size;
        tpo_text_add(&p->body, data, size);
        if (p->body.size == before + size) return;
        p->g->body_bytes -= size;
        tpo_fail(&err, TPO_RESOURCE_EXHAUSTED, "memory", "out of memory");
    }
    char label[64];
    tpo_metrics_add(p->g->metrics, "tpo_admission_rejected_total",
                    tpo_metrics_labels(label, sizeof(label), "reason", err.reason, NULL), 1);
    tpo_http_reply_error(x, &err, NULL);
    perceive_free(p);
}

static void perceive_end(struct tpo_http *x)
{
    struct perceive *p = tpo_http_state(x);
    if (p->body.size <= PARSE_INLINE) {
        parse(&p->parse);
        open_request(p);
    } else {
        p->parsing = true;
        uv_queue_work(p->g->loop, &p->parse, parse, on_parsed);
    }
}

static void perceive_gone(struct tpo_http *x)
{
    struct perceive *p = tpo_http_state(x);
    p->x = NULL;
    if (p->request != NULL) tpo_request_cancel(p->request);
    if (!p->parsing) perceive_free(p); /* else on_parsed does */
}

/* --- POST /v1/media ---------------------------------------------------------------------------------------------------------------- */

struct media {
    struct tpo_http *x;
    struct tpo_upload *upload;
};

static void on_room(void *owner)
{
    tpo_http_resume(((struct media *)owner)->x);
}

static void on_stored(void *owner, const char *id, uint64_t size, const struct tpo_error *err)
{
    struct media *m = owner;
    if (err->code != TPO_OK) {
        tpo_http_reply_error(m->x, err, NULL);
    } else {
        Tpo__V1__MediaPutReply reply = TPO__V1__MEDIA_PUT_REPLY__INIT;
        reply.id = (char *)id;
        reply.size_bytes = size;
        reply_message(m->x, &reply.base);
    }
    free(m);
}

static void media_begin(struct tpo_http *x, void *owner)
{
    struct tpo_gateway *g = owner;
    struct media *m = calloc(1, sizeof(*m));
    if (m != NULL) m->upload = tpo_upload_open(g->media, NULL, on_room, on_stored, m);
    if (m == NULL || m->upload == NULL) {
        free(m);
        reply_no_memory(x);
        return;
    }
    m->x = x;
    tpo_http_set_state(x, m);
}

static void media_body(struct tpo_http *x, const char *data, size_t size)
{
    struct media *m = tpo_http_state(x);
    if (!tpo_upload_add(m->upload, data, size)) tpo_http_pause(x);
}

static void media_end(struct tpo_http *x)
{
    tpo_upload_end(((struct media *)tpo_http_state(x))->upload);
}

static void media_gone(struct tpo_http *x)
{
    struct media *m = tpo_http_state(x);
    tpo_upload_cancel(m->upload);
    free(m);
}

/* --- GET --------------------------------------------------------------------------------------------------------------------------- */

static void healthz(struct tpo_http *x)
{
    tpo_http_reply(x, 200, "application/json", "{\"status\":\"ok\"}", 15, NULL);
}

static void readyz(struct tpo_http *x)
{
    struct tpo_gateway *g = tpo_http_owner(x);
    struct tpo_text body = {0};
    tpo_gateway_ready_json(g, &body);
    tpo_http_reply(x, tpo_gateway_ready(g) ? 200 : 503, "application/json", body.data, body.size, NULL);
    tpo_text_free(&body);
}

struct scraper {
    struct tpo_http *x;
};

static void on_metrics(void *owner, const struct tpo_text *text)
{
    struct scraper *s = owner;
    if (s->x != NULL) tpo_http_reply(s->x, 200, "text/plain; version=0.0.4; charset=utf-8", text->data, text->size, NULL);
    free(s);
}

static void metrics(struct tpo_http *x)
{
    struct scraper *s = malloc(sizeof(*s));
    if (s == NULL) {
        reply_no_memory(x);
        return;
    }
    s->x = x;
    tpo_http_set_state(x, s);
    tpo_gateway_metrics(tpo_http_owner(x), on_metrics, s);
}

static void metrics_gone(struct tpo_http *x)
{
    struct scraper *s = tpo_http_state(x);
    if (s != NULL) s->x = NULL;
}

void tpo_routes_fill(struct tpo_http_route rows[TPO_ROUTES], const struct tpo_gateway_settings *s)
{
    const struct tpo_http_route all[TPO_ROUTES] = {
        {"POST", "/v1/media", s->media.file_max_bytes, media_begin, media_body, media_end, media_gone},
        {"POST", "/v1/perceive", s->body_max_bytes, perceive_begin, perceive_body, perceive_end, perceive_gone},
        {"GET", "/healthz", 0, NULL, NULL, healthz, NULL},
        {"GET", "/readyz", 0, NULL, NULL, readyz, NULL},
        {"GET", "/metrics", 0, NULL, NULL, metrics, metrics_gone},
    };
    memcpy(rows, all, sizeof(all));
}

void tpo_routes_on_answer(void *owner, const char *path, int status)
{
    struct tpo_gateway *g = owner;
    char labels[96], text[12];
    snprintf(text, sizeof(text), "%d", status);
    tpo_metrics_add(g->metrics, "tpo_http_answers_total",
                    tpo_metrics_labels(labels, sizeof(labels), "path", path[0] != '\0' ? path : "other", "status", text, NULL), 1);
}
