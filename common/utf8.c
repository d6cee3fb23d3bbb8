/* This file owns the reading of UTF-8. */
#include "common/utf8.h"

/* Bytes of the code point that starts here, 0 when it is malformed or cut off. */
static size_t point_bytes(const unsigned char *p, size_t n)
{
    if (p[0] < 0x80) return p[0] == 0 ? 0 : 1;
    size_t length = p[0] >= 0xc2 && p[0] <= 0xdf ? 2 : (p[0] & 0xf0) == 0xe0 ? 3 : p[0] >= 0xf0 && p[0] <= 0xf4 ? 4 : 0;
    if (length == 0 || n < length) return 0;
    for (size_t i = 1; i < length; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if (p[0] == 0xe0 && p[1] < 0xa0) return 0; /* overlong */
    if (p[0] == 0xed && p[1] > 0x9f) return 0; /* surrogate */
    if (p[0] == 0xf0 && p[1] < 0x90) return 0;
    if (p[0] == 0xf4 && p[1] > 0x8f) return 0;
    return length;
}

bool tpo_utf8_valid(const char *text, size_t n)
{
    for (size_t i = 0; i < n;) {
        size_t length = point_bytes((const unsigned char *)text + i, n - i);
        if (length == 0) return false;
        i += length;
    }
    return true;
}
