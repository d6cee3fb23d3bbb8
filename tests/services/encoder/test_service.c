/* The encoder as a process: its cache, Redis dying, values that nobody wrote in good faith, bad media, uploads. */
#include <math.h>

#include "common/cache.h"
#include "common/dtype.h"
#include "services/encoder/key.h"
#include "tests/services/encoder/harness.h"

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

static void a_hit_gives_the_same_bits(void **state)
{
    (void)state;
    struct live l;
    struct tpo_payload first = {0}, second = {0};
    char id[TPO_SHA256_HEX], film[TPO_SHA256_HEX];
    begin(&l, false);
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
    char address[64];
    struct tpo_encoder_how how;
    struct tpo_config c;
    struct tpo_cache_key key;
    struct tpo_error err = {0};
    tpo_cache_t *cache;
    assert_int_equal(tpo_config_load(&c, "model", &err), TPO_OK);
    assert_int_equal(tpo_encoder_how_make(&how, &c, "model", "cpu", false, &err), TPO_OK);
    tpo_encoder_key(&key, &how, id, digest);
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
    begin(&l, false);
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

static void bad_media_are_typed_errors(void **state)
{
    (void)state;
    struct live l;
    struct live_put p;
    struct tpo_payload visual = {0};
    char id[TPO_SHA256_HEX];
    begin(&l, false);
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
    begin(&l, false);
    struct tpo_rpc *r = begin_put(&l, &p);
    for (int i = 0; i < 300 && files_become(1) != 1; i++) tpo_loop_wait(l.loop, 10);
    assert_int_equal(files_become(1), 1);
    tpo_rpc_cancel(r);
    while (!p.done) tpo_loop_wait(l.loop, 1000);
    assert_int_equal(p.status, TPO_CANCELLED);
    assert_int_equal(files_become(0), 0);
    end(&l);
}

TPO_TESTS(cmocka_unit_test(a_hit_gives_the_same_bits), cmocka_unit_test(a_value_no_film_could_have_is_a_miss),
          cmocka_unit_test(bad_media_are_typed_errors), cmocka_unit_test(an_upload_that_ends_early_leaves_nothing))
