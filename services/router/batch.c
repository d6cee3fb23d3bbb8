/* This file owns one forward pass over rows of many sequences. */
#include "services/router/batch.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/activation.h"
#include "kernels/matmul.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "kernels/rows.h"
#include "kernels/vector.h"

#define LINEARS 7 /* of a layer */

/* A linear as a pass reads it: unmerged ones look at the parameters each time, since a published version may replace their data. */
struct linear {
    const struct tpo_lora *lora;
    float *merged; /* NULL: w and, where there is one, the adapter */
};

struct tpo_batch {
    struct tpo_stream *s;
    const struct tpo_decoder *d;
    struct tpo_kv *kv;
    int rows_max;
    float scale;           /* of LoRA */
    struct linear *layers; /* (num_hidden_layers, LINEARS): q k v o gate up down */
    struct linear lm_head;
    float *x, *h, *q, *k, *v, *o, *gate, *up, *low, *cos, *sin, *logits; /* rows_max rows each; logits TPO_MATVEC_ROWS */
    int32_t *places;                 /* (3, n): each row's index in its table, sequence, position, as the host lays them down */
    int32_t *index, *seq, *position; /* the same, of the device */
};

static const struct tpo_lora *layer_linear(const struct tpo_decoder_layer *l, int i)
{
    const struct tpo_lora *all[LINEARS] = {&l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down};
    return all[i];
}

static int linear_open(struct tpo_batch *b, struct linear *l, const struct tpo_lora *lora, bool merge)
{
    l->lora = lora;
    if (!merge || lora->a == NULL) return TPO_OK;
    if (lora->w->data == NULL || lora->a->data == NULL || lora->b->data == NULL)
        return TPO_OK; /* what stays bf16 takes no adapter in, and gives none */
    l->merged = tpo_device_alloc(b->s, (size_t)lora->w->size * sizeof(float));
    return l->merged != NULL ? tpo_decoder_merge(b->s, l->merged, lora, b->scale) : TPO_ENOMEM;
}

static int buffers_open(struct tpo_batch *b)
{
    const struct tpo_config *c = b->d->config;
    size_t D = (size_t)c->llm.hidden_size, head = (size_t)c->llm.head_dim, F = (size_t)c->llm.intermediate_size;
    const struct {
        float **at;
        size_t cols;
    } all[] = {{&b->x, D},
               {&b->h, D},
               {&b->q, head * (size_t)c->llm.num_attention_heads},
               {&b->k, head * (size_t)c->llm.num_key_value_heads},
               {&b->v, head * (size_t)c->llm.num_key_value_heads},
               {&b->o, head * (size_t)c->llm.num_attention_heads},
               {&b->gate, F},
               {&b->up, F},
               {&b->low, (size_t)c->llm.lora_r},
               {&b->cos, head / 2},
               {&b->sin, head / 2}};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        *all[i].at = tpo_device_alloc(b->s, all[i].cols * (size_t)b->rows_max * sizeof(float));
        if (*all[i].at == NULL) return TPO_ENOMEM;
    }
    b->logits = tpo_device_alloc(b->s, TPO_MATVEC_ROWS * (size_t)c->llm.vocab_size * sizeof(float));
    b->places = calloc(3 * (size_t)b->rows_max, sizeof(*b->places));
    b->index = tpo_device_alloc(b->s, 3 * (size_t)b->rows_max * sizeof(*b->index));
    return b->logits != NULL && b->places != NULL && b->index != NULL ? TPO_OK : TPO_ENOMEM;
}

int tpo_batch_open(struct tpo_batch **out, struct tpo_stream *s, const struct tpo_decoder *d, struct tpo_kv *kv, int rows_max,
                   bool merge, struct tpo_error *err)
{
    struct tpo_batch *b = calloc(1, sizeof(*b));
    int rc = TPO_ENOMEM;
    if (b == NULL) goto fail;
    b->s = s;
    b->d = d;
    b->kv = kv;
    b->rows_max = rows_max > TPO_MATVEC_ROWS ? rows_max : TPO_MATVEC_ROWS;
    b->scale = d->config->llm.lora_alpha / (float)d->config->llm.lora_r;
    b->layers = calloc((size_t)d->config->llm.num_hidden_layers * LINEARS, sizeof(*b->layers));
    if (b->layers == NULL) goto fail;
    rc = buffers_open(b);
    for (int l = 0; l < d->config->llm.num_hidden_layers; l++)
        for (int i = 0; i < LINEARS && rc == TPO_OK; i++)
            rc = linear_open(b, &b->layers[l * LINEARS + i], layer_linear(&d->layers[l], i), merge);
    if (rc == TPO_OK) rc = linear_open(b, &b->lm_head, &d->lm_head, merge);
    if (rc != TPO_OK) goto fail;
    *out = b;
    return TPO_OK;
fail:
    tpo_batch_close(b);
    return tpo_fail(err, rc, "memory", "no memory for the language model's work space");
}

void tpo_batch_close(struct tpo_batch *b)
{
    if (b == NULL) return;
    float *const all[] = {b->x, b->h, b->q, b->k, b->v, b->o, b->gate, b->up, b->low, b->cos, b->sin, b->logits, b->lm_head.merged};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) tpo_device_free(b->s, all[i]);
    for (int i = 0; b->layers != NULL && i < b->d->config->llm.num_hidden_layers * LINEARS; i++)
        tpo_device_free(b->s, b->layers[i].merged);
    tpo_device_free(b->s, b->index);
    free(b->layers);
    free(b->places);
    free(b);
}

/* y (n, out) = or += x w^T, by the kernel of the pass. */
static int product(struct tpo_batch *b, float *y, const float *x, struct tpo_weight w, const float *bias, int add, int n, int out,
                   int in, bool prompt)
{
    if (prompt) return tpo_matmul(b->s, y, out, x, in, w, bias, add, n, out, in);
    return tpo_matvec(b->s, y, out, x, in, w, bias, add, n, out, in);
}

static int apply(struct tpo_batch *b, float *y, const float *x, const struct linear *l, int add, int n, bool prompt)
{
    const struct tpo_lora *a = l->lora;
    const int out = (int)a->w->shape[0], in = (int)a->w->shape[1];
    int rc = product(b, y, x, l->merged != NULL ? tpo_f32(l->merged) : tpo_param_weight(a->w), NULL, add, n, out, in, prompt);
    if (rc != TPO_OK || l->merged != NULL || a->a == NULL) return rc;
    const int r = (int)a->a->shape[0];
    rc = product(b, b->low, x, tpo_param_weight(a->a), NULL, 0, n, r, in, prompt);
    if (rc == TPO_OK) rc = tpo_scale(b->s, b->low, b->scale, b->low, (int64_t)n * r);
    if (rc == TPO_OK) rc = product(b, y, b->low, tpo_param_weight(a->b), NULL, 1, n, out, r, prompt);
    return rc;
}

static int attention(struct tpo_batch *b, const struct linear *l, int layer, const struct tpo_paged_shape *shape, bool prompt)
{
    const int n = shape->M, H = shape->H, G = shape->G, D = shape->D;
    float *pool_k = b->kv->k[layer], *pool_v = b->kv->v[layer];
    int rc = apply(b, b->q, b->h, &l[0], 0, n, prompt);
    if (rc == TPO_OK) rc = apply(b, b->k, b->h, &l[1], 0, n, prompt);
    if (rc == TPO_OK) rc = apply(b, b->v, b->h, &l[2], 0, n, prompt);
    if (rc == TPO_OK) rc = tpo_rope(b->s, b->q, H * D, b->cos, b->sin, 0, n, H, D);
    if (rc == TPO_OK) rc = tpo_rope(b->s, b->k, G * D, b->cos, b->sin, 0, n, G, D);
    if (rc == TPO_OK) rc = tpo_kv_write(b->s, pool_k, pool_v, b->k, G * D, b->v, G * D, shape);
    if (rc == TPO_OK) rc = tpo_attention_paged(b->s, b->o, b->q, pool_k, pool_v, shape);
    return rc == TPO_OK ? apply(b, b->x, b->o, &l[3], 1, n, prompt) : rc;
}

static int feed_forward(struct tpo_batch *b, const struct linear *l, int n, bool prompt)
{
    const int F = b->d->config->llm.intermediate_size;
    int rc = apply(b, b->gate, b->h, &l[4], 0, n, prompt);
    if (rc == TPO_OK) rc = apply(b, b->up, b->h, &l[5], 0, n, prompt);
    if (rc == TPO_OK) rc = tpo_swiglu(b->s, b->gate, b->gate, b->up, F, n, F);
    return rc == TPO_OK ? apply(b, b->x, b->gate, &l[6], 1, n, prompt) : rc;
}

/* Tells the device where each of n rows comes from and where it goes. */
static int place_rows(struct tpo_batch *b, const struct tpo_batch_row *rows, int n)
{
    for (int i = 0; i < n; i++) {
        b->places[i] = rows[i].index;
        b->places[n + i] = rows[i].seq;
        b->places[2 * n + i] = rows[i].position;
    }
    b->seq = b->index + n;
    b->position = b->index + 2 * n;
    return tpo_copy_in(b->s, b->index, b->places, 3 * (size_t)n * sizeof(*b->places));
}

/* Rows that follow each other in one table are fetched by one call. */
static int gather(struct tpo_batch *b, const struct tpo_batch_row *rows, int n)
{
    const int D = b->d->config->llm.hidden_size;
    int rc = TPO_OK;
    for (int i = 0, run; i < n && rc == TPO_OK; i += run) {
        for (run = 1; i + run < n && rows[i + run].table.data == rows[i].table.data;) run++;
        rc = tpo_rows_take(b->s, b->x + (int64_t)i * D, rows[i].table, b->index + i, b->places + i, run, D, rows[i].table_rows);
    }
    return rc;
}

int tpo_batch_run(struct tpo_batch *b, const struct tpo_batch_row *rows, int n, bool prompt, const float **hidden)
{
    const struct tpo_config *c = b->d->config;
    const int D = c->llm.hidden_size;
    TPO_ASSERT(n > 0 && n <= (prompt ? b->rows_max : TPO_MATVEC_ROWS));
    int rc = place_rows(b, rows, n);
    const struct tpo_paged_shape shape = {.M = n,
                                          .H = c->llm.num_attention_heads,
                                          .G = c->llm.num_key_value_heads,
                                          .D = c->llm.head_dim,
                                          .ldq = c->llm.num_attention_heads * c->llm.head_dim,
                                          .ldo = c->llm.num_attention_heads * c->llm.head_dim,
                                          .block_tokens = TPO_KV_TOKENS,
                                          .max_blocks = b->kv->max_blocks,
                                          .scale = 1 / sqrtf((float)c->llm.head_dim),
                                          .seq = b->seq,
                                          .position = b->position,
                                          .tables = b->kv->tables};
    if (rc == TPO_OK) rc = gather(b, rows, n);
    if (rc == TPO_OK) rc = tpo_rope_table(b->s, b->cos, b->sin, b->position, c->llm.rope_theta, n, c->llm.head_dim);
    for (int l = 0; l < c->llm.num_hidden_layers && rc == TPO_OK; l++) {
        rc = tpo_rmsnorm(b->s, b->h, NULL, b->x, b->d->layers[l].input_norm->data, c->llm.rms_norm_eps, n, D);
        if (rc == TPO_OK) rc = attention(b, &b->layers[l * LINEARS], l, &shape, prompt);
        if (rc == TPO_OK) rc = tpo_rmsnorm(b->s, b->h, NULL, b->x, b->d->layers[l].post_norm->data, c->llm.rms_norm_eps, n, D);
        if (rc == TPO_OK) rc = feed_forward(b, &b->layers[l * LINEARS], n, prompt);
    }
    if (rc == TPO_OK) rc = tpo_rmsnorm(b->s, b->h, NULL, b->x, b->d->norm->data, c->llm.rms_norm_eps, n, D);
    *hidden = b->h;
    return rc;
}

int tpo_batch_logits(struct tpo_batch *b, const int32_t *rows, int n, float *logits)
{
    const int D = b->d->config->llm.hidden_size, V = b->d->config->llm.vocab_size;
    int rc = tpo_copy_in(b->s, b->index, rows, (size_t)n * sizeof(*rows));
    if (rc == TPO_OK) rc = tpo_rows_gather(b->s, b->x, b->h, b->index, n, D, b->rows_max);
    if (rc == TPO_OK) rc = apply(b, b->logits, b->x, &b->lm_head, 0, n, false);
    return rc == TPO_OK ? tpo_copy_out(b->s, logits, b->logits, (size_t)n * (size_t)V * sizeof(float)) : rc;
}

static int project(struct tpo_batch *b, float *out, const float *visual, int queries)
{
    const struct tpo_decoder *d = b->d;
    const int D = d->config->llm.hidden_size, C = d->config->bridge.hidden_size;
    float *in = tpo_device_alloc(b->s, (size_t)queries * (size_t)C * sizeof(float));
    int rc = in != NULL ? tpo_copy_in(b->s, in, visual, (size_t)queries * (size_t)C * sizeof(float)) : TPO_ENOMEM;
    if (rc == TPO_OK)
        rc = tpo_matmul(b->s, out, D, in, C, tpo_param_weight(d->project_up_w), d->project_up_b->data, 0, queries, D, C);
    if (rc == TPO_OK && d->slot_position != NULL) rc = tpo_add_rows(b->s, out, d->slot_position->data, queries, queries, D);
    if (rc == TPO_OK) rc = tpo_stream_wait(b->s);
    tpo_device_free(b->s, in);
    return rc;
}

static int encode_boxes(struct tpo_batch *b, float *out, const float (*boxes)[4], int n)
{
    const struct tpo_decoder *d = b->d;
    const int D = d->config->llm.hidden_size, H = d->config->box_encoder_hidden_size;
    float *in = tpo_device_alloc(b->s, (size_t)n * 4 * sizeof(float)),
          *mid = tpo_device_alloc(b->s, (size_t)n * (size_t)H * sizeof(float));
    int rc = in != NULL && mid != NULL ? tpo_copy_in(b->s, in, boxes, (size_t)n * 4 * sizeof(float)) : TPO_ENOMEM;
    if (rc == TPO_OK) rc = tpo_matmul(b->s, mid, H, in, 4, tpo_param_weight(d->box_w0), d->box_b0->data, 0, n, H, 4);
    if (rc == TPO_OK) rc = tpo_relu(b->s, mid, mid, (int64_t)n * H);
    if (rc == TPO_OK) rc = tpo_matmul(b->s, out, D, mid, H, tpo_param_weight(d->box_w1), d->box_b1->data, 0, n, D, H);
    if (rc == TPO_OK) rc = tpo_stream_wait(b->s);
    tpo_device_free(b->s, in);
    tpo_device_free(b->s, mid);
    return rc;
}

int tpo_batch_special(struct tpo_batch *b, float **out, const float *visual, int queries, const float (*boxes)[4], int n_boxes)
{
    const size_t D = (size_t)b->d->config->llm.hidden_size;
    int rc = TPO_OK;
    *out = tpo_device_alloc(b->s, (size_t)(queries + n_boxes) * D * sizeof(float));
    if (*out == NULL) return TPO_ENOMEM;
    if (queries > 0) rc = project(b, *out, visual, queries);
    if (rc == TPO_OK && n_boxes > 0) rc = encode_boxes(b, *out + (size_t)queries * D, boxes, n_boxes);
    if (rc == TPO_OK) return TPO_OK;
    tpo_device_free(b->s, *out);
    *out = NULL;
    return rc;
}
