/* This file owns the tape's sums, scalings, dropout and moving of rows. */
#include "kernels/rows.h"
#include "kernels/vector.h"
#include "nn/step.h"

#include <string.h>

static int64_t size_of(const struct tpo_tensor *x)
{
    return (int64_t)x->rows * x->cols;
}

static bool same_shape(struct tpo_tape *t, const struct tpo_tensor *a, const struct tpo_tensor *b)
{
    const bool same = a->rows == b->rows && a->cols == b->cols && a->ld == a->cols && b->ld == b->cols;
    return tpo_tape_check(t, same ? TPO_OK : TPO_EINVAL);
}

struct two_step {
    struct tpo_step base;
    struct tpo_tensor *a, *b;
    float alpha;
    uint64_t key;
    int group;
};

static struct two_step *two_record(struct tpo_tape *t, struct tpo_tensor *y, struct tpo_tensor *a, struct tpo_tensor *b,
                                   void (*backward)(struct tpo_tape *, struct tpo_step *))
{
    struct two_step *step = tpo_tape_step(t, sizeof(*step), y, backward);
    if (step != NULL) {
        step->a = a;
        step->b = b;
    }
    return step;
}

/* x's gradient := or += dy, dy left alone. */
static void grad_copy(struct tpo_tape *t, struct tpo_tensor *x, const float *dy)
{
    int add;
    float *dx = tpo_grad_begin(t, x, &add);
    if (dx == NULL) return;
    struct tpo_stream *s = tpo_tape_stream(t);
    tpo_tape_check(t, add ? tpo_axpy(s, dx, 1, dy, size_of(x)) : tpo_scale(s, dx, 1, dy, size_of(x)));
}

static void plus_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct two_step);
    if (step->b->needs_grad) grad_copy(t, step->b, base->out->grad);
    tpo_grad_give(t, step->a, base->out->grad);
}

struct tpo_tensor *tpo_plus(struct tpo_tape *t, struct tpo_tensor *a, struct tpo_tensor *b)
{
    if (a == NULL || b == NULL || !same_shape(t, a, b)) return NULL;
    struct tpo_tensor *y = tpo_tape_make(t, a->rows, a->cols, a->needs_grad || b->needs_grad);
    if (y == NULL || !tpo_tape_check(t, tpo_add(tpo_tape_stream(t), y->data, a->data, b->data, size_of(a)))) return NULL;
    two_record(t, y, a, b, plus_backward);
    return y;
}

static void plus_rows_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct two_step);
    float *dp = tpo_grad_zeroed(t, step->b);
    if (dp != NULL)
        tpo_tape_check(t, tpo_sum_rows(tpo_tape_stream(t), dp, base->out->grad, step->a->rows, step->b->rows, step->a->cols));
    tpo_grad_give(t, step->a, base->out->grad);
}

struct tpo_tensor *tpo_plus_rows(struct tpo_tape *t, struct tpo_tensor *x, struct tpo_tensor *period)
{
    if (x == NULL || period == NULL) return NULL;
    const bool fits = x->cols == period->cols && x->ld == x->cols && period->ld == period->cols && x->rows % period->rows == 0;
    if (!tpo_tape_check(t, fits ? TPO_OK : TPO_EINVAL)) return NULL;
    struct tpo_tensor *y = tpo_tape_make(t, x->rows, x->cols, x->needs_grad || period->needs_grad);
    if (y == NULL) return NULL;
    struct tpo_stream *s = tpo_tape_stream(t);
    if (!tpo_tape_check(t, tpo_scale(s, y->data, 1, x->data, size_of(x)))) return NULL;
    if (!tpo_tape_check(t, tpo_add_rows(s, y->data, period->data, x->rows, period->rows, x->cols))) return NULL;
    two_record(t, y, x, period, plus_rows_backward);
    return y;
}

static void times_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct two_step);
    if (!tpo_tape_check(t, tpo_scale(tpo_tape_stream(t), base->out->grad, step->alpha, base->out->grad, size_of(step->a)))) return;
    tpo_grad_give(t, step->a, base->out->grad);
}

struct tpo_tensor *tpo_times(struct tpo_tape *t, struct tpo_tensor *x, float alpha)
{
    if (x == NULL || !same_shape(t, x, x)) return NULL;
    struct tpo_tensor *y = tpo_tape_make(t, x->rows, x->cols, x->needs_grad);
    if (y == NULL || !tpo_tape_check(t, tpo_scale(tpo_tape_stream(t), y->data, alpha, x->data, size_of(x)))) return NULL;
    struct two_step *step = two_record(t, y, x, NULL, times_backward);
    if (step != NULL) step->alpha = alpha;
    return y;
}

static void drop_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct two_step);
    float *dy = base->out->grad;
    if (!tpo_tape_check(t, tpo_dropout(tpo_tape_stream(t), dy, dy, step->alpha, step->key, size_of(step->a)))) return;
    tpo_grad_give(t, step->a, dy);
}

struct tpo_tensor *tpo_drop(struct tpo_tape *t, struct tpo_tensor *x, float p, uint64_t key)
{
    if (x == NULL || p <= 0) return x;
    if (!same_shape(t, x, x)) return NULL;
    struct tpo_tensor *y = tpo_tape_make(t, x->rows, x->cols, x->needs_grad);
    if (y == NULL || !tpo_tape_check(t, tpo_dropout(tpo_tape_stream(t), y->data, x->data, p, key, size_of(x)))) return NULL;
    struct two_step *step = two_record(t, y, x, NULL, drop_backward);
    if (step != NULL) {
        step->alpha = p;
        step->key = key;
    }
    return y;
}

static bool scale_groups(struct tpo_tape *t, float *y, const float *x, const struct tpo_tensor *shape, float p, int group,
                         uint64_t key)
{
    const int64_t n = (int64_t)group * shape->cols;
    for (int g = 0; g < shape->rows / group; g++) {
        const float factor = tpo_random(key, (uint64_t)g) >= p ? 1 / (1 - p) : 0;
        if (!tpo_tape_check(t, tpo_scale(tpo_tape_stream(t), y + g * n, factor, x + g * n, n))) return false;
    }
    return true;
}

static void drop_groups_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct two_step);
    float *dy = base->out->grad;
    if (scale_groups(t, dy, dy, step->a, step->alpha, step->group, step->key)) tpo_grad_give(t, step->a, dy);
}

struct tpo_tensor *tpo_drop_groups(struct tpo_tape *t, struct tpo_tensor *x, float p, int group, uint64_t key)
{
    if (x == NULL || p <= 0) return x;
    if (!tpo_tape_check(t, group < 1 || x->rows % group != 0 || p >= 1 ? TPO_EINVAL : TPO_OK) || !same_shape(t, x, x)) return NULL;
    struct tpo_tensor *y = tpo_tape_make(t, x->rows, x->cols, x->needs_grad);
    if (y == NULL || !scale_groups(t, y->data, x->data, x, p, group, key)) return NULL;
    struct two_step *step = two_record(t, y, x, NULL, drop_groups_backward);
    if (step != NULL) {
        step->alpha = p;
        step->key = key;
        step->group = group;
    }
    return y;
}

#define SOURCES_MAX 16

struct pick_step {
    struct tpo_step base;
    int n;
    struct tpo_tensor *sources[SOURCES_MAX];
    const int32_t *index[SOURCES_MAX];  /* -1 where another source gives the row */
    const int32_t *places[SOURCES_MAX]; /* the same, of the host */
};

static void pick_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct pick_step);
    for (int k = 0; k < step->n; k++) {
        struct tpo_tensor *x = step->sources[k];
        float *dx = tpo_grad_zeroed(t, x);
        if (dx == NULL) continue;
        tpo_tape_check(
            t, tpo_rows_scatter(tpo_tape_stream(t), dx, base->out->grad, step->index[k], 1, base->out->rows, x->cols, x->rows));
    }
}

/* Copies the indices, each row left to the last source that claims it. */
static bool indices_settle(struct tpo_tape *t, struct pick_step *to, const int32_t *const *index, int rows)
{
    struct tpo_arena *arena = tpo_tape_arena(t);
    int32_t *host = tpo_arena_alloc(arena, (size_t)to->n * (size_t)rows * sizeof(*host));
    if (!tpo_tape_check(t, host == NULL ? TPO_ENOMEM : TPO_OK)) return false;
    for (int m = 0; m < rows; m++) {
        bool taken = false;
        for (int k = to->n - 1; k >= 0; k--) {
            const int32_t row = index[k][m];
            if (!tpo_tape_check(t, row >= to->sources[k]->rows ? TPO_EINVAL : TPO_OK)) return false;
            host[(int64_t)k * rows + m] = taken || row < 0 ? -1 : row;
            taken = taken || row >= 0;
        }
    }
    for (int k = 0; k < to->n; k++) {
        to->places[k] = host + (int64_t)k * rows;
        to->index[k] = tpo_tape_indices(t, to->places[k], rows);
    }
    return tpo_tape_error(t) == TPO_OK;
}

struct tpo_tensor *tpo_pick_rows(struct tpo_tape *t, int n_sources, struct tpo_tensor *const *sources, const int32_t *const *index,
                                 int rows)
{
    struct pick_step values = {.n = n_sources};
    bool needs_grad = false;
    if (!tpo_tape_check(t, n_sources < 1 || n_sources > SOURCES_MAX || rows < 1 ? TPO_EINVAL : TPO_OK)) return NULL;
    for (int k = 0; k < n_sources; k++) {
        if (sources[k] == NULL || !same_shape(t, sources[k], sources[k])) return NULL;
        if (!tpo_tape_check(t, sources[k]->cols != sources[0]->cols ? TPO_EINVAL : TPO_OK)) return NULL;
        values.sources[k] = sources[k];
        needs_grad = needs_grad || sources[k]->needs_grad;
    }
    struct tpo_stream *s = tpo_tape_stream(t);
    struct tpo_tensor *y = tpo_tape_make(t, rows, sources[0]->cols, needs_grad);
    if (y == NULL || !indices_settle(t, &values, index, rows)) return NULL;
    if (!tpo_tape_check(t, tpo_fill(s, y->data, 0, size_of(y)))) return NULL;
    for (int k = 0; k < n_sources; k++) {
        const struct tpo_weight table = sources[k]->half != NULL ? tpo_bf16(sources[k]->half) : tpo_f32(sources[k]->data);
        if (!tpo_tape_check(t,
                            tpo_rows_take(s, y->data, table, values.index[k], values.places[k], rows, y->cols, sources[k]->rows)))
            return NULL;
    }
    struct pick_step *step = tpo_tape_step(t, sizeof(*step), y, pick_backward);
    if (step != NULL) {
        values.base = step->base;
        *step = values;
    }
    return y;
}

struct tpo_tensor *tpo_take_rows(struct tpo_tape *t, struct tpo_tensor *x, const int32_t *index, int n)
{
    return tpo_pick_rows(t, 1, &x, &index, n);
}

static int32_t *index_array(struct tpo_tape *t, int n)
{
    int32_t *index = tpo_arena_alloc(tpo_tape_arena(t), (size_t)n * sizeof(*index));
    tpo_tape_check(t, index == NULL ? TPO_ENOMEM : TPO_OK);
    return index;
}

struct tpo_tensor *tpo_concat_rows(struct tpo_tape *t, struct tpo_tensor *a, struct tpo_tensor *b)
{
    if (a == NULL || b == NULL) return NULL;
    const int rows = a->rows + b->rows;
    int32_t *first = index_array(t, rows), *second = index_array(t, rows);
    if (first == NULL || second == NULL) return NULL;
    for (int m = 0; m < rows; m++) {
        first[m] = m < a->rows ? m : -1;
        second[m] = m < a->rows ? -1 : m - a->rows;
    }
    return tpo_pick_rows(t, 2, (struct tpo_tensor *const[]){a, b}, (const int32_t *const[]){first, second}, rows);
}
