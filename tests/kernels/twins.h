/* twins.h -- an operation on CUDA beside its CPU twin: the same arrays on both devices, values within rounding, the same bits when called twice. */
#ifndef TPO_TESTS_KERNELS_TWINS_H
#define TPO_TESTS_KERNELS_TWINS_H

#include <math.h>

#include "kernels/ops.h"
#include "tests/support/test.h"

#define ARRAYS 12
#define ROUNDS 12

/* The arrays of one call, on one device after the other. */
struct arrays {
    int n_floats, n_ints;
    int64_t size[ARRAYS], int_size[ARRAYS];
    float *host[ARRAYS], *f[ARRAYS];
    int32_t *int_host[ARRAYS], *i[ARRAYS];
};

static struct tpo_stream *cpu, *cuda;
static uint64_t counter;

static inline float draw(void)
{
    return 2 * tpo_random(tpo_test_seed(), counter++) - 1;
}

static inline int between(int low, int high)
{
    return low + (int)(tpo_random_u64(tpo_test_seed(), counter++) % (uint64_t)(high - low + 1));
}

static inline int add_floats(struct arrays *a, int64_t n)
{
    float *x = malloc((size_t)n * sizeof(*x));
    for (int64_t k = 0; k < n; k++) x[k] = draw();
    a->size[a->n_floats] = n;
    a->host[a->n_floats] = x;
    return a->n_floats++;
}

static inline int32_t *add_ints(struct arrays *a, int64_t n)
{
    int32_t *x = calloc((size_t)n, sizeof(*x));
    a->int_size[a->n_ints] = n;
    a->int_host[a->n_ints++] = x;
    return x;
}

static inline void move_in(struct arrays *a, struct tpo_stream *s)
{
    for (int k = 0; k < a->n_floats; k++) {
        a->f[k] = tpo_device_alloc(s, (size_t)a->size[k] * sizeof(float));
        assert_non_null(a->f[k]);
        assert_int_equal(tpo_copy_in(s, a->f[k], a->host[k], (size_t)a->size[k] * sizeof(float)), TPO_OK);
    }
    for (int k = 0; k < a->n_ints; k++) {
        a->i[k] = tpo_device_alloc(s, (size_t)a->int_size[k] * sizeof(int32_t));
        assert_non_null(a->i[k]);
        assert_int_equal(tpo_copy_in(s, a->i[k], a->int_host[k], (size_t)a->int_size[k] * sizeof(int32_t)), TPO_OK);
    }
}

static inline void move_out(struct arrays *a, struct tpo_stream *s, float **out)
{
    for (int k = 0; k < a->n_floats; k++) {
        out[k] = malloc((size_t)a->size[k] * sizeof(float));
        assert_int_equal(tpo_copy_out(s, out[k], a->f[k], (size_t)a->size[k] * sizeof(float)), TPO_OK);
        tpo_device_free(s, a->f[k]);
    }
    for (int k = 0; k < a->n_ints; k++) tpo_device_free(s, a->i[k]);
}

static inline void free_all(struct arrays *a, float **x)
{
    for (int k = 0; k < a->n_floats; k++) free(x[k]);
}

/* Largest difference against the largest value of the array, which sums of many terms are measured by. */
static inline void compare(const char *what, const struct arrays *a, float *const *want, float *const *got, double tolerance)
{
    for (int k = 0; k < a->n_floats; k++) {
        double scale = 1;
        for (int64_t n = 0; n < a->size[k]; n++)
            if (isfinite(want[k][n]) && fabs((double)want[k][n]) > scale) scale = fabs((double)want[k][n]);
        for (int64_t n = 0; n < a->size[k]; n++) {
            const float w = want[k][n], g = got[k][n];
            if (w == g || (isnan(w) && isnan(g)) || fabs((double)w - g) <= tolerance * scale) continue;
            fail_msg("%s: array %d[%lld] of %lld is %g on CUDA, %g on the CPU", what, k, (long long)n, (long long)a->size[k],
                     (double)g, (double)w);
        }
    }
}

typedef int operation(struct tpo_stream *s, struct arrays *a, const int *size);

static inline void twins(const char *what, struct arrays *a, const int *size, operation *run, double tolerance)
{
    float *want[ARRAYS], *got[ARRAYS], *again[ARRAYS];
    move_in(a, cpu);
    assert_int_equal(run(cpu, a, size), TPO_OK);
    move_out(a, cpu, want);
    for (int k = 0; k < 2; k++) {
        move_in(a, cuda);
        if (run(cuda, a, size) != TPO_OK || tpo_stream_wait(cuda) != TPO_OK) fail_msg("%s failed", what);
        move_out(a, cuda, k == 0 ? got : again);
    }
    compare(what, a, want, got, tolerance);
    for (int k = 0; k < a->n_floats; k++) assert_memory_equal(got[k], again[k], (size_t)a->size[k] * sizeof(float));
    free_all(a, want), free_all(a, got), free_all(a, again), free_all(a, a->host);
    for (int k = 0; k < a->n_ints; k++) free(a->int_host[k]);
    memset(a, 0, sizeof(*a));
}

static inline void open_both(void)
{
    struct tpo_error err = {0};
    if (tpo_stream_open(&cuda, "cuda", 1, &err) != TPO_OK) {
        print_message("%s\n", err.message);
        skip();
    }
    assert_int_equal(tpo_stream_open(&cpu, "cpu", 2, &err), TPO_OK);
}

static inline void close_both(void)
{
    tpo_stream_close(cpu);
    tpo_stream_close(cuda);
}

#endif
