/* This file owns the producer thread: a ring of steps' samples between the world and the trainer. */
#include "trainer/steps/feed.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#define RING 4

/* Of the machine's cores, the part that draws: a device that computes fast waits for it otherwise, a team of threads needs the rest. */
#define DRAWING_SHARE 4

struct tpo_feed {
    const struct tpo_recipe *recipe;
    int stage, micro_batches, threads;
    struct tpo_world *world;
    struct tpo_world_draw draws[TPO_DATA_MAX];
    struct tpo_world_batch *ring[RING]; /* micro_batches each */
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
    struct tpo_world_batch *batches = f->ring[(step - f->first) % RING];
    int rc = TPO_OK;
    for (int m = 0; m < f->micro_batches && rc == TPO_OK; m++) {
        const int pick = tpo_recipe_pick(f->recipe, f->stage, step, m);
        /* 1024 is the recipe's bound of `samples`: indices never meet. */
        const uint64_t index = ((uint64_t)step * (uint64_t)f->micro_batches + (uint64_t)m) * 1024;
        rc = tpo_world_batch_fill(&batches[m], f->world, &f->draws[pick], index, s->data[pick].samples, f->threads, err);
    }
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
        f->drawn++;
        f->rc = rc;
        f->error = err;
        pthread_cond_broadcast(&f->changed);
    }
    pthread_mutex_unlock(&f->lock);
    return NULL;
}

int tpo_feed_open(struct tpo_feed **out, const struct tpo_recipe *r, int stage, int first_step, int side,
                  int (*word_id)(void *owner, const char *word), void *owner, struct tpo_error *err)
{
    struct tpo_feed *f = calloc(1, sizeof(*f));
    if (f == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the feed");
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    const struct tpo_recipe_stage *s = &r->stages[stage];
    f->recipe = r;
    f->stage = stage;
    f->first = first_step;
    f->micro_batches = s->plan.micro_batches;
    f->threads = cores >= 2 * DRAWING_SHARE ? (int)cores / DRAWING_SHARE : 1;
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->changed, NULL);
    for (int i = 0; i < s->n_data; i++) {
        f->draws[i] = s->data[i].draw;
        f->draws[i].word_id = word_id;
        f->draws[i].owner = owner;
    }
    /* Every stage of every recipe sees scenes of its own: 1,000 stages of seeds below 2^31. */
    const struct tpo_world_options options = {.split = TPO_WORLD_TRAIN, .seed = r->seed * 1000 + (uint64_t)stage, .side = side};
    int rc = tpo_world_open(&f->world, &options, err);
    for (int i = 0; i < RING && rc == TPO_OK; i++)
        if ((f->ring[i] = calloc((size_t)f->micro_batches, sizeof(*f->ring[i]))) == NULL) rc = tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the feed");
    if (rc == TPO_OK && pthread_create(&f->thread, NULL, produce, f) != 0) rc = tpo_fail(err, TPO_ENOMEM, "thread", "no thread for the feed");
    f->started = rc == TPO_OK;
    if (rc != TPO_OK) tpo_feed_close(f);
    else *out = f;
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
    tpo_world_close(f->world);
    pthread_cond_destroy(&f->changed);
    pthread_mutex_destroy(&f->lock);
    free(f);
}

int tpo_feed_next(struct tpo_feed *f, const struct tpo_world_batch **out, struct tpo_error *err)
{
    pthread_mutex_lock(&f->lock);
    while (f->drawn == f->taken && f->rc == TPO_OK) pthread_cond_wait(&f->changed, &f->lock);
    int rc = f->rc;
    if (rc == TPO_OK) {
        *out = f->ring[f->taken % RING];
        f->taken++;
        pthread_cond_broadcast(&f->changed);
    } else if (err != NULL) {
        *err = f->error;
    }
    pthread_mutex_unlock(&f->lock);
    return rc;
}
