/* picture.h -- the frame that an answer's boxes are about, with the boxes drawn on it, as a PNG. */
#ifndef TPO_CLI_PICTURE_H
#define TPO_CLI_PICTURE_H

#include <stdint.h>

#include "common/status.h"

struct tpo_drawn_box {
    double x0, y0, x1, y1; /* pixels of the displayed picture */
};

/* Decodes frame `index` of `media` (tpo-media does, beside this program) and writes it to `png`. */
int tpo_picture_write(const char *png, const char *media, int32_t index, const struct tpo_drawn_box *boxes, int n,
                      struct tpo_error *err);

#endif
