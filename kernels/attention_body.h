/* attention_body.h -- one (sample, head) of attention, forward or backward, in vectors of 16 floats; compiled once per instruction set.
 *
 * Keys and values are packed so that a tile of TILE keys is one vector: kt (D, S) for scores, v (S, D) for sums. Query rows go in blocks of ROWS; a
 * block looks only at tiles in which one of its rows sees a key. A key that a row does not see has the score -INFINITY, hence the weight 0, and
 * adding 0 changes no bit: so a row's result does not depend on the block it is in.
 *
 * The including file defines ATTENTION_NAME(x), the names for its instruction set. */
#include "kernels/attention_parts.h"
#include "kernels/vec.h"

#define TILE LANES
#define ROWS TPO_ATTENTION_ROWS

/* Scores of the block against tile `t`: acc[r] = sum over d of rows[r][d] * packed[d][tile], d ascending. */
static inline void block_dot(vec acc[ROWS], const float *rows, const float *packed, int D, int Dp, int64_t Sp, int tile)
{
    for (int r = 0; r < ROWS; r++) acc[r] = splat(0.0f);
    for (int d = 0; d < D; d++) {
        vec column = *(const vec *)(packed + d * Sp + tile * TILE);
        for (int r = 0; r < ROWS; r++) acc[r] += splat(rows[r * Dp + d]) * column;
    }
}

/* out[r][...] = sum over the block's tiles and their keys of weight[r][key] * packed[key][...], keys ascending. */
static inline void block_sum(float *out, const float *weight, const float *packed, const struct tpo_attention_block *b, int Dp,
                             int64_t Sp)
{
    for (int c = 0; c < Dp; c += 2 * TILE) {
        int two = c + TILE < Dp;
        vec low[ROWS], high[ROWS];
        for (int r = 0; r < ROWS; r++) low[r] = high[r] = splat(0.0f);
        for (int i = 0; i < b->n_tiles; i++)
            for (int k = 0; k < TILE; k++) {
                const float *row = packed + ((int64_t)b->tiles[i] * TILE + k) * Dp + c;
                vec x = *(const vec *)row, y = two ? *(const vec *)(row + TILE) : splat(0.0f);
                for (int r = 0; r < ROWS; r++) {
                    vec w = splat(weight[r * Sp + i * TILE + k]);
                    low[r] += w * x;
                    high[r] += w * y;
                }
            }
        for (int r = 0; r < ROWS; r++) {
            *(vec *)(out + r * Dp + c) = low[r];
            if (two) *(vec *)(out + r * Dp + c + TILE) = high[r];
        }
    }
}

/* packed[key][...] += sum over the block's rows of weight[r][key] * rows[r][...], rows ascending. */
static inline void block_spread(float *packed, const float *weight, const float *rows, const struct tpo_attention_block *b, int Dp,
                                int64_t Sp)
{
    for (int c = 0; c < Dp; c += TILE) {
        vec x[ROWS];
        for (int r = 0; r < ROWS; r++) x[r] = *(const vec *)(rows + r * Dp + c);
        for (int i = 0; i < b->n_tiles; i++)
            for (int k = 0; k < TILE; k++) {
                vec *row = (vec *)(packed + ((int64_t)b->tiles[i] * TILE + k) * Dp + c);
                vec sum = *row;
                for (int r = 0; r < ROWS; r++) sum += splat(weight[r * Sp + i * TILE + k]) * x[r];
                *row = sum;
            }
    }
}

/* Scaled and masked scores of the block, tile by tile, into score[r][i * TILE]. */
static void block_scores(float *score, const float *rows, const struct tpo_attention_part *a, const struct tpo_attention_block *b)
{
    const ivec lanes = lane_numbers();
    for (int i = 0; i < b->n_tiles; i++) {
        vec acc[ROWS];
        int tile = b->tiles[i];
        block_dot(acc, rows, a->kt, a->D, a->Dp, a->Sp, tile);
        ivec key = lanes + isplat(tile * TILE), segment = *(const ivec *)(a->segments + tile * TILE);
        for (int r = 0; r < ROWS; r++) {
            vec x = acc[r] * splat(a->scale);
            if (!b->open[i]) {
                ivec seen = (key <= isplat(b->last[r])) & ((segment == isplat(0)) | (segment == isplat(b->segment[r])));
                x = choose(seen, x, splat(-INFINITY));
            }
            *(vec *)(score + r * a->Sp + i * TILE) = x;
        }
    }
}

void ATTENTION_NAME(forward)(struct tpo_attention_part *a, const struct tpo_attention_block *b)
{
    float *score = a->score;
    block_scores(score, a->rows, a, b);
    for (int r = 0; r < b->n_rows; r++) {
        vec top = splat(-INFINITY), total = splat(0.0f);
        float *row = score + r * a->Sp;
        for (int i = 0; i < b->n_tiles; i++) {
            vec x = *(vec *)(row + i * TILE);
            top = choose(x > top, x, top);
        }
        float most = top_lane(top);
        for (int i = 0; i < b->n_tiles; i++) {
            vec e = most == -INFINITY ? splat(0.0f) : exp_vec(*(vec *)(row + i * TILE) - splat(most));
            *(vec *)(row + i * TILE) = e;
            total += e;
        }
        a->sum[r] = sum_lanes(total);
        a->lse[r] = most == -INFINITY ? -INFINITY : most + logf(a->sum[r]);
    }
    for (int r = b->n_rows; r < ROWS; r++) memset(score + r * a->Sp, 0, (size_t)b->n_tiles * TILE * sizeof(float));
    block_sum(a->out, score, a->v, b, a->Dp, a->Sp);
    for (int r = 0; r < b->n_rows; r++) {
        vec sum = splat(a->sum[r] > 0.0f ? a->sum[r] : 1.0f);
        for (int c = 0; c < a->Dp; c += TILE) *(vec *)(a->out + r * a->Dp + c) /= sum;
    }
}

void ATTENTION_NAME(backward)(struct tpo_attention_part *a, const struct tpo_attention_block *b)
{
    float *weight = a->score, *ds = a->ds;
    block_scores(weight, a->rows, a, b);
    for (int i = 0; i < b->n_tiles; i++) {
        vec dp[ROWS];
        block_dot(dp, a->dout, a->vt, a->D, a->Dp, a->Sp, b->tiles[i]);
        for (int r = 0; r < ROWS; r++) {
            vec p = r < b->n_rows && a->lse[r] != -INFINITY ? exp_vec(*(vec *)(weight + r * a->Sp + i * TILE) - splat(a->lse[r]))
                                                            : splat(0.0f);
            *(vec *)(weight + r * a->Sp + i * TILE) = p;
            *(vec *)(ds + r * a->Sp + i * TILE) = p * (dp[r] - splat(a->delta[r])) * splat(a->scale);
        }
    }
    block_sum(a->out, ds, a->k, b, a->Dp, a->Sp);
    block_spread(a->dk, ds, a->rows, b, a->Dp, a->Sp);
    block_spread(a->dv, weight, a->dout, b, a->Dp, a->Sp);
}
