/* This file owns reading a golden case and comparing with it. */
#include "tests/parity/case.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/safetensors.h"

void tpo_case_fail(struct tpo_case *c, const char *format, ...)
{
    if (c->failed) return;
    c->failed = true;
    va_list args;
    va_start(args, format);
    vsnprintf(c->message, sizeof(c->message), format, args);
    va_end(args);
    for (char *p = c->message; *p != '\0'; p++)
        if ((unsigned char)*p < 0x20) *p = ' '; /* names come from a file: one case stays one line */
}

static void tolerance_read(struct tpo_case *c, const json_t *of, double *rel, double *abs, const char *whose)
{
    const json_t *t = json_object_get(of, "tolerance");
    const json_t *r = json_object_get(t, "rel"), *a = json_object_get(t, "abs");
    if (!json_is_number(r) || !json_is_number(a) || json_number_value(r) < 0 || json_number_value(a) < 0) {
        tpo_case_fail(c, "%s: tolerance {rel, abs} is missing or no pair of numbers", whose);
        return;
    }
    *rel = json_number_value(r);
    *abs = json_number_value(a);
}

static void tensor_read(struct tpo_case *c, struct tpo_golden *to, const json_t *row, const struct tpo_safetensors *file)
{
    const char *name = json_string_value(json_object_get(row, "name")), *role = json_string_value(json_object_get(row, "role"));
    if (name == NULL || role == NULL) {
        tpo_case_fail(c, "case.json: a tensor without name or role");
        return;
    }
    const struct tpo_entry *e = tpo_safetensors_find(file, name);
    if (e == NULL || e->size < 1 || (e->dtype != TPO_F32 && e->dtype != TPO_I32 && e->dtype != TPO_U8)) {
        tpo_case_fail(c, "%s: %s", name, e == NULL ? "not in tensors.safetensors" : "empty, or neither F32, I32 nor U8");
        return;
    }
    to->name = name;
    to->dtype = e->dtype;
    to->n_dims = e->n_dims;
    to->size = e->size;
    memcpy(to->shape, e->shape, sizeof(to->shape));
    to->must_match = strcmp(role, "output") == 0 || strcmp(role, "loss") == 0 || strcmp(role, "grad") == 0;
    tolerance_read(c, json_object_get(row, "tolerance") != NULL ? row : c->root, &to->rel, &to->abs, name);
    to->data = aligned_alloc(64, (e->size_bytes + 63) & ~(size_t)63);
    if (to->data == NULL)
        tpo_case_fail(c, "%s: no memory", name);
    else
        memcpy(to->data, e->data, e->size_bytes);
}

static void tensors_read(struct tpo_case *c)
{
    char path[4096];
    struct tpo_error err = {0};
    struct tpo_safetensors *file = NULL;
    const json_t *list = json_object_get(c->root, "tensors");
    snprintf(path, sizeof(path), "%s/tensors.safetensors", c->folder);
    if (!json_is_array(list) || json_array_size(list) == 0) {
        tpo_case_fail(c, "case.json: tensors is no list or empty");
    } else if (tpo_safetensors_open(&file, path, &err) != TPO_OK) {
        tpo_case_fail(c, "tensors.safetensors: %s", err.message);
    } else if ((c->tensors = calloc(json_array_size(list), sizeof(*c->tensors))) == NULL) {
        tpo_case_fail(c, "no memory");
    } else {
        for (size_t i = 0; i < json_array_size(list) && !c->failed; i++)
            tensor_read(c, &c->tensors[c->n++], json_array_get(list, i), file);
    }
    tpo_safetensors_close(file);
}

void tpo_case_open(struct tpo_case *c, struct tpo_stream *s, const char *name, const char *folder)
{
    char path[4096];
    json_error_t where;
    *c = (struct tpo_case){.name = name, .folder = folder, .stream = s};
    snprintf(path, sizeof(path), "%s/case.json", folder);
    c->root = json_load_file(path, JSON_REJECT_DUPLICATES, &where);
    c->module = json_string_value(json_object_get(c->root, "module"));
    c->config = json_object_get(c->root, "config");
    if (c->root == NULL)
        tpo_case_fail(c, "case.json, line %d: %s", where.line, where.text);
    else if (c->module == NULL)
        tpo_case_fail(c, "case.json: no module");
    else if (!json_is_object(c->config))
        tpo_case_fail(c, "case.json: no config");
    else
        tensors_read(c);
}

void tpo_case_close(struct tpo_case *c)
{
    for (int i = 0; i < c->n; i++) free(c->tensors[i].data);
    free(c->tensors);
    json_decref(c->root);
    c->tensors = NULL;
    c->root = NULL;
    c->n = 0;
}

void tpo_case_keys(struct tpo_case *c, const char *const *known)
{
    const char *key;
    json_t *value;
    json_object_foreach(c->config, key, value)
    {
        int i = 0;
        while (known[i] != NULL && strcmp(known[i], key) != 0) i++;
        if (known[i] == NULL) tpo_case_fail(c, "config.%s: this runner does not know it", key);
    }
}

bool tpo_case_has_key(const struct tpo_case *c, const char *key)
{
    return json_object_get(c->config, key) != NULL;
}

int tpo_case_size_or(struct tpo_case *c, const char *key, int absent)
{
    return tpo_case_has_key(c, key) ? tpo_case_size(c, key) : absent;
}

int tpo_case_size(struct tpo_case *c, const char *key)
{
    const int n = tpo_case_int(c, key);
    if (n >= 1 && n <= 1 << 16) return n;
    tpo_case_fail(c, "config.%s: %d is no size", key, n);
    return 1;
}

int tpo_case_int(struct tpo_case *c, const char *key)
{
    const json_t *v = json_object_get(c->config, key);
    const json_int_t n = json_integer_value(v);
    if (json_is_integer(v) && n >= 0 && n <= 1 << 20) return (int)n;
    tpo_case_fail(c, "config.%s: %s", key, v == NULL ? "missing" : "no integer of 0..2^20");
    return 1;
}

double tpo_case_number_or(struct tpo_case *c, const char *key, double absent)
{
    const json_t *v = json_object_get(c->config, key);
    if (v == NULL) return absent;
    if (!json_is_number(v)) tpo_case_fail(c, "config.%s: no number", key);
    return json_number_value(v);
}

const char *tpo_case_string_or(struct tpo_case *c, const char *key, const char *absent)
{
    const json_t *v = json_object_get(c->config, key);
    if (v == NULL) return absent;
    if (!json_is_string(v)) tpo_case_fail(c, "config.%s: no string", key);
    return json_is_string(v) ? json_string_value(v) : absent;
}

struct tpo_golden *tpo_case_find(const struct tpo_case *c, const char *name)
{
    for (int i = 0; i < c->n; i++)
        if (c->tensors[i].name != NULL && strcmp(c->tensors[i].name, name) == 0) return &c->tensors[i];
    return NULL;
}

static const void *data_of(struct tpo_case *c, const char *name, int dtype, int64_t size)
{
    const struct tpo_golden *g = tpo_case_find(c, name);
    if (g == NULL)
        tpo_case_fail(c, "%s: missing", name);
    else if (g->dtype != dtype)
        tpo_case_fail(c, "%s: of another dtype", name);
    else if (size > 0 && g->size != size)
        tpo_case_fail(c, "%s: %lld elements, config and other tensors mean %lld", name, (long long)g->size, (long long)size);
    else if (!c->failed)
        return g->data;
    return NULL;
}

const float *tpo_case_f32(struct tpo_case *c, const char *name, int64_t size)
{
    return data_of(c, name, TPO_F32, size);
}
const int32_t *tpo_case_i32(struct tpo_case *c, const char *name, int64_t size)
{
    return data_of(c, name, TPO_I32, size);
}
const uint8_t *tpo_case_u8(struct tpo_case *c, const char *name, int64_t size)
{
    return data_of(c, name, TPO_U8, size);
}

int tpo_case_dim(struct tpo_case *c, const char *name, int dim)
{
    const struct tpo_golden *g = tpo_case_find(c, name);
    if (g != NULL && dim < g->n_dims && g->shape[dim] >= 1 && g->shape[dim] <= 1 << 20) return (int)g->shape[dim];
    tpo_case_fail(c, "%s: missing, or of fewer dimensions than %d", name, dim + 1);
    return 1;
}

/* The tensor to compare with; NULL when there is none or the comparison is already decided. */
static struct tpo_golden *golden_for(struct tpo_case *c, const char *name, const void *values, int dtype, int64_t size)
{
    struct tpo_golden *g = tpo_case_find(c, name);
    if (g == NULL || c->failed) return NULL;
    g->compared = true;
    if (values != NULL && g->dtype == dtype && g->size == size) return g;
    if (values == NULL)
        tpo_case_fail(c, "%s: could not be computed", name);
    else
        tpo_case_fail(c, "%s: the case has %lld elements of dtype %d, the model %lld of %d", name, (long long)g->size, g->dtype,
                      (long long)size, dtype);
    return NULL;
}

void tpo_case_compare(struct tpo_case *c, const char *name, const float *values, int64_t size, const bool *skip)
{
    const struct tpo_golden *g = golden_for(c, name, values, TPO_F32, size);
    if (g == NULL) return;
    const float *golden = g->data;
    const int64_t width = g->shape[g->n_dims - 1];
    double largest = 0, worst = 0;
    for (int64_t i = 0; i < size; i++) {
        largest = fmax(largest, fabs((double)golden[i]));
        if (skip != NULL && skip[i / width]) continue;
        const double diff = fabs((double)values[i] - (double)golden[i]);
        if (!(diff <= worst)) worst = isnan(diff) ? INFINITY : diff;
    }
    if (!(worst <= g->abs + g->rel * largest))
        tpo_case_fail(c, "%s max diff %.3g (allowed %.3g)", name, worst, g->abs + g->rel * largest);
}

void tpo_case_compare_i32(struct tpo_case *c, const char *name, const int32_t *values, int64_t size)
{
    const struct tpo_golden *g = golden_for(c, name, values, TPO_I32, size);
    if (g == NULL) return;
    for (int64_t i = 0; i < size; i++)
        if (values[i] != ((const int32_t *)g->data)[i])
            tpo_case_fail(c, "%s[%lld] is %d, golden %d: max diff must be 0", name, (long long)i, values[i],
                          ((const int32_t *)g->data)[i]);
}

void tpo_case_compare_u8(struct tpo_case *c, const char *name, const uint8_t *values, int64_t size)
{
    const struct tpo_golden *g = golden_for(c, name, values, TPO_U8, size);
    int worst = 0;
    if (g == NULL) return;
    for (int64_t i = 0; i < size; i++) {
        const int diff = abs((int)values[i] - (int)((const uint8_t *)g->data)[i]);
        if (diff > worst) worst = diff;
    }
    /* Flags are equal or wrong; pictures carry a tolerance of their own, of at least one grey level. */
    const double allowed = g->abs >= 1 ? g->abs : 0;
    if ((double)worst > allowed) tpo_case_fail(c, "%s max diff %d (allowed %g)", name, worst, allowed);
}

static void weight_bind(struct tpo_case *c, struct tpo_params *p, struct tpo_golden *g)
{
    const char *name = g->name + strlen("weight/");
    struct tpo_param *item = tpo_params_find(p, name);
    if (item == NULL) {
        tpo_case_fail(c, "%s: no such tensor in this model", g->name);
        return;
    }
    bool same = item->n_dims == g->n_dims && g->dtype == TPO_F32;
    for (int d = 0; d < g->n_dims && same; d++) same = item->shape[d] == g->shape[d];
    if (!same) {
        tpo_case_fail(c, "%s: its shape is not the one that config means", g->name);
        return;
    }
    char grad[TPO_NAME_MAX + 8];
    snprintf(grad, sizeof(grad), "grad/%s", name);
    item->data = g->data;
    if (tpo_case_find(c, grad) == NULL) return;
    item->grad = aligned_alloc(64, ((size_t)item->size * sizeof(float) + 63) & ~(size_t)63);
    if (item->grad == NULL)
        tpo_case_fail(c, "%s: no memory", grad);
    else
        memset(item->grad, 0, (size_t)item->size * sizeof(float));
}

void tpo_case_bind(struct tpo_case *c, struct tpo_params *p)
{
    for (int i = 0; i < c->n && !c->failed; i++)
        if (strncmp(c->tensors[i].name, "weight/", 7) == 0) weight_bind(c, p, &c->tensors[i]);
}

void tpo_case_need_weights(struct tpo_case *c, const struct tpo_params *p)
{
    char name[TPO_NAME_MAX + 8];
    for (int i = 0; i < p->n; i++) {
        snprintf(name, sizeof(name), "weight/%s", p->items[i]->name);
        if (tpo_case_find(c, name) == NULL) tpo_case_fail(c, "%s: missing", name);
    }
}

void tpo_case_gradients(struct tpo_case *c, struct tpo_params *p)
{
    char name[TPO_NAME_MAX + 8];
    for (int i = 0; i < p->n; i++) {
        if (p->items[i]->grad == NULL) continue;
        snprintf(name, sizeof(name), "grad/%s", p->items[i]->name);
        tpo_case_compare(c, name, p->items[i]->grad, p->items[i]->size, NULL);
    }
}

void tpo_case_unbind(struct tpo_params *p)
{
    for (int i = 0; i < p->n; i++) {
        free(p->items[i]->grad);
        p->items[i]->grad = NULL;
        p->items[i]->data = NULL; /* the case's own memory */
    }
}
