/* This file owns the making of a scene: what is in it, where, and how it moves. */
#include "trainer/world/scene.h"

#include <math.h>
#include <string.h>

#define VISIBLE_AT_LEAST .5f /* of every object, on the first frame: what is there can be seen, so counts are fair */
#define LAYOUTS          24  /* tries before a crowded scene gives up an object */

static const float colours[8][3] = {
    {214, 26, 30}, {250, 132, 12}, {248, 226, 36}, {28, 164, 44}, {50, 212, 226}, {34, 66, 224}, {152, 40, 190}, {246, 246, 246},
};

static const char *const words[TPO_WORLD_ATTRIBUTES][8] = {
    [TPO_WORLD_SHAPE] = {"ball", "square", "triangle", "star", "cross", "cup"},
    [TPO_WORLD_COLOUR] = {"red", "orange", "yellow", "green", "cyan", "blue", "purple", "white"},
    [TPO_WORLD_SIZE] = {"small", "large"},
    [TPO_WORLD_PATTERN] = {"plain", "striped", "dotted"},
    [TPO_WORLD_DIRECTION] = {"left", "right", "up", "down", "still"},
};
static const float steps[5][2] = {{-1, 0}, {1, 0}, {0, -1}, {0, 1}, {0, 0}};

int tpo_world_values(enum tpo_world_attribute a)
{
    static const int n[TPO_WORLD_ATTRIBUTES] = {6, 8, 2, 3, 5};
    return n[a];
}

const char *tpo_world_word(enum tpo_world_attribute a, int value)
{
    return words[a][value];
}

/* One colour of each shape; every colour and every shape has other partners, so nothing in a reserved pair is new by itself. */
static int reserved_colour(int shape)
{
    return (shape * 3 + 1) % 8;
}

bool tpo_world_is_reserved(int colour, int shape)
{
    return colour == reserved_colour(shape);
}

/* In half of the scenes objects copy the shape or the colour of an earlier one, so that one word seldom tells them apart. */
static void choose_attributes(struct tpo_scene *scene, struct tpo_rng *r, bool reserved)
{
    bool copies = tpo_rng_chance(r, .5f);
    for (int i = 0; i < scene->n_objects; i++) {
        struct tpo_scene_object *o = &scene->objects[i];
        for (int a = 0; a < TPO_WORLD_ATTRIBUTES; a++) o->attributes[a] = tpo_rng_below(r, tpo_world_values(a));
        if (copies && i > 0 && tpo_rng_chance(r, .7f)) {
            int a = tpo_rng_chance(r, .5f) ? TPO_WORLD_SHAPE : TPO_WORLD_COLOUR;
            o->attributes[a] = scene->objects[tpo_rng_below(r, i)].attributes[a];
        }
        if (reserved && tpo_rng_chance(r, .4f)) o->attributes[TPO_WORLD_COLOUR] = reserved_colour(o->attributes[TPO_WORLD_SHAPE]);
        if (scene->n_frames == 1) o->attributes[TPO_WORLD_DIRECTION] = 4;
        for (int c = 0; c < 3; c++) {
            o->tint[c] = fminf(fmaxf(colours[o->attributes[TPO_WORLD_COLOUR]][c] + tpo_rng_between(r, -12, 12), 0), 255);
        }
    }
}

static void choose_size(struct tpo_scene_object *o, struct tpo_rng *r, float scale)
{
    o->radius = scale * (o->attributes[TPO_WORLD_SIZE] == 0 ? tpo_rng_between(r, 7.6f, 9) : tpo_rng_between(r, 12.5f, 14.5f));
}

/* A start from which the whole way stays inside the picture. */
static void choose_way(struct tpo_scene *scene, struct tpo_scene_object *o, struct tpo_rng *r, float scale)
{
    const float *step = steps[o->attributes[TPO_WORLD_DIRECTION]];
    float length = scale * tpo_rng_between(r, 12, 22), margin = o->radius + 1;
    float dx = step[0] * length, dy = step[1] * length;
    float x = tpo_rng_between(r, margin + fmaxf(0, -dx), scene->side - margin - fmaxf(0, dx));
    float y = tpo_rng_between(r, margin + fmaxf(0, -dy), scene->side - margin - fmaxf(0, dy));
    for (int t = 0; t < scene->n_frames; t++) {
        float part = scene->n_frames > 1 ? (float)t / (float)(scene->n_frames - 1) : 0;
        o->x[t] = x + dx * part;
        o->y[t] = y + dy * part;
    }
}

/* Most objects keep clear of each other; some come close enough to hide a part. */
static bool too_close(const struct tpo_scene *scene, int i, float share)
{
    const struct tpo_scene_object *o = &scene->objects[i];
    for (int j = 0; j < i; j++) {
        const struct tpo_scene_object *p = &scene->objects[j];
        float dx = o->x[0] - p->x[0], dy = o->y[0] - p->y[0], reach = share * (o->radius + p->radius);
        if (dx * dx + dy * dy < reach * reach) return true;
    }
    return false;
}

static bool place_object(struct tpo_scene *scene, int i, struct tpo_rng *r, float scale)
{
    struct tpo_scene_object *o = &scene->objects[i];
    choose_size(o, r, scale);
    float share = tpo_rng_chance(r, .3f) ? .55f : .95f;
    for (int n = 0; n < 40; n++) {
        choose_way(scene, o, r, scale);
        if (!too_close(scene, i, n < 25 ? share : .6f)) return true;
    }
    return false;
}

static bool place_all(struct tpo_scene *scene, struct tpo_rng *r)
{
    for (int i = 0; i < scene->n_objects; i++) {
        if (!place_object(scene, i, r, (float)scene->side / 96)) return false;
    }
    return true;
}

static bool all_visible(const struct tpo_scene *scene)
{
    for (int i = 0; i < scene->n_objects; i++) {
        const struct tpo_scene_object *o = &scene->objects[i];
        if (o->visible[0] < VISIBLE_AT_LEAST * o->whole[0]) return false;
    }
    return true;
}

int tpo_scene_alloc(struct tpo_scene *scene, struct tpo_arena *arena, int side, int n_frames)
{
    const size_t area = (size_t)side * side * n_frames;
    memset(scene, 0, sizeof(*scene));
    scene->side = side;
    scene->n_frames = n_frames;
    scene->pixels = tpo_arena_alloc(arena, area * 3);
    scene->labels = tpo_arena_alloc(arena, area);
    return scene->pixels == NULL || scene->labels == NULL ? TPO_ENOMEM : TPO_OK;
}

void tpo_scene_make(struct tpo_scene *scene, uint64_t key, int min_objects, bool reserved)
{
    struct tpo_rng r = {key};
    scene->n_objects = min_objects + tpo_rng_below(&r, TPO_WORLD_OBJECTS_MAX + 1 - min_objects);
    choose_attributes(scene, &r, reserved);
    for (int n = 0;; n++) {
        /* Crowded with large objects: make one small. Eight small ones always find a place. */
        if (n > LAYOUTS) scene->objects[tpo_rng_below(&r, scene->n_objects)].attributes[TPO_WORLD_SIZE] = 0;
        if (!place_all(scene, &r)) continue;
        tpo_scene_draw(scene, key);
        if (all_visible(scene)) return;
    }
}
