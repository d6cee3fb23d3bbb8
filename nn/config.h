/* config.h -- the model's dimensions, read from the folder's config.json; every size in the program comes from here.
 *
 * Keys are the published ones (under "model_config"), plus those of docs/model-folder.md for what that file lacks; an
 * absent key takes the published model's value. Strict otherwise: a key of the wrong type, a size below 1 or above its bound, heads that
 * do not divide a width, an unknown key under a section we own: INVALID_ARGUMENT naming the key's path. */
#ifndef TPO_NN_CONFIG_H
#define TPO_NN_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "common/sha256.h"
#include "common/status.h"

#define TPO_TASKS_MAX 8
#define TPO_TOKEN_MAX 32

/* One task of `tasks: [{name, trigger, slot, vector}]`: the token that calls it, the token whose place v_i takes, v_i's tensor. */
struct tpo_task {
    char name[24];               /* "region" */
    char trigger[TPO_TOKEN_MAX]; /* "<box_begin>" */
    char slot[TPO_TOKEN_MAX];    /* "<boxes>" */
    char vector[TPO_TOKEN_MAX];  /* "box_token" */
    int trigger_id, slot_id;     /* from added_tokens.json */
};

struct tpo_config {
    struct {
        int img_size, patch_size, encoder_embed_dim, encoder_depth, encoder_num_heads, num_frames, tubelet_size, checkpoint_frames;
        int return_index; /* -2: one block fewer than encoder_depth is built */
        float mlp_ratio;
        float norm_eps; /* 1e-6 */
        bool
            ext_position; /* ext.encoder.position (patches, width) and ext.encoder.frame_position (num_frames, width) instead of the
                                fixed sine table; a clip may then hold 1..num_frames frames */
        bool temporal_pad; /* a clip always has num_frames rows, as the published one */
    } vision_encoder;
    struct {
        int num_query_token, extra_num_query_token, hidden_size, num_hidden_layers, num_attention_heads, intermediate_size;
        int cross_attention_freq, vocab_size, max_position_embeddings;
        float dropout, drop_path_rate; /* qformer_hidden_dropout_prob */
        bool
            ext_key_position; /* ext.encoder.key_position (patches, vision width), added to keys and values of the cross attention */
    } bridge;
    struct {
        int hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim, intermediate_size, vocab_size;
        float rms_norm_eps;
        double rope_theta;
        bool use_lora;
        int lora_r;
        float lora_alpha, lora_dropout;
        bool ext_slot_position; /* ext.router.slot_position (queries, hidden), added after project_up */
    } llm;
    int region_hidden_size;      /* heads.region.hidden_size */
    int box_encoder_hidden_size; /* box_encoder.hidden_size */
    bool bos_per_segment;        /* tokenizer.bos_per_segment */
    bool head_context_trained;   /* head_context: "trained" (default) or "reference" (docs/model.md, Task token) */
    float image_mean[3], image_std[3];
    int n_tasks;
    struct tpo_task tasks[TPO_TASKS_MAX];
    int track_box_id; /* "<track_box>" of added_tokens.json */
    bool keep_bf16;   /* not of the file: --dtype bf16, products' weights stay as they are mapped */
};

/* Blocks that are built: encoder_depth + return_index + 1. */
int tpo_config_vit_blocks(const struct tpo_config *c);
int tpo_config_patches(const struct tpo_config *c); /* of one frame */
int tpo_config_queries(const struct tpo_config *c);

void tpo_config_default(struct tpo_config *c);                                        /* the published model */
int tpo_config_load(struct tpo_config *c, const char *folder, struct tpo_error *err); /* config.json and added_tokens.json */
/* SHA-256 of config.json's bytes: who trains a service with other hyperparameters would train something else in silence. */
int tpo_config_hash(char hex[TPO_SHA256_HEX], const char *folder, struct tpo_error *err);
/* SHA-256 of what decides what an id means: added_tokens.json and tokenizer.model, the name (with its NUL) before the bytes of each. "" where one of
 * them cannot be read: a folder of a service that needs no tokenizer. */
void tpo_config_tokens_hash(char hex[TPO_SHA256_HEX], const char *folder);

#endif
