/* This file owns the directory of media. */
#include "common/media/store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BUDGET_BYTES ((int64_t)4 << 30)
#define FILES_MAX    65536
#define SPARE        16 /* one in so many goes beyond what must, so that the next look is not due at the next file */
#define PART         "put-"
#define PART_AGE_S   3600 /* an older one belongs to nobody any more */

struct tpo_store {
    int dir;
    char path[PATH_MAX - 128];
    int64_t budget_bytes, file_bytes, files_max;
    pthread_mutex_t lock;
    int64_t bytes, files; /* under lock: found at the last look, and put since */
    time_t looked;        /* under lock */
};

struct tpo_store_writer {
    tpo_store_t *store;
    tpo_sha256_t *hash;
    int fd;
    int64_t size;
    char expected[TPO_SHA256_HEX], part[PATH_MAX];
};

static int make_path(const char *path)
{
    char part[PATH_MAX];
    if ((size_t)snprintf(part, sizeof(part), "%s", path) >= sizeof(part)) return -1;
    for (char *p = part + 1; *p != '\0'; p++) {
        if (*p != '/') continue;
        *p = '\0';
        if (mkdir(part, 0755) != 0 && errno != EEXIST) return -1;
        *p = '/';
    }
    return mkdir(part, 0700) == 0 || errno == EEXIST ? 0 : -1;
}

struct kept {
    char id[TPO_SHA256_HEX];
    int64_t size;
    struct timespec used;
};

static int compare(const void *a, const void *b)
{
    const struct kept *x = a, *y = b;
    if (x->used.tv_sec != y->used.tv_sec) return x->used.tv_sec < y->used.tv_sec ? -1 : 1;
    return (x->used.tv_nsec > y->used.tv_nsec) - (x->used.tv_nsec < y->used.tv_nsec);
}

/* One entry of the directory: a file of ours into the list, a forgotten part away, everything else is not ours to touch. */
static int look_at(tpo_store_t *s, const char *name, struct kept *k)
{
    struct stat st;
    if (fstatat(s->dir, name, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(st.st_mode)) return 0;
    if (strncmp(name, PART, sizeof(PART) - 1) == 0 && st.st_mtime + PART_AGE_S < time(NULL)) unlinkat(s->dir, name, 0);
    if (!tpo_sha256_is_hex(name)) return 0;
    memcpy(k->id, name, sizeof(k->id));
    k->size = st.st_size;
    k->used = st.st_mtim;
    return 1;
}

/* Under the lock: looks what is there. Where that is too much, what was used longest ago goes until the rest fits with some room to spare; `keep`
 * stays. */
static void clear_out(tpo_store_t *s, const char *keep)
{
    struct kept *list = NULL;
    size_t n = 0, room = 0;
    int64_t total = 0;
    s->looked = time(NULL);
    int again = openat(s->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = again >= 0 ? fdopendir(again) : NULL;
    if (d == NULL) {
        if (again >= 0) close(again);
        return;
    }
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        if (n == room) {
            struct kept *more = realloc(list, (room = room * 2 + 64) * sizeof(*list));
            if (more == NULL) break;
            list = more;
        }
        if (look_at(s, e->d_name, &list[n])) total += list[n++].size;
    }
    closedir(d);
    if (n > 0) qsort(list, n, sizeof(*list), compare);
    int64_t files = (int64_t)n, most_bytes = s->budget_bytes, most_files = s->files_max;
    if (total > most_bytes) most_bytes -= most_bytes / SPARE;
    if (files > most_files) most_files -= most_files / SPARE;
    for (size_t i = 0; i < n && (total > most_bytes || files > most_files); i++) {
        if (strcmp(list[i].id, keep) == 0 || unlinkat(s->dir, list[i].id, 0) != 0) continue;
        total -= list[i].size;
        files--;
    }
    s->bytes = total;
    s->files = files;
    free(list);
}

int tpo_store_open(tpo_store_t **out, const struct tpo_store_options *options, struct tpo_error *err)
{
    *out = NULL;
    tpo_store_t *s = calloc(1, sizeof(*s));
    if (s == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the media directory");
    s->dir = -1;
    s->budget_bytes = options->budget_bytes > 0 ? options->budget_bytes : BUDGET_BYTES;
    s->file_bytes = options->file_bytes > 0 && options->file_bytes < s->budget_bytes ? options->file_bytes : s->budget_bytes;
    s->files_max = options->files_max > 0 ? options->files_max : FILES_MAX;
    pthread_mutex_init(&s->lock, NULL);
    int fits = (size_t)snprintf(s->path, sizeof(s->path), "%s", options->dir) < sizeof(s->path);
    if (fits && s->path[0] != '\0' && make_path(s->path) == 0) s->dir = open(s->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->dir < 0 || faccessat(s->dir, ".", W_OK | X_OK, 0) != 0) {
        int rc = tpo_fail(err, TPO_UNAVAILABLE, "media_dir", "media directory %s: %s", options->dir, strerror(errno));
        tpo_store_close(s);
        return rc;
    }
    clear_out(s, "");
    *out = s;
    return TPO_OK;
}

void tpo_store_close(tpo_store_t *s)
{
    if (s == NULL) return;
    if (s->dir >= 0) close(s->dir);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

int tpo_store_fd(tpo_store_t *s, const char *id)
{
    if (!tpo_sha256_is_hex(id)) return -1;
    int fd = openat(s->dir, id, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd >= 0) futimens(fd, NULL); /* access times are off on many machines, so this is the record of use */
    return fd;
}

int tpo_store_write(tpo_store_t *s, tpo_store_writer_t **out, const char *id, struct tpo_error *err)
{
    *out = NULL;
    if (id != NULL && id[0] != '\0' && !tpo_sha256_is_hex(id))
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "media_id", "a media id is the SHA-256 of the bytes, 64 lower-case hex digits");
    tpo_store_writer_t *w = calloc(1, sizeof(*w));
    if (w == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for an upload");
    w->store = s;
    w->hash = tpo_sha256_open();
    if (id != NULL) memcpy(w->expected, id, strlen(id));
    snprintf(w->part, sizeof(w->part), "%s/" PART "XXXXXX", s->path);
    w->fd = mkostemp(w->part, O_CLOEXEC);
    if (w->fd >= 0) {
        *out = w;
        return TPO_OK;
    }
    w->part[0] = '\0';
    tpo_store_cancel(w);
    return tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "media_disk", "media directory: %s", strerror(errno));
}

int tpo_store_add(tpo_store_writer_t *w, const void *data, size_t bytes, struct tpo_error *err)
{
    const char *p = data;
    if (bytes > (uint64_t)(w->store->file_bytes - w->size))
        return tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "media_too_large", "a file may have %lld bytes",
                        (long long)w->store->file_bytes);
    tpo_sha256_add(w->hash, data, bytes);
    w->size += (int64_t)bytes;
    while (bytes > 0) {
        ssize_t n = write(w->fd, p, bytes);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "media_disk", "media directory: %s", strerror(errno));
        p += n;
        bytes -= (size_t)n;
    }
    return TPO_OK;
}

/* A part gets its name. Looking at all files takes as long as there are files, so that is left to when it is due. */
static int take_name(tpo_store_t *s, const tpo_store_writer_t *w, const char *id, struct tpo_error *err)
{
    char path[PATH_MAX];
    snprintf(path, sizeof(path), "%s/%s", s->path, id);
    pthread_mutex_lock(&s->lock);
    bool known = faccessat(s->dir, id, F_OK, 0) == 0;
    int rc = TPO_OK;
    if (rename(w->part, path) != 0)
        rc = tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "media_disk", "media directory: %s", strerror(errno));
    if (rc == TPO_OK && !known) {
        s->bytes += w->size;
        s->files++;
    }
    bool due = s->bytes > s->budget_bytes || s->files > s->files_max || time(NULL) - s->looked >= PART_AGE_S;
    if (rc == TPO_OK && due) clear_out(s, id);
    pthread_mutex_unlock(&s->lock);
    return rc;
}

int tpo_store_end(tpo_store_writer_t *w, char id[TPO_SHA256_HEX], int64_t *size_bytes, struct tpo_error *err)
{
    uint8_t digest[TPO_SHA256_BYTES];
    int rc = TPO_OK;
    tpo_sha256_end(w->hash, digest);
    tpo_sha256_hex(id, digest);
    *size_bytes = w->size;
    if (w->size == 0)
        rc = tpo_fail(err, TPO_INVALID_ARGUMENT, "media_empty", "the file is empty");
    else if (w->expected[0] != '\0' && strcmp(w->expected, id) != 0)
        rc = tpo_fail(err, TPO_INVALID_ARGUMENT, "media_hash", "the bytes hash to %s", id);
    if (rc == TPO_OK) rc = take_name(w->store, w, id, err);
    if (rc == TPO_OK) w->part[0] = '\0'; /* it has its name now */
    tpo_store_cancel(w);
    return rc;
}

void tpo_store_cancel(tpo_store_writer_t *w)
{
    if (w == NULL) return;
    if (w->fd >= 0) close(w->fd);
    if (w->part[0] != '\0') unlink(w->part);
    tpo_sha256_close(w->hash);
    free(w);
}
