/* This file owns adapter_config.json. */
#include "trainer/peft_config.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "common/files.h"

#define FILE_NAME   "adapter_config.json"
#define OURS        "lm.base_model.model."
#define LORA_A      ".lora_A.default.weight"
#define N_OF(array) (sizeof(array) / sizeof((array)[0]))

static json_t *number_of(float x)
{
    return x == floorf(x) ? json_integer((json_int_t)x) : json_real((double)x);
}

int tpo_peft_config_write(const char *dir, const struct tpo_config *c, struct tpo_error *err)
{
    static const char *const targets[] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"};
    char path[4096];
    json_t *list = json_array();
    for (size_t i = 0; i < N_OF(targets); i++) json_array_append_new(list, json_string(targets[i]));
    json_t *root = json_pack("{s:s, s:s, s:i, s:o, s:f, s:o, s:s, s:b, s:b, s:b, s:b, s:n}", "peft_type", "LORA", "task_type",
                             "CAUSAL_LM", "r", c->llm.lora_r, "lora_alpha", number_of(c->llm.lora_alpha), "lora_dropout",
                             (double)c->llm.lora_dropout, "target_modules", list, "bias", "none", "fan_in_fan_out", 0,
                             "inference_mode", 1, "use_rslora", 0, "use_dora", 0, "base_model_name_or_path");
    snprintf(path, sizeof(path), "%s/" FILE_NAME, dir);
    const int rc = root != NULL ? json_dump_file(root, path, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : -1;
    json_decref(root);
    return rc == 0 ? TPO_OK : tpo_fail(err, TPO_RESOURCE_EXHAUSTED, "adapter", "cannot write %.200s", path);
}

static int refuse(struct tpo_error *err, const char *key, const char *why)
{
    return tpo_fail(err, TPO_INVALID_ARGUMENT, "adapter", FILE_NAME ": %.60s %s", key, why);
}

static bool one_of(const char *name, const char *const *list, size_t n)
{
    for (size_t i = 0; name != NULL && i < n; i++)
        if (strcmp(name, list[i]) == 0) return true;
    return false;
}

static int kind_check(const json_t *root, struct tpo_error *err)
{
    const char *type = json_string_value(json_object_get(root, "peft_type"));
    const json_t *task = json_object_get(root, "task_type");
    if (type == NULL || strcmp(type, "LORA") != 0) return refuse(err, "peft_type", "is not LORA");
    const bool chat = json_is_string(task) && strcmp(json_string_value(task), "CAUSAL_LM") == 0;
    return task == NULL || json_is_null(task) || chat ? TPO_OK : refuse(err, "task_type", "is not CAUSAL_LM");
}

static int scale_check(const json_t *root, const struct tpo_config *c, struct tpo_error *err)
{
    const json_t *r = json_object_get(root, "r"), *alpha = json_object_get(root, "lora_alpha");
    if (!json_is_integer(r) || json_integer_value(r) != c->llm.lora_r)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "adapter", FILE_NAME ": r is not the model's lora_r, %d", c->llm.lora_r);
    if (!json_is_number(alpha) || (float)json_number_value(alpha) != c->llm.lora_alpha)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "adapter", FILE_NAME ": lora_alpha is not the model's, %g",
                        (double)c->llm.lora_alpha);
    return TPO_OK;
}

static bool is_empty(const json_t *x)
{
    return json_is_null(x) || json_is_false(x) || (json_is_array(x) && json_array_size(x) == 0) ||
           (json_is_object(x) && json_object_size(x) == 0) || (json_is_string(x) && strcmp(json_string_value(x), "none") == 0);
}

/* A key that a later PEFT brings may change the formula, so what is not known to be harmless has to be empty. */
static int rest_check(json_t *root, struct tpo_error *err)
{
    static const char *const checked[] = {"peft_type", "task_type", "r", "lora_alpha", "target_modules", "init_lora_weights"};
    static const char *const harmless[] = {"auto_mapping",  "base_model_name_or_path", "revision",
                                           "peft_version",  "inference_mode",          "lora_dropout",
                                           "megatron_core", "qalora_group_size"};
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value)
    {
        if (one_of(key, checked, N_OF(checked)) || one_of(key, harmless, N_OF(harmless)) || is_empty(value)) continue;
        return refuse(err, key, "is set, which the router does not compute");
    }
    return TPO_OK;
}

static int start_check(const json_t *root, struct tpo_error *err)
{
    static const char *const starts[] = {"gaussian", "orthogonal"};
    const json_t *start = json_object_get(root, "init_lora_weights");
    const bool plain = start == NULL || json_is_null(start) || json_is_boolean(start);
    return plain || one_of(json_string_value(start), starts, N_OF(starts))
               ? TPO_OK
               : refuse(err, "init_lora_weights", "is a start that changes the base's weights, too");
}

/* --- target_modules -------------------------------------------------------------------------------------------------------------------- */

/* "lm.base_model.model.X.lora_A.default.weight" -> "X", the layer's name in transformers; false for every other tensor. */
static bool module_of(char out[TPO_NAME_MAX], const char *ours)
{
    const size_t n = strlen(ours), head = strlen(OURS), tail = strlen(LORA_A);
    if (n <= head + tail || strncmp(ours, OURS, head) != 0 || strcmp(ours + n - tail, LORA_A) != 0) return false;
    snprintf(out, TPO_NAME_MAX, "%.*s", (int)(n - head - tail), ours + head);
    return true;
}

/* PEFT's rule (tuners_utils.check_target_module_exists): the whole name, or its end from a dot on. */
static bool is_targeted(const char *module, const char *target)
{
    const size_t n = strlen(module), k = strlen(target);
    return k > 0 && n >= k && strcmp(module + n - k, target) == 0 && (n == k || module[n - k - 1] == '.');
}

static bool hits_any(const char *target, const struct tpo_params *router)
{
    char module[TPO_NAME_MAX];
    for (int i = 0; i < router->n; i++)
        if (module_of(module, router->items[i]->name) && is_targeted(module, target)) return true;
    return false;
}

static bool is_hit(const char *module, const json_t *targets)
{
    for (size_t i = 0; i < json_array_size(targets); i++)
        if (is_targeted(module, json_string_value(json_array_get(targets, i)))) return true;
    return false;
}

static int targets_check(const json_t *root, const struct tpo_params *router, struct tpo_error *err)
{
    char module[TPO_NAME_MAX];
    const json_t *targets = json_object_get(root, "target_modules");
    if (!json_is_array(targets)) return refuse(err, "target_modules", "is no list of names");
    for (size_t i = 0; i < json_array_size(targets); i++) {
        const char *target = json_string_value(json_array_get(targets, i));
        if (target == NULL) return refuse(err, "target_modules", "is no list of names");
        if (!hits_any(target, router))
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "adapter",
                            FILE_NAME ": target_modules names %.60s, which has no LoRA in the router", target);
    }
    for (int i = 0; i < router->n; i++)
        if (module_of(module, router->items[i]->name) && !is_hit(module, targets))
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "adapter", FILE_NAME ": target_modules leaves out %.100s", module);
    return TPO_OK;
}

int tpo_peft_config_check(const char *dir, const struct tpo_config *c, const struct tpo_params *router, struct tpo_error *err)
{
    char path[4096];
    json_error_t fault;
    snprintf(path, sizeof(path), "%s/" FILE_NAME, dir);
    FILE *f = tpo_open_file(path);
    if (f == NULL) return tpo_fail(err, TPO_NOT_FOUND, "adapter", "%.200s: %s", path, strerror(errno));
    json_t *root = json_loadf(f, JSON_REJECT_DUPLICATES, &fault);
    fclose(f);
    int rc = root != NULL ? kind_check(root, err)
                          : tpo_fail(err, TPO_INVALID_ARGUMENT, "adapter", FILE_NAME ":%d: %.80s", fault.line, fault.text);
    if (rc == TPO_OK) rc = rest_check(root, err);
    if (rc == TPO_OK) rc = start_check(root, err);
    if (rc == TPO_OK) rc = scale_check(root, c, err);
    if (rc == TPO_OK) rc = targets_check(root, router, err);
    json_decref(root);
    return rc;
}
