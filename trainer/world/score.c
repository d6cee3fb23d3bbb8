/* This file owns right and wrong: answers, descriptions, boxes. */
#include <ctype.h>
#include <math.h>
#include <string.h>

#include "trainer/world/world.h"

float tpo_world_iou(const float a[4], const float b[4])
{
    float w = fminf(a[2], b[2]) - fmaxf(a[0], b[0]), h = fminf(a[3], b[3]) - fmaxf(a[1], b[1]);
    if (!(w > 0 && h > 0)) return 0;
    float inner = w * h, all = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner;
    return all > 0 ? inner / all : 0;
}

/* The text in lower case without outer white space and last full stop, cut at `size`. */
static void normalise(char *out, size_t size, const char *text)
{
    size_t n = 0;
    while (isspace((unsigned char)*text)) text++;
    for (; *text != '\0' && n + 1 < size; text++) out[n++] = (char)tolower((unsigned char)*text);
    while (n > 0 && (isspace((unsigned char)out[n - 1]) || out[n - 1] == '.')) n--;
    out[n] = '\0';
}

/* 'a'..'d' from "(a)", "a", "(a) red", "a) red" or "a: red"; 0 else, as of "a red ball", which begins with a word. */
static char letter_of(const char *text)
{
    if (*text == '(') text++;
    if (*text < 'a' || *text > 'd') return 0;
    return text[1] == '\0' || strchr(").:,", text[1]) != NULL ? *text : 0;
}

bool tpo_world_answer_right(const struct tpo_world_item *item, const char *text)
{
    char said[64], real[64];
    normalise(said, sizeof(said), text);
    normalise(real, sizeof(real), item->answer);
    if (item->kind == TPO_KIND_CHOICE) return letter_of(said) != 0 && letter_of(said) == letter_of(real);
    return strcmp(said, real) == 0;
}

/* --- descriptions --------------------------------------------------------------------------------------------------------------------------- */

static int value_of(enum tpo_world_attribute a, const char *word)
{
    for (int v = 0; v < tpo_world_values(a); v++) {
        if (strcmp(tpo_world_word(a, v), word) == 0) return v;
    }
    return -1;
}

/* Copies the next run of letters in lower case; where it ends, or NULL when there is none. */
static const char *next_word(const char *text, char *word, size_t size)
{
    size_t n = 0;
    while (*text != '\0' && !isalpha((unsigned char)*text)) text++;
    if (*text == '\0') return NULL;
    for (; isalpha((unsigned char)*text); text++) {
        if (n + 1 < size) word[n++] = (char)tolower((unsigned char)*text);
    }
    word[n] = '\0';
    return text;
}

/* A colour, the shape that follows it, and the direction said before the next colour. */
static int tuples_parse(const char *text, struct tpo_world_tuple *out, int max)
{
    char word[24];
    int n = 0, colour = -1;
    bool open = false; /* out[n - 1] may still get its direction */
    while ((text = next_word(text, word, sizeof(word))) != NULL) {
        int c = value_of(TPO_WORLD_COLOUR, word), s = value_of(TPO_WORLD_SHAPE, word), d = value_of(TPO_WORLD_DIRECTION, word);
        if (c >= 0) {
            colour = c;
            open = false;
        }
        if (s >= 0 && colour >= 0) {
            if (n == max) return n;
            out[n++] = (struct tpo_world_tuple){(int8_t)colour, (int8_t)s, -1};
            colour = -1;
            open = true;
        }
        if (d >= 0 && open) {
            out[n - 1].direction = (int8_t)d;
            open = false;
        }
    }
    return n;
}

static bool same_tuple(struct tpo_world_tuple a, struct tpo_world_tuple b)
{
    return a.colour == b.colour && a.shape == b.shape && a.direction == b.direction;
}

struct tpo_world_f1 tpo_world_description_score(const struct tpo_world_item *item, const char *text)
{
    struct tpo_world_tuple said[4 * TPO_WORLD_OBJECTS_MAX];
    struct tpo_world_f1 f = {.real = item->n_tuples};
    bool used[TPO_WORLD_OBJECTS_MAX] = {false};
    f.said = tuples_parse(text, said, 4 * TPO_WORLD_OBJECTS_MAX);
    for (int i = 0; i < f.said; i++) {
        if (item->n_frames == 1) said[i].direction = -1;
        for (int j = 0; j < f.real; j++) {
            if (used[j] || !same_tuple(said[i], item->tuples[j])) continue;
            used[j] = true;
            f.right++;
            break;
        }
    }
    f.exact = f.right == f.real && f.said == f.real;
    return f;
}
