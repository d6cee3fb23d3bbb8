/* This file owns making a model out of a case. */
#include "tests/parity/model.h"

#include <stdio.h>
#include <string.h>

#include "services/region/region.h"

void tpo_parity_config(struct tpo_config *c)
{
    tpo_config_default(c);
    c->vision_encoder.encoder_depth = 2;
    c->vision_encoder.ext_position = false;
    c->bridge.num_hidden_layers = 1;
    c->bridge.ext_key_position = false;
    c->llm.num_hidden_layers = 1;
    c->llm.use_lora = true;
    c->llm.lora_dropout = 0;
    c->llm.ext_slot_position = false;
}

static int added_id(struct tpo_case *c, const char *name)
{
    const json_t *id = json_object_get(json_object_get(c->config, "added_token_ids"), name);
    if (json_is_integer(id) && json_integer_value(id) >= 0 && json_integer_value(id) < 1 << 20) return (int)json_integer_value(id);
    tpo_case_fail(c, "config.added_token_ids.%s: missing or no id", name);
    return 0;
}

void tpo_parity_tasks(struct tpo_case *c, struct tpo_config *config)
{
    static const struct {
        const char *name, *trigger, *slot, *vector;
    } tasks[] = {{"region", "box_begin", "boxes", "box_token"},
                 {"temporal", "time_begin", "temp", "temporal_token"},
                 {"mask", "track_begin", "tracking", "track_token"}};
    config->n_tasks = 3;
    for (int i = 0; i < 3; i++) {
        struct tpo_task *t = &config->tasks[i];
        memset(t, 0, sizeof(*t));
        snprintf(t->name, sizeof(t->name), "%s", tasks[i].name);
        snprintf(t->vector, sizeof(t->vector), "%s", tasks[i].vector);
        t->trigger_id = t->slot_id = -1; /* no id equals it */
        /* A case without the vector means the slot's plain embedding. */
        char weight[64];
        snprintf(weight, sizeof(weight), "weight/%s", t->vector);
        if (!tpo_case_has_key(c, "added_token_ids") || tpo_case_find(c, weight) == NULL) continue;
        t->trigger_id = added_id(c, tasks[i].trigger);
        t->slot_id = added_id(c, tasks[i].slot);
    }
    config->track_box_id = tpo_case_has_key(c, "added_token_ids") ? added_id(c, "track_box") : -1;
}

static bool wants_gradients(const struct tpo_case *c)
{
    for (int i = 0; i < c->n; i++)
        if (strncmp(c->tensors[i].name, "grad/", 5) == 0) return true;
    return false;
}

bool tpo_parity_open(struct tpo_parity_model *m, struct tpo_case *c)
{
    m->params = (struct tpo_params){0};
    m->tape = NULL;
    memset(&m->vit, 0, sizeof(m->vit));
    memset(&m->qformer, 0, sizeof(m->qformer));
    memset(&m->decoder, 0, sizeof(m->decoder));
    if (c->failed) return false;
    bool fine = tpo_vit_declare(&m->vit, &m->params, &m->config) == TPO_OK;
    fine = fine && tpo_qformer_declare(&m->qformer, &m->params, &m->config) == TPO_OK;
    fine = fine && tpo_decoder_declare(&m->decoder, &m->params, &m->config, 0) == TPO_OK;
    tpo_region_schema(&m->params, &m->config);
    fine = fine && tpo_tape_open(&m->tape, c->stream, wants_gradients(c)) == TPO_OK;
    if (!fine)
        tpo_case_fail(c, "no memory for a model of this config");
    else
        tpo_case_bind(c, &m->params);
    return !c->failed;
}

void tpo_parity_close(struct tpo_parity_model *m)
{
    tpo_case_unbind(&m->params);
    tpo_tape_close(m->tape);
    tpo_vit_close(&m->vit);
    tpo_qformer_close(&m->qformer);
    tpo_decoder_close(&m->decoder);
    tpo_params_free(&m->params, NULL);
}

void tpo_parity_check(struct tpo_parity_model *m, struct tpo_case *c)
{
    if (tpo_tape_error(m->tape) != TPO_OK)
        tpo_case_fail(c, "the pass failed (%s): a weight that it needs is not in the case, or shapes disagree",
                      tpo_status_name(tpo_tape_error(m->tape)));
}

void tpo_parity_compare(struct tpo_parity_model *m, struct tpo_case *c, const char *name, const struct tpo_tensor *x,
                        const bool *skip)
{
    tpo_parity_check(m, c);
    const bool whole = x != NULL && x->ld == x->cols;
    tpo_case_compare(c, name, whole ? x->data : NULL, whole ? (int64_t)x->rows * x->cols : 0, skip);
}

struct tpo_tensor *tpo_parity_input(struct tpo_parity_model *m, struct tpo_case *c, const char *name, int rows, int cols)
{
    char input[96], grad[112];
    snprintf(input, sizeof(input), "input/%s", name);
    snprintf(grad, sizeof(grad), "grad/%s", input);
    const float *data = tpo_case_f32(c, input, (int64_t)rows * cols);
    return data != NULL ? tpo_input(m->tape, data, rows, cols, tpo_case_find(c, grad) != NULL) : NULL;
}

void tpo_parity_functional(struct tpo_parity_model *m, struct tpo_case *c, struct tpo_tensor *x)
{
    tpo_parity_check(m, c);
    if (c->failed || x == NULL || tpo_case_find(c, "input/functional") == NULL) return;
    const int64_t n = (int64_t)x->rows * x->cols;
    const float *weight = tpo_case_f32(c, "input/functional", n);
    if (weight == NULL) return;
    double sum = 0;
    for (int64_t k = 0; k < n; k++) sum += (double)weight[k] * (double)x->data[k];
    tpo_case_compare(c, "loss/functional", &(float){(float)sum}, 1, NULL);
    tpo_seed(m->tape, x, weight, 1);
    tpo_tape_backward(m->tape);
    tpo_parity_check(m, c);
    tpo_case_gradients(c, &m->params);
}

void tpo_parity_input_gradient(struct tpo_case *c, const char *name, const struct tpo_tensor *x)
{
    char grad[112];
    snprintf(grad, sizeof(grad), "grad/input/%s", name);
    tpo_case_compare(c, grad, x != NULL ? x->grad : NULL, x != NULL ? (int64_t)x->rows * x->cols : 0, NULL);
}
