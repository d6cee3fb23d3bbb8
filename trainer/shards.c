/* This file owns the writing of a folder's tensors: where a shard ends, and how pieces are made, hashed and written side by side. */
#include "trainer/shards.h"

#include <errno.h>
#include <jansson.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "common/cores.h"
#include "common/progress.h"
#include "common/sha256.h"
#include "kernels/team.h"

#define HEADER_BYTES 512 /* of one tensor, name and offsets, in headers, index and manifest together; more than any takes */

/* Elements of one tensor, made or to be made. */
struct piece {
    uint8_t *data; /* TPO_SHARDS_PIECE elements of at most 8 bytes */
    int tensor;    /* -1: nothing in it */
    int64_t first, n;
};

struct writing {
    const struct tpo_shards *x;
    const char *dir;
    struct tpo_team *team;
    struct tpo_stream *streams[TPO_TEAM_MAX]; /* one of one thread for each member of the team */
    struct piece pieces[2], *full, *next;     /* full is written while next is made */
    struct tpo_safetensors_writer *file;
    tpo_sha256_t *hash;
    json_t *hashes, *weight_map;
    struct tpo_progress bar;
    uint64_t done_bytes, total_bytes;
    int write_code;        /* of the piece written last, by whichever thread did it */
    _Atomic int make_code; /* of the piece being made */
    struct tpo_error *err;
};

static uint64_t total_of(const struct tpo_shards *x)
{
    uint64_t total = 0;
    for (int i = 0; i < x->n; i++) total += x->tensors[i].size_bytes;
    return total;
}

static int check_room(const char *dir, const struct tpo_shards *x, struct tpo_error *err)
{
    struct statvfs fs;
    const uint64_t need = total_of(x) + (uint64_t)x->n * HEADER_BYTES;
    if (statvfs(dir, &fs) != 0) return tpo_fail(err, TPO_FAILED_PRECONDITION, "model_folder", "%s: %s", dir, strerror(errno));
    const uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (room >= need) return TPO_OK;
    return tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "disk_full", "%s: the tensors take %.2f GB, %.2f GB are free there", dir,
                    (double)need * 1e-9, (double)room * 1e-9);
}

/* Where the shard that begins with `first` ends. */
static int shard_end(const struct tpo_shards *x, int first)
{
    uint64_t bytes = 0;
    int end = first;
    while (end < x->n && (end == first || bytes + x->tensors[end].size_bytes <= x->shard_bytes))
        bytes += x->tensors[end++].size_bytes;
    return end;
}

static int count_shards(const struct tpo_shards *x)
{
    int n = 0;
    for (int first = 0; first < x->n; first = shard_end(x, first)) n++;
    return n;
}

/* --- pieces -------------------------------------------------------------------------------------------------------------------------------- */

static void write_full(struct writing *w)
{
    char text[TPO_SHA256_HEX];
    uint8_t digest[TPO_SHA256_BYTES];
    const struct tpo_entry *e = &w->x->tensors[w->full->tensor];
    const size_t bytes = (size_t)w->full->n * (e->size_bytes / (size_t)e->size);
    tpo_sha256_add(w->hash, w->full->data, bytes);
    w->write_code = tpo_safetensors_put(w->file, w->full->data, bytes, w->err);
    w->done_bytes += bytes;
    if (w->full->first + w->full->n < e->size) return;
    tpo_sha256_end(w->hash, digest);
    json_object_set_new(w->hashes, e->name, json_string(tpo_sha256_hex(text, digest)));
}

/* Part 0 writes the piece before; the others make the next. */
static void run_part(void *arg, int part, int member)
{
    struct writing *w = arg;
    if (part == 0) {
        if (w->full->tensor >= 0) write_full(w);
        return;
    }
    const struct piece *p = w->next;
    const struct tpo_entry *e = &w->x->tensors[p->tensor];
    const int64_t at = (int64_t)(part - 1) * TPO_SHARDS_GRAIN, n = p->n - at < TPO_SHARDS_GRAIN ? p->n - at : TPO_SHARDS_GRAIN;
    uint8_t *out = p->data + (size_t)at * (e->size_bytes / (size_t)e->size);
    const int rc = w->x->make(w->x->owner, w->streams[member], out, p->tensor, p->first + at, n);
    if (rc != TPO_OK) w->make_code = rc;
}

/* Makes the piece (none when n is 0) while the one before is written, and turns them round. */
static int step(struct writing *w, int tensor, int64_t first, int64_t n)
{
    struct piece *made = w->next;
    made->tensor = n > 0 ? tensor : -1;
    made->first = first;
    made->n = n;
    w->write_code = TPO_OK;
    tpo_team_run(w->team, run_part, w, 1 + (int)((n + TPO_SHARDS_GRAIN - 1) / TPO_SHARDS_GRAIN));
    w->next = w->full;
    w->full = made;
    tpo_progress_show(&w->bar, (double)w->done_bytes, (double)w->total_bytes);
    if (w->write_code != TPO_OK) return w->write_code;
    return w->make_code == TPO_OK
               ? TPO_OK
               : tpo_fail(w->err, w->make_code, "model_folder", "%s could not be made", w->x->tensors[tensor].name);
}

static int write_shard(struct writing *w, const char *name, int first, int end)
{
    char path[4200];
    snprintf(path, sizeof(path), "%s/%s", w->dir, name);
    int rc = tpo_safetensors_create(&w->file, path, w->x->tensors + first, end - first, w->err);
    for (int i = first; i < end && rc == TPO_OK; i++) {
        json_object_set_new(w->weight_map, w->x->tensors[i].name, json_string(name));
        if (w->x->begin(w->x->owner, i) != TPO_OK)
            rc = tpo_fail(w->err, TPO_ENOMEM, "memory", "no memory for %s", w->x->tensors[i].name);
        for (int64_t at = 0, n; at < w->x->tensors[i].size && rc == TPO_OK; at += n) {
            n = w->x->tensors[i].size - at < TPO_SHARDS_PIECE ? w->x->tensors[i].size - at : TPO_SHARDS_PIECE;
            rc = step(w, i, at, n);
        }
    }
    if (rc == TPO_OK) rc = step(w, first, 0, 0); /* the last piece */
    if (rc == TPO_OK)
        rc = tpo_safetensors_finish(w->file, w->err);
    else
        tpo_safetensors_abandon(w->file);
    w->file = NULL;
    return rc;
}

/* --- the folder ----------------------------------------------------------------------------------------------------------------------------- */

static int write_json(const struct writing *w, const char *name, json_t *take)
{
    char path[4200];
    snprintf(path, sizeof(path), "%s/%s", w->dir, name);
    const bool written = json_dump_file(take, path, JSON_INDENT(1) | JSON_SORT_KEYS) == 0;
    json_decref(take);
    return written ? TPO_OK : tpo_fail(w->err, TPO_RESOURCE_EXHAUSTED, "disk_full", "%s cannot be written", path);
}

static int write_all(struct writing *w)
{
    const int shards = count_shards(w->x);
    char name[64] = "model.safetensors";
    int rc = TPO_OK;
    for (int k = 1, first = 0, end; first < w->x->n && rc == TPO_OK; first = end, k++) {
        end = shard_end(w->x, first);
        if (shards > 1) snprintf(name, sizeof(name), "model-%05d-of-%05d.safetensors", k, shards);
        rc = write_shard(w, name, first, end);
    }
    if (rc == TPO_OK && shards > 1)
        rc = write_json(
            w, "model.safetensors.index.json",
            json_pack("{s:{s:I},s:O}", "metadata", "total_size", (json_int_t)w->total_bytes, "weight_map", w->weight_map));
    return rc == TPO_OK ? write_json(w, "manifest.json", json_pack("{s:O}", "tensors", w->hashes)) : rc;
}

static int open_writing(struct writing *w)
{
    const int cores = tpo_cores();
    int rc = tpo_team_open(&w->team, cores > TPO_TEAM_MAX ? TPO_TEAM_MAX : cores, w->err);
    for (int i = 0; rc == TPO_OK && i < tpo_team_size(w->team); i++) rc = tpo_stream_open(&w->streams[i], "cpu", 1, w->err);
    for (int i = 0; i < 2; i++) {
        w->pieces[i] = (struct piece){.data = malloc((size_t)TPO_SHARDS_PIECE * sizeof(int64_t)), .tensor = -1};
        if (rc == TPO_OK && w->pieces[i].data == NULL)
            rc = tpo_fail(w->err, TPO_ENOMEM, "memory", "no memory for a piece of a tensor");
    }
    w->full = &w->pieces[0];
    w->next = &w->pieces[1];
    w->hash = tpo_sha256_open();
    w->hashes = json_object();
    w->weight_map = json_object();
    w->total_bytes = total_of(w->x);
    return rc;
}

static void close_writing(struct writing *w)
{
    tpo_progress_end(&w->bar);
    for (int i = 0; i < TPO_TEAM_MAX && w->streams[i] != NULL; i++) tpo_stream_close(w->streams[i]);
    tpo_team_close(w->team);
    for (int i = 0; i < 2; i++) free(w->pieces[i].data);
    tpo_sha256_close(w->hash);
    json_decref(w->hashes);
    json_decref(w->weight_map);
}

int tpo_shards_write(const char *dir, const struct tpo_shards *x, struct tpo_error *err)
{
    struct tpo_error local;
    struct writing *w = calloc(1, sizeof(*w));
    if (w == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory to write tensors");
    *w = (struct writing){.x = x, .dir = dir, .bar = {.what = "writing", .unit = "B"}, .err = err != NULL ? err : &local};
    int rc = check_room(dir, x, w->err);
    if (rc == TPO_OK) rc = open_writing(w);
    if (rc == TPO_OK) rc = write_all(w);
    close_writing(w);
    free(w);
    return rc;
}
