/* bad_rows.h -- which rows of a source have a bad medium, and since which draw. Remembered in a file, so that a run that goes on counts those
 * that the run before it met.
 *
 *   rows N of WHICH  of the source, and a digest of what they are; others: the file is of other annotations, and nothing of it counts
 *   INDEX ROW WHY    a line for each, as they are found; INDEX: the first sample of the batch that met it
 *
 * Not locked: one thread at a time. */
#ifndef TPO_TRAINER_DATA_BAD_ROWS_H
#define TPO_TRAINER_DATA_BAD_ROWS_H

#include <stdbool.h>
#include <stdint.h>

#include "common/status.h"

struct tpo_bad_rows; /* opaque */

/* The source's rows: which of them are left out from the start, and counted elsewhere. */
struct tpo_bad_rows_of {
    int64_t n;
    const char *which;                                /* a word that names them; borrowed while opening */
    bool (*left_out)(const void *owner, int64_t row); /* NULL: none */
    const void *owner;
};

/* Takes over what `path` says of batches before sample `before`; later ones will be drawn again. NULL: nothing is remembered. On a full disk that
 * is logged, what the file says is known, and nothing more is remembered. FAILED_PRECONDITION "bad_rows" for a file that cannot be written
 * otherwise, TPO_ENOMEM. */
int tpo_bad_rows_open(struct tpo_bad_rows **out, const char *path, const struct tpo_bad_rows_of *rows, uint64_t before,
                      struct tpo_error *err);
void tpo_bad_rows_close(struct tpo_bad_rows *b); /* accepts NULL */

bool tpo_bad_rows_has(const struct tpo_bad_rows *b, int64_t row); /* or left out */
/* False for one that is known. On the disk when it returns; a disk that is full costs the memory of this row and those after it (it is
 * logged), not the run. */
bool tpo_bad_rows_add(struct tpo_bad_rows *b, uint64_t index, int64_t row, const char *why);
int64_t tpo_bad_rows_count(const struct tpo_bad_rows *b);     /* without those left out */
const char *tpo_bad_rows_first(const struct tpo_bad_rows *b); /* why the first one is; "" */

#endif
