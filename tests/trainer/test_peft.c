/* LoRA out to PEFT's layout and back keeps every bit; an adapter or a model that does not fit is refused by the name of what is wrong. */
#include "tests/support/test.h"

#include <signal.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/safetensors.h"
#include "kernels/vector.h"
#include "trainer/model_folder.h"
#include "trainer/peft.h"

#define A0 "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

static void ok(int rc, const struct tpo_error *err)
{
    if (rc != TPO_OK) fail_msg("%s", err->message);
}

/* Fresh LoRA has B = 0, which would hide a B that is lost: here every LoRA value is a random one. */
static void model_make(const char *dir, uint64_t seed)
{
    char from[4096], fresh[64], path[128];
    struct tpo_error err;
    struct tpo_safetensors *files = NULL;
    snprintf(from, sizeof(from), "%s/trainer/recipes/lora", tpo_test_source());
    snprintf(fresh, sizeof(fresh), "%s.fresh", dir);
    ok(tpo_model_folder_write(fresh, from, 1, seed, TPO_F32, &err), &err);
    ok(tpo_safetensors_open(&files, fresh, &err), &err);
    struct tpo_entry *entries = calloc((size_t)files->n, sizeof(*entries));
    float **copies = calloc((size_t)files->n, sizeof(*copies));
    for (int i = 0; i < files->n; i++) {
        entries[i] = files->items[i];
        if (strstr(entries[i].name, ".lora_") == NULL) continue;
        copies[i] = malloc(entries[i].size_bytes);
        for (int64_t k = 0; k < entries[i].size; k++) copies[i][k] = tpo_random(seed * 1000 + (uint64_t)i, (uint64_t)k) - .5F;
        entries[i].data = copies[i];
    }
    mkdir(dir, 0755);
    ok(tpo_model_folder_companions(dir, fresh, &err), &err);
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    ok(tpo_safetensors_write(path, entries, files->n, &err), &err);
    for (int i = 0; i < files->n; i++) free(copies[i]);
    free(copies);
    free(entries);
    tpo_safetensors_close(files);
}

static void same_tensor(const struct tpo_safetensors *a, const char *name_a, const struct tpo_safetensors *b, const char *name_b)
{
    const struct tpo_entry *x = tpo_safetensors_find(a, name_a), *y = tpo_safetensors_find(b, name_b);
    if (x == NULL || y == NULL || x->size_bytes != y->size_bytes || x->dtype != y->dtype)
        fail_msg("%s and %s differ in shape", name_a, name_b);
    if (memcmp(x->data, y->data, x->size_bytes) != 0) fail_msg("%s and %s differ", name_a, name_b);
}

static void out_and_in_keeps_every_bit(void **state)
{
    (void)state;
    struct tpo_error err;
    struct tpo_safetensors *one = NULL, *two = NULL, *made = NULL, *adapter = NULL;
    int n_lora = 0;
    model_make("one", 1);
    model_make("two", 2);
    ok(tpo_peft_export("adapter", "one", &err), &err);
    ok(tpo_peft_import("made", "two", "adapter", &err), &err);
    ok(tpo_safetensors_open(&one, "one", &err), &err);
    ok(tpo_safetensors_open(&two, "two", &err), &err);
    ok(tpo_safetensors_open(&made, "made", &err), &err);
    ok(tpo_safetensors_open(&adapter, "adapter/adapter_model.safetensors", &err), &err);
    assert_int_equal(made->n, two->n);
    for (int i = 0; i < made->n; i++) {
        const char *name = made->items[i].name;
        const int lora = strstr(name, ".lora_") != NULL;
        same_tensor(made, name, lora ? one : two, name);
        n_lora += lora;
    }
    assert_int_equal(adapter->n, n_lora);
    assert_int_equal(n_lora, 2 * (6 * 7 + 1));
    same_tensor(adapter, A0, one, "lm.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight");
    same_tensor(adapter, "base_model.model.lm_head.lora_B.weight", one, "lm.base_model.model.lm_head.lora_B.default.weight");
    assert_int_equal(tpo_peft_export("adapter", "one", &err), TPO_ALREADY_EXISTS);
    assert_int_equal(tpo_peft_import("made", "two", "adapter", &err), TPO_ALREADY_EXISTS);
    tpo_safetensors_close(adapter);
    tpo_safetensors_close(made);
    tpo_safetensors_close(two);
    tpo_safetensors_close(one);
}

/* The adapter again with its tensor A0 changed by `damage`; n tensors are kept. */
static void adapter_damage(void (*damage)(struct tpo_entry *e, int *n))
{
    struct tpo_error err;
    struct tpo_safetensors *adapter = NULL;
    ok(tpo_safetensors_open(&adapter, "adapter/adapter_model.safetensors", &err), &err);
    int n = adapter->n, at = 0;
    struct tpo_entry *entries = calloc((size_t)n, sizeof(*entries));
    for (int i = 0; i < n; i++) entries[i] = adapter->items[i];
    while (strcmp(entries[at].name, A0) != 0) at++;
    struct tpo_entry last = entries[n - 1];
    entries[n - 1] = entries[at];
    entries[at] = last;
    damage(&entries[n - 1], &n);
    mkdir("bad", 0755);
    ok(tpo_safetensors_write("bad/adapter_model.safetensors", entries, n, &err), &err);
    free(entries);
    tpo_safetensors_close(adapter);
}

static void wrong_shape(struct tpo_entry *e, int *n)
{
    (void)n;
    const int64_t r = e->shape[0];
    e->shape[0] = e->shape[1];
    e->shape[1] = r;
}

static void wrong_dtype(struct tpo_entry *e, int *n)
{
    (void)n;
    e->dtype = TPO_BF16;
    e->size_bytes /= 2;
}

static void wrong_rank(struct tpo_entry *e, int *n)
{
    (void)n;
    e->shape[0] /= 2;
    e->size /= 2;
    e->size_bytes /= 2;
}

static void left_out(struct tpo_entry *e, int *n)
{
    (void)e;
    (*n)--;
}

static void other_name(struct tpo_entry *e, int *n)
{
    (void)n;
    e->name = "base_model.model.model.layers.0.self_attn.r_proj.lora_A.weight";
}

static void tensors_that_do_not_fit_are_named(void **state)
{
    (void)state;
    static void (*const damages[])(struct tpo_entry *, int *) = {wrong_shape, wrong_dtype, wrong_rank, left_out, other_name};
    struct tpo_error err;
    model_make("one", 1);
    ok(tpo_peft_export("adapter", "one", &err), &err);
    mkdir("bad", 0755);
    assert_int_equal(system("cp adapter/adapter_config.json bad/"), 0);
    for (size_t i = 0; i < sizeof(damages) / sizeof(damages[0]); i++) {
        adapter_damage(damages[i]);
        assert_int_equal(tpo_peft_import("made", "one", "bad", &err), TPO_INVALID_ARGUMENT);
        if (strstr(err.message, A0) == NULL) fail_msg("damage %zu: %s", i, err.message);
        assert_int_not_equal(access("made/model.safetensors", F_OK), 0);
    }
}

/* --- adapter_config.json ---------------------------------------------------------------------------------------------------------------- */

#define LAYERS "\"q_proj\",\"k_proj\",\"v_proj\",\"o_proj\",\"gate_proj\",\"up_proj\",\"down_proj\""
#define CONFIG(kind, scale, targets, rest)                                                                                         \
    "{\"peft_type\":" kind ",\"task_type\":\"CAUSAL_LM\"," scale ",\"target_modules\":" targets rest "}"
#define FITS(rest) CONFIG("\"LORA\"", "\"r\":16,\"lora_alpha\":32", "[" LAYERS ",\"lm_head\"]", rest)

static void config_put(const char *text)
{
    FILE *f = fopen("adapter/adapter_config.json", "w");
    fputs(text, f);
    fclose(f);
}

static void configs_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *named;
    } configs[] = {
        {CONFIG("\"LORA\"", "\"r\":8,\"lora_alpha\":32", "[" LAYERS ",\"lm_head\"]", ""), "lora_r"},
        {CONFIG("\"LORA\"", "\"r\":16,\"lora_alpha\":16", "[" LAYERS ",\"lm_head\"]", ""), "lora_alpha"},
        {CONFIG("\"IA3\"", "\"r\":16,\"lora_alpha\":32", "[" LAYERS ",\"lm_head\"]", ""), "peft_type"},
        {"{\"peft_type\":\"LORA\",\"task_type\":\"SEQ_CLS\",\"r\":16,\"lora_alpha\":32,\"target_modules\":[" LAYERS
         ",\"lm_head\"]}",
         "task_type"},
        {"{\"peft_type\":\"LORA\",\"task_type\":7,\"r\":16,\"lora_alpha\":32,\"target_modules\":[" LAYERS ",\"lm_head\"]}",
         "task_type"},
        {FITS(",\"use_dora\":true"), "use_dora"},
        {FITS(",\"use_rslora\":true"), "use_rslora"},
        {FITS(",\"bias\":\"all\""), "bias"},
        {FITS(",\"rank_pattern\":{\"q_proj\":4}"), "rank_pattern"},
        {FITS(",\"exclude_modules\":[\"lm_head\"]"), "exclude_modules"},
        {FITS(",\"layers_to_transform\":0"), "layers_to_transform"},
        {FITS(",\"a_key_of_tomorrow\":\"on\""), "a_key_of_tomorrow"},
        {FITS(",\"init_lora_weights\":\"pissa\""), "init_lora_weights"},
        {CONFIG("\"LORA\"", "\"r\":16,\"lora_alpha\":32", "[" LAYERS "]", ""), "leaves out lm_head"},
        {CONFIG("\"LORA\"", "\"r\":16,\"lora_alpha\":32", "[\"lm_head\",\"layers.0.self_attn.q_proj\"]", ""),
         "leaves out model.layers.0.self_attn.k_proj"},
        {CONFIG("\"LORA\"", "\"r\":16,\"lora_alpha\":32", "[" LAYERS ",\"lm_head\",\"embed_tokens\"]", ""), "names embed_tokens"},
        {CONFIG("\"LORA\"", "\"r\":16,\"lora_alpha\":32", "[" LAYERS ",\"lm_head\",\"proj\"]", ""), "names proj"},
        {CONFIG("\"LORA\"", "\"r\":16,\"lora_alpha\":32", "[" LAYERS ",\"lm_head\",\"\"]", ""), "target_modules"},
        {CONFIG("\"LORA\"", "\"r\":16,\"lora_alpha\":32", "[" LAYERS ",\"lm_head\",3]", ""), "target_modules"},
        {CONFIG("\"LORA\"", "\"r\":16,\"lora_alpha\":32", "\".*_proj|lm_head\"", ""), "target_modules"},
        {CONFIG("\"LORA\"", "\"r\":16,\"lora_alpha\":32", "null", ""), "target_modules"},
        {"[]", "peft_type"},
        {"{\"peft_type\":", "adapter_config.json:1"}};
    struct tpo_error err;
    char plain[4096];
    model_make("one", 1);
    ok(tpo_peft_export("adapter", "one", &err), &err);
    for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++) {
        config_put(configs[i].text);
        if (tpo_peft_import("made", "one", "adapter", &err) != TPO_INVALID_ARGUMENT) fail_msg("config %zu was taken", i);
        if (strstr(err.message, configs[i].named) == NULL) fail_msg("config %zu: %s", i, err.message);
        assert_int_not_equal(access("made/model.safetensors", F_OK), 0);
    }
    unlink("adapter/adapter_config.json");
    assert_int_equal(tpo_peft_import("made", "one", "adapter", &err), TPO_NOT_FOUND);
    snprintf(plain, sizeof(plain), "%s/models/small", tpo_test_source());
    assert_int_equal(tpo_peft_export("none", plain, &err), TPO_FAILED_PRECONDITION);
    assert_string_equal(err.reason, "lora");
}

static void configs_that_say_the_same_otherwise_are_taken(void **state)
{
    (void)state;
    static const char *const configs[] = {
        FITS(""), FITS(",\"bias\":\"none\",\"rank_pattern\":{},\"layers_to_transform\":null,\"use_dora\":false"),
        FITS(",\"peft_version\":\"0.21.2\",\"lora_dropout\":0.1,\"init_lora_weights\":\"gaussian\",\"megatron_core\":\"megatron."
             "core\""),
        CONFIG("\"LORA\"", "\"r\":16,\"lora_alpha\":32.0", "[\"lm_head\",\"self_attn.q_proj\"," LAYERS "]", ""),
        "{\"peft_type\":\"LORA\",\"r\":16,\"lora_alpha\":32,\"target_modules\":[" LAYERS ",\"lm_head\"]}"};
    struct tpo_error err;
    char dir[32];
    model_make("one", 1);
    ok(tpo_peft_export("adapter", "one", &err), &err);
    for (size_t i = 0; i < sizeof(configs) / sizeof(configs[0]); i++) {
        config_put(configs[i]);
        snprintf(dir, sizeof(dir), "made%zu", i);
        if (tpo_peft_import(dir, "one", "adapter", &err) != TPO_OK) fail_msg("config %zu: %s", i, err.message);
    }
}

/* --- the model's side ------------------------------------------------------------------------------------------------------------------- */

#define OUR_A0 "lm.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
#define OUR_Q0 "lm.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"

/* Model folder `dir`: that of `from` with its tensor `name` as one row of as many elements, or as F16. */
static void model_damage(const char *dir, const char *from, const char *name, bool half)
{
    char path[128];
    struct tpo_error err;
    struct tpo_safetensors *files = NULL;
    ok(tpo_safetensors_open(&files, from, &err), &err);
    struct tpo_entry *entries = calloc((size_t)files->n, sizeof(*entries));
    for (int i = 0; i < files->n; i++) {
        entries[i] = files->items[i];
        if (strcmp(entries[i].name, name) != 0) continue;
        if (half) {
            entries[i].dtype = TPO_F16;
            entries[i].size_bytes /= 2;
        } else {
            entries[i].n_dims = 1;
            entries[i].shape[0] = entries[i].size;
        }
    }
    mkdir(dir, 0755);
    ok(tpo_model_folder_companions(dir, from, &err), &err);
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    ok(tpo_safetensors_write(path, entries, files->n, &err), &err);
    free(entries);
    tpo_safetensors_close(files);
}

static void models_that_are_not_their_config_are_refused(void **state)
{
    (void)state;
    struct tpo_error err;
    model_make("one", 1);
    ok(tpo_peft_export("adapter", "one", &err), &err);
    model_damage("flat_a", "one", OUR_A0, false);
    model_damage("flat_q", "one", OUR_Q0, false);
    model_damage("half_a", "one", OUR_A0, true);
    static const char *const models[] = {"flat_a", "flat_q"}, *const names[] = {OUR_A0, OUR_Q0};
    for (int i = 0; i < 2; i++) {
        assert_int_equal(tpo_peft_export("out", models[i], &err), TPO_FAILED_PRECONDITION);
        if (strstr(err.message, names[i]) == NULL || strstr(err.message, "shape") == NULL) fail_msg("export: %s", err.message);
        assert_int_equal(tpo_peft_import("in", models[i], "adapter", &err), TPO_FAILED_PRECONDITION);
        if (strstr(err.message, names[i]) == NULL || strstr(err.message, "shape") == NULL) fail_msg("import: %s", err.message);
    }
    assert_int_equal(tpo_peft_export("out", "half_a", &err), TPO_FAILED_PRECONDITION);
    if (strstr(err.message, "F16") == NULL) fail_msg("%s", err.message);
    assert_int_not_equal(access("out/adapter_model.safetensors", F_OK), 0);
    assert_int_not_equal(access("in/model.safetensors", F_OK), 0);
}

/* A training checkpoint holds heads that no folder to serve from has: no reason to refuse it, and they stay. */
static void a_checkpoint_keeps_the_heads_of_training(void **state)
{
    (void)state;
    static const float bias[4] = {.25F, .5F, .75F, 1};
    struct tpo_error err;
    struct tpo_safetensors *files = NULL;
    model_make("one", 1);
    ok(tpo_safetensors_open(&files, "one", &err), &err);
    struct tpo_entry *entries = calloc((size_t)files->n + 1, sizeof(*entries));
    memcpy(entries, files->items, (size_t)files->n * sizeof(*entries));
    entries[files->n] = (struct tpo_entry){.name = "ext.router.slot.box.bias",
                                           .dtype = TPO_F32,
                                           .n_dims = 1,
                                           .shape = {4},
                                           .size = 4,
                                           .size_bytes = sizeof(bias),
                                           .data = bias};
    mkdir("aided", 0755);
    ok(tpo_model_folder_companions("aided", "one", &err), &err);
    ok(tpo_safetensors_write("aided/model.safetensors", entries, files->n + 1, &err), &err);
    free(entries);
    tpo_safetensors_close(files);
    ok(tpo_peft_export("adapter", "aided", &err), &err);
    ok(tpo_peft_import("made", "aided", "adapter", &err), &err);
    ok(tpo_safetensors_open(&files, "made", &err), &err);
    const struct tpo_entry *kept = tpo_safetensors_find(files, "ext.router.slot.box.bias");
    assert_non_null(kept);
    assert_memory_equal(kept->data, bias, sizeof(bias));
    tpo_safetensors_close(files);
}

/* There is room for the companions and not for the weights: nothing is left, and the same command works once there is. */
static void a_full_disk_leaves_no_half_a_folder(void **state)
{
    (void)state;
    struct tpo_error err;
    struct rlimit before, small;
    struct stat weights, words;
    model_make("one", 1);
    ok(tpo_peft_export("adapter", "one", &err), &err);
    assert_true(stat("one/model.safetensors", &weights) == 0 && stat("one/tokenizer.model", &words) == 0);
    assert_true(words.st_size < weights.st_size - 1);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = (rlim_t)weights.st_size - 1;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    assert_int_equal(tpo_peft_import("made", "one", "adapter", &err), TPO_RESOURCE_EXHAUSTED);
    assert_int_equal(access("made", F_OK), -1);
    mkdir("made", 0755);
    assert_int_equal(tpo_peft_import("made", "one", "adapter", &err), TPO_RESOURCE_EXHAUSTED);
    assert_int_equal(rmdir("made"), 0); /* it is empty */
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    ok(tpo_peft_import("made", "one", "adapter", &err), &err);
    assert_int_equal(access("made/manifest.json", F_OK), 0);
}

static void a_folder_with_weights_in_shards_is_a_model(void **state)
{
    (void)state;
    struct tpo_error err;
    model_make("one", 1);
    ok(tpo_peft_export("adapter", "one", &err), &err);
    mkdir("made", 0755);
    fclose(fopen("made/model.safetensors.index.json", "w"));
    assert_int_equal(tpo_peft_import("made", "one", "adapter", &err), TPO_ALREADY_EXISTS);
}

TPO_TESTS(cmocka_unit_test(out_and_in_keeps_every_bit), cmocka_unit_test(tensors_that_do_not_fit_are_named),
          cmocka_unit_test(configs_that_do_not_fit_are_refused), cmocka_unit_test(configs_that_say_the_same_otherwise_are_taken),
          cmocka_unit_test(models_that_are_not_their_config_are_refused),
          cmocka_unit_test(a_checkpoint_keeps_the_heads_of_training), cmocka_unit_test(a_full_disk_leaves_no_half_a_folder),
          cmocka_unit_test(a_folder_with_weights_in_shards_is_a_model))
