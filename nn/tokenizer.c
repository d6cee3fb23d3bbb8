/* This file owns splitting text at added tokens, and putting an answer's text together id by id. */
#include "nn/tokenizer.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/files.h"
#include "common/text.h"
#include "nn/tokenizer_sp.h"

#define SPACE_MARK  "\xe2\x96\x81" /* U+2581 */
#define REPLACEMENT "\xef\xbf\xbd"

struct added {
    char *text;
    size_t length;
    int32_t id;
};

struct tpo_tokenizer {
    struct tpo_sp *sp;
    struct added *added; /* longest first */
    int n_added, vocabulary;
};

static int ids_reserve(struct tpo_ids *list, int more)
{
    if (list->capacity - list->n >= more) return TPO_OK;
    int capacity = list->n + more + list->capacity;
    int32_t *ids = realloc(list->ids, (size_t)capacity * sizeof(*ids));
    if (ids == NULL) return TPO_ENOMEM;
    list->ids = ids;
    int32_t *ends = realloc(list->ends, (size_t)capacity * sizeof(*ends));
    if (ends == NULL) return TPO_ENOMEM;
    list->ends = ends;
    list->capacity = capacity;
    return TPO_OK;
}

int tpo_ids_push(struct tpo_ids *list, int32_t id, int32_t end)
{
    if (ids_reserve(list, 1) != TPO_OK) return TPO_ENOMEM;
    list->ids[list->n] = id;
    list->ends[list->n++] = end;
    return TPO_OK;
}

void tpo_ids_free(struct tpo_ids *list)
{
    free(list->ids);
    free(list->ends);
    memset(list, 0, sizeof(*list));
}

static int longer_first(const void *a, const void *b)
{
    const struct added *x = a, *y = b;
    if (x->length != y->length) return x->length > y->length ? -1 : 1;
    return strcmp(x->text, y->text);
}

/* <unk>, <s>, </s> are added tokens too: every tokenizer of this family knows them, added_tokens.json lists only the others. */
static const struct tpo_added_token specials[] = {{"<unk>", TPO_ID_UNK}, {"<s>", TPO_ID_BOS}, {"</s>", TPO_ID_EOS}};
#define N_SPECIALS 3

static int take_one(struct tpo_tokenizer *t, const struct tpo_added_token *a)
{
    for (int i = 0; i < t->n_added; i++)
        if (strcmp(t->added[i].text, a->text) == 0) return TPO_OK;
    struct added *to = &t->added[t->n_added];
    *to = (struct added){strdup(a->text), strlen(a->text), a->id};
    if (to->text == NULL) return TPO_ENOMEM;
    t->n_added++;
    if (a->id >= t->vocabulary) t->vocabulary = a->id + 1;
    return TPO_OK;
}

static int take_added(struct tpo_tokenizer *t, const struct tpo_added_token *added, int n, struct tpo_error *err)
{
    int rc = TPO_OK;
    t->added = calloc((size_t)n + N_SPECIALS, sizeof(*t->added));
    if (t->added == NULL) rc = TPO_ENOMEM;
    for (int i = 0; i < n && rc == TPO_OK; i++) {
        if (added[i].text[0] == '\0' || added[i].id < 0 || added[i].id >= 1 << 24)
            return tpo_fail(err, TPO_INVALID_ARGUMENT, "tokenizer", "added token %d: empty, or its id %d is out of range", i,
                            (int)added[i].id);
        rc = take_one(t, &added[i]);
    }
    for (int i = 0; i < N_SPECIALS && rc == TPO_OK; i++) rc = take_one(t, &specials[i]);
    if (rc != TPO_OK) return tpo_fail(err, rc, "memory", "no memory for a tokenizer");
    qsort(t->added, (size_t)t->n_added, sizeof(*t->added), longer_first);
    return TPO_OK;
}

int tpo_tokenizer_open_model(struct tpo_tokenizer **out, const char *model_path, const struct tpo_added_token *added, int n,
                             struct tpo_error *err)
{
    char why[200] = "";
    FILE *f = tpo_open_file(model_path);
    if (f == NULL) return tpo_fail(err, TPO_NOT_FOUND, "tokenizer", "%s cannot be read", model_path);
    fclose(f);
    struct tpo_tokenizer *t = calloc(1, sizeof(*t));
    if (t == NULL) return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a tokenizer");
    int rc = TPO_OK;
    t->sp = tpo_sp_open(model_path, why, sizeof(why));
    if (t->sp == NULL) rc = tpo_fail(err, TPO_INVALID_ARGUMENT, "tokenizer", "%s: %s", model_path, why);
    if (rc == TPO_OK) {
        t->vocabulary = tpo_sp_size(t->sp);
        rc = take_added(t, added, n, err);
    }
    if (rc != TPO_OK) {
        tpo_tokenizer_close(t);
        return rc;
    }
    *out = t;
    return TPO_OK;
}

int tpo_tokenizer_open(struct tpo_tokenizer **out, const char *folder, struct tpo_error *err)
{
    char path[4096];
    json_error_t e;
    int n = 0, rc = TPO_OK;
    snprintf(path, sizeof(path), "%s/added_tokens.json", folder);
    FILE *f = tpo_open_file(path);
    json_t *object = f != NULL ? json_loadf(f, JSON_REJECT_DUPLICATES, &e) : NULL;
    if (f != NULL) fclose(f);
    if (!json_is_object(object)) {
        json_decref(object);
        return tpo_fail(err, access(path, R_OK) != 0 ? TPO_NOT_FOUND : TPO_INVALID_ARGUMENT, "tokenizer",
                        "%s: no JSON object can be read there", path);
    }
    struct tpo_added_token *added = calloc(json_object_size(object) + 1, sizeof(*added));
    const char *key;
    json_t *value;
    if (added == NULL) rc = tpo_fail(err, TPO_ENOMEM, "memory", "no memory for a tokenizer");
    json_object_foreach(object, key, value)
    {
        if (rc != TPO_OK) break;
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || id >= 1 << 24) rc = tpo_fail(err, TPO_INVALID_ARGUMENT, "tokenizer", "%s: %s has no usable id", path, key);
        if (rc == TPO_OK) added[n++] = (struct tpo_added_token){key, (int32_t)id};
    }
    snprintf(path, sizeof(path), "%s/tokenizer.model", folder);
    if (rc == TPO_OK) rc = tpo_tokenizer_open_model(out, path, added, n, err);
    free(added);
    json_decref(object);
    return rc;
}

void tpo_tokenizer_close(struct tpo_tokenizer *t)
{
    if (t == NULL) return;
    for (int i = 0; i < t->n_added; i++) free(t->added[i].text);
    free(t->added);
    tpo_sp_close(t->sp);
    free(t);
}

int tpo_tokenizer_vocabulary(const struct tpo_tokenizer *t)
{
    return t->vocabulary;
}

static const struct added *added_at(const struct tpo_tokenizer *t, const char *text, size_t n)
{
    for (int i = 0; i < t->n_added; i++)
        if (t->added[i].length <= n && memcmp(t->added[i].text, text, t->added[i].length) == 0) return &t->added[i];
    return NULL;
}

/* Bytes [begin, end) of text, which hold no added token. */
static int encode_piece(const struct tpo_tokenizer *t, struct tpo_ids *out, const char *text, size_t begin, size_t end)
{
    if (begin == end) return TPO_OK;
    int room = (int)(end - begin) + 8; /* a byte gives one id at most, besides the prefix */
    if (ids_reserve(out, room) != TPO_OK) return TPO_ENOMEM;
    int n = tpo_sp_encode(t->sp, text + begin, end - begin, out->ids + out->n, out->ends + out->n, room);
    if (n < 0) return TPO_ENOMEM;
    if (n > room) { /* pieces of a normaliser that makes text longer */
        if (ids_reserve(out, n) != TPO_OK) return TPO_ENOMEM;
        n = tpo_sp_encode(t->sp, text + begin, end - begin, out->ids + out->n, out->ends + out->n, n);
        if (n < 0) return TPO_ENOMEM;
    }
    for (int i = 0; i < n; i++) out->ends[out->n + i] += (int32_t)begin;
    out->n += n;
    return TPO_OK;
}

int tpo_tokenizer_encode(const struct tpo_tokenizer *t, struct tpo_ids *out, const char *text, size_t n, bool added,
                         struct tpo_error *err)
{
    if (n > INT32_MAX / 8) return tpo_fail(err, TPO_INVALID_ARGUMENT, "prompt_too_long", "a text of %zu bytes", n);
    if (!tpo_utf8_valid(text, n) || memchr(text, 0, n) != NULL)
        return tpo_fail(err, TPO_INVALID_ARGUMENT, "utf8", "the text is not UTF-8");
    int rc = TPO_OK;
    size_t begin = 0;
    for (size_t i = 0; added && i < n && rc == TPO_OK;) {
        const struct added *a = added_at(t, text + i, n - i);
        if (a == NULL) {
            i++;
            continue;
        }
        rc = encode_piece(t, out, text, begin, i);
        i += a->length;
        begin = i;
        if (rc == TPO_OK) rc = tpo_ids_push(out, a->id, (int32_t)i);
    }
    if (rc == TPO_OK) rc = encode_piece(t, out, text, begin, n);
    return rc == TPO_OK ? TPO_OK : tpo_fail(err, rc, "memory", "no memory for the ids of a text");
}

static const struct added *added_of(const struct tpo_tokenizer *t, int32_t id)
{
    for (int i = 0; i < t->n_added; i++)
        if (t->added[i].id == id) return &t->added[i];
    return NULL;
}

static char *join(char *a, const char *b)
{
    size_t n = a != NULL ? strlen(a) : 0;
    char *grown = b != NULL ? realloc(a, n + strlen(b) + 1) : NULL;
    if (grown == NULL) {
        free(a);
        return NULL;
    }
    strcpy(grown + n, b);
    return grown;
}

char *tpo_tokenizer_decode(const struct tpo_tokenizer *t, const int32_t *ids, int n)
{
    char *text = strdup("");
    int begin = 0;
    for (int i = 0; i <= n && text != NULL; i++) {
        const struct added *a = i < n ? added_of(t, ids[i]) : NULL;
        if (i < n && a == NULL) continue;
        if (begin < i) {
            char *run = tpo_sp_decode(t->sp, ids + begin, i - begin);
            text = join(text, run);
            free(run);
        }
        if (a != NULL && text != NULL) text = join(text, a->text);
        begin = i + 1;
    }
    return text;
}

/* Length of the UTF-8 character at text, or 0 when there is none. */
static int character(const unsigned char *p, size_t n)
{
    static const struct {
        unsigned char low, high; /* of the first byte */
        int length;
        unsigned char second_low, second_high;
    } forms[] = {
        {0x01, 0x7f, 1, 0, 0},       {0xc2, 0xdf, 2, 0x80, 0xbf}, {0xe0, 0xe0, 3, 0xa0, 0xbf},
        {0xe1, 0xec, 3, 0x80, 0xbf}, {0xed, 0xed, 3, 0x80, 0x9f}, {0xee, 0xef, 3, 0x80, 0xbf},
        {0xf0, 0xf0, 4, 0x90, 0xbf}, {0xf1, 0xf3, 4, 0x80, 0xbf}, {0xf4, 0xf4, 4, 0x80, 0x8f},
    };
    for (size_t f = 0; f < sizeof(forms) / sizeof(forms[0]); f++) {
        if (p[0] < forms[f].low || p[0] > forms[f].high) continue;
        if ((size_t)forms[f].length > n) return 0;
        if (forms[f].length > 1 && (p[1] < forms[f].second_low || p[1] > forms[f].second_high)) return 0;
        for (int i = 2; i < forms[f].length; i++)
            if ((p[i] & 0xc0) != 0x80) return 0;
        return forms[f].length;
    }
    return 0;
}

/* Whether the pending bytes can still become a character. */
static bool unfinished(const unsigned char *p, int n)
{
    unsigned char probe[4];
    int need = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc2 ? 2 : 1;
    if (n >= need) return false;
    memset(probe, 0x80, sizeof(probe));
    memcpy(probe, p, (size_t)n);
    if (n == 1 && (p[0] == 0xe0 || p[0] == 0xf0)) probe[1] = 0xa0; /* their second byte starts higher */
    return character(probe, 4) > 0;
}

/* Moves what is settled of the pending bytes to out; `all`: nothing may stay. */
static int settle_pending(struct tpo_detokenizer *d, char *out, bool all)
{
    int used = 0;
    while (d->n_pending > 0) {
        int length = character(d->pending, (size_t)d->n_pending), drop = 1;
        if (length == 0 && !all && unfinished(d->pending, d->n_pending)) break;
        if (length > 0) {
            memcpy(out + used, d->pending, (size_t)length);
            used += length;
            drop = length;
        } else {
            memcpy(out + used, REPLACEMENT, 3);
            used += 3;
        }
        d->n_pending -= drop;
        memmove(d->pending, d->pending + drop, (size_t)d->n_pending);
    }
    return used;
}

/* A piece's text with spaces for their marks; longer ones than the buffer holds are cut at a character. */
static int append_piece(struct tpo_detokenizer *d, const char *piece, char *out, int used)
{
    while (*piece != '\0') {
        int length = character((const unsigned char *)piece, strlen(piece));
        if (length == 0) length = 1;
        if (used + length >= TPO_DETOKENIZE_MAX) break;
        bool space = strncmp(piece, SPACE_MARK, 3) == 0;
        if (!space) memcpy(out + used, piece, (size_t)length);
        if (space && d->begun) out[used] = ' ';
        used += space ? d->begun : length;
        d->begun = true;
        piece += length;
    }
    return used;
}

int tpo_detokenize(struct tpo_detokenizer *d, const struct tpo_tokenizer *t, int32_t id, char out[TPO_DETOKENIZE_MAX])
{
    int used = 0;
    bool text = id >= 0 && id < tpo_sp_size(t->sp) && added_of(t, id) == NULL;
    enum tpo_sp_kind kind = text ? tpo_sp_kind(t->sp, id) : TPO_SP_CONTROL;
    if (kind == TPO_SP_BYTE) {
        d->pending[d->n_pending++] = (unsigned char)strtol(tpo_sp_piece(t->sp, id) + 3, NULL, 16);
        d->begun = true;
        used = settle_pending(d, out, false);
    } else if (kind != TPO_SP_CONTROL || id < 0) {
        used = settle_pending(d, out, true);
        if (kind == TPO_SP_TEXT) used = append_piece(d, tpo_sp_piece(t->sp, id), out, used);
    }
    out[used] = '\0';
    return used;
}
