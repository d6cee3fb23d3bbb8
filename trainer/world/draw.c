/* This file owns the drawing of a scene: shapes by their distance functions, patterns, a textured ground, noise. */
#include <math.h>
#include <string.h>

#include "trainer/world/scene.h"

/* Which pixels of a frame a shape may touch, its distance there, and how wide the soft edge is: one pixel. */
struct span {
    int x0, y0, x1, y1;
};

static float square_distance(float x, float y, float half_width, float half_height)
{
    return fmaxf(fabsf(x) - half_width, fabsf(y) - half_height);
}

static float triangle_distance(float x, float y)
{
    /* Apex (0, -1), base y = .78 of half width .98: the sides' normal is (1.78, -.98) over its length. */
    return fmaxf((1.78f * fabsf(x) - .98f * (y + 1)) * .49213f, y - .78f);
}

static float star_distance(float x, float y)
{
    /* Five points: fold the plane into one half of a point, whose edge runs from (1, 0) to .45 (cos 36, sin 36). */
    float angle = atan2f(x, -y), sector = 1.25663706f;
    angle = fabsf(angle - sector * roundf(angle / sector));
    float radius = sqrtf(x * x + y * y), px = radius * cosf(angle), py = radius * sinf(angle);
    const float ex = .364058f - 1, ey = .264503f, length = .688726f;
    return ((px - 1) * ey - py * ex) / length;
}

static float cup_distance(float x, float y)
{
    float bx = x + .22f, body = y > 0 ? sqrtf(bx * bx + y * y) - .74f : fmaxf(fabsf(bx) - .74f, -y - .78f);
    float hx = x - .55f, hy = y + .2f, handle = fabsf(sqrtf(hx * hx + hy * hy) - .33f) - .13f;
    return fminf(body, handle);
}

float tpo_shape_distance(int shape, float x, float y)
{
    switch (shape) {
    case 0:
        return sqrtf(x * x + y * y) - .96f;
    case 1:
        return square_distance(x, y, .84f, .84f);
    case 2:
        return triangle_distance(x, y);
    case 3:
        return star_distance(x, y);
    case 4:
        return fminf(square_distance(x, y, .95f, .34f), square_distance(x, y, .34f, .95f));
    default:
        return cup_distance(x, y);
    }
}

/* The pattern's darkness at a point, in pixels of a 96-pixel picture relative to the object's centre. */
static bool pattern_dark(int pattern, float x, float y)
{
    if (pattern == 1) { /* striped */
        float s = (x + y) * .70711f / 4.6f;
        return s - floorf(s) < .5f;
    }
    if (pattern == 2) { /* dotted */
        float u = x / 5.2f, v = y / 5.2f;
        u -= roundf(u);
        v -= roundf(v);
        return u * u + v * v < .082f;
    }
    return false;
}

static struct span object_span(const struct tpo_scene *scene, const struct tpo_scene_object *o, int t)
{
    float reach = o->radius * 1.05f + 1;
    struct span s = {(int)floorf(o->x[t] - reach), (int)floorf(o->y[t] - reach), (int)ceilf(o->x[t] + reach),
                     (int)ceilf(o->y[t] + reach)};
    if (s.x0 < 0) s.x0 = 0;
    if (s.y0 < 0) s.y0 = 0;
    if (s.x1 > scene->side) s.x1 = scene->side;
    if (s.y1 > scene->side) s.y1 = scene->side;
    return s;
}

static void draw_object(struct tpo_scene *scene, int index, int t)
{
    struct tpo_scene_object *o = &scene->objects[index];
    const int side = scene->side;
    uint8_t *pixels = scene->pixels + (size_t)t * side * side * 3, *labels = scene->labels + (size_t)t * side * side;
    struct span s = object_span(scene, o, t);
    float scale = 96.0f / side;
    o->whole[t] = 0;
    for (int y = s.y0; y < s.y1; y++) {
        for (int x = s.x0; x < s.x1; x++) {
            float dx = x + .5f - o->x[t], dy = y + .5f - o->y[t];
            float alpha = .5f - o->radius * tpo_shape_distance(o->attributes[TPO_WORLD_SHAPE], dx / o->radius, dy / o->radius);
            if (alpha <= 0) continue;
            if (alpha > 1) alpha = 1;
            float shade = pattern_dark(o->attributes[TPO_WORLD_PATTERN], dx * scale, dy * scale) ? .5f : 1;
            uint8_t *p = pixels + ((size_t)y * side + x) * 3;
            for (int c = 0; c < 3; c++) p[c] = (uint8_t)(p[c] + alpha * (o->tint[c] * shade - p[c]) + .5f);
            if (alpha < .5f) continue;
            labels[(size_t)y * side + x] = (uint8_t)index;
            o->whole[t]++;
        }
    }
}

static void count_visible(struct tpo_scene *scene, int t)
{
    const int side = scene->side;
    for (int i = 0; i < scene->n_objects; i++) {
        scene->objects[i].visible[t] = 0;
        memcpy(scene->objects[i].edges[t], (int[4]){side, side, 0, 0}, sizeof(int[4]));
    }
    const uint8_t *label = scene->labels + (size_t)t * side * side;
    for (int y = 0; y < side; y++) {
        for (int x = 0; x < side; x++, label++) {
            if (*label == TPO_SCENE_GROUND) continue;
            struct tpo_scene_object *o = &scene->objects[*label];
            int *e = o->edges[t];
            o->visible[t]++;
            if (x < e[0]) e[0] = x;
            if (y < e[1]) e[1] = y;
            if (x >= e[2]) e[2] = x + 1;
            if (y >= e[3]) e[3] = y + 1;
        }
    }
    for (int i = 0; i < scene->n_objects; i++) {
        if (scene->objects[i].visible[t] == 0) memset(scene->objects[i].edges[t], 0, sizeof(int[4]));
    }
}

/* --- ground ------------------------------------------------------------------------------------------------------------------- */

#define GRID 9

/* A dull colour, times a texture: soft blotches, and on most scenes checks, stripes or a slope as well. */
static void draw_ground(uint8_t *pixels, int side, struct tpo_rng *r)
{
    float base[3], level = tpo_rng_between(r, 62, 128), blotch[GRID][GRID];
    for (int c = 0; c < 3; c++) base[c] = level + tpo_rng_between(r, -16, 16);
    for (int i = 0; i < GRID * GRID; i++) blotch[i / GRID][i % GRID] = tpo_rng_between(r, -20, 20);
    int texture = tpo_rng_below(r, 4);
    float period = tpo_rng_between(r, 7, 16) * side / 96, angle = tpo_rng_between(r, 0, 6.2831853f),
          depth = tpo_rng_between(r, 6, 14);
    float cx = cosf(angle), cy = sinf(angle), cell = (float)(GRID - 1) / side;
    for (int y = 0; y < side; y++) {
        float v = y * cell;
        int row = (int)v;
        v -= row;
        for (int x = 0; x < side; x++, pixels += 3) {
            float u = x * cell;
            int column = (int)u;
            u -= column;
            const float *above = &blotch[row][column], *below = &blotch[row + 1][column];
            float light = (above[0] + (above[1] - above[0]) * u) * (1 - v) + (below[0] + (below[1] - below[0]) * u) * v;
            float along = (x * cx + y * cy) / period, across = (y * cx - x * cy) / period;
            along -= floorf(along);
            across -= floorf(across);
            if (texture == 1) light += along < .5f ? depth : -depth;
            if (texture == 2) light += (along < .5f) == (across < .5f) ? depth : -depth;
            if (texture == 3) light += depth * 2 * ((x * cx + y * cy) / side);
            for (int c = 0; c < 3; c++) pixels[c] = (uint8_t)fminf(fmaxf(base[c] + light, 0), 255);
        }
    }
}

/* About +-9 of 255 on every value, triangular. */
static void add_noise(uint8_t *pixels, size_t n, struct tpo_rng *r)
{
    for (size_t i = 0; i < n; i += 8) {
        uint64_t bits = tpo_rng_next(r);
        for (size_t k = i; k < i + 8 && k < n; k++, bits >>= 8) {
            int v = pixels[k] + ((int)(bits & 15) + (int)(bits >> 4 & 15) - 15) * 3 / 5;
            pixels[k] = (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
        }
    }
}

void tpo_scene_draw(struct tpo_scene *scene, uint64_t key)
{
    struct tpo_rng r = {tpo_rng_key(key, 1)};
    const size_t area = (size_t)scene->side * scene->side;
    draw_ground(scene->pixels, scene->side, &r);
    for (int t = 1; t < scene->n_frames; t++) memcpy(scene->pixels + t * area * 3, scene->pixels, area * 3);
    memset(scene->labels, TPO_SCENE_GROUND, area * scene->n_frames);
    for (int t = 0; t < scene->n_frames; t++) {
        for (int i = 0; i < scene->n_objects; i++) draw_object(scene, i, t);
        count_visible(scene, t);
    }
    add_noise(scene->pixels, area * 3 * scene->n_frames, &r);
}

void tpo_scene_box(const struct tpo_scene *scene, int object, int frame, float box[4])
{
    for (int i = 0; i < 4; i++) box[i] = (float)scene->objects[object].edges[frame][i] / (float)scene->side;
}
