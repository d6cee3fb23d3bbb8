/* This file owns the CPU's pointwise functions. */
#include <math.h>

#include "kernels/cpu.h"

enum act { GELU, RELU };

struct act_job {
    enum act act;
    float *y; /* or dx */
    const float *x, *dy;
    int add;
    int64_t n;
};

static float gelu(float x)
{
    return 0.5f * x * (1.0f + erff(x * 0.70710678f));
}

/* Phi(x) + x phi(x) */
static float gelu_slope(float x)
{
    return 0.5f * (1.0f + erff(x * 0.70710678f)) + x * 0.39894228f * expf(-0.5f * x * x);
}

static void run_act(void *arg, int part, int member)
{
    (void)member;
    const struct act_job *j = arg;
    int64_t end = tpo_min64(j->n, (int64_t)(part + 1) * TPO_GRAIN);
    for (int64_t i = (int64_t)part * TPO_GRAIN; i < end; i++) {
        float x = j->x[i];
        if (j->dy == NULL) {
            j->y[i] = j->act == GELU ? gelu(x) : x > 0.0f ? x : 0.0f;
            continue;
        }
        float d = j->dy[i] * (j->act == GELU ? gelu_slope(x) : x > 0.0f ? 1.0f : 0.0f);
        j->y[i] = j->add ? j->y[i] + d : d;
    }
}

static int run(struct tpo_stream *s, struct act_job job)
{
    if (job.n < 1) return TPO_EINVAL;
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

static float sigmoid(float x)
{
    return 1.0f / (1.0f + expf(-x));
}

static void run_swiglu(void *arg, int part, int member)
{
    (void)member;
    const struct swiglu *j = arg;
    int grain = tpo_row_grain(j->C, TPO_GRAIN);
    int64_t end = tpo_min64(j->M, (int64_t)(part + 1) * grain);
    for (int64_t m = (int64_t)part * grain; m < end; m++) {
        for (int c = 0; c < j->C; c++) {
            int64_t in = m * j->ld + c, out = m * j->C + c;
            float g = j->g[in], u = j->u[in], sig = sigmoid(g);
            if (j->dy == NULL) {
                j->y[out] = g * sig * u;
                continue;
            }
            float dy = j->dy[out], dg = dy * u * sig * (1.0f + g * (1.0f - sig)), du = dy * g * sig;
            j->dg[in] = j->add ? j->dg[in] + dg : dg;
            j->du[in] = j->add ? j->du[in] + du : du;
        }
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
