/* Replicas that share a step on a toy model: sums that are gathered, added and scattered are those of one learner. */
#include "tests/services/host/toy_steps.h"

/* In name order. */
struct sums {
    struct toy *toy;
    float values[WEIGHTS];
    int at, told, ended;
};

static int sum_keep(void *arg, const struct tpo_chunk *x)
{
    struct sums *s = arg;
    if (x == NULL) {
        s->ended++;
        return TPO_OK;
    }
    assert_string_equal(x->part, "gradient");
    struct tpo_param *const params[] = {s->toy->b1, s->toy->w1, s->toy->w2};
    s->at = 0;
    for (int i = 0; strcmp(params[i]->name, x->name) != 0; i++) s->at += (int)params[i]->size;
    memcpy(s->values + s->at, x->data, sizeof(float) * (size_t)x->count);
    s->told += (int)x->count;
    return TPO_OK;
}

static void gather(struct toy *y, const struct tpo_key *key, uint32_t skipped, struct sums *s)
{
    struct tpo_error err = {0};
    assert_int_equal(y->learner.gather(y->learner.self, key, skipped, sum_keep, s, &err), TPO_OK);
}

static void total_give(struct toy *y, const struct tpo_key *key, const float *total)
{
    struct tpo_error err = {0};
    struct tpo_param *const params[] = {y->b1, y->w1, y->w2}; /* by name */
    for (int i = 0; i < 3; i++) {
        struct tpo_chunk c = {
            .name = params[i]->name, .part = "gradient", .n_dims = params[i]->n_dims, .count = params[i]->size, .data = total};
        memcpy(c.shape, params[i]->shape, sizeof(c.shape));
        assert_int_equal(y->learner.scatter(y->learner.self, key, &c, &err), TPO_OK);
        total += params[i]->size;
    }
    assert_int_equal(y->learner.scatter(y->learner.self, key, NULL, &err), TPO_OK);
}

static void shares_keep_the_bits(void **state)
{
    (void)state;
    enum { M = 8, LANES = 4 };
    struct toy whole, half[2];
    struct tpo_error err = {0};
    float one[WEIGHTS], two[WEIGHTS];
    toy_open(&whole, 1);
    begin(&whole, LANES, M);
    for (int r = 0; r < 2; r++) {
        struct tpo_plan plan = plan_of(LANES, M);
        struct tpo_begun begun;
        plan.first_lane = 2 * r;
        plan.own_lanes = 2;
        toy_open(&half[r], 1);
        assert_int_equal(half[r].learner.begin(half[r].learner.self, "run", &plan, &begun, &err), TPO_OK);
    }
    for (uint64_t s = 1; s <= 3; s++) {
        struct sums sums[2] = {{.toy = &half[0]}, {.toy = &half[1]}};
        struct tpo_key key = key_of(s, s - 1, 0);
        const struct tpo_norm *norms;
        int n;
        step(&whole, s, s - 1, M);
        for (int r = 0; r < 2; r++) {
            struct tpo_forwarded f;
            key.micro_batch = (uint32_t)((1 - r) * M / 2);
            assert_int_equal(forward(&half[r], &key, false, &f, &err), TPO_INVALID_ARGUMENT); /* the other's */
            for (uint32_t m = 0; m < M / 2; m++) {
                key.micro_batch = (uint32_t)r * M / 2 + m;
                if (r == 0 && m == s % 3) gather(&half[r], &key, 0, &sums[r]); /* early: told from within the last Backward */
                assert_int_equal(forward(&half[r], &key, false, &f, &err), TPO_OK);
                assert_int_equal(backward(&half[r], &key, NULL, &err), TPO_OK);
            }
            assert_int_equal(half[r].learner.norms(half[r].learner.self, &key, &norms, &n, &err), TPO_FAILED_PRECONDITION);
            if (r == 1) gather(&half[r], &key, 0, &sums[r]);
            assert_int_equal(sums[r].told, WEIGHTS);
            assert_int_equal(sums[r].ended, 1);
        }
        for (int i = 0; i < WEIGHTS; i++) sums[0].values[i] += sums[1].values[i];
        for (int r = 0; r < 2; r++) {
            total_give(&half[r], &key, sums[0].values);
            finish(&half[r], &key);
        }
    }
    weights_copy(&whole, one);
    for (int r = 0; r < 2; r++) {
        weights_copy(&half[r], two);
        assert_memory_equal(one, two, sizeof(one));
    }
    toy_close(&whole);
    toy_close(&half[0]);
    toy_close(&half[1]);
}

/* What a gather is told while the last Backward runs: the sums of the first layer as they stood when the second layer's left. */
struct early {
    struct toy *toy;
    float first[WIDE * IN], told[WIDE * IN];
    bool within; /* a Backward was under way */
};

static int early_keep(void *arg, const struct tpo_chunk *x)
{
    struct early *e = arg;
    if (x == NULL) return TPO_OK;
    if (strcmp(x->name, e->toy->w1->name) == 0) memcpy(e->told, x->data, sizeof(e->told));
    if (strcmp(x->name, e->toy->w2->name) != 0 || e->toy->w1->grad == NULL) return TPO_OK;
    e->within = true;
    memcpy(e->first, e->toy->w1->grad, sizeof(e->first));
    return TPO_OK;
}

/* The second layer's sum is told before the last micro-batch has added to the first one's. */
static void a_sum_leaves_once_it_is_whole(void **state)
{
    (void)state;
    struct toy y;
    struct tpo_error err = {0};
    struct tpo_forwarded f;
    toy_open(&y, 1);
    begin(&y, 1, 2);
    struct early e = {.toy = &y};
    struct tpo_key key = key_of(1, 0, 0);
    assert_int_equal(y.learner.gather(y.learner.self, &key, 0, early_keep, &e, &err), TPO_OK);
    for (key.micro_batch = 0; key.micro_batch < 2; key.micro_batch++) {
        assert_false(e.within);
        assert_int_equal(forward(&y, &key, false, &f, &err), TPO_OK);
        assert_int_equal(backward(&y, &key, NULL, &err), TPO_OK);
    }
    assert_true(e.within);
    assert_memory_not_equal(e.first, e.told, sizeof(e.told));
    toy_close(&y);
}

/* A head that no micro-batch but the second called: its sums are whole after that one. */
static void what_is_skipped_is_not_waited_for(void **state)
{
    (void)state;
    struct toy y;
    struct tpo_error err = {0};
    struct tpo_forwarded f;
    toy_open(&y, 1);
    begin(&y, 1, 3);
    for (int early = 0; early < 2; early++) {
        struct sums sums = {.toy = &y};
        const struct tpo_key key = key_of(1, 0, 1);
        assert_int_equal(forward(&y, &key, false, &f, &err), TPO_OK);
        if (early) gather(&y, &key, 2, &sums);
        assert_int_equal(sums.ended, 0);
        assert_int_equal(y.learner.gather(y.learner.self, &key, 4, sum_keep, &sums, &err), TPO_INVALID_ARGUMENT);
        assert_string_equal(err.reason, "share");
        assert_int_equal(backward(&y, &key, NULL, &err), TPO_OK);
        if (!early) gather(&y, &key, 2, &sums);
        assert_int_equal(sums.told, WEIGHTS);
        assert_int_equal(sums.ended, 1);
        const struct tpo_key whichever = key_of(0, 0, 0); /* step 0: the one that is open */
        assert_int_equal(y.learner.abort(y.learner.self, &whichever, &err), TPO_OK);
        assert_int_equal(y.learner.abort(y.learner.self, &whichever, &err), TPO_OK);
    }
    toy_close(&y);
}

static void shares_are_aligned_subtrees(void **state)
{
    (void)state;
    static const int wrong[][3] = {{4, 1, 2}, {4, 0, 3}, {4, 4, 1}, {4, 0, 8}, {4, -1, 1}};
    struct toy y;
    toy_open(&y, 1);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct tpo_plan plan = plan_of(wrong[i][0], 8);
        struct tpo_begun begun;
        struct tpo_error err = {0};
        plan.first_lane = wrong[i][1], plan.own_lanes = wrong[i][2];
        assert_int_equal(y.learner.begin(y.learner.self, "run", &plan, &begun, &err), TPO_INVALID_ARGUMENT);
    }
    toy_close(&y);
}

TPO_TESTS(cmocka_unit_test(shares_keep_the_bits), cmocka_unit_test(a_sum_leaves_once_it_is_whole),
          cmocka_unit_test(what_is_skipped_is_not_waited_for), cmocka_unit_test(shares_are_aligned_subtrees))
