/* The small nouns: statuses, the arena, the log's quoting. */
#include "common/arena.h"
#include "common/log.h"
#include "common/status.h"
#include "tests/support/test.h"

static void every_code_has_a_name_and_an_http_status(void **state)
{
    (void)state;
    assert_string_equal(tpo_status_name(TPO_INVALID_ARGUMENT), "INVALID_ARGUMENT");
    assert_int_equal(tpo_status_http(TPO_DEADLINE_EXCEEDED), 504);
    assert_int_equal(tpo_status_http(TPO_CANCELLED), 499);
    for (int code = 0; code <= 16; code++) {
        assert_true(strlen(tpo_status_name(code)) > 0);
        assert_true(strlen(tpo_status_sentence(code)) > 0);
        assert_in_range(tpo_status_http(code), 200, 599);
    }
    assert_string_equal(tpo_status_name(17), "UNKNOWN");
    assert_string_equal(tpo_status_name(-1), "UNKNOWN");
}

static void fail_fills_the_error_and_never_overflows(void **state)
{
    (void)state;
    char text[2000];
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    struct tpo_error err;
    memset(&err, 0xff, sizeof(err));
    assert_int_equal(tpo_fail(&err, TPO_NOT_FOUND, text, "%s", text), TPO_NOT_FOUND);
    assert_int_equal(err.code, TPO_NOT_FOUND);
    assert_int_equal(strlen(err.reason), sizeof(err.reason) - 1);
    assert_int_equal(strlen(err.message), sizeof(err.message) - 1);
    assert_int_equal(err.retry_ms, 0);
    assert_string_equal(err.stage, "");
    assert_int_equal(tpo_fail(NULL, TPO_INTERNAL, "x", "y"), TPO_INTERNAL);
}

static void arena_blocks_are_aligned_and_apart(void **state)
{
    (void)state;
    struct tpo_arena a;
    tpo_arena_init(&a, 256, 0);
    unsigned char *blocks[200];
    size_t sizes[200];
    for (int i = 0; i < 200; i++) {
        sizes[i] = (size_t)(i * 7 % 1000);
        blocks[i] = tpo_arena_alloc(&a, sizes[i]);
        assert_non_null(blocks[i]);
        assert_int_equal((uintptr_t)blocks[i] % 64, 0);
        memset(blocks[i], i, sizes[i]);
    }
    for (int i = 0; i < 200; i++)
        for (size_t k = 0; k < sizes[i]; k++) assert_int_equal(blocks[i][k], i);
    tpo_arena_reset(&a);
    assert_int_equal(a.used_bytes, 0);
    unsigned char *zeros = tpo_arena_calloc(&a, 100);
    for (int i = 0; i < 100; i++) assert_int_equal(zeros[i], 0);
    assert_string_equal(tpo_arena_copy(&a, "abc", 3), "abc");
    tpo_arena_free(&a);
}

static void arena_keeps_its_limit(void **state)
{
    (void)state;
    struct tpo_arena a;
    tpo_arena_init(&a, 64, 1024);
    assert_non_null(tpo_arena_alloc(&a, 1000));
    assert_null(tpo_arena_alloc(&a, 1));
    assert_null(tpo_arena_alloc(&a, SIZE_MAX));
    tpo_arena_reset(&a);
    assert_non_null(tpo_arena_alloc(&a, 512));
    assert_null(tpo_arena_alloc(&a, 513));
    tpo_arena_free(&a);
}

static void quoting_cannot_forge_a_line(void **state)
{
    (void)state;
    char out[32];
    assert_string_equal(tpo_log_quote(out, sizeof(out), "a \"b\"\nlevel=error"), "\"a \\\"b\\\" level=error\"");
    tpo_log_quote(out, sizeof(out), "0123456789012345678901234567890123456789");
    assert_true(strlen(out) < sizeof(out));
    assert_int_equal(out[strlen(out) - 1], '"');
    assert_string_equal(tpo_log_quote(out, 2, "x"), "");
}

TPO_TESTS(cmocka_unit_test(every_code_has_a_name_and_an_http_status), cmocka_unit_test(fail_fills_the_error_and_never_overflows),
          cmocka_unit_test(arena_blocks_are_aligned_and_apart), cmocka_unit_test(arena_keeps_its_limit),
          cmocka_unit_test(quoting_cannot_forge_a_line))
