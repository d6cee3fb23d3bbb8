/* Proves what `tpo up` does with a run directory that is not empty: a whole mesh is left alone and never taken for one of other flags, what is left of
 * a broken one ends before another starts, and a start that fails ends what it started; and with ports that others have. */
#include <arpa/inet.h>
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

/* Its exit status with more flags, of which the last counts. */
static int up_with(const char *flags)
{
    return exit_of(
        mesh_shell("%s/tpo up --any-port --run-dir run --model $TPO_SOURCE/models/small %s >up.log 2>&1", tpo_test_build(), flags));
}

static void expect_refused(const char *flags, const char *said)
{
    assert_int_equal(up_with(flags), 1);
    assert_int_equal(
        mesh_shell("grep -q 'tpo down --run-dir run' up.log && grep -q -e '%s' up.log || { cat up.log; exit 1; }%s", said, ""), 0);
}

static void a_mesh_of_other_flags_is_not_taken_for_this_one(void **state)
{
    (void)state;
    pid_t first[N_NAMES], now[N_NAMES];
    setenv("TPO_SOURCE", tpo_test_source(), 1);
    up();
    pids(first);
    expect_refused("--train", "--train is no, not yes");
    expect_refused("--model $TPO_SOURCE/trainer/recipes/plain", "--model is .*models/small, not .*recipes/plain");
    expect_refused("--dtype bf16 --replicas encoder=2", "--dtype is f32, not bf16; --replicas is encoder=1 .*, not encoder=2");
    expect_refused("--no-redis", "--redis is yes, not no");
    expect_refused("--drain 1s", "--drain is 45000ms, not 1000ms");
    expect_refused("--log-level debug", "--log-level is info, not debug");
    expect_refused("--http 1", "--http is [0-9]*, not 1");
    expect_refused("--grpc 1", "--grpc is [0-9]*, not 1");
    assert_int_equal(up_with("--replicas router=1 --drain 45s --wait 60s --http $(cut -d: -f2 run/http)"), 0);
    assert_int_equal(system("grep -q 'running already: 5 of 5' up.log"), 0);
    /* As one that a build without the file started. */
    assert_int_equal(system("mv run/asked asked"), 0);
    expect_refused("", "--train is unknown, not no");
    assert_int_equal(system("mv asked run/asked"), 0);
    pids(now);
    assert_memory_equal(first, now, sizeof(first));
    assert_int_equal(mesh_down(NULL), 0);
    assert_int_equal(up_with("--train"), 0);
    assert_int_equal(mesh_down(NULL), 0);
}

/* A port that somebody listens on, until the case ends. */
static int port_taken(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(a);
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof(a)) | listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &n), 0);
    return ntohs(a.sin_port);
}

static void a_port_that_was_named_is_that_one_or_none(void **state)
{
    (void)state;
    static const char *const doors[] = {"http", "grpc"};
    char flags[64], said[64];
    setenv("TPO_SOURCE", tpo_test_source(), 1);
    const int taken = port_taken();
    for (int i = 0; i < 2; i++) {
        snprintf(flags, sizeof(flags), "--%s %d", doors[i], taken);
        assert_int_equal(up_with(flags), 1);
        snprintf(said, sizeof(said), "%s %d: Address already in use", doors[i], taken);
        assert_int_equal(mesh_shell("grep -q -e '%s' up.log%s", said, ""), 0);
        assert_int_not_equal(access("run/redis.pid", F_OK), 0);
    }
    assert_int_equal(up_with("--http 9 --grpc 9"), 2);
}

/* Another process listens on the first region's port as soon as that has been started with it. */
static void a_port_lost_between_look_and_listen_is_another_one(void **state)
{
    (void)state;
    static const char region[] = "#!/bin/sh\n"
                                 "if mkdir once 2>mkdir.log; then\n"
                                 "    $TPO_BUILD/tpo-gateway --http $2 --grpc 127.0.0.1:0 --port-file taker --encoder 127.0.0.1:1 "
                                 "--router 127.0.0.1:1 --head region=127.0.0.1:1 --media-dir . >taker.log 2>&1 &\n"
                                 "    until test -s taker; do sleep .01; done\n"
                                 "fi\n"
                                 "exec $TPO_BUILD/tpo-region \"$@\"\n";
    FILE *f = fopen("tpo-region", "w");
    assert_non_null(f);
    assert_true(fputs(region, f) >= 0);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(system("chmod +x tpo-region && cp $TPO_BUILD/tpo . && ln -s $TPO_BUILD/tpo-encoder $TPO_BUILD/tpo-router "
                            "$TPO_BUILD/tpo-gateway ."),
                     0);
    assert_int_equal(
        exit_of(mesh_shell("./tpo up --any-port --run-dir run --model %s/models/small >up.log 2>&1%s", tpo_test_source(), "")), 0);
    assert_int_equal(system("grep -q 'took a port of region-0' up.log && grep -q '^ready' up.log"), 0);
    assert_int_equal(system("grep -q $(cut -d' ' -f1 taker) run/services"), 256);
    assert_int_equal(mesh_down(NULL), 0);
}

TPO_TESTS(cmocka_unit_test(what_a_dead_gateway_left_ends_before_another_mesh_starts),
          cmocka_unit_test(a_start_that_fails_leaves_nothing_running), cmocka_unit_test(pid_files_of_the_dead_do_not_count),
          cmocka_unit_test(a_mesh_that_is_ended_while_it_starts_is_told), cmocka_unit_test(one_at_a_time_starts_a_mesh),
          cmocka_unit_test(a_mesh_of_other_flags_is_not_taken_for_this_one),
          cmocka_unit_test(a_port_that_was_named_is_that_one_or_none),
          cmocka_unit_test(a_port_lost_between_look_and_listen_is_another_one))
