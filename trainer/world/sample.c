/* This file owns training samples: scenes with conversations, and the targets of the training-only aids. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/world/view.h"

/* Where the attention aids sit (docs/model.md, Aids); layers and heads count from 0. */
#define LAYER_TARGET 4
#define HEAD_TARGET  0
#define LAYER_NOUN   2
#define HEAD_NOUN    0
#define LAYER_COUNT  4
#define HEAD_COUNT   1
#define LAYER_OPTION 5
#define HEAD_OPTION  0
#define LAYER_LETTER 1
#define HEAD_LETTER  0
#define COUNT_REST   4 /* objects */
#define LAYER_TOLD   4
#define HEAD_TOLD    2
#define AIDS_MAX     32 /* a description: 4 words of each object; else 1 target, 4 nouns, 2 of a count, 1 + 4 options */

#define TRIES    24         /* of kinds, for one place in a sample */
#define COVERING (1 / 8.f)  /* share of a patch that an object must fill to be the patch's */
#define FILLING  (1 / 12.f) /* ... of a cell */

uint64_t tpo_world_first_seed(enum tpo_world_split split)
{
    return split == TPO_WORLD_TRAIN ? 0 : 1ull << (30 + split);
}

const char *tpo_world_kind_name(enum tpo_world_kind kind)
{
#define X(id, name, image, clip) name,
    static const char *const names[TPO_WORLD_KINDS] = {TPO_WORLD_KIND_MAP(X)};
#undef X
    return names[kind];
}

int tpo_world_open(struct tpo_world **out, const struct tpo_world_options *o, struct tpo_error *err)
{
    uint64_t first = tpo_world_first_seed(o->split);
    int side = o->side == 0 ? 96 : o->side;
    if ((unsigned)o->split >= TPO_WORLD_SPLITS)
        return tpo_fail(err, TPO_EINVAL, "bad_split", "there is no split %d", (int)o->split);
    if (o->seed < first || o->seed >= tpo_world_first_seed(o->split + 1)) {
        return tpo_fail(err, TPO_EINVAL, "bad_seed", "seed %llu is not of this split: its seeds begin at %llu",
                        (unsigned long long)o->seed, (unsigned long long)first);
    }
    if (side < 48 || side > 448) return tpo_fail(err, TPO_EINVAL, "bad_side", "a side of %d pixels is not within 48..448", side);
    struct tpo_world *w = calloc(1, sizeof(*w));
    if (w == NULL) return tpo_fail(err, TPO_ENOMEM, "out_of_memory", "no memory for a world");
    w->options = *o;
    w->options.side = side;
    w->key = tpo_rng_key(o->seed, 0x7470); /* the seed's range is the split: no two splits share a key */
    int rc = tpo_phrases_open(&w->phrases, err);
    if (rc != TPO_OK) {
        tpo_world_close(w);
        return rc;
    }
    *out = w;
    return TPO_OK;
}

void tpo_world_close(struct tpo_world *w)
{
    if (w == NULL) return;
    tpo_phrases_close(&w->phrases);
    free(w);
}

int tpo_view_alloc(struct tpo_view *v, const struct tpo_world *w, struct tpo_arena *arena, int n_frames)
{
    return tpo_scene_alloc(&v->scene, arena, w->options.side, n_frames);
}

void tpo_view_make(struct tpo_view *v, const struct tpo_world *w, int stream, uint64_t index, int attempt, int min_objects)
{
    bool reserved = w->options.split == TPO_WORLD_COMBINATIONS;
    v->key = tpo_rng_key(tpo_rng_key(tpo_rng_key(w->key, (uint64_t)stream), index), (uint64_t)attempt);
    tpo_scene_make(&v->scene, v->key, min_objects, reserved);
    tpo_facts_find(&v->facts, &v->scene, reserved);
    if (w->options.split == TPO_WORLD_TRAIN) tpo_facts_shun_reserved(&v->facts);
}

void tpo_world_draw_default(struct tpo_world_draw *d, int n_frames)
{
#define X(id, name, image, clip) n_frames > 1 ? clip : image,
    *d = (struct tpo_world_draw){.n_frames = n_frames,
                                 .min_objects = 4,
                                 .n_conversations = n_frames > 1 ? 8 : 6,
                                 .mix = {TPO_WORLD_KIND_MAP(X)},
                                 .outermost = TPO_OUTERMOST_KEPT,
                                 .aids = TPO_WORLD_AIDS_ALL,
                                 .patch = 12,
                                 .n_slots = 32,
                                 .weight_description = .5f,
                                 .weight_end = .2f};
#undef X
}

void tpo_world_mix_keep(float mix[TPO_WORLD_KINDS], enum tpo_world_keep keep)
{
    for (int k = 0; k < TPO_WORLD_KINDS; k++) {
        if (keep != TPO_WORLD_KEEP_ALL && tpo_world_kind_boxes(k) != (keep == TPO_WORLD_KEEP_BOXES)) mix[k] = 0;
    }
}

bool tpo_world_mix_asks(const float mix[TPO_WORLD_KINDS], int n_frames)
{
    for (int k = 0; k < TPO_WORLD_KINDS; k++)
        if (mix[k] > 0 && (k != TPO_KIND_DIRECTION || n_frames > 1)) return true;
    return false;
}

/* --- where objects lie in the grids ------------------------------------------------------------------------------------------- */

struct grid {
    int columns, rows, wide, high; /* cells and their pixels */
    int16_t *pixels;               /* (T, rows, columns, O) */
};

static int grid_count(struct grid *g, struct tpo_arena *arena, const struct tpo_scene *s, int columns, int rows, int n_frames)
{
    *g = (struct grid){columns, rows, s->side / columns, s->side / rows, NULL};
    g->pixels = tpo_arena_calloc(arena, sizeof(int16_t) * TPO_WORLD_OBJECTS_MAX * (size_t)(columns * rows * n_frames));
    if (g->pixels == NULL) return TPO_ENOMEM;
    for (int t = 0; t < n_frames; t++) {
        const uint8_t *label = s->labels + (size_t)t * s->side * s->side;
        for (int y = 0; y < s->side; y++) {
            for (int x = 0; x < s->side; x++, label++) {
                int row = y / g->high, column = x / g->wide;
                if (*label == TPO_SCENE_GROUND || row >= rows || column >= columns) continue;
                g->pixels[((t * rows + row) * columns + column) * TPO_WORLD_OBJECTS_MAX + *label]++;
            }
        }
    }
    return TPO_OK;
}

/* That one of some objects which shows most of itself in a cell, and by how many pixels; -1 of none. */
static int grid_most(const struct grid *g, int cell, uint8_t objects, int *pixels)
{
    const int16_t *n = g->pixels + cell * TPO_WORLD_OBJECTS_MAX;
    int best = -1;
    for (int o = 0; o < TPO_WORLD_OBJECTS_MAX; o++) {
        if ((objects >> o & 1) && (best < 0 || n[o] > n[best])) best = o;
    }
    *pixels = best < 0 ? 0 : n[best];
    return best;
}

/* The object that shows most of itself in a cell, or -1 when none fills that share of it. */
static int grid_owner(const struct grid *g, int cell, float share)
{
    int pixels, best = grid_most(g, cell, 0xff, &pixels);
    return (float)pixels >= share * (float)(g->wide * g->high) ? best : -1;
}

/* The slot in whose cell an object's centre lies. */
static int slot_of(const struct tpo_facts *f, int object, int n_slots)
{
    const int rows = n_slots / TPO_WORLD_SLOT_COLUMNS;
    return (int)(f->centre[object][1] * (float)rows) * TPO_WORLD_SLOT_COLUMNS +
           (int)(f->centre[object][0] * TPO_WORLD_SLOT_COLUMNS);
}

/* The object that a slot is to tell of: one whose centre lies in its cell, since there the attention aids will look for it, even where
 * another covers more of the cell; without one, the cell's owner. */
static int slot_owner(const struct grid *g, const struct tpo_facts *f, int slot, int n_slots)
{
    uint8_t centred = 0;
    int pixels;
    for (int o = 0; o < f->n; o++) {
        if (slot_of(f, o, n_slots) == slot) centred |= (uint8_t)(1 << o);
    }
    return centred != 0 ? grid_most(g, slot, centred, &pixels) : grid_owner(g, slot, FILLING);
}

static void add_target(struct tpo_sample *s, struct tpo_named_tensor *list, const char *name, enum tpo_dtype dtype, int64_t rows,
                       int64_t columns, const void *data)
{
    list[s->n_targets++] =
        (struct tpo_named_tensor){.name = name, .dtype = dtype, .n_dims = 2, .shape = {rows, columns}, .data = data};
}

static int add_dense(struct tpo_sample *s, struct tpo_named_tensor *list, struct tpo_arena *arena, const struct tpo_scene *scene,
                     int patch)
{
    struct grid g;
    int side = scene->side / patch, cells = side * side, n = scene->n_frames * cells, A = scene->n_frames > 1 ? 5 : 4;
    int32_t *attributes = tpo_arena_alloc(arena, sizeof(int32_t) * (size_t)(n * A));
    float(*boxes)[4] = tpo_arena_calloc(arena, sizeof(float) * (size_t)(n * 4));
    if (attributes == NULL || boxes == NULL || grid_count(&g, arena, scene, side, side, scene->n_frames) != TPO_OK)
        return TPO_ENOMEM;
    for (int i = 0; i < n; i++) {
        int o = grid_owner(&g, i, COVERING);
        for (int a = 0; a < A; a++) attributes[i * A + a] = o < 0 ? -100 : scene->objects[o].attributes[a];
        if (o >= 0) tpo_scene_box(scene, o, i / cells, boxes[i]);
    }
    add_target(s, list, "dense.attributes", TPO_I32, n, A, attributes);
    add_target(s, list, "dense.boxes", TPO_F32, n, 4, boxes);
    return TPO_OK;
}

static int add_slots(struct tpo_sample *s, struct tpo_named_tensor *list, struct tpo_arena *arena, const struct tpo_view *v,
                     const struct tpo_world_draw *d)
{
    struct grid g;
    const struct tpo_scene *scene = &v->scene;
    int A = scene->n_frames > 1 ? 5 : 4;
    int32_t *words = tpo_arena_alloc(arena, sizeof(int32_t) * (size_t)(d->n_slots * A));
    float(*boxes)[4] = tpo_arena_calloc(arena, sizeof(float) * 4 * (size_t)d->n_slots);
    float(*centres)[2] = tpo_arena_calloc(arena, sizeof(float) * 2 * (size_t)d->n_slots);
    if (words == NULL || boxes == NULL || centres == NULL ||
        grid_count(&g, arena, scene, TPO_WORLD_SLOT_COLUMNS, d->n_slots / TPO_WORLD_SLOT_COLUMNS, 1) != TPO_OK)
        return TPO_ENOMEM;
    for (int q = 0; q < d->n_slots; q++) {
        int o = slot_owner(&g, &v->facts, q, d->n_slots);
        for (int a = 0; a < A; a++) {
            int id = o < 0 ? -1 : d->word_id(d->owner, tpo_world_word(a, scene->objects[o].attributes[a]));
            words[q * A + a] = id < 0 ? -100 : id;
        }
        if (o >= 0) tpo_scene_box(scene, o, 0, boxes[q]);
    }
    for (int o = 0; o < scene->n_objects; o++)
        centres[slot_of(&v->facts, o, d->n_slots)][scene->objects[o].attributes[TPO_WORLD_SIZE]] += 1;
    add_target(s, list, "slot.words", TPO_I32, d->n_slots, A, words);
    add_target(s, list, "slot.boxes", TPO_F32, d->n_slots, 4, boxes);
    add_target(s, list, "slot.centres", TPO_F32, d->n_slots, 2, centres);
    return TPO_OK;
}

/* --- attention aids ----------------------------------------------------------------------------------------------------------- */

struct aids {
    struct tpo_arena *arena;
    const struct tpo_facts *facts;
    int n_slots;
    struct tpo_attention_target *list;
    int n;
    bool failed;
};

/* Each object of the set gets an equal part, on the slot of its centre: that one says what the object is, where a slot at its edge may tell of
 * another. NULL for the empty set. */
static const float *slots_of(struct aids *w, uint8_t objects)
{
    if (objects == 0) return NULL;
    float *slots = tpo_arena_calloc(w->arena, sizeof(float) * (size_t)w->n_slots);
    if (slots == NULL) {
        w->failed = true;
        return NULL;
    }
    for (int o = 0; o < w->facts->n; o++)
        if (objects >> o & 1) slots[slot_of(w->facts, o, w->n_slots)] += 1.0f / (float)__builtin_popcount(objects);
    return slots;
}

static void look_at_slots(struct aids *w, int layer, int head, float weight, enum tpo_attention_place from, int offset,
                          uint8_t objects)
{
    const float *slots = slots_of(w, objects);
    if (slots == NULL) return;
    TPO_ASSERT(w->n < AIDS_MAX);
    w->list[w->n++] = (struct tpo_attention_target){layer, head, weight, from, offset, TPO_AT_SLOTS, 0, slots, w->n_slots};
}

static void look_at_word(struct aids *w, int layer, int head, float weight, enum tpo_attention_place from, int offset, int word)
{
    TPO_ASSERT(w->n < AIDS_MAX);
    w->list[w->n++] = (struct tpo_attention_target){layer, head, weight, from, offset, TPO_AT_WORD, word, NULL, 0};
}

/* A row of attention sums to one, so a head that looks at all it counts sees their mean, and how many there were is lost. The noun therefore gets
 * as much as COUNT_REST objects: what is seen of it falls with the count, and each weight, before the softmax, is the same whatever the count. */
static void add_count(struct aids *w, const struct tpo_asked *q)
{
    const float n = (float)__builtin_popcount(q->counted), share = n / (n + COUNT_REST);
    if (share > 0) look_at_slots(w, LAYER_COUNT, HEAD_COUNT, share, TPO_AT_ANSWER, 0, q->counted);
    look_at_word(w, LAYER_COUNT, HEAD_COUNT, 1 - share, TPO_AT_ANSWER, 0, q->nouns[0].offset);
}

static void add_choice(struct aids *w, const struct tpo_asked *q)
{
    look_at_word(w, LAYER_OPTION, HEAD_OPTION, .5f, TPO_AT_ANSWER, 0, q->options[q->right].word);
    for (int i = 0; i < q->n_options; i++) {
        look_at_word(w, LAYER_LETTER, HEAD_LETTER, .5f, TPO_AT_WORD, q->options[i].word, q->options[i].letter);
    }
}

/* What a description says next of an object is read where that object is: of two red balls only the place tells which one moves. */
static void add_told(struct aids *w, const struct tpo_asked *q)
{
    for (int i = 0; i < q->n_told; i++) {
        for (int at = q->told[i].begin; at < q->told[i].end; at++) {
            if (at > q->told[i].begin && q->answer[at - 1] != ' ') continue;
            look_at_slots(w, LAYER_TOLD, HEAD_TOLD, .5f, TPO_AT_ANSWER, at, (uint8_t)(1 << q->told[i].object));
        }
    }
}

static void add_attention(struct aids *w, const struct tpo_asked *q, unsigned without)
{
    enum tpo_attention_place place = tpo_world_kind_boxes(q->kind) ? TPO_AT_VECTOR : TPO_AT_ANSWER;
    if (q->target >= 0 && !(without & TPO_WORLD_AID_TARGET))
        look_at_slots(w, LAYER_TARGET, HEAD_TARGET, 1, place, 0, (uint8_t)(1 << q->target));
    for (int i = 0; i < q->n_nouns && !(without & TPO_WORLD_AID_NOUN); i++)
        look_at_slots(w, LAYER_NOUN, HEAD_NOUN, .5f, TPO_AT_WORD, q->nouns[i].offset, q->nouns[i].matches);
    const bool counts = q->kind == TPO_KIND_COUNT || q->kind == TPO_KIND_EXIST || (q->kind == TPO_KIND_CHOICE && q->target < 0);
    if (counts && !(without & TPO_WORLD_AID_COUNT)) add_count(w, q);
    if (q->n_options > 0 && !(without & TPO_WORLD_AID_CHOICE)) add_choice(w, q);
    if (!(without & TPO_WORLD_AID_TOLD)) add_told(w, q);
}

/* --- conversations ------------------------------------------------------------------------------------------------------------ */

static int fill_conversation(struct tpo_conversation *c, struct tpo_arena *arena, const struct tpo_view *v,
                             const struct tpo_world_draw *d, const struct tpo_asked *q)
{
    struct tpo_turn *turn = tpo_arena_alloc(arena, sizeof(*turn));
    bool boxes = tpo_world_kind_boxes(q->kind);
    if (turn == NULL) return TPO_ENOMEM;
    turn->question = tpo_arena_copy(arena, q->question, strlen(q->question));
    turn->answer = tpo_arena_copy(arena, q->answer, strlen(q->answer));
    *c = (struct tpo_conversation){.system = "", .n_turns = 1, .turns = turn, .weight_end = d->weight_end};
    c->weight = q->kind == TPO_KIND_DESCRIPTION ? d->weight_description : 1;
    if (boxes) {
        c->n_boxes = 1;
        c->boxes = (void *)tpo_arena_copy(arena, v->facts.box[q->target], sizeof(v->facts.box[0]));
    }
    if (turn->question == NULL || turn->answer == NULL || (boxes && c->boxes == NULL)) return TPO_ENOMEM;
    if (d->aids == TPO_WORLD_AIDS_NONE || (d->aids == TPO_WORLD_AIDS_QUESTIONS && boxes)) return TPO_OK;
    struct aids w = {arena, &v->facts, d->n_slots, tpo_arena_alloc(arena, sizeof(struct tpo_attention_target) * AIDS_MAX),
                     0,     false};
    if (w.list == NULL) return TPO_ENOMEM;
    add_attention(&w, q, d->without);
    c->attention = w.list;
    c->n_attention = w.n;
    return w.failed ? TPO_ENOMEM : TPO_OK;
}

static enum tpo_world_kind choose_kind(const float mix[TPO_WORLD_KINDS], struct tpo_rng *r)
{
    float total = 0;
    int kind = 0;
    for (int k = 0; k < TPO_WORLD_KINDS; k++) {
        total += mix[k];
        if (mix[k] > 0 && tpo_rng_unit(r) * total < mix[k]) kind = k;
    }
    return kind;
}

static int fill_conversations(struct tpo_sample *s, struct tpo_arena *arena, const struct tpo_world *w, const struct tpo_view *v,
                              const struct tpo_world_draw *d)
{
    struct tpo_conversation *list = tpo_arena_alloc(arena, sizeof(*list) * (size_t)(d->n_conversations + 1));
    if (list == NULL) return TPO_ENOMEM;
    s->conversations = list;
    s->n_conversations = 0;
    for (int i = 0; i < d->n_conversations; i++) {
        struct tpo_rng r = {tpo_rng_key(v->key, TPO_VIEW_TEXT + (uint64_t)i)};
        struct tpo_asked q;
        bool asked = false;
        for (int n = 0; n < TRIES && !asked; n++) asked = tpo_ask(&q, &v->facts, &w->phrases, &r, choose_kind(d->mix, &r), false);
        if (!asked) continue;
        int rc = fill_conversation(&list[s->n_conversations++], arena, v, d, &q);
        if (rc != TPO_OK) return rc;
    }
    return TPO_OK;
}

int tpo_world_draw_check(const struct tpo_world *w, const struct tpo_world_draw *d, struct tpo_error *err)
{
    if (d->n_frames < 1 || d->n_frames > TPO_WORLD_FRAMES_MAX || d->min_objects < TPO_WORLD_OBJECTS_MIN ||
        d->min_objects > TPO_WORLD_OBJECTS_MAX || d->n_conversations < 0 || d->patch < 1 || (d->slots && d->word_id == NULL)) {
        return tpo_fail(err, TPO_EINVAL, "bad_draw", "a draw of %d frames, %d objects, %d conversations is not possible",
                        d->n_frames, d->min_objects, d->n_conversations);
    }
    if (d->n_conversations > 0 && !tpo_world_mix_asks(d->mix, d->n_frames))
        return tpo_fail(err, TPO_EINVAL, "bad_draw", "no kind that can be asked about %d frames has a weight", d->n_frames);
    const bool by_slot = d->slots || d->aids != TPO_WORLD_AIDS_NONE;
    const int rows = d->n_slots / TPO_WORLD_SLOT_COLUMNS;
    const bool whole = rows > 0 && d->n_slots % TPO_WORLD_SLOT_COLUMNS == 0 && w->options.side % rows == 0 &&
                       w->options.side % TPO_WORLD_SLOT_COLUMNS == 0;
    if (by_slot && !whole)
        return tpo_fail(err, TPO_EINVAL, "bad_slots",
                        "%d query tokens cut a picture of %d pixels into no grid of %d columns of whole pixels, as aids need it",
                        d->n_slots, w->options.side, TPO_WORLD_SLOT_COLUMNS);
    return TPO_OK;
}

static int draw_sample(const struct tpo_world *w, struct tpo_arena *arena, const struct tpo_world_draw *d, uint64_t index,
                       struct tpo_sample *s)
{
    struct tpo_view v;
    struct tpo_named_tensor *list = tpo_arena_alloc(arena, sizeof(*list) * 5);
    int rc = tpo_view_alloc(&v, w, arena, d->n_frames);
    if (rc != TPO_OK || list == NULL) return TPO_ENOMEM;
    memset(s, 0, sizeof(*s));
    for (int attempt = 0; attempt < TRIES; attempt++) {
        tpo_view_make(&v, w, TPO_VIEW_SAMPLES, index, attempt, d->min_objects);
        v.facts.outermost_kept = d->outermost;
        rc = fill_conversations(s, arena, w, &v, d);
        if (rc != TPO_OK) return rc;
        if (s->n_conversations > 0 || d->n_conversations == 0) break;
    }
    s->n_frames = d->n_frames;
    s->height = s->width = v.scene.side;
    s->pixels = v.scene.pixels;
    s->targets = list;
    if (d->dense) rc = add_dense(s, list, arena, &v.scene, d->patch);
    if (rc == TPO_OK && d->slots) rc = add_slots(s, list, arena, &v, d);
    return rc;
}

int tpo_world_sample(const struct tpo_world *w, struct tpo_arena *arena, const struct tpo_world_draw *d, uint64_t index,
                     struct tpo_sample *out, struct tpo_error *err)
{
    int rc = tpo_world_draw_check(w, d, err);
    if (rc != TPO_OK) return rc;
    rc = draw_sample(w, arena, d, index, out);
    return rc == TPO_OK ? rc : tpo_fail(err, rc, "out_of_memory", "no memory for sample %llu", (unsigned long long)index);
}
