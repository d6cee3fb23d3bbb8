/* This file owns the CPU's norms: rows in parallel for y and dx, columns in parallel for dw and db. */
#include <math.h>

#include "kernels/cpu.h"

struct norm {
    float *y, *mean, *rstd;
    const float *x, *w, *b;
    float eps;
    int M, C, centred;
};

static void norm_row(const struct norm *n, int64_t m)
{
    const float *x = n->x + m * n->C;
    float *y = n->y + m * n->C, mean = 0.0f, square = 0.0f;
    if (n->centred) {
        for (int c = 0; c < n->C; c++) mean += x[c];
        mean /= (float)n->C;
    }
    for (int c = 0; c < n->C; c++) square += (x[c] - mean) * (x[c] - mean);
    float rstd = 1.0f / sqrtf(square / (float)n->C + n->eps);
    for (int c = 0; c < n->C; c++) y[c] = (x[c] - mean) * rstd * n->w[c] + (n->b != NULL ? n->b[c] : 0.0f);
    if (n->mean != NULL) n->mean[m] = mean;
    if (n->rstd != NULL) n->rstd[m] = rstd;
}

static void run_norm(void *arg, int part, int member)
{
    (void)member;
    const struct norm *n = arg;
    int grain = tpo_row_grain(n->C, TPO_GRAIN);
    int64_t end = tpo_min64(n->M, (int64_t)(part + 1) * grain);
    for (int64_t m = (int64_t)part * grain; m < end; m++) norm_row(n, m);
}

int tpo_layernorm_cpu(struct tpo_stream *s, float *y, float *mean, float *rstd, const float *x, const float *w, const float *b,
                      float eps, int M, int C)
{
    if (M < 1 || C < 1) return TPO_EINVAL;
    struct norm n = {y, mean, rstd, x, w, b, eps, M, C, 1};
    tpo_team_run(s->team, run_norm, &n, tpo_parts(M, tpo_row_grain(C, TPO_GRAIN)));
    return TPO_OK;
}

int tpo_rmsnorm_cpu(struct tpo_stream *s, float *y, float *rstd, const float *x, const float *w, float eps, int M, int C)
{
    if (M < 1 || C < 1) return TPO_EINVAL;
    struct norm n = {y, NULL, rstd, x, w, NULL, eps, M, C, 0};
    tpo_team_run(s->team, run_norm, &n, tpo_parts(M, tpo_row_grain(C, TPO_GRAIN)));
    return TPO_OK;
}

struct norm_grad {
    float *dx, *dw, *db;
    const float *dy, *x, *w, *mean, *rstd;
    int add, M, C;
};

/* With z = (x - mean) rstd and g = dy w:  dx = rstd (g - mean(g) - z mean(g z)); RMS norm has no mean(g). */
static void norm_grad_row(const struct norm_grad *n, int64_t m)
{
    const float *x = n->x + m * n->C, *dy = n->dy + m * n->C;
    float mean = n->mean != NULL ? n->mean[m] : 0.0f, rstd = n->rstd[m], g = 0.0f, gz = 0.0f;
    for (int c = 0; c < n->C; c++) {
        g += dy[c] * n->w[c];
        gz += dy[c] * n->w[c] * ((x[c] - mean) * rstd);
    }
    g = n->mean != NULL ? g / (float)n->C : 0.0f;
    gz /= (float)n->C;
    float *dx = n->dx + m * n->C;
    for (int c = 0; c < n->C; c++) {
        float d = rstd * (dy[c] * n->w[c] - g - (x[c] - mean) * rstd * gz);
        dx[c] = n->add ? dx[c] + d : d;
    }
}

static void run_norm_grad(void *arg, int part, int member)
{
    (void)member;
    const struct norm_grad *n = arg;
    int grain = tpo_row_grain(n->C, TPO_GRAIN);
    int64_t end = tpo_min64(n->M, (int64_t)(part + 1) * grain);
    for (int64_t m = (int64_t)part * grain; m < end; m++) norm_grad_row(n, m);
}

static void run_norm_columns(void *arg, int part, int member)
{
    (void)member;
    const struct norm_grad *n = arg;
    int c0 = part * TPO_COLUMNS, cols = (int)tpo_min64(TPO_COLUMNS, n->C - c0);
    float dw[TPO_COLUMNS] = {0}, db[TPO_COLUMNS] = {0};
    for (int m = 0; m < n->M; m++) {
        const float *x = n->x + (int64_t)m * n->C + c0, *dy = n->dy + (int64_t)m * n->C + c0;
        float mean = n->mean != NULL ? n->mean[m] : 0.0f, rstd = n->rstd[m];
        for (int c = 0; c < cols; c++) {
            dw[c] += dy[c] * ((x[c] - mean) * rstd);
            db[c] += dy[c];
        }
    }
    for (int c = 0; c < cols; c++) {
        if (n->dw != NULL) n->dw[c0 + c] += dw[c];
        if (n->db != NULL) n->db[c0 + c] += db[c];
    }
}

/* dw and db first: dx may be the memory of dy. */
static int run_grads(struct tpo_stream *s, struct norm_grad *n)
{
    if (n->M < 1 || n->C < 1) return TPO_EINVAL;
    if (n->dw != NULL || n->db != NULL) tpo_team_run(s->team, run_norm_columns, n, tpo_parts(n->C, TPO_COLUMNS));
    tpo_team_run(s->team, run_norm_grad, n, tpo_parts(n->M, tpo_row_grain(n->C, TPO_GRAIN)));
    return TPO_OK;
}

int tpo_layernorm_grad_cpu(struct tpo_stream *s, float *dx, float *dw, float *db, const float *dy, const float *x, const float *w,
                           const float *mean, const float *rstd, int add, int M, int C)
{
    struct norm_grad n = {dx, dw, db, dy, x, w, mean, rstd, add, M, C};
    return run_grads(s, &n);
}

int tpo_rmsnorm_grad_cpu(struct tpo_stream *s, float *dx, float *dw, const float *dy, const float *x, const float *w,
                         const float *rstd, int add, int M, int C)
{
    struct norm_grad n = {dx, dw, NULL, dy, x, w, NULL, rstd, add, M, C};
    return run_grads(s, &n);
}
