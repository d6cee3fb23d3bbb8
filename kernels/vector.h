/* vector.h -- whole-array arithmetic, f32, n elements; outputs may alias inputs element for element.
 *
 *   tpo_add       y = a + b                tpo_axpy   y += alpha x            tpo_scale  y = alpha x
 *   tpo_fill      y = value                tpo_sum    *out = sum x, f64, fixed order (blocks of 4096 summed in order)
 *   tpo_sumsq     *out = sum x^2 in f64, the same order                       (products are matmul.h's)
 *   tpo_dropout   y = x * keep / (1-p), keep drawn by tpo_random(key, i) >= p; the gradient is the same call on dy
 *   tpo_bf16_to_f32, tpo_f16_to_f32, tpo_f32_to_bf16 (round to nearest even): weights in and out
 *
 * The sums are written to host memory, so those calls wait for the device.
 *
 * tpo_random is counter-based (a keyed 64-bit mixer of key and counter), so a value depends on (key, counter) alone. */
#ifndef TPO_KERNELS_VECTOR_H
#define TPO_KERNELS_VECTOR_H

#include "kernels/stream.h"

int tpo_add(struct tpo_stream *s, float *y, const float *a, const float *b, int64_t n);
int tpo_axpy(struct tpo_stream *s, float *y, float alpha, const float *x, int64_t n);
int tpo_scale(struct tpo_stream *s, float *y, float alpha, const float *x, int64_t n);
int tpo_fill(struct tpo_stream *s, float *y, float value, int64_t n);
int tpo_sum(struct tpo_stream *s, double *out, const float *x, int64_t n);
int tpo_sumsq(struct tpo_stream *s, double *out, const float *x, int64_t n);
int tpo_dropout(struct tpo_stream *s, float *y, const float *x, float p, uint64_t key, int64_t n);
int tpo_bf16_to_f32(struct tpo_stream *s, float *y, const uint16_t *x, int64_t n);
int tpo_f16_to_f32(struct tpo_stream *s, float *y, const uint16_t *x, int64_t n);
int tpo_f32_to_bf16(struct tpo_stream *s, uint16_t *y, const float *x, int64_t n);

uint64_t tpo_random_u64(uint64_t key, uint64_t counter);
float tpo_random(uint64_t key, uint64_t counter);        /* uniform in [0, 1) */
float tpo_random_normal(uint64_t key, uint64_t counter); /* standard normal, Box-Muller on two uniforms of this counter */
/* y[i] = scale times the standard normal of counter first + i, several times as fast. */
void tpo_random_normals(float *y, int64_t n, float scale, uint64_t key, uint64_t first);

#endif
