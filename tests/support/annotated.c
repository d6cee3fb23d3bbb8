/* This file owns the small annotated data sets of tests. */
#include "tests/support/annotated.h"

#include <stdlib.h>
#include <string.h>

#include "tests/support/test.h"
#include "tests/support/training.h"
#include "trainer/world/files.h"
#include "trainer/world/world.h"

void annotated_write_as(int zoom)
{
    struct tpo_error err = {0};
    const struct tpo_world_export e = {.split = TPO_WORLD_TRAIN,
                                       .seed = 9,
                                       .n_images = 8,
                                       .n_clips = 3,
                                       .n_frames = 6,
                                       .side = 48,
                                       .zoom = zoom,
                                       .sentences = 4,
                                       .out = "data"};
    if (tpo_world_export(&e, &err) != TPO_OK) fail_msg("%s", err.message);
}

void annotated_write(void)
{
    annotated_write_as(1);
}

void annotated_text(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

double annotated_number(const char *line, const char *key)
{
    const char *at = strstr(line, key);
    if (at == NULL) fail_msg("%s is not in %s", key, line);
    return strtod(at + strlen(key), NULL);
}

void annotated_refused(const char *out, const char *expected, const char *more)
{
    char err[64], log[64];
    assert_int_equal(training_wait(training_start("r.yaml", out, NULL, NULL), 60), 1);
    snprintf(err, sizeof(err), "%s.err", out);
    snprintf(log, sizeof(log), "%s.log", out);
    if (!training_says(err, expected) || !training_says(err, more)) fail_msg("%s: not \"%s\" with \"%s\"", err, expected, more);
}
