/* Proves common/settings: presets, environment, flags, and every way of getting one wrong. */
#include <stdbool.h>

#include "common/settings.h"
#include "tests/support/test.h"

static struct {
    const char *listen, *dtype;
    int64_t queue, bytes, wait;
    double rate;
    bool train;
    struct tpo_setting_list heads;
} set;

static const struct tpo_setting rows[] = {
    {"listen", TPO_SET_TEXT, &set.listen, "127.0.0.1:1", .what = "ADDRESS", .help = "where"},
    {"dtype", TPO_SET_TEXT, &set.dtype, "f32", .choices = "f32|bf16", .help = "kind"},
    {"queue", TPO_SET_INT, &set.queue, "64", .min = 1, .max = 100, .help = "how many"},
    {"max-bytes", TPO_SET_BYTES, &set.bytes, "64M", .min = 1, .max = 1e12, .help = "how much"},
};
static const struct tpo_setting more[] = {
    {"wait", TPO_SET_MS, &set.wait, "2s", .min = 0, .max = 1e9, .help = "how long"},
    {"rate", TPO_SET_REAL, &set.rate, "0.5", .help = "how fast"},
    {"train", TPO_SET_BOOL, &set.train, "no", .help = "whether"},
    {"head", TPO_SET_LIST, &set.heads, NULL, .what = "NAME=ADDR", .help = "which"},
};
static const struct tpo_settings table = {
    .program = "prog", .arguments = "FILE", .about = "About.", .rows = rows, .more = more, .n_rows = 4, .n_more = 4};

static int read_words(struct tpo_error *err, int *n_left, const char *words)
{
    static char copy[512];
    static char *argv[32];
    int argc = 1;
    snprintf(copy, sizeof(copy), "%s", words);
    argv[0] = "prog";
    for (char *save = NULL, *w = strtok_r(copy, " ", &save); w != NULL; w = strtok_r(NULL, " ", &save)) argv[argc++] = w;
    int rc = tpo_settings_read(&table, &argc, argv, err);
    if (n_left != NULL) *n_left = argc - 1;
    return rc;
}

static void flags_beat_environment_beats_presets(void **state)
{
    (void)state;
    int left;
    struct tpo_error err;
    assert_int_equal(read_words(&err, &left, ""), TPO_OK);
    assert_string_equal(set.listen, "127.0.0.1:1");
    assert_int_equal(set.queue, 64);
    assert_int_equal(set.bytes, 64 << 20);
    assert_int_equal(set.wait, 2000);
    assert_false(set.train);
    setenv("TPO_QUEUE", "7", 1);
    setenv("TPO_MAX_BYTES", "3K", 1);
    setenv("TPO_HEAD", "a=1;b=2", 1);
    assert_int_equal(read_words(&err, &left, "--queue=9 --train --wait 250 file --rate 1e-3 more --dtype bf16"), TPO_OK);
    assert_int_equal(set.queue, 9);
    assert_int_equal(set.bytes, 3072);
    assert_int_equal(set.wait, 250);
    assert_true(set.train);
    assert_true(set.rate == 1e-3);
    assert_string_equal(set.dtype, "bf16");
    assert_int_equal(set.heads.n, 2);
    assert_string_equal(set.heads.items[1], "b=2");
    assert_int_equal(left, 2);
    assert_int_equal(read_words(&err, &left, "--head c=3 --head d=4 --no-train -- --queue"), TPO_OK);
    assert_int_equal(set.heads.n, 2);
    assert_string_equal(set.heads.items[0], "c=3");
    assert_false(set.train);
    assert_int_equal(left, 1);
}

static void wrong_settings_are_named(void **state)
{
    (void)state;
    static const char *const wrong[][2] = {
        {"--queue 0", "--queue 0: must be 1 .. 100"},
        {"--queue 1.5", "whole"},
        {"--queue x", "--queue x: is not a number"},
        {"--queue 1e99", "must be"},
        {"--queue", "needs a value"},
        {"--quue 3", "did you mean --queue?"},
        {"--dtype f64", "one of f32|bf16"},
        {"--max-bytes 3Q", "K, M, G"},
        {"--wait 3d", "ms, s, m or h"},
        {"--train=maybe", "yes or no"},
        {"-q 3", "two dashes"},
        {"--zzzzzzzz", "--help"},
        {"--queue nan", "not a number"},
        {"--dtype=", "one of"},
    };
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct tpo_error err = {0};
        assert_int_equal(read_words(&err, NULL, wrong[i][0]), TPO_INVALID_ARGUMENT);
        if (strstr(err.message, wrong[i][1]) == NULL) fail_msg("%s: %s", wrong[i][0], err.message);
    }
    struct tpo_error err;
    setenv("TPO_QUEUE", "many", 1);
    assert_int_equal(read_words(&err, NULL, ""), TPO_INVALID_ARGUMENT);
    assert_non_null(strstr(err.message, "TPO_QUEUE"));
}

static void help_lists_every_flag(void **state)
{
    (void)state;
    char *text = NULL;
    size_t n;
    FILE *out = open_memstream(&text, &n);
    tpo_settings_help(&table, out);
    fclose(out);
    for (int i = 0; i < 8; i++) assert_non_null(strstr(text, i < 4 ? rows[i].name : more[i - 4].name));
    free(text);
}

TPO_TESTS(cmocka_unit_test(flags_beat_environment_beats_presets), cmocka_unit_test(wrong_settings_are_named),
          cmocka_unit_test(help_lists_every_flag))
