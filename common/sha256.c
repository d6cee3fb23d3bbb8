/* This file owns hashing. */
#include "common/sha256.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>

#include "common/status.h"

/* The opaque type is libcrypto's context under our name: it needs nothing beside it. */
static EVP_MD_CTX *context(tpo_sha256_t *h)
{
    return (EVP_MD_CTX *)h;
}

tpo_sha256_t *tpo_sha256_open(void)
{
    EVP_MD_CTX *c = EVP_MD_CTX_new();
    TPO_ASSERT(c != NULL && EVP_DigestInit_ex(c, EVP_sha256(), NULL) == 1);
    return (tpo_sha256_t *)c;
}

void tpo_sha256_add(tpo_sha256_t *h, const void *data, size_t bytes)
{
    if (bytes > 0) TPO_ASSERT(EVP_DigestUpdate(context(h), data, bytes) == 1);
}

void tpo_sha256_end(tpo_sha256_t *h, uint8_t digest[TPO_SHA256_BYTES])
{
    TPO_ASSERT(EVP_DigestFinal_ex(context(h), digest, NULL) == 1);
    TPO_ASSERT(EVP_DigestInit_ex(context(h), EVP_sha256(), NULL) == 1);
}

void tpo_sha256_end_hex(tpo_sha256_t *h, char out[TPO_SHA256_HEX])
{
    uint8_t digest[TPO_SHA256_BYTES];
    tpo_sha256_end(h, digest);
    tpo_sha256_hex(out, digest);
}

void tpo_sha256_close(tpo_sha256_t *h)
{
    EVP_MD_CTX_free(context(h));
}

void tpo_sha256(uint8_t digest[TPO_SHA256_BYTES], const void *data, size_t bytes)
{
    TPO_ASSERT(EVP_Digest(data, bytes, digest, NULL, EVP_sha256(), NULL) == 1);
}

void tpo_hmac_sha256(uint8_t digest[TPO_SHA256_BYTES], const void *key, size_t key_bytes, const void *data, size_t bytes)
{
    unsigned n = 0;
    TPO_ASSERT(HMAC(EVP_sha256(), key_bytes > 0 ? key : "", (int)key_bytes, data, bytes, digest, &n) != NULL &&
               n == TPO_SHA256_BYTES);
}

char *tpo_sha256_hex(char *out, const uint8_t digest[TPO_SHA256_BYTES])
{
    for (int i = 0; i < TPO_SHA256_BYTES; i++) {
        out[2 * i] = "0123456789abcdef"[digest[i] >> 4];
        out[2 * i + 1] = "0123456789abcdef"[digest[i] & 15];
    }
    out[2 * TPO_SHA256_BYTES] = '\0';
    return out;
}

int tpo_sha256_is_hex(const char *text)
{
    return text != NULL && strspn(text, "0123456789abcdef") == 64 && text[64] == '\0';
}
