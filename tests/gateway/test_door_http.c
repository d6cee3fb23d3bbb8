/* Proves gateway/door_http: what a client may send, and what it gets for what it may not. */
#include "tests/gateway/door_rig.h"

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

TPO_TESTS(cmocka_unit_test(the_plain_things_work), cmocka_unit_test(what_is_not_http_is_refused),
          cmocka_unit_test(what_is_too_large_is_refused), cmocka_unit_test(pipelined_requests_are_answered_in_order),
          cmocka_unit_test(bytes_may_come_one_at_a_time), cmocka_unit_test(another_protocol_is_told_however_it_comes))
