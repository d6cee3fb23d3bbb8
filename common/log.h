/* log.h -- one logfmt line per event on stdout: `ts=... level=warn stage=encoder event=cache_timeout req=7f3a ms=50`.
 *
 * The level is tested before anything is formatted. Ids come first in the pairs. Values that are free text go through
 * tpo_log_quote, so that a stranger cannot forge a line. Any thread may log; a line is one write(2). */
#ifndef TPO_COMMON_LOG_H
#define TPO_COMMON_LOG_H

#include <stddef.h>

enum tpo_log_level { TPO_LOG_DEBUG, TPO_LOG_INFO, TPO_LOG_WARN, TPO_LOG_ERROR };

/* Once, before threads start. `stage` is borrowed for the life of the process ("encoder"). */
void tpo_log_open(const char *stage, enum tpo_log_level level);
int tpo_log_level_parse(const char *name); /* -1 for an unknown name */

extern enum tpo_log_level tpo_log_threshold;
#define tpo_log(level, event, ...)                                                                                                 \
    do {                                                                                                                           \
        if ((level) >= tpo_log_threshold) tpo_log_write((level), (event), __VA_ARGS__);                                            \
    } while (0)

/* `event` is a snake_case word, `format` yields the key=value pairs (may be ""). Use the macro. */
void tpo_log_write(enum tpo_log_level level, const char *event, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Copies text as a quoted logfmt value into out (always terminated); returns out, for use inside a log call. */
const char *tpo_log_quote(char *out, size_t size, const char *text);

#endif
