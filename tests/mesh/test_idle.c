/* Proves that a service which is not called for longer than a lease lasts stays its trainer's: others compute meanwhile, or samples are drawn, or
 * files are written. */
#include "tests/support/test.h"
#include "tests/support/training.h"

#define LEASE "1s"

/* The encoder works for seconds on each micro-batch, and router and head wait for it. */
static const char stages[] = "  - name: see\n"
                             "    steps: 2\n"
                             "    micro_batches: 1\n"
                             "    lanes: 1\n"
                             "    data:\n"
                             "      - {frames: 4, samples: 256, conversations: 1}\n"
                             "    losses: {language: 1, region: 1}\n"
                             "    groups:\n"
                             "      - {name: rest, optimiser: adamw, rate: 2.0e-3, tensors: ['vision_*', 'loc_decoder.*']}\n";

static void who_waits_for_a_slow_step_keeps_its_lease(void **state)
{
    (void)state;
    static const char *const more[] = {"--lease", LEASE, NULL};
    struct training_mesh m;
    training_model(0);
    training_recipe("r.yaml", stages);
    training_mesh_start(&m, "served", 1, 1);
    training_run("r.yaml", "out", &m, more);
    training_mesh_stop(&m);
    assert_false(training_says("out.log", "event=step_lost"));
}

TPO_TESTS(cmocka_unit_test(who_waits_for_a_slow_step_keeps_its_lease))
