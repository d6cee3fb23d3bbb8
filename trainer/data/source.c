/* This file owns the way from an annotation row to a sample with frames. */
#include "trainer/data/source.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/log.h"
#include "common/sha256.h"
#include "kernels/vector.h"
#include "services/encoder/frames.h"
#include "trainer/data/bad_rows.h"

#define THREADS_MAX 16
#define TRIES       64 /* rows for one sample: where half of all are bad, all of them are once in 2^64 samples */
#define TOLD_MAX    10
#define SLOW_TRIES  5
#define TOKENS_MAX  (2 * TPO_TASKS_MAX + 2)

/* Keys of the draws that are not the order itself. */
enum { KEY_INSTEAD = 0x696e7374, KEY_QUESTIONS = 0x71756573 };

/* What is known of a row's medium once it has been decoded. */
struct seen {
    uint8_t digest[TPO_SHA256_BYTES];
    int frames; /* 0: not decoded yet */
};

struct tpo_source {
    struct tpo_source_options o;
    struct tpo_config config; /* with the frames of this source */
    struct tpo_annotations *rows;
    const char *tokens[TOKENS_MAX];
    struct tpo_stream *streams[THREADS_MAX];
    int n_threads;
    pthread_mutex_t lock; /* of the bad rows: threads of one fill meet here */
    struct tpo_bad_rows *bad;
    struct seen *seen; /* by row; NULL where samples bring pixels */
    int told;
};

/* What one thread of a fill draws: every n_threads-th sample. */
struct part {
    struct tpo_source *source;
    struct tpo_world_batch *batch;
    uint64_t first;
    int part, n_parts, rc;
    struct tpo_error err;
};

/* --- rows that are bad --------------------------------------------------------------------------------------------------------------- */

static bool is_marked(struct tpo_source *s, int64_t row)
{
    pthread_mutex_lock(&s->lock);
    const bool marked = tpo_bad_rows_has(s->bad, row);
    pthread_mutex_unlock(&s->lock);
    return marked;
}

static void tell(struct tpo_source *s, const char *text)
{
    char quoted[512];
    if (s->told++ < TOLD_MAX) tpo_log(TPO_LOG_WARN, "row_skipped", "why=%s", tpo_log_quote(quoted, sizeof(quoted), text));
}

static void mark(struct part *p, int64_t row, const char *medium, const struct tpo_error *why)
{
    struct tpo_source *s = p->source;
    char text[300];
    snprintf(text, sizeof(text), "%.100s:%u: %.80s: %.90s", s->o.rows.annotations, tpo_annotations_line(s->rows, row), medium,
             why->message);
    pthread_mutex_lock(&s->lock);
    if (tpo_bad_rows_add(s->bad, p->first, row, text)) tell(s, text);
    pthread_mutex_unlock(&s->lock);
}

static void on_bad(void *owner, const char *text)
{
    tell(owner, text);
}

/* --- one sample ------------------------------------------------------------------------------------------------------------------------ */

/* A process that may open no more files is no fault of this one. */
static int not_opened(struct tpo_error *err)
{
    const bool ours = errno == EMFILE || errno == ENFILE || errno == ENOMEM;
    return tpo_fail(err, ours ? TPO_RESOURCE_EXHAUSTED : TPO_NOT_FOUND, ours ? "files" : "media_missing", "%s", strerror(errno));
}

/* What a busy machine does is no fault of the file: decoders that are in use are waited for, one that is slow gets more time, one that ended,
 * which may have been killed, another try. A file that is never done ends the run: to pass over it would make what is drawn depend on the
 * load. */
static int frames_read(struct tpo_frames *frames, tpo_media_t *media, const char *path, const struct tpo_config *c,
                       struct tpo_stream *stream, struct tpo_error *err)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return not_opened(err);
    int rc = TPO_DEADLINE_EXCEEDED;
    for (int slow = 0, ended = 0; slow < SLOW_TRIES && ended < 2 && rc != TPO_OK;) {
        rc = tpo_frames_load(frames, media, fd, c, stream, 0, err);
        if (rc != TPO_OK && rc != TPO_DEADLINE_EXCEEDED) ended += strcmp(err->reason, "media_unreadable") == 0 ? 1 : 2;
        if (rc == TPO_DEADLINE_EXCEEDED) slow += strcmp(err->reason, "media_busy") != 0;
    }
    close(fd);
    if (rc != TPO_DEADLINE_EXCEEDED) return rc;
    return tpo_fail(err, TPO_FAILED_PRECONDITION, "media_slow",
                    "%.200s is not decoded in %d tries: the machine is too busy, or the file is to be replaced by an empty one",
                    path, SLOW_TRIES);
}

static bool is_of_the_file(const struct tpo_error *err)
{
    static const char *const reasons[] = {"media_unreadable", "media_too_large", "media_missing", "media_frame"};
    for (size_t i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++)
        if (strcmp(err->reason, reasons[i]) == 0) return true;
    return err->code == TPO_NOT_FOUND; /* the row's own medium is gone */
}

static int digest_read(uint8_t digest[TPO_SHA256_BYTES], const char *path, struct tpo_error *err)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL) return not_opened(err);
    tpo_sha256_t *hash = tpo_sha256_open();
    char bytes[1 << 15];
    for (size_t n; (n = fread(bytes, 1, sizeof(bytes), f)) > 0;) tpo_sha256_add(hash, bytes, n);
    const bool whole = !ferror(f);
    fclose(f);
    tpo_sha256_end(hash, digest);
    tpo_sha256_close(hash);
    return whole ? TPO_OK : tpo_fail(err, TPO_NOT_FOUND, "media_missing", "it could not be read to its end");
}

/* Threads of one fill may meet at a row and find the same. */
static struct seen seen_get(struct tpo_source *s, int64_t row)
{
    pthread_mutex_lock(&s->lock);
    const struct seen seen = s->seen != NULL ? s->seen[row] : (struct seen){.frames = 0};
    pthread_mutex_unlock(&s->lock);
    return seen;
}

static int pixels_set(struct tpo_arena *a, struct tpo_sample *out, const struct tpo_frames *frames, const struct tpo_config *c,
                      struct tpo_error *err)
{
    const int side = c->vision_encoder.img_size;
    const size_t bytes = (size_t)frames->T * (size_t)side * (size_t)side * 3;
    out->n_frames = frames->T;
    out->height = out->width = side;
    out->pixels = (const uint8_t *)tpo_arena_copy(a, frames->pixels, bytes);
    out->media_id = NULL;
    return out->pixels != NULL ? TPO_OK : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a sample");
}

int tpo_source_pixels(tpo_media_t *media, const struct tpo_config *c, struct tpo_stream *stream, struct tpo_arena *a,
                      struct tpo_sample *s, struct tpo_error *err)
{
    struct tpo_frames frames = {0};
    struct tpo_error why = {0};
    int rc = frames_read(&frames, media, s->media_path, c, stream, &why);
    if (rc == TPO_OK && frames.T == s->n_frames)
        rc = pixels_set(a, s, &frames, c, err);
    else if (rc == TPO_OK || is_of_the_file(&why))
        rc = tpo_fail(err, TPO_FAILED_PRECONDITION, "media_gone", "%.200s is not what it was: %.200s", s->media_path,
                      rc == TPO_OK ? "it has another number of frames" : why.message);
    else if (err != NULL)
        *err = why;
    tpo_frames_free(&frames);
    return rc;
}

static int name_set(struct part *p, struct tpo_sample *out, const struct seen *seen, const char *path, struct tpo_error *err)
{
    struct tpo_arena *arena = &p->batch->arenas[p->part];
    char id[TPO_SHA256_HEX];
    out->n_frames = seen->frames;
    out->media_id = tpo_arena_copy(arena, tpo_sha256_hex(id, seen->digest), sizeof(id) - 1);
    out->media_path = tpo_arena_copy(arena, path, strlen(path));
    return out->media_id != NULL && out->media_path != NULL ? TPO_OK
                                                            : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a sample");
}

/* The medium of a row that is drawn for the first time. */
static int medium_look(struct part *p, int64_t row, const char *path, struct tpo_sample *out, struct seen *seen,
                       struct tpo_error *err)
{
    struct tpo_source *s = p->source;
    struct tpo_frames frames = {0};
    int rc = frames_read(&frames, s->o.media, path, &s->config, s->streams[p->part], err);
    if (rc == TPO_OK && frames.T < 1) rc = tpo_fail(err, TPO_INVALID_ARGUMENT, "media_unreadable", "it has no frames");
    if (rc == TPO_OK && s->seen == NULL) rc = pixels_set(&p->batch->arenas[p->part], out, &frames, &s->config, err);
    if (rc == TPO_OK && s->seen != NULL && (rc = digest_read(seen->digest, path, err)) == TPO_OK) {
        seen->frames = frames.T;
        pthread_mutex_lock(&s->lock);
        s->seen[row] = *seen;
        pthread_mutex_unlock(&s->lock);
    }
    tpo_frames_free(&frames);
    return rc;
}

/* Both what the row says and what its medium shows or is called, in the arena of this part. */
static int row_take(struct part *p, int64_t row, struct tpo_sample *out, struct tpo_error *err)
{
    struct tpo_source *s = p->source;
    char path[4096] = "";
    struct seen seen = seen_get(s, row);
    int rc = tpo_annotations_row(s->rows, &p->batch->arenas[p->part], row, out, err);
    const char *medium = rc == TPO_OK ? out->media_id : "";
    if (rc == TPO_OK) snprintf(path, sizeof(path), "%s/%s", s->o.rows.media, medium);
    if (rc == TPO_OK && seen.frames == 0) rc = medium_look(p, row, path, out, &seen, err);
    if (rc != TPO_OK && is_of_the_file(err)) mark(p, row, medium, err);
    return rc == TPO_OK && s->seen != NULL ? name_set(p, out, &seen, path, err) : rc;
}

static void questions_choose(const struct tpo_source *s, struct tpo_sample *sample, uint64_t index)
{
    struct tpo_conversation *all = (struct tpo_conversation *)sample->conversations; /* the arena's, hence ours */
    for (int i = 0; i < sample->n_conversations; i++) all[i].weight_end = s->o.weight_end;
    const int more = sample->n_conversations - s->o.n_conversations;
    if (more <= 0) return;
    sample->conversations += tpo_random_u64(s->o.rows.seed ^ KEY_QUESTIONS, index) % (uint64_t)(more + 1);
    sample->n_conversations = s->o.n_conversations;
}

/* Rows whose media were missing when the file was read are told as they were found, and not by the first that was met. */
static int none_is_good(struct part *p, int64_t last)
{
    struct tpo_source *s = p->source;
    char first[300];
    pthread_mutex_lock(&s->lock);
    snprintf(first, sizeof(first), "%s", tpo_bad_rows_first(s->bad));
    pthread_mutex_unlock(&s->lock);
    if (first[0] == '\0')
        snprintf(first, sizeof(first), "%.100s:%u: its medium is missing", s->o.rows.annotations,
                 tpo_annotations_line(s->rows, last));
    return tpo_fail(&p->err, TPO_INVALID_ARGUMENT, "annotations", "%d rows drawn for one sample are bad: %.200s", TRIES, first);
}

static int sample_draw(struct part *p, uint64_t index, struct tpo_sample *out)
{
    struct tpo_source *s = p->source;
    const uint64_t n = (uint64_t)tpo_annotations_rows(s->rows);
    int64_t row = 0;
    for (uint64_t k = 0; k < TRIES; k++) {
        row = k == 0 ? tpo_annotations_pick(s->rows, index)
                     : (int64_t)(tpo_random_u64(s->o.rows.seed ^ KEY_INSTEAD, index * TRIES + k) % n);
        if (is_marked(s, row)) continue;
        memset(&p->err, 0, sizeof(p->err));
        const int rc = row_take(p, row, out, &p->err);
        if (rc == TPO_OK) questions_choose(s, out, index);
        if (rc == TPO_OK || !is_marked(s, row)) return rc;
    }
    return none_is_good(p, row);
}

static void *part_draw(void *arg)
{
    struct part *p = arg;
    for (int i = p->part; i < p->batch->n && p->rc == TPO_OK; i += p->n_parts)
        p->rc = sample_draw(p, p->first + (uint64_t)i, &p->batch->samples[i]);
    return NULL;
}

/* --- a batch ------------------------------------------------------------------------------------------------------------------------------ */

/* Of the file and its split, bad ones too. */
static int64_t rows_of(const struct tpo_source *s)
{
    return tpo_annotations_rows(s->rows) + tpo_annotations_all_bad(s->rows) - tpo_annotations_bad(s->rows, TPO_FAULT_ROW_MEDIA);
}

static int share_check(const struct tpo_source *s, struct tpo_error *err)
{
    const int64_t bad = tpo_source_skipped(s), all = rows_of(s);
    if ((double)bad <= s->o.rows.skip_most * (double)all) return TPO_OK;
    return tpo_fail(err, TPO_INVALID_ARGUMENT, "annotations", "%lld of %lld rows are bad, %lld for their media: %.200s",
                    (long long)bad, (long long)all, (long long)tpo_bad_rows_count(s->bad), tpo_bad_rows_first(s->bad));
}

int tpo_source_fill(struct tpo_source *s, struct tpo_world_batch *b, uint64_t first, int n, struct tpo_error *err)
{
    struct part parts[THREADS_MAX];
    pthread_t ids[THREADS_MAX];
    bool started[THREADS_MAX] = {false};
    const int threads = s->n_threads < n ? s->n_threads : n;
    if (tpo_world_batch_resize(b, n, threads) != TPO_OK) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for %d samples", n);
    for (int i = 0; i < threads; i++) {
        parts[i] = (struct part){.source = s, .batch = b, .first = first, .part = i, .n_parts = threads};
        started[i] = i > 0 && pthread_create(&ids[i], NULL, part_draw, &parts[i]) == 0;
    }
    int rc = TPO_OK;
    for (int i = 0; i < threads; i++) {
        if (started[i])
            pthread_join(ids[i], NULL);
        else
            part_draw(&parts[i]);
        if (rc == TPO_OK && parts[i].rc != TPO_OK) {
            rc = parts[i].rc;
            if (err != NULL) *err = parts[i].err;
        }
    }
    return rc == TPO_OK ? share_check(s, err) : rc;
}

/* --- open and close ------------------------------------------------------------------------------------------------------------------------ */

/* A film's frames are the model's, or fewer where each frame has a place of its own. */
int tpo_source_takes(const struct tpo_config *c, const char *annotations, int n_frames, struct tpo_error *err)
{
    const int most = c->vision_encoder.num_frames;
    const bool fewer = c->vision_encoder.ext_position && !c->vision_encoder.temporal_pad;
    if (n_frames == 0 || n_frames == most || (fewer && n_frames < most)) return TPO_OK;
    return tpo_fail(err, TPO_INVALID_ARGUMENT, "frames", "%.200s: films of %d frames, but the model takes %s%d", annotations,
                    n_frames, fewer ? "at most " : "", most);
}

static int frames_set(struct tpo_source *s, struct tpo_error *err)
{
    s->config = *s->o.config;
    if (s->o.n_frames > 0) s->config.vision_encoder.num_frames = s->o.n_frames;
    return tpo_source_takes(s->o.config, s->o.rows.annotations, s->o.n_frames, err);
}

static void tokens_set(struct tpo_source *s)
{
    int n = 0;
    s->tokens[n++] = "<track_box>";
    for (int i = 0; i < s->config.n_tasks; i++) {
        s->tokens[n++] = s->config.tasks[i].trigger;
        s->tokens[n++] = s->config.tasks[i].slot;
    }
}

static void summary_log(const struct tpo_source *s)
{
    char path[600], faults[200] = "";
    size_t at = 0;
    for (int f = 0; f < TPO_ROW_FAULTS; f++) {
        const int64_t n = tpo_annotations_bad(s->rows, (enum tpo_annotation_fault)f);
        if (n > 0 && at < sizeof(faults))
            at += (size_t)snprintf(faults + at, sizeof(faults) - at, "%s%s: %lld", at > 0 ? ", " : "",
                                   tpo_annotation_fault_name((enum tpo_annotation_fault)f), (long long)n);
    }
    tpo_log_quote(path, sizeof(path), s->o.rows.annotations);
    tpo_log(TPO_LOG_INFO, "source", "file=%s rows=%lld left_out=%lld skipped=%lld faults=\"%s\"", path, (long long)rows_of(s),
            (long long)tpo_annotations_left_out(s->rows), (long long)tpo_source_skipped(s), faults);
}

static bool is_missing(const void *owner, int64_t row)
{
    return tpo_annotations_missing(owner, row);
}

int tpo_source_open(struct tpo_source **out, const struct tpo_source_options *o, struct tpo_error *err)
{
    struct tpo_source *s = calloc(1, sizeof(*s));
    if (s == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a source");
    s->o = *o;
    pthread_mutex_init(&s->lock, NULL);
    int rc = frames_set(s, err);
    tokens_set(s);
    s->o.rows.tokens = s->tokens;
    s->o.rows.on_bad = on_bad;
    s->o.rows.owner = s;
    if (rc == TPO_OK) rc = tpo_annotations_open(&s->rows, &s->o.rows, err);
    if (rc == TPO_OK) {
        const struct tpo_bad_rows_of rows = {tpo_annotations_rows(s->rows), o->rows_of, is_missing, s->rows};
        rc = tpo_bad_rows_open(&s->bad, o->bad_rows, &rows, o->first, err);
    }
    const bool by_id = o->by_id && s->config.vision_encoder.num_frames == o->config->vision_encoder.num_frames;
    if (rc == TPO_OK && by_id && (s->seen = calloc((size_t)tpo_annotations_rows(s->rows) + 1, sizeof(*s->seen))) == NULL)
        rc = tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a source");
    while (rc == TPO_OK && s->n_threads < THREADS_MAX && (s->n_threads < o->threads || s->n_threads == 0)) {
        rc = tpo_stream_open(&s->streams[s->n_threads], "cpu", 1, err);
        if (rc == TPO_OK) s->n_threads++;
    }
    if (rc == TPO_OK) {
        summary_log(s);
        *out = s;
    } else {
        tpo_source_close(s);
    }
    return rc;
}

void tpo_source_close(struct tpo_source *s)
{
    if (s == NULL) return;
    for (int i = 0; i < s->n_threads; i++) tpo_stream_close(s->streams[i]);
    tpo_annotations_close(s->rows);
    pthread_mutex_destroy(&s->lock);
    tpo_bad_rows_close(s->bad);
    free(s->seen);
    free(s);
}

int64_t tpo_source_skipped(const struct tpo_source *s)
{
    return tpo_annotations_all_bad(s->rows) + tpo_bad_rows_count(s->bad);
}

int64_t tpo_source_films(const struct tpo_source *s)
{
    return tpo_annotations_films(s->rows);
}
