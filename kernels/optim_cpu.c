/* This file owns the CPU's optimiser steps. */
#include <math.h>

#include "kernels/cpu.h"
#include "kernels/simd.h"

struct adamw_job {
    struct tpo_adamw_span span;
    struct tpo_adamw step;
    int64_t n;
};

static void run_adamw(void *arg, int part, int member)
{
    (void)member;
    const struct adamw_job *j = arg;
    struct tpo_adamw_span a = j->span;
    int64_t i = (int64_t)part * TPO_GRAIN;
    a.w_next += i, a.m_next += i, a.v_next += i, a.w += i, a.m += i, a.v += i, a.g += i;
    tpo_simd()->adamw(&a, &j->step, tpo_min64(j->n - i, TPO_GRAIN));
}

int tpo_adamw_cpu(struct tpo_stream *s, float *w_next, float *m_next, float *v_next, const float *w, const float *m, const float *v,
                  const float *g, const struct tpo_adamw *step, int64_t n)
{
    if (n < 1 || n > (int64_t)TPO_TEAM_PARTS * TPO_GRAIN || step->t < 1) return TPO_EINVAL;
    struct adamw_job j = {{w_next, m_next, v_next, w, m, v, g, 0, 0}, *step, n};
    j.span.fix_m = (float)(1.0 / (1.0 - pow(step->beta1, (double)step->t)));
    j.span.fix_v = (float)(1.0 / (1.0 - pow(step->beta2, (double)step->t)));
    tpo_team_run(s->team, run_adamw, &j, tpo_parts(n, TPO_GRAIN));
    return TPO_OK;
}

/* --- Muon ------------------------------------------------------------------------------------------------------------------------------ */

#define NS_STEPS 5
#define NS_A     3.4445f
#define NS_B     (-4.7750f)
#define NS_C     2.0315f

/* X lies with its short side as rows (r x c), so that the two square products are small. */
int64_t tpo_muon_scratch(int R, int C)
{
    int64_t r = tpo_min64(R, C);
    return 2 * (int64_t)R * C + 2 * r * r;
}

/* Elementwise parts run over whole rows of the (R, C) matrix. */
struct muon_job {
    float *w_next, *m_next, *x; /* x: momentum, later the orthogonal matrix, (R, C) */
    const float *w, *m, *g;
    struct tpo_muon step;
    float scale;
    int64_t n;
};

static void run_momentum(void *arg, int part, int member)
{
    (void)member;
    const struct muon_job *j = arg;
    int64_t i = (int64_t)part * TPO_GRAIN;
    tpo_simd()->momentum(j->m_next + i, j->x + i, j->m + i, j->g + i, j->step.momentum, j->step.clip,
                         tpo_min64(j->n - i, TPO_GRAIN));
}

static void run_muon_update(void *arg, int part, int member)
{
    (void)member;
    const struct muon_job *j = arg;
    const struct tpo_simd *v = tpo_simd();
    int64_t i = (int64_t)part * TPO_GRAIN, n = tpo_min64(j->n - i, TPO_GRAIN);
    v->scale(j->w_next + i, 1.0f - j->step.rate * j->step.decay, j->w + i, n);
    v->axpy(j->w_next + i, -j->scale, j->x + i, n);
}

/* X <- a X + (b A + c A A) X with A = X X^T; y gets the new X. */
static int newton_schulz(struct tpo_stream *s, float *y, const float *x, float *a, float *b, int r, int c)
{
    int64_t square = (int64_t)r * r;
    int rc = tpo_matmul_cpu(s, a, r, x, c, x, NULL, 0, r, r, c);
    if (rc == TPO_OK) rc = tpo_matmul_dx_cpu(s, b, r, a, r, a, 0, r, r, r);
    if (rc == TPO_OK) rc = tpo_scale_cpu(s, b, NS_C, b, square);
    if (rc == TPO_OK) rc = tpo_axpy_cpu(s, b, NS_B, a, square);
    if (rc == TPO_OK) rc = tpo_scale_cpu(s, y, NS_A, x, (int64_t)r * c);
    if (rc == TPO_OK) rc = tpo_matmul_dx_cpu(s, y, c, b, r, x, 1, r, r, c);
    return rc;
}

int tpo_muon_cpu(struct tpo_stream *s, float *w_next, float *m_next, const float *w, const float *m, const float *g,
                 const struct tpo_muon *step, float *scratch, int R, int C)
{
    int64_t n = (int64_t)R * C;
    if (R < 1 || C < 1 || n > (int64_t)TPO_TEAM_PARTS * TPO_GRAIN) return TPO_EINVAL;
    const struct tpo_simd *v = tpo_simd();
    int tall = R > C, r = tall ? C : R, c = tall ? R : C, rc;
    float *x = scratch, *y = x + n, *a = y + n, *b = a + (int64_t)r * r;
    struct muon_job j = {w_next, m_next, x, w, m, g, *step, step->rate * 0.2f * sqrtf((float)c), n};
    tpo_team_run(s->team, run_momentum, &j, tpo_parts(n, TPO_GRAIN));
    double square;
    rc = tpo_sumsq_cpu(s, &square, x, n);
    if (rc == TPO_OK) rc = tpo_scale_cpu(s, x, (float)(1.0 / (sqrt(square) + 1e-7)), x, n);
    if (rc != TPO_OK) return rc;
    if (tall) v->transpose(y, R, x, C, R, C);
    for (int i = 0; i < NS_STEPS && rc == TPO_OK; i++) {
        float *from = (i % 2 == 0) == tall ? y : x, *to = from == x ? y : x;
        rc = newton_schulz(s, to, from, a, b, r, c);
        j.x = to;
    }
    if (rc != TPO_OK) return rc;
    if (tall) {
        float *turned = j.x == x ? y : x;
        v->transpose(turned, C, j.x, R, C, R);
        j.x = turned;
    }
    tpo_team_run(s->team, run_muon_update, &j, tpo_parts(n, TPO_GRAIN));
    return TPO_OK;
}
