/* This file owns the walk over items: what is asked, and which answers are right. */
#include "trainer/eval/eval.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK 100 /* pictures in memory at once; one more where it would be left over, with no other to be asked about */

double tpo_score_value(const struct tpo_score *s, enum tpo_world_kind kind)
{
    if (s->n == 0) return NAN;
    if (kind != TPO_KIND_DESCRIPTION) return (double)s->right / s->n;
    return s->said + s->real > 0 ? 2.0 * (double)s->hits / (double)(s->said + s->real) : 0;
}

static void score_add(struct tpo_score *s, const struct tpo_world_item *item, const struct tpo_asker_answer *a)
{
    const bool boxes = tpo_world_kind_boxes(item->kind);
    bool right = false;
    if (boxes) {
        const float iou = a->called ? tpo_world_iou(a->box, item->box) : 0;
        s->iou += (double)iou;
        right = iou >= .5f;
    } else if (item->kind == TPO_KIND_DESCRIPTION) {
        const struct tpo_world_f1 f = tpo_world_description_score(item, a->text);
        s->hits += f.right;
        s->said += f.said;
        s->real += f.real;
        right = f.exact;
    } else {
        right = !a->called && tpo_world_answer_right(item, a->text);
    }
    s->n++;
    s->right += right;
    s->routed += a->called == boxes;
    if (item->kind != TPO_KIND_RELATION_BOX || !item->hard) return;
    s->hard++;
    s->hard_right += right;
}

static int chunk_run(struct tpo_asker *a, struct tpo_eval_row *out, struct tpo_world *w, struct tpo_world_guesser *guesser,
                     struct tpo_arena *arena, enum tpo_world_kind kind, int n_frames, enum tpo_world_phrasing phrasing, int first,
                     int n, bool blind, struct tpo_error *err)
{
    static struct tpo_world_item items[CHUNK + 1];
    static struct tpo_asker_answer seen[CHUNK + 1], other[CHUNK + 1];
    int rc = TPO_OK;
    tpo_arena_reset(arena);
    for (int i = 0; i < n && rc == TPO_OK; i++)
        rc = tpo_world_item(w, arena, kind, n_frames, phrasing, (uint64_t)(first + i), &items[i], err);
    if (rc == TPO_OK) rc = tpo_asker_run(a, items, n, seen, blind ? other : NULL, err);
    for (int i = 0; i < n && rc == TPO_OK; i++) {
        score_add(&out->seen, &items[i], &seen[i]);
        if (blind) score_add(&out->blind, &items[i], &other[i]);
        rc = tpo_world_guesser_add(guesser, &items[i]);
    }
    return rc;
}

int tpo_eval_row(struct tpo_asker *a, struct tpo_eval_row *out, enum tpo_world_split split, enum tpo_world_kind kind, int n_frames,
                 enum tpo_world_phrasing phrasing, int n, bool blind, struct tpo_error *err)
{
    const struct tpo_world_options options = {.split = split, .seed = tpo_world_first_seed(split) + 1, .side = tpo_asker_side(a)};
    struct tpo_world *world = NULL;
    struct tpo_world_guesser *guesser = tpo_world_guesser_open();
    struct tpo_arena arena;
    *out = (struct tpo_eval_row){0};
    tpo_arena_init(&arena, (size_t)16 << 20, 0);
    int rc = guesser != NULL ? tpo_world_open(&world, &options, err) : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for guesses");
    for (int first = 0, size; first < n && rc == TPO_OK; first += size) {
        size = n - first <= CHUNK + 1 ? n - first : CHUNK;
        rc = chunk_run(a, out, world, guesser, &arena, kind, n_frames, phrasing, first, size, blind, err);
    }
    if (rc == TPO_OK) {
        out->guess = tpo_world_guesser_result(guesser, kind, false);
        out->guess_hard = tpo_world_guesser_result(guesser, kind, true);
    }
    tpo_arena_free(&arena);
    tpo_world_guesser_close(guesser);
    tpo_world_close(world);
    return rc;
}
