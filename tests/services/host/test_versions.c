/* Proves versions.h and snapshot.h: who may have which version, when the oldest goes, what a version copies and how it is named. */
#include "services/host/versions.h"

#include "tests/support/test.h"

#include <time.h>

static struct tpo_stream *stream;
static struct tpo_params params;

static struct tpo_snapshot *weights(const char *digest)
{
    struct tpo_snapshot *x;
    struct tpo_error err;
    if (stream == NULL) {
        assert_int_equal(tpo_stream_open(&stream, "cpu", 1, &err), TPO_OK);
        assert_non_null(tpo_params_declare(&params, TPO_INIT_NORMAL, 1, TPO_SHAPE(2, 3), "a"));
        assert_non_null(tpo_params_declare(&params, TPO_INIT_NORMAL, 1, TPO_SHAPE(4), "b"));
        assert_int_equal(tpo_params_random(&params, stream, 1, &err), TPO_OK);
    }
    assert_int_equal(tpo_snapshot_open(&x, &params, digest, &err), TPO_OK);
    return x;
}

static struct tpo_versions *open_versions(int64_t hold_ms)
{
    struct tpo_versions *v;
    struct tpo_error err;
    assert_int_equal(tpo_versions_open(&v, hold_ms, NULL, &err), TPO_OK);
    return v;
}

static void close_versions(struct tpo_versions *v)
{
    tpo_versions_clear(v, stream);
    tpo_versions_close(v);
    tpo_params_free(&params, stream);
    tpo_stream_close(stream);
    stream = NULL;
}

/* publish as a service does it; the code, and the reason in *err. */
static int publish(struct tpo_versions *v, uint64_t number, struct tpo_error *err)
{
    bool held;
    int rc = tpo_versions_room(v, number, &held, stream, err);
    if (rc == TPO_OK && !held) rc = tpo_versions_add(v, number, weights("digest"), err);
    return rc;
}

static void a_third_version_waits_for_the_oldest(void **state)
{
    (void)state;
    struct tpo_error err = {0};
    struct tpo_version *old, *other;
    uint64_t held[TPO_VERSIONS_HELD];
    struct tpo_versions *v = open_versions(0);
    assert_int_equal(tpo_versions_list(v, held), 0);
    assert_int_equal(tpo_versions_take(v, NULL, 0, &old, &err), TPO_FAILED_PRECONDITION);
    assert_int_equal(tpo_versions_start(v, weights("folder"), &err), TPO_OK);
    assert_int_equal(tpo_versions_take(v, NULL, 0, &old, &err), TPO_OK);
    assert_string_equal(old->digest, "folder");
    assert_int_equal(publish(v, 3, &err), TPO_OK);
    assert_int_equal(tpo_versions_list(v, held), 2);
    assert_true(held[0] == 3 && held[1] == 0);
    assert_int_equal(publish(v, 4, &err), TPO_RESOURCE_EXHAUSTED);
    assert_string_equal(err.reason, "versions");
    assert_true(err.retry_ms > 0);
    assert_int_equal(tpo_versions_take(v, "0", 0, &other, &err), TPO_OK); /* still here, for whoever was stamped with it */
    assert_ptr_equal(other, old);
    tpo_versions_give(v, old);
    assert_int_equal(publish(v, 4, &err), TPO_RESOURCE_EXHAUSTED);
    tpo_versions_give(v, other);
    assert_int_equal(publish(v, 4, &err), TPO_OK);
    assert_int_equal(tpo_versions_list(v, held), 2);
    assert_true(held[0] == 4 && held[1] == 3);
    assert_int_equal(tpo_versions_take(v, "0", 0, &old, &err), TPO_FAILED_PRECONDITION);
    assert_string_equal(err.reason, "version");
    close_versions(v);
}

/* After it there would be none. */
static void the_last_number_of_all_is_refused(void **state)
{
    (void)state;
    static const uint64_t numbers[] = {UINT64_MAX, UINT64_MAX - 1, (uint64_t)1 << 53};
    struct tpo_versions *v;
    struct tpo_error err = {0};
    bool held;
    assert_int_equal(tpo_versions_open(&v, 0, NULL, &err), TPO_OK);
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        assert_int_equal(tpo_versions_room(v, numbers[i], &held, NULL, &err), TPO_INVALID_ARGUMENT);
        assert_string_equal(err.reason, "version");
    }
    const uint64_t today = (uint64_t)time(NULL) * 1000;
    assert_int_equal(tpo_versions_room(v, today + 86400000, &held, NULL, &err), TPO_OK); /* of a clock that is ahead */
    tpo_versions_close(v);
}

static void the_oldest_is_held_for_its_time(void **state)
{
    (void)state;
    struct tpo_error err = {0};
    struct tpo_version *x;
    struct tpo_versions *v = open_versions(3600 * 1000);
    assert_int_equal(tpo_versions_start(v, weights("folder"), &err), TPO_OK);
    assert_int_equal(publish(v, 1, &err), TPO_OK);
    assert_int_equal(publish(v, 2, &err), TPO_RESOURCE_EXHAUSTED); /* nobody runs on 0, but some may come */
    assert_true(err.retry_ms > 1000 * 1000);
    assert_int_equal(publish(v, 1, &err), TPO_OK); /* held already: nothing to do */
    assert_int_equal(tpo_versions_take(v, "0", 0, &x, &err), TPO_OK);
    tpo_versions_give(v, x);
    close_versions(v);
}

static void a_request_names_its_version_exactly_or_gets_the_newest(void **state)
{
    (void)state;
    struct tpo_error err = {0};
    struct tpo_versions *v = open_versions(0);
    assert_int_equal(tpo_versions_start(v, weights("folder"), &err), TPO_OK);
    assert_int_equal(publish(v, 7, &err), TPO_OK);
    const struct {
        const char *metadata;
        uint64_t field;
        int code;
        uint64_t number;
    } cases[] = {{NULL, 0, TPO_OK, 7},
                 {NULL, 7, TPO_OK, 7},
                 {"0", 7, TPO_OK, 0},
                 {"7", 0, TPO_OK, 7},
                 {NULL, 6, TPO_FAILED_PRECONDITION, 0},
                 {"8", 7, TPO_FAILED_PRECONDITION, 0},
                 {"", 0, TPO_INVALID_ARGUMENT, 0},
                 {"7x", 0, TPO_INVALID_ARGUMENT, 0},
                 {"-1", 0, TPO_INVALID_ARGUMENT, 0}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tpo_version *x;
        assert_int_equal(tpo_versions_take(v, cases[i].metadata, cases[i].field, &x, &err), cases[i].code);
        if (x != NULL)
            assert_int_equal(x->number, cases[i].number);
        else
            assert_string_equal(err.reason, "version");
        tpo_versions_give(v, x);
    }
    assert_int_equal(publish(v, 6, &err), TPO_FAILED_PRECONDITION);
    assert_string_equal(err.reason, "version");
    close_versions(v);
}

static void a_version_copies_what_was_trained_and_nothing_else(void **state)
{
    (void)state;
    struct tpo_error err = {0};
    struct tpo_params trainee = {0};
    struct tpo_snapshot *loaded = weights("folder"), *untrained, *none, *one, *same, *other;
    float trained[4] = {1, 2, 3, 4}, drawn[5] = {0};
    char digest[72];
    assert_non_null(
        tpo_params_declare(&trainee, TPO_INIT_NORMAL, 1, TPO_SHAPE(5), "ext.encoder.dense.x")); /* serving has no such tensor */
    assert_non_null(tpo_params_declare(&trainee, TPO_INIT_NORMAL, 1, TPO_SHAPE(4), "b"));
    assert_non_null(tpo_params_declare(&trainee, TPO_INIT_NORMAL, 1, TPO_SHAPE(2, 3), "a"));
    assert_int_equal(tpo_params_random(&trainee, stream, 1, &err), TPO_OK);
    assert_int_equal(tpo_snapshot_open(&untrained, &trainee, "", &err), TPO_OK);
    assert_int_equal(tpo_snapshot_of_trained(&none, stream, &params, loaded, &trainee, untrained, &err), TPO_OK);
    assert_int_equal(none->n_owned, 0);
    assert_string_equal(none->digest, "folder");
    trainee.items[1]->data = trained; /* as a learner does */
    assert_int_equal(tpo_snapshot_of_trained(&one, stream, &params, loaded, &trainee, untrained, &err), TPO_OK);
    assert_int_equal(tpo_snapshot_of_trained(&same, stream, &params, loaded, &trainee, untrained, &err), TPO_OK);
    trained[0] = 9; /* serving never sees training's buffers */
    assert_int_equal(tpo_snapshot_of_trained(&other, stream, &params, loaded, &trainee, untrained, &err), TPO_OK);
    assert_int_equal(one->n_owned, 1);
    assert_string_equal(one->digest, same->digest);
    trainee.items[0]->data = drawn; /* an aid's, which no version has */
    assert_int_equal(tpo_snapshot_digest_trained(digest, stream, "folder", &trainee, untrained, &err), TPO_OK);
    assert_string_equal(digest, other->digest);
    trainee.items[1]->data = untrained->data[1];
    assert_int_equal(tpo_snapshot_digest_trained(digest, stream, "folder", &trainee, untrained, &err), TPO_OK);
    assert_string_equal(digest, "folder");
    assert_string_not_equal(one->digest, other->digest);
    assert_string_not_equal(one->digest, "folder");
    tpo_snapshot_use(one, &params);
    assert_ptr_equal(params.items[0]->data, loaded->data[0]);
    assert_true(params.items[1]->data[0] == 1 && params.items[1]->data[3] == 4);
    tpo_snapshot_use(other, &params);
    assert_true(params.items[1]->data[0] == 9);
    tpo_snapshot_use(loaded, &params);
    assert_ptr_equal(params.items[1]->data, loaded->data[1]);
    trainee.items[0]->data = untrained->data[0];
    tpo_snapshot_close(none, stream), tpo_snapshot_close(one, stream), tpo_snapshot_close(same, stream),
        tpo_snapshot_close(other, stream);
    tpo_snapshot_close(untrained, stream), tpo_snapshot_close(loaded, stream);
    tpo_params_free(&trainee, stream);
    tpo_params_free(&params, stream);
    tpo_stream_close(stream);
    stream = NULL;
}

TPO_TESTS(cmocka_unit_test(a_third_version_waits_for_the_oldest), cmocka_unit_test(the_last_number_of_all_is_refused),
          cmocka_unit_test(the_oldest_is_held_for_its_time),
          cmocka_unit_test(a_request_names_its_version_exactly_or_gets_the_newest),
          cmocka_unit_test(a_version_copies_what_was_trained_and_nothing_else))
