/* This file owns the ViT: its tensors, its tables, its forward pass. */
#include "services/encoder/vit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/rows.h"
#include "nn/tables.h"

#define ENCODER   "vision_encoder.encoder."
#define FINAL_EPS 1e-12F /* vision_layernorm's, a constant of the published model */

static void block_declare(struct tpo_vit_block *b, struct tpo_params *p, int index, int C, int F)
{
    const float s = 0.7F;
    char name[64];
    snprintf(name, sizeof(name), ENCODER "blocks.%d", index);
    b->norm1_w = tpo_params_declare(p, TPO_INIT_ONE, 1, TPO_SHAPE(C), "%s.norm1.weight", name);
    b->norm1_b = tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(C), "%s.norm1.bias", name);
    b->q_bias = tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(C), "%s.attn.q_bias", name);
    b->v_bias = tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(C), "%s.attn.v_bias", name);
    b->qkv = tpo_param_of_product(tpo_params_declare(p, TPO_INIT_FAN_IN, s, TPO_SHAPE(3 * C, C), "%s.attn.qkv.weight", name));
    b->proj_w = tpo_param_of_product(tpo_params_declare(p, TPO_INIT_FAN_IN, s, TPO_SHAPE(C, C), "%s.attn.proj.weight", name));
    b->proj_b = tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(C), "%s.attn.proj.bias", name);
    b->norm2_w = tpo_params_declare(p, TPO_INIT_ONE, 1, TPO_SHAPE(C), "%s.norm2.weight", name);
    b->norm2_b = tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(C), "%s.norm2.bias", name);
    b->fc1_w = tpo_param_of_product(tpo_params_declare(p, TPO_INIT_FAN_IN, s, TPO_SHAPE(F, C), "%s.mlp.fc1.weight", name));
    b->fc1_b = tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(F), "%s.mlp.fc1.bias", name);
    b->fc2_w = tpo_param_of_product(tpo_params_declare(p, TPO_INIT_FAN_IN, s, TPO_SHAPE(C, F), "%s.mlp.fc2.weight", name));
    b->fc2_b = tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(C), "%s.mlp.fc2.bias", name);
}

int tpo_vit_declare(struct tpo_vit *v, struct tpo_params *p, const struct tpo_config *c)
{
    const int C = c->vision_encoder.encoder_embed_dim, patch = c->vision_encoder.patch_size;
    memset(v, 0, sizeof(*v));
    v->config = c;
    v->n_blocks = tpo_config_vit_blocks(c);
    v->blocks = calloc((size_t)(v->n_blocks > 0 ? v->n_blocks : 1), sizeof(*v->blocks));
    if (v->blocks == NULL) return TPO_ENOMEM;
    v->patch_w = tpo_params_declare(p, TPO_INIT_FAN_IN, 0.7F, TPO_SHAPE(C, 3, c->vision_encoder.tubelet_size, patch, patch),
                                    ENCODER "patch_embed.proj.weight");
    v->patch_b = tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(C), ENCODER "patch_embed.proj.bias");
    if (c->vision_encoder.ext_position) {
        v->position = tpo_params_declare(p, TPO_INIT_SINCOS_2D, 1, TPO_SHAPE(tpo_config_patches(c), C), "ext.encoder.position");
        v->frame_position = tpo_params_declare(p, TPO_INIT_NORMAL_LATER, 0.5F, TPO_SHAPE(c->vision_encoder.num_frames, C),
                                               "ext.encoder.frame_position");
    }
    const int F = (int)lroundf((float)C * c->vision_encoder.mlp_ratio);
    for (int i = 0; i < v->n_blocks; i++) block_declare(&v->blocks[i], p, i, C, F);
    v->norm_w = tpo_params_declare(p, TPO_INIT_ONE, 1, TPO_SHAPE(C), "vision_layernorm.weight");
    v->norm_b = tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(C), "vision_layernorm.bias");
    return v->norm_b != NULL ? TPO_OK : TPO_ENOMEM;
}

void tpo_vit_close(struct tpo_vit *v)
{
    free(v->blocks);
    memset(v, 0, sizeof(*v));
}

/* Learned positions: row p of `position` for patch p, and from the second frame on row t of `frame_position`, so that an image
 * is a clip of one. */
static struct tpo_tensor *learned_table(struct tpo_tape *t, const struct tpo_vit *v, int n_frames, int patches, int C)
{
    struct tpo_tensor *position = tpo_param_tensor(t, v->position, patches, C);
    if (n_frames == 1) return position;
    const int rows = n_frames * patches;
    int32_t *patch = tpo_arena_alloc(tpo_tape_arena(t), (size_t)rows * sizeof(*patch));
    int32_t *frame = tpo_arena_alloc(tpo_tape_arena(t), (size_t)rows * sizeof(*frame));
    if (patch == NULL || frame == NULL) return NULL;
    for (int n = 0; n < rows; n++) {
        patch[n] = n % patches;
        frame[n] = n / patches > 0 ? n / patches : -1;
    }
    struct tpo_tensor *times = tpo_param_tensor(t, v->frame_position, v->config->vision_encoder.num_frames, C);
    return tpo_plus(t, tpo_take_rows(t, position, patch, rows), tpo_take_rows(t, times, frame, rows));
}

static struct tpo_tensor *position_table(struct tpo_tape *t, const struct tpo_vit *v, int n_frames)
{
    const int C = v->config->vision_encoder.encoder_embed_dim, patches = tpo_config_patches(v->config);
    if (v->position != NULL) return learned_table(t, v, n_frames, patches, C);
    float *table = tpo_arena_alloc(tpo_tape_arena(t), (size_t)n_frames * (size_t)patches * (size_t)C * sizeof(*table));
    if (table == NULL || !tpo_table_video(table, n_frames, patches, C, v->config->vision_encoder.checkpoint_frames)) return NULL;
    return tpo_input(t, table, n_frames * patches, C, false);
}

static struct tpo_tensor *block_forward(struct tpo_tape *t, const struct tpo_vit *v, const struct tpo_vit_block *b,
                                        struct tpo_tensor *x, int B)
{
    const int C = x->cols, H = v->config->vision_encoder.encoder_num_heads, N = x->rows / B;
    const float eps = v->config->vision_encoder.norm_eps;
    const struct tpo_attention_shape shape = {
        .B = B, .T = N, .S = N, .H = H, .G = H, .D = C / H, .scale = 1 / sqrtf((float)(C / H))};
    struct tpo_tensor *a = tpo_norm_layer(t, x, b->norm1_w, b->norm1_b, eps);
    struct tpo_tensor *qkv = tpo_product(t, a, tpo_param_tensor(t, b->qkv, 3 * C, C), tpo_qkv_bias(t, b->q_bias, b->v_bias));
    struct tpo_tensor *o =
        tpo_attend(t, tpo_columns(t, qkv, 0, C), tpo_columns(t, qkv, C, C), tpo_columns(t, qkv, 2 * C, C), &shape);
    x = tpo_plus(t, x, tpo_linear(t, o, b->proj_w, b->proj_b));
    struct tpo_tensor *h = tpo_linear(t, tpo_norm_layer(t, x, b->norm2_w, b->norm2_b, eps), b->fc1_w, b->fc1_b);
    return tpo_plus(t, x, tpo_linear(t, tpo_act_gelu(t, h), b->fc2_w, b->fc2_b));
}

struct tpo_tensor *tpo_vit_patches(struct tpo_tape *t, const struct tpo_vit *v, const float *pixels, int B, int T, bool needs_grad)
{
    const int side = v->config->vision_encoder.img_size, patch = v->config->vision_encoder.patch_size;
    const int tubelet = v->config->vision_encoder.tubelet_size, K = 3 * tubelet * patch * patch;
    struct tpo_tensor *rows = tpo_input(t, NULL, B * (T / tubelet) * tpo_config_patches(v->config), K, needs_grad);
    if (rows == NULL) return NULL;
    return tpo_tape_check(t, tpo_patchify(tpo_tape_stream(t), rows->data, pixels, B, T, side, side, patch, tubelet)) ? rows : NULL;
}

struct tpo_tensor *tpo_vit_forward(struct tpo_tape *t, const struct tpo_vit *v, struct tpo_tensor *patches, int B)
{
    if (patches == NULL) return NULL;
    const int frames = patches->rows / (B * tpo_config_patches(v->config));
    /* One scope for all blocks, so that a block's result takes the place of the last one's; where it fell into the tape's next piece of memory, a new one. */
    struct tpo_scope scope = tpo_scope_begin(t);
    struct tpo_tensor *x = tpo_plus_rows(t, tpo_linear(t, patches, v->patch_w, v->patch_b), position_table(t, v, frames));
    for (int i = 0; i < v->n_blocks && x != NULL; i++) {
        x = tpo_scope_end(t, scope, block_forward(t, v, &v->blocks[i], x, B));
        const struct tpo_scope now = tpo_scope_begin(t);
        if (now.block != scope.block || now.last != scope.last) scope = now;
    }
    return x;
}

struct tpo_tensor *tpo_vit_norm(struct tpo_tape *t, const struct tpo_vit *v, struct tpo_tensor *tokens)
{
    return tpo_norm_layer(t, tokens, v->norm_w, v->norm_b, FINAL_EPS);
}
