/* This file owns the cases of the splice and of the region head's loss. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/loss.h"
#include "services/region/region.h"
#include "tests/parity/encoder.h"
#include "tests/parity/llm.h"

static void splice_config(struct tpo_case *c, struct tpo_config *config)
{
    config->llm.hidden_size = tpo_case_size(c, "llm_width");
    config->llm.vocab_size = tpo_case_size(c, "vocab");
    config->bridge.hidden_size = tpo_case_size(c, "query_width");
    config->bridge.num_query_token = tpo_case_size(c, "queries");
    config->bridge.extra_num_query_token = tpo_case_has_key(c, "extra_queries") ? tpo_case_int(c, "extra_queries") : 0;
    config->bridge.vocab_size = config->bridge.max_position_embeddings = 1;
    config->bridge.num_attention_heads = tpo_case_size_or(c, "query_heads", 1);
    config->bridge.num_hidden_layers = tpo_case_size_or(c, "query_layers", 1);
    config->bridge.intermediate_size = tpo_case_size_or(c, "query_ffn", 1);
    config->box_encoder_hidden_size = tpo_case_size_or(c, "box_encoder_hidden", 1);
    if (config->bridge.hidden_size % config->bridge.num_attention_heads != 0)
        tpo_case_fail(c, "config: query_width and query_heads do not fit together");
    if (tpo_case_has_key(c, "vision_width"))
        tpo_parity_vision_config(c, config, tpo_case_size(c, "vision_width"), tpo_case_size(c, "vision_heads"),
                                 tpo_case_size(c, "blocks_built"), tpo_case_size(c, "patch"), tpo_case_size(c, "img_size"),
                                 tpo_case_size(c, "frames"));
}

/* Connector rows: given, or computed from pixels. */
static struct tpo_tensor *query_rows(struct tpo_parity_model *m, struct tpo_case *c, struct tpo_parity_pixels *p)
{
    const int queries = tpo_config_queries(&m->config);
    if (tpo_case_find(c, "input/query_rows") != NULL)
        return tpo_parity_input(m, c, "query_rows", tpo_case_dim(c, "input/query_rows", 0) * queries, m->config.bridge.hidden_size);
    if (tpo_case_find(c, "input/pixels") == NULL) return NULL;
    *p = tpo_parity_tokens(m, c);
    if (p->tokens == NULL) return NULL;
    const struct tpo_qformer_input in = {
        .visual = tpo_vit_norm(m->tape, &m->vit, p->tokens), .B = p->B, .N = p->tokens->rows / p->B};
    return in.visual != NULL ? tpo_qformer_forward(m->tape, &m->qformer, &in) : NULL;
}

int32_t *tpo_parity_visual_index(struct tpo_case *c, const char *name, int n, int rows)
{
    const float *flags = tpo_case_f32(c, name, n);
    int32_t *visual = malloc((size_t)n * sizeof(*visual));
    int found = 0;
    for (int k = 0; flags != NULL && visual != NULL && k < n; k++) visual[k] = flags[k] != 0 ? found++ : -1;
    if (flags != NULL && found != rows) tpo_case_fail(c, "%s: %d rows are flagged, there are %d", name, found, rows);
    return visual;
}

void tpo_parity_splice(struct tpo_case *c)
{
    static const char *const keys[] = {"llm_width",
                                       "vocab",
                                       "query_width",
                                       "query_heads",
                                       "query_layers",
                                       "query_ffn",
                                       "queries",
                                       "extra_queries",
                                       "vision_width",
                                       "vision_heads",
                                       "blocks_built",
                                       "patch",
                                       "img_size",
                                       "frames",
                                       "mlp_ratio",
                                       "tubelet",
                                       "norm_eps",
                                       "checkpoint_frames_of_table",
                                       "box_encoder_hidden",
                                       "added_token_ids",
                                       "media",
                                       "batch",
                                       "length",
                                       NULL};
    struct tpo_parity_model m;
    tpo_case_keys(c, keys);
    tpo_parity_config(&m.config);
    tpo_parity_tasks(c, &m.config);
    splice_config(c, &m.config);
    if (tpo_parity_open(&m, c)) {
        const int n = tpo_case_dim(c, "input/ids", 0) * tpo_case_dim(c, "input/ids", 1);
        const int32_t *ids = tpo_case_i32(c, "input/ids", n);
        struct tpo_parity_pixels pixels = {0};
        struct tpo_tensor *rows = query_rows(&m, c, &pixels), *boxes = NULL;
        if (tpo_case_find(c, "input/box") != NULL) boxes = tpo_parity_input(&m, c, "box", tpo_case_dim(c, "input/box", 0), 4);
        struct tpo_tensor *projected = rows != NULL ? tpo_decoder_project(m.tape, &m.decoder, rows) : NULL;
        int32_t *visual = projected != NULL ? tpo_parity_visual_index(c, "input/visual_flag", n, projected->rows) : NULL;
        tpo_parity_check(&m, c);
        for (int k = 0; ids != NULL && k < n; k++)
            if (ids[k] < 0 || ids[k] >= m.config.llm.vocab_size) tpo_case_fail(c, "input/ids: id %d", ids[k]);
        if (!c->failed) {
            struct tpo_tensor *encoded = boxes != NULL ? tpo_decoder_box(m.tape, &m.decoder, boxes) : NULL;
            struct tpo_tensor *embeds = tpo_decoder_splice(m.tape, &m.decoder, ids, visual, n, projected, encoded);
            tpo_parity_compare(&m, c, "output/embeds", embeds, NULL);
            tpo_parity_functional(&m, c, embeds);
            tpo_parity_input_gradient(c, "query_rows", rows);
            tpo_parity_input_gradient(c, "box", boxes);
            tpo_parity_pixel_gradient(&m, c, &pixels);
        }
        free(visual);
    }
    tpo_parity_close(&m);
}

/* --- region ------------------------------------------------------------------------------------------------------------------- */

static bool wants_all(void *plan, const char *name)
{
    (void)plan, (void)name;
    return true;
}

/* GIoU of every valid prediction with every target, one pair at a time through the loss kernel. */
static void giou_compare(struct tpo_case *c, const float *p, const float *g, int n)
{
    float *matrix = malloc((size_t)n * (size_t)n * sizeof(*matrix));
    uint8_t *valid = malloc((size_t)n);
    int n_valid = 0;
    for (int i = 0; i < n && matrix != NULL && valid != NULL; i++) {
        for (int j = 0; j < n; j++) {
            float out[2], one;
            if (tpo_box_loss(c->stream, out, &one, p + 4 * (size_t)i, g + 4 * (size_t)j, 1) != TPO_OK) one = NAN;
            if (j == 0) valid[i] = !isnan(one);
            if (valid[i]) matrix[(size_t)n_valid * (size_t)n + (size_t)j] = 1 - one;
        }
        n_valid += valid[i];
    }
    tpo_case_compare(c, "output/giou_matrix", matrix, (int64_t)n_valid * n, NULL);
    tpo_case_compare_u8(c, "output/valid", valid, n);
    free(matrix);
    free(valid);
}

static void boxes_only(struct tpo_case *c, int n)
{
    struct tpo_tape *t = NULL;
    const float *p = tpo_case_f32(c, "input/boxes", 4 * (int64_t)n), *g = tpo_case_f32(c, "input/gt_boxes", 4 * (int64_t)n);
    if (p == NULL || g == NULL) return;
    if (tpo_tape_open(&t, c->stream, true) != TPO_OK) {
        tpo_case_fail(c, "no memory");
        return;
    }
    struct tpo_tensor *x = tpo_input(t, p, n, 4, true), *loss = tpo_loss_box(t, x, g, 2, 0.2F);
    tpo_seed(t, loss, NULL, 1);
    tpo_tape_backward(t);
    tpo_case_compare(c, "loss/region", &(float){tpo_value(t, loss)}, 1, NULL);
    tpo_parity_input_gradient(c, "boxes", x);
    giou_compare(c, p, g, n);
    tpo_tape_close(t);
}

/* The head's own code: its model's forward pass, with the case's weights in place of random ones. */
static void head_case(struct tpo_case *c, int n)
{
    struct tpo_config config;
    struct tpo_region *region = NULL;
    struct tpo_tape *t = NULL;
    struct tpo_error err = {0};
    tpo_config_default(&config);
    const int width = tpo_case_size(c, "llm_width");
    config.llm.hidden_size = width;
    config.region_hidden_size = tpo_case_size(c, "hidden");
    const float *e = tpo_case_f32(c, "input/task_embeddings", (int64_t)n * width),
                *g = tpo_case_f32(c, "input/gt_boxes", 4 * (int64_t)n);
    if (c->failed) return;
    if (tpo_region_open(&region, c->stream, &config, NULL, 0, &err) != TPO_OK || tpo_tape_open(&t, c->stream, true) != TPO_OK) {
        tpo_case_fail(c, "no region head: %s", err.message);
    } else {
        struct tpo_model *model = tpo_region_model(region);
        tpo_case_bind(c, model->params);
        tpo_case_need_weights(c, model->params);
        struct tpo_tensor *x = tpo_input(t, e, n, width, true);
        struct tpo_forward f = {
            .n_inputs = 2, .inputs = {{"e.region", x}, {"boxes", tpo_input(t, g, n, 4, false)}}, .wants_loss = wants_all};
        if (c->failed || model->forward(model->self, t, &f, &err) != TPO_OK || f.n_outputs != 1 || f.n_losses != 1) {
            tpo_case_fail(c, "the region head's pass failed: %s", err.message);
        } else {
            tpo_seed(t, f.losses[0].tensor, NULL, 1);
            tpo_tape_backward(t);
            tpo_case_compare(c, "output/boxes", f.outputs[0].tensor->data, 4 * (int64_t)n, NULL);
            tpo_case_compare(c, "loss/region", &(float){tpo_value(t, f.losses[0].tensor)}, 1, NULL);
            tpo_parity_input_gradient(c, "task_embeddings", x);
            tpo_case_gradients(c, model->params);
            giou_compare(c, f.outputs[0].tensor->data, g, n);
        }
        tpo_case_unbind(model->params);
    }
    tpo_tape_close(t);
    tpo_region_close(region);
}

void tpo_parity_region_loss(struct tpo_case *c)
{
    static const char *const keys[] = {"llm_width", "hidden", "boxes", "boxes_per_sample", "valid_predictions", NULL};
    tpo_case_keys(c, keys);
    const int n = tpo_case_dim(c, "input/gt_boxes", 0);
    if (tpo_case_find(c, "input/boxes") != NULL)
        boxes_only(c, n);
    else
        head_case(c, n);
}
