/* Health's watches: told of changes alone, however slow the reader, and not more of them than a server can bear. */
#include <arpa/inet.h>
#include <poll.h>
#include <sys/socket.h>

#include "grpc/health/v1/health.pb-c.h"
#include "tests/common/rpc/echo.h"

#define SERVING     GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
#define NOT_SERVING GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING

struct watcher {
    int n, done, last;
    struct tpo_error err;
};

static void on_message(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    struct watcher *w = owner;
    (void)r, (void)payload;
    w->n++;
    w->last = (int)((Grpc__Health__V1__HealthCheckResponse *)message)->status;
    protobuf_c_message_free_unpacked(message, NULL);
}

static void on_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    struct watcher *w = owner;
    (void)r, (void)status;
    w->done++;
    w->err = *err;
}

static struct tpo_rpc *watch(struct echo *e, struct watcher *w)
{
    Grpc__Health__V1__HealthCheckRequest q = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    struct tpo_rpc_start start = {
        .path = "/grpc.health.v1.Health/Watch", .reply = &grpc__health__v1__health_check_response__descriptor, .timeout_ms = 60000};
    struct tpo_rpc_events on = {.owner = w, .on_message = on_message, .on_done = on_done};
    struct tpo_rpc *r = tpo_rpc_open(e->peers, &start, &q.base, NULL, &on, NULL);
    assert_non_null(r);
    return r;
}

static void wait_for(struct echo *e, const int *n, int wanted)
{
    for (int i = 0; i < 1500 && *n < wanted; i++) tpo_loop_wait(e->loop, 20);
    assert_int_equal(*n, wanted);
}

static void what_did_not_change_is_not_told(void **state)
{
    (void)state;
    struct echo e;
    struct watcher w = {0};
    echo_start(&e, (struct tpo_server_options){0});
    struct tpo_rpc *r = watch(&e, &w);
    wait_for(&e, &w.n, 1);
    assert_int_equal(w.last, SERVING);
    for (int i = 0; i < 50; i++) {
        tpo_server_serving(e.server, true);
        tpo_loop_wait(e.loop, 5);
    }
    tpo_server_serving(e.server, false);
    wait_for(&e, &w.n, 2);
    assert_int_equal(w.last, NOT_SERVING);
    tpo_rpc_cancel(r);
    wait_for(&e, &w.done, 1);
    echo_stop(&e);
}

static void watches_are_bounded(void **state)
{
    (void)state;
    struct echo e;
    static struct watcher w[256], more;
    static struct tpo_rpc *r[256];
    echo_start(&e, (struct tpo_server_options){0});
    /* The set of peers watches as well: that is one of them. */
    for (int i = 0; i < 500 && tpo_peers_ready(e.peers) == 0; i++) tpo_loop_wait(e.loop, 20);
    for (int i = 0; i < 255; i++) r[i] = watch(&e, &w[i]);
    for (int i = 0; i < 255; i++) wait_for(&e, &w[i].n, 1);
    watch(&e, &more);
    wait_for(&e, &more.done, 1);
    assert_int_equal(more.err.code, TPO_RESOURCE_EXHAUSTED);
    assert_string_equal(more.err.reason, "too_many_watches");
    /* Who comes now hears nothing of its health, and takes it for well: it answers. */
    struct tpo_peers *late;
    char address[32];
    snprintf(address, sizeof(address), "127.0.0.1:%d", tpo_server_port(e.server));
    assert_int_equal(tpo_peers_open(&late, e.loop, "encoder", address, TPO_PICK_LEAST, NULL), TPO_OK);
    for (int i = 0; i < 1500 && tpo_peers_ready(late) == 0; i++) tpo_loop_wait(e.loop, 20);
    assert_int_equal(tpo_peers_ready(late), 1);
    tpo_peers_close(late);
    for (int i = 0; i < 255; i++) tpo_rpc_cancel(r[i]);
    for (int i = 0; i < 255; i++) wait_for(&e, &w[i].done, 1);
    /* The server sees a cancel later than its caller. */
    for (int i = 0; i < 1500 && more.n == 0; i++) {
        more = (struct watcher){0};
        struct tpo_rpc *again = watch(&e, &more);
        while (more.n == 0 && more.done == 0) tpo_loop_wait(e.loop, 20);
        if (more.done == 0) tpo_rpc_cancel(again);
        wait_for(&e, &more.done, 1);
    }
    assert_int_equal(more.n, 1);
    echo_stop(&e);
}

/* --- a watcher that grants no window ------------------------------------------------------------------------------------------------- */

/* HTTP/2 by hand: the preface, settings with an initial window of 0 and their acknowledgement, a call of Watch, its empty message. */
static int watch_without_window(int port)
{
    static const char call[] =
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        "\0\0\6\4\0\0\0\0\0\0\4\0\0\0\0"
        "\0\0\0\4\1\0\0\0\0"
        "\0\0\103\1\4\0\0\0\1\203\206\4\34/grpc.health.v1.Health/Watch\1\1x\17\20\20application/grpc\0\2te\10trailers"
        "\0\0\5\0\1\0\0\0\1\0\0\0\0\0";
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof(to)), 0);
    assert_int_equal(send(fd, call, sizeof(call) - 1, MSG_NOSIGNAL), sizeof(call) - 1);
    return fd;
}

/* The messages that come until none comes for half a second; the state in the last. A message of Health has 7 bytes. */
static int count_messages(int fd, int *last)
{
    static uint8_t got[1 << 20];
    size_t n = 0, at = 0;
    int messages = 0;
    struct pollfd p = {.fd = fd, .events = POLLIN};
    while (poll(&p, 1, 500) > 0) {
        ssize_t more = recv(fd, got + n, sizeof(got) - n, 0);
        assert_true(more > 0);
        n += (size_t)more;
        for (size_t size; at + 9 <= n && at + 9 + (size = (size_t)(got[at] << 16 | got[at + 1] << 8 | got[at + 2])) <= n;
             at += 9 + size) {
            if (got[at + 3] != 0) continue;
            assert_int_equal(size % 7, 0);
            messages += (int)(size / 7);
            *last = got[at + 9 + size - 1];
        }
    }
    return messages;
}

static void only_the_newest_waits_for_a_slow_reader(void **state)
{
    (void)state;
    static const char window[] = "\0\0\4\10\0\0\0\0\1\0\0\377\377";
    struct echo e;
    struct watcher w = {0};
    int last = 0;
    echo_start(&e, (struct tpo_server_options){0});
    int fd = watch_without_window(tpo_server_port(e.server));
    assert_int_equal(count_messages(fd, &last), 0);
    /* Another watcher that reads tells when a change has gone round. */
    watch(&e, &w);
    wait_for(&e, &w.n, 1);
    for (int i = 1; i <= 101; i++) {
        tpo_server_serving(e.server, i % 2 == 0);
        wait_for(&e, &w.n, 1 + i);
    }
    assert_int_equal(send(fd, window, sizeof(window) - 1, MSG_NOSIGNAL), sizeof(window) - 1);
    assert_int_equal(count_messages(fd, &last), 2); /* the one under way, and the newest */
    assert_int_equal(last, NOT_SERVING);
    close(fd);
    echo_stop(&e);
}

TPO_TESTS(cmocka_unit_test(what_did_not_change_is_not_told), cmocka_unit_test(watches_are_bounded),
          cmocka_unit_test(only_the_newest_waits_for_a_slow_reader))
