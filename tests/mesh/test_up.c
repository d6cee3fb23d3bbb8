/* Proves what `tpo up` does with a run directory that is not empty: a whole mesh is left alone, what is left of a broken one ends before another
 * starts, and a start that fails ends what it started. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/support/mesh.h"
#include "tests/support/test.h"

#define UP "%s/tpo up --any-port --run-dir run --model %s/models/small >up.log 2>&1"

static const char *const names[] = {"redis", "encoder-0", "router-0", "region-0", "gateway"};
#define N_NAMES 5

static int exit_of(int status)
{
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void up(void)
{
    if (mesh_shell(UP, tpo_test_build(), tpo_test_source()) != 0) {
        (void)!system("cat up.log");
        fail_msg("tpo up failed");
    }
}

static void pids(pid_t out[N_NAMES])
{
    for (int i = 0; i < N_NAMES; i++) out[i] = mesh_pid(names[i]);
}

static void expect_gone(pid_t pid)
{
    char path[64], state[64] = "";
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "r");
    if (f == NULL) return;
    assert_int_equal(fscanf(f, "%*d (%*[^)]) %63s", state), 1);
    fclose(f);
    assert_string_equal(state, "Z"); /* dead, and nobody has asked after it */
}

static void what_a_dead_gateway_left_ends_before_another_mesh_starts(void **state)
{
    (void)state;
    pid_t first[N_NAMES], second[N_NAMES], third[N_NAMES];
    up();
    pids(first);
    assert_int_equal(kill(first[4], SIGKILL), 0);
    up();
    assert_int_equal(system("grep -q 'gateway is gone' up.log"), 0);
    for (int i = 0; i < N_NAMES; i++) expect_gone(first[i]);
    pids(second);
    up();
    assert_int_equal(system("grep -q 'running already: 5 of 5' up.log"), 0);
    pids(third);
    assert_memory_equal(second, third, sizeof(second));
    assert_int_equal(mesh_down(NULL), 0);
    for (int i = 0; i < N_NAMES; i++) expect_gone(second[i]);
}

static void a_start_that_fails_leaves_nothing_running(void **state)
{
    (void)state;
    assert_int_equal(exit_of(system("mkdir bad && echo '{}' >bad/config.json")), 0);
    assert_int_equal(exit_of(mesh_shell("%s/tpo up --any-port --run-dir run --model bad >bad.log 2>&1%s", tpo_test_build(), "")),
                     1);
    assert_int_equal(system("grep -q 'did not stay up' bad.log && test -f run/redis.log && test -f run/gateway.log"), 0);
    assert_int_equal(mesh_shell("%s/tpo down --run-dir run | grep -q 'nothing was running'%s", tpo_test_build(), ""), 0);
    up();
    assert_int_equal(system("grep -q '^ready' up.log"), 0);
    assert_int_equal(mesh_down(NULL), 0);
}

/* As after a reboot: a pid file of a mesh that had one service more. */
static void pid_files_of_the_dead_do_not_count(void **state)
{
    (void)state;
    assert_int_equal(system("mkdir run && echo '2147483000 1' >run/encoder-1.pid"), 0);
    up();
    assert_int_not_equal(access("run/encoder-1.pid", F_OK), 0);
    assert_int_equal(mesh_down(NULL), 0);
}

/* The gateway stands still, so that the mesh cannot get ready, and then `tpo up`, so that it finds no process that has died but none at all. */
static void a_mesh_that_is_ended_while_it_starts_is_told(void **state)
{
    (void)state;
    assert_int_equal(
        exit_of(mesh_shell("%s/tpo up --any-port --drain 1s --wait 20s --run-dir run --model %s/models/small >up.log 2>&1 & up=$!;"
                           " until test -s run/gateway.pid; do :; done; kill -STOP $(cut -d' ' -f1 run/gateway.pid);"
                           " until test -s run/grpc; do :; done; kill -STOP $up; $TPO_BUILD/tpo down --run-dir run >down.log;"
                           " kill -CONT $up; wait $up",
                           tpo_test_build(), tpo_test_source())),
        1);
    assert_int_equal(system("grep -q 'somebody ended the mesh' up.log"), 0);
    assert_int_equal(mesh_shell("%s/tpo down --run-dir run | grep -q 'nothing was running'%s", tpo_test_build(), ""), 0);
}

static void one_at_a_time_starts_a_mesh(void **state)
{
    (void)state;
    assert_int_equal(
        exit_of(mesh_shell("mkdir run && flock run %s/tpo up --any-port --run-dir run --model %s/models/small 2>up.log",
                           tpo_test_build(), tpo_test_source())),
        1);
    assert_int_equal(system("grep -q 'another .tpo up. is at work' up.log"), 0);
    assert_int_equal(mesh_shell("%s/tpo down --run-dir run | grep -q 'nothing was running'%s", tpo_test_build(), ""), 0);
}

TPO_TESTS(cmocka_unit_test(what_a_dead_gateway_left_ends_before_another_mesh_starts),
          cmocka_unit_test(a_start_that_fails_leaves_nothing_running), cmocka_unit_test(pid_files_of_the_dead_do_not_count),
          cmocka_unit_test(a_mesh_that_is_ended_while_it_starts_is_told), cmocka_unit_test(one_at_a_time_starts_a_mesh))
