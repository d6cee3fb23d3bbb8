/* attention_body.h -- one block of query rows against one span of keys, forward or backward; compiled once per instruction set.
 *
 * A block looks only at tiles in which one of its rows sees a key. A key that a row does not see has the score -INFINITY, hence the weight 0, and
 * adding 0 changes no bit: so a row's result does not depend on the block it is in.
 *
 * The including file defines ATTENTION_CODE, the name of its table. */
#include "kernels/attention_parts.h"
#include "kernels/vec.h"

#define STRIP TPO_ATTENTION_STRIP
#define ROWS  TPO_ATTENTION_ROWS
#define KEYS  TPO_ATTENTION_KEYS
#define TILE  (2 * LANES)
_Static_assert(TILE <= TPO_ATTENTION_TILE && TPO_ATTENTION_WIDE % TILE == 0, "room for a tile, and whole ones in a row");

struct strip { /* six rows by two vectors */
    vec low[STRIP], high[STRIP];
};

VEC_FN void strip_clear(struct strip *s)
{
    for (int r = 0; r < STRIP; r++) s->low[r] = s->high[r] = splat(0.0f);
}

/* s[r] += sum over n of x[r][i] * y[i], i ascending; paired, of both products of two pairs. */
VEC_FN void strip_add(struct strip *s, int paired, const float *x, int64_t ldx, const float *y, int64_t ldy, int n)
{
#pragma GCC unroll 2
    for (int i = 0; i < n; i++) {
        vec low = *(const vec *)(y + i * ldy), high = *(const vec *)(y + i * ldy + LANES);
        for (int r = 0; r < STRIP; r++) {
            vec one = splat(x[r * ldx + i]);
            s->low[r] = paired ? add_pairs(s->low[r], one, low) : s->low[r] + one * low;
            s->high[r] = paired ? add_pairs(s->high[r], one, high) : s->high[r] + one * high;
        }
    }
}

/* Scaled and masked scores of six rows against the block's tile i, r0 their place in the block. */
VEC_FN void strip_mask(struct strip *s, const struct tpo_attention_part *a, const struct tpo_attention_block *b, int i, int r0)
{
    for (int r = 0; r < STRIP; r++) {
        s->low[r] *= splat(a->scale);
        s->high[r] *= splat(a->scale);
    }
    if (b->open[i]) return;
    const int32_t *segments = a->segments + b->tiles[i] * TILE;
    ivec low = *(const ivec *)segments, high = *(const ivec *)(segments + LANES);
    ivec key = lane_numbers() + isplat(a->first + b->tiles[i] * TILE);
    for (int r = 0; r < STRIP; r++) {
        ivec last = isplat(b->last[r0 + r]), own = isplat(b->segment[r0 + r]), none = isplat(0);
        s->low[r] = choose((key <= last) & ((low == none) | (low == own)), s->low[r], splat(-INFINITY));
        s->high[r] = choose((key + isplat(LANES) <= last) & ((high == none) | (high == own)), s->high[r], splat(-INFINITY));
    }
}

VEC_FN void strip_scores(const struct tpo_attention_part *a, int paired, const struct tpo_attention_block *b, int r0)
{
    const int depth = paired ? (a->D + 1) / 2 : a->D;
    for (int i = 0; i < b->n_tiles; i++) {
        struct strip s;
        strip_clear(&s);
        strip_add(&s, paired, a->rows + r0 * a->Dp, a->Dp, a->k_panels + (int64_t)b->tiles[i] * TILE * depth, TILE, depth);
        strip_mask(&s, a, b, i, r0);
        for (int r = 0; r < STRIP; r++) {
            float *score = a->score + (r0 + r) * KEYS + i * TILE;
            store(score, s.low[r]);
            store(score + LANES, s.high[r]);
        }
    }
}

/* Turns a row's scores into weights under its new maximum; returns what its sums so far have to be multiplied with. */
VEC_FN float row_weigh(const struct tpo_attention_part *a, int paired, const struct tpo_attention_block *b, int r)
{
    float *row = a->score + r * KEYS, old = a->top[r];
    vec top = splat(old), total = splat(0.0f);
    for (int i = 0; i < b->n_tiles * TILE; i += LANES) top = larger(load(row + i), top);
    float most = top_lane(top), factor = 0.0f, from = most == -INFINITY ? 0.0f : most; /* no key seen yet, or only NaN */
    for (int i = 0; i < b->n_tiles * TILE; i += LANES) {
        vec e = exp_vec(load(row + i) - splat(from));
        if (paired)
            store_half((uint16_t *)row + i, e); /* never beyond what has been read */
        else
            store(row + i, e);
        total += e;
    }
    if (old != -INFINITY) factor = old == most ? 1.0f : expf(old - most);
    a->total[r] = a->total[r] * factor + sum_lanes(total);
    a->top[r] = most;
    return factor;
}

/* out[r][...] = factor[r] out[r][...] + sum over the block's tiles and their keys of weight[r][key] * packed[key][...], keys ascending. */
VEC_FN void strip_gather(float *out, int paired, const float *factor, const float *weight, const float *packed,
                         const struct tpo_attention_block *b, int Dp)
{
    const int words = paired ? TILE / 2 : TILE; /* of a tile */
    for (int c = 0; c < Dp; c += TILE) {
        struct strip s;
        strip_clear(&s);
        if (factor != NULL)
            for (int r = 0; r < STRIP; r++) {
                s.low[r] = load(out + r * Dp + c) * splat(factor[r]);
                s.high[r] = load(out + r * Dp + c + LANES) * splat(factor[r]);
            }
        for (int i = 0; i < b->n_tiles; i++)
            strip_add(&s, paired, weight + i * words, KEYS, packed + (int64_t)b->tiles[i] * words * Dp + c, Dp, words);
        for (int r = 0; r < STRIP; r++) {
            store(out + r * Dp + c, s.low[r]);
            store(out + r * Dp + c + LANES, s.high[r]);
        }
    }
}

VEC_FN void forward_strips(struct tpo_attention_part *a, int paired, const struct tpo_attention_block *b)
{
    float factor[STRIP];
    for (int r0 = 0; r0 < b->n_rows; r0 += STRIP) {
        strip_scores(a, paired, b, r0);
        for (int r = 0; r < STRIP; r++) factor[r] = row_weigh(a, paired, b, r0 + r);
        strip_gather(a->out + r0 * a->Dp, paired, factor, a->score + r0 * KEYS, a->v, b, a->Dp);
    }
}

static void forward(struct tpo_attention_part *a, const struct tpo_attention_block *b)
{
    if (PAIRS && a->paired)
        forward_strips(a, 1, b);
    else
        forward_strips(a, 0, b);
}

/* Weights p and gradients of the scores, ds = p (dp - delta) scale, of six rows. */
static void strip_slopes(const struct tpo_attention_part *a, const struct tpo_attention_block *b, int r0)
{
    for (int i = 0; i < b->n_tiles; i++) {
        struct strip s;
        strip_clear(&s);
        strip_add(&s, 0, a->dout + r0 * a->Dp, a->Dp, a->v_panels + (int64_t)b->tiles[i] * TILE * a->D, TILE, a->D);
        for (int r = 0; r < STRIP; r++) {
            float *score = a->score + (r0 + r) * KEYS + i * TILE, *ds = a->ds + (r0 + r) * KEYS + i * TILE, lse = a->lse[r0 + r];
            vec delta = splat(a->delta[r0 + r]), scale = splat(a->scale), low = splat(0.0f), high = splat(0.0f);
            if (lse != -INFINITY) {
                low = exp_vec(load(score) - splat(lse));
                high = exp_vec(load(score + LANES) - splat(lse));
            }
            store(score, low);
            store(score + LANES, high);
            store(ds, low * (s.low[r] - delta) * scale);
            store(ds + LANES, high * (s.high[r] - delta) * scale);
        }
    }
}

#define SPREAD 4 /* keys at a time: divides TILE */

/* packed[key][...] += sum over the block's rows of weight[r][key] * rows[r][...], rows ascending. */
VEC_FN void block_spread(float *packed, const float *weight, const float *rows, const struct tpo_attention_block *b, int Dp)
{
    for (int c = 0; c < Dp; c += TILE)
        for (int at = 0; at < b->n_tiles * TILE; at += SPREAD) {
            float *to = packed + (int64_t)(b->tiles[at / TILE] * TILE + at % TILE) * Dp + c;
            vec low[SPREAD], high[SPREAD];
            for (int k = 0; k < SPREAD; k++) {
                low[k] = load(to + k * Dp);
                high[k] = load(to + k * Dp + LANES);
            }
            for (int r = 0; r < b->n_rows; r++) {
                vec x = load(rows + r * Dp + c), y = load(rows + r * Dp + c + LANES);
                for (int k = 0; k < SPREAD; k++) {
                    vec one = splat(weight[r * KEYS + at + k]);
                    low[k] += one * x;
                    high[k] += one * y;
                }
            }
            for (int k = 0; k < SPREAD; k++) {
                store(to + k * Dp, low[k]);
                store(to + k * Dp + LANES, high[k]);
            }
        }
}

static void backward(struct tpo_attention_part *a, const struct tpo_attention_block *b)
{
    for (int r0 = 0; r0 < b->n_rows; r0 += STRIP) {
        strip_scores(a, 0, b, r0);
        strip_slopes(a, b, r0);
        strip_gather(a->out + r0 * a->Dp, 0, NULL, a->ds + r0 * KEYS, a->k, b, a->Dp);
    }
    block_spread(a->dk, a->ds, a->rows, b, a->Dp);
    block_spread(a->dv, a->score, a->dout, b, a->Dp);
}

const struct tpo_attention_code ATTENTION_CODE = {.tile = TILE, .forward = forward, .backward = backward};
