/* What a run tells of itself: status.json holds means wherever a line stands, is not written at every step, and holds any sentence. */
#include "tests/support/test.h"

#include <jansson.h>
#include <math.h>

#include "common/clock.h"
#include "trainer/steps/run_log.h"

static struct tpo_run_log *open_log(int log_every, int steps)
{
    struct tpo_run_log *log = NULL;
    struct tpo_error err = {0};
    struct tpo_recipe *r = calloc(1, sizeof(*r));
    assert_non_null(r);
    *r = (struct tpo_recipe){.name = "r", .n_stages = 1, .stages[0] = {.name = "talk", .steps = steps}};
    assert_int_equal(tpo_run_log_open(&log, ".", log_every, false, &err), TPO_OK);
    tpo_run_log_stage(log, r, 0, 1);
    free(r);
    return log;
}

static void step(struct tpo_run_log *log, int n, double loss, bool aborted)
{
    struct tpo_step_report r = {.n_losses = 1, .aborted = aborted, .timing.wall_s = 1};
    r.losses[0].name = "language";
    r.losses[0].value = loss;
    r.losses[0].n = 1;
    tpo_run_log_step(log, n, &r, aborted);
}

static json_t *status(void)
{
    json_t *j = json_load_file("status.json", 0, NULL);
    if (j == NULL) fail_msg("status.json is no JSON");
    return j;
}

static void expect_text(const char *key, const char *expected)
{
    json_t *j = status();
    assert_string_equal(json_string_value(json_object_get(j, key)), expected);
    json_decref(j);
}

/* 0 where it tells none. */
static double loss_told(void)
{
    json_t *j = status();
    const double loss = json_real_value(json_object_get(json_object_get(j, "losses"), "language"));
    json_decref(j);
    return loss;
}

static void losses_are_means_within_a_line_and_at_its_end(void **state)
{
    (void)state;
    struct tpo_run_log *log = open_log(4, 8);
    for (int n = 1; n <= 3; n++) step(log, n, n, false);
    tpo_run_log_state(log, "waiting", "");
    assert_true(loss_told() == 2);
    step(log, 4, 6, false);
    tpo_run_log_state(log, "waiting", "");
    assert_true(loss_told() == 3);
    step(log, 5, 9, false); /* of another line */
    tpo_run_log_state(log, "waiting", "");
    assert_true(loss_told() == 9);
    tpo_run_log_close(log);
}

static void a_step_that_was_given_up_is_in_no_mean(void **state)
{
    (void)state;
    struct tpo_run_log *log = open_log(4, 4);
    step(log, 1, NAN, true);
    step(log, 2, 1, false);
    step(log, 3, INFINITY, true);
    step(log, 4, 2, false);
    assert_true(loss_told() == 1.5);
    tpo_run_log_close(log);
}

/* A line each; of the status one when the stage begins, one for every second that went by, one with the last step. */
static void steps_within_a_second_are_written_once(void **state)
{
    (void)state;
    enum { STEPS = 500 };
    const double begun_s = tpo_now_s();
    struct tpo_run_log *log = open_log(1, STEPS);
    int writes = 0, told = 0;
    for (int n = 1; n <= STEPS; n++) {
        step(log, n, 1, false);
        json_t *j = status();
        const int now = (int)json_integer_value(json_object_get(j, "step"));
        json_decref(j);
        writes += now != told;
        told = now;
    }
    assert_int_equal(told, STEPS);
    assert_true(writes <= 1 + tpo_now_s() - begun_s);
    tpo_run_log_close(log);
}

static void a_note_stays_until_it_is_taken_away(void **state)
{
    (void)state;
    struct tpo_run_log *log = open_log(1, 3);
    tpo_run_log_note(log, "the disk is full");
    expect_text("detail", "the disk is full");
    step(log, 1, 1, false);
    tpo_run_log_state(log, "waiting", "for the router");
    expect_text("detail", "for the router");
    step(log, 3, 1, false);
    expect_text("state", "training");
    expect_text("detail", "the disk is full");
    tpo_run_log_note(log, "");
    expect_text("detail", "");
    tpo_run_log_close(log);
}

/* A path in Latin-1, a character cut off, a surrogate, and sound ones of every length. */
static void sentences_that_are_no_utf8_are_told(void **state)
{
    (void)state;
    static const char *const details[][2] = {
        {"caf\xe9/rows.json: no such file", "caf?/rows.json: no such file"},
        {"caf\xc3", "caf?"},
        {"\xed\xa0\x80", "???"},
        {"\xf0\x9f\x98", "???"},
        {"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80\xff", "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80?"}};
    struct tpo_run_log *log = open_log(1, 3);
    for (size_t i = 0; i < sizeof(details) / sizeof(details[0]); i++) {
        tpo_run_log_state(log, "failed", details[i][0]);
        expect_text("state", "failed");
        expect_text("detail", details[i][1]);
    }
    tpo_run_log_close(log);
}

TPO_TESTS(cmocka_unit_test(losses_are_means_within_a_line_and_at_its_end), cmocka_unit_test(a_step_that_was_given_up_is_in_no_mean),
          cmocka_unit_test(steps_within_a_second_are_written_once), cmocka_unit_test(a_note_stays_until_it_is_taken_away),
          cmocka_unit_test(sentences_that_are_no_utf8_are_told))
