/* This file owns the guesses that a score must beat. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/world/world.h"

#define GOOD_IOU .5f

struct seen {
    enum tpo_world_kind kind;
    bool hard;
    int asked; /* what the question tells of its answer */
    int outermost_right;
    float box[4], object, match; /* chances that a random object, a random match fits */
    char answer[16];
};

struct tpo_world_guesser {
    struct seen *items;
    int n, capacity;
};

struct tpo_world_guesser *tpo_world_guesser_open(void)
{
    return calloc(1, sizeof(struct tpo_world_guesser));
}

void tpo_world_guesser_close(struct tpo_world_guesser *g)
{
    if (g == NULL) return;
    free(g->items);
    free(g);
}

static float share_that_fit(const struct tpo_world_item *item, unsigned objects)
{
    int fit = 0, n = 0;
    for (int o = 0; o < item->n_objects; o++) {
        if (!(objects >> o & 1)) continue;
        n++;
        fit += tpo_world_iou(item->objects[o].box, item->box) >= GOOD_IOU;
    }
    return n > 0 ? (float)fit / (float)n : 0;
}

/* The attribute that is asked for; of a half its axis, since a question says "left or right" or "top or bottom". */
static int asked_of(const struct tpo_world_item *item)
{
    if (item->kind != TPO_KIND_HALF) return item->asked;
    return strcmp(item->answer, "left") == 0 || strcmp(item->answer, "right") == 0 ? 0 : 1;
}

int tpo_world_guesser_add(struct tpo_world_guesser *g, const struct tpo_world_item *item)
{
    if (g->n == g->capacity) {
        int capacity = g->capacity == 0 ? 256 : g->capacity * 2;
        void *items = realloc(g->items, sizeof(*g->items) * (size_t)capacity);
        if (items == NULL) return TPO_ENOMEM;
        g->items = items;
        g->capacity = capacity;
    }
    struct seen *s = &g->items[g->n++];
    memset(s, 0, sizeof(*s));
    s->kind = item->kind;
    s->hard = item->hard;
    s->asked = asked_of(item);
    strncpy(s->answer, item->answer, sizeof(s->answer) - 1);
    if (!tpo_world_kind_boxes(item->kind)) return TPO_OK;
    memcpy(s->box, item->box, sizeof(s->box));
    s->object = share_that_fit(item, ~0u);
    s->match = share_that_fit(item, item->matches);
    s->outermost_right = item->outermost >= 0 && tpo_world_iou(item->objects[item->outermost].box, item->box) >= GOOD_IOU;
    return TPO_OK;
}

static bool counts(const struct seen *s, enum tpo_world_kind kind, bool hard_only)
{
    return s->kind == kind && (!hard_only || s->hard);
}

/* The best of the boxes that are k/24 wide and high with corners on that grid, which is finer than the share it decides. */
static float constant_box(const struct tpo_world_guesser *g, enum tpo_world_kind kind, bool hard_only, int n)
{
    int best = 0;
    for (int size = 3; size <= 9; size++) {
        for (int y = 0; y + size <= 24; y++) {
            for (int x = 0; x + size <= 24; x++) {
                float box[4] = {x / 24.f, y / 24.f, (x + size) / 24.f, (y + size) / 24.f};
                int fit = 0;
                for (int i = 0; i < g->n; i++)
                    fit += counts(&g->items[i], kind, hard_only) && tpo_world_iou(g->items[i].box, box) >= GOOD_IOU;
                if (fit > best) best = fit;
            }
        }
    }
    return (float)best / (float)n;
}

/* The commonest answer per asked attribute or axis, summed. */
static float majority(const struct tpo_world_guesser *g, enum tpo_world_kind kind, int n)
{
    int right = 0;
    for (int asked = -1; asked < TPO_WORLD_ATTRIBUTES; asked++) {
        int best = 0;
        for (int i = 0; i < g->n; i++) {
            const struct seen *s = &g->items[i];
            /* A letter doesn't know what was asked. */
            if (s->kind != kind || (kind != TPO_KIND_CHOICE && s->asked != asked)) continue;
            int same = 0;
            for (int j = i; j < g->n; j++) {
                const struct seen *t = &g->items[j];
                same += t->kind == kind && (kind == TPO_KIND_CHOICE || t->asked == asked) && strcmp(t->answer, s->answer) == 0;
            }
            if (same > best) best = same;
        }
        right += best;
        if (kind == TPO_KIND_CHOICE) break;
    }
    return (float)right / (float)n;
}

struct tpo_world_guess tpo_world_guesser_result(const struct tpo_world_guesser *g, enum tpo_world_kind kind, bool hard_only)
{
    struct tpo_world_guess r = {0, NAN, NAN, NAN, NAN, NAN, NAN};
    double object = 0, match = 0, outermost = 0;
    for (int i = 0; i < g->n; i++) {
        const struct seen *s = &g->items[i];
        if (!counts(s, kind, hard_only)) continue;
        r.n++;
        object += s->object, match += s->match, outermost += s->outermost_right;
    }
    if (r.n == 0) return r;
    if (tpo_world_kind_boxes(kind)) {
        r.random_object = (float)(object / r.n);
        if (kind != TPO_KIND_ATTRIBUTE_BOX) r.random_match = (float)(match / r.n);
        if (kind == TPO_KIND_RELATION_BOX) r.outermost_match = (float)(outermost / r.n);
        r.constant_box = constant_box(g, kind, hard_only, r.n);
    } else if (kind != TPO_KIND_DESCRIPTION) {
        r.majority = majority(g, kind, r.n);
    }
    r.best = fmaxf(fmaxf(fmaxf(r.random_object, r.random_match), fmaxf(r.outermost_match, r.constant_box)), r.majority);
    return r;
}
