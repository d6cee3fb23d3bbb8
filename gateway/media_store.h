/* media_store.h -- the bytes that clients sent, in files named by their SHA-256 below one directory.
 *
 * Uploads are hashed while they stream to a .part file that is renamed once it is whole; nothing is ever whole in memory, and the
 * disk is touched by the loop's work threads only. What is stored counts against a budget of bytes and one of files: the least recently used goes
 * first, and what wasn't used for `ttl_s` goes anyway. The directory may be shared with another gateway: a file that appeared there
 * is found when it is asked for. Losing a file is never wrong: an answer that needs it becomes NOT_FOUND "media_unknown".
 *
 * Everything is called on the loop's thread, and calls back from the loop, later. */
#ifndef TPO_GATEWAY_MEDIA_STORE_H
#define TPO_GATEWAY_MEDIA_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "common/status.h"

#define TPO_MEDIA_CHUNK (1u << 20) /* bytes a reader hands out at once */

struct tpo_media_store;
struct tpo_upload;
struct tpo_media_reader;

struct tpo_media_settings {
    const char *dir; /* made where missing */
    uint64_t budget_bytes, file_max_bytes;
    int files_max; /* 0: 65,536 */
    int ttl_s;
};

/* Looks at what is there already. UNAVAILABLE "media_dir" when the directory can't be used. */
int tpo_media_store_open(struct tpo_media_store **out, uv_loop_t *loop, const struct tpo_media_settings *s, struct tpo_error *err);
/* Frees when the last upload and reader are gone (all must be cancelled, closed or at their end) and the loop has run its callbacks. */
void tpo_media_store_close(struct tpo_media_store *store);
uint64_t tpo_media_store_bytes(const struct tpo_media_store *store);
int tpo_media_store_files(const struct tpo_media_store *store);
/* The file was used now. False: it isn't counted here; look whether it lies there. */
bool tpo_media_touch(struct tpo_media_store *store, const char *id);
/* Whether a file of this id lies in the directory, put there by another gateway: then it is counted here, too. on_known always comes, but
 * where this answers false: out of memory. */
bool tpo_media_look(struct tpo_media_store *store, const char *id, void (*on_known)(void *owner, bool known), void *owner);

/* on_room: more may be added after tpo_upload_add answered false; may be NULL. on_done comes once, after tpo_upload_end or at the
 * first error (err->code != TPO_OK), and frees the upload. `expected` is the id the client announced, or "" or NULL.
 * Errors: INVALID_ARGUMENT "media_hash", "media_empty", "media_too_large"; RESOURCE_EXHAUSTED "media_full", "media_disk". */
struct tpo_upload *tpo_upload_open(struct tpo_media_store *store, const char *expected, void (*on_room)(void *owner),
                                   void (*on_done)(void *owner, const char *id, uint64_t size, const struct tpo_error *err),
                                   void *owner);
bool tpo_upload_add(struct tpo_upload *u, const void *data, size_t size); /* copies; false: wait for on_room */
void tpo_upload_end(struct tpo_upload *u);
void tpo_upload_cancel(struct tpo_upload *u); /* no callback comes any more */

/* Reads one file in order. on_data comes once per tpo_media_reader_next: data is borrowed during the call, size 0 means the end.
 * NOT_FOUND "media_unknown" when there is no such file; UNAVAILABLE "media_disk" when it cannot be opened, DATA_LOSS when it cannot be read. */
struct tpo_media_reader *
tpo_media_reader_open(struct tpo_media_store *store, const char *id,
                      void (*on_data)(void *owner, const void *data, size_t size, const struct tpo_error *err), void *owner);
void tpo_media_reader_next(struct tpo_media_reader *r);
void tpo_media_reader_close(struct tpo_media_reader *r); /* at any time; no callback comes any more */

#endif
