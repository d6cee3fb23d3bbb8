/* This file owns the optimiser steps on CUDA. tpo_muon_scratch is optim_cpu.c's: both twins need the same room. */
#include <math.h>

#include "kernels/cuda.h"
#include "kernels/vector_cuda.h"

__global__ void adamw(float *w_next, float *m_next, float *v_next, const float *w, const float *m, const float *v, const float *g,
                      struct tpo_adamw step, float fix_m, float fix_v, int64_t n)
{
    TPO_EACH(i, n)
    {
        const float grad = g[i] * step.clip, next = step.beta1 * m[i] + (1.0f - step.beta1) * grad,
                    next_v = step.beta2 * v[i] + (1.0f - step.beta2) * (grad * grad);
        m_next[i] = next;
        v_next[i] = next_v;
        w_next[i] = w[i] - step.rate * (next * fix_m / (sqrtf(next_v * fix_v) + step.eps) + step.decay * w[i]);
    }
}

extern "C" int tpo_adamw_cuda(struct tpo_stream *s, float *w_next, float *m_next, float *v_next, const float *w, const float *m,
                              const float *v, const float *g, const struct tpo_adamw *step, int64_t n)
{
    if (n < 1 || step->t < 1) return TPO_EINVAL;
    const float fix_m = (float)(1.0 / (1.0 - pow(step->beta1, (double)step->t))),
                fix_v = (float)(1.0 / (1.0 - pow(step->beta2, (double)step->t)));
    adamw<<<tpo_cuda_blocks(n, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(w_next, m_next, v_next, w, m, v, g, *step, fix_m,
                                                                                   fix_v, n);
    return tpo_cuda_launched();
}

/* --- Muon ------------------------------------------------------------------------------------------------------------------------------ */

#define NS_STEPS 5
#define NS_A     3.4445f
#define NS_B     (-4.7750f)
#define NS_C     2.0315f

__global__ void momentum(float *m_next, float *x, const float *m, const float *g, float beta, float clip, int64_t n)
{
    TPO_EACH(i, n)
    {
        const float grad = g[i] * clip, next = beta * m[i] + grad;
        m_next[i] = next;
        x[i] = grad + beta * next;
    }
}

__global__ void shrink(float *x, const double *square, int64_t n)
{
    const float factor = (float)(1.0 / (sqrt(*square) + 1e-7));
    TPO_EACH(i, n) x[i] *= factor;
}

/* b = NS_A I + NS_B a + NS_C b, b coming in as a a. */
__global__ void polynomial_ends(float *b, const float *a, int r, int64_t n)
{
    TPO_EACH(i, n) b[i] = NS_C * b[i] + NS_B * a[i] + (i / r == i % r ? NS_A : 0.0f);
}

__global__ void update(float *w_next, const float *w, const float *x, float keep, float scale, int64_t n)
{
    TPO_EACH(i, n) w_next[i] = keep * w[i] - scale * x[i];
}

struct newton_schulz {
    float *a, *b, *p, *t; /* (r, r), polynomials of one symmetric matrix: symmetric, and they commute */
    int r;
};

/* c (m, n) = op(a) op(b) in cuBLAS's order, columns first; a symmetric matrix is its own transpose. */
static int multiply(struct tpo_stream *s, float *c, const float *a, cublasOperation_t opa, int lda, const float *b,
                    cublasOperation_t opb, int ldb, int m, int n, int k)
{
    const float one = 1.0f, zero = 0.0f;
    return tpo_cublas_code(cublasSgemm(tpo_cuda_of(s)->blas, opa, opb, m, n, k, &one, a, lda, b, ldb, &zero, c, m));
}

static int square_product(struct tpo_stream *s, float *y, const float *a, const float *b, int r)
{
    return multiply(s, y, a, CUBLAS_OP_N, r, b, CUBLAS_OP_N, r, r, r, r);
}

/* On squares alone, as optim_cpu.c explains; x (R, C) is there the matrix (C, R). */
static int newton_schulz(struct tpo_stream *s, struct newton_schulz *n, float *next, const float *x, int R, int C)
{
    const int64_t size = (int64_t)n->r * n->r;
    const bool wide = R < C;
    int rc = wide ? multiply(s, n->a, x, CUBLAS_OP_T, C, x, CUBLAS_OP_N, C, R, R, C)
                  : multiply(s, n->a, x, CUBLAS_OP_N, C, x, CUBLAS_OP_T, C, C, C, R);
    for (int i = 0; i < NS_STEPS && rc == TPO_OK; i++) {
        float *turned = n->t;
        rc = square_product(s, n->b, n->a, n->a, n->r);
        polynomial_ends<<<tpo_cuda_blocks(size, TPO_THREADS), TPO_THREADS, 0, tpo_cuda_stream(s)>>>(n->b, n->a, n->r, size);
        if (rc == TPO_OK && i == 0)
            rc = tpo_cuda_code(
                cudaMemcpyAsync(n->p, n->b, (size_t)size * sizeof(float), cudaMemcpyDeviceToDevice, tpo_cuda_stream(s)));
        if (rc == TPO_OK && i + 1 < NS_STEPS) rc = square_product(s, n->t, n->a, n->b, n->r);
        if (rc == TPO_OK && i + 1 < NS_STEPS) rc = square_product(s, n->a, n->t, n->b, n->r);
        if (rc != TPO_OK || i == 0) continue;
        rc = square_product(s, turned, n->p, n->b, n->r);
        n->t = n->p;
        n->p = turned;
    }
    if (rc != TPO_OK) return rc;
    return wide ? multiply(s, next, x, CUBLAS_OP_N, C, n->p, CUBLAS_OP_N, R, C, R, R)
                : multiply(s, next, n->p, CUBLAS_OP_N, C, x, CUBLAS_OP_N, C, C, R, C);
}

extern "C" int tpo_muon_cuda(struct tpo_stream *s, float *w_next, float *m_next, const float *w, const float *m, const float *g,
                             const struct tpo_muon *step, float *scratch, int R, int C)
{
    if (R < 1 || C < 1) return TPO_EINVAL;
    const int64_t size = (int64_t)R * C;
    const unsigned blocks = tpo_cuda_blocks(size, TPO_THREADS);
    float *x = scratch, *next = scratch + size, *squares = scratch + 2 * size;
    struct newton_schulz n = {NULL, NULL, NULL, NULL, R < C ? R : C};
    const int64_t square = (int64_t)n.r * n.r;
    n.a = squares, n.b = squares + square, n.p = squares + 2 * square, n.t = squares + 3 * square;
    momentum<<<blocks, TPO_THREADS, 0, tpo_cuda_stream(s)>>>(m_next, x, m, g, step->momentum, step->clip, size);
    const double *sum = tpo_cuda_sum(s, x, 1, size);
    if (sum == NULL) return TPO_ENOMEM;
    shrink<<<blocks, TPO_THREADS, 0, tpo_cuda_stream(s)>>>(x, sum, size);
    const int rc = newton_schulz(s, &n, next, x, R, C);
    if (rc != TPO_OK) return rc;
    update<<<blocks, TPO_THREADS, 0, tpo_cuda_stream(s)>>>(w_next, w, next, 1.0f - step->rate * step->decay,
                                                           step->rate * 0.2f * sqrtf((float)(R < C ? C : R)), size);
    return tpo_cuda_launched();
}
