/* Proves that a full disk costs what is remembered of bad rows, and neither what is known already nor a row that is sound. */
#include "tests/support/test.h"

#include "trainer/data/bad_rows.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static struct tpo_bad_rows_of rows = {.n = 1000, .which = "these"};

static struct tpo_bad_rows *file_open(void)
{
    struct tpo_bad_rows *b = NULL;
    struct tpo_error err = {0};
    if (tpo_bad_rows_open(&b, "bad", &rows, UINT64_MAX, &err) != TPO_OK) fail_msg("%s", err.message);
    return b;
}

/* No file of this process grows past `most` bytes; 0: all may again. */
static void files_end_at(rlim_t most)
{
    struct rlimit l;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &l), 0);
    l.rlim_cur = most > 0 ? most : l.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &l), 0);
}

static rlim_t size_of(const char *path)
{
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return (rlim_t)st.st_size;
}

/* As a recovery meets it, which opens the file anew. */
static void a_full_disk_leaves_the_file_and_what_it_says(void **state)
{
    (void)state;
    struct tpo_bad_rows *b = file_open();
    for (int64_t row = 1; row <= 10; row++) assert_true(tpo_bad_rows_add(b, 0, row, "torn"));
    tpo_bad_rows_close(b);
    const rlim_t before = size_of("bad");
    files_end_at(20);
    b = file_open();
    assert_int_equal(tpo_bad_rows_count(b), 10);
    assert_string_equal(tpo_bad_rows_first(b), "torn");
    assert_true(tpo_bad_rows_add(b, 0, 11, "torn"));
    files_end_at(0);
    tpo_bad_rows_close(b);
    assert_int_equal(size_of("bad"), before);
    assert_int_equal(access("bad.part", F_OK), -1);
}

/* There is room for "5 7" of "5 77 torn", and again for the line behind it. */
static void a_line_that_was_cut_off_makes_no_row_bad(void **state)
{
    (void)state;
    struct tpo_bad_rows *b = file_open();
    assert_true(tpo_bad_rows_add(b, 1, 3, "torn"));
    files_end_at(size_of("bad") + 3);
    assert_true(tpo_bad_rows_add(b, 5, 77, "torn"));
    files_end_at(0);
    assert_true(tpo_bad_rows_add(b, 6, 9, "torn"));
    tpo_bad_rows_close(b);
    b = file_open();
    assert_int_equal(tpo_bad_rows_count(b), 1);
    assert_true(tpo_bad_rows_has(b, 3));
    tpo_bad_rows_close(b);
}

/* As a machine that went down may leave it. Under the sanitizers nothing is read before the line. */
static void lines_of_nul_are_passed_over(void **state)
{
    (void)state;
    static const char text[] = "rows 1000 of these\n1 3 torn\n\0\n\0\0\0 4 torn\n2 5 torn\n";
    FILE *f = fopen("bad", "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, sizeof(text) - 1, f), sizeof(text) - 1);
    fclose(f);
    struct tpo_bad_rows *b = file_open();
    assert_int_equal(tpo_bad_rows_count(b), 2);
    assert_true(tpo_bad_rows_has(b, 3) && tpo_bad_rows_has(b, 5));
    tpo_bad_rows_close(b);
}

/* As many of another file: two sources of a recipe that were swapped. */
static void marks_of_other_rows_do_not_count(void **state)
{
    (void)state;
    struct tpo_bad_rows *b = file_open();
    assert_true(tpo_bad_rows_add(b, 0, 3, "torn"));
    tpo_bad_rows_close(b);
    rows.which = "those";
    b = file_open();
    assert_int_equal(tpo_bad_rows_count(b), 0);
    assert_false(tpo_bad_rows_has(b, 3));
    tpo_bad_rows_close(b);
}

TPO_TESTS(cmocka_unit_test(a_full_disk_leaves_the_file_and_what_it_says),
          cmocka_unit_test(a_line_that_was_cut_off_makes_no_row_bad), cmocka_unit_test(lines_of_nul_are_passed_over),
          cmocka_unit_test(marks_of_other_rows_do_not_count))
