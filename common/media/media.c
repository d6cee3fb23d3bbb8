/* This file owns the pool of decoding processes and the files that hold one. */
#include "common/media/media.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/files.h"
#include "common/media/process.h"
#include "common/utf8.h"

#define WORKERS_MAX 64
#define RING_SPARE  ((size_t)8 << 20) /* above this, memory of a closed file's frames goes back to the system */
#define AHEAD       8                 /* frames asked for before the first is read */

struct tpo_media_file {
    struct tpo_media *media;
    struct tpo_process process;
    struct tpo_media_info info;
};

struct tpo_media {
    struct tpo_media_options options;
    char program[512];
    size_t ring_bytes;
    pthread_mutex_t lock;
    pthread_cond_t freed;
    int n_idle, n_out;
    struct tpo_process idle[WORKERS_MAX]; /* pid 0: to be started by whoever takes it */
};

int tpo_media_open(tpo_media_t **out, const struct tpo_media_options *options, struct tpo_error *err)
{
    *out = NULL;
    struct tpo_media *m = calloc(1, sizeof(*m));
    if (m == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a pool of decoders");
    if (options != NULL) m->options = *options;
    struct tpo_media_options *o = &m->options;
    if (o->n_workers <= 0) o->n_workers = 1;
    if (o->n_workers > WORKERS_MAX) o->n_workers = WORKERS_MAX;
    if (o->max_pixels <= 0) o->max_pixels = (int64_t)1 << 26;
    if (o->max_frames <= 0) o->max_frames = 4000000;
    if (o->timeout_ms <= 0) o->timeout_ms = 20000;
    m->ring_bytes = ((size_t)o->max_pixels * 3 + 4095) & ~(size_t)4095;
    if (o->program != NULL)
        snprintf(m->program, sizeof(m->program), "%s", o->program);
    else
        tpo_beside(m->program, sizeof(m->program), "tpo-media");
    pthread_mutex_init(&m->lock, NULL);
    tpo_cond_init(&m->freed);
    m->n_idle = o->n_workers;
    for (int i = 0; i < m->n_idle; i++) m->idle[i].socket = -1;
    /* The last of the stack is the first to be taken. */
    int rc = tpo_process_start(&m->idle[m->n_idle - 1], m->program, m->ring_bytes, err);
    if (rc != TPO_OK) {
        tpo_media_close(m);
        return rc;
    }
    *out = m;
    return TPO_OK;
}

void tpo_media_close(tpo_media_t *m)
{
    if (m == NULL) return;
    TPO_ASSERT(m->n_out == 0);
    for (int i = 0; i < m->n_idle; i++) tpo_process_kill(&m->idle[i]);
    pthread_cond_destroy(&m->freed);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

static int take_worker(tpo_media_t *m, struct tpo_process *p, int64_t until_us, struct tpo_error *err)
{
    const struct timespec until = tpo_cond_until(until_us);
    int rc = 0;
    pthread_mutex_lock(&m->lock);
    while (m->n_idle == 0 && rc == 0) rc = pthread_cond_timedwait(&m->freed, &m->lock, &until);
    if (m->n_idle > 0) {
        *p = m->idle[--m->n_idle];
        m->n_out++;
        rc = 0;
    }
    pthread_mutex_unlock(&m->lock);
    return rc == 0 ? TPO_OK : tpo_fail(err, TPO_DEADLINE_EXCEEDED, "media_busy", "every decoder is busy");
}

static void give_worker(tpo_media_t *m, struct tpo_process *p)
{
    pthread_mutex_lock(&m->lock);
    m->idle[m->n_idle++] = *p;
    m->n_out--;
    pthread_cond_signal(&m->freed);
    pthread_mutex_unlock(&m->lock);
}

static int64_t until(const tpo_media_t *m, int timeout_ms)
{
    return tpo_now_us() + (int64_t)(timeout_ms > 0 ? timeout_ms : m->options.timeout_ms) * 1000;
}

/* An error that the worker reports, believed only as far as its code is one it may give. */
static int reported(const struct tpo_media_reply *r, struct tpo_error *err)
{
    int code = r->code == TPO_OUT_OF_RANGE ? TPO_OUT_OF_RANGE : TPO_INVALID_ARGUMENT;
    const char *reason = strcmp(r->reason, "media_too_large") == 0 ? r->reason
                         : code == TPO_OUT_OF_RANGE                ? "media_frame"
                                                                   : "media_unreadable";
    /* Bytes that are no text would make the error unreadable for whoever it is sent to. */
    return tpo_fail(err, code, reason, "%s", tpo_utf8_valid(r->message, strlen(r->message)) ? r->message : "?");
}

static int info_is_sane(const tpo_media_t *m, const struct tpo_media_reply *r)
{
    return r->width >= 1 && r->width <= TPO_MEDIA_SIDE && r->height >= 1 && r->height <= TPO_MEDIA_SIDE &&
           (int64_t)r->width * r->height <= m->options.max_pixels && r->n_frames >= 1 && r->n_frames <= m->options.max_frames &&
           isfinite(r->fps) && r->fps > 0 && isfinite(r->duration_s) && r->duration_s >= 0;
}

static int ask(tpo_media_file_t *f, struct tpo_media_request *q, int fd, struct tpo_media_reply *r, int64_t until_us,
               struct tpo_error *err)
{
    int rc = tpo_process_send(&f->process, q, fd, until_us, err);
    return rc == TPO_OK ? tpo_process_receive(&f->process, r, f->process.last_id, until_us, err) : rc;
}

static int open_in_worker(tpo_media_file_t *f, int fd, int64_t until_us, struct tpo_error *err)
{
    tpo_media_t *m = f->media;
    struct tpo_media_request q = {.kind = TPO_MEDIA_OPEN, .max_pixels = m->options.max_pixels, .max_frames = m->options.max_frames};
    struct tpo_media_reply r;
    int rc = TPO_OK;
    if (f->process.pid == 0) rc = tpo_process_start(&f->process, m->program, m->ring_bytes, err);
    if (rc == TPO_OK) rc = ask(f, &q, fd, &r, until_us, err);
    if (rc != TPO_OK) return rc;
    if (r.code != TPO_OK) return reported(&r, err);
    if (!info_is_sane(m, &r)) {
        tpo_process_kill(&f->process);
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "media_unreadable", "the decoder answers nonsense about this file");
    }
    f->info = (struct tpo_media_info){r.image != 0, r.width, r.height, r.n_frames, r.fps, r.duration_s};
    return TPO_OK;
}

int tpo_media_file_open_fd(tpo_media_t *m, tpo_media_file_t **out, int fd, int timeout_ms, struct tpo_error *err)
{
    struct stat st;
    int64_t until_us = until(m, timeout_ms);
    *out = NULL;
    /* A pipe or a device would keep the worker waiting, or have effects. */
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "media_unreadable", "it is no file");
    if (st.st_size == 0) return tpo_fail(err, TPO_INVALID_ARGUMENT, "media_unreadable", "the file is empty");
    tpo_media_file_t *f = calloc(1, sizeof(*f));
    if (f == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a file");
    int rc = take_worker(m, &f->process, until_us, err);
    if (rc != TPO_OK) {
        free(f);
        return rc;
    }
    f->media = m;
    rc = open_in_worker(f, fd, until_us, err);
    if (rc != TPO_OK)
        tpo_media_file_close(f);
    else
        *out = f;
    return rc;
}

int tpo_media_file_open(tpo_media_t *m, tpo_media_file_t **out, const char *path, int timeout_ms, struct tpo_error *err)
{
    *out = NULL;
    /* Non-blocking, or the open of a fifo would wait for a writer. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return tpo_fail(err, TPO_NOT_FOUND, "media_missing", "%s: %s", path, strerror(errno));
    int rc = tpo_media_file_open_fd(m, out, fd, timeout_ms, err);
    close(fd);
    return rc;
}

const struct tpo_media_info *tpo_media_file_info(const tpo_media_file_t *f)
{
    return &f->info;
}

void tpo_media_file_close(tpo_media_file_t *f)
{
    if (f == NULL) return;
    struct tpo_media_request q = {.kind = TPO_MEDIA_CLOSE};
    struct tpo_media_reply r;
    if (f->process.pid != 0) ask(f, &q, -1, &r, until(f->media, 0), NULL);
    if (f->process.pid != 0 && f->process.ring_bytes > RING_SPARE)
        madvise(f->process.ring + RING_SPARE, f->process.ring_bytes - RING_SPARE, MADV_REMOVE);
    give_worker(f->media, &f->process);
    free(f);
}

/* --- frames ---------------------------------------------------------------------------------------------------------------------- */
/* Requests run ahead of replies by as many frames as the ring has room for; a repeated index shares its neighbour's request. */
struct reading {
    const int32_t *indices;
    int n, n_slots;
    int asked, n_asked; /* next of `indices` to ask for; requests sent */
    int n_read;         /* replies received */
    size_t frame_bytes;
    uint32_t first_id;
};

static int repeated(const struct reading *r, int i)
{
    return i > 0 && r->indices[i] == r->indices[i - 1];
}

static int ask_ahead(tpo_media_file_t *f, struct reading *r, int64_t until_us, struct tpo_error *err)
{
    while (r->asked < r->n && r->n_asked - r->n_read < r->n_slots) {
        if (!repeated(r, r->asked)) {
            struct tpo_media_request q = {.kind = TPO_MEDIA_FRAME,
                                          .index = r->indices[r->asked],
                                          .offset = (size_t)(r->n_asked % r->n_slots) * r->frame_bytes};
            int rc = tpo_process_send(&f->process, &q, -1, until_us, err);
            if (rc != TPO_OK) return rc;
            r->n_asked++;
        }
        r->asked++;
    }
    return TPO_OK;
}

/* Replies on their way would be taken for those of the next call. */
static void drain(tpo_media_file_t *f, struct reading *r, int64_t until_us)
{
    struct tpo_media_reply reply;
    while (f->process.pid != 0 && r->n_read < r->n_asked)
        if (tpo_process_receive(&f->process, &reply, r->first_id + (uint32_t)r->n_read++, until_us, NULL) != TPO_OK) return;
}

static int read_frames(tpo_media_file_t *f, struct reading *r, tpo_media_on_frame *on_frame, void *arg, int64_t until_us,
                       struct tpo_error *err)
{
    double time_s = 0;
    const uint8_t *rgb = NULL;
    for (int i = 0; i < r->n; i++) {
        if (!repeated(r, i)) {
            struct tpo_media_reply reply;
            int rc = ask_ahead(f, r, until_us, err);
            if (rc != TPO_OK) return rc;
            rgb = f->process.ring + (size_t)(r->n_read % r->n_slots) * r->frame_bytes;
            rc = tpo_process_receive(&f->process, &reply, r->first_id + (uint32_t)r->n_read, until_us, err);
            if (rc != TPO_OK) return rc;
            r->n_read++;
            if (reply.code != TPO_OK) return reported(&reply, err);
            time_s = reply.time_s >= 0 && reply.time_s <= TPO_MEDIA_SECONDS_MAX ? reply.time_s : 0;
        }
        int rc = on_frame(arg, i, r->indices[i], time_s, rgb);
        if (rc != TPO_OK) return rc;
    }
    return TPO_OK;
}

int tpo_media_read(tpo_media_file_t *f, const int32_t *indices, int n, tpo_media_on_frame *on_frame, void *arg, int timeout_ms,
                   struct tpo_error *err)
{
    struct reading r = {.indices = indices, .n = n, .frame_bytes = (size_t)f->info.width * (size_t)f->info.height * 3};
    int64_t until_us = until(f->media, timeout_ms);
    if (f->process.pid == 0) return tpo_fail(err, TPO_INVALID_ARGUMENT, "media_unreadable", "the decoder ended over this file");
    for (int i = 0; i < n; i++)
        if (indices[i] < 0 || indices[i] >= f->info.n_frames)
            return tpo_fail(err, TPO_OUT_OF_RANGE, "media_frame", "frame %d of %lld", (int)indices[i], (long long)f->info.n_frames);
    size_t room = f->process.ring_bytes / r.frame_bytes;
    r.n_slots = room > AHEAD ? AHEAD : (int)room;
    r.first_id = f->process.last_id + 1;
    int rc = read_frames(f, &r, on_frame, arg, until_us, err);
    if (rc != TPO_OK) drain(f, &r, until_us);
    return rc;
}

struct into {
    uint8_t *rgb;
    double *times;
    size_t frame_bytes;
};

static int copy_frame(void *arg, int i, int64_t index, double time_s, const uint8_t *rgb)
{
    const struct into *to = arg;
    (void)index;
    memcpy(to->rgb + (size_t)i * to->frame_bytes, rgb, to->frame_bytes);
    if (to->times != NULL) to->times[i] = time_s;
    return TPO_OK;
}

int tpo_media_read_into(tpo_media_file_t *f, const int32_t *indices, int n, uint8_t *rgb, double *times, int timeout_ms,
                        struct tpo_error *err)
{
    struct into to = {rgb, times, (size_t)f->info.width * (size_t)f->info.height * 3};
    return tpo_media_read(f, indices, n, copy_frame, &to, timeout_ms, err);
}
