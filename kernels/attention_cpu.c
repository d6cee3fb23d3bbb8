/* This file owns the CPU's attention over contiguous keys, forward and backward. */
#include <math.h>
#include <stdlib.h>

#include "kernels/cpu.h"

static int shape_ok(const struct tpo_attention_shape *p)
{
    return p->B > 0 && p->T > 0 && p->S > 0 && p->H > 0 && p->G > 0 && p->H % p->G == 0 && p->D > 0 && p->D <= 256;
}

static int visible(const struct tpo_attention_shape *p, int b, int t, int s)
{
    int at = t + p->S - p->T;
    if (p->key_len != NULL && s >= p->key_len[b]) return 0;
    if (p->causal && s > at) return 0;
    if (p->segments == NULL) return 1;
    int32_t segment = p->segments[(int64_t)b * p->S + s];
    return segment == 0 || (at >= 0 && at < p->S && segment == p->segments[(int64_t)b * p->S + at]);
}

static float dot(const float *a, const float *b, int n)
{
    float sum = 0.0f;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

struct forward {
    float *out, *lse;
    const float *q, *k, *v;
    const struct tpo_attention_shape *p;
    char *scratch;
    size_t scratch_stride;
};

static void run_forward(void *arg, int part, int member)
{
    const struct forward *f = arg;
    const struct tpo_attention_shape *p = f->p;
    int h = part % p->H, b = part / p->H, g = h / (p->H / p->G);
    float *score = (float *)(f->scratch + f->scratch_stride * (size_t)member);
    for (int t = 0; t < p->T; t++) {
        int64_t row = (int64_t)b * p->T + t;
        const float *q = f->q + row * p->ldq + h * p->D;
        float *out = f->out + row * p->ldo + h * p->D, top = -INFINITY, sum = 0.0f;
        for (int s = 0; s < p->S; s++) {
            score[s] =
                visible(p, b, t, s) ? p->scale * dot(q, f->k + ((int64_t)b * p->S + s) * p->ldk + g * p->D, p->D) : -INFINITY;
            top = score[s] > top ? score[s] : top;
        }
        for (int i = 0; i < p->D; i++) out[i] = 0.0f;
        for (int s = 0; s < p->S && top != -INFINITY; s++) {
            if (score[s] == -INFINITY) continue;
            float e = expf(score[s] - top);
            const float *v = f->v + ((int64_t)b * p->S + s) * p->ldv + g * p->D;
            sum += e;
            for (int i = 0; i < p->D; i++) out[i] += e * v[i];
        }
        for (int i = 0; i < p->D && sum > 0.0f; i++) out[i] /= sum;
        if (f->lse != NULL) f->lse[row * p->H + h] = top == -INFINITY ? -INFINITY : top + logf(sum);
    }
}

int tpo_attention_cpu(struct tpo_stream *s, float *out, float *lse, const float *q, const float *k, const float *v,
                      const struct tpo_attention_shape *shape)
{
    if (!shape_ok(shape)) return TPO_EINVAL;
    struct forward f = {out, lse, q, k, v, shape, NULL, 0};
    f.scratch = tpo_cpu_scratch(s, (size_t)shape->S * sizeof(float), &f.scratch_stride);
    if (f.scratch == NULL) return TPO_ENOMEM;
    tpo_team_run(s->team, run_forward, &f, shape->B * shape->H);
    return TPO_OK;
}

struct backward {
    float *dq, *dk, *dv;
    const float *dout, *out, *lse, *q, *k, *v;
    int add;
    const struct tpo_attention_shape *p;
};

static void clear_rows(float *x, int64_t row, int rows, int ld, int D)
{
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < D; i++) x[(row + r) * ld + i] = 0.0f;
}

/* One part is one key/value head of one sample with all query heads that read it. */
static void run_backward(void *arg, int part, int member)
{
    (void)member;
    const struct backward *f = arg;
    const struct tpo_attention_shape *p = f->p;
    int g = part % p->G, b = part / p->G, per_group = p->H / p->G;
    if (!f->add) {
        clear_rows(f->dk + g * p->D, (int64_t)b * p->S, p->S, p->ldk, p->D);
        clear_rows(f->dv + g * p->D, (int64_t)b * p->S, p->S, p->ldv, p->D);
    }
    for (int h = g * per_group; h < (g + 1) * per_group; h++) {
        if (!f->add) clear_rows(f->dq + h * p->D, (int64_t)b * p->T, p->T, p->ldq, p->D);
        for (int t = 0; t < p->T; t++) {
            int64_t row = (int64_t)b * p->T + t;
            float lse = f->lse[row * p->H + h];
            if (lse == -INFINITY) continue;
            const float *q = f->q + row * p->ldq + h * p->D, *dout = f->dout + row * p->ldo + h * p->D;
            float *dq = f->dq + row * p->ldq + h * p->D, delta = dot(dout, f->out + row * p->ldo + h * p->D, p->D);
            for (int s = 0; s < p->S; s++) {
                if (!visible(p, b, t, s)) continue;
                int64_t key = (int64_t)b * p->S + s;
                const float *k = f->k + key * p->ldk + g * p->D, *v = f->v + key * p->ldv + g * p->D;
                float *dk = f->dk + key * p->ldk + g * p->D, *dv = f->dv + key * p->ldv + g * p->D;
                float weight = expf(p->scale * dot(q, k, p->D) - lse), ds = p->scale * weight * (dot(dout, v, p->D) - delta);
                for (int i = 0; i < p->D; i++) {
                    dv[i] += weight * dout[i];
                    dk[i] += ds * q[i];
                    dq[i] += ds * k[i];
                }
            }
        }
    }
}

int tpo_attention_grad_cpu(struct tpo_stream *s, float *dq, float *dk, float *dv, const float *dout, const float *out,
                           const float *lse, const float *q, const float *k, const float *v, int add,
                           const struct tpo_attention_shape *shape)
{
    if (!shape_ok(shape)) return TPO_EINVAL;
    struct backward f = {dq, dk, dv, dout, out, lse, q, k, v, add, shape};
    tpo_team_run(s->team, run_backward, &f, shape->B * shape->G);
    return TPO_OK;
}

/* --- cross entropy of single rows ------------------------------------------------------------------------------------------------------- */

struct single_rows {
    float *loss, *dq, *dk;
    float upstream;
    const float *q, *k;
    const int32_t *rows;
    const float *target, *weight;
    int n;
    const struct tpo_attention_shape *p;
    char *scratch;
    size_t scratch_stride;
};

/* Fills score with log p over the visible keys, -INFINITY elsewhere. */
static void log_row(const struct single_rows *r, float *score, int b, int t, int h)
{
    const struct tpo_attention_shape *p = r->p;
    const float *q = r->q + ((int64_t)b * p->T + t) * p->ldq + h * p->D;
    float top = -INFINITY, sum = 0.0f;
    for (int s = 0; s < p->S; s++) {
        const float *k = r->k + ((int64_t)b * p->S + s) * p->ldk + h / (p->H / p->G) * p->D;
        score[s] = visible(p, b, t, s) ? p->scale * dot(q, k, p->D) : -INFINITY;
        top = score[s] > top ? score[s] : top;
    }
    if (top == -INFINITY) return;
    for (int s = 0; s < p->S; s++) sum += expf(score[s] - top);
    float lse = top + logf(sum);
    for (int s = 0; s < p->S; s++) score[s] -= lse;
}

static void run_row_losses(void *arg, int part, int member)
{
    const struct single_rows *r = arg;
    const int32_t *row = r->rows + 3 * (int64_t)part;
    const float *target = r->target + (int64_t)part * r->p->S;
    float *score = (float *)(r->scratch + r->scratch_stride * (size_t)member), sum = 0.0f;
    log_row(r, score, row[0], row[1], row[2]);
    for (int s = 0; s < r->p->S; s++)
        if (score[s] != -INFINITY) sum -= target[s] * score[s];
    r->loss[part] = r->weight[part] * sum;
}

/* One part is one key/value head of one sample; it walks all rows in order and takes its own, since rows may share keys and queries. */
static void run_row_grads(void *arg, int part, int member)
{
    const struct single_rows *r = arg;
    const struct tpo_attention_shape *p = r->p;
    float *score = (float *)(r->scratch + r->scratch_stride * (size_t)member);
    int per_group = p->H / p->G, b = part / p->G, g = part % p->G;
    for (int i = 0; i < r->n; i++) {
        const int32_t *row = r->rows + 3 * (int64_t)i;
        if (row[0] != b || row[2] / per_group != g) continue;
        const float *target = r->target + (int64_t)i * p->S;
        float total = 0.0f, scale = r->upstream * r->weight[i] * p->scale;
        log_row(r, score, b, row[1], row[2]);
        for (int s = 0; s < p->S; s++)
            if (score[s] != -INFINITY) total += target[s];
        int64_t at = ((int64_t)b * p->T + row[1]) * p->ldq + row[2] * p->D;
        for (int s = 0; s < p->S; s++) {
            if (score[s] == -INFINITY) continue;
            int64_t key = ((int64_t)b * p->S + s) * p->ldk + g * p->D;
            float d = scale * (expf(score[s]) * total - target[s]);
            for (int c = 0; c < p->D; c++) {
                r->dq[at + c] += d * r->k[key + c];
                r->dk[key + c] += d * r->q[at + c];
            }
        }
    }
}

static int rows_ok(const struct single_rows *r)
{
    if (!shape_ok(r->p) || r->n < 1) return 0;
    for (int i = 0; i < r->n; i++) {
        const int32_t *row = r->rows + 3 * (int64_t)i;
        if (row[0] < 0 || row[0] >= r->p->B || row[1] < 0 || row[1] >= r->p->T || row[2] < 0 || row[2] >= r->p->H) return 0;
    }
    return 1;
}

static int run_single_rows(struct tpo_stream *s, struct single_rows *r, tpo_part_fn *fn, int n_parts)
{
    r->scratch = tpo_cpu_scratch(s, (size_t)r->p->S * sizeof(float), &r->scratch_stride);
    if (r->scratch == NULL) return TPO_ENOMEM;
    tpo_team_run(s->team, fn, r, n_parts);
    return TPO_OK;
}

int tpo_attention_rows_cpu(struct tpo_stream *s, float *loss, const float *q, const float *k, const int32_t *rows,
                           const float *target, const float *weight, int n, const struct tpo_attention_shape *shape)
{
    struct single_rows r = {.loss = loss, .q = q, .k = k, .rows = rows, .target = target, .weight = weight, .n = n, .p = shape};
    return rows_ok(&r) ? run_single_rows(s, &r, run_row_losses, n) : TPO_EINVAL;
}

int tpo_attention_rows_grad_cpu(struct tpo_stream *s, float *dq, float *dk, float upstream, const float *q, const float *k,
                                const int32_t *rows, const float *target, const float *weight, int n,
                                const struct tpo_attention_shape *shape)
{
    struct single_rows r = {.dq = dq,
                            .dk = dk,
                            .upstream = upstream,
                            .q = q,
                            .k = k,
                            .rows = rows,
                            .target = target,
                            .weight = weight,
                            .n = n,
                            .p = shape};
    return rows_ok(&r) ? run_single_rows(s, &r, run_row_grads, shape->B * shape->G) : TPO_EINVAL;
}
