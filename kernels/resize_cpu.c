/* resize_cpu.c -- bicubic resizing as a sum over rows, then a sum over columns (resize_taps.h has the weights).
 *
 * Rows come first: that pass runs along memory, so the compiler makes vector code of it, and it needs one row of scratch. */
#include "kernels/resize_taps.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define STRIP 16 /* columns whose sums stay in registers */

/* row[x] = sum over taps of weight * src[tap row][x], rows of n elements. The twin below differs in its type alone. */
static void sum_rows_u8(float *row, const uint8_t *src, const struct tpo_side *y, int i, size_t n)
{
    const int *at = y->at + (size_t)i * y->taps;
    const float *weight = y->weight + (size_t)i * y->taps;
    for (size_t x = 0; x < n; x += STRIP) {
        float sum[STRIP] = {0};
        size_t m = n - x < STRIP ? n - x : STRIP;
        for (int k = 0; k < y->n[i]; k++) {
            const uint8_t *p = src + (size_t)at[k] * n + x;
            if (m == STRIP) {
                for (int j = 0; j < STRIP; j++) sum[j] += weight[k] * (float)p[j];
            } else {
                for (size_t j = 0; j < m; j++) sum[j] += weight[k] * (float)p[j];
            }
        }
        memcpy(row + x, sum, m * sizeof(*row));
    }
}

static void sum_rows_f32(float *row, const float *src, const struct tpo_side *y, int i, size_t n)
{
    const int *at = y->at + (size_t)i * y->taps;
    const float *weight = y->weight + (size_t)i * y->taps;
    for (size_t x = 0; x < n; x += STRIP) {
        float sum[STRIP] = {0};
        size_t m = n - x < STRIP ? n - x : STRIP;
        for (int k = 0; k < y->n[i]; k++) {
            const float *p = src + (size_t)at[k] * n + x;
            if (m == STRIP) {
                for (int j = 0; j < STRIP; j++) sum[j] += weight[k] * p[j];
            } else {
                for (size_t j = 0; j < m; j++) sum[j] += weight[k] * p[j];
            }
        }
        memcpy(row + x, sum, m * sizeof(*row));
    }
}

/* Halves go to the even neighbour: what rounding to nearest does everywhere else in this program. */
static uint8_t to_u8(float x)
{
    return x <= 0 ? 0 : x >= 255 ? 255 : (uint8_t)lrintf(x);
}

static void sum_columns_u8(uint8_t *dst, const float *row, const struct tpo_side *x, int w)
{
    for (int i = 0; i < w; i++) {
        const int *at = x->at + (size_t)i * x->taps;
        const float *weight = x->weight + (size_t)i * x->taps;
        float r = 0, g = 0, b = 0;
        for (int k = 0; k < x->n[i]; k++) {
            const float *p = row + (size_t)at[k] * 3;
            r += weight[k] * p[0], g += weight[k] * p[1], b += weight[k] * p[2];
        }
        dst[3 * i] = to_u8(r), dst[3 * i + 1] = to_u8(g), dst[3 * i + 2] = to_u8(b);
    }
}

static void sum_columns_f32(float *dst, const float *row, const struct tpo_side *x, int w)
{
    for (int i = 0; i < w; i++) {
        const int *at = x->at + (size_t)i * x->taps;
        const float *weight = x->weight + (size_t)i * x->taps;
        float sum = 0;
        for (int k = 0; k < x->n[i]; k++) sum += weight[k] * row[at[k]];
        dst[i] = sum;
    }
}

struct plan {
    struct tpo_side y, x;
    float *row;
};

static int plan_init(struct plan *p, int h, int w, int H, int W, int channels, int antialias)
{
    memset(p, 0, sizeof(*p));
    int rc = tpo_side_init(&p->y, H, h, antialias);
    if (rc == TPO_OK)
        rc = tpo_side_init(&p->x, W, w, antialias);
    else
        return rc;
    p->row = rc == TPO_OK ? malloc((size_t)W * (size_t)channels * sizeof(*p->row)) : NULL;
    if (p->row != NULL) return TPO_OK;
    tpo_side_free(&p->y);
    if (rc == TPO_OK) tpo_side_free(&p->x);
    return TPO_ENOMEM;
}

static void plan_free(struct plan *p)
{
    tpo_side_free(&p->y), tpo_side_free(&p->x), free(p->row);
}

int tpo_resize_u8_cpu(struct tpo_stream *s, uint8_t *dst, int h, int w, const uint8_t *src, int H, int W, int antialias)
{
    (void)s;
    struct plan p;
    if (!tpo_resize_sizes_ok(h, w, H, W)) return TPO_EINVAL;
    if (h == H && w == W) { /* every weight is 0 or 1 */
        memmove(dst, src, (size_t)h * (size_t)w * 3);
        return TPO_OK;
    }
    int rc = plan_init(&p, h, w, H, W, 3, antialias);
    if (rc != TPO_OK) return rc;
    for (int i = 0; i < h; i++) {
        sum_rows_u8(p.row, src, &p.y, i, (size_t)W * 3);
        sum_columns_u8(dst + (size_t)i * (size_t)w * 3, p.row, &p.x, w);
    }
    plan_free(&p);
    return TPO_OK;
}

int tpo_resize_f32_cpu(struct tpo_stream *s, float *dst, int h, int w, const float *src, int C, int H, int W, int antialias)
{
    (void)s;
    struct plan p;
    if (!tpo_resize_sizes_ok(h, w, H, W) || C <= 0) return TPO_EINVAL;
    if (h == H && w == W) {
        memmove(dst, src, (size_t)C * (size_t)h * (size_t)w * sizeof(*dst));
        return TPO_OK;
    }
    int rc = plan_init(&p, h, w, H, W, 1, antialias);
    if (rc != TPO_OK) return rc;
    for (int c = 0; c < C; c++) {
        const float *plane = src + (size_t)c * (size_t)H * (size_t)W;
        for (int i = 0; i < h; i++) {
            sum_rows_f32(p.row, plane, &p.y, i, (size_t)W);
            sum_columns_f32(dst + ((size_t)c * (size_t)h + (size_t)i) * (size_t)w, p.row, &p.x, w);
        }
    }
    plan_free(&p);
    return TPO_OK;
}

int tpo_normalise_cpu(struct tpo_stream *s, float *dst, const uint8_t *src, const float mean[3], const float std[3], int H, int W)
{
    (void)s;
    float table[3][256];
    if (H <= 0 || W <= 0) return TPO_EINVAL;
    for (int c = 0; c < 3; c++)
        for (int v = 0; v < 256; v++) table[c][v] = ((float)v / 255.0f - mean[c]) / std[c];
    size_t n = (size_t)H * (size_t)W;
    for (int c = 0; c < 3; c++)
        for (size_t i = 0; i < n; i++) dst[(size_t)c * n + i] = table[c][src[3 * i + (size_t)c]];
    return TPO_OK;
}
