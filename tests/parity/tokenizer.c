/* This file owns the tokenizer's vectors: encode, prompts, decode. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "services/router/prompt.h"
#include "tests/parity/case.h"

#define ADDED_MAX 64

static struct tpo_tokenizer *open_of(struct tpo_case *c)
{
    struct tpo_added_token added[ADDED_MAX];
    struct tpo_tokenizer *t = NULL;
    struct tpo_error err = {0};
    char path[4096];
    const char *model = json_string_value(json_object_get(c->root, "model")), *text;
    json_t *id;
    int n = 0;
    if (model == NULL || strchr(model, '/') != NULL) {
        tpo_case_fail(c, "vectors.json: model is no file name");
        return NULL;
    }
    json_object_foreach(json_object_get(c->root, "added_tokens"), text, id)
    {
        if (n == ADDED_MAX || !json_is_integer(id))
            tpo_case_fail(c, "vectors.json: added_tokens");
        else if (json_integer_value(id) > TPO_ID_EOS)
            added[n++] = (struct tpo_added_token){.text = text, .id = (int32_t)json_integer_value(id)};
    }
    snprintf(path, sizeof(path), "%s/%s", c->folder, model);
    if (tpo_tokenizer_open_model(&t, path, added, n, &err) != TPO_OK) tpo_case_fail(c, "%s: %s", model, err.message);
    return t;
}

static bool ids_equal(const json_t *golden, const int32_t *ids, int n, int skip)
{
    if (!json_is_array(golden) || json_array_size(golden) != (size_t)(n + skip)) return false;
    for (int k = 0; k < n; k++)
        if (json_integer_value(json_array_get(golden, (size_t)(k + skip))) != ids[k]) return false;
    return true;
}

static void encode_one(struct tpo_case *c, const struct tpo_tokenizer *t, const json_t *v, size_t at)
{
    const json_t *text = json_object_get(v, "text"), *with_bos = json_object_get(v, "ids_with_bos");
    struct tpo_ids ids = {0};
    struct tpo_error err = {0};
    if (!json_is_string(text))
        tpo_case_fail(c, "encode %zu: no text", at);
    else if (tpo_tokenizer_encode(t, &ids, json_string_value(text), json_string_length(text), true, &err) != TPO_OK)
        tpo_case_fail(c, "encode %zu: %s", at, err.message);
    else if (!ids_equal(json_object_get(v, "ids"), ids.ids, ids.n, 0))
        tpo_case_fail(c, "encode %zu: ids differ", at);
    else if (with_bos != NULL &&
             (json_integer_value(json_array_get(with_bos, 0)) != TPO_ID_BOS || !ids_equal(with_bos, ids.ids, ids.n, 1)))
        tpo_case_fail(c, "encode %zu: ids_with_bos differ", at);
    tpo_ids_free(&ids);
}

static const char *string_or(const json_t *v, const char *key, const char *absent)
{
    const char *s = json_string_value(json_object_get(v, key));
    return s != NULL ? s : absent;
}

static void prompt_one(struct tpo_case *c, const struct tpo_tokenizer *t, const json_t *v, size_t at)
{
    struct tpo_prompt p = {0};
    struct tpo_error err = {0};
    const char *kind = string_or(v, "kind", ""), *media = string_or(v, "media", NULL);
    const bool chat = strcmp(kind, "chat") == 0;
    const json_t *visual = json_object_get(v, "visual");
    if (!chat && strcmp(kind, "demo") != 0) {
        tpo_case_fail(c, "prompt %zu: kind is neither demo nor chat", at);
    } else if (tpo_prompt_template(&p, t, json_is_true(json_object_get(v, "bos_per_segment")), chat, media,
                                   (int)json_integer_value(json_object_get(v, "queries")), string_or(v, "message", ""),
                                   string_or(v, "question", ""), string_or(v, "answer_prefix", NULL), &err) != TPO_OK) {
        tpo_case_fail(c, "prompt %zu: %s", at, err.message);
    } else if (!ids_equal(json_object_get(v, "ids"), p.ids, p.n, 0)) {
        tpo_case_fail(c, "prompt %zu (%s): ids differ", at, kind);
    } else if (json_array_size(visual) == 2) {
        const int first = (int)json_integer_value(json_array_get(visual, 0)),
                  count = (int)json_integer_value(json_array_get(visual, 1));
        for (int r = 0; r < p.n; r++)
            if (p.visual[r] != (r >= first && r < first + count ? r - first : -1))
                tpo_case_fail(c, "prompt %zu: row %d's visual flag", at, r);
    }
    tpo_prompt_free(&p);
}

static void decode_one(struct tpo_case *c, const struct tpo_tokenizer *t, const json_t *v, size_t at)
{
    const json_t *list = json_object_get(v, "ids"), *golden = json_object_get(v, "text");
    const size_t n = json_array_size(list);
    int32_t *ids = malloc((n + 1) * sizeof(*ids));
    for (size_t k = 0; k < n && ids != NULL; k++) ids[k] = (int32_t)json_integer_value(json_array_get(list, k));
    char *text = ids != NULL ? tpo_tokenizer_decode(t, ids, (int)n) : NULL;
    if (text == NULL || !json_is_string(golden) || strcmp(text, json_string_value(golden)) != 0)
        tpo_case_fail(c, "decode %zu: text differs", at);
    free(text);
    free(ids);
}

void tpo_parity_tokenizer(struct tpo_case *c)
{
    static const struct {
        const char *key;
        void (*one)(struct tpo_case *, const struct tpo_tokenizer *, const json_t *, size_t);
    } lists[] = {{"encode", encode_one}, {"prompts", prompt_one}, {"decode", decode_one}};
    struct tpo_tokenizer *t = open_of(c);
    size_t total = 0;
    for (int i = 0; i < 3; i++) {
        const json_t *list = json_object_get(c->root, lists[i].key);
        for (size_t k = 0; k < json_array_size(list) && !c->failed; k++, total++) lists[i].one(c, t, json_array_get(list, k), k);
    }
    if (total == 0) tpo_case_fail(c, "vectors.json: no vectors");
    tpo_tokenizer_close(t);
}
