/* Optimiser steps against the papers' formulas in f64. */
#include "tests/kernels/check.h"

static void adamw_equals_f64(void **state)
{
    (void)state;
    static const int lengths[] = {1, 31, 33, 20000};
    struct tpo_stream *s = check_stream(2);
    for (int i = 0; i < 8; i++) {
        int n = lengths[i % 4];
        float *w = check_numbers("w", n, 1, 0), *m = check_numbers("m", n, 0.1f, 0), *v = check_numbers("v", n, 0.1f, 0);
        float *g = check_numbers("g", n, i < 4 ? 1 : 1000, 0), *next = check_zeros(3 * n);
        for (int j = 0; j < n; j++) v[j] *= v[j];
        struct tpo_adamw a = {2e-3f, 0.9f, 0.98f, 1e-8f, 0.05f, 0.5f, i < 4 ? 1 : 1000000};
        double *want = check_doubles(NULL, 3 * n);
        for (int j = 0; j < n; j++) {
            double grad = (double)g[j] * a.clip;
            want[n + j] = (double)a.beta1 * m[j] + (1.0 - a.beta1) * grad;
            want[2 * n + j] = (double)a.beta2 * v[j] + (1.0 - a.beta2) * grad * grad;
            double mhat = want[n + j] / (1.0 - pow(a.beta1, (double)a.t)),
                   vhat = want[2 * n + j] / (1.0 - pow(a.beta2, (double)a.t));
            want[j] = w[j] - (double)a.rate * (mhat / (sqrt(vhat) + a.eps) + (double)a.decay * w[j]);
        }
        assert_int_equal(tpo_adamw(s, next, next + n, next + 2 * n, w, m, v, g, &a, n), TPO_OK);
        check_near("w", next, want, n, 1e-6);
        check_near("m", next + n, want + n, n, 1e-6);
        check_near("v", next + 2 * n, want + 2 * n, n, 1e-6);
        a.t = 0;
        assert_int_equal(tpo_adamw(s, next, next, next, w, m, v, g, &a, n), TPO_EINVAL);
        free(w), free(m), free(v), free(g), free(next), free(want);
    }
    tpo_stream_close(s);
}

/* y (r, c) = a (r, d) b (d, c) */
static void multiply(double *y, const double *a, const double *b, int r, int d, int c)
{
    for (int i = 0; i < r; i++)
        for (int k = 0; k < c; k++) {
            y[i * c + k] = 0.0;
            for (int j = 0; j < d; j++) y[i * c + k] += a[i * d + j] * b[j * c + k];
        }
}

static void turn(double *y, const double *x, int R, int C)
{
    for (int i = 0; i < R; i++)
        for (int j = 0; j < C; j++) y[j * R + i] = x[i * C + j];
}

static void newton_schulz(double *x, int R, int C)
{
    double *xt = check_doubles(NULL, (int64_t)R * C), *a = check_doubles(NULL, (int64_t)R * R),
           *aa = check_doubles(NULL, (int64_t)R * R);
    double *y = check_doubles(NULL, (int64_t)R * C);
    turn(xt, x, R, C);
    multiply(a, x, xt, R, C, R);
    multiply(aa, a, a, R, R, R);
    for (int i = 0; i < R * R; i++) a[i] = -4.7750 * a[i] + 2.0315 * aa[i];
    multiply(y, a, x, R, R, C);
    for (int i = 0; i < R * C; i++) x[i] = 3.4445 * x[i] + y[i];
    free(xt), free(a), free(aa), free(y);
}

static void muon_equals_f64(void **state)
{
    (void)state;
    static const int sizes[][2] = {{1, 1}, {1, 31}, {33, 1}, {31, 33}, {70, 20}, {128, 128}, {64, 200}, {40, 170}, {50, 60}};
    struct tpo_stream *s = check_stream(2);
    for (size_t i = 0; i < 9; i++) { /* the last two: two directions and a millionth of noise, as gradients are at times */
        int R = sizes[i][0], C = sizes[i][1], n = R * C;
        float *w = check_numbers("w", n, 1, 0), *m = check_numbers("m", n, 1, 0), *g = check_numbers("g", n, 1, 0),
              *next = check_zeros(2 * n);
        float *scratch = check_zeros(tpo_muon_scratch(R, C));
        for (int j = 0; i >= 7 && j < n; j++) {
            m[j] = 1e-6f * m[j] + g[j / C] * g[n - 1 - j % C] + (j / C % 3 - 1.0f) * (j % C % 5 - 2.0f);
            g[j] = j < 4 ? g[j] : 1e-6f * g[j];
        }
        struct tpo_muon step = {8e-3f, 0.95f, 0.05f, 2.0f};
        double *x = check_doubles(NULL, n), *want = check_doubles(NULL, 2 * n), *short_side = check_doubles(NULL, n), norm = 0.0;
        for (int j = 0; j < n; j++) {
            want[n + j] = 0.95 * m[j] + 2.0 * g[j];
            x[j] = 2.0 * g[j] + 0.95 * want[n + j];
            norm += x[j] * x[j];
        }
        for (int j = 0; j < n; j++) x[j] /= sqrt(norm);
        if (R > C) turn(short_side, x, R, C);
        for (int k = 0; k < 5; k++) newton_schulz(R > C ? short_side : x, R > C ? C : R, R > C ? R : C);
        if (R > C) turn(x, short_side, C, R);
        for (int j = 0; j < n; j++) want[j] = w[j] - 8e-3 * (0.2 * sqrt(R > C ? R : C) * x[j] + 0.05 * w[j]);
        assert_int_equal(tpo_muon(s, next, next + n, w, m, g, &step, scratch, R, C), TPO_OK);
        check_near("m", next + n, want + n, n, 1e-6);
        for (int j = 0; j < n; j++) next[j] = (next[j] - w[j]) / 8e-3f, want[j] = (want[j] - w[j]) / 8e-3;
        check_near("step", next, want, n, i >= 7 ? 5e-3 : 2e-4);
        free(w), free(m), free(g), free(next), free(scratch), free(x), free(want), free(short_side);
    }
    tpo_stream_close(s);
}

static void no_gradient_moves_nothing_but_decay(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(1);
    float *w = check_numbers("w", 31 * 7, 1, 0), *zero = check_zeros(31 * 7), *next = check_zeros(2 * 31 * 7),
          *scratch = check_zeros(tpo_muon_scratch(31, 7));
    struct tpo_muon step = {1e-2f, 0.95f, 0.5f, 1.0f};
    const float keep = 1.0f - 1e-2f * 0.5f;
    assert_int_equal(tpo_muon(s, next, next + 31 * 7, w, zero, zero, &step, scratch, 31, 7), TPO_OK);
    for (int i = 0; i < 31 * 7; i++) assert_true(fabsf(next[i] - keep * w[i]) <= 1e-6f && next[31 * 7 + i] == 0.0f);
    assert_int_equal(tpo_muon(s, next, next, w, zero, zero, &step, scratch, 0, 7), TPO_EINVAL);
    free(w), free(zero), free(next), free(scratch);
    tpo_stream_close(s);
}

static void bits_do_not_depend_on_the_team(void **state)
{
    (void)state;
    struct tpo_stream *one = check_stream(1), *three = check_stream(3);
    int R = 200, C = 330, n = R * C;
    float *w = check_numbers("w", n, 1, 0), *m = check_numbers("m", n, 1, 0), *g = check_numbers("g", n, 1, 0),
          *v = check_numbers("m", n, 1, 0);
    float *a = check_zeros(3 * n), *b = check_zeros(3 * n), *scratch = check_zeros(tpo_muon_scratch(R, C));
    struct tpo_muon step = {8e-3f, 0.95f, 0.05f, 1.0f};
    struct tpo_adamw adamw = {2e-3f, 0.9f, 0.98f, 1e-8f, 0.05f, 1.0f, 3};
    tpo_muon(one, a, a + n, w, m, g, &step, scratch, R, C);
    tpo_muon(three, b, b + n, w, m, g, &step, scratch, R, C);
    check_same_bits("muon", a, b, (size_t)(2 * n) * sizeof(float));
    for (int i = 0; i < n; i++) v[i] *= v[i];
    tpo_adamw(one, a, a + n, a + 2 * n, w, m, v, g, &adamw, n);
    tpo_adamw(three, b, b + n, b + 2 * n, w, m, v, g, &adamw, n);
    check_same_bits("adamw", a, b, (size_t)(3 * n) * sizeof(float));
    free(w), free(m), free(g), free(v), free(a), free(b), free(scratch);
    tpo_stream_close(one), tpo_stream_close(three);
}

TPO_TESTS(cmocka_unit_test(adamw_equals_f64), cmocka_unit_test(muon_equals_f64),
          cmocka_unit_test(no_gradient_moves_nothing_but_decay), cmocka_unit_test(bits_do_not_depend_on_the_team))
