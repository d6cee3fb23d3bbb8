/* This file owns the serving engine: sequences, admission, the scheduler's step, events. */
#include "services/router/router.h"

#include <stdlib.h>
#include <string.h>

#include "common/text.h"
#include "kernels/matmul.h"
#include "nn/tokenizer.h"
#include "services/router/admission.h"
#include "services/router/batch.h"
#include "services/router/prompt.h"
#include "services/router/sample.h"
#include "services/router/task.h"

#define NEW_TOKENS_DEFAULT 200
#define PENDING_MAX        2

/* prompt -> answer -> done. A sequence in `answer` always has rows pending; sampling after the last of them gives the next. */
enum phase { FREE, PROMPT, ANSWER, DONE };

/* A row that waits for the next step: a token, or v_i of a task. */
struct pending {
    int32_t id;
    int task;   /* v_i of this task; -1: the token `id` */
    bool apart; /* a step of its own: the next row overwrites its keys (docs/model.md, Task token: the reference's side branch) */
};

struct sequence {
    enum phase phase;
    uint64_t handle, order;
    struct tpo_router_events on;
    const struct tpo_snapshot *weights;
    struct tpo_prompt prompt;
    struct tpo_routing routing;
    struct tpo_sampler sampling;
    float *special; /* device rows of visual tokens and boxes; NULL without */
    int n_special, queries;
    int rows; /* positions in the cache */
    struct pending pending[PENDING_MAX];
    int n_pending;
    int new_max, n_new, n_sampled, n_calls;
    struct tpo_detokenizer detokenizer;
    int code_points; /* of text sent */
    bool cancelled;
    struct tpo_error error;
    const char *finish;
};

struct tpo_router {
    struct tpo_stream *stream;
    struct tpo_config config;
    struct tpo_router_options options;
    struct tpo_params params;
    struct tpo_decoder decoder;
    struct tpo_tokenizer *tokenizer;
    struct tpo_kv kv;
    struct tpo_batch *batch;
    struct sequence *sequences;         /* (max_sequences) */
    int wanted;                         /* rows, by the last one that must wait */
    const struct tpo_snapshot *weights; /* of the pass being put together */
    uint64_t handles;
    struct tpo_batch_row *rows; /* of the pass being put together */
    int *owner;                 /* the sequence of each row */
    float *logits;              /* (TPO_MATVEC_ROWS, V) on the host */
    float *e;                   /* (D) on the host */
    struct tpo_candidate *work; /* (V) */
};

static int engine_open(struct tpo_router *r, struct tpo_error *err)
{
    const size_t V = (size_t)r->config.llm.vocab_size;
    const size_t rows = (size_t)r->options.prefill_tokens + TPO_MATVEC_ROWS;
    const size_t kv_bytes = r->options.kv_bytes != 0 ? r->options.kv_bytes : tpo_kv_bytes_default(&r->config);
    int rc = tpo_kv_open(&r->kv, r->stream, &r->config, kv_bytes, r->options.max_sequences, err);
    if (rc == TPO_OK)
        rc = tpo_batch_open(&r->batch, r->stream, &r->decoder, &r->kv, r->options.prefill_tokens, r->options.merge_lora, err);
    if (rc != TPO_OK) return rc;
    r->sequences = calloc((size_t)r->options.max_sequences, sizeof(*r->sequences));
    r->rows = calloc(rows, sizeof(*r->rows));
    r->owner = calloc(rows, sizeof(*r->owner));
    r->logits = malloc(TPO_MATVEC_ROWS * V * sizeof(*r->logits));
    r->e = malloc((size_t)r->config.llm.hidden_size * sizeof(*r->e));
    r->work = malloc(V * sizeof(*r->work));
    bool whole =
        r->sequences != NULL && r->rows != NULL && r->owner != NULL && r->logits != NULL && r->e != NULL && r->work != NULL;
    return whole ? TPO_OK : tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the scheduler");
}

int tpo_router_open(struct tpo_router **out, struct tpo_stream *s, const struct tpo_config *c, const struct tpo_router_options *o,
                    struct tpo_error *err)
{
    struct tpo_router *r = calloc(1, sizeof(*r));
    if (r == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a router");
    r->stream = s;
    r->config = *c;
    r->options = *o;
    if (r->options.max_sequences < 1) r->options.max_sequences = 1;
    if (r->options.prefill_tokens < 1) r->options.prefill_tokens = 1;
    int rc = tpo_tokenizer_open(&r->tokenizer, o->folder, err);
    if (rc == TPO_OK && tpo_tokenizer_vocabulary(r->tokenizer) > c->llm.vocab_size)
        rc = tpo_fail(err, TPO_INVALID_ARGUMENT, "config", "the tokenizer has %d tokens, llm.vocab_size is %d",
                      tpo_tokenizer_vocabulary(r->tokenizer), c->llm.vocab_size);
    if (rc == TPO_OK && tpo_decoder_declare(&r->decoder, &r->params, &r->config, 0) != TPO_OK)
        rc = tpo_fail(err, TPO_ENOMEM, "memory", "no memory for the list of tensors");
    if (rc == TPO_OK) r->params.keep_half = c->keep_bf16;
    if (rc == TPO_OK) rc = tpo_params_load(&r->params, s, o->folder, "router", err);
    if (rc == TPO_OK) rc = engine_open(r, err);
    if (rc != TPO_OK) {
        tpo_router_close(r);
        return rc;
    }
    *out = r;
    return TPO_OK;
}

/* The sequence's memory goes; events are the caller's affair. */
static void release(struct tpo_router *r, struct sequence *q)
{
    tpo_prompt_free(&q->prompt);
    tpo_device_free(r->stream, q->special);
    tpo_kv_give(&r->kv, (int)(q - r->sequences));
    memset(q, 0, sizeof(*q));
}

void tpo_router_close(struct tpo_router *r)
{
    if (r == NULL) return;
    for (int i = 0; r->sequences != NULL && i < r->options.max_sequences; i++)
        if (r->sequences[i].phase != FREE) release(r, &r->sequences[i]);
    tpo_batch_close(r->batch);
    tpo_kv_close(&r->kv);
    tpo_params_free(&r->params, r->stream);
    tpo_decoder_close(&r->decoder);
    tpo_tokenizer_close(r->tokenizer);
    free(r->sequences);
    free(r->rows);
    free(r->owner);
    free(r->logits);
    free(r->e);
    free(r->work);
    free(r);
}

struct tpo_params *tpo_router_params(struct tpo_router *r)
{
    return &r->params;
}

/* --- admission --------------------------------------------------------------------------------------------------------------- */

static struct sequence *free_sequence(const struct tpo_router *r)
{
    for (int i = 0; i < r->options.max_sequences; i++)
        if (r->sequences[i].phase == FREE) return &r->sequences[i];
    return NULL;
}

/* One row more than the answer's tokens: a trigger may be the last of them, and v_i still follows it. */
static int rows_of(int prompt, int new_max)
{
    return prompt + new_max + 1;
}

int tpo_router_check_pool(const struct tpo_router *r, struct tpo_error *err)
{
    int rows, rc = tpo_admission_least(&rows, r->tokenizer, &r->config, err);
    if (rc != TPO_OK) return rc;
    const int needed = rows_of(rows, NEW_TOKENS_DEFAULT), blocks = tpo_kv_blocks(needed);
    if (blocks <= r->kv.n_blocks) return TPO_OK;
    return tpo_fail(err, TPO_INVALID_ARGUMENT, "kv_bytes",
                    "the pool holds %d tokens, a question about a picture takes %d with its answer: --kv-bytes %zu or more",
                    r->kv.n_blocks * TPO_KV_TOKENS, needed, (size_t)blocks * TPO_KV_TOKENS * tpo_kv_position_bytes(&r->config));
}

bool tpo_router_room(const struct tpo_router *r, int rows)
{
    return free_sequence(r) != NULL && tpo_kv_free(&r->kv, rows);
}

int tpo_router_wanted(const struct tpo_router *r)
{
    return r->wanted;
}

/* The passes that follow are of this version. */
static void turn_to(struct tpo_router *r, const struct tpo_snapshot *weights)
{
    r->weights = weights;
    if (weights != NULL) tpo_snapshot_use(weights, &r->params);
}

int tpo_router_submit(struct tpo_router *r, const struct tpo_router_request *q, const struct tpo_router_events *on,
                      uint64_t *handle, struct tpo_error *err)
{
    struct sequence s = {.phase = PROMPT, .on = *on, .finish = "length", .weights = q->weights};
    struct sequence *slot = free_sequence(r);
    int rc = tpo_admission_check(q, &r->config, err);
    if (rc == TPO_OK) rc = tpo_routing_init(&s.routing, &r->config, q->task, q->visual != NULL, err);
    if (rc == TPO_OK && slot == NULL)
        rc = tpo_fail(err, TPO_UNAVAILABLE, "kv_busy", "%d sequences are in flight", r->options.max_sequences);
    if (rc == TPO_OK) rc = tpo_admission_prompt(&s.prompt, q, r->tokenizer, &r->config, err);
    if (rc != TPO_OK) goto fail;
    s.queries = q->visual != NULL ? tpo_config_queries(&r->config) : 0;
    s.new_max = q->max_new_tokens > 0 ? q->max_new_tokens : NEW_TOKENS_DEFAULT;
    s.sampling = (struct tpo_sampler){q->temperature, q->top_p > 0 ? q->top_p : 1, q->seed};
    r->wanted = rows_of(s.prompt.n, s.new_max);
    rc = tpo_kv_take(&r->kv, (int)(slot - r->sequences), r->wanted, err);
    if (rc != TPO_OK) goto fail;
    s.n_special = s.queries + s.prompt.n_boxes;
    turn_to(r, q->weights);
    if (s.n_special > 0 &&
        (rc = tpo_batch_special(r->batch, &s.special, q->visual, s.queries, q->boxes, s.prompt.n_boxes)) != TPO_OK) {
        tpo_kv_give(&r->kv, (int)(slot - r->sequences));
        tpo_fail(err, rc, "memory", "no memory for the visual tokens");
        goto fail;
    }
    s.handle = s.order = ++r->handles;
    *slot = s;
    *handle = s.handle;
    return TPO_OK;
fail:
    tpo_prompt_free(&s.prompt);
    return rc;
}

void tpo_router_cancel(struct tpo_router *r, uint64_t handle)
{
    for (int i = 0; i < r->options.max_sequences; i++)
        if (r->sequences[i].phase != FREE && r->sequences[i].handle == handle) r->sequences[i].cancelled = true;
}

/* --- answers ----------------------------------------------------------------------------------------------------------------- */

static void send_text(struct tpo_router *r, struct sequence *q, int32_t id)
{
    char text[TPO_DETOKENIZE_MAX];
    int length = tpo_detokenize(&q->detokenizer, r->tokenizer, id, text);
    if (length == 0) return;
    q->code_points += (int)tpo_utf8_count(text);
    if (q->on.on_text != NULL && q->on.on_text(q->on.owner, text, (size_t)length) != 0) q->cancelled = true;
}

static void stop(struct tpo_router *r, struct sequence *q, const char *finish)
{
    send_text(r, q, -1);
    q->finish = finish;
    q->phase = DONE;
}

static void fail_sequence(struct sequence *q, int code)
{
    tpo_fail(&q->error, code, "compute", "the language model failed");
    q->phase = DONE;
}

static void wait_for(struct sequence *q, int32_t id, int task, bool apart)
{
    q->pending[q->n_pending++] = (struct pending){id, task, apart};
}

/* A token was chosen: its text goes out, its rows (and v_i's) become pending, or the answer ends. */
static void take_token(struct tpo_router *r, struct sequence *q, int32_t id)
{
    int task = tpo_task_of_trigger(&r->config, id);
    if (q->n_sampled == 0 && q->on.on_first != NULL) q->on.on_first(q->on.owner);
    q->n_new++;
    q->n_sampled++;
    q->n_pending = 0;
    if (id < 0) {
        fail_sequence(q, TPO_INTERNAL);
    } else if (id == TPO_ID_EOS) {
        stop(r, q, "stop");
    } else if (task >= 0) {
        /* trained: trigger, then v_i, both to stay. reference: v_i in the trigger's place, then the trigger over it. */
        if (r->config.head_context_trained) {
            wait_for(q, id, -1, false);
            wait_for(q, 0, task, false);
            q->n_new++; /* v_i stands for the slot token */
        } else {
            wait_for(q, 0, task, true);
            wait_for(q, id, -1, false);
        }
    } else {
        send_text(r, q, id);
        if (q->n_new >= q->new_max)
            stop(r, q, "length");
        else
            wait_for(q, id, -1, false);
    }
}

static void choose(struct tpo_router *r, struct sequence *q, const float *logits)
{
    if (q->n_sampled == 0 && q->routing.forced >= 0) {
        take_token(r, q, r->config.tasks[q->routing.forced].trigger_id);
        return;
    }
    take_token(r, q,
               tpo_sample(&q->sampling, (uint64_t)q->n_sampled, logits, r->config.llm.vocab_size, q->routing.banned,
                          q->routing.n_banned, r->work));
}

static int send_task(struct tpo_router *r, struct sequence *q, int task, const float *hidden, int row)
{
    const int D = r->config.llm.hidden_size;
    int rc = tpo_copy_out(r->stream, r->e, hidden + (int64_t)row * D, (size_t)D * sizeof(float));
    if (rc == TPO_OK) rc = tpo_stream_wait(r->stream);
    if (rc != TPO_OK) return rc;
    int stopped =
        q->on.on_task != NULL ? q->on.on_task(q->on.owner, r->config.tasks[task].name, q->n_calls, q->code_points, r->e, D) : 0;
    q->n_calls++;
    if (stopped != 0) q->cancelled = true;
    return TPO_OK;
}

/* --- the step ---------------------------------------------------------------------------------------------------------------- */

static void end_finished(struct tpo_router *r)
{
    for (int i = 0; i < r->options.max_sequences; i++) {
        struct sequence *q = &r->sequences[i];
        if (q->phase == FREE || (q->phase != DONE && !q->cancelled)) continue;
        if (q->cancelled && q->phase != DONE) tpo_fail(&q->error, TPO_CANCELLED, "cancelled", "the caller went away");
        struct tpo_router_events on = q->on;
        struct tpo_error error = q->error;
        const char *finish = error.code == TPO_OK ? q->finish : "error";
        int prompt = q->prompt.n, answer = q->n_sampled;
        release(r, q); /* first, so that the caller may submit the next from on_done */
        if (on.on_done != NULL) on.on_done(on.owner, error.code, finish, prompt, answer, error.code == TPO_OK ? NULL : &error);
    }
}

static struct tpo_batch_row prompt_row(const struct tpo_router *r, const struct sequence *q, int i, int box)
{
    struct tpo_batch_row row = {.seq = (int)(q - r->sequences), .position = i};
    bool visual = q->prompt.visual[i] >= 0;
    if (visual || box >= 0) {
        row.table = tpo_f32(q->special);
        row.table_rows = q->n_special;
        row.index = visual ? q->prompt.visual[i] : q->queries + box;
    } else {
        row.table = tpo_param_weight(r->decoder.embed_tokens);
        row.table_rows = r->config.llm.vocab_size;
        row.index = q->prompt.ids[i];
    }
    return row;
}

static struct tpo_batch_row pending_row(const struct tpo_router *r, const struct sequence *q, const struct pending *p, int position)
{
    struct tpo_batch_row row = {.seq = (int)(q - r->sequences),
                                .position = position,
                                .table = tpo_param_weight(r->decoder.embed_tokens),
                                .table_rows = r->config.llm.vocab_size,
                                .index = p->id};
    if (p->task >= 0) {
        row.table = tpo_param_weight(r->decoder.vectors[p->task]);
        row.table_rows = 1;
        row.index = 0;
    }
    return row;
}

/* The oldest sequence of this phase and of the pass's version that came after `order`. */
static struct sequence *next_in(struct tpo_router *r, enum phase phase, uint64_t order)
{
    struct sequence *found = NULL;
    for (int i = 0; i < r->options.max_sequences; i++) {
        struct sequence *q = &r->sequences[i];
        if (q->phase == phase && q->weights == r->weights && !q->cancelled && q->order > order &&
            (found == NULL || q->order < found->order))
            found = q;
    }
    return found;
}

/* Rows of the pass that end a sequence's turn in it, chosen from. */
static void choose_all(struct tpo_router *r, const int32_t *last, int n, int rc)
{
    const int V = r->config.llm.vocab_size;
    for (int from = 0; from < n; from += TPO_MATVEC_ROWS) {
        int some = n - from < TPO_MATVEC_ROWS ? n - from : TPO_MATVEC_ROWS;
        if (rc == TPO_OK) rc = tpo_batch_logits(r->batch, last + from, some, r->logits);
        for (int i = 0; i < some; i++) {
            struct sequence *q = &r->sequences[r->owner[last[from + i]]];
            if (rc != TPO_OK)
                fail_sequence(q, rc);
            else
                choose(r, q, r->logits + (int64_t)i * V);
        }
    }
}

/* Takes prompt rows, oldest sequence first, until the step's share is full. */
static void run_prompts(struct tpo_router *r)
{
    int n = 0, n_last = 0;
    int32_t *last = NULL;
    uint64_t order = 0;
    for (struct sequence *q; n < r->options.prefill_tokens && (q = next_in(r, PROMPT, order)) != NULL; order = q->order) {
        int box = 0;
        for (int i = 0; i < q->rows; i++) box += q->prompt.visual[i] < 0 && q->prompt.ids[i] == r->config.track_box_id;
        for (; n < r->options.prefill_tokens && q->rows < q->prompt.n; n++, q->rows++) {
            bool is_box = q->prompt.visual[q->rows] < 0 && q->prompt.ids[q->rows] == r->config.track_box_id;
            r->rows[n] = prompt_row(r, q, q->rows, is_box ? box++ : -1);
            r->owner[n] = (int)(q - r->sequences);
        }
    }
    if (n == 0) return;
    const float *hidden;
    int rc = tpo_batch_run(r->batch, r->rows, n, true, &hidden);
    last = calloc((size_t)n, sizeof(*last));
    if (last == NULL) rc = TPO_ENOMEM;
    for (int i = 0; i < n; i++) {
        struct sequence *q = &r->sequences[r->owner[i]];
        if (rc != TPO_OK) {
            fail_sequence(q, rc);
        } else if (r->rows[i].position == q->prompt.n - 1) {
            q->phase = ANSWER;
            last[n_last++] = i;
        }
    }
    if (n_last > 0) choose_all(r, last, n_last, rc);
    free(last);
}

/* Task embeddings go out before the next token is chosen, so that events come in the order of the answer. */
static void finish_answers(struct tpo_router *r, const struct pending *what, int n, const float *hidden, int rc)
{
    int32_t last[TPO_MATVEC_ROWS];
    int n_last = 0;
    for (int i = 0; i < n; i++) {
        struct sequence *q = &r->sequences[r->owner[i]];
        bool ends = i + 1 == n || r->owner[i + 1] != r->owner[i];
        if (rc == TPO_OK && what[i].task >= 0) rc = send_task(r, q, what[i].task, hidden, i);
        if (rc != TPO_OK)
            fail_sequence(q, rc);
        else if (ends && !what[i].apart && q->n_new >= q->new_max)
            stop(r, q, "length"); /* the last token was a trigger, and v_i has spoken */
        else if (ends && !what[i].apart)
            last[n_last++] = i;
    }
    if (n_last > 0) choose_all(r, last, n_last, rc);
}

/* One token of every answer under way, in passes of at most TPO_MATVEC_ROWS rows. */
static void run_answers(struct tpo_router *r)
{
    struct pending what[TPO_MATVEC_ROWS];
    struct sequence *q = next_in(r, ANSWER, 0);
    while (q != NULL) {
        int n = 0;
        for (; q != NULL && n + PENDING_MAX <= TPO_MATVEC_ROWS; q = next_in(r, ANSWER, q->order)) {
            int take = q->pending[0].apart ? 1 : q->n_pending;
            for (int i = 0; i < take; i++, n++) {
                what[n] = q->pending[i];
                r->rows[n] = pending_row(r, q, &q->pending[i], q->rows + i);
                r->owner[n] = (int)(q - r->sequences);
            }
            q->rows += q->pending[0].apart ? 0 : take;
            memmove(q->pending, q->pending + take, (size_t)(q->n_pending - take) * sizeof(q->pending[0]));
            q->n_pending -= take;
        }
        const float *hidden;
        int rc = tpo_batch_run(r->batch, r->rows, n, false, &hidden);
        finish_answers(r, what, n, hidden, rc);
    }
}

/* The first sequence of each version, one after the other; `last` is the one before. */
static const struct sequence *next_version(const struct tpo_router *r, const struct sequence *last)
{
    for (int i = last != NULL ? (int)(last - r->sequences) + 1 : 0; i < r->options.max_sequences; i++) {
        int first = 0;
        if (r->sequences[i].phase == FREE) continue;
        while (first < i && (r->sequences[first].phase == FREE || r->sequences[first].weights != r->sequences[i].weights)) first++;
        if (first == i) return &r->sequences[i];
    }
    return NULL;
}

int tpo_router_step(struct tpo_router *r)
{
    int in_flight = 0;
    end_finished(r);
    for (const struct sequence *q = next_version(r, NULL); q != NULL; q = next_version(r, q)) {
        turn_to(r, q->weights);
        run_answers(r);
        run_prompts(r);
    }
    end_finished(r);
    for (int i = 0; i < r->options.max_sequences; i++) in_flight += r->sequences[i].phase != FREE;
    return in_flight;
}
