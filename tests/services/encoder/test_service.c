/* The encoder as a process: uploads, cache, single flight, bad media, Redis dying, the end. */
#include "tests/common/media/files.h"
#include "tests/services/encoder/live.h"

#include <math.h>

#include "common/cache.h"
#include "common/dtype.h"
#include "services/encoder/frames.h"

static void begin(struct live *l)
{
    memset(l, 0, sizeof(*l));
    l->build = tpo_test_build();
    l->redis_port = live_free_port();
    live_model(l, tpo_test_source());
    live_redis(l);
    live_encoder(l);
    live_connect(l);
}

static void end(struct live *l)
{
    live_close(l);
    int status = live_stop(l->encoder, SIGTERM);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    live_stop(l->redis, SIGTERM);
}

static void put_file(struct live *l, const char *path, char id[TPO_SHA256_HEX])
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
static char *encoded(struct live *l, const char *id, struct tpo_payload *visual)
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

static void refused(struct live *l, const char *id, int code, const char *reason)
{
    Tpo__V1__EncodeReply *reply;
    struct tpo_payload visual = {0};
    struct tpo_error err = {0};
    int rc = live_encode(l, id, &reply, &visual, &err);
    if (rc != code || strcmp(err.reason, reason) != 0)
        fail_msg("%s: %d %s (%s), want %d %s", id, rc, err.reason, err.message, code, reason);
    assert_null(reply);
}

/* Redis keeps a value a moment after the reply has gone. */
static void becomes_hit(struct live *l, const char *id, struct tpo_payload *visual)
{
    for (int i = 0; i < 500; i++) {
        if (strcmp(encoded(l, id, visual), "hit") == 0) return;
        tpo_payload_free(visual);
        usleep(10000);
    }
    fail_msg("never a hit");
}

static void a_hit_gives_the_same_bits(void **state)
{
    (void)state;
    struct live l;
    struct tpo_payload first = {0}, second = {0};
    char id[TPO_SHA256_HEX], film[TPO_SHA256_HEX];
    begin(&l);
    shell(FFMPEG "-f lavfi -i testsrc2=size=64x48 -frames:v 1 a.png");
    shell(FFMPEG "-f lavfi -i testsrc2=size=96x64:rate=8 -frames:v 11 -pix_fmt yuv420p a.mp4");
    put_file(&l, "a.png", id);
    put_file(&l, "a.mp4", film);
    assert_string_equal(encoded(&l, id, &first), "miss");
    becomes_hit(&l, id, &second);
    assert_memory_equal(first.data, second.data, first.size_bytes);
    tpo_payload_free(&first), tpo_payload_free(&second);

    assert_string_equal(encoded(&l, film, &first), "miss");
    double runs = live_counter(&l, "tpo_encoder_runs_total", NULL);
    becomes_hit(&l, film, &second);
    assert_memory_equal(first.data, second.data, first.size_bytes);
    tpo_payload_free(&second);
    becomes_hit(&l, film, &second);
    double later = live_counter(&l, "tpo_encoder_runs_total", NULL);
    assert_true(later - runs <= 1); /* once at most while the write was on its way; a hit runs nothing */
    assert_true(live_counter(&l, "tpo_cache_requests_total", "result=hit") >= 3);
    assert_true(live_counter(&l, "tpo_request_duration_seconds_count", NULL) >= 5); /* a name made on the way */
    tpo_payload_free(&second);

    /* A hit needs no bytes; and what it tells of the film is what the miss told. */
    shell("rm media/%s", film);
    Tpo__V1__EncodeReply *reply;
    assert_int_equal(live_encode(&l, film, &reply, &second, NULL), TPO_OK);
    assert_string_equal(reply->cache, "hit");
    assert_int_equal(reply->media->width, 96);
    assert_int_equal(reply->media->height, 64);
    assert_int_equal(reply->media->n_frames, 8);
    assert_int_equal(reply->media->frames[0]->index, 0);
    assert_int_equal(reply->media->frames[7]->index, 9);
    assert_true(reply->media->frames[7]->time_s == 9 / 8.0);
    assert_true(reply->media->duration_s == 11 / 8.0);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    tpo_payload_free(&second);

    /* Redis gone: another miss, the same bits. */
    live_stop(l.redis, SIGKILL);
    put_file(&l, "a.mp4", film);
    assert_string_equal(encoded(&l, film, &second), "miss");
    assert_memory_equal(first.data, second.data, first.size_bytes);
    tpo_payload_free(&first), tpo_payload_free(&second);
    live_redis(&l);
    becomes_hit(&l, film, &second);
    tpo_payload_free(&second);
    end(&l);
}

/* Puts a value under the key that the encoder will look for, as whoever can write to the Redis can. */
static void put_forged(struct live *l, const char *id, const char *digest, const struct tpo_cached *v)
{
    char address[64], rule[96];
    struct tpo_config c;
    struct tpo_cache_key key;
    struct tpo_error err = {0};
    tpo_cache_t *cache;
    assert_int_equal(tpo_config_load(&c, "model", &err), TPO_OK);
    const char *const parts[] = {"encoder", id, tpo_frames_rule(rule, sizeof(rule), &c), digest, "f32"};
    tpo_cache_key_make(&key, parts, 5);
    snprintf(address, sizeof(address), "127.0.0.1:%d", l->redis_port);
    const struct tpo_cache_options options = {.address = address, .name = "test"};
    assert_int_equal(tpo_cache_open(&cache, &options, &err), TPO_OK);
    struct tpo_cached back;
    for (int i = 0; i < 500; i++) {
        tpo_cache_put(cache, &key, v);
        usleep(10000);
        if (tpo_cache_get(cache, &key, &back) != TPO_CACHE_HIT) continue;
        tpo_cached_free(&back);
        tpo_cache_close(cache);
        return;
    }
    fail_msg("the forged value never came to be");
}

static void a_value_no_film_could_have_is_a_miss(void **state)
{
    (void)state;
    enum { FRAMES = 4096, FORGERIES = 8 };
    static uint32_t indices[FRAMES];
    static double times[FRAMES];
    static _Alignas(64) float data[64 * 128];
    const struct {
        int n_frames;
        uint32_t width, height;
        double time_s, duration_s;
        const char *cache;
    } cases[FORGERIES] = {{1, 64, 48, 0.5, 1, "hit"},  {0, 64, 48, 0.5, 1, "miss"}, {FRAMES, 64, 48, 0.5, 1, "miss"},
                          {1, 0, 48, 0.5, 1, "miss"},  {1, 64, 0, 0.5, 1, "miss"},  {1, 64, 48, 1e308, 1, "miss"},
                          {1, 64, 48, NAN, 1, "miss"}, {1, 64, 48, 0.5, -1, "miss"}};
    struct live l;
    struct tpo_payload visual = {0};
    struct tpo_error err = {0};
    Tpo__V1__EncodeReply *reply;
    char id[TPO_SHA256_HEX], digest[72], name[32];
    begin(&l);
    shell(FFMPEG "-f lavfi -i testsrc2=size=64x48:rate=8 -frames:v 9 still%%d.png");
    put_file(&l, "still9.png", id);
    assert_int_equal(live_encode(&l, id, &reply, &visual, &err), TPO_OK);
    snprintf(digest, sizeof(digest), "%s", reply->digest);
    protobuf_c_message_free_unpacked(&reply->base, NULL);
    tpo_payload_free(&visual);
    for (int i = 0; i < FORGERIES; i++) {
        const struct tpo_cached v = {.dtype = TPO_F32,
                                     .n_dims = 2,
                                     .shape = {64, 128},
                                     .data = data,
                                     .data_bytes = sizeof(data),
                                     .width = cases[i].width,
                                     .height = cases[i].height,
                                     .duration_s = cases[i].duration_s,
                                     .n_frames = cases[i].n_frames,
                                     .indices = indices,
                                     .times = times};
        times[0] = cases[i].time_s;
        snprintf(name, sizeof(name), "still%d.png", i + 1);
        put_file(&l, name, id);
        put_forged(&l, id, digest, &v);
        if (strcmp(encoded(&l, id, &visual), cases[i].cache) != 0) fail_msg("forgery %d is no %s", i, cases[i].cache);
        tpo_payload_free(&visual);
    }
    end(&l);
}

struct asked {
    int done, status;
    char cache[16];
    uint8_t digest[TPO_SHA256_BYTES];
};

static void on_message(void *owner, struct tpo_rpc *r, ProtobufCMessage *message, struct tpo_payload *payload)
{
    struct asked *a = owner;
    (void)r;
    snprintf(a->cache, sizeof(a->cache), "%s", ((Tpo__V1__EncodeReply *)message)->cache);
    tpo_sha256(a->digest, payload->data, payload->size_bytes);
    protobuf_c_message_free_unpacked(message, NULL);
    tpo_payload_free(payload);
}

static void on_done(void *owner, struct tpo_rpc *r, int status, const struct tpo_error *err)
{
    struct asked *a = owner;
    (void)r, (void)err;
    a->status = status;
    a->done = 1;
}

static struct tpo_rpc *ask_within(struct live *l, const char *id, struct asked *a, int timeout_ms)
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

static struct tpo_rpc *ask(struct live *l, const char *id, struct asked *a)
{
    return ask_within(l, id, a, 30000);
}

static void equal_misses_encode_once(void **state)
{
    (void)state;
    struct live l;
    struct asked asked[8];
    char id[TPO_SHA256_HEX];
    begin(&l);
    shell(FFMPEG "-f lavfi -i testsrc2=size=1280x720:rate=25 -frames:v 60 -preset ultrafast -pix_fmt yuv420p a.mp4");
    put_file(&l, "a.mp4", id);
    double runs = live_counter(&l, "tpo_encoder_runs_total", NULL);
    for (int i = 0; i < 8; i++) ask(&l, id, &asked[i]);
    for (int i = 0; i < 8; i++)
        while (!asked[i].done) tpo_loop_wait(l.loop, 1000);
    int n_miss = 0;
    for (int i = 0; i < 8; i++) {
        assert_int_equal(asked[i].status, TPO_OK);
        assert_memory_equal(asked[i].digest, asked[0].digest, sizeof(asked[0].digest));
        n_miss += strcmp(asked[i].cache, "miss") == 0;
    }
    assert_int_equal(n_miss, 1);
    assert_true(live_counter(&l, "tpo_encoder_runs_total", NULL) == runs + 1);
    end(&l);
}

/* A leader that goes away does not take the others with it. */
static void who_is_aboard_outlives_the_leader(void **state)
{
    (void)state;
    struct live l;
    struct asked asked[4];
    char id[TPO_SHA256_HEX];
    begin(&l);
    shell(FFMPEG "-f lavfi -i testsrc2=size=1280x720:rate=25 -frames:v 60 -preset ultrafast -pix_fmt yuv420p a.mp4");
    put_file(&l, "a.mp4", id);
    struct tpo_rpc *leader = ask(&l, id, &asked[0]);
    for (int i = 1; i < 4; i++) ask(&l, id, &asked[i]);
    usleep(30000);
    tpo_rpc_cancel(leader);
    for (int i = 0; i < 4; i++)
        while (!asked[i].done) tpo_loop_wait(l.loop, 1000);
    for (int i = 1; i < 4; i++) assert_int_equal(asked[i].status, TPO_OK);
    end(&l);
}

/* Decoding may take an hour here, so that only a caller's deadline can end a load. */
static void begin_patient(struct live *l, char id[TPO_SHA256_HEX])
{
    setenv("TPO_MEDIA_TIMEOUT", "1h", 1);
    begin(l);
    unsetenv("TPO_MEDIA_TIMEOUT");
    shell(FFMPEG "-f lavfi -i testsrc2=size=64x48 -frames:v 1 a.png");
    put_file(l, "a.png", id);
}

static void a_load_ends_with_the_deadline_of_who_waits(void **state)
{
    (void)state;
    struct live l;
    struct asked asked;
    char id[TPO_SHA256_HEX];
    struct tpo_payload visual = {0};
    begin_patient(&l, id);
    double runs = live_counter(&l, "tpo_encoder_runs_total", NULL);
    shell("pkill -STOP -P %d tpo-media", l.encoder);
    ask_within(&l, id, &asked, 300);
    while (!asked.done) tpo_loop_wait(l.loop, 1000);
    assert_int_equal(asked.status, TPO_DEADLINE_EXCEEDED);
    while (live_counter(&l, "tpo_media_decodes_total", "result=error") < 1) usleep(10000); /* the harness limits the wait */
    assert_true(live_counter(&l, "tpo_encoder_runs_total", NULL) == runs);
    /* The decoder that was stopped is gone, another serves who comes next. */
    assert_string_equal(encoded(&l, id, &visual), "miss");
    tpo_payload_free(&visual);
    end(&l);
}

static void a_leaders_deadline_is_not_its_passengers(void **state)
{
    (void)state;
    struct live l;
    struct asked leader, aboard[2];
    char id[TPO_SHA256_HEX];
    begin_patient(&l, id);
    shell("pkill -STOP -P %d tpo-media", l.encoder);
    ask_within(&l, id, &leader, 400);
    usleep(100000); /* the load began with the leader alone */
    for (int i = 0; i < 2; i++) ask(&l, id, &aboard[i]);
    while (!leader.done) tpo_loop_wait(l.loop, 1000);
    assert_int_equal(leader.status, TPO_DEADLINE_EXCEEDED);
    shell("pkill -CONT -P %d tpo-media; true", l.encoder); /* for passengers who came before the load began */
    for (int i = 0; i < 2; i++) {
        while (!aboard[i].done) tpo_loop_wait(l.loop, 1000);
        assert_int_equal(aboard[i].status, TPO_OK);
    }
    end(&l);
}

static void nobody_waits_nothing_is_encoded(void **state)
{
    (void)state;
    struct live l;
    struct asked asked;
    char id[TPO_SHA256_HEX];
    begin_patient(&l, id);
    double runs = live_counter(&l, "tpo_encoder_runs_total", NULL);
    shell("pkill -STOP -P %d tpo-media", l.encoder);
    struct tpo_rpc *r = ask(&l, id, &asked);
    usleep(100000); /* it is loading */
    tpo_rpc_cancel(r);
    while (!asked.done) tpo_loop_wait(l.loop, 1000);
    usleep(100000); /* the encoder knows */
    shell("pkill -CONT -P %d tpo-media", l.encoder);
    while (live_counter(&l, "tpo_requests_total", "code=CANCELLED") < 1) usleep(10000);
    assert_true(live_counter(&l, "tpo_media_decodes_total", "result=ok") == 0);
    assert_true(live_counter(&l, "tpo_encoder_runs_total", NULL) == runs);
    end(&l);
}

/* The only decoder hangs and two more pictures wait for it: who asks about a known picture must not wait for it. */
static void a_hit_does_not_wait_for_a_decoder(void **state)
{
    (void)state;
    struct live l;
    struct asked slow[3];
    char id[TPO_SHA256_HEX], other[3][TPO_SHA256_HEX];
    struct tpo_payload visual = {0};
    setenv("TPO_MEDIA_WORKERS", "1", 1);
    begin_patient(&l, id);
    unsetenv("TPO_MEDIA_WORKERS");
    becomes_hit(&l, id, &visual);
    tpo_payload_free(&visual);
    shell("pkill -STOP -P %d tpo-media", l.encoder);
    for (int i = 0; i < 3; i++) {
        char path[16];
        snprintf(path, sizeof(path), "other%d.png", i);
        shell("{ cat a.png; printf %d; } >%s", i, path);
        put_file(&l, path, other[i]);
        ask(&l, other[i], &slow[i]);
    }
    tpo_loop_wait(l.loop, 100);
    const double began = live_counter(&l, "tpo_media_decodes_total", NULL);
    assert_string_equal(encoded(&l, id, &visual), "hit");
    tpo_payload_free(&visual);
    assert_true(live_counter(&l, "tpo_media_decodes_total", NULL) == began); /* none has ended */
    for (int i = 0; i < 3; i++)
        if (slow[i].done) fail_msg("picture %d: %s", i, tpo_status_name(slow[i].status));
    shell("pkill -CONT -P %d tpo-media", l.encoder);
    for (int i = 0; i < 3; i++) {
        while (!slow[i].done) tpo_loop_wait(l.loop, 1000);
        assert_int_equal(slow[i].status, TPO_OK);
    }
    end(&l);
}

/* `n` other ids of the same film, asked for and then left as soon as the first of them is encoded. */
static void ask_and_leave(struct live *l, int n, int *tail)
{
    struct asked asked[16];
    struct tpo_rpc *rpcs[16];
    char ids[16][TPO_SHA256_HEX];
    size_t size;
    uint8_t *film = slurp("a.mp4", &size);
    double runs = live_counter(l, "tpo_encoder_runs_total", NULL), ended = live_counter(l, "tpo_requests_total", NULL);
    film = realloc(film, size + sizeof(*tail));
    for (int i = 0; i < n; i++, ++*tail) {
        memcpy(film + size, tail, sizeof(*tail));
        spill("b.mp4", film, size + sizeof(*tail));
        put_file(l, "b.mp4", ids[i]);
    }
    free(film);
    for (int i = 0; i < n; i++) rpcs[i] = ask(l, ids[i], &asked[i]);
    while (live_counter(l, "tpo_encoder_runs_total", NULL) == runs) continue;
    for (int i = 0; i < n; i++)
        if (!asked[i].done) tpo_rpc_cancel(rpcs[i]);
    for (int i = 0; i < n; i++)
        while (!asked[i].done) tpo_loop_wait(l->loop, 1000);
    while (live_counter(l, "tpo_requests_total", NULL) < ended + n) usleep(10000);
}

/* Which of them were decoded and waited for the model when everybody left is chance: it is tried until some were. A skipped one is in no count
 * but the decoder's. */
static void what_was_decoded_for_nobody_is_not_encoded(void **state)
{
    (void)state;
    struct live l;
    int tail = 0;
    begin(&l);
    shell(FFMPEG "-f lavfi -i testsrc2=size=64x48:rate=8 -frames:v 8 -preset ultrafast -pix_fmt yuv420p a.mp4");
    do ask_and_leave(&l, 14, &tail);
    while (live_counter(&l, "tpo_encoder_runs_total", NULL) >= live_counter(&l, "tpo_media_decodes_total", "result=ok"));
    end(&l);
}

static void bad_media_are_typed_errors(void **state)
{
    (void)state;
    struct live l;
    struct live_put p;
    struct tpo_payload visual = {0};
    char id[TPO_SHA256_HEX];
    begin(&l);
    refused(&l, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", TPO_FAILED_PRECONDITION, "media_missing");
    refused(&l, "../../etc/passwd", TPO_INVALID_ARGUMENT, "media_id");
    refused(&l, "", TPO_INVALID_ARGUMENT, "media_id");
    assert_int_equal(live_put(&l, NULL, (const uint8_t *)"abc", 3, 1, &p), TPO_OK);
    refused(&l, p.id, TPO_INVALID_ARGUMENT, "media_unreadable");
    snprintf(id, sizeof(id), "%s", p.id);
    assert_int_equal(live_put(&l, id, (const uint8_t *)"abd", 3, 2, &p), TPO_INVALID_ARGUMENT);
    assert_string_equal(p.err.reason, "media_hash");
    assert_int_equal(live_put(&l, NULL, (const uint8_t *)"", 0, 1, &p), TPO_INVALID_ARGUMENT);
    assert_string_equal(p.err.reason, "media_empty");
    shell(FFMPEG "-f lavfi -i testsrc2=size=32x16 -frames:v 1 bomb.png");
    size_t size;
    uint8_t *png = slurp("bomb.png", &size);
    png[18] = png[22] = 0x4e, png[19] = png[23] = 0x20; /* 20000 x 20000 */
    spill("bomb.png", png, size);
    free(png);
    put_file(&l, "bomb.png", id);
    refused(&l, id, TPO_INVALID_ARGUMENT, "media_too_large");
    shell(FFMPEG "-f lavfi -i testsrc2=size=64x48 -frames:v 1 a.png");
    put_file(&l, "a.png", id);
    shell("pkill -KILL -P %d tpo-media", l.encoder); /* a decoder that dies is replaced */
    for (int i = 0; i < 3; i++) {                    /* two workers may each have cost a request */
        Tpo__V1__EncodeReply *reply;
        if (live_encode(&l, id, &reply, &visual, NULL) != TPO_OK) continue;
        protobuf_c_message_free_unpacked(&reply->base, NULL);
        break;
    }
    assert_non_null(visual.data);
    tpo_payload_free(&visual);
    end(&l);
}

static struct tpo_rpc *begin_put(struct live *l, struct live_put *p)
{
    const struct tpo_rpc_start start = {
        .path = "/tpo.v1.Media/Put", .reply = &tpo__v1__media_put_reply__descriptor, .stream_in = true, .timeout_ms = 30000};
    const struct tpo_rpc_events on = {.owner = p, .on_message = live_on_put_message, .on_done = live_on_put_done};
    Tpo__V1__MediaChunk chunk = TPO__V1__MEDIA_CHUNK__INIT;
    static uint8_t bytes[100000];
    struct tpo_error err;
    chunk.id = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    chunk.data.data = bytes;
    chunk.data.len = sizeof(bytes);
    memset(p, 0, sizeof(*p));
    struct tpo_rpc *r = tpo_rpc_open(l->peers, &start, &chunk.base, NULL, &on, &err);
    if (r == NULL) fail_msg("%s", err.message);
    return r;
}

/* How many files lie in the media directory once it has `want` of them, or after a while. */
static int files_become(int want)
{
    int n = -1;
    for (int i = 0; i < 500 && n != want; i++) {
        FILE *f = popen("ls media | wc -l", "r");
        if (fscanf(f, "%d", &n) != 1) n = -1;
        pclose(f);
        if (n != want) usleep(10000);
    }
    return n;
}

static void an_upload_that_ends_early_leaves_nothing(void **state)
{
    (void)state;
    struct live l;
    struct live_put p;
    begin(&l);
    struct tpo_rpc *r = begin_put(&l, &p);
    for (int i = 0; i < 300 && files_become(1) != 1; i++) tpo_loop_wait(l.loop, 10);
    assert_int_equal(files_become(1), 1);
    tpo_rpc_cancel(r);
    while (!p.done) tpo_loop_wait(l.loop, 1000);
    assert_int_equal(p.status, TPO_CANCELLED);
    assert_int_equal(files_become(0), 0);
    end(&l);
}

static void a_full_queue_is_told_at_once(void **state)
{
    (void)state;
    enum { N = 40 };
    struct live l;
    static struct asked asked[N];
    char id[TPO_SHA256_HEX];
    begin(&l); /* with --queue 16 */
    shell(FFMPEG "-f lavfi -i testsrc2=size=640x360:rate=25 -frames:v 60 -preset ultrafast -pix_fmt yuv420p a.mp4");
    size_t n;
    uint8_t *film = slurp("a.mp4", &n);
    static char ids[N][TPO_SHA256_HEX];
    for (int i = 0; i < N; i++) { /* trailing bytes change the id and nothing else */
        film = realloc(film, n + 1);
        film[n++] = (uint8_t)i;
        spill("b.mp4", film, n);
        put_file(&l, "b.mp4", id);
        strcpy(ids[i], id);
    }
    free(film);
    int n_ok = 0, n_full = 0;
    for (int i = 0; i < N; i++) ask_within(&l, ids[i], &asked[i], 300000);
    for (int i = 0; i < N; i++) {
        while (!asked[i].done) tpo_loop_wait(l.loop, 1000);
        n_ok += asked[i].status == TPO_OK;
        n_full += asked[i].status == TPO_RESOURCE_EXHAUSTED;
    }
    assert_int_equal(n_ok + n_full, N);
    assert_true(n_ok >= 16 && n_full > 0);
    end(&l);
}

static void what_is_in_flight_ends_before_the_process(void **state)
{
    (void)state;
    struct live l;
    struct asked asked[3];
    char id[TPO_SHA256_HEX];
    begin(&l);
    shell(FFMPEG "-f lavfi -i testsrc2=size=1280x720:rate=25 -frames:v 60 -preset ultrafast -pix_fmt yuv420p a.mp4");
    put_file(&l, "a.mp4", id);
    for (int i = 0; i < 3; i++) ask(&l, id, &asked[i]);
    usleep(50000);
    kill(l.encoder, SIGTERM);
    for (int i = 0; i < 3; i++) {
        while (!asked[i].done) tpo_loop_wait(l.loop, 1000);
        assert_int_equal(asked[i].status, TPO_OK);
    }
    end(&l);
}

TPO_TESTS(cmocka_unit_test(a_hit_gives_the_same_bits), cmocka_unit_test(a_value_no_film_could_have_is_a_miss),
          cmocka_unit_test(equal_misses_encode_once), cmocka_unit_test(who_is_aboard_outlives_the_leader),
          cmocka_unit_test(a_load_ends_with_the_deadline_of_who_waits), cmocka_unit_test(a_leaders_deadline_is_not_its_passengers),
          cmocka_unit_test(nobody_waits_nothing_is_encoded), cmocka_unit_test(a_hit_does_not_wait_for_a_decoder),
          cmocka_unit_test(what_was_decoded_for_nobody_is_not_encoded), cmocka_unit_test(bad_media_are_typed_errors),
          cmocka_unit_test(an_upload_that_ends_early_leaves_nothing), cmocka_unit_test(a_full_queue_is_told_at_once),
          cmocka_unit_test(what_is_in_flight_ends_before_the_process))
