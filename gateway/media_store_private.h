/* media_store_private.h -- the directory's state, for media_store.c, media_upload.c and media_reader.c alone. */
#ifndef TPO_GATEWAY_MEDIA_STORE_PRIVATE_H
#define TPO_GATEWAY_MEDIA_STORE_PRIVATE_H

#include <limits.h>
#include <time.h>

#include "gateway/media_store.h"

struct stored; /* one file */

struct tpo_media_store {
    uv_loop_t *loop;
    uv_timer_t sweep;
    char dir[PATH_MAX - 80];
    struct tpo_media_settings s;
    struct stored *newest, *oldest;
    void *by_id; /* the same, as a tree of tsearch */
    uint64_t bytes, incoming;
    int n, users; /* uploads, readers and looks that live */
    bool closing;
};

/* A file that is whole now. */
void tpo_media_store_add(struct tpo_media_store *st, const char *id, uint64_t size, time_t used);
/* The oldest go until no more files are stored than may be and they fit the budget with what comes in; false: they don't, though nothing is left
 * to go. */
bool tpo_media_store_make_room(struct tpo_media_store *st);
void tpo_media_store_release(struct tpo_media_store *st); /* one of its users; the last one of a store that closes frees it */

#endif
