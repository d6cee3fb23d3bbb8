/* Proves common/files: all is written however little a pipe takes, a reader that left is told, and the neighbour is the program's own. */
#include "tests/support/test.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "common/files.h"

#define BYTES (1 << 20)

static void *read_all(void *arg)
{
    static char got[BYTES];
    size_t n = 0;
    for (ssize_t more; n < BYTES && (more = read(*(int *)arg, got + n, 1000)) > 0;) n += (size_t)more;
    return n == BYTES && got[0] == 'a' && got[BYTES - 1] == 'z' ? got : NULL;
}

static void a_pipe_takes_it_piece_by_piece(void **state)
{
    (void)state;
    static char data[BYTES];
    int ends[2];
    pthread_t reader;
    void *whole;
    data[0] = 'a', data[BYTES - 1] = 'z';
    assert_int_equal(pipe(ends), 0);
    pthread_create(&reader, NULL, read_all, &ends[0]);
    assert_true(tpo_write_all(ends[1], data, BYTES));
    pthread_join(reader, &whole);
    assert_non_null(whole);
    signal(SIGPIPE, SIG_IGN);
    close(ends[0]);
    assert_false(tpo_write_all(ends[1], data, 1));
    assert_true(tpo_write_all(ends[1], data, 0));
    close(ends[1]);
}

static void the_neighbour_lies_in_the_programs_folder(void **state)
{
    (void)state;
    char path[4096], cut[8];
    tpo_beside(path, sizeof(path), "test_files");
    assert_int_equal(path[0], '/');
    assert_int_equal(access(path, X_OK), 0);
    tpo_beside(cut, sizeof(cut), "test_files");
    assert_memory_equal(cut, path, sizeof(cut) - 1);
    assert_int_equal(cut[sizeof(cut) - 1], '\0');
}

TPO_TESTS(cmocka_unit_test(a_pipe_takes_it_piece_by_piece), cmocka_unit_test(the_neighbour_lies_in_the_programs_folder))
