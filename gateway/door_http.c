/* This file owns HTTP connections.
 *
 *   HEADERS --headers complete--> BODY --message complete--> ANSWER --answer given--> HEADERS (kept alive) or LINGER
 *      |                            |                           |
 *      +--malformed, too large, too late: our own answer--------+--> LINGER (read and drop, so that the answer isn't lost to a
 *      +--client gone, or too far behind--> CLOSED                        reset) --> CLOSED
 *
 * A handler may answer in BODY too: the rest of the body is then dropped by LINGER. */
#include "gateway/door_http.h"

#include <stdlib.h>
#include <string.h>

#include "gateway/http_private.h"

#define LINGER_MS 2000

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

void tpo_http_close(struct tpo_http *x)
{
    if (x->state == CLOSED) return;
    bool tell = x->begun && !x->answered;
    x->state = CLOSED;
    uv_close((uv_handle_t *)&x->tcp, on_handle_closed);
    uv_close((uv_handle_t *)&x->timer, on_handle_closed);
    x->begun = false;
    if (tell && x->route->on_gone != NULL) x->route->on_gone(x);
}

void tpo_http_lose(struct tpo_http *x)
{
    if (x->state == CLOSED || x->lost) return;
    tpo_http_arm(x, 0);
    x->lost = true;
    tpo_http_set_reading(x);
}

/* --- time ------------------------------------------------------------------------------------------------------------------------- */

static void on_time(uv_timer_t *timer)
{
    struct tpo_http *x = timer->data;
    if (x->lost || (x->state == HEADERS && !x->started))
        tpo_http_close(x); /* cut off, idle */
    else if (x->state == HEADERS && !x->answered)
        tpo_http_refuse(x, 408, TPO_DEADLINE_EXCEEDED, "header_timeout", "the headers took too long");
    else if (x->state == BODY && !x->answered && !x->streaming)
        tpo_http_refuse(x, 408, TPO_DEADLINE_EXCEEDED, "body_timeout", "the body stalled");
    else
        tpo_http_close(x);
}

void tpo_http_arm(struct tpo_http *x, int ms)
{
    if (x->state != CLOSED && !x->lost) uv_timer_start(&x->timer, on_time, (uint64_t)ms, 0);
}

void tpo_http_disarm(struct tpo_http *x)
{
    if (x->state != CLOSED && !x->lost) uv_timer_stop(&x->timer);
}

/* --- leaving: what is on its way still goes out ----------------------------------------------------------------------------------- */

size_t tpo_http_unsent(const struct tpo_http *x)
{
    return uv_stream_get_write_queue_size((const uv_stream_t *)&x->tcp);
}

/* One request has been answered, and no other has begun. */
static bool is_between(const struct tpo_http *x)
{
    return x->state == HEADERS ? !x->started : x->state == ANSWER && x->answered;
}

static void on_shutdown(uv_shutdown_t *req, int status)
{
    (void)status;
    free(req);
}

static void linger(struct tpo_http *x)
{
    if (x->state == LINGER) {
        tpo_http_set_reading(x);
        return;
    }
    uv_shutdown_t *req = malloc(sizeof(*req));
    if (req == NULL || uv_shutdown(req, (uv_stream_t *)&x->tcp, on_shutdown) < 0) {
        free(req);
        tpo_http_close(x);
        return;
    }
    x->state = LINGER;
    x->paused = false;
    tpo_http_arm(x, tpo_http_unsent(x) > 0 ? WRITE_MS : LINGER_MS);
    tpo_http_set_reading(x);
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
    if (n == UV_EOF && (x->state == LINGER || is_between(x)) && tpo_http_unsent(x) > 0) {
        x->ended = true; /* it has said all it had to say, and still listens: on_written closes */
        linger(x);
        return;
    }
    if (n < 0) {
        tpo_http_close(x);
        return;
    }
    if (n > 0 && x->state != LINGER) tpo_http_parse(x, buf->base, (size_t)n);
}

void tpo_http_set_reading(struct tpo_http *x)
{
    if (x->state == CLOSED) return;
    bool want = !x->lost && !x->ended && (x->state == LINGER || (!x->paused && x->pending.size - x->taken < PENDING_BYTES));
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
    if (x->state == BODY) tpo_http_disarm(x); /* it isn't the client who is slow */
    tpo_http_set_reading(x);
}

void tpo_http_resume(struct tpo_http *x)
{
    if (!x->paused) return;
    x->paused = false;
    if (x->state == BODY) tpo_http_arm(x, x->door->s.body_timeout_ms);
    tpo_http_set_reading(x);
}

/* --- after an answer -------------------------------------------------------------------------------------------------------------- */

void tpo_http_after_answer(struct tpo_http *x)
{
    x->begun = false;
    x->handler = NULL;
    if (x->state == CLOSED || x->lost) return;
    if (!x->keep_alive || x->door->draining) {
        linger(x);
        return;
    }
    if (x->in_execute) return; /* the loop in tpo_http_parse() goes on */
    x->paused = false;
    tpo_http_go_on(x);
    tpo_http_set_reading(x);
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
    tpo_http_parser_init(x);
    if (uv_accept(server, (uv_stream_t *)&x->tcp) < 0) {
        tpo_http_close(x);
        return;
    }
    uv_tcp_nodelay(&x->tcp, 1);
    if (d->n_connections > d->s.connections_max) {
        struct tpo_error err;
        tpo_fail(&err, TPO_UNAVAILABLE, "connections", "too many connections");
        err.retry_ms = 1000;
        tpo_http_answer_error(x, 503, &err, NULL, NULL);
        return;
    }
    tpo_http_arm(x, d->s.header_timeout_ms);
    tpo_http_set_reading(x);
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
        if (is_between(x) && tpo_http_unsent(x) > 0)
            linger(x);
        else if (x->state == HEADERS)
            tpo_http_close(x);
}

void tpo_http_door_close(struct tpo_http_door *d)
{
    if (d == NULL) return;
    d->closing = true;
    if (!d->draining) uv_close((uv_handle_t *)&d->listener, on_listener_closed);
    d->draining = true;
    for (struct tpo_http *x = d->connections; x != NULL; x = x->next) tpo_http_close(x);
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

void tpo_http_name(struct tpo_http *x, const char *request_id)
{
    snprintf(x->request_id, sizeof(x->request_id), "%s", request_id);
}

const char *tpo_http_request_id(const struct tpo_http *x)
{
    return x->request_id;
}
