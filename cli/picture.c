/* This file owns the drawing of boxes. */
#include "cli/picture.h"

#include <math.h>
#include <png.h>
#include <stdlib.h>
#include <string.h>

#include "common/media/media.h"

static void put(uint8_t *rgb, int width, int height, int x, int y, const uint8_t colour[3])
{
    if (x >= 0 && y >= 0 && x < width && y < height) memcpy(rgb + 3 * ((int64_t)y * width + x), colour, 3);
}

/* The pixel next to `x`, one outside the picture at most: a box may say anything. */
static int edge(double x, int side)
{
    return x > -1 ? x < side ? (int)lround(x) : side : -1;
}

/* A light line with a dark one outside, so that it shows on any ground. */
static void draw(uint8_t *rgb, int width, int height, const struct tpo_drawn_box *b)
{
    static const uint8_t light[3] = {255, 240, 0}, dark[3] = {0, 0, 0};
    int thick = width > 600 || height > 600 ? 3 : 1;
    for (int t = -1; t < thick; t++) {
        int x0 = edge(b->x0, width) + t, y0 = edge(b->y0, height) + t, x1 = edge(b->x1, width) - 1 - t,
            y1 = edge(b->y1, height) - 1 - t;
        const uint8_t *colour = t < 0 ? dark : light;
        for (int x = x0; x <= x1; x++) put(rgb, width, height, x, y0, colour), put(rgb, width, height, x, y1, colour);
        for (int y = y0; y <= y1; y++) put(rgb, width, height, x0, y, colour), put(rgb, width, height, x1, y, colour);
    }
}

static int decode(uint8_t **rgb, struct tpo_media_info *info, const char *media, int32_t index, struct tpo_error *err)
{
    struct tpo_media_options options = {0};
    tpo_media_t *pool = NULL;
    tpo_media_file_t *file = NULL;
    *rgb = NULL;
    int rc = tpo_media_open(&pool, &options, err);
    if (rc == TPO_OK) rc = tpo_media_file_open(pool, &file, media, 0, err);
    if (rc == TPO_OK) {
        *info = *tpo_media_file_info(file);
        *rgb = malloc((size_t)info->width * (size_t)info->height * 3);
        rc = *rgb != NULL ? tpo_media_read_into(file, &index, 1, *rgb, NULL, 0, err)
                          : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a frame");
    }
    tpo_media_file_close(file);
    tpo_media_close(pool);
    return rc;
}

int tpo_picture_write(const char *png, const char *media, int32_t index, const struct tpo_drawn_box *boxes, int n,
                      struct tpo_error *err)
{
    struct tpo_media_info info;
    uint8_t *rgb;
    int rc = decode(&rgb, &info, media, index, err);
    if (rc == TPO_OK) {
        png_image image = {.version = PNG_IMAGE_VERSION,
                           .width = (png_uint_32)info.width,
                           .height = (png_uint_32)info.height,
                           .format = PNG_FORMAT_RGB};
        for (int i = 0; i < n; i++) draw(rgb, info.width, info.height, &boxes[i]);
        if (!png_image_write_to_file(&image, png, 0, rgb, 0, NULL))
            rc = tpo_fail(err, TPO_FAILED_PRECONDITION, "file", "%s: %s", png, image.message);
    }
    free(rgb);
    return rc;
}
