/* test.h -- what every test file includes: cmocka, and a main that runs one case or lists all.
 *
 *   static void joins_equal_misses(void **state) { ... assert_int_equal(...); }
 *   TPO_TESTS(cmocka_unit_test(joins_equal_misses), cmocka_unit_test(...))
 *
 * tests/run starts `test_X CASE` in a directory of its own, removed afterwards; `test_X` alone runs all cases in this process.
 * TPO_BUILD names the build folder (absolute), TPO_SOURCE the checkout. Asserts abort the case; the exit status is the verdict.
 * A case that cannot run here (no GPU) calls skip(). */
#ifndef TPO_TESTS_TEST_H
#define TPO_TESTS_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

int tpo_test_main(int argc, char **argv, const struct CMUnitTest *tests, size_t n);
const char *tpo_test_build(void);  /* "/.../build" */
const char *tpo_test_source(void); /* "/.../checkout" */
uint64_t tpo_test_seed(void);      /* TPO_SEED or a fixed one; printed once */
double tpo_test_limit_s(
    double s); /* s, longer where tests/run gives cases longer (sanitizers); every limit inside a case is one of these */

#define TPO_TESTS(...)                                                                                                             \
    int main(int argc, char **argv)                                                                                                \
    {                                                                                                                              \
        static const struct CMUnitTest tests[] = {__VA_ARGS__};                                                                    \
        return tpo_test_main(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));                                                 \
    }

#endif
