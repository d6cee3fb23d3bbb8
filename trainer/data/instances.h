/* instances.h -- the boxes of COCO's instances.json, by id: {images: [{id, file_name, width, height}], annotations: [{id, image_id, bbox: [x, y,
 * w, h] in pixels}]}. Read whole; 40 bytes an annotation are kept, and the pictures' names. */
#ifndef TPO_TRAINER_DATA_INSTANCES_H
#define TPO_TRAINER_DATA_INSTANCES_H

#include <stdint.h>

#include "common/arena.h"
#include "common/status.h"

struct tpo_instance {
    int64_t id;
    float box[4];       /* corners x0 y0 x1 y1 over the picture's width and height, within 0..1 */
    const char *medium; /* file_name of its picture; NULL where that has none */
    const char *fault;  /* why the box may not be used, NULL: it may */
};

struct tpo_instances {
    struct tpo_instance *items; /* by id */
    int64_t n;
    struct tpo_arena names;
};

/* A box that is not four finite numbers, is inverted, without area, outside its picture by more than half a pixel, or of a picture without a size, is
 * kept with its fault; what has no id (a whole number) is nobody's. NOT_FOUND "annotations" for a missing file, INVALID_ARGUMENT "annotations" for
 * one that is no JSON. free accepts the zeroed. */
int tpo_instances_load(struct tpo_instances *s, const char *path, struct tpo_error *err);
void tpo_instances_free(struct tpo_instances *s);

const struct tpo_instance *tpo_instances_find(const struct tpo_instances *s, int64_t id); /* NULL: there is none */

#endif
