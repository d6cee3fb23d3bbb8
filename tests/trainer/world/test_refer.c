/* Expressions: read back from their words, they match exactly what they should, in thousands of scenes. */
#include "tests/support/test.h"
#include "tests/trainer/world/oracle.h"

#define SCENES 3000

static struct tpo_world *open_world(enum tpo_world_split split)
{
    struct tpo_world *w = NULL;
    assert_int_equal(
        tpo_world_open(&w, &(struct tpo_world_options){split, tpo_world_first_seed(split) + (tpo_test_seed() & 0xfff), 48}, NULL),
        TPO_OK);
    return w;
}

struct tally {
    int n, hard, outermost;
};

/* In doubled pixels all is whole, and the slopes are 4/5 and 5/4. */
static bool in_cone(int side, float dx, float dy, int rise, int run)
{
    int x = (int)(2 * dx), y = (int)(2 * dy),
        out = side == 0   ? -x
              : side == 1 ? x
              : side == 2 ? -y
                          : y,
        aside = abs(side < 2 ? y : x);
    return out > 0 && run * aside < rise * out;
}

static float further(int side, float dx, float dy)
{
    return side == 0 ? -dx : side == 1 ? dx : side == 2 ? -dy : dy;
}

static void check_relation(const struct tpo_scene *s, const struct tpo_asked *q, const struct oracle_noun *head,
                           const struct oracle_noun *anchor, int side, struct tally *tally)
{
    float dx, dy;
    bool outermost = true;
    assert_int_equal(anchor->n_matches, 1);
    assert_false(head->set >> anchor->first & 1);
    assert_true(head->n_matches >= 2);
    for (int o = 0; o < s->n_objects; o++) {
        if (!(head->set >> o & 1)) continue;
        oracle_offset(s, anchor->first, o, &dx, &dy);
        if (o == q->target) {
            if (!in_cone(side, dx, dy, 4, 5)) fail_msg("%s: the target is not in the cone", q->question);
        } else if (in_cone(side, dx, dy, 5, 4)) {
            fail_msg("%s: another match lies there too", q->question);
        }
        oracle_offset(s, q->target, o, &dx, &dy);
        if (further(side, dx, dy) > 0) outermost = false;
    }
    assert_int_equal(q->hard, !outermost);
    tally->n++;
    tally->hard += q->hard;
}

static void check_next(const struct tpo_scene *s, const struct tpo_asked *q, const struct oracle_noun *head,
                       const struct oracle_noun *anchor)
{
    float dx, dy, nearest;
    assert_int_equal(anchor->n_matches, 1);
    assert_true(head->n_matches >= 2);
    assert_false(head->set >> anchor->first & 1);
    oracle_offset(s, anchor->first, q->target, &dx, &dy);
    nearest = hypotf(dx, dy);
    for (int o = 0; o < s->n_objects; o++) {
        if (o == q->target || !(head->set >> o & 1)) continue;
        oracle_offset(s, anchor->first, o, &dx, &dy);
        if (hypotf(dx, dy) < 1.499f * nearest) fail_msg("%s: another match is nearly as near", q->question);
    }
}

static void check_expression(const struct tpo_scene *s, const struct tpo_asked *q, struct tally *tally)
{
    static const char *const sides[] = {"left of the ", "right of the ", "above the ", "below the "};
    struct oracle_noun head, anchor;
    int box[4], visible = oracle_box(s, q->target, 0, box);
    assert_true((float)visible >= .65f * (float)s->objects[q->target].whole[0]);
    assert_memory_equal(q->question, "the ", 4);
    const char *rest = oracle_read(q->question + 4, s, &head);
    assert_non_null(rest);
    assert_true(head.set >> q->target & 1);
    assert_int_equal(head.set, q->matches);
    if (q->kind == TPO_KIND_ATTRIBUTE_BOX) {
        assert_string_equal(rest, "");
        if (head.n_matches != 1) fail_msg("%s: %d objects match", q->question, head.n_matches);
        return;
    }
    if (q->kind == TPO_KIND_NEXT_BOX) {
        assert_memory_equal(rest, " next to the ", 13);
        assert_non_null(oracle_read(rest + 13, s, &anchor));
        check_next(s, q, &head, &anchor);
        return;
    }
    for (int side = 0; side < 4; side++) {
        const char *at = strstr(rest, sides[side]);
        if (at == NULL) continue;
        assert_non_null(oracle_read(at + strlen(sides[side]), s, &anchor));
        check_relation(s, q, &head, &anchor, side, tally);
        return;
    }
    fail_msg("%s: no relation in it", q->question);
}

static void expressions_match_one_object(void **state)
{
    (void)state;
    struct tpo_arena arena;
    tpo_arena_init(&arena, 1 << 20, 0);
    for (int split = 0; split < TPO_WORLD_SPLITS; split++) {
        struct tpo_world *w = open_world(split);
        struct tally tally = {0};
        int asked[3] = {0};
        struct tpo_view v;
        tpo_arena_reset(&arena);
        assert_int_equal(tpo_view_alloc(&v, w, &arena, 1), TPO_OK);
        for (uint64_t i = 0; i < SCENES / TPO_WORLD_SPLITS; i++) {
            tpo_view_make(&v, w, TPO_VIEW_SAMPLES, i, 0, 4);
            for (int k = 0; k < 6; k++) {
                struct tpo_asked q;
                struct tpo_rng r = {tpo_rng_key(v.key, 1000 + (uint64_t)k)};
                if (!tpo_ask_expression(&q, &v.facts, &r, k % 3)) continue;
                asked[k % 3]++;
                check_expression(&v.scene, &q, &tally);
                const int *a = v.scene.objects[q.target].attributes;
                assert_int_equal(tpo_world_is_reserved(a[TPO_WORLD_COLOUR], a[TPO_WORLD_SHAPE]), split == TPO_WORLD_COMBINATIONS);
            }
        }
        printf("split %d: %d attributes, %d relations (%d hard), %d next to\n", split, asked[0], asked[1], tally.hard, asked[2]);
        assert_true(asked[0] > 1000 && asked[1] > 400 && asked[2] > 1000);
        assert_true(tally.hard * 100 > tally.n * 15); /* the anchor must matter */
        tpo_world_close(w);
    }
    tpo_arena_free(&arena);
}

/* A reserved object is never the answer in training, so it is no candidate there either; elsewhere it is. */
static void training_shuns_reserved_candidates(void **state)
{
    (void)state;
    struct tpo_arena arena;
    tpo_arena_init(&arena, 1 << 20, 0);
    for (int split = 0; split < TPO_WORLD_SPLITS; split++) {
        struct tpo_world *w = open_world(split);
        int asked = 0, with_reserved = 0;
        struct tpo_view v;
        tpo_arena_reset(&arena);
        assert_int_equal(tpo_view_alloc(&v, w, &arena, 1), TPO_OK);
        for (uint64_t i = 0; i < SCENES / TPO_WORLD_SPLITS; i++) {
            tpo_view_make(&v, w, TPO_VIEW_SAMPLES, i, 0, 4);
            struct tpo_asked q;
            struct tpo_rng r = {tpo_rng_key(v.key, 2000)};
            if (!tpo_ask_expression(&q, &v.facts, &r, i % 2 ? TPO_KIND_RELATION_BOX : TPO_KIND_NEXT_BOX)) continue;
            bool any = false;
            for (int o = 0; o < v.scene.n_objects; o++) {
                const int *a = v.scene.objects[o].attributes;
                any = any ||
                      ((q.matches >> o & 1) && o != q.target && tpo_world_is_reserved(a[TPO_WORLD_COLOUR], a[TPO_WORLD_SHAPE]));
            }
            asked++;
            with_reserved += any;
        }
        assert_true(asked > 200);
        if (split == TPO_WORLD_TRAIN)
            assert_int_equal(with_reserved, 0);
        else
            assert_true(with_reserved > asked / 50);
        tpo_world_close(w);
    }
    tpo_arena_free(&arena);
}

/* The cones by hand: an anchor in the middle, one object left of it within 38 degrees, one outside 51. */
static void cones_are_what_the_header_says(void **state)
{
    (void)state;
    static uint8_t labels[96 * 96];
    struct tpo_scene s = {.side = 96, .n_frames = 1, .n_objects = 4, .labels = labels};
    static const int centres[4][2] = {{48, 48}, {20, 64}, {28, 24}, {44, 12}};
    struct tpo_facts f;
    for (int o = 0; o < 4; o++) {
        int *e = s.objects[o].edges[0];
        e[0] = centres[o][0] - 4, e[1] = centres[o][1] - 4, e[2] = centres[o][0] + 4, e[3] = centres[o][1] + 4;
        s.objects[o].visible[0] = s.objects[o].whole[0] = 64;
        s.objects[o].attributes[TPO_WORLD_COLOUR] = o;
    }
    tpo_facts_find(&f, &s, false);
    assert_int_equal(f.cone[0][TPO_SIDE_LEFT], 1 << 1);          /* (-28, 16): 16 < .8 * 28 */
    assert_int_equal(f.wide[0][TPO_SIDE_LEFT], 1 << 1 | 1 << 2); /* (-20, -24): 24 < 1.25 * 20, by a hair */
    assert_int_equal(f.cone[0][TPO_SIDE_ABOVE], 1 << 3);         /* (-4, -36); (-20, -24) has 20 > .8 * 24 */
    assert_int_equal(f.wide[0][TPO_SIDE_ABOVE], 1 << 3 | 1 << 2);
    assert_int_equal(f.beyond[0][TPO_SIDE_LEFT], 1 << 1 | 1 << 2 | 1 << 3);
    assert_int_equal(f.cone[0][TPO_SIDE_RIGHT] | f.cone[0][TPO_SIDE_BELOW], 0);
}

TPO_TESTS(cmocka_unit_test(expressions_match_one_object), cmocka_unit_test(training_shuns_reserved_candidates),
          cmocka_unit_test(cones_are_what_the_header_says))
