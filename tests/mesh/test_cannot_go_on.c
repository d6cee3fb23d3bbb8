/* Proves what a run leaves behind that ends by an error which no waiting helps. */
#include "tests/support/annotated.h"
#include "tests/support/test.h"
#include "tests/support/training.h"

static void refused(const struct training_mesh *m, const char *out, const char *text, const char *const *more)
{
    char err[64];
    snprintf(err, sizeof(err), "%s.err", out);
    assert_int_equal(training_wait(training_start("r.yaml", out, m, more), 60), 1);
    if (!training_says(err, text)) fail_msg("%s does not say \"%s\"", err, text);
}

/* Some draws are past the largest message that services take: a run that meets one ends there. What it has done by then is kept, the services are
 * free for others at once, and with larger messages it goes on. */
static void a_run_that_cannot_go_on_frees_its_services(void **state)
{
    (void)state;
    static const char mixed[] = "  - name: talk\n"
                                "    steps: 8\n"
                                "    micro_batches: 1\n"
                                "    lanes: 1\n"
                                "    data:\n"
                                "      - {share: 3, frames: 1, samples: 1, conversations: 1, dense: true}\n"
                                "      - {share: 1, frames: 4, samples: 64, conversations: 1, dense: true}\n"
                                "    losses: {language: 1, dense: 1}\n"
                                "    groups:\n"
                                "      - {name: all, optimiser: adamw, rate: 1.0e-3, tensors: ['*']}\n";
    static const char *const seldom[] = {"--checkpoint-every", "0", NULL};
    struct training_mesh m;
    training_model(0);
    training_recipe("r.yaml", mixed);
    training_run("r.yaml", "whole", NULL, seldom);
    setenv("TPO_MAX_MESSAGE_BYTES", "1200000", 1);
    training_mesh_start(&m, "served", 1, 2);
    refused(&m, "first", "RESOURCE_EXHAUSTED", seldom);
    assert_true(training_says("first.log", "step=1/8"));
    refused(&m, "second", "RESOURCE_EXHAUSTED", seldom); /* as the first, and not for its lease */
    unsetenv("TPO_MAX_MESSAGE_BYTES");
    training_mesh_renew(&m, TRAINING_ENCODER, 0, NULL);
    training_run("r.yaml", "first", &m, seldom);
    assert_true(training_says("first.log", "from=checkpoint"));
    training_same_model("whole", "first", "1-talk");
    training_mesh_stop(&m);
}

/* Its files are read once the services have begun. */
static void data_that_cannot_be_read_free_the_services(void **state)
{
    (void)state;
    static const char files[] = "  - name: files\n    steps: 2\n    data:\n"
                                "      - {source: videochat2, annotations: data/image_it.json, media: data/images, skip_most: 0}\n"
                                "    losses: {language: 1}\n" ANNOTATED_ALL;
    struct training_mesh m;
    annotated_write();
    training_model(0);
    training_recipe("r.yaml", files);
    training_mesh_start(&m, "served", 1, 2);
    assert_int_equal(rename("data/images/000005.png", "away.png"), 0);
    refused(&m, "first", "1 of 8 rows are bad", NULL);
    refused(&m, "second", "1 of 8 rows are bad", NULL); /* as the first, and not for its lease */
    assert_int_equal(rename("away.png", "data/images/000005.png"), 0);
    training_run("r.yaml", "first", &m, NULL);
    training_mesh_stop(&m);
}

TPO_TESTS(cmocka_unit_test(a_run_that_cannot_go_on_frees_its_services),
          cmocka_unit_test(data_that_cannot_be_read_free_the_services))
