/* This file owns the writer of safetensors files. */
#include <fcntl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/files.h"
#include "common/safetensors.h"

#define DATA_ALIGNMENT 64

struct tpo_safetensors_writer {
    int fd;
    char *path, *part;
    uint64_t left; /* data bytes still to come */
};

static json_t *describe(const struct tpo_entry *e, uint64_t *at)
{
    uint64_t bytes = tpo_dtype_size(e->dtype);
    json_t *shape = json_array();
    for (int i = 0; i < e->n_dims; i++) {
        bytes *= (uint64_t)e->shape[i];
        json_array_append_new(shape, json_integer(e->shape[i]));
    }
    json_t *row = json_pack("{s:s, s:o, s:[I, I]}", "dtype", tpo_dtype_name(e->dtype), "shape", shape, "data_offsets",
                            (json_int_t)*at, (json_int_t)(*at + bytes));
    *at += bytes;
    return row;
}

/* The header as it stands in the file: length, JSON, spaces up to the alignment. NULL: no memory, or a name twice. */
static char *make_header(const struct tpo_entry *entries, int n, size_t *length, uint64_t *data_bytes)
{
    json_t *object = json_object();
    int rc = object != NULL ? 0 : -1;
    *data_bytes = 0;
    for (int i = 0; i < n && rc == 0; i++) {
        if (json_object_get(object, entries[i].name) != NULL) rc = -1;
        if (rc == 0) rc = json_object_set_new(object, entries[i].name, describe(&entries[i], data_bytes));
    }
    char *text = rc == 0 ? json_dumps(object, JSON_COMPACT) : NULL;
    json_decref(object);
    if (text == NULL) return NULL;
    size_t used = 8 + strlen(text);
    *length = (used + DATA_ALIGNMENT - 1) / DATA_ALIGNMENT * DATA_ALIGNMENT;
    char *header = malloc(*length);
    if (header != NULL) {
        memset(header, ' ', *length);
        for (int i = 0; i < 8; i++) header[i] = (char)((*length - 8) >> (8 * i));
        memcpy(header + 8, text, used - 8);
    }
    free(text);
    return header;
}

void tpo_safetensors_abandon(struct tpo_safetensors_writer *w)
{
    if (w == NULL) return;
    if (w->fd >= 0) {
        close(w->fd);
        unlink(w->part);
    }
    free(w->path);
    free(w->part);
    free(w);
}

int tpo_safetensors_create(struct tpo_safetensors_writer **out, const char *path, const struct tpo_entry *entries, int n,
                           struct tpo_error *err)
{
    int rc = tpo_fail(err, TPO_ENOMEM, "memory", "no memory to write %s", path);
    size_t length = 0;
    char *header = NULL;
    struct tpo_safetensors_writer *w = calloc(1, sizeof(*w));
    if (w == NULL) return rc;
    w->fd = -1;
    w->path = strdup(path);
    if (w->path == NULL || asprintf(&w->part, "%s.part", path) < 0) goto fail;
    header = make_header(entries, n, &length, &w->left);
    if (header == NULL) goto fail;
    w->fd = open(w->part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (w->fd < 0 || !tpo_write_all(w->fd, header, length)) {
        rc = tpo_fail_write(err, w->part);
        goto fail;
    }
    free(header);
    *out = w;
    return TPO_OK;
fail:
    free(header);
    tpo_safetensors_abandon(w);
    return rc;
}

int tpo_safetensors_put(struct tpo_safetensors_writer *w, const void *data, size_t bytes, struct tpo_error *err)
{
    if (bytes > w->left) return tpo_fail(err, TPO_INVALID_ARGUMENT, "write", "%s: more data than its header tells", w->path);
    if (!tpo_write_all(w->fd, data, bytes)) return tpo_fail_write(err, w->part);
    w->left -= bytes;
    return TPO_OK;
}

int tpo_safetensors_finish(struct tpo_safetensors_writer *w, struct tpo_error *err)
{
    int rc = TPO_OK;
    if (w->left != 0)
        rc = tpo_fail(err, TPO_INVALID_ARGUMENT, "write", "%s: %llu bytes are missing", w->path, (unsigned long long)w->left);
    if (rc == TPO_OK && (fsync(w->fd) != 0 || rename(w->part, w->path) != 0)) rc = tpo_fail_write(err, w->path);
    if (rc == TPO_OK) {
        close(w->fd);
        w->fd = -1;
    }
    tpo_safetensors_abandon(w);
    return rc;
}

int tpo_safetensors_write(const char *path, const struct tpo_entry *entries, int n, struct tpo_error *err)
{
    struct tpo_safetensors_writer *w = NULL;
    int rc = tpo_safetensors_create(&w, path, entries, n, err);
    for (int i = 0; i < n && rc == TPO_OK; i++) {
        size_t bytes = tpo_dtype_size(entries[i].dtype);
        for (int d = 0; d < entries[i].n_dims; d++) bytes *= (size_t)entries[i].shape[d];
        rc = tpo_safetensors_put(w, entries[i].data, bytes, err);
    }
    if (rc == TPO_OK) return tpo_safetensors_finish(w, err);
    tpo_safetensors_abandon(w);
    return rc;
}
