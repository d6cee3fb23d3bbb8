/* This file owns the reading of one file of the directory of media. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gateway/media_store_private.h"

struct tpo_media_reader {
    struct tpo_media_store *store;
    uv_work_t work;
    void (*on_data)(void *owner, const void *data, size_t size, const struct tpo_error *err);
    void *owner;
    char path[PATH_MAX];
    int fd;
    char *data;
    size_t size;
    bool working, closed;
    struct tpo_error err;
};

static void on_read_work(uv_work_t *work)
{
    struct tpo_media_reader *r = work->data;
    r->size = 0;
    if (r->fd < 0) r->fd = open(r->path, O_RDONLY | O_CLOEXEC);
    if (r->fd < 0 && errno == ENOENT) {
        tpo_fail(&r->err, TPO_NOT_FOUND, "media_unknown", "no media of this id is here; send it again");
        return;
    }
    if (r->fd < 0) {
        /* Too many open files, most likely: it may be there, and sending it again would not help. */
        tpo_fail(&r->err, TPO_UNAVAILABLE, "media_disk", "media directory: %s", strerror(errno));
        r->err.retry_ms = 1000;
        return;
    }
    while (r->size < TPO_MEDIA_CHUNK) {
        ssize_t n = read(r->fd, r->data + r->size, TPO_MEDIA_CHUNK - r->size);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) tpo_fail(&r->err, TPO_DATA_LOSS, "media_disk", "media directory: %s", strerror(errno));
        if (n <= 0) return;
        r->size += (size_t)n;
    }
}

static void reader_free(struct tpo_media_reader *r)
{
    struct tpo_media_store *st = r->store;
    if (r->fd >= 0) close(r->fd);
    free(r->data);
    free(r);
    tpo_media_store_release(st);
}

static void on_read_done(uv_work_t *work, int status)
{
    (void)status;
    struct tpo_media_reader *r = work->data;
    r->working = false;
    if (r->closed)
        reader_free(r);
    else
        r->on_data(r->owner, r->data, r->size, &r->err);
}

struct tpo_media_reader *
tpo_media_reader_open(struct tpo_media_store *st, const char *id,
                      void (*on_data)(void *owner, const void *data, size_t size, const struct tpo_error *err), void *owner)
{
    struct tpo_media_reader *r = calloc(1, sizeof(*r));
    char *data = malloc(TPO_MEDIA_CHUNK);
    if (r == NULL || data == NULL) {
        free(r);
        free(data);
        return NULL;
    }
    r->store = st;
    st->users++;
    r->work.data = r;
    r->on_data = on_data;
    r->owner = owner;
    r->data = data;
    r->fd = -1;
    snprintf(r->path, sizeof(r->path), "%s/%s", st->dir, id);
    tpo_media_touch(st, id);
    return r;
}

void tpo_media_reader_next(struct tpo_media_reader *r)
{
    TPO_ASSERT(!r->working);
    r->working = true;
    uv_queue_work(r->store->loop, &r->work, on_read_work, on_read_done);
}

void tpo_media_reader_close(struct tpo_media_reader *r)
{
    if (r == NULL) return;
    r->closed = true;
    if (!r->working) reader_free(r);
}
