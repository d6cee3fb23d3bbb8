/* This file owns the CPU's losses of independent rows. The box loss has a file of its own. */
#include <math.h>
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/simd.h"

#define IGNORED (-100)

struct entropy {
    float *out; /* loss (M), or dlogits (M, V) */
    const float *logits;
    const int32_t *label;
    const float *weight;
    float upstream;
    int grad, M, V;
};

static void run_entropy(void *arg, int part, int member)
{
    (void)member;
    const struct entropy *e = arg;
    const struct tpo_simd *v = tpo_simd();
    int grain = tpo_row_grain(e->V, TPO_GRAIN / 4);
    int64_t end = tpo_min64(e->M, (int64_t)(part + 1) * grain);
    for (int64_t m = (int64_t)part * grain; m < end; m++) {
        const float *x = e->logits + m * e->V;
        float weight = e->label[m] == IGNORED ? 0.0f : e->weight != NULL ? e->weight[m] : 1.0f;
        float *out = e->out + (e->grad ? m * e->V : m), scale = e->upstream * weight;
        if (weight == 0.0f) {
            memset(out, 0, (size_t)(e->grad ? e->V : 1) * sizeof(*out));
            continue;
        }
        float lse = v->log_sum_exp(x, e->V);
        if (e->grad) {
            v->exp_scaled(out, x, lse, scale, e->V);
            out[e->label[m]] -= scale;
        } else {
            *out = weight * (lse - x[e->label[m]]);
        }
    }
}

static int run_entropies(struct tpo_stream *s, struct entropy *e)
{
    if (e->M < 1 || e->V < 1) return TPO_EINVAL;
    for (int m = 0; m < e->M; m++)
        if (e->label[m] != IGNORED && (e->label[m] < 0 || e->label[m] >= e->V)) return TPO_EINVAL;
    tpo_team_run(s->team, run_entropy, e, tpo_parts(e->M, tpo_row_grain(e->V, TPO_GRAIN / 4)));
    return TPO_OK;
}

int tpo_cross_entropy_cpu(struct tpo_stream *s, float *loss, const float *logits, const int32_t *label, const float *weight, int M,
                          int V)
{
    struct entropy e = {loss, logits, label, weight, 0.0f, 0, M, V};
    return run_entropies(s, &e);
}

int tpo_cross_entropy_grad_cpu(struct tpo_stream *s, float *dlogits, const float *logits, const int32_t *label, const float *weight,
                               float upstream, int M, int V)
{
    struct entropy e = {dlogits, logits, label, weight, upstream, 1, M, V};
    return run_entropies(s, &e);
}

/* --- weighted L1 and squared error ---------------------------------------------------------------------------------------------------- */

struct distance {
    float *out; /* loss (M), or dp (M, C) */
    const float *p, *g, *weight;
    float upstream;
    int grad, square, M, C;
};

static void run_distance(void *arg, int part, int member)
{
    (void)member;
    const struct distance *d = arg;
    int grain = tpo_row_grain(d->C, TPO_GRAIN);
    int64_t end = tpo_min64(d->M, (int64_t)(part + 1) * grain);
    for (int64_t m = (int64_t)part * grain; m < end; m++) {
        const float *p = d->p + m * d->C, *g = d->g + m * d->C;
        float weight = d->weight != NULL ? d->weight[m] : 1.0f, sum = 0.0f, scale = d->upstream * weight;
        for (int c = 0; c < d->C; c++) {
            float off = p[c] - g[c];
            if (!d->grad)
                sum += d->square ? off * off : fabsf(off);
            else
                d->out[m * d->C + c] = scale * (d->square ? 2.0f * off : (float)((off > 0.0f) - (off < 0.0f)));
        }
        if (!d->grad) d->out[m] = weight * sum;
    }
}

static int run_distances(struct tpo_stream *s, struct distance d)
{
    if (d.M < 1 || d.C < 1) return TPO_EINVAL;
    tpo_team_run(s->team, run_distance, &d, tpo_parts(d.M, tpo_row_grain(d.C, TPO_GRAIN)));
    return TPO_OK;
}

int tpo_l1_rows_cpu(struct tpo_stream *s, float *loss, const float *p, const float *g, const float *weight, int M, int C)
{
    return run_distances(s, (struct distance){loss, p, g, weight, 0.0f, 0, 0, M, C});
}

int tpo_l1_rows_grad_cpu(struct tpo_stream *s, float *dp, const float *p, const float *g, const float *weight, float upstream,
                         int M, int C)
{
    return run_distances(s, (struct distance){dp, p, g, weight, upstream, 1, 0, M, C});
}

int tpo_mse_rows_cpu(struct tpo_stream *s, float *loss, const float *p, const float *g, const float *weight, int M, int C)
{
    return run_distances(s, (struct distance){loss, p, g, weight, 0.0f, 0, 1, M, C});
}

int tpo_mse_rows_grad_cpu(struct tpo_stream *s, float *dp, const float *p, const float *g, const float *weight, float upstream,
                          int M, int C)
{
    return run_distances(s, (struct distance){dp, p, g, weight, upstream, 1, 1, M, C});
}

/* --- argmax ------------------------------------------------------------------------------------------------------------------------------ */

struct argmax {
    int32_t *out;
    const float *x;
    int V;
};

static void run_argmax(void *arg, int part, int member)
{
    (void)member;
    const struct argmax *a = arg;
    const float *x = a->x + (int64_t)part * a->V;
    int best = 0;
    for (int v = 1; v < a->V; v++)
        if (x[v] > x[best]) best = v;
    a->out[part] = best;
}

int tpo_argmax_cpu(struct tpo_stream *s, int32_t *out, const float *x, int M, int V)
{
    if (M < 1 || V < 1 || M > TPO_TEAM_PARTS) return TPO_EINVAL;
    struct argmax a = {out, x, V};
    tpo_team_run(s->team, run_argmax, &a, M);
    return TPO_OK;
}
