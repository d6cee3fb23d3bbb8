/* The rules against vectors of the published code, and against what a stranger's clip may hold. */
#include "common/media/sampling.h"
#include "tests/support/test.h"

static void middle_is(int n, int vlen, const int32_t *want)
{
    struct tpo_sampling s = {.rule = TPO_SAMPLE_MIDDLE, .n = n, .pad = 1};
    int32_t got[16];
    assert_int_equal(tpo_sampling_indices(&s, got, 16, vlen, 30), n);
    assert_memory_equal(got, want, (size_t)n * sizeof(*got));
}

static void middle_takes_the_centre_of_each_part(void **state)
{
    (void)state;
    middle_is(16, 5, (int32_t[]){0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4});
    middle_is(16, 100, (int32_t[]){2, 8, 14, 21, 27, 33, 39, 46, 52, 58, 64, 71, 77, 83, 89, 96});
    middle_is(16, 301, (int32_t[]){8, 27, 46, 65, 84, 102, 121, 140, 159, 178, 196, 215, 234, 253, 272, 291});
    middle_is(16, 123457,
              (int32_t[]){3857, 11573, 19289, 27005, 34721, 42437, 50153, 57869, 65585, 73301, 81017, 88733, 96449, 104165, 111881,
                          119598});
    middle_is(4, 333, (int32_t[]){41, 124, 207, 290});
    middle_is(1, 1, (int32_t[]){0});
    struct tpo_sampling s = {.rule = TPO_SAMPLE_MIDDLE, .n = 8};
    int32_t got[8];
    assert_int_equal(tpo_sampling_indices(&s, got, 8, 3, 30), 3); /* without pad */
    assert_memory_equal(got, ((int32_t[]){0, 1, 2}), 12);
}

static void a_rate_takes_whole_groups(void **state)
{
    (void)state;
    struct tpo_sampling s = {0};
    int32_t got[128];
    assert_int_equal(tpo_sampling_parse(&s, "fps8.0", NULL), TPO_OK);
    assert_int_equal(tpo_sampling_indices(&s, got, 128, 301, 29.97), 80);
    assert_memory_equal(got, ((int32_t[]){2, 6, 9, 13, 17, 21, 24, 28, 32, 36}), 40);
    assert_memory_equal(got + 77, ((int32_t[]){290, 294, 298}), 12);
    assert_int_equal(tpo_sampling_indices(&s, got, 128, 33, 30), 8);
    assert_int_equal(tpo_sampling_parse(&s, "fps1.0", NULL), TPO_OK);
    assert_int_equal(tpo_sampling_indices(&s, got, 128, 301, 29.97), 10);
    assert_memory_equal(got, ((int32_t[]){15, 45, 75, 105, 135, 165, 195, 225, 255, 285}), 40);
    assert_int_equal(tpo_sampling_parse(&s, "fps2.0", NULL), TPO_OK);
    assert_int_equal(tpo_sampling_indices(&s, got, 128, 300, 30), 20); /* 7.5 and 22.5 go to the even neighbour */
    assert_memory_equal(got, ((int32_t[]){8, 22, 38, 52}), 16);
    assert_int_equal(tpo_sampling_indices(&s, got, 3, 300, 30), 20); /* only what fits is written */
}

static void nothing_comes_of_nothing(void **state)
{
    (void)state;
    struct tpo_sampling s = {.rule = TPO_SAMPLE_MIDDLE, .n = 16, .pad = 1};
    assert_int_equal(tpo_sampling_indices(&s, NULL, 0, 0, 30), 0);
    assert_int_equal(tpo_sampling_indices(&s, NULL, 0, -5, 30), 0);
    s.rule = TPO_SAMPLE_FPS, s.rate = 8;
    assert_int_equal(tpo_sampling_indices(&s, NULL, 0, 10, 0), 0);
    assert_int_equal(tpo_sampling_indices(&s, NULL, 0, 10, -1), 0);
    assert_int_equal(tpo_sampling_indices(&s, NULL, 0, 10, 0.0 / 0.0), 0);
    assert_int_equal(tpo_sampling_indices(&s, NULL, 0, 7, 30), 0); /* a quarter of a second holds no group of eight */
}

static void refuses_other_rules(void **state)
{
    (void)state;
    struct tpo_sampling s;
    const char *bad[] = {"",       "fps",     "fps0",    "fps-1",    "fps1e9", "fps 8", "fpsinf",
                         "fpsnan", "middle2", "fps8.0x", "fps1.2.3", "fps0x8", "rand"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct tpo_error err;
        assert_int_equal(tpo_sampling_parse(&s, bad[i], &err), TPO_INVALID_ARGUMENT);
        assert_string_equal(err.reason, "sampling_rule");
    }
}

TPO_TESTS(cmocka_unit_test(middle_takes_the_centre_of_each_part), cmocka_unit_test(a_rate_takes_whole_groups),
          cmocka_unit_test(nothing_comes_of_nothing), cmocka_unit_test(refuses_other_rules))
