/* toy_steps.h -- a toy's learner, called directly: a run, its micro-batches, its steps, its weights. */
#ifndef TPO_TESTS_SERVICES_HOST_TOY_STEPS_H
#define TPO_TESTS_SERVICES_HOST_TOY_STEPS_H

#include "tests/services/host/toy.h"

static inline struct tpo_begun begin(struct toy *y, int lanes, int M)
{
    struct tpo_plan plan = plan_of(lanes, M);
    struct tpo_begun begun;
    struct tpo_error err = {0};
    if (y->learner.begin(y->learner.self, "run", &plan, &begun, &err) != TPO_OK) fail_msg("%s", err.message);
    return begun;
}

/* Forward of micro-batch m: inputs and targets are functions of (step, m). */
static inline int forward(struct toy *y, const struct tpo_key *key, bool want, struct tpo_forwarded *out, struct tpo_error *err)
{
    struct toy_batch b;
    toy_batch(&b, key);
    static const char *const wants[] = {"x"};
    return y->learner.forward(y->learner.self, key, &b.sample, 1, &b.input, 1, wants, want, out, err);
}

static inline int backward(struct toy *y, const struct tpo_key *key, struct tpo_named_tensor *dx, struct tpo_error *err)
{
    struct tpo_named_tensor out[TPO_PORTS_MAX];
    int n = 0;
    const int rc = y->learner.backward(y->learner.self, key, NULL, 0, out, &n, err);
    if (rc == TPO_OK && n > 0 && dx != NULL) *dx = out[0];
    return rc;
}

static inline void finish(struct toy *y, const struct tpo_key *key)
{
    struct tpo_error err = {0};
    const struct tpo_norm *norms;
    int n;
    assert_int_equal(y->learner.norms(y->learner.self, key, &norms, &n, &err), TPO_OK);
    assert_int_equal(y->learner.prepare(y->learner.self, key, .5f, rates, 2, &err), TPO_OK);
    assert_int_equal(y->learner.commit(y->learner.self, key, &err), TPO_OK);
}

/* One step; the loss of its first micro-batch. */
static inline float step(struct toy *y, uint64_t number, uint64_t version, int M)
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

static inline void weights_copy(struct toy *y, float *to)
{
    memcpy(to, y->w1->data, sizeof(float) * WIDE * IN);
    memcpy(to + WIDE * IN, y->b1->data, sizeof(float) * WIDE);
    memcpy(to + WIDE * IN + WIDE, y->w2->data, sizeof(float) * 3 * WIDE);
}

#endif
