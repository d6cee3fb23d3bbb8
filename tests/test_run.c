/* Proves that the runner ends what a failed case left running, in whatever session it is, and nothing else. */
#include "tests/support/test.h"

#include <signal.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <unistd.h>

/* A test program of one case, which starts a process with a session of its own and then ends with STATUS. */
static void program_write(const char *path, int status)
{
    char cwd[2048];
    assert_non_null(getcwd(cwd, sizeof(cwd)));
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f,
            "#!/bin/sh\n"
            "[ \"$1\" = --list ] && echo leaves_one && exit 0\n"
            "setsid sh -c 'echo $$ >%s/left.pid; exec sleep 1000' >/dev/null 2>&1 &\n"
            "while [ ! -s %s/left.pid ]; do sleep .01; done\n"
            "exit %d\n",
            cwd, cwd, status);
    fclose(f);
    assert_int_equal(chmod(path, 0755), 0);
}

static pid_t left_pid(void)
{
    int pid = 0;
    FILE *f = fopen("left.pid", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%d", &pid), 1);
    fclose(f);
    unlink("left.pid");
    return pid;
}

/* A killed process may wait for whoever inherits it. */
static bool runs(pid_t pid)
{
    char path[64], state = 'X';
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "r");
    if (f == NULL) return false;
    if (fscanf(f, "%*d (%*[^)]) %c", &state) != 1) state = 'X';
    fclose(f);
    return state != 'Z' && state != 'X';
}

static void what_a_case_leaves_behind_is_ended(void **state)
{
    char command[4200];
    (void)state;
    snprintf(command, sizeof(command), "%s/tests/run ./program >run.log 2>&1", tpo_test_build());
    for (int status = 0; status < 2; status++) {
        program_write("program", status);
        assert_int_equal(system(command) != 0, status);
        const pid_t pid = left_pid();
        for (int tries = 0; runs(pid); tries++, usleep(10000))
            if (tries == 500) fail_msg("process %d lives on", (int)pid);
    }
}

/* The outer runner's mark is not the inner one's: a process of this case outlives the case within it. */
static void what_others_started_is_left_alone(void **state)
{
    char command[4200];
    (void)state;
    FILE *f = popen("setsid sh -c 'exec sleep 1000' >/dev/null 2>&1 & echo $!", "r");
    int pid = 0;
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%d", &pid), 1);
    pclose(f);
    snprintf(command, sizeof(command), "%s/tests/run ./program >run.log 2>&1", tpo_test_build());
    program_write("program", 0);
    assert_int_equal(system(command), 0);
    assert_true(runs(pid));
    kill(pid, SIGKILL);
}

TPO_TESTS(cmocka_unit_test(what_a_case_leaves_behind_is_ended), cmocka_unit_test(what_others_started_is_left_alone))
