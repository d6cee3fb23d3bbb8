/* norm.h -- layer norm and RMS norm over the last dimension, with their gradients.
 *
 * Layer norm (Ba et al. 2016, arXiv:1607.06450):  y = (x - mean) / sqrt(var + eps) * w + b, variance in two passes
 * RMS norm (Zhang & Sennrich 2019, eq. 4):        y = x / sqrt(mean(x^2) + eps) * w
 *
 *   x, y, dx, dy  (M, C) f32      w, b, dw, db  (C) f32      rows of x and y may be the same memory in the forward pass
 *   mean, rstd    (M) f32, written forward where not NULL, read backward
 *
 * Backward: dx is written (or added to with `add`); dw and db are added to, in row order; either may be NULL (frozen). dx may be dy.
 * TPO_EINVAL when a size is not positive. */
#ifndef TPO_KERNELS_NORM_H
#define TPO_KERNELS_NORM_H

#include "kernels/stream.h"

int tpo_layernorm(struct tpo_stream *s, float *y, float *mean, float *rstd, const float *x, const float *w, const float *b,
                  float eps, int M, int C);
int tpo_layernorm_grad(struct tpo_stream *s, float *dx, float *dw, float *db, const float *dy, const float *x, const float *w,
                       const float *mean, const float *rstd, int add, int M, int C);
int tpo_rmsnorm(struct tpo_stream *s, float *y, float *rstd, const float *x, const float *w, float eps, int M, int C);
int tpo_rmsnorm_grad(struct tpo_stream *s, float *dx, float *dw, const float *dy, const float *x, const float *w, const float *rstd,
                     int add, int M, int C);

#endif
