/* This file owns an HTTP answer as it is written: head, body, errors, pieces of a stream. */
#include <stdlib.h>
#include <string.h>

#include "gateway/http_private.h"

#define QUEUE_BYTES (8u << 20)

struct write {
    uv_write_t req;
    char data[];
};

static void on_written(uv_write_t *req, int status)
{
    struct tpo_http *x = req->data;
    free(req);
    if (x->state == CLOSED) return;
    if (status < 0) {
        tpo_http_close(x);
        return;
    }
    bool empty = tpo_http_unsent(x) == 0;
    if (empty && x->ended) {
        tpo_http_close(x);
        return;
    }
    if (x->state != ANSWER && !(x->state == BODY && x->streaming)) return;
    if (!empty) {
        tpo_http_arm(x, WRITE_MS);
        return;
    }
    tpo_http_disarm(x);
    if (x->answered) tpo_http_after_answer(x); /* the next request may have waited for this */
}

void tpo_http_write(struct tpo_http *x, const char *a, size_t n_a, const void *b, size_t n_b, const char *tail)
{
    if (x->state == CLOSED || x->lost || n_a + n_b == 0) return;
    size_t n_tail = strlen(tail);
    struct write *w = malloc(sizeof(*w) + n_a + n_b + n_tail);
    if (w == NULL || tpo_http_unsent(x) > QUEUE_BYTES) {
        free(w);
        tpo_http_lose(x);
        return;
    }
    memcpy(w->data, a, n_a);
    if (n_b > 0) memcpy(w->data + n_a, b, n_b);
    memcpy(w->data + n_a + n_b, tail, n_tail);
    uv_buf_t buf = uv_buf_init(w->data, (unsigned)(n_a + n_b + n_tail));
    w->req.data = x;
    if (uv_write(&w->req, (uv_stream_t *)&x->tcp, &buf, 1, on_written) < 0) {
        free(w);
        tpo_http_lose(x);
        return;
    }
    if (tpo_http_unsent(x) > 0 && !uv_is_active((uv_handle_t *)&x->timer)) tpo_http_arm(x, WRITE_MS);
}

/* The phrases of RFC 9110, and of RFC 6585 for 429 and 431; llhttp has only its names in capitals. 499 is nginx's, as its phrase is. */
static const char *status_text(int status)
{
    static const struct {
        int status;
        const char *text;
    } phrases[] = {{200, "OK"},
                   {201, "Created"},
                   {204, "No Content"},
                   {400, "Bad Request"},
                   {401, "Unauthorized"},
                   {403, "Forbidden"},
                   {404, "Not Found"},
                   {405, "Method Not Allowed"},
                   {408, "Request Timeout"},
                   {409, "Conflict"},
                   {412, "Precondition Failed"},
                   {413, "Content Too Large"},
                   {414, "URI Too Long"},
                   {415, "Unsupported Media Type"},
                   {417, "Expectation Failed"},
                   {422, "Unprocessable Content"},
                   {429, "Too Many Requests"},
                   {431, "Request Header Fields Too Large"},
                   {499, "Client Closed Request"},
                   {500, "Internal Server Error"},
                   {501, "Not Implemented"},
                   {502, "Bad Gateway"},
                   {503, "Service Unavailable"},
                   {504, "Gateway Timeout"},
                   {505, "HTTP Version Not Supported"}};
    for (size_t i = 0; i < sizeof(phrases) / sizeof(phrases[0]); i++)
        if (phrases[i].status == status) return phrases[i].text;
    return "Unknown";
}

/* The head, and what there is of the body with it: one write, so that a client wakes once. length -1: not known. */
static void write_head(struct tpo_http *x, int status, const char *type, const char *headers, int64_t length, const void *body)
{
    /* A body that wasn't read to its end would be taken for the next request. */
    if (!x->complete || x->door->draining) x->keep_alive = false;
    struct tpo_text t = {0};
    tpo_text_printf(&t, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\n", status, status_text(status), type);
    if (length >= 0)
        tpo_text_printf(&t, "Content-Length: %lld\r\n", (long long)length);
    else if (x->chunked)
        tpo_text_puts(&t, "Transfer-Encoding: chunked\r\n");
    if (x->request_id[0] != '\0') tpo_text_printf(&t, "tpo-request-id: %s\r\n", x->request_id);
    if (headers != NULL) tpo_text_puts(&t, headers);
    if (!x->keep_alive)
        tpo_text_puts(&t, "Connection: close\r\n");
    else if (x->parser.http_minor == 0)
        tpo_text_puts(&t, "Connection: keep-alive\r\n");
    tpo_text_puts(&t, "\r\n");
    if (t.failed)
        tpo_http_lose(x);
    else
        tpo_http_write(x, t.data, t.size, body, body != NULL ? (size_t)length : 0, "");
    tpo_text_free(&t);
    if (x->door->s.on_answer != NULL) x->door->s.on_answer(x->door->s.owner, x->route != NULL ? x->route->path : "", status);
}

void tpo_http_reply(struct tpo_http *x, int status, const char *type, const void *data, size_t size, const char *headers)
{
    TPO_ASSERT(!x->answered && !x->streaming);
    x->answered = true;
    write_head(x, status, type, headers, (int64_t)size, x->head_only || size == 0 ? NULL : data);
    tpo_http_after_answer(x);
}

/* {"error":{...}} as docs/rest.md has it. */
static void error_json(struct tpo_text *out, const struct tpo_error *err, const char *request_id)
{
    const struct {
        const char *key, *text;
    } members[] = {{"code", tpo_status_name(err->code)},
                   {"reason", err->reason},
                   {"message", err->message[0] != '\0' ? err->message : tpo_status_sentence(err->code)},
                   {"stage", err->stage[0] != '\0' ? err->stage : "gateway"},
                   {"requestId", request_id}};
    tpo_text_puts(out, "{\"error\":{");
    for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++) {
        tpo_text_printf(out, "%s\"%s\":", i > 0 ? "," : "", members[i].key);
        size_t size = strlen(members[i].text);
        /* A peer's message is only as clean as the peer. */
        if (!tpo_utf8_valid(members[i].text, size))
            tpo_text_json(out, "?", 1);
        else
            tpo_text_json(out, members[i].text, size);
    }
    tpo_text_puts(out, "}}");
}

void tpo_http_answer_error(struct tpo_http *x, int status, const struct tpo_error *err, const char *request_id, const char *headers)
{
    struct tpo_text body = {0};
    char retry[128];
    error_json(&body, err, request_id != NULL ? request_id : x->request_id);
    snprintf(retry, sizeof(retry), "Retry-After: %d\r\n", (err->retry_ms + 999) / 1000);
    tpo_http_reply(x, status, "application/json", body.data, body.size, err->retry_ms > 0 ? retry : headers);
    tpo_text_free(&body);
}

void tpo_http_reply_error(struct tpo_http *x, const struct tpo_error *err, const char *request_id)
{
    tpo_http_answer_error(x, tpo_status_http(err->code), err, request_id, NULL);
}

void tpo_http_refuse(struct tpo_http *x, int status, int code, const char *reason, const char *message)
{
    if (x->state == CLOSED || x->state == LINGER || x->lost || x->answered) return;
    bool tell = x->begun;
    x->begun = false;
    if (tell && x->route->on_gone != NULL) x->route->on_gone(x);
    if (x->streaming) {
        tpo_http_close(x);
        return;
    }
    struct tpo_error err = {0};
    tpo_fail(&err, code, reason, "%s", message);
    x->complete = false;
    tpo_http_answer_error(x, status, &err, NULL, NULL);
}

void tpo_http_stream_begin(struct tpo_http *x, const char *type)
{
    TPO_ASSERT(!x->answered && !x->streaming);
    x->chunked = x->parser.http_minor > 0;
    if (!x->chunked) x->keep_alive = false;
    write_head(x, 200, type, "Cache-Control: no-store\r\nX-Accel-Buffering: no\r\n", -1, NULL);
    x->streaming = true;
}

void tpo_http_stream_write(struct tpo_http *x, const void *data, size_t size)
{
    if (x->head_only || size == 0) return;
    char length[24] = "";
    if (x->chunked) snprintf(length, sizeof(length), "%zx\r\n", size);
    tpo_http_write(x, length, strlen(length), data, size, x->chunked ? "\r\n" : "");
}

void tpo_http_stream_end(struct tpo_http *x)
{
    x->answered = true;
    if (x->chunked && !x->head_only) tpo_http_write(x, "0\r\n\r\n", 5, NULL, 0, "");
    tpo_http_after_answer(x);
}
