/* This file owns the frames of recorded samples: decoded ahead, handed over once, forgotten.
 *
 * A slot moves  empty --asked--> wanted --a thread is free--> loading --> ready or failed --taken--> empty. Only the compute thread asks and
 * takes. */
#include "services/encoder/recorded.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nn/snapshot.h"
#include "services/encoder/frames.h"

#define SLOTS   32 /* more than threads, so that one can always be freed */
#define THREADS 16

enum slot_state { SLOT_EMPTY, SLOT_WANTED, SLOT_LOADING, SLOT_READY, SLOT_FAILED };

struct slot {
    enum slot_state state;
    char id[TPO_SHA256_HEX];
    uint64_t order; /* of asking; 0: somebody waits */
    struct tpo_frames frames;
    struct tpo_error err;
};

struct tpo_recorded {
    struct tpo_recorded_options o;
    char loaded[72], digest[72]; /* of the weights: the folder's; as they are, "" where nobody has asked since they were replaced */
    struct tpo_model model, *inner;
    struct tpo_snapshot *untrained; /* where the weights lay when the folder was read */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct slot slots[SLOTS];
    uint64_t asked;
    bool closing;
    pthread_t threads[THREADS];
    int n_threads;
};

/* --- decoding ---------------------------------------------------------------------------------------------------------------------------- */

/* Every error names the medium: a trainer that sent many asks for the one in another way. */
static int load(struct tpo_recorded *r, struct tpo_frames *frames, const char *id, struct tpo_stream *stream, struct tpo_error *err)
{
    struct tpo_error why = {0};
    const int fd = tpo_store_fd(r->o.store, id);
    if (fd < 0) return tpo_fail(err, TPO_FAILED_PRECONDITION, "media_missing", "the encoder lacks the bytes of %s", id);
    const int rc = tpo_frames_load(frames, r->o.media, fd, r->o.config, stream, r->o.timeout_ms, &why);
    close(fd);
    if (rc != TPO_OK) tpo_fail(err, rc, why.reason, "%.150s: %s", why.message, id);
    tpo_metrics_add(r->o.metrics, "tpo_media_decodes_total", rc == TPO_OK ? "result=\"ok\"" : "result=\"error\"", 1);
    return rc;
}

static struct slot *next_wanted(struct tpo_recorded *r)
{
    struct slot *best = NULL;
    for (int i = 0; i < SLOTS; i++)
        if (r->slots[i].state == SLOT_WANTED && (best == NULL || r->slots[i].order < best->order)) best = &r->slots[i];
    return best;
}

static void *decode_thread(void *arg)
{
    struct tpo_recorded *r = arg;
    struct tpo_stream *stream = NULL;
    struct tpo_error opened = {0};
    const int usable = tpo_stream_open(&stream, "cpu", 1, &opened);
    pthread_mutex_lock(&r->lock);
    while (!r->closing) {
        struct slot *s = next_wanted(r);
        if (s == NULL) {
            pthread_cond_wait(&r->changed, &r->lock);
            continue;
        }
        s->state = SLOT_LOADING;
        s->err = opened;
        pthread_mutex_unlock(&r->lock);
        const int rc = usable == TPO_OK ? load(r, &s->frames, s->id, stream, &s->err) : usable;
        pthread_mutex_lock(&r->lock);
        s->state = rc == TPO_OK ? SLOT_READY : SLOT_FAILED;
        pthread_cond_broadcast(&r->changed);
    }
    pthread_mutex_unlock(&r->lock);
    tpo_stream_close(stream);
    return NULL;
}

/* The slot of `id`, or one for it: an empty one, else the one asked for the longest ago that nobody loads. The lock is held. */
static struct slot *slot_for(struct tpo_recorded *r, const char *id)
{
    struct slot *free_one = NULL, *oldest = NULL;
    for (int i = 0; i < SLOTS; i++) {
        struct slot *s = &r->slots[i];
        if (s->state == SLOT_EMPTY)
            free_one = s;
        else if (strcmp(s->id, id) == 0)
            return s;
        else if (s->state != SLOT_LOADING && (oldest == NULL || s->order < oldest->order))
            oldest = s;
    }
    if (free_one == NULL) {
        tpo_frames_free(&oldest->frames);
        free_one = oldest;
    }
    *free_one = (struct slot){.state = SLOT_WANTED, .order = ++r->asked};
    snprintf(free_one->id, sizeof(free_one->id), "%s", id);
    return free_one;
}

static void ask(struct tpo_recorded *r, const char *id)
{
    if (id == NULL || !tpo_sha256_is_hex(id)) return;
    pthread_mutex_lock(&r->lock);
    slot_for(r, id);
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

/* The frames are the caller's. What failed ahead is tried again: its bytes may have come since. */
static int take(struct tpo_recorded *r, const char *id, struct tpo_frames *out, struct tpo_error *err)
{
    if (!tpo_sha256_is_hex(id)) return tpo_fail(err, TPO_INVALID_ARGUMENT, "media_id", "a media id is 64 lower-case hex digits");
    pthread_mutex_lock(&r->lock);
    struct slot *s = slot_for(r, id);
    if (s->state == SLOT_FAILED) s->state = SLOT_WANTED;
    s->order = 0;
    pthread_cond_broadcast(&r->changed);
    while (s->state != SLOT_READY && s->state != SLOT_FAILED) pthread_cond_wait(&r->changed, &r->lock);
    const struct tpo_error failed = s->err;
    const bool ok = s->state == SLOT_READY;
    *out = s->frames;
    *s = (struct slot){0};
    pthread_mutex_unlock(&r->lock);
    if (ok) return TPO_OK;
    tpo_frames_free(out);
    if (err != NULL) *err = failed;
    return failed.code;
}

/* --- a frozen encoder ------------------------------------------------------------------------------------------------------------------------ */

static void recorded_replaced(void *self)
{
    struct tpo_recorded *r = self;
    r->digest[0] = '\0';
}

/* Of the weights as they are, made once for a frozen stage. The training-only heads are not in a frozen pass and do not count. */
static int digest_make(struct tpo_recorded *r, struct tpo_stream *s, struct tpo_error *err)
{
    if (r->digest[0] != '\0') return TPO_OK;
    return tpo_snapshot_digest_trained(r->digest, s, r->loaded, r->inner->params, r->untrained, err);
}

static bool from_cache(struct tpo_recorded *r, const struct tpo_cache_key *key, float *visual, int rows, int cols)
{
    struct tpo_cached v;
    if (r->o.cache == NULL || tpo_cache_get(r->o.cache, key, &v) != TPO_CACHE_HIT) return false;
    const bool fits = v.dtype == TPO_F32 && v.n_dims == 2 && v.shape[0] == rows && v.shape[1] == cols;
    if (fits) memcpy(visual, v.data, (size_t)rows * (size_t)cols * sizeof(float));
    tpo_cached_free(&v);
    return fits;
}

static int computed(struct tpo_recorded *r, const char *id, const struct tpo_cache_key *key, float *visual, int rows, int cols,
                    struct tpo_error *err)
{
    struct tpo_frames f = {0};
    int rc = take(r, id, &f, err);
    if (rc == TPO_OK) rc = tpo_encoder_run(r->o.encoder, visual, f.pixels, f.T, err);
    if (rc == TPO_OK && r->o.cache != NULL) {
        const struct tpo_cached v = {.dtype = TPO_F32,
                                     .n_dims = 2,
                                     .shape = {rows, cols},
                                     .data = visual,
                                     .data_bytes = (size_t)rows * (size_t)cols * sizeof(float),
                                     .width = (uint32_t)f.width,
                                     .height = (uint32_t)f.height,
                                     .duration_s = f.duration_s,
                                     .n_frames = f.T,
                                     .indices = f.indices,
                                     .times = f.times};
        tpo_cache_put(r->o.cache, key, &v);
    }
    tpo_frames_free(&f);
    return rc;
}

static int frozen_forward(struct tpo_recorded *r, struct tpo_tape *t, struct tpo_forward *f, struct tpo_error *err)
{
    const int rows = tpo_config_queries(r->o.config), cols = r->o.config->bridge.hidden_size;
    float *visual = tpo_arena_alloc(tpo_tape_arena(t), sizeof(*visual) * (size_t)f->n_samples * (size_t)rows * (size_t)cols);
    int n_computed = 0;
    if (visual == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for visual tokens");
    int rc = digest_make(r, tpo_tape_stream(t), err);
    if (rc != TPO_OK) return rc;
    for (int i = 0; i < f->n_samples; i++) {
        const char *id = f->samples[i].media_id;
        float *own = visual + (int64_t)i * rows * cols;
        struct tpo_cache_key key;
        tpo_encoder_key(&key, r->o.how, id, r->digest);
        const bool hit = tpo_sha256_is_hex(id) && from_cache(r, &key, own, rows, cols);
        rc = hit ? TPO_OK : computed(r, id, &key, own, rows, cols, err);
        if (rc != TPO_OK) return rc;
        n_computed += !hit;
        tpo_metrics_add(r->o.metrics, "tpo_training_visual_total", hit ? "source=\"cache\"" : "source=\"encoder\"", 1);
    }
    /* Where the cache had all of these it will have the next ones too, as a rule. */
    for (int i = 0; i < f->n_samples && n_computed > 0; i++) ask(r, f->samples[i].next_media_id);
    tpo_forward_output(f, "visual", tpo_input(t, visual, f->n_samples * rows, cols, false));
    return tpo_tape_error(t);
}

/* --- the model ------------------------------------------------------------------------------------------------------------------------------- */

/* The inner pass over a copy of the samples that has their pixels. */
static int decoded_forward(struct tpo_recorded *r, struct tpo_tape *t, struct tpo_forward *f, struct tpo_error *err)
{
    const struct tpo_sample *given = f->samples;
    const size_t n = (size_t)f->n_samples;
    struct tpo_sample *samples = tpo_arena_alloc(tpo_tape_arena(t), n * sizeof(*samples));
    struct tpo_frames *frames = calloc(n, sizeof(*frames));
    const int side = r->o.config->vision_encoder.img_size;
    int64_t n_frames = 0;
    int rc = samples != NULL && frames != NULL ? TPO_OK : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for recorded samples");
    for (size_t i = 0; i < n && rc == TPO_OK; i++) {
        samples[i] = given[i];
        if (given[i].media_id == NULL) continue;
        rc = take(r, given[i].media_id, &frames[i], err);
        n_frames += frames[i].T;
        if (rc == TPO_OK && !tpo_tape_fits(t, n_frames * side * side * 3)) /* before the next ones are in memory, too */
            rc = tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "batch_size",
                          "%d samples have over %lld frames, more than memory holds here", f->n_samples, (long long)n_frames);
        samples[i].n_frames = frames[i].T;
        samples[i].height = samples[i].width = side;
        samples[i].pixels = frames[i].pixels;
    }
    for (size_t i = 0; i < n && rc == TPO_OK; i++) ask(r, given[i].next_media_id);
    f->samples = samples;
    if (rc == TPO_OK) rc = r->inner->forward(r->inner->self, t, f, err);
    f->samples = given;
    for (size_t i = 0; i < n && frames != NULL; i++) tpo_frames_free(&frames[i]);
    free(frames);
    return rc;
}

static int recorded_forward(void *self, struct tpo_tape *t, struct tpo_forward *f, struct tpo_error *err)
{
    struct tpo_recorded *r = self;
    int n_recorded = 0;
    for (int i = 0; i < f->n_samples; i++) n_recorded += f->samples[i].media_id != NULL;
    if (n_recorded == 0) return r->inner->forward(r->inner->self, t, f, err);
    const bool dense = f->wants_loss != NULL && f->wants_loss(f->plan, "dense");
    if (n_recorded == f->n_samples && !f->training && !dense) return frozen_forward(r, t, f, err);
    return decoded_forward(r, t, f, err);
}

struct tpo_model *tpo_recorded_model(struct tpo_recorded *r)
{
    return &r->model;
}

int tpo_recorded_open(struct tpo_recorded **out, const struct tpo_recorded_options *o, struct tpo_error *err)
{
    struct tpo_recorded *r = calloc(1, sizeof(*r));
    *out = r;
    if (r == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for recorded samples");
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    r->o = *o;
    r->inner = tpo_encoder_model(o->encoder);
    r->model = *r->inner;
    r->model.self = r;
    r->model.forward = recorded_forward;
    r->model.replaced = recorded_replaced;
    snprintf(r->loaded, sizeof(r->loaded), "%s", o->digest);
    int rc = tpo_snapshot_open(&r->untrained, r->inner->params, o->digest, err);
    while (rc == TPO_OK && r->n_threads < o->threads && r->n_threads < THREADS &&
           pthread_create(&r->threads[r->n_threads], NULL, decode_thread, r) == 0)
        r->n_threads++;
    if (rc == TPO_OK && r->n_threads > 0) return TPO_OK;
    if (rc == TPO_OK) rc = tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "threads", "no thread can be started");
    tpo_recorded_close(r);
    *out = NULL;
    return rc;
}

void tpo_recorded_close(struct tpo_recorded *r)
{
    if (r == NULL) return;
    pthread_mutex_lock(&r->lock);
    r->closing = true;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    while (r->n_threads > 0) pthread_join(r->threads[--r->n_threads], NULL);
    for (int i = 0; i < SLOTS; i++) tpo_frames_free(&r->slots[i].frames);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->changed);
    tpo_snapshot_close(r->untrained, NULL);
    free(r);
}
