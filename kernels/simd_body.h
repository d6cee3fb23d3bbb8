/* simd_body.h -- the inner loops of simd.h. The including file defines SIMD_TABLE, the name of its table, and is compiled for one instruction set. */
#include "kernels/simd.h"
#include "kernels/simd_products_body.h"
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
