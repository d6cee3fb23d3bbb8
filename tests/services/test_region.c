/* The region head: boxes that are boxes, rows that do not depend on their company, bad input. */
#include "tests/support/test.h"

#include <math.h>

#include "kernels/vector.h"
#include "services/region/region.h"

#define WIDTH 16

static struct tpo_stream *stream;

static struct tpo_region *region_open(void)
{
    struct tpo_config c;
    struct tpo_region *r;
    struct tpo_error err = {0};
    tpo_config_default(&c);
    c.llm.hidden_size = WIDTH;
    c.region_hidden_size = 12;
    assert_int_equal(tpo_stream_open(&stream, "cpu", 1, NULL), TPO_OK);
    if (tpo_region_open(&r, stream, &c, NULL, 3, &err) != TPO_OK) fail_msg("%s", err.message);
    return r;
}

static void boxes_are_ordered_and_inside(void **state)
{
    (void)state;
    struct tpo_region *r = region_open();
    float e[40 * WIDTH], boxes[40 * 4], one[4];
    for (int k = 0; k < 40 * WIDTH; k++) e[k] = 40 * tpo_random_normal(1, (uint64_t)k);
    for (int k = 0; k < WIDTH; k++) e[k] = NAN;
    assert_int_equal(tpo_region_run(r, boxes, e, 40, NULL), TPO_OK);
    bool moved = false;
    for (int k = 0; k < 4; k++) assert_true(boxes[k] == 0); /* what is no number is the edge, not a plausible place */
    for (int i = 0; i < 40; i++) {
        const float *b = boxes + 4 * (size_t)i;
        for (int k = 0; k < 4; k++) assert_true(b[k] >= 0 && b[k] <= 1);
        assert_true(b[0] <= b[2] && b[1] <= b[3]);
        moved = moved || (i > 1 && b[0] != boxes[4]);
    }
    assert_true(moved);
    assert_int_equal(tpo_region_run(r, one, e + 5 * WIDTH, 1, NULL), TPO_OK);
    assert_memory_equal(one, boxes + 20, sizeof(one));
    tpo_region_close(r);
}

static bool wants_all(void *plan, const char *name)
{
    (void)plan, (void)name;
    return true;
}

static void bad_input_is_named(void **state)
{
    (void)state;
    struct tpo_region *r = region_open();
    struct tpo_tape *t;
    struct tpo_error err = {0};
    float box[4];
    assert_int_equal(tpo_region_run(r, box, box, 0, &err), TPO_INVALID_ARGUMENT);
    assert_int_equal(tpo_tape_open(&t, stream, true), TPO_OK);
    struct tpo_model *m = tpo_region_model(r);
    struct tpo_forward f = {.wants_loss = wants_all};
    assert_int_equal(m->forward(m->self, t, &f, &err), TPO_OK); /* no box in the micro-batch: no loss */
    assert_int_equal(f.n_losses, 0);
    f = (struct tpo_forward){
        .wants_loss = wants_all, .n_inputs = 1, .inputs = {{"e.region", tpo_input(t, NULL, 2, WIDTH + 1, true)}}};
    assert_int_equal(m->forward(m->self, t, &f, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "e_width");
    f = (struct tpo_forward){
        .wants_loss = wants_all,
        .n_inputs = 2,
        .inputs = {{"e.region", tpo_input(t, NULL, 2, WIDTH, true)}, {"boxes", tpo_input(t, NULL, 1, 4, false)}}};
    assert_int_equal(m->forward(m->self, t, &f, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "boxes_shape");
    tpo_tape_close(t);
    tpo_region_close(r);
}

TPO_TESTS(cmocka_unit_test(boxes_are_ordered_and_inside), cmocka_unit_test(bad_input_is_named))
