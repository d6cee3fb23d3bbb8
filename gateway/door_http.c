/* This file owns HTTP connections.
 *
 *   HEADERS --headers complete--> BODY --message complete--> ANSWER --answer given--> HEADERS (kept alive) or LINGER
 *      |                            |                           |
 *      +--malformed, too large, too late: our own answer--------+--> LINGER (read and drop, so that the answer isn't lost to a
 *      +--client gone--> CLOSED                                           reset) --> CLOSED
 *
 * A handler may answer in BODY too: the rest of the body is then dropped by LINGER. */
#include "gateway/door_http.h"

#include <llhttp/llhttp.h>
#include <openssl/rand.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define HEADER_BYTES  16384
#define URL_BYTES     8192
#define PENDING_BYTES 65536
#define READ_BYTES    65536
#define QUEUE_BYTES   (8u << 20)
#define LINGER_MS     2000
#define WRITE_MS      30000

enum state { HEADERS, BODY, ANSWER, LINGER, CLOSED };

struct span {
    size_t at, size;
};

struct tpo_http {
    uv_tcp_t tcp;
    uv_timer_t timer;
    struct tpo_http_door *door;
    struct tpo_http *next, *prev;
    int handles; /* close callbacks to come */
    enum state state;
    llhttp_t parser;
    bool reading, paused, in_execute;

    /* the request at hand */
    struct tpo_text head; /* names and values, each with a NUL */
    struct tpo_text url;
    struct span names[100], values[100];
    int n_headers;
    bool in_value;
    size_t head_bytes;
    uint64_t body_bytes;
    const struct tpo_http_route *route;
    void *handler;
    char request_id[65];
    bool begun;    /* the handler knows of it */
    bool complete; /* the body has been read to its end */
    bool answered; /* the last byte of the answer is on its way */
    bool streaming, chunked, keep_alive, head_only;

    struct tpo_text pending; /* pipelined bytes that wait */
};

struct tpo_http_door {
    uv_loop_t *loop;
    uv_tcp_t listener;
    struct tpo_http_settings s;
    struct tpo_http *connections;
    int n_connections, port;
    bool listening, closing, draining;
    char buffer[READ_BYTES];
};

struct write {
    uv_write_t req;
    char data[];
};

static void close_connection(struct tpo_http *x);
static void parse(struct tpo_http *x, const char *data, size_t size);
static void after_answer(struct tpo_http *x);

/* --- closing ---------------------------------------------------------------------------------------------------------------------- */

static void door_free_if_done(struct tpo_http_door *d)
{
    if (d->closing && d->n_connections == 0 && !d->listening) free(d);
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct tpo_http *x = handle->data;
    if (--x->handles > 0) return;
    struct tpo_http_door *d = x->door;
    if (x->prev != NULL)
        x->prev->next = x->next;
    else
        d->connections = x->next;
    if (x->next != NULL) x->next->prev = x->prev;
    d->n_connections--;
    tpo_text_free(&x->head);
    tpo_text_free(&x->url);
    tpo_text_free(&x->pending);
    free(x);
    door_free_if_done(d);
}

static void close_connection(struct tpo_http *x)
{
    if (x->state == CLOSED) return;
    bool tell = x->begun && !x->answered;
    x->state = CLOSED;
    uv_close((uv_handle_t *)&x->tcp, on_handle_closed);
    uv_close((uv_handle_t *)&x->timer, on_handle_closed);
    x->begun = false;
    if (tell && x->route->on_gone != NULL) x->route->on_gone(x);
}

/* --- time ------------------------------------------------------------------------------------------------------------------------- */

static void refuse(struct tpo_http *x, int status, int code, const char *reason, const char *message);

static void on_time(uv_timer_t *timer)
{
    struct tpo_http *x = timer->data;
    if (x->state == HEADERS && x->head_bytes == 0 && x->url.size == 0)
        close_connection(x); /* idle */
    else if (x->state == HEADERS)
        refuse(x, 408, TPO_DEADLINE_EXCEEDED, "header_timeout", "the headers took too long");
    else if (x->state == BODY && !x->answered && !x->streaming)
        refuse(x, 408, TPO_DEADLINE_EXCEEDED, "body_timeout", "the body stalled");
    else
        close_connection(x);
}

static void arm(struct tpo_http *x, int ms)
{
    if (x->state != CLOSED) uv_timer_start(&x->timer, on_time, (uint64_t)ms, 0);
}

static void disarm(struct tpo_http *x)
{
    if (x->state != CLOSED) uv_timer_stop(&x->timer);
}

/* --- writing ---------------------------------------------------------------------------------------------------------------------- */

static void on_written(uv_write_t *req, int status)
{
    struct tpo_http *x = req->data;
    free(req);
    if (x->state == CLOSED) return;
    if (status < 0) {
        close_connection(x);
        return;
    }
    bool empty = uv_stream_get_write_queue_size((uv_stream_t *)&x->tcp) == 0;
    if (x->state == ANSWER || (x->state == BODY && x->streaming)) {
        if (empty)
            disarm(x);
        else
            arm(x, WRITE_MS);
    }
}

/* Takes two pieces so that a chunk needs no second copy. */
static void write_out(struct tpo_http *x, const char *a, size_t n_a, const void *b, size_t n_b, const char *tail)
{
    if (x->state == CLOSED || n_a + n_b == 0) return;
    size_t n_tail = strlen(tail);
    struct write *w = malloc(sizeof(*w) + n_a + n_b + n_tail);
    if (w == NULL || uv_stream_get_write_queue_size((uv_stream_t *)&x->tcp) > QUEUE_BYTES) {
        free(w);
        close_connection(x);
        return;
    }
    memcpy(w->data, a, n_a);
    if (n_b > 0) memcpy(w->data + n_a, b, n_b);
    memcpy(w->data + n_a + n_b, tail, n_tail);
    uv_buf_t buf = uv_buf_init(w->data, (unsigned)(n_a + n_b + n_tail));
    w->req.data = x;
    if (uv_write(&w->req, (uv_stream_t *)&x->tcp, &buf, 1, on_written) < 0) {
        free(w);
        close_connection(x);
        return;
    }
    if (uv_stream_get_write_queue_size((uv_stream_t *)&x->tcp) > 0 && !uv_is_active((uv_handle_t *)&x->timer)) arm(x, WRITE_MS);
}

static const char *status_text(int status)
{
    switch (status) {
#define X(code, name, text)                                                                                                        \
    case code:                                                                                                                     \
        return #text;
        HTTP_STATUS_MAP(X)
#undef X
    }
    return "Error";
}

static void write_head(struct tpo_http *x, int status, const char *type, const char *headers, int64_t length)
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
        close_connection(x);
    else
        write_out(x, t.data, t.size, NULL, 0, "");
    tpo_text_free(&t);
    if (x->door->s.on_answer != NULL) x->door->s.on_answer(x->door->s.owner, x->route != NULL ? x->route->path : "", status);
}

void tpo_http_reply(struct tpo_http *x, int status, const char *type, const void *data, size_t size, const char *headers)
{
    TPO_ASSERT(!x->answered && !x->streaming);
    x->answered = true;
    write_head(x, status, type, headers, (int64_t)size);
    if (!x->head_only && size > 0) write_out(x, data, size, NULL, 0, "");
    after_answer(x);
}

void tpo_http_error_json(struct tpo_text *out, const struct tpo_error *err, const char *request_id)
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

static void reply_error(struct tpo_http *x, int status, const struct tpo_error *err, const char *request_id, const char *headers)
{
    struct tpo_text body = {0};
    char retry[128];
    tpo_http_error_json(&body, err, request_id != NULL ? request_id : x->request_id);
    snprintf(retry, sizeof(retry), "Retry-After: %d\r\n", (err->retry_ms + 999) / 1000);
    tpo_http_reply(x, status, "application/json", body.data, body.size, err->retry_ms > 0 ? retry : headers);
    tpo_text_free(&body);
}

void tpo_http_reply_error(struct tpo_http *x, const struct tpo_error *err, const char *request_id)
{
    reply_error(x, tpo_status_http(err->code), err, request_id, NULL);
}

/* Our own answer to what can't be handled; the handler, where there is one, learns that this request is over. */
static void refuse(struct tpo_http *x, int status, int code, const char *reason, const char *message)
{
    if (x->state == CLOSED || x->state == LINGER || x->answered) return;
    bool tell = x->begun;
    x->begun = false;
    if (tell && x->route->on_gone != NULL) x->route->on_gone(x);
    if (x->streaming) {
        close_connection(x);
        return;
    }
    struct tpo_error err = {0};
    tpo_fail(&err, code, reason, "%s", message);
    x->complete = false;
    reply_error(x, status, &err, NULL, NULL);
}

void tpo_http_stream_begin(struct tpo_http *x, const char *type)
{
    TPO_ASSERT(!x->answered && !x->streaming);
    x->chunked = x->parser.http_minor > 0;
    if (!x->chunked) x->keep_alive = false;
    write_head(x, 200, type, "Cache-Control: no-store\r\nX-Accel-Buffering: no\r\n", -1);
    x->streaming = true;
}

void tpo_http_stream_write(struct tpo_http *x, const void *data, size_t size)
{
    if (x->head_only || size == 0) return;
    char length[24] = "";
    if (x->chunked) snprintf(length, sizeof(length), "%zx\r\n", size);
    write_out(x, length, strlen(length), data, size, x->chunked ? "\r\n" : "");
}

void tpo_http_stream_end(struct tpo_http *x)
{
    x->answered = true;
    if (x->chunked && !x->head_only) write_out(x, "0\r\n\r\n", 5, NULL, 0, "");
    after_answer(x);
}

/* --- reading ---------------------------------------------------------------------------------------------------------------------- */

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    (void)suggested;
    struct tpo_http *x = handle->data;
    *buf = uv_buf_init(x->door->buffer, sizeof(x->door->buffer));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct tpo_http *x = stream->data;
    if (n < 0) {
        close_connection(x);
        return;
    }
    if (n > 0 && x->state != LINGER) parse(x, buf->base, (size_t)n);
}

static void set_reading(struct tpo_http *x)
{
    if (x->state == CLOSED) return;
    bool want = x->state == LINGER || (!x->paused && x->pending.size < PENDING_BYTES);
    if (want == x->reading) return;
    x->reading = want;
    if (want)
        uv_read_start((uv_stream_t *)&x->tcp, on_alloc, on_read);
    else
        uv_read_stop((uv_stream_t *)&x->tcp);
}

void tpo_http_pause(struct tpo_http *x)
{
    if (x->paused) return;
    x->paused = true;
    if (x->state == BODY) disarm(x); /* it isn't the client who is slow */
    set_reading(x);
}

void tpo_http_resume(struct tpo_http *x)
{
    if (!x->paused) return;
    x->paused = false;
    if (x->state == BODY) arm(x, x->door->s.body_timeout_ms);
    set_reading(x);
}

/* --- the parser's callbacks: they return -1 where our own answer was given ---------------------------------------------------------- */

static int on_message_begin(llhttp_t *p)
{
    struct tpo_http *x = p->data;
    tpo_text_reset(&x->head);
    tpo_text_reset(&x->url);
    x->n_headers = 0;
    x->in_value = false;
    x->head_bytes = 0;
    x->body_bytes = 0;
    x->route = NULL;
    x->handler = NULL;
    x->request_id[0] = '\0';
    x->begun = x->complete = x->answered = x->streaming = x->chunked = x->head_only = false;
    x->keep_alive = true;
    arm(x, x->door->s.header_timeout_ms);
    return 0;
}

static int on_url(llhttp_t *p, const char *at, size_t n)
{
    struct tpo_http *x = p->data;
    if (x->url.size + n > URL_BYTES) {
        refuse(x, 414, TPO_INVALID_ARGUMENT, "path_too_long", "the path is over 8 KiB");
        return -1;
    }
    tpo_text_add(&x->url, at, n);
    return 0;
}

static int count_head(struct tpo_http *x, size_t n)
{
    x->head_bytes += n;
    if (x->head_bytes + x->url.size <= HEADER_BYTES && x->n_headers < (int)(sizeof(x->names) / sizeof(x->names[0]))) return 0;
    refuse(x, 431, TPO_INVALID_ARGUMENT, "headers_too_large", "over 16 KiB or over 99 headers");
    return -1;
}

static int on_field(llhttp_t *p, const char *at, size_t n)
{
    struct tpo_http *x = p->data;
    if (x->in_value || x->n_headers == 0) {
        if (x->n_headers > 0) tpo_text_add(&x->head, "\0", 1);
        x->names[x->n_headers] = (struct span){x->head.size, 0};
        x->values[x->n_headers++] = (struct span){0, 0};
        x->in_value = false;
    }
    if (count_head(x, n + 4) != 0) return -1;
    tpo_text_add(&x->head, at, n);
    x->names[x->n_headers - 1].size += n;
    return 0;
}

static int on_value(llhttp_t *p, const char *at, size_t n)
{
    struct tpo_http *x = p->data;
    if (!x->in_value) {
        tpo_text_add(&x->head, "\0", 1);
        x->values[x->n_headers - 1] = (struct span){x->head.size, 0};
        x->in_value = true;
    }
    if (count_head(x, n) != 0) return -1;
    tpo_text_add(&x->head, at, n);
    x->values[x->n_headers - 1].size += n;
    return 0;
}

static int on_chunk_extension(llhttp_t *p, const char *at, size_t n)
{
    (void)at;
    return count_head(p->data, n);
}

const char *tpo_http_header(const struct tpo_http *x, const char *name)
{
    for (int i = 0; i < x->n_headers; i++)
        if (x->values[i].at > 0 && strncasecmp(x->head.data + x->names[i].at, name, x->names[i].size) == 0 &&
            strlen(name) == x->names[i].size)
            return x->head.data + x->values[i].at;
    return NULL;
}

static int count_headers(const struct tpo_http *x, const char *name)
{
    int n = 0;
    for (int i = 0; i < x->n_headers; i++)
        n += strlen(name) == x->names[i].size && strncasecmp(x->head.data + x->names[i].at, name, x->names[i].size) == 0;
    return n;
}

static bool id_valid(const char *id)
{
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t n = id != NULL ? strlen(id) : 0;
    return n > 0 && n <= 64 && strspn(id, allowed) == n;
}

static void choose_request_id(struct tpo_http *x)
{
    const char *given = tpo_http_header(x, "tpo-request-id");
    if (!id_valid(given)) given = tpo_http_header(x, "x-request-id");
    if (id_valid(given)) {
        snprintf(x->request_id, sizeof(x->request_id), "%s", given);
        return;
    }
    unsigned char bytes[8];
    RAND_bytes(bytes, sizeof(bytes));
    for (size_t i = 0; i < sizeof(bytes); i++) snprintf(x->request_id + 2 * i, 3, "%02x", bytes[i]);
}

/* Finds the route; false after 404 or 405 was answered. */
static bool choose_route(struct tpo_http *x)
{
    const char *method = llhttp_method_name((llhttp_method_t)x->parser.method);
    char allow[128] = "";
    x->url.data[strcspn(x->url.data, "?#")] = '\0';
    const char *path = x->url.data;
    if (strncasecmp(path, "http://", 7) == 0) { /* the absolute form, which a proxy sends and a server has to take */
        path = strchr(path + 7, '/');
        if (path == NULL) path = "/";
    }
    x->head_only = strcmp(method, "HEAD") == 0;
    for (const struct tpo_http_route *r = x->door->s.routes; r->path != NULL; r++) {
        if (strcmp(r->path, path) != 0) continue;
        if (strcmp(r->method, x->head_only ? "GET" : method) == 0) {
            x->route = r;
            return true;
        }
        size_t n = strlen(allow);
        snprintf(allow + n, sizeof(allow) - n, "%s%s%s", n > 0 ? ", " : "Allow: ", r->method,
                 strcmp(r->method, "GET") == 0 ? ", HEAD" : "");
    }
    struct tpo_error err;
    if (allow[0] == '\0') {
        tpo_fail(&err, TPO_NOT_FOUND, "path_unknown", "no such path");
        reply_error(x, 404, &err, NULL, NULL);
    } else {
        tpo_fail(&err, TPO_UNIMPLEMENTED, "method", "this path does not take %s", method);
        strcat(allow, "\r\n");
        reply_error(x, 405, &err, NULL, allow);
    }
    return false;
}

/* What the parser lets through and we do not; false after an answer. */
static bool check_head(struct tpo_http *x)
{
    int version = x->parser.http_major * 10 + x->parser.http_minor;
    if (version != 10 && version != 11) {
        x->parser.http_minor = 1;
        refuse(x, 505, TPO_UNIMPLEMENTED, "http_version", "HTTP 1.0 or 1.1 only");
    } else if (version == 11 && count_headers(x, "host") != 1) {
        refuse(x, 400, TPO_INVALID_ARGUMENT, "http", "exactly one Host header is needed");
    } else if (x->parser.upgrade) {
        refuse(x, 501, TPO_UNIMPLEMENTED, "upgrade", "no upgrade, no CONNECT");
    } else if (x->head.failed || x->url.failed || x->pending.failed) {
        refuse(x, 503, TPO_RESOURCE_EXHAUSTED, "memory", "out of memory");
    } else {
        return true;
    }
    return false;
}

static bool check_body(struct tpo_http *x)
{
    const char *expect = tpo_http_header(x, "expect");
    bool chunked = (x->parser.flags & F_CHUNKED) != 0;
    if (!chunked && x->parser.content_length > x->route->body_max) {
        refuse(x, 413, TPO_INVALID_ARGUMENT, "body_too_large", "the body is over this path's limit");
        return false;
    }
    if (expect == NULL) return true;
    if (strcasecmp(expect, "100-continue") != 0) {
        refuse(x, 417, TPO_INVALID_ARGUMENT, "expect", "only 100-continue can be expected");
        return false;
    }
    if (x->parser.http_minor > 0 && (chunked || x->parser.content_length > 0))
        write_out(x, "HTTP/1.1 100 Continue\r\n\r\n", 25, NULL, 0, "");
    return x->state != CLOSED;
}

static int on_headers_complete(llhttp_t *p)
{
    struct tpo_http *x = p->data;
    tpo_text_add(&x->head, "\0", 1);
    choose_request_id(x);
    if (!check_head(x)) return -1;
    x->keep_alive = llhttp_should_keep_alive(p);
    /* Nothing to read: what is refused from here on costs no connection. */
    bool empty = (p->flags & F_CHUNKED) == 0 && p->content_length == 0;
    x->complete = empty;
    if (!choose_route(x) || !check_body(x)) return x->state == CLOSED || x->state == LINGER ? -1 : 0;
    x->complete = false;
    x->state = BODY;
    arm(x, x->door->s.body_timeout_ms);
    x->begun = true;
    if (x->route->on_begin != NULL) x->route->on_begin(x, x->door->s.owner);
    return x->state == CLOSED || x->state == LINGER ? -1 : 0;
}

static int on_body(llhttp_t *p, const char *at, size_t n)
{
    struct tpo_http *x = p->data;
    x->body_bytes += n;
    if (x->state != BODY || x->answered) return 0;
    if (x->body_bytes > x->route->body_max) {
        refuse(x, 413, TPO_INVALID_ARGUMENT, "body_too_large", "the body is over this path's limit");
        return -1;
    }
    if (!x->paused) arm(x, x->door->s.body_timeout_ms);
    if (x->begun && x->route->on_body != NULL) x->route->on_body(x, at, n);
    return x->state == CLOSED || x->state == LINGER ? -1 : 0;
}

static int on_message_complete(llhttp_t *p)
{
    struct tpo_http *x = p->data;
    x->complete = true;
    if (x->state == CLOSED || x->state == LINGER) return -1;
    if (!x->answered) {
        x->state = ANSWER;
        disarm(x);
        if (x->begun) x->route->on_end(x);
    }
    if (x->state == CLOSED || x->state == LINGER) return -1;
    /* The next request waits until this one's answer has been given. */
    return HPE_PAUSED;
}

static const llhttp_settings_t parser_settings = {
    .on_message_begin = on_message_begin,
    .on_url = on_url,
    .on_header_field = on_field,
    .on_header_value = on_value,
    .on_headers_complete = on_headers_complete,
    .on_body = on_body,
    .on_message_complete = on_message_complete,
    .on_chunk_extension_name = on_chunk_extension,
    .on_chunk_extension_value = on_chunk_extension,
};

static void refuse_malformed(struct tpo_http *x, llhttp_errno_t rc)
{
    if (rc == HPE_INVALID_VERSION) {
        x->parser.http_minor = 1;
        refuse(x, 505, TPO_UNIMPLEMENTED, "http_version", "HTTP 1.0 or 1.1 only");
        return;
    }
    char message[160];
    const char *why = llhttp_get_error_reason(&x->parser);
    snprintf(message, sizeof(message), "malformed HTTP: %s", why != NULL ? why : "unknown");
    refuse(x, 400, TPO_INVALID_ARGUMENT, "http", message);
}

static void feed(struct tpo_http *x, const char *data, size_t size)
{
    x->in_execute = true;
    llhttp_errno_t rc = llhttp_execute(&x->parser, data, size);
    x->in_execute = false;
    if (rc == HPE_PAUSED) {
        const char *stop = llhttp_get_error_pos(&x->parser);
        size_t used = stop != NULL ? (size_t)(stop - data) : size;
        tpo_text_add(&x->pending, data + used, size - used);
        if (x->pending.failed) close_connection(x);
    } else if (rc != HPE_OK) {
        refuse_malformed(x, rc);
    }
}

/* Goes through what waits, as long as answers come at once: a loop, so that a thousand pipelined requests need no stack. */
static void go_on(struct tpo_http *x)
{
    while (x->state != CLOSED && x->state != LINGER && x->answered && x->complete) {
        if (!x->keep_alive || x->door->draining) return;
        x->state = HEADERS;
        x->begun = x->answered = x->complete = x->streaming = false;
        x->head_bytes = 0;
        tpo_text_reset(&x->url);
        x->request_id[0] = '\0';
        arm(x, x->door->s.idle_timeout_ms);
        llhttp_resume(&x->parser);
        struct tpo_text waiting = x->pending;
        x->pending = (struct tpo_text){0};
        if (waiting.size > 0) feed(x, waiting.data, waiting.size);
        tpo_text_free(&waiting);
    }
}

static void parse(struct tpo_http *x, const char *data, size_t size)
{
    if (x->complete || x->pending.size > 0) {
        tpo_text_add(&x->pending, data, size);
        if (x->pending.failed) close_connection(x);
    } else {
        feed(x, data, size);
        go_on(x);
    }
    set_reading(x);
}

static void on_shutdown(uv_shutdown_t *req, int status)
{
    (void)status;
    free(req);
}

static void linger(struct tpo_http *x)
{
    uv_shutdown_t *req = malloc(sizeof(*req));
    if (req == NULL || uv_shutdown(req, (uv_stream_t *)&x->tcp, on_shutdown) < 0) {
        free(req);
        close_connection(x);
        return;
    }
    x->state = LINGER;
    x->paused = false;
    arm(x, uv_stream_get_write_queue_size((uv_stream_t *)&x->tcp) > 0 ? WRITE_MS : LINGER_MS);
    set_reading(x);
}

static void after_answer(struct tpo_http *x)
{
    x->begun = false;
    x->handler = NULL;
    if (x->state == CLOSED) return;
    if (!x->keep_alive) {
        linger(x);
        return;
    }
    if (x->in_execute) return; /* the loop in parse() goes on */
    x->paused = false;
    go_on(x);
    set_reading(x);
}

/* --- the door --------------------------------------------------------------------------------------------------------------------- */

static void on_connection(uv_stream_t *server, int status)
{
    struct tpo_http_door *d = server->data;
    struct tpo_http *x = status < 0 ? NULL : calloc(1, sizeof(*x));
    if (x == NULL) return;
    x->door = d;
    x->tcp.data = x->timer.data = x;
    uv_tcp_init(d->loop, &x->tcp);
    uv_timer_init(d->loop, &x->timer);
    x->handles = 2;
    x->next = d->connections;
    if (x->next != NULL) x->next->prev = x;
    d->connections = x;
    d->n_connections++;
    llhttp_init(&x->parser, HTTP_REQUEST, &parser_settings);
    x->parser.data = x;
    x->parser.http_minor = 1;
    if (uv_accept(server, (uv_stream_t *)&x->tcp) < 0) {
        close_connection(x);
        return;
    }
    uv_tcp_nodelay(&x->tcp, 1);
    if (d->n_connections > d->s.connections_max) {
        struct tpo_error err;
        tpo_fail(&err, TPO_UNAVAILABLE, "connections", "too many connections");
        err.retry_ms = 1000;
        reply_error(x, 503, &err, NULL, NULL);
        return;
    }
    arm(x, d->s.header_timeout_ms);
    set_reading(x);
}

static void on_listener_closed(uv_handle_t *handle)
{
    struct tpo_http_door *d = handle->data;
    d->listening = false;
    door_free_if_done(d);
}

int tpo_http_door_open(struct tpo_http_door **out, uv_loop_t *loop, const struct tpo_http_settings *s, struct tpo_error *err)
{
    struct tpo_http_door *d = calloc(1, sizeof(*d));
    if (d == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "out of memory");
    d->loop = loop;
    d->s = *s;
    if (d->s.header_timeout_ms == 0) d->s.header_timeout_ms = 10000;
    if (d->s.body_timeout_ms == 0) d->s.body_timeout_ms = 30000;
    if (d->s.idle_timeout_ms == 0) d->s.idle_timeout_ms = 60000;
    if (d->s.connections_max == 0) d->s.connections_max = 1024;
    struct sockaddr_storage address;
    int rc = uv_ip4_addr(s->host, s->port, (struct sockaddr_in *)&address);
    if (rc < 0) rc = uv_ip6_addr(s->host, s->port, (struct sockaddr_in6 *)&address);
    if (rc < 0) {
        free(d);
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "host", "%s is not an IP address", s->host);
    }
    uv_tcp_init(loop, &d->listener);
    d->listener.data = d;
    d->listening = true;
    rc = uv_tcp_bind(&d->listener, (struct sockaddr *)&address, 0);
    if (rc == 0) rc = uv_listen((uv_stream_t *)&d->listener, 511, on_connection);
    int size = sizeof(address);
    if (rc == 0) rc = uv_tcp_getsockname(&d->listener, (struct sockaddr *)&address, &size);
    if (rc < 0) {
        tpo_http_door_close(d);
        return tpo_fail(err, TPO_UNAVAILABLE, "listen", "%s port %d: %s", s->host, s->port, uv_strerror(rc));
    }
    /* The port lies at the same place in both kinds of address. */
    d->port = ntohs(((struct sockaddr_in *)&address)->sin_port);
    *out = d;
    return TPO_OK;
}

int tpo_http_door_port(const struct tpo_http_door *d)
{
    return d->port;
}

int tpo_http_door_connections(const struct tpo_http_door *d)
{
    return d->n_connections;
}

void tpo_http_door_drain(struct tpo_http_door *d)
{
    if (d->draining) return;
    d->draining = true;
    uv_close((uv_handle_t *)&d->listener, on_listener_closed);
    for (struct tpo_http *x = d->connections; x != NULL; x = x->next)
        if (x->state == HEADERS) close_connection(x);
}

void tpo_http_door_close(struct tpo_http_door *d)
{
    if (d == NULL) return;
    d->closing = true;
    if (!d->draining) uv_close((uv_handle_t *)&d->listener, on_listener_closed);
    d->draining = true;
    for (struct tpo_http *x = d->connections; x != NULL; x = x->next) close_connection(x);
    door_free_if_done(d);
}

void tpo_http_set_state(struct tpo_http *x, void *state)
{
    x->handler = state;
}

void *tpo_http_state(const struct tpo_http *x)
{
    return x->handler;
}

void *tpo_http_owner(const struct tpo_http *x)
{
    return x->door->s.owner;
}

const char *tpo_http_request_id(const struct tpo_http *x)
{
    return x->request_id;
}

int64_t tpo_http_content_length(const struct tpo_http *x)
{
    return x->parser.flags & F_CHUNKED ? -1 : (int64_t)x->parser.content_length;
}
