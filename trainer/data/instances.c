/* This file owns the reading of instances.json. */
#include "trainer/data/instances.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct picture {
    int64_t id;
    double width, height;
    const char *name; /* NULL: not told */
};

static int by_id(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static const char *box_normalise(float out[4], const json_t *bbox, const struct picture *p)
{
    double v[4];
    if (json_array_size(bbox) != 4) return "bbox is not four numbers";
    for (size_t i = 0; i < 4; i++) {
        const json_t *x = json_array_get(bbox, i);
        if (!json_is_number(x) || !isfinite(json_number_value(x))) return "bbox is not four finite numbers";
        v[i] = json_number_value(x);
    }
    if (p == NULL || !(p->width > 0) || !(p->height > 0)) return "its picture has no size";
    if (!(v[2] > 0) || !(v[3] > 0)) return "bbox is inverted or has no area";
    /* Half a pixel of slack: annotators' boxes end between pixels. */
    if (v[0] < -.5 || v[1] < -.5 || v[0] + v[2] > p->width + .5 || v[1] + v[3] > p->height + .5)
        return "bbox lies outside the picture";
    out[0] = (float)fmax(0, v[0] / p->width);
    out[1] = (float)fmax(0, v[1] / p->height);
    out[2] = (float)fmin(1, (v[0] + v[2]) / p->width);
    out[3] = (float)fmin(1, (v[1] + v[3]) / p->height);
    return NULL;
}

/* The pictures that have an id, by it, malloc'd; NULL without memory. */
static struct picture *pictures_take(struct tpo_instances *s, const json_t *images, size_t *n)
{
    struct picture *all = calloc(json_array_size(images) + 1, sizeof(*all));
    const json_t *x;
    size_t i;
    *n = 0;
    if (all == NULL) return NULL;
    json_array_foreach((json_t *)images, i, x)
    {
        const json_t *id = json_object_get(x, "id");
        const char *name = json_string_value(json_object_get(x, "file_name"));
        if (!json_is_integer(id)) continue;
        struct picture *p = &all[(*n)++];
        *p = (struct picture){json_integer_value(id), json_number_value(json_object_get(x, "width")),
                              json_number_value(json_object_get(x, "height")), NULL};
        if (name != NULL && (p->name = tpo_arena_copy(&s->names, name, strlen(name))) == NULL) {
            free(all);
            return NULL;
        }
    }
    qsort(all, *n, sizeof(*all), by_id);
    return all;
}

/* NULL where it names none that is there. */
static const struct picture *picture_of(const json_t *annotation, const struct picture *pictures, size_t n)
{
    const json_t *id = json_object_get(annotation, "image_id");
    const int64_t image = json_integer_value(id);
    return json_is_integer(id) ? bsearch(&image, pictures, n, sizeof(*pictures), by_id) : NULL;
}

static int instances_take(struct tpo_instances *s, const json_t *root, const char *path, struct tpo_error *err)
{
    const json_t *images = json_object_get(root, "images"), *list = json_object_get(root, "annotations"), *x;
    size_t i, n;
    struct picture *pictures = pictures_take(s, images, &n);
    s->items = calloc(json_array_size(list) + 1, sizeof(*s->items));
    if (pictures == NULL || s->items == NULL) {
        free(pictures);
        return tpo_fail(err, TPO_ENOMEM, "memory", "no memory for %.200s", path);
    }
    json_array_foreach((json_t *)list, i, x)
    {
        const json_t *id = json_object_get(x, "id");
        if (!json_is_integer(id)) continue;
        struct tpo_instance *o = &s->items[s->n++];
        const struct picture *p = picture_of(x, pictures, n);
        o->id = json_integer_value(id);
        o->medium = p != NULL ? p->name : NULL;
        o->fault = box_normalise(o->box, json_object_get(x, "bbox"), p);
    }
    qsort(s->items, (size_t)s->n, sizeof(*s->items), by_id);
    free(pictures);
    return TPO_OK;
}

int tpo_instances_load(struct tpo_instances *s, const char *path, struct tpo_error *err)
{
    json_error_t fault;
    memset(s, 0, sizeof(*s));
    tpo_arena_init(&s->names, 4096, 0);
    if (access(path, R_OK) != 0) return tpo_fail(err, TPO_NOT_FOUND, "annotations", "%.200s: %s", path, strerror(errno));
    json_t *root = json_load_file(path, 0, &fault);
    const int rc = root != NULL
                       ? instances_take(s, root, path, err)
                       : tpo_fail(err, TPO_INVALID_ARGUMENT, "annotations", "%.200s:%d: %.80s", path, fault.line, fault.text);
    json_decref(root);
    return rc;
}

void tpo_instances_free(struct tpo_instances *s)
{
    tpo_arena_free(&s->names);
    free(s->items);
    memset(s, 0, sizeof(*s));
}

const struct tpo_instance *tpo_instances_find(const struct tpo_instances *s, int64_t id)
{
    return s->n > 0 ? bsearch(&id, s->items, (size_t)s->n, sizeof(*s->items), by_id) : NULL;
}
