/* This file owns the lock on a run's folder, and what is remembered of the processes that hold its state. */
#include "trainer/steps/held.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "common/files.h"
#include "common/log.h"

struct tpo_held {
    char dir[3000], token[40];
    char folder[64]; /* which folder this is, whatever its name */
    int lock;
    char run[64];
    char instances[TPO_PARTS][TPO_REPLICAS_MAX][64];
    uint64_t leases[TPO_PARTS][TPO_REPLICAS_MAX];
};

#define NOBODY "-" /* in place of an instance that another trainer has used since; "" would end the list */

/* Who asks whether a trainer is here (tpo_held_is) holds the lock for a moment: it is tried again for half a second. */
#define LOCK_TRIES  10
#define LOCK_NAP_NS 50000000L

static int lock_take(const char *dir, int *fd, struct tpo_error *err)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/lock", dir);
    *fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (*fd < 0) return tpo_fail(err, TPO_FAILED_PRECONDITION, "out", "%.200s: %s", path, strerror(errno));
    for (int n = 0; n < LOCK_TRIES; n++) {
        if (flock(*fd, LOCK_EX | LOCK_NB) == 0) return TPO_OK;
        nanosleep(&(struct timespec){.tv_nsec = LOCK_NAP_NS}, NULL);
    }
    close(*fd);
    *fd = -1;
    return tpo_fail(err, TPO_FAILED_PRECONDITION, "out_locked", "another trainer works on %.200s", dir);
}

bool tpo_held_is(const char *dir)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/lock", dir);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const bool held = fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) != 0;
    if (fd >= 0) close(fd);
    return held;
}

static bool part_write(const char *part, int flags, const char *text, bool sync)
{
    const int fd = open(part, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0644);
    const size_t n = strlen(text);
    const bool ok = fd >= 0 && tpo_write_all(fd, text, n) && ftruncate(fd, (off_t)n) == 0 && (!sync || fsync(fd) == 0);
    const int why = errno;
    if (fd >= 0) close(fd);
    errno = why;
    return ok;
}

static int file_put(const char *path, const char *text, bool sync, struct tpo_error *err)
{
    char part[4200];
    snprintf(part, sizeof(part), "%s.part", path);
    return part_write(part, O_TRUNC, text, sync) && rename(part, path) == 0 ? TPO_OK : tpo_fail_write(err, path);
}

/* Into the file that this one replaced the last time, whose blocks are there: on a full disk, too, it is written down whom to believe, and services
 * that died are given back what they held. */
static int file_swap(const char *path, const char *text, struct tpo_error *err)
{
    char part[4200];
    snprintf(part, sizeof(part), "%s.part", path);
    if (!part_write(part, 0, text, true)) return tpo_fail_write(err, path);
    const bool swapped = renameat2(AT_FDCWD, part, AT_FDCWD, path, RENAME_EXCHANGE) == 0;
    return swapped || rename(part, path) == 0 ? TPO_OK : tpo_fail_write(err, path);
}

int tpo_small_file(const char *path, const char *text, struct tpo_error *err)
{
    return file_put(path, text, true, err);
}

int tpo_passing_file(const char *path, const char *text, struct tpo_error *err)
{
    return file_put(path, text, false, err);
}

/* --- run.json ------------------------------------------------------------------------------------------------------------------------ */

static void instances_read(struct tpo_held *h, const json_t *j, const json_t *leases)
{
    for (int p = 0; p < TPO_PARTS; p++) {
        const json_t *list = json_object_get(j, tpo_part_names[p]), *numbers = json_object_get(leases, tpo_part_names[p]);
        for (size_t r = 0; r < json_array_size(numbers) && r < TPO_REPLICAS_MAX; r++)
            h->leases[p][r] = (uint64_t)json_integer_value(json_array_get(numbers, r));
        for (size_t r = 0; r < json_array_size(list) && r < TPO_REPLICAS_MAX; r++) {
            const char *text = json_string_value(json_array_get(list, r));
            snprintf(h->instances[p][r], sizeof(h->instances[p][r]), "%s", text != NULL ? text : "");
        }
    }
}

static int note_write(const struct tpo_held *h, struct tpo_error *err)
{
    char path[4096];
    json_t *instances = json_object(), *leases = json_object();
    json_t *j = json_pack("{s:s s:s s:s s:o s:o}", "holder", h->token, "folder", h->folder, "run", h->run, "instances", instances,
                          "leases", leases);
    for (int p = 0; p < TPO_PARTS; p++) {
        json_t *list = json_array();
        for (int r = 0; r < TPO_REPLICAS_MAX && h->instances[p][r][0] != '\0'; r++)
            json_array_append_new(list, json_string(h->instances[p][r]));
        json_object_set_new(instances, tpo_part_names[p], list);
        json_t *numbers = json_array();
        for (int r = 0; r < TPO_REPLICAS_MAX && h->leases[p][r] != 0; r++)
            json_array_append_new(numbers, json_integer((json_int_t)h->leases[p][r]));
        json_object_set_new(leases, tpo_part_names[p], numbers);
    }
    char *text = json_dumps(j, JSON_INDENT(2));
    snprintf(path, sizeof(path), "%s/run.json", h->dir);
    int rc = text != NULL ? file_swap(path, text, err) : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for run.json");
    free(text);
    json_decref(j);
    return rc;
}

/* Of the lock's file, which is made once and never replaced: a copy's is another. Unlike a device's number, these outlast a mount on another
 * machine. */
static int folder_name(struct tpo_held *h, struct tpo_error *err)
{
    struct statx x;
    if (statx(h->lock, "", AT_EMPTY_PATH, STATX_INO | STATX_MTIME | STATX_BTIME, &x) != 0)
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "out", "%.200s/lock: %s", h->dir, strerror(errno));
    const struct statx_timestamp *made = (x.stx_mask & STATX_BTIME) != 0 ? &x.stx_btime : &x.stx_mtime;
    snprintf(h->folder, sizeof(h->folder), "%llu-%lld.%09u", (unsigned long long)x.stx_ino, (long long)made->tv_sec, made->tv_nsec);
    return TPO_OK;
}

/* The token is kept from one trainer of this folder to the next, so that the lease is its own: the lock tells that the one before is gone. That
 * of a copied folder is another's; older builds wrote no folder. */
static int note_read(struct tpo_held *h, struct tpo_error *err)
{
    char path[4096], quoted[3100];
    uint8_t bytes[16];
    snprintf(path, sizeof(path), "%s/run.json", h->dir);
    json_t *j = json_load_file(path, 0, NULL);
    const char *token = json_string_value(json_object_get(j, "holder")), *run = json_string_value(json_object_get(j, "run")),
               *folder = json_string_value(json_object_get(j, "folder"));
    const bool other = folder != NULL && strcmp(folder, h->folder) != 0;
    if (other) tpo_log(TPO_LOG_WARN, "other_folder", "path=%s", tpo_log_quote(quoted, sizeof(quoted), h->dir));
    if (token != NULL && token[0] != '\0' && !other) {
        snprintf(h->token, sizeof(h->token), "%s", token);
        snprintf(h->run, sizeof(h->run), "%s", run != NULL ? run : "");
        instances_read(h, json_object_get(j, "instances"), json_object_get(j, "leases"));
        json_decref(j);
        return TPO_OK;
    }
    json_decref(j);
    if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes)) return tpo_fail(err, TPO_INTERNAL, "random", "no random bytes");
    for (size_t i = 0; i < sizeof(bytes); i++) snprintf(h->token + 2 * i, 3, "%02x", bytes[i]);
    return note_write(h, err);
}

int tpo_held_open(struct tpo_held **out, const char *dir, struct tpo_error *err)
{
    struct tpo_held *h = calloc(1, sizeof(*h));
    if (h == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a lock");
    snprintf(h->dir, sizeof(h->dir), "%s", dir);
    int rc = lock_take(dir, &h->lock, err);
    if (rc == TPO_OK) rc = folder_name(h, err);
    if (rc == TPO_OK) rc = note_read(h, err);
    if (rc != TPO_OK)
        tpo_held_close(h);
    else
        *out = h;
    return rc;
}

void tpo_held_close(struct tpo_held *h)
{
    if (h == NULL) return;
    if (h->lock >= 0) close(h->lock);
    free(h);
}

const char *tpo_held_token(const struct tpo_held *h)
{
    return h->token;
}

bool tpo_held_knows(const struct tpo_held *h, const struct tpo_crew *t, int part, int replica, bool of_any_run)
{
    const struct tpo_replica *x = &t->replicas[part][replica];
    return !x->taken && (of_any_run || strcmp(h->run, t->run) == 0) && strcmp(h->instances[part][replica], x->begun.instance) == 0;
}

void tpo_held_leases(const struct tpo_held *h, struct tpo_crew *t)
{
    for (int p = 0; p < TPO_PARTS; p++)
        for (int r = 0; r < t->options.n_replicas[p]; r++) t->replicas[p][r].lease = h->leases[p][r];
}

int tpo_held_begun(struct tpo_held *h, const struct tpo_crew *t, struct tpo_error *err)
{
    memset(h->leases, 0, sizeof(h->leases));
    for (int p = 0; p < TPO_PARTS; p++)
        for (int r = 0; r < t->options.n_replicas[p]; r++) {
            h->leases[p][r] = t->replicas[p][r].lease;
            if (t->replicas[p][r].taken) snprintf(h->instances[p][r], sizeof(h->instances[p][r]), "%s", NOBODY);
        }
    struct tpo_error why = {0};
    const int rc = note_write(h, &why);
    /* Old leases on a full disk make a later trainer go back to the last manifest, which is safe. */
    if (rc == TPO_OK || strcmp(why.reason, "disk_full") == 0) return TPO_OK;
    if (err != NULL) *err = why;
    return rc;
}

int tpo_held_note(struct tpo_held *h, struct tpo_crew *t, bool known, struct tpo_error *err)
{
    for (int p = 0; p < TPO_PARTS && known; p++)
        for (int r = 0; r < t->options.n_replicas[p]; r++) t->replicas[p][r].taken = false;
    memset(h->instances, 0, sizeof(h->instances));
    snprintf(h->run, sizeof(h->run), "%s", t->run);
    for (int p = 0; p < TPO_PARTS && known; p++)
        for (int r = 0; r < t->options.n_replicas[p]; r++)
            memcpy(h->instances[p][r], t->replicas[p][r].begun.instance, sizeof(h->instances[p][r]));
    return note_write(h, err);
}
