/* This file owns the marks of rows whose media are bad, and the file that keeps them. */
#include "trainer/data/bad_rows.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/files.h"
#include "common/log.h"

#define WHY_MAX 300

struct tpo_bad_rows {
    uint8_t *bits; /* one for each row */
    int64_t n_rows, count;
    char first[WHY_MAX];
    FILE *file; /* NULL: nothing is remembered */
};

/* Nothing more is remembered: a line behind one that was cut off could be read as another. */
static void file_lost(struct tpo_bad_rows *b, int why)
{
    tpo_log(TPO_LOG_ERROR, "bad_rows_lost", "reason=\"%s\"", strerror(why));
    if (b->file != NULL) fclose(b->file);
    b->file = NULL;
}

static bool bit_set(struct tpo_bad_rows *b, int64_t row, const char *why)
{
    if (tpo_bad_rows_has(b, row)) return false;
    b->bits[row / 8] |= (uint8_t)(1 << row % 8);
    if (b->count++ == 0) snprintf(b->first, sizeof(b->first), "%s", why);
    return true;
}

static void line_write(struct tpo_bad_rows *b, uint64_t index, int64_t row, const char *why)
{
    fprintf(b->file, "%" PRIu64 " %" PRId64 " ", index, row);
    for (; *why != '\0'; why++) fputc(*why == '\n' ? ' ' : *why, b->file);
    fputc('\n', b->file);
}

/* What the file says, into the marks and into the new file. The last line may have been cut off by a kill. */
static void lines_read(struct tpo_bad_rows *b, FILE *old, const char *head, uint64_t before)
{
    char line[WHY_MAX + 64];
    if (fgets(line, sizeof(line), old) == NULL || strcmp(line, head) != 0) return;
    while (fgets(line, sizeof(line), old) != NULL) {
        uint64_t index = 0;
        int64_t row = 0;
        int at = 0;
        const size_t n = strlen(line); /* 0 where it begins with NUL */
        if (n == 0 || line[n - 1] != '\n' || sscanf(line, "%" SCNu64 " %" SCNd64 " %n", &index, &row, &at) != 2) continue;
        line[n - 1] = '\0';
        if (index >= before || row < 0 || row >= b->n_rows || !bit_set(b, row, line + at)) continue;
        if (b->file != NULL) line_write(b, index, row, line + at);
    }
}

/* Written under another name, so that a kill or a full disk leaves the old one or the new one. What the old one says is known either way. */
static int file_open(struct tpo_bad_rows *b, const char *path, const char *which, uint64_t before, struct tpo_error *err)
{
    char part[4200], head[160];
    snprintf(head, sizeof(head), "rows %" PRId64 " of %.100s\n", b->n_rows, which);
    snprintf(part, sizeof(part), "%.4100s.part", path);
    bool ok = (b->file = fopen(part, "we")) != NULL;
    int why = errno;
    FILE *old = fopen(path, "re");
    if (ok) fputs(head, b->file);
    if (old != NULL) {
        lines_read(b, old, head, before);
        fclose(old);
    }
    if (ok) {
        ok = fflush(b->file) == 0 && fdatasync(fileno(b->file)) == 0 && rename(part, path) == 0;
        why = errno;
    }
    if (ok) return TPO_OK;
    unlink(part);
    if (!tpo_disk_full(why)) return tpo_fail(err, TPO_FAILED_PRECONDITION, "bad_rows", "%.200s: %s", path, strerror(why));
    file_lost(b, why);
    return TPO_OK;
}

int tpo_bad_rows_open(struct tpo_bad_rows **out, const char *path, const struct tpo_bad_rows_of *rows, uint64_t before,
                      struct tpo_error *err)
{
    struct tpo_bad_rows *b = calloc(1, sizeof(*b));
    if (b == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a source");
    b->n_rows = rows->n;
    b->bits = calloc((size_t)rows->n / 8 + 1, 1);
    int rc = b->bits != NULL ? TPO_OK : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a source");
    for (int64_t row = 0; rc == TPO_OK && rows->left_out != NULL && row < rows->n; row++)
        if (rows->left_out(rows->owner, row)) b->bits[row / 8] |= (uint8_t)(1 << row % 8);
    if (rc == TPO_OK && path != NULL) rc = file_open(b, path, rows->which, before, err);
    if (rc == TPO_OK)
        *out = b;
    else
        tpo_bad_rows_close(b);
    return rc;
}

void tpo_bad_rows_close(struct tpo_bad_rows *b)
{
    if (b == NULL) return;
    if (b->file != NULL) fclose(b->file);
    free(b->bits);
    free(b);
}

bool tpo_bad_rows_has(const struct tpo_bad_rows *b, int64_t row)
{
    return b->bits[row / 8] >> (row % 8) & 1;
}

bool tpo_bad_rows_add(struct tpo_bad_rows *b, uint64_t index, int64_t row, const char *why)
{
    if (!bit_set(b, row, why)) return false;
    if (b->file == NULL) return true;
    line_write(b, index, row, why);
    if (fflush(b->file) != 0 || fdatasync(fileno(b->file)) != 0) file_lost(b, errno);
    return true;
}

int64_t tpo_bad_rows_count(const struct tpo_bad_rows *b)
{
    return b->count;
}

const char *tpo_bad_rows_first(const struct tpo_bad_rows *b)
{
    return b->first;
}
