/* Proves common/cores: the affinity counts, not the machine; a quota is rounded up. */
#include "tests/support/test.h"

#include <sched.h>

#include "common/cores.h"

static int quota_of(const char *text)
{
    FILE *f = fopen("cpu.max", "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    return tpo_cores_quota("cpu.max");
}

static void a_quota_is_rounded_up(void **state)
{
    (void)state;
    assert_int_equal(quota_of("150000 100000\n"), 2);
    assert_int_equal(quota_of("200000 100000\n"), 2);
    assert_int_equal(quota_of("200001 100000\n"), 3);
    assert_int_equal(quota_of("1000 100000\n"), 1);
}

static void what_is_no_quota_grants_no_number(void **state)
{
    (void)state;
    static const char *const texts[] = {"max 100000\n", "", "100000", "-1 100000", "100000 0", "0 100000", "9223372036854775807 1"};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) assert_int_equal(quota_of(texts[i]), 0);
    assert_int_equal(tpo_cores_quota("no/such/file"), 0);
}

/* On a machine of one core both sides are 1 with and without the rule. */
static void one_core_of_the_affinity_is_one(void **state)
{
    (void)state;
    cpu_set_t all, one;
    assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
    assert_true(tpo_cores() >= 1);
    assert_true(tpo_cores() <= CPU_COUNT(&all));
    CPU_ZERO(&one);
    for (int i = 0; i < CPU_SETSIZE && CPU_COUNT(&one) == 0; i++)
        if (CPU_ISSET(i, &all)) CPU_SET(i, &one);
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
    assert_int_equal(tpo_cores(), 1);
    assert_int_equal(sched_setaffinity(0, sizeof(all), &all), 0);
}

TPO_TESTS(cmocka_unit_test(a_quota_is_rounded_up), cmocka_unit_test(what_is_no_quota_grants_no_number),
          cmocka_unit_test(one_core_of_the_affinity_is_one))
