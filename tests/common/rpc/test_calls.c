/* Calls of all four kinds between our server and our client, and the ways they end. */
#include "common/clock.h"
#include "tests/common/rpc/heard.h"

static uint8_t chunk_bytes[1 << 20];

static void on_writable(void *owner, struct tpo_rpc *r)
{
    struct heard *h = owner;
    Tpo__V1__MediaChunk chunk = TPO__V1__MEDIA_CHUNK__INIT;
    chunk.data = (ProtobufCBinaryData){sizeof(chunk_bytes), chunk_bytes};
    if (h->to_send-- > 0)
        tpo_rpc_send(r, &chunk.base);
    else
        tpo_rpc_send_end(r);
}

static struct tpo_rpc *generate(struct echo *e, struct heard *h, const char *task, uint32_t n, int timeout_ms)
{
    Tpo__V1__GenerateRequest q = TPO__V1__GENERATE_REQUEST__INIT;
    struct tpo_rpc_start start = {
        .path = "/tpo.v1.Router/Generate", .reply = &tpo__v1__generate_event__descriptor, .timeout_ms = timeout_ms};
    struct tpo_rpc_events on = {.owner = h, .on_message = on_message, .on_done = on_done};
    struct tpo_payload p;
    int64_t shape[] = {96, 768};
    assert_int_equal(tpo_payload_alloc(&p, TPO_F32, 2, shape), TPO_OK);
    memset(p.data, 0, p.size_bytes);
    q.task = (char *)task;
    q.max_new_tokens = n;
    struct tpo_rpc *r = tpo_rpc_open(e->peers, &start, &q.base, &p, &on, NULL);
    assert_non_null(r);
    assert_null(p.data);
    assert_int_equal(h->n, 0);
    return r;
}

static struct tpo_rpc *put(struct echo *e, struct heard *h, const char *path, const ProtobufCMessageDescriptor *reply,
                           int timeout_ms)
{
    Tpo__V1__MediaChunk chunk = TPO__V1__MEDIA_CHUNK__INIT;
    struct tpo_rpc_start start = {.path = path, .reply = reply, .stream_in = true, .timeout_ms = timeout_ms};
    struct tpo_rpc_events on = {.owner = h, .on_message = on_message, .on_done = on_done, .on_writable = on_writable};
    chunk.data = (ProtobufCBinaryData){1000, chunk_bytes};
    return tpo_rpc_open(e->peers, &start, &chunk.base, NULL, &on, NULL);
}

static void unary_answers_and_fails_as_told(void **state)
{
    (void)state;
    struct echo e;
    struct tpo_error err = {0};
    char digest[96];
    echo_start(&e, (struct tpo_server_options){0});
    assert_int_equal(echo_ask(e.peers, "hello", 5000, digest, &err), TPO_OK);
    assert_string_equal(digest, "hello");
    assert_int_equal(echo_ask(e.peers, "late", 5000, digest, &err), TPO_OK);
    assert_string_equal(digest, "late");
    assert_int_equal(echo_ask(e.peers, "request-id", 5000, digest, &err), TPO_OK);
    assert_string_equal(digest, "req-1");
    assert_int_equal(echo_ask(e.peers, "fail", 5000, digest, &err), TPO_FAILED_PRECONDITION);
    assert_string_equal(err.reason, "media_missing");
    assert_string_equal(err.stage, "decoder");
    assert_string_equal(err.message, "I have no such bytes");
    assert_int_equal(err.retry_ms, 1250);
    echo_stop(&e);
}

static void a_deadline_ends_both_sides(void **state)
{
    (void)state;
    struct echo e;
    struct tpo_error err = {0};
    char digest[96];
    echo_start(&e, (struct tpo_server_options){0});
    wait_ready(&e, 1); /* the deadline is the answer's, not the connection's */
    assert_int_equal(echo_ask(e.peers, "hang", 500, digest, &err), TPO_DEADLINE_EXCEEDED);
    assert_string_equal(err.reason, "deadline");
    for (int i = 0; i < 500 && echo_cancels == 0; i++) usleep(10000);
    assert_int_equal(echo_cancels, 1);
    echo_stop(&e);
}

static void server_streams_in_order(void **state)
{
    (void)state;
    struct echo e;
    struct heard h = {0};
    echo_start(&e, (struct tpo_server_options){0});
    generate(&e, &h, "", 500, 10000);
    wait_done(&e, &h);
    assert_int_equal(h.status, TPO_OK);
    assert_int_equal(h.n, 500);
    echo_stop(&e);
}

static void a_cancel_reaches_the_method(void **state)
{
    (void)state;
    struct echo e;
    struct heard h = {0};
    echo_start(&e, (struct tpo_server_options){0});
    struct tpo_rpc *r = generate(&e, &h, "hang", 3, 10000);
    for (int i = 0; i < 500 && h.n < 3; i++) tpo_loop_wait(e.loop, 20);
    assert_int_equal(h.n, 3);
    tpo_rpc_cancel(r);
    wait_done(&e, &h);
    assert_int_equal(h.status, TPO_CANCELLED);
    assert_string_equal(h.err.reason, "cancelled");
    for (int i = 0; i < 500 && echo_cancels == 0; i++) usleep(10000);
    assert_int_equal(echo_cancels, 1);
    for (int i = 0; i < 500 && tpo_server_calls(e.server) > 0; i++) usleep(10000);
    assert_int_equal(tpo_server_calls(e.server), 0);
    echo_stop(&e);
}

static void a_client_streams_megabytes(void **state)
{
    (void)state;
    struct echo e;
    struct heard h = {.to_send = 20};
    echo_start(&e, (struct tpo_server_options){0});
    put(&e, &h, "/tpo.v1.Media/Put", &tpo__v1__media_put_reply__descriptor, 20000);
    wait_done(&e, &h);
    assert_int_equal(h.status, TPO_OK);
    assert_int_equal(h.n, 1);
    assert_int_equal(h.bytes, 1000 + 20 * (1 << 20));
    echo_stop(&e);
}

static void both_sides_stream(void **state)
{
    (void)state;
    struct echo e;
    struct heard h = {.to_send = 5};
    echo_start(&e, (struct tpo_server_options){0});
    put(&e, &h, "/tpo.v1.Test/Mirror", &tpo__v1__media_chunk__descriptor, 20000);
    wait_done(&e, &h);
    assert_int_equal(h.status, TPO_OK);
    assert_int_equal(h.n, 6);
    assert_int_equal(h.bytes, 1000 + 5 * (1 << 20));
    echo_stop(&e);
}

static void an_abandoned_stream_is_cleaned_up(void **state)
{
    (void)state;
    struct echo e;
    struct heard h = {.to_send = 1000000};
    echo_start(&e, (struct tpo_server_options){0});
    struct tpo_rpc *r = put(&e, &h, "/tpo.v1.Media/Put", &tpo__v1__media_put_reply__descriptor, 20000);
    for (int i = 0; i < 10; i++) tpo_loop_wait(e.loop, 20);
    tpo_rpc_cancel(r);
    wait_done(&e, &h);
    assert_int_equal(h.status, TPO_CANCELLED);
    echo_stop(&e);
}

/* An upload of which `bytes` come, and what follows is the case's. */
static struct tpo_rpc *slow_put(struct echo *e, struct heard *h, size_t bytes)
{
    Tpo__V1__MediaChunk chunk = TPO__V1__MEDIA_CHUNK__INIT;
    const struct tpo_rpc_start start = {
        .path = "/tpo.v1.Media/Put", .reply = &tpo__v1__media_put_reply__descriptor, .stream_in = true, .timeout_ms = 20000};
    const struct tpo_rpc_events on = {.owner = h, .on_message = on_message, .on_done = on_done};
    chunk.data = (ProtobufCBinaryData){bytes, chunk_bytes};
    struct tpo_rpc *r = tpo_rpc_open(e->peers, &start, &chunk.base, NULL, &on, NULL);
    assert_non_null(r);
    return r;
}

static void expect_stalled(const struct heard *h)
{
    assert_int_equal(h->done, 1);
    assert_int_equal(h->status, TPO_DEADLINE_EXCEEDED);
    assert_string_equal(h->err.reason, "stalled");
    assert_string_equal(h->err.stage, "echo");
}

static void a_silent_streamer_is_given_up(void **state)
{
    (void)state;
    struct echo e;
    struct heard h = {0};
    echo_start(&e, (struct tpo_server_options){.stall_ms = 200});
    slow_put(&e, &h, 0);
    wait_done(&e, &h);
    expect_stalled(&h);
    echo_stop(&e);
}

static void a_trickling_streamer_is_given_up(void **state)
{
    (void)state;
    struct echo e;
    struct heard h = {0};
    Tpo__V1__MediaChunk chunk = TPO__V1__MEDIA_CHUNK__INIT;
    chunk.data = (ProtobufCBinaryData){10, chunk_bytes};
    echo_start(&e, (struct tpo_server_options){.stall_ms = 400});
    struct tpo_rpc *r = slow_put(&e, &h, 10);
    for (int i = 0; i < 900 && !h.done; i++) { /* less than 16 KiB in all, over more than the 400 ms */
        const int64_t next_us = tpo_now_us() + 2000;
        tpo_rpc_send(r, &chunk.base);
        while (!h.done && tpo_now_us() < next_us) tpo_loop_wait(e.loop, 2);
    }
    expect_stalled(&h);
    echo_stop(&e);
}

/* Until the method has taken n messages. */
static void wait_taken(struct echo *e, int n)
{
    for (int i = 0; i < 1500 && echo_taken < n; i++) tpo_loop_wait(e->loop, 20);
    assert_int_equal(echo_taken, n);
}

static void a_paced_method_reads_when_it_asks(void **state)
{
    (void)state;
    struct echo e;
    struct heard h = {.to_send = 9};
    echo_start(&e, (struct tpo_server_options){.stall_ms = 200});
    put(&e, &h, "/tpo.v1.Test/Paced", &tpo__v1__media_put_reply__descriptor, 20000);
    for (int n = 1; n <= 10; n++) {
        wait_taken(&e, n);
        /* The next message has come by now, and nobody is at fault that it is not read. */
        for (int i = 0; n == 2 && i < 30; i++) tpo_loop_wait(e.loop, 20);
        assert_int_equal(echo_taken, n);
        tpo_call_more(echo_paced);
    }
    wait_done(&e, &h);
    assert_int_equal(h.status, TPO_OK);
    assert_int_equal(echo_taken, 10);
    echo_stop(&e);
}

static void a_cancel_reaches_a_method_that_does_not_read(void **state)
{
    (void)state;
    struct echo e;
    struct heard h = {.to_send = 1000};
    echo_start(&e, (struct tpo_server_options){0});
    struct tpo_rpc *r = put(&e, &h, "/tpo.v1.Test/Paced", &tpo__v1__media_put_reply__descriptor, 20000);
    wait_taken(&e, 1);
    tpo_rpc_cancel(r);
    wait_done(&e, &h);
    for (int i = 0; i < 1500 && tpo_server_calls(e.server) > 0; i++) usleep(20000);
    assert_int_equal(tpo_server_calls(e.server), 0);
    assert_int_equal(echo_cancels, 1);
    echo_stop(&e);
}

static void a_method_has_a_limit_of_its_own(void **state)
{
    (void)state;
    struct echo e;
    struct tpo_error err = {0};
    static uint8_t bytes[2 << 20];
    Tpo__V1__MediaChunk chunk = TPO__V1__MEDIA_CHUNK__INIT;
    struct tpo_rpc_start start = {.path = "/tpo.v1.Test/Paced", .reply = &tpo__v1__media_put_reply__descriptor, .timeout_ms = 5000};
    ProtobufCMessage *reply;
    echo_start(&e, (struct tpo_server_options){0});
    chunk.data = (ProtobufCBinaryData){sizeof(bytes), bytes};
    assert_int_equal(tpo_rpc_call(e.peers, &start, &chunk.base, NULL, &reply, NULL, &err), TPO_RESOURCE_EXHAUSTED);
    assert_string_equal(err.reason, "message_too_large");
    assert_int_equal(echo_taken, 0);
    echo_stop(&e);
}

static void limits_hold(void **state)
{
    (void)state;
    struct echo e;
    struct tpo_error err = {0};
    struct heard h = {0}, g = {.to_send = 0};
    char digest[96];
    echo_start(&e, (struct tpo_server_options){.calls_max = 1, .message_bytes_max = 500000});
    struct tpo_rpc *r = generate(&e, &h, "hang", 1, 10000);
    for (int i = 0; i < 500 && h.n < 1; i++) tpo_loop_wait(e.loop, 20);
    assert_int_equal(echo_ask(e.peers, "x", 5000, digest, &err), TPO_RESOURCE_EXHAUSTED);
    assert_string_equal(err.reason, "too_many_calls");
    assert_true(err.retry_ms > 0);
    tpo_rpc_cancel(r);
    wait_done(&e, &h);
    for (int i = 0; i < 500 && tpo_server_calls(e.server) > 0; i++) usleep(10000);
    g.to_send = 1; /* of a mebibyte */
    put(&e, &g, "/tpo.v1.Media/Put", &tpo__v1__media_put_reply__descriptor, 5000);
    wait_done(&e, &g);
    assert_int_equal(g.status, TPO_RESOURCE_EXHAUSTED);
    echo_stop(&e);
}

static void bad_messages_are_refused(void **state)
{
    (void)state;
    struct echo e;
    struct tpo_error err = {0};
    char digest[96];
    echo_start(&e, (struct tpo_server_options){0});
    assert_int_equal(echo_ask(e.peers, "caf\xe9", 5000, digest, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "utf8");
    /* Another message's bytes: field 1 is a length where a chunk has it, but 15 is no tensor. */
    Tpo__V1__MediaChunk wrong = TPO__V1__MEDIA_CHUNK__INIT;
    struct tpo_rpc_start start = {
        .path = "/tpo.v1.Encoder/Nothing", .reply = &tpo__v1__encode_reply__descriptor, .timeout_ms = 5000};
    ProtobufCMessage *reply;
    assert_int_equal(tpo_rpc_call(e.peers, &start, &wrong.base, NULL, &reply, NULL, &err), TPO_UNIMPLEMENTED);
    assert_string_equal(err.reason, "method");
    uint8_t cut[] = {0x7a, 0x7f, 0x01}; /* field 15 claims 127 bytes */
    wrong.data = (ProtobufCBinaryData){sizeof(cut), cut};
    wrong.base.n_unknown_fields = 1;
    ProtobufCMessageUnknownField unknown = {
        .tag = 15, .wire_type = PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED, .len = 2, .data = cut + 1};
    wrong.base.unknown_fields = &unknown;
    start.path = "/tpo.v1.Router/Generate";
    assert_int_equal(tpo_rpc_call(e.peers, &start, &wrong.base, NULL, &reply, NULL, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "proto");
    echo_stop(&e);
}

static void *drain_thread(void *server)
{
    tpo_server_drain(server, 5000);
    return NULL;
}

static void a_drain_lets_calls_finish(void **state)
{
    (void)state;
    struct echo e;
    struct heard h = {0};
    pthread_t thread;
    echo_start(&e, (struct tpo_server_options){0});
    Tpo__V1__EncodeRequest q = TPO__V1__ENCODE_REQUEST__INIT;
    struct tpo_rpc_start start = {
        .path = "/tpo.v1.Encoder/Encode", .reply = &tpo__v1__encode_reply__descriptor, .reply_payload = true, .timeout_ms = 5000};
    struct tpo_rpc_events on = {.owner = &h, .on_message = on_message, .on_done = on_done};
    q.media_id = "late";
    assert_non_null(tpo_rpc_open(e.peers, &start, &q.base, NULL, &on, NULL));
    for (int i = 0; i < 500 && echo_served == 0; i++) tpo_loop_wait(e.loop, 2);
    pthread_create(&thread, NULL, drain_thread, e.server);
    wait_done(&e, &h);
    assert_int_equal(h.status, TPO_OK);
    pthread_join(thread, NULL);
    echo_stop(&e);
}

static void a_drain_gives_up_in_the_end(void **state)
{
    (void)state;
    struct echo e;
    struct heard h = {0};
    echo_start(&e, (struct tpo_server_options){0});
    generate(&e, &h, "hang", 1, 10000);
    for (int i = 0; i < 500 && h.n < 1; i++) tpo_loop_wait(e.loop, 20);
    tpo_server_drain(e.server, 50);
    wait_done(&e, &h);
    assert_int_not_equal(h.status, TPO_OK);
    assert_int_equal(echo_cancels, 1);
    echo_stop(&e);
}

static void a_taken_port_is_an_error(void **state)
{
    (void)state;
    struct tpo_server *first = echo_server((struct tpo_server_options){0}), *second = NULL;
    struct tpo_error err = {0};
    char address[64];
    snprintf(address, sizeof(address), "127.0.0.1:%d", tpo_server_port(first));
    struct tpo_server_options o = {.listen = address, .methods = echo_methods, .n_methods = 1};
    assert_int_equal(tpo_server_open(&second, &o, &err), TPO_UNAVAILABLE);
    assert_string_equal(err.reason, "listen");
    tpo_server_close(first);
}

TPO_TESTS(cmocka_unit_test(unary_answers_and_fails_as_told), cmocka_unit_test(a_deadline_ends_both_sides),
          cmocka_unit_test(server_streams_in_order), cmocka_unit_test(a_cancel_reaches_the_method),
          cmocka_unit_test(a_client_streams_megabytes), cmocka_unit_test(both_sides_stream),
          cmocka_unit_test(an_abandoned_stream_is_cleaned_up), cmocka_unit_test(a_silent_streamer_is_given_up),
          cmocka_unit_test(a_trickling_streamer_is_given_up), cmocka_unit_test(a_paced_method_reads_when_it_asks),
          cmocka_unit_test(a_cancel_reaches_a_method_that_does_not_read), cmocka_unit_test(a_method_has_a_limit_of_its_own),
          cmocka_unit_test(limits_hold), cmocka_unit_test(bad_messages_are_refused), cmocka_unit_test(a_drain_lets_calls_finish),
          cmocka_unit_test(a_drain_gives_up_in_the_end), cmocka_unit_test(a_taken_port_is_an_error))
