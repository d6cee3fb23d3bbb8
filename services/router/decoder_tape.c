/* This file owns the language model's forward pass on a tape. */
#include <math.h>

#include "kernels/vector.h"
#include "services/router/decoder.h"

struct pass {
    struct tpo_tape *t;
    const struct tpo_decoder *d;
    const struct tpo_decoder_batch *batch;
    struct tpo_angles angles;
    struct tpo_attention_shape shape;
    float dropout;
    uint64_t noise, draws;
};

static struct tpo_tensor *lora(struct tpo_tape *t, const struct tpo_decoder *d, struct tpo_tensor *x, const struct tpo_lora *l,
                               float dropout, uint64_t key)
{
    const float scale = d->config->llm.lora_alpha / (float)d->config->llm.lora_r;
    return tpo_linear_lora(t, x, l->w, l->a, l->b, scale, l->a != NULL && l->a->grad != NULL ? dropout : 0, key);
}

static struct tpo_tensor *linear(struct pass *s, struct tpo_tensor *x, const struct tpo_lora *l)
{
    return lora(s->t, s->d, x, l, s->dropout, tpo_random_u64(s->noise, s->draws++));
}

static struct tpo_tensor *layer_forward(struct pass *s, const struct tpo_decoder_layer *l, struct tpo_tensor *x, bool last,
                                        struct tpo_decoder_seen *seen)
{
    const float eps = s->d->config->llm.rms_norm_eps;
    struct tpo_tensor *r = tpo_norm_rms(s->t, x, l->input_norm, eps);
    struct tpo_tensor *q = tpo_rotate(s->t, linear(s, r, &l->q), &s->angles, s->shape.H);
    struct tpo_tensor *k = tpo_rotate(s->t, linear(s, r, &l->k), &s->angles, s->shape.G);
    struct tpo_tensor *v = linear(s, r, &l->v), *o = tpo_attend(s->t, q, k, v, &s->shape);
    if (seen != NULL) *seen = (struct tpo_decoder_seen){.q = q, .k = k, .v = v};
    if (last && s->batch->keep != NULL) {
        x = tpo_take_rows(s->t, x, s->batch->keep, s->batch->n_keep);
        o = tpo_take_rows(s->t, o, s->batch->keep, s->batch->n_keep);
    }
    x = tpo_plus(s->t, x, linear(s, o, &l->o));
    r = tpo_norm_rms(s->t, x, l->post_norm, eps);
    struct tpo_tensor *gate = linear(s, r, &l->gate), *up = linear(s, r, &l->up);
    return tpo_plus(s->t, x, linear(s, tpo_act_swiglu(s->t, gate, up), &l->down));
}

struct tpo_attention_shape tpo_decoder_shape(const struct tpo_decoder *d, const struct tpo_decoder_batch *b)
{
    const int head = d->config->llm.head_dim;
    return (struct tpo_attention_shape){.B = b->B,
                                        .T = b->T,
                                        .S = b->T,
                                        .H = d->config->llm.num_attention_heads,
                                        .G = d->config->llm.num_key_value_heads,
                                        .D = head,
                                        .scale = 1 / sqrtf((float)head),
                                        .causal = 1,
                                        .key_len = b->lengths,
                                        .segments = b->segments};
}

struct tpo_tensor *tpo_decoder_forward(struct tpo_tape *t, const struct tpo_decoder *d, struct tpo_tensor *x,
                                       const struct tpo_decoder_batch *batch, float dropout, uint64_t noise,
                                       struct tpo_decoder_seen *seen)
{
    const struct tpo_config *c = d->config;
    if (x == NULL) return NULL;
    struct pass s = {.t = t, .d = d, .batch = batch, .dropout = dropout, .noise = noise, .shape = tpo_decoder_shape(d, batch)};
    s.angles = tpo_angles_make(t, batch->positions, x->rows, c->llm.rope_theta, c->llm.head_dim);
    const int n = c->llm.num_hidden_layers;
    for (int l = 0; l < n; l++) x = layer_forward(&s, &d->layers[l], x, l == n - 1, seen != NULL ? &seen[l] : NULL);
    return tpo_norm_rms(t, x, d->norm, c->llm.rms_norm_eps);
}

struct tpo_tensor *tpo_decoder_logits(struct tpo_tape *t, const struct tpo_decoder *d, struct tpo_tensor *e, float dropout,
                                      uint64_t noise)
{
    return lora(t, d, e, &d->lm_head, dropout, noise);
}

struct tpo_tensor *tpo_decoder_project(struct tpo_tape *t, const struct tpo_decoder *d, struct tpo_tensor *visual)
{
    struct tpo_tensor *rows = tpo_linear(t, visual, d->project_up_w, d->project_up_b);
    if (d->slot_position == NULL) return rows;
    return tpo_plus_rows(t, rows, tpo_param_tensor(t, d->slot_position, tpo_config_queries(d->config), d->config->llm.hidden_size));
}

struct tpo_tensor *tpo_decoder_box(struct tpo_tape *t, const struct tpo_decoder *d, struct tpo_tensor *boxes)
{
    return tpo_linear(t, tpo_act_relu(t, tpo_linear(t, boxes, d->box_w0, d->box_b0)), d->box_w1, d->box_b1);
}

/* Which row of a source each of the n rows takes where its id is `id`: the next one, or always the only one; -1 elsewhere and
 * when the source has run out. NULL when no row has that id or memory ran out. */
static int32_t *claim(struct tpo_tape *t, const int32_t *ids, int n, int id, int rows, bool repeated)
{
    int32_t *index = tpo_arena_alloc(tpo_tape_arena(t), (size_t)n * sizeof(*index));
    int found = 0;
    for (int m = 0; index != NULL && m < n; m++) {
        index[m] = -1;
        if (ids[m] != id) continue;
        if (repeated)
            index[m] = 0;
        else if (found < rows)
            index[m] = found;
        found++;
    }
    return found > 0 ? index : NULL;
}

struct tpo_tensor *tpo_decoder_splice(struct tpo_tape *t, const struct tpo_decoder *d, const int32_t *ids, const int32_t *visual,
                                      int n, struct tpo_tensor *projected, struct tpo_tensor *boxes)
{
    const struct tpo_config *c = d->config;
    const int D = c->llm.hidden_size;
    struct tpo_tensor *sources[3 + TPO_TASKS_MAX];
    const int32_t *index[3 + TPO_TASKS_MAX];
    int n_sources = 0;

    sources[n_sources] = tpo_param_tensor(t, d->embed_tokens, c->llm.vocab_size, D);
    index[n_sources++] = ids;
    const int32_t *at = boxes != NULL ? claim(t, ids, n, c->track_box_id, boxes->rows, false) : NULL;
    if (at != NULL) {
        sources[n_sources] = boxes;
        index[n_sources++] = at;
    }
    if (projected != NULL) {
        sources[n_sources] = projected;
        index[n_sources++] = visual;
    }
    for (int i = 0; i < c->n_tasks; i++) {
        at = claim(t, ids, n, c->tasks[i].slot_id, 1, true);
        if (at == NULL) continue;
        sources[n_sources] = tpo_param_tensor(t, d->vectors[i], 1, D);
        index[n_sources++] = at;
    }
    return tpo_pick_rows(t, n_sources, sources, index, n);
}
