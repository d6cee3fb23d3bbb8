/* sha256.h -- SHA-256 and HMAC-SHA-256, in one go or as bytes stream by; libcrypto does the work.
 *
 * A digest is 32 bytes; its text is 64 lower-case hex digits, the form that ids of media and digests of weights take on the wire.
 * One thread owns a running hash. Nothing here fails but for memory, and that is an assertion: libcrypto asks for a few hundred bytes. */
#ifndef TPO_COMMON_SHA256_H
#define TPO_COMMON_SHA256_H

#include <stddef.h>
#include <stdint.h>

#define TPO_SHA256_BYTES 32
#define TPO_SHA256_HEX   65 /* with the NUL */

typedef struct tpo_sha256 tpo_sha256_t;

tpo_sha256_t *tpo_sha256_open(void);
void tpo_sha256_add(tpo_sha256_t *h, const void *data, size_t bytes);
void tpo_sha256_end(tpo_sha256_t *h, uint8_t digest[TPO_SHA256_BYTES]); /* h starts anew, empty */
void tpo_sha256_end_hex(tpo_sha256_t *h, char out[TPO_SHA256_HEX]);     /* the same, as text */
void tpo_sha256_close(tpo_sha256_t *h);                                 /* accepts NULL */

void tpo_sha256(uint8_t digest[TPO_SHA256_BYTES], const void *data, size_t bytes);
void tpo_hmac_sha256(uint8_t digest[TPO_SHA256_BYTES], const void *key, size_t key_bytes, const void *data, size_t bytes);

/* Text of a digest; out holds TPO_SHA256_HEX characters and is returned. */
char *tpo_sha256_hex(char *out, const uint8_t digest[TPO_SHA256_BYTES]);
/* 1 when text is exactly 64 lower-case hex digits, else 0; so a name that passes holds no path. */
int tpo_sha256_is_hex(const char *text);

#endif
