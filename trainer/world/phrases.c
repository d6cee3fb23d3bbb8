/* This file owns the reading of templates.yaml into lists of phrasings. */
#include "trainer/world/phrases.h"

#include <stdlib.h>
#include <string.h>

#include <yaml.h>

/* The file is part of the program, so that a built tree runs from anywhere. The assembler reads it from the root of the checkout.
 */
__asm__(".pushsection .rodata\n"
        ".global tpo_templates_begin\n.global tpo_templates_end\n"
        "tpo_templates_begin:\n.incbin \"trainer/data/templates.yaml\"\ntpo_templates_end:\n.byte 0\n"
        ".popsection\n");
extern const unsigned char tpo_templates_begin[], tpo_templates_end[];

static const char *const names[TPO_PHRASE_KINDS] = {"opening", "box",    "attribute",   "count",    "exist",
                                                    "half",    "choice", "description", "direction"};

static yaml_node_t *child(yaml_document_t *d, yaml_node_t *map, const char *key)
{
    if (map == NULL || map->type != YAML_MAPPING_NODE) return NULL;
    for (yaml_node_pair_t *p = map->data.mapping.pairs.start; p < map->data.mapping.pairs.top; p++) {
        yaml_node_t *k = yaml_document_get_node(d, p->key);
        if (k->type == YAML_SCALAR_NODE && strcmp((const char *)k->data.scalar.value, key) == 0)
            return yaml_document_get_node(d, p->value);
    }
    return NULL;
}

static int list_append(struct tpo_phrase_list *list, yaml_document_t *d, yaml_node_t *sequence)
{
    if (sequence == NULL) return TPO_OK;
    if (sequence->type != YAML_SEQUENCE_NODE) return TPO_INTERNAL;
    int n = (int)(sequence->data.sequence.items.top - sequence->data.sequence.items.start);
    char **items = realloc(list->items, sizeof(*items) * (size_t)(list->n + n + 1));
    if (items == NULL) return TPO_ENOMEM;
    list->items = items;
    for (int i = 0; i < n; i++) {
        yaml_node_t *s = yaml_document_get_node(d, sequence->data.sequence.items.start[i]);
        if (s->type != YAML_SCALAR_NODE) return TPO_INTERNAL;
        items[list->n] = strdup((const char *)s->data.scalar.value);
        if (items[list->n] == NULL) return TPO_ENOMEM;
        list->n++;
    }
    return TPO_OK;
}

static int read_document(struct tpo_phrases *p, yaml_document_t *d)
{
    yaml_node_t *root = yaml_document_get_root_node(d), *world = child(d, root, "world");
    int rc = list_append(&p->lists[TPO_PHRASE_BOX][0], d, child(d, child(d, root, "paper"), "spatial_grounding"));
    for (int k = 0; k < TPO_PHRASE_KINDS && rc == TPO_OK; k++) {
        yaml_node_t *kind = child(d, world, names[k]);
        rc = list_append(&p->lists[k][0], d, child(d, kind, "trained"));
        if (rc == TPO_OK) rc = list_append(&p->lists[k][1], d, child(d, kind, "unseen"));
        if (rc == TPO_OK && p->lists[k][0].n == 0) rc = TPO_INTERNAL;
    }
    return rc;
}

int tpo_phrases_open(struct tpo_phrases *p, struct tpo_error *err)
{
    yaml_parser_t parser;
    yaml_document_t document;
    int rc = TPO_INTERNAL;
    memset(p, 0, sizeof(*p));
    if (!yaml_parser_initialize(&parser)) return tpo_fail(err, TPO_ENOMEM, "out_of_memory", "no memory for a parser");
    yaml_parser_set_input_string(&parser, tpo_templates_begin, (size_t)(tpo_templates_end - tpo_templates_begin));
    if (yaml_parser_load(&parser, &document)) {
        rc = read_document(p, &document);
        yaml_document_delete(&document);
    }
    yaml_parser_delete(&parser);
    if (rc == TPO_OK) return TPO_OK;
    tpo_phrases_close(p);
    return tpo_fail(err, rc, "templates", "trainer/data/templates.yaml was not what its head says");
}

void tpo_phrases_close(struct tpo_phrases *p)
{
    for (int k = 0; k < TPO_PHRASE_KINDS * 2; k++) {
        struct tpo_phrase_list *list = &p->lists[k / 2][k % 2];
        for (int i = 0; i < list->n; i++) free(list->items[i]);
        free(list->items);
    }
    memset(p, 0, sizeof(*p));
}
