/* store.h -- a service's own copies of media, in files named by their SHA-256 below one directory.
 *
 * Bytes stream to a temporary file while they are hashed and take their name when they are whole. What is stored counts against a budget: the file
 * that was not asked for the longest goes first. The directory may be shared with a gateway's or another service's (the layout is the same);
 * each of them counts what it found there when it looked last and what it has put there since, and looks again when that is too much, at least once
 * an hour. Losing a file is never wrong: whoever needs it answers "media_missing" and gets it again. Any thread may call. */
#ifndef TPO_COMMON_MEDIA_STORE_H
#define TPO_COMMON_MEDIA_STORE_H

#include <stddef.h>
#include <stdint.h>

#include "common/sha256.h"
#include "common/status.h"

struct tpo_store_options {
    const char *dir;      /* made, with its parents, where missing */
    int64_t budget_bytes; /* 0: 4 GiB */
    int64_t file_bytes;   /* of one file; 0: the budget */
    int files_max;        /* 0: 65,536 */
};

typedef struct tpo_store tpo_store_t;
typedef struct tpo_store_writer tpo_store_writer_t;

/* UNAVAILABLE "media_dir" when the directory cannot be used. */
int tpo_store_open(tpo_store_t **out, const struct tpo_store_options *options, struct tpo_error *err);
void tpo_store_close(tpo_store_t *s); /* no writer may be open; accepts NULL */

/* A descriptor of that file, the caller's to close, and the file counts as used now; -1 when it is not here (also for what is no id). */
int tpo_store_fd(tpo_store_t *s, const char *id);

/* `id` is what the bytes must hash to; NULL or "": whatever they do. INVALID_ARGUMENT "media_id" when it is none. */
int tpo_store_write(tpo_store_t *s, tpo_store_writer_t **out, const char *id, struct tpo_error *err);
/* RESOURCE_EXHAUSTED "media_too_large" past the limits, "media_disk" when writing fails; only cancel is left then. */
int tpo_store_add(tpo_store_writer_t *w, const void *data, size_t bytes, struct tpo_error *err);
/* The file is there when this returns TPO_OK. INVALID_ARGUMENT "media_hash" or "media_empty", RESOURCE_EXHAUSTED "media_disk"; frees w in any
 * case. */
int tpo_store_end(tpo_store_writer_t *w, char id[TPO_SHA256_HEX], int64_t *size_bytes, struct tpo_error *err);
void tpo_store_cancel(tpo_store_writer_t *w); /* accepts NULL */

#endif
