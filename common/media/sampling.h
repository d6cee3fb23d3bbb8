/* sampling.h -- which frames of a medium are looked at (docs/model.md, Frames).
 *
 *   middle  m = min(n, vlen); edges e_k = trunc(k vlen / m); index_k = floor((e_k + e_k+1 - 1) / 2); the last repeated up to n where `pad`
 *   fpsR    times 1/2R, 3/2R, ... below duration + 1/2R; index = round half to even(time * fps); those below vlen, the tail dropped
 *           so that the count is a multiple of floor(R) (no drop below R = 1)
 * An image is a clip of one frame: middle with n = 1. Indices are places in presentation order, 0 the first. */
#ifndef TPO_COMMON_MEDIA_SAMPLING_H
#define TPO_COMMON_MEDIA_SAMPLING_H

#include <stddef.h>
#include <stdint.h>

#include "common/status.h"

struct tpo_sampling {
    enum { TPO_SAMPLE_MIDDLE, TPO_SAMPLE_FPS } rule;
    int n;       /* middle: how many */
    int pad;     /* middle: repeat the last index up to n */
    double rate; /* fps: R, frames a second */
};

/* "middle" (n and pad stay as they are) or "fps8.0". INVALID_ARGUMENT "sampling_rule" for anything else, or a rate outside 0.001..1000. */
int tpo_sampling_parse(struct tpo_sampling *s, const char *rule, struct tpo_error *err);

/* Writes up to `max` indices into out and returns how many the rule yields (which may be more than max; 0 for a vlen or fps that is not
 * positive, and for fpsR on a clip too short for one group). out may be NULL with max 0. */
int64_t tpo_sampling_indices(const struct tpo_sampling *s, int32_t *out, int64_t max, int64_t vlen, double fps);

#endif
