/* This file owns the router's training pass: packing, the decoder, the language loss, the rows of e. */
#include "services/router/learn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/vector.h"
#include "nn/tokenizer.h"
#include "services/router/learn_batch.h"
#include "services/router/router.h"

static int prompts_make(struct tpo_learn_batch *b, struct tpo_error *err)
{
    const struct tpo_forward *f = b->f;
    for (int s = 0; s < f->n_samples; s++) b->n_packed += f->samples[s].n_conversations;
    if (b->n_packed == 0) return tpo_fail(err, TPO_INVALID_ARGUMENT, "no_conversations", "no sample holds a conversation");
    b->packed = calloc((size_t)b->n_packed, sizeof(*b->packed));
    if (b->packed == NULL) return tpo_fail(err, TPO_ENOMEM, "no_memory", "no memory for %d conversations", b->n_packed);
    struct tpo_packed *p = b->packed;
    for (int s = 0; s < f->n_samples; s++) {
        for (int i = 0; i < f->samples[s].n_conversations; i++, p++) {
            p->sample = s;
            p->conversation = i;
            p->source = &f->samples[s].conversations[i];
            const char *kind = b->queries == 0 ? NULL : f->samples[s].n_frames == 1 ? "image" : "video";
            const int code =
                tpo_prompt_train(&p->prompt, b->learn->tokenizer, b->learn->decoder->config, p->source, kind, b->queries, err);
            if (code != TPO_OK) return code;
            p->prefix = p->prompt.n_prefix;
        }
    }
    return TPO_OK;
}

/* Lays the conversations out: each sample's prefix once, then every conversation's own rows. Answers the length of the longest
 * sample. */
static int starts_set(struct tpo_learn_batch *b, int32_t *lengths)
{
    int longest = 1;
    for (int k = 0; k < b->n_packed; k++) {
        struct tpo_packed *p = &b->packed[k];
        int32_t *length = &lengths[p->sample];
        if (p->conversation == 0) *length = p->prefix;
        p->start = *length;
        *length += p->prompt.n - p->prefix;
        if (*length > longest) longest = *length;
    }
    return longest;
}

static void row_fill(struct tpo_learn_batch *b, const struct tpo_packed *p, int r, int32_t *positions, int32_t *segments)
{
    const int m = p->sample * b->rows.T + tpo_learn_row(p, r);
    b->ids[m] = p->prompt.ids[r];
    b->visual[m] = p->prompt.visual[r] < 0 ? -1 : p->sample * b->queries + p->prompt.visual[r];
    positions[m] = r;
    segments[m] = r < p->prefix ? 0 : p->conversation + 1;
    if (p->prompt.ids[r] != b->learn->decoder->config->track_box_id || p->prompt.visual[r] >= 0) return;
    /* Boxes follow the order of <track_box> in the rows; a token without a box of its own keeps the next one's from shifting. */
    int before = 0;
    for (int k = p->prefix; k < r; k++) before += p->prompt.ids[k] == p->prompt.ids[r];
    if (before < p->source->n_user_boxes)
        memcpy(b->boxes + 4 * (size_t)b->n_boxes, p->source->user_boxes[before], 4 * sizeof(float));
    b->n_boxes++;
}

static bool is_learned(const struct tpo_prompt *p, int row)
{
    return p->labels[row] != TPO_LABEL_NONE && p->weights[row] > 0;
}

static int first_learned(const struct tpo_packed *p)
{
    return p->prefix > 0 ? p->prefix : 1;
}

static int pack(struct tpo_learn_batch *b, struct tpo_tape *t, struct tpo_error *err)
{
    struct tpo_arena *arena = tpo_tape_arena(t);
    const int B = b->f->n_samples;
    int32_t *lengths = tpo_arena_calloc(arena, (size_t)B * sizeof(*lengths));
    if (lengths == NULL) goto no_memory;
    b->rows = (struct tpo_decoder_batch){.B = B, .T = starts_set(b, lengths), .lengths = lengths};
    /* A sample is as wide as the longest: a message of a few MiB may stand for terabytes, of which the tape would refuse the first tensor. */
    if (!tpo_tape_fits(t, (int64_t)B * b->rows.T * b->learn->decoder->config->llm.hidden_size))
        return tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "batch_size",
                        "%d samples, the longest of %d rows, are more than memory holds here", B, b->rows.T);
    const size_t n = (size_t)B * (size_t)b->rows.T;
    int32_t *positions = tpo_arena_calloc(arena, n * sizeof(*positions)), *segments = tpo_arena_alloc(arena, n * sizeof(*segments));
    b->ids = tpo_arena_calloc(arena, n * sizeof(*b->ids));
    b->visual = tpo_arena_alloc(arena, n * sizeof(*b->visual));
    b->boxes = tpo_arena_calloc(arena, n * 4 * sizeof(*b->boxes));
    if (positions == NULL || segments == NULL || b->ids == NULL || b->visual == NULL || b->boxes == NULL) goto no_memory;
    for (size_t m = 0; m < n; m++) b->visual[m] = segments[m] = -1;
    for (int k = 0; k < b->n_packed; k++) {
        const struct tpo_packed *p = &b->packed[k];
        for (int r = p->conversation == 0 ? 0 : p->prefix; r < p->prompt.n; r++) row_fill(b, p, r, positions, segments);
    }
    b->rows.positions = positions;
    b->rows.segments = segments;
    return TPO_OK;
no_memory:
    return tpo_fail(err, TPO_ENOMEM, "no_memory", "no memory for a micro-batch of %d samples", B);
}

static void keep_row(struct tpo_learn_batch *b, int32_t *keep, const struct tpo_packed *p, int row)
{
    const int m = p->sample * b->rows.T + tpo_learn_row(p, row);
    if (b->kept[m] >= 0) return;
    b->kept[m] = b->rows.n_keep;
    keep[b->rows.n_keep++] = m;
}

/* The rows that predict a label or are v_i: a small part of all. */
static int keep_make(struct tpo_learn_batch *b, struct tpo_tape *t)
{
    const size_t n = (size_t)b->rows.B * (size_t)b->rows.T;
    int32_t *keep = tpo_arena_alloc(tpo_tape_arena(t), n * sizeof(*keep));
    b->kept = tpo_arena_alloc(tpo_tape_arena(t), n * sizeof(*b->kept));
    if (keep == NULL || b->kept == NULL) return TPO_ENOMEM;
    for (size_t m = 0; m < n; m++) b->kept[m] = -1;
    for (int k = 0; k < b->n_packed; k++) {
        const struct tpo_packed *p = &b->packed[k];
        for (int r = first_learned(p); r < p->prompt.n; r++)
            if (is_learned(&p->prompt, r)) keep_row(b, keep, p, r - 1);
        for (int i = 0; i < p->prompt.n_slots; i++) keep_row(b, keep, p, p->prompt.slots[i].position);
    }
    if (b->rows.n_keep > 0) b->rows.keep = keep;
    return TPO_OK;
}

/* A row of a conversation among the hidden states. */
static int hidden_row(const struct tpo_learn_batch *b, const struct tpo_packed *p, int row)
{
    return b->kept[p->sample * b->rows.T + tpo_learn_row(p, row)];
}

/* Weighted mean cross entropy over all labelled tokens of the micro-batch; the head runs on the rows that predict one, and no
 * other. */
static struct tpo_tensor *language_loss(struct tpo_tape *t, const struct tpo_learn_batch *b, struct tpo_tensor *hidden,
                                        float dropout)
{
    struct tpo_arena *arena = tpo_tape_arena(t);
    int most = 0, n = 0;
    for (int k = 0; k < b->n_packed; k++) most += b->packed[k].prompt.n;
    int32_t *row = tpo_arena_alloc(arena, (size_t)most * sizeof(*row)),
            *label = tpo_arena_alloc(arena, (size_t)most * sizeof(*label));
    float *weight = tpo_arena_alloc(arena, (size_t)most * sizeof(*weight));
    if (row == NULL || label == NULL || weight == NULL) {
        tpo_tape_check(t, TPO_ENOMEM);
        return NULL;
    }
    double sum = 0;
    for (int k = 0; k < b->n_packed; k++) {
        const struct tpo_packed *p = &b->packed[k];
        for (int r = first_learned(p); r < p->prompt.n; r++) {
            if (!is_learned(&p->prompt, r)) continue;
            row[n] = hidden_row(b, p, r - 1);
            label[n] = p->prompt.labels[r];
            weight[n] = p->prompt.weights[r];
            sum += (double)weight[n++];
        }
    }
    if (n == 0) return NULL;
    struct tpo_tensor *logits =
        tpo_decoder_logits(t, b->learn->decoder, tpo_take_rows(t, hidden, row, n), dropout, tpo_random_u64(b->f->noise, 1));
    return tpo_loss_cross_entropy(t, logits, label, weight, (float)(1 / sum));
}

static int slots_count(const struct tpo_learn_batch *b)
{
    int n = 0;
    for (int k = 0; k < b->n_packed; k++) n += b->packed[k].prompt.n_slots;
    return n;
}

/* Outputs e.NAME and the list of where their rows came from. */
static int outputs_make(struct tpo_tape *t, const struct tpo_learn_batch *b, struct tpo_forward *f, struct tpo_tensor *hidden)
{
    const struct tpo_config *c = b->learn->decoder->config;
    const int most = slots_count(b);
    if (most == 0) return TPO_OK;
    struct tpo_arena *arena = tpo_tape_arena(t);
    struct tpo_row *rows = tpo_arena_alloc(arena, (size_t)most * sizeof(*rows));
    int32_t *index = tpo_arena_alloc(arena, (size_t)most * sizeof(*index)),
            *of_task = tpo_arena_alloc(arena, (size_t)most * sizeof(*of_task));
    if (rows == NULL || index == NULL || of_task == NULL) return TPO_ENOMEM;
    int n = 0;
    for (int k = 0; k < b->n_packed; k++) {
        const struct tpo_packed *p = &b->packed[k];
        for (int i = 0; i < p->prompt.n_slots; i++) {
            const struct tpo_slot *slot = &p->prompt.slots[i];
            index[n] = hidden_row(b, p, slot->position);
            rows[n++] = (struct tpo_row){
                .sample = p->sample, .conversation = p->conversation, .position = slot->position, .task = slot->task};
        }
    }
    f->rows = rows;
    f->n_rows = n;
    for (int task = 0; task < c->n_tasks; task++) {
        int of = 0;
        for (int i = 0; i < n; i++)
            if (rows[i].task == task) of_task[of++] = index[i];
        char *name = tpo_arena_alloc(arena, sizeof(c->tasks[task].name) + 2);
        if (name == NULL) return TPO_ENOMEM;
        snprintf(name, sizeof(c->tasks[task].name) + 2, "e.%s", c->tasks[task].name);
        if (of > 0) tpo_forward_output(f, name, tpo_take_rows(t, hidden, of_task, of));
    }
    return TPO_OK;
}

static bool wanted(const struct tpo_forward *f, const char *name)
{
    return f->wants_loss != NULL && f->wants_loss(f->plan, name);
}

static int pass(struct tpo_learn_batch *b, struct tpo_tape *t, struct tpo_forward *f, struct tpo_tensor *visual,
                struct tpo_error *err)
{
    const struct tpo_decoder *d = b->learn->decoder;
    const float dropout = f->training ? d->config->llm.lora_dropout : 0;
    struct tpo_tensor *projected = visual != NULL ? tpo_decoder_project(t, d, visual) : NULL;
    struct tpo_tensor *boxes = b->n_boxes > 0 ? tpo_decoder_box(t, d, tpo_input(t, b->boxes, b->n_boxes, 4, false)) : NULL;
    struct tpo_tensor *x = tpo_decoder_splice(t, d, b->ids, b->visual, b->rows.B * b->rows.T, projected, boxes);
    struct tpo_decoder_seen *seen = tpo_arena_calloc(tpo_tape_arena(t), (size_t)d->config->llm.num_hidden_layers * sizeof(*seen));
    if (x == NULL || seen == NULL) return tpo_tape_error(t) != TPO_OK ? tpo_tape_error(t) : TPO_ENOMEM;
    struct tpo_tensor *hidden = tpo_decoder_forward(t, d, x, &b->rows, dropout, tpo_random_u64(f->noise, 0), seen);
    if (hidden == NULL) return tpo_tape_error(t) != TPO_OK ? tpo_tape_error(t) : TPO_ENOMEM;

    const int code = outputs_make(t, b, f, hidden);
    if (code != TPO_OK) return code;
    struct tpo_tensor *language = wanted(f, "language") ? language_loss(t, b, hidden, dropout) : NULL;
    struct tpo_tensor *slot =
        d->slot_box_w != NULL && projected != NULL && wanted(f, "slot") ? tpo_learn_slot_loss(t, b, projected, err) : NULL;
    struct tpo_tensor *attention = wanted(f, "attention") ? tpo_learn_attention_loss(t, b, seen, err) : NULL;
    if (err->code != TPO_OK) return err->code;
    if (language != NULL) tpo_forward_loss(f, "language", language);
    if (slot != NULL) tpo_forward_loss(f, "slot", slot);
    if (attention != NULL) tpo_forward_loss(f, "attention", attention);
    return tpo_tape_error(t);
}

/* Samples without a sentence: the connector's stage, which has the slot loss alone. */
static int pass_slots(struct tpo_learn_batch *b, struct tpo_tape *t, struct tpo_forward *f, struct tpo_tensor *visual,
                      struct tpo_error *err)
{
    struct tpo_tensor *projected = tpo_decoder_project(t, b->learn->decoder, visual);
    struct tpo_tensor *slot = projected != NULL ? tpo_learn_slot_loss(t, b, projected, err) : NULL;
    if (err->code != TPO_OK) return err->code;
    if (slot != NULL) tpo_forward_loss(f, "slot", slot);
    return tpo_tape_error(t);
}

static int learn_forward(void *self, struct tpo_tape *t, struct tpo_forward *f, struct tpo_error *err)
{
    const struct tpo_router_learn *l = self;
    struct tpo_tensor *visual = tpo_forward_input(f, "visual");
    struct tpo_learn_batch b = {.learn = l, .f = f, .queries = visual != NULL ? tpo_config_queries(l->decoder->config) : 0};
    struct tpo_error own = {0};
    int code = TPO_OK;
    if (visual != NULL && visual->rows != f->n_samples * b.queries)
        code = tpo_fail(&own, TPO_INVALID_ARGUMENT, "visual_rows", "visual has %d rows; %d samples need %d each", visual->rows,
                        f->n_samples, b.queries);
    int n_conversations = 0;
    for (int s = 0; s < f->n_samples; s++) n_conversations += f->samples[s].n_conversations;
    const bool silent = n_conversations == 0 && visual != NULL && l->decoder->slot_box_w != NULL && wanted(f, "slot");
    if (code == TPO_OK && !silent) code = prompts_make(&b, &own);
    if (code == TPO_OK && !silent) code = pack(&b, t, &own);
    if (code == TPO_OK && !silent) code = keep_make(&b, t);
    if (code == TPO_OK) code = silent ? pass_slots(&b, t, f, visual, &own) : pass(&b, t, f, visual, &own);
    for (int k = 0; k < b.n_packed && b.packed != NULL; k++) tpo_prompt_free(&b.packed[k].prompt);
    free(b.packed);
    if (code == TPO_OK) return TPO_OK;
    if (own.code == TPO_OK)
        tpo_fail(&own, code, "router_forward", "the router's training pass failed: %s", tpo_status_sentence(code));
    if (err != NULL) *err = own;
    return code;
}

void tpo_router_learn_open(struct tpo_router_learn *l, struct tpo_decoder *d, struct tpo_params *p, struct tpo_tokenizer *tokenizer)
{
    *l = (struct tpo_router_learn){.decoder = d, .tokenizer = tokenizer};
    l->model = (struct tpo_model){.stage = "router", .self = l, .params = p, .forward = learn_forward};
}

struct tpo_router_trainee {
    struct tpo_stream *stream;
    struct tpo_config config;
    struct tpo_params params;
    struct tpo_decoder decoder;
    struct tpo_tokenizer *tokenizer;
    struct tpo_router_learn learn;
};

int tpo_router_trainee_open(struct tpo_router_trainee **out, struct tpo_stream *s, const struct tpo_config *c, const char *folder,
                            bool random, uint64_t seed, int aids, struct tpo_error *err)
{
    struct tpo_router_trainee *r = calloc(1, sizeof(*r));
    *out = r;
    if (r == NULL) return tpo_fail(err, TPO_ENOMEM, "no_memory", "no memory for a router");
    r->stream = s;
    r->config = *c;
    int code = tpo_decoder_declare(&r->decoder, &r->params, &r->config, aids);
    if (code != TPO_OK) tpo_fail(err, code, "no_memory", "no memory for the router's tensors");
    if (code == TPO_OK) code = tpo_tokenizer_open(&r->tokenizer, folder, err);
    r->params.keep_half = c->keep_bf16;
    if (code == TPO_OK)
        code = random ? tpo_params_random(&r->params, s, seed, err) : tpo_params_load(&r->params, s, folder, "router", err);
    if (code != TPO_OK) {
        tpo_router_trainee_close(r);
        *out = NULL;
        return code;
    }
    tpo_router_learn_open(&r->learn, &r->decoder, &r->params, r->tokenizer);
    return TPO_OK;
}

struct tpo_model *tpo_router_trainee_model(struct tpo_router_trainee *r)
{
    return &r->learn.model;
}

void tpo_router_trainee_close(struct tpo_router_trainee *r)
{
    if (r == NULL) return;
    tpo_tokenizer_close(r->tokenizer);
    tpo_decoder_close(&r->decoder);
    tpo_params_free(&r->params, r->stream);
    free(r);
}
