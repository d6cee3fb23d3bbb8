/* This file owns the log's lines. */
#include "common/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum tpo_log_level tpo_log_threshold = TPO_LOG_INFO;
static const char *log_stage = "-";

static const char *const level_names[] = {"debug", "info", "warn", "error"};

void tpo_log_open(const char *stage, enum tpo_log_level level)
{
    log_stage = stage;
    tpo_log_threshold = level;
}

int tpo_log_level_parse(const char *name)
{
    for (int i = 0; i < 4; i++)
        if (strcmp(name, level_names[i]) == 0) return i;
    return -1;
}

void tpo_log_write(enum tpo_log_level level, const char *event, const char *format, ...)
{
    char line[1024];
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t n = strftime(line, sizeof(line), "ts=%Y-%m-%dT%H:%M:%S", &utc);
    n += (size_t)snprintf(line + n, sizeof(line) - n, ".%03ldZ level=%s stage=%s event=%s", now.tv_nsec / 1000000,
                          level_names[level], log_stage, event);
    if (format[0] != '\0') {
        line[n++] = ' ';
        va_list args;
        va_start(args, format);
        int wrote = vsnprintf(line + n, sizeof(line) - n - 1, format, args);
        va_end(args);
        n += wrote < 0 ? 0 : (size_t)wrote;
        if (n > sizeof(line) - 2) n = sizeof(line) - 2;
    }
    line[n++] = '\n';
    /* A log that cannot be written must not stop what it tells of. */
    ssize_t ignored = write(STDOUT_FILENO, line, n);
    (void)ignored;
}

const char *tpo_log_quote(char *out, size_t size, const char *text)
{
    size_t n = 0;
    if (size < 3) return "";
    out[n++] = '"';
    for (; *text != '\0' && n + 3 < size; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') out[n++] = '\\';
        out[n++] = c < 0x20 || c == 0x7f ? ' ' : (char)c;
    }
    out[n++] = '"';
    out[n] = '\0';
    return out;
}
