/* This file owns the cases that decode: teacher-forced greedy steps, the side step of a task vector, the cache's contents. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/loss.h"
#include "tests/parity/llm.h"

/* What one branch sees: the prompt's rows, then one row per id or vector. */
struct branch {
    int rows;
    float *embeds;
    struct tpo_tensor *hidden, *logits;
    struct tpo_decoder_seen *seen;
};

static void row_copy(struct tpo_parity_model *m, struct tpo_case *c, float *to, int id)
{
    const int D = m->config.llm.hidden_size;
    const struct tpo_param *table = m->decoder.embed_tokens;
    if (table->data == NULL || id < 0 || id >= m->config.llm.vocab_size) tpo_case_fail(c, "id %d has no embedding in this case", id);
    else memcpy(to, table->data + (int64_t)id * D, (size_t)D * sizeof(*to));
}

static bool branch_start(struct tpo_parity_model *m, struct tpo_case *c, struct branch *b, int more)
{
    const int P = tpo_case_dim(c, "input/prompt_embeds", 1), D = m->config.llm.hidden_size;
    const float *prompt = tpo_case_f32(c, "input/prompt_embeds", (int64_t)P * D);
    *b = (struct branch){.rows = P};
    b->embeds = prompt != NULL ? malloc((size_t)(P + more) * (size_t)D * sizeof(float)) : NULL;
    if (b->embeds == NULL) {
        tpo_case_fail(c, "no memory");
        return false;
    }
    memcpy(b->embeds, prompt, (size_t)P * (size_t)D * sizeof(float));
    return true;
}

static void branch_add(struct tpo_parity_model *m, struct tpo_case *c, struct branch *b, int id)
{
    row_copy(m, c, b->embeds + (int64_t)b->rows++ * m->config.llm.hidden_size, id);
}

static void branch_add_vector(struct tpo_parity_model *m, struct tpo_case *c, struct branch *b, const struct tpo_param *vector)
{
    const int D = m->config.llm.hidden_size;
    if (vector == NULL || vector->data == NULL) tpo_case_fail(c, "the task's vector is not in the case");
    else memcpy(b->embeds + (int64_t)b->rows * D, vector->data, (size_t)D * sizeof(float));
    b->rows++;
}

static bool branch_run(struct tpo_parity_model *m, struct tpo_case *c, struct branch *b)
{
    if (c->failed) return false;
    struct tpo_arena *arena = tpo_tape_arena(m->tape);
    int32_t *positions = tpo_arena_alloc(arena, (size_t)b->rows * sizeof(*positions));
    b->seen = tpo_arena_calloc(arena, (size_t)m->config.llm.num_hidden_layers * sizeof(*b->seen));
    if (positions == NULL || b->seen == NULL) return false;
    for (int k = 0; k < b->rows; k++) positions[k] = k;
    const struct tpo_decoder_batch batch = {.B = 1, .T = b->rows, .positions = positions};
    struct tpo_tensor *x = tpo_input(m->tape, b->embeds, b->rows, m->config.llm.hidden_size, false);
    b->hidden = tpo_decoder_forward(m->tape, &m->decoder, x, &batch, 0, 0, b->seen);
    b->logits = tpo_decoder_logits(m->tape, &m->decoder, b->hidden, 0, 0);
    tpo_parity_check(m, c);
    return !c->failed;
}

static void rows_compare(struct tpo_parity_model *m, struct tpo_case *c, const char *name, const struct tpo_tensor *x, int first, int n)
{
    (void)m;
    tpo_case_compare(c, name, x->data + (int64_t)first * x->cols, (int64_t)n * x->cols, NULL);
}

/* Keys or values (rows, heads * D) against [1, heads, rows, D]. */
static void cache_one(struct tpo_parity_model *m, struct tpo_case *c, const char *name, const struct tpo_tensor *x)
{
    const int D = m->config.llm.head_dim, G = m->config.llm.num_key_value_heads;
    float *turned = malloc((size_t)x->rows * (size_t)x->cols * sizeof(*turned));
    for (int s = 0; turned != NULL && s < x->rows; s++)
        for (int g = 0; g < G; g++)
            memcpy(turned + ((int64_t)g * x->rows + s) * D, x->data + (int64_t)s * x->cols + (int64_t)g * D, (size_t)D * sizeof(*turned));
    tpo_case_compare(c, name, turned, (int64_t)x->rows * x->cols, NULL);
    free(turned);
}

static void cache_compare(struct tpo_parity_model *m, struct tpo_case *c, const struct branch *b)
{
    char name[48];
    for (int l = 0; l < m->config.llm.num_hidden_layers; l++) {
        snprintf(name, sizeof(name), "output/cache_k.%d", l);
        cache_one(m, c, name, b->seen[l].k);
        snprintf(name, sizeof(name), "output/cache_v.%d", l);
        cache_one(m, c, name, b->seen[l].v);
    }
}

static void greedy_case(struct tpo_parity_model *m, struct tpo_case *c)
{
    const int n = tpo_case_dim(c, "output/greedy_ids", 0);
    const int32_t *ids = tpo_case_i32(c, "output/greedy_ids", n);
    struct branch b = {0};
    if (ids != NULL && branch_start(m, c, &b, n)) {
        const int P = b.rows;
        for (int k = 0; k < n; k++) branch_add(m, c, &b, ids[k]);
        if (branch_run(m, c, &b)) {
            int32_t *chosen = malloc((size_t)(n + 1) * sizeof(*chosen));
            const int64_t V = m->config.llm.vocab_size;
            if (chosen == NULL || tpo_argmax(c->stream, chosen, b.logits->data + (P - 1) * V, n + 1, (int)V) != TPO_OK) tpo_case_fail(c, "argmax failed");
            tpo_case_compare_i32(c, "output/greedy_ids", chosen, n);
            rows_compare(m, c, "output/step_logits", b.logits, P - 1, n + 1);
            rows_compare(m, c, "output/step_hidden", b.hidden, P - 1, n + 1);
            cache_compare(m, c, &b);
            free(chosen);
        }
    }
    free(b.embeds);
}

static void side_step_case(struct tpo_parity_model *m, struct tpo_case *c)
{
    const json_t *later = json_object_get(c->config, "later_ids");
    const int trigger = tpo_case_int(c, "trigger_id"), slot = tpo_case_int(c, "slot_id"), n_later = (int)json_array_size(later);
    const char *context = tpo_case_string_or(c, "head_context", "");
    const bool trained = strcmp(context, "trained") == 0;
    const struct tpo_param *vector = NULL;
    if (!trained && strcmp(context, "reference") != 0) tpo_case_fail(c, "config.head_context: neither trained nor reference");
    for (int i = 0; i < m->config.n_tasks; i++)
        if (m->config.tasks[i].slot_id == slot) vector = m->decoder.vectors[i];
    struct branch main = {0}, side = {0};
    if (branch_start(m, c, &main, 2 + n_later) && branch_start(m, c, &side, 1)) {
        const int P = main.rows;
        branch_add(m, c, &main, trigger);
        if (trained) branch_add_vector(m, c, &main, vector);
        else branch_add(m, c, &main, slot);
        for (int k = 0; k < n_later; k++) branch_add(m, c, &main, (int)json_integer_value(json_array_get(later, (size_t)k)));
        branch_add_vector(m, c, &side, vector);
        if (branch_run(m, c, &main) && (trained || branch_run(m, c, &side))) {
            rows_compare(m, c, "output/prefill_logits", main.logits, P - 1, 1);
            if (trained) rows_compare(m, c, "output/task_embedding", main.hidden, P + 1, 1);
            else rows_compare(m, c, "output/task_embedding", side.hidden, P, 1);
            rows_compare(m, c, "output/main_logits", main.logits, P, 2 + n_later);
            cache_compare(m, c, &main);
        }
    }
    free(main.embeds);
    free(side.embeds);
}

void tpo_parity_decode(struct tpo_parity_model *m, struct tpo_case *c)
{
    if (tpo_case_find(c, "output/task_embedding") != NULL) side_step_case(m, c);
    else if (tpo_case_find(c, "output/greedy_ids") != NULL) greedy_case(m, c);
}
