/* This file owns the producer thread: a ring of steps' samples between what they are drawn from and the trainer. */
#include "trainer/steps/feed.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "common/cores.h"
#include "kernels/vector.h"
#include "services/encoder/encoder.h"
#include "trainer/data/source.h"
#include "trainer/steps/messages.h"

#define RING         4
#define DECODERS_MAX 16
#define DECODE_MS    60000 /* of one try */

/* Of the machine's cores, the part that draws: a device that computes fast waits for it otherwise, a team of threads needs the rest. */
#define DRAWING_SHARE 4

struct tpo_feed {
    const struct tpo_recipe *recipe;
    int stage, micro_batches, threads;
    struct tpo_world *world; /* NULL where every data is a file's */
    struct tpo_world_draw draws[TPO_DATA_MAX];
    struct tpo_source *sources[TPO_DATA_MAX]; /* NULL: the world */
    uint64_t batches_of[TPO_DATA_MAX];        /* micro-batches that each data has filled since the stage began */
    const struct tpo_config *config;
    tpo_media_t *media;
    struct tpo_world_batch *ring[RING]; /* micro_batches each */
    int64_t skipped_at[RING], skipped;  /* rows passed over when a slot was drawn; of the slot taken last */
    bool reads;
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int drawn, taken, first; /* steps; slot of step s is (s - first) % RING */
    bool stop;
    int rc;
    struct tpo_error error;
};

static int step_draw(struct tpo_feed *f, int step, struct tpo_error *err)
{
    const struct tpo_recipe_stage *s = &f->recipe->stages[f->stage];
    const int slot = (step - f->first) % RING;
    int rc = TPO_OK;
    for (int m = 0; m < f->micro_batches && rc == TPO_OK; m++) {
        const int pick = tpo_recipe_pick(f->recipe, f->stage, step, m), n = s->data[pick].samples;
        struct tpo_world_batch *batch = &f->ring[slot][m];
        const uint64_t before = f->batches_of[pick]++;
        /* 1024 is the recipe's bound of `samples`: indices never meet. */
        const uint64_t index = ((uint64_t)step * (uint64_t)f->micro_batches + (uint64_t)m) * 1024;
        rc = f->sources[pick] != NULL ? tpo_source_fill(f->sources[pick], batch, before * (uint64_t)n, n, err)
                                      : tpo_world_batch_fill(batch, f->world, &f->draws[pick], index, n, f->threads, err);
    }
    f->skipped_at[slot] = 0;
    for (int i = 0; i < s->n_data; i++)
        if (f->sources[i] != NULL) f->skipped_at[slot] += tpo_source_skipped(f->sources[i]);
    return rc;
}

static void *produce(void *arg)
{
    struct tpo_feed *f = arg;
    pthread_mutex_lock(&f->lock);
    while (!f->stop && f->rc == TPO_OK) {
        /* One slot less than the ring: the step being used keeps its samples. */
        if (f->drawn - f->taken >= RING - 1) {
            pthread_cond_wait(&f->changed, &f->lock);
            continue;
        }
        const int step = f->first + f->drawn;
        struct tpo_error err = {0};
        pthread_mutex_unlock(&f->lock);
        const int rc = step_draw(f, step, &err);
        pthread_mutex_lock(&f->lock);
        f->drawn += rc == TPO_OK;
        f->rc = rc;
        f->error = err;
        pthread_cond_broadcast(&f->changed);
    }
    pthread_mutex_unlock(&f->lock);
    return NULL;
}

/* --- what a stage is drawn from ------------------------------------------------------------------------------------------------------- */

static int world_open(struct tpo_world **w, const struct tpo_recipe *r, int stage, const struct tpo_config *c,
                      struct tpo_error *err)
{
    /* Every stage of every recipe sees scenes of its own: 1,000 stages of seeds below 2^31. */
    const struct tpo_world_options options = {
        .split = TPO_WORLD_TRAIN, .seed = r->seed * 1000 + (uint64_t)stage, .side = c->vision_encoder.img_size};
    return *w != NULL ? TPO_OK : tpo_world_open(w, &options, err);
}

/* What the model, not the recipe, says of a draw. */
static struct tpo_world_draw draw_of(const struct tpo_recipe_data *d, const struct tpo_config *c,
                                     int (*word_id)(void *owner, const char *word), void *owner)
{
    struct tpo_world_draw draw = d->draw;
    draw.word_id = word_id;
    draw.owner = owner;
    draw.n_slots = tpo_config_queries(c);
    draw.patch = c->vision_encoder.patch_size;
    return draw;
}

static int source_open(struct tpo_feed *f, const struct tpo_feed_options *o, int i, struct tpo_error *err)
{
    const struct tpo_recipe_stage *s = &f->recipe->stages[f->stage];
    const struct tpo_recipe_data *d = &s->data[i];
    const int cores = tpo_cores();
    const int threads = cores > DECODERS_MAX ? DECODERS_MAX : cores;
    const struct tpo_media_options media = {.program = o->media_program, .n_workers = threads, .timeout_ms = DECODE_MS};
    int rc = f->media != NULL ? TPO_OK : tpo_media_open(&f->media, &media, err);
    if (rc != TPO_OK) return rc;
    f->reads = true;
    char bad_rows[4096];
    snprintf(bad_rows, sizeof(bad_rows), "%s/bad-rows-%d", o->dir != NULL ? o->dir : "", i + 1);
    const struct tpo_source_options options = {.rows = {.source = d->source,
                                                        .annotations = d->annotations,
                                                        .instances = d->instances,
                                                        .media = d->media,
                                                        .split = d->split[0] != '\0' ? d->split : NULL,
                                                        .skip_most = d->skip_most,
                                                        .seed = tpo_random_u64(s->plan.seed ^ 0x726f7773, (uint64_t)i)},
                                               .config = o->config,
                                               .media = f->media,
                                               .threads = threads,
                                               .n_frames = d->draw.n_frames,
                                               .n_conversations = d->draw.n_conversations,
                                               .weight_end = d->draw.weight_end,
                                               .bad_rows = o->dir != NULL ? bad_rows : NULL,
                                               .rows_of = o->data != NULL ? o->data[i].rows : "",
                                               .first = f->batches_of[i] * (uint64_t)d->samples,
                                               .by_id = o->by_id};
    rc = tpo_source_open(&f->sources[i], &options, err);
    if (rc != TPO_OK || !o->over_mesh) return rc;
    return tpo_message_check(s, i, o->config, o->by_id, tpo_source_films(f->sources[i]), err);
}

static int data_open(struct tpo_feed *f, const struct tpo_feed_options *o, struct tpo_error *err)
{
    const struct tpo_recipe_stage *s = &f->recipe->stages[f->stage];
    int rc = TPO_OK;
    tpo_recipe_drawn(f->recipe, f->stage, f->first - 1, f->batches_of);
    for (int i = 0; i < s->n_data && rc == TPO_OK; i++) {
        f->draws[i] = draw_of(&s->data[i], o->config, o->word_id, o->owner);
        rc =
            s->data[i].annotations != NULL ? source_open(f, o, i, err) : world_open(&f->world, o->recipe, o->stage, o->config, err);
    }
    return rc;
}

/* Of a draw that is only checked. */
static int no_word(void *owner, const char *word)
{
    (void)owner, (void)word;
    return -1;
}

static int entry_check(const struct tpo_recipe *r, int stage, int entry, const struct tpo_config *c, struct tpo_error *err)
{
    const struct tpo_recipe_data *d = &r->stages[stage].data[entry];
    if (d->annotations != NULL) return tpo_source_takes(c, d->annotations, d->draw.n_frames, err);
    const struct tpo_world_draw draw = draw_of(d, c, no_word, NULL);
    struct tpo_world *w = NULL;
    int rc = tpo_encoder_takes(c, draw.n_frames, err);
    if (rc == TPO_OK) rc = world_open(&w, r, stage, c, err);
    if (rc == TPO_OK) rc = tpo_world_draw_check(w, &draw, err);
    tpo_world_close(w);
    return rc;
}

int tpo_feed_check(const struct tpo_recipe *r, int first, const struct tpo_config *c, struct tpo_error *err)
{
    for (int i = first; i < r->n_stages; i++)
        for (int k = 0; k < r->stages[i].n_data; k++) {
            struct tpo_error why = {0};
            const int rc = entry_check(r, i, k, c, &why);
            if (rc != TPO_OK)
                return tpo_fail(err, rc, why.reason, "stage %s, entry %d of data: %.300s", r->stages[i].name, k + 1, why.message);
        }
    return TPO_OK;
}

int tpo_feed_open(struct tpo_feed **out, const struct tpo_feed_options *o, struct tpo_error *err)
{
    struct tpo_feed *f = calloc(1, sizeof(*f));
    if (f == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the feed");
    const int cores = tpo_cores();
    f->recipe = o->recipe;
    f->config = o->config;
    f->stage = o->stage;
    f->first = o->first_step;
    f->micro_batches = o->recipe->stages[o->stage].plan.micro_batches;
    f->threads = cores >= 2 * DRAWING_SHARE ? cores / DRAWING_SHARE : 1;
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->changed, NULL);
    int rc = data_open(f, o, err);
    for (int i = 0; i < RING && rc == TPO_OK; i++)
        if ((f->ring[i] = calloc((size_t)f->micro_batches, sizeof(*f->ring[i]))) == NULL)
            rc = tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the feed");
    if (rc == TPO_OK && pthread_create(&f->thread, NULL, produce, f) != 0)
        rc = tpo_fail(err, TPO_ENOMEM, "thread", "no thread for the feed");
    f->started = rc == TPO_OK;
    if (rc != TPO_OK)
        tpo_feed_close(f);
    else
        *out = f;
    return rc;
}

void tpo_feed_close(struct tpo_feed *f)
{
    if (f == NULL) return;
    if (f->started) {
        pthread_mutex_lock(&f->lock);
        f->stop = true;
        pthread_cond_broadcast(&f->changed);
        pthread_mutex_unlock(&f->lock);
        pthread_join(f->thread, NULL);
    }
    for (int i = 0; i < RING && f->ring[i] != NULL; i++) {
        for (int m = 0; m < f->micro_batches; m++) tpo_world_batch_free(&f->ring[i][m]);
        free(f->ring[i]);
    }
    for (int i = 0; i < TPO_DATA_MAX; i++) tpo_source_close(f->sources[i]);
    if (f->media != NULL) tpo_media_close(f->media);
    tpo_world_close(f->world);
    pthread_cond_destroy(&f->changed);
    pthread_mutex_destroy(&f->lock);
    free(f);
}

bool tpo_feed_reads(const struct tpo_feed *f)
{
    return f->reads;
}

int64_t tpo_feed_skipped(const struct tpo_feed *f)
{
    return f->skipped;
}

/* Each sample is told what comes in its place in the step after, where that is drawn already: its medium may then be decoded ahead. */
static void next_media_set(struct tpo_feed *f, struct tpo_world_batch *now, const struct tpo_world_batch *next)
{
    for (int m = 0; m < f->micro_batches; m++)
        for (int i = 0; i < now[m].n && i < next[m].n; i++) now[m].samples[i].next_media_id = next[m].samples[i].media_id;
}

int tpo_feed_next(struct tpo_feed *f, const struct tpo_world_batch **out, struct tpo_error *err)
{
    pthread_mutex_lock(&f->lock);
    while (f->drawn == f->taken && f->rc == TPO_OK) pthread_cond_wait(&f->changed, &f->lock);
    /* A step that cannot be drawn costs none of those before it. */
    const int rc = f->drawn > f->taken ? TPO_OK : f->rc;
    if (rc == TPO_OK) {
        *out = f->ring[f->taken % RING];
        f->skipped = f->skipped_at[f->taken % RING];
        if (f->drawn > f->taken + 1) next_media_set(f, f->ring[f->taken % RING], f->ring[(f->taken + 1) % RING]);
        f->taken++;
        pthread_cond_broadcast(&f->changed);
    } else if (err != NULL) {
        *err = f->error;
    }
    pthread_mutex_unlock(&f->lock);
    return rc;
}

int tpo_feed_pixels(const struct tpo_feed *f, struct tpo_arena *a, struct tpo_sample *s, struct tpo_error *err)
{
    struct tpo_stream *stream = NULL;
    int rc = tpo_stream_open(&stream, "cpu", 1, err);
    if (rc == TPO_OK) rc = tpo_source_pixels(f->media, f->config, stream, a, s, err);
    tpo_stream_close(stream);
    return rc;
}
