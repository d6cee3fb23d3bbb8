/* This file owns the CPU's attention over contiguous keys, forward and backward. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/attention_parts.h"
#include "kernels/cpu.h"
#include "kernels/simd.h"

#define D_MAX 256

static int shape_ok(const struct tpo_attention_shape *p)
{
    return p->B > 0 && p->T > 0 && p->S > 0 && p->H > 0 && p->G > 0 && p->H % p->G == 0 && p->D > 0 && p->D <= D_MAX;
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
static const struct tpo_attention_code *code(void)
{
#if defined(__x86_64__)
    if (tpo_cpu_has_avx512bf16()) return &tpo_attention_avx512bf16;
    if (tpo_cpu_has_avx512()) return &tpo_attention_avx512;
    if (tpo_cpu_has_avx2()) return &tpo_attention_avx2;
#endif
    return &tpo_attention_portable;
}

#define CHUNK (16 * TPO_ATTENTION_ROWS) /* query rows of one part, forward */

struct job {
    float *out, *lse;    /* forward */
    float *dq, *dk, *dv; /* backward */
    const float *dout, *old_out, *old_lse;
    const float *q, *k, *v;
    int add, n_chunks;
    int paired; /* forward: pairs of bf16 are multiplied (attention_parts.h) */
    const struct tpo_attention_shape *p;
    char *scratch;
    size_t scratch_stride;
};

/* Bytes of one member's scratch, and where each array lies in it; *sums: forward, the chunk's sums so far. */
static size_t lay_out(struct tpo_attention_part *a, float **sums, char *at, const struct tpo_attention_shape *p, int backward)
{
    const int64_t K = TPO_ATTENTION_KEYS, R = TPO_ATTENTION_ROWS,
                  Dp = (p->D + TPO_ATTENTION_WIDE - 1) / TPO_ATTENTION_WIDE * TPO_ATTENTION_WIDE;
    size_t used = 0;
    memset(a, 0, sizeof(*a));
#define TAKE(member, type, count)                                                                                                  \
    do {                                                                                                                           \
        if (at != NULL) (member) = (type *)(at + used);                                                                            \
        used += ((size_t)(count) * sizeof(type) + 63) & ~(size_t)63;                                                               \
    } while (0)
    TAKE(a->segments, int32_t, K);
    TAKE(a->k_panels, float, K * p->D);
    TAKE(a->rows, float, R *Dp);
    TAKE(a->score, float, R *K);
    if (backward) {
        TAKE(a->v_panels, float, K * p->D);
        TAKE(a->k, float, K *Dp);
        TAKE(a->dk, float, K *Dp);
        TAKE(a->dv, float, K *Dp);
        TAKE(a->dout, float, R *Dp);
        TAKE(a->ds, float, R *K);
        TAKE(a->out, float, R *Dp);
    } else {
        TAKE(a->v, float, K *Dp);
        TAKE(a->top, float, CHUNK);
        TAKE(a->total, float, CHUNK);
        TAKE(*sums, float, CHUNK *Dp);
    }
#undef TAKE
    a->tile = code()->tile;
    a->D = p->D;
    a->Dp = (int)Dp;
    a->scale = p->scale;
    return used;
}

/* Rows t0.. of sample b: how far each one sees, and of which segment it is. */
static void block_rows(struct tpo_attention_block *block, const struct tpo_attention_shape *p, int b, int t0, int t_end)
{
    int n_keys = keys_of(p, b);
    block->n_rows = (int)tpo_min64(TPO_ATTENTION_ROWS, t_end - t0);
    for (int r = 0; r < TPO_ATTENTION_ROWS; r++) {
        int at = t0 + r + p->S - p->T, last = p->causal && at < n_keys ? at : n_keys - 1;
        block->last[r] = r < block->n_rows && last >= 0 ? last : -1;
        block->segment[r] =
            r < block->n_rows && p->segments != NULL && at >= 0 && at < p->S ? p->segments[(int64_t)b * p->S + at] : -1;
    }
}

/* The tiles of the span that matter to the block. */
static void block_tiles(struct tpo_attention_block *block, const struct tpo_attention_part *a, const struct tpo_attention_shape *p)
{
    int furthest = -1, nearest = p->S;
    for (int r = 0; r < block->n_rows; r++) {
        if (block->last[r] > furthest) furthest = block->last[r];
        if (block->last[r] < nearest) nearest = block->last[r];
    }
    block->n_tiles = 0;
    for (int tile = 0; tile * a->tile < TPO_ATTENTION_KEYS && a->first + tile * a->tile <= furthest; tile++) {
        const int32_t *segment = a->segments + tile * a->tile;
        int shared = p->segments == NULL ? a->tile : 0, seen = 0;
        for (int i = 0; i < a->tile && p->segments != NULL; i++) shared += segment[i] == 0;
        for (int r = 0; r < block->n_rows && shared == 0 && !seen; r++) {
            if (r > 0 && block->segment[r] == block->segment[r - 1]) continue;
            for (int i = 0; i < a->tile; i++) seen |= segment[i] == block->segment[r];
        }
        if (shared == 0 && !seen) continue;
        block->tiles[block->n_tiles] = tile;
        block->open[block->n_tiles++] = shared == a->tile && a->first + (tile + 1) * a->tile - 1 <= nearest;
    }
}

/* Tiles of the span's n keys from `from`, turned; what a last tile lacks is zero. */
static void pack_panels(const struct tpo_attention_part *a, float *panels, const float *from, int64_t ld, int n)
{
    const int depth = a->paired ? (a->D + 1) / 2 : a->D;
    float words[TPO_ATTENTION_TILE * D_MAX / 2];
    for (int key = 0; key < n; key += a->tile, panels += a->tile * depth) {
        int some = (int)tpo_min64(a->tile, n - key);
        if (some < a->tile) memset(panels, 0, (size_t)(a->tile * depth) * sizeof(*panels));
        if (!a->paired) {
            tpo_simd()->transpose(panels, a->tile, from + key * ld, ld, some, a->D);
            continue;
        }
        for (int r = 0; r < some; r++) tpo_simd()->round_row((uint16_t *)(words + r * depth), from + (key + r) * ld, a->D);
        tpo_simd()->transpose(panels, a->tile, words, depth, some, depth);
    }
}

/* A row of D numbers in bf16, or of zeros; `to` has room for Dp. */
static void round_or_clear(const struct tpo_attention_part *a, uint16_t *to, const float *from, int there)
{
    if (there)
        tpo_simd()->round_row(to, from, a->D);
    else
        memset(to, 0, (size_t)a->Dp * sizeof(*to));
}

/* The span's values in pairs of keys; what `whole` keys have beyond n is zero. */
static void pack_pairs(const struct tpo_attention_part *a, const float *from, int64_t ld, int n, int whole)
{
    uint16_t even[D_MAX] = {0}, odd[D_MAX] = {0};
    for (int key = 0; key < whole; key += 2) {
        uint32_t *to = (uint32_t *)(a->v + (int64_t)key / 2 * a->Dp);
        round_or_clear(a, even, from + key * ld, key < n);
        round_or_clear(a, odd, from + (key + 1) * ld, key + 1 < n);
        for (int c = 0; c < a->Dp; c++) to[c] = even[c] | (uint32_t)odd[c] << 16;
    }
}

/* Packs the span of at most KEYS keys that begins at a->first; returns how many it has. */
static int pack_span(struct tpo_attention_part *a, const struct job *f, int b, int g)
{
    const struct tpo_attention_shape *p = f->p;
    int n = (int)tpo_min64(TPO_ATTENTION_KEYS, keys_of(p, b) - a->first), whole = tpo_parts(n, a->tile) * a->tile;
    int64_t at = (int64_t)b * p->S + a->first;
    const float *k = f->k + at * p->ldk + g * p->D, *v = f->v + at * p->ldv + g * p->D;
    for (int s = 0; s < whole; s++) a->segments[s] = s < n && p->segments != NULL ? p->segments[at + s] : 0;
    pack_panels(a, a->k_panels, k, p->ldk, n);
    if (a->paired)
        pack_pairs(a, v, p->ldv, n, whole);
    else if (a->v != NULL)
        tpo_simd()->pack(a->v, a->Dp, whole, v, p->ldv, n, p->D);
    if (a->k != NULL) tpo_simd()->pack(a->k, a->Dp, whole, k, p->ldk, n, p->D);
    if (a->v_panels != NULL) pack_panels(a, a->v_panels, v, p->ldv, n);
    return n;
}

/* Writes the chunk's sums divided by their weights. */
static void chunk_end(const struct job *f, const struct tpo_attention_part *a, const float *sums, int b, int h, int t0, int t_end)
{
    const struct tpo_attention_shape *p = f->p;
    for (int t = t0; t < t_end; t++) {
        int64_t row = (int64_t)b * p->T + t;
        float total = a->total[t - t0], top = a->top[t - t0];
        tpo_simd()->scale(f->out + row * p->ldo + h * p->D, total > 0.0f ? 1.0f / total : 0.0f, sums + (int64_t)(t - t0) * a->Dp,
                          p->D);
        if (f->lse != NULL) f->lse[row * p->H + h] = top + logf(total); /* -infinity where no key was seen */
    }
}

static void block_queries(const struct tpo_attention_part *a, const struct tpo_attention_block *block, const float *q, int64_t ld)
{
    if (!a->paired) {
        tpo_simd()->pack(a->rows, a->Dp, TPO_ATTENTION_ROWS, q, ld, block->n_rows, a->D);
        return;
    }
    for (int r = 0; r < TPO_ATTENTION_ROWS; r++)
        round_or_clear(a, (uint16_t *)(a->rows + r * a->Dp), q + r * ld, r < block->n_rows);
}

/* One part is CHUNK rows of one head of one sample. */
static void run_forward(void *arg, int part, int member)
{
    const struct job *f = arg;
    const struct tpo_attention_shape *p = f->p;
    int t0 = part % f->n_chunks * CHUNK, h = part / f->n_chunks % p->H, b = part / f->n_chunks / p->H;
    int t_end = (int)tpo_min64(p->T, t0 + CHUNK), n_keys = keys_of(p, b);
    struct tpo_attention_part a;
    struct tpo_attention_block block;
    float *sums;
    lay_out(&a, &sums, f->scratch + f->scratch_stride * (size_t)member, p, 0);
    float *top = a.top, *total = a.total;
    a.paired = f->paired;
    for (int i = 0; i < CHUNK; i++) top[i] = -INFINITY, total[i] = 0.0f;
    memset(sums, 0, (size_t)(CHUNK * a.Dp) * sizeof(*sums));
    if (p->causal) n_keys = (int)tpo_min64(n_keys, t_end + p->S - p->T);
    for (a.first = 0; a.first < n_keys; a.first += TPO_ATTENTION_KEYS) {
        pack_span(&a, f, b, h / (p->H / p->G));
        for (int t = t0; t < t_end; t += TPO_ATTENTION_ROWS) {
            block_rows(&block, p, b, t, t_end);
            block_tiles(&block, &a, p);
            if (block.n_tiles == 0) continue;
            block_queries(&a, &block, f->q + ((int64_t)b * p->T + t) * p->ldq + h * p->D, p->ldq);
            a.top = top + (t - t0);
            a.total = total + (t - t0);
            a.out = sums + (int64_t)(t - t0) * a.Dp;
            code()->forward(&a, &block);
        }
    }
    a.top = top;
    a.total = total;
    chunk_end(f, &a, sums, b, h, t0, t_end);
}

int tpo_attention_cpu(struct tpo_stream *s, float *out, float *lse, const float *q, const float *k, const float *v,
                      const struct tpo_attention_shape *shape)
{
    if (!shape_ok(shape)) return TPO_EINVAL;
    struct tpo_attention_part a;
    float *sums;
    struct job f = {.out = out, .lse = lse, .q = q, .k = k, .v = v, .p = shape, .n_chunks = tpo_parts(shape->T, CHUNK)};
    f.paired = s->rounds;
    f.scratch = tpo_cpu_scratch(s, lay_out(&a, &sums, NULL, shape, 0), &f.scratch_stride);
    if (f.scratch == NULL) return TPO_ENOMEM;
    tpo_team_run(s->team, run_forward, &f, shape->B * shape->H * f.n_chunks);
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

static void clear_rows(float *x, int64_t ld, int n, int D)
{
    for (int r = 0; r < n; r++) memset(x + r * ld, 0, (size_t)D * sizeof(*x));
}

/* One head against one span. dq is written by the first span, unless the caller adds, and added to by the others. */
static void backward_head(const struct job *f, struct tpo_attention_part *a, struct tpo_attention_block *block, int b, int h)
{
    const struct tpo_attention_shape *p = f->p;
    for (int t = 0; t < p->T; t += TPO_ATTENTION_ROWS) {
        int64_t row = (int64_t)b * p->T + t;
        float *dq = f->dq + row * p->ldq + h * p->D;
        block_rows(block, p, b, t, p->T);
        block_tiles(block, a, p);
        if (block->n_tiles == 0) {
            if (a->first == 0 && !f->add) clear_rows(dq, p->ldq, block->n_rows, p->D);
            continue;
        }
        tpo_simd()->pack(a->rows, a->Dp, TPO_ATTENTION_ROWS, f->q + row * p->ldq + h * p->D, p->ldq, block->n_rows, p->D);
        tpo_simd()->pack(a->dout, a->Dp, TPO_ATTENTION_ROWS, f->dout + row * p->ldo + h * p->D, p->ldo, block->n_rows, p->D);
        for (int r = 0; r < TPO_ATTENTION_ROWS; r++) {
            const float *out = f->old_out + (row + r) * p->ldo + h * p->D;
            a->delta[r] = r < block->n_rows ? tpo_simd()->dot(a->dout + (int64_t)r * a->Dp, out, p->D) : 0.0f;
            a->lse[r] = r < block->n_rows ? f->old_lse[(row + r) * p->H + h] : -INFINITY;
        }
        code()->backward(a, block);
        unpack_rows(dq, p->ldq, a->out, block->n_rows, p->D, a->Dp, f->add || a->first > 0);
    }
}

/* One part is one key/value head of one sample with all query heads that read it. */
static void run_backward(void *arg, int part, int member)
{
    const struct job *f = arg;
    const struct tpo_attention_shape *p = f->p;
    int g = part % p->G, b = part / p->G, per_group = p->H / p->G, n_keys = keys_of(p, b);
    float *dk = f->dk + (int64_t)b * p->S * p->ldk + g * p->D, *dv = f->dv + (int64_t)b * p->S * p->ldv + g * p->D;
    struct tpo_attention_part a;
    struct tpo_attention_block block;
    float *sums;
    lay_out(&a, &sums, f->scratch + f->scratch_stride * (size_t)member, p, 1);
    for (a.first = 0; a.first < n_keys; a.first += TPO_ATTENTION_KEYS) {
        int n = pack_span(&a, f, b, g);
        size_t bytes = (size_t)(TPO_ATTENTION_KEYS * a.Dp) * sizeof(float);
        memset(a.dk, 0, bytes);
        memset(a.dv, 0, bytes);
        for (int h = g * per_group; h < (g + 1) * per_group; h++) backward_head(f, &a, &block, b, h);
        unpack_rows(dk + (int64_t)a.first * p->ldk, p->ldk, a.dk, n, p->D, a.Dp, f->add);
        unpack_rows(dv + (int64_t)a.first * p->ldv, p->ldv, a.dv, n, p->D, a.Dp, f->add);
    }
    if (f->add) return;
    clear_rows(dk + (int64_t)n_keys * p->ldk, p->ldk, p->S - n_keys, p->D);
    clear_rows(dv + (int64_t)n_keys * p->ldv, p->ldv, p->S - n_keys, p->D);
    if (n_keys == 0) clear_rows(f->dq + (int64_t)b * p->T * p->ldq + g * per_group * p->D, p->ldq, p->T, per_group * p->D);
}

int tpo_attention_grad_cpu(struct tpo_stream *s, float *dq, float *dk, float *dv, const float *dout, const float *out,
                           const float *lse, const float *q, const float *k, const float *v, int add,
                           const struct tpo_attention_shape *shape)
{
    if (!shape_ok(shape)) return TPO_EINVAL;
    struct tpo_attention_part a;
    float *sums;
    struct job f = {.dq = dq, .dk = dk, .dv = dv, .dout = dout, .old_out = out, .old_lse = lse, .q = q, .k = k, .v = v, .add = add};
    f.p = shape;
    f.scratch = tpo_cpu_scratch(s, lay_out(&a, &sums, NULL, shape, 1), &f.scratch_stride);
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
