/* harness.h -- what the tests of the live encoder share: its beginning and end, files put into it, answers waited for and answers in flight. */
#ifndef TPO_TESTS_SERVICES_ENCODER_HARNESS_H
#define TPO_TESTS_SERVICES_ENCODER_HARNESS_H

#include "tests/common/media/files.h"
#include "tests/services/encoder/live.h"

static inline void begin(struct live *l, bool train)
{
    memset(l, 0, sizeof(*l));
    l->train = train;
    l->build = tpo_test_build();
    l->redis_port = live_free_port();
    live_model(l, tpo_test_source());
    live_redis(l);
    live_encoder(l);
    live_connect(l);
}

static inline void end(struct live *l)
{
    live_close(l);
    int status = live_stop(l->encoder, SIGTERM);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    live_stop(l->redis, SIGTERM);
}

static inline void put_file(struct live *l, const char *path, char id[TPO_SHA256_HEX])
{
    size_t n;
    struct live_put p;
    uint8_t *data = slurp(path, &n), digest[TPO_SHA256_BYTES];
    tpo_sha256(digest, data, n);
    tpo_sha256_hex(id, digest);
    if (live_put(l, id, data, n, 1 << 20, &p) != TPO_OK) fail_msg("put %s: %s", path, p.err.message);
    assert_string_equal(p.id, id);
    free(data);
}

/* Encodes and returns what the reply said of the cache. */
static inline char *encoded(struct live *l, const char *id, struct tpo_payload *visual)
{
    static char cache[16];
    Tpo__V1__EncodeReply *reply;
    struct tpo_error err;
    if (live_encode(l, id, &reply, visual, &err) != TPO_OK) fail_msg("%s (%s)", err.message, err.reason);
    assert_string_equal(reply->media->id, id);
    assert_int_equal(visual->dtype, TPO_F32);
    assert_int_equal(visual->n_dims, 2);
    assert_int_equal(visual->shape[0], 64); /* the recipes' query tokens */
    assert_int_equal(visual->shape[1], 128);
    assert_int_equal(strlen(reply->digest), 64);
    snprintf(cache, sizeof(cache), "%s", reply->cache);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    return cache;
}

/* Redis keeps a value a moment after the reply has gone. */
static inline void becomes_hit(struct live *l, const char *id, struct tpo_payload *visual)
{
    for (int i = 0; i < 500; i++) {
        if (strcmp(encoded(l, id, visual), "hit") == 0) return;
        tpo_payload_free(visual);
        usleep(10000);
    }
    fail_msg("never a hit");
}

struct asked {
    int done, status;
    char cache[16];
    uint8_t digest[TPO_SHA256_BYTES];
};

static inline void on_message(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    struct asked *a = owner;
    (void)r;
    snprintf(a->cache, sizeof(a->cache), "%s", ((Tpo__V1__EncodeReply *)message)->cache);
    tpo_sha256(a->digest, payload->data, payload->size_bytes);
    protobuf_c_message_free_unpacked(message, NULL);
    tpo_payload_free(payload);
}

static inline void on_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    struct asked *a = owner;
    (void)r, (void)err;
    a->status = status;
    a->done = 1;
}

static inline struct tpo_rpc *ask_within(struct live *l, const char *id, struct asked *a, int timeout_ms)
{
    const struct tpo_rpc_start start = {.path = "/tpo.v1.Encoder/Encode",
                                        .reply = &tpo__v1__encode_reply__descriptor,
                                        .reply_payload = true,
                                        .timeout_ms = timeout_ms};
    const struct tpo_rpc_events on = {.owner = a, .on_message = on_message, .on_done = on_done};
    Tpo__V1__EncodeRequest q = TPO__V1__ENCODE_REQUEST__INIT;
    struct tpo_error err;
    q.media_id = (char *)id;
    memset(a, 0, sizeof(*a));
    struct tpo_rpc *r = tpo_rpc_open(l->peers, &start, &q.base, NULL, &on, &err);
    if (r == NULL) fail_msg("%s", err.message);
    return r;
}

static inline struct tpo_rpc *ask(struct live *l, const char *id, struct asked *a)
{
    return ask_within(l, id, a, 30000);
}

#endif
