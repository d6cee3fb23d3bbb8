/* The direct learner on a toy model: lanes, repeats, the two-phase step, export and import. */
#include "tests/support/test.h"

#include <math.h>

#include "services/host/learner_state.h"
#include "tests/services/host/toy.h"

static struct tpo_begun begin(struct toy *y, int lanes, int M)
{
    struct tpo_plan plan = plan_of(lanes, M);
    struct tpo_begun begun;
    struct tpo_error err = {0};
    if (y->learner.begin(y->learner.self, "run", &plan, &begun, &err) != TPO_OK) fail_msg("%s", err.message);
    return begun;
}

/* Forward of micro-batch m: inputs and targets are functions of (step, m). */
static int forward(struct toy *y, const struct tpo_key *key, bool want, struct tpo_forwarded *out, struct tpo_error *err)
{
    struct toy_batch b;
    toy_batch(&b, key);
    static const char *const wants[] = {"x"};
    return y->learner.forward(y->learner.self, key, &b.sample, 1, &b.input, 1, wants, want, out, err);
}

static int backward(struct toy *y, const struct tpo_key *key, struct tpo_named_tensor *dx, struct tpo_error *err)
{
    struct tpo_named_tensor out[TPO_PORTS_MAX];
    int n = 0;
    const int rc = y->learner.backward(y->learner.self, key, NULL, 0, out, &n, err);
    if (rc == TPO_OK && n > 0 && dx != NULL) *dx = out[0];
    return rc;
}

/* One step; the loss of its first micro-batch. */
static float step(struct toy *y, uint64_t number, uint64_t version, int M)
{
    struct tpo_error err = {0};
    struct tpo_forwarded f;
    float loss = 0;
    struct tpo_key key = key_of(number, version, 0);
    for (int m = 0; m < M; m++) {
        key.micro_batch = (uint32_t)m;
        assert_int_equal(forward(y, &key, true, &f, &err), TPO_OK);
        if (m == 0) loss = f.losses[0].value;
        assert_int_equal(backward(y, &key, NULL, &err), TPO_OK);
    }
    const struct tpo_norm *norms;
    int n;
    assert_int_equal(y->learner.norms(y->learner.self, &key, &norms, &n, &err), TPO_OK);
    assert_int_equal(n, 3);
    assert_int_equal(y->learner.prepare(y->learner.self, &key, .5f, rates, 2, &err), TPO_OK);
    assert_int_equal(y->learner.commit(y->learner.self, &key, &err), TPO_OK);
    return loss;
}

static void weights_copy(struct toy *y, float *to)
{
    memcpy(to, y->w1->data, sizeof(float) * WIDE * IN);
    memcpy(to + WIDE * IN, y->b1->data, sizeof(float) * WIDE);
    memcpy(to + WIDE * IN + WIDE, y->w2->data, sizeof(float) * 3 * WIDE);
}

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

/* Everything a has, in pieces of three elements, into b. */
static void state_copy(struct toy *a, struct toy *b, uint64_t version)
{
    struct tpo_error err = {0};
    struct tpo_chunk c;
    for (int at = 0;; at++) {
        assert_int_equal(a->learner.export_state(a->learner.self, at, 0, 0, &c, &err), TPO_OK);
        if (c.name == NULL) break;
        for (int64_t offset = 0;; offset += c.count) {
            assert_int_equal(a->learner.export_state(a->learner.self, at, offset, 3, &c, &err), TPO_OK);
            if (c.count == 0) break;
            assert_int_equal(b->learner.import_state(b->learner.self, version, &c, &err), TPO_OK);
        }
    }
    assert_int_equal(b->learner.import_state(b->learner.self, version, NULL, &err), TPO_OK);
}

static void export_and_import_carry_the_run(void **state)
{
    (void)state;
    struct toy a, b;
    struct tpo_error err = {0};
    float one[WEIGHTS], two[WEIGHTS];
    toy_open(&a, 1);
    toy_open(&b, 1);
    begin(&a, 1, 1);
    begin(&b, 1, 1);
    for (uint64_t s = 1; s <= 4; s++) step(&a, s, s - 1, 1);
    state_copy(&a, &b, 4);
    for (uint64_t s = 5; s <= 7; s++) {
        step(&a, s, s - 1, 1);
        step(&b, s, s - 1, 1);
    }
    weights_copy(&a, one);
    weights_copy(&b, two);
    assert_memory_equal(one, two, sizeof(one));
    /* The weights stay when a run ends, and go back to what was loaded when the learner closes. */
    assert_int_equal(a.learner.end(a.learner.self, &err), TPO_OK);
    weights_copy(&a, two);
    assert_memory_equal(one, two, sizeof(one));
    assert_null(a.w1->grad);
    toy_close(&a);
    toy_close(&b);
}

static void pieces_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    struct toy y;
    struct tpo_error err = {0};
    float data[64] = {0};
    toy_open(&y, 1);
    struct tpo_chunk c = {.name = "toy.w1.bias", .part = "weight", .n_dims = 1, .shape = {WIDE}, .count = WIDE, .data = data};
    assert_int_equal(y.learner.import_state(y.learner.self, 1, &c, &err), TPO_FAILED_PRECONDITION); /* no run */
    begin(&y, 1, 1);
    assert_int_equal(y.learner.import_state(y.learner.self, 1, &c, &err), TPO_OK);
    c.offset = 1;
    assert_int_equal(y.learner.import_state(y.learner.self, 1, &c, &err), TPO_INVALID_ARGUMENT);
    c.offset = INT64_MAX;
    assert_int_equal(y.learner.import_state(y.learner.self, 1, &c, &err), TPO_INVALID_ARGUMENT);
    c.offset = 0, c.count = -1;
    assert_int_equal(y.learner.import_state(y.learner.self, 1, &c, &err), TPO_INVALID_ARGUMENT);
    c.count = WIDE, c.part = "moment";
    assert_int_equal(y.learner.import_state(y.learner.self, 1, &c, &err), TPO_INVALID_ARGUMENT);
    c.part = "weight", c.name = "toy.w9.bias";
    assert_int_equal(y.learner.import_state(y.learner.self, 1, &c, &err), TPO_NOT_FOUND);
    toy_close(&y);
}

/* A tensor that no group owns takes what is imported, and what was loaded comes back at the end. */
static void frozen_tensors_can_be_replaced(void **state)
{
    (void)state;
    struct toy y;
    struct tpo_error err = {0};
    struct tpo_begun begun;
    const float *loaded, bias[WIDE] = {1, 2, 3, 4, 5};
    struct tpo_plan plan = plan_of(1, 1);
    plan.n_groups = 0;
    toy_open(&y, 1);
    loaded = y.b1->data;
    assert_int_equal(y.learner.begin(y.learner.self, "run", &plan, &begun, &err), TPO_OK);
    struct tpo_chunk c = {
        .name = "toy.w1.bias", .part = "start", .n_dims = 1, .shape = {WIDE}, .offset = 2, .count = 3, .data = bias};
    assert_int_equal(y.learner.import_state(y.learner.self, 0, &c, &err), TPO_OK);
    assert_true(y.b1->data[0] == loaded[0] && y.b1->data[1] == loaded[1]);
    assert_memory_equal(y.b1->data + 2, bias, 3 * sizeof(float));
    y.learner.close(y.learner.self);
    assert_ptr_equal(y.b1->data, loaded);
    tpo_params_free(&y.params, y.stream);
    tpo_stream_close(y.stream);
}

static struct tpo_chunk start_of(const struct tpo_param *p)
{
    struct tpo_chunk c = {.name = p->name, .part = "start", .n_dims = p->n_dims};
    memcpy(c.shape, p->shape, sizeof(c.shape));
    return c;
}

/* The sum of |m| of the parameter's first moment. */
static double moment(struct toy *y, const struct tpo_param *p)
{
    struct tpo_error err = {0};
    struct tpo_chunk x;
    double sum = 0;
    for (int at = 0; y->learner.export_state(y->learner.self, at, 0, p->size, &x, &err) == TPO_OK && x.name != NULL; at++)
        if (strcmp(x.name, p->name) == 0 && strcmp(x.part, "m") == 0)
            for (int64_t i = 0; i < x.count; i++) sum += x.data[i] < 0 ? -x.data[i] : x.data[i];
    return sum;
}

/* A tensor whose digest is the one asked for counts as imported and moves nowhere; of another one nothing is touched. */
static void what_is_held_need_not_come(void **state)
{
    (void)state;
    struct toy y;
    struct tpo_error err = {0};
    struct tpo_begun begun;
    uint8_t digest[TPO_SHA256_BYTES];
    bool held = true;
    toy_open(&y, 1);
    struct tpo_chunk bias = start_of(y.b1);
    tpo_sha256(digest, y.b1->data, sizeof(float) * WIDE);
    assert_int_equal(y.learner.holds(y.learner.self, &bias, digest, &held, &err), TPO_FAILED_PRECONDITION); /* no run */
    begin(&y, 1, 1);
    step(&y, 1, 0, 1);
    assert_true(moment(&y, y.b1) > 0);
    assert_int_equal(y.learner.holds(y.learner.self, &bias, digest, &held, &err), TPO_OK); /* that of before the step */
    assert_false(held);
    assert_true(moment(&y, y.b1) > 0);
    const float *at = y.b1->data;
    tpo_sha256(digest, at, sizeof(float) * WIDE);
    assert_int_equal(y.learner.holds(y.learner.self, &bias, digest, &held, &err), TPO_OK);
    assert_true(held);
    assert_ptr_equal(y.b1->data, at);
    assert_true(moment(&y, y.b1) == 0);
    assert_true(moment(&y, y.w1) > 0);
    bias.shape[0]++;
    assert_int_equal(y.learner.holds(y.learner.self, &bias, digest, &held, &err), TPO_INVALID_ARGUMENT);
    bias.name = "toy.w9.bias";
    assert_int_equal(y.learner.holds(y.learner.self, &bias, digest, &held, &err), TPO_NOT_FOUND);
    toy_close(&y);

    struct tpo_plan plan = plan_of(1, 1);
    plan.n_groups = 0;
    toy_open(&y, 1);
    at = y.w2->data;
    assert_int_equal(y.learner.begin(y.learner.self, "run", &plan, &begun, &err), TPO_OK);
    const struct tpo_chunk frozen = start_of(y.w2);
    tpo_sha256(digest, at, sizeof(float) * (size_t)y.w2->size);
    assert_int_equal(y.learner.holds(y.learner.self, &frozen, digest, &held, &err), TPO_OK);
    assert_true(held);
    assert_ptr_equal(y.w2->data, at);
    toy_close(&y);
}

/* --- shares ---------------------------------------------------------------------------------------------------------------------------- */

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

static void gather(struct toy *y, const struct tpo_key *key, uint32_t left_out, struct sums *s)
{
    struct tpo_error err = {0};
    struct tpo_key own = *key;
    own.micro_batch = left_out;
    assert_int_equal(y->learner.gather(y->learner.self, &own, sum_keep, s, &err), TPO_OK);
}

static int sum_refuse(void *arg, const struct tpo_chunk *x)
{
    (void)arg, (void)x;
    fail_msg("a sum was told");
    return TPO_OK;
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

static void finish(struct toy *y, const struct tpo_key *key)
{
    struct tpo_error err = {0};
    const struct tpo_norm *norms;
    int n;
    assert_int_equal(y->learner.norms(y->learner.self, key, &norms, &n, &err), TPO_OK);
    assert_int_equal(y->learner.prepare(y->learner.self, key, .5f, rates, 2, &err), TPO_OK);
    assert_int_equal(y->learner.commit(y->learner.self, key, &err), TPO_OK);
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

/* A head that no micro-batch but the second called: its sums are whole after that one. */
static void what_is_left_out_is_not_waited_for(void **state)
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
            REFUSED(l->gather(l->self, &k, sum_refuse, NULL, &err));
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
            const struct tpo_named_tensor wrong[] = {{"z", TPO_F32, 2, {ROWS, 3}, bad}, {"y", TPO_F32, 2, {ROWS, 2}, bad}};
            struct tpo_named_tensor out[TPO_PORTS_MAX];
            int n;
            for (int i = 0; with && i < 2; i++)
                assert_int_equal(y.learner.backward(y.learner.self, &key, &wrong[i], 1, out, &n, &err), TPO_INVALID_ARGUMENT);
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

TPO_TESTS(cmocka_unit_test(steps_lower_the_loss), cmocka_unit_test(lanes_and_threads_keep_the_sum),
          cmocka_unit_test(repeats_add_nothing), cmocka_unit_test(abort_leaves_no_trace), cmocka_unit_test(wrong_calls_are_refused),
          cmocka_unit_test(export_and_import_carry_the_run), cmocka_unit_test(pieces_that_do_not_fit_are_refused),
          cmocka_unit_test(frozen_tensors_can_be_replaced), cmocka_unit_test(what_is_held_need_not_come),
          cmocka_unit_test(shares_keep_the_bits), cmocka_unit_test(shares_are_aligned_subtrees),
          cmocka_unit_test(a_wrong_key_is_refused_by_every_call), cmocka_unit_test(what_was_refused_can_be_asked_again),
          cmocka_unit_test(nonsense_is_not_prepared), cmocka_unit_test(plans_that_cannot_be_are_refused),
          cmocka_unit_test(nothing_to_learn_keeps_no_tape), cmocka_unit_test(what_is_left_out_is_not_waited_for),
          cmocka_unit_test(patterns_match_whole_names))
