/* This file owns the box loss on CUDA (box_cpu.c tells the formulas). Few rows: one thread walks them, in order. */
#include "kernels/cuda.h"

struct overlap {
    float w, h, W, H;
    float inter, uni, hull;
};

__device__ static struct overlap overlap_of(const float *p, const float *g)
{
    struct overlap o;
    o.w = fmaxf(fminf(p[2], g[2]) - fmaxf(p[0], g[0]), 0.0f);
    o.h = fmaxf(fminf(p[3], g[3]) - fmaxf(p[1], g[1]), 0.0f);
    o.W = fmaxf(fmaxf(p[2], g[2]) - fminf(p[0], g[0]), 0.0f);
    o.H = fmaxf(fmaxf(p[3], g[3]) - fminf(p[1], g[1]), 0.0f);
    o.inter = o.w * o.h;
    o.uni = (p[2] - p[0]) * (p[3] - p[1]) + (g[2] - g[0]) * (g[3] - g[1]) - o.inter;
    o.hull = o.W * o.H;
    return o;
}

__device__ static float ratio(float a, float b)
{
    return b > 0.0f ? a / b : 0.0f;
}

__device__ static bool valid(const float *p)
{
    return p[2] >= p[0] && p[3] >= p[1];
}

__global__ void box_loss(float *out, float *giou, const float *p, const float *g, int n)
{
    double l1 = 0.0, sum = 0.0;
    int n_valid = 0;
    for (int i = 0; i < n; i++, p += 4, g += 4) {
        for (int c = 0; c < 4; c++) l1 += fabs((double)p[c] - g[c]);
        float term = NAN;
        if (valid(p)) {
            const struct overlap o = overlap_of(p, g);
            term = 1.0f - (ratio(o.inter, o.uni) - ratio(o.hull - o.uni, o.hull));
            sum += term;
            n_valid++;
        }
        if (giou != NULL) giou[i] = term;
    }
    out[0] = (float)(l1 / (4.0 * n));
    out[1] = n_valid > 0 ? (float)(sum / n_valid) : 2.0f;
}

__device__ static void giou_slope(float *d, const float *p, const float *g, float scale)
{
    const struct overlap o = overlap_of(p, g);
    float per_uni = 0.0f, per_inter = 0.0f, per_hull = 0.0f;
    if (o.uni > 0.0f) per_inter = -1.0f / o.uni, per_uni = o.inter / (o.uni * o.uni);
    if (o.hull > 0.0f) per_uni -= 1.0f / o.hull, per_hull = o.uni / (o.hull * o.hull);
    per_inter -= per_uni;
    for (int axis = 0; axis < 2; axis++) {
        const float side = axis == 0 ? p[3] - p[1] : p[2] - p[0], inter = axis == 0 ? o.h : o.w, hull = axis == 0 ? o.H : o.W;
        const bool meets = (axis == 0 ? o.w : o.h) > 0.0f;
        float low = -per_uni * side, high = per_uni * side;
        if (meets && p[axis] >= g[axis]) low -= per_inter * inter;
        if (meets && p[axis + 2] <= g[axis + 2]) high += per_inter * inter;
        if (p[axis] <= g[axis]) low -= per_hull * hull;
        if (p[axis + 2] >= g[axis + 2]) high += per_hull * hull;
        d[axis] += scale * low;
        d[axis + 2] += scale * high;
    }
}

__global__ void box_loss_slope(float *dp, const float *p, const float *g, float up_l1, float up_giou, int n)
{
    int n_valid = 0;
    for (int i = 0; i < n; i++) n_valid += valid(p + i * 4);
    for (int i = 0; i < n; i++, dp += 4, p += 4, g += 4) {
        for (int c = 0; c < 4; c++) dp[c] = up_l1 / (4.0f * (float)n) * (float)((p[c] > g[c]) - (p[c] < g[c]));
        if (valid(p)) giou_slope(dp, p, g, up_giou / (float)n_valid);
    }
}

extern "C" int tpo_box_loss_cuda(struct tpo_stream *s, float *out, float *giou, const float *p, const float *g, int n)
{
    if (n < 1) return TPO_EINVAL;
    box_loss<<<1, 1, 0, tpo_cuda_stream(s)>>>(out, giou, p, g, n);
    return tpo_cuda_launched();
}

extern "C" int tpo_box_loss_grad_cuda(struct tpo_stream *s, float *dp, const float *p, const float *g, float up_l1, float up_giou,
                                      int n)
{
    if (n < 1) return TPO_EINVAL;
    box_loss_slope<<<1, 1, 0, tpo_cuda_stream(s)>>>(dp, p, g, up_l1, up_giou, n);
    return tpo_cuda_launched();
}
