/* utf8.h -- is it text? What a stranger calls a string is checked before anything else looks at it. */
#ifndef TPO_COMMON_UTF8_H
#define TPO_COMMON_UTF8_H

#include <stdbool.h>
#include <stddef.h>

/* Well-formed UTF-8 (RFC 3629: no overlong forms, no surrogates, nothing past U+10FFFF) without NUL. */
bool tpo_utf8_valid(const char *text, size_t n);

#endif
