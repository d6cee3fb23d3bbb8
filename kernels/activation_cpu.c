/* This file owns the CPU's pointwise functions. */
#include "kernels/cpu.h"
#include "kernels/simd.h"

enum act { GELU, RELU };

struct act_job {
    enum act act;
    float *y; /* or dx */
    const float *x, *dy;
    int add;
    int64_t n;
};

static void run_act(void *arg, int part, int member)
{
    (void)member;
    const struct act_job *j = arg;
    const struct tpo_simd *v = tpo_simd();
    int64_t i = (int64_t)part * TPO_GRAIN, n = tpo_min64(j->n - i, TPO_GRAIN);
    if (j->dy == NULL)
        (j->act == GELU ? v->gelu : v->relu)(j->y + i, j->x + i, n);
    else
        (j->act == GELU ? v->gelu_grad : v->relu_grad)(j->y + i, j->dy + i, j->x + i, j->add, n);
}

static int run(struct tpo_stream *s, struct act_job job)
{
    if (job.n < 1 || job.n > (int64_t)TPO_TEAM_PARTS * TPO_GRAIN) return TPO_EINVAL;
    tpo_team_run(s->team, run_act, &job, tpo_parts(job.n, TPO_GRAIN));
    return TPO_OK;
}

int tpo_gelu_cpu(struct tpo_stream *s, float *y, const float *x, int64_t n)
{
    return run(s, (struct act_job){GELU, y, x, NULL, 0, n});
}

int tpo_gelu_grad_cpu(struct tpo_stream *s, float *dx, const float *dy, const float *x, int add, int64_t n)
{
    return run(s, (struct act_job){GELU, dx, x, dy, add, n});
}

int tpo_relu_cpu(struct tpo_stream *s, float *y, const float *x, int64_t n)
{
    return run(s, (struct act_job){RELU, y, x, NULL, 0, n});
}

int tpo_relu_grad_cpu(struct tpo_stream *s, float *dx, const float *dy, const float *x, int add, int64_t n)
{
    return run(s, (struct act_job){RELU, dx, x, dy, add, n});
}

struct swiglu {
    float *y, *dg, *du;
    const float *dy, *g, *u;
    int ld, add, M, C;
};

static void run_swiglu(void *arg, int part, int member)
{
    (void)member;
    const struct swiglu *j = arg;
    const struct tpo_simd *v = tpo_simd();
    int grain = tpo_row_grain(j->C, TPO_GRAIN);
    int64_t end = tpo_min64(j->M, (int64_t)(part + 1) * grain);
    for (int64_t m = (int64_t)part * grain; m < end; m++) {
        int64_t in = m * j->ld, out = m * j->C;
        if (j->dy == NULL)
            v->swiglu(j->y + out, j->g + in, j->u + in, j->C);
        else
            v->swiglu_grad(j->dg + in, j->du + in, j->dy + out, j->g + in, j->u + in, j->add, j->C);
    }
}

int tpo_swiglu_cpu(struct tpo_stream *s, float *y, const float *g, const float *u, int ld, int M, int C)
{
    if (M < 1 || C < 1 || ld < C) return TPO_EINVAL;
    struct swiglu j = {.y = y, .g = g, .u = u, .ld = ld, .M = M, .C = C};
    tpo_team_run(s->team, run_swiglu, &j, tpo_parts(M, tpo_row_grain(C, TPO_GRAIN)));
    return TPO_OK;
}

int tpo_swiglu_grad_cpu(struct tpo_stream *s, float *dg, float *du, const float *dy, const float *g, const float *u, int ld,
                        int add, int M, int C)
{
    if (M < 1 || C < 1 || ld < C) return TPO_EINVAL;
    struct swiglu j = {.dg = dg, .du = du, .dy = dy, .g = g, .u = u, .ld = ld, .add = add, .M = M, .C = C};
    tpo_team_run(s->team, run_swiglu, &j, tpo_parts(M, tpo_row_grain(C, TPO_GRAIN)));
    return TPO_OK;
}
