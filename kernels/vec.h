/* vec.h -- vectors of LANES floats, as wide as a register, and the functions of them that kernels share. Private to the kernels' _body.h files.
 *
 * A file that includes this is compiled once per instruction set. A vector wider than a register would be split by the compiler through
 * memory (measured: gelu 8x slower), so builds differ in width, hence in the order of their sums. Sums over the lanes are a tree. What lies
 * past the end of an array is loaded as zero. */
#ifndef TPO_KERNELS_VEC_H
#define TPO_KERNELS_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

/* Called, a function of vectors has another convention in every build (-Wpsabi), so none of these is ever called. */
#define VEC_FN static inline __attribute__((always_inline))

#if defined(__AVX512F__)
#define LANES        16
#define EACH_LANE(x) x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x
#define LANE_NUMBERS 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
#elif defined(__AVX2__)
#define LANES        8
#define EACH_LANE(x) x, x, x, x, x, x, x, x
#define LANE_NUMBERS 0, 1, 2, 3, 4, 5, 6, 7
#else
#define LANES        4
#define EACH_LANE(x) x, x, x, x
#define LANE_NUMBERS 0, 1, 2, 3
#endif

typedef float vec __attribute__((vector_size(LANES * 4), aligned(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(LANES * 4)));
typedef uint32_t uvec __attribute__((vector_size(LANES * 4), aligned(LANES * 4))); /* sums of these may pass the top */
typedef int32_t ivec_any __attribute__((vector_size(LANES * 4), aligned(2), may_alias));
typedef float vec_any __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

VEC_FN vec splat(float x)
{
    return (vec){EACH_LANE(x)};
}

VEC_FN ivec isplat(int32_t x)
{
    return (ivec){EACH_LANE(x)};
}

VEC_FN ivec lane_numbers(void)
{
    return (ivec){LANE_NUMBERS};
}

VEC_FN vec choose(ivec mask, vec yes, vec no)
{
    return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask));
}

VEC_FN vec load(const float *p)
{
    return *(const vec_any *)p;
}

VEC_FN void store(float *p, vec x)
{
    *(vec_any *)p = x;
}

/* n of LANES or fewer floats */
VEC_FN vec load_n(const float *p, int64_t n)
{
    if (n >= LANES) return load(p);
    vec x = splat(0.0f);
    memcpy(&x, p, (size_t)n * sizeof(float));
    return x;
}

/* n of LANES or fewer bf16 numbers, whose bits are the upper half of the f32's */
typedef uint16_t half_vec __attribute__((vector_size(LANES * 2), aligned(LANES * 2)));
VEC_FN vec load_half(const uint16_t *p, int64_t n)
{
    half_vec x = {0};
    memcpy(&x, p, n >= LANES ? sizeof(x) : (size_t)n * sizeof(*p));
    return (vec)(__builtin_convertvector(x, ivec) << 16);
}

/* 2 LANES bf16 numbers, and of them the even ones and the odd ones. */
VEC_FN ivec half_words(const void *p)
{
    return *(const ivec_any *)p;
}

VEC_FN vec half_evens(ivec words)
{
    return (vec)(words << 16);
}

VEC_FN vec half_odds(ivec words)
{
    return (vec)(words & isplat(-65536));
}

/* Pairs of bf16. add_pairs: sum + the products of both numbers of a pair; store_half: to nearest, NaN stays one. `PAIRS`: there are instructions, which
 * take what is too small for a normal number for zero. */
#ifdef __AVX512BF16__
#define PAIRS 1
VEC_FN void store_half(uint16_t *to, vec x)
{
    const __m256bh half = _mm512_cvtneps_pbh((__m512)x);
    memcpy(to, &half, sizeof(half));
}

VEC_FN vec add_pairs(vec sum, vec a, vec b)
{
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#else
#define PAIRS 0
VEC_FN void store_half(uint16_t *to, vec x)
{
    const uvec bits = (uvec)x, even = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, nan = bits >> 16 | 64;
    const half_vec half = __builtin_convertvector((uvec)choose(x == x, (vec)even, (vec)nan), half_vec);
    memcpy(to, &half, sizeof(half));
}

VEC_FN vec add_pairs(vec sum, vec a, vec b)
{
    return sum + half_evens((ivec)a) * half_evens((ivec)b) + half_odds((ivec)a) * half_odds((ivec)b);
}
#endif

VEC_FN void store_n(float *p, vec x, int64_t n)
{
    if (n >= LANES)
        store(p, x);
    else
        memcpy(p, &x, (size_t)n * sizeof(float));
}

/* The first n lanes, `rest` in the others. */
VEC_FN vec first_n(vec x, int64_t n, float rest)
{
    return n >= LANES ? x : choose(lane_numbers() < isplat((int32_t)n), x, splat(rest));
}

/* Half of the lanes change places with the other half: distances LANES/2, LANES/4. */
#if LANES == 16
#define SWAP_FAR(x)  __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
#define SWAP_NEAR(x) __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3)
#elif LANES == 8
#define SWAP_NEAR(x) __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3)
#endif

/* Of two vectors in a row the even and the odd elements; and back. */
#if LANES == 16
#define EVEN_LANES(a, b)  __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
#define ODD_LANES(a, b)   __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
#define FIRST_PAIRS(a, b) __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define LAST_PAIRS(a, b)  __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif LANES == 8
#define EVEN_LANES(a, b)  __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14)
#define ODD_LANES(a, b)   __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15)
#define FIRST_PAIRS(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define LAST_PAIRS(a, b)  __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define EVEN_LANES(a, b)  __builtin_shufflevector(a, b, 0, 2, 4, 6)
#define ODD_LANES(a, b)   __builtin_shufflevector(a, b, 1, 3, 5, 7)
#define FIRST_PAIRS(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define LAST_PAIRS(a, b)  __builtin_shufflevector(a, b, 2, 6, 3, 7)
#endif

VEC_FN float sum_lanes(vec x)
{
#if LANES == 16
    x += SWAP_FAR(x);
#endif
#if LANES >= 8
    x += SWAP_NEAR(x);
#endif
    return (x[0] + x[2]) + (x[1] + x[3]);
}

VEC_FN vec larger(vec a, vec b)
{
    return choose(a > b, a, b);
}

VEC_FN float top_lane(vec x)
{
#if LANES == 16
    x = larger(x, SWAP_FAR(x));
#endif
#if LANES >= 8
    x = larger(x, SWAP_NEAR(x));
#endif
    float a = x[0] > x[2] ? x[0] : x[2], b = x[1] > x[3] ? x[1] : x[3];
    return a > b ? a : b;
}

/* e^x: 2^n times a polynomial on |r| <= ln2/2 (Cephes' coefficients), within 2e-7 of the value. 0 below -87.3; stays at e^88 above 88; a NaN stays
 * itself (as a number its low bits would be taken for n). */
VEC_FN vec exp_vec(vec x)
{
    const vec magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number, which then lies in the low bits */
    ivec tiny = x < splat(-87.3f);
    x = choose(tiny, splat(0.0f), x);
    x = choose(x > splat(88.0f), splat(88.0f), x);
    const ivec number = x == x;
    vec shifted = x * splat(1.44269504f) + magic, n = shifted - magic;
    vec r = x - n * splat(0.693359375f);
    r = r - n * splat(-2.12194440e-4f);
    vec y = splat(1.9875691500e-4f);
    y = y * r + splat(1.3981999507e-3f);
    y = y * r + splat(8.3334519073e-3f);
    y = y * r + splat(4.1665795894e-2f);
    y = y * r + splat(1.6666665459e-1f);
    y = y * r + splat(5.0000001201e-1f);
    y = y * (r * r) + r + splat(1.0f);
    return choose(tiny, splat(0.0f), choose(number, (vec)((ivec)y + ((ivec)shifted << 23)), x));
}

VEC_FN vec sigmoid_vec(vec x)
{
    return splat(1.0f) / (splat(1.0f) + exp_vec(-x));
}

/* The normal distribution at x: returns its integral up to x, and e^(-x^2/2) in *bell. Phi(-|x|) = bell times a polynomial of
 * 1/(1 + 0.33 |x|), fitted for the smallest largest error on 0..13: within 1e-7. */
VEC_FN vec normal_vec(vec x, vec *bell)
{
    vec size = (vec)((ivec)x & isplat(0x7fffffff)), t = splat(1.0f) / (splat(1.0f) + splat(0.33f) * size);
    *bell = exp_vec(x * x * splat(-0.5f));
    vec y = splat(0.0445469752f);
    y = y * t + splat(-0.215884848f);
    y = y * t + splat(0.322117697f);
    y = y * t + splat(-0.0799698392f);
    y = y * t + splat(0.175731342f);
    y = y * t + splat(0.121035181f);
    y = y * t + splat(0.132423496f);
    vec below = *bell * (y * t);
    return choose(x < splat(0.0f), below, splat(1.0f) - below);
}

#endif
