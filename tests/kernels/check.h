/* check.h -- what the kernels' tests share: streams, seeded numbers, comparison against f64, and finite differences. */
#ifndef TPO_TESTS_KERNELS_CHECK_H
#define TPO_TESTS_KERNELS_CHECK_H

#include <math.h>

#include "kernels/ops.h"
#include "tests/support/test.h"

static inline struct tpo_stream *check_stream(int n_threads)
{
    struct tpo_stream *s = NULL;
    struct tpo_error err;
    if (tpo_stream_open(&s, "cpu", n_threads, &err) != TPO_OK) fail_msg("%s", err.message);
    return s;
}

static inline void *check_alloc(size_t n, size_t size)
{
    void *p = aligned_alloc(64, (n * size + 127) / 64 * 64);
    assert_non_null(p);
    memset(p, 0, (n * size + 127) / 64 * 64);
    return p;
}

/* n numbers of N(0, spread) + shift, of stream `name` of the test's seed. */
static inline float *check_numbers(const char *name, int64_t n, float spread, float shift)
{
    uint64_t key = tpo_test_seed();
    for (const char *c = name; *c != '\0'; c++) key = key * 1099511628211u + (unsigned char)*c;
    float *x = check_alloc((size_t)n, sizeof(*x));
    for (int64_t i = 0; i < n; i++) x[i] = shift + spread * tpo_random_normal(key, (uint64_t)i);
    return x;
}

static inline float *check_zeros(int64_t n)
{
    return check_alloc((size_t)n, sizeof(float));
}

static inline float *check_copy(const float *x, int64_t n)
{
    float *y = check_zeros(n);
    memcpy(y, x, (size_t)n * sizeof(*x));
    return y;
}

static inline double *check_doubles(const float *x, int64_t n)
{
    double *y = check_alloc((size_t)n, sizeof(*y));
    for (int64_t i = 0; i < n && x != NULL; i++) y[i] = x[i];
    return y;
}

/* Every |got - want| <= tolerance * (the largest |want|, 0.05 at least: where all cancels, what is left is rounding). NaN fails. */
static inline void check_near(const char *what, const float *got, const double *want, int64_t n, double tolerance)
{
    double top = 0.05;
    for (int64_t i = 0; i < n; i++) top = fmax(top, fabs(want[i]));
    for (int64_t i = 0; i < n; i++)
        if (!(fabs((double)got[i] - want[i]) <= tolerance * top))
            fail_msg("%s[%lld] is %.9g, expected %.9g (largest %.3g)", what, (long long)i, got[i], want[i], top);
}

static inline void check_same_bits(const char *what, const void *a, const void *b, size_t bytes)
{
    if (memcmp(a, b, bytes) != 0) fail_msg("%s: the bits differ", what);
}

/* A scalar function of one f64 array, and the central difference of it at each of n places, written to grad. */
typedef double check_loss_fn(const double *x, void *arg);
static inline void check_differences(double *grad, double *x, int64_t n, check_loss_fn *loss, void *arg)
{
    for (int64_t i = 0; i < n; i++) {
        double kept = x[i], h = 1e-5 * fmax(1.0, fabs(kept)), up, down;
        x[i] = kept + h;
        up = loss(x, arg);
        x[i] = kept - h;
        down = loss(x, arg);
        x[i] = kept;
        grad[i] = (up - down) / (2.0 * h);
    }
}

static inline double check_dot(const float *a, const double *b, int64_t n)
{
    double sum = 0.0;
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

#endif
