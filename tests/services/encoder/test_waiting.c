/* The encoder under many who wait: single flight, deadlines, callers that leave, a full queue, the end of the process. */
#include "tests/services/encoder/harness.h"

static void equal_misses_encode_once(void **state)
{
    (void)state;
    struct live l;
    struct asked asked[8];
    char id[TPO_SHA256_HEX];
    begin(&l, false);
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
    begin(&l, false);
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
    begin(l, false);
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
    begin(&l, false);
    shell(FFMPEG "-f lavfi -i testsrc2=size=64x48:rate=8 -frames:v 8 -preset ultrafast -pix_fmt yuv420p a.mp4");
    do ask_and_leave(&l, 14, &tail);
    while (live_counter(&l, "tpo_encoder_runs_total", NULL) >= live_counter(&l, "tpo_media_decodes_total", "result=ok"));
    end(&l);
}

static void a_full_queue_is_told_at_once(void **state)
{
    (void)state;
    enum { N = 40 };
    struct live l;
    static struct asked asked[N];
    char id[TPO_SHA256_HEX];
    begin(&l, false); /* with --queue 16 */
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
    begin(&l, false);
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

TPO_TESTS(cmocka_unit_test(equal_misses_encode_once), cmocka_unit_test(who_is_aboard_outlives_the_leader),
          cmocka_unit_test(a_load_ends_with_the_deadline_of_who_waits), cmocka_unit_test(a_leaders_deadline_is_not_its_passengers),
          cmocka_unit_test(nobody_waits_nothing_is_encoded), cmocka_unit_test(a_hit_does_not_wait_for_a_decoder),
          cmocka_unit_test(what_was_decoded_for_nobody_is_not_encoded), cmocka_unit_test(a_full_queue_is_told_at_once),
          cmocka_unit_test(what_is_in_flight_ends_before_the_process))
