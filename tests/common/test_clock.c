/* Proves common/clock: its three units are of one moment, and a condition waits by it. */
#include "tests/support/test.h"

#include <errno.h>

#include "common/clock.h"

static void the_units_are_of_one_moment(void **state)
{
    (void)state;
    const int64_t before_us = tpo_now_us();
    const double ms = tpo_now_ms(), s = tpo_now_s();
    const int64_t after_us = tpo_now_us();
    assert_true(ms >= (double)before_us * 1e-3 && ms <= (double)after_us * 1e-3);
    assert_true(s >= (double)before_us * 1e-6 && s <= (double)after_us * 1e-6);
}

static void a_moment_is_split_into_seconds_and_the_rest(void **state)
{
    (void)state;
    const struct timespec until = tpo_cond_until(7999999);
    assert_int_equal(until.tv_sec, 7);
    assert_int_equal(until.tv_nsec, 999999000);
}

/* By the date, a moment of this clock would be long over. */
static void a_condition_waits_by_it(void **state)
{
    (void)state;
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t never;
    tpo_cond_init(&never);
    const int64_t at_us = tpo_now_us() + 20000;
    const struct timespec until = tpo_cond_until(at_us);
    pthread_mutex_lock(&lock);
    int rc = 0;
    while (rc == 0) rc = pthread_cond_timedwait(&never, &lock, &until);
    pthread_mutex_unlock(&lock);
    assert_int_equal(rc, ETIMEDOUT);
    assert_true(tpo_now_us() >= at_us);
    pthread_cond_destroy(&never);
}

TPO_TESTS(cmocka_unit_test(the_units_are_of_one_moment), cmocka_unit_test(a_moment_is_split_into_seconds_and_the_rest),
          cmocka_unit_test(a_condition_waits_by_it))
