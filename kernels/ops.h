/* ops.h -- what a device is: memory, and one function for every operation, from ONE list.
 *
 * From TPO_OPS come the table's members, the public functions of the kernels' headers (ops.c) and the declarations of the CPU twins.
 * A device that lives in a library of its own exports `const struct tpo_device *tpo_NAME_device(int version)`, which answers NULL when
 * it was built for another TPO_DEVICE_VERSION. */
#ifndef TPO_KERNELS_OPS_H
#define TPO_KERNELS_OPS_H

#include "kernels/activation.h"
#include "kernels/attention.h"
#include "kernels/loss.h"
#include "kernels/matmul.h"
#include "kernels/norm.h"
#include "kernels/optim.h"
#include "kernels/resize.h"
#include "kernels/rope.h"
#include "kernels/rows.h"
#include "kernels/stream.h"
#include "kernels/vector.h"

#define TPO_DEVICE_VERSION 3 /* counts changes of this file */

/* X(name, parameters, arguments) */
#define TPO_OPS(X)                                                                                                                 \
    X(matmul,                                                                                                                      \
      (struct tpo_stream * s, float *y, int ldy, const float *x, int ldx, struct tpo_weight w, const float *bias, int add, int M,  \
       int N, int K),                                                                                                              \
      (s, y, ldy, x, ldx, w, bias, add, M, N, K))                                                                                  \
    X(matvec,                                                                                                                      \
      (struct tpo_stream * s, float *y, int ldy, const float *x, int ldx, struct tpo_weight w, const float *bias, int add, int M,  \
       int N, int K),                                                                                                              \
      (s, y, ldy, x, ldx, w, bias, add, M, N, K))                                                                                  \
    X(matmul_dx,                                                                                                                   \
      (struct tpo_stream * s, float *dx, int lddx, const float *dy, int lddy, struct tpo_weight w, int add, int M, int N, int K),  \
      (s, dx, lddx, dy, lddy, w, add, M, N, K))                                                                                    \
    X(matmul_dw,                                                                                                                   \
      (struct tpo_stream * s, float *dw, const float *dy, int lddy, const float *x, int ldx, int add, int M, int N, int K),        \
      (s, dw, dy, lddy, x, ldx, add, M, N, K))                                                                                     \
    X(bias_grad, (struct tpo_stream * s, float *db, const float *dy, int lddy, int add, int M, int N),                             \
      (s, db, dy, lddy, add, M, N))                                                                                                \
    X(layernorm,                                                                                                                   \
      (struct tpo_stream * s, float *y, float *mean, float *rstd, const float *x, const float *w, const float *b, float eps,       \
       int M, int C),                                                                                                              \
      (s, y, mean, rstd, x, w, b, eps, M, C))                                                                                      \
    X(layernorm_grad,                                                                                                              \
      (struct tpo_stream * s, float *dx, float *dw, float *db, const float *dy, const float *x, const float *w, const float *mean, \
       const float *rstd, int add, int M, int C),                                                                                  \
      (s, dx, dw, db, dy, x, w, mean, rstd, add, M, C))                                                                            \
    X(rmsnorm, (struct tpo_stream * s, float *y, float *rstd, const float *x, const float *w, float eps, int M, int C),            \
      (s, y, rstd, x, w, eps, M, C))                                                                                               \
    X(rmsnorm_grad,                                                                                                                \
      (struct tpo_stream * s, float *dx, float *dw, const float *dy, const float *x, const float *w, const float *rstd, int add,   \
       int M, int C),                                                                                                              \
      (s, dx, dw, dy, x, w, rstd, add, M, C))                                                                                      \
    X(gelu, (struct tpo_stream * s, float *y, const float *x, int64_t n), (s, y, x, n))                                            \
    X(gelu_grad, (struct tpo_stream * s, float *dx, const float *dy, const float *x, int add, int64_t n), (s, dx, dy, x, add, n))  \
    X(relu, (struct tpo_stream * s, float *y, const float *x, int64_t n), (s, y, x, n))                                            \
    X(relu_grad, (struct tpo_stream * s, float *dx, const float *dy, const float *x, int add, int64_t n), (s, dx, dy, x, add, n))  \
    X(swiglu, (struct tpo_stream * s, float *y, const float *g, const float *u, int ld, int M, int C), (s, y, g, u, ld, M, C))     \
    X(swiglu_grad,                                                                                                                 \
      (struct tpo_stream * s, float *dg, float *du, const float *dy, const float *g, const float *u, int ld, int add, int M,       \
       int C),                                                                                                                     \
      (s, dg, du, dy, g, u, ld, add, M, C))                                                                                        \
    X(rope_table,                                                                                                                  \
      (struct tpo_stream * s, float *cos_table, float *sin_table, const int32_t *positions, double theta, int n, int D),           \
      (s, cos_table, sin_table, positions, theta, n, D))                                                                           \
    X(rope,                                                                                                                        \
      (struct tpo_stream * s, float *x, int ld, const float *cos_table, const float *sin_table, int inverse, int M, int H, int D), \
      (s, x, ld, cos_table, sin_table, inverse, M, H, D))                                                                          \
    X(attention,                                                                                                                   \
      (struct tpo_stream * s, float *out, float *lse, const float *q, const float *k, const float *v,                              \
       const struct tpo_attention_shape *shape),                                                                                   \
      (s, out, lse, q, k, v, shape))                                                                                               \
    X(attention_grad,                                                                                                              \
      (struct tpo_stream * s, float *dq, float *dk, float *dv, const float *dout, const float *out, const float *lse,              \
       const float *q, const float *k, const float *v, int add, const struct tpo_attention_shape *shape),                          \
      (s, dq, dk, dv, dout, out, lse, q, k, v, add, shape))                                                                        \
    X(attention_rows,                                                                                                              \
      (struct tpo_stream * s, float *loss, const float *q, const float *k, const int32_t *rows, const float *target,               \
       const float *weight, int n, const struct tpo_attention_shape *shape),                                                       \
      (s, loss, q, k, rows, target, weight, n, shape))                                                                             \
    X(attention_rows_grad,                                                                                                         \
      (struct tpo_stream * s, float *dq, float *dk, float upstream, const float *q, const float *k, const int32_t *rows,           \
       const float *target, const float *weight, int n, const struct tpo_attention_shape *shape),                                  \
      (s, dq, dk, upstream, q, k, rows, target, weight, n, shape))                                                                 \
    X(attention_paged,                                                                                                             \
      (struct tpo_stream * s, float *out, const float *q, const float *pool_k, const float *pool_v,                                \
       const struct tpo_paged_shape *shape),                                                                                       \
      (s, out, q, pool_k, pool_v, shape))                                                                                          \
    X(kv_write,                                                                                                                    \
      (struct tpo_stream * s, float *pool_k, float *pool_v, const float *k, int ldk, const float *v, int ldv,                      \
       const struct tpo_paged_shape *shape),                                                                                       \
      (s, pool_k, pool_v, k, ldk, v, ldv, shape))                                                                                  \
    X(cross_entropy,                                                                                                               \
      (struct tpo_stream * s, float *loss, const float *logits, const int32_t *label, const float *weight, int M, int V),          \
      (s, loss, logits, label, weight, M, V))                                                                                      \
    X(cross_entropy_grad,                                                                                                          \
      (struct tpo_stream * s, float *dlogits, const float *logits, const int32_t *label, const float *weight, float upstream,      \
       int M, int V),                                                                                                              \
      (s, dlogits, logits, label, weight, upstream, M, V))                                                                         \
    X(box_loss, (struct tpo_stream * s, float *out, float *giou, const float *p, const float *g, int n), (s, out, giou, p, g, n))  \
    X(box_loss_grad, (struct tpo_stream * s, float *dp, const float *p, const float *g, float up_l1, float up_giou, int n),        \
      (s, dp, p, g, up_l1, up_giou, n))                                                                                            \
    X(l1_rows, (struct tpo_stream * s, float *loss, const float *p, const float *g, const float *weight, int M, int C),            \
      (s, loss, p, g, weight, M, C))                                                                                               \
    X(l1_rows_grad,                                                                                                                \
      (struct tpo_stream * s, float *dp, const float *p, const float *g, const float *weight, float upstream, int M, int C),       \
      (s, dp, p, g, weight, upstream, M, C))                                                                                       \
    X(mse_rows, (struct tpo_stream * s, float *loss, const float *p, const float *g, const float *weight, int M, int C),           \
      (s, loss, p, g, weight, M, C))                                                                                               \
    X(mse_rows_grad,                                                                                                               \
      (struct tpo_stream * s, float *dp, const float *p, const float *g, const float *weight, float upstream, int M, int C),       \
      (s, dp, p, g, weight, upstream, M, C))                                                                                       \
    X(argmax, (struct tpo_stream * s, int32_t * out, const float *x, int M, int V), (s, out, x, M, V))                             \
    X(rows_gather, (struct tpo_stream * s, float *y, const float *table, const int32_t *index, int M, int C, int n_rows),          \
      (s, y, table, index, M, C, n_rows))                                                                                          \
    X(rows_scatter,                                                                                                                \
      (struct tpo_stream * s, float *table, const float *x, const int32_t *index, int add, int M, int C, int n_rows),              \
      (s, table, x, index, add, M, C, n_rows))                                                                                     \
    X(add_rows, (struct tpo_stream * s, float *y, const float *x, int M, int period, int C), (s, y, x, M, period, C))              \
    X(sum_rows, (struct tpo_stream * s, float *y, const float *x, int M, int period, int C), (s, y, x, M, period, C))              \
    X(patchify, (struct tpo_stream * s, float *rows, const float *pixels, int B, int T, int H, int W, int patch, int tubelet),     \
      (s, rows, pixels, B, T, H, W, patch, tubelet))                                                                               \
    X(add, (struct tpo_stream * s, float *y, const float *a, const float *b, int64_t n), (s, y, a, b, n))                          \
    X(axpy, (struct tpo_stream * s, float *y, float alpha, const float *x, int64_t n), (s, y, alpha, x, n))                        \
    X(scale, (struct tpo_stream * s, float *y, float alpha, const float *x, int64_t n), (s, y, alpha, x, n))                       \
    X(fill, (struct tpo_stream * s, float *y, float value, int64_t n), (s, y, value, n))                                           \
    X(sum, (struct tpo_stream * s, double *out, const float *x, int64_t n), (s, out, x, n))                                        \
    X(sumsq, (struct tpo_stream * s, double *out, const float *x, int64_t n), (s, out, x, n))                                      \
    X(dropout, (struct tpo_stream * s, float *y, const float *x, float p, uint64_t key, int64_t n), (s, y, x, p, key, n))          \
    X(bf16_to_f32, (struct tpo_stream * s, float *y, const uint16_t *x, int64_t n), (s, y, x, n))                                  \
    X(f16_to_f32, (struct tpo_stream * s, float *y, const uint16_t *x, int64_t n), (s, y, x, n))                                   \
    X(f32_to_bf16, (struct tpo_stream * s, uint16_t * y, const float *x, int64_t n), (s, y, x, n))                                 \
    X(resize_u8, (struct tpo_stream * s, uint8_t * dst, int h, int w, const uint8_t *src, int H, int W, int antialias),            \
      (s, dst, h, w, src, H, W, antialias))                                                                                        \
    X(resize_f32, (struct tpo_stream * s, float *dst, int h, int w, const float *src, int C, int H, int W, int antialias),         \
      (s, dst, h, w, src, C, H, W, antialias))                                                                                     \
    X(normalise, (struct tpo_stream * s, float *dst, const uint8_t *src, const float mean[3], const float std[3], int H, int W),   \
      (s, dst, src, mean, std, H, W))                                                                                              \
    X(adamw,                                                                                                                       \
      (struct tpo_stream * s, float *w_next, float *m_next, float *v_next, const float *w, const float *m, const float *v,         \
       const float *g, const struct tpo_adamw *step, int64_t n),                                                                   \
      (s, w_next, m_next, v_next, w, m, v, g, step, n))                                                                            \
    X(muon,                                                                                                                        \
      (struct tpo_stream * s, float *w_next, float *m_next, const float *w, const float *m, const float *g,                        \
       const struct tpo_muon *step, float *scratch, int R, int C),                                                                 \
      (s, w_next, m_next, w, m, g, step, scratch, R, C))

struct tpo_ops {
#define X(name, parameters, arguments) int(*name) parameters;
    TPO_OPS(X)
#undef X
};

struct tpo_device {
    const char *name;
    struct tpo_ops ops;
    int (*open)(struct tpo_stream *s, int n_threads, struct tpo_error *err); /* fills team or queue */
    void (*close)(struct tpo_stream *s);                                     /* accepts the half-open */
    void *(*alloc)(struct tpo_stream *s, size_t bytes);
    void (*free)(struct tpo_stream *s, void *block);
    int (*copy_in)(struct tpo_stream *s, void *device_dst, const void *host_src, size_t bytes);
    int (*copy_out)(struct tpo_stream *s, void *host_dst, const void *device_src, size_t bytes);
    int (*wait)(struct tpo_stream *s);
    int (*pairs)(void); /* whether it multiplies pairs of bf16, rounding to them; NULL: no */
};

extern const struct tpo_device tpo_device_cpu;

#define X(name, parameters, arguments) int tpo_##name##_cpu parameters;
TPO_OPS(X)
#undef X

#endif
