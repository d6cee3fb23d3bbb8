/* simd_body.h -- the inner loops of simd.h. The including file defines SIMD_TABLE, the name of its table, and is compiled for one instruction set. */
#include "kernels/simd.h"
#include "kernels/vec.h"
#include "kernels/vector.h"

#define EACH_VEC(i, count, n) for (int64_t i = 0, count; count = (n)-i < LANES ? (n)-i : LANES, i < (n); i += LANES)

/* --- loops that the compiler turns into vectors: outputs alias inputs element for element at most, which ivdep says ---------------- */

static void add(float *y, const float *a, const float *b, int64_t n)
{
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) y[i] = a[i] + b[i];
}

static void axpy(float *y, float alpha, const float *x, int64_t n)
{
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) y[i] += alpha * x[i];
}

static void scale(float *y, float alpha, const float *x, int64_t n)
{
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) y[i] = alpha * x[i];
}

static void fill(float *y, float value, int64_t n)
{
    for (int64_t i = 0; i < n; i++) y[i] = value;
}

static void bf16_to_f32(float *y, const uint16_t *x, int64_t n)
{
    uint32_t *bits = (uint32_t *)(void *)y;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) bits[i] = (uint32_t)x[i] << 16;
}

static void f32_to_bf16(uint16_t *y, const float *x, int64_t n)
{
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof(bits));
        uint32_t even = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, nan = bits >> 16 | 64; /* NaN stays one */
        y[i] = (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? nan : even);
    }
}

static void dropout(float *y, const float *x, float p, uint64_t key, uint64_t counter, int64_t n)
{
    float kept = 1.0f / (1.0f - p);
    for (int64_t i = 0; i < n; i++) y[i] = tpo_random(key, counter + (uint64_t)i) >= p ? x[i] * kept : 0.0f;
}

static void relu(float *y, const float *x, int64_t n)
{
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) y[i] = x[i] <= 0.0f ? 0.0f : x[i]; /* a NaN stays one */
}

static void relu_grad(float *dx, const float *dy, const float *x, int add, int64_t n)
{
    EACH_VEC(i, count, n)
    {
        vec d = choose(load_n(x + i, count) > splat(0.0f), load_n(dy + i, count), splat(0.0f));
        store_n(dx + i, add ? load_n(dx + i, count) + d : d, count);
    }
}

/* g*g may not be fused into v: the step's gradient is squared first on every machine. */
static void adamw(const struct tpo_adamw_span *a, const struct tpo_adamw *step, int64_t n)
{
    float b1 = step->beta1, b2 = step->beta2, rest1 = 1.0f - b1, rest2 = 1.0f - b2, clip = step->clip, eps = step->eps;
    float rate = step->rate, decay = step->decay, fix_m = a->fix_m, fix_v = a->fix_v;
    float *w_next = a->w_next, *m_next = a->m_next, *v_next = a->v_next;
    const float *w0 = a->w, *m0 = a->m, *v0 = a->v, *g0 = a->g;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) {
        float g = g0[i] * clip, m = b1 * m0[i] + rest1 * g, v = b2 * v0[i] + rest2 * (g * g);
        m_next[i] = m;
        v_next[i] = v;
        w_next[i] = w0[i] - rate * (m * fix_m / (sqrtf(v * fix_v) + eps) + decay * w0[i]);
    }
}

/* --- functions ----------------------------------------------------------------------------------------------------------------------- */

static void gelu(float *y, const float *x, int64_t n)
{
    EACH_VEC(i, count, n)
    {
        vec v = load_n(x + i, count), bell;
        store_n(y + i, v * normal_vec(v, &bell), count);
    }
}

/* d/dx x Phi(x) = Phi(x) + x phi(x); the bell is 0 long before x is too large to multiply with it. */
static void gelu_grad(float *dx, const float *dy, const float *x, int add, int64_t n)
{
    EACH_VEC(i, count, n)
    {
        vec v = load_n(x + i, count), bell, phi = normal_vec(v, &bell);
        vec d = load_n(dy + i, count) * (phi + v * (bell * splat(0.398942280f)));
        store_n(dx + i, add ? load_n(dx + i, count) + d : d, count);
    }
}

static void swiglu(float *y, const float *g, const float *u, int64_t n)
{
    EACH_VEC(i, count, n)
    {
        vec a = load_n(g + i, count);
        store_n(y + i, a * sigmoid_vec(a) * load_n(u + i, count), count);
    }
}

static void swiglu_grad(float *dg, float *du, const float *dy, const float *g, const float *u, int add, int64_t n)
{
    EACH_VEC(i, count, n)
    {
        vec a = load_n(g + i, count), b = load_n(u + i, count), d = load_n(dy + i, count), sig = sigmoid_vec(a), d_u = d * a * sig;
        vec d_g = d * b * sig * (splat(1.0f) + a * (splat(1.0f) - sig));
        store_n(dg + i, add ? load_n(dg + i, count) + d_g : d_g, count);
        store_n(du + i, add ? load_n(du + i, count) + d_u : d_u, count);
    }
}

static void rotate(float *x, const float *c, const float *s, float sign, int half)
{
    float *y = x + half;
    EACH_VEC(i, count, half)
    {
        vec a = load_n(x + i, count), b = load_n(y + i, count), cosine = load_n(c + i, count),
            sine = load_n(s + i, count) * splat(sign);
        store_n(x + i, a * cosine - b * sine, count);
        store_n(y + i, b * cosine + a * sine, count);
    }
}

#ifdef __clang__ /* the fuzzers' compiler lacks a shuffle by values; moving is moving */
static void transpose_square(float *to, int64_t ldto, const float *from, int64_t ldfrom)
{
    for (int r = 0; r < LANES; r++)
        for (int c = 0; c < LANES; c++) to[c * ldto + r] = from[r * ldfrom + c];
}
#else
/* A square of LANES x LANES: in the step of distance d, lanes whose number has bit d change places with the row d further on. */
static inline __attribute__((always_inline)) void transpose_square(float *to, int64_t ldto, const float *from, int64_t ldfrom)
{
    vec x[LANES];
    const ivec lanes = lane_numbers();
    for (int r = 0; r < LANES; r++) x[r] = load(from + r * ldfrom);
#pragma GCC unroll 4
    for (int d = LANES / 2; d > 0; d /= 2) {
        ivec moves = (lanes & isplat(d)) != isplat(0);
        ivec upper = (lanes & ~moves) | ((lanes + isplat(LANES - d)) & moves),
             lower = ((lanes + isplat(d)) & ~moves) | ((lanes + isplat(LANES)) & moves);
#pragma GCC unroll 16
        for (int r = 0; r < LANES; r++) {
            if (r & d) continue;
            vec a = x[r], b = x[r + d];
            x[r] = __builtin_shuffle(a, b, upper);
            x[r + d] = __builtin_shuffle(a, b, lower);
        }
    }
    for (int r = 0; r < LANES; r++) store(to + r * ldto, x[r]);
}
#endif

static void transpose(float *to, int64_t ldto, const float *from, int64_t ldfrom, int rows, int cols)
{
    for (int r0 = 0; r0 < rows; r0 += LANES)
        for (int c0 = 0; c0 < cols; c0 += LANES) {
            if (r0 + LANES <= rows && c0 + LANES <= cols) {
                transpose_square(to + c0 * ldto + r0, ldto, from + r0 * ldfrom + c0, ldfrom);
                continue;
            }
            for (int c = c0; c < cols && c < c0 + LANES; c++)
                for (int r = r0; r < rows && r < r0 + LANES; r++) to[c * ldto + r] = from[r * ldfrom + c];
        }
}

static inline __attribute__((always_inline)) void pack_whole(float *to, int Cp, const float *from, int64_t ldfrom, int64_t n)
{
    for (int64_t r = 0; r < n; r++, from += ldfrom, to += Cp)
        for (int c = 0; c < Cp; c += LANES) store(to + c, load(from + c));
}

static void pack(float *to, int Cp, int64_t N, const float *from, int64_t ldfrom, int64_t n, int C)
{
    if (C == Cp && C == 2 * LANES)
        pack_whole(to, 2 * LANES, from, ldfrom, n);
    else if (C == Cp)
        pack_whole(to, Cp, from, ldfrom, n);
    for (int64_t r = 0; r < n && C < Cp; r++, from += ldfrom)
        for (int64_t c = 0; c < Cp; c += LANES) store(to + r * Cp + c, c < C ? load_n(from + c, C - c) : splat(0.0f));
    memset(to + n * Cp, 0, (size_t)((N - n) * Cp) * sizeof(*to));
}

/* --- products ------------------------------------------------------------------------------------------------------------------------- */

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

/* --- Muon ------------------------------------------------------------------------------------------------------------------------------ */

static void momentum(float *m_next, float *x, const float *m, const float *g, float beta, float clip, int64_t n)
{
#pragma GCC ivdep
    for (int64_t i = 0; i < n; i++) {
        float grad = g[i] * clip, next = beta * m[i] + grad;
        m_next[i] = next;
        x[i] = grad + beta * next;
    }
}

/* --- sums ------------------------------------------------------------------------------------------------------------------------------ */

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

static double sum(const float *x, int square, int64_t n)
{
    double lanes[LANES] = {0}, total = 0.0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lanes[l] += square ? (double)x[i + l] * x[i + l] : x[i + l];
    for (int l = 0; i + l < n; l++) lanes[l] += square ? (double)x[i + l] * x[i + l] : x[i + l];
    for (int l = 0; l < LANES; l++) total += lanes[l];
    return total;
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

static void column_sums(float *sum, const float *dy, int64_t ld, int M, int cols)
{
    EACH_VEC(c, count, cols)
    {
        vec total = load_n(sum + c, count);
        for (int m = 0; m < M; m++) total += load_n(dy + m * ld + c, count);
        store_n(sum + c, total, count);
    }
}

static void norm_columns(float *dw, float *db, const float *dy, const float *x, const float *mean, const float *rstd, int64_t ld,
                         int M, int cols)
{
    EACH_VEC(c, count, cols)
    {
        vec w = splat(0.0f), b = splat(0.0f);
        for (int m = 0; m < M; m++) {
            vec d = load_n(dy + m * ld + c, count),
                z = (load_n(x + m * ld + c, count) - splat(mean != NULL ? mean[m] : 0.0f)) * splat(rstd[m]);
            w += d * z;
            b += d;
        }
        if (dw != NULL) store_n(dw + c, load_n(dw + c, count) + w, count);
        if (db != NULL) store_n(db + c, load_n(db + c, count) + b, count);
    }
}

/* --- rows ------------------------------------------------------------------------------------------------------------------------------ */

static void norm(float *y, float *mean, float *rstd, const float *x, const float *w, const float *b, float eps, int C)
{
    vec sum = splat(0.0f), square = splat(0.0f);
    float middle = 0.0f;
    if (mean != NULL) {
        EACH_VEC(c, count, C) sum += load_n(x + c, count);
        *mean = middle = sum_lanes(sum) / (float)C;
    }
    EACH_VEC(c, count, C)
    {
        vec off = first_n(load_n(x + c, count) - splat(middle), count, 0.0f);
        square += off * off;
    }
    *rstd = 1.0f / sqrtf(sum_lanes(square) / (float)C + eps);
    EACH_VEC(c, count, C)
    {
        vec z = (load_n(x + c, count) - splat(middle)) * splat(*rstd) * load_n(w + c, count);
        store_n(y + c, b != NULL ? z + load_n(b + c, count) : z, count);
    }
}

/* With z = (x - mean) rstd and g = dy w:  dx = rstd (g - mean(g) - z mean(g z)); RMS norm has no mean(g). */
static void norm_grad(float *dx, const float *dy, const float *x, const float *w, const float *mean, float rstd, int add, int C)
{
    vec sum = splat(0.0f), sum_z = splat(0.0f), middle = splat(mean != NULL ? *mean : 0.0f);
    EACH_VEC(c, count, C)
    {
        vec g = load_n(dy + c, count) * load_n(w + c, count), z = (load_n(x + c, count) - middle) * splat(rstd);
        sum += g;
        sum_z += g * z;
    }
    vec mean_g = splat(mean != NULL ? sum_lanes(sum) / (float)C : 0.0f), mean_gz = splat(sum_lanes(sum_z) / (float)C);
    EACH_VEC(c, count, C)
    {
        vec g = load_n(dy + c, count) * load_n(w + c, count), z = (load_n(x + c, count) - middle) * splat(rstd);
        vec d = splat(rstd) * (g - mean_g - z * mean_gz);
        store_n(dx + c, add ? load_n(dx + c, count) + d : d, count);
    }
}

static float log_sum_exp(const float *x, int64_t n)
{
    vec top = splat(-INFINITY), total = splat(0.0f);
    EACH_VEC(i, count, n) top = larger(first_n(load_n(x + i, count), count, -INFINITY), top);
    float most = top_lane(top);
    if (most == -INFINITY) return most;
    EACH_VEC(i, count, n) total += exp_vec(first_n(load_n(x + i, count), count, -INFINITY) - splat(most));
    return most + logf(sum_lanes(total));
}

static void exp_scaled(float *y, const float *x, float minus, float scale, int64_t n)
{
    EACH_VEC(i, count, n) store_n(y + i, splat(scale) * exp_vec(load_n(x + i, count) - splat(minus)), count);
}

const struct tpo_simd SIMD_TABLE = {
#define X(type, name, parameters) .name = name,
    TPO_SIMD(X)
#undef X
};
