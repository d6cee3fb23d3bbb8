/* This file owns the cases of media: resizing, and the vectors of frame sampling. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/media/sampling.h"
#include "kernels/resize.h"
#include "tests/parity/case.h"

/* Three numbers of config, or a failure. */
static void triple(struct tpo_case *c, const char *key, float out[3])
{
    const json_t *list = json_object_get(c->config, key);
    for (size_t i = 0; i < 3; i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_is_number(v)) tpo_case_fail(c, "config.%s: no three numbers", key);
        out[i] = (float)json_number_value(v);
    }
}

struct picture {
    int H, W;
    uint8_t *rows; /* (H, W, 3) */
    float *planes; /* (3, H, W), 0..255 */
};

static bool picture_read(struct tpo_case *c, struct picture *p, const char *name)
{
    *p = (struct picture){.H = tpo_case_dim(c, name, 1), .W = tpo_case_dim(c, name, 2)};
    const int64_t n = (int64_t)p->H * p->W;
    const uint8_t *data = tpo_case_u8(c, name, 3 * n);
    if (data == NULL) return false;
    p->rows = malloc((size_t)n * 3);
    p->planes = malloc((size_t)n * 3 * sizeof(*p->planes));
    if (p->rows == NULL || p->planes == NULL) {
        tpo_case_fail(c, "no memory");
        return false;
    }
    for (int64_t k = 0; k < 3 * n; k++) {
        p->planes[k] = data[k];
        p->rows[k % n * 3 + k / n] = data[k];
    }
    return true;
}

static void picture_free(struct picture *p)
{
    free(p->rows);
    free(p->planes);
}

/* Size of an output [3, h, w]. */
static bool output_size(struct tpo_case *c, const char *name, int *h, int *w)
{
    *h = tpo_case_dim(c, name, 1);
    *w = tpo_case_dim(c, name, 2);
    if (tpo_case_dim(c, name, 0) != 3) tpo_case_fail(c, "%s: not three planes", name);
    return !c->failed;
}

static void compare_u8(struct tpo_case *c, const char *name, const struct picture *p, int antialias)
{
    int h, w;
    if (tpo_case_find(c, name) == NULL || !output_size(c, name, &h, &w)) return;
    const int64_t n = (int64_t)h * w;
    uint8_t *rows = malloc((size_t)n * 3), *planes = malloc((size_t)n * 3);
    if (rows != NULL && planes != NULL) {
        if (tpo_resize_u8(c->stream, rows, h, w, p->rows, p->H, p->W, antialias) != TPO_OK)
            tpo_case_fail(c, "%s: the kernel refused", name);
        for (int64_t k = 0; k < 3 * n && !c->failed; k++) planes[k] = rows[k % n * 3 + k / n];
        tpo_case_compare_u8(c, name, planes, 3 * n);
    }
    free(rows);
    free(planes);
}

static void compare_normalised(struct tpo_case *c, const char *name, const struct picture *p, int antialias)
{
    int h, w;
    float mean[3], std[3];
    if (tpo_case_find(c, name) == NULL || !output_size(c, name, &h, &w)) return;
    triple(c, "mean", mean);
    triple(c, "std", std);
    const int64_t n = (int64_t)h * w;
    uint8_t *rows = malloc((size_t)n * 3);
    float *planes = malloc((size_t)n * 3 * sizeof(*planes));
    if (rows != NULL && planes != NULL && !c->failed) {
        if (tpo_resize_u8(c->stream, rows, h, w, p->rows, p->H, p->W, antialias) != TPO_OK ||
            tpo_normalise(c->stream, planes, rows, mean, std, h, w) != TPO_OK)
            tpo_case_fail(c, "%s: the kernel refused", name);
        tpo_case_compare(c, name, planes, 3 * n, NULL);
    }
    free(rows);
    free(planes);
}

/* Planes resized as floats: as they are (0..255), or the mask head's way: /255, resize, normalise. */
static void compare_f32(struct tpo_case *c, const char *name, const struct picture *p, int antialias, bool mask_head)
{
    int h, w;
    float mean[3] = {0, 0, 0}, std[3] = {1, 1, 1};
    if (tpo_case_find(c, name) == NULL || !output_size(c, name, &h, &w)) return;
    if (mask_head) {
        triple(c, "mean", mean);
        triple(c, "std", std);
    }
    const int64_t n = (int64_t)h * w, source = 3 * (int64_t)p->H * p->W;
    float *in = malloc((size_t)source * sizeof(*in)), *out = malloc((size_t)n * 3 * sizeof(*out));
    if (in != NULL && out != NULL && !c->failed) {
        for (int64_t k = 0; k < source; k++) in[k] = mask_head ? p->planes[k] / 255 : p->planes[k];
        if (tpo_resize_f32(c->stream, out, h, w, in, 3, p->H, p->W, antialias) != TPO_OK)
            tpo_case_fail(c, "%s: the kernel refused", name);
        for (int64_t k = 0; k < 3 * n && !c->failed; k++) out[k] = (out[k] - mean[k / n]) / std[k / n];
        tpo_case_compare(c, name, out, 3 * n, NULL);
    }
    free(in);
    free(out);
}

/* Outputs of one input belong to it by what stands before the last dot: a.rgb -> a.f32, a.rgb224, a.normalised. */
static void outputs_compare(struct tpo_case *c, const char *stem, const struct picture *p, int antialias)
{
    const size_t length = strlen(stem);
    for (int i = 0; i < c->n && !c->failed; i++) {
        const char *name = c->tensors[i].name;
        if (strncmp(name, "output/", 7) != 0 || strncmp(name + 7, stem, length) != 0 || name[7 + length] != '.') continue;
        const char *kind = name + 8 + length;
        if (strncmp(kind, "rgb", 3) == 0)
            compare_u8(c, name, p, antialias);
        else if (strcmp(kind, "normalised") == 0)
            compare_normalised(c, name, p, antialias);
        else if (strcmp(kind, "f32") == 0)
            compare_f32(c, name, p, antialias, false);
    }
}

void tpo_parity_resize(struct tpo_case *c)
{
    static const char *const keys[] = {"antialias", "cubic_coefficient", "height", "width", "size", "mean", "std", NULL};
    tpo_case_keys(c, keys);
    struct picture p;
    if (tpo_case_find(c, "input/rgb") != NULL) {
        if (picture_read(c, &p, "input/rgb")) {
            compare_f32(c, "output/antialias_on", &p, 1, true);
            compare_f32(c, "output/antialias_off", &p, 0, true);
        }
        picture_free(&p);
        return;
    }
    const json_t *flag = json_object_get(c->config, "antialias");
    const int antialias = json_is_true(flag);
    if (!json_is_boolean(flag)) tpo_case_fail(c, "config.antialias: missing or no boolean");
    if (tpo_case_number_or(c, "cubic_coefficient", antialias ? -0.5 : -0.75) != (antialias ? -0.5 : -0.75))
        tpo_case_fail(c, "config.cubic_coefficient: -0.5 with antialias, -0.75 without, are what there is");
    for (int i = 0; i < c->n && !c->failed; i++) {
        const char *name = c->tensors[i].name, *dot = strrchr(name, '.');
        char stem[64];
        if (strncmp(name, "input/", 6) != 0 || dot == NULL || strcmp(dot, ".rgb") != 0) continue;
        snprintf(stem, sizeof(stem), "%.*s", (int)(dot - name - 6), name + 6);
        if (picture_read(c, &p, name)) outputs_compare(c, stem, &p, antialias);
        picture_free(&p);
    }
}

/* --- frame sampling ----------------------------------------------------------------------------------------------------------- */

static void sampling_one(struct tpo_case *c, const json_t *v, size_t at)
{
    const char *rule = json_string_value(json_object_get(v, "rule"));
    const json_t *indices = json_object_get(v, "indices"), *seconds = json_object_get(v, "seconds");
    const int64_t vlen = json_integer_value(json_object_get(v, "video_frames"));
    const int64_t most = (int64_t)json_array_size(indices) + 1;
    struct tpo_sampling s = {.n = (int)json_integer_value(json_object_get(v, "frames")), .pad = 1};
    struct tpo_error err = {0};
    if (rule == NULL || !json_is_array(indices) || tpo_sampling_parse(&s, rule, &err) != TPO_OK) {
        tpo_case_fail(c, "case %zu: rule, indices or frames are missing or unknown: %s", at, err.message);
        return;
    }
    int32_t *found = malloc((size_t)most * sizeof(*found));
    const json_t *fps = json_object_get(v, "fps");
    const int64_t n = found != NULL ? tpo_sampling_indices(&s, found, most, vlen, fps != NULL ? json_number_value(fps) : 30) : -1;
    if (n != most - 1) tpo_case_fail(c, "case %zu: %lld indices, golden %lld", at, (long long)n, (long long)most - 1);
    for (int64_t k = 0; k < n && !c->failed; k++)
        if (found[k] != json_integer_value(json_array_get(indices, (size_t)k)))
            tpo_case_fail(c, "case %zu: index %lld is %d, golden %lld", at, (long long)k, found[k],
                          (long long)json_integer_value(json_array_get(indices, (size_t)k)));
    const double seconds_fps = json_number_value(json_object_get(v, "seconds_fps"));
    for (size_t k = 0; k < json_array_size(seconds) && (int64_t)k < n && !c->failed; k++) {
        /* As services/router/prompt.c writes a frame's time: printf takes an exact half to the even digit, as Python's round() does. */
        char text[32];
        const char *golden = json_string_value(json_array_get(seconds, k));
        snprintf(text, sizeof(text), "%.1f", (double)found[k] / seconds_fps);
        if (golden == NULL || strcmp(text, golden) != 0)
            tpo_case_fail(c, "case %zu: second %zu is %s, golden %s", at, k, text, golden != NULL ? golden : "no string");
    }
    free(found);
}

void tpo_parity_frame_sampling(struct tpo_case *c)
{
    const json_t *list = json_object_get(c->root, "cases");
    if (json_array_size(list) == 0) tpo_case_fail(c, "vectors.json: no cases");
    for (size_t i = 0; i < json_array_size(list) && !c->failed; i++) sampling_one(c, json_array_get(list, i), i);
}
