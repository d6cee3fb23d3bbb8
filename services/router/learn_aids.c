/* This file owns the training-only aids of the language model: what each visual row should mean, and where attention heads
 * should look. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "services/router/learn_batch.h"

#define SLOT_BOX_WEIGHT    10.0F
#define SLOT_CENTRE_WEIGHT 3.0F

/* --- slots -------------------------------------------------------------------------------------------------------------------- */

struct slot_targets {
    int columns, n;            /* rows that any word describes, in order */
    int32_t *rows;             /* (n) of `projected` */
    int32_t *words;            /* (n, columns) vocabulary ids, -100 */
    float *boxes, *box_weight; /* (n, 4), (n) */
    int n_boxes;
    float *centres, *centre_weight; /* (samples*Q, 2), (samples*Q) */
    int n_centres;
};

static const struct tpo_named_tensor *target_find(const struct tpo_sample *s, const char *name, enum tpo_dtype dtype, int64_t rows,
                                                  int64_t cols)
{
    for (int i = 0; i < s->n_targets; i++) {
        const struct tpo_named_tensor *x = &s->targets[i];
        if (strcmp(x->name, name) == 0 && x->dtype == dtype && x->n_dims == 2 && x->shape[0] == rows &&
            (cols == 0 || x->shape[1] == cols))
            return x;
    }
    return NULL;
}

static bool targets_alloc(struct slot_targets *to, struct tpo_arena *arena, size_t rows, int columns)
{
    to->columns = columns;
    to->rows = tpo_arena_alloc(arena, rows * sizeof(*to->rows));
    to->words = tpo_arena_alloc(arena, rows * (size_t)columns * sizeof(*to->words));
    to->boxes = tpo_arena_calloc(arena, rows * 4 * sizeof(*to->boxes));
    to->box_weight = tpo_arena_calloc(arena, rows * sizeof(*to->box_weight));
    to->centres = tpo_arena_calloc(arena, rows * 2 * sizeof(*to->centres));
    to->centre_weight = tpo_arena_calloc(arena, rows * sizeof(*to->centre_weight));
    return to->rows != NULL && to->words != NULL && to->boxes != NULL && to->box_weight != NULL && to->centres != NULL &&
           to->centre_weight != NULL;
}

static void slot_read(struct slot_targets *to, int row, const int32_t *words, int n_words, const float *box, const float *centre)
{
    if (centre != NULL && !isnan(centre[0]) && !isnan(centre[1])) {
        memcpy(to->centres + 2 * (size_t)row, centre, 2 * sizeof(float));
        to->centre_weight[row] = 1;
        to->n_centres++;
    }
    bool any = false;
    for (int a = 0; a < n_words; a++) any = any || words[a] >= 0;
    if (!any) return;
    const int n = to->n++;
    to->rows[n] = row;
    for (int a = 0; a < to->columns; a++) to->words[(size_t)n * (size_t)to->columns + (size_t)a] = a < n_words ? words[a] : -100;
    if (box == NULL) return;
    memcpy(to->boxes + 4 * (size_t)n, box, 4 * sizeof(float));
    to->box_weight[n] = 1;
    to->n_boxes++;
}

static int targets_read(struct slot_targets *to, struct tpo_tape *t, const struct tpo_learn_batch *b, struct tpo_error *err)
{
    const struct tpo_forward *f = b->f;
    int columns = 1;
    for (int s = 0; s < f->n_samples; s++) {
        const struct tpo_named_tensor *words = target_find(&f->samples[s], "slot.words", TPO_I32, b->queries, 0);
        if (words != NULL && words->shape[1] > columns) columns = (int)words->shape[1];
    }
    if (!targets_alloc(to, tpo_tape_arena(t), (size_t)f->n_samples * (size_t)b->queries, columns))
        return tpo_fail(err, TPO_ENOMEM, "no_memory", "no memory for slot targets");
    for (int s = 0; s < f->n_samples; s++) {
        const struct tpo_named_tensor *words = target_find(&f->samples[s], "slot.words", TPO_I32, b->queries, 0);
        const struct tpo_named_tensor *boxes = target_find(&f->samples[s], "slot.boxes", TPO_F32, b->queries, 4);
        const struct tpo_named_tensor *centres = target_find(&f->samples[s], "slot.centres", TPO_F32, b->queries, 2);
        if (words == NULL)
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "slot_targets", "sample %d lacks slot.words (%d, n)", s, b->queries);
        const int n_words = (int)words->shape[1];
        for (int q = 0; q < b->queries; q++)
            slot_read(to, s * b->queries + q, (const int32_t *)words->data + (int64_t)q * n_words, n_words,
                      boxes != NULL ? (const float *)boxes->data + (int64_t)q * 4 : NULL,
                      centres != NULL ? (const float *)centres->data + (int64_t)q * 2 : NULL);
    }
    return TPO_OK;
}

static int int_compare(const void *a, const void *b)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* One attribute: a softmax over scaled products with the embeddings of the words that occur in its column of this micro-batch,
 * so that one row can hold a word of every attribute. */
static struct tpo_tensor *word_loss(struct tpo_tape *t, const struct tpo_learn_batch *b, const struct slot_targets *to,
                                    struct tpo_tensor *rows, struct tpo_tensor *embeddings, int column, struct tpo_error *err)
{
    struct tpo_arena *arena = tpo_tape_arena(t);
    int32_t *label = tpo_arena_alloc(arena, (size_t)to->n * sizeof(*label)),
            *words = tpo_arena_alloc(arena, (size_t)to->n * sizeof(*words));
    int n_labels = 0, n_words = 0;
    if (label == NULL || words == NULL) {
        tpo_tape_check(t, TPO_ENOMEM);
        return NULL;
    }
    for (int i = 0; i < to->n; i++) {
        const int32_t word = to->words[(size_t)i * (size_t)to->columns + (size_t)column];
        if (word >= b->learn->decoder->config->llm.vocab_size) {
            tpo_fail(err, TPO_INVALID_ARGUMENT, "slot_word", "slot.words holds %d, past the vocabulary", word);
            return NULL;
        }
        label[i] = word >= 0 ? word : -100;
        if (word >= 0) words[n_labels++] = word;
    }
    qsort(words, (size_t)n_labels, sizeof(*words), int_compare);
    for (int i = 0; i < n_labels; i++)
        if (i == 0 || words[i] != words[i - 1]) words[n_words++] = words[i];
    if (n_words < 2) return NULL;
    for (int i = 0; i < to->n; i++) {
        if (label[i] < 0) continue;
        const int32_t *found = bsearch(&label[i], words, (size_t)n_words, sizeof(*words), int_compare);
        label[i] = (int32_t)(found - words);
    }
    struct tpo_tensor *logits =
        tpo_times(t, tpo_product(t, rows, tpo_take_rows(t, embeddings, words, n_words), NULL), 1 / sqrtf((float)rows->cols));
    return tpo_loss_cross_entropy(t, logits, label, NULL, 1 / (float)n_labels);
}

struct tpo_tensor *tpo_learn_slot_loss(struct tpo_tape *t, const struct tpo_learn_batch *b, struct tpo_tensor *projected,
                                       struct tpo_error *err)
{
    const struct tpo_decoder *d = b->learn->decoder;
    struct slot_targets to = {0};
    if (targets_read(&to, t, b, err) != TPO_OK) return NULL;
    struct tpo_tensor *loss = NULL;
    if (to.n > 0) {
        struct tpo_tensor *rows = tpo_take_rows(t, projected, to.rows, to.n);
        struct tpo_tensor *embeddings = tpo_param_tensor(t, d->embed_tokens, d->config->llm.vocab_size, d->config->llm.hidden_size);
        for (int a = 0; a < to.columns && rows != NULL; a++)
            loss = tpo_loss_sum(t, loss, word_loss(t, b, &to, rows, embeddings, a, err));
        if (to.n_boxes > 0)
            loss = tpo_loss_sum(t, loss,
                                tpo_loss_l1(t, tpo_linear(t, rows, d->slot_box_w, d->slot_box_b), to.boxes, to.box_weight,
                                            SLOT_BOX_WEIGHT / (4 * (float)to.n_boxes)));
    }
    if (to.n_centres == 0) return loss;
    struct tpo_tensor *centres = tpo_linear(t, projected, d->slot_centre_w, d->slot_centre_b);
    return tpo_loss_sum(t, loss,
                        tpo_loss_mse(t, centres, to.centres, to.centre_weight, SLOT_CENTRE_WEIGHT / (2 * (float)to.n_centres)));
}

/* --- attention ---------------------------------------------------------------------------------------------------------------- */

/* Row of the sample that a place names; -1 when the conversation has none. */
static int place_row(const struct tpo_packed *p, enum tpo_attention_place place, int offset)
{
    int row = -1, said;
    switch (place) {
    case TPO_AT_VECTOR:
        row = p->prompt.n_slots > 0 ? p->prompt.slots[0].position : -1;
        break;
    case TPO_AT_ANSWER:
        said = tpo_prompt_answer_word(&p->prompt, offset);
        row = said > p->prefix ? said - 1 : -1;
        break;
    case TPO_AT_WORD:
        row = tpo_prompt_word(&p->prompt, offset);
        break;
    case TPO_AT_SLOTS:
        break;
    }
    return row < 0 || row >= p->prompt.n ? -1 : tpo_learn_row(p, row);
}

/* Rows of one layer's loss: (sample, query, head), the distribution wanted, the weight. */
struct look {
    int n;
    int32_t *rows;
    float *target, *weight;
};

/* False when the goal cannot be seen from there (cut off, or after it). */
static bool goal_write(const struct tpo_learn_batch *b, const struct tpo_packed *p, const struct tpo_attention_target *a, int from,
                       float *target)
{
    memset(target, 0, (size_t)b->rows.T * sizeof(*target));
    if (a->to != TPO_AT_SLOTS) {
        const int to = place_row(p, a->to, a->to_offset);
        if (to < 0 || to > from) return false;
        target[to] = 1;
        return true;
    }
    if (a->slots == NULL || b->queries == 0 || a->n_slots != b->queries) return false;
    double sum = 0;
    for (int r = 0; r < p->prefix; r++) {
        if (p->prompt.visual[r] < 0) continue;
        target[r] = a->slots[p->prompt.visual[r]];
        sum += (double)target[r];
    }
    return sum > 0.5 && from >= p->prefix;
}

static void look_add(struct look *to, const struct tpo_learn_batch *b, const struct tpo_packed *p,
                     const struct tpo_attention_target *a)
{
    const int from = place_row(p, a->from, a->from_offset);
    if (from < 0 || a->weight <= 0 || !goal_write(b, p, a, from, to->target + (size_t)to->n * (size_t)b->rows.T)) return;
    to->rows[3 * to->n] = p->sample;
    to->rows[3 * to->n + 1] = from;
    to->rows[3 * to->n + 2] = a->head;
    to->weight[to->n++] = a->weight;
}

/* Each head's rows count as their mean. */
static void weights_share(struct look *l, int n_heads)
{
    for (int h = 0; h < n_heads; h++) {
        int n = 0;
        for (int i = 0; i < l->n; i++) n += l->rows[3 * i + 2] == h;
        for (int i = 0; i < l->n; i++)
            if (l->rows[3 * i + 2] == h) l->weight[i] /= (float)n;
    }
}

static struct tpo_tensor *layer_loss(struct tpo_tape *t, const struct tpo_learn_batch *b, const struct tpo_decoder_seen *seen,
                                     int layer, int most)
{
    struct tpo_arena *arena = tpo_tape_arena(t);
    struct look l = {.rows = tpo_arena_alloc(arena, 3 * (size_t)most * sizeof(*l.rows)),
                     .target = tpo_arena_alloc(arena, (size_t)most * (size_t)b->rows.T * sizeof(*l.target)),
                     .weight = tpo_arena_alloc(arena, (size_t)most * sizeof(*l.weight))};
    if (l.rows == NULL || l.target == NULL || l.weight == NULL) {
        tpo_tape_check(t, TPO_ENOMEM);
        return NULL;
    }
    for (int k = 0; k < b->n_packed; k++)
        for (int i = 0; i < b->packed[k].source->n_attention; i++)
            if (b->packed[k].source->attention[i].layer == layer)
                look_add(&l, b, &b->packed[k], &b->packed[k].source->attention[i]);
    if (l.n == 0) return NULL;
    const struct tpo_attention_shape shape = tpo_decoder_shape(b->learn->decoder, &b->rows);
    weights_share(&l, shape.H);
    return tpo_loss_attention_rows(t, seen->q, seen->k, &shape, l.rows, l.target, l.weight, l.n);
}

struct tpo_tensor *tpo_learn_attention_loss(struct tpo_tape *t, const struct tpo_learn_batch *b,
                                            const struct tpo_decoder_seen *seen, struct tpo_error *err)
{
    const struct tpo_config *c = b->learn->decoder->config;
    int *count = tpo_arena_calloc(tpo_tape_arena(t), (size_t)c->llm.num_hidden_layers * sizeof(*count));
    if (count == NULL) {
        tpo_tape_check(t, TPO_ENOMEM);
        return NULL;
    }
    for (int k = 0; k < b->n_packed; k++) {
        for (int i = 0; i < b->packed[k].source->n_attention; i++) {
            const struct tpo_attention_target *a = &b->packed[k].source->attention[i];
            if (a->layer < 0 || a->layer >= c->llm.num_hidden_layers || a->head < 0 || a->head >= c->llm.num_attention_heads) {
                tpo_fail(err, TPO_INVALID_ARGUMENT, "attention_target", "layer %d, head %d: this model has %d and %d", a->layer,
                         a->head, c->llm.num_hidden_layers, c->llm.num_attention_heads);
                return NULL;
            }
            count[a->layer]++;
        }
    }
    struct tpo_tensor *loss = NULL;
    for (int layer = 0; layer < c->llm.num_hidden_layers; layer++)
        if (count[layer] > 0) loss = tpo_loss_sum(t, loss, layer_loss(t, b, &seen[layer], layer, count[layer]));
    return loss;
}
