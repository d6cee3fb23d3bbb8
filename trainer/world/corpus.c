/* This file owns the tokenizer's corpus: sentences of every kind and phrasing with their answers, a line each. */
#include "trainer/world/files.h"

#include <stdio.h>
#include <string.h>

#define SCENES 1500

static void write_scene(FILE *f, const struct tpo_world *w, const struct tpo_view *v)
{
    for (int i = 0; i < TPO_WORLD_KINDS * 2; i++) {
        struct tpo_asked q;
        struct tpo_rng r = {tpo_rng_key(v->key, TPO_VIEW_TEXT + (uint64_t)i)};
        if (!tpo_ask(&q, &v->facts, &w->phrases, &r, (enum tpo_world_kind)(i / 2), i % 2)) continue;
        fprintf(f, "%s\n", q.question);
        if (!tpo_world_kind_boxes(q.kind)) fprintf(f, "%s\n", q.answer);
    }
}

int tpo_world_corpus(const char *path, struct tpo_error *err)
{
    struct tpo_world *w = NULL;
    struct tpo_arena arena;
    struct tpo_view v;
    tpo_arena_init(&arena, 1 << 20, 0);
    int rc = tpo_world_open(&w, &(struct tpo_world_options){.split = TPO_WORLD_TRAIN, .side = 48}, err);
    FILE *f = rc == TPO_OK ? fopen(path, "w") : NULL;
    if (rc == TPO_OK && f == NULL) rc = tpo_fail(err, TPO_NOT_FOUND, "bad_path", "cannot write %s", path);
    for (int frames = 1; frames <= 2 && rc == TPO_OK; frames++) {
        rc = tpo_view_alloc(&v, w, &arena, frames);
        for (uint64_t i = 0; i < SCENES && rc == TPO_OK; i++) {
            tpo_view_make(&v, w, TPO_VIEW_CORPUS, i, 0, 4);
            write_scene(f, w, &v);
        }
    }
    if (f != NULL && fclose(f) != 0 && rc == TPO_OK)
        rc = tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "disk", "cannot write all of %s", path);
    tpo_world_close(w);
    tpo_arena_free(&arena);
    return rc;
}
