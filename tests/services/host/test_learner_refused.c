/* What the direct learner refuses, and that a step then goes on as if nothing had been asked. */
#include <math.h>

#include "tests/services/host/toy_steps.h"

static void wrong_calls_are_refused(void **state)
{
    (void)state;
    struct toy y;
    struct tpo_error err = {0};
    struct tpo_forwarded f;
    toy_open(&y, 1);
    begin(&y, 1, 8);
    struct tpo_key key = key_of(1, 7, 0);
    assert_int_equal(forward(&y, &key, true, &f, &err), TPO_FAILED_PRECONDITION);
    assert_string_equal(err.reason, "wrong_version");
    key = key_of(1, 0, 8);
    assert_int_equal(forward(&y, &key, true, &f, &err), TPO_INVALID_ARGUMENT);
    key = key_of(1, 0, 0);
    snprintf(key.run, sizeof(key.run), "other");
    assert_int_equal(forward(&y, &key, true, &f, &err), TPO_FAILED_PRECONDITION);
    key = key_of(1, 0, 0);
    assert_int_equal(backward(&y, &key, NULL, &err), TPO_FAILED_PRECONDITION);
    for (uint32_t m = 0; m < 4; m++) {
        key = key_of(1, 0, m);
        assert_int_equal(forward(&y, &key, true, &f, &err), TPO_OK);
    }
    key = key_of(1, 0, 4);
    assert_int_equal(forward(&y, &key, true, &f, &err), TPO_RESOURCE_EXHAUSTED);
    key = key_of(1, 0, 1);
    assert_int_equal(backward(&y, &key, NULL, &err), TPO_OK);
    key = key_of(1, 0, 0); /* index order within a lane */
    assert_int_equal(backward(&y, &key, NULL, &err), TPO_FAILED_PRECONDITION);
    const struct tpo_norm *norms;
    int n;
    assert_int_equal(y.learner.norms(y.learner.self, &key, &norms, &n, &err), TPO_FAILED_PRECONDITION);
    key = key_of(2, 0, 0);
    assert_int_equal(forward(&y, &key, true, &f, &err), TPO_FAILED_PRECONDITION);
    assert_string_equal(err.reason, "wrong_step");
    toy_close(&y);
}

static int sum_refuse(void *arg, const struct tpo_chunk *x)
{
    (void)arg, (void)x;
    fail_msg("a sum was told");
    return TPO_OK;
}

/* Each call of a step, with a key that disagrees: refused by name, and the step goes on as if nothing had been asked. */
static void a_wrong_key_is_refused_by_every_call(void **state)
{
    (void)state;
    static const struct {
        uint64_t step, version;
        const char *run, *reason;
    } wrong[] = {{2, 0, "run", "wrong_version"},
                 {1, 1, "run", "wrong_step"},
                 {3, 1, "run", "wrong_step"},
                 {2, 1, "other", "wrong_run"},
                 {0, 1, "run", "wrong_step"}};
    float plain[WEIGHTS], asked[WEIGHTS];
    for (int with = 0; with < 2; with++) {
        struct toy y;
        struct tpo_error err = {0};
        struct tpo_forwarded f;
        toy_open(&y, 1);
        begin(&y, 1, 1);
        step(&y, 1, 0, 1);
        const struct tpo_key key = key_of(2, 1, 0);
        assert_int_equal(forward(&y, &key, true, &f, &err), TPO_OK);
        for (size_t i = 0; with && i < sizeof(wrong) / sizeof(wrong[0]); i++) {
            struct tpo_learner *l = &y.learner;
            struct tpo_key k = key_of(wrong[i].step, wrong[i].version, 0);
            const struct tpo_norm *norms;
            int n;
            snprintf(k.run, sizeof(k.run), "%s", wrong[i].run);
#define REFUSED(call)                                                                                                              \
    err = (struct tpo_error){0};                                                                                                   \
    assert_int_equal(call, TPO_FAILED_PRECONDITION);                                                                               \
    assert_string_equal(err.reason, wrong[i].reason)
            REFUSED(forward(&y, &k, true, &f, &err));
            REFUSED(backward(&y, &k, NULL, &err));
            REFUSED(l->gather(l->self, &k, 0, sum_refuse, NULL, &err));
            REFUSED(l->scatter(l->self, &k, NULL, &err));
            REFUSED(l->norms(l->self, &k, &norms, &n, &err));
            REFUSED(l->prepare(l->self, &k, 1, rates, 2, &err));
            if (wrong[i].step != 1) { /* a repeat of the Commit before is no mistake */
                REFUSED(l->commit(l->self, &k, &err));
            }
            if (wrong[i].step != 0) { /* Abort takes 0 for whichever step is open */
                REFUSED(l->abort(l->self, &k, &err));
            }
#undef REFUSED
        }
        assert_int_equal(backward(&y, &key, NULL, &err), TPO_OK);
        finish(&y, &key);
        for (size_t i = 0; with && i < 2; i++) { /* nor is one that finds no step open: it may be meant for another run or state */
            struct tpo_key k = key_of(0, i == 0 ? 2 : 3, 0);
            if (i == 0) snprintf(k.run, sizeof(k.run), "another");
            err = (struct tpo_error){0};
            assert_int_equal(y.learner.abort(y.learner.self, &k, &err), TPO_FAILED_PRECONDITION);
            assert_string_equal(err.reason, i == 0 ? "wrong_run" : "wrong_version");
        }
        weights_copy(&y, with ? asked : plain);
        toy_close(&y);
    }
    assert_memory_equal(plain, asked, sizeof(plain));
}

/* What is refused for want of a tape, or because its input is wrong, can be asked again and adds once. */
static void what_was_refused_can_be_asked_again(void **state)
{
    (void)state;
    enum { M = 6, TAPES = 4 };
    float plain[WEIGHTS], refused[WEIGHTS];
    for (int with = 0; with < 2; with++) {
        struct toy y;
        struct tpo_error err = {0};
        struct tpo_forwarded f;
        struct tpo_key key = key_of(1, 0, 0);
        toy_open(&y, 1);
        begin(&y, 1, M);
        for (uint32_t m = 0; m < M; m++) {
            key.micro_batch = m;
            if (m >= TAPES) {
                const struct tpo_key first = key_of(1, 0, m - TAPES);
                for (int i = 0; with && i < 3; i++) {
                    err = (struct tpo_error){0};
                    assert_int_equal(forward(&y, &key, true, &f, &err), TPO_RESOURCE_EXHAUSTED);
                    assert_string_equal(err.reason, "tapes");
                }
                assert_int_equal(backward(&y, &first, NULL, &err), TPO_OK);
            }
            const float bad[ROWS * IN] = {0};
            struct tpo_named_tensor x = {.name = "x", .dtype = TPO_F32, .n_dims = 2, .shape = {ROWS, 0}, .data = bad};
            const struct tpo_named_tensor goal = {"goal", TPO_F32, 2, {ROWS, 3}, bad};
            const struct tpo_sample sample = {.n_targets = 1, .targets = &goal};
            for (int i = 0; with && i < 3; i++) { /* empty, of another type, of a width that the model does not take */
                if (i == 1) x.shape[1] = IN, x.dtype = TPO_U8;
                if (i == 2) x.dtype = TPO_F32, x.shape[0] = 3, x.shape[1] = IN + 1;
                assert_int_not_equal(y.learner.forward(y.learner.self, &key, &sample, 1, &x, 1, NULL, 0, &f, &err), TPO_OK);
            }
            assert_int_equal(forward(&y, &key, true, &f, &err), TPO_OK);
            float ones[ROWS * 3];
            for (int i = 0; i < ROWS * 3; i++) ones[i] = 1;
            /* Alone, and after one that would be right: nothing of that may stay. The right one twice is wrong, too. */
            const struct tpo_named_tensor y_right = {"y", TPO_F32, 2, {ROWS, 3}, ones};
            const struct tpo_named_tensor wrong[][2] = {{{"z", TPO_F32, 2, {ROWS, 3}, ones}},
                                                        {{"y", TPO_F32, 2, {ROWS, 2}, ones}},
                                                        {y_right, {"z", TPO_F32, 2, {ROWS, 3}, ones}},
                                                        {y_right, {"y", TPO_F32, 2, {ROWS, 2}, ones}},
                                                        {y_right, y_right}};
            struct tpo_named_tensor out[TPO_PORTS_MAX];
            int n;
            for (int i = 0; with && i < 5; i++)
                assert_int_equal(y.learner.backward(y.learner.self, &key, wrong[i], i < 2 ? 1 : 2, out, &n, &err),
                                 TPO_INVALID_ARGUMENT);
        }
        for (uint32_t m = M - TAPES; m < M; m++) {
            key.micro_batch = m;
            assert_int_equal(backward(&y, &key, NULL, &err), TPO_OK);
        }
        finish(&y, &key);
        weights_copy(&y, with ? refused : plain);
        toy_close(&y);
    }
    assert_memory_equal(plain, refused, sizeof(plain));
}

/* No weight moves by a factor or a rate that is none. */
static void nonsense_is_not_prepared(void **state)
{
    (void)state;
    static const float rows[][3] = {{2, .1f, .1f}, {-1, .1f, .1f},     {NAN, .1f, .1f},
                                    {1, NAN, .1f}, {1, .1f, INFINITY}, {1, -.1f, .1f}};
    struct toy y;
    struct tpo_error err = {0};
    struct tpo_forwarded f;
    const struct tpo_norm *norms;
    int n;
    const struct tpo_key key = key_of(1, 0, 0);
    toy_open(&y, 1);
    begin(&y, 1, 1);
    assert_int_equal(forward(&y, &key, true, &f, &err), TPO_OK);
    assert_int_equal(backward(&y, &key, NULL, &err), TPO_OK);
    assert_int_equal(y.learner.prepare(y.learner.self, &key, 1, rates, 2, &err), TPO_FAILED_PRECONDITION); /* no norms yet */
    assert_int_equal(y.learner.norms(y.learner.self, &key, &norms, &n, &err), TPO_OK);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        assert_int_equal(y.learner.prepare(y.learner.self, &key, rows[i][0], rows[i] + 1, 2, &err), TPO_INVALID_ARGUMENT);
    assert_int_equal(y.learner.prepare(y.learner.self, &key, 1, rates, 1, &err), TPO_INVALID_ARGUMENT);
    assert_int_equal(y.learner.commit(y.learner.self, &key, &err), TPO_FAILED_PRECONDITION);
    finish(&y, &key);
    toy_close(&y);
}

static void plans_that_cannot_be_are_refused(void **state)
{
    (void)state;
    static const char *const everything[] = {"*"};
    static const struct tpo_group muon_on_a_vector[] = {
        {.name = "all", .patterns = everything, .n_patterns = 1, .optimiser = TPO_MUON, .beta1 = .9f}};
    static const struct tpo_group five[] = {
        {.name = "all", .patterns = hidden, .n_patterns = 1, .optimiser = TPO_MUON, .beta1 = .9f, .split = 4}};
    struct toy y;
    struct tpo_begun begun;
    toy_open(&y, 1);
    for (int i = 0; i < 6; i++) {
        char run[80] = "run";
        struct tpo_error err = {0};
        struct tpo_plan plan = plan_of(i == 0 ? 3 : i == 1 ? 0 : 1, i == 2 ? 0 : 1);
        if (i == 3) memset(run, 'r', 64), run[64] = '\0';
        if (i == 4) plan.groups = muon_on_a_vector, plan.n_groups = 1;
        if (i == 5) plan.groups = five, plan.n_groups = 1;
        assert_int_equal(y.learner.begin(y.learner.self, run, &plan, &begun, &err), TPO_INVALID_ARGUMENT);
        assert_true(err.message[0] != '\0');
    }
    assert_int_equal(begin(&y, 1, 1).trainable, 3);
    step(&y, 1, 0, 1);
    toy_close(&y);
}

TPO_TESTS(cmocka_unit_test(wrong_calls_are_refused), cmocka_unit_test(a_wrong_key_is_refused_by_every_call),
          cmocka_unit_test(what_was_refused_can_be_asked_again), cmocka_unit_test(nonsense_is_not_prepared),
          cmocka_unit_test(plans_that_cannot_be_are_refused))
