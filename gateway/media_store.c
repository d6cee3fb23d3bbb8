/* This file owns the directory of media, its files in order of use. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/log.h"
#include "common/sha256.h"
#include "gateway/media_store_private.h"

#define PART_AGE_S 3600
#define SWEEP_MS   60000
#define FILES_MAX  65536

struct stored {
    struct stored *newer, *older;
    char id[65];
    uint64_t size;
    time_t used;
};

static void list_remove(struct tpo_media_store *st, struct stored *e)
{
    *(e->newer != NULL ? &e->newer->older : &st->newest) = e->older;
    *(e->older != NULL ? &e->older->newer : &st->oldest) = e->newer;
}

static void list_push(struct tpo_media_store *st, struct stored *e)
{
    e->newer = NULL;
    e->older = st->newest;
    *(st->newest != NULL ? &st->newest->newer : &st->oldest) = e;
    st->newest = e;
}

static int by_id(const void *a, const void *b)
{
    return strcmp(((const struct stored *)a)->id, ((const struct stored *)b)->id);
}

static struct stored *find(struct tpo_media_store *st, const char *id)
{
    struct stored key;
    snprintf(key.id, sizeof(key.id), "%s", id);
    struct stored *const *found = tfind(&key, &st->by_id, by_id);
    return found != NULL ? *found : NULL;
}

/* Takes e. Without memory it isn't counted, but the file is there all the same and will be found. */
static void insert(struct tpo_media_store *st, struct stored *e)
{
    if (tsearch(e, &st->by_id, by_id) == NULL) {
        free(e);
        return;
    }
    list_push(st, e);
    st->bytes += e->size;
    st->n++;
}

static void forget(struct tpo_media_store *st, struct stored *e)
{
    tdelete(e, &st->by_id, by_id);
    list_remove(st, e);
    st->bytes -= e->size;
    st->n--;
    free(e);
}

bool tpo_media_touch(struct tpo_media_store *st, const char *id)
{
    struct stored *e = find(st, id);
    if (e == NULL) return false;
    e->used = time(NULL);
    list_remove(st, e);
    list_push(st, e);
    return true;
}

void tpo_media_store_add(struct tpo_media_store *st, const char *id, uint64_t size, time_t used)
{
    if (tpo_media_touch(st, id)) return;
    struct stored *e = calloc(1, sizeof(*e));
    if (e == NULL) return;
    snprintf(e->id, sizeof(e->id), "%s", id);
    e->size = size;
    e->used = used;
    insert(st, e);
}

static void on_unlinked(uv_fs_t *req)
{
    uv_fs_req_cleanup(req);
    free(req);
}

static void evict(struct tpo_media_store *st, struct stored *e)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", st->dir, e->id);
    uv_fs_t *req = malloc(sizeof(*req));
    if (req == NULL || uv_fs_unlink(st->loop, req, path, on_unlinked) < 0) free(req);
    tpo_log(TPO_LOG_INFO, "media_evicted", "media=%.12s bytes=%llu", e->id, (unsigned long long)e->size);
    forget(st, e);
}

bool tpo_media_store_make_room(struct tpo_media_store *st)
{
    while ((st->n > st->s.files_max || st->bytes + st->incoming > st->s.budget_bytes) && st->oldest != NULL) evict(st, st->oldest);
    return st->bytes + st->incoming <= st->s.budget_bytes;
}

/* --- one that may have come by another way ------------------------------------------------------------------------------------------- */

struct look {
    uv_fs_t req;
    struct tpo_media_store *store;
    char id[65];
    void (*on_known)(void *owner, bool known);
    void *owner;
};

static void on_stat(uv_fs_t *req)
{
    struct look *l = req->data;
    const bool known = req->result == 0 && S_ISREG(req->statbuf.st_mode);
    if (known) tpo_media_store_add(l->store, l->id, req->statbuf.st_size, time(NULL));
    uv_fs_req_cleanup(req);
    l->on_known(l->owner, known);
    tpo_media_store_release(l->store);
    free(l);
}

bool tpo_media_look(struct tpo_media_store *st, const char *id, void (*on_known)(void *owner, bool known), void *owner)
{
    char path[PATH_MAX];
    struct look *l = calloc(1, sizeof(*l));
    if (l == NULL) return false;
    *l = (struct look){.store = st, .on_known = on_known, .owner = owner};
    l->req.data = l;
    snprintf(l->id, sizeof(l->id), "%s", id);
    snprintf(path, sizeof(path), "%s/%s", st->dir, id);
    if (uv_fs_stat(st->loop, &l->req, path, on_stat) < 0) {
        free(l);
        return false;
    }
    st->users++;
    return true;
}

/* --- opening and closing --------------------------------------------------------------------------------------------------------------- */

static void on_sweep(uv_timer_t *timer)
{
    struct tpo_media_store *st = timer->data;
    time_t now = time(NULL);
    while (st->oldest != NULL && now - st->oldest->used > st->s.ttl_s) evict(st, st->oldest);
}

static int by_time(const void *a, const void *b)
{
    time_t x = (*(struct stored *const *)a)->used, y = (*(struct stored *const *)b)->used;
    return x < y ? -1 : x > y;
}

static int scan(struct tpo_media_store *st, struct tpo_error *err)
{
    DIR *dir = opendir(st->dir);
    if (dir == NULL) return tpo_fail(err, TPO_UNAVAILABLE, "media_dir", "%.180s: %s", st->dir, strerror(errno));
    struct stored **found = NULL;
    size_t n = 0;
    char path[PATH_MAX];
    struct stat info;
    for (struct dirent *d; (d = readdir(dir)) != NULL;) {
        snprintf(path, sizeof(path), "%s/%.70s", st->dir, d->d_name);
        if (stat(path, &info) != 0) continue;
        /* A young .part may be another gateway's upload. */
        if (strncmp(d->d_name, "upload-", 7) == 0 && time(NULL) - info.st_mtime > PART_AGE_S) unlink(path);
        if (!tpo_sha256_is_hex(d->d_name)) continue;
        struct stored *e = calloc(1, sizeof(*e)), **more = realloc(found, (n + 1) * sizeof(*found));
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
    for (size_t i = 0; i < n; i++) insert(st, found[i]);
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
    if (st->s.files_max <= 0) st->s.files_max = FILES_MAX;
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
    tpo_media_store_make_room(st);
    *out = st;
    return TPO_OK;
}

static void on_store_closed(uv_handle_t *handle)
{
    struct tpo_media_store *st = handle->data;
    while (st->newest != NULL) forget(st, st->newest);
    free(st);
}

static void close_if_unused(struct tpo_media_store *st)
{
    if (st->closing && st->users == 0) uv_close((uv_handle_t *)&st->sweep, on_store_closed);
}

void tpo_media_store_release(struct tpo_media_store *st)
{
    st->users--;
    close_if_unused(st);
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
