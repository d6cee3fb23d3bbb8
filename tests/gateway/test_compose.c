/* Proves gateway/compose: an answer goes without asking for memory, since there may be none. */
#include "gateway/compose.h"

#include "tests/support/test.h"

static bool no_memory;

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* which have a malloc of their own */
void *__libc_malloc(size_t size);
void *malloc(size_t size)
{
    return no_memory ? NULL : __libc_malloc(size);
}
#endif

static void an_answer_is_freed_where_there_is_no_memory(void **state)
{
    (void)state;
    Tpo__V1__MediaInfo media = TPO__V1__MEDIA_INFO__INIT;
    const Tpo__V1__Rect box = TPO__V1__RECT__INIT;
    struct tpo_answer a;
    struct tpo_error err;
    tpo_fail(&err, TPO_UNAVAILABLE, "head_gone", "gone");
    assert_int_equal(tpo_answer_init(&a, "some-request"), TPO_OK);
    tpo_answer_media(&a, &media);
    tpo_answer_text(&a, "It is there.");
    assert_non_null(tpo_answer_call(&a, "region", 5));
    assert_non_null(tpo_answer_box(&a, 0, &box));
    tpo_answer_stage(&a, &(struct tpo_stage_result){.name = "region", .err = &err});
    tpo_answer_usage(&a, 1, 2, 3);
    tpo_answer_error(&a, &err);
    assert_false(a.failed);
    no_memory = true;
    tpo_answer_free(&a);
    no_memory = false;
    assert_int_equal(tpo_answer_response(&a)->n_calls, 0);
    assert_string_equal(tpo_answer_response(&a)->text, "");
}

TPO_TESTS(cmocka_unit_test(an_answer_is_freed_where_there_is_no_memory))
