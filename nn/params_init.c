/* This file owns how a tensor starts. */
#include "nn/params_init.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/vector.h"

/* FNV-1a, then mixed with the seed, so that tensors of one model draw from streams of their own. */
static uint64_t name_key(const char *name, uint64_t seed)
{
    uint64_t h = 14695981039346656037ull;
    for (; *name != '\0'; name++) h = (h ^ (uint8_t)*name) * 1099511628211ull;
    return tpo_random_u64(h, seed);
}

/* Rows of a (rows x cols, rows <= cols) made orthonormal by modified Gram-Schmidt, twice: once loses digits. */
static void orthonormalise(double *a, int64_t rows, int64_t cols)
{
    for (int64_t r = 0; r < rows; r++) {
        double *x = a + r * cols;
        for (int64_t pass = 0; pass < 2; pass++)
            for (int64_t o = 0; o < r; o++) {
                const double *y = a + o * cols;
                double dot = 0;
                for (int64_t c = 0; c < cols; c++) dot += x[c] * y[c];
                for (int64_t c = 0; c < cols; c++) x[c] -= dot * y[c];
            }
        double norm = 0;
        for (int64_t c = 0; c < cols; c++) norm += x[c] * x[c];
        norm = 1 / sqrt(norm);
        for (int64_t c = 0; c < cols; c++) x[c] *= norm;
    }
}

/* The last dimensions are folded: shape[0] x the rest. The shorter side is orthonormal. With `transposed` the draw is that of the transposed
 * matrix, so that W and a W^T declared like it hold the same numbers. */
static int orthogonal(float *y, const struct tpo_param *item, uint64_t key, bool transposed)
{
    int64_t rows = item->shape[0], cols = item->size / item->shape[0];
    int64_t across = transposed ? rows : cols, down = transposed ? cols : rows; /* of the matrix drawn */
    int64_t small = down < across ? down : across, large = down < across ? across : down;
    double *a = malloc((size_t)item->size * sizeof(double));
    if (a == NULL) return TPO_ENOMEM;
    for (int64_t i = 0; i < item->size; i++) a[i] = tpo_random_normal(key, (uint64_t)i);
    orthonormalise(a, small, large);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) {
            int64_t i = transposed ? c : r, j = transposed ? r : c;
            y[r * cols + c] = item->scale * (float)(down < across ? a[i * large + j] : a[j * large + i]);
        }
    free(a);
    return TPO_OK;
}

/* A grid of `rows` cells, as square as its divisors allow, laid over a field of GRID x GRID units, so that tables of unlike grids (patches,
 * queries) tell the same place alike. Quarters of the columns: sin and cos of x, sin and cos of y (Vaswani et al. 2017, 3.5, in two axes). */
static void sincos_2d(float *y, int64_t rows, int64_t cols, float scale, int64_t first, int64_t n)
{
    const double GRID = 16;
    int64_t high = 1, quarter = cols / 4;
    for (int64_t h = 1; h * h <= rows; h++)
        if (rows % h == 0) high = h;
    int64_t wide = rows / high;
    for (int64_t i = first; i < first + n; i++) {
        int64_t r = i / cols, c = i % cols;
        y[i - first] = 0;
        if (c >= 4 * quarter) continue;
        double rate = pow(10000, -(double)(c % quarter) / (double)quarter);
        double across = GRID * ((double)(r % wide) + .5) / (double)wide * rate,
               down = GRID * ((double)(r / wide) + .5) / (double)high * rate;
        double angle = c < 2 * quarter ? across : down;
        y[i - first] = scale * (float)(c / quarter % 2 == 0 ? sin(angle) : cos(angle));
    }
}

bool tpo_param_init_whole(const struct tpo_param *item)
{
    return item->init == TPO_INIT_ORTHOGONAL;
}

static uint64_t key_of(const struct tpo_param *item, uint64_t seed)
{
    return name_key(item->like != NULL ? item->like->name : item->name, seed);
}

void tpo_param_init_piece(float *host, const struct tpo_param *item, uint64_t seed, int64_t first, int64_t n)
{
    const uint64_t key = key_of(item, seed);
    const int64_t last = item->n_dims > 0 ? item->shape[item->n_dims - 1] : 1;
    const double fan_in = item->n_dims > 0 ? (double)item->size / (double)item->shape[0] : 1;
    switch (item->init) {
    case TPO_INIT_ZERO:
        memset(host, 0, (size_t)n * sizeof(float));
        break;
    case TPO_INIT_ONE:
        for (int64_t i = 0; i < n; i++) host[i] = 1;
        break;
    case TPO_INIT_NORMAL:
        tpo_random_normals(host, n, item->scale, key, (uint64_t)first);
        break;
    case TPO_INIT_FAN_IN:
        tpo_random_normals(host, n, item->scale / (float)sqrt(fan_in), key, (uint64_t)first);
        break;
    case TPO_INIT_ORTHOGONAL:
        TPO_ASSERT(false);
        break;
    case TPO_INIT_SINCOS_2D:
        sincos_2d(host, item->size / last, last, item->scale, first, n);
        break;
    case TPO_INIT_NORMAL_LATER:
        tpo_random_normals(host, n, item->scale, key, (uint64_t)first);
        for (int64_t i = first; i < first + n && i < last; i++) host[i - first] = 0;
        break;
    case TPO_INIT_BOX:
        for (int64_t i = 0; i < n; i++) host[i] = (first + i) % 4 < 2 ? 0.5F - item->scale : 0.5F + item->scale;
        break;
    }
}

int tpo_param_init(float *host, const struct tpo_param *item, uint64_t seed)
{
    if (tpo_param_init_whole(item)) return orthogonal(host, item, key_of(item, seed), item->like != NULL && item->like_transposed);
    tpo_param_init_piece(host, item, seed, 0, item->size);
    return TPO_OK;
}
