/* events.h -- event files of TensorBoard, read back by their specification: framing, both checksums, and every record a whole Event.
 *
 * Failures abort the case: no such file, a checksum that does not match, a torn end, more than TEST_EVENTS_MAX events. */
#ifndef TPO_TESTS_EVENTS_H
#define TPO_TESTS_EVENTS_H

#include "tfevents.pb-c.h"

#define TEST_EVENTS_MAX 256

struct test_events {
    Tfevents__Event *all[TEST_EVENTS_MAX]; /* all[0] tells the file's version */
    int n;
};

/* File `which` (from 0, in order of their names) of folder `dir`. */
void test_events_read(struct test_events *e, const char *dir, int which);
void test_events_free(struct test_events *e);

/* The scalar's f32 as it was written; an event without the tag aborts the case. */
float test_events_value(const Tfevents__Event *e, const char *tag);

#endif
