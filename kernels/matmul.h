/* matmul.h -- products with a weight stored as [out, in], the checkpoint's own layout, in place.
 *
 *   tpo_matmul      y (M, N)  = x (M, K) w (N, K)^T + bias (N)             prefill, encoders, training
 *   tpo_matvec      the same for 1..16 rows, M < 17                        decode: one pass over the weights
 *   tpo_matmul_dx   dx (M, K) = dy (M, N) w (N, K)                         gradient of x
 *   tpo_matmul_dw   dw (N, K) = dy (M, N)^T x (M, K)                       gradient of w; bias_grad below for b
 *
 * w is F32, or BF16 as it lies in a file: then every element counts as the f32 of the same value, and all sums are f32. On a stream that
 * `rounds` (stream.h) tpo_matmul rounds x to bf16 beside a BF16 w (to nearest, ties to even) and takes elements of both that are too small for a
 * normal number for zero. Nothing else here rounds, the few rows of matvec included.
 * `bias` may be NULL. `add` non-zero adds to what the output holds (bias included once). All f32; leading dimensions ldx, ldy, ... are
 * the distance between rows in elements, so that a slice of a wider matrix is an operand. No operand may alias the output.
 *
 * A row of y (of dx) has the same bits whatever M is: every element is summed along the depth in one order, in chunks of fixed length. matvec has
 * an order of its own (different bits from matmul), equal for every number of rows. tpo_matmul and tpo_matmul_dx pack a few megabytes of the
 * weights at a time into memory of the stream; nobody keeps a second copy. (On CUDA cuBLAS chooses its code by shape, so there a row's bits may
 * depend on M; equal calls have equal bits.)
 *
 * TPO_EINVAL when a size is not positive or a leading dimension is too small; the output is untouched then. */
#ifndef TPO_KERNELS_MATMUL_H
#define TPO_KERNELS_MATMUL_H

#include <stdint.h>

#include "common/dtype.h"
#include "kernels/stream.h"

#define TPO_MATVEC_ROWS 16

struct tpo_weight {
    const void *data;
    enum tpo_dtype dtype; /* TPO_F32 or TPO_BF16 */
};
static inline struct tpo_weight tpo_f32(const float *data)
{
    return (struct tpo_weight){data, TPO_F32};
}
static inline struct tpo_weight tpo_bf16(const uint16_t *data)
{
    return (struct tpo_weight){data, TPO_BF16};
}

int tpo_matmul(struct tpo_stream *s, float *y, int ldy, const float *x, int ldx, struct tpo_weight w, const float *bias, int add,
               int M, int N, int K);
int tpo_matvec(struct tpo_stream *s, float *y, int ldy, const float *x, int ldx, struct tpo_weight w, const float *bias, int add,
               int M, int N, int K);
int tpo_matmul_dx(struct tpo_stream *s, float *dx, int lddx, const float *dy, int lddy, struct tpo_weight w, int add, int M, int N,
                  int K);
int tpo_matmul_dw(struct tpo_stream *s, float *dw, const float *dy, int lddy, const float *x, int ldx, int add, int M, int N,
                  int K);

/* db (N) = sum of the rows of dy (M, N), added in row order; `add` as above. */
int tpo_bias_grad(struct tpo_stream *s, float *db, const float *dy, int lddy, int add, int M, int N);

#endif
