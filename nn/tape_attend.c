/* This file owns the tape's rotation and attention, and the loss on single attention rows. */
#include "kernels/rope.h"
#include "kernels/vector.h"
#include "nn/step.h"

struct tpo_angles tpo_angles_make(struct tpo_tape *t, const int32_t *positions, int n, double theta, int head_dim)
{
    struct tpo_angles a = {.n = n, .head_dim = head_dim};
    if (!tpo_tape_check(t, n < 1 || head_dim < 2 || head_dim % 2 != 0 ? TPO_EINVAL : TPO_OK)) return a;
    const int32_t *index = tpo_tape_indices(t, positions, n);
    a.cos_table = tpo_tape_floats(t, (int64_t)n * head_dim / 2);
    a.sin_table = tpo_tape_floats(t, (int64_t)n * head_dim / 2);
    if (index == NULL || a.sin_table == NULL) return a;
    tpo_tape_check(t, tpo_rope_table(tpo_tape_stream(t), a.cos_table, a.sin_table, index, theta, n, head_dim));
    return a;
}

struct rotate_step {
    struct tpo_step base;
    struct tpo_tensor *x;
    struct tpo_angles angles;
    int heads;
};

static void rotate_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct rotate_step);
    const struct tpo_angles *a = &step->angles;
    const struct tpo_tensor *y = base->out;
    /* A rotation's transpose is its inverse: turn dy back where it lies and hand it on. */
    if (!tpo_tape_check(
            t, tpo_rope(tpo_tape_stream(t), y->grad, y->cols, a->cos_table, a->sin_table, 1, y->rows, step->heads, a->head_dim)))
        return;
    tpo_grad_give(t, step->x, y->grad);
}

struct tpo_tensor *tpo_rotate(struct tpo_tape *t, struct tpo_tensor *x, const struct tpo_angles *angles, int heads)
{
    if (x == NULL || angles->sin_table == NULL) return NULL;
    const bool fits = x->ld == x->cols && angles->n == x->rows && heads * angles->head_dim == x->cols;
    if (!tpo_tape_check(t, fits ? TPO_OK : TPO_EINVAL)) return NULL;
    struct tpo_tensor *y = tpo_tape_make(t, x->rows, x->cols, x->needs_grad);
    if (y == NULL) return NULL;
    struct tpo_stream *s = tpo_tape_stream(t);
    if (!tpo_tape_check(t, tpo_copy_in(s, y->data, x->data, (size_t)x->rows * (size_t)x->cols * sizeof(float)))) return NULL;
    if (!tpo_tape_check(t,
                        tpo_rope(s, y->data, y->cols, angles->cos_table, angles->sin_table, 0, y->rows, heads, angles->head_dim)))
        return NULL;
    struct rotate_step *step = tpo_tape_step(t, sizeof(*step), y, rotate_backward);
    if (step != NULL) {
        step->x = x;
        step->angles = *angles;
        step->heads = heads;
    }
    return y;
}

struct attend_step {
    struct tpo_step base;
    struct tpo_tensor *q, *k, *v;
    float *lse;
    struct tpo_attention_shape shape;
};

static void attend_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct attend_step);
    float *places[3];
    const int add = tpo_grads_begin(t, 3, (struct tpo_tensor *const[]){step->q, step->k, step->v}, places);
    if (tpo_tape_error(t) != TPO_OK) return;
    tpo_tape_check(t, tpo_attention_grad(tpo_tape_stream(t), places[0], places[1], places[2], base->out->grad, base->out->data,
                                         step->lse, step->q->data, step->k->data, step->v->data, add, &step->shape));
}

/* The shape as the kernel wants it: distances from the tensors, masks copied to the device. */
static bool shape_complete(struct tpo_tape *t, struct tpo_attention_shape *shape, const struct tpo_tensor *q,
                           const struct tpo_tensor *k, const struct tpo_tensor *v)
{
    const int kv = shape->G * shape->D;
    const bool fits = shape->B > 0 && shape->T > 0 && shape->S > 0 && (int64_t)shape->B * shape->T == q->rows &&
                      (int64_t)shape->B * shape->S == k->rows && shape->H * shape->D == q->cols && kv == k->cols &&
                      (v == NULL || (v->rows == k->rows && v->cols == kv));
    if (!tpo_tape_check(t, fits ? TPO_OK : TPO_EINVAL)) return false;
    shape->ldq = q->ld;
    shape->ldk = k->ld;
    shape->ldv = v != NULL ? v->ld : k->ld;
    shape->ldo = shape->H * shape->D;
    if (shape->key_len != NULL) shape->key_len = tpo_tape_indices(t, shape->key_len, shape->B);
    if (shape->segments != NULL) shape->segments = tpo_tape_indices(t, shape->segments, (int64_t)shape->B * shape->S);
    return tpo_tape_error(t) == TPO_OK;
}

struct tpo_tensor *tpo_attend(struct tpo_tape *t, struct tpo_tensor *q, struct tpo_tensor *k, struct tpo_tensor *v,
                              const struct tpo_attention_shape *given)
{
    if (q == NULL || k == NULL || v == NULL) return NULL;
    struct tpo_attention_shape shape = *given;
    if (!shape_complete(t, &shape, q, k, v)) return NULL;
    struct tpo_tensor *y = tpo_tape_make(t, q->rows, q->cols, q->needs_grad || k->needs_grad || v->needs_grad);
    if (y == NULL) return NULL;
    float *lse = y->needs_grad ? tpo_tape_floats(t, (int64_t)q->rows * shape.H) : NULL;
    if (tpo_tape_error(t) != TPO_OK) return NULL;
    if (!tpo_tape_check(t, tpo_attention(tpo_tape_stream(t), y->data, lse, q->data, k->data, v->data, &shape))) return NULL;
    struct attend_step *step = tpo_tape_step(t, sizeof(*step), y, attend_backward);
    if (step != NULL) {
        step->q = q;
        step->k = k;
        step->v = v;
        step->lse = lse;
        step->shape = shape;
    }
    return y;
}

struct rows_loss_step {
    struct tpo_step base;
    struct tpo_tensor *q, *k;
    int32_t *rows;
    float *target, *weight;
    int n;
    struct tpo_attention_shape shape;
};

static void rows_loss_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct rows_loss_step);
    struct tpo_stream *s = tpo_tape_stream(t);
    float *dq = step->q->needs_grad ? tpo_grad_zeroed(t, step->q) : NULL;
    float *dk = step->k->needs_grad ? tpo_grad_zeroed(t, step->k) : NULL;
    /* The kernel adds to both; what nobody needs goes into scratch. */
    if (dq == NULL) dq = tpo_tape_floats(t, (int64_t)step->q->rows * step->q->ld);
    if (dk == NULL) dk = tpo_tape_floats(t, (int64_t)step->k->rows * step->k->ld);
    float upstream = 0;
    if (dq == NULL || dk == NULL || !tpo_tape_check(t, tpo_copy_out(s, &upstream, base->out->grad, sizeof(upstream)))) return;
    tpo_tape_check(t, tpo_attention_rows_grad(s, dq, dk, upstream, step->q->data, step->k->data, step->rows, step->target,
                                              step->weight, step->n, &step->shape));
}

struct tpo_tensor *tpo_loss_attention_rows(struct tpo_tape *t, struct tpo_tensor *q, struct tpo_tensor *k,
                                           const struct tpo_attention_shape *given, const int32_t *rows, const float *target,
                                           const float *weight, int n)
{
    if (q == NULL || k == NULL) return NULL;
    struct tpo_attention_shape shape = *given;
    if (!tpo_tape_check(t, n < 1 ? TPO_EINVAL : TPO_OK) || !shape_complete(t, &shape, q, k, NULL)) return NULL;
    struct tpo_stream *s = tpo_tape_stream(t);
    struct tpo_tensor *y = tpo_tape_make(t, 1, 1, q->needs_grad || k->needs_grad);
    int32_t *row_copy = tpo_tape_indices(t, rows, 3 * (int64_t)n);
    float *loss = tpo_tape_floats(t, n), *goal = tpo_tape_floats(t, (int64_t)n * shape.S), *factor = tpo_tape_floats(t, n);
    if (y == NULL || tpo_tape_error(t) != TPO_OK) return NULL;
    tpo_tape_check(t, tpo_copy_in(s, goal, target, (size_t)n * (size_t)shape.S * sizeof(float)));
    tpo_tape_check(t, tpo_copy_in(s, factor, weight, (size_t)n * sizeof(float)));
    double sum = 0;
    if (!tpo_tape_check(t, tpo_attention_rows(s, loss, q->data, k->data, row_copy, goal, factor, n, &shape))) return NULL;
    if (!tpo_tape_check(t, tpo_sum(s, &sum, loss, n)) || !tpo_tape_check(t, tpo_fill(s, y->data, (float)sum, 1))) return NULL;
    struct rows_loss_step *step = tpo_tape_step(t, sizeof(*step), y, rows_loss_backward);
    if (step != NULL) {
        step->q = q;
        step->k = k;
        step->rows = row_copy;
        step->target = goal;
        step->weight = factor;
        step->n = n;
        step->shape = shape;
    }
    return y;
}
