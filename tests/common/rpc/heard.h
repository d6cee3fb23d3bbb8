/* heard.h -- what the tests of calls and of peers keep of a call they opened, and how they wait for its end. */
#ifndef TPO_TESTS_RPC_HEARD_H
#define TPO_TESTS_RPC_HEARD_H

#include "tests/common/rpc/echo.h"

struct heard {
    int n, done, status;
    uint64_t bytes;
    char text[64];
    struct tpo_error err;
    int to_send;
    _Atomic int open;
};

static inline void on_message(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    struct heard *h = owner;
    (void)r;
    if (message->descriptor == &tpo__v1__generate_event__descriptor) {
        Tpo__V1__GenerateEvent *e = (Tpo__V1__GenerateEvent *)message;
        assert_int_equal(e->kind_case, TPO__V1__GENERATE_EVENT__KIND_TEXT);
        assert_int_equal(atoi(e->text->text), h->n);
    }
    if (message->descriptor == &tpo__v1__media_put_reply__descriptor) h->bytes = ((Tpo__V1__MediaPutReply *)message)->size_bytes;
    if (message->descriptor == &tpo__v1__media_chunk__descriptor) h->bytes += ((Tpo__V1__MediaChunk *)message)->data.len;
    h->n++;
    protobuf_c_message_free_unpacked(message, NULL);
    tpo_payload_free(payload);
}

static inline void on_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    struct heard *h = owner;
    (void)r;
    h->done++;
    h->status = status;
    h->err = *err;
}

static inline void wait_done(struct echo *e, struct heard *h)
{
    for (int i = 0; i < 1500 && !h->done; i++) tpo_loop_wait(e->loop, 20);
    assert_int_equal(h->done, 1);
}

static inline void wait_ready(struct echo *e, int n)
{
    for (int i = 0; i < 500 && tpo_peers_ready(e->peers) != n; i++) tpo_loop_wait(e->loop, 20);
    assert_int_equal(tpo_peers_ready(e->peers), n);
}

#endif
