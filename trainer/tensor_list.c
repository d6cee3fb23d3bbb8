/* This file owns reading tensors.txt. */
#include "trainer/tensor_list.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/prefixes.h"

#define LINE_MAX_BYTES 512
#define RANGE_MAX      4096

struct list {
    struct tpo_params *others;
    const struct tpo_params *owned;
    int n, n_found; /* schemas, and of their tensors */
    int line;
    struct tpo_error *err;
};

static int refuse(struct list *l, const char *name, const char *what)
{
    return tpo_fail(l->err, TPO_INVALID_ARGUMENT, "tensor_list", "tensors.txt, line %d: %.128s %s", l->line, name, what);
}

/* [1024,3,16,16] into 0-ended dimensions; the end of it, or NULL. */
static const char *shape_read(const char *text, int64_t shape[TPO_DIMS_MAX + 1])
{
    int n = 0;
    if (*text != '[') return NULL;
    do {
        char *end;
        errno = 0;
        const long long size = strtoll(++text, &end, 10);
        if (end == text || errno != 0 || size < 1 || size > INT32_MAX || n == TPO_DIMS_MAX) return NULL;
        shape[n++] = size;
        text = end;
    } while (*text == ',');
    shape[n] = 0;
    return *text == ']' ? text + 1 : NULL;
}

static bool same_shape(const struct tpo_param *p, const int64_t *shape)
{
    for (int i = 0; i < p->n_dims; i++)
        if (shape[i] != p->shape[i]) return false;
    return shape[p->n_dims] == 0;
}

static bool ends_with(const char *name, const char *suffix)
{
    const size_t n = strlen(name), k = strlen(suffix);
    return n >= k && strcmp(name + n - k, suffix) == 0;
}

static int declare(struct list *l, const char *name, const int64_t *shape)
{
    const bool zero = ends_with(name, "bias"), one = shape[1] == 0 && (ends_with(name, ".weight") || ends_with(name, ".gamma"));
    const enum tpo_init init = zero ? TPO_INIT_ZERO : one ? TPO_INIT_ONE : TPO_INIT_NORMAL;
    if (strlen(name) >= TPO_NAME_MAX) return refuse(l, name, "is too long a name");
    if (tpo_params_find(l->others, name) != NULL) return refuse(l, name, "comes twice");
    return tpo_params_declare(l->others, init, 0.02F, shape, "%s", name) != NULL
               ? TPO_OK
               : tpo_fail(l->err, TPO_ENOMEM, "memory", "no memory for tensors.txt");
}

static int take(struct list *l, const char *name, const char *shapes)
{
    int64_t shape[TPO_DIMS_MAX + 1];
    if (shape_read(shapes, shape) == NULL) return refuse(l, name, "has no shape that can be read");
    for (int k = 0; k < l->n; k++) {
        const struct tpo_param *p = tpo_params_find(&l->owned[k], name);
        if (p == NULL) continue;
        l->n_found++;
        return same_shape(p, shape) ? TPO_OK : refuse(l, name, "has another shape than the config asks for");
    }
    const char *owner = tpo_prefix_owner(name);
    if (owner == NULL) return refuse(l, name, "is under no known prefix");
    for (int k = 0; k < l->n; k++)
        if (l->owned[k].n > 0 && strcmp(owner, tpo_prefix_owner(l->owned[k].items[0]->name)) == 0)
            return refuse(l, name, "is no tensor that the config builds");
    return declare(l, name, shape);
}

/* Replaces the first {...} of the name by each of its choices in turn. */
static int expand(struct list *l, const char *pattern, const char *shapes)
{
    char choices[LINE_MAX_BYTES], name[LINE_MAX_BYTES];
    const char *open = strchr(pattern, '{'), *close = open != NULL ? strchr(open, '}') : NULL;
    int first, last, used = 0, rc = TPO_OK;
    if (open == NULL) return take(l, pattern, shapes);
    if (close == NULL) return refuse(l, pattern, "opens a choice that it does not close");
    snprintf(choices, sizeof(choices), "%.*s", (int)(close - open - 1), open + 1);
    if (strstr(choices, "..") != NULL) {
        const bool range = sscanf(choices, "%d..%d%n", &first, &last, &used) == 2 && choices[used] == '\0';
        if (!range || first < 0 || last < first || last - first > RANGE_MAX) return refuse(l, pattern, "has no usable range");
        for (int i = first; i <= last && rc == TPO_OK; i++) {
            snprintf(name, sizeof(name), "%.*s%d%s", (int)(open - pattern), pattern, i, close + 1);
            rc = expand(l, name, shapes);
        }
        return rc;
    }
    for (char *save = NULL, *word = strtok_r(choices, ",", &save); word != NULL && rc == TPO_OK;
         word = strtok_r(NULL, ",", &save)) {
        snprintf(name, sizeof(name), "%.*s%s%s", (int)(open - pattern), pattern, word, close + 1);
        const char *gap = strchr(shapes, ' '), *own = strcmp(word, "bias") != 0 ? shapes : gap != NULL ? gap + 1 : NULL;
        rc = own != NULL ? expand(l, name, own) : refuse(l, name, "has no second shape");
    }
    return rc;
}

static int read_lines(struct list *l, FILE *in)
{
    char line[LINE_MAX_BYTES];
    int rc = TPO_OK;
    while (rc == TPO_OK && fgets(line, sizeof(line), in) != NULL) {
        l->line++;
        const size_t n = strcspn(line, "\n");
        if (line[n] == '\0' && n + 1 == sizeof(line)) return refuse(l, "", "the line is too long");
        line[n] = '\0';
        char *space = strchr(line, ' ');
        if (line[0] == '#' || line[0] == '\0') continue;
        if (space == NULL) return refuse(l, line, "has no shape");
        *space = '\0';
        rc = expand(l, line, space + 1);
    }
    return rc;
}

int tpo_tensor_list_read(struct tpo_params *others, const struct tpo_params *owned, int n, const char *folder,
                         struct tpo_error *err)
{
    char path[4200];
    int expected = 0;
    snprintf(path, sizeof(path), "%.4000s/tensors.txt", folder);
    FILE *in = fopen(path, "r");
    if (in == NULL) return TPO_OK;
    struct list l = {.others = others, .owned = owned, .n = n, .err = err};
    int rc = read_lines(&l, in);
    fclose(in);
    for (int k = 0; k < n; k++) expected += owned[k].n;
    if (rc == TPO_OK && l.n_found != expected)
        rc = tpo_fail(err, TPO_INVALID_ARGUMENT, "tensor_list",
                      "tensors.txt lists %d tensors of the services, the config asks for %d", l.n_found, expected);
    for (int i = 0; i < others->n; i++) others->items[i]->ignored = tpo_param_is_integer(others->items[i]);
    return rc;
}
