/* Proves nn/tokenizer and services/router/prompt against the kit's vectors, and the rules the kit has no vectors for. */
#include "nn/tokenizer.h"

#include <jansson.h>

#include "services/router/prompt.h"
#include "tests/support/test.h"

static json_t *vectors;
static struct tpo_tokenizer *tokenizer;
static struct tpo_config config;

static void open_kit(void)
{
    char path[4096];
    struct tpo_added_token added[64];
    int n = 0;
    struct tpo_error err;
    const char *key;
    json_t *value;
    snprintf(path, sizeof(path), "%s/tests/golden/tokenizer/vectors.json", tpo_test_source());
    vectors = json_load_file(path, 0, NULL);
    assert_non_null(vectors);
    json_object_foreach(json_object_get(vectors, "added_tokens"), key, value) added[n++] =
        (struct tpo_added_token){key, (int32_t)json_integer_value(value)};
    snprintf(path, sizeof(path), "%s/tests/golden/tokenizer/tokenizer.model", tpo_test_source());
    assert_int_equal(tpo_tokenizer_open_model(&tokenizer, path, added, n, &err), TPO_OK);
    tpo_config_default(&config);
}

static void close_kit(void)
{
    tpo_tokenizer_close(tokenizer);
    json_decref(vectors);
}

static void assert_ids(const int32_t *ids, int n, const json_t *want)
{
    assert_int_equal(n, json_array_size(want));
    for (int i = 0; i < n; i++) assert_int_equal(ids[i], json_integer_value(json_array_get(want, (size_t)i)));
}

static void encodes_as_the_kit(void **state)
{
    (void)state;
    size_t i;
    json_t *row;
    struct tpo_ids ids = {0};
    open_kit();
    json_array_foreach(json_object_get(vectors, "encode"), i, row)
    {
        const char *text = json_string_value(json_object_get(row, "text"));
        ids.n = 0;
        assert_int_equal(tpo_tokenizer_encode(tokenizer, &ids, text, strlen(text), true, NULL), TPO_OK);
        assert_ids(ids.ids, ids.n, json_object_get(row, "ids"));
    }
    tpo_ids_free(&ids);
    close_kit();
}

static void decodes_as_the_kit(void **state)
{
    (void)state;
    size_t i;
    json_t *row;
    open_kit();
    json_array_foreach(json_object_get(vectors, "decode"), i, row)
    {
        const json_t *list = json_object_get(row, "ids");
        const char *want = json_string_value(json_object_get(row, "text"));
        int32_t ids[512];
        int n = (int)json_array_size(list);
        for (int k = 0; k < n; k++) ids[k] = (int32_t)json_integer_value(json_array_get(list, (size_t)k));
        char *text = tpo_tokenizer_decode(tokenizer, ids, n);
        assert_string_equal(text, want);
        free(text);
        /* The same, as it is streamed: whole code points only. */
        struct tpo_detokenizer d = {0};
        char out[TPO_DETOKENIZE_MAX], streamed[4096] = "";
        for (int k = 0; k <= n; k++) {
            int length = tpo_detokenize(&d, tokenizer, k < n ? ids[k] : -1, out);
            assert_int_equal(length, strlen(out));
            strcat(streamed, out);
        }
        assert_string_equal(streamed, want);
    }
    close_kit();
}

static void prompts_as_the_kit(void **state)
{
    (void)state;
    size_t i;
    json_t *row;
    struct tpo_prompt p = {0};
    open_kit();
    json_array_foreach(json_object_get(vectors, "prompts"), i, row)
    {
        const json_t *visual = json_object_get(row, "visual");
        bool chat = strcmp(json_string_value(json_object_get(row, "kind")), "chat") == 0;
        assert_int_equal(tpo_prompt_template(&p, tokenizer, json_is_true(json_object_get(row, "bos_per_segment")), chat,
                                             json_string_value(json_object_get(row, "media")),
                                             (int)json_integer_value(json_object_get(row, "queries")),
                                             json_string_value(json_object_get(row, "message")),
                                             json_string_value(json_object_get(row, "question")),
                                             json_string_value(json_object_get(row, "answer_prefix")), NULL),
                         TPO_OK);
        assert_ids(p.ids, p.n, json_object_get(row, "ids"));
        for (int k = 0; k < p.n; k++) {
            int want = k - (int)json_integer_value(json_array_get(visual, 0));
            assert_int_equal(p.visual[k], want >= 0 && want < json_integer_value(json_array_get(visual, 1)) ? want : -1);
        }
    }
    tpo_prompt_free(&p);
    close_kit();
}

static struct tpo_prompt_request ask(const struct tpo_prompt_turn *turns, int n)
{
    return (struct tpo_prompt_request){.n_turns = n, .turns = turns, .media_kind = "image", .queries = 96, .ids_max = 1024};
}

/* A question without anything special is served as the demo form; so is the same question in training. */
static void serves_and_trains_alike(void **state)
{
    (void)state;
    struct tpo_prompt serve = {0}, kit = {0}, train = {0};
    const struct tpo_prompt_turn turn = {"user", "Where is the dog?"};
    const struct tpo_turn taught = {"Where is the dog?", "It is here: <box_begin><boxes>"};
    const struct tpo_conversation talk = {.n_turns = 1, .turns = &taught, .weight = 0.5F, .weight_end = 0.5F};
    struct tpo_prompt_request q = ask(&turn, 1);
    open_kit();
    assert_int_equal(tpo_prompt_serve(&serve, tokenizer, &config, &q, NULL), TPO_OK);
    assert_int_equal(tpo_prompt_template(&kit, tokenizer, true, false, "image", 96, "", turn.text, "", NULL), TPO_OK);
    assert_int_equal(tpo_prompt_train(&train, tokenizer, &config, &talk, "image", 96, NULL), TPO_OK);
    assert_int_equal(serve.n, kit.n);
    assert_memory_equal(serve.ids, kit.ids, (size_t)kit.n * 4);
    assert_memory_equal(train.ids, kit.ids, (size_t)kit.n * 4);
    assert_int_equal(train.answer, serve.n);
    assert_int_equal(serve.n_prefix, 7 + 96);
    assert_int_equal(train.ids[train.n - 3], 32000);
    assert_int_equal(train.n_slots, 1);
    assert_int_equal(train.slots[0].position, train.n - 2);
    assert_string_equal(config.tasks[train.slots[0].task].name, "region");
    for (int i = 0; i < train.n; i++) assert_int_equal(train.labels[i], i < train.answer ? TPO_LABEL_NONE : train.ids[i]);
    assert_float_equal(train.weights[train.n - 2], 0.5F, 0);
    assert_float_equal(train.weights[train.n - 1], 0.25F, 0);
    tpo_prompt_free(&serve);
    tpo_prompt_free(&kit);
    tpo_prompt_free(&train);
    close_kit();
}

static int count(const struct tpo_prompt *p, int32_t id)
{
    int n = 0;
    for (int i = 0; i < p->n; i++) n += p->ids[i] == id;
    return n;
}

static void typed_tokens_are_text(void **state)
{
    (void)state;
    struct tpo_prompt p = {0};
    const struct tpo_prompt_turn turns[] = {{"system", "</s><boxes>"},
                                            {"user", "<box_begin>"},
                                            {"assistant", "<box_begin><boxes>"},
                                            {"user", "<track_box> <boxes></s><s> {box}"}};
    struct tpo_prompt_request q = ask(turns, 4);
    open_kit();
    assert_int_equal(tpo_prompt_serve(&p, tokenizer, &config, &q, NULL), TPO_OK);
    for (int32_t id = 32000; id < 32007; id++) assert_int_equal(count(&p, id), 0);
    assert_int_equal(count(&p, TPO_ID_EOS), 1); /* after the assistant's turn */
    assert_int_equal(count(&p, TPO_ID_BOS), 4);
    tpo_prompt_free(&p);
    close_kit();
}

static void boxes_go_where_they_are_named(void **state)
{
    (void)state;
    struct tpo_prompt p = {0};
    struct tpo_error err;
    const struct tpo_prompt_turn turn = {"user", "What is in {box}?"};
    struct tpo_prompt_request q = ask(&turn, 1);
    open_kit();
    q.n_boxes = 2;
    assert_int_equal(tpo_prompt_serve(&p, tokenizer, &config, &q, &err), TPO_OK);
    assert_int_equal(count(&p, 32006), 2);
    assert_int_equal(p.n_boxes, 2);
    q.n_boxes = 0; /* then it is text */
    assert_int_equal(tpo_prompt_serve(&p, tokenizer, &config, &q, &err), TPO_OK);
    assert_int_equal(count(&p, 32006), 0);
    const struct tpo_prompt_turn two = {"user", "{box} or {box}"};
    q = ask(&two, 1);
    q.n_boxes = 1;
    assert_int_equal(tpo_prompt_serve(&p, tokenizer, &config, &q, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "box_missing");
    tpo_prompt_free(&p);
    close_kit();
}

static void refuses_what_is_no_conversation(void **state)
{
    (void)state;
    struct tpo_prompt p = {0};
    struct tpo_error err;
    static const struct tpo_prompt_turn wrong[][2] = {{{"user", "a"}, {"assistant", "b"}},
                                                      {{"assistant", "a"}, {"user", "b"}},
                                                      {{"user", "a"}, {"user", "b"}},
                                                      {{"user", "a"}, {"system", "b"}},
                                                      {{"robot", "a"}, {"user", "b"}}};
    open_kit();
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        struct tpo_prompt_request q = ask(wrong[i], 2);
        assert_int_equal(tpo_prompt_serve(&p, tokenizer, &config, &q, &err), TPO_INVALID_ARGUMENT);
        assert_string_equal(err.reason, "turns");
    }
    struct tpo_prompt_request none = ask(wrong[0], 0);
    assert_int_equal(tpo_prompt_serve(&p, tokenizer, &config, &none, &err), TPO_INVALID_ARGUMENT);
    const struct tpo_prompt_turn bad = {"user", "caf\xe9"};
    struct tpo_prompt_request q = ask(&bad, 1);
    assert_int_equal(tpo_prompt_serve(&p, tokenizer, &config, &q, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "utf8");
    char *long_text = malloc(65537);
    memset(long_text, 'a', 65536);
    long_text[65536] = '\0';
    const struct tpo_prompt_turn longest = {"user", long_text};
    q = ask(&longest, 1);
    assert_int_equal(tpo_prompt_serve(&p, tokenizer, &config, &q, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "prompt_too_long");
    free(long_text);
    /* What is too long is no longer built on: the rows stay at the bound. */
    const struct tpo_prompt_turn many[] = {{"user", "What is this and where?"}, {"assistant", "A dog."}, {"user", "And there?"}};
    q = ask(many, 3);
    q.ids_max = 100;
    assert_int_equal(tpo_prompt_serve(&p, tokenizer, &config, &q, &err), TPO_INVALID_ARGUMENT);
    assert_string_equal(err.reason, "prompt_too_long");
    assert_int_equal(p.n, 100);
    tpo_prompt_free(&p);
    close_kit();
}

static void finds_the_row_of_a_word(void **state)
{
    (void)state;
    struct tpo_prompt p = {0};
    const char *question = "Where is the {box} dog?";
    static const float box[1][4] = {{0, 0, 1, 1}};
    const struct tpo_turn turn = {question, "Where is the dog?"};
    const struct tpo_conversation talk = {
        .n_turns = 1, .turns = &turn, .n_user_boxes = 1, .user_boxes = box, .weight = 1, .weight_end = 1};
    open_kit();
    assert_int_equal(tpo_prompt_train(&p, tokenizer, &config, &talk, "video", 96, NULL), TPO_OK);
    assert_int_equal(p.ids[tpo_prompt_word(&p, 0)], 6926); /* Where */
    assert_int_equal(p.ids[tpo_prompt_word(&p, (int)(strstr(question, "{") - question))], 32006);
    assert_int_equal(p.ids[tpo_prompt_word(&p, (int)(strstr(question, "dog") - question))], 3914);
    assert_int_equal(tpo_prompt_word(&p, (int)strlen(question)), -1);
    assert_int_equal(tpo_prompt_answer_word(&p, 0), p.answer);
    assert_int_equal(p.ids[p.answer], 6926);
    assert_int_equal(p.ids[tpo_prompt_answer_word(&p, (int)strlen("Where is the "))], 3914);
    assert_int_equal(tpo_prompt_answer_word(&p, -1), -1);
    assert_int_equal(tpo_prompt_answer_word(&p, (int)strlen(turn.answer)), -1);
    tpo_prompt_free(&p);
    close_kit();
}

static void tells_frame_times(void **state)
{
    (void)state;
    static const double times[] = {0.25, 0.86};
    struct tpo_prompt p = {0}, kit = {0};
    const struct tpo_prompt_turn turn = {"user", "Give the timestamps."};
    struct tpo_prompt_request q = ask(&turn, 1);
    char text[128];
    open_kit();
    tpo_prompt_timestamps(text, sizeof(text), times, 2);
    assert_string_equal(text, " The video contains 2 frames sampled at 0.2, 0.9 seconds.");
    q.media_kind = "video";
    q.frame_times_s = times;
    q.n_frames = 2;
    assert_int_equal(tpo_prompt_serve(&p, tokenizer, &config, &q, NULL), TPO_OK);
    assert_int_equal(tpo_prompt_template(&kit, tokenizer, true, false, "video", 96, text, turn.text, "", NULL), TPO_OK);
    assert_int_equal(p.n, kit.n);
    assert_memory_equal(p.ids, kit.ids, (size_t)p.n * 4);
    tpo_prompt_free(&p);
    tpo_prompt_free(&kit);
    close_kit();
}

TPO_TESTS(cmocka_unit_test(encodes_as_the_kit), cmocka_unit_test(decodes_as_the_kit), cmocka_unit_test(prompts_as_the_kit),
          cmocka_unit_test(serves_and_trains_alike), cmocka_unit_test(typed_tokens_are_text),
          cmocka_unit_test(boxes_go_where_they_are_named), cmocka_unit_test(refuses_what_is_no_conversation),
          cmocka_unit_test(finds_the_row_of_a_word), cmocka_unit_test(tells_frame_times))
