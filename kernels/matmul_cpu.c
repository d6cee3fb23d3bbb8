/* This file owns the CPU's products with a weight: which operand of products.h each one is. */
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/products.h"
#include "kernels/simd.h"

int tpo_matmul_cpu(struct tpo_stream *s, float *y, int ldy, const float *x, int ldx, struct tpo_weight w, const float *bias,
                   int add, int M, int N, int K)
{
    if (M < 1 || N < 1 || K < 1 || ldx < K || ldy < N) return TPO_EINVAL;
    struct tpo_product p = {.y = y,
                            .ldy = ldy,
                            .a = x,
                            .lda = ldx,
                            .b = w.data,
                            .b_half = w.dtype == TPO_BF16,
                            .ldb = K,
                            .b_turned = 1,
                            .bias = bias,
                            .add = add};
    p.rows = M, p.cols = N, p.depth = K;
    return tpo_product_run(s, &p);
}

int tpo_matmul_dx_cpu(struct tpo_stream *s, float *dx, int lddx, const float *dy, int lddy, struct tpo_weight w, int add, int M,
                      int N, int K)
{
    if (M < 1 || N < 1 || K < 1 || lddx < K || lddy < N) return TPO_EINVAL;
    struct tpo_product p = {
        .y = dx, .ldy = lddx, .a = dy, .lda = lddy, .b = w.data, .b_half = w.dtype == TPO_BF16, .ldb = K, .add = add};
    p.rows = M, p.cols = K, p.depth = N;
    return tpo_product_run(s, &p);
}

int tpo_matmul_dw_cpu(struct tpo_stream *s, float *dw, const float *dy, int lddy, const float *x, int ldx, int add, int M, int N,
                      int K)
{
    if (M < 1 || N < 1 || K < 1 || lddy < N || ldx < K) return TPO_EINVAL;
    struct tpo_product p = {.y = dw, .ldy = K, .a = dy, .lda = lddy, .a_turned = 1, .b = x, .ldb = ldx, .add = add};
    p.rows = N, p.cols = K, p.depth = M;
    return tpo_product_run(s, &p);
}

/* --- gradient of the bias ---------------------------------------------------------------------------------------------------------- */

struct bias_grad {
    float *db;
    const float *dy;
    int lddy, add, M, N;
};

static void run_bias_grad(void *arg, int part, int member)
{
    (void)member;
    const struct bias_grad *b = arg;
    int c0 = part * TPO_COLUMNS, cols = (int)tpo_min64(TPO_COLUMNS, b->N - c0);
    float *db = b->db + c0;
    if (!b->add) memset(db, 0, (size_t)cols * sizeof(*db));
    tpo_simd()->column_sums(db, b->dy + c0, b->lddy, b->M, cols);
}

int tpo_bias_grad_cpu(struct tpo_stream *s, float *db, const float *dy, int lddy, int add, int M, int N)
{
    if (M < 1 || N < 1 || lddy < N) return TPO_EINVAL;
    struct bias_grad b = {db, dy, lddy, add, M, N};
    tpo_team_run(s->team, run_bias_grad, &b, tpo_parts(N, TPO_COLUMNS));
    return TPO_OK;
}
