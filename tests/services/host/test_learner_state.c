/* The direct learner's state on a toy model: export, import, what need not come. */
#include "tests/services/host/toy_steps.h"

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

TPO_TESTS(cmocka_unit_test(export_and_import_carry_the_run), cmocka_unit_test(pieces_that_do_not_fit_are_refused),
          cmocka_unit_test(frozen_tensors_can_be_replaced), cmocka_unit_test(what_is_held_need_not_come))
