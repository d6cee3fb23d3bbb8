/* tape.h -- tensors with a tape: a model's forward pass written once, run with or without gradients.
 *
 * A tape owns the memory of one forward pass and, when it records, the list of steps that run backwards. Every operation takes
 * the tape first and returns a new tensor; after the first failure the tape keeps the error, operations return NULL, and they
 * accept NULL, so that a model reads as the paper and asks tpo_tape_error once at its end.
 *
 * Gradients: a tensor has one when it needs one, that is when a parameter with grad != NULL or an input that asked is behind it.
 * Backward adds to parameters' grad and to inputs' grad, in the reverse order of the forward pass, always the same order. One
 * thread owns a tape. */
#ifndef TPO_NN_TAPE_H
#define TPO_NN_TAPE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/arena.h"
#include "kernels/attention.h"
#include "nn/params.h"

struct tpo_tensor {
    float *data;
    const uint16_t *half; /* a weight that stays bf16: data is NULL; products take it, and tpo_pick_rows as a source */
    /* NULL until backward first adds to it, and again once its own step has run; an input that asked keeps it (zeros where no loss
     * reached it). */
    float *grad;
    int rows, cols; /* everything is a matrix: leading dimensions folded into rows */
    int ld;         /* elements between rows; cols but for tpo_columns, which tpo_linear (as x) and tpo_attend alone take */
    bool needs_grad;
    bool borrowed;              /* grad belongs to a parameter or an input: always added to, never taken over */
    struct tpo_tensor *view_of; /* tpo_columns: gradients go straight into this one's */
    int view_column;
};

struct tpo_tape; /* opaque: its steps and arena */

/* record false: serving and frozen parts, no steps kept. */
int tpo_tape_open(struct tpo_tape **out, struct tpo_stream *s, bool record);
/* Whether n more floats fit beside what all tapes hold now (budget.h); always on a device with memory of its own. For what must be known before more
 * than a tape's memory is taken. */
bool tpo_tape_fits(const struct tpo_tape *t, int64_t n);
void tpo_tape_reset(struct tpo_tape *t, bool record); /* forgets tensors and the error, keeps the memory */
void tpo_tape_close(struct tpo_tape *t);              /* accepts NULL */
/* Just after a reset: memory for n floats in one piece, so that a pass of that size takes no more and its scopes all close. Less is no error. */
void tpo_tape_room(struct tpo_tape *t, int64_t n);
int tpo_tape_error(const struct tpo_tape *t); /* the first error, or TPO_OK */
/* Sets the first error: what failed beside the operations counts, too. True when code is TPO_OK and nothing has failed before. */
bool tpo_tape_check(struct tpo_tape *t, int code);
struct tpo_stream *tpo_tape_stream(const struct tpo_tape *t);
struct tpo_arena *tpo_tape_arena(struct tpo_tape *t); /* for what lives as long as the pass: index arrays, masks */

/* A scope keeps a deep network without gradients in the memory of one layer: at its end everything made since the mark is gone
 * but `keep`, which may have moved (use the tensor returned). Where gradients are needed, or memory lies awkwardly, it changes
 * nothing. */
struct tpo_scope {
    const void *block, *last;
    size_t used;
};
struct tpo_scope tpo_scope_begin(const struct tpo_tape *t);
struct tpo_tensor *tpo_scope_end(struct tpo_tape *t, struct tpo_scope scope, struct tpo_tensor *keep);

float *tpo_tape_floats(struct tpo_tape *t, int64_t n); /* device memory of the pass, not cleared; NULL sets the error */

/* A tensor that holds a copy of host `data` (NULL: zeros). */
struct tpo_tensor *tpo_input(struct tpo_tape *t, const float *data, int rows, int cols, bool needs_grad);
/* A parameter as a tensor of rows x cols (no copy). */
struct tpo_tensor *tpo_param_tensor(struct tpo_tape *t, struct tpo_param *p, int rows, int cols);

/* The same memory under another shape, and columns first..first+n-1 of x. */
struct tpo_tensor *tpo_reshape(struct tpo_tape *t, struct tpo_tensor *x, int rows, int cols);
struct tpo_tensor *tpo_columns(struct tpo_tape *t, struct tpo_tensor *x, int first, int n);

/* Layers (w, b: parameters; b may be NULL). A weight's rows are shape[0], whatever dimensions follow. */
struct tpo_tensor *tpo_linear(struct tpo_tape *t, struct tpo_tensor *x, struct tpo_param *w, struct tpo_param *b);
/* The same with tensors: x w^T + b, w (N, K), b (1, N) or NULL. */
struct tpo_tensor *tpo_product(struct tpo_tape *t, struct tpo_tensor *x, struct tpo_tensor *w, struct tpo_tensor *b);
/* x w^T + scale (drop(x) a^T) b^T; a NULL: tpo_linear. a (r, in), b (out, r). */
struct tpo_tensor *tpo_linear_lora(struct tpo_tape *t, struct tpo_tensor *x, struct tpo_param *w, struct tpo_param *a,
                                   struct tpo_param *b, float scale, float dropout, uint64_t key);
/* (1, 3C) = [q_bias | 0 | v_bias], the bias of the ViT's fused projection. */
struct tpo_tensor *tpo_qkv_bias(struct tpo_tape *t, struct tpo_param *q_bias, struct tpo_param *v_bias);
struct tpo_tensor *tpo_norm_layer(struct tpo_tape *t, struct tpo_tensor *x, struct tpo_param *w, struct tpo_param *b, float eps);
struct tpo_tensor *tpo_norm_rms(struct tpo_tape *t, struct tpo_tensor *x, struct tpo_param *w, float eps);
struct tpo_tensor *tpo_act_gelu(struct tpo_tape *t, struct tpo_tensor *x);
struct tpo_tensor *tpo_act_relu(struct tpo_tape *t, struct tpo_tensor *x);
struct tpo_tensor *tpo_act_swiglu(struct tpo_tape *t, struct tpo_tensor *gate, struct tpo_tensor *up);
struct tpo_tensor *tpo_plus(struct tpo_tape *t, struct tpo_tensor *a, struct tpo_tensor *b);           /* same shape */
struct tpo_tensor *tpo_plus_rows(struct tpo_tape *t, struct tpo_tensor *x, struct tpo_tensor *period); /* x[m] + period[m % rows] */
struct tpo_tensor *tpo_times(struct tpo_tape *t, struct tpo_tensor *x, float alpha);
struct tpo_tensor *tpo_drop(struct tpo_tape *t, struct tpo_tensor *x, float p, uint64_t key); /* p 0: x itself */
/* Stochastic depth: each group of `group` rows is dropped with probability p, the others grow by 1/(1-p). p 0: x itself. */
struct tpo_tensor *tpo_drop_groups(struct tpo_tape *t, struct tpo_tensor *x, float p, int group, uint64_t key);
/* Row m is row index[k][m] of sources[k], for the last k whose index is not negative; zeros where all are. Indices are copied. */
struct tpo_tensor *tpo_pick_rows(struct tpo_tape *t, int n_sources, struct tpo_tensor *const *sources, const int32_t *const *index,
                                 int rows);
struct tpo_tensor *tpo_take_rows(struct tpo_tape *t, struct tpo_tensor *x, const int32_t *index, int n); /* index is copied */
struct tpo_tensor *tpo_concat_rows(struct tpo_tape *t, struct tpo_tensor *a, struct tpo_tensor *b);
/* Cosines and sines of the positions of n rows, made once for all layers. */
struct tpo_angles {
    float *cos_table, *sin_table; /* (n, head_dim / 2) */
    int n, head_dim;
};
struct tpo_angles tpo_angles_make(struct tpo_tape *t, const int32_t *positions, int n, double theta, int head_dim);
struct tpo_tensor *tpo_rotate(struct tpo_tape *t, struct tpo_tensor *x, const struct tpo_angles *angles, int heads);
/* Rows are (B*T) and (B*S), columns heads*D; the shape's distances are filled in from the tensors. */
struct tpo_tensor *tpo_attend(struct tpo_tape *t, struct tpo_tensor *q, struct tpo_tensor *k, struct tpo_tensor *v,
                              const struct tpo_attention_shape *shape);

/* Losses: 1 x 1 tensors. `scale` multiplies the sum over rows (1/n for a mean). */
struct tpo_tensor *tpo_loss_cross_entropy(struct tpo_tape *t, struct tpo_tensor *logits, const int32_t *label, const float *weight,
                                          float scale);
struct tpo_tensor *tpo_loss_l1(struct tpo_tape *t, struct tpo_tensor *p, const float *target, const float *weight, float scale);
struct tpo_tensor *tpo_loss_mse(struct tpo_tape *t, struct tpo_tensor *p, const float *target, const float *weight, float scale);
struct tpo_tensor *tpo_loss_box(struct tpo_tape *t, struct tpo_tensor *p, const float *boxes, float l1_weight, float giou_weight);
struct tpo_tensor *tpo_loss_attention_rows(struct tpo_tape *t, struct tpo_tensor *q, struct tpo_tensor *k,
                                           const struct tpo_attention_shape *shape, const int32_t *rows, const float *target,
                                           const float *weight, int n);

struct tpo_tensor *tpo_loss_sum(struct tpo_tape *t, struct tpo_tensor *a, struct tpo_tensor *b); /* either may be NULL: the other */
float tpo_value(struct tpo_tape *t, const struct tpo_tensor *x);           /* of a 1 x 1 tensor; NaN after an error */
int tpo_read(struct tpo_tape *t, float *host, const struct tpo_tensor *x); /* x's rows, contiguous */

/* Adds `upstream` (x->rows * x->cols, or NULL for all ones times `scale`) to x's gradient; then backward runs every step once. */
void tpo_seed(struct tpo_tape *t, struct tpo_tensor *x, const float *upstream, float scale);
int tpo_tape_backward(struct tpo_tape *t);

/* Until the next reset backward calls `complete` for each parameter of the pass once its gradient is whole: nothing of this pass adds to it any
 * more. */
void tpo_tape_on_complete(struct tpo_tape *t, void (*complete)(void *arg, struct tpo_param *p), void *arg);

#endif
