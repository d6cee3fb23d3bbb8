/* Every operation of the tape: its gradient against central differences, and the tape's own rules. */
#include "tests/support/test.h"

#include <math.h>

#include "kernels/vector.h"
#include "nn/budget.h"
#include "nn/tape.h"

#define LEAVES 4

/* A graph under test: leaves 0.. are inputs, their sizes given; `build` makes the output. */
struct graph {
    int n;
    int rows[LEAVES], cols[LEAVES];
    struct tpo_tensor *(*build)(struct tpo_tape *t, struct tpo_tensor **x);
    float step; /* of the difference quotient */
};

/* Parameters of the graphs that need some, by shape; their gradients are checked as leaves' are. */
static struct tpo_param params[LEAVES];
static float values[LEAVES][4096], param_grads[LEAVES][4096];

static void param_set(int i, int64_t out, int64_t in)
{
    params[i] = (struct tpo_param){
        .n_dims = in > 0 ? 2 : 1, .shape = {out, in}, .size = out * (in > 0 ? in : 1), .data = values[i], .grad = param_grads[i]};
    memset(param_grads[i], 0, sizeof(param_grads[i]));
    for (int64_t k = 0; k < params[i].size; k++) values[i][k] = 0.7F * tpo_random_normal(100 + (uint64_t)i, (uint64_t)k);
}

static struct tpo_stream *stream;

static double run(const struct graph *g, float **leaf, const float *weight, float **grads)
{
    struct tpo_tape *t;
    struct tpo_tensor *x[LEAVES], *y;
    assert_int_equal(tpo_tape_open(&t, stream, grads != NULL), TPO_OK);
    for (int i = 0; i < g->n; i++) x[i] = tpo_input(t, leaf[i], g->rows[i], g->cols[i], true);
    y = g->build(t, x);
    assert_int_equal(tpo_tape_error(t), TPO_OK);
    assert_non_null(y);
    assert_int_equal(y->ld, y->cols);
    double sum = 0;
    for (int64_t k = 0; k < (int64_t)y->rows * y->cols; k++) sum += (double)weight[k] * (double)y->data[k];
    if (grads != NULL) {
        tpo_seed(t, y, weight, 1);
        assert_int_equal(tpo_tape_backward(t), TPO_OK);
        for (int i = 0; i < g->n; i++) memcpy(grads[i], x[i]->grad, (size_t)g->rows[i] * (size_t)g->cols[i] * sizeof(float));
    }
    tpo_tape_close(t);
    return sum;
}

static void compare(const struct graph *g, float **leaf, const float *weight, float *x, const float *grad, int64_t n,
                    const char *what)
{
    double largest = 0;
    for (int64_t k = 0; k < n; k++) largest = fmax(largest, fabs((double)grad[k]));
    for (int64_t k = 0; k < n; k++) {
        const float kept = x[k];
        x[k] = kept + g->step;
        const double high = run(g, leaf, weight, NULL);
        x[k] = kept - g->step;
        const double low = run(g, leaf, weight, NULL);
        x[k] = kept;
        const double expected = (high - low) / (2 * (double)g->step);
        if (fabs(expected - (double)grad[k]) <= 2e-3 + 1e-2 * largest) continue;
        fail_msg("%s[%lld]: difference quotient %g, gradient %g", what, (long long)k, expected, (double)grad[k]);
    }
}

static void check(const struct graph *g, int n_params)
{
    float leaf_data[LEAVES][4096], grad_data[LEAVES][4096], weight[4096];
    float *leaf[LEAVES], *grads[LEAVES];
    for (int i = 0; i < LEAVES; i++) {
        leaf[i] = leaf_data[i];
        grads[i] = grad_data[i];
        for (int k = 0; k < 4096; k++) leaf_data[i][k] = tpo_random_normal(7 + (uint64_t)i, (uint64_t)k);
    }
    for (int k = 0; k < 4096; k++) weight[k] = tpo_random_normal(3, (uint64_t)k);
    for (int i = 0; i < n_params; i++) memset(param_grads[i], 0, sizeof(param_grads[i]));
    run(g, leaf, weight, grads);
    for (int i = 0; i < g->n; i++) compare(g, leaf, weight, leaf[i], grads[i], (int64_t)g->rows[i] * g->cols[i], "input");
    for (int i = 0; i < n_params; i++) {
        float once[4096];
        memcpy(once, param_grads[i], sizeof(once));
        compare(g, leaf, weight, values[i], once, params[i].size, "parameter");
    }
}

static void open_stream(void)
{
    assert_int_equal(tpo_stream_open(&stream, "cpu", 1, NULL), TPO_OK);
}

static struct tpo_tensor *build_linear(struct tpo_tape *t, struct tpo_tensor **x)
{
    return tpo_linear(t, x[0], &params[0], &params[1]);
}
static void linear(void **state)
{
    (void)state;
    open_stream();
    param_set(0, 5, 7);
    param_set(1, 5, 0);
    check(&(struct graph){.n = 1, .rows = {3}, .cols = {7}, .build = build_linear, .step = 1e-2F}, 2);
}

/* A view as operand, and two uses of one tensor. */
static struct tpo_tensor *build_columns(struct tpo_tape *t, struct tpo_tensor **x)
{
    struct tpo_tensor *a = tpo_linear(t, tpo_columns(t, x[0], 2, 4), &params[0], NULL);
    return tpo_plus(t, a, tpo_product(t, tpo_columns(t, x[0], 0, 3), x[1], NULL));
}
static void columns(void **state)
{
    (void)state;
    open_stream();
    param_set(0, 5, 4);
    check(&(struct graph){.n = 2, .rows = {3, 5}, .cols = {7, 3}, .build = build_columns, .step = 1e-2F}, 1);
}

static struct tpo_tensor *build_lora(struct tpo_tape *t, struct tpo_tensor **x)
{
    return tpo_linear_lora(t, x[0], &params[0], &params[1], &params[2], 0.5F, 0.25F, 11);
}
static void lora(void **state)
{
    (void)state;
    open_stream();
    param_set(0, 6, 5);
    param_set(1, 2, 5);
    param_set(2, 6, 2);
    check(&(struct graph){.n = 1, .rows = {4}, .cols = {5}, .build = build_lora, .step = 1e-2F}, 3);
}

static struct tpo_tensor *build_norms(struct tpo_tape *t, struct tpo_tensor **x)
{
    struct tpo_tensor *a = tpo_norm_layer(t, x[0], &params[0], &params[1], 1e-6F);
    return tpo_plus(t, a, tpo_norm_rms(t, x[0], &params[2], 1e-5F));
}
static void norms(void **state)
{
    (void)state;
    open_stream();
    for (int i = 0; i < 3; i++) param_set(i, 9, 0);
    check(&(struct graph){.n = 1, .rows = {3}, .cols = {9}, .build = build_norms, .step = 1e-2F}, 3);
}

static struct tpo_tensor *build_activations(struct tpo_tape *t, struct tpo_tensor **x)
{
    struct tpo_tensor *a = tpo_act_swiglu(t, x[0], tpo_act_gelu(t, x[1]));
    return tpo_plus(t, tpo_act_relu(t, a), tpo_times(t, x[0], -1.5F));
}
static void activations(void **state)
{
    (void)state;
    open_stream();
    check(&(struct graph){.n = 2, .rows = {3, 3}, .cols = {7, 7}, .build = build_activations, .step = 1e-3F}, 0);
}

static struct tpo_tensor *build_moves(struct tpo_tape *t, struct tpo_tensor **x)
{
    const int32_t twice[] = {2, 0, 2, -1}, kept[] = {0, -1, 2, 3}, put[] = {-1, 0, -1, 1}; /* -1: zeros; both: the later one */
    struct tpo_tensor *a = tpo_take_rows(t, x[0], twice, 4);
    a = tpo_pick_rows(t, 2, (struct tpo_tensor *const[]){a, x[1]}, (const int32_t *const[]){kept, put}, 4);
    a = tpo_plus_rows(t, a, x[1]);
    return tpo_reshape(t, tpo_concat_rows(t, a, tpo_plus(t, x[0], x[0])), 5, 7);
}
static void moves(void **state)
{
    (void)state;
    open_stream();
    check(&(struct graph){.n = 2, .rows = {3, 2}, .cols = {5, 5}, .build = build_moves, .step = 1e-2F}, 0);
}

static struct tpo_tensor *build_drops(struct tpo_tape *t, struct tpo_tensor **x)
{
    return tpo_drop_groups(t, tpo_drop(t, x[0], 0.3F, 5), 0.5F, 2, 9);
}
static void drops(void **state)
{
    (void)state;
    open_stream();
    check(&(struct graph){.n = 1, .rows = {12}, .cols = {5}, .build = build_drops, .step = 1e-2F}, 0);
}

/* Two samples of 4 queries over 4 keys, grouped heads, segments, one sample short; q rotated. */
static const int32_t key_len[] = {4, 3}, segments[] = {0, 0, 1, 2, 0, 1, 1, 2}, positions[] = {0, 1, 2, 2, 0, 1, 2, 3};
static const struct tpo_attention_shape attention_shape = {
    .B = 2, .T = 4, .S = 4, .H = 2, .G = 1, .D = 4, .scale = 0.5F, .causal = 1, .key_len = key_len, .segments = segments};
static struct tpo_tensor *build_attend(struct tpo_tape *t, struct tpo_tensor **x)
{
    const struct tpo_angles angles = tpo_angles_make(t, positions, 8, 1000, 4);
    return tpo_attend(t, tpo_rotate(t, x[0], &angles, 2), tpo_rotate(t, x[1], &angles, 1), x[2], &attention_shape);
}
static void attend(void **state)
{
    (void)state;
    open_stream();
    check(&(struct graph){.n = 3, .rows = {8, 8, 8}, .cols = {8, 4, 4}, .build = build_attend, .step = 1e-2F}, 0);
}

/* q, k and v read where a fused projection left them. */
static struct tpo_tensor *build_fused(struct tpo_tape *t, struct tpo_tensor **x)
{
    const struct tpo_attention_shape shape = {.B = 2, .T = 3, .S = 3, .H = 2, .G = 2, .D = 3, .scale = 0.5F};
    return tpo_attend(t, tpo_columns(t, x[0], 0, 6), tpo_columns(t, x[0], 6, 6), tpo_columns(t, x[0], 12, 6), &shape);
}
static void attend_fused(void **state)
{
    (void)state;
    open_stream();
    check(&(struct graph){.n = 1, .rows = {6}, .cols = {18}, .build = build_fused, .step = 1e-2F}, 0);
}

static struct tpo_tensor *build_attention_rows(struct tpo_tape *t, struct tpo_tensor **x)
{
    static const int32_t rows[] = {0, 3, 1, 1, 2, 0};
    static const float target[] = {0.5F, 0.5F, 0, 0, 0, 0.25F, 0.75F, 0}, weight[] = {1, 0.5F};
    return tpo_loss_attention_rows(t, x[0], x[1], &attention_shape, rows, target, weight, 2);
}
static void attention_rows(void **state)
{
    (void)state;
    open_stream();
    check(&(struct graph){.n = 2, .rows = {8, 8}, .cols = {8, 4}, .build = build_attention_rows, .step = 1e-2F}, 0);
}

static struct tpo_tensor *build_losses(struct tpo_tape *t, struct tpo_tensor **x)
{
    static const int32_t label[] = {2, -100, 4};
    static const float weight[] = {1, 3, 0.5F}, target[15] = {0.3F, -2, 1};
    struct tpo_tensor *a = tpo_loss_cross_entropy(t, x[0], label, weight, 0.5F);
    a = tpo_loss_sum(t, a, tpo_loss_l1(t, x[0], target, weight, 0.25F));
    a = tpo_loss_sum(t, a, tpo_loss_mse(t, x[0], target, NULL, 0.125F));
    return tpo_loss_sum(t, a, tpo_loss_box(t, x[1], (const float[]){0.1F, 0.2F, 0.5F, 0.6F, 0, 0, 1, 1}, 2, 0.2F));
}
static void losses(void **state)
{
    (void)state;
    open_stream();
    check(&(struct graph){.n = 2, .rows = {3, 2}, .cols = {5, 4}, .build = build_losses, .step = 1e-3F}, 0);
}

/* A gradient adds to what a parameter's grad already holds, and a frozen parameter keeps none. */
static void parameters_accumulate(void **state)
{
    (void)state;
    open_stream();
    struct tpo_tape *t;
    param_set(0, 3, 2);
    param_set(1, 3, 0);
    params[1].grad = NULL;
    assert_int_equal(tpo_tape_open(&t, stream, true), TPO_OK);
    float first[6] = {0};
    for (int pass = 0; pass < 2; pass++) {
        tpo_tape_reset(t, true);
        struct tpo_tensor *y = tpo_linear(t, tpo_input(t, (const float[]){1, 2}, 1, 2, false), &params[0], &params[1]);
        tpo_seed(t, y, NULL, 0.5F);
        assert_int_equal(tpo_tape_backward(t), TPO_OK);
        if (pass == 0) memcpy(first, param_grads[0], sizeof(first));
    }
    for (int k = 0; k < 6; k++) assert_float_equal(param_grads[0][k], 2 * first[k], 1e-6F);
    assert_float_equal(first[0], 0.5F, 1e-6F);
    for (int k = 0; k < 3; k++) assert_float_equal(param_grads[1][k], 0, 0);
    tpo_tape_close(t);
}

/* The first error stays; operations after it answer NULL and take NULL; a reset forgets it. */
static void errors_stick(void **state)
{
    (void)state;
    open_stream();
    struct tpo_tape *t;
    assert_int_equal(tpo_tape_open(&t, stream, true), TPO_OK);
    struct tpo_tensor *a = tpo_input(t, NULL, 2, 3, false), *b = tpo_input(t, NULL, 3, 2, false);
    assert_null(tpo_plus(t, a, b));
    assert_int_equal(tpo_tape_error(t), TPO_EINVAL);
    assert_null(tpo_act_gelu(t, a));
    assert_null(tpo_plus(t, NULL, a));
    assert_null(tpo_linear(t, NULL, NULL, NULL));
    assert_true(isnan(tpo_value(t, NULL)));
    assert_int_equal(tpo_tape_backward(t), TPO_EINVAL);
    tpo_tape_reset(t, true);
    assert_non_null(tpo_act_gelu(t, tpo_input(t, NULL, 2, 3, false)));
    assert_null(tpo_input(t, NULL, 0, 3, false));
    assert_int_equal(tpo_tape_error(t), TPO_EINVAL);
    tpo_tape_close(t);
}

/* An input nobody used has a gradient of zeros; a tape that does not record keeps no gradient at all. */
static void unused_input(void **state)
{
    (void)state;
    open_stream();
    struct tpo_tape *t;
    assert_int_equal(tpo_tape_open(&t, stream, true), TPO_OK);
    struct tpo_tensor *x = tpo_input(t, (const float[]){1, 2}, 1, 2, true);
    assert_int_equal(tpo_tape_backward(t), TPO_OK);
    assert_non_null(x->grad);
    assert_float_equal(x->grad[1], 0, 0);
    tpo_tape_reset(t, false);
    struct tpo_tensor *y = tpo_times(t, tpo_input(t, (const float[]){1, 2}, 1, 2, true), 2);
    assert_false(y->needs_grad);
    tpo_tape_close(t);
}

/* A scope without gradients leaves one tensor and gives the rest of its memory back; one with gradients leaves all of it. */
static void scopes_give_back(void **state)
{
    (void)state;
    open_stream();
    struct tpo_tape *t;
    const float data[4] = {1, -2, 3, -4};
    for (int record = 0; record < 2; record++) {
        assert_int_equal(tpo_tape_open(&t, stream, record != 0), TPO_OK);
        struct tpo_tensor *x = tpo_input(t, data, 2, 2, record != 0);
        float *before = NULL;
        for (int layer = 0; layer < 5; layer++) {
            const struct tpo_scope scope = tpo_scope_begin(t);
            struct tpo_tensor *y = tpo_plus(t, tpo_times(t, x, 2), tpo_times(t, x, 1));
            y = tpo_scope_end(t, scope, tpo_times(t, y, 0.5F));
            if (layer > 0 && record == 0) assert_int_equal(y->data - before, 16); /* one block of 64 bytes further */
            before = y->data;
            x = y;
        }
        for (int k = 0; k < 4; k++) assert_float_equal(x->data[k], data[k] * 7.59375F, 1e-6F);
        tpo_tape_close(t);
    }
}

/* When a gradient is said to be whole it is what it is at the end; the parameters told first are those used last. */
static struct tpo_param *told[LEAVES];
static float told_grads[LEAVES][4096];
static int n_told;
/* Layers below the first that learns record nothing, those above it record and have no gradient of their own. */
static void frozen_layers_record_nothing(void **state)
{
    (void)state;
    struct tpo_tape *t;
    float input[4 * 5] = {1, -2, 3}, untouched[25] = {0};
    open_stream();
    for (int i = 0; i < 3; i++) param_set(i, 5, 5);
    params[0].grad = params[2].grad = NULL;
    assert_int_equal(tpo_tape_open(&t, stream, true), TPO_OK);
    const void *const none = tpo_scope_begin(t).last;
    struct tpo_tensor *below = tpo_act_gelu(t, tpo_linear(t, tpo_input(t, input, 4, 5, false), &params[0], NULL));
    assert_false(below->needs_grad);
    assert_ptr_equal(tpo_scope_begin(t).last, none);
    struct tpo_tensor *learning = tpo_linear(t, below, &params[1], NULL);
    const void *const first = tpo_scope_begin(t).last;
    assert_ptr_not_equal(first, none);
    struct tpo_tensor *above = tpo_linear(t, learning, &params[2], NULL);
    assert_ptr_not_equal(tpo_scope_begin(t).last, first);
    tpo_seed(t, above, NULL, 1);
    assert_int_equal(tpo_tape_backward(t), TPO_OK);
    assert_null(below->grad);
    assert_memory_equal(param_grads[0], untouched, sizeof(untouched));
    assert_memory_not_equal(param_grads[1], untouched, sizeof(untouched));
    assert_memory_equal(param_grads[2], untouched, sizeof(untouched));
    tpo_tape_close(t);
}

static void on_complete(void *arg, struct tpo_param *p)
{
    assert_ptr_equal(arg, params);
    memcpy(told_grads[p - params], p->grad, sizeof(told_grads[0]));
    told[n_told++] = p;
}

static void whole_gradients_are_told(void **state)
{
    (void)state;
    struct tpo_tape *t;
    float x[12];
    for (int k = 0; k < 12; k++) x[k] = tpo_random_normal(9, (uint64_t)k);
    param_set(0, 4, 3);
    param_set(1, 4, 4);
    param_set(2, 4, 0);
    assert_int_equal(tpo_stream_open(&stream, "cpu", 1, NULL), TPO_OK);
    assert_int_equal(tpo_tape_open(&t, stream, true), TPO_OK);
    for (int pass = 0; pass < 2; pass++) {
        n_told = 0;
        tpo_tape_reset(t, true);
        struct tpo_tensor *y = tpo_linear(t, tpo_input(t, x, 4, 3, false), &params[0], &params[2]);
        for (int layer = 0; layer < 3; layer++) y = tpo_act_gelu(t, tpo_linear(t, y, &params[1], layer == 1 ? &params[2] : NULL));
        tpo_seed(t, y, NULL, 1);
        tpo_tape_on_complete(t, on_complete, params);
        assert_int_equal(tpo_tape_backward(t), TPO_OK);
        assert_int_equal(n_told, 3);
        assert_ptr_equal(told[0], &params[1]);
        for (int i = 0; i < 3; i++) assert_memory_equal(told_grads[i], param_grads[i], sizeof(told_grads[i]));
    }
    tpo_tape_close(t);
    tpo_stream_close(stream);
}

/* A tensor may be larger than the tape's first blocks; with room made beforehand, once larger and once smaller, its scope closes all the same. */
static void room_lets_scopes_close(void **state)
{
    (void)state;
    enum { ROWS = 700, COLS = 1024 };
    struct tpo_tape *t;
    open_stream();
    assert_int_equal(tpo_tape_open(&t, stream, false), TPO_OK);
    for (int pass = 0; pass < 3; pass++) {
        const int rows = pass == 1 ? 3 * ROWS : ROWS;
        tpo_tape_reset(t, false);
        tpo_tape_room(t, (int64_t)4 * rows * COLS);
        struct tpo_tensor *x = tpo_input(t, NULL, rows, COLS, false);
        assert_non_null(x);
        const struct tpo_scope scope = tpo_scope_begin(t);
        struct tpo_tensor *y = tpo_scope_end(t, scope, tpo_plus(t, tpo_plus(t, x, x), x));
        assert_non_null(y);
        assert_ptr_equal(y->data, x->data + (int64_t)rows * COLS);
    }
    tpo_tape_close(t);
    tpo_stream_close(stream);
}

/* What all tapes hold counts: what does not fit beside the others fits when they are gone, and a block that would double fits as it is. */
static void tapes_have_one_budget(void **state)
{
    (void)state;
    enum { MIB = 1 << 18 }; /* of floats */
    struct tpo_tape *a, *b;
    open_stream();
    tpo_budget_set((size_t)8 << 20);
    assert_int_equal(tpo_tape_open(&a, stream, true), TPO_OK);
    assert_int_equal(tpo_tape_open(&b, stream, true), TPO_OK);
    assert_false(tpo_tape_fits(a, 9 * MIB));
    assert_non_null(tpo_tape_floats(a, 3 * MIB));
    assert_non_null(tpo_tape_floats(a, 2 * MIB)); /* twice the first block would be too much */
    assert_true(tpo_tape_fits(b, 3 * MIB));
    assert_false(tpo_tape_fits(b, 4 * MIB));
    assert_null(tpo_tape_floats(b, 4 * MIB));
    assert_int_equal(tpo_tape_error(b), TPO_ENOMEM);
    tpo_tape_close(a);
    tpo_tape_reset(b, true);
    assert_non_null(tpo_tape_floats(b, 4 * MIB));
    tpo_tape_close(b);
    assert_true(tpo_budget_fits((size_t)8 << 20)); /* nothing is left behind */
    assert_false(tpo_budget_fits(SIZE_MAX));
    tpo_budget_set(0);
    assert_true(tpo_budget_most() > (size_t)8 << 20);
    tpo_stream_close(stream);
}

TPO_TESTS(cmocka_unit_test(tapes_have_one_budget), cmocka_unit_test(whole_gradients_are_told),
          cmocka_unit_test(frozen_layers_record_nothing), cmocka_unit_test(linear), cmocka_unit_test(columns),
          cmocka_unit_test(lora), cmocka_unit_test(norms), cmocka_unit_test(activations), cmocka_unit_test(moves),
          cmocka_unit_test(drops), cmocka_unit_test(attend), cmocka_unit_test(attend_fused), cmocka_unit_test(attention_rows),
          cmocka_unit_test(losses), cmocka_unit_test(parameters_accumulate), cmocka_unit_test(errors_stick),
          cmocka_unit_test(unused_input), cmocka_unit_test(scopes_give_back), cmocka_unit_test(room_lets_scopes_close))
