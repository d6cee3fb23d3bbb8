/* echo.h -- a server and a set of peers in one process, for the tests of common/rpc. Methods over messages we have:
 *   /tpo.v1.Encoder/Encode    unary: media_id comes back as digest; ids "fail", "hang", "late" misbehave; "late" answers from another thread
 *   /tpo.v1.Router/Generate   server-streaming: max_new_tokens texts; task "flood" does not wait for its reader
 *   /tpo.v1.Media/Put         client-streaming: counts the bytes
 *   /tpo.v1.Test/Mirror       bidi: every MediaChunk comes back
 *   /tpo.v1.Test/Paced        client-streaming: reads on when the test says tpo_call_more(echo_paced); at most 2 MiB a message */
#ifndef TPO_TESTS_RPC_ECHO_H
#define TPO_TESTS_RPC_ECHO_H

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#include "common/rpc/client.h"
#include "common/rpc/server.h"
#include "encoder.pb-c.h"
#include "media.pb-c.h"
#include "router.pb-c.h"
#include "tests/support/test.h"

static atomic_int echo_cancels, echo_served, echo_taken, echo_put_ends;
static struct tpo_call *_Atomic echo_paced;

static void echo_answer(struct tpo_call *c, const char *digest)
{
    Tpo__V1__EncodeReply reply = TPO__V1__ENCODE_REPLY__INIT;
    struct tpo_payload p;
    int64_t shape[2] = {96, 768};
    assert_int_equal(tpo_payload_alloc(&p, TPO_F32, 2, shape), TPO_OK);
    for (int i = 0; i < 96 * 768; i++) ((float *)p.data)[i] = (float)i;
    reply.digest = (char *)digest;
    tpo_call_send(c, &reply.base, &p);
    tpo_call_finish(c, TPO_OK, NULL);
}

static void *echo_late(void *arg)
{
    usleep(20000);
    echo_answer(arg, "late");
    return NULL;
}

static void echo_encode(void *owner, struct tpo_call *c, ProtobufCMessage *message, struct tpo_payload *payload)
{
    Tpo__V1__EncodeRequest *q = (Tpo__V1__EncodeRequest *)message;
    struct tpo_error err;
    (void)owner, (void)payload;
    echo_served++;
    if (strcmp(q->media_id, "fail") == 0) {
        tpo_fail(&err, TPO_FAILED_PRECONDITION, "media_missing", "I have no %s", "such bytes");
        snprintf(err.stage, sizeof(err.stage), "decoder");
        err.retry_ms = 1250;
        tpo_call_finish(c, err.code, &err);
    } else if (strcmp(q->media_id, "late") == 0) {
        pthread_t thread;
        pthread_create(&thread, NULL, echo_late, c);
        pthread_detach(thread);
    } else if (strcmp(q->media_id, "request-id") == 0) {
        echo_answer(c, tpo_call_request_id(c));
    } else if (strcmp(q->media_id, "hang") != 0) {
        echo_answer(c, q->media_id);
    }
    protobuf_c_message_free_unpacked(message, NULL);
}

static void echo_cancel(void *owner, struct tpo_call *c)
{
    (void)owner;
    assert_true(tpo_call_cancelled(c));
    echo_cancels++;
    tpo_call_finish(c, TPO_CANCELLED, NULL);
}

static void echo_generate(void *owner, struct tpo_call *c, ProtobufCMessage *message, struct tpo_payload *payload)
{
    Tpo__V1__GenerateRequest *q = (Tpo__V1__GenerateRequest *)message;
    (void)owner;
    for (uint32_t i = 0; i < q->max_new_tokens; i++) {
        Tpo__V1__TextDelta text = TPO__V1__TEXT_DELTA__INIT;
        Tpo__V1__GenerateEvent event = TPO__V1__GENERATE_EVENT__INIT;
        char digits[16];
        snprintf(digits, sizeof(digits), "%u", i);
        text.text = digits;
        event.kind_case = TPO__V1__GENERATE_EVENT__KIND_TEXT;
        event.text = &text;
        tpo_call_send(c, &event.base, NULL);
    }
    if (payload->data != NULL) assert_int_equal((uintptr_t)payload->data % 64, 0);
    if (strcmp(q->task, "hang") != 0) tpo_call_finish(c, TPO_OK, NULL);
    tpo_payload_free(payload);
    protobuf_c_message_free_unpacked(message, NULL);
}

static int echo_open(void *owner, struct tpo_call *c, struct tpo_error *err)
{
    (void)owner, (void)err;
    tpo_call_set_owner(c, calloc(1, sizeof(uint64_t)));
    return TPO_OK;
}

static void echo_put(void *owner, struct tpo_call *c, ProtobufCMessage *message, struct tpo_payload *payload)
{
    uint64_t *bytes = tpo_call_owner(c);
    (void)owner, (void)payload;
    if (message != NULL) {
        *bytes += ((Tpo__V1__MediaChunk *)message)->data.len;
        protobuf_c_message_free_unpacked(message, NULL);
        echo_taken++;
        return;
    }
    Tpo__V1__MediaPutReply reply = TPO__V1__MEDIA_PUT_REPLY__INIT;
    reply.size_bytes = *bytes;
    echo_put_ends++;
    free(bytes);
    tpo_call_send(c, &reply.base, NULL);
    tpo_call_finish(c, TPO_OK, NULL);
}

static void echo_put_cancel(void *owner, struct tpo_call *c)
{
    free(tpo_call_owner(c));
    echo_cancel(owner, c);
}

static void echo_mirror(void *owner, struct tpo_call *c, ProtobufCMessage *message, struct tpo_payload *payload)
{
    (void)owner, (void)payload;
    if (message != NULL) {
        tpo_call_send(c, message, NULL);
        protobuf_c_message_free_unpacked(message, NULL);
    } else {
        tpo_call_finish(c, TPO_OK, NULL);
    }
}

static void echo_take(void *owner, struct tpo_call *c, ProtobufCMessage *message, struct tpo_payload *payload)
{
    (void)owner, (void)payload;
    if (message == NULL) {
        Tpo__V1__MediaPutReply reply = TPO__V1__MEDIA_PUT_REPLY__INIT;
        tpo_call_send(c, &reply.base, NULL);
        tpo_call_finish(c, TPO_OK, NULL);
        return;
    }
    protobuf_c_message_free_unpacked(message, NULL);
    echo_paced = c;
    echo_taken++;
}

static const struct tpo_method echo_methods[] = {
    {.path = "/tpo.v1.Encoder/Encode",
     .request = &tpo__v1__encode_request__descriptor,
     .on_message = echo_encode,
     .on_cancel = echo_cancel},
    {.path = "/tpo.v1.Router/Generate",
     .request = &tpo__v1__generate_request__descriptor,
     .payload = true,
     .on_message = echo_generate,
     .on_cancel = echo_cancel},
    {.path = "/tpo.v1.Media/Put",
     .request = &tpo__v1__media_chunk__descriptor,
     .stream_in = true,
     .on_open = echo_open,
     .on_message = echo_put,
     .on_cancel = echo_put_cancel},
    {.path = "/tpo.v1.Test/Mirror",
     .request = &tpo__v1__media_chunk__descriptor,
     .stream_in = true,
     .on_message = echo_mirror,
     .on_cancel = echo_cancel},
    {.path = "/tpo.v1.Test/Paced",
     .request = &tpo__v1__media_chunk__descriptor,
     .stream_in = true,
     .paced = true,
     .message_bytes_max = 2 << 20,
     .on_message = echo_take,
     .on_cancel = echo_cancel},
};

struct echo {
    struct tpo_server *server;
    struct tpo_loop *loop;
    struct tpo_peers *peers;
    char address[64];
};

__attribute__((unused)) static struct tpo_server *echo_server(struct tpo_server_options o)
{
    struct tpo_server *s = NULL;
    struct tpo_error err;
    if (o.listen == NULL) o.listen = "127.0.0.1:0";
    o.methods = echo_methods;
    o.n_methods = sizeof(echo_methods) / sizeof(echo_methods[0]);
    o.stage = "echo";
    if (tpo_server_open(&s, &o, &err) != TPO_OK) fail_msg("%s", err.message);
    tpo_server_serving(s, true);
    return s;
}

__attribute__((unused)) static void echo_start(struct echo *e, struct tpo_server_options o)
{
    struct tpo_error err;
    e->server = echo_server(o);
    snprintf(e->address, sizeof(e->address), "127.0.0.1:%d", tpo_server_port(e->server));
    assert_int_equal(tpo_loop_open(&e->loop, NULL, NULL, &err), TPO_OK);
    assert_int_equal(tpo_peers_open(&e->peers, e->loop, "encoder", e->address, TPO_PICK_LEAST, &err), TPO_OK);
}

__attribute__((unused)) static void echo_stop(struct echo *e)
{
    tpo_peers_close(e->peers);
    tpo_loop_close(e->loop);
    tpo_server_close(e->server);
}

/* One Encode; the digest of the reply in `digest`. */
__attribute__((unused)) static int echo_ask(struct tpo_peers *peers, const char *id, int timeout_ms, char digest[96],
                                            struct tpo_error *err)
{
    Tpo__V1__EncodeRequest q = TPO__V1__ENCODE_REQUEST__INIT;
    struct tpo_rpc_start start = {.path = "/tpo.v1.Encoder/Encode",
                                  .reply = &tpo__v1__encode_reply__descriptor,
                                  .reply_payload = true,
                                  .timeout_ms = timeout_ms,
                                  .request_id = "req-1"};
    ProtobufCMessage *reply;
    struct tpo_payload p = {0};
    q.media_id = (char *)id;
    int rc = tpo_rpc_call(peers, &start, &q.base, NULL, &reply, &p, err);
    if (rc != TPO_OK) return rc;
    snprintf(digest, 96, "%s", ((Tpo__V1__EncodeReply *)reply)->digest);
    assert_int_equal(p.n_dims, 2);
    assert_int_equal(p.size_bytes, 96 * 768 * 4);
    assert_int_equal((uintptr_t)p.data % 64, 0);
    for (int i = 0; i < 96 * 768; i++) assert_true(((float *)p.data)[i] == (float)i);
    tpo_payload_free(&p);
    protobuf_c_message_free_unpacked(reply, NULL);
    return rc;
}

#endif
