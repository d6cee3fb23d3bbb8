/* Proves that a call of a trainer waits for a service whose queue is full, whether it answers once or in a stream, and that what no message holds
 * is not sent. */
#include "tests/services/host/toy_busy.h"

#include "trainer/steps/remote.h"

static int sum_count(void *arg, const struct tpo_chunk *x)
{
    if (x != NULL) *(int *)arg += (int)x->count;
    return TPO_OK;
}

/* The second share of two lanes, both of its micro-batches. */
static void walk(struct tpo_learner *l)
{
    static const char *const wants[] = {"x"};
    struct tpo_plan plan = plan_of(2, 4);
    struct tpo_error err = {0};
    struct tpo_begun begun;
    plan.first_lane = 1, plan.own_lanes = 1;
    if (l->begin(l->self, "run", &plan, &begun, &err) != TPO_OK) fail_msg("%s", err.message);
    for (uint32_t m = 2; m < 4; m++) {
        struct tpo_key key = key_of(1, 0, m);
        struct tpo_forwarded f;
        struct tpo_named_tensor dx[TPO_PORTS_MAX];
        struct toy_batch b;
        int n;
        toy_batch(&b, &key);
        assert_int_equal(l->forward(l->self, &key, &b.sample, 1, &b.input, 1, wants, 1, &f, &err), TPO_OK);
        assert_int_equal(l->backward(l->self, &key, NULL, 0, dx, &n, &err), TPO_OK);
    }
}

/* Places for trainers are taken, too; all come free when the work ends. */
static void a_full_queue_is_waited_for(void **state)
{
    (void)state;
    enum { CALLS = 200 };
    static struct sums work[2], calls[CALLS];
    _Atomic uint64_t lease = 0;
    char address[64];
    struct mesh w;
    struct tpo_learner l;
    struct tpo_error err = {0};
    const struct tpo_key key = key_of(1, 0, 0);
    int n = 0, port = 0, sums = 0;
    bool full = false;
    mesh_open_busy(&w);
    FILE *f = fopen("port", "r");
    assert_int_equal(fscanf(f, "%d", &port), 1);
    fclose(f);
    snprintf(address, sizeof(address), "127.0.0.1:%d", port);
    const struct tpo_remote_options o = {
        .service = "toy", .address = address, .holder = "me", .lease_ms = 60000, .timeout_ms = 60000, .lease = &lease};
    assert_int_equal(tpo_learner_open_remote(&l, &o, &err), TPO_OK);
    walk(&l);
    for (int i = 0; i < 2; i++) work_begin(&w, &work[i]);
    for (; !full; n++) {
        Tpo__V1__StepRequest m = TPO__V1__STEP_REQUEST__INIT;
        Tpo__V1__Key k;
        assert_true(n < CALLS);
        tpo_key_pack(&k, &key, lease);
        m.key = &k;
        call_begin(&w, "/tpo.v1.Learner/Keep", &m.base, &calls[n]);
        for (int i = 0; i < 5; i++) tpo_loop_wait(w.loop, 1);
        for (int i = 0; i <= n; i++) full |= calls[i].done && calls[i].status == TPO_RESOURCE_EXHAUSTED;
    }
    const pthread_t later = work_ends_later();
    if (l.gather(l.self, &key, 0, sum_count, &sums, &err) != TPO_OK) fail_msg("%s", err.message);
    assert_int_equal(sums, WEIGHTS);
    pthread_join(later, NULL);
    for (int i = 0; i < n; i++)
        while (!calls[i].done) tpo_loop_wait(w.loop, 20);
    l.close(l.self);
    mesh_close(&w);
}

/* As a name of two hosts is when it has been looked up. */
static void a_name_of_two_hosts_is_refused(void **state)
{
    (void)state;
    _Atomic uint64_t lease = 0;
    struct tpo_plan plan = plan_of(2, 4);
    struct tpo_begun begun;
    const struct tpo_remote_options o = {.service = "toy",
                                         .address = "127.0.0.1:1,127.0.0.2:1,[::1]:1",
                                         .holder = "me",
                                         .lease_ms = 60000,
                                         .timeout_ms = 60000,
                                         .lease = &lease};
    struct tpo_learner l;
    struct tpo_error err = {0};
    assert_int_equal(tpo_learner_open_remote(&l, &o, &err), TPO_OK);
    assert_int_equal(l.begin(l.self, "run", &plan, &begun, &err), TPO_INVALID_ARGUMENT);
    if (strcmp(err.reason, "mesh") != 0 || strstr(err.message, "leads to 127.0.0.") == NULL)
        fail_msg("%s %s", err.reason, err.message);
    l.close(l.self);
}

/* As it is when many media are refused by name: known before it is sent. */
static void what_no_message_holds_is_refused_here(void **state)
{
    (void)state;
    enum { SAMPLES = 2 };
    const int side = 3500; /* one alone would fit */
    uint8_t *frame = calloc((size_t)(side * side), 3);
    const struct tpo_sample sample = {.n_frames = 1, .height = side, .width = side, .pixels = frame};
    const struct tpo_sample samples[SAMPLES] = {sample, sample};
    struct tpo_forwarded f;
    struct tpo_error err = {0};
    struct tpo_learner l;
    _Atomic uint64_t lease = 0;
    const struct tpo_key key = key_of(1, 0, 0);
    const struct tpo_remote_options o = {
        .service = "encoder", .address = "127.0.0.1:1", .holder = "me", .lease_ms = 60000, .timeout_ms = 60000, .lease = &lease};
    assert_non_null(frame);
    assert_int_equal(tpo_learner_open_remote(&l, &o, &err), TPO_OK);
    assert_int_equal(l.forward(l.self, &key, samples, SAMPLES, NULL, 0, NULL, 0, &f, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "samples");
    l.close(l.self);
    free(frame);
}

TPO_TESTS(cmocka_unit_test(a_full_queue_is_waited_for), cmocka_unit_test(a_name_of_two_hosts_is_refused),
          cmocka_unit_test(what_no_message_holds_is_refused_here))
