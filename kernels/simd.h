/* simd.h -- the inner loops of the CPU's kernels, built once per instruction set from simd_body.h. Private to kernels/.
 *
 * They know rows and spans, no streams and no teams. Outputs may alias inputs element for element. */
#ifndef TPO_KERNELS_SIMD_H
#define TPO_KERNELS_SIMD_H

#include <stdint.h>

#include "kernels/optim.h"

struct tpo_adamw_span {
    float *w_next, *m_next, *v_next;
    const float *w, *m, *v, *g;
    float fix_m, fix_v; /* 1 / (1 - beta^t) */
};

#define TPO_STRIP 6 /* rows of a product that one strip holds */

/* y (rows, cols) [+]= a (rows, depth) b (depth, panel_width) [+ bias]; what b holds past `cols` is computed and dropped. */
struct tpo_panel_sum {
    float *y;
    const float *a; /* element (r, d) at r*lda + d; lda 0: strips (depth, TPO_STRIP), one after the other */
    const float *b;
    const float *bias; /* or NULL */
    int64_t ldy, lda;
    int add, rows, cols, depth;
};

#define TPO_SIMD(X)                                                                                                                        \
    /* pointwise */                                                                                                                        \
    X(void, add, (float *y, const float *a, const float *b, int64_t n))                                                                    \
    X(void, axpy, (float *y, float alpha, const float *x, int64_t n))                                                                      \
    X(void, scale, (float *y, float alpha, const float *x, int64_t n))                                                                     \
    X(void, fill, (float *y, float value, int64_t n))                                                                                      \
    X(void, bf16_to_f32, (float *y, const uint16_t *x, int64_t n))                                                                         \
    X(void, f32_to_bf16, (uint16_t * y, const float *x, int64_t n))                                                                        \
    X(void, dropout, (float *y, const float *x, float p, uint64_t key, uint64_t counter, int64_t n))                                       \
    X(void, relu, (float *y, const float *x, int64_t n))                                                                                   \
    X(void, relu_grad, (float *dx, const float *dy, const float *x, int add, int64_t n))                                                   \
    X(void, gelu, (float *y, const float *x, int64_t n))                                                                                   \
    X(void, gelu_grad, (float *dx, const float *dy, const float *x, int add, int64_t n))                                                   \
    X(void, swiglu, (float *y, const float *g, const float *u, int64_t n))                                                                 \
    X(void, swiglu_grad, (float *dg, float *du, const float *dy, const float *g, const float *u, int add, int64_t n))                      \
    X(void, rotate, (float *x, const float *c, const float *s, float sign, int half))                                                      \
    X(void, adamw, (const struct tpo_adamw_span *a, const struct tpo_adamw *step, int64_t n))                                              \
    /* to[c * ldto + r] = from[r * ldfrom + c]; may not alias */                                                                           \
    X(void, transpose, (float *to, int64_t ldto, const float *from, int64_t ldfrom, int rows, int cols))                                   \
    /* n rows of C floats -> N rows of Cp (whole vectors), the rest zero */                                                                \
    X(void, pack, (float *to, int Cp, int64_t N, const float *from, int64_t ldfrom, int64_t n, int C))                                     \
    /* columns of a panel, and the product with one: every element is summed alike along the depth, whatever rows it is computed with */   \
    X(int, panel_width, (void))                                                                                                            \
    X(void, panel_sum, (const struct tpo_panel_sum *p))                                                                                    \
    /* the same, but for strips, where every element of a and b is a pair of bf16, whose two products are added; fast where pairs() is   \
     * not zero, and there what is too small for a normal number counts as zero */ \
    X(int, pairs, (void))                                                                                                                  \
    X(void, pairs_sum, (const struct tpo_panel_sum *p))                                                                                    \
    /* n numbers to nearest bf16, and a zero where n is odd; what is too small for a normal number may become zero */                      \
    X(void, round_row, (uint16_t * to, const float *x, int64_t n))                                                                         \
    /* element (r, d) at from[d * ldfrom + r] -> strips (depth, TPO_STRIP) of rows; what a last strip lacks is left as it was */           \
    X(void, pack_strips, (float *to, const float *from, int64_t ldfrom, int rows, int depth))                                              \
    /* Muon's momentum: m_next = beta m + g clip; x = g clip + beta m_next (Nesterov) */                                                   \
    X(void, momentum, (float *m_next, float *x, const float *m, const float *g, float beta, float clip, int64_t n))                        \
    /* sums: lane by lane, then over the lanes */                                                                                          \
    X(float, dot, (const float *a, const float *b, int64_t n))                                                                             \
    X(double, sum, (const float *x, int square, int64_t n))                                                                                \
    X(void, pair_up, (float *to, const float *x, int64_t n))                                                                               \
    /* y[m][n] for `rows` rows of x and `cols` rows of w: each a dot, plus bias, plus what y holds with `add` */                           \
    X(void, dots,                                                                                                                          \
      (float *y, int64_t ldy, const float *x, int64_t ldx, const float *w, int64_t ldw, const float *bias, int add, int rows,              \
       int cols, int K))                                                                                                                   \
    X(void, dots_half, /* the same with a bf16 w and rows of x from pair_up */                                                             \
      (float *y, int64_t ldy, const float *x, int64_t ldx, const uint16_t *w, int64_t ldw, const float *bias, int add, int rows,           \
       int cols, int K))                                                                                                                   \
    /* sum[c] += over M rows, in order, of dy[m][c] */                                                                                     \
    X(void, column_sums, (float *sum, const float *dy, int64_t ld, int M, int cols))                                                       \
    /* dw[c] += dy z and db[c] += dy over M rows, z = (x - mean) rstd; mean, dw, db may be NULL */                                         \
    X(void, norm_columns,                                                                                                                  \
      (float *dw, float *db, const float *dy, const float *x, const float *mean, const float *rstd, int64_t ld, int M, int cols))          \
    /* one row; mean NULL: RMS norm */                                                                                                     \
    X(void, norm, (float *y, float *mean, float *rstd, const float *x, const float *w, const float *b, float eps, int C))                  \
    X(void, norm_grad,                                                                                                                     \
      (float *dx, const float *dy, const float *x, const float *w, const float *mean, float rstd, int add, int C))                         \
    /* log_sum_exp: -INFINITY where all are; exp_scaled: scale e^(x - minus) */                                                            \
    X(float, log_sum_exp, (const float *x, int64_t n))                                                                                     \
    X(void, exp_scaled, (float *y, const float *x, float minus, float scale, int64_t n))

struct tpo_simd {
#define X(type, name, parameters) type(*name) parameters;
    TPO_SIMD(X)
#undef X
};

/* The build for the widest instruction set of this machine. */
const struct tpo_simd *tpo_simd(void);

extern const struct tpo_simd tpo_simd_portable, tpo_simd_avx2, tpo_simd_avx512, tpo_simd_avx512bf16;

#endif
