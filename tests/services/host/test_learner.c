/* The direct learner on a toy model: lanes, repeats, the two-phase step. */
#include "nn/budget.h"
#include "services/host/learner_state.h"
#include "tests/services/host/toy_steps.h"

static void steps_lower_the_loss(void **state)
{
    (void)state;
    struct toy y;
    toy_open(&y, 1);
    assert_int_equal(begin(&y, 1, 2).trainable, 3);
    float first = 0, last = 0;
    for (uint64_t s = 1; s <= 150; s++) {
        const float loss = step(&y, s, s - 1, 2);
        if (s <= 10) first += loss;
        if (s > 140) last += loss;
    }
    if (!(last < .75f * first)) fail_msg("loss %g at first, %g at last", (double)first / 10, (double)last / 10);
    toy_close(&y);
}

/* Bits: one thread or three, the same; and lanes add as a tree, so M = lanes = 4 differs from one lane only by rounding. */
static void lanes_and_threads_keep_the_sum(void **state)
{
    (void)state;
    float one[WEIGHTS], three[WEIGHTS], tree[WEIGHTS];
    float *to[] = {one, three, tree};
    for (int i = 0; i < 3; i++) {
        struct toy y;
        toy_open(&y, i == 1 ? 3 : 1);
        begin(&y, i == 2 ? 4 : 1, 4);
        for (uint64_t s = 1; s <= 5; s++) step(&y, s, s - 1, 4);
        weights_copy(&y, to[i]);
        toy_close(&y);
    }
    assert_memory_equal(one, three, sizeof(one));
    for (int i = 0; i < WEIGHTS; i++)
        if (!(one[i] - tree[i] < 1e-3f && tree[i] - one[i] < 1e-3f))
            fail_msg("weight %d: %g and %g", i, (double)one[i], (double)tree[i]);
}

static void repeats_add_nothing(void **state)
{
    (void)state;
    float once[WEIGHTS], twice[WEIGHTS];
    for (int repeat = 0; repeat < 2; repeat++) {
        struct toy y;
        struct tpo_error err = {0};
        struct tpo_forwarded f, again;
        struct tpo_named_tensor dx, dx_again;
        const struct tpo_norm *norms;
        int n;
        toy_open(&y, 1);
        begin(&y, 1, 1);
        const struct tpo_key key = key_of(1, 0, 0);
        assert_int_equal(forward(&y, &key, true, &f, &err), TPO_OK);
        if (repeat) assert_int_equal(forward(&y, &key, true, &again, &err), TPO_OK);
        assert_int_equal(y.forwards, 1);
        assert_int_equal(backward(&y, &key, &dx, &err), TPO_OK);
        if (repeat) {
            assert_int_equal(backward(&y, &key, &dx_again, &err), TPO_OK);
            assert_ptr_equal(dx.data, dx_again.data);
            assert_int_equal(forward(&y, &key, true, &again, &err), TPO_OK); /* the reply outlives its tape */
            assert_ptr_equal(f.outputs[0].data, again.outputs[0].data);
        }
        for (int i = 0; i <= repeat; i++) assert_int_equal(y.learner.norms(y.learner.self, &key, &norms, &n, &err), TPO_OK);
        for (int i = 0; i <= repeat; i++) assert_int_equal(y.learner.prepare(y.learner.self, &key, 1, rates, 2, &err), TPO_OK);
        for (int i = 0; i <= repeat; i++) assert_int_equal(y.learner.commit(y.learner.self, &key, &err), TPO_OK);
        weights_copy(&y, repeat ? twice : once);
        toy_close(&y);
    }
    assert_memory_equal(once, twice, sizeof(once));
}

/* And keeps nothing of it: the same micro-batch runs when there is room. */
static void what_memory_does_not_hold_is_refused(void **state)
{
    (void)state;
    struct toy y;
    struct tpo_error err = {0};
    struct tpo_forwarded f;
    toy_open(&y, 1);
    begin(&y, 1, 1);
    const struct tpo_key key = key_of(1, 0, 0);
    tpo_budget_set(64);
    assert_int_equal(forward(&y, &key, true, &f, &err), TPO_RESOURCE_EXHAUSTED);
    assert_string_equal(err.reason, "batch_size");
    tpo_budget_set(0);
    assert_int_equal(forward(&y, &key, true, &f, &err), TPO_OK);
    toy_close(&y);
}

static void abort_leaves_no_trace(void **state)
{
    (void)state;
    float plain[WEIGHTS], aborted[WEIGHTS];
    for (int with = 0; with < 2; with++) {
        struct toy y;
        struct tpo_error err = {0};
        struct tpo_forwarded f;
        const struct tpo_norm *norms;
        int n;
        toy_open(&y, 1);
        begin(&y, 1, 1);
        step(&y, 1, 0, 1);
        if (with) {
            const struct tpo_key key = key_of(2, 1, 0);
            assert_int_equal(forward(&y, &key, true, &f, &err), TPO_OK);
            assert_int_equal(backward(&y, &key, NULL, &err), TPO_OK);
            assert_int_equal(y.learner.norms(y.learner.self, &key, &norms, &n, &err), TPO_OK);
            assert_int_equal(y.learner.prepare(y.learner.self, &key, 1, rates, 2, &err), TPO_OK);
            assert_int_equal(y.learner.abort(y.learner.self, &key, &err), TPO_OK);
            assert_int_equal(y.learner.abort(y.learner.self, &key, &err), TPO_OK);
            assert_int_equal(y.learner.commit(y.learner.self, &key, &err), TPO_FAILED_PRECONDITION);
        }
        step(&y, 3, 1, 1);
        weights_copy(&y, with ? aborted : plain);
        toy_close(&y);
    }
    assert_memory_equal(plain, aborted, sizeof(plain));
}

static void nothing_to_learn_keeps_no_tape(void **state)
{
    (void)state;
    struct toy y;
    struct tpo_error err = {0};
    struct tpo_forwarded f;
    struct tpo_begun begun;
    struct tpo_plan plan = plan_of(1, 8);
    plan.n_groups = 0;
    toy_open(&y, 1);
    assert_int_equal(y.learner.begin(y.learner.self, "run", &plan, &begun, &err), TPO_OK);
    assert_int_equal(begun.trainable, 0);
    for (uint32_t m = 0; m < 8; m++) { /* more than the live tapes there may be */
        const struct tpo_key key = key_of(1, 0, m);
        assert_int_equal(forward(&y, &key, false, &f, &err), TPO_OK);
        assert_int_equal(f.n_outputs, 1);
    }
    toy_close(&y);
}

static void patterns_match_whole_names(void **state)
{
    (void)state;
    assert_true(tpo_pattern_match("*", "a"));
    assert_true(tpo_pattern_match("a*b*c", "axxbyybc"));
    assert_true(tpo_pattern_match("blocks.*.qkv.weight", "blocks.12.qkv.weight"));
    assert_false(tpo_pattern_match("blocks.*.qkv.weight", "blocks.12.qkv.weights"));
    assert_false(tpo_pattern_match("a", "ab"));
    assert_false(tpo_pattern_match("", "a"));
    assert_true(tpo_pattern_match("a**", "a"));
}

TPO_TESTS(cmocka_unit_test(what_memory_does_not_hold_is_refused), cmocka_unit_test(steps_lower_the_loss),
          cmocka_unit_test(lanes_and_threads_keep_the_sum), cmocka_unit_test(repeats_add_nothing),
          cmocka_unit_test(abort_leaves_no_trace), cmocka_unit_test(nothing_to_learn_keeps_no_tape),
          cmocka_unit_test(patterns_match_whole_names))
