/* This file owns the table of status codes. */
#include "common/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name, *sentence;
    int http;
} statuses[] = {
#define X(name, grpc, http, sentence) [grpc] = {#name, sentence, http},
    TPO_STATUS_MAP(X)
#undef X
};

static int known(int code)
{
    return code >= 0 && code < (int)(sizeof(statuses) / sizeof(statuses[0])) ? code : TPO_UNKNOWN;
}

const char *tpo_status_name(int code)
{
    return statuses[known(code)].name;
}

const char *tpo_status_sentence(int code)
{
    return statuses[known(code)].sentence;
}

int tpo_status_http(int code)
{
    return statuses[known(code)].http;
}

int tpo_fail(struct tpo_error *err, int code, const char *reason, const char *format, ...)
{
    if (err == NULL) return code;
    memset(err, 0, sizeof(*err));
    err->code = code;
    snprintf(err->reason, sizeof(err->reason), "%s", reason);
    va_list args;
    va_start(args, format);
    vsnprintf(err->message, sizeof(err->message), format, args);
    va_end(args);
    return code;
}

void tpo_assert_failed(const char *condition, const char *file, int line)
{
    fprintf(stderr, "%s:%d: assertion failed: %s\n", file, line, condition);
    abort();
}
