/* picture.h -- a decoded frame of any pixel format to upright RGB u8 of the displayed size.
 *
 * Colour matrix and range are the frame's own (unspecified: BT.601, limited; full for grey and for JPEG's formats); alpha is dropped, not blended. */
#ifndef TPO_COMMON_MEDIA_WORKER_PICTURE_H
#define TPO_COMMON_MEDIA_WORKER_PICTURE_H

#include <libavutil/frame.h>
#include <stdint.h>

/* Where a stored pixel is shown: x' = xx x + yx y, y' = xy x + yy y, each -1, 0 or 1 (y down), moved so that the picture begins at 0, 0. */
struct tpo_rotation {
    int xx, xy, yx, yy;
};

/* From a display matrix of nine 16.16 numbers; NULL and any matrix that is no multiple of a quarter turn or a mirror give the identity. */
struct tpo_rotation tpo_rotation_of(const int32_t *matrix);

struct tpo_picture {
    struct SwsContext *sws;
    int key[8];   /* what sws was made for */
    uint8_t *rgb; /* converted, not yet turned */
    size_t rgb_bytes;
};

/* Writes (height, width, 3) to dst. stored_w and stored_h are the size before the turn, with square pixels. 0, or a negative AVERROR. */
int tpo_picture_render(struct tpo_picture *p, uint8_t *dst, const AVFrame *frame, struct tpo_rotation turn, int stored_w,
                       int stored_h);
void tpo_picture_free(struct tpo_picture *p);

#endif
