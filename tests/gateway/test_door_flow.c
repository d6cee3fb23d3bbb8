/* Proves gateway/door_http: who is slow, reads nothing, leaves or comes when the door closes costs nobody else anything, and nothing is cut off. */
#include "tests/gateway/door_rig.h"

/* How many were answered when the door went no further, since nobody reads. */
static int stalled(void)
{
    int seen;
    do {
        seen = rig.answered;
        usleep(100000);
    } while (seen == 0 || seen != rig.answered);
    return seen;
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
    assert_true(stalled() < N);
    char *answer = hear(fd);
    int n = 0;
    for (const char *at = answer; (at = strstr(at, "HTTP/1.1 200 ")) != NULL; at++) n++;
    assert_int_equal(n, N);
    free(answer);
    stop();
}

/* Answers that are given before the request was wholly read wait like others: small ones, so that the door stops just behind one of them. */
static void refused_ones_behind_unread_answers_go_on(void **state)
{
    (void)state;
    enum { N = 30000 };
    static const char nope[] = "GET /nope HTTP/1.1\r\nHost: x\r\n\r\n", last[] = "GET /hello HTTP/1.1\r\n" CLOSE;
    start(0, 0);
    int fd = dial(), n = 0;
    struct tpo_text t = {0};
    for (int i = 0; i < N; i++) tpo_text_add(&t, nope, sizeof(nope) - 1);
    tpo_text_add(&t, last, sizeof(last) - 1);
    say(fd, t.data, t.size);
    assert_true(stalled() < N);
    char *answer = hear(fd);
    for (const char *at = answer; (at = strstr(at, "HTTP/1.1 404 ")) != NULL; at++) n++;
    assert_int_equal(n, N);
    assert_non_null(strstr(answer, "\r\n\r\nhello"));
    free(answer);
    tpo_text_free(&t);
    stop();
}

static void on_drain(uv_async_t *a)
{
    uv_close((uv_handle_t *)a, NULL);
    tpo_http_door_drain(rig.door);
}

/* n answers of 64 KiB to somebody who does not read yet; then one side closes. Whether all that were given arrived. */
static void close_behind(int n, bool door_closes)
{
    uv_async_t drain;
    rig.answered = 0;
    start(0, 0);
    uv_async_init(&rig.loop, &drain, on_drain);
    int fd = dial();
    size_t size = 0;
    for (int i = 0; i < n; i++) say(fd, "GET /large HTTP/1.1\r\nHost: x\r\n\r\n", 32);
    const int answered = stalled();
    if (door_closes)
        uv_async_send(&drain);
    else
        shutdown(fd, SHUT_WR);
    usleep(50000);
    static char part[65536];
    for (ssize_t got; (got = recv(fd, part, sizeof(part), 0)) > 0;) size += (size_t)got;
    close(fd);
    if (size < (size_t)answered * 65536) fail_msg("%zu bytes of %d answers", size, answered);
    if (!door_closes) uv_async_send(&drain);
    stop();
}

/* Whoever has said all, or is told that the door closes, still gets what was answered: also where the door is between two requests, with less than it
 * would wait for still in its hands. That is so for one of the numbers just below what sockets and door hold. */
static void what_was_answered_arrives_though_one_side_closes(void **state)
{
    (void)state;
    start(0, 0);
    int fd = dial();
    for (int i = 0; i < 300; i++) say(fd, "GET /large HTTP/1.1\r\nHost: x\r\n\r\n", 32);
    const int most = stalled();
    close(fd);
    stop();
    assert_true(most > 4 && most < 300);
    for (int n = most - 3; n <= most; n++) {
        close_behind(n, false);
        close_behind(n, true);
    }
}

static void a_slow_client_gets_408_and_holds_up_nobody(void **state)
{
    (void)state;
    start(200, 200);
    int headers = dial(), body = dial(), idle = dial(), method = dial();
    say(method, "POS", 3);
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
    assert_int_equal(rig.gone, 1);
    stop();
}

/* A byte now and then is no reason for more time. */
static void a_body_that_trickles_is_408(void **state)
{
    (void)state;
    start(200, 200);
    int fd = dial(), sent = 0;
    say(fd, "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", 54);
    for (; sent < 900 && rig.gone == 0; sent++) {
        say(fd, "x", 1);
        usleep(10000);
    }
    assert_true(sent < 900);
    char *answer = hear(fd);
    assert_non_null(strstr(answer, "body_timeout"));
    free(answer);
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

TPO_TESTS(cmocka_unit_test(who_takes_no_answers_gets_no_further_one), cmocka_unit_test(refused_ones_behind_unread_answers_go_on),
          cmocka_unit_test(what_was_answered_arrives_though_one_side_closes),
          cmocka_unit_test(a_slow_client_gets_408_and_holds_up_nobody), cmocka_unit_test(a_body_that_trickles_is_408),
          cmocka_unit_test(a_client_that_leaves_is_noticed),
          cmocka_unit_test(a_reader_too_far_behind_is_gone_once_the_handler_is_done),
          cmocka_unit_test(a_stream_that_ends_while_the_door_drains_closes_its_connection),
          cmocka_unit_test(too_many_connections_get_503))
