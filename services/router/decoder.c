/* This file owns the router's tensors: their names, shapes and starts. */
#include "services/router/decoder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/matmul.h"
#include "kernels/vector.h"
#include "services/router/router.h"

#define LM "lm.base_model.model."

static void lora_declare(struct tpo_lora *l, struct tpo_params *p, const struct tpo_config *c, enum tpo_init init, float scale,
                         int out, int in, const char *name)
{
    const int r = c->llm.lora_r;
    l->w = tpo_param_of_product(tpo_params_declare(p, init, scale, TPO_SHAPE(out, in), "%s.base_layer.weight", name));
    if (!c->llm.use_lora) return;
    l->a = tpo_param_of_product(tpo_params_declare(p, TPO_INIT_FAN_IN, 0.7F, TPO_SHAPE(r, in), "%s.lora_A.default.weight", name));
    l->b = tpo_param_of_product(tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(out, r), "%s.lora_B.default.weight", name));
}

static void layer_declare(struct tpo_decoder_layer *l, struct tpo_params *p, const struct tpo_config *c, int index)
{
    const int D = c->llm.hidden_size, F = c->llm.intermediate_size, head = c->llm.head_dim;
    const struct {
        struct tpo_lora *to;
        const char *name;
        int out, in;
    } linears[] = {
        {&l->q, "self_attn.q_proj", c->llm.num_attention_heads * head, D},
        {&l->k, "self_attn.k_proj", c->llm.num_key_value_heads * head, D},
        {&l->v, "self_attn.v_proj", c->llm.num_key_value_heads * head, D},
        {&l->o, "self_attn.o_proj", D, c->llm.num_attention_heads * head},
        {&l->gate, "mlp.gate_proj", F, D},
        {&l->up, "mlp.up_proj", F, D},
        {&l->down, "mlp.down_proj", D, F},
    };
    char name[TPO_NAME_MAX];
    for (size_t i = 0; i < sizeof(linears) / sizeof(linears[0]); i++) {
        snprintf(name, sizeof(name), LM "model.layers.%d.%s", index, linears[i].name);
        lora_declare(linears[i].to, p, c, TPO_INIT_FAN_IN, 0.7F, linears[i].out, linears[i].in, name);
    }
    l->input_norm = tpo_params_declare(p, TPO_INIT_ONE, 1, TPO_SHAPE(D), LM "model.layers.%d.input_layernorm.weight", index);
    l->post_norm =
        tpo_params_declare(p, TPO_INIT_ONE, 1, TPO_SHAPE(D), LM "model.layers.%d.post_attention_layernorm.weight", index);
}

static void box_encoder_declare(struct tpo_decoder *d, struct tpo_params *p, const struct tpo_config *c)
{
    const int D = c->llm.hidden_size, H = c->box_encoder_hidden_size;
    d->box_w0 = tpo_params_declare(p, TPO_INIT_FAN_IN, 0.7F, TPO_SHAPE(H, 4), "loc_encoder.0.weight");
    d->box_b0 = tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(H), "loc_encoder.0.bias");
    d->box_w1 = tpo_param_of_product(tpo_params_declare(p, TPO_INIT_FAN_IN, 0.7F, TPO_SHAPE(D, H), "loc_encoder.2.weight"));
    d->box_b1 = tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(D), "loc_encoder.2.bias");
}

static void aids_declare(struct tpo_decoder *d, struct tpo_params *p, int D)
{
    d->slot_box_w = tpo_params_declare(p, TPO_INIT_NORMAL, 0.01F, TPO_SHAPE(4, D), "ext.router.slot.box.weight");
    d->slot_box_b = tpo_params_declare(p, TPO_INIT_BOX, 0.12F, TPO_SHAPE(4), "ext.router.slot.box.bias");
    d->slot_centre_w = tpo_params_declare(p, TPO_INIT_NORMAL, 0.01F, TPO_SHAPE(2, D), "ext.router.slot.centre.weight");
    d->slot_centre_b = tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(2), "ext.router.slot.centre.bias");
}

int tpo_decoder_declare(struct tpo_decoder *d, struct tpo_params *p, const struct tpo_config *c, int aids)
{
    const int D = c->llm.hidden_size, V = c->llm.vocab_size;
    memset(d, 0, sizeof(*d));
    d->config = c;
    d->layers = calloc((size_t)c->llm.num_hidden_layers, sizeof(*d->layers));
    if (d->layers == NULL) return TPO_ENOMEM;
    const int before = p->n;

    d->embed_tokens =
        tpo_param_of_product(tpo_params_declare(p, TPO_INIT_NORMAL, 0.5F, TPO_SHAPE(V, D), LM "model.embed_tokens.weight"));
    for (int l = 0; l < c->llm.num_hidden_layers; l++) layer_declare(&d->layers[l], p, c, l);
    d->norm = tpo_params_declare(p, TPO_INIT_ONE, 1, TPO_SHAPE(D), LM "model.norm.weight");
    lora_declare(&d->lm_head, p, c, TPO_INIT_NORMAL, 0.02F, V, D, LM "lm_head");
    d->project_up_w = tpo_param_of_product(
        tpo_params_declare(p, TPO_INIT_FAN_IN, 0.7F, TPO_SHAPE(D, c->bridge.hidden_size), "project_up.weight"));
    d->project_up_b = tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(D), "project_up.bias");
    if (c->llm.ext_slot_position)
        d->slot_position =
            tpo_params_declare(p, TPO_INIT_SINCOS_2D, 1, TPO_SHAPE(tpo_config_queries(c), D), "ext.router.slot_position");
    box_encoder_declare(d, p, c);
    for (int i = 0; i < c->n_tasks; i++)
        d->vectors[i] = tpo_params_declare(p, TPO_INIT_NORMAL, 1, TPO_SHAPE(1, 1, D), "%s", c->tasks[i].vector);
    if (aids) aids_declare(d, p, D);

    const int per_linear = c->llm.use_lora ? 3 : 1;
    const int all = c->llm.num_hidden_layers * (7 * per_linear + 2) + per_linear + 2 + 2 + 4 + c->n_tasks +
                    (c->llm.ext_slot_position ? 1 : 0) + (aids ? 4 : 0);
    return p->n - before == all ? TPO_OK : TPO_ENOMEM;
}

void tpo_decoder_close(struct tpo_decoder *d)
{
    free(d->layers);
    memset(d, 0, sizeof(*d));
}

int tpo_decoder_merge(struct tpo_stream *s, float *merged, const struct tpo_lora *l, float scale)
{
    const int out = (int)l->w->shape[0], in = (int)l->w->shape[1];
    int code = tpo_scale(s, merged, 1, l->w->data, l->w->size);
    if (code != TPO_OK || l->a == NULL) return code;
    const int r = (int)l->a->shape[0];
    float *scaled = tpo_device_alloc(s, (size_t)l->b->size * sizeof(*scaled));
    if (scaled == NULL) return TPO_ENOMEM;
    code = tpo_scale(s, scaled, scale, l->b->data, l->b->size);
    /* The product of two matrices as they lie, b (out, r) a (r, in), is what matmul_dx computes. */
    if (code == TPO_OK) code = tpo_matmul_dx(s, merged, in, scaled, r, tpo_f32(l->a->data), 1, out, r, in);
    tpo_device_free(s, scaled);
    return code;
}

void tpo_router_schema(struct tpo_params *p, const struct tpo_config *c, int aids)
{
    struct tpo_decoder d;
    tpo_decoder_declare(&d, p, c, aids);
    tpo_decoder_close(&d);
}
