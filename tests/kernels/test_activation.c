/* Pointwise functions against f64 at every size of tail, gradients against finite differences, values of any size. */
#include "tests/kernels/check.h"

static const int lengths[] = {1, 15, 16, 17, 31, 33, 1000, 40000};
#define N_LENGTHS (sizeof(lengths) / sizeof(lengths[0]))

enum which { GELU, RELU };

static double exact(enum which f, double x)
{
    return f == GELU ? 0.5 * x * erfc(-x / sqrt(2.0)) : x > 0.0 ? x : 0.0;
}

static double slope(enum which f, double x)
{
    double h = 1e-5 * fmax(1.0, fabs(x));
    if (f == RELU && fabs(x) < h) return x > 0.0;
    return (exact(f, x + h) - exact(f, x - h)) / (2.0 * h);
}

/* From dense small values to the ends of what f32 holds without overflow in x^2. */
static float *unkind(int n)
{
    static const float ends[] = {0.0f, -0.0f, 1000.0f, -1000.0f, 1e-30f, -1e-30f, 1e18f, -1e18f, 5.5f, -5.5f};
    float *x = check_numbers("x", n, 2.5f, 0);
    for (int i = 0; i < n && i < 10; i++) x[n - 1 - i] = ends[i];
    return x;
}

static void values_and_slopes_equal_f64(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(2);
    for (size_t l = 0; l < N_LENGTHS; l++)
        for (enum which f = GELU; f <= RELU; f++) {
            int n = lengths[l];
            float *x = unkind(n), *dy = check_numbers("dy", n, 1, 0), *y = check_zeros(n), *dx = check_numbers("dx", n, 1, 0),
                  *before = check_copy(dx, n);
            assert_int_equal(f == GELU ? tpo_gelu(s, y, x, n) : tpo_relu(s, y, x, n), TPO_OK);
            assert_int_equal(f == GELU ? tpo_gelu_grad(s, dx, dy, x, 1, n) : tpo_relu_grad(s, dx, dy, x, 1, n), TPO_OK);
            for (int i = 0; i < n; i++) {
                double want = exact(f, x[i]), want_dx = before[i] + dy[i] * slope(f, x[i]);
                if (!(fabs(y[i] - want) <= 2e-7 * fmax(1e-3, fabs(x[i]))))
                    fail_msg("y(%.9g) is %.9g, expected %.9g", x[i], y[i], want);
                if (!(fabs(dx[i] - want_dx) <= 2e-6 * (fabs(before[i]) + fabs(dy[i]))))
                    fail_msg("slope at %.9g is %.9g, expected %.9g", x[i], dx[i], want_dx);
            }
            assert_int_equal(f == GELU ? tpo_gelu_grad(s, dy, dy, x, 0, n) : tpo_relu_grad(s, dy, dy, x, 0, n),
                             TPO_OK); /* in place */
            for (int i = 0; i < n; i++) assert_true(fabsf(dy[i] - (dx[i] - before[i])) <= 1e-5f);
            free(x), free(dy), free(y), free(dx), free(before);
        }
    tpo_stream_close(s);
}

static void not_a_number_stays_one(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(1);
    const uint32_t ones = 0x7fffffff; /* as a GPU makes it: low bits that must not be read as a number's */
    float x[20], y[20];
    for (int i = 0; i < 20; i++) memcpy(&x[i], &ones, sizeof(ones));
    tpo_gelu(s, y, x, 20);
    for (int i = 0; i < 20; i++) assert_true(isnan(y[i]));
    tpo_relu(s, y, x, 20);
    for (int i = 0; i < 20; i++) assert_true(isnan(y[i]));
    tpo_swiglu(s, y, x, x, 20, 1, 20);
    for (int i = 0; i < 20; i++) assert_true(isnan(y[i]));
    tpo_stream_close(s);
}

static double swish(double g, double u)
{
    return g / (1.0 + exp(-g)) * u;
}

static void swiglu_equals_f64(void **state)
{
    (void)state;
    static const int sizes[][3] = {{1, 1, 1}, {3, 31, 70}, {70, 320, 640}, {5, 33, 33}};
    struct tpo_stream *s = check_stream(2);
    for (size_t i = 0; i < 4; i++) {
        int M = sizes[i][0], C = sizes[i][1], ld = sizes[i][2];
        int64_t n = (int64_t)M * ld;
        float *g = check_numbers("g", n, 3, 0), *u = check_numbers("u", n, 1, 0), *dy = check_numbers("dy", (int64_t)M * C, 1, 0);
        float *y = check_zeros((int64_t)M * C), *dg = check_numbers("dg", n, 1, 0), *du = check_numbers("du", n, 1, 0);
        float *dg0 = check_copy(dg, n), *du0 = check_copy(du, n);
        g[0] = 1000.0f;
        if (n > 2) g[1] = -1000.0f;
        assert_int_equal(tpo_swiglu(s, y, g, u, ld, M, C), TPO_OK);
        assert_int_equal(tpo_swiglu_grad(s, dg, du, dy, g, u, ld, 1, M, C), TPO_OK);
        for (int m = 0; m < M; m++)
            for (int c = 0; c < ld; c++) {
                int64_t at = (int64_t)m * ld + c;
                if (c >= C) {
                    assert_true(dg[at] == dg0[at] && du[at] == du0[at]);
                    continue;
                }
                double a = g[at], b = u[at], d = dy[(int64_t)m * C + c], h = 1e-5 * fmax(1.0, fabs(a));
                double want_dg = dg0[at] + d * (swish(a + h, b) - swish(a - h, b)) / (2 * h), want_du = du0[at] + d * swish(a, 1.0);
                assert_true(fabs(y[(int64_t)m * C + c] - swish(a, b)) <= 5e-7 * (fabs(a * b) + 1e-3));
                assert_true(fabs(dg[at] - want_dg) <= 3e-6 * (fabs(want_dg) + fabs(d * b) + fabs(dg0[at])));
                assert_true(fabs(du[at] - want_du) <= 1e-6 * (fabs(want_du) + fabs(d * a) + fabs(du0[at])));
            }
        free(g), free(u), free(dy), free(y), free(dg), free(du), free(dg0), free(du0);
    }
    tpo_stream_close(s);
}

static void empty_arrays_are_refused(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(1);
    float x[4] = {0};
    assert_int_equal(tpo_gelu(s, x, x, 0), TPO_EINVAL);
    assert_int_equal(tpo_relu_grad(s, x, x, x, 0, -1), TPO_EINVAL);
    assert_int_equal(tpo_swiglu(s, x, x, x, 3, 1, 4), TPO_EINVAL);
    assert_int_equal(tpo_swiglu_grad(s, x, x, x, x, x, 4, 0, 0, 4), TPO_EINVAL);
    tpo_stream_close(s);
}

TPO_TESTS(cmocka_unit_test(values_and_slopes_equal_f64), cmocka_unit_test(not_a_number_stays_one),
          cmocka_unit_test(swiglu_equals_f64), cmocka_unit_test(empty_arrays_are_refused))
