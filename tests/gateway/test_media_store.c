/* Proves gateway/media_store: hashing, dedup, the byte budget, and what is left on disk after a failure. */
#include "tests/support/test.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gateway/media_store.h"

static const char abc_id[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

struct result {
    int calls, rooms;
    char id[65];
    uint64_t size;
    struct tpo_error err;
    size_t read;
    unsigned char sum;
    struct tpo_media_reader *reader;
};

static void on_room(void *owner)
{
    ((struct result *)owner)->rooms++;
}

static void on_done(void *owner, const char *id, uint64_t size, const struct tpo_error *err)
{
    struct result *r = owner;
    r->calls++;
    snprintf(r->id, sizeof(r->id), "%s", id);
    r->size = size;
    r->err = *err;
}

static void on_data(void *owner, const void *data, size_t size, const struct tpo_error *err)
{
    struct result *r = owner;
    r->err = *err;
    r->calls++;
    r->read += size;
    for (size_t i = 0; i < size; i++) r->sum = (unsigned char)(r->sum * 31 + ((const unsigned char *)data)[i]);
    if (size > 0)
        tpo_media_reader_next(r->reader);
    else
        tpo_media_reader_close(r->reader);
}

static struct tpo_media_store *open_store(uv_loop_t *loop, uint64_t budget, uint64_t file_max)
{
    struct tpo_media_store *st;
    struct tpo_media_settings s = {.dir = "a/media", .budget_bytes = budget, .file_max_bytes = file_max, .ttl_s = 60};
    struct tpo_error err = {0};
    if (tpo_media_store_open(&st, loop, &s, &err) != TPO_OK) fail_msg("%s", err.message);
    return st;
}

static void close_store(struct tpo_media_store *st, uv_loop_t *loop)
{
    tpo_media_store_close(st);
    uv_run(loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(loop), 0);
}

static struct result put(struct tpo_media_store *st, uv_loop_t *loop, const char *expected, const void *data, size_t size)
{
    struct result r = {0};
    struct tpo_upload *u = tpo_upload_open(st, expected, on_room, on_done, &r);
    for (size_t at = 0; at < size; at += 1000) tpo_upload_add(u, (const char *)data + at, size - at < 1000 ? size - at : 1000);
    tpo_upload_end(u);
    assert_int_equal(r.calls, 0); /* never before the call returns */
    uv_run(loop, UV_RUN_DEFAULT);
    assert_int_equal(r.calls, 1);
    return r;
}

static int files_in(const char *path)
{
    int n = 0;
    DIR *dir = opendir(path);
    for (struct dirent *d; (d = readdir(dir)) != NULL;) n += d->d_name[0] != '.';
    closedir(dir);
    return n;
}

static void an_upload_gets_its_hash_as_id(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct tpo_media_store *st = open_store(&loop, 1 << 20, 1 << 20);
    struct result r = put(st, &loop, NULL, "abc", 3);
    assert_int_equal(r.err.code, TPO_OK);
    assert_string_equal(r.id, abc_id);
    assert_int_equal(r.size, 3);
    r = put(st, &loop, abc_id, "abc", 3);
    assert_int_equal(r.err.code, TPO_OK);
    assert_int_equal(tpo_media_store_files(st), 1);
    assert_int_equal(tpo_media_store_bytes(st), 3);
    assert_int_equal(files_in("a/media"), 1);
    r = put(st, &loop, abc_id, "abd", 3);
    assert_int_equal(r.err.code, TPO_INVALID_ARGUMENT);
    assert_string_equal(r.err.reason, "media_hash");
    r = put(st, &loop, NULL, "", 0);
    assert_string_equal(r.err.reason, "media_empty");
    assert_int_equal(files_in("a/media"), 1);
    close_store(st, &loop);
    /* Found again by the next one. */
    uv_loop_init(&loop);
    st = open_store(&loop, 1 << 20, 1 << 20);
    assert_int_equal(tpo_media_store_files(st), 1);
    close_store(st, &loop);
}

static void large_files_come_back_whole(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct tpo_media_store *st = open_store(&loop, 64 << 20, 64 << 20);
    size_t size = (5 << 20) + 77;
    unsigned char *data = malloc(size), sum = 0;
    for (size_t i = 0; i < size; i++) {
        data[i] = (unsigned char)(i * 2654435761u >> 13);
        sum = (unsigned char)(sum * 31 + data[i]);
    }
    struct result r = put(st, &loop, NULL, data, size);
    assert_int_equal(r.err.code, TPO_OK);
    struct result back = {0};
    back.reader = tpo_media_reader_open(st, r.id, on_data, &back);
    tpo_media_reader_next(back.reader);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(back.read, size);
    assert_int_equal(back.sum, sum);
    assert_int_equal(back.calls, 7);
    back = (struct result){0};
    back.reader = tpo_media_reader_open(st, abc_id, on_data, &back);
    tpo_media_reader_next(back.reader);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(back.err.code, TPO_NOT_FOUND);
    assert_string_equal(back.err.reason, "media_unknown");
    free(data);
    close_store(st, &loop);
}

static void a_file_that_cannot_be_opened_is_not_called_unknown(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct tpo_media_store *st = open_store(&loop, 1 << 20, 1 << 20);
    char path[128];
    snprintf(path, sizeof(path), "a/media/%s", abc_id);
    assert_int_equal(symlink(abc_id, path), 0); /* a link to itself: ELOOP, whoever asks */
    struct result r = {0};
    r.reader = tpo_media_reader_open(st, abc_id, on_data, &r);
    tpo_media_reader_next(r.reader);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(r.err.code, TPO_UNAVAILABLE);
    assert_string_equal(r.err.reason, "media_disk");
    assert_true(r.err.retry_ms > 0);
    close_store(st, &loop);
}

static void the_least_recently_used_goes_first(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct tpo_media_store *st = open_store(&loop, 10000, 6000);
    char data[7000];
    struct result r[4];
    for (int i = 0; i < 3; i++) {
        memset(data, 'a' + i, sizeof(data));
        r[i] = put(st, &loop, NULL, data, 3000);
        assert_int_equal(r[i].err.code, TPO_OK);
    }
    tpo_media_touch(st, r[0].id);
    memset(data, 'z', sizeof(data));
    r[3] = put(st, &loop, NULL, data, 3000);
    assert_int_equal(tpo_media_store_files(st), 3);
    char path[128];
    snprintf(path, sizeof(path), "a/media/%s", r[1].id);
    assert_int_not_equal(access(path, F_OK), 0);
    snprintf(path, sizeof(path), "a/media/%s", r[0].id);
    assert_int_equal(access(path, F_OK), 0);
    struct result big = put(st, &loop, NULL, data, 7000);
    assert_string_equal(big.err.reason, "media_too_large");
    /* On its way it pushed others out, as any upload may; it leaves nothing of its own. */
    assert_int_equal(files_in("a/media"), tpo_media_store_files(st));
    close_store(st, &loop);
}

static void many_tiny_files_are_bounded_too(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct tpo_media_store *st;
    struct tpo_media_settings s = {
        .dir = "a/media", .budget_bytes = 1 << 20, .file_max_bytes = 1000, .files_max = 100, .ttl_s = 60};
    assert_int_equal(tpo_media_store_open(&st, &loop, &s, NULL), TPO_OK);
    char first[65] = "", path[128];
    struct result r = {0};
    for (int i = 0; i < 300; i++) {
        r = put(st, &loop, NULL, &i, sizeof(i));
        assert_int_equal(r.err.code, TPO_OK);
        if (i == 0) snprintf(first, sizeof(first), "%s", r.id);
        tpo_media_touch(st, first);
    }
    assert_int_equal(tpo_media_store_files(st), 100);
    assert_int_equal(tpo_media_store_bytes(st), 100 * sizeof(int));
    assert_int_equal(files_in("a/media"), 100);
    snprintf(path, sizeof(path), "a/media/%s", first); /* used all the time */
    assert_int_equal(access(path, F_OK), 0);
    snprintf(path, sizeof(path), "a/media/%s", r.id);
    assert_int_equal(access(path, F_OK), 0);
    close_store(st, &loop);
    /* One that may hold fewer clears out when it starts. */
    uv_loop_init(&loop);
    s.files_max = 10;
    assert_int_equal(tpo_media_store_open(&st, &loop, &s, NULL), TPO_OK);
    assert_int_equal(tpo_media_store_files(st), 10);
    close_store(st, &loop);
    assert_int_equal(files_in("a/media"), 10);
}

static void a_cancelled_upload_leaves_nothing(void **state)
{
    (void)state;
    uv_loop_t loop;
    uv_loop_init(&loop);
    struct tpo_media_store *st = open_store(&loop, 10000, 10000);
    struct result r = {0};
    struct tpo_upload *u = tpo_upload_open(st, NULL, on_room, on_done, &r);
    tpo_upload_add(u, "abc", 3);
    tpo_upload_cancel(u);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(r.calls, 0);
    assert_int_equal(files_in("a/media"), 0);
    /* Two uploads that don't fit together: the second is refused, the first stands. */
    char data[6000] = {1};
    struct result a = {0}, b = {0};
    struct tpo_upload *first = tpo_upload_open(st, NULL, on_room, on_done, &a),
                      *second = tpo_upload_open(st, NULL, on_room, on_done, &b);
    tpo_upload_add(first, data, sizeof(data));
    tpo_upload_add(second, data, sizeof(data));
    tpo_upload_end(first);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(a.err.code, TPO_OK);
    assert_string_equal(b.err.reason, "media_full");
    assert_true(b.err.retry_ms > 0);
    close_store(st, &loop);
}

TPO_TESTS(cmocka_unit_test(an_upload_gets_its_hash_as_id), cmocka_unit_test(large_files_come_back_whole),
          cmocka_unit_test(a_file_that_cannot_be_opened_is_not_called_unknown),
          cmocka_unit_test(the_least_recently_used_goes_first), cmocka_unit_test(many_tiny_files_are_bounded_too),
          cmocka_unit_test(a_cancelled_upload_leaves_nothing))
