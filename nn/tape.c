/* This file owns a tape's memory, its list of steps and the backward walk. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/vector.h"
#include "nn/budget.h"
#include "nn/step.h"

#define FIRST_CHUNK ((size_t)1 << 20)

/* Device memory in blocks, emptied all at once; like common/arena.h, but from the stream's device. */
struct chunk {
    struct chunk *older;
    char *block;
    size_t size, used;
};

/* Gradients whose step has run, for the steps still to come: backward then works in memory that is warm. */
#define IDLE_MAX 32
struct idle {
    float *block;
    int64_t n;
};

/* A parameter's first use in this pass: its gradient is whole when backward has come to `at`, the last step before it. */
struct first_use {
    struct first_use *older;
    struct tpo_param *param;
    const struct tpo_step *at;
};

struct tpo_tape {
    struct tpo_stream *stream;
    uint64_t pass;
    struct first_use *uses; /* newest first */
    void (*complete)(void *arg, struct tpo_param *p);
    void *complete_arg;
    bool record, in_host; /* in_host: the stream's memory is the host's, which is bounded (budget.h) */
    int error;
    struct tpo_arena arena; /* steps, tensors' heads, callers' arrays: host memory */
    struct chunk *chunk;    /* newest first */
    size_t next_size;
    struct tpo_step *last;
    struct idle idle[IDLE_MAX];
    int n_idle;
    const float *taken; /* the last gradient that tpo_grad_give handed on whole */
};

static uint64_t pass_next(void)
{
    static _Atomic uint64_t passes;
    return ++passes;
}

int tpo_tape_open(struct tpo_tape **out, struct tpo_stream *s, bool record)
{
    struct tpo_tape *t = calloc(1, sizeof(*t));
    *out = t;
    if (t == NULL) return TPO_ENOMEM;
    t->stream = s;
    t->record = record;
    t->in_host = strcmp(tpo_stream_device_name(s), "cpu") == 0;
    t->next_size = FIRST_CHUNK;
    t->pass = pass_next();
    tpo_arena_init(&t->arena, 64 << 10, 0);
    return TPO_OK;
}

static char *block_take(const struct tpo_tape *t, size_t size)
{
    if (t->in_host && !tpo_budget_take(size)) return NULL;
    char *block = tpo_device_alloc(t->stream, size);
    if (block == NULL && t->in_host) tpo_budget_give(size);
    return block;
}

static void chunks_free(struct tpo_tape *t, struct chunk *c)
{
    for (struct chunk *older; c != NULL; c = older) {
        older = c->older;
        tpo_device_free(t->stream, c->block);
        if (t->in_host) tpo_budget_give(c->size);
        free(c);
    }
}

bool tpo_tape_fits(const struct tpo_tape *t, int64_t n)
{
    return !t->in_host || ((uint64_t)n <= SIZE_MAX / sizeof(float) && tpo_budget_fits((size_t)n * sizeof(float)));
}

void tpo_tape_reset(struct tpo_tape *t, bool record)
{
    if (t->chunk != NULL) {
        chunks_free(t, t->chunk->older);
        t->chunk->older = NULL;
        t->chunk->used = 0;
    }
    tpo_arena_reset(&t->arena);
    t->last = NULL;
    t->pass = pass_next();
    t->uses = NULL;
    t->complete = NULL;
    t->n_idle = 0;
    t->error = TPO_OK;
    t->record = record;
}

void tpo_tape_close(struct tpo_tape *t)
{
    if (t == NULL) return;
    chunks_free(t, t->chunk);
    tpo_arena_free(&t->arena);
    free(t);
}

int tpo_tape_error(const struct tpo_tape *t)
{
    return t->error;
}
struct tpo_stream *tpo_tape_stream(const struct tpo_tape *t)
{
    return t->stream;
}
struct tpo_arena *tpo_tape_arena(struct tpo_tape *t)
{
    return &t->arena;
}

bool tpo_tape_check(struct tpo_tape *t, int code)
{
    if (t->error == TPO_OK) t->error = code;
    return t->error == TPO_OK;
}

static bool chunk_add(struct tpo_tape *t, size_t bytes)
{
    size_t size = bytes > t->next_size ? bytes : t->next_size;
    struct chunk *c = calloc(1, sizeof(*c));
    if (c == NULL) return false;
    c->block = block_take(t, size);
    if (c->block == NULL && size > bytes) c->block = block_take(t, size = bytes);
    if (c->block == NULL) {
        free(c);
        return false;
    }
    c->size = size;
    c->older = t->chunk;
    t->chunk = c;
    /* Doubling: after a pass or two the newest block alone holds a pass, and the system is asked no more. */
    t->next_size = size * 2;
    return true;
}

void tpo_tape_room(struct tpo_tape *t, int64_t n)
{
    const size_t bytes = (size_t)n * sizeof(float);
    if (t->chunk != NULL && t->chunk->size >= bytes) return;
    chunks_free(t, t->chunk); /* first, so that both are never held */
    t->chunk = NULL;
    t->next_size = 0;
    (void)chunk_add(t, bytes); /* without it the pass tells what it lacks */
    t->next_size = FIRST_CHUNK;
}

static void *device_take(struct tpo_tape *t, int64_t n, size_t each)
{
    if (t->error != TPO_OK) return NULL;
    if (n < 0 || (size_t)n > SIZE_MAX / 16 / each) {
        t->error = TPO_ENOMEM;
        return NULL;
    }
    const size_t bytes = ((size_t)n * each + 63) & ~(size_t)63;
    if (t->chunk == NULL || t->chunk->size - t->chunk->used < bytes) {
        if (!chunk_add(t, bytes)) {
            t->error = TPO_ENOMEM;
            return NULL;
        }
    }
    void *block = t->chunk->block + t->chunk->used;
    t->chunk->used += bytes;
    return block;
}

float *tpo_tape_floats(struct tpo_tape *t, int64_t n)
{
    return device_take(t, n, sizeof(float));
}

int32_t *tpo_tape_indices(struct tpo_tape *t, const int32_t *host, int64_t n)
{
    int32_t *copy = device_take(t, n, sizeof(*copy));
    if (copy == NULL) return NULL;
    return tpo_tape_check(t, tpo_copy_in(t->stream, copy, host, (size_t)n * sizeof(*copy))) ? copy : NULL;
}

struct tpo_scope tpo_scope_begin(const struct tpo_tape *t)
{
    return (struct tpo_scope){.block = t->chunk, .last = t->last, .used = t->chunk != NULL ? t->chunk->used : 0};
}

struct tpo_tensor *tpo_scope_end(struct tpo_tape *t, struct tpo_scope scope, struct tpo_tensor *keep)
{
    if (keep == NULL || t->error != TPO_OK || keep->needs_grad || keep->ld != keep->cols) return keep;
    if (scope.last != t->last || scope.block == NULL || scope.block != t->chunk) return keep;
    /* Moved down to the mark, unless it would be copied onto itself. */
    const int64_t n = (int64_t)keep->rows * keep->cols;
    char *to = t->chunk->block + scope.used, *end = to + (size_t)n * sizeof(float);
    const char *from = (const char *)keep->data;
    if (from < end || from >= t->chunk->block + t->chunk->size) return keep;
    if (!tpo_tape_check(t, tpo_scale(t->stream, (float *)to, 1, keep->data, n))) return NULL;
    keep->data = (float *)to;
    t->chunk->used = scope.used + (((size_t)n * sizeof(float) + 63) & ~(size_t)63);
    return keep;
}

static struct tpo_tensor *head_make(struct tpo_tape *t, int rows, int cols)
{
    if (t->error != TPO_OK) return NULL;
    if (rows < 1 || cols < 1) {
        t->error = TPO_EINVAL;
        return NULL;
    }
    struct tpo_tensor *x = tpo_arena_calloc(&t->arena, sizeof(*x));
    if (x == NULL) {
        t->error = TPO_ENOMEM;
        return NULL;
    }
    x->rows = rows;
    x->cols = cols;
    x->ld = cols;
    return x;
}

struct tpo_tensor *tpo_tape_make(struct tpo_tape *t, int rows, int cols, bool needs_grad)
{
    struct tpo_tensor *x = head_make(t, rows, cols);
    if (x == NULL) return NULL;
    x->data = tpo_tape_floats(t, (int64_t)rows * cols);
    x->needs_grad = needs_grad && t->record;
    return x->data != NULL ? x : NULL;
}

void *tpo_tape_step(struct tpo_tape *t, size_t size, struct tpo_tensor *out, void (*backward)(struct tpo_tape *, struct tpo_step *))
{
    if (t->error != TPO_OK || !out->needs_grad) return NULL;
    struct tpo_step *step = tpo_arena_calloc(&t->arena, size);
    if (step == NULL) {
        t->error = TPO_ENOMEM;
        return NULL;
    }
    step->before = t->last;
    step->out = out;
    step->backward = backward;
    t->last = step;
    return step;
}

/* An input that asked for a gradient has one even when no loss depends on it. */
static struct tpo_tensor *input_keep(struct tpo_tape *t, struct tpo_tensor *x)
{
    x->grad = tpo_tape_floats(t, (int64_t)x->rows * x->cols);
    x->borrowed = true;
    if (x->grad == NULL) return NULL;
    return tpo_tape_check(t, tpo_fill(t->stream, x->grad, 0, (int64_t)x->rows * x->cols)) ? x : NULL;
}

struct tpo_tensor *tpo_input(struct tpo_tape *t, const float *data, int rows, int cols, bool needs_grad)
{
    struct tpo_tensor *x = tpo_tape_make(t, rows, cols, needs_grad);
    if (x == NULL) return NULL;
    const int64_t n = (int64_t)rows * cols;
    const int code =
        data != NULL ? tpo_copy_in(t->stream, x->data, data, (size_t)n * sizeof(float)) : tpo_fill(t->stream, x->data, 0, n);
    if (!tpo_tape_check(t, code)) return NULL;
    return x->needs_grad ? input_keep(t, x) : x;
}

static void use_note(struct tpo_tape *t, struct tpo_param *p)
{
    struct first_use *use = tpo_arena_alloc(&t->arena, sizeof(*use));
    if (!tpo_tape_check(t, use != NULL ? TPO_OK : TPO_ENOMEM)) return;
    *use = (struct first_use){t->uses, p, t->last};
    t->uses = use;
    p->pass = t->pass;
}

struct tpo_tensor *tpo_param_tensor(struct tpo_tape *t, struct tpo_param *p, int rows, int cols)
{
    if (!tpo_tape_check(t,
                        p == NULL || (p->data == NULL && p->half == NULL) || p->size != (int64_t)rows * cols ? TPO_EINVAL : TPO_OK))
        return NULL;
    struct tpo_tensor *x = head_make(t, rows, cols);
    if (x == NULL) return NULL;
    x->data = p->data;
    x->half = p->data == NULL ? p->half : NULL;
    x->grad = p->grad;
    x->needs_grad = p->grad != NULL && t->record;
    x->borrowed = true;
    if (x->needs_grad && p->pass != t->pass) use_note(t, p);
    return x;
}

struct reshape_step {
    struct tpo_step base;
    struct tpo_tensor *x;
};

static void reshape_backward(struct tpo_tape *t, struct tpo_step *base)
{
    TPO_STEP(struct reshape_step);
    tpo_grad_give(t, step->x, base->out->grad);
}

struct tpo_tensor *tpo_reshape(struct tpo_tape *t, struct tpo_tensor *x, int rows, int cols)
{
    if (x == NULL) return NULL;
    if (!tpo_tape_check(t, x->ld != x->cols || (int64_t)x->rows * x->cols != (int64_t)rows * cols ? TPO_EINVAL : TPO_OK))
        return NULL;
    struct tpo_tensor *y = head_make(t, rows, cols);
    if (y == NULL) return NULL;
    y->data = x->data;
    y->needs_grad = x->needs_grad;
    struct reshape_step *step = tpo_tape_step(t, sizeof(*step), y, reshape_backward);
    if (step != NULL) step->x = x;
    return y;
}

struct tpo_tensor *tpo_columns(struct tpo_tape *t, struct tpo_tensor *x, int first, int n)
{
    if (x == NULL) return NULL;
    if (!tpo_tape_check(t, first < 0 || n < 1 || first > x->cols - n || x->view_of != NULL ? TPO_EINVAL : TPO_OK)) return NULL;
    struct tpo_tensor *y = head_make(t, x->rows, n);
    if (y == NULL) return NULL;
    y->data = x->data + first;
    y->ld = x->ld;
    y->needs_grad = x->needs_grad;
    y->view_of = x;
    y->view_column = first;
    return y;
}

static float *gradient_take(struct tpo_tape *t, int64_t n)
{
    for (int i = t->n_idle - 1; i >= 0; i--) {
        if (t->idle[i].n != n) continue;
        float *block = t->idle[i].block;
        t->idle[i] = t->idle[--t->n_idle];
        return block;
    }
    return tpo_tape_floats(t, n);
}

static void gradient_give_back(struct tpo_tape *t, struct tpo_tensor *x)
{
    /* The oldest makes room: it is the coldest. */
    if (t->n_idle == IDLE_MAX) t->idle[0] = t->idle[--t->n_idle];
    t->idle[t->n_idle++] = (struct idle){.block = x->grad, .n = (int64_t)x->rows * x->cols};
    x->grad = NULL;
}

float *tpo_grad_begin(struct tpo_tape *t, struct tpo_tensor *x, int *add)
{
    *add = 1;
    if (!x->needs_grad || t->error != TPO_OK) return NULL;
    if (x->view_of != NULL) {
        float *whole = tpo_grad_zeroed(t, x->view_of);
        x->grad = whole != NULL ? whole + x->view_column : NULL;
        return x->grad;
    }
    if (x->grad != NULL) return x->grad;
    *add = 0;
    x->grad = gradient_take(t, (int64_t)x->rows * x->cols);
    return x->grad;
}

float *tpo_grad_zeroed(struct tpo_tape *t, struct tpo_tensor *x)
{
    int add;
    float *grad = tpo_grad_begin(t, x, &add);
    if (grad == NULL || add) return grad;
    return tpo_tape_check(t, tpo_fill(t->stream, grad, 0, (int64_t)x->rows * x->cols)) ? grad : NULL;
}

int tpo_grads_begin(struct tpo_tape *t, int n, struct tpo_tensor *const *x, float **places)
{
    bool fresh[8];
    int any = 0;
    for (int i = 0; i < n; i++) {
        int add = 0;
        places[i] = x[i]->needs_grad ? tpo_grad_begin(t, x[i], &add) : tpo_tape_floats(t, (int64_t)x[i]->rows * x[i]->ld);
        fresh[i] = !x[i]->needs_grad || !add;
        any |= !fresh[i];
    }
    for (int i = 0; i < n && any; i++)
        if (fresh[i] && places[i] != NULL) tpo_tape_check(t, tpo_fill(t->stream, places[i], 0, (int64_t)x[i]->rows * x[i]->ld));
    return any;
}

void tpo_grad_give(struct tpo_tape *t, struct tpo_tensor *x, float *dy)
{
    if (!x->needs_grad || t->error != TPO_OK) return;
    if (x->ld != x->cols || x->view_of != NULL) {
        t->error = TPO_EINVAL;
    } else if (x->grad == NULL && !x->borrowed) {
        x->grad = dy;
        t->taken = dy;
    } else {
        tpo_tape_check(t, tpo_axpy(t->stream, x->grad, 1, dy, (int64_t)x->rows * x->cols));
    }
}

void tpo_seed(struct tpo_tape *t, struct tpo_tensor *x, const float *upstream, float scale)
{
    if (x == NULL || !x->needs_grad) return;
    const int64_t n = (int64_t)x->rows * x->cols;
    float *grad = tpo_grad_zeroed(t, x), *given = tpo_tape_floats(t, n);
    if (grad == NULL || given == NULL) return;
    const int code =
        upstream != NULL ? tpo_copy_in(t->stream, given, upstream, (size_t)n * sizeof(float)) : tpo_fill(t->stream, given, 1, n);
    if (tpo_tape_check(t, code)) tpo_tape_check(t, tpo_axpy(t->stream, grad, upstream != NULL ? 1 : scale, given, n));
}

void tpo_tape_on_complete(struct tpo_tape *t, void (*complete)(void *arg, struct tpo_param *p), void *arg)
{
    t->complete = complete;
    t->complete_arg = arg;
}

static void completed(struct tpo_tape *t, const struct tpo_step *next)
{
    for (; t->uses != NULL && t->uses->at == next; t->uses = t->uses->older)
        if (t->complete != NULL && t->error == TPO_OK) t->complete(t->complete_arg, t->uses->param);
}

int tpo_tape_backward(struct tpo_tape *t)
{
    completed(t, t->last);
    for (struct tpo_step *step = t->last; step != NULL && t->error == TPO_OK; step = step->before) {
        if (step->out->grad != NULL) {
            t->taken = NULL;
            step->backward(t, step);
            if (t->taken != step->out->grad) gradient_give_back(t, step->out);
        }
        completed(t, step->before);
    }
    t->last = NULL;
    return t->error;
}

int tpo_read(struct tpo_tape *t, float *host, const struct tpo_tensor *x)
{
    if (x == NULL || t->error != TPO_OK) return t->error != TPO_OK ? t->error : TPO_EINVAL;
    for (int m = 0; m < (x->ld == x->cols ? 1 : x->rows); m++) {
        const size_t n = x->ld == x->cols ? (size_t)x->rows * (size_t)x->cols : (size_t)x->cols;
        if (!tpo_tape_check(t, tpo_copy_out(t->stream, host + (size_t)m * (size_t)x->cols, x->data + (size_t)m * (size_t)x->ld,
                                            n * sizeof(float))))
            return t->error;
    }
    if (tpo_tape_check(t, tpo_stream_wait(t->stream))) return TPO_OK;
    return t->error;
}

float tpo_value(struct tpo_tape *t, const struct tpo_tensor *x)
{
    float value = NAN;
    if (x == NULL || x->rows != 1 || x->cols != 1 || tpo_read(t, &value, x) != TPO_OK) return NAN;
    return value;
}
