/* This file owns the cases of the vision encoder, its tables and the Q-Former. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "nn/tables.h"
#include "tests/parity/encoder.h"

#define TABLE_MAX ((int64_t)1 << 26) /* elements of a table that a case may ask for */

void tpo_parity_vision_config(struct tpo_case *c, struct tpo_config *config, int width, int heads, int blocks, int patch,
                              int img_size, int frames)
{
    config->vision_encoder.encoder_embed_dim = width;
    config->vision_encoder.encoder_num_heads = heads;
    config->vision_encoder.encoder_depth = blocks;
    config->vision_encoder.return_index = -1;
    config->vision_encoder.patch_size = patch;
    config->vision_encoder.img_size = img_size;
    config->vision_encoder.num_frames = frames;
    config->vision_encoder.tubelet_size = tpo_case_size_or(c, "tubelet", 1);
    config->vision_encoder.checkpoint_frames = tpo_case_size_or(c, "checkpoint_frames_of_table", 4);
    config->vision_encoder.mlp_ratio = (float)tpo_case_number_or(c, "mlp_ratio", 4);
    config->vision_encoder.norm_eps = (float)tpo_case_number_or(c, "norm_eps", 1e-6);
    const int tubelet = config->vision_encoder.tubelet_size;
    if (width % heads != 0 || img_size % patch != 0 || frames % tubelet != 0 || config->vision_encoder.checkpoint_frames > 64)
        tpo_case_fail(c, "config: width %d, heads %d, img_size %d, patch %d, frames %d, tubelet %d do not fit together", width,
                      heads, img_size, patch, frames, tubelet);
    if (!(config->vision_encoder.mlp_ratio > 0.01F && config->vision_encoder.mlp_ratio < 64))
        tpo_case_fail(c, "config.mlp_ratio: out of range");
}

struct tpo_parity_pixels tpo_parity_tokens(struct tpo_parity_model *m, struct tpo_case *c)
{
    const int T = m->config.vision_encoder.num_frames, side = m->config.vision_encoder.img_size;
    struct tpo_parity_pixels p = {.B = tpo_case_dim(c, "input/pixels", 0)};
    const float *pixels = tpo_case_f32(c, "input/pixels", (int64_t)p.B * T * 3 * side * side);
    if (pixels == NULL) return p;
    p.patches = tpo_vit_patches(m->tape, &m->vit, pixels, p.B, T, tpo_case_find(c, "grad/input/pixels") != NULL);
    p.tokens = tpo_vit_forward(m->tape, &m->vit, p.patches, p.B);
    tpo_parity_check(m, c);
    if (p.tokens == NULL) tpo_case_fail(c, "the vision encoder's pass failed");
    return p;
}

void tpo_parity_pixel_gradient(struct tpo_parity_model *m, struct tpo_case *c, const struct tpo_parity_pixels *p)
{
    const int patch = m->config.vision_encoder.patch_size, tubelet = m->config.vision_encoder.tubelet_size;
    const int side = m->config.vision_encoder.img_size, grid = side / patch, T = m->config.vision_encoder.num_frames;
    const int64_t n = (int64_t)p->B * T * 3 * side * side;
    if (c->failed || tpo_case_find(c, "grad/input/pixels") == NULL || p->patches == NULL || p->patches->grad == NULL) return;
    float *pixels = malloc((size_t)n * sizeof(*pixels));
    for (int64_t k = 0; pixels != NULL && k < n; k++) {
        const int x = (int)(k % side), y = (int)(k / side % side), colour = (int)(k / side / side % 3),
                  t = (int)(k / side / side / 3 % T);
        const int64_t row = ((k / side / side / 3 / T * (T / tubelet) + t / tubelet) * grid + y / patch) * grid + x / patch;
        const int column = ((colour * tubelet + t % tubelet) * patch + y % patch) * patch + x % patch;
        pixels[k] = p->patches->grad[row * p->patches->cols + column];
    }
    tpo_case_compare(c, "grad/input/pixels", pixels, n, NULL);
    free(pixels);
}

void tpo_parity_vision_encoder(struct tpo_case *c)
{
    static const char *const keys[] = {"img_size",
                                       "patch",
                                       "width",
                                       "heads",
                                       "depth_config",
                                       "mlp_ratio",
                                       "frames",
                                       "batch",
                                       "grid",
                                       "blocks_built",
                                       "checkpoint_frames_of_table",
                                       "norm_eps",
                                       "final_layernorm_eps",
                                       "tubelet",
                                       NULL};
    struct tpo_parity_model m;
    tpo_case_keys(c, keys);
    tpo_parity_config(&m.config);
    tpo_parity_tasks(c, &m.config);
    const int built = tpo_case_has_key(c, "blocks_built") ? tpo_case_size(c, "blocks_built") : tpo_case_size(c, "depth_config") - 1;
    tpo_parity_vision_config(c, &m.config, tpo_case_size(c, "width"), tpo_case_size(c, "heads"), built, tpo_case_size(c, "patch"),
                             tpo_case_size(c, "img_size"), tpo_case_size(c, "frames"));
    if (tpo_case_number_or(c, "final_layernorm_eps", 1e-12) != 1e-12)
        tpo_case_fail(c, "config.final_layernorm_eps: the model's is 1e-12");
    if (tpo_parity_open(&m, c)) {
        const struct tpo_parity_pixels p = tpo_parity_tokens(&m, c);
        if (p.tokens != NULL) {
            struct tpo_tensor *normed = tpo_vit_norm(m.tape, &m.vit, p.tokens);
            tpo_parity_compare(&m, c, "output/tokens", p.tokens, NULL);
            tpo_parity_compare(&m, c, "output/tokens_ln", normed, NULL);
            tpo_parity_functional(&m, c, normed);
            tpo_parity_pixel_gradient(&m, c, &p);
        }
    }
    tpo_parity_close(&m);
}

/* --- tables ------------------------------------------------------------------------------------------------------------------- */

static void rows_compare(struct tpo_case *c, const char *rows_name, const char *name, const float *table, int64_t table_rows,
                         int width)
{
    if (tpo_case_find(c, name) == NULL) return;
    const struct tpo_golden *g = tpo_case_find(c, rows_name);
    const int32_t *rows = tpo_case_i32(c, rows_name, 0);
    if (rows == NULL) return;
    float *picked = malloc((size_t)g->size * (size_t)width * sizeof(*picked));
    for (int64_t i = 0; i < g->size && picked != NULL; i++) {
        if (rows[i] < 0 || rows[i] >= table_rows)
            tpo_case_fail(c, "%s: row %d of a table of %lld", rows_name, rows[i], (long long)table_rows);
        else
            memcpy(picked + i * width, table + (int64_t)rows[i] * width, (size_t)width * sizeof(*picked));
    }
    tpo_case_compare(c, name, picked, g->size * width, NULL);
    free(picked);
}

static void table_case(struct tpo_case *c, int frames, const char *rows_name, const char *name, const char *sums_name)
{
    const int width = tpo_case_size(c, "width"), tokens = tpo_case_size(c, "tokens_per_frame"),
              kept = tpo_case_size_or(c, "checkpoint_frames", 4);
    const int64_t n = (int64_t)(frames > kept ? frames : kept) * tokens * width;
    if (tpo_case_find(c, name) == NULL && tpo_case_find(c, sums_name) == NULL) return;
    if (n > TABLE_MAX) tpo_case_fail(c, "config: a table of %lld elements", (long long)n);
    float *table = c->failed ? NULL : malloc((size_t)n * sizeof(*table));
    if (table != NULL && tpo_table_video(table, frames, tokens, width, kept)) {
        double sums[2] = {0, 0};
        for (int64_t k = 0; k < (int64_t)frames * tokens * width; k++) {
            sums[0] += (double)table[k];
            sums[1] += (double)table[k] * (double)table[k];
        }
        rows_compare(c, rows_name, name, table, (int64_t)frames * tokens, width);
        tpo_case_compare(c, sums_name, (const float[]){(float)sums[0], (float)sums[1]}, 2, NULL);
    }
    free(table);
}

static void clip_table(struct tpo_case *c)
{
    const int width = tpo_case_size(c, "width"), grid = tpo_case_size(c, "grid"), frames = tpo_case_size(c, "frames");
    const struct tpo_golden *g = tpo_case_find(c, "input/rows");
    const int32_t *rows = tpo_case_i32(c, "input/rows", 0);
    if (width % 16 != 0) tpo_case_fail(c, "config.width: %d is no multiple of 16", width);
    if (rows == NULL || c->failed) return;
    float *picked = malloc((size_t)g->size * (size_t)width * sizeof(*picked));
    for (int64_t i = 0; i < g->size && picked != NULL; i++) {
        if (rows[i] < 0 || rows[i] > (int64_t)frames * grid * grid)
            tpo_case_fail(c, "input/rows: row %d is past the table", rows[i]);
        else
            tpo_table_clip_row(picked + i * width, rows[i], grid, width);
    }
    tpo_case_compare(c, "output/table", picked, g->size * width, NULL);
    free(picked);
}

void tpo_parity_positional_tables(struct tpo_case *c)
{
    static const char *const keys[] = {"width", "tokens_per_frame", "checkpoint_frames", "frames", "grid", NULL};
    tpo_case_keys(c, keys);
    if (tpo_case_find(c, "output/table") != NULL) {
        clip_table(c);
        return;
    }
    /* The video table's outputs carry a number of frames in their names, video16 and video16_sums; config says how many there
     * are. */
    const char *video = "output/video", *sums = "output/video_sums";
    for (int i = 0; i < c->n; i++) {
        const char *name = c->tensors[i].name, *end = strrchr(name, '_');
        if (strncmp(name, "output/video", 12) != 0) continue;
        if (end != NULL && strcmp(end, "_sums") == 0)
            sums = name;
        else
            video = name;
    }
    table_case(c, tpo_case_size_or(c, "frames", 1), "input/video_rows", video, sums);
    table_case(c, 1, "input/image_rows", "output/image", "output/image_sums");
}

/* --- Q-Former
 * ---------------------------------------------------------------------------------------------------------------------- */

/* cross_attention_layers must be every n-th from 0 on. */
static int cross_frequency(struct tpo_case *c, int layers)
{
    const json_t *list = json_object_get(c->config, "cross_attention_layers");
    if (list == NULL) return 2;
    const size_t n = json_array_size(list);
    const int freq = n > 1 ? (int)json_integer_value(json_array_get(list, 1)) : layers;
    for (size_t i = 0; i < n; i++)
        if (freq < 1 || !json_is_integer(json_array_get(list, i)) ||
            json_integer_value(json_array_get(list, i)) != (json_int_t)i * freq)
            tpo_case_fail(c, "config.cross_attention_layers: not every n-th from 0");
    if (n == 0 || (int)n != (layers + freq - 1) / (freq > 0 ? freq : 1))
        tpo_case_fail(c, "config.cross_attention_layers: not every n-th of %d", layers);
    return freq > 0 ? freq : 1;
}

static void qformer_config(struct tpo_case *c, struct tpo_config *config)
{
    config->bridge.hidden_size = tpo_case_size(c, "width");
    config->bridge.num_hidden_layers = tpo_case_size(c, "layers");
    config->bridge.num_attention_heads = tpo_case_size(c, "heads");
    config->bridge.intermediate_size = tpo_case_size(c, "ffn");
    config->bridge.vocab_size = tpo_case_size_or(c, "vocab", 1);
    config->bridge.max_position_embeddings = tpo_case_size_or(c, "max_positions", 1);
    config->bridge.num_query_token = tpo_case_size(c, "queries");
    config->bridge.extra_num_query_token = tpo_case_has_key(c, "extra_queries") ? tpo_case_int(c, "extra_queries") : 0;
    config->bridge.cross_attention_freq = cross_frequency(c, config->bridge.num_hidden_layers);
    config->vision_encoder.encoder_embed_dim = tpo_case_size(c, "vision_width");
    config->vision_encoder.encoder_num_heads = 1;
    config->llm.hidden_size = tpo_case_size_or(c, "llm_width", 1);
    if (config->bridge.hidden_size % config->bridge.num_attention_heads != 0)
        tpo_case_fail(c, "config: width and heads do not fit together");
    if (tpo_case_number_or(c, "layernorm_eps", 1e-12) != 1e-12) tpo_case_fail(c, "config.layernorm_eps: the model's is 1e-12");
    if (strcmp(tpo_case_string_or(c, "gelu", "erf"), "erf") != 0) tpo_case_fail(c, "config.gelu: the model's is erf");
}

static void qformer_text(struct tpo_case *c, struct tpo_qformer_input *in, const struct tpo_config *config)
{
    if (tpo_case_find(c, "input/text_ids") == NULL) return;
    in->text_length = tpo_case_dim(c, "input/text_ids", 1);
    in->text_ids = tpo_case_i32(c, "input/text_ids", (int64_t)in->B * in->text_length);
    in->text_mask = tpo_case_i32(c, "input/text_mask", (int64_t)in->B * in->text_length);
    if (in->text_length > config->bridge.max_position_embeddings)
        tpo_case_fail(c, "input/text_ids: longer than config.max_positions");
    for (int k = 0; in->text_ids != NULL && k < in->B * in->text_length; k++)
        if (in->text_ids[k] < 0 || in->text_ids[k] >= config->bridge.vocab_size)
            tpo_case_fail(c, "input/text_ids: id %d", in->text_ids[k]);
}

void tpo_parity_qformer(struct tpo_case *c)
{
    static const char *const keys[] = {"width",         "layers",
                                       "heads",         "ffn",
                                       "vocab",         "max_positions",
                                       "vision_width",  "queries",
                                       "extra_queries", "llm_width",
                                       "visual_tokens", "batch",
                                       "layernorm_eps", "cross_attention_layers",
                                       "mask_value",    "gelu",
                                       "text_length",   "text_padding",
                                       "text_valid",    NULL};
    struct tpo_parity_model m;
    tpo_case_keys(c, keys);
    tpo_parity_config(&m.config);
    tpo_parity_tasks(c, &m.config);
    qformer_config(c, &m.config);
    if (tpo_parity_open(&m, c)) {
        struct tpo_qformer_input in = {.B = tpo_case_dim(c, "input/visual", 0), .N = tpo_case_dim(c, "input/visual", 1)};
        qformer_text(c, &in, &m.config);
        in.visual = tpo_parity_input(&m, c, "visual", in.B * in.N, m.config.vision_encoder.encoder_embed_dim);
        if (in.visual != NULL && !c->failed) {
            struct tpo_tensor *rows = tpo_qformer_forward(m.tape, &m.qformer, &in);
            tpo_parity_compare(&m, c, "output/query_rows", rows, NULL);
            struct tpo_tensor *last = rows;
            if (tpo_case_find(c, "weight/project_up.weight") != NULL) {
                last = tpo_decoder_project(m.tape, &m.decoder, rows);
                tpo_parity_compare(&m, c, "output/visual_embeddings", last, NULL);
            }
            tpo_parity_functional(&m, c, last);
            tpo_parity_input_gradient(c, "visual", in.visual);
        }
    }
    tpo_parity_close(&m);
}
