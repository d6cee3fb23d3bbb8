/* yaml.h -- a YAML file, walked strictly.
 *
 * The first thing that does not fit is the file's error: INVALID_ARGUMENT with the reader's reason, "file:line: what is wrong". From then on
 * every function here answers something harmless, so a walk needs to look at `rc` only before it goes on to what would not end. */
#ifndef TPO_TRAINER_STEPS_YAML_H
#define TPO_TRAINER_STEPS_YAML_H

#include <stdbool.h>
#include <yaml.h>

#include "common/arena.h"
#include "common/status.h"

struct tpo_yaml {
    const char *path, *reason; /* the file; of its errors */
    const char *data;          /* where tpo_yaml_path starts from; NULL: the file's folder */
    struct tpo_arena *arena;   /* of the copies */
    struct tpo_error *err;
    int rc;
    yaml_document_t *doc; /* while tpo_yaml_read runs */
};

/* Reads y->path and calls `walk` with the root of its one document; a second one is refused. Answers y->rc; also NOT_FOUND where the file cannot be
 * read, ENOMEM "memory". */
int tpo_yaml_read(struct tpo_yaml *y, void (*walk)(struct tpo_yaml *y, yaml_node_t *root, void *self), void *self);
__attribute__((format(printf, 3, 4))) void tpo_yaml_refuse(struct tpo_yaml *y, const yaml_node_t *at, const char *format, ...);

/* Single values. Bounds are inclusive. */
const char *tpo_yaml_scalar(struct tpo_yaml *y, const yaml_node_t *n);
double tpo_yaml_number(struct tpo_yaml *y, const yaml_node_t *n, double low, double high);
int tpo_yaml_integer(struct tpo_yaml *y, const yaml_node_t *n, double low, double high);
int tpo_yaml_word(struct tpo_yaml *y, const yaml_node_t *n, const char *const *words, int n_words); /* which of them */
bool tpo_yaml_truth(struct tpo_yaml *y, const yaml_node_t *n);
void tpo_yaml_name(struct tpo_yaml *y, char *out, size_t size, const yaml_node_t *n); /* letters, digits, - _ . */

/* A file beside this one, as snprintf does. */
int tpo_yaml_beside(const struct tpo_yaml *y, char *out, size_t size, const char *name);
/* A path as the program opens it, in the arena; NULL once refused. */
const char *tpo_yaml_path(struct tpo_yaml *y, const yaml_node_t *n);

/* Calls `key` for every pair of a mapping; it returns false for a key it does not know. A key twice is refused. */
void tpo_yaml_mapping(struct tpo_yaml *y, yaml_node_t *n,
                      bool (*key)(struct tpo_yaml *y, void *self, const char *name, yaml_node_t *value), void *self);
yaml_node_t *tpo_yaml_value(struct tpo_yaml *y, const yaml_node_t *n, const char *name); /* NULL where the mapping lacks the key */

int tpo_yaml_length(struct tpo_yaml *y, yaml_node_t *n, int most); /* of a list of 1..most; 0 once refused */
yaml_node_t *tpo_yaml_item(struct tpo_yaml *y, yaml_node_t *n, int i);

#endif
