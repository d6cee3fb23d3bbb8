/* This file owns the tape's products: linear layers, with LoRA and without, and their gradients. */
#include "kernels/matmul.h"
#include "kernels/rows.h"
#include "kernels/vector.h"
#include "nn/step.h"

struct product_step {
    struct tpo_step base;
    struct tpo_tensor *x, *w, *b;
};

static struct tpo_weight weight_of(const struct tpo_tensor *w)
{
    return w->half != NULL ? tpo_bf16(w->half) : tpo_f32(w->data);
}

/* dx += or = dy w, dw += dy^T x, db += sum of dy: what every linear layer hands back. */
static void product_hand_back(struct tpo_tape *t, const float *dy, struct tpo_tensor *x, struct tpo_tensor *w, struct tpo_tensor *b)
{
    struct tpo_stream *s = tpo_tape_stream(t);
    const int M = x->rows, N = w->rows, K = w->cols;
    int add;
    float *dw = tpo_grad_begin(t, w, &add);
    if (dw != NULL) tpo_tape_check(t, tpo_matmul_dw(s, dw, dy, N, x->data, x->ld, add, M, N, K));
    float *db = b != NULL ? tpo_grad_begin(t, b, &add) : NULL;
    if (db != NULL) tpo_tape_check(t, tpo_bias_grad(s, db, dy, N, add, M, N));
    float *dx = tpo_grad_begin(t, x, &add);
    if (dx == NULL) return;
    const int lddx = x->view_of != NULL ? x->ld : K;
    tpo_tape_check(t, tpo_matmul_dx(s, dx, lddx, dy, N, weight_of(w), add, M, N, K));
}

static void product_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct product_step);
    product_hand_back(t, base->out->grad, step->x, step->w, step->b);
}

struct tpo_tensor *tpo_product(struct tpo_tape *t, struct tpo_tensor *x, struct tpo_tensor *w, struct tpo_tensor *b)
{
    if (x == NULL || w == NULL) return NULL;
    const int K = w->cols, N = w->rows;
    if (!tpo_tape_check(t, x->cols != K || w->ld != K || (b != NULL && (b->rows != 1 || b->cols != N)) ? TPO_EINVAL : TPO_OK))
        return NULL;
    struct tpo_tensor *y = tpo_tape_make(t, x->rows, N, x->needs_grad || w->needs_grad || (b != NULL && b->needs_grad));
    if (y == NULL) return NULL;
    const float *bias = b != NULL ? b->data : NULL;
    if (!tpo_tape_check(t, tpo_matmul(tpo_tape_stream(t), y->data, N, x->data, x->ld, weight_of(w), bias, 0, x->rows, N, K)))
        return NULL;
    struct product_step *step = tpo_tape_step(t, sizeof(*step), y, product_backward);
    if (step != NULL) {
        step->x = x;
        step->w = w;
        step->b = b;
    }
    return y;
}

static struct tpo_tensor *weight_tensor(struct tpo_tape *t, struct tpo_param *w)
{
    if (!tpo_tape_check(t, w == NULL || w->n_dims < 2 || w->shape[0] < 1 ? TPO_EINVAL : TPO_OK)) return NULL;
    return tpo_param_tensor(t, w, (int)w->shape[0], (int)(w->size / w->shape[0]));
}

struct tpo_tensor *tpo_linear(struct tpo_tape *t, struct tpo_tensor *x, struct tpo_param *w, struct tpo_param *b)
{
    if (x == NULL) return NULL;
    struct tpo_tensor *bias = b != NULL ? tpo_param_tensor(t, b, 1, (int)b->size) : NULL;
    return tpo_product(t, x, weight_tensor(t, w), bias);
}

struct lora_step {
    struct tpo_step base;
    struct tpo_tensor *x, *w, *a, *b;
    struct tpo_tensor *dropped; /* x after dropout; x itself without */
    struct tpo_tensor *h;       /* scale * dropped a^T */
    float scale;
};

static void lora_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct lora_step);
    struct tpo_stream *s = tpo_tape_stream(t);
    const float *dy = base->out->grad;
    const int M = step->x->rows, N = step->w->rows, r = step->a->rows, K = step->w->cols;
    product_hand_back(t, dy, step->x, step->w, NULL);
    int add;
    float *db = tpo_grad_begin(t, step->b, &add);
    if (db != NULL) tpo_tape_check(t, tpo_matmul_dw(s, db, dy, N, step->h->data, r, add, M, N, r));
    float *dh = tpo_tape_floats(t, (int64_t)M * r);
    if (dh == NULL) return;
    tpo_tape_check(t, tpo_matmul_dx(s, dh, r, dy, N, weight_of(step->b), 0, M, N, r));
    tpo_tape_check(t, tpo_scale(s, dh, step->scale, dh, (int64_t)M * r));
    float *da = tpo_grad_begin(t, step->a, &add);
    if (da != NULL) tpo_tape_check(t, tpo_matmul_dw(s, da, dh, r, step->dropped->data, step->dropped->ld, add, M, r, K));
    float *dd = tpo_grad_begin(t, step->dropped, &add);
    if (dd != NULL)
        tpo_tape_check(t, tpo_matmul_dx(s, dd, step->dropped->view_of != NULL ? step->dropped->ld : K, dh, r, weight_of(step->a),
                                        add, M, r, K));
}

/* An adapter that has not begun (b still zero) and is frozen adds nothing: the base alone gives the same bits. */
static bool lora_idle(struct tpo_tape *t, const struct tpo_param *a, const struct tpo_param *b)
{
    double squares = 1;
    if (a->grad != NULL || b->grad != NULL || a->data == NULL || b->data == NULL) return false;
    return tpo_sumsq(tpo_tape_stream(t), &squares, b->data, b->size) == TPO_OK && squares == 0;
}

struct tpo_tensor *tpo_linear_lora(struct tpo_tape *t, struct tpo_tensor *x, struct tpo_param *w, struct tpo_param *a,
                                   struct tpo_param *b, float scale, float dropout, uint64_t key)
{
    if (a == NULL || (b != NULL && lora_idle(t, a, b))) return tpo_linear(t, x, w, NULL);
    if (x == NULL) return NULL;
    struct tpo_stream *s = tpo_tape_stream(t);
    struct tpo_tensor *wt = weight_tensor(t, w), *at = weight_tensor(t, a), *bt = weight_tensor(t, b);
    if (wt == NULL || at == NULL || bt == NULL) return NULL;
    const int M = x->rows, N = wt->rows, K = wt->cols, r = at->rows;
    if (!tpo_tape_check(t, x->cols != K || at->cols != K || bt->rows != N || bt->cols != r ? TPO_EINVAL : TPO_OK)) return NULL;
    struct tpo_tensor *dropped = tpo_drop(t, x, dropout, key);
    struct tpo_tensor *h = tpo_tape_make(t, M, r, false);
    struct tpo_tensor *y = tpo_tape_make(t, M, N, x->needs_grad || wt->needs_grad || at->needs_grad || bt->needs_grad);
    if (dropped == NULL || h == NULL || y == NULL) return NULL;
    bool fine = tpo_tape_check(t, tpo_matmul(s, y->data, N, x->data, x->ld, weight_of(wt), NULL, 0, M, N, K));
    fine = fine && tpo_tape_check(t, tpo_matmul(s, h->data, r, dropped->data, dropped->ld, weight_of(at), NULL, 0, M, r, K));
    fine = fine && tpo_tape_check(t, tpo_scale(s, h->data, scale, h->data, (int64_t)M * r));
    fine = fine && tpo_tape_check(t, tpo_matmul(s, y->data, N, h->data, r, weight_of(bt), NULL, 1, M, N, r));
    if (!fine) return NULL;
    struct lora_step *step = tpo_tape_step(t, sizeof(*step), y, lora_backward);
    if (step != NULL) {
        step->x = x;
        step->w = wt;
        step->a = at;
        step->b = bt;
        step->dropped = dropped;
        step->h = h;
        step->scale = scale;
    }
    return y;
}

struct bias_step {
    struct tpo_step base;
    struct tpo_tensor *q, *v;
};

static void qkv_bias_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct bias_step);
    const int C = step->q->cols;
    float *dq = tpo_grad_zeroed(t, step->q), *dv = tpo_grad_zeroed(t, step->v);
    if (dq != NULL) tpo_tape_check(t, tpo_axpy(tpo_tape_stream(t), dq, 1, base->out->grad, C));
    if (dv != NULL) tpo_tape_check(t, tpo_axpy(tpo_tape_stream(t), dv, 1, base->out->grad + 2 * (size_t)C, C));
}

struct tpo_tensor *tpo_qkv_bias(struct tpo_tape *t, struct tpo_param *q_bias, struct tpo_param *v_bias)
{
    if (!tpo_tape_check(t, q_bias == NULL || v_bias == NULL || q_bias->size != v_bias->size ? TPO_EINVAL : TPO_OK)) return NULL;
    const int C = (int)q_bias->size;
    struct tpo_tensor *q = tpo_param_tensor(t, q_bias, 1, C), *v = tpo_param_tensor(t, v_bias, 1, C);
    if (q == NULL || v == NULL) return NULL;
    struct tpo_tensor *y = tpo_tape_make(t, 1, 3 * C, q->needs_grad || v->needs_grad);
    if (y == NULL) return NULL;
    struct tpo_stream *s = tpo_tape_stream(t);
    tpo_tape_check(t, tpo_scale(s, y->data, 1, q->data, C));
    tpo_tape_check(t, tpo_fill(s, y->data + C, 0, C));
    tpo_tape_check(t, tpo_scale(s, y->data + 2 * (size_t)C, 1, v->data, C));
    struct bias_step *step = tpo_tape_step(t, sizeof(*step), y, qkv_bias_backward);
    if (step != NULL) {
        step->q = q;
        step->v = v;
    }
    return y;
}
