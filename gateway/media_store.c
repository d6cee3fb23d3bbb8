/* This file owns the directory of media. */
#include "gateway/media_store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "common/sha256.h"

#define HIGH_WATER (1u << 20)
#define PART_AGE_S 3600
#define SWEEP_MS   60000

struct entry {
    struct entry *newer, *older;
    char id[65];
    uint64_t size;
    time_t used;
};

struct tpo_media_store {
    uv_loop_t *loop;
    uv_timer_t sweep;
    char dir[PATH_MAX - 80];
    struct tpo_media_settings s;
    struct entry *newest, *oldest;
    uint64_t bytes, incoming;
    int n, users; /* uploads and readers that live */
    bool closing;
};

/* --- what is there ------------------------------------------------------------------------------------------------------------------ */

static void list_remove(struct tpo_media_store *st, struct entry *e)
{
    *(e->newer != NULL ? &e->newer->older : &st->newest) = e->older;
    *(e->older != NULL ? &e->older->newer : &st->oldest) = e->newer;
}

static void list_push(struct tpo_media_store *st, struct entry *e)
{
    e->newer = NULL;
    e->older = st->newest;
    *(st->newest != NULL ? &st->newest->newer : &st->oldest) = e;
    st->newest = e;
}

static struct entry *find(struct tpo_media_store *st, const char *id)
{
    struct entry *e = st->newest;
    while (e != NULL && strcmp(e->id, id) != 0) e = e->older;
    return e;
}

void tpo_media_touch(struct tpo_media_store *st, const char *id)
{
    struct entry *e = find(st, id);
    if (e == NULL) return;
    e->used = time(NULL);
    list_remove(st, e);
    list_push(st, e);
}

static void entry_add(struct tpo_media_store *st, const char *id, uint64_t size, time_t used)
{
    struct entry *e = find(st, id);
    if (e != NULL) {
        tpo_media_touch(st, id);
        return;
    }
    e = calloc(1, sizeof(*e));
    if (e == NULL) return; /* the file is there all the same and will be found; it only isn't counted */
    snprintf(e->id, sizeof(e->id), "%s", id);
    e->size = size;
    e->used = used;
    st->bytes += size;
    st->n++;
    list_push(st, e);
}

static void on_unlinked(uv_fs_t *req)
{
    uv_fs_req_cleanup(req);
    free(req);
}

static void evict(struct tpo_media_store *st, struct entry *e)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", st->dir, e->id);
    uv_fs_t *req = malloc(sizeof(*req));
    if (req == NULL || uv_fs_unlink(st->loop, req, path, on_unlinked) < 0) free(req);
    tpo_log(TPO_LOG_INFO, "media_evicted", "media=%.12s bytes=%llu", e->id, (unsigned long long)e->size);
    list_remove(st, e);
    st->bytes -= e->size;
    st->n--;
    free(e);
}

static bool make_room(struct tpo_media_store *st)
{
    while (st->bytes + st->incoming > st->s.budget_bytes && st->oldest != NULL) evict(st, st->oldest);
    return st->bytes + st->incoming <= st->s.budget_bytes;
}

static void on_sweep(uv_timer_t *timer)
{
    struct tpo_media_store *st = timer->data;
    time_t now = time(NULL);
    while (st->oldest != NULL && now - st->oldest->used > st->s.ttl_s) evict(st, st->oldest);
}

static int by_time(const void *a, const void *b)
{
    time_t x = (*(struct entry *const *)a)->used, y = (*(struct entry *const *)b)->used;
    return x < y ? -1 : x > y;
}

static int scan(struct tpo_media_store *st, struct tpo_error *err)
{
    DIR *dir = opendir(st->dir);
    if (dir == NULL) return tpo_fail(err, TPO_UNAVAILABLE, "media_dir", "%.180s: %s", st->dir, strerror(errno));
    struct entry **found = NULL;
    size_t n = 0;
    char path[PATH_MAX];
    struct stat info;
    for (struct dirent *d; (d = readdir(dir)) != NULL;) {
        snprintf(path, sizeof(path), "%s/%.70s", st->dir, d->d_name);
        if (stat(path, &info) != 0) continue;
        /* A young .part may be another gateway's upload. */
        if (strncmp(d->d_name, "upload-", 7) == 0 && time(NULL) - info.st_mtime > PART_AGE_S) unlink(path);
        if (!tpo_sha256_is_hex(d->d_name)) continue;
        struct entry *e = calloc(1, sizeof(*e)), **more = realloc(found, (n + 1) * sizeof(*found));
        if (more != NULL) found = more;
        if (e == NULL || more == NULL) {
            free(e);
            break;
        }
        memcpy(e->id, d->d_name, 64);
        e->size = (uint64_t)info.st_size;
        e->used = info.st_mtime;
        found[n++] = e;
    }
    closedir(dir);
    if (n > 0) qsort(found, n, sizeof(*found), by_time);
    for (size_t i = 0; i < n; i++) {
        list_push(st, found[i]);
        st->bytes += found[i]->size;
        st->n++;
    }
    free(found);
    return TPO_OK;
}

static int make_dir(const char *path)
{
    char part[PATH_MAX];
    snprintf(part, sizeof(part), "%s", path);
    for (char *slash = part + 1; (slash = strchr(slash, '/')) != NULL; slash++) {
        *slash = '\0';
        mkdir(part, 0755);
        *slash = '/';
    }
    return mkdir(part, 0700) == 0 || errno == EEXIST ? 0 : -1;
}

int tpo_media_store_open(struct tpo_media_store **out, uv_loop_t *loop, const struct tpo_media_settings *s, struct tpo_error *err)
{
    struct tpo_media_store *st = calloc(1, sizeof(*st));
    if (st == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "out of memory");
    st->loop = loop;
    st->s = *s;
    snprintf(st->dir, sizeof(st->dir), "%s", s->dir);
    int rc = make_dir(st->dir) == 0 ? scan(st, err)
                                    : tpo_fail(err, TPO_UNAVAILABLE, "media_dir", "%.180s: %s", st->dir, strerror(errno));
    if (rc != TPO_OK) {
        free(st);
        return rc;
    }
    uv_timer_init(loop, &st->sweep);
    st->sweep.data = st;
    uv_timer_start(&st->sweep, on_sweep, SWEEP_MS, SWEEP_MS);
    uv_unref((uv_handle_t *)&st->sweep);
    make_room(st);
    *out = st;
    return TPO_OK;
}

static void on_store_closed(uv_handle_t *handle)
{
    struct tpo_media_store *st = handle->data;
    while (st->newest != NULL) {
        struct entry *e = st->newest;
        list_remove(st, e);
        free(e);
    }
    free(st);
}

static void close_if_unused(struct tpo_media_store *st)
{
    if (st->closing && st->users == 0) uv_close((uv_handle_t *)&st->sweep, on_store_closed);
}

void tpo_media_store_close(struct tpo_media_store *st)
{
    if (st == NULL) return;
    st->closing = true;
    close_if_unused(st);
}

uint64_t tpo_media_store_bytes(const struct tpo_media_store *st)
{
    return st->bytes;
}

int tpo_media_store_files(const struct tpo_media_store *st)
{
    return st->n;
}

/* --- uploads: `gather` fills on the loop while `busy` is written by a work thread ----------------------------------------------------- */

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
    u->store->users--;
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
    if (u->err.code == TPO_OK && u->id[0] != '\0') entry_add(u->store, u->id, u->size, time(NULL));
    struct tpo_media_store *st = u->store;
    uint64_t size = u->size;
    if (!u->cancelled) u->on_done(u->owner, u->id, size, &u->err);
    upload_free(u);
    make_room(st);
    close_if_unused(st);
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
    else if (!make_room(st)) {
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

size_t tpo_upload_backlog(const struct tpo_upload *u)
{
    return u->gather.size;
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

/* --- readers -------------------------------------------------------------------------------------------------------------------------- */

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
    if (r->fd < 0) {
        tpo_fail(&r->err, TPO_NOT_FOUND, "media_unknown", "no media of this id is here; send it again");
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
    st->users--;
    close_if_unused(st);
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
