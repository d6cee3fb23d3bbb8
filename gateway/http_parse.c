/* This file owns an HTTP request as it is read: the parser's callbacks, which return -1 where our own answer was given, headers, the route, and what
 * waits behind it. */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "gateway/http_private.h"
#include "gateway/trace.h"

#define HEADER_BYTES 16384
#define URL_BYTES    8192
#define BODY_LEAST   16384 /* bytes that a body has to bring for more time */
#define UNREAD_BYTES 65536 /* a client that takes no answers gets no further one */

/* Nothing more is read of this connection. */
static bool over(const struct tpo_http *x)
{
    return x->state == CLOSED || x->state == LINGER || x->lost;
}

static int on_message_begin(llhttp_t *p)
{
    struct tpo_http *x = p->data;
    tpo_text_reset(&x->head);
    tpo_text_reset(&x->url);
    x->n_headers = 0;
    x->in_value = false;
    x->head_bytes = 0;
    x->body_bytes = 0;
    x->enough_bytes = BODY_LEAST;
    x->route = NULL;
    x->handler = NULL;
    x->request_id[0] = '\0';
    x->begun = x->complete = x->answered = x->streaming = x->chunked = x->head_only = false;
    x->started = x->keep_alive = true;
    tpo_http_arm(x, x->door->s.header_timeout_ms);
    return 0;
}

static int on_url(llhttp_t *p, const char *at, size_t n)
{
    struct tpo_http *x = p->data;
    if (x->url.size + n > URL_BYTES) {
        tpo_http_refuse(x, 414, TPO_INVALID_ARGUMENT, "path_too_long", "the path is over 8 KiB");
        return -1;
    }
    tpo_text_add(&x->url, at, n);
    return 0;
}

static int count_head(struct tpo_http *x, size_t n)
{
    x->head_bytes += n;
    if (x->head_bytes + x->url.size <= HEADER_BYTES && x->n_headers < (int)(sizeof(x->names) / sizeof(x->names[0]))) return 0;
    tpo_http_refuse(x, 431, TPO_INVALID_ARGUMENT, "headers_too_large", "over 16 KiB or over 99 headers");
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

/* A value has no white space at its end (RFC 9112, 5); llhttp has dropped what stands before it. */
static int on_value_complete(llhttp_t *p)
{
    struct tpo_http *x = p->data;
    struct span *v = &x->values[x->n_headers - 1];
    if (!x->in_value || x->head.failed) return 0;
    while (v->size > 0 && strchr(" \t", x->head.data[v->at + v->size - 1]) != NULL) v->size--;
    x->head.size = v->at + v->size;
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

static void choose_request_id(struct tpo_http *x)
{
    const char *given = tpo_http_header(x, "tpo-request-id");
    if (!tpo_id_valid(given, TPO_REQUEST_ID_MAX)) given = tpo_http_header(x, "x-request-id");
    if (tpo_id_valid(given, TPO_REQUEST_ID_MAX)) {
        snprintf(x->request_id, sizeof(x->request_id), "%s", given);
        return;
    }
    tpo_random_hex(x->request_id, 8);
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
        tpo_http_answer_error(x, 404, &err, NULL, NULL);
    } else {
        tpo_fail(&err, TPO_UNIMPLEMENTED, "method", "this path does not take %s", method);
        strcat(allow, "\r\n");
        tpo_http_answer_error(x, 405, &err, NULL, allow);
    }
    return false;
}

static void refuse_version(struct tpo_http *x)
{
    x->parser.http_minor = 1;
    tpo_http_refuse(x, 505, TPO_UNIMPLEMENTED, "http_version", "HTTP 1.0 or 1.1 only");
}

/* What the parser lets through and we do not; false after an answer. */
static bool check_head(struct tpo_http *x)
{
    int version = x->parser.http_major * 10 + x->parser.http_minor;
    if (version != 10 && version != 11) {
        refuse_version(x);
    } else if (version == 11 && count_headers(x, "host") != 1) {
        tpo_http_refuse(x, 400, TPO_INVALID_ARGUMENT, "http", "exactly one Host header is needed");
    } else if (x->parser.method == HTTP_CONNECT) {
        tpo_http_refuse(x, 501, TPO_UNIMPLEMENTED, "connect", "this is no proxy");
    } else if (x->head.failed || x->url.failed || x->pending.failed) {
        tpo_http_refuse(x, 503, TPO_RESOURCE_EXHAUSTED, "memory", "out of memory");
    } else {
        x->parser.upgrade = 0; /* an offer that may be passed over (RFC 9110, 7.8) */
        return true;
    }
    return false;
}

/* How the body is framed, and that nobody between may see it framed otherwise (RFC 9112, 6.1). */
static bool check_framing(struct tpo_http *x)
{
    const int n = count_headers(x, "transfer-encoding");
    if (n == 0) return true;
    if (x->parser.http_minor == 0)
        tpo_http_refuse(x, 400, TPO_INVALID_ARGUMENT, "http", "Transfer-Encoding in HTTP 1.0");
    else if (n > 1 || strcasecmp(tpo_http_header(x, "transfer-encoding"), "chunked") != 0)
        tpo_http_refuse(x, 501, TPO_UNIMPLEMENTED, "transfer_encoding", "no other transfer coding than chunked");
    else
        return true;
    return false;
}

static bool check_body(struct tpo_http *x)
{
    const char *expect = tpo_http_header(x, "expect");
    bool chunked = (x->parser.flags & F_CHUNKED) != 0;
    if (!chunked && x->parser.content_length > x->route->body_max) {
        tpo_http_refuse(x, 413, TPO_INVALID_ARGUMENT, "body_too_large", "the body is over this path's limit");
        return false;
    }
    if (expect == NULL) return true;
    if (strcasecmp(expect, "100-continue") != 0) {
        tpo_http_refuse(x, 417, TPO_INVALID_ARGUMENT, "expect", "only 100-continue can be expected");
        return false;
    }
    if (x->parser.http_minor > 0 && (chunked || x->parser.content_length > 0))
        tpo_http_write(x, "HTTP/1.1 100 Continue\r\n\r\n", 25, NULL, 0, "");
    return !x->lost;
}

static int on_headers_complete(llhttp_t *p)
{
    struct tpo_http *x = p->data;
    tpo_text_add(&x->head, "\0", 1);
    choose_request_id(x);
    if (!check_head(x) || !check_framing(x)) return -1;
    x->keep_alive = llhttp_should_keep_alive(p);
    /* Nothing to read: what is refused from here on costs no connection. */
    bool empty = (p->flags & F_CHUNKED) == 0 && p->content_length == 0;
    x->complete = empty;
    if (!choose_route(x) || !check_body(x)) return over(x) ? -1 : 0;
    x->complete = false;
    x->state = BODY;
    tpo_http_arm(x, x->door->s.body_timeout_ms);
    x->begun = true;
    if (x->route->on_begin != NULL) x->route->on_begin(x, x->door->s.owner);
    return over(x) ? -1 : 0;
}

static int on_body(llhttp_t *p, const char *at, size_t n)
{
    struct tpo_http *x = p->data;
    x->body_bytes += n;
    if (x->state != BODY || x->answered) return 0;
    if (x->body_bytes > x->route->body_max) {
        tpo_http_refuse(x, 413, TPO_INVALID_ARGUMENT, "body_too_large", "the body is over this path's limit");
        return -1;
    }
    if (!x->paused && x->body_bytes >= x->enough_bytes) {
        tpo_http_arm(x, x->door->s.body_timeout_ms);
        x->enough_bytes = x->body_bytes + BODY_LEAST;
    }
    if (x->begun && x->route->on_body != NULL) x->route->on_body(x, at, n);
    return over(x) ? -1 : 0;
}

static int on_message_complete(llhttp_t *p)
{
    struct tpo_http *x = p->data;
    x->complete = true;
    if (over(x)) return -1;
    x->state = ANSWER;
    tpo_http_disarm(x);
    if (x->answered && tpo_http_unsent(x) > 0) tpo_http_arm(x, WRITE_MS);
    if (!x->answered && x->begun) x->route->on_end(x);
    if (over(x)) return -1;
    /* The next request waits until this one's answer has been given. */
    return HPE_PAUSED;
}

static const llhttp_settings_t parser_settings = {
    .on_message_begin = on_message_begin,
    .on_url = on_url,
    .on_header_field = on_field,
    .on_header_value = on_value,
    .on_header_value_complete = on_value_complete,
    .on_headers_complete = on_headers_complete,
    .on_body = on_body,
    .on_message_complete = on_message_complete,
    .on_chunk_extension_name = on_chunk_extension,
    .on_chunk_extension_value = on_chunk_extension,
};

static void refuse_malformed(struct tpo_http *x, llhttp_errno_t rc)
{
    if (rc == HPE_INVALID_VERSION || rc == HPE_PAUSED_H2_UPGRADE) {
        refuse_version(x);
        return;
    }
    char message[160];
    const char *why = llhttp_get_error_reason(&x->parser);
    snprintf(message, sizeof(message), "malformed HTTP: %s", why != NULL ? why : "unknown");
    tpo_http_refuse(x, 400, TPO_INVALID_ARGUMENT, "http", message);
}

/* The parser takes RTSP/ and ICE/ for HTTP/ with some methods, and does not tell: the last word of the request line does. */
static bool line_is_http(struct tpo_http *x, const char *data, size_t size)
{
    for (size_t i = 0; i < size && !x->line_read; i++) {
        if (data[i] == ' ')
            x->n_word = 0;
        else if (data[i] == '\n')
            x->line_read = x->n_word > 0;
        else if (data[i] != '\r' && x->n_word < (int)sizeof(x->word))
            x->word[x->n_word++] = data[i];
    }
    return !x->line_read || (strncmp(x->word, "RTSP/", 5) != 0 && strncmp(x->word, "ICE/", 4) != 0);
}

/* Up to the end of one request; how many bytes that took. */
static size_t feed(struct tpo_http *x, const char *data, size_t size)
{
    if (!line_is_http(x, data, size)) {
        refuse_version(x);
        return size;
    }
    x->in_execute = true;
    llhttp_errno_t rc = llhttp_execute(&x->parser, data, size);
    x->in_execute = false;
    if (rc == HPE_PAUSED) {
        const char *stop = llhttp_get_error_pos(&x->parser);
        return stop != NULL ? (size_t)(stop - data) : size;
    }
    if (rc != HPE_OK) refuse_malformed(x, rc);
    return size;
}

static void wait_with(struct tpo_http *x, const char *data, size_t size)
{
    struct tpo_text *p = &x->pending;
    if (x->taken > 0) {
        p->size -= x->taken;
        memmove(p->data, p->data + x->taken, p->size);
        x->taken = 0;
    }
    tpo_text_add(p, data, size);
    if (p->failed) tpo_http_close(x);
}

void tpo_http_go_on(struct tpo_http *x)
{
    while (!over(x) && x->answered && x->complete) {
        if (!x->keep_alive) return;
        if (tpo_http_unsent(x) > UNREAD_BYTES) return; /* on_written goes on */
        x->state = HEADERS;
        x->begun = x->answered = x->complete = x->streaming = x->started = x->line_read = false;
        x->n_word = 0;
        x->request_id[0] = '\0';
        tpo_http_arm(x, x->door->s.idle_timeout_ms);
        llhttp_resume(&x->parser);
        if (x->taken < x->pending.size) x->taken += feed(x, x->pending.data + x->taken, x->pending.size - x->taken);
        if (x->taken < x->pending.size) continue;
        tpo_text_free(&x->pending);
        x->taken = 0;
    }
}

void tpo_http_parse(struct tpo_http *x, const char *data, size_t size)
{
    size_t used = 0;
    if (!x->complete && x->pending.size == 0) used = feed(x, data, size);
    if (used < size) wait_with(x, data + used, size - used);
    tpo_http_go_on(x);
    tpo_http_set_reading(x);
}

void tpo_http_parser_init(struct tpo_http *x)
{
    llhttp_init(&x->parser, HTTP_REQUEST, &parser_settings);
    x->parser.data = x;
    x->parser.http_minor = 1;
}
