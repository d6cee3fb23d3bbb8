/* The router's training pass: what it answers, and that packing conversations behind one prefix changes nothing. */
#include "tests/support/test.h"

#include <math.h>

#include "nn/budget.h"
#include "nn/tokenizer.h"
#include "services/router/learn.h"
#include "services/router/router.h"

#define QUERIES 6
#define WIDTH   32
#define BRIDGE  24

static const struct tpo_added_token added[] = {{"<box_begin>", 32000}, {"<time_begin>", 32001},  {"<temp>", 32002},
                                               {"<boxes>", 32003},     {"<track_begin>", 32004}, {"<tracking>", 32005},
                                               {"<track_box>", 32006}};

struct bench {
    struct tpo_stream *stream;
    struct tpo_config config;
    struct tpo_params params;
    struct tpo_decoder decoder;
    struct tpo_tokenizer *tokenizer;
    struct tpo_router_learn learn;
};

static void bench_open(struct bench *b)
{
    char path[4096];
    memset(b, 0, sizeof(*b));
    struct tpo_config *c = &b->config;
    tpo_config_default(c);
    c->bridge.num_query_token = QUERIES;
    c->bridge.extra_num_query_token = 0;
    c->bridge.hidden_size = BRIDGE;
    c->llm.hidden_size = WIDTH;
    c->llm.num_hidden_layers = 2;
    c->llm.num_attention_heads = 4;
    c->llm.num_key_value_heads = 2;
    c->llm.head_dim = 8;
    c->llm.intermediate_size = 48;
    c->llm.rope_theta = 1000;
    c->llm.lora_dropout = 0;
    c->llm.ext_slot_position = true;
    c->box_encoder_hidden_size = 16;
    c->n_tasks = 1;
    c->tasks[0] = (struct tpo_task){.name = "region",
                                    .trigger = "<box_begin>",
                                    .slot = "<boxes>",
                                    .vector = "box_token",
                                    .trigger_id = 32000,
                                    .slot_id = 32003};
    c->track_box_id = 32006;
    assert_int_equal(tpo_stream_open(&b->stream, "cpu", 1, NULL), TPO_OK);
    assert_int_equal(tpo_decoder_declare(&b->decoder, &b->params, c, 1), TPO_OK);
    assert_int_equal(tpo_params_random(&b->params, b->stream, 5, NULL), TPO_OK);
    snprintf(path, sizeof(path), "%s/tests/golden/tokenizer/tokenizer.model", tpo_test_source());
    assert_int_equal(tpo_tokenizer_open_model(&b->tokenizer, path, added, 7, NULL), TPO_OK);
    tpo_router_learn_open(&b->learn, &b->decoder, &b->params, b->tokenizer);
}

static void bench_close(struct bench *b)
{
    for (int i = 0; i < b->params.n; i++) free(b->params.items[i]->grad);
    tpo_tokenizer_close(b->tokenizer);
    tpo_decoder_close(&b->decoder);
    tpo_params_free(&b->params, b->stream);
    tpo_stream_close(b->stream);
}

static void train_all(struct bench *b)
{
    for (int i = 0; i < b->params.n; i++) b->params.items[i]->grad = calloc((size_t)b->params.items[i]->size, sizeof(float));
}

static bool wants_all(void *plan, const char *name)
{
    (void)plan, (void)name;
    return true;
}

static float loss_of(struct tpo_tape *t, const struct tpo_forward *f, const char *name)
{
    for (int i = 0; i < f->n_losses; i++)
        if (strcmp(f->losses[i].name, name) == 0) return tpo_value(t, f->losses[i].tensor);
    return NAN;
}

static const struct tpo_tensor *output_of(const struct tpo_forward *f, const char *name)
{
    for (int i = 0; i < f->n_outputs; i++)
        if (strcmp(f->outputs[i].name, name) == 0) return f->outputs[i].tensor;
    return NULL;
}

static float slots[QUERIES] = {0, 0.5F, 0.5F, 0, 0, 0};
static const struct tpo_attention_target looks[] = {
    {.layer = 0, .head = 1, .weight = 1, .from = TPO_AT_VECTOR, .to = TPO_AT_SLOTS, .slots = slots, .n_slots = QUERIES},
    {.layer = 1, .head = 0, .weight = 0.5F, .from = TPO_AT_ANSWER, .to = TPO_AT_WORD, .to_offset = 13},
    {.layer = 1,
     .head = 3,
     .weight = 0.5F,
     .from = TPO_AT_WORD,
     .from_offset = 13,
     .to = TPO_AT_SLOTS,
     .slots = slots,
     .n_slots = QUERIES}};
static const struct tpo_turn turns[] = {{"Where is the red star?", "<box_begin><boxes>"},
                                        {"What colour is the star?", "red"},
                                        {"Find {box} again", "<box_begin><boxes>"}};
static const float user_box[1][4] = {{0.1F, 0.2F, 0.3F, 0.4F}};
static const struct tpo_conversation conversations[] = {
    {.n_turns = 1, .turns = &turns[0], .weight = 1, .weight_end = 0.2F, .n_attention = 3, .attention = looks},
    {.n_turns = 1, .turns = &turns[1], .weight = 1, .weight_end = 0.2F},
    {.n_turns = 1, .turns = &turns[2], .weight = 1, .weight_end = 0.2F, .n_user_boxes = 1, .user_boxes = user_box}};

static float *visual_rows(int n)
{
    float *rows = malloc((size_t)n * BRIDGE * sizeof(*rows));
    for (int k = 0; k < n * BRIDGE; k++) rows[k] = sinf((float)k * 0.37F);
    return rows;
}

/* Three conversations packed in one sample, and each in a sample of its own: the same losses, the same e. */
static void packing_changes_nothing(void **state)
{
    (void)state;
    struct bench b;
    struct tpo_tape *t;
    bench_open(&b);
    assert_int_equal(tpo_tape_open(&t, b.stream, false), TPO_OK);
    float *rows = visual_rows(3 * QUERIES), packed_e[2 * WIDTH], packed_loss;
    for (int s = 1; s < 3; s++) memcpy(rows + (size_t)s * QUERIES * BRIDGE, rows, QUERIES * BRIDGE * sizeof(*rows));
    const struct tpo_sample one[] = {{.n_frames = 1, .n_conversations = 3, .conversations = conversations}};
    struct tpo_forward f = {.samples = one, .n_samples = 1, .n_inputs = 1, .wants_loss = wants_all};
    const struct tpo_named_tensor words = {.name = "slot.words",
                                           .dtype = TPO_I32,
                                           .n_dims = 2,
                                           .shape = {QUERIES, 2},
                                           .data = (const int32_t[]){7, 300, -100, 301, 8, -100, -100, -100, 9, 300, -100, -100}};
    struct tpo_sample with_words = one[0];
    with_words.n_targets = 1;
    with_words.targets = &words;
    f.samples = &with_words;
    f.inputs[0] = (struct tpo_port){"visual", tpo_input(t, rows, QUERIES, BRIDGE, true)};
    struct tpo_error err = {0};
    if (b.learn.model.forward(&b.learn, t, &f, &err) != TPO_OK) fail_msg("%s", err.message);
    packed_loss = loss_of(t, &f, "language");
    assert_true(packed_loss > 5 && packed_loss < 15);
    assert_true(loss_of(t, &f, "slot") > 0);
    assert_true(loss_of(t, &f, "attention") > 0);
    assert_int_equal(f.n_rows, 2);
    assert_int_equal(f.rows[0].conversation, 0);
    assert_int_equal(f.rows[1].conversation, 2);
    assert_int_equal(tpo_read(t, packed_e, output_of(&f, "e.region")), TPO_OK);

    tpo_tape_reset(t, false);
    struct tpo_sample each[3];
    for (int i = 0; i < 3; i++)
        each[i] = (struct tpo_sample){
            .n_frames = 1, .n_conversations = 1, .conversations = &conversations[i], .n_targets = 1, .targets = &words};
    f = (struct tpo_forward){.samples = each, .n_samples = 3, .n_inputs = 1, .wants_loss = wants_all};
    f.inputs[0] = (struct tpo_port){"visual", tpo_input(t, rows, 3 * QUERIES, BRIDGE, true)};
    if (b.learn.model.forward(&b.learn, t, &f, &err) != TPO_OK) fail_msg("%s", err.message);
    assert_float_equal(loss_of(t, &f, "language"), packed_loss, 1e-4F);
    const struct tpo_tensor *e = output_of(&f, "e.region");
    assert_int_equal(e->rows, 2);
    for (int k = 0; k < 2 * WIDTH; k++) assert_float_equal(e->data[k], packed_e[k], 1e-4F);
    free(rows);
    tpo_tape_close(t);
    bench_close(&b);
}

/* The whole pass against difference quotients of its losses, for tensors of every part. */
static float total(struct bench *b, struct tpo_tape *t, const struct tpo_sample *sample, const float *rows, bool record)
{
    struct tpo_error err = {0};
    struct tpo_forward f = {.samples = sample, .n_samples = 1, .n_inputs = 1, .wants_loss = wants_all};
    tpo_tape_reset(t, record);
    f.inputs[0] = (struct tpo_port){"visual", tpo_input(t, rows, QUERIES, BRIDGE, true)};
    if (b->learn.model.forward(&b->learn, t, &f, &err) != TPO_OK) fail_msg("%s", err.message);
    float sum = 0;
    assert_int_equal(f.n_losses, 3);
    for (int i = 0; i < f.n_losses; i++) {
        sum += tpo_value(t, f.losses[i].tensor);
        if (record) tpo_seed(t, f.losses[i].tensor, NULL, 1);
    }
    if (record) assert_int_equal(tpo_tape_backward(t), TPO_OK);
    return sum;
}

static void gradients(void **state)
{
    (void)state;
    struct bench b;
    struct tpo_tape *t;
    bench_open(&b);
    train_all(&b);
    assert_int_equal(tpo_tape_open(&t, b.stream, true), TPO_OK);
    float *rows = visual_rows(QUERIES);
    const struct tpo_named_tensor targets[] = {
        {.name = "slot.words",
         .dtype = TPO_I32,
         .n_dims = 2,
         .shape = {QUERIES, 2},
         .data = (const int32_t[]){7, 300, -100, 301, 8, -100, -100, -100, 9, 300, -100, -100}},
        {.name = "slot.boxes",
         .dtype = TPO_F32,
         .n_dims = 2,
         .shape = {QUERIES, 4},
         .data = (const float[QUERIES * 4]){0.1F, 0.9F}},
        {.name = "slot.centres",
         .dtype = TPO_F32,
         .n_dims = 2,
         .shape = {QUERIES, 2},
         .data = (const float[QUERIES * 2]){NAN, NAN, 1, 0}}};
    const struct tpo_sample sample = {
        .n_frames = 1, .n_conversations = 3, .conversations = conversations, .n_targets = 3, .targets = targets};
    total(&b, t, &sample, rows, true);
    int checked = 0;
    for (int i = 0; i < b.params.n; i++) {
        struct tpo_param *p = b.params.items[i];
        int64_t at = 0;
        for (int64_t k = 1; k < p->size; k++)
            if (fabsf(p->grad[k]) > fabsf(p->grad[at])) at = k;
        if (fabsf(p->grad[at]) < 1e-3F) continue; /* LoRA's A before B has moved */
        const float kept = p->data[at], h = 1e-2F;
        p->data[at] = kept + h;
        const float high = total(&b, t, &sample, rows, false);
        p->data[at] = kept - h;
        const float low = total(&b, t, &sample, rows, false);
        p->data[at] = kept;
        const float expected = (high - low) / (2 * h);
        if (fabsf(expected - p->grad[at]) > 2e-3F + 0.05F * fabsf(p->grad[at]))
            fail_msg("%s[%lld]: difference quotient %g, gradient %g", p->name, (long long)at, (double)expected,
                     (double)p->grad[at]);
        checked++;
    }
    assert_true(checked > 25);
    free(rows);
    tpo_tape_close(t);
    bench_close(&b);
}

static void bad_targets_are_named(void **state)
{
    (void)state;
    struct bench b;
    struct tpo_tape *t;
    bench_open(&b);
    assert_int_equal(tpo_tape_open(&t, b.stream, true), TPO_OK);
    float *rows = visual_rows(QUERIES);
    struct tpo_sample sample = {.n_frames = 1, .n_conversations = 3, .conversations = conversations};
    struct tpo_forward f = {.samples = &sample, .n_samples = 1, .n_inputs = 1, .wants_loss = wants_all};
    struct tpo_error err = {0};
    f.inputs[0] = (struct tpo_port){"visual", tpo_input(t, rows, QUERIES, BRIDGE, true)};
    assert_int_equal(b.learn.model.forward(&b.learn, t, &f, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "slot_targets");
    tpo_tape_reset(t, true);
    memset(&err, 0, sizeof(err));
    f.n_outputs = f.n_losses = 0;
    f.inputs[0] = (struct tpo_port){"visual", tpo_input(t, rows, QUERIES - 1, BRIDGE, true)};
    assert_int_equal(b.learn.model.forward(&b.learn, t, &f, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "visual_rows");
    free(rows);
    tpo_tape_close(t);
    bench_close(&b);
}

/* One sample is long, and as wide are all others: a message of 4 MiB, and terabytes. */
static void more_rows_than_memory_holds_are_refused(void **state)
{
    enum { SAMPLES = 1024, CONVERSATIONS = 256, WORDS = 4000 };
    static struct tpo_sample samples[SAMPLES];
    static struct tpo_conversation talks[CONVERSATIONS];
    static char text[2 * WORDS + 1];
    (void)state;
    struct bench b;
    struct tpo_tape *t;
    struct tpo_error err = {0};
    const struct tpo_turn turn = {text, "red"};
    for (int i = 0; i < WORDS; i++) memcpy(text + 2 * i, "a ", 2);
    for (int k = 0; k < CONVERSATIONS; k++) talks[k] = (struct tpo_conversation){.n_turns = 1, .turns = &turn, .weight = 1};
    for (int i = 0; i < SAMPLES; i++)
        samples[i] = (struct tpo_sample){
            .n_frames = 1, .n_conversations = i == 0 ? CONVERSATIONS : 1, .conversations = i == 0 ? talks : conversations + 1};
    struct tpo_forward f = {.samples = samples, .n_samples = SAMPLES, .wants_loss = wants_all};
    bench_open(&b);
    tpo_budget_set((size_t)1 << 30);
    assert_int_equal(tpo_tape_open(&t, b.stream, true), TPO_OK);
    assert_int_equal(b.learn.model.forward(&b.learn, t, &f, &err), TPO_RESOURCE_EXHAUSTED);
    assert_string_equal(err.reason, "batch_size");
    assert_non_null(strstr(err.message, "1024 samples, the longest of "));
    tpo_tape_close(t);
    bench_close(&b);
}

TPO_TESTS(cmocka_unit_test(more_rows_than_memory_holds_are_refused), cmocka_unit_test(packing_changes_nothing),
          cmocka_unit_test(gradients), cmocka_unit_test(bad_targets_are_named))
