/* resize.h -- bicubic resizing and normalisation of pictures (docs/model.md, Frames; the antialiased filter is torchvision's,
 * a = -0.5; without antialias a = -0.75). Half-pixel centres, aspect ratio not kept, edges by renormalised weights (antialias) or clamped taps.
 *
 *   tpo_resize_u8       src (H, W, 3) u8 interleaved -> dst (h, w, 3) u8, rounded to nearest and clamped to 0..255
 *   tpo_resize_f32      src (C, H, W) f32 planes -> dst (C, h, w) f32, not clamped (the mask head's order: /255, resize, normalise)
 *   tpo_normalise       dst (3, H, W) f32 = (src (H, W, 3) u8 / 255 - mean[c]) / std[c], mean and std in host memory
 * Bits are equal on every machine: integer positions, f32 weights, sums in order, no fused multiply-add across machines.
 * TPO_EINVAL when a size is not positive or a side exceeds 65535. */
#ifndef TPO_KERNELS_RESIZE_H
#define TPO_KERNELS_RESIZE_H

#include "kernels/stream.h"

int tpo_resize_u8(struct tpo_stream *s, uint8_t *dst, int h, int w, const uint8_t *src, int H, int W, int antialias);
int tpo_resize_f32(struct tpo_stream *s, float *dst, int h, int w, const float *src, int C, int H, int W, int antialias);
int tpo_normalise(struct tpo_stream *s, float *dst, const uint8_t *src, const float mean[3], const float std[3], int H, int W);

#endif
