/* This file owns the digests of a stage's data. */
#include "trainer/steps/data_digest.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common/files.h"

static void draw_add(tpo_sha256_t *h, const struct tpo_recipe_data *d)
{
    const struct tpo_world_draw *w = &d->draw;
    const float weights[] = {d->share, w->outermost, w->weight_description, w->weight_end};
    const int32_t kinds[] = {d->samples,       w->n_frames, w->n_conversations,  w->min_objects,
                             (int32_t)w->aids, w->dense,    (int32_t)w->without, w->slots};
    tpo_sha256_add(h, weights, sizeof(weights));
    tpo_sha256_add(h, kinds, sizeof(kinds));
    tpo_sha256_add(h, w->mix, sizeof(w->mix));
}

static int file_add(tpo_sha256_t *h, const char *path, struct tpo_error *err)
{
    uint8_t digest[TPO_SHA256_BYTES];
    if (!tpo_file_sha256(digest, path))
        return tpo_fail(err, TPO_NOT_FOUND, "annotations", "%.200s cannot be read: %s", path, strerror(errno));
    tpo_sha256_add(h, digest, sizeof(digest));
    return TPO_OK;
}

static int rows_add(tpo_sha256_t *h, const struct tpo_recipe_data *d, struct tpo_error *err)
{
    char beside[4096];
    const int32_t source = d->source;
    tpo_sha256_add(h, &source, sizeof(source));
    tpo_sha256_add(h, d->split, strlen(d->split) + 1);
    const int rc = file_add(h, d->annotations, err);
    if (rc != TPO_OK || d->source != TPO_ANNOTATIONS_REFCOCO) return rc;
    tpo_annotations_instances(beside, sizeof(beside), d->annotations);
    return file_add(h, d->instances != NULL ? d->instances : beside, err);
}

int tpo_data_digest(struct tpo_data_digest *out, const struct tpo_recipe_data *d, struct tpo_error *err)
{
    tpo_sha256_t *h = tpo_sha256_open();
    draw_add(h, d);
    tpo_sha256_end_hex(h, out->draw);
    const int rc = d->annotations != NULL ? rows_add(h, d, err) : TPO_OK;
    tpo_sha256_end_hex(h, out->rows);
    if (d->annotations == NULL) memset(out->rows, 0, sizeof(out->rows)); /* the whole field is compared */
    tpo_sha256_close(h);
    return rc;
}
