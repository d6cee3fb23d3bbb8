/* text.h -- text that grows: what JSON, metrics and HTTP answers are written into.
 *
 * A zeroed struct is an empty text. Running out of memory is remembered in `failed` and makes every later call do nothing, so a
 * writer checks once, at its end. `data` is NUL-terminated as soon as something was added; the NUL isn't counted in `size`. */
#ifndef TPO_COMMON_TEXT_H
#define TPO_COMMON_TEXT_H

#include <stdbool.h>
#include <stddef.h>

#include "common/utf8.h"

struct tpo_text {
    char *data;
    size_t size, capacity;
    bool failed;
};

void tpo_text_add(struct tpo_text *t, const void *data, size_t size);
void tpo_text_puts(struct tpo_text *t, const char *text);
void tpo_text_printf(struct tpo_text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A JSON string with its quotes. The input must be valid UTF-8; `<`, `>` and `&` are left alone. */
void tpo_text_json(struct tpo_text *t, const char *text, size_t size);
/* Standard base64 with padding. */
void tpo_text_base64(struct tpo_text *t, const unsigned char *data, size_t size);
void tpo_text_reset(struct tpo_text *t); /* empty, memory kept */
void tpo_text_free(struct tpo_text *t);

#define TPO_REQUEST_ID_MAX 64
bool tpo_id_valid(const char *id, size_t most); /* 1..most of [A-Za-z0-9._-], so that it can stand in a log; NULL is not */

size_t tpo_utf8_count(const char *text); /* code points of valid UTF-8 */

#endif
