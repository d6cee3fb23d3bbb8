/* Proves that a micro-batch which no message of a mesh can hold is refused before a run begins, and only such a one. */
#include <string.h>

#include "tests/support/test.h"
#include "tests/support/training.h"
#include "trainer/steps/messages.h"

/* The published sizes: a frame has .14 MiB of pixels, a sample .28 MiB of visual tokens; 62 MiB are left for them. */
static struct tpo_config published(void)
{
    struct tpo_config c;
    struct tpo_error err;
    char folder[4096];
    snprintf(folder, sizeof(folder), "%s/models/published", tpo_test_source());
    if (tpo_config_load(&c, folder, &err) != TPO_OK) fail_msg("%s", err.message);
    return c;
}

static void sizes_are_those_of_what_is_sent(void **state)
{
    (void)state;
    static const struct {
        bool file, by_id;
        int samples, frames, films;
        const char *says; /* NULL: it fits */
    } cases[] = {
        {true, false, 32, 0, 32, "32 samples have 73.5 MiB of pixels, a message over a mesh 62.0: take at most 26 samples"},
        {true, false, 26, 0, 1000, NULL},
        {true, false, 27, 0, 1000, "at most 26 samples"},
        {true, false, 32, 0, 10, NULL},
        {true, false, 431, 0, 0, "visual tokens"},
        {true, true, 32, 0, 32, NULL},
        {true, true, 32, 15, 32, "of pixels"},
        {false, true, 32, 16, 0, "of pixels"},
        {false, false, 32, 8, 0, NULL},
        {true, true, 220, 0, 220, NULL},
        {true, true, 221, 0, 0, "221 samples have 62.2 MiB of visual tokens, a message over a mesh 62.0: take at most 220"}};
    const struct tpo_config c = published();
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tpo_recipe_stage s = {.name = "talk", .n_data = 1};
        struct tpo_error err = {0};
        s.data[0] = (struct tpo_recipe_data){
            .samples = cases[i].samples, .draw.n_frames = cases[i].frames, .annotations = cases[i].file ? "rows.json" : NULL};
        const int rc = tpo_message_check(&s, 0, &c, cases[i].by_id, cases[i].films, &err);
        if (rc != (cases[i].says != NULL ? TPO_INVALID_ARGUMENT : TPO_OK)) fail_msg("case %zu: %d %s", i, rc, err.message);
        if (rc == TPO_OK) continue;
        assert_string_equal(err.reason, "samples");
        if (strstr(err.message, cases[i].says) == NULL) fail_msg("case %zu: %s", i, err.message);
    }
}

static void an_encoder_that_learns_gets_pixels(void **state)
{
    (void)state;
    const struct tpo_config c = published();
    struct tpo_param eye = {.name = "vision_encoder.patch"}, *items[] = {&eye};
    const struct tpo_params encoder = {.items = items, .n = 1};
    struct tpo_recipe *r = calloc(1, sizeof(*r));
    struct tpo_error err = {0};
    const char *pattern = "lm.*";
    assert_non_null(r);
    r->n_stages = 2;
    for (int i = 0; i < 2; i++) {
        struct tpo_recipe_stage *s = &r->stages[i];
        s->n_data = 1;
        s->data[0] = (struct tpo_recipe_data){.samples = 32, .annotations = "rows.json", .source = TPO_ANNOTATIONS_MVBENCH};
        s->groups[0] = (struct tpo_group){.patterns = &pattern, .n_patterns = 1};
        s->plan = (struct tpo_plan){.groups = s->groups, .n_groups = 1};
    }
    assert_int_equal(tpo_messages_check(r, 0, &c, &encoder, &err), TPO_OK);
    pattern = "vision_*";
    assert_int_equal(tpo_messages_check(r, 0, &c, &encoder, &err), TPO_INVALID_ARGUMENT);
    assert_int_equal(tpo_messages_check(r, 2, &c, &encoder, &err), TPO_OK); /* those stages are done */
    r->stages[0].data[0].source = r->stages[1].data[0].source = TPO_ANNOTATIONS_VIDEOCHAT2;
    assert_int_equal(tpo_messages_check(r, 0, &c, &encoder, &err), TPO_OK); /* pictures, as far as the recipe tells */
    free(r);
}

/* Nobody is asked: the services that are named are not there. Of a stage that would come later. */
static void a_run_over_a_mesh_does_not_begin(void **state)
{
    (void)state;
    static const char *const mesh[] = {"--mesh", "encoder=127.0.0.1:1,router=127.0.0.1:2,region=127.0.0.1:3", NULL};
    static const char rest[] = "    losses: {language: 1}\n    groups:\n"
                               "      - {name: all, optimiser: adamw, rate: 1.0e-3, tensors: ['*']}\n";
    char stages[2048];
    training_model(0);
    assert_int_equal(system("sed -i 's/\"img_size\": 48/\"img_size\": 96/' tiny/config.json"), 0);
    snprintf(stages, sizeof(stages),
             "  - name: small\n    steps: 1\n    data: [{frames: 1, conversations: 2}]\n%s"
             "  - name: large\n    steps: 1\n    data: [{frames: 1, samples: 2}, {frames: 4, samples: 1024}]\n%s",
             rest, rest);
    training_recipe("r.yaml", stages);
    assert_int_equal(training_wait(training_start("r.yaml", "out", NULL, mesh), 60), 1);
    assert_true(training_says("out.err", "INVALID_ARGUMENT: stage large, entry 2 of data: 1024 samples have 108.0 MiB of pixels"));
}

TPO_TESTS(cmocka_unit_test(sizes_are_those_of_what_is_sent), cmocka_unit_test(an_encoder_that_learns_gets_pixels),
          cmocka_unit_test(a_run_over_a_mesh_does_not_begin))
