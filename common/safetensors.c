/* This file owns the reader: headers become a sorted list of views into mapped files. */
#include "common/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/prefixes.h"

#define HEADER_BYTES_MAX 100000000u /* the format's own bound */
#define FAULTS_MAX       4096
#define SHARDS_MAX       4096
#define INDEX_NAME       "model.safetensors.index.json"

struct mapping {
    const uint8_t *bytes;
    size_t size;
    bool borrowed;
    char *name;     /* base name */
    json_t *header; /* the entries' names live in its keys */
};

struct tpo_safetensors_memory {
    struct mapping *files;
    int n_files;
    json_t *names; /* {NAME: true} of the files, for have_file */
    json_t *index;
    bool survey;       /* collect faults instead of stopping */
    const char *stage; /* whose shards are read; NULL: all */
    int code;          /* of the first fault */
};

static int fault(struct tpo_safetensors *s, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Notes a fault; TPO_OK means "go on" (a survey). */
static int fault(struct tpo_safetensors *s, int code, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    if (s->n_faults == 0) s->memory->code = code;
    if (s->n_faults < FAULTS_MAX) {
        char **grown = realloc(s->faults, (size_t)(s->n_faults + 1) * sizeof(*grown));
        if (grown == NULL) return TPO_ENOMEM;
        s->faults = grown;
        s->faults[s->n_faults] = strdup(text);
        if (s->faults[s->n_faults] == NULL) return TPO_ENOMEM;
        s->n_faults++;
    }
    return s->memory->survey ? TPO_OK : code;
}

/* jansson tells where a duplicate key ends but prints it only when it is short. */
static void key_before(char *out, size_t size, const char *text, size_t length, int position)
{
    size_t end = position > 0 && (size_t)position <= length ? (size_t)position : length;
    while (end > 0 && text[end - 1] != '"') end--;
    size_t begin = end > 0 ? end - 1 : 0;
    while (begin > 0 && text[begin - 1] != '"') begin--;
    snprintf(out, size, "%.*s", end > begin ? (int)(end - begin - 1) : 0, text + begin);
}

static json_t *parse_object(struct tpo_safetensors *s, const char *file, const char *text, size_t length, int *rc)
{
    json_error_t e;
    json_t *object = json_loadb(text, length, JSON_REJECT_DUPLICATES, &e);
    if (object == NULL && json_error_code(&e) == json_error_duplicate_key) {
        char key[160];
        key_before(key, sizeof(key), text, length, e.position);
        *rc = fault(s, TPO_FAILED_PRECONDITION, "%s: %s: the name occurs twice", file, key);
    } else if (object == NULL) {
        *rc = fault(s, TPO_FAILED_PRECONDITION, "%s: not JSON: %s (byte %d)", file, e.text, e.position);
    } else if (!json_is_object(object)) {
        json_decref(object);
        object = NULL;
        *rc = fault(s, TPO_FAILED_PRECONDITION, "%s: not a JSON object", file);
    }
    return object;
}

static const char *parse_shape(struct tpo_entry *e, const json_t *shape)
{
    if (!json_is_array(shape)) return "no shape";
    if (json_array_size(shape) > TPO_ENTRY_DIMS_MAX) return "too many dimensions";
    e->n_dims = (int)json_array_size(shape);
    e->size = 1;
    for (int i = 0; i < e->n_dims; i++) {
        const json_t *d = json_array_get(shape, (size_t)i);
        e->shape[i] = json_is_integer(d) ? json_integer_value(d) : -1;
        if (e->shape[i] < 0) return "a dimension that is not a whole number from 0 up";
        if (__builtin_mul_overflow(e->size, e->shape[i], &e->size)) return "more elements than 64 bits count";
    }
    return NULL;
}

/* Fills *e from its JSON; NULL, or what is wrong with it. */
static const char *parse_entry(struct tpo_entry *e, const json_t *value, const uint8_t *data, uint64_t data_bytes)
{
    const char *key;
    json_t *item;
    if (!json_is_object(value)) return "its description is not an object";
    json_object_foreach((json_t *)value, key,
                        item) if (strcmp(key, "dtype") != 0 && strcmp(key, "shape") != 0 &&
                                  strcmp(key, "data_offsets") != 0) return "an unknown key beside dtype, shape and data_offsets";
    const char *dtype = json_string_value(json_object_get(value, "dtype"));
    e->dtype = dtype != NULL ? tpo_dtype_parse(dtype) : 0;
    if (e->dtype == 0) return "its dtype is none of F32, BF16, F16, U8, I32, I64";
    const char *wrong = parse_shape(e, json_object_get(value, "shape"));
    if (wrong != NULL) return wrong;
    const json_t *offsets = json_object_get(value, "data_offsets");
    const json_t *b = json_array_get(offsets, 0), *t = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(b) || !json_is_integer(t)) return "data_offsets is not two whole numbers";
    json_int_t begin = json_integer_value(b), end = json_integer_value(t), bytes;
    if (begin < 0 || end < begin) return "data_offsets run backwards";
    if ((uint64_t)end > data_bytes) return "data_offsets point past the end of the file";
    if (__builtin_mul_overflow(e->size, (int64_t)tpo_dtype_size(e->dtype), &bytes) || bytes != end - begin)
        return "shape and data_offsets tell different sizes";
    e->size_bytes = (size_t)bytes;
    e->data = data + begin;
    return NULL;
}

static int by_place(const void *a, const void *b)
{
    const struct tpo_entry *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return x->size_bytes < y->size_bytes ? -1 : x->size_bytes > y->size_bytes;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct tpo_entry *)a)->name, ((const struct tpo_entry *)b)->name);
}

/* No overlap and no hole: a byte of the data belongs to exactly one tensor. `items` are those of one file. */
static int check_cover(struct tpo_safetensors *s, const char *file, struct tpo_entry *items, int n, const uint8_t *data,
                       uint64_t data_bytes)
{
    int rc = TPO_OK;
    const uint8_t *at = data;
    qsort(items, (size_t)n, sizeof(*items), by_place);
    for (int i = 0; i < n && rc == TPO_OK; i++) {
        const uint8_t *begin = items[i].data;
        if (begin < at)
            rc = fault(s, TPO_FAILED_PRECONDITION, "%s: %s: its bytes overlap those of %s", file, items[i].name,
                       items[i > 0 ? i - 1 : 0].name);
        else if (begin > at)
            rc = fault(s, TPO_FAILED_PRECONDITION, "%s: %s: %zu bytes before it belong to no tensor", file, items[i].name,
                       (size_t)(begin - at));
        if (begin + items[i].size_bytes > at) at = begin + items[i].size_bytes;
    }
    if (rc == TPO_OK && at != data + data_bytes)
        rc =
            fault(s, TPO_FAILED_PRECONDITION, "%s: the last %zu bytes belong to no tensor", file, (size_t)(data + data_bytes - at));
    return rc;
}

/* Reads the header of mapping m and appends its entries. */
static int read_header(struct tpo_safetensors *s, struct mapping *m)
{
    int rc = TPO_OK;
    if (m->size < 8) return fault(s, TPO_FAILED_PRECONDITION, "%s: %zu bytes are too few for a header", m->name, m->size);
    uint64_t length = 0;
    for (int i = 0; i < 8; i++) length |= (uint64_t)m->bytes[i] << (8 * i);
    if (length > HEADER_BYTES_MAX || length > m->size - 8)
        return fault(s, TPO_FAILED_PRECONDITION, "%s: a header of %llu bytes in a file of %zu", m->name, (unsigned long long)length,
                     m->size);
    m->header = parse_object(s, m->name, (const char *)m->bytes + 8, (size_t)length, &rc);
    if (m->header == NULL) return rc;

    const uint8_t *data = m->bytes + 8 + length;
    uint64_t data_bytes = m->size - 8 - length;
    int sound = 0, whole = 1;
    struct tpo_entry *grown = realloc(s->items, ((size_t)s->n + json_object_size(m->header) + 1) * sizeof(*grown));
    if (grown == NULL) return TPO_ENOMEM;
    s->items = grown;
    const char *key;
    json_t *value;
    json_object_foreach(m->header, key, value)
    {
        if (strcmp(key, "__metadata__") == 0) continue;
        struct tpo_entry *e = &s->items[s->n + sound];
        memset(e, 0, sizeof(*e));
        e->name = key;
        e->file = m->name;
        const char *wrong = parse_entry(e, value, data, data_bytes);
        if (wrong == NULL) {
            sound++;
            continue;
        }
        whole = 0;
        rc = fault(s, TPO_FAILED_PRECONDITION, "%s: %s: %s", m->name, key, wrong);
        if (rc != TPO_OK) return rc;
    }
    /* With a broken row the cover has a hole for sure: that fault is told already. */
    if (whole) rc = check_cover(s, m->name, s->items + s->n, sound, data, data_bytes);
    s->n += sound;
    return rc;
}

static struct mapping *mapping_add(struct tpo_safetensors *s, const char *path)
{
    const char *slash = strrchr(path, '/');
    struct mapping *grown = realloc(s->memory->files, (size_t)(s->memory->n_files + 1) * sizeof(*grown));
    if (grown == NULL) return NULL;
    s->memory->files = grown;
    struct mapping *m = &grown[s->memory->n_files];
    memset(m, 0, sizeof(*m));
    m->name = strdup(slash != NULL ? slash + 1 : path);
    if (m->name == NULL) return NULL;
    s->memory->n_files++;
    if (s->memory->names == NULL) s->memory->names = json_object();
    if (json_object_set_new_nocheck(s->memory->names, m->name, json_true()) != 0) return NULL;
    return m;
}

static int read_file(struct tpo_safetensors *s, const char *path)
{
    struct mapping *m = mapping_add(s, path);
    if (m == NULL) return TPO_ENOMEM;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        int why = errno;
        bool regular = fd < 0;
        if (fd >= 0) close(fd);
        return fault(s, why == ENOENT && regular ? TPO_NOT_FOUND : TPO_FAILED_PRECONDITION, "%s: %s", m->name,
                     regular ? strerror(why) : "not a file");
    }
    m->size = (size_t)st.st_size;
    if (m->size > 0) {
        void *bytes = mmap(NULL, m->size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (bytes != MAP_FAILED) m->bytes = bytes;
    }
    int why = errno;
    close(fd);
    if (m->size > 0 && m->bytes == NULL) return fault(s, TPO_FAILED_PRECONDITION, "%s: %s", m->name, strerror(why));
    return read_header(s, m);
}

/* Whether this file was read already, as a shard of the index. */
static bool have_file(const struct tpo_safetensors *s, const char *name)
{
    return json_object_get(s->memory->names, name) != NULL;
}

static bool wanted(const struct tpo_safetensors *s, const char *name)
{
    const char *owner = tpo_prefix_owner(name);
    return s->memory->stage == NULL || owner == NULL || strcmp(owner, s->memory->stage) == 0;
}

static int read_shards(struct tpo_safetensors *s, const char *folder, const json_t *map)
{
    const char *name;
    json_t *file;
    int rc = TPO_OK;
    json_object_foreach((json_t *)map, name, file)
    {
        const char *shard = json_string_value(file);
        char path[4096];
        if (shard == NULL || shard[0] == '\0' || shard[0] == '.' || strchr(shard, '/') != NULL) {
            rc = fault(s, TPO_FAILED_PRECONDITION, "%s: %s: its shard is not a file name", INDEX_NAME, name);
        } else if (wanted(s, name) && !have_file(s, shard)) {
            if (s->memory->n_files == SHARDS_MAX)
                return fault(s, TPO_FAILED_PRECONDITION, "%s: more than %d shards", INDEX_NAME, SHARDS_MAX);
            snprintf(path, sizeof(path), "%s/%s", folder, shard);
            if (access(path, R_OK) != 0)
                rc = fault(s, TPO_FAILED_PRECONDITION, "%s: %s: its shard %s is missing", INDEX_NAME, name, shard);
            if (rc == TPO_OK && access(path, R_OK) == 0) rc = read_file(s, path);
            if (rc == TPO_OK && access(path, R_OK) != 0 && mapping_add(s, shard) == NULL) rc = TPO_ENOMEM; /* told once per shard */
        }
        if (rc != TPO_OK) return rc;
    }
    return rc;
}

/* Index and shards must name the same tensors in the same places, as far as the shards were read. */
static int check_index(struct tpo_safetensors *s, const json_t *map)
{
    const char *name;
    json_t *file;
    int rc = TPO_OK;
    for (int i = 0; i < s->n && rc == TPO_OK; i++) {
        const char *shard = json_string_value(json_object_get(map, s->items[i].name));
        if (shard == NULL)
            rc = fault(s, TPO_FAILED_PRECONDITION, "%s: %s: not in the index", s->items[i].file, s->items[i].name);
        else if (strcmp(shard, s->items[i].file) != 0)
            rc = fault(s, TPO_FAILED_PRECONDITION, "%s: %s: the index puts it into %s", s->items[i].file, s->items[i].name, shard);
    }
    json_object_foreach((json_t *)map, name, file)
    {
        if (rc != TPO_OK) return rc;
        if (tpo_safetensors_find(s, name) != NULL || (json_is_string(file) && !have_file(s, json_string_value(file)))) continue;
        rc = fault(s, TPO_FAILED_PRECONDITION, "%s: %s: missing, the index promises it",
                   json_is_string(file) ? json_string_value(file) : INDEX_NAME, name);
    }
    return rc;
}

static int sort_names(struct tpo_safetensors *s)
{
    int rc = TPO_OK;
    if (s->n > 1) qsort(s->items, (size_t)s->n, sizeof(*s->items), by_name);
    for (int i = 1; i < s->n && rc == TPO_OK; i++)
        if (strcmp(s->items[i - 1].name, s->items[i].name) == 0)
            rc = fault(s, TPO_FAILED_PRECONDITION, "%s: %s: also in %s", s->items[i].file, s->items[i].name, s->items[i - 1].file);
    return rc;
}

static int read_index(struct tpo_safetensors *s, const char *folder, const char *path)
{
    int rc = TPO_OK, fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat st;
    char *text = NULL;
    size_t n = 0;
    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size < HEADER_BYTES_MAX)
        text = malloc((size_t)st.st_size + 1);
    for (ssize_t got = 1; text != NULL && n < (size_t)st.st_size && got > 0; n += got > 0 ? (size_t)got : 0)
        got = read(fd, text + n, (size_t)st.st_size - n);
    if (fd >= 0) close(fd);
    if (text == NULL) return fault(s, TPO_FAILED_PRECONDITION, "%s: it cannot be read, or is no index by its size", INDEX_NAME);
    s->memory->index = parse_object(s, INDEX_NAME, text, n, &rc);
    free(text);
    if (s->memory->index == NULL) return rc;
    const json_t *map = json_object_get(s->memory->index, "weight_map");
    if (!json_is_object(map)) return fault(s, TPO_FAILED_PRECONDITION, "%s: no weight_map", INDEX_NAME);
    rc = read_shards(s, folder, map);
    if (rc == TPO_OK) rc = sort_names(s);
    if (rc == TPO_OK) rc = check_index(s, map);
    return rc;
}

static int read_path(struct tpo_safetensors *s, const char *path)
{
    struct stat st;
    char file[4096];
    if (stat(path, &st) != 0) return fault(s, TPO_NOT_FOUND, "%s: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode)) {
        int rc = read_file(s, path);
        return rc == TPO_OK ? sort_names(s) : rc;
    }
    snprintf(file, sizeof(file), "%s/%s", path, INDEX_NAME);
    if (access(file, F_OK) == 0) return read_index(s, path, file);
    snprintf(file, sizeof(file), "%s/model.safetensors", path);
    int rc = read_file(s, file);
    return rc == TPO_OK ? sort_names(s) : rc;
}

static struct tpo_safetensors *begin(bool survey)
{
    struct tpo_safetensors *s = calloc(1, sizeof(*s));
    if (s != NULL) s->memory = calloc(1, sizeof(*s->memory));
    if (s == NULL || s->memory == NULL) {
        free(s);
        return NULL;
    }
    s->memory->survey = survey;
    return s;
}

static int settle(struct tpo_safetensors **out, struct tpo_safetensors *s, int rc, struct tpo_error *err)
{
    if (rc == TPO_OK) {
        *out = s;
        return TPO_OK;
    }
    if (s->n_faults > 0 && rc != TPO_ENOMEM)
        tpo_fail(err, rc, "weights", "%s", s->faults[0]);
    else
        tpo_fail(err, rc, "memory", "no memory for the names of a checkpoint");
    tpo_safetensors_close(s);
    return rc;
}

int tpo_safetensors_open(struct tpo_safetensors **out, const char *path, struct tpo_error *err)
{
    struct tpo_safetensors *s = begin(false);
    if (s == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the names of a checkpoint");
    return settle(out, s, read_path(s, path), err);
}

int tpo_safetensors_open_stage(struct tpo_safetensors **out, const char *path, const char *stage, struct tpo_error *err)
{
    struct tpo_safetensors *s = begin(false);
    if (s == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the names of a checkpoint");
    s->memory->stage = stage;
    return settle(out, s, read_path(s, path), err);
}

int tpo_safetensors_survey(struct tpo_safetensors **out, const char *path, struct tpo_error *err)
{
    struct tpo_safetensors *s = begin(true);
    if (s == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the names of a checkpoint");
    return settle(out, s, read_path(s, path), err);
}

int tpo_safetensors_open_bytes(struct tpo_safetensors **out, const void *bytes, size_t n, struct tpo_error *err)
{
    struct tpo_safetensors *s = begin(false);
    struct mapping *m = s != NULL ? mapping_add(s, "bytes") : NULL;
    if (m == NULL) {
        tpo_safetensors_close(s);
        return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the names of a checkpoint");
    }
    m->bytes = bytes;
    m->size = n;
    m->borrowed = true;
    int rc = read_header(s, m);
    return settle(out, s, rc == TPO_OK ? sort_names(s) : rc, err);
}

void tpo_safetensors_close(struct tpo_safetensors *s)
{
    if (s == NULL) return;
    for (int i = 0; i < s->memory->n_files; i++) {
        struct mapping *m = &s->memory->files[i];
        if (m->bytes != NULL && !m->borrowed) munmap((void *)m->bytes, m->size);
        json_decref(m->header);
        free(m->name);
    }
    for (int i = 0; i < s->n_faults; i++) free(s->faults[i]);
    json_decref(s->memory->names);
    json_decref(s->memory->index);
    free(s->memory->files);
    free(s->memory);
    free(s->faults);
    free(s->items);
    free(s);
}

const struct tpo_entry *tpo_safetensors_find(const struct tpo_safetensors *s, const char *name)
{
    struct tpo_entry key = {.name = name};
    return s->n > 0 ? bsearch(&key, s->items, (size_t)s->n, sizeof(*s->items), by_name) : NULL;
}
