/* simd_products_body.h -- the inner loops of simd.h that multiply matrices: panels, panels of bf16 pairs, and dots. Included by simd_body.h alone. */
#ifndef TPO_KERNELS_SIMD_PRODUCTS_BODY_H
#define TPO_KERNELS_SIMD_PRODUCTS_BODY_H

#include <string.h>

#include "kernels/simd.h"
#include "kernels/vec.h"

/* --- panels -------------------------------------------------------------------------------------------------------------------------- */

#define WIDTH                                                                                                                      \
    (2 * LANES) /* with six rows: twelve sums, as many as hide the latency of one and still leave registers for operands */

static int panel_width(void)
{
    return WIDTH;
}

VEC_FN void strip_sum(const struct tpo_panel_sum *p, int paired, int r0, int rows, int64_t a_row, int64_t a_depth)
{
    const float *a = p->a + r0 * (a_depth == 1 ? a_row : p->depth), *b = p->b;
    vec low[TPO_STRIP], high[TPO_STRIP];
    for (int r = 0; r < rows; r++) low[r] = high[r] = splat(0.0f);
#pragma GCC unroll 4
    for (int64_t d = 0; d < p->depth; d++) {
        vec b_low = *(const vec *)(b + d * WIDTH), b_high = *(const vec *)(b + d * WIDTH + LANES);
        for (int r = 0; r < rows; r++) {
            vec x = splat(a[r * a_row + d * a_depth]);
            low[r] = paired ? add_pairs(low[r], x, b_low) : low[r] + x * b_low;
            high[r] = paired ? add_pairs(high[r], x, b_high) : high[r] + x * b_high;
        }
    }
    int64_t n_low = p->cols, n_high = p->cols - LANES;
    for (int r = 0; r < rows; r++) {
        float *y = p->y + (r0 + r) * p->ldy;
        if (p->bias != NULL) low[r] += load_n(p->bias, n_low);
        if (p->add) low[r] += load_n(y, n_low);
        store_n(y, low[r], n_low);
        if (n_high <= 0) continue;
        if (p->bias != NULL) high[r] += load_n(p->bias + LANES, n_high);
        if (p->add) high[r] += load_n(y + LANES, n_high);
        store_n(y + LANES, high[r], n_high);
    }
}

VEC_FN void strips_sum(const struct tpo_panel_sum *p, int paired, int64_t a_row, int64_t a_depth)
{
    int r = 0, left = p->rows % TPO_STRIP;
    for (; r + TPO_STRIP <= p->rows; r += TPO_STRIP) strip_sum(p, paired, r, TPO_STRIP, a_row, a_depth);
    if (left == 1) strip_sum(p, paired, r, 1, a_row, a_depth);
    if (left == 2) strip_sum(p, paired, r, 2, a_row, a_depth);
    if (left == 3) strip_sum(p, paired, r, 3, a_row, a_depth);
    if (left == 4) strip_sum(p, paired, r, 4, a_row, a_depth);
    if (left == 5) strip_sum(p, paired, r, 5, a_row, a_depth);
}

static void panel_sum(const struct tpo_panel_sum *p)
{
    if (p->lda == 0)
        strips_sum(p, 0, 1, TPO_STRIP);
    else
        strips_sum(p, 0, p->lda, 1);
}

static int pairs(void)
{
    return PAIRS;
}

static void round_row(uint16_t *to, const float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store_half(to + i, load(x + i));
    if (i < n) {
        uint16_t last[LANES];
        store_half(last, load_n(x + i, n - i));
        memcpy(to + i, last, (size_t)(n - i) * sizeof(*to));
    }
    if (n % 2 != 0) to[n] = 0;
}

static void pairs_sum(const struct tpo_panel_sum *p)
{
    strips_sum(p, 1, p->lda, 1);
}

static void pack_strips(float *to, const float *from, int64_t ldfrom, int rows, int depth)
{
    int r = 0;
    for (; r + TPO_STRIP <= rows; r += TPO_STRIP, to += (int64_t)TPO_STRIP * depth)
        for (int64_t d = 0; d < depth; d++) memcpy(to + d * TPO_STRIP, from + d * ldfrom + r, TPO_STRIP * sizeof(*to));
    for (int64_t d = 0; d < depth && r < rows; d++)
        for (int i = 0; i < rows - r; i++) to[d * TPO_STRIP + i] = from[d * ldfrom + r + i];
}

/* --- dots ----------------------------------------------------------------------------------------------------------------------------- */

/* A sum runs along K in 2 LANES chains: element k joins chain k % (2 LANES). A pair of vectors holds them, either in order, or, where w is bf16,
 * the even ones and then the odd ones: so two operations take a register of bf16 apart, and the products of both kinds of w have the same bits. */
#define CHAINS (2 * LANES)

static float dot(const float *a, const float *b, int64_t n)
{
    vec sums[2] = {splat(0.0f), splat(0.0f)};
    int64_t k = 0;
    for (; k + CHAINS <= n; k += CHAINS)
        for (int i = 0; i < 2; i++) sums[i] += load(a + k + i * LANES) * load(b + k + i * LANES);
    for (int i = 0; i < 2 && k < n; i++, k += LANES) sums[i] += load_n(a + k, n - k) * load_n(b + k, n - k);
    return sum_lanes(sums[0] + sums[1]);
}

/* Rows of w at a time, so that enough loads are under way. Each is the next of a run of rows that follow one another in memory: what fetches ahead
 * goes straight on, where rows side by side would end it at the end of every row. */
#define DOT_COLS  4
#define DOT_AHEAD 256 /* bytes from what is read to what is asked for */
#if LANES == 16
#define DOT_PAIRED 4 /* rows of w beside two rows of x, and beside a long one: what the registers hold */
#define DOT_MANY   8
#else
#define DOT_PAIRED 2
#define DOT_MANY   4
#endif
#define DOT_LONG 4096 /* elements of x that the first cache no longer keeps beside w */

/* What dots_half wants x as: CHAINS at a time, the even ones, then the odd ones; what is left over stays as it is. */
static void pair_up(float *to, const float *x, int64_t n)
{
    int64_t k = 0;
    for (; k + CHAINS <= n; k += CHAINS) {
        vec low = load(x + k), high = load(x + k + LANES);
        store(to + k, EVEN_LANES(low, high));
        store(to + k + LANES, ODD_LANES(low, high));
    }
    memcpy(to + k, x + k, (size_t)(n - k) * sizeof(*x));
}

struct dots {
    float *y;
    const float *x, *bias;
    const char *w;
    int64_t ldy, ldx, row_bytes; /* row_bytes: of w */
    int add, K;
    int side, apart; /* rows of w side by side; from one of these to the next */
};

/* A product from its two vectors of chains, which are the even and the odd ones where half: the same bits in both cases. */
VEC_FN float sum_chains(vec first, vec second, int half)
{
    return half ? sum_lanes(first) + sum_lanes(second) : sum_lanes(first + second);
}

VEC_FN float sum_chains_and_rest(vec first, vec second, int half, const float *x, const char *w, int64_t rest)
{
    vec pair[2] = {half ? FIRST_PAIRS(first, second) : first, half ? LAST_PAIRS(first, second) : second};
    for (int i = 0; i < 2 && rest > 0; i++, rest -= LANES, x += LANES, w += LANES * (half ? 2 : 4))
        pair[i] += load_n(x, rest) * (half ? load_half((const uint16_t *)w, rest) : load_n((const float *)w, rest));
    return sum_lanes(pair[0] + pair[1]);
}

/* R rows of x by C rows of w. `ahead`: these come from memory, not from the cache. */
VEC_FN void dots_block(const struct dots *d, int row, int col, int half, int ahead, int R, int C)
{
    const float *x = d->x + row * d->ldx;
    const char *w = d->w + col * d->row_bytes;
    const int64_t apart = d->apart * d->row_bytes;
    const int size = half ? 2 : 4, K = d->K;
    vec sums[2][DOT_MANY][2];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) sums[r][c][0] = sums[r][c][1] = splat(0.0f);
    int k = 0;
    for (; k + CHAINS <= K; k += CHAINS)
        for (int c = 0; c < C; c++) {
            const char *at = w + c * apart + (int64_t)k * size;
            for (int line = 0; ahead && line < CHAINS * size; line += 64) __builtin_prefetch(at + DOT_AHEAD + line);
            const ivec words = half ? half_words(at) : isplat(0);
            const vec b0 = half ? half_evens(words) : load((const float *)at),
                      b1 = half ? half_odds(words) : load((const float *)at + LANES);
            for (int r = 0; r < R; r++) {
                sums[r][c][0] += load(x + r * d->ldx + k) * b0;
                sums[r][c][1] += load(x + r * d->ldx + k + LANES) * b1;
            }
        }
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
            const int64_t n = col + c * d->apart;
            const vec first = sums[r][c][0], second = sums[r][c][1];
            float total =
                k == K ? sum_chains(first, second, half)
                       : sum_chains_and_rest(first, second, half, x + r * d->ldx + k, w + c * apart + (int64_t)k * size, K - k);
            if (d->bias != NULL) total += d->bias[n];
            float *y = d->y + (row + r) * d->ldy + n;
            *y = d->add ? *y + total : total;
        }
}

/* Every row of x with d->side rows of w, while these are in the cache. Two rows of x at a time: four load more than they save. */
VEC_FN void dots_columns(const struct dots *d, int col, int half, int rows)
{
    int r = 0;
    if (rows == 1 && d->side == DOT_MANY) {
        dots_block(d, 0, col, half, 1, 1, DOT_MANY);
        return;
    }
    for (; r + 2 <= rows; r += 2)
        for (int c = 0; c < DOT_COLS; c += DOT_PAIRED) dots_block(d, r, col + c * d->apart, half, r == 0, 2, DOT_PAIRED);
    if (r < rows) dots_block(d, r, col, half, r == 0, 1, DOT_COLS);
}

VEC_FN int dots_side(int rows, int K)
{
    return rows == 1 && K > DOT_LONG ? DOT_MANY : DOT_COLS;
}

VEC_FN void dots_of(const struct dots *d, int half, int rows, int cols)
{
    for (int c = 0; c < d->apart; c++) dots_columns(d, c, half, rows);
    for (int c = d->side * d->apart; c < cols; c++)
        for (int r = 0; r < rows; r++) dots_block(d, r, c, half, 0, 1, 1);
}

static void dots(float *y, int64_t ldy, const float *x, int64_t ldx, const float *w, int64_t ldw, const float *bias, int add,
                 int rows, int cols, int K)
{
    const int side = dots_side(rows, K);
    const struct dots d = {y, x, bias, (const char *)w, ldy, ldx, ldw * 4, add, K, side, cols / side};
    dots_of(&d, 0, rows, cols);
}

static void dots_half(float *y, int64_t ldy, const float *x, int64_t ldx, const uint16_t *w, int64_t ldw, const float *bias,
                      int add, int rows, int cols, int K)
{
    const int side = dots_side(rows, K);
    const struct dots d = {y, x, bias, (const char *)w, ldy, ldx, ldw * 2, add, K, side, cols / side};
    dots_of(&d, 1, rows, cols);
}

#endif
