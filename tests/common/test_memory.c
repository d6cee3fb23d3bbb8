/* Proves common/memory: a control group's limit is read as it is written, and what a process may have is no more than the machine has. */
#include "tests/support/test.h"

#include <unistd.h>

#include "common/memory.h"

static void it_is_at_most_the_machines(void **state)
{
    (void)state;
    const int64_t machine = (int64_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE);
    assert_true(tpo_memory_bytes() >= 1 << 20);
    assert_true(tpo_memory_bytes() <= machine);
}

static int64_t limit_of(const char *text)
{
    FILE *f = fopen("memory.max", "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    return tpo_memory_limit("memory.max");
}

static void a_limit_is_a_number_above_zero(void **state)
{
    (void)state;
    assert_int_equal(limit_of("2147483648\n"), (int64_t)1 << 31);
    static const char *const none[] = {"max\n", "", "0\n", "-1\n"};
    for (size_t i = 0; i < sizeof(none) / sizeof(none[0]); i++) assert_int_equal(limit_of(none[i]), 0);
    assert_int_equal(tpo_memory_limit("no/such/file"), 0);
}

TPO_TESTS(cmocka_unit_test(it_is_at_most_the_machines), cmocka_unit_test(a_limit_is_a_number_above_zero))
