/* This file owns the CPU's norms: rows in parallel for y and dx, columns in parallel for dw and db. */
#include "kernels/cpu.h"
#include "kernels/simd.h"

struct norm {
    float *y, *mean, *rstd;
    const float *x, *w, *b;
    float eps;
    int M, C, centred;
};

static void run_norm(void *arg, int part, int member)
{
    (void)member;
    const struct norm *n = arg;
    const struct tpo_simd *v = tpo_simd();
    int grain = tpo_row_grain(n->C, TPO_GRAIN);
    int64_t end = tpo_min64(n->M, (int64_t)(part + 1) * grain);
    for (int64_t m = (int64_t)part * grain; m < end; m++) {
        float mean, rstd;
        v->norm(n->y + m * n->C, n->centred ? &mean : NULL, &rstd, n->x + m * n->C, n->w, n->b, n->eps, n->C);
        if (n->mean != NULL) n->mean[m] = mean;
        if (n->rstd != NULL) n->rstd[m] = rstd;
    }
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

static void run_norm_grad(void *arg, int part, int member)
{
    (void)member;
    const struct norm_grad *n = arg;
    const struct tpo_simd *v = tpo_simd();
    int grain = tpo_row_grain(n->C, TPO_GRAIN);
    int64_t end = tpo_min64(n->M, (int64_t)(part + 1) * grain);
    for (int64_t m = (int64_t)part * grain, at; m < end; m++) {
        at = m * n->C;
        v->norm_grad(n->dx + at, n->dy + at, n->x + at, n->w, n->mean != NULL ? n->mean + m : NULL, n->rstd[m], n->add, n->C);
    }
}

static void run_norm_columns(void *arg, int part, int member)
{
    (void)member;
    const struct norm_grad *n = arg;
    int c0 = part * TPO_COLUMNS, cols = (int)tpo_min64(TPO_COLUMNS, n->C - c0);
    float *dw = n->dw != NULL ? n->dw + c0 : NULL, *db = n->db != NULL ? n->db + c0 : NULL;
    tpo_simd()->norm_columns(dw, db, n->dy + c0, n->x + c0, n->mean, n->rstd, n->C, n->M, cols);
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
