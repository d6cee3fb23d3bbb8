/* This file owns the reading of annotation files: rows found, checked, and made into samples. */
#include "trainer/data/annotations.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/vector.h"
#include "trainer/data/instances.h"

#define CONVERSATIONS_MAX 64
#define DEPTH_MAX         64

struct row {
    uint64_t offset, check; /* check: of its bytes, since they are read again when it is drawn */
    uint32_t length, line : 31, missing : 1;
};

struct tpo_annotations {
    struct tpo_annotations_options options;
    char *path, *media;
    int fd;
    char *text; /* the whole file while rows are found, then NULL. Not mapped: a file that is cut would kill its reader */
    size_t size;
    struct row *rows;
    int64_t n, n_films, bad[TPO_ROW_FAULTS], left_out;
    struct tpo_instances instances; /* refcoco */
};

static const char *const fault_names[TPO_ROW_FAULTS] = {"broken", "empty", "box", "answer", "task token", "missing media"};

const char *tpo_annotation_fault_name(enum tpo_annotation_fault f)
{
    return fault_names[f];
}

void tpo_annotations_instances(char *out, size_t size, const char *annotations)
{
    const char *slash = strrchr(annotations, '/');
    snprintf(out, size, "%.*sinstances.json", slash != NULL ? (int)(slash - annotations + 1) : 0, annotations);
}

static int instances_load(struct tpo_annotations *a, struct tpo_error *err)
{
    char path[4096];
    if (a->options.instances != NULL) return tpo_instances_load(&a->instances, a->options.instances, err);
    tpo_annotations_instances(path, sizeof(path), a->path);
    return tpo_instances_load(&a->instances, path, err);
}

/* --- one row ------------------------------------------------------------------------------------------------------------------------- */

struct making {
    const struct tpo_annotations *a;
    struct tpo_arena *arena;
    struct tpo_conversation *conversations;
    int n;
    const char *medium; /* NULL: the row names none */
    enum tpo_annotation_fault *fault;
    struct tpo_error *err;
};

static int refuse(struct making *m, enum tpo_annotation_fault fault, const char *why)
{
    *m->fault = fault;
    return tpo_fail(m->err, TPO_INVALID_ARGUMENT, "annotations", "%s: %s", fault_names[fault], why);
}

static int turn_add(struct making *m, const char *question, const char *answer, const float *box)
{
    if (question[0] == '\0' || answer[0] == '\0') return refuse(m, TPO_FAULT_ROW_EMPTY, "nothing is asked or answered");
    if (m->n == CONVERSATIONS_MAX) return TPO_OK;
    struct tpo_turn *turn = tpo_arena_calloc(m->arena, sizeof(*turn));
    float(*boxes)[4] = tpo_arena_calloc(m->arena, sizeof(*boxes));
    if (turn == NULL || boxes == NULL) return tpo_fail(m->err, TPO_ENOMEM, "memory", "no memory for a row");
    turn->question = tpo_arena_copy(m->arena, question, strlen(question));
    turn->answer = tpo_arena_copy(m->arena, answer, strlen(answer));
    if (turn->question == NULL || turn->answer == NULL) return tpo_fail(m->err, TPO_ENOMEM, "memory", "no memory for a row");
    struct tpo_conversation *c = &m->conversations[m->n++];
    *c = (struct tpo_conversation){.n_turns = 1, .turns = turn, .weight = 1, .weight_end = 1};
    if (box == NULL) return TPO_OK;
    memcpy(boxes[0], box, sizeof(boxes[0]));
    c->boxes = (const float(*)[4])boxes;
    c->n_boxes = 1;
    return TPO_OK;
}

/* A token that is spelled out becomes the token itself: answers are where templates may place them. */
static bool holds_token(const struct making *m, const char *answer)
{
    const char *const *token = m->a->options.tokens;
    while (token != NULL && *token != NULL && strstr(answer, *token) == NULL) token++;
    return token != NULL && *token != NULL;
}

/* Bytes of a text that fit, cut between characters. */
static int fitting(const char *text, size_t most)
{
    size_t n = strnlen(text, most + 1);
    if (n <= most) return (int)n;
    for (n = most; n > 0 && ((unsigned char)text[n] & 0xc0) == 0x80;) n--;
    return (int)n;
}

static int refcoco_row(struct making *m, const json_t *row)
{
    const json_t *ann = json_object_get(row, "ann_id"), *sentences = json_object_get(row, "sentences"), *x;
    char question[2048];
    size_t i;
    int rc = TPO_OK;
    if (!json_is_integer(ann) || !json_is_array(sentences))
        return refuse(m, TPO_FAULT_ROW_BROKEN, "ann_id or sentences is missing");
    const int64_t id = json_integer_value(ann);
    const struct tpo_instance *o = tpo_instances_find(&m->a->instances, id);
    if (o == NULL) return refuse(m, TPO_FAULT_ROW_BROKEN, "ann_id is not in instances.json");
    if (o->fault != NULL) return refuse(m, TPO_FAULT_ROW_BOX, o->fault);
    if (o->medium != NULL) m->medium = o->medium;
    json_array_foreach((json_t *)sentences, i, x)
    {
        const char *sent = json_string_value(json_object_get(x, "sent"));
        if (sent == NULL) return refuse(m, TPO_FAULT_ROW_BROKEN, "a sentence has no sent");
        if (sent[0] == '\0') return refuse(m, TPO_FAULT_ROW_EMPTY, "a sentence is empty");
        snprintf(question, sizeof(question), "Where is %.*s?", fitting(sent, 2000), sent);
        rc = turn_add(m, question, "<box_begin><boxes>", o->box);
        if (rc != TPO_OK) return rc;
    }
    return rc;
}

static int videochat2_row(struct making *m, const json_t *row)
{
    const json_t *list = json_object_get(row, "QA"), *x;
    char question[4096];
    size_t i;
    if (!json_is_array(list)) return refuse(m, TPO_FAULT_ROW_BROKEN, "QA is no list");
    json_array_foreach((json_t *)list, i, x)
    {
        const char *instruction = json_string_value(json_object_get(x, "i")), *q = json_string_value(json_object_get(x, "q"));
        const char *answer = json_string_value(json_object_get(x, "a"));
        if (q == NULL || answer == NULL) return refuse(m, TPO_FAULT_ROW_BROKEN, "q or a is missing");
        if (holds_token(m, answer)) return refuse(m, TPO_FAULT_ROW_TOKEN, "an answer holds a task token");
        const bool both = instruction != NULL && instruction[0] != '\0' && q[0] != '\0';
        if (instruction == NULL) instruction = "";
        snprintf(question, sizeof(question), "%.*s%s%.*s", fitting(instruction, 2000), instruction, both ? " " : "",
                 fitting(q, 2000), q);
        const int rc = turn_add(m, question, answer, NULL);
        if (rc != TPO_OK) return rc;
    }
    return TPO_OK;
}

static int mvbench_row(struct making *m, const json_t *row)
{
    const char *asked = json_string_value(json_object_get(row, "question")),
               *answer = json_string_value(json_object_get(row, "answer"));
    const json_t *candidates = json_object_get(row, "candidates"), *x;
    char question[4096], letter[4] = "";
    size_t i;
    if (asked == NULL || answer == NULL || !json_is_array(candidates))
        return refuse(m, TPO_FAULT_ROW_BROKEN, "question, candidates or answer is missing");
    if (asked[0] == '\0' || answer[0] == '\0') return refuse(m, TPO_FAULT_ROW_EMPTY, "nothing is asked or answered");
    if (json_array_size(candidates) > 26) return refuse(m, TPO_FAULT_ROW_BROKEN, "more candidates than letters");
    size_t at = (size_t)snprintf(question, sizeof(question), "%.*s", fitting(asked, 1000), asked);
    json_array_foreach((json_t *)candidates, i, x)
    {
        if (!json_is_string(x)) return refuse(m, TPO_FAULT_ROW_BROKEN, "a candidate is no text");
        const char *text = json_string_value(x);
        at += (size_t)snprintf(question + at, sizeof(question) - at, " (%c) %.*s", (int)('A' + i), fitting(text, 100), text);
        if (letter[0] == '\0' && strcmp(text, answer) == 0) snprintf(letter, sizeof(letter), "(%c)", (int)('A' + i));
    }
    if (letter[0] == '\0') return refuse(m, TPO_FAULT_ROW_ANSWER, "the answer is not among the candidates");
    return turn_add(m, question, letter, NULL);
}

static const char *media_of(enum tpo_annotation_source source, const json_t *row)
{
    const char *name = json_string_value(json_object_get(row, source == TPO_ANNOTATIONS_REFCOCO ? "file_name" : "video"));
    return name == NULL && source == TPO_ANNOTATIONS_VIDEOCHAT2 ? json_string_value(json_object_get(row, "image")) : name;
}

/* A path of a stranger's file: it stays below the folder. */
static bool media_stays(const char *name)
{
    if (name[0] == '\0' || name[0] == '/') return false;
    for (const char *at = name; at != NULL; at = strchr(at, '/'), at = at != NULL ? at + 1 : NULL)
        if (strncmp(at, "..", 2) == 0 && (at[2] == '/' || at[2] == '\0')) return false;
    return true;
}

static int split_check(struct making *m, const json_t *row)
{
    const char *wanted = m->a->options.split, *split = json_string_value(json_object_get(row, "split"));
    if (wanted == NULL) return TPO_OK;
    if (split == NULL) return refuse(m, TPO_FAULT_ROW_BROKEN, "it names no split");
    return strcmp(split, wanted) == 0 ? TPO_OK : tpo_fail(m->err, TPO_CANCELLED, "split", "another split");
}

static int row_make(struct making *m, const json_t *row, struct tpo_sample *out)
{
    static int (*const readers[TPO_ANNOTATION_SOURCES])(struct making *, const json_t *) = {refcoco_row, videochat2_row,
                                                                                            mvbench_row};
    char path[4096];
    struct stat st;
    if (!json_is_object(row)) return refuse(m, TPO_FAULT_ROW_BROKEN, "not an object");
    int rc = split_check(m, row);
    m->medium = media_of(m->a->options.source, row);
    if (rc == TPO_OK) rc = readers[m->a->options.source](m, row);
    if (rc == TPO_OK && m->n == 0) rc = refuse(m, TPO_FAULT_ROW_EMPTY, "nothing is asked");
    if (rc != TPO_OK) return rc;
    const char *name = m->medium;
    if (name == NULL) return refuse(m, TPO_FAULT_ROW_BROKEN, "it names no medium");
    const bool fits = (size_t)snprintf(path, sizeof(path), "%s/%s", m->a->media, name) < sizeof(path);
    if (!fits || !media_stays(name) || stat(path, &st) != 0 || !S_ISREG(st.st_mode)) return refuse(m, TPO_FAULT_ROW_MEDIA, name);
    *out = (struct tpo_sample){.n_frames = json_object_get(row, "video") == NULL,
                               .media_id = tpo_arena_copy(m->arena, name, strlen(name)),
                               .n_conversations = m->n,
                               .conversations = m->conversations};
    return out->media_id != NULL ? TPO_OK : tpo_fail(m->err, TPO_ENOMEM, "memory", "no memory for a row");
}

/* One row's text. TPO_OK and a sample, TPO_CANCELLED for one that is left out, or the fault in *fault and a sentence in err. */
static int row_parse(const struct tpo_annotations *a, struct tpo_arena *arena, const char *text, size_t n, struct tpo_sample *out,
                     enum tpo_annotation_fault *fault, struct tpo_error *err)
{
    json_error_t why;
    struct making m = {.a = a, .arena = arena, .fault = fault, .err = err};
    m.conversations = tpo_arena_calloc(arena, CONVERSATIONS_MAX * sizeof(*m.conversations));
    if (m.conversations == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a row");
    json_t *row = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    const int rc = row != NULL ? row_make(&m, row, out) : refuse(&m, TPO_FAULT_ROW_BROKEN, why.text);
    json_decref(row);
    return rc;
}

/* --- the file ------------------------------------------------------------------------------------------------------------------------ */

struct scan {
    struct tpo_annotations *a;
    int64_t capacity, seen;
    uint32_t line;
    char first[TPO_ROW_FAULTS][200]; /* the first row with each fault */
    struct tpo_arena arena;
};

/* FNV-1a: against edits, not against an enemy. */
static uint64_t check_of(const char *text, size_t n)
{
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)text[i]) * 1099511628211u;
    return h;
}

static int row_add(struct scan *s, size_t from, size_t to, uint32_t line, struct tpo_error *err)
{
    struct tpo_annotations *a = s->a;
    enum tpo_annotation_fault fault = TPO_FAULT_ROW_BROKEN;
    struct tpo_sample sample;
    struct tpo_error why = {0};
    tpo_arena_reset(&s->arena);
    const int rc = row_parse(a, &s->arena, a->text + from, to - from, &sample, &fault, &why);
    if (rc == TPO_CANCELLED) {
        a->left_out++;
        return TPO_OK;
    }
    s->seen++;
    if (rc == TPO_ENOMEM) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for %.200s", a->path);
    if (rc != TPO_OK) {
        char text[400];
        snprintf(text, sizeof(text), "%.150s:%u: %.150s", a->path, line, why.message);
        if (a->bad[fault]++ == 0) snprintf(s->first[fault], sizeof(s->first[fault]), "%.199s", text);
        if (a->options.on_bad != NULL) a->options.on_bad(a->options.owner, text);
        if (fault != TPO_FAULT_ROW_MEDIA) return TPO_OK;
    }
    if (a->n == s->capacity) {
        s->capacity = s->capacity > 0 ? 2 * s->capacity : 1024;
        struct row *grown = realloc(a->rows, (size_t)s->capacity * sizeof(*grown));
        if (grown == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for %.200s", a->path);
        a->rows = grown;
    }
    a->n_films += rc == TPO_OK && sample.n_frames == 0;
    a->rows[a->n++] = (struct row){from, check_of(a->text + from, to - from), (uint32_t)(to - from), line, rc != TPO_OK};
    return TPO_OK;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\t' || c == '\r';
}

/* Where each element of the outer list begins and ends: strings are skipped, brackets counted; what is inside is jansson's to judge. */
static int rows_scan(struct scan *s, struct tpo_error *err)
{
    const struct tpo_annotations *a = s->a;
    size_t at = 0, from = 0;
    uint32_t line = 1, from_line = 1;
    int depth = 0, rc = TPO_OK;
    bool string = false, open = false, ended = false;
    for (; at < a->size && rc == TPO_OK; at++) {
        const char c = a->text[at];
        if (c == '\n') line++;
        if (ended && !is_space(c)) break; /* another list, say: two files that were joined */
        if (string) {
            if (c == '\\')
                at++;
            else if (c == '"')
                string = false;
            continue;
        }
        if (depth == 0 && !is_space(c) && c != '[') break;
        if (depth == 1 && (c == ',' || c == ']')) {
            if (open) rc = row_add(s, from, at, from_line, err);
            open = false;
        } else if (depth == 1 && !open && !is_space(c)) {
            open = true;
            from = at;
            from_line = line;
        }
        if (c == '"') string = true;
        if ((c == '[' || c == '{') && ++depth > DEPTH_MAX) break;
        if (c == ']' || c == '}') ended = --depth == 0;
    }
    if (rc != TPO_OK || (ended && at == a->size)) return rc;
    return tpo_fail(err, TPO_INVALID_ARGUMENT, "annotations", "%.200s:%u: %s", a->path, line,
                    ended ? "something stands behind the list of rows" : "not a whole list of rows");
}

static int rows_read(struct tpo_annotations *a, struct tpo_error *err)
{
    struct scan s = {.a = a};
    int worst = 0;
    tpo_arena_init(&s.arena, 1 << 16, 0);
    const int rc = rows_scan(&s, err);
    tpo_arena_free(&s.arena);
    if (rc != TPO_OK) return rc;
    for (int f = 0; f < TPO_ROW_FAULTS; f++)
        if (a->bad[f] > a->bad[worst]) worst = f;
    const int64_t bad = tpo_annotations_all_bad(a);
    if ((double)bad > a->options.skip_most * (double)s.seen)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "annotations", "%lld of %lld rows are bad, most often \"%s\": %s",
                        (long long)bad, (long long)s.seen, fault_names[worst], s.first[worst]);
    return a->n > a->bad[TPO_FAULT_ROW_MEDIA]
               ? TPO_OK
               : tpo_fail(err, TPO_INVALID_ARGUMENT, "annotations", "%.200s holds no good row", a->path);
}

static bool bytes_read(int fd, char *out, size_t n, uint64_t offset)
{
    while (n > 0) {
        const ssize_t got = pread(fd, out, n, (off_t)offset);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        out += got;
        offset += (uint64_t)got;
        n -= (size_t)got;
    }
    return true;
}

static int changed(const struct tpo_annotations *a, struct tpo_error *err)
{
    return tpo_fail(err, TPO_DATA_LOSS, "annotations", "%.200s changed during the run", a->path);
}

static int file_read(struct tpo_annotations *a, struct tpo_error *err)
{
    struct stat st;
    a->fd = open(a->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (a->fd < 0 || fstat(a->fd, &st) != 0)
        return tpo_fail(err, TPO_NOT_FOUND, "annotations", "%.200s: %s", a->path, strerror(errno));
    if (!S_ISREG(st.st_mode) || st.st_size == 0)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "annotations", "%.200s is empty or no file", a->path);
    a->size = (size_t)st.st_size;
    a->text = malloc(a->size);
    if (a->text == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for %.200s", a->path);
    return bytes_read(a->fd, a->text, a->size, 0) ? TPO_OK : changed(a, err);
}

int tpo_annotations_open(struct tpo_annotations **out, const struct tpo_annotations_options *o, struct tpo_error *err)
{
    struct stat st;
    struct tpo_annotations *a = calloc(1, sizeof(*a));
    if (a == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for annotations");
    a->fd = -1;
    a->options = *o;
    a->path = strdup(o->annotations);
    a->media = strdup(o->media);
    int rc = a->path != NULL && a->media != NULL ? TPO_OK : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for annotations");
    if (rc == TPO_OK && (stat(a->media, &st) != 0 || !S_ISDIR(st.st_mode)))
        rc = tpo_fail(err, TPO_NOT_FOUND, "annotations", "%.200s is no folder of media", a->media);
    if (rc == TPO_OK) rc = file_read(a, err);
    if (rc == TPO_OK && o->source == TPO_ANNOTATIONS_REFCOCO) rc = instances_load(a, err);
    if (rc == TPO_OK) rc = rows_read(a, err);
    free(a->text);
    a->text = NULL;
    if (rc != TPO_OK)
        tpo_annotations_close(a);
    else
        *out = a;
    return rc;
}

void tpo_annotations_close(struct tpo_annotations *a)
{
    if (a == NULL) return;
    if (a->fd >= 0) close(a->fd);
    tpo_instances_free(&a->instances);
    free(a->rows);
    free(a->media);
    free(a->path);
    free(a);
}

int64_t tpo_annotations_rows(const struct tpo_annotations *a)
{
    return a->n;
}

bool tpo_annotations_missing(const struct tpo_annotations *a, int64_t row)
{
    return a->rows[row].missing;
}

int64_t tpo_annotations_bad(const struct tpo_annotations *a, enum tpo_annotation_fault f)
{
    return a->bad[f];
}

int64_t tpo_annotations_all_bad(const struct tpo_annotations *a)
{
    int64_t n = 0;
    for (int f = 0; f < TPO_ROW_FAULTS; f++) n += a->bad[f];
    return n;
}

int64_t tpo_annotations_films(const struct tpo_annotations *a)
{
    return a->n_films;
}

int64_t tpo_annotations_left_out(const struct tpo_annotations *a)
{
    return a->left_out;
}

unsigned tpo_annotations_line(const struct tpo_annotations *a, int64_t row)
{
    return a->rows[row].line;
}

/* --- order --------------------------------------------------------------------------------------------------------------------------- */

/* A Feistel network over the smallest even number of bits that holds the rows, walked until it lands on one: a permutation without a table. */
int64_t tpo_annotations_pick(const struct tpo_annotations *a, uint64_t index)
{
    const uint64_t n = (uint64_t)a->n, key = tpo_random_u64(a->options.seed, index / n);
    uint64_t x = index % n;
    int half = 1;
    while ((1ULL << (2 * half)) < n) half++;
    const uint64_t mask = (1ULL << half) - 1;
    do {
        for (uint64_t round = 0; round < 4; round++)
            x = (x & mask) << half | ((x >> half) ^ (tpo_random_u64(key + round, x & mask) & mask));
    } while (x >= n);
    return (int64_t)x;
}

int tpo_annotations_row(const struct tpo_annotations *a, struct tpo_arena *arena, int64_t row, struct tpo_sample *out,
                        struct tpo_error *err)
{
    const struct row *r = &a->rows[row];
    enum tpo_annotation_fault fault = TPO_FAULT_ROW_BROKEN;
    char *text = malloc((size_t)r->length + 1);
    if (text == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a row");
    const bool same = bytes_read(a->fd, text, r->length, r->offset) && check_of(text, r->length) == r->check;
    const int rc = same ? row_parse(a, arena, text, r->length, out, &fault, err) : TPO_DATA_LOSS;
    free(text);
    if (rc == TPO_OK || rc == TPO_ENOMEM) return rc;
    if (fault == TPO_FAULT_ROW_MEDIA) return tpo_fail(err, TPO_NOT_FOUND, "annotations", "its medium is gone");
    return changed(a, err);
}
