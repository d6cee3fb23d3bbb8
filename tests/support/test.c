/* This file owns the main function that test programs share. */
#include "tests/support/test.h"

int tpo_test_main(int argc, char **argv, const struct CMUnitTest *tests, size_t n)
{
    if (argc > 1 && strcmp(argv[1], "--list") == 0) {
        for (size_t i = 0; i < n; i++) puts(tests[i].name);
        return 0;
    }
    struct CMUnitTest *chosen = calloc(n, sizeof(*chosen));
    size_t n_chosen = 0;
    for (size_t i = 0; i < n; i++)
        if (argc < 2 || strcmp(argv[1], tests[i].name) == 0) chosen[n_chosen++] = tests[i];
    if (n_chosen == 0) {
        fprintf(stderr, "no case named %s\n", argc > 1 ? argv[1] : "");
        free(chosen);
        return 2;
    }
    int failed = _cmocka_run_group_tests(argv[0], chosen, n_chosen, NULL, NULL);
    free(chosen);
    return failed == 0 ? 0 : 1;
}

const char *tpo_test_build(void)
{
    const char *dir = getenv("TPO_BUILD");
    return dir != NULL ? dir : "build";
}

const char *tpo_test_source(void)
{
    const char *dir = getenv("TPO_SOURCE");
    return dir != NULL ? dir : ".";
}

uint64_t tpo_test_seed(void)
{
    static uint64_t seed;
    if (seed == 0) {
        const char *text = getenv("TPO_SEED");
        seed = text != NULL ? strtoull(text, NULL, 10) : 20240607;
        printf("seed %llu (set TPO_SEED to change it)\n", (unsigned long long)seed);
    }
    return seed;
}

double tpo_test_limit_s(double s)
{
    const char *times = getenv("TPO_TEST_TIMES");
    return times != NULL ? s * atof(times) : s;
}
