/* This file owns the drawing of many samples at once, by all cores. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "common/cores.h"
#include "trainer/world/world.h"

#define ARENA_BYTES (1 << 20)

/* A part of a batch: every n_parts-th sample. Which thread draws a sample leaves no trace in it. */
struct part {
    const struct tpo_world *world;
    const struct tpo_world_draw *draw;
    struct tpo_world_batch *batch;
    uint64_t first;
    int part, n_parts, rc;
    struct tpo_error err;
};

static void *draw_part(void *arg)
{
    struct part *p = arg;
    struct tpo_arena *arena = &p->batch->arenas[p->part];
    for (int i = p->part; i < p->batch->n && p->rc == TPO_OK; i += p->n_parts) {
        p->rc = tpo_world_sample(p->world, arena, p->draw, p->first + (uint64_t)i, &p->batch->samples[i], &p->err);
    }
    return NULL;
}

int tpo_world_batch_resize(struct tpo_world_batch *b, int n, int threads)
{
    void *samples = realloc(b->samples, sizeof(*b->samples) * (size_t)(n > 0 ? n : 1));
    if (samples == NULL) return TPO_ENOMEM;
    b->samples = samples;
    b->n = n;
    if (threads > b->n_arenas) {
        void *arenas = realloc(b->arenas, sizeof(*b->arenas) * (size_t)threads);
        if (arenas == NULL) return TPO_ENOMEM;
        b->arenas = arenas;
        while (b->n_arenas < threads) tpo_arena_init(&b->arenas[b->n_arenas++], ARENA_BYTES, 0);
    }
    for (int i = 0; i < b->n_arenas; i++) tpo_arena_reset(&b->arenas[i]);
    return TPO_OK;
}

int tpo_world_batch_fill(struct tpo_world_batch *b, const struct tpo_world *w, const struct tpo_world_draw *d, uint64_t first,
                         int n, int threads, struct tpo_error *err)
{
    struct part parts[64];
    pthread_t ids[64];
    bool started[64] = {false};
    int rc = TPO_OK;
    if (threads <= 0) threads = tpo_cores();
    if (threads > 64) threads = 64;
    if (threads > n) threads = n > 0 ? n : 1;
    if (tpo_world_batch_resize(b, n, threads) != TPO_OK)
        return tpo_fail(err, TPO_ENOMEM, "out_of_memory", "no memory for %d samples", n);
    for (int i = 0; i < threads; i++) {
        parts[i] = (struct part){.world = w, .draw = d, .batch = b, .first = first, .part = i, .n_parts = threads};
        started[i] = i > 0 && pthread_create(&ids[i], NULL, draw_part, &parts[i]) == 0;
    }
    for (int i = 0; i < threads; i++) {
        if (started[i])
            pthread_join(ids[i], NULL);
        else
            draw_part(&parts[i]);
        if (rc == TPO_OK && parts[i].rc != TPO_OK) {
            rc = parts[i].rc;
            if (err != NULL) *err = parts[i].err;
        }
    }
    return rc;
}

void tpo_world_batch_free(struct tpo_world_batch *b)
{
    for (int i = 0; i < b->n_arenas; i++) tpo_arena_free(&b->arenas[i]);
    free(b->arenas);
    free(b->samples);
    memset(b, 0, sizeof(*b));
}
