/* tape.h -- tensors with a tape: a model's forward pass written once, run with or without gradients.
 *
 * A tape owns the memory of one forward pass and, when it records, the list of steps that run backwards. Every operation takes the tape first
 * and returns a new tensor; after the first failure the tape keeps the error, operations return NULL, and they accept NULL, so that a
 * model reads as the paper and asks tpo_tape_error once at its end.
 *
 * Gradients: a tensor has one when it needs one, that is when a parameter with grad != NULL or an input that asked is behind it. Backward adds to parameters'
 * grad and to inputs' grad, in the reverse order of the forward pass, always the same order. One thread owns a tape. */
#ifndef TPO_NN_TAPE_H
#define TPO_NN_TAPE_H

#include <stdbool.h>
#include <stdint.h>

#include "common/arena.h"
#include "kernels/attention.h"
#include "nn/params.h"

struct tpo_tensor {
    float *data;
    float *grad; /* NULL until needed; then zeroed before anything is added */
    int rows, cols; /* everything is a matrix: leading dimensions folded into rows */
    bool needs_grad;
};

struct tpo_tape; /* opaque: its steps and arena */

/* record false: serving and frozen parts, no steps kept. */
int tpo_tape_open(struct tpo_tape **out, struct tpo_stream *s, bool record);
void tpo_tape_reset(struct tpo_tape *t, bool record); /* forgets tensors and the error, keeps the memory */
void tpo_tape_close(struct tpo_tape *t);              /* accepts NULL */
int tpo_tape_error(const struct tpo_tape *t);         /* the first error, or TPO_OK */
struct tpo_stream *tpo_tape_stream(const struct tpo_tape *t);
bool tpo_tape_recording(const struct tpo_tape *t);
struct tpo_arena *tpo_tape_arena(struct tpo_tape *t); /* for what lives as long as the pass: index arrays, masks */

/* A tensor that holds a copy of host `data` (NULL: zeros). */
struct tpo_tensor *tpo_input(struct tpo_tape *t, const float *data, int rows, int cols, bool needs_grad);
/* A parameter as a tensor of rows x cols (no copy). */
struct tpo_tensor *tpo_param_tensor(struct tpo_tape *t, struct tpo_param *p, int rows, int cols);

/* Layers (w, b: parameters; b may be NULL). */
struct tpo_tensor *tpo_linear(struct tpo_tape *t, struct tpo_tensor *x, struct tpo_param *w, struct tpo_param *b);
struct tpo_tensor *tpo_norm_layer(struct tpo_tape *t, struct tpo_tensor *x, struct tpo_param *w, struct tpo_param *b, float eps);
struct tpo_tensor *tpo_norm_rms(struct tpo_tape *t, struct tpo_tensor *x, struct tpo_param *w, float eps);
struct tpo_tensor *tpo_act_gelu(struct tpo_tape *t, struct tpo_tensor *x);
struct tpo_tensor *tpo_act_relu(struct tpo_tape *t, struct tpo_tensor *x);
struct tpo_tensor *tpo_act_swiglu(struct tpo_tape *t, struct tpo_tensor *gate, struct tpo_tensor *up);
struct tpo_tensor *tpo_plus(struct tpo_tape *t, struct tpo_tensor *a, struct tpo_tensor *b);              /* same shape */
struct tpo_tensor *tpo_plus_rows(struct tpo_tape *t, struct tpo_tensor *x, struct tpo_tensor *period);    /* x[m] + period[m % rows] */
struct tpo_tensor *tpo_times(struct tpo_tape *t, struct tpo_tensor *x, float alpha);
struct tpo_tensor *tpo_drop(struct tpo_tape *t, struct tpo_tensor *x, float p, uint64_t key);             /* p 0: x itself */
struct tpo_tensor *tpo_take_rows(struct tpo_tape *t, struct tpo_tensor *x, const int32_t *index, int n);  /* index is copied */
/* base with rows index[i] replaced by x[i]; the gradient of a replaced row goes to x alone. */
struct tpo_tensor *tpo_put_rows(struct tpo_tape *t, struct tpo_tensor *base, struct tpo_tensor *x, const int32_t *index, int n);
struct tpo_tensor *tpo_concat_rows(struct tpo_tape *t, struct tpo_tensor *a, struct tpo_tensor *b);
struct tpo_tensor *tpo_rotate(struct tpo_tape *t, struct tpo_tensor *x, const int32_t *positions, double theta, int heads, int head_dim);
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

/* Adds `upstream` (x->rows * x->cols, or NULL for all ones times `scale`) to x's gradient; then backward runs every step once. */
void tpo_seed(struct tpo_tape *t, struct tpo_tensor *x, const float *upstream, float scale);
int tpo_tape_backward(struct tpo_tape *t);

#endif
