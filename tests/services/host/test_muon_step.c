/* Muon through a learner: one step derived on paper, and two steps of a fused matrix against the formula in f64.
 *
 * On paper. w is 2 x 2, its gradient g = (0 4; -3 0), momentum 0.9, no moments yet: m = g, and the Nesterov sum g + 0.9 m = 1.9 g has the
 * singular values of g up to a factor. Divided by the Frobenius norm they are .8 and .6, and a Newton-Schulz step maps each singular value s to
 * p(s) = 3.4445 s - 4.7750 s^3 + 2.0315 s^5 and leaves the singular vectors alone. Five times:
 *   .8 -> .9764819 -> .7211176 -> 1.0894568 -> .6960447 -> 1.1192039
 *   .6 -> 1.1932694 -> .9119177 -> .8011377 -> .9747024 -> .7228762
 * so O = (0 1.1192039; -.7228762 0). With rate 1/2, decay 0.1 and 0.2 sqrt(2) = .2828427, w' = w - .5 (.2828427 O + .1 w) = .95 w - .1414214 O:
 * from w = (1 2; 3 4) to (.95, 1.9 - .1582793; 2.85 + .1022301, 3.8). */
#include "tests/support/test.h"

#include <math.h>

#include "kernels/vector.h"
#include "services/host/learner.h"

struct fixture {
    struct tpo_stream *stream;
    struct tpo_params params;
    struct tpo_param *w;
    struct tpo_model model;
    struct tpo_learner learner;
};

/* y = x w^T; with x the unit matrix, the gradient of w is the transpose of that of y. */
static int forward(void *self, struct tpo_tape *t, struct tpo_forward *f, struct tpo_error *err)
{
    struct fixture *x = self;
    (void)err;
    tpo_forward_output(f, "y", tpo_linear(t, tpo_forward_input(f, "x"), x->w, NULL));
    return tpo_tape_error(t);
}

static void fixture_open(struct fixture *x, int R, int C, const float *w)
{
    struct tpo_error err = {0};
    memset(x, 0, sizeof(*x));
    assert_int_equal(tpo_stream_open(&x->stream, "cpu", 1, &err), TPO_OK);
    x->w = tpo_params_declare(&x->params, TPO_INIT_NORMAL, 1, TPO_SHAPE(R, C), "w");
    assert_int_equal(tpo_params_random(&x->params, x->stream, 1, &err), TPO_OK);
    memcpy(x->w->data, w, sizeof(float) * (size_t)(R * C));
    x->model = (struct tpo_model){.stage = "paper", .self = x, .params = &x->params, .forward = forward};
    assert_int_equal(tpo_learner_open_direct(&x->learner, &x->model, x->stream, &err), TPO_OK);
}

static void fixture_close(struct fixture *x)
{
    x->learner.close(x->learner.self);
    tpo_params_free(&x->params, x->stream);
    tpo_stream_close(x->stream);
}

static void begin(struct fixture *x, const struct tpo_group *group)
{
    const struct tpo_plan plan = {.lanes = 1, .micro_batches = 1, .groups = group, .n_groups = 1};
    struct tpo_begun begun;
    struct tpo_error err = {0};
    if (x->learner.begin(x->learner.self, "run", &plan, &begun, &err) != TPO_OK) fail_msg("%s", err.message);
}

/* One step whose gradient of w (R, C) is g. */
static void step(struct fixture *x, int number, const float *g, int R, int C, float clip, float rate)
{
    struct tpo_learner *l = &x->learner;
    const struct tpo_key key = {.run = "run", .step = (uint64_t)number, .version = (uint64_t)number - 1};
    float unit[64] = {0}, turned[64];
    for (int i = 0; i < C; i++) unit[i * C + i] = 1;
    for (int i = 0; i < R; i++)
        for (int j = 0; j < C; j++) turned[j * R + i] = g[i * C + j];
    const struct tpo_named_tensor in = {"x", TPO_F32, 2, {C, C}, unit}, of_y = {"y", TPO_F32, 2, {C, R}, turned};
    const struct tpo_sample sample = {0};
    struct tpo_named_tensor none[TPO_PORTS_MAX];
    struct tpo_forwarded f;
    struct tpo_error err = {0};
    const struct tpo_norm *norms;
    int n = 0;
    assert_int_equal(l->forward(l->self, &key, &sample, 1, &in, 1, NULL, 0, &f, &err), TPO_OK);
    assert_int_equal(l->backward(l->self, &key, &of_y, 1, none, &n, &err), TPO_OK);
    assert_int_equal(l->norms(l->self, &key, &norms, &n, &err), TPO_OK);
    assert_int_equal(n, 1);
    assert_int_equal(l->prepare(l->self, &key, clip, &rate, 1, &err), TPO_OK);
    assert_int_equal(l->commit(l->self, &key, &err), TPO_OK);
}

static void near(const char *what, const float *value, const double *expected, int n, double allowed)
{
    for (int i = 0; i < n; i++)
        if (!(fabs((double)value[i] - expected[i]) <= allowed))
            fail_msg("%s[%d] is %.8g, expected %.8g", what, i, (double)value[i], expected[i]);
}

static const char *const all[] = {"*"};

static void one_step_equals_paper(void **state)
{
    (void)state;
    const float w[] = {1, 2, 3, 4}, g[] = {0, 4, -3, 0};
    const double expected[] = {.95, 1.9 - .1582793, 2.85 + .1022301, 3.8};
    const struct tpo_group group = {
        .name = "w", .patterns = all, .n_patterns = 1, .optimiser = TPO_MUON, .beta1 = .9f, .weight_decay = .1f};
    struct fixture x;
    fixture_open(&x, 2, 2, w);
    begin(&x, &group);
    step(&x, 1, g, 2, 2, 1, .5f);
    near("w", x.w->data, expected, 4, 2e-6);
    fixture_close(&x);
}

/* --- the formula in f64 ---------------------------------------------------------------------------------------------------------------- */

enum { R = 6, C = 4, PARTS = 3, ROWS = R / PARTS };

/* x (ROWS, C) <- a x + (b A + c A A) x, A = x x^T: the form of the paper, on the short side's left. */
static void newton_schulz(double *x)
{
    double A[ROWS][ROWS] = {0}, P[ROWS][ROWS] = {0}, y[ROWS * C] = {0};
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < ROWS; j++)
            for (int k = 0; k < C; k++) A[i][j] += x[i * C + k] * x[j * C + k];
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < ROWS; j++) {
            P[i][j] = -4.7750 * A[i][j];
            for (int k = 0; k < ROWS; k++) P[i][j] += 2.0315 * A[i][k] * A[k][j];
        }
    for (int i = 0; i < ROWS; i++)
        for (int k = 0; k < C; k++) {
            y[i * C + k] = 3.4445 * x[i * C + k];
            for (int j = 0; j < ROWS; j++) y[i * C + k] += P[i][j] * x[j * C + k];
        }
    memcpy(x, y, sizeof(y));
}

/* One step of one of the stacked matrices. */
static void muon_f64(double *w, double *m, const float *g, double clip, double rate, double momentum, double decay)
{
    double x[ROWS * C], square = 0;
    for (int i = 0; i < ROWS * C; i++) {
        m[i] = momentum * m[i] + clip * (double)g[i];
        x[i] = clip * (double)g[i] + momentum * m[i];
        square += x[i] * x[i];
    }
    for (int i = 0; i < ROWS * C; i++) x[i] /= sqrt(square);
    for (int k = 0; k < 5; k++) newton_schulz(x);
    for (int i = 0; i < ROWS * C; i++) w[i] -= rate * (0.2 * sqrt(C) * x[i] + decay * w[i]);
}

/* Rows 0-1, 2-3 and 4-5 are three matrices, each with a norm of its own. The group is clipped: in the second step the factor changes what the
 * moments weigh, so a step that forgets it is seen. */
static void two_steps_of_a_fused_matrix_equal_f64(void **state)
{
    (void)state;
    const struct tpo_group group = {.name = "w",
                                    .patterns = all,
                                    .n_patterns = 1,
                                    .optimiser = TPO_MUON,
                                    .beta1 = .75f,
                                    .weight_decay = .25f,
                                    .clipped = true,
                                    .split = PARTS};
    static const float clips[] = {1, .25f}, rates[] = {.125f, .0625f};
    float w[R * C], g[R * C];
    double want[R * C], m[R * C] = {0};
    struct fixture x;
    for (int i = 0; i < R * C; i++) want[i] = w[i] = tpo_random_normal(1, (uint64_t)i);
    fixture_open(&x, R, C, w);
    begin(&x, &group);
    for (int s = 0; s < 2; s++) {
        for (int i = 0; i < R * C; i++) g[i] = tpo_random_normal(2 + (uint64_t)s, (uint64_t)i) * (float)(1 + i / C);
        for (int k = 0; k < PARTS; k++) {
            const int at = k * ROWS * C;
            muon_f64(want + at, m + at, g + at, (double)clips[s], (double)rates[s], .75, .25);
        }
        step(&x, s + 1, g, R, C, clips[s], rates[s]);
        near("w", x.w->data, want, R * C, 1e-5);
    }
    fixture_close(&x);
}

TPO_TESTS(cmocka_unit_test(one_step_equals_paper), cmocka_unit_test(two_steps_of_a_fused_matrix_equal_f64))
