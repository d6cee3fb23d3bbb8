/* rope.h -- rotary position embedding, half-split pairing (Su et al. 2021, arXiv:2104.09864; Hugging Face's Llama/Mistral layout).
 *
 * Channel i < D/2 is paired with i + D/2; angle = position * theta^(-2i/D), formed in f64, so that positions of any size keep cos and sin
 * within 2e-6.
 *
 *   tpo_rope_table   cos, sin (n, D/2) f32 for the n positions given
 *   tpo_rope         x (M, H, D) with row distance ld, rotated in place by row m's table row; inverse != 0 rotates back, which is the gradient */
#ifndef TPO_KERNELS_ROPE_H
#define TPO_KERNELS_ROPE_H

#include "kernels/stream.h"

int tpo_rope_table(struct tpo_stream *s, float *cos_table, float *sin_table, const int32_t *positions, double theta, int n, int D);
int tpo_rope(struct tpo_stream *s, float *x, int ld, const float *cos_table, const float *sin_table, int inverse, int M, int H,
             int D);

#endif
