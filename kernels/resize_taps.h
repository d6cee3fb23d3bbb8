/* resize_taps.h -- which inputs make an output of a bicubic resize, and how much each weighs: one side of the picture. Shared by both twins, so that
 * their weights are the same bits.
 *
 * Antialiased: tap j of output i weighs w((j + 1/2 - c) / max(s, 1)), c = s (i + 1/2), s = in / out, over |j + 1/2 - c| < 2 max(s, 1),
 * divided by the sum of the weights inside the picture; w is Keys' cubic with a = -1/2. Otherwise four taps around s (i + 1/2) - 1/2,
 * clamped to the picture, a = -3/4 (Keys 1981, "Cubic Convolution Interpolation for Digital Image Processing"). */
#ifndef TPO_KERNELS_RESIZE_TAPS_H
#define TPO_KERNELS_RESIZE_TAPS_H

#include "kernels/resize.h"

#define TPO_SIDE_MAX 65535

/* Output i is the sum over k < n[i] of weight[i * taps + k] * in[at[i * taps + k]]. Host memory. */
struct tpo_side {
    int *at, *n;
    float *weight;
    int taps;
};

/* TPO_ENOMEM; sizes as tpo_resize_sizes_ok wants them. */
int tpo_side_init(struct tpo_side *s, int in, int out, int antialias);
void tpo_side_free(struct tpo_side *s);

static inline int tpo_resize_sizes_ok(int h, int w, int H, int W)
{
    return h > 0 && w > 0 && H > 0 && W > 0 && h <= TPO_SIDE_MAX && w <= TPO_SIDE_MAX && H <= TPO_SIDE_MAX && W <= TPO_SIDE_MAX;
}

#endif
