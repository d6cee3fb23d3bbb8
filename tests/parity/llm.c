/* This file owns the language model's cases; which parts run is decided by the tensors present. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/loss.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "services/region/region.h"
#include "tests/parity/llm.h"
#include "tests/parity/model.h"

static void llm_config(struct tpo_case *c, struct tpo_config *config)
{
    config->llm.hidden_size = tpo_case_size(c, "hidden");
    config->llm.num_attention_heads = tpo_case_size(c, "num_heads");
    config->llm.num_key_value_heads = tpo_case_size(c, "num_kv_heads");
    config->llm.head_dim = tpo_case_size(c, "head_dim");
    config->llm.intermediate_size = tpo_case_size(c, "ffn");
    config->llm.num_hidden_layers = tpo_case_size(c, "layers");
    config->llm.vocab_size = tpo_case_size(c, "vocab");
    config->llm.use_lora = tpo_case_has_key(c, "lora_r");
    config->llm.lora_r = tpo_case_size_or(c, "lora_r", 1);
    config->llm.lora_alpha = (float)tpo_case_number_or(c, "lora_alpha", 1);
    config->llm.rms_norm_eps = (float)tpo_case_number_or(c, "rms_eps", 1e-5);
    config->llm.rope_theta = tpo_case_number_or(c, "rope_theta", 1e6);
    config->box_encoder_hidden_size = tpo_case_size_or(c, "box_encoder_hidden", 1);
    config->region_hidden_size = tpo_case_size_or(c, "head_hidden", 1);
    if (config->llm.num_attention_heads % config->llm.num_key_value_heads != 0 || config->llm.head_dim % 2 != 0)
        tpo_case_fail(c, "config: heads %d, kv heads %d, head_dim %d do not fit together", config->llm.num_attention_heads,
                      config->llm.num_key_value_heads, config->llm.head_dim);
    if (tpo_case_number_or(c, "lora_dropout", 0) != 0) tpo_case_fail(c, "config.lora_dropout: goldens have none");
    if (tpo_case_number_or(c, "ignore_label", -100) != -100) tpo_case_fail(c, "config.ignore_label: the model's is -100");
    if (strncmp(tpo_case_string_or(c, "rope_pairing", "half split"), "half split", 10) != 0)
        tpo_case_fail(c, "config.rope_pairing: the model's is half split");
}

/* --- without a model: tables, norm, merging ----------------------------------------------------------------------------------- */

static void rope_case(struct tpo_case *c)
{
    const int n = tpo_case_dim(c, "input/positions", 0), D = tpo_case_size(c, "head_dim");
    const int32_t *positions = tpo_case_i32(c, "input/positions", n);
    float *cos_table = malloc((size_t)n * (size_t)D * sizeof(float)),
          *sin_table = cos_table != NULL ? cos_table + (int64_t)n * D / 2 : NULL;
    if (D % 2 != 0) tpo_case_fail(c, "config.head_dim: odd");
    if (positions != NULL && cos_table != NULL && !c->failed) {
        if (tpo_rope_table(c->stream, cos_table, sin_table, positions, tpo_case_number_or(c, "rope_theta", 1e6), n, D) != TPO_OK)
            tpo_case_fail(c, "rope: the kernel refused");
        tpo_case_compare(c, "output/cos", cos_table, (int64_t)n * D / 2, NULL);
        tpo_case_compare(c, "output/sin", sin_table, (int64_t)n * D / 2, NULL);
    }
    free(cos_table);
}

static void rms_case(struct tpo_case *c)
{
    const int M = tpo_case_dim(c, "input/x", 0), C = tpo_case_dim(c, "input/x", 1);
    const float *x = tpo_case_f32(c, "input/x", 0), *gain = tpo_case_f32(c, "weight/gain", C);
    float *y = malloc((size_t)M * (size_t)C * sizeof(*y));
    if (x != NULL && gain != NULL && y != NULL) {
        if (tpo_rmsnorm(c->stream, y, NULL, x, gain, (float)tpo_case_number_or(c, "rms_eps", 1e-5), M, C) != TPO_OK)
            tpo_case_fail(c, "rmsnorm: the kernel refused");
        tpo_case_compare(c, "output/rmsnorm", y, (int64_t)M * C, NULL);
    }
    free(y);
}

static bool primitives(struct tpo_case *c)
{
    static const char *const keys[] = {"head_dim", "rope_theta", "hidden", "rms_eps", "rope_pairing", NULL};
    const bool rope = tpo_case_find(c, "output/cos") != NULL || tpo_case_find(c, "output/sin") != NULL;
    const bool rms = tpo_case_find(c, "output/rmsnorm") != NULL;
    if (!rope && !rms) return false;
    tpo_case_keys(c, keys);
    if (rope) rope_case(c);
    if (rms) rms_case(c);
    return true;
}

/* Every output/NAME.merged against base, A and B of the same NAME. */
static void merges(struct tpo_parity_model *m, struct tpo_case *c)
{
    const float scale = m->config.llm.lora_alpha / (float)m->config.llm.lora_r;
    for (int i = 0; i < c->n && !c->failed; i++) {
        const char *name = c->tensors[i].name;
        const size_t length = strlen(name);
        char base[TPO_NAME_MAX + 32];
        if (strncmp(name, "output/", 7) != 0 || length < 14 || strcmp(name + length - 7, ".merged") != 0) continue;
        struct tpo_param *parts[3];
        static const char *const suffix[] = {"base_layer.weight", "lora_A.default.weight", "lora_B.default.weight"};
        for (int k = 0; k < 3; k++) {
            snprintf(base, sizeof(base), "%.*s.%s", (int)(length - 14), name + 7, suffix[k]);
            parts[k] = tpo_params_find(&m->params, base);
            if (parts[k] == NULL || parts[k]->data == NULL) tpo_case_fail(c, "weight/%s: missing", base);
        }
        if (c->failed) return;
        float *merged = malloc((size_t)parts[0]->size * sizeof(*merged));
        const struct tpo_lora lora = {.w = parts[0], .a = parts[1], .b = parts[2]};
        if (merged == NULL || tpo_decoder_merge(c->stream, merged, &lora, scale) != TPO_OK)
            tpo_case_fail(c, "%s: merging failed", name);
        tpo_case_compare(c, name, merged, parts[0]->size, NULL);
        free(merged);
    }
}

/* --- forward and loss --------------------------------------------------------------------------------------------------------- */

struct batch {
    int B, T;
    int32_t *positions, *lengths;
    bool *skip; /* padded rows */
};

static bool batch_read(struct tpo_case *c, struct batch *b)
{
    b->B = tpo_case_dim(c, "input/ids", 0);
    b->T = tpo_case_dim(c, "input/ids", 1);
    const int64_t n = (int64_t)b->B * b->T;
    const float *mask = tpo_case_find(c, "input/mask") != NULL ? tpo_case_f32(c, "input/mask", n) : NULL;
    b->positions = malloc((size_t)n * sizeof(*b->positions));
    b->lengths = calloc((size_t)b->B, sizeof(*b->lengths));
    b->skip = calloc((size_t)n, sizeof(*b->skip));
    if (b->positions == NULL || b->lengths == NULL || b->skip == NULL) {
        tpo_case_fail(c, "no memory");
        return false;
    }
    for (int64_t m = 0; m < n; m++) {
        const int t = (int)(m % b->T);
        b->positions[m] = t;
        b->skip[m] = mask != NULL && mask[m] == 0;
        if (b->skip[m]) continue;
        if (b->lengths[m / b->T] != t) tpo_case_fail(c, "input/mask: valid rows after padded ones");
        b->lengths[m / b->T] = t + 1;
    }
    return !c->failed;
}

static void batch_free(struct batch *b)
{
    free(b->positions);
    free(b->lengths);
    free(b->skip);
}

/* Mean cross entropy over the labels shifted by one; the head runs on the rows that predict a label, as in training. */
static struct tpo_tensor *language_loss(struct tpo_parity_model *m, struct tpo_case *c, const struct batch *b,
                                        struct tpo_tensor *hidden)
{
    struct tpo_tensor *loss = NULL;
    const int n = b->B * b->T;
    const int32_t *labels = tpo_case_i32(c, "input/labels", n);
    int32_t *row = malloc((size_t)n * sizeof(*row)), *label = malloc((size_t)n * sizeof(*label));
    int found = 0;
    for (int k = 0; labels != NULL && row != NULL && label != NULL && k < n; k++) {
        if (k % b->T == 0 || labels[k] == -100) continue;
        if (labels[k] < 0 || labels[k] >= m->config.llm.vocab_size) tpo_case_fail(c, "input/labels: %d", labels[k]);
        row[found] = k - 1;
        label[found++] = labels[k];
    }
    if (found == 0) tpo_case_fail(c, "input/labels: nothing is labelled");
    if (!c->failed) {
        struct tpo_tensor *logits = tpo_decoder_logits(m->tape, &m->decoder, tpo_take_rows(m->tape, hidden, row, found), 0, 0);
        loss = tpo_loss_cross_entropy(m->tape, logits, label, NULL, 1 / (float)found);
        tpo_parity_compare(m, c, "loss/language", loss, NULL);
    }
    free(row);
    free(label);
    return loss;
}

static bool wants_all(void *plan, const char *name)
{
    (void)plan, (void)name;
    return true;
}

/* The region head's own pass on this tape: its parameters are given the memory of the case's. */
static struct tpo_tensor *region_loss(struct tpo_parity_model *m, struct tpo_case *c, struct tpo_tensor *e)
{
    struct tpo_region *region = NULL;
    struct tpo_error err = {0};
    struct tpo_tensor *loss = NULL;
    const float *boxes = tpo_case_f32(c, "input/gt_boxes", 4 * (int64_t)e->rows);
    if (boxes == NULL) return NULL;
    if (tpo_region_open(&region, c->stream, &m->config, NULL, 0, &err) != TPO_OK) {
        tpo_case_fail(c, "no region head: %s", err.message);
        return NULL;
    }
    struct tpo_model *model = tpo_region_model(region);
    for (int i = 0; i < model->params->n; i++) {
        const struct tpo_param *given = tpo_params_find(&m->params, model->params->items[i]->name);
        if (given == NULL || given->data == NULL) tpo_case_fail(c, "weight/%s: missing", model->params->items[i]->name);
        if (given == NULL) continue;
        model->params->items[i]->data = given->data;
        model->params->items[i]->grad = given->grad;
    }
    struct tpo_forward f = {.n_inputs = 2,
                            .inputs = {{"e.region", e}, {"boxes", tpo_input(m->tape, boxes, e->rows, 4, false)}},
                            .wants_loss = wants_all};
    if (c->failed || model->forward(model->self, m->tape, &f, &err) != TPO_OK || f.n_outputs != 1 || f.n_losses != 1) {
        tpo_case_fail(c, "the region head's pass failed: %s", err.message);
    } else {
        loss = f.losses[0].tensor;
        tpo_parity_compare(m, c, "output/boxes", f.outputs[0].tensor, NULL);
        tpo_parity_compare(m, c, "loss/head", loss, NULL);
    }
    tpo_region_close(region);
    return loss;
}

/* e at the slot's own rows, in their order. */
static struct tpo_tensor *slot_rows(struct tpo_parity_model *m, struct tpo_case *c, const struct batch *b, const int32_t *ids,
                                    struct tpo_tensor *hidden)
{
    const int n = b->B * b->T;
    int32_t *row = malloc((size_t)n * sizeof(*row));
    int found = 0;
    for (int k = 0; row != NULL && k < n; k++)
        if (ids[k] == m->config.tasks[0].slot_id) row[found++] = k;
    if (found == 0) tpo_case_fail(c, "input/ids: no slot of the region task");
    struct tpo_tensor *e = found > 0 ? tpo_take_rows(m->tape, hidden, row, found) : NULL;
    free(row);
    return e;
}

/* All losses of the case, one walk back. */
static void losses_case(struct tpo_parity_model *m, struct tpo_case *c, const struct batch *b, const int32_t *ids,
                        struct tpo_tensor *hidden)
{
    struct tpo_tensor *total = language_loss(m, c, b, hidden);
    if (tpo_case_find(c, "loss/head") != NULL && !c->failed) {
        struct tpo_tensor *e = slot_rows(m, c, b, ids, hidden);
        total = tpo_loss_sum(m->tape, total, e != NULL ? region_loss(m, c, e) : NULL);
    }
    if (c->failed) return;
    tpo_parity_compare(m, c, "loss/total", total, NULL);
    tpo_seed(m->tape, total, NULL, 1);
    tpo_tape_backward(m->tape);
    tpo_parity_check(m, c);
    tpo_case_gradients(c, &m->params);
}

static void forward_case(struct tpo_parity_model *m, struct tpo_case *c)
{
    struct batch b = {0};
    int32_t *visual = NULL;
    struct tpo_tensor *rows = NULL, *boxes = NULL;
    if (batch_read(c, &b)) {
        const int n = b.B * b.T;
        const int32_t *ids = tpo_case_i32(c, "input/ids", n);
        for (int k = 0; ids != NULL && k < n; k++)
            if (ids[k] < 0 || ids[k] >= m->config.llm.vocab_size) tpo_case_fail(c, "input/ids: id %d", ids[k]);
        if (tpo_case_find(c, "input/visual") != NULL) {
            rows = tpo_parity_input(m, c, "visual", tpo_case_dim(c, "input/visual", 0), m->config.llm.hidden_size);
            if (rows != NULL) visual = tpo_parity_visual_index(c, "input/visual_flag", n, rows->rows);
        }
        if (tpo_case_find(c, "input/box") != NULL) boxes = tpo_parity_input(m, c, "box", tpo_case_dim(c, "input/box", 0), 4);
        if (!c->failed) {
            struct tpo_tensor *encoded = boxes != NULL ? tpo_decoder_box(m->tape, &m->decoder, boxes) : NULL;
            struct tpo_tensor *x = tpo_decoder_splice(m->tape, &m->decoder, ids, visual, n, rows, encoded);
            const struct tpo_decoder_batch batch = {.B = b.B, .T = b.T, .positions = b.positions, .lengths = b.lengths};
            struct tpo_tensor *hidden = tpo_decoder_forward(m->tape, &m->decoder, x, &batch, 0, 0, NULL);
            tpo_parity_compare(m, c, "output/last_hidden", hidden, b.skip);
            tpo_parity_compare(m, c, "output/logits", tpo_decoder_logits(m->tape, &m->decoder, hidden, 0, 0), b.skip);
            if (tpo_case_find(c, "input/labels") != NULL && !c->failed) losses_case(m, c, &b, ids, hidden);
            tpo_parity_input_gradient(c, "visual", rows);
            tpo_parity_input_gradient(c, "box", boxes);
        }
    }
    batch_free(&b);
    free(visual);
}

void tpo_parity_llm(struct tpo_case *c)
{
    static const char *const keys[] = {"hidden",
                                       "num_heads",
                                       "num_kv_heads",
                                       "head_dim",
                                       "ffn",
                                       "layers",
                                       "vocab",
                                       "lora_r",
                                       "lora_alpha",
                                       "rms_eps",
                                       "rope_theta",
                                       "rope_pairing",
                                       "added_token_ids",
                                       "batch",
                                       "length",
                                       "valid_lengths",
                                       "visual_rows_per_sample",
                                       "lora_dropout",
                                       "ignore_label",
                                       "prompt_length",
                                       "new_tokens",
                                       "smallest_top2_margin",
                                       "head_context",
                                       "task",
                                       "trigger_id",
                                       "slot_id",
                                       "later_ids",
                                       "box_encoder_hidden",
                                       "head_hidden",
                                       "prompt_width",
                                       "model_side",
                                       NULL};
    struct tpo_parity_model m;
    if (primitives(c)) return;
    tpo_case_keys(c, keys);
    tpo_parity_config(&m.config);
    tpo_parity_tasks(c, &m.config);
    llm_config(c, &m.config);
    if (tpo_parity_open(&m, c)) {
        merges(&m, c);
        if (tpo_case_find(c, "input/prompt_embeds") != NULL)
            tpo_parity_decode(&m, c);
        else if (tpo_case_find(c, "input/ids") != NULL)
            forward_case(&m, c);
    }
    tpo_parity_close(&m);
}

/* The language loss with a head's loss through e in one step. Only the region head is built here; a case of another one is skipped. */
void tpo_parity_multitask_step(struct tpo_case *c)
{
    if (tpo_case_find(c, "weight/loc_decoder.0.weight") == NULL)
        c->skipped = true;
    else
        tpo_parity_llm(c);
}
