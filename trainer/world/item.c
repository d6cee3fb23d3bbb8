/* This file owns held-out items: one scene, one question of a given kind, and its truth. */
#include <string.h>

#include "trainer/world/view.h"

#define ATTEMPTS 400 /* scenes tried for one item; the rarest kind takes a handful */

static void fill_tuples(struct tpo_world_item *out, const struct tpo_view *v)
{
    int order[TPO_WORLD_OBJECTS_MAX];
    tpo_ask_order(&v->facts, order);
    out->n_tuples = v->facts.n;
    for (int i = 0; i < v->facts.n; i++) {
        const int *a = v->scene.objects[order[i]].attributes;
        out->tuples[i] = (struct tpo_world_tuple){(int8_t)a[TPO_WORLD_COLOUR], (int8_t)a[TPO_WORLD_SHAPE],
                                                  (int8_t)(v->scene.n_frames > 1 ? a[TPO_WORLD_DIRECTION] : -1)};
    }
}

static int fill_item(struct tpo_world_item *out, struct tpo_arena *arena, const struct tpo_view *v, const struct tpo_asked *q)
{
    out->kind = q->kind;
    out->n_frames = v->scene.n_frames;
    out->height = out->width = v->scene.side;
    out->pixels = v->scene.pixels;
    out->question = tpo_arena_copy(arena, q->question, strlen(q->question));
    out->answer = tpo_arena_copy(arena, q->answer, strlen(q->answer));
    out->hard = q->hard;
    out->unseen = q->unseen;
    out->asked = q->asked;
    out->target = q->target;
    out->matches = q->matches;
    out->outermost = q->outermost;
    out->n_options = q->n_options;
    if (tpo_world_kind_boxes(q->kind)) memcpy(out->box, v->facts.box[q->target], sizeof(out->box));
    if (q->kind == TPO_KIND_DESCRIPTION) fill_tuples(out, v);
    out->n_objects = v->facts.n;
    for (int o = 0; o < v->facts.n; o++) {
        memcpy(out->objects[o].attributes, v->scene.objects[o].attributes, sizeof(out->objects[o].attributes));
        memcpy(out->objects[o].box, v->facts.box[o], sizeof(out->objects[o].box));
    }
    return out->question == NULL || out->answer == NULL ? TPO_ENOMEM : TPO_OK;
}

int tpo_world_item(const struct tpo_world *w, struct tpo_arena *arena, enum tpo_world_kind kind, int n_frames,
                   enum tpo_world_phrasing phrasing, uint64_t index, struct tpo_world_item *out, struct tpo_error *err)
{
    struct tpo_view v;
    struct tpo_asked q;
    if ((unsigned)kind >= TPO_WORLD_KINDS || n_frames < 1 || n_frames > TPO_WORLD_FRAMES_MAX ||
        (kind == TPO_KIND_DIRECTION && n_frames < 2)) {
        return tpo_fail(err, TPO_EINVAL, "bad_item", "there is no item of kind %d with %d frames", (int)kind, n_frames);
    }
    if (tpo_view_alloc(&v, w, arena, n_frames) != TPO_OK)
        return tpo_fail(err, TPO_ENOMEM, "out_of_memory", "no memory for an item");
    memset(out, 0, sizeof(*out));
    out->index = index;
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        tpo_view_make(&v, w, TPO_VIEW_ITEMS + (int)kind, index, attempt, 4);
        struct tpo_rng r = {tpo_rng_key(v.key, TPO_VIEW_TEXT)};
        bool unseen = phrasing == TPO_WORLD_ANY_PHRASING ? tpo_rng_chance(&r, .25f) : phrasing == TPO_WORLD_UNSEEN_PHRASING;
        if (!tpo_ask(&q, &v.facts, &w->phrases, &r, kind, unseen)) continue;
        if (fill_item(out, arena, &v, &q) == TPO_OK) return TPO_OK;
        return tpo_fail(err, TPO_ENOMEM, "out_of_memory", "no memory for an item");
    }
    return tpo_fail(err, TPO_INTERNAL, "no_scene", "no scene of %d could be asked a %s", ATTEMPTS, tpo_world_kind_name(kind));
}
