/* door_http.h -- the HTTP door: connections, requests and answers on one libuv loop. It knows no route by itself.
 *
 * HTTP/1.0 and 1.1 (RFC 9112), 505 for anything else. Requests of a connection are answered in order, one at a time: what a client pipelines
 * waits, up to 64 KiB, then isn't read; nor is the next one looked at while 64 KiB of answers wait to be taken. Refused with an answer in JSON
 * (code, reason, message, stage, requestId) and, where the rest of the input can't be trusted, a closed connection: malformed text, both
 * Content-Length and chunked, white space before a header's colon, no or two Host headers in 1.1 (400); a body over the route's limit (413); a
 * path over 8 KiB (414); headers over 16 KiB (431); headers that take over 10 s, a body that stalls for 30 s (408); an unknown path (404); a
 * known path with another method (405, Allow).
 *
 * Everything runs on the loop's thread. A handler is called back from the loop, and may answer from within any callback. */
#ifndef TPO_GATEWAY_DOOR_HTTP_H
#define TPO_GATEWAY_DOOR_HTTP_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "common/status.h"
#include "common/text.h"

struct tpo_http_door;
struct tpo_http;

/* One method on one path. HEAD is answered wherever GET is. on_begin comes with the headers, on_body with each piece of the body
 * (borrowed), on_end when it is complete, and on_gone, instead of whatever would come next, when the client left before the answer
 * was given: never from within a call of the handler's. Nothing comes after on_gone or after the answer was given. All but on_end may be NULL. */
struct tpo_http_route {
    const char *method, *path;
    uint64_t body_max; /* bytes */
    void (*on_begin)(struct tpo_http *x, void *owner);
    void (*on_body)(struct tpo_http *x, const char *data, size_t size);
    void (*on_end)(struct tpo_http *x);
    void (*on_gone)(struct tpo_http *x);
};

struct tpo_http_settings {
    const char *host;
    int port;                                                     /* 0: the system chooses */
    const struct tpo_http_route *routes;                          /* borrowed, ended by one without a path */
    void *owner;                                                  /* handed to on_begin */
    int header_timeout_ms, body_timeout_ms, idle_timeout_ms;      /* 0: 10 s, 30 s, 60 s */
    int connections_max;                                          /* 0: 1024; one more gets 503 */
    void (*on_answer)(void *owner, const char *path, int status); /* for counting; may be NULL */
};

int tpo_http_door_open(struct tpo_http_door **out, uv_loop_t *loop, const struct tpo_http_settings *s, struct tpo_error *err);
int tpo_http_door_port(const struct tpo_http_door *d);
/* Listens no longer; each connection closes after the answer it is at. */
void tpo_http_door_drain(struct tpo_http_door *d);
int tpo_http_door_connections(const struct tpo_http_door *d);
/* Closes every connection (on_gone comes for each request under way) and frees d when the loop has run their close callbacks. */
void tpo_http_door_close(struct tpo_http_door *d);

/* --- one request; the pointer is valid until it was answered or on_gone came ------------------------------------------------------ */
void tpo_http_set_state(struct tpo_http *x, void *state);
void *tpo_http_state(const struct tpo_http *x);
void *tpo_http_owner(const struct tpo_http *x);
const char *tpo_http_header(const struct tpo_http *x, const char *name); /* lower case; NULL when absent; the first of several */
const char *
tpo_http_request_id(const struct tpo_http *x); /* the client's (tpo-request-id, x-request-id) where valid, else made here */
void tpo_http_name(struct tpo_http *x, const char *request_id); /* a valid one from the body, which counts before the headers' */
/* No on_body until resume: back-pressure on an upload. One piece that was read already may still come. */
void tpo_http_pause(struct tpo_http *x);
void tpo_http_resume(struct tpo_http *x);

/* The whole answer. `headers` are complete lines ("Retry-After: 1\r\n") or NULL. Data is copied. */
void tpo_http_reply(struct tpo_http *x, int status, const char *type, const void *data, size_t size, const char *headers);
/* The error as JSON, its HTTP status by the table; with retry_ms a Retry-After header, rounded up to seconds. */
void tpo_http_reply_error(struct tpo_http *x, const struct tpo_error *err, const char *request_id);
/* An answer in pieces (chunked in 1.1, until close in 1.0). A reader that falls 8 MiB or 30 s behind is gone. */
void tpo_http_stream_begin(struct tpo_http *x, const char *type);
void tpo_http_stream_write(struct tpo_http *x, const void *data, size_t size);
void tpo_http_stream_end(struct tpo_http *x);

#endif
