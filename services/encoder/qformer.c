/* This file owns the Q-Former: its tensors and its forward pass. */
#include "services/encoder/qformer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/vector.h"

#define BERT "qformer.bert."
#define EPS  1e-12F

static struct tpo_dense dense_declare(struct tpo_params *p, float scale, int out, int in, const char *name)
{
    return (struct tpo_dense){
        .w = tpo_param_of_product(tpo_params_declare(p, TPO_INIT_FAN_IN, scale, TPO_SHAPE(out, in), "%s.weight", name)),
        .b = tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(out), "%s.bias", name)};
}

static struct tpo_dense norm_declare(struct tpo_params *p, int C, const char *name)
{
    return (struct tpo_dense){.w = tpo_params_declare(p, TPO_INIT_ONE, 1, TPO_SHAPE(C), "%s.weight", name),
                              .b = tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(C), "%s.bias", name)};
}

static void attention_declare(struct tpo_qformer_attention *a, struct tpo_params *p, int C, int K, const char *name)
{
    char part[TPO_NAME_MAX];
    snprintf(part, sizeof(part), "%s.self.query", name);
    a->query = dense_declare(p, 0.7F, C, C, part);
    snprintf(part, sizeof(part), "%s.self.key", name);
    a->key = dense_declare(p, 0.7F, C, K, part);
    snprintf(part, sizeof(part), "%s.self.value", name);
    a->value = dense_declare(p, 0.7F, C, K, part);
    snprintf(part, sizeof(part), "%s.output.dense", name);
    a->output = dense_declare(p, 0.07F, C, C, part);
    snprintf(part, sizeof(part), "%s.output.LayerNorm", name);
    a->norm = norm_declare(p, C, part);
}

/* The small model's start (docs/model.md, Starts): W_k = W_q, so that equal positions attract, and W_o = 2 W_v^T,
 * so that what is read arrives. */
static void cross_start(struct tpo_qformer_attention *a)
{
    if (a->query.w == NULL || a->key.w == NULL || a->value.w == NULL || a->output.w == NULL) return;
    a->query.w->init = a->key.w->init = a->value.w->init = a->output.w->init = TPO_INIT_ORTHOGONAL;
    a->query.w->scale = a->key.w->scale = 1.3F;
    a->value.w->scale = 1;
    a->output.w->scale = 2;
    if (a->key.w->size == a->query.w->size) a->key.w->like = a->query.w;
    if (a->value.w->size == a->output.w->size) {
        a->output.w->like = a->value.w;
        a->output.w->like_transposed = true;
    }
}

static void ignore(struct tpo_dense d)
{
    if (d.w != NULL) d.w->ignored = true;
    if (d.b != NULL) d.b->ignored = true;
}

static void layer_declare(struct tpo_qformer_layer *l, struct tpo_params *p, const struct tpo_config *c, int index)
{
    const int C = c->bridge.hidden_size, F = c->bridge.intermediate_size;
    char name[64], part[TPO_NAME_MAX];
    snprintf(name, sizeof(name), BERT "encoder.layer.%d", index);
    snprintf(part, sizeof(part), "%s.attention", name);
    attention_declare(&l->self, p, C, C, part);
    if (index % c->bridge.cross_attention_freq == 0) {
        snprintf(part, sizeof(part), "%s.crossattention", name);
        attention_declare(&l->cross, p, C, c->vision_encoder.encoder_embed_dim, part);
        if (c->bridge.ext_key_position) cross_start(&l->cross);
    }
    const struct {
        struct tpo_dense *inner, *outer, *norm;
        const char *suffix;
    } rows[] = {{&l->inner_query, &l->outer_query, &l->norm_query, "_query"}, {&l->inner, &l->outer, &l->norm, ""}};
    for (int i = 0; i < 2; i++) {
        snprintf(part, sizeof(part), "%s.intermediate%s.dense", name, rows[i].suffix);
        *rows[i].inner = dense_declare(p, 0.7F, F, C, part);
        snprintf(part, sizeof(part), "%s.output%s.dense", name, rows[i].suffix);
        *rows[i].outer = dense_declare(p, 0.07F, C, F, part);
        snprintf(part, sizeof(part), "%s.output%s.LayerNorm", name, rows[i].suffix);
        *rows[i].norm = norm_declare(p, C, part);
    }
    /* The text rows' half is checked and never read: no released path gives the Q-Former a text. */
    ignore(l->inner);
    ignore(l->outer);
    ignore(l->norm);
}

int tpo_qformer_declare(struct tpo_qformer *q, struct tpo_params *p, const struct tpo_config *c)
{
    const int C = c->bridge.hidden_size, L = c->bridge.max_position_embeddings;
    const bool grid = c->bridge.ext_key_position;
    memset(q, 0, sizeof(*q));
    q->config = c;
    q->layers = calloc((size_t)c->bridge.num_hidden_layers, sizeof(*q->layers));
    if (q->layers == NULL) return TPO_ENOMEM;
    q->queries = tpo_params_declare(p, grid ? TPO_INIT_SINCOS_2D : TPO_INIT_NORMAL, grid ? 1.4F : 0.02F,
                                    TPO_SHAPE(1, c->bridge.num_query_token, C), "query_tokens");
    if (c->bridge.extra_num_query_token > 0)
        q->extra_queries =
            tpo_params_declare(p, TPO_INIT_NORMAL, 0.02F, TPO_SHAPE(1, c->bridge.extra_num_query_token, C), "extra_query_tokens");
    q->words =
        tpo_params_declare(p, TPO_INIT_NORMAL, 0.02F, TPO_SHAPE(c->bridge.vocab_size, C), BERT "embeddings.word_embeddings.weight");
    q->positions = tpo_params_declare(p, TPO_INIT_NORMAL, 0.02F, TPO_SHAPE(L, C), BERT "embeddings.position_embeddings.weight");
    struct tpo_param *ids = tpo_params_declare(p, TPO_INIT_ZERO, 0, TPO_SHAPE(1, L), BERT "embeddings.position_ids");
    q->norm = norm_declare(p, C, BERT "embeddings.LayerNorm");
    if (q->words == NULL || q->positions == NULL || ids == NULL) return TPO_ENOMEM;
    q->words->ignored = q->positions->ignored = ids->ignored = true;
    if (grid)
        q->key_position =
            tpo_params_declare(p, TPO_INIT_SINCOS_2D, 1, TPO_SHAPE(tpo_config_patches(c), c->vision_encoder.encoder_embed_dim),
                               "ext.encoder.key_position");
    for (int i = 0; i < c->bridge.num_hidden_layers; i++) layer_declare(&q->layers[i], p, c, i);
    return q->norm.b != NULL ? TPO_OK : TPO_ENOMEM;
}

void tpo_qformer_close(struct tpo_qformer *q)
{
    free(q->layers);
    memset(q, 0, sizeof(*q));
}

/* What the layers share during one pass. Rows of h are sample-major: `queries` query rows, then the text rows. */
struct pass {
    struct tpo_tape *t;
    const struct tpo_qformer *q;
    const struct tpo_qformer_input *in;
    struct tpo_tensor *keys;         /* visual rows with their positions */
    int queries, rows;               /* per sample */
    const int32_t *segments;         /* self attention's mask; NULL without text */
    int32_t *query_rows, *text_rows; /* where they lie in h */
    uint64_t draws;
    float drop_path;
};

static struct tpo_tensor *dense(struct pass *s, struct tpo_tensor *x, const struct tpo_dense *d)
{
    return tpo_linear(s->t, x, d->w, d->b);
}

static bool learns(const struct tpo_dense *d)
{
    return d->w->grad != NULL || d->b->grad != NULL;
}

/* LN(W x + b + residual), with the published dropout and stochastic depth on what is added where the sublayer is live. */
static struct tpo_tensor *add_norm(struct pass *s, struct tpo_tensor *x, const struct tpo_dense *out, const struct tpo_dense *norm,
                                   struct tpo_tensor *residual, int group, bool live)
{
    x = dense(s, x, out);
    x = tpo_drop(s->t, x, live ? s->in->dropout : 0, tpo_random_u64(s->in->noise, s->draws++));
    x = tpo_drop_groups(s->t, x, live ? s->drop_path : 0, group, tpo_random_u64(s->in->noise, s->draws++));
    return tpo_norm_layer(s->t, tpo_plus(s->t, x, residual), norm->w, norm->b, EPS);
}

static struct tpo_tensor *attention(struct pass *s, const struct tpo_qformer_attention *a, struct tpo_tensor *x, int T,
                                    struct tpo_tensor *kv, int S, const int32_t *segments)
{
    const int H = s->q->config->bridge.num_attention_heads, D = s->q->config->bridge.hidden_size / H;
    const struct tpo_attention_shape shape = {
        .B = s->in->B, .T = T, .S = S, .H = H, .G = H, .D = D, .scale = 1 / sqrtf((float)D), .segments = segments};
    const bool live = learns(&a->query) || learns(&a->key) || learns(&a->value) || learns(&a->output) || learns(&a->norm);
    struct tpo_tensor *o = tpo_attend(s->t, dense(s, x, &a->query), dense(s, kv, &a->key), dense(s, kv, &a->value), &shape);
    return add_norm(s, o, &a->output, &a->norm, x, T, live);
}

static struct tpo_tensor *feed_forward(struct pass *s, struct tpo_tensor *x, const struct tpo_dense *inner,
                                       const struct tpo_dense *outer, const struct tpo_dense *norm, int group)
{
    const bool live = learns(inner) || learns(outer) || learns(norm);
    return add_norm(s, tpo_act_gelu(s->t, dense(s, x, inner)), outer, norm, x, group, live);
}

static struct tpo_tensor *join(struct pass *s, struct tpo_tensor *queries, struct tpo_tensor *text)
{
    const int rows = s->in->B * s->rows;
    int32_t *from_queries = tpo_arena_alloc(tpo_tape_arena(s->t), (size_t)rows * sizeof(*from_queries));
    int32_t *from_text = tpo_arena_alloc(tpo_tape_arena(s->t), (size_t)rows * sizeof(*from_text));
    if (from_queries == NULL || from_text == NULL) return NULL;
    for (int m = 0; m < rows; m++) {
        const int b = m / s->rows, r = m % s->rows;
        from_queries[m] = r < s->queries ? b * s->queries + r : -1;
        from_text[m] = r < s->queries ? -1 : b * s->in->text_length + r - s->queries;
    }
    return tpo_pick_rows(s->t, 2, (struct tpo_tensor *const[]){queries, text}, (const int32_t *const[]){from_queries, from_text},
                         rows);
}

static struct tpo_tensor *layer_forward(struct pass *s, int index, struct tpo_tensor *h)
{
    const struct tpo_qformer_layer *l = &s->q->layers[index];
    const int B = s->in->B, n_layers = s->q->config->bridge.num_hidden_layers, text = s->in->text_length;
    s->drop_path = n_layers > 1 ? s->in->drop_path * (float)index / (float)(n_layers - 1) : 0;
    struct tpo_tensor *a = attention(s, &l->self, h, s->rows, h, s->rows, s->segments);
    struct tpo_tensor *queries = text > 0 ? tpo_take_rows(s->t, a, s->query_rows, B * s->queries) : a;
    if (l->cross.query.w != NULL) queries = attention(s, &l->cross, queries, s->queries, s->keys, s->in->N, NULL);
    queries = feed_forward(s, queries, &l->inner_query, &l->outer_query, &l->norm_query, s->queries);
    if (text == 0 || index == n_layers - 1) return queries; /* nobody reads the last layer's text rows */
    struct tpo_tensor *words = tpo_take_rows(s->t, a, s->text_rows, B * text);
    return join(s, queries, feed_forward(s, words, &l->inner, &l->outer, &l->norm, text));
}

static bool embeddings_learn(const struct tpo_qformer *q)
{
    return q->queries->grad != NULL || (q->extra_queries != NULL && q->extra_queries->grad != NULL) || learns(&q->norm);
}

static struct tpo_tensor *embed_queries(struct pass *s)
{
    const struct tpo_config *c = s->q->config;
    const int C = c->bridge.hidden_size, own = c->bridge.num_query_token, n = s->in->B * s->queries;
    int32_t *first = tpo_arena_alloc(tpo_tape_arena(s->t), (size_t)n * sizeof(*first));
    int32_t *second = tpo_arena_alloc(tpo_tape_arena(s->t), (size_t)n * sizeof(*second));
    if (first == NULL || second == NULL) return NULL;
    for (int m = 0; m < n; m++) {
        const int r = m % s->queries;
        first[m] = r < own ? r : -1;
        second[m] = r < own ? -1 : r - own;
    }
    struct tpo_tensor *sources[2] = {tpo_param_tensor(s->t, s->q->queries, own, C), NULL};
    if (s->q->extra_queries != NULL) sources[1] = tpo_param_tensor(s->t, s->q->extra_queries, c->bridge.extra_num_query_token, C);
    return tpo_pick_rows(s->t, s->q->extra_queries != NULL ? 2 : 1, sources, (const int32_t *const[]){first, second}, n);
}

/* Words with positions counted from the first text row, and who may see whom: a padded row's own segment hides it from all
 * others. */
static struct tpo_tensor *embed_text(struct pass *s)
{
    const struct tpo_config *c = s->q->config;
    const int C = c->bridge.hidden_size, B = s->in->B, L = s->in->text_length, n = B * L;
    struct tpo_arena *arena = tpo_tape_arena(s->t);
    int32_t *position = tpo_arena_alloc(arena, (size_t)n * sizeof(*position));
    int32_t *segments = tpo_arena_calloc(arena, (size_t)B * (size_t)s->rows * sizeof(*segments));
    s->text_rows = tpo_arena_alloc(arena, (size_t)n * sizeof(*s->text_rows));
    s->query_rows = tpo_arena_alloc(arena, (size_t)B * (size_t)s->queries * sizeof(*s->query_rows));
    if (position == NULL || segments == NULL || s->text_rows == NULL || s->query_rows == NULL) return NULL;
    for (int m = 0; m < n; m++) {
        position[m] = m % L;
        s->text_rows[m] = m / L * s->rows + s->queries + m % L;
        if (s->in->text_mask[m] == 0) segments[s->text_rows[m]] = 1 + m % L;
    }
    for (int m = 0; m < B * s->queries; m++) s->query_rows[m] = m / s->queries * s->rows + m % s->queries;
    s->segments = segments;
    struct tpo_tensor *words =
        tpo_take_rows(s->t, tpo_param_tensor(s->t, s->q->words, c->bridge.vocab_size, C), s->in->text_ids, n);
    struct tpo_tensor *places = tpo_param_tensor(s->t, s->q->positions, c->bridge.max_position_embeddings, C);
    return tpo_plus(s->t, words, tpo_take_rows(s->t, places, position, n));
}

struct tpo_tensor *tpo_qformer_forward(struct tpo_tape *t, const struct tpo_qformer *q, const struct tpo_qformer_input *in)
{
    const struct tpo_config *c = q->config;
    struct pass s = {.t = t, .q = q, .in = in, .keys = in->visual, .queries = tpo_config_queries(c)};
    s.rows = s.queries + in->text_length;
    if (q->key_position != NULL)
        s.keys = tpo_plus_rows(t, in->visual,
                               tpo_param_tensor(t, q->key_position, tpo_config_patches(c), c->vision_encoder.encoder_embed_dim));
    struct tpo_tensor *h = embed_queries(&s);
    if (in->text_length > 0) {
        struct tpo_tensor *text = embed_text(&s);
        h = join(&s, h, text);
    }
    h = tpo_norm_layer(t, h, q->norm.w, q->norm.b, EPS);
    h = tpo_drop(t, h, embeddings_learn(q) ? in->dropout : 0, tpo_random_u64(in->noise, s.draws++));
    for (int i = 0; i < c->bridge.num_hidden_layers && h != NULL; i++) {
        const struct tpo_scope scope = tpo_scope_begin(t);
        h = tpo_scope_end(t, scope, layer_forward(&s, i, h));
    }
    return h;
}
