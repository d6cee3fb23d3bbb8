/* This file owns the tape's losses: 1 x 1 tensors with the gradients of kernels/loss.h. */
#include "kernels/loss.h"
#include "kernels/vector.h"
#include "nn/step.h"

struct loss_step {
    struct tpo_step base;
    struct tpo_tensor *p;
    const float *target, *weight;
    const int32_t *label;
    float scale, second_scale;
    int (*grad)(struct tpo_stream *s, float *dp, const float *p, const float *g, const float *weight, float upstream, int M, int C);
};

static const float *floats_in(struct tpo_tape *t, const float *host, int64_t n)
{
    float *copy = tpo_tape_floats(t, n);
    if (copy == NULL) return NULL;
    return tpo_tape_check(t, tpo_copy_in(tpo_tape_stream(t), copy, host, (size_t)n * sizeof(float))) ? copy : NULL;
}

static struct tpo_tensor *loss_tensor(struct tpo_tape *t, double value, struct loss_step values,
                                      void (*backward)(struct tpo_tape *, struct tpo_step *))
{
    struct tpo_tensor *y = tpo_tape_make(t, 1, 1, values.p->needs_grad);
    if (y == NULL || !tpo_tape_check(t, tpo_fill(tpo_tape_stream(t), y->data, (float)value, 1))) return NULL;
    struct loss_step *step = tpo_tape_step(t, sizeof(*step), y, backward);
    if (step != NULL) {
        values.base = step->base;
        *step = values;
    }
    return y;
}

static bool summed(struct tpo_tape *t, double *sum, const float *rows, int n)
{
    return tpo_tape_check(t, tpo_sum(tpo_tape_stream(t), sum, rows, n));
}

/* A place for a gradient that its kernel writes whole; it becomes p's afterwards. */
static float *gradient_start(struct tpo_tape *t, const struct loss_step *step, float *upstream)
{
    float *dp = tpo_tape_floats(t, (int64_t)step->p->rows * step->p->cols);
    if (dp == NULL || !tpo_tape_check(t, tpo_copy_out(tpo_tape_stream(t), upstream, step->base.out->grad, sizeof(*upstream))))
        return NULL;
    return dp;
}

static void cross_entropy_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct loss_step);
    float up = 0, *dp = gradient_start(t, step, &up);
    if (dp == NULL) return;
    if (tpo_tape_check(t, tpo_cross_entropy_grad(tpo_tape_stream(t), dp, step->p->data, step->label, step->weight, up * step->scale,
                                                 step->p->rows, step->p->cols)))
        tpo_grad_give(t, step->p, dp);
}

struct tpo_tensor *tpo_loss_cross_entropy(struct tpo_tape *t, struct tpo_tensor *logits, const int32_t *label, const float *weight,
                                          float scale)
{
    if (logits == NULL || !tpo_tape_check(t, logits->ld != logits->cols ? TPO_EINVAL : TPO_OK)) return NULL;
    const int M = logits->rows;
    struct loss_step values = {.p = logits, .scale = scale};
    values.label = tpo_tape_indices(t, label, M);
    values.weight = weight != NULL ? floats_in(t, weight, M) : NULL;
    float *rows = tpo_tape_floats(t, M);
    if (tpo_tape_error(t) != TPO_OK) return NULL;
    double sum = 0;
    if (!tpo_tape_check(t, tpo_cross_entropy(tpo_tape_stream(t), rows, logits->data, values.label, values.weight, M, logits->cols)))
        return NULL;
    if (!summed(t, &sum, rows, M)) return NULL;
    return loss_tensor(t, sum * (double)scale, values, cross_entropy_backward);
}

static void rows_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct loss_step);
    float up = 0, *dp = gradient_start(t, step, &up);
    if (dp == NULL) return;
    if (tpo_tape_check(t, step->grad(tpo_tape_stream(t), dp, step->p->data, step->target, step->weight, up * step->scale,
                                     step->p->rows, step->p->cols)))
        tpo_grad_give(t, step->p, dp);
}

static struct tpo_tensor *
rows_loss(struct tpo_tape *t, struct tpo_tensor *p, const float *target, const float *weight, float scale,
          int (*forward)(struct tpo_stream *, float *, const float *, const float *, const float *, int, int),
          int (*grad)(struct tpo_stream *, float *, const float *, const float *, const float *, float, int, int))
{
    if (p == NULL || !tpo_tape_check(t, p->ld != p->cols ? TPO_EINVAL : TPO_OK)) return NULL;
    struct loss_step values = {.p = p, .scale = scale, .grad = grad};
    values.target = floats_in(t, target, (int64_t)p->rows * p->cols);
    values.weight = weight != NULL ? floats_in(t, weight, p->rows) : NULL;
    float *rows = tpo_tape_floats(t, p->rows);
    if (tpo_tape_error(t) != TPO_OK) return NULL;
    double sum = 0;
    if (!tpo_tape_check(t, forward(tpo_tape_stream(t), rows, p->data, values.target, values.weight, p->rows, p->cols))) return NULL;
    if (!summed(t, &sum, rows, p->rows)) return NULL;
    return loss_tensor(t, sum * (double)scale, values, rows_backward);
}

struct tpo_tensor *tpo_loss_l1(struct tpo_tape *t, struct tpo_tensor *p, const float *target, const float *weight, float scale)
{
    return rows_loss(t, p, target, weight, scale, tpo_l1_rows, tpo_l1_rows_grad);
}

struct tpo_tensor *tpo_loss_mse(struct tpo_tape *t, struct tpo_tensor *p, const float *target, const float *weight, float scale)
{
    return rows_loss(t, p, target, weight, scale, tpo_mse_rows, tpo_mse_rows_grad);
}

static void box_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct loss_step);
    float up = 0, *dp = gradient_start(t, step, &up);
    if (dp == NULL) return;
    if (tpo_tape_check(t, tpo_box_loss_grad(tpo_tape_stream(t), dp, step->p->data, step->target, up * step->scale,
                                            up * step->second_scale, step->p->rows)))
        tpo_grad_give(t, step->p, dp);
}

struct tpo_tensor *tpo_loss_box(struct tpo_tape *t, struct tpo_tensor *p, const float *boxes, float l1_weight, float giou_weight)
{
    if (p == NULL || !tpo_tape_check(t, p->cols != 4 || p->ld != 4 ? TPO_EINVAL : TPO_OK)) return NULL;
    struct tpo_stream *s = tpo_tape_stream(t);
    struct loss_step values = {.p = p, .scale = l1_weight, .second_scale = giou_weight};
    values.target = floats_in(t, boxes, 4 * (int64_t)p->rows);
    float *out = tpo_tape_floats(t, 2), host[2] = {0, 0};
    if (tpo_tape_error(t) != TPO_OK) return NULL;
    if (!tpo_tape_check(t, tpo_box_loss(s, out, NULL, p->data, values.target, p->rows))) return NULL;
    if (!tpo_tape_check(t, tpo_copy_out(s, host, out, sizeof(host)))) return NULL;
    return loss_tensor(t, (double)l1_weight * (double)host[0] + (double)giou_weight * (double)host[1], values, box_backward);
}

struct tpo_tensor *tpo_loss_sum(struct tpo_tape *t, struct tpo_tensor *a, struct tpo_tensor *b)
{
    if (a == NULL) return b;
    return b == NULL ? a : tpo_plus(t, a, b);
}
