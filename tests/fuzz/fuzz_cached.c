/* A cached value of any bytes under a checksum that is right: no miss reads or allocates past its bounds, and a hit packs to the same bytes. */
#include <stdlib.h>
#include <string.h>

#include "common/cache_value.h"
#include "common/status.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    struct tpo_cache_key key = {{0}};
    struct tpo_cached v;
    size_t size = 0;
    uint8_t *copy = malloc(n + TPO_SHA256_BYTES);
    TPO_ASSERT(copy != NULL);
    memcpy(copy, bytes, n);
    tpo_sha256(copy + n, copy, n);
    if (tpo_cached_unpack(&v, &key, NULL, 0, copy, n + TPO_SHA256_BYTES) == 0) {
        uint8_t *again = tpo_cached_pack(&v, &key, NULL, 0, &size);
        TPO_ASSERT(again != NULL && size == n + TPO_SHA256_BYTES);
        free(again);
        tpo_cached_free(&v);
    }
    free(copy);
    return 0;
}
