/* Proves gateway/door_http: what a client may send, and what it gets for what it may not. */
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

static void hello(struct tpo_http *x)
{
    tpo_http_reply(x, 200, "text/plain", "hello", 5, NULL);
}

struct echo {
    struct tpo_text body;
};

static void echo_begin(struct tpo_http *x, void *owner)
{
    (void)owner;
    tpo_http_set_state(x, calloc(1, sizeof(struct echo)));
}

static void echo_body(struct tpo_http *x, const char *data, size_t size)
{
    tpo_text_add(&((struct echo *)tpo_http_state(x))->body, data, size);
}

static void echo_free(struct echo *e)
{
    tpo_text_free(&e->body);
    free(e);
}

static void echo_end(struct tpo_http *x)
{
    struct echo *e = tpo_http_state(x);
    tpo_http_reply(x, 200, "text/plain", e->body.data, e->body.size, NULL);
    echo_free(e);
}

static void echo_gone(struct tpo_http *x)
{
    echo_free(tpo_http_state(x));
    rig.gone++;
}

struct slow {
    uv_timer_t timer;
    struct tpo_http *x;
};

static void slow_closed(uv_handle_t *h)
{
    free(h->data);
}

static void slow_fire(uv_timer_t *t)
{
    struct slow *s = t->data;
    tpo_http_reply(s->x, 200, "text/plain", "slow", 4, NULL);
    uv_close((uv_handle_t *)t, slow_closed);
}

static void slow_end(struct tpo_http *x)
{
    struct slow *s = calloc(1, sizeof(*s));
    s->x = x;
    s->timer.data = s;
    uv_timer_init(&rig.loop, &s->timer);
    uv_timer_start(&s->timer, slow_fire, rig.slow_ms > 0 ? (uint64_t)rig.slow_ms : 100, 0);
    tpo_http_set_state(x, s);
    rig.slow_started++;
}

static void slow_gone(struct tpo_http *x)
{
    struct slow *s = tpo_http_state(x);
    uv_close((uv_handle_t *)&s->timer, slow_closed);
    rig.gone++;
}

static void stream_end(struct tpo_http *x)
{
    tpo_http_stream_begin(x, "text/event-stream");
    tpo_http_stream_write(x, "one\n", 4);
    tpo_http_stream_write(x, "two\n", 4);
    tpo_http_stream_end(x);
}

static void large(struct tpo_http *x)
{
    static char text[65536];
    memset(text, 'x', sizeof(text));
    tpo_http_reply(x, 200, "text/plain", text, sizeof(text), NULL);
}

/* More than the door keeps for a client that doesn't read. */
static void flood_end(struct tpo_http *x)
{
    enum { PIECE = 1 << 20 };
    char *piece = calloc(1, PIECE);
    rig.in_handler = true;
    tpo_http_stream_begin(x, "text/event-stream");
    for (int i = 0; i < 64; i++) tpo_http_stream_write(x, piece, PIECE);
    rig.in_handler = false;
    free(piece);
}

static void flood_gone(struct tpo_http *x)
{
    (void)x;
    if (rig.in_handler) abort();
    rig.gone++;
}

/* A stream that ends when somebody has told the door to close after the answers under way. */
static void tail_fire(uv_timer_t *t)
{
    struct slow *s = t->data;
    tpo_http_door_drain(rig.door);
    tpo_http_stream_write(s->x, "tail", 4);
    tpo_http_stream_end(s->x);
    uv_close((uv_handle_t *)t, slow_closed);
}

static void tail_end(struct tpo_http *x)
{
    struct slow *s = calloc(1, sizeof(*s));
    s->x = x;
    s->timer.data = s;
    tpo_http_stream_begin(x, "text/plain");
    uv_timer_init(&rig.loop, &s->timer);
    uv_timer_start(&s->timer, tail_fire, 1, 0);
}

static void early_begin(struct tpo_http *x, void *owner)
{
    (void)owner;
    tpo_http_reply(x, 429, "text/plain", "no", 2, NULL);
}

static void never(struct tpo_http *x)
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

static void on_answer(void *owner, const char *path, int status)
{
    (void)owner, (void)path, (void)status;
    rig.answered++;
}

static void on_stop(uv_async_t *a)
{
    uv_close((uv_handle_t *)a, NULL);
    tpo_http_door_close(rig.door);
}

static void *run_loop(void *arg)
{
    uv_run(arg, UV_RUN_DEFAULT);
    return NULL;
}

static void start(int header_ms, int body_ms)
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

static void stop(void)
{
    uv_async_send(&rig.stop);
    pthread_join(rig.thread, NULL);
    assert_int_equal(uv_loop_close(&rig.loop), 0);
}

static int dial(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)rig.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof(to)), 0);
    struct timeval limit = {.tv_sec = 5};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    return fd;
}

static void say(int fd, const void *data, size_t size)
{
    for (size_t at = 0; at < size;) {
        ssize_t n = send(fd, (const char *)data + at, size - at, MSG_NOSIGNAL);
        if (n <= 0) return; /* the other side may have refused already */
        at += (size_t)n;
    }
}

/* Everything until the other side closes. */
static char *hear(int fd)
{
    struct tpo_text t = {0};
    char part[4096];
    for (ssize_t n; (n = recv(fd, part, sizeof(part), 0)) > 0;) tpo_text_add(&t, part, (size_t)n);
    close(fd);
    return tpo_text_take(&t);
}

static void expect(const char *request, size_t size, const char *status, const char *holds)
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

static void the_plain_things_work(void **state)
{
    (void)state;
    start(0, 0);
    expect("GET /hello HTTP/1.1\r\n" CLOSE, 0, "200", "\r\n\r\nhello");
    expect("GET /hello?x=1 HTTP/1.1\r\n" CLOSE, 0, "200", "\r\n\r\nhello");
    expect("GET http://x/hello HTTP/1.1\r\n" CLOSE, 0, "200", "\r\n\r\nhello");
    expect("GET /hello HTTP/1.0\r\n\r\n", 0, "200", "Connection: close");
    expect("HEAD /hello HTTP/1.1\r\n" CLOSE, 0, "200", "Content-Length: 5");
    expect("POST /echo HTTP/1.1\r\nContent-Length: 3\r\n" CLOSE "abc", 0, "200", "\r\n\r\nabc");
    expect("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" CLOSE "3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: x\r\n\r\n", 0,
           "200", "\r\n\r\nabcde");
    expect("GET /stream HTTP/1.1\r\n" CLOSE, 0, "200", "4\r\none\n\r\n4\r\ntwo\n\r\n0\r\n\r\n");
    expect("GET /stream HTTP/1.0\r\n\r\n", 0, "200", "\r\n\r\none\ntwo\n");
    expect("GET /hello HTTP/1.1\r\ntpo-request-id: my.id-1\r\n" CLOSE, 0, "200", "tpo-request-id: my.id-1\r\n");
    expect("GET /hello HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHost: x\r\n\r\n"
           "GET /hello HTTP/1.1\r\n" CLOSE,
           0, "200", "hello");
    expect("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked  \r\n" CLOSE "0\r\n\r\n", 0, "200", "Content-Length: 0");
    expect("GET /hello HTTP/1.1\r\ntpo-request-id:\t my.id-2 \r\n" CLOSE, 0, "200", "tpo-request-id: my.id-2\r\n");
    expect("POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n" CLOSE "abc", 0, "100", "\r\n\r\nabc");
    stop();
}

static void what_is_not_http_is_refused(void **state)
{
    (void)state;
    start(0, 0);
    expect("GET /nope HTTP/1.1\r\n" CLOSE, 0, "404", "HTTP/1.1 404 Not Found\r\n");
    expect("DELETE /hello HTTP/1.1\r\n" CLOSE, 0, "405", "HTTP/1.1 405 Method Not Allowed\r\n");
    expect("GET /hello HTTP/2.0\r\n" CLOSE, 0, "505", "HTTP/1.1 505 HTTP Version Not Supported\r\n");
    expect("GET /hello HTTP/1.1\r\n\r\n", 0, "400", "HTTP/1.1 400 Bad Request\r\n");
    expect("GET /nope HTTP/1.1\r\n" CLOSE, 0, "404", "\"code\":\"NOT_FOUND\",\"reason\":\"path_unknown\"");
    expect("DELETE /hello HTTP/1.1\r\n" CLOSE, 0, "405", "Allow: GET, HEAD\r\n");
    expect("POST /hello HTTP/1.1\r\nContent-Length: 2\r\n" CLOSE "ab", 0, "405", "\"reason\":\"method\"");
    expect("GET /hello HTTP/2.0\r\n" CLOSE, 0, "505", "http_version");
    expect("GET /hello HTTP/0.9\r\n" CLOSE, 0, "505", "http_version");
    expect("GET /hello HTTP/1.2\r\n" CLOSE, 0, "505", "http_version");
    expect("GET /hello HTTP/9.9\r\n" CLOSE, 0, "505", "http_version");
    expect("GET /hello HTTP/1.1\r\n\r\n", 0, "400", "Host");
    expect("GET /hello HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 0, "400", "Host");
    expect("GET /hello HTTP/1.1\r\nHost : a\r\n\r\n", 0, "400", "malformed");
    expect("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0, "400",
           "malformed");
    expect("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 0, "400",
           "malformed");
    expect("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 0, "400", "malformed");
    expect("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 0, "400", "malformed");
    expect("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", 0, "400", "malformed");
    expect("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 0, "501", "transfer_encoding");
    expect("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 0, "400", "malformed");
    expect("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11, "400", "malformed");
    expect("GET /hello HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 40, "400", "malformed");
    expect("CONNECT x:80 HTTP/1.1\r\n" CLOSE, 0, "501", "connect");
    expect("GET /hello RTSP/1.0\r\nHost: x\r\n\r\n", 0, "505", "http_version");
    expect("POST /echo RTSP/1.0\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 0, "505", "http_version");
    expect("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0, "505", "http_version");
    expect("POST /echo HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n" CLOSE "0\r\n\r\n", 0, "501", "transfer_encoding");
    expect("POST /echo HTTP/1.1\r\nTransfer-Encoding:\r\nContent-Length: 3\r\n" CLOSE "abc", 0, "501", "transfer_encoding");
    expect("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n" CLOSE "0\r\n\r\n", 0, "400",
           "malformed");
    expect("POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n0\r\n\r\n", 0, "400",
           "Transfer-Encoding in HTTP 1.0");
    expect("POST /echo HTTP/1.1\r\nExpect: pancakes\r\nContent-Length: 3\r\n" CLOSE "abc", 0, "417", "expect");
    stop();
}

static void what_is_too_large_is_refused(void **state)
{
    (void)state;
    start(0, 0);
    expect("POST /echo HTTP/1.1\r\nContent-Length: 100001\r\n" CLOSE, 0, "413", "body_too_large");
    struct tpo_text t = {0};
    tpo_text_puts(&t, "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" CLOSE);
    char *data = calloc(1, 300000);
    for (int i = 0; i < 4; i++) {
        tpo_text_puts(&t, "9c40\r\n");
        tpo_text_add(&t, data, 40000);
        tpo_text_puts(&t, "\r\n");
    }
    expect(t.data, t.size, "413", "body_too_large");
    tpo_text_reset(&t);
    memset(data, 'a', 300000);
    tpo_text_puts(&t, "GET /");
    tpo_text_add(&t, data, 9000);
    tpo_text_puts(&t, " HTTP/1.1\r\n" CLOSE);
    expect(t.data, t.size, "414", "path_too_long");
    tpo_text_reset(&t);
    tpo_text_puts(&t, "GET /hello HTTP/1.1\r\nX: ");
    tpo_text_add(&t, data, 200000);
    tpo_text_puts(&t, "\r\n" CLOSE);
    expect(t.data, t.size, "431", "headers_too_large");
    tpo_text_reset(&t);
    tpo_text_puts(&t, "GET /hello HTTP/1.1\r\n");
    for (int i = 0; i < 200; i++) tpo_text_printf(&t, "X%d: y\r\n", i);
    tpo_text_puts(&t, CLOSE);
    expect(t.data, t.size, "431", "headers_too_large");
    /* Chunk extensions and trailers count too. */
    tpo_text_reset(&t);
    tpo_text_puts(&t, "POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" CLOSE "1;");
    tpo_text_add(&t, data, 100000);
    tpo_text_puts(&t, "\r\nx\r\n0\r\n\r\n");
    expect(t.data, t.size, "431", "headers_too_large");
    /* An answer before the body has come reaches a client that goes on sending. */
    tpo_text_reset(&t);
    tpo_text_puts(&t, "POST /early HTTP/1.1\r\nContent-Length: 300000\r\n" CLOSE);
    tpo_text_add(&t, data, 300000);
    expect(t.data, t.size, "429", "no");
    tpo_text_free(&t);
    free(data);
    stop();
}

static void pipelined_requests_are_answered_in_order(void **state)
{
    (void)state;
    start(0, 0);
    int fd = dial();
    struct tpo_text t = {0};
    tpo_text_puts(&t, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n");
    for (int i = 0; i < 500; i++) {
        char body[16];
        snprintf(body, sizeof(body), "<%d>", i);
        tpo_text_printf(&t, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
    }
    tpo_text_puts(&t, "GET /hello HTTP/1.1\r\n" CLOSE "GET /hello HTTP/1.1\r\n" CLOSE);
    say(fd, t.data, t.size);
    char *answer = hear(fd), *at = strstr(answer, "slow");
    assert_non_null(at);
    for (int i = 0; i < 500; i++) {
        char body[16];
        snprintf(body, sizeof(body), "<%d>", i);
        at = strstr(at, body);
        assert_non_null(at);
    }
    at = strstr(at, "hello");
    assert_non_null(at);
    assert_null(strstr(at + 5, "hello")); /* after Connection: close nothing more is answered */
    free(answer);
    tpo_text_free(&t);
    stop();
}

static void who_takes_no_answers_gets_no_further_one(void **state)
{
    (void)state;
    enum { N = 300 }; /* answers of 64 KiB: more than twice what sockets and the door may hold */
    start(0, 0);
    int fd = dial();
    static const char more[] = "GET /large HTTP/1.1\r\nHost: x\r\n\r\n", last[] = "GET /large HTTP/1.1\r\n" CLOSE;
    for (int i = 0; i < N - 1; i++) say(fd, more, sizeof(more) - 1);
    say(fd, last, sizeof(last) - 1);
    usleep(200000); /* time for a door that answers on and on to run into its limit */
    assert_true(rig.answered < N);
    char *answer = hear(fd);
    int n = 0;
    for (const char *at = answer; (at = strstr(at, "HTTP/1.1 200 ")) != NULL; at++) n++;
    assert_int_equal(n, N);
    free(answer);
    stop();
}

/* Answers that are given before the request was wholly read wait like others. */
static void refused_ones_behind_unread_answers_go_on(void **state)
{
    (void)state;
    enum { LARGE = 100, REFUSED = 400 };
    static const char more[] = "GET /large HTTP/1.1\r\nHost: x\r\n\r\n", nope[] = "GET /nope HTTP/1.1\r\nHost: x\r\n\r\n",
                      last[] = "GET /hello HTTP/1.1\r\n" CLOSE;
    start(0, 0);
    int fd = dial(), n = 0;
    for (int i = 0; i < LARGE; i++) {
        say(fd, more, sizeof(more) - 1);
        for (int k = 0; k < REFUSED / LARGE; k++) say(fd, nope, sizeof(nope) - 1);
    }
    say(fd, last, sizeof(last) - 1);
    usleep(200000);
    char *answer = hear(fd);
    for (const char *at = answer; (at = strstr(at, "HTTP/1.1 404 ")) != NULL; at++) n++;
    assert_int_equal(n, REFUSED);
    assert_non_null(strstr(answer, "\r\n\r\nhello"));
    free(answer);
    stop();
}

static void on_drain(uv_async_t *a)
{
    uv_close((uv_handle_t *)a, NULL);
    tpo_http_door_drain(rig.door);
}

/* Whoever has said all, or is told that the door closes, still gets what was answered. */
static void what_was_answered_arrives_though_one_side_closes(void **state)
{
    (void)state;
    enum { N = 40 };
    for (int door_closes = 0; door_closes < 2; door_closes++) {
        uv_async_t drain;
        rig.answered = 0;
        start(0, 0);
        uv_async_init(&rig.loop, &drain, on_drain);
        int fd = dial();
        size_t size = 0;
        /* As much as sockets and door hold, and a little less. */
        for (int i = 0; i < N; i++) say(fd, "GET /large HTTP/1.1\r\nHost: x\r\n\r\n", 32);
        usleep(100000);
        const int answered = rig.answered;
        if (door_closes)
            uv_async_send(&drain);
        else
            shutdown(fd, SHUT_WR);
        usleep(50000);
        static char part[65536];
        for (ssize_t n; (n = recv(fd, part, sizeof(part), 0)) > 0;) size += (size_t)n;
        close(fd);
        assert_true(size >= (size_t)answered * 65536);
        if (!door_closes) uv_async_send(&drain);
        stop();
    }
}

static void a_slow_client_gets_408_and_holds_up_nobody(void **state)
{
    (void)state;
    start(200, 200);
    int headers = dial(), body = dial(), idle = dial(), method = dial(), trickle = dial();
    say(method, "POS", 3);
    say(trickle, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", 54);
    say(headers, "GET /hello HTTP/1.1\r\nHos", 24);
    say(body, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc", 55);
    expect("GET /hello HTTP/1.1\r\n" CLOSE, 0, "200", "hello");
    char *answer = hear(headers);
    assert_non_null(strstr(answer, "HTTP/1.1 408 "));
    assert_non_null(strstr(answer, "header_timeout"));
    free(answer);
    answer = hear(body);
    assert_non_null(strstr(answer, "HTTP/1.1 408 "));
    assert_non_null(strstr(answer, "body_timeout"));
    free(answer);
    answer = hear(idle);
    assert_string_equal(answer, "");
    free(answer);
    answer = hear(method);
    assert_non_null(strstr(answer, "header_timeout"));
    free(answer);
    for (int i = 0; i < 900 && rig.gone < 2; i++) { /* a byte now and then buys no time */
        say(trickle, "x", 1);
        usleep(10000);
    }
    answer = hear(trickle);
    assert_non_null(strstr(answer, "body_timeout"));
    free(answer);
    assert_int_equal(rig.gone, 2);
    stop();
}

static void a_client_that_leaves_is_noticed(void **state)
{
    (void)state;
    rig.slow_ms = 3600000; /* the answer never wins, however late this thread runs */
    start(0, 0);
    int fd = dial();
    say(fd, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n", 31);
    while (rig.slow_started == 0) usleep(1000);
    close(fd);
    while (rig.gone == 0) usleep(1000);
    /* Closing the door tells those under way. */
    fd = dial();
    say(fd, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n", 31);
    while (rig.slow_started < 2) usleep(1000);
    stop();
    assert_int_equal(rig.gone, 2);
    close(fd);
}

static void a_reader_too_far_behind_is_gone_once_the_handler_is_done(void **state)
{
    (void)state;
    start(0, 0);
    int fd = dial();
    say(fd, "GET /flood HTTP/1.1\r\nHost: x\r\n\r\nGET /hello HTTP/1.1\r\nHost: x\r\n\r\n", 64);
    while (rig.gone == 0) usleep(1000);
    char *answer = hear(fd);
    assert_null(strstr(answer, "hello"));
    free(answer);
    stop();
    assert_int_equal(rig.gone, 1);
}

static void bytes_may_come_one_at_a_time(void **state)
{
    (void)state;
    start(0, 0);
    int fd = dial();
    const char *text =
        "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    for (const char *c = text; *c != '\0'; c++) {
        say(fd, c, 1);
        if (c - text < 60) usleep(200);
    }
    char *answer = hear(fd);
    assert_non_null(strstr(answer, "\r\n\r\nabc"));
    free(answer);
    stop();
}

static void a_stream_that_ends_while_the_door_drains_closes_its_connection(void **state)
{
    (void)state;
    start(0, 0);
    int fd = dial();
    say(fd, "GET /tail HTTP/1.1\r\nHost: x\r\n\r\n", 31);
    char answer[1024];
    ssize_t n, size = 0;
    while ((n = recv(fd, answer + size, sizeof(answer) - 1 - (size_t)size, 0)) > 0) size += n;
    answer[size] = '\0';
    assert_int_equal(n, 0); /* closed, not waited for */
    assert_non_null(strstr(answer, "tail\r\n0\r\n"));
    close(fd);
    stop();
}

static void another_protocol_is_told_however_it_comes(void **state)
{
    (void)state;
    start(0, 0);
    int fd = dial();
    for (const char *c = "\r\nGET /hello RTSP/1.0\r\n"; *c != '\0'; c++) {
        say(fd, c, 1);
        usleep(200);
    }
    char *answer = hear(fd);
    assert_non_null(strstr(answer, "HTTP/1.1 505 "));
    free(answer);
    stop();
}

static void too_many_connections_get_503(void **state)
{
    (void)state;
    start(0, 0);
    int fds[20];
    for (int i = 0; i < 20; i++) {
        fds[i] = dial();
        say(fds[i], "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n", 32);
        char part[512];
        assert_true(recv(fds[i], part, sizeof(part), 0) > 0);
    }
    expect("GET /hello HTTP/1.1\r\n" CLOSE, 0, "503", "Retry-After: 1\r\n");
    for (int i = 0; i < 20; i++) close(fds[i]);
    stop();
}

TPO_TESTS(cmocka_unit_test(the_plain_things_work), cmocka_unit_test(what_is_not_http_is_refused),
          cmocka_unit_test(what_is_too_large_is_refused), cmocka_unit_test(pipelined_requests_are_answered_in_order),
          cmocka_unit_test(who_takes_no_answers_gets_no_further_one), cmocka_unit_test(refused_ones_behind_unread_answers_go_on),
          cmocka_unit_test(what_was_answered_arrives_though_one_side_closes),
          cmocka_unit_test(a_slow_client_gets_408_and_holds_up_nobody), cmocka_unit_test(a_client_that_leaves_is_noticed),
          cmocka_unit_test(a_reader_too_far_behind_is_gone_once_the_handler_is_done),
          cmocka_unit_test(bytes_may_come_one_at_a_time),
          cmocka_unit_test(a_stream_that_ends_while_the_door_drains_closes_its_connection),
          cmocka_unit_test(another_protocol_is_told_however_it_comes), cmocka_unit_test(too_many_connections_get_503))
