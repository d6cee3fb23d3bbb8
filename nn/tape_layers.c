/* This file owns the tape's norms, activations, rotation and attention. */
#include "kernels/activation.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "kernels/vector.h"
#include "nn/step.h"

struct norm_step {
    struct tpo_step base;
    struct tpo_tensor *x, *w, *b;
    float *mean, *rstd;
};

static struct tpo_tensor *row_param(struct tpo_tape *t, struct tpo_param *p, int cols)
{
    return tpo_param_tensor(t, p, 1, cols);
}

static bool contiguous(struct tpo_tape *t, const struct tpo_tensor *x)
{
    return x != NULL && tpo_tape_check(t, x->ld != x->cols ? TPO_EINVAL : TPO_OK);
}

static void norm_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct norm_step);
    struct tpo_stream *s = tpo_tape_stream(t);
    const int M = step->x->rows, C = step->x->cols;
    float *dw = tpo_grad_zeroed(t, step->w), *db = step->b != NULL ? tpo_grad_zeroed(t, step->b) : NULL;
    int add = 0;
    float *dx = tpo_grad_begin(t, step->x, &add);
    if (dx == NULL) dx = tpo_tape_floats(t, (int64_t)M * C); /* the kernel always writes one */
    if (dx == NULL) return;
    if (step->mean != NULL) {
        tpo_tape_check(t, tpo_layernorm_grad(s, dx, dw, db, base->out->grad, step->x->data, step->w->data, step->mean, step->rstd,
                                             step->x->needs_grad ? add : 0, M, C));
    } else {
        tpo_tape_check(t, tpo_rmsnorm_grad(s, dx, dw, base->out->grad, step->x->data, step->w->data, step->rstd,
                                           step->x->needs_grad ? add : 0, M, C));
    }
}

static struct tpo_tensor *norm_record(struct tpo_tape *t, struct tpo_tensor *y, struct norm_step values)
{
    struct norm_step *step = tpo_tape_step(t, sizeof(*step), y, norm_backward);
    if (step != NULL) {
        values.base = step->base;
        *step = values;
    }
    return y;
}

struct tpo_tensor *tpo_norm_layer(struct tpo_tape *t, struct tpo_tensor *x, struct tpo_param *w, struct tpo_param *b, float eps)
{
    if (!contiguous(t, x)) return NULL;
    const int M = x->rows, C = x->cols;
    struct tpo_tensor *wt = row_param(t, w, C), *bt = row_param(t, b, C);
    if (wt == NULL || bt == NULL) return NULL;
    struct tpo_tensor *y = tpo_tape_make(t, M, C, x->needs_grad || wt->needs_grad || bt->needs_grad);
    if (y == NULL) return NULL;
    float *mean = NULL, *rstd = NULL;
    if (y->needs_grad) {
        mean = tpo_tape_floats(t, M);
        rstd = tpo_tape_floats(t, M);
    }
    if (tpo_tape_error(t) != TPO_OK) return NULL;
    if (!tpo_tape_check(t, tpo_layernorm(tpo_tape_stream(t), y->data, mean, rstd, x->data, wt->data, bt->data, eps, M, C)))
        return NULL;
    return norm_record(t, y, (struct norm_step){.x = x, .w = wt, .b = bt, .mean = mean, .rstd = rstd});
}

struct tpo_tensor *tpo_norm_rms(struct tpo_tape *t, struct tpo_tensor *x, struct tpo_param *w, float eps)
{
    if (!contiguous(t, x)) return NULL;
    const int M = x->rows, C = x->cols;
    struct tpo_tensor *wt = row_param(t, w, C);
    if (wt == NULL) return NULL;
    struct tpo_tensor *y = tpo_tape_make(t, M, C, x->needs_grad || wt->needs_grad);
    if (y == NULL) return NULL;
    float *rstd = y->needs_grad ? tpo_tape_floats(t, M) : NULL;
    if (tpo_tape_error(t) != TPO_OK) return NULL;
    if (!tpo_tape_check(t, tpo_rmsnorm(tpo_tape_stream(t), y->data, rstd, x->data, wt->data, eps, M, C))) return NULL;
    return norm_record(t, y, (struct norm_step){.x = x, .w = wt, .rstd = rstd});
}

typedef int (*act_fn)(struct tpo_stream *s, float *y, const float *x, int64_t n);
typedef int (*act_grad_fn)(struct tpo_stream *s, float *dx, const float *dy, const float *x, int add, int64_t n);

struct act_step {
    struct tpo_step base;
    struct tpo_tensor *x;
    act_grad_fn grad;
};

static void act_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct act_step);
    int add;
    float *dx = tpo_grad_begin(t, step->x, &add);
    if (dx == NULL) return;
    tpo_tape_check(t,
                   step->grad(tpo_tape_stream(t), dx, base->out->grad, step->x->data, add, (int64_t)step->x->rows * step->x->cols));
}

static struct tpo_tensor *act(struct tpo_tape *t, struct tpo_tensor *x, act_fn forward, act_grad_fn grad)
{
    if (!contiguous(t, x)) return NULL;
    struct tpo_tensor *y = tpo_tape_make(t, x->rows, x->cols, x->needs_grad);
    if (y == NULL || !tpo_tape_check(t, forward(tpo_tape_stream(t), y->data, x->data, (int64_t)x->rows * x->cols))) return NULL;
    struct act_step *step = tpo_tape_step(t, sizeof(*step), y, act_backward);
    if (step != NULL) {
        step->x = x;
        step->grad = grad;
    }
    return y;
}

struct tpo_tensor *tpo_act_gelu(struct tpo_tape *t, struct tpo_tensor *x)
{
    return act(t, x, tpo_gelu, tpo_gelu_grad);
}
struct tpo_tensor *tpo_act_relu(struct tpo_tape *t, struct tpo_tensor *x)
{
    return act(t, x, tpo_relu, tpo_relu_grad);
}

struct swiglu_step {
    struct tpo_step base;
    struct tpo_tensor *g, *u;
};

static void swiglu_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct swiglu_step);
    const int M = step->g->rows, C = step->g->cols;
    float *places[2];
    const int add = tpo_grads_begin(t, 2, (struct tpo_tensor *const[]){step->g, step->u}, places);
    if (tpo_tape_error(t) != TPO_OK) return;
    tpo_tape_check(
        t, tpo_swiglu_grad(tpo_tape_stream(t), places[0], places[1], base->out->grad, step->g->data, step->u->data, C, add, M, C));
}

struct tpo_tensor *tpo_act_swiglu(struct tpo_tape *t, struct tpo_tensor *gate, struct tpo_tensor *up)
{
    if (!contiguous(t, gate) || !contiguous(t, up)) return NULL;
    if (!tpo_tape_check(t, gate->rows != up->rows || gate->cols != up->cols ? TPO_EINVAL : TPO_OK)) return NULL;
    struct tpo_tensor *y = tpo_tape_make(t, gate->rows, gate->cols, gate->needs_grad || up->needs_grad);
    if (y == NULL) return NULL;
    if (!tpo_tape_check(t, tpo_swiglu(tpo_tape_stream(t), y->data, gate->data, up->data, gate->cols, gate->rows, gate->cols)))
        return NULL;
    struct swiglu_step *step = tpo_tape_step(t, sizeof(*step), y, swiglu_backward);
    if (step != NULL) {
        step->g = gate;
        step->u = up;
    }
    return y;
}
