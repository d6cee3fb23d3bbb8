/* Streams and teams: every part runs once, late sleepers take nothing twice, a device that is not there is said so. */
#include <stdatomic.h>
#include <unistd.h>

#include "kernels/team.h"
#include "tests/kernels/check.h"

struct count {
    int n;
    int seen[1000];
    atomic_int members[4];
};

static void tick(void *arg, int part, int member)
{
    struct count *c = arg;
    c->seen[part]++;
    atomic_fetch_add(&c->members[member], 1);
}

static void every_part_runs_once(void **state)
{
    (void)state;
    for (int size = 1; size <= 4; size++) {
        struct tpo_team *t;
        assert_int_equal(tpo_team_open(&t, size, NULL), TPO_OK);
        assert_int_equal(tpo_team_size(t), size);
        for (int job = 0; job < 3000; job++) {
            struct count c = {.n = 1 + job % 97};
            tpo_team_run(t, tick, &c, c.n);
            for (int i = 0; i < c.n; i++) assert_int_equal(c.seen[i], 1);
            assert_int_equal(c.seen[c.n], 0);
            if (job % 500 == 0) usleep(2000); /* members fall asleep */
        }
        tpo_team_run(t, tick, NULL, 0);
        tpo_team_close(t);
    }
}

static void impossible_teams_are_refused(void **state)
{
    (void)state;
    struct tpo_team *t = NULL;
    struct tpo_error err;
    assert_int_equal(tpo_team_open(&t, 0, &err), TPO_EINVAL);
    assert_int_equal(tpo_team_open(&t, TPO_TEAM_MAX + 1, &err), TPO_EINVAL);
    assert_null(t);
    tpo_team_close(NULL);
}

static void missing_devices_are_named(void **state)
{
    (void)state;
    struct tpo_stream *s = NULL;
    struct tpo_error err;
    assert_int_equal(tpo_stream_open(&s, "quantum", 1, &err), TPO_UNIMPLEMENTED);
    assert_string_equal(err.reason, "unknown_device");
    assert_null(s);
    if (access("/dev/nvidiactl", F_OK) != 0) {
        assert_int_equal(tpo_stream_open(&s, "cuda", 1, &err), TPO_UNIMPLEMENTED);
        assert_string_equal(err.reason, "no_cuda");
        assert_true(strlen(err.message) > 20);
    }
    assert_int_equal(tpo_stream_open(&s, "auto", 1, &err), TPO_OK);
    tpo_stream_close(s);
    assert_int_equal(tpo_stream_open(&s, "cpu", -1, &err), TPO_EINVAL);
    tpo_stream_close(NULL);
}

static void memory_is_aligned_and_copied(void **state)
{
    (void)state;
    struct tpo_stream *s = check_stream(0);
    assert_string_equal(tpo_stream_device_name(s), "cpu");
    char text[6] = "hello", back[6];
    for (size_t bytes = 0; bytes < 200; bytes += 33) {
        void *block = tpo_device_alloc(s, bytes + 6);
        assert_non_null(block);
        assert_int_equal((uintptr_t)block % 64, 0);
        assert_int_equal(tpo_copy_in(s, block, text, 6), TPO_OK);
        assert_int_equal(tpo_copy_out(s, back, block, 6), TPO_OK);
        assert_string_equal(back, text);
        tpo_device_free(s, block);
    }
    assert_null(tpo_device_alloc(s, SIZE_MAX));
    tpo_device_free(s, NULL);
    assert_int_equal(tpo_stream_wait(s), TPO_OK);
    tpo_stream_close(s);
}

TPO_TESTS(cmocka_unit_test(every_part_runs_once), cmocka_unit_test(impossible_teams_are_refused),
          cmocka_unit_test(missing_devices_are_named), cmocka_unit_test(memory_is_aligned_and_copied))
