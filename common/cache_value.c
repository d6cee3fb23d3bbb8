/* This file owns the layout of a cached value. */
#include "common/cache_value.h"

#include <endian.h>
#include <math.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>

#include "common/dtype.h"

#define MAGIC       "TPOCACH1"
#define HEAD_BYTES  (8 + 32 + 4 + 4 + 8 * TPO_CACHE_DIMS_MAX + 8 + 4 + 4 + 8 + 4 + 4)
#define FRAME_BYTES 16

void tpo_cache_key_make(struct tpo_cache_key *key, const char *const *texts, int n)
{
    tpo_sha256_t *h = tpo_sha256_open();
    for (int i = 0; i < n; i++) tpo_sha256_add(h, texts[i], strlen(texts[i]) + 1); /* the NUL keeps neighbours apart */
    tpo_sha256_end(h, key->digest);
    tpo_sha256_close(h);
}

void tpo_cached_free(struct tpo_cached *v)
{
    free(v->data), free(v->indices), free(v->times);
    memset(v, 0, sizeof(*v));
}

static void seal(uint8_t out[TPO_SHA256_BYTES], const uint8_t *secret, size_t secret_bytes, const uint8_t *bytes, size_t n)
{
    if (secret_bytes > 0)
        tpo_hmac_sha256(out, secret, secret_bytes, bytes, n);
    else
        tpo_sha256(out, bytes, n);
}

static uint8_t *put32(uint8_t *p, uint32_t v)
{
    v = htole32(v);
    memcpy(p, &v, 4);
    return p + 4;
}

static uint8_t *put64(uint8_t *p, uint64_t v)
{
    v = htole64(v);
    memcpy(p, &v, 8);
    return p + 8;
}

static uint8_t *put_double(uint8_t *p, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, 8);
    return put64(p, bits);
}

static uint32_t get32(const uint8_t **p)
{
    uint32_t v;
    memcpy(&v, *p, 4);
    *p += 4;
    return le32toh(v);
}

static uint64_t get64(const uint8_t **p)
{
    uint64_t v;
    memcpy(&v, *p, 8);
    *p += 8;
    return le64toh(v);
}

static double get_double(const uint8_t **p)
{
    uint64_t bits = get64(p);
    double v;
    memcpy(&v, &bits, 8);
    return v;
}

/* Bytes that dtype and shape ask for; 0 where they are not sound. */
static size_t tensor_bytes(const struct tpo_cached *v)
{
    size_t n = tpo_dtype_size(v->dtype);
    if (v->n_dims < 0 || v->n_dims > TPO_CACHE_DIMS_MAX) return 0;
    for (int i = 0; i < v->n_dims; i++) {
        if (v->shape[i] < 1 || (uint64_t)v->shape[i] > TPO_CACHE_BYTES_MAX || n > TPO_CACHE_BYTES_MAX / (size_t)v->shape[i])
            return 0;
        n *= (size_t)v->shape[i];
    }
    return n;
}

uint8_t *tpo_cached_pack(const struct tpo_cached *v, const struct tpo_cache_key *key, const uint8_t *secret, size_t secret_bytes,
                         size_t *size)
{
    if (v->n_frames < 0 || v->n_frames > TPO_CACHE_FRAMES_MAX || v->data_bytes == 0 || tensor_bytes(v) != v->data_bytes)
        return NULL;
    size_t n = HEAD_BYTES + (size_t)v->n_frames * FRAME_BYTES + v->data_bytes;
    uint8_t *bytes = malloc(n + TPO_SHA256_BYTES), *p = bytes;
    if (bytes == NULL) return NULL;
    memcpy(p, MAGIC, 8), p += 8;
    memcpy(p, key->digest, 32), p += 32;
    p = put32(p, (uint32_t)v->dtype);
    p = put32(p, (uint32_t)v->n_dims);
    for (int i = 0; i < TPO_CACHE_DIMS_MAX; i++) p = put64(p, i < v->n_dims ? (uint64_t)v->shape[i] : 0);
    p = put64(p, v->data_bytes);
    p = put32(p, v->width);
    p = put32(p, v->height);
    p = put_double(p, v->duration_s);
    p = put32(p, (uint32_t)v->n_frames);
    p = put32(p, 0);
    for (int i = 0; i < v->n_frames; i++) p = put_double(put32(put32(p, v->indices[i]), 0), v->times[i]);
    memcpy(p, v->data, v->data_bytes);
    seal(bytes + n, secret, secret_bytes, bytes, n);
    *size = n + TPO_SHA256_BYTES;
    return bytes;
}

static int unpack_head(struct tpo_cached *v, const uint8_t **p, size_t room)
{
    v->dtype = (int)get32(p);
    v->n_dims = (int)get32(p);
    for (int i = 0; i < TPO_CACHE_DIMS_MAX; i++) v->shape[i] = (int64_t)get64(p);
    v->data_bytes = get64(p);
    v->width = get32(p);
    v->height = get32(p);
    v->duration_s = get_double(p);
    uint32_t n_frames = get32(p);
    get32(p);
    if (n_frames > TPO_CACHE_FRAMES_MAX || !isfinite(v->duration_s)) return -1;
    v->n_frames = (int)n_frames;
    return v->data_bytes > 0 && tensor_bytes(v) == v->data_bytes && room == n_frames * FRAME_BYTES + v->data_bytes ? 0 : -1;
}

static int unpack_rest(struct tpo_cached *v, const uint8_t *p)
{
    size_t n = v->n_frames > 0 ? (size_t)v->n_frames : 1;
    v->data = aligned_alloc(64, (v->data_bytes + 63) & ~(size_t)63);
    v->indices = calloc(n, sizeof(*v->indices));
    v->times = calloc(n, sizeof(*v->times));
    if (v->data == NULL || v->indices == NULL || v->times == NULL) return -1;
    for (int i = 0; i < v->n_frames; i++) {
        v->indices[i] = get32(&p);
        get32(&p);
        v->times[i] = get_double(&p);
    }
    memcpy(v->data, p, v->data_bytes);
    return 0;
}

int tpo_cached_unpack(struct tpo_cached *v, const struct tpo_cache_key *key, const uint8_t *secret, size_t secret_bytes,
                      const uint8_t *bytes, size_t size)
{
    uint8_t want[TPO_SHA256_BYTES];
    const uint8_t *p = bytes + 8 + 32;
    memset(v, 0, sizeof(*v));
    if (size < HEAD_BYTES + TPO_SHA256_BYTES || memcmp(bytes, MAGIC, 8) != 0 || memcmp(bytes + 8, key->digest, 32) != 0) return -1;
    size_t n = size - TPO_SHA256_BYTES;
    seal(want, secret, secret_bytes, bytes, n);
    /* In constant time: with a secret, how far a guess was right is nobody's business. */
    if (CRYPTO_memcmp(want, bytes + n, sizeof(want)) != 0) return -1;
    if (unpack_head(v, &p, n - HEAD_BYTES) == 0 && unpack_rest(v, p) == 0) return 0;
    tpo_cached_free(v);
    return -1;
}
