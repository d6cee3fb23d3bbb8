/* This file owns the walk of a YAML file: libyaml's document tree, strictly. */
#include "trainer/steps/yaml.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void tpo_yaml_refuse(struct tpo_yaml *y, const yaml_node_t *at, const char *format, ...)
{
    char text[160];
    va_list args;
    if (y->rc != TPO_OK) return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    y->rc = tpo_fail(y->err, TPO_INVALID_ARGUMENT, y->reason, "%.80s:%zu: %s", y->path, at->start_mark.line + 1, text);
}

const char *tpo_yaml_scalar(struct tpo_yaml *y, const yaml_node_t *n)
{
    if (n->type == YAML_SCALAR_NODE) return (const char *)n->data.scalar.value;
    tpo_yaml_refuse(y, n, "a single value is needed here");
    return "";
}

double tpo_yaml_number(struct tpo_yaml *y, const yaml_node_t *n, double low, double high)
{
    const char *text = tpo_yaml_scalar(y, n);
    char *end = NULL;
    const double x = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(x))
        tpo_yaml_refuse(y, n, "\"%.40s\" is not a number", text);
    else if (x < low || x > high)
        tpo_yaml_refuse(y, n, "%.40s is outside %g to %g", text, low, high);
    else
        return x;
    return low;
}

int tpo_yaml_integer(struct tpo_yaml *y, const yaml_node_t *n, double low, double high)
{
    const double x = tpo_yaml_number(y, n, low, high);
    if (x != floor(x)) tpo_yaml_refuse(y, n, "\"%.40s\" is not a whole number", tpo_yaml_scalar(y, n));
    return (int)x;
}

int tpo_yaml_word(struct tpo_yaml *y, const yaml_node_t *n, const char *const *words, int n_words)
{
    const char *text = tpo_yaml_scalar(y, n);
    for (int i = 0; i < n_words; i++)
        if (strcmp(text, words[i]) == 0) return i;
    tpo_yaml_refuse(y, n, "\"%.40s\" is not one of the words known here (%s, ...)", text, words[0]);
    return 0;
}

bool tpo_yaml_truth(struct tpo_yaml *y, const yaml_node_t *n)
{
    static const char *const words[] = {"false", "true"};
    return tpo_yaml_word(y, n, words, 2) == 1;
}

void tpo_yaml_name(struct tpo_yaml *y, char *out, size_t size, const yaml_node_t *n)
{
    const char *text = tpo_yaml_scalar(y, n);
    const size_t length = strlen(text);
    if (length == 0 || length >= size)
        tpo_yaml_refuse(y, n, "a name of 1 to %zu letters is needed", size - 1);
    else if (strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != length || text[0] == '.')
        tpo_yaml_refuse(y, n, "\"%.40s\": letters, digits, - _ . only", text);
    else
        memcpy(out, text, length + 1);
}

void tpo_yaml_mapping(struct tpo_yaml *y, yaml_node_t *n,
                      bool (*key)(struct tpo_yaml *y, void *self, const char *name, yaml_node_t *value), void *self)
{
    if (n == NULL || n->type != YAML_MAPPING_NODE) {
        if (n != NULL) tpo_yaml_refuse(y, n, "a mapping (key: value) is needed here");
        return;
    }
    yaml_node_pair_t *first = n->data.mapping.pairs.start, *end = n->data.mapping.pairs.top;
    for (yaml_node_pair_t *p = first; p < end && y->rc == TPO_OK; p++) {
        yaml_node_t *k = yaml_document_get_node(y->doc, p->key);
        const char *name = tpo_yaml_scalar(y, k);
        for (yaml_node_pair_t *q = first; q < p && y->rc == TPO_OK; q++)
            if (strcmp(name, tpo_yaml_scalar(y, yaml_document_get_node(y->doc, q->key))) == 0)
                tpo_yaml_refuse(y, k, "key \"%.40s\" is here twice", name);
        if (y->rc == TPO_OK && !key(y, self, name, yaml_document_get_node(y->doc, p->value)))
            tpo_yaml_refuse(y, k, "unknown key \"%.40s\"", name);
    }
}

yaml_node_t *tpo_yaml_value(struct tpo_yaml *y, const yaml_node_t *n, const char *name)
{
    if (n->type != YAML_MAPPING_NODE) return NULL;
    for (yaml_node_pair_t *p = n->data.mapping.pairs.start; p < n->data.mapping.pairs.top; p++)
        if (strcmp(tpo_yaml_scalar(y, yaml_document_get_node(y->doc, p->key)), name) == 0)
            return yaml_document_get_node(y->doc, p->value);
    return NULL;
}

int tpo_yaml_length(struct tpo_yaml *y, yaml_node_t *n, int most)
{
    if (n->type != YAML_SEQUENCE_NODE) {
        tpo_yaml_refuse(y, n, "a list is needed here");
        return 0;
    }
    const long count = n->data.sequence.items.top - n->data.sequence.items.start;
    if (count < 1 || count > most) tpo_yaml_refuse(y, n, "a list of 1 to %d is needed here, this one has %ld", most, count);
    return y->rc == TPO_OK ? (int)count : 0;
}

yaml_node_t *tpo_yaml_item(struct tpo_yaml *y, yaml_node_t *n, int i)
{
    return yaml_document_get_node(y->doc, n->data.sequence.items.start[i]);
}

int tpo_yaml_beside(const struct tpo_yaml *y, char *out, size_t size, const char *name)
{
    const char *slash = strrchr(y->path, '/');
    return snprintf(out, size, "%.*s%s", slash != NULL ? (int)(slash - y->path + 1) : 0, y->path, name);
}

const char *tpo_yaml_path(struct tpo_yaml *y, const yaml_node_t *n)
{
    const char *text = tpo_yaml_scalar(y, n);
    char path[4096];
    int length;
    if (text[0] == '\0') tpo_yaml_refuse(y, n, "a path is needed here");
    if (text[0] == '/')
        length = snprintf(path, sizeof(path), "%s", text);
    else if (y->data != NULL)
        length = snprintf(path, sizeof(path), "%s/%s", y->data, text);
    else
        length = tpo_yaml_beside(y, path, sizeof(path), text);
    if (length >= (int)sizeof(path)) tpo_yaml_refuse(y, n, "this path is too long");
    const char *copy = y->rc == TPO_OK ? tpo_arena_copy(y->arena, path, (size_t)length) : NULL;
    if (copy == NULL && y->rc == TPO_OK) y->rc = tpo_fail(y->err, TPO_ENOMEM, "memory", "no memory for a path");
    return copy;
}

static void root_walk(struct tpo_yaml *y, void (*walk)(struct tpo_yaml *y, yaml_node_t *root, void *self), void *self)
{
    yaml_node_t *root = yaml_document_get_root_node(y->doc);
    if (root != NULL)
        walk(y, root, self);
    else
        y->rc = tpo_fail(y->err, TPO_INVALID_ARGUMENT, y->reason, "%.80s is empty", y->path);
}

static void parse_refuse(struct tpo_yaml *y, const yaml_parser_t *parser)
{
    y->rc = tpo_fail(y->err, TPO_INVALID_ARGUMENT, y->reason, "%.80s:%zu: %.80s", y->path, parser->problem_mark.line + 1,
                     parser->problem != NULL ? parser->problem : "not YAML");
}

/* What would follow the document that was read. */
static void end_check(struct tpo_yaml *y, yaml_parser_t *parser)
{
    yaml_document_t more;
    if (y->rc != TPO_OK) return;
    if (!yaml_parser_load(parser, &more)) {
        parse_refuse(y, parser);
        return;
    }
    const yaml_node_t *root = yaml_document_get_root_node(&more);
    if (root != NULL) tpo_yaml_refuse(y, root, "a second document: a file has one");
    yaml_document_delete(&more);
}

int tpo_yaml_read(struct tpo_yaml *y, void (*walk)(struct tpo_yaml *y, yaml_node_t *root, void *self), void *self)
{
    yaml_parser_t parser;
    yaml_document_t doc;
    FILE *f = fopen(y->path, "rb");
    if (f == NULL) return y->rc = tpo_fail(y->err, TPO_NOT_FOUND, y->reason, "%.200s cannot be read", y->path);
    if (!yaml_parser_initialize(&parser)) {
        fclose(f);
        return y->rc = tpo_fail(y->err, TPO_ENOMEM, "memory", "no memory for a parser");
    }
    yaml_parser_set_input_file(&parser, f);
    if (yaml_parser_load(&parser, &doc)) {
        y->doc = &doc;
        root_walk(y, walk, self);
        y->doc = NULL;
        yaml_document_delete(&doc);
        end_check(y, &parser);
    } else {
        parse_refuse(y, &parser);
    }
    yaml_parser_delete(&parser);
    fclose(f);
    return y->rc;
}
