/* What `tpo train --status` tells another shell of a run, and that its own lines keep their form whatever a folder is called. */
#include "tests/support/test.h"
#include "tests/support/training.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static void prepare(int steps)
{
    char stage[512];
    snprintf(stage, sizeof(stage),
             "  - name: talk\n"
             "    steps: %d\n"
             "    data: [{frames: 1, samples: 2, conversations: 2}]\n"
             "    losses: {language: 1}\n"
             "    groups: [{name: all, optimiser: adamw, rate: 1.0e-3, tensors: ['*']}]\n",
             steps);
    training_model(0);
    training_recipe("r.yaml", stage);
}

static int asked(const char *words)
{
    char command[4300];
    snprintf(command, sizeof(command), "%s/tpo-trainer train --status %s >status.log 2>&1", tpo_test_build(), words);
    return system(command);
}

static void expect(const char *out, const char *text)
{
    char words[64];
    snprintf(words, sizeof(words), "--out %s", out);
    assert_int_equal(asked(words), 0);
    if (!training_says("status.log", text)) fail_msg("--status of %s does not say \"%s\"", out, text);
}

static void status_is_told_to_others(void **state)
{
    (void)state;
    prepare(8);
    assert_int_not_equal(asked("--out one"), 0);
    training_run("r.yaml", "one", NULL, NULL);
    expect("one", "done");
    expect("one", "stage talk, step 8 of 8");
    expect("one", "language");
    const char *const fault[] = {"--fault", "after_commit:2", NULL};
    assert_int_equal(training_wait(training_start("r.yaml", "killed", NULL, fault), 60), 128 + SIGKILL);
    expect("killed", "not running");
}

static void says_wait(const char *path, const char *text)
{
    for (int i = 0; i < 6000; i++) {
        if (access(path, R_OK) == 0 && training_says(path, text)) return;
        usleep(10000);
    }
    fail_msg("%s never says %s", path, text);
}

/* Files may not grow past what anything but a shard needs until it stands in its third step. */
static void a_full_disk_is_told_until_a_checkpoint_succeeds(void **state)
{
    (void)state;
    const char *const fault[] = {"--checkpoint-every", "2", "--fault", "after_commit:3:stop", NULL};
    struct rlimit before, small;
    int status = 0;
    prepare(1000);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 32768;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    const pid_t pid = training_start("r.yaml", "full", NULL, fault);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    assert_true(WIFSTOPPED(status));
    expect("full", "training: the disk is full");
    assert_int_equal(prlimit(pid, RLIMIT_FSIZE, &before, NULL), 0);
    kill(pid, SIGCONT);
    says_wait("full.log", "step=5/");
    kill(pid, SIGKILL);
    training_wait(pid, 60);
    expect("full", "not running; was training\n");
}

static void a_recipe_has_no_place_beside_status(void **state)
{
    (void)state;
    assert_int_not_equal(asked("r.yaml"), 0);
    assert_true(training_says("status.log", "--status takes no recipe"));
}

/* Paths are a caller's text: one value each, in quotes. */
static void a_folder_with_a_space_is_one_value(void **state)
{
    static const char *const often[] = {"--checkpoint-every", "1", NULL}, *const killed[] = {"--checkpoint-every", "1", "--fault",
                                                                                             "after_commit:3", NULL};
    (void)state;
    prepare(4);
    assert_int_equal(training_wait(training_start("r.yaml", "my run", NULL, killed), 60), 128 + SIGKILL);
    assert_int_equal(system("rm 'my run/1-talk/step-00000002/manifest.json' && cp -r 'my run' 'my copy'"), 0);
    training_run("r.yaml", "my copy", NULL, often);
    assert_true(training_says("my run.log", "event=random_start model=\"tiny\" seed=3"));
    assert_true(training_says("my copy.log", "event=other_folder path=\"my copy\""));
    assert_true(training_says("my copy.log", "event=checkpoint_refused path=\"my copy/1-talk/step-00000002\""));
    assert_true(training_says("my copy.log", "event=done model=\"my copy/1-talk/model\""));
}

TPO_TESTS(cmocka_unit_test(status_is_told_to_others), cmocka_unit_test(a_full_disk_is_told_until_a_checkpoint_succeeds),
          cmocka_unit_test(a_recipe_has_no_place_beside_status), cmocka_unit_test(a_folder_with_a_space_is_one_value))
