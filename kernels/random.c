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

/* In f64, whose log and cos are right to the last bit but one everywhere; rounding to f32 hides that bit on all but one value in 10^8. */
float tpo_random_normal(uint64_t key, uint64_t counter)
{
    uint64_t u = tpo_random_u64(key, counter);
    double radius = ((double)(u >> 32) + 1.0) * 0x1p-32, turn = (double)(u & 0xffffffffu) * 0x1p-32;
    return (float)(sqrt(-2.0 * log(radius)) * cos(6.283185307179586 * turn));
}
