/* This file owns text that grows. */
#include "common/text.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool grow(struct tpo_text *t, size_t more)
{
    if (t->failed || more > SIZE_MAX / 4 - t->size) return !(t->failed = true);
    if (t->size + more + 1 <= t->capacity) return true;
    size_t capacity = t->capacity < 128 ? 128 : t->capacity;
    while (capacity < t->size + more + 1) capacity *= 2;
    char *data = realloc(t->data, capacity);
    if (data == NULL) return !(t->failed = true);
    t->data = data;
    t->capacity = capacity;
    return true;
}

void tpo_text_add(struct tpo_text *t, const void *data, size_t size)
{
    if (!grow(t, size)) return;
    if (size > 0) memcpy(t->data + t->size, data, size);
    t->size += size;
    t->data[t->size] = '\0';
}

void tpo_text_puts(struct tpo_text *t, const char *text)
{
    tpo_text_add(t, text, strlen(text));
}

void tpo_text_printf(struct tpo_text *t, const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, format, args);
    if (n < 0) t->failed = true;
    if (n >= 0 && grow(t, (size_t)n)) {
        vsnprintf(t->data + t->size, (size_t)n + 1, format, again);
        t->size += (size_t)n;
    }
    va_end(again);
    va_end(args);
}

void tpo_text_json(struct tpo_text *t, const char *text, size_t size)
{
    static const char *const named[] = {
        ['"'] = "\\\"", ['\\'] = "\\\\", ['\n'] = "\\n", ['\r'] = "\\r", ['\t'] = "\\t", ['\b'] = "\\b", ['\f'] = "\\f"};
    tpo_text_add(t, "\"", 1);
    size_t from = 0;
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        const char *name = c < sizeof(named) / sizeof(named[0]) ? named[c] : NULL;
        if (name == NULL && c >= 0x20 && c != 0x7f) continue;
        tpo_text_add(t, text + from, i - from);
        if (name != NULL)
            tpo_text_puts(t, name);
        else
            tpo_text_printf(t, "\\u%04x", c);
        from = i + 1;
    }
    tpo_text_add(t, text + from, size - from);
    tpo_text_add(t, "\"", 1);
}

void tpo_text_base64(struct tpo_text *t, const unsigned char *data, size_t size)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < size; i += 3) {
        size_t have = size - i < 3 ? size - i : 3;
        uint32_t v = (uint32_t)data[i] << 16 | (have > 1 ? (uint32_t)data[i + 1] << 8 : 0) | (have > 2 ? data[i + 2] : 0u);
        char out[4] = {digits[v >> 18], digits[v >> 12 & 63], have > 1 ? digits[v >> 6 & 63] : '=',
                       have > 2 ? digits[v & 63] : '='};
        tpo_text_add(t, out, sizeof(out));
    }
}

void tpo_text_reset(struct tpo_text *t)
{
    t->size = 0;
    t->failed = false;
    if (t->data != NULL) t->data[0] = '\0';
}

void tpo_text_free(struct tpo_text *t)
{
    free(t->data);
    *t = (struct tpo_text){0};
}

bool tpo_id_valid(const char *id, size_t most)
{
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
    size_t n = id != NULL ? strlen(id) : 0;
    return n > 0 && n <= most && strspn(id, allowed) == n;
}

size_t tpo_utf8_count(const char *text)
{
    size_t n = 0;
    for (; *text != '\0'; text++) n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}
