/* This file owns reading config.json and added_tokens.json. */
#include "nn/config.h"

#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/files.h"

#define JSON_BYTES_MAX (8 << 20)

int tpo_config_vit_blocks(const struct tpo_config *c)
{
    return c->vision_encoder.encoder_depth + c->vision_encoder.return_index + 1;
}

int tpo_config_patches(const struct tpo_config *c)
{
    int side = c->vision_encoder.img_size / c->vision_encoder.patch_size;
    return side * side;
}

int tpo_config_queries(const struct tpo_config *c)
{
    return c->bridge.num_query_token + c->bridge.extra_num_query_token;
}

static const struct tpo_task published_tasks[] = {
    {"region", "<box_begin>", "<boxes>", "box_token", 32000, 32003},
    {"temporal", "<time_begin>", "<temp>", "temporal_token", 32001, 32002},
    {"mask", "<track_begin>", "<tracking>", "track_token", 32004, 32005},
};

void tpo_config_default(struct tpo_config *c)
{
    *c = (struct tpo_config){
        .vision_encoder = {.img_size = 224,
                           .patch_size = 16,
                           .encoder_embed_dim = 1024,
                           .encoder_depth = 24,
                           .encoder_num_heads = 16,
                           .num_frames = 16,
                           .tubelet_size = 1,
                           .checkpoint_frames = 4,
                           .return_index = -2,
                           .mlp_ratio = 4,
                           .norm_eps = 1e-6F,
                           .temporal_pad = true},
        .bridge = {.num_query_token = 32,
                   .extra_num_query_token = 64,
                   .hidden_size = 768,
                   .num_hidden_layers = 12,
                   .num_attention_heads = 12,
                   .intermediate_size = 3072,
                   .cross_attention_freq = 2,
                   .vocab_size = 30523,
                   .max_position_embeddings = 512,
                   .dropout = 0.1F,
                   .drop_path_rate = 0.2F},
        .llm = {.hidden_size = 4096,
                .num_hidden_layers = 32,
                .num_attention_heads = 32,
                .num_key_value_heads = 8,
                .head_dim = 128,
                .intermediate_size = 14336,
                .vocab_size = 32007,
                .rms_norm_eps = 1e-5F,
                .rope_theta = 1e6,
                .use_lora = true,
                .lora_r = 16,
                .lora_alpha = 32,
                .lora_dropout = 0.1F},
        .region_hidden_size = 2048,
        .box_encoder_hidden_size = 2048,
        .bos_per_segment = true,
        .head_context_trained = true,
        .image_mean = {0.485F, 0.456F, 0.406F},
        .image_std = {0.229F, 0.224F, 0.225F},
        .n_tasks = 3,
        .track_box_id = 32006,
    };
    memcpy(c->tasks, published_tasks, sizeof(published_tasks));
}

/* What a key may hold. UNUSED: a published key that nothing here reads. */
enum kind { UNUSED, INT, REAL, DOUBLE, BOOL };

struct key {
    const char *section, *name;
    size_t offset;
    enum kind kind;
    double low, high;
};

#define AT(member) offsetof(struct tpo_config, member)
/* A key whose member is called as it is. */
#define NAMED(section, member) #section, #member, AT(section.member)
#define WIDTH_MAX              65536
#define PATCHES_MAX            (1 << 20) /* of a clip: times a batch and a few it stays an int; the published model has 3,136 */
static const struct key keys[] = {
    {NAMED(vision_encoder, img_size), INT, 1, 4096},
    {NAMED(vision_encoder, patch_size), INT, 1, 4096},
    {NAMED(vision_encoder, encoder_embed_dim), INT, 1, WIDTH_MAX},
    {NAMED(vision_encoder, encoder_depth), INT, 1, 1024},
    {NAMED(vision_encoder, encoder_num_heads), INT, 1, 1024},
    {NAMED(vision_encoder, num_frames), INT, 1, 1024},
    {NAMED(vision_encoder, tubelet_size), INT, 1, 16},
    {NAMED(vision_encoder, checkpoint_frames), INT, 1, 1024},
    {NAMED(vision_encoder, return_index), INT, -1024, -1},
    {NAMED(vision_encoder, mlp_ratio), REAL, 0.01, 64},
    {NAMED(vision_encoder, norm_eps), REAL, 0, 1},
    {NAMED(vision_encoder, ext_position), BOOL, 0, 0},
    {NAMED(vision_encoder, temporal_pad), BOOL, 0, 0},
    {"vision_encoder", "name", 0, UNUSED, 0, 0},
    {"vision_encoder", "d_model", 0, UNUSED, 0, 0},
    {"vision_encoder", "drop_path_rate", 0, UNUSED, 0, 0},
    {"vision_encoder", "use_checkpoint", 0, UNUSED, 0, 0},
    {"vision_encoder", "checkpoint_num", 0, UNUSED, 0, 0},
    {"vision_encoder", "vit_add_ln", 0, UNUSED, 0, 0},
    {"vision_encoder", "pretrained", 0, UNUSED, 0, 0},
    {NAMED(bridge, num_query_token), INT, 1, 4096},
    {NAMED(bridge, extra_num_query_token), INT, 0, 4096},
    {NAMED(bridge, hidden_size), INT, 1, WIDTH_MAX},
    {NAMED(bridge, num_hidden_layers), INT, 1, 1024},
    {NAMED(bridge, num_attention_heads), INT, 1, 1024},
    {NAMED(bridge, intermediate_size), INT, 1, 1 << 20},
    {NAMED(bridge, cross_attention_freq), INT, 1, 1024},
    {NAMED(bridge, vocab_size), INT, 1, 1 << 24},
    {NAMED(bridge, max_position_embeddings), INT, 1, 1 << 20},
    {"bridge", "qformer_hidden_dropout_prob", AT(bridge.dropout), REAL, 0, 0.99},
    {"bridge", "qformer_drop_path_rate", AT(bridge.drop_path_rate), REAL, 0, 0.99},
    {NAMED(bridge, drop_path_rate), REAL, 0, 0.99},
    {NAMED(bridge, ext_key_position), BOOL, 0, 0},
    {"bridge", "name", 0, UNUSED, 0, 0},
    {"bridge", "qformer_attention_probs_dropout_prob", 0, UNUSED, 0, 0},
    {NAMED(llm, hidden_size), INT, 1, WIDTH_MAX},
    {NAMED(llm, num_hidden_layers), INT, 1, 1024},
    {NAMED(llm, num_attention_heads), INT, 1, 1024},
    {NAMED(llm, num_key_value_heads), INT, 1, 1024},
    {NAMED(llm, head_dim), INT, 2, 256},
    {NAMED(llm, intermediate_size), INT, 1, 1 << 20},
    {NAMED(llm, vocab_size), INT, 4, 1 << 24},
    {NAMED(llm, rms_norm_eps), REAL, 0, 1},
    {NAMED(llm, rope_theta), DOUBLE, 1, 1e12},
    {NAMED(llm, use_lora), BOOL, 0, 0},
    {NAMED(llm, lora_r), INT, 1, 4096},
    {NAMED(llm, lora_alpha), REAL, 0, 65536},
    {NAMED(llm, lora_dropout), REAL, 0, 0.99},
    {NAMED(llm, ext_slot_position), BOOL, 0, 0},
    {"llm", "name", 0, UNUSED, 0, 0},
    {"llm", "pretrained_llm_path", 0, UNUSED, 0, 0},
    {"box_encoder", "hidden_size", AT(box_encoder_hidden_size), INT, 1, WIDTH_MAX},
    {"tokenizer", "bos_per_segment", AT(bos_per_segment), BOOL, 0, 0},
    {"heads.region", "hidden_size", AT(region_hidden_size), INT, 1, WIDTH_MAX},
};
#define N_KEYS (sizeof(keys) / sizeof(keys[0]))

static int invalid(struct tpo_error *err, const char *section, const char *name, const char *what)
{
    return tpo_fail(err, TPO_INVALID_ARGUMENT, "config", "config.json: %s%s%s %s", section, section[0] != '\0' ? "." : "", name,
                    what);
}

static int set_value(struct tpo_config *c, const struct key *k, const json_t *value, struct tpo_error *err)
{
    char *at = (char *)c + k->offset;
    double number = json_number_value(value);
    if (k->kind == UNUSED) return TPO_OK;
    if (k->kind == BOOL) {
        if (!json_is_boolean(value)) return invalid(err, k->section, k->name, "is not true or false");
        *(bool *)at = json_is_true(value);
        return TPO_OK;
    }
    if (k->kind == INT ? !json_is_integer(value) : !json_is_number(value))
        return invalid(err, k->section, k->name, k->kind == INT ? "is not a whole number" : "is not a number");
    if (!(number >= k->low && number <= k->high)) return invalid(err, k->section, k->name, "is out of its range");
    if (k->kind == INT) *(int *)at = (int)json_integer_value(value);
    if (k->kind == REAL) *(float *)at = (float)number;
    if (k->kind == DOUBLE) *(double *)at = number;
    return TPO_OK;
}

static int read_section(struct tpo_config *c, const char *section, const json_t *object, struct tpo_error *err)
{
    const char *name;
    json_t *value;
    if (object == NULL) return TPO_OK;
    if (!json_is_object(object)) return invalid(err, "", section, "is not an object");
    json_object_foreach((json_t *)object, name, value)
    {
        const struct key *found = NULL;
        for (size_t i = 0; i < N_KEYS; i++)
            if (strcmp(keys[i].section, section) == 0 && strcmp(keys[i].name, name) == 0) found = &keys[i];
        if (found == NULL) return invalid(err, section, name, "is not a key this program knows");
        int rc = set_value(c, found, value, err);
        if (rc != TPO_OK) return rc;
    }
    return TPO_OK;
}

static int read_triple(float out[3], const json_t *object, const char *name, double low, struct tpo_error *err)
{
    const json_t *list = json_object_get(object, name);
    if (list == NULL) return TPO_OK;
    if (!json_is_array(list) || json_array_size(list) != 3) return invalid(err, "", name, "is not three numbers");
    for (size_t i = 0; i < 3; i++) {
        const json_t *x = json_array_get(list, i);
        if (!json_is_number(x) || !(json_number_value(x) >= low && json_number_value(x) <= 1))
            return invalid(err, "", name, "is not three numbers from 0 to 1");
        out[i] = (float)json_number_value(x);
    }
    return TPO_OK;
}

static int copy_word(char *out, size_t size, const json_t *task, const char *key, struct tpo_error *err)
{
    const char *text = json_string_value(json_object_get(task, key));
    if (text == NULL || text[0] == '\0' || strlen(text) >= size) return invalid(err, "tasks", key, "is missing, empty or too long");
    snprintf(out, size, "%s", text);
    return TPO_OK;
}

static int read_tasks(struct tpo_config *c, const json_t *list, struct tpo_error *err)
{
    if (list == NULL) return TPO_OK;
    if (!json_is_array(list) || json_array_size(list) > TPO_TASKS_MAX)
        return invalid(err, "", "tasks", "is not a list of at most 8 tasks");
    c->n_tasks = (int)json_array_size(list);
    for (int i = 0; i < c->n_tasks; i++) {
        const json_t *row = json_array_get(list, (size_t)i);
        struct tpo_task *t = &c->tasks[i];
        memset(t, 0, sizeof(*t));
        if (!json_is_object(row) || json_object_size(row) != 4)
            return invalid(err, "", "tasks", "has a row that is not {name, trigger, slot, vector}");
        int rc = copy_word(t->name, sizeof(t->name), row, "name", err);
        if (rc == TPO_OK) rc = copy_word(t->trigger, sizeof(t->trigger), row, "trigger", err);
        if (rc == TPO_OK) rc = copy_word(t->slot, sizeof(t->slot), row, "slot", err);
        if (rc == TPO_OK) rc = copy_word(t->vector, sizeof(t->vector), row, "vector", err);
        if (rc != TPO_OK) return rc;
        for (int j = 0; j < i; j++)
            if (strcmp(t->name, c->tasks[j].name) == 0) return invalid(err, "tasks", t->name, "occurs twice");
        if (strcmp(t->name, "auto") == 0 || strcmp(t->name, "none") == 0)
            return invalid(err, "tasks", t->name, "is a reserved name");
    }
    return TPO_OK;
}

static int read_model(struct tpo_config *c, const json_t *model, struct tpo_error *err)
{
    static const char *const sections[] = {"vision_encoder", "bridge", "llm", "box_encoder", "tokenizer"};
    static const char *const others[] = {"heads",         "tasks",       "head_context",          "image_mean", "image_std",
                                         "freeze_bridge", "freeze_llm",  "freeze_vision_encoder", "loss",       "pretrained_paths",
                                         "build_decoder", "hidden_size", "use_flash_attention",   "use_cache"};
    const char *name;
    json_t *value;
    int rc = TPO_OK;
    json_object_foreach((json_t *)model, name, value)
    {
        bool known = false;
        for (size_t i = 0; i < sizeof(sections) / sizeof(sections[0]); i++) known = known || strcmp(name, sections[i]) == 0;
        for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) known = known || strcmp(name, others[i]) == 0;
        if (!known) return invalid(err, "model_config", name, "is not a key this program knows");
    }
    for (size_t i = 0; i < sizeof(sections) / sizeof(sections[0]) && rc == TPO_OK; i++)
        rc = read_section(c, sections[i], json_object_get(model, sections[i]), err);
    const json_t *llm = json_object_get(model, "llm"), *heads = json_object_get(model, "heads");
    if (rc == TPO_OK && json_object_get(llm, "head_dim") == NULL) c->llm.head_dim = c->llm.hidden_size / c->llm.num_attention_heads;
    if (rc == TPO_OK && heads != NULL && !json_is_object(heads)) rc = invalid(err, "", "heads", "is not an object");
    if (rc == TPO_OK) rc = read_section(c, "heads.region", json_object_get(heads, "region"), err);
    if (rc == TPO_OK) rc = read_triple(c->image_mean, model, "image_mean", 0, err);
    if (rc == TPO_OK) rc = read_triple(c->image_std, model, "image_std", 1e-6, err);
    if (rc == TPO_OK) rc = read_tasks(c, json_object_get(model, "tasks"), err);
    const json_t *context = json_object_get(model, "head_context");
    if (rc != TPO_OK || context == NULL) return rc;
    const char *text = json_string_value(context);
    if (text == NULL || (strcmp(text, "trained") != 0 && strcmp(text, "reference") != 0))
        return invalid(err, "", "head_context", "is neither \"trained\" nor \"reference\"");
    c->head_context_trained = strcmp(text, "trained") == 0;
    /* A head's own keys below "heads" are that head's to read. */
    return TPO_OK;
}

static int check_divides(struct tpo_error *err, const char *section, int whole, int parts, const char *name)
{
    return whole % parts == 0 ? TPO_OK : invalid(err, section, name, "does not divide what it must");
}

static int check_sizes(const struct tpo_config *c, struct tpo_error *err)
{
    int rc = check_divides(err, "vision_encoder", c->vision_encoder.img_size, c->vision_encoder.patch_size, "patch_size");
    if (rc == TPO_OK)
        rc = check_divides(err, "vision_encoder", c->vision_encoder.encoder_embed_dim, c->vision_encoder.encoder_num_heads,
                           "encoder_num_heads");
    if (rc == TPO_OK)
        rc = check_divides(err, "vision_encoder", c->vision_encoder.num_frames, c->vision_encoder.tubelet_size, "tubelet_size");
    if (rc == TPO_OK)
        rc = check_divides(err, "bridge", c->bridge.hidden_size, c->bridge.num_attention_heads, "num_attention_heads");
    if (rc == TPO_OK) rc = check_divides(err, "llm", c->llm.num_attention_heads, c->llm.num_key_value_heads, "num_key_value_heads");
    if (rc == TPO_OK) rc = check_divides(err, "llm", c->llm.head_dim, 2, "head_dim");
    if (rc == TPO_OK && (c->llm.head_dim < 2 || c->llm.head_dim > 256))
        rc = invalid(err, "llm", "head_dim", "is not from 2 to 256");
    if (rc == TPO_OK && tpo_config_vit_blocks(c) < 1) rc = invalid(err, "vision_encoder", "return_index", "leaves no block");
    if (rc == TPO_OK && c->vision_encoder.encoder_embed_dim / c->vision_encoder.encoder_num_heads > 256)
        rc = invalid(err, "vision_encoder", "encoder_num_heads", "makes heads wider than 256");
    if (rc == TPO_OK && c->bridge.hidden_size / c->bridge.num_attention_heads > 256)
        rc = invalid(err, "bridge", "num_attention_heads", "makes heads wider than 256");
    const int most = c->vision_encoder.num_frames > c->vision_encoder.checkpoint_frames ? c->vision_encoder.num_frames
                                                                                        : c->vision_encoder.checkpoint_frames;
    if (rc == TPO_OK && (int64_t)most * tpo_config_patches(c) > PATCHES_MAX)
        rc = invalid(err, "vision_encoder", "patch_size", "makes more patches of a clip than 1048576");
    return rc;
}

/* Parses FOLDER/NAME as one JSON object; *out is the caller's. */
static int load_object(json_t **out, const char *folder, const char *name, struct tpo_error *err)
{
    char path[4096];
    json_error_t e;
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *f = tpo_open_file(path);
    if (f == NULL) return tpo_fail(err, TPO_NOT_FOUND, "config", "%s: %s", path, strerror(errno));
    char *text = malloc(JSON_BYTES_MAX);
    size_t n = text != NULL ? fread(text, 1, JSON_BYTES_MAX, f) : 0;
    fclose(f);
    json_t *object = text != NULL && n < JSON_BYTES_MAX ? json_loadb(text, n, JSON_REJECT_DUPLICATES, &e) : NULL;
    bool memory = text == NULL;
    free(text);
    if (memory) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory to read %s", path);
    if (n == JSON_BYTES_MAX) return tpo_fail(err, TPO_INVALID_ARGUMENT, "config", "%s: longer than 8 MiB", name);
    if (object == NULL) return tpo_fail(err, TPO_INVALID_ARGUMENT, "config", "%s: line %d: %s", name, e.line, e.text);
    if (!json_is_object(object)) {
        json_decref(object);
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "config", "%s: not an object", name);
    }
    *out = object;
    return TPO_OK;
}

static int token_id(int *id, const json_t *tokens, const char *token, int vocab, struct tpo_error *err)
{
    const json_t *value = json_object_get(tokens, token);
    if (!json_is_integer(value)) return tpo_fail(err, TPO_INVALID_ARGUMENT, "config", "added_tokens.json: %s has no id", token);
    if (json_integer_value(value) < 3 || json_integer_value(value) >= vocab)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "config", "added_tokens.json: %s: its id is outside the vocabulary of %d", token,
                        vocab);
    *id = (int)json_integer_value(value);
    return TPO_OK;
}

static int read_token_ids(struct tpo_config *c, const char *folder, struct tpo_error *err)
{
    json_t *tokens = NULL;
    int rc = load_object(&tokens, folder, "added_tokens.json", err);
    for (int i = 0; i < c->n_tasks && rc == TPO_OK; i++) {
        rc = token_id(&c->tasks[i].trigger_id, tokens, c->tasks[i].trigger, c->llm.vocab_size, err);
        if (rc == TPO_OK) rc = token_id(&c->tasks[i].slot_id, tokens, c->tasks[i].slot, c->llm.vocab_size, err);
    }
    if (rc == TPO_OK) rc = token_id(&c->track_box_id, tokens, "<track_box>", c->llm.vocab_size, err);
    json_decref(tokens);
    return rc;
}

int tpo_config_load(struct tpo_config *c, const char *folder, struct tpo_error *err)
{
    json_t *root = NULL;
    tpo_config_default(c);
    int rc = load_object(&root, folder, "config.json", err);
    if (rc != TPO_OK) return rc;
    const json_t *model = json_object_get(root, "model_config");
    if (model != NULL && !json_is_object(model)) rc = invalid(err, "", "model_config", "is not an object");
    if (rc == TPO_OK && model != NULL) rc = read_model(c, model, err);
    json_decref(root);
    if (rc == TPO_OK) rc = check_sizes(c, err);
    if (rc == TPO_OK) rc = read_token_ids(c, folder, err);
    return rc;
}

int tpo_config_hash(char hex[TPO_SHA256_HEX], const char *folder, struct tpo_error *err)
{
    char path[4200], text[65536];
    uint8_t digest[TPO_SHA256_BYTES];
    snprintf(path, sizeof(path), "%.4000s/config.json", folder);
    FILE *f = tpo_open_file(path);
    const size_t n = f != NULL ? fread(text, 1, sizeof(text), f) : 0;
    if (f != NULL) fclose(f);
    if (n == 0 || n == sizeof(text))
        return tpo_fail(err, TPO_FAILED_PRECONDITION, "config", "%.200s cannot be read, or is no such file", path);
    tpo_sha256(digest, text, n);
    tpo_sha256_hex(hex, digest);
    return TPO_OK;
}

/* False: it cannot be read. */
static bool file_add(tpo_sha256_t *h, const char *folder, const char *name)
{
    char path[4200], piece[16384];
    snprintf(path, sizeof(path), "%.4000s/%s", folder, name);
    FILE *f = tpo_open_file(path);
    if (f == NULL) return false;
    tpo_sha256_add(h, name, strlen(name) + 1);
    for (size_t n; (n = fread(piece, 1, sizeof(piece), f)) > 0;) tpo_sha256_add(h, piece, n);
    const bool whole = ferror(f) == 0;
    fclose(f);
    return whole;
}

void tpo_config_tokens_hash(char hex[TPO_SHA256_HEX], const char *folder)
{
    uint8_t digest[TPO_SHA256_BYTES];
    tpo_sha256_t *h = tpo_sha256_open();
    const bool whole = file_add(h, folder, "added_tokens.json") && file_add(h, folder, "tokenizer.model");
    tpo_sha256_end(h, digest);
    tpo_sha256_close(h);
    tpo_sha256_hex(hex, digest);
    if (!whole) hex[0] = '\0';
}
