/* This file owns the CPU's optimiser steps. */
#include <math.h>

#include "kernels/cpu.h"
#include "kernels/products.h"
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

/* Two matrices of the weight's size, then squares of its short side. */
#define SQUARES 4

int64_t tpo_muon_scratch(int R, int C)
{
    int64_t r = tpo_min64(R, C);
    return 2 * (int64_t)R * C + SQUARES * r * r;
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

struct newton_schulz {
    float *a, *b, *p, *t; /* (r, r), polynomials of one symmetric matrix: symmetric, and they commute */
    int r;
};

static void swap(float **a, float **b)
{
    float *kept = *a;
    *a = *b;
    *b = kept;
}

/* y = a b, of which half is computed. */
static int square_product(struct tpo_stream *s, float *y, const float *a, const float *b, int r)
{
    struct tpo_product p = {.y = y, .ldy = r, .a = a, .lda = r, .b = b, .ldb = r, .symmetric = 1, .rows = r, .cols = r, .depth = r};
    return tpo_product_run(s, &p);
}

/* a = x^T x (R >= C) or x x^T, of x (R, C). */
static int gram(struct tpo_stream *s, float *a, const float *x, int R, int C)
{
    int r = R < C ? R : C, wide = R < C;
    struct tpo_product p = {
        .y = a, .ldy = r, .a = x, .lda = C, .a_turned = !wide, .b = x, .ldb = C, .b_turned = wide, .symmetric = 1};
    p.rows = p.cols = r;
    p.depth = wide ? C : R;
    return tpo_product_run(s, &p);
}

/* y = x b (R >= C) or b x, b symmetric. */
static int transform(struct tpo_stream *s, float *y, const float *x, const float *b, int R, int C)
{
    int r = R < C ? R : C, wide = R < C;
    struct tpo_product p = {.y = y, .ldy = C, .a = wide ? b : x, .lda = wide ? r : C, .b = wide ? x : b, .ldb = C};
    p.rows = R, p.cols = C, p.depth = r;
    return tpo_product_run(s, &p);
}

/* B = NS_A I + NS_B A + NS_C A A */
static int polynomial(struct tpo_stream *s, const struct newton_schulz *n)
{
    int64_t size = (int64_t)n->r * n->r;
    int rc = square_product(s, n->b, n->a, n->a, n->r);
    if (rc == TPO_OK) rc = tpo_scale_cpu(s, n->b, NS_C, n->b, size);
    if (rc == TPO_OK) rc = tpo_axpy_cpu(s, n->b, NS_B, n->a, size);
    for (int i = 0; i < n->r; i++) n->b[(int64_t)i * n->r + i] += NS_A;
    return rc;
}

/* X <- B(A) X with A the Gram matrix of X's short side, five times. On squares alone: the next A is B A B, since all of them commute, and X is
 * multiplied once, by the product P of the Bs. */
static int newton_schulz(struct tpo_stream *s, struct newton_schulz *n, float *next, const float *x, int R, int C)
{
    int rc = gram(s, n->a, x, R, C);
    for (int i = 0; i < NS_STEPS && rc == TPO_OK; i++) {
        rc = polynomial(s, n);
        if (rc == TPO_OK && i == 0) rc = tpo_scale_cpu(s, n->p, 1.0f, n->b, (int64_t)n->r * n->r);
        if (rc == TPO_OK && i + 1 < NS_STEPS) rc = square_product(s, n->t, n->a, n->b, n->r);
        if (rc == TPO_OK && i + 1 < NS_STEPS) rc = square_product(s, n->a, n->t, n->b, n->r);
        if (rc == TPO_OK && i > 0) {
            rc = square_product(s, n->t, n->p, n->b, n->r);
            swap(&n->p, &n->t);
        }
    }
    return rc == TPO_OK ? transform(s, next, x, n->p, R, C) : rc;
}

int tpo_muon_cpu(struct tpo_stream *s, float *w_next, float *m_next, const float *w, const float *m, const float *g,
                 const struct tpo_muon *step, float *scratch, int R, int C)
{
    int64_t size = (int64_t)R * C;
    if (R < 1 || C < 1 || size > (int64_t)TPO_TEAM_PARTS * TPO_GRAIN) return TPO_EINVAL;
    float *x = scratch, *next = scratch + size;
    struct newton_schulz n = {.r = R < C ? R : C};
    float **squares[SQUARES] = {&n.a, &n.b, &n.p, &n.t};
    for (int i = 0; i < SQUARES; i++) *squares[i] = scratch + 2 * size + i * (int64_t)n.r * n.r;
    struct muon_job j = {w_next, m_next, x, w, m, g, *step, step->rate * 0.2f * sqrtf((float)(R < C ? C : R)), size};
    tpo_team_run(s->team, run_momentum, &j, tpo_parts(size, TPO_GRAIN));
    double square;
    int rc = tpo_sumsq_cpu(s, &square, x, size);
    if (rc == TPO_OK) rc = tpo_scale_cpu(s, x, (float)(1.0 / (sqrt(square) + 1e-7)), x, size);
    if (rc == TPO_OK) rc = newton_schulz(s, &n, next, x, R, C);
    if (rc != TPO_OK) return rc;
    j.x = next;
    tpo_team_run(s->team, run_muon_update, &j, tpo_parts(size, TPO_GRAIN));
    return TPO_OK;
}
