/* oracle.h -- reads a phrase back from its words and finds what it matches, from pixels' labels and attributes alone. */
#ifndef TPO_TESTS_WORLD_ORACLE_H
#define TPO_TESTS_WORLD_ORACLE_H

#include <math.h>
#include <string.h>

#include "trainer/world/view.h"

struct oracle_noun {
    int values[4];
    int n_matches, first;
    unsigned set;
};

static inline int oracle_value(int attribute, const char *word, size_t n)
{
    static const char *const plurals[6] = {"balls", "squares", "triangles", "stars", "crosses", "cups"};
    for (int v = 0; v < tpo_world_values(attribute); v++) {
        const char *w = tpo_world_word(attribute, v);
        if (strlen(w) == n && memcmp(w, word, n) == 0) return v;
        if (attribute == TPO_WORLD_SHAPE && strlen(plurals[v]) == n && memcmp(plurals[v], word, n) == 0) return v;
        if (attribute == TPO_WORLD_SIZE && n == (v ? 3u : 6u) && memcmp(v ? "big" : "little", word, n) == 0) return v;
    }
    return -1;
}

/* The attribute words from text on, up to and with the noun; where they end, NULL if there is no noun. */
static inline const char *oracle_read(const char *text, const struct tpo_scene *s, struct oracle_noun *n)
{
    bool noun = false;
    memset(n, 0, sizeof(*n));
    for (int a = 0; a < 4; a++) n->values[a] = -1;
    while (!noun) {
        while (*text == ' ') text++;
        size_t length = strcspn(text, " ,.?");
        if (length == 0) return NULL;
        int found = -1;
        for (int a = 0; a < 4; a++) {
            int v = oracle_value(a, text, length);
            if (v >= 0) n->values[a] = v, found = a;
        }
        noun = found == TPO_WORLD_SHAPE || memcmp(text, "object", 6) == 0;
        if (found < 0 && !noun) return NULL;
        text += length;
    }
    n->first = -1;
    for (int o = 0; o < s->n_objects; o++) {
        bool same = true;
        for (int a = 0; a < 4; a++) same = same && (n->values[a] < 0 || n->values[a] == s->objects[o].attributes[a]);
        if (!same) continue;
        if (n->first < 0) n->first = o;
        n->set |= 1u << o;
        n->n_matches++;
    }
    return text;
}

/* The tight box of an object's labels on a frame, in pixels, and how many there are. */
static inline int oracle_box(const struct tpo_scene *s, int object, int frame, int box[4])
{
    int n = 0;
    box[0] = box[1] = s->side, box[2] = box[3] = 0;
    for (int y = 0; y < s->side; y++) {
        for (int x = 0; x < s->side; x++) {
            if (s->labels[((size_t)frame * s->side + y) * s->side + x] != object) continue;
            n++;
            if (x < box[0]) box[0] = x;
            if (y < box[1]) box[1] = y;
            if (x + 1 > box[2]) box[2] = x + 1;
            if (y + 1 > box[3]) box[3] = y + 1;
        }
    }
    return n;
}

static inline void oracle_offset(const struct tpo_scene *s, int from, int to, float *dx, float *dy)
{
    int a[4], b[4];
    oracle_box(s, from, 0, a);
    oracle_box(s, to, 0, b);
    *dx = (float)(b[0] + b[2] - a[0] - a[2]) / 2;
    *dy = (float)(b[1] + b[3] - a[1] - a[3]) / 2;
}

#endif
