/* This file owns the cases that decode: teacher-forced greedy steps, the side step of a task vector, the cache's contents. They
 * run on what serves: the pool of keys and values and the batched pass of services/router, adapters merged and apart. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/loss.h"
#include "services/router/batch.h"
#include "tests/parity/llm.h"

#define POOL_BYTES ((size_t)64 << 20)

/* One sequence being fed; what came out of every row that was asked for. */
struct feed {
    struct tpo_parity_model *m;
    struct tpo_case *c;
    struct tpo_kv kv;
    struct tpo_batch *batch;
    int position; /* the next row's */
    int rows;     /* kept so far */
    float *hidden, *logits;
};

static void feed_close(struct feed *f)
{
    tpo_batch_close(f->batch);
    tpo_kv_close(&f->kv);
    free(f->hidden);
    free(f->logits);
}

static bool feed_open(struct feed *f, struct tpo_parity_model *m, struct tpo_case *c, int tokens, bool merge)
{
    struct tpo_error err = {0};
    const struct tpo_config *config = &m->config;
    *f = (struct feed){.m = m, .c = c};
    f->hidden = malloc((size_t)tokens * (size_t)config->llm.hidden_size * sizeof(float));
    f->logits = malloc((size_t)tokens * (size_t)config->llm.vocab_size * sizeof(float));
    bool fine = f->hidden != NULL && f->logits != NULL && tpo_kv_open(&f->kv, c->stream, config, POOL_BYTES, 1, &err) == TPO_OK;
    fine = fine && tpo_kv_take(&f->kv, 0, tokens, &err) == TPO_OK;
    fine = fine && tpo_batch_open(&f->batch, c->stream, &m->decoder, &f->kv, tokens, merge, &err) == TPO_OK;
    if (!fine) tpo_case_fail(c, "the serving engine did not open: %s", err.message);
    return fine;
}

/* Runs rows first.. of a table as one prompt, or one row as an answer's; keeps the last row's hidden state and logits. */
static void feed_rows(struct feed *f, const float *table, int table_rows, int first, int n, bool prompt)
{
    const int D = f->m->config.llm.hidden_size, V = f->m->config.llm.vocab_size;
    const float *hidden;
    if (f->c->failed) return;
    struct tpo_batch_row *rows = calloc((size_t)n, sizeof(*rows));
    for (int k = 0; rows != NULL && k < n; k++)
        rows[k] = (struct tpo_batch_row){
            .seq = 0, .position = f->position++, .table = tpo_f32(table), .table_rows = table_rows, .index = first + k};
    const int32_t last = n - 1;
    if (rows == NULL || tpo_batch_run(f->batch, rows, n, prompt, &hidden) != TPO_OK) {
        tpo_case_fail(f->c, "the serving pass failed at row %d", f->position);
    } else {
        tpo_copy_out(f->c->stream, f->hidden + (int64_t)f->rows * D, hidden + (int64_t)last * D, (size_t)D * sizeof(float));
        if (tpo_batch_logits(f->batch, &last, 1, f->logits + (int64_t)f->rows * V) != TPO_OK)
            tpo_case_fail(f->c, "the head failed at row %d", f->position);
        f->rows++;
    }
    free(rows);
}

static void feed_prompt(struct feed *f)
{
    const int P = tpo_case_dim(f->c, "input/prompt_embeds", 1);
    const float *prompt = tpo_case_f32(f->c, "input/prompt_embeds", (int64_t)P * f->m->config.llm.hidden_size);
    if (prompt != NULL) feed_rows(f, prompt, P, 0, P, true);
}

static void feed_id(struct feed *f, int id)
{
    const int V = f->m->config.llm.vocab_size;
    const float *table = f->m->decoder.embed_tokens->data;
    if (table == NULL || id < 0 || id >= V)
        tpo_case_fail(f->c, "id %d has no embedding in this case", id);
    else
        feed_rows(f, table, V, id, 1, false);
}

static void feed_vector(struct feed *f, const struct tpo_param *vector)
{
    if (vector == NULL || vector->data == NULL)
        tpo_case_fail(f->c, "the task's vector is not in the case");
    else
        feed_rows(f, vector->data, 1, 0, 1, false);
}

static void hidden_compare(struct feed *f, const char *name, int first, int n)
{
    const int D = f->m->config.llm.hidden_size;
    tpo_case_compare(f->c, name, f->hidden + (int64_t)first * D, (int64_t)n * D, NULL);
}

static void logits_compare(struct feed *f, const char *name, int first, int n)
{
    const int V = f->m->config.llm.vocab_size;
    tpo_case_compare(f->c, name, f->logits + (int64_t)first * V, (int64_t)n * V, NULL);
}

/* One layer's pool against [1, heads, rows, head_dim], through the block table. */
static void pool_compare(struct feed *f, const char *name, const float *pool)
{
    const int D = f->m->config.llm.head_dim, G = f->m->config.llm.num_key_value_heads, S = f->position;
    float *turned = malloc((size_t)S * (size_t)(G * D) * sizeof(*turned));
    for (int s = 0; turned != NULL && s < S; s++) {
        const int64_t row = (int64_t)f->kv.blocks[s / TPO_KV_TOKENS] * TPO_KV_TOKENS + s % TPO_KV_TOKENS;
        for (int g = 0; g < G; g++)
            tpo_copy_out(f->c->stream, turned + ((int64_t)g * S + s) * D, pool + (row * G + g) * D, (size_t)D * sizeof(*turned));
    }
    tpo_case_compare(f->c, name, turned, (int64_t)S * G * D, NULL);
    free(turned);
}

static void cache_compare(struct feed *f)
{
    char name[48];
    for (int l = 0; l < f->m->config.llm.num_hidden_layers; l++) {
        snprintf(name, sizeof(name), "output/cache_k.%d", l);
        pool_compare(f, name, f->kv.k[l]);
        snprintf(name, sizeof(name), "output/cache_v.%d", l);
        pool_compare(f, name, f->kv.v[l]);
    }
}

static void greedy_case(struct tpo_parity_model *m, struct tpo_case *c, bool merge)
{
    const int n = tpo_case_dim(c, "output/greedy_ids", 0), P = tpo_case_dim(c, "input/prompt_embeds", 1);
    const int32_t *ids = tpo_case_i32(c, "output/greedy_ids", n);
    int32_t *chosen = malloc((size_t)(n + 1) * sizeof(*chosen));
    struct feed f = {0};
    if (ids != NULL && chosen != NULL && feed_open(&f, m, c, P + n, merge)) {
        feed_prompt(&f);
        for (int k = 0; k < n; k++) feed_id(&f, ids[k]);
        if (!c->failed && tpo_argmax(c->stream, chosen, f.logits, n + 1, m->config.llm.vocab_size) != TPO_OK)
            tpo_case_fail(c, "argmax failed");
        tpo_case_compare_i32(c, "output/greedy_ids", chosen, n);
        logits_compare(&f, "output/step_logits", 0, n + 1);
        hidden_compare(&f, "output/step_hidden", 0, n + 1);
        cache_compare(&f);
    }
    feed_close(&f);
    free(chosen);
}

/* trained: trigger, then v_i, into the cache. reference: v_i takes the trigger's place, its keys and values are then written
 * over by the trigger's. */
static void side_step_case(struct tpo_parity_model *m, struct tpo_case *c, bool merge)
{
    const json_t *later = json_object_get(c->config, "later_ids");
    const int trigger = tpo_case_int(c, "trigger_id"), slot = tpo_case_int(c, "slot_id"), n_later = (int)json_array_size(later);
    const char *context = tpo_case_string_or(c, "head_context", "");
    const bool trained = strcmp(context, "trained") == 0;
    const struct tpo_param *vector = NULL;
    if (!trained && strcmp(context, "reference") != 0) tpo_case_fail(c, "config.head_context: neither trained nor reference");
    for (int i = 0; i < m->config.n_tasks; i++)
        if (m->config.tasks[i].slot_id == slot) vector = m->decoder.vectors[i];
    struct feed f = {0};
    if (feed_open(&f, m, c, tpo_case_dim(c, "input/prompt_embeds", 1) + 4 + n_later, merge)) {
        feed_prompt(&f);
        logits_compare(&f, "output/prefill_logits", 0, 1);
        f.rows = 0;
        if (trained) feed_id(&f, trigger);
        feed_vector(&f, vector);
        hidden_compare(&f, "output/task_embedding", f.rows - 1, 1);
        if (!trained) {
            f.position--;
            f.rows = 0;
            feed_id(&f, trigger);
            feed_id(&f, slot);
        }
        for (int k = 0; k < n_later; k++) feed_id(&f, (int)json_integer_value(json_array_get(later, (size_t)k)));
        logits_compare(&f, "output/main_logits", 0, f.rows);
        cache_compare(&f);
    }
    feed_close(&f);
}

void tpo_parity_decode(struct tpo_parity_model *m, struct tpo_case *c)
{
    /* The engine takes its weights as loaded, that is complete. */
    for (int i = 0; i < m->params.n; i++)
        if (strncmp(m->params.items[i]->name, "lm.", 3) == 0 && m->params.items[i]->data == NULL)
            tpo_case_fail(c, "weight/%s: missing", m->params.items[i]->name);
    for (int merge = 0; merge < 2 && !c->failed; merge++) {
        if (tpo_case_find(c, "output/task_embedding") != NULL)
            side_step_case(m, c, merge != 0);
        else if (tpo_case_find(c, "output/greedy_ids") != NULL)
            greedy_case(m, c, merge != 0);
    }
}
