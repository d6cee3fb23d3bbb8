/* rng.h -- the generator behind every choice of the world: a value depends on the key and on how many were drawn before, on nothing
 * else.
 *
 * The mixing function is splitmix64's (Steele, Lea, Flood 2014). Keys are made of keys, so that text never shifts pixels. */
#ifndef TPO_TRAINER_WORLD_RNG_H
#define TPO_TRAINER_WORLD_RNG_H

#include <stdbool.h>
#include <stdint.h>

struct tpo_rng {
    uint64_t state;
};

static inline uint64_t tpo_rng_mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static inline uint64_t tpo_rng_key(uint64_t key, uint64_t part)
{
    return tpo_rng_mix(key + 0x9e3779b97f4a7c15ull * (part + 1) + 0x632be59bd9b4e019ull);
}

static inline uint64_t tpo_rng_next(struct tpo_rng *r)
{
    return tpo_rng_mix(r->state += 0x9e3779b97f4a7c15ull);
}

/* 0 .. n-1; the bias of n in 2^32 is below what any test here could see. */
static inline int tpo_rng_below(struct tpo_rng *r, int n)
{
    return (int)(((tpo_rng_next(r) >> 32) * (uint64_t)n) >> 32);
}

static inline float tpo_rng_unit(struct tpo_rng *r) /* [0, 1) */
{
    return (float)(tpo_rng_next(r) >> 40) * 0x1p-24f;
}

static inline float tpo_rng_between(struct tpo_rng *r, float low, float high)
{
    return low + (high - low) * tpo_rng_unit(r);
}

static inline bool tpo_rng_chance(struct tpo_rng *r, float p)
{
    return tpo_rng_unit(r) < p;
}

#endif
