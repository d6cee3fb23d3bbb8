/* A safetensors file of any bytes: refused with a sentence, or read with every view inside the bytes. */
#include <stddef.h>
#include <stdint.h>

#include "common/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n)
{
    struct tpo_safetensors *s = NULL;
    struct tpo_error err;
    if (tpo_safetensors_open_bytes(&s, bytes, n, &err) != TPO_OK) {
        TPO_ASSERT(err.message[0] != '\0');
        return 0;
    }
    for (int i = 0; i < s->n; i++) {
        const uint8_t *data = s->items[i].data;
        TPO_ASSERT(data >= bytes && s->items[i].size_bytes <= n && data + s->items[i].size_bytes <= bytes + n);
        TPO_ASSERT(tpo_safetensors_find(s, s->items[i].name) != NULL);
    }
    tpo_safetensors_close(s);
    return 0;
}
