/* Proves the serving engine on random weights: the same answer in any company, task routing, both head contexts, memory, cancellation. */
#include "common/safetensors.h"
#include "services/router/router.h"

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kernels/vector.h"
#include "services/router/batch.h"
#include "services/router/prompt.h"
#include "tests/support/test.h"

#define D         48
#define QUERIES   6
#define C         40
#define CALLS_MAX 8

static const char *const config_text =
    "{\"model_config\":{\"bridge\":{\"num_query_token\":4,\"extra_num_query_token\":2,\"hidden_size\":40,\"num_attention_heads\":4}"
    ","
    "\"llm\":{\"hidden_size\":48,\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":16,"
    "\"intermediate_size\":96,"
    "\"vocab_size\":32007,\"lora_r\":4,\"lora_alpha\":8},\"box_encoder\":{\"hidden_size\":20},\"head_context\":\"%s\"}}";
static const char *const added_text =
    "{\"<box_begin>\":32000,\"<boxes>\":32003,\"<temp>\":32002,\"<time_begin>\":32001,\"<track_begin>\":32004,"
    "\"<track_box>\":32006,\"<tracking>\":32005}";

static struct tpo_stream *stream;
static struct tpo_config config;
static struct tpo_router *router;
static float visual[QUERIES * C];

static void write_text(const char *path, const char *format, const char *word)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fprintf(f, format, word);
    fclose(f);
}

/* The folder that the next router opens, but for its weights. */
static void write_folder(const char *context)
{
    char from[4096];
    struct tpo_error err = {0};
    mkdir("model", 0755);
    write_text("model/config.json", config_text, context);
    write_text("model/added_tokens.json", "%s", added_text);
    snprintf(from, sizeof(from), "%s/tests/golden/tokenizer/tokenizer.model", tpo_test_source());
    if (symlink(from, "model/tokenizer.model") != 0) unlink("never");
    if (tpo_config_load(&config, "model", &err) != TPO_OK) fail_msg("%s", err.message);
    if (stream == NULL) assert_int_equal(tpo_stream_open(&stream, "cpu", 2, &err), TPO_OK);
}

/* Into that folder: random ones. Fresh adapters do nothing, so their B gets `adapters` of weight, as training would give it; the head's rows of task
 * tokens are times `tasks`. */
static void write_weights(float adapters, float tasks)
{
    static struct tpo_entry entries[512];
    struct tpo_params p = {0};
    struct tpo_error err = {0};
    tpo_router_schema(&p, &config, 0);
    assert_in_range(p.n, 1, 512);
    assert_int_equal(tpo_params_random(&p, stream, 7, &err), TPO_OK);
    for (int i = 0; i < p.n; i++) {
        const struct tpo_param *x = p.items[i];
        for (int64_t k = 0; k < x->size && strstr(x->name, "lora_B") != NULL; k++)
            x->data[k] = adapters * tpo_random_normal(9, (uint64_t)k);
        for (int64_t k = (int64_t)32000 * D; k < x->size && strstr(x->name, "lm_head.base_layer.weight") != NULL; k++)
            x->data[k] *= tasks;
        entries[i] = (struct tpo_entry){.name = x->name,
                                        .dtype = TPO_F32,
                                        .n_dims = x->n_dims,
                                        .size = x->size,
                                        .size_bytes = (size_t)x->size * sizeof(float),
                                        .data = x->data};
        memcpy(entries[i].shape, x->shape, sizeof(x->shape));
    }
    if (tpo_safetensors_write("model/model.safetensors", entries, p.n, &err) != TPO_OK) fail_msg("%s", err.message);
    tpo_params_free(&p, stream);
}

static void open_router(const char *context, size_t kv_bytes, int max_sequences, int prefill_tokens, bool merge)
{
    struct tpo_error err = {0};
    write_folder(context);
    if (access("model/model.safetensors", F_OK) != 0) write_weights(0.05F, 1);
    const struct tpo_router_options o = {.folder = "model",
                                         .merge_lora = merge,
                                         .kv_bytes = kv_bytes,
                                         .max_sequences = max_sequences,
                                         .prefill_tokens = prefill_tokens};
    if (tpo_router_open(&router, stream, &config, &o, &err) != TPO_OK) fail_msg("%s", err.message);
    for (int i = 0; i < QUERIES * C; i++) visual[i] = tpo_random_normal(3, (uint64_t)i);
}

static void close_router(void)
{
    tpo_router_close(router);
    tpo_stream_close(stream);
    router = NULL;
    stream = NULL;
}

/* What one request got. */
struct heard {
    char text[8192];
    char tasks[CALLS_MAX][24];
    float e[CALLS_MAX][D];
    int offsets[CALLS_MAX];
    int n_calls, n_done, status, prompt_tokens, completion_tokens, texts;
    int cancel_after; /* texts; 0: never */
    char finish[16];
    struct tpo_error error;
    uint64_t handle;
};

static int on_text(void *owner, const char *text, size_t length)
{
    struct heard *h = owner;
    assert_int_equal(h->n_done, 0);
    assert_int_equal(length, strlen(text));
    strncat(h->text, text, sizeof(h->text) - strlen(h->text) - 1);
    h->texts++;
    return h->cancel_after > 0 && h->texts >= h->cancel_after;
}

static int on_task(void *owner, const char *task, int index, int text_offset, const float *e, int n)
{
    struct heard *h = owner;
    assert_int_equal(n, D);
    assert_int_equal(index, h->n_calls);
    if (h->n_calls == CALLS_MAX) return 0;
    snprintf(h->tasks[h->n_calls], sizeof(h->tasks[0]), "%s", task);
    memcpy(h->e[h->n_calls], e, sizeof(h->e[0]));
    h->offsets[h->n_calls++] = text_offset;
    return 0;
}

static void on_done(void *owner, int status, const char *finish_reason, int prompt_tokens, int completion_tokens,
                    const struct tpo_error *err)
{
    struct heard *h = owner;
    h->n_done++;
    h->status = status;
    h->prompt_tokens = prompt_tokens;
    h->completion_tokens = completion_tokens;
    snprintf(h->finish, sizeof(h->finish), "%s", finish_reason);
    if (err != NULL) h->error = *err;
}

static const char *const questions[9] = {
    "Where is the red star?",
    "How many cups are there in the picture, and what colours do they have? Tell me about each of them.",
    "Find the dog.",
    "What is this?",
    "Describe the video in one or two sentences.",
    "a",
    "Is there a small blue ring left of the large cup?",
    "Which half?",
    "Track it."};

static int submit(struct heard *h, int question, const char *task, int max_new, float temperature)
{
    const struct tpo_chat_turn turn = {"user", questions[question]};
    const struct tpo_router_request q = {.n_turns = 1,
                                         .turns = &turn,
                                         .task = task,
                                         .media_kind = question % 3 == 2 ? NULL : "image",
                                         .visual = question % 3 == 2 ? NULL : visual,
                                         .max_new_tokens = max_new,
                                         .seed = (uint64_t)question,
                                         .temperature = temperature,
                                         .top_p = 0.9F};
    const struct tpo_router_events on = {h, on_text, on_task, on_done, NULL};
    return tpo_router_submit(router, &q, &on, &h->handle, &h->error);
}

static void run_all(void)
{
    for (int i = 0; i < 2000; i++)
        if (tpo_router_step(router) == 0) return;
    fail_msg("the router never came to an end");
}

/* Every second question names a task, of those with a picture. */
static const char *task_of(int question)
{
    return question % 2 == 0 && question % 3 != 2 ? "region" : "auto";
}

static void same_answer_alone_and_among_eight(void **state)
{
    (void)state;
    static struct heard alone[9], among[9];
    static const int chunks[] = {5, 23, 512};
    for (int pass = 0; pass < 3; pass++) { /* chunks of prompt that company cuts elsewhere */
        memset(alone, 0, sizeof(alone));
        memset(among, 0, sizeof(among));
        open_router("trained", 8 << 20, 9, chunks[pass], false);
        for (int i = 0; i < 9; i++) {
            assert_int_equal(submit(&alone[i], i, task_of(i), 7, i >= 6 ? 0.8F : 0), TPO_OK);
            run_all();
        }
        for (int i = 0; i < 9; i++) {
            int k = (i * 4 + pass) % 9;
            assert_int_equal(submit(&among[k], k, task_of(k), 7, k >= 6 ? 0.8F : 0), TPO_OK);
            if (i % 2 == 0) tpo_router_step(router); /* they come in one after the other */
        }
        run_all();
        for (int i = 0; i < 9; i++) {
            assert_int_equal(alone[i].n_done, 1);
            assert_int_equal(alone[i].status, TPO_OK);
            assert_string_equal(alone[i].text, among[i].text);
            assert_int_equal(alone[i].n_calls, among[i].n_calls);
            assert_memory_equal(alone[i].e, among[i].e, sizeof(alone[i].e));
            assert_int_equal(alone[i].completion_tokens, among[i].completion_tokens);
            if (strcmp(task_of(i), "region") == 0) assert_true(alone[i].n_calls > 0);
        }
        close_router();
    }
}

/* The engine against a plain recomputation: each token is the best of a full pass over everything before it, on a tape. */
static struct tpo_tensor *full_pass(struct tpo_tape *t, const struct tpo_decoder *d, struct tpo_tensor *x)
{
    int32_t positions[512];
    for (int i = 0; i < x->rows; i++) positions[i] = i;
    const struct tpo_decoder_batch batch = {.B = 1, .T = x->rows, .positions = positions};
    return tpo_decoder_forward(t, d, x, &batch, 0, 0, NULL);
}

static void task_vector_as_the_tape(void **state)
{
    const char *const contexts[] = {"trained", "reference"};
    (void)state;
    for (int mode = 0; mode < 2; mode++) {
        static struct heard h;
        struct tpo_prompt prompt = {0};
        struct tpo_tokenizer *tokenizer = NULL;
        struct tpo_decoder d;
        struct tpo_params schema = {0};
        struct tpo_tape *tape;
        static const float box[1][4] = {{0.1F, 0.2F, 0.6F, 0.7F}};
        const struct tpo_chat_turn turn = {"user", "Where is {box}?"};
        const struct tpo_prompt_turn same = {"user", "Where is {box}?"};
        memset(&h, 0, sizeof(h));
        open_router(contexts[mode], 8 << 20, 2, 7, false);
        const struct tpo_router_request q = {.n_turns = 1,
                                             .turns = &turn,
                                             .n_boxes = 1,
                                             .boxes = box,
                                             .task = "region",
                                             .media_kind = "video",
                                             .visual = visual,
                                             .max_new_tokens = 2};
        const struct tpo_router_events on = {&h, on_text, on_task, on_done, NULL};
        assert_int_equal(tpo_router_submit(router, &q, &on, &h.handle, &h.error), TPO_OK);
        run_all();
        assert_int_equal(h.n_calls, 1);
        assert_string_equal(h.tasks[0], "region");
        assert_string_equal(h.finish, "length");

        /* The same with tape functions: a decoder of our own over the router's weights. */
        assert_int_equal(tpo_tokenizer_open(&tokenizer, "model", NULL), TPO_OK);
        const struct tpo_prompt_request p = {
            .n_turns = 1, .turns = &same, .n_boxes = 1, .media_kind = "video", .queries = QUERIES, .ids_max = 512};
        assert_int_equal(tpo_prompt_serve(&prompt, tokenizer, &config, &p, NULL), TPO_OK);
        assert_int_equal(h.prompt_tokens, prompt.n);
        assert_int_equal(tpo_decoder_declare(&d, &schema, &config, 0), TPO_OK);
        for (int i = 0; i < schema.n; i++)
            schema.items[i]->data = tpo_params_find(tpo_router_params(router), schema.items[i]->name)->data;
        assert_int_equal(tpo_tape_open(&tape, stream, false), TPO_OK);
        int n = prompt.n;
        int32_t ids[512], rows[512];
        memcpy(ids, prompt.ids, (size_t)n * sizeof(*ids));
        memcpy(rows, prompt.visual, (size_t)n * sizeof(*rows));
        if (mode == 0) ids[n] = config.tasks[0].trigger_id, rows[n++] = -1;
        ids[n] = config.tasks[0].slot_id, rows[n++] = -1; /* the slot's row is v_i */
        struct tpo_tensor *projected = tpo_decoder_project(tape, &d, tpo_input(tape, visual, QUERIES, C, false));
        struct tpo_tensor *boxes = tpo_decoder_box(tape, &d, tpo_input(tape, box[0], 1, 4, false));
        struct tpo_tensor *e = full_pass(tape, &d, tpo_decoder_splice(tape, &d, ids, rows, n, projected, boxes));
        assert_int_equal(tpo_tape_error(tape), TPO_OK);
        for (int i = 0; i < D; i++) assert_float_equal(h.e[0][i], e->data[(n - 1) * D + i], 2e-4);
        tpo_tape_close(tape);
        tpo_decoder_close(&d);
        for (int i = 0; i < schema.n; i++) schema.items[i]->data = NULL;
        tpo_params_free(&schema, stream);
        tpo_prompt_free(&prompt);
        tpo_tokenizer_close(tokenizer);
        close_router();
    }
}

static void merged_adapters_say_the_same(void **state)
{
    (void)state;
    static struct heard apart, merged, without;
    open_router("trained", 8 << 20, 2, 64, false);
    assert_int_equal(submit(&apart, 0, "region", 4, 0), TPO_OK);
    run_all();
    close_router();
    open_router("trained", 8 << 20, 2, 64, true);
    assert_int_equal(submit(&merged, 0, "region", 4, 0), TPO_OK);
    run_all();
    for (int i = 0; i < D; i++) assert_float_equal(apart.e[0][i], merged.e[0][i], 1e-4);
    close_router();
    write_folder("trained");
    write_weights(0, 1);
    open_router("trained", 8 << 20, 2, 64, false);
    assert_int_equal(submit(&without, 0, "region", 4, 0), TPO_OK);
    run_all();
    assert_memory_not_equal(apart.e[0], without.e[0], sizeof(apart.e[0])); /* the adapters count */
    close_router();
}

static void tasks_are_banned_and_forced(void **state)
{
    (void)state;
    static struct heard none, forced, unknown, blind, blind_named, sees;
    write_folder("trained");
    write_weights(0.05F, 1000); /* a head that loves every task token */
    open_router("trained", 8 << 20, 4, 64, false);
    assert_int_equal(submit(&none, 3, "none", 6, 0), TPO_OK);
    assert_int_equal(submit(&forced, 3, "temporal", 6, 0), TPO_OK);
    assert_int_equal(submit(&unknown, 3, "dance", 6, 0), TPO_INVALID_ARGUMENT);
    assert_string_equal(unknown.error.reason, "task_unknown");
    /* Question 2 comes without a picture: a call would be about nothing. */
    assert_int_equal(submit(&blind, 2, "auto", 6, 0), TPO_OK);
    assert_int_equal(submit(&blind_named, 2, "temporal", 6, 0), TPO_INVALID_ARGUMENT);
    assert_string_equal(blind_named.error.reason, "task_without_media");
    assert_int_equal(submit(&sees, 3, "auto", 6, 0), TPO_OK);
    run_all();
    assert_int_equal(none.n_calls, 0);
    assert_int_equal(blind.n_calls, 0);
    assert_int_equal(blind.completion_tokens, 6);
    assert_true(sees.n_calls >= 1); /* what the head above makes of the same rule with a picture */
    assert_int_equal(none.completion_tokens, 6);
    assert_true(forced.n_calls >= 1);
    for (int i = 0; i < forced.n_calls; i++) assert_string_equal(forced.tasks[i], "temporal");
    assert_null(strchr(forced.text, '<'));
    close_router();
}

static int submit_plain(const struct tpo_router_request *q, struct tpo_error *err)
{
    static struct heard h;
    const struct tpo_router_events on = {&h, on_text, on_task, on_done, NULL};
    *err = (struct tpo_error){0};
    return tpo_router_submit(router, q, &on, &h.handle, err);
}

static void a_flood_of_frames_or_turns_is_refused(void **state)
{
    (void)state;
    enum { TURNS = 257, FRAMES = 1024 };
    static struct tpo_chat_turn turns[TURNS];
    static double times[FRAMES];
    static const double bad[] = {1e308, -0.5, 1.0001e7, NAN, INFINITY};
    struct tpo_error err;
    open_router("trained", 8 << 20, 4, 64, true);
    for (int i = 0; i < TURNS; i++) turns[i] = (struct tpo_chat_turn){i % 2 ? "assistant" : "user", ""};
    struct tpo_router_request q = {.n_turns = TURNS, .turns = turns, .task = "none", .max_new_tokens = 1};
    assert_int_equal(submit_plain(&q, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "turns");
    assert_non_null(strstr(err.message, "at most 256"));
    const struct tpo_chat_turn turn = {"user", "Give the timestamps."};
    q = (struct tpo_router_request){.n_turns = 1,
                                    .turns = &turn,
                                    .task = "none",
                                    .media_kind = "video",
                                    .visual = visual,
                                    .n_frames = FRAMES,
                                    .frame_times_s = times,
                                    .max_new_tokens = 1};
    assert_true(config.vision_encoder.num_frames < FRAMES);
    assert_int_equal(submit_plain(&q, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "frames");
    q.n_frames = config.vision_encoder.num_frames;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        times[q.n_frames - 1] = bad[i];
        assert_int_equal(submit_plain(&q, &err), TPO_INVALID_ARGUMENT);
        assert_string_equal(err.reason, "frames");
    }
    times[q.n_frames - 1] = 1e7;
    assert_int_equal(submit_plain(&q, &err), TPO_OK);
    run_all();
    close_router();
}

static void memory_is_reserved_and_returned(void **state)
{
    (void)state;
    static struct heard h[3];
    const size_t block = (size_t)TPO_KV_TOKENS * 2 * 16 * 4 * 2 * 2; /* G, head, f32, k and v, layers */
    open_router("trained", 4 * block, 8, 64, false);
    assert_int_equal(submit(&h[0], 3, "none", 1000, 0), TPO_INVALID_ARGUMENT);
    assert_string_equal(h[0].error.reason, "kv_full");
    for (int again = 0; again < 3; again++) {
        memset(h, 0, sizeof(h));
        assert_int_equal(submit(&h[0], 3, "none", 40, 0), TPO_OK);
        assert_int_equal(submit(&h[1], 3, "none", 90, 0), TPO_UNAVAILABLE);
        assert_string_equal(h[1].error.reason, "kv_busy");
        const int wanted = tpo_router_wanted(router);
        assert_true(wanted > 91 && !tpo_router_room(router, wanted) && tpo_router_room(router, 1));
        run_all();
        assert_true(tpo_router_room(router, wanted));
        assert_int_equal(submit(&h[1], 3, "none", 90, 0), TPO_OK);
        run_all();
        assert_int_equal(h[0].n_done + h[1].n_done, 2);
    }
    close_router();
}

/* Of the published dimensions, which are what an empty config says. */
static void the_default_pool_holds_whole_prompts(void **state)
{
    (void)state;
    struct tpo_error err = {0};
    struct tpo_config c;
    mkdir("published", 0755);
    write_text("published/config.json", "%s", "{\"model_config\":{}}");
    write_text("published/added_tokens.json", "%s", added_text);
    if (tpo_config_load(&c, "published", &err) != TPO_OK) fail_msg("%s", err.message);
    assert_int_equal(tpo_kv_position_bytes(&c), 256 << 10);
    assert_true(tpo_kv_bytes_default(&c) == (size_t)2 << 30);
    open_router("trained", 0, 4, 64, false);
    assert_int_equal(tpo_router_check_pool(router, &err), TPO_OK);
    assert_true(tpo_router_room(router, TPO_KV_POSITIONS));
    close_router();
    /* 64 MiB are 256 tokens of the published model, too few for the usual answer about a picture; so are 7 blocks here. */
    open_router("trained", 7 * TPO_KV_TOKENS * tpo_kv_position_bytes(&config), 4, 64, false);
    assert_int_equal(tpo_router_check_pool(router, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "kv_bytes");
    close_router();
}

static void cancelled_ones_end_and_others_go_on(void **state)
{
    (void)state;
    static struct heard h[3], alone;
    open_router("trained", 8 << 20, 4, 8, false);
    assert_int_equal(submit(&alone, 1, "none", 20, 0), TPO_OK);
    run_all();
    h[2].cancel_after = 3;
    assert_int_equal(submit(&h[0], 0, "none", 50, 0), TPO_OK);
    assert_int_equal(submit(&h[1], 1, "none", 20, 0), TPO_OK);
    assert_int_equal(submit(&h[2], 3, "none", 50, 0), TPO_OK);
    tpo_router_step(router);
    tpo_router_cancel(router, h[0].handle);
    assert_int_equal(h[0].n_done, 0); /* never from within cancel */
    tpo_router_step(router);
    assert_int_equal(h[0].n_done, 1);
    assert_int_equal(h[0].status, TPO_CANCELLED);
    run_all();
    assert_int_equal(h[2].status, TPO_CANCELLED);
    assert_int_equal(h[2].texts, 3);
    assert_int_equal(h[1].status, TPO_OK);
    assert_string_equal(h[1].text, alone.text);
    close_router();
}

/* A pool with room for one: while a cancelled prompt is half read, the next is refused; a step later it is let in. */
static void a_cancelled_prefill_gives_its_memory_back(void **state)
{
    (void)state;
    static struct heard first, next;
    const size_t block = (size_t)TPO_KV_TOKENS * 2 * 16 * 4 * 2 * 2;
    open_router("trained", 4 * block, 4, 4, false);
    assert_int_equal(submit(&first, 1, "none", 60, 0), TPO_OK);
    assert_int_equal(tpo_router_step(router), 1);
    assert_int_equal(tpo_router_step(router), 1);
    assert_int_equal(submit(&next, 1, "none", 60, 0), TPO_UNAVAILABLE);
    tpo_router_cancel(router, first.handle);
    assert_int_equal(tpo_router_step(router), 0);
    assert_int_equal(first.n_done, 1);
    assert_int_equal(first.status, TPO_CANCELLED);
    assert_true(first.prompt_tokens > 8); /* two steps of four had not read it */
    assert_int_equal(first.completion_tokens, 0);
    assert_int_equal(submit(&next, 1, "none", 60, 0), TPO_OK);
    run_all();
    assert_int_equal(next.status, TPO_OK);
    close_router();
}

TPO_TESTS(cmocka_unit_test(same_answer_alone_and_among_eight), cmocka_unit_test(task_vector_as_the_tape),
          cmocka_unit_test(merged_adapters_say_the_same), cmocka_unit_test(tasks_are_banned_and_forced),
          cmocka_unit_test(a_flood_of_frames_or_turns_is_refused), cmocka_unit_test(memory_is_reserved_and_returned),
          cmocka_unit_test(the_default_pool_holds_whole_prompts), cmocka_unit_test(cancelled_ones_end_and_others_go_on),
          cmocka_unit_test(a_cancelled_prefill_gives_its_memory_back))
