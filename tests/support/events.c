/* This file owns the reader of event files in tests. */
#include "tests/support/events.h"

#include <dirent.h>

#include "tests/support/test.h"

/* The checksum bit by bit, from the polynomial. */
static uint32_t crc_slow(const uint8_t *p, size_t n)
{
    uint32_t crc = 0xffffffff;
    for (size_t i = 0; i < n; i++) {
        crc ^= p[i];
        for (int k = 0; k < 8; k++) crc = crc & 1 ? (crc >> 1) ^ 0x82f63b78 : crc >> 1;
    }
    crc = ~crc;
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8;
}

static uint64_t little(const uint8_t *p, int bytes)
{
    uint64_t x = 0;
    for (int i = bytes - 1; i >= 0; i--) x = x << 8 | p[i];
    return x;
}

static FILE *file_open(const char *dir, int which)
{
    struct dirent **names;
    char path[512];
    FILE *f = NULL;
    const int n = scandir(dir, &names, NULL, alphasort);
    for (int i = 0, k = 0; i < n; i++) {
        if (strncmp(names[i]->d_name, "events.out.tfevents.", 20) == 0 && k++ == which) {
            snprintf(path, sizeof(path), "%s/%s", dir, names[i]->d_name);
            f = fopen(path, "rb");
        }
        free(names[i]);
    }
    if (n >= 0) free(names);
    if (f == NULL) fail_msg("%s has no event file %d", dir, which);
    return f;
}

void test_events_read(struct test_events *e, const char *dir, int which)
{
    static uint8_t p[1 << 20];
    FILE *f = file_open(dir, which);
    const size_t n = fread(p, 1, sizeof(p), f);
    size_t at = 0;
    fclose(f);
    assert_in_range(n, 1, sizeof(p) - 1);
    for (e->n = 0; at < n; e->n++) {
        assert_true(n - at >= 16 && e->n < TEST_EVENTS_MAX);
        const uint64_t length = little(p + at, 8);
        assert_true(length <= n - at - 16);
        assert_int_equal(little(p + at + 8, 4), crc_slow(p + at, 8));
        assert_int_equal(little(p + at + 12 + length, 4), crc_slow(p + at + 12, length));
        e->all[e->n] = tfevents__event__unpack(NULL, length, p + at + 12);
        assert_non_null(e->all[e->n]);
        at += length + 16;
    }
}

void test_events_free(struct test_events *e)
{
    for (int i = 0; i < e->n; i++) tfevents__event__free_unpacked(e->all[i], NULL);
    e->n = 0;
}

float test_events_value(const Tfevents__Event *e, const char *tag)
{
    assert_int_equal(e->what_case, TFEVENTS__EVENT__WHAT_SUMMARY);
    for (size_t i = 0; i < e->summary->n_value; i++)
        if (strcmp(e->summary->value[i]->tag, tag) == 0) {
            assert_int_equal(e->summary->value[i]->value_case, TFEVENTS__SUMMARY__VALUE__VALUE_SIMPLE_VALUE);
            return e->summary->value[i]->simple_value;
        }
    fail_msg("no tag %s", tag);
    return 0;
}
