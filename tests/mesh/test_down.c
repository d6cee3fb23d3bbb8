/* Proves that `tpo down` waits as long as what `tpo up` started may drain, says so, and kills what takes longer. */
#include "tests/support/test.h"

#include <sys/wait.h>

static int shell(const char *text)
{
    setenv("S", tpo_test_source(), 1);
    setenv("B", tpo_test_build(), 1);
    const int status = system(text);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

/* A stopped process never takes its SIGTERM. */
static void a_process_that_hangs_is_waited_for_and_killed(void **state)
{
    (void)state;
    assert_int_equal(shell("ln -s $S/models models; $B/tpo up --any-port --no-redis --drain 1s --run-dir run --model "
                           "models/small >up.log 2>&1 ||"
                           " { cat up.log; exit 1; }"),
                     0);
    assert_int_equal(shell("grep -q drain=1000ms run/asked && kill -STOP $(cut -d' ' -f1 run/region-0.pid)"), 0);
    assert_int_equal(shell("$B/tpo down --run-dir run >down.log 2>&1"), 0);
    assert_int_equal(
        shell(
            "grep -q 'waiting for region-0 to finish its calls, at most 6 s' down.log &&"
            " grep -q 'region-0 took too long and is killed' down.log && grep -q '^stopped' down.log || { cat down.log; exit 1; }"),
        0);
    assert_int_equal(shell("$B/tpo down --run-dir run | grep -q 'nothing was running'"), 0);
}

TPO_TESTS(cmocka_unit_test(a_process_that_hangs_is_waited_for_and_killed))
