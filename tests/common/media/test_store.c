/* The media directory: what is whole has its name, what is not leaves nothing, the budget holds. */
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/media/store.h"
#include "tests/support/test.h"

static tpo_store_t *store_in(const char *dir, int64_t budget, int64_t file)
{
    struct tpo_store_options o = {.dir = dir, .budget_bytes = budget, .file_bytes = file};
    struct tpo_error err;
    tpo_store_t *s;
    if (tpo_store_open(&s, &o, &err) != TPO_OK) fail_msg("%s", err.message);
    return s;
}

static int files_in(const char *dir)
{
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; (e = readdir(d)) != NULL;) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static int put(tpo_store_t *s, const char *expected, const void *data, size_t n, char id[TPO_SHA256_HEX], struct tpo_error *err)
{
    tpo_store_writer_t *w;
    int64_t size;
    int rc = tpo_store_write(s, &w, expected, err);
    if (rc != TPO_OK) return rc;
    for (size_t at = 0; at < n && rc == TPO_OK; at += 7)
        rc = tpo_store_add(w, (const char *)data + at, n - at < 7 ? n - at : 7, err);
    if (rc != TPO_OK) {
        tpo_store_cancel(w);
        return rc;
    }
    rc = tpo_store_end(w, id, &size, err);
    if (rc == TPO_OK) assert_int_equal(size, n);
    return rc;
}

static void whole_files_have_their_name(void **state)
{
    (void)state;
    tpo_store_t *s = store_in("a/b/c", 0, 0);
    struct tpo_error err;
    char id[TPO_SHA256_HEX], back[64];
    assert_int_equal(tpo_store_fd(s, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"), -1);
    assert_int_equal(put(s, NULL, "abc", 3, id, &err), TPO_OK);
    assert_string_equal(id, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    int fd = tpo_store_fd(s, id);
    assert_int_equal(read(fd, back, sizeof(back)), 3);
    assert_memory_equal(back, "abc", 3);
    close(fd);
    assert_int_equal(put(s, id, "abc", 3, id, &err), TPO_OK); /* again, and with its name told */
    assert_int_equal(files_in("a/b/c"), 1);
    tpo_store_close(s);
    s = store_in("a/b/c", 0, 0);
    fd = tpo_store_fd(s, id);
    assert_true(fd >= 0);
    close(fd);
    tpo_store_close(s);
}

static void what_is_wrong_leaves_nothing(void **state)
{
    (void)state;
    tpo_store_t *s = store_in("d", 100, 50);
    struct tpo_error err;
    char id[TPO_SHA256_HEX], big[60] = {0};
    assert_int_equal(put(s, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "abd", 3, id, &err),
                     TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "media_hash");
    assert_int_equal(put(s, "", "", 0, id, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "media_empty");
    assert_int_equal(put(s, "", big, sizeof(big), id, &err), TPO_RESOURCE_EXHAUSTED);
    assert_string_equal(err.reason, "media_too_large");
    assert_int_equal(put(s, "../../etc/passwd", "abc", 3, id, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "media_id");
    tpo_store_writer_t *w;
    assert_int_equal(tpo_store_write(s, &w, NULL, &err), TPO_OK);
    assert_int_equal(tpo_store_add(w, "half", 4, &err), TPO_OK);
    tpo_store_cancel(w);
    tpo_store_cancel(NULL);
    assert_int_equal(files_in("d"), 0);
    assert_int_equal(tpo_store_fd(s, "../d"), -1);
    assert_int_equal(tpo_store_fd(s, NULL), -1);
    tpo_store_close(s);
}

static void the_longest_unused_goes_first(void **state)
{
    (void)state;
    tpo_store_t *s = store_in("d", 100, 0);
    struct tpo_error err;
    char id[4][TPO_SHA256_HEX], data[40];
    for (int i = 0; i < 3; i++) {
        memset(data, 'a' + i, sizeof(data));
        assert_int_equal(put(s, NULL, data, i == 2 ? 20 : 40, id[i], &err), TPO_OK);
        struct timespec used[2] = {{.tv_sec = 1000 + i}, {.tv_sec = 1000 + i}};
        char path[128];
        snprintf(path, sizeof(path), "d/%s", id[i]);
        utimensat(AT_FDCWD, path, used, 0);
    }
    assert_int_equal(files_in("d"), 3);
    close(tpo_store_fd(s, id[0])); /* now the youngest */
    memset(data, 'z', sizeof(data));
    assert_int_equal(put(s, NULL, data, 30, id[3], &err), TPO_OK);
    assert_int_equal(tpo_store_fd(s, id[1]), -1);
    for (int i = 0; i < 4; i++) {
        int fd = tpo_store_fd(s, id[i]);
        assert_int_equal(fd >= 0, i != 1);
        if (fd >= 0) close(fd);
    }
    tpo_store_close(s);
}

/* A forgotten part goes whenever the directory is looked at, which tells when that was. */
static void all_files_are_looked_at_only_when_that_is_due(void **state)
{
    (void)state;
    struct tpo_store_options o = {.dir = "d", .files_max = 32};
    struct tpo_error err;
    tpo_store_t *s;
    char id[TPO_SHA256_HEX], first[TPO_SHA256_HEX] = "";
    assert_int_equal(tpo_store_open(&s, &o, &err), TPO_OK);
    fclose(fopen("d/put-forgot", "w"));
    struct timespec old[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    utimensat(AT_FDCWD, "d/put-forgot", old, 0);
    for (int i = 0; i < 32; i++) {
        assert_int_equal(put(s, NULL, &i, sizeof(i), id, &err), TPO_OK);
        if (i == 0) memcpy(first, id, sizeof(first));
        assert_int_equal(put(s, NULL, &i, sizeof(i), id, &err), TPO_OK); /* once more, and no second file */
    }
    assert_int_equal(access("d/put-forgot", F_OK), 0);
    assert_int_equal(files_in("d"), 33);
    char path[128];
    snprintf(path, sizeof(path), "d/%s", first);
    utimensat(AT_FDCWD, path, old, 0);
    int more = 1000;
    assert_int_equal(put(s, NULL, &more, sizeof(more), id, &err), TPO_OK);
    assert_int_equal(access("d/put-forgot", F_OK), -1);
    assert_int_equal(files_in("d"), 30);
    assert_int_equal(access(path, F_OK), -1);
    snprintf(path, sizeof(path), "d/%s", id);
    assert_int_equal(access(path, F_OK), 0);
    tpo_store_close(s);
}

static void a_directory_that_cannot_be_is_told(void **state)
{
    (void)state;
    struct tpo_store_options o = {.dir = "file/below"};
    struct tpo_error err;
    tpo_store_t *s;
    fclose(fopen("file", "w"));
    assert_int_equal(tpo_store_open(&s, &o, &err), TPO_UNAVAILABLE);
    assert_string_equal(err.reason, "media_dir");
    assert_null(s);
}

TPO_TESTS(cmocka_unit_test(whole_files_have_their_name), cmocka_unit_test(what_is_wrong_leaves_nothing),
          cmocka_unit_test(the_longest_unused_goes_first), cmocka_unit_test(all_files_are_looked_at_only_when_that_is_due),
          cmocka_unit_test(a_directory_that_cannot_be_is_told))
