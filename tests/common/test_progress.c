/* Proves common/progress: on a terminal a bar with share, amounts, rate and time left; elsewhere nothing. */
#include "tests/support/test.h"

#include <fcntl.h>
#include <termios.h>
#include <unistd.h>

#include "common/clock.h"
#include "common/progress.h"

/* Stands for stderr from now on; what is written to it is read from the number returned. */
static int terminal(void)
{
    struct termios raw;
    const int master = posix_openpt(O_RDWR | O_NOCTTY);
    assert_true(master >= 0);
    assert_int_equal(grantpt(master), 0);
    assert_int_equal(unlockpt(master), 0);
    const int slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    assert_true(slave >= 0);
    assert_int_equal(tcgetattr(slave, &raw), 0);
    cfmakeraw(&raw);
    assert_int_equal(tcsetattr(slave, TCSANOW, &raw), 0);
    assert_int_equal(dup2(slave, STDERR_FILENO), STDERR_FILENO);
    close(slave);
    return master;
}

/* What came since the last time. A terminal passes things on in its own time, so a mark is sent after them. */
static const char *written(int fd)
{
    static char text[1024];
    size_t n = 0;
    fputc('\n', stderr);
    while (n < sizeof(text) && (n == 0 || text[n - 1] != '\n')) {
        const ssize_t more = read(fd, text + n, sizeof(text) - n);
        assert_true(more > 0);
        n += (size_t)more;
    }
    text[n - 1] = '\0';
    return text;
}

/* One that began 10 s ago. */
static struct tpo_progress begun(const char *unit, double at)
{
    return (struct tpo_progress){.what = "drawing", .unit = unit, .begun_s = tpo_now_s() - 10, .begun_at = at};
}

static void a_bar_tells_share_rate_and_time_left(void **state)
{
    (void)state;
    const int fd = terminal();
    struct tpo_progress bar = begun(" files", 0);
    tpo_progress_show(&bar, 50, 200);
    const char *text = written(fd);
    assert_non_null(strstr(text, "\rdrawing [#######.......................] 50/200 files, "));
    assert_non_null(strstr(text, " files/s, "));
    assert_non_null(strstr(text, " s left"));
    tpo_progress_show(&bar, 51, 200); /* too soon after */
    assert_string_equal(written(fd), "");
    tpo_progress_end(&bar);
    assert_string_equal(written(fd), "\r\033[K");
    tpo_progress_end(&bar);
    assert_string_equal(written(fd), "");
}

/* Five steps in 10 s, whatever was done before: two hours for 3,600. */
static void what_was_done_before_is_not_boasted_of(void **state)
{
    (void)state;
    const int fd = terminal();
    struct tpo_progress bar = begun(" steps", 1000);
    tpo_progress_show(&bar, 1005, 4605);
    assert_non_null(strstr(written(fd), "1005/4605 steps, 0.5 steps/s, 2:"));
}

static void without_a_total_there_is_no_time_left(void **state)
{
    (void)state;
    const int fd = terminal();
    struct tpo_progress bar = begun("B", 0);
    tpo_progress_show(&bar, 123456789, 0);
    const char *text = written(fd);
    assert_non_null(strstr(text, "[..............................] 123.5MB, "));
    assert_non_null(strstr(text, "MB/s"));
    assert_null(strstr(text, "left"));
}

static void nothing_is_shown_at_once_or_in_a_file(void **state)
{
    (void)state;
    const int fd = terminal();
    struct tpo_progress fresh = {.what = "drawing", .unit = " files"}, bar = begun(" files", 0);
    tpo_progress_show(&fresh, 1, 2);
    assert_string_equal(written(fd), "");
    const int file = open("err", O_RDWR | O_CREAT | O_TRUNC, 0644);
    assert_int_equal(dup2(file, STDERR_FILENO), STDERR_FILENO);
    tpo_progress_show(&bar, 1, 2);
    tpo_progress_end(&bar);
    assert_int_equal(lseek(file, 0, SEEK_END), 0);
}

TPO_TESTS(cmocka_unit_test(a_bar_tells_share_rate_and_time_left), cmocka_unit_test(what_was_done_before_is_not_boasted_of),
          cmocka_unit_test(without_a_total_there_is_no_time_left), cmocka_unit_test(nothing_is_shown_at_once_or_in_a_file))
