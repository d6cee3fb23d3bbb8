/* Proves that a service may die while the trainer's disk is full: a real one, where there is room for what has its place there already, and no more. */
#include "tests/support/test.h"
#include "tests/support/training.h"

#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *const often[] = {"--checkpoint-every", "2", NULL};

static void shell(const char *command)
{
    assert_int_equal(system(command), 0);
}

/* ./disk, which this case and its children alone see, and which goes with them; false: this process may not. */
static bool disk_mount(void)
{
    assert_int_equal(mkdir("disk", 0755), 0);
    return unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
           mount("tpo", "disk", "tmpfs", 0, "size=16m") == 0;
}

static void a_service_that_dies_is_given_the_last_checkpoint(void **state)
{
    (void)state;
    struct training_mesh m;
    const char *const stop[] = {"--checkpoint-every", "2", "--fault", "after_commit:3:stop", NULL};
    int status = 0;
    if (!disk_mount()) skip();
    training_model(0);
    training_recipe("r.yaml", "  - name: talk\n"
                              "    steps: 6\n"
                              "    data: [{frames: 1, samples: 2, conversations: 2}]\n"
                              "    losses: {language: 1, region: 1}\n"
                              "    groups: [{name: all, optimiser: adamw, rate: 1.0e-3, tensors: ['*']}]\n");
    training_run("r.yaml", "whole", NULL, often);
    training_mesh_start(&m, "served", 1, 2);
    shell("mkdir disk/out && ln -s disk/out out");
    const pid_t pid = training_start("r.yaml", "out", &m, stop);
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    assert_true(WIFSTOPPED(status));
    shell("! cat /dev/zero >disk/filling 2>dd.log; ! dd if=/dev/zero of=disk/rest bs=1 count=4096 2>dd.log");
    training_mesh_renew(&m, TRAINING_ENCODER, 0, NULL);
    kill(pid, SIGCONT);
    assert_int_equal(training_wait(pid, 60), 1);
    assert_true(training_says("out.log", "event=restored step=2 version=2 from=checkpoint"));
    assert_true(training_says("out.log", "step=6/6"));
    assert_true(training_says("out.err", "RESOURCE_EXHAUSTED")); /* the end of the stage needs room */
    shell("rm disk/filling disk/rest");
    training_run("r.yaml", "out", &m, often);
    training_same_model("whole", "out", "1-talk");
    training_mesh_stop(&m);
}

TPO_TESTS(cmocka_unit_test(a_service_that_dies_is_given_the_last_checkpoint))
