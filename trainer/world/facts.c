/* This file owns the finding of facts: who shares what with whom, and who lies where. */
#include "trainer/world/facts.h"

#include <stdlib.h>
#include <string.h>

#define TARGET_VISIBLE .65f
#define MOVING_VISIBLE .5f

static bool is_reserved(const struct tpo_scene_object *o)
{
    return tpo_world_is_reserved(o->attributes[TPO_WORLD_COLOUR], o->attributes[TPO_WORLD_SHAPE]);
}

static bool shows(const struct tpo_scene_object *o, int frame, float share)
{
    return o->visible[frame] >= share * o->whole[frame];
}

static void find_eligible(struct tpo_facts *f)
{
    for (int o = 0; o < f->n; o++) {
        const struct tpo_scene_object *object = &f->scene->objects[o];
        bool reserved = is_reserved(object);
        uint8_t bit = (uint8_t)(1 << o);
        f->all |= bit;
        if (f->reserved || !reserved) f->anchors |= bit;
        if (reserved != f->reserved || !shows(object, 0, TARGET_VISIBLE)) continue;
        f->targets |= bit;
        bool always = true;
        for (int t = 1; t < f->scene->n_frames; t++) always = always && shows(object, t, MOVING_VISIBLE);
        if (always) f->moving |= bit;
    }
}

static void find_same(struct tpo_facts *f, int o)
{
    for (int set = 0; set < TPO_NAMED_SETS; set++) {
        for (int p = 0; p < f->n; p++) {
            bool same = true;
            for (int a = 0; a < TPO_NAMED; a++) {
                same = same && (!(set >> a & 1) || f->scene->objects[o].attributes[a] == f->scene->objects[p].attributes[a]);
            }
            if (same) f->same[o][set] |= (uint8_t)(1 << p);
        }
    }
}

/* How far p is out on that side of o, and how far aside. */
static void offset_of(const struct tpo_facts *f, int o, int p, int side, int *out, int *aside)
{
    int dx = f->middle[p][0] - f->middle[o][0], dy = f->middle[p][1] - f->middle[o][1];
    *out = side == TPO_SIDE_LEFT ? -dx : side == TPO_SIDE_RIGHT ? dx : side == TPO_SIDE_ABOVE ? -dy : dy;
    *aside = abs(side == TPO_SIDE_LEFT || side == TPO_SIDE_RIGHT ? dy : dx);
}

static void find_sides(struct tpo_facts *f, int o)
{
    for (int p = 0; p < f->n; p++) {
        if (p == o) continue;
        int dx = f->middle[p][0] - f->middle[o][0], dy = f->middle[p][1] - f->middle[o][1];
        f->apart[o][p] = dx * dx + dy * dy;
        for (int side = 0; side < TPO_SIDES; side++) {
            int out, aside;
            offset_of(f, o, p, side, &out, &aside);
            if (out <= 0) continue;
            uint8_t bit = (uint8_t)(1 << p);
            f->beyond[o][side] |= bit;
            if (5 * aside < 4 * out) f->cone[o][side] |= bit;
            if (4 * aside < 5 * out) f->wide[o][side] |= bit;
        }
    }
}

void tpo_facts_find(struct tpo_facts *f, const struct tpo_scene *scene, bool reserved)
{
    memset(f, 0, sizeof(*f));
    f->scene = scene;
    f->n = scene->n_objects;
    f->reserved = reserved;
    f->outermost_kept = TPO_OUTERMOST_KEPT;
    for (int o = 0; o < f->n; o++) {
        tpo_scene_box(scene, o, 0, f->box[o]);
        for (int i = 0; i < 2; i++) {
            f->middle[o][i] = scene->objects[o].edges[0][i] + scene->objects[o].edges[0][i + 2];
            f->centre[o][i] = (float)f->middle[o][i] / (float)(2 * scene->side);
        }
    }
    find_eligible(f);
    for (int o = 0; o < f->n; o++) {
        find_same(f, o);
        find_sides(f, o);
    }
}

void tpo_facts_shun_reserved(struct tpo_facts *f)
{
    for (int o = 0; o < f->n; o++) {
        if (is_reserved(&f->scene->objects[o])) f->shunned |= (uint8_t)(1 << o);
    }
}
