/* vit.h -- the UMT video transformer (docs/model.md, Vision encoder): pixels to patch tokens. Only services/encoder and
 * the parity runner see it. */
#ifndef TPO_SERVICES_ENCODER_VIT_H
#define TPO_SERVICES_ENCODER_VIT_H

#include "nn/config.h"
#include "nn/tape.h"

struct tpo_vit_block {
    struct tpo_param *norm1_w, *norm1_b, *q_bias, *v_bias, *qkv, *proj_w, *proj_b, *norm2_w, *norm2_b, *fc1_w, *fc1_b, *fc2_w,
        *fc2_b;
};

struct tpo_vit {
    const struct tpo_config *config; /* borrowed */
    struct tpo_param *patch_w, *patch_b;
    struct tpo_param *position, *frame_position; /* ext_position only */
    int n_blocks;
    struct tpo_vit_block *blocks;
    struct tpo_param *norm_w, *norm_b; /* vision_layernorm */
};

int tpo_vit_declare(struct tpo_vit *v, struct tpo_params *p, const struct tpo_config *c);
void tpo_vit_close(struct tpo_vit *v);

/* Normalised pixels (B, T, 3, H, W) on the stream's device -> (B * T/tubelet * patches, 3 * tubelet * patch * patch),
 * kernels/rows.h's order. */
struct tpo_tensor *tpo_vit_patches(struct tpo_tape *t, const struct tpo_vit *v, const float *pixels, int B, int T, bool needs_grad);
/* Those -> tokens (same rows, width) before vision_layernorm. */
struct tpo_tensor *tpo_vit_forward(struct tpo_tape *t, const struct tpo_vit *v, struct tpo_tensor *patches, int B);
struct tpo_tensor *tpo_vit_norm(struct tpo_tape *t, const struct tpo_vit *v, struct tpo_tensor *tokens);

#endif
