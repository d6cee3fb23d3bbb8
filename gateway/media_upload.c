/* This file owns an upload into the directory of media: `gather` fills on the loop while `busy` is written by a work thread. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "common/sha256.h"
#include "gateway/media_store_private.h"

#define HIGH_WATER (1u << 20)

struct buffer {
    char *data;
    size_t size, capacity;
};

struct tpo_upload {
    struct tpo_media_store *store;
    uv_work_t work;
    void (*on_room)(void *owner);
    void (*on_done)(void *owner, const char *id, uint64_t size, const struct tpo_error *err);
    void *owner;
    char expected[65];
    struct buffer gather, busy;
    uint64_t size;
    bool working, ended, cancelled, wants_room;
    struct tpo_error refused; /* the loop's error */
    /* the work thread's while `working` */
    struct tpo_error err;
    bool finishing, dropped;
    int fd;
    tpo_sha256_t *hash;
    char part[PATH_MAX], id[65];
};

static void work_write(struct tpo_upload *u)
{
    if (u->fd < 0) {
        snprintf(u->part, sizeof(u->part), "%s/upload-XXXXXX", u->store->dir);
        u->fd = mkostemp(u->part, O_CLOEXEC);
        if (u->fd < 0) {
            u->part[0] = '\0';
            tpo_fail(&u->err, TPO_RESOURCE_EXHAUSTED, "media_disk", "media directory: %s", strerror(errno));
            return;
        }
    }
    tpo_sha256_add(u->hash, u->busy.data, u->busy.size);
    for (size_t at = 0; at < u->busy.size;) {
        ssize_t n = write(u->fd, u->busy.data + at, u->busy.size - at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            tpo_fail(&u->err, TPO_RESOURCE_EXHAUSTED, "media_disk", "media directory: %s", strerror(n < 0 ? errno : ENOSPC));
            return;
        }
        at += (size_t)n;
    }
}

static void work_finish(struct tpo_upload *u)
{
    uint8_t digest[TPO_SHA256_BYTES];
    tpo_sha256_end(u->hash, digest);
    tpo_sha256_hex(u->id, digest);
    if (u->expected[0] != '\0' && strcmp(u->expected, u->id) != 0) {
        tpo_fail(&u->err, TPO_INVALID_ARGUMENT, "media_hash", "the bytes hash to %.16s..., not to the id given", u->id);
        return;
    }
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", u->store->dir, u->id);
    if (rename(u->part, path) != 0)
        tpo_fail(&u->err, TPO_RESOURCE_EXHAUSTED, "media_disk", "media directory: %s", strerror(errno));
    else
        u->part[0] = '\0';
}

static void on_work(uv_work_t *work)
{
    struct tpo_upload *u = work->data;
    if (u->err.code == TPO_OK && !u->dropped && u->busy.size > 0) work_write(u);
    if (!u->finishing) return;
    if (u->err.code == TPO_OK && !u->dropped) work_finish(u);
    if (u->fd >= 0) close(u->fd);
    u->fd = -1;
    if (u->part[0] != '\0') unlink(u->part);
}

static void upload_free(struct tpo_upload *u)
{
    u->store->incoming -= u->size;
    tpo_sha256_close(u->hash);
    free(u->gather.data);
    free(u->busy.data);
    free(u);
}

static void start_work(struct tpo_upload *u);

static void on_worked(uv_work_t *work, int status)
{
    (void)status;
    struct tpo_upload *u = work->data;
    u->working = false;
    u->busy.size = 0;
    if (!u->finishing) {
        if (u->gather.size > 0 || u->ended || u->cancelled || u->err.code != TPO_OK) start_work(u);
        if (u->wants_room && !u->cancelled && u->on_room != NULL && u->err.code == TPO_OK && u->gather.size < HIGH_WATER) {
            u->wants_room = false;
            u->on_room(u->owner);
        }
        return;
    }
    if (u->refused.code != TPO_OK) u->err = u->refused;
    if (u->err.code == TPO_OK && u->id[0] != '\0') tpo_media_store_add(u->store, u->id, u->size, time(NULL));
    struct tpo_media_store *st = u->store;
    uint64_t size = u->size;
    if (!u->cancelled) u->on_done(u->owner, u->id, size, &u->err);
    upload_free(u);
    tpo_media_store_make_room(st);
    tpo_media_store_release(st);
}

static void start_work(struct tpo_upload *u)
{
    if (u->working) return;
    struct buffer full = u->gather;
    u->gather = u->busy;
    u->busy = full;
    u->working = true;
    u->dropped = u->cancelled || u->refused.code != TPO_OK;
    u->finishing = u->ended || u->cancelled || u->err.code != TPO_OK;
    uv_queue_work(u->store->loop, &u->work, on_work, on_worked);
}

struct tpo_upload *tpo_upload_open(struct tpo_media_store *st, const char *expected, void (*on_room)(void *owner),
                                   void (*on_done)(void *owner, const char *id, uint64_t size, const struct tpo_error *err),
                                   void *owner)
{
    struct tpo_upload *u = calloc(1, sizeof(*u));
    if (u == NULL) return NULL;
    u->hash = tpo_sha256_open();
    u->store = st;
    st->users++;
    u->work.data = u;
    u->on_room = on_room;
    u->on_done = on_done;
    u->owner = owner;
    u->fd = -1;
    snprintf(u->expected, sizeof(u->expected), "%s", expected != NULL ? expected : "");
    return u;
}

static void upload_fail(struct tpo_upload *u, const struct tpo_error *err)
{
    u->ended = true;
    u->refused = *err;
    start_work(u);
}

bool tpo_upload_add(struct tpo_upload *u, const void *data, size_t size)
{
    if (u->ended || u->cancelled) return true;
    struct tpo_media_store *st = u->store;
    struct tpo_error err = {0};
    st->incoming += size;
    u->size += size;
    if (u->size > st->s.file_max_bytes)
        tpo_fail(&err, TPO_INVALID_ARGUMENT, "media_too_large", "over %llu bytes", (unsigned long long)st->s.file_max_bytes);
    else if (!tpo_media_store_make_room(st)) {
        tpo_fail(&err, TPO_RESOURCE_EXHAUSTED, "media_full", "no room for more uploads just now");
        err.retry_ms = 1000;
    }
    struct buffer *b = &u->gather;
    if (err.code == TPO_OK && b->size + size > b->capacity) {
        size_t capacity = b->capacity < 65536 ? 65536 : b->capacity;
        while (capacity < b->size + size) capacity *= 2;
        char *more = realloc(b->data, capacity);
        if (more == NULL)
            tpo_fail(&err, TPO_ENOMEM, "memory", "out of memory");
        else
            b->data = more, b->capacity = capacity;
    }
    if (err.code != TPO_OK) {
        upload_fail(u, &err);
        return true;
    }
    memcpy(b->data + b->size, data, size);
    b->size += size;
    start_work(u);
    if (u->gather.size < HIGH_WATER) return true;
    u->wants_room = true;
    return false;
}

void tpo_upload_end(struct tpo_upload *u)
{
    if (u->ended || u->cancelled) return;
    struct tpo_error err;
    if (u->size == 0) {
        tpo_fail(&err, TPO_INVALID_ARGUMENT, "media_empty", "no bytes came");
        upload_fail(u, &err);
        return;
    }
    u->ended = true;
    start_work(u);
}

void tpo_upload_cancel(struct tpo_upload *u)
{
    u->cancelled = true;
    start_work(u);
}
