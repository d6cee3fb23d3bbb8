/* Proves `--mesh ADDR,ADDR,ADDR`: each address is asked which service it is, in whatever order they stand, and waited for if it comes late. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/test.h"
#include "tests/support/training.h"

static const char stages[] = "  - name: talk\n"
                             "    steps: 3\n"
                             "    micro_batches: 2\n"
                             "    lanes: 2\n"
                             "    data:\n"
                             "      - {frames: 1, samples: 2, conversations: 2}\n"
                             "    losses: {language: 1, region: 1}\n"
                             "    groups:\n"
                             "      - {name: all, optimiser: adamw, rate: 1.0e-3, tensors: ['*']}\n";

/* The head's first and the encoder's second: nobody stands where the names would have put it. */
static void bare(const struct training_mesh *m, char *out, size_t size)
{
    snprintf(out, size, "127.0.0.1:%d,127.0.0.1:%d,127.0.0.1:%d", m->ports[TRAINING_REGION][0], m->ports[TRAINING_ENCODER][0],
             m->ports[TRAINING_ROUTER][0]);
}

static void three_bare_addresses_in_another_order(void **state)
{
    (void)state;
    struct training_mesh m;
    char text[128];
    const char *const more[] = {"--mesh", text, NULL};
    training_model(0);
    training_recipe("r.yaml", stages);
    training_run("r.yaml", "one", NULL, NULL);
    training_mesh_start(&m, "served", 1, 2);
    bare(&m, text, sizeof(text));
    training_run("r.yaml", "mesh", NULL, more);
    training_mesh_stop(&m);
    training_same_lines("one", "mesh");
    training_same_model("one", "mesh", "1-talk");
}

static void a_service_that_comes_late_is_waited_for(void **state)
{
    (void)state;
    struct training_mesh m;
    char text[128];
    const char *const more[] = {"--mesh", text, NULL};
    training_model(0);
    training_recipe("r.yaml", stages);
    training_mesh_start(&m, "served", 1, 2);
    bare(&m, text, sizeof(text));
    assert_int_equal(kill(m.pids[TRAINING_ENCODER][0], SIGKILL), 0);
    while (!training_mesh_died(&m, TRAINING_ENCODER, 0)) usleep(1000);
    const pid_t trainer = training_start("r.yaml", "mesh", NULL, more);
    while (access("mesh.log", R_OK) != 0 || !training_says("mesh.log", "event=waiting for=127.0.0.1:")) {
        if (waitpid(trainer, NULL, WNOHANG) != 0) fail_msg("the trainer does not wait: see mesh.err");
        usleep(5000);
    }
    training_mesh_renew(&m, TRAINING_ENCODER, 0, NULL);
    assert_int_equal(training_wait(trainer, 90), 0);
    assert_true(training_says("mesh.log", "event=done"));
    training_mesh_stop(&m);
}

static void a_service_that_never_comes_ends_the_run(void **state)
{
    (void)state;
    const char *const more[] = {"--mesh", "127.0.0.1:1", "--wait", "0", NULL};
    training_model(0);
    training_recipe("r.yaml", stages);
    assert_int_equal(training_wait(training_start("r.yaml", "mesh", NULL, more), 60), 1);
    assert_true(training_says("mesh.err", "UNAVAILABLE"));
}

TPO_TESTS(cmocka_unit_test(three_bare_addresses_in_another_order), cmocka_unit_test(a_service_that_comes_late_is_waited_for),
          cmocka_unit_test(a_service_that_never_comes_ends_the_run))
