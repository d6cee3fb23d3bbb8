/* door_rig.h -- an HTTP door with routes of its own on a thread, and a client of raw bytes, for the tests of gateway/door_http. */
#ifndef TPO_TESTS_GATEWAY_DOOR_RIG_H
#define TPO_TESTS_GATEWAY_DOOR_RIG_H

#include "tests/support/test.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "gateway/door_http.h"

struct rig {
    uv_loop_t loop;
    struct tpo_http_door *door;
    uv_async_t stop;
    pthread_t thread;
    int port;
    int slow_ms; /* how long /slow takes, 0: 100 */
    bool in_handler;
    atomic_int gone, slow_started, answered;
};

static struct rig rig;

static inline void hello(struct tpo_http *x)
{
    tpo_http_reply(x, 200, "text/plain", "hello", 5, NULL);
}

struct echo {
    struct tpo_text body;
};

static inline void echo_begin(struct tpo_http *x, void *owner)
{
    (void)owner;
    tpo_http_set_state(x, calloc(1, sizeof(struct echo)));
}

static inline void echo_body(struct tpo_http *x, const char *data, size_t size)
{
    tpo_text_add(&((struct echo *)tpo_http_state(x))->body, data, size);
}

static inline void echo_free(struct echo *e)
{
    tpo_text_free(&e->body);
    free(e);
}

static inline void echo_end(struct tpo_http *x)
{
    struct echo *e = tpo_http_state(x);
    tpo_http_reply(x, 200, "text/plain", e->body.data, e->body.size, NULL);
    echo_free(e);
}

static inline void echo_gone(struct tpo_http *x)
{
    echo_free(tpo_http_state(x));
    rig.gone++;
}

struct slow {
    uv_timer_t timer;
    struct tpo_http *x;
};

static inline void slow_closed(uv_handle_t *h)
{
    free(h->data);
}

static inline void slow_fire(uv_timer_t *t)
{
    struct slow *s = t->data;
    tpo_http_reply(s->x, 200, "text/plain", "slow", 4, NULL);
    uv_close((uv_handle_t *)t, slow_closed);
}

static inline void slow_end(struct tpo_http *x)
{
    struct slow *s = calloc(1, sizeof(*s));
    s->x = x;
    s->timer.data = s;
    uv_timer_init(&rig.loop, &s->timer);
    uv_timer_start(&s->timer, slow_fire, rig.slow_ms > 0 ? (uint64_t)rig.slow_ms : 100, 0);
    tpo_http_set_state(x, s);
    rig.slow_started++;
}

static inline void slow_gone(struct tpo_http *x)
{
    struct slow *s = tpo_http_state(x);
    uv_close((uv_handle_t *)&s->timer, slow_closed);
    rig.gone++;
}

static inline void stream_end(struct tpo_http *x)
{
    tpo_http_stream_begin(x, "text/event-stream");
    tpo_http_stream_write(x, "one\n", 4);
    tpo_http_stream_write(x, "two\n", 4);
    tpo_http_stream_end(x);
}

static inline void large(struct tpo_http *x)
{
    static char text[65536];
    memset(text, 'x', sizeof(text));
    tpo_http_reply(x, 200, "text/plain", text, sizeof(text), NULL);
}

/* More than the door keeps for a client that doesn't read. */
static inline void flood_end(struct tpo_http *x)
{
    enum { PIECE = 1 << 20 };
    char *piece = calloc(1, PIECE);
    rig.in_handler = true;
    tpo_http_stream_begin(x, "text/event-stream");
    for (int i = 0; i < 64; i++) tpo_http_stream_write(x, piece, PIECE);
    rig.in_handler = false;
    free(piece);
}

static inline void flood_gone(struct tpo_http *x)
{
    (void)x;
    if (rig.in_handler) abort();
    rig.gone++;
}

/* A stream that ends when somebody has told the door to close after the answers under way. */
static inline void tail_fire(uv_timer_t *t)
{
    struct slow *s = t->data;
    tpo_http_door_drain(rig.door);
    tpo_http_stream_write(s->x, "tail", 4);
    tpo_http_stream_end(s->x);
    uv_close((uv_handle_t *)t, slow_closed);
}

static inline void tail_end(struct tpo_http *x)
{
    struct slow *s = calloc(1, sizeof(*s));
    s->x = x;
    s->timer.data = s;
    tpo_http_stream_begin(x, "text/plain");
    uv_timer_init(&rig.loop, &s->timer);
    uv_timer_start(&s->timer, tail_fire, 1, 0);
}

static inline void early_begin(struct tpo_http *x, void *owner)
{
    (void)owner;
    tpo_http_reply(x, 429, "text/plain", "no", 2, NULL);
}

static inline void never(struct tpo_http *x)
{
    (void)x;
    abort();
}

static const struct tpo_http_route routes[] = {
    {.method = "GET", .path = "/hello", .body_max = 0, .on_end = hello},
    {.method = "POST",
     .path = "/echo",
     .body_max = 100000,
     .on_begin = echo_begin,
     .on_body = echo_body,
     .on_end = echo_end,
     .on_gone = echo_gone},
    {.method = "GET", .path = "/slow", .on_end = slow_end, .on_gone = slow_gone},
    {.method = "GET", .path = "/stream", .on_end = stream_end},
    {.method = "GET", .path = "/large", .on_end = large},
    {.method = "GET", .path = "/flood", .on_end = flood_end, .on_gone = flood_gone},
    {.method = "GET", .path = "/tail", .on_end = tail_end},
    {.method = "POST", .path = "/early", .body_max = 1 << 30, .on_begin = early_begin, .on_end = never},
    {0},
};

static inline void on_answer(void *owner, const char *path, int status)
{
    (void)owner, (void)path, (void)status;
    rig.answered++;
}

static inline void on_stop(uv_async_t *a)
{
    uv_close((uv_handle_t *)a, NULL);
    tpo_http_door_close(rig.door);
}

static inline void *run_loop(void *arg)
{
    uv_run(arg, UV_RUN_DEFAULT);
    return NULL;
}

static inline void start(int header_ms, int body_ms)
{
    struct tpo_http_settings s = {.host = "127.0.0.1",
                                  .routes = routes,
                                  .header_timeout_ms = header_ms,
                                  .body_timeout_ms = body_ms,
                                  .connections_max = 20,
                                  .on_answer = on_answer};
    uv_loop_init(&rig.loop);
    uv_async_init(&rig.loop, &rig.stop, on_stop);
    assert_int_equal(tpo_http_door_open(&rig.door, &rig.loop, &s, NULL), TPO_OK);
    rig.port = tpo_http_door_port(rig.door);
    pthread_create(&rig.thread, NULL, run_loop, &rig.loop);
}

static inline void stop(void)
{
    uv_async_send(&rig.stop);
    pthread_join(rig.thread, NULL);
    assert_int_equal(uv_loop_close(&rig.loop), 0);
}

static inline int dial(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)rig.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof(to)), 0);
    struct timeval limit = {.tv_sec = 5};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    return fd;
}

static inline void say(int fd, const void *data, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t n = send(fd, (const char *)data + at, size - at, MSG_NOSIGNAL);
        if (n <= 0) return; /* the other side may have refused already */
        at += (size_t)n;
    }
}

/* Everything until the other side closes; the caller's to free. */
static inline char *hear(int fd)
{
    struct tpo_text t = {0};
    char part[4096];
    tpo_text_puts(&t, "");
    for (ssize_t n; (n = recv(fd, part, sizeof(part), 0)) > 0;) tpo_text_add(&t, part, (size_t)n);
    close(fd);
    assert_false(t.failed);
    return t.data;
}

static inline void expect(const char *request, size_t size, const char *status, const char *holds)
{
    int fd = dial();
    say(fd, request, size != 0 ? size : strlen(request));
    char *answer = hear(fd);
    char line[32];
    snprintf(line, sizeof(line), "HTTP/1.1 %s ", status);
    if (strncmp(answer, line, strlen(line)) != 0 || strstr(answer, holds) == NULL)
        fail_msg("%.80s\n-> %s (wanted %s, %s)", request, answer, status, holds);
    free(answer);
}

#define CLOSE "Host: x\r\nConnection: close\r\n\r\n"

#endif
