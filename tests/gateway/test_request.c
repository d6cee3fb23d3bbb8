/* Proves gateway/request: what a request gets that comes too late, or names a medium that is not here, on a gateway of its own whose peers are
 * nowhere. */
#include "gateway/request.h"

#include "tests/support/test.h"

struct heard {
    int n_done;
    struct tpo_error error;
};

static void on_done(void *owner, const Tpo__V1__PerceiveEvent *event, const struct tpo_error *err)
{
    struct heard *h = owner;
    h->n_done++;
    if (err != NULL) h->error = *err;
    assert_non_null(event->done);
}

static Tpo__V1__PerceiveRequest *question(const char *id)
{
    Tpo__V1__MediaSource source = TPO__V1__MEDIA_SOURCE__INIT, *media[] = {&source};
    Tpo__V1__Turn turn = TPO__V1__TURN__INIT, *turns[] = {&turn};
    Tpo__V1__PerceiveRequest q = TPO__V1__PERCEIVE_REQUEST__INIT;
    uint8_t packed[256];
    turn.role = (char *)"user";
    turn.text = (char *)"Hello?";
    q.turns = turns;
    q.n_turns = 1;
    source.id = (char *)id;
    q.media = media;
    q.n_media = id != NULL;
    return tpo__v1__perceive_request__unpack(NULL, tpo__v1__perceive_request__pack(&q, packed), packed);
}

static double accepted(struct tpo_gateway *g)
{
    return tpo_metrics_get(g->metrics, "tpo_requests_accepted_total", "stage=\"gateway\"");
}

static struct heard ask(struct tpo_gateway *g, uv_loop_t *loop, double left_ms, const char *id)
{
    struct heard h = {0};
    const struct tpo_request_events on = {.owner = &h, .on_done = on_done};
    assert_non_null(tpo_request_open(g, question(id), left_ms, "late", NULL, &on));
    assert_int_equal(h.n_done, 0); /* never from within */
    while (h.n_done == 0) uv_run(loop, UV_RUN_ONCE);
    assert_int_equal(h.n_done, 1);
    return h;
}

static void gateway_open(struct tpo_gateway **g, uv_loop_t *loop)
{
    const struct tpo_gateway_settings s = {
        .encoder = "127.0.0.1:1",
        .router = "127.0.0.1:1",
        .media = {.dir = "media", .budget_bytes = 1 << 20, .file_max_bytes = 1 << 20, .ttl_s = 60},
        .running_max = 1,
        .waiting_max = 1,
        .timeout_ms = 1000,
        .timeout_max_ms = 1000,
        .tokens_max = 100,
        .text_max_bytes = 1000,
        .body_max_bytes = 1 << 20,
        .bodies_max_bytes = 1 << 20};
    struct tpo_error err;
    uv_loop_init(loop);
    if (tpo_gateway_open(g, loop, &s, &err) != TPO_OK) fail_msg("%s", err.message);
}

static void gateway_close(struct tpo_gateway *g, uv_loop_t *loop)
{
    tpo_gateway_close(g);
    uv_run(loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(loop), 0);
}

static void a_request_that_comes_too_late_is_not_begun(void **state)
{
    (void)state;
    uv_loop_t loop;
    struct tpo_gateway *g;
    gateway_open(&g, &loop);
    const struct heard late = ask(g, &loop, -1, NULL);
    assert_int_equal(late.error.code, TPO_DEADLINE_EXCEEDED);
    assert_string_equal(late.error.reason, "deadline");
    assert_true(accepted(g) == 0); /* it took no place, and no peer has heard of it */
    const struct heard timely = ask(g, &loop, 0, NULL);
    assert_int_equal(timely.error.code, TPO_UNAVAILABLE);
    assert_true(accepted(g) == 1);
    gateway_close(g, &loop);
}

/* Whatever its encoders and their cache hold: a file counts where it was sent, or where another gateway put it into the same directory. */
static void an_id_counts_where_its_file_lies(void **state)
{
    (void)state;
    static const char id[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    uv_loop_t loop;
    struct tpo_gateway *g;
    gateway_open(&g, &loop);
    const struct heard unknown = ask(g, &loop, 0, id);
    assert_int_equal(unknown.error.code, TPO_NOT_FOUND);
    assert_string_equal(unknown.error.reason, "media_unknown");
    char path[128];
    snprintf(path, sizeof(path), "media/%s", id);
    FILE *f = fopen(path, "w");
    assert_true(f != NULL && fputs("abc", f) >= 0 && fclose(f) == 0);
    for (int i = 0; i < 2; i++) { /* by a look, then by what the look has found */
        const struct heard known = ask(g, &loop, 0, id);
        assert_int_equal(known.error.code, TPO_UNAVAILABLE);
        assert_int_equal(tpo_media_store_files(g->media), 1);
        assert_true(i > 0 || remove(path) == 0);
    }
    gateway_close(g, &loop);
}

TPO_TESTS(cmocka_unit_test(an_id_counts_where_its_file_lies), cmocka_unit_test(a_request_that_comes_too_late_is_not_begun))
