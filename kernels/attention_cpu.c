/* This file owns the CPU's attention over contiguous keys, forward and backward. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/attention_parts.h"
#include "kernels/cpu.h"
#include "kernels/simd.h"

static int shape_ok(const struct tpo_attention_shape *p)
{
    return p->B > 0 && p->T > 0 && p->S > 0 && p->H > 0 && p->G > 0 && p->H % p->G == 0 && p->D > 0 && p->D <= 256;
}

static int keys_of(const struct tpo_attention_shape *p, int b)
{
    int n = p->key_len != NULL ? p->key_len[b] : p->S;
    return n < 0 ? 0 : n > p->S ? p->S : n;
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

/* The code for the widest instruction set of this machine; the bits may differ between them, not within one. */
static tpo_attention_fn *forward_fn(void)
{
#if defined(__x86_64__)
    if (tpo_cpu_has_avx512()) return tpo_attention_forward_avx512;
    if (tpo_cpu_has_avx2()) return tpo_attention_forward_avx2;
#endif
    return tpo_attention_forward_portable;
}

static tpo_attention_fn *backward_fn(void)
{
#if defined(__x86_64__)
    if (tpo_cpu_has_avx512()) return tpo_attention_backward_avx512;
    if (tpo_cpu_has_avx2()) return tpo_attention_backward_avx2;
#endif
    return tpo_attention_backward_portable;
}

/* Keys in one vector of that code. */
static int tile_width(void)
{
#if defined(__x86_64__)
    if (tpo_cpu_has_avx512()) return 16;
    if (tpo_cpu_has_avx2()) return 8;
#endif
    return 4;
}

struct job {
    float *out, *lse;    /* forward */
    float *dq, *dk, *dv; /* backward */
    const float *dout, *old_out, *old_lse;
    const float *q, *k, *v;
    int add;
    const struct tpo_attention_shape *p;
    tpo_attention_fn *fn;
    char *scratch;
    size_t scratch_stride;
};

static int64_t up(int64_t n)
{
    return (n + TPO_ATTENTION_TILE - 1) / TPO_ATTENTION_TILE * TPO_ATTENTION_TILE;
}

/* Bytes of one member's scratch, and where each array lies in it. */
static size_t lay_out(struct tpo_attention_part *a, struct tpo_attention_block *b, char *at, const struct tpo_attention_shape *p,
                      int backward)
{
    int64_t Dp = up(p->D), Sp = up(p->S);
    size_t used = 0;
#define TAKE(member, type, count)                                                                                                  \
    do {                                                                                                                           \
        if (at != NULL) (member) = (type *)(at + used);                                                                            \
        used += ((size_t)(count) * sizeof(type) + 63) & ~(size_t)63;                                                               \
    } while (0)
    int32_t *segments = NULL;
    TAKE(segments, int32_t, Sp);
    TAKE(a->kt, float, Dp *Sp);
    TAKE(a->v, float, Sp *Dp);
    TAKE(a->rows, float, TPO_ATTENTION_ROWS *Dp);
    TAKE(a->score, float, TPO_ATTENTION_ROWS *Sp);
    TAKE(a->out, float, TPO_ATTENTION_ROWS *Dp);
    TAKE(b->tiles, int32_t, Sp / tile_width());
    TAKE(b->open, uint8_t, Sp / tile_width());
    if (backward) {
        TAKE(a->k, float, Sp *Dp);
        TAKE(a->vt, float, Dp *Sp);
        TAKE(a->dk, float, Sp *Dp);
        TAKE(a->dv, float, Sp *Dp);
        TAKE(a->dout, float, TPO_ATTENTION_ROWS *Dp);
        TAKE(a->ds, float, TPO_ATTENTION_ROWS *Sp);
    }
#undef TAKE
    a->segments = segments;
    a->tile = tile_width();
    a->D = p->D;
    a->Dp = (int)Dp;
    a->Sp = Sp;
    a->scale = p->scale;
    return used;
}

/* Rows t0.. of sample b: how far each one sees, of which segment it is, and the tiles that matter. */
static void block_open(struct tpo_attention_block *block, const struct tpo_attention_part *a, const struct tpo_attention_shape *p,
                       int b, int t0)
{
    int n_keys = keys_of(p, b), furthest = -1, nearest = p->S;
    block->n_rows = p->T - t0 < TPO_ATTENTION_ROWS ? p->T - t0 : TPO_ATTENTION_ROWS;
    for (int r = 0; r < TPO_ATTENTION_ROWS; r++) {
        int at = t0 + r + p->S - p->T, last = p->causal && at < n_keys ? at : n_keys - 1;
        block->last[r] = r < block->n_rows && last >= 0 ? last : -1;
        block->segment[r] = r < block->n_rows && p->segments != NULL && at >= 0 && at < p->S ? a->segments[at] : -1;
        if (r < block->n_rows && block->last[r] > furthest) furthest = block->last[r];
        if (block->last[r] < nearest) nearest = block->last[r];
    }
    block->n_tiles = 0;
    for (int tile = 0; tile * a->tile <= furthest; tile++) {
        const int32_t *segment = a->segments + tile * a->tile;
        int shared = p->segments == NULL ? a->tile : 0, seen = 0;
        for (int i = 0; i < a->tile && p->segments != NULL; i++) shared += segment[i] == 0;
        for (int r = 0; r < block->n_rows && shared == 0 && !seen; r++)
            for (int i = 0; i < a->tile; i++) seen |= segment[i] == block->segment[r];
        if (shared == 0 && !seen) continue;
        block->tiles[block->n_tiles] = tile;
        block->open[block->n_tiles++] = shared == a->tile && (tile + 1) * a->tile - 1 <= nearest;
    }
}

static void pack_keys(struct tpo_attention_part *a, const struct tpo_attention_shape *p, const struct job *f, int b, int g,
                      int backward)
{
    int n_keys = keys_of(p, b);
    int32_t *segments = (int32_t *)a->segments;
    for (int64_t s = 0; s < a->Sp; s++) segments[s] = s < p->S && p->segments != NULL ? p->segments[(int64_t)b * p->S + s] : 0;
    const struct tpo_simd *v = tpo_simd();
    /* The rows of k pass through v's place where backward does not need them packed. */
    float *rows = backward ? a->k : a->v;
    v->pack(rows, a->Dp, a->Sp, f->k + (int64_t)b * p->S * p->ldk + g * p->D, p->ldk, n_keys, p->D);
    v->transpose(a->kt, a->Sp, rows, a->Dp, (int)a->Sp, p->D);
    v->pack(a->v, a->Dp, a->Sp, f->v + (int64_t)b * p->S * p->ldv + g * p->D, p->ldv, n_keys, p->D);
    if (backward) v->transpose(a->vt, a->Sp, a->v, a->Dp, (int)a->Sp, p->D);
}

static void run_forward(void *arg, int part, int member)
{
    const struct job *f = arg;
    const struct tpo_attention_shape *p = f->p;
    int h = part % p->H, b = part / p->H;
    struct tpo_attention_part a;
    struct tpo_attention_block block;
    lay_out(&a, &block, f->scratch + f->scratch_stride * (size_t)member, p, 0);
    pack_keys(&a, p, f, b, h / (p->H / p->G), 0);
    for (int t = 0; t < p->T; t += TPO_ATTENTION_ROWS) {
        int64_t row = (int64_t)b * p->T + t;
        block_open(&block, &a, p, b, t);
        tpo_simd()->pack(a.rows, a.Dp, TPO_ATTENTION_ROWS, f->q + row * p->ldq + h * p->D, p->ldq, block.n_rows, p->D);
        f->fn(&a, &block);
        for (int r = 0; r < block.n_rows; r++) {
            memcpy(f->out + (row + r) * p->ldo + h * p->D, a.out + (int64_t)r * a.Dp, (size_t)p->D * sizeof(float));
            if (f->lse != NULL) f->lse[(row + r) * p->H + h] = a.lse[r];
        }
    }
}

int tpo_attention_cpu(struct tpo_stream *s, float *out, float *lse, const float *q, const float *k, const float *v,
                      const struct tpo_attention_shape *shape)
{
    if (!shape_ok(shape)) return TPO_EINVAL;
    struct tpo_attention_part a;
    struct tpo_attention_block block;
    struct job f = {.out = out, .lse = lse, .q = q, .k = k, .v = v, .p = shape, .fn = forward_fn()};
    f.scratch = tpo_cpu_scratch(s, lay_out(&a, &block, NULL, shape, 0), &f.scratch_stride);
    if (f.scratch == NULL) return TPO_ENOMEM;
    tpo_team_run(s->team, run_forward, &f, shape->B * shape->H);
    return TPO_OK;
}

/* Writes or adds n rows of the packed (n, Dp) to x with distance ld. */
static void unpack_rows(float *x, int64_t ld, const float *packed, int n, int D, int64_t Dp, int add)
{
    for (int r = 0; r < n; r++) {
        if (add)
            tpo_simd()->add(x + r * ld, x + r * ld, packed + r * Dp, D);
        else
            memcpy(x + r * ld, packed + r * Dp, (size_t)D * sizeof(*x));
    }
}

static void backward_head(const struct job *f, struct tpo_attention_part *a, struct tpo_attention_block *block, int b, int h)
{
    const struct tpo_attention_shape *p = f->p;
    for (int t = 0; t < p->T; t += TPO_ATTENTION_ROWS) {
        int64_t row = (int64_t)b * p->T + t;
        block_open(block, a, p, b, t);
        tpo_simd()->pack(a->rows, a->Dp, TPO_ATTENTION_ROWS, f->q + row * p->ldq + h * p->D, p->ldq, block->n_rows, p->D);
        tpo_simd()->pack(a->dout, a->Dp, TPO_ATTENTION_ROWS, f->dout + row * p->ldo + h * p->D, p->ldo, block->n_rows, p->D);
        for (int r = 0; r < TPO_ATTENTION_ROWS; r++) {
            const float *out = f->old_out + (row + r) * p->ldo + h * p->D;
            a->delta[r] = r < block->n_rows ? tpo_simd()->dot(a->dout + (int64_t)r * a->Dp, out, p->D) : 0.0f;
            a->lse[r] = r < block->n_rows ? f->old_lse[(row + r) * p->H + h] : -INFINITY;
        }
        f->fn(a, block);
        unpack_rows(f->dq + row * p->ldq + h * p->D, p->ldq, a->out, block->n_rows, p->D, a->Dp, f->add);
    }
}

/* One part is one key/value head of one sample with all query heads that read it. */
static void run_backward(void *arg, int part, int member)
{
    const struct job *f = arg;
    const struct tpo_attention_shape *p = f->p;
    int g = part % p->G, b = part / p->G, per_group = p->H / p->G;
    struct tpo_attention_part a;
    struct tpo_attention_block block;
    lay_out(&a, &block, f->scratch + f->scratch_stride * (size_t)member, p, 1);
    pack_keys(&a, p, f, b, g, 1);
    memset(a.dk, 0, (size_t)(a.Sp * a.Dp) * sizeof(float));
    memset(a.dv, 0, (size_t)(a.Sp * a.Dp) * sizeof(float));
    for (int h = g * per_group; h < (g + 1) * per_group; h++) backward_head(f, &a, &block, b, h);
    unpack_rows(f->dk + (int64_t)b * p->S * p->ldk + g * p->D, p->ldk, a.dk, p->S, p->D, a.Dp, f->add);
    unpack_rows(f->dv + (int64_t)b * p->S * p->ldv + g * p->D, p->ldv, a.dv, p->S, p->D, a.Dp, f->add);
}

int tpo_attention_grad_cpu(struct tpo_stream *s, float *dq, float *dk, float *dv, const float *dout, const float *out,
                           const float *lse, const float *q, const float *k, const float *v, int add,
                           const struct tpo_attention_shape *shape)
{
    if (!shape_ok(shape)) return TPO_EINVAL;
    struct tpo_attention_part a;
    struct tpo_attention_block block;
    struct job f = {.dq = dq, .dk = dk, .dv = dv, .dout = dout, .old_out = out, .old_lse = lse, .q = q, .k = k, .v = v, .add = add};
    f.p = shape;
    f.fn = backward_fn();
    f.scratch = tpo_cpu_scratch(s, lay_out(&a, &block, NULL, shape, 1), &f.scratch_stride);
    if (f.scratch == NULL) return TPO_ENOMEM;
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
    const struct tpo_simd *v = tpo_simd();
    const float *q = r->q + ((int64_t)b * p->T + t) * p->ldq + h * p->D;
    for (int s = 0; s < p->S; s++) {
        const float *k = r->k + ((int64_t)b * p->S + s) * p->ldk + h / (p->H / p->G) * p->D;
        score[s] = visible(p, b, t, s) ? p->scale * v->dot(q, k, p->D) : -INFINITY;
    }
    float lse = v->log_sum_exp(score, p->S);
    for (int s = 0; s < p->S && lse != -INFINITY; s++) score[s] -= lse;
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
    const struct tpo_simd *v = tpo_simd();
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
            v->axpy(r->dq + at, d, r->k + key, p->D);
            v->axpy(r->dk + key, d, r->q + at, p->D);
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
