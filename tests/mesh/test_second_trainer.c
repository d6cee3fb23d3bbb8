/* Proves that services have one trainer at a time: a second one is refused, also on a copied folder, and one that slept past its lease goes on where
 * it may. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "tests/mesh/refused.h"

static void a_second_trainer_is_refused(void **state)
{
    (void)state;
    struct training_mesh m;
    prepare(&m);
    const pid_t first = training_start("r.yaml", "first", &m, often);
    says_wait("first.log", "event=begin");
    kill(first, SIGSTOP);
    refused(&m, "first", "another trainer works on first", often);
    refused(&m, "second", "another trainer holds", often);
    kill(first, SIGCONT);
    assert_int_equal(training_wait(first, 60), 0);
    training_same_model("whole", "first", "1-talk");
    training_run("r.yaml", "second", &m, often); /* now it may */
    training_same_model("whole", "second", "1-talk");
    training_mesh_stop(&m);
}

/* A folder that was copied is another run's to the services, whatever lies in it. */
static void a_second_trainer_on_a_copied_folder_is_refused(void **state)
{
    (void)state;
    struct training_mesh m;
    prepare(&m);
    const char *const fault[] = {"--checkpoint-every", "2", "--fault", "after_commit:5:stop", NULL};
    int status = 0;
    const pid_t first = training_start("r.yaml", "first", &m, fault);
    assert_int_equal(waitpid(first, &status, WUNTRACED), first);
    assert_true(WIFSTOPPED(status));
    shell("cp -a first copied");
    refused(&m, "copied", "another trainer holds", often);
    kill(first, SIGCONT);
    assert_int_equal(training_wait(first, 60), 0);
    assert_false(training_says("first.log", "event=step_lost"));
    training_same_model("whole", "first", "1-talk");
    training_run("r.yaml", "copied", &m, often); /* now it may, from the checkpoint it has */
    assert_true(training_says("copied.log", "event=restored step=4 version=4 from=checkpoint"));
    training_same_model("whole", "copied", "1-talk");
    training_mesh_stop(&m);
}

/* A folder under another name is the same one: its next trainer is not kept out by the lease of the one before. */
static void a_renamed_folder_goes_on_at_once(void **state)
{
    (void)state;
    struct training_mesh m;
    prepare(&m);
    const char *const fault[] = {"--checkpoint-every", "2", "--lease", "600s", "--fault", "after_commit:5", NULL};
    assert_int_equal(training_wait(training_start("r.yaml", "killed", &m, fault), 60), 128 + SIGKILL);
    shell("mv killed renamed");
    training_run("r.yaml", "renamed", &m, often);
    assert_true(training_says("renamed.log", "event=agreed step=5"));
    training_same_model("whole", "renamed", "1-talk");
    training_mesh_stop(&m);
}

/* --- a lease that ended ----------------------------------------------------------------------------------------------------------------- */

/* A run that stands still at `point`, once it does. */
static pid_t stopped_at(const struct training_mesh *m, const char *out, const char *lease, const char *point)
{
    const char *const more[] = {"--checkpoint-every", "2", "--lease", lease, "--fault", point, NULL};
    int status = 0;
    const pid_t pid = training_start("r.yaml", out, m, more);
    assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
    if (!WIFSTOPPED(status)) fail_msg("%s ended with %d and never stood at %s", out, status, point);
    return pid;
}

/* A mesh whose trainer, run "first", sleeps at `point` of its fourth step, until every service has let go of it. */
static pid_t asleep_past_its_lease(struct training_mesh *m, const char *point, bool prepared)
{
    static const char *const logs[] = {"encoder-0.log", "router-0.log", "region-0.log"};
    prepare(m);
    const pid_t pid = stopped_at(m, "first", "3s", point);
    for (int i = 0; i < 3; i++) {
        says_wait(logs[i], "event=lease_ended");
        assert_true(training_says(logs[i], prepared ? " prepared=1" : " prepared=0"));
    }
    return pid;
}

/* Its next call tells it, which is of step `lost`; `way` is how it goes on from there. */
static void comes_back(pid_t first, int lost, const char *way)
{
    char command[256], line[256] = "";
    kill(first, SIGCONT);
    assert_int_equal(training_wait(first, 60), 0);
    snprintf(command, sizeof(command),
             "sed -n '/event=step_lost step=%d code=FAILED_PRECONDITION reason=lease/,$p' first.log | "
             "grep -m 1 -o 'event=\\(agreed\\|restored\\) .*'",
             lost);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    if (fgets(line, sizeof(line), f) != NULL) line[strcspn(line, "\n")] = '\0';
    pclose(f);
    assert_string_equal(line, way);
    training_same_model("whole", "first", "1-talk");
}

/* While nobody came the services hold all that was committed: an open step is done again, and nothing else. */
static void nobody_came_while_a_step_was_open(void **state)
{
    (void)state;
    struct training_mesh m;
    const pid_t first = asleep_past_its_lease(&m, "after_backward:4:stop", false);
    comes_back(first, 4, "event=agreed step=3 version=3");
    training_mesh_stop(&m);
}

/* Nobody has committed it, so it is given up. */
static void nobody_came_while_a_step_was_prepared(void **state)
{
    (void)state;
    struct training_mesh m;
    const pid_t first = asleep_past_its_lease(&m, "after_prepare:4:stop", true);
    comes_back(first, 4, "event=agreed step=3 version=3");
    training_mesh_stop(&m);
}

/* No step is open, so no service says that the lease is over. */
static void nobody_came_between_steps(void **state)
{
    (void)state;
    struct training_mesh m;
    prepare(&m);
    const pid_t first = stopped_at(&m, "first", "3s", "after_commit:4:stop");
    nanosleep(&(struct timespec){.tv_sec = 3, .tv_nsec = 100000000}, NULL);
    comes_back(first, 5, "event=agreed step=4 version=4");
    training_mesh_stop(&m);
}

/* Who comes back ends, and the other, which is in the middle of its run, notices nothing. */
static void another_trainer_is_at_work(void **state)
{
    (void)state;
    struct training_mesh m;
    const pid_t first = asleep_past_its_lease(&m, "after_backward:4:stop", false);
    const pid_t second = stopped_at(&m, "second", "60s", "after_norms:3:stop");
    kill(first, SIGCONT);
    assert_int_equal(training_wait(first, 60), 1);
    assert_true(training_says("first.log", "event=step_lost step=4 code=FAILED_PRECONDITION reason=lease"));
    assert_true(training_says("first.err", "another trainer holds"));
    kill(second, SIGCONT);
    assert_int_equal(training_wait(second, 60), 0);
    assert_false(training_says("second.log", "event=step_lost"));
    training_same_model("whole", "second", "1-talk");
    training_run("r.yaml", "first", &m, often);
    assert_true(training_says("first.log", "event=restored step=2 version=2 from=checkpoint"));
    training_same_model("whole", "first", "1-talk");
    training_mesh_stop(&m);
}

/* The services hold another run's state: back to the last manifest, and the prepared step is gone. */
static void another_trainer_has_come_and_gone(void **state)
{
    (void)state;
    struct training_mesh m;
    const pid_t first = asleep_past_its_lease(&m, "after_prepare:4:stop", true);
    training_run("r.yaml", "second", &m, often);
    comes_back(first, 4, "event=restored step=2 version=2 from=checkpoint");
    training_same_model("whole", "second", "1-talk");
    training_mesh_stop(&m);
}

TPO_TESTS(cmocka_unit_test(a_second_trainer_is_refused), cmocka_unit_test(a_second_trainer_on_a_copied_folder_is_refused),
          cmocka_unit_test(a_renamed_folder_goes_on_at_once), cmocka_unit_test(nobody_came_while_a_step_was_open),
          cmocka_unit_test(nobody_came_while_a_step_was_prepared), cmocka_unit_test(nobody_came_between_steps),
          cmocka_unit_test(another_trainer_is_at_work), cmocka_unit_test(another_trainer_has_come_and_gone))
