/* This file owns the choice of phrases: every candidate of the scene is weighed, one is drawn. */
#include "trainer/world/refer.h"

#include <string.h>

/* Short phrases are commoner, long ones occur. By the number of attributes named. */
static const float weight_by_length[TPO_NAMED + 1] = {1.5f, 3, 3, 1.2f, .4f};

static int bits(unsigned set)
{
    return __builtin_popcount(set);
}

/* A draw among candidates that arrive one by one, each with its weight. */
struct lottery {
    struct tpo_rng *rng;
    float total;
};

static bool wins(struct lottery *l, float weight)
{
    l->total += weight;
    return tpo_rng_unit(l->rng) * l->total < weight;
}

static float set_weight(int set)
{
    return weight_by_length[bits((unsigned)set)] * (set >> TPO_WORLD_SHAPE & 1 ? 1.5f : 1);
}

static struct tpo_noun noun_of(const struct tpo_facts *f, int object, int set)
{
    struct tpo_noun n;
    for (int a = 0; a < TPO_NAMED; a++) n.values[a] = set >> a & 1 ? f->scene->objects[object].attributes[a] : -1;
    n.matches = f->same[object][set];
    return n;
}

static bool unique_noun(const struct tpo_facts *f, struct tpo_rng *r, int object, int hidden, struct tpo_noun *out)
{
    struct lottery l = {r, 0};
    int chosen = -1;
    for (int set = 1; set < TPO_NAMED_SETS; set++) {
        if (!(set & hidden) && f->same[object][set] == 1 << object && wins(&l, set_weight(set))) chosen = set;
    }
    if (chosen < 0) return false;
    *out = noun_of(f, object, chosen);
    return true;
}

bool tpo_refer_attributes(const struct tpo_facts *f, struct tpo_rng *r, uint8_t among, int hidden, struct tpo_reference *out)
{
    struct lottery l = {r, 0};
    bool found = false;
    memset(out, 0, sizeof(*out));
    out->side = out->outermost = -1;
    for (int o = 0; o < f->n; o++) {
        struct tpo_noun noun;
        if (!(among >> o & 1) || !unique_noun(f, r, o, hidden, &noun) || !wins(&l, 1)) continue;
        found = true;
        out->target = o;
        out->head = noun;
    }
    return found;
}

static bool is_anchor(const struct tpo_facts *f, int o)
{
    return (f->anchors >> o & 1) && f->same[o][TPO_NAMED_SETS - 1] == 1 << o;
}

static int outermost_of(const struct tpo_facts *f, uint8_t matches, int side)
{
    for (int o = 0; o < f->n; o++) {
        if ((matches >> o & 1) && !(f->beyond[o][side] & matches)) return o;
    }
    return -1;
}

bool tpo_refer_relation(const struct tpo_facts *f, struct tpo_rng *r, int hidden, struct tpo_reference *out)
{
    struct lottery l = {r, 0};
    int target = -1, anchor = -1, side = -1, chosen = -1;
    bool any_hard = false;
    for (int a = 0; a < f->n; a++) {
        if (!is_anchor(f, a)) continue;
        for (int s = 0; s < TPO_SIDES; s++) {
            for (int o = 0; o < f->n; o++) {
                if (!(f->targets & f->cone[a][s] & 1 << o)) continue;
                for (int set = 0; set < TPO_NAMED_SETS; set++) {
                    uint8_t match = f->same[o][set];
                    if ((set & hidden) || (match >> a & 1) || bits(match) < 2 || (match & f->wide[a][s]) != 1 << o) continue;
                    if (match & f->shunned) continue;
                    bool outermost = !(match & f->beyond[o][s]);
                    any_hard = any_hard || !outermost;
                    if (!wins(&l, set_weight(set) * (outermost ? f->outermost_kept : 1))) continue;
                    target = o, anchor = a, side = s, chosen = set;
                }
            }
        }
    }
    /* Where no choice was hard the outermost is dropped here; elsewhere its weight has done so. */
    if (target < 0 || (!any_hard && !tpo_rng_chance(r, f->outermost_kept))) return false;
    out->head = noun_of(f, target, chosen);
    out->target = target;
    out->side = side;
    out->hard = (out->head.matches & f->beyond[target][side]) != 0;
    out->outermost = out->hard ? outermost_of(f, out->head.matches, side) : target;
    return unique_noun(f, r, anchor, 0, &out->anchor);
}

static bool nearest_by_far(const struct tpo_facts *f, int anchor, int o, uint8_t matches)
{
    for (int p = 0; p < f->n; p++) {
        if (p != o && (matches >> p & 1) && 4 * f->apart[anchor][p] < 9 * f->apart[anchor][o])
            return false; /* 1.5 times, squared */
    }
    return true;
}

bool tpo_refer_next(const struct tpo_facts *f, struct tpo_rng *r, struct tpo_reference *out)
{
    struct lottery l = {r, 0};
    int target = -1, anchor = -1, chosen = -1;
    for (int a = 0; a < f->n; a++) {
        if (!is_anchor(f, a)) continue;
        for (int o = 0; o < f->n; o++) {
            if (o == a || !(f->targets >> o & 1)) continue;
            for (int set = 0; set < TPO_NAMED_SETS; set++) {
                uint8_t match = f->same[o][set];
                if ((match >> a & 1) || (match & f->shunned) || bits(match) < 2 || !nearest_by_far(f, a, o, match)) continue;
                if (wins(&l, set_weight(set))) target = o, anchor = a, chosen = set;
            }
        }
    }
    if (target < 0) return false;
    out->head = noun_of(f, target, chosen);
    out->target = target;
    out->side = TPO_SIDE_NEXT;
    out->outermost = -1;
    out->hard = false;
    return unique_noun(f, r, anchor, 0, &out->anchor);
}

/* --- counting ----------------------------------------------------------------------------------------------------------------- */

static uint8_t noun_matches(const struct tpo_facts *f, const struct tpo_noun *n)
{
    uint8_t set = 0;
    for (int o = 0; o < f->n; o++) {
        bool same = true;
        for (int a = 0; a < TPO_NAMED; a++) same = same && (n->values[a] < 0 || n->values[a] == f->scene->objects[o].attributes[a]);
        if (same) set |= (uint8_t)(1 << o);
    }
    return set;
}

/* Phrases of the one split name reserved pairs, those of the others never do. */
static bool allowed(const struct tpo_facts *f, const struct tpo_noun *n)
{
    int colour = n->values[TPO_WORLD_COLOUR], shape = n->values[TPO_WORLD_SHAPE];
    return (colour >= 0 && shape >= 0 && tpo_world_is_reserved(colour, shape)) == f->reserved;
}

static struct tpo_noun noun_random(struct tpo_rng *r, bool reserved)
{
    struct tpo_noun n;
    for (int a = 0; a < TPO_NAMED; a++) {
        bool named = a == TPO_WORLD_SHAPE || a == TPO_WORLD_COLOUR || tpo_rng_chance(r, .15f);
        n.values[a] = named ? tpo_rng_below(r, tpo_world_values(a)) : -1;
    }
    while (reserved && !tpo_world_is_reserved(n.values[TPO_WORLD_COLOUR], n.values[TPO_WORLD_SHAPE])) {
        n.values[TPO_WORLD_COLOUR] = (n.values[TPO_WORLD_COLOUR] + 1) % tpo_world_values(TPO_WORLD_COLOUR);
    }
    return n;
}

static bool noun_of_nothing(const struct tpo_facts *f, struct tpo_rng *r, struct tpo_noun *out)
{
    for (int n = 0; n < 20; n++) {
        *out = noun_random(r, f->reserved);
        out->matches = noun_matches(f, out);
        if (out->matches == 0 && allowed(f, out)) return true;
    }
    return false;
}

static uint16_t counts_offered(const struct tpo_facts *f)
{
    uint16_t counts = 0;
    for (int o = 0; o < f->n; o++) {
        for (int set = 0; set < TPO_NAMED_SETS; set++) {
            struct tpo_noun n = noun_of(f, o, set);
            if (allowed(f, &n)) counts |= (uint16_t)(1 << bits(n.matches));
        }
    }
    return counts;
}

bool tpo_refer_count(const struct tpo_facts *f, struct tpo_rng *r, struct tpo_noun *out)
{
    uint16_t counts = counts_offered(f);
    if (counts == 0 || tpo_rng_chance(r, .1f)) return noun_of_nothing(f, r, out);
    struct lottery by_count = {r, 0}, l = {r, 0};
    int count = 0;
    for (int c = 1; c <= f->n; c++) {
        if ((counts >> c & 1) && wins(&by_count, 1)) count = c;
    }
    for (int o = 0; o < f->n; o++) {
        for (int set = 0; set < TPO_NAMED_SETS; set++) {
            struct tpo_noun n = noun_of(f, o, set);
            /* Each of the c objects offers the same phrase, so their draws are shared out. */
            if (bits(n.matches) == count && allowed(f, &n) && wins(&l, set_weight(set))) *out = n;
        }
    }
    return true;
}

static bool noun_of_something(const struct tpo_facts *f, struct tpo_rng *r, struct tpo_noun *out)
{
    struct lottery l = {r, 0};
    for (int o = 0; o < f->n; o++) {
        for (int set = 1; set < TPO_NAMED_SETS; set++) {
            struct tpo_noun n = noun_of(f, o, set);
            if (bits((unsigned)set) <= 3 && allowed(f, &n) && wins(&l, set_weight(set))) *out = n;
        }
    }
    return l.total > 0;
}

bool tpo_refer_exist(const struct tpo_facts *f, struct tpo_rng *r, bool real, struct tpo_noun *out)
{
    if (real) return noun_of_something(f, r, out);
    if (f->reserved) return noun_of_nothing(f, r, out);
    for (int n = 0; n < 20; n++) {
        if (!noun_of_something(f, r, out)) return false;
        int a = tpo_rng_below(r, TPO_NAMED);
        if (out->values[a] < 0) continue;
        out->values[a] = tpo_rng_below(r, tpo_world_values(a));
        out->matches = noun_matches(f, out);
        if (out->matches == 0 && allowed(f, out)) return true;
    }
    return noun_of_nothing(f, r, out);
}
