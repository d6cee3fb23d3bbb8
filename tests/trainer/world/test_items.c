/* Items: answers true by another reading of the question, splits kept, scores and guesses right. */
#include "tests/support/test.h"
#include "tests/trainer/world/oracle.h"

static struct tpo_world *open_world(enum tpo_world_split split, int side)
{
    struct tpo_world *w = NULL;
    assert_int_equal(tpo_world_open(&w, &(struct tpo_world_options){split, tpo_world_first_seed(split) + 3, side}, NULL), TPO_OK);
    return w;
}

static struct tpo_scene scene_of(const struct tpo_world_item *item)
{
    struct tpo_scene s = {.side = item->width, .n_frames = item->n_frames, .n_objects = item->n_objects};
    for (int o = 0; o < item->n_objects; o++)
        memcpy(s.objects[o].attributes, item->objects[o].attributes, sizeof(s.objects[o].attributes));
    return s;
}

/* The first phrase of a question: what follows it, NULL when there is none. */
static const char *find_phrase(const char *text, const struct tpo_scene *s, struct oracle_noun *n)
{
    for (const char *at = text;; at++) {
        const char *rest = oracle_read(at, s, n);
        if (rest != NULL) return rest;
        at = strchr(at, ' ');
        if (at == NULL) return NULL;
    }
}

static void check_option(const struct tpo_world_item *item, const char *value)
{
    const char *at = strstr(item->question, item->answer);
    assert_non_null(at);
    if (strncmp(at + 4, value, strlen(value)) != 0) fail_msg("%s => %s, but it is %s", item->question, item->answer, value);
}

static void check_value(const struct tpo_world_item *item, const char *value)
{
    if (item->kind == TPO_KIND_CHOICE)
        check_option(item, value);
    else if (strcmp(item->answer, value) != 0)
        fail_msg("%s => %s, but it is %s", item->question, item->answer, value);
}

static void check_truth(const struct tpo_world_item *item)
{
    struct tpo_scene s = scene_of(item);
    struct oracle_noun n;
    char digit[2] = "0";
    if (item->kind == TPO_KIND_DESCRIPTION) {
        assert_true(tpo_world_description_score(item, item->answer).exact);
        return;
    }
    const char *rest = find_phrase(item->question, &s, &n);
    if (rest == NULL) fail_msg("%s: no phrase in it", item->question);
    if (item->asked >= 0) {
        const int *a = item->objects[item->target].attributes;
        assert_true(item->asked == TPO_WORLD_DIRECTION || n.values[item->asked] < 0); /* the question doesn't give it away */
        assert_true(n.set >> item->target & 1);
        bool relation = strstr(rest, "of the ") || strstr(rest, " above the ") || strstr(rest, " below the ");
        assert_true(relation ? n.n_matches >= 2 : n.n_matches == 1);
        check_value(item, tpo_world_word(item->asked, a[item->asked]));
    } else if (item->kind == TPO_KIND_COUNT || item->kind == TPO_KIND_CHOICE) {
        digit[0] = (char)('0' + n.n_matches);
        check_value(item, digit);
    } else if (item->kind == TPO_KIND_EXIST) {
        check_value(item, n.n_matches > 0 ? "yes" : "no");
    } else if (item->kind == TPO_KIND_HALF) {
        const float *b = item->objects[item->target].box;
        assert_int_equal(n.n_matches, 1);
        bool across = strstr(item->question, "left or right") != NULL;
        if (across)
            check_value(item, b[0] + b[2] < 1 ? "left" : "right");
        else
            check_value(item, b[1] + b[3] < 1 ? "top" : "bottom");
    } else {
        assert_true(tpo_world_kind_boxes(item->kind));
        assert_memory_equal(item->box, item->objects[item->target].box, sizeof(item->box));
    }
}

static void answers_are_true(void **state)
{
    (void)state;
    struct tpo_arena arena;
    tpo_arena_init(&arena, 1 << 20, 0);
    for (int split = 0; split < TPO_WORLD_SPLITS; split++) {
        struct tpo_world *w = open_world(split, 48);
        for (int kind = 0; kind < TPO_WORLD_KINDS; kind++) {
            for (uint64_t i = 0; i < 120; i++) {
                struct tpo_world_item item;
                int n_frames = kind == TPO_KIND_DIRECTION || i % 4 == 0 ? 4 : 1;
                tpo_arena_reset(&arena);
                assert_int_equal(tpo_world_item(w, &arena, kind, n_frames, (enum tpo_world_phrasing)(i % 3), i, &item, NULL),
                                 TPO_OK);
                assert_int_equal(item.kind, kind);
                if (i % 3 > 0) assert_int_equal(item.unseen, i % 3 == TPO_WORLD_UNSEEN_PHRASING);
                check_truth(&item);
                if (item.target < 0) continue;
                const int *a = item.objects[item.target].attributes;
                assert_int_equal(tpo_world_is_reserved(a[TPO_WORLD_COLOUR], a[TPO_WORLD_SHAPE]), split == TPO_WORLD_COMBINATIONS);
            }
        }
        tpo_world_close(w);
    }
    tpo_arena_free(&arena);
}

static void counting_phrases_keep_the_splits_apart(void **state)
{
    (void)state;
    struct tpo_arena arena;
    tpo_arena_init(&arena, 1 << 20, 0);
    for (int split = 0; split < TPO_WORLD_SPLITS; split++) {
        struct tpo_world *w = open_world(split, 48);
        for (uint64_t i = 0; i < 400; i++) {
            struct tpo_world_item item;
            struct oracle_noun n;
            tpo_arena_reset(&arena);
            assert_int_equal(
                tpo_world_item(w, &arena, i % 2 ? TPO_KIND_COUNT : TPO_KIND_EXIST, 1, TPO_WORLD_ANY_PHRASING, i, &item, NULL),
                TPO_OK);
            struct tpo_scene s = scene_of(&item);
            assert_non_null(find_phrase(item.question, &s, &n));
            int colour = n.values[TPO_WORLD_COLOUR], shape = n.values[TPO_WORLD_SHAPE];
            assert_int_equal(colour >= 0 && shape >= 0 && tpo_world_is_reserved(colour, shape), split == TPO_WORLD_COMBINATIONS);
        }
        tpo_world_close(w);
    }
    tpo_arena_free(&arena);
}

static void an_item_is_the_same_every_time(void **state)
{
    (void)state;
    struct tpo_world *w = open_world(TPO_WORLD_HELD_OUT, 96);
    struct tpo_arena arena;
    tpo_arena_init(&arena, 1 << 20, 0);
    for (int kind = 0; kind < TPO_WORLD_KINDS; kind++) {
        struct tpo_world_item a, b;
        assert_int_equal(tpo_world_item(w, &arena, kind, 4, TPO_WORLD_ANY_PHRASING, 9, &a, NULL), TPO_OK);
        assert_int_equal(tpo_world_item(w, &arena, kind, 4, TPO_WORLD_ANY_PHRASING, 9, &b, NULL), TPO_OK);
        assert_string_equal(a.question, b.question);
        assert_string_equal(a.answer, b.answer);
        assert_memory_equal(a.pixels, b.pixels, 4 * 96 * 96 * 3);
    }
    struct tpo_world_item item;
    assert_int_equal(tpo_world_item(w, &arena, TPO_KIND_DIRECTION, 1, TPO_WORLD_ANY_PHRASING, 0, &item, NULL),
                     TPO_INVALID_ARGUMENT);
    assert_int_equal(tpo_world_item(w, &arena, TPO_KIND_COUNT, 9, TPO_WORLD_ANY_PHRASING, 0, &item, NULL), TPO_INVALID_ARGUMENT);
    tpo_arena_free(&arena);
    tpo_arena_init(&arena, 1 << 12, 1 << 12);
    assert_int_equal(tpo_world_item(w, &arena, TPO_KIND_COUNT, 1, TPO_WORLD_ANY_PHRASING, 0, &item, NULL), TPO_ENOMEM);
    tpo_arena_free(&arena);
    tpo_world_close(w);
}

static void answers_are_read_kindly_but_not_too_kindly(void **state)
{
    (void)state;
    struct tpo_world_item word = {.kind = TPO_KIND_ATTRIBUTE, .answer = "red"}, letter = {.kind = TPO_KIND_CHOICE, .answer = "(B)"};
    assert_true(tpo_world_answer_right(&word, "red"));
    assert_true(tpo_world_answer_right(&word, " Red. \n"));
    assert_false(tpo_world_answer_right(&word, "red or blue"));
    assert_false(tpo_world_answer_right(&word, ""));
    assert_true(tpo_world_answer_right(&letter, "(B)"));
    assert_true(tpo_world_answer_right(&letter, "b"));
    assert_true(tpo_world_answer_right(&letter, "(B) blue"));
    assert_true(tpo_world_answer_right(&letter, "B: blue"));
    assert_false(tpo_world_answer_right(&letter, "blue"));
    assert_false(tpo_world_answer_right(&letter, "b blue"));
    struct tpo_world_item first = {.kind = TPO_KIND_CHOICE, .answer = "(A)"};
    assert_false(tpo_world_answer_right(&first, "a red ball")); /* a word, no letter */
    assert_false(tpo_world_answer_right(&first, "(a red ball)"));
    assert_true(tpo_world_answer_right(&first, "A."));
    assert_true(tpo_world_answer_right(&first, "(a) red"));
    assert_false(tpo_world_answer_right(&letter, "(C)"));
    assert_false(tpo_world_answer_right(&letter, ""));
}

static void descriptions_score_as_multisets(void **state)
{
    (void)state;
    struct tpo_world_item image = {
        .kind = TPO_KIND_DESCRIPTION, .n_frames = 1, .n_tuples = 3, .tuples = {{0, 3, -1}, {0, 3, -1}, {5, 0, -1}}};
    struct tpo_world_f1 f = tpo_world_description_score(&image, "a red star, a red star and a blue ball.");
    assert_true(f.exact && f.right == 3);
    f = tpo_world_description_score(&image, "a red star, a blue ball, a blue ball and a green cup.");
    assert_true(!f.exact && f.right == 2 && f.said == 4 && f.real == 3);
    f = tpo_world_description_score(&image, "");
    assert_true(!f.exact && f.right == 0 && f.said == 0);
    struct tpo_world_item clip = image;
    clip.n_frames = 4;
    clip.tuples[0].direction = 0, clip.tuples[1].direction = 4, clip.tuples[2].direction = 3;
    f = tpo_world_description_score(&clip, "a red star moving left, a red star standing still and a blue ball moving down.");
    assert_true(f.exact);
    f = tpo_world_description_score(&clip, "a red star, a red star moving up and a blue ball moving down.");
    assert_true(f.right == 1 && f.said == 3);
}

static void guesses_are_what_a_guesser_gets(void **state)
{
    (void)state;
    struct tpo_world *w = open_world(TPO_WORLD_HELD_OUT, 96);
    struct tpo_world_guesser *g = tpo_world_guesser_open();
    struct tpo_arena arena;
    int n_objects = 0, n_matches = 0;
    double objects = 0, matches = 0;
    tpo_arena_init(&arena, 1 << 20, 0);
    for (uint64_t i = 0; i < 300; i++) {
        struct tpo_world_item item;
        tpo_arena_reset(&arena);
        assert_int_equal(tpo_world_item(w, &arena, TPO_KIND_RELATION_BOX, 1, TPO_WORLD_ANY_PHRASING, i, &item, NULL), TPO_OK);
        assert_int_equal(tpo_world_guesser_add(g, &item), TPO_OK);
        objects += 1.0 / item.n_objects, n_objects++;
        matches += 1.0 / __builtin_popcount(item.matches), n_matches++;
        assert_int_equal(item.hard, item.outermost != item.target);
    }
    struct tpo_world_guess all = tpo_world_guesser_result(g, TPO_KIND_RELATION_BOX, false),
                           hard = tpo_world_guesser_result(g, TPO_KIND_RELATION_BOX, true);
    assert_int_equal(all.n, 300);
    assert_true(fabs(all.random_object - objects / n_objects) < .02); /* objects that overlap can fit by luck */
    assert_true(fabs(all.random_match - matches / n_matches) < .02);
    assert_true(hard.n > 30 && hard.outermost_match < .02f);
    assert_true(fabsf(all.outermost_match - 1 + (float)hard.n / 300) < .02f);
    assert_true(all.best >= all.constant_box && all.constant_box > 0 && isnan(all.majority));
    struct tpo_world_guess none = tpo_world_guesser_result(g, TPO_KIND_COUNT, false);
    assert_true(none.n == 0 && isnan(none.best));
    static const char *const answers[] = {"red", "red", "blue", "small", "small", "large"};
    for (int i = 0; i < 6; i++) {
        struct tpo_world_item item = {
            .kind = TPO_KIND_ATTRIBUTE, .answer = answers[i], .asked = i < 3 ? TPO_WORLD_COLOUR : TPO_WORLD_SIZE};
        assert_int_equal(tpo_world_guesser_add(g, &item), TPO_OK);
    }
    assert_true(fabsf(tpo_world_guesser_result(g, TPO_KIND_ATTRIBUTE, false).majority - 4 / 6.f) < 1e-6f);
    /* "Left or right?": the other two words are no answer. */
    static const char *const halves[] = {"left", "left", "right", "top", "bottom", "bottom"};
    for (int i = 0; i < 6; i++) {
        struct tpo_world_item item = {.kind = TPO_KIND_HALF, .answer = halves[i], .asked = -1};
        assert_int_equal(tpo_world_guesser_add(g, &item), TPO_OK);
    }
    assert_true(fabsf(tpo_world_guesser_result(g, TPO_KIND_HALF, false).majority - 4 / 6.f) < 1e-6f);
    tpo_world_guesser_close(g);
    tpo_world_guesser_close(NULL);
    tpo_arena_free(&arena);
    tpo_world_close(w);
}

TPO_TESTS(cmocka_unit_test(answers_are_true), cmocka_unit_test(counting_phrases_keep_the_splits_apart),
          cmocka_unit_test(an_item_is_the_same_every_time), cmocka_unit_test(answers_are_read_kindly_but_not_too_kindly),
          cmocka_unit_test(descriptions_score_as_multisets), cmocka_unit_test(guesses_are_what_a_guesser_gets))
