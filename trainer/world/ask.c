/* This file owns the wording: phrasings filled in with phrases, and the answers. */
#include "trainer/world/ask.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char *const plurals[6] = {"balls", "squares", "triangles", "stars", "crosses", "cups"};
static const char *const attribute_names[TPO_NAMED] = {"shape", "colour", "size", "pattern"};
static const char *const letters[4] = {"(A)", "(B)", "(C)", "(D)"}; /* of options */
static const char *const media_words[2][2] = {{"picture", "image"}, {"video", "clip"}};

/* What a phrasing's braces are filled with. */
struct fill {
    struct tpo_asked *out;
    const struct tpo_facts *f;
    const struct tpo_phrases *phrases;
    struct tpo_rng *rng;
    bool unseen;
    const struct tpo_reference *reference;
    const struct tpo_noun *noun;
    const char *attribute, *halves;
    enum tpo_phrase_kind question; /* of multiple choice */
    const char *options[4];
    int length;
};

static void put(struct fill *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void put(struct fill *w, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(w->out->question + w->length, sizeof(w->out->question) - (size_t)w->length, format, args);
    va_end(args);
    w->length += n;
    TPO_ASSERT(w->length < TPO_ASK_TEXT);
}

enum number { ONE, THE, MANY };

static void put_noun(struct fill *w, const struct tpo_noun *n, enum number number)
{
    static const char *const also[2] = {"little", "big"};
    char words[80] = "";
    int size = n->values[TPO_WORLD_SIZE], pattern = n->values[TPO_WORLD_PATTERN], colour = n->values[TPO_WORLD_COLOUR];
    int shape = n->values[TPO_WORLD_SHAPE], used = 0;
    if (size >= 0)
        used += sprintf(words + used, "%s ", tpo_rng_chance(w->rng, .2f) ? also[size] : tpo_world_word(TPO_WORLD_SIZE, size));
    if (pattern >= 0) used += sprintf(words + used, "%s ", tpo_world_word(TPO_WORLD_PATTERN, pattern));
    if (colour >= 0) used += sprintf(words + used, "%s ", tpo_world_word(TPO_WORLD_COLOUR, colour));
    int head = used;
    if (number == MANY)
        sprintf(words + used, "%s", shape >= 0 ? plurals[shape] : "objects");
    else
        sprintf(words + used, "%s", shape >= 0 ? tpo_world_word(TPO_WORLD_SHAPE, shape) : "object");
    if (number == THE) put(w, "the ");
    if (number == ONE) put(w, strchr("aeiou", words[0]) ? "an " : "a ");
    struct tpo_asked *q = w->out;
    TPO_ASSERT(q->n_nouns < 4);
    q->nouns[q->n_nouns].offset = w->length + head;
    q->nouns[q->n_nouns++].matches = n->matches;
    put(w, "%s", words);
}

static void put_reference(struct fill *w)
{
    static const char *const sides[TPO_SIDES + 1] = {"left of", "right of", "above", "below", "next to"};
    const struct tpo_reference *ref = w->reference;
    put_noun(w, &ref->head, THE);
    if (ref->side < 0) return;
    bool longer = ref->side <= TPO_SIDE_RIGHT && tpo_rng_chance(w->rng, .3f);
    put(w, longer ? " to the %s " : " %s ", sides[ref->side]);
    put_noun(w, &ref->anchor, THE);
}

static void put_options(struct fill *w)
{
    struct tpo_asked *q = w->out;
    for (int i = 0; i < q->n_options; i++) {
        if (i > 0) put(w, " ");
        q->options[i].letter = w->length;
        put(w, "%s ", letters[i]);
        q->options[i].word = w->length;
        put(w, "%s", w->options[i]);
    }
}

static void put_phrase(struct fill *w, enum tpo_phrase_kind kind, bool unseen);

static void put_field(struct fill *w, const char *name, size_t length)
{
#define IS(text) (length == sizeof(text) - 1 && memcmp(name, text, length) == 0)
    if (IS("expr"))
        put_reference(w);
    else if (IS("attribute"))
        put(w, "%s", w->attribute);
    else if (IS("plural"))
        put_noun(w, w->noun, MANY);
    else if (IS("one"))
        put_noun(w, w->noun, ONE);
    else if (IS("media"))
        put(w, "%s", media_words[w->f->scene->n_frames > 1][tpo_rng_below(w->rng, 2)]);
    else if (IS("halves"))
        put(w, "%s", w->halves);
    else if (IS("question"))
        put_phrase(w, w->question, false);
    else if (IS("options"))
        put_options(w);
    else
        TPO_ASSERT(!"a phrasing of templates.yaml has an unknown field");
#undef IS
}

static void put_phrase(struct fill *w, enum tpo_phrase_kind kind, bool unseen)
{
    const struct tpo_phrase_list *list = &w->phrases->lists[kind][unseen];
    const char *s = list->items[tpo_rng_below(w->rng, list->n)];
    while (*s != '\0') {
        if (*s != '{') {
            put(w, "%c", *s++);
            continue;
        }
        const char *end = strchr(s, '}');
        TPO_ASSERT(end != NULL);
        put_field(w, s + 1, (size_t)(end - s - 1));
        s = end + 1;
    }
}

/* People leave out capitals and full stops. */
static void put_sentence(struct fill *w, enum tpo_phrase_kind kind)
{
    char *text = w->out->question;
    if (tpo_rng_chance(w->rng, .3f)) {
        put_phrase(w, TPO_PHRASE_OPENING, false);
        put(w, " ");
    }
    put_phrase(w, kind, w->unseen);
    if (tpo_rng_chance(w->rng, .15f) && text[0] >= 'A' && text[0] <= 'Z') text[0] = (char)(text[0] - 'A' + 'a');
    char *last = &text[w->length - 1];
    if (tpo_rng_chance(w->rng, .15f) && (*last == '.' || *last == '?')) *last = '\0';
}

static void answer(struct tpo_asked *q, const char *text)
{
    snprintf(q->answer, sizeof(q->answer), "%s", text);
}

static const char *digit(int n)
{
    static const char *const digits[9] = {"0", "1", "2", "3", "4", "5", "6", "7", "8"};
    return digits[n];
}

static void take_reference(struct tpo_asked *q, const struct tpo_reference *ref)
{
    q->target = ref->target;
    q->hard = ref->hard;
    q->outermost = ref->outermost;
    q->matches = ref->head.matches;
}

/* --- kinds -------------------------------------------------------------------------------------------------------------------- */

static bool refer(struct fill *w, enum tpo_world_kind kind, int hidden, struct tpo_reference *ref)
{
    bool found = false;
    switch (kind) {
    case TPO_KIND_RELATION_BOX:
    case TPO_KIND_ATTRIBUTE_RELATION:
        found = tpo_refer_relation(w->f, w->rng, hidden, ref);
        break;
    case TPO_KIND_NEXT_BOX:
        found = tpo_refer_next(w->f, w->rng, ref);
        break;
    case TPO_KIND_DIRECTION:
        found = tpo_refer_attributes(w->f, w->rng, w->f->moving, hidden, ref);
        break;
    default:
        found = tpo_refer_attributes(w->f, w->rng, w->f->targets, hidden, ref);
        break;
    }
    if (!found) return false;
    w->reference = ref;
    take_reference(w->out, ref);
    return true;
}

static const char *value_word(const struct fill *w, int attribute)
{
    return tpo_world_word(attribute, w->f->scene->objects[w->out->target].attributes[attribute]);
}

static bool ask_box(struct fill *w, enum tpo_world_kind kind, struct tpo_reference *ref)
{
    if (!refer(w, kind, 0, ref)) return false;
    put_sentence(w, TPO_PHRASE_BOX);
    answer(w->out, "<box_begin><boxes>");
    return true;
}

/* Chooses the attribute and the object; the caller words it. */
static bool find_attribute(struct fill *w, enum tpo_world_kind kind, struct tpo_reference *ref)
{
    int a = tpo_rng_below(w->rng, TPO_NAMED);
    if (!refer(w, kind, 1 << a, ref)) return false;
    w->attribute = attribute_names[a];
    w->out->asked = a;
    answer(w->out, value_word(w, a));
    return true;
}

static bool ask_attribute(struct fill *w, enum tpo_world_kind kind, struct tpo_reference *ref)
{
    if (!find_attribute(w, kind, ref)) return false;
    put_sentence(w, TPO_PHRASE_ATTRIBUTE);
    return true;
}

static bool find_direction(struct fill *w, struct tpo_reference *ref)
{
    if (w->f->scene->n_frames < 2 || !refer(w, TPO_KIND_DIRECTION, 0, ref)) return false;
    w->out->asked = TPO_WORLD_DIRECTION;
    answer(w->out, value_word(w, TPO_WORLD_DIRECTION));
    return true;
}

static bool find_count(struct fill *w, struct tpo_noun *noun)
{
    if (!tpo_refer_count(w->f, w->rng, noun)) return false;
    w->noun = noun;
    w->out->matches = w->out->counted = noun->matches;
    answer(w->out, digit(__builtin_popcount(noun->matches)));
    return true;
}

static bool ask_exist(struct fill *w, struct tpo_noun *noun)
{
    bool real = tpo_rng_chance(w->rng, .5f);
    if (!tpo_refer_exist(w->f, w->rng, real, noun)) return false;
    w->noun = noun;
    w->out->matches = w->out->counted = noun->matches;
    put_sentence(w, TPO_PHRASE_EXIST);
    answer(w->out, noun->matches ? "yes" : "no");
    return true;
}

static bool ask_half(struct fill *w, struct tpo_reference *ref)
{
    static const char *const sides[2][2] = {{"left", "right"}, {"top", "bottom"}};
    int axis = tpo_rng_below(w->rng, 2);
    if (!refer(w, TPO_KIND_HALF, 0, ref)) return false;
    float c = w->f->centre[ref->target][axis] - .5f;
    if (c > -.06f && c < .06f) return false; /* too near the middle to be asked fairly */
    w->halves = axis == 0 ? "left or right" : "top or bottom";
    put_sentence(w, TPO_PHRASE_HALF);
    answer(w->out, sides[axis][c > 0]);
    return true;
}

/* The right option among others of its sort, anywhere. */
static void choose_options(struct fill *w)
{
    struct tpo_asked *q = w->out;
    const char *all[9];
    int n = 0, a = q->asked;
    if (a < 0) {
        for (; n < 9; n++) all[n] = digit(n);
    } else {
        for (; n < tpo_world_values(a); n++) all[n] = tpo_world_word(a, n);
    }
    q->n_options = 2 + tpo_rng_below(w->rng, n < 4 ? n - 1 : 3);
    for (int i = 0; i < q->n_options; i++) { /* a shuffle's first places */
        int j = i + tpo_rng_below(w->rng, n - i);
        const char *swap = all[i];
        all[i] = all[j], all[j] = swap;
    }
    q->right = -1;
    for (int i = 0; i < q->n_options; i++) {
        if (strcmp(all[i], q->answer) == 0) q->right = i;
    }
    if (q->right < 0) q->right = tpo_rng_below(w->rng, q->n_options);
    for (int i = 0; i < q->n_options; i++) w->options[i] = all[i];
    for (int i = 0; i < n; i++) {
        if (strcmp(all[i], q->answer) == 0) w->options[q->right] = all[i];
    }
    answer(q, letters[q->right]);
}

static bool ask_choice(struct fill *w, struct tpo_reference *ref, struct tpo_noun *noun)
{
    float u = tpo_rng_unit(w->rng);
    bool clip = w->f->scene->n_frames > 1, found;
    w->question = TPO_PHRASE_ATTRIBUTE;
    if (u < .05f) {
        w->question = TPO_PHRASE_COUNT;
        found = find_count(w, noun);
    } else if (clip && u < .4f) {
        w->question = TPO_PHRASE_DIRECTION;
        found = find_direction(w, ref);
    } else {
        found = find_attribute(w, !clip && u < .15f ? TPO_KIND_ATTRIBUTE_RELATION : TPO_KIND_ATTRIBUTE, ref);
    }
    if (!found) return false;
    choose_options(w);
    put_sentence(w, TPO_PHRASE_CHOICE);
    return true;
}

void tpo_ask_order(const struct tpo_facts *f, int order[TPO_WORLD_OBJECTS_MAX])
{
    for (int i = 0; i < f->n; i++) {
        int k = i;
        for (; k > 0 && f->middle[order[k - 1]][0] > f->middle[i][0]; k--) order[k] = order[k - 1];
        order[k] = i;
    }
}

static bool ask_description(struct fill *w)
{
    static const char *const moves[5] = {" moving left", " moving right", " moving up", " moving down", " standing still"};
    struct tpo_asked *q = w->out;
    int order[TPO_WORLD_OBJECTS_MAX], used = 0;
    put_sentence(w, TPO_PHRASE_DESCRIPTION);
    tpo_ask_order(w->f, order);
    for (int i = 0; i < w->f->n; i++) {
        const int *a = w->f->scene->objects[order[i]].attributes;
        const char *colour = tpo_world_word(TPO_WORLD_COLOUR, a[TPO_WORLD_COLOUR]);
        used += snprintf(q->answer + used, sizeof(q->answer) - (size_t)used, "%s%s ",
                         i == 0            ? ""
                         : i < w->f->n - 1 ? ", "
                                           : " and ",
                         strchr("aeiou", colour[0]) ? "an" : "a");
        const int begin = used;
        used += snprintf(q->answer + used, sizeof(q->answer) - (size_t)used, "%s %s%s", colour,
                         tpo_world_word(TPO_WORLD_SHAPE, a[TPO_WORLD_SHAPE]),
                         w->f->scene->n_frames > 1 ? moves[a[TPO_WORLD_DIRECTION]] : "");
        q->told[q->n_told].object = order[i];
        q->told[q->n_told].begin = begin;
        q->told[q->n_told++].end = used;
    }
    snprintf(q->answer + used, sizeof(q->answer) - (size_t)used, ".");
    return true;
}

static void begin(struct tpo_asked *out, enum tpo_world_kind kind, bool unseen)
{
    memset(out, 0, sizeof(*out));
    out->kind = kind;
    out->unseen = unseen;
    out->asked = out->target = out->outermost = -1;
}

bool tpo_ask_expression(struct tpo_asked *out, const struct tpo_facts *f, struct tpo_rng *r, enum tpo_world_kind kind)
{
    struct fill w = {.out = out, .f = f, .rng = r};
    struct tpo_reference ref;
    begin(out, kind, false);
    if (!refer(&w, kind, 0, &ref)) return false;
    put_reference(&w);
    return true;
}

bool tpo_ask(struct tpo_asked *out, const struct tpo_facts *f, const struct tpo_phrases *p, struct tpo_rng *r,
             enum tpo_world_kind kind, bool unseen)
{
    struct fill w = {.out = out, .f = f, .phrases = p, .rng = r, .unseen = unseen};
    struct tpo_reference ref;
    struct tpo_noun noun;
    begin(out, kind, unseen);
    switch (kind) {
    case TPO_KIND_ATTRIBUTE_BOX:
    case TPO_KIND_RELATION_BOX:
    case TPO_KIND_NEXT_BOX:
        return ask_box(&w, kind, &ref);
    case TPO_KIND_ATTRIBUTE:
    case TPO_KIND_ATTRIBUTE_RELATION:
        return ask_attribute(&w, kind, &ref);
    case TPO_KIND_COUNT:
        if (!find_count(&w, &noun)) return false;
        put_sentence(&w, TPO_PHRASE_COUNT);
        return true;
    case TPO_KIND_EXIST:
        return ask_exist(&w, &noun);
    case TPO_KIND_HALF:
        return ask_half(&w, &ref);
    case TPO_KIND_CHOICE:
        return ask_choice(&w, &ref, &noun);
    case TPO_KIND_DESCRIPTION:
        return ask_description(&w);
    case TPO_KIND_DIRECTION:
        if (!find_direction(&w, &ref)) return false;
        put_sentence(&w, TPO_PHRASE_DIRECTION);
        return true;
    case TPO_WORLD_KINDS:
        break;
    }
    return false;
}
