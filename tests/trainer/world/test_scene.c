/* Scenes: the same whoever draws them, boxes and masks true to the pixels, splits apart. */
#include <stdio.h>

#include "common/clock.h"
#include "tests/support/test.h"
#include "tests/trainer/world/oracle.h"

static struct tpo_world *open_world(enum tpo_world_split split, uint64_t seed)
{
    struct tpo_world *w = NULL;
    struct tpo_error err = {0};
    struct tpo_world_options o = {split, tpo_world_first_seed(split) + seed, 0};
    if (tpo_world_open(&w, &o, &err) != TPO_OK) fail_msg("%s", err.message);
    return w;
}

static uint64_t hash(const void *data, size_t n)
{
    uint64_t h = 14695981039346656037ull;
    for (size_t i = 0; i < n; i++) h = (h ^ ((const uint8_t *)data)[i]) * 1099511628211ull;
    return h;
}

static uint64_t sample_hash(const struct tpo_sample *s)
{
    uint64_t h = hash(s->pixels, (size_t)s->n_frames * s->height * s->width * 3);
    for (int c = 0; c < s->n_conversations; c++) {
        const struct tpo_conversation *q = &s->conversations[c];
        h ^= hash(q->turns->question, strlen(q->turns->question)) * 3 + hash(q->turns->answer, strlen(q->turns->answer)) * 5;
        if (q->n_boxes > 0) h ^= hash(q->boxes, sizeof(float[4])) * 7;
        for (int i = 0; i < q->n_attention; i++)
            h += q->attention[i].slots != NULL ? hash(q->attention[i].slots, 128) : (uint64_t)i;
    }
    for (int i = 0; i < s->n_targets; i++)
        h ^= hash(s->targets[i].data, (size_t)(s->targets[i].shape[0] * s->targets[i].shape[1] * 4)) * 11;
    return h;
}

static void seed_and_index_decide_alone(void **state)
{
    (void)state;
    struct tpo_world *w = open_world(TPO_WORLD_TRAIN, tpo_test_seed() & 0xffff),
                     *again = open_world(TPO_WORLD_TRAIN, tpo_test_seed() & 0xffff);
    struct tpo_world_batch a = {0}, b = {0};
    for (int n_frames = 1; n_frames <= 8; n_frames += 7) {
        struct tpo_world_draw d;
        tpo_world_draw_default(&d, n_frames);
        d.dense = true;
        assert_int_equal(tpo_world_batch_fill(&a, w, &d, 100, 24, 1, NULL), TPO_OK);
        assert_int_equal(tpo_world_batch_fill(&b, again, &d, 92, 40, 3, NULL), TPO_OK);
        for (int i = 0; i < a.n; i++) assert_true(sample_hash(&a.samples[i]) == sample_hash(&b.samples[i + 8]));
    }
    tpo_world_batch_free(&a);
    tpo_world_batch_free(&b);
    tpo_world_close(w);
    tpo_world_close(again);
}

static void boxes_and_masks_are_the_pixels(void **state)
{
    (void)state;
    struct tpo_world *w = open_world(TPO_WORLD_TRAIN, 1);
    struct tpo_arena arena;
    tpo_arena_init(&arena, 1 << 20, 0);
    struct tpo_view v;
    assert_int_equal(tpo_view_alloc(&v, w, &arena, 4), TPO_OK);
    int hidden = 0, moved = 0;
    for (uint64_t i = 0; i < 300; i++) {
        tpo_view_make(&v, w, TPO_VIEW_SAMPLES, i, 0, 4);
        assert_in_range(v.scene.n_objects, 4, 8);
        for (int o = 0; o < v.scene.n_objects; o++) {
            const struct tpo_scene_object *object = &v.scene.objects[o];
            for (int t = 0; t < 4; t++) {
                int box[4], n = oracle_box(&v.scene, o, t, box);
                assert_int_equal(n, object->visible[t]);
                if (n > 0) assert_memory_equal(box, object->edges[t], sizeof(box));
                assert_true(n <= object->whole[t]);
            }
            assert_true(object->visible[0] * 2 >= object->whole[0]);
            hidden += object->visible[0] < object->whole[0];
            int direction = object->attributes[TPO_WORLD_DIRECTION];
            float dx = object->x[3] - object->x[0], dy = object->y[3] - object->y[0];
            moved += direction != 4;
            assert_int_equal(direction, dx < -1 ? 0 : dx > 1 ? 1 : dy < -1 ? 2 : dy > 1 ? 3 : 4);
        }
    }
    assert_true(hidden > 50);
    assert_true(moved > 500);
    tpo_arena_free(&arena);
    tpo_world_close(w);
}

static void the_inside_of_a_shape_has_its_colour(void **state)
{
    (void)state;
    struct tpo_world *w = open_world(TPO_WORLD_TRAIN, 2);
    struct tpo_arena arena;
    struct tpo_view v;
    tpo_arena_init(&arena, 1 << 20, 0);
    assert_int_equal(tpo_view_alloc(&v, w, &arena, 1), TPO_OK);
    for (uint64_t i = 0; i < 100; i++) {
        tpo_view_make(&v, w, TPO_VIEW_SAMPLES, i, 0, 4);
        for (int p = 0; p < 96 * 96; p++) {
            int o = v.scene.labels[p];
            if (o == TPO_SCENE_GROUND || v.scene.objects[o].attributes[TPO_WORLD_PATTERN] != 0) continue;
            int x = p % 96, y = p / 96;
            const struct tpo_scene_object *object = &v.scene.objects[o];
            float r = object->radius,
                  inside =
                      tpo_shape_distance(object->attributes[0], (x + .5f - object->x[0]) / r, (y + .5f - object->y[0]) / r) * r;
            assert_true(inside <= 0);
            bool edge = inside > -1; /* the rim is mixed with what lies below, and with what lies above */
            for (int k = 0; k < 9; k++) {
                int nx = x + k % 3 - 1, ny = y + k / 3 - 1;
                edge = edge || nx < 0 || ny < 0 || nx > 95 || ny > 95 || v.scene.labels[ny * 96 + nx] != o;
            }
            for (int c = 0; c < 3 && !edge; c++) assert_true(fabsf(v.scene.pixels[p * 3 + c] - object->tint[c]) < 12);
        }
    }
    tpo_arena_free(&arena);
    tpo_world_close(w);
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void splits_share_no_scene(void **state)
{
    (void)state;
    enum { N = 150 };
    static uint64_t seen[TPO_WORLD_SPLITS * 2 * N];
    int n = 0;
    struct tpo_arena arena;
    tpo_arena_init(&arena, 1 << 20, 0);
    for (int split = 0; split < TPO_WORLD_SPLITS; split++) {
        for (uint64_t seed = 0; seed < 2; seed++) {
            struct tpo_world *w = open_world(split, seed);
            struct tpo_world_draw d;
            tpo_world_draw_default(&d, 1);
            d.n_conversations = 0;
            for (uint64_t i = 0; i < N; i++) {
                struct tpo_sample s;
                tpo_arena_reset(&arena);
                assert_int_equal(tpo_world_sample(w, &arena, &d, i, &s, NULL), TPO_OK);
                seen[n++] = hash(s.pixels, 96 * 96 * 3);
            }
            tpo_world_close(w);
        }
    }
    qsort(seen, (size_t)n, sizeof(*seen), compare);
    for (int i = 1; i < n; i++) assert_true(seen[i] != seen[i - 1]);
    tpo_arena_free(&arena);
}

static void a_seed_of_another_split_is_refused(void **state)
{
    (void)state;
    struct tpo_world *w = NULL;
    struct tpo_error err = {0};
    for (int split = 0; split < TPO_WORLD_SPLITS; split++) {
        uint64_t first = tpo_world_first_seed(split), next = tpo_world_first_seed(split + 1);
        assert_int_equal(tpo_world_open(&w, &(struct tpo_world_options){split, next, 0}, &err), TPO_INVALID_ARGUMENT);
        if (split > 0)
            assert_int_equal(tpo_world_open(&w, &(struct tpo_world_options){split, first - 1, 0}, &err), TPO_INVALID_ARGUMENT);
        assert_string_equal(err.reason, "bad_seed");
        assert_int_equal(tpo_world_open(&w, &(struct tpo_world_options){split, first, 47}, &err), TPO_INVALID_ARGUMENT);
        assert_int_equal(tpo_world_open(&w, &(struct tpo_world_options){split, next - 1, 448}, &err), TPO_OK);
        tpo_world_close(w);
    }
    assert_int_equal(tpo_world_open(&w, &(struct tpo_world_options){TPO_WORLD_SPLITS, 0, 0}, &err), TPO_INVALID_ARGUMENT);
}

/* Printed, never asserted. */
static void drawing_is_fast(void **state)
{
    (void)state;
    struct tpo_world *w = open_world(TPO_WORLD_TRAIN, 5);
    for (int n_frames = 1; n_frames <= 4; n_frames += 3) {
        struct tpo_world_batch b = {0};
        struct tpo_world_draw d;
        tpo_world_draw_default(&d, n_frames);
        d.dense = true;
        const double begun_s = tpo_now_s();
        assert_int_equal(tpo_world_batch_fill(&b, w, &d, 0, 300, 0, NULL), TPO_OK);
        const double s = tpo_now_s() - begun_s;
        printf("%.0f samples of %d frames a second, with %d conversations each\n", b.n / s, n_frames, d.n_conversations);
        tpo_world_batch_free(&b);
    }
    tpo_world_close(w);
}

TPO_TESTS(cmocka_unit_test(seed_and_index_decide_alone), cmocka_unit_test(boxes_and_masks_are_the_pixels),
          cmocka_unit_test(the_inside_of_a_shape_has_its_colour), cmocka_unit_test(splits_share_no_scene),
          cmocka_unit_test(a_seed_of_another_split_is_refused), cmocka_unit_test(drawing_is_fast))
