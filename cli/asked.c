/* This file owns RUN/asked. */
#include "cli/asked.h"

#include <stdio.h>
#include <string.h>

static FILE *file_of(const char *run_dir, const char *mode)
{
    char path[TPO_ASKED_VALUE];
    snprintf(path, sizeof(path), "%s/asked", run_dir);
    return fopen(path, mode);
}

void tpo_asked_add(struct tpo_asked *a, const char *name, const char *value)
{
    a->rows[a->n].name = name;
    snprintf(a->rows[a->n++].value, TPO_ASKED_VALUE, "%s", value);
}

int tpo_asked_write(const struct tpo_asked *a, const char *run_dir, struct tpo_error *err)
{
    FILE *out = file_of(run_dir, "w");
    for (int i = 0; out != NULL && i < a->n; i++) fprintf(out, "%s=%s\n", a->rows[i].name, a->rows[i].value);
    if (out == NULL || fclose(out) != 0) return tpo_fail(err, TPO_FAILED_PRECONDITION, "run_dir", "%s cannot be written", run_dir);
    return TPO_OK;
}

bool tpo_asked_read(const char *run_dir, const char *name, char *value, size_t size)
{
    char line[TPO_ASKED_VALUE + 64];
    const size_t n = strlen(name);
    bool found = false;
    FILE *in = file_of(run_dir, "r");
    while (in != NULL && !found && fgets(line, sizeof(line), in) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        found = strncmp(line, name, n) == 0 && line[n] == '=';
        if (found) snprintf(value, size, "%s", line + n + 1);
    }
    if (in != NULL) fclose(in);
    return found;
}

void tpo_asked_differs(const char *name, const char *is, const char *wanted, char *text, size_t size)
{
    const size_t at = strlen(text);
    snprintf(text + at, size - at, "%s--%s is %s, not %s", at > 0 ? "; " : "", name, is, wanted);
}

void tpo_asked_compare(const struct tpo_asked *a, const char *run_dir, char *text, size_t size)
{
    char value[TPO_ASKED_VALUE];
    for (int i = 0; i < a->n; i++) {
        if (!tpo_asked_read(run_dir, a->rows[i].name, value, sizeof(value))) snprintf(value, sizeof(value), "unknown");
        if (strcmp(value, a->rows[i].value) != 0) tpo_asked_differs(a->rows[i].name, value, a->rows[i].value, text, size);
    }
}
