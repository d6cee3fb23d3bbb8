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

static void momentum(float *m_next, float *x, const float *m, const float *g, const struct tpo_muon *step, int R, int C, int turn)
{
    for (int64_t i = 0; i < R; i++) {
        for (int64_t k = 0; k < C; k++) {
            float grad = g[i * C + k] * step->clip, next = step->momentum * m[i * C + k] + grad;
            m_next[i * C + k] = next;
            x[turn ? k * R + i : i * C + k] = grad + step->momentum * next; /* Nesterov */
        }
    }
}

/* X <- a X + (b A + c A A) X with A = X X^T */
static int newton_schulz(struct tpo_stream *s, float *x, float *y, float *a, float *b, int r, int c)
{
    int64_t square = (int64_t)r * r;
    int rc = tpo_matmul_cpu(s, a, r, x, c, x, NULL, 0, r, r, c);
    if (rc == TPO_OK) rc = tpo_matmul_cpu(s, b, r, a, r, a, NULL, 0, r, r, r); /* A is symmetric: A A^T = A A */
    for (int64_t i = 0; i < square; i++) b[i] = NS_B * a[i] + NS_C * b[i];
    if (rc == TPO_OK) rc = tpo_scale_cpu(s, y, NS_A, x, (int64_t)r * c);
    if (rc == TPO_OK) rc = tpo_matmul_dx_cpu(s, y, c, b, r, x, 1, r, r, c);
    return rc;
}

int tpo_muon_cpu(struct tpo_stream *s, float *w_next, float *m_next, const float *w, const float *m, const float *g,
                 const struct tpo_muon *step, float *scratch, int R, int C)
{
    if (R < 1 || C < 1) return TPO_EINVAL;
    int turn = R > C, r = turn ? C : R, c = turn ? R : C;
    int64_t n = (int64_t)R * C;
    float *x = scratch, *y = x + n, *a = y + n, *b = a + (int64_t)r * r;
    momentum(m_next, x, m, g, step, R, C, turn);
    double square;
    int rc = tpo_sumsq_cpu(s, &square, x, n);
    if (rc == TPO_OK) rc = tpo_scale_cpu(s, x, (float)(1.0 / (sqrt(square) + 1e-7)), x, n);
    for (int i = 0; i < NS_STEPS && rc == TPO_OK; i++) {
        rc = newton_schulz(s, x, y, a, b, r, c);
        float *swap = x;
        x = y;
        y = swap;
    }
    if (rc != TPO_OK) return rc;
    float scale = 0.2f * sqrtf((float)c);
    for (int64_t i = 0; i < R; i++)
        for (int64_t k = 0; k < C; k++) {
            float o = x[turn ? k * R + i : i * C + k], old = w[i * C + k];
            w_next[i * C + k] = old - step->rate * (scale * o + step->decay * old);
        }
    return TPO_OK;
}
