/* Proves gateway/request: what a request that comes too late gets, on a gateway of its own whose peers are nowhere. */
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

static Tpo__V1__PerceiveRequest *question(void)
{
    Tpo__V1__Turn turn = TPO__V1__TURN__INIT, *turns[] = {&turn};
    Tpo__V1__PerceiveRequest q = TPO__V1__PERCEIVE_REQUEST__INIT;
    uint8_t packed[64];
    turn.role = (char *)"user";
    turn.text = (char *)"Hello?";
    q.turns = turns;
    q.n_turns = 1;
    return tpo__v1__perceive_request__unpack(NULL, tpo__v1__perceive_request__pack(&q, packed), packed);
}

static double accepted(struct tpo_gateway *g)
{
    return tpo_metrics_get(g->metrics, "tpo_requests_accepted_total", "stage=\"gateway\"");
}

static struct heard ask(struct tpo_gateway *g, uv_loop_t *loop, double left_ms)
{
    struct heard h = {0};
    const struct tpo_request_events on = {.owner = &h, .on_done = on_done};
    assert_non_null(tpo_request_open(g, question(), left_ms, "late", NULL, &on));
    assert_int_equal(h.n_done, 0); /* never from within */
    while (h.n_done == 0) uv_run(loop, UV_RUN_ONCE);
    assert_int_equal(h.n_done, 1);
    return h;
}

static void a_request_that_comes_too_late_is_not_begun(void **state)
{
    (void)state;
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
    uv_loop_t loop;
    struct tpo_gateway *g;
    struct tpo_error err;
    uv_loop_init(&loop);
    if (tpo_gateway_open(&g, &loop, &s, &err) != TPO_OK) fail_msg("%s", err.message);
    const struct heard late = ask(g, &loop, -1);
    assert_int_equal(late.error.code, TPO_DEADLINE_EXCEEDED);
    assert_string_equal(late.error.reason, "deadline");
    assert_true(accepted(g) == 0); /* it took no place, and no peer has heard of it */
    const struct heard timely = ask(g, &loop, 0);
    assert_int_equal(timely.error.code, TPO_UNAVAILABLE);
    assert_true(accepted(g) == 1);
    tpo_gateway_close(g);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
}

TPO_TESTS(cmocka_unit_test(a_request_that_comes_too_late_is_not_begun))
