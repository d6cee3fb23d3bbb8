/* toy.h -- a model of three tensors with a loss, a learner over it and a plan, for the tests of the learner. */
#ifndef TPO_TESTS_SERVICES_HOST_TOY_H
#define TPO_TESTS_SERVICES_HOST_TOY_H

#include "kernels/vector.h"
#include "services/host/learner.h"
#include "tests/support/test.h"

#define IN      6
#define WIDE    5
#define ROWS    4
#define WEIGHTS (WIDE * IN + WIDE + 3 * WIDE)

/* y = w2 relu(w1 x + b1); loss "fit" = squared error to the sample's target; output "y". */
struct toy {
    struct tpo_params params;
    struct tpo_param *w1, *b1, *w2;
    struct tpo_model model;
    struct tpo_stream *stream;
    struct tpo_learner learner;
    int forwards;
};

static inline int toy_forward(void *self, struct tpo_tape *t, struct tpo_forward *f, struct tpo_error *err)
{
    struct toy *y = self;
    (void)err;
    y->forwards++;
    struct tpo_tensor *x = tpo_forward_input(f, "x");
    struct tpo_tensor *out = tpo_linear(t, tpo_act_relu(t, tpo_linear(t, x, y->w1, y->b1)), y->w2, NULL);
    if (out == NULL) return tpo_tape_error(t);
    tpo_forward_output(f, "y", out);
    if (f->wants_loss(f->plan, "fit"))
        tpo_forward_loss(f, "fit", tpo_loss_mse(t, out, f->samples[0].targets[0].data, NULL, 1.0f / ROWS));
    return tpo_tape_error(t);
}

static inline void toy_open(struct toy *y, int threads)
{
    struct tpo_error err;
    memset(y, 0, sizeof(*y));
    assert_int_equal(tpo_stream_open(&y->stream, "cpu", threads, &err), TPO_OK);
    y->w1 = tpo_params_declare(&y->params, TPO_INIT_FAN_IN, 1, TPO_SHAPE(WIDE, IN), "toy.w1.weight");
    y->b1 = tpo_params_declare(&y->params, TPO_INIT_NORMAL, 1, TPO_SHAPE(WIDE), "toy.w1.bias");
    y->w2 = tpo_params_declare(&y->params, TPO_INIT_FAN_IN, 1, TPO_SHAPE(3, WIDE), "toy.w2.weight");
    assert_int_equal(tpo_params_random(&y->params, y->stream, 5, &err), TPO_OK);
    y->model = (struct tpo_model){.stage = "toy", .self = y, .params = &y->params, .forward = toy_forward};
    assert_int_equal(tpo_learner_open_direct(&y->learner, &y->model, y->stream, &err), TPO_OK);
}

static inline void toy_close(struct toy *y)
{
    y->learner.close(y->learner.self);
    tpo_params_free(&y->params, y->stream);
    tpo_stream_close(y->stream);
}

static const char *const hidden[] = {"toy.w*.weight"}, *const rest[] = {"*"};
static const struct tpo_group groups[] = {
    {.name = "matrices", .patterns = hidden, .n_patterns = 1, .optimiser = TPO_MUON, .beta1 = .9f, .weight_decay = .01f},
    {.name = "rest",
     .patterns = rest,
     .n_patterns = 1,
     .optimiser = TPO_ADAMW,
     .beta1 = .9f,
     .beta2 = .99f,
     .eps = 1e-8f,
     .clipped = true}};
static const struct tpo_loss_weight losses[] = {{"fit", 2}};
__attribute__((unused)) static const float rates[] = {.05f, .02f};

static inline struct tpo_plan plan_of(int lanes, int M)
{
    return (struct tpo_plan){
        .seed = 1, .lanes = lanes, .micro_batches = M, .groups = groups, .n_groups = 2, .losses = losses, .n_losses = 1};
}

static inline struct tpo_key key_of(uint64_t step, uint64_t version, uint32_t m)
{
    struct tpo_key key = {.run = "run", .step = step, .version = version, .micro_batch = m};
    return key;
}

/* Input and target of a micro-batch, functions of (step, m). Borrows itself: fill it where it stays. */
struct toy_batch {
    float x[ROWS * IN], goal[ROWS * 3];
    struct tpo_named_tensor input, target;
    struct tpo_sample sample;
};

static inline void toy_batch(struct toy_batch *b, const struct tpo_key *key)
{
    for (int i = 0; i < ROWS * IN; i++) b->x[i] = tpo_random_normal(key->step * 100 + key->micro_batch, (uint64_t)i);
    for (int i = 0; i < ROWS * 3; i++) b->goal[i] = b->x[i] - b->x[i + 3];
    b->input = (struct tpo_named_tensor){.name = "x", .dtype = TPO_F32, .n_dims = 2, .shape = {ROWS, IN}, .data = b->x};
    b->target = (struct tpo_named_tensor){.name = "goal", .dtype = TPO_F32, .n_dims = 2, .shape = {ROWS, 3}, .data = b->goal};
    b->sample = (struct tpo_sample){.n_targets = 1, .targets = &b->target};
}

#endif
