/* activation.h -- pointwise functions and their gradients, n elements, f32. Outputs may alias inputs element for element.
 *
 *   gelu    x/2 (1 + erf(x/sqrt 2)), the exact form (Hendrycks & Gimpel 2016)
 *   relu    max(x, 0); gradient 0 at 0
 *   swiglu  y = silu(g) u (Shazeer 2020, arXiv:2002.05202), g and u (M, C) with row distance ld, y (M, C) contiguous
 * Gradients take the forward input and are written, or added with `add`. */
#ifndef TPO_KERNELS_ACTIVATION_H
#define TPO_KERNELS_ACTIVATION_H

#include "kernels/stream.h"

int tpo_gelu(struct tpo_stream *s, float *y, const float *x, int64_t n);
int tpo_gelu_grad(struct tpo_stream *s, float *dx, const float *dy, const float *x, int add, int64_t n);
int tpo_relu(struct tpo_stream *s, float *y, const float *x, int64_t n);
int tpo_relu_grad(struct tpo_stream *s, float *dx, const float *dy, const float *x, int add, int64_t n);
int tpo_swiglu(struct tpo_stream *s, float *y, const float *g, const float *u, int ld, int M, int C);
int tpo_swiglu_grad(struct tpo_stream *s, float *dg, float *du, const float *dy, const float *g, const float *u, int ld, int add,
                    int M, int C);

#endif
