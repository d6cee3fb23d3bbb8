/* cache_value.h -- what the cache keeps of one medium: a tensor and what a reply must say of the medium, as bytes that prove themselves.
 *
 * Little-endian: magic "TPOCACH1", the key's digest (32), dtype, n_dims (u32), shape (8 x i64), data bytes (u64), width, height (u32), duration
 * (f64), n_frames, 0 (u32), per frame index, 0 (u32), time (f64); the data; SHA-256 of all that, or its HMAC under a secret. A value that is
 * torn, swapped with another key's, of another build's layout or forged does not parse: it is a miss. */
#ifndef TPO_COMMON_CACHE_VALUE_H
#define TPO_COMMON_CACHE_VALUE_H

#include <stddef.h>
#include <stdint.h>

#include "common/sha256.h"

#define TPO_CACHE_DIMS_MAX   8
#define TPO_CACHE_FRAMES_MAX 4096
#define TPO_CACHE_BYTES_MAX  ((size_t)64 << 20)

struct tpo_cache_key {
    uint8_t digest[TPO_SHA256_BYTES];
};

struct tpo_cached {
    int dtype; /* enum tpo_dtype */
    int n_dims;
    int64_t shape[TPO_CACHE_DIMS_MAX];
    void *data; /* 64-byte aligned where the cache made it */
    size_t data_bytes;
    uint32_t width, height;
    double duration_s;
    int n_frames;
    uint32_t *indices; /* (n_frames) */
    double *times;     /* (n_frames) */
};

/* Key of `n` texts: equal only when every text is. */
void tpo_cache_key_make(struct tpo_cache_key *key, const char *const *texts, int n);

void tpo_cached_free(struct tpo_cached *v); /* its data, indices and times; leaves it zeroed */

/* Returns malloc'd bytes, or NULL when out of memory or over a bound. secret_bytes 0: no secret. */
uint8_t *tpo_cached_pack(const struct tpo_cached *v, const struct tpo_cache_key *key, const uint8_t *secret, size_t secret_bytes,
                         size_t *size);
/* 0, and v owns its memory; -1 for anything but the bytes that pack would make for this key and secret. */
int tpo_cached_unpack(struct tpo_cached *v, const struct tpo_cache_key *key, const uint8_t *secret, size_t secret_bytes,
                      const uint8_t *bytes, size_t size);

#endif
