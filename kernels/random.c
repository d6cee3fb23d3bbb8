/* This file owns the counter-based generator: SplitMix64's finaliser (Steele et al. 2014) over key and counter. */
#include <math.h>

#include "kernels/vector.h"

static uint64_t mix(uint64_t z)
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint64_t tpo_random_u64(uint64_t key, uint64_t counter)
{
    return mix(mix(key + 0x9e3779b97f4a7c15u) + counter * 0x9e3779b97f4a7c15u);
}

float tpo_random(uint64_t key, uint64_t counter)
{
    return (float)(tpo_random_u64(key, counter) >> 40) * 0x1p-24f;
}

/* --- normal: Box-Muller in f64, two values side by side ------------------------------------------------------------------------------------------
 *
 * The logarithm and the cosine are the series below and nobody's library, so that the bits are the same on every machine. Each is right to its last bits;
 * rounding to f32 hides them on all but one value in 10^7. */
#define LANES 2
typedef double reals __attribute__((vector_size(LANES * 8)));
typedef int64_t wholes __attribute__((vector_size(LANES * 8)));
typedef uint64_t words __attribute__((vector_size(LANES * 8)));

#define TO_REAL 0x4330000000000000 /* a whole number below 2^52 with these bits set is 2^52 and it, as a double */

/* ln x for 2^-33 < x <= 1: x = m 2^e with m from sqrt(1/2) to sqrt(2), ln m = 2 artanh s, s = (m - 1) / (m + 1), as its series to s^21. */
static inline reals ln(reals x)
{
    const wholes bits = (wholes)x;
    const wholes e = (wholes)((words)(bits - 0x3fe6a09e667f3bcd + (1024ll << 52)) >> 52); /* and 1024; the constant is sqrt(1/2) */
    const reals m = (reals)(bits - ((e - 1024) << 52)), exponent = (reals)(e | TO_REAL) - (0x1p52 + 1024);
    const reals s = (m - 1) / (m + 1), z = s * s;
    reals p = z * (1.0 / 21) + 1.0 / 19;
    p = p * z + 1.0 / 17;
    p = p * z + 1.0 / 15;
    p = p * z + 1.0 / 13;
    p = p * z + 1.0 / 11;
    p = p * z + 1.0 / 9;
    p = p * z + 1.0 / 7;
    p = p * z + 1.0 / 5;
    p = p * z + 1.0 / 3;
    return exponent * 0.6931471805599453 + (2 * s + 2 * s * (z * p));
}

/* cos(2 pi turn) for 0 <= turn < 1: the nearest quarter of a turn, then Taylor's series of what is left, an eighth at most either way. */
static inline reals cos_turn(reals turn)
{
    const reals rounded = 4 * turn + 0x1.8p52; /* whose last bits are the quarter */
    const reals x = 6.283185307179586 * (turn - 0.25 * (rounded - 0x1.8p52)), z = x * x;
    const wholes quarter = (wholes)rounded;
    reals c = z * (1.0 / 20922789888000) - 1.0 / 87178291200, s = z * (1.0 / 355687428096000) - 1.0 / 1307674368000;
    c = c * z + 1.0 / 479001600;
    c = c * z - 1.0 / 3628800;
    c = c * z + 1.0 / 40320;
    c = c * z - 1.0 / 720;
    c = c * z + 1.0 / 24;
    c = c * z - 0.5;
    c = c * z + 1;
    s = s * z + 1.0 / 6227020800;
    s = s * z - 1.0 / 39916800;
    s = s * z + 1.0 / 362880;
    s = s * z - 1.0 / 5040;
    s = s * z + 1.0 / 120;
    s = s * z - 1.0 / 6;
    s = x + x * (z * s);
    /* x and 0, 1, 2, 3 quarters: cos x, -sin x, -cos x, sin x. */
    const wholes odd = -(quarter & 1), negative = ((quarter + 1) & 2) << 62;
    return (reals)((((wholes)c & ~odd) | ((wholes)s & odd)) ^ negative);
}

static inline reals normals(uint64_t mixed_key, uint64_t first)
{
    words u;
    for (int j = 0; j < LANES; j++) u[j] = mix(mixed_key + (first + (uint64_t)j) * 0x9e3779b97f4a7c15u);
    const reals high = (reals)(u >> 32 | TO_REAL) - 0x1p52, low = (reals)((u & 0xffffffffu) | TO_REAL) - 0x1p52;
    reals radius = -2.0 * ln((high + 1.0) * 0x1p-32);
    for (int j = 0; j < LANES; j++) radius[j] = sqrt(radius[j]);
    return radius * cos_turn(low * 0x1p-32);
}

void tpo_random_normals(float *y, int64_t n, float scale, uint64_t key, uint64_t first)
{
    const uint64_t mixed = mix(key + 0x9e3779b97f4a7c15u);
    for (int64_t i = 0; i < n; i += LANES) {
        const reals x = normals(mixed, first + (uint64_t)i);
        for (int j = 0; j < LANES && i + j < n; j++) y[i + j] = scale * (float)x[j];
    }
}

float tpo_random_normal(uint64_t key, uint64_t counter)
{
    return (float)normals(mix(key + 0x9e3779b97f4a7c15u), counter)[0];
}
