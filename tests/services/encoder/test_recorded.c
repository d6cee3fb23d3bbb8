/* Training on recorded media in a real encoder: serving's own tokens where it is frozen, decoded pixels where it learns, bytes that are missing. */
#include "services/host/learner_wire.h"
#include "tests/services/encoder/harness.h"

static int call(struct live *l, const char *path, const ProtobufCMessage *m, const ProtobufCMessageDescriptor *type, void *reply,
                struct tpo_error *err)
{
    const struct tpo_rpc_start how = {.path = path, .reply = type, .timeout_ms = 60000, .key = "any"};
    *(void **)reply = NULL;
    return tpo_rpc_call(l->peers, &how, m, NULL, (ProtobufCMessage **)reply, NULL, err);
}

static uint64_t newest; /* that is served, as Begin told it last */

/* Begins a run in which `pattern` learns ("": nothing); the lease. */
static uint64_t begin_run(struct live *l, const char *run, const char *pattern)
{
    const struct tpo_group group = {
        .name = "all", .patterns = &pattern, .n_patterns = 1, .optimiser = TPO_ADAMW, .beta1 = .9f, .beta2 = .99f, .eps = 1e-8f};
    const struct tpo_plan plan = {.seed = 1, .lanes = 1, .micro_batches = 4, .groups = &group, .n_groups = pattern[0] != '\0'};
    Tpo__V1__BeginRequest q = TPO__V1__BEGIN_REQUEST__INIT;
    Tpo__V1__BeginReply *reply;
    struct tpo_arena a;
    struct tpo_error err = {0};
    tpo_arena_init(&a, 4096, 0);
    q.run = (char *)run, q.holder = "me", q.lease_ms = 600000;
    q.plan = tpo_plan_pack(&a, &plan);
    if (call(l, "/tpo.v1.Learner/Begin", &q.base, &tpo__v1__begin_reply__descriptor, &reply, &err) != TPO_OK)
        fail_msg("%s", err.message);
    const uint64_t lease = reply->lease;
    newest = reply->served;
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    tpo_arena_free(&a);
    return lease;
}

static int forward(struct live *l, const struct tpo_key *key, uint64_t lease, const struct tpo_sample *samples, int n,
                   Tpo__V1__ForwardReply **reply, struct tpo_error *err)
{
    Tpo__V1__ForwardRequest q = TPO__V1__FORWARD_REQUEST__INIT;
    Tpo__V1__Key k;
    struct tpo_arena a;
    tpo_arena_init(&a, 4096, 0);
    tpo_key_pack(&k, key, lease);
    q.key = &k;
    q.samples = tpo_samples_pack(&a, samples, n, true), q.n_samples = (size_t)n;
    const int rc = call(l, "/tpo.v1.Learner/Forward", &q.base, &tpo__v1__forward_reply__descriptor, reply, err);
    tpo_arena_free(&a);
    return rc;
}

/* A trainer's own values of a vector, as the start of a stage brings them: all of them `value`. */
static void import_start(struct live *l, const char *run, uint64_t lease, const char *name, int64_t shape, float value)
{
    float data[128];
    struct tpo_error err = {0};
    struct tpo_key key = {0};
    Tpo__V1__Key k;
    Tpo__V1__Chunk q = TPO__V1__CHUNK__INIT;
    Tpo__V1__ImportReply *reply;
    snprintf(key.run, sizeof(key.run), "%s", run);
    tpo_key_pack(&k, &key, lease);
    for (int i = 0; i < 128; i++) data[i] = value;
    q.key = &k, q.name = (char *)name, q.part = "start";
    q.shape = &shape, q.n_shape = 1;
    q.data = (ProtobufCBinaryData){sizeof(float) * (size_t)shape, (uint8_t *)data};
    if (call(l, "/tpo.v1.Learner/Import", &q.base, &tpo__v1__import_reply__descriptor, &reply, &err) != TPO_OK)
        fail_msg("%s", err.message);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
}

#define QUERIES 64 /* of the recipes' models */

/* The visual tokens of a Forward, which must go well; (n * QUERIES, 128). */
static float *visual(struct live *l, const struct tpo_key *key, uint64_t lease, const struct tpo_sample *samples, int n)
{
    Tpo__V1__ForwardReply *reply;
    struct tpo_error err = {0};
    if (forward(l, key, lease, samples, n, &reply, &err) != TPO_OK) fail_msg("%s (%s)", err.message, err.reason);
    assert_int_equal(reply->n_tensors, 1);
    assert_string_equal(reply->tensors[0]->name, "visual");
    const ProtobufCBinaryData data = reply->tensors[0]->tensor->data;
    assert_int_equal(data.len, sizeof(float) * (size_t)n * QUERIES * 128);
    float *copy = malloc(data.len);
    memcpy(copy, data.data, data.len);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    return copy;
}

static void a_frozen_encoder_shares_the_cache(void **state)
{
    (void)state;
    struct live l;
    struct tpo_payload served = {0};
    char image[TPO_SHA256_HEX], film[TPO_SHA256_HEX];
    begin(&l, true);
    shell(FFMPEG "-f lavfi -i testsrc2=size=64x48 -frames:v 1 a.png");
    shell(FFMPEG "-f lavfi -i testsrc2=size=96x64:rate=8 -frames:v 11 -pix_fmt yuv420p a.mp4");
    put_file(&l, "a.png", image);
    put_file(&l, "a.mp4", film);
    becomes_hit(&l, image, &served);
    const double runs = live_counter(&l, "tpo_encoder_runs_total", NULL);

    /* What serving has kept is taken; what it lacks is computed and kept for serving. */
    const uint64_t lease = begin_run(&l, "frozen", "");
    import_start(&l, "frozen", lease, "ext.encoder.dense.box.bias", 4, .1f);
    struct tpo_key key = {.run = "frozen", .step = 1};
    const struct tpo_sample both[] = {{.media_id = image, .next_media_id = film}, {.media_id = film}};
    float *x = visual(&l, &key, lease, both, 2);
    assert_memory_equal(x, served.data, served.size_bytes);
    assert_true(live_counter(&l, "tpo_training_visual_total", "source=cache") == 1);
    assert_true(live_counter(&l, "tpo_training_visual_total", "source=encoder") == 1);
    tpo_payload_free(&served);
    /* Serving runs nothing for it, unless Redis is too slow to wait for. */
    while (live_counter(&l, "tpo_cache_writes_total", "result=ok") < 2) usleep(10000); /* the harness limits the wait */
    becomes_hit(&l, film, &served);
    assert_memory_equal(x + QUERIES * 128, served.data, served.size_bytes);
    const double slow = live_counter(&l, "tpo_cache_requests_total", "result=timeout");
    assert_true(live_counter(&l, "tpo_encoder_runs_total", NULL) <= runs + slow);
    tpo_payload_free(&served);
    free(x);
    end(&l);
}

static void publish(struct live *l, const char *run, uint64_t lease, uint64_t version)
{
    struct tpo_error err = {0};
    struct tpo_key key = {0};
    Tpo__V1__Key k;
    Tpo__V1__PublishRequest q = TPO__V1__PUBLISH_REQUEST__INIT;
    Tpo__V1__Empty *reply;
    snprintf(key.run, sizeof(key.run), "%s", run);
    tpo_key_pack(&k, &key, lease);
    q.key = &k, q.version = version;
    if (call(l, "/tpo.v1.Learner/Publish", &q.base, &tpo__v1__empty__descriptor, &reply, &err) != TPO_OK)
        fail_msg("%s", err.message);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
}

#define PATCH_BIAS "vision_encoder.encoder.patch_embed.proj.bias"

/* Whatever trained or replaced its weights before: the key holds the digest of what they are now, as serving's does once they are published. */
static void a_frozen_encoder_shares_the_cache_after_it_has_learned(void **state)
{
    (void)state;
    struct live l;
    struct tpo_payload served = {0};
    char image[TPO_SHA256_HEX];
    begin(&l, true);
    shell(FFMPEG "-f lavfi -i testsrc2=size=64x48 -frames:v 1 a.png");
    put_file(&l, "a.png", image);
    const struct tpo_sample sample = {.media_id = image};
    begin_run(&l, "learned", "vision_encoder.*");
    uint64_t lease = begin_run(&l, "frozen", "");
    assert_true(newest == 0);
    import_start(&l, "frozen", lease, PATCH_BIAS, 128, .5f);
    struct tpo_key key = {.run = "frozen", .step = 1};
    float *first = visual(&l, &key, lease, &sample, 1);
    assert_true(live_counter(&l, "tpo_training_visual_total", "source=encoder") == 1);
    publish(&l, "frozen", lease, 7);
    becomes_hit(&l, image, &served);
    assert_memory_equal(first, served.data, served.size_bytes);
    lease = begin_run(&l, "frozen", ""); /* the same one: nothing has changed */
    assert_true(newest == 7);
    key.micro_batch = 1;
    float *again = visual(&l, &key, lease, &sample, 1);
    assert_true(live_counter(&l, "tpo_training_visual_total", "source=cache") == 1);
    assert_memory_equal(again, served.data, served.size_bytes);

    /* Other weights, in the same place. */
    import_start(&l, "frozen", lease, PATCH_BIAS, 128, -.5f);
    key.micro_batch = 2;
    float *other = visual(&l, &key, lease, &sample, 1);
    assert_true(live_counter(&l, "tpo_training_visual_total", "source=encoder") == 2);
    assert_memory_not_equal(other, served.data, served.size_bytes);
    tpo_payload_free(&served);
    free(first), free(again), free(other);
    end(&l);
}

/* An encoder that learns sees the very pixels of serving (the small model has no dropout), and the next ones are there before they are asked for. */
static void one_that_learns_decodes_ahead(void **state)
{
    (void)state;
    struct live l;
    struct tpo_payload served = {0};
    char ids[2][TPO_SHA256_HEX];
    begin(&l, true);
    shell(FFMPEG "-f lavfi -i testsrc2=size=64x48 -frames:v 1 a.png");
    shell(FFMPEG "-f lavfi -i testsrc=size=80x48 -frames:v 1 b.png");
    put_file(&l, "a.png", ids[0]);
    put_file(&l, "b.png", ids[1]);
    const uint64_t lease = begin_run(&l, "learns", "vision_encoder.*");
    struct tpo_key key = {.run = "learns", .step = 1};
    const struct tpo_sample first = {.media_id = ids[0], .next_media_id = ids[1]}, second = {.media_id = ids[1]};
    float *a = visual(&l, &key, lease, &first, 1);
    for (int i = 0; i < 1000 && live_counter(&l, "tpo_media_decodes_total", "result=ok") < 2; i++) usleep(10000);
    assert_true(live_counter(&l, "tpo_media_decodes_total", "result=ok") == 2); /* the next one's, before it was asked for */
    key.micro_batch = 1;
    float *b = visual(&l, &key, lease, &second, 1);
    assert_true(live_counter(&l, "tpo_media_decodes_total", "result=ok") == 2);
    assert_true(live_counter(&l, "tpo_training_visual_total", NULL) == 0);
    encoded(&l, ids[0], &served);
    assert_memory_equal(a, served.data, served.size_bytes);
    tpo_payload_free(&served);
    encoded(&l, ids[1], &served);
    assert_memory_equal(b, served.data, served.size_bytes);
    tpo_payload_free(&served);
    free(a), free(b);
    end(&l);
}

static void missing_bytes_are_told_and_may_come(void **state)
{
    (void)state;
    struct live l;
    struct tpo_error err = {0};
    Tpo__V1__ForwardReply *reply;
    char id[TPO_SHA256_HEX];
    begin(&l, true);
    shell(FFMPEG "-f lavfi -i testsrc2=size=64x48 -frames:v 1 a.png");
    size_t n;
    uint8_t *data = slurp("a.png", &n), digest[TPO_SHA256_BYTES];
    tpo_sha256(digest, data, n);
    tpo_sha256_hex(id, digest);
    free(data);
    uint64_t lease = begin_run(&l, "frozen", "");
    struct tpo_key key = {.run = "frozen", .step = 1};
    struct tpo_sample sample = {.media_id = id};
    for (int learns = 0; learns < 2; learns++) {
        if (learns) {
            lease = begin_run(&l, "learns", "vision_encoder.*");
            snprintf(key.run, sizeof(key.run), "learns");
        }
        shell("rm -f media/%s", id);
        sample.media_id = id;
        assert_int_equal(forward(&l, &key, lease, &sample, 1, &reply, &err), TPO_FAILED_PRECONDITION);
        assert_string_equal(err.reason, "media_missing");
        sample.media_id = "../../etc/passwd";
        assert_int_equal(forward(&l, &key, lease, &sample, 1, &reply, &err), TPO_INVALID_ARGUMENT);
        assert_string_equal(err.reason, "media_id");
        if (!learns) continue;
        put_file(&l, "a.png", id);
        sample.media_id = id;
        free(visual(&l, &key, lease, &sample, 1));
    }
    end(&l);
}

TPO_TESTS(cmocka_unit_test(a_frozen_encoder_shares_the_cache),
          cmocka_unit_test(a_frozen_encoder_shares_the_cache_after_it_has_learned), cmocka_unit_test(one_that_learns_decodes_ahead),
          cmocka_unit_test(missing_bytes_are_told_and_may_come))
