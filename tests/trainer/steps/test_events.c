/* The event file, parsed back by its specification: framing, both checksums, tags and values; and troubles of the disk that cost records only. */
#include "tests/support/events.h"
#include "tests/support/test.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "trainer/steps/events.h"

static struct tpo_recipe_stage stage(void)
{
    struct tpo_recipe_stage s = {.plan = {.n_groups = 2}, .rates = {1, 2}};
    snprintf(s.groups[0].name, sizeof(s.groups[0].name), "lora");
    snprintf(s.groups[1].name, sizeof(s.groups[1].name), "head");
    return s;
}

static struct tpo_step_report report(void)
{
    struct tpo_step_report r = {
        .n_losses = 2, .norm = 5, .norms = {3, 4, .5}, .clip = .25F, .rate = .5F, .rates = {.5F, 1}, .samples = 8};
    r.losses[0].name = "language";
    r.losses[0].value = 1.5;
    r.losses[1].name = "region";
    r.losses[1].value = 0; /* a zero must not vanish */
    r.timing.seconds[TPO_PHASE_FORWARD] = .125;
    r.timing.wall_s = 2;
    r.timing.bubble_s = .0625;
    return r;
}

static void expect_start(const Tfevents__Event *e, int step)
{
    assert_int_equal(e->what_case, TFEVENTS__EVENT__WHAT_SESSION_LOG);
    assert_int_equal(e->session_log->status, TFEVENTS__SESSION_LOG__SESSION_STATUS__START);
    assert_int_equal(e->step, step);
}

static void crc_is_castagnoli(void **state)
{
    (void)state;
    uint8_t zeros[32] = {0};
    assert_int_equal(tpo_crc32c("123456789", 9), 0xe3069283);
    assert_int_equal(tpo_crc32c(zeros, 32), 0x8a9136aa); /* RFC 3720, B.4 */
}

static void what_was_written_is_read_back(void **state)
{
    (void)state;
    struct test_events read;
    const struct tpo_recipe_stage s = stage();
    const struct tpo_step_report r = report();
    mkdir("stage", 0755);
    struct tpo_events *e = tpo_events_open("stage");
    tpo_events_step(e, &s, 7, &r, 3);
    tpo_events_step(e, &s, 8, &r, 3);
    tpo_events_close(e);
    test_events_read(&read, "stage", 0);
    assert_int_equal(read.n, 4);
    assert_string_equal(read.all[0]->file_version, "brain.Event:2");
    expect_start(read.all[1], 7);
    assert_int_equal(read.all[2]->step, 7);
    assert_int_equal(read.all[3]->step, 8);
    static const struct {
        const char *tag;
        float value;
    } wanted[] = {{"loss/language", 1.5F}, {"loss/region", 0},        {"rate/lora", .5F},
                  {"rate/head", 1},        {"norm/all", 5},           {"norm/encoder", 3},
                  {"norm/router", 4},      {"norm/region", .5F},      {"clip", .25F},
                  {"aborted", 3},          {"time/forward", .125F},   {"time/bubble", .0625F},
                  {"time/data", 0},        {"speed/samples_per_s", 4}};
    for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
        if (test_events_value(read.all[2], wanted[i].tag) != wanted[i].value)
            fail_msg("%s is %g", wanted[i].tag, (double)test_events_value(read.all[2], wanted[i].tag));
    assert_int_equal(read.all[2]->summary->n_value, 2 + 2 + 4 + 2 + TPO_PHASES + 2);
    test_events_free(&read);
}

static void a_run_that_goes_on_begins_another_file(void **state)
{
    (void)state;
    struct test_events read;
    const struct tpo_recipe_stage s = stage();
    const struct tpo_step_report r = report();
    mkdir("stage", 0755);
    for (int step = 1; step <= 2; step++) {
        struct tpo_events *e = tpo_events_open("stage");
        tpo_events_step(e, &s, step, &r, 0);
        tpo_events_close(e);
    }
    for (int k = 0; k < 2; k++) {
        test_events_read(&read, "stage", k);
        assert_int_equal(read.n, 3);
        expect_start(read.all[1], k + 1);
        assert_int_equal(read.all[2]->step, k + 1);
        test_events_free(&read);
    }
}

/* Steps 2 and 3 are done again, as after a recovery that went back to a checkpoint. */
static void steps_done_again_follow_a_start(void **state)
{
    (void)state;
    static const int steps[] = {1, 2, 3, 2, 3, 4}, starts[] = {1, 0, 0, 1, 0, 0};
    struct test_events read;
    const struct tpo_recipe_stage s = stage();
    const struct tpo_step_report r = report();
    int at = 1;
    mkdir("stage", 0755);
    struct tpo_events *e = tpo_events_open("stage");
    for (int i = 0; i < 6; i++) tpo_events_step(e, &s, steps[i], &r, 0);
    tpo_events_close(e);
    test_events_read(&read, "stage", 0);
    assert_int_equal(read.n, 1 + 6 + 2);
    for (int i = 0; i < 6; i++) {
        if (starts[i]) expect_start(read.all[at++], steps[i]);
        assert_int_equal(read.all[at]->what_case, TFEVENTS__EVENT__WHAT_SUMMARY);
        assert_int_equal(read.all[at++]->step, steps[i]);
    }
    test_events_free(&read);
}

static void a_full_disk_costs_records_only(void **state)
{
    (void)state;
    struct test_events read;
    const struct tpo_recipe_stage s = stage();
    const struct tpo_step_report r = report();
    struct rlimit old, small = {.rlim_cur = 1500, .rlim_max = RLIM_INFINITY};
    getrlimit(RLIMIT_FSIZE, &old);
    small.rlim_max = old.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    mkdir("stage", 0755);
    struct tpo_events *e = tpo_events_open("stage");
    setrlimit(RLIMIT_FSIZE, &small);
    for (int step = 1; step <= 10; step++) tpo_events_step(e, &s, step, &r, 0);
    setrlimit(RLIMIT_FSIZE, &old);
    tpo_events_step(e, &s, 11, &r, 0); /* there is room again: what follows can be read */
    tpo_events_close(e);
    test_events_read(&read, "stage", 0);
    assert_in_range(read.n, 2 + 1 + 1, 2 + 9 + 1); /* a start, some of ten steps, and the last */
    assert_int_equal(read.all[read.n - 1]->step, 11);
    test_events_free(&read);
}

static void no_folder_costs_records_only(void **state)
{
    (void)state;
    const struct tpo_recipe_stage s = stage();
    const struct tpo_step_report r = report();
    struct tpo_events *e = tpo_events_open("missing/folder");
    assert_non_null(e);
    tpo_events_step(e, &s, 1, &r, 0);
    tpo_events_close(e);
    tpo_events_step(NULL, &s, 1, &r, 0);
}

TPO_TESTS(cmocka_unit_test(crc_is_castagnoli), cmocka_unit_test(what_was_written_is_read_back),
          cmocka_unit_test(a_run_that_goes_on_begins_another_file), cmocka_unit_test(steps_done_again_follow_a_start),
          cmocka_unit_test(a_full_disk_costs_records_only), cmocka_unit_test(no_folder_costs_records_only))
