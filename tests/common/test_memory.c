/* Proves common/memory: what a process may have is some of what the machine has. */
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

TPO_TESTS(cmocka_unit_test(it_is_at_most_the_machines))
